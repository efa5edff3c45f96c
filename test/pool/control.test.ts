import t from 'tap'
import { TargetPool } from '../../lib/balance/target-pool.js'
import { Pool } from '../../lib/pool/pool.js'
import { settle, VirtualClock } from '../support/clock.js'
import { failure, FakeConnector, fakePool, warm, watch } from '../support/fake-connector.js'

t.test('a call with an option that it does not know is refused, and does nothing', async (t) => {
  const connector = new FakeConnector()
  const options = { idleTimeout: 0 }
  for (const pool of [new Pool(connector, options), new TargetPool([{ connector }], options)]) {
    const calls: Record<string, (given: never) => unknown> = {
      resize: (given) => pool.resize(given),
      evict: (given) => pool.evict(given),
      close: (given) => pool.close(given),
      acquire: (given) => pool.acquire(given),
      use: (given) => pool.use(() => t.fail(), given),
    }
    await pool.use(() => {})
    for (const [name, call] of Object.entries(calls)) {
      const refuses = async (given: object | null, message: RegExp) => {
        await t.rejects(async () => { await call(given as never) }, { code: 'FST_POOL_BAD_OPTIONS', message })
      }
      await refuses({ foo: 1 }, new RegExp(`^unknown option ${name}\\.foo`))
      await refuses(null, new RegExp(`^option ${name} is null: expected an object$`))
      await refuses(Object.create({ foo: 1 }), /unknown option/)
    }
    await t.rejects(pool.transaction(() => t.fail(), { foo: 1 } as never), { code: 'FST_POOL_BAD_OPTIONS' })
    t.doesNotThrow(() => pool.resize({ foo: undefined } as never), 'undefined is as if absent')
    t.match(pool.stats(), { idle: 1, acquired: 1, max: 10 })
    await pool.close({ timeout: 1000 })
  }
})

t.test('a pool needs a connector with system, create and destroy, and options that are right', (t) => {
  t.throws(() => new Pool({} as FakeConnector), { code: 'FST_POOL_BAD_OPTIONS' })
  t.throws(() => new Pool(new FakeConnector(), { max: 0 }), { code: 'FST_POOL_BAD_OPTIONS', message: /max/ })
  const connector = new FakeConnector()
  const pool = new Pool(connector)
  t.equal(pool.name, 'db')
  t.equal(pool.backend, connector)
  t.match(pool.stats(), { name: 'db', system: 'fake', min: 0, max: 10 })
  t.end()
})

// --- resize ----------------------------------------------------------------------------------------------------------

t.test('a resize up serves those who wait', async (t) => {
  const { pool } = fakePool({ max: 1 })
  await pool.acquire()
  const waiting = [watch(pool.acquire()), watch(pool.acquire())]
  pool.resize({ max: 2 })
  await settle()
  t.same(waiting.map(({ done }) => done), [true, false])
  t.match(pool.stats(), { max: 2, used: 2, pending: 1 })
})

t.test('a resize down closes idle connections, those that were unused longest first', async (t) => {
  const { pool, connector } = fakePool({ max: 5 })
  await warm(pool, 5)
  pool.resize({ max: 2 })
  await settle()
  t.same(connector.connections.map(({ reason }) => reason), ['idle', 'idle', 'idle', undefined, undefined])
  t.match(pool.stats(), { idle: 2, destroyed: { idle: 3 } })
})

t.test('a resize down closes lent connections when they are given back, and not one too many', async (t) => {
  const { pool, connector } = fakePool({ max: 5 })
  connector.outcomes.destroy = 'gate'
  const leases = await Promise.all([1, 2, 3, 4, 5].map(() => pool.acquire()))
  pool.resize({ max: 3 })
  t.match(pool.stats(), { used: 5 })
  for (const lease of leases) lease.release()
  await settle()
  t.match(pool.stats(), { idle: 3, closing: 2, destroyed: { idle: 2 } })
})

t.test('connections that close already are not closed a second time by a resize down', async (t) => {
  const { pool, connector } = fakePool({ max: 5 })
  connector.outcomes.destroy = 'gate'
  const leases = await Promise.all([1, 2, 3, 4, 5].map(() => pool.acquire()))
  for (const lease of leases.slice(0, 3)) lease.destroy()
  for (const lease of leases.slice(3)) lease.release()
  pool.resize({ max: 2 })
  await settle()
  t.match(pool.stats(), { idle: 2, closing: 3 })
})

