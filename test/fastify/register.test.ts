import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import fastifyPool, { Pool, PoolError, type PluginOptions, type RoutePools } from '../../index.js'
import { FakeConnector, type FakeConnection } from '../support/fake-connector.js'

/** An app that is closed when the test ends. */
function appOf (t: Test): FastifyInstance {
  const app = Fastify()
  t.teardown(() => app.close())
  return app
}

/** What `register` says to options that it can't take. */
async function refusal (t: Test, options: unknown): Promise<PoolError> {
  const app = Fastify()
  t.teardown(async () => {
    await app.close().catch((error: unknown) => { if (!(error instanceof PoolError)) throw error })
  })
  try {
    await app.register(fastifyPool, options as PluginOptions)
    await app.ready()
  } catch (error) {
    if (error instanceof PoolError) return error
    throw error
  }
  throw new Error('it was taken')
}

t.test('the plugin is the default export, a named export, and is not encapsulated', async (t) => {
  const app = appOf(t)
  const { fastifyPool: named } = await import('../../index.js')
  t.equal(named, fastifyPool)
  await app.register(fastifyPool, { connector: new FakeConnector() })
  t.ok(app.pools.has('db'))
  t.ok(app.hasPlugin('fastify-pool'))
})

t.test('one pool needs no map, and has the name db unless it is given another', async (t) => {
  const app = appOf(t)
  await app.register(fastifyPool, { connector: new FakeConnector(), max: 3 })
  await app.register(fastifyPool, { connector: new FakeConnector(), name: 'cache' })
  app.get('/', async (request) => ({ db: request.db.id, cache: request.cache.id }))
  t.same((await app.inject('/')).json(), { db: 1, cache: 1 })
  t.same(app.pools.names, ['db', 'cache'])
  t.equal(app.pools.get('db').stats().max, 3)
})

t.test('hooks are added once per scope, however often it registers', async (t) => {
  const app = appOf(t)
  const connectors = [new FakeConnector(), new FakeConnector()]
  await app.register(fastifyPool, { connector: connectors[0]! })
  await app.register(fastifyPool, { connector: connectors[1]!, name: 'cache' })
  app.get('/', async (request) => request.db.id)
  await app.inject('/')
  t.equal(app.pools.get('db').stats().acquired, 1)
  t.equal(app.pools.get('cache').stats().acquired, 1)
})

t.test('a name that is taken is an error at once, and leaves nothing open', async (t) => {
  const app = appOf(t)
  const second = new FakeConnector()
  await app.register(fastifyPool, { connector: new FakeConnector() })
  await t.rejects(async () => {
    await app.register(fastifyPool, { pools: { other: { connector: second }, db: { connector: second } } })
  }, { code: 'FST_POOL_DUPLICATE_NAME' })
  t.equal(second.live, 0)
})

t.test('a name that request or the app uses is refused', async (t) => {
  for (const name of ['body', 'log', 'params', 'lease', 'acquire', 'constructor', '__proto__']) {
    const { code } = await refusal(t, { connector: new FakeConnector(), name })
    t.equal(code, 'FST_POOL_BAD_OPTIONS', name)
  }
  const app = appOf(t)
  app.decorateRequest('user', null)
  await t.rejects(async () => {
    await app.register(fastifyPool, { connector: new FakeConnector(), name: 'user' })
  }, { code: 'FST_POOL_DUPLICATE_NAME', message: /request\.user/ })
})

