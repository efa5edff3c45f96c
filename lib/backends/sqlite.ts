import { existsSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { badOption, PoolError } from '../pool/errors.js'
import { importDriver } from './driver.js'
import type { Connector } from '../../types/connector.js'

/** What both drivers' prepared statements have. */
export interface SqliteStatement {
  readonly reader: boolean
  run (...params: unknown[]): { changes: number, lastInsertRowid: number | bigint }
  get (...params: unknown[]): unknown
  all (...params: unknown[]): unknown[]
  iterate (...params: unknown[]): IterableIterator<unknown>
  pluck (on?: boolean): this
  raw (on?: boolean): this
  safeIntegers (on?: boolean): this
  columns (): unknown[]
}

/** What both drivers' handles have. For the rest, type the pool as the driver that you installed. */
export interface SqliteDatabase {
  readonly name: string
  readonly memory: boolean
  readonly readonly: boolean
  readonly open: boolean
  readonly inTransaction: boolean
  prepare (sql: string): SqliteStatement
  exec (sql: string): unknown
  pragma (source: string, options?: { simple?: boolean }): unknown
  transaction<A extends unknown[], R> (fn: (...args: A) => R): SqliteTransaction<A, R>
  close (): unknown
}

/** Calls its function between BEGIN and COMMIT. */
export interface SqliteTransaction<A extends unknown[], R> {
  (...args: A): R
  deferred (...args: A): R
  immediate (...args: A): R
  exclusive (...args: A): R
}

export type SqliteDriver = new (path: string, options?: object) => SqliteDatabase

export interface SqliteOptions {
  /** A path ('app.db', './data/app.db', 'file:app.db'), whose directory exists, or ':memory:'. */
  url?: string
  /**
   * Options of the driver's `Database`, untouched. `timeout` (SQLite's busy timeout, in ms) is 0 unless it is here: SQLite waits by blocking
   * the event loop.
   */
  connection?: Record<string, unknown>
  /** 'session' (default): nothing is left for the next borrower. 'transaction': only a transaction is rolled back, and iterators are ended. */
  reset?: 'session' | 'transaction' | 'none'
  /** Default: libsql, else better-sqlite3. Or the driver's class itself. */
  driver?: 'libsql' | 'better-sqlite3' | SqliteDriver
}

export interface SqliteConnector extends Connector<SqliteDatabase> {
  readonly system: 'sqlite'
  /** How many connections its pool may have: there is one writer to a file. */
  readonly max: 1
}

/**
 * SQLite, on libsql or better-sqlite3. A connection is a handle of its own, in WAL mode where it is a file.
 *
 * At return an open transaction is rolled back and iterators are ended; a handle that is left with temp objects, other attached databases or
 * other settings than it had before its first loan (after `onConnect`) is refused, so that the pool opens a new one. It costs nothing where no
 * text that can do so was seen. Not undone: `last_insert_rowid()` and `changes()`, and the rows of temp tables that `onConnect` made.
 *
 * ':memory:' is one handle that lives, with its data, until `close()`: whatever the pool's reasons, `destroy` only makes it clean, and the next
 * `create` delivers it again. There, what a handle is left with is undone one by one; functions that were defined on it and extensions stay.
 *
 * While another process has the lock, statements fail at once with SQLITE_BUSY, unless `connection.timeout` says to block the event loop.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`. Nothing is opened yet.
 */
export async function sqlite (options: SqliteOptions): Promise<SqliteConnector> {
  const path = pathOf(options.url)
  return new Sqlite(await driverOf(options.driver), path, options)
}

class Sqlite implements SqliteConnector {
  readonly system = 'sqlite'
  readonly max = 1
  readonly #Database: SqliteDriver
  readonly #path: string
  readonly #options: Record<string, unknown>
  readonly #whole: boolean
  readonly #memory: boolean
  readonly #watches = new WeakMap<SqliteDatabase, Watch>()
  /** The one handle of ':memory:'. */
  #kept: SqliteDatabase | undefined
  #closed = false

  constructor (Database: SqliteDriver, path: string, { connection, reset }: SqliteOptions) {
    this.#Database = Database
    this.#path = path
    this.#options = { ...connection, timeout: connection?.timeout ?? 0 }
    this.#whole = reset !== 'transaction'
    this.#memory = path === ':memory:'
  }

  async create (signal: AbortSignal): Promise<SqliteDatabase> {
    signal.throwIfAborted()
    if (this.#closed) throw new Error('the SQLite connector is closed')
    if (this.#kept?.open) return this.#kept
    const db = this.#open()
    try {
      // Writes to the file only where it is not so already.
      if (!this.#memory && !db.readonly) db.pragma('journal_mode = WAL')
      this.#watches.set(db, new Watch(db))
    } catch (error) {
      db.close()
      throw error
    }
    if (this.#memory) this.#kept = db
    return db
  }

  destroy (db: SqliteDatabase): void {
    if (!db.open) return
    const watch = this.#watchOf(db)
    if (this.#memory) return watch.undo()
    try {
      // Left alone, an iterator holds its snapshot even after `close()` (libsql), or makes it fail (better-sqlite3).
      watch.endWork()
    } finally {
      db.close()
    }
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
      if (!this.#whole) watch.endWork()
      else if (this.#memory) watch.undo()
      else watch.check()
      return undefined
    } catch (error) {
      return Promise.reject(error)
    }
  }

  close (): void {
    this.#closed = true
    if (this.#kept?.open) {
      this.#watchOf(this.#kept).endWork()
      this.#kept.close()
    }
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

// --- What is left behind --------------------------------------------------------------------------------------------------------------

/** What a text may have changed. */
const schema = 1
const pragmas = 2
/** Something that can't be read back. */
const unreadable = 4

/**
 * Sees to it that nothing a borrower leaves on a handle is seen by the next one.
 *
 * State gets onto a handle by SQL or by a method. All SQL passes `prepare`, `exec` or `pragma`, so own properties of the handle hide those of
 * the class, look at the text, and call them. Only after a text that can leave something is the handle compared with what it was before.
 */
class Watch {
  readonly #db: SqliteDatabase
  readonly #exec: (sql: string) => unknown
  readonly #prepare: (sql: string) => SqliteStatement
  /** Seen since the last return. */
  #seen = 0
  /** Of statements that were prepared: whoever kept one can run it at any later time. */
  #prepared = 0
  #settled = false
  #before: { schema: string, pragmas: string } | undefined
  readonly #iterators = new Set<IterableIterator<unknown>>()
  #readSchema: SqliteStatement | undefined
  #readPragmas: SqliteStatement | undefined
  #select: SqliteStatement | undefined

  constructor (db: SqliteDatabase) {
    this.#db = db
    this.#exec = db.exec.bind(db)
    this.#prepare = db.prepare.bind(db)
    this.#hide()
    this.#before = this.#read()
  }

  ping (): void {
    this.#select ??= this.#prepare('select 1')
    this.#select.get()
  }

  /** What was set until now is no borrower's. */
  settle (): void {
    if (this.#settled) return
    this.#settled = true
    if (this.#seen !== 0) this.#before = this.#read()
    this.#seen = 0
    this.#prepared &= ~unreadable
  }

  /** Ends what is under way: transaction and iterators. */
  endWork (): void {
    if (this.#iterators.size > 0) this.#endIterators()
    if (this.#db.inTransaction) this.#exec('ROLLBACK')
  }

  /** @throws where something is left that only a new handle is without */
  check (): void {
    this.endWork()
    const changed = this.#seen | this.#prepared
    if (changed === 0) return
    this.#seen = 0
    const before = this.#before!
    const left = []
    if ((changed & unreadable) !== 0) left.push('settings that can not be read back')
    if ((changed & schema) !== 0 && this.#schemaNow() !== before.schema) left.push('temp objects or attached databases')
    if ((changed & pragmas) !== 0 && this.#pragmasNow() !== before.pragmas) left.push('changed pragmas')
    if (left.length > 0) throw new Error(`the SQLite handle was left with ${left.join(' and ')}: it is opened anew`)
  }

  /** For a handle that can't be opened anew without losing its data. */
  undo (): void {
    this.endWork()
    // First, as `query_only` would forbid the rest.
    if (((this.#seen | this.#prepared) & pragmas) !== 0) this.#undoPragmas()
    if (((this.#seen | this.#prepared) & schema) !== 0) this.#undoSchema()
    this.#seen = 0
  }

  #undoPragmas (): void {
    const before = this.#before!.pragmas.split('|')
    for (const [index, value] of this.#pragmasNow().split('|').entries()) {
      if (value !== before[index]) this.#exec(`PRAGMA ${readable[index]} = ${before[index]}`)
    }
  }

  #undoSchema (): void {
    const before: Schema = JSON.parse(this.#before!.schema)
    const now: Schema = JSON.parse(this.#schemaNow())
    const known = new Set(before.temp.map((object) => JSON.stringify(object)))
    const added = now.temp.filter((object) => !known.has(JSON.stringify(object)))
    // A table takes its indexes and triggers along.
    const order = ['trigger', 'view', 'table', 'index']
    for (const [type, name] of added.sort(([a], [b]) => order.indexOf(a) - order.indexOf(b))) {
      this.#exec(`DROP ${type} IF EXISTS temp.${quote(name)}`)
    }
    for (const [name, file] of now.attached) {
      if (!before.attached.some((known) => known[0] === name && known[1] === file)) this.#exec(`DETACH ${quote(name)}`)
    }
    for (const [name, file] of before.attached) {
      if (now.attached.some((known) => known[0] === name && known[1] === file)) continue
      this.#exec(`ATTACH '${file.replaceAll("'", "''")}' AS ${quote(name)}`)
    }
  }

  #read (): { schema: string, pragmas: string } {
    return { schema: this.#schemaNow(), pragmas: this.#pragmasNow() }
  }

  #schemaNow (): string {
    this.#readSchema ??= this.#prepare(`select json_object(
      'temp', (select json_group_array(json_array(type, name, sql)) from temp.sqlite_schema where name not like 'sqlite_%'),
      'attached', (select json_group_array(json_array(name, file)) from pragma_database_list where name not in ('main', 'temp'))) as state`)
    return (this.#readSchema.get() as { state: string }).state
  }

  #pragmasNow (): string {
    this.#readPragmas ??= this.#prepare(`select ${readable.map((name) => `(select * from pragma_${name})`).join(" || '|' || ")} as state`)
    return (this.#readPragmas.get() as { state: string }).state
  }

  // --- Iterators ---

  #endIterators (): void {
    for (const iterator of this.#iterators) {
      // Only better-sqlite3 has it. There the handle does nothing else while an iterator is open.
      if (iterator.return === undefined) continue
      iterator.return()
      this.#iterators.delete(iterator)
    }
    if (this.#iterators.size === 0) return
    // libsql has no end for an iterator, not even where a loop breaks off. Left alone, it keeps its snapshot: the next borrower would read old
    // rows and could not write. But every statement that is under way when the handle is interrupted fails at its next step, and has ended then.
    (this.#db as { interrupt?: () => void }).interrupt?.()
    for (const iterator of this.#iterators) {
      // Rows that the driver had fetched ahead (100) come first.
      for (let rows = 0; rows <= 200 && this.#iterators.has(iterator); rows++) {
        try {
          iterator.next()
        } catch {
          // That is its end.
        }
      }
      if (this.#iterators.has(iterator)) throw new Error('an iterator on the SQLite handle can not be ended')
    }
  }

  /** Remembers it until its last row, or its failure. */
  #follow (iterator: IterableIterator<unknown>): IterableIterator<unknown> {
    const open = this.#iterators
    const next = iterator.next.bind(iterator)
    open.add(iterator)
    iterator.next = () => {
      try {
        const result = next()
        if (result.done) open.delete(iterator)
        return result
      } catch (error) {
        open.delete(iterator)
        throw error
      }
    }
    return iterator
  }

  // --- The seam ---

  #hide (): void {
    const db = this.#db
    const prepare = this.#prepare
    const exec = this.#exec
    const pragma = db.pragma.bind(db)
    let inside = false
    const follow = (iterator: IterableIterator<unknown>) => this.#follow(iterator)
    // Shared by all statements of the handle, so that a prepare makes no functions.
    const { iterate, all } = Object.getPrototypeOf(prepare('select 1')) as SqliteStatement
    function followed (this: SqliteStatement, ...params: unknown[]) {
      const iterator = iterate.apply(this, params)
      return inside ? iterator : follow(iterator)
    }
    // libsql's `all` calls `iterate`.
    function whole (this: SqliteStatement, ...params: unknown[]) {
      inside = true
      try {
        return all.apply(this, params)
      } finally {
        inside = false
      }
    }
    const own: Record<string, unknown> = {
      prepare: (sql: string) => {
        const statement = prepare(sql)
        if (mayLeave.test(sql)) {
          const what = judge(sql)
          this.#seen |= what
          this.#prepared |= what
        }
        statement.iterate = followed
        statement.all = whole
        return statement
      },
      exec: (sql: string) => {
        if (mayLeave.test(sql)) this.#seen |= judge(sql)
        return exec(sql)
      },
      // Nobody gets hold of the statement, so `#prepared` stays as it is, though libsql's calls `prepare`.
      pragma: (source: string, options?: { simple?: boolean }) => {
        this.#seen |= judge(`PRAGMA ${source}`)
        const prepared = this.#prepared
        try {
          return options === undefined ? pragma(source) : pragma(source, options)
        } finally {
          this.#prepared = prepared
        }
      },
    }
    for (const name of ['function', 'aggregate', 'table', 'loadExtension', 'authorizer', 'unsafeMode', 'defaultSafeIntegers']) {
      const method: unknown = db[name as keyof SqliteDatabase]
      if (typeof method !== 'function') continue
      own[name] = (...args: unknown[]) => {
        this.#seen |= unreadable
        return method.apply(db, args)
      }
    }
    for (const [name, value] of Object.entries(own)) Object.defineProperty(db, name, { value, writable: true, configurable: true })
  }
}

interface Schema { temp: Array<[type: string, name: string, sql: string]>, attached: Array<[name: string, file: string]> }

function quote (name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}

/** Most texts have none of these words, and are looked at no further. */
const mayLeave = /\b(?:pragma|temp|temporary|attach|detach|load_extension)\b/i

/** Its value can be read with others in one row, and setting it back undoes it. */
const readable = [
  'analysis_limit', 'automatic_index', 'busy_timeout', 'cache_size', 'cell_size_check', 'checkpoint_fullfsync', 'count_changes', 'defer_foreign_keys',
  'empty_result_callbacks', 'foreign_keys', 'full_column_names', 'fullfsync', 'ignore_check_constraints', 'journal_mode', 'journal_size_limit',
  'legacy_alter_table', 'locking_mode', 'max_page_count', 'query_only', 'read_uncommitted', 'recursive_triggers', 'reverse_unordered_selects',
  'secure_delete', 'short_column_names', 'synchronous', 'temp_store', 'threads', 'trusted_schema', 'writable_schema',
]
const compared: ReadonlySet<string> = new Set(readable)

/** With an argument they only read, or change the file and not the handle. */
const harmless: ReadonlySet<string> = new Set([
  'table_info', 'table_xinfo', 'table_list', 'index_list', 'index_info', 'index_xinfo', 'foreign_key_list', 'foreign_key_check', 'integrity_check',
  'quick_check', 'user_version', 'application_id', 'wal_checkpoint', 'optimize', 'incremental_vacuum',
])

/** Stands behind the word PRAGMA. What is written in any other way (quoted, with comments) counts as unreadable. */
const pragmaCall = /\s+(?:(?<of>\w+)\s*\.\s*)?(?<name>\w+)\s*(?:$|(?<then>[;=(]))/y

function judge (sql: string): number {
  let what = 0
  if (/\b(?:temp|temporary|attach|detach)\b/i.test(sql)) what |= schema
  if (/\bload_extension\b/i.test(sql)) what |= unreadable
  for (const { index } of sql.matchAll(/\bpragma\b/gi)) {
    pragmaCall.lastIndex = index + 'pragma'.length
    const { of, name, then } = pragmaCall.exec(sql)?.groups ?? {}
    if (name === undefined) what |= unreadable
    else if (then === undefined || then === ';' || harmless.has(name.toLowerCase())) continue
    else what |= compared.has(name.toLowerCase()) && (of ?? 'main').toLowerCase() === 'main' ? pragmas : unreadable
  }
  return what
}

// --- Options --------------------------------------------------------------------------------------------------------------------------

/** By itself ('app.db') as it is; both drivers take a URL differently, so the path is taken out here. */
function pathOf (url: string | undefined): string {
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

async function driverOf (driver: SqliteOptions['driver']): Promise<SqliteDriver> {
  if (typeof driver === 'function') return driver
  if (driver !== undefined) return await load(driver)
  const causes: unknown[] = []
  for (const name of drivers) {
    try {
      return await load(name)
    } catch (error) {
      causes.push(error)
    }
  }
  const message = "backend 'sqlite' needs the package libsql or better-sqlite3: npm install libsql"
  throw new PoolError('FST_POOL_MISSING_DRIVER', message, { cause: new AggregateError(causes) })
}

async function load (name: string): Promise<SqliteDriver> {
  return (await importDriver<{ default: SqliteDriver }>(name, { backend: 'sqlite' })).default
}
