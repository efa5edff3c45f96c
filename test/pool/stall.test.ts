import t from 'tap'
import { fakePool, failure, warm, watch } from '../support/fake-connector.js'
import { settle } from '../support/clock.js'
import { hold } from '../../lib/pool/pool.js'
import { Bulkhead } from '../../lib/fastify/rules/bulkhead.js'
import { PoolError } from '../../lib/engine/errors.js'

// The event loop stands still: `clock.stall`. Timers that fell due meanwhile then come before the sockets are read,
// which is what the test does between the late timer and the next one, 1 ms later.

t.test('a create that is under way gets the time back, and the circuit stays closed', async (t) => {
  const { pool, connector, clock } = fakePool({ connectTimeout: 3000, circuit: { failures: 1 } })
  connector.outcomes.create = 'gate'
  const acquired = watch(pool.acquire({ timeout: 10_000 }))
  await clock.advance(50)
  clock.stall(3500)
  await clock.advance(100)
  t.match(pool.stats(), { creating: 1, createErrors: 0, circuit: 'closed' })
  connector.pass('create')
  await settle()
  t.equal(acquired.done, true)
  t.match(pool.stats(), { createErrors: 0, circuit: 'closed', used: 1 })
  acquired.value!.release()
  await pool.close()
})

t.test('a create that does not answer fails at its deadline, and the stall is added to it', async (t) => {
  const { pool, connector, clock } = fakePool({ connectTimeout: 300, max: 1 })
  connector.outcomes.create = 'gate'
  const acquired = failure(pool.acquire({ timeout: 10_000 }))
  await clock.advance(100)
  clock.stall(1000)
  await clock.advance(95)
  t.equal(pool.stats().createErrors, 0)
  await clock.advance(105)
  t.equal(pool.stats().createErrors, 1)
  const closed = pool.close({ timeout: 1 })
  await clock.advance(1000)
  await closed
  t.match(await acquired, { code: 'FST_POOL_CLOSED' })
})

t.test('a validation, a reset, a destroy and a commit get the time back', async (t) => {
  const { pool, connector, clock, seen } = fakePool({ validateAfter: 0, commitTimeout: 1000 })
  await warm(pool)

  connector.outcomes.validate = 'gate'
  const validated = watch(pool.acquire())
  await settle()
  clock.stall(3500)
  await clock.advance(5)
  connector.pass('validate')
  await settle()
  t.equal(validated.done, true, 'validate')
  const lease = validated.value!

  const transaction = await hold(lease, {})
  connector.next.commit = ['gate']
  const committed = watch(transaction.commit())
  await settle()
  clock.stall(3500)
  await clock.advance(5)
  connector.pass('commit')
  await settle()
  t.same(committed, { done: true, value: undefined }, 'commit')

  connector.outcomes.reset = 'gate'
  lease.release()
  await settle()
  clock.stall(3500)
  await clock.advance(5)
  connector.pass('reset')
  await settle()
  t.equal(pool.stats().idle, 1, 'reset')

  connector.outcomes.destroy = 'gate'
  pool.evict()
  await settle()
  clock.stall(3500)
  await clock.advance(5)
  t.match(pool.stats(), { closing: 1, late: 0 }, 'destroy')
  connector.pass('destroy')
  await settle()
  t.same(seen('error'), [])
  await pool.close()
})

t.test('the commit waits for a nested transaction, and gets the time back there too', async (t) => {
  const { pool, connector, clock } = fakePool({ commitTimeout: 1000 })
  const lease = await pool.acquire()
  const transaction = await hold(lease, {})
  let end = () => {}
  const inner = lease.transaction(() => new Promise<void>((resolve) => { end = resolve }))
  await settle()
  const committed = watch(transaction.commit())
  await clock.advance(10)
  clock.stall(3500)
  await clock.advance(5)
  end()
  await inner
  await settle()
  t.same(committed, { done: true, value: undefined })
  t.equal(connector.rows.length, 0)
  lease.release()
  await pool.close()
})

