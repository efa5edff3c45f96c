import { AsyncLocalStorage } from 'node:async_hooks'
import type { Isolation, Transaction, TransactionOptions, Transactions } from '../../types/connector.js'
import type { HoldOptions, RunOptions } from '../../types/pool.js'
import { Aftermath, type After } from './aftermath.js'
import { PoolError, badOption, isCommitUnknown } from './errors.js'
import { isTime, timeExpected } from './time.js'

/** What the connector does to a transaction. */
export type Phase = 'begin' | 'commit' | 'rollback'

/** A commit that is under way: what the pool needs to know when it gives the commit up. */
export interface Commit {
  /** As `Host.now` tells time. Infinity: none. */
  readonly deadline: number
  /** How long the commit may take, in ms. */
  readonly timeout: number
  /** Whether only the server knows the outcome of the commit. Undefined: the connector does not tell. */
  inDoubt (): boolean | undefined
}

/** What the transactions of a lease need of its pool. */
export interface Host<C> {
  /** Identifies the pool. */
  readonly pool: object
  /** The pool's name. */
  readonly name: string
  readonly transactions: Transactions<C> | undefined
  readonly connection: C
  /** The lease has ended: the pool undoes what was open. */
  readonly ended: boolean
  /** How long somebody may wait for another transaction on the same connection, in ms. */
  readonly patience: number
  /** What the borrower sees of a connection (the option `wrap`). */
  face (connection: C): C
  /**
   * Calls the connector, in the caller's async context. Rejects at once when the connection is destroyed meanwhile.
   * Past the deadline of `phase`, or of `commit`, the lease ends, and its connection is destroyed.
   *
   * @param work called with what makes the signal of the deadline: a signal costs more than the rest of a call
   * @throws what `work` throws; `FST_POOL_COMMIT_UNKNOWN` where the outcome of a commit is in doubt: then the
   * connection can not be used any more
   */
  call<T> (phase: Phase, work: (signal: () => AbortSignal) => Promise<T>, commit?: Commit): Promise<T>
  /** As `call`, after the lease has ended, in no caller's async context: the deadline is the one of the reset. */
  callLate (work: () => Promise<void>): Promise<void>
  /** The connection's state is not known any more: reports the error, ends the lease and destroys the connection. */
  fail (error: unknown, phase: Phase): void
  /** Calls `fn` a turn later, in the caller's async context. The pool's `drain` and `close` wait for it. */
  after (fn: () => unknown, on: After): void
  /** Whether a transaction that failed with this error can be run again. */
  isTransient (error: unknown): boolean
  /** In ms, without the time in which the event loop stood still. */
  now (): number
  /** Resolves to true when `done` has settled, to false after `ms`. */
  wait (ms: number, done?: Promise<unknown>): Promise<boolean>
  /** In [0, 1). */
  random (): number
}

/** The innermost transaction that the running code is within. */
const inside = new AsyncLocalStorage<Level<unknown>>()
/** How many functions of `run` are running: while there are none, `inside` is disabled. */
let running = 0

/** The first limit of the random pause between two tries of a transaction, in ms; it doubles with each try. */
const pause = 4
const longestPause = 500

/** A line of transactions, since a connection runs one at a time: of a lease, or within another transaction. */
class Line {
  /** Settles when all transactions that have joined so far are done. Undefined: they are. */
  last: Promise<unknown> | undefined
}

/** A transaction that is open. */
class Level<C> extends Line {
  open = true
  /** The transaction was begun by `run`, and its function is called in it. */
  runs = false
  #face: C | undefined

  /**
   * @param outer the transaction that the beginning code was within: the parent, or one of another lease
   * @param commitTimeout the deadline of the commit, in ms; 0: none
   */
  constructor (
    readonly owner: LeaseTransactions<C>, readonly host: Host<C>, readonly transaction: Transaction<C>,
    readonly depth: number, readonly outer: Level<unknown> | undefined, readonly commitTimeout: number
  ) {
    super()
  }

