import Fastify from 'fastify'
import t, { type Test } from 'tap'
import { logEvents } from '../../lib/fastify/log/log.js'
import { checkPoolOptions } from '../../lib/fastify/options.js'
import { PoolManager } from '../../lib/fastify/pools.js'
import { TenantPool } from '../../lib/fastify/tenants/pool.js'
import type { Activity, FailureKind } from '../../types/connector.js'
import type { EngineOptions } from '../../types/options.js'
import type { PluginOptions } from '../../types/plugin.js'
import type { Lease } from '../../types/pool.js'
import { Pool } from '../../lib/pool/pool.js'
import { VirtualClock } from '../support/clock.js'
import { FakeConnector, type FakeConnection } from '../support/fake-connector.js'

interface Line extends Record<string, unknown> { level: number, msg: string, event: string }

const info = 30
const warn = 40
const error = 50

/** A connector that says what its connections do. */
class Describing extends FakeConnector {
  doing: Activity | undefined
  kind: FailureKind | undefined

  kindOf (): FailureKind | undefined {
    return this.kind
  }

  describe (): Activity | undefined {
    return this.doing
  }
}

/** A pool on a virtual clock, with the log that a production app writes. */
function staged (
  t: Test, options: EngineOptions<FakeConnection> = {}, log: Exclude<PluginOptions['log'], false | undefined> = {}
) {
  const lines: Line[] = []
  const stream = { write: (line: string) => { lines.push(JSON.parse(line) as Line) } }
  const clock = new VirtualClock()
  const connector = new Describing()
  const pool = new Pool<FakeConnection, Describing>(connector, options, clock)
  const manager = new PoolManager(undefined, () => false)
  logEvents({ log: Fastify({ logger: { level: 'info', stream } }).log }, manager, log, clock)
  manager.add('db', pool)
  t.teardown(async () => {
    const closed = pool.close({ timeout: 1 })
    await clock.advance(10_000)
    await closed
  })
  const named = (event: string) => lines.filter((line) => line.event === event)
  return { lines, named, clock, connector, pool }
}

const quiet = (promise: Promise<unknown>) => { promise.catch(() => {}) }

t.test('all connections are used: one story, with the culprit, and its end', async (t) => {
  const { pool, clock, lines, named, connector } = staged(t, { max: 2, acquireTimeout: 30_000, overload: false })
  connector.doing = { doing: 'idle in transaction', id: 4711 }
  const held = [await pool.acquire({ holder: { route: 'GET /reports/sales', id: 'req-5j' } }), await pool.acquire({ holder: { route: 'GET /reports/sales', id: 'req-6' } })]
  await clock.advance(500)
  const waiting: Array<Promise<Lease<FakeConnection>>> = []
  for (let i = 0; i < 57; i++) waiting.push(pool.acquire({ timeout: 30_000 }))
  await clock.advance(999)
  t.same(lines, [], 'what does not last is no news')
  await clock.advance(1)
  t.match(lines, [{
    level: warn,
    event: 'pool.exhausted',
    pool: 'db',
    for: 1000,
    max: 2,
    pending: 57,
    held: [{ route: 'GET /reports/sales', connections: 2, longest: 1500, id: 'req-5j', doing: 'idle in transaction', serverId: 4711 }],
    cause: 'GET /reports/sales holds 2 of 2 (idle in transaction)',
    remedy: /transaction open/,
    msg: 'all 2 connections have been used for 1.0 s, 57 wait, 0 are served a second. Held: 2 of 2 by GET /reports/sales, the longest for 1.5 s (req-5j)',
  }])
  await clock.advance(9000)
  t.same(named('pool.exhausted').map((line) => line.for), [1000, 10_000])
  for (const lease of held) lease.release()
  for (const one of waiting) (await one).release()
  await clock.advance(2000)
  t.match(lines.at(-1), {
    level: info, event: 'pool.exhausted.end', max: 2, most: 57, timeouts: 0, refused: 0, msg: /^it is over: all 2 connections were used for 10\.\d s, 57 waited at most/,
  })
  t.equal(lines.length, 3)
})

