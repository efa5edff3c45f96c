import type { FastifyRequest } from 'fastify'
import type { BulkheadOptions } from '../../../types/plugin.js'
import type { AcquireOptions, AcquireSignal, Clock, Lease, PoolFace } from '../../../types/pool.js'
import { callerOfTargets } from '../../balance/target-pool.js'
import { Alarm, deadlineExpected, isDeadline, leftOf, systemClock } from '../../engine/time.js'
import { PoolError, badOption } from '../../engine/errors.js'
import { acquiredBy, lendable, onEnd } from '../../engine/lease.js'
import { Lendable } from '../../engine/lendable.js'
import { Guest, Moment, Waiters, kPlace, type Placed, type Waiter } from '../../engine/line.js'
import { callerOf } from '../../pool/pool.js'
import { RequestHolder } from '../request/holder.js'
import { askKey } from './keys.js'
import type { Source } from './source.js'

/** What a bulkhead needs of its pool's options. */
interface Options {
  readonly acquireTimeout: number
  readonly maxPending: number
  readonly bulkhead: BulkheadOptions
}

/**
 * The share of one key: what its requests have of the pool, and which of them wait for more. It is kept only while
 * there are such requests.
 */
class Share extends Waiters<never> {
  /** How many requests of this key have a connection, or are about to get one. */
  used = 0
  /** How long requests of this key hold a connection, in ms: a moving mean. */
  held = 0
  /** Leases of this key that go back as soon as another request of it waits. */
  readonly lendable = new Lendable()

  constructor (readonly key: string) { super() }
}

/**
 * Fair shares of one pool: requests of the same key have at most `max` of its connections, and the next ones wait in
 * front of the pool, where they take no place in its line. First come, first served; anybody can leave in O(1).
 */
export class Bulkhead implements Source {
  readonly #pool: PoolFace<unknown>
  readonly #options: BulkheadOptions
  readonly #acquireTimeout: number
  readonly #maxPending: number
  readonly #clock: Clock
  readonly #shares = new Map<string, Share>()
  /** How many wait, of all keys together. */
  #pending = 0
  /** Which share a lease is of. */
  readonly #sharesOf = new WeakMap<Lease<unknown>, Share>()
  #closed = false
  /** Set to the earliest deadline of all who wait, and only while somebody waits. */
  readonly #alarm: Alarm

  constructor (pool: PoolFace<unknown>, options: Options, clock: Clock = systemClock) {
    this.#pool = pool
    this.#options = options.bulkhead
    this.#acquireTimeout = options.acquireTimeout
    this.#maxPending = options.maxPending
    this.#clock = clock
    this.#alarm = new Alarm(clock, (fn) => fn(), () => { this.#sweep() }, () => true)
  }

  /** How many requests wait for their share. */
  get pending (): number {
    return this.#pending
  }

  /** How many keys are in use. */
  get keys (): number {
    return this.#shares.size
  }

  serves (): boolean {
    return true
  }

