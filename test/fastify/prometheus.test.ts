import Fastify, { type FastifyInstance } from 'fastify'
import { Registry, register } from 'prom-client'
import t, { type Test } from 'tap'
import { fastifyPool, type PluginOptions } from '../../index.js'
import { FakeConnector } from '../support/fake-connector.js'

function appOf (t: Test): FastifyInstance {
  const app = Fastify() as unknown as FastifyInstance
  t.teardown(() => app.close())
  return app
}

const pools = (...names: string[]) => Object.fromEntries(names.map((name) =>
  [name, { connector: new FakeConnector(), max: 1, acquireTimeout: 10 }])) as NonNullable<PluginOptions['pools']>

/** The samples of a text, by name and labels in order of the alphabet. */
async function samples (registry: Registry): Promise<Map<string, number>> {
  const read = new Map<string, number>()
  for (const line of (await registry.metrics()).split('\n')) {
    const [, name, labels = '', value] = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line) ?? []
    if (name !== undefined) read.set(`${name}{${labels.split(/,(?=\w+=)/).sort().join()}}`, Number(value))
  }
  return read
}

t.test('what an alert would use, of several pools', async (t) => {
  const registry = new Registry()
  const app = appOf(t)
  await app.register(fastifyPool, { pools: pools('db', 'cache'), prometheus: { register: registry }, log: false })
  await app.ready()
  const lease = await app.pools.get('db').acquire({ holder: 'GET /slow' })
  await t.rejects(app.pools.get('db').acquire())
  const held = await samples(registry)
  t.equal(held.get('db_client_connection_count{pool="db",state="used"}'), 1)
  t.equal(held.get('db_client_connection_count{pool="db",state="idle"}'), 0)
  t.equal(held.get('db_client_connection_count{pool="cache",state="idle"}'), 1)
  t.equal(held.get('db_client_connection_max{pool="db"}'), 1)
  t.equal(held.get('db_client_connection_pending_requests{pool="db"}'), 0)
  t.equal(held.get('db_client_connection_timeouts_total{pool="db"}'), 1)
  t.equal(held.get('fastify_pool_refused_total{pool="db",reason="full"}'), 0)
  t.equal(held.get('fastify_pool_circuit{pool="db",target=""}'), 0)
  t.ok(held.get('fastify_pool_saturated_time_seconds_total{pool="db"}')! > 0)
  t.ok(held.get('fastify_pool_busy_time_seconds_total{http_route="GET /slow",pool="db"}')! > 0)
  lease.release()
  const { wait } = app.pools.get('db').stats()
  const after = await samples(registry)
  t.equal(after.get('db_client_connection_wait_time_seconds_count{pool="db"}'), wait.count)
  t.equal(after.get('db_client_connection_wait_time_seconds_bucket{le="+Inf",pool="db"}'), wait.count)
  for (const { le, count } of wait.buckets) {
    t.equal(after.get(`db_client_connection_wait_time_seconds_bucket{le="${le / 1000}",pool="db"}`), count)
  }
  t.equal(after.get('db_client_connection_wait_time_seconds_sum{pool="db"}'), wait.sum / 1000)
  t.equal(after.get('db_client_connection_create_time_seconds_count{pool="db"}'), 1)
})

t.test('registrations, scopes, pools that come and go; nothing stays behind', async (t) => {
  const app = appOf(t)
  const poolsIn = async () => {
    const names = [...(await samples(register)).keys()].map((key) => /^db_client_connection_max\{pool="(\w+)"/.exec(key)?.[1])
    return names.filter((name) => name !== undefined).sort()
  }
  await app.register(fastifyPool, { pools: pools('db'), prometheus: true })
  await app.register(fastifyPool, { pools: pools('cache'), prometheus: true })
  const scoped = async (scope: FastifyInstance) => {
    await scope.register(fastifyPool, { pools: pools('inner'), prometheus: true })
  }
  await app.register(scoped)
  await app.register(scoped)
  const other = Fastify() as unknown as FastifyInstance
  await other.register(fastifyPool, { pools: pools('other'), prometheus: true })
  await app.ready()
  t.same(await poolsIn(), ['cache', 'db', 'inner', 'other'])
  const all = await samples(register)
  t.equal(all.get('db_client_connection_max{pool="inner"}'), 2, 'pools of one name are added up')
  t.equal(all.get('db_client_connection_create_time_seconds_bucket{le="+Inf",pool="inner"}'), 2)
  await app.pools.remove('cache')
  t.same(await poolsIn(), ['db', 'inner', 'other'])
  await app.close()
  t.same(await poolsIn(), ['other'])
  await other.close()
  t.same((await register.getMetricsAsJSON()), [])
})

t.test('what is wrong is said at register', async (t) => {
  for (const [prometheus, message] of [
    ['yes', /option prometheus is 'yes'/],
    [{ registry: {} }, /unknown option prometheus\.registry: did you mean register/],
    [{ register: {} }, /option prometheus\.register .*expected a registry of prom-client/],
  ] as const) {
    const app = Fastify()
    app.register(fastifyPool, { pools: pools('db'), prometheus } as PluginOptions)
    await t.rejects(async () => { await app.ready() }, { code: 'FST_POOL_BAD_OPTIONS', message })
    await app.close()
  }
})
