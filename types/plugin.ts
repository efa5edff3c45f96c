// The plugin's options. Schemas with the same names and defaults: lib/fastify/options.ts; a type test
// (test/types/options.test.ts) holds the two equal.
import type { FastifyRequest } from 'fastify'
import type { Connector, Isolation, Role, TargetRole } from './connector.js'
import type { Client, Connection, Db, Redis } from './drivers.js'
import type { Address, BalanceOptions, EngineNumbers, PoolHooks } from './options.js'
import type { PoolEventName } from './pool.js'

/** A backend that is built in. */
export type Backend = 'mongodb' | 'redis' | 'postgresql' | 'postgres' | 'mysql' | 'sqlite'

/** A route's own transaction: how it begins, and which replies commit it. */
export interface RouteTransaction {
  /** Default: the database's own. */
  isolation?: Isolation | undefined
  /** It may only read. Default false. */
  readOnly?: boolean | undefined
  /**
   * Which replies commit it. `'success'`: those with a status below 400. `'reply'`: all that the handler sends; only
   * where it throws is it rolled back. Default `'success'`.
   */
  commitOn?: 'success' | 'reply' | undefined
  /** The deadline of the commit in ms; 0: none. Default: the pool's `commitTimeout`. */
  commitTimeout?: number | undefined
}

/** When routes lease a connection, and until when. */
export interface Policy {
  /**
   * When the request takes its connection. `'preHandler'`: after its body was read and validated. `'manual'`: only when
   * the handler calls `request.acquire(name)`. Default `'onRequest'`.
   */
  acquire: 'onRequest' | 'preHandler' | 'manual'
  /**
   * When it goes back. `'onSend'`: before the reply is sent, so that a slow reader holds no connection. Default
   * `'onResponse'`.
   */
  release: 'onResponse' | 'onSend'
  /**
   * The whole request in one transaction: begun when the connection is taken, committed before the reply is sent.
   * Default false.
   */
  transaction: boolean | RouteTransaction
  /**
   * Which kind of connection, where the pool has two. Default: GET and HEAD read from a `'replica'`; other methods, and
   * transactions that may write, get the `'primary'`.
   */
  role?: Role | undefined
  /**
   * How long a request may hold the connection, in ms, before its lease is revoked and the connection destroyed; 0: as
   * long as it likes. In a route's `config.pools` it holds for upgraded and hijacked requests too, and bytes that move
   * start it again as often as they like. Default: the pool's `holdTimeout`.
   */
  holdTimeout?: number | undefined
}

/** A policy as a pool or the plugin states it: what it leaves out has its default. */
export type PartialPolicy = { [K in keyof Policy]?: Policy[K] | undefined }

/** Which driver a backend uses. */
export interface DriverOption {
  /**
   * The driver itself, as the app has imported it: `pg`, `mysql2`, `ioredis`, `mongodb` (or `mongoose.mongo`), for
   * SQLite its class or its name. For bundles, and where the app has a copy of its own. Default: the installed package,
   * found from here, else from the app.
   */
  driver?: object | 'better-sqlite3' | 'libsql' | 'node:sqlite' | undefined
}

/** Fair shares among requests of different keys. */
export interface BulkheadOptions {
  /** A tenant, a route: whatever has a share. `undefined`: this request has no limit. */
  key: (request: FastifyRequest) => string | undefined
  /** The most connections of the pool that requests with the same key have at a time. At least 1. */
  max: number
}

/** Where the key of a request that reads its own writes comes from: exactly one of the three. */
export interface StickyOptions {
  /** The name of a cookie. */
  cookie?: string | undefined
  /** The name of a header. */
  header?: string | undefined
  /** `undefined`: the request has no key. */
  key?: ((request: FastifyRequest) => string | undefined) | undefined
}

/** What a pool asks of a request. */
export interface RequestOptions {
  /**
   * The policy of this pool; what it leaves out is as in the plugin's. `false`: no route leases it unless its config
   * says so.
   */
  lease?: false | PartialPolicy | undefined
  /**
   * Fair shares: requests with the same key (a tenant, a route) have `max` of the pool's connections at most, and wait
   * for each other beyond that. A key of `undefined` has no such limit.
   */
  bulkhead?: BulkheadOptions | undefined
  /**
   * Read your writes: after a request that took a connection of the primary, those with the same key get it too, for
   * `stickyFor` ms.
   */
  sticky?: StickyOptions | undefined
  /** How long `sticky` lasts, in ms, from the end of the last write. At least 1. Default 5000. */
  stickyFor?: number | undefined
  /**
   * Where the servers are peers: requests with the same key get the same server (rendezvous hashing, by weight), in all
   * processes. When a server fails only its own keys move, and they come back with it. `undefined`: whichever server's
   * turn it is. Asked when a request takes its connection; it must be quick, and not async. Default: none.
   */
  affinity?: ((request: FastifyRequest) => string | undefined) | undefined
}

