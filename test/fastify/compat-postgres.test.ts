import Fastify, { type FastifyInstance, type RouteShorthandOptions } from 'fastify'
import t from 'tap'
import fastifyPool from '../../index.js'
import { postgresCompat, type PostgresCompatOptions, type PostgresDb } from '../../lib/compat/postgres.js'
import type { Client } from '../../types/drivers.js'
import '../support/pg.js'
import { startPostgres, type Teardown } from '../support/services.js'

// What @fastify/postgres promises, its own suite shows (`npm run test:compat`). Here is what our pool adds, and how an
// app moves route by route.

const server = await startPostgres(t)

type App = FastifyInstance & { pg: PostgresDb & Record<string, PostgresDb> }
type WithPg = { pg: (Client & Record<string, Client>) | null }
const withPg = (request: unknown) => request as WithPg

async function appOf (t: Teardown, options: PostgresCompatOptions, before?: (app: FastifyInstance) => Promise<void>) {
  const app = Fastify() as unknown as App
  t.teardown(() => app.close())
  await before?.(app)
  await app.register(postgresCompat, options)
  await app.pg.query('CREATE TABLE IF NOT EXISTS notes (text text)')
  await app.pg.query('TRUNCATE notes')
  return app
}
const ownPool = (app: FastifyInstance) => app.register(fastifyPool, {
  pools: { db: { backend: 'postgresql', url: server.url, max: 2, lease: false, acquireTimeout: 500 } },
}) as unknown as Promise<void>
/** How many are lent: a connection that is reset is none of them. */
const lent = (app: App) => {
  const { used, resetting } = app.pools.get('db' as never).stats()
  return used - resetting
}
const notes = async (app: App) => (await app.pg.query('SELECT text FROM notes ORDER BY text')).rows.map(
  ({ text }: { text: string }) => text)
const transact = (wanted: boolean | string) => ({ pg: { transact: wanted } }) as RouteShorthandOptions

t.test('it works over a pool of the app, whose other routes have moved already', async (t) => {
  const app = await appOf(t, { pool: 'db' }, ownPool)
  app.get('/old', async () => (await app.pg.query('SELECT $1::int AS n', [1])).rows[0])
  app.get('/new', { config: { pools: ['db'] } }, async (request) =>
    (await (request as unknown as { db: Client }).db.query('SELECT 1 AS n')).rows[0])
  t.same((await app.inject('/old')).json(), { n: 1 })
  t.same((await app.inject('/new')).json(), { n: 1 })
  t.equal(lent(app), 0)
  const { idle, used, creating } = app.pools.stats().db!
  t.equal(app.pg.pool.totalCount, idle + used + creating)
})

t.test('what is left of the old code on the new connection says what to do', async (t) => {
  const app = await appOf(t, { pool: 'db' }, ownPool)
  app.get('/', { config: { pools: ['db'] } }, async (request) => {
    const client = (request as unknown as { db: Client & { release (): void } }).db
    client.release()
  })
  const reply = await app.inject('/')
  t.equal(reply.json().code, 'FST_POOL_NOT_SUPPORTED')
  t.match(reply.json().message, /leave out release\(\)/)
  const client = await app.pg.connect()
  client.release()
  t.throws(() => { client.release() }, { code: 'FST_POOL_NOT_SUPPORTED' })
})

t.test('connect() gives a connection until its release; with an error it is destroyed', async (t) => {
  const app = await appOf(t, { pool: 'db' }, ownPool)
  const pool = app.pools.get('db' as never)
  const client = await app.pg.connect()
  const { release } = client
  t.equal(lent(app), 1)
  release()
  t.throws(() => { release() }, /had gone back/)
  t.equal(lent(app), 0)
  const other = await app.pg.connect()
  other.release(new Error('spoilt'))
  t.equal(pool.stats().destroyed.error, 1)
  await new Promise<void>((resolve, reject) => {
    app.pg.connect((error, client, done) => {
      if (error) return reject(error)
      client!.query('SELECT 1', () => {
        done!()
        resolve()
      })
    })
  })
  t.equal(lent(app), 0)
})

