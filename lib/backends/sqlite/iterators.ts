import type { Dialect, Handle, Statement } from './dialect.js'

/** An iterator that may have more rows. */
interface Held {
  /** The driver's own. */
  readonly next: () => IteratorResult<unknown>
  /** The driver's own. libsql has none. */
  readonly leave: (() => unknown) | undefined
  /** Undefined: its rows were all fetched when it was made. */
  readonly statement: Statement | undefined
  readonly turn: number
  /** 'left': its borrower wants no more rows, and its statement is still under way. */
  state: 'open' | 'left' | 'done' | 'ended'
}

/** What iterators ask of their handle. */
export interface IteratorSite {
  readonly connection: Handle
  /** The turn of the lease that is out. */
  readonly turn: number
  /**
   * The error for a borrower who goes on with an iterator that was ended. Not the end of the rows: he would take those
   * that he got for all.
   */
  cut (turn: number): Error
  /** What the borrower gets instead of the driver's error. */
  failed (error: unknown, statement: Statement | undefined): unknown
}

/**
 * The iterators of a handle that are under way. Each keeps its snapshot, or keeps the handle busy for all
 * (better-sqlite3).
 */
export class Iterators {
  readonly #dialect: Dialect
  /** The methods of the driver's class. */
  readonly #driver: Statement
  readonly #site: IteratorSite
  readonly #held = new Set<Held>()

  constructor (dialect: Dialect, driver: Statement, site: IteratorSite) {
    this.#dialect = dialect
    this.#driver = driver
    this.#site = site
  }

  /** How many there are. */
  get size (): number {
    return this.#held.size
  }

  /**
   * Follows an iterator until its last row, its failure, or until nobody wants more of it. After that it must not be
   * asked again: libsql's would begin anew.
   */
  follow (iterator: IterableIterator<unknown>, statement: Statement | undefined): IterableIterator<unknown> {
    const { turn } = this.#site
    const leave = iterator.return?.bind(iterator)
    const held: Held = { next: iterator.next.bind(iterator), leave, statement, turn, state: 'open' }
    this.#held.add(held)
    iterator.next = () => {
      if (held.state === 'ended') throw this.#site.cut(turn)
      if (held.state !== 'open') return { done: true, value: undefined }
      try {
        const result = held.next()
        if (result.done) this.#end(held, 'done')
        if (result.done) this.#endLeft()
        return result
      } catch (error) {
        // node:sqlite leaves the statement under way.
        leave?.()
        this.#end(held, 'done')
        throw this.#site.failed(error, statement)
      }
    }
    // Called where a loop breaks off.
    iterator.return = (value?: unknown) => {
      if (held.state === 'open') {
        if (leave !== undefined || statement === undefined) this.#end(held, 'done')
        else held.state = 'left'
        leave?.()
        this.#endLeft()
      }
      return { done: true, value }
    }
    return iterator
  }

  /** Ends the iterator of a statement that is about to be run again: it would go on with the rows of the new run. */
  supersede (statement: Statement): void {
    for (const held of this.#held) {
      if (held.statement !== statement) continue
      this.#end(held, held.state === 'left' ? 'done' : 'ended')
      // libsql's `get` goes on where the statement is, and resets it afterwards.
      if (this.#dialect.leavesOpen) quietly(() => this.#driver.get.call(statement))
    }
  }

  /** Ends all that are under way. */
  end (): void {
    for (const held of this.#held) {
      if (held.statement !== undefined && held.leave === undefined) continue
      held.leave?.()
      this.#end(held, 'ended')
    }
    this.#interrupt()
  }

  /**
   * libsql can't end an iterator, and an interrupt is for the whole handle. So it is sent when nobody wants any of the
   * rows that are left.
   */
  #endLeft (): void {
    if (this.#held.size > 0 && [...this.#held].every(({ state }) => state === 'left')) this.#interrupt()
  }

  /**
   * An iterator of libsql that is left alone keeps its snapshot: the next borrower would read old rows and could not
   * write. But every statement that is under way at an interrupt fails at its next step, and has ended then.
   */
  #interrupt (): void {
    for (const held of this.#held) {
      stop(this.#site.connection, this.#driver, held.statement!)
      this.#end(held, held.state === 'left' ? 'done' : 'ended')
    }
  }

  #end (held: Held, state: 'done' | 'ended'): void {
    held.state = state
    this.#held.delete(held)
  }
}

/** Ends a statement of libsql that only reads, wherever it is. Others that are under way end at their next step. */
export function stop (db: Handle, driver: Statement, statement: Statement): void {
  for (let tries = 0; tries < 3; tries++) {
    (db as Handle & { interrupt (): void }).interrupt()
    // It fails at once, or it was at its end, and is run and reset.
    const error = quietly(() => driver.get.call(statement))
    if (error === undefined || (error as { code?: unknown }).code === 'SQLITE_INTERRUPT') return
  }
  throw new Error('a statement on the SQLite handle can not be ended')
}

/** What `fn` throws; undefined where it does not. */
function quietly (fn: () => unknown): unknown {
  try {
    fn()
    return undefined
  } catch (error) {
    return error
  }
}
