import t from 'tap'
import type { EngineOptions } from '../../types/options.js'
import type { Lease, PoolEvents } from '../../types/pool.js'
import { settle, VirtualClock } from '../support/clock.js'
import {
  failure, FakeConnector, fakePool, warm, watch, type FakeConnection, type FakePool, type Watched,
} from '../support/fake-connector.js'

/** So that creates follow each other without a pause of their own. */
const quick = { backoff: { min: 1, max: 1 } }

/** A pool with a circuit breaker as it is by default, but that it opens without a delay (`after`). */
function circuitPool (
  { circuit, ...options }: EngineOptions<FakeConnection> = {}, more?: Parameters<typeof fakePool>[1]
): FakePool {
  return fakePool({ circuit: { after: 0, ...circuit }, ...quick, ...options }, more)
}

/** Makes creates end one after the other, as '+' and '-' say, for callers that destroy what they get. */
async function createsEnd (fake: FakePool, outcomes: string): Promise<Watched<unknown>> {
  const { pool, connector, clock } = fake
  connector.outcomes.create = 'gate'
  let waiting = watch(pool.acquire())
  for (const outcome of outcomes) {
    // The longest pause between two creates.
    await clock.advance(2)
    if (outcome === '-') connector.fail('create')
    else connector.pass('create')
    await settle()
    if (outcome === '-') continue
    waiting.value?.destroy()
    waiting = watch(pool.acquire())
  }
  await clock.advance(2)
  return waiting
}

/** Lets creates fail until the circuit is open. Nobody waits then. */
async function breaks ({ pool, connector, clock }: FakePool): Promise<void> {
  connector.outcomes.create = 'error'
  const controller = new AbortController()
  watch(pool.acquire({ signal: controller.signal }))
  for (let i = 0; i < 100 && pool.stats().circuit === 'closed'; i++) await clock.advance(1)
  controller.abort()
  await settle()
}

const changes = (fake: FakePool) => fake.seen('circuit').map(({ from, to }) => `${from} > ${to}`)

// --- Opening ---------------------------------------------------------------------------------------------------------

t.test('five failed creates in a row open the circuit, four do not', async (t) => {
  const fake = circuitPool()
  const waiting = await createsEnd(fake, '----')
  t.equal(fake.pool.stats().circuit, 'closed')
  t.equal(waiting.done, false)
  t.same(changes(fake), [])
  fake.connector.fail('create', new Error('the fifth'))
  await settle()
  t.equal(fake.pool.stats().circuit, 'open')
  t.match(fake.seen('circuit'), [{ pool: 'db', from: 'closed', to: 'open', error: { message: 'the fifth' } }])
  t.notOk('target' in fake.seen('circuit')[0]!)
})

t.test('a create that works begins the count anew', async (t) => {
  const fake = circuitPool()
  await createsEnd(fake, '----+----+----')
  t.equal(fake.pool.stats().circuit, 'closed')
  fake.connector.fail('create')
  await settle()
  t.equal(fake.pool.stats().circuit, 'open')
})

t.test('how many in a row open it is an option', async (t) => {
  const one = circuitPool({ circuit: { failures: 1 } })
  await createsEnd(one, '-')
  t.equal(one.pool.stats().circuit, 'open')
  const seven = circuitPool({ circuit: { failures: 7 } })
  await createsEnd(seven, '------')
  t.equal(seven.pool.stats().circuit, 'closed')
})

t.test('it opens when more than rate of the last sample creates failed, though never many in a row', async (t) => {
  const options = { circuit: { rate: 0.5, sample: 10 } }
  const half = circuitPool(options)
  await createsEnd(half, '+-+-+-+-+-+-+-+-+-+-')
  t.equal(half.pool.stats().circuit, 'closed', 'half of them is not more than half')
  const few = circuitPool(options)
  await createsEnd(few, '--+--+---')
  t.equal(few.pool.stats().circuit, 'closed', 'nine are not the last ten')
  few.connector.fail('create')
  await settle()
  t.equal(few.pool.stats().circuit, 'open')
  const old = circuitPool(options)
  await createsEnd(old, '--+--+' + '++++++++' + '--+--')
  t.equal(old.pool.stats().circuit, 'closed', 'those before the last ten are forgotten')
})

t.test('after it has closed, what was before does not count any more', async (t) => {
  const fake = circuitPool({ circuit: { rate: 0.5, sample: 4, failures: 100, openFor: 10 } })
  await createsEnd(fake, '----')
  t.equal(fake.pool.stats().circuit, 'open')
  await fake.clock.advance(11)
  fake.connector.pass('create')
  await settle()
  t.equal(fake.pool.stats().circuit, 'closed')
  fake.pool.evict()
  await createsEnd(fake, '--')
  t.equal(fake.pool.stats().circuit, 'closed', 'two of three')
  fake.connector.fail('create')
  await settle()
  t.equal(fake.pool.stats().circuit, 'open', 'three of four')
})

