import type { DestroyReason } from '../../types/connector.js'
import type { AcquireOptions, HolderLabel, HoldOptions, Lease, RunOptions } from '../../types/pool.js'
import type { After } from './aftermath.js'
import type { Borrower, Entry } from './entry.js'
import { PoolError, badOption } from './errors.js'
import { isTime, timeExpected } from './time.js'
import type { HeldTransaction, LeaseTransactions } from './transaction.js'

/** What a lease asks of its engine. */
export interface Lender<C> {
  readonly name: string
  readonly options: { readonly commitTimeout: number }
  /** Ends the lease; returns how long it was held, in ms. */
  giveBack (entry: Entry<C>): number
  /** Ends the lease, and destroys the connection. */
  throwAway (entry: Entry<C>, reason: DestroyReason, error?: Error): void
  /** How long the lease has been out, in ms. */
  heldSince (entry: Entry<C>): number
  transactionsOf (entry: Entry<C>): LeaseTransactions<C>
  readonly checks: {
    isBusy (entry: Entry<C>): boolean
  }
  readonly waiting: {
    lend (recall: () => boolean): () => void
  }
  readonly upkeep: {
    /** Somebody is to be asked for how long the lease may be out. */
    borrowed (entry: Entry<C>, borrower: Borrower): void
  }
}

export class PoolLease<C> implements Lease<C> {
  readonly #lender: Lender<C>
  readonly #entry: Entry<C>
  readonly #turn: number
  #held: number | undefined

  constructor (lender: Lender<C>, entry: Entry<C>) {
    this.#lender = lender
    this.#entry = entry
    this.#turn = entry.turn
  }

  static {
    // A promise that is resolved with a lease looks for a `then`: found here, it does not look further.
    Object.defineProperty(PoolLease.prototype, 'then', { value: undefined })
  }

  get connection (): C {
    this.#mustBeOut()
    return this.#entry.extras?.transactions?.connection ?? this.#entry.face
  }

  get raw (): unknown {
    this.#mustBeOut()
    return this.#entry.extras?.transactions?.raw ?? this.#entry.connection
  }

  get pool (): string {
    return this.#lender.name
  }

  get holder (): HolderLabel | undefined {
    return this.#entry.turn === this.#turn ? this.#entry.holder : undefined
  }

  get ended (): boolean {
    return this.#entry.turn !== this.#turn
  }

