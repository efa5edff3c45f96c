import t from 'tap'
import { settle } from '../support/clock.js'
import { fakePool, warm, watch } from '../support/fake-connector.js'

t.test('evict retires idle connections now and lent ones when they are given back', async (t) => {
  const { pool, connector, seen } = fakePool()
  const [lent, idle] = await Promise.all([pool.acquire(), pool.acquire()])
  idle.release()
  pool.evict()
  await settle()
  t.equal(lent.ended, false)
  t.match(pool.stats(), { idle: 0, used: 1, destroyed: { stale: 1 } })
  lent.release()
  await settle()
  t.same(connector.connections.map(({ reason }) => reason), ['stale', 'stale'])
  t.match(seen('disconnect'), [{ id: 2, reason: 'stale' }, { id: 1, reason: 'stale' }])
})

t.test('evict({ idle: true }) lets lent connections live', async (t) => {
  const { pool, connector } = fakePool()
  const [lent, idle] = await Promise.all([pool.acquire(), pool.acquire()])
  idle.release()
  pool.evict({ idle: true })
  lent.release()
  await settle()
  t.same(connector.connections.map(({ state }) => state), ['open', 'destroyed'])
  t.equal(pool.stats().idle, 1)
})

t.test('what was evicted is never lent', async (t) => {
  const { pool, connector } = fakePool({ max: 1 })
  connector.outcomes.destroy = 'gate'
  await warm(pool)
  pool.evict()
  t.equal(pool.tryAcquire(), null)
  const waiting = watch(pool.acquire())
  await settle()
  t.equal(waiting.done, false)
  connector.pass('destroy')
  await settle()
  t.equal(waiting.value?.connection, connector.connections[1])
})

t.test('a connection that was begun before evict is stale when it comes', async (t) => {
  const { pool, connector } = fakePool({ max: 1 })
  connector.outcomes.create = 'gate'
  connector.honoursSignal = false
  const waiting = watch(pool.acquire())
  pool.evict()
  connector.pass('create')
  await settle()
  t.equal(waiting.done, false)
  t.equal(connector.connections[0]?.reason, 'stale')
  connector.pass('create')
  await settle()
  t.equal(waiting.value?.connection, connector.connections[1])
})

t.test('whoever waits for a create that evict made stale has another begun at once, and nobody later has two', async (t) => {
  const { pool, connector } = fakePool({ max: 5 })
  connector.outcomes.create = 'gate'
  connector.honoursSignal = false
  const waiting = watch(pool.acquire())
  pool.evict()
  t.equal(connector.creates, 2)
  connector.pass('create')
  connector.pass('create')
  await settle()
  t.equal(waiting.value?.connection, connector.connections[1])
  watch(pool.acquire())
  t.equal(connector.creates, 3)
})

t.test('a connection that is validated, kept alive, prepared or reset while evict is called is stale when it comes back', async (t) => {
  for (const doing of ['validate', 'keepalive', 'reset', 'health'] as const) {
    const { pool, connector, clock } = fakePool({ validateAfter: 0, keepalive: doing === 'keepalive' ? 1000 : 0 })
    await warm(pool)
    connector.outcomes.reset = connector.outcomes.validate = 'gate'
    if (doing === 'validate') watch(pool.acquire({ timeout: 1 }))
    if (doing === 'keepalive') await clock.advance(1000)
    if (doing === 'health') watch(pool.health())
    if (doing === 'reset') {
      connector.outcomes.validate = 'ok'
      await warm(pool)
    } else {
      await clock.advance(1)
    }
    t.match(pool.stats(), { used: 1, idle: 0 })
    pool.evict()
    connector.pass(doing === 'reset' ? 'reset' : 'validate')
    await settle()
    t.match(pool.stats(), { used: 0, idle: 0, destroyed: { stale: 1 } }, doing)
  }
})

t.test('after evict, min is filled again', async (t) => {
  const { pool, connector } = fakePool({ min: 2 })
  await pool.open()
  pool.evict()
  await settle()
  t.equal(connector.creates, 4)
  t.match(pool.stats(), { idle: 2, destroyed: { stale: 2 } })
})

