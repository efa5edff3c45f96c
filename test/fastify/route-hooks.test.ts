import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import { fastifyPool, type PluginOptions } from '../../index.js'
import { FakeConnector } from '../support/fake-connector.js'

// Some hooks are added only to the routes that need them, and the bound copies of others keep the plan of their route.

const late = { config: { pools: { db: { acquire: 'preHandler' as const } } } }

function appOf (t: Test): FastifyInstance {
  const app = Fastify()
  t.teardown(() => app.close())
  return app
}

async function read (app: FastifyInstance, url: string, method: 'GET' | 'POST' | 'HEAD' = 'GET'): Promise<string> {
  const { statusCode, body } = await app.inject({ method, url })
  return `${statusCode} ${body}`
}

t.test("acquire 'preHandler' of a route that was declared before the plugin", async (t) => {
  const app = appOf(t)
  app.get('/', late, async (request) => request.db.id)
  app.register(async (child) => { child.get('/child', late, async (request) => request.db.id) })
  app.register(fastifyPool, { connector: new FakeConnector() })
  t.equal(await read(app, '/'), '200 1')
  t.equal(await read(app, '/child'), '200 1')
  t.equal(app.pools.get('db').stats().used, 0)
})

t.test("acquire 'preHandler' of a route, and of one in a scope inside", async (t) => {
  const app = appOf(t)
  await app.register(fastifyPool, { connector: new FakeConnector() })
  app.get('/', late, async (request) => request.db.id)
  app.register(async (child) => {
    await child.register(fastifyPool, { name: 'cache', connector: new FakeConnector() } as PluginOptions)
    child.get('/child', late, async (request) => request.db.id)
  })
  t.equal(await read(app, '/'), '200 1')
  t.equal((await app.inject({ method: 'HEAD', url: '/' })).statusCode, 200)
  t.equal(await read(app, '/child'), '200 1')
})

t.test("acquire 'preHandler' of a pool that comes behind the route", async (t) => {
  const app = appOf(t)
  await app.register(fastifyPool, { connector: new FakeConnector() })
  app.get('/', async (request) => `${request.db.id} ${request.cache.id}`)
  await app.register(fastifyPool,
    { pools: { cache: { connector: new FakeConnector(), lease: { acquire: 'preHandler', release: 'onResponse' } } } })
  t.equal(await read(app, '/'), '200 1 1')
})

t.test('reply.callNotFound() of a route whose connection was taken before its handler: it goes back', async (t) => {
  for (const isEarly of [true, false]) {
    const app = appOf(t)
    const declare = () => { app.get('/', late, (_request, reply) => { reply.callNotFound() }) }
    if (isEarly) declare()
    await app.register(fastifyPool, { connector: new FakeConnector() })
    if (!isEarly) declare()
    const pool = app.pools.get('db')
    t.match(await read(app, '/'), /^404 /)
    t.equal(pool.stats().acquired, 1)
    t.equal(pool.stats().used, 0)
  }
})

t.test('each route has its own plan, and each method of a route', async (t) => {
  const app = appOf(t)
  await app.register(fastifyPool, { pools: { db: { connector: new FakeConnector() } } })
  const used = async () => String(app.pools.get('db').stats().used)
  app.get('/none', { config: { pools: false } }, used)
  app.get('/all', used)
  app.route({ method: ['GET', 'POST', 'OPTIONS'], url: '/methods', handler: used })
  app.setNotFoundHandler(used)
  for (let round = 0; round < 3; round++) {
    t.equal(await read(app, '/none'), '200 0')
    t.equal(await read(app, '/all'), '200 1')
    t.equal(await read(app, '/methods'), '200 1')
    t.equal(await read(app, '/methods', 'POST'), '200 1')
    t.equal((await app.inject({ method: 'OPTIONS', url: '/methods' })).body, '0', 'OPTIONS names none')
    t.equal(await read(app, '/nowhere'), '200 0')
  }
  await app.pools.remove('db')
  t.equal(app.pools.has('db'), false)
  t.equal((await app.inject('/all')).statusCode, 500, 'the plan was made again')
})

t.test('a plugin that wraps the hooks of others: each route still has its own plan', async (t) => {
  const app = appOf(t)
  const { addHook } = app
  app.addHook = function (this: FastifyInstance, name: string, fn: (...args: unknown[]) => unknown) {
    const wrapped = name === 'onRequest'
      ? function (this: unknown, request: unknown, reply: unknown, done: unknown) { return fn.call(this, request, reply, done) }
      : fn
    return Reflect.apply(addHook, this, [name, wrapped]) as FastifyInstance
  } as typeof app.addHook
  await app.register(fastifyPool, { connector: new FakeConnector() })
  app.get('/none', { config: { pools: false } }, async () => String(app.pools.get('db').stats().used))
  app.get('/all', async () => String(app.pools.get('db').stats().used))
  for (const [url, seen] of [['/none', '0'], ['/all', '1'], ['/none', '0']] as const) {
    t.equal((await app.inject(url)).body, seen)
  }
})