  /** What code within the transaction gets as the connection. */
  get face (): C {
    return (this.#face ??= this.host.face(this.transaction.connection))
  }
}

/** The innermost open transaction that the calling code is within and for which `is` is true. */
function around (is: (level: Level<unknown>) => boolean): Level<unknown> | undefined {
  let level = inside.getStore()
  while (level !== undefined && !(level.open && is(level))) level = level.outer
  return level
}

/** A transaction that is open until its holder ends it, once: a route's is open from its lease to its reply. */
export interface HeldTransaction {
  /** The deadline of its commit, in ms; 0: none. */
  readonly commitTimeout: number
  /**
   * A second call returns the promise of the first.
   *
   * @param spent how many ms of `commitTimeout` have gone already
   * @throws `FST_POOL_TRANSACTION_ENDED` after a rollback; what the commit throws: then the transaction was rolled
   * back, or its connection destroyed
   */
  commit (spent?: number): Promise<void>
  /** After a commit it does nothing but wait for it. */
  rollback (): Promise<void>
}

/**
 * The transactions of one lease: one at a time, with others nested in it.
 *
 * Code is within a transaction when the transaction's function called it; the async context tells. So a `Promise.all`
 * of two transactions runs two transactions one after the other. If the second became a savepoint of the first, a
 * rollback of the first would undo both.
 */
export class LeaseTransactions<C> {
  readonly #host: Host<C>
  readonly #line = new Line()
  /** The outermost transaction. */
  #root: Level<C> | undefined
  #held: Level<C> | undefined
  /** How many transactions of `run` are open or about to open, each nested in the one before. */
  #runs = 0
  #aftermath: Aftermath | undefined
  /** The connector's begin, commit or rollback that is under way; never rejects. */
  #work: Promise<unknown> | undefined

  constructor (host: Host<C>) {
    this.#host = host
  }

  /** The transactions of the lease of that pool, where the calling code is within one of them. */
  static current (pool: object): LeaseTransactions<unknown> | undefined {
    return around(({ host }) => host.pool === pool)?.owner
  }

  /** What the borrower sees as the connection while a transaction is held: all that the lease does is within it. */
  get connection (): C | undefined {
    return this.#held?.face
  }

  /** As `connection`, without what the option `wrap` made of it. */
  get raw (): C | undefined {
    return this.#held?.transaction.connection
  }

