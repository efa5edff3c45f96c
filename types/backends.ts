// What the backends have that are built in, besides being connectors, by what their connections are.
import type { Client, Cluster, Connection, Db, FastifyMongo, FastifyRedis, MongoClient, Redis } from './drivers.js'
import type { PostgresPubSub, RedisPubSub } from './messages.js'

/** `any`, as a driver's type is where it is not installed, is no driver's. */
type IsOf<C, D> =
  0 extends 1 & D ? false : 0 extends 1 & C ? false : [C] extends [never] ? false : [C] extends [D] ? true : false

interface PostgresBackend extends PostgresPubSub {
  readonly system: 'postgresql'
}

interface MysqlBackend {
  readonly system: 'mysql'
}

interface RedisBackend<C extends Redis | Cluster> extends RedisPubSub {
  readonly system: 'redis'
  /** The shared client: `app.redis`. */
  readonly client: C
}

interface MongoBackend {
  readonly system: 'mongodb'
  /** The shared client: `app.mongo.client`. */
  readonly client: MongoClient
  /** The name of the database that connections are handles of. */
  readonly database: string
}

/** What the backend of a pool of these connections has; `unknown` where they are none of a built-in backend's. */
export type BackendOf<C> =
  IsOf<C, Redis> extends true ? RedisBackend<Redis>
    : IsOf<C, Cluster> extends true ? RedisBackend<Cluster>
      : IsOf<C, Redis | Cluster> extends true ? RedisBackend<Redis | Cluster>
        : IsOf<C, Client> extends true ? PostgresBackend
          : IsOf<C, Connection> extends true ? MysqlBackend
            : IsOf<C, Db> extends true ? MongoBackend
              : unknown

/**
 * The shared clients, as their plugins add them to Fastify's types: `app.redis` of a pool of Redis, `app.mongo` of one
 * of MongoDB. They are typed where @fastify/redis and @fastify/mongodb are installed.
 */
export interface SharedClients {
  readonly redis: FastifyRedis
  readonly mongo: FastifyMongo
}