  /**
   * As the pool's own: null where the request would have to wait, for a connection or for its share.
   *
   * @throws what the key's function throws; `FST_POOL_BAD_OPTIONS` where it gives no key
   */
  tryAcquire (request: FastifyRequest, options: AcquireOptions): Lease<unknown> | null {
    const key = this.#keyOf(request)
    if (key === undefined) return this.#pool.tryAcquire(options)
    const share = this.#shareOf(key)
    if (share.used >= this.#options.max) return null
    this.#enter(share)
    let lease: Lease<unknown> | null = null
    try {
      lease = this.#pool.tryAcquire(options)
    } finally {
      if (lease === null) this.#leave(share)
      else this.#lent(share, lease)
    }
    return lease
  }

  /**
   * As the pool's own. The wait for the share and the wait for a connection have one deadline together.
   *
   * @throws what `Pool.acquire` throws; what the key's function throws; `FST_POOL_BAD_OPTIONS` where it gives no key
   */
  async acquire (request: FastifyRequest, options: AcquireOptions): Promise<Lease<unknown>> {
    const key = this.#keyOf(request)
    if (key === undefined) return await this.#pool.acquire(options)
    const share = this.#shareOf(key)
    const caller = callerOf(this.#pool) ?? callerOfTargets(this.#pool)
    let { timeout } = options
    if (share.used >= this.#options.max) share.lendable.recall()
    if (share.used < this.#options.max) this.#enter(share)
    else timeout = leftOf(await this.#wait(share, options), this.#clock.now())
    try {
      const holder = RequestHolder.named(request, options.holder)
      const lease = await this.#pool.acquire({ ...options, timeout, holder })
      if (caller !== undefined) acquiredBy(lease, caller)
      this.#lent(share, lease)
      return lease
    } catch (error) {
      this.#leave(share)
      throw error
    }
  }

  lendable (lease: Lease<unknown>, recall: () => boolean): () => void {
    const share = this.#sharesOf.get(lease)
    const undos = [lendable(lease, recall), share?.lendable.add(recall)]
    if (share !== undefined && share.size > 0) share.lendable.recall()
    return () => { for (const undo of undos) undo?.() }
  }

  /** The pool closes, and serves nobody any more: those who wait here are turned away. */
  close (): void {
    this.#closed = true
    for (const share of this.#shares.values()) {
      for (let waiter = share.first(); waiter !== undefined; waiter = share.first()) {
        this.#take(share, waiter)
        waiter.reject(this.#closedError())
      }
    }
  }

  #keyOf (request: FastifyRequest): string | undefined {
    return askKey(this.#options.key, request, this.#pool.name, 'bulkhead.key')
  }

  #shareOf (key: string): Share {
    return this.#shares.get(key) ?? new Share(key)
  }

  #enter (share: Share): void {
    this.#shares.set(share.key, share)
    share.used++
  }

  /** The place in the share is free again when the lease ends, however it ends. */
  #lent (share: Share, lease: Lease<unknown>): void {
    const since = this.#clock.now()
    this.#sharesOf.set(lease, share)
    onEnd(lease, () => {
      share.held += (this.#clock.now() - since - share.held) / (share.held === 0 ? 1 : 8)
      this.#leave(share)
    })
  }

  /** Resolves when somebody who left has handed a place in the share over to the caller, to the caller's deadline. */
  async #wait (share: Share, options: AcquireOptions & Placed): Promise<number> {
    const { timeout = this.#acquireTimeout, signal, holder, [kPlace]: place } = options
    if (!isDeadline(timeout)) throw badOption('timeout', timeout, deadlineExpected)
    if (signal?.aborted === true) throw this.#abortError(signal)
    if (this.#closed) throw this.#closedError()
    if (place === undefined && this.#pending >= this.#maxPending) throw this.#fullError(share)
    const now = this.#clock.now(true)
    const deadline = now + timeout
    await new Promise<unknown>((resolve) => {
      const waiter = new Guest<never>(place, holder, new Moment(now), timeout, resolve)
      if (signal !== undefined) {
        waiter.leaveOn(signal, () => {
          this.#take(share, waiter)
          waiter.reject(this.#abortError(signal))
        })
      }
      if (place === undefined) share.add(waiter)
      else share.insert(waiter)
      this.#pending++
      this.#alarm.set(deadline)
    })
    return deadline
  }

  /** Takes somebody out of the line. */
  #take (share: Share, waiter: Waiter<never>): void {
    share.remove(waiter)
    waiter.end()
    this.#pending--
    if (this.#pending === 0) this.#alarm.cancel()
  }

  /** A place in the share is free. It goes to the first who waits, from hand to hand: nobody can come between. */
  #leave (share: Share): void {
    const next = share.first()
    if (next !== undefined) {
      this.#take(share, next)
      next.resolve(undefined as never)
      return
    }
    share.used--
    if (share.used === 0) this.#shares.delete(share.key)
  }

  #sweep (): void {
    const now = this.#clock.now()
    let next = Infinity
    for (const share of this.#shares.values()) {
      next = Math.min(next, share.sweep(now, (waiter) => {
        const error = this.#timeoutError(share, waiter.deadline - waiter.since)
        this.#take(share, waiter)
        waiter.reject(error)
      }))
    }
    this.#alarm.set(next)
  }

  // --- Errors: they go to clients, so they never show the key --------------------------------------------------------

  #numbers ({ used, size }: Share): string {
    return `bulkhead.max ${this.#options.max}, used ${used}, pending ${size}`
  }

  /** In how many seconds one who joined the line now would have its turn. */
  #predicted ({ held, size }: Share): { readonly retryAfter: number } {
    return { retryAfter: held * (size + 1) / this.#options.max / 1000 }
  }

  #timeoutError (share: Share, timeout: number): PoolError {
    const what = `no connection from pool '${this.#pool.name}' within ${Math.round(timeout)} ms`
    const why = `requests of the same key have their whole share of it (${this.#numbers(share)})`
    const message = `${what}: ${why}. Look for slow queries, or raise bulkhead.max.`
    return new PoolError('FST_POOL_ACQUIRE_TIMEOUT', message, this.#predicted(share))
  }

  #fullError (share: Share): PoolError {
    const pool = `pool '${this.#pool.name}' (${this.#numbers(share)})`
    const what = `requests of the same key have their whole share of ${pool}`
    const message = `${what}, and ${this.#pending} wait for their shares already. ` +
      'Look for slow queries, or raise bulkhead.max or maxPending.'
    return new PoolError('FST_POOL_QUEUE_FULL', message, this.#predicted(share))
  }

  #abortError (signal: AcquireSignal): PoolError {
    const message = `an acquire from pool '${this.#pool.name}' was aborted by its signal`
    return new PoolError('FST_POOL_ABORTED', message, { cause: signal.reason })
  }

  #closedError (): PoolError {
    const { name, closeTimeout } = this.#pool
    return new PoolError('FST_POOL_CLOSED', `pool '${name}' is closing`, { retryAfter: closeTimeout / 1000 })
  }
}
