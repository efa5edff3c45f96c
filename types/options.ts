// The options of one pool without Fastify. Schemas with the same names and defaults: lib/pool/options.ts; a type test
// (test/types/options.test.ts) holds the two equal.
//
// Times are in ms. 0 turns an option off only where its comment says so; a deadline is at least 1. `undefined` is as if
// the option were absent.
import type { HookInfo, WrapInfo } from './pool.js'

/**
 * How long the pool waits after a failed create: a random part of a limit that doubles with each failure (full jitter).
 */
export interface Backoff {
  /** The first limit, in ms. At least 1. Default 50. */
  min?: number | undefined
  /** The highest limit, in ms. At least `min`. Default 1000. */
  max?: number | undefined
}

/**
 * When the circuit breaker of creates opens, and for how long. Creates that were under way together and failed are one
 * failure.
 */
export interface CircuitOptions {
  /** So many failures in a row open it. Default 5. */
  failures?: number | undefined
  /** It opens where more than this part of the last `sample` creates failed: above 0, below 1. Default 0.5. */
  rate?: number | undefined
  /** How many creates `rate` is a part of. Default 20. */
  sample?: number | undefined
  /**
   * It does not open before creates have failed for so long, in ms: since the first failure, with no create that worked
   * between. 0: as soon as `failures` or `rate` says so. Default 1000.
   */
  after?: number | undefined
  /** How long it stays open before the next create, in ms, and up to a tenth longer. At least 1. Default 500. */
  openFor?: number | undefined
}

/** Numbers and switches of one pool. */
export interface EngineNumbers {
  /** Connections that are kept open once the pool is open. Default 0. */
  min?: number | undefined
  /**
   * The most connections at a time: creating, idle, used and closing count. Default 10; of SQLite in memory it is 1.
   */
  max?: number | undefined
  /**
   * `'require'`: the app starts when `max(1, min)` connections are there, or fails, saying why. `'warm'`: they are
   * created in the background, a failure is logged. `'lazy'`: the first acquire creates one. Default `'require'`.
   */
  startup?: 'require' | 'warm' | 'lazy' | undefined
  /**
   * The deadline of one acquire in ms, for all of it together: waiting in line, create, validate and retry. At least 1.
   * Default 5000.
   */
  acquireTimeout?: number | undefined
  /** The deadline of one create, in ms. At least 1. Default 3000. */
  connectTimeout?: number | undefined
  /** The deadline of one `validate`, in ms: past it the connection is destroyed. At least 1. Default 1000. */
  validateTimeout?: number | undefined
  /** The deadline of one `reset`, in ms: past it the connection is destroyed. At least 1. Default 1000. */
  resetTimeout?: number | undefined
  /**
   * How long closing one connection may take, in ms, before it no longer counts against `max`. At least 1. Default
   * 2000.
   */
  destroyTimeout?: number | undefined
  /**
   * The deadline for the commit of a request's transaction (a route's `transaction`, `request.transaction`), in ms.
   * Past it the connection is destroyed: `FST_POOL_COMMIT_TIMEOUT` where COMMIT could not be sent,
   * `FST_POOL_COMMIT_UNKNOWN` where it was. 0: none. Default 5000.
   */
  commitTimeout?: number | undefined
  /**
   * How long a request may hold a connection, in ms. Past it its lease is revoked and the connection destroyed, so that
   * the driver's call ends. Routes may have another one, and upgraded and hijacked requests have none unless their
   * route has; for streamed replies and uploads it starts again when bytes have moved, ten times at most unless the
   * route has its own. Jobs (`acquire` and `use` of the pool itself) have none but their call's. 0: none. Default
   * 60000.
   */
  holdTimeout?: number | undefined
  /** How long `close()` waits for used connections before it destroys them, in ms. At least 1. Default 8000. */
  closeTimeout?: number | undefined
  /** A connection that was idle for so long is closed, in ms, but never below `min`. 0: never. Default 60000. */
  idleTimeout?: number | undefined
  /**
   * A connection of this age is closed when it is idle next, in ms; up to 10 % sooner, so that not all are closed at
   * once. 0: never. Default 1800000.
   */
  maxLifetime?: number | undefined
  /** A connection that was lent this many times is closed. 0: never. Default 0. */
  maxUses?: number | undefined
  /**
   * A connection that was idle for longer than this is validated before it is lent, in ms. 0: every one that was idle;
   * one that is new, or goes straight from one caller to the next, is not. Default 1000.
   */
  validateAfter?: number | undefined
  /** An idle connection is validated this often, in ms, so that firewalls don't forget it. 0: never. Default 0. */
  keepalive?: number | undefined
  /**
   * The most callers that wait: the next one is refused at once with `FST_POOL_QUEUE_FULL`. 0: nobody ever waits.
   * Default 1000.
   */
  maxPending?: number | undefined
  /**
   * The most creates under way at a time. At least 1. Default `max`. A create is begun where it pays: for a caller that
   * would wait as long as a connect takes, by how long connects took and leases were held within the last minute (each
   * caller that waits, where that is not known), and for one that has waited so long.
   */
  maxConnecting?: number | undefined
  /** A lease that is held for longer than this is reported by a `leak` event, in ms. 0: never. Default 0. */
  leakAfter?: number | undefined
  /** How long to wait after a failed create. Default `{ min: 50, max: 1000 }`. */
  backoff?: Backoff | undefined
  /**
   * The circuit breaker of creates: where too many fail, it opens. Then, while there is no connection, acquires are
   * refused at once with `FST_POOL_CIRCUIT_OPEN`, and one create at a time is tried. One that succeeds closes it.
   * `false`: none. Default: an object with the defaults of its members.
   */
  circuit?: false | CircuitOptions | undefined
  /**
   * Whether an acquire is refused at once with `FST_POOL_OVERLOADED` where the recent pace of the line says that its
   * deadline will pass before its turn. Default true.
   */
  overload?: boolean | undefined
  /**
   * Whether the process may end while connections are idle, none is lent, and nobody waits: for scripts and tests that
   * forget to close the pool. Not with MongoDB, whose driver keeps its sockets to itself. Default true.
   */
  allowExitOnIdle?: boolean | undefined
  /**
   * What the next borrower must not see. `'session'`: anything that the last one left. `'transaction'`: only an open
   * transaction. `'none'`: nothing is undone. `'joined'`, for PostgreSQL alone: as `'session'`, sent in front of the
   * next borrower's first statement. Default `'session'`.
   */
  reset?: 'session' | 'transaction' | 'none' | 'joined' | undefined
}

