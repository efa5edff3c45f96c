import { PoolError } from '../../pool/errors.js'
import { codeOf, patiently } from './lock.js'
import { judge, mayLeave, pragmas, readable, schema, unreadable } from './residue.js'
import type { Transaction, TransactionOptions } from '../../../types/connector.js'
import type { SqliteDatabase, SqliteStatement } from './handle.js'

/** On each statement: in which turn it was prepared. */
const turnOf: unique symbol = Symbol('turn')

interface Stamped extends SqliteStatement { [turnOf]: number }

/** The turn of statements that `onConnect` prepared: they outlive all leases, but not the handle. */
const forever = Number.MAX_SAFE_INTEGER

/** An iterator that may have more rows. */
interface Held {
  readonly iterator: IterableIterator<unknown>
  /** The driver's own. */
  readonly next: () => IteratorResult<unknown>
  readonly turn: number
  state: 'open' | 'done' | 'ended'
}

/** The savepoint around all of a transaction. It goes where the transaction goes, so somebody else's can't be taken for it. */
const outermost = 'fastify_pool'

/**
 * Sees to it that nothing a borrower leaves on a handle is seen by the next one.
 *
 * State gets onto a handle by SQL or by a method. All SQL passes `prepare`, `exec` or `pragma`, so own properties of the handle hide those of
 * the class, look at the text, and call them. Only after a text that can leave something is the handle compared with what it was before.
 */
export class Watch {
  readonly #db: SqliteDatabase
  readonly #exec: (sql: string) => unknown
  readonly #prepare: (sql: string) => SqliteStatement
  /** What a write is told, where the handle only reads. */
  readonly #refusal: string | undefined
  /** Seen since the last return. */
  #seen = 0
  /** Of statements that `onConnect` prepared: whoever has one can run it at any later time. */
  #prepared = 0
  #settled = false
  #before: { schema: string, pragmas: string } | undefined
  readonly #iterators = new Set<Held>()
  #readSchema: SqliteStatement | undefined
  #readPragmas: SqliteStatement | undefined
  #readQueryOnly: SqliteStatement | undefined
  #select: SqliteStatement | undefined

  /** Raised at each return. */
  #turn = 0
  /** What new statements are stamped with. */
  #stamp = forever
  /** Statements of an earlier turn are refused; where it is Infinity, everything is. */
  #floor = 0
  #closed = false

  /** One of the pool's transactions was begun, and has not been told of its end. */
  #inside = false
  /** The error with which SQLite ended it. */
  #endedBy: unknown
  /** It only reads: what `query_only` was before. */
  #queryOnly: unknown

  constructor (db: SqliteDatabase, refusal: string | undefined) {
    this.#db = db
    this.#refusal = refusal
    this.#exec = db.exec.bind(db)
    this.#prepare = db.prepare.bind(db)
    this.#hide()
    // As it will be when it is settled.
    if (refusal !== undefined) this.#exec('PRAGMA query_only = ON')
    this.#before = this.#read()
    if (refusal !== undefined) this.#exec('PRAGMA query_only = OFF')
  }

  ping (): void {
    this.#select ??= this.#prepare('select 1')
    this.#select.get()
  }

