import t from 'tap'
import { TargetPool } from '../../lib/balance/target-pool.js'
import { VirtualClock, settle } from '../support/clock.js'
import { FakeConnector, failure, fakePool, warm, watch, type FakeConnection } from '../support/fake-connector.js'

// What stats tell is true: they leave out nobody who failed, still waits, or still holds a connection.

t.test('wait counts those who failed and those who still wait, held those that are out', async (t) => {
  const { pool, clock } = fakePool({ max: 2, acquireTimeout: 1000, overload: false })
  for (let i = 0; i < 100; i++) (await pool.acquire()).release()
  const leases = [await pool.acquire(), await pool.acquire()]
  const all = Array.from({ length: 50 }, () => failure(pool.acquire()))
  await clock.advance(400)
  t.match(pool.stats(), { wait: { count: 152, max: 400 }, held: { count: 102, max: 400 }, pending: 50 })
  await clock.advance(600)
  await Promise.all(all)
  const { wait, held, lastMinute } = pool.stats()
  t.match(wait, { count: 152, sum: 50_000, p50: 0, max: 1000 })
  t.ok(wait.p99 > 900)
  t.match(held, { count: 102, sum: 2000, max: 1000 })
  t.match(lastMinute, { span: 1000, timeouts: 50, wait: { count: 152, sum: 50_000, max: 1000 }, held: { max: 1000 } })
  for (const lease of leases) lease.release()
  t.match(pool.stats().held, { count: 102, sum: 2000, max: 1000 })
})

t.test('callers that leave by their signal, and those that are sent away, have waited', async (t) => {
  const { pool, clock } = fakePool({ max: 1 })
  const lease = await pool.acquire()
  const controller = new AbortController()
  const left = failure(pool.acquire({ signal: controller.signal }))
  await clock.advance(300)
  controller.abort()
  t.equal((await left).code, 'FST_POOL_ABORTED')
  t.match(pool.stats().wait, { count: 2, sum: 300, max: 300 })
  const turnedAway = failure(pool.acquire())
  const closing = pool.close({ timeout: 1000 })
  await clock.advance(1000)
  t.equal((await turnedAway).code, 'FST_POOL_CLOSED')
  t.match(pool.stats(), { wait: { count: 3, sum: 1050 }, refusals: { closed: 1 } })
  lease.release()
  await clock.advance(1000)
  await closing
})

t.test('buckets are cumulative, and neither they nor the count ever fall', async (t) => {
  const { pool, clock } = fakePool({ max: 1 })
  const lease = await pool.acquire()
  const at = (le: number) => pool.stats().held.buckets.find((bucket) => bucket.le === le)?.count
  await clock.advance(40)
  // It is out, so nobody knows how long it will have been: it is in no bucket.
  t.same([at(25), at(50), at(60_000), pool.stats().held.count], [0, 0, 0, 1])
  lease.release()
  t.same([at(25), at(50), at(60_000), pool.stats().held.count], [0, 1, 1, 1])
  const { buckets } = pool.stats().wait
  t.ok(buckets.every(({ count }) => count === 1), 'at once is 0')
  t.ok(Object.isFrozen(buckets) && Object.isFrozen(buckets[0]))
})

t.test('the last minute has what happened within it', async (t) => {
  const { pool, clock } = fakePool({ max: 3, idleTimeout: 0 })
  await warm(pool, 2)
  await clock.advance(30_000)
  await warm(pool, 1)
  t.match(pool.stats().lastMinute, { span: 30_000, acquired: 3, created: 2 })
  await clock.advance(35_000)
  await warm(pool, 1)
  const { lastMinute } = pool.stats()
  t.match(lastMinute, { acquired: 2, created: 0, wait: { count: 2 }, held: { count: 2 }, create: { count: 0, max: 0 } })
  t.ok(lastMinute.span >= 60_000 && lastMinute.span <= 65_000, `${lastMinute.span}`)
  await clock.advance(70_000)
  t.match(pool.stats(), {
    acquired: 4,
    lastMinute: { acquired: 0, released: 0, busy: 0, wait: { count: 0, p99: 0 }, held: { count: 0 } },
  })
})

