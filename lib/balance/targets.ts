import { AsyncResource } from 'node:async_hooks'
import type { Connector, Role, ServerState } from '../../types/connector.js'
import type {
  AcquireOptions, AcquireSignal, Circuit, Clock, ErrorPhase, Holder, Lease, PoolEventName, PoolEvents, PoolFace, PoolHealth, PoolListener, PoolStats, RunOptions, TargetStats, UseOptions,
} from '../../types/pool.js'
import type { PoolErrorCode } from '../../types/errors.js'
import { systemClock } from '../pool/clock.js'
import { PoolError, badOption, scrub, secretsOf } from '../pool/errors.js'
import type { BalanceOptions, EngineOptions } from '../../types/options.js'
import { poolDefaults } from '../pool/options.js'
import { Pool, durationsOf, inside } from '../pool/pool.js'
import { useWithRetry, type Retrying } from '../pool/retry.js'
import { LeaseTransactions, checkRunOptions } from '../pool/transaction.js'
import { Budget } from './budget.js'
import { Choice, balances } from './choice.js'
import { Listeners } from './events.js'
import { Line, type Request } from './line.js'
import { Moved, Target, type TargetSpec } from './target.js'
import { HOLDER, Watch } from './watch.js'

export type { TargetSpec }

export interface TargetOptions<C> extends EngineOptions<C>, BalanceOptions {}

/** A target that had none idle when it was its turn gets one more connection each time that has happened so often. */
const PATIENCE = 4

/** Of acquires that never got into a line, or were sent away. */
const refusals: ReadonlySet<PoolErrorCode> = new Set<PoolErrorCode>([
  'FST_POOL_QUEUE_FULL', 'FST_POOL_OVERLOADED', 'FST_POOL_CIRCUIT_OPEN', 'FST_POOL_DEADLOCK', 'FST_POOL_CLOSED',
])

/** At the deadline. */
const timeouts: ReadonlySet<PoolErrorCode> = new Set<PoolErrorCode>(['FST_POOL_ACQUIRE_TIMEOUT', 'FST_POOL_CONNECT_FAILED'])

/** From the best to the worst. */
export const healthRank: ReadonlyArray<PoolHealth['status']> = ['up', 'degraded', 'draining', 'down']
const circuitRank: readonly Circuit[] = ['closed', 'half-open', 'open']
const worst = <T>(rank: readonly T[], all: readonly T[]): T => all.reduce((worse, one) => rank.indexOf(one) > rank.indexOf(worse) ? one : worse)

/**
 * A pool over several targets: one that writes (the primary), and others that only read.
 *
 * Each has an engine pool of its own; `max` is hard for all together, and where it does not suffice nobody starves (see `Budget`). `min` is the primary's: so
 * many connections are kept at whichever target that is. Replicas keep what they needed last, and one that is asked.
 *
 * What each target is, it is asked itself, where its connector can, again and again: who was given as the primary may no longer be it. The last one that became
 * the primary is it: one that says 'primary', and said 'replica' before, or was given as one. What the old one's line waited for, it waits for at the new one; the
 * old one's connections are closed, those that are lent when they come back. Where the old one still says the same, or wakes up and says so again, it gets no
 * writes, even when the new one dies, until it has followed. Who wants the primary while there is none waits in a line of its own.
 */
export class TargetPool<C, K extends Connector<C> = Connector<C>> implements PoolFace<C, K> {
  readonly closeTimeout: number
  readonly replicas: boolean
  readonly #targets: ReadonlyArray<Target<C>>
  /** They are parts of one database, and `max` is divided between them for good. */
  readonly #parts: boolean
  readonly #budget = new Budget<C>()
  readonly #choice: Choice<Target<C>>
  readonly #clock: Clock
  readonly #context = new AsyncResource('FASTIFY_POOL')
  readonly #acquireTimeout: number
  readonly #maxPending: number
  readonly #maxLag: number
  readonly #watch: Watch<C>
  readonly #retrying: Retrying<C>
  #min = 0
  #primary: Target<C> | undefined
  /** The primary that listeners know of. */
  #told: Target<C> | undefined
  /** There was a primary once: another one is a failover. */
  #settled = false
  #phase: 'open' | 'draining' | 'closed' = 'open'
  #started = false
  #suspended = false

