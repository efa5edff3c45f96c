// The promises of the engine, one test each, in the order of their numbers. (The 14th, what a reset guarantees, is the
// backends'.)
import { AsyncLocalStorage } from 'node:async_hooks'
import t from 'tap'
import type { Lease } from '../../types/pool.js'
import { settle } from '../support/clock.js'
import type { FakeConnection } from '../support/fake-connector.js'
import { failure, FakeConnector, fakePool, warm, watch } from '../support/fake-connector.js'

t.test('promise 1: connections that are made, idle, used and closed are never more than max, counted at the connector', async (t) => {
  const { pool, connector, clock } = fakePool({
    max: 3, maxUses: 1, acquireTimeout: 1_000_000, backoff: { min: 1, max: 1 },
  })
  connector.outcomes.create = 'gate'
  connector.outcomes.destroy = 'gate'
  const served: Array<Lease<FakeConnection>> = []
  for (let i = 0; i < 30; i++) pool.acquire().then((lease) => { served.push(lease) }, t.fail)
  let released = 0
  for (let round = 0; released < 30 && round < 1000; round++) {
    const { creating, idle, used, closing } = pool.stats()
    if (connector.live > 3 ||
      creating + idle + used + closing !== connector.live) t.fail(`${connector.live} at the connector`)
    if (round % 7 === 3 && creating > 0) connector.fail('create')
    else if (creating > 0) connector.pass('create')
    else if (closing > 0) connector.pass('destroy')
    else {
      served[released]?.release()
      released++
    }
    await clock.advance(1)
  }
  t.equal(released, 30)
  t.equal(connector.peak, 3)
  pool.resize({ max: 1 })
  watch(pool.acquire())
  watch(pool.acquire())
  const before = connector.creates
  await clock.advance(10)
  t.ok(pool.stats().closing >= 1 && connector.creates <= before + 1)
  t.ok(connector.live <= 3)
})

t.test('promise 2: a connection is never in two leases', async (t) => {
  const { pool, connector } = fakePool({ max: 2 })
  const out = new Set<FakeConnection>()
  const stale: Array<Lease<FakeConnection>> = []
  await Promise.all(Array.from({ length: 200 }, async (_, i) => {
    const lease = await pool.acquire()
    const { connection } = lease
    if (out.has(connection)) t.fail('it is lent already')
    out.add(connection)
    await settle()
    out.delete(connection)
    lease.release()
    if (i % 2 === 0) lease.release()
    stale.push(lease)
    for (const old of stale) i % 3 === 0 ? old.release() : old.destroy()
  }))
  t.equal(connector.creates, 2)
  t.match(pool.stats(), { idle: 2, used: 0, acquired: 200, released: 200 })
  t.ok(stale.every((lease) => lease.ended))
})

t.test('promise 3: at rest nobody waits beside an idle connection, nor beside free room with no create under way', async (t) => {
  const { pool, connector, clock } = fakePool({ max: 3, validateAfter: 0, acquireTimeout: 100_000 })
  const atRest = async (what: string) => {
    await settle()
    const { idle, pending, used, closing, creating } = pool.stats()
    t.notOk(pending > 0 && idle > 0, what)
    t.notOk(pending > creating && used + closing + creating < 3, what)
  }
  const leases: Array<Lease<FakeConnection>> = []
  const take = () => { pool.acquire().then((lease) => { leases.push(lease) }, () => { /* some can't be served */ }) }
  for (let i = 0; i < 6; i++) take()
  await atRest('at capacity')
  leases.shift()?.release()
  await atRest('after a release')
  leases.shift()?.destroy()
  await atRest('after a destroy')
  pool.evict()
  leases.shift()?.release()
  await atRest('after an evict')
  connector.connections.at(-1)?.die()
  leases.shift()?.release()
  await atRest('after a death')
  connector.outcomes.validate = 'no'
  for (let i = 0; i < 6; i++) take()
  for (const lease of leases.splice(0)) lease.release()
  await atRest('after failed validations')
  pool.resize({ max: 5 })
  await atRest('after a resize')
  connector.outcomes.create = 'error'
  for (const lease of leases.splice(0)) lease.destroy()
  await settle()
  take()
  connector.outcomes.create = 'ok'
  await clock.advance(2000)
  await atRest('after failed creates')
})

t.test('promise 4: every acquire settles exactly once, by its deadline', async (t) => {
  const { pool, connector, clock } = fakePool({
    max: 2, validateAfter: 0, acquireTimeout: 1000, connectTimeout: 400, validateTimeout: 300,
  })
  let pending = 0
  const overdue: number[] = []
  const settled: number[] = []
  const controller = new AbortController()
  connector.outcomes.create = 'hang'
  for (let i = 0; i < 20; i++) {
    pending++
    const timeout = [1000, 100, 700, 5][i % 4]!
    const began = clock.now()
    settled[i] = 0
    const end = (lease?: Lease<FakeConnection>) => {
      pending--
      settled[i]!++
      if (clock.now() > began + timeout) overdue.push(i)
      lease?.release()
    }
    pool.acquire({ timeout, ...(i % 5 === 0 && { signal: controller.signal }) }).then(end, () => end())
    await clock.advance(50)
    if (i === 8) controller.abort()
    if (i === 10) connector.outcomes.create = 'ok'
    if (i === 12) connector.outcomes.validate = 'hang'
  }
  await clock.advance(1000)
  t.equal(pending, 0)
  t.same(overdue, [])
  t.ok(settled.every((times) => times === 1))
  t.equal(clock.timers.ref, 0)
})