t.test('options that can\'t be taken fail register with a message that says what and how, and open nothing', async (t) => {
  const connector = new FakeConnector()
  const cases: Array<[string, unknown, string, RegExp]> = [
    ['an unknown name', { connector, maxx: 3 }, 'FST_POOL_BAD_OPTIONS', /maxx.*max/],
    ['a wrong type', { connector, max: 'ten' }, 'FST_POOL_BAD_OPTIONS', /max is 'ten'.*integer/],
    ['min above max', { connector, min: 5, max: 3 }, 'FST_POOL_BAD_OPTIONS', /min.*5.*3/],
    ['NaN', { connector, acquireTimeout: NaN }, 'FST_POOL_BAD_OPTIONS', /acquireTimeout.*NaN/],
    ['a bad URL', { backend: 'redis', url: 'http://localhost' }, 'FST_POOL_BAD_OPTIONS', /pool 'db'.*url/],
    ['a bad URL of MongoDB', { backend: 'mongodb', url: 'localhost' }, 'FST_POOL_BAD_OPTIONS', /pool 'db'.*url/],
    ['an unknown backend', { backend: 'oracle' }, 'FST_POOL_BAD_OPTIONS', /oracle.*mongodb/],
    ['no backend', { max: 3 }, 'FST_POOL_BAD_OPTIONS', /backend/],
    ['no pools', { pools: {} }, 'FST_POOL_BAD_OPTIONS', /pools/],
    ['a driver\'s key that is ours', { backend: 'redis', connection: { retryStrategy: null } }, 'FST_POOL_BAD_OPTIONS',
      /connection\.retryStrategy/],
    ['a driver\'s key that is ours, MongoDB', {
      backend: 'mongodb', url: 'mongodb://localhost', connection: { maxPoolSize: 3 },
    }, 'FST_POOL_BAD_OPTIONS', /connection\.maxPoolSize.*max/],
    ['a missing directory', { backend: 'sqlite', url: '/no/such/place/app.db' }, 'FST_POOL_CONNECT_FAILED',
      /directory/],
  ]
  for (const [what, options, code, message] of cases) {
    const error = await refusal(t, options)
    t.equal(error.code, code, what)
    t.match(error.message, message, what)
  }
  t.equal(connector.creates, 0)
})

t.test('when one of several pools can\'t open, register says why, and the others are closed', async (t) => {
  const good = new FakeConnector()
  const bad = new FakeConnector()
  bad.outcomes.create = 'error'
  const error = await refusal(t, { pools: { db: { connector: good, min: 2 }, cache: { connector: bad } } })
  t.equal(error.code, 'FST_POOL_CONNECT_FAILED')
  t.match(error.message, /'cache'.*create failed/)
  t.equal(good.live, 0)
  t.equal(good.closed, 1)
})

t.test('the given options are not changed', async (t) => {
  const app = appOf(t)
  const connection = Object.freeze({ anything: 1 })
  const options =
    Object.freeze({ pools: Object.freeze({ db: Object.freeze({ connector: new FakeConnector(), connection, lease: Object.freeze({ acquire: 'preHandler' as const, release: 'onResponse' as const }) }) }) })
  await app.register(fastifyPool, options)
  t.ok(app.pools.has('db'))
})

t.test('startup', async (t) => {
  t.test('require: register waits for max(1, min) connections', async (t) => {
    const app = appOf(t)
    const connector = new FakeConnector()
    await app.register(fastifyPool, { connector, min: 3 })
    t.equal(connector.live, 3)
  })
  t.test('lazy: nothing is opened before the first request', async (t) => {
    const app = appOf(t)
    const connector = new FakeConnector()
    await app.register(fastifyPool, { connector, min: 3, startup: 'lazy' })
    app.get('/', async (request) => request.db.id)
    await app.ready()
    t.equal(connector.creates, 0)
    t.equal((await app.inject('/')).statusCode, 200)
  })
  t.test('warm: register does not wait, and a failure is logged', async (t) => {
    const lines: string[] = []
    const app = Fastify({ logger: { level: 'error', stream: { write: (line: string) => { lines.push(line) } } } })
    t.teardown(() => app.close())
    const connector = new FakeConnector()
    connector.outcomes.create = 'gate'
    await app.register(fastifyPool, { connector, startup: 'warm' })
    await app.ready()
    t.equal(connector.creates, 1)
    connector.fail('create', new Error('not up yet'))
    await new Promise(setImmediate)
    t.match(lines.join(''), /could not connect at start/)
  })
})

