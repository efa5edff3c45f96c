import t from 'tap'
import { fakePool, failure, warm, watch, type FakePool } from '../support/fake-connector.js'
import { settle } from '../support/clock.js'

// Connections whose server is gone without a word: a validation is never answered.

/** A pool with idle connections that were not used for longer than `validateAfter`, and whose server is silent. */
async function silentPool (count: number, options: Parameters<typeof fakePool>[0] = {}): Promise<FakePool> {
  const fake = fakePool({ max: 10, ...options })
  await warm(fake.pool, count)
  await fake.clock.advance(1500)
  fake.connector.outcomes.validate = 'hang'
  return fake
}

for (const idle of [3, 10]) {
  t.test(`${idle} idle connections die in silence, max 10: each caller has a connection after 100 ms`, async (t) => {
    const { pool, connector, clock } = await silentPool(idle)
    for (let caller = 1; caller <= 4; caller++) {
      const acquired = watch(pool.acquire())
      await clock.advance(99)
      t.equal(connector.creates, caller === 1 ? idle : idle + 1, 'no create begins before 100 ms')
      await clock.advance(1)
      t.match(acquired, { done: true, error: undefined }, `caller ${caller} is served`)
      acquired.value!.release()
      await settle()
    }
    t.equal(connector.creates, idle + 1)
    t.same(connector.violations, [])
    const closed = pool.close()
    await clock.advance(20_000)
    await closed
  })
}

t.test('whichever is first serves: a slow answer, while the create takes longer', async (t) => {
  const { pool, connector, clock } = await silentPool(2)
  connector.outcomes.validate = 'gate'
  connector.outcomes.create = 'gate'
  const acquired = watch(pool.acquire())
  await clock.advance(150)
  t.match(pool.stats(), { creating: 1, used: 1, idle: 1 })
  connector.pass('validate')
  await settle()
  t.equal(acquired.value?.connection.id, 2)
  acquired.value!.release()
  connector.pass('create')
  await settle()
  t.match(pool.stats(), { idle: 3, destroyed: { invalid: 0 } })
  await pool.close()
})

t.test('at max the pinged connection is given up: late at once, its signal aborted, and not waited for', async (t) => {
  const { pool, connector, clock, seen } = await silentPool(1, { max: 1 })
  connector.outcomes.destroy = 'hang'
  let signal: AbortSignal | undefined
  const { destroy } = connector
  connector.destroy = (connection, reason, given?: AbortSignal) => {
    signal = given
    return destroy.call(connector, connection, reason)
  }
  const acquired = watch(pool.acquire())
  await clock.advance(100)
  // As many late ones as max: nothing is created.
  t.match(pool.stats(), { late: 1, closing: 0, destroyed: { invalid: 1 } })
  t.equal(signal?.aborted, true)
  t.match(seen('error'), [{ phase: 'validate', error: { message: /no answer within 100 ms/ } }])
  connector.pass('destroy')
  await settle()
  t.equal(acquired.done, true)
  t.equal(pool.stats().late, 0)
  acquired.value!.release()
  connector.outcomes.destroy = 'ok'
  await pool.close()
})

t.test('several callers at max: each gets a create, for a connection that is given up', async (t) => {
  const { pool, connector, clock } = await silentPool(10)
  const callers = Array.from({ length: 4 }, () => watch(pool.acquire()))
  await clock.advance(100)
  t.same(callers.map(({ done }) => done), [true, true, true, true])
  // Beside the creates, four more are asked.
  t.match(pool.stats(), { used: 8, idle: 2, destroyed: { invalid: 4 } })
  t.ok(connector.peak <= 14)
  for (const { value } of callers) value!.release()
  const closed = pool.close()
  await clock.advance(10_000)
  await closed
})

