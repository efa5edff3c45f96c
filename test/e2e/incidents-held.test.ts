import type { AddressInfo } from 'node:net'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { Client } from 'pg'
import t, { type Test } from 'tap'
import type { Lease, Pool, PoolOptions } from '../../index.js'
import { startProxy } from '../support/proxy.js'
import { askPostgres, startPostgres, type Server } from '../support/services.js'
import { until } from '../support/until.js'
import { ask } from './client.js'
import { hold, Incident, isSince, requestsThatHold, type Metric } from './incident.js'

// Incidents in which those who hold connections are to blame, on a real PostgreSQL: what a production log says of them
// within its first three lines, and which number an alert would use.

const used: Metric =
  ['db.client.connection.count', 'db_client_connection_count', { 'db.client.connection.state': 'used' }]
const pending: Metric = ['db.client.connection.pending_requests', 'db_client_connection_pending_requests']
const timeouts: Metric = ['db.client.connection.timeouts', 'db_client_connection_timeouts_total']
const saturated: Metric = ['fastify_pool.saturated.time', 'fastify_pool_saturated_time_seconds_total']
const leaked: Metric = ['fastify_pool.leaked', 'fastify_pool_leaked_total']
const sharesPending: Metric = ['fastify_pool.bulkhead.pending', 'fastify_pool_bulkhead_pending']
const refused = (reason: string): Metric => ['fastify_pool.refused', 'fastify_pool_refused_total', { reason }]
const busy = (route: string): Metric =>
  ['fastify_pool.busy.time', 'fastify_pool_busy_time_seconds_total', { 'http.route': route }]

const db = (request: FastifyRequest, name = 'db') => (request as unknown as Record<string, Client>)[name]!
const poolOf = (app: FastifyInstance, name = 'db') => app.pools.get(name as never) as unknown as Pool<Client>

/** As an app does that gives nothing back. */
function leaky (app: FastifyInstance, leases: Array<Lease<Client>>) {
  app.get('/export', { config: { pools: false } }, async ({ id }) => {
    leases.push(await poolOf(app).acquire({ holder: { route: 'GET /export', id } }))
    return 'exported'
  })
}

const served = (app: FastifyInstance) => {
  app.get('/', async (request) => (await db(request).query('SELECT 1')).rowCount)
}

/** The first request that waits, until the log has the line. Then whoever waits may go. */
async function waiting (incident: Incident, times = 3): Promise<{ readonly statuses: Promise<number[]> }> {
  const statuses = incident.ask('/', times)
  await incident.told('pool.exhausted')
  return { statuses }
}

type Subtest = (t: Test, server: Server) => Promise<void>