  readonly #line: Line<Lease<C>>
  readonly #pauses = new Set<() => void>()
  #openers: Array<{ readonly resolve: () => void, readonly reject: (error: Error) => void }> = []
  /** Acquires that have not come to their end. */
  #unsettled = 0
  #quiet: Array<() => void> = []
  #closed: Promise<void> | undefined
  readonly #ends: Array<PoolEvents['close']> = []
  readonly #listeners = new Listeners((fn) => this.#run(fn), (error) => this.#scrub(error), (error) => { this.#report(error, 'listener') })
  /** For which role the transactions that run now were begun. */
  readonly #begunFor = new WeakMap<object, Role>()
  #timeouts = 0
  #refused = 0
  #aborted = 0

  /**
   * @param targets at least one
   * @param options as of `Pool`, and how to balance; `min` and `max` are of all together, `max` at least one for each
   * @throws `FST_POOL_BAD_OPTIONS`
   */
  constructor (targets: ReadonlyArray<TargetSpec<C>>, options: TargetOptions<C> = {}, clock: Clock = systemClock) {
    const { balance = 'weighted', maxLag = Infinity, checkInterval = 1000, ...common } = options
    if (targets.length === 0) throw badOption('targets', targets, 'a list of at least one target')
    if (!balances.includes(balance)) throw badOption('balance', balance, `one of ${balances.map((name) => `'${name}'`).join(', ')}`)
    if (!(maxLag >= 1)) throw badOption('maxLag', maxLag, 'a number of at least 1')
    if (!isDeadline(checkInterval)) throw badOption('checkInterval', checkInterval, 'milliseconds, at least 1')
    this.#clock = clock
    this.#maxLag = maxLag
    this.#choice = new Choice(balance, () => clock.random())
    this.#line = new Line((fn, ms) => this.#run(() => clock.setTimer(fn, ms)), (request) => this.#timeoutError(request), (signal) => this.#abortError(signal))
    this.#targets = targets.map((spec, index) => this.#join(spec, index, spec.options ?? common))
    this.#parts = targets.every(({ fixed }) => fixed === true)
    this.#watch = new Watch(this.#targets, clock, {
      interval: checkInterval,
      timeout: options.validateTimeout ?? poolDefaults.validateTimeout,
      run: (fn) => this.#run(fn),
      goesOn: () => this.#phase === 'open' || (this.#phase === 'draining' && this.#line.size > 0),
      isPaused: () => this.#suspended,
      isUrgent: () => this.#isUrgent,
      said: (target, state, at) => { this.#said(target, state, at) },
      isTransient: (target, error) => this.#isTransient(target, error),
      refused: (error) => { this.#report(error) },
      done: (target) => {
        this.#relieve(target)
        this.#review()
      },
    })
    this.replicas = targets.length > 1
    this.#primary = this.#targets.find(({ known, role }) => known && role === 'primary')
    this.#told = this.#primary
    this.#settled = this.#primary !== undefined
    this.closeTimeout = this.#targets[0]!.pool.closeTimeout

    const { min = poolDefaults.min, max = poolDefaults.max, backoff } = options
    this.#acquireTimeout = options.acquireTimeout ?? poolDefaults.acquireTimeout
    this.#maxPending = options.maxPending ?? poolDefaults.maxPending
    this.#retrying = {
      acquire: (acquire) => this.acquire(acquire),
      isTransient: (error) => this.#targets.some((target) => this.#isTransient(target, error)),
      wait: (ms) => this.#pause(ms),
      now: () => clock.now(),
      random: () => clock.random(),
      acquireTimeout: this.#acquireTimeout,
      backoff: { min: backoff?.min ?? poolDefaults.backoff.min!, max: backoff?.max ?? poolDefaults.backoff.max! },
    }
    const most = Math.min(max, this.#limit)
    this.resize({ min: Math.min(min, most), max: most })
  }

  /**
   * Of a connector with a `replica`: connections that write (role 'primary', the default), and others that only read ('replica'). `max` (at least 2) and `min`
   * are of both together: the writers get what their connector allows, the readers the rest.
   *
   * @throws `FST_POOL_BAD_OPTIONS`
   */
  static ofRoles<C, K extends Connector<C>> (connector: K & Connector<C>, options: EngineOptions<C> = {}, clock?: Clock): TargetPool<C, K> {
    const { replica } = connector
    if (replica === undefined) throw badOption('connector', connector, 'one with a replica')
    const { min, max, acquireTimeout, validateTimeout, maxPending, backoff } = options
    return new TargetPool<C, K>([
      { name: 'primary', role: 'primary', fixed: true, connector, options },
      { name: 'replica', role: 'replica', fixed: true, connector: replica, options },
    ], { min, max, acquireTimeout, validateTimeout, maxPending, backoff }, clock)
  }

