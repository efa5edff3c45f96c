import t, { type Test } from 'tap'
import { TargetPool } from '../../lib/balance/target-pool.js'
import type { EngineOptions } from '../../types/options.js'
import type { DestroyReason, Role } from '../../types/connector.js'
import type { PoolEventName, PoolEvents, PoolStats } from '../../types/pool.js'
import { VirtualClock } from '../support/clock.js'
import { FakeConnector, failure, watch, type FakeConnection } from '../support/fake-connector.js'
import { until } from '../support/until.js'

// Two pools behind one name: those that write, and those that only read.

class Primary extends FakeConnector {
  readonly replica = new FakeConnector()
  max?: number
}

interface Set {
  readonly pool: TargetPool<FakeConnection, Primary>
  readonly primary: Primary
  readonly replica: FakeConnector
  readonly clock: VirtualClock
  readonly events: Array<{ readonly event: PoolEventName } & Record<string, unknown>>
  seen<E extends PoolEventName> (event: E): Array<PoolEvents[E]>
}

const names: readonly PoolEventName[] =
  ['connect', 'disconnect', 'acquire', 'release', 'wait', 'overflow', 'timeout', 'refuse', 'error', 'open', 'drain',
    'close']

function set (
  t: Test,
  options: EngineOptions<FakeConnection> = {},
  { writers, readers }: { writers?: number, readers?: number } = {}
): Set {
  const primary = new Primary()
  if (writers !== undefined) primary.max = writers
  if (readers !== undefined) Object.assign(primary.replica, { max: readers })
  const clock = new VirtualClock()
  const pool = TargetPool.ofRoles<FakeConnection, Primary>(primary, { max: 4, circuit: false, ...options }, clock)
  const events: Set['events'] = []
  for (const event of names) pool.on(event, (payload) => { events.push({ ...payload, event }) })
  t.teardown(async () => {
    const closed = watch(pool.close())
    while (!closed.done) {
      await clock.advance(1000)
      for (const connector of [primary, primary.replica]) for (const call of [...connector.calls]) call.pass()
    }
    const violations = [...primary.violations, ...primary.replica.violations]
    if (violations.length > 0) throw new Error(violations.join('; '))
  })
  const seen = <E extends PoolEventName>(event: E) =>
    events.filter((one) => one.event === event) as unknown as Array<PoolEvents[E]>
  return { pool, primary, replica: primary.replica, clock, events, seen }
}

const roleOf = ({ replica }: Set, connection: FakeConnection): Role => replica.connections.includes(connection)
  ? 'replica'
  : 'primary'
const targets = ({ pool }: Set) => pool.stats().targets!

t.test('a connector without a replica, a bad option, and a max of 1 are refused', (t) => {
  const refused = { code: 'FST_POOL_BAD_OPTIONS' }
  t.throws(() => TargetPool.ofRoles(new FakeConnector()),
    { ...refused, message: /connector is an object: expected one with a replica/ })
  t.throws(() => TargetPool.ofRoles(new Primary(), { max: 1 }),
    { ...refused, message: /max is 1: expected an integer from 2 \(one that writes and one that reads\)/ })
  t.throws(() => TargetPool.ofRoles(new Primary(), { max: 0 }), refused)
  t.throws(() => TargetPool.ofRoles(new Primary(), { min: 5, max: 4 }), refused)
  t.end()
})

t.test('it has its name, its closeTimeout and its backend', (t) => {
  const { pool, primary } = set(t, { name: 'shop', closeTimeout: 1234 })
  t.same([pool.name, pool.closeTimeout], ['shop', 1234])
  t.equal(pool.backend, primary)
  t.end()
})

