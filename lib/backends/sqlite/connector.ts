import { existsSync, statSync } from 'node:fs'
import { dirname } from 'node:path'
import { badOption } from '../../engine/errors.js'
import type { Connector, Transactions } from '../../../types/connector.js'
import { refuseNumber } from '../shared/address.js'
import { SessionConnector, refuseJoined, sessionOf, type ResetMode } from '../shared/session.js'
import { dialectOf, isBusy, isPermanent, Unopenable, type Dialect, type DriverName, type Handle } from './dialect.js'
import { driverOf } from './driver.js'
import type { SqliteDatabase, SqliteDriver } from './handle.js'
import { patiently } from './lock.js'
import { pathOf, type SqliteOptions } from './options.js'
import { SqliteSession } from './session.js'

/** Makes the handle that writes. Its `replica` makes those that read. */
export interface SqliteConnector<D = SqliteDatabase> extends Connector<D> {
  readonly system: 'sqlite'
  readonly driver: DriverName
  /** The most connections of its pool: a file has one writer. */
  readonly max: 1
  readonly transactions: Transactions<D>
  /** Handles on the same file that only read. None for ':memory:', which only its one handle sees. */
  readonly replica?: Connector<D>
}

/** What it is: ../connectors.ts, whose function of the same name calls this one. */
export async function sqlite<D = SqliteDatabase> (options: SqliteOptions): Promise<SqliteConnector<D>> {
  for (const key of ['url', 'connection'] as const) {
    if (typeof options[key] === 'function') {
      throw badOption(key, options[key], 'none, since a file does not change its address')
    }
  }
  refuseNumber((options as { database?: unknown }).database, 'none, since sqlite is a file (url)')
  const path = pathOf(options.url)
  return new Writer(driverOf(options.driver), path, options) as Connector<unknown> as SqliteConnector<D>
}

class Handles extends SessionConnector<Handle, SqliteSession> {
  readonly system = 'sqlite'
  readonly driver: DriverName
  readonly isPermanent = isPermanent
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
    refuseJoined(options)
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

  /** What a statement does with these values: a list, or an object of those that have names. */
  call (db: Handle, method: string): ((text: unknown, values?: unknown) => unknown) | undefined {
    if (method !== 'get' && method !== 'all' && method !== 'run') return undefined
    return (text, values = []) => {
      const statement = db.prepare(text as string)
      return Array.isArray(values) ? statement[method](...values) : statement[method](values)
    }
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
      // This writes to the file only where it is not in WAL mode yet. A reader does it too, since it may be the first.
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
      if (this.#duty.memory) throw cause
      const folder = dirname(this.#path)
      if (!existsSync(folder)) {
        throw new Unopenable(`the database file's directory does not exist: ${folder}`, { cause })
      }
      if (statSync(this.#path, { throwIfNoEntry: false })?.isDirectory() === true) {
        throw new Unopenable(`the database file is a directory: ${this.#path}`, { cause })
      }
      throw cause
    }
  }

  /** Whether the handle was opened read only. libsql has no such handles. */
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
