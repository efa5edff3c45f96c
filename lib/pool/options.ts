// All options: what they are (schemas), their defaults, and the check. The types are derived from the schemas, comments included.
//
// The schemas are plain JSON Schema, checked and typed by `typebox/schema`. TypeBox's builder (`Type.Object(...)`, package root) describes
// the same schemas, but importing it costs twice as long, and its checker comes on top.
import type { FastifyRequest } from 'fastify'
import { Check, type XStatic } from 'typebox/schema'
import type { Connector } from '../../types/connector.js'
import type { HookInfo, PoolEventName, WrapInfo } from '../../types/pool.js'
import { PoolError, badOption, show } from './errors.js'

// --- Schemas --------------------------------------------------------------------------------------------------------------------------

/** The longest delay of Node's timers: a longer one fires after 1 ms (https://nodejs.org/api/timers.html#settimeoutcallback-delay-args). */
const longest = 2 ** 31 - 1

/** A time that 0 does not turn off. */
const deadline = (ms: number) => ({ type: 'number', minimum: 1, maximum: longest, default: ms }) as const
const deadlineOnly = { type: 'number', minimum: 1, maximum: longest } as const
const time = (ms: number) => ({ type: 'number', minimum: 0, maximum: longest, default: ms }) as const
const timeOnly = { type: 'number', minimum: 0, maximum: longest } as const
const optionalFunction = { type: 'function' } as const
const nameSchema = { type: 'string', pattern: '^[A-Za-z_$][\\w$-]*$', title: "a name of letters, digits, '_', '$' and '-', a letter first" } as const

const policyProperties = {
  /**
   * When the request takes its connection. `'preHandler'`: after its body was read and validated. `'manual'`: only when the handler calls
   * `request.acquire(name)`. Default `'onRequest'`.
   */
  acquire: { enum: ['onRequest', 'preHandler', 'manual'] },
  /** When it goes back. `'onSend'`: before the reply is sent, so that a slow reader holds no connection. Default `'onResponse'`. */
  release: { enum: ['onResponse', 'onSend'] },
  /** The whole request in one transaction: begun when the connection is taken, committed before the reply is sent. Default false. */
  transaction: {
    anyOf: [{ type: 'boolean' }, {
      type: 'object',
      properties: {
        /** Default: the database's own. */
        isolation: { enum: ['read uncommitted', 'read committed', 'repeatable read', 'serializable', 'snapshot'] },
        /** It may only read. Default false. */
        readOnly: { type: 'boolean' },
        /**
         * Which replies commit it. `'success'`: those with a status below 400. `'reply'`: all that the handler sends; only what it throws is rolled back.
         * Default `'success'`.
         */
        commitOn: { enum: ['success', 'reply'] },
        /** Deadline of the commit in ms; 0: none. Default: the pool's `commitTimeout`. */
        commitTimeout: timeOnly,
      },
      additionalProperties: false,
    }],
  },
  /**
   * Which connection, where the pool has two kinds of them. Default: GET and HEAD read from a `'replica'`; other methods, and transactions that may write, get the
   * `'primary'`.
   */
  role: { enum: ['primary', 'replica'] },
} as const

const policySchema = { type: 'object', properties: policyProperties, additionalProperties: false } as const
const policyOrFalse = { anyOf: [{ const: false }, policySchema] } as const

const addressProperties = {
  // What `url` and `connection` are, `Address` below says: a schema has no words for what a function returns.
  url: { anyOf: [optionalFunction, { type: 'string', minLength: 1 }], title: 'a text that is not empty, or a function that returns one' },
  /** Where the database is, instead of `url`. */
  host: { type: 'string', pattern: '^[^\\s@]+$', title: 'a host name, nothing else' },
  /** Where the database is, instead of `url`. 1 to 65535. */
  port: { type: 'integer', minimum: 1, maximum: 65535 },
  /** Which database, where the url does not say it, or says another. */
  database: { type: 'string', minLength: 1, title: 'a text that is not empty' },
  connection: { anyOf: [optionalFunction, { type: 'object' }], default: Object.freeze({}), title: 'an object, or a function that returns one' },
} as const