t.test('a leak that nobody looks for: after a minute there is a line a minute', async (t) => {
  const { pool, clock, named } = staged(t, { max: 1, acquireTimeout: 1000, overload: false })
  await pool.acquire({ holder: 'a job' })
  for (let second = 0; second < 200; second++) {
    quiet(pool.acquire())
    await clock.advance(1000)
  }
  t.same(named('pool.exhausted').map((line) => Math.round(Number(line.for) / 1000)), [1, 10, 60, 120, 180])
  t.match(named('pool.exhausted').at(-1), { timeouts: Number, held: [{ route: 'a job', connections: 1 }] })
})

t.test('a healthy pool at 60 % load writes nothing', async (t) => {
  const { pool, clock, lines } = staged(t, { max: 5 })
  let [waited, served] = [0, 0]
  pool.on('overflow', () => { waited++ })
  // 60 requests a second, each of which holds a connection for 50 ms on average: 3 of 5 are used.
  for (let i = 0; i < 3000; i++) {
    pool.acquire().then((lease) => clock.setTimer(() => {
      served++
      lease.release()
    }, -50 * Math.log(1 - clock.random())), (error: unknown) => { t.fail(String(error)) })
    await clock.advance(-1000 / 60 * Math.log(1 - clock.random()))
  }
  await clock.advance(1000)
  t.equal(served, 3000)
  t.ok(waited > 50, `in ${waited} places somebody waited`)
  t.same(lines, [])
})

t.test('500 refused requests a second for a minute: the lines of the episode', async (t) => {
  const circuit = { failures: 5, rate: 0.5, sample: 20, after: 1000, openFor: 500 }
  const { pool, clock, lines, named, connector } = staged(t, { max: 5, maxPending: 10, circuit })
  connector.outcomes.create = 'error'
  let failed = 0
  for (let i = 0; i < 30_000; i++) {
    pool.acquire().catch(() => { failed++ })
    if (i % 50 === 49) await clock.advance(100)
  }
  t.ok(failed > 29_000)
  t.same(named('pool.down').map((line) => Math.round(Number(line.for) / 1000)), [1, 10, 60])
  t.equal(lines.length, 3)
  t.match(lines[0], {
    level: error, event: 'pool.down', pool: 'db', cause: 'create failed', remedy: 'Is its server up, and are its address and login right?', attempts: Number, refused: Number,
  })
  t.ok(JSON.stringify(lines).length < 3000)
  connector.outcomes.create = 'ok'
  quiet(pool.acquire().then((lease) => { lease.release() }))
  await clock.advance(2000)
  t.match(lines.at(-1), { level: info, event: 'pool.up', msg: /^pool 'db' is up again after \d+\.\d s: \d+ attempts failed, \d+ requests were refused$/ })
  t.equal(lines.length, 4)
})

t.test('a server that comes and goes: the third outage within a minute flaps, and 10 s have at most 12 lines', async (t) => {
  const { pool, clock, lines, named, connector } = staged(t, { max: 3, min: 1, circuit: false })
  const times: number[] = []
  const { push } = lines
  lines.push = (...more) => {
    times.push(clock.now())
    return push.apply(lines, more)
  }
  for (let i = 0; i < 40; i++) {
    connector.outcomes.create = 'error'
    for (const connection of connector.connections.filter(({ state }) => state === 'open')) connection.die(new Error('cut'))
    quiet(pool.acquire({ timeout: 300 }).then((lease) => { lease.release() }))
    await clock.advance(i % 2 === 0 ? 1500 : 400)
    connector.outcomes.create = 'ok'
    quiet(pool.acquire().then((lease) => { lease.release() }))
    await clock.advance(1100)
  }
  t.match(named('pool.up').find(({ flaps }) => flaps === true), { level: warn, outages: 3, msg: /; 3rd outage within a minute: it flaps$/, remedy: String })
  const most = Math.max(...times.map((from) => times.filter((at) => at >= from && at < from + 10_000).length))
  t.ok(most <= 12, `at most ${most} lines in 10 s`)
  t.ok(lines.some(({ omitted }) => Number(omitted) > 0), 'and how many were left out is told')
})

t.test('deaths at the same time are one line', async (t) => {
  const { pool, clock, lines, connector } = staged(t, { max: 3 })
  const leases = await Promise.all([pool.acquire(), pool.acquire(), pool.acquire()])
  for (const lease of leases) lease.release()
  const cause = Object.assign(new Error('terminating connection due to administrator command'), { code: '57P01' })
  for (const connection of connector.connections) connection.die(cause)
  await clock.advance(199)
  t.same(lines, [])
  await clock.advance(1)
  t.match(lines, [{
    level: warn,
    event: 'pool.died',
    died: 3,
    left: 0,
    code: '57P01',
    cause: cause.message,
    remedy: String,
    msg: "3 connections of pool 'db' died: terminating connection due to administrator command; 0 are left",
  }])
  await clock.advance(1000)
  t.equal(lines.length, 1)
})