t.test('creates that were under way together and failed are one failure, for the circuit and for the pauses', async (t) => {
  const clock = new VirtualClock()
  // Always the longest pause.
  clock.random = () => 0.999
  for (const circuit of [{ failures: 3, after: 0 }, { failures: 100, rate: 0.5, sample: 3, after: 0 }]) {
    const { pool, connector } =
      fakePool({ max: 5, circuit, backoff: { min: 100, max: 100_000 }, acquireTimeout: 50_000 }, { clock })
    connector.outcomes.create = 'gate'
    for (let i = 0; i < 5; i++) watch(pool.acquire())
    for (let i = 0; i < 4; i++) connector.fail('create')
    await settle()
    t.equal(connector.creates, 5)
    await clock.advance(101)
    t.equal(connector.creates, 6, '100 ms after them, not 1600')
    connector.fail('create')
    await settle()
    t.match(pool.stats(), { createErrors: 5, creating: 1, circuit: 'closed' }, 'the fifth of the first round is late')
    connector.fail('create')
    await settle()
    t.equal(pool.stats().circuit, 'closed', 'two failures')
    await clock.advance(201)
    connector.fail('create')
    await settle()
    t.match(pool.stats(), { createErrors: 7, circuit: 'open' })
    connector.outcomes.create = 'ok'
    await clock.advance(1000)
  }
})

t.test('a create that began before another one worked, and fails, is not one more failure', async (t) => {
  const { pool, connector, clock } = circuitPool({ max: 3, circuit: { failures: 2 }, acquireTimeout: 60_000 })
  connector.outcomes.create = 'gate'
  for (let i = 0; i < 3; i++) watch(pool.acquire())
  connector.fail('create')
  await settle()
  connector.pass('create')
  await settle()
  connector.fail('create')
  await settle()
  t.match(pool.stats(), { createErrors: 2, circuit: 'closed' })
  await clock.advance(2)
  connector.fail('create')
  await settle()
  t.equal(pool.stats().circuit, 'closed', 'one since the one that worked')
  connector.fail('create')
  await clock.advance(2)
  t.equal(pool.stats().circuit, 'closed', 'it was under way together with that one')
  connector.fail('create')
  await settle()
  t.equal(pool.stats().circuit, 'open')
})

for (const [name, circuit] of Object.entries({
  failures: {}, rate: { failures: 1000, rate: 0.5, sample: 4 }, 'after: 300': { after: 300 },
})) {
  t.test(`it does not open before creates have failed for so long as after says (${name})`, async (t) => {
    const { pool, connector, clock, seen } = fakePool({ circuit, ...quick })
    connector.outcomes.create = 'error'
    const waiting = watch(pool.acquire())
    const { after = 1000 } = circuit as { after?: number }
    await clock.advance(after - 1)
    t.match(pool.stats(), { circuit: 'closed', pending: 1 })
    t.ok(pool.stats().createErrors > after / 3)
    connector.outcomes.create = 'ok'
    await clock.advance(2)
    t.equal(waiting.value?.ended, false, 'whoever waits through a shorter outage is served')
    t.same(seen('circuit'), [])
    // The time begins anew.
    connector.outcomes.create = 'error'
    waiting.value?.destroy()
    const again = watch(pool.acquire())
    await clock.advance(after - 1)
    t.equal(pool.stats().circuit, 'closed')
    await clock.advance(5)
    t.equal(pool.stats().circuit, 'open')
    t.equal(again.error?.code, 'FST_POOL_CIRCUIT_OPEN')
  })
}

t.test('a short outage refuses nobody, however many come at once', async (t) => {
  for (const callers of [1, 4, 5, 10, 50]) {
    for (const lasts of [30, 900]) {
      const { pool, connector, clock } = fakePool({ circuit: undefined, max: 10 })
      connector.outcomes.create = 'error'
      const waiting = Array.from({ length: callers }, () => pool.use(() => {}).then(() => true, () => false))
      await clock.advance(lasts)
      connector.outcomes.create = 'ok'
      await clock.advance(4000)
      t.same(new Set(await Promise.all(waiting)), new Set([true]), `${callers} callers, ${lasts} ms`)
      t.match(pool.stats(), { refused: 0, timeouts: 0, circuit: 'closed' })
    }
  }
})

t.test('creates that the pool itself gave up do not count', async (t) => {
  const { pool, connector, seen } = circuitPool({ max: 8, circuit: { failures: 1 } })
  connector.outcomes.create = 'gate'
  const controller = new AbortController()
  for (let i = 0; i < 8; i++) watch(pool.acquire({ signal: controller.signal }))
  pool.resize({ max: 4 })
  await settle()
  t.match(pool.stats(), { creating: 4, createErrors: 0, circuit: 'closed' }, 'too many for the new max')
  controller.abort()
  await settle()
  t.match(pool.stats(), { creating: 2, createErrors: 0, circuit: 'closed', aborted: 8 }, 'nobody waits any more')
  pool.evict()
  await settle()
  t.match(pool.stats(), { creating: 0, createErrors: 0, circuit: 'closed' }, 'their connections would not have been kept')
  const closing = watch(pool.close({ timeout: 1000 }))
  await settle()
  t.equal(closing.done, true)
  t.match(pool.stats(), { creating: 0, createErrors: 0, circuit: 'closed' })
  t.same(seen('circuit'), [])
})