/** A pool for each tenant. */
export interface TenantRules {
  /**
   * Whose pool a request uses, asked when it takes its connection. `undefined`: the request leases nothing, and
   * `request.<name>` throws `FST_POOL_NOT_LEASED` with status 400. At most 256 bytes.
   */
  key?: ((request: FastifyRequest) => string | undefined) | undefined
  /**
   * What the tenant's pool has besides the options of all: its address above all. May be async. A key for which it
   * throws or rejects is remembered for 10 s. Its request gets that error where it has a `statusCode`, else
   * `FST_POOL_CONNECT_FAILED`.
   */
  options?: ((key: string) => TenantOptions | Promise<TenantOptions>) | undefined
  /**
   * The most pools that are open. For one more, the one that was used longest ago is closed, unless somebody holds a
   * connection of it, or waits for one: where that is so of all, `FST_POOL_QUEUE_FULL`. Default 100.
   */
  maxPools?: number | undefined
  /** A pool that has not been used for so long is closed, in ms. Default 600000. */
  idlePoolTimeout?: number | undefined
  /** The most connections of all tenants' pools together. Default: as many as the pools may have. Not for SQLite. */
  maxTotal?: number | undefined
  /** Whether stats, events and the log show the keys; else they show hashes. Default false. */
  showKeys?: boolean | undefined
}

/** The options of one tenant's pool: those of a pool, but for what is of all tenants together. */
export type TenantOptions = Partial<Omit<CommonPoolOptions, keyof TenantRules | keyof RequestOptions | 'startup'>> & {
  targets?: ReadonlyArray<Omit<Target, 'connector'>> | undefined
  /** How its connections are made, where the pool has no `backend`. */
  connector?: Connector<any> | undefined
}

/** One server of a pool over several. */
export interface Target<C = unknown> extends DriverOption, Address {
  /** What events, stats and errors call it. Default: its role and its place in the list, `'primary-0'`. */
  name?: string | undefined
  /**
   * What it is for, until it has been asked itself. `'peer'`: it is equal to all others, which must be peers too, takes
   * reads and writes, and is not asked for its role. Default `'primary'`; with `discover` and no `targets`, `'peer'`.
   */
  role?: TargetRole | undefined
  /** Its share beside the others of its role. Above 0. Default 1. */
  weight?: number | undefined
  /** Its connections at most. Default: the pool's `max`. */
  max?: number | undefined
  /** How its connections are made, where the pool has no `backend`. */
  connector?: Connector<C> | undefined
}

/** What the options of any pool have. */
export interface CommonPoolOptions<C = unknown>
  extends EngineNumbers, DriverOption, Address, RequestOptions, BalanceOptions, TenantRules, PoolHooks<C> {
  /**
   * By which name the server shows the pool's connections to whoever looks at them: PostgreSQL's `application_name`,
   * MySQL's connect attribute `program_name`, Redis' client name, MongoDB's `appName`. What `url`, `connection` or the
   * environment (`PGAPPNAME`) says comes first. Default: the name in the app's package.json.
   */
  appName?: string | undefined
  /**
   * `'dns'`: each peer or replica whose address is a host name stands for all addresses of that name, up to 100. The
   * name is asked again each `checkInterval`; servers come and go without harm to requests. TLS checks the name.
   * Without `targets` the pool's own address is a name of peers. Default: a host name is one server.
   */
  discover?: 'dns' | undefined
}

/** What the hooks of a pool with this backend get: the driver's own object. */
type DriverConnection<B extends Backend> = {
  mongodb: Db, redis: Redis, postgresql: Client, postgres: Client, mysql: Connection, sqlite: any
}[B]

/** The options of a pool with one of the backends that are built in. */
type BackendPoolOptions<C, B extends Backend> = CommonPoolOptions<unknown extends C ? DriverConnection<B> : C> & {
  /** The database: `'mongodb'`, `'redis'`, `'postgresql'` (or `'postgres'`), `'mysql'` (MariaDB too) or `'sqlite'`. */
  backend: B
  connector?: undefined
  /**
   * The servers, where there are several: each with an address of its own; what it leaves out of that is the pool's.
   */
  targets?: ReadonlyArray<Omit<Target<C>, 'connector'>> | undefined
}

/** One pool's options: of a `backend` that is built in, or of a `connector` of the app's own. */
export type PoolOptions<C = unknown> = CommonPoolOptions<C> & ({
  /** A pool for each tenant: the options of each have a `connector`. */
  key: NonNullable<TenantRules['key']>
  options: NonNullable<TenantRules['options']>
  backend?: undefined
  connector?: undefined
  targets?: undefined
} | {
  /** Several servers of any other kind, each with a connector of its own. */
  targets: ReadonlyArray<Target<C> & { connector: Connector<C> }>
  backend?: undefined
  connector?: undefined
} | {
  /** How to make and unmake connections of any other kind. */
  connector: Connector<C>
  backend?: undefined
  targets?: undefined
}) | { [B in Backend]: BackendPoolOptions<C, B> }[Backend]

