import { AsyncLocalStorage } from 'node:async_hooks'
import { once } from 'node:events'
import t from 'tap'
import type { ConnectorError, DriverEvent } from '../../types/connector.js'
import type { PoolEventName, PoolEvents } from '../../types/pool.js'
import { settle, VirtualClock } from '../support/clock.js'
import type { FakeConnection } from '../support/fake-connector.js'
import { failure, FakeConnector, fakePool, warm, watch } from '../support/fake-connector.js'

// --- onAcquire -------------------------------------------------------------------------------------------------------

t.test('a synchronous onAcquire keeps tryAcquire synchronous, and knows the loan', async (t) => {
  const infos: unknown[] = []
  const { pool, connector } = fakePool({
    name: 'shop', onAcquire: (connection, info) => { infos.push(connection, info) },
  })
  const first = await pool.acquire({ holder: 'first' })
  first.release()
  const lease = pool.tryAcquire({ holder: { route: 'GET /', id: '1' } })
  const [connection] = connector.connections
  t.equal(lease?.connection, connection)
  t.same(infos, [
    connection, { pool: 'shop', id: 1, uses: 1, holder: 'first' },
    connection, { pool: 'shop', id: 1, uses: 2, holder: { route: 'GET /', id: '1' } },
  ])
})

t.test('an asynchronous onAcquire goes the way that can wait, and comes before the loan', async (t) => {
  for (const kind of ['an async function', 'a function that returns a promise']) {
    let prepared = 0
    const onAcquire = kind === 'an async function'
      ? async () => { prepared++ }
      : () => Promise.resolve().then(() => { prepared++ })
    const { pool, seen } = fakePool({ max: 1, onAcquire })
    await warm(pool)
    t.equal(prepared, 1)
    t.equal(pool.tryAcquire(), null, kind)
    const lease = await pool.acquire({ holder: 'me' })
    t.equal(prepared, 2)
    t.match(seen('acquire').at(-1), { holder: 'me' })
    t.equal(seen('wait').length, 1, 'only the one who waited for a create waited')
    lease.release()
    t.equal(pool.stats().idle, 1)
  }
})

t.test('that a hook waits is found out by the first loan of an idle connection, and nothing is lost', async (t) => {
  let prepared = 0
  let waits = false
  const { pool } = fakePool({
    max: 1,
    onAcquire: () => {
      prepared++
      return waits ? settle() : undefined
    },
  })
  await warm(pool)
  waits = true
  const acquired = watch(pool.acquire())
  t.match(pool.stats(), { used: 1, pending: 1 })
  await settle()
  await settle()
  await settle()
  t.equal(acquired.done, true)
  t.equal(prepared, 3, 'once for nobody')
  acquired.value?.release()
  waits = false
  t.equal(pool.tryAcquire(), null, 'from now on everybody takes that way')
  t.equal((await pool.acquire()).ended, false)
})

t.test('onAcquire that throws reaches the caller, and destroys the connection', async (t) => {
  const error = new Error('not you')
  let fails = false
  const { pool, connector, seen } = fakePool({ max: 1, onAcquire: () => { if (fails) throw error } })
  await warm(pool)
  fails = true
  t.throws(() => pool.tryAcquire(), error)
  await settle()
  t.match(seen('disconnect'), [{ id: 1, reason: 'error', error: { message: 'not you' } }])
  t.equal(await failure(pool.acquire()), error, 'a new connection')
  await settle()
  fails = false
  await warm(pool)
  fails = true
  t.equal(await failure(pool.acquire()), error, 'an idle one')
  await settle()
  t.same(seen('error').map(({ phase }) => phase), ['onAcquire', 'onAcquire', 'onAcquire'])
  t.match(pool.stats(), { used: 0, idle: 0, pending: 0, destroyed: { error: 3 } })
  t.equal(connector.live, 0)
})

