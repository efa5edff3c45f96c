import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import type { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import fastifyPool, { type PoolOptions } from '../../index.js'
import { listen } from '../support/app.js'
import { startProxy } from '../support/proxy.js'
import { startRedis } from '../support/services.js'
import { until } from '../support/until.js'
import { type Answer, ask, keepAliveAgent } from './client.js'

const server = await startRedis(t)

async function serve (
  t: Test,
  pool: Partial<PoolOptions>,
  options: FastifyServerOptions = {},
  prepare: (app: FastifyInstance) => void = () => {}
) {
  const proxy = await startProxy(t, server)
  const app = Fastify(options)
  await app.register(fastifyPool,
    { backend: 'redis', url: `redis://${proxy.host}:${proxy.port}`, ...pool } as PoolOptions)
  prepare(app)
  app.get('/secret-route/:id', async (request) => {
    await (request.db as unknown as Redis).blpop('nothing', 0)
    return 'held'
  })
  app.get('/', async (request) => (request.db as unknown as Redis).echo('served'))
  const port = await listen(t, app)
  const agent = keepAliveAgent(t)
  return { app, proxy, port, agent, get: () => ask({ port, agent, path: '/' }) }
}

/** The connections of a pool are held by requests, until the test ends. */
async function hold (t: Test, { app, port }: { app: FastifyInstance, port: number }, count: number): Promise<void> {
  const agent = keepAliveAgent(t)
  const held =
    Array.from({ length: count },
      () => ask({ port, agent, path: '/secret-route/7' }).catch(() => 'cut off when the test ended'))
  t.teardown(() => held)
  await until(() => app.pools.stats().db!.used === count)
}

function check (t: Test, { status, headers, body }: Answer, code: string): void {
  t.equal(status, 503)
  t.match(headers['retry-after'], /^([1-9]|[12]\d|30)$/)
  t.match(JSON.parse(body), { statusCode: 503, code, error: 'Service Unavailable' })
  // Neither where the database is, nor who has its connections.
  t.notMatch(body, /127\.0\.0\.1|localhost|redis:|secret-route|req-|GET|ECONN/)
  t.notMatch(body, String(server.port))
  t.comment(`${headers['retry-after']} s: ${body}`)
}

t.test('a full pool answers 503 with Retry-After at once', async (t) => {
  const served = await serve(t, { max: 1, maxPending: 0, abortGrace: 0 } as Partial<PoolOptions>)
  await hold(t, served, 1)
  check(t, await served.get(), 'FST_POOL_QUEUE_FULL')
})

t.test('a slow pool answers 503 with Retry-After at the deadline', async (t) => {
  const served = await serve(t, { max: 2, acquireTimeout: 100, abortGrace: 0 } as Partial<PoolOptions>)
  await hold(t, served, 2)
  check(t, await served.get(), 'FST_POOL_ACQUIRE_TIMEOUT')
})

t.test('a broken pool answers 503 with Retry-After, and serves when its server is back', async (t) => {
  const served = await serve(t, { acquireTimeout: 200 })
  await served.proxy.refuse()
  served.proxy.resetAll()
  await until(() => served.app.pools.stats().db!.idle === 0)
  check(t, await served.get(), 'FST_POOL_CONNECT_FAILED')
  await served.proxy.heal()
  await until(async () => (await served.get()).status === 200)
})

t.test('a server that accepts and stays silent is a broken one', async (t) => {
  const served = await serve(t, { acquireTimeout: 300, connectTimeout: 100 })
  served.proxy.silence()
  served.proxy.resetAll()
  await until(() => served.app.pools.stats().db!.idle === 0)
  check(t, await served.get(), 'FST_POOL_CONNECT_FAILED')
})

t.test('a closed pool answers 503 with Retry-After', async (t) => {
  const served = await serve(t, {})
  await served.app.pools.get('db').close()
  check(t, await served.get(), 'FST_POOL_CLOSED')
})

t.test('Retry-After is there too where the app has an error handler of its own', async (t) => {
  const { get, app } = await serve(t, {}, {}, (app) => {
    app.setErrorHandler((_error, _request, reply) => reply.code(503).send({ sorry: true }))
  })
  await app.pools.get('db').close()
  const { status, headers, body } = await get()
  t.same({ status, body }, { status: 503, body: '{"sorry":true}' })
  t.match(headers['retry-after'], /^([1-9]|[12]\d|30)$/)
})