const engineProperties = {
  ...addressProperties,
  /** Connections that are always there, once the pool is open. Default 0. */
  min: { type: 'integer', minimum: 0, default: 0 },
  /** Connections that there are at most, whatever they do: creating, idle, used and closing. Default 10; for SQLite in memory it is 1. */
  max: { type: 'integer', minimum: 1, default: 10 },
  /**
   * `'require'`: the app starts when `max(1, min)` connections are there, or fails, saying why. `'warm'`: they are made in the background,
   * a failure is logged. `'lazy'`: the first acquire makes one. Default `'require'`.
   */
  startup: { enum: ['require', 'warm', 'lazy'], default: 'require' },
  /** Deadline of one acquire in ms, for all of it: waiting in line, creating, validating and trying again. At least 1. Default 5000. */
  acquireTimeout: deadline(5000),
  /** Deadline for creating one connection, in ms. At least 1. Default 3000. */
  connectTimeout: deadline(3000),
  /** Deadline for one `validate`, in ms: who takes longer is dead. At least 1. Default 1000. */
  validateTimeout: deadline(1000),
  /** Deadline for one `reset`, in ms: who takes longer is destroyed. At least 1. Default 1000. */
  resetTimeout: deadline(1000),
  /** How long closing one connection may take, in ms, before it no longer counts against `max`. At least 1. Default 2000. */
  destroyTimeout: deadline(2000),
  /**
   * Deadline for the commit of a request's transaction (a route's `transaction`, `request.transaction`), in ms. Past it
   * the connection is destroyed: `FST_POOL_COMMIT_TIMEOUT` where COMMIT could not be sent, `FST_POOL_COMMIT_UNKNOWN`
   * where it was. 0: none. Default 5000.
   */
  commitTimeout: time(5000),
  /** How long `close()` waits for connections that are still used, in ms, before it destroys them. At least 1. Default 8000. */
  closeTimeout: deadline(8000),
  /** A connection that was idle this long is closed, in ms, but never below `min`. 0: never. Default 60000. */
  idleTimeout: time(60_000),
  /** A connection this old is closed, in ms, when it is idle next; up to 10 % sooner, so that not all go at once. 0: never. Default 1800000. */
  maxLifetime: time(1_800_000),
  /** A connection that was lent this often is closed. 0: never. Default 0. */
  maxUses: { type: 'integer', minimum: 0, default: 0 },
  /** A connection that was idle for longer than this is validated before it is lent, in ms. 0: every time. Default 1000. */
  validateAfter: time(1000),
  /** An idle connection is validated this often, in ms, so that firewalls don't forget it. 0: never. Default 0. */
  keepalive: time(0),
  /** Callers that wait at most: the next one is refused at once with `FST_POOL_QUEUE_FULL`. 0: nobody ever waits. Default 1000. */
  maxPending: { type: 'integer', minimum: 0, default: 1000 },
  /** Connections that are created at the same time, at most. At least 1. Default `max`. */
  maxConnecting: { type: 'integer', minimum: 1 },
  /** A lease that is out for longer than this is reported by a `leak` event, in ms. 0: never. Default 0. */
  leakAfter: time(0),
  /** How long to wait after a create that failed: from `min`, doubling up to `max`, a random part of it. Default `{ min: 50, max: 1000 }`. */
  backoff: {
    type: 'object',
    properties: {
      /** The first wait, in ms. At least 1. Default 50. */
      min: deadline(50),
      /** The longest wait, in ms. At least `min`. Default 1000. */
      max: deadline(1000),
    },
    additionalProperties: false,
    default: {},
  },
  /**
   * The circuit breaker of creates. It opens where so many fail one after the other, or too large a part of them does; then nobody waits for a connection
   * that can't be made: without one, acquires are refused at once with `FST_POOL_CIRCUIT_OPEN`, and one create by itself tries again and again. One that
   * succeeds closes it. `false`: there is none.
   */
  circuit: {
    anyOf: [{ const: false }, {
      type: 'object',
      properties: {
        /** So many failed creates in a row open it. Default 5. */
        failures: { type: 'integer', minimum: 1, default: 5 },
        /** More than such a part of the last `sample` creates opens it: more than 0, less than 1. Default 0.5. */
        rate: { type: 'number', exclusiveMinimum: 0, exclusiveMaximum: 1, default: 0.5, title: 'a number between 0 and 1' },
        /** How many creates `rate` is of. Default 20. */
        sample: { type: 'integer', minimum: 1, default: 20 },
        /** How long it stays open before the next create, in ms, and up to a tenth longer. At least 1. Default 500. */
        openFor: deadline(500),
      },
      additionalProperties: false,
    }],
    default: {},
  },
  /**
   * Whether an acquire is refused at once with `FST_POOL_OVERLOADED` where the recent pace of the line says that its deadline will pass before its turn.
   * Default true.
   */
  overload: { type: 'boolean', default: true },
  /**
   * What the next borrower must not see. `'session'`: anything the last one left. `'transaction'`: only that no transaction is open.
   * `'none'`: nothing is undone. Default `'session'`.
   */
  reset: { enum: ['session', 'transaction', 'none'], default: 'session' },
} as const

const hookProperties = {
  onConnect: optionalFunction, onAcquire: optionalFunction, onRelease: optionalFunction, onDisconnect: optionalFunction, wrap: optionalFunction,
} as const

/** Of each pool's own. */
const leaseProperties = {
  /** The policy of this pool; what it leaves out is as in the plugin's. `false`: no route leases it unless its config says so. */
  lease: policyOrFalse,
} as const

/** Of a pool in Fastify: what is asked of a request, `Shares` below says. */
const shareProperties = {
  bulkhead: {
    type: 'object',
    required: ['key', 'max'],
    properties: { key: optionalFunction, max: { type: 'integer', minimum: 1 } },
    additionalProperties: false,
    title: 'an object with key and max',
  },
} as const

const balances = ['weighted', 'round-robin', 'least-used', 'random'] as const

/** Of a pool over several servers. */
const balanceProperties = {
  /**
   * Which target of a role the next lease is of. `'weighted'`: in turn, in proportion to their weights. `'round-robin'`: in turn. `'least-used'`: the one
   * with the fewest leases for its weight. `'random'`: by chance, in proportion to their weights. Default `'weighted'`.
   */
  balance: { enum: balances },
  /**
   * Replicas that are further behind than this are left out: in ms (PostgreSQL, MySQL), or in bytes of the replication stream (Redis). At least 1.
   * Default: however far.
   */
  maxLag: deadlineOnly,
  /** How often each target is asked for its role and its lag, in ms. At least 1. Default 1000. */
  checkInterval: deadlineOnly,
  /**
   * Read your writes: after a request that took a connection of the primary, those with the same key get it too, for `stickyFor`. The key is the value of a
   * cookie, of a header, or what a function of the request returns (undefined: none).
   */
  sticky: {
    type: 'object',
    properties: {
      cookie: { type: 'string', minLength: 1, title: 'the name of a cookie' },
      header: { type: 'string', minLength: 1, title: 'the name of a header' },
      key: optionalFunction,
    },
    additionalProperties: false,
  },
  /** How long, in ms, from the end of the last write. At least 1. Default 5000. */
  stickyFor: deadlineOnly,
} as const

