// What an app sees of a pool per tenant: all of them together, and one of them.
import type { CallArguments, CallName, CallResult } from '../../../types/calls.js'
import type { Connector } from '../../../types/connector.js'
import type {
  AcquireOptions, CallOptions, Clock, Holder, HoldOptions, Lease, PoolEventName, PoolHealth, PoolListener, PoolStats,
  RunOptions, Tx, UseOptions,
} from '../../../types/pool.js'
import { PoolError, badOption } from '../../engine/errors.js'
import { Events } from '../../engine/events.js'
import { onEnd } from '../../engine/lease.js'
import { begin } from '../../pool/begin.js'
import { execute } from '../../pool/execute.js'
import { checkNames } from '../../pool/calls.js'
import { partOf } from '../../pool/pool.js'
import type { ResolvedPoolOptions, ResolvedTenants } from '../options.js'
import { noStats, sumOf, sumOfParts } from './sums.js'
import { Tenants, type Face, type Maker, type Patience, type Visit } from './tenants.js'

/** What the plan of a route asks before any tenant has a pool: each tenant's own pool says what it can do. */
const anyBackend = (system: string): Connector<unknown> => Object.assign<Connector<unknown>, PubSubRefused>({
  system,
  create: () => Promise.reject(new Error('a pool per tenant has no connections of its own')),
  destroy: () => {},
}, { subscribe: refused, listen: refused })

type PubSubRefused = Readonly<Record<'subscribe' | 'listen', typeof refused>>

/** A tenant's pool is closed when nobody uses it, and would take its subscriptions along. */
function refused (_channel: unknown, fn: unknown): Promise<never> {
  const error = new PoolError('FST_POOL_NOT_SUPPORTED',
    'a pool per tenant has no subscriptions: they need a pool beside it, with the address of that server')
  // As their own do, with a function and as an iterator.
  if (typeof fn === 'function') return Promise.reject(error)
  throw error
}

/** How many tenants stats tell apart. */
const LARGEST = 10

type Now = Pick<PoolStats, 'creating' | 'idle' | 'used'>
const taken = ({ creating, idle, used }: Now): number => creating + idle + used

/** The pools of all tenants, behind one name. A caller has to say whose. */
export class TenantPool implements Face {
  name: string
  readonly backend: Connector<unknown>
  readonly closeTimeout: number
  /** Some tenants may have replicas. */
  readonly replicas = true
  readonly tenants: Tenants
  readonly #options: ResolvedPoolOptions
  readonly #events: Events
  #phase: 'open' | 'draining' | 'closed' = 'open'

