import type { ClusterNode, ClusterOptions } from 'ioredis'
import { badOption } from '../../engine/errors.js'
import type { Cluster } from '../../../types/drivers.js'
import type { Address, Backoff } from '../../../types/options.js'
import { refuseKeys, type RefusedKeys } from '../shared/address.js'
import { clientName } from './options.js'

export interface RedisClusterOptions {
  /**
   * `cluster`: some of the nodes, as `{ host, port }`; one that answers is enough. Beside it ioredis' own options of a
   * cluster, passed on as they are: `redisOptions` (with `username`, `password`, `tls`), `natMap`, `scaleReads`, ...
   * Those that would do the pool's work are refused. Not a function: the client is made once.
   */
  connection?: Address['connection']
  /** As that of `redis`, unless `connection.redisOptions` has a `connectionName`. */
  appName?: string
  /** How long one attempt of the client to reach the cluster may take, in ms; its nodes share it. Default 3000. */
  connectTimeout?: number
  /** As those of `redis`. */
  backoff?: Backoff | undefined
  keepalive?: number | undefined
  /** The module ioredis: for bundles, and copies of one's own. Default: the one that @fastify/redis uses. */
  driver?: unknown
  /** A client that the app made, instead of `connection`. It is never closed. */
  client?: Cluster
}

export interface Given { readonly nodes: readonly ClusterNode[], readonly options: ClusterOptions }

const itself = 'the client reconnects by itself, as often as the pool would'
const first = 'the client connects when the pool first needs it, see startup'

const refused: RefusedKeys = new Map(Object.entries({
  lazyConnect: first,
  clusterRetryStrategy: itself,
  enableReadyCheck: 'the pool needs to know whether the cluster is whole',
}))

const refusedOfNodes: RefusedKeys = new Map(Object.entries({
  host: 'the nodes are in connection.cluster',
  port: 'the nodes are in connection.cluster',
  path: 'the nodes are in connection.cluster',
  sentinels: 'a cluster has none',
  db: 'a cluster has one database',
  connectTimeout: 'use the option connectTimeout',
  disconnectTimeout: 'use the option destroyTimeout',
  lazyConnect: first,
  retryStrategy: itself,
  reconnectOnError: itself,
  enableOfflineQueue: 'commands wait while a node connects',
  monitor: 'call monitor() on a node',
}))

/** Options of the nodes' connections that are likely to be put beside `cluster` by mistake. */
const belongInside = [
  'username', 'password', 'tls', 'connectionName', 'commandTimeout', 'socketTimeout', 'family', 'protocol',
]

/** @throws `FST_POOL_BAD_OPTIONS` */
export function clusterOptions ({ connection, appName }: RedisClusterOptions): Given {
  if (typeof connection === 'function') {
    throw badOption('connection', connection, 'an object with cluster: the client is made once')
  }
  const { cluster, ...rest } = connection ?? {}
  if (!Array.isArray(cluster) || cluster.length === 0) {
    throw badOption('connection.cluster', cluster, 'an array of { host, port }')
  }
  for (const [at, node] of cluster.entries()) {
    if (typeof node !== 'object' || node === null) {
      throw badOption(`connection.cluster.${at}`, node, 'an object with host and port')
    }
  }
  const { redisOptions = {} } = rest
  if (typeof redisOptions !== 'object' || redisOptions === null) {
    throw badOption('connection.redisOptions', redisOptions, 'an object')
  }
  for (const name of belongInside) {
    if (rest[name] !== undefined) {
      throw badOption(`connection.${name}`, rest[name], `it inside of connection: { redisOptions: { ${name} } }`)
    }
  }
  refuseKeys(rest, refused)
  refuseKeys(redisOptions as Record<string, unknown>, refusedOfNodes, 'connection.redisOptions')
  const named = { connectionName: clientName(appName), ...redisOptions }
  return { nodes: cluster as ClusterNode[], options: { ...rest, redisOptions: named } }
}

/** Refuses other addresses, since the nodes are the address, and a database, since a cluster has one. */
export function checkClient (options: RedisClusterOptions): void {
  const { client } = options
  if (client !== undefined && client.isCluster !== true) throw badOption('client', client, 'an ioredis Cluster')
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined || !['url', 'host', 'port', 'database'].includes(name)) continue
    throw badOption(name, value, `no ${name} for a cluster: its nodes are in connection.cluster`)
  }
}