t.test('promise 5: a connection is destroyed exactly once, for one stated reason', async (t) => {
  const { pool, connector, clock, seen } = fakePool({
    max: 20, maxUses: 3, idleTimeout: 500, maxLifetime: 5000, keepalive: 100, validateAfter: 50, validateTimeout: 30,
  })
  for (let round = 0; round < 30; round++) {
    const leases = await Promise.all([pool.acquire(), pool.acquire(), pool.acquire()])
    const [a, b, c] = leases
    connector.outcomes.validate = round % 6 === 0 ? 'hang' : 'ok'
    connector.outcomes.reset = round % 5 === 0 ? 'error' : 'ok'
    connector.outcomes.destroy = round % 7 === 0 ? 'error' : round % 3 === 0 ? 'sync' : 'ok'
    if (round % 4 === 0) a.destroy()
    const { connection } = b
    a.release()
    b.release()
    if (round % 3 === 0) connection.die(new Error('dead'))
    if (round % 8 === 0) pool.evict()
    c.release()
    connection.die()
    await clock.advance(round * 20)
  }
  const closing = pool.close()
  await clock.advance(8000)
  await closing
  t.same(connector.violations, [])
  t.ok(connector.connections.every(({ state, reason }) => state === 'destroyed' && reason !== undefined))
  t.equal(connector.live, 0)
  const ids = seen('disconnect').map(({ id }) => id)
  t.equal(new Set(ids).size, ids.length)
  t.equal(Object.values(pool.stats().destroyed).reduce((sum, count) => sum + count), connector.connections.length)
})

t.test('promise 6: a slow or hung create, validate, reset or destroy has a deadline, and an owner for its late answer', async (t) => {
  for (const method of ['create', 'validate', 'reset', 'destroy'] as const) {
    for (const late of ['pass', 'fail'] as const) {
      const { pool, connector, clock } = fakePool({ max: 2, validateAfter: 0, backoff: { min: 1, max: 1 } })
      if (method !== 'create') await warm(pool)
      connector.outcomes[method] = 'hang'
      if (method === 'destroy') pool.evict()
      const first = watch(pool.acquire({ timeout: 100_000 }))
      await settle()
      first.value?.release()
      const [hung] = connector.calls
      t.equal(hung?.name, method)
      connector.outcomes[method] = 'ok'
      const second = watch(pool.acquire({ timeout: 100_000 }))
      await settle()
      first.value?.release()
      await settle()
      t.equal(second.done, true, 'it blocks nobody else')
      second.value?.release()
      await clock.advance(3001)
      t.equal(first.done, true)
      first.value?.release()
      await settle()
      if (late === 'pass') hung?.pass()
      else hung?.fail()
      await settle()
      t.match(pool.stats(), { creating: 0, used: 0, closing: 0, late: 0, pending: 0 }, `${method} ${late}`)
      t.equal(connector.live, pool.stats().idle)
      t.same(connector.violations, [])
    }
  }
})

t.test('promise 7: a failed create wakes the next waiter, failing creates back off, and none follows that nobody needs', async (t) => {
  const { pool, connector, clock } = fakePool({ max: 1, backoff: { min: 50, max: 1000 } })
  connector.outcomes.create = 'error'
  const first = watch(pool.acquire({ timeout: 200 }))
  const second = watch(pool.acquire())
  await clock.advance(1000)
  t.equal(first.error?.code, 'FST_POOL_CONNECT_FAILED')
  t.ok(connector.creates > 2 && connector.creates < 40, `${connector.creates} creates in a second`)
  connector.outcomes.create = 'ok'
  await clock.advance(1000)
  t.equal(second.done, true)
  second.value?.destroy()
  await settle()
  connector.outcomes.create = 'error'
  watch(pool.acquire({ timeout: 10 }))
  await clock.advance(10)
  const before = connector.creates
  await clock.advance(60_000)
  t.equal(connector.creates, before)
})

