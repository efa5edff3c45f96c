import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import underPressure from '@fastify/under-pressure'
import t, { type Test } from 'tap'
import { fastifyPool, type PluginOptions, type PoolOptions } from '../../index.js'
import { logLines } from '../support/app.js'
import { FakeConnector } from '../support/fake-connector.js'

interface Body { status: string, pools: Record<string, Record<string, unknown>> }

function appOf (t: Test, options: FastifyServerOptions = {}): FastifyInstance {
  const app = Fastify(options) as unknown as FastifyInstance
  t.teardown(() => app.close())
  return app
}

async function ask (app: FastifyInstance, url: string) {
  const response = await app.inject(url)
  return { code: response.statusCode, body: response.json<Body>(), headers: response.headers }
}

function poolsOf (connectors: Record<string, FakeConnector>, options: object = {}): Record<string, PoolOptions> {
  return Object.fromEntries(Object.entries(connectors).map(([name, connector]) =>
    [name, { connector, circuit: false, startup: 'lazy', acquireTimeout: 50, backoff: { min: 1, max: 5 }, ...options }]))
}

t.test('live and ready, where all is well', async (t) => {
  const app = appOf(t)
  const connector = new FakeConnector()
  await app.register(fastifyPool, { pools: poolsOf({ db: connector }), healthRoutes: true })
  await app.ready()
  await app.pools.get('db').use(() => {})
  t.match(await ask(app, '/livez'), { code: 200, body: { status: 'up' }, headers: { 'cache-control': 'no-store' } })
  t.match(await ask(app, '/readyz'), { code: 200, body: { status: 'up', pools: { db: { status: 'up' } } } })
  t.type((await ask(app, '/readyz')).body.pools.db!.latency, 'number')
  t.equal((await app.inject({ method: 'HEAD', url: '/readyz' })).statusCode, 200)
})

t.test('a pool that is down makes only those processes unready whose option names it', async (t) => {
  for (const downIs503 of [[], ['db'], ['cache']]) {
    const app = appOf(t)
    const db = new FakeConnector()
    db.outcomes.create = 'error'
    await app.register(fastifyPool,
      { pools: poolsOf({ db, cache: new FakeConnector() }), healthRoutes: { downIs503 }, log: false })
    await app.ready()
    // The last thing that the pool knows of its server is a failure.
    await t.rejects(app.pools.get('db').acquire())
    const { code, body } = await ask(app, '/readyz')
    t.equal(code, downIs503.includes('db') ? 503 : 200, downIs503.join())
    t.match(body, { status: 'down', pools: { db: { status: 'down', reason: String } } })
    t.equal(body.pools.db!.reason, (await app.pools.get('db').health()).reason)
    t.equal(body.pools.db!.since, (await app.pools.get('db').health()).since)
    t.equal((await ask(app, '/livez')).code, 200)
  }
})

t.test('while a pool drains the process is not ready, and alive', async (t) => {
  const app = appOf(t)
  await app.register(fastifyPool, { pools: poolsOf({ db: new FakeConnector() }), healthRoutes: true })
  app.get('/', async (request) => (request as unknown as { db: { id: number } }).db.id)
  await app.ready()
  await app.pools.get('db').drain()
  t.match(await ask(app, '/readyz'), { code: 503, body: { status: 'draining' } })
  t.equal((await ask(app, '/livez')).code, 200)
  t.equal((await app.inject('/')).statusCode, 200, 'requests are still served: so a preStop can drain first')
})

t.test('they lease nothing, live asks no pool, and no line of the log is theirs', async (t) => {
  const { stream, lines } = logLines<{ msg: string, req?: { url: string } }>()
  const app = appOf(t, { logger: { level: 'info', stream } })
  const connector = new FakeConnector()
  await app.register(fastifyPool, {
    pools: poolsOf({ db: connector }, { max: 1 }), healthRoutes: { live: '/alive', ready: '/ready' },
  })
  await app.ready()
  const pool = app.pools.get('db')
  const { health } = pool
  let asked = 0
  pool.health = async () => {
    asked++
    return await health.call(pool)
  }
  const lease = await app.pools.get('db').acquire()
  const before = lines.length
  t.equal((await ask(app, '/alive')).code, 200)
  t.equal(asked, 0)
  t.equal((await ask(app, '/ready')).code, 200)
  t.equal(asked, 1)
  t.same(lines.slice(before), [])
  t.equal(app.pools.get('db').stats().acquired, 1)
  lease.release()
  t.equal((await app.inject('/livez')).statusCode, 404)
})