t.test('callers that were aborted, timed out or turned away do not count', async (t) => {
  const { pool, connector, clock } = circuitPool({ max: 1, maxPending: 2, circuit: { failures: 1 } })
  const lease = await pool.acquire()
  const controller = new AbortController()
  watch(pool.acquire({ signal: controller.signal }))
  watch(pool.acquire({ timeout: 10 }))
  for (let i = 0; i < 10; i++) t.equal((await failure(pool.acquire())).code, 'FST_POOL_QUEUE_FULL')
  controller.abort()
  await clock.advance(10)
  t.match(pool.stats(), { aborted: 1, timeouts: 1, refused: 10, circuit: 'closed' })
  lease.destroy(new Error('whatever'))
  await warm(pool)
  t.match(pool.stats(), { circuit: 'closed', createErrors: 0 })
  t.equal(connector.creates, 2)
})

t.test('a failing onConnect is a failed create', async (t) => {
  const fake = circuitPool({ onConnect: () => { throw new Error('no such schema') } })
  watch(fake.pool.acquire())
  await fake.clock.advance(20)
  t.match(fake.pool.stats(), { circuit: 'open', createErrors: 5 })
  t.match(fake.seen('circuit'), [{ error: { message: 'no such schema' } }])
})

// --- Open ------------------------------------------------------------------------------------------------------------

t.test('when it opens and there is no connection, all who wait are refused at once, with the reason', async (t) => {
  const { pool, connector, clock, seen } = circuitPool({
    name: 'shop', url: 'fake://me:hunter22@host', circuit: { openFor: 7000 },
  })
  connector.outcomes.create = 'gate'
  const waiting = Array.from({ length: 3 }, (_, i) => watch(pool.acquire({ holder: `caller ${i}` })))
  await clock.advance(50)
  connector.outcomes.create = 'error'
  connector.fail('create',
    Object.assign(new Error('refused for me:hunter22'), { code: 'ECONNREFUSED', input: 'hunter22' }))
  connector.fail('create')
  connector.fail('create')
  await settle()
  t.same(waiting.map(({ done }) => done), [false, false, false])
  connector.create = async () => {
    throw Object.assign(new Error('refused for me:hunter22'), { code: 'ECONNREFUSED', input: 'hunter22' })
  }
  await clock.advance(5)
  for (const { error } of waiting) {
    t.equal(error?.code, 'FST_POOL_CIRCUIT_OPEN')
    t.match(error?.message, /^pool 'shop' has no connection, and creates keep failing/)
    t.equal(error?.statusCode, 503)
    t.match(error?.headers?.['retry-after'], /^[78]$/)
    t.match(error?.cause, { message: 'refused for me:***', code: 'ECONNREFUSED' })
    t.notOk('input' in (error?.cause as Error))
  }
  t.equal(new Set(waiting.map(({ error }) => error)).size, 3, 'each has an error of its own')
  t.match(pool.stats(), { pending: 0, refused: 3, timeouts: 0, circuit: 'open' })
  t.match(seen('refuse'), [0, 1, 2].map((i) => ({ holder: `caller ${i}`, error: { code: 'FST_POOL_CIRCUIT_OPEN' } })))
  t.ok(seen('refuse').every(({ wait }) => wait >= 50 && wait <= 55))
})

t.test('while it is open and there is no connection, whoever comes is refused at once, and told when it is worth another try', async (t) => {
  const fake = circuitPool({ circuit: { openFor: 20_000 } })
  const { pool, clock, connector } = fake
  await breaks(fake)
  const before = connector.creates
  const { refused } = pool.stats()
  t.match(await failure(pool.acquire({ holder: 'me' })),
    { code: 'FST_POOL_CIRCUIT_OPEN', statusCode: 503, cause: { message: 'create failed' }, headers: { 'retry-after': /^2[012]$/ } })
  t.match(fake.seen('refuse').at(-1), { wait: 0, holder: 'me' })
  t.equal(pool.tryAcquire(), null)
  await clock.advance(15_000)
  t.match(await failure(pool.use(() => t.fail('it has no connection'))),
    { code: 'FST_POOL_CIRCUIT_OPEN', headers: { 'retry-after': /^[567]$/ } })
  t.equal(pool.stats().refused, refused + 2)
  t.equal(connector.creates, before, 'nothing was tried for them')
})

t.test('the answer tells no secret and nothing of the server', async (t) => {
  const fake = circuitPool({ url: 'fake://me:hunter22@10.0.0.7:99' })
  fake.connector.create = async () => { throw new Error('connect ECONNREFUSED 10.0.0.7:99 me:hunter22') }
  await breaks(fake)
  const error = await failure(fake.pool.acquire())
  t.notMatch(error.message, /10\.0\.0\.7|hunter22/)
  t.notMatch(`${error.stack} ${JSON.stringify(error)} ${(error.cause as Error).stack}`, /hunter22/)
})

t.test('while it is open and a connection is out, nobody is refused: they are served when it comes back', async (t) => {
  const fake = circuitPool({ max: 3 })
  const { pool, clock, seen } = fake
  const lease = await pool.acquire()
  await breaks(fake)
  t.equal(pool.stats().circuit, 'open')
  const waiting = [watch(pool.acquire()), watch(pool.acquire())]
  await clock.advance(1000)
  t.same(waiting.map(({ done }) => done), [false, false])
  lease.release()
  await settle()
  t.match(pool.stats(), { used: 1, pending: 1, refused: 0 })
  t.equal(waiting[0]!.done, true)
  t.same(seen('refuse'), [])
})

