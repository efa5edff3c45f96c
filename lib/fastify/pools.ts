import type { Connector } from '../../types/connector.js'
import type { Advice, ConnectionOf, Pools, PoolsHealth } from '../../types/fastify.js'
import type { Policy } from '../../types/plugin.js'
import type { Holder, PoolEventName, PoolFace, PoolHealth, PoolListener, PoolStats } from '../../types/pool.js'
import { healthRank, renameTargetPool } from '../balance/target-pool.js'
import { PoolError } from '../engine/errors.js'
import { renamePool } from '../pool/pool.js'
import { Collector } from './advice/collector.js'
import type { Place } from './log/place.js'
import type { KeyOf } from './rules/keys.js'
import { Direct, type Front, type Source } from './rules/source.js'
import type { Sticky } from './rules/sticky.js'

/** A pool in a manager, with what its requests go by. */
export interface Managed {
  readonly name: string
  readonly pool: PoolFace<unknown>
  /** When routes lease it, unless they say otherwise. */
  readonly policy: Policy | false
  readonly source: Source
  readonly sticky: Sticky | undefined
  /** Where its servers are peers: the key of a request. */
  readonly affinityOf: KeyOf | undefined
  /** Where its server is, for the log; each target's, where there are several. */
  readonly places: readonly Place[]
  /** What its advice rests on. */
  readonly collector: Collector
}

/** What a pool asks of the requests that lease it. */
interface Rules {
  readonly policy?: Policy | false | undefined
  /** undefined: the pool itself. */
  readonly source?: Source | undefined
  readonly sticky?: Sticky | undefined
  readonly affinityOf?: KeyOf | undefined
  readonly places?: readonly Place[] | undefined
}

/** One listener on all pools of a manager. */
interface Subscription {
  /** A pool was added. */
  begin (managed: Managed): void
  /** A pool was removed, and is closed: it emits no more. */
  forget (pool: PoolFace<unknown>): void
}

/**
 * Lets a pool in, or throws: makes `request.<name>`, and says when routes lease the pool unless they say otherwise.
 *
 * @param policy the pool's own; undefined: it has the usual one
 */
export type Admit = (name: string, pool: PoolFace<unknown>, policy: Policy | false | undefined) => Policy | false

/**
 * The pools of one scope. Those of the scopes around it are looked up in their managers, and never copied here: what a
 * child adds is never seen by its parent.
 */
export class PoolManager implements Pools {
  readonly #own = new Map<string, Managed>()
  readonly #outer: PoolManager | undefined
  /** What `on` and `onOwn` do to pools that are added later. */
  readonly #subscriptions = new Set<Subscription>()
  readonly #admit: Admit
  /** Raised when a pool comes or goes: plans of an older version are made again. */
  version = 0

  constructor (outer: PoolManager | undefined, admit: Admit) {
    this.#outer = outer
    this.#admit = admit
  }

