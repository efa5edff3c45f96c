import { join } from 'node:path'
import { eq } from 'drizzle-orm'
import { drizzle } from 'drizzle-orm/node-postgres'
import { integer, pgTable, text } from 'drizzle-orm/pg-core'
import { integer as sqliteInteger, sqliteTable, text as sqliteText } from 'drizzle-orm/sqlite-core'
import { drizzle as drizzleProxy } from 'drizzle-orm/sqlite-proxy'
import Fastify, { type FastifyInstance } from 'fastify'
import { Kysely, PostgresDialect, SqliteDialect, type SqliteDialectConfig } from 'kysely'
import Database from 'libsql'
import type { Db } from 'mongodb'
import mongoose from 'mongoose'
import type { Client } from 'pg'
import t, { type Test } from 'tap'
import fastifyPool, { type PoolOptions, type SqliteDatabase } from '../../index.js'
import { startMongo, startPostgres } from '../support/services.js'

// The README's recipes, as they stand there: `wrap` makes request.db a query builder or an ORM over the leased connection.

interface Note { id: number, text: string }
interface Tables { notes: Note }

const drizzleNotes = pgTable('notes', { id: integer().primaryKey(), text: text().notNull() })
const drizzleSqliteNotes = sqliteTable('notes', { id: sqliteInteger().primaryKey(), text: sqliteText().notNull() })

/** What a handler does with request.db. */
interface Use<T> { add (db: T, note: Note): Promise<unknown>, read (db: T): Promise<Note[]> }

/** Two requests on one connection, one that fails in its route's transaction, and one whose transaction is committed. */
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

t.test('on PostgreSQL', async (t) => {
  const { url } = await startPostgres(t, { own: true })
  const pool = { backend: 'postgresql', url, max: 1, onConnect: (client: unknown) => (client as Client).query('create table if not exists notes (id int primary key, text text not null)') } as const

  await t.test('Drizzle', async (t) => {
    const wrap = (client: unknown) => drizzle(client as Client)
    const app = await serves<ReturnType<typeof wrap>>(t, { ...pool, wrap }, {
      add: (db, note) => db.insert(drizzleNotes).values(note),
      read: (db) => db.select().from(drizzleNotes),
    })
    // What hooks get is the connection itself; what borrowers get, everywhere, is the wrapped one.
    await app.pools.get('db').use(async (db) => await (db as unknown as ReturnType<typeof wrap>).delete(drizzleNotes).where(eq(drizzleNotes.id, 1)))
  })

  await t.test('Kysely', async (t) => {
    const wrap = (connection: unknown) => {
      const client = connection as Client
      const lent = { query: client.query.bind(client), release () {} }
      return new Kysely<Tables>({ dialect: new PostgresDialect({ pool: { connect: async () => lent, end: async () => {} } }) })
    }
    await serves<ReturnType<typeof wrap>>(t, { ...pool, wrap }, {
      add: (db, note) => db.insertInto('notes').values(note).execute(),
      read: (db) => db.selectFrom('notes').selectAll().execute(),
    })
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
    const wrap = (connection: unknown) => drizzleProxy(async (sql, params, method) => {
      const statement = (connection as SqliteDatabase).prepare(sql)
      if (!statement.reader) {
        statement.run(...params)
        return { rows: [] }
      }
      const rows = statement.raw().all(...params)
      return { rows: method === 'get' ? rows[0] as unknown[] : rows }
    })
    await serves<ReturnType<typeof wrap>>(t, { ...pool(t), wrap }, {
      add: (db, note) => db.insert(drizzleSqliteNotes).values(note),
      read: (db) => db.select().from(drizzleSqliteNotes),
    })
  })

  await t.test('Kysely', async (t) => {
    const wrap = (database: unknown) => new Kysely<Tables>({ dialect: new SqliteDialect({ database: database as SqliteDialectConfig['database'] & object }) })
    await serves<ReturnType<typeof wrap>>(t, { ...pool(t), wrap }, {
      add: (db, note) => db.insertInto('notes').values(note).execute(),
      read: (db) => db.selectFrom('notes').selectAll().execute(),
    })
  })
})

const mongo = await startMongo(t)
t.test("Mongoose on the pool's MongoClient", { skip: mongo === undefined && 'neither a mongod nor FerretDB is here' }, async (t) => {
  const server = mongo!
  const noteSchema = new mongoose.Schema<Note>({ id: Number, text: String }, { versionKey: false })
  let connection: mongoose.Connection | undefined
  // One for all: it has no connection of its own, and the driver's pool is behind the client.
  const wrap = (db: unknown) => {
    const { client, databaseName } = db as Db
    connection ??= mongoose.createConnection().setClient(client).useDb(databaseName)
    return connection
  }
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(fastifyPool, { backend: 'mongodb', url: server.url, database: `recipes${process.pid}`, wrap })
  const notes = (request: { db: unknown }) => {
    const { models } = request.db as mongoose.Connection
    return (models.Note ?? (request.db as mongoose.Connection).model('Note', noteSchema)) as mongoose.Model<Note>
  }
  app.post<{ Body: Note }>('/', async (request) => (await notes(request).create(request.body)).text)
  app.get('/', async (request) => await notes(request).find({}, { _id: 0 }).lean())
  t.equal((await app.inject({ method: 'POST', url: '/', body: { id: 1, text: 'kept' } })).body, 'kept')
  t.strictSame((await app.inject('/')).json(), [{ id: 1, text: 'kept' }])
  await connection!.dropDatabase()
})