  constructor (options: ResolvedPoolOptions & { readonly tenants: ResolvedTenants }, make: Maker, clock?: Clock) {
    this.name = options.name
    this.#options = options
    this.backend = anyBackend(options.backend ?? 'other')
    this.closeTimeout = options.closeTimeout
    this.#events = new Events(this.name, undefined, () => [])
    this.tenants = new Tenants(() => this.name, options.tenants, make, this.#events, clock)
  }

  of (key: string): Face {
    if (typeof key !== 'string') throw badOption('key', key, 'a text')
    return new OneTenant(this.name, key, this.tenants, this.backend, this.#options)
  }

  acquire (): Promise<never> { return Promise.reject(this.#whose()) }
  tryAcquire (): never { throw this.#whose() }
  use (): Promise<never> { return Promise.reject(this.#whose()) }
  execute (): Promise<never> { return Promise.reject(this.#whose()) }
  begin (): Promise<never> { return Promise.reject(this.#whose()) }
  transaction (): Promise<never> { return Promise.reject(this.#whose()) }

  #whose (): PoolError {
    return new PoolError('FST_POOL_NOT_SUPPORTED', `pool '${this.name}' has a pool for each tenant: say whose, ` +
      `app.pools.get('${this.name}').of(key)`)
  }

  /** The pools are made at their first use: there is nothing to open. */
  async open (): Promise<void> {
    if (this.#phase === 'open') this.#events.emit('open', {})
  }

  evict (options?: { idle?: boolean, used?: boolean }): void {
    checkNames('evict', options)
    for (const { pool } of this.tenants.all) pool.evict(options)
  }

  /** Of each tenant's pool that is there; those that come have what their options say. */
  resize (options: { min?: number, max?: number }): void {
    for (const { pool } of this.tenants.all) pool.resize(options)
  }

  suspend (): void {
    this.tenants.suspend()
  }

  resume (): void {
    this.tenants.resume()
  }

  async drain (): Promise<void> {
    if (this.#phase === 'open') {
      this.#phase = 'draining'
      this.#events.emit('drain', {})
    }
    await this.tenants.drain()
  }

  async close (options?: { timeout?: number }): Promise<void> {
    checkNames('close', options)
    const isFirst = this.#phase !== 'closed'
    this.#phase = 'closed'
    const began = performance.now()
    let destroyed = 0
    const holders: Holder[] = []
    const counted = this.tenants.all.map(({ pool }) => pool.on('close', (end) => {
      destroyed += end.destroyed
      holders.push(...end.holders)
    }))
    await this.tenants.close(options)
    for (const undo of counted) undo()
    if (!isFirst) return
    this.#events.emit('close', { took: performance.now() - began, destroyed, holders })
    this.#events.clear()
  }

  async [Symbol.asyncDispose] (): Promise<void> {
    await this.close()
  }

  on<E extends PoolEventName> (event: E, listener: PoolListener<E>): () => void {
    const undo = this.#events.on(event, listener)
    // The pool as a whole opens, drains and closes once, whenever its tenants come and go.
    if (event === 'open' || event === 'drain' || event === 'close') return undo
    const undoAll = this.tenants.on(event, listener)
    return () => {
      undo()
      undoAll()
    }
  }

  stats (): PoolStats {
    const { name, backend: { system }, tenants } = this
    // Only the largest tell their numbers each for itself: it takes a while with thousands.
    const all = tenants.all.map(({ label, pool }) => ({ label, pool, now: partOf(pool) ?? pool.stats() }))
    const largest = all.toSorted((a, b) => b.now.pending - a.now.pending || taken(b.now) - taken(a.now))
      .slice(0, LARGEST).map(({ label, pool }) => Object.freeze({ tenant: label, ...pool.stats() }))
    const parts = all.flatMap(({ now }) => 'books' in now ? [now] : [])
    const others = all.flatMap(({ now }) => 'books' in now ? [] : [now])
    const told = parts.length === 0 ? others : [sumOfParts(name, system, parts), ...others]
    return Object.freeze({
      ...sumOf([{ ...tenants.front, name, system }, ...tenants.past, ...told]),
      tenants: Object.freeze({ open: all.length, largest: Object.freeze(largest) }),
    })
  }

  holders (): Holder[] {
    return this.tenants.all.flatMap(({ label, pool }) => pool.holders().map((one) => ({ ...one, tenant: label })))
      .sort((a, b) => b.heldFor - a.heldFor)
  }

  async health (): Promise<PoolHealth> {
    const all = await Promise.all(this.tenants.all.map(async ({ label, pool }) => ({ label, ...await pool.health() })))
    const stats = this.stats()
    const latencies = all.map(({ latency }) => latency).filter((latency) => latency !== null)
    const latency = latencies.length === 0 ? null : Math.max(...latencies)
    const told = { latency, circuit: stats.circuit, stats }
    if (this.#phase !== 'open') return { status: 'draining', reason: `the pool is ${this.#phase}`, ...told }
    if (all.length === 0) return { status: 'degraded', reason: 'no tenant has a pool now', ...told }
    const ill = all.filter(({ status }) => status !== 'up')
    const down = ill.filter(({ status }) => status === 'down')
    const [worst] = [...down, ...ill]
    if (worst === undefined) return { status: 'up', ...told }
    // One tenant's database that is down is no reason to send the others away.
    const status = down.length === all.length ? 'down' : 'degraded'
    const reason = `${ill.length} of ${all.length} tenants: tenant ${worst.label}: ${worst.reason}`
    return { status, reason, ...worst.since !== undefined && { since: worst.since }, ...told }
  }
}

/** The pool of one tenant. It may be made and closed again and again: each call finds the one that is there. */
class OneTenant implements Face {
  readonly name: string
  readonly backend: Connector<unknown>
  readonly closeTimeout: number
  readonly replicas = true
  readonly #key: string
  readonly #tenants: Tenants
  readonly #options: ResolvedPoolOptions

  constructor (
    name: string, key: string, tenants: Tenants, backend: Connector<unknown>, options: ResolvedPoolOptions
  ) {
    this.name = name
    this.backend = backend
    this.closeTimeout = options.closeTimeout
    this.#key = key
    this.#tenants = tenants
    this.#options = options
  }

  get #pool (): Face | undefined {
    return this.#tenants.peek(this.#key)
  }

  async acquire (options: AcquireOptions = {}): Promise<Lease<unknown>> {
    return await acquireOf(this.#tenants, this.#key, options)
  }

  tryAcquire (options?: Pick<AcquireOptions, 'holder' | 'role' | 'holdTimeout'>): Lease<unknown> | null {
    return tryAcquireOf(this.#tenants, this.#key, options)
  }

  /** @param fn gets the options with what is left of their timeout */
  async #with<T, O extends Patience> (given: O, fn: (pool: Face, options: O) => Promise<T>): Promise<T> {
    const visit = await this.#tenants.visit(this.#key, given)
    try {
      return await fn(visit.pool, leftOf(visit, given))
    } finally {
      visit.leave()
    }
  }

  async use<T> (
    fn: (connection: unknown, lease: Lease<unknown>) => T | Promise<T>, options: UseOptions = {}
  ): Promise<T> {
    return await this.#with(options, (pool, options) => pool.use(fn, options))
  }

  async transaction<T> (
    fn: (connection: unknown) => T | Promise<T>, options: AcquireOptions & RunOptions = {}
  ): Promise<T> {
    return await this.#with(options, (pool, options) => pool.transaction(fn, options))
  }

  async execute<M extends CallName<unknown>, A extends CallArguments<unknown, M>> (
    method: M | CallOptions<M>, ...args: A
  ): Promise<CallResult<unknown, M, A>> {
    const call = typeof method === 'object' ? method : { method }
    return await this.#with(call, (pool, call) => execute(pool, call, args)) as CallResult<unknown, M, A>
  }

  /** It is left when its lease ends. */
  async begin (options: AcquireOptions & HoldOptions = {}): Promise<Tx<unknown>> {
    return await this.#with(options, (pool, options) => begin({
      name: this.name, backend: pool.backend, acquire: (acquire) => this.acquire(acquire),
    }, options))
  }

  of (): never {
    throw new PoolError('FST_POOL_NOT_SUPPORTED', `this is the pool of one tenant of '${this.name}' already`)
  }

  async open (): Promise<void> {
    await this.#with({}, (pool) => pool.open())
  }

  evict (options?: { idle?: boolean, used?: boolean }): void {
    checkNames('evict', options)
    this.#pool?.evict(options)
  }

  resize (options: { min?: number, max?: number }): void {
    checkNames('resize', options)
    this.#pool?.resize(options)
  }

  suspend (): void {
    this.#pool?.suspend()
  }

  resume (): void {
    this.#pool?.resume()
  }

  async drain (): Promise<void> {
    await this.#pool?.drain()
  }

  async close (options?: { timeout?: number }): Promise<void> {
    checkNames('close', options)
    await this.#tenants.closeOne(this.#key, options)
  }

  async [Symbol.asyncDispose] (): Promise<void> {
    await this.close()
  }

  on<E extends PoolEventName> (event: E, listener: PoolListener<E>): () => void {
    return this.#tenants.on(event, listener, this.#key)
  }

  stats (): PoolStats {
    return this.#pool?.stats() ?? noStats(this.name, this.backend.system, this.#options)
  }

  holders (): Holder[] {
    return this.#pool?.holders() ?? []
  }

  async health (): Promise<PoolHealth> {
    const pool = this.#pool
    if (pool !== undefined) return await pool.health()
    const reason = 'this tenant has no pool now: its next use makes one'
    return { status: 'degraded', reason, latency: null, circuit: 'closed', stats: this.stats() }
  }
}

/** Takes a connection of a tenant's pool, which stays open until the lease ends. */
export async function acquireOf (tenants: Tenants, key: string, options: AcquireOptions): Promise<Lease<unknown>> {
  const visit = await tenants.visit(key, options)
  try {
    return held(visit, await visit.pool.acquire(leftOf(visit, options)))
  } catch (error) {
    visit.leave()
    throw error
  }
}

/** null: the caller would have to wait, for a connection or for the pool. */
export function tryAcquireOf (
  tenants: Tenants, key: string, options?: Pick<AcquireOptions, 'holder' | 'role' | 'holdTimeout'>
): Lease<unknown> | null {
  const visit = tenants.enter(key)
  if (visit === undefined) return null
  try {
    const lease = visit.pool.tryAcquire(options)
    if (lease !== null) return held(visit, lease)
  } catch (error) {
    visit.leave()
    throw error
  }
  visit.leave()
  return null
}

function leftOf<O extends Patience> ({ timeout }: Visit, options: O): O {
  return timeout === undefined ? options : { ...options, timeout }
}

function held (visit: Visit, lease: Lease<unknown>): Lease<unknown> {
  onEnd(lease, () => { visit.leave() })
  return lease
}