t.test('nothing is given up where no create may begin', async (t) => {
  const { pool, connector, clock } = await silentPool(2, { max: 2 })
  // One create fails, so that the next one has to wait.
  connector.outcomes.create = 'error'
  const first = watch(pool.acquire())
  await clock.advance(100)
  t.match(pool.stats(), { destroyed: { invalid: 1 }, createErrors: 1, used: 1 })
  await clock.advance(1)
  t.match(pool.stats(), { destroyed: { invalid: 1 }, used: 1 })
  connector.outcomes.create = 'ok'
  await clock.advance(2000)
  t.equal(first.done, true)
  first.value!.release()
  const closed = pool.close()
  await clock.advance(10_000)
  await closed
})

/** The ids of connections that are being validated. */
const asked = ({ connector }: FakePool) => connector.calls
  .filter(({ name, connection }) => name === 'validate' && connection?.state === 'open')
  .map(({ connection }) => connection!.id)

/** Answers the validation of that connection. */
async function answer ({ connector }: FakePool, id: number): Promise<void> {
  connector.calls.find(({ name, connection }) => name === 'validate' && connection?.id === id)!.pass()
  await settle()
}

async function end ({ pool, clock, connector }: FakePool): Promise<void> {
  connector.outcomes.destroy = 'ok'
  const closed = pool.close()
  await clock.advance(20_000)
  await closed
}

t.test('a silence makes all suspect that were not seen alive since: all are asked, none is lent before', async (t) => {
  const fake = await silentPool(5)
  const { pool, connector, clock } = fake
  const first = watch(pool.acquire())
  await clock.advance(100)
  first.value!.release()
  await clock.advance(800)
  t.same(asked(fake), [5])
  connector.outcomes.validate = 'gate'
  await clock.advance(100)
  // The one that was made meanwhile is not suspect.
  t.same(asked(fake), [1, 2, 3, 4])
  t.match(pool.stats(), { idle: 1, used: 4, destroyed: { invalid: 1 } })
  await answer(fake, 2)
  t.match(pool.stats(), { idle: 2, used: 3 })
  await clock.advance(1000)
  // Three more silences: since they began, the one that was made at first was not seen alive.
  t.same(asked(fake), [6])
  await answer(fake, 6)
  t.match(pool.stats(), { idle: 2, used: 0, destroyed: { invalid: 4 } })
  await end(fake)
})

t.test('a connection that was lent before the silence must answer when it comes back', async (t) => {
  const fake = fakePool({ max: 10 })
  const { pool, connector, clock } = fake
  await warm(pool, 2)
  const lent = await pool.acquire()
  await clock.advance(1500)
  connector.outcomes.validate = 'hang'
  const other = watch(pool.acquire())
  await clock.advance(1000)
  other.value!.release()
  connector.outcomes.validate = 'gate'
  const { id } = lent.connection
  lent.release()
  await settle()
  t.same(asked(fake), [id])
  await answer(fake, id)
  t.match(pool.stats(), { idle: 2, used: 0 })
  // From now on it is as any other.
  const again = [await pool.acquire(), await pool.acquire()]
  t.same(asked(fake), [])
  for (const lease of again) lease.release()
  await end(fake)
})

t.test('a reset that waits for the server is an answer, too', async (t) => {
  const fake = fakePool({ max: 10 })
  const { pool, connector, clock } = fake
  await warm(pool, 2)
  const lent = await pool.acquire()
  await clock.advance(1500)
  connector.outcomes.validate = 'hang'
  const other = watch(pool.acquire())
  await clock.advance(1000)
  connector.outcomes.reset = 'ok'
  lent.release()
  await settle()
  t.same(asked(fake), [])
  t.match(pool.stats(), { idle: 1 })
  other.value!.release()
  await end(fake)
})

