// One Redis, or a cluster: the plugin's options say which.
import type { Cluster, Redis } from '../../../types/drivers.js'
import type { RedisClusterOptions } from './cluster-options.js'
import { redisCluster, type RedisClusterConnector } from './cluster.js'
import { redis, type RedisConnector } from './connector.js'
import type { RedisOptions } from './options.js'

/** A connector of either kind: both have a `client`. */
export type AnyRedisConnector = RedisConnector | RedisClusterConnector

/** @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`. Nothing is opened yet. */
export function redisOrCluster (options: RedisOptions & RedisClusterOptions): Promise<AnyRedisConnector> {
  const { connection } = options
  const isCluster = typeof connection === 'object' && 'cluster' in connection && connection.cluster !== undefined
  return isCluster ? redisCluster(options) : redis(options)
}

/**
 * A connector over a client that the app made. undefined: this is none, but a collection of clients with names, say.
 */
export function adoptRedis (client: object, options: RedisOptions): Promise<AnyRedisConnector> | undefined {
  const { database, connectTimeout, reset, backoff, keepalive } = options
  if ('isCluster' in client && client.isCluster === true) {
    return redisCluster({ client: client as Cluster, connectTimeout, backoff, keepalive })
  }
  if (!('duplicate' in client) || typeof client.duplicate !== 'function') return undefined
  return redis({ client: client as Redis, database, connectTimeout, reset, backoff, keepalive })
}
