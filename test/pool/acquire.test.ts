import t from 'tap'
import { settle } from '../support/clock.js'
import { failure, fakePool, warm, watch } from '../support/fake-connector.js'

t.test('the first acquire makes a connection and lends it', async (t) => {
  const { pool, connector } = fakePool()
  const lease = await pool.acquire()
  t.equal(lease.connection, connector.connections[0])
  t.equal(lease.pool, 'db')
  t.equal(lease.ended, false)
  t.match(pool.stats(), { used: 1, idle: 0, creating: 0, acquired: 1, released: 0, created: 1 })
})

t.test('an idle connection is lent again, and nothing new is made', async (t) => {
  const { pool, connector } = fakePool()
  await warm(pool)
  const lease = await pool.acquire()
  t.equal(lease.connection, connector.connections[0])
  t.equal(connector.creates, 1)
})

t.test('the connection that was used last is lent first, so that the others can idle out', async (t) => {
  const { pool } = fakePool()
  const [a, b, c] = await Promise.all([pool.acquire(), pool.acquire(), pool.acquire()])
  const { connection } = a
  b.release()
  c.release()
  a.release()
  t.equal(pool.tryAcquire()?.connection, connection)
})

t.test('tryAcquire is synchronous: a lease where one is idle, null where somebody would have to wait', async (t) => {
  const { pool, connector, clock, seen } = fakePool({ max: 1, validateAfter: 1000 })
  t.equal(pool.tryAcquire(), null, 'there is none')
  t.equal(connector.creates, 0, 'and none is made for it')
  await warm(pool)
  const lease = pool.tryAcquire({ holder: 'me' })
  t.equal(lease?.connection, connector.connections[0])
  t.match(seen('acquire').at(-1), { holder: 'me', wait: 0, id: 1 })
  t.equal(pool.tryAcquire(), null, 'it is used')
  lease?.release()
  await clock.advance(5000)
  t.equal(pool.tryAcquire(), null, 'it must be validated first')
  t.equal((await pool.acquire()).connection, connector.connections[0])
})

t.test('tryAcquire takes nothing from those who wait', async (t) => {
  const { pool } = fakePool({ max: 2 })
  await warm(pool, 2)
  pool.suspend()
  const waiting = [watch(pool.acquire()), watch(pool.acquire())]
  pool.on('acquire', () => t.equal(pool.tryAcquire(), null, 'not even while the first of them is served'))
  pool.resume()
  t.equal(pool.stats().pending, 0)
  await settle()
  t.same(waiting.map(({ done }) => done), [true, true])
})

t.test('callers are served first come, first served', async (t) => {
  const { pool } = fakePool({ max: 1 })
  const first = await pool.acquire()
  const order: number[] = []
  for (const number of [1, 2, 3, 4]) {
    pool.acquire().then((lease) => {
      order.push(number)
      lease.release()
    }, t.fail)
  }
  first.release()
  await settle()
  t.same(order, [1, 2, 3, 4])
})

t.test('a newcomer does not get what is due to those who wait', async (t) => {
  const { pool } = fakePool({ max: 1 })
  const first = await pool.acquire()
  const waiting = watch(pool.acquire({ holder: 'waiting' }))
  first.release()
  t.equal(pool.tryAcquire(), null)
  const newcomer = watch(pool.acquire({ holder: 'newcomer' }))
  await settle()
  t.equal(waiting.done, true)
  t.equal(newcomer.done, false)
})