t.test('a connection that died while it was lent is told once, and not again at its return', async (t) => {
  const { pool, clock, named, connector } = staged(t, {})
  const lease = await pool.acquire()
  connector.connections[0]!.die(new Error('cut'))
  await clock.advance(1000)
  lease.release()
  await clock.advance(1000)
  t.match(named('pool.died'), [{ died: 1 }])
  t.equal(named('pool.died').length, 1)
})

t.test('a leak, its end, and a lease that nobody can release', async (t) => {
  const { pool, clock, lines } = staged(t, { leakAfter: 1000 })
  const lease = await pool.acquire({ holder: { route: 'GET /leaky', id: 'req-1' } })
  await clock.advance(2000)
  t.match(lines, [{
    level: warn,
    event: 'pool.leak',
    connection: 1,
    route: 'GET /leaky',
    id: 'req-1',
    since: String,
    cause: String,
    remedy: String,
    held: [{ route: 'GET /leaky' }],
    msg: /^GET \/leaky \(req-1\) has held connection 1 for 1\.\d s, since .*: is it ever released\?$/,
  }])
  lease.release()
  t.match(lines.at(-1), { level: info, event: 'pool.leak.end', msg: /^GET \/leaky \(req-1\) gave connection 1 back/ })
  t.equal(lines.length, 2)
})

t.test('a lease that is out for too long', async (t) => {
  const { pool, clock, lines } = staged(t, {})
  await pool.acquire({ holder: { route: 'GET /slow', id: 'req-1' }, holdTimeout: 2000 })
  await clock.advance(3000)
  t.match(lines, [
    { level: warn, event: 'pool.hold', route: 'GET /slow', holdTimeout: 2000, remedy: String },
    { level: warn, event: 'pool.overdue', route: 'GET /slow', id: 'req-1', holdTimeout: 2000, since: String },
  ])
})

t.test('a deadlock is an error at once, and not once per request', async (t) => {
  const { pool, clock, lines } = staged(t, { max: 1 })
  const holder = { route: 'GET /twice', id: 'req-1' }
  await pool.acquire({ holder })
  for (let i = 0; i < 50; i++) {
    await t.rejects(pool.acquire({ holder }), { code: 'FST_POOL_DEADLOCK' })
    await clock.advance(100)
  }
  t.match(lines, [{
    level: error,
    event: 'pool.deadlock',
    refused: 1,
    code: 'FST_POOL_DEADLOCK',
    held: [{ route: 'GET /twice', connections: 1, id: 'req-1' }],
    remedy: /request\.lease/,
  }])
  t.equal(lines.length, 1)
})

t.test('a server that allows fewer connections than max', async (t) => {
  const { pool, clock, named, lines, connector } = staged(t, { max: 3, acquireTimeout: 20_000, overload: false })
  connector.kind = 'full'
  const lease = await pool.acquire()
  connector.outcomes.create = 'error'
  const second = pool.acquire()
  await clock.advance(1500)
  t.match(named('pool.limit'), [{
    level: warn,
    allowed: 1,
    max: 3,
    kind: 'full',
    cause: 'create failed',
    remedy: /lower max/,
    msg: "the server gives pool 'db' no more than 1 connection, and max is 3: create failed",
  }])
  connector.outcomes.create = 'ok'
  lease.release()
  ;(await second).release()
  const both = [await pool.acquire()]
  pool.evict()
  both.push(await pool.acquire())
  t.match(lines.at(-1), { level: info, event: 'pool.limit.end' })
  for (const one of both) one.release()
})

