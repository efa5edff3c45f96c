// What is in the way of a loan, outside of the pool: callers wait for it, and who waits in vain is told what it was.
import t from 'tap'
import type { EngineOptions } from '../../types/options.js'
import { Pool } from '../../lib/pool/pool.js'
import { VirtualClock, settle } from '../support/clock.js'
import { watch } from '../support/fake-connector.js'

function hindered (options: EngineOptions<object> = {}) {
  const clock = new VirtualClock()
  const books = {
    way: undefined as string | undefined,
    throws: undefined as Error | undefined,
    asked: 0,
    validated: 0,
    created: 0,
    destroyed: 0,
  }
  const pool = new Pool<object>({
    system: 'fake',
    create: async () => ({ id: ++books.created }),
    destroy: () => { books.destroyed++ },
    validate: async () => {
      books.validated++
      return true
    },
    obstacle: () => {
      books.asked++
      if (books.throws !== undefined) throw books.throws
      return books.way
    },
  }, { acquireTimeout: 1000, ...options }, clock)
  return { pool, clock, books }
}

t.test('a caller waits for it, in line, and is served when it is gone', async (t) => {
  const { pool, clock, books } = hindered({ max: 1 })
  ;(await pool.acquire()).release()
  books.way = 'a gate'
  t.equal(pool.tryAcquire(), null)
  const [first, second] = [watch(pool.acquire()), watch(pool.acquire())]
  await clock.advance(300)
  t.same([first.done, second.done, pool.stats().pending, pool.stats().idle], [false, false, 2, 1])
  books.way = undefined
  await clock.advance(25)
  t.same([first.done, second.done], [true, false])
  first.value!.release()
  await settle()
  t.ok(second.done)
  t.equal(books.created, 1, 'it is the same connection')
})

t.test('what lived for too long while the event loop stood still is not lent when it is gone', async (t) => {
  const { pool, clock, books } = hindered({ max: 1, maxLifetime: 3000, validateAfter: 60_000 })
  ;(await pool.acquire()).release()
  books.way = 'a gate'
  const waiting = watch(pool.acquire({ timeout: 10_000 }))
  await clock.advance(10)
  clock.stall(4000)
  books.way = undefined
  pool.resize({})
  await settle()
  t.match(pool.stats(), { destroyed: { lifetime: 1 }, created: 2 })
  t.ok(waiting.done)
  waiting.value!.release()
  await pool.close()
})

t.test('who waits in vain is told what it was, and nothing is destroyed', async (t) => {
  const { pool, clock, books } = hindered({ max: 1 })
  ;(await pool.acquire()).release()
  books.way = 'a gate'
  const waiting = watch(pool.acquire())
  await clock.advance(1000)
  t.match(waiting.error, {
    code: 'FST_POOL_ACQUIRE_TIMEOUT', message: /within 1000 ms \(max 1, .*\): in the way is a gate$/, statusCode: 503,
  })
  t.match(pool.stats(), { timeouts: 1, idle: 1, pending: 0 })
  t.equal(books.destroyed, 0)
})

t.test('it is asked again only while somebody waits, and at most each 25 ms then', async (t) => {
  const { pool, clock, books } = hindered({ max: 1, validateAfter: 0, idleTimeout: 0 })
  ;(await pool.acquire()).release()
  books.way = 'a gate'
  const waiting = watch(pool.acquire())
  await clock.advance(1000)
  t.ok(waiting.error instanceof Error)
  t.ok(books.asked < 60, `asked ${books.asked} times in a second`)
  const { asked } = books
  await clock.advance(60_000)
  t.equal(books.asked, asked)
})

t.test('no other connection is made meanwhile: it would meet it too', async (t) => {
  const { pool, clock, books } = hindered({ max: 5 })
  ;(await pool.acquire()).release()
  books.way = 'a gate'
  const waiting = Array.from({ length: 3 }, () => watch(pool.acquire()))
  await clock.advance(100)
  t.equal(books.created, 1)
  books.way = undefined
  await clock.advance(50)
  t.ok(waiting.every(({ done }) => done))
})

t.test('a connection that comes back goes to nobody while it is there', async (t) => {
  const { pool, clock, books } = hindered({ max: 1 })
  const lease = await pool.acquire()
  const waiting = watch(pool.acquire())
  books.way = 'a gate'
  lease.release()
  await clock.advance(100)
  t.equal(waiting.done, false)
  books.way = undefined
  await clock.advance(25)
  t.ok(waiting.done)
})

