import { existsSync } from 'node:fs'
import { dirname } from 'node:path'
import { badOption } from '../../pool/errors.js'
import type { Connector, Transactions } from '../../../types/connector.js'
import { SessionConnector, sessionOf, type ResetMode } from '../shared/session.js'
import { dialectOf, isBusy, type Dialect, type DriverName, type Handle } from './dialect.js'
import { driverOf } from './driver.js'
import type { SqliteDatabase, SqliteDriver } from './handle.js'
import { patiently } from './lock.js'
import { pathOf, type SqliteOptions } from './options.js'
import { SqliteSession } from './session.js'

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
 * SQLite, on better-sqlite3, libsql or node:sqlite. A connection is a handle of its own, in WAL mode where it is a
 * file: one writes, and any number of others (`replica`) read at the same time.
 *
 * A write that resolved is stored, whatever failed before it on its handle; rows of a write (RETURNING) and of a PRAGMA
 * are therefore fetched at once, also by `iterate` (better-sqlite3 does nothing else while an iterator is open). A
 * statement that is run again ends the iterator that it had.
 *
 * At return an open transaction is rolled back and iterators are ended; a handle that is left with temp objects, other
 * attached databases or other settings than it had before its first loan (after `onConnect`) is refused, so that the
 * pool opens a new one. It costs nothing where no text that can do so was seen. Not undone: `last_insert_rowid()` and
 * `changes()`, and the rows of temp tables that `onConnect` made.
 *
 * A statement ends with the lease in which it was prepared: run later, it throws `FST_POOL_LEASE_RELEASED` (not with
 * reset 'none'). Those that `onConnect` prepared stay for all borrowers. A kept handle can't be told from the next
 * borrower's: it is the same object.
 *
 * A handle that reads has `query_only` on from its first loan (`onConnect` may still write); a write on it throws
 * `FST_POOL_NOT_SUPPORTED`. A borrower that switches it off can write, on purpose; the next one can't.
 *
 * ':memory:' is one handle that lives, with its data, until `close()`: whatever the pool's reasons, `destroy` only
 * makes it clean, and the next `create` delivers it again. There, what a handle is left with is undone one by one;
 * functions that were defined on it and extensions stay.
 *
 * While another process has the lock, statements fail at once with SQLITE_BUSY, unless `connection.timeout` says to
 * block the event loop. Where another process was seen to write within the last minute, the handle that writes is lent
 * when the lock is free, and its callers wait for that. `transactions` wait for the lock, too, and block nothing: they
 * ask for it again and again, as BEGIN IMMEDIATE.
 *
 * @param D what a connection is: `DatabaseSync` with node:sqlite
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`. Nothing is opened yet.
 */
export async function sqlite<D = SqliteDatabase> (options: SqliteOptions): Promise<SqliteConnector<D>> {
  for (const key of ['url', 'connection'] as const) {
    if (typeof options[key] !== 'function') continue
    throw badOption(key, options[key], 'none, since a file does not change its address')
  }
  const path = pathOf(options.url)
  return new Writer(driverOf(options.driver), path, options) as Connector<unknown> as SqliteConnector<D>
}

class Handles extends SessionConnector<Handle, SqliteSession> {
  readonly system = 'sqlite'
  readonly driver: DriverName
  readonly transactions: Transactions<Handle> = {
    // All that SQLite has.
    isolation: ['serializable'],
    readOnly: true,
    begin: (db, options, signal) => sessionOf<SqliteSession>(db).begin(options, signal),
    isTransient: isBusy,
  }

  readonly #Database: SqliteDriver<unknown>
  readonly #dialect: Dialect
  readonly #path: string
  readonly #options: Record<string, unknown>
  readonly #duty: { readonly refusal: string | undefined, readonly memory: boolean, readonly mode: ResetMode }
  /** The one handle of ':memory:'. */
  #kept: Handle | undefined
  #closed = false

  constructor (Database: SqliteDriver<unknown>, path: string, options: SqliteOptions, reads: boolean) {
    super()
    const { connection, reset = 'session', name } = options
    this.#Database = Database
    this.#dialect = dialectOf(Database)
    this.driver = this.#dialect.name
    this.#path = path
    this.#options = this.#dialect.options({ ...connection })
    const of = name === undefined ? '' : ` of pool '${name}'`
    const refusal = reads ? `this connection${of} only reads: lease role: 'primary' to write` : undefined
    this.#duty = { refusal, memory: path === ':memory:', mode: reset }
  }

  protected override async open (signal: AbortSignal): Promise<SqliteSession> {
    if (this.#closed) throw new Error('the SQLite connector is closed')
    const { memory } = this.#duty
    if (this.#kept !== undefined && this.#dialect.isOpen(this.#kept)) {
      const session = sessionOf<SqliteSession>(this.#kept)
      session.reopen()
      return session
    }
    const db = this.#make()
    try {
      // Writes to the file only where it is not so already. A reader does it as well: it may be the first.
      if (!memory && !this.#isReadOnly(db)) await patiently(() => db.exec('PRAGMA journal_mode = WAL'), signal)
      const session = new SqliteSession(db, this.#dialect, this.#duty)
      if (memory) this.#kept = db
      return session
    } catch (error) {
      db.close()
      throw error
    }
  }

  override destroy (db: Handle): void {
    const session = sessionOf<SqliteSession>(db)
    if (this.#duty.memory && this.#dialect.isOpen(db)) session.rest()
    else session.end()
  }

  obstacle (db: Handle): string | undefined {
    return sessionOf<SqliteSession>(db).obstacle()
  }

  reset (db: Handle): Promise<void> | undefined {
    return sessionOf<SqliteSession>(db).undo()
  }

  close (): void {
    this.#closed = true
    if (this.#kept !== undefined) sessionOf<SqliteSession>(this.#kept).end()
    this.#kept = undefined
  }

  #make (): Handle {
    try {
      return new this.#Database(this.#path, this.#options) as Handle
    } catch (cause) {
      if (this.#duty.memory || existsSync(dirname(this.#path))) throw cause
      throw new Error(`the database file's directory does not exist: ${dirname(this.#path)}`, { cause })
    }
  }

  /** libsql has no such handles. */
  #isReadOnly (db: Handle): boolean {
    const isNode = this.driver === 'node:sqlite'
    return (db as { readonly?: boolean }).readonly === true || (isNode && this.#options.readOnly === true)
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