t.test('a connection that dies while it is idle is evicted at once, and whoever comes gets another', async (t) => {
  const { pool, connector, seen } = fakePool({ url: 'fake://me:hunter22@host' })
  await warm(pool)
  connector.connections[0]?.die(Object.assign(new Error('read hunter22'), { code: 'ECONNRESET' }))
  t.match(pool.stats(), { idle: 0 })
  await settle()
  t.match(seen('error'), [{ phase: 'death', error: { message: 'read ***', code: 'ECONNRESET' } }])
  t.match(seen('disconnect'), [{ id: 1, reason: 'error', error: { message: 'read ***' } }])
  t.equal((await pool.acquire()).connection, connector.connections[1])
})

t.test('a death without an error is no error', async (t) => {
  const { pool, connector, seen } = fakePool({ min: 1 })
  await pool.open()
  connector.connections[0]?.die()
  await settle()
  t.same(seen('error'), [])
  t.match(seen('disconnect'), [{ reason: 'error', error: { message: 'the connection was closed' } }])
  t.match(pool.stats(), { idle: 1 }, 'min is filled again')
})

t.test('a driver may tell of a death as often as it likes, also after the end', async (t) => {
  const { pool, connector } = fakePool({ max: 2 })
  connector.outcomes.destroy = 'gate'
  await warm(pool)
  const [connection] = connector.connections
  connection?.die(new Error('1'))
  connection?.die(new Error('2'))
  connector.pass('destroy')
  await settle()
  connection?.die(new Error('3'))
  await settle()
  t.match(pool.stats(), { closing: 0, idle: 0, destroyed: { error: 1 } })
  t.same(connector.violations, [])
})

t.test('a listener of a death that acquires at once does not get the dead connection', async (t) => {
  const { pool, connector } = fakePool()
  await warm(pool)
  connector.isBroken = () => false
  let lease = null
  pool.on('error', () => {
    lease = pool.tryAcquire()
    connector.connections[0]?.die(new Error('again'))
  })
  connector.connections[0]?.die(new Error('dead'))
  await settle()
  t.equal(lease, null)
  t.match(pool.stats(), { used: 0, destroyed: { error: 1 } })
})

t.test('an idle connection that turns out broken is destroyed when it would be lent', async (t) => {
  const { pool, connector, seen } = fakePool()
  await warm(pool, 3)
  connector.connections[2]!.broken = true
  connector.connections[1]!.broken = true
  const lease = pool.tryAcquire()
  t.equal(lease?.connection, connector.connections[0])
  await settle()
  t.match(seen('disconnect'), [{ id: 3, reason: 'error' }, { id: 2, reason: 'error' }])
  connector.connections[0]!.broken = true
  lease?.release()
  t.equal((await pool.acquire()).connection, connector.connections[3])
})

t.test('broken ones are sorted out for those who wait, too', async (t) => {
  const { pool, connector } = fakePool({ max: 2 })
  await warm(pool, 2)
  pool.suspend()
  const waiting = watch(pool.acquire())
  connector.connections[1]!.broken = true
  pool.resume()
  await settle()
  t.equal(waiting.value?.connection, connector.connections[0])
  t.match(pool.stats(), { destroyed: { error: 1 } })
})

// --- Validation ------------------------------------------------------------------------------------------------------

t.test('a connection that was idle for validateAfter is validated before it is lent, and not before that', async (t) => {
  const { pool, connector, clock } = fakePool({ validateAfter: 1000 })
  let validated = 0
  const { validate } = connector
  connector.validate = (...args) => {
    validated++
    return validate.apply(connector, args)
  }
  await warm(pool)
  await clock.advance(800)
  await warm(pool)
  t.equal(validated, 0)
  await clock.advance(1100)
  await warm(pool)
  t.equal(validated, 1)
  t.equal(connector.creates, 1)
})