t.test('a caller\'s own deadline stands, but is judged a turn later', async (t) => {
  const { pool, clock } = fakePool({ max: 1 })
  const lease = await pool.acquire()
  const served = watch(pool.acquire({ timeout: 1000 }))
  const notServed = watch(pool.acquire({ timeout: 1000 }))
  await clock.advance(10)
  clock.stall(3500)
  await clock.advance(0)
  t.same(served, { done: false }, 'the late timer judges nobody')
  lease.release()
  await clock.advance(1)
  t.match(served, { done: true, error: undefined })
  t.match(notServed, { done: true, error: { code: 'FST_POOL_ACQUIRE_TIMEOUT' } })
  served.value!.release()
  await pool.close()
})

t.test('onAcquire has its caller\'s deadline, which is judged a turn later', async (t) => {
  let pass = () => {}
  const { pool, clock } = fakePool({ onAcquire: async () => new Promise<void>((resolve) => { pass = resolve }) })
  const served = watch(pool.acquire({ timeout: 1000 }))
  await clock.advance(10)
  clock.stall(3500)
  await clock.advance(0)
  t.same(served, { done: false })
  pass()
  await settle()
  t.match(served, { done: true, error: undefined })
  const late = watch(pool.acquire({ timeout: 1000 }))
  await settle()
  clock.stall(3500)
  await clock.advance(1)
  t.match(late, { done: true, error: { code: 'FST_POOL_ACQUIRE_TIMEOUT' } })
  served.value!.release()
  await pool.close()
})

t.test('where each turn is long, deadlines are judged all the same', async (t) => {
  const { pool, clock } = fakePool({ max: 1 })
  const lease = await pool.acquire()
  const waits = watch(pool.acquire({ timeout: 1000 }))
  for (let turn = 0; turn < 12; turn++) {
    clock.stall(150)
    await clock.advance(0)
  }
  t.match(waits, { done: true, error: { code: 'FST_POOL_ACQUIRE_TIMEOUT' } })
  lease.release()
  await pool.close()
})

t.test('an acquire right behind a stall sees the true clock', async (t) => {
  const { pool, connector, clock } = fakePool({ max: 1 })
  await warm(pool)
  clock.stall(3500)
  connector.outcomes.validate = 'gate'
  const acquired = watch(pool.acquire({ timeout: 1000 }))
  await settle()
  t.match(connector.calls, [{ name: 'validate' }], 'what was idle for so long is asked')
  await clock.advance(5)
  t.same(acquired, { done: false }, 'its deadline counts from now')
  connector.pass('validate')
  await settle()
  t.equal(acquired.done, true)
  const second = watch(pool.acquire({ timeout: 1000 }))
  clock.stall(400)
  const third = watch(pool.acquire({ timeout: 1000 }))
  await clock.advance(700)
  t.match(second, { done: true, error: { code: 'FST_POOL_ACQUIRE_TIMEOUT' } })
  t.same(third, { done: false })
  acquired.value!.release()
  await settle()
  third.value!.release()
  await pool.close()
})

t.test('what lived for too long meanwhile is not handed to whoever waits', async (t) => {
  const { pool, clock } = fakePool({ max: 1, maxLifetime: 3000, reset: 'none' }, { listen: [] })
  // The first leases of a tick are timed exactly: they read the clock when they end.
  for (let lease = 0; lease < 70; lease++) (await pool.acquire()).release()
  const lease = await pool.acquire()
  const waits = watch(pool.acquire({ timeout: 10_000 }))
  await clock.advance(10)
  clock.stall(3500)
  lease.release()
  await settle()
  t.match(pool.stats(), { destroyed: { lifetime: 1 } })
  await clock.advance(5)
  t.equal(waits.value?.connection.id, 2)
  waits.value!.release()
  await pool.close()
})

t.test('who waits at a bulkhead is judged a turn later, too', async (t) => {
  const { pool, clock } = fakePool({ max: 2 })
  const options = { acquireTimeout: 1000, maxPending: 10, bulkhead: { key: () => 'it', max: 1 } }
  const bulkhead = new Bulkhead(pool, options, clock)
  const request = {} as never
  const lease = await bulkhead.acquire(request, {})
  const waits = watch(bulkhead.acquire(request, {}))
  await clock.advance(10)
  clock.stall(3500)
  await clock.advance(0)
  t.same(waits, { done: false })
  await clock.advance(1)
  t.ok(waits.error instanceof PoolError)
  lease.release()
  await pool.close()
})
