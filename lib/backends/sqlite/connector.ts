import { existsSync } from 'node:fs'
import { dirname } from 'node:path'
import { badOption } from '../../pool/errors.js'
import { dialectOf, isBusy } from './dialect.js'
import type { Dialect, DriverName, Handle } from './dialect.js'
import { patiently } from './lock.js'
import { Watch } from './session.js'
import type { Connector, DestroyReason, Transactions } from '../../../types/connector.js'
import type { SqliteDatabase, SqliteDriver } from './handle.js'
import { pathOf } from './options.js'
import type { SqliteOptions } from './options.js'
import { driverOf } from './driver.js'

/** Makes the handle that writes; its `replica` makes those that read. */
export interface SqliteConnector<D = SqliteDatabase> extends Connector<D> {
  readonly system: 'sqlite'
  readonly driver: DriverName
  /** How many connections its pool may have: there is one writer to a file. */
  readonly max: 1
  readonly transactions: Transactions<D>
  /** Handles on the same file that only read. None for ':memory:', which only its one handle sees. */
  readonly replica?: Connector<D>
}

/**
 * SQLite, on better-sqlite3, libsql or node:sqlite. A connection is a handle of its own, in WAL mode where it is a file: one writes, and any number of others
 * (`replica`) read at the same time.
 *
 * A write that resolved is stored, whatever failed before it on its handle; rows of a write (RETURNING) and of a PRAGMA are therefore fetched at once, also by
 * `iterate` (better-sqlite3 does nothing else while an iterator is open). A statement that is run again ends the iterator that it had.
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
 * While another process has the lock, statements fail at once with SQLITE_BUSY, unless `connection.timeout` says to block the event loop. Where another process
 * was seen to write within the last minute, the handle that writes is lent when the lock is free, and its callers wait for that. `transactions` wait for the
 * lock, too, and block nothing: they ask for it again and again, as BEGIN IMMEDIATE.
 *
 * @param D what a connection is: `DatabaseSync` with node:sqlite
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`. Nothing is opened yet.
 */
export async function sqlite<D = SqliteDatabase> (options: SqliteOptions): Promise<SqliteConnector<D>> {
  for (const key of ['url', 'connection'] as const) {
    if (typeof options[key] === 'function') throw badOption(key, options[key], 'none, since a file does not change its address')
  }
  const path = pathOf(options.url)
  return new Writer(driverOf(options.driver), path, options) as Connector<unknown> as SqliteConnector<D>
}

class Handles implements Connector<Handle> {
  readonly system = 'sqlite'
  readonly driver: DriverName
  readonly transactions: Transactions<Handle>
  readonly #Database: SqliteDriver<unknown>
  readonly #dialect: Dialect
  readonly #path: string
  readonly #options: Record<string, unknown>
  readonly #whole: boolean
  readonly #memory: boolean
  /** Of those that only read: what a write is told. */
  readonly #refusal: string | undefined
  readonly #watches = new WeakMap<Handle, Watch>()
  /** The one handle of ':memory:'. */
  #kept: Handle | undefined
  #closed = false

  constructor (Database: SqliteDriver<unknown>, path: string, { connection, reset, name }: SqliteOptions, reads: boolean) {
    this.#Database = Database
    this.#dialect = dialectOf(Database)
    this.driver = this.#dialect.name
    this.#path = path
    this.#options = this.#dialect.options({ ...connection })
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

  async create (signal: AbortSignal): Promise<Handle> {
    signal.throwIfAborted()
    if (this.#closed) throw new Error('the SQLite connector is closed')
    if (this.#kept !== undefined && this.#dialect.isOpen(this.#kept)) {
      this.#watchOf(this.#kept).reopen()
      return this.#kept
    }
    const db = this.#open()
    try {
      // Writes to the file only where it is not so already. A reader does it as well: it may be the first.
      if (!this.#memory && !this.#isReadOnly(db)) await patiently(() => db.exec('PRAGMA journal_mode = WAL'), signal)
      this.#watches.set(db, new Watch(db, this.#dialect, { refusal: this.#refusal, shared: !this.#memory }))
    } catch (error) {
      db.close()
      throw error
    }
    if (this.#memory) this.#kept = db
    return db
  }

  destroy (db: Handle, _reason?: DestroyReason): void {
    const watch = this.#watchOf(db)
    if (this.#memory && this.#dialect.isOpen(db)) {
      watch.endLease()
      return watch.undo()
    }
    watch.close()
  }

  async validate (db: Handle): Promise<boolean> {
    // libsql's statements go on working on a handle that is closed.
    if (!this.#dialect.isOpen(db)) return false
    this.#watchOf(db).ping()
    return true
  }

  isBroken (db: Handle): boolean {
    const watch = this.#watchOf(db)
    if (watch.isBroken) return true
    // The pool asks before every loan: the first time is when `onConnect` is done and no borrower was there.
    watch.settle()
    return false
  }

  obstacle (db: Handle): string | undefined {
    return this.#watchOf(db).obstacle()
  }

  reset (db: Handle): Promise<void> | undefined {
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

  #open (): Handle {
    try {
      return new this.#Database(this.#path, this.#options) as Handle
    } catch (cause) {
      if (this.#memory || existsSync(dirname(this.#path))) throw cause
      throw new Error(`the database file's directory does not exist: ${dirname(this.#path)}`, { cause })
    }
  }

  /** libsql has no such handles. */
  #isReadOnly (db: Handle): boolean {
    return (db as { readonly?: boolean }).readonly === true || (this.driver === 'node:sqlite' && this.#options.readOnly === true)
  }

  #watchOf (db: Handle): Watch {
    const watch = this.#watches.get(db)
    if (watch === undefined) throw new TypeError('this handle is not of this connector')
    return watch
  }
}

class Writer extends Handles {
  readonly max = 1
  readonly replica?: Connector<Handle>

  constructor (Database: SqliteDriver<unknown>, path: string, options: SqliteOptions) {
    super(Database, path, options, false)
    if (path !== ':memory:') this.replica = new Handles(Database, path, options, true)
  }
}
