import { PoolError } from '../../engine/errors.js'
import type { Activity, Transaction, TransactionOptions } from '../../../types/connector.js'
import { Session, type ResetMode } from '../shared/session.js'
import { codeOf, first, isBusy, type Dialect, type Handle, type Statement } from './dialect.js'
import { Iterators, type IteratorSite } from './iterators.js'
import { Rivals } from './lock.js'
import { judge, mayLeave, pragmas, Residue, unreadable } from './residue.js'
import { Statements, type StatementSite } from './statements.js'
import { begin, ended, type Host } from './transaction.js'

/** The turn of statements that `onConnect` prepared: they outlive all leases, but not the handle. */
const forever = Number.MAX_SAFE_INTEGER

/** What a handle is for. */
interface Duty {
  /** The message for a write, where the handle only reads. */
  readonly refusal?: string | undefined
  /** A database in memory: nobody else has it, and its data would be lost with its handle. */
  readonly memory: boolean
  readonly mode: ResetMode
}

/** The methods that some drivers' handles have and others have not. */
interface Methods {
  pragma? (source: string, ...options: unknown[]): unknown
  transaction? (fn: Run): Record<'default' | 'deferred' | 'immediate' | 'exclusive', Run> & Run
  interrupt? (): void
}
type Run = (this: unknown, ...args: unknown[]) => unknown

/**
 * Keeps what a borrower leaves on a handle from the next one, and sees to it that a write which resolved is stored.
 *
 * State gets onto a handle by SQL or by a method. All SQL passes `prepare`, `exec` or `pragma`, so own properties of
 * the handle hide those of the class, look at the text, and call them. Only after a statement that can leave something
 * is the handle compared with its earlier state.
 */
export class SqliteSession extends Session<Handle> implements Host, IteratorSite, StatementSite {
  readonly #dialect: Dialect
  readonly exec: (sql: string) => unknown
  readonly #prepare: Handle['prepare']
  readonly #duty: Duty
  readonly refusal: string | undefined
  /** Whether somebody else's lock may keep its borrower from writing. */
  readonly #writesShared: boolean
  /** What statements may have changed since the last return. */
  #seen = 0
  /** What the statements that `onConnect` prepared may change: a borrower may run them at any later time. */
  #prepared = 0
  #settled = false
  readonly #residue: Residue
  readonly iterators: Iterators
  readonly #statements: Statements
  readonly #rivals: Rivals
  /** Queries of our own. */
  readonly #queries = new Map<string, Statement>()
  /** A statement is under way, and nothing ends it. */
  #stuck = false

  /** The number of the lease: raised at each return. */
  turn = 0
  /** The turn that new statements get. */
  #stamp = forever
  /** Statements of an earlier turn are refused. Infinity: all are. */
  #floor = 0
  #closed = false

  /** A transaction of the pool's is open, or its end has not been told to the pool. */
  #inside = false
  /** The error with which SQLite ended that transaction. */
  endedBy: unknown
  /** Where that transaction only reads: the value of `query_only` before it. */
  #queryOnly: unknown