t.test('onAcquire that rejects reaches the caller, and destroys the connection', async (t) => {
  const error = new Error('not you')
  const { pool, connector, seen } = fakePool({ max: 1, onAcquire: async () => { throw error } })
  const waiting = watch(pool.acquire())
  const next = watch(pool.acquire())
  await settle()
  t.equal(waiting.error, error)
  t.equal(next.error, error)
  await settle()
  t.match(seen('error'), [{ phase: 'onAcquire', error: { message: 'not you' } }, {}])
  t.match(seen('disconnect'), [{ reason: 'error', error: { message: 'not you' } }, {}])
  t.equal(connector.live, 0)
})

t.test('the hook that turns out asynchronous may fail too', async (t) => {
  let fails = false
  const { pool, seen } = fakePool({ max: 1, onAcquire: () => fails ? Promise.reject(new Error('not you')) : undefined })
  await warm(pool)
  fails = true
  t.equal(pool.tryAcquire(), null)
  await settle()
  t.match(seen('error'), [{ phase: 'onAcquire', error: { message: 'not you' } }])
  t.match(seen('disconnect'), [{ id: 1, reason: 'error', error: { message: 'not you' } }])
})

t.test('one that fails for a caller takes no other connection with it', async (t) => {
  let fails = false
  const { pool, connector } = fakePool({ onAcquire: () => { if (fails) throw new Error('not you') } })
  connector.outcomes.destroy = 'sync'
  await warm(pool, 3)
  pool.suspend()
  const waiting = watch(pool.acquire())
  fails = true
  pool.resume()
  await settle()
  t.match(waiting.error, { message: 'not you' })
  t.match(pool.stats(), { idle: 2, destroyed: { error: 1 } })
  t.equal(connector.creates, 3)
})

t.test('onAcquire that hangs is bounded by the deadline of its acquire', async (t) => {
  let answer = () => {}
  const { pool, connector, clock, seen } = fakePool({
    max: 1, onAcquire: async () => { await new Promise<void>((resolve) => { answer = resolve }) },
  })
  const waiting = watch(pool.acquire({ timeout: 3000, holder: 'me' }))
  await clock.advance(2999)
  t.equal(waiting.done, false)
  t.match(pool.stats(), { used: 1, pending: 0 })
  await clock.advance(1)
  t.equal(waiting.error?.code, 'FST_POOL_ACQUIRE_TIMEOUT')
  t.match(seen('timeout'), [{ holder: 'me', wait: 3000 }])
  t.match(seen('error'),
    [{ phase: 'onAcquire', error: { message: 'onAcquire was not done at the deadline of its acquire' } }])
  t.match(seen('disconnect'), [{ reason: 'error' }])
  answer()
  await settle()
  t.match(pool.stats(), { used: 0, idle: 0, destroyed: { error: 1 } })
  t.same(connector.violations, [])
})

t.test('a connection that was prepared for somebody who has left is made clean before anybody else has it', async (t) => {
  let prepared = 0
  let answer = () => {}
  const { pool, connector } = fakePool({
    max: 1,
    onAcquire: async () => {
      prepared++
      await new Promise<void>((resolve) => { answer = resolve })
    },
  })
  let resets = 0
  connector.reset = async () => { resets++ }
  const controller = new AbortController()
  const aborted = watch(pool.acquire({ signal: controller.signal }))
  await settle()
  controller.abort()
  await settle()
  t.equal(aborted.error?.code, 'FST_POOL_ABORTED')
  const next = watch(pool.acquire())
  answer()
  await settle()
  t.equal(resets, 1)
  answer()
  await settle()
  t.equal(next.done, true)
  t.equal(prepared, 2)
  t.match(pool.stats(), { aborted: 1, acquired: 1 })
})

t.test('a lease that took long to prepare is watched like any other', async (t) => {
  let answer = () => {}
  const { pool, clock, seen } = fakePool({
    leakAfter: 1000,
    onAcquire: async () => { await new Promise<void>((resolve) => { answer = resolve }) },
  })
  const waiting = watch(pool.acquire())
  await clock.advance(3000)
  answer()
  await clock.advance(1000)
  t.equal(waiting.done, true)
  t.match(seen('leak'), [{ id: 1, held: 1000 }])
})

