import type { CallArguments, CallName, CallResult } from './calls.js'
import type {
  Activity, Connector, DestroyReason, DriverEvent, FailureKind, Role, TransactionOptions,
} from './connector.js'
import type { Circuit, PoolHealth, PoolStats } from './stats.js'

export type * from './stats.js'

/**
 * Who takes a connection: a text, or the route and id of a request. Shown by `holders()`, events and the log, never to
 * a client.
 */
export type HolderLabel = string | { readonly route?: string, readonly id?: string }

/** One lease that is out now. */
export interface Holder {
  readonly pool: string
  readonly holder: HolderLabel | undefined
  /** The connection's id. */
  readonly id: number
  /** How long it has been out, in ms. */
  readonly heldFor: number
  /** Where each tenant has a pool: whose it is. The key's hash, unless `showKeys` is set. */
  readonly tenant?: string
  /** Where the pool has a bulkhead: whose share of it the lease is of. The key's hash, as in `stats().bulkhead`. */
  readonly bulkhead?: string
  /** Where the pool has several targets: which one the connection is to. */
  readonly target?: string
  /** What the connection is doing, where its driver tells. */
  readonly doing?: Activity['doing']
  /** For how long it has been doing that, in ms, where that is known. */
  readonly sinceQuery?: number
  /** What the server calls the connection: a process or thread id. */
  readonly serverId?: string | number
}

/** What ends an acquire: an `AbortSignal`, or whatever has these of its members. */
export interface AcquireSignal {
  readonly aborted: boolean
  readonly reason: unknown
  addEventListener (type: 'abort', listener: () => void, options?: { once?: boolean }): void
  removeEventListener (type: 'abort', listener: () => void): void
}

export interface AcquireOptions {
  /** Leaves the line when it aborts: rejects with `FST_POOL_ABORTED`, whose cause is the signal's reason. */
  signal?: AcquireSignal
  /** Instead of the pool's `acquireTimeout`, in ms. At least 1. */
  timeout?: number
  holder?: HolderLabel
  /**
   * How long the lease may be out, in ms; 0: as long as it likes. Past it the lease is revoked and its connection
   * destroyed. Default: of a request what its route or its pool says, else 0.
   */
  holdTimeout?: number
  /** Which kind of connection, where there are two: 'replica' for one that only reads. Default 'primary'. */
  role?: Role
  /**
   * Where the servers are peers: a connection of the one that this key belongs to, as for requests the pool's option
   * `affinity` says. It is not kept. Default: of whichever server's turn it is.
   */
  affinity?: string
}

/** How `use(fn, options)` runs. */
export interface UseOptions extends AcquireOptions {
  /**
   * How many times more `fn` may be run, on another connection, where it failed with an error that the database's
   * connector calls transient. Only where all of `fn` may be done twice. The acquires of all runs have one deadline
   * together; between runs it waits as `backoff` says. Default 0: `fn` runs once.
   */
  retry?: number
}

/** What `execute` calls, and how. */
export interface CallOptions<M extends string> extends UseOptions { method: M }

/** How a transaction begins, and how long its commit may take. */
export interface HoldOptions extends TransactionOptions {
  /**
   * The deadline of the commit, from its call on, in ms; 0: none. Past it the connection is destroyed:
   * `FST_POOL_COMMIT_TIMEOUT` where COMMIT was not written, since something before it has not ended (nothing is
   * stored); `FST_POOL_COMMIT_UNKNOWN` where it was (nobody knows). Default: the pool's `commitTimeout` for a route's
   * `transaction` and for `request.transaction`, else 0. Not for a transaction within another: that has what is left to
   * it.
   */
  commitTimeout?: number | undefined
}

/** How `transaction(fn, options)` runs. */
export interface RunOptions extends HoldOptions {
  /**
   * How many times more the whole of `fn` may be run, in a new transaction, where the database gave up this one because
   * of others (a serialization failure, a deadlock). Default 0: `fn` runs once. Not for a transaction within another.
   */
  retry?: number | undefined
}

