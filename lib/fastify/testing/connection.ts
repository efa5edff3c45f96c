// The one connection of a test that is rolled back: one transaction, in which whatever the app does is nested.
import type { Connector, Transaction } from '../../../types/connector.js'
import type { Lease } from '../../../types/pool.js'
import { PoolError } from '../../engine/errors.js'
import { isBeside } from '../../engine/lease.js'
import { deadError, viewOf, type Answers } from './view.js'

/** One lease's stand-in for the connection. */
interface View<C> {
  readonly answers: Answers
  /** The lease that it was lent as. */
  lease: Lease<C> | undefined
}

/** A transaction of the app's: a savepoint. */
interface Level<C> {
  readonly view: View<C>
  readonly savepoint: Transaction<C>
  /** 'stored': committed, and not released yet, since others are open within it. */
  state: 'open' | 'stored' | 'undone'
  /** Called when it is not open any more. */
  ended: () => void
  readonly over: Promise<void>
}

const NAME = 'fastify_pool_test'

export class OneConnection<C extends object> {
  readonly #backend: Connector<C>
  readonly #connection: C
  readonly #isPostgres: boolean
  readonly #isGone: () => boolean
  #base!: Transaction<C>
  /** Set from the beginning: whether it is still there tells whether the transaction is. */
  #mark!: Transaction<C>
  /** The savepoints that are there, each within the one before. */
  readonly #levels: Array<Level<C>> = []
  readonly #views = new WeakMap<C, View<C>>()
  /** What is done to the transaction, one after the other; never rejects. */
  #last: Promise<unknown> = Promise.resolve()
  #count = 0

  private constructor (backend: Connector<C>, connection: C, isGone: () => boolean) {
    this.#backend = backend
    this.#connection = connection
    this.#isPostgres = backend.system === 'postgresql'
    this.#isGone = isGone
  }

  /**
   * Begins the transaction.
   *
   * @throws `FST_POOL_NOT_SUPPORTED` where the database has no savepoints; what it says itself
   */
  static async begin<C extends object> (
    backend: Connector<C>, connection: C, isGone: () => boolean, signal: AbortSignal
  ): Promise<OneConnection<C>> {
    const one = new OneConnection(backend, connection, isGone)
    one.#base = await backend.transactions!.begin(connection, {}, signal)
    if (one.#base.savepoint === undefined) {
      await one.#base.rollback()
      throw new PoolError('FST_POOL_NOT_SUPPORTED', `rollbackEach: ${backend.system} has no savepoints`)
    }
    one.#mark = await one.#base.savepoint(`${NAME}_mark`)
    return one
  }

  get isDead (): boolean {
    return this.#isGone() || this.#backend.isBroken?.(this.#connection) === true
  }

  // --- Views ---------------------------------------------------------------------------------------------------------

