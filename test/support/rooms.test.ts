import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const script = fileURLToPath(new URL('rooms.mjs', import.meta.url))

function check (folder: string) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [script, folder], { encoding: 'utf8' })
  return { status, stdout, stderr }
}

const lines = (count: number, line: (n: number) => string) => Array.from({ length: count }, (_, n) => line(n))
  .join('\n')

t.test('what is within the limits passes, and the largest are shown', async (t) => {
  const { status, stdout, stderr } = check(t.testdir({
    'index.ts': "export * from './lib/a.js'\n",
    lib: {
      'a.ts': 'export class A {\n  one = 1\n  constructor (readonly two: number, three: number) {}\n  get four () { return 4 }\n}\n',
      'b.ts': `export function b () {\n${lines(58, (n) => `  console.log(${n})`)}\n}\n`,
      'c.js': lines(700, String),
    },
  }))
  t.equal(stderr, '')
  t.equal(status, 0)
  t.equal(stdout, `file (limit 600): lib/b.ts 60, lib/a.ts 5, index.ts 1
class (limit 520): lib/a.ts A 5
fields (limit 30): lib/a.ts A 2
methods (limit 40): lib/a.ts A 1
function (limit 60): lib/b.ts b 60, lib/a.ts A.constructor 1, lib/a.ts A.four 1
3 files, 62 statements
`)
})

t.test('each limit is one, and what is over it is named', async (t) => {
  const { status, stderr } = check(t.testdir({
    'index.ts': '',
    lib: {
      'file.ts': lines(601, (n) => `export const v${n} = ${n}`),
      'class.ts': `class Long {\n${lines(519, (n) => `  // ${n}`)}\n}`,
      'fields.ts': `class Wide {\n${lines(30, (n) => `  #f${n} = ${n}`)}\n  constructor (private last: number) {}\n}`,
      'methods.ts': `class Busy {\n${lines(40, (n) => `  m${n} () {}`)}\n  set value (value: number) {}\n}`,
      'function.ts': `const o = { f: () => {\n${lines(59, () => '')}\n} }`,
    },
  }))
  t.equal(status, 1)
  t.same(stderr.trim().split('\n').sort(), [
    'lib/class.ts Long: class 521, limit 520',
    'lib/fields.ts Wide: fields 31, limit 30',
    'lib/file.ts: file 601, limit 600',
    'lib/function.ts: function 61, limit 60',
    'lib/methods.ts Busy: methods 41, limit 40',
  ])
})

// Our own tree is looked at by `npm run check:rooms`, which `npm test` runs.
