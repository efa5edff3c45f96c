// `npm run pretest`: finds the servers of the tests or brings them. Does nothing, in 0.1 s, when all are there.
//
// POOL_TEST_REDIS_URL, POOL_TEST_POSTGRES_URL, POOL_TEST_MARIADB_URL, POOL_TEST_MONGO_URL   use that server instead
// POOL_TEST_BETTER_SQLITE3 the folder to require better-sqlite3 from
// POOL_TEST_NODE24 the binary of a Node that has node:sqlite
// POOL_TEST_NO_INSTALL                                                                      install and build nothing
import { execFile } from 'node:child_process'
import {
  copyFileSync, cpSync, existsSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync, statSync, writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { promisify } from 'node:util'
import {
  betterSqliteBuild, ferretdbBuild, findBetterSqlite, findFerretdb, findMariadb, findMongod, findNode24, findPgbouncer,
  findPostgres, findRedis, hasNodeSqlite, node24Build, which,
} from './find.mjs'

const { env } = process
const mayInstall = !env.POOL_TEST_NO_INSTALL

async function run (file, args, options = {}) {
  try {
    await promisify(execFile)(file, args, { maxBuffer: 1e8, ...options })
  } catch (error) {
    throw new Error(`${basename(file)} ${args.join(' ')} failed:\n${error.stderr || error.message}`)
  }
}

const told = ({ kind, version, how }) => `${kind} ${version} (${how})`

const seconds = (since) => `${((performance.now() - since) / 1000).toFixed(1)} s`

/**
 * Two test runs at once must not both install: whoever makes the directory first does, the others wait and then find
 * everything.
 */
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

/** Of these the machine's packages are taken: the ones of Debian and Ubuntu can be installed here. */
const servers = [
  { name: 'Redis', find: findRedis, url: 'POOL_TEST_REDIS_URL', packages: ['redis-server'], brew: 'redis' },
  {
    name: 'PostgreSQL', find: findPostgres, url: 'POOL_TEST_POSTGRES_URL', packages: ['postgresql'], brew: 'postgresql',
  },
  {
    name: 'MariaDB',
    find: findMariadb,
    url: 'POOL_TEST_MARIADB_URL',
    packages: ['mariadb-server-core',
      'mariadb-client-core'],
    brew: 'mariadb'
  },
  // Its tests are skipped where there is none, but not in CI.
  { name: 'PgBouncer', find: findPgbouncer, packages: ['pgbouncer'], brew: 'pgbouncer', optional: !env.CI },
]

/** What there is, or undefined. */
function serverOf ({ name, find, url }) {
  if (url !== undefined && env[url]) return `${name} (${url})`
  const found = find()
  return found && told(found)
}

const remedy = ({ name, packages, url, brew }) =>
  `The tests need ${name}. Install it (Debian: apt-get install ${packages.join(' ')}; macOS: brew install ${brew})${url === undefined ? '' : ` or name a server in ${url}`}.`

/** @returns a line for each of `missing` */
async function installServers (missing) {
  const byApt = existsSync('/etc/debian_version') && which('apt-get') !== undefined && process.getuid?.() === 0
  if (!mayInstall || !byApt) {
    const needed = missing.filter(({ optional }) => !optional)
    if (needed.length > 0) throw new Error(needed.map(remedy).join('\n'))
    return missing.map(({ name }) => `no ${name}: those tests are skipped`)
  }
  const since = performance.now()
  const packages = missing.flatMap((server) => server.packages)
  if (packages.includes('postgresql')) noMainCluster()
  // The last one keeps the file of noMainCluster.
  const options = { env: { ...env, DEBIAN_FRONTEND: 'noninteractive', UCF_FORCE_CONFFOLD: '1' } }
  const wait = ['-o', 'DPkg::Lock::Timeout=120']
  try {
    await run('apt-get', ['update', '-qq', ...wait], options)
    await run('apt-get', ['install', '-y', '-qq', '--no-install-recommends', ...wait, ...packages], options)
  } catch (error) {
    throw new Error(`${missing.map(remedy).join('\n')}\n${error.message}`)
  }
  const took = seconds(since)
  return missing.map((server) => {
    const found = server.find()
    if (found === undefined) throw new Error(`apt-get installed ${server.packages.join(' ')}, but ${server.name} can't be found. ${remedy(server)}`)
    return `installed ${told(found)} (in ${took})`
  })
}

/** Else the package makes a database in /var/lib, and may start a server on the standard port. */
function noMainCluster () {
  const file = '/etc/postgresql-common/createcluster.conf'
  if (existsSync(file)) return
  mkdirSync(dirname(file), { recursive: true })
  writeFileSync(file, 'create_main_cluster = false\n')
}

async function buildFerretdb (go) {
  const since = performance.now()
  const { module, folder, file, version } = ferretdbBuild()
  console.log(`pretest: building FerretDB ${version}, once (1 to 2 minutes) ...`)
  mkdirSync(folder, { recursive: true })
  const unfinished = `${file}.${process.pid}`
  try {
    await run(go, ['build', '-trimpath', '-buildvcs=false', '-tags', 'ferretdb_no_postgresql', '-o', unfinished, '.'],
      { cwd: module, env: { ...env, CGO_ENABLED: '0', GOFLAGS: '' } })
    renameSync(unfinished, file)
  } catch (error) {
    rmSync(unfinished, { force: true })
    throw new Error(`FerretDB, the tests' MongoDB, can't be built. Put mongod on PATH, name a server in POOL_TEST_MONGO_URL, or set POOL_TEST_NO_INSTALL.\n${error.message}`)
  }
  for (const name of readdirSync(folder)) if (name !== basename(file)) rmSync(join(folder, name), { force: true })
  return `built FerretDB ${version} (Go, ${seconds(since)})`
}

/** What there is, or undefined. */
function mongo () {
  if (env.POOL_TEST_MONGO_URL) return 'MongoDB (POOL_TEST_MONGO_URL)'
  const found = findMongod() ?? findFerretdb()
  return found && told(found)
}

async function bringMongo () {
  const go = which('go')
  if (go !== undefined && mayInstall) return await buildFerretdb(go)
  if (env.CI) throw new Error('The tests need mongod, Go (to build FerretDB), or POOL_TEST_MONGO_URL. In CI a missing server is a failure.')
  return 'no MongoDB: neither mongod, nor Go to build FerretDB with; those tests are skipped'
}

/** What there is, or undefined. */
function betterSqlite () {
  if (env.POOL_TEST_BETTER_SQLITE3) return 'better-sqlite3 (POOL_TEST_BETTER_SQLITE3)'
  return findBetterSqlite() && `better-sqlite3 ${betterSqliteBuild().version}`
}

/** Where it can't be built, that is kept in a file beside it: only CI tries again each time. */
async function bringBetterSqlite () {
  const since = performance.now()
  const { module, folder, version } = betterSqliteBuild()
  const failed = `${folder}.failed`
  const skipped =
    `no better-sqlite3: it could not be built (${failed} says why; remove it to try again); those tests are skipped`
  const npm = which('npm')
  if (!mayInstall || npm === undefined) {
    if (env.CI) throw new Error('The tests need better-sqlite3, which npm compiles, or POOL_TEST_BETTER_SQLITE3. In CI it must be there.')
    return 'no better-sqlite3: no npm to build it with, or POOL_TEST_NO_INSTALL; those tests are skipped'
  }
  if (!env.CI && existsSync(failed)) return skipped
  console.log(`pretest: building better-sqlite3 ${version}, once (1 to 2 minutes) ...`)
  const unfinished = `${folder}.${process.pid}`
  mkdirSync(unfinished, { recursive: true })
  try {
    for (const name of ['package.json', 'package-lock.json']) cpSync(join(module, name), join(unfinished, name))
    await run(npm, ['ci', '--no-audit', '--no-fund', '--foreground-scripts'], { cwd: unfinished })
    // npm may have been told to run no scripts.
    await run(process.execPath, ['-e', "new (require('better-sqlite3'))(':memory:').prepare('SELECT 1').get()"],
      { cwd: unfinished })
    renameSync(unfinished, folder)
    rmSync(failed, { force: true })
  } catch (error) {
    rmSync(unfinished, { recursive: true, force: true })
    if (env.CI) throw new Error(`better-sqlite3 can't be built: it needs Python 3, make and a C++ compiler. Or name the folder of one in POOL_TEST_BETTER_SQLITE3.\n${error.message}`)
    writeFileSync(failed, error.message)
    return skipped
  }
  return `built better-sqlite3 ${version} (${seconds(since)})`
}

/** What there is, or undefined. Nothing is needed where this Node has node:sqlite. */
function node24 () {
  if (hasNodeSqlite) return `node:sqlite of ${process.version}`
  return findNode24() && 'a Node with node:sqlite'
}

/** What its lock says, and nothing else. */
async function bringNode24 () {
  const since = performance.now()
  const { module, folder } = node24Build()
  const npm = which('npm')
  if (!mayInstall || npm === undefined) {
    if (env.CI) throw new Error('The tests need a Node with node:sqlite (22.16 or later), which npm brings, or POOL_TEST_NODE24. In CI it must be there.')
    return 'no Node with node:sqlite: no npm to bring it, or POOL_TEST_NO_INSTALL; those tests are skipped'
  }
  const unfinished = `${folder}.${process.pid}`
  mkdirSync(unfinished, { recursive: true })
  try {
    for (const name of ['package.json', 'package-lock.json']) copyFileSync(join(module, name), join(unfinished, name))
    await run(npm, ['ci', '--no-audit', '--no-fund', '--ignore-scripts'], { cwd: unfinished })
    renameSync(unfinished, folder)
  } catch (error) {
    rmSync(unfinished, { recursive: true, force: true })
    throw new Error(`A Node with node:sqlite can't be brought: name the binary of one in POOL_TEST_NODE24, or set POOL_TEST_NO_INSTALL.\n${error.message}`)
  }
  return `brought ${node24() ?? 'no Node with node:sqlite: there is none for this machine; those tests are skipped'} (${seconds(since)})`
}

async function main () {
  let line = [...servers.map(serverOf), mongo(), betterSqlite(), node24()]
  if (line.includes(undefined)) line = await locked(bring)
  console.log(`pretest: ${line.join(', ')}`)
}

/** All that is missing, side by side. */
async function bring () {
  const missing = servers.filter((server) => serverOf(server) === undefined)
  const there = servers.map(serverOf).filter((text) => text !== undefined)
  const jobs =
    [missing.length > 0 ? installServers(missing) : [], mongo() ?? bringMongo(), betterSqlite() ?? bringBetterSqlite(),
      node24() ?? bringNode24()]
  // None is left running when another one fails.
  const ended = await Promise.allSettled(jobs)
  const failures = ended.filter(({ status }) => status === 'rejected')
  if (failures.length > 0) throw new Error(failures.map(({ reason }) => reason.message).join('\n'))
  return [...there, ...ended.flatMap(({ value }) => value)]
}

main().catch((error) => {
  console.error(`pretest: ${error.message}`)
  process.exitCode = 1
})