t.test('validateAfter 0 validates before every loan of an idle connection, and never a new one', async (t) => {
  const { pool, connector } = fakePool({ validateAfter: 0, max: 1 })
  let validated = 0
  connector.validate = async () => {
    validated++
    return true
  }
  const first = await pool.acquire()
  t.equal(validated, 0)
  const second = watch(pool.acquire())
  first.release()
  await settle()
  t.equal(validated, 0, 'nor one that comes straight from another borrower')
  second.value?.release()
  await warm(pool)
  await warm(pool)
  t.equal(validated, 2)
})

t.test('a connection that fails its validation is destroyed, and whoever waits gets another', async (t) => {
  for (const outcome of ['no', 'error', 'throw', 'hang'] as const) {
    const { pool, connector, clock, seen } = fakePool({ validateAfter: 0, max: 1 })
    await warm(pool)
    connector.outcomes.validate = outcome
    const waiting = watch(pool.acquire())
    const [hung] = connector.calls
    await clock.advance(outcome === 'hang' ? 99 : 0)
    t.equal(waiting.done, outcome !== 'hang')
    await clock.advance(1)
    t.equal(waiting.value?.connection, connector.connections[1], outcome)
    const messages =
      { no: [], error: ['validate failed'], throw: ['validate threw'], hang: ['no answer within 100 ms, and somebody waits'] }[outcome]
    t.same(seen('error').map(({ phase, error }) => [phase, error.message]),
      messages.map((message) => ['validate', message]))
    t.match(seen('disconnect'), [{ id: 1, reason: 'invalid' }])
    t.equal(seen('disconnect')[0]?.error?.message, messages[0])
    if (outcome !== 'hang') continue
    t.equal(hung?.signal?.aborted, true)
    hung?.pass()
    await settle()
    t.match(pool.stats(), { used: 1, idle: 0, destroyed: { invalid: 1 } }, 'its late answer changes nothing')
  }
})

t.test('a late failure of a validation changes nothing', async (t) => {
  const { pool, connector, clock, seen } = fakePool({ validateAfter: 0, max: 1 })
  await warm(pool)
  connector.outcomes.validate = 'hang'
  watch(pool.acquire())
  const [hung] = connector.calls
  await clock.advance(1000)
  hung?.fail()
  await settle()
  t.equal(seen('error').length, 1)
})

t.test('while one connection is validated, a caller may get another that is released, and the validated one is for the next', async (t) => {
  const { pool, connector } = fakePool({ validateAfter: 0, max: 2 })
  const [a, b] = await Promise.all([pool.acquire(), pool.acquire()])
  b.release()
  connector.outcomes.validate = 'gate'
  const first = watch(pool.acquire())
  await settle()
  t.equal(connector.creates, 2)
  const { connection } = a
  a.release()
  await settle()
  t.equal(first.value?.connection, connection)
  connector.pass('validate')
  await settle()
  t.match(pool.stats(), { used: 1, idle: 1 })
})

t.test('as many idle connections are validated as callers wait', async (t) => {
  const { pool, connector } = fakePool({ validateAfter: 0, max: 5 })
  await warm(pool, 3)
  connector.outcomes.validate = 'gate'
  const waiting = [watch(pool.acquire()), watch(pool.acquire())]
  t.equal(connector.calls.length, 2)
  connector.pass('validate')
  connector.pass('validate')
  await settle()
  t.same(waiting.map(({ done }) => done), [true, true])
  t.match(pool.stats(), { idle: 1, used: 2 })
})

t.test('a connection that was validated for a caller who has gone is idle since before', async (t) => {
  const { pool, connector, clock } = fakePool({ validateAfter: 0, idleTimeout: 1000 })
  await warm(pool)
  connector.outcomes.validate = 'gate'
  await clock.advance(500)
  watch(pool.acquire({ timeout: 1 }))
  await clock.advance(100)
  connector.pass('validate')
  await clock.advance(399)
  t.equal(pool.stats().idle, 1)
  await clock.advance(1)
  t.match(pool.stats(), { idle: 0, destroyed: { idle: 1 } })
})

