import t from 'tap'
import type { EngineOptions } from '../../types/options.js'
import type { Lease } from '../../types/pool.js'
import { settle, VirtualClock } from '../support/clock.js'
import {
  failure, FakeConnector, fakePool, warm, watch, type FakeConnection, type FakePool,
} from '../support/fake-connector.js'

/** A pool whose connector calls errors transient that say so. */
function retryPool (options: EngineOptions<FakeConnection> = {}, clock = new VirtualClock()): FakePool {
  const connector =
    Object.assign(new FakeConnector(),
      { isTransient: (error: unknown) => error instanceof Error && error.message.startsWith('gone') })
  return fakePool({ backoff: { min: 10, max: 100 }, ...options }, { connector, clock })
}

/** Fails with these errors, one run after the other, then works. */
function failing (...errors: unknown[]) {
  const runs: Array<{ readonly connection: FakeConnection, readonly lease: Lease<FakeConnection> }> = []
  const fn = async (connection: FakeConnection, lease: Lease<FakeConnection>) => {
    runs.push({ connection, lease })
    if (errors.length >= runs.length) throw errors[runs.length - 1]
    return `run ${runs.length}`
  }
  return { fn, runs }
}

const gone = () => new Error('gone away')

t.test('fn runs again on another connection, where the connector calls its error transient', async (t) => {
  const { pool, connector, clock, seen } = retryPool()
  const { fn, runs } = failing(gone())
  const used = watch(pool.use(fn, { retry: 1, holder: 'me' }))
  await clock.advance(100)
  t.equal(used.value, 'run 2')
  t.equal(runs.length, 2)
  t.not(runs[0]!.connection, runs[1]!.connection)
  t.equal(runs[0]!.connection.reason, 'error', 'the first one is destroyed')
  t.match(seen('disconnect'), [{ id: 1, reason: 'error', error: { message: 'gone away' } }])
  t.match(seen('acquire').map(({ holder }) => holder), ['me', 'me'])
  t.equal(connector.connections[1]!.state, 'open')
  t.match(pool.stats(), { used: 0, idle: 1, acquired: 2, released: 2, destroyed: { error: 1 } })
  t.ok(runs.every(({ lease }) => lease.ended))
})

t.test('without retry, or with 0, fn runs once, whatever it throws', async (t) => {
  for (const options of [undefined, {}, { retry: 0 }, { retry: undefined as unknown as number }]) {
    const { pool } = retryPool()
    const error = gone()
    const { fn, runs } = failing(error)
    t.equal(await failure(pool.use(fn, options)), error)
    t.equal(runs.length, 1)
    t.match(pool.stats(), { used: 0, idle: 1, destroyed: { error: 0 } }, 'and its connection is kept')
  }
})

t.test('an error that is not transient is the caller\'s at once, and the connection is kept', async (t) => {
  const { pool } = retryPool()
  const error = new Error('duplicate key')
  const { fn, runs } = failing(error)
  t.equal(await failure(pool.use(fn, { retry: 5 })), error)
  t.equal(runs.length, 1)
  t.match(pool.stats(), { used: 0, idle: 1 })
})

t.test('where the connector knows no transient errors, fn runs once', async (t) => {
  const { pool } = fakePool()
  const { fn, runs } = failing(gone())
  t.match(await failure(pool.use(fn, { retry: 5 })), { message: 'gone away' })
  t.equal(runs.length, 1)
})

t.test('only true is yes: what isTransient says otherwise is no', async (t) => {
  const { pool, connector } = retryPool()
  Object.assign(connector, { isTransient: () => 'yes' })
  const { fn, runs } = failing(gone())
  await failure(pool.use(fn, { retry: 5 }))
  t.equal(runs.length, 1)
})

t.test('it runs at most retry times more, and then the last error is the caller\'s', async (t) => {
  const { pool, clock } = retryPool()
  const errors = [1, 2, 3, 4, 5].map((number) => new Error(`gone ${number}`))
  const { fn, runs } = failing(...errors)
  const used = watch(pool.use(fn, { retry: 3 }))
  await clock.advance(5000)
  t.equal(runs.length, 4)
  t.equal(used.error as unknown, errors[3])
  t.equal(new Set(runs.map(({ connection }) => connection)).size, 4)
  t.match(pool.stats(), { used: 0, acquired: 4, released: 4, idle: 1, destroyed: { error: 3 } },
    'the last connection is kept, as without retry')
})

t.test('a transient error once and another one then: that is the caller\'s', async (t) => {
  const { pool, clock } = retryPool()
  const other = new Error('syntax error')
  const { fn, runs } = failing(gone(), other)
  const used = watch(pool.use(fn, { retry: 9 }))
  await clock.advance(100)
  t.equal(used.error as unknown, other)
  t.equal(runs.length, 2)
})

t.test('a fn that throws, or returns no promise, is as one that rejects, or resolves', async (t) => {
  const { pool, clock } = retryPool()
  let runs = 0
  const used = watch(pool.use(() => {
    if (++runs === 1) throw gone()
    return runs
  }, { retry: 1 }))
  await clock.advance(100)
  t.equal(used.value, 2)
})