t.test('a preparation that hangs for somebody who has left is bounded by the same deadline', async (t) => {
  const { pool, clock, seen } = fakePool({ onAcquire: async () => { await new Promise(() => {}) } })
  const controller = new AbortController()
  watch(pool.acquire({ signal: controller.signal }))
  await settle()
  controller.abort()
  await clock.advance(5000)
  t.match(pool.stats(), { used: 0, timeouts: 0, aborted: 1, destroyed: { error: 1 } })
  t.same(seen('timeout'), [])
})

t.test('a connection that dies while it is prepared is not lent: its caller goes back to the head of the line, with its deadline', async (t) => {
  let answer = () => {}
  const { pool, connector, clock } = fakePool({
    max: 1,
    onAcquire: async (connection) => {
      if (connection.id === 1) await new Promise<void>((resolve) => { answer = resolve })
    },
  })
  const first = watch(pool.acquire())
  const second = watch(pool.acquire())
  await clock.advance(4000)
  connector.connections[0]?.die(new Error('dead'))
  connector.outcomes.create = 'gate'
  answer()
  await settle()
  t.same([first.done, second.done], [false, false])
  connector.pass('create')
  await settle()
  t.equal(first.value?.connection, connector.connections[1])
  t.equal(second.done, false)
  await clock.advance(1000)
  t.equal(second.error?.code, 'FST_POOL_ACQUIRE_TIMEOUT')
})

t.test('a caller whose signal aborts within its own onAcquire is not served, and the connection is offered to the next', async (t) => {
  const controller = new AbortController()
  const { pool } = fakePool({ max: 1, onAcquire: () => { controller.abort() } })
  const aborted = watch(pool.acquire({ signal: controller.signal }))
  const next = watch(pool.acquire())
  await settle()
  t.equal(aborted.error?.code, 'FST_POOL_ABORTED')
  t.equal(next.done, true)
})

t.test('a preparation that fails for somebody who has left destroys the connection, and no more', async (t) => {
  let fail = (_: Error) => {}
  const { pool, seen } = fakePool({
    max: 1, onAcquire: async () => { await new Promise((_resolve, reject) => { fail = reject }) },
  })
  const controller = new AbortController()
  watch(pool.acquire({ signal: controller.signal }))
  await settle()
  controller.abort()
  fail(new Error('no'))
  await settle()
  t.match(seen('disconnect'), [{ reason: 'error' }])
  t.match(pool.stats(), { used: 0, pending: 0 })
})

// --- Other hooks -----------------------------------------------------------------------------------------------------

t.test('onRelease comes before the reset, and is waited for', async (t) => {
  const log: unknown[] = []
  const { pool, connector } = fakePool({
    name: 'shop',
    onRelease: async (connection, info) => {
      await settle()
      log.push('onRelease', connection.id, info)
    },
  })
  connector.reset = () => {
    log.push('reset')
    return undefined
  }
  const lease = await pool.acquire({ holder: 'me' })
  lease.release()
  t.equal(pool.stats().used, 1)
  await settle()
  await settle()
  t.same(log, ['onRelease', 1, { pool: 'shop', id: 1, uses: 1, holder: 'me' }, 'reset'])
  t.equal(pool.stats().idle, 1)
})

t.test('a synchronous onRelease keeps the release synchronous', async (t) => {
  let released = 0
  const { pool } = fakePool({ onRelease: () => { released++ } })
  await warm(pool)
  t.equal(released, 1)
  t.equal(pool.stats().idle, 1)
})

t.test('onRelease that fails destroys the connection, and is reported once', async (t) => {
  for (const onRelease of [() => { throw new Error('no') }, async () => { throw new Error('no') }]) {
    const { pool, seen } = fakePool({ onRelease })
    await warm(pool)
    await settle()
    t.match(seen('error'), [{ phase: 'onRelease', error: { message: 'no' } }])
    t.match(seen('disconnect'), [{ reason: 'error', error: { message: 'no' } }])
    t.equal(seen('error').length, 1)
  }
})

