import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { Redis } from 'ioredis'
import type { Connection } from 'mysql2/promise'
import type { Client } from 'pg'
import t, { type Test } from 'tap'
import type { PoolOptions } from '../../index.js'
import { startProxy, type FaultProxy } from '../support/proxy.js'
import { askPostgres, askRedis, startMariadb, startPostgres, startRedis, type Server } from '../support/services.js'
import { needsGroup, startPostgresPair } from '../support/topologies.js'
import { until } from '../support/until.js'
import { hold, Incident, isSince, type Metric } from './incident.js'

// Incidents in which the server is to blame, on real ones: what a production log says of them within its first three
// lines, and which number an alert would use.

const circuit = (target = ''): Metric => ['fastify_pool.circuit', 'fastify_pool_circuit', { target }]
const createErrors = (type: string): Metric =>
  ['fastify_pool.create.errors', 'fastify_pool_create_errors_total', { 'error.type': type }]
const refused = (reason: string): Metric => ['fastify_pool.refused', 'fastify_pool_refused_total', { reason }]
const closed: Metric = ['fastify_pool.connection.closed', 'fastify_pool_connection_closed_total', { reason: 'error' }]
const max: Metric = ['db.client.connection.max', 'db_client_connection_max']
const state = (state: string): Metric =>
  ['db.client.connection.count', 'db_client_connection_count', { 'db.client.connection.state': state }]
const lag = (target: string): Metric => ['fastify_pool.target.lag', 'fastify_pool_target_lag', { target }]

const db = <C>(request: FastifyRequest) => (request as unknown as { db: C }).db

interface Database {
  readonly backend: 'postgresql' | 'mysql' | 'redis'
  ping (connection: never): Promise<unknown>
  /** Holds its connection for a moment. */
  occupy (connection: never): Promise<unknown>
}

const postgresql: Database = {
  backend: 'postgresql',
  ping: (connection: Client) => connection.query('SELECT 1'),
  occupy: (connection: Client) => connection.query('SELECT pg_sleep(0.2)'),
}
const mysql: Database = {
  backend: 'mysql',
  ping: (connection: Connection) => connection.query('SELECT 1'),
  occupy: (connection: Connection) => connection.query('SELECT SLEEP(0.2)'),
}
const redis: Database = {
  backend: 'redis',
  ping: (connection: Redis) => connection.ping(),
  occupy: (connection: Redis) => connection.blpop('nothing', 0.2),
}

const routes = ({ ping, occupy }: Database) => (app: FastifyInstance) => {
  app.get('/', async (request) => { await ping(db(request)) })
  app.get('/slow', async (request) => { await occupy(db(request)) })
}

const through = ({ url, port }: Server, proxy: FaultProxy) => url.replace(`:${port}`, `:${proxy.port}`)

/** Requests come, until a line of that name is written. @returns how many came */
async function asking (incident: Incident, event: string): Promise<number> {
  let asked = 0
  await until(async () => {
    asked += (await incident.ask('/', 5)).length
    return incident.named(event).length > 0
  }, { what: `the line ${event}` })
  return asked
}

// --- Dead and flapping hosts -----------------------------------------------------------------------------------------

async function deadHost (t: Test, server: Server) {
  const proxy = await startProxy(t, server)
  const options = { backend: 'postgresql', url: through(server, proxy), max: 3, acquireTimeout: 300 } as PoolOptions
  const incident = await Incident.stage(t, options, routes(postgresql))
  t.same(await incident.ask('/', 3), [200, 200, 200])
  await proxy.refuse()
  proxy.resetAll()
  const asked = await asking(incident, 'pool.down')
  await until(async () => {
    await incident.ask('/', 50)
    return incident.app.pools.stats().db!.refusals.circuit > 0
  }, { what: 'the circuit to refuse requests' })
  t.match(await incident.among(t, 'pool.died'), { died: Number, left: Number, cause: /\S/, remedy: /\S/ })
  const line = await incident.among(t, 'pool.down')
  t.match(line, {
    level: 50, pool: 'db', code: 'ECONNREFUSED', kind: 'refused', cause: /ECONNREFUSED/, remedy: /server running/, attempts: Number, refused: Number,
  })
  t.ok(isSince(line.since))
  const health = (await incident.app.pools.health()).pools.db
  t.match(health, { status: 'down', since: Number })
  await incident.alert(t, circuit(), (value) => value > 0)
  await incident.alert(t, createErrors('ECONNREFUSED'), (value) => value > 0)
  await incident.alert(t, refused('circuit'), (value) => value > 0)
  t.ok(incident.ours.length < 6, `${incident.ours.length} lines for ${asked + 50} requests and more`)
  await proxy.heal()
  await until(async () => (await incident.ask('/'))[0] === 200)
  t.match(await incident.told('pool.up'), { level: 30, refused: Number, attempts: Number })
  await incident.alert(t, circuit(), (value) => value === 0)
  incident.volumes(t)
}