  #join (spec: TargetSpec<C>, index: number, options: EngineOptions<C>): Target<C> {
    const { weight = 1, role = 'primary', name = `${role}-${index}`, connector } = spec
    if (!(weight > 0)) throw badOption(`targets.${index}.weight`, weight, 'a number above 0')
    const target: Target<C> = new Target<C>(name, spec, weight, () => new Pool(connector, options, this.#clock, this.#budget.add(name, () => target)))
    this.#budget.join(target)
    const { pool } = target
    pool.on('connect', () => {
      target.failing = false
      if (this.#line.size > 0) this.#review()
    })
    pool.on('error', ({ error, phase }) => { if (phase === 'create') this.#failed(target, error) })
    pool.on('disconnect', ({ reason }) => {
      // What a check itself has ended tells nothing new.
      if ((reason === 'error' || reason === 'invalid') && target.check === undefined) this.#watch.soon()
      if (this.#line.size > 0) this.#review()
    })
    pool.on('circuit', ({ from, to }) => {
      // Not at each probe of one that stays away.
      if (from === 'closed' || to === 'closed') this.#watch.soon()
      this.#review()
    })
    pool.on('close', (end) => { this.#ends.push(end) })
    return target
  }

  get name (): string {
    return this.#targets[0]!.pool.name
  }

  /** The connector of the target that is the primary now. */
  get backend (): K {
    return (this.#primary ?? this.#targets.find(({ given }) => given === 'primary') ?? this.#targets[0]!).spec.connector as unknown as K
  }

  // --- Taking ---------------------------------------------------------------------------------------------------------------------------

  /**
   * Lends a connection of a target that has the role: of the primary unless `role` is 'replica'; of the primary too where no replica can be used. Waits for one
   * if none is idle, and for a primary if there is none.
   *
   * @throws as `Pool.acquire` does; `FST_POOL_CIRCUIT_OPEN` only where no target of the role, and none that may get it, can be had
   */
  acquire (options: AcquireOptions = {}): Promise<Lease<C>> {
    try {
      const role = readRole(options)
      if (options.timeout !== undefined && !isDeadline(options.timeout)) throw badOption('timeout', options.timeout, 'milliseconds, at least 1')
      const lease = options.signal?.aborted === true ? null : this.#take(role, options)
      return lease === null ? this.#serve(role, options) : Promise.resolve(lease)
    } catch (error) {
      return Promise.reject(error)
    }
  }

  /** Lends an idle connection of a target that has the role now, or returns null where somebody would have to wait. */
  tryAcquire (options: Pick<AcquireOptions, 'holder' | 'role'> = {}): Lease<C> | null {
    return this.#take(readRole(options), options)
  }

  #take (role: Role, options: AcquireOptions): Lease<C> | null {
    if (!this.#started) this.#start()
    // Who stands in the line is served when there is what it waits for, before anybody else.
    if (this.#line.size > 0) return null
    const eligible = this.#eligible(role)
    if (eligible.length === 1) return eligible[0]!.pool.tryAcquire(options)
    const ready = eligible.filter((target) => target.ready)
    if (ready.length === 0) return null
    const best = this.#choice.next(eligible)
    while (ready.length > 0) {
      const target = ready.includes(best) ? best : this.#choice.next(ready)
      const lease = target.pool.tryAcquire(options)
      if (lease !== null) {
        this.#took(target, eligible, best)
        return lease
      }
      ready.splice(ready.indexOf(target), 1)
    }
    return null
  }

  #took (target: Target<C>, eligible: ReadonlyArray<Target<C>>, best: Target<C>): void {
    this.#choice.took(target, eligible)
    // Nobody waits where another target has one idle; but then the idle ones would stay where they were first.
    if (best !== target && ++best.passedOver % PATIENCE === 0) this.#grow(best)
  }

  /** One more connection, where there is room. */
  #grow (target: Target<C>): void {
    const { total, coming, circuit } = target.load
    if (target.growing || coming > 0 || circuit !== 'closed' || total >= target.max || !this.#budget.hasRoom) return
    target.growing = true
    const grown = (lease?: Lease<C>) => {
      target.growing = false
      lease?.release()
    }
    // Why it failed, the pool has told, or somebody else is told; it is tried again.
    this.#run(() => target.pool.acquire({ holder: HOLDER })).then(grown, () => { grown() })
  }

  /** Those that have a role and can be used now. */
  #eligible (role: Role): ReadonlyArray<Target<C>> {
    if (role === 'replica') {
      const replicas = this.#targets.filter((target) => target.role === 'replica' && target.known && target.usable && this.#isClose(target))
      // One that fails is tried where there is no other; its next check tells when it is back.
      const sound = replicas.filter((target) => target.sound)
      if (sound.length > 0) return sound
      if (replicas.length > 0 && this.#primary?.usable !== true) return replicas
      if (replicas.some(({ speaks }) => !speaks)) return replicas
    }
    return this.#primary?.usable === true ? [this.#primary] : []
  }

  #isClose (target: Target<C>): boolean {
    return this.#maxLag === Infinity || (this.#lagOf(target) ?? Infinity) <= this.#maxLag
  }

  /** In time it can't grow faster than the clock: not to Infinity when the primary dies, nor to an idle hour at the first change after it. */
  #lagOf ({ state, role, shows }: Target<C>): number | null {
    if (state === undefined || role === 'primary') return null
    if (state.lag !== undefined) return Math.min(state.lag, this.#clock.now() - shows)
    const ahead = this.#primary?.state?.offset
    return ahead === undefined || state.offset === undefined ? null : Math.max(0, ahead - state.offset)
  }

  /** For who is not served at once. */
  async #serve (role: Role, options: AcquireOptions): Promise<Lease<C>> {
    const since = this.#clock.now()
    const request: Request = { role, options, since, deadline: since + (options.timeout ?? this.#acquireTimeout) }
    this.#unsettled++
    try {
      return await this.#attempt(request)
    } catch (error) {
      if (!(error instanceof PoolError)) throw error
      if (refusals.has(error.code)) this.#refuse(error, request)
      throw timeouts.has(error.code) ? this.#timedOut(error, request) : error
    } finally {
      if (--this.#unsettled === 0) for (const resolve of this.#quiet.splice(0)) resolve()
    }
  }

  /** At the next target, in its line where there is one; else in the line for a primary. */
  #attempt (request: Request): Promise<Lease<C>> {
    const eligible = this.#eligible(request.role)
    if (eligible.length === 0) return this.#standInLine(request)
    const ready = eligible.filter((target) => target.ready)
    const best = this.#choice.next(eligible)
    const target = ready.length === 0 || ready.includes(best) ? best : this.#choice.next(ready)
    this.#took(target, eligible, best)
    const timeout = Math.max(1, request.deadline - this.#clock.now())
    request.target = target.name
    return target.pool.acquire({ ...request.options, timeout }).catch((error: unknown) => {
      const elsewhere = error instanceof Moved || (error instanceof PoolError && error.code === 'FST_POOL_CIRCUIT_OPEN' && !target.usable)
      if (!elsewhere) throw error
      return this.#attempt(request)
    })
  }

  #standInLine (request: Request): Promise<Lease<C>> {
    const { options: { signal, holder }, deadline } = request
    const left = deadline - this.#clock.now()
    if (this.#phase === 'closed') return Promise.reject(this.#closedError())
    if (signal?.aborted === true) return Promise.reject(this.#abortError(signal))
    if (!this.#mayGetPrimary) return Promise.reject(this.#circuitError())
    if (left <= 0) return Promise.reject(this.#timeoutError(request))
    if (this.#line.size >= this.#maxPending) return Promise.reject(new PoolError('FST_POOL_QUEUE_FULL', `${this.#noPrimary}, and ${this.#line.size} wait for one already`))
    request.target = undefined
    const served = this.#line.join(request, left, () => this.#attempt(request))
    this.#watch.soon()
    this.#emit('wait', { pending: this.#line.size, ...(holder !== undefined && { holder }) })
    return served
  }

  /** A target may become the primary, or be it again, while somebody waits. */
  get #mayGetPrimary (): boolean {
    return this.#targets.some((target) => target.usable && (target.speaks || target.role === 'primary'))
  }

  /**
   * Calls `fn` with a connection and gives it back whatever happens. With `retry`, again on another connection where a connector calls the error transient.
   *
   * @throws what `acquire` or `fn` throws; `FST_POOL_BAD_OPTIONS`
   */
  async use<T> (fn: (connection: C, lease: Lease<C>) => T | Promise<T>, options?: UseOptions): Promise<T> {
    return await useWithRetry(this.#retrying, fn, options)
  }

  /**
   * Calls `fn` in a transaction. Within another transaction of this pool, for the same role, it is a savepoint in that one.
   *
   * @throws what `acquire` and `Lease.transaction` throw
   */
  async transaction<T> (fn: (connection: C) => T | Promise<T>, options: AcquireOptions & RunOptions = {}): Promise<T> {
    const { signal, timeout, holder, role: _, ...run } = options
    const role = readRole(options)
    const around = this.#around().find(({ transactions, target }) => (this.#begunFor.get(transactions) ?? target.role) === role)?.transactions
    if (around !== undefined) return await around.run(fn, run)
    checkRunOptions({ name: this.name, transactions: this.backend.transactions }, run)
    return await this.use((_, lease) => lease.transaction((connection) => {
      for (const { transactions } of this.#around()) if (!this.#begunFor.has(transactions)) this.#begunFor.set(transactions, role)
      return fn(connection)
    }, run), { signal, timeout, holder, role })
  }

  /** The transactions which the calling code is within. */
  #around (): Array<{ readonly transactions: LeaseTransactions<C>, readonly target: Target<C> }> {
    return this.#targets.flatMap((target) => {
      const transactions = LeaseTransactions.current(target.pool) as LeaseTransactions<C> | undefined
      return transactions === undefined ? [] : [{ transactions, target }]
    })
  }

  // --- Roles ----------------------------------------------------------------------------------------------------------------------------

  /** Checks begin with the pool's first use. */
  #start (): void {
    if (this.#phase !== 'open') return
    this.#started = true
    this.#watch.begin()
  }

  /** Who waits for a primary, or may soon have to, wants to know at once. */
  get #isUrgent (): boolean {
    const primary = this.#primary
    return primary === undefined || !primary.usable || primary.failing || primary.mute
  }

  #said (target: Target<C>, state: ServerState, at: number): void {
    const { role, lag = Infinity } = state
    const promoted = role === 'primary' && target.role === 'replica'
    target.known = true
    target.state = state
    target.role = role
    target.shows = role === 'primary' ? -Infinity : Math.max(target.shows, at - lag)
    if (promoted) for (const other of this.#targets) other.supersededBy = target
    if (promoted || role === 'replica') target.supersededBy = undefined
    // It follows somebody: where one that it superseded says that it is the primary, that is who.
    if (role === 'replica' && state.lag !== Infinity) for (const other of this.#targets) if (other.supersededBy === target) other.supersededBy = undefined
    if (promoted) this.#become(target)
    else if (role === 'replica' && target === this.#primary) this.#become(this.#another)
  }

  /** One that says it is the primary, and can be used. */
  get #another (): Target<C> | undefined {
    return this.#targets.find((target) => target !== this.#primary && target.role === 'primary' && target.known && !target.lost && !target.isSuperseded)
  }

  /** It is the primary from now on; undefined: there is none. */
  #become (target: Target<C> | undefined): void {
    const from = this.#primary
    if (from === target) return
    this.#primary = target
    this.#spread()
    // They were made, or waited for, in the belief that it is the primary.
    if (from !== undefined) {
      // This first: creates that nobody waits for any more are given up, and where it hangs that makes room for the new one.
      inside.turnAway(from.pool, () => new Moved(this.name))
      from.pool.evict()
    }
    this.#review()
  }

  /** Where one steps down and another one says in the same breath that it is the primary now, that is one failover, and not two. */
  #tellFailover (): void {
    const [from, to] = [this.#told, this.#primary]
    if (from === to || (to === undefined && this.#targets.some(({ check }) => check !== undefined))) return
    this.#told = to
    if (this.#settled) this.#emit('failover', { from: from?.name, to: to?.name })
    this.#settled = true
  }

  /** A create failed. */
  #failed (target: Target<C>, error: Error): void {
    if (!target.failing) this.#watch.soon()
    target.failing = true
    target.lastError = error
    this.#relieve(target)
    this.#review()
  }

  /** Who waits at a replica that fails, or hangs, has nothing to wait for while another target has the role. */
  #relieve (target: Target<C>): void {
    if (target === this.#primary || target.sound || target.load.pending === 0 || !this.#eligible('replica').some((other) => other !== target)) return
    inside.turnAway(target.pool, () => new Moved(this.name))
  }

  /** After every change: whether there is a primary, and what those who wait for one can do. */
  #review (): void {
    if (this.#phase === 'closed') return
    if (this.#primary?.lost !== false && this.#another !== undefined) return this.#become(this.#another)
    this.#tellFailover()
    this.#line.sort(({ role }) => this.#eligible(role).length > 0 ? 'go' : this.#mayGetPrimary ? 'stay' : this.#circuitError())
    if (this.#openers.length === 0) return
    // Suspended, nobody is asked.
    if (!(this.#suspended && this.#primary?.usable === true) && !this.#targets.every(({ settled }) => settled)) return
    for (const { resolve } of this.#openers.splice(0)) resolve()
    this.#watch.keepAlive(false)
  }

  // --- Control --------------------------------------------------------------------------------------------------------------------------

  /**
   * Waits until every target has been asked what it is, or could not be, and the primary has `max(1, min)` connections. A target that can't be reached does not
   * matter as long as there is a primary.
   *
   * @throws `FST_POOL_CONNECT_FAILED` where there is none, saying why; `FST_POOL_CLOSED`
   */
  async open (): Promise<void> {
    if (this.#phase !== 'open') throw this.#closedError()
    if (!this.#started) this.#start()
    await new Promise<void>((resolve, reject) => {
      this.#openers.push({ resolve, reject })
      this.#watch.keepAlive(true)
      this.#review()
    })
    const primary = this.#primary
    if (primary === undefined || (primary.speaks && !primary.usable)) {
      const cause = this.#targets.find(({ failing }) => failing)?.lastError
      throw new PoolError('FST_POOL_CONNECT_FAILED', `${this.#noPrimary} (${this.#targets.map((target) => `${target.name}: ${target.why}`).join('; ')})`, { cause })
    }
    await primary.pool.open()
    // The writers came first: they make the file that the readers read.
    if (this.#parts) for (const { pool } of this.#targets) if (pool !== primary.pool) await pool.open()
    const { driver } = this.backend
    this.#emit('open', { ...(driver !== undefined && { driver }) })
  }

  evict (options?: { idle?: boolean }): void {
    for (const { pool } of this.#targets) pool.evict(options)
  }

  /** @throws `FST_POOL_BAD_OPTIONS` */
  resize ({ min = this.#min, max = this.#budget.max }: { min?: number, max?: number }): void {
    const [least, limit] = [this.#targets.length, this.#limit]
    const each = this.#parts ? 'one that writes and one that reads' : 'one for each target'
    if (!Number.isSafeInteger(max) || max < least || max > limit) throw badOption('max', max, `an integer from ${least} (${each}) to ${limit}`)
    if (!Number.isSafeInteger(min) || min < 0 || min > max) throw badOption('min', min, `an integer from 0 to max (${max})`)
    this.#min = min
    this.#budget.max = max
    this.#spread()
    this.#budget.settle()
  }

  /** As many connections as the connectors allow together. */
  get #limit (): number {
    return this.#targets.reduce((sum, { spec: { connector } }) => Math.min(Number.MAX_SAFE_INTEGER, sum + (connector.max ?? Number.MAX_SAFE_INTEGER)), 0)
  }

  /** How many each may have, and the primary keeps. */
  #spread (): void {
    const { max } = this.#budget
    let [left, kept] = [max, this.#min]
    for (const [index, target] of this.#targets.entries()) {
      const own = Math.min(target.spec.max ?? max, target.spec.connector.max ?? max, max)
      // Of parts each leaves one for each that follows, and the last keeps most of them.
      const most = this.#parts ? Math.min(own, left - (this.#targets.length - 1 - index)) : own
      const least = this.#parts ? Math.min(kept, most, index === 0 ? 1 : most) : target === this.#primary ? Math.min(kept, most) : 0
      left -= most
      kept -= least
      target.max = most
      target.pool.resize({ min: least, max: most })
    }
  }

  suspend (): void {
    this.#suspended = true
    for (const { pool } of this.#targets) pool.suspend()
    this.#review()
  }

  resume (): void {
    this.#suspended = false
    for (const { pool } of this.#targets) pool.resume()
    this.#watch.soon()
  }

  /** Stops keeping idle connections. Whoever waits, and whoever still comes, is served. Resolves when nobody waits and none is used. */
  async drain (): Promise<void> {
    this.#beginDrain()
    while (true) {
      await Promise.all(this.#targets.map(({ pool }) => pool.drain()))
      // Who went from one target to another was in no pool's line meanwhile.
      if (this.#unsettled > 0) await new Promise<void>((resolve) => { this.#quiet.push(resolve) })
      else if (this.#targets.every(({ busy }) => busy === 0)) return
    }
  }

  #beginDrain (): void {
    if (this.#phase !== 'open') return
    this.#phase = 'draining'
    this.#emit('drain', {})
    for (const { reject } of this.#openers.splice(0)) reject(this.#closedError())
  }

  /**
   * As `Pool.close`, for all targets at the same time. Who waits for a primary is refused at once.
   *
   * @throws `FST_POOL_BAD_OPTIONS` (at once: nothing is closed)
   */
  close (options?: { timeout?: number }): Promise<void> {
    // Called again, they check their option and give what they gave the first time.
    const all = this.#targets.map(({ pool }) => pool.close(options))
    this.#closed ??= this.#shut(all)
    return this.#closed
  }

  async #shut (all: ReadonlyArray<Promise<void>>): Promise<void> {
    this.#beginDrain()
    this.#phase = 'closed'
    this.#watch.end(new Error(`pool '${this.name}' closes`))
    this.#line.sort(() => this.#closedError())
    for (const wake of [...this.#pauses]) wake()
    await Promise.all(all)
    const { time: _time, pool: _pool, target: _target, ...end } = this.#ends.reduce(bothClosed)
    this.#emit('close', end)
    this.#listeners.clear()
  }

  async [Symbol.asyncDispose] (): Promise<void> {
    await this.close()
  }

  /** Resolves after `ms`, or when the pool closes; keeps the process alive until then. */
  #pause (ms: number): Promise<void> {
    if (this.#phase === 'closed') return Promise.resolve()
    return new Promise((resolve) => {
      const wake = () => {
        timer.cancel()
        this.#pauses.delete(wake)
        resolve()
      }
      const timer = this.#run(() => this.#clock.setTimer(wake, Math.max(1, Math.ceil(ms))))
      timer.ref()
      this.#pauses.add(wake)
    })
  }

  // --- Errors and events ----------------------------------------------------------------------------------------------------------------

  get #noPrimary (): string {
    return `pool '${this.name}' has no primary among its ${this.#targets.length} targets`
  }

  #circuitError (): PoolError {
    return new PoolError('FST_POOL_CIRCUIT_OPEN', `pool '${this.name}' can't connect to any target that it could use. Are its servers up, and are their addresses and logins right?`,
      { cause: this.#targets.find(({ failing }) => failing)?.lastError })
  }

  #timeoutError ({ since, deadline }: Request): PoolError {
    this.#timeouts++
    return new PoolError('FST_POOL_ACQUIRE_TIMEOUT', `${this.#noPrimary}, and did not get one within ${Math.round(deadline - since)} ms`,
      { cause: this.#targets.find(({ failing }) => failing)?.lastError })
  }

  /** The target knows only of the time that was left when it was tried. */
  #timedOut (error: PoolError, { since, deadline, target, options: { holder } }: Request): PoolError {
    const message = error.message.replace(/ within \d+ ms/, ` within ${Math.round(deadline - since)} ms`)
    const whole = message === error.message ? error : new PoolError(error.code, message, { cause: error.cause, holders: error.holders ?? [], retryAfter: Number(error.headers?.['retry-after']) })
    this.#emit('timeout', { error: whole, wait: this.#clock.now() - since, ...(target !== undefined && { target }), ...(holder !== undefined && { holder }) })
    return whole
  }

  #abortError (signal: AcquireSignal): PoolError {
    this.#aborted++
    return new PoolError('FST_POOL_ABORTED', `an acquire from pool '${this.name}' was aborted by its signal`, { cause: signal.reason })
  }

  #closedError (): PoolError {
    return new PoolError('FST_POOL_CLOSED', `pool '${this.name}' is ${this.#phase}`, { retryAfter: this.closeTimeout / 1000 })
  }

  #refuse (error: PoolError, { since, options: { holder } }: Request): void {
    this.#refused++
    this.#emit('refuse', { error, wait: this.#clock.now() - since, ...(holder !== undefined && { holder }) })
  }

  #isTransient ({ spec: { connector } }: Target<C>, error: unknown): boolean {
    try {
      return connector.isTransient?.(error) === true
    } catch (failure) {
      this.#report(failure, 'isTransient')
      return false
    }
  }

  #report (error: unknown, phase: ErrorPhase = 'validate'): void {
    this.#emit('error', { error: this.#scrub(error), phase })
  }

  #scrub (error: unknown): Error {
    const secrets = this.#targets.flatMap(({ spec: { connector, options } }) => secretsOf({ url: options?.url, connection: [options?.connection, { secrets: connector.secrets }] }))
    return scrub(error, secrets)
  }

  #emit<E extends PoolEventName> (name: E, details: Omit<PoolEvents[E], 'pool' | 'time'>): void {
    this.#listeners.emit(name, { ...details, pool: this.name, time: Date.now() } as PoolEvents[E])
  }

  /** Not in the async context of whichever caller set it off. */
  #run<T> (fn: () => T): T {
    return this.#context.runInAsyncScope(newContext).runInAsyncScope(fn)
  }

  /** What concerns one target says which, in `target`; what concerns the pool as a whole is told once. */
  on<E extends PoolEventName> (event: E, listener: PoolListener<E>): () => void {
    const undos = this.#targets.map(({ pool }) => pool.on(event, listener))
    // Only here: a target's own refusal may not be the caller's.
    if (wholes.has(event)) for (const undo of undos.splice(0)) undo()
    undos.push(this.#listeners.add(event, listener))
    return () => { for (const undo of undos) undo() }
  }

  // --- Reading --------------------------------------------------------------------------------------------------------------------------

  /** The sum of all, and each in `targets`; `refused` counts whom no target served in the end. */
  stats (): PoolStats {
    const targets = this.#targets.map((target) => {
      const stats = target.pool.stats()
      return Object.freeze<TargetStats>({ target: target.name, role: target.role, lag: this.#lagOf(target), ...stats, aborted: stats.aborted - target.gaveUp })
    })
    const whole = sumOf(targets)
    return Object.freeze<PoolStats>({
      ...whole,
      ...durationsOf(this.#targets.map(({ pool }) => pool)),
      min: this.#min,
      max: Math.min(this.#budget.max, whole.max),
      pending: whole.pending + this.#line.size,
      timeouts: whole.timeouts + this.#timeouts,
      refused: this.#refused,
      aborted: whole.aborted + this.#aborted,
      circuit: worst(circuitRank, targets.map(({ circuit }) => circuit)),
      targets: Object.freeze(targets),
    })
  }

  holders (): Holder[] {
    return this.#targets.flatMap(({ pool }) => pool.holders()).sort((a, b) => b.heldFor - a.heldFor)
  }

  /** As the primary is; `degraded` where another target is not up, or an old primary does not know that it is one no more, `down` where there is no primary. */
  async health (): Promise<PoolHealth> {
    const all = await Promise.all(this.#targets.map(async (target) => ({ target, ...await target.pool.health() })))
    const latencies = all.map(({ latency }) => latency).filter((latency) => latency !== null)
    const stats = this.stats()
    const rest = { latency: latencies.length === 0 ? null : Math.max(...latencies), circuit: stats.circuit, stats }
    const primary = all.find(({ target }) => target === this.#primary)
    const ill = all.find((one) => one !== primary && one.status !== 'up')
    if (this.#phase !== 'open') return { status: 'draining', reason: `the pool is ${this.#phase}`, ...rest }
    if (primary !== undefined && primary.status !== 'up') return { status: primary.status, reason: primary.reason!, ...rest }
    if (primary === undefined && this.#started) return { status: 'down', reason: `no primary: ${all.map(({ target }) => `${target.name}: ${target.why}`).join('; ')}`, ...rest }
    if (ill !== undefined) return { status: 'degraded', reason: `${ill.target.name}: ${ill.reason}`, ...rest }
    const old = this.#targets.find(({ isSuperseded }) => isSuperseded)
    if (old !== undefined) return { status: 'degraded', reason: `${old.name}: ${old.why}`, ...rest }
    return { status: 'up', ...rest }
  }
}

const newContext = () => new AsyncResource('FASTIFY_POOL')

/** Told here, and not by each target: it may have been tried before at another one. */
const wholes: ReadonlySet<PoolEventName> = new Set<PoolEventName>(['refuse', 'timeout', 'failover', 'open', 'drain', 'close'])

/** Each number of a pool's books is the sum of its targets'. */
function sumOf ([first, ...others]: readonly TargetStats[]): PoolStats {
  const { target: _target, role: _role, lag: _lag, destroyed, ...whole } = first!
  const add = <T extends object>(to: T, more: T): T => {
    const numbers = Object.entries(to).filter(([, value]) => typeof value === 'number') as Array<[keyof T & string, number]>
    return { ...to, ...Object.fromEntries(numbers.map(([key, value]) => [key, value + (more[key] as number)])) }
  }
  return {
    ...others.reduce((sum, stats) => add(sum, stats), whole),
    destroyed: Object.freeze(others.reduce((sum, stats) => add(sum, stats.destroyed), destroyed)),
  }
}

function bothClosed (first: PoolEvents['close'], second: PoolEvents['close']): PoolEvents['close'] {
  return { ...second, took: Math.max(first.took, second.took), destroyed: first.destroyed + second.destroyed, holders: Object.freeze([...first.holders, ...second.holders]) }
}

function readRole ({ role = 'primary' }: Pick<AcquireOptions, 'role'>): Role {
  if (role !== 'primary' && role !== 'replica') throw badOption('role', role, "'primary' or 'replica'")
  return role
}

function isDeadline (ms: unknown): ms is number {
  return typeof ms === 'number' && ms >= 1 && ms <= 2 ** 31 - 1
}
