import t from 'tap'
import { settle } from '../support/clock.js'
import { failure, FakeConnector, fakePool, warm, watch } from '../support/fake-connector.js'

t.test('drain closes idle connections, serves those who wait and those who come, and resolves when nothing is used', async (t) => {
  const { pool, connector, seen } = fakePool({ max: 2, min: 2 })
  await warm(pool, 2)
  const lease = await pool.acquire()
  const drained = watch(pool.drain())
  await settle()
  t.match(pool.stats(), { used: 1, idle: 0, destroyed: { closed: 1 } })
  t.match(seen('drain'), [{ pool: 'db' }])
  const late = await pool.acquire()
  const waiting = watch(pool.acquire())
  t.equal(drained.done, false)
  const { connection } = lease
  lease.release()
  await settle()
  t.equal(waiting.value?.connection, connection, 'a returned connection goes to whoever waits')
  late.release()
  await settle()
  t.equal(drained.done, false)
  waiting.value?.release()
  await settle()
  t.equal(drained.done, true)
  t.match(pool.stats(), { idle: 0, used: 0, closing: 0, creating: 0 }, 'min is not filled any more')
  t.equal(connector.live, 0)
})

t.test('drain may be called again, and resolves each time', async (t) => {
  const { pool, seen } = fakePool()
  await Promise.all([pool.drain(), pool.drain()])
  await pool.drain()
  t.equal(seen('drain').length, 1)
  const lease = await pool.acquire()
  t.equal(lease.ended, false, 'callers are still served')
})

t.test('drain lets the creates that somebody waits for go on, and cancels the others', async (t) => {
  const { pool, connector } = fakePool({ min: 3, max: 5 })
  connector.outcomes.create = 'gate'
  const waiting = watch(pool.acquire())
  const calls = [...connector.calls]
  t.equal(calls.length, 3)
  watch(pool.drain())
  t.same(calls.map(({ signal }) => signal?.aborted), [false, true, true])
  calls[0]?.pass()
  await settle()
  t.equal(waiting.done, true)
})

t.test('where the last create fails while draining, the one who waits gets another', async (t) => {
  const { pool, connector, clock } = fakePool({ max: 1 })
  connector.outcomes.create = 'gate'
  const waiting = watch(pool.acquire())
  const drained = watch(pool.drain())
  connector.fail('create')
  await clock.advance(100)
  connector.pass('create')
  await settle()
  t.equal(waiting.done, true)
  t.equal(drained.done, false)
  waiting.value?.release()
  await settle()
  t.equal(drained.done, true)
})

t.test('an open that waits while drain is called is refused, and so is one that comes later', async (t) => {
  const { pool, connector } = fakePool()
  connector.outcomes.create = 'gate'
  const opening = watch(pool.open())
  watch(pool.drain())
  await settle()
  t.match(opening.error, { code: 'FST_POOL_CLOSED', message: "pool 'db' is draining", statusCode: 503 })
  t.match(await failure(pool.open()), { code: 'FST_POOL_CLOSED' })
})

t.test('close destroys what is idle, and tells how it went', async (t) => {
  const { pool, connector, clock, seen } = fakePool({ name: 'shop' })
  await warm(pool, 2)
  connector.outcomes.destroy = 'gate'
  const closing = watch(pool.close())
  await clock.advance(50)
  t.equal(closing.done, false, 'it waits until the server has let go')
  connector.pass('destroy')
  connector.pass('destroy')
  await settle()
  t.equal(closing.done, true)
  t.equal(connector.live, 0)
  t.equal(connector.closed, 1)
  t.match(seen('drain'), [{ pool: 'shop' }])
  t.match(seen('close'), [{ pool: 'shop', took: 50, destroyed: 2, holders: [] }])
  t.same(clock.timers, { set: 0, ref: 0 })
})

t.test('close serves those who are in line, and waits for those who hold a connection', async (t) => {
  const { pool, connector } = fakePool({ max: 1 })
  const lease = await pool.acquire()
  const waiting = watch(pool.acquire())
  const closing = watch(pool.close())
  await settle()
  lease.release()
  await settle()
  t.equal(waiting.done, true)
  t.equal(closing.done, false)
  waiting.value?.release()
  await settle()
  t.equal(closing.done, true)
  t.equal(connector.creates, 1)
})