t.test('an acquire fails at its deadline, which says how the pool is and not who holds what', async (t) => {
  const { pool, clock, seen } = fakePool({ max: 2, name: 'shop' })
  await pool.acquire({ holder: { route: 'GET /reports', id: 'req-1' } })
  await clock.advance(7000)
  await pool.acquire({ holder: 'job' })
  const waiting = watch(pool.acquire({ holder: 'late' }))
  await clock.advance(4999)
  t.equal(waiting.done, false)
  await clock.advance(1)
  const { error } = waiting
  t.equal(error?.code, 'FST_POOL_ACQUIRE_TIMEOUT')
  t.equal(error?.message,
    "no connection from pool 'shop' within 5000 ms (max 2, used 2, idle 0, creating 0, pending 0). Look for slow queries or leaks, or raise max.")
  t.equal(error?.statusCode, 503)
  t.match(error?.headers?.['retry-after'], /^([1-9]|[12]\d|30)$/)
  t.equal(error?.cause, undefined)
  t.notOk(Object.keys(error!).includes('holders'))
  t.notMatch(JSON.stringify(error), /reports|job/)
  t.same(error?.holders, [
    { pool: 'shop', holder: { route: 'GET /reports', id: 'req-1' }, id: 1, heldFor: 12_000 },
    { pool: 'shop', holder: 'job', id: 2, heldFor: 5000 },
  ], 'the longest held first')
  t.match(seen('timeout'), [{ pool: 'shop', wait: 5000, holder: 'late', error }])
  t.match(pool.stats(), { timeouts: 1, pending: 0, refused: 0 })
})

t.test('only ten holders are told', async (t) => {
  const { pool, clock } = fakePool({ max: 12 })
  await Promise.all(Array.from({ length: 12 }, () => pool.acquire()))
  const waiting = watch(pool.acquire())
  await clock.advance(5000)
  t.equal(waiting.error?.holders?.length, 10)
  t.equal(pool.holders().length, 12)
})

t.test('retry-after is the predicted wait, from 1 to 30 s', async (t) => {
  const { pool, clock } = fakePool({ max: 1, maxPending: 1 })
  const slow = await pool.acquire()
  await clock.advance(20_000)
  slow.release()
  const again = await pool.acquire()
  const waiting = watch(pool.acquire({ timeout: 100_000 }))
  t.equal((await failure(pool.acquire())).headers?.['retry-after'], '30', 'two leases of 20 s')
  again.release()
  await settle()
  await clock.advance(0)
  waiting.value?.release()
  t.equal(waiting.done, true)
})

t.test('an acquire may have its own deadline', async (t) => {
  const { pool, clock } = fakePool({ max: 1 })
  await pool.acquire()
  const short = watch(pool.acquire({ timeout: 10 }))
  const long = watch(pool.acquire({ timeout: 60_000 }))
  const usual = watch(pool.acquire())
  await clock.advance(10)
  t.same([short.done, usual.done, long.done], [true, false, false])
  t.match(short.error?.message, /within 10 ms/)
  await clock.advance(4990)
  t.same([usual.done, long.done], [true, false])
  await clock.advance(54_999)
  t.equal(long.done, false)
  await clock.advance(1)
  t.equal(long.done, true)
})

t.test('a deadline must be at least 1 ms, whether somebody has to wait or not', async (t) => {
  const { pool, connector } = fakePool()
  for (const timeout of [0, -1, NaN, Infinity, 2 ** 31, '5' as unknown as number]) {
    t.match(await failure(pool.acquire({ timeout })), { code: 'FST_POOL_BAD_OPTIONS', message: /timeout/ })
  }
  t.equal(connector.creates, 0)
  await warm(pool)
  t.match(await failure(pool.acquire({ timeout: 0 })), { code: 'FST_POOL_BAD_OPTIONS' })
  t.equal(pool.stats().idle, 1)
  const lease = await pool.acquire({ timeout: undefined as unknown as number })
  t.equal(lease.ended, false, 'undefined is as if absent')
})

t.test('listeners of a timeout that acquire again, with shorter deadlines than each other, change no deadline', async (t) => {
  const { pool, clock } = fakePool({ max: 1 })
  await pool.acquire()
  const again: Array<ReturnType<typeof watch>> = []
  const undo = pool.on('timeout', () => {
    undo()
    again.push(watch(pool.acquire({ timeout: 500 })), watch(pool.acquire({ timeout: 100 })))
  })
  watch(pool.acquire({ timeout: 10 }))
  await clock.advance(10)
  await clock.advance(100)
  t.same(again.map(({ done }) => done), [false, true])
  await clock.advance(400)
  t.same(again.map(({ done }) => done), [true, true])
})