const driverProperties = {
  // What it may be depends on the backend, which says so itself.
  driver: {
    anyOf: [optionalFunction, { anyOf: [{ enum: ['better-sqlite3', 'libsql', 'node:sqlite'] }, { type: 'object' }] }],
    title: "the driver's module or class, or of sqlite 'better-sqlite3', 'libsql' or 'node:sqlite'",
  },
} as const

const targetProperties = {
  /** What events, stats and errors call it. Default: its role and its place in the list, `'primary-0'`. */
  name: nameSchema,
  ...addressProperties,
  // Without a default: what a target leaves out is the pool's.
  connection: { anyOf: addressProperties.connection.anyOf, title: addressProperties.connection.title },
  /** What it is for, until it has been asked itself. Default `'primary'`. */
  role: { enum: ['primary', 'replica'] },
  /** Its share beside the others of its role. More than 0. Default 1. */
  weight: { type: 'number', exclusiveMinimum: 0, title: 'a number above 0' },
  ...driverProperties,
  /** Its connections at most. Default: the pool's `max`. */
  max: { type: 'integer', minimum: 1 },
} as const

const connectorSchema = {
  type: 'object',
  required: ['system', 'create', 'destroy'],
  properties: {
    system: { type: 'string', minLength: 1, title: "a text, such as 'ldap'" },
    create: optionalFunction,
    destroy: optionalFunction,
    validate: optionalFunction,
    isBroken: optionalFunction,
    reset: optionalFunction,
    onDeath: optionalFunction,
    onDriverEvent: optionalFunction,
    close: optionalFunction,
    transactions: {
      type: 'object',
      required: ['isolation', 'readOnly', 'begin', 'isTransient'],
      properties: { isolation: { type: 'array', title: 'a list of levels' }, readOnly: { type: 'boolean' }, begin: optionalFunction, isTransient: optionalFunction },
      title: 'an object with isolation, readOnly, begin and isTransient',
    },
    replica: { type: 'object', title: 'another connector' },
    isTransient: optionalFunction,
    inspect: optionalFunction,
    max: { type: 'integer', minimum: 1 },
    secrets: { type: 'array', title: 'a list of texts' },
  },
  title: 'an object with system, create and destroy',
} as const

const backendSchema = { enum: ['mongodb', 'redis', 'postgresql', 'postgres', 'mysql', 'sqlite'] } as const
const level = { enum: ['fatal', 'error', 'warn', 'info', 'debug', 'trace', false] } as const

const pluginProperties = {
  /**
   * Which connections a request leases by itself, and when; what it leaves out has its default. `false`: none unless the route's config says
   * so. Default `{ acquire: 'onRequest', release: 'onResponse', transaction: false }`.
   */
  lease: policyOrFalse,
  /**
   * How long a request that ended abnormally (the client went away) may go on using its connection, in ms, before that is destroyed. 0: destroyed
   * at once. Default 5000.
   */
  abortGrace: time(5000),
  /**
   * A request whose body is not in after this many ms gives its untouched connections back until it is. 0: unless the body is there already.
   * Default 1000.
   */
  bodyGrace: time(1000),
  /** At which level of Fastify's logger an event is logged; those left out have their defaults. `false`, for one event or for all: not at all. */
  log: {
    anyOf: [{ const: false }, {
      type: 'object',
      properties: {
        connect: level,
        disconnect: level,
        acquire: level,
        release: level,
        wait: level,
        overflow: level,
        timeout: level,
        refuse: level,
        leak: level,
        unleak: level,
        error: level,
        circuit: level,
        failover: level,
        driver: level,
        open: level,
        drain: level,
        close: level,
      } satisfies Record<PoolEventName, typeof level>,
      additionalProperties: false,
    }],
    default: {},
  },
} as const

const targetSchema = { type: 'object', properties: { connector: connectorSchema, ...targetProperties }, additionalProperties: false } as const
const poolProperties = {
  backend: backendSchema,
  connector: connectorSchema,
  targets: { type: 'array', minItems: 1, items: targetSchema, title: 'a list of at least one target' },
  ...driverProperties,
  ...engineProperties,
  ...hookProperties,
  ...leaseProperties,
  ...shareProperties,
  ...balanceProperties,
} as const

/** One pool's options, as a JSON Schema (with TypeBox's `type: 'function'`). What one option says about another is not in it. */
export const poolOptionsSchema = { type: 'object', properties: poolProperties, additionalProperties: false } as const

/** The plugin's options, as a JSON Schema (with TypeBox's `type: 'function'`). What one option says about another is not in it. */
export const pluginOptionsSchema = {
  anyOf: [{
    type: 'object',
    properties: { pools: { type: 'object', minProperties: 1, additionalProperties: poolOptionsSchema }, ...pluginProperties },
    required: ['pools'],
    additionalProperties: false,
  }, {
    type: 'object',
    properties: { name: nameSchema, ...poolProperties, ...pluginProperties },
    additionalProperties: false,
  }],
} as const

// --- Types ----------------------------------------------------------------------------------------------------------------------------