t.test('min and max are of both together', (t) => {
  type Range = [min: number, max: number]
  type Counts = { writers?: number, readers?: number }
  const rows: Array<[EngineOptions<FakeConnection>, Counts, writers: Range, readers: Range]> = [
    [{ max: 4 }, {}, [0, 3], [0, 1]],
    [{ max: 2 }, {}, [0, 1], [0, 1]],
    [{ max: 4, min: 4 }, {}, [1, 3], [1, 1]],
    [{ max: 4, min: 1 }, { writers: 1 }, [1, 1], [0, 3]],
    [{ max: 4, min: 4 }, { writers: 1 }, [1, 1], [3, 3]],
    [{ max: 4, min: 3 }, { writers: 1 }, [1, 1], [2, 3]],
    [{ max: 2 }, { writers: 1 }, [0, 1], [0, 1]],
    [{ max: 4 }, { writers: 2 }, [0, 2], [0, 2]],
    // Fewer than asked for, where the connectors allow no more.
    [{ max: 10, min: 10 }, { writers: 1, readers: 2 }, [1, 1], [2, 2]],
    [{ max: 10 }, { writers: 3, readers: 2 }, [0, 3], [0, 2]],
    [{ max: 10 }, { readers: 4 }, [0, 9], [0, 1]],
  ]
  for (const [options, limits, [writersMin, writersMax], [readersMin, readersMax]] of rows) {
    const [primary, replica] = targets(set(t, options, limits))
    t.match([primary, replica],
      [{ role: 'primary', min: writersMin, max: writersMax }, { role: 'replica', min: readersMin, max: readersMax }], JSON.stringify([options, limits]))
  }
  const { pool } = set(t, { max: undefined, min: undefined })
  t.match(pool.stats(), { min: 0, max: 10 })
  t.end()
})

t.test('each role has its own, and neither the other\'s', async (t) => {
  const both = set(t)
  const { pool } = both
  for (const role of [undefined, 'primary', 'replica'] as const) {
    const options = role === undefined ? undefined : { role }
    const expected = role ?? 'primary'
    const lease = await pool.acquire(options)
    t.equal(roleOf(both, lease.connection), expected)
    t.equal(lease.pool, 'db')
    lease.release()
    const again = pool.tryAcquire(options)
    t.equal(again?.connection.id, roleOf(both, again!.connection) === expected && again?.connection.id)
    again!.release()
    t.equal(await pool.use((connection, lease) => { t.notOk(lease.ended); return roleOf(both, connection) }, options),
      expected)
    t.equal(await pool.transaction((connection) => roleOf(both, connection), options), expected)
  }
  t.equal(pool.tryAcquire({ role: 'replica' }) === null, false)
  t.equal(pool.tryAcquire({ role: 'replica' }), null)
})

t.test('a role that is none is refused', async (t) => {
  const { pool } = set(t)
  const role = 'reader' as Role
  const refused = { code: 'FST_POOL_BAD_OPTIONS', message: /role is 'reader': expected 'primary' or 'replica'/ }
  t.match(await failure(pool.acquire({ role })), refused)
  t.match(await failure(pool.use(() => t.fail('called'), { role })), refused)
  t.match(await failure(pool.transaction(() => t.fail('called'), { role })), refused)
  t.throws(() => pool.tryAcquire({ role }), refused)
  for (const inherited of ['toString', '__proto__', 'constructor']) {
    t.throws(() =>
      pool.tryAcquire({ role: inherited as Role }), { code: 'FST_POOL_BAD_OPTIONS' })
  }
  t.equal(pool.stats().created, 0)
})

t.test('max is hard, as the connectors count', async (t) => {
  const { pool, primary, replica } = set(t, { max: 4 }, { writers: 2 })
  let most = 0
  const look = () => { most = Math.max(most, primary.live + replica.live) }
  for (const event of ['connect', 'disconnect', 'acquire', 'wait'] as const) pool.on(event, look)
  const work = Array.from({ length: 40 }, (_, at) => pool.use(look, { role: at % 2 === 0 ? 'primary' : 'replica' }))
  await Promise.all(work)
  t.same([most, primary.peak, replica.peak], [4, 2, 2])
})

t.test('within a transaction of the pool another one is a savepoint of it', async (t) => {
  const { pool, primary } = set(t)
  await pool.transaction(async () => { await pool.transaction(() => {}) })
  t.match(primary.asked, [/^begin/, /^savepoint/, /^commit/, /^commit/])
})

t.test('a connection has an id of its own, whichever it is', async (t) => {
  const { pool, seen } = set(t, { max: 6, min: 6 }, { writers: 3 })
  await pool.open()
  for (const role of ['replica', 'primary', 'replica', 'primary'] as const) await pool.acquire({ role })
  const ids = seen('connect').map(({ id }) => id)
  t.same([...new Set(ids)], ids)
  t.equal(ids.length, 5)
})

t.test('open: the writers first, and it tells once', async (t) => {
  const { pool, primary, replica, clock, seen, events } = set(t, { min: 2 })
  primary.outcomes.create = 'gate'
  const opened = watch(pool.open())
  await clock.advance(0)
  t.same([primary.creates, replica.creates, opened.done], [1, 0, false])
  primary.pass('create')
  await clock.advance(0)
  t.ok(opened.done)
  t.equal(opened.error, undefined)
  t.same([primary.live, replica.live], [1, 1])
  t.equal(seen('open').length, 1)
  t.equal(events.at(-1)!.event, 'open')
})

