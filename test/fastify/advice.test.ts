// What `app.pools.advice()` says, from which numbers, and when the log has it.
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import { idleInHandler, serverOf, tooManyForServer, tooSmall } from '../../lib/fastify/advice/advise.js'
import { Samples, type IdleTime } from '../../lib/fastify/advice/samples.js'
import { logEvents } from '../../lib/fastify/log/log.js'
import { PoolManager } from '../../lib/fastify/pools.js'
import { Pool } from '../../lib/pool/pool.js'
import type { Activity } from '../../types/connector.js'
import type { PluginOptions } from '../../types/plugin.js'
import type { Holder } from '../../types/pool.js'
import type { PoolStats, WindowStats } from '../../types/stats.js'
import { VirtualClock } from '../support/clock.js'
import { FakeConnector, type FakeConnection } from '../support/fake-connector.js'

const refusals = { full: 0, overload: 0, circuit: 0, connect: 0, deadlock: 0, closed: 0 }

/** Books of a minute: 99 requests a second held a connection for 50 ms, and 51 a second were refused. */
function books (minute: Partial<WindowStats> = {}, more: Partial<PoolStats> = {}): PoolStats {
  const base = new Pool(new FakeConnector(), { max: 5, name: 'db' }, new VirtualClock()).stats()
  const lastMinute: WindowStats = {
    ...base.lastMinute,
    span: 60_000,
    acquired: 5940,
    busy: 5940 * 50,
    saturated: 54_000,
    refused: 3060,
    refusals: { ...refusals, overload: 3060 },
    ...minute,
  }
  return { ...base, lastMinute, ...more }
}

t.test('max is too small: the load that came, not the load that was served', async (t) => {
  const advice = tooSmall(books())
  t.match(advice, {
    pool: 'db',
    kind: 'max',
    message: 'max 5 is too small: 150 requests a second hold one for 50 ms, which needs 14',
    numbers: { max: 5, needed: 14, perSecond: 150, servedPerSecond: 99, heldMs: 50, saturated: 0.9 },
  })
  t.ok(Object.isFrozen(advice) && Object.isFrozen(advice!.numbers))
  const lost = { refusals, refused: 0 }
  t.match(tooSmall(books({ ...lost, timeouts: 3060 })), { numbers: { needed: 14 } }, 'deadlines that passed')
  t.match(tooSmall(books({ ...lost, aborted: 3060 })), { numbers: { needed: 14 } }, 'clients that gave up')
  t.match(tooSmall(books({ refusals: { ...refusals, circuit: 3060 } })), { numbers: { needed: 11 } },
    'an outage is no load')
})

t.test('max is too small: nothing without evidence', async (t) => {
  const none = (what: string, minute: Partial<WindowStats>, more: Partial<PoolStats> = {}) => {
    t.equal(tooSmall(books(minute, more)), undefined, what)
  }
  none('large enough', {}, { max: 14 })
  none('nobody waits', { saturated: 500 })
  none('too few seconds', { span: 9000, saturated: 9000 })
  none('too few acquires', { acquired: 99, busy: 60_000 })
  none('one handle writes', {}, { system: 'sqlite' })
  none('a sum over tenants', {}, { tenants: { open: 2, largest: [] } })
})

const idleTime: IdleTime = { looks: 10, lent: 40, inHandler: 30, inTransaction: 0, route: 'GET /x' }

t.test('connections are idle in the handler', async (t) => {
  const stats = books({}, { max: 4 })
  t.match(idleInHandler(stats, idleTime), {
    pool: 'db',
    kind: 'idle',
    route: 'GET /x',
    message: "3 of 4 connections' time is spent idle in the handler: `release: 'onSend'` or `acquire: 'manual'` on GET /x",
    numbers: { max: 4, idle: 0.75, inTransaction: 0, looks: 10, saturated: 0.9 },
  })
  t.match(idleInHandler(stats, { ...idleTime, inTransaction: 20 }), {
    message: "3 of 4 connections' time is spent idle in the handler: end the transaction before other work on GET /x",
    numbers: { inTransaction: 0.5 },
  })
  t.match(idleInHandler({ ...stats, max: 1 }, { ...idleTime, route: undefined }),
    { message: "1 of 1 connection's time is spent idle in the handler: release it before other work" })
  t.equal(idleInHandler(stats, { ...idleTime, looks: 9 }), undefined, 'too few looks')
  t.equal(idleInHandler(stats, { ...idleTime, lent: 9, inHandler: 9 }), undefined, 'too few leases')
  t.equal(idleInHandler(stats, { ...idleTime, inHandler: 19 }), undefined, 'they are used')
  t.equal(idleInHandler(books({ saturated: 0 }), idleTime), undefined, 'nobody waits: it harms nobody')
})

