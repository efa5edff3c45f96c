import type { FastifyInstance, FastifyPluginAsync } from 'fastify'
import type { Connector } from '../../types/connector.js'
import type { Cluster, MongoClient, Redis } from '../../types/drivers.js'
import type { PoolFace } from '../../types/pool.js'
import { TargetPool } from '../balance/targets.js'
import { facesOf, isInstalled, loadDriver, requirePackage, type Module } from '../backends/shared/driver.js'
import { mongodb, type MongoConnector } from '../backends/mongodb/connector.js'
import { mongoDriver } from '../backends/mongodb/options.js'
import { mysql } from '../backends/mysql/connector.js'
import { postgresql } from '../backends/postgresql/connector.js'
import { redis, type RedisConnector } from '../backends/redis/connector.js'
import { isCluster } from '../backends/redis/cluster-options.js'
import { redisCluster, type RedisClusterConnector } from '../backends/redis/cluster.js'
import { sqlite } from '../backends/sqlite/connector.js'
import { PoolError, scrub, secretsOf } from '../pool/errors.js'
import { Pool } from '../pool/pool.js'
import type { ResolvedPoolOptions } from './options.js'

/** Makes the client that a pool shares with the app known to it: once the pool is open, or has been told not to wait for that. */
export type Share = () => Promise<void>

/** What @fastify/mongodb and @fastify/redis decorate, where the app or we registered them. */
interface Decorated { readonly mongo?: { readonly client: MongoClient }, readonly redis?: Redis | Cluster }

/**
 * A pool, as its options say: over one server, or over several.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`; nothing is left open then
 */
export async function makePool (app: FastifyInstance, options: ResolvedPoolOptions): Promise<{ readonly pool: PoolFace<unknown>, readonly share?: Share }> {
  if (options.targets === undefined) {
    const { connector, share } = await connect(app, options)
    // One connection reads and writes.
    const pool = connector.replica !== undefined && options.max > 1 ? TargetPool.ofRoles(connector, options) : new Pool(connector, options)
    return { pool, ...(share !== undefined && { share }) }
  }
  const made: Connected[] = []
  try {
    for (const target of options.targets) made.push(await connect(app, target.options))
    const specs = options.targets.map((target, index) => ({ ...target, connector: made[index]!.connector }))
    const { min, max, acquireTimeout, validateTimeout, maxPending, backoff, balance, maxLag, checkInterval } = options
    const pool = new TargetPool(specs, { min, max, acquireTimeout, validateTimeout, maxPending, backoff, balance, maxLag, checkInterval })
    // The app has one client beside the pool: the first target's.
    const { share } = made[0]!
    return { pool, ...(share !== undefined && { share }) }
  } catch (error) {
    await Promise.all(made.map(({ connector }) => connector.close?.()))
    throw error
  }
}

interface Connected { readonly connector: Connector<unknown>, readonly share?: Share }

/**
 * A pool's connector. Without an address, MongoDB and Redis take over the client that the app has registered; with one, they share theirs with
 * the app, as `app.mongo` and `app.redis`, for work outside of requests.
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
  const { url, host, port, connection, database } = options
  const decorated = app as FastifyInstance & Decorated
  const addressed = url !== undefined || host !== undefined || port !== undefined || typeof connection === 'function' || Object.keys(connection).length > 0
  switch (options.backend!) {
    case 'mongodb': {
      if (!addressed && decorated.mongo !== undefined) return { connector: await mongodb({ client: decorated.mongo.client, database, max: options.max }) as Connector<unknown> }
      const connector = await mongodb(options)
      return { connector: connector as Connector<unknown>, share: () => shareMongo(app, options, connector) }
    }
    case 'redis': {
      const { redis: theirs } = decorated
      const { connectTimeout, reset } = options
      if (!addressed && isSharedCluster(theirs)) return { connector: await redisCluster({ client: theirs, connectTimeout }) as Connector<unknown> }
      // A collection of named clients is not one to take over.
      if (!addressed && isClient(theirs)) return { connector: await redis({ client: theirs, database, connectTimeout, reset }) as Connector<unknown> }
      const connector = isCluster(options) ? await redisCluster(options) : await redis(options)
      return { connector: connector as Connector<unknown>, share: () => shareRedis(app, options, connector) }
    }
    case 'postgresql':
    case 'postgres':
      return { connector: await postgresql(options) as Connector<unknown> }
    case 'mysql':
      return { connector: await mysql(options) as Connector<unknown> }
    case 'sqlite':
      return { connector: await sqlite(options) as Connector<unknown> }
  }
}

function isClient (redis: Redis | Cluster | undefined): redis is Redis {
  return typeof redis?.duplicate === 'function' && !isSharedCluster(redis)
}

function isSharedCluster (redis: Redis | Cluster | undefined): redis is Cluster {
  return redis !== undefined && 'isCluster' in redis && redis.isCluster === true
}

/**
 * `app.mongo` is the first pool's, and `app.mongo[name]` each one's: its client as of the start. Where `url` or `connection` is a function whose answer
 * changes, that client is closed when the pool's last connection of it is, and says so to whoever uses it (`MongoNotConnectedError`): it might be another
 * server that the app would write to. The newest one is always `app.pools.get(name).backend.client`.
 */
