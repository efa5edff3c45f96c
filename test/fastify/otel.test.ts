import { metrics, type Attributes } from '@opentelemetry/api'
import {
  AggregationTemporality, InMemoryMetricExporter, MeterProvider, PeriodicExportingMetricReader,
  type DataPoint, type Histogram,
} from '@opentelemetry/sdk-metrics'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import { fastifyPool, type PluginOptions } from '../../index.js'
import { Pool } from '../../lib/pool/pool.js'
import { FakeConnector } from '../support/fake-connector.js'

function appOf (t: Test): FastifyInstance {
  const app = Fastify() as unknown as FastifyInstance
  t.teardown(() => app.close())
  return app
}

/** A provider, and what its exporter has got by now. */
function provided (t: Test) {
  const exporter = new InMemoryMetricExporter(AggregationTemporality.CUMULATIVE)
  const provider = new MeterProvider({
    readers: [new PeriodicExportingMetricReader({ exporter, exportIntervalMillis: 2 ** 31 - 1 })],
  })
  t.teardown(() => provider.shutdown())
  const read = async () => {
    exporter.reset()
    await provider.forceFlush()
    const all = exporter.getMetrics().flatMap(({ scopeMetrics }) => scopeMetrics.flatMap(({ metrics }) => metrics))
    return all.map(({ descriptor, dataPoints }) => ({ descriptor, points: dataPoints as Array<DataPoint<unknown>> }))
  }
  return { provider, read }
}

type Read = Awaited<ReturnType<ReturnType<typeof provided>['read']>>

function value (all: Read, name: string, pool: string, labels: Attributes = {}): unknown {
  const points = all.find(({ descriptor }) => descriptor.name === name)?.points ?? []
  const wanted = Object.entries({ 'db.client.connection.pool.name': pool, ...labels })
  const found = points.filter(({ attributes }) => Object.keys(attributes).length === wanted.length &&
    wanted.every(([key, text]) => attributes[key] === text))
  if (found.length > 1) throw new Error(`two points of ${name}`)
  return found[0]?.value
}

const poolsIn = (all: Read) => all.find(({ descriptor }) => descriptor.name === 'db.client.connection.max')?.points
  .filter(({ value }) => value !== 0)
  .map(({ attributes }) => attributes['db.client.connection.pool.name']).sort() ?? []

const pools = (...names: string[]) => Object.fromEntries(names.map((name) =>
  [name, { connector: new FakeConnector(), max: 1, acquireTimeout: 10 }])) as NonNullable<PluginOptions['pools']>

t.test('what an alert would use, of several pools', async (t) => {
  const { provider, read } = provided(t)
  const app = appOf(t)
  await app.register(fastifyPool, {
    pools: pools('db', 'cache'), otel: { meter: provider.getMeter('test') }, log: false,
  })
  await app.ready()
  const lease = await app.pools.get('db').acquire({ holder: 'GET /slow' })
  await t.rejects(app.pools.get('db').acquire())
  const held = await read()
  const state = 'db.client.connection.state'
  t.equal(value(held, 'db.client.connection.count', 'db', { [state]: 'used' }), 1)
  t.equal(value(held, 'db.client.connection.count', 'db', { [state]: 'idle' }), 0)
  t.equal(value(held, 'db.client.connection.count', 'cache', { [state]: 'idle' }), 1)
  t.equal(value(held, 'db.client.connection.max', 'db'), 1)
  t.equal(value(held, 'db.client.connection.idle.min', 'db'), app.pools.get('db').stats().min)
  t.equal(value(held, 'db.client.connection.idle.max', 'db'), 1)
  t.equal(value(held, 'db.client.connection.pending_requests', 'db'), 0)
  t.equal(value(held, 'db.client.connection.timeouts', 'db'), 1)
  t.equal(value(held, 'fastify_pool.refused', 'db', { reason: 'full' }), 0)
  t.equal(value(held, 'fastify_pool.circuit', 'db', { target: '' }), 0)
  t.equal(value(held, 'fastify_pool.leaked', 'db'), 0)
  t.ok(value(held, 'fastify_pool.saturated.time', 'db') as number > 0)
  t.ok(value(held, 'fastify_pool.busy.time', 'db', { 'http.route': 'GET /slow' }) as number > 0)
  t.equal((value(held, 'db.client.connection.wait_time', 'db') as Histogram).count, 1, 'only those that got one')
  t.ok((value(held, 'db.client.connection.wait_time', 'db') as Histogram).buckets.boundaries.includes(0.005), 'seconds')
  t.equal((value(held, 'db.client.connection.create_time', 'cache') as Histogram).count, 1)
  t.equal(value(held, 'db.client.connection.use_time', 'db'), undefined)
  const { descriptor } = held.find(({ descriptor }) => descriptor.name === 'db.client.connection.wait_time')!
  t.equal(descriptor.unit, 's')
  const ended = new Promise<number>((resolve) => { app.pools.on('release', ({ held }) => { resolve(held) }) })
  lease.release()
  const { count, sum } = value(await read(), 'db.client.connection.use_time', 'db') as Histogram
  t.same({ count, sum }, { count: 1, sum: await ended / 1000 })
})