async function flappingHost (t: Test, server: Server) {
  const proxy = await startProxy(t, server)
  const options = { backend: 'postgresql', url: through(server, proxy), max: 3, acquireTimeout: 300 } as PoolOptions
  const incident = await Incident.stage(t, options, routes(postgresql))
  for (let i = 0; i < 5; i++) {
    await until(async () => (await incident.ask('/'))[0] === 200)
    await proxy.refuse()
    proxy.resetAll()
    const { createErrors } = incident.app.pools.stats().db!
    await until(async () => {
      await incident.ask('/')
      return incident.app.pools.stats().db!.createErrors > createErrors
    })
    await proxy.heal()
  }
  const line = await until(() => incident.ours.find(({ flaps }) => flaps === true))
  t.ok(incident.first.includes(line), 'that it flaps is within the first three lines')
  t.match(line, { pool: 'db', outages: 3, cause: /\S/, remedy: /\S/, msg: /3rd outage within a minute: it flaps/ })
  await incident.alert(t, createErrors('ECONNREFUSED'), (value) => value >= 5)
  await incident.alert(t, closed, (value) => value >= 3)
  incident.volumes(t)
}

// --- A full server ---------------------------------------------------------------------------------------------------

interface Full extends Database {
  readonly server: Server
  readonly code: string
  /** So many connections the server allows. */
  readonly allowed: number
}

async function fullServer (t: Test, { server: { url }, code, allowed, ...database }: Full) {
  const options =
    { backend: database.backend, url, max: 15, acquireTimeout: 5000, overload: false } as PoolOptions
  const incident = await Incident.stage(t, options, routes(database))
  const load = { on: true }
  const loads = Promise.all(Array.from({ length: 30 }, async () => { while (load.on) await incident.ask('/slow') }))
  const line = await incident.among(t, 'pool.limit')
  t.match(line, { level: 40, pool: 'db', kind: 'full', code, max: 15, cause: /\S/, remedy: /lower max/ })
  for (const one of incident.first) t.match(one, { kind: 'full', remedy: /lower max/ }, 'no line blames a route')
  t.ok(Number(line.allowed) >= 2 && Number(line.allowed) <= allowed, `it gives ${String(line.allowed)}`)
  t.ok(isSince(line.since))
  await incident.alert(t, createErrors(code), (value) => value > 0)
  await incident.alert(t, max, (value) => value === 15)
  await incident.alert(t, state('used'), (value) => value <= 10)
  load.on = false
  await loads
  incident.volumes(t)
}

/**
 * Redis says that it is full before it is asked, and closes: of connects side by side the client's own writes may fail
 * first, and what it said is lost. So the line may have no more than that, but no route is blamed, and the advice of
 * the start has the server's limit.
 */