async function shareMongo (app: FastifyInstance, options: ResolvedPoolOptions, { client, database }: MongoConnector): Promise<void> {
  const { name, driver } = options
  const { mongo } = app as FastifyInstance & Decorated
  // What @fastify/mongodb itself puts there.
  const taken = name in (mongo ?? { client, ObjectId: undefined })
  if (taken && mongo !== undefined) return tellTaken(app, 'mongo', name)
  const plugin = pluginOf('@fastify/mongodb', options)
  if (plugin !== undefined) {
    await app.register(plugin, taken ? { client, database } : { client, database, name })
    return
  }
  const shared = { client, ObjectId: loadDriver(mongoDriver, driver).ObjectId, db: client.db(database) }
  if (mongo === undefined) app.decorate('mongo' as string, shared as unknown)
  if (!taken) Object.assign(mongo ?? shared, { [name]: shared })
}

/** `app.redis` is the first pool's, and `app.redis[name]` each further one's. */
async function shareRedis (app: FastifyInstance, options: ResolvedPoolOptions, connector: RedisConnector | RedisClusterConnector): Promise<void> {
  const { name, startup } = options
  const { client } = connector
  const { redis: taken } = app as FastifyInstance & { redis?: Redis & Record<string, unknown> }
  if (taken !== undefined && name in taken) return tellTaken(app, 'redis', name)
  const plugin = pluginOf('@fastify/redis', options)
  if (startup === 'require') await connectShared(connector, options)
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
 * What shares a client with the app: the plugin that was given as the driver, or the installed one. Beside a driver that was given it may be absent.
 *
 * @throws `FST_POOL_MISSING_DRIVER`
 */
function pluginOf (name: '@fastify/mongodb' | '@fastify/redis', { backend, driver }: ResolvedPoolOptions): Plugin | undefined {
  const isPlugin = (face: Module): boolean => typeof face === 'function'
  const given = facesOf(driver).find((face) => isPlugin(face) && (face.fastifyMongodb ?? face.fastifyRedis) !== undefined)
  if (given !== undefined || (driver !== undefined && !isInstalled(name))) return given as unknown as Plugin | undefined
  return facesOf(requirePackage(name, { backend: backend! })).find(isPlugin) as unknown as Plugin
}

/** @throws `FST_POOL_CONNECT_FAILED`; the client is then still to be closed */
async function connectShared (connector: RedisConnector | RedisClusterConnector, options: ResolvedPoolOptions): Promise<void> {
  const { name, connectTimeout } = options
  const { client } = connector
  // That of a cluster is, since the pool is open.
  if (client.status === 'ready') return
  // That it is closed is what `connect()` rejects with, and why is what it emits before.
  let reason: Error | undefined
  const onError = (error: Error) => { reason ??= error }
  client.on('error', onError)
  let timer: NodeJS.Timeout | undefined
  // ioredis' own timeout ends where the handshake begins.
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => { reject(new Error(`no connection within ${connectTimeout} ms (connectTimeout)`)) }, connectTimeout)
  })
  try {
    await Promise.race([client.connect(), late])
  } catch (error) {
    const cause = scrub(reason ?? error, [...secretsOf(options), ...connector.secrets ?? []])
    throw new PoolError('FST_POOL_CONNECT_FAILED', `pool '${name}' has connections, but the client that it shares as app.redis can't connect: ${cause.message}`, { cause })
  } finally {
    clearTimeout(timer)
    client.off('error', onError)
  }
}

/** No reason not to start. */
function tellTaken (app: FastifyInstance, decorator: string, name: string): void {
  app.log.child({ pool: name }).warn(`app.${decorator}.${name} is something else: the client that this pool shares is app.pools.get('${name}').backend.client`)
}
