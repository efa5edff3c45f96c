import type { FastifyInstance, FastifyPluginAsync, FastifyPluginCallback } from 'fastify'
import type { Redis } from 'ioredis'
import type { MongoClient } from 'mongodb'
import type { Connector } from '../../types/connector.js'
import { importDriver } from '../backends/driver.js'
import { mongodb, type MongoConnector } from '../backends/mongodb.js'
import { mysql } from '../backends/mysql.js'
import { postgresql } from '../backends/postgresql.js'
import { redis, type RedisConnector } from '../backends/redis.js'
import { sqlite } from '../backends/sqlite.js'
import { PoolError, scrub, secretsOf } from '../pool/errors.js'
import type { ResolvedPoolOptions } from '../pool/options.js'

/** Makes the client that a pool shares with the app known to it: once the pool is open, or has been told not to wait for that. */
export type Share = () => Promise<void>

/** What @fastify/mongodb and @fastify/redis decorate, where the app or we registered them. */
interface Decorated { readonly mongo?: { readonly client: MongoClient }, readonly redis?: Redis }

interface Connected { readonly connector: Connector<unknown>, readonly share?: Share }

/**
 * A pool's connector. Without an address, MongoDB and Redis take over the client that the app has registered; with one, they share theirs with
 * the app, as `app.mongo` and `app.redis`, for work outside of requests.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`
 */
export async function connect (app: FastifyInstance, options: ResolvedPoolOptions): Promise<Connected> {
  if (options.connector !== undefined) return { connector: options.connector }
  try {
    return await make(app, options)
  } catch (error) {
    if (!(error instanceof PoolError)) throw error
    throw new PoolError(error.code, `pool '${options.name}': ${error.message}`, { cause: error.cause })
  }
}

async function make (app: FastifyInstance, options: ResolvedPoolOptions): Promise<Connected> {
  const { url, host, port, connection, database, name } = options
  const decorated = app as FastifyInstance & Decorated
  const addressed = url !== undefined || host !== undefined || port !== undefined || Object.keys(connection).length > 0
  switch (options.backend!) {
    case 'mongodb': {
      if (!addressed && decorated.mongo !== undefined) return { connector: await mongodb({ client: decorated.mongo.client, database, max: options.max }) as Connector<unknown> }
      const connector = await mongodb(options)
      return { connector: connector as Connector<unknown>, share: () => shareMongo(app, name, connector) }
    }
    case 'redis': {
      // A cluster, or a collection of named clients, is not one client to take over.
      if (!addressed && isClient(decorated.redis)) return { connector: await redis({ client: decorated.redis, database, connectTimeout: options.connectTimeout, reset: options.reset }) as Connector<unknown> }
      const connector = await redis(options)
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

function isClient (redis: Redis | undefined): redis is Redis {
  return typeof redis?.duplicate === 'function' && !('isCluster' in redis && redis.isCluster)
}

/** `app.mongo` is the first pool's, and `app.mongo[name]` each one's. */
async function shareMongo (app: FastifyInstance, name: string, { client, database }: MongoConnector): Promise<void> {
  const { mongo } = app as FastifyInstance & Decorated
  // What @fastify/mongodb itself puts there.
  const taken = name in (mongo ?? { client, ObjectId: undefined })
  if (taken && mongo !== undefined) return tellTaken(app, 'mongo', name)
  const plugin = await importDriver<{ default: FastifyPluginAsync<Record<string, unknown>> }>('@fastify/mongodb', { backend: 'mongodb' })
  await app.register(plugin.default, taken ? { client, database } : { client, database, name })
}

/** `app.redis` is the first pool's, and `app.redis[name]` each further one's. */
async function shareRedis (app: FastifyInstance, options: ResolvedPoolOptions, { client }: RedisConnector): Promise<void> {
  const { name, startup } = options
  const { redis: taken } = app as FastifyInstance & { redis?: Redis & Record<string, unknown> }
  if (taken !== undefined && name in taken) return tellTaken(app, 'redis', name)
  if (startup !== 'require') {
    // @fastify/redis waits until the client is connected, and this pool was told not to wait.
    if (taken === undefined) app.decorate('redis' as string, client)
    else Object.assign(taken, { [name]: client })
    return
  }
  await connectShared(client, options)
  const plugin = await importDriver<{ default: FastifyPluginCallback<Record<string, unknown>> }>('@fastify/redis', { backend: 'redis' })
  await app.register(plugin.default, taken === undefined ? { client } : { client, namespace: name })
}

/** @throws `FST_POOL_CONNECT_FAILED`; the client is then still to be closed */
async function connectShared (client: Redis, options: ResolvedPoolOptions): Promise<void> {
  const { name, connectTimeout } = options
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
    const cause = scrub(reason ?? error, secretsOf(options))
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
