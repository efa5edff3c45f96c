import v8 from 'node:v8'
import vm from 'node:vm'
import t from 'tap'
import { abandon } from '../../lib/pool/pool.js'
import type { FakeConnection } from '../support/fake-connector.js'
import { settle } from '../support/clock.js'
import { FakeConnector, failure, fakePool, warm, watch } from '../support/fake-connector.js'
import { until } from '../support/until.js'

t.test('a lease that is released twice is released once', async (t) => {
  const { pool, seen } = fakePool({ max: 1 })
  const lease = await pool.acquire()
  lease.release()
  lease.release()
  t.match(pool.stats(), { released: 1, idle: 1 })
  t.equal(seen('release').length, 1)
})

t.test('a lease that has ended can touch nobody\'s connection', async (t) => {
  const { pool, connector } = fakePool({ max: 1 })
  const first = await pool.acquire()
  first.release()
  const second = await pool.acquire()
  const third = watch(pool.acquire())
  first.release()
  first.destroy()
  first.destroy(new Error('no'))
  first[Symbol.dispose]()
  await settle()
  t.equal(third.done, false)
  t.equal(second.ended, false)
  t.equal(connector.connections[0]?.state, 'open')
  t.throws(() => first.connection, {
    code: 'FST_POOL_LEASE_RELEASED',
    message: "the lease on pool 'db' has ended: acquire again, and do not keep the connection beyond the request",
    statusCode: undefined,
  })
  t.equal(first.ended, true)
  t.equal(first.pool, 'db')
})

t.test('using gives the connection back at the end of the block', async (t) => {
  const { pool } = fakePool()
  await warm(pool)
  {
    using lease = pool.tryAcquire()!
    t.equal(lease.ended, false)
    t.equal(pool.stats().used, 1)
  }
  t.match(pool.stats(), { used: 0, idle: 1 })
})

t.test('heldFor counts while the lease is out, and stands still afterwards', async (t) => {
  const { pool, clock } = fakePool({ leakAfter: 300_000 })
  const lease = await pool.acquire()
  t.equal(lease.heldFor, 0)
  await clock.advance(1500)
  t.equal(lease.heldFor, 1500)
  lease.release()
  await clock.advance(1000)
  t.equal(lease.heldFor, 1500)
  const destroyed = await pool.acquire()
  await clock.advance(10)
  destroyed.destroy()
  await clock.advance(10)
  t.equal(destroyed.heldFor, 10)
  const closed = await pool.acquire()
  await clock.advance(10)
  const closing = pool.close({ timeout: 4 })
  await clock.advance(100)
  await closing
  t.equal(closed.heldFor, 13, 'also where the pool ended it')
})

t.test('heldFor is coarse when many leases are taken at once, and still right in the long run', async (t) => {
  const { pool, clock } = fakePool({ max: 1 }, { listen: [] })
  for (let i = 0; i < 100; i++) await warm(pool)
  const lease = pool.tryAcquire()
  await clock.advance(60_000)
  const held = lease?.heldFor ?? 0
  t.ok(held >= 60_000 && held <= 60_100, `${held}`)
  // The 64 that were timed stand for all, and one is out.
  t.equal(pool.stats().held.count, 101)
})

t.test('destroy ends the connection, and says why', async (t) => {
  const { pool, connector, seen } = fakePool({ url: 'fake://me:hunter22@host' })
  const [a, b, c] = await Promise.all([pool.acquire(), pool.acquire(), pool.acquire()])
  a.destroy()
  b.destroy(new Error('bad: hunter22'))
  abandon(c)
  abandon(c)
  await settle()
  t.same(connector.connections.map(({ reason }) => reason), ['released', 'error', 'aborted'])
  t.same([a.ended, b.ended, c.ended], [true, true, true])
  t.match(pool.stats(), { released: 3, used: 0, idle: 0, closing: 0, destroyed: { released: 1, error: 1, aborted: 1 } })
  t.match(seen('disconnect'),
    [{ id: 1, reason: 'released' }, { id: 2, reason: 'error', error: { message: 'bad: ***' } }, { id: 3, reason: 'aborted' }])
  t.notOk('error' in seen('disconnect')[0]!)
})

t.test('only leases of a pool can be abandoned', (t) => {
  let ended = 0
  abandon({
    connection: 1,
    raw: 1,
    pool: 'db',
    holder: undefined,
    ended: false,
    heldFor: 0,
    release () { ended++ },
    destroy () { ended++ },
    transaction: async () => { throw new Error('none') },
    [Symbol.dispose] () { ended++ },
  })
  t.equal(ended, 0)
  t.end()
})