/**
 * Functions of the app in a connection's life. Where one throws or rejects, the connection is treated as if that phase
 * had failed.
 */
export interface PoolHooks<C = unknown> {
  /**
   * After a connection was created, and again after each session reset, before it is lent: settings that every borrower
   * should find.
   */
  onConnect? (connection: C, info: HookInfo): unknown
  /**
   * Before a connection is lent; a promise is waited for. Where it returns `false`, or a promise of it, the connection
   * is destroyed with reason 'invalid', and the caller gets another one.
   */
  onAcquire? (connection: C, info: HookInfo): unknown
  /** When a connection comes back, before its reset. */
  onRelease? (connection: C, info: HookInfo): unknown
  /** Before a connection is destroyed; `info.reason` says why. */
  onDisconnect? (connection: C, info: HookInfo): unknown
  /**
   * What borrowers get instead of the connection: a query builder or an ORM over it. Called once for each connection,
   * after `onConnect`. The other hooks get the connection itself. In a transaction of MongoDB it is called again, with
   * the `Db` that is bound to the session. `lease.raw` is the connection itself all the same. Adapters:
   * `fastify-pool/kysely`, `/drizzle`, `/knex`, `/mongoose`.
   */
  wrap? (connection: C, info: WrapInfo): unknown
}

/** Options that the driver gets as they are. */
export type DriverOptions = Readonly<Record<string, unknown>>

/** Where the database is, and as whom to log in. */
export interface Address {
  /**
   * Where the database is: `'redis://localhost:6379'`; for SQLite the file, or `':memory:'`. Not together with `host`
   * and `port`. A function is called at each create: for passwords that change. With a `connector` the pool only reads
   * what is secret in it, so that no error or event shows it. Unlike other options it may not be `undefined`: leave it
   * out, or an environment variable that is not set would lead to a server on this machine.
   */
  url?: string | (() => string | Promise<string>)
  /** Where the database is, instead of `url`. */
  host?: string | undefined
  /** Where the database is, instead of `url`. 1 to 65535. */
  port?: number | undefined
  /** Which database, where the url names none or another. Redis' have numbers: `2`, or `'2'`. */
  database?: string | number | undefined
  /**
   * The driver's own options, which it gets as they are: `tls`, `authSource`, ... A function is called at each create.
   * Default `{}`.
   */
  connection?: DriverOptions | (() => DriverOptions | Promise<DriverOptions>) | undefined
}

/** Options of a pool that is used without Fastify: `new Pool(connector, options)`. */
export interface EngineOptions<C = unknown> extends EngineNumbers, Address, PoolHooks<C> {
  /** What errors, events and stats call it. Default `'db'`. */
  name?: string | undefined
}

/** Which target of a role the next lease is of. */
export type Balance = 'weighted' | 'round-robin' | 'least-used' | 'random'

/** How a pool over several servers divides its leases. */
export interface BalanceOptions {
  /**
   * Which target of a role the next lease is of. `'weighted'`: in turn, in proportion to their weights (smooth weighted
   * round robin). `'round-robin'`: in turn. `'least-used'`: the one with the fewest leases for its weight. `'random'`:
   * by chance, in proportion to their weights. Default `'weighted'`.
   */
  balance?: Balance | undefined
  /**
   * Replicas that are further behind than this are left out: in ms (PostgreSQL, MySQL), or in bytes of the replication
   * stream (Redis). At least 1. Default: no limit.
   */
  maxLag?: number | undefined
  /** How often each target is asked for its role and its lag, in ms. At least 1. Default 1000. */
  checkInterval?: number | undefined
}
