import { AsyncResource } from 'node:async_hooks'
import type { Connector, DestroyReason } from '../../types/connector.js'
import type {
  AcquireOptions, AcquireSignal, Circuit as CircuitState, Clock, ErrorPhase, Holder, HolderLabel, HoldOptions,
  HookInfo, Lease, PoolEventName, PoolEvents, PoolFace, PoolHealth, PoolListener, PoolStats, RunOptions, Timer, UseOptions,
  WrapInfo,
} from '../../types/pool.js'
import { Circuit } from './circuit.js'
import { systemClock } from './clock.js'
import { PoolError, badOption, scrub, secretsOf } from './errors.js'
import type { EngineOptions, PoolHooks } from '../../types/options.js'
import { checkEngineOptions, type ResolvedEngineOptions } from './options.js'
import { useWithRetry } from './retry.js'
import { Histogram } from './stats.js'
import {
  LeaseTransactions, checkRunOptions, commitLate, commitLost, released, type Commit, type HeldTransaction, type Host,
  type Phase,
} from './transaction.js'
import { Waiter, Waiters } from './waiters.js'

// A connection's states. Its entry is in exactly one, and only `Pool.#move` changes it.
const CREATING = 0
const IDLE = 1
/** Lent, or being prepared, validated, kept alive or reset. */
const USED = 2
const CLOSING = 3
/** Its create or destroy is past the deadline: it no longer counts against `max`, and its late answer is still owned. */
const LATE = 4
const GONE = 5
/** Where the idle and the used ones are counted, together: which of them are idle, their list says. */
const HERE = USED
type State = typeof CREATING | typeof IDLE | typeof USED | typeof CLOSING | typeof LATE | typeof GONE

/** How coarse the clock of the fast path is, in ms. A clock read costs as much as lending a connection (47 to 55 ns of 60). */
const TICK = 100
/** So many creates go on when nobody waits for them any more: a pool whose line comes and goes grows all the same, and not by all who ever stood in it. */
const SPARE = 2
/** How many leases of a tick are timed exactly. */
const SAMPLES = 64

/** The line's pace is the mean over so many leases of each connection: fewer, and connections that are given back at the same time make it jump. */
const PACED = 8
/** What part of its deadline an acquire may be predicted to wait: the pace is a mean, and to be refused at once is better than to wait in vain. */
const MARGIN = 0.8
/** In ms: how long after an obstacle was met it is looked for again; doubled each time, up to the second. */
const LOOK = 1
const LOOK_LATER = 25

const reasons: readonly DestroyReason[] = ['idle', 'lifetime', 'uses', 'invalid', 'stale', 'error', 'aborted', 'leaked', 'closed', 'released']

const newContext = () => new AsyncResource('FASTIFY_POOL')

/** What the pool does with a connection that is not at rest. */
class Operation<C> {
  /** The phases of a transaction are for the borrower; undefined: its create, or its end. */
  doing: 'prepare' | 'validate' | 'reset' | Phase | undefined
  deadline = Infinity
  /** It is validated because somebody waits. */
  awaited = false
  /** The acquire that waits while `onAcquire` prepares this connection. */
  prepared: Waiter<C> | undefined
  /** The commit that it is, or that was under way when its lease was given back. */
  commit: Commit | undefined
  controller: AbortController | undefined

  get signal (): AbortSignal {
    return (this.controller ??= new AbortController()).signal
  }
}

/** What is to be known of a connection until it is made. */
class Creation {
  /** `create` has delivered the connection. */
  delivered = false
  /** The create is past the deadline, and the reason is not told yet: tells it. */
  explain: ((cause: unknown) => void) | undefined
  /** Why its connection will not be kept. */
  unwanted: DestroyReason | undefined

  /** @param failures how many creates in a row had failed when it began */
  constructor (readonly began: number, readonly failures: number) {}
}

/** What is to be known of a lease where the pool looks for leaks. */
class Watch {
  reported = false
  /** The lease object was garbage collected: nobody can release it. */
  lost = false

  constructor (readonly stack: string | undefined) {}
}

/** The pool's record of one connection. There may be thousands: what only some of them need for a while is in objects of its own, and times are whole ms but for `takenAt`. */
class Entry<C> {
  connection: C = undefined as C
  /** What borrowers get: the connection, or what `wrap` made of it. */
  face: C = undefined as C
  state: State = CREATING
  /** Counts the beginnings and the ends of its leases: odd while it is lent. A lease knows its turn, so one that has ended can do nothing to a later one. */
  turn = 0
  holder: HolderLabel | undefined
  takenAt = 0
  /** Whether `takenAt` is exact. */
  timed = false
  /** Of the lease that is out, from its first transaction on. */
  transactions: LeaseTransactions<C> | undefined
  watch: Watch | undefined
  /** Called when the lease that is out ends, by whomever: set by `onEnd`. */
  onEnd: (() => void) | undefined
  idleSince = 0
  /** When it was last known to be alive. */
  freshAt = 0
  /** 0: never. */
  expiresAt = 0
  operation: Operation<C> | undefined
  creation: Creation | undefined
  /** The pool's own reason against lending it again. */
  doomed: DestroyReason | undefined
  /** What it died of. */
  broken: Error | undefined

  constructor (readonly id: number, public createdAt: number) {}

  get lent (): boolean {
    return (this.turn & 1) === 1
  }

  /** How many times it was lent. */
  get uses (): number {
    return (this.turn + 1) >> 1
  }
}

/** How long the leases were held that a pool itself ended: each the last one of its connection. */
const revokedAfter = new WeakMap<object, number>()

/** Where a pool stands among several behind one name: what it asks of them. All of it is cheap; it is asked at creates, returns and ends. */
export interface Place {
  /** How events call the pool; undefined: not at all. */
  readonly target: string | undefined
  /** The next connection's id: unique among all of them. */
  nextId (): number
  /** Whether one more connection may be made. Where not, the others make room as soon as they can, and `inside.wake` is called then. */
  mayCreate (): boolean
  /** A connection came back: whether it must be closed so that another pool can make one. */
  mustYield (): boolean
  /** A connection is gone: there may be room. */
  freed (): void
}

/** What the pools behind one name do to each other: for lib/balance, and nobody else. */
export interface Inside {
  /** Numbers of now, without a copy of the books. `total`: what counts against `max`. `coming`: creates whose connection will be kept. */
  load<C> (pool: Pool<C>): { readonly total: number, readonly idle: number, readonly used: number, readonly pending: number, readonly coming: number, readonly circuit: CircuitState }
  /** Closes an idle connection, with reason 'idle'. False: there is none. */
  shed<C> (pool: Pool<C>): boolean
  /** Looks again for creates that are needed. */
  wake<C> (pool: Pool<C>): void
  /** Rejects all who wait. */
  turnAway<C> (pool: Pool<C>, why: () => PoolError): void
  /** The connection itself, where `wrap` made something else of it. */
  bare<C> (lease: Lease<C>): C
}

// What a lease may do to its pool, and nobody else: set where Pool's private methods are in reach.
let giveBack: <C>(pool: Pool<C>, entry: Entry<C>) => number
let throwAway: <C>(pool: Pool<C>, entry: Entry<C>, reason: DestroyReason, error?: Error) => void
let heldSince: <C>(pool: Pool<C>, entry: Entry<C>) => number
let mergeDurations: <C>(pools: ReadonlyArray<Pool<C>>) => Pick<PoolStats, 'wait' | 'held' | 'create'>
let commitTimeoutOf: <C>(pool: Pool<C>) => number
let transactionsOf: <C>(pool: Pool<C>, entry: Entry<C>) => LeaseTransactions<C>
let insideOf: Inside

class PoolLease<C> implements Lease<C> {
  readonly #pool: Pool<C>
  readonly #entry: Entry<C>
  readonly #turn: number
  #held: number | undefined

  constructor (pool: Pool<C>, entry: Entry<C>) {
    this.#pool = pool
    this.#entry = entry
    this.#turn = entry.turn
  }

  get connection (): C {
    this.#mustBeOut()
    return this.#entry.transactions?.connection ?? this.#entry.face
  }

  get raw (): unknown {
    this.#mustBeOut()
    return this.#entry.transactions?.raw ?? this.#entry.connection
  }

  get pool (): string {
    return this.#pool.name
  }

  get holder (): HolderLabel | undefined {
    return this.#entry.turn === this.#turn ? this.#entry.holder : undefined
  }

  get ended (): boolean {
    return this.#entry.turn !== this.#turn
  }