t.test('whoever waits gets a new connection for one that was destroyed', async (t) => {
  const { pool, connector } = fakePool({ max: 1 })
  connector.outcomes.destroy = 'gate'
  const lease = await pool.acquire()
  const waiting = watch(pool.acquire())
  lease.destroy()
  await settle()
  t.equal(connector.creates, 1, 'max is hard: what closes still counts')
  connector.pass('destroy')
  await settle()
  t.equal(waiting.value?.connection, connector.connections[1])
})

t.test('a connection that comes back broken is destroyed', async (t) => {
  const { pool, connector } = fakePool()
  const lease = await pool.acquire()
  connector.connections[0]!.broken = true
  lease.release()
  await settle()
  t.match(pool.stats(), { idle: 0, destroyed: { error: 1 } })
})

t.test('a connection that died while it was lent is destroyed when it comes back, and the death is reported once', async (t) => {
  const { pool, connector, seen } = fakePool()
  const lease = await pool.acquire()
  connector.connections[0]!.die(new Error('reset by peer'))
  connector.connections[0]!.die(new Error('reset by peer'))
  connector.connections[0]!.broken = false
  t.equal(lease.ended, false, 'its borrower finds out by itself')
  t.match(seen('error'), [{ phase: 'death', error: { message: 'reset by peer' } }])
  lease.release()
  await settle()
  t.match(seen('disconnect'), [{ reason: 'error', error: { message: 'reset by peer' } }])
  connector.connections[0]!.die(new Error('again'))
  t.equal(seen('error').length, 1, 'what it says after its end is nobody\'s business')
})

t.test('isBroken that throws means broken', async (t) => {
  const { pool, connector, seen } = fakePool()
  const lease = await pool.acquire()
  connector.brokenThrows = true
  lease.release()
  await settle()
  t.match(seen('error'), [{ phase: 'isBroken', error: { message: 'isBroken threw' } }])
  t.match(pool.stats(), { idle: 0, destroyed: { error: 1 } })
})

t.test('a reset without a round trip makes the connection idle at once', async (t) => {
  const { pool } = fakePool()
  const lease = await pool.acquire()
  lease.release()
  t.equal(pool.stats().idle, 1)
})

t.test('while a reset is under way the connection counts as used, and nobody gets it', async (t) => {
  const { pool, connector } = fakePool({ max: 1 })
  connector.outcomes.reset = 'gate'
  const lease = await pool.acquire()
  const waiting = watch(pool.acquire())
  lease.release()
  await settle()
  t.match(pool.stats(), { used: 1, idle: 0, released: 1 })
  t.same(pool.holders(), [], 'but nobody holds it')
  t.equal(waiting.done, false)
  connector.pass('reset')
  await settle()
  t.equal(waiting.value?.connection, connector.connections[0])
})

t.test('a reset that fails, throws or hangs destroys the connection and is reported', async (t) => {
  for (const outcome of ['error', 'throw', 'hang'] as const) {
    const { pool, connector, clock, seen } = fakePool({ max: 1, url: 'fake://me:threw@host' })
    const lease = await pool.acquire()
    const waiting = watch(pool.acquire())
    connector.outcomes.reset = outcome
    lease.release()
    const [call] = connector.calls
    connector.outcomes.reset = 'sync'
    await clock.advance(outcome === 'hang' ? 999 : 0)
    t.equal(waiting.done, outcome !== 'hang')
    await clock.advance(1)
    t.equal(waiting.value?.connection, connector.connections[1], outcome)
    const [event] = seen('error')
    t.match(event,
      { phase: 'reset', error: { code: 'FST_POOL_RESET_FAILED', message: "the reset of a connection of pool 'db' failed; the connection was destroyed" } })
    const cause = {
      error: 'reset failed', throw: 'reset ***', hang: 'not clean within 1000 ms (resetTimeout)',
    }[outcome]
    t.match(event?.error.cause, { message: cause })
    t.match(seen('disconnect'), [{ id: 1, reason: 'error', error: { code: 'FST_POOL_RESET_FAILED' } }])
    if (outcome !== 'hang') continue
    t.equal(call?.signal?.aborted, true, 'it is told')
    call?.pass()
    await settle()
    t.match(pool.stats(), { used: 1, idle: 0 }, 'its late answer changes nothing')
    t.same(connector.violations, [])
  }
})

t.test('a reset that answers with a promise of its own kind is waited for, and may answer twice', async (t) => {
  const { pool, connector } = fakePool({ max: 1 })
  let answer = () => {}
  connector.reset = () => ({ then: (resolve: () => void) => { answer = resolve } }) as unknown as Promise<void>
  const lease = await pool.acquire()
  lease.release()
  await settle()
  t.equal(pool.stats().used, 1)
  answer()
  const second = await pool.acquire()
  const third = watch(pool.acquire())
  answer()
  await settle()
  t.equal(third.done, false)
  t.equal(second.ended, false)
})