// Homomorphic, so that an editor shows the schemas' comments: `XStatic` of a whole object loses them.
type Given<P> = { -readonly [K in keyof P]?: Value<P[K]> | undefined }
type Value<S> =
  S extends { readonly anyOf: readonly [infer A, infer B] } ? Value<A> | Value<B> : S extends { readonly properties: infer P } ? Given<P> : XStatic<S>
type Checked<P> =
  { readonly [K in keyof P as P[K] extends { readonly default: unknown } ? K : never]: CheckedValue<P[K]> } &
  { readonly [K in keyof P as P[K] extends { readonly default: unknown } ? never : K]?: CheckedValue<P[K]> | undefined }
type Complete<P> = { readonly [K in keyof P]: Value<P[K]> }
type CheckedValue<S> =
  S extends { readonly anyOf: readonly [infer A, infer B] }
    ? CheckedValue<A> | CheckedValue<B>
    : S extends { readonly properties: infer P } ? Checked<P> : Value<S>

/** A backend that is built in. */
export type Backend = XStatic<typeof backendSchema>

/** Functions of the app in a connection's life. One that throws, or rejects, does to the connection what a failure of that phase does. */
export interface PoolHooks<C = unknown> {
  /** After a connection was created, and again after each session reset, before it is lent: settings that every borrower should find. */
  onConnect? (connection: C, info: HookInfo): unknown
  /** Before a connection is lent; a promise is waited for. */
  onAcquire? (connection: C, info: HookInfo): unknown
  /** When a connection comes back, before its reset. */
  onRelease? (connection: C, info: HookInfo): unknown
  /** Before a connection is destroyed; `info.reason` says why. */
  onDisconnect? (connection: C, info: HookInfo): unknown
  /**
   * What borrowers get instead of the connection: a query builder or an ORM over it. Called once for each connection, after `onConnect`. The other hooks get
   * the connection itself. In a transaction of MongoDB it is called again, with the `Db` that is bound to the session. `lease.raw` is the connection
   * itself all the same. Adapters: `fastify-pool/kysely`, `/drizzle`, `/knex`, `/mongoose`.
   */
  wrap? (connection: C, info: WrapInfo): unknown
}

/** Where the database is, and as whom to log in. */
export interface Address extends Omit<Given<typeof addressProperties>, 'url' | 'connection'> {
  /**
   * Where the database is: `'redis://localhost:6379'`; for SQLite the file, or `':memory:'`. Not together with `host` and `port`.
   * A function is asked at each create: for passwords that change. With a `connector` the pool only reads what is secret in it, so that no error or event
   * shows it.
   */
  url?: string | (() => string | Promise<string>) | undefined
  /** The driver's own options, handed to it untouched: `tls`, `authSource`, ... A function is asked at each create. Default `{}`. */
  connection?: Readonly<Record<string, unknown>> | (() => Readonly<Record<string, unknown>> | Promise<Readonly<Record<string, unknown>>>) | undefined
}

type EngineNumbers = Given<Omit<typeof engineProperties, keyof typeof addressProperties>>

/** Options of a pool that is used without Fastify: `new Pool(connector, options)`. */
export interface EngineOptions<C = unknown> extends EngineNumbers, Address, PoolHooks<C> {
  /** What errors, events and stats call it. Default `'db'`. */
  name?: string | undefined
}

/** One server of a pool over several. */
export interface Target<C = unknown> extends Given<Omit<typeof targetProperties, keyof typeof addressProperties | 'driver'>>, Driven, Address {
  /** How its connections are made, where the pool has no `backend`. */
  connector?: Connector<C> | undefined
}

/** By what a backend reaches its database. */
interface Driven {
  /**
   * The driver itself, as the app has imported it: `pg`, `mysql2`, `ioredis`, `mongodb` (or `mongoose.mongo`), for SQLite its class or its name. For bundles,
   * and where the app has a copy of its own. Default: the installed package, found from here, else from the app.
   */
  driver?: object | 'better-sqlite3' | 'libsql' | 'node:sqlite' | undefined
}

/** What a pool asks of a request. */
interface Shares {
  /**
   * Fair shares: requests with the same key (a tenant, a route) have `max` of the pool's connections at most, and wait for each other beyond that. A key of
   * `undefined` has no such limit.
   */
  bulkhead?: { key: (request: FastifyRequest) => string | undefined, max: number } | undefined
}

interface Sticky {
  sticky?: { cookie?: string | undefined, header?: string | undefined, key?: ((request: FastifyRequest) => string | undefined) | undefined } | undefined
}

interface CommonPoolOptions<C> extends EngineNumbers, Driven, Address, Given<typeof leaseProperties>, Shares, Given<Omit<typeof balanceProperties, 'sticky'>>, Sticky, PoolHooks<C> {}

/** One pool's options: of a `backend` that is built in, or of a `connector` of the app's own. */
export type PoolOptions<C = unknown> = CommonPoolOptions<C> & ({
  /** The database: `'mongodb'`, `'redis'`, `'postgresql'` (or `'postgres'`), `'mysql'` (MariaDB too) or `'sqlite'`. */
  backend: Backend
  connector?: undefined
  /** The servers, where there are several: each with an address of its own; what it leaves out of that is the pool's. */
  targets?: ReadonlyArray<Omit<Target<C>, 'connector'>> | undefined
} | {
  /** How to make and unmake connections of any other kind. */
  connector: Connector<C>
  backend?: undefined
  targets?: undefined
} | {
  /** Several servers of any other kind, each with a connector of its own. */
  targets: ReadonlyArray<Target<C> & { connector: Connector<C> }>
  backend?: undefined
  connector?: undefined
})

