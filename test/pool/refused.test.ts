import t from 'tap'
import type { EngineOptions } from '../../types/options.js'
import { settle } from '../support/clock.js'
import {
  failure, FakeConnector, fakePool, warm, watch, type FakeConnection, type FakePool,
} from '../support/fake-connector.js'

// A server that is there, and refuses us: it allows fewer connections than `max`, or it does not know us.

const minute = 60_000

// --- Fewer than max --------------------------------------------------------------------------------------------------

/** A server that allows so many connections. `tries` has when each create began. */
function limited (
  allows: number, options: EngineOptions<FakeConnection> = {}
): FakePool & { tries: number[], server: { allows: number } } {
  const connector = new FakeConnector()
  const fake = fakePool({ circuit: undefined, idleTimeout: 0, maxLifetime: 0, ...options }, { connector })
  const { create } = FakeConnector.prototype
  const tries: number[] = []
  const server = { allows }
  connector.create = async (signal) => {
    tries.push(fake.clock.now())
    if (connector.live >= server.allows) throw Object.assign(new Error('too many clients already'), { code: '53300' })
    return await create.call(connector, signal)
  }
  return { ...fake, tries, server }
}

t.test('a server that allows fewer than max: the pool serves with what it has, and tries no more while nobody waits', async (t) => {
  const { pool, clock, tries } = limited(3, { max: 10 })
  const all = Promise.all(Array.from({ length: 10 }, () => pool.use(() => {})))
  await clock.advance(5000)
  await all
  const { length } = tries
  t.match(pool.stats(), { idle: 3, pending: 0, circuit: 'closed' })
  await clock.advance(60 * minute)
  t.equal(tries.length, length, 'not one in an hour')
})

t.test('nor for min', async (t) => {
  const { pool, clock, tries } = limited(2, { min: 5, max: 10 })
  watch(pool.open())
  await clock.advance(10_000)
  const { length } = tries
  await clock.advance(60 * minute)
  t.match(pool.stats(), { idle: 2 })
  t.equal(tries.length, length)
})

t.test('while somebody waits it tries again, after pauses that grow to 30 s', async (t) => {
  const { pool, clock, tries, server } =
    limited(2, { max: 10, acquireTimeout: 100 * minute, validateAfter: minute * 100 })
  await warm(pool, 2)
  const held = await Promise.all([pool.acquire(), pool.acquire()])
  let lease = held[0]!
  const waiting = watch(pool.acquire())
  watch(pool.acquire())
  for (let i = 0; i < 20; i++) {
    lease.release()
    await clock.advance(minute)
    lease = waiting.value ?? lease
    watch(pool.acquire())
  }
  const late = tries.filter((at) => at > 5 * minute)
  const pauses = late.slice(1).map((at, i) => at - late[i]!)
  t.ok(pauses.length >= 15 * 2 && pauses.length < 15 * 8, `${pauses.length} in 15 minutes`)
  t.ok(Math.max(...pauses) > 20_000 && Math.max(...pauses) <= 30_000, `${Math.max(...pauses)}`)
  // The server allows more by now.
  server.allows = 10
  await clock.advance(30_000)
  t.ok(pool.stats().used > 2)
})

t.test('an open() that comes while the circuit is open is answered', async (t) => {
  const { pool, clock, tries } = limited(2, { min: 3, max: 3, circuit: { failures: 1, after: 0 } })
  watch(pool.open())
  await clock.advance(10 * minute)
  t.match(pool.stats(), { idle: 2, circuit: 'open' })
  const { length } = tries
  const opening = watch(pool.open())
  await clock.advance(minute)
  t.equal(tries.length, length + 1)
  t.match(opening.error, { code: 'FST_POOL_CONNECT_FAILED' })
})

t.test('a connection that goes makes room for another one at once', async (t) => {
  const { pool, clock, tries } = limited(3, { max: 10, acquireTimeout: 100 * minute })
  const held = await Promise.all([pool.acquire(), pool.acquire(), pool.acquire()])
  const waiting = [watch(pool.acquire())]
  for (let i = 0; i < 100; i++) {
    held.shift()!.release()
    waiting.push(watch(pool.acquire()))
    await clock.advance(1000)
    held.push(waiting.shift()!.value!)
  }
  await clock.advance(5)
  const before = tries.length
  t.ok(before < 40, `${before} in 100 s`)
  held[1]!.destroy()
  await settle()
  t.equal(tries.length, before + 1)
  t.equal(waiting[0]!.done, true)
})

t.test('without a connection of ours it is an outage as any other', async (t) => {
  const { pool, clock, tries, server } = limited(0, { max: 10, min: 1 })
  watch(pool.acquire())
  await clock.advance(10_000)
  t.equal(pool.stats().circuit, 'open')
  const before = tries.length
  await clock.advance(10_000)
  t.ok(tries.length - before >= 18, 'each openFor')
  server.allows = 1
  await clock.advance(551)
  t.match(pool.stats(), { circuit: 'closed', idle: 1 })
})

