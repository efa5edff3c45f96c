import { spawn } from 'node:child_process'
import { once } from 'node:events'
import t from 'tap'
import { Pool } from '../../lib/pool/pool.js'
import { systemClock } from '../../lib/engine/time.js'
import { settle, VirtualClock } from '../support/clock.js'
import { fakePool, warm, watch } from '../support/fake-connector.js'

t.test('a connection that was idle for idleTimeout is closed', async (t) => {
  const { pool, connector, clock } = fakePool({ idleTimeout: 1000 })
  await warm(pool)
  await clock.advance(999)
  t.equal(pool.stats().idle, 1)
  await clock.advance(1)
  t.match(pool.stats(), { idle: 0, destroyed: { idle: 1 } })
  t.equal(connector.connections[0]?.reason, 'idle')
})

t.test('idle connections are never closed below min', async (t) => {
  const { pool, clock } = fakePool({ idleTimeout: 1000, min: 2 })
  await warm(pool, 5)
  await clock.advance(100_000)
  t.match(pool.stats(), { idle: 2, destroyed: { idle: 3 }, created: 5 })
})

t.test('idleTimeout 0 keeps them', async (t) => {
  const { pool, clock } = fakePool({ idleTimeout: 0, maxLifetime: 0 })
  await warm(pool)
  await clock.advance(100_000_000)
  t.equal(pool.stats().idle, 1)
  t.equal(clock.timers.set, 0, 'and no timer runs')
})

t.test('those that are used idle out later than those that are not', async (t) => {
  const { pool, connector, clock } = fakePool({ idleTimeout: 1000, validateAfter: 10_000 })
  await warm(pool, 3)
  for (let i = 0; i < 12; i++) {
    await clock.advance(100)
    await warm(pool)
  }
  t.match(pool.stats(), { idle: 1 })
  t.equal(connector.connections[2]?.state, 'open', 'the same one was used again and again')
})

t.test('a connection is closed at the end of its life, up to a tenth before, each by another part', async (t) => {
  const { pool, clock, seen } = fakePool({ maxLifetime: 100_000, idleTimeout: 0, max: 50, validateAfter: 1_000_000 })
  await warm(pool, 50)
  await clock.advance(89_999)
  t.equal(pool.stats().idle, 50)
  await clock.advance(10_001)
  t.match(pool.stats(), { idle: 0, destroyed: { lifetime: 50 } })
  const ages = seen('disconnect').map(({ age }) => age)
  t.ok(new Set(ages).size > 40, 'they do not go at once')
  t.ok(Math.min(...ages) < 91_500 && Math.max(...ages) > 98_500, 'and use the whole tenth')
})

t.test('maxLifetime 0 lets them live', async (t) => {
  const { pool, clock } = fakePool({ maxLifetime: 0, idleTimeout: 0 })
  await warm(pool)
  await clock.advance(2 ** 40)
  t.equal(pool.stats().idle, 1)
})

t.test('a lent connection whose life ends is closed when it comes back, and whoever waits gets a new one', async (t) => {
  const { pool, connector, clock } = fakePool({ maxLifetime: 1000, max: 1, acquireTimeout: 50_000 })
  const lease = await pool.acquire()
  await clock.advance(10_000)
  t.equal(lease.ended, false)
  const waiting = watch(pool.acquire())
  lease.release()
  await settle()
  t.equal(connector.connections[0]?.reason, 'lifetime')
  t.equal(waiting.value?.connection, connector.connections[1])
})

t.test('a connection whose life has ended is not lent, even before housekeeping sees it', async (t) => {
  const clock = new VirtualClock()
  const { pool, connector } = fakePool({ maxLifetime: 1000, validateAfter: 10_000 }, { clock })
  await warm(pool)
  await clock.advance(300)
  clock.now = () => 5000
  t.equal(pool.tryAcquire(), null)
  t.equal(connector.connections[0]?.reason, 'lifetime')
})

t.test('where min is to be kept, the end of a life is followed by a new connection', async (t) => {
  const { pool, clock } = fakePool({ maxLifetime: 1000, min: 2 })
  await pool.open()
  await clock.advance(1000)
  t.match(pool.stats(), { idle: 2, created: 4, destroyed: { lifetime: 2 } })
})