/** The right to use one connection, until it ends. A lease that has ended can touch nobody's connection. */
export interface Lease<C> {
  /** @throws `FST_POOL_LEASE_RELEASED` once the lease has ended. */
  readonly connection: C
  /**
   * The driver's own object, where the pool's option `wrap` made something else of it; else the same as `connection`.
   *
   * @throws `FST_POOL_LEASE_RELEASED` once the lease has ended.
   */
  readonly raw: unknown
  /** The pool's name. */
  readonly pool: string
  /**
   * Who took it, until it ends. Given to another acquire, the two are known to be the same one's: a deadlock of those
   * who all hold a connection and wait for one more is then refused with `FST_POOL_DEADLOCK`.
   */
  readonly holder: HolderLabel | undefined
  readonly ended: boolean
  /**
   * Since it was lent, in ms; once ended, until its end. Read from the pool's coarse clock (100 ms) where nothing asked
   * for more.
   */
  readonly heldFor: number
  /** Gives the connection back. Does nothing the second time. */
  release (): void
  /**
   * Ends the lease and destroys the connection: with reason 'error', or 'released' where no error is given. Does
   * nothing the second time.
   */
  destroy (error?: Error): void
  /**
   * Calls `fn` between BEGIN and COMMIT, and gives what it gives; when it throws, everything is rolled back. Within
   * another transaction of the lease it is a savepoint. Calls side by side run one after the other: a connection has
   * one transaction at a time.
   *
   * @throws what `fn` or the commit throws; `FST_POOL_NOT_SUPPORTED`; `FST_POOL_TRANSACTION_ENDED`;
   * `FST_POOL_COMMIT_UNKNOWN` where COMMIT was sent and no answer came; `FST_POOL_COMMIT_TIMEOUT`;
   * `FST_POOL_LEASE_RELEASED`; `FST_POOL_BAD_OPTIONS`
   */
  transaction<T> (fn: (connection: C) => T | Promise<T>, options?: RunOptions): Promise<T>
  [Symbol.dispose] (): void
}

/** A transaction that its holder ends. Where that is forgotten, `await using` rolls it back. */
export interface Tx<C> {
  /** @throws `FST_POOL_LEASE_RELEASED` once it has ended. */
  readonly connection: C
  /**
   * Stores it, and gives the connection back.
   *
   * @throws what a commit of `Lease.transaction` throws; `FST_POOL_TRANSACTION_ENDED` after a rollback
   */
  commit (): Promise<void>
  /** Undoes it, and gives the connection back. After a commit it only waits for that. */
  rollback (): Promise<void>
  /**
   * Calls `fn` once, when the transaction is stored. What it throws is an event `error`. `close()` waits for it.
   *
   * @throws `FST_POOL_LEASE_RELEASED` once it has ended; `FST_POOL_BAD_OPTIONS` where `fn` is no function
   */
  afterCommit (fn: () => unknown): void
  /** As `afterCommit`, when it has been undone. Of a commit of which nobody knows, neither is called. */
  afterRollback (fn: () => unknown): void
  [Symbol.asyncDispose] (): Promise<void>
}

interface Event {
  readonly pool: string
  /** Where the pool has several: which one. */
  readonly target?: string
  /** Where each tenant has a pool: whose it is. The key's hash, unless `showKeys` is set. */
  readonly tenant?: string
  /** When, in ms since 1970. */
  readonly time: number
}

/**
 * The phase of a connection's life in which an error happened. 'listener': of an event, or of a channel.
 * 'subscription': the connection of the subscriptions was lost.
 */
export type ErrorPhase =
  'create' | 'destroy' | 'validate' | 'isBroken' | 'describe' | 'isTransient' | 'reset' | 'death' | 'obstacle' |
  'begin' | 'commit' | 'rollback' | 'afterCommit' | 'afterRollback' | 'close' | 'listener' |
  'subscription' |
  /** Not of one connection: two servers say that they are the primary, say; or a name can't be resolved. */
  'targets' | 'discover' |
  'onConnect' | 'onAcquire' | 'onRelease' | 'onDisconnect'