async function fullRedis (t: Test, { url }: Server) {
  const options = { backend: 'redis', url, max: 15, acquireTimeout: 5000, overload: false } as PoolOptions
  const incident = await Incident.stage(t, options, routes(redis))
  const load = { on: true }
  const loads = Promise.all(Array.from({ length: 30 }, async () => { while (load.on) await incident.ask('/slow') }))
  const line = await incident.among(t, 'pool.exhausted')
  t.match(line, { max: 15, cause: /^no more connections can be made: \w/, remedy: /server/, code: /^(?:ERR|E[A-Z]+)$/ })
  t.ok(isSince(line.since))
  const next = await until(() => incident.ours.find(({ event }) => event === 'pool.limit' || event === 'pool.error'))
  t.ok(incident.first.includes(next))
  t.match(incident.named('pool.advice'), [{ kind: 'server', allowed: 5, max: 15 }])
  const failed = await incident.alertOf(createErrors('ERR')) + await incident.alertOf(createErrors('EPIPE')) +
    await incident.alertOf(createErrors('ECONNRESET'))
  t.ok(failed > 0, `${failed} creates failed`)
  await incident.alert(t, state('used'), (value) => value <= 5)
  load.on = false
  await loads
  incident.volumes(t)
}

// --- A password that was rotated -------------------------------------------------------------------------------------

interface Rotated extends Database {
  readonly url: string
  readonly code: string
  /** Another password is right from now on, and the old connections are gone. */
  rotate (): Promise<unknown>
}

async function passwordRotated (t: Test, { url, code, rotate, ...database }: Rotated) {
  const options = { backend: database.backend, url, max: 3, acquireTimeout: 2000 } as PoolOptions
  const incident = await Incident.stage(t, options, routes(database))
  t.same(await incident.ask('/', 3), [200, 200, 200])
  await rotate()
  incident.app.pools.get('db').evict()
  await asking(incident, 'pool.down')
  const line = await incident.among(t, 'pool.down')
  t.match(line, { level: 50, kind: 'login', code, cause: /\S/, remedy: /refuses the login/ })
  t.ok(isSince(line.since))
  t.notMatch(JSON.stringify(incident.lines), /first-secret|second-secret/)
  await incident.alert(t, createErrors(code), (value) => value > 0)
  await incident.alert(t, refused('connect'), (value) => value > 0)
  incident.volumes(t)
}

// --- Idle in transaction ---------------------------------------------------------------------------------------------

/** As on PostgreSQL: incidents-held.test.ts. */
async function idleInTransaction (t: Test, { url }: Server) {
  const { held, letGo } = hold(t)
  const options = { backend: 'mysql', url, max: 2, acquireTimeout: 1500 } as PoolOptions
  const incident = await Incident.stage(t, options, (app) => {
    routes(mysql)(app)
    app.post('/pay', async (request) => {
      await db<Connection>(request).query('START TRANSACTION')
      await held
      await db<Connection>(request).query('ROLLBACK')
    })
  })
  const slow = [1, 2].map(() => incident.app.inject({ method: 'POST', url: '/pay' }))
  await incident.holders(2)
  const statuses = incident.ask('/', 3)
  const line = await incident.among(t, 'pool.exhausted')
  t.match(line, {
    held: [{ route: 'POST /pay', connections: 2, id: 'req-1', doing: 'idle in transaction', serverId: Number }],
    cause: 'POST /pay holds 2 of 2 (idle in transaction)',
    remedy: /end the transaction/,
  })
  await incident.alert(t, state('used'), (value) => value === 2)
  await incident.alert(t, ['fastify_pool.busy.time', 'fastify_pool_busy_time_seconds_total', { 'http.route': 'POST /pay' }], (value) => value > 1)
  await statuses
  letGo()
  await Promise.all(slow)
  incident.volumes(t)
}

// --- A failover with lag ---------------------------------------------------------------------------------------------

