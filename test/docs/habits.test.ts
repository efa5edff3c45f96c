// CONTRIBUTING, SECURITY, the templates and the changelog name what is there. Their links: links.test.ts.
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { root, textOf } from './pages.js'

const { version, scripts } = JSON.parse(textOf('package.json')) as { version: string, scripts: Record<string, string> }
const texts = ['CONTRIBUTING.md', 'SECURITY.md', '.github/PULL_REQUEST_TEMPLATE.md', '.github/ISSUE_TEMPLATE/bug.yml',
  '.github/ISSUE_TEMPLATE/proposal.yml']

t.test('each command and file that they name is there', async (t) => {
  for (const text of texts) {
    const named = textOf(text)
    for (const [, script = ''] of named.matchAll(/npm run ([\w:-]+)/g)) t.ok(script in scripts, `${text}: ${script}`)
    for (const [, file = ''] of named.matchAll(/(?<![\w/])((?:test|docs|lib|types|\.github)\/[\w./-]*\w)/g)) {
      t.ok(existsSync(join(root, file)), `${text}: ${file}`)
    }
  }
  for (const command of ['npm run check', 'npm run api', 'npm test']) t.match(textOf('CONTRIBUTING.md'), command)
})

t.test('each row of the threat model names a test that is there', async (t) => {
  const model = /^## Who attacks[^]*?(?=^## )/m.exec(textOf('SECURITY.md'))?.[0] ?? ''
  const rows = model.split('\n').filter((line) => /^\| (?!---|what |where it )/.test(line))
  t.ok(rows.length > 40, `${rows.length} rows`)
  for (const row of rows) {
    const [, file, name] = /\| `(test\/\S+\.ts)`: (.+) \|$/.exec(row) ?? []
    if (file === undefined || name === undefined) t.fail(`no test: ${row}`)
    // A title may have its apostrophes behind a backslash.
    else t.ok(textOf(file).replaceAll("\\'", "'").includes(name), `${file}: ${name}`)
  }
})

t.test('their lines are short', async (t) => {
  for (const text of [...texts, 'CHANGELOG.md', '.github/workflows/release.yml']) {
    const long = textOf(text).split('\n').filter((line) => [...line].length > 120 && !/^\||apt-get/.test(line))
    t.same(long, [], text)
  }
})

t.test('the limits that CONTRIBUTING names are those of the check', async (t) => {
  const { file, class: lines, fields, methods, function: ofFunction } = Object.fromEntries(
    [...readFileSync(join(root, 'test/support/rooms.mjs'), 'utf8').matchAll(/(\w+): (\d+)[,} ]/g)]
      .map(([, kind = '', limit]) => [kind, limit]))
  t.match(textOf('CONTRIBUTING.md').replaceAll(/\s+/g, ' '),
    `A file has at most ${file} lines, a class ${lines} lines, ${fields} fields and ${methods} methods, a function ${ofFunction} lines`)
})

t.test('the changelog: the newest version first, each with a date but the one to come, by area', async (t) => {
  const sections = textOf('CHANGELOG.md').split(/^## /m).slice(1)
  t.match(sections[0]?.split('\n')[0], `${version} (`)
  const dates: string[] = []
  for (const [index, section] of sections.entries()) {
    const [heading = '', ...lines] = section.split('\n')
    const [, date = ''] = /^\d+\.\d+\.\d+\S* \((unreleased|\d{4}-\d\d-\d\d)\)$/.exec(heading) ?? []
    t.ok(date, heading)
    t.ok(date !== 'unreleased' || index === 0, heading)
    if (date !== 'unreleased') dates.push(date)
    for (const line of lines) t.ok(/^(### .+|- .+| {2}\S.*|)$/.test(line), `a heading, an entry or its next line: ${line}`)
    // A long section is read by area.
    const entries = lines.filter((line) => line.startsWith('- ')).length
    const first = lines.find((line) => line !== '') ?? ''
    if (entries > 10) t.ok(first.startsWith('### '), `${heading}: ${first}`)
  }
  t.same(dates, [...dates].sort().reverse())
})
