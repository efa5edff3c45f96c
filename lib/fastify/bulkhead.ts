import type { FastifyRequest } from 'fastify'
import type { AcquireOptions, AcquireSignal, Clock, HolderLabel, Lease, PoolFace, Timer } from '../../types/pool.js'
import { systemClock } from '../pool/clock.js'
import { PoolError, badOption } from '../pool/errors.js'
import type { ResolvedPoolOptions } from './options.js'
import { Waiter, Waiters } from '../pool/waiters.js'
import { askKey } from './keys.js'
import { RequestHolder } from './scope.js'

type Options = Pick<ResolvedPoolOptions, 'acquireTimeout' | 'maxPending'> & { readonly bulkhead: NonNullable<ResolvedPoolOptions['bulkhead']> }

/** What one key has of the pool, and who waits for more of it. There is one only while somebody does either. */
class Share extends Waiters<never> {
  /** Requests of this key that have a connection, or are about to get one. */
  used = 0
  /** How long they hold it, in ms: a moving mean. */
  held = 0

  constructor (readonly key: string) { super() }
}

/** A request's place in its key's share. It is also the lease's holder, so that the pool tells by it when the lease is over, whichever way. */
class Permit extends RequestHolder {
  // Not to be seen: holders are shown, and the key may be a secret.
  #share: Share | undefined

  constructor (share: Share, request: FastifyRequest, holder: Exclude<HolderLabel, string>) {
    super(holder.route ?? '', request, holder.id)
    this.#share = share
  }

  /** The share whose place this is; once: undefined when it was given back before. */
  end (): Share | undefined {
    const share = this.#share
    this.#share = undefined
    return share
  }
}

/**
 * Fair shares of one pool: requests of the same key have at most `max` of its connections, and the next ones wait in front of the pool, where they
 * take no place in its line. First come, first served; anybody can leave in O(1).
 */
export class Bulkhead {
  readonly #pool: PoolFace<unknown>
  readonly #options: Options['bulkhead']
  readonly #acquireTimeout: number
  readonly #maxPending: number
  readonly #clock: Clock
  readonly #shares = new Map<string, Share>()
  #pending = 0
  #closed = false
  /** One for all: set to the first deadline that there may be. */
  #timer: Timer | undefined
  #timerAt = Infinity

  constructor (pool: PoolFace<unknown>, options: Options, clock: Clock = systemClock) {
    this.#pool = pool
    this.#options = options.bulkhead
    this.#acquireTimeout = options.acquireTimeout
    this.#maxPending = options.maxPending
    this.#clock = clock
    pool.on('release', ({ holder, held }) => {
      const share = holder instanceof Permit ? holder.end() : undefined
      if (share === undefined) return
      share.held += (held - share.held) / (share.held === 0 ? 1 : 8)
      this.#leave(share)
    })
  }

  /** Requests that wait for their share. */
  get pending (): number {
    return this.#pending
  }

  /** How many keys are in use. */
  get keys (): number {
    return this.#shares.size
  }

