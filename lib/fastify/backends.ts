import { inspect } from 'node:util'
import type { FastifyInstance, FastifyPluginAsync } from 'fastify'
import type { Connector } from '../../types/connector.js'
import type { Cluster, MongoClient, Redis } from '../../types/drivers.js'
import type { SharedBudget } from '../balance/shared.js'
import { TargetPool } from '../balance/target-pool.js'
import { catalogue } from '../backends/catalogue.js'
import type { MongoConnector } from '../backends/mongodb/connector.js'
import type { AnyRedisConnector } from '../backends/redis/choice.js'
import { facesOf, isInstalled, loadDriver, requirePackage } from '../backends/shared/driver.js'
import type { Module } from '../backends/shared/driver.js'
import { badOption, PoolError, scrub } from '../engine/errors.js'
import { secretsOf } from '../engine/secrets.js'
import { Pool } from '../pool/pool.js'
import type { ResolvedPoolOptions } from './options.js'
import { specsOf, tellOfPeers } from './servers.js'
import { TenantPool } from './tenants/pool.js'
import type { Face, Maker } from './tenants/tenants.js'

/** Puts the client that a pool shares with the app on the app: once the pool is open, or need not be waited for. */
export type Share = () => Promise<void>

export interface MadePool { readonly pool: Face, readonly share?: Share }

interface Connected { readonly connector: Connector<unknown>, readonly share?: Share }

/** What @fastify/mongodb and @fastify/redis decorate, where the app or we registered them. */
interface Decorated {
  readonly mongo?: { readonly client: MongoClient }
  /** With a namespace: clients by name. */
  readonly redis?: Redis | Cluster | Readonly<Record<string, Redis | Cluster>>
}

/**
 * A pool, as its options say: over one server, or over several.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`; nothing is left open then
 */
export async function makePool (
  app: FastifyInstance, options: ResolvedPoolOptions, budget?: SharedBudget
): Promise<MadePool> {
  const { tenants } = options
  if (tenants !== undefined) {
    const make: Maker = async (own, budget) => (await makePool(app, own, budget)).pool
    return { pool: new TenantPool({ ...options, tenants }, make) }
  }
  if (options.targets === undefined) {
    const { connector, ...shared } = await connect(app, options)
    // One connection alone reads and writes.
    const hasRoles = connector.replica !== undefined && options.max > 1
    if (hasRoles) return { pool: TargetPool.ofRoles(connector, options), ...shared }
    return { pool: budget?.pool(connector, options) ?? new Pool(connector, options), ...shared }
  }
  const made: Connected[] = []
  try {
    for (const target of options.targets) made.push(await connect(app, target.options))
    const specs = specsOf(options, made.map(({ connector }) => connector))
    const { min, max, acquireTimeout, connectTimeout, validateTimeout, maxPending, backoff } = options
    const { balance, maxLag, checkInterval } = options
    const pool = new TargetPool(specs, {
      min, max, acquireTimeout, connectTimeout, validateTimeout, maxPending, backoff, balance, maxLag, checkInterval,
    })
    tellOfPeers(app, options)
    // The app has one client beside the pool: the first target's.
    const { connector: _first, ...shared } = made[0]!
    return { pool, ...shared }
  } catch (error) {
    await Promise.all(made.map(({ connector }) => connector.close?.()))
    throw error
  }
}

/**
 * A pool's connector. Without an address, MongoDB and Redis take over the client that the app has registered; with one,
 * they share theirs with the app, as `app.mongo` and `app.redis`, for work outside of requests.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`
 */
async function connect (app: FastifyInstance, options: ResolvedPoolOptions): Promise<Connected> {
  if (options.connector !== undefined) return { connector: options.connector }
  try {
    return await make(app, options)
  } catch (error) {
    if (!(error instanceof PoolError)) throw error
    throw new PoolError(error.code, `pool '${options.name}': ${error.message}`, { cause: error.cause })
  }
}

