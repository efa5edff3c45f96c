import type { CallArguments, CallName, CallResult } from '../../types/calls.js'
import type { Connector, Role } from '../../types/connector.js'
import type { BalanceOptions, EngineOptions } from '../../types/options.js'
import type {
  AcquireOptions, CallOptions, Clock, Holder, HoldOptions, Lease, PoolEventName, PoolFace, PoolHealth,
  PoolListener, PoolStats, RunOptions, Tx, UseOptions,
} from '../../types/pool.js'
import type { Engine } from '../engine/engine.js'
import { PoolError, badOption } from '../engine/errors.js'
import { Events, type Meter } from '../engine/events.js'
import * as faults from '../engine/faults.js'
import { checkHoldTimeout, lendFor } from '../engine/lease.js'
import { Openers } from '../engine/openers.js'
import { deadlineExpected, isDeadline, systemClock } from '../engine/time.js'
import { LeaseTransactions, checkRunOptions } from '../engine/transaction.js'
import { begin } from '../pool/begin.js'
import { checkNames } from '../pool/calls.js'
import { execute } from '../pool/execute.js'
import { poolDefaults } from '../pool/options.js'
import { renameEngine, type Innards } from '../pool/pool.js'
import { useWithRetry, type Retrying } from '../pool/retry.js'
import { acquires, trace } from '../pool/tracing.js'
import { Choice, balances } from './choice.js'
import { Discovery } from './discovery.js'
import { Dispatch, checkAffinity, readRole } from './dispatch.js'
import { Fleet } from './fleet.js'
import { healthOf, reasonsOf, statsOf } from './report.js'
import { Peers } from './peers.js'
import { Roles, type Ranks } from './roles.js'
import { Moved, type Target, type TargetSpec } from './target.js'
import { Watch } from './watch.js'

export type { TargetSpec }

export interface TargetOptions<C> extends EngineOptions<C>, BalanceOptions {}

/** From the best to the worst. */
export const healthRank: ReadonlyArray<PoolHealth['status']> = ['up', 'degraded', 'draining', 'down']
/** As `renamePool`. */
export let renameTargetPool: (pool: object, name: string) => void
/** As `innardsOf`. */
export let innardsOfTargets: (pool: object) => Innards | undefined
/** As `measurePool`. */
export let measureTargets: (pool: object, meter: Meter) => (() => void) | undefined
/** As `callerOf`. */
export let callerOfTargets: (pool: object) => string | undefined

/**
 * A pool over several targets: one that writes (the primary), and others that only read.
 *
 * Each target has an engine. `max` is hard for all together (`Budget`). `min` connections are kept at the primary,
 * whichever target that is; replicas keep what they needed last, and one connection for checks.
 *
 * Targets that can say what they are, are asked again and again (`Watch`), since the primary may change (`Roles`). When
 * another target becomes the primary, the callers in the old one's line move to the new one. The old one's connections
 * are closed, lent ones when they come back. Callers that need a primary while there is none wait (`Dispatch`).
 */
export class TargetPool<C, K extends Connector<C> = Connector<C>> implements PoolFace<C, K> {
  readonly closeTimeout: number
  readonly replicas: boolean
  readonly #fleet: Fleet<C>
  readonly #targets: ReadonlyArray<Target<C>>
  readonly #events: Events
  readonly #roles: Ranks<C>
  readonly #dispatch: Dispatch<C>
  readonly #watch: Watch<C>
  readonly #discovery: Discovery<C>
  readonly #retrying: Retrying<C>
  #phase: 'open' | 'draining' | 'closed' = 'open'
  #started = false
  #suspended = false
  #hasToldPrimaries = false
  readonly #openers = new Openers()
  #closed: Promise<void> | undefined
  /** The roles and keys for which the transactions that run now were begun. */
  readonly #begunFor = new WeakMap<object, { readonly role: Role, readonly affinity: string | undefined }>()

