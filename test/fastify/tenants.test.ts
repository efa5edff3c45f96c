// A pool per tenant. The databases are fakes in the test's hands, one for each tenant.
import Fastify, { type FastifyInstance, type FastifyRequest } from 'fastify'
import t, { type Test } from 'tap'
import {
  fastifyPool, type PluginOptions, type PoolEvents, type PostgresPubSub, type RedisPubSub, type TenantOptions,
} from '../../index.js'
import { Histogram } from '../../lib/engine/histogram.js'
import { checkPoolOptions } from '../../lib/fastify/options.js'
import { TenantPool } from '../../lib/fastify/tenants/pool.js'
import { Pool } from '../../lib/pool/pool.js'
import { settle, VirtualClock } from '../support/clock.js'
import { FakeConnector } from '../support/fake-connector.js'
import { until } from '../support/until.js'

interface Serving {
  readonly app: FastifyInstance
  readonly connectors: Map<string, FakeConnector>
  /** For which keys options were asked, in order. */
  readonly asked: string[]
  get (tenant: string | undefined, url?: string): Promise<{ statusCode: number, body: string, json (): any }>
}

interface Given {
  readonly options?: Record<string, unknown>
  readonly of?: (key: string, connector: FakeConnector) => TenantOptions | Promise<TenantOptions>
  routes?: (app: FastifyInstance) => void
}

async function serve (
  t: Test, { options = {}, of = (_, connector) => ({ connector }), routes }: Given = {}
): Promise<Serving> {
  const connectors = new Map<string, FakeConnector>()
  const asked: string[] = []
  const app = Fastify() as unknown as FastifyInstance
  t.teardown(async () => {
    for (const connector of connectors.values()) for (const call of [...connector.calls]) call.pass()
    await app.close()
  })
  await app.register(fastifyPool, {
    key: ({ headers }: FastifyRequest) => headers['x-tenant'] as string | undefined,
    options: (key: string) => {
      asked.push(key)
      const connector = connectors.get(key) ?? new FakeConnector()
      connectors.set(key, connector)
      return of(key, connector)
    },
    max: 2,
    ...options,
  } as PluginOptions)
  app.get('/', async (request) => (request.db as unknown as { id: number }).id)
  routes?.(app)
  await app.ready()
  const get: Serving['get'] = (tenant, url = '/') =>
    app.inject({ url, headers: tenant === undefined ? {} : { 'x-tenant': tenant } })
  return { app, connectors, asked, get }
}

t.test('each tenant has a pool of its own, made at its first request', async (t) => {
  const { app, connectors, asked, get } = await serve(t)
  t.same(asked, [], 'nothing is opened at the start')
  for (const tenant of ['a', 'b', 'a']) t.match(await get(tenant), { statusCode: 200, body: '1' })
  t.same(asked, ['a', 'b'])
  t.match([...connectors.values()].map(({ live }) => live), [1, 1])
  await app.close()
  t.match([...connectors.values()].map(({ live, closed }) => [live, closed]), [[0, 1], [0, 1]])
})

t.test('requests that come together make one pool', async (t) => {
  let answer = (_: TenantOptions) => {}
  const { asked, get } = await serve(t, {
    of: (_, connector) => new Promise((resolve) => { answer = () => { resolve({ connector, max: 5 }) } }),
  })
  const both = [get('a'), get('a'), get('a')]
  await until(() => asked.length > 0)
  answer({})
  t.match(await Promise.all(both), [{ statusCode: 200 }, { statusCode: 200 }, { statusCode: 200 }])
  t.same(asked, ['a'])
})

t.test('without a key nothing is leased, and request.db says so with status 400', async (t) => {
  const { asked, get, app } = await serve(t, {
    routes: (app) => {
      app.get('/none', async () => 'fine')
      app.get('/hand', async (request) => (await request.acquire('db')).pool)
    },
  })
  t.match(await get(undefined, '/none'), { statusCode: 200, body: 'fine' })
  for (const url of ['/', '/hand']) {
    const reply = await get(undefined, url)
    t.match(reply.json(), { statusCode: 400, code: 'FST_POOL_NOT_LEASED' }, url)
  }
  t.match((await get('x'.repeat(257))).json(), { statusCode: 400, code: 'FST_POOL_NOT_LEASED' })
  t.same(asked, [])
  t.match(await get('a', '/hand'), { statusCode: 200, body: 'db' })
  for (const call of [
    () => app.pools.get('db').acquire(), () => app.pools.get('db').use(() => {}),
    () => app.pools.get('db').transaction(() => {}), () => app.pools.get('db').begin(),
    () => app.pools.get('db').execute('x' as never), async () => app.pools.get('db').tryAcquire(),
  ]) await t.rejects(call(), { code: 'FST_POOL_NOT_SUPPORTED', message: /of\(key\)/ })
})

