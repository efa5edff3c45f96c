import fastifyWebsocket from '@fastify/websocket'
import Fastify, { type FastifyInstance, type FastifyRequest } from 'fastify'
import t, { type Test } from 'tap'
import { fastifyPool, type PluginOptions, type RoutePools } from '../../index.js'
import { FakeConnector, type FakeConnection } from '../support/fake-connector.js'

// Which pools a route may name, and what a request without a connection is told.

type PerRequest = Record<string, FakeConnection>

const options = (name: string): PluginOptions => ({ name, connector: new FakeConnector(), log: false }) as PluginOptions

function appOf (t: Test): FastifyInstance {
  const app = Fastify() as unknown as FastifyInstance
  t.teardown(() => app.close().catch((error: unknown) => { t.comment(`it did not start: ${String(error)}`) }))
  return app
}

/** Which of the pools a request has a connection of. */
async function leased (request: FastifyRequest): Promise<string[]> {
  return ['root', 'own', 'inner'].filter((name) => {
    try {
      return (request as unknown as PerRequest)[name] !== undefined
    } catch {
      return false
    }
  })
}

interface Row { name: string, outer: boolean, pools: string[] | Record<string, true>, then: string[] }
const rows: Row[] = [
  { name: 'its own, where no pool is outside', outer: false, pools: ['own'], then: ['own'] },
  { name: 'its own, where a pool is outside', outer: true, pools: ['own'], then: ['own'] },
  { name: 'its own by an object', outer: true, pools: { own: true }, then: ['own'] },
  { name: 'one outside', outer: true, pools: ['root'], then: ['root'] },
  { name: 'both', outer: true, pools: ['own', 'root'], then: ['root', 'own'] },
]

for (const { name, outer, pools, then } of rows) {
  for (const awaited of [true, false]) {
    t.test(`a route of a scope names its pools: ${name}, ${awaited ? 'after' : 'before'} they are there`, async (t) => {
      const app = appOf(t)
      if (outer) await app.register(fastifyPool, options('root'))
      app.register(async (scope) => {
        const registered = scope.register(fastifyPool, options('own'))
        if (awaited) await registered
        scope.get('/', { config: { pools: pools as RoutePools } }, leased)
      })
      const answer = await app.inject('/')
      t.same([answer.statusCode, answer.json()], [200, then])
    })
  }
}

t.test('a route of a scope within a scope names pools of all three', async (t) => {
  const app = appOf(t)
  await app.register(fastifyPool, options('root'))
  app.register(async (scope) => {
    await scope.register(fastifyPool, options('own'))
    scope.register(async (inner) => {
      await inner.register(fastifyPool, options('inner'))
      inner.get('/', { config: { pools: ['inner', 'own', 'root'] } }, leased)
    })
    scope.register(async (plain) => { plain.get('/plain', { config: { pools: ['own'] } }, leased) })
  })
  t.same((await app.inject('/')).json(), ['root', 'own', 'inner'])
  t.same((await app.inject('/plain')).json(), ['own'], 'a scope without pools of its own has those around it')
})

for (const name of ['inner', 'nope']) {
  t.test(`a route that names a pool which its scope can not see fails the start, and the error says what there is: ${name}`, async (t) => {
    const app = appOf(t)
    await app.register(fastifyPool, options('root'))
    app.register(async (scope) => {
      await scope.register(fastifyPool, options('own'))
      scope.get('/', { config: { pools: [name] as RoutePools } }, leased)
    })
    app.register(async (other) => { await other.register(fastifyPool, options('inner')) })
    await t.rejects(Promise.resolve(app.ready()), {
      code: 'FST_POOL_NOT_FOUND',
      message: `route GET /: config.pools names '${name}', and there is no such pool (there is 'root', 'own')`,
    })
  })
}

const hooks = ['onRequest', 'preParsing', 'preValidation', 'preHandler'] as const

