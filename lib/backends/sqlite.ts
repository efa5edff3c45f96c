import { existsSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { badOption, PoolError } from '../pool/errors.js'
import { badDriver, facesOf, requirePackage } from './driver.js'
import { isBusy, patiently } from './sqlite/lock.js'
import { Watch } from './sqlite/watch.js'
import type { Address } from '../pool/options.js'
import type { Connector, DestroyReason, Transactions } from '../../types/connector.js'
import type { SqliteDatabase, SqliteDriver } from './sqlite/handle.js'

export type { SqliteDatabase, SqliteDriver, SqliteStatement, SqliteTransaction } from './sqlite/handle.js'
export interface SqliteOptions {
  /** A path ('app.db', './data/app.db', 'file:app.db'), whose directory exists, or ':memory:'. No function: a file does not change its address. */
  url?: Address['url']
  /**
   * Options of the driver's `Database`, untouched. `timeout` (SQLite's busy timeout, in ms) is 0 unless it is here: SQLite waits by blocking
   * the event loop. No function.
   */
  connection?: Address['connection']
  /** 'session' (default): nothing is left for the next borrower. 'transaction': only a transaction is rolled back, and iterators are ended. */
  reset?: 'session' | 'transaction' | 'none'
  /** The name of the driver, its class, or its module. Default: libsql, else better-sqlite3. */
  driver?: 'libsql' | 'better-sqlite3' | 'node:sqlite' | SqliteDriver | object
  /** The pool's, for messages. */
  name?: string
}

/** Makes the handle that writes; its `replica` makes those that read. */
export interface SqliteConnector extends Connector<SqliteDatabase> {
  readonly system: 'sqlite'
  /** How many connections its pool may have: there is one writer to a file. */
  readonly max: 1
  readonly transactions: Transactions<SqliteDatabase>
  /** Handles on the same file that only read. None for ':memory:', which only its one handle sees. */
  readonly replica?: Connector<SqliteDatabase>
}

/**
 * SQLite, on libsql or better-sqlite3. A connection is a handle of its own, in WAL mode where it is a file: one writes, and any number of others
 * (`replica`) read at the same time.
 *
 * At return an open transaction is rolled back and iterators are ended; a handle that is left with temp objects, other attached databases or
 * other settings than it had before its first loan (after `onConnect`) is refused, so that the pool opens a new one. It costs nothing where no
 * text that can do so was seen. Not undone: `last_insert_rowid()` and `changes()`, and the rows of temp tables that `onConnect` made.
 *
 * A statement ends with the lease in which it was prepared: run later, it throws `FST_POOL_LEASE_RELEASED` (not with reset 'none'). Those that
 * `onConnect` prepared stay for all borrowers. A kept handle can't be told from the next borrower's: it is the same object.
 *
 * A handle that reads has `query_only` on from its first loan (`onConnect` may still write); a write on it throws `FST_POOL_NOT_SUPPORTED`. A
 * borrower that switches it off can write, on purpose; the next one can't.
 *
 * ':memory:' is one handle that lives, with its data, until `close()`: whatever the pool's reasons, `destroy` only makes it clean, and the next
 * `create` delivers it again. There, what a handle is left with is undone one by one; functions that were defined on it and extensions stay.
 *
 * While another process has the lock, statements fail at once with SQLITE_BUSY, unless `connection.timeout` says to block the event loop.
 * `transactions` wait for the lock, and block nothing: they ask for it again and again, as BEGIN IMMEDIATE.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`. Nothing is opened yet.
 */
export async function sqlite (options: SqliteOptions): Promise<SqliteConnector> {
  for (const key of ['url', 'connection'] as const) {
    if (typeof options[key] === 'function') throw badOption(key, options[key], 'none, since a file does not change its address')
  }
  const path = pathOf(options.url)
  return new Writer(driverOf(options.driver), path, options)
}

class Handles implements Connector<SqliteDatabase> {
  readonly system = 'sqlite'
  readonly transactions: Transactions<SqliteDatabase>
  readonly #Database: SqliteDriver
  readonly #path: string
  readonly #options: Record<string, unknown>
  readonly #whole: boolean
  readonly #memory: boolean
  /** Of those that only read: what a write is told. */
  readonly #refusal: string | undefined
  readonly #watches = new WeakMap<SqliteDatabase, Watch>()
  /** The one handle of ':memory:'. */
  #kept: SqliteDatabase | undefined
  #closed = false

  constructor (Database: SqliteDriver, path: string, { connection, reset, name }: SqliteOptions, reads: boolean) {
    this.#Database = Database
    this.#path = path
    const given: Record<string, unknown> = { ...connection }
    this.#options = { ...given, timeout: given.timeout ?? 0 }
    this.#whole = reset !== 'transaction'
    this.#memory = path === ':memory:'
    this.#refusal = reads ? `this connection${name === undefined ? '' : ` of pool '${name}'`} only reads: lease role: 'primary' to write` : undefined
    this.transactions = {
      // All that SQLite has.
      isolation: ['serializable'],
      readOnly: true,
      begin: (db, options, signal) => this.#watchOf(db).begin(options, signal),
      isTransient: isBusy,
    }
  }

  async create (signal: AbortSignal): Promise<SqliteDatabase> {
    signal.throwIfAborted()
    if (this.#closed) throw new Error('the SQLite connector is closed')
    if (this.#kept?.open) {
      this.#watchOf(this.#kept).reopen()
      return this.#kept
    }
    const db = this.#open()
    try {
      // Writes to the file only where it is not so already. A reader does it as well: it may be the first.
      if (!this.#memory && !db.readonly) await patiently(() => db.pragma('journal_mode = WAL'), signal)
      this.#watches.set(db, new Watch(db, this.#refusal))
    } catch (error) {
      db.close()
      throw error
    }
    if (this.#memory) this.#kept = db
    return db
  }

  destroy (db: SqliteDatabase, _reason?: DestroyReason): void {
    const watch = this.#watchOf(db)
    if (this.#memory && db.open) {
      watch.endLease()
      return watch.undo()
    }
    watch.close()
  }

  async validate (db: SqliteDatabase): Promise<boolean> {
    // libsql's statements go on working on a handle that is closed.
    if (!db.open) return false
    this.#watchOf(db).ping()
    return true
  }

  isBroken (db: SqliteDatabase): boolean {
    if (!db.open) return true
    // The pool asks before every loan: the first time is when `onConnect` is done and no borrower was there.
    this.#watchOf(db).settle()
    return false
  }

  reset (db: SqliteDatabase): Promise<void> | undefined {
    const watch = this.#watchOf(db)
    try {
      watch.endLease()
      if (!this.#whole) watch.endWorkOnly()
      else if (this.#memory) watch.undo()
      else watch.check()
      return undefined
    } catch (error) {
      return Promise.reject(error)
    }
  }

  close (): void {
    this.#closed = true
    if (this.#kept !== undefined) this.#watchOf(this.#kept).close()
    this.#kept = undefined
  }

  #open (): SqliteDatabase {
    try {
      return new this.#Database(this.#path, this.#options)
    } catch (cause) {
      if (this.#memory || existsSync(dirname(this.#path))) throw cause
      throw new Error(`the database file's directory does not exist: ${dirname(this.#path)}`, { cause })
    }
  }

  #watchOf (db: SqliteDatabase): Watch {
    const watch = this.#watches.get(db)
    if (watch === undefined) throw new TypeError('this handle is not of this connector')
    return watch
  }
}

class Writer extends Handles implements SqliteConnector {
  readonly max = 1
  declare readonly replica?: Connector<SqliteDatabase>

  constructor (Database: SqliteDriver, path: string, options: SqliteOptions) {
    super(Database, path, options, false)
    if (path !== ':memory:') this.replica = new Handles(Database, path, options, true)
  }
}

// --- Options --------------------------------------------------------------------------------------------------------------------------

/** By itself ('app.db') as it is; both drivers take a URL differently, so the path is taken out here. */
function pathOf (url: unknown): string {
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

/** libsql first: it installs in seconds, without a compiler; better-sqlite3 may have to be compiled. */
const drivers = ['libsql', 'better-sqlite3'] as const

function driverOf (driver: SqliteOptions['driver']): SqliteDriver {
  if (driver === 'libsql' || driver === 'better-sqlite3') return load(driver)
  if (driver === 'node:sqlite') return builtIn()
  if (driver !== undefined) {
    const found = facesOf(driver).find(isDriver)
    if (found === undefined) throw badDriver(driver, "'better-sqlite3', 'libsql' or 'node:sqlite', or the class or the module of one of them")
    return found as unknown as SqliteDriver
  }
  const causes: unknown[] = []
  for (const name of drivers) {
    try {
      return load(name)
    } catch (error) {
      causes.push(error)
    }
  }
  const message = "backend 'sqlite' needs the package libsql or better-sqlite3: npm install libsql"
  throw new PoolError('FST_POOL_MISSING_DRIVER', message, { cause: new AggregateError(causes) })
}

function load (name: string): SqliteDriver {
  return facesOf(requirePackage(name, { backend: 'sqlite' })).find(isDriver) as unknown as SqliteDriver
}

function isDriver ({ prototype }: { prototype?: unknown }): boolean {
  const { prepare, pragma, transaction } = (prototype ?? {}) as Partial<SqliteDatabase>
  return [prepare, pragma, transaction].every((method) => typeof method === 'function')
}

/** Node's own, where this Node has it. */
function builtIn (): SqliteDriver {
  const module = process.getBuiltinModule('node:sqlite' as 'node:module') as unknown as { readonly DatabaseSync: SqliteDriver } | undefined
  if (module !== undefined) return module.DatabaseSync
  throw new PoolError('FST_POOL_MISSING_DRIVER', `driver 'node:sqlite' needs Node 22.16 or later: this is ${process.version}`)
}