t.test('onRelease that hangs is bounded by resetTimeout', async (t) => {
  let answer = () => {}
  const { pool, connector, clock, seen } = fakePool({
    resetTimeout: 500, onRelease: () => new Promise<void>((resolve) => { answer = resolve }),
  })
  let resets = 0
  connector.reset = () => {
    resets++
    return undefined
  }
  await warm(pool)
  await clock.advance(500)
  t.match(seen('error'), [{
    phase: 'reset',
    error: {
      code: 'FST_POOL_RESET_FAILED', cause: { message: 'not clean within 500 ms (resetTimeout)' },
    }
  }])
  t.match(seen('disconnect'), [{ reason: 'error' }])
  answer()
  await settle()
  t.equal(resets, 0, 'nothing is called on a connection that has been destroyed')
})

t.test('onDisconnect comes before the end, and knows why', async (t) => {
  const infos: unknown[] = []
  const { pool, connector } = fakePool({ onDisconnect: (connection, info) => { infos.push(connection.state, info) } })
  await warm(pool)
  pool.evict()
  t.same(infos, ['open', { pool: 'db', id: 1, uses: 1, reason: 'stale' }])
  t.equal(connector.connections[0]?.state, 'destroyed')
})

t.test('onDisconnect that fails is reported and changes nothing; one that hangs is not waited for', async (t) => {
  for (const onDisconnect of [
    () => { throw new Error('no') }, async () => { throw new Error('no') }, () => new Promise(() => {}),
  ]) {
    const { pool, connector, seen } = fakePool({ onDisconnect })
    await warm(pool)
    pool.evict()
    await settle()
    t.equal(connector.connections[0]?.state, 'destroyed')
    t.equal(pool.stats().closing, 0)
    t.ok(seen('error').every(({ phase, error }) => phase === 'onDisconnect' && error.message === 'no'))
  }
})

t.test('a hook that returns anything else is done', async (t) => {
  const { pool } = fakePool({
    onConnect: () => 7, onAcquire: () => 'text', onRelease: () => null, onDisconnect: () => ({ then: 1 }),
  })
  await warm(pool)
  t.not(pool.tryAcquire(), null)
})

// --- Events ----------------------------------------------------------------------------------------------------------

t.test('a loan from its wait to its end, in events', async (t) => {
  const { pool, connector, clock, events } = fakePool({ max: 1, name: 'shop' })
  connector.outcomes.create = 'gate'
  const before = Date.now()
  const waiting = watch(pool.acquire({ holder: 'me' }))
  await clock.advance(20)
  connector.pass('create')
  await settle()
  await clock.advance(30)
  waiting.value?.release()
  pool.evict()
  await settle()
  const times = events.map(({ time }) => time as number)
  const after = Date.now()
  t.ok(times.every((time) => before <= time && time <= after), 'time is the wall clock\'s')
  t.same(events.map(({ time, ...rest }) => rest), [
    { event: 'wait', pool: 'shop', pending: 1, holder: 'me' },
    { event: 'connect', pool: 'shop', id: 1, took: 20 },
    { event: 'acquire', pool: 'shop', id: 1, wait: 20, holder: 'me' },
    { event: 'release', pool: 'shop', id: 1, held: 30, holder: 'me' },
    { event: 'disconnect', pool: 'shop', id: 1, reason: 'stale', age: 30, uses: 1 },
  ])
})

t.test('a payload is frozen, and has no holder where there is none', async (t) => {
  const { pool } = fakePool()
  const payloads: object[] = []
  pool.on('acquire', (event) => { payloads.push(event) })
  await pool.acquire()
  t.equal(Object.isFrozen(payloads[0]), true)
  t.notOk('holder' in payloads[0]!)
})

t.test('overflow is told once per episode', async (t) => {
  const { pool, seen } = fakePool({ max: 1 })
  const first = await pool.acquire()
  t.same(seen('overflow'), [], 'whoever waits for a create of its own does not queue')
  const waiting = [watch(pool.acquire()), watch(pool.acquire())]
  t.match(seen('overflow'), [{ pool: 'db', pending: 1 }])
  t.same(seen('wait').map(({ pending }) => pending), [1, 1, 2])
  first.release()
  await settle()
  waiting[0]?.value?.release()
  await settle()
  watch(pool.acquire())
  t.equal(seen('overflow').length, 2, 'a new episode')
})