t.test('while it is open and a connection is idle, that is lent', async (t) => {
  const fake = circuitPool({ max: 3, validateAfter: 0 })
  const lease = await fake.pool.acquire()
  await breaks(fake)
  lease.release()
  await settle()
  const [first] = fake.connector.connections
  t.equal(fake.pool.stats().circuit, 'open')
  for (let i = 0; i < 3; i++) {
    await fake.pool.use((connection) => { t.equal(connection, first) })
    await fake.clock.advance(100)
  }
})

for (const end of ['destroyed', 'found dead', 'not valid any more'] as const) {
  t.test(`when the last connection is ${end} while it is open, who waits is refused at once`, async (t) => {
    const fake = circuitPool({ max: 3, validateAfter: 1000 })
    const { pool, clock, connector } = fake
    const lease = await pool.acquire()
    await breaks(fake)
    connector.outcomes.validate = 'no'
    const waiting = watch(pool.acquire())
    await clock.advance(10)
    t.equal(waiting.done, false)
    if (end === 'destroyed') lease.destroy()
    else if (end === 'found dead') {
      lease.connection.die()
      lease.release()
    } else {
      pool.suspend()
      lease.release()
      await clock.advance(2000)
      t.equal(waiting.done, false)
      pool.resume()
    }
    await settle()
    t.equal(waiting.error?.code, 'FST_POOL_CIRCUIT_OPEN')
    t.equal(pool.stats().pending, 0)
  })
}

// --- Probing ---------------------------------------------------------------------------------------------------------

for (const callers of ['nobody comes', 'callers keep coming']) {
  t.test(`while it is open, one create is tried each openFor, up to a tenth longer, where ${callers}`, async (t) => {
    const fake = circuitPool({ max: 10, circuit: { openFor: 500 } })
    const { pool, connector, clock } = fake
    await breaks(fake)
    const at: number[] = []
    connector.create = async () => {
      at.push(clock.now())
      t.equal(pool.stats().creating, 1)
      throw new Error('still down')
    }
    for (let i = 0; i < 600; i++) {
      if (callers !== 'nobody comes') {
        for (let n = 0; n < 5; n++) {
          t.match(await failure(pool.acquire()),
            { code: 'FST_POOL_CIRCUIT_OPEN' })
        }
      }
      await clock.advance(100)
    }
    const gaps = at.slice(1).map((time, index) => time - at[index]!)
    t.ok(gaps.every((gap) => gap >= 500 && gap <= 551), gaps.join(' '))
    t.ok(new Set(gaps).size > 5, 'not all processes at the same time')
    t.ok(at.length >= 60_000 / 551 - 1 && at.length <= 60_000 / 500, `${at.length} in a minute`)
    t.equal(clock.timers.ref, 0, 'and the process is not kept alive for it')
    t.same(changes(fake), ['closed > open', ...at.flatMap(() => ['open > half-open', 'half-open > open'])])
    t.equal(pool.stats().createErrors, 5 + at.length)
  })
}

t.test('while the probing create is under way there is no other one, and without a connection everybody is refused', async (t) => {
  const fake = circuitPool({ connectTimeout: 3000 })
  const { pool, connector, clock } = fake
  await breaks(fake)
  connector.outcomes.create = 'gate'
  await clock.advance(551)
  t.match(pool.stats(), { circuit: 'half-open', creating: 1 })
  const before = connector.creates
  for (let i = 0; i < 20; i++) {
    t.match(await failure(pool.acquire()), { code: 'FST_POOL_CIRCUIT_OPEN', headers: { 'retry-after': '1' } })
    await clock.advance(100)
  }
  t.equal(connector.creates, before)
})

t.test('a probing create that hangs has failed at its deadline, and the next one is tried openFor later', async (t) => {
  const fake = circuitPool({ connectTimeout: 1000, circuit: { openFor: 400 } })
  const { pool, connector, clock } = fake
  await breaks(fake)
  const errors = pool.stats().createErrors
  connector.outcomes.create = 'hang'
  await clock.advance(441)
  t.match(pool.stats(), { circuit: 'half-open', creating: 1 })
  await clock.advance(1000)
  t.match(pool.stats(), { circuit: 'open', creating: 0, late: 1, createErrors: errors + 1 })
  t.match(fake.seen('circuit').at(-1),
    { from: 'half-open', to: 'open', error: { message: 'no connection within 1000 ms (connectTimeout)' } })
  const before = connector.creates
  connector.outcomes.create = 'ok'
  await clock.advance(441)
  t.equal(connector.creates, before + 1)
  t.match(pool.stats(), { circuit: 'closed', late: 1, idle: 1 })
})

t.test('probing creates that hang for ever are no more than max', async (t) => {
  const fake = circuitPool({ max: 3, connectTimeout: 100, circuit: { openFor: 100 } })
  await breaks(fake)
  const before = fake.connector.creates
  fake.connector.outcomes.create = 'hang'
  await fake.clock.advance(60_000)
  t.equal(fake.connector.creates, before + 3)
  t.match(fake.pool.stats(), { late: 3, circuit: 'open' })
  t.match(await failure(fake.pool.acquire()), { code: 'FST_POOL_CIRCUIT_OPEN' })
  fake.connector.outcomes.create = 'ok'
  fake.connector.fail('create')
  await fake.clock.advance(0)
  t.equal(fake.pool.stats().circuit, 'closed')
})