/** When routes lease a connection, and until when. */
export interface Policy extends Complete<Omit<typeof policyProperties, 'role'>>, Given<Pick<typeof policyProperties, 'role'>> {}

interface CommonPluginOptions extends Given<typeof pluginProperties> {}

/** The plugin's options: several pools in a map, or the options of one. */
export type PluginOptions =
  (CommonPluginOptions & {
    /** The pools, by name: `request[name]` is the connection. In the order in which a request takes its connections. */
    pools: Record<string, PoolOptions>
  }) |
  (CommonPluginOptions & PoolOptions & {
    /** The name of the one pool. Default `'db'`. */
    name?: string | undefined
    pools?: undefined
  })

/** `config.pools` of a route: none, exactly these, or exactly these with a policy; what a policy leaves out is as in the pool's. */
export type RoutePools = false | readonly string[] | Readonly<Record<string, true | Partial<Policy>>>

/** Checked, complete and frozen. */
export interface ResolvedEngineOptions<C = unknown> extends Checked<Omit<typeof engineProperties, 'url' | 'connection'>>, Readonly<PoolHooks<C>> {
  readonly name: string
  readonly url?: Address['url']
  /** The very object, or function, that was given. */
  readonly connection: NonNullable<Address['connection']>
}

/** Checked, complete and frozen: a pool's own options with the target's address instead of its own. */
export interface ResolvedTarget<C = unknown> {
  readonly name: string
  readonly role: 'primary' | 'replica'
  readonly weight: number
  readonly max: number
  readonly connector?: Connector<C>
  /** What a pool of this target alone would have been given. */
  readonly options: ResolvedPoolOptions<C>
}

/** Checked, complete and frozen. */
export interface ResolvedPoolOptions<C = unknown> extends ResolvedEngineOptions<C> {
  readonly backend?: Backend
  /** What was given, as it was. */
  readonly driver?: NonNullable<Driven['driver']>
  /** The very object that was given. */
  readonly connector?: Connector<C>
  /** Complete: the pool's own policy over the plugin's. */
  readonly lease: Policy | false
  readonly targets?: ReadonlyArray<ResolvedTarget<C>>
  readonly balance: typeof balances[number]
  /** Infinity: however far. */
  readonly maxLag: number
  readonly checkInterval: number
  readonly bulkhead?: NonNullable<Shares['bulkhead']>
  readonly sticky?: NonNullable<Sticky['sticky']>
  readonly stickyFor: number
}

/** Checked, complete and frozen. */
export interface ResolvedPluginOptions {
  /** In the order in which they were given. */
  readonly pools: ReadonlyMap<string, ResolvedPoolOptions>
  readonly lease: Policy | false
  readonly abortGrace: number
  readonly bodyGrace: number
  /** Only what was given; the defaults are the log's. */
  readonly log: false | Readonly<NonNullable<Exclude<CommonPluginOptions['log'], false>>>
}

/** Each pool that a route leases, with what the route says about it. */
export type ResolvedRoutePools = ReadonlyMap<string, Partial<Policy>>

// --- Names ----------------------------------------------------------------------------------------------------------------------------

/** What a request has already: a pool of such a name would hide it. Fastify's own, then ours. */
export const requestProperties: ReadonlySet<string> = new Set([
  'body', 'compileValidationSchema', 'constructor', 'getDecorator', 'getValidationFunction', 'headers', 'host', 'hostname', 'id', 'ip', 'ips',
  'is404', 'log', 'mediaType', 'method', 'originalUrl', 'params', 'port', 'protocol', 'query', 'raw', 'routeOptions', 'server', 'setDecorator',
  'signal', 'socket', 'url', 'validateInput', 'validationError',
  'acquire', 'lease', 'transaction',
])

/** Fastify's own options of `register`: it leaves them in what a plugin is given. */
const registerOptions: ReadonlySet<string> = new Set(['prefix', 'logLevel', 'logSerializers'])

/**
 * @param path where the name was given
 * @throws `FST_POOL_BAD_OPTIONS`: no pool of a request can have that name
 */
export function checkRequestName (name: unknown, path = 'name'): asserts name is string {
  if (!Check(nameSchema, name)) throw badOption(path, name, nameSchema.title)
  if (requestProperties.has(name) || name in Object.prototype) {
    throw new PoolError('FST_POOL_BAD_OPTIONS', `a pool can't have the name '${name}': request.${name} is something else already. Give it another name.`)
  }
}

// --- The check ------------------------------------------------------------------------------------------------------------------------

interface Schema {
  /** What the value must be, as the error says it. */
  readonly title?: string
  readonly type?: string
  readonly const?: unknown
  readonly enum?: readonly unknown[]
  readonly minimum?: number
  readonly maximum?: number
  readonly exclusiveMinimum?: number
  readonly exclusiveMaximum?: number
  readonly minItems?: number
  readonly items?: Schema
  readonly default?: unknown
  readonly properties?: Properties
  readonly required?: readonly string[]
  readonly additionalProperties?: boolean
  /** Only ever: a value, and beside it another kind of value or an object with properties. */
  readonly anyOf?: readonly [Schema, Schema]
}
type Properties = Readonly<Record<string, Schema>>
type Options = Readonly<Record<string, unknown>>

/** What was checked once, so that the plugin can hand it to a pool, which checks for itself. */
const checked = new WeakSet<object>()

