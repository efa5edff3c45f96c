// `fastify-pool/compat/postgres`: the face of @fastify/postgres over our pools, so that an app moves to
// `request.<name>` one route at a time.
import type { FastifyInstance, FastifyReply, FastifyRequest, RouteOptions } from 'fastify'
import fp from 'fastify-plugin'
import type { PoolOptions } from '../../types/plugin.js'
import type { Lease, PoolFace } from '../../types/pool.js'
import { postgresDriver } from '../backends/postgresql/wire.js'
import { loadDriver } from '../backends/shared/driver.js'
import { PoolError, badOption } from '../engine/errors.js'
import { hold } from '../engine/lease.js'
import type { HeldTransaction } from '../engine/transaction.js'
import { answer, driverError, lent, poolFor, withCallback, type Callback, type Releasable } from './lent.js'

export type { Callback, Releasable } from './lent.js'

/** pg's client. Not by types/drivers.ts: an entry's declarations stand alone.
 * @ts-ignore where @types/pg is not installed */
type Client = import('pg').Client

/** A `pg.Client` of a pool, which goes back by `release()`. */
export type PoolClient = Releasable<Client>

type Transacted<T> = (client: PoolClient, commit: Callback<T>) => Promise<T> | unknown

/** What stands for a `pg.Pool`. */
export interface PostgresPool {
  connect (): Promise<PoolClient>
  connect (callback: Callback<PoolClient>): void
  query (...args: unknown[]): Promise<any>
  /** A no-op: the pool closes with the app. */
  end (callback?: () => void): Promise<void>
  /** Errors of connections that nobody held. For other events see `app.pools.get(name).on`. */
  on (event: 'error', listener: (error: Error) => void): this
  readonly totalCount: number
  readonly idleCount: number
  readonly waitingCount: number
}

/** `app.pg`, and `app.pg[name]`. */
export interface PostgresDb {
  readonly pool: PostgresPool
  /** The driver's class. */
  readonly Client: new (config?: any) => Client
  readonly connect: PostgresPool['connect']
  /** With a callback as the last argument: calls it, and returns nothing. */
  readonly query: PostgresPool['query']
  /** Calls `fn` between BEGIN and COMMIT. `fn` may call its second argument instead of giving a promise. */
  transact<T> (fn: Transacted<T>): Promise<T>
  transact<T> (fn: Transacted<T>, callback: Callback<T>): void
}

/** Those of @fastify/postgres, or the name of a pool that the app has registered. */
export interface PostgresCompatOptions {
  /** The app's own pool, of backend 'postgresql': then there are no other options but `name`. */
  pool?: string
  /** For several: `app.pg[name]`, and routes with `pg: { transact: name }`. */
  name?: string
  connectionString?: string
  host?: string
  port?: number
  database?: string
  max?: number
  min?: number
  /** In ms. 0: they are kept. Default 10,000, as the driver's pool has it. */
  idleTimeoutMillis?: number
  /** How long to wait for a connection, in ms. 0: as long as the default of `acquireTimeout`, since that is bounded. */
  connectionTimeoutMillis?: number
  maxLifetimeSeconds?: number
  maxUses?: number
  allowExitOnIdle?: boolean
  /** The module pg. */
  pg?: unknown
  /** Not supported: a warning is logged, and pg is used. */
  native?: boolean
  /** The driver's own: `user`, `password`, `ssl`, ... */
  [option: string]: unknown
}

/** How long a route's COMMIT may take, in ms: as the option `commitTimeout` has it by default. */
const commitTimeout = 5000