t.test('creates from before it opened that fail later put the next one off, and are never a reason for two at a time', async (t) => {
  const fake = circuitPool({ max: 11, connectTimeout: 2000, circuit: { failures: 1, openFor: 500 } })
  const { pool, connector, clock } = fake
  // While it is out, nobody is refused.
  await pool.acquire()
  connector.outcomes.create = 'hang'
  for (let i = 0; i < 10; i++) watch(pool.acquire())
  for (let i = 0; i < 5; i++) connector.fail('create')
  await settle()
  t.match(pool.stats(), { circuit: 'open', creating: 5, pending: 10 })
  await clock.advance(551)
  t.match(pool.stats(), { circuit: 'half-open', creating: 6 }, 'those that hang do not hold it up')
  connector.calls.at(-1)!.fail()
  await settle()
  t.match(pool.stats(), { circuit: 'open', creating: 5 })
  await clock.advance(400)
  connector.fail('create')
  await clock.advance(499)
  t.equal(pool.stats().circuit, 'open')
  await clock.advance(60)
  t.match(pool.stats(), { circuit: 'half-open', creating: 5 })
})

// --- Closing ---------------------------------------------------------------------------------------------------------

t.test('a probing create that works closes it, and the next callers are served', async (t) => {
  const fake = circuitPool({ max: 3 })
  const { pool, connector, clock, seen } = fake
  await breaks(fake)
  connector.outcomes.create = 'ok'
  await clock.advance(551)
  t.match(pool.stats(), { circuit: 'closed', idle: 1 }, 'nobody had to wait for it')
  t.same(changes(fake), ['closed > open', 'open > half-open', 'half-open > closed'])
  t.ok(seen('circuit').slice(1).every((event) => !('error' in event)))
  await Promise.all([pool.acquire(), pool.acquire(), pool.acquire()])
  t.equal(connector.creates, 5 + 3)
})

t.test('when it closes, creates go on for all who wait beside a connection that is out', async (t) => {
  const fake = circuitPool({ max: 4 })
  const { pool, connector, clock } = fake
  await pool.acquire()
  await breaks(fake)
  const waiting = [1, 2].map(() => watch(pool.acquire()))
  connector.outcomes.create = 'gate'
  await clock.advance(551)
  t.match(pool.stats(), { creating: 1, pending: 2 })
  connector.outcomes.create = 'ok'
  connector.pass('create')
  await settle()
  t.match(pool.stats(), { circuit: 'closed', used: 3, pending: 0, creating: 0 })
  t.same(waiting.map(({ done }) => done), [true, true])
})

t.test('when it closes, min is filled', async (t) => {
  const fake = circuitPool({ min: 4, max: 8 })
  await breaks(fake)
  await fake.clock.advance(5000)
  t.equal(fake.pool.stats().circuit, 'open')
  fake.connector.outcomes.create = 'ok'
  await fake.clock.advance(551)
  t.match(fake.pool.stats(), { circuit: 'closed', idle: 4 })
})

t.test('a create from before it opened that works closes it', async (t) => {
  const fake = circuitPool({ max: 7, circuit: { failures: 1 } })
  const { pool, connector } = fake
  await pool.acquire()
  connector.outcomes.create = 'gate'
  for (let i = 0; i < 6; i++) watch(pool.acquire())
  for (let i = 0; i < 5; i++) connector.fail('create')
  await settle()
  t.equal(pool.stats().circuit, 'open')
  connector.pass('create')
  await settle()
  t.match(pool.stats(), { circuit: 'closed', used: 2 })
  t.same(changes(fake), ['closed > open', 'open > closed'])
})

t.test('listeners see the pool as it is: whoever acquires in one of them is refused while it is open, and served once it is closed', async (t) => {
  const fake = circuitPool()
  const { pool, connector, clock } = fake
  const tried: Array<{ to: PoolEvents['circuit']['to'], acquire: Watched<Lease<FakeConnection>> }> = []
  pool.on('circuit', ({ to }) => {
    t.equal(pool.stats().circuit, to)
    tried.push({ to, acquire: watch(pool.acquire()) })
  })
  await breaks(fake)
  connector.outcomes.create = 'ok'
  await clock.advance(551)
  t.match(tried, [
    { to: 'open', acquire: { error: { code: 'FST_POOL_CIRCUIT_OPEN' } } },
    { to: 'half-open', acquire: { error: { code: 'FST_POOL_CIRCUIT_OPEN' } } },
    { to: 'closed', acquire: { done: true } },
  ])
  t.equal(tried[2]!.acquire.value?.ended, false)
})

t.test('a listener of the opening that closes the pool, or evicts, does no harm', async (t) => {
  for (const act of ['close', 'evict', 'resize', 'suspend'] as const) {
    const fake = circuitPool({ max: 2 })
    fake.pool.on('circuit', () => {
      if (act === 'close') watch(fake.pool.close())
      else if (act === 'resize') fake.pool.resize({ max: 1 })
      else fake.pool[act]()
    })
    await breaks(fake)
    await fake.clock.advance(2000)
    t.same(fake.connector.violations, [], act)
    // A probing create that was evicted is no failure: the next one is tried at once.
    t.ok(fake.connector.creates <= 5 + 4 * (act === 'evict' ? 2 : 1), `${act}: ${fake.connector.creates}`)
  }
})