t.test('on returns its own undo', async (t) => {
  const { pool } = fakePool({}, { listen: [] })
  let heard = 0
  const listener = () => { heard++ }
  const undo = pool.on('acquire', listener)
  const undoOther = pool.on('acquire', listener)
  await warm(pool)
  t.equal(heard, 2, 'the same listener twice is heard twice')
  undo()
  undo()
  await warm(pool)
  t.equal(heard, 3)
  undoOther()
  await warm(pool)
  t.equal(heard, 3)
})

t.test('a listener that takes itself, or others, off changes nothing about the event under way', async (t) => {
  const { pool } = fakePool({}, { listen: [] })
  const heard: string[] = []
  const undoA = pool.on('acquire', () => {
    heard.push('a')
    undoA()
    undoB()
    pool.on('acquire', () => { heard.push('c') })
  })
  const undoB = pool.on('acquire', () => { heard.push('b') })
  await warm(pool)
  t.same(heard, ['a', 'b'])
  await warm(pool)
  t.same(heard, ['a', 'b', 'c'])
})

t.test('an event that there is not, and a listener that is none, are refused', (t) => {
  const { pool } = fakePool()
  t.throws(() => pool.on('acquired' as PoolEventName, () => {}),
    { code: 'FST_POOL_BAD_OPTIONS', message: /acquired.*connect, disconnect, acquire/ })
  t.throws(() => pool.on('toString' as PoolEventName, () => {}), { code: 'FST_POOL_BAD_OPTIONS' })
  t.throws(() => pool.on('acquire', 'listener' as unknown as () => void), { code: 'FST_POOL_BAD_OPTIONS' })
  t.end()
})

t.test('what a listener throws goes to the listeners of error, and breaks nothing', async (t) => {
  const { pool, seen } = fakePool({ url: 'fake://me:hunter22@host' }, { listen: ['error'] })
  pool.on('acquire', () => { throw new Error('bad listener hunter22') })
  pool.on('acquire', async () => { throw new Error('bad async listener') })
  let heard = 0
  pool.on('acquire', () => { heard++ })
  const lease = await pool.acquire()
  await settle()
  t.equal(lease.ended, false)
  t.equal(heard, 1)
  t.same(seen('error').map(({ phase, error }) => [phase, error.message]),
    [['listener', 'bad listener ***'], ['listener', 'bad async listener']])
})

t.test('what a listener of error throws becomes a warning of the process', async (t) => {
  const { pool } = fakePool({ url: 'fake://me:hunter22@host' }, { listen: [] })
  pool.on('error', () => { throw new Error('even worse hunter22') })
  pool.on('acquire', () => { throw new Error('bad listener') })
  const warning = once(process, 'warning')
  t.equal((await pool.acquire()).ended, false)
  t.match(await warning, [{ message: 'even worse ***' }])
  const later = once(process, 'warning')
  const { pool: other } = fakePool({}, { listen: [] })
  other.on('error', async () => { throw new Error('later') })
  other.on('acquire', () => { throw new Error('bad listener') })
  await other.acquire()
  t.match(await later, [{ message: 'later' }])
})

t.test('errors without a listener are silent', async (t) => {
  const { pool, connector } = fakePool({}, { listen: [] })
  await warm(pool)
  connector.connections[0]?.die(new Error('nobody listens'))
  await settle()
  t.equal(pool.stats().destroyed.error, 1)
})

t.test('the driver\'s own events pass', async (t) => {
  let tell: (event: DriverEvent) => void = () => {}
  const connector =
    Object.assign(new FakeConnector(), { onDriverEvent: (listener: typeof tell) => { tell = listener } })
  const { pool, seen } = fakePool({ name: 'shop' }, { connector, listen: [] })
  tell({ name: 'nobody listens' })
  pool.on('driver', (event) => { t.match(event, { pool: 'shop', name: 'serverOpening', address: 'a:1' }) })
  tell({ name: 'serverOpening', address: 'a:1', pool: 'not ours', time: 'neither' })
  t.same(seen('driver'), [])
  pool.on('driver', ({ time }) => { t.type(time, 'number') })
  tell({ name: 'serverOpening', address: 'a:1', time: 'not ours' })
  t.end()
})