t.test('a connection that fn itself gave back or destroyed is not touched again', async (t) => {
  const { pool, clock, connector } = retryPool({ max: 1 })
  let runs = 0
  const used = watch(pool.use((_, lease) => {
    if (++runs > 1) return 'done'
    lease.release()
    throw gone()
  }, { retry: 1 }))
  await clock.advance(100)
  t.equal(used.value, 'done')
  t.match(pool.stats(), { idle: 1, destroyed: { error: 0 } })
  t.same(connector.violations, [])
})

// --- Pauses and the deadline -----------------------------------------------------------------------------------------

t.test('between runs it waits as backoff says: doubling, by chance, not longer than its max', async (t) => {
  const { pool, clock } = retryPool({ backoff: { min: 10, max: 100 }, acquireTimeout: 100_000 })
  const at: number[] = []
  const used = watch(pool.use(() => {
    at.push(clock.now())
    throw gone()
  }, { retry: 200 }))
  await clock.advance(60_000)
  t.equal(used.done, true)
  const pauses = at.slice(1).map((time, index) => time - at[index]!)
  t.equal(pauses.length, 200)
  t.ok(pauses.every((pause, index) => pause >= 1 && pause <= Math.min(100, 10 * 2 ** index) + 1), pauses.join(' '))
  t.ok(Math.max(...pauses) > 90 && Math.min(...pauses.slice(10)) < 20, 'full jitter')
})

t.test('all acquires have one deadline together: once it has passed, the error is the caller\'s', async (t) => {
  const clock = new VirtualClock()
  clock.random = () => 0.999
  const { pool } = retryPool({ backoff: { min: 100, max: 100 }, acquireTimeout: 1000 }, clock)
  const at: number[] = []
  const used = watch(pool.use(() => {
    at.push(clock.now())
    throw gone()
  }, { retry: 1000 }))
  await clock.advance(10_000)
  t.match(used.error, { message: 'gone away' })
  t.ok(at.length >= 10 && at.length <= 11, `${at.length} runs`)
  t.ok(at.at(-1)! <= 1000)
})

t.test('the deadline is absolute: an acquire of a later run has only what is left of it', async (t) => {
  const { pool, clock } = retryPool({ max: 1 })
  let lease: Lease<FakeConnection> | undefined
  const used = watch(pool.use(async () => {
    await new Promise<void>((resolve) => { clock.setTimer(resolve, 600) })
    // Somebody else is faster.
    pool.acquire().then((other) => { lease = other }, t.fail)
    throw gone()
  }, { retry: 3, timeout: 1000 }))
  const ends: number[] = []
  pool.on('timeout', () => { ends.push(clock.now()) })
  await clock.advance(999)
  t.equal(used.done, false)
  t.equal(lease?.ended, false)
  await clock.advance(2)
  t.equal(used.error?.code, 'FST_POOL_ACQUIRE_TIMEOUT')
  t.same(ends, [1000])
  lease?.release()
  t.match(pool.stats(), { pending: 0, timeouts: 1, used: 0 })
})

t.test('fn may take as long as it likes: the deadline is that of acquires, and passes while it runs', async (t) => {
  const { pool, clock } = retryPool()
  let runs = 0
  const used = watch(pool.use(async () => {
    runs++
    await new Promise<void>((resolve) => { clock.setTimer(resolve, 2000) })
    throw gone()
  }, { retry: 5, timeout: 1000 }))
  await clock.advance(10_000)
  t.match(used.error, { message: 'gone away' })
  t.equal(runs, 1)
})

t.test('an acquire that fails is not tried again, and its error is the caller\'s', async (t) => {
  const { pool, connector, clock } = retryPool({ acquireTimeout: 1000, backoff: { min: 10, max: 10 } })
  const { fn, runs } = failing(gone(), gone())
  await warm(pool)
  connector.outcomes.create = 'error'
  const used = watch(pool.use(fn, { retry: 5 }))
  await clock.advance(999)
  t.equal(used.done, false)
  await clock.advance(1)
  t.match(used.error, { code: 'FST_POOL_CONNECT_FAILED', cause: { message: 'create failed' } })
  t.equal(runs.length, 1)
})

t.test('where the circuit opens meanwhile, the next run is refused', async (t) => {
  const { pool, connector, clock } = retryPool({ circuit: { failures: 1, after: 0 } })
  const { fn } = failing(gone())
  await warm(pool)
  connector.outcomes.create = 'error'
  const used = watch(pool.use(fn, { retry: 5 }))
  await clock.advance(200)
  t.match(used.error, { code: 'FST_POOL_CIRCUIT_OPEN', cause: { message: 'create failed' } })
})

// --- Ends ------------------------------------------------------------------------------------------------------------