interface HoldEvent extends Event {
  readonly id: number
  readonly held: number
  readonly holdTimeout: number
  readonly holder?: HolderLabel
}

interface Shared {
  /** It was for a share of the pool, not for the pool: the key's hash, as in `stats().bulkhead`. */
  readonly bulkhead?: string
}

/** All durations are in ms. Errors are scrubbed copies: no secret of the options is in them. */
export interface PoolEvents {
  connect: Event & { readonly id: number, readonly took: number }
  disconnect: Event & {
    readonly id: number
    readonly reason: DestroyReason
    readonly age: number
    readonly uses: number
    readonly error?: Error
  }
  acquire: Event & { readonly id: number, readonly wait: number, readonly holder?: HolderLabel }
  release: Event & { readonly id: number, readonly held: number, readonly holder?: HolderLabel }
  /** A caller waits: no idle connection. */
  wait: Event & Shared & { readonly pending: number, readonly holder?: HolderLabel }
  /** At capacity, and now queueing. Once per episode. */
  overflow: Event & { readonly pending: number }
  timeout: Event & Shared & { readonly error: Error, readonly wait: number, readonly holder?: HolderLabel }
  refuse: Event & Shared & { readonly error: Error, readonly wait: number, readonly holder?: HolderLabel }
  /**
   * A lease is out for longer than `leakAfter`. Once one was, `stack` names the code that acquired it, also where that
   * had to wait.
   */
  leak: Event & { readonly id: number, readonly held: number, readonly holder?: HolderLabel, readonly stack?: string }
  /** The lease that was reported has ended. */
  unleak: Event & {
    readonly id: number
    readonly held: number
    readonly holder?: HolderLabel
    readonly stack?: string
    /**
     * Why the pool itself took it back, and destroyed its connection: 'leaked' where the lease was lost, so that nobody
     * could release it any more. Left out where its borrower ended it.
     */
    readonly taken?: DestroyReason
  }
  /** Half of a lease's `holdTimeout` has passed. Once per lease, but again where the hold has started again. */
  hold: HoldEvent
  /** A lease was out for longer than its `holdTimeout`: it was revoked, and its connection destroyed. */
  overdue: HoldEvent
  /**
   * Something failed that no caller was told of. Without a listener it is silent: it never throws. `kind`: of a create,
   * why it failed, where that is known.
   */
  error: Event & { readonly error: Error, readonly phase: ErrorPhase, readonly kind?: FailureKind }
  /** The circuit of creates. `error`: why it opened. */
  circuit: Event & { readonly from: Circuit, readonly to: Circuit, readonly error?: Error }
  /** Another target is the primary now. By name; undefined: none. */
  failover: Event & { readonly from: string | undefined, readonly to: string | undefined }
  /**
   * A replica is further behind than `maxLag`, and is left out (`over`), or is not any more. `lag`: as in
   * `stats().targets`.
   */
  lag: Event & {
    readonly target: string
    readonly lag: number | null
    readonly maxLag: number
    readonly over: boolean
  }
  /** The driver's own. */
  driver: Event & DriverEvent
  /** `driver`: which of several drivers it is on. */
  open: Event & { readonly driver?: string }
  /** The pool began to drain. */
  drain: Event
  close: Event & { readonly took: number, readonly destroyed: number, readonly holders: readonly Holder[] }
}

export type PoolEventName = keyof PoolEvents
export type PoolListener<E extends PoolEventName = PoolEventName> = (event: PoolEvents[E]) => void

/** What a lifecycle hook is told. */
export interface HookInfo {
  readonly pool: string
  /** The connection's id. */
  readonly id: number
  /** How many times it was lent, this one included. */
  readonly uses: number
  readonly holder?: HolderLabel
  /** `onDisconnect` only. */
  readonly reason?: DestroyReason
}

/** A transaction that a library began by `WrapInfo.begin`. Each method may be called again, and gives the same. */
export interface WrapTransaction {
  /** @throws what the commit throws: it is rolled back then; `FST_POOL_TRANSACTION_ENDED` behind a rollback */
  commit (): Promise<void>
  /** Behind a commit it does nothing, but waits for it. */
  rollback (): Promise<void>
}

