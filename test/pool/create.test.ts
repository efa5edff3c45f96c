import t from 'tap'
import { settle, VirtualClock } from '../support/clock.js'
import { failure, FakeConnector, fakePool, watch } from '../support/fake-connector.js'

t.test('nothing is made before somebody acquires or opens, not even for min', async (t) => {
  const { pool, connector, clock } = fakePool({ min: 3 })
  await clock.advance(10_000)
  t.equal(connector.creates, 0)
  t.equal(clock.timers.set, 0)
  await pool.acquire()
  await settle()
  t.equal(connector.creates, 3, 'those in use count')
  t.match(pool.stats(), { used: 1, idle: 2 })
})

t.test('connect says how long a create took', async (t) => {
  const { pool, connector, clock, seen } = fakePool()
  connector.outcomes.create = 'gate'
  watch(pool.acquire())
  await clock.advance(250)
  connector.pass('create')
  await settle()
  t.match(seen('connect'), [{ pool: 'db', id: 1, took: 250 }])
  t.match(pool.stats().create, { count: 1, max: 250 })
})

t.test('failing creates are tried again ever more rarely, by chance, and not more often than backoff.max', async (t) => {
  const { pool, connector, clock, seen } = fakePool({
    acquireTimeout: 100_000, connectTimeout: 1000, backoff: { min: 100, max: 2000 },
  })
  const at: number[] = []
  connector.create = async () => {
    at.push(clock.now())
    throw new Error('refused')
  }
  const waiting = watch(pool.acquire())
  await clock.advance(99_999)
  const pauses = at.slice(1).map((time, index) => time - at[index]!)
  t.ok(at.length > 50 && at.length < 200, `${at.length} attempts in 100 s`)
  t.ok(pauses.every((pause, index) => pause >= 1 && pause <= Math.min(2000, 100 * 2 ** index) + 1), pauses.join(' '))
  t.ok(Math.max(...pauses) > 1800 && Math.min(...pauses.slice(10)) < 500, 'full jitter')
  t.equal(pool.stats().createErrors, at.length)
  t.equal(seen('error').length, at.length)
  t.equal(waiting.done, false)
})

t.test('a create that works ends the backing off', async (t) => {
  const { pool, connector, clock } = fakePool({ max: 2, backoff: { min: 100, max: 1000 } })
  connector.outcomes.create = 'error'
  const first = watch(pool.acquire())
  await clock.advance(2000)
  connector.outcomes.create = 'ok'
  await clock.advance(1000)
  t.equal(first.done, true)
  const before = connector.creates
  const second = watch(pool.acquire())
  await settle()
  t.equal(connector.creates, before + 1)
  t.equal(second.done, true)
})

t.test('creates that fail together are one failure', async (t) => {
  const clock = new VirtualClock()
  // Always the longest pause.
  clock.random = () => 0.999
  const { pool, connector } =
    fakePool({ max: 5, backoff: { min: 100, max: 100_000 }, acquireTimeout: 50_000 }, { clock })
  connector.outcomes.create = 'gate'
  for (let i = 0; i < 5; i++) watch(pool.acquire())
  t.equal(connector.creates, 5)
  for (let i = 0; i < 5; i++) {
    connector.fail('create')
    await clock.advance(10)
  }
  t.equal(connector.creates, 5)
  await clock.advance(60)
  t.equal(connector.creates, 6, '100 ms after the first of them')
})

t.test('while creates fail, a hung one does not hold up the next try', async (t) => {
  const { pool, connector, clock } = fakePool({ max: 5, connectTimeout: 3000 })
  connector.outcomes.create = 'error'
  const first = watch(pool.acquire())
  const second = watch(pool.acquire())
  await settle()
  connector.outcomes.create = 'hang'
  while (connector.calls.length === 0) await clock.advance(1)
  connector.outcomes.create = 'ok'
  await clock.advance(500)
  t.same([first.done, second.done], [true, false])
  first.value?.release()
  await settle()
  t.equal(second.done, true)
})