t.test('no silence: an error, a no, a connection whose end the driver tells, a tick that was late', async (t) => {
  for (const what of ['error', 'no', 'death', 'stall'] as const) {
    const fake = await silentPool(3)
    const { pool, connector, clock } = fake
    if (what === 'error' || what === 'no') connector.outcomes.validate = what
    const acquired = watch(pool.acquire())
    await clock.advance(50)
    if (what === 'death') connector.calls.find(({ name }) => name === 'validate')!.connection!.broken = true
    if (what === 'stall') clock.stall(300)
    connector.outcomes.validate = 'gate'
    await clock.advance(1400)
    t.same(asked(fake), [], what)
    acquired.value?.release()
    await end(fake)
  }
})

t.test('a stall puts no ping in doubt', async (t) => {
  const fake = await silentPool(1, { max: 1 })
  const { pool, connector, clock } = fake
  connector.outcomes.validate = 'gate'
  const acquired = watch(pool.acquire())
  await clock.advance(50)
  clock.stall(3500)
  await clock.advance(10)
  t.match(pool.stats(), { used: 1, destroyed: { invalid: 0 } })
  connector.pass('validate')
  await settle()
  t.equal(acquired.value?.connection.id, 1)
  acquired.value!.release()
  await end(fake)
})

t.test('onAcquire runs while its connection becomes suspect: the caller gets another one', async (t) => {
  let pass = () => {}
  let calls = 0
  const fake = fakePool({
    max: 10,
    validateAfter: 5000,
    onAcquire: async () => ++calls === 3 ? new Promise<void>((resolve) => { pass = resolve }) : undefined,
  })
  const { pool, connector, clock } = fake
  await warm(pool, 2)
  await clock.advance(1000)
  const acquired = watch(pool.acquire())
  await settle()
  connector.outcomes.validate = 'hang'
  const health = watch(pool.health())
  await clock.advance(1000)
  t.equal(health.done, true)
  connector.outcomes.validate = 'gate'
  pass()
  await clock.advance(50)
  t.same(asked(fake).length, 1)
  t.same(acquired, { done: false })
  await answer(fake, asked(fake)[0]!)
  t.equal(acquired.done, true)
  acquired.value!.release()
  await settle()
  await end(fake)
})

t.test('late destroys are told, and stop counting after a minute', async (t) => {
  const fake = fakePool({ max: 2, destroyTimeout: 100, acquireTimeout: 1000 })
  const { pool, connector, clock, seen } = fake
  const signals: AbortSignal[] = []
  const { destroy } = connector
  connector.destroy = (connection, reason, signal) => {
    signals.push(signal!)
    return destroy.call(connector, connection, reason)
  }
  connector.outcomes.destroy = 'hang'
  for (let i = 0; i < 2; i++) (await pool.acquire()).destroy()
  t.same(signals.map(({ aborted }) => aborted), [false, false])
  await clock.advance(100)
  t.same(signals.map(({ aborted }) => aborted), [true, true])
  t.match(signals[0]!.reason, { message: /within 100 ms \(destroyTimeout\)/ })
  const refused = failure(pool.acquire())
  await clock.advance(1000)
  t.match((await refused).message, /\(max 2, used 0, idle 0, creating 0, pending 0, late 2\): 2 creates or destroys are past/)
  t.match(await pool.health(), { status: 'down', reason: /^2 creates or destroys are past their deadlines \(late\)/ })
  connector.outcomes.destroy = 'sync'
  await clock.advance(58_000)
  t.equal(pool.stats().late, 2)
  t.equal(seen('error').length, 2)
  await clock.advance(1000)
  t.equal(pool.stats().late, 0)
  t.match(seen('error').slice(2), [
    { phase: 'destroy', error: { message: /was not closed 60 s after its deadline/ } }, { phase: 'destroy' },
  ])
  t.equal(seen('error').length, 4)
  const lease = await pool.acquire()
  lease.release()
  // They end after all: nothing more comes of it.
  connector.pass('destroy')
  connector.fail('destroy')
  await settle()
  t.match(pool.stats(), { late: 0, closing: 0, idle: 1 })
  t.equal((await pool.health()).status, 'up')
  await end(fake)
})
