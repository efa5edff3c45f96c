import { resolve } from 'node:path'
import { badOption } from '../../pool/errors.js'
import type { DriverName } from './dialect.js'
import type { Address } from '../../pool/options.js'
import type { SqliteDriver } from './handle.js'

export interface SqliteOptions {
  /** A path ('app.db', './data/app.db', 'file:app.db'), whose directory exists, or ':memory:'. No function: a file does not change its address. */
  url?: Address['url']
  /**
   * Options of the driver's class, untouched. `timeout` (SQLite's busy timeout, in ms) is 0 unless it is here: SQLite waits by blocking the event loop, and
   * where it is more than 0 the pool does not look for the lock before a loan. No function.
   */
  connection?: Address['connection']
  /** 'session' (default): nothing is left for the next borrower. 'transaction': only a transaction is rolled back, and iterators are ended. */
  reset?: 'session' | 'transaction' | 'none'
  /** The name of the driver, its class, or its module. Default: better-sqlite3, else libsql, else Node's own (22.16 or later). */
  driver?: DriverName | SqliteDriver<unknown> | object
  /** The pool's, for messages. */
  name?: string
}

/** By itself ('app.db') as it is; both drivers take a URL differently, so the path is taken out here. */
export function pathOf (url: unknown): string {
  const expected = "a path, 'file:' and a path, or ':memory:'"
  if (typeof url !== 'string' || url === '') throw badOption('url', url, expected)
  let path = url
  if (/^file:/i.test(url)) {
    const rest = url.slice('file:'.length).replace(/^\/\/(?:localhost)?(?=\/)/i, '')
    if (rest === '' || /[?#]/.test(rest) || rest.startsWith('//')) throw badOption('url', url, `${expected}; without host or query`)
    try {
      path = decodeURIComponent(rest)
    } catch {
      throw badOption('url', url, `${expected}; percent-encoded`)
    }
  } else if (/^[a-z][a-z0-9+.-]+:/i.test(url)) {
    throw badOption('url', url, expected)
  }
  // As it is now: the working directory may change.
  return path === ':memory:' ? path : resolve(path)
}
