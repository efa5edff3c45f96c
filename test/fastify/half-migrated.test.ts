import Fastify, { type FastifyInstance, type FastifyRequest } from 'fastify'
import t, { type Test } from 'tap'
import { fastifyPool, type PluginOptions, type PoolError, type PoolOptions } from '../../index.js'
import { FakeConnector, type FakeConnection } from '../support/fake-connector.js'
import { gate } from '../support/stage.js'
import { until } from '../support/until.js'

// An app whose handlers take connections from `app.pools`, and hold the connection that every request has by default,
// too: the pool's errors say so.

interface Line { readonly level: number, readonly msg: string, readonly event?: string }

interface SetOptions {
  pool?: Partial<PoolOptions>
  plugin?: Partial<PluginOptions>
  routes? (app: FastifyInstance): void
}

const use = (app: FastifyInstance) => app.pools.get('db').use((connection) => (connection as FakeConnection).id)

async function set (t: Test, { pool, plugin, routes }: SetOptions = {}) {
  const lines: Line[] = []
  const stream = { write: (line: string) => { lines.push(JSON.parse(line) as Line) } }
  const app = Fastify({ logger: { level: 'warn', stream } }) as unknown as FastifyInstance
  t.teardown(() => app.close())
  const options = { connector: new FakeConnector(), max: 2, acquireTimeout: 60, overload: false, ...pool }
  await app.register(fastifyPool, { ...plugin, pools: { db: options } } as PluginOptions)
  app.get('/', async () => String(await use(app)))
  routes?.(app)
  await app.ready()
  return { app, lines, stats: () => app.pools.get('db').stats() }
}

const advice =
  'Of the 2 connections held longest, 2 are held by requests that have never read theirs: where handlers take ' +
  'connections from app.pools, or need none, set lease: false (of the plugin or of the pool) and name the pools of other routes ' +
  'in their config.pools.'

t.test('requests that all wait for a second connection are told that nobody uses the first ones, and so is the log', async (t) => {
  const { app, lines } = await set(t)
  const answers = await Promise.all(Array.from({ length: 4 }, () => app.inject('/')))
  const failed = answers.filter(({ statusCode }) => statusCode === 503)
  t.ok(failed.length >= 2)
  for (const answer of failed) t.ok(answer.json().message.endsWith(` ${advice}`), answer.json().message)
  const told = lines.filter(({ msg }) => msg.includes('within 60 ms'))
  t.ok(told.length >= 2)
  for (const { msg } of told) t.ok(msg.endsWith(advice), msg)
})

t.test('lease: false is the remedy', async (t) => {
  for (const [pool, plugin] of [[{}, { lease: false }], [{ lease: false }, {}]] as const) {
    const { app, stats } = await set(t, { pool: { ...pool, acquireTimeout: 30_000 }, plugin })
    const answers = await Promise.all(Array.from({ length: 4 }, () => app.inject('/')))
    t.same(answers.map(({ statusCode }) => statusCode), [200, 200, 200, 200])
    t.equal(stats().timeouts, 0)
  }
})

t.test('whoever catches the error has the whole of it, with and without a log', async (t) => {
  for (const log of [undefined, false] as const) {
    const caught: string[] = []
    const { app } = await set(t, {
      plugin: { ...(log === false && { log }) },
      routes: (app) => {
        app.get('/caught', async () => {
          await use(app).catch(({ message }: PoolError) => { caught.push(message) })
          return 'well'
        })
      },
    })
    await Promise.all(Array.from({ length: 4 }, () => app.inject('/caught')))
    t.ok(caught.length >= 1)
    for (const message of caught) t.ok(message.endsWith(advice), message)
  }
})

t.test('callers that are refused at once are told, too', async (t) => {
  const door = gate()
  t.teardown(() => { door.open() })
  const { app, stats } = await set(t, {
    pool: { maxPending: 0 },
    routes: (app) => { app.get('/wait', async () => { await door.opened; return 'well' }) },
  })
  await Promise.all([use(app), use(app)])
  const held = [app.inject('/wait'), app.inject('/wait')]
  await until(() => stats().used === 2)
  const answer = await app.inject('/')
  t.match(answer.json(), { statusCode: 503, code: 'FST_POOL_QUEUE_FULL' })
  t.ok(answer.json().message.endsWith(advice), answer.json().message)
  door.open()
  await Promise.all(held)
})

t.test('a job is told as well as a request', async (t) => {
  const door = gate()
  t.teardown(() => { door.open() })
  const { app, stats } =
    await set(t, { routes: (app) => { app.get('/wait', async () => { await door.opened; return 'well' }) } })
  const held = [app.inject('/wait'), app.inject('/wait')]
  await until(() => stats().used === 2)
  await t.rejects(use(app), { code: 'FST_POOL_ACQUIRE_TIMEOUT', message: advice })
  door.open()
  await Promise.all(held)
})

interface Row { name: string, hold: (request: FastifyRequest) => unknown, then: RegExp | undefined }
const read = (request: FastifyRequest): unknown => (request as unknown as { db: unknown }).db
const rows: Row[] = [
  { name: 'read by request.db', hold: read, then: undefined },
  { name: 'read by request.lease', hold: (request) => request.lease('db'), then: undefined },
  { name: 'taken by request.acquire', hold: (request) => request.acquire('db'), then: undefined },
  { name: 'half of them read', hold: (request) => { if (request.headers['x-read'] !== undefined) read(request) }, then: /Of the 2 connections held longest, 1 is held/ },
]
for (const { name, hold, then } of rows) {
  t.test(`connections that are used are no reason: ${name}`, async (t) => {
    const door = gate()
    t.teardown(() => { door.open() })
    const { app, stats } = await set(t, {
      routes: (app) => {
        app.get('/wait', async (request) => { await hold(request); await door.opened; return 'well' })
      },
    })
    const held = [app.inject('/wait'), app.inject({ url: '/wait', headers: { 'x-read': '1' } })]
    await until(() => stats().used === 2)
    const error = await use(app).then(() => { throw new Error('it was served') }, (error: PoolError) => error)
    t.equal(error.code, 'FST_POOL_ACQUIRE_TIMEOUT')
    if (then === undefined) t.match(error.message, /Look for slow queries or leaks, or raise max\.$/)
    else t.match(error.message, then)
    door.open()
    await Promise.all(held)
  })
}

t.test('jobs that hold connections are no requests', async (t) => {
  const { app } = await set(t)
  const leases = [await app.pools.get('db').acquire(), await app.pools.get('db').acquire()]
  await t.rejects(use(app), { message: /or raise max\.$/ })
  for (const lease of leases) lease.release()
})

t.test('a pool over several servers, and one of an inner scope, tell it once', async (t) => {
  const { app } = await set(t, {
    routes: (app) => {
      app.register(async (scope) => {
        const targets = ['one', 'two'].map((name) => ({ name, role: 'peer', connector: new FakeConnector() }))
        await scope.register(fastifyPool,
          { name: 'inner', targets, max: 2, acquireTimeout: 60, overload: false } as unknown as PluginOptions)
        scope.get('/inner', { config: { pools: ['inner'] } },
          async () => await scope.pools.get('inner').use(() => 'well'))
      })
    },
  })
  const answers = await Promise.all(Array.from({ length: 4 }, () => app.inject('/inner')))
  const failed = answers.filter(({ statusCode }) => statusCode === 503)
  t.ok(failed.length >= 1)
  for (const answer of failed) {
    t.equal(answer.json().message.split('have never read theirs').length, 2,
      answer.json().message)
  }
})