t.test('the shares of a bulkhead, and routes', async (t) => {
  const { provider, read } = provided(t)
  const app = appOf(t)
  await app.register(fastifyPool, {
    pools: { db: { connector: new FakeConnector(), max: 3, bulkhead: { key: () => 'one', max: 1 } } },
    otel: { meter: provider.getMeter('test') },
    log: false,
  })
  let go = () => {}
  const gone = new Promise<void>((resolve) => { go = resolve })
  app.get('/x', async () => { await gone; return 'x' })
  await app.ready()
  const waits = new Promise<void>((resolve) => { app.pools.on('wait', () => { resolve() }) })
  const replies = [app.inject('/x'), app.inject('/x')]
  await waits
  const all = await read()
  t.equal(value(all, 'fastify_pool.bulkhead.pending', 'db'), 1)
  go()
  for (const { statusCode } of await Promise.all(replies)) t.equal(statusCode, 200)
})

t.test('registrations, scopes, pools that come and go; the global provider', async (t) => {
  const { provider, read } = provided(t)
  metrics.setGlobalMeterProvider(provider)
  t.teardown(() => { metrics.disable() })
  const app = appOf(t)
  await app.register(fastifyPool, { pools: pools('db'), otel: true })
  await app.register(fastifyPool, { pools: pools('cache'), otel: true })
  const scoped = async (scope: FastifyInstance) => {
    await scope.register(fastifyPool, { pools: pools('inner'), otel: true })
  }
  await app.register(scoped)
  await app.register(scoped)
  const other = Fastify() as unknown as FastifyInstance
  await other.register(fastifyPool, { pools: pools('other'), otel: true })
  await app.ready()
  await other.ready()
  const all = await read()
  t.same(poolsIn(all), ['cache', 'db', 'inner', 'other'])
  t.equal(value(all, 'db.client.connection.max', 'inner'), 2, 'pools of one name are added up')
  await (await app.pools.get('cache').acquire())[Symbol.dispose]()
  t.equal((value(await read(), 'db.client.connection.use_time', 'cache') as Histogram).count, 1, 'once each')
  await app.pools.remove('cache')
  t.same(poolsIn(await read()), ['db', 'inner', 'other'])
  app.pools.add('late', new Pool(new FakeConnector(), { max: 1 }))
  t.same(poolsIn(await read()), ['db', 'inner', 'late', 'other'])
  await app.close()
  t.same(poolsIn(await read()), ['other'])
  await other.close()
  t.same(poolsIn(await read()), [], 'the last ones, too, have no connections any more')
  t.same(poolsIn(await read()), [])
})

t.test('closed: once more it is asked, and then no more', async (t) => {
  const { provider } = provided(t)
  const meter = provider.getMeter('test')
  const added: unknown[][] = []
  const removed: unknown[][] = []
  const given = Object.assign(Object.create(meter) as typeof meter, {
    addBatchObservableCallback: (...args: unknown[]) => { added.push(args) },
    removeBatchObservableCallback: (...args: unknown[]) => { removed.push(args) },
  })
  const app = Fastify()
  await app.register(fastifyPool, { pools: pools('db'), otel: { meter: given } })
  await app.register(fastifyPool, { pools: pools('cache'), otel: { meter: given } })
  await app.ready()
  t.same([added.length, removed.length], [1, 0])
  const observe = added[0]![0] as (result: { observe (...args: unknown[]): void }) => void
  observe({ observe: () => {} })
  await app.close()
  const values: unknown[] = []
  observe({ observe: (_instrument, value) => { values.push(value) } })
  t.ok(values.length > 0 && values.every((value) => value === 0))
  await null
  t.same(removed, added)
})

t.test('what is wrong is said at register', async (t) => {
  for (const [otel, message] of [
    ['yes', /option otel is 'yes'/],
    [{ metre: {} }, /unknown option otel\.metre: did you mean meter/],
    [{ meter: {} }, /option otel\.meter .*expected a meter of @opentelemetry\/api/],
  ] as const) {
    const app = Fastify()
    app.register(fastifyPool, { pools: pools('db'), otel } as PluginOptions)
    await t.rejects(async () => { await app.ready() }, { code: 'FST_POOL_BAD_OPTIONS', message })
    await app.close()
  }
})