t.test('creates that find no answer say nothing of what is allowed: the next ones come as soon as in any outage', async (t) => {
  const { pool, connector, clock } =
    fakePool({ max: 3, circuit: {}, connectTimeout: 500, acquireTimeout: 100 * minute })
  await pool.acquire()
  connector.outcomes.create = 'gate'
  watch(pool.acquire())
  await clock.advance(minute)
  const before = connector.creates
  await clock.advance(minute)
  t.ok(connector.creates - before > 50, `${connector.creates - before} in a minute`)
})

t.test('connections that have died do not count', async (t) => {
  const { pool, connector, clock } = fakePool({ max: 3, circuit: {}, acquireTimeout: 100 * minute })
  const lease = await pool.acquire()
  connector.outcomes.create = 'error'
  lease.connection.die(new Error('reset by peer'))
  watch(pool.acquire())
  await clock.advance(minute)
  const before = connector.creates
  await clock.advance(minute)
  t.ok(connector.creates - before > 100, `${connector.creates - before} in a minute`)
})

// --- For good --------------------------------------------------------------------------------------------------------

/** A server that refuses our login while its `password` is another one than `ours.url`. */
function refusing (
  options: EngineOptions<FakeConnection> = {}
): FakePool & { tries: number[], server: { password: string } } {
  const connector = new FakeConnector()
  const server = { password: 'new' }
  const fake = fakePool({ circuit: undefined, acquireTimeout: 5000, ...options }, { connector })
  const { create } = FakeConnector.prototype
  const tries: number[] = []
  Object.assign(connector, { isPermanent: (error: Error) => error.message.startsWith('wrong password') })
  connector.create = async (signal) => {
    tries.push(fake.clock.now())
    const { url = 'old' } = options
    const given = typeof url === 'function' ? await url() : url
    if (given !== server.password) throw Object.assign(new Error('wrong password'), { code: '28P01' })
    return await create.call(connector, signal)
  }
  return { ...fake, tries, server }
}

t.test('a refused login: whoever waits, and whoever comes in the pause, is refused at once, with the cause', async (t) => {
  const { pool, clock, tries, seen } = refusing()
  t.match(await failure(pool.acquire()),
    { code: 'FST_POOL_CONNECT_FAILED', statusCode: 503, cause: { message: 'wrong password', code: '28P01' } })
  t.equal(clock.now(), 0)
  t.equal(tries.length, 1)
  for (let i = 0; i < 50; i++) {
    t.match(await failure(pool.acquire({ holder: 'me' })), { code: 'FST_POOL_CONNECT_FAILED', cause: { code: '28P01' } })
  }
  t.equal(tries.length, 1)
  t.match(pool.stats(), { refused: 51, timeouts: 0, pending: 0, circuit: 'closed' })
  t.match(seen('refuse').at(-1), { wait: 0, holder: 'me' })
})

t.test('it is tried ever more rarely, up to 30 s apart, however many come; the circuit has nothing to do with it', async (t) => {
  const { pool, clock, tries, seen } = refusing()
  for (let i = 0; i < 10 * 600; i++) {
    t.match((await failure(pool.acquire())).code, 'FST_POOL_CONNECT_FAILED')
    await clock.advance(100)
  }
  t.ok(tries.length < 80 && tries.length > 20, `${tries.length} in 10 minutes`)
  const pauses = tries.slice(1).map((at, i) => at - tries[i]!)
  t.ok(Math.max(...pauses) > 15_000 && Math.max(...pauses) <= 30_100)
  t.same(seen('circuit'), [])
  const { headers } = await failure(pool.acquire())
  t.ok(Number(headers?.['retry-after']) >= 1)
})

t.test('min is tried as rarely', async (t) => {
  const { clock, pool, tries } = refusing({ min: 3 })
  watch(pool.acquire())
  await clock.advance(60 * minute)
  t.ok(tries.length > 100 && tries.length < 300, `${tries.length} in an hour`)
})

t.test('evict() ends the pause at once', async (t) => {
  const { pool, clock, tries, server } = refusing({ min: 1 })
  watch(pool.acquire())
  await clock.advance(10 * minute)
  const before = tries.length
  server.password = 'old'
  pool.evict()
  await settle()
  t.equal(tries.length, before + 1)
  t.match(pool.stats(), { idle: 1 })
})

t.test('evict() of a listener, told of the first refusal: the others are served', async (t) => {
  const { pool, server } = refusing()
  pool.on('refuse', () => {
    server.password = 'old'
    pool.evict()
  })
  const [first, second] = [watch(pool.acquire()), watch(pool.acquire())]
  await settle()
  t.match(first.error, { code: 'FST_POOL_CONNECT_FAILED' })
  t.ok(second.value)
})

t.test('evict(), and then whoever comes is served', async (t) => {
  const { pool, clock, server } = refusing()
  watch(pool.acquire())
  await clock.advance(10)
  server.password = 'old'
  pool.evict()
  t.equal((await pool.acquire()).ended, false)
})

