import Fastify, { type FastifyInstance, type FastifyRequest } from 'fastify'
import t, { type Test } from 'tap'
import { fastifyPool } from '../../index.js'
import type { PluginOptions, PoolOptions } from '../../index.js'
import { TargetPool } from '../../lib/balance/target-pool.js'
import { Pool } from '../../lib/pool/pool.js'
import type { Role } from '../../types/connector.js'
import { FakeConnector, type FakeConnection } from '../support/fake-connector.js'
import { until } from '../support/until.js'

// Which of a pool's two kinds of connections a request gets.

interface Both { readonly app: FastifyInstance, readonly primary: FakeConnector, readonly replica: FakeConnector }

/** An app whose pool has connections that write and others that read. A request can tell which it got by `roleOf`. */
async function set (
  t: Test, routes: (app: FastifyInstance, both: Both) => void, options: Partial<PoolOptions> = {}
): Promise<Both> {
  const app = Fastify()
  const replica = new FakeConnector()
  const primary = Object.assign(new FakeConnector(), { replica })
  const both = { app, primary, replica }
  t.teardown(async () => {
    await app.close()
    const violations = [...primary.violations, ...replica.violations]
    if (violations.length + primary.live +
      replica.live > 0) throw new Error(`${primary.live} and ${replica.live} are left: ${violations.join('; ')}`)
  })
  await app.register(fastifyPool, { connector: primary, max: 4, ...options } as PluginOptions)
  routes(app, both)
  await app.ready()
  return both
}

const on = (request: FastifyRequest) => (request as unknown as { db: FakeConnection }).db
const roleOf = ({ replica }: Both, connection: FakeConnection): Role => replica.connections.includes(connection)
  ? 'replica'
  : 'primary'

async function rest ({ app }: Both): Promise<void> {
  await until(() => app.pools.get('db').stats().used === 0)
}

t.test('GET and HEAD get one that reads, the other methods one that writes', async (t) => {
  const seen: Record<string, Role> = {}
  const both = await set(t, (app, both) => {
    app.route({
      method: ['GET', 'HEAD', 'POST', 'PUT', 'PATCH',
        'DELETE'],
      url: '/',
      handler: async (request) => { seen[request.method] = roleOf(both, on(request)); return '' }
    })
    app.get('/auto', async (request) => { seen[`auto ${request.method}`] = roleOf(both, on(request)); return '' })
    app.options('/', { config: { pools: ['db'] } }, async (request) => {
      seen[request.method] = roleOf(both, on(request))
      return ''
    })
  })
  t.ok(both.app.pools.get('db') instanceof TargetPool)
  // In turn, so that what one method got is not what the route's next one gets.
  for (const method of ['POST', 'GET', 'PUT', 'HEAD', 'PATCH', 'DELETE', 'OPTIONS',
    'GET'] as const) t.equal((await both.app.inject({ method, url: '/' })).statusCode, 200)
  for (const method of ['GET', 'HEAD'] as const) await both.app.inject({ method, url: '/auto' })
  await rest(both)
  t.same(seen,
    { GET: 'replica', HEAD: 'replica', POST: 'primary', PUT: 'primary', PATCH: 'primary', DELETE: 'primary', OPTIONS: 'primary', 'auto GET': 'replica', 'auto HEAD': 'replica' })
})

t.test('a transaction that may write gets one that writes, one that only reads one that reads', async (t) => {
  const seen: Role[] = []
  const both = await set(t, (app, both) => {
    const handler = async (request: FastifyRequest) => { seen.push(roleOf(both, on(request))); return '' }
    app.get('/write', { config: { pools: { db: { transaction: true } } } }, handler)
    app.get('/read', { config: { pools: { db: { transaction: { readOnly: true } } } } }, handler)
    app.post('/read', { config: { pools: { db: { transaction: { readOnly: true } } } } }, handler)
    app.get('/none', { config: { pools: { db: { transaction: false } } } }, handler)
  })
  for (const [method, url] of [['GET', '/write'], ['GET', '/read'], ['POST', '/read'],
    ['GET', '/none']] as const) await both.app.inject({ method, url })
  await rest(both)
  t.same(seen, ['primary', 'replica', 'replica', 'replica'])
  t.same([both.primary.asked.length, both.replica.asked.length], [2, 4])
})

