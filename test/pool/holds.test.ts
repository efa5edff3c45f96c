import t from 'tap'
import type { Lease } from '../../types/pool.js'
import { TargetPool } from '../../lib/balance/target-pool.js'
import { lentTo, hold } from '../../lib/engine/lease.js'
import { VirtualClock, settle } from '../support/clock.js'
import { FakeConnector, failure, fakePool, warm, watch, type FakeConnection } from '../support/fake-connector.js'

// How long a lease may be out. Of a job only its call says that; of a request the pool asks its scope.

const revoked = {
  code: 'FST_POOL_LEASE_RELEASED',
  message: "the lease on pool 'db' was out for longer than its holdTimeout, and was revoked: look for what it waited " +
    'for, or allow more',
}

t.test('past its holdTimeout a lease is revoked, and its connection destroyed', async (t) => {
  const { pool, connector, clock, events, seen } = fakePool({ max: 1 })
  const lease = await pool.acquire({ holder: 'me', holdTimeout: 1000 })
  const waiting = watch(pool.acquire())
  await clock.advance(499)
  t.same([...seen('hold'), ...seen('overdue')], [])
  await clock.advance(1)
  t.match(seen('hold'), [{ id: 1, held: 500, holdTimeout: 1000, holder: 'me' }])
  await clock.advance(499)
  t.equal(lease.ended, false)
  t.equal(seen('hold').length, 1, 'warned of once')
  await clock.advance(1)
  t.equal(lease.ended, true)
  t.match(seen('overdue'), [{ id: 1, held: 1000, holdTimeout: 1000, holder: 'me' }])
  t.match(seen('disconnect'), [{ id: 1, reason: 'overdue' }])
  t.same(seen('error'), [], 'it is no failure of the pool')
  t.ok(events.findIndex(({ event }) => event === 'overdue') > events.findIndex(({ event }) => event === 'disconnect'))
  t.equal(connector.connections[0]!.reason, 'overdue')
  t.throws(() => lease.connection, revoked)
  t.equal(lease.heldFor, 1000)
  lease.release()
  await settle()
  t.equal(waiting.value?.connection, connector.connections[1])
  t.match(pool.stats(), { acquired: 2, released: 1, destroyed: { overdue: 1 }, used: 1 })
  t.same(connector.violations, [])
})

t.test('a job has none but its call\'s, whatever the pool says', async (t) => {
  const { pool, clock, seen } = fakePool({ holdTimeout: 50 })
  const leases = [await pool.acquire(), await pool.acquire({ holdTimeout: 0 })]
  await clock.advance(10_000_000)
  t.same([...seen('hold'), ...seen('overdue')], [])
  for (const lease of leases) t.equal(lease.ended, false)
})

t.test('each way to take a connection can name one', async (t) => {
  const ways: Array<(pool: ReturnType<typeof fakePool>['pool']) => Promise<unknown>> = [
    (pool) => pool.acquire({ holdTimeout: 100 }),
    async (pool) => pool.tryAcquire({ holdTimeout: 100 }),
    (pool) => pool.use(() => new Promise(() => {}), { holdTimeout: 100 }),
    (pool) => pool.transaction(() => new Promise(() => {}), { holdTimeout: 100 }),
  ]
  for (const way of ways) {
    const { pool, clock, connector } = fakePool()
    await warm(pool)
    watch(way(pool))
    await clock.advance(200)
    t.equal(connector.connections[0]!.reason, 'overdue')
    t.match(pool.stats(), { used: 0, released: 2 })
  }
})

t.test('a holdTimeout that is none is refused, and nothing is taken', async (t) => {
  const { pool } = fakePool()
  await warm(pool)
  for (const holdTimeout of [-1, NaN, 2 ** 31, '5' as never]) {
    t.match(await failure(pool.acquire({ holdTimeout })), { code: 'FST_POOL_BAD_OPTIONS', message: /^option holdTimeout is / })
    t.throws(() => pool.tryAcquire({ holdTimeout }), { code: 'FST_POOL_BAD_OPTIONS' })
    t.match(await failure(pool.use(() => {}, { holdTimeout })), { code: 'FST_POOL_BAD_OPTIONS' })
    t.match(await failure(pool.transaction(() => {}, { holdTimeout })), { code: 'FST_POOL_BAD_OPTIONS' })
  }
  t.match(pool.stats(), { acquired: 1, used: 0 })
})