// --- Reading ---------------------------------------------------------------------------------------------------------

t.test('health: down while it is open and there is no connection, degraded while there is one, up when it has closed', async (t) => {
  const fake = circuitPool({ max: 2 })
  const { pool, connector, clock } = fake
  const lease = await pool.acquire()
  await breaks(fake)
  t.match(await pool.health(),
    { status: 'degraded', circuit: 'open', reason: 'the circuit is open: creates keep failing: create failed', stats: { circuit: 'open' } })
  lease.destroy()
  await settle()
  t.match(await pool.health(), { status: 'down', circuit: 'open', latency: null })
  connector.outcomes.create = 'gate'
  await clock.advance(551)
  t.match(await pool.health(),
    { status: 'down', circuit: 'half-open', reason: 'the circuit is half-open: creates keep failing: create failed' })
  const before = connector.creates
  connector.pass('create')
  await settle()
  const up = await pool.health()
  t.match(up, { status: 'up', circuit: 'closed', latency: 0 })
  t.notOk('reason' in up)
  t.equal(connector.creates, before, 'to ask is no reason to create')
})

t.test('an idle connection is asked for its health while the circuit is open, and one that is dead makes it down', async (t) => {
  const fake = circuitPool({ max: 2 })
  const lease = await fake.pool.acquire()
  await breaks(fake)
  fake.connector.outcomes.validate = 'no'
  lease.release()
  await settle()
  t.match(await fake.pool.health(), { status: 'down', circuit: /open/, latency: null, stats: { idle: 0 } })
})

// --- Control ---------------------------------------------------------------------------------------------------------

t.test('a suspended pool fails nobody before the deadline, and tries nothing, while the circuit is open', async (t) => {
  const fake = circuitPool({ acquireTimeout: 3000 })
  const { pool, connector, clock } = fake
  await breaks(fake)
  pool.suspend()
  const before = connector.creates
  const waiting = watch(pool.acquire())
  await clock.advance(2999)
  t.equal(waiting.done, false)
  t.equal(connector.creates, before)
  await clock.advance(1)
  t.match(waiting.error, { code: 'FST_POOL_CONNECT_FAILED', cause: { message: 'create failed' } })
  t.equal(pool.stats().timeouts, 1)
  connector.outcomes.create = 'ok'
  pool.resume()
  await settle()
  t.match(pool.stats(), { circuit: 'closed', idle: 1 }, 'what was due is tried at once')
})

t.test('a pool that is suspended while its creates fail refuses nobody when the circuit opens', async (t) => {
  const { pool, connector, clock } = circuitPool({ max: 5, acquireTimeout: 3000, circuit: { failures: 1 } })
  connector.outcomes.create = 'gate'
  const waiting = [1, 2, 3, 4, 5].map(() => watch(pool.acquire()))
  pool.suspend()
  for (let i = 0; i < 5; i++) connector.fail('create')
  await clock.advance(2999)
  t.equal(pool.stats().circuit, 'open')
  t.same(waiting.map(({ done }) => done), Array(5).fill(false))
})

t.test('evict while it is open: what is tried goes on, and what comes of it is closed', async (t) => {
  const fake = circuitPool({ max: 3 })
  const { pool, connector, clock } = fake
  await breaks(fake)
  connector.outcomes.create = 'gate'
  await clock.advance(551)
  pool.evict()
  t.equal(connector.calls[0]?.signal?.aborted, false)
  connector.outcomes.create = 'ok'
  connector.pass('create')
  await settle()
  t.match(pool.stats(), { circuit: 'closed', idle: 0, destroyed: { stale: 1 } }, 'it has worked, all the same')
  await warm(pool)
})

t.test('evictions again and again are no way to more creates than one at a time', async (t) => {
  const fake = circuitPool({ max: 3 })
  const { pool, connector, clock } = fake
  await breaks(fake)
  connector.outcomes.create = 'gate'
  const before = connector.creates
  for (let i = 0; i < 100; i++) {
    await clock.advance(100)
    pool.evict()
    t.ok(pool.stats().creating <= 1)
  }
  t.ok(connector.creates - before <= 1 + 10_000 / 500, `${connector.creates - before} in 10 s`)
})

t.test('resize while it is open: still one create at a time, with whatever max', async (t) => {
  const fake = circuitPool({ max: 3 })
  const { pool, connector, clock } = fake
  await breaks(fake)
  const before = connector.creates
  pool.resize({ min: 20, max: 50 })
  await clock.advance(400)
  t.equal(connector.creates, before)
  connector.outcomes.create = 'gate'
  await clock.advance(151)
  t.equal(connector.creates, before + 1)
  pool.resize({ min: 0, max: 1 })
  connector.outcomes.create = 'ok'
  t.equal(connector.calls[0]?.signal?.aborted, false, 'there is room for it')
  connector.pass('create')
  await settle()
  t.match(pool.stats(), { circuit: 'closed', idle: 1 })
})