  /** In the order in which requests take them. */
  get own (): readonly Managed[] {
    return [...this.#own.values()]
  }

  /** @throws `FST_POOL_NOT_FOUND` */
  require (name: string): Managed {
    const found = this.find(name)
    if (found !== undefined) return found
    throw this.#notFound(name)
  }

  find (name: string): Managed | undefined {
    return this.#own.get(name) ?? this.#outer?.find(name)
  }

  get<N extends string, K extends Connector<ConnectionOf<N>>> (name: N): PoolFace<ConnectionOf<N>, K> {
    return this.require(name).pool as unknown as PoolFace<ConnectionOf<N>, K>
  }

  has (name: string): boolean {
    return this.find(name) !== undefined
  }

  get names (): readonly string[] {
    return [...this.#outer?.names ?? [], ...this.#own.keys()]
  }

  /** @throws `FST_POOL_DUPLICATE_NAME` */
  checkNew (name: string): void {
    if (!this.has(name)) return
    throw new PoolError('FST_POOL_DUPLICATE_NAME', `there is a pool '${name}' already: give this one another name`)
  }

  /** @param rules the plugin's own pools have them; those that an app adds have none */
  add<C, K extends Connector<C>> (name: string, added: PoolFace<C, K>, rules: Rules = {}): void {
    // The type of its connections is between the app and its handlers.
    const pool = added as unknown as PoolFace<unknown>
    this.checkNew(name)
    const policy = this.#admit(name, pool, rules.policy)
    renamePool(pool, name)
    renameTargetPool(pool, name)
    const { source = new Direct(pool), sticky, affinityOf, places = [] } = rules
    const managed: Managed = {
      name, pool, policy, source, sticky, affinityOf, places, collector: new Collector(pool),
    }
    this.#own.set(name, managed)
    this.version++
    for (const { begin } of this.#subscriptions) begin(managed)
  }

  async remove (name: string): Promise<void> {
    const own = this.#own.get(name)
    if (own === undefined) throw this.#notFound(name)
    this.#own.delete(name)
    this.version++
    await close(own)
    for (const { forget } of this.#subscriptions) forget(own.pool)
  }

  stats (): Record<string, PoolStats> {
    return Object.fromEntries(this.names.map((name) => [name, statsOf(this.require(name))]))
  }

  holders (name?: string): Holder[] {
    const names = name === undefined ? this.names : [name]
    return names.flatMap((one) => {
      const { pool, source: { front } } = this.require(one)
      return front === undefined ? pool.holders() : front.tell(pool.holders())
    }).sort((a, b) => b.heldFor - a.heldFor)
  }

  on<E extends PoolEventName> (event: E, listener: PoolListener<E>): () => void {
    const undos = [this.onOwn(event, listener), this.#outer?.on(event, listener)]
    return () => { for (const undo of undos) undo?.() }
  }

  /** As `on`, without the pools of the scopes around. @param isMeant asked of each pool whether to listen to it */
  onOwn<E extends PoolEventName> (
    event: E, listener: PoolListener<E>, isMeant: (managed: Managed) => boolean = () => true
  ): () => void {
    return this.follow((managed) => {
      if (!isMeant(managed)) return () => {}
      const { pool, source: { front } } = managed
      const all = [pool.on(event, listener), front?.on(event, listener)]
      return () => { for (const undo of all) undo?.() }
    })
  }

  /**
   * Begins something with each pool of this scope's own that is there, and that comes.
   *
   * @param enter returns its own undo
   */
  follow (enter: (managed: Managed) => () => void): () => void {
    const undos = new Map<PoolFace<unknown>, () => void>()
    const subscription: Subscription = {
      begin: (managed) => { undos.set(managed.pool, enter(managed)) },
      forget: (pool) => { undos.delete(pool) },
    }
    for (const managed of this.#own.values()) subscription.begin(managed)
    this.#subscriptions.add(subscription)
    return () => {
      this.#subscriptions.delete(subscription)
      for (const undo of undos.values()) undo()
      undos.clear()
    }
  }

  async health (): Promise<PoolsHealth> {
    const health = async (name: string) => {
      const { pool, source: { front } } = this.require(name)
      return [name, healthWith(await pool.health(), front)] as const
    }
    const all = await Promise.all(this.names.map(health))
    const worse = (one: PoolHealth['status'], other: PoolHealth['status']) =>
      healthRank.indexOf(other) > healthRank.indexOf(one) ? other : one
    return { status: all.map(([, { status }]) => status).reduce(worse, 'up'), pools: Object.fromEntries(all) }
  }

  advice (): Advice[] {
    return this.names.flatMap((name) => this.require(name).collector.advice())
  }

  /** Begins to drain this scope's own pools, and does not wait for the end of it: `close` does. */
  drain (): void {
    for (const { pool } of this.own) pool.drain().catch((error: unknown) => { throw error })
  }

  async close (): Promise<void> {
    await Promise.all(this.own.map((managed) => close(managed)))
  }

  #notFound (name: string): PoolError {
    const names = this.names.map((one) => `'${one}'`).join(', ')
    const others = names === '' ? '' : ` (there is ${names})`
    return new PoolError('FST_POOL_NOT_FOUND', `there is no pool '${name}'${others}`)
  }
}

/** A pool's stats, with those of the place in front of it. */
export function statsOf ({ pool, source: { front } }: Managed): PoolStats {
  return withFront(pool.stats(), front)
}

function withFront (stats: PoolStats, front: Front | undefined): PoolStats {
  return front === undefined ? stats : Object.freeze({ ...stats, bulkhead: front.stats })
}

/** As a pool where somebody waits, one where somebody waits for a share is not quite up. */
function healthWith (health: PoolHealth, front: Front | undefined): PoolHealth {
  if (front === undefined) return health
  const stats = withFront(health.stats, front)
  const { pending } = front.stats
  if (health.status !== 'up' || pending === 0) return { ...health, stats }
  return { ...health, stats, status: 'degraded', reason: `${pending} wait for their share (bulkhead)` }
}

/** Closes a pool. Requests that wait in front of it, for their share, are turned away. */
export async function close ({ source, pool }: Managed, options?: { timeout: number }): Promise<void> {
  source.close()
  await pool.close(options)
}
