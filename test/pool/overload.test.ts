import t from 'tap'
import type { EngineOptions } from '../../types/options.js'
import { settle, VirtualClock } from '../support/clock.js'
import { failure, fakePool, warm, watch, type FakeConnection, type FakePool } from '../support/fake-connector.js'

/** What part of its deadline a caller may be predicted to wait. */
const MARGIN = 0.8

interface Served extends FakePool {
  /** How each caller ended, in the order of their ends. */
  readonly ends: Array<{ readonly end: string, readonly wait: number }>
  /** Somebody comes, and holds what it gets for the service time. */
  come (timeout?: number): void
  /** How long the next ones hold it. */
  service: number
}

/** A pool with all of its connections, whose callers all take the same time, so that its line moves at a known pace. */
async function served (
  options: EngineOptions<FakeConnection>, service: number, clock = new VirtualClock()
): Promise<Served> {
  const fake = fakePool(options, { clock, listen: ['refuse', 'timeout'] })
  const { pool } = fake
  await warm(pool, pool.stats().max)
  const ends: Served['ends'] = []
  const result: Served = {
    ...fake,
    ends,
    service,
    come (timeout = 5000) {
      const since = clock.now()
      pool.acquire({ timeout }).then((lease) => {
        ends.push({ end: 'served', wait: clock.now() - since })
        clock.setTimer(() => { lease.release() }, result.service)
      }, (error: { code: string }) => { ends.push({ end: error.code, wait: clock.now() - since }) })
    },
  }
  return result
}

/** Whether somebody is refused who comes when each connection has come back so often, with 50 in line. */
async function isRefused (max: number, rounds: number): Promise<boolean> {
  const { pool, clock, come } = await served({ max }, 100)
  for (let i = 0; i < max * (rounds + 1) + 50; i++) come(100_000)
  await clock.advance(100 * rounds + 50)
  const { pending, refused } = pool.stats()
  if (pending !== 50 || refused > 0) throw new Error(`${pending} wait, ${refused} were refused`)
  come(1)
  await settle()
  return pool.stats().refused === 1
}

t.test('the first caller whose predicted wait passes its own deadline is refused at once, and nobody before', async (t) => {
  const { pool, clock, come, seen } = await served({ name: 'shop', max: 1 }, 100)
  for (let i = 0; i < 21; i++) come(100_000)
  await clock.advance(1850)
  t.match(pool.stats(), { pending: 2, used: 1, refused: 0 })
  // Each waits 100 ms longer than the one before.
  const fits = MARGIN * 5000 / 100
  while (pool.stats().pending < fits) {
    const { pending } = pool.stats()
    come()
    t.equal(pool.stats().pending, pending + 1)
  }
  const error = await failure(pool.acquire({ holder: 'one too many' }))
  t.equal(error.code, 'FST_POOL_OVERLOADED')
  t.equal(error.message,
    "pool 'shop' is overloaded: a connection would take about 4100 ms, and the deadline is in 5000 ms (max 1, used 1, idle 0, creating 0, pending 40). Look for slow queries, or raise max.")
  t.equal(error.statusCode, 503)
  t.equal(error.headers?.['retry-after'], '5', '4.1 s')
  t.same(error.holders?.map(({ pool }) => pool), ['shop'])
  t.notOk(Object.keys(error).includes('holders'))
  t.match(seen('refuse'), [{ holder: 'one too many', wait: 0, error }])
  t.match(pool.stats(), { refused: 1, pending: 40 })
  await clock.advance(100)
  t.equal(pool.stats().pending, 39)
  come()
  t.match(pool.stats(), { pending: 40, refused: 1 }, 'a turn later there is room for one')
  await clock.advance(5000)
  t.match(pool.stats(), { timeouts: 0, refused: 1, pending: 0 }, 'and all of them are served in time')
})

t.test('it is the deadline of the caller that counts, not the one of the pool', async (t) => {
  const { pool, clock, come } = await served({ max: 1, acquireTimeout: 5000 }, 100)
  for (let i = 0; i < 40; i++) come(100_000)
  await clock.advance(1950)
  const { pending } = pool.stats()
  t.equal(pending, 20)
  const predicted = (pending + 1) * 100
  t.match(await failure(pool.acquire({ timeout: predicted / MARGIN - 1 })),
    { code: 'FST_POOL_OVERLOADED', headers: { 'retry-after': '3' } })
  const patient = watch(pool.acquire({ timeout: predicted / MARGIN + 1 }))
  await settle()
  t.equal(patient.done, false)
  await clock.advance(predicted)
  t.equal(patient.value?.ended, false)
})

