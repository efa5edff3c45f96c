import { join } from 'node:path'
import { eq } from 'drizzle-orm'
import { drizzle as drizzlePostgres, type NodePgDatabase } from 'drizzle-orm/node-postgres'
import { drizzle as drizzleMysql, type MySql2Database } from 'drizzle-orm/mysql2'
import { int, mysqlTable, text as mysqlText } from 'drizzle-orm/mysql-core'
import { integer, pgTable, text } from 'drizzle-orm/pg-core'
import { integer as sqliteInteger, sqliteTable, text as sqliteText } from 'drizzle-orm/sqlite-core'
import { drizzle as drizzleProxy, type SqliteRemoteDatabase } from 'drizzle-orm/sqlite-proxy'
import Fastify, { type FastifyInstance, type FastifyRequest } from 'fastify'
import type { Knex } from 'knex'
import type { Kysely } from 'kysely'
import Database from 'libsql'
import * as mongodb from 'mongodb'
import mongoose from 'mongoose'
import type { Connection } from 'mysql2/promise'
import pg, { type Client } from 'pg'
import t, { type Test } from 'tap'
import fastifyPool, { type PoolOptions } from '../../index.js'
import { drizzle } from '../../lib/wrap/drizzle.js'
import { knex } from '../../lib/wrap/knex.js'
import { kysely } from '../../lib/wrap/kysely.js'
import { mongoose as wrapMongoose } from '../../lib/wrap/mongoose.js'
import { startMongoDouble } from '../doubles/mongo-wire.js'
import { startMariadb, startMongo, startPostgres } from '../support/services.js'

// The recipes of docs/query-builders-and-orms.md: `wrap` makes request.db a query builder or an ORM over the leased
// connection. What their transactions do is in orm.test.ts.

interface Note { id: number, text: string }
interface Tables { notes: Note }

const drizzleNotes = pgTable('notes', { id: integer().primaryKey(), text: text().notNull() })
const drizzleMysqlNotes = mysqlTable('notes', { id: int().primaryKey(), text: mysqlText().notNull() })
const drizzleSqliteNotes = sqliteTable('notes', { id: sqliteInteger().primaryKey(), text: sqliteText().notNull() })

/** What a handler does with request.db. */
interface Use<T> { add (db: T, note: Note): Promise<unknown>, read (db: T): Promise<Note[]> }

/**
 * Two requests on one connection, one that fails in its route's transaction, and one whose transaction is committed.
 */
async function serves<T> (t: Test, pool: PoolOptions, { add, read }: Use<T>): Promise<FastifyInstance> {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(fastifyPool, pool)
  const seen = new Set<unknown>()
  app.get('/', async (request) => {
    seen.add(request.db)
    return await read(request.db as T)
  })
  app.post<{ Body: Note, Querystring: { fail?: string } }>('/', { config: { pools: { db: { transaction: true } } } }, async (request) => {
    await add(request.db as T, request.body)
    if (request.query.fail !== undefined) throw new Error('rolled back')
    return 'added'
  })
  t.equal((await app.inject({ method: 'POST', url: '/', body: { id: 1, text: 'kept' } })).statusCode, 200)
  t.equal((await app.inject({ method: 'POST', url: '/?fail', body: { id: 2, text: 'not kept' } })).statusCode, 500)
  t.strictSame((await app.inject('/')).json(), [{ id: 1, text: 'kept' }])
  t.strictSame((await app.inject('/')).json(), [{ id: 1, text: 'kept' }])
  t.equal(seen.size, 1, 'made once for a connection')
  return app
}

const withKysely: Use<Kysely<Tables>> = {
  add: (db, note) => db.insertInto('notes').values(note).execute(),
  read: (db) => db.selectFrom('notes').selectAll().execute(),
}

const withKnex: Use<Knex> = {
  add: (db, note) => db('notes').insert(note),
  read: (db) => db<Note>('notes').select('*'),
}

t.test('on PostgreSQL', async (t) => {
  const { url } = await startPostgres(t, { own: true })
  const create = 'create table if not exists notes (id int primary key, text text not null)'
  const setting = async (t: Test) => {
    const pool = {
      backend: 'postgresql', url, max: 1, onConnect: (client: unknown) => (client as Client).query(create),
    } as const
    t.teardown(async () => {
      const client = new pg.Client(url)
      await client.connect()
      await client.query('drop table notes')
      await client.end()
    })
    return pool
  }

  await t.test('Drizzle', async (t) => {
    const app = await serves<NodePgDatabase>(t, { ...await setting(t), wrap: drizzle({ drizzle: drizzlePostgres }) }, {
      add: (db, note) => db.insert(drizzleNotes).values(note),
      read: (db) => db.select().from(drizzleNotes),
    })
    // What hooks get is the connection itself; what borrowers get, everywhere, is the wrapped one.
    await app.pools.get('db')
      .use(async (db) => await (db as unknown as NodePgDatabase).delete(drizzleNotes).where(eq(drizzleNotes.id, 1)))
  })

  await t.test('Kysely', async (t) => {
    await serves(t, { ...await setting(t), wrap: kysely<Tables>() }, withKysely)
  })

  await t.test('Knex', async (t) => {
    await serves(t, { ...await setting(t), wrap: knex() }, withKnex)
  })
})