  /**
   * As the pool's own: null where somebody would have to wait, be it for a connection or for the share.
   *
   * @throws what the key's function throws; `FST_POOL_BAD_OPTIONS` where it gives no key
   */
  tryAcquire (request: FastifyRequest, options: AcquireOptions): Lease<unknown> | null {
    const key = this.#keyOf(request)
    if (key === undefined) return this.#pool.tryAcquire(options)
    const share = this.#shareOf(key)
    if (share.used >= this.#options.max) return null
    const permit = this.#enter(share, request, options.holder)
    let lease: Lease<unknown> | null = null
    try {
      lease = this.#pool.tryAcquire({ ...options, holder: permit })
    } finally {
      if (lease === null) this.#cancel(permit)
    }
    return lease
  }

  /**
   * As the pool's own: the deadline is of both waits together.
   *
   * @throws what `Pool.acquire` throws; what the key's function throws; `FST_POOL_BAD_OPTIONS` where it gives no key
   */
  async acquire (request: FastifyRequest, options: AcquireOptions): Promise<Lease<unknown>> {
    const key = this.#keyOf(request)
    if (key === undefined) return await this.#pool.acquire(options)
    const share = this.#shareOf(key)
    let { timeout } = options
    let permit: Permit
    if (share.used < this.#options.max) permit = this.#enter(share, request, options.holder)
    else {
      const deadline = await this.#wait(share, options)
      // Its turn has come: whoever was before it has left its place in the share to it.
      permit = new Permit(share, request, labelOf(options.holder))
      timeout = Math.max(1, deadline - this.#clock.now())
    }
    try {
      return await this.#pool.acquire({ ...options, ...(timeout !== undefined && { timeout }), holder: permit })
    } catch (error) {
      this.#cancel(permit)
      throw error
    }
  }

  /** The pool closes, and takes nobody any more: who waits here is turned away. */
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

  #enter (share: Share, request: FastifyRequest, holder: HolderLabel | undefined): Permit {
    this.#shares.set(share.key, share)
    share.used++
    return new Permit(share, request, labelOf(holder))
  }

  /** Resolves when the caller has a place in the share, with its deadline. */
  async #wait (share: Share, { timeout = this.#acquireTimeout, signal, holder }: AcquireOptions): Promise<number> {
    if (!(timeout >= 1 && timeout <= 2 ** 31 - 1)) throw badOption('timeout', timeout, 'milliseconds, at least 1')
    if (signal?.aborted === true) throw this.#abortError(signal)
    if (this.#closed) throw this.#closedError()
    if (this.#pending >= this.#maxPending) throw this.#fullError(share)
    const now = this.#clock.now()
    const deadline = now + timeout
    await new Promise<unknown>((resolve) => {
      const waiter = new Waiter<never>(holder, now, deadline, resolve)
      if (signal !== undefined) {
        const leave = () => {
          this.#take(share, waiter)
          waiter.reject(this.#abortError(signal))
        }
        signal.addEventListener('abort', leave, { once: true })
        waiter.unlisten = () => { signal.removeEventListener('abort', leave) }
      }
      share.add(waiter)
      this.#pending++
      this.#arm(deadline)
    })
    return deadline
  }

  /** Out of the line. */
  #take (share: Share, waiter: Waiter<never>): void {
    share.remove(waiter)
    waiter.unlisten?.()
    waiter.end()
    this.#pending--
    if (this.#pending === 0) this.#disarm()
  }

  /** There was no lease. */
  #cancel (permit: Permit): void {
    const share = permit.end()
    if (share !== undefined) this.#leave(share)
  }

  #leave (share: Share): void {
    const next = share.first()
    if (next !== undefined) {
      // Its place in the share goes from hand to hand.
      this.#take(share, next)
      next.resolve(undefined as never)
      return
    }
    share.used--
    if (share.used === 0) this.#shares.delete(share.key)
  }

  #arm (at: number): void {
    if (at >= this.#timerAt) return
    this.#disarm()
    this.#timerAt = at
    this.#timer = this.#clock.setTimer(() => { this.#sweep() }, Math.max(1, Math.ceil(at - this.#clock.now())))
    // There is one only while somebody waits.
    this.#timer.ref()
  }

  #disarm (): void {
    this.#timer?.cancel()
    this.#timer = undefined
    this.#timerAt = Infinity
  }

  #sweep (): void {
    this.#disarm()
    const now = this.#clock.now()
    let next = Infinity
    for (const share of this.#shares.values()) {
      next = Math.min(next, share.sweep(now, (waiter) => {
        const error = this.#timeoutError(share, waiter.deadline - waiter.since)
        this.#take(share, waiter)
        waiter.reject(error)
      }))
    }
    if (next < Infinity) this.#arm(next)
  }

  // --- Errors: they go to clients, so they never show the key -----------------------------------------------------------------------------

  #numbers ({ used, size }: Share): string {
    return `bulkhead.max ${this.#options.max}, used ${used}, pending ${size}`
  }

  /** In seconds, until the next one in line would have its turn. */
  #predicted ({ held, size }: Share): { readonly retryAfter: number } {
    return { retryAfter: held * (size + 1) / this.#options.max / 1000 }
  }

  #timeoutError (share: Share, timeout: number): PoolError {
    const what = `no connection from pool '${this.#pool.name}' within ${Math.round(timeout)} ms`
    return new PoolError('FST_POOL_ACQUIRE_TIMEOUT', `${what}: requests of the same key have their whole share of it (${this.#numbers(share)}). ` +
      'Look for slow queries, or raise bulkhead.max.', this.#predicted(share))
  }

  #fullError (share: Share): PoolError {
    const what = `requests of the same key have their whole share of pool '${this.#pool.name}' (${this.#numbers(share)})`
    return new PoolError('FST_POOL_QUEUE_FULL', `${what}, and ${this.#pending} wait for their shares already. ` +
      'Look for slow queries, or raise bulkhead.max or maxPending.', this.#predicted(share))
  }

  #abortError (signal: AcquireSignal): PoolError {
    return new PoolError('FST_POOL_ABORTED', `an acquire from pool '${this.#pool.name}' was aborted by its signal`, { cause: signal.reason })
  }

  #closedError (): PoolError {
    return new PoolError('FST_POOL_CLOSED', `pool '${this.#pool.name}' is closing`, { retryAfter: this.#pool.closeTimeout / 1000 })
  }
}

function labelOf (holder: HolderLabel | undefined): Exclude<HolderLabel, string> {
  return typeof holder === 'string' ? { route: holder } : holder ?? {}
}