  get heldFor (): number {
    if (this.#entry.turn === this.#turn) return heldSince(this.#pool, this.#entry)
    return this.#held ?? revokedAfter.get(this.#entry) ?? 0
  }

  release (): void {
    if (this.#entry.turn !== this.#turn) return
    this.#held = giveBack(this.#pool, this.#entry)
  }

  destroy (error?: Error): void {
    this.#destroy(error === undefined ? 'released' : 'error', error)
  }

  #destroy (reason: DestroyReason, error?: Error): void {
    if (this.#entry.turn !== this.#turn) return
    this.#held = heldSince(this.#pool, this.#entry)
    throwAway(this.#pool, this.#entry, reason, error)
  }

  async transaction<T> (fn: (connection: C) => T | Promise<T>, options?: RunOptions): Promise<T> {
    this.#mustBeOut()
    return await transactionsOf(this.#pool, this.#entry).run(fn, options)
  }

  [Symbol.dispose] (): void {
    this.release()
  }

  #mustBeOut (): void {
    if (this.#entry.turn === this.#turn) return
    throw new PoolError('FST_POOL_LEASE_RELEASED', `the lease on pool '${this.#pool.name}' has ended: acquire again, and do not keep the connection beyond the request`)
  }

  /** For the request scope: a transaction over all that its request does. */
  static async hold<C> (lease: Lease<C>, options: HoldOptions): Promise<HeldTransaction> {
    if (!(lease instanceof PoolLease)) throw new PoolError('FST_POOL_NOT_SUPPORTED', `the lease on pool '${lease.pool}' is not one of ours: it has no transactions`)
    lease.#mustBeOut()
    const { commitTimeout = commitTimeoutOf(lease.#pool) } = options
    return await transactionsOf(lease.#pool, lease.#entry).hold({ ...options, commitTimeout })
  }

  /** For the request scope: its commit has a deadline by itself. */
  static async transact<C, T> (
    lease: Lease<C>, fn: (connection: C) => T | Promise<T>, options?: RunOptions
  ): Promise<T> {
    if (!(lease instanceof PoolLease)) return await lease.transaction(fn, options)
    lease.#mustBeOut()
    return await transactionsOf<C>(lease.#pool, lease.#entry).run(fn, options, commitTimeoutOf(lease.#pool))
  }

  /** For the request scope. */
  static isBeside<C> (lease: Lease<C>): boolean {
    return lease instanceof PoolLease && lease.#entry.transactions !== undefined && lease.#entry.transactions.isBeside
  }

  static bare<C> (lease: Lease<C>): C {
    return lease instanceof PoolLease ? lease.#entry.connection as C : lease.connection
  }

  /** For a bulkhead. */
  static onEnd<C> (lease: Lease<C>, listener: () => void): void {
    if (lease.ended) listener()
    else (lease as PoolLease<C>).#entry.onEnd = listener
  }

  /** For the request scope: its request ended abnormally and its handler may still use the connection. */
  static abandon<C> (lease: Lease<C>): void {
    if (lease instanceof PoolLease) lease.#destroy('aborted')
  }
}

/** Ends a lease whose connection somebody may still be using: the connection is destroyed with reason 'aborted'. */
export const abandon: <C>(lease: Lease<C>) => void = PoolLease.abandon

/**
 * Calls `listener` once, when the lease ends, whichever way and whoever ends it: before its connection is offered to
 * the next caller. At once where it has ended. A lease has one such listener, which must not throw.
 */
export const onEnd: <C>(lease: Lease<C>, listener: () => void) => void = PoolLease.onEnd

/** How long acquires waited, leases were held and creates took, in several pools together. */
export const durationsOf = <C>(pools: ReadonlyArray<Pool<C>>): Pick<PoolStats, 'wait' | 'held' | 'create'> => mergeDurations(pools)

/**
 * Begins a transaction over all that the lease does until it is committed or rolled back; a lease that ends first rolls
 * it back. Its commit has the pool's `commitTimeout`, unless the options say otherwise.
 */
export const hold: <C>(lease: Lease<C>, options: HoldOptions) => Promise<HeldTransaction> = PoolLease.hold

/**
 * Whether code that uses the connection now gets into a transaction of the lease that it is not within, and that may be
 * rolled back.
 */
export const isBeside: <C>(lease: Lease<C>) => boolean = PoolLease.isBeside

/**
 * As `lease.transaction`, for a request: its commit has the pool's `commitTimeout`, unless the options say otherwise.
 */
export const transact: <C, T>(
  lease: Lease<C>, fn: (connection: C) => T | Promise<T>, options?: RunOptions
) => Promise<T> = PoolLease.transact

type Listeners = { [E in PoolEventName]?: ReadonlyArray<PoolListener<E>> }

/**
 * A pool of connections that a connector makes.
 *
 * `max` is hard: connections being made or closed count. Callers are served first come, first served, each by whichever connection is ready
 * first. Every acquire settles once, by its deadline. Nothing foreign is waited for without one.
 */
export class Pool<C, K extends Connector<C> = Connector<C>> implements PoolFace<C, K> {
  readonly name: string
  /** The connector: what only this database has is there. */
  readonly backend: K
  /** How long `close()` takes at most, in ms, unless it is told otherwise. */
  readonly closeTimeout: number

  /** Whether `role: 'replica'` may get another kind of connection. */
  readonly replicas: boolean = false

  readonly #options: ResolvedEngineOptions<C>
  #hidden: { readonly of: readonly string[] | undefined, readonly secrets: readonly string[] } | undefined
  readonly #clock: Clock
  readonly #place: Place | undefined
  #lastId = 0
  /** Connector, hooks, listeners and timers run here, not in the async context of whichever caller happened to set them off. */
  readonly #context = new AsyncResource('FASTIFY_POOL')
  #min: number
  #max: number
  #maxConnecting: number | undefined

  readonly #entries = new Set<Entry<C>>()
  /** The last is the next to be lent: those at the front are left to idle out. */
  readonly #idle: Array<Entry<C>> = []
  /** How many entries are in each state, the idle ones with the used ones. */
  readonly #count = [0, 0, 0, 0, 0, 0]
  /** Of those being created: nobody waits for them any more. */
  #unwanted = 0
  readonly #waiters = new Waiters<C>()
  /** Of the used ones: being validated for somebody who waits. */
  #validating = 0
  /** How many have left the line for a connection that is being prepared for them. */
  #preparing = 0

  #phase: 'open' | 'draining' | 'closing' | 'closed' = 'open'
  #suspended = false
  /** Somebody has used or opened the pool, so `min` is kept from now on. */
  #started = false
  #openers: Array<{ readonly target: number, readonly resolve: () => void, readonly reject: (error: Error) => void }> = []
  #closed: Promise<void> | undefined
  /** There may be more than `max`. */
  #shrunk = false
  /** For the next reset. */
  #spare: AbortController | undefined
  /** Connections that had been destroyed when the pool began to drain. */
  #destroyedBefore = 0
  #quiet: Array<() => void> = []
  #empty: Array<() => void> = []

  // Failing creates.
  readonly #circuit: Circuit
  /** As its listeners know it. */
  #circuitTold: CircuitState = 'closed'
  #failures = 0
  #retryAt = 0
  #lastFailure: Error | undefined

  // What is in the way of loans, outside of the pool.
  readonly #meets: boolean
  /** Those who wait, wait for that. */
  #obstacle: string | undefined
  #lookAgain = 0

  // Time.
  /** As of the last tick, or of the last time somebody needed it exactly. */
  #now: number
  #timer: Timer | undefined
  #timerAt = Infinity
  #timerRef = false
  /** No tick is due while nothing happens. */
  #asleep = true
  #acquiredAtTick = 0
  /** What is the same in the errors of all whose deadline comes at the same time. */
  #crowd: { readonly retryAfter: number, readonly holders: readonly Holder[] } | undefined
  readonly #alarms = new Set<{ readonly at: number, readonly ring: () => void }>()

  // Books.
  #acquired = 0
  #released = 0
  #created = 0
  #createErrors = 0
  readonly #destroyed = Object.fromEntries(reasons.map((reason) => [reason, 0])) as Record<DestroyReason, number>
  #timeouts = 0
  #refused = 0
  #aborted = 0
  #leaked = 0
  #samples = SAMPLES
  #overflowing = false
  /** Since there is a line: how often a connection came to somebody in it, when it last did, and after how many ms it does in the mean. */
  #turns = 0
  #turnAt = 0
  #pace = 0
  #hookWaits: boolean
  // Of the options, for the fast path.
  readonly #onAcquire: PoolHooks<C>['onAcquire']
  readonly #onRelease: PoolHooks<C>['onRelease']
  readonly #resets: boolean
  readonly #maxUses: number
  readonly #validateAfter: number
  readonly #maxPending: number
  readonly #acquireTimeout: number
  readonly #overload: boolean
  readonly #waits = new Histogram()
  readonly #holds = new Histogram()
  readonly #creates = new Histogram()
  #listeners: Listeners = {}
  #registry: FinalizationRegistry<{ readonly entry: Entry<C>, readonly turn: number }> | undefined

  static {
    giveBack = (pool, entry) => pool.#giveBack(entry)
    throwAway = (pool, entry, reason, error) => {
      pool.#endLease(entry)
      pool.#destroy(entry, reason, error && scrub(error, pool.#secrets))
    }
    commitTimeoutOf = (pool) => pool.#options.commitTimeout
    transactionsOf = (pool, entry) => (entry.transactions ??= new LeaseTransactions(pool.#hostOf(entry)))
    mergeDurations = (pools) => {
      // Those served at once are in no histogram: they waited for nothing.
      const acquired = pools.reduce((sum, pool) => sum + pool.#acquired, 0)
      const waits = pools.map((pool) => pool.#waits)
      return {
        wait: Histogram.summary(waits, acquired - Histogram.summary(waits).count),
        held: Histogram.summary(pools.map((pool) => pool.#holds)),
        create: Histogram.summary(pools.map((pool) => pool.#creates)),
      }
    }
    insideOf = {
      load: (pool) => ({
        total: pool.#total, idle: pool.#idle.length, used: pool.#used, pending: pool.#waiters.size, coming: pool.#coming, circuit: pool.#circuit.state,
      }),
      shed: (pool) => {
        const entry = pool.#idle.shift()
        if (entry === undefined) return false
        pool.#move(entry, USED)
        pool.#destroy(entry, 'idle')
        return true
      },
      wake: (pool) => { pool.#pump() },
      turnAway: (pool, why) => { pool.#turnAllAway(why) },
      bare: PoolLease.bare,
    }
    // While no tick is due the coarse clock stands still.
    heldSince = (pool, entry) => Math.max(0, (entry.timed || pool.#asleep ? pool.#read(true) : pool.#now) - entry.takenAt)
  }

  /**
   * @param options see the README; `name` is 'db' unless given
   * @param place among several pools behind one name
   * @throws `FST_POOL_BAD_OPTIONS`
   */
  constructor (connector: K & Connector<C>, options: EngineOptions<C> = {}, clock: Clock = systemClock, place?: Place) {
    this.#options = checkEngineOptions<C>(connector, options)
    this.name = this.#options.name
    this.backend = connector
    this.closeTimeout = this.#options.closeTimeout
    this.#max = Math.min(this.#options.max, this.#limit)
    this.#min = Math.min(this.#options.min, this.#max)
    this.#maxConnecting = this.#options.maxConnecting
    this.#circuit = new Circuit(this.#options.circuit)
    this.#onAcquire = this.#options.onAcquire
    this.#onRelease = this.#options.onRelease
    this.#meets = connector.obstacle !== undefined
    this.#resets = connector.reset !== undefined && this.#options.reset !== 'none'
    this.#maxUses = this.#options.maxUses === 0 ? Infinity : this.#options.maxUses
    this.#validateAfter = connector.validate === undefined ? Infinity : this.#options.validateAfter
    this.#maxPending = this.#options.maxPending
    this.#acquireTimeout = this.#options.acquireTimeout
    this.#overload = this.#options.overload
    this.#hookWaits = this.#onAcquire?.constructor.name === 'AsyncFunction'
    this.#clock = clock
    this.#place = place
    this.#now = clock.now()
    if (this.#options.leakAfter > 0) {
      this.#registry = new FinalizationRegistry(({ entry, turn }) => {
        if (entry.turn === turn) this.#lose(entry)
      })
    }
    this.#run(() => connector.onDriverEvent?.((event) => {
      if (this.#listeners.driver !== undefined) this.#emit('driver', event)
    }))
  }

  // --- Taking ---------------------------------------------------------------------------------------------------------------------------

  /**
   * Lends a connection; waits for one if none is idle.
   *
   * @throws `FST_POOL_ACQUIRE_TIMEOUT` at the deadline, or `FST_POOL_CONNECT_FAILED` where there is no connection and none can be made;
   * at once: `FST_POOL_QUEUE_FULL` when `maxPending` callers wait, `FST_POOL_OVERLOADED` when the line moves too slowly for its deadline,
   * `FST_POOL_CIRCUIT_OPEN` when there is no connection and creates keep failing, `FST_POOL_DEADLOCK` when all holders wait for each other, `FST_POOL_CLOSED`;
   * `FST_POOL_ABORTED` when the signal aborts; what `onAcquire` throws
   */
  acquire (options?: AcquireOptions): Promise<Lease<C>> {
    if (options?.timeout !== undefined && !isDeadline(options.timeout)) {
      return Promise.reject(badOption('timeout', options.timeout, 'milliseconds, at least 1'))
    }
    if (options?.signal?.aborted !== true) {
      try {
        const lease = this.#take(options?.holder)
        if (lease !== null) return Promise.resolve(lease)
      } catch (error) {
        return Promise.reject(error)
      }
    }
    return new Promise((resolve, reject) => { this.#wait(options, resolve, reject) })
  }

  /**
   * Lends an idle connection now, or returns null where somebody would have to wait: for a round trip, for others in line, for an async hook.
   *
   * @throws what a synchronous `onAcquire` throws
   */
  tryAcquire (options?: Pick<AcquireOptions, 'holder' | 'role'>): Lease<C> | null {
    return this.#take(options?.holder)
  }

  /**
   * Calls `fn` with a connection and gives it back whatever happens. With `retry`, again on another connection where the connector calls the error transient.
   *
   * @throws what `acquire` or `fn` throws; `FST_POOL_BAD_OPTIONS`
   */
  async use<T> (fn: (connection: C, lease: Lease<C>) => T | Promise<T>, options?: UseOptions): Promise<T> {
    return await useWithRetry({
      acquire: (acquire) => this.acquire(acquire),
      isTransient: (error) => {
        try {
          return this.backend.isTransient?.(error) === true
        } catch (failure) {
          this.#report(failure, 'isTransient')
          return false
        }
      },
      wait: async (ms) => {
        // Nothing would end its timer.
        if (this.#phase === 'closed') return
        const alarm = this.#alarm(ms)
        await alarm.rung
        this.#keepAlive()
      },
      now: () => this.#read(),
      random: () => this.#clock.random(),
      acquireTimeout: this.#acquireTimeout,
      backoff: this.#options.backoff,
    }, fn, options)
  }

  /**
   * Calls `fn` in a transaction, on a connection that goes back whatever happens. Within another transaction of this pool it is a savepoint in that one.
   *
   * @throws what `acquire` and `Lease.transaction` throw
   */
  async transaction<T> (fn: (connection: C) => T | Promise<T>, options: AcquireOptions & RunOptions = {}): Promise<T> {
    const { signal, timeout, holder, role, ...run } = options
    const around = LeaseTransactions.current(this) as LeaseTransactions<C> | undefined
    if (around !== undefined) return await around.run(fn, run)
    // Before anybody waits for a connection.
    checkRunOptions({ name: this.name, transactions: this.backend.transactions }, run)
    return await this.use((_, lease) => lease.transaction(fn, run), { signal, timeout, holder, role })
  }

  /** The fast path: no promise, no clock, no timer. */
  #take (holder: HolderLabel | undefined): Lease<C> | null {
    while (true) {
      // Those who wait come first, even before a connection that became idle this moment. Asked each time: listeners may change it.
      if (this.#idle.length === 0 || this.#waiters.size > 0 || this.#suspended || this.#hookWaits || this.#closed !== undefined) return null
      if (this.#asleep) this.#wake()
      const entry = this.#idle.at(-1)!
      if (this.#isStale(entry)) return null
      this.#idle.pop()
      entry.state = USED
      const reason = this.#unfit(entry) ?? this.#dead(entry)
      if (reason !== undefined) {
        this.#destroy(entry, reason, entry.broken)
        continue
      }
      if (this.#meets && this.#isHindered(entry)) {
        entry.state = IDLE
        this.#idle.push(entry)
        return null
      }
      if (this.#onAcquire === undefined) return this.#lend(entry, holder, 0)
      const preparation = this.#prepare(entry, holder)
      if (preparation === undefined) return this.#lend(entry, holder, 0)
      this.#clean(entry, preparation.then(() => this.#resetOf(entry), (error: unknown) => { throw new HookFailed(this.#report(error, 'onAcquire')) }))
      return null
    }
  }

  #lend (entry: Entry<C>, holder: HolderLabel | undefined, wait: number): Lease<C> {
    entry.turn++
    if (entry.uses >= this.#maxUses) entry.doomed ??= 'uses'
    entry.holder = holder
    this.#acquired++
    entry.timed = this.#samples > 0 || this.#listeners.release !== undefined
    if (entry.timed) this.#samples--
    entry.takenAt = entry.timed ? this.#read(true) : this.#now
    const lease = new PoolLease<C>(this as unknown as Pool<C>, entry)
    if (this.#registry !== undefined) {
      this.#registry.register(lease, { entry, turn: entry.turn })
      // Stacks cost 3 us each: they are taken once something has leaked.
      entry.watch = new Watch(this.#leaked > 0 ? new Error('acquired').stack : undefined)
    }
    if (this.#listeners.acquire !== undefined) this.#emit('acquire', { id: entry.id, wait, ...label(holder) })
    return lease
  }

  #wait (options: AcquireOptions | undefined, resolve: Waiter<C>['resolve'], reject: (error: Error) => void): void {
    const signal = options?.signal
    const holder = options?.holder
    const now = this.#read()
    if (signal?.aborted === true) {
      this.#aborted++
      return reject(this.#abortError(signal))
    }
    this.#started = true
    if (this.#closed !== undefined) return reject(this.#refuse(this.#closedError(), holder, 0))
    if (this.#waiters.size >= this.#maxPending && this.#waiters.size >= this.#maxPending + this.#served) {
      return reject(this.#refuse(new PoolError('FST_POOL_QUEUE_FULL',
        `pool '${this.name}' is full, and ${this.#waiters.size} wait already (${this.#numbers()}). Look for slow queries or leaks, or raise max or maxPending.`,
        { retryAfter: this.#predictedWait() / 1000, holders: this.#topHolders() }), holder, 0))
    }
    if (this.#hopeless) return reject(this.#refuse(this.#circuitError(), holder, 0))
    const timeout = options?.timeout ?? this.#acquireTimeout
    if (this.#overload && this.#isPaced && this.#predictedWait() > MARGIN * timeout) return reject(this.#refuse(this.#overloadError(timeout), holder, 0))
    if (holder !== undefined && this.#isDeadlock(holder)) return reject(this.#refuse(this.#deadlockError(), holder, 0))

    const waiter = new Waiter<C>(holder, now, now + timeout, resolve)
    if (signal !== undefined) {
      const leave = () => {
        this.#leave(waiter)
        this.#aborted++
        reject(this.#abortError(signal))
      }
      signal.addEventListener('abort', leave, { once: true })
      waiter.unlisten = () => { signal.removeEventListener('abort', leave) }
    }
    if (this.#waiters.size === 0) {
      // Of the turns of an hour ago nothing is to be learned: a line that was empty begins anew.
      this.#turns = this.#pace = this.#lookAgain = 0
      this.#turnAt = now
    }
    this.#waiters.add(waiter)
    this.#arm(waiter.deadline)
    if (this.#asleep) this.#wake()
    this.#keepAlive()
    this.#pump()
    if (!waiter.inLine) return
    if (this.#listeners.wait !== undefined) this.#emit('wait', { pending: this.#waiters.size, ...label(holder) })
    if (!this.#overflowing && this.#total >= this.#max && this.#idle.length === 0 && this.#waiters.size > this.#coming + this.#validating) {
      this.#overflowing = true
      if (this.#listeners.overflow !== undefined) this.#emit('overflow', { pending: this.#waiters.size })
    }
  }

  /** A line is for those who wait for capacity: whoever gets an idle connection, or one of its own made, does not stand in it. */
  get #served (): number {
    return this.#idle.length + this.#coming + this.#validating + Math.max(0, this.#max - this.#total)
  }

  /** Takes a waiter out of the line, or from the connection that is being prepared for it. False: it has left already. */
  #leave (waiter: Waiter<C>): boolean {
    if (!waiter.waiting) return false
    waiter.unlisten?.()
    if (waiter.inLine) this.#waiters.remove(waiter)
    else this.#setPreparing(waiter, false)
    waiter.end()
    if (this.#coming > SPARE) this.#cancelSpare()
    if (this.#waiters.size === 0) {
      this.#overflowing = false
      // Those that were kept for who waited.
      if (this.#phase !== 'open') this.#closeIdle()
      this.#settle()
    }
    return true
  }

  /** The line is shorter than the number of creates: those who stood in it were served by connections that came back sooner. */
  #cancelSpare (): void {
    const needed = Math.max(SPARE, this.#waiters.size + Math.max(0, this.#target() - this.#count[HERE]!))
    if (this.#coming > needed) this.#cancelCreates(needed, 'released')
  }

  #setPreparing (waiter: Waiter<C>, preparing: boolean): void {
    if (waiter.preparing === preparing) return
    waiter.preparing = preparing
    this.#preparing += preparing ? 1 : -1
    this.#keepAlive()
  }

  /** Lends a connection that is ready to the first in line; there is one. */
  #serve (entry: Entry<C>): void {
    const waiter = this.#waiters.first()!
    // First of all: what hooks and listeners set off must not serve it a second time.
    this.#waiters.remove(waiter)
    if (this.#onAcquire === undefined) return this.#handOver(entry, waiter)
    let preparation: Promise<unknown> | undefined
    try {
      preparation = this.#prepare(entry, waiter.holder)
    } catch (error) {
      if (this.#leave(waiter)) waiter.reject(error as Error)
      return
    }
    if (preparation === undefined) return this.#prepared(entry, waiter)
    // Its deadline goes on, and no other connection is tried for it as long as this one lives.
    this.#begin(entry, 'prepare', waiter.deadline).prepared = waiter
    this.#setPreparing(waiter, true)
    preparation.then(() => {
      if (entry.state !== USED) return
      this.#finish(entry)
      const reason = waiter.waiting ? this.#dead(entry) : undefined
      if (reason === undefined) return this.#prepared(entry, waiter)
      this.#waiters.putBack(waiter)
      this.#arm(waiter.deadline)
      this.#keepAlive()
      this.#destroy(entry, reason, entry.broken)
    }, (error: unknown) => {
      const reported = this.#report(error, 'onAcquire')
      if (this.#leave(waiter)) waiter.reject(error as Error)
      if (entry.state === USED) this.#destroy(entry, 'error', reported)
    })
  }

  #prepared (entry: Entry<C>, waiter: Waiter<C>): void {
    if (waiter.waiting) this.#handOver(entry, waiter)
    // Prepared for somebody who has left: not for the next one.
    else this.#clean(entry, this.#resetOf(entry))
  }

  #handOver (entry: Entry<C>, waiter: Waiter<C>): void {
    // A long `onAcquire` may have seen the last tick.
    if (this.#asleep) this.#wake()
    const now = this.#read()
    const wait = now - waiter.since
    this.#waits.record(wait)
    this.#pace += (now - this.#turnAt - this.#pace) / Math.min(++this.#turns, PACED * this.#max)
    this.#turnAt = now
    const { resolve, holder } = waiter
    this.#leave(waiter)
    resolve(this.#lend(entry, holder, wait))
  }

  /** Runs `onAcquire`: undefined when it is done. Where it throws, the connection is destroyed and the caller of ours told. */
  #prepare (entry: Entry<C>, holder: HolderLabel | undefined): Promise<unknown> | undefined {
    try {
      const preparation = asPromise(this.#run(() => this.#onAcquire!(entry.connection, this.#info(entry, { holder, uses: entry.uses + 1 }))))
      // This hook returns promises: from now on everybody takes the way that can wait.
      if (preparation !== undefined) this.#hookWaits = true
      return preparation
    } catch (error) {
      this.#destroy(entry, 'error', this.#report(error, 'onAcquire'))
      throw error
    }
  }

  // --- Giving back ----------------------------------------------------------------------------------------------------------------------

  /** Returns how long it was held. */
  #giveBack (entry: Entry<C>): number {
    const { holder, transactions } = entry
    const held = this.#endLease(entry)
    const reason = this.#dead(entry)
    const undoing = reason === undefined ? transactions?.abandon() : undefined
    if (reason !== undefined) this.#destroy(entry, reason, entry.broken)
    else if (undoing !== undefined) this.#clean(entry, undoing.then(() => this.#tidy(entry, holder)))
    else if (this.#onRelease !== undefined) this.#clean(entry, this.#tidy(entry, holder))
    else {
      const reset = this.#resets ? this.#resetOf(entry) : undefined
      if (reset === undefined) this.#offer(entry, true)
      else this.#clean(entry, reset)
    }
    return held
  }

  /** Runs `onRelease`, then the reset: undefined where neither waits. */
  #tidy (entry: Entry<C>, holder: HolderLabel | undefined): Promise<unknown> | undefined {
    // A rollback that came back late: the connection is gone.
    if (entry.state !== USED) return undefined
    return this.#hook('onRelease', entry, { holder })?.then(() => this.#resetOf(entry)) ?? this.#resetOf(entry)
  }

  #endLease (entry: Entry<C>): number {
    const { holder, watch, onEnd } = entry
    entry.turn++
    entry.holder = undefined
    entry.watch = undefined
    entry.transactions = undefined
    this.#released++
    if (onEnd !== undefined) {
      entry.onEnd = undefined
      onEnd()
    }
    // While no tick is due the coarse clock stands still.
    const exactly = entry.timed || this.#asleep || this.#listeners.release !== undefined || watch?.reported === true
    const held = Math.max(0, (exactly ? this.#read(true) : this.#now) - entry.takenAt)
    if (!exactly) return held
    if (entry.timed) this.#holds.record(held)
    if (this.#listeners.release !== undefined) this.#emit('release', { id: entry.id, held, ...label(holder) })
    if (watch?.reported === true && this.#listeners.unleak !== undefined) this.#emit('unleak', { id: entry.id, held, ...label(holder), ...stackOf(watch) })
    return held
  }

  /** Starts the connector's reset: undefined when the connection is clean already. Never throws. */
  #resetOf (entry: Entry<C>): Promise<unknown> | undefined {
    const { backend } = this
    if (!this.#resets || entry.state !== USED) return undefined
    try {
      // To make one costs more than all the rest of a return: only for a reset that takes it, and one that was not needed is there for the next.
      const controller = backend.reset!.length < 2 ? undefined : (this.#spare ??= new AbortController())
      // No copy: on the way of every return it would cost more than all the rest.
      const reset = asPromise(this.#context.runInAsyncScope(() => backend.reset!(entry.connection, controller?.signal as AbortSignal)))
      if (reset === undefined) return undefined
      this.#spare = undefined
      if (controller !== undefined) (entry.operation ??= new Operation()).controller = controller
      // A session reset undoes what `onConnect` had set, so it is set again before the next loan.
      if (this.#options.reset !== 'session' || this.#options.onConnect === undefined) return reset
      return reset.then(() => {
        if (entry.state === USED) return this.#hook('onConnect', entry)
      })
    } catch (error) {
      return Promise.reject(error)
    }
  }

  /** Waits, not for ever, until a connection is clean, and offers it. A failure destroys it. */
  #clean (entry: Entry<C>, cleaning: Promise<unknown> | undefined): void {
    if (cleaning === undefined) return this.#offer(entry)
    this.#begin(entry, 'reset', this.#read() + this.#options.resetTimeout)
    cleaning.then(() => {
      if (entry.state !== USED) return
      this.#finish(entry)
      this.#offer(entry)
    }, (error: unknown) => {
      if (entry.state === USED) this.#unclean(entry, error)
    })
  }

  #unclean (entry: Entry<C>, cause: unknown): void {
    // A hook's own error was reported where it happened.
    if (cause instanceof HookFailed) return this.#destroy(entry, 'error', cause.reported)
    const message = `the reset of a connection of pool '${this.name}' failed; the connection was destroyed`
    const error = new PoolError('FST_POOL_RESET_FAILED', message, { cause: scrub(cause, this.#secrets) })
    this.#destroy(entry, 'error', this.#report(error, 'reset'))
  }

  /**
   * A used connection is ready: for the first in line, else it is idle.
   *
   * @param alive it was seen alive this moment
   * @param since when it was used last, where nobody has used it meanwhile: then its idle time goes on
   */
  #offer (entry: Entry<C>, alive = false, since?: number): void {
    const reason = this.#unfit(entry) ?? (alive ? undefined : this.#dead(entry))
    if (reason !== undefined) return this.#destroy(entry, reason, entry.broken)
    // Then somebody waits for it all the same.
    let hindered = false
    if (this.#waiters.size > 0 && !this.#halted) {
      if (this.#place?.mustYield() === true) return this.#destroy(entry, 'idle')
      entry.freshAt = Math.floor(this.#now)
      if (!this.#meets || !this.#isHindered(entry)) return this.#serve(entry)
      hindered = true
    }
    if (this.#phase !== 'open' && !hindered) return this.#destroy(entry, 'closed')
    if (this.#place?.mustYield() === true) return this.#destroy(entry, 'idle')
    if (this.#asleep) this.#wake()
    entry.freshAt = Math.floor(this.#now)
    entry.idleSince = since ?? entry.freshAt
    entry.state = IDLE
    // In the order of their last use, which being asked does not change.
    if (since === undefined) this.#idle.push(entry)
    else this.#idle.splice(this.#idle.filter(({ idleSince }) => idleSince <= since).length, 0, entry)
    if (this.#openers.length > 0) this.#settleOpeners()
  }

  // --- Transactions ---------------------------------------------------------------------------------------------------------------------

  #hostOf (entry: Entry<C>): Host<C> {
    const { turn } = entry
    return {
      pool: this,
      name: this.name,
      transactions: this.backend.transactions,
      connection: entry.connection,
      patience: this.#options.acquireTimeout,
      get ended () { return entry.turn !== turn },
      face: (connection) => connection === entry.connection ? entry.face : this.#wrap(entry, connection),
      call: async (phase, work, commit) => {
        const { acquireTimeout, resetTimeout } = this.#options
        const timeout = phase === 'begin' ? acquireTimeout : resetTimeout
        const operation = this.#begin(entry, phase, commit?.deadline ?? this.#read() + timeout)
        operation.commit = commit
        const { signal } = operation
        const cut = new Promise<never>((_resolve, reject) => {
          signal.addEventListener('abort', () => {
            // Asked now: what the end of the connection does next may change it.
            const inDoubt = commit !== undefined && (commit.inDoubt() ?? true)
            if (signal.reason instanceof PoolError) reject(signal.reason)
            else reject(inDoubt ? commitLost(this.name) : released(this.name))
          }, { once: true })
        })
        cut.catch(() => { /* Where the connector was faster, it is asked for below. */ })
        try {
          return await Promise.race([this.#run(() => work(signal)), cut])
        } catch (error) {
          // Then the connector's own error tells only that it gave up.
          if (signal.aborted) return await cut
          if (commit !== undefined && (commit.inDoubt() ?? this.#dead(entry) !== undefined)) {
            throw commitLost(this.name, scrub(error, this.#secrets))
          }
          throw error
        } finally {
          if (entry.turn === turn) this.#finish(entry)
        }
      },
      // Unless what was waited for took so long that the connection is gone.
      callLate: async (work) => { if (entry.state === USED) await this.#run(work) },
      // Several may be past the same deadline: with the first of them the lease has ended.
      fail: (error, phase) => { if (entry.turn === turn) this.#revoke(entry, 'error', { error, phase }) },
      now: () => this.#read(),
      wait: async (ms, done) => {
        const alarm = this.#alarm(ms)
        try {
          return await Promise.race([alarm.rung.then(() => false), ...(done === undefined ? [] : [done.then(() => true)])])
        } finally {
          alarm.cancel()
          this.#keepAlive()
        }
      },
      random: () => this.#clock.random(),
    }
  }

  /** What borrowers get of a connection, or of the one that a transaction on it works on. */
  #wrap (entry: Entry<C>, connection: C): C {
    const { wrap } = this.#options
    if (wrap === undefined) return connection
    const info: WrapInfo = {
      pool: this.name,
      system: this.backend.system,
      inTransaction: connection !== entry.connection,
      begin: async (options) => {
        if (!entry.lent) throw released(this.name)
        return await transactionsOf(this, entry).begin(options, this.#options.commitTimeout)
      },
    }
    return this.#run(() => wrap(connection, info)) as C
  }

  // --- Judging --------------------------------------------------------------------------------------------------------------------------

  /** The pool's own reasons against lending it again. */
  #unfit (entry: Entry<C>): DestroyReason | undefined {
    if (entry.doomed !== undefined) return entry.doomed
    if (entry.expiresAt !== 0 && entry.expiresAt <= this.#now) return 'lifetime'
    return this.#shrunk ? this.#tooMany() : undefined
  }

  /** `resize` has left more than `max`. Those that come and go count against it too, but how many must go is told by those that are here. */
  #tooMany (): DestroyReason | undefined {
    this.#shrunk = this.#count[HERE]! > this.#max
    return this.#shrunk ? 'idle' : undefined
  }

  /** What the driver knows without asking the server. */
  #dead (entry: Entry<C>): DestroyReason | undefined {
    if (entry.broken !== undefined) return 'error'
    if (this.backend.isBroken === undefined) return undefined
    try {
      return this.backend.isBroken(entry.connection) ? 'error' : undefined
    } catch (error) {
      entry.broken = this.#report(error, 'isBroken')
      return 'error'
    }
  }

  /** Whether something outside of the pool is in the way of a loan. Then it is looked for again, for as long as somebody waits. */
  #isHindered (entry: Entry<C>): boolean {
    const now = this.#read()
    try {
      const obstacle = this.backend.obstacle!(entry.connection)
      // The connector's own words: they may name an address.
      this.#obstacle = obstacle === undefined ? undefined : scrub(obstacle, this.#secrets).message
    } catch (error) {
      // What is wrong its borrower will see.
      this.#obstacle = undefined
      // Behind the loan: what listeners do must not come between.
      queueMicrotask(() => { this.#report(error, 'obstacle') })
    }
    this.#lookAgain = this.#obstacle === undefined ? 0 : Math.min(LOOK_LATER, this.#lookAgain * 2 || LOOK)
    if (this.#obstacle === undefined) return false
    this.#arm(now + this.#lookAgain)
    return true
  }

  /** Idle for so long that it must answer before it is lent. */
  #isStale (entry: Entry<C>): boolean {
    return this.#now - entry.freshAt >= this.#validateAfter
  }

  /** Asks a used connection, and offers it where it is alive; nobody has used it meanwhile. Resolves to the round trip's ms; undefined: it is gone. */
  async #validate (entry: Entry<C>, awaited = false): Promise<number | undefined> {
    const began = this.#read(true)
    const operation = this.#begin(entry, 'validate', began + this.#options.validateTimeout)
    const { signal } = operation
    operation.awaited = awaited
    let valid = false
    let failure: Error | undefined
    try {
      const answer = this.#run(() => this.backend.validate!(entry.connection, signal))
      // At its deadline the connection is destroyed, and whoever asked here is told, even where the connector ignores the signal.
      valid = await Promise.race([answer, new Promise<false>((resolve) => { signal.addEventListener('abort', () => { resolve(false) }) })])
    } catch (error) {
      if (entry.operation === operation) failure = this.#report(error, 'validate')
    }
    if (entry.operation !== operation) return undefined
    this.#finish(entry)
    if (!valid) {
      this.#destroy(entry, 'invalid', failure)
      return undefined
    }
    const latency = this.#read(true) - began
    this.#offer(entry, false, entry.idleSince)
    return latency
  }

  /** Asks an idle connection, for its own sake: nobody gets it meanwhile. */
  #ping (entry: Entry<C>): Promise<number | undefined> {
    this.#takeIdle(entry)
    return this.#validate(entry)
  }

  // --- Creating -------------------------------------------------------------------------------------------------------------------------

  /** The heart: after every change, brings connections to those who wait, and starts the creates that are needed. */
  #pump (): void {
    if (this.#hopeless && this.#waiters.size > 0) this.#turnAllAway(() => this.#circuitError())
    // Unless it is met again: who waits may do so for something else by now.
    this.#obstacle = undefined
    // Asked each time: hooks and listeners may change it.
    while (!this.#halted && this.#waiters.size > this.#validating) {
      const entry = this.#idle.pop()
      if (entry === undefined) break
      this.#move(entry, USED)
      const reason = this.#unfit(entry) ?? this.#dead(entry)
      if (reason !== undefined) this.#destroy(entry, reason, entry.broken)
      else if (this.#place?.mustYield() === true) this.#destroy(entry, 'idle')
      else if (this.#meets && this.#isHindered(entry)) {
        // Nobody has used it, or seen it alive: its times go on.
        this.#move(entry, IDLE)
        this.#idle.push(entry)
        break
      } else if (this.#isStale(entry)) this.#validateForWaiter(entry)
      else this.#serve(entry)
    }
    while (!this.#halted && this.#mayCreate()) this.#create()
  }

  /** Nothing is lent to those who wait, and nothing created. */
  get #halted (): boolean {
    return this.#suspended || this.#phase === 'closed'
  }

  #validateForWaiter (entry: Entry<C>): void {
    this.#validating++
    this.#validate(entry, true)
  }

  #mayCreate (): boolean {
    const count = this.#count
    if (this.#total >= this.#max || count[LATE]! >= this.#max || count[CREATING]! >= (this.#maxConnecting ?? this.#max)) return false
    if (this.#circuit.state !== 'closed') return this.#mayProbe()
    const missing = this.#phase === 'open' && this.#started ? this.#target() - count[HERE]! - this.#coming : 0
    // Where something is in the way of those that are idle, another one would meet it, too.
    const lacking = this.#idle.length > 0 ? 0 : this.#waiters.size - this.#validating - this.#coming
    if (lacking <= 0 && missing <= 0) return false
    if (this.#failures > 0 && this.#read() < this.#retryAt) {
      this.#arm(this.#retryAt)
      return false
    }
    return this.#place?.mayCreate() ?? true
  }

  /** While the circuit is not closed: one create at a time, also where nobody waits for it. Those begun before hold it up no more than they do others. */
  #mayProbe (): boolean {
    if ((this.#circuit.state === 'half-open' && this.#count[CREATING]! > 0) || (this.#phase !== 'open' && this.#waiters.size === 0)) return false
    if (this.#read() < this.#circuit.retryAt) {
      this.#arm(this.#circuit.retryAt)
      return false
    }
    return this.#place?.mayCreate() ?? true
  }

  /** There is no connection, and there won't be one soon. */
  get #hopeless (): boolean {
    if (this.#circuit.state === 'closed' || this.#count[HERE]! > 0 || this.#suspended) return false
    // A pool that drains creates nothing for itself: somebody who waits must be there when it is time to try.
    return this.#phase === 'open' || (this.#circuit.state === 'open' && this.#read() < this.#circuit.retryAt)
  }

  /** How many connections there should be even when nobody waits. */
  #target (): number {
    return this.#openers.reduce((most, { target }) => Math.max(most, target), this.#min)
  }

  #create (): void {
    const now = this.#read(true)
    const entry = new Entry<C>(this.#place?.nextId() ?? ++this.#lastId, Math.floor(now))
    const creation = (entry.creation = new Creation(now, this.#failures))
    this.#entries.add(entry)
    this.#count[CREATING]!++
    const { signal } = this.#begin(entry, undefined, now + this.#options.connectTimeout)
    // While creates fail, each start puts off the next one: a hung create holds up nobody, and no burst follows a failure.
    if (this.#failures > 0) this.#backOff(now)
    this.#circuit.begin()
    this.#run(() => this.#make(entry, creation, signal))
    this.#tellCircuit()
  }

  /** One create, from its start to the connection's first offer or its end. It belongs to the pool: no caller's end ends it. */
  async #make (entry: Entry<C>, creation: Creation, signal: AbortSignal): Promise<void> {
    try {
      entry.connection = await this.backend.create(signal)
      creation.delivered = true
      entry.freshAt = Math.floor(this.#clock.now())
      if (entry.state === LATE) return this.#destroyLate(entry)
      this.backend.onDeath?.(entry.connection, (error) => { this.#died(entry, error) })
      if (creation.unwanted === undefined) {
        await this.#hook('onConnect', entry)
        // Else its deadline passed while `onConnect` ran.
        if (entry.state === CREATING) entry.face = this.#wrap(entry, entry.connection)
      }
      // Else a server that hangs up on everybody would be called without a pause.
      if (entry.state === CREATING && this.#dead(entry) !== undefined) throw entry.broken ?? new Error('the connection was dead at once')
    } catch (error) {
      return this.#notMade(entry, creation, error)
    }
    // Its deadline passed while `onConnect` ran.
    if (entry.state !== CREATING) return
    const now = this.#read(true)
    this.#finish(entry)
    this.#created++
    this.#creates.record(now - creation.began)
    this.#failures = 0
    this.#lastFailure = undefined
    this.#circuit.succeeded()
    const { maxLifetime } = this.#options
    // Up to a tenth less: connections that were made together do not end together.
    if (maxLifetime > 0) entry.expiresAt = Math.max(1, Math.floor(now + maxLifetime * (1 - 0.1 * this.#clock.random())))
    this.#move(entry, USED)
    if (this.#listeners.connect !== undefined) this.#emit('connect', { id: entry.id, took: now - creation.began })
    entry.createdAt = Math.floor(now)
    entry.creation = undefined
    this.#tellCircuit()
    if (creation.unwanted !== undefined) this.#destroy(entry, creation.unwanted)
    else this.#offer(entry)
    this.#settleOpeners()
    this.#pump()
  }

  #notMade (entry: Entry<C>, creation: Creation, cause: unknown): void {
    const { state } = entry
    const { delivered, unwanted } = creation
    if (state === LATE && !delivered) {
      creation.explain?.(cause)
      return this.#gone(entry)
    }
    if (state !== CREATING) return
    const error = unwanted === undefined ? this.#createFailed(creation, cause) : undefined
    if (!delivered) return this.#gone(entry)
    this.#move(entry, USED)
    this.#destroy(entry, unwanted ?? 'error', error)
  }

  /** Returns the scrubbed copy of the cause. */
  #createFailed (creation: Creation, cause: unknown): Error {
    this.#countFailure(creation)
    return this.#tellFailure(cause)
  }

  #countFailure ({ failures }: Creation): void {
    this.#createErrors++
    this.#circuit.failed(this.#read(), this.#clock.random())
    // Creates that were under way together fail together: that is one failure. (One from before the last success may know of more failures.)
    if (failures < this.#failures) return
    this.#failures++
    this.#backOff(this.#read())
  }

  /** Behind the count: what listeners do must not begin another create at once. */
  #tellFailure (cause: unknown): Error {
    const error = cause instanceof HookFailed ? cause.reported : this.#report(cause, 'create')
    this.#lastFailure = error
    // Whoever opens a pool starts an app: unlike a request's client, it is told what happened.
    // An option that only a connection could show to be wrong (what `wrap` or `url()` gives) is no outage.
    const wrong = cause instanceof PoolError && (cause.code === 'FST_POOL_BAD_OPTIONS' || cause.code === 'FST_POOL_MISSING_DRIVER')
    this.#rejectOpeners(() => wrong
      ? new PoolError(cause.code, `pool '${this.name}': ${error.message}`, { cause: error })
      : new PoolError('FST_POOL_CONNECT_FAILED', `pool '${this.name}' can't connect: ${error.message}`, { cause: error }))
    this.#tellCircuit(error)
    return error
  }

  /** A create is past its deadline, and its signal has aborted: a connector that heeds it says in this turn why it took so long, or never. */
  #failLate (creation: Creation, error: Error): void {
    this.#countFailure(creation)
    this.#lastFailure = error
    creation.explain = (cause) => {
      creation.explain = undefined
      this.#tellFailure(cause === undefined || cause === error ? error : new Error(error.message, { cause }))
    }
    // Behind all promises that are about to settle now.
    queueMicrotask(() => { process.nextTick(() => { creation.explain?.(undefined) }) })
  }

  /** Who waits is told by `#pump`. */
  #tellCircuit (error?: Error): void {
    const from = this.#circuitTold
    const to = this.#circuit.state
    if (from === to) return
    this.#circuitTold = to
    if (this.#listeners.circuit !== undefined) this.#emit('circuit', { from, to, ...(error && { error }) })
  }

  /** Doubling, with full jitter. */
  #backOff (now: number): void {
    const { min, max } = this.#options.backoff
    this.#retryAt = now + Math.max(1, this.#clock.random() * Math.min(max, min * 2 ** (this.#failures - 1)))
  }

  /** All creates but the first `kept` are not needed any more: they are told so, and what they still deliver is destroyed. */
  #cancelCreates (kept: number, reason: DestroyReason): void {
    const creating = [...this.#entries].filter((entry) => entry.state === CREATING && entry.creation!.unwanted === undefined)
    for (const entry of creating.slice(kept)) {
      this.#unwant(entry, reason)
      this.#abort(entry, `pool '${this.name}' no longer needs this connection`)
    }
  }

  #unwant (entry: Entry<C>, reason: DestroyReason): void {
    entry.creation!.unwanted = reason
    this.#unwanted++
  }

  #died (entry: Entry<C>, cause: Error | undefined): void {
    if (entry.broken !== undefined || entry.state >= CLOSING) return
    // First of all: nobody gets it, whatever listeners do.
    entry.broken = new Error('the connection was closed')
    if (cause !== undefined) entry.broken = this.#report(cause, 'death')
    if (entry.state !== IDLE) return
    this.#takeIdle(entry)
    this.#destroy(entry, 'error', entry.broken)
  }

  // --- Ending connections ---------------------------------------------------------------------------------------------------------------

  /** Ends a used connection. Nothing may wait for it; its slot is taken until it is gone. */
  #destroy (entry: Entry<C>, reason: DestroyReason, error?: Error): void {
    // Its borrower waits for that, and the driver may never answer any more.
    const doing = entry.operation?.doing
    if (doing === 'begin' || doing === 'commit' || doing === 'rollback') this.#abort(entry, 'the connection is destroyed')
    this.#finish(entry)
    this.#move(entry, CLOSING)
    const now = this.#read()
    this.#begin(entry, undefined, now + this.#options.destroyTimeout)
    this.#destroyed[reason]++
    const { id, uses } = entry
    if (this.#listeners.disconnect !== undefined) this.#emit('disconnect', { id, reason, age: now - entry.createdAt, uses, ...(error && { error }) })
    this.#hook('onDisconnect', entry, { reason })?.catch(() => { /* It was reported, and changes nothing. */ })
    this.#end(entry, reason)
    this.#settle()
    // However long it takes to close: there may be room for another one already.
    this.#pump()
  }

  /** What came after its deadline: nobody was told of it, so it goes without an event. */
  #destroyLate (entry: Entry<C>): void {
    this.#destroyed.released++
    this.#end(entry, 'released')
  }

  #end (entry: Entry<C>, reason: DestroyReason): void {
    let ending: Promise<unknown> | undefined
    try {
      ending = asPromise(this.#run(() => this.backend.destroy(entry.connection, reason)))
    } catch (error) {
      this.#report(error, 'destroy')
    }
    if (ending === undefined) return this.#gone(entry)
    ending.then(() => { this.#gone(entry) }, (error: unknown) => {
      this.#report(error, 'destroy')
      this.#gone(entry)
    })
  }

  #gone (entry: Entry<C>): void {
    this.#finish(entry)
    this.#move(entry, GONE)
    this.#entries.delete(entry)
    this.#settle()
    this.#pump()
    this.#place?.freed()
  }

  /** The operation under way on an entry is past its deadline. */
  #overdue (entry: Entry<C>): void {
    const { commit, doing, prepared } = entry.operation!
    const { acquireTimeout, connectTimeout, destroyTimeout, resetTimeout, validateTimeout } = this.#options
    if (entry.state === CREATING) {
      const creation = entry.creation!
      const { delivered, unwanted } = creation
      const error = new Error(`no connection within ${connectTimeout} ms (connectTimeout)`)
      this.#abort(entry, error)
      this.#finish(entry)
      this.#move(entry, delivered ? USED : LATE)
      if (unwanted === undefined) {
        if (delivered) this.#createFailed(creation, error)
        else this.#failLate(creation, error)
      }
      // It is there, and `onConnect` is what takes so long.
      if (delivered) this.#destroy(entry, unwanted ?? 'error', error)
    } else if (entry.state === CLOSING) {
      this.#finish(entry)
      this.#move(entry, LATE)
      this.#report(new Error(`a connection was not closed within ${destroyTimeout} ms (destroyTimeout)`), 'destroy')
    } else if (doing === 'begin' || doing === 'commit' || doing === 'rollback') {
      const error = doing === 'begin'
        ? new PoolError('FST_POOL_ACQUIRE_TIMEOUT', `a transaction on pool '${this.name}' did not begin within ${acquireTimeout} ms: ` +
          `${this.#meets && this.#isHindered(entry) ? `in the way is ${this.#obstacle}; ` : ''}its connection was destroyed`)
        : doing === 'commit'
          ? commitLate(this.name, commit!.timeout, commit!.inDoubt() ?? true)
          : new Error(`a transaction was not rolled back within ${resetTimeout} ms (resetTimeout)`)
      this.#abort(entry, error)
      this.#revoke(entry, 'error', { error, phase: doing })
    } else {
      this.#abort(entry, 'past its deadline')
      this.#finish(entry)
      if (doing === 'prepare') {
        this.#expire(prepared!)
        this.#destroy(entry, 'error', this.#report(new Error('onAcquire was not done at the deadline of its acquire'), 'onAcquire'))
      } else if (doing === 'reset') {
        this.#unclean(entry, new Error(`not clean within ${resetTimeout} ms (resetTimeout)`))
      } else {
        this.#destroy(entry, 'invalid', this.#report(new Error(`no answer within ${validateTimeout} ms (validateTimeout)`), 'validate'))
      }
    }
    this.#settle()
    this.#settleOpeners()
    if (entry.state === LATE) this.#place?.freed()
  }

  /** The lease object was garbage collected without a release. */
  #lose (entry: Entry<C>): void {
    const watch = entry.watch!
    watch.lost = true
    if (watch.reported) this.#revoke(entry, 'leaked')
  }

  /** The pool itself ends a lease. @param failed what is to be reported */
  #revoke (entry: Entry<C>, reason: DestroyReason, failed?: { readonly error: unknown, readonly phase: ErrorPhase }): void {
    revokedAfter.set(entry, this.#read() - entry.takenAt)
    // Before the report: who listens to it may end the lease, too.
    this.#endLease(entry)
    this.#destroy(entry, reason, failed && this.#report(failed.error, failed.phase))
  }

  // --- Books ----------------------------------------------------------------------------------------------------------------------------

  /** Between idle and used only the state changes, and the list of the idle ones. */
  #move (entry: Entry<C>, state: State): void {
    if (entry.state === CREATING && entry.creation!.unwanted !== undefined) this.#unwanted--
    this.#count[entry.state === IDLE ? HERE : entry.state]!--
    this.#count[state === IDLE ? HERE : state]!++
    entry.state = state
  }

  /** What no error may show. A connector whose addresses change has others from time to time. */
  get #secrets (): readonly string[] {
    const { secrets } = this.backend
    if (this.#hidden === undefined || this.#hidden.of !== secrets) {
      const { url, connection } = this.#options
      this.#hidden = { of: secrets, secrets: secretsOf({ url, connection: [connection, { secrets }] }) }
    }
    return this.#hidden.secrets
  }

  get #used (): number {
    return this.#count[HERE]! - this.#idle.length
  }

  /** What the connector can have at most. */
  get #limit (): number {
    return this.backend.max ?? Number.MAX_SAFE_INTEGER
  }

  get #total (): number {
    const count = this.#count
    return count[CREATING]! + count[HERE]! + count[CLOSING]!
  }

  /** Creates whose connection will be kept. */
  get #coming (): number {
    return this.#count[CREATING]! - this.#unwanted
  }

  /** An idle entry, from wherever it stands, is used by the pool itself. */
  #takeIdle (entry: Entry<C>): void {
    this.#idle.splice(this.#idle.indexOf(entry), 1)
    this.#move(entry, USED)
  }

  #begin (entry: Entry<C>, doing: Operation<C>['doing'], deadline: number): Operation<C> {
    const operation = (entry.operation ??= new Operation())
    operation.doing = doing
    operation.deadline = deadline
    this.#arm(deadline)
    return operation
  }

  #finish (entry: Entry<C>): void {
    const { operation } = entry
    if (operation === undefined) return
    entry.operation = undefined
    if (operation.prepared !== undefined) this.#setPreparing(operation.prepared, false)
    if (operation.awaited) this.#validating--
  }

  #abort (entry: Entry<C>, why: string | Error): void {
    this.#run(() => entry.operation?.controller?.abort(typeof why === 'string' ? new Error(why) : why))
  }

  /** Wakes those who wait for the pool as a whole. */
  #settle (): void {
    if (this.#quiet.length > 0 && this.#used === 0 && this.#waiters.size === 0) {
      for (const resolve of this.#quiet.splice(0)) resolve()
    }
    if (this.#empty.length > 0 && this.#total === 0) {
      for (const resolve of this.#empty.splice(0)) resolve()
    }
  }

  #settleOpeners (): void {
    if (this.#openers.length === 0) return
    const there = this.#count[HERE]!
    const ready = this.#openers.filter(({ target }) => there >= Math.min(target, this.#max))
    this.#openers = this.#openers.filter((opener) => !ready.includes(opener))
    const { driver } = this.backend
    if (ready.length > 0 && this.#listeners.open !== undefined) this.#emit('open', { ...(driver !== undefined && { driver }) })
    for (const { resolve } of ready) resolve()
    // Nothing is created any more, until one comes back that is late; that may be never.
    if (this.#count[LATE]! >= this.#max) this.#rejectOpeners(() => this.#connectError(this.#lastFailure))
    else this.#keepAlive()
  }

  #rejectOpeners (why: () => PoolError): void {
    for (const { reject } of this.#openers.splice(0)) reject(why())
    this.#keepAlive()
  }

  // --- Time -----------------------------------------------------------------------------------------------------------------------------

  #read (exactly?: boolean): number {
    return (this.#now = this.#clock.now(exactly))
  }

  /** One timer serves all: it is set to whatever comes first. */
  #arm (at: number): void {
    if (at >= this.#timerAt || at === Infinity) return
    this.#timer?.cancel()
    this.#timerAt = at
    this.#timerRef = false
    this.#timer = this.#run(() => this.#clock.setTimer(() => { this.#run(() => { this.#tick() }) }, Math.max(1, Math.ceil(at - this.#read()))))
    this.#keepAlive()
  }

  #disarm (): void {
    this.#timer?.cancel()
    this.#timer = undefined
    this.#timerAt = Infinity
  }

  /** The process stays alive for those who wait, and for nothing else. */
  #keepAlive (): void {
    const wanted = this.#waiters.size + this.#preparing + this.#openers.length + this.#alarms.size > 0
    if (wanted === this.#timerRef || this.#timer === undefined) return
    this.#timerRef = wanted
    if (wanted) this.#timer.ref()
    else this.#timer.unref()
  }

  #wake (): void {
    this.#asleep = false
    this.#samples = SAMPLES
    this.#arm(this.#read() + TICK)
  }

  /** Housekeeping. */
  #tick (): void {
    this.#disarm()
    const now = this.#read()
    this.#samples = SAMPLES
    this.#arm(this.#waiters.sweep(now, (waiter) => { this.#expire(waiter) }))
    for (const alarm of this.#alarms) {
      if (alarm.at > now) this.#arm(alarm.at)
      else if (this.#alarms.delete(alarm)) alarm.ring()
    }
    for (const entry of this.#entries) {
      const deadline = entry.operation?.deadline ?? Infinity
      if (deadline <= now) this.#overdue(entry)
      else if (entry.state === IDLE) this.#arm(this.#keep(entry, now))
      else if (entry.lent && this.#options.leakAfter > 0) this.#arm(this.#watch(entry, now))
      if (entry.operation !== undefined) this.#arm(entry.operation.deadline)
    }
    this.#crowd = undefined
    this.#pump()
    // The coarse clock ticks only while connections are lent or waited for; the first to come wakes it.
    this.#asleep = this.#acquired === this.#acquiredAtTick && this.#waiters.size === 0
    this.#acquiredAtTick = this.#acquired
    if (!this.#asleep) this.#arm(now + TICK)
    this.#keepAlive()
  }

  /** Whether an idle connection is kept. Returns when to look again. */
  #keep (entry: Entry<C>, now: number): number {
    const { idleTimeout, keepalive } = this.#options
    const more = this.#count[HERE]! + this.#coming > this.#min
    const idleAt = idleTimeout > 0 && more ? entry.idleSince + idleTimeout : Infinity
    const pingAt = keepalive > 0 && this.backend.validate !== undefined ? entry.freshAt + keepalive : Infinity
    const expiresAt = entry.expiresAt || Infinity
    const reason = expiresAt <= now ? 'lifetime' : idleAt <= now ? 'idle' : undefined
    if (reason !== undefined) {
      this.#takeIdle(entry)
      this.#destroy(entry, reason)
      return Infinity
    }
    if (pingAt > now) return Math.min(expiresAt, idleAt, pingAt)
    this.#ping(entry)
    return Math.min(expiresAt, idleAt, now + keepalive)
  }

  /** Reports a lease that has been out for too long. Returns when to look again. */
  #watch (entry: Entry<C>, now: number): number {
    const leakAt = entry.takenAt + this.#options.leakAfter
    if (leakAt > now) return leakAt
    const watch = entry.watch!
    if (watch.reported) return Infinity
    this.#leaked++
    watch.reported = true
    if (this.#listeners.leak !== undefined) {
      this.#emit('leak', { id: entry.id, held: now - entry.takenAt, ...label(entry.holder), ...stackOf(watch) })
    }
    if (watch.lost) this.#revoke(entry, 'leaked')
    return Infinity
  }

  /** Resolves at `ms` from now, and keeps the process alive until then, or until `cancel`. */
  #alarm (ms: number): { readonly rung: Promise<void>, cancel: () => void } {
    let cancel = () => {}
    const rung = new Promise<void>((resolve) => {
      const alarm = { at: this.#read() + ms, ring: resolve }
      cancel = () => { this.#alarms.delete(alarm) }
      this.#alarms.add(alarm)
      this.#arm(alarm.at)
      this.#keepAlive()
    })
    return { rung, cancel }
  }

  /** At its deadline. */
  #expire (waiter: Waiter<C>): void {
    // Before it leaves: from a pool that drains, the idle connections go with the last who waits.
    const obstacle = this.#obstacle
    if (!this.#leave(waiter)) return
    this.#timeouts++
    const { holder, since, deadline } = waiter
    const error = withoutStack(() => this.#timeoutError(deadline - since, obstacle))
    if (this.#listeners.timeout !== undefined) this.#emit('timeout', { error, wait: this.#now - since, ...label(holder) })
    waiter.reject(error)
  }

  #timeoutError (timeout: number, obstacle: string | undefined): PoolError {
    if (this.#lastFailure !== undefined && this.#count[HERE] === 0) return this.#connectError(this.#lastFailure)
    const { retryAfter, holders } = (this.#crowd ??= { retryAfter: this.#predictedWait() / 1000, holders: this.#topHolders() })
    const why = obstacle !== undefined
      ? `: in the way is ${obstacle}`
      : '. Look for slow queries or leaks, or raise max.'
    const message = `no connection from pool '${this.name}' within ${Math.round(timeout)} ms (${this.#numbers()})${why}`
    return new PoolError('FST_POOL_ACQUIRE_TIMEOUT', message, { cause: this.#lastFailure, retryAfter, holders })
  }

  // --- Errors, events, hooks ------------------------------------------------------------------------------------------------------------

  #numbers (): string {
    const count = this.#count
    return `max ${this.#max}, used ${this.#used}, idle ${this.#idle.length}, creating ${count[CREATING]}, pending ${this.#waiters.size}`
  }

  /** Whether the line has moved often enough to tell how fast it does. */
  get #isPaced (): boolean {
    // Of a line that was, nothing is to be learned; in one that is stopped, everybody waits.
    return this.#waiters.size > 0 && !this.#suspended && this.#turns > 2 * this.#max
  }

  /** How long somebody who came now would wait, in ms, as far as recent leases tell. */
  #predictedWait (): number {
    if (this.#isPaced) return (this.#waiters.size + 1) * this.#pace
    const { count, p50 } = this.#holds.summary()
    return count === 0 ? 1000 : (this.#waiters.size + 1) * p50 / this.#max
  }

  #topHolders (): readonly Holder[] {
    return this.holders().slice(0, 10)
  }

  #connectError (cause: Error | undefined): PoolError {
    return new PoolError('FST_POOL_CONNECT_FAILED', `pool '${this.name}' can't connect (${this.#numbers()}). Is its server up, and are its address and login right?`,
      { cause, retryAfter: (this.#retryAt - this.#now) / 1000 })
  }

  #circuitError (): PoolError {
    return new PoolError('FST_POOL_CIRCUIT_OPEN', `pool '${this.name}' has no connection, and creates keep failing: one is tried every ` +
      `${(this.#options.circuit as { openFor: number }).openFor} ms (circuit). Is its server up, and are its address and login right?`,
    { cause: this.#lastFailure, retryAfter: (this.#circuit.retryAt - this.#now) / 1000 })
  }

  #overloadError (timeout: number): PoolError {
    const predicted = this.#predictedWait()
    return new PoolError('FST_POOL_OVERLOADED', `pool '${this.name}' is overloaded: a connection would take about ${Math.round(predicted)} ms, and the deadline is in ` +
      `${Math.round(timeout)} ms (${this.#numbers()}). Look for slow queries, or raise max.`, { retryAfter: predicted / 1000, holders: this.#topHolders() })
  }

  /** Whether all who hold connections wait for another one, this caller included. */
  #isDeadlock (holder: HolderLabel): boolean {
    if (typeof holder === 'string' || this.#idle.length > 0 || this.#count[HERE]! < this.#max) return false
    const caller = whoIs(holder)
    // Nearly everybody who waits holds none, and is done here.
    let holds = false
    for (const { holder: other } of this.#entries) holds ||= whoIs(other) === caller
    if (!holds) return false
    const others = new Set<object | undefined>()
    for (const { state, lent, holder: other } of this.#entries) {
      if (state !== USED) continue
      if (!lent || whoIs(other) === undefined) return false
      if (whoIs(other) !== caller) others.add(whoIs(other))
    }
    if (others.size > this.#waiters.size) return false
    for (const { holder: waiting } of this.#waiters) others.delete(whoIs(waiting))
    return others.size === 0
  }

  #deadlockError (): PoolError {
    return new PoolError('FST_POOL_DEADLOCK', `all ${this.#max} connections of pool '${this.name}' are held by callers that wait for another one of it, this one included: ` +
      'use the connection that you have (request.lease), or raise max.', { holders: this.#topHolders() })
  }

  #closedError (): PoolError {
    return new PoolError('FST_POOL_CLOSED', `pool '${this.name}' is ${this.#phase}`, { retryAfter: this.#options.closeTimeout / 1000 })
  }

  #abortError (signal: AcquireSignal): PoolError {
    return new PoolError('FST_POOL_ABORTED', `an acquire from pool '${this.name}' was aborted by its signal`, { cause: signal.reason })
  }

  #refuse (error: PoolError, holder: HolderLabel | undefined, wait: number): PoolError {
    this.#refused++
    if (this.#listeners.refuse !== undefined) this.#emit('refuse', { error, wait, ...label(holder) })
    return error
  }

  /** Something failed that no caller is told of: to the listeners of `error`. Returns the scrubbed copy. */
  #report (error: unknown, phase: ErrorPhase): Error {
    const copy = scrub(error, this.#secrets)
    if (this.#listeners.error !== undefined) this.#emit('error', { error: copy, phase })
    return copy
  }

  #emit<E extends PoolEventName> (name: E, details: Omit<PoolEvents[E], 'pool' | 'time'>): void {
    const target = this.#place?.target
    const event = Object.freeze({ ...details, pool: this.name, ...(target !== undefined && { target }), time: Date.now() }) as unknown as PoolEvents[E]
    for (const listener of this.#listeners[name] as ReadonlyArray<PoolListener<E>>) {
      const failed = (error: unknown) => {
        // What the error listener throws can't go to the error listener.
        if (name === 'error') process.emitWarning(scrub(error, this.#secrets))
        else this.#report(error, 'listener')
      }
      try {
        const result: unknown = this.#run(() => listener(event))
        asPromise(result)?.then(undefined, failed)
      } catch (error) {
        failed(error)
      }
    }
  }

  /** Each time in a new copy of the context: what foreign code stores (`enterWith`; `run` around a call of ours) would stay in it. */
  #run<T> (fn: () => T): T {
    return this.#context.runInAsyncScope(newContext).runInAsyncScope(fn)
  }

  #info (entry: Entry<C>, more: Partial<HookInfo> = {}): HookInfo {
    return { pool: this.name, id: entry.id, uses: entry.uses, ...more }
  }

  /** Runs a hook: undefined when it is done, or there is none. Never throws; a failure is reported, and rejects with `HookFailed`. */
  #hook (name: 'onConnect' | 'onRelease' | 'onDisconnect', entry: Entry<C>, more?: Partial<HookInfo>): Promise<unknown> | undefined {
    const hook = this.#options[name]
    if (hook === undefined) return undefined
    const failed = (error: unknown) => { throw new HookFailed(this.#report(error, name)) }
    try {
      return asPromise(this.#run(() => hook(entry.connection, this.#info(entry, more))))?.then(undefined, failed)
    } catch (error) {
      return Promise.reject(error).catch(failed)
    }
  }

  /**
   * Listens to an event. What a listener throws goes to the listeners of `error`.
   *
   * @returns its own undo
   * @throws `FST_POOL_BAD_OPTIONS` for an event that there is not
   */
  on<E extends PoolEventName> (event: E, listener: PoolListener<E>): () => void {
    if (!eventNames.has(event)) throw badOption('event', event, `one of ${[...eventNames].join(', ')}`)
    if (typeof listener !== 'function') throw badOption('listener', listener, 'a function')
    // A new list each time: one that is being walked does not change.
    const listeners = this.#listeners as Record<PoolEventName, readonly unknown[] | undefined>
    // Its own function, so that the same listener may be added, and taken off, twice.
    const own = (payload: PoolEvents[E]) => listener(payload)
    listeners[event] = [...listeners[event] ?? [], own]
    return () => {
      const rest = listeners[event]?.filter((other) => other !== own)
      listeners[event] = rest === undefined || rest.length === 0 ? undefined : rest
    }
  }

  // --- Control --------------------------------------------------------------------------------------------------------------------------

  /**
   * Waits until `max(1, min)` connections are there. Optional: `acquire` works without.
   *
   * @throws `FST_POOL_CONNECT_FAILED` as soon as one can't be made, saying why; `FST_POOL_CLOSED`
   */
  async open (): Promise<void> {
    if (this.#phase !== 'open' || this.#closed !== undefined) throw this.#closedError()
    this.#started = true
    const target = Math.max(1, this.#min)
    await new Promise<void>((resolve, reject) => {
      this.#openers.push({ target, resolve, reject })
      this.#settleOpeners()
      this.#pump()
      this.#keepAlive()
    })
  }

  /** Retires every connection: the idle ones now, the lent ones when they are given back, those being made when they come. @param options.idle only the idle ones */
  evict ({ idle = false }: { idle?: boolean } = {}): void {
    if (!idle) {
      for (const entry of this.#entries) {
        if (entry.state === CREATING && entry.creation!.unwanted === undefined) this.#unwant(entry, 'stale')
        entry.doomed = 'stale'
      }
    }
    // All of them first: what listeners do meanwhile finds none that is still to go.
    const evicted = this.#idle.splice(0)
    for (const entry of evicted) this.#move(entry, USED)
    for (const entry of evicted) this.#destroy(entry, 'stale')
    this.#pump()
  }

  /**
   * Changes `min` and `max` from now on. Idle connections above the new `max` are destroyed, lent ones when they are given back.
   *
   * @throws `FST_POOL_BAD_OPTIONS`
   */
  resize ({ min = this.#min, max = this.#max }: { min?: number, max?: number }): void {
    if (!Number.isSafeInteger(max) || max < 1 || max > this.#limit) throw badOption('max', max, `an integer from 1 to ${this.#limit}`)
    if (!Number.isSafeInteger(min) || min < 0 || min > max) throw badOption('min', min, `an integer from 0 to max (${max})`)
    this.#min = min
    this.#max = max
    this.#shrunk = true
    // Creates first: what is there already is worth more.
    this.#cancelCreates(Math.max(0, max - this.#count[HERE]!), 'idle')
    while (this.#count[HERE]! > max && this.#idle.length > 0) {
      const entry = this.#idle.shift()!
      this.#move(entry, USED)
      this.#destroy(entry, 'idle')
    }
    // With another `min`, other connections may idle out.
    if (this.#asleep && this.#closed === undefined) this.#wake()
    this.#settleOpeners()
    this.#pump()
  }

  /** Lends nothing from now on: callers wait, until their deadlines. What is lent stays lent. */
  suspend (): void {
    this.#suspended = true
  }

  resume (): void {
    this.#suspended = false
    // How long it stood still is not its pace.
    this.#turns = this.#pace = 0
    this.#turnAt = this.#read()
    this.#pump()
  }

  /** Stops keeping idle connections. Whoever waits, and whoever still comes, is served. Resolves when nobody waits and none is used. */
  drain (): Promise<void> {
    if (this.#phase === 'open') {
      this.#phase = 'draining'
      this.#destroyedBefore = this.#destroyedTotal()
      if (this.#listeners.drain !== undefined) this.#emit('drain', {})
      this.#rejectOpeners(() => this.#closedError())
      this.#closeIdle()
    }
    return new Promise((resolve) => {
      this.#quiet.push(resolve)
      this.#settle()
    })
  }

  /**
   * Drains and refuses newcomers; then destroys what is still lent, and rejects whoever still waits. Always resolves, by `timeout`: leases have
   * until `destroyTimeout`, or a quarter of it if that is less, before.
   *
   * @param options.timeout in ms; `closeTimeout` unless given
   * @throws `FST_POOL_BAD_OPTIONS` (at once: nothing is closed)
   */
  close ({ timeout = this.closeTimeout }: { timeout?: number } = {}): Promise<void> {
    if (!isDeadline(timeout)) throw badOption('timeout', timeout, 'milliseconds, at least 1')
    if (this.#closed !== undefined) return this.#closed
    let settle: (closed: Promise<void>) => void = () => {}
    // First of all: what listeners do meanwhile is done to a pool that closes.
    this.#closed = new Promise((resolve) => { settle = resolve })
    settle(this.#run(() => this.#shut(timeout)))
    return this.#closed
  }

  async #shut (timeout: number): Promise<void> {
    const began = this.#read(true)
    const drained = this.drain()
    this.#phase = 'closing'
    const deadline = this.#alarm(timeout)
    const grace = this.#alarm(timeout - Math.min(this.#options.destroyTimeout, timeout / 4))
    await Promise.race([drained, grace.rung])
    grace.cancel()

    const holders = this.holders()
    this.#phase = 'closed'
    this.#turnAllAway(() => this.#closedError())
    this.#cancelCreates(0, 'closed')
    for (const entry of this.#entries) {
      // It is there, and `onConnect` is what takes so long.
      if (entry.state === CREATING && entry.creation!.delivered) this.#move(entry, USED)
      // An evicted one goes on until now.
      if (entry.state === CREATING) this.#abort(entry, `pool '${this.name}' closes`)
      if (entry.state !== USED) continue
      const prepared = entry.operation?.prepared
      if (prepared !== undefined) this.#turnAway(prepared, this.#closedError())
      this.#abort(entry, `pool '${this.name}' closes`)
      if (entry.lent) this.#revoke(entry, 'closed')
      else this.#destroy(entry, 'closed')
    }
    await Promise.race([new Promise<void>((resolve) => {
      this.#empty.push(resolve)
      this.#settle()
    }), deadline.rung])
    if (this.backend.close !== undefined) {
      const closing = Promise.resolve().then(() => this.backend.close!()).catch((error: unknown) => { this.#report(error, 'close') })
      // What is shared gets its chance even where connections took all the time.
      const last = this.#alarm(Math.max(100, began + timeout - this.#read()))
      await Promise.race([closing, last.rung])
      last.cancel()
    }
    deadline.cancel()
    // Whatever has not come back by now is late, and its answer is still owned.
    for (const entry of this.#entries) if (entry.state !== LATE) this.#move(entry, LATE)
    if (this.#listeners.close !== undefined) {
      this.#emit('close', { took: this.#read(true) - began, destroyed: this.#destroyedTotal() - this.#destroyedBefore, holders })
    }
    // Whoever still waits for one (a transaction's turn) finds its lease ended.
    for (const { ring } of this.#alarms) ring()
    this.#alarms.clear()
    this.#disarm()
    this.#listeners = {}
  }

  #turnAllAway (why: () => PoolError): void {
    // All of them first: whoever comes back at once is not among them.
    for (const waiter of [...this.#waiters]) this.#turnAway(waiter, withoutStack(why))
  }

  #turnAway (waiter: Waiter<C>, error: PoolError): void {
    if (this.#leave(waiter)) waiter.reject(this.#refuse(error, waiter.holder, this.#now - waiter.since))
  }

  #closeIdle (): void {
    for (let entry = this.#idle.pop(); entry !== undefined; entry = this.#idle.pop()) {
      this.#move(entry, USED)
      this.#destroy(entry, 'closed')
    }
    this.#cancelCreates(this.#waiters.size, 'closed')
  }

  async [Symbol.asyncDispose] (): Promise<void> {
    await this.close()
  }

  // --- Reading --------------------------------------------------------------------------------------------------------------------------

  stats (): PoolStats {
    const count = this.#count
    return Object.freeze({
      name: this.name,
      system: this.backend.system,
      min: this.#min,
      max: this.#max,
      creating: count[CREATING]!,
      idle: this.#idle.length,
      used: this.#used,
      closing: count[CLOSING]!,
      pending: this.#waiters.size,
      late: count[LATE]!,
      circuit: this.#circuit.state,
      acquired: this.#acquired,
      released: this.#released,
      created: this.#created,
      createErrors: this.#createErrors,
      destroyed: Object.freeze({ ...this.#destroyed }),
      timeouts: this.#timeouts,
      refused: this.#refused,
      aborted: this.#aborted,
      leaked: this.#leaked,
      ...durationsOf([this as unknown as Pool<C>]),
    })
  }

  #destroyedTotal (): number {
    return Object.values(this.#destroyed).reduce((sum, count) => sum + count, 0)
  }

  /** The leases that are out now, the longest held first. */
  holders (): Holder[] {
    const now = this.#read()
    return [...this.#entries]
      .filter(({ lent }) => lent)
      .map(({ id, holder, takenAt }) => ({ pool: this.name, holder, id, heldFor: Math.max(0, now - takenAt) }))
      .sort((a, b) => b.heldFor - a.heldFor)
  }

  /** How the pool is. Asks one idle connection, if there is one and the connector can; never waits for a connection, never opens one. */
  async health (): Promise<PoolHealth> {
    const entry = this.#idle.at(-1)
    const latency = entry === undefined || this.backend.validate === undefined ? null : await this.#ping(entry) ?? null
    const stats = this.stats()
    const { circuit, idle, used, pending } = stats
    const judged = (status: PoolHealth['status'], reason?: string): PoolHealth => ({ status, ...(reason !== undefined && { reason }), latency, circuit, stats })
    if (this.#phase !== 'open') return judged('draining', `the pool is ${this.#phase}`)
    if (circuit !== 'closed') return judged(idle + used === 0 ? 'down' : 'degraded', `the circuit is ${circuit}: creates keep failing`)
    if (this.#lastFailure !== undefined) return idle + used === 0 ? judged('down', 'no connection, and the last create failed') : judged('degraded', 'the last create failed')
    if (pending > 0) return judged('degraded', `${pending} wait for a connection`)
    return judged('up')
  }
}

/** For lib/balance, and nobody else. */
export const inside: Inside = insideOf!

/** Carries the report of a failed hook to whoever has to act on it. */
class HookFailed extends Error {
  constructor (readonly reported: Error) {
    super(reported.message)
  }
}

export const eventNames: ReadonlySet<PoolEventName> = new Set<PoolEventName>([
  'connect', 'disconnect', 'acquire', 'release', 'wait', 'overflow', 'timeout', 'refuse', 'leak', 'unleak', 'error', 'circuit', 'failover', 'driver', 'open', 'drain', 'close',
])

function stackOf ({ stack }: Watch): { stack?: string } {
  return stack === undefined ? {} : { stack }
}

/** Who it is: the very object. A text is only a label, and an id may be its client's choice. */
function whoIs (holder: HolderLabel | undefined): object | undefined {
  return typeof holder === 'object' ? holder : undefined
}

function label (holder: HolderLabel | undefined): { holder?: HolderLabel } {
  return holder === undefined ? {} : { holder }
}

/** Foreign: it may be no promise, or one that keeps none of the rules. */
function asPromise (value: unknown): Promise<unknown> | undefined {
  const pending = typeof value === 'object' && value !== null && typeof (value as { then?: unknown }).then === 'function'
  return pending ? Promise.resolve(value) : undefined
}

/** An error of the pool's own timer: where it was made tells nothing, and to find that out costs eight times as much as all the rest. */
function withoutStack<E extends Error> (make: () => E): E {
  const { stackTraceLimit } = Error
  Error.stackTraceLimit = 0
  try {
    return make()
  } finally {
    Error.stackTraceLimit = stackTraceLimit
  }
}

/** Node fires a timer of more than 2^31 - 1 ms at once (its documentation of setTimeout). */
function isDeadline (ms: unknown): ms is number {
  return typeof ms === 'number' && ms >= 1 && ms <= 2 ** 31 - 1
}