for (const how of ['at once', 'as a promise'] as const) {
  t.test(`url() with another answer ends the pause at once (${how})`, async (t) => {
    let password = 'old'
    const { pool, clock, tries } =
      refusing({ url: () => how === 'at once' ? password : Promise.resolve(password) as unknown as string })
    const refused = failure(pool.acquire())
    // It may have another answer than when the first create asked it: a second one asks again.
    await clock.advance(100)
    t.match(await refused, { code: 'FST_POOL_CONNECT_FAILED', cause: { code: '28P01' } })
    t.equal(tries.length, 2)
    const [first, second] = [failure(pool.acquire()), failure(pool.acquire())]
    t.match(await first, { code: 'FST_POOL_CONNECT_FAILED', cause: { code: '28P01' } })
    t.match(await second, { code: 'FST_POOL_CONNECT_FAILED' })
    const before = tries.length
    await clock.advance(10)
    t.equal(tries.length, before, 'nobody waits, and nobody asks')
    password = 'new'
    const lease = await pool.acquire()
    t.equal(lease.ended, false)
    t.equal(tries.length, before + 1)
  })
}

t.test('a url() that has changed by the time the create fails: whoever waits is served', async (t) => {
  const answers = ['old', 'new']
  const { pool, clock, tries } = refusing({ url: () => answers.shift() ?? 'new' })
  const served = watch(pool.acquire())
  await clock.advance(100)
  t.equal(served.value?.ended, false)
  t.equal(tries.length, 2)
})

t.test('a connection() with another answer does, too; one that fails is asked by the next create, which tells', async (t) => {
  let connection: () => Record<string, unknown> = () => ({ password: 'old' })
  const connector = new FakeConnector()
  const { pool, clock, seen } = fakePool({ connection: () => connection() }, { connector })
  const { create } = FakeConnector.prototype
  Object.assign(connector, { isPermanent: (error: Error) => error.message === 'wrong' })
  connector.create = async (signal) => {
    const { password } = connection()
    if (password !== 'new') throw new Error('wrong')
    return await create.call(connector, signal)
  }
  const refused = [failure(pool.acquire()), failure(pool.acquire())]
  await clock.advance(100)
  for (const error of await Promise.all(refused)) t.match(error, { code: 'FST_POOL_CONNECT_FAILED' })
  connection = () => { throw new Error('no token today') }
  const waiting = watch(pool.acquire())
  await clock.advance(100)
  t.match(seen('error').at(-1), { phase: 'create', error: { message: 'no token today' } })
  connection = () => ({ password: 'new' })
  await clock.advance(2000)
  t.equal(waiting.value?.ended, false)
})

t.test('open() rejects at once, also in the pause', async (t) => {
  for (const url of ['old', () => 'old']) {
    const { pool, clock, tries } = refusing({ url, min: 2 })
    t.match(await failure(pool.open()), { code: 'FST_POOL_CONNECT_FAILED', message: /wrong password/ })
    await clock.advance(10 * minute)
    const { length } = tries
    t.match(await failure(pool.open()),
      { code: 'FST_POOL_CONNECT_FAILED', message: /wrong password/, cause: { code: '28P01' } })
    t.equal(tries.length, length)
  }
})

t.test('where a connection is left, callers wait for it', async (t) => {
  const { pool, clock, server } = refusing({ max: 3 })
  server.password = 'old'
  const lease = await pool.acquire()
  server.password = 'new'
  const waiting = [watch(pool.acquire()), watch(pool.acquire())]
  await clock.advance(1000)
  t.same(waiting.map(({ done }) => done), [false, false])
  lease.release()
  await settle()
  t.equal(waiting[0]!.value?.ended, false)
  waiting[0]!.value?.destroy()
  await settle()
  t.equal(waiting[1]!.error?.code, 'FST_POOL_CONNECT_FAILED', 'the last one has gone')
})

t.test('a suspended pool refuses nobody for it; one that drains does', async (t) => {
  const { pool, clock } = refusing({ acquireTimeout: 1000 })
  await failure(pool.acquire())
  pool.suspend()
  const waiting = watch(pool.acquire())
  await clock.advance(10)
  t.equal(waiting.done, false)
  await clock.advance(1000)
  t.equal(waiting.error?.code, 'FST_POOL_CONNECT_FAILED')
  pool.resume()
  await pool.drain()
  t.match(await failure(pool.acquire()), { code: 'FST_POOL_CONNECT_FAILED' })
})

t.test('an isPermanent that throws is reported, and says nothing', async (t) => {
  const connector = new FakeConnector()
  Object.assign(connector, { isPermanent: () => { throw new Error('it does not know') } })
  const { pool, seen, clock } = fakePool({ acquireTimeout: 500 }, { connector })
  connector.outcomes.create = 'error'
  const waiting = watch(pool.acquire())
  await clock.advance(499)
  t.equal(waiting.done, false)
  t.ok(seen('error').some(({ error }) => error.message === 'it does not know'))
})
