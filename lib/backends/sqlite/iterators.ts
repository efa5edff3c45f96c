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
   * What a borrower is told who asks an iterator that was ended: no end of the rows, or it would take those that it got
   * for all.
   */
  cut (turn: number): Error
  /** What the borrower gets instead of the driver's error. */
  failed (error: unknown, statement: Statement | undefined): unknown
}

/**
 * The iterators of a handle that are under way: each keeps its snapshot, or makes the handle busy for all
 * (better-sqlite3).
 */
export class Iterators {
  readonly #dialect: Dialect
  /** The class' own methods. */
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
   * Remembers it until its last row, its failure, or until nobody wants more of it. Asked again after that, libsql's
   * would begin anew.
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
        // Node's own leaves its statement under way.
        leave?.()
        this.#end(held, 'done')
        throw this.#site.failed(error, statement)
      }
    }
    // Where a loop breaks off.
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

  /** The statement is about to be run again: its iterator would go on with the rows of the new run. */
  supersede (statement: Statement): void {
    for (const held of this.#held) {
      if (held.statement !== statement) continue
      this.#end(held, held.state === 'left' ? 'done' : 'ended')
      // `get` of libsql goes on where the statement is, and resets it behind.
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
   * libsql has no end for an iterator. One by one they can't be ended either: an interrupt is for all of the handle.
   */
  #endLeft (): void {
    if (this.#held.size > 0 && [...this.#held].every(({ state }) => state === 'left')) this.#interrupt()
  }

  /**
   * Left alone, an iterator of libsql keeps its snapshot: the next borrower would read old rows and could not write.
   * But every statement that is under way when the handle is interrupted fails at its next step, and has ended then.
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

/**
 * Ends a statement of libsql that only reads, wherever it is. Others that are under way are ended at their next step.
 *
 * @throws where it can't be ended
 */
export function stop (db: Handle, driver: Statement, statement: Statement): void {
  for (let tries = 0; tries < 3; tries++) {
    (db as Handle & { interrupt (): void }).interrupt()
    // It fails at once; or it had come to its end, and is run and reset.
    const error = quietly(() => driver.get.call(statement))
    if (error === undefined || (error as { code?: unknown }).code === 'SQLITE_INTERRUPT') return
  }
  throw new Error('a statement on the SQLite handle can not be ended')
}

/** What it throws, if it does. */
function quietly (fn: () => unknown): unknown {
  try {
    fn()
    return undefined
  } catch (error) {
    return error
  }
}
