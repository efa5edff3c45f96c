// `fastify-pool/testing`, but for what `rollbackEach` does on real servers: testing-rollback.test.ts.
import Fastify, { type FastifyInstance, type FastifyRequest } from 'fastify'
import type { Knex } from 'knex'
import type { Kysely } from 'kysely'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { fastifyPool, type PluginOptions, type PoolFace } from '../../index.js'
import { assertIdle, fakePool, faults, rollbackEach } from '../../lib/fastify/testing.js'
import { knex } from '../../lib/wrap/knex.js'
import { kysely } from '../../lib/wrap/kysely.js'
import { startMongoDouble } from '../doubles/mongo-wire.js'
import { startPostgres, startRedis } from '../support/services.js'
import { gate } from '../support/stage.js'
import { until } from '../support/until.js'

const transaction = { config: { pools: { db: { transaction: true } } } } as const

async function serve (t: Test, options: PluginOptions, routes: (app: FastifyInstance) => void = () => {}) {
  const app = Fastify() as unknown as FastifyInstance
  t.teardown(() => app.close())
  await app.register(fastifyPool, options)
  app.register(async (app) => { routes(app) })
  await app.ready()
  return app
}

/** What `rollbackEach` wants of a test; tap's own `t.after` is its teardown. */
function inner () {
  const fns: Array<() => Promise<void>> = []
  return { after: (fn: () => Promise<void>) => { fns.push(fn) }, end: async () => { for (const fn of fns) await fn() } }
}

// --- assertIdle ------------------------------------------------------------------------------------------------------

t.test('assertIdle names the pool, the route, the request and for how long', async (t) => {
  const { opened, open, wait, reached } = gate()
  t.teardown(open)
  const app = await serve(t, { pools: { db: fakePool({}), other: fakePool({}) } } as never, (app) => {
    app.get('/slow/:id', async (request) => {
      request.lease('db')
      await wait()
      return opened
    })
  })
  assertIdle(app)
  const reply = app.inject('/slow/1')
  const job = await app.pools.get('other').acquire({ holder: 'job' })
  await reached
  await t.rejects(async () => { assertIdle(app) }, {
    name: 'AssertionError',
    message: /^3 connections are still held:\n(?=[^]*^ {2}pool 'db': GET \/slow\/:id, request req-1, for \d+ ms$)[^]*^ {2}pool 'other': job, for \d+ ms$/m,
  })
  job.release()
  open()
  await reply
  assertIdle(app)
})

t.test('assertIdle: at once behind a reply, also behind one that waited for its commit', async (t) => {
  const app = await serve(t, fakePool({}) as never, (app) => {
    app.get('/', async () => 'ok')
    app.get('/tx', transaction, async () => 'ok')
    app.get('/error', transaction, async () => { throw new Error('no') })
  })
  for (const url of ['/', '/tx', '/error', '/404']) {
    await app.inject(url)
    t.doesNotThrow(() => { assertIdle(app) }, url)
  }
})

t.test('an app without pools is told so', async (t) => {
  const app = Fastify() as unknown as FastifyInstance
  t.teardown(() => app.close())
  const missing = { code: 'FST_POOL_NOT_FOUND', message: /register fastify-pool, and await app\.ready\(\) first/ }
  t.throws(() => { assertIdle(app) }, missing)
  t.throws(() => faults(app, 'db'), missing)
  await t.rejects(rollbackEach(inner(), app, 'db'), missing)
  await serve(t, fakePool({}) as never).then(async (app) => {
    t.throws(() => faults(app, 'other'), { code: 'FST_POOL_NOT_FOUND' })
    await t.rejects(rollbackEach(inner(), app, 'other'), { code: 'FST_POOL_NOT_FOUND' })
  })
})

// --- fakePool --------------------------------------------------------------------------------------------------------

t.test('fakePool: one object, lent again and again, and what became of it', async (t) => {
  const connection = { query: async () => 'rows' }
  const db = fakePool(connection)
  const app = await serve(t, { pools: { db: { ...db, max: 1 } } } as never, (app) => {
    app.get('/', async (request) => {
      t.equal(request.db as unknown, connection)
      return await (request.db as unknown as typeof connection).query()
    })
    app.get('/tx', transaction, async (request) => {
      await request.transaction('db', async () => {})
      return 'ok'
    })
    app.get('/fail', transaction, async () => { throw new Error('no') })
    app.get('/destroy', async (request) => {
      request.lease('db').destroy()
      return 'ok'
    })
  })
  t.same([db.created, db.acquired, db.released, db.destroyed], [1, 0, 0, 0])
  for (const url of ['/', '/', '/tx', '/fail', '/destroy', '/']) await app.inject(url)
  t.same([db.created, db.acquired, db.released, db.destroyed], [2, 6, 5, 1])
  t.same([db.committed, db.rolledBack], [1, 1])
  t.same(db.connections, [connection, connection])
  await app.close()
  t.equal(db.destroyed, 2)
})