  constructor (db: Handle, dialect: Dialect, duty: Duty) {
    super(db)
    const { refusal, memory } = duty
    this.#dialect = dialect
    this.#duty = duty
    this.refusal = refusal
    this.#writesShared = refusal === undefined && !memory
    this.exec = db.exec.bind(db)
    this.#prepare = db.prepare.bind(db)
    this.#residue = new Residue((sql) => this.#ask(sql), this.exec)
    this.#rivals = new Rivals(() => this.#ask('PRAGMA data_version'))
    const driver = Object.getPrototypeOf(this.#prepare('select 1')) as Statement
    this.iterators = new Iterators(dialect, driver, this)
    this.#statements = new Statements(dialect, driver, this)
    this.#hide()
    // The state that it will have once `onConnect` is done.
    if (refusal !== undefined) this.exec('PRAGMA query_only = ON')
    this.#residue.remember()
    if (refusal !== undefined) this.exec('PRAGMA query_only = OFF')
  }

  override get broken (): boolean {
    return this.#stuck || !this.isOpen
  }

  override describe (): Activity {
    // Asking a closed handle of libsql whether it is in a transaction aborts the process.
    if (!this.isOpen) return { doing: 'idle' }
    // All but an iterator is done when it returns.
    return { doing: this.iterators.size > 0 ? 'query' : this.inTransaction ? 'idle in transaction' : 'idle' }
  }

  override async ping (): Promise<boolean> {
    this.#ask('select 1')
    if (this.#writesShared) this.#rivals.look()
    return true
  }

  override unfit (): boolean {
    if (this.broken) return true
    if (!this.#settled) this.#settle()
    return false
  }

  /** `onConnect` is done: what was set until now is no borrower's. */
  #settle (): void {
    this.#settled = true
    // Only now, so that an `onConnect` which makes tables works here too.
    if (this.refusal !== undefined) this.exec('PRAGMA query_only = ON')
    if (this.#seen !== 0) this.#residue.remember()
    this.#seen = 0
    this.#prepared &= ~unreadable
    this.#stamp = this.turn
    if (this.#writesShared) this.#rivals.begin()
  }

  /** `onConnect` runs once more. */
  reopen (): void {
    this.#settled = false
    this.#stamp = forever
  }

  /** What keeps the next borrower from writing now. Only looked for where somebody else writes. */
  obstacle (): string | undefined {
    if (!this.#writesShared || !this.#rivals.about) return undefined
    // With a busy timeout the app has chosen to wait by blocking the event loop.
    if (this.#residue.pragma('busy_timeout') !== '0' || this.inTransaction) return undefined
    try {
      this.exec('BEGIN IMMEDIATE; ROLLBACK')
      return undefined
    } catch (error) {
      this.met(error)
      // The borrower will meet any other error himself.
      return isBusy(error) ? 'the lock of the SQLite file, which another process has to write' : undefined
    }
  }

  // --- Reset ---------------------------------------------------------------------------------------------------------

  /** The only promise is a rejected one: nothing here waits. */
  undo (): Promise<void> | undefined {
    try {
      if (this.#duty.mode !== 'transaction') this.rest()
      else this.#restOnly()
      return undefined
    } catch (error) {
      return Promise.reject(error)
    }
  }

  /**
   * Makes the handle clean for the next borrower.
   *
   * @throws where something is left that only a new handle is without, and there can be one
   */
  rest (): void {
    this.#endLease()
    this.endWork()
    const changed = this.#seen | this.#prepared
    if (changed === 0) return
    // Before `#seen` is cleared: where this fails, `destroy` tries it again.
    if (this.#duty.memory) this.#residue.undo(changed)
    this.#seen = 0
    if (this.#duty.memory) return
    const left = this.#residue.left(changed)
    if (left.length > 0) throw new Error(`the SQLite handle was left with ${left.join(' and ')}: it is opened anew`)
  }

  #restOnly (): void {
    this.#endLease()
    this.endWork()
    const switchedOff = ((this.#seen | this.#prepared) & (pragmas | unreadable)) !== 0
    if (this.refusal !== undefined && switchedOff) this.exec('PRAGMA query_only = ON')
    this.#seen = 0
  }

  /** Statements that were prepared until now can't be run any more. */
  #endLease (): void {
    this.#floor = this.#stamp = ++this.turn
  }

  /** Ends what is under way: transaction and iterators. */
  endWork (): void {
    // Asking a closed handle of libsql whether it is in a transaction aborts the process.
    if (!this.isOpen) throw new Error('the SQLite handle is closed')
    this.#rollBack()
    this.left()
  }

  #rollBack (): void {
    this.endIterators()
    if (this.inTransaction) this.exec('ROLLBACK')
  }

  protected override close (): void {
    this.#closed = true
    this.#floor = Infinity
    if (!this.isOpen) return
    try {
      // An open iterator would keep its snapshot after `close()` (libsql), or make it fail (better-sqlite3).
      this.endWork()
    } finally {
      this.connection.close()
    }
  }

  // --- The pool's transactions ---------------------------------------------------------------------------------------

  begin (options: TransactionOptions, signal: AbortSignal): Promise<Transaction<Handle>> {
    return begin(this, options, signal)
  }

  get isOpen (): boolean {
    return this.#dialect.isOpen(this.connection)
  }

  get inTransaction (): boolean {
    return this.#dialect.inTransaction(this.connection)
  }

  endIterators (): void {
    if (this.iterators.size > 0) this.iterators.end()
  }

  readOnly (): void {
    this.#queryOnly = this.#ask('PRAGMA query_only')
    this.exec('PRAGMA query_only = ON')
  }

  entered (): void {
    this.#inside = true
  }

  /** Later statements would be committed one by one, so all are refused until the pool has seen it. */
  #lose (error: unknown): void {
    this.endedBy = error
    this.#floor = Infinity
  }

  left (): void {
    this.#inside = false
    if (this.endedBy !== undefined && !this.#closed) this.#floor = this.turn
    this.endedBy = undefined
    if (this.#queryOnly !== undefined) this.exec(`PRAGMA query_only = ${this.#queryOnly}`)
    this.#queryOnly = undefined
  }

  // --- Queries of our own --------------------------------------------------------------------------------------------

  /** Runs a query of our own: the one value of its one row. */
  #ask (sql: string): unknown {
    let statement = this.#queries.get(sql)
    if (statement === undefined) {
      statement = this.#prepare(sql)
      this.#queries.set(sql, statement)
    }
    try {
      return first(statement.get())
    } catch (error) {
      if (isBusy(error)) this.#statements.reset(statement)
      throw error
    }
  }

  whileReadOnly (fn: () => void): void {
    const before = this.#ask('PRAGMA query_only')
    this.exec('PRAGMA query_only = ON')
    try {
      fn()
    } finally {
      this.exec(`PRAGMA query_only = ${before}`)
    }
  }

  // --- The seam ------------------------------------------------------------------------------------------------------

  met (error: unknown): void {
    if (this.#writesShared && isBusy(error)) this.#rivals.met()
  }

  told (error: unknown): unknown {
    this.met(error)
    if (this.#inside && this.endedBy === undefined && this.isOpen && !this.inTransaction) this.#lose(error)
    const refusal = this.#queryOnly === undefined
      ? this.refusal
      : 'this transaction only reads: begin it without readOnly to write'
    if (refusal === undefined || codeOf(error) !== 'SQLITE_READONLY') return error
    return new PoolError('FST_POOL_NOT_SUPPORTED', refusal, { cause: error })
  }

  admit (turn: number): void {
    if (turn >= this.#floor) return
    if (this.#floor === Infinity && !this.#closed) throw ended(this.endedBy)
    throw new PoolError('FST_POOL_LEASE_RELEASED', this.#closed
      ? 'this SQLite handle is closed: its lease has ended'
      : 'this statement was prepared in a lease that has ended: prepare it again, or in onConnect, once for all ' +
        'leases of a connection')
  }

  cut (turn: number): Error {
    const ofThisLease = turn === this.turn && !this.#closed
    if (!ofThisLease) return new PoolError('FST_POOL_LEASE_RELEASED', 'the iterator is of a lease that has ended')
    return new PoolError('FST_POOL_TRANSACTION_ENDED',
      'the iterator was ended by a rollback, or its statement was run again')
  }

  failed (error: unknown, statement: Statement | undefined): unknown {
    if (statement !== undefined && isBusy(error)) this.#statements.reset(statement)
    return this.told(error)
  }

  stuck (): void {
    this.#stuck = true
  }

  #hide (): void {
    const db = this.connection as Handle & Methods
    const prepare = this.#prepare
    const exec = this.exec
    const own: Record<string, unknown> = {
      prepare: (sql: string, ...more: unknown[]) => {
        this.admit(forever)
        const statement = prepare(sql, ...more)
        if (mayLeave.test(sql)) {
          const what = judge(sql)
          this.#seen |= what
          if (!this.#settled) this.#prepared |= what
        }
        return this.#statements.stamp(statement, sql, this.#stamp)
      },
      exec: (sql: string) => {
        this.admit(forever)
        if (mayLeave.test(sql)) this.#seen |= judge(sql)
        try {
          return exec(sql)
        } catch (error) {
          throw this.told(error)
        }
      },
    }
    if (db.pragma !== undefined) own.pragma = this.#pragmaOf(db.pragma.bind(db))
    if (db.transaction !== undefined) own.transaction = this.#transactionOf(db.transaction.bind(db))
    if (db.interrupt !== undefined) {
      const interrupt = db.interrupt.bind(db)
      own.interrupt = () => {
        // libsql's `interrupt` aborts the process on a closed handle.
        if (this.#dialect.isOpen(db)) interrupt()
      }
    }
    for (const name of methodsOf(db)) {
      if (name in own || this.#dialect.leaveNothing.has(name)) continue
      const method = db[name as keyof Handle] as Run
      own[name] = (...args: unknown[]) => {
        this.admit(forever)
        this.#seen |= unreadable
        return method.apply(db, args)
      }
    }
    for (const [name, value] of Object.entries(own)) {
      Object.defineProperty(db, name, { value, writable: true, configurable: true })
    }
  }

  /** `#prepared` stays as it is, though libsql's `pragma` calls `prepare`: nobody gets hold of that statement. */
  #pragmaOf (pragma: NonNullable<Methods['pragma']>) {
    return (source: string, ...options: unknown[]) => {
      this.admit(forever)
      this.#seen |= judge(`PRAGMA ${source}`)
      const prepared = this.#prepared
      try {
        return pragma(source, ...options)
      } catch (error) {
        throw this.told(error)
      } finally {
        this.#prepared = prepared
      }
    }
  }

  /**
   * better-sqlite3's transactions begin by themselves, and not by `exec`: a lock that they meet is seen only here. A
   * transaction of libsql's stays open where its ROLLBACK fails, as it does behind an interrupt. What its borrower
   * writes after the error would be lost at the return, so it is rolled back here.
   */
  #transactionOf (transaction: NonNullable<Methods['transaction']>) {
    const isOpen = () => this.isOpen && this.inTransaction
    const failed = (error: unknown, wasOpen: boolean) => {
      const told = this.told(error)
      if (!wasOpen && isOpen()) this.#rollBack()
      return told
    }
    const watched = (run: Run): Run => function (this: unknown, ...args: unknown[]) {
      const wasOpen = isOpen()
      try {
        return run.apply(this, args)
      } catch (error) {
        throw failed(error, wasOpen)
      }
    }
    return (fn: Run) => {
      const made = transaction(fn)
      const [deferred, immediate, exclusive] = [made.deferred, made.immediate, made.exclusive].map(watched)
      const database = this.connection
      return Object.assign(watched(made), { default: deferred, deferred, immediate, exclusive, database })
    }
  }
}

/** The names of all methods that its classes have. */
function methodsOf (db: object): string[] {
  const names = new Set<string>()
  for (let proto = Object.getPrototypeOf(db); proto !== Object.prototype; proto = Object.getPrototypeOf(proto)) {
    for (const [name, { value }] of Object.entries(Object.getOwnPropertyDescriptors(proto))) {
      if (typeof value === 'function' && name !== 'constructor') names.add(name)
    }
  }
  return [...names]
}