t.test('a listener of one timeout may end the waits of all others', async (t) => {
  const { pool, clock } = fakePool({ max: 1 })
  await pool.acquire()
  const controller = new AbortController()
  pool.on('timeout', () => { controller.abort() })
  const first = watch(pool.acquire({ timeout: 10 }))
  const rest = [1, 2, 3].map(() => watch(pool.acquire({ timeout: 10, signal: controller.signal })))
  await clock.advance(10)
  t.equal(first.error?.code, 'FST_POOL_ACQUIRE_TIMEOUT')
  t.same(rest.map(({ error }) => error?.code), Array(3).fill('FST_POOL_ABORTED'))
  t.match(pool.stats(), { timeouts: 1, aborted: 3, pending: 0 })
})

t.test('where no connection can be made, an acquire fails at its deadline with the reason', async (t) => {
  const { pool, connector, clock, seen } = fakePool({ url: 'fake://me:hunter22@host', name: 'shop' })
  connector.outcomes.create = 'gate'
  const waiting = watch(pool.acquire({ holder: 'me' }))
  connector.fail('create',
    Object.assign(new Error('refused for me:hunter22'), { code: 'ECONNREFUSED', input: 'hunter22' }))
  connector.outcomes.create = 'error'
  await clock.advance(5000)
  const { error } = waiting
  t.equal(error?.code, 'FST_POOL_CONNECT_FAILED')
  t.equal(error?.message,
    "pool 'shop' can't connect (max 10, used 0, idle 0, creating 0, pending 0). Is its server up, and are its address and login right?")
  t.equal(error?.statusCode, 503)
  t.match(error?.headers?.['retry-after'], /^[1-9]$/)
  t.match(error?.cause, { message: 'create failed' })
  t.match(seen('error')[0]?.error, { message: 'refused for me:***', code: 'ECONNREFUSED' })
  t.notMatch(JSON.stringify(seen('error').map(({ error }) => [error.message, error.stack, Object.entries(error)])),
    /hunter22/)
  t.match(seen('timeout'), [{ error, holder: 'me' }])
})

t.test('where some connections work and no more can be made, the timeout says why as well', async (t) => {
  const { pool, connector, clock } = fakePool()
  await pool.acquire()
  connector.outcomes.create = 'error'
  const waiting = watch(pool.acquire())
  await clock.advance(5000)
  t.match(waiting.error, { code: 'FST_POOL_ACQUIRE_TIMEOUT', cause: { message: 'create failed' } })
})

t.test('a signal that has aborted already ends the acquire at once, even where a connection is idle', async (t) => {
  const { pool } = fakePool()
  await warm(pool)
  const reason = new Error('gone')
  const error = await failure(pool.acquire({ signal: AbortSignal.abort(reason) }))
  t.equal(error.code, 'FST_POOL_ABORTED')
  t.equal(error.message, "an acquire from pool 'db' was aborted by its signal")
  t.equal(error.cause, reason)
  t.equal(error.statusCode, undefined)
  t.match(pool.stats(), { aborted: 1, idle: 1, used: 0 })
})

t.test('a signal that aborts takes its caller out of the line, and nobody else', async (t) => {
  const { pool } = fakePool({ max: 1 })
  const lease = await pool.acquire()
  const controller = new AbortController()
  const before = watch(pool.acquire())
  const aborted = watch(pool.acquire({ signal: controller.signal }))
  const after = watch(pool.acquire())
  controller.abort(new Error('gone'))
  await settle()
  t.match(aborted.error, { code: 'FST_POOL_ABORTED', cause: { message: 'gone' } })
  t.equal(pool.stats().pending, 2)
  lease.release()
  await settle()
  before.value?.release()
  await settle()
  t.equal(after.done, true)
  t.match(pool.stats(), { aborted: 1, pending: 0, timeouts: 0 })
})