t.test('looks at who holds connections', async (t) => {
  const holder = (doing: Activity['doing'] | undefined, more: Partial<Holder> = {}): Holder => ({
    pool: 'db', id: 1, holder: { route: 'GET /x' }, heldFor: 100, ...(doing !== undefined && { doing }), ...more,
  })
  const samples = new Samples()
  samples.add(0, () => [
    holder('query'),
    holder('idle'),
    holder('idle', { sinceQuery: 1 }),
    holder('idle', { heldFor: 1, sinceQuery: 500 }),
    holder('idle in transaction', { holder: 'a job' }),
    holder('idle', { holder: { route: 'GET /y' } }),
    holder('idle'),
    holder(undefined),
  ])
  t.same(samples.idleTime(0), { looks: 1, lent: 7, inHandler: 4, inTransaction: 1, route: 'GET /x' },
    'a short pause is none, what is not told does not count')
  samples.add(999, () => { throw new Error('asked twice within a second') })
  for (let n = 1; n <= 100; n++) samples.add(n * 1000, () => [holder('query')])
  t.same(samples.idleTime(100_000), { looks: 60, lent: 60, inHandler: 0, inTransaction: 0, route: undefined })
  t.match(samples.idleTime(100_000 + 600_000), { looks: 1 }, 'old ones do not count')
})

t.test('the instances do not fit the server', async (t) => {
  const stats = books({}, { max: 20, idle: 1 })
  const server = (capacity: object) => serverOf(stats, { allowed: 70, inUse: 62, ...capacity })
  t.match(tooManyForServer(stats, server({ ours: 61 })), {
    kind: 'server',
    message: "4 instances of 20 do not fit the server's 70: max 17 would",
    numbers: { instances: 4, max: 20, allowed: 70, inUse: 62, ours: 61, needed: 17 },
  })
  t.match(tooManyForServer(stats, server({ ours: 4, hosts: 4 })), { numbers: { instances: 4 } }, 'by their hosts')
  t.equal(tooManyForServer(stats, server({ ours: 41 })), undefined, 'three fit')
  t.match(tooManyForServer({ ...stats, max: 71 }, server({})), { message: "max 71 does not fit the server's 70: max 70 would" })
  t.match(tooSmall(books(), { allowed: 30, inUse: 20, instances: 3 }),
    { message: /which needs 14 \(the server allows 10 to each instance\)$/, numbers: { allowed: 30 } })
})

class Describing extends FakeConnector {
  doing: Activity['doing'] = 'query'
  describe (): Activity {
    return { doing: this.doing }
  }
}

function staged (t: Test, log: Exclude<PluginOptions['log'], false | undefined> = {}) {
  const lines: Array<Record<string, unknown>> = []
  const stream = { write: (line: string) => { lines.push(JSON.parse(line) as Record<string, unknown>) } }
  const clock = new VirtualClock()
  const connector = new Describing()
  const options = { max: 5, acquireTimeout: 1000, overload: false as const, maxPending: 1000 }
  const pool = new Pool<FakeConnection>(connector, options, clock)
  const manager = new PoolManager(undefined, () => false)
  logEvents({ log: Fastify({ logger: { level: 'info', stream } }).log }, manager, log, clock)
  manager.add('db', pool)
  t.teardown(async () => {
    const closed = pool.close({ timeout: 1 })
    await clock.advance(10_000)
    await closed
  })
  /** 150 requests a second, each of which holds a connection for 50 ms. */
  const load = async (ms: number) => {
    const end = clock.now() + ms
    while (clock.now() < end) {
      for (let n = 0; n < 3; n++) {
        pool.acquire({ holder: { route: 'GET /x' } }).then((lease) => {
          clock.setTimer(() => { lease.release() }, 50)
        }, () => {})
      }
      await clock.advance(20)
    }
  }
  const advised = () => lines.filter(({ event }) => event === 'pool.advice')
  return { pool, clock, connector, manager, lines, advised, load }
}

t.test('a pool that is too small says so, from its own books', async (t) => {
  const { manager, load } = staged(t)
  t.same(manager.advice(), [], 'nothing was seen')
  await load(70_000)
  const [advice, ...rest] = manager.advice()
  t.match(advice, { pool: 'db', kind: 'max', message: /^max 5 is too small: 150 requests a second hold one for 50 ms, which needs 14$/ })
  t.same(rest, [])
})

t.test('in the log: not in the first ten minutes, then hourly, while somebody waits', async (t) => {
  const { pool, clock, connector, load, advised } = staged(t)
  await pool.open()
  await clock.advance(10_000)
  const before = clock.timers.set
  await load(20_000)
  await clock.advance(30_000)
  t.ok(clock.timers.set <= before + 1, 'behind the shortage one timer is left')
  await clock.advance(470_000)
  t.same(advised(), [])
  await load(75_000)
  t.match(advised(), [
    { level: 30, pool: 'db', kind: 'max', max: 5, needed: 14, msg: /^max 5 is too small: 150 requests a second hold/ },
  ])
  await load(140_000)
  t.equal(advised().length, 1, 'once in an hour')
  connector.doing = 'idle'
  await clock.advance(3_330_000)
  await load(150_000)
  t.match(advised().slice(1).map(({ kind, route }) => ({ kind, route })),
    [{ kind: 'max' }, { kind: 'idle', route: 'GET /x' }], 'and the looks of the shortage are enough by then')
})

t.test('in the log: its level, or not at all', async (t) => {
  const { pool, clock, load, advised } = staged(t, { 'pool.advice': false })
  await pool.open()
  await clock.advance(590_000)
  await load(20_000)
  await clock.advance(60_000)
  t.same(advised(), [])
})