async function failoverWithLag (t: Test) {
  const { primary, replicas: [replica], promote, pauseReplay } = await startPostgresPair(t)
  const incident = await Incident.stage(t, {
    backend: 'postgresql',
    max: 4,
    acquireTimeout: 1000,
    checkInterval: 200,
    maxLag: 500,
    targets: [{ name: 'first', url: primary.url }, { name: 'second', url: replica!.url, role: 'replica' }],
  } as PoolOptions, (app) => {
    routes(postgresql)(app)
    app.post('/', async (request) => { await db<Client>(request).query('SELECT pg_current_xact_id()') })
  })
  const write = async () => (await incident.app.inject({ method: 'POST', url: '/' })).statusCode
  t.same(await incident.ask('/', 3), [200, 200, 200])
  t.equal(await write(), 200)
  await pauseReplay(replica!)
  await askPostgres(primary.url, 'CREATE TABLE late (id int)')
  const behind = await incident.among(t, 'pool.lag')
  t.match(behind, { target: 'second', over: true, maxLag: 500, lag: Number, cause: /does not keep up/, remedy: /\S/ })
  await incident.alert(t, lag('second'), (value) => value > 500)
  t.equal((await incident.app.pools.health()).status, 'up', 'reads are served by the primary')
  await primary.kill()
  await promote(replica!)
  await until(async () => await write() === 200, { what: 'a write is served' })
  const line = await incident.among(t, 'pool.failover')
  t.match(line, { from: 'first', to: 'second', cause: /^second says that it is the primary, and first/, remedy: /why/ })
  await until(async () => (await incident.ask('/'))[0] === 200)
  await incident.alert(t, circuit('second'), (value) => value === 0)
  await incident.alert(t, createErrors('ECONNREFUSED'), (value) => value > 0)
  incident.volumes(t)
}

t.test('incidents of servers', async (t) => {
  t.jobs = 16
  const all = async (t: Test) => {
    const server = await startPostgres(t)
    const flat = await startRedis(t, { args: ['--maxclients', '5'] })
    const few = await startPostgres(t, { args: ['-c', 'max_connections=5', '-c', 'superuser_reserved_connections=0'] })
    const maria = await startMariadb(t, { args: ['--max-connections=10'] })
    const roomy = await startMariadb(t, { own: true })
    const scram = await startPostgres(t, { scram: true })
    const rotating = await startRedis(t, { own: true })
    return { server, flat, few, maria, roomy, scram, rotating }
  }
  const { server, flat, few, maria, roomy, scram, rotating } = await all(t)
  const redisAt = new URL(rotating.url)
  await askRedis(redisAt, 'ACL SETUSER shop on >first-secret ~* +@all')
  const tests: Array<readonly [string, (t: Test) => Promise<void>]> = [
    ['a dead host', (t) => deadHost(t, server)],
    ['a host that flaps', (t) => flappingHost(t, server)],
    ['a full server: PostgreSQL', (t) => fullServer(t, { ...postgresql, server: few, code: '53300', allowed: 5 })],
    ['a full server: MariaDB', (t) => fullServer(t, { ...mysql, server: maria, code: 'ER_CON_COUNT_ERROR', allowed: 10 })],
    ['a full server: Redis', (t) => fullRedis(t, flat)],
    ['a password rotated: PostgreSQL', (t) => passwordRotated(t, {
      ...postgresql,
      url: scram.url,
      code: '28P01',
      rotate: () => askPostgres(scram.url, "ALTER ROLE postgres PASSWORD 'second-secret'"),
    })],
    ['a password rotated: MariaDB', async (t) => {
      const { createConnection } = await import('mysql2/promise')
      const admin = await createConnection({ uri: roomy.url })
      t.teardown(() => admin.end())
      await admin.query("CREATE USER shop@'127.0.0.1' IDENTIFIED BY 'first-secret'")
      const url = new URL(roomy.url)
      Object.assign(url, { username: 'shop', password: 'first-secret', pathname: '/' })
      await passwordRotated(t, {
        ...mysql, url: url.href, code: 'ER_ACCESS_DENIED_ERROR', rotate: () => admin.query("ALTER USER shop@'127.0.0.1' IDENTIFIED BY 'second-secret'"),
      })
    }],
    ['a password rotated: Redis', (t) => {
      const url = Object.assign(new URL(rotating.url), { username: 'shop', password: 'first-secret' })
      const rotate = () => askRedis(redisAt, 'ACL SETUSER shop resetpass >second-secret')
      return passwordRotated(t, { ...redis, url: url.href, code: 'WRONGPASS', rotate })
    }],
    ['idle in transaction: MariaDB', (t) => idleInTransaction(t, roomy)],
  ]
  await Promise.all([
    ...tests.map(([name, run]) => t.test(name, { buffered: true }, run)),
    t.test('a failover with lag', { ...needsGroup('PostgreSQL'), buffered: true }, failoverWithLag),
  ])
})