t.test('a connection that dies while it is made is a failed create, not the start of a hot loop', async (t) => {
  const inside = new FakeConnector()
  inside.onDeath = (_, listener) => {
    listener(new Error('bye'))
    listener()
  }
  const broken = new FakeConnector()
  broken.isBroken = () => true
  for (const [connector, message] of [[inside, 'bye'], [broken, 'the connection was dead at once']] as const) {
    const { pool, clock, seen } = fakePool({ backoff: { min: 100, max: 100 } }, { connector })
    connector.outcomes.destroy = 'sync'
    const waiting = watch(pool.acquire())
    await clock.advance(5000)
    t.match(waiting.error, { code: 'FST_POOL_CONNECT_FAILED', cause: { message } })
    t.ok(connector.creates > 10 && connector.creates < 300, `${connector.creates} creates in 5 s`)
    t.match(pool.stats(), { created: 0, createErrors: connector.creates, destroyed: { error: connector.creates } })
    t.match(seen('disconnect')[0], { reason: 'error', error: { message } })
    t.ok(seen('error').some(({ phase }) => phase === 'create'))
    t.equal(connector.live, 0)
  }
})

t.test('a create has a deadline; past it, it is late, and no longer in the way', async (t) => {
  const { pool, connector, clock, seen } = fakePool({ max: 1, connectTimeout: 1000, backoff: { min: 1, max: 1 } })
  connector.outcomes.create = 'hang'
  const waiting = watch(pool.acquire())
  const [hung] = connector.calls
  await clock.advance(999)
  t.match(pool.stats(), { creating: 1, late: 0 })
  await clock.advance(1)
  t.match(pool.stats(), { creating: 0, late: 1, createErrors: 1, pending: 1 })
  t.equal(hung?.signal?.aborted, true, 'its signal tells it')
  t.match(hung?.signal?.reason, { message: 'no connection within 1000 ms (connectTimeout)' })
  t.match(seen('error'), [{ phase: 'create', error: { message: 'no connection within 1000 ms (connectTimeout)' } }])
  connector.outcomes.create = 'ok'
  await clock.advance(3000)
  t.equal(connector.creates, 1, 'but as many late ones as max are enough')
  t.equal(waiting.done, false)
  hung?.fail()
  await clock.advance(10)
  t.equal(waiting.done, true, 'the next one begins when it comes back')
  t.match(pool.stats(), { late: 0, used: 1, createErrors: 1 })
})

t.test('what a late create delivers is destroyed, and told to nobody', async (t) => {
  const { pool, connector, clock, seen } = fakePool({ max: 2, connectTimeout: 1000 })
  connector.outcomes.create = 'hang'
  watch(pool.acquire({ timeout: 1500 }))
  await clock.advance(1000)
  connector.outcomes.create = 'ok'
  await clock.advance(1000)
  t.match(pool.stats(), { late: 1, used: 1 })
  connector.pass('create')
  await settle()
  t.match(pool.stats(), { late: 0, used: 1, destroyed: { released: 1 } })
  t.equal(connector.live, 1)
  t.equal(seen('connect').length, 1)
  t.equal(seen('disconnect').length, 0)
})

t.test('one hung connect blocks nobody else', async (t) => {
  const { pool, connector } = fakePool({ max: 2 })
  connector.outcomes.create = 'hang'
  const first = watch(pool.acquire())
  connector.outcomes.create = 'ok'
  const second = watch(pool.acquire())
  await settle()
  t.same([first.done, second.done], [true, false], 'the first in line has the connection that works')
  first.value?.release()
  await settle()
  t.equal(second.done, true)
})

t.test('a create that throws has failed', async (t) => {
  const { pool, connector, clock, seen } = fakePool()
  connector.outcomes.create = 'throw'
  const waiting = watch(pool.acquire())
  await settle()
  t.match(seen('error'), [{ phase: 'create', error: { message: 'create threw' } }])
  connector.outcomes.create = 'ok'
  await clock.advance(50)
  t.equal(waiting.done, true)
})

t.test('a create may reject with anything', async (t) => {
  for (const thrown of [
    undefined, null, 'text', 7, Symbol('s'), {}, Object.create(null) as unknown, Object.freeze(new Error('frozen')),
  ]) {
    const { pool, connector, clock, seen } = fakePool()
    connector.create = () => Promise.reject(thrown)
    const waiting = watch(pool.acquire())
    await clock.advance(5000)
    t.equal(waiting.error?.code, 'FST_POOL_CONNECT_FAILED')
    t.ok(seen('error')[0]?.error instanceof Error)
  }
})

t.test('a create may answer without a promise, or with a promise of its own kind that answers twice', async (t) => {
  const { pool, connector } = fakePool({ max: 2 })
  const make = connector.create.bind(connector)
  const connection = await make(new AbortController().signal)
  connector.create = () => connection as unknown as Promise<typeof connection>
  t.equal((await pool.acquire()).connection, connection)
  const other = await make(new AbortController().signal)
  connector.create = () => ({
    then (resolve: (made: unknown) => void) {
      resolve(other)
      resolve(connection)
    },
  }) as unknown as Promise<typeof connection>
  t.equal((await pool.acquire()).connection, other)
  t.match(pool.stats(), { used: 2, created: 2 })
})