async function make (app: FastifyInstance, options: ResolvedPoolOptions): Promise<Connected> {
  const { connect, adopt } = catalogue[options.backend!]
  const theirs = clientOf(app, options)
  const adopted = theirs && await adopt?.(theirs, options)
  if (adopted !== undefined) return { connector: adopted }
  const connector = await connect(options)
  switch (options.backend) {
    case 'mongodb': return { connector, share: () => shareMongo(app, options, connector as MongoConnector) }
    case 'redis': return { connector, share: () => shareRedis(app, options, connector as AnyRedisConnector) }
    default: return { connector }
  }
}

/** The client that the app has registered, where the pool has no address of its own. */
function clientOf (app: FastifyInstance, options: ResolvedPoolOptions): object | undefined {
  const { name, backend, url, host, port, connection } = options
  const isAddressed = [url, host, port].some((one) => one !== undefined) || typeof connection === 'function' ||
    Object.keys(connection).length > 0
  if (isAddressed) return undefined
  const { mongo, redis } = app as FastifyInstance & Decorated
  if (backend === 'mongodb') return ofName<{ readonly client?: MongoClient }>(mongo, name)?.client ?? mongo?.client
  if (backend !== 'redis' || redis === undefined) return undefined
  if (isRedis(redis)) return redis
  // @fastify/redis with a namespace: clients by name.
  const named = ofName<object>(redis, name)
  if (named !== undefined && isRedis(named)) return named
  const names = Object.keys(redis).map((one) => `'${one}'`).join(', ')
  throw badOption('url', undefined,
    `an address, or a pool with the name of one of the clients in app.redis (${names}), which it takes over then`)
}

function isRedis (client: object): client is Redis | Cluster {
  return 'duplicate' in client && typeof client.duplicate === 'function'
}

function ofName<T> (clients: object | undefined, name: string): T | undefined {
  return clients !== undefined && Object.hasOwn(clients, name) ? Reflect.get(clients, name) as T : undefined
}

/**
 * A client that is shared with the app has the pool's password in its options, and hangs on the app: `console.log(app)`
 * and `JSON.stringify(app)` must not show it.
 */
function conceal (client: object): void {
  const shown = `${client.constructor.name} (shared by fastify-pool; its options may hold a password)`
  for (const key of [inspect.custom, 'toJSON']) {
    Object.defineProperty(client, key, { value: () => shown, configurable: true, writable: true })
  }
}

/**
 * `app.mongo` is the first pool's, and `app.mongo[name]` each one's: its client as of the start. Where `url` or
 * `connection` is a function whose answer changes, that client is closed when the pool's last connection of it is, and
 * says so to whoever uses it (`MongoNotConnectedError`): it might be another server that the app would write to. The
 * newest one is always `app.pools.get(name).backend.client`.
 */
async function shareMongo (
  app: FastifyInstance, options: ResolvedPoolOptions, { client, database }: MongoConnector
): Promise<void> {
  const { name, driver } = options
  conceal(client)
  const { mongo } = app as FastifyInstance & Decorated
  // What @fastify/mongodb itself puts there.
  const taken = name in (mongo ?? { client, ObjectId: undefined })
  if (taken && mongo !== undefined) return tellTaken(app, 'mongo', name)
  const plugin = pluginOf('@fastify/mongodb', options)
  if (plugin !== undefined) {
    await app.register(plugin, taken ? { client, database } : { client, database, name })
    return
  }
  const { mongoDriver } = await import('../backends/mongodb/options.js')
  const shared = { client, ObjectId: loadDriver(mongoDriver, driver).ObjectId, db: client.db(database) }
  if (mongo === undefined) app.decorate('mongo' as string, shared as unknown)
  if (!taken) Object.assign(mongo ?? shared, { [name]: shared })
}