t.test('the last minute has its own longest', async (t) => {
  const { pool, clock } = fakePool({ max: 1, idleTimeout: 0 })
  const slow = await pool.acquire()
  await clock.advance(5000)
  slow.release()
  await clock.advance(61_000)
  const quick = await pool.acquire()
  await clock.advance(200)
  quick.release()
  await clock.advance(6000)
  t.match(pool.stats(), { held: { max: 5000 }, lastMinute: { held: { count: 1, max: 200 } } })
})

t.test('a lease that is out while the pool sleeps is busy for as long as the last minute is', async (t) => {
  const { pool, clock } = fakePool({ max: 2 })
  const lease = await pool.acquire({ holder: { route: 'GET /a' } })
  await clock.advance(600_000)
  t.match(pool.stats(), { busy: 600_000, routes: { 'GET /a': 600_000 }, lastMinute: { span: 60_000, busy: 60_000 } })
  lease.release()
  t.match(pool.stats(), { busy: 600_000, routes: { 'GET /a': 600_000 }, lastMinute: { busy: 60_000 } })
})

t.test('refusals are told by reason', async (t) => {
  const { pool, clock } = fakePool({ max: 1, maxPending: 1 })
  const holder = { route: 'GET /' }
  const lease = await pool.acquire({ holder })
  t.equal((await failure(pool.acquire({ holder }))).code, 'FST_POOL_DEADLOCK')
  const waiting = pool.acquire()
  t.equal((await failure(pool.acquire())).code, 'FST_POOL_QUEUE_FULL')
  t.match(pool.stats(), {
    refused: 2,
    refusals: { full: 1, overload: 0, circuit: 0, connect: 0, deadlock: 1, closed: 0 },
    // Those refused at once have not waited.
    wait: { count: 2 },
  })
  lease.release()
  ;(await waiting).release()
  const closed = pool.close()
  await clock.advance(1)
  await closed
  await failure(pool.acquire())
  t.match(pool.stats(), { refused: 3, refusals: { closed: 1 }, lastMinute: { refusals: { closed: 1, full: 1 } } })
})

t.test('saturated is the time in which all were used and somebody waited', async (t) => {
  const { pool, clock } = fakePool({ max: 2 })
  const [one, other] = [await pool.acquire(), await pool.acquire()]
  await clock.advance(1000)
  t.equal(pool.stats().saturated, 0, 'nobody waits')
  const waiting = pool.acquire()
  await clock.advance(700)
  t.equal(pool.stats().saturated, 700, 'told while it goes on')
  one.release()
  const third = await waiting
  await clock.advance(500)
  t.match(pool.stats(), { saturated: 700, lastMinute: { saturated: 700 } })
  for (const lease of [other, third]) lease.release()
})

t.test('callers that wait for creates find no saturated pool', async (t) => {
  const { pool, connector, clock } = fakePool({ max: 2 })
  connector.outcomes.create = 'gate'
  const waiting = [watch(pool.acquire()), watch(pool.acquire()), watch(pool.acquire())]
  await clock.advance(800)
  t.match(pool.stats(), { saturated: 0, pending: 3, wait: { count: 3, max: 800 } })
  for (const call of [...connector.calls]) call.pass()
  await settle()
  t.same(waiting.map(({ done }) => done), [true, true, false])
  await clock.advance(300)
  const { saturated } = pool.stats()
  t.ok(saturated > 0 && saturated <= 300, `${saturated}`)
})

t.test('connection time is told by route, of at most 200', async (t) => {
  const { pool, clock } = fakePool({ max: 2 })
  const one = await pool.acquire({ holder: { route: 'GET /a', id: '1' } })
  const other = await pool.acquire({ holder: 'a job' })
  await clock.advance(300)
  one.release()
  await clock.advance(100)
  t.match(pool.stats(), { busy: 700, routes: { 'GET /a': 300, 'a job': 400 } })
  other.release()
  const unnamed = await pool.acquire()
  await clock.advance(50)
  unnamed.release()
  t.match(pool.stats(), { busy: 750, routes: { 'GET /a': 300, 'a job': 400 } })
  for (let i = 0; i < 300; i++) {
    const lease = await pool.acquire({ holder: { route: `GET /${i}` } })
    await clock.advance(1)
    lease.release()
  }
  const { routes } = pool.stats()
  t.equal(Object.keys(routes).length, 201)
  t.equal(routes['(others)'], 102)
})