t.test('onDeath that throws makes it a failed create, and the connection is destroyed', async (t) => {
  const { pool, connector, clock, seen } = fakePool()
  connector.onDeath = () => { throw new Error('no events') }
  const waiting = watch(pool.acquire())
  await clock.advance(5000)
  t.match(waiting.error, { code: 'FST_POOL_CONNECT_FAILED', cause: { message: 'no events' } })
  t.equal(connector.live, 0)
  t.match(seen('disconnect')[0], { id: 1, reason: 'error', error: { message: 'no events' } })
})

t.test('onConnect runs before the first loan, and knows the connection', async (t) => {
  const seen: unknown[] = []
  const { pool, connector } = fakePool({
    name: 'shop', onConnect: async (connection, info) => { seen.push(connection, info) },
  })
  await pool.acquire({ holder: 'me' })
  t.same(seen, [connector.connections[0], { pool: 'shop', id: 1, uses: 0 }])
})

t.test('onConnect that fails makes it a failed create', async (t) => {
  for (const onConnect of [() => { throw new Error('no') }, () => Promise.reject(new Error('no'))]) {
    const { pool, connector, clock, seen } = fakePool({ onConnect })
    const waiting = watch(pool.acquire())
    await clock.advance(5000)
    t.match(waiting.error, { code: 'FST_POOL_CONNECT_FAILED', cause: { message: 'no' } })
    t.match(seen('error')[0], { phase: 'onConnect', error: { message: 'no' } })
    t.notOk(seen('error').some(({ phase }) => phase === 'create'), 'it is reported once')
    t.equal(connector.live, 0)
    t.match(pool.stats(), { created: 0, createErrors: connector.creates, destroyed: { error: connector.creates } })
  }
})

t.test('a create that gives up at its deadline may say what it was waiting for', async (t) => {
  const { pool, connector, clock, seen } = fakePool({
    max: 1, connectTimeout: 1000, acquireTimeout: 1500, backoff: { min: 1000, max: 1000 },
  })
  connector.create = (signal) => new Promise((_resolve, reject) => {
    signal.addEventListener('abort', () => { reject(new Error('ECONNREFUSED with ***', { cause: signal.reason })) })
  })
  const waiting = watch(pool.acquire())
  await clock.advance(1000)
  const told = { message: 'no connection within 1000 ms (connectTimeout)', cause: { message: 'ECONNREFUSED with ***' } }
  t.match(seen('error'), [{ phase: 'create', error: told }])
  t.equal(seen('error').length, 1)
  t.match(pool.stats(), { createErrors: 1, late: 0 })
  await clock.advance(500)
  t.match(waiting.error, { code: 'FST_POOL_CONNECT_FAILED', cause: told })
})

t.test('onConnect that hangs is bounded by connectTimeout', async (t) => {
  let answer = (_: Error) => {}
  const { pool, connector, clock, seen } = fakePool({
    connectTimeout: 1000, max: 1, onConnect: () => new Promise((_resolve, reject) => { answer = reject }),
  })
  watch(pool.acquire())
  await clock.advance(1000)
  t.match(pool.stats(), { creating: 0, late: 0, createErrors: 1, destroyed: { error: 1 } })
  t.match(seen('disconnect'),
    [{ reason: 'error', error: { message: 'no connection within 1000 ms (connectTimeout)' } }])
  t.equal(connector.connections[0]?.state, 'destroyed')
  answer(new Error('late'))
  await settle()
  t.match(pool.stats(), { createErrors: 1, destroyed: { error: 1 } }, 'its late answer changes nothing')
  t.same(connector.violations, [])
})

t.test('no more than maxConnecting connections are made at the same time', async (t) => {
  const { pool, connector } = fakePool({ max: 10, maxConnecting: 2 })
  connector.outcomes.create = 'gate'
  const all = Array.from({ length: 5 }, () => watch(pool.acquire()))
  t.equal(connector.creates, 2)
  connector.pass('create')
  await settle()
  t.equal(connector.creates, 3)
  connector.fail('create')
  await settle()
  t.equal(connector.creates, 3, 'it backs off')
  t.equal(all.filter(({ done }) => done).length, 1)
})

t.test('a create that nobody needs any more is not followed by another', async (t) => {
  const { pool, connector, clock } = fakePool({ backoff: { min: 1, max: 1 } })
  connector.outcomes.create = 'gate'
  watch(pool.acquire({ timeout: 10 }))
  await clock.advance(10)
  connector.fail('create')
  await clock.advance(10_000)
  t.equal(connector.creates, 1)
})