t.test('a signal that aborts later does nothing to an acquire that was served, nor does the pool listen to it any more', async (t) => {
  const { pool, clock } = fakePool({ max: 1 })
  const controller = new AbortController()
  const { signal } = controller
  let listening = 0
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
  const lease = await pool.acquire({ signal })
  t.equal(listening, 0)
  watch(pool.acquire({ signal, timeout: 5 }))
  t.equal(listening, 1)
  await clock.advance(5)
  t.equal(listening, 0, 'nor after a timeout')
  controller.abort()
  t.equal(lease.ended, false)
  t.equal(pool.stats().aborted, 0)
})

t.test('a create belongs to the pool: the caller that set it off goes, the connection comes, and the next caller has it', async (t) => {
  const { pool, connector, clock } = fakePool({ max: 1 })
  connector.outcomes.create = 'gate'
  const controller = new AbortController()
  const aborted = watch(pool.acquire({ signal: controller.signal }))
  const timedOut = watch(pool.acquire({ timeout: 10 }))
  const patient = watch(pool.acquire())
  controller.abort()
  await clock.advance(10)
  t.same([aborted.error?.code, timedOut.error?.code], ['FST_POOL_ABORTED', 'FST_POOL_ACQUIRE_TIMEOUT'])
  connector.pass('create')
  await settle()
  t.equal(patient.value?.connection, connector.connections[0])
  t.equal(connector.creates, 1)
})

t.test('a connection that comes after its caller has gone is idle, for the next one', async (t) => {
  const { pool, connector, clock } = fakePool()
  connector.outcomes.create = 'gate'
  watch(pool.acquire({ timeout: 10 }))
  await clock.advance(10)
  connector.pass('create')
  await settle()
  t.match(pool.stats(), { idle: 1, used: 0 })
  t.equal(pool.tryAcquire()?.connection, connector.connections[0])
})

t.test('a burst on one warm connection is served by whichever connection is ready first', async (t) => {
  const { pool, connector } = fakePool({ max: 10 })
  await warm(pool)
  connector.outcomes.create = 'gate'
  const served: unknown[] = []
  for (let i = 0; i < 10; i++) {
    pool.use(async (connection) => {
      served.push(connection)
      await settle()
    }).catch(t.fail)
  }
  await settle()
  t.equal(connector.creates, 10, 'the other nine have creates of their own')
  for (let i = 0; i < 12; i++) await settle()
  t.equal(served.length, 10, 'and need none of them')
  t.ok(served.every((connection) => connection === connector.connections[0]))
  t.match(pool.stats(), { creating: 2, idle: 1, pending: 0, destroyed: { released: 0 } }, 'all but two were given up')
  t.match(connector.calls.filter(({ name }) => name === 'create').map(({ signal }) => signal?.aborted), [false, false])
})

t.test('one who waits for a create is served by a release if that comes first', async (t) => {
  const { pool, connector } = fakePool({ max: 2 })
  const lease = await pool.acquire()
  connector.outcomes.create = 'gate'
  const waiting = watch(pool.acquire())
  const { connection } = lease
  lease.release()
  await settle()
  t.equal(waiting.value?.connection, connection)
  connector.pass('create')
  await settle()
  t.match(pool.stats(), { idle: 1, used: 1 })
})

t.test('maxPending callers wait; the next is refused at once', async (t) => {
  const { pool, seen } = fakePool({ max: 1, maxPending: 2, name: 'shop' })
  await pool.acquire({ holder: 'slow' })
  watch(pool.acquire())
  watch(pool.acquire())
  const error = await failure(pool.acquire({ holder: 'third' }))
  t.equal(error.code, 'FST_POOL_QUEUE_FULL')
  t.equal(error.message,
    "pool 'shop' is full, and 2 wait already (max 1, used 1, idle 0, creating 0, pending 2). Look for slow queries or leaks, or raise max or maxPending.")
  t.equal(error.statusCode, 503)
  t.match(error.headers?.['retry-after'], /^\d+$/)
  t.match(error.holders, [{ holder: 'slow' }])
  t.notOk(Object.keys(error).includes('holders'))
  t.match(seen('refuse'), [{ error, wait: 0, holder: 'third', pool: 'shop' }])
  t.match(pool.stats(), { refused: 1, pending: 2 })
})

