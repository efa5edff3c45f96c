// What there is has a place in docs/: options, events, lines of the log, error codes.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { eventNames } from '../../lib/engine/events.js'
import { storyLevels } from '../../lib/fastify/log/levels.js'
import { pluginProperties, poolProperties } from '../../lib/fastify/options.js'
import { optionsPage } from './options-page.js'
import { docs, headingsOf, root, textOf } from './pages.js'

const blocks = /^```[^]*?^```/gm
const text = docs()
/** All that stands in backticks, or in a block of code. */
const code = [...text.matchAll(blocks), ...text.replace(blocks, '').matchAll(/`[^`]+`/g)].map(([found]) => found)
const named = new Set(code.flatMap((found) => found.split(/[^\w.]+/)))

t.test('docs/options.md is what `npm run docs:options` makes', async (t) => {
  t.equal(textOf('docs/options.md'), optionsPage())
})

t.test('every option is in docs/', async (t) => {
  for (const name of [...Object.keys(pluginProperties), ...Object.keys(poolProperties)]) t.ok(named.has(name), name)
})

t.test('every event and every line of the log is in docs/observing.md', async (t) => {
  const there = new Set(textOf('docs/observing.md').split(/[^\w.]+/))
  for (const name of [...eventNames, ...Object.keys(storyLevels)]) t.ok(there.has(name), name)
})

t.test('every error code has a section in docs/errors.md, and nothing else has', async (t) => {
  const codes = new Set([...readFileSync(join(root, 'types/errors.ts'), 'utf8').matchAll(/'(FST_POOL_\w+)'/g)]
    .map(([, code]) => code!))
  const headings = [...headingsOf('docs/errors.md').values()].filter((title) => title.startsWith('FST_POOL_'))
  t.same(headings.sort(), [...codes].sort())
})
