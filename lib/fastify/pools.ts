import type { Connector } from '../../types/connector.js'
import type { ConnectionOf, Pools, PoolsHealth } from '../../types/fastify.js'
import type { Holder, PoolEventName, PoolFace, PoolHealth, PoolListener, PoolStats } from '../../types/pool.js'
import { healthRank } from '../balance/targets.js'
import { PoolError } from '../pool/errors.js'
import type { ResolvedPoolOptions } from './options.js'
import { rulesOf } from './plan.js'

type Policy = ResolvedPoolOptions['lease']

/** A pool in a manager, with when routes lease it. */
export interface Managed {
  readonly name: string
  readonly pool: PoolFace<unknown>
  readonly policy: Policy
}

/**
 * The pools of one scope. It looks outward for those of the scopes around it, and never holds them: a shared list would leak a child's pools to
 * its parent.
 */
export class PoolManager implements Pools {
  readonly #own = new Map<string, Managed>()
  readonly #outer: PoolManager | undefined
  /** Of `on`: for pools that come later. */
  readonly #subscriptions = new Set<(pool: PoolFace<unknown>) => void>()
  readonly #admit: (name: string, pool: PoolFace<unknown>, policy: Policy | undefined) => Policy
  /** Raised when a pool comes or goes: what was worked out before is worked out again. */
  version = 0

  /** @param admit lets a pool in, or throws: makes `request.<name>`, and says when routes lease it unless they say otherwise (its own policy, else the usual one) */
  constructor (outer: PoolManager | undefined, admit: (name: string, pool: PoolFace<unknown>, policy: Policy | undefined) => Policy) {
    this.#outer = outer
    this.#admit = admit
  }

  /** In the order in which requests take them. */
  get own (): readonly Managed[] {
    return [...this.#own.values()]
  }

  find (name: string): Managed | undefined {
    return this.#own.get(name) ?? this.#outer?.find(name)
  }

  get<N extends string, K extends Connector<ConnectionOf<N>>> (name: N): PoolFace<ConnectionOf<N>, K> {
    return this.#required(name).pool as unknown as PoolFace<ConnectionOf<N>, K>
  }

  has (name: string): boolean {
    return this.find(name) !== undefined
  }

  get names (): readonly string[] {
    return [...this.#outer?.names ?? [], ...this.#own.keys()]
  }

  /** @throws `FST_POOL_DUPLICATE_NAME` */
  checkNew (name: string): void {
    if (this.has(name)) throw new PoolError('FST_POOL_DUPLICATE_NAME', `there is a pool '${name}' already: give this one another name`)
  }

  add<C, K extends Connector<C>> (name: string, added: PoolFace<C, K>, policy?: Policy): void {
    // What its connections are is between the app and its handlers.
    const pool = added as unknown as PoolFace<unknown>
    this.checkNew(name)
    this.#own.set(name, { name, pool, policy: this.#admit(name, pool, policy) })
    this.version++
    for (const subscribe of this.#subscriptions) subscribe(pool)
  }

  async remove (name: string): Promise<void> {
    const own = this.#own.get(name)
    if (own === undefined) throw this.#notFound(name)
    this.#own.delete(name)
    this.version++
    rulesOf(own.pool).bulkhead?.close()
    await own.pool.close()
  }

  stats (): Record<string, PoolStats> {
    return Object.fromEntries(this.names.map((name) => [name, this.#required(name).pool.stats()]))
  }

  holders (name?: string): Holder[] {
    const names = name === undefined ? this.names : [name]
    return names.flatMap((one) => this.#required(one).pool.holders()).sort((a, b) => b.heldFor - a.heldFor)
  }

  on<E extends PoolEventName> (event: E, listener: PoolListener<E>): () => void {
    const undos = [this.onOwn(event, listener), this.#outer?.on(event, listener)]
    return () => { for (const undo of undos) undo?.() }
  }

  /** As `on`, without the pools of the scopes around. */
  onOwn<E extends PoolEventName> (event: E, listener: PoolListener<E>): () => void {
    const undos: Array<() => void> = []
    const subscribe = (pool: PoolFace<unknown>) => { undos.push(pool.on(event, listener)) }
    for (const { pool } of this.#own.values()) subscribe(pool)
    this.#subscriptions.add(subscribe)
    return () => {
      this.#subscriptions.delete(subscribe)
      for (const undo of undos.splice(0)) undo()
    }
  }

  async health (): Promise<PoolsHealth> {
    const all = await Promise.all(this.names.map(async (name) => [name, await this.#required(name).pool.health()] as const))
    const status = all.reduce<PoolHealth['status']>((most, [, { status }]) => healthRank.indexOf(status) > healthRank.indexOf(most) ? status : most, 'up')
    return { status, pools: Object.fromEntries(all) }
  }

  /** Begins to drain this scope's own pools; who closes them waits for the end of it. */
  drain (): void {
    for (const { pool } of this.own) pool.drain().catch((error: unknown) => { throw error })
  }

  async close (): Promise<void> {
    await Promise.all(this.own.map(({ pool }) => pool.close()))
  }

  #required (name: string): Managed {
    const found = this.find(name)
    if (found !== undefined) return found
    throw this.#notFound(name)
  }

  #notFound (name: string): PoolError {
    const names = this.names
    return new PoolError('FST_POOL_NOT_FOUND', `there is no pool '${name}'${names.length === 0 ? '' : ` (there is ${names.map((one) => `'${one}'`).join(', ')})`}`)
  }
}