async function register (app: FastifyInstance, options: PostgresCompatOptions): Promise<void> {
  const { name, pool: named, native, ...rest } = options
  const known = app as { pg?: Partial<PostgresDb> & Record<string, unknown> }
  checkName(known.pg, name)
  if (native === true) {
    app.log.warn('fastify-pool/compat/postgres: the option native is not supported, pg itself is used')
  }
  const { pg: driver } = rest
  const pool = await poolFor(app, named, `pg_${name ?? 'default'}`, named === undefined
    ? poolOptions(rest)
    : { backend: 'postgresql', ...rest } as PoolOptions)
  const db = new Db(pool as PoolFace<Client>, loadDriver(postgresDriver, driver).Client as PostgresDb['Client'])

  if (known.pg === undefined) app.decorate('pg' as never, (name === undefined ? db : { [name]: db }) as never)
  // An instance without a name, beside those that have one.
  else Object.assign(known.pg, name === undefined ? { ...db } : { [name]: db })
  if (!app.hasRequestDecorator('pg')) app.decorateRequest('pg' as never, null as never)
  app.addHook('onRoute', (route) => {
    const wanted = (route as { pg?: { transact?: boolean | string } }).pg?.transact
    if (wanted === (name ?? true)) new TransactedRoute(pool.name, name).addTo(route)
  })
}

const reserved = ['pool', 'Client', 'connect', 'query', 'transact']

function checkName (known: Record<string, unknown> | undefined, name: string | undefined): void {
  const refuse = (message: string) => new PoolError('FST_POOL_DUPLICATE_NAME', message)
  if (name === undefined) {
    if (known?.pool !== undefined) throw refuse('fastify-postgres has already been registered')
  } else if (reserved.includes(name)) throw refuse(`fastify-postgres '${name}' is a reserved keyword`)
  else if (known?.[name] !== undefined) {
    throw refuse(`fastify-postgres '${name}' instance name has already been registered`)
  }
}

/** The options of the driver's pool as ours; the rest is the driver's own. */
function poolOptions (options: PostgresCompatOptions): PoolOptions {
  const {
    connectionString: url, host, port, database, pg: driver, max, min, idleTimeoutMillis: idleTimeout = 10_000,
    connectionTimeoutMillis: timeout = 0, maxLifetimeSeconds, maxUses, allowExitOnIdle, ...connection
  } = options
  const given = {
    url,
    host,
    port,
    database,
    driver,
    max,
    min,
    idleTimeout,
    maxUses,
    allowExitOnIdle,
    acquireTimeout: timeout === 0 ? undefined : timeout,
    maxLifetime: maxLifetimeSeconds === undefined ? undefined : maxLifetimeSeconds * 1000,
  }
  return {
    backend: 'postgresql',
    startup: 'lazy',
    connection,
    ...Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)),
  } as PoolOptions
}

/** Its methods can be called without it, as those of @fastify/postgres. */
class Db implements PostgresDb {
  readonly pool: PostgresPool
  readonly Client: PostgresDb['Client']
  readonly connect: PostgresPool['connect']
  readonly query: PostgresPool['query']
  readonly transact: PostgresDb['transact']

  constructor (pool: PoolFace<Client>, client: PostgresDb['Client']) {
    this.Client = client
    const connect = (callback?: Callback<PoolClient>) => answer(taken(pool), callback && ((error, client) => {
      callback(error, client, client?.release.bind(client))
    }))
    const query = (...all: unknown[]) => {
      const [args, callback] = withCallback<unknown>(all)
      return answer(pool.execute('query' as never, ...args as never), callback)
    }
    this.connect = connect as PostgresPool['connect']
    this.query = query as PostgresPool['query']
    this.transact = ((fn: Transacted<unknown>, callback?: Callback<unknown>) =>
      answer(pool.transaction((client) => committed(fn, client as PoolClient)), callback)) as PostgresDb['transact']
    this.pool = facade(pool, this.connect, this.query)
  }
}

async function taken (pool: PoolFace<Client>): Promise<PoolClient> {
  const lease = await pool.acquire()
  return lent(lease, lease.raw as Client)
}

