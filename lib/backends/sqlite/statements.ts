import { isBusy, type Dialect, type Handle, type Statement } from './dialect.js'
import { stop, type Iterators } from './iterators.js'

/** On each statement: the turn in which it was prepared. */
const turnOf: unique symbol = Symbol('turn')
/** On each statement: whether its rows are fetched at once. */
const eagerOf: unique symbol = Symbol('eager')

interface Stamped extends Statement { [turnOf]: number, [eagerOf]: boolean }

/**
 * A write that returns rows, or a PRAGMA. Read row by row it would be under way meanwhile, and what others write would
 * not be committed. It does all its work at the first row, and keeps the rows in memory.
 */
const givesRowsOfWrites = /\b(?:returning|pragma)\b/i

/** What statements ask of their handle. */
export interface StatementSite {
  readonly connection: Handle
  readonly isOpen: boolean
  readonly iterators: Iterators
  /** @throws where a statement of that turn is refused */
  admit (turn: number): void
  /** What the borrower gets instead of the driver's error. */
  told (error: unknown): unknown
  /** Calls `fn` while every write fails. */
  whileReadOnly (fn: () => void): void
  /** A statement is under way, and nothing ends it. */
  stuck (): void
}

/**
 * The methods that a handle's statements get in place of the driver's own. One set for all statements, so that a
 * prepare makes no functions.
 */
export class Statements {
  readonly #driver: Statement
  readonly #dialect: Dialect
  readonly #site: StatementSite
  readonly #own: Statement
  #tally: Statement | undefined

  /** @param driver the methods of the driver's class */
  constructor (dialect: Dialect, driver: Statement, site: StatementSite) {
    this.#driver = driver
    this.#dialect = dialect
    this.#site = site
    this.#own = this.#make()
  }

  stamp (statement: Statement, sql: string, turn: number): Statement {
    const stamped = statement as Stamped
    stamped.run = this.#own.run
    stamped.get = this.#own.get
    stamped.all = this.#own.all
    stamped.iterate = this.#own.iterate
    stamped[turnOf] = turn
    stamped[eagerOf] = !this.#dialect.oneAtATime && givesRowsOfWrites.test(sql)
    return stamped
  }

  /**
   * Ends a statement that met a lock. libsql leaves it under way, and counts writers that are under way: what others
   * write on the handle is committed when the last of them ends. Run on while all writes are refused, the statement
   * fails before it does anything, and that ends it.
   *
   * @returns whether it has done its work after all, as a COMMIT may
   */
  reset (statement: Statement): boolean {
    if (!this.#dialect.leavesOpen || !this.#site.isOpen) return false
    let busy = false
    let done = false
    this.#site.whileReadOnly(() => {
      try {
        // The only method of libsql's that goes on where the statement is.
        this.#driver.get.call(statement)
        done = !this.#dialect.isReader(statement)
      } catch (error) {
        busy = isBusy(error)
      }
    })
    if (!busy) return done
    // A read, and the lock is still there.
    if (this.#site.iterators.size > 0) this.#site.stuck()
    else stop(this.#site.connection, this.#driver, statement)
    return false
  }

  #make (): Statement {
    const site = this.#site
    const { iterators } = site
    const driver = this.#driver
    const dialect = this.#dialect
    const failed = <T>(error: unknown, statement: Statement, done: () => T): T => this.#failed(error, statement, done)
    const runAll = (statement: Stamped, params: unknown[]) => this.#runAll(statement, params)
    const tally = () => this.#count()
    const admitted = (statement: Stamped) => {
      site.admit(statement[turnOf])
      // better-sqlite3 refuses to run it, as it refuses all else then.
      if (!dialect.oneAtATime && iterators.size > 0) iterators.supersede(statement)
    }
    /** libsql's `all` calls `iterate`. */
    let inside = false
    function run (this: Stamped, ...params: unknown[]) {
      admitted(this)
      try {
        return dialect.leavesOpen && dialect.isReader(this) ? runAll(this, params) : driver.run.apply(this, params)
      } catch (error) {
        return failed(error, this, tally)
      }
    }
    function get (this: Stamped, ...params: unknown[]) {
      admitted(this)
      try {
        return driver.get.apply(this, params)
      } catch (error) {
        return failed(error, this, () => undefined)
      }
    }
    function iterate (this: Stamped, ...params: unknown[]) {
      if (inside) return driver.iterate.apply(this, params)
      admitted(this)
      try {
        const rows = driver.iterate.apply(this, params)
        return this[eagerOf] ? iterators.follow(allOf(rows).values(), undefined) : iterators.follow(rows, this)
      } catch (error) {
        return failed(error, this, () => [].values() as IterableIterator<unknown>)
      }
    }
    function all (this: Stamped, ...params: unknown[]) {
      admitted(this)
      inside = true
      try {
        return driver.all.apply(this, params)
      } catch (error) {
        return failed<unknown[]>(error, this, () => [])
      } finally {
        inside = false
      }
    }
    return { run, get, all, iterate }
  }

  /** @param done makes the result where the statement has done its work after all */
  #failed<T> (error: unknown, statement: Statement, done: () => T): T {
    const isDone = isBusy(error) && this.reset(statement)
    const told = this.#site.told(error)
    if (!isDone) throw told
    return done()
  }

  /** libsql's `run` takes one step: with rows to come, it would leave the statement under way. */
  #runAll (statement: Stamped, params: unknown[]): unknown {
    const rows = this.#driver.iterate.apply(statement, params)
    while (rows.next().done !== true) { /* Nobody wants it. */ }
    return statement[eagerOf] ? this.#count() : { ...this.#count(), changes: 0 }
  }

  /** The result of libsql's `run`. */
  #count (): { changes: unknown, lastInsertRowid: unknown } {
    this.#tally ??= this.#site.connection.prepare('select changes(), last_insert_rowid()')
    const [changes, lastInsertRowid] = Object.values(this.#driver.get.call(this.#tally) as object)
    return { changes, lastInsertRowid }
  }
}

/**
 * All rows. Where one fails, node:sqlite leaves the statement under way unless it is told that nobody wants the rest.
 */
function allOf (rows: IterableIterator<unknown>): unknown[] {
  try {
    return [...rows]
  } catch (error) {
    rows.return?.()
    throw error
  }
}