t.test('a probing create that a resize gives up is not a failure, and another one is tried when there is room', async (t) => {
  const fake = circuitPool({ max: 2 })
  const { pool, connector, clock } = fake
  const lease = await pool.acquire()
  await breaks(fake)
  const errors = pool.stats().createErrors
  connector.outcomes.create = 'gate'
  await clock.advance(551)
  pool.resize({ max: 1 })
  await settle()
  t.match(pool.stats(), { creating: 0, used: 1, createErrors: errors })
  await clock.advance(2000)
  t.equal(pool.stats().creating, 0)
  connector.outcomes.create = 'ok'
  lease.destroy()
  await clock.advance(551)
  t.match(pool.stats(), { circuit: 'closed', idle: 1 })
})

for (const phase of ['open', 'half-open'] as const) {
  t.test(`close while it is ${phase}: resolves, and nothing is left or tried any more`, async (t) => {
    const fake = circuitPool({ min: 2 })
    const { pool, connector, clock } = fake
    await breaks(fake)
    if (phase === 'half-open') {
      connector.outcomes.create = 'gate'
      await clock.advance(551)
    }
    t.equal(pool.stats().circuit, phase)
    const before = connector.creates
    const closing = watch(pool.close({ timeout: 1000 }))
    await settle()
    t.equal(closing.done, true)
    t.match(await failure(pool.acquire()), { code: 'FST_POOL_CLOSED' })
    await clock.advance(5000)
    t.equal(connector.creates, before)
    t.equal(connector.live, 0)
    t.same(clock.timers, { set: 0, ref: 0 })
  })
}

t.test('a pool that drains while it is open serves who waits for a connection that is out, and tries nothing once nobody waits', async (t) => {
  const fake = circuitPool({ max: 2 })
  const { pool, connector, clock } = fake
  const lease = await pool.acquire()
  await breaks(fake)
  const waiting = watch(pool.acquire())
  const drained = watch(pool.drain())
  lease.release()
  await settle()
  t.equal(waiting.value?.ended, false)
  t.equal(drained.done, false)
  waiting.value?.release()
  await settle()
  t.equal(drained.done, true)
  const before = connector.creates
  await clock.advance(5000)
  t.equal(connector.creates, before)
})

t.test('a pool that drains while it is open serves those who come when its server is back', async (t) => {
  const fake = circuitPool()
  const { pool, connector, clock } = fake
  await breaks(fake)
  await pool.drain()
  connector.outcomes.create = 'ok'
  await clock.advance(2000)
  // The first of them may be the one who finds it out.
  const came = watch(pool.acquire())
  await clock.advance(1000)
  if (came.error !== undefined) {
    const next = watch(pool.acquire())
    await settle()
    t.equal(next.value?.ended, false)
  } else t.equal(came.value?.ended, false)
})

// --- Startup ---------------------------------------------------------------------------------------------------------

t.test('open tells its reason at the first failure, also where the circuit is open already', async (t) => {
  const fake = circuitPool({ min: 2, circuit: { openFor: 500 } })
  const { pool, connector, clock } = fake
  connector.outcomes.create = 'error'
  t.match(await failure(pool.open()),
    { code: 'FST_POOL_CONNECT_FAILED', message: /create failed/, cause: { message: 'create failed' } })
  await clock.advance(20)
  t.equal(pool.stats().circuit, 'open', 'min is tried on')
  const began = clock.now()
  const opening = watch(pool.open())
  while (!opening.done && clock.now() < began + 1000) await clock.advance(10)
  t.match(opening.error, { code: 'FST_POOL_CONNECT_FAILED', message: /create failed/ })
  t.ok(clock.now() <= began + 560, 'from the next create')
  connector.outcomes.create = 'ok'
  const again = watch(pool.open())
  await clock.advance(551)
  t.equal(again.done, true)
  t.equal(again.error, undefined)
  t.match(pool.stats(), { idle: 2, circuit: 'closed' })
})

// --- Off -------------------------------------------------------------------------------------------------------------

t.test('circuit: false: callers wait until their deadline, and creates go on by backoff alone', async (t) => {
  const { pool, connector, clock, seen } = fakePool({
    circuit: false, backoff: { min: 10, max: 10 }, acquireTimeout: 5000,
  })
  connector.outcomes.create = 'error'
  const waiting = watch(pool.acquire())
  await clock.advance(4999)
  t.equal(waiting.done, false)
  t.ok(connector.creates > 400)
  t.equal(pool.stats().circuit, 'closed')
  await clock.advance(1)
  t.equal(waiting.error?.code, 'FST_POOL_CONNECT_FAILED')
  t.match(await pool.health(), { status: 'down', circuit: 'closed' })
  t.same(seen('circuit'), [])
})

// --- A server that comes and goes ------------------------------------------------------------------------------------

/**
 * 20 callers that come back at once, 30 s long, and a server that is up for 200 ms and down for 200 ms. Its connections
 * die with it.
 */