const incidents: Readonly<Record<string, Subtest>> = {
  async 'a leak, without leakAfter' (t, { url }) {
    const leases: Array<Lease<Client>> = []
    const incident = await Incident.stage(t, { backend: 'postgresql', url, max: 2, acquireTimeout: 1500 } as PoolOptions, (app) => {
      leaky(app, leases)
      served(app)
    })
    t.same(await incident.ask('/export', 2), [200, 200])
    const { statuses } = await waiting(incident)
    const line = await incident.among(t, 'pool.exhausted')
    t.match(line, {
      pool: 'db',
      max: 2,
      held: [{ route: 'GET /export', connections: 2, id: /^req-/, doing: 'idle', serverId: Number, longest: Number }],
      cause: 'GET /export holds 2 of 2 (idle)',
      remedy: /leakAfter/,
    })
    t.ok(isSince(line.since), 'since when')
    await incident.alert(t, used, (value) => value === 2)
    await incident.alert(t, pending, (value) => value > 0)
    await incident.alert(t, saturated, (value) => value > 0.5)
    t.same(await statuses, [503, 503, 503])
    await incident.alert(t, timeouts, (value) => value === 3)
    for (const lease of leases) lease.release()
    incident.volumes(t)
  },

  async 'a leak by callers without a name: what to do is to find out, by leakAfter' (t, { url }) {
    const leases: Array<Lease<Client>> = []
    const incident = await Incident.stage(t, { backend: 'postgresql', url, max: 1, acquireTimeout: 1200 } as PoolOptions, (app) => {
      app.get('/export', { config: { pools: false } }, async () => { leases.push(await poolOf(app).acquire()) })
      served(app)
    })
    await incident.ask('/export')
    await incident.ask('/')
    t.match(await incident.among(t, 'pool.exhausted'), {
      held: [{ route: 'a caller without a name', connections: 1, doing: 'idle', serverId: Number }], remedy: /leakAfter.*holder/,
    })
    for (const lease of leases) lease.release()
    incident.volumes(t)
  },

  async 'a leak, with leakAfter' (t, { url }) {
    const leases: Array<Lease<Client>> = []
    const incident = await Incident.stage(t, { backend: 'postgresql', url, max: 5, leakAfter: 500 } as PoolOptions, (app) => {
      leaky(app, leases)
    })
    await incident.ask('/export')
    const line = await incident.among(t, 'pool.leak')
    t.match(line, {
      pool: 'db', route: 'GET /export', id: 'req-1', held: [{ doing: 'idle', serverId: Number, longest: Number }], cause: /leakAfter/, remedy: /release/,
    })
    t.ok(isSince(line.since))
    await incident.ask('/export')
    const next = await incident.among(t, 'pool.leak', ({ id }) => id === 'req-2')
    t.match(next.stack, /incidents-held/, 'the code that acquired')
    await incident.alert(t, leaked, (value) => value === 2)
    for (const lease of leases) lease.release()
    incident.volumes(t)
  },

  async 'a slow route' (t, { url }) {
    const incident = await Incident.stage(t, { backend: 'postgresql', url, max: 2 } as PoolOptions, (app) => {
      app.get('/report', async (request) => (await db(request).query('SELECT pg_sleep(2.5) AS report')).rowCount)
      served(app)
    })
    const slow = incident.ask('/report', 2)
    await incident.holders(2)
    const { statuses } = await waiting(incident, 20)
    const line = await incident.among(t, 'pool.exhausted')
    t.match(line, {
      pool: 'db',
      max: 2,
      held: [{ route: 'GET /report', connections: 2, id: 'req-1', doing: 'query', serverId: Number, longest: Number }],
      cause: 'GET /report holds 2 of 2 (query)',
      remedy: /slow queries in GET \/report/,
    })
    t.ok(isSince(line.since))
    const { serverId } = line.held![0]!
    t.match(await askPostgres(url, `SELECT query FROM pg_stat_activity WHERE pid = ${serverId}`), /AS report/, 'what a DBA sees')
    await incident.alert(t, saturated, (value) => value > 0.5)
    await incident.alert(t, busy('GET /report'), (value) => value > 1)
    t.same([...new Set([...await slow, ...await statuses])], [200])
    await incident.told('pool.exhausted.end')
    incident.volumes(t)
  },

  async 'a noisy tenant, without a bulkhead' (t, { url }) {
    const incident = await Incident.stage(t, { backend: 'postgresql', url, max: 3, min: 3, maxPending: 20, acquireTimeout: 1500, overload: false } as PoolOptions, (app) => {
      app.get('/search', async (request) => (await db(request).query('SELECT pg_sleep(1.8)')).rowCount)
      served(app)
    })
    const noise = incident.ask('/search', 30, { tenant: 'acme' })
    await until(() => incident.app.pools.stats().db!.refused > 0)
    t.same(await incident.ask('/', 5, { tenant: 'other' }), [503, 503, 503, 503, 503], 'everybody suffers')
    const { refused: n } = incident.app.pools.stats().db!
    const line = await incident.among(t, 'pool.exhausted')
    t.match(line, {
      max: 3, held: [{ route: 'GET /search', connections: 3, id: 'req-1', doing: 'query' }], refused: n, remedy: /bulkhead/,
    })
    await incident.alert(t, refused('full'), (value) => value === n)
    await incident.alert(t, pending, (value) => value > 0)
    // Those in line need not be served.
    await incident.app.close()
    await noise
    incident.volumes(t)
  },

  async 'a noisy tenant, with a bulkhead: the others are served' (t, { url }) {
    const key = (request: FastifyRequest) => request.headers.tenant as string
    const incident = await Incident.stage(t, {
      backend: 'postgresql', url, max: 3, maxPending: 20, acquireTimeout: 1500, bulkhead: { key, max: 2 },
    } as PoolOptions, (app) => {
      app.get('/search', async (request) => (await db(request).query('SELECT pg_sleep(2)')).rowCount)
      served(app)
    })
    const noise = incident.ask('/search', 50, { tenant: 'acme' })
    await until(() => incident.app.pools.stats().db!.bulkhead!.pending === 20)
    t.same(await incident.ask('/', 2, { tenant: 'other' }), [200, 200])
    const line = await incident.among(t, 'pool.exhausted')
    t.match(line, {
      pool: 'db',
      bulkhead: /^[0-9a-f]{12}$/,
      max: 2,
      pending: 20,
      refused: 28,
      held: [{ route: 'GET /search', connections: 2, id: /^req-[12]$/, doing: 'query', serverId: Number }],
      cause: 'GET /search holds 2 of 2 (query)',
      remedy: /others are served/,
    })
    t.ok(isSince(line.since))
    t.equal(line.bulkhead, incident.app.pools.stats().db!.bulkhead!.keys[0]!.key, 'as in stats and holders')
    await incident.alert(t, sharesPending, (value) => value === 20)
    const answers = await noise
    t.equal(answers.filter((status) => status === 503).length, 48)
    t.match(await incident.told('pool.exhausted.end'), { bulkhead: line.bulkhead, max: 2, timeouts: 20, refused: 28, most: 20 })
    t.notMatch(JSON.stringify(incident.ours), /acme/)
    incident.volumes(t)
  },

  async 'a self-deadlock whose requests say who they are' (t, { url }) {
    const incident = await Incident.stage(t, { backend: 'postgresql', url, max: 2, acquireTimeout: 1500 } as PoolOptions, (app) => {
      app.get('/twice', async (request) => {
        const { holder } = request.lease('db' as never) as Lease<unknown>
        await both(app)
        return await poolOf(app).use(() => 'never', { holder: holder! })
      })
    })
    const both = bothHold(2)
    t.same((await incident.ask('/twice', 2)).sort(), [200, 500], 'one is refused, and so the other one is served')
    const line = await incident.among(t, 'pool.deadlock')
    t.match(line, {
      level: 50, pool: 'db', code: 'FST_POOL_DEADLOCK', max: 2, held: [{ route: 'GET /twice', connections: 2, id: /^req-/, doing: 'idle' }], cause: /wait for another one/, remedy: /request\.lease/,
    })
    t.ok(isSince(line.since))
    await incident.alert(t, refused('deadlock'), (value) => value === 1)
    incident.volumes(t)
  },

  async 'a self-deadlock of callers without a name: named by those who hold' (t, { url }) {
    const incident = await Incident.stage(t, { backend: 'postgresql', url, max: 2, acquireTimeout: 1500 } as PoolOptions, (app) => {
      app.get('/twice', async (request) => {
        t.ok(db(request))
        await both(app)
        return await poolOf(app).use(() => 'never')
      })
    })
    const both = bothHold(2)
    const statuses = incident.ask('/twice', 2)
    const line = await incident.among(t, 'pool.exhausted')
    t.match(line, {
      rate: 0, held: [{ route: 'GET /twice', connections: 2, id: /^req-/, doing: 'idle' }], remedy: /a wait for another connection/,
    })
    t.ok(isSince(line.since))
    await incident.alert(t, saturated, (value) => value > 0.5)
    // The first one that gives up lets the other one have its connection.
    t.ok((await statuses).includes(503))
    await incident.alert(t, timeouts, (value) => value >= 1)
    incident.volumes(t)
  },

  async 'a deadlock of two pools: each names those who hold it' (t, { url }) {
    const pool = { backend: 'postgresql', url, max: 1, acquireTimeout: 1500 } as PoolOptions
    const incident = await Incident.stage(t, { pools: { a: pool, b: pool }, lease: { acquire: 'manual' } }, (app) => {
      for (const [path, first, second] of [['/ab', 'a', 'b'], ['/ba', 'b', 'a']] as const) {
        app.get(path, async (request) => {
          await request.acquire(first as never)
          await until(() => ['a', 'b'].every((name) => app.pools.stats()[name]!.used === 1))
          await request.acquire(second as never)
          return 'never'
        })
      }
    })
    const statuses = Promise.all([incident.ask('/ab'), incident.ask('/ba')])
    for (const [name, route] of [['a', 'GET /ab'], ['b', 'GET /ba']] as const) {
      const line = await incident.among(t, 'pool.exhausted', ({ pool }) => pool === name)
      t.match(line, {
        pool: name, max: 1, held: [{ route, id: /^req-/, doing: 'idle', serverId: Number }], cause: `${route} holds 1 of 1 (idle)`, remedy: /a wait for another connection/,
      })
      t.ok(isSince(line.since))
      await incident.alert(t, saturated, (value) => value > 0.5, name)
    }
    const [[one], [other]] = await statuses
    t.ok(one === 503 || other === 503)
    t.same(incident.named('pool.deadlock'), [], 'it is not detected')
    incident.volumes(t)
  },

  async 'idle in transaction' (t, { url }) {
    const { held, letGo } = hold(t)
    const incident = await Incident.stage(t, { backend: 'postgresql', url, max: 2, acquireTimeout: 1500 } as PoolOptions, (app) => {
      app.post('/pay', { config: { pools: { db: { transaction: true } } } }, async (request) => {
        await db(request).query('SELECT 1')
        await held // As the answer of a payment service that does not come.
        return 'paid'
      })
      served(app)
    })
    const slow = [1, 2].map(() => incident.app.inject({ method: 'POST', url: '/pay' }))
    await incident.holders(2)
    const { statuses } = await waiting(incident)
    const line = await incident.among(t, 'pool.exhausted')
    t.match(line, {
      held: [{ route: 'POST /pay', connections: 2, id: 'req-1', doing: 'idle in transaction', serverId: Number, longest: Number }],
      cause: 'POST /pay holds 2 of 2 (idle in transaction)',
      remedy: /transaction open.*end the transaction/,
    })
    t.ok(isSince(line.since))
    const { serverId } = line.held![0]!
    t.equal(await askPostgres(url, `SELECT state FROM pg_stat_activity WHERE pid = ${serverId}`), 'idle in transaction')
    await incident.alert(t, busy('POST /pay'), (value) => value > 1)
    await incident.alert(t, used, (value) => value === 2)
    await statuses
    await incident.alert(t, timeouts, (value) => value === 3)
    letGo()
    await Promise.all(slow)
    incident.volumes(t)
  },

  async 'a burst on a cold pool' (t, server) {
    const proxy = await startProxy(t, server)
    const url = server.url.replace(`:${server.port}`, `:${proxy.port}`)
    const incident = await Incident.stage(t, { backend: 'postgresql', url, max: 5, startup: 'lazy', overload: false } as PoolOptions, served)
    proxy.latency(700)
    const statuses = incident.ask('/', 100)
    const line = await incident.among(t, 'pool.exhausted')
    t.match(line, { creating: Number, max: 5, cause: /^[345] connections are still being opened$/, remedy: /connectTimeout and min/ })
    t.ok(isSince(line.since))
    await incident.alert(t, pending, (value) => value >= 90)
    await proxy.heal()
    t.same([...new Set(await statuses)], [200])
    await incident.alert(t, ['db.client.connection.create_time', 'db_client_connection_create_time_seconds_count'], (value) => value >= 1)
    await incident.told('pool.exhausted.end')
    incident.volumes(t)
  },

  async 'a shutdown that hangs' (t, { url }) {
    const { held } = hold(t)
    const incident = await Incident.stage(t, { backend: 'postgresql', url, max: 3, closeTimeout: 3500 } as PoolOptions, (app) => {
      app.get('/hangs', async (request) => {
        await db(request).query('SELECT 1')
        await held
      })
    })
    await incident.app.listen({ port: 0, host: '127.0.0.1' })
    const hanging = ask({ port: (incident.app.server.address() as AddressInfo).port, path: '/hangs' }).catch(() => {})
    await incident.holders(1)
    await incident.app.pools.get('db').use(() => {})
    const closed = incident.app.close()
    const line = await incident.among(t, 'pool.closing')
    t.match(line, {
      pool: 'db', used: 1, held: [{ route: 'GET /hangs', id: 'req-1', connections: 1, doing: 'idle', serverId: Number, longest: Number }], cause: 'GET /hangs has not given its connection back', remedy: /closeTimeout/,
    })
    t.ok(isSince(line.since))
    await incident.alert(t, used, (value) => value === 1)
    t.equal((await incident.app.pools.health()).status, 'draining')
    await closed
    await hanging
    t.match(incident.named('close'), [{ level: 40, msg: /leases still out: .* by GET \/hangs \(req-1\)/ }])
    incident.volumes(t)
  },

  async 'a pool that is well, at 60 % load' (t, { url }) {
    const incident = await Incident.stage(t, { backend: 'postgresql', url, max: 5, min: 5 } as PoolOptions, (app) => {
      app.get('/', async (request) => (await db(request).query('SELECT pg_sleep(0.05)')).rowCount)
    })
    await incident.told('pool.open')
    await incident.app.ready()
    // 3 of 5 are used at any time, however busy the cores.
    let left = 200
    const client = async () => {
      while (left-- > 0) t.same(await incident.ask('/'), [200])
    }
    await Promise.all([client(), client(), client()])
    t.same(incident.ours.map(({ event }) => event), ['pool.open'], 'nothing at info or above')
    await incident.alert(t, timeouts, (value) => value === 0)
  },
}

/** Resolves when so many have a connection. */
const bothHold = (times: number) => async (app: FastifyInstance) => {
  await until(() => requestsThatHold(app).length === times)
}

t.jobs = 8
t.test('incidents of those who hold connections', async (t) => {
  const server = await startPostgres(t)
  t.jobs = 16
  await Promise.all(Object.entries(incidents).map(([name, run]) =>
    t.test(name, { buffered: true }, (t) => run(t, server))))
})