  /**
   * @param targets at least one
   * @param options those of `Pool`, and how to balance; `min` and `max` are for all targets together, `max` at least
   * one for each
   * @throws `FST_POOL_BAD_OPTIONS`
   */
  constructor (targets: ReadonlyArray<TargetSpec<C>>, options: TargetOptions<C> = {}, clock: Clock = systemClock) {
    const { balance = 'weighted', maxLag = Infinity, checkInterval = 1000, ...common } = options
    if (targets.length === 0) throw badOption('targets', targets, 'a list of at least one target')
    if (!balances.includes(balance)) {
      throw badOption('balance', balance, `one of ${balances.map((name) => `'${name}'`).join(', ')}`)
    }
    if (!(maxLag >= 1)) throw badOption('maxLag', maxLag, 'a number of at least 1')
    if (!isDeadline(checkInterval)) throw badOption('checkInterval', checkInterval, deadlineExpected)
    this.#fleet = new Fleet({
      clock,
      name: () => this.name,
      pending: () => this.#dispatch.pending,
      review: () => { this.#review() },
      relieve: (target) => { this.#relieve(target) },
      askSoon: () => { this.#watch.soon() },
    })
    this.#fleet.given = targets.map((spec, index) => this.#fleet.join(spec, index, spec.options ?? common))
    this.#targets = this.#fleet.targets
    const arePeers = readPeers(targets)
    this.replicas = targets.length > 1 && !arePeers
    this.closeTimeout = this.#first.options.closeTimeout
    this.#events = new Events(this.name, undefined, () => this.#fleet.all.flatMap(({ secrets }) => secrets()))
    this.#roles = arePeers ? new Peers(this.#targets) : new Roles(this.#targets, clock, maxLag)

    const { min = poolDefaults.min, max = poolDefaults.max, backoff } = options
    const acquireTimeout = options.acquireTimeout ?? poolDefaults.acquireTimeout
    this.#dispatch = new Dispatch({
      name: () => this.name,
      targets: this.#targets,
      roles: this.#roles,
      choice: new Choice(balance, () => clock.random()),
      events: this.#events,
      clock,
      acquireTimeout,
      maxPending: options.maxPending ?? poolDefaults.maxPending,
      isClosed: () => this.#phase === 'closed',
      hasRoom: () => this.#fleet.hasRoom,
      start: () => { this.#start() },
      askSoon: () => { this.#watch.soon() },
      closedError: () => this.#closedError,
    })
    this.#discovery = this.#discoveryOf(clock, checkInterval, common)
    this.#watch = this.#watchOf(clock, checkInterval, options.validateTimeout ?? poolDefaults.validateTimeout)
    this.#retrying = {
      acquire: (acquire) => this.acquire(acquire),
      isTransient: (error) => this.#targets.some((target) => this.#isTransient(target, error)),
      wait: async (ms) => { if (this.#phase !== 'closed') await this.#dispatch.time.sleep(ms).over },
      now: () => clock.now(),
      random: () => clock.random(),
      acquireTimeout,
      backoff: { min: backoff?.min ?? poolDefaults.backoff.min, max: backoff?.max ?? poolDefaults.backoff.max },
    }
    const most = Math.min(max, this.#fleet.limit)
    this.resize({ min: Math.min(min, most), max: most })
  }

  /**
   * A pool of a connector with a `replica`: connections that write (role 'primary', the default) and connections that
   * only read ('replica'). `max` (at least 2) and `min` are for both together: the writers get what their connector
   * allows, the readers the rest.
   *
   * @throws `FST_POOL_BAD_OPTIONS`
   */
  static ofRoles<C, K extends Connector<C>> (
    connector: K & Connector<C>, options: EngineOptions<C> = {}, clock?: Clock
  ): TargetPool<C, K> {
    const { replica } = connector
    if (replica === undefined) throw badOption('connector', connector, 'one with a replica')
    const { min, max, acquireTimeout, validateTimeout, maxPending, backoff } = options
    return new TargetPool<C, K>([
      { name: 'primary', role: 'primary', fixed: true, connector, options },
      { name: 'replica', role: 'replica', fixed: true, connector: replica, options },
    ], { min, max, acquireTimeout, validateTimeout, maxPending, backoff }, clock)
  }

  #watchOf (clock: Clock, interval: number, timeout: number): Watch<C> {
    return new Watch(this.#targets, clock, {
      interval,
      timeout,
      run: (fn) => this.#events.run(fn),
      isAwaited: () => this.#openers.size > 0,
      goesOn: () => this.#phase === 'open' || (this.#phase === 'draining' && this.#dispatch.pending > 0),
      isPaused: () => this.#suspended,
      isUrgent: () => this.#roles.isUrgent,
      said: (target, state, at) => { this.#become(this.#roles.said(target, state, at)) },
      isTransient: (target, error) => this.#isTransient(target, error),
      refused: (error) => { this.#events.report(error, 'validate') },
      done: (target) => {
        this.#relieve(target)
        this.#review()
      },
    })
  }

  #discoveryOf (clock: Clock, interval: number, options: EngineOptions<C>): Discovery<C> {
    const { targets } = this.#fleet
    const changed = (gone?: Target<C>) => {
      if (gone !== undefined && gone === this.#roles.primary) this.#become(this.#roles.another)
      this.#fleet.spread(this.#roles.primary)
      this.#watch.soon()
      this.#review()
    }
    return new Discovery({
      clock,
      interval,
      timeout: options.connectTimeout ?? poolDefaults.connectTimeout,
      targets,
      run: (fn) => this.#events.run(fn),
      isAwaited: () => this.#openers.size > 0,
      goesOn: () => this.#phase === 'open',
      max: () => this.#fleet.max,
      add: (seed, address, connector) => {
        const target = this.#fleet.add(seed, address, connector, options)
        changed()
        return target
      },
      rest: (seed) => {
        this.#fleet.rest(seed)
        changed(seed)
      },
      retire: (target) => {
        this.#fleet.retire(target)
        changed(target)
      },
      failed: (error) => { this.#events.report(error, 'discover') },
      warn: (message) => { this.#warn(message) },
      done: () => {
        // With the names' addresses, where there are any: nobody asks a server by a name that stands for several.
        if (this.#discovery.settled) this.#watch.begin()
        this.#review()
      },
    })
  }

  #warn (message: string): void {
    this.#events.report(new PoolError('FST_POOL_BAD_OPTIONS', `pool '${this.name}': ${message}`), 'targets')
  }

  static {
    renameTargetPool = (pool, name) => {
      if (!(pool instanceof TargetPool)) return
      for (const { engine } of pool.#fleet.all) renameEngine(engine, name)
      pool.#events.pool = name
    }
    innardsOfTargets = (pool) => {
      if (!(pool instanceof TargetPool)) return undefined
      const targets = pool.#targets as ReadonlyArray<Target<unknown>>
      const connectors = targets.map(({ spec }) => spec.connector)
      return { options: targets[0]!.engine.options, events: pool.#events, connectors }
    }
    measureTargets = (pool, meter) => {
      if (!(pool instanceof TargetPool)) return undefined
      return pool.#fleet.subscribe(({ engine }) => engine.events.measure(meter))
    }
    callerOfTargets = (pool) => pool instanceof TargetPool ? pool.#dispatch.caller : undefined
  }

  get name (): string {
    return this.#first.name
  }

  get #first (): Engine<C> {
    return this.#fleet.given[0]!.engine
  }

  /** The connector of the target that is the primary now. */
  get backend (): K {
    const { given: all } = this.#fleet
    const target = this.#roles.primary ?? all.find(({ given }) => given === 'primary') ?? all[0]!
    return target.spec.connector as unknown as K
  }

  // --- Taking --------------------------------------------------------------------------------------------------------

  /**
   * Lends a connection of a target that has the role: of the primary unless `role` is 'replica'; of the primary too
   * where no replica can be used. Waits for one if none is idle, and for a primary if there is none.
   *
   * @throws as `Pool.acquire` does; `FST_POOL_CIRCUIT_OPEN` only where no target of the role, and none that may get it,
   * can be had
   */
  acquire (options: AcquireOptions = {}): Promise<Lease<C>> {
    if (acquires.hasSubscribers) return trace(this.name, options, () => this.#acquire(options))
    return this.#acquire(options)
  }

  #acquire (options: AcquireOptions): Promise<Lease<C>> {
    try {
      checkNames('acquire', options)
      checkHoldTimeout(options)
    } catch (error) {
      return Promise.reject(error)
    }
    const acquired = this.#dispatch.acquire(options)
    return options.holdTimeout === undefined ? acquired : acquired.then((lease) => lendFor(lease, options))
  }

  tryAcquire (options: Pick<AcquireOptions, 'holder' | 'role' | 'holdTimeout' | 'affinity'> = {}): Lease<C> | null {
    checkHoldTimeout(options)
    checkAffinity(options)
    const lease = this.#dispatch.take(readRole(options), options)
    return lease === null || options.holdTimeout === undefined ? lease : lendFor(lease, options)
  }

  async use<T> (fn: (connection: C, lease: Lease<C>) => T | Promise<T>, options?: UseOptions): Promise<T> {
    return await useWithRetry(this.#retrying, fn, options)
  }

  of (_key: string): never {
    throw faults.oneForAll(this.name)
  }

  async begin (options?: AcquireOptions & HoldOptions): Promise<Tx<C>> {
    return await begin(this, options)
  }

  async execute<M extends CallName<C>, A extends CallArguments<C, M>> (
    method: M | CallOptions<M>, ...args: A
  ): Promise<CallResult<C, M, A>> {
    return await execute(this, method, args) as CallResult<C, M, A>
  }

  /**
   * Calls `fn` in a transaction. Within another transaction of this pool, for the same role, it is a savepoint in that
   * one.
   *
   * @throws what `acquire` and `Lease.transaction` throw
   */
  async transaction<T> (
    fn: (connection: C) => T | Promise<T>, options: AcquireOptions & RunOptions = {}
  ): Promise<T> {
    const { signal, timeout, holder, role: _, affinity, holdTimeout, ...run } = options
    const role = readRole(options)
    const isFor = ({ transactions, target }: Around<C>) => {
      const begun = this.#begunFor.get(transactions)
      if (affinity !== undefined && affinity !== begun?.affinity) return false
      return target.isPeer || (begun?.role ?? target.role) === role
    }
    const around = this.#around().find(isFor)?.transactions
    if (around !== undefined) return await around.run(fn, run)
    checkRunOptions({ name: this.name, transactions: this.backend.transactions }, run)
    return await this.use((_, lease) => lease.transaction((connection) => {
      for (const { transactions } of this.#around()) {
        if (!this.#begunFor.has(transactions)) this.#begunFor.set(transactions, { role, affinity })
      }
      return fn(connection)
    }, run), { signal, timeout, holder, role, affinity, holdTimeout } as UseOptions)
  }

  /** The transactions which the calling code is within. */
  #around (): Array<Around<C>> {
    return this.#fleet.all.flatMap((target) => {
      const transactions = LeaseTransactions.current(target.engine) as LeaseTransactions<C> | undefined
      return transactions === undefined ? [] : [{ transactions, target }]
    })
  }

  // --- Roles ---------------------------------------------------------------------------------------------------------

  /** The pool's first use: begins the checks. */
  #start (): void {
    if (this.#started || this.#phase !== 'open') return
    this.#started = true
    this.#discovery.begin()
    if (this.#discovery.settled) this.#watch.begin()
  }

  /** Makes a target the primary; undefined: there is none now. */
  #become (target: Target<C> | undefined): void {
    const from = this.#roles.primary
    if (from === target) return
    if (this.#roles instanceof Roles) this.#roles.become(target)
    this.#fleet.spread(target)
    if (target !== undefined) this.#fleet.handOver(target.spec.connector, this.#events)
    // Connections of the old primary were made, or waited for, because it was the primary.
    if (from !== undefined) {
      // The line first: without waiters its creates are cancelled, which makes room for the new primary.
      from.engine.waiting.sendAllAway(() => new Moved(this.name))
      from.engine.evict()
    }
    this.#review()
  }

  /** Callers in the line of a replica that fails move, where another target can serve them. */
  #relieve (target: Target<C>): void {
    if (target === this.#roles.primary || target.sound || target.engine.line.size === 0) return
    if (!this.#roles.eligible('replica').some((other) => other !== target)) return
    target.engine.waiting.sendAllAway(() => new Moved(this.name))
  }

  /** Told once, when the servers have said what they are. */
  #tellPrimaries (): void {
    if (this.#hasToldPrimaries) return
    this.#hasToldPrimaries = true
    const { primary } = this.#roles
    const all = this.#targets.filter(({ speaks, state }) => speaks && state?.role === 'primary')
    if (all.length < 2 || primary === undefined) return
    const names = all.map(({ name }) => `'${name}'`).join(', ')
    this.#warn(`the targets ${names} all say that they are the primary, and all writes go to '${primary.name}'. Are ` +
      "they equal servers? Then give each target role: 'peer'. Else they do not follow one another, and have " +
      'data: make replicas of all but one, or take them out of targets')
  }

  /** Called after every change: chooses another primary where needed, and looks after those who wait for one. */
  #review (): void {
    if (this.#phase === 'closed') return
    const { another, isLost, primary } = this.#roles
    if (isLost && another !== undefined) return this.#become(another)
    const failover = this.#roles.takeFailover()
    if (failover !== undefined) this.#events.emit('failover', failover)
    for (const lag of this.#roles.takeLags()) this.#events.emit('lag', lag)
    this.#dispatch.review()
    // While the pool is suspended, targets are not asked.
    const isKnown = (this.#suspended && primary?.usable === true) ||
      (this.#discovery.settled && this.#targets.every(({ settled }) => settled))
    if (isKnown && this.#started) this.#tellPrimaries()
    if (this.#openers.size === 0 || !isKnown) return
    for (const { resolve } of this.#openers.take(0, 0)) resolve()
    this.#watch.keepAlive()
  }

  // --- Control -------------------------------------------------------------------------------------------------------

  /**
   * Waits until every target has been asked what it is, or could not be, and the primary has `max(1, min)` connections.
   * A target that can't be reached does not matter as long as there is a primary.
   *
   * @throws `FST_POOL_CONNECT_FAILED` where there is none, saying why; `FST_POOL_CLOSED`
   */
  async open (): Promise<void> {
    if (this.#phase !== 'open') throw this.#closedError
    this.#start()
    const known = this.#openers.join(0)
    this.#watch.keepAlive()
    this.#review()
    await known
    if (this.#roles.arePeers) await this.#openPeers()
    else await this.#openPrimary()
    const { driver } = this.backend
    this.#events.emit('open', { ...(driver !== undefined && { driver }) })
  }

  /** Each peer that can be had is opened; one is enough. */
  async #openPeers (): Promise<void> {
    const eligible = this.#roles.eligible('primary')
    const opened = await Promise.allSettled(eligible.map(({ engine }) => engine.open()))
    if (opened.some(({ status }) => status === 'fulfilled')) return
    throw this.#noTarget
  }

  async #openPrimary (): Promise<void> {
    const { primary } = this.#roles
    if (primary === undefined || (primary.speaks && !primary.usable)) {
      throw this.#noTarget
    }
    await primary.engine.open()
    // The writers were opened first: they make the file that the readers read.
    if (this.#fleet.isFixed) for (const { engine } of this.#targets) if (engine !== primary.engine) await engine.open()
  }

  get #noTarget (): PoolError {
    if (this.#phase !== 'open') return this.#closedError
    const { cause, noPrimary } = this.#dispatch
    return new PoolError('FST_POOL_CONNECT_FAILED', `${noPrimary} (${reasonsOf(this.#targets)})`, { cause })
  }

  evict (options?: { idle?: boolean, used?: boolean }): void {
    checkNames('evict', options)
    for (const { engine } of this.#fleet.all) engine.evict(options)
  }

  resize (options: { min?: number, max?: number }): void {
    checkNames('resize', options)
    this.#fleet.resize(options, this.#roles.primary)
  }

  suspend (): void {
    this.#suspended = true
    this.#fleet.suspend()
    this.#review()
  }

  resume (): void {
    this.#suspended = false
    this.#fleet.resume()
    this.#watch.soon()
  }

  async drain (): Promise<void> {
    this.#beginDrain()
    while (true) {
      await Promise.all(this.#fleet.all.map(({ engine }) => engine.closing.drain()))
      // A caller that moved from one target to another was in no engine's line meanwhile.
      const settled = this.#dispatch.settled()
      if (settled !== undefined) await settled
      else if (this.#fleet.all.every(({ busy }) => busy === 0)) return
    }
  }

  #beginDrain (): void {
    if (this.#phase !== 'open') return
    this.#phase = 'draining'
    this.#events.emit('drain', {})
    this.#openers.reject(() => this.#closedError)
  }

  /**
   * As `Pool.close`, for all targets at the same time. Who waits for a primary is refused at once.
   *
   * @throws `FST_POOL_BAD_OPTIONS` (at once: nothing is closed)
   */
  close (options?: { timeout?: number }): Promise<void> {
    checkNames('close', options)
    // At a second call the engines check the option, and return their first promise.
    const engines = this.#fleet.all.map(({ engine }) => engine)
    const all = engines.map((engine) => engine.closing.close(options?.timeout))
    this.#closed ??= this.#shut(engines, all)
    return this.#closed
  }

  async #shut (engines: ReadonlyArray<Engine<C>>, all: ReadonlyArray<Promise<void>>): Promise<void> {
    this.#beginDrain()
    this.#phase = 'closed'
    this.#watch.end(new Error(`pool '${this.name}' closes`))
    this.#discovery.end()
    this.#dispatch.close()
    await Promise.all(all)
    const ends = engines.map(({ closing }) => closing.end!)
    this.#events.emit('close', {
      took: Math.max(...ends.map(({ took }) => took)),
      destroyed: ends.reduce((sum, { destroyed }) => sum + destroyed, 0),
      holders: Object.freeze(ends.flatMap(({ holders }) => holders)),
    })
    this.#events.clear()
  }

  async [Symbol.asyncDispose] (): Promise<void> {
    await this.close()
  }

  get #closedError (): PoolError {
    return faults.closed(this.name, this.#phase, this.closeTimeout)
  }

  #isTransient ({ spec: { connector } }: Target<C>, error: unknown): boolean {
    try {
      return connector.isTransient?.(error) === true
    } catch (failure) {
      this.#events.report(failure, 'isTransient')
      return false
    }
  }

  /** Events of one target have its name in `target`. */
  on<E extends PoolEventName> (event: E, listener: PoolListener<E>): () => void {
    return this.#fleet.on(this.#events, event, listener)
  }

  // --- Reading -------------------------------------------------------------------------------------------------------

  /** The sums over all targets, and each one's numbers in `targets`. `refused` counts callers that no target served. */
  stats (): PoolStats {
    const { pending, books, going } = this.#dispatch
    const { all, gone, min, max } = this.#fleet
    return statsOf({
      all, gone, targets: this.#targets, roles: this.#roles, min, max, pending, front: { books, going },
    })
  }

  holders (): Holder[] {
    return this.#fleet.all.flatMap(({ engine }) => engine.report.holders).sort((a, b) => b.heldFor - a.heldFor)
  }

  async health (): Promise<PoolHealth> {
    const [targets, roles, phase, started] = [this.#targets, this.#roles, this.#phase, this.#started]
    return await healthOf({ targets, roles, phase, started, stats: () => this.stats() })
  }
}

/**
 * Whether the targets are peers.
 *
 * @throws `FST_POOL_BAD_OPTIONS` where some are
 */
function readPeers (targets: ReadonlyArray<TargetSpec<unknown>>): boolean {
  const others = targets.findIndex(({ role }) => role !== 'peer')
  if (others < 0) return true
  if (!targets.some(({ role }) => role === 'peer')) return false
  throw badOption(`targets.${others}.role`, targets[others]!.role,
    "'peer' like the others: peers are equal, and can't be mixed with a primary and its replicas")
}

interface Around<C> { readonly transactions: LeaseTransactions<C>, readonly target: Target<C> }