t.test('the role that a route, a pool or the plugin names counts for every method', async (t) => {
  const seen: Role[] = []
  const both = await set(t, (app, both) => {
    const handler = async (request: FastifyRequest) => { seen.push(roleOf(both, on(request))); return '' }
    app.route({ method: ['GET', 'POST'], url: '/primary', config: { pools: { db: { role: 'primary' } } }, handler })
    app.route({ method: ['GET', 'POST'], url: '/replica', config: { pools: { db: { role: 'replica' } } }, handler })
    app.get('/transaction', { config: { pools: { db: { role: 'primary', transaction: { readOnly: true } } } } },
      handler)
    app.route({ method: ['GET', 'POST'], url: '/', handler })
  }, { lease: { role: 'primary' } })
  for (const url of ['/primary', '/replica', '/']) {
    for (const method of ['GET',
      'POST'] as const) await both.app.inject({ method, url })
  }
  await both.app.inject('/transaction')
  await rest(both)
  t.same(seen, ['primary', 'primary', 'replica', 'replica', 'primary', 'primary', 'primary'])
})

t.test('by hand: by method, unless the caller or the route says which; while a lease is out it is that one', async (t) => {
  const both = await set(t, (app, both) => {
    const of = (connection: unknown) => roleOf(both, connection as FakeConnection)
    const acquire = (role?: Role) => async (request: FastifyRequest) =>
      of((await request.acquire('db', role === undefined ? undefined : { role })).connection)
    app.route({ method: ['GET', 'POST'], url: '/', handler: acquire() })
    app.route({ method: ['GET', 'POST'], url: '/primary', handler: acquire('primary') })
    app.route({ method: ['GET', 'POST'], url: '/replica', handler: acquire('replica') })
    app.get('/route', { config: { pools: { db: { acquire: 'manual', role: 'primary' } } } }, acquire())
    app.get('/out', async (request) => {
      const first = await request.acquire('db')
      t.equal(await request.acquire('db', { role: 'primary' }), first)
      first.release()
      return of((await request.acquire('db', { role: 'primary' })).connection)
    })
    app.get('/bad', async (request) => request.acquire('db', { role: 'reader' as Role }))
  }, { lease: { acquire: 'manual' } })
  const get = async (method: 'GET' | 'POST', url: string) => (await both.app.inject({ method, url })).body
  t.same([await get('GET', '/'), await get('POST', '/')], ['replica', 'primary'])
  t.same([await get('GET', '/primary'), await get('POST', '/primary')], ['primary', 'primary'])
  t.same([await get('GET', '/replica'), await get('POST', '/replica')], ['replica', 'replica'])
  t.equal(await get('GET', '/route'), 'primary')
  t.equal(await get('GET', '/out'), 'primary')
  t.match(JSON.parse(await get('GET', '/bad')),
    { code: 'FST_POOL_BAD_OPTIONS', message: /role is 'reader': expected 'primary' or 'replica'/ })
  await rest(both)
})

t.test('request.transaction on a GET gets one that writes, unless it only reads or a lease is out', async (t) => {
  const both = await set(t, (app, both) => {
    const role = (connection: unknown) => roleOf(both, connection as FakeConnection)
    const manual = { config: { pools: { db: { acquire: 'manual' } } } } as const
    app.get('/write', manual, async (request) => request.transaction('db', role))
    app.get('/read', manual, async (request) => request.transaction('db', role, { readOnly: true }))
    app.post('/read', manual, async (request) => request.transaction('db', role, { readOnly: true }))
    app.get('/replica', { config: { pools: { db: { acquire: 'manual', role: 'replica' } } } },
      async (request) => request.transaction('db', role, { readOnly: true }))
    app.get('/out', async (request) => request.transaction('db', role))
  })
  const bodies = []
  for (const [method, url] of [['GET', '/write'], ['GET', '/read'], ['POST', '/read'], ['GET', '/replica'],
    ['GET', '/out']] as const) bodies.push((await both.app.inject({ method, url })).body)
  await rest(both)
  t.same(bodies, ['primary', 'replica', 'primary', 'replica', 'replica'])
})