t.test('a lease that ends in time is watched no more, nor is the next one of its connection', async (t) => {
  const { pool, clock, seen } = fakePool({ max: 1 })
  const first = await pool.acquire({ holdTimeout: 1000 })
  await clock.advance(900)
  first.release()
  const second = await pool.acquire()
  await clock.advance(10_000)
  t.equal(second.ended, false)
  t.same(seen('overdue'), [])
})

t.test('no hold ends early, though the clock of the loan is coarse', async (t) => {
  const { pool, clock } = fakePool({ max: 1 }, { listen: [] })
  await warm(pool)
  // The sample of loans that are timed exactly is over.
  for (let n = 0; n < 70; n++) pool.tryAcquire()!.release()
  await clock.advance(90)
  const lease = pool.tryAcquire({ holdTimeout: 150 })!
  await clock.advance(150)
  t.equal(lease.ended, false)
  await clock.advance(100)
  t.equal(lease.ended, true)
})

t.test('the pool needs no ticks to find it, and keeps no process alive for it', async (t) => {
  const { pool, clock } = fakePool({ max: 1, idleTimeout: 0, maxLifetime: 0 })
  const lease = await pool.acquire({ holdTimeout: 100_000 })
  let ticks = 0
  await clock.advance(99_999, () => { ticks++ })
  t.ok(ticks < 16, `${ticks} ticks`)
  t.same(clock.timers, { set: 1, ref: 0 })
  await clock.advance(1)
  t.equal(lease.ended, true)
})

t.test('time in which the event loop stood still does not count', async (t) => {
  for (const rest of [200, 0, 650]) {
    const { pool, clock, seen } = fakePool()
    const lease = await pool.acquire({ holdTimeout: 1000 })
    await clock.advance(rest)
    clock.stall(5000)
    await clock.advance(890 - rest)
    t.equal(lease.ended, false)
    await clock.advance(310)
    t.equal(lease.ended, true)
    t.equal(seen('hold').length, 1)
  }
})

t.test('a borrower is asked anew at each look', async (t) => {
  const { pool, clock } = fakePool({ holdTimeout: 300 })
  const borrower = { holdTimeout: undefined as number | undefined, moved: undefined, restarts: 0, inVain: undefined }
  const leases: Array<Lease<FakeConnection>> = []
  for (const holdTimeout of [undefined, 0, 700]) {
    const lease = await pool.acquire()
    lentTo(lease, { ...borrower, holdTimeout })
    leases.push(lease)
  }
  const changed = await pool.acquire()
  lentTo(changed, borrower)
  await clock.advance(200)
  // An upgraded socket.
  borrower.holdTimeout = 0
  await clock.advance(200)
  t.same([...leases, changed].map(({ ended }) => ended), [true, false, false, false])
  await clock.advance(10_000)
  t.same([...leases, changed].map(({ ended }) => ended), [true, false, true, false])
})

t.test('bytes that move start a hold again, so many times', async (t) => {
  const { pool, clock, seen } = fakePool()
  const lease = await pool.acquire()
  const borrower = { holdTimeout: 1000, moved: 0, restarts: 3, inVain: undefined }
  lentTo(lease, borrower)
  let lived = 0
  for (; !lease.ended; lived += 50) {
    borrower.moved++
    await clock.advance(50)
  }
  t.ok(lived >= 3800 && lived <= 4100, `${lived} ms`)
  t.same(seen('hold').map(({ held }) => held >= 3400), [true], 'warned of when it can\'t start again')
})

t.test('a hold starts again from the last bytes that were seen to move', async (t) => {
  for (const restarts of [1, Infinity]) {
    const { pool, clock, seen } = fakePool({ idleTimeout: 0 })
    const lease = await pool.acquire()
    const borrower = { holdTimeout: 10_000, moved: 0, restarts, inVain: undefined }
    lentTo(lease, borrower)
    await clock.advance(6000)
    borrower.moved = 7
    await clock.advance(9000)
    t.equal(lease.ended, false)
    t.equal(seen('hold').length, 2, 'warned of at the half of each')
    await clock.advance(2001)
    t.equal(lease.ended, true)
  }
})

