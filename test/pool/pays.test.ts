import t, { type Test } from 'tap'
import type { EngineOptions } from '../../types/options.js'
import { settle } from '../support/clock.js'
import { FakeConnector, fakePool, watch, type FakeConnection } from '../support/fake-connector.js'

// A create is begun where it pays. The arithmetic: pace.test.ts.

/** A pool with `warm` idle connections, where a connect takes 20 ms and leases were held for `hold` ms. */
async function measured (
  t: Test,
  { warm = 5, hold = 2, ...options }: EngineOptions<FakeConnection> & { warm?: number, hold?: number } = {}
) {
  const connector = new FakeConnector()
  const fake = fakePool({ max: 50, ...options }, { connector, listen: [] })
  const { pool, clock } = fake
  const { create } = FakeConnector.prototype
  connector.create = (signal) => new Promise((resolve, reject) => {
    clock.setTimer(() => { create.call(connector, signal).then(resolve, reject) }, 20)
  })
  /** Somebody comes, and holds what it gets for `ms`. */
  const come = (ms: number) => pool.use(() => new Promise<void>((resolve) => { clock.setTimer(resolve, ms) }))
  const first = Promise.all(Array.from({ length: warm }, () => come(hold)))
  await clock.advance(20 + hold)
  await first
  t.match(pool.stats(), { idle: warm, created: warm, create: { max: 20 } })
  return { ...fake, come }
}

t.test('a burst of 50 quick ones with 5 warm connections opens no other one', async (t) => {
  const { pool, connector, clock, come } = await measured(t)
  const began = clock.now()
  const all = Promise.all(Array.from({ length: 50 }, async () => {
    await come(2)
    return clock.now() - began
  }))
  await clock.advance(30)
  t.equal(Math.max(...await all), 20, 'ten rounds of 2 ms')
  t.match(pool.stats(), { idle: 5, creating: 0, created: 5 })
  await clock.advance(1000)
  t.equal(connector.creates, 5)
})

t.test('creates are begun at once for those who would wait as long as a connect takes', async (t) => {
  const { pool, clock, come } = await measured(t)
  // The 5 serve 50 within 20 ms: the last of 60 who wait would be served after 24 ms.
  const all = Promise.all(Array.from({ length: 65 }, () => come(2)))
  t.match(pool.stats(), { used: 5, pending: 60, creating: 11 })
  await clock.advance(100)
  await all
})

t.test('slow queries: each one who waits gets a create', async (t) => {
  const { pool, clock, come } = await measured(t, { hold: 100 })
  const all = Promise.all(Array.from({ length: 50 }, () => come(100)))
  t.match(pool.stats(), { used: 5, pending: 45, creating: 45 })
  await clock.advance(200)
  await all
})

t.test('whoever has waited as long as a connect takes gets one: a pace goes stale', async (t) => {
  const { pool, connector, clock } = await measured(t)
  const held = await Promise.all(Array.from({ length: 5 }, () => pool.acquire()))
  const [first] = [watch(pool.acquire()), await clock.advance(7)]
  const second = watch(pool.acquire())
  await clock.advance(12)
  t.equal(pool.stats().creating, 0)
  await clock.advance(1)
  t.equal(pool.stats().creating, 1, '20 ms after the first came')
  await clock.advance(7)
  t.equal(pool.stats().creating, 2, '20 ms after the second came')
  await clock.advance(20)
  t.same([first!.done, second.done], [true, true])
  held[0]!.release()
  await settle()
  t.equal(connector.creates, 7)
})

t.test('what was measured more than a minute ago tells nothing: each one who waits gets a create', async (t) => {
  const { pool, clock, come } = await measured(t, { idleTimeout: 0, validateAfter: 1_000_000 })
  await clock.advance(60_010)
  const all = Promise.all(Array.from({ length: 20 }, () => come(2)))
  t.match(pool.stats(), { used: 5, creating: 15 })
  await clock.advance(100)
  await all
})

t.test('without a connection each one who waits gets a create, however quick the leases were', async (t) => {
  const { pool, clock, come } = await measured(t)
  pool.evict()
  await settle()
  const all = Promise.all(Array.from({ length: 30 }, () => come(2)))
  t.match(pool.stats(), { idle: 0, used: 0, creating: 30 })
  await clock.advance(100)
  await all
})

t.test('a pause of the event loop is no wait: whoever is served behind it gets no create', async (t) => {
  const { pool, connector, clock, come } = await measured(t)
  await clock.advance(100)
  const all = Promise.all(Array.from({ length: 40 }, () => come(2)))
  await clock.advance(3)
  clock.stall(2000)
  t.ok(pool.stats().pending > 20)
  // Somebody comes behind it, before any timer has rung.
  const last = come(2)
  await clock.advance(15)
  await clock.advance(1000)
  await Promise.all([all, last])
  t.equal(connector.creates, 5)
})

t.test('min and open() get their connections, whether that pays or not', async (t) => {
  const { pool, clock } = await measured(t)
  pool.resize({ min: 8 })
  t.equal(pool.stats().creating, 3)
  await clock.advance(20)
  t.equal(pool.stats().idle, 8)
})

t.test('where nobody waits, or all who wait are served, no tick is asked for', async (t) => {
  const { clock, come } = await measured(t, { idleTimeout: 0 })
  const all = Promise.all(Array.from({ length: 10 }, () => come(2)))
  await clock.advance(10)
  await all
  await clock.advance(1000)
  t.same(clock.timers, { set: 1, ref: 0 }, 'the end of the lifetimes')
})