t.test('min is filled with creates of the pool\'s own, and never beyond max', async (t) => {
  const { pool, connector } = fakePool({ min: 2, max: 2 })
  connector.outcomes.create = 'gate'
  const opening = watch(pool.open())
  const waiting = [watch(pool.acquire()), watch(pool.acquire()), watch(pool.acquire())]
  t.equal(connector.creates, 2)
  connector.pass('create')
  connector.pass('create')
  await settle()
  t.equal(opening.done, true)
  t.same(waiting.map(({ done }) => done), [true, true, false])
  t.equal(connector.peak, 2)
})

t.test('filling up to min blocks no caller', async (t) => {
  const { pool, connector } = fakePool({ min: 3, max: 5 })
  await pool.open()
  const lease = await pool.acquire()
  connector.outcomes.create = 'hang'
  lease.destroy()
  await settle()
  t.equal(pool.stats().creating, 1)
  t.not(pool.tryAcquire(), null)
})

t.test('a failed filling up to min is tried again', async (t) => {
  const { pool, connector, clock } = fakePool({ min: 2 })
  await pool.open()
  connector.outcomes.create = 'error'
  pool.evict()
  await clock.advance(3000)
  t.ok(connector.creates > 4)
  t.match(pool.stats(), { idle: 0, creating: 0 })
  connector.outcomes.create = 'ok'
  await clock.advance(1100)
  t.match(pool.stats(), { idle: 2 })
})

t.test('what a driver answers on its signal is reported, and nothing else comes of it', async (t) => {
  const { pool, connector, clock } = fakePool({ connectTimeout: 100, backoff: { min: 1, max: 1 } })
  connector.outcomes.create = 'gate'
  const waiting = watch(pool.acquire({ timeout: 1000 }))
  await clock.advance(100)
  t.match(pool.stats(), { late: 0, createErrors: 1 }, 'it honoured the signal')
  connector.outcomes.create = 'ok'
  await clock.advance(10)
  t.equal(waiting.done, true)
})

t.test('open waits for one connection at least, and for min of them', async (t) => {
  for (const min of [0, 1, 3]) {
    const { pool, connector, seen } = fakePool({ min })
    connector.outcomes.create = 'gate'
    const opening = watch(pool.open())
    for (let i = 0; i < Math.max(1, min); i++) {
      t.equal(opening.done, false)
      connector.pass('create')
      await settle()
    }
    t.equal(opening.done, true)
    t.match(seen('open'), [{ pool: 'db' }])
    t.equal(connector.creates, Math.max(1, min))
    await pool.open()
    t.equal(connector.creates, Math.max(1, min), 'and is done at once where they are there')
  }
})

t.test('open fails as soon as one can\'t be made, saying why', async (t) => {
  const { pool, connector } = fakePool({ min: 3, name: 'shop', url: 'fake://me:hunter22@host' })
  connector.outcomes.create = 'gate'
  const opening = failure(pool.open())
  connector.fail('create', new Error('refused hunter22'))
  const error = await opening
  t.match(error, { code: 'FST_POOL_CONNECT_FAILED', statusCode: 503, cause: { message: 'refused ***' } })
  t.match(error.message, "pool 'shop' can't connect")
  t.notMatch(error.message, /hunter22/)
})

t.test('open fails at once while as many creates as max are late', async (t) => {
  const { pool, connector, clock } = fakePool({ max: 1, connectTimeout: 100 })
  connector.outcomes.create = 'hang'
  const first = watch(pool.open())
  await clock.advance(100)
  t.equal(first.error?.code, 'FST_POOL_CONNECT_FAILED')
  t.equal((await failure(pool.open())).code, 'FST_POOL_CONNECT_FAILED')
  connector.outcomes.create = 'ok'
  connector.pass('create')
  await clock.advance(100)
  await pool.open()
  t.equal(pool.stats().idle, 1)
})

t.test('a thousand failed creates leave nothing behind', async (t) => {
  const { pool, connector, clock } = fakePool({ min: 1, backoff: { min: 1, max: 1 } }, { listen: [] })
  connector.outcomes.create = 'error'
  watch(pool.open())
  for (let i = 0; i < 20; i++) await clock.advance(100)
  t.ok(connector.creates >= 1000, `${connector.creates}`)
  t.match(pool.stats(), { creating: 0, closing: 0, late: 0, createErrors: connector.creates })
  t.equal(clock.timers.set, 1)
})
