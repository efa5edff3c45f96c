// The test run: `node test/support/run.mjs [--engine | --quick | --full] [--busy] [file ...]`. With any of these but
// `--busy`: no bar for coverage.
//
// --engine  only the tests of pool, balance and fastify that need neither a server nor a build
// --quick   of those what is quick, and the tests of pages, types and workflows that need no server
// --full    only the tests that draw or load at random (or the files named), for as long as it takes to find what is
//           rare
// --busy    beside a loop on each core that takes all of its time
//
// Shows what failed or was skipped, what was measured, the coverage, the servers used and the ten slowest files. The
// last line is the count, alone: `N passed, N failed[, N skipped]`.
import { spawn } from 'node:child_process'
import { chmodSync, existsSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { Report } from 'c8'
import { parseArgs } from 'node:util'
import { stopLoops, takeAllCores } from './busy.mjs'
import { clearPostgres, root, runs } from './find.mjs'
import { engineTests, longTests, quickTests } from './lanes.mjs'

/** In percent, of lines and of branches, over all of index.ts and lib/. */
const bar = 95
const coverage = join(root, '.tap/coverage')

const { values: lane, positionals } = parseArgs({
  options: {
    engine: { type: 'boolean' },
    quick: { type: 'boolean' },
    full: { type: 'boolean' },
    busy: { type: 'boolean' },
  },
  allowPositionals: true
})
const part = positionals.length > 0
  ? positionals
  : [...lane.engine ? engineTests() : [], ...lane.quick ? quickTests() : [], ...lane.full ? longTests() : []]
const isWhole = part.length === 0
// Compiles; first of all loaders, see there.
const nodeOptions = `${process.env.NODE_OPTIONS ?? ''} --import=${new URL('typescript.mjs', import.meta.url)}`.trim()
const scratch = mkdtempSync(join(tmpdir(), 'fastify-pool-run-'))
// PostgreSQL refuses to run as root, and its files are in there.
chmodSync(scratch, 0o755)
const log = join(scratch, 'servers.jsonl')

try {
  if (lane.busy) takeAllCores()
  process.exitCode = await main()
} finally {
  stopLoops()
  for (const name of readdirSync(scratch)) clearPostgres(join(scratch, name, 'data'))
  // A server that was killed with its test may just be writing.
  rmSync(scratch, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 })
}

async function main () {
  rmSync(coverage, { recursive: true, force: true })
  const { code, counts, times, problems } = await runTap()
  if (counts.pass + counts.fail === 0) problems.push('no test ran')
  // Whatever tap fails for is a failure, even where it names none: a file that could not be started, say.
  if (code !== 0 && counts.fail === 0) counts.fail = 1
  if (isWhole) problems.push(...await checkCoverage())
  problems.push(...tellServers())
  tellSlowest(times)
  for (const problem of problems) console.log(`FAILED: ${problem}`)
  const { pass, fail, skipped } = counts
  console.log(`${pass} passed, ${fail} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`)
  return fail > 0 || problems.length > 0 ? 1 : 0
}