t.test('each target is named', async (t) => {
  const app = appOf(t)
  const [primary, replica] = [new FakeConnector(), new FakeConnector()]
  await app.register(fastifyPool, {
    pools: {
      db: {
        targets: [{ connector: primary }, { connector: replica, role: 'replica', name: 'west' }],
        max: 4,
        circuit: false,
        acquireTimeout: 50,
      },
    },
    healthRoutes: true,
    log: false,
  })
  await app.ready()
  await app.pools.get('db').use(() => {}, { role: 'replica' })
  const { targets } = (await ask(app, '/readyz')).body.pools.db as unknown as { targets: object[] | undefined }
  // Pools tell their targets' health where there is one to tell.
  const known = (await app.pools.get('db').health()).targets
  t.same(targets?.map((one) => (one as { target: string }).target), known?.map(({ target }) => target))
})

t.test('registrations and scopes', async (t) => {
  const app = appOf(t)
  const inner = new FakeConnector()
  await app.register(fastifyPool, { pools: poolsOf({ db: new FakeConnector() }), healthRoutes: true, log: false })
  await app.register(fastifyPool,
    { pools: poolsOf({ cache: new FakeConnector() }), healthRoutes: { downIs503: ['cache'] } })
  await app.register(async (scope) => {
    await scope.register(fastifyPool, {
      pools: poolsOf({ own: inner }), healthRoutes: { downIs503: ['own', 'db'] }, log: false,
    })
  }, { prefix: '/inner' })
  await app.ready()
  t.same(Object.keys((await ask(app, '/readyz')).body.pools), ['db', 'cache'])
  t.same(Object.keys((await ask(app, '/inner/readyz')).body.pools), ['db', 'cache', 'own'])
})

t.test('what is wrong is said at register, or when all is loaded', async (t) => {
  const refused = async (healthRoutes: unknown, message: RegExp, code = 'FST_POOL_BAD_OPTIONS') => {
    const app = Fastify()
    const options = { pools: poolsOf({ db: new FakeConnector() }), healthRoutes } as PluginOptions
    app.register(fastifyPool, options)
    await t.rejects(async () => { await app.ready() }, { code, message })
    await app.close()
  }
  await refused('yes', /option healthRoutes is 'yes': expected true, false or an object/)
  await refused({ livez: '/x' }, /unknown option healthRoutes\.livez: did you mean live/)
  await refused({ live: 'x' }, /option healthRoutes\.live is 'x': expected a path that begins with '\/'/)
  await refused({ live: '/up', ready: '/up' },
    /option healthRoutes\.ready is a text: expected another path than healthRoutes\.live/)
  await refused({ downIs503: 'db' }, /option healthRoutes\.downIs503 is 'db': expected a list of pools' names/)
  await refused({ downIs503: ['no name'] }, /option healthRoutes\.downIs503\.0 is 'no name'/)
  await refused({ downIs503: ['dbb'] }, /there is no pool 'dbb'/, 'FST_POOL_NOT_FOUND')
})

t.test("the recipe for @fastify/under-pressure's healthCheck", async (t) => {
  const app = appOf(t)
  const connector = new FakeConnector()
  await app.register(fastifyPool, { pools: poolsOf({ db: connector }), log: false })
  await app.pools.get('db').use(() => {})
  await app.register(underPressure as never, {
    exposeStatusRoute: { url: '/status', routeOpts: { config: { pools: false } } },
    healthCheck: async (server: FastifyInstance) => {
      const { pools } = await server.pools.health()
      if (pools.db?.status === 'down') throw new Error(pools.db.reason)
      return { db: pools.db?.status }
    },
  } as never)
  await app.ready()
  t.same((await app.inject('/status')).json(), { status: 'ok' })
  connector.outcomes.create = 'error'
  connector.connections[0]!.die()
  await t.rejects(app.pools.get('db').acquire())
  t.equal((await app.inject('/status')).statusCode, 503)
})

t.test('the recipe for Kubernetes: drain, be seen as unready, then close', async (t) => {
  const app = appOf(t)
  await app.register(fastifyPool, { pools: poolsOf({ db: new FakeConnector() }), healthRoutes: true, log: false })
  app.get('/', async (request) => (request as unknown as { db: { id: number } }).db.id)
  await app.listen({ port: 0, host: '127.0.0.1' })
  const { port } = app.server.address() as { port: number }
  const get = async (path: string) => (await fetch(`http://127.0.0.1:${port}${path}`)).status
  t.same([await get('/readyz'), await get('/')], [200, 200])
  for (const name of app.pools.names) await app.pools.get(name).drain()
  t.same([await get('/readyz'), await get('/')], [503, 200])
  await app.close()
  await t.rejects(get('/readyz'))
})