t.test('in an encapsulated scope its pools exist only there', async (t) => {
  const app = appOf(t)
  const inner = new FakeConnector()
  await app.register(fastifyPool, { connector: new FakeConnector() })
  app.get('/outer',
    async (request) => ({ db: request.db.id, names: request.server.pools.names, cache: 'cache' in request }))
  await app.register(async (child) => {
    await child.register(fastifyPool, { connector: inner, name: 'cache' })
    child.get('/inner', async (request) => ({ db: request.db.id, cache: request.cache.id, names: child.pools.names }))
    t.same(Object.keys(child.pools.stats()), ['db', 'cache'])
    t.same(Object.keys((await child.pools.health()).pools), ['db', 'cache'])
  })
  await app.register(async (sibling) => {
    await sibling.register(fastifyPool, { connector: new FakeConnector(), name: 'cache' })
  })
  t.same((await app.inject('/outer')).json(), { db: 1, names: ['db'], cache: false })
  t.equal(inner.live, 1, 'only opened')
  t.same((await app.inject('/inner')).json(), { db: 1, cache: 1, names: ['db', 'cache'] })
  t.notOk(app.pools.has('cache'))
  t.throws(() => app.pools.get('cache'), { code: 'FST_POOL_NOT_FOUND' })
})

t.test('a scope can\'t hide a pool of the scope around it', async (t) => {
  const app = appOf(t)
  await app.register(fastifyPool, { connector: new FakeConnector() })
  await t.rejects(async () => {
    await app.register(async (child) => { await child.register(fastifyPool, { connector: new FakeConnector() }) })
  }, { code: 'FST_POOL_DUPLICATE_NAME' })
})

t.test('a scope on its own, with nothing around it', async (t) => {
  const app = appOf(t)
  await app.register(async (child) => {
    await child.register(fastifyPool, { connector: new FakeConnector() })
    child.get('/', async (request) => request.db.id)
  })
  app.get('/out', async (request) => 'db' in request)
  t.equal((await app.inject('/')).body, '1')
  t.equal((await app.inject('/out')).body, 'false')
})

t.test('a route\'s config is checked at boot', async (t) => {
  const app = appOf(t)
  await app.register(fastifyPool, { connector: new FakeConnector() })
  t.throws(() => app.get('/a', { config: { pools: ['bd'] as string[] as RoutePools } }, async () => 1),
    { code: 'FST_POOL_NOT_FOUND', message: /GET.* \/a.*'bd'/ })
  t.throws(() => app.get('/b', { config: { pools: { db: { acquire: 'never' } } } as never }, async () => 1),
    { code: 'FST_POOL_BAD_OPTIONS', message: /\/b.*acquire/ })
})

t.test('routes that were declared before the plugin are leased for too', async (t) => {
  const app = appOf(t)
  app.get('/', async (request) => request.db.id)
  app.register(fastifyPool, { connector: new FakeConnector() })
  t.equal((await app.inject('/')).body, '1')
})

t.test('a policy may be the plugin\'s, the pool\'s or the route\'s', async (t) => {
  const app = appOf(t)
  await app.register(fastifyPool, {
    lease: { acquire: 'manual', release: 'onResponse' },
    pools: {
      db: { connector: new FakeConnector() },
      cache: {
        connector: new FakeConnector(), lease: { acquire: 'preHandler', release: 'onResponse' },
      }
    },
  })
  const seen = (name: 'db' | 'cache') => app.pools.get(name).stats().used
  app.addHook('preValidation', async (_request, reply) => { reply.header('x-early', `${seen('db')}${seen('cache')}`) })
  const report = async () => `${seen('db')}${seen('cache')}`
  app.get('/default', report)
  app.get('/named', { config: { pools: { db: { acquire: 'onRequest' } } } }, report)
  app.get('/list', { config: { pools: ['db'] } }, report)
  app.get('/none', { config: { pools: false } }, report)
  const ask = async (url: string) => {
    const { headers, body } = await app.inject(url)
    return `${String(headers['x-early'])} ${body}`
  }
  t.equal(await ask('/default'), '00 01')
  t.equal(await ask('/named'), '10 10')
  t.equal(await ask('/list'), '00 00', 'manual, as the plugin says')
  t.equal(await ask('/none'), '00 00')
})

t.test('lease: false leases for no route but those that name the pool', async (t) => {
  const app = appOf(t)
  await app.register(fastifyPool, { pools: { db: { connector: new FakeConnector(), lease: false } } })
  app.get('/none', async (request) => request.db.id)
  app.get('/named', { config: { pools: ['db'] } }, async (request) => request.db.id)
  t.equal((await app.inject('/none')).json().code, 'FST_POOL_NOT_LEASED')
  t.equal((await app.inject('/named')).body, '1')
})