  /**
   * Whether a transaction of `run` is open on the connection and the calling code is not within it: what the code sends
   * now becomes part of that transaction, and is rolled back with it. A held transaction is meant for all code.
   */
  get isBeside (): boolean {
    if (this.#runs === 0) return false
    const own = around(({ owner }) => owner === this)
    return this.#runs > (own === undefined ? 0 : own.depth + (this.#held === undefined ? 1 : 0))
  }

  /** @param usual the `commitTimeout` of an outermost transaction, unless `options` have one */
  async run<T> (fn: (connection: C) => T | Promise<T>, options: RunOptions = {}, usual = 0): Promise<T> {
    const { retry = 0, commitTimeout = usual, ...begin } = options
    const parent = this.#parent()
    if (parent === undefined) checkRunOptions(this.#host, options)
    else checkNested(this.#host, parent.transaction, options)
    return await this.#inTurn(parent ?? this.#line, async () => {
      for (let tries = 0; tries < retry; tries++) {
        try {
          return await this.#once(fn, parent, begin, commitTimeout)
        } catch (error) {
          if (this.#host.ended || !this.#host.isTransient(error)) throw error
          await this.#host.wait(this.#host.random() * Math.min(longestPause, pause * 2 ** tries))
          if (this.#host.ended) throw error
        }
      }
      return await this.#once(fn, parent, begin, commitTimeout)
    })
  }

  /** Begins a transaction over all that the lease does. It lasts until its holder ends it, or the lease ends. */
  async hold (options: HoldOptions): Promise<HeldTransaction> {
    return await this.#beginHeld(options, (level) => { this.#held = level })
  }

  /**
   * Begins a transaction for a library that has a transaction method of its own. It lasts until the library ends it.
   * Until then other transactions on this connection wait for their turn, so neither is undone with the other.
   *
   * @param commitTimeout the deadline of the commit from the library's call on, in ms; 0: none
   * @throws `FST_POOL_NOT_SUPPORTED` within another transaction of this lease; what `run` throws before it calls its
   * function
   */
  async begin (options: TransactionOptions = {}, commitTimeout = 0): Promise<HeldTransaction> {
    const { name } = this.#host
    if (this.#parent() !== undefined) {
      throw new PoolError('FST_POOL_NOT_SUPPORTED', `a transaction of pool '${name}' is open already (the route's, ` +
        'or request.transaction): a library\'s own transaction can not begin in it, and would end it. What runs on ' +
        'this connection is part of it without another one: leave out the inner one, or call ' +
        `request.transaction('${name}', fn), which is a savepoint there`)
    }
    return await this.#beginHeld({ ...options, commitTimeout })
  }

  async #beginHeld (options: HoldOptions, begun?: (level: Level<C>) => void): Promise<HeldTransaction> {
    checkTransactionOptions(this.#host, options)
    const { commitTimeout = 0, ...begin } = options
    let end!: () => void
    const over = new Promise<void>((resolve) => { end = resolve })
    try {
      const level = await this.#inTurn(this.#line, () => this.#begin(undefined, begin, commitTimeout), over)
      begun?.(level)
      let commit: Promise<void> | undefined
      let rollback: Promise<void> | undefined
      return {
        commitTimeout,
        commit: (spent) => (commit ??= rollback === undefined
          ? this.#commit(level, spent).finally(end)
          : Promise.reject(rolledBack(this.#host.name))),
        // Whoever called `commit` gets what it threw.
        rollback: () => (rollback ??= commit?.catch(() => {}) ?? this.#rollback(level).finally(end)),
      }
    } catch (error) {
      end()
      throw error
    }
  }

  /**
   * Calls `fn` once the innermost transaction of the calling code is stored, all around it included, or once it is
   * undone. Where none is open, `afterCommit` is called at once, and `afterRollback` never.
   */
  after (on: After, fn: () => unknown): void {
    const level = this.#parent() ?? this.#root
    if (level?.open === true) {
      this.#aftermath ??= new Aftermath((fn, on) => { this.#host.after(fn, on) })
      this.#aftermath.add(level.depth, on, fn)
    } else if (on === 'afterCommit') this.#host.after(fn, on)
  }

  /** The lease ends, and what is open on it is undone with it. A commit that is under way tells by itself. */
  leaseEnds (): void {
    if (this.#root?.open === true) this.#aftermath?.rolledBack(0)
  }

  /** The lease has ended: undoes what is open, whoever began it. Undefined: nothing is open. */
  abandon (): Promise<void> | undefined {
    return this.#work === undefined && this.#root === undefined ? undefined : this.#abandon()
  }

  async #abandon (): Promise<void> {
    await this.#work
    const root = this.#root
    // The root stays open for the code within it: a transaction that the code begins now must be refused, and not
    // become one of its own.
    if (root !== undefined) await this.#host.callLate(() => root.transaction.rollback())
  }

  async #once<T> (
    fn: (connection: C) => T | Promise<T>, parent: Level<C> | undefined, options: TransactionOptions,
    commitTimeout: number
  ): Promise<T> {
    // Counted before the begin: what others send after it is already within the transaction.
    this.#runs++
    const level = await this.#begin(parent, options, commitTimeout).catch((error: unknown) => {
      this.#runs--
      throw error
    })
    level.runs = true
    running++
    try {
      return await this.#within(level, fn)
    } finally {
      // While a store is in use, Node 20 makes every promise of the process slower: an acquire takes twice as long.
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

  async #begin (parent: Level<C> | undefined, options: TransactionOptions, commitTimeout: number): Promise<Level<C>> {
    const host = this.#host
    if (host.ended) throw released(host.name)
    const depth = parent === undefined ? 0 : parent.depth + 1
    const level = await this.#during(host.call('begin', (signal) => parent === undefined
      ? beginOutermost(host, options, signal)
      : parent.transaction.savepoint!(`fastify_pool_${depth}`)
    ).then((transaction) => {
      const { commitTimeout: limit } = parent ?? { commitTimeout }
      const level = new Level(this, host, transaction, depth, around(() => true), limit)
      if (depth === 0) this.#root = level
      return level
    }))
    // The lease was released meanwhile, which undoes the transaction.
    if (host.ended) throw released(host.name)
    return level
  }

  async #commit (level: Level<C>, spent?: number): Promise<void> {
    try {
      await this.#store(level, spent)
    } catch (error) {
      if (isCommitUnknown(error)) this.#aftermath?.unknown()
      else this.#aftermath?.rolledBack(level.depth)
      throw error
    }
    this.#aftermath?.committed(level.depth)
  }

  async #store (level: Level<C>, spent = 0): Promise<void> {
    const host = this.#host
    const { transaction, depth, commitTimeout: timeout } = level
    const deadline = timeout === 0 ? Infinity : host.now() + Math.max(1, timeout - spent)
    if (!await this.#close(level, deadline)) {
      const error = commitLate(host.name, timeout, false)
      host.fail(error, 'commit')
      throw error
    }
    if (host.ended) throw released(host.name)
    try {
      // Nothing is stored before the outermost transaction is committed, so a savepoint is never in doubt.
      const commit = { deadline, timeout, inDoubt: () => depth === 0 && transaction.inDoubt }
      await this.#during(host.call('commit', () => transaction.commit(), commit).then(() => { this.#forget(level) }))
    } catch (error) {
      if (!isCommitUnknown(error)) await this.#undo(level)
      else if (!host.ended) host.fail(error, 'commit')
      throw error
    }
  }

  async #rollback (level: Level<C>): Promise<void> {
    const host = this.#host
    const { commitTimeout: timeout } = level
    // This deadline is for nested transactions; the server's answer has another one.
    if (!await this.#close(level, timeout === 0 ? Infinity : host.now() + timeout)) {
      const message = `a transaction was not rolled back within ${timeout} ms (commitTimeout): ` +
        'one within it had not ended'
      host.fail(new Error(message), 'rollback')
    }
    await this.#undo(level)
    this.#aftermath?.rolledBack(level.depth)
  }