t.test('a route with pg: { transact } commits before its reply, and rolls back after an error', async (t) => {
  const app = await appOf(t, { pool: 'db', name: 'one' }, async (app) => {
    await ownPool(app)
    await app.register(postgresCompat, { pool: 'db' })
  })
  app.post('/ok', transact(true), async (request) => {
    await withPg(request).pg!.query("INSERT INTO notes VALUES ('ok')")
    return {}
  })
  app.post('/named', transact('one'), async (request) => {
    await withPg(request).pg!.one!.query("INSERT INTO notes VALUES ('named')")
    return {}
  })
  app.post('/bad', transact(true), async (request) => {
    await withPg(request).pg!.query("INSERT INTO notes VALUES ('bad')")
    throw new Error('no')
  })
  app.get('/none', async (request) => ({ pg: withPg(request).pg }))
  t.equal((await app.inject({ method: 'POST', url: '/ok' })).statusCode, 200)
  t.equal((await app.inject({ method: 'POST', url: '/named' })).statusCode, 200)
  t.equal((await app.inject({ method: 'POST', url: '/bad' })).statusCode, 500)
  t.same((await app.inject('/none')).json(), { pg: null })
  t.same(await notes(app), ['named', 'ok'])
  t.equal(lent(app), 0)
})

t.test('transact() gives what its function gives, or calls back; what can never end is refused', async (t) => {
  const app = await appOf(t, { connectionString: server.url, max: 2 })
  t.equal(await app.pg.transact(async (client) => {
    await client.query("INSERT INTO notes VALUES ('a')")
    return 1
  }), 1)
  await t.rejects(app.pg.transact(async (client) => {
    await client.query("INSERT INTO notes VALUES ('b')")
    throw new Error('no')
  }), { message: 'no' })
  const called = await new Promise((resolve, reject) => {
    app.pg.transact<number>((client, commit) => {
      client.query("INSERT INTO notes VALUES ('c')", (error) => { commit(error ?? null, 7) })
      return undefined
    }, (error, result) => { if (error) reject(error); else resolve(result) })
  })
  t.equal(called, 7)
  await t.rejects(app.pg.transact(() => undefined), { code: 'FST_POOL_BAD_OPTIONS' })
  t.same(await notes(app), ['a', 'c'])
})

t.test('a client that goes away in the middle of a transaction costs no connection', async (t) => {
  const app = await appOf(t, { pool: 'db' }, ownPool)
  const left = new Promise<void>((resolve) => {
    app.post('/', transact(true), async (request, reply) => {
      await withPg(request).pg!.query("INSERT INTO notes VALUES ('left')")
      request.raw.destroy()
      reply.raw.once('close', resolve)
      await new Promise((resolve) => { reply.raw.once('close', resolve) })
      return {}
    })
  })
  const url = await app.listen({ port: 0, host: '127.0.0.1' })
  await t.rejects(fetch(url, { method: 'POST' }))
  await left
  await app.pools.get('db' as never).drain()
  t.equal(lent(app), 0)
})

t.test('bad options are refused by name', async (t) => {
  const fails = async (
    options: PostgresCompatOptions, error: { code: string, message?: RegExp },
    before?: (app: FastifyInstance) => Promise<void>
  ) => {
    const app = Fastify()
    t.teardown(() => app.close())
    await before?.(app)
    await t.rejects(async () => { await app.register(postgresCompat, options) }, error)
  }
  await fails({ pool: 'db', max: 3 }, { code: 'FST_POOL_BAD_OPTIONS', message: /option max is 3: expected none beside pool/ }, ownPool)
  await fails({ pool: 'other' }, { code: 'FST_POOL_NOT_FOUND' }, ownPool)
  await fails({ pool: 'db' }, { code: 'FST_POOL_BAD_OPTIONS', message: /backend 'postgresql'/ }, async (app) => {
    await app.register(fastifyPool, { backend: 'sqlite', url: ':memory:' })
  })
  await fails({ connectionString: server.url, name: 'query' }, { code: 'FST_POOL_DUPLICATE_NAME' })
})