/** What the function gives, by a promise or by its callback: whichever is first. */
function committed (fn: Transacted<unknown>, client: PoolClient): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const commit: Callback<unknown> = (error, result) => error ? reject(error) : resolve(result)
    const work = fn(client, commit) as PromiseLike<unknown> | undefined
    if (typeof work?.then === 'function') work.then(resolve, reject)
    // It would hold its connection for ever.
    else if (fn.length < 2) reject(badOption('fn', fn, 'a function that gives a promise, or takes a callback'))
  })
}

function facade (
  pool: PoolFace<Client>, connect: PostgresPool['connect'], query: PostgresPool['query']
): PostgresPool {
  return {
    connect,
    query,
    async end (callback) { callback?.() },
    on (event: string, listener: (error: Error) => void) {
      if (event !== 'error') throw badOption('event', event, `'error'; for others app.pools.get('${pool.name}').on`)
      pool.on('error', ({ error }) => listener(error))
      return this
    },
    get totalCount () {
      const { creating, idle, used } = pool.stats()
      return creating + idle + used
    },
    get idleCount () { return pool.stats().idle },
    get waitingCount () { return pool.stats().pending },
  }
}

interface Open { readonly lease: Lease<unknown>, readonly transaction: HeldTransaction, failed: boolean }

/** A route with `pg: { transact }`: its request has a transaction from `preHandler` to `onSend`. */
class TransactedRoute {
  readonly #pool: string
  readonly #name: string | undefined
  readonly #open = new WeakMap<FastifyRequest, Open>()

  constructor (pool: string, name: string | undefined) {
    this.#pool = pool
    this.#name = name
  }

  addTo (route: RouteOptions): void {
    route.preHandler = [route.preHandler ?? [], (request: FastifyRequest) => this.#begin(request)].flat()
    route.onError = [route.onError ?? [], (request: FastifyRequest, _reply: FastifyReply, _error: Error,
      done: () => void) => {
      const open = this.#open.get(request)
      if (open !== undefined) open.failed = true
      done()
    }].flat()
    route.onSend = [route.onSend ?? [], (request: FastifyRequest) => this.#end(request)].flat() as never
  }

  async #begin (request: FastifyRequest): Promise<void> {
    const name = this.#name
    const holder = request as { pg?: Record<string, unknown> | null }
    if (name === undefined ? holder.pg : holder.pg?.[name]) {
      throw new Error(`request client ${name === undefined ? '' : `'${name}' `}has already been registered`)
    }
    const lease = await request.acquire(this.#pool as never).catch((error: unknown) => { throw driverError(error) })
    const client = (lease as Lease<unknown>).raw as Client & Record<string, unknown>
    if (name !== undefined && client[name] !== undefined) {
      lease.release()
      throw new Error(`pg client '${name}' is a reserved keyword`)
    }
    const transaction = await hold(lease as Lease<unknown>, { commitTimeout })
    this.#open.set(request, { lease, transaction, failed: false })
    if (name === undefined) holder.pg = client
    else (holder.pg ??= Object.create(null) as Record<string, unknown>)[name] = client
  }

  /** Before the reply goes out. Where the client has gone and there is no reply, the plugin takes the lease back. */
  async #end (request: FastifyRequest): Promise<void> {
    const open = this.#open.get(request)
    if (open === undefined) return
    this.#open.delete(request)
    const holder = request as { pg?: Record<string, unknown> | null }
    if (this.#name === undefined) holder.pg = null
    else delete holder.pg![this.#name]
    try {
      if (open.failed) await open.transaction.rollback()
      else await open.transaction.commit()
    } finally {
      open.lease.release()
    }
  }
}

/**
 * `app.pg` as @fastify/postgres has it, over a pool of ours: one that the app has registered (`{ pool: 'db' }`), or one
 * that is made of the options of @fastify/postgres.
 *
 * Rejects with `FST_POOL_BAD_OPTIONS`, `FST_POOL_DUPLICATE_NAME`, `FST_POOL_NOT_FOUND`, `FST_POOL_MISSING_DRIVER`.
 */
export const postgresCompat = fp(register, { fastify: '5.x', name: 'fastify-pool/compat/postgres' })
export default postgresCompat
