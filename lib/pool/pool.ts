import type { CallArguments, CallName, CallResult } from '../../types/calls.js'
import type { Connector } from '../../types/connector.js'
import type { EngineOptions } from '../../types/options.js'
import type {
  AcquireOptions, CallOptions, Clock, Holder, HoldOptions, Lease, PoolEventName, PoolFace, PoolHealth, PoolListener,
  PoolStats, RunOptions, Tx, UseOptions,
} from '../../types/pool.js'
import { Engine } from '../engine/engine.js'
import type { Events, Meter } from '../engine/events.js'
import { oneForAll } from '../engine/faults.js'
import { checkHoldTimeout, lendFor } from '../engine/lease.js'
import type { Owner } from '../engine/parts.js'
import type { Part } from '../engine/report.js'
import type { Settings } from '../engine/settings.js'
import { systemClock } from '../engine/time.js'
import { LeaseTransactions, checkRunOptions } from '../engine/transaction.js'
import { begin } from './begin.js'
import { checkNames } from './calls.js'
import { execute } from './execute.js'
import { checkEngineOptions } from './options.js'
import { useWithRetry } from './retry.js'
import { acquires, trace } from './tracing.js'

export { abandon, hold, isBeside, onEnd, transact } from '../engine/lease.js'

/** Gives a pool the name under which an app has it. Does nothing where the pool is of another kind. */
export let renamePool: (pool: object, name: string) => void

/** Tells a meter of a pool's loans. Returns its undo; undefined where the pool is of another kind. */
export let measurePool: (pool: object, meter: Meter) => (() => void) | undefined

/** The numbers of a pool, for sums; undefined where the pool is of another kind. */
export let partOf: (pool: object) => Part | undefined

/** As `new Pool`, for somebody who owns several engines. */
export let ownedPool: <C>(connector: Connector<C>, options: EngineOptions<C>, owner: Owner | undefined) => {
  readonly pool: Pool<C>
  readonly engine: Engine<C>
}
/** What a pool was made of: for `fastify-pool/testing`, which plays with it. */
export interface Innards {
  readonly options: Settings<unknown>
  readonly events: Events
  readonly connectors: ReadonlyArray<Connector<unknown>>
}

/** undefined: the pool is of another kind. */
export let innardsOf: (pool: object) => Innards | undefined

/** The stack of the calling code, for a lease that comes later; undefined: the pool has not found a leak. */
export let callerOf: (pool: object) => string | undefined

export function renameEngine (engine: Pick<Engine<unknown>, 'name' | 'events'>, name: string): void {
  engine.name = name
  engine.events.pool = name
}

/**
 * A pool of connections that a connector creates: the face over one engine.
 *
 * `max` is hard: connections that are being created or closed count. Callers are served first come, first served, each
 * by whichever connection is ready first. Every acquire settles once, by its deadline, and every call of a connector or
 * a hook has a deadline.
 */
export class Pool<C, K extends Connector<C> = Connector<C>> implements PoolFace<C, K> {
  readonly backend: K
  readonly closeTimeout: number
  readonly replicas: boolean = false
  /** The owner of the pool that `ownedPool` makes just now. */
  static #owner: Owner | undefined
  readonly #engine: Engine<C>

  /**
   * @param options see docs/options.md; `name` is 'db' unless given
   * @throws `FST_POOL_BAD_OPTIONS`
   */
  constructor (connector: K & Connector<C>, options: EngineOptions<C> = {}, clock: Clock = systemClock) {
    const checked = checkEngineOptions<C>(connector, options)
    this.backend = connector
    this.closeTimeout = checked.closeTimeout
    this.#engine = new Engine<C>(connector, checked, clock, Pool.#owner)
  }