t.test('after a shrink nothing is created until the total is below the new max', async (t) => {
  const { pool, connector } = fakePool({ max: 3 })
  connector.outcomes.destroy = 'gate'
  await warm(pool, 3)
  pool.resize({ max: 1 })
  const lease = await pool.acquire()
  const waiting = watch(pool.acquire())
  lease.destroy()
  await settle()
  t.equal(connector.calls.length, 3)
  connector.pass('destroy')
  connector.pass('destroy')
  await settle()
  t.equal(connector.creates, 3)
  connector.pass('destroy')
  await settle()
  t.equal(connector.creates, 4)
  t.equal(waiting.done, true)
})

t.test('a resize down tells creates that are not needed any more, and destroys what they deliver', async (t) => {
  const { pool, connector, seen } = fakePool({ max: 4 })
  connector.honoursSignal = false
  connector.outcomes.create = 'gate'
  const waiting = [1, 2, 3, 4].map(() => watch(pool.acquire()))
  const calls = [...connector.calls]
  pool.resize({ max: 2 })
  t.same(calls.map(({ signal }) => signal?.aborted), [false, false, true, true])
  t.match(calls[3]?.signal?.reason, { message: "pool 'db' no longer needs this connection" })
  for (const call of calls) call.pass()
  await settle()
  t.same(waiting.map(({ done }) => done), [true, true, false, false])
  t.match(pool.stats(), { used: 2, destroyed: { idle: 2 } })
  t.same(seen('disconnect').map(({ reason }) => reason), ['idle', 'idle'])
})

t.test('creates that were cancelled and honour it are no failures', async (t) => {
  const { pool, connector, seen } = fakePool({ max: 4 })
  connector.outcomes.create = 'gate'
  for (let i = 0; i < 4; i++) watch(pool.acquire())
  pool.resize({ max: 2 })
  await settle()
  t.match(pool.stats(), { creating: 2, createErrors: 0 })
  t.same(seen('error'), [])
})

t.test('a create that was cancelled and ignores it is late at its deadline, and no failure', async (t) => {
  const { pool, connector, clock } = fakePool({ max: 2 })
  connector.outcomes.create = 'hang'
  watch(pool.acquire({ timeout: 1 }))
  watch(pool.acquire({ timeout: 1 }))
  pool.resize({ max: 1 })
  await clock.advance(2999)
  t.match(pool.stats(), { creating: 2 })
  await clock.advance(1)
  t.match(pool.stats(), { creating: 0, late: 2, createErrors: 1 })
})

t.test('a create that was cancelled while onConnect runs ends with it', async (t) => {
  let answer = () => {}
  const { pool, connector } = fakePool({
    max: 2, onConnect: () => new Promise<void>((resolve) => { answer = resolve }),
  })
  watch(pool.acquire())
  watch(pool.acquire())
  await settle()
  pool.resize({ max: 1 })
  answer()
  await settle()
  t.equal(connector.connections[1]?.reason, 'idle')
})

t.test('a resize up of min makes connections, and a resize down lets them idle out', async (t) => {
  const { pool, clock } = fakePool({ idleTimeout: 1000, maxLifetime: 0 })
  await pool.open()
  pool.resize({ min: 4 })
  await settle()
  t.match(pool.stats(), { idle: 4, min: 4 })
  await clock.advance(10_000)
  t.equal(pool.stats().idle, 4)
  pool.resize({ min: 1 })
  await clock.advance(1000)
  t.equal(pool.stats().idle, 1)
})

t.test('an open that waits for more than the new max is content with that', async (t) => {
  const { pool, connector } = fakePool({ min: 3, max: 3 })
  connector.outcomes.create = 'gate'
  const opening = watch(pool.open())
  connector.pass('create')
  await settle()
  pool.resize({ min: 0, max: 1 })
  await settle()
  t.equal(opening.done, true)
})

t.test('a resize to nonsense is refused, and changes nothing', (t) => {
  const { pool } = fakePool({ min: 1, max: 5 })
  for (const size of [{ max: 0 }, { max: -1 }, { max: 1.5 }, { max: NaN }, { max: Infinity }, { max: '3' as unknown as number }, { min: -1 }, { min: 0.5 }, { min: 6 }, { min: 3, max: 2 }]) {
    t.throws(() => pool.resize(size), { code: 'FST_POOL_BAD_OPTIONS' })
  }
  t.match(pool.stats(), { min: 1, max: 5 })
  pool.resize({})
  t.match(pool.stats(), { min: 1, max: 5 })
  t.end()
})

t.test('a connector may have a max of its own, which no option exceeds', async (t) => {
  const { pool } = fakePool({ max: 10 }, { connector: Object.assign(new FakeConnector(), { max: 2 }) })
  t.equal(pool.stats().max, 2)
  t.throws(() => pool.resize({ max: 3 }), { code: 'FST_POOL_BAD_OPTIONS', message: /from 1 to 2/ })
  pool.resize({ max: 1 })
  t.equal(pool.stats().max, 1)
})

