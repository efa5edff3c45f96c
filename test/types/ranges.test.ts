import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import t from 'tap'
// @ts-expect-error a script, without types of its own
import { rangesOf } from '../support/drift.mjs'

const semver = createRequire(import.meta.url)('semver') as {
  satisfies (version: string, range: string): boolean
  minVersion (range: string): { readonly version: string }
}

const root = new URL('../../', import.meta.url)

t.test('the table of versions in docs/versions.md is that of package.json', async (t) => {
  const own =
    JSON.parse(readFileSync(new URL('package.json', root), 'utf8')) as { dependencies: Record<string, string> }
  const page = readFileSync(new URL('docs/versions.md', root), 'utf8')
  const [, table = ''] = /^\| package \| from \| to \|.*\n\| [-| ]+\|\n((?:\|.*\n)+)/m.exec(page) ?? []
  const told = new Map<string, { from: string, to: string }>()
  for (const row of table.trim().split('\n')) {
    const [, name = '', from = '', to = ''] = /^\| `([^`]+)` \| ([\d.]+) \| ([\d.]+)/.exec(row) ?? []
    told.set(name, { from, to })
  }
  const ranges = new Map([...rangesOf(own) as Map<string, string>].filter(([name]) => !(name in own.dependencies)))
  t.strictSame([...told.keys()].sort(), [...ranges.keys()].sort())
  for (const [name, range] of ranges) {
    const { from, to } = told.get(name) ?? { from: 'none', to: 'none' }
    t.equal(from, semver.minVersion(range).version, `${name} from: ${range}`)
    t.ok(semver.satisfies(to, range), `${name} to ${to}: ${range}`)
  }
})