t.test('a reset that answers with anything else is done', async (t) => {
  for (const answer of [true, null, 0, 'ok', {}, { then: true }]) {
    const { pool, connector } = fakePool()
    connector.reset = () => answer as unknown as undefined
    const lease = await pool.acquire()
    lease.release()
    t.equal(pool.stats().idle, 1)
  }
})

t.test('a reset whose answer can\'t be read has failed', async (t) => {
  const { pool, connector, seen } = fakePool()
  connector.reset = () => ({ get then () { throw new Error('unreadable') } }) as unknown as undefined
  const lease = await pool.acquire()
  lease.release()
  await settle()
  t.match(seen('error')[0]?.error.cause, { message: 'unreadable' })
  t.equal(pool.stats().idle, 0)
})

t.test("reset 'none' never calls reset; the other modes do", async (t) => {
  for (const reset of ['none', 'transaction', 'session'] as const) {
    const { pool, connector } = fakePool({ reset })
    let resets = 0
    connector.reset = () => {
      resets++
      return undefined
    }
    await warm(pool)
    t.equal(resets, reset === 'none' ? 0 : 1)
  }
})

t.test('after a session reset onConnect runs again before the next loan; after others it does not', async (t) => {
  for (const reset of ['session', 'transaction'] as const) {
    const log: string[] = []
    const { pool, connector } = fakePool({
      reset, max: 1, onConnect: async (_, { uses }) => { log.push(`onConnect ${uses}`) },
    })
    connector.reset = async () => { log.push('reset') }
    const lease = await pool.acquire()
    lease.release()
    await pool.acquire().then(() => log.push('lent'))
    t.same(log,
      reset === 'session' ? ['onConnect 0', 'reset', 'onConnect 1', 'lent'] : ['onConnect 0', 'reset', 'lent'])
  }
})

t.test('onConnect does not run again where nothing had to be reset', async (t) => {
  let connects = 0
  const { pool } = fakePool({ onConnect: () => { connects++ } })
  await warm(pool)
  await warm(pool)
  t.equal(connects, 1)
})

t.test('onConnect that fails after a reset destroys the connection, and is reported once', async (t) => {
  let connects = 0
  const { pool, connector, seen } = fakePool({ onConnect: () => { if (++connects === 2) throw new Error('no') } })
  connector.outcomes.reset = 'ok'
  await warm(pool)
  await settle()
  t.match(seen('error'), [{ phase: 'onConnect', error: { message: 'no' } }])
  t.match(seen('disconnect'), [{ reason: 'error', error: { message: 'no' } }])
})

t.test('onConnect that hangs after a reset is bounded by resetTimeout', async (t) => {
  let connects = 0
  const { pool, connector, clock } = fakePool({ onConnect: () => ++connects === 2 ? new Promise(() => {}) : undefined })
  connector.outcomes.reset = 'ok'
  await warm(pool)
  await clock.advance(999)
  t.equal(pool.stats().used, 1)
  await clock.advance(1)
  t.match(pool.stats(), { used: 0, destroyed: { error: 1 } })
})

t.test('onConnect does not run on a connection whose reset was too late', async (t) => {
  let connects = 0
  const { pool, connector, clock } = fakePool({ onConnect: () => { connects++ } })
  connector.outcomes.reset = 'hang'
  await warm(pool)
  const [reset] = connector.calls
  await clock.advance(1000)
  reset?.pass()
  await settle()
  t.equal(connects, 1)
})

t.test('each operation has a signal of its own', async (t) => {
  const { pool, connector, clock } = fakePool({ validateAfter: 0 })
  const signals = new Set<AbortSignal>()
  connector.reset = async (_, signal) => { signals.add(signal) }
  connector.validate = async (_, signal) => {
    signals.add(signal)
    return true
  }
  await warm(pool)
  await clock.advance(10)
  await warm(pool)
  await settle()
  t.equal(signals.size, 3)
})

t.test('a connection that was lent maxUses times is closed', async (t) => {
  const { pool, connector } = fakePool({ maxUses: 2 })
  await warm(pool)
  await warm(pool)
  await settle()
  t.equal(connector.connections[0]?.reason, 'uses')
  t.match(pool.stats(), { idle: 0, destroyed: { uses: 1 } })
})

t.test('a connector without reset, isBroken, validate and onDeath is enough', async (t) => {
  const bare =
    Object.assign(new FakeConnector(),
      { reset: undefined, isBroken: undefined, validate: undefined, onDeath: undefined })
  const { pool, connector, clock } = fakePool({ validateAfter: 0, keepalive: 10 }, { connector: bare })
  await warm(pool)
  await clock.advance(1000)
  t.equal(pool.tryAcquire()?.connection, connector.connections[0])
})

