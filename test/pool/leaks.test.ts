// What is told of a leak: which code acquired the lease, however it got it, and what became of the lease.
import Fastify, { type FastifyInstance, type FastifyRequest } from 'fastify'
import t, { type Test } from 'tap'
import { TargetPool } from '../../lib/balance/target-pool.js'
import fastifyPool from '../../index.js'
import type { EngineOptions } from '../../types/options.js'
import type { Lease, PoolFace } from '../../types/pool.js'
import { VirtualClock, settle } from '../support/clock.js'
import { FakeConnector, fakePool, watch, type FakeConnection, type FakePool } from '../support/fake-connector.js'
import { rulesOf } from '../support/rules.js'
import { until } from '../support/until.js'

/** The code that leaks. */
async function culprit (pool: PoolFace<FakeConnection>): Promise<Lease<FakeConnection>> {
  return await pool.acquire()
}

/** A stack that begins with the code that leaks. */
function names (t: Test, stack: string | undefined, how: string): void {
  t.match(stack?.split('\n').slice(0, 2).join('\n'), /^Error: acquired\n +at (async )?(\w+\.)?culprit /, `${how}: ${stack}`)
}

/** A pool that has found a leak already, without a connection. */
async function warned (options: EngineOptions<FakeConnection> = {}): Promise<FakePool> {
  const fake = fakePool({ leakAfter: 1000, max: 1, acquireTimeout: 600_000, ...options })
  const first = await fake.pool.acquire()
  await fake.clock.advance(1000)
  first.destroy()
  await settle()
  t.equal(fake.seen('leak').length, 1)
  t.equal(fake.seen('leak')[0]!.stack, undefined)
  return fake
}

/** Each way to a connection: `acquire` lets the culprit call. */
const ways: Record<string, (fake: FakePool, acquire: () => void) => unknown> = {
  'it was idle': async ({ pool }, acquire) => {
    (await pool.acquire()).release()
    acquire()
  },
  'it had to answer first': async ({ pool, clock }, acquire) => {
    (await pool.acquire()).release()
    await clock.advance(5000)
    acquire()
  },
  'it was created': (_, acquire) => { acquire() },
  'it was waited for': async ({ pool }, acquire) => {
    const before = await pool.acquire()
    acquire()
    await settle()
    before.release()
  },
  'one did not answer, and another one was created': async ({ pool, clock, connector }, acquire) => {
    (await pool.acquire()).release()
    await clock.advance(5000)
    connector.outcomes.validate = 'error'
    acquire()
  },
}

for (const [how, way] of Object.entries(ways)) {
  t.test(`the stack names the code that acquired: ${how}`, async (t) => {
    for (const onAcquire of [undefined, () => Promise.resolve()]) {
      const fake = await warned({ idleTimeout: 0, ...(onAcquire && { onAcquire }) })
      let acquired: Promise<Lease<FakeConnection>> | undefined
      await way(fake, () => { acquired = culprit(fake.pool as unknown as PoolFace<FakeConnection>) })
      await fake.clock.advance(1)
      const lease = await acquired!
      await fake.clock.advance(1100)
      names(t, fake.seen('leak').at(-1)!.stack, onAcquire === undefined ? 'without onAcquire' : 'with onAcquire')
      lease.release()
      t.equal(fake.seen('unleak').at(-1)!.stack, fake.seen('leak').at(-1)!.stack)
      t.equal(fake.seen('unleak').at(-1)!.taken, undefined)
    }
  })
}

t.test('use(), transaction() and tryAcquire() too', async (t) => {
  const calls: Record<string, (pool: PoolFace<FakeConnection>) => unknown> = {
    use: async function culprit (pool) { await pool.use(() => new Promise(() => {})) },
    transaction: async function culprit (pool) { await pool.transaction(() => new Promise(() => {})) },
    tryAcquire: function culprit (pool) { return pool.tryAcquire() },
  }
  for (const [name, call] of Object.entries(calls)) {
    const { pool, clock, seen } = await warned()
    if (name === 'tryAcquire') (await pool.acquire()).release()
    const called = watch(Promise.resolve(call(pool as unknown as PoolFace<FakeConnection>)))
    await clock.advance(1100)
    t.equal(called.done, name === 'tryAcquire')
    names(t, seen('leak').at(-1)?.stack, name)
  }
})