/** A level of Fastify's logger, or `false`: not logged. */
export type LogLevel = 'fatal' | 'error' | 'warn' | 'info' | 'debug' | 'trace' | false

/** The routes that an orchestrator asks. They lease no connection, and Fastify logs them at `warn` and above only. */
export interface HealthRoutes {
  /** 200 as long as the process answers; never asks a pool. Default `'/livez'`. */
  live?: string | undefined
  /**
   * How the pools of the scope are: 503 while one drains or the app closes, and while a pool of `downIs503` is down.
   * Default `'/readyz'`.
   */
  ready?: string | undefined
  /**
   * The pools without which the process can't serve. Default none: all processes share one database, and if none is
   * ready while it is away, nobody tells the clients why.
   */
  downIs503?: string[] | undefined
}

/** Where the pools' numbers for OpenTelemetry go. */
export interface OtelOptions {
  /** A meter of @opentelemetry/api. Default: the one of the global provider, which has to be there at `register`. */
  meter?: object | undefined
}

/** Where the pools' numbers for Prometheus go. */
export interface PrometheusOptions {
  /** A registry of prom-client. Default: prom-client's own, which fastify-metrics uses, too. */
  register?: object | undefined
}

/** A line of the log's story: its field `event`. */
export type StoryLine =
  'pool.open' | 'pool.exhausted' | 'pool.exhausted.end' | 'pool.down' | 'pool.up' | 'pool.died' | 'pool.leak' |
  'pool.leak.end' | 'pool.leak.taken' | 'pool.hold' | 'pool.overdue' | 'pool.deadlock' | 'pool.lag' |
  'pool.failover' | 'pool.limit' | 'pool.limit.end' | 'pool.closing' | 'pool.error' |
  'pool.advice'

/** What the plugin's options have beside its pools. */
export interface CommonPluginOptions {
  /**
   * Which connections a request leases by itself, and when; what it leaves out has its default. `false`: none unless
   * the route's config says so. Default `{ acquire: 'onRequest', release: 'onResponse', transaction: false }`.
   */
  lease?: false | PartialPolicy | undefined
  /**
   * How long a request that ended abnormally (the client went away) may go on using its connection, in ms, before that
   * is destroyed. 0: destroyed at once, as behind an upgraded or hijacked socket. Default 5000.
   */
  abortGrace?: number | undefined
  /**
   * A request whose body is not in after this many ms gives its untouched connections back until it is; before that,
   * as soon as somebody waits for one. 0: unless the body is there already. Default 1000.
   */
  bodyGrace?: number | undefined
  /**
   * How long connections that a request has used wait for its client to read the reply, in ms, once all of that is
   * written. 0: not at all. Default 1000.
   */
  replyGrace?: number | undefined
  /** Adds routes for liveness and readiness to the scope of this registration. Default false. */
  healthRoutes?: boolean | HealthRoutes | undefined
  /**
   * Adds the numbers of this scope's pools to a meter of OpenTelemetry, as its semantic conventions name them. Default
   * false. Needs the package `@opentelemetry/api`, unless `meter` is given.
   */
  otel?: boolean | OtelOptions | undefined
  /**
   * Adds the numbers of this scope's pools to a registry of prom-client, read when it is collected. Default false.
   * Needs the package `prom-client`, unless `register` is given.
   */
  prometheus?: boolean | PrometheusOptions | undefined
  /**
   * Tells in the header `Server-Timing` of each reply for how long its request waited for connections of this scope's
   * pools, and held them until then: `db-wait;dur=2.5, db;dur=11.02`, in ms. Clients can read it. Default false.
   */
  serverTiming?: boolean | undefined
  /**
   * At which level of Fastify's logger a line is logged: of a single event (`acquire`), or of the story of what lasts
   * and what needs somebody (`'pool.exhausted'`). Those left out have their defaults. `false`, for one or for all: not
   * at all.
   */
  log?: false | { [E in PoolEventName | StoryLine]?: LogLevel | undefined } | undefined
}

/** The plugin's options: the options of one pool, or several pools in a map. */
export type PluginOptions =
  (CommonPluginOptions & PoolOptions & {
    /** The name of the one pool. Default `'db'`. */
    name?: string | undefined
    /**
     * Not beside the options of one pool: `register` refuses it. (Were it `undefined` here, the compiler would tell of
     * each mistake in a map that it is not assignable to that.)
     */
    pools?: Record<string, PoolOptions> | undefined
  }) |
  (CommonPluginOptions & {
    /** The pools, by name: `request[name]` is the connection. In the order in which a request takes its connections. */
    pools: Record<string, PoolOptions>
  })
