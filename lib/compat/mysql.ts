// `fastify-pool/compat/mysql`: the face of @fastify/mysql over our pools, so that an app moves to `request.<name>` one
// route at a time.
import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import type { PoolOptions } from '../../types/plugin.js'
import type { Lease, PoolFace } from '../../types/pool.js'
import { requirePackage } from '../backends/shared/driver.js'
import { PoolError, badOption } from '../engine/errors.js'
import { answer, driverError, lent, poolFor, type Callback, type Releasable } from './lent.js'

export type { Callback, Releasable } from './lent.js'

/** mysql2's promise connection. Not by types/drivers.ts: an entry's declarations stand alone.
 * @ts-ignore where mysql2 is not installed */
type Connection = import('mysql2/promise').Connection

type Rows = [rows: any, fields: any]

/** Its connections give promises, and go back by `release()`. With `promise: true`. */
export interface MysqlPromisePool {
  query (...args: any[]): Promise<Rows>
  execute (...args: any[]): Promise<Rows>
  getConnection (): Promise<Releasable<Connection>>
}

/** Its methods take a callback as their last argument, and so do those of its connections. */
export interface MysqlCallbackPool {
  query (...args: any[]): void
  execute (...args: any[]): void
  getConnection (callback: (error: Error | null, connection?: any) => void): void
}

/** `app.mysql`, and `app.mysql[name]`: the methods themselves, the pool or connection, and the driver's functions. */
export type MysqlDb = (MysqlPromisePool | MysqlCallbackPool) & {
  /** Not with `type: 'connection'`. */
  readonly pool?: unknown
  /** With `type: 'connection'`. */
  readonly connection?: any
  format (sql: string, values?: unknown, ...more: unknown[]): string
  escape (value: unknown, ...more: unknown[]): string
  escapeId (value: unknown, forbidQualified?: boolean): string
}

/** Those of @fastify/mysql, or the name of a pool that the app has registered. */
export interface MysqlCompatOptions {
  /** The app's own pool, of backend 'mysql': then there are no other options but `name`, `type` and `promise`. */
  pool?: string
  /** For several: `app.mysql[name]`. */
  name?: string
  /** 'connection': one connection for the whole app, from register to close. Default 'pool'. */
  type?: 'pool' | 'connection'
  /** Promises instead of callbacks. Default false. */
  promise?: boolean
  connectionString?: string
  uri?: string
  host?: string
  port?: number
  database?: string
  /** Default 10. */
  connectionLimit?: number
  maxIdle?: number
  /** In ms. Default 60,000. */
  idleTimeout?: number
  connectTimeout?: number
  /** How many may wait; 0: as many as `maxPending` has by default, since that is bounded. */
  queueLimit?: number
  /** The driver's own: `user`, `password`, `ssl`, ... */
  [option: string]: unknown
}

/** What is used of the module mysql2. */
type Driver = Pick<MysqlDb, 'format' | 'escape' | 'escapeId'>

/** The object inside of a promise connection: its methods take callbacks. */
interface Core { query (...args: unknown[]): void, execute (...args: unknown[]): void, promise (): Connection }
const coreOf = (connection: unknown) => (connection as { connection: Core }).connection

async function register (app: FastifyInstance, options: MysqlCompatOptions): Promise<void> {
  const { name, pool: named, type = 'pool', promise = false, ...rest } = options
  const known = app as { mysql?: Record<string, unknown> }
  const isTaken = name === undefined ? known.mysql !== undefined : known.mysql?.[name] !== undefined
  if (isTaken) {
    const which = name === undefined ? '' : `'${name}' instance name `
    throw new PoolError('FST_POOL_DUPLICATE_NAME', `fastify-mysql ${which}has already been registered`)
  }
  if (type !== 'pool' && type !== 'connection') throw badOption('type', type, "'pool' or 'connection'")
  const pool = await poolFor(app, named, `mysql_${name ?? 'default'}`, named === undefined
    ? poolOptions(rest, type)
    : { backend: 'mysql', ...rest } as PoolOptions).catch((error: unknown) => { throw driverError(error) })
  const { format, escape, escapeId } = requirePackage('mysql2', { backend: 'mysql' }) as Driver
  const db = { format, escape, escapeId, ...type === 'pool' ? ofPool(pool, promise) : await ofOne(app, pool, promise) }
  if (name === undefined) app.decorate('mysql' as never, db as never)
  else if (known.mysql === undefined) app.decorate('mysql' as never, { [name]: db } as never)
  else known.mysql[name] = db
}