t.test('keepalive asks an idle connection again and again, and its idle time goes on', async (t) => {
  const { pool, connector, clock } = fakePool({ keepalive: 300, idleTimeout: 1000 })
  let asked = 0
  connector.validate = async () => {
    asked++
    return true
  }
  await warm(pool)
  await clock.advance(999)
  t.equal(asked, 3)
  t.equal(pool.stats().idle, 1)
  await clock.advance(1)
  t.match(pool.stats(), { idle: 0, destroyed: { idle: 1 } })
})

t.test('validateAfter 0 asks every idle connection, and none that is new or goes from hand to hand', async (t) => {
  const { pool, connector, clock } = fakePool({ max: 1, validateAfter: 0 })
  let asked = 0
  const { validate } = connector
  connector.validate = (...given) => {
    asked++
    return validate.apply(connector, given)
  }
  const first = await pool.acquire()
  t.equal(asked, 0, 'new')
  const next = watch(pool.acquire())
  first.release()
  await clock.advance(0)
  t.equal(asked, 0, 'from hand to hand')
  next.value!.release()
  for (const pause of [0, 0, 0.5, 1, 100]) {
    asked = 0
    await clock.advance(pause)
    t.equal(pool.tryAcquire(), null, 'it has to be asked first')
    const lease = await pool.acquire()
    lease.release()
    t.equal(asked, 1, `idle for ${pause} ms`)
  }
  // Asked for a caller that leaves: that is no reason not to ask for the next one.
  asked = 0
  connector.outcomes.validate = 'gate'
  const left = watch(pool.acquire({ timeout: 1 }))
  await clock.advance(1)
  t.equal(left.done, true)
  connector.pass('validate')
  connector.outcomes.validate = 'ok'
  await clock.advance(0)
  await pool.acquire()
  t.equal(asked, 2)
  // A spare one that nobody has waited for is idle.
  const { pool: spare, connector: other, clock: time } = fakePool({ min: 1, validateAfter: 0 })
  other.outcomes.validate = 'gate'
  await spare.open()
  watch(spare.acquire())
  await time.advance(0)
  t.doesNotThrow(() => { other.pass('validate') }, 'it is asked')
})

t.test('a connection that was kept alive need not be validated again', async (t) => {
  const { pool, clock } = fakePool({ keepalive: 300, validateAfter: 500 })
  await warm(pool)
  await clock.advance(10_000)
  t.not(pool.tryAcquire(), null)
})

t.test('a connection that does not answer its keepalive is closed, and min is filled again', async (t) => {
  for (const outcome of ['no', 'error', 'hang'] as const) {
    const { pool, connector, clock } = fakePool({ keepalive: 300, min: 1, validateTimeout: 100 })
    await pool.open()
    connector.outcomes.validate = outcome
    await clock.advance(500)
    t.match(pool.stats(), { idle: 1, created: 2, destroyed: { invalid: 1 } }, outcome)
  }
})

t.test('a connection that is asked is lent to nobody meanwhile, then to whoever waits', async (t) => {
  const { pool, connector, clock } = fakePool({ keepalive: 300, max: 1 })
  await warm(pool)
  connector.outcomes.validate = 'gate'
  await clock.advance(300)
  t.match(pool.stats(), { used: 1, idle: 0 })
  t.same(pool.holders(), [])
  t.equal(pool.tryAcquire(), null)
  const waiting = watch(pool.acquire())
  await settle()
  t.equal(waiting.done, false)
  connector.pass('validate')
  await settle()
  t.equal(waiting.value?.connection, connector.connections[0])
})

t.test('keeping alive does not change which connection is lent next, nor which idles out first', async (t) => {
  const { pool, connector, clock } = fakePool({ keepalive: 300, idleTimeout: 2000, validateAfter: 10_000 })
  const leases = await Promise.all([pool.acquire(), pool.acquire(), pool.acquire()])
  for (const lease of leases) {
    lease.release()
    await clock.advance(200)
  }
  await clock.advance(500)
  t.equal(pool.tryAcquire()?.connection, connector.connections[2])
  await clock.advance(900)
  t.same(connector.connections.map(({ state }) => state), ['destroyed', 'open', 'open'])
})