t.test('the pace is that of the line: ten connections move it ten times as fast as one', async (t) => {
  const { pool, clock, come } = await served({ max: 10 }, 100)
  // In turn, not all at the same time.
  for (let i = 0; i < 10; i++) {
    come(100_000)
    await clock.advance(10)
  }
  for (let i = 0; i < 200; i++) come(100_000)
  await clock.advance(1000)
  while (pool.stats().pending < 398) come()
  t.equal(pool.stats().refused, 0)
  while (pool.stats().pending < 402 && pool.stats().refused === 0) come()
  t.equal(pool.stats().refused, 1, '400 x 10 ms')
})

t.test('nobody is refused before each connection has come back twice to those in line', async (t) => {
  for (const max of [1, 2, 10, 40]) {
    for (const rounds of [0, 1, 2]) t.equal(await isRefused(max, rounds), false, `max ${max}, ${rounds} rounds`)
    t.equal(await isRefused(max, 3), true, `max ${max}, 3 rounds`)
  }
})

t.test('a line that was empty begins to learn anew', async (t) => {
  const { pool, clock, come } = await served({ max: 1 }, 100)
  for (let i = 0; i < 30; i++) come(100_000)
  await clock.advance(2050)
  t.match(await failure(pool.acquire({ timeout: 100 })), { code: 'FST_POOL_OVERLOADED' })
  await clock.advance(3000)
  t.match(pool.stats(), { pending: 0, idle: 1 })
  for (let i = 0; i < 60; i++) come(100_000)
  const waiting = watch(pool.acquire({ timeout: 50 }))
  await clock.advance(49)
  t.equal(waiting.done, false)
  await clock.advance(1)
  t.equal(waiting.error?.code, 'FST_POOL_ACQUIRE_TIMEOUT')
  await clock.advance(500)
  t.match(await failure(pool.acquire({ timeout: 100 })), { code: 'FST_POOL_OVERLOADED' })
})

t.test('where the line becomes faster, so does what is predicted', async (t) => {
  const fake = await served({ max: 1 }, 1000)
  const { pool, clock, come } = fake
  for (let i = 0; i < 120; i++) come(1_000_000)
  await clock.advance(20_050)
  t.match(await failure(pool.acquire()), { code: 'FST_POOL_OVERLOADED', headers: { 'retry-after': '30' } })
  fake.service = 10
  await clock.advance(1500)
  t.ok(pool.stats().pending > 40)
  const waiting = watch(pool.acquire())
  await clock.advance(1500)
  t.equal(waiting.value?.ended, false)
})

t.test('overload: false: everybody waits until the deadline', async (t) => {
  const { pool, clock, come } = await served({ max: 1, overload: false }, 100)
  for (let i = 0; i < 200; i++) come(1000)
  await clock.advance(1000)
  t.equal(pool.stats().refused, 0)
  t.ok(pool.stats().timeouts > 180)
  for (let i = 0; i < 200; i++) come(1000)
  t.match(pool.stats(), { refused: 0, pending: 199 })
})

t.test('callers that come when nobody is in line are served, whatever was before, also where the idle connections must be validated first', async (t) => {
  const { pool, clock, come } = await served({ max: 1, validateAfter: 1000 }, 100)
  for (let i = 0; i < 30; i++) come(100_000)
  await clock.advance(10_000)
  const lease = await pool.acquire({ timeout: 1 })
  lease.release()
  await pool.use(() => {}, { timeout: 1 })
  t.equal(pool.stats().refused, 0)
})

t.test('a suspended pool refuses nobody for its line: those who come wait until their deadlines', async (t) => {
  const { pool, clock, come } = await served({ max: 1 }, 100)
  for (let i = 0; i < 40; i++) come(100_000)
  await clock.advance(2050)
  pool.suspend()
  const waiting = watch(pool.acquire({ timeout: 1000 }))
  await clock.advance(999)
  t.equal(waiting.done, false)
  await clock.advance(1)
  t.equal(waiting.error?.code, 'FST_POOL_ACQUIRE_TIMEOUT')
})

t.test('what a pool was suspended for is not taken for the pace of its line', async (t) => {
  const { pool, clock, come } = await served({ max: 1 }, 10)
  for (let i = 0; i < 60; i++) come(100_000)
  await clock.advance(200)
  pool.suspend()
  await clock.advance(30_000)
  pool.resume()
  await clock.advance(20)
  t.ok(pool.stats().pending > 30)
  const waiting = watch(pool.acquire({ timeout: 3000 }))
  await clock.advance(1000)
  t.equal(waiting.value?.ended, false)
})

