// Every block of code of the README and of docs/ is what it claims to be.
//
// Words behind the language say more of a block of `ts`:
// - none: it compiles as it stands, as a module of its own;
// - `more`: it goes on where the block of `ts` before it on its page ends;
// - `run`: it (with those that it goes on from) is run, too, on servers of the test: its URLs become theirs. A comment
//   right behind it, `<!-- try`, says what its app is asked, and what it prints (run.ts);
// - `of <file>`: all of its lines are in that file, which is compiled or run elsewhere. A block of `js` must say so.
//
// A comment `<!-- given ... -->` has what all blocks of its page begin with, unseen: for pages whose examples are of
// one app. Best is a page that needs none.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { blocksOf, pages, root } from './pages.js'
import { chainsOf, compile } from './compile.js'
import { runner } from './run.js'

const languages = ['ts', 'js', 'sh', 'json', 'yaml', 'text', 'diff', 'sql', 'dockerfile', 'ini', 'http']
const marks = ['more', 'run', 'of']

const blocks = pages.flatMap(blocksOf)
const isQuote = ({ page, line, marks, code }: typeof blocks[number]): boolean =>
  marks[0] === 'of' || shownFile(page, line, code) !== undefined

/** The file that a page shows as a whole: its name stands above the block. */
function shownFile (page: string, line: number, code: string): string | undefined {
  const above = readFileSync(join(root, page), 'utf8').split('\n')[line - 4]
  const [, file] = /^`([\w./-]+\.ts)`:$/.exec(above ?? '') ?? []
  return file !== undefined && readFileSync(join(root, file), 'utf8') === code ? file : undefined
}

const scripts = (JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { scripts: Record<string, string> })
  .scripts
const inTypeScript = blocks.filter((block) => block.language === 'ts' && !isQuote(block))
const chains = pages.flatMap((page) => chainsOf(inTypeScript.filter((block) => block.page === page)))

t.test('each has a language, and marks that mean something', async (t) => {
  for (const { page, line, language, marks: given, tries } of blocks) {
    const at = `${page}:${line}`
    t.ok(languages.includes(language), `${at}: ${language === '' ? 'no language' : language}`)
    if (language === 'js') t.equal(given[0], 'of', `${at}: JavaScript is shown of a file, else it is TypeScript`)
    else if (language !== 'ts') t.same(given, [], `${at}: marks are for ts`)
    else if (given[0] !== 'of') for (const mark of given) t.ok(marks.includes(mark), `${at}: ${mark}`)
    if (tries.length > 0) t.ok(given.includes('run'), `${at}: what is tried is run`)
  }
})

t.test('TypeScript, in strict mode', async (t) => {
  t.ok(chains.length > 0)
  for (const [{ name }, told] of compile(chains)) t.same(told, [], name)
})

t.test('what is shown of a file is in it', async (t) => {
  for (const { page, line, marks, code } of blocks.filter(({ marks }) => marks[0] === 'of')) {
    const there = new Set(readFileSync(join(root, marks[1] ?? 'none'), 'utf8').split('\n').map((one) => one.trim()))
    const missing = code.split('\n').map((one) => one.trim()).filter((one) => one !== '' && one !== '// ...' && !there.has(one))
    t.same(missing, [], `${page}:${line}`)
  }
})

t.test('JSON is JSON', async (t) => {
  for (const { page, line, code } of blocks.filter(({ language }) => language === 'json')) {
    t.doesNotThrow(() => { JSON.parse(code) }, `${page}:${line}`)
  }
})

t.test('the commands of npm are scripts of this package', async (t) => {
  const known = ['install', 'test', 'start', ...Object.keys(scripts).map((name) => `run ${name}`)]
  for (const { page, line, code } of blocks.filter(({ language }) => language === 'sh')) {
    for (const [, command = ''] of code.matchAll(/\bnpm ((?:run )?[\w:-]+)/g)) {
      t.ok(known.includes(command), `${page}:${line}: npm ${command}`)
    }
  }
})

t.test('what is marked so runs', async (t) => {
  const run = await runner(t)
  const waiting = chains.filter(({ runs }) => runs)
  t.ok(waiting.length > 0)
  // Each is mostly the start of a process.
  const worker = async () => {
    for (let chain = waiting.shift(); chain !== undefined; chain = waiting.shift()) await run(t, chain)
  }
  await Promise.all([worker(), worker(), worker()])
})
