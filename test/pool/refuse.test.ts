import t from 'tap'
import { fakePool, failure, warm, watch } from '../support/fake-connector.js'
import { settle } from '../support/clock.js'

// evict() with what it interrupts, close() of a suspended pool, and `onAcquire` that refuses a connection.

t.test('evict() aborts creates that hang, and others begin', async (t) => {
  const { pool, connector, clock } = fakePool({ max: 1 })
  connector.outcomes.create = 'gate'
  const acquired = watch(pool.acquire())
  await settle()
  const signal = connector.calls[0]?.signal
  connector.outcomes.create = 'ok'
  pool.evict()
  t.equal(signal?.aborted, true)
  await clock.advance(1)
  t.equal(acquired.done, true)
  t.match(pool.stats(), { createErrors: 0, created: 1 })
  acquired.value!.release()
  pool.evict({ idle: true })
  await pool.close()
})

t.test('evict({ idle: true }) leaves creates alone', async (t) => {
  const { pool, connector } = fakePool({ max: 1 })
  connector.outcomes.create = 'gate'
  const acquired = watch(pool.acquire())
  await settle()
  pool.evict({ idle: true })
  t.equal(connector.calls[0]?.signal?.aborted, false)
  connector.pass('create')
  await settle()
  acquired.value!.release()
  t.equal(pool.stats().idle, 1)
  await pool.close()
})

t.test('evict({ used: true }) ends leases and whatever else is under way, and callers get new connections', async (t) => {
  const { pool, connector, clock, seen } = fakePool({ max: 3, validateAfter: 0 })
  await warm(pool, 3)
  const lent = await pool.acquire()
  const reset = await pool.acquire()
  connector.outcomes.reset = 'hang'
  reset.release()
  connector.outcomes.validate = 'hang'
  const waits = [watch(pool.acquire()), watch(pool.acquire())]
  await settle()
  t.match(pool.stats(), { used: 3, pending: 2 })
  const ids = connector.connections.map(({ id }) => id)
  pool.evict({ used: true })
  t.equal(lent.ended, true)
  t.throws(() => lent.connection, { code: 'FST_POOL_LEASE_RELEASED' })
  await settle()
  t.match(pool.stats(), { destroyed: { stale: 3 }, used: 2 })
  t.same(connector.connections.filter(({ reason }) => reason === 'stale').map(({ id }) => id), ids)
  t.same(waits.map(({ done }) => done), [true, true])
  t.same(seen('error'), [])
  connector.outcomes.reset = 'sync'
  for (const { value } of waits) value!.release()
  await clock.advance(1)
  t.same(connector.violations, [])
  await pool.close()
})

t.test('evict({ used: true }) while onAcquire runs: its caller gets another connection', async (t) => {
  let fail = (_error: Error) => {}
  let calls = 0
  const { pool, connector, seen } = fakePool({
    max: 1,
    onAcquire: async () => ++calls === 1 ? new Promise<void>((_resolve, reject) => { fail = reject }) : undefined,
  })
  const acquired = watch(pool.acquire())
  await settle()
  pool.evict({ used: true })
  await settle()
  t.equal(acquired.value?.connection.id, 2)
  fail(new Error('too late'))
  await settle()
  t.equal(acquired.value?.ended, false)
  t.match(seen('error'), [{ phase: 'onAcquire' }])
  acquired.value!.release()
  t.same(connector.violations, [])
  await pool.close()
})

t.test('close() of a suspended pool refuses its waiters at once, and so does suspend() of one that closes', async (t) => {
  for (const first of ['suspend', 'close'] as const) {
    const { pool, clock } = fakePool({ max: 1 })
    const lease = await pool.acquire()
    if (first === 'suspend') pool.suspend()
    const waits = failure(pool.acquire())
    const closed = pool.close()
    if (first === 'close') pool.suspend()
    t.match(await waits, { code: 'FST_POOL_CLOSED' })
    lease.release()
    await clock.advance(0)
    await closed
  }
})

for (const how of ['at once', 'by a promise'] as const) {
  t.test(`onAcquire returns false ${how}: the connection is destroyed, and the caller gets another one`, async (t) => {
    const refused = new Set<number>()
    const { pool, connector, clock } = fakePool({
      max: 3,
      onAcquire: ({ id }) => {
        const answer = !refused.has(id)
        return how === 'at once' ? answer : Promise.resolve(answer)
      },
    })
    await warm(pool, 3)
    await settle()
    refused.add(3).add(2)
    const lease = await pool.acquire()
    t.equal(lease.connection.id, 1)
    t.match(pool.stats(), { destroyed: { invalid: 2 }, used: 1 })
    refused.add(4).add(5)
    const next = watch(pool.acquire())
    await settle()
    t.match(pool.stats(), { destroyed: { invalid: 3 }, pending: 1 })
    t.equal(connector.creates, 4, 'the next create waits')
    await clock.advance(200)
    t.equal(next.value?.connection.id, 6)
    next.value!.release()
    lease.release()
    await settle()
    t.same(connector.violations, [])
    await pool.close()
  })
}

t.test('onAcquire that always refuses: creates do not run hot, and the caller\'s deadline ends it', async (t) => {
  const { pool, connector, clock } = fakePool({ max: 2, onAcquire: () => false })
  const refused = failure(pool.acquire({ timeout: 1000 }))
  await clock.advance(1000)
  t.match(await refused, { code: 'FST_POOL_ACQUIRE_TIMEOUT' })
  t.ok(connector.creates > 2 && connector.creates < 50, `${connector.creates} creates`)
  await pool.close()
})

t.test('tryAcquire goes on to the next idle connection where onAcquire refuses one', async (t) => {
  const refused = new Set<number>()
  const { pool } = fakePool({ max: 3, onAcquire: ({ id }) => !refused.has(id) })
  await warm(pool, 3)
  refused.add(3)
  const lease = pool.tryAcquire()
  t.equal(lease?.connection.id, 2)
  t.match(pool.stats(), { destroyed: { invalid: 1 } })
  lease!.release()
  await pool.close()
})

t.test('the first promise that onAcquire returns is of false', async (t) => {
  let calls = 0
  const { pool } = fakePool({ max: 1, onAcquire: () => ++calls < 2 ? true : Promise.resolve(calls > 2) })
  await warm(pool)
  const acquired = watch(pool.acquire())
  await settle()
  t.equal(acquired.value?.connection.id, 2)
  t.match(pool.stats(), { destroyed: { invalid: 1 } })
  acquired.value!.release()
  await settle()
  await pool.close()
})