t.test('of many short leases a sample stands for all', async (t) => {
  const { pool, clock } = fakePool({ max: 200 }, { listen: [] })
  await warm(pool, 200)
  await clock.advance(200)
  const long = pool.tryAcquire()!
  await clock.advance(100)
  const leases = Array.from({ length: 190 }, () => pool.tryAcquire({ holder: { route: 'GET /' } })!)
  await clock.advance(50)
  for (const lease of leases) lease.release()
  const { held, busy, routes } = pool.stats()
  t.equal(held.count, 200 + 190 + 1)
  t.match(held, { max: 150 })
  t.equal(held.buckets.find(({ le }) => le === 50)!.count, 390)
  t.ok(Math.abs(busy - (190 * 50 + 150)) < 0.001, `${busy}`)
  t.ok(Math.abs(routes['GET /']! - 190 * 50) < 0.001)
  long.release()
})

t.test('resets under way are told apart', async (t) => {
  const { pool, connector } = fakePool({ max: 2 })
  connector.outcomes.reset = 'gate'
  const lease = await pool.acquire()
  t.match(pool.stats(), { used: 1, resetting: 0 })
  lease.release()
  t.match(pool.stats(), { used: 1, resetting: 1 })
  connector.pass('reset')
  await settle()
  t.match(pool.stats(), { used: 0, resetting: 0, idle: 1 })
})

t.test('failed creates are told by what they failed with', async (t) => {
  const connector = new FakeConnector()
  const { pool, clock } = fakePool({ connectTimeout: 500, acquireTimeout: 2000 }, { connector })
  connector.create = () => Promise.reject(Object.assign(new Error('refused'), { code: 'ECONNREFUSED' }))
  await clock.advance(0)
  const refused = failure(pool.acquire({ timeout: 1 }))
  await clock.advance(10)
  await refused
  connector.create = () => new Promise<FakeConnection>(() => {})
  const late = failure(pool.acquire({ timeout: 1500 }))
  await clock.advance(2000)
  await late
  const { createErrors, createFailures } = pool.stats()
  t.match(createFailures, { ECONNREFUSED: 1 })
  t.equal(createFailures.ECONNREFUSED! + createFailures.timeout!, createErrors)
})

t.test('a pool over several targets adds them up, with those who wait for a primary', async (t) => {
  const clock = new VirtualClock()
  class Server extends FakeConnector {
    async inspect () { return { role: this.role } }
    constructor (readonly role: 'primary' | 'replica') { super() }
  }
  const [primary, replica] = [new Server('primary'), new Server('replica')]
  const pool = new TargetPool<FakeConnection, Server>([
    { connector: primary, role: 'primary' }, { connector: replica, role: 'replica' },
  ], { max: 4, acquireTimeout: 500 }, clock)
  const opened = pool.open()
  await clock.advance(10)
  await opened
  const write = await pool.acquire({ holder: { route: 'POST /' } })
  const read = await pool.acquire({ role: 'replica', holder: { route: 'GET /' } })
  await clock.advance(200)
  t.match(pool.stats(), { routes: { 'POST /': 200, 'GET /': 200 }, held: { max: 200 } })
  write.release()
  read.release()
  // Nobody is the primary any more.
  ;(primary as { role: string }).role = 'replica'
  await clock.advance(1500)
  const waiting = failure(pool.acquire())
  await clock.advance(300)
  t.match(pool.stats(), { pending: 1, wait: { max: 300 } })
  await clock.advance(300)
  t.equal((await waiting).code, 'FST_POOL_ACQUIRE_TIMEOUT')
  t.match(pool.stats(), { timeouts: 1, wait: { max: 500 }, lastMinute: { timeouts: 1 } })
  const closed = pool.close()
  await clock.advance(100)
  await closed
})