t.test('a key that is rejected answers with its own status, is remembered, and harms nobody', async (t) => {
  const { asked, get } = await serve(t, {
    options: { maxPools: 1 },
    of: async (key, connector) => {
      if (key === 'good') return { connector }
      if (key === 'unknown') throw Object.assign(new Error('no such tenant'), { statusCode: 404 })
      if (key === 'wrong') return { connector, maxx: 5 } as TenantOptions
      throw new Error('the registry is away: password hunter2')
    },
  })
  t.equal((await get('good')).statusCode, 200)
  t.match((await get('unknown')).json(), { statusCode: 404, message: 'no such tenant' })
  for (const key of ['wrong', 'away']) {
    const reply = await get(key)
    t.match(reply.json(), { statusCode: 503, code: 'FST_POOL_CONNECT_FAILED' }, key)
    t.notMatch(reply.body, /hunter2/, 'the client is not told why')
  }
  for (const key of ['unknown', 'wrong', 'away']) await get(key)
  t.same(asked, ['good', 'unknown', 'wrong', 'away'], 'each was asked once')
  t.equal((await get('good')).statusCode, 200)
  t.equal(asked.length, 4, 'and the pool of the good one is still there')
})

t.test('beyond maxPools the one used longest ago is closed; where all are in use, the answer is 503', async (t) => {
  const open: Array<() => void> = []
  const { connectors, get, asked } = await serve(t, {
    options: { maxPools: 2 },
    routes: (app) => {
      app.get('/slow', async (request) => {
        t.ok(request.db)
        await new Promise<void>((resolve) => { open.push(resolve) })
      })
    },
  })
  await get('a')
  await get('b')
  await get('a')
  await get('c')
  await until(() => connectors.get('b')!.closed === 1, { what: 'b is closed' })
  t.equal(connectors.get('a')!.closed, 0)
  const slow = [get('a', '/slow'), get('c', '/slow')]
  await until(() => open.length === 2)
  t.match((await get('b')).json(), { statusCode: 503, code: 'FST_POOL_QUEUE_FULL', message: /maxPools/ })
  t.equal((await get('a')).statusCode, 200, 'those that have a pool go on')
  for (const one of open) one()
  await Promise.all(slow)
  t.equal((await get('b')).statusCode, 200)
  t.same(asked, ['a', 'b', 'c', 'b', 'b'])
})

t.test('a pool that is not used is closed, and made again', async (t) => {
  const { connectors, get, asked } = await serve(t, { options: { idlePoolTimeout: 20 } })
  await get('a')
  await until(() => connectors.get('a')!.closed === 1, { what: 'it is closed' })
  t.equal((await get('a')).statusCode, 200)
  t.same(asked, ['a', 'a'])
})

t.test('maxTotal is hard for all together: idle connections of others make room', async (t) => {
  const open: Array<() => void> = []
  const { connectors, get } = await serve(t, {
    options: { maxTotal: 2, acquireTimeout: 2000 },
    routes: (app) => {
      app.get('/slow', async (request) => {
        t.ok(request.db)
        await new Promise<void>((resolve) => { open.push(resolve) })
      })
    },
  })
  const live = () => [...connectors.values()].reduce((sum, { live }) => sum + live, 0)
  for (const tenant of ['a', 'b', 'c', 'd']) {
    t.equal((await get(tenant)).statusCode, 200)
    t.ok(live() <= 2, `${live()} connections`)
  }
  const slow = [get('a', '/slow'), get('b', '/slow')]
  await until(() => open.length === 2)
  const waits = get('c')
  await settle()
  t.equal(live(), 2)
  open.shift()!()
  t.equal((await waits).statusCode, 200, 'who waits gets the room of one that came back')
  for (const one of open) one()
  await Promise.all(slow)
})

