// example/testing under each runner, and the examples of docs/testing.md: in processes of their own, on what `npm run
// build` made.
import { spawn } from 'node:child_process'
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { once } from 'node:events'
import t, { type Test } from 'tap'

const root = fileURLToPath(new URL('../..', import.meta.url))
const example = join(root, 'example/testing')
const vitest = join(dirname(createRequire(import.meta.url).resolve('vitest/package.json')), 'vitest.mjs')

async function run (t: Test, args: readonly string[]): Promise<{ code: number, said: string }> {
  const { NODE_OPTIONS: _, NODE_V8_COVERAGE: __, NODE_TEST_CONTEXT: ___, ...env } = process.env
  const child = spawn(process.execPath, args, { cwd: root, env: { ...env, NO_COLOR: '1' }, stdio: ['ignore', 'pipe', 'pipe'] })
  t.teardown(() => child.kill('SIGKILL'))
  const said = Promise.all([text(child.stdout), text(child.stderr)])
  const [code] = await once(child, 'close') as [number]
  return { code, said: (await said).join('\n') }
}

const runners: ReadonlyArray<[name: string, args: string[], passed: RegExp]> = [
  ['node', ['--test', '--test-reporter=tap'], /# pass [46]\n# fail 0/],
  ['tap', [], /^1\.\.4$/m],
  ['vitest', [vitest, 'run'], /Tests {2}5 passed \(5\)/],
]
for (const [name, args, passed] of runners) {
  t.test(`example/testing passes with ${name}`, async (t) => {
    const { code, said } = await run(t, [...args, join(example, `app.${name}.test.mjs`)])
    t.equal(code, 0, code === 0 ? 'it passes' : said)
    t.match(said, passed)
  })
}

t.test('the examples of docs/testing.md pass', async (t) => {
  const page = readFileSync(join(root, 'docs/testing.md'), 'utf8')
  const blocks = [...page.matchAll(/^```ts\n([\s\S]*?)^```/gm)].map(([, code]) => code!)
  // Without a file `node --test` would run all that it finds.
  if (blocks.length !== 3) throw new Error(`${blocks.length} examples`)
  const folder = t.testdir({})
  copyFileSync(join(example, 'app.mjs'), join(folder, 'app.mjs'))
  const files = blocks.map((code, n) => {
    const file = join(folder, `${n}.test.mjs`)
    writeFileSync(file, `import { build } from './app.mjs'\n${code}`)
    return file
  })
  const { code, said } = await run(t, ['--test', '--test-reporter=tap', ...files])
  t.equal(code, 0, code === 0 ? 'it passes' : said)
  t.match(said, /# pass 4\n# fail 0/)
})