t.test('a connection that dies while it is kept alive is evicted when it would be idle again', async (t) => {
  const { pool, connector, clock } = fakePool({ keepalive: 300 })
  await warm(pool)
  connector.outcomes.validate = 'gate'
  await clock.advance(300)
  connector.connections[0]?.die(new Error('dead'))
  connector.pass('validate')
  await settle()
  t.match(pool.stats(), { used: 0, idle: 0, destroyed: { error: 1 } })
})

t.test('a connection whose ping ends while nothing else happens still idles out', async (t) => {
  const { pool, connector, clock } = fakePool({ idleTimeout: 5000, validateTimeout: 3000 })
  await warm(pool)
  connector.outcomes.validate = 'gate'
  await clock.advance(4000)
  watch(pool.health())
  await clock.advance(2000)
  connector.pass('validate')
  await clock.advance(200)
  t.match(pool.stats(), { idle: 0, destroyed: { idle: 1 } })
})

t.test('where nothing happens no tick is due, and the first to come wakes the clock', async (t) => {
  const { pool, clock } = fakePool({ idleTimeout: 0, maxLifetime: 0 })
  await warm(pool)
  t.equal(clock.timers.set, 1)
  await clock.advance(1000)
  t.equal(clock.timers.set, 0)
  t.equal(pool.tryAcquire(), null, 'it knows how long that was: the connection must be validated')
  t.same(clock.timers, { set: 1, ref: 0 })
  await warm(pool)
  t.same(clock.timers, { set: 1, ref: 1 }, 'somebody waited')
  await clock.advance(200)
  t.same(clock.timers, { set: 0, ref: 0 })
})

t.test('one timer serves all, and keeps the process alive only while somebody waits', async (t) => {
  const { pool, clock } = fakePool({ max: 2, keepalive: 5000, leakAfter: 60_000 })
  t.same(clock.timers, { set: 0, ref: 0 })
  const leases = await Promise.all([pool.acquire(), pool.acquire()])
  await clock.advance(100)
  t.same(clock.timers, { set: 1, ref: 0 })
  const controller = new AbortController()
  watch(pool.acquire({ signal: controller.signal }))
  watch(pool.acquire({ timeout: 200 }))
  t.same(clock.timers, { set: 1, ref: 1 })
  controller.abort()
  await clock.advance(100)
  t.same(clock.timers, { set: 1, ref: 1 })
  await clock.advance(300)
  t.same(clock.timers, { set: 1, ref: 0 })
  for (const lease of leases) lease.release()
  await clock.advance(300)
  t.same(clock.timers, { set: 1, ref: 0 })
  await pool.close()
  t.same(clock.timers, { set: 0, ref: 0 })
})

t.test('the process stays alive for an acquire whose connection is prepared, and for an open', async (t) => {
  const preparing = fakePool({ onAcquire: () => new Promise(() => {}) })
  watch(preparing.pool.acquire({ timeout: 3000 }))
  await preparing.clock.advance(2999)
  t.equal(preparing.clock.timers.ref, 1)
  await preparing.clock.advance(500)
  t.equal(preparing.clock.timers.ref, 0)

  const opening = fakePool()
  opening.connector.outcomes.create = 'hang'
  watch(opening.pool.open())
  t.equal(opening.clock.timers.ref, 1)
  await opening.clock.advance(2999)
  t.equal(opening.clock.timers.ref, 1)
  await opening.clock.advance(500)
  t.equal(opening.clock.timers.ref, 0)
})

t.test('a clock that stands still, or goes back, breaks nothing', async (t) => {
  const clock = new VirtualClock()
  const { pool } = fakePool({ validateAfter: 10_000 }, { clock })
  let now = 1000
  clock.now = () => now
  const lease = await pool.acquire()
  now = 500
  t.equal(lease.heldFor, 0)
  lease.release()
  t.match(pool.stats(), { idle: 1, held: { max: 0 } })
  t.not(pool.tryAcquire(), null)
})