t.test('of(key) is the pool of one tenant, at once, for jobs', async (t) => {
  const { app, connectors, get, asked } = await serve(t)
  const pool = app.pools.get('db').of('job')
  t.same(asked, [])
  t.equal(pool.tryAcquire(), null)
  const lease = await pool.acquire({ holder: 'a job' })
  t.equal(lease.connection, connectors.get('job')!.connections[0])
  t.match(app.pools.holders('db'), [{ holder: 'a job', tenant: /^[0-9a-f]{12}$/ }])
  lease.release()
  t.equal(pool.tryAcquire()?.release(), undefined)
  t.equal(await pool.use((connection) => (connection as { id: number }).id), 1)
  await pool.transaction(() => {})
  {
    await using tx = await pool.begin()
    await tx.commit()
  }
  t.same(connectors.get('job')!.asked, ['begin #1', 'commit #1', 'begin #1', 'commit #1'])
  await pool.close()
  t.equal(connectors.get('job')!.closed, 1)
  t.equal((await get('job')).statusCode, 200, 'it is made again')
  t.same(asked, ['job', 'job'])
  t.throws(() => pool.of('other'), { code: 'FST_POOL_NOT_SUPPORTED' })
  t.throws(() => app.pools.get('db').of(5 as never), { code: 'FST_POOL_BAD_OPTIONS' })
})

t.test('a tenant has no subscriptions, and is told so', async (t) => {
  const { app, asked } = await serve(t)
  const backend = app.pools.get('db').of('a').backend as unknown as RedisPubSub & PostgresPubSub
  const refused = { code: 'FST_POOL_NOT_SUPPORTED', message: /a pool beside it/ }
  await t.rejects(backend.subscribe('news', () => {}), refused)
  await t.rejects(backend.listen('news', () => {}), refused)
  t.throws(() => backend.subscribe('news'), refused)
  t.same(asked, [])
})

t.test('events name the tenant by a hash, or by its key where that is asked for', async (t) => {
  for (const showKeys of [false, true]) {
    const { app, get } = await serve(t, { options: { showKeys } })
    const seen: Array<PoolEvents['connect']> = []
    const undo = app.pools.on('connect', (event) => { seen.push(event) })
    const one: unknown[] = []
    app.pools.get('db').of('b').on('connect', () => { one.push('b') })
    await get('a')
    await get('b')
    t.match(seen, [{ pool: 'db', tenant: showKeys ? 'a' : /^[0-9a-f]{12}$/ }, { pool: 'db' }])
    t.same(one, ['b'])
    undo()
    await get('c')
    t.equal(seen.length, 2)
  }
})

t.test('stats and health are of all tenants together, and of the largest ones', async (t) => {
  const { app, get, connectors } = await serve(t, { options: { maxPools: 2 } })
  const pool = app.pools.get('db')
  t.match(pool.stats(), { name: 'db', max: 0, used: 0, acquired: 0, tenants: { open: 0, largest: [] } })
  t.match(await pool.health(), { status: 'degraded', reason: 'no tenant has a pool now' })
  t.match(pool.of('a').stats(), { max: 2, used: 0, acquired: 0 })
  for (const tenant of ['a', 'a', 'b']) await get(tenant)
  const held = await pool.of('b').acquire()
  const stats = pool.stats()
  t.match(stats, { max: 4, used: 1, idle: 1, acquired: 4, released: 3, created: 2, wait: { count: 4 } })
  t.equal(stats.lastMinute.acquired, 4)
  t.same(stats.tenants!.largest.map(({ used, acquired }) => [used, acquired]), [[0, 2], [1, 2]])
  held.release()
  await get('c')
  await until(() => connectors.get('a')!.closed === 1)
  await until(() => pool.stats().closing === 0)
  t.match(pool.stats(), { max: 4, acquired: 5, created: 3, destroyed: { closed: 1 }, tenants: { open: 2 } },
    'what a closed pool has counted stays')
  t.match(await pool.health(), { status: 'up' })
  connectors.get('c')!.outcomes.create = 'error'
  for (const one of connectors.get('c')!.connections) one.die(new Error('gone'))
  await t.rejects(pool.of('c').acquire({ timeout: 20 }))
  t.match(await app.pools.health(), { status: 'degraded', pools: { db: { reason: /^1 of 2 tenants: tenant [0-9a-f]{12}: / } } })
})