/** Runs tap and shows one line for each file, and from inside a file what failed or was skipped. */
async function runTap () {
  const require = createRequire(import.meta.url)
  const tap = join(dirname(require.resolve('tap/package.json')), 'dist/esm/run.mjs')
  const args =
    ['--reporter=tap', '--allow-empty-coverage', '--allow-incomplete-coverage', '--coverage-report=none', ...part]
  if (!isWhole) args.unshift('--disable-coverage')
  const child = spawn(process.execPath, [tap, ...args], {
    cwd: root,
    // Servers that a killed test leaves have their files in there.
    env: {
      ...process.env,
      POOL_TEST_RUN_LOG: log,
      TMPDIR: scratch,
      NODE_OPTIONS: nodeOptions,
      ...lane.full &&
      { POOL_TEST_FULL: '1' }
    },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const passOn = (signal) => child.kill(signal)
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, passOn)
  const ended = new Promise((resolve) => child.once('close', (code, signal) => resolve(signal === null ? code : 1)))

  const counts = { total: 0, pass: 0, fail: 0, skipped: 0 }
  const problems = []
  /** In ms, of each file. */
  const times = new Map()
  let inside = []
  let inDetails = false
  for await (const line of createInterface({ input: child.stdout })) {
    const total = /^# \{ total: (\d+)(.*) \}/.exec(line)
    if (total !== null) {
      const count = (name) => Number(new RegExp(`\\b${name}: (\\d+)`).exec(total[2])?.[1] ?? 0)
      Object.assign(counts,
        { total: Number(total[1]), pass: count('pass'), fail: count('fail'), skipped: count('skip') + count('todo') })
    } else if (/^(not )?ok \d/.test(line)) {
      const failed = line.startsWith('not')
      console.log(line)
      const [, file, ms] = /- (\S+)(?: # time=([\d.]+)ms)?/.exec(line) ?? []
      if (ms !== undefined) times.set(file, Number(ms))
      // tap takes a file without tests for a skip: it is a mistake.
      if (line.endsWith('# SKIP no tests found')) problems.push(`no test in ${file}`)
      // A skip is told even where all is well, or nobody would know what was not tested.
      // And so is what was measured, where that is what a test is for.
      for (const one of inside) {
        if (/# (SKIP|TODO|measured:)/i.test(one) ||
        (failed && !/^ *(ok \d|1\.\.\d|# |$)/.test(one))) console.log(one)
      }
      inside = []
    } else if (/^ {2}(---|\.\.\.)$/.test(line)) {
      // How the process of a file ended: most of it (our own command line) tells nothing.
      inDetails = line.endsWith('---')
    } else if (inDetails) {
      if (/^ {2}(exitCode|signal|expired|failure|timeout|error|reason|message):/.test(line)) console.log(line)
    } else if (/^ {4}/.test(line)) {
      inside.push(line)
    } else if (!/^(TAP version|\d+\.\.\d+|# (Subtest|time|No coverage|ERROR: incomplete)|\s*$)/.test(line)) {
      console.log(line)
    }
  }
  for (const line of inside) console.log(line) // Of a file whose end was never heard of.
  const code = await ended
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.off(signal, passOn)
  return { code, counts, times, problems }
}

function tellSlowest (times) {
  const slowest = [...times].sort(([, one], [, other]) => other - one).slice(0, 10)
  console.log(`slowest: ${slowest.map(([file, ms]) => `${file.replace(/^test\/|\.test\.ts$/g, '')} ${(ms / 1000).toFixed(1)} s`).join(', ')}`)
}

/** @returns what is too low */
async function checkCoverage () {
  if (!existsSync(coverage)) return ['no coverage was measured']
  const reportsDirectory = join(scratch, 'report')
  await new Report({
    tempDirectory: coverage,
    reportsDirectory,
    reporter: ['text', 'json-summary'],
    reporterOptions: { text: { maxCols: 150 } },
    src: [root],
    include: ['index.ts', 'lib/**/*.ts'],
    exclude: [],
    // What no test loads counts as 0 %.
    all: true,
    skipFull: true,
    excludeNodeModules: true,
  }).run()
  const { total } = JSON.parse(readFileSync(join(reportsDirectory, 'coverage-summary.json'), 'utf8'))
  console.log(`coverage: ${total.lines.pct} % of lines, ${total.branches.pct} % of branches`)
  return ['lines', 'branches'].filter((what) => !(total[what].pct >= bar))
    .map((what) => `coverage of ${what} is ${total[what].pct} %: at least ${bar} % is asked for`)
}

/** Prints which servers the tests used, and how often. @returns those that are left */
function tellServers () {
  if (!existsSync(log)) return []
  const started = readFileSync(log, 'utf8').trim().split('\n').map((line) => JSON.parse(line))
  const times = new Map()
  for (const { kind, version, how } of started) {
    const name = [kind, version, how && `(${how})`].filter(Boolean).join(' ')
    times.set(name, (times.get(name) ?? 0) + 1)
  }
  console.log(`servers: ${[...times].map(([name, count]) => `${name} x${count}`).join(', ')}`)
  return started.filter(({ pid }) => pid !== undefined && runs(pid))
    .map(({ kind, pid }) => `${kind}, process ${pid}, was left running`)
}