  /**
   * Waits for the transactions nested in this one, also those that nobody awaits; then none can begin in it any more.
   *
   * @returns false: they have not ended by the deadline, and the lease has not ended either
   */
  async #close (level: Level<C>, deadline = Infinity): Promise<boolean> {
    const host = this.#host
    while (level.last !== undefined) {
      if (deadline === Infinity) await level.last
      else if (host.ended) break
      else if (!await host.wait(Math.max(1, deadline - host.now()), level.last) && !host.ended) return false
    }
    level.open = false
    if (level.runs) this.#runs--
    return true
  }

  async #undo (level: Level<C>): Promise<void> {
    const host = this.#host
    if (host.ended) return
    try {
      await this.#during(host.call('rollback', () => level.transaction.rollback()))
    } catch (error) {
      if (!host.ended) host.fail(error, 'rollback')
    }
    this.#forget(level)
  }

  #forget (level: Level<C>): void {
    if (level === this.#root) this.#root = undefined
    if (level === this.#held) this.#held = undefined
  }

  /** The transaction of this lease that the calling code is within, or the held one. */
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

  /** @param until the turn lasts until this settles too */
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
    // `ended` is asked first: a closed pool must not set a timer.
    if (!this.#host.ended && await this.#host.wait(patience, before)) return await work()
    if (this.#host.ended) throw released(name)
    throw new PoolError('FST_POOL_ACQUIRE_TIMEOUT', `a transaction on pool '${name}' waited ${patience} ms for ` +
      'another one on the same connection. If it was called within that one, its async context was lost on the way: ' +
      'call it from the function itself, not from a callback.')
  }
}

/** @param signal called where the connector takes a signal */
function beginOutermost<C> (
  { transactions, connection }: Host<C>, options: TransactionOptions, signal: () => AbortSignal
): Promise<Transaction<C>> {
  const takesSignal = transactions!.begin.length > 2
  return transactions!.begin(connection, options, (takesSignal ? signal() : undefined) as AbortSignal)
}

interface Source<C> { readonly name: string, readonly transactions: Transactions<C> | undefined }

/** @throws `FST_POOL_NOT_SUPPORTED`, `FST_POOL_BAD_OPTIONS` */
export function checkRunOptions<C> (source: Source<C>, { retry = 0, ...begin }: RunOptions): void {
  if (!Number.isSafeInteger(retry) || retry < 0) throw badOption('retry', retry, 'an integer of at least 0')
  checkTransactionOptions(source, begin)
}

/**
 * @param source the pool's name, and its connector's transactions if it has any
 * @throws `FST_POOL_NOT_SUPPORTED`, `FST_POOL_BAD_OPTIONS`
 */
export function checkTransactionOptions<C> ({ name, transactions }: Source<C>, options: HoldOptions): void {
  if (transactions === undefined) throw new PoolError('FST_POOL_NOT_SUPPORTED', `pool '${name}' has no transactions`)
  const { isolation, readOnly, commitTimeout, ...rest } = options
  const [unknown] = Object.keys(rest).filter((key) => (rest as Record<string, unknown>)[key] !== undefined)
  if (unknown !== undefined) {
    const known = 'isolation, readOnly, commitTimeout or retry'
    throw new PoolError('FST_POOL_BAD_OPTIONS', `unknown option ${unknown} of a transaction: expected ${known}`)
  }
  if (commitTimeout !== undefined && !isTime(commitTimeout)) {
    throw badOption('commitTimeout', commitTimeout, timeExpected)
  }
  if (isolation !== undefined && !transactions.isolation.includes(isolation)) {
    throw badOption('isolation', isolation, levels(transactions.isolation))
  }
  if (readOnly !== undefined && typeof readOnly !== 'boolean') throw badOption('readOnly', readOnly, 'true or false')
  if (readOnly === true && !transactions.readOnly) {
    throw badOption('readOnly', readOnly, `none: pool '${name}' has no transactions that only read`)
  }
}

function levels (isolation: readonly Isolation[]): string {
  if (isolation.length === 0) return 'none: the database has one level only'
  return isolation.map((level) => `'${level}'`).join(' or ')
}

/** A nested transaction takes no options: isolation and deadline are those of the outer one. */
function checkNested<C> (host: Host<C>, { savepoint }: Transaction<C>, options: RunOptions): void {
  if (savepoint === undefined) {
    throw new PoolError('FST_POOL_NOT_SUPPORTED', `pool '${host.name}' has no transactions within transactions`)
  }
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined || value === 0 || value === false) continue
    throw badOption(name, value, 'none for a transaction within another')
  }
}

