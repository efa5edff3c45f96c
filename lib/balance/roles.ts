import type { Connector, DestroyReason } from '../../types/connector.js'
import type {
  AcquireOptions, Clock, Holder, Lease, PoolEventName, PoolEvents, PoolFace, PoolHealth, PoolListener, PoolStats, Role, RunOptions,
} from '../../types/pool.js'
import { badOption } from '../pool/errors.js'
import { poolDefaults, type EngineOptions } from '../pool/options.js'
import { Pool, durationsOf } from '../pool/pool.js'

/**
 * Two engine pools behind one name and one `max`: one of connections that write (role 'primary', the default), one of connections that only read
 * ('replica'). For a connector that has a `replica`.
 */
export class RolePool<C, K extends Connector<C> = Connector<C>> implements PoolFace<C, K> {
  readonly #pools: Readonly<Record<Role, Pool<C, Connector<C>>>>
  readonly backend: K
  #closed: Promise<void> | undefined

  /**
   * @param connector with a `replica`
   * @param options as of `Pool`; `max` (at least 2) and `min` are of both together: the writers get what their connector allows, the readers the rest
   * @throws `FST_POOL_BAD_OPTIONS`
   */
  constructor (connector: K & Connector<C>, options: EngineOptions<C> = {}, clock?: Clock) {
    const { replica } = connector
    if (replica === undefined) throw badOption('connector', connector, 'one with a replica')
    const ids = { last: 0 }
    this.backend = connector
    this.#pools = { primary: new Pool(connector, options, clock, ids), replica: new Pool(replica, options, clock, ids) }
    const { min = poolDefaults.min, max = poolDefaults.max } = options
    const most = Math.min(max, this.#limit)
    this.resize({ min: Math.min(min, most), max: most })
  }

  /** As many connections as the connectors allow together. */
  get #limit (): number {
    const { max = Number.MAX_SAFE_INTEGER, replica } = this.backend
    return Math.min(Number.MAX_SAFE_INTEGER, max + (replica!.max ?? Number.MAX_SAFE_INTEGER))
  }

  get name (): string {
    return this.#pools.primary.name
  }

  get closeTimeout (): number {
    return this.#pools.primary.closeTimeout
  }

  get #both (): ReadonlyArray<Pool<C, Connector<C>>> {
    return [this.#pools.primary, this.#pools.replica]
  }

