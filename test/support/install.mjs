// `npm run pretest`: finds the servers of the tests or brings them. Does nothing, in a few milliseconds, when all are there.
//
// POOL_TEST_REDIS_URL, POOL_TEST_MONGO_URL   use that server instead
// POOL_TEST_NO_INSTALL                       install and build nothing
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { ferretdbBuild, findFerretdb, findMongod, findRedis, which } from './find.mjs'

const { env } = process
const mayInstall = !env.POOL_TEST_NO_INSTALL

function run (file, args, options = {}) {
  try {
    execFileSync(file, args, { stdio: ['ignore', 'pipe', 'pipe'], encoding: 'utf8', maxBuffer: 1e8, ...options })
  } catch (error) {
    throw new Error(`${basename(file)} ${args.join(' ')} failed:\n${error.stderr ?? error.message}`)
  }
}

const seconds = (since) => `${((performance.now() - since) / 1000).toFixed(1)} s`

/** Two test runs at once must not both install: whoever makes the directory first does, the others wait and then find everything. */
async function locked (fn) {
  const lock = join(tmpdir(), 'fastify-pool-install.lock')
  const owner = join(lock, 'pid')
  for (;;) {
    try {
      mkdirSync(lock)
      break
    } catch (error) {
      if (error.code !== 'EEXIST') throw error
    }
    if (abandoned(lock, owner)) rmSync(lock, { recursive: true, force: true })
    else await pause(100)
  }
  try {
    writeFileSync(owner, String(process.pid))
    return await fn()
  } finally {
    rmSync(lock, { recursive: true, force: true })
  }
}

function abandoned (lock, owner) {
  try {
    // Its owner writes its id just after it made the directory.
    if (!existsSync(owner)) return Date.now() - statSync(lock).mtimeMs > 5000
    process.kill(Number(readFileSync(owner, 'utf8')), 0)
    return false
  } catch (error) {
    // ENOENT: given back just now, the next try gets it.
    return error.code === 'ESRCH'
  }
}

function installRedis () {
  const remedy = 'Install it (Debian: apt-get install redis-server, macOS: brew install redis) or name a server in POOL_TEST_REDIS_URL.'
  const byApt = existsSync('/etc/debian_version') && which('apt-get') !== undefined && process.getuid?.() === 0
  if (!mayInstall || !byApt) throw new Error(`The tests need redis-server, which is not on PATH. ${remedy}`)
  const since = performance.now()
  const options = { env: { ...env, DEBIAN_FRONTEND: 'noninteractive' } }
  const wait = ['-o', 'DPkg::Lock::Timeout=120']
  run('apt-get', ['update', '-qq', ...wait], options)
  run('apt-get', ['install', '-y', '-qq', '--no-install-recommends', ...wait, 'redis-server'], options)
  const found = findRedis()
  if (found === undefined) throw new Error(`apt-get installed redis-server, but it can't be found. ${remedy}`)
  return `installed Redis ${found.version} (apt, ${seconds(since)})`
}

function buildFerretdb (go) {
  const since = performance.now()
  const { module, folder, file, version } = ferretdbBuild()
  console.log(`pretest: building FerretDB ${version}, once (1 to 2 minutes) ...`)
  mkdirSync(folder, { recursive: true })
  const unfinished = `${file}.${process.pid}`
  try {
    run(go, ['build', '-trimpath', '-buildvcs=false', '-tags', 'ferretdb_no_postgresql', '-o', unfinished, '.'],
      { cwd: module, env: { ...env, CGO_ENABLED: '0', GOFLAGS: '' } })
    renameSync(unfinished, file)
  } catch (error) {
    rmSync(unfinished, { force: true })
    throw new Error(`FerretDB, the tests' MongoDB, can't be built. Put mongod on PATH, name a server in POOL_TEST_MONGO_URL, or set POOL_TEST_NO_INSTALL.\n${error.message}`)
  }
  for (const name of readdirSync(folder)) if (name !== basename(file)) rmSync(join(folder, name), { force: true })
  return `built FerretDB ${version} (Go, ${seconds(since)})`
}

const told = ({ kind, version, how }) => `${kind} ${version} (${how})`

/** What there is, or undefined. */
function redis () {
  if (env.POOL_TEST_REDIS_URL) return 'Redis (POOL_TEST_REDIS_URL)'
  const found = findRedis()
  return found && told(found)
}

function mongo () {
  if (env.POOL_TEST_MONGO_URL) return 'MongoDB (POOL_TEST_MONGO_URL)'
  const found = findMongod() ?? findFerretdb()
  return found && told(found)
}

function bringMongo () {
  const go = which('go')
  if (go !== undefined && mayInstall) return buildFerretdb(go)
  if (env.CI) throw new Error('The tests need mongod, Go (to build FerretDB), or POOL_TEST_MONGO_URL. In CI a missing server is a failure.')
  return 'no MongoDB: neither mongod, nor Go to build FerretDB with; those tests are skipped'
}

async function main () {
  let line = [redis(), mongo()]
  if (line.includes(undefined)) line = await locked(() => [redis() ?? installRedis(), mongo() ?? bringMongo()])
  console.log(`pretest: ${line.join(', ')}`)
}

main().catch((error) => {
  console.error(`pretest: ${error.message}`)
  process.exitCode = 1
})
