import { resolve } from 'node:path'
import { badOption } from '../../engine/errors.js'
import { join, type Options } from '../../pool/schema.js'
import type { Address } from '../../../types/options.js'
import type { DriverName } from './dialect.js'
import type { SqliteDriver } from './handle.js'

export interface SqliteOptions {
  /**
   * A path ('app.db', './data/app.db', 'file:app.db'), whose directory exists, or ':memory:'. No function: a file does
   * not change its address.
   */
  url?: Address['url']
  /**
   * Options of the driver's class, passed on as they are. `timeout` (SQLite's busy timeout, in ms) is 0 unless given
   * here: with it SQLite waits by blocking the event loop, and the pool does not look for the lock before a loan. No
   * function.
   */
  connection?: Address['connection']
  /**
   * 'session' (default): nothing is left for the next borrower. 'transaction': only a transaction is rolled back, and
   * iterators are ended.
   */
  reset?: 'session' | 'transaction' | 'none'
  /**
   * The name of the driver, its class, or its module. Default: better-sqlite3, else libsql, else Node's own (22.16 or
   * later).
   */
  driver?: DriverName | SqliteDriver<unknown> | object
  /** The name of the pool, for messages. */
  name?: string
}

/** The path in a url. The drivers read URLs differently, so they get the path alone. */
export function pathOf (url: unknown): string {
  const expected = "a path, 'file:' and a path, or ':memory:'"
  if (typeof url !== 'string' || url === '') throw badOption('url', url, expected)
  let path = url
  if (/^file:/i.test(url)) {
    const rest = url.slice('file:'.length).replace(/^\/\/(?:localhost)?(?=\/)/i, '')
    if (rest === '' || /[?#]/.test(rest) || rest.startsWith('//')) {
      throw badOption('url', url, `${expected}; without host or query`)
    }
    try {
      path = decodeURIComponent(rest)
    } catch {
      throw badOption('url', url, `${expected}; percent-encoded`)
    }
  } else if (/^[a-z][a-z0-9+.-]+:/i.test(url)) {
    throw badOption('url', url, expected)
  }
  // Absolute from now on: the working directory may change.
  return path === ':memory:' ? path : resolve(path)
}

/** Whether a url of SQLite is a database in the memory of its connection, which ends with it. */
export function isMemoryUrl (url: unknown): boolean {
  return typeof url === 'string' && /^(:memory:$|file::memory:|file:[^?]*\?(.*&)?mode=memory(&|$))/.test(url)
}

/**
 * Refuses what a file, or a database in memory, can't have, and sets the defaults that differ from other backends'.
 *
 * @throws `FST_POOL_BAD_OPTIONS`
 */
export function adaptToSqlite (result: Record<string, unknown>, given: Options, path: string): void {
  for (const key of ['host', 'port']) {
    if (given[key] !== undefined) throw badOption(join(path, key), given[key], 'none, since sqlite is a file (url)')
  }
  for (const key of ['url', 'connection']) {
    if (typeof given[key] !== 'function') continue
    throw badOption(join(path, key), given[key], 'none, since a file does not change its address')
  }
  if (!isMemoryUrl(given.url)) return
  if (given.max === undefined) result.max = 1
  else if (given.max !== 1) {
    throw badOption(join(path, 'max'), given.max, '1, since a database in memory is its connection')
  }
  for (const key of ['idleTimeout', 'maxLifetime', 'maxUses']) {
    if (given[key] !== undefined && given[key] !== 0) {
      throw badOption(join(path, key), given[key],
        '0, since a database in memory ends with its connection, and the next one would be empty')
    }
    result[key] = 0
  }
}