/** The schemas' defaults. `maxConnecting` follows `max`; SQLite has others, see there. */
export const poolDefaults = Object.freeze(readAll(engineProperties, {}, '')) as unknown as Omit<ResolvedEngineOptions, 'name'>
const balanceDefaults = Object.freeze({ balance: 'weighted', maxLag: Infinity, checkInterval: 1000, stickyFor: 5000 })
export const defaultPolicy: Policy = Object.freeze({ acquire: 'onRequest', release: 'onResponse', transaction: false })

/**
 * One pool's options, complete and frozen; what is given stays as it is.
 *
 * @param path how the user gets there: 'pools.db', or '' where the options are the plugin's own
 * @throws `FST_POOL_BAD_OPTIONS`, for the first thing that is wrong
 */
export function checkPoolOptions<C = unknown> (
  options: unknown, path: string, { name = 'db', lease = defaultPolicy }: { name?: string, lease?: Policy | false } = {}
): ResolvedPoolOptions<C> {
  const given = readObject(poolProperties, options, path)
  const { lease: own, targets, ...result } = readAll(poolProperties, given, path)
  if (given.backend === undefined && given.connector === undefined && targets === undefined) {
    throw badOption(join(path, 'backend'), undefined, `${expected(backendSchema)}, or a connector or targets instead`)
  }
  for (const other of ['backend', 'targets']) {
    if (given[other] !== undefined && given.connector !== undefined) throw badOption(join(path, 'connector'), given.connector, `none beside ${other}`)
  }
  if (given.driver !== undefined && given.backend === undefined) throw badOption(join(path, 'driver'), given.driver, 'none without backend')
  if (result.backend === 'sqlite') adaptToSqlite(result, given, path)
  checkTogether(result, given, path)
  checkSticky(result, path)
  const complete: Options = { ...balanceDefaults, ...result, name, lease: own === undefined ? lease : mergePolicy(own, lease) }
  if (targets !== undefined) return seal<ResolvedPoolOptions<C>>({ ...complete, targets: Object.freeze(readTargets(targets as Options[], complete, path)) })
  for (const key of Object.keys(balanceProperties)) if (given[key] !== undefined) throw badOption(join(path, key), given[key], 'none without targets')
  return seal<ResolvedPoolOptions<C>>(complete)
}

/** Each with the options of a pool of its own. */
function readTargets (targets: readonly Options[], pool: Options, path: string): ResolvedTarget[] {
  const names = new Set<string>()
  if (pool.backend === 'mongodb' || pool.backend === 'sqlite') {
    throw badOption(join(path, 'targets'), targets, pool.backend === 'sqlite' ? 'none, since sqlite is a file' : 'none, since the url of mongodb lists all members, and connection.readPreference chooses')
  }
  if (pool.max as number < targets.length) throw badOption(join(path, 'max'), pool.max, `at least one connection for each of the ${targets.length} targets`)
  return targets.map((target, index) => {
    const where = join(path, `targets.${index}`)
    const { connector, role = 'primary', weight = 1, max = pool.max, name = `${String(role)}-${index}`, ...address } = target
    if (names.has(name as string)) throw badOption(join(where, 'name'), name, 'a name that no other target has')
    names.add(name as string)
    if (pool.backend !== undefined && connector !== undefined) throw badOption(join(where, 'connector'), connector, 'none beside backend')
    if (pool.backend === undefined && target.driver !== undefined) throw badOption(join(where, 'driver'), target.driver, 'none without backend')
    if (pool.backend === undefined && connector === undefined) throw badOption(join(where, 'connector'), undefined, connectorSchema.title)
    checkAddress(target, where)
    // An address is of one piece: a host of the target's own is not looked up at the pool's url.
    const { url, host, port, ...rest } = pool
    const own = ['url', 'host', 'port'].some((key) => address[key] !== undefined)
    const options = seal<ResolvedPoolOptions>({ ...rest, ...(own ? {} : { url, host, port }), ...address, ...(connector !== undefined && { connector }), max })
    return Object.freeze({ name, role, weight, max, ...(connector !== undefined && { connector }), options }) as unknown as ResolvedTarget
  })
}

/** @throws `FST_POOL_BAD_OPTIONS` */
function checkSticky ({ sticky }: Options, path: string): void {
  if (sticky === undefined || Object.keys(sticky as object).length === 1) return
  throw badOption(join(path, 'sticky'), sticky, 'one of cookie, header and key')
}

/**
 * The options of `new Pool(connector, options)`. Those that come from `checkPoolOptions` are taken as they are.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, for the first thing that is wrong
 */
export function checkEngineOptions<C = unknown> (connector: unknown, options: unknown): ResolvedEngineOptions<C> {
  read(connectorSchema, connector, 'connector')
  if (typeof options === 'object' && options !== null && checked.has(options)) return options as ResolvedEngineOptions<C>
  const properties = { name: { ...nameSchema, default: 'db' }, ...engineProperties, ...hookProperties }
  const given = readObject(properties, options, '')
  const result = readAll(properties, given, '')
  checkTogether(result, given, '')
  return seal<ResolvedEngineOptions<C>>(result)
}

/**
 * The plugin's options, complete and frozen; what is given stays as it is.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, for the first thing that is wrong
 */
export function checkPluginOptions (options: unknown): ResolvedPluginOptions {
  if (!isObject(options)) throw badOption('', options, 'an object')
  // Without a prototype, so that '__proto__' is a name like any other: an unknown one.
  const own: Record<string, unknown> = Object.create(null)
  for (const key in options) if (!registerOptions.has(key)) own[key] = options[key]
  return own.pools === undefined ? checkOnePool(own) : checkPoolMap(own)
}