t.test('what a connector tells to have failed by itself is an event error, without secrets', async (t) => {
  let fail: ConnectorError = () => {}
  const connector = Object.assign(new FakeConnector(), {
    onDriverEvent: (_tell: unknown, failed: ConnectorError) => { fail = failed },
  })
  const { pool } = fakePool({ name: 'shop', url: 'fake://me:top-secret@host' }, { connector, listen: [] })
  fail(new Error('nobody listens'), 'listener')
  const errors: Array<PoolEvents['error']> = []
  pool.on('error', (event) => { errors.push(event) })
  fail(new Error('top-secret is gone'), 'subscription')
  t.match(errors, [{ pool: 'shop', phase: 'subscription', error: { message: '*** is gone' } }])
})

t.test('no secret shows in any event, error or stat', async (t) => {
  const secret = 'p@ss w/rd'
  const { pool, connector, clock, events } = fakePool({
    url: `fake://me:${encodeURIComponent(secret)}@host/db`,
    connection: { tls: { passphrase: 'ThePhrase' } },
    max: 2,
    validateAfter: 0,
    onDisconnect: () => { throw new Error(`${secret} ThePhrase`) },
  })
  const forms = [secret, encodeURIComponent(secret), encodeURI(secret), 'ThePhrase']
  const leaky = () =>
    Object.assign(new Error(forms.join(' ')), { code: secret, input: secret, command: { args: forms } })
  const errors: unknown[] = []
  connector.create = () => Promise.reject(leaky())
  const waiting = watch(pool.acquire())
  errors.push(await failure(pool.open()))
  await clock.advance(5000)
  errors.push(waiting.error)
  connector.create = FakeConnector.prototype.create
  await clock.advance(2000)
  const [a, b] = await Promise.all([pool.acquire(), pool.acquire()])
  connector.reset = () => Promise.reject(leaky())
  a.release()
  b.destroy(leaky())
  connector.reset = () => undefined
  await settle()
  await warm(pool)
  connector.validate = () => Promise.reject(leaky())
  await pool.health()
  await warm(pool)
  connector.validate = () => Promise.resolve(true)
  const lease = await pool.acquire()
  connector.isBroken = () => { throw leaky() }
  lease.release()
  connector.isBroken = () => false
  await warm(pool)
  connector.connections.at(-1)?.die(leaky())
  await warm(pool)
  connector.destroy = () => Promise.reject(leaky())
  pool.evict()
  connector.close = () => { throw leaky() }
  await settle()
  await pool.close()
  const deep = (value: unknown): unknown => value instanceof Error
    ? [value.name, value.message, value.stack, deep(value.cause), Object.entries(value)]
    : typeof value === 'object' && value !== null ? Object.values(value).map(deep) : value
  const shown = JSON.stringify([events.map(deep), errors.map(deep), pool.stats()])
  for (const form of forms) t.notOk(shown.includes(form), form)
  const phases = new Set(events.filter(({ event }) => event === 'error').map(({ phase }) => phase))
  t.strictSame([...phases].sort(),
    ['close', 'create', 'death', 'destroy', 'isBroken', 'onDisconnect', 'reset', 'validate'])
  t.ok(shown.includes('***'))
})

// --- Context ---------------------------------------------------------------------------------------------------------