  #of (options: { readonly role?: Role } | undefined): Pool<C, Connector<C>> {
    const role = options?.role ?? 'primary'
    if (role !== 'primary' && role !== 'replica') throw badOption('role', role, "'primary' or 'replica'")
    return this.#pools[role]
  }

  async acquire (options?: AcquireOptions): Promise<Lease<C>> {
    return await this.#of(options).acquire(options)
  }

  tryAcquire (options?: Pick<AcquireOptions, 'holder' | 'role'>): Lease<C> | null {
    return this.#of(options).tryAcquire(options)
  }

  async use<T> (fn: (connection: C, lease: Lease<C>) => T | Promise<T>, options?: AcquireOptions): Promise<T> {
    return await this.#of(options).use(fn, options)
  }

  async transaction<T> (fn: (connection: C) => T | Promise<T>, options?: AcquireOptions & RunOptions): Promise<T> {
    return await this.#of(options).transaction(fn, options)
  }

  /** The writers first: they make the file that the readers read. */
  async open (): Promise<void> {
    for (const pool of this.#both) await pool.open()
  }

  evict (options?: { idle?: boolean }): void {
    for (const pool of this.#both) pool.evict(options)
  }

  /** @throws `FST_POOL_BAD_OPTIONS` */
  resize ({ min, max }: { min?: number, max?: number }): void {
    const { primary, replica } = this.#pools
    const before = this.#numbers()
    const most = max ?? before.max
    const least = min ?? before.min
    const limit = this.#limit
    if (!Number.isSafeInteger(most) || most < 2 || most > limit) throw badOption('max', most, `an integer from 2 (one that writes and one that reads) to ${limit}`)
    if (!Number.isSafeInteger(least) || least < 0 || least > most) throw badOption('min', least, `an integer from 0 to max (${most})`)
    const writers = Math.min(this.backend.max ?? most - 1, most - 1)
    const readers = Math.min(this.backend.replica!.max ?? most - writers, most - writers)
    const writersLeast = Math.min(least, writers, 1)
    primary.resize({ min: writersLeast, max: writers })
    replica.resize({ min: Math.min(least - writersLeast, readers), max: readers })
  }

  #numbers (): { min: number, max: number } {
    const [primary, replica] = this.#both.map((pool) => pool.stats())
    return { min: primary!.min + replica!.min, max: primary!.max + replica!.max }
  }

  suspend (): void {
    for (const pool of this.#both) pool.suspend()
  }

  resume (): void {
    for (const pool of this.#both) pool.resume()
  }

  async drain (): Promise<void> {
    await Promise.all(this.#both.map((pool) => pool.drain()))
  }

  /** @throws `FST_POOL_BAD_OPTIONS` (at once: nothing is closed) */
  close (options?: { timeout?: number }): Promise<void> {
    // Called again, they check their option and give what they gave the first time.
    const both = this.#both.map((pool) => pool.close(options))
    this.#closed ??= Promise.all(both).then(() => {})
    return this.#closed
  }

  async [Symbol.asyncDispose] (): Promise<void> {
    await this.close()
  }

  /** What concerns the pool as a whole is told once. */
  on<E extends PoolEventName> (event: E, listener: PoolListener<E>): () => void {
    const { primary, replica } = this.#pools
    // They drain at the same time, and the readers are opened last.
    if (event === 'drain') return primary.on(event, listener)
    if (event === 'open') return replica.on(event, listener)
    let first: PoolEvents['close'] | undefined
    const atSecond = (second: PoolEvents['close']) => {
      if (first === undefined) first = second
      else (listener as PoolListener<'close'>)(bothClosed(first, second))
    }
    const undos = this.#both.map((pool) => event === 'close' ? pool.on('close', atSecond) : pool.on(event, listener))
    return () => { for (const undo of undos) undo() }
  }

  /** The sum of both, and each in `targets`. */
  stats (): PoolStats {
    const roles = Object.keys(this.#pools) as Role[]
    const targets = roles.map((role) => Object.freeze({ role, ...this.#pools[role].stats() }))
    const sum = (pick: (stats: PoolStats) => number) => targets.reduce((total, stats) => total + pick(stats), 0)
    const [{ destroyed, ...first }] = targets as [PoolStats & { role: Role }]
    const { role: _, ...whole } = { ...first, ...durationsOf(this.#both) }
    for (const key of Object.keys(whole) as Array<keyof typeof whole>) {
      if (typeof whole[key] === 'number') Object.assign(whole, { [key]: sum((stats) => stats[key] as number) })
    }
    const reasons = Object.keys(destroyed) as DestroyReason[]
    return Object.freeze({
      ...whole,
      destroyed: Object.freeze(Object.fromEntries(reasons.map((reason) => [reason, sum((stats) => stats.destroyed[reason])])) as PoolStats['destroyed']),
      targets: Object.freeze(targets),
    })
  }

  holders (): Holder[] {
    return this.#both.flatMap((pool) => pool.holders()).sort((a, b) => b.heldFor - a.heldFor)
  }

  /** The worse of both. */
  async health (): Promise<PoolHealth> {
    const all = await Promise.all(this.#both.map((pool) => pool.health()))
    const worst = all.reduce((worse, one) => healthRank.indexOf(one.status) > healthRank.indexOf(worse.status) ? one : worse)
    const latencies = all.map(({ latency }) => latency).filter((latency) => latency !== null)
    return { ...worst, latency: latencies.length === 0 ? null : Math.max(...latencies), stats: this.stats() }
  }
}

/** From the best to the worst. */
export const healthRank: ReadonlyArray<PoolHealth['status']> = ['up', 'degraded', 'draining', 'down']

function bothClosed (first: PoolEvents['close'], second: PoolEvents['close']): PoolEvents['close'] {
  return Object.freeze({
    ...second,
    took: Math.max(first.took, second.took),
    destroyed: first.destroyed + second.destroyed,
    holders: Object.freeze([...first.holders, ...second.holders]),
  })
}
