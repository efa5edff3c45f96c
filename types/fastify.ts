import type { Connector } from './connector.js'
import type { BackendOf } from './backends.js'
import type {
  AcquireOptions, Holder, Lease, PoolEventName, PoolFace, PoolHealth, PoolListener, PoolStats, RunOptions,
} from './pool.js'
import type { Policy } from './plugin.js'

/**
 * The pools of your app, by name: what `request.<name>` is. Yours to augment:
 *
 * ```ts
 * declare module 'fastify-pool' { interface RequestPools { db: Db, cache: Redis } }
 * ```
 */
export interface RequestPools {}

/** A pool's name: one of `RequestPools`, or any text. */
export type PoolName = keyof RequestPools & string

/** The names that a route may lease: those of `RequestPools`, or any where that is not augmented. */
type RouteName = keyof RequestPools extends never ? string : PoolName

/**
 * `config.pools` of a route: none, exactly these, or exactly these with a policy; what a policy leaves out is as in the
 * pool's. Where `RequestPools` is augmented, its names are the ones there are. In an object Fastify's own types take
 * any further name, unless the route's types are given (`app.get<{ Params: ... }>`): `satisfies RoutePools` refuses it.
 */
export type RoutePools = false | readonly RouteName[] | PolicyByName

/** Policies by name. It is no array: else each array would be one without a policy. */
type PolicyByName = { readonly [N in RouteName]?: true | Partial<Policy> } & {
  readonly [Symbol.iterator]?: undefined
}

/** What a name's connections are. */
export type ConnectionOf<N extends string> = N extends keyof RequestPools ? RequestPools[N] : unknown

export interface PoolsHealth {
  /** The worst of all pools. */
  readonly status: PoolHealth['status']
  readonly pools: Readonly<Record<string, PoolHealth>>
}

/**
 * What an advice is about. `max`: too small for the load. `idle`: connections are held while nothing runs on them,
 * and others wait. `server`: all instances together may want more connections than the server allows.
 */
export type AdviceKind = 'max' | 'idle' | 'server'

/** What to change about a pool, and the numbers that it rests on. Frozen. */
export interface Advice {
  readonly pool: string
  readonly kind: AdviceKind
  /** A sentence: what is wrong, and what to do. */
  readonly message: string
  /** `idle`: the route whose connections did nothing most often. */
  readonly route?: string
  /** Times in ms; `saturated`, `idle` and `inTransaction` are parts of 1. */
  readonly numbers: Readonly<Record<string, number>>
}

/** The manager: `app.pools`. A scope sees its own pools and those of the scopes around it. */
export interface Pools {
  /**
   * Where `RequestPools` says that its connections are a built-in backend's, `backend` has what that has besides:
   * `listen`, `subscribe`, `client`.
   *
   * @typeParam K what its `backend` is, where its connections do not tell: of a pool with `wrap`, for example
   * @throws `FST_POOL_NOT_FOUND`
   */
  get<N extends PoolName | (string & {}),
    K extends Connector<ConnectionOf<N>> = Connector<ConnectionOf<N>> & BackendOf<ConnectionOf<N>>> (
    name: N
  ): PoolFace<ConnectionOf<N>, K>
  has (name: string): boolean
  /** In the order in which a request takes its connections. */
  readonly names: readonly string[]
  /**
   * Adds a pool that was made elsewhere, and gives it this name, whatever it was called before; the manager closes it.
   * Before the app listens, routes lease it as any other; later it is there for `request.acquire(name)`. (Its `execute`
   * is not compared: where a driver has hundreds of methods, TypeScript gives up.)
   *
   * @throws `FST_POOL_DUPLICATE_NAME`, `FST_POOL_BAD_OPTIONS`
   */
  add<C, K extends Connector<C>> (name: string, pool: Omit<PoolFace<C, K>, 'execute'>): void
  /** Closes a pool of this scope and forgets it. @throws `FST_POOL_NOT_FOUND` */
  remove (name: string): Promise<void>
  stats (): Record<string, PoolStats>
  /** The leases that are out, the longest held first. */
  holders (name?: string): Holder[]
  /** Listens on every pool, later ones included. Returns its own undo. */
  on<E extends PoolEventName> (event: E, listener: PoolListener<E>): () => void
  health (): Promise<PoolsHealth>
  /**
   * What to change, as far as the last minute shows it; empty where nothing is wrong, or too little was seen. Each call
   * is also one look at who holds connections, at most one a second: advice of the kind `idle` takes ten within ten
   * minutes.
   */
  advice (): Advice[]
  /** Closes this scope's own pools. */
  close (): Promise<void>
}

declare module 'fastify' {
  interface FastifyInstance {
    /** Every pool that this scope can use. */
    pools: Pools
  }

  interface FastifyRequest extends RequestPools {
    /**
     * The lease behind `request.<name>`.
     *
     * @throws `FST_POOL_NOT_LEASED`, `FST_POOL_NOT_FOUND`
     */
    lease<N extends PoolName | (string & {})> (name: N): Lease<ConnectionOf<N>>
    /**
     * Takes a connection by hand; the plugin gives it back when the request ends. While a lease is out it gives the
     * same one. Calls side by side have a deadline and a signal each, and get the same lease.
     *
     * @throws what `Pool.acquire` throws; `FST_POOL_NOT_FOUND`; `FST_POOL_ABORTED` when the request is over
     */
    acquire<N extends PoolName | (string & {})> (name: N, options?: AcquireOptions): Promise<Lease<ConnectionOf<N>>>
    /**
     * Calls `fn` between BEGIN and COMMIT on this request's connection, which is taken if it is not there; when it
     * throws, everything is rolled back. Within another transaction of the request (also the route's own) it is a
     * savepoint.
     *
     * @throws what `acquire` and `Lease.transaction` throw
     */
    transaction<N extends PoolName | (string & {}),
      T> (name: N, fn: (connection: ConnectionOf<N>) => T | Promise<T>, options?: RunOptions): Promise<T>
    /**
     * Calls `fn` once, when the transaction that the request is within is stored (of one within another: when the outer
     * one is), or at once where none is open. No reply waits for it; what it throws is logged; `close()` waits for it.
     *
     * @throws `FST_POOL_NOT_LEASED`, `FST_POOL_NOT_FOUND`, `FST_POOL_LEASE_RELEASED`; `FST_POOL_BAD_OPTIONS` where
     * `fn` is no function
     */
    afterCommit (name: PoolName | (string & {}), fn: () => unknown): void
    /**
     * As `afterCommit`, when the transaction has been undone; never where none is open. Of a commit of which nobody
     * knows (`FST_POOL_COMMIT_UNKNOWN`) neither is called.
     */
    afterRollback (name: PoolName | (string & {}), fn: () => unknown): void
  }

  interface FastifyContextConfig {
    /**
     * Which pools this route leases, and how: `false` for none, names for exactly these, an object for exactly these
     * with a policy.
     */
    pools?: RoutePools
  }
}