t.test('open fails where one of them can not connect', async (t) => {
  for (const role of ['primary', 'replica'] as const) {
    const both = set(t, { min: 2 })
    both[role].outcomes.create = 'error'
    const opened = watch(both.pool.open())
    await both.clock.advance(10_000)
    t.match(opened.error, { code: 'FST_POOL_CONNECT_FAILED' })
    t.equal(both.seen('open').length, 0)
  }
})

t.test('the numbers are the sums of both, and each has its own beside them; all frozen', async (t) => {
  const both = set(t, { max: 4, acquireTimeout: 100, maxPending: 1 }, { writers: 1 })
  const { pool, primary, clock } = both
  const writer = await pool.acquire()
  const readers = [await pool.acquire({ role: 'replica' }), await pool.acquire({ role: 'replica' })]
  const late = watch(pool.acquire())
  const refused = watch(pool.acquire())
  await clock.advance(200)
  t.match([late.error, refused.error], [{ code: 'FST_POOL_ACQUIRE_TIMEOUT' }, { code: 'FST_POOL_QUEUE_FULL' }])
  writer.destroy(new Error('no'))
  readers[0]!.destroy()
  primary.outcomes.create = 'error'
  const failed = watch(pool.acquire())
  await clock.advance(1000)
  t.ok(failed.error)

  const stats = pool.stats()
  const { targets, ...whole } = stats
  const [one, two] = targets as unknown as [PoolStats, PoolStats]
  t.match([one, two],
    [{ role: 'primary', name: 'db', timeouts: 2, refused: 1 }, { role: 'replica', name: 'db', used: 1, timeouts: 0 }])
  for (const [key, value] of Object.entries(whole)) {
    if (typeof value === 'number') {
      t.equal(value,
        (one[key as keyof PoolStats] as number) + (two[key as keyof PoolStats] as number), key)
    }
  }
  for (const reason of Object.keys(one.destroyed) as DestroyReason[]) {
    t.equal(stats.destroyed[reason],
      one.destroyed[reason] + two.destroyed[reason], reason)
  }
  t.match(stats, { name: 'db', system: 'fake', max: 4, used: 1, acquired: 3, destroyed: { error: 1, released: 1 } })
  for (const key of ['target', 'role', 'lag']) t.notOk(key in stats, key)
  t.same(Object.keys(stats).filter((key) => key !== 'targets').sort(),
    Object.keys(one).filter((key) => !['target', 'role', 'lag'].includes(key)).sort())
  for (const frozen of [stats, stats.destroyed, stats.targets, one, two, stats.wait]) t.ok(Object.isFrozen(frozen))
  readers[1]!.release()
})

t.test('how long they waited, were held and made is of both together', async (t) => {
  const { pool, primary, replica, clock } = set(t, { max: 2 })
  primary.outcomes.create = replica.outcomes.create = 'gate'
  const writer = pool.acquire()
  const reader = pool.acquire({ role: 'replica' })
  await clock.advance(100)
  primary.pass('create')
  await clock.advance(300)
  replica.pass('create')
  await clock.advance(0)
  const leases = [await writer, await reader]
  leases[0]!.release()
  await clock.advance(1000)
  leases[1]!.release()
  // Served at once: a wait of 0.
  for (const role of ['primary', 'replica'] as const) {
    for (let i = 0; i < 3; i++) {
      (await pool.acquire({ role }))
        .release()
    }
  }
  const { wait, create, held } = pool.stats()
  t.match([wait.count, wait.p50, wait.max], [8, 0, 400])
  t.ok(wait.p99 > 350 && wait.p99 <= 400, String(wait.p99))
  t.match([create.count, create.max], [2, 400])
  t.ok(create.p50 > 90 && create.p50 < 110, String(create.p50))
  t.ok(held.max >= 1000, String(held.max))
})

t.test('those who hold one are told of in the order of how long, whichever they hold', async (t) => {
  const { pool, clock } = set(t, { max: 4 }, { writers: 2 })
  for (const [at, role] of (['replica', 'primary', 'replica', 'primary'] as const).entries()) {
    await pool.acquire({ role, holder: String(at) })
    await clock.advance(1000)
  }
  const holders = pool.holders()
  t.same(holders.map(({ holder }) => holder), ['0', '1', '2', '3'])
  t.ok(holders.every(({ heldFor }, at) => at === 0 || heldFor < holders[at - 1]!.heldFor))
})

