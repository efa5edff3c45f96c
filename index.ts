import { fastifyPool } from './lib/fastify/plugin.js'

export default fastifyPool
export { fastifyPool }
export { Pool } from './lib/pool/pool.js'
export { TargetPool } from './lib/balance/targets.js'
export { PoolError } from './lib/pool/errors.js'
export { mongodb } from './lib/backends/mongodb.js'
export { mysql } from './lib/backends/mysql.js'
export { postgresql } from './lib/backends/postgresql.js'
export { redis } from './lib/backends/redis.js'
export { redisCluster } from './lib/backends/redis-cluster.js'
export { sqlite } from './lib/backends/sqlite.js'
export { pluginOptionsSchema, poolOptionsSchema } from './lib/fastify/options.js'

export type { MongoConnector, MongoOptions } from './lib/backends/mongodb.js'
export type { MysqlConnector, MysqlOptions } from './lib/backends/mysql.js'
export type { PostgresConnector, PostgresOptions } from './lib/backends/postgresql.js'
export type { RedisConnector, RedisOptions } from './lib/backends/redis.js'
export type { RedisClusterConnector, RedisClusterOptions } from './lib/backends/redis-cluster.js'
export type { SqliteConnector, SqliteDatabase, SqliteOptions, SqliteStatement } from './lib/backends/sqlite.js'
export type { TargetOptions, TargetSpec } from './lib/balance/targets.js'
export type * from './types/index.js'
