// All that our declarations have of the drivers' types. Where a driver is not installed its types are `any`, and a
// strict compiler that checks declarations too says nothing of a driver that the app does not use. `@ts-ignore` is for
// the line below it, in a comment that declarations keep.

/** MongoDB's handle of one database.
 * @ts-ignore where mongodb is not installed */
export type Db = import('mongodb').Db

/** MongoDB's client.
 * @ts-ignore where mongodb is not installed */
export type MongoClient = import('mongodb').MongoClient

/** ioredis' client.
 * @ts-ignore where ioredis is not installed */
export type Redis = import('ioredis').Redis

/** ioredis' client of a cluster.
 * @ts-ignore where ioredis is not installed */
export type Cluster = import('ioredis').Cluster

/** A command of ioredis.
 * @ts-ignore where ioredis is not installed */
export type Command = import('ioredis').Command

/** pg's client.
 * @ts-ignore where @types/pg is not installed */
export type Client = import('pg').Client

/** What a `pg.Client` tells of a NOTIFY.
 * @ts-ignore where @types/pg is not installed */
export type Notification = import('pg').Notification

/** mysql2's promise connection.
 * @ts-ignore where mysql2 is not installed */
export type Connection = import('mysql2/promise').Connection

/** What @fastify/redis makes of `app.redis`. Its types add that to Fastify's.
 * @ts-ignore where @fastify/redis is not installed */
export type FastifyRedis = import('@fastify/redis').FastifyRedis

/** What @fastify/mongodb makes of `app.mongo`. Its types add that to Fastify's.
 * @ts-ignore where @fastify/mongodb is not installed */
export type FastifyMongo = import('@fastify/mongodb').FastifyMongoObject