async function flap (options: EngineOptions<FakeConnection>, seed: number, longest = false) {
  const clock = new VirtualClock(seed)
  if (longest) clock.random = () => 0.999999
  const connector = new FakeConnector()
  const fake = fakePool({ max: 5, acquireTimeout: 1000, ...options }, { clock, connector })
  const { pool } = fake
  const isUp = () => Math.floor(clock.now() / 200) % 2 === 0
  const creates: Array<{ at: number, worked: boolean }> = []
  const { create } = FakeConnector.prototype
  connector.create = (signal) => {
    connector.outcomes.create = isUp() ? 'ok' : 'error'
    creates.push({ at: clock.now(), worked: isUp() })
    return create.call(connector, signal)
  }
  const ends: Record<string, number> = {}
  const strays: unknown[] = []
  const stray = (error: unknown) => { strays.push(error) }
  process.on('unhandledRejection', stray)
  const timers = new Set<() => void>()
  const pause = (ms: number) => new Promise<void>((resolve) => {
    timers.add(resolve)
    clock.setTimer(resolve, ms)
  })
  const callers = Array.from({ length: 20 }, async (_, i) => {
    await pause(i)
    while (clock.now() < 30_000) {
      const end = await pool.use(async () => { await pause(5) })
        .then(() => 'served', (error: { code: string }) => error.code)
      ends[end] = (ends[end] ?? 0) + 1
      // Who is refused comes back later, or nearly all of what is called here would be refusals.
      await pause(end === 'served' ? 5 : 20)
    }
  })
  for (let cycle = 0; cycle < 150; cycle++) {
    await clock.advance(200)
    // Its connections die at once, those in use too.
    if (!isUp()) for (const connection of connector.connections) if (connection.state === 'open') connection.die(new Error('reset by peer'))
  }
  await clock.advance(5000)
  await Promise.all(callers)
  const closing = pool.close({ timeout: 1000 })
  await clock.advance(1000)
  await closing
  await settle()
  process.off('unhandledRejection', stray)
  return { fake, connector, clock, creates: creates.filter(({ at }) => at < 30_000), ends, strays, pool }
}

for (const failures of [5, 2]) {
  t.test(`a server that is up and down for 200 ms each, for 30 s: never more creates than the pauses and openFor allow (open after ${failures} failures)`, async (t) => {
    // With the longest pauses, what is allowed is told exactly.
    const { creates, fake } =
      await flap({ backoff: { min: 50, max: 1000 }, circuit: { failures, after: 0, openFor: 500 } }, 1, true)
    const times = [...new Set(creates.map(({ at }) => at))]
    const tooSoon: string[] = []
    let failed = 0
    let allowedAt = 0
    for (const time of times) {
      const begun = creates.filter(({ at }) => at === time)
      if (time < Math.floor(allowedAt)) tooSoon.push(`at ${time}, allowed at ${allowedAt}`)
      if (failed > 0 && begun.length > 1 && !begun[0]!.worked) tooSoon.push(`${begun.length} at ${time}`)
      if (begun[0]!.worked) failed = allowedAt = 0
      else {
        failed++
        allowedAt = time + (failed >= failures ? 550 : Math.min(1000, 50 * 2 ** (failed - 1))) * 0.999 - 1
      }
    }
    t.same(tooSoon, [])
    const opened = fake.seen('circuit').filter(({ to }) => to === 'open').length
    t.comment(`${creates.length} creates in 30 s, ${creates.filter(({ worked }) => !worked).length} failed, it opened ${opened} times`)
    if (failures === 2) t.ok(opened > 20)
  })
}

for (const seed of [1, 2, 3]) {
  t.test(`a server that is up and down for 200 ms each: few creates in each of its times, and every caller gets an answer (seed ${seed})`, async (t) => {
    const { creates, connector, ends, strays, clock, pool } = await flap({}, seed)
    const perTime = new Map<number, number>()
    for (const { at, worked } of creates) {
      if (!worked) {
        perTime.set(Math.floor(at / 200),
          (perTime.get(Math.floor(at / 200)) ?? 0) + 1)
      }
    }
    // All five at once when it goes down, then it is open for longer than the server is down.
    t.ok(Math.max(...perTime.values()) <= 5 + 5, `at most ${Math.max(...perTime.values())} in 200 ms`)
    t.ok(creates.length <= 75 * 5 + 75 * 6, `${creates.length} in 30 s`)
    t.comment(`${creates.length} creates in 30 s (without a pause: thousands), ${JSON.stringify(ends)}`)
    t.same(strays, [])
    t.same(connector.violations, [])
    t.equal(connector.live, 0)
    t.ok(ends.served! > 100)
    t.same(Object.keys(ends)
      .filter((end) => !['served', 'FST_POOL_CIRCUIT_OPEN', 'FST_POOL_ACQUIRE_TIMEOUT', 'FST_POOL_CONNECT_FAILED', 'FST_POOL_OVERLOADED'].includes(end)), [])
    t.match(pool.stats(), { idle: 0, used: 0, pending: 0, creating: 0 })
    t.equal(clock.timers.set, 0)
  })
}

t.test('with a breaker that opens at the second failure the same server gets fewer failing creates than without one', async (t) => {
  const [without, within] =
    await Promise.all([flap({ circuit: false }, 5), flap({ circuit: { failures: 2, after: 0 } }, 5)])
  const failures = ({ creates }: typeof within) => creates.filter(({ worked }) => !worked).length
  t.ok(failures(within) < failures(without), `${failures(within)} failed with one, ${failures(without)} without`)
  t.ok(within.ends.FST_POOL_CIRCUIT_OPEN! > 0)
  t.same([...within.strays, ...without.strays], [])
})
