import { PoolError } from '../../engine/errors.js'
import { badDriver, facesOf, requirePackage } from '../shared/driver.js'
import type { DriverName } from './dialect.js'
import type { SqliteDatabase, SqliteDriver } from './handle.js'
import type { SqliteOptions } from './options.js'

/** In order of preference. libsql installs in seconds, without a compiler; node:sqlite needs no install. */
const drivers = ['better-sqlite3', 'libsql', 'node:sqlite'] as const

export function driverOf (driver: SqliteOptions['driver']): SqliteDriver<unknown> {
  if (drivers.includes(driver as DriverName)) return load(driver as DriverName)
  if (driver !== undefined) {
    const found = classIn(driver)
    if (found !== undefined) return found
    throw badDriver(driver,
      "'better-sqlite3', 'libsql' or 'node:sqlite', or the class or the module of one of them")
  }
  const causes: unknown[] = []
  for (const name of drivers) {
    try {
      return load(name)
    } catch (error) {
      causes.push(error)
    }
  }
  const message = "backend 'sqlite' needs the package better-sqlite3 or libsql, or Node 22.16: npm install libsql"
  throw new PoolError('FST_POOL_MISSING_DRIVER', message, { cause: new AggregateError(causes) })
}

function load (name: DriverName): SqliteDriver<unknown> {
  if (name === 'node:sqlite') return builtIn()
  const found = classIn(requirePackage(name, { backend: 'sqlite' }))
  if (found !== undefined) return found
  throw new PoolError('FST_POOL_MISSING_DRIVER',
    `backend 'sqlite' needs ${name}: what is installed under that name is something else`)
}

/** The class that was given, or the one that a module exports: node:sqlite as `DatabaseSync`. */
function classIn (driver: unknown): SqliteDriver<unknown> | undefined {
  const candidates: unknown[] = facesOf(driver).flatMap((face) => [face, face.DatabaseSync])
  return candidates.find(isDriver) as SqliteDriver<unknown> | undefined
}

function isDriver (candidate: unknown): boolean {
  const { prototype } = (candidate ?? {}) as { prototype?: Partial<SqliteDatabase> }
  const { prepare, exec } = prototype ?? {}
  return typeof prepare === 'function' && typeof exec === 'function'
}

/** @throws `FST_POOL_MISSING_DRIVER` where this Node has none, or one that does not tell of its transactions */
function builtIn (): SqliteDriver<unknown> {
  interface Module { readonly DatabaseSync: SqliteDriver<unknown> }
  const module = process.getBuiltinModule('node:sqlite' as 'node:fs') as unknown as Module | undefined
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
  if (module !== undefined && (major > 22 || (major === 22 && minor >= 16))) return module.DatabaseSync
  throw new PoolError('FST_POOL_MISSING_DRIVER',
    `driver 'node:sqlite' needs Node 22.16 or later, and this is ${process.version}`)
}