// --- suspend ---------------------------------------------------------------------------------------------------------

t.test('a suspended pool lends nothing, and what is lent stays lent', async (t) => {
  const { pool, connector } = fakePool({ max: 2 })
  const [lent, other] = await Promise.all([pool.acquire(), pool.acquire()])
  other.release()
  pool.suspend()
  t.equal(pool.tryAcquire(), null)
  const waiting = watch(pool.acquire())
  t.equal(lent.ended, false)
  lent.release()
  await settle()
  t.equal(waiting.done, false)
  t.match(pool.stats(), { idle: 2, pending: 1 })
  t.equal(connector.creates, 2)
  pool.resume()
  await settle()
  t.equal(waiting.done, true)
})

t.test('callers of a suspended pool wait until their deadlines', async (t) => {
  const { pool, connector, clock } = fakePool()
  pool.suspend()
  const waiting = watch(pool.acquire())
  const opening = watch(pool.open())
  await clock.advance(5000)
  t.equal(waiting.error?.code, 'FST_POOL_ACQUIRE_TIMEOUT')
  t.equal(opening.done, false)
  t.equal(connector.creates, 0, 'nothing is made either')
  pool.resume()
  await settle()
  t.equal(opening.done, true)
})

// --- stats and holders -----------------------------------------------------------------------------------------------

t.test('stats are a frozen copy of the books', async (t) => {
  const { pool, clock } = fakePool({ name: 'shop', max: 3, min: 1 })
  const lease = await pool.acquire()
  await clock.advance(40)
  lease.release()
  const stats = pool.stats()
  t.same(stats, {
    name: 'shop',
    system: 'fake',
    min: 1,
    max: 3,
    creating: 0,
    idle: 1,
    used: 0,
    resetting: 0,
    closing: 0,
    pending: 0,
    late: 0,
    circuit: 'closed',
    acquired: 1,
    released: 1,
    created: 1,
    createErrors: 0,
    destroyed: {
      idle: 0,
      lifetime: 0,
      uses: 0,
      invalid: 0,
      stale: 0,
      error: 0,
      aborted: 0,
      leaked: 0,
      overdue: 0,
      closed: 0,
      released: 0,
    },
    timeouts: 0,
    refused: 0,
    aborted: 0,
    leaked: 0,
    refusals: { full: 0, overload: 0, circuit: 0, connect: 0, deadlock: 0, closed: 0 },
    createFailures: {},
    saturated: 0,
    busy: 40,
    routes: {},
    lastMinute: stats.lastMinute,
    wait: { count: 1, sum: 0, p50: 0, p99: 0, max: 0, buckets: stats.wait.buckets },
    held: { count: 1, sum: 40, p50: stats.held.p50, p99: stats.held.p99, max: 40, buckets: stats.held.buckets },
    create: { count: 1, sum: 0, p50: 0, p99: 0, max: 0, buckets: stats.create.buckets },
  })
  t.ok(Math.abs(stats.held.p50 - 40) <= 40 * 0.0625)
  t.ok([stats, stats.destroyed, stats.wait, stats.held, stats.create].every(Object.isFrozen))
  pool.tryAcquire()
  t.equal(stats.idle, 1, 'a copy')
})

t.test('those who were served at once count as having waited 0', async (t) => {
  const { pool, clock } = fakePool({ max: 1 })
  await warm(pool)
  for (let i = 0; i < 8; i++) pool.tryAcquire()?.release()
  const lease = pool.tryAcquire()
  const waiting = watch(pool.acquire())
  await clock.advance(100)
  lease?.release()
  t.match(pool.stats().wait, { count: 11, p50: 0, max: 100 })
  t.ok(Math.abs(pool.stats().wait.p99 - 100) <= 6.25)
  await settle()
  t.equal(waiting.done, true)
})

t.test('holders tells who holds what and for how long, the longest first', async (t) => {
  const { pool, clock } = fakePool({ name: 'shop' })
  t.same(pool.holders(), [])
  const first = await pool.acquire({ holder: 'first' })
  await clock.advance(10)
  await pool.acquire({ holder: { route: 'GET /', id: '2' } })
  await clock.advance(10)
  await pool.acquire()
  t.same(pool.holders(), [
    { pool: 'shop', holder: 'first', id: 1, heldFor: 20 },
    { pool: 'shop', holder: { route: 'GET /', id: '2' }, id: 2, heldFor: 10 },
    { pool: 'shop', holder: undefined, id: 3, heldFor: 0 },
  ])
  first.release()
  t.same(pool.holders().map(({ id }) => id), [2, 3])
})

// --- health ----------------------------------------------------------------------------------------------------------

