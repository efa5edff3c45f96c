// `rollbackEach` on real servers: what an app does in a test is undone, and all else is as it is without it.
import Fastify, { type FastifyInstance } from 'fastify'
import { once } from 'node:events'
import { join } from 'node:path'
import pg from 'pg'
import t, { type Test } from 'tap'
import { fastifyPool } from '../../index.js'
import type { PoolFace, PoolOptions } from '../../index.js'
import { assertIdle, faults, rollbackEach } from '../../lib/fastify/testing.js'
import { startMariadb, startPostgres } from '../support/services.js'
import { gate } from '../support/stage.js'

interface Kind {
  readonly name: string
  readonly options: (t: Test) => PoolOptions
  run (db: any, text: string): Promise<unknown>
  rows (db: any, text: string): Promise<Array<{ n: number }>>
}

const sqlite: Kind = {
  name: 'sqlite',
  options: (t) => ({ backend: 'sqlite', url: join(t.testdir({}), 'app.db'), max: 4 }),
  run: async (db, text) => { db.exec(text) },
  rows: async (db, text) => db.prepare(text).all().map((row: object) => ({ ...row })),
}
const memory: Kind = { ...sqlite, name: 'sqlite :memory:', options: () => ({ backend: 'sqlite', url: ':memory:' }) }
const postgresql = async (): Promise<Kind> => {
  const { url } = await startPostgres(t)
  return {
    name: 'postgresql',
    options: () => ({ backend: 'postgresql', url, max: 4 }),
    run: (db, text) => db.query(text),
    rows: async (db, text) => (await db.query(text)).rows,
  }
}
const mysql = async (): Promise<Kind> => {
  const { url } = await startMariadb(t)
  return {
    name: 'mysql',
    options: () => ({ backend: 'mysql', url, max: 4 }),
    run: (db, text) => db.query(text),
    rows: async (db, text) => (await db.query(text))[0].map((row: object) => ({ ...row })),
  }
}

const all = 'select n from notes order by n'
const inTransaction = { config: { pools: { db: { transaction: true } } } } as const
const byHand = { config: { pools: false } } as const

/** A test of the user's, which ends when it is told to. */
class Inner {
  readonly #fns: Array<() => Promise<void>> = []

  after (fn: () => Promise<void>): void {
    this.#fns.push(fn)
  }