t.test('the system clock is monotonic, unref\'d unless asked, and can be cancelled', async (t) => {
  // What is between two looks at it is no more than what is between looks around them, and no less than what is between
  // looks within.
  const around = performance.now()
  const began = systemClock.now()
  const within = performance.now()
  t.ok(systemClock.now() >= began)
  const { random } = systemClock
  t.ok(random() >= 0 && random() < 1)
  const cancelled = systemClock.setTimer(() => { t.fail('it was cancelled') }, 1)
  cancelled.cancel()
  await new Promise<void>((resolve) => {
    const timer = systemClock.setTimer(resolve, 5)
    timer.unref()
    timer.ref()
  })
  const least = performance.now() - within
  const passed = systemClock.now() - began
  t.ok(passed >= least - 2 && passed <= performance.now() - around + 2, `${passed} ms, and no less than ${least}`)
})

t.test('what blocks the event loop counts with all of its time: creates, leases, health', async (t) => {
  let least = Infinity
  const block = () => {
    const began = performance.now()
    while (performance.now() < began + 5);
    least = Math.min(least, Math.floor(performance.now() - began))
    return true
  }
  const pool = new Pool({ system: 'fake', create: async () => block(), destroy () {}, validate: async () => block() })
  t.teardown(() => pool.close())
  await pool.use((_connection, lease) => {
    block()
    t.ok(lease.heldFor >= least)
  })
  t.ok(pool.stats().held.max >= least)
  t.ok(pool.stats().create.max >= least)
  t.ok((await pool.health()).latency! >= least)
})

const program = (body: string) => `
  import { Pool } from ${JSON.stringify(new URL('../../index.ts', import.meta.url))}
  const connector = { system: 'fake', create: async () => ({}), destroy () {}, validate: async () => true }
  const say = (text) => { process.stdout.write(text + '\\n') }
  ${body}
`

/** Runs a program in a process of its own. It ends by itself, or with the test's time. */
async function run (body: string): Promise<{ code: number | null, out: string }> {
  const child =
    spawn(process.execPath,
      ['--import', String(new URL('../support/typescript.mjs', import.meta.url)), '--input-type=module', '--eval', program(body)], { cwd: new URL('../../', import.meta.url), stdio: ['ignore', 'pipe', 'inherit'] })
  let out = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => { out += text })
  const [code] = await once(child, 'close') as [number | null]
  return { code, out }
}

t.test('an idle pool that is never closed does not keep its process alive', async (t) => {
  t.same(await run(`
    const pool = new Pool(connector, { idleTimeout: 3600000, keepalive: 600000, leakAfter: 600000 })
    await pool.use(() => {})
    const lease = await pool.acquire()
    say('done')
  `), { code: 0, out: 'done\n' })
})

t.test('an acquire that waits keeps its process alive until its deadline', async (t) => {
  t.same(await run(`
    const pool = new Pool({ ...connector, create: () => new Promise(() => {}) }, {})
    pool.acquire({ timeout: 300 }).catch(({ code }) => { say(code) })
  `), { code: 0, out: 'FST_POOL_ACQUIRE_TIMEOUT\n' })
})

t.test('close keeps the process alive until it is done, and then lets it exit', async (t) => {
  t.same(await run(`
    const pool = new Pool(connector, {})
    const leaked = await pool.acquire()
    await pool.close({ timeout: 200 })
    say('closed ' + leaked.ended)
  `), { code: 0, out: 'closed true\n' })
})

t.test('the ticks of a pool at rest are few, and no more for a thousand connections than for one', async (t) => {
  const ticks = async (options: Parameters<typeof fakePool>[0], connections: number) => {
    const { pool, clock } = fakePool({ min: connections, max: connections, ...options })
    await warm(pool, connections)
    await clock.advance(2000)
    let count = 0
    await clock.advance(600_000, () => { count++ })
    t.equal(pool.stats().idle, connections)
    await pool.close()
    return count
  }
  for (const connections of [1, 1000]) {
    t.equal(await ticks({}, connections), 0, 'all of them are part of min, and live for half an hour')
    t.equal(await ticks({ idleTimeout: 0, maxLifetime: 0 }, connections), 0)
    t.ok(await ticks({ keepalive: 60_000 }, connections) <= 20, 'one for the ping, and one that its deadline needs')
  }
})