function checkPoolMap (options: Options): ResolvedPluginOptions {
  for (const key in options) {
    if (options[key] === undefined || key === 'pools' || Object.hasOwn(pluginProperties, key)) continue
    if (key === 'name') throw new PoolError('FST_POOL_BAD_OPTIONS', 'unknown option name: beside pools, whose keys are the names')
    if (Object.hasOwn(poolProperties, key)) throw new PoolError('FST_POOL_BAD_OPTIONS', `unknown option ${key}: it belongs to a pool, pools.<name>.${key}`)
  }
  const { pools: map, ...rest } = readObject({ pools: {}, ...pluginProperties }, options, '')
  const plugin = readPlugin(rest)
  if (!isObject(map)) throw badOption('pools', map, 'an object with the options of each pool by its name')
  const pools = new Map<string, ResolvedPoolOptions>()
  for (const name in map) {
    if (map[name] === undefined) continue
    checkRequestName(name, 'pools.<name>')
    pools.set(name, checkPoolOptions(map[name], `pools.${name}`, { name, lease: plugin.lease }))
  }
  if (pools.size === 0) throw badOption('pools', map, 'at least one pool in it')
  return Object.freeze({ ...plugin, pools })
}

function checkOnePool (options: Options): ResolvedPluginOptions {
  const given = readObject({ pools: {}, name: nameSchema, ...pluginProperties, ...poolProperties }, options, '')
  const part = (properties: Properties) => Object.fromEntries(Object.entries(given).filter(([key]) => Object.hasOwn(properties, key)))
  const plugin = readPlugin(part(pluginProperties))
  const { name = 'db' } = given
  checkRequestName(name, 'name')
  const { lease: _, ...pool } = part(poolProperties)
  return Object.freeze({ ...plugin, pools: new Map([[name, checkPoolOptions(pool, '', { name, lease: plugin.lease })]]) })
}

function readPlugin (given: Options): Omit<ResolvedPluginOptions, 'pools'> {
  const { lease, ...rest } = readAll(pluginProperties, given, '')
  return { ...rest, lease: lease === undefined ? defaultPolicy : mergePolicy(lease, defaultPolicy) } as Omit<ResolvedPluginOptions, 'pools'>
}

/**
 * A route's `config.pools`, in one form: `undefined` where the route says nothing, an empty map where it wants none. Whether pools of those names
 * exist is not asked.
 *
 * @param config the route's `config`
 * @param where 'route GET /a': errors begin with it
 * @throws `FST_POOL_BAD_OPTIONS`
 */
export function readRoutePools (config: unknown, where: string): ResolvedRoutePools | undefined {
  const pools = isObject(config) ? config.pools : undefined
  if (pools === undefined) return undefined
  if (pools === false) return new Map()
  const path = 'config.pools'
  try {
    if (Array.isArray(pools)) return new Map(Array.from(pools as unknown[], (name, index) => [read(nameSchema, name, `${path}.${index}`) as string, {}]))
    if (!isObject(pools)) throw badOption(path, pools, 'false, an array of names, or an object with a policy for each name')
    const result = new Map<string, Partial<Policy>>()
    for (const name in pools) {
      const policy = pools[name]
      if (policy === undefined) continue
      if (policy !== true && !isObject(policy)) {
        throw badOption(join(path, name), policy, 'true or a policy (a route leases exactly the pools that it names)')
      }
      result.set(name, policy === true ? {} : read(policySchema, policy, join(path, name)) as Partial<Policy>)
    }
    return result
  } catch (error) {
    if (!(error instanceof PoolError)) throw error
    throw new PoolError(error.code, `${where}: ${error.message}`)
  }
}

/** Whether such a SQLite url is a database that lives in its connection's memory, and dies with it. */
export function isMemoryUrl (url: unknown): boolean {
  return typeof url === 'string' && /^(:memory:$|file::memory:|file:[^?]*\?(.*&)?mode=memory(&|$))/.test(url)
}

/** What SQLite can't do otherwise, and what it has other defaults for. */
function adaptToSqlite (result: Record<string, unknown>, given: Options, path: string): void {
  for (const key of ['host', 'port']) if (given[key] !== undefined) throw badOption(join(path, key), given[key], 'none, since sqlite is a file (url)')
  for (const key of ['url', 'connection']) if (typeof given[key] === 'function') throw badOption(join(path, key), given[key], 'none, since a file does not change its address')
  if (!isMemoryUrl(given.url)) return
  if (given.max === undefined) result.max = 1
  else if (given.max !== 1) throw badOption(join(path, 'max'), given.max, '1, since a database in memory is its connection')
  for (const key of ['idleTimeout', 'maxLifetime', 'maxUses']) {
    if (given[key] !== undefined && given[key] !== 0) {
      throw badOption(join(path, key), given[key], '0, since a database in memory ends with its connection, and the next one would be empty')
    }
    result[key] = 0
  }
}

/** What one option says about another. The one that was given is to blame. */
function checkTogether (result: Options, given: Options, path: string): void {
  checkAddress(given, path)
  checkRange(result, given, path)
  checkRange(result.backoff as Options, given.backoff as Options | undefined, join(path, 'backoff'))
}

function checkAddress (given: Options, path: string): void {
  const url = given.url !== undefined
  if (url && given.host !== undefined) throw badOption(join(path, 'host'), given.host, 'none beside url')
  if (url && given.port !== undefined) throw badOption(join(path, 'port'), given.port, 'none beside url')
}

