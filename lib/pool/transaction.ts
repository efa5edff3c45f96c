import { AsyncLocalStorage } from 'node:async_hooks'
import type { Isolation, Transaction, TransactionOptions, Transactions } from '../../types/connector.js'
import type { RunOptions } from '../../types/pool.js'
import { PoolError, badOption } from './errors.js'

/** What the connector does to a transaction. */
export type Phase = 'begin' | 'commit' | 'rollback'

/** What the transactions of a lease need of its pool. */
export interface Host<C> {
  /** Which pool it is. */
  readonly pool: object
  /** Its name. */
  readonly name: string
  readonly transactions: Transactions<C> | undefined
  readonly connection: C
  /** The lease has ended: what was open is the pool's to undo. */
  readonly ended: boolean
  /** How long somebody may wait for another transaction on the same connection, in ms. */
  readonly patience: number
  /** What the borrower sees of a connection (the option `wrap`). */
  face (connection: C): C
  /**
   * Calls the connector, in no caller's async context. Rejects at once when the connection is destroyed meanwhile. Past the deadline of `phase` (a commit
   * has none) the lease ends, and its connection is destroyed.
   */
  call<T> (phase: Phase, work: (signal: AbortSignal) => Promise<T>): Promise<T>
  /** As `call`, when the lease has ended: the deadline is the reset's. */
  callLate (work: () => Promise<void>): Promise<void>
  /** Nobody knows the connection's state any more: tells of the error, ends the lease and destroys the connection. */
  fail (error: unknown): void
  /** Resolves to true when `done` has settled, to false after `ms`. */
  wait (ms: number, done?: Promise<unknown>): Promise<boolean>
  /** In [0, 1). */
  random (): number
}

/** Which transaction the code that runs now is in. */
const inside = new AsyncLocalStorage<Level<unknown>>()
/** How many functions run in one. */
let running = 0

/** Between two tries of a transaction that others were in the way of: up to this, doubled each time, in ms. */
const pause = 4
const longestPause = 500

/** Where transactions stand in line, since a connection has one at a time: a lease, or a transaction that others are within. */
class Line {
  /** Settles when all that have come so far are done. Undefined: they are. */
  last: Promise<unknown> | undefined
}

/** A transaction that is open. */
class Level<C> extends Line {
  open = true
  #face: C | undefined

  /** @param outer the one that the code which began it was within: its own parent, or one of another lease */
  constructor (
    readonly owner: LeaseTransactions<C>, readonly host: Host<C>, readonly transaction: Transaction<C>, readonly depth: number,
    readonly outer: Level<unknown> | undefined
  ) {
    super()
  }

  /** What code within it gets as the connection. */
  get face (): C {
    return (this.#face ??= this.host.face(this.transaction.connection))
  }
}

/** The innermost open transaction that the calling code is within and that is so. */
function around (is: (level: Level<unknown>) => boolean): Level<unknown> | undefined {
  let level = inside.getStore()
  while (level !== undefined && !(level.open && is(level))) level = level.outer
  return level
}

/** A transaction that is open until its holder ends it: a route's, from its lease to its reply. It ends once. */
export interface HeldTransaction {
  /** Called again, it gives the same. @throws `FST_POOL_TRANSACTION_ENDED` behind a rollback; what the commit throws: it is rolled back then */
  commit (): Promise<void>
  /** Behind a commit it does nothing, but waits for it. */
  rollback (): Promise<void>
}

/**
 * The transactions of one lease: one at a time, others within it.
 *
 * Code is within a transaction when it was called by its function, which its async context tells: `Promise.all` of two transactions is two
 * transactions, one after the other, and not a savepoint that the other one's rollback takes along.
 */
export class LeaseTransactions<C> {
  readonly #host: Host<C>
  readonly #line = new Line()
  /** The outermost transaction. */
  #root: Level<C> | undefined
  #held: Level<C> | undefined
  /** The connector's begin, commit or rollback that is under way. */
  #work: Promise<unknown> | undefined

  constructor (host: Host<C>) {
    this.#host = host
  }

  /** The transactions of the lease of that pool which the calling code is within. */
  static current (pool: object): LeaseTransactions<unknown> | undefined {
    return around(({ host }) => host.pool === pool)?.owner
  }

  /** While a transaction is held, all of the lease is within it: what its borrower should see as the connection. */
  get connection (): C | undefined {
    return this.#held?.face
  }

  /** As `connection`, without what the option `wrap` made of it. */
  get raw (): C | undefined {
    return this.#held?.transaction.connection
  }