t.test('a commit that is under way then is in doubt, another transaction is not committed', async (t) => {
  const rows: Array<{ commit: 'hang' | 'ok', inDoubt: boolean, then: string }> = [
    { commit: 'hang', inDoubt: true, then: 'FST_POOL_COMMIT_UNKNOWN' },
    { commit: 'hang', inDoubt: false, then: 'FST_POOL_LEASE_RELEASED' },
  ]
  for (const { commit, inDoubt, then } of rows) {
    const connector = new FakeConnector()
    connector.outcomes.commit = commit
    connector.inDoubt = inDoubt
    const { pool, clock } = fakePool({}, { connector })
    const committing = watch(pool.transaction(() => {}, { holdTimeout: 100, commitTimeout: 0 }))
    const held = await pool.acquire({ holdTimeout: 100 })
    const transaction = await hold(held, {})
    await clock.advance(200)
    t.equal(committing.error?.code, then)
    t.match(await failure(transaction.commit()), { code: 'FST_POOL_LEASE_RELEASED' })
    t.same(connector.rows, [])
    t.same(connector.violations, [])
    t.same(connector.connections.map(({ reason }) => reason), ['overdue', 'overdue'])
  }
})

t.test('a begin that is under way then does not begin', async (t) => {
  const connector = new FakeConnector()
  connector.outcomes.begin = 'gate'
  const { pool, clock } = fakePool({}, { connector })
  const begun = watch(pool.transaction(() => t.fail('it ran'), { holdTimeout: 100 }))
  await clock.advance(200)
  t.equal(begun.error?.code, 'FST_POOL_LEASE_RELEASED')
  t.same(connector.connections.map(({ reason }) => reason), ['overdue'])
})

t.test('a listener of the warning may end the lease', async (t) => {
  for (const how of ['release', 'destroy'] as const) {
    const { pool, clock, seen } = fakePool()
    const lease = await pool.acquire({ holdTimeout: 100 })
    pool.on('hold', () => { lease[how]() })
    await clock.advance(1000)
    t.same(seen('overdue'), [])
    t.match(pool.stats(), { used: 0, destroyed: { overdue: 0 } })
  }
})

t.test('a listener of the end may take the next one', async (t) => {
  const { pool, clock } = fakePool({ max: 1 })
  await pool.acquire({ holdTimeout: 100 })
  const taken: Array<Promise<Lease<FakeConnection>>> = []
  pool.on('overdue', () => { taken.push(pool.acquire()) })
  await clock.advance(1000)
  t.equal((await taken[0])?.connection.id, 2)
})

t.test('over several targets, and over one connector with two roles, it is the same', async (t) => {
  const clock = new VirtualClock()
  const connectors = [new FakeConnector(), new FakeConnector()]
  const targets = connectors.map((connector, at) => ({ connector, role: at === 0 ? 'primary' as const : 'replica' as const, fixed: true }))
  const pool = new TargetPool<FakeConnection>(targets, { circuit: false }, clock)
  const overdue: unknown[] = []
  pool.on('overdue', ({ target, holdTimeout }) => { overdue.push([target, holdTimeout]) })
  const leases = [
    await pool.acquire({ holdTimeout: 100 }), await pool.acquire({ role: 'replica', holdTimeout: 200 }), await pool.acquire(),
  ]
  t.match(await failure(pool.acquire({ holdTimeout: -1 })), { code: 'FST_POOL_BAD_OPTIONS' })
  watch(pool.transaction(() => new Promise(() => {}), { holdTimeout: 300 }))
  await clock.advance(1000)
  t.same(leases.map(({ ended }) => ended), [true, true, false])
  t.same(overdue, [['primary-0', 100], ['replica-1', 200], ['primary-0', 300]])
  t.match(pool.stats(), { destroyed: { overdue: 3 } })
  t.match(pool.tryAcquire({ role: 'replica', holdTimeout: 100 }), null)
})