/** @throws `FST_POOL_BAD_OPTIONS`: `min` is more than `max` */
function checkRange (result: Options, given: Options | undefined, path: string): void {
  const [min, max] = [result.min as number, result.max as number]
  if (min <= max) return
  throw given?.min === undefined
    ? badOption(join(path, 'max'), max, `at least min (${min})`)
    : badOption(join(path, 'min'), min, `at most max (${max})`)
}

function mergePolicy (own: unknown, outer: Policy | false): Policy | false {
  return own === false ? false : Object.freeze({ ...(outer === false ? defaultPolicy : outer), ...own as Partial<Policy> })
}

function seal<T extends ResolvedEngineOptions<never>> (result: Options): T {
  const sealed = Object.freeze(result)
  checked.add(sealed)
  return sealed as unknown as T
}

// --- Reading by schema ----------------------------------------------------------------------------------------------------------------

/** What is given and not `undefined`. @throws where it is no object, or has names that are not in the schema */
function readObject (properties: Properties, value: unknown, path: string): Options {
  if (!isObject(value)) throw badOption(path, value, 'an object')
  const given: Record<string, unknown> = {}
  // With what it inherits: whoever would read `value.max` finds that too.
  for (const key in value) {
    if (value[key] === undefined) continue
    if (!Object.hasOwn(properties, key)) throw unknownOption(key, Object.keys(properties), path)
    given[key] = value[key]
  }
  return given
}

/** Every option of the schema that is given or has a default. */
function readAll (properties: Properties, given: Options, path: string): Record<string, unknown> {
  const result: Record<string, unknown> = {}
  for (const [key, schema] of Object.entries(properties)) {
    const value = given[key] === undefined ? schema.default : given[key]
    if (value !== undefined) result[key] = read(schema, value, join(path, key))
  }
  return result
}

function read (schema: Schema, value: unknown, path: string): unknown {
  const { anyOf, items, properties } = schema
  if (anyOf !== undefined) {
    if (Check(anyOf[0], value)) return value
    if (!isObject(value) && anyOf[1].properties !== undefined) throw badOption(path, value, expected(schema))
    return read(schema.title === undefined ? anyOf[1] : { ...anyOf[1], title: schema.title }, value, path)
  }
  if (items !== undefined) {
    if (!Array.isArray(value) || value.length < (schema.minItems ?? 0)) throw badOption(path, value, expected(schema))
    return Object.freeze(value.map((item, index) => read(items, item, join(path, String(index)))))
  }
  if (properties === undefined) {
    if (!Check(schema, value)) throw badOption(path, value, expected(schema))
    return value
  }
  if (!isObject(value)) throw badOption(path, value, expected(schema))
  if (schema.additionalProperties === false) {
    const given = readObject(properties, value, path)
    for (const key of schema.required ?? []) read(properties[key]!, given[key], join(path, key))
    return Object.freeze(readAll(properties, given, path))
  }
  // An object of the user's own, with methods that it may have from its class: it is checked, and used as it is.
  for (const [key, inner] of Object.entries(properties)) {
    if (value[key] !== undefined || schema.required?.includes(key) === true) read(inner, value[key], join(path, key))
  }
  return value
}

function expected ({ title, type, enum: values, minimum, maximum, anyOf }: Schema): string {
  if (title !== undefined) return title
  if (anyOf !== undefined) return `${anyOf[0].type === 'boolean' ? 'true, false' : 'false'} or ${expected(anyOf[1])}`
  if (values !== undefined) {
    return either(values.map((value) => typeof value === 'string' ? `'${value}'` : String(value)))
  }
  if (type === 'number' || type === 'integer') {
    const what = type === 'integer' ? 'an integer' : 'a number of milliseconds'
    return maximum === undefined ? `${what} of at least ${minimum}` : `${what} from ${minimum} to ${maximum}`
  }
  if (type === 'boolean') return 'true or false'
  return type === 'function' ? 'a function' : 'an object'
}

function either (texts: readonly string[]): string {
  return texts.length < 2 ? texts.join() : `${texts.slice(0, -1).join(', ')} or ${texts.at(-1)}`
}

function unknownOption (key: string, known: readonly string[], path: string): PoolError {
  const near = nearest(key, known)
  const hint = near !== undefined
    ? `: did you mean ${near}?`
    : known.length <= 4
      ? `: expected ${either(known)}`
      : known.includes('backend') ? ": the driver's own go into connection" : ''
  return new PoolError('FST_POOL_BAD_OPTIONS', `unknown option ${join(path, show(key))}${hint}`)
}

/** The known name that a slip of the finger, or another pool's habit ('idleTimeoutMillis'), may have meant. */
function nearest (name: string, known: readonly string[]): string | undefined {
  const word = name.slice(0, 40).replace(/(millis(econds)?|ms)$/i, '').toLowerCase()
  let best: string | undefined
  let least = Math.min(3, Math.ceil(word.length / 4)) + 1
  for (const candidate of known) {
    const distance = edits(word, candidate.toLowerCase())
    if (distance < least) [best, least] = [candidate, distance]
  }
  return best
}

/** How many letters to add, remove, change or swap with their neighbour. */
function edits (a: string, b: string): number {
  let previous: number[] = []
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const swapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1] ? previous[j - 2]! + 1 : Infinity
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1), swapped))
    }
    previous = row
    row = next
  }
  return row[b.length]!
}

function isObject (value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function join (path: string, key: string): string {
  return path === '' ? key : `${path}.${key}`
}