t.test('maxPending 0 never queues', async (t) => {
  const { pool, connector } = fakePool({ max: 2, maxPending: 0 })
  connector.outcomes.create = 'gate'
  const two = [watch(pool.acquire()), watch(pool.acquire())]
  t.equal((await failure(pool.acquire())).code, 'FST_POOL_QUEUE_FULL', 'a third has no create of its own')
  connector.pass('create')
  connector.pass('create')
  await settle()
  t.same(two.map(({ done }) => done), [true, true], 'whoever got a connection made was served')
  t.equal((await failure(pool.acquire())).code, 'FST_POOL_QUEUE_FULL')
  two[0]?.value?.release()
  t.equal((await pool.acquire()).connection, connector.connections[0])
})

t.test('maxPending 0 serves whoever gets an idle connection that must be validated first', async (t) => {
  const { pool, connector } = fakePool({ max: 1, maxPending: 0, validateAfter: 0 })
  await warm(pool)
  connector.outcomes.validate = 'gate'
  const validating = watch(pool.acquire())
  t.equal((await failure(pool.acquire())).code, 'FST_POOL_QUEUE_FULL')
  connector.pass('validate')
  await settle()
  t.equal(validating.done, true)
})

t.test('maxPending 0 serves whoever gets an idle connection that is prepared first', async (t) => {
  const { pool } = fakePool({ max: 1, maxPending: 0, onAcquire: async () => {} })
  const lease = await pool.acquire()
  t.equal((await failure(pool.acquire())).code, 'FST_POOL_QUEUE_FULL')
  lease.release()
  t.equal((await pool.acquire()).ended, false)
})

t.test('use lends, gives the result, and takes the connection back', async (t) => {
  const { pool, connector } = fakePool()
  const result = await pool.use((connection, lease) => {
    t.equal(connection, connector.connections[0])
    t.equal(lease.connection, connection)
    return 'done'
  }, { holder: 'me' })
  t.equal(result, 'done')
  t.match(pool.stats(), { used: 0, idle: 1, released: 1 })
})

t.test('use takes the connection back where the function throws or rejects', async (t) => {
  const { pool } = fakePool()
  const error = new Error('mine')
  t.equal(await failure(pool.use(() => { throw error })), error)
  t.equal(await failure(pool.use(async () => { throw error })), error)
  t.match(pool.stats(), { used: 0, idle: 1 })
})

t.test('use passes the options of acquire on, and rejects as it does', async (t) => {
  const { pool, clock } = fakePool({ max: 1 })
  await pool.acquire()
  const waiting = watch(pool.use(() => t.fail(), { timeout: 7 }))
  await clock.advance(7)
  t.equal(waiting.error?.code, 'FST_POOL_ACQUIRE_TIMEOUT')
})

t.test('a lease that use has lent may be ended within', async (t) => {
  const { pool } = fakePool()
  await pool.use((_, lease) => { lease.destroy() })
  await settle()
  t.match(pool.stats(), { used: 0, idle: 0, destroyed: { released: 1 } })
})

t.test('three thousand callers wait, some leave from the middle, and the rest is served in order', async (t) => {
  const { pool } = fakePool({ max: 1, maxPending: 3000 }, { listen: [] })
  const first = await pool.acquire()
  const controllers: AbortController[] = []
  const order: number[] = []
  for (let i = 0; i < 3000; i++) {
    const controller = new AbortController()
    controllers.push(controller)
    pool.acquire({ signal: controller.signal }).then((lease) => {
      order.push(i)
      lease.release()
    }, (error: { code: string }) => { if (error.code !== 'FST_POOL_ABORTED') t.fail(error.code) })
  }
  for (let i = 0; i < 3000; i += 3) controllers[i]?.abort()
  first.release()
  while (pool.stats().pending > 0) await settle()
  await settle()
  t.equal(order.length, 2000)
  t.same(order, [...order].sort((a, b) => a - b))
})