t.test('a pool where nothing is wrong is up, and says how fast an idle connection answers', async (t) => {
  const { pool, connector, clock } = fakePool({ name: 'shop' })
  const unknown = { status: 'degraded', reason: 'no connection was made yet: nothing is known of the server' }
  t.match(await pool.health(), { ...unknown, latency: null, circuit: 'closed', stats: { name: 'shop' } },
    'nothing is opened for it')
  t.equal(connector.creates, 0)
  await warm(pool)
  t.notOk('reason' in await pool.health())
  connector.outcomes.validate = 'gate'
  const asked = watch(pool.health())
  t.match(pool.stats(), { used: 1 })
  await clock.advance(30)
  connector.pass('validate')
  await settle()
  t.match(asked.value, { status: 'up', latency: 30, stats: { idle: 1, used: 0 } })
  const again = watch(pool.health())
  await clock.advance(0.4551280000000588)
  connector.pass('validate')
  await settle()
  t.match(again.value, { latency: 0.46 }, 'a number that fits')
})

t.test('where nothing is idle, or a connector can\'t validate, there is no latency', async (t) => {
  const { pool, connector } = fakePool()
  const lease = await pool.acquire()
  t.match(await pool.health(), { status: 'up', latency: null })
  lease.release()
  Object.assign(connector, { validate: undefined })
  t.match(await pool.health(), { status: 'up', latency: null })
})

t.test('a pool where somebody waits is degraded', async (t) => {
  const { pool } = fakePool({ max: 1 })
  await pool.acquire()
  watch(pool.acquire())
  t.match(await pool.health(), { status: 'degraded', reason: '1 wait for a connection', latency: null })
})

t.test('a pool whose last create failed is degraded, or down if there is no connection, until a create works', async (t) => {
  const { pool, connector, clock } = fakePool()
  await warm(pool)
  connector.outcomes.create = 'error'
  const lease = await pool.acquire()
  watch(pool.acquire())
  await clock.advance(5000)
  t.match(await pool.health(), { status: 'degraded', reason: 'the last create failed: create failed' })
  lease.destroy()
  await settle()
  t.match(await pool.health(), { status: 'down', reason: 'no connection, and the last create failed: create failed', latency: null })
  connector.outcomes.create = 'ok'
  await clock.advance(1000)
  await warm(pool)
  t.match(await pool.health(), { status: 'up' })
})

t.test('a connection that does not answer health is closed, and health does not wait longer than validateTimeout', async (t) => {
  for (const outcome of ['no', 'hang'] as const) {
    const { pool, connector, clock } = fakePool({ validateTimeout: 200 })
    await warm(pool)
    connector.outcomes.validate = outcome
    connector.outcomes.create = 'hang'
    const asked = watch(pool.health())
    await clock.advance(200)
    t.match(asked.value, { status: 'down', reason: /^no connection, and a validation failed/, latency: null })
    t.match(pool.stats(), { idle: 0, destroyed: { invalid: 1 } })
  }
})

t.test('a pool that drains, closes or is closed says so', async (t) => {
  const { pool, clock } = fakePool()
  const lease = await pool.acquire()
  watch(pool.drain())
  t.match(await pool.health(), { status: 'draining', reason: 'the pool is draining' })
  const closing = watch(pool.close({ timeout: 100 }))
  t.match(await pool.health(), { status: 'draining', reason: 'the pool is closing' })
  await clock.advance(100)
  t.equal(closing.done, true)
  t.match(await pool.health(), { status: 'draining', reason: 'the pool is closed' })
  lease.release()
})

t.test('health that is asked while the pool closes is answered, even by a connector that ignores its signal', async (t) => {
  const { pool, connector, clock } = fakePool({ validateTimeout: 100_000 })
  await warm(pool)
  connector.outcomes.validate = 'hang'
  const asked = watch(pool.health())
  const signal = connector.calls[0]?.signal
  const closing = watch(pool.close({ timeout: 100 }))
  await clock.advance(100)
  t.equal(closing.done, true)
  t.equal(signal?.aborted, true)
  t.match(asked.value, { status: 'draining', latency: null })
  t.match(pool.stats(), { used: 0, idle: 0, destroyed: { closed: 1 } })
})

t.test('open, evict, resize, suspend and resume of a closed pool do no harm', async (t) => {
  const clock = new VirtualClock()
  const { pool, connector } = fakePool({ min: 1 }, { clock })
  await pool.open()
  await clock.advance(1000)
  await pool.close()
  t.match(await failure(pool.open()), { code: 'FST_POOL_CLOSED' })
  pool.evict()
  pool.resize({ min: 2, max: 20 })
  pool.suspend()
  pool.resume()
  await pool.drain()
  await settle()
  t.equal(connector.creates, 1)
  t.same(clock.timers, { set: 0, ref: 0 })
})