/** An app whose hook, which runs for all requests, uses a connection. */
async function hooked (t: Test, hook: typeof hooks[number], use: (request: FastifyRequest) => unknown) {
  const app = appOf(t)
  await app.register(fastifyWebsocket)
  await app.register(fastifyPool, options('root'))
  app.addHook(hook as 'onRequest', async (request) => { await use(request) })
  app.register(async (scope) => {
    scope.get('/', async () => 'well')
    scope.options('/', async () => 'well')
    scope.options('/named', { config: { pools: ['root'] } }, async () => 'well')
  })
  return app
}

const uses: Record<string, (request: FastifyRequest) => unknown> = {
  'request.root': (request) => (request as unknown as PerRequest).root,
  "request.lease('root')": (request) => request.lease('root'),
}

for (const hook of hooks) {
  for (const [what, use] of Object.entries(uses)) {
    t.test(`a hook of the app's (${hook}) that uses ${what} leaves a 404 a 404`, async (t) => {
      const app = await hooked(t, hook, use)
      for (const method of ['GET', 'POST', 'OPTIONS'] as const) {
        const answer = await app.inject({ method, url: '/nowhere' })
        t.match([answer.statusCode, answer.json()], [404, { code: 'FST_POOL_NOT_LEASED', statusCode: 404 }], method)
        t.equal(answer.json().message, "no route matches this request (404), and such requests have no connection of pool 'root': " +
          "a hook that runs for all requests looks at request.is404 first, or uses await request.acquire('root')")
      }
      t.equal((await app.inject('/')).body, 'well')
    })

    t.test(`a hook of the app's (${hook}) that uses ${what} tells an OPTIONS request of config.pools`, async (t) => {
      const app = await hooked(t, hook, use)
      const answer = await app.inject({ method: 'OPTIONS', url: '/' })
      t.match([answer.statusCode, answer.json()], [500, { code: 'FST_POOL_NOT_LEASED' }])
      t.equal(answer.json().message, "route OPTIONS / has no connection of pool 'root', since OPTIONS leases only what the route's " +
        "config.pools names: name it there, or await request.acquire('root')")
      t.equal((await app.inject({ method: 'OPTIONS', url: '/named' })).body, 'well')
    })
  }
}

t.test("a scope's own 404 handler that uses a connection is a 404, too, and by hand it has one", async (t) => {
  const app = appOf(t)
  await app.register(fastifyPool, options('root'))
  app.register(async (scope) => {
    scope.addHook('preHandler', async (request) => {
      if (request.headers['x-hand'] === undefined) return
      const lease = await request.acquire('root')
      t.match(lease.holder, { route: 'GET (404)' })
    })
    scope.setNotFoundHandler(async (request, reply) => {
      reply.code(404).send({ root: (request as unknown as PerRequest).root!.id })
    })
  }, { prefix: '/scope' })
  t.match((await app.inject('/scope/x')).json(), { statusCode: 404, code: 'FST_POOL_NOT_LEASED' })
  const { statusCode, body } = await app.inject({ url: '/scope/x', headers: { 'x-hand': '1' } })
  t.same([statusCode, body], [404, '{"root":1}'])
})

t.test('a handler that goes on with reply.callNotFound() keeps the connection of its route', async (t) => {
  const app = appOf(t)
  await app.register(fastifyPool, options('root'))
  app.setNotFoundHandler(async (request, reply) => reply.code(404)
    .send({ root: (request as unknown as PerRequest).root!.id }))
  app.get('/', (_request, reply) => { reply.callNotFound() })
  const { statusCode, body } = await app.inject('/')
  t.same([statusCode, body], [404, '{"root":1}'])
})

t.test('a WebSocket upgrade is told of config.pools', async (t) => {
  const app = appOf(t)
  await app.register(fastifyWebsocket)
  await app.register(fastifyPool, options('root'))
  const told: string[] = []
  app.register(async (scope) => {
    scope.get('/', { websocket: true }, (socket, request) => {
      try {
        request.lease('root')
      } catch (error) {
        told.push((error as Error).message)
      }
      socket.terminate()
    })
  })
  await app.ready()
  const socket = await app.injectWS('/')
  socket.terminate()
  t.same(told, ["route GET / has no connection of pool 'root', since a WebSocket upgrade leases only what the route's config.pools " +
    "names: name it there, or await request.acquire('root')"])
})
