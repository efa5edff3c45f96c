// `npm run test:compat`: the own suites of @fastify/postgres and @fastify/mysql on our compat entries.
//
// COMPAT_POSTGRES, COMPAT_MYSQL   folders with a checkout of that plugin; at least one
//
// Copies a plugin's tests into a temporary folder whose index.js is ours, starts a throwaway server, and runs them with
// Node's runner. Tests that can't hold are listed below with the reason (and in docs/migration.md); any other failure
// fails the lane. The last line is the count, alone.
import { spawn } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import pg from 'pg'
import { root } from './find.mjs'
import { startMariadb, startPostgres } from './services.js'

const suites = {
  postgres: {
    folder: process.env.COMPAT_POSTGRES,
    /** Of files that test no face of the plugin. */
    without: ['add-handler.test.js'],
    exceptions: new Map([
      ['Initalization log tests', 'the warning has another text, and goes to the log of the app'],
      ['Should print warning when native module not installed', 'the same'],
      ['Should be able to use native module', 'native: ours is pg itself'],
      ['Should trigger a rollback when it is impossible to begin transaction', "a pool of one's own instead of pg.Pool"],
      ['Should trigger a rollback when it is impossible to commit transaction', 'the same'],
      ['Should throw an error when `name` is set as reserved keyword', 'another text'],
    ]),
  },
  mysql: {
    folder: process.env.COMPAT_MYSQL,
    without: [],
    exceptions: new Map(),
  },
}

const start = {
  async postgres () {
    const { url } = await startPostgres(t)
    const admin = new pg.Client({ connectionString: url })
    await admin.connect()
    await admin.query('CREATE TABLE users (id serial PRIMARY KEY, username varchar(50) NOT NULL)')
    await admin.end()
    return { env: { DATABASE_TEST_URL: url }, adapt: (text) => text }
  },
  async mysql () {
    const { host, port } = await startMariadb(t)
    // The suite has a server at its usual port, with a root who needs no password.
    const adapt = (text) => text.replaceAll('root@localhost/', `root@${host}:${port}/`)
      .replaceAll("host: 'localhost'", `host: '${host}', port: ${port}`)
    return { env: {}, adapt }
  },
}

const told = Object.entries(suites).filter(([, { folder }]) => folder !== undefined)
if (told.length === 0) throw new Error('COMPAT_POSTGRES or COMPAT_MYSQL: the folder of a checkout of the plugin')

const teardowns = []
const t = { teardown: (fn) => { teardowns.unshift(fn) } }
let passed = 0
let failed = 0
try {
  for (const [name, suite] of told) await runSuite(name, suite)
} finally {
  for (const fn of teardowns) await fn()
}
process.exitCode = failed === 0 ? 0 : 1
console.log(`${passed} passed, ${failed} failed`)

async function runSuite (name, { folder, without, exceptions }) {
  const scratch = mkdtempSync(join(tmpdir(), `fastify-pool-compat-${name}-`))
  t.teardown(() => rmSync(scratch, { recursive: true, force: true }))
  mkdirSync(join(scratch, 'test'))
  const entry = JSON.stringify(join(root, `dist/lib/compat/${name}.js`))
  writeFileSync(join(scratch, 'index.js'), `const ours = require(${entry})\nmodule.exports = Object.assign(ours.default, ours)\n`)
  symlinkSync(join(root, 'node_modules'), join(scratch, 'node_modules'))
  const server = await start[name]()
  for (const file of readdirSync(join(folder, 'test'))) {
    if (without.includes(file) || !/\.js$/.test(file)) continue
    cpSync(join(folder, 'test', file), join(scratch, 'test', file))
    const text = readFileSync(join(scratch, 'test', file), 'utf8')
    writeFileSync(join(scratch, 'test', file), server.adapt(text))
  }
  const files = readdirSync(join(scratch, 'test')).filter((file) => file.endsWith('.test.js'))
  const args = ['--test', '--test-reporter=tap', '--test-concurrency=1', '--test-timeout=30000', ...files.map((file) => join('test', file))]
  const child = spawn(process.execPath, args, {
    cwd: scratch, env: { ...process.env, NODE_OPTIONS: '', ...server.env }, stdio: ['ignore', 'pipe', 'inherit'],
  })
  const excused = new Set()
  /** How deep the failures are that no test around them has told of yet. */
  let within = 0
  for await (const line of createInterface({ input: child.stdout })) {
    const [, indent, not, title] = /^( *)(not )?ok \d+ - (.*?)(?: # .*)?$/.exec(line) ?? []
    if (title === undefined) continue
    const isAround = not !== undefined && within > indent.length
    within = not === undefined ? within : indent.length
    if (not === undefined) passed++
    else if (exceptions.has(title)) excused.add(title)
    else if (!isAround) {
      failed++
      console.log(`not ok - ${name}: ${title}`)
    }
  }
  for (const title of excused) console.log(`excused - ${name}: ${title} (${exceptions.get(title)})`)
}