t.test('fakePool: a function makes one at each connect, and may fail', async (t) => {
  let fails = false
  const db = fakePool(async () => {
    if (fails) throw new Error('refused')
    return { id: 1 }
  })
  const app = await serve(t, { ...db, max: 2, acquireTimeout: 50 } as never)
  const pool = app.pools.get('db')
  const [one, two] = [await pool.acquire(), await pool.acquire()]
  t.same(db.connections, [one.connection, two.connection])
  t.not(one.connection, two.connection)
  fails = true
  one.destroy()
  two.destroy()
  await t.rejects(pool.acquire(), { code: 'FST_POOL_CONNECT_FAILED' })
})

// --- faults ----------------------------------------------------------------------------------------------------------

t.test('faults on fakes: each happens once, with its real code and status, and is seen by events', async (t) => {
  const connection = { query: async () => 'rows' }
  const db = fakePool(connection)
  const app = await serve(t, db as never, (app) => {
    app.get('/', async (request) => await (request.db as unknown as typeof connection).query())
    app.get('/tx', transaction, async () => 'ok')
  })
  const seen: unknown[] = []
  app.pools.on('timeout', ({ error, pool, holder }) => { seen.push([(error as { code?: string }).code, pool, holder]) })
  const get = async (url: string) => await app.inject(url)
  const fault = faults(app, 'db')

  fault.timeout(2)
  t.equal(app.pools.get('db').tryAcquire(), null)
  for (const url of ['/', '/tx']) {
    const reply = await get(url)
    t.match(reply.json(), { statusCode: 503, code: 'FST_POOL_ACQUIRE_TIMEOUT' })
    t.match(reply.json().message, /^no connection from pool 'db' within \d+ ms \(max \d+, used 0/)
    t.match(reply.headers['retry-after'], /^\d+$/)
  }
  t.match(seen, [['FST_POOL_ACQUIRE_TIMEOUT', 'db', { route: 'GET /' }], ['FST_POOL_ACQUIRE_TIMEOUT', 'db', { route: 'GET /tx' }]])
  t.equal((await get('/')).body, 'rows')

  fault.die()
  t.match((await get('/')).json(), { statusCode: 500, code: 'ECONNRESET' })
  t.equal(db.destroyed, 1)
  t.equal((await get('/')).body, 'rows')
  fault.die()
  t.match((await get('/tx')).json(), { statusCode: 500, code: 'ECONNRESET' })
  t.equal(db.destroyed, 2)

  const before = db.committed
  fault.failCommit()
  t.match((await get('/tx')).json(), { statusCode: 500, message: /^the commit was refused/ })
  fault.failCommit(Object.assign(new Error('conflict'), { statusCode: 409 }))
  t.equal((await get('/tx')).statusCode, 409)
  t.same([db.committed - before, db.rolledBack], [0, 2])
  fault.loseCommit()
  t.match((await get('/tx')).json(), { statusCode: 500, code: 'FST_POOL_COMMIT_UNKNOWN' })
  t.equal(db.committed - before, 0)
  fault.loseCommit({ stored: true })
  t.match((await get('/tx')).json(), { statusCode: 500, code: 'FST_POOL_COMMIT_UNKNOWN' })
  t.equal(db.committed - before, 1)

  fault.timeout()
  fault.die()
  fault.failCommit()
  fault.restore()
  t.equal((await get('/tx')).statusCode, 200)
  faults(app, 'db')
  t.equal((await get('/tx')).statusCode, 200, 'nothing is kept for later')
  t.throws(() => { fault.timeout(0) }, { code: 'FST_POOL_BAD_OPTIONS', message: /option n is 0/ })
})

t.test('faults end with their block, and jobs meet them, too', async (t) => {
  const app = await serve(t, fakePool({ query: () => 'rows' }) as never)
  const pool = app.pools.get('db') as unknown as PoolFace<any>
  {
    using fault = faults(app, 'db')
    fault.timeout(3)
    await t.rejects(pool.use(async () => {}), { code: 'FST_POOL_ACQUIRE_TIMEOUT' })
    await t.rejects(pool.begin(), { code: 'FST_POOL_ACQUIRE_TIMEOUT' })
    await t.rejects(pool.execute('query'), { code: 'FST_POOL_ACQUIRE_TIMEOUT' })
    fault.loseCommit()
    await t.rejects(pool.transaction(async () => {}), { code: 'FST_POOL_COMMIT_UNKNOWN' })
    fault.timeout()
  }
  t.equal(await pool.execute('query'), 'rows')
})

t.test('Redis: the connection dies with the driver\'s own error; rollbackEach is refused', async (t) => {
  const { url } = await startRedis(t)
  const app = await serve(t, { backend: 'redis', url } as never, (app) => {
    app.get('/', async (request) => await (request.db as unknown as { ping (): Promise<string> }).ping())
  })
  faults(app, 'db').die()
  const reply = await app.inject('/')
  t.equal(reply.statusCode, 500)
  t.match(reply.json().message, /closed|ended|writeable/i)
  t.equal((await app.inject('/')).body, 'PONG')
  t.equal(app.pools.get('db').stats().destroyed.error, 1)
  await t.rejects(rollbackEach(inner(), app, 'db'), { code: 'FST_POOL_NOT_SUPPORTED', message: /pool 'db' is redis/ })
  assertIdle(app)
})

t.test('SQLite: a connection that is a function (Knex) dies, too', async (t) => {
  const app = await serve(t, { backend: 'sqlite', url: ':memory:', wrap: knex() } as never, (app) => {
    app.get('/', async (request) => await (request.db as unknown as Knex).select(1))
    app.get('/table', async (request) => await (request.db as unknown as Knex)('sqlite_master'))
  })
  const fault = faults(app, 'db')
  for (const url of ['/', '/table']) {
    fault.die()
    t.match((await app.inject(url)).json(), { statusCode: 500, code: 'ECONNRESET' })
    t.equal((await app.inject(url)).statusCode, 200)
  }
})

t.test('MongoDB: the connection dies; rollbackEach is refused', async (t) => {
  const { url } = await startMongoDouble(t)
  const app = await serve(t, { backend: 'mongodb', url } as never, (app) => {
    app.get('/', async (request) => await (request.db as unknown as { command (c: object): Promise<object> }).command({ ping: 1 }))
  })
  faults(app, 'db').die()
  t.match((await app.inject('/')).json(), { statusCode: 500, code: 'ECONNRESET' })
  t.match((await app.inject('/')).json(), { ok: 1 })
  await t.rejects(rollbackEach(inner(), app, 'db'), { code: 'FST_POOL_NOT_SUPPORTED', message: /pool 'db' is mongodb/ })
})

t.test('a pool per tenant is refused, and so is a second rollbackEach', async (t) => {
  const app = await serve(t, {
    pools: { db: { key: () => 'a', options: () => ({ ...fakePool({}) }) }, one: fakePool({}) },
  } as never)
  t.throws(() => faults(app, 'db'), { code: 'FST_POOL_NOT_SUPPORTED' })
  await t.rejects(rollbackEach(inner(), app, 'db'), { code: 'FST_POOL_NOT_SUPPORTED' })
  const test = inner()
  await rollbackEach(test, app, 'one')
  await t.rejects(rollbackEach(inner(), app, 'one'), { code: 'FST_POOL_NOT_SUPPORTED', message: /already/ })
  await test.end()
  const again = inner()
  await rollbackEach(again, app, 'one')
  await again.end()
  assertIdle(app)
})

// --- rollbackEach: whose turn it is ----------------------------------------------------------------------------------

t.test('hooks of the app, a bulkhead, and calls that are aborted', async (t) => {
  const { open, opened, wait, reached } = gate()
  t.teardown(open)
  const app = await serve(t, {
    ...fakePool({}), acquireTimeout: 2000, bulkhead: { key: () => 'all', max: 5 },
  } as never, (app) => {
    app.addHook('preHandler', async () => { await app.pools.get('db').use(() => {}) })
    app.get('/', async () => 'ok')
    app.get('/slow', async (request) => {
      request.lease('db')
      await wait()
      await opened
      return 'ok'
    })
  })
  const test = inner()
  await rollbackEach(test, app, 'db')
  const pool = app.pools.get('db')
  t.equal((await app.inject('/')).statusCode, 200, 'a hook that acquires again')
  const slow = app.inject('/slow')
  await reached
  t.equal(pool.tryAcquire(), null, 'it is the turn of the request')
  const stop = new AbortController()
  const waiting = pool.acquire({ signal: stop.signal })
  const gone = pool.acquire({ signal: AbortSignal.abort(new Error('gone')) })
  await t.rejects(gone, { code: 'FST_POOL_ABORTED', cause: { message: 'gone' } })
  await until(() => pool.stats().pending > 0)
  stop.abort(new Error('enough'))
  await t.rejects(waiting, { code: 'FST_POOL_ABORTED' })
  await t.rejects(pool.acquire({ timeout: 20 }), { code: 'FST_POOL_ACQUIRE_TIMEOUT' })
  const next = app.inject('/')
  open()
  t.equal((await slow).statusCode, 200)
  t.equal((await next).statusCode, 200)
  const lease = pool.tryAcquire()
  const other = pool.tryAcquire()
  t.ok(lease)
  t.ok(other, 'the code outside of requests shares it')
  lease!.release()
  other!.release()
  await test.end()
  assertIdle(app)
})

t.test('requests that take no connection before their handler take turns, too', async (t) => {
  const { open, opened, wait, reached } = gate()
  t.teardown(open)
  const app = await serve(t, { ...fakePool({}), lease: false, acquireTimeout: 2000 } as never, (app) => {
    const pool = (): PoolFace<unknown> => app.pools.get('db') as PoolFace<unknown>
    app.get('/slow', async () => await pool().use(async () => {
      await wait()
      await opened
      return await pool().use(() => 'ok')
    }))
    app.get('/', async () => await pool().use(() => 'ok'))
  })
  const test = inner()
  await rollbackEach(test, app, 'db')
  const slow = app.inject('/slow')
  await reached
  const next = app.inject('/')
  await until(() => app.pools.get('db').stats().pending === 1)
  open()
  t.match([await slow, await next], [{ body: 'ok' }, { body: 'ok' }])
  await test.end()
})

t.test('a client that leaves gives its turn back', async (t) => {
  const { wait, reached } = gate()
  const app = await serve(t, { ...fakePool({}), abortGrace: 0, acquireTimeout: 2000 } as never, (app) => {
    app.get('/', async () => 'ok')
    app.get('/never', async (request: FastifyRequest) => {
      request.lease('db')
      await wait()
      await new Promise(() => {})
    })
  })
  await app.listen({ port: 0, host: '127.0.0.1' })
  const { port } = app.server.address() as { port: number }
  const test = inner()
  await rollbackEach(test, app, 'db')
  const stop = new AbortController()
  const never = fetch(`http://127.0.0.1:${port}/never`, { signal: stop.signal })
  await reached
  stop.abort()
  await t.rejects(never)
  t.equal((await fetch(`http://127.0.0.1:${port}/`)).status, 200)
  await test.end()
  assertIdle(app)
})

t.test('PostgreSQL: a query builder over the connection (wrap), and its own transactions', async (t) => {
  const { url } = await startPostgres(t)
  const app = await serve(t, { backend: 'postgresql', url, wrap: kysely(), acquireTimeout: 2000 } as never, (app) => {
    const add = (db: Kysely<unknown>, n: number) => sql`insert into words values (${n})`.execute(db)
    app.get('/own', async (request) => {
      const db = request.db as unknown as Kysely<unknown>
      await add(db, 1)
      await db.transaction().execute((trx) => add(trx, 2))
      await db.transaction().execute(async (trx) => {
        await add(trx, 3)
        throw new Error('no')
      }).catch(() => {})
      return (await sql`select n from words order by n`.execute(db)).rows
    })
  })
  const pool = app.pools.get('db') as unknown as PoolFace<Kysely<unknown>>
  await pool.use((db) => sql`drop table if exists words`.execute(db))
  await pool.use((db) => sql`create table words (n int)`.execute(db))
  const test = inner()
  await rollbackEach(test, app, 'db')
  t.same((await app.inject('/own')).json(), [{ n: 1 }, { n: 2 }])
  await test.end()
  t.same((await pool.use((db) => sql`select n from words`.execute(db))).rows, [])
})
