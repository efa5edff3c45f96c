import { spawnSync } from 'node:child_process'
import { chmodSync, cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import t from 'tap'
import { root } from './find.mjs'

/** Runs .ci/run in a folder whose npm says and returns for each script what `lanes` have. */
function runLanes (lanes: Record<string, { says: string, code: number }>): { code: number | null, lines: string[] } {
  const at = mkdtempSync(join(tmpdir(), 'fastify-pool-ci-'))
  t.teardown(() => rmSync(at, { recursive: true }))
  mkdirSync(join(at, '.ci'))
  cpSync(join(root, '.ci/run'), join(at, '.ci/run'))
  writeFileSync(join(at, 'package.json'), JSON.stringify({ scripts: lanes }))
  const cases = Object.entries(lanes).map(([name, { says, code }]) => `"run ${name}") echo '${says}'; exit ${code};;`)
  writeFileSync(join(at, 'npm'), `#!/usr/bin/env bash\ncase "$*" in\n${cases.join('\n')}\nesac\n`)
  chmodSync(join(at, 'npm'), 0o755)
  const env = { ...process.env, PATH: `${at}${delimiter}${process.env.PATH}` }
  const { status, stdout } = spawnSync(join(at, '.ci/run'), { env, encoding: 'utf8' })
  return { code: status, lines: stdout.trimEnd().split('\n') }
}

const good = { says: 'and so on\n5 passed, 0 failed', code: 0 }

t.test('the last line is the sum of all lanes', async (t) => {
  const { code, lines } = runLanes({
    test: { says: '12 passed, 0 failed, 1 skipped', code: 0 },
    'test:full': { says: '3 passed, 0 failed', code: 0 },
    'test:consumers': good,
  })
  t.same([code, lines.at(-1)], [0, '20 passed, 0 failed'])
})

t.test('a lane that package.json does not have is not run', async (t) => {
  const { code, lines } = runLanes({ test: good, 'test:consumers': good })
  t.same([code, lines.at(-1)], [0, '10 passed, 0 failed'])
})

t.test('a lane that fails fails the run, and the others run all the same', async (t) => {
  const failing = {
    'with failed tests': { lane: { says: '3 passed, 2 failed', code: 1 }, sum: '8 passed, 2 failed' },
    'with no failed test (coverage)': { lane: { says: '3 passed, 0 failed', code: 1 }, sum: '8 passed, 1 failed' },
    'before its first test (lint)': { lane: { says: 'error', code: 1 }, sum: '5 passed, 1 failed' },
    'without its count': { lane: { says: 'what?', code: 0 }, sum: '5 passed, 1 failed' },
  }
  for (const [how, { lane, sum }] of Object.entries(failing)) {
    const first = runLanes({ test: lane, 'test:consumers': good })
    t.same([first.code, first.lines.at(-1)], [1, sum], how)
    const last = runLanes({ test: good, 'test:consumers': lane })
    t.same([last.code, last.lines.at(-1)], [1, sum], how)
  }
})