t.test('a pool that closes says each second whom it waits for', async (t) => {
  const { pool, clock, named } = staged(t, {})
  const lease = await pool.acquire({ holder: { route: 'GET /hangs', id: 'req-7' } })
  const closed = pool.close({ timeout: 8000 })
  await clock.advance(4500)
  t.match(named('pool.closing').map(({ level, msg }) => ({ level, msg })), [
    { level: warn, msg: "pool 'db' has been closing for 2.0 s and waits for 1 connection: GET /hangs (req-7), for 2.0 s" },
    { level: warn, msg: /for 3\.0 s and/ },
    { level: warn, msg: /for 4\.0 s and/ },
  ])
  t.match(named('pool.closing')[0], { for: 2000, used: 1, held: [{ route: 'GET /hangs', id: 'req-7' }] })
  lease.release()
  await clock.advance(1000)
  await closed
  t.equal(named('pool.closing').length, 3)
  t.same(clock.timers, { set: 0, ref: 0 }, 'no timer is left')
})

t.test('what fails again and again is bounded, and counted', async (t) => {
  const { pool, clock, named, connector } = staged(t, {})
  connector.outcomes.reset = 'error'
  for (let i = 0; i < 100; i++) {
    (await pool.acquire()).release()
    await clock.advance(10)
  }
  await clock.advance(20_000)
  t.equal(named('pool.error').length, 4)
  t.match(named('pool.error')[0], { level: warn, phase: 'reset', msg: /^resetting a connection failed/ })
  t.equal(named('pool.error').reduce((sum, { connections }) => sum + Number(connections), 0), 100)
})

t.test('levels can be set for each line, and false turns one off', async (t) => {
  const { pool, clock, lines } = staged(t, { leakAfter: 1000 }, { 'pool.leak': 'fatal', 'pool.leak.end': false })
  const lease = await pool.acquire()
  await clock.advance(2000)
  lease.release()
  t.match(lines, [{ level: 60, event: 'pool.leak' }])
  t.equal(lines.length, 1)
})

t.test('what to do is said by why connects fail', async (t) => {
  const { pool, clock, connector } = staged(t, { acquireTimeout: 100 })
  connector.outcomes.create = 'error'
  for (const [kind, remedy] of [['full', /no connection left/], ['login', /refuses the login/], [undefined, /address and login right/]] as const) {
    connector.kind = kind
    const failed = t.rejects(pool.acquire(), { code: 'FST_POOL_CONNECT_FAILED', message: remedy })
    await clock.advance(150)
    await failed
  }
})

t.test('leases that are overdue at once: one line, and one that names all the others', async (t) => {
  const { pool, clock, named } = staged(t, { max: 60 })
  for (let i = 0; i < 5; i++) await pool.acquire({ holder: { route: 'GET /slow', id: `req-${i}` }, holdTimeout: 2000 })
  await clock.advance(4000)
  for (const event of ['pool.hold', 'pool.overdue']) {
    t.match(named(event), [
      { level: warn, route: 'GET /slow', id: 'req-0', holdTimeout: 2000 },
      {
        level: warn,
        leases: 4,
        ids: ['req-1', 'req-2', 'req-3', 'req-4'],
        held: [{ route: 'GET /slow', connections: 4 }],
        since: String,
        holdTimeout: 2000,
        cause: String,
        remedy: String,
        msg: /^4 more leases .* \(holdTimeout 2\.0 s\)\. 4 of GET \/slow, .* \(req-1, req-2, req-3, req-4\)$/,
      },
    ])
    t.equal(named(event).length, 2)
  }
})

t.test('leases that leak one after the other: those for which there is no room have a line together', async (t) => {
  const { pool, clock, named } = staged(t, { max: 60, leakAfter: 1000 })
  for (let i = 0; i < 20; i++) {
    await pool.acquire({ holder: { route: 'GET /leaky', id: `req-${i}` } })
    await clock.advance(300)
  }
  t.ok(named('pool.leak').length <= 3)
  await clock.advance(20_000)
  const told = named('pool.leak').flatMap(({ id, ids }) => ids ?? [id])
  t.same(told, Array.from({ length: 20 }, (_, i) => `req-${i}`), 'each is named once')
  t.ok(named('pool.leak').length <= 5)
})

t.test('a reset that fails since its server is gone is a death', async (t) => {
  const { pool, clock, lines, connector } = staged(t, { max: 2, acquireTimeout: 1000 })
  const leases = [await pool.acquire(), await pool.acquire()]
  connector.outcomes.reset = 'error'
  connector.outcomes.create = 'error'
  quiet(pool.acquire())
  for (const lease of leases) lease.release()
  await clock.advance(300)
  t.match(lines, [{ event: 'pool.died', died: 2, left: 0, cause: String, remedy: String }])
  t.equal(lines.length, 1)
})

