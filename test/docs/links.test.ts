// Where links of the README and of docs/ lead, and how far from the README an answer is.
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { headingsOf, linksOf, pages, proseOf, root, textOf } from './pages.js'

/** What people ask, and the page and the heading that answers it. */
const questions: ReadonlyArray<readonly [asked: string, page: string, heading: string]> = [
  ['a statement timeout', 'docs/postgresql.md', 'How do I set a statement timeout?'],
  ['a statement timeout', 'docs/mysql.md', 'How do I set a statement timeout?'],
  ['two databases of a kind', 'docs/several-databases.md', 'Two databases of a kind'],
  ['isolation', 'docs/transactions.md', 'How do I set the isolation level?'],
  ['TLS to Redis', 'docs/redis.md', 'How do I connect over TLS?'],
  ['Prometheus', 'docs/metrics.md', 'Prometheus'],
  ['tests without a database', 'docs/testing.md', 'Without a database'],
  ['four pods', 'docs/sizing.md', 'How large should the pool be with four pods?'],
  ['SIGTERM', 'docs/deploys.md', 'What happens at SIGTERM?'],
  ['Drizzle in a transaction per request', 'docs/query-builders-and-orms.md', 'Drizzle in a transaction per request'],
  ['a database per tenant', 'docs/several-databases.md', 'A database per tenant'],
  ['environment', 'docs/environment.md', 'How do I configure a pool from environment variables?'],
  ['pub/sub', 'docs/pub-sub.md', "Messages: Redis' pub/sub, PostgreSQL's notifications"],
  ['pub/sub', 'docs/realtime.md', 'How do I publish and subscribe?'],
]

t.test('every link leads to a file of the repository, and to a heading of it', async (t) => {
  for (const page of [...pages, 'ARCHITECTURE.md', 'CONTRIBUTING.md', 'SECURITY.md', 'CHANGELOG.md']) {
    for (const { as, page: target, anchor } of linksOf(page)) {
      const there = existsSync(join(root, target))
      t.ok(there, `${page}: ${as}`)
      if (there && anchor !== undefined) t.ok(headingsOf(target).has(anchor), `${page}: ${as}`)
    }
  }
})

t.test('each question has a heading, two clicks from the README', async (t) => {
  const near = pagesWithin(2)
  for (const [asked, page, heading] of questions) {
    t.ok(pages.includes(page) && [...headingsOf(page).values()].includes(heading), `${asked}: ${page}, ${heading}`)
    t.ok(near.has(page), `${page} is two clicks from the README`)
  }
  for (const page of pages) t.ok(near.has(page), `${page} is two clicks from the README`)
})

function pagesWithin (clicks: number): Set<string> {
  const found = new Set(['README.md'])
  for (let n = 0; n < clicks; n++) {
    for (const page of [...found]) for (const { page: next } of linksOf(page)) if (pages.includes(next)) found.add(next)
  }
  return found
}

t.test('what docs/promises.md names is there', async (t) => {
  const rows = [...textOf('docs/promises.md').matchAll(/^\| .* \| `(test\/\S+)` \| (.*) \|$/gm)]
  t.ok(rows.length > 20)
  for (const [, file = '', name = ''] of rows) t.ok(readFileSync(join(root, file), 'utf8').includes(name), `${file}: ${name}`)
})

t.test('a page begins with its one title, and its lines are short', async (t) => {
  for (const page of pages) {
    const prose = proseOf(page)
    t.match(prose, /^# /, page)
    t.equal(prose.match(/^# /gm)?.length, 1, page)
    const long = textOf(page).split('\n').filter((line) => [...line].length > 120 && !/^\s*\|/.test(line))
    // The shown sources have limits of their own.
    t.same(long, [], page)
  }
})

t.test('the README is at most 220 lines', async (t) => {
  const lines = textOf('README.md').trimEnd().split('\n').length
  t.ok(lines <= 220, `${lines} lines`)
})