t.test('newcomers are refused as soon as close is called', async (t) => {
  const { pool, seen } = fakePool({ name: 'shop', closeTimeout: 20_000 })
  const lease = await pool.acquire()
  const closing = pool.close()
  const error = await failure(pool.acquire({ holder: 'late' }))
  t.equal(error.code, 'FST_POOL_CLOSED')
  t.equal(error.message, "pool 'shop' is closing")
  t.equal(error.statusCode, 503)
  t.same(error.headers, { 'retry-after': '20' })
  t.match(seen('refuse'), [{ error, wait: 0, holder: 'late' }])
  t.equal(pool.tryAcquire(), null)
  lease.release()
  await closing
  t.match(await failure(pool.use(() => t.fail())), { code: 'FST_POOL_CLOSED', message: "pool 'shop' is closed" })
  t.equal(pool.stats().refused, 2)
})

t.test('close gives leases a part of its time, then destroys them, and turns away those who wait', async (t) => {
  const { pool, connector, clock, seen } = fakePool({ max: 1, acquireTimeout: 60_000 })
  const lease = await pool.acquire({ holder: { route: 'GET /slow', id: 'req-1' } })
  const waiting = watch(pool.acquire({ holder: 'waiting' }))
  const closing = watch(pool.close({ timeout: 10_000 }))
  await clock.advance(7999)
  t.equal(lease.ended, false)
  await clock.advance(1)
  t.equal(lease.ended, true)
  t.throws(() => lease.connection, { code: 'FST_POOL_LEASE_RELEASED' })
  t.match(waiting.error, { code: 'FST_POOL_CLOSED', message: "pool 'db' is closed" })
  t.match(seen('refuse'), [{ wait: 8000, holder: 'waiting' }])
  t.equal(closing.done, true)
  t.equal(connector.connections[0]?.reason, 'closed')
  t.match(seen('close'), [{
    took: 8000,
    destroyed: 1,
    holders: [{
      pool: 'db', holder: { route: 'GET /slow', id: 'req-1' }, id: 1, heldFor: 8000,
    }]
  }])
  t.match(pool.stats(), { released: 1, refused: 1, destroyed: { closed: 1 } })
  lease.release()
  t.equal(pool.stats().released, 1)
})

t.test('a listener of those who are turned away sets off nothing new', async (t) => {
  const { pool, connector, clock } = fakePool({ max: 1, acquireTimeout: 60_000 })
  connector.outcomes.destroy = 'sync'
  const lease = await pool.acquire()
  const waiting = [watch(pool.acquire()), watch(pool.acquire())]
  pool.on('refuse', () => { lease.destroy() })
  const closing = watch(pool.close())
  await clock.advance(8000)
  t.equal(closing.done, true)
  t.same(waiting.map(({ error }) => error?.code), ['FST_POOL_CLOSED', 'FST_POOL_CLOSED'])
  t.equal(connector.creates, 1)
})

t.test('close resolves by its deadline, whatever hangs, and what comes back later is still destroyed', async (t) => {
  const { pool, connector, clock } = fakePool({
    max: 4, destroyTimeout: 100_000, connectTimeout: 100_000, resetTimeout: 100_000,
  })
  const leases = await Promise.all([pool.acquire(), pool.acquire(), pool.acquire()])
  connector.outcomes.reset = 'hang'
  connector.outcomes.destroy = 'hang'
  connector.outcomes.create = 'hang'
  leases[0]?.destroy()
  leases[1]?.release()
  watch(pool.acquire())
  const closing = watch(pool.close({ timeout: 1000 }))
  await clock.advance(999)
  t.equal(closing.done, false)
  await clock.advance(1)
  t.equal(closing.done, true)
  t.match(pool.stats(), { used: 0, idle: 0, creating: 0, closing: 0, pending: 0 })
  t.ok(pool.stats().late > 0)
  t.same(clock.timers, { set: 0, ref: 0 })
  connector.outcomes.destroy = 'ok'
  while (connector.calls.length > 0) {
    connector.calls[0]?.pass()
    await settle()
  }
  t.equal(connector.live, 0)
  t.equal(pool.stats().late, 0)
  t.same(connector.violations, [])
  t.same(clock.timers, { set: 0, ref: 0 })
})