t.test('evict replaces those of both, and only the idle ones where so asked', async (t) => {
  const { pool, primary, replica, clock } = set(t, { min: 2, max: 2 })
  await pool.open()
  pool.evict()
  await clock.advance(1000)
  t.same([primary.creates, replica.creates], [2, 2])
  t.equal(pool.stats().destroyed.stale, 2)
  const lease = await pool.acquire()
  pool.evict({ idle: true })
  lease.release()
  await clock.advance(1000)
  t.same([primary.creates, replica.creates], [2, 3])
})

t.test('resize is of both together, and says what is wrong', async (t) => {
  const both = set(t, { max: 4 }, { writers: 1, readers: 8 })
  const { pool } = both
  const shape = () => targets(both).map(({ min, max }) => [min, max])
  pool.resize({ max: 6 })
  t.same(shape(), [[0, 1], [0, 5]])
  pool.resize({ min: 6 })
  t.same(shape(), [[1, 1], [5, 5]])
  pool.resize({ min: 1, max: 2 })
  t.same(shape(), [[1, 1], [0, 1]])
  pool.resize({})
  t.same(shape(), [[1, 1], [0, 1]])
  pool.resize({ max: 9 })
  t.same(shape(), [[1, 1], [0, 8]])
  const rows: Array<[{ min?: number, max?: number }, RegExp]> = [
    [{ max: 1 }, /max is 1: expected an integer from 2 \(one that writes and one that reads\) to 9/],
    [{ max: 10 }, /max is 10: expected an integer from 2 .* to 9/],
    [{ max: 2.5 }, /max is 2\.5/],
    [{ max: NaN }, /max is NaN/],
    [{ max: '4' as unknown as number }, /max is '4'/],
    [{ min: -1 }, /min is -1: expected an integer from 0 to max \(9\)/],
    [{ min: 10 }, /min is 10: expected an integer from 0 to max \(9\)/],
    [{ min: 3, max: 2 }, /min is 3: expected an integer from 0 to max \(2\)/],
    [{ min: 0.5 }, /min is 0\.5/],
  ]
  for (const [given, message] of rows) {
    t.throws(() => { pool.resize(given) }, { code: 'FST_POOL_BAD_OPTIONS', message })
    t.same(shape(), [[1, 1], [0, 8]], 'and nothing has changed')
  }
})

t.test('a max that is made smaller is kept by both', async (t) => {
  const { pool, primary, replica, clock } = set(t, { max: 6, min: 6 }, { writers: 3 })
  await pool.open()
  const leases = await Promise.all([pool.acquire(), pool.acquire(), pool.acquire()])
  pool.resize({ min: 0, max: 2 })
  await clock.advance(1000)
  for (const lease of leases) lease.release()
  await clock.advance(1000)
  t.same([primary.live, replica.live], [1, 1])
})

t.test('suspend and resume hold back both', async (t) => {
  const { pool, clock } = set(t)
  pool.suspend()
  const waiting = [watch(pool.acquire()), watch(pool.acquire({ role: 'replica' }))]
  await clock.advance(100)
  t.same(waiting.map(({ done }) => done), [false, false])
  pool.resume()
  await clock.advance(100)
  t.same(waiting.map(({ done, error }) => [done, error]), [[true, undefined], [true, undefined]])
})

t.test('drain waits for both, and tells once', async (t) => {
  for (const last of ['primary', 'replica'] as const) {
    const { pool, clock, seen } = set(t)
    const leases = { primary: await pool.acquire(), replica: await pool.acquire({ role: 'replica' }) }
    const drained = watch(pool.drain())
    leases[last === 'primary' ? 'replica' : 'primary'].release()
    await clock.advance(0)
    t.notOk(drained.done)
    t.equal((await pool.health()).status, 'draining')
    leases[last].release()
    await clock.advance(0)
    t.ok(drained.done)
    t.equal(seen('drain').length, 1)
  }
})