  get heldFor (): number {
    if (this.#entry.turn === this.#turn) return this.#lender.heldSince(this.#entry)
    return this.#held ?? this.#entry.extras?.held ?? 0
  }

  release (): void {
    if (this.#entry.turn !== this.#turn) return
    this.#held = this.#lender.giveBack(this.#entry)
  }

  destroy (error?: Error): void {
    this.#destroy(error === undefined ? 'released' : 'error', error)
  }

  #destroy (reason: DestroyReason, error?: Error): void {
    if (this.#entry.turn !== this.#turn) return
    this.#held = this.#lender.heldSince(this.#entry)
    this.#lender.throwAway(this.#entry, reason, error)
  }

  async transaction<T> (fn: (connection: C) => T | Promise<T>, options?: RunOptions): Promise<T> {
    this.#mustBeOut()
    return await this.#lender.transactionsOf(this.#entry).run(fn, options)
  }

  [Symbol.dispose] (): void {
    this.release()
  }

  #mustBeOut (): void {
    if (this.#entry.turn === this.#turn) return
    const why = this.#entry.extras?.revoked === 'overdue'
      ? 'was out for longer than its holdTimeout, and was revoked: look for what it waited for, or allow more'
      : 'has ended: acquire again, and do not keep the connection beyond the request'
    throw new PoolError('FST_POOL_LEASE_RELEASED', `the lease on pool '${this.#lender.name}' ${why}`)
  }

  /** For the request scope: see `hold`. */
  static async hold<C> (lease: Lease<C>, options: HoldOptions): Promise<HeldTransaction> {
    const { lender, entry } = PoolLease.#ours(lease)
    const { commitTimeout = lender.options.commitTimeout } = options
    return await lender.transactionsOf(entry).hold({ ...options, commitTimeout })
  }

  /** @throws `FST_POOL_NOT_SUPPORTED`, `FST_POOL_LEASE_RELEASED` */
  static #ours<C> (lease: Lease<C>): { readonly lender: Lender<C>, readonly entry: Entry<C> } {
    if (!(lease instanceof PoolLease)) {
      const message = `the lease on pool '${lease.pool}' is not one of ours: it has no transactions`
      throw new PoolError('FST_POOL_NOT_SUPPORTED', message)
    }
    lease.#mustBeOut()
    return { lender: lease.#lender, entry: lease.#entry }
  }

  /** For the request scope: see `transact`. */
  static async transact<C, T> (
    lease: Lease<C>, fn: (connection: C) => T | Promise<T>, options?: RunOptions
  ): Promise<T> {
    if (!(lease instanceof PoolLease)) return await lease.transaction(fn, options)
    lease.#mustBeOut()
    return await lease.#lender.transactionsOf(lease.#entry).run(fn, options, lease.#lender.options.commitTimeout)
  }

  /** See `after`. */
  static after<C> (lease: Lease<C>, on: After, fn: () => unknown): void {
    const { lender, entry } = PoolLease.#ours(lease)
    if (typeof fn !== 'function') throw badOption('fn', fn, 'a function')
    lender.transactionsOf(entry).after(on, fn)
  }

  /** For the request scope: see `isBeside`. */
  static isBeside<C> (lease: Lease<C>): boolean {
    return lease instanceof PoolLease && lease.#entry.extras?.transactions?.isBeside === true
  }

  static bare<C> (lease: Lease<C>): C {
    return lease instanceof PoolLease ? lease.#entry.connection as C : lease.connection
  }

  /** For a bulkhead: see `onEnd`. */
  static onEnd<C> (lease: Lease<C>, listener: () => void): void {
    if (lease.ended) listener()
    else (lease as PoolLease<C>).#entry.more.onEnd = listener
  }

  /** For the request scope: see `isBusy`. */
  static isBusy<C> (lease: Lease<C>): boolean {
    return lease instanceof PoolLease && !lease.ended && lease.#lender.checks.isBusy(lease.#entry)
  }

  /** For the request scope: see `lendable`. */
  static lendable<C> (lease: Lease<C>, recall: () => boolean): () => void {
    return lease instanceof PoolLease ? lease.#lender.waiting.lend(recall) : () => {}
  }

  /** See `lentTo`. */
  static lentTo<C> (lease: Lease<C>, borrower: Borrower): void {
    if (lease instanceof PoolLease && !lease.ended) lease.#lender.upkeep.borrowed(lease.#entry, borrower)
  }

  /** See `acquiredBy`. */
  static acquiredBy<C> (lease: Lease<C>, stack: string): void {
    const watch = lease instanceof PoolLease && !lease.ended ? lease.#entry.extras?.watch : undefined
    if (watch !== undefined) watch.stack = stack
  }

  /** For the request scope: see `abandon`. */
  static abandon<C> (lease: Lease<C>): void {
    if (lease instanceof PoolLease) lease.#destroy('aborted')
  }
}

/** The connection itself, also where the option `wrap` made something else of it. */
export const bare: <C>(lease: Lease<C>) => C = PoolLease.bare

/** Ends a lease whose connection somebody may still be using: the connection is destroyed with reason 'aborted'. */
export const abandon: <C>(lease: Lease<C>) => void = PoolLease.abandon

/**
 * Calls `listener` once when the lease ends, whoever ends it, before its connection is offered to the next caller; at
 * once where the lease has ended. A lease has one such listener, which must not throw.
 */
export const onEnd: <C>(lease: Lease<C>, listener: () => void) => void = PoolLease.onEnd

/** Whether a command is under way on its connection, as far as its driver says. */
export const isBusy: <C>(lease: Lease<C>) => boolean = PoolLease.isBusy

/**
 * A lease is given back as soon as somebody waits for one: `recall` does that, at once, and returns true; or it returns
 * false where that can't be (any more). It may be asked again then.
 *
 * @returns its own undo, to be called when the lease is not to be given back any more
 */
export const lendable: <C>(lease: Lease<C>, recall: () => boolean) => () => void = PoolLease.lendable

/** Names whom the pool asks about a lease. Another one takes the place of the first. */
export const lentTo: <C>(lease: Lease<C>, borrower: Borrower) => void = PoolLease.lentTo

/** Names the code that acquired a lease, where it waited in another line than its engine's. @param stack its stack */
export const acquiredBy: <C>(lease: Lease<C>, stack: string) => void = PoolLease.acquiredBy

/** The lease of a job, with what its call says of how long it may be out. */
export function lendFor<C> (lease: Lease<C>, { holdTimeout }: Pick<AcquireOptions, 'holdTimeout'>): Lease<C> {
  lentTo(lease, { holdTimeout, moved: undefined, restarts: 0, inVain: undefined })
  return lease
}

/** @throws `FST_POOL_BAD_OPTIONS` */
export function checkHoldTimeout ({ holdTimeout }: Pick<AcquireOptions, 'holdTimeout'>): void {
  if (holdTimeout === undefined || isTime(holdTimeout)) return
  throw badOption('holdTimeout', holdTimeout, timeExpected)
}

/**
 * Begins a transaction over all that the lease does until it is committed or rolled back; when the lease ends first, it
 * is rolled back. The commit has the pool's `commitTimeout`, unless the options have another one.
 */
export const hold: <C>(lease: Lease<C>, options: HoldOptions) => Promise<HeldTransaction> = PoolLease.hold

/**
 * Whether what the calling code sends now becomes part of a transaction that the code is not within, and is rolled back
 * with it.
 */
export const isBeside: <C>(lease: Lease<C>) => boolean = PoolLease.isBeside

/**
 * As `lease.transaction`, for a request: the commit has the pool's `commitTimeout`, unless the options have another
 * one.
 */
export const transact: <C, T>(
  lease: Lease<C>, fn: (connection: C) => T | Promise<T>, options?: RunOptions
) => Promise<T> = PoolLease.transact

/**
 * Calls `fn` a turn after the innermost transaction of the calling code on this lease was stored ('afterCommit'), or
 * undone ('afterRollback'). Where no transaction is open: `afterCommit` at once, `afterRollback` never.
 *
 * @throws `FST_POOL_NOT_SUPPORTED`, `FST_POOL_LEASE_RELEASED`
 */
export const after: <C>(lease: Lease<C>, on: After, fn: () => unknown) => void = PoolLease.after
