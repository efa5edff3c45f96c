// What install.mjs and run.mjs, which run before there is any build, share with services.ts: where the servers of the
// tests are found, and what becomes of them.
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { accessSync, constants, existsSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { delimiter, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('../..', import.meta.url))
const module = join(root, 'test/support/ferretdb')

function isExecutable (file) {
  try {
    accessSync(file, constants.X_OK)
    return true
  } catch {
    return false // Not there, or not ours to run: the next place may have it.
  }
}

/** The first `name` on PATH, or in the folders that an ordinary user's PATH may lack. */
export function which (name) {
  const folders =
    [...(process.env.PATH ?? '').split(delimiter), '/usr/local/sbin', '/usr/sbin', '/usr/local/go/bin',
      '/opt/homebrew/bin']
  return folders.filter((folder) => folder !== '').map((folder) => join(folder, name)).find(isExecutable)
}

/** False for one that is dead but not yet waited for by its parent. */
export function runs (pid) {
  try {
    process.kill(pid, 0)
    return process.platform !== 'linux' || !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
  } catch {
    return false // ESRCH or ENOENT: gone.
  }
}

/**
 * Removes what a killed PostgreSQL with that data folder left outside of it, or what would keep it from starting again.
 */
export function clearPostgres (dir) {
  const file = join(dir, 'postmaster.pid')
  if (!existsSync(file)) return
  // "key id" of the bit of System V shared memory that says that the folder is in use: of those there are but 4096 in a
  // machine.
  const id = /^\s*\d+\s+(\d+)\s*$/.exec(readFileSync(file, 'utf8').split('\n')[6] ?? '')?.[1]
  const ipcrm = which('ipcrm')
  if (id !== undefined && ipcrm !== undefined) execFileSync(ipcrm, ['-m', id])
  // The next start would refuse where another process has got that pid meanwhile.
  rmSync(file)
}

const versions = new Map()

function version (file, pattern) {
  if (!versions.has(file)) {
    versions.set(file, pattern.exec(execFileSync(file, ['--version'], {
      encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'],
    }))?.[1] ?? '?')
  }
  return versions.get(file)
}

/** @returns {import('./find.mjs').Found | undefined} */
export function findRedis () {
  const file = which('redis-server')
  if (file === undefined) return undefined
  return {
    kind: 'Redis',
    file,
    how: byDpkg(file, '/usr/bin/redis-server', 'redis-server'),
    version: version(file,
      /v=([\d.]+)/)
  }
}

/** @returns {import('./find.mjs').Found | undefined} */
export function findPostgres () {
  const debian = '/usr/lib/postgresql'
  const majors = existsSync(debian) ? readdirSync(debian).sort((a, b) => Number(b) - Number(a)) : []
  const installed = majors.map((major) => join(debian, major, 'bin/postgres')).find(hasInitdb)
  const file = installed ?? [which('postgres')].find(hasInitdb)
  return file && {
    kind: 'PostgreSQL', file, how: file === installed ? 'apt' : 'PATH', version: version(file, /([\d.]+)/),
  }
}

/** @returns {import('./find.mjs').Found | undefined} */
export function findPgbouncer () {
  const file = which('pgbouncer')
  if (file === undefined) return undefined
  return {
    kind: 'PgBouncer',
    file,
    how: byDpkg(file, '/usr/sbin/pgbouncer', 'pgbouncer'),
    version: version(file,
      /PgBouncer ([\d.]+)/)
  }
}

function byDpkg (file, usual, packageName) {
  return file === usual && existsSync(`/var/lib/dpkg/info/${packageName}.list`) ? 'apt' : 'PATH'
}

/** A client's package leaves a folder without a server. */
function hasInitdb (file) {
  return file !== undefined && isExecutable(file) && isExecutable(join(dirname(file), 'initdb'))
}

/** @returns {import('./find.mjs').Found | undefined} */
export function findMariadb () {
  const file = which('mariadbd')
  // The last two make its first data; they are in other packages than the server, and the last one in that of the
  // client.
  if (file === undefined || which('mariadb-install-db') === undefined ||
    which('my_print_defaults') === undefined) return undefined
  return {
    kind: 'MariaDB',
    file,
    how: byDpkg(file, '/usr/sbin/mariadbd', 'mariadb-server-core'),
    version: version(file,
      /([\d.]+)-MariaDB/)
  }
}

/** @returns {import('./find.mjs').Found | undefined} */
export function findMongod () {
  const named = process.env.MONGOMS_SYSTEM_BINARY
  const file = named || which('mongod')
  if (file === undefined) return undefined
  return { kind: 'MongoDB', file, how: named ? 'MONGOMS_SYSTEM_BINARY' : 'PATH', version: version(file, /v([\d.]+)/) }
}

/** @returns {import('./find.mjs').Found | undefined} */
export function findFerretdb () {
  const { file, version } = ferretdbBuild()
  return isExecutable(file) ? { kind: 'FerretDB', file, how: 'Go', version } : undefined
}

/**
 * What a build of FerretDB would be. Its name has the hash of its sources, so that another source is another binary.
 */
export function ferretdbBuild () {
  const hash = createHash('sha256')
  for (const name of ['main.go', 'go.mod', 'go.sum']) hash.update(readFileSync(join(module, name)))
  const folder = join(root, '.cache/ferretdb')
  const version = /FerretDB\/FerretDB v([\d.]+)/.exec(readFileSync(join(module, 'go.mod'), 'utf8'))?.[1] ?? '?'
  return { module, folder, file: join(folder, `ferretdb-${hash.digest('hex').slice(0, 12)}`), version }
}

/**
 * The folder to require better-sqlite3 from, or undefined. It has to be compiled, and its newest versions need a newer
 * Node than ours, so it is no dependency.
 */
export function findBetterSqlite () {
  const named = process.env.POOL_TEST_BETTER_SQLITE3
  if (named) return named
  const { folder } = betterSqliteBuild()
  return existsSync(folder) ? folder : undefined
}

/**
 * What a build of better-sqlite3 would be: of what its lock says, for this Node's ABI. The folder is there only when it
 * is complete.
 */
export function betterSqliteBuild () {
  const module = join(root, 'test/support/better-sqlite3')
  const lock = readFileSync(join(module, 'package-lock.json'), 'utf8')
  const { version } = JSON.parse(lock).packages['node_modules/better-sqlite3']
  const hash = createHash('sha256').update(lock).digest('hex').slice(0, 12)
  return {
    module,
    version,
    folder: join(root, '.cache/better-sqlite3',
    `${version}-${hash}-${process.platform}-${process.arch}-${process.versions.modules}`)
  }
}

/** The binary of a Node that has node:sqlite, where this one has not; undefined where there is none. */
export function findNode24 () {
  const named = process.env.POOL_TEST_NODE24
  if (named) return named
  const { folder } = node24Build()
  return existsSync(folder)
    ? readdirSync(join(folder, 'node_modules')).map((name) => join(folder, 'node_modules', name, 'bin/node'))
      .find(isExecutable)
    : undefined
}

/**
 * What an install of it would be. Its name has the hash of its lock, so that another lock is another install. The
 * folder is there only when it is complete.
 */
export function node24Build () {
  const module = join(root, 'test/support/node24')
  const hash = createHash('sha256').update(readFileSync(join(module, 'package-lock.json'))).digest('hex').slice(0, 12)
  return { module, folder: join(root, '.cache/node24', `${process.platform}-${process.arch}-${hash}`) }
}

/** Whether node:sqlite is there, and tells of its transactions. */
export const hasNodeSqlite = (() => {
  const [major, minor] = process.versions.node.split('.').map(Number)
  return major > 22 || (major === 22 && minor >= 16)
})()
