import { readFileSync } from 'node:fs'
import t from 'tap'
import { eventNames } from '../../lib/engine/events.js'
import { storyLevels } from '../../lib/fastify/log/levels.js'
import { pluginProperties, poolProperties } from '../../lib/fastify/options.js'

const readme = readFileSync(new URL('../../README.md', import.meta.url), 'utf8')
/** All that stands in backticks, or in a block of code. */
const blocks = /^```[^]*?^```/gm
const code = [...readme.matchAll(blocks), ...readme.replace(blocks, '').matchAll(/`[^`]+`/g)].map(([text]) => text)
const named = new Set(code.flatMap((text) => text.split(/[^\w.]+/)))

t.test('every option is in the README', async (t) => {
  for (const name of [...Object.keys(pluginProperties), ...Object.keys(poolProperties)]) t.ok(named.has(name), name)
})

t.test('every event and every line of the log is in the README', async (t) => {
  for (const name of [...eventNames, ...Object.keys(storyLevels)]) t.ok(named.has(name), name)
})