/** What the option `wrap` is told of a connection: all that an adapter for a query builder or an ORM needs. */
export interface WrapInfo {
  /** The pool's name. */
  readonly pool: string
  /** The connector's: 'postgresql', 'mysql', 'sqlite', 'mongodb', ... */
  readonly system: string
  /**
   * It is a connection within a transaction of the pool's, and another object than the connection outside of it
   * (MongoDB).
   */
  readonly inTransaction: boolean
  /**
   * Begins a transaction in the place of the library's own BEGIN: the library's calls of COMMIT and ROLLBACK then go to
   * what it resolves to. One that is open on the connection comes first: callers wait for their turn, for
   * `acquireTimeout` ms at most. Its commit has the pool's `commitTimeout`.
   *
   * @throws `FST_POOL_NOT_SUPPORTED` within a route's transaction or `request.transaction`; `FST_POOL_BAD_OPTIONS`;
   * `FST_POOL_ACQUIRE_TIMEOUT`; `FST_POOL_LEASE_RELEASED` where the connection is not lent
   */
  begin (options?: TransactionOptions): Promise<WrapTransaction>
}

/** Where the pool's time and chance come from. A test brings its own: then time is a matter of steps. */
export interface Clock {
  /**
   * Monotonic, in ms.
   *
   * @param exactly even where it was asked before in this turn of the event loop, which may have been a long one
   */
  now (exactly?: boolean): number
  /** Calls `fn` once, after `ms`. Made unref'd: it does not keep the process alive until `ref` is called. */
  setTimer (fn: () => void, ms: number): Timer
  /** In [0, 1). */
  random (): number
}

export interface Timer { ref (): void, unref (): void, cancel (): void }