t.test('what a caller waits for has its deadline and its signal', async (t) => {
  const { app } = await serve(t, { of: () => new Promise(() => {}) })
  const pool = app.pools.get('db').of('never')
  await t.rejects(pool.acquire({ timeout: 5 }), { code: 'FST_POOL_ACQUIRE_TIMEOUT' })
  const controller = new AbortController()
  const waits = pool.acquire({ signal: controller.signal })
  controller.abort(new Error('gone'))
  await t.rejects(waits, { code: 'FST_POOL_ABORTED' })
})

t.test('options that do not fit are refused by name at register', async (t) => {
  const key = () => 'a'
  const options = () => ({})
  for (const [given, name] of [
    [{ backend: 'sqlite', key }, /options/], [{ backend: 'sqlite', options }, /options/],
    [{ backend: 'sqlite', maxPools: 5 }, /maxPools/], [{ backend: 'sqlite', key, options, maxPools: 0 }, /maxPools/],
    [{ backend: 'sqlite', key, options, startup: 'require' }, /startup/],
    [{ backend: 'sqlite', key, options, maxTotal: 5 }, /maxTotal/],
    [{ backend: 'redis', key, options, targets: [{}] }, /targets/],
    [{ backend: 'redis', key, options, bulkhead: { key, max: 1 } }, /bulkhead/],
    [{ backend: 'redis', key: 'tenant', options }, /key/], [{ backend: 'redis', key, options, maxx: 1 }, /maxx/],
  ] as Array<[object, RegExp]>) {
    const app = Fastify()
    await t.rejects(async () => { await app.register(fastifyPool, given as PluginOptions) },
      { code: 'FST_POOL_BAD_OPTIONS', message: name })
  }
})

t.test('the stats of many tells distributions once, and those of the ten largest', async (t) => {
  const { app, get } = await serve(t, { options: { maxPools: 100 } })
  for (let i = 0; i < 40; i++) await get(`t${i}`)
  const { prototype } = Histogram
  const { summary } = prototype
  t.teardown(() => { prototype.summary = summary })
  let told = 0
  prototype.summary = function (...args) {
    told++
    return summary.apply(this, args)
  }
  const stats = app.pools.get('db').stats()
  t.match(stats, { acquired: 40, released: 40, held: { count: 40 }, tenants: { open: 40, largest: { length: 10 } } })
  t.match(stats.lastMinute, { acquired: 40, held: { count: 40 } })
  // Waits, holds and creates, in all and of the last minute: of the sum, of a pool that has done nothing, and of ten.
  t.equal(told, 6 * 12)
})

t.test('suspend holds for tenants that come later, too', async (t) => {
  const { app } = await serve(t)
  const pool = app.pools.get('db')
  pool.suspend()
  await t.rejects(pool.of('late').acquire({ timeout: 1 }), { code: 'FST_POOL_ACQUIRE_TIMEOUT' })
  const waiting = pool.of('late').acquire()
  pool.resume()
  const lease = await waiting
  lease.release()
  await pool.of('later').use(() => {})
})

t.test('a listener that is taken back leaves nothing at the pools', async (t) => {
  const { app, get } = await serve(t)
  await get('a')
  const { tenants } = app.pools.get('db') as unknown as TenantPool
  const pool = tenants.peek('a')!
  const added: string[] = []
  const { on } = pool
  pool.on = (event, listener) => {
    const undo = on.call(pool, event, listener as never)
    added.push(event)
    return () => {
      added.splice(added.indexOf(event), 1)
      undo()
    }
  }
  app.pools.get('db').on('acquire', () => {})()
  t.same(added, [])
})

