import type { Connector } from '../../types/connector.js'
import type { EngineOptions } from '../../types/options.js'
import type {
  AcquireOptions, Clock, Holder, Lease, PoolEventName, PoolFace, PoolHealth, PoolListener, PoolStats, RunOptions,
  UseOptions,
} from '../../types/pool.js'
import { Engine } from '../engine/engine.js'
import { systemClock } from '../engine/time.js'
import { LeaseTransactions, checkRunOptions } from '../engine/transaction.js'
import { checkEngineOptions } from './options.js'
import { useWithRetry } from './retry.js'

export { abandon, hold, isBeside, onEnd, transact } from '../engine/lease.js'

/**
 * A pool of connections that a connector makes.
 *
 * `max` is hard: connections being made or closed count. Callers are served first come, first served, each by whichever
 * connection is ready first. Every acquire settles once, by its deadline. Nothing foreign is waited for without one.
 */
export class Pool<C, K extends Connector<C> = Connector<C>> implements PoolFace<C, K> {
  readonly name: string
  /** The connector: what only this database has is there. */
  readonly backend: K
  /** How long `close()` takes at most, in ms, unless it is told otherwise. */
  readonly closeTimeout: number
  /** Whether `role: 'replica'` may get another kind of connection. */
  readonly replicas: boolean = false
  readonly #engine: Engine<C>

  /**
   * @param options see the README; `name` is 'db' unless given
   * @throws `FST_POOL_BAD_OPTIONS`
   */
  constructor (connector: K & Connector<C>, options: EngineOptions<C> = {}, clock: Clock = systemClock) {
    const checked = checkEngineOptions<C>(connector, options)
    this.name = checked.name
    this.backend = connector
    this.closeTimeout = checked.closeTimeout
    this.#engine = new Engine<C>(connector, checked, clock)
  }

  /**
   * Lends a connection; waits for one if none is idle.
   *
   * @throws `FST_POOL_ACQUIRE_TIMEOUT` at the deadline, or `FST_POOL_CONNECT_FAILED` where there is no connection and
   * none can be made; at once: `FST_POOL_QUEUE_FULL` when `maxPending` callers wait, `FST_POOL_OVERLOADED` when the
   * line moves too slowly for its deadline, `FST_POOL_CIRCUIT_OPEN` when there is no connection and creates keep
   * failing, `FST_POOL_DEADLOCK` when all holders wait for each other, `FST_POOL_CLOSED`; `FST_POOL_ABORTED` when the
   * signal aborts; what `onAcquire` throws
   */
  acquire (options?: AcquireOptions): Promise<Lease<C>> {
    return this.#engine.acquire(options)
  }

  /**
   * Lends an idle connection now, or returns null where somebody would have to wait: for a round trip, for others in
   * line, for an async hook.
   *
   * @throws what a synchronous `onAcquire` throws
   */
  tryAcquire (options?: Pick<AcquireOptions, 'holder' | 'role'>): Lease<C> | null {
    return this.#engine.take(options?.holder)
  }

  /**
   * Calls `fn` with a connection and gives it back whatever happens. With `retry`, again on another connection where
   * the connector calls the error transient.
   *
   * @throws what `acquire` or `fn` throws; `FST_POOL_BAD_OPTIONS`
   */
  async use<T> (fn: (connection: C, lease: Lease<C>) => T | Promise<T>, options?: UseOptions): Promise<T> {
    const engine = this.#engine
    const { acquireTimeout, backoff } = engine.options
    return await useWithRetry({
      acquire: (acquire) => engine.acquire(acquire),
      isTransient: (error) => {
        try {
          return this.backend.isTransient?.(error) === true
        } catch (failure) {
          engine.events.report(failure, 'isTransient')
          return false
        }
      },
      // Nothing would end the timer of a pool that has closed.
      wait: async (ms) => { if (engine.closing.phase !== 'closed') await engine.time.sleep(ms).over },
      now: () => engine.time.read(),
      random: () => engine.time.random(),
      acquireTimeout,
      backoff,
    }, fn, options)
  }

  /**
   * Calls `fn` in a transaction, on a connection that goes back whatever happens. Within another transaction of this
   * pool it is a savepoint in that one.
   *
   * @throws what `acquire` and `Lease.transaction` throw
   */
  async transaction<T> (
    fn: (connection: C) => T | Promise<T>, options: AcquireOptions & RunOptions = {}
  ): Promise<T> {
    const { signal, timeout, holder, role, ...run } = options
    const around = LeaseTransactions.current(this.#engine) as LeaseTransactions<C> | undefined
    if (around !== undefined) return await around.run(fn, run)
    // Before anybody waits for a connection.
    checkRunOptions({ name: this.name, transactions: this.backend.transactions }, run)
    return await this.use((_, lease) => lease.transaction(fn, run), { signal, timeout, holder, role })
  }

  /**
   * Waits until `max(1, min)` connections are there. Optional: `acquire` works without.
   *
   * @throws `FST_POOL_CONNECT_FAILED` as soon as one can't be made, saying why; `FST_POOL_CLOSED`
   */
  async open (): Promise<void> {
    await this.#engine.open()
  }

  /**
   * Retires every connection: the idle ones now, the lent ones when they are given back, those being made when they
   * come.
   *
   * @param options.idle only the idle ones
   */
  evict (options?: { idle?: boolean }): void {
    this.#engine.evict(options)
  }

  /**
   * Changes `min` and `max` from now on. Idle connections above the new `max` are destroyed, lent ones when they are
   * given back.
   *
   * @throws `FST_POOL_BAD_OPTIONS`
   */
  resize (options: { min?: number, max?: number }): void {
    this.#engine.resize(options)
  }

  /** Lends nothing from now on: callers wait, until their deadlines. What is lent stays lent. */
  suspend (): void {
    this.#engine.suspend()
  }

  resume (): void {
    this.#engine.resume()
  }

  /**
   * Stops keeping idle connections. Whoever waits, and whoever still comes, is served. Resolves when nobody waits and
   * none is used.
   */
  drain (): Promise<void> {
    return this.#engine.closing.drain()
  }

  /**
   * Drains and refuses newcomers; then destroys what is still lent, and rejects whoever still waits. Always resolves,
   * by `timeout`: leases have until `destroyTimeout`, or a quarter of it if that is less, before.
   *
   * @param options.timeout in ms; `closeTimeout` unless given
   * @throws `FST_POOL_BAD_OPTIONS` (at once: nothing is closed)
   */
  close (options?: { timeout?: number }): Promise<void> {
    return this.#engine.closing.close(options?.timeout)
  }

  async [Symbol.asyncDispose] (): Promise<void> {
    await this.close()
  }

  /**
   * Listens to an event. What a listener throws goes to the listeners of `error`.
   *
   * @returns its own undo
   * @throws `FST_POOL_BAD_OPTIONS` for an event that there is not
   */
  on<E extends PoolEventName> (event: E, listener: PoolListener<E>): () => void {
    return this.#engine.events.on(event, listener)
  }

  stats (): PoolStats {
    return this.#engine.report.stats
  }

  /** The leases that are out now, the longest held first. */
  holders (): Holder[] {
    return this.#engine.report.holders
  }

  /**
   * How the pool is. Asks one idle connection, if there is one and the connector can; never waits for a connection,
   * never opens one.
   */
  async health (): Promise<PoolHealth> {
    return await this.#engine.report.health()
  }
}