t.test('a late create that fails after close is nobody\'s business', async (t) => {
  const { pool, connector, clock } = fakePool()
  connector.outcomes.create = 'hang'
  watch(pool.acquire())
  const closing = watch(pool.close({ timeout: 10 }))
  await clock.advance(10)
  t.equal(closing.done, true)
  connector.fail('create')
  await settle()
  t.match(pool.stats(), { late: 0, createErrors: 0 })
})

t.test('a connection whose onConnect hangs while the pool closes is destroyed', async (t) => {
  let answer = () => {}
  const { pool, connector, clock } = fakePool({ onConnect: () => new Promise<void>((resolve) => { answer = resolve }) })
  watch(pool.acquire())
  await settle()
  const closing = watch(pool.close({ timeout: 100 }))
  await clock.advance(100)
  t.equal(closing.done, true)
  t.equal(connector.connections[0]?.reason, 'closed')
  answer()
  await settle()
  t.match(pool.stats(), { used: 0, destroyed: { closed: 1 } })
  t.same(connector.violations, [])
})

t.test('somebody whose connection is prepared while the pool closes is turned away', async (t) => {
  const { pool, connector, clock } = fakePool({ onAcquire: async () => { await new Promise(() => {}) } })
  const waiting = watch(pool.acquire())
  await settle()
  const closing = watch(pool.close({ timeout: 100 }))
  await clock.advance(100)
  t.match(waiting.error, { code: 'FST_POOL_CLOSED' })
  t.equal(closing.done, true)
  t.equal(connector.connections[0]?.reason, 'closed')
})

t.test('an open that waits while the pool closes is refused', async (t) => {
  const { pool, connector, clock } = fakePool()
  connector.outcomes.create = 'hang'
  const opening = watch(pool.open())
  const closing = watch(pool.close({ timeout: 100 }))
  await clock.advance(100)
  t.equal(opening.error?.code, 'FST_POOL_CLOSED')
  t.equal(closing.done, true)
})

t.test('close while a connection is made destroys what comes', async (t) => {
  const { pool, connector } = fakePool({ min: 1 })
  connector.honoursSignal = false
  connector.outcomes.create = 'gate'
  watch(pool.open())
  const closing = watch(pool.close())
  await settle()
  t.equal(closing.done, false)
  connector.pass('create')
  await settle()
  t.equal(closing.done, true)
  t.equal(connector.connections[0]?.reason, 'closed')
  t.equal(connector.live, 0)
})

t.test('close while a connection is validated or reset waits for that, and destroys it', async (t) => {
  const { pool, connector } = fakePool({ validateAfter: 0 })
  await warm(pool, 2)
  connector.outcomes.validate = connector.outcomes.reset = 'gate'
  const asked = watch(pool.health())
  connector.outcomes.validate = 'ok'
  const lease = await pool.acquire()
  lease.release()
  const closing = watch(pool.close())
  await settle()
  t.equal(closing.done, false)
  connector.pass('validate')
  connector.pass('reset')
  await settle()
  await settle()
  t.equal(closing.done, true)
  t.match(asked.value, { status: 'draining' })
  t.match(pool.stats(), { destroyed: { closed: 2 } })
})

t.test('close is one and the same however often it is called, also from its own events', async (t) => {
  const { pool, connector, seen } = fakePool()
  await warm(pool)
  const again: unknown[] = []
  pool.on('drain', () => { again.push(pool.close()) })
  pool.on('disconnect', () => { again.push(pool.close({ timeout: 1 })) })
  pool.on('close', () => { again.push(pool.close()) })
  const closing = pool.close()
  t.equal(pool.close(), closing)
  await closing
  await pool.close()
  t.equal(again.length, 3)
  t.ok(again.every((one) => one === closing))
  t.equal(seen('close').length, 1)
  t.equal(connector.closed, 1)
})