  async run<T> (fn: (connection: C) => T | Promise<T>, options: RunOptions = {}): Promise<T> {
    const { retry = 0, ...begin } = options
    const parent = this.#parent()
    if (parent === undefined) checkRunOptions(this.#host, options)
    else checkNested(this.#host, parent.transaction, options)
    return await this.#inTurn(parent ?? this.#line, async () => {
      for (let tries = 0; tries < retry; tries++) {
        try {
          return await this.#once(fn, parent, begin)
        } catch (error) {
          if (this.#host.ended || !this.#host.transactions!.isTransient(error)) throw error
          await this.#host.wait(this.#host.random() * Math.min(longestPause, pause * 2 ** tries))
          if (this.#host.ended) throw error
        }
      }
      return await this.#once(fn, parent, begin)
    })
  }

  /** Begins a transaction over all that the lease does, which lasts until its holder, or the lease, ends. */
  async hold (options: TransactionOptions): Promise<HeldTransaction> {
    return await this.#beginHeld(options, (level) => { this.#held = level })
  }

  /**
   * Begins a transaction for a library that has a transaction method of its own. It lasts until the library ends it, and others on this connection wait
   * for their turn until then: two of them side by side are two transactions, and neither is undone with the other.
   *
   * @throws `FST_POOL_NOT_SUPPORTED` within another transaction of this lease; what `run` throws before it calls its function
   */
  async begin (options: TransactionOptions = {}): Promise<HeldTransaction> {
    const { name } = this.#host
    if (this.#parent() !== undefined) {
      throw new PoolError('FST_POOL_NOT_SUPPORTED', `a transaction of pool '${name}' is open already (the route's, or request.transaction): a library's own ` +
        'transaction can not begin in it, and would end it. What runs on this connection is part of it without another one: leave out the inner one, ' +
        `or call request.transaction('${name}', fn), which is a savepoint there`)
    }
    return await this.#beginHeld(options)
  }

  async #beginHeld (options: TransactionOptions, begun?: (level: Level<C>) => void): Promise<HeldTransaction> {
    checkTransactionOptions(this.#host, options)
    let end!: () => void
    const over = new Promise<void>((resolve) => { end = resolve })
    try {
      const level = await this.#inTurn(this.#line, () => this.#begin(undefined, options), over)
      begun?.(level)
      let commit: Promise<void> | undefined
      let rollback: Promise<void> | undefined
      return {
        commit: () => (commit ??= rollback === undefined ? this.#commit(level).finally(end) : Promise.reject(rolledBack(this.#host.name))),
        rollback: () => (rollback ??= commit?.catch(() => { /* Told to whoever committed. */ }) ?? this.#rollback(level).finally(end)),
      }
    } catch (error) {
      end()
      throw error
    }
  }

  /** The lease has ended: undoes what is open, whoever began it. Undefined: nothing is. */
  abandon (): Promise<void> | undefined {
    return this.#work === undefined && this.#root === undefined ? undefined : this.#abandon()
  }

  async #abandon (): Promise<void> {
    await this.#work
    const root = this.#root
    // It stays open for the code within it: what that begins is refused, and not made a transaction of its own.
    if (root !== undefined) await this.#host.callLate(() => root.transaction.rollback())
  }

  async #once<T> (fn: (connection: C) => T | Promise<T>, parent: Level<C> | undefined, options: TransactionOptions): Promise<T> {
    const level = await this.#begin(parent, options)
    running++
    try {
      return await this.#within(level, fn)
    } finally {
      // Node 20 makes every promise of the process dearer while a store is in use: an acquire costs twice as much.
      if (--running === 0) inside.disable()
    }
  }

  async #within<T> (level: Level<C>, fn: (connection: C) => T | Promise<T>): Promise<T> {
    let result: T
    try {
      result = await inside.run(level as Level<unknown>, () => fn(level.face))
    } catch (error) {
      await this.#rollback(level)
      throw error
    }
    await this.#commit(level)
    return result
  }

  async #begin (parent: Level<C> | undefined, options: TransactionOptions): Promise<Level<C>> {
    const host = this.#host
    if (host.ended) throw released(host.name)
    const depth = parent === undefined ? 0 : parent.depth + 1
    const level = await this.#during(host.call('begin', (signal) => parent === undefined
      ? host.transactions!.begin(host.connection, options, signal)
      : parent.transaction.savepoint!(`fastify_pool_${depth}`)
    ).then((transaction) => {
      const level = new Level(this, host, transaction, depth, around(() => true))
      if (depth === 0) this.#root = level
      return level
    }))
    // Released meanwhile: it is being undone.
    if (host.ended) throw released(host.name)
    return level
  }

  async #commit (level: Level<C>): Promise<void> {
    await this.#close(level)
    const host = this.#host
    if (host.ended) throw released(host.name)
    try {
      await this.#during(host.call('commit', () => level.transaction.commit()).then(() => { this.#forget(level) }))
    } catch (error) {
      await this.#undo(level)
      throw error
    }
  }

  async #rollback (level: Level<C>): Promise<void> {
    await this.#close(level)
    await this.#undo(level)
  }

  /** None can begin within it any more. Those that did come first: what nobody waited for belongs to it all the same. */
  async #close (level: Level<C>): Promise<void> {
    while (level.last !== undefined) await level.last
    level.open = false
  }

  async #undo (level: Level<C>): Promise<void> {
    const host = this.#host
    if (host.ended) return
    try {
      await this.#during(host.call('rollback', () => level.transaction.rollback()))
    } catch (error) {
      if (!host.ended) host.fail(error)
    }
    this.#forget(level)
  }

  #forget (level: Level<C>): void {
    if (level === this.#root) this.#root = undefined
    if (level === this.#held) this.#held = undefined
  }

  /** The transaction that the calling code is within. */
  #parent (): Level<C> | undefined {
    const level = around(({ owner }) => owner === this)
    if (level !== undefined) return level as Level<C>
    return this.#held?.open === true ? this.#held : undefined
  }

  async #during<T> (work: Promise<T>): Promise<T> {
    const settled = this.#work = work.then(() => {}, () => { /* Told to whoever waits for `work`. */ })
    try {
      return await work
    } finally {
      if (this.#work === settled) this.#work = undefined
    }
  }

  /** @param until it keeps its turn until then, even when its work is done */
  async #inTurn<T> (line: Line, work: () => Promise<T>, until?: Promise<unknown>): Promise<T> {
    const before = line.last
    const result = before === undefined ? work() : this.#after(before, work)
    const settled: Promise<unknown> = Promise.allSettled([before, result, until]).then(() => {
      if (line.last === settled) line.last = undefined
    })
    line.last = settled
    return await result
  }

  async #after<T> (before: Promise<unknown>, work: () => Promise<T>): Promise<T> {
    const { name, patience } = this.#host
    // Asked first: a pool that has closed sets no timer.
    if (!this.#host.ended && await this.#host.wait(patience, before)) return await work()
    if (this.#host.ended) throw released(name)
    throw new PoolError('FST_POOL_ACQUIRE_TIMEOUT', `a transaction on pool '${name}' waited ${patience} ms for another one on the same connection. ` +
      'If it was called within that one, its async context was lost on the way: call it from the function itself, not from a callback.')
  }
}