t.test('one long pause is no pace: nobody is refused for it, in whichever round of the line it was', async (t) => {
  for (const pausedIn of [1, 2, 3, 6]) {
    for (const max of [1, 20]) {
      const fake = await served({ max, maxPending: 1e6 }, 2)
      const { pool, clock, come } = fake
      for (let i = 0; i < 300 * max; i++) come(30_000)
      // Nothing comes back for 4 s.
      await clock.advance(2 * (pausedIn - 1) + 1)
      fake.service = 4000
      await clock.advance(2)
      fake.service = 2
      await clock.advance(4000)
      for (let round = 0; round < 12; round++) {
        come(30_000)
        await clock.advance(2)
      }
      t.equal(pool.stats().refused, 0, `max ${max}, a pause in round ${pausedIn}`)
      t.ok(pool.stats().pending > 250 * max)
    }
  }
})

t.test('time in which the event loop stood still is no pace, also where it did so again and again', async (t) => {
  for (const max of [1, 20]) {
    const { pool, clock, come } = await served({ max, maxPending: 1e6 }, 20)
    for (let i = 0; i < 300 * max; i++) come(60_000)
    for (let round = 0; round < 12; round++) {
      await clock.advance(40)
      clock.stall(3000)
      await clock.advance(5)
      come(60_000)
    }
    t.equal(pool.stats().refused, 0, `max ${max}`)
    t.ok(pool.stats().pending > 150 * max)
  }
})

// --- For a long time -------------------------------------------------------------------------------------------------

/** 20 s of three times as many callers as can be served, then nobody. */
async function overloaded (options: EngineOptions<FakeConnection>, { seed = 1, random = false, jitter = false } = {}) {
  const clock = new VirtualClock(seed)
  const chance = new VirtualClock(seed + 1000)
  const fake = await served({ max: 10, acquireTimeout: 1000, validateAfter: 0, ...options }, 100, clock)
  const { pool, ends } = fake
  // 10 connections serve 100 a second.
  let came = 0
  const next = () => {
    const pause = 1000 / 300 * (random ? -Math.log(1 - chance.random()) : 1)
    if (clock.now() + pause >= 20_000) return
    clock.setTimer(() => {
      came++
      if (jitter) fake.service = 50 + 100 * chance.random()
      fake.come(1000)
      next()
    }, pause)
  }
  next()
  await clock.advance(25_000)
  const of = (code: string) => ends.filter(({ end }) => end === code)
  const waits = of('served').map(({ wait }) => wait).sort((a, b) => a - b)
  return {
    pool,
    clock,
    came,
    ended: ends.length,
    served: waits.length,
    p99: waits[Math.floor(waits.length * 0.99)]!,
    timeouts: of('FST_POOL_ACQUIRE_TIMEOUT').length,
    refused: of('FST_POOL_OVERLOADED'),
    percent: (n: number) => (100 * n / came).toFixed(2),
  }
}

for (const [name, more] of Object.entries({
  'evenly, each 100 ms': {},
  'by chance, each 100 ms': { random: true },
  'by chance, each 50 to 150 ms': { random: true, jitter: true },
})) {
  t.test(`under 3 x overload nearly everybody is served or refused at once: callers that come ${name}`, async (t) => {
    for (const seed of Object.keys(more).length === 0 ? [1] : [1, 2, 3]) {
      const { pool, clock, came, ended, served, p99, timeouts, refused, percent } =
        await overloaded({}, { seed, ...more })
      t.comment(`seed ${seed}: of ${came} callers ${percent(served)} % served, ${percent(refused.length)} % refused, ${percent(timeouts)} % timed out; p99 of waits ${p99} ms`)
      t.equal(ended, came)
      t.equal(served + timeouts + refused.length, came)
      t.ok(timeouts <= 0.005 * came, `${timeouts} timed out`)
      // The first 16 turns, and all that is left in line at the end.
      t.ok(served >= 0.99 * 20 * 100, `${served} served: the pool is not idle for it`)
      t.ok(refused.every(({ wait }) => wait === 0), 'at once')
      t.ok(p99 <= 1000)
      t.match(pool.stats(), { idle: 10, used: 0, pending: 0, creating: 0, closing: 0, created: 10 },
        'and then all is as before')
      t.equal((await pool.acquire({ timeout: 1 })).ended, false)
      await clock.advance(0)
    }
  })
}

t.test('without it, under the same load, most wait in vain', async (t) => {
  const { timeouts, came, percent, refused } = await overloaded({ overload: false })
  t.comment(`${percent(timeouts)} % timed out`)
  t.ok(timeouts > 0.5 * came)
  t.equal(refused.length, 0)
})