/** `app.redis` is the first pool's, and `app.redis[name]` each further one's. */
async function shareRedis (
  app: FastifyInstance, options: ResolvedPoolOptions, connector: AnyRedisConnector
): Promise<void> {
  const { name, startup } = options
  const { client } = connector
  conceal(client)
  const { redis: taken } = app as FastifyInstance & { redis?: Redis & Record<string, unknown> }
  if (taken !== undefined && name in taken) return tellTaken(app, 'redis', name)
  const plugin = pluginOf('@fastify/redis', options)
  if (startup === 'require') {
    await connectShared(connector, options)
    if (options.allowExitOnIdle && 'stream' in client) restUntilUsed(client)
  }
  // @fastify/redis waits until the client is connected, and this pool may have been told not to wait.
  if (startup !== 'require' || plugin === undefined) {
    if (taken === undefined) app.decorate('redis' as string, client as unknown)
    else Object.assign(taken, { [name]: client })
    return
  }
  await app.register(plugin, taken === undefined ? { client } : { client, namespace: name })
}

type Plugin = FastifyPluginAsync<Record<string, unknown>>

/**
 * The plugin that shares a client with the app: the one that was given as the driver, or the installed one. Beside a
 * driver that was given it may be absent.
 *
 * @throws `FST_POOL_MISSING_DRIVER`
 */
function pluginOf (name: '@fastify/mongodb' | '@fastify/redis', options: ResolvedPoolOptions): Plugin | undefined {
  const { backend, driver } = options
  const isPlugin = (face: Module): boolean => typeof face === 'function'
  const isOurs = (face: Module): boolean => isPlugin(face) && (face.fastifyMongodb ?? face.fastifyRedis) !== undefined
  const given = facesOf(driver).find(isOurs)
  if (given !== undefined || (driver !== undefined && !isInstalled(name))) return given as unknown as Plugin | undefined
  return facesOf(requirePackage(name, { backend: backend! })).find(isPlugin) as unknown as Plugin
}

/** A client that nobody has used yet does not keep the process alive. From its first command on it does. */
function restUntilUsed (client: Redis): void {
  const own = Object.getOwnPropertyDescriptor(client, 'sendCommand')
  client.stream.unref()
  const value: Redis['sendCommand'] = (command, stream) => {
    client.stream.ref()
    if (own === undefined) Reflect.deleteProperty(client, 'sendCommand')
    else Object.defineProperty(client, 'sendCommand', own)
    return client.sendCommand(command, stream)
  }
  Object.defineProperty(client, 'sendCommand', { value, configurable: true, writable: true })
}

/** @throws `FST_POOL_CONNECT_FAILED`; the client is then still to be closed */
async function connectShared (connector: AnyRedisConnector, options: ResolvedPoolOptions): Promise<void> {
  const { name, connectTimeout } = options
  const { client } = connector
  // That of a cluster is, since the pool is open.
  if (client.status === 'ready') return
  // `connect()` rejects with no more than that the connection is closed. Why it is, an event tells before.
  let reason: Error | undefined
  const onError = (error: Error) => { reason ??= error }
  client.on('error', onError)
  let timer: NodeJS.Timeout | undefined
  // ioredis' own timeout ends where the handshake begins.
  const late = new Promise<never>((_resolve, reject) => {
    const error = new Error(`no connection within ${connectTimeout} ms (connectTimeout)`)
    timer = setTimeout(() => { reject(error) }, connectTimeout)
  })
  try {
    await Promise.race([client.connect(), late])
  } catch (error) {
    const cause = scrub(reason ?? error, [...secretsOf(options), ...connector.secrets ?? []])
    const message = `pool '${name}' has connections, but the client that it shares as app.redis can't connect`
    throw new PoolError('FST_POOL_CONNECT_FAILED', `${message}: ${cause.message}`, { cause })
  } finally {
    clearTimeout(timer)
    client.off('error', onError)
  }
}

/** No reason not to start. */
function tellTaken (app: FastifyInstance, decorator: string, name: string): void {
  const message = `app.${decorator}.${name} is something else: the client that this pool shares is `
  app.log.child({ pool: name }).warn(`${message}app.pools.get('${name}').backend.client`)
}