// --- Leaks -----------------------------------------------------------------------------------------------------------

t.test('a lease that is out for longer than leakAfter is reported once, and once more when it comes back', async (t) => {
  const { pool, clock, seen } = fakePool({ leakAfter: 1000 })
  const lease = await pool.acquire({ holder: 'me' })
  await clock.advance(999)
  t.same(seen('leak'), [])
  await clock.advance(1)
  t.match(seen('leak'), [{ id: 1, held: 1000, holder: 'me' }])
  t.notOk('stack' in seen('leak')[0]!, 'stacks are not taken before something has leaked')
  await clock.advance(10_000)
  t.equal(seen('leak').length, 1)
  t.equal(lease.ended, false, 'it is only reported')
  lease.release()
  t.match(seen('unleak'), [{ id: 1, held: 11_000, holder: 'me' }])
  t.match(pool.stats(), { leaked: 1, idle: 1 })
})

t.test('after the first leak, leaks come with the stack of their acquire', async (t) => {
  const { pool, clock, seen } = fakePool({ leakAfter: 1000 })
  await pool.acquire()
  await clock.advance(1000)
  await (async function culprit () { await pool.acquire() })()
  pool.tryAcquire()
  await clock.advance(1000)
  t.match(seen('leak')[1]?.stack, /acquired/)
  t.equal(pool.stats().leaked, 2)
})

t.test('a lease that is given back in time is no leak', async (t) => {
  const { pool, clock, seen } = fakePool({ leakAfter: 1000 })
  const lease = await pool.acquire()
  await clock.advance(999)
  lease.release()
  await clock.advance(5000)
  t.same([...seen('leak'), ...seen('unleak')], [])
})

t.test('a leak is found while nobody listens, and while the pool does nothing else', async (t) => {
  const { pool, clock } = fakePool({ leakAfter: 60_000, max: 1 }, { listen: [] })
  const lease = await pool.acquire()
  await clock.advance(60_000)
  t.equal(pool.stats().leaked, 1)
  lease.release()
  t.equal(pool.stats().idle, 1)
})

t.test('without leakAfter nothing is watched', async (t) => {
  const { pool, clock, seen } = fakePool()
  await pool.acquire()
  await clock.advance(10_000_000)
  t.same(seen('leak'), [])
})

v8.setFlagsFromString('--expose-gc')
const collect = vm.runInNewContext('gc') as () => void

t.test('a leaked lease that nobody can release any more is destroyed, whichever is noticed first', async (t) => {
  for (const first of ['leak', 'garbage']) {
    const { pool, connector, clock, seen } = fakePool({ leakAfter: 1000, max: 1 })
    await forget(pool.acquire())
    const waiting = watch(pool.acquire({ timeout: 60_000 }))
    if (first === 'leak') await clock.advance(1000)
    // Other garbage tells that the collector's callbacks have run.
    let collected = false
    const other = new FinalizationRegistry(() => { collected = true })
    other.register({}, undefined)
    await until(() => {
      collect()
      return collected && (first === 'garbage' || seen('disconnect').length > 0)
    })
    t.equal(seen('leak').length, first === 'leak' ? 1 : 0)
    if (first === 'garbage') await clock.advance(1000)
    t.match(seen('disconnect'), [{ id: 1, reason: 'leaked' }])
    t.match(seen('unleak'), [{ id: 1, taken: 'leaked' }])
    await settle()
    t.equal(waiting.value?.connection, connector.connections[1])
    t.match(pool.stats(), { leaked: 1, released: 1, destroyed: { leaked: 1 } })
  }
})

t.test('a lease that was released is not taken for lost when it is collected', async (t) => {
  const { pool, clock, seen } = fakePool({ leakAfter: 1000, max: 1 })
  await (async () => { (await pool.acquire()).release() })()
  const held = await pool.acquire()
  let collected = false
  const other = new FinalizationRegistry(() => { collected = true })
  other.register({}, undefined)
  await until(() => {
    collect()
    return collected
  })
  await clock.advance(2000)
  t.equal(held.ended, false)
  t.equal(seen('leak').length, 1)
})

/** Lets go of a lease without giving it back. */
async function forget (acquired: Promise<{ readonly connection: FakeConnection }>): Promise<void> {
  t.equal((await acquired).connection.state, 'open')
}

t.test('what a borrower throws at its connection is not the pool\'s', async (t) => {
  const { pool } = fakePool()
  t.match(await failure(pool.use(() => { throw new TypeError('mine') })), { message: 'mine' })
  t.equal(pool.stats().idle, 1)
})