t.test('promise 8: after close there is no connection, timer or listener left, even if leases leak', async (t) => {
  const { pool, connector, clock, events } = fakePool({ max: 3, min: 1, keepalive: 10, leakAfter: 50 })
  await warm(pool, 2)
  await pool.acquire()
  const controller = new AbortController()
  let listening = 0
  const { signal } = controller
  const add = signal.addEventListener.bind(signal)
  const remove = signal.removeEventListener.bind(signal)
  signal.addEventListener = (...args: Parameters<typeof add>) => {
    listening++
    add(...args)
  }
  signal.removeEventListener = (...args: Parameters<typeof remove>) => {
    listening--
    remove(...args)
  }
  connector.outcomes.create = 'hang'
  await pool.acquire()
  watch(pool.acquire({ signal }))
  watch(pool.acquire({ signal, timeout: 100_000 }))
  const closing = watch(pool.close())
  await clock.advance(8000)
  t.equal(closing.done, true)
  t.match(pool.stats(), { creating: 0, idle: 0, used: 0, closing: 0, pending: 0 })
  t.equal(connector.connections.filter(({ state }) => state === 'open').length, 0)
  t.same(clock.timers, { set: 0, ref: 0 })
  t.equal(listening, 0)
  const heard = events.length
  await failure(pool.acquire())
  t.equal(events.length, heard)
})

t.test('promise 9: an error on an idle connection evicts it, and never crashes the process', async (t) => {
  const { pool, connector } = fakePool({ min: 1 }, { listen: [] })
  await pool.open()
  connector.connections[0]?.die(new Error('nobody listens'))
  await settle()
  t.equal(connector.connections[0]?.reason, 'error')
  t.match(pool.stats(), { idle: 1, destroyed: { error: 1 } })
})

t.test('promise 10: a throwing listener or hook cannot break the pool, and no async context shows elsewhere', async (t) => {
  const storage = new AsyncLocalStorage<string>()
  const stores: unknown[] = []
  const { pool, connector } = fakePool({
    max: 1,
    onRelease: () => { throw new Error('hook') },
    onDisconnect: () => { throw new Error('hook') },
  }, { listen: [] })
  for (const name of ['connect', 'disconnect', 'acquire', 'release', 'wait', 'error'] as const) {
    pool.on(name, () => {
      stores.push(storage.getStore())
      if (name !== 'error') throw new Error('listener')
    })
  }
  const served: unknown[] = []
  const callers = Array.from({ length: 5 }, (_, i) => storage.run(`caller ${i}`, () => pool.use(() => {
    served.push(storage.getStore())
  })))
  await Promise.all(callers)
  await settle()
  t.strictSame(served, [0, 1, 2, 3, 4].map((i) => `caller ${i}`))
  t.ok(stores.length > 20)
  t.ok(stores.every((store) => store === undefined))
  t.match(pool.stats(), { used: 0, destroyed: { error: 5 } })
  t.equal(connector.live, 0)
})

t.test('promise 11: filling up to min never overshoots max and never blocks callers, and is tried again when it failed', async (t) => {
  const { pool, connector, clock } = fakePool({ min: 3, max: 3 })
  connector.outcomes.create = 'gate'
  watch(pool.open())
  const waiting = watch(pool.acquire())
  t.equal(connector.creates, 3)
  connector.pass('create')
  await settle()
  t.equal(waiting.done, true)
  connector.outcomes.create = 'ok'
  connector.fail('create')
  connector.fail('create')
  await clock.advance(1000)
  t.match(pool.stats(), { used: 1, idle: 2 })
  t.equal(connector.peak, 3)
})

t.test('promise 12: what was begun before evict is stale, also a create', async (t) => {
  const { pool, connector } = fakePool({ max: 3 })
  const lent = await pool.acquire()
  await warm(pool)
  connector.outcomes.create = 'gate'
  // Else the create that evict gives up would end at once.
  connector.honoursSignal = false
  const [a, b] = [watch(pool.acquire()), watch(pool.acquire())]
  pool.evict()
  connector.pass('create')
  await settle()
  t.equal(b.done, false)
  lent.release()
  a.value?.release()
  await settle()
  t.ok(connector.connections.every(({ reason }) => reason === 'stale' || reason === 'released'))
  connector.pass('create')
  await settle()
  t.equal(b.value?.connection.state, 'open')
})

t.test('promise 13: no secret of a url or option appears in any event, error or stat', async (t) => {
  const connector = new FakeConnector()
  const { pool, clock, events } =
    fakePool({ url: 'fake://me:s3cr3t%21@host', connection: { password: 'other-pass' } }, { connector })
  connector.create = () =>
    Promise.reject(Object.assign(new Error('login me:s3cr3t! / s3cr3t%21 / other-pass'),
      { input: 's3cr3t!', options: { password: 'other-pass' } }))
  const waiting = watch(pool.acquire())
  const error = await failure(pool.open())
  await clock.advance(5000)
  const deep = (value: unknown): unknown => value instanceof Error
    ? [value.message, value.stack, deep(value.cause), Object.entries(value)]
    : typeof value === 'object' && value !== null ? Object.values(value).map(deep) : value
  const shown = JSON.stringify([deep(events), deep(error), deep(waiting.error), pool.stats()])
  t.notMatch(shown, /s3cr3t|other-pass/)
  t.match(shown, /login me:\*\*\*/)
})