  /** What was set until now is no borrower's. */
  settle (): void {
    if (this.#settled) return
    this.#settled = true
    // Not before, so that an `onConnect` which makes temp tables, or the tables, does so here too.
    if (this.#refusal !== undefined) this.#exec('PRAGMA query_only = ON')
    if (this.#seen !== 0) this.#before = this.#read()
    this.#seen = 0
    this.#prepared &= ~unreadable
    this.#stamp = this.#turn
  }

  /** `onConnect` comes once more. */
  reopen (): void {
    this.#settled = false
    this.#stamp = forever
  }

  /** What was prepared until now can't be run any more. */
  endLease (): void {
    this.#floor = this.#stamp = ++this.#turn
  }

  close (): void {
    this.#closed = true
    this.#floor = Infinity
    if (!this.#db.open) return
    try {
      // Left alone, an iterator holds its snapshot even after `close()` (libsql), or makes it fail (better-sqlite3).
      this.endWork()
    } finally {
      this.#db.close()
    }
  }

  /** Ends what is under way: transaction and iterators. */
  endWork (): void {
    // To ask a closed handle of libsql whether it is in a transaction aborts the process.
    if (!this.#db.open) throw new Error('the SQLite handle is closed')
    if (this.#iterators.size > 0) this.#endIterators()
    if (this.#db.inTransaction) this.#exec('ROLLBACK')
    this.#leave()
  }

  /** For reset 'transaction'. */
  endWorkOnly (): void {
    this.endWork()
    if (this.#refusal !== undefined && ((this.#seen | this.#prepared) & (pragmas | unreadable)) !== 0) this.#exec('PRAGMA query_only = ON')
    this.#seen = 0
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

  // --- The pool's transactions ---

  async begin ({ readOnly = false }: TransactionOptions, signal: AbortSignal): Promise<Transaction<SqliteDatabase>> {
    if (!readOnly && this.#refusal !== undefined) throw new PoolError('FST_POOL_NOT_SUPPORTED', this.#refusal)
    if (readOnly && this.#refusal === undefined) {
      this.#readQueryOnly ??= this.#prepare('select query_only as state from pragma_query_only')
      this.#queryOnly = (this.#readQueryOnly.get() as { state: unknown }).state
      this.#exec('PRAGMA query_only = ON')
    }
    // Who is going to write takes the lock now: later, what was read until then may be out of date (SQLITE_BUSY_SNAPSHOT), and no waiting helps.
    await patiently(() => this.#exec(`BEGIN ${readOnly ? 'DEFERRED' : 'IMMEDIATE'}; SAVEPOINT ${outermost}`), signal)
    this.#inside = true
    return {
      connection: this.#db,
      commit: async () => {
        this.#release(outermost)
        await patiently(() => this.#exec('COMMIT'))
        this.#leave()
      },
      rollback: async () => { if (this.#db.open) this.endWork() },
      savepoint: async (name) => this.#savepoint(name),
    }
  }

  #savepoint (name: string): Transaction<SqliteDatabase> {
    // Where none is open, it would begin one.
    if (!this.#isOpen()) throw this.#ended()
    this.#exec(`SAVEPOINT ${quote(name)}`)
    return {
      connection: this.#db,
      commit: async () => { this.#release(name) },
      rollback: async () => {
        if (!this.#isOpen()) return
        if (this.#iterators.size > 0) this.#endIterators()
        // An iterator that writes takes the whole transaction along.
        if (!this.#db.inTransaction) return this.#lose(new Error('an iterator that writes was under way when a savepoint was rolled back'))
        try {
          this.#exec(`ROLLBACK TO ${quote(name)}; RELEASE ${quote(name)}`)
        } catch (error) {
          // It is not open any more: there is nothing to undo.
          if (!isNoSavepoint(error)) throw error
        }
      },
      savepoint: async (inner) => this.#savepoint(inner),
    }
  }

  #release (name: string): void {
    if (!this.#isOpen()) throw this.#ended()
    try {
      this.#exec(`RELEASE ${quote(name)}`)
    } catch (error) {
      throw isNoSavepoint(error) ? this.#ended() : error
    }
  }

  #isOpen (): boolean {
    return this.#endedBy === undefined && this.#db.open && this.#db.inTransaction
  }

  #ended (): PoolError {
    const why = this.#endedBy === undefined ? 'by a COMMIT or ROLLBACK that is not the pool\'s' : 'by SQLite, after an error'
    return new PoolError('FST_POOL_TRANSACTION_ENDED', `the transaction is no longer open: it was ended ${why}`, { cause: this.#endedBy })
  }

  /** What comes after would be committed statement by statement: until the pool has seen it, all is refused. */
  #lose (error: unknown): void {
    this.#endedBy = error
    this.#floor = Infinity
  }

  /** The pool knows of its end. */
  #leave (): void {
    this.#inside = false
    if (this.#endedBy !== undefined && !this.#closed) this.#floor = this.#turn
    this.#endedBy = undefined
    if (this.#queryOnly !== undefined) this.#exec(`PRAGMA query_only = ${this.#queryOnly}`)
    this.#queryOnly = undefined
  }

  // --- What is left ---

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
    for (const held of this.#iterators) {
      // Only better-sqlite3 has it. There the handle does nothing else while an iterator is open.
      if (held.iterator.return === undefined) continue
      held.iterator.return()
      this.#end(held, 'ended')
    }
    if (this.#iterators.size === 0) return
    // libsql has no end for an iterator, not even where a loop breaks off. Left alone, it keeps its snapshot: the next borrower would read old
    // rows and could not write. But every statement that is under way when the handle is interrupted fails at its next step, and has ended then.
    (this.#db as { interrupt?: () => void }).interrupt?.()
    for (const held of this.#iterators) {
      // Rows that the driver had fetched ahead (100) come first.
      for (let rows = 0; rows <= 200 && held.state === 'open'; rows++) {
        try {
          if (held.next().done) this.#end(held, 'ended')
        } catch {
          // That is its end.
          this.#end(held, 'ended')
        }
      }
      if (held.state === 'open') throw new Error('an iterator on the SQLite handle can not be ended')
    }
  }

  #end (held: Held, state: 'done' | 'ended'): void {
    held.state = state
    this.#iterators.delete(held)
  }

  /** Remembers it until its last row, or its failure. Asked again after that, libsql's would begin anew. */
  #follow (iterator: IterableIterator<unknown>): IterableIterator<unknown> {
    const held: Held = { iterator, next: iterator.next.bind(iterator), turn: this.#turn, state: 'open' }
    this.#iterators.add(held)
    iterator.next = () => {
      if (held.state === 'ended') throw this.#cut(held)
      if (held.state === 'done') return { done: true, value: undefined }
      try {
        const result = held.next()
        if (result.done) this.#end(held, 'done')
        return result
      } catch (error) {
        this.#end(held, 'done')
        throw this.#told(error)
      }
    }
    return iterator
  }

  /** No end of the rows: whoever asks must not take those that it got for all. */
  #cut ({ turn }: Held): PoolError {
    if (turn === this.#turn && !this.#closed) return new PoolError('FST_POOL_TRANSACTION_ENDED', 'the iterator was ended by a rollback')
    return new PoolError('FST_POOL_LEASE_RELEASED', 'the iterator is of a lease that has ended')
  }

  // --- The seam ---

  /** What the borrower gets instead of the driver's error. */
  #told (error: unknown): unknown {
    if (this.#inside && this.#endedBy === undefined && this.#db.open && !this.#db.inTransaction) this.#lose(error)
    const refusal = this.#queryOnly === undefined ? this.#refusal : 'this transaction only reads: begin it without readOnly to write'
    if (refusal === undefined || codeOf(error) !== 'SQLITE_READONLY') return error
    return new PoolError('FST_POOL_NOT_SUPPORTED', refusal, { cause: error })
  }

  #refused (): PoolError {
    if (this.#closed) return new PoolError('FST_POOL_LEASE_RELEASED', 'this SQLite handle is closed: its lease has ended')
    if (this.#floor === Infinity) return this.#ended()
    const message = 'this statement was prepared in a lease that has ended: prepare it again, or in onConnect, once for all leases of a connection'
    return new PoolError('FST_POOL_LEASE_RELEASED', message)
  }

  #hide (): void {
    const db = this.#db
    const prepare = this.#prepare
    const exec = this.#exec
    const pragma = db.pragma.bind(db)
    let inside = false
    const follow = (iterator: IterableIterator<unknown>) => this.#follow(iterator)
    const admit = (turn: number) => { if (turn < this.#floor) throw this.#refused() }
    const told = (error: unknown) => this.#told(error)
    // Shared by all statements of the handle, so that a prepare makes no functions.
    const driver = Object.getPrototypeOf(prepare('select 1')) as SqliteStatement
    function run (this: Stamped, ...params: unknown[]) {
      admit(this[turnOf])
      try {
        return driver.run.apply(this, params)
      } catch (error) {
        throw told(error)
      }
    }
    function get (this: Stamped, ...params: unknown[]) {
      admit(this[turnOf])
      try {
        return driver.get.apply(this, params)
      } catch (error) {
        throw told(error)
      }
    }
    function iterate (this: Stamped, ...params: unknown[]) {
      // libsql's `all` calls `iterate`.
      if (inside) return driver.iterate.apply(this, params)
      admit(this[turnOf])
      try {
        return follow(driver.iterate.apply(this, params))
      } catch (error) {
        throw told(error)
      }
    }
    function all (this: Stamped, ...params: unknown[]) {
      admit(this[turnOf])
      inside = true
      try {
        return driver.all.apply(this, params)
      } catch (error) {
        throw told(error)
      } finally {
        inside = false
      }
    }
    const own: Record<string, unknown> = {
      prepare: (sql: string) => {
        admit(forever)
        const statement = prepare(sql) as Stamped
        if (mayLeave.test(sql)) {
          const what = judge(sql)
          this.#seen |= what
          if (!this.#settled) this.#prepared |= what
        }
        statement.run = run
        statement.get = get
        statement.all = all
        statement.iterate = iterate
        statement[turnOf] = this.#stamp
        return statement
      },
      exec: (sql: string) => {
        admit(forever)
        if (mayLeave.test(sql)) this.#seen |= judge(sql)
        try {
          return exec(sql)
        } catch (error) {
          throw told(error)
        }
      },
      // Nobody gets hold of the statement, so `#prepared` stays as it is, though libsql's calls `prepare`.
      pragma: (source: string, options?: { simple?: boolean }) => {
        admit(forever)
        this.#seen |= judge(`PRAGMA ${source}`)
        const prepared = this.#prepared
        try {
          return options === undefined ? pragma(source) : pragma(source, options)
        } catch (error) {
          throw told(error)
        } finally {
          this.#prepared = prepared
        }
      },
    }
    // better-sqlite3's begins by itself, and not by `exec`.
    if (this.#refusal !== undefined) {
      const transaction = db.transaction.bind(db)
      own.transaction = <A extends unknown[], R>(fn: (...args: A) => R) => {
        const made = transaction(fn)
        const telling = (run: (...args: A) => R) => function (this: unknown, ...args: A): R {
          try {
            return run.apply(this, args)
          } catch (error) {
            throw told(error)
          }
        }
        const [deferred, immediate, exclusive] = [made.deferred, made.immediate, made.exclusive].map(telling)
        return Object.assign(telling(made), { default: deferred, deferred, immediate, exclusive, database: db })
      }
    }
    const { interrupt } = db as { interrupt?: () => void }
    if (interrupt !== undefined) {
      own.interrupt = () => {
        // On a closed handle libsql's aborts the process.
        if (db.open) interrupt.call(db)
      }
    }
    for (const name of ['function', 'aggregate', 'table', 'loadExtension', 'authorizer', 'unsafeMode', 'defaultSafeIntegers']) {
      const method: unknown = db[name as keyof SqliteDatabase]
      if (typeof method !== 'function') continue
      own[name] = (...args: unknown[]) => {
        admit(forever)
        this.#seen |= unreadable
        return method.apply(db, args)
      }
    }
    for (const [name, value] of Object.entries(own)) Object.defineProperty(db, name, { value, writable: true, configurable: true })
  }
}

interface Schema { temp: Array<[type: string, name: string, sql: string]>, attached: Array<[name: string, file: string]> }

function isNoSavepoint (error: unknown): boolean {
  return error instanceof Error && error.message.startsWith('no such savepoint')
}

function quote (name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}
