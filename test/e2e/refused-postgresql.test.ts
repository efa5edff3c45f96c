import Fastify, { type FastifyRequest } from 'fastify'
import type pg from 'pg'
import t, { type Test } from 'tap'
import fastifyPool, { type PoolOptions } from '../../index.js'
import { startPostgres } from '../support/services.js'
import { until } from '../support/until.js'

// A server that is there, and refuses us: what the pool makes of it, on the virtual clock: test/pool/refused.test.ts.

async function serve (t: Test, pool: Partial<PoolOptions>) {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(fastifyPool, { backend: 'postgresql', ...pool } as PoolOptions)
  app.get('/', async (request) => {
    const { db } = request as FastifyRequest & { db: pg.Client }
    await db.query('select pg_sleep(0.005)')
    return 'served'
  })
  await app.ready()
  return app
}

t.test('a server that allows fewer than max: all are served, and nothing is tried while nobody waits', async (t) => {
  const server = await startPostgres(t, { args: ['-c', 'max_connections=5'] })
  const app = await serve(t, { url: server.url, max: 10, acquireTimeout: 30_000 })
  const pool = app.pools.get('db')
  const burst = async () => {
    const answers = await Promise.all(Array.from({ length: 60 }, () => app.inject('/')))
    t.same(answers.filter(({ statusCode }) => statusCode !== 200).map(({ body }) => body), [])
  }
  // Until it knows.
  await until(async () => {
    await burst()
    return pool.stats().createErrors >= 4
  }, { what: 'it meets the limit' })
  await until(() => pool.stats().used === 0 && pool.stats().creating === 0)
  const { createErrors, idle } = pool.stats()
  t.ok(idle > 0 && idle <= 5, `${idle} are there`)
  for (let i = 0; i < 50; i++) t.equal((await app.inject('/')).statusCode, 200)
  t.match(pool.stats(), { createErrors, creating: 0, refused: 0, timeouts: 0 })
  t.comment(`measured: ${createErrors} connects failed`)
})

t.test('a refused login: whoever comes is told at once, and url() with another answer ends the pause', async (t) => {
  const server = await startPostgres(t, { scram: true })
  const wrong = server.url.replace(':secret@', ':wrong@')
  t.not(wrong, server.url)
  await t.rejects(serve(t, { url: wrong }), { code: 'FST_POOL_CONNECT_FAILED', cause: { code: '28P01' } })
  let url = wrong
  const app = await serve(t, { url: () => url, startup: 'lazy', acquireTimeout: 60_000 })
  const pool = app.pools.get('db')
  for (let i = 0; i < 20; i++) {
    await t.rejects(pool.acquire(), { code: 'FST_POOL_CONNECT_FAILED', cause: { code: '28P01' } })
  }
  t.match(pool.stats(), { refused: 20, timeouts: 0, circuit: 'closed' })
  t.match(await app.inject('/'), { statusCode: 503 })
  url = server.url
  t.equal((await app.inject('/')).statusCode, 200)
})