t.test('validate that does not answer with a promise is taken at its word', async (t) => {
  const { pool, connector } = fakePool({ validateAfter: 0, max: 1 })
  await warm(pool)
  connector.validate = () => true as unknown as Promise<boolean>
  t.equal((await pool.acquire()).connection, connector.connections[0])
})

// --- Ends ------------------------------------------------------------------------------------------------------------

t.test('disconnect tells how old the connection was, and how often it was lent', async (t) => {
  const { pool, connector, clock, seen } = fakePool({ validateAfter: 100_000 })
  connector.outcomes.create = 'gate'
  const waiting = watch(pool.acquire())
  await clock.advance(500)
  connector.pass('create')
  await clock.advance(1000)
  waiting.value?.release()
  await warm(pool)
  pool.evict()
  t.match(seen('disconnect'), [{ pool: 'db', id: 1, reason: 'stale', age: 1000, uses: 2 }])
})

t.test('what closes counts until it is gone, and is late past its deadline', async (t) => {
  const { pool, connector, clock, seen } = fakePool({ max: 1, destroyTimeout: 500 })
  await warm(pool)
  connector.outcomes.destroy = 'hang'
  pool.evict()
  const waiting = watch(pool.acquire())
  await clock.advance(499)
  t.match(pool.stats(), { closing: 1, late: 0, creating: 0 })
  connector.outcomes.destroy = 'ok'
  await clock.advance(1)
  t.match(pool.stats(), { closing: 0, late: 1, creating: 0 })
  t.match(seen('error'),
    [{ phase: 'destroy', error: { message: 'a connection was not closed within 500 ms (destroyTimeout)' } }])
  t.equal(waiting.done, false, 'as many late ones as max are enough')
  connector.pass('destroy')
  await settle()
  t.equal(waiting.done, true)
  t.match(pool.stats(), { late: 0, destroyed: { stale: 1 } })
})

t.test('one late destroy blocks nobody where there is room', async (t) => {
  const { pool, connector, clock } = fakePool({ max: 2, destroyTimeout: 500 })
  await warm(pool, 2)
  connector.outcomes.destroy = 'hang'
  const lease = await pool.acquire()
  pool.evict({ idle: true })
  const waiting = watch(pool.acquire())
  await clock.advance(500)
  t.equal(waiting.done, true)
  t.match(pool.stats(), { late: 1, used: 2 })
  lease.release()
})

t.test('destroy may fail in every way: it is reported, and the connection is gone', async (t) => {
  for (const outcome of ['error', 'throw'] as const) {
    const { pool, connector, seen } = fakePool()
    await warm(pool)
    connector.outcomes.destroy = outcome
    pool.evict()
    await settle()
    t.match(pool.stats(), { closing: 0, late: 0, destroyed: { stale: 1 } })
    t.match(seen('error'),
      [{ phase: 'destroy', error: { message: outcome === 'error' ? 'destroy failed' : 'destroy threw' } }])
  }
})

t.test('destroy may be synchronous, answer with a promise of its own kind, twice, or with one that throws', async (t) => {
  const answers: Record<string, () => unknown> = {
    nothing: () => {},
    twice: () => ({
      then (resolve: () => void) {
        resolve()
        resolve()
      },
    }),
    throws: () => ({ then () { throw new Error('no') } }),
    unreadable: () => ({ get then () { throw new Error('no') } }),
  }
  for (const [name, destroy] of Object.entries(answers)) {
    const { pool, connector } = fakePool({ min: 1 })
    await pool.open()
    connector.destroy = destroy as () => Promise<void>
    pool.evict()
    await settle()
    t.match(pool.stats(), { closing: 0, late: 0, idle: 1, destroyed: { stale: 1 } }, name)
  }
})

t.test('a late failure of a destroy is reported', async (t) => {
  const { pool, connector, clock, seen } = fakePool()
  await warm(pool)
  connector.outcomes.destroy = 'hang'
  pool.evict()
  await clock.advance(2000)
  connector.fail('destroy')
  await settle()
  t.same(seen('error').map(({ error }) => error.message),
    ['a connection was not closed within 2000 ms (destroyTimeout)', 'destroy failed'])
  t.equal(pool.stats().late, 0)
})