  async end (): Promise<void> {
    for (const fn of this.#fns.splice(0)) await fn()
  }
}

/** An app with what requests do to their connections, and a table `notes` that only this test has. */
async function serve (t: Test, kind: Kind, more: Partial<PoolOptions> = {}, options: object = {}) {
  const app = Fastify(options) as unknown as FastifyInstance
  t.teardown(() => app.close())
  await app.register(fastifyPool, { ...kind.options(t), ...more } as never)
  app.register(async (app) => {
    const db = (): PoolFace<any> => app.pools.get('db') as PoolFace<any>
    const insert = (n: unknown) => `insert into notes values (${Number(n)})`
    app.post<{ Params: { n: string } }>('/plain/:n', async (request) => {
      await kind.run((request as any).db, insert(request.params.n))
      return 'ok'
    })
    app.post<{ Params: { n: string } }>('/twice/:n', async (request, reply) => {
      await kind.run((request as any).db, insert(request.params.n))
      await kind.run((request as any).db, insert(request.params.n)).catch(() => { reply.code(409) })
      return await kind.rows((request as any).db, all)
    })
    app.post<{ Params: { n: string }, Querystring: { fail?: string } }>('/tx/:n', inTransaction, async (request) => {
      await kind.run((request as any).db, insert(request.params.n))
      if (request.query.fail !== undefined) throw new Error('no')
      return 'ok'
    })
    app.post<{ Params: { n: string } }>('/again/:n', async (request) => {
      await kind.run((request as any).db, insert(request.params.n))
      await db().use((one) => kind.run(one, insert(Number(request.params.n) + 1)))
      const lease = await request.acquire('db')
      await kind.run(lease.connection, insert(Number(request.params.n) + 2))
      return await db().transaction((one) => kind.rows(one, all))
    })
    app.post<{ Params: { n: string } }>('/hand/:n', byHand, async (request) => {
      const [first, second] = await Promise.all([db().acquire(), db().acquire()])
      await kind.run(first.connection, insert(request.params.n))
      const rows = await kind.rows(second.connection, all)
      first.release()
      second.release()
      return rows
    })
  })
  await app.ready()
  const pool = app.pools.get('db') as PoolFace<any>
  await pool.use((db) => kind.run(db, 'drop table if exists notes'))
  await pool.use((db) => kind.run(db, 'create table notes (n int primary key)'))
  const stored = async () => (await pool.use((db) => kind.rows(db, all))).map(({ n }) => n)
  const post = async (url: string) => await app.inject({ method: 'POST', url })
  return { app, pool, stored, post }
}

for (const kind of [sqlite, memory, await postgresql(), await mysql()]) {
  t.test(kind.name, async (t) => {
    await t.test('what requests have stored is undone at the end of the test, and seen until then', async (t) => {
      const { app, pool, stored, post } = await serve(t, kind)
      const own = Object.keys(pool)
      for (const when of ['once', 'and again']) {
        const inner = new Inner()
        await rollbackEach(inner, app, 'db')
        t.equal((await post('/plain/1')).statusCode, 200)
        t.equal((await post('/tx/2')).statusCode, 200)
        await pool.use((db) => kind.run(db, 'insert into notes values (3)'))
        await pool.transaction((db) => kind.run(db, 'insert into notes values (4)'))
        t.same(await stored(), [1, 2, 3, 4])
        assertIdle(app)
        await inner.end()
        t.same(await stored(), [], `nothing is left: ${when}`)
      }
      t.equal((await post('/plain/1')).statusCode, 200)
      t.same(await stored(), [1], 'and without it all is stored again')
      t.same(Object.keys(pool), own, 'the pool is its own again')
    })

    await t.test('a route that fails undoes its own transaction and nothing else', async (t) => {
      const { app, stored, post } = await serve(t, kind)
      const inner = new Inner()
      await rollbackEach(inner, app, 'db')
      await post('/tx/1')
      t.equal((await post('/tx/2?fail')).statusCode, 500)
      t.same(await stored(), [1])
      await inner.end()
      t.same(await stored(), [])
    })

    await t.test('a statement that fails harms no other one', async (t) => {
      const { app, stored, post } = await serve(t, kind)
      const inner = new Inner()
      await rollbackEach(inner, app, 'db')
      const reply = await post('/twice/1')
      t.equal(reply.statusCode, 409)
      t.same(reply.json(), [{ n: 1 }])
      t.same(await stored(), [1])
      await inner.end()
      t.same(await stored(), [])
    })

    await t.test('a request that acquires again shares its connection', async (t) => {
      const { app, stored, post } = await serve(t, kind, { acquireTimeout: 2000 })
      const inner = new Inner()
      await rollbackEach(inner, app, 'db')
      t.same((await post('/again/1')).json(), [{ n: 1 }, { n: 2 }, { n: 3 }])
      t.same((await post('/hand/4')).json(), [{ n: 1 }, { n: 2 }, { n: 3 }, { n: 4 }])
      await inner.end()
      t.same(await stored(), [])
    })

    await t.test('requests take turns, however many come at once', async (t) => {
      const { app, stored, post } = await serve(t, kind)
      const inner = new Inner()
      await rollbackEach(inner, app, 'db')
      const urls = Array.from({ length: 12 }, (_, n) => ['/plain/', '/tx/', '/tx/'][n % 3]! + n + (n % 3 === 2 ? '?fail' : ''))
      const replies = await Promise.all(urls.map(post))
      t.same(replies.map(({ statusCode }) => statusCode), urls.map((url) => url.endsWith('fail') ? 500 : 200))
      t.same(await stored(), [0, 1, 3, 4, 6, 7, 9, 10])
      await inner.end()
      t.same(await stored(), [])
    })

    await t.test('transactions of one request: by hand, side by side, and left open', async (t) => {
      const { app, pool, stored } = await serve(t, kind, { acquireTimeout: 2000 })
      const inner = new Inner()
      await rollbackEach(inner, app, 'db')
      const outer = await pool.begin()
      const within = await pool.begin()
      await kind.run(within.connection, 'insert into notes values (1)')
      await outer.commit()
      await within.commit()
      const [, failed] = await Promise.allSettled([
        pool.transaction((db) => kind.run(db, 'insert into notes values (2)')),
        pool.transaction(async (db) => {
          await kind.run(db, 'insert into notes values (3)')
          throw new Error('no')
        }),
        pool.transaction((db) => kind.run(db, 'insert into notes values (4)')),
      ])
      t.equal(failed.status, 'rejected')
      const lost = await pool.begin()
      const lostToo = await pool.begin()
      await kind.run(lostToo.connection, 'insert into notes values (5)')
      await lost.rollback()
      await t.rejects(lostToo.commit(), { code: 'FST_POOL_TRANSACTION_ENDED' })
      t.same(await stored(), [1, 2, 4])
      const lease = await pool.acquire()
      await lease.transaction(async (db) => {
        await kind.run(db, 'insert into notes values (6)')
        lease.destroy()
      }).catch(() => {})
      t.same(await stored(), [1, 2, 4], 'a lease that is destroyed takes its own transaction with it')
      await inner.end()
      t.same(await stored(), [])
    })

    await t.test('faults: the errors are the real ones, and what was done before is still there', async (t) => {
      const { app, stored, post } = await serve(t, kind)
      const inner = new Inner()
      await rollbackEach(inner, app, 'db')
      await post('/plain/1')
      const fault = faults(app, 'db')
      fault.timeout()
      t.match((await post('/plain/2')).json(), { statusCode: 503, code: 'FST_POOL_ACQUIRE_TIMEOUT' })
      fault.die()
      t.match((await post('/plain/3')).json(), { statusCode: 500, code: 'ECONNRESET' })
      fault.failCommit()
      t.match((await post('/tx/4')).json(), { statusCode: 500, message: /^the commit was refused/ })
      fault.loseCommit()
      t.match((await post('/tx/5')).json(), { statusCode: 500, code: 'FST_POOL_COMMIT_UNKNOWN' })
      fault.loseCommit({ stored: true })
      t.match((await post('/tx/6')).json(), { statusCode: 500, code: 'FST_POOL_COMMIT_UNKNOWN' })
      fault.timeout(3)
      fault.restore()
      t.equal((await post('/tx/7')).statusCode, 200)
      t.same(await stored(), [1, 6, 7])
      await inner.end()
      t.same(await stored(), [])
    })

    await t.test('faults without it: the real connection dies', async (t) => {
      const { app, pool, stored, post } = await serve(t, kind)
      const own = Object.keys(pool)
      const fault = faults(app, 'db')
      fault.die()
      const died = await post('/plain/1')
      t.equal(died.statusCode, 500)
      t.comment(died.json().message)
      t.equal((await post('/plain/2')).statusCode, 200, 'the next one is another one')
      fault.loseCommit()
      t.match((await post('/tx/3')).json(), { statusCode: 500, code: 'FST_POOL_COMMIT_UNKNOWN' })
      fault.failCommit(Object.assign(new Error('deadlock'), { code: '40P01' }))
      t.match((await post('/tx/4')).json(), { statusCode: 500, code: '40P01' })
      fault.restore()
      t.equal((await post('/tx/5')).statusCode, 200)
      t.same(await stored(), [2, 5])
      t.same(Object.keys(pool), own)
      t.equal(pool.stats().destroyed.error >= 2, true)
    })

    await t.test('an app that is closed before its test has ended', async (t) => {
      const { app, pool, post } = await serve(t, kind)
      const inner = new Inner()
      await rollbackEach(inner, app, 'db')
      await post('/plain/1')
      const left: unknown[] = []
      pool.on('close', ({ holders }) => { left.push(holders) })
      await app.close()
      t.same(left, [[]], 'nobody had to be thrown out')
      await inner.end()
    })

    await t.test('a connection that is still held fails the test, and is named', async (t) => {
      const { app, pool, stored } = await serve(t, kind)
      const inner = new Inner()
      await rollbackEach(inner, app, 'db')
      const lease = await pool.acquire({ holder: { route: 'job', id: '7' } })
      await kind.run(lease.connection, 'insert into notes values (1)')
      t.throws(() => { assertIdle(app) }, { name: 'AssertionError', message: /pool 'db': job, request 7, for \d+ ms/ })
      await t.rejects(inner.end(), { message: /still held at the end of the test:\n {2}pool 'db': job, request 7/ })
      t.same(await stored(), [])
    })
  })
}

t.test('the app\'s own COMMIT, and DDL of MySQL, fail the test at its end', async (t) => {
  for (const [kind, text] of [
    [sqlite, 'commit'], [await postgresql(), 'commit'], [await mysql(), 'create table other (n int)'],
  ] as const) {
    const { app, pool } = await serve(t, kind)
    const inner = new Inner()
    await rollbackEach(inner, app, 'db')
    await pool.use((db) => kind.run(db, text)).catch(() => {})
    await t.rejects(inner.end(), { message: /ended the transaction of the test/ }, kind.name)
  }
})

t.test('PostgreSQL: statements by callback, and one that fails within a transaction of the app', async (t) => {
  const kind = await postgresql()
  const { app, pool, stored } = await serve(t, kind)
  const inner = new Inner()
  await rollbackEach(inner, app, 'db')
  await pool.use(async (db) => {
    const ask = (text: string) => new Promise((resolve, reject) => {
      db.query(text, (error: Error | null, result: unknown) => {
        if (error === null) resolve(result)
        else reject(error)
      })
    })
    await ask('insert into notes values (1)')
    await t.rejects(ask('insert into notes values (1)'), { code: '23505' })
    await ask('insert into notes values (2)')
    await Promise.all([3, 4, 3, 5].map((n) => db.query('insert into notes values ($1)', [n]).catch(() => {})))
  })
  await t.rejects(pool.transaction(async (db) => {
    await kind.run(db, 'insert into notes values (6)')
    await kind.run(db, 'insert into notes values (6)').catch(() => {})
    await kind.run(db, 'insert into notes values (7)')
  }), { code: '25P02' }, 'as in production')
  t.same(await stored(), [1, 2, 3, 4, 5])
  await inner.end()
  t.same(await stored(), [])
})

t.test('PostgreSQL: the one connection dies in earnest', async (t) => {
  const kind = await postgresql()
  const { app, pool, stored, post } = await serve(t, kind)
  const inner = new Inner()
  await rollbackEach(inner, app, 'db')
  await post('/plain/1')
  await t.rejects(pool.use((db) => db.query('select pg_terminate_backend(pg_backend_pid())')), { code: '57P01' })
  t.match((await post('/plain/2')).json(), { statusCode: 503, code: 'FST_POOL_CONNECT_FAILED', message: /rollbackEach/ })
  t.equal(pool.tryAcquire(), null)
  await inner.end()
  t.same(await stored(), [], 'the pool goes on with another one')
})

t.test('PostgreSQL: cursors, and what is submitted by itself', async (t) => {
  const { app, pool, stored } = await serve(t, await postgresql())
  const inner = new Inner()
  await rollbackEach(inner, app, 'db')
  await pool.use(async (db) => {
    t.ok(db instanceof pg.Client)
    const query = new pg.Query('insert into notes values (1)')
    const ended = once(query, 'end')
    t.equal(db.query(query), query)
    await ended
  })
  t.same(await stored(), [1])
  await inner.end()
  t.same(await stored(), [])
})

t.test('what is no test is refused before anything begins', async (t) => {
  const { app, pool } = await serve(t, sqlite)
  for (const no of [{}, undefined]) {
    await t.rejects(rollbackEach(no as never, app, 'db'), { code: 'FST_POOL_BAD_OPTIONS', message: /option t is/ })
  }
  t.equal(pool.stats().used, 0)
  const inner = new Inner()
  await rollbackEach(inner, app, 'db')
  await inner.end()
})

t.test('who waits for its turn in vain gets the pool\'s own error', async (t) => {
  const { app, pool, post } = await serve(t, sqlite, { acquireTimeout: 100 })
  const inner = new Inner()
  await rollbackEach(inner, app, 'db')
  const seen: string[] = []
  app.pools.on('timeout', ({ error }) => { seen.push(error.message) })
  const open = gate()
  const busy = pool.use(() => open.opened)
  const reply = await post('/plain/1')
  t.match(reply.json(), { statusCode: 503, code: 'FST_POOL_ACQUIRE_TIMEOUT' })
  t.equal(seen.length, 1)
  t.match(pool.stats(), { used: 1, timeouts: 1 })
  open.open()
  await busy
  t.equal((await post('/plain/1')).statusCode, 200)
  await inner.end()
})