  static {
    renamePool = (pool, name) => {
      if (pool instanceof Pool) renameEngine(pool.#engine, name)
    }
    measurePool = (pool, meter) => pool instanceof Pool ? pool.#engine.events.measure(meter) : undefined
    partOf = (pool) => pool instanceof Pool ? pool.#engine.report.part : undefined
    ownedPool = <C>(connector: Connector<C>, options: EngineOptions<C>, owner: Owner | undefined) => {
      Pool.#owner = owner
      try {
        const pool = new Pool<C>(connector, options)
        return { pool, engine: pool.#engine }
      } finally {
        Pool.#owner = undefined
      }
    }
    innardsOf = (pool) => {
      if (!(pool instanceof Pool)) return undefined
      const { options, events, backend } = pool.#engine as Engine<unknown>
      return { options, events, connectors: [backend] }
    }
    callerOf = (pool) => pool instanceof Pool ? pool.#engine.upkeep.leaks.caller : undefined
  }

  get name (): string {
    return this.#engine.name
  }

  acquire (options?: AcquireOptions): Promise<Lease<C>> {
    if (acquires.hasSubscribers) return trace(this.name, options, () => this.#acquireAs(options ?? {}))
    return options === undefined ? this.#engine.acquire() : this.#acquireAs(options)
  }

  #acquireAs (options: AcquireOptions): Promise<Lease<C>> {
    try {
      checkNames('acquire', options)
      checkHoldTimeout(options)
    } catch (error) {
      return Promise.reject(error)
    }
    const acquired = this.#engine.acquire(options)
    return options.holdTimeout === undefined ? acquired : acquired.then((lease) => lendFor(lease, options))
  }

  tryAcquire (options?: Pick<AcquireOptions, 'holder' | 'role' | 'holdTimeout'>): Lease<C> | null {
    if (options?.holdTimeout === undefined) return this.#engine.take(options?.holder)
    checkHoldTimeout(options)
    const lease = this.#engine.take(options.holder)
    return lease && lendFor(lease, options)
  }

  async use<T> (fn: (connection: C, lease: Lease<C>) => T | Promise<T>, options?: UseOptions): Promise<T> {
    const engine = this.#engine
    const { acquireTimeout, backoff } = engine.options
    return await useWithRetry({
      acquire: (acquire) => this.acquire(acquire),
      isTransient: (error) => {
        try {
          return this.backend.isTransient?.(error) === true
        } catch (failure) {
          engine.events.report(failure, 'isTransient')
          return false
        }
      },
      // A closed pool must not set a timer.
      wait: async (ms) => { if (engine.closing.phase !== 'closed') await engine.time.sleep(ms).over },
      now: () => engine.time.read(),
      random: () => engine.time.random(),
      acquireTimeout,
      backoff,
    }, fn, options)
  }

  of (_key: string): never {
    throw oneForAll(this.name)
  }

  async begin (options?: AcquireOptions & HoldOptions): Promise<Tx<C>> {
    return await begin(this, options)
  }

  async execute<M extends CallName<C>, A extends CallArguments<C, M>> (
    method: M | CallOptions<M>, ...args: A
  ): Promise<CallResult<C, M, A>> {
    return await execute(this, method, args) as CallResult<C, M, A>
  }

  async transaction<T> (
    fn: (connection: C) => T | Promise<T>, options: AcquireOptions & RunOptions = {}
  ): Promise<T> {
    const { signal, timeout, holder, role, affinity: _, holdTimeout, ...run } = options
    const around = LeaseTransactions.current(this.#engine) as LeaseTransactions<C> | undefined
    if (around !== undefined) return await around.run(fn, run)
    // Checked before the caller waits for a connection.
    checkRunOptions({ name: this.name, transactions: this.backend.transactions }, run)
    return await this.use((_, lease) => lease.transaction(fn, run), { signal, timeout, holder, role, holdTimeout })
  }

  async open (): Promise<void> {
    await this.#engine.open()
  }

  evict (options?: { idle?: boolean, used?: boolean }): void {
    checkNames('evict', options)
    this.#engine.evict(options)
  }

  resize (options: { min?: number, max?: number }): void {
    checkNames('resize', options)
    this.#engine.resize(options)
  }

  suspend (): void {
    this.#engine.suspend()
  }

  resume (): void {
    this.#engine.resume()
  }

  drain (): Promise<void> {
    return this.#engine.closing.drain()
  }

  close (options?: { timeout?: number }): Promise<void> {
    checkNames('close', options)
    return this.#engine.closing.close(options?.timeout)
  }

  async [Symbol.asyncDispose] (): Promise<void> {
    await this.close()
  }

  on<E extends PoolEventName> (event: E, listener: PoolListener<E>): () => void {
    return this.#engine.events.on(event, listener)
  }

  stats (): PoolStats {
    return this.#engine.report.stats
  }

  holders (): Holder[] {
    return this.#engine.report.holders
  }

  async health (): Promise<PoolHealth> {
    return await this.#engine.report.health()
  }
}