  /** A stand-in for the connection, for one lease. */
  view (): C {
    const query = (...args: unknown[]): unknown => this.#query(args)
    const answers: Answers = { dead: undefined, ...(this.#isPostgres && { own: { query } }) }
    const view = viewOf(this.#connection, answers)
    this.#views.set(view, { answers, lease: undefined })
    return view
  }

  /** A stand-in was lent. */
  lent (connection: C, lease: Lease<C>): void {
    this.#views.get(connection)!.lease = lease
  }

  kill (connection: C): true {
    this.#views.get(connection)!.answers.dead = deadError()
    return true
  }

  isBroken (connection: C): boolean {
    return this.#views.get(connection)!.answers.dead !== undefined || this.isDead
  }

  /** The lease has ended: undoes the transactions that it has left open. */
  async close (connection: C): Promise<void> {
    const view = this.#views.get(connection)!
    await this.#inTurn(async () => {
      const first = this.#levels.find((level) => level.view === view && level.state === 'open')
      if (first !== undefined && !this.isDead) await this.#undo(first)
    })
  }

  // --- Transactions --------------------------------------------------------------------------------------------------

  /**
   * A transaction of the app's: a savepoint in whichever is open. One that other code of the app runs beside it has to
   * end first: else each would be undone with the other.
   *
   * @param signal the deadline
   */
  async begin (connection: C, signal: AbortSignal): Promise<Transaction<C>> {
    const view = this.#views.get(connection)!
    let cut = (): void => {}
    const late = new Promise<never>((_resolve, reject) => {
      cut = () => { reject(signal.reason) }
      signal.addEventListener('abort', cut, { once: true })
    })
    late.catch(() => { /* Told to whoever waits for it. */ })
    try {
      for (;;) {
        signal.throwIfAborted()
        const other = this.#beside(view)
        if (other !== undefined) await Promise.race([other.over, late])
        else {
          const begun = await this.#inTurn(async () => this.#beside(view) === undefined ? this.#begin(view) : undefined)
          if (begun !== undefined) return this.#transaction(connection, begun)
        }
      }
    } finally {
      signal.removeEventListener('abort', cut)
    }
  }

  /** An open transaction that the calling code is not within, and that ends by itself. */
  #beside (view: View<C>): Level<C> | undefined {
    return this.#levels.find((level) => level.state === 'open' && level.view !== view &&
      level.view.lease?.ended === false && isBeside(level.view.lease))
  }

  async #begin (view: View<C>): Promise<Level<C>> {
    const savepoint = await this.#base.savepoint!(`${NAME}_${++this.#count}`)
    let ended = (): void => {}
    const over = new Promise<void>((resolve) => { ended = resolve })
    const level: Level<C> = { view, savepoint, state: 'open', ended, over }
    this.#levels.push(level)
    return level
  }

  #transaction (connection: C, level: Level<C>): Transaction<C> {
    return {
      connection,
      inDoubt: false,
      commit: () => this.#inTurn(() => this.#store(level)),
      rollback: () => this.#inTurn(() => this.#undo(level)),
      savepoint: () => this.#inTurn(async () => this.#transaction(connection, await this.#begin(level.view))),
    }
  }

  async #store (level: Level<C>): Promise<void> {
    if (level.state === 'undone') {
      throw new PoolError('FST_POOL_TRANSACTION_ENDED', 'rollbackEach: the transaction was begun while another one ' +
        'was open, and was rolled back with that one: they share a connection')
    }
    // Others are open within it: it is released with the last of them.
    if (this.#levels.at(-1) === level) await level.savepoint.commit()
    level.state = 'stored'
    level.ended()
    if (this.#levels.at(-1) === level) this.#levels.pop()
    for (let top = this.#levels.at(-1); top?.state === 'stored'; top = this.#levels.at(-1)) {
      await top.savepoint.commit()
      this.#levels.pop()
    }
  }

  async #undo (level: Level<C>): Promise<void> {
    const at = this.#levels.indexOf(level)
    if (at < 0) return
    for (const undone of this.#levels.splice(at)) {
      undone.state = 'undone'
      undone.ended()
    }
    await level.savepoint.rollback()
  }

  async #inTurn<T> (work: () => Promise<T>): Promise<T> {
    const done = this.#last.then(work)
    this.#last = done.then(() => {}, () => { /* Told to whoever waits for `done`. */ })
    return await done
  }

  // --- PostgreSQL ----------------------------------------------------------------------------------------------------

  /**
   * A statement that fails would take the whole transaction with it. Outside of the app's own transactions it is alone,
   * as it is in production: it has a savepoint of its own.
   */
  #query (args: unknown[]): unknown {
    const query = (...given: unknown[]): unknown =>
      (this.#connection as unknown as { query (...args: unknown[]): unknown }).query(...given)
    const [first] = args as [{ submit?: unknown } | undefined]
    // What the driver is given to submit by itself (a cursor, a stream, COPY) is returned as it is.
    if (typeof first?.submit === 'function' || this.#levels.length > 0) return query(...args)
    const last = args.at(-1)
    if (typeof last !== 'function') return this.#alone(() => query(...args))
    const done = last as (error: unknown, result?: unknown) => void
    this.#alone(() => query(...args.slice(0, -1))).then(
      (result) => { process.nextTick(done, null, result) }, (error: unknown) => { process.nextTick(done, error) })
    return undefined
  }

  async #alone (query: () => unknown): Promise<unknown> {
    return await this.#inTurn(async () => {
      if (this.#levels.length > 0) return await query()
      const savepoint = await this.#base.savepoint!(`${NAME}_statement`)
      try {
        const result = await query()
        await savepoint.commit()
        return result
      } catch (error) {
        // Where that fails, the connection is gone, or its transaction: whoever uses it next is told.
        await savepoint.rollback().catch(() => {})
        throw error
      }
    })
  }

  // --- The end -------------------------------------------------------------------------------------------------------

  /**
   * Undoes all of it.
   *
   * @throws where the transaction was ended before, so that something of the test is stored
   */
  async end (): Promise<void> {
    await this.#inTurn(async () => {
      for (const { ended } of this.#levels.splice(0)) ended()
      if (this.isDead) return
      const cause = await this.#lost()
      await this.#base.rollback()
      if (cause === undefined) return
      throw new Error('rollbackEach: a statement of the app ended the transaction of the test (COMMIT, ROLLBACK, or ' +
        'on MySQL one that changes the schema): what was done is stored', { cause })
    })
  }

  /** How it shows that the transaction is not there any more; undefined: it is. */
  async #lost (): Promise<unknown> {
    try {
      // A transaction that has failed is still there.
      if (this.#isPostgres) {
        await this.#mark.rollback()
        await this.#base.savepoint!(`${NAME}_mark`)
      } else await this.#mark.commit()
      return undefined
    } catch (error) {
      return error
    }
  }
}