t.test('several targets, and a pool that was made elsewhere: GET and HEAD read where there may be replicas', async (t) => {
  const app = Fastify()
  t.teardown(() => app.close())
  const [primary, replica] = [new FakeConnector(), new FakeConnector()]
  const targets = [{ connector: primary }, { connector: replica, role: 'replica' as const }]
  await app.register(fastifyPool, { log: false, max: 4, targets } as PluginOptions)
  app.pools.add('other',
    new TargetPool([{ connector: primary }, { connector: replica, role: 'replica' }], { name: 'other', max: 4 }))
  app.pools.add('one', new TargetPool([{ connector: primary }], { name: 'one', max: 4 }))
  app.pools.add('plain', new Pool(primary, { name: 'plain', max: 4 }))
  app.route({
    method: ['GET', 'HEAD', 'POST'],
    url: '/',
    handler: async (request, reply) => {
      const got = request as unknown as Record<string, FakeConnection>
      return reply.header('roles',
        ['db', 'other', 'one', 'plain'].map((name) => replica.connections.includes(got[name]!) ? 'replica' : 'primary').join()).send('')
    },
  })
  for (const method of ['GET', 'HEAD', 'POST'] as const) {
    const role = method === 'POST' ? 'primary' : 'replica'
    t.equal((await app.inject({ method, url: '/' })).headers.roles, [role, role, 'primary', 'primary'].join())
  }
})

t.test('with a max of 1 there is one connection, that reads and writes', async (t) => {
  const both = await set(t, (app, both) => {
    app.route({ method: ['GET', 'POST'], url: '/', handler: async (request) => roleOf(both, on(request)) })
  }, { max: 1 })
  t.ok(both.app.pools.get('db') instanceof Pool)
  t.same([(await both.app.inject('/')).body, (await both.app.inject({ method: 'POST', url: '/' })).body],
    ['primary', 'primary'])
  await rest(both)
  t.equal(both.replica.creates, 0)
})

t.test('who waits for one that writes does not wait for those that read', async (t) => {
  const both = await set(t, (app, both) => {
    app.route({ method: ['GET', 'POST'], url: '/', handler: async (request) => roleOf(both, on(request)) })
  }, { max: 2 })
  const writer = await both.app.pools.get('db').acquire()
  const post = both.app.inject({ method: 'POST', url: '/' })
  await until(() => both.app.pools.get('db').stats().pending === 1)
  t.equal((await both.app.inject('/')).body, 'replica')
  writer.release()
  t.equal((await post).body, 'primary')
  await rest(both)
})

t.test('app.close() with leases of both kinds out ends in time, and cuts their requests off', async (t) => {
  let running = 0
  const both = await set(t, (app) => {
    app.route({
      method: ['GET', 'POST'],
      url: '/',
      handler: async (request) => {
        on(request)
        running++
        await new Promise(() => {})
      }
    })
  }, { closeTimeout: 100 })
  await both.app.listen({ port: 0, host: '127.0.0.1' })
  const { port } = both.app.server.address() as { port: number }
  const cut = (['GET', 'POST'] as const).map(async (method) => {
    await fetch(`http://127.0.0.1:${port}/`, { method })
      .then(() => { throw new Error('it was answered') },
        (error: unknown) => { t.match(error, { message: 'fetch failed' }) })
  })
  await until(() => running === 2)
  await both.app.close()
  await Promise.all(cut)
  t.same([both.primary.live, both.replica.live], [0, 0])
})