t.test('on MariaDB', async (t) => {
  const { url } = await startMariadb(t)
  const create = 'create or replace table notes (id int primary key, text text not null)'
  const pool =
    {
      backend: 'mysql',
      url,
      max: 1,
      reset: 'none',
      onConnect: (connection: unknown) => (connection as Connection)
        .query(create)
    } as const

  await t.test('Drizzle', async (t) => {
    await serves<MySql2Database>(t, { ...pool, wrap: drizzle({ drizzle: drizzleMysql }) }, {
      add: (db, note) => db.insert(drizzleMysqlNotes).values(note),
      read: (db) => db.select().from(drizzleMysqlNotes),
    })
  })

  await t.test('Kysely', async (t) => {
    await serves(t, { ...pool, wrap: kysely<Tables>() }, withKysely)
  })

  await t.test('Knex', async (t) => {
    await serves(t, { ...pool, wrap: knex() }, withKnex)
  })
})

t.test('on SQLite', async (t) => {
  const pool = (t: Test) => {
    const url = join(t.testdir(), 'notes.db')
    const db = new Database(url)
    db.exec('create table notes (id integer primary key, text text not null)')
    db.close()
    return { backend: 'sqlite', url, max: 2 } as const
  }

  await t.test('Drizzle', async (t) => {
    await serves<SqliteRemoteDatabase>(t, { ...pool(t), wrap: drizzle({ drizzle: drizzleProxy }) }, {
      add: (db, note) => db.insert(drizzleSqliteNotes).values(note),
      read: (db) => db.select().from(drizzleSqliteNotes),
    })
  })

  await t.test('Kysely', async (t) => {
    await serves(t, { ...pool(t), wrap: kysely<Tables>() }, withKysely)
  })

  await t.test('Knex', async (t) => {
    await serves(t, { ...pool(t), wrap: knex() }, withKnex)
  })
})

const mongo = await startMongo(t)
t.test("Mongoose on the pool's MongoClient", { skip: mongo === undefined && 'neither a mongod nor FerretDB is here' }, async (t) => {
  const noteSchema = new mongoose.Schema<Note>({ id: Number, text: String }, { versionKey: false })
  const made: mongoose.Connection[] = []
  const wrap = wrapMongoose({
    setUp: (connection) => {
      made.push(connection)
      connection.model('Note', noteSchema)
    },
  })
  const options = {
    backend: 'mongodb', url: mongo!.url, database: `recipes${process.pid}`, driver: mongoose.mongo, wrap,
  } as const
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(fastifyPool, { pools: { db: { ...options, max: 2 } } })
  const notes = (request: FastifyRequest) => (request.db as unknown as mongoose.Connection)
    .models.Note as mongoose.Model<Note>
  app.post<{ Body: Note }>('/', async (request) => (await notes(request as FastifyRequest).create(request.body)).text)
  app.get('/', async (request) => await notes(request).find({}, { _id: 0 }).lean())
  t.equal((await app.inject({ method: 'POST', url: '/', body: { id: 1, text: 'kept' } })).body, 'kept')
  t.strictSame((await app.inject('/')).json(), [{ id: 1, text: 'kept' }])
  await Promise.all([app.inject('/'), app.inject('/'), app.inject('/')])
  t.equal(made.length, 1, 'one connection of Mongoose, whatever the pool has')
  await made[0]!.dropDatabase()

  // A pool with another copy of the driver than Mongoose's, which Mongoose would refuse at each request.
  const other = Fastify()
  t.teardown(() => other.close())
  class Foreign extends mongodb.MongoClient {}
  Object.defineProperty(Foreign, Symbol.hasInstance, { value: () => false })
  const foreign = wrapMongoose({ mongoose: { mongo: { MongoClient: Foreign } } as never })
  await t.rejects(async () => {
    await other.register(fastifyPool, { ...options, wrap: foreign })
  }, { message: /driver: mongoose\.mongo/ })
})

t.test('Mongoose: transactions are its own', async (t) => {
  const { url } = await startMongoDouble(t)
  const noteSchema = new mongoose.Schema<Note>({ id: Number, text: String }, { versionKey: false })
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(fastifyPool, {
    backend: 'mongodb',
    url,
    database: 'recipes',
    driver: mongoose.mongo,
    wrap: wrapMongoose({ setUp: (connection) => { connection.model('Note', noteSchema) } }),
  })
  const db = (request: FastifyRequest) => request.db as unknown as mongoose.Connection
  const notes = (request: FastifyRequest) => db(request).models.Note as mongoose.Model<Note>
  app.post('/', async (request) => {
    const settled = await Promise.allSettled([1, 2].map((id) => db(request).transaction(async (session) => {
      await notes(request).create([{ id, text: 'note' }], { session })
      if (id === 1) throw new Error('back')
    })))
    return settled.map(({ status }) => status)
  })
  app.post('/ours', { config: { pools: { db: { transaction: true } } } },
    async (request) => { await notes(request).create({ id: 3, text: 'note' }) })
  app.post('/by-hand', async (request) => {
    await request.transaction('db', async (db) => {
      await (db as unknown as mongoose.Connection).models.Note!.create({ id: 4, text: 'note' })
    })
  })
  app.get('/', async (request) => (await notes(request).find({}).lean()).map(({ id }) => id))
  t.strictSame((await app.inject({ method: 'POST', url: '/' })).json(), ['rejected', 'fulfilled'])
  for (const path of ['/ours', '/by-hand']) {
    t.match((await app.inject({ method: 'POST', url: path })).json(),
      { code: 'FST_POOL_NOT_SUPPORTED', message: /request\.db\.transaction\(fn\)/ }, path)
  }
  t.strictSame((await app.inject('/')).json(), [2])
})