t.test('close closes both, and tells once, of all together', async (t) => {
  const { pool, primary, replica, clock, seen, events } = set(t, { max: 4, closeTimeout: 1000 }, { writers: 2 })
  await pool.acquire({ holder: 'writer' })
  const reader = await pool.acquire({ role: 'replica', holder: 'reader' })
  const idle = await pool.acquire({ role: 'replica' })
  idle.release()
  t.throws(() => pool.close({ timeout: 0 }), { code: 'FST_POOL_BAD_OPTIONS', message: /timeout is 0/ })
  t.equal((await pool.health()).status, 'up', 'and nothing is closed')
  const closing = pool.close({ timeout: 500 })
  t.equal(pool.close(), closing, 'the second is the first')
  t.throws(() => pool.close({ timeout: 0 }), { code: 'FST_POOL_BAD_OPTIONS' }, 'also then')
  const closed = watch(closing)
  await clock.advance(100)
  reader.release()
  await clock.advance(100)
  t.notOk(closed.done)
  await clock.advance(300)
  t.ok(closed.done)
  t.same([primary.live, replica.live, primary.closed, replica.closed], [0, 0, 1, 1])
  t.equal(seen('close').length, 1)
  const [{ took, destroyed, holders }] = seen('close') as [PoolEvents['close']]
  t.equal(destroyed, 3)
  t.ok(took >= 300 && took <= 500, String(took))
  t.same(holders.map(({ holder }) => holder), ['writer'])
  t.equal(events.at(-1)!.event, 'close')
  t.match(await failure(pool.acquire()), { code: 'FST_POOL_CLOSED' })
  t.match(await failure(pool.acquire({ role: 'replica' })), { code: 'FST_POOL_CLOSED' })
  t.equal(clock.timers.set, 0)
})

t.test('close by `await using`', async (t) => {
  const { pool, primary, replica } = set(t, { min: 2 })
  await pool.open()
  await pool[Symbol.asyncDispose]()
  t.same([primary.live, replica.live], [0, 0])
})

t.test('what happens to a connection is told of both; a listener is gone when it says so', async (t) => {
  const { pool, seen } = set(t)
  const heard: string[] = []
  const undos = (['acquire', 'drain', 'open', 'close'] as const)
    .map((event) => pool.on(event, () => { heard.push(event) }))
  for (const role of ['primary', 'replica'] as const) (await pool.acquire({ role })).release()
  t.same(heard, ['acquire', 'acquire'])
  t.same([seen('connect').length, seen('acquire').length, seen('release').length], [2, 2, 2])
  for (const undo of undos) undo()
  for (const undo of undos) undo()
  ;(await pool.acquire()).release()
  await pool.open()
  await pool.close()
  t.same(heard, ['acquire', 'acquire'])
  t.same([seen('open').length, seen('drain').length, seen('close').length], [1, 1, 1])
})

t.test('an event that there is none of is refused', (t) => {
  const { pool } = set(t)
  t.throws(() => pool.on('end' as PoolEventName, () => {}), { code: 'FST_POOL_BAD_OPTIONS' })
  t.end()
})

t.test('health is that of the writers, at best degraded where the readers are not up, with the numbers of both and the longer of two pings', async (t) => {
  const both = set(t, { max: 2, min: 2, acquireTimeout: 100 })
  const { pool, primary, replica, clock } = both
  t.match(await pool.health(), { status: 'degraded', latency: null, stats: { max: 2, targets: [{}, {}] } })
  await pool.open()
  primary.outcomes.validate = replica.outcomes.validate = 'gate'
  const asked = pool.health()
  await clock.advance(10)
  primary.pass('validate')
  await clock.advance(20)
  replica.pass('validate')
  t.match(await asked, { status: 'up', latency: 30 })
  primary.outcomes.validate = replica.outcomes.validate = 'ok'

  for (const [worse, role] of [['degraded', 'primary'], ['degraded', 'replica']] as const) {
    const lease = await pool.acquire({ role })
    const waiting = watch(pool.acquire({ role }))
    await until(() => pool.stats().pending === 1)
    t.match(await pool.health(),
      { status: worse, reason: '1 wait for a connection', latency: 0, stats: { pending: 1 } })
    lease.release()
    await clock.advance(0)
    t.ok(waiting.done)
    waiting.value!.release()
  }

  // Who reads can read there.
  replica.outcomes.create = 'error'
  ;(await pool.acquire({ role: 'replica' })).destroy()
  await clock.advance(10)
  t.match(await pool.health(), { status: 'degraded', reason: 'replica: no connection, and the last create failed' })
  primary.outcomes.create = 'error'
  ;(await pool.acquire()).destroy()
  await clock.advance(10)
  t.match(await pool.health(), { status: 'down', reason: 'no connection, and the last create failed' })
  const drained = pool.drain()
  t.equal((await pool.health()).status, 'draining')
  await drained
})