t.test('the async context of a caller shows in no connector, hook or listener', async (t) => {
  const storage = new AsyncLocalStorage<string>()
  const stores = new Set<string | undefined>()
  const look = () => { stores.add(storage.getStore()) }
  class Looking extends FakeConnector {
    override create (signal: AbortSignal): Promise<FakeConnection> {
      look()
      signal.addEventListener('abort', look)
      return super.create(signal)
    }

    override destroy (...args: Parameters<FakeConnector['destroy']>): Promise<void> | void {
      look()
      return super.destroy(...args)
    }

    override validate (...args: Parameters<FakeConnector['validate']>): Promise<boolean> {
      look()
      return super.validate(...args)
    }

    override reset (...args: Parameters<FakeConnector['reset']>): Promise<void> | undefined {
      look()
      return super.reset(...args)
    }

    override onDeath (...args: Parameters<FakeConnector['onDeath']>): void {
      look()
      super.onDeath(...args)
    }
  }
  const hook = async () => {
    look()
    await settle()
    look()
  }
  const connector = new Looking()
  const clock = new VirtualClock()
  const timers: Array<() => void> = []
  const setTimer = clock.setTimer.bind(clock)
  clock.setTimer = (fn, ms) => {
    timers.push(look)
    look()
    return setTimer(fn, ms)
  }
  const { pool } = fakePool({
    max: 2, validateAfter: 0, onConnect: hook, onAcquire: hook, onRelease: hook, onDisconnect: hook,
  }, { connector, clock })
  for (const name of ['connect', 'disconnect', 'acquire', 'release', 'wait', 'overflow', 'timeout', 'refuse', 'error',
    'open'] as const) pool.on(name, look)
  await storage.run('caller', async () => {
    watch(pool.open())
    const [a, b] = await Promise.all([pool.acquire(), pool.acquire()])
    t.equal(storage.getStore(), 'caller', 'its own it keeps')
    const waiting = watch(pool.acquire({ timeout: 10 }))
    connector.outcomes.reset = 'error'
    a.release()
    await clock.advance(100)
    await settle()
    b.destroy()
    await settle()
    waiting.value?.release()
    connector.outcomes.reset = 'ok'
    connector.outcomes.create = 'gate'
    watch(pool.acquire())
    watch(pool.acquire())
    watch(pool.acquire({ signal: AbortSignal.abort() }))
    await clock.advance(10_000)
    connector.outcomes.create = 'ok'
    await clock.advance(10_000)
    await warm(pool)
    await pool.use(async () => {})
    pool.evict()
    const closing = pool.close({ timeout: 100 })
    watch(pool.acquire())
    await clock.advance(1000)
    await closing
  })
  t.strictSame([...stores], [undefined])
  t.ok(timers.length > 0)
})

t.test('what foreign code stores in its async context does not stay in the pool\'s', async (t) => {
  const storage = new AsyncLocalStorage<string>()
  const stores: unknown[] = []
  const { pool, connector } = fakePool({ onConnect: () => { stores.push(storage.getStore()) } }, { listen: [] })
  const { create } = FakeConnector.prototype
  connector.create = (signal) => {
    stores.push(storage.getStore())
    storage.enterWith('of a create')
    return create.call(connector, signal)
  }
  pool.on('acquire', () => {
    stores.push(storage.getStore())
    storage.enterWith('of a listener')
  })
  await pool.acquire()
  await pool.acquire()
  t.strictSame(stores, Array(6).fill(undefined))
})

// --- On purpose ------------------------------------------------------------------------------------------------------

