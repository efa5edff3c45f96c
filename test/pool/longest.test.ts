// Every deadline may be as long as a timer of Node can be, 2147483647 ms; none leads to a longer timer, which Node
// would fire after 1 ms.
import Fastify from 'fastify'
import t from 'tap'
import { TargetPool } from '../../lib/balance/target-pool.js'
import { fastifyPool } from '../../lib/fastify/plugin.js'
import { Bulkhead } from '../../lib/fastify/rules/bulkhead.js'
import { Pool } from '../../lib/pool/pool.js'
import type { EngineOptions } from '../../types/options.js'
import type { Timer } from '../../types/pool.js'
import { listen } from '../support/app.js'
import { VirtualClock } from '../support/clock.js'
import { FakeConnector, type FakeConnection, watch } from '../support/fake-connector.js'

const longest = 2 ** 31 - 1
/** Here a deadline that far away is rounded up: `now + longest - now > longest`. */
const now = 1934.6038216282445

/** As Node's timers. */
class StrictClock extends VirtualClock {
  readonly tooLong: number[] = []

  override setTimer (fn: () => void, ms: number): Timer {
    if (ms > longest) this.tooLong.push(ms)
    return super.setTimer(fn, ms)
  }

  static async started (): Promise<StrictClock> {
    const clock = new StrictClock()
    await clock.advance(now)
    return clock
  }
}

const times = [
  'acquireTimeout', 'connectTimeout', 'validateTimeout', 'resetTimeout', 'destroyTimeout', 'commitTimeout',
  'closeTimeout', 'idleTimeout', 'maxLifetime', 'validateAfter', 'keepalive', 'leakAfter',
] as const
const all: EngineOptions<FakeConnection> = {
  ...Object.fromEntries(times.map((name) => [name, longest])),
  backoff: { min: longest, max: longest },
  circuit: { failures: 1, openFor: longest },
}

t.test('a pool: every option, and every call', async (t) => {
  for (const options of [all, ...times.map((name) => ({ [name]: longest }))]) {
    const clock = await StrictClock.started()
    const connector = new FakeConnector()
    const pool = new Pool<FakeConnection>(connector, { max: 1, ...options }, clock)
    const ended = watch((async () => {
      await pool.open()
      await pool.use(() => {}, { timeout: longest, retry: 1 })
      await pool.transaction(() => {}, { timeout: longest, commitTimeout: longest })
      await pool.acquire({ timeout: longest }).then((lease) => { lease.release() })
    })())
    await clock.advance(1000)
    t.strictSame([ended.done, ended.error], [true, undefined])
    const held = watch(pool.acquire())
    const waits = watch(pool.acquire({ timeout: longest }))
    await clock.advance(500)
    t.equal(waits.done, false)
    held.value!.release()
    await clock.advance(0)
    waits.value!.release()
    connector.outcomes.create = 'error'
    pool.evict()
    const fails = watch(pool.acquire({ timeout: 100 }))
    await clock.advance(5000)
    t.equal(fails.done, true)
    connector.outcomes.create = 'ok'
    const closed = watch(pool.close({ timeout: longest }))
    await clock.advance(5000)
    t.strictSame([closed.done, closed.error], [true, undefined])
    t.strictSame(clock.tooLong, [], JSON.stringify(options))
  }
})

t.test('a run of `use` that comes again has what is left, and no more than there was', async (t) => {
  const clock = await StrictClock.started()
  const connector = Object.assign(new FakeConnector(), { isTransient: () => true })
  const pool = new Pool<FakeConnection>(connector, { max: 1, backoff: { min: 1, max: 1 } }, clock)
  let runs = 0
  const used = watch(pool.use(() => { if (runs++ === 0) throw new Error('once') }, { retry: 1, timeout: longest }))
  await clock.advance(10)
  t.strictSame([used.done, used.error, runs], [true, undefined, 2])
})

t.test('a pool over several servers: callers wait, and servers answer', async (t) => {
  const clock = await StrictClock.started()
  const connector = Object.assign(new FakeConnector(), { inspect: async () => ({ role: 'primary' as const }) })
  const options = { ...all, maxLag: longest, checkInterval: longest, max: 1 }
  const pool = new TargetPool<FakeConnection>([{ connector }], options, clock)
  const opened = watch(pool.open())
  await clock.advance(100)
  t.strictSame([opened.done, opened.error], [true, undefined])
  const held = watch(pool.acquire())
  await clock.advance(now - clock.now() % now)
  const waits = watch(pool.acquire())
  await clock.advance(500)
  t.strictSame([waits.done, waits.error], [false, undefined])
  held.value!.release()
  await clock.advance(0)
  waits.value!.release()
  t.match(await pool.health(), { status: 'up' })
  const closed = watch(pool.close())
  await clock.advance(100)
  t.equal(closed.done, true)
  t.strictSame(clock.tooLong, [])
})

t.test('a bulkhead: a request waits for its share, then for its connection', async (t) => {
  const clock = await StrictClock.started()
  const pool = new Pool<FakeConnection>(new FakeConnector(), { max: 2, acquireTimeout: longest }, clock)
  const options = { acquireTimeout: longest, maxPending: 10, bulkhead: { key: () => 'a', max: 1 } }
  const bulkhead = new Bulkhead(pool as never, options, clock)
  const request = { id: 'one' } as never
  const held = watch(bulkhead.acquire(request, {}))
  await clock.advance(1)
  const waits = watch(bulkhead.acquire(request, { timeout: longest }))
  await clock.advance(1)
  t.equal(waits.done, false)
  held.value!.release()
  await clock.advance(1)
  t.strictSame([waits.done, waits.error], [true, undefined])
  waits.value!.release()
  t.strictSame(clock.tooLong, [])
})

t.test('the plugin: requests, and a close', async (t) => {
  const warnings: Error[] = []
  const warned = (warning: Error) => { warnings.push(warning) }
  process.on('warning', warned)
  t.teardown(() => { process.off('warning', warned) })
  const app = Fastify()
  await app.register(fastifyPool, {
    ...all as object,
    connector: new FakeConnector(),
    abortGrace: longest,
    bodyGrace: longest,
    replyGrace: longest,
    lease: { transaction: { commitTimeout: longest } },
  })
  app.post('/', async (request) => ({ has: (request as unknown as { db: unknown }).db !== undefined }))
  const port = await listen(t, app)
  const response = await fetch(`http://127.0.0.1:${port}/`, {
    method: 'POST', body: '{}', headers: { 'content-type': 'application/json' },
  })
  t.strictSame([response.status, await response.json()], [200, { has: true }])
  await app.close()
  t.strictSame(warnings, [])
})

t.test('beyond it: refused, and the error says what there can be', async (t) => {
  const pool = new Pool(new FakeConnector())
  const several = new TargetPool([{ connector: new FakeConnector() }])
  const expected = 'expected a number of milliseconds from 1 to 2147483647'
  for (const one of [pool, several]) {
    for (const timeout of [longest + 1, Infinity]) {
      const message = `option timeout is ${timeout}: ${expected}`
      await t.rejects(one.acquire({ timeout }), { code: 'FST_POOL_BAD_OPTIONS', message })
      await t.rejects(one.use(() => {}, { timeout }), { message })
      t.throws(() => one.close({ timeout }), { message })
    }
  }
})