/** The options of the driver's pool as ours; the rest is the driver's own. */
function poolOptions (options: MysqlCompatOptions, type: 'pool' | 'connection'): PoolOptions {
  const {
    connectionString, uri, host, port, database, connectionLimit = 10, maxIdle: _maxIdle, idleTimeout, connectTimeout,
    queueLimit = 0, waitForConnections = true, ...connection
  } = options
  const given = {
    url: connectionString ?? uri,
    host,
    port,
    database,
    idleTimeout,
    connectTimeout,
    max: type === 'connection' ? 1 : connectionLimit,
    // 0 is without a limit for the driver, and no line at all here.
    maxPending: waitForConnections === false ? 0 : queueLimit === 0 ? undefined : queueLimit,
  }
  return {
    backend: 'mysql',
    connection,
    ...Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined)),
  } as PoolOptions
}

/** One call, on a connection that goes back by itself. */
function called (pool: PoolFace<unknown>, method: 'query' | 'execute', args: readonly unknown[]): Promise<Rows> {
  type Calls = Record<'query' | 'execute', (...args: unknown[]) => Promise<Rows>>
  return pool.use((connection) => (connection as Calls)[method](...args))
}

/** The last argument is the callback, which gets rows and fields as arguments of their own. */
function calledBack (pool: PoolFace<unknown>, method: 'query' | 'execute', all: unknown[]): void {
  const callback = all.at(-1)
  if (typeof callback !== 'function') {
    throw new PoolError('FST_POOL_NOT_SUPPORTED', `${method}() without a callback gives a stream of rows, which ` +
      'lives on its connection: call it on one of getConnection(), or with promise: true')
  }
  answer(called(pool, method, all.slice(0, -1)), (error, result) => {
    const [rows, fields] = result ?? []
    Reflect.apply(callback, undefined, [error, rows, fields])
  })
}

const take = async (pool: PoolFace<unknown>): Promise<Lease<unknown>> => await pool.acquire()

function ofPool (pool: PoolFace<unknown>, promise: boolean): object {
  const promises: MysqlPromisePool = {
    query: (...args) => answer(called(pool, 'query', args), undefined)!,
    execute: (...args) => answer(called(pool, 'execute', args), undefined)!,
    getConnection: () => answer(take(pool).then((lease) => lent(lease, lease.raw as Connection)), undefined)!,
  }
  // mysql2's pool of promises has the other one as its `pool`.
  const callbacks: MysqlCallbackPool & { promise (): MysqlPromisePool } = {
    query: (...all) => { calledBack(pool, 'query', all) },
    execute: (...all) => { calledBack(pool, 'execute', all) },
    getConnection (callback) {
      answer(take(pool).then((lease) => lent(lease, coreOf(lease.raw))), callback as Callback<unknown>)
    },
    promise: () => promises,
  }
  return promise ? { ...promises, pool: promises } : { ...callbacks, pool: callbacks }
}

/** One connection for all: it goes back when the app closes. */
async function ofOne (app: FastifyInstance, pool: PoolFace<unknown>, promise: boolean): Promise<object> {
  const lease = await take(pool).catch((error: unknown) => { throw driverError(error) })
  app.addHook('preClose', async () => { lease.release() })
  const connection = (promise ? lease.raw : coreOf(lease.raw)) as Core
  return { connection, query: connection.query.bind(connection), execute: connection.execute.bind(connection) }
}

// Which kind of `app.mysql` it is, as @fastify/mysql tells them apart.

const has = (db: MysqlDb, part: 'pool' | 'connection', callbacks: boolean): boolean =>
  db[part] !== undefined && callbacks === (typeof (db[part] as { promise?: unknown }).promise === 'function')

export const isMySQLPool = (db: MysqlDb): boolean => has(db, 'pool', true)
export const isMySQLPromisePool = (db: MysqlDb): boolean => has(db, 'pool', false)
export const isMySQLConnection = (db: MysqlDb): boolean => has(db, 'connection', true)
export const isMySQLPromiseConnection = (db: MysqlDb): boolean => has(db, 'connection', false)

/**
 * `app.mysql` as @fastify/mysql has it, over a pool of ours: one that the app has registered (`{ pool: 'db' }`), or one
 * that is made of the options of @fastify/mysql.
 *
 * Rejects with `FST_POOL_BAD_OPTIONS`, `FST_POOL_DUPLICATE_NAME`, `FST_POOL_NOT_FOUND`, `FST_POOL_MISSING_DRIVER`, and
 * with the driver's own error where the server can't be reached.
 */
export const mysqlCompat = fp(register, { fastify: '5.x', name: 'fastify-pool/compat/mysql' })
export default mysqlCompat