t.test('listeners may do anything to the pool in every event', async (t) => {
  const names =
    ['connect', 'disconnect', 'acquire', 'release', 'wait', 'overflow', 'timeout', 'refuse', 'leak', 'unleak', 'error',
      'open', 'drain', 'close'] as const
  for (const name of names) {
    for (const act of ['acquire', 'release', 'close', 'drain', 'evict', 'resize', 'suspend', 'die', 'open', 'health'] as const) {
      const { pool, connector, clock } = fakePool({
        max: 2, maxPending: 2, leakAfter: 50, acquireTimeout: 100, validateAfter: 0, destroyTimeout: 10,
      }, { listen: [] })
      connector.outcomes.reset = 'ok'
      connector.outcomes.destroy = 'sync'
      const leases: Array<{ release (): void }> = []
      let acts = 0
      const take = (acquired: Promise<{ release (): void }>) => {
        acquired.then((lease) => { leases.push(lease) }, () => { /* some can't be served */ })
      }
      pool.on(name, () => {
        if (++acts > 5) return
        if (act === 'acquire') {
          take(pool.acquire())
          const lease = pool.tryAcquire()
          if (lease !== null) leases.push(lease)
        } else if (act === 'release') leases.shift()?.release()
        else if (act === 'close') watch(pool.close({ timeout: 100 }))
        else if (act === 'drain') watch(pool.drain())
        else if (act === 'evict') pool.evict()
        else if (act === 'resize') pool.resize({ max: acts % 2 + 1 })
        else if (act === 'suspend') pool[acts % 2 === 1 ? 'suspend' : 'resume']()
        else if (act === 'die') for (const connection of connector.connections) connection.die(new Error('die'))
        else if (act === 'open') watch(pool.open())
        else watch(pool.health())
      })
      watch(pool.open())
      for (let i = 0; i < 5; i++) take(pool.acquire())
      await clock.advance(40)
      leases.shift()?.release()
      connector.connections[0]?.die(new Error('dead'))
      await clock.advance(200)
      for (const lease of leases) lease.release()
      leases.length = 0
      await clock.advance(50)
      pool.resume()
      watch(pool.drain())
      const closing = watch(pool.close({ timeout: 100 }))
      await clock.advance(1000)
      const what = `${act} in ${name}`
      t.ok(acts > 0 || name === 'error', `${what} happened`)
      t.equal(closing.done, true, what)
      t.match(pool.stats(), { creating: 0, idle: 0, used: 0, closing: 0, late: 0, pending: 0 }, what)
      t.equal(connector.live, 0, what)
      t.ok(connector.peak <= 2, what)
      t.same(connector.violations, [], what)
      t.same(clock.timers, { set: 0, ref: 0 }, what)
    }
  }
})

t.test('hooks may do anything to the pool', async (t) => {
  for (const hook of ['onConnect', 'onAcquire', 'onRelease', 'onDisconnect'] as const) {
    for (const act of ['acquire', 'release', 'close', 'evict', 'resize', 'suspend', 'die'] as const) {
      for (const timing of ['sync', 'async']) {
        const leases: Array<{ release (): void }> = []
        let acts = 0
        const run = () => {
          if (++acts > 4) return
          if (act === 'acquire') take(pool.acquire())
          else if (act === 'release') leases.shift()?.release()
          else if (act === 'close') watch(pool.close({ timeout: 100 }))
          else if (act === 'evict') pool.evict()
          else if (act === 'resize') pool.resize({ max: acts % 2 + 1 })
          else if (act === 'suspend') pool[acts % 2 === 1 ? 'suspend' : 'resume']()
          else connector.connections.at(-1)?.die(new Error('die'))
        }
        const options = { [hook]: timing === 'sync' ? run : async () => run() }
        const { pool, connector, clock } = fakePool({ max: 2, acquireTimeout: 100, ...options })
        const take = (acquired: Promise<{ release (): void }>) => {
          acquired.then((lease) => { leases.push(lease) }, () => { /* some can't be served */ })
        }
        for (let i = 0; i < 4; i++) take(pool.acquire())
        await clock.advance(20)
        leases.shift()?.release()
        await clock.advance(20)
        leases.shift()?.release()
        await clock.advance(200)
        pool.resume()
        pool.evict()
        const closing = watch(pool.close({ timeout: 100 }))
        await clock.advance(1000)
        const what = `${act} in ${timing} ${hook}`
        t.ok(acts > 0, `${what} happened`)
        t.equal(closing.done, true, what)
        t.match(pool.stats(), { creating: 0, idle: 0, used: 0, closing: 0, late: 0, pending: 0 }, what)
        t.equal(connector.live, 0, what)
        t.ok(connector.peak <= 2, what)
        t.same(connector.violations, [], what)
      }
    }
  }
})

t.test('a hook that gives back another lease does not serve its own caller twice', async (t) => {
  const others: Array<{ release (): void }> = []
  const { pool } = fakePool({ max: 3, onAcquire: () => { others.pop()?.release() } })
  others.push(await pool.acquire())
  const waiting = watch(pool.acquire())
  await settle()
  t.equal(waiting.done, true)
  t.match(pool.stats(), { used: 1, idle: 1, acquired: 2 })
})
