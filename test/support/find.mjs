// Where the servers of the tests are found. Shared by install.mjs, which runs before there is any build, and services.ts.
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { accessSync, constants, existsSync, readFileSync } from 'node:fs'
import { delimiter, join } from 'node:path'
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
  const folders = [...(process.env.PATH ?? '').split(delimiter), '/usr/local/sbin', '/usr/sbin', '/usr/local/go/bin', '/opt/homebrew/bin']
  return folders.filter((folder) => folder !== '').map((folder) => join(folder, name)).find(isExecutable)
}

function version (file, pattern) {
  return pattern.exec(execFileSync(file, ['--version'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }))?.[1] ?? '?'
}

/** @returns {import('./find.mjs').Found | undefined} */
export function findRedis () {
  const file = which('redis-server')
  if (file === undefined) return undefined
  const how = file === '/usr/bin/redis-server' && existsSync('/var/lib/dpkg/info/redis-server.list') ? 'apt' : 'PATH'
  return { kind: 'Redis', file, how, version: version(file, /v=([\d.]+)/) }
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

/** What a build of FerretDB would be. Its name has the hash of its sources, so that another source is another binary. */
export function ferretdbBuild () {
  const hash = createHash('sha256')
  for (const name of ['main.go', 'go.mod', 'go.sum']) hash.update(readFileSync(join(module, name)))
  const folder = join(root, '.cache/ferretdb')
  const version = /FerretDB\/FerretDB v([\d.]+)/.exec(readFileSync(join(module, 'go.mod'), 'utf8'))?.[1] ?? '?'
  return { module, folder, file: join(folder, `ferretdb-${hash.digest('hex').slice(0, 12)}`), version }
}