t.test('over several targets: also where there was no primary, and where the caller moved on', async (t) => {
  const clock = new VirtualClock()
  class Server extends FakeConnector {
    role: 'primary' | 'replica' = 'primary'
    async inspect () { return { role: this.role } }
  }
  const [one, two] = [new Server(), new Server()]
  two.role = 'replica'
  const pool = new TargetPool<FakeConnection, Server>(
    [{ connector: one, name: 'one' }, { connector: two, name: 'two' }],
    { leakAfter: 1000, max: 2, circuit: false, acquireTimeout: 600_000 }, clock)
  const stacks: Array<string | undefined> = []
  pool.on('leak', ({ stack }) => { stacks.push(stack) })
  const first = await pool.acquire()
  await clock.advance(1100)
  first.release()
  t.same(stacks, [undefined])

  one.role = 'replica'
  await clock.advance(3000)
  const acquired = culprit(pool as unknown as PoolFace<FakeConnection>)
  await clock.advance(100)
  two.role = 'primary'
  await clock.advance(5000)
  const lease = await acquired
  await clock.advance(1100)
  t.equal(stacks.length, 2)
  names(t, stacks[1], 'no primary')
  lease.release()
  await Promise.all([pool.close(), clock.advance(1000)])
})

// --- In an app -------------------------------------------------------------------------------------------------------

for (const bulkhead of [undefined, { key: () => 'all', max: 1 }]) {
  t.test(`request.acquire that waits, ${bulkhead === undefined ? 'in line' : 'for its share'}`, async (t) => {
    const connector = new FakeConnector()
    const app: FastifyInstance = Fastify()
    t.teardown(() => app.close())
    await app.register(fastifyPool, {
      connector: connector as never,
      max: bulkhead === undefined ? 1 : 2,
      leakAfter: 5,
      lease: false,
      ...(bulkhead && { bulkhead }),
    })
    const pool = app.pools.get('db') as PoolFace<unknown>
    const stacks: Array<string | undefined> = []
    pool.on('leak', ({ stack }) => { stacks.push(stack) })
    const leaked = (count: number) => until(() => stacks.length >= count)
    let open = () => {}
    const opened = new Promise<void>((resolve) => { open = resolve })
    app.get('/first', async (request) => {
      await request.acquire('db')
      await leaked(1)
    })
    app.get('/holds', async (request) => {
      await request.acquire('db')
      await opened
    })
    app.get('/', async function culprit (this: unknown, request: FastifyRequest) {
      await request.acquire('db')
      await leaked(3)
    })
    await app.listen({ port: 0, host: '127.0.0.1' })
    await app.inject('/first')
    const holds = app.inject('/holds')
    await leaked(2)
    const waits = app.inject('/')
    await until(() => (rulesOf(app.pools, 'db').bulkhead ?? pool.stats()).pending === 1)
    open()
    await Promise.all([holds, waits])
    names(t, stacks[2], 'it waited')
  })
}

// --- What became of it -----------------------------------------------------------------------------------------------

t.test('a reported lease that the pool takes back is called that, with the reason', async (t) => {
  const { pool, clock, seen } = fakePool({ leakAfter: 1000, max: 4, closeTimeout: 100 })
  const released = await pool.acquire()
  const destroyed = await pool.acquire()
  await pool.acquire({ holdTimeout: 2000 })
  await pool.acquire()
  await clock.advance(1100)
  t.equal(seen('leak').length, 4)
  released.release()
  destroyed.destroy()
  t.same(seen('unleak').map(({ taken }) => taken), [undefined, undefined])
  await clock.advance(1000)
  t.same(seen('unleak').slice(2).map(({ id, taken }) => [id, taken]), [[3, 'overdue']])
  await Promise.all([pool.close(), clock.advance(1000)])
  t.same(seen('unleak').slice(3).map(({ id, taken }) => [id, taken]), [[4, 'closed']])
})