/** A pool as its users see it: one pool, or several behind one name. */
export interface PoolFace<C, K extends Connector<C> = Connector<C>> {
  readonly name: string
  /** The connector: it has what only this database has. */
  readonly backend: K
  /** How long `close()` takes at most unless its call says otherwise, in ms. */
  readonly closeTimeout: number
  /**
   * The pool of one tenant, where the pool has the option `key`: for jobs, which have no request. Made at its first
   * use, as for requests.
   *
   * @throws `FST_POOL_NOT_SUPPORTED`: there is one pool for all
   */
  of (key: string): PoolFace<C, K>
  /** Whether `role: 'replica'` may get another kind of connection. */
  readonly replicas: boolean
  /**
   * Lends a connection; waits for one if none is idle.
   *
   * @throws at its deadline `FST_POOL_ACQUIRE_TIMEOUT`, or `FST_POOL_CONNECT_FAILED` where there is no connection and
   * none can be created; at once `FST_POOL_QUEUE_FULL` when `maxPending` callers wait, `FST_POOL_OVERLOADED` when the
   * line moves too slowly for its deadline, `FST_POOL_CIRCUIT_OPEN` when there is no connection and creates keep
   * failing, `FST_POOL_DEADLOCK` when all holders wait for each other, `FST_POOL_CLOSED`; `FST_POOL_ABORTED` when the
   * signal aborts; `FST_POOL_BAD_OPTIONS`; what `onAcquire` throws
   */
  acquire (options?: AcquireOptions): Promise<Lease<C>>
  /**
   * Lends an idle connection now; null where a caller would have to wait: for a round trip, for others in line, for an
   * async hook.
   *
   * @throws what a synchronous `onAcquire` throws
   */
  tryAcquire (options?: Pick<AcquireOptions, 'holder' | 'role' | 'holdTimeout' | 'affinity'>): Lease<C> | null
  /**
   * Calls `fn` with a connection and gives it back whatever happens. With `retry`, again on another connection where
   * the connector calls the error transient.
   *
   * @throws what `acquire` or `fn` throws; `FST_POOL_BAD_OPTIONS`
   */
  use<T> (fn: (connection: C, lease: Lease<C>) => T | Promise<T>, options?: UseOptions): Promise<T>
  /**
   * Calls a method of the driver's on a connection, which goes back whatever happens: `execute('get', 'key')` (Redis),
   * `execute('query', text, values)` (PostgreSQL, MySQL), `execute('findOne', 'users', { name })` (MongoDB: the
   * collection comes first), `execute('get' | 'all' | 'run', text, values)` (SQLite). With options:
   * `execute({ method: 'get', retry: 2 }, 'key')`.
   *
   * @throws what `acquire` or the method throws; `FST_POOL_NOT_SUPPORTED` for an unknown method, and for one that gives
   * a cursor, a stream or a statement: those need `use`; `FST_POOL_BAD_OPTIONS`
   */
  execute<M extends CallName<C>, A extends CallArguments<C, M>> (
    method: M | CallOptions<M>, ...args: A
  ): Promise<CallResult<C, M, A>>
  /**
   * Calls `fn` in a transaction, on a connection that goes back whatever happens. Within another transaction of this
   * pool it is a savepoint in that one.
   *
   * @throws what `acquire` and `Lease.transaction` throw
   */
  transaction<T> (fn: (connection: C) => T | Promise<T>, options?: AcquireOptions & RunOptions): Promise<T>
  /**
   * Takes a connection and begins a transaction on it, which its holder ends:
   *
   * ```ts
   * await using tx = await pool.begin()
   * await tx.connection.query('...')
   * await tx.commit()
   * ```
   *
   * It is a transaction of its own, also where the calling code is within another one.
   *
   * @throws what `acquire` throws; `FST_POOL_NOT_SUPPORTED`; `FST_POOL_BAD_OPTIONS`; what the database says
   */
  begin (options?: AcquireOptions & HoldOptions): Promise<Tx<C>>
  /**
   * Waits until `max(1, min)` connections are there. Optional: `acquire` works without it.
   *
   * @throws `FST_POOL_CONNECT_FAILED` as soon as one can't be created, saying why; `FST_POOL_CLOSED`
   */
  open (): Promise<void>
  /**
   * Retires every connection: the idle ones now, the lent ones when they are given back, those being created when they
   * come.
   *
   * @param options.idle only the idle ones
   * @param options.used the lent ones now, too: their leases end, and what runs on them fails. For a known failover
   * @throws `FST_POOL_BAD_OPTIONS` for an unknown option
   */
  evict (options?: { idle?: boolean, used?: boolean }): void
  /**
   * Changes `min` and `max` from now on. Idle connections above the new `max` are destroyed, lent ones when they are
   * given back.
   *
   * @throws `FST_POOL_BAD_OPTIONS`
   */
  resize (options: { min?: number, max?: number }): void
  /** Lends nothing from now on: callers wait, until their deadlines. What is lent stays lent. */
  suspend (): void
  /** Ends `suspend`. */
  resume (): void
  /**
   * Stops keeping idle connections. Callers that wait, and those that still come, are served. Resolves when nobody
   * waits and no connection is used.
   */
  drain (): Promise<void>
  /**
   * Drains and refuses newcomers; then destroys what is still lent, and rejects those that still wait. Always resolves,
   * by `timeout`: leases have until `destroyTimeout` before it, or a quarter of it if that is less.
   *
   * @param options.timeout in ms; `closeTimeout` unless given
   * @throws `FST_POOL_BAD_OPTIONS` (at once: nothing is closed)
   */
  close (options?: { timeout?: number }): Promise<void>
  [Symbol.asyncDispose] (): Promise<void>
  /** A frozen copy of the books. */
  stats (): PoolStats
  /** The leases that are out now, the longest held first. */
  holders (): Holder[]
  /**
   * How the pool is. Asks one idle connection, if there is one and the connector can; never waits for a connection,
   * never opens one.
   */
  health (): Promise<PoolHealth>
  /**
   * Listens to an event. What a listener throws goes to the listeners of `error`.
   *
   * @returns its own undo
   * @throws `FST_POOL_BAD_OPTIONS` for an unknown event
   */
  on<E extends PoolEventName> (event: E, listener: PoolListener<E>): () => void
}