t.test('all that the server gives are used: no route is blamed', async (t) => {
  const { pool, clock, named, connector } = staged(t, { max: 3, acquireTimeout: 20_000, overload: false })
  connector.kind = 'full'
  await pool.acquire({ holder: { route: 'GET /', id: 'req-1' } })
  connector.outcomes.create = 'error'
  for (let i = 0; i < 5; i++) quiet(pool.acquire())
  await clock.advance(1500)
  t.match(named('pool.exhausted'), [{
    max: 3,
    kind: 'full',
    cause: 'no more connections can be made: create failed',
    remedy: /lower max/,
    held: [{ route: 'GET /' }],
    msg: /^all 1 connections that there are \(max 3\) have been used for 1\.0 s/,
  }])
})

/** A pool per tenant, each on the virtual clock. */
function tenantsStaged (t: Test) {
  const lines: Line[] = []
  const stream = { write: (line: string) => { lines.push(JSON.parse(line) as Line) } }
  const clock = new VirtualClock()
  const connectors = new Map<string, Describing>()
  const connectorOf = (key: string) => {
    const connector = connectors.get(key) ?? new Describing()
    connectors.set(key, connector)
    return connector
  }
  const options = checkPoolOptions({
    key: () => undefined,
    options: (key: string) => ({ connector: connectorOf(key) }),
    max: 1,
    acquireTimeout: 30_000,
    overload: false,
    circuit: false,
    showKeys: true,
  }, '')
  const pool = new TenantPool(options as ConstructorParameters<typeof TenantPool>[0],
    async (own) => new Pool(own.connector!, own, clock))
  const manager = new PoolManager(undefined, () => false)
  logEvents({ log: Fastify({ logger: { level: 'info', stream } }).log }, manager, {}, clock)
  manager.add('db', pool)
  t.teardown(async () => {
    const closed = pool.close({ timeout: 1 })
    await clock.advance(10_000)
    await closed
  })
  const named = (event: string) => lines.filter((line) => line.event === event)
  return { lines, named, clock, connectorOf, pool }
}

t.test('a pool per tenant: one whose server is down is told of by name, though the others work', async (t) => {
  const { lines, named, clock, connectorOf, pool } = tenantsStaged(t)
  connectorOf('dead').outcomes.create = 'error'
  quiet(pool.of('dead').acquire())
  for (let at = 0; at < 15; at++) {
    const lease = await pool.of(`good${at}`).acquire()
    lease.release()
    await clock.advance(100)
  }
  t.match(lines, [{ level: error, event: 'pool.down', pool: 'db', tenant: 'dead', cause: 'create failed', msg: /^tenant dead: pool 'db' is down/ }])
  connectorOf('dead').outcomes.create = 'ok'
  await clock.advance(5000)
  t.match(named('pool.up'), [{ tenant: 'dead', for: Number }])
  t.equal(lines.length, 2)
})

t.test('a pool per tenant: one whose connections are all used is told of, with who has them', async (t) => {
  const { lines, clock, pool } = tenantsStaged(t)
  const held = await pool.of('busy').acquire({ holder: { route: 'GET /slow', id: 'req-1' } })
  const waiting = pool.of('busy').acquire()
  const idle = await pool.of('idle').acquire({ holder: { route: 'GET /other', id: 'req-2' } })
  idle.release()
  await clock.advance(1100)
  t.match(lines, [{ level: warn, event: 'pool.exhausted', pool: 'db', tenant: 'busy', max: 1, pending: 1, held: [{ route: 'GET /slow' }] }])
  held.release()
  const lease = await waiting
  lease.release()
  await clock.advance(2000)
  t.match(lines[1], { event: 'pool.exhausted.end', tenant: 'busy' })
  t.equal(lines.length, 2)
})

t.test('a pool per tenant: where the server of all is down, the lines of all together are bounded', async (t) => {
  const { lines, named, clock, connectorOf, pool } = tenantsStaged(t)
  for (let at = 0; at < 50; at++) {
    connectorOf(`t${at}`).outcomes.create = 'error'
    quiet(pool.of(`t${at}`).acquire())
  }
  await clock.advance(9000)
  t.equal(named('pool.down').length, 3)
  t.ok(lines.length <= 12, `${lines.length} lines`)
  await clock.advance(3000)
  t.ok(Number(named('pool.down').at(3)?.omitted) > 40, 'how many were left out is told')
})