interface Source<C> { readonly name: string, readonly transactions: Transactions<C> | undefined }

/** @throws `FST_POOL_NOT_SUPPORTED`, `FST_POOL_BAD_OPTIONS` */
export function checkRunOptions<C> (source: Source<C>, { retry = 0, ...begin }: RunOptions): void {
  if (!Number.isSafeInteger(retry) || retry < 0) throw badOption('retry', retry, 'an integer of at least 0')
  checkTransactionOptions(source, begin)
}

/**
 * @param source what has, or has not, transactions
 * @throws `FST_POOL_NOT_SUPPORTED`, `FST_POOL_BAD_OPTIONS`
 */
export function checkTransactionOptions<C> ({ name, transactions }: Source<C>, options: TransactionOptions): void {
  if (transactions === undefined) throw new PoolError('FST_POOL_NOT_SUPPORTED', `pool '${name}' has no transactions`)
  const { isolation, readOnly, ...rest } = options
  const [unknown] = Object.keys(rest).filter((key) => (rest as Record<string, unknown>)[key] !== undefined)
  if (unknown !== undefined) throw new PoolError('FST_POOL_BAD_OPTIONS', `unknown option ${unknown} of a transaction: expected isolation, readOnly or retry`)
  if (isolation !== undefined && !transactions.isolation.includes(isolation)) throw badOption('isolation', isolation, levels(transactions.isolation))
  if (readOnly !== undefined && typeof readOnly !== 'boolean') throw badOption('readOnly', readOnly, 'true or false')
  if (readOnly === true && !transactions.readOnly) throw badOption('readOnly', readOnly, `none: pool '${name}' has no transactions that only read`)
}

function levels (isolation: readonly Isolation[]): string {
  return isolation.length === 0 ? 'none: the database has one level only' : isolation.map((level) => `'${level}'`).join(' or ')
}

/** A savepoint is as the transaction that it is in. */
function checkNested<C> (host: Host<C>, { savepoint }: Transaction<C>, options: RunOptions): void {
  if (savepoint === undefined) throw new PoolError('FST_POOL_NOT_SUPPORTED', `pool '${host.name}' has no transactions within transactions`)
  for (const [name, value] of Object.entries(options)) {
    if (value !== undefined && value !== 0 && value !== false) throw badOption(name, value, 'none for a transaction within another')
  }
}

function rolledBack (name: string): PoolError {
  return new PoolError('FST_POOL_TRANSACTION_ENDED', `a transaction on pool '${name}' was not committed: it had been rolled back`)
}

/** @param phase what was under way then */
export function released (name: string, phase?: Phase): PoolError {
  if (phase === 'commit') return new PoolError('FST_POOL_LEASE_RELEASED', `nobody knows whether a transaction on pool '${name}' was committed: its lease ended first`)
  return new PoolError('FST_POOL_LEASE_RELEASED', `a transaction on pool '${name}' was not committed: its lease has ended`)
}