t.test('pools can be added before the app is ready, later for request.acquire only, and removed', async (t) => {
  const app = appOf(t)
  await app.register(fastifyPool, { connector: new FakeConnector() })
  const pool = (connector: FakeConnector) => new Pool(connector, { name: 'cache' })
  app.pools.add('cache', pool(new FakeConnector()))
  app.get('/', async (request) => request.cache.id)
  app.get('/late', async (request) => ((await request.acquire('late')).connection as FakeConnection).id)
  t.equal((await app.inject('/')).body, '1')
  t.throws(() => { app.pools.add('cache', pool(new FakeConnector())) }, { code: 'FST_POOL_DUPLICATE_NAME' })

  const late = new FakeConnector()
  const events: string[] = []
  const off = app.pools.on('acquire', ({ pool }) => { events.push(pool) })
  app.pools.add('late', new Pool(late, { name: 'late' }))
  t.equal((await app.inject('/late')).body, '1')
  t.ok(events.includes('late'), 'a listener of the manager hears pools that come later')
  off()
  await app.pools.remove('late')
  t.equal(late.live, 0)
  t.equal((await app.inject('/late')).json().code, 'FST_POOL_NOT_FOUND')
  await t.rejects(app.pools.remove('late'), { code: 'FST_POOL_NOT_FOUND' })
  await app.pools.remove('cache')
  t.equal((await app.inject('/')).json().code, 'FST_POOL_NOT_LEASED', 'a removed pool is leased for nobody')
})

t.test('holders() names route and request, the longest first', async (t) => {
  const app = appOf(t)
  await app.register(fastifyPool,
    { pools: { db: { connector: new FakeConnector() }, cache: { connector: new FakeConnector() } } })
  app.get('/items/:id', async () => ({ all: app.pools.holders(), cache: app.pools.holders('cache').length }))
  const { all, cache } = (await app.inject('/items/7')).json()
  t.equal(cache, 1)
  t.match(all,
    [{ holder: { route: 'GET /items/:id', id: /req-/ }, heldFor: Number }, { holder: { route: 'GET /items/:id' } }])
  t.same(app.pools.holders(), [])
})

t.test('health is the worst of all pools', async (t) => {
  const app = appOf(t)
  const cache = new FakeConnector()
  cache.outcomes.create = 'error'
  await app.register(fastifyPool, {
    pools: { db: { connector: new FakeConnector() }, cache: { connector: cache, startup: 'lazy', acquireTimeout: 20 } },
  })
  app.get('/', { config: { pools: ['cache'] } }, async () => 1)
  // Nothing is known of the cache yet.
  t.equal((await app.pools.health()).status, 'degraded')
  t.equal((await app.inject('/')).statusCode, 503)
  const { status, pools } = await app.pools.health()
  t.equal(status, 'down')
  t.equal(pools.db!.status, 'up')
})

t.test('only databases of Redis have numbers: another backend refuses one by name', async (t) => {
  const wanted: Record<string, string> = {
    'postgresql://127.0.0.1:1': "a name, since only Redis' databases have numbers",
    'mysql://127.0.0.1:1': "a name, since only Redis' databases have numbers",
    'mongodb://127.0.0.1:1': "a name, since only Redis' databases have numbers",
    ':memory:': 'none, since sqlite is a file (url)',
  }
  for (const [url, expected] of Object.entries(wanted)) {
    const backend = url === ':memory:' ? 'sqlite' : url.slice(0, url.indexOf(':'))
    const error = await refusal(t, { backend, url, database: 2, startup: 'lazy' })
    t.match(error, {
      code: 'FST_POOL_BAD_OPTIONS', message: `pool 'db': option database is 2: expected ${expected}`,
    }, backend)
  }
  const app = appOf(t)
  await app.register(fastifyPool, { backend: 'redis', url: 'redis://127.0.0.1:1', database: 2, startup: 'lazy' })
  const { client } = app.pools.get('db').backend as unknown as { client: { options: { db: number } } }
  t.equal(client.options.db, 2)
})