t.test('close ends it: nobody waits for ever, and no connection is left', async (t) => {
  for (const draining of [false, true]) {
    const { pool, clock, books } = hindered({ max: 1, acquireTimeout: 100_000 })
    const lease = await pool.acquire()
    const waiting = watch(pool.acquire())
    books.way = 'a gate'
    lease.release()
    await settle()
    const drained = draining ? pool.drain() : undefined
    const closed = pool.close({ timeout: 500 })
    await clock.advance(600)
    await Promise.all([closed, drained])
    t.match(waiting.error, { code: 'FST_POOL_CLOSED' })
    t.equal(books.destroyed, books.created)
    t.same(clock.timers, { set: 0, ref: 0 })
  }
})

t.test('what it throws is reported, and in nobody\'s way', async (t) => {
  const pool = new Pool<object>({
    system: 'fake', create: async () => ({}), destroy: () => {}, obstacle: () => { throw new Error('mine') },
  }, { max: 1 })
  const told: unknown[] = []
  pool.on('error', ({ phase, error }) => told.push([phase, error.message]))
  ;(await pool.acquire()).release()
  pool.tryAcquire()!.release()
  t.same(told.at(-1), ['obstacle', 'mine'])
  await pool.close()
})

t.test('a listener may end the wait of those whom an obstacle that throws is in nobody\'s way of', async (t) => {
  const strays: unknown[] = []
  const stray = (error: unknown) => { strays.push(error) }
  process.on('unhandledRejection', stray)
  t.teardown(() => { process.off('unhandledRejection', stray) })
  const { pool, books } = hindered({ max: 1 })
  const controller = new AbortController()
  pool.on('error', () => { controller.abort() })
  books.throws = new Error('mine')
  const waiting = watch(pool.acquire({ signal: controller.signal }))
  await settle()
  waiting.value?.release()
  await settle()
  t.same(strays, [])
  t.ok(controller.signal.aborted)
  t.match(pool.stats(), { idle: 1, used: 0, pending: 0 })
})

t.test('being asked for it is no sign of life: who was idle for long must answer when it is gone', async (t) => {
  const { pool, clock, books } = hindered({ max: 1, validateAfter: 100 })
  ;(await pool.acquire()).release()
  books.way = 'a gate'
  const waiting = watch(pool.acquire())
  await clock.advance(500)
  t.equal(books.validated, 0, 'no round trip in vain')
  books.way = undefined
  await clock.advance(25)
  t.ok(waiting.done)
  t.equal(books.validated, 1)
})

t.test('whoever can be served is within 25 ms of its end, be another connection slow to answer', async (t) => {
  const { pool, clock, books } = hindered({ max: 3, validateAfter: 50 })
  const leases = await Promise.all([pool.acquire(), pool.acquire(), pool.acquire()])
  for (const lease of leases) lease.release()
  await clock.advance(60)
  books.way = 'a gate'
  const waiting = Array.from({ length: 3 }, () => watch(pool.acquire()))
  await clock.advance(100)
  books.way = undefined
  await clock.advance(25)
  t.ok(waiting.every(({ done }) => done))
})

t.test('what is there without anybody who waits is made meanwhile: open() does not wait for it', async (t) => {
  const { pool, clock, books } = hindered({ max: 3 })
  ;(await pool.acquire()).release()
  books.way = 'a gate'
  const waiting = watch(pool.acquire())
  pool.resize({ min: 3 })
  const opened = watch(pool.open())
  await clock.advance(100)
  t.same([opened.done, waiting.done, books.created], [true, false, 3])
})

t.test('only those are told of it whom it keeps waiting', async (t) => {
  const { pool, clock, books } = hindered({ max: 2 })
  const lease = await pool.acquire()
  books.way = 'a gate'
  const waiting = watch(pool.acquire())
  await settle()
  // The one that is idle goes: now they wait for the one that is lent.
  pool.resize({ max: 1 })
  const other = watch(pool.acquire({ timeout: 100 }))
  await clock.advance(1000)
  t.match(other.error, { code: 'FST_POOL_ACQUIRE_TIMEOUT', message: /raise max\.$/ })
  t.match(waiting.error, { message: /raise max\.$/ })
  lease.release()
})

t.test('who waits in a pool that drains is told, too; and no secret is', async (t) => {
  const { pool, clock, books } = hindered({ max: 1, url: 'fake://user:hunter2@host/' })
  const lease = await pool.acquire()
  const waiting = watch(pool.acquire())
  books.way = 'the gate of fake://user:hunter2@host/'
  lease.release()
  const drained = watch(pool.drain())
  await clock.advance(1000)
  t.match(waiting.error, { code: 'FST_POOL_ACQUIRE_TIMEOUT', message: /in the way is the gate of fake:/ })
  t.notMatch(String(waiting.error), /hunter2/)
  t.ok(drained.done)
  t.equal(books.destroyed, books.created)
})