t.test('those who come in the events of a close are refused', async (t) => {
  const { pool } = fakePool()
  await warm(pool)
  const refused: Array<ReturnType<typeof watch>> = []
  pool.on('drain', () => { refused.push(watch(pool.acquire())) })
  pool.on('disconnect', () => { refused.push(watch(pool.acquire())) })
  await pool.close()
  t.same(refused.map(({ error }) => error?.code), ['FST_POOL_CLOSED', 'FST_POOL_CLOSED'])
})

t.test('a deadline of close must be at least 1 ms: else nothing is closed', async (t) => {
  const { pool, clock } = fakePool()
  for (const timeout of [0, -1, NaN, Infinity, '5' as unknown as number]) {
    t.throws(() => pool.close({ timeout }), { code: 'FST_POOL_BAD_OPTIONS', message: /timeout/ })
  }
  t.equal((await pool.acquire()).ended, false)
  const closing = watch(pool.close({ timeout: 1 }))
  await clock.advance(1)
  t.equal(closing.done, true)
})

t.test('a pool that was never used closes at once, and needs nothing of the connector', async (t) => {
  const { pool, connector } = fakePool()
  Object.assign(connector, { close: undefined })
  await pool.close()
  t.equal(connector.creates, 0)
})

t.test('await using closes the pool at the end of the block', async (t) => {
  const { pool, connector } = fakePool()
  {
    await using own = pool
    await warm(own)
  }
  t.equal(connector.live, 0)
  t.equal(connector.closed, 1)
})

t.test('what the connector shares is closed last, and may fail in every way', async (t) => {
  const order: string[] = []
  const { pool, connector } = fakePool()
  const destroy = connector.destroy.bind(connector)
  connector.destroy = (connection, reason) => {
    order.push('destroy')
    return destroy(connection, reason)
  }
  connector.close = () => { order.push('close') }
  await warm(pool)
  await pool.close()
  t.same(order, ['destroy', 'close'])
  for (const close of [() => { throw new Error('no') }, () => Promise.reject(new Error('no'))]) {
    const { pool, connector, seen } = fakePool()
    connector.close = close
    await pool.close()
    t.match(seen('error'), [{ phase: 'close', error: { message: 'no' } }])
  }
})

t.test('what the connector shares gets a little time even where connections took all of it', async (t) => {
  const { pool, connector, clock, seen } = fakePool()
  connector.outcomes.destroy = 'hang'
  await warm(pool)
  let answer = () => {}
  connector.close = () => new Promise<void>((resolve) => { answer = resolve })
  const closing = watch(pool.close({ timeout: 1000 }))
  await clock.advance(1099)
  t.equal(closing.done, false)
  await clock.advance(1)
  t.equal(closing.done, true)
  answer()
  t.match(seen('close'), [{ took: 1100 }])
  t.same(clock.timers, { set: 0, ref: 0 })
})

t.test('after close nothing is heard any more', async (t) => {
  const { pool, connector, events } = fakePool()
  await warm(pool)
  const undo = pool.on('error', () => t.fail())
  await pool.close()
  const heard = events.length
  connector.connections[0]?.die(new Error('late'))
  await failure(pool.acquire())
  undo()
  t.equal(events.length, heard)
})

t.test('a lease that leaks does not keep close from resolving', async (t) => {
  const { pool, clock } = fakePool({ leakAfter: 10 })
  await pool.acquire()
  const closing = watch(pool.close())
  await clock.advance(8000)
  t.equal(closing.done, true)
})

t.test('drain without a deadline waits for a leaked lease, and close ends it', async (t) => {
  const { pool, clock } = fakePool({}, { connector: new FakeConnector() })
  await pool.acquire()
  const drained = watch(pool.drain())
  await clock.advance(1_000_000)
  t.equal(drained.done, false)
  const closing = watch(pool.close())
  await clock.advance(8000)
  t.same([drained.done, closing.done], [true, true])
})