t.test('a call waits for the options and the connection no longer than its timeout, all together', async (t) => {
  const clock = new VirtualClock()
  let answer = (_: TenantOptions) => {}
  const connector = new FakeConnector()
  const options = checkPoolOptions({
    key: () => undefined,
    options: () => new Promise<TenantOptions>((resolve) => { answer = resolve }),
    max: 1,
    overload: false,
  }, '')
  const make = async (own: { connector?: unknown }) => new Pool(own.connector as FakeConnector, own as never, clock)
  const pool = new TenantPool(options as never, make as never, clock)
  t.teardown(async () => {
    const closed = pool.close({ timeout: 1 })
    await clock.advance(10_000)
    await closed
  })
  const first = pool.of('a').acquire()
  const late: string[] = []
  for (const call of ['use', 'transaction', 'execute', 'begin'] as const) {
    const calls = {
      use: () => pool.of('a').use(() => {}, { timeout: 100 }),
      transaction: () => pool.of('a').transaction(() => {}, { timeout: 100 }),
      execute: () => pool.of('a').execute({ method: 'x' as never, timeout: 100 }),
      begin: () => pool.of('a').begin({ timeout: 100 }),
    }
    calls[call]().catch((error: unknown) => { late.push(`${call} ${(error as { code: string }).code}`) })
  }
  await clock.advance(90)
  answer({ connector })
  await settle()
  const lease = await first
  await clock.advance(9)
  t.same(late, [])
  await clock.advance(1)
  t.same(late.sort(), ['begin', 'execute', 'transaction', 'use'].map((call) => `${call} FST_POOL_ACQUIRE_TIMEOUT`))
  lease.release()
})

t.test('what closed pools have done leaves the last minute', async (t) => {
  const clock = new VirtualClock()
  const options = checkPoolOptions({
    key: () => undefined, options: () => ({ connector: new FakeConnector() }), maxPools: 1,
  }, '')
  const make = async (own: { connector?: unknown }) => new Pool(own.connector as FakeConnector, own as never, clock)
  const pool = new TenantPool(options as never, make as never, clock)
  for (let at = 0; at < 60; at++) await pool.of(`t${at}`).use(() => {})
  await clock.advance(10)
  const all = { acquired: 60, created: 60, held: { count: 60 }, wait: { count: 60 } }
  t.match(pool.stats(), { ...all, lastMinute: all })
  await clock.advance(70_000)
  const none = { acquired: 0, created: 0, held: { count: 0 }, wait: { count: 0 } }
  t.match(pool.stats(), { ...all, lastMinute: none })
  const closed = pool.close()
  await clock.advance(1000)
  await closed
})

t.test('callers that get no pool are counted, and told of', async (t) => {
  const { app, get } = await serve(t, {
    options: { maxPools: 1, acquireTimeout: 20 },
    of: async (key, connector) => {
      if (key === 'broken') throw new Error('no such tenant')
      if (key === 'gone') throw Object.assign(new Error('gone'), { statusCode: 410 })
      if (key === 'slow') await new Promise(() => {})
      return { connector }
    },
  })
  const told: string[] = []
  const pool = app.pools.get('db')
  for (const event of ['refuse', 'timeout', 'error'] as const) {
    app.pools.on(event, ({ error }) => { told.push(`${event} ${(error as { code?: string }).code ?? error.message}`) })
  }
  const lease = await pool.of('a').acquire()
  t.match(await get('b'), { statusCode: 503 })
  t.match(await get('broken'), { statusCode: 503 })
  t.match(await get('broken'), { statusCode: 503 })
  t.match(await get('gone'), { statusCode: 410 })
  const slow = get('slow')
  await until(() => pool.stats().pending === 1)
  t.match(await slow, { statusCode: 503 })
  const counted = { refused: 3, refusals: { full: 1, connect: 2 }, timeouts: 1 }
  t.match(pool.stats(), { pending: 0, ...counted, lastMinute: counted })
  t.same(told.filter((one) => !one.startsWith('error gone')), [
    'error FST_POOL_QUEUE_FULL', 'refuse FST_POOL_QUEUE_FULL', 'error no such tenant', 'refuse FST_POOL_CONNECT_FAILED',
    'refuse FST_POOL_CONNECT_FAILED', 'timeout FST_POOL_ACQUIRE_TIMEOUT',
  ])
  lease.release()
})

t.test('who waits until the last pool of a tenant has closed is told so', async (t) => {
  const { app } = await serve(t)
  const pool = app.pools.get('db')
  const lease = await pool.of('a').acquire()
  const closed = pool.of('a').close()
  await t.rejects(pool.of('a').acquire({ timeout: 1 }), {
    code: 'FST_POOL_ACQUIRE_TIMEOUT',
    message: "pool 'db': the last pool of this tenant, of which a connection may still be used, had not closed within 1 ms",
  })
  lease.release()
  await closed
})