t.test('a signal that aborts ends it: no other run', async (t) => {
  const { pool, clock } = retryPool({ backoff: { min: 100, max: 100 } })
  const controller = new AbortController()
  const { fn, runs } = failing(gone(), gone(), gone())
  const used = watch(pool.use(fn, { retry: 5, signal: controller.signal }))
  await settle()
  t.equal(runs.length, 1)
  controller.abort(new Error('the client went away'))
  await clock.advance(100)
  t.match(used.error, { code: 'FST_POOL_ABORTED', cause: { message: 'the client went away' } })
  t.equal(runs.length, 1)
  t.match(pool.stats(), { used: 0, pending: 0, aborted: 1 })
})

t.test('a signal that aborts while it waits for a connection ends it at once', async (t) => {
  const { pool, connector, clock } = retryPool({ max: 1 })
  const controller = new AbortController()
  const { fn, runs } = failing(gone())
  const used = watch(pool.use(fn, { retry: 5, signal: controller.signal }))
  await settle()
  connector.outcomes.create = 'gate'
  await clock.advance(50)
  t.match(pool.stats(), { pending: 1 })
  controller.abort()
  await settle()
  t.equal(used.error?.code, 'FST_POOL_ABORTED')
  t.equal(runs.length, 1)
})

t.test('close ends it: what waits for its next run is told so, and no timer is left', async (t) => {
  const { pool, clock } = retryPool({ backoff: { min: 5000, max: 5000 }, acquireTimeout: 60_000 })
  const { fn, runs } = failing(gone(), gone())
  const used = watch(pool.use(fn, { retry: 5 }))
  await settle()
  const closing = watch(pool.close({ timeout: 1000 }))
  await settle()
  t.equal(closing.done, true)
  t.equal(used.error?.code, 'FST_POOL_CLOSED')
  t.equal(runs.length, 1)
  t.same(clock.timers, { set: 0, ref: 0 })
})

t.test('a run that fails when the pool has closed already ends there, and sets no timer', async (t) => {
  const { pool, clock } = retryPool({ backoff: { min: 5000, max: 5000 }, acquireTimeout: 60_000 })
  let fail = (_: Error) => {}
  const used = watch(pool.use(() => new Promise((_resolve, reject) => { fail = reject }), { retry: 5 }))
  await settle()
  const closing = watch(pool.close({ timeout: 1000 }))
  await clock.advance(1000)
  t.equal(closing.done, true)
  fail(gone())
  await settle()
  t.same(clock.timers, { set: 0, ref: 0 })
  t.equal(used.done, true)
  t.equal(used.value, undefined)
})

t.test('the process stays alive for the pause, and no longer', async (t) => {
  const clock = new VirtualClock()
  clock.random = () => 0.999
  const { pool } = retryPool({ backoff: { min: 1000, max: 1000 } }, clock)
  const { fn } = failing(gone())
  const used = watch(pool.use(fn, { retry: 1 }))
  await settle()
  t.equal(clock.timers.ref, 1)
  await clock.advance(1000)
  t.equal(used.done, true)
  await clock.advance(200)
  t.equal(clock.timers.ref, 0)
})

t.test('a bad retry is refused before anything is taken', async (t) => {
  const { pool, connector } = retryPool()
  for (const retry of [-1, 1.5, NaN, Infinity, '3', null, true, {}] as number[]) {
    t.match(await failure(pool.use(() => t.fail('it must not run'), { retry })),
      { code: 'FST_POOL_BAD_OPTIONS', message: /^option retry is .*: expected an integer of at least 0$/ })
  }
  t.match(await failure(pool.use(() => t.fail('it must not run'), { retry: 1, timeout: 0 })),
    { code: 'FST_POOL_BAD_OPTIONS', message: /timeout/ })
  t.equal(connector.creates, 0)
})

t.test('where isTransient throws, the caller still gets the error of fn, and the connection goes back', async (t) => {
  const { pool, connector } = retryPool()
  Object.assign(connector, { isTransient: () => { throw new TypeError('no code of undefined') } })
  const error = gone()
  const { fn } = failing(error)
  t.equal(await failure(pool.use(fn, { retry: 1 })), error)
  t.match(pool.stats(), { used: 0, acquired: 1, released: 1 })
})

t.test('whatever happens, leases go back: a hundred uses with failures of all kinds', async (t) => {
  const { pool, connector, clock } = retryPool({ max: 3, acquireTimeout: 10_000 })
  const ends = await (async () => {
    const all = Array.from({ length: 100 }, (_, i) => {
      const controller = new AbortController()
      const { fn } =
        failing(...Array.from({ length: i % 4 }, (_, n) => (i + n) % 5 === 0 ? new Error('final') : gone()))
      const used = watch(pool.use((connection, lease) => {
        if (i % 7 === 0) lease.release()
        if (i % 11 === 0) controller.abort()
        return fn(connection, lease)
      }, { retry: 2, signal: controller.signal }))
      return used
    })
    await clock.advance(20_000)
    return all
  })()
  t.ok(ends.every(({ done }) => done))
  const { acquired, released } = pool.stats()
  t.equal(acquired, released)
  t.match(pool.stats(), { used: 0, pending: 0, creating: 0 })
  t.same(connector.violations, [])
})