function rolledBack (name: string): PoolError {
  const message = `a transaction on pool '${name}' was not committed: it had been rolled back`
  return new PoolError('FST_POOL_TRANSACTION_ENDED', message)
}

/** The error of a commit that was given up at its deadline. */
export function commitLate (name: string, timeout: number, inDoubt: boolean): PoolError {
  if (inDoubt) return unknown(name, `COMMIT was sent, and no answer came within ${timeout} ms (commitTimeout)`)
  return new PoolError('FST_POOL_COMMIT_TIMEOUT', `a transaction on pool '${name}' could not be committed within ` +
    `${timeout} ms (commitTimeout): something that was begun before had not ended (a query, a stream, a cursor, a ` +
    'COPY, a transaction within it). Nothing of it is stored; its connection was destroyed.')
}

/** The error of a commit whose connection ended before the answer. @param cause a scrubbed copy */
export function commitLost (name: string, cause?: unknown): PoolError {
  return unknown(name, 'COMMIT was sent, and its connection ended, or failed, before the answer', cause)
}

function unknown (name: string, why: string, cause?: unknown): PoolError {
  return new PoolError('FST_POOL_COMMIT_UNKNOWN', `nobody knows whether a transaction on pool '${name}' was ` +
    `committed: ${why}. Look before you do it again.`, { cause })
}

export function released (name: string): PoolError {
  const message = `a transaction on pool '${name}' was not committed: its lease has ended`
  return new PoolError('FST_POOL_LEASE_RELEASED', message)
}
