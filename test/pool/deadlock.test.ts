import t from 'tap'
import { settle } from '../support/clock.js'
import { failure, fakePool, warm, watch } from '../support/fake-connector.js'

t.test('a caller that holds the only connection and asks for another one is told so at once', async (t) => {
  const { pool, clock, seen } = fakePool({ name: 'shop', max: 1 })
  const me = { route: 'GET /secret-route', id: 'req-1' }
  const lease = await pool.acquire({ holder: me })
  await clock.advance(40)
  const error = await failure(pool.acquire({ holder: me }))
  t.equal(error.code, 'FST_POOL_DEADLOCK')
  t.match(error.message, /^all 1 connections of pool 'shop' are held by callers that wait for another one of it/)
  t.notMatch(error.message, /secret-route|req-1/, 'clients may see it')
  t.same(error.holders, [{ pool: 'shop', holder: me, id: 1, heldFor: 40 }])
  t.notOk(Object.keys(error).includes('holders'))
  t.notMatch(JSON.stringify(error), /secret-route/)
  t.equal(error.statusCode, undefined, 'the app is wrong, not the service unavailable')
  t.match(pool.stats(), { refused: 1, pending: 0, used: 1, timeouts: 0 })
  t.match(seen('refuse'), [{ wait: 0, holder: me, error }])
  lease.release()
  await pool.use(() => {}, { holder: me })
})

t.test('it may hold several, and all of them', async (t) => {
  const { pool } = fakePool({ max: 3 })
  const holder = { id: 'me' }
  await Promise.all([1, 2, 3].map(() => pool.acquire({ holder })))
  t.match(await failure(pool.acquire({ holder })),
    { code: 'FST_POOL_DEADLOCK', holders: [{ id: 1 }, { id: 2 }, { id: 3 }] })
})

t.test('the same caller is the same object: an id may be that of many requests, since clients send it', async (t) => {
  for (const of of [(): { route: string, id?: string } => ({ route: 'GET /a', id: '1' }), () => ({ route: 'job' })]) {
    const { pool } = fakePool({ max: 1 })
    const holder = of()
    await pool.acquire({ holder })
    t.match(await failure(pool.acquire({ holder })), { code: 'FST_POOL_DEADLOCK' })
    const equal = watch(pool.acquire({ holder: of() }))
    await settle()
    t.equal(equal.done, false, 'another one, who waits')
  }
})

t.test('texts are labels, and never a deadlock; nor is no label at all', async (t) => {
  for (const holder of ['job', '', undefined]) {
    const { pool, clock } = fakePool({ max: 1 })
    await pool.acquire({ holder })
    const waiting = watch(pool.acquire({ holder, timeout: 1000 }))
    await clock.advance(999)
    t.equal(waiting.done, false)
    await clock.advance(1)
    t.equal(waiting.error?.code, 'FST_POOL_ACQUIRE_TIMEOUT')
  }
  // An id that reads as the text of another one's label is another one.
  const { pool } = fakePool({ max: 1 })
  await pool.acquire({ holder: 'me' })
  const waiting = watch(pool.acquire({ holder: { id: 'me' } }))
  await settle()
  t.equal(waiting.done, false)
})

t.test('one unlabelled connection among those that are held is reason enough to wait', async (t) => {
  for (const other of ['somebody', undefined]) {
    const { pool } = fakePool({ max: 2 })
    const holder = { id: 'me' }
    await pool.acquire({ holder })
    const lease = await pool.acquire({ holder: other })
    const waiting = watch(pool.acquire({ holder }))
    await settle()
    t.equal(waiting.done, false)
    lease.release()
    await settle()
    t.equal(waiting.value?.ended, false)
  }
})

t.test('where the others that hold connections all wait too, the last one to wait is refused, and the others are served once it gives back', async (t) => {
  const { pool } = fakePool({ max: 3 })
  const [a, b, c] = [{ id: 'a' }, { id: 'b' }, { id: 'c' }]
  const held = await Promise.all([a, b, c].map((holder) => pool.acquire({ holder })))
  const waiting = [watch(pool.acquire({ holder: a })), watch(pool.acquire({ holder: b }))]
  await settle()
  t.same(waiting.map(({ done }) => done), [false, false])
  t.match(await failure(pool.acquire({ holder: c })), { code: 'FST_POOL_DEADLOCK' })
  held[2]!.release()
  await settle()
  t.same(waiting.map(({ done }) => done), [true, false])
  waiting[0]!.value?.release()
  await settle()
  t.equal(waiting[1]!.done, true)
})

t.test('as long as one holder does not wait, everybody else does', async (t) => {
  const { pool } = fakePool({ max: 3 })
  const [a, b, c] = [{ id: 'a' }, { id: 'b' }, { id: 'c' }]
  const held = await Promise.all([a, b, c].map((holder) => pool.acquire({ holder })))
  // Many wait, but not c.
  const waiting = [a, b, a, b, { id: 'd' }, { id: 'e' }].map((holder) => watch(pool.acquire({ holder })))
  await settle()
  t.ok(waiting.every(({ done }) => !done))
  held[2]!.release()
  await settle()
  t.equal(waiting[0]!.done, true)
})

t.test('a caller that holds nothing is no part of it, even where all who hold wait', async (t) => {
  const { pool } = fakePool({ max: 1 })
  const holder = { id: 'me' }
  const lease = await pool.acquire({ holder })
  const stranger = watch(pool.acquire({ holder: { id: 'other' } }))
  t.match(await failure(pool.acquire({ holder })), { code: 'FST_POOL_DEADLOCK' })
  t.equal(stranger.done, false)
  lease.release()
  await settle()
  t.equal(stranger.done, true)
})

t.test('whoever waited and has left, aborted or late, does not wait any more', async (t) => {
  const { pool, clock } = fakePool({ max: 2 })
  const [a, b] = [{ id: 'a' }, { id: 'b' }]
  await pool.acquire({ holder: a })
  const lease = await pool.acquire({ holder: b })
  const controller = new AbortController()
  watch(pool.acquire({ holder: b, signal: controller.signal }))
  watch(pool.acquire({ holder: b, timeout: 10 }))
  controller.abort()
  await clock.advance(10)
  const waiting = watch(pool.acquire({ holder: a }))
  await settle()
  t.equal(waiting.done, false)
  lease.release()
  await settle()
  t.equal(waiting.done, true)
})

// --- While a connection is on its way --------------------------------------------------------------------------------

t.test('no deadlock while a connection is being created, or there is room for one', async (t) => {
  const { pool, connector } = fakePool({ max: 2 })
  const holder = { id: 'me' }
  await pool.acquire({ holder })
  connector.outcomes.create = 'gate'
  const second = watch(pool.acquire({ holder }))
  const third = watch(pool.acquire({ holder }))
  await settle()
  t.same([second.done, third.done], [false, false])
  connector.pass('create')
  await settle()
  t.equal(second.done, true)
  t.match(await failure(pool.acquire({ holder })), { code: 'FST_POOL_DEADLOCK' })
})

t.test('no deadlock while a connection is being reset, even where nobody else holds one', async (t) => {
  const { pool, connector } = fakePool({ max: 2 })
  const holder = { id: 'me' }
  const [lease] = await Promise.all([pool.acquire({ holder }), pool.acquire({ holder })])
  connector.outcomes.reset = 'gate'
  lease.release()
  const waiting = watch(pool.acquire({ holder }))
  await settle()
  t.equal(waiting.done, false)
  connector.pass('reset')
  await settle()
  t.equal(waiting.done, true)
})

t.test('no deadlock while a connection is being validated', async (t) => {
  const { pool, connector, clock } = fakePool({ max: 2, validateAfter: 1000 })
  const holder = { id: 'me' }
  await warm(pool, 2)
  const lease = await pool.acquire({ holder })
  await clock.advance(2000)
  connector.outcomes.validate = 'gate'
  const waiting = watch(pool.acquire({ holder }))
  await settle()
  t.match(pool.stats(), { used: 2 })
  const another = watch(pool.acquire({ holder }))
  await settle()
  t.same([waiting.done, another.done], [false, false])
  connector.pass('validate')
  await settle()
  t.equal(waiting.value?.ended, false)
  lease.release()
  await settle()
  t.equal(another.done, true)
})

t.test('no deadlock while a connection is idle, though it can not be lent without a wait: it must be validated first', async (t) => {
  const { pool, clock } = fakePool({ max: 2, validateAfter: 1000 })
  const holder = { id: 'me' }
  await warm(pool, 2)
  await pool.acquire({ holder })
  await clock.advance(2000)
  t.match(pool.stats(), { idle: 1 })
  const second = watch(pool.acquire({ holder }))
  await settle()
  t.equal(second.value?.ended, false)
})

t.test('no deadlock while a connection is idle, though onAcquire makes everybody wait', async (t) => {
  const { pool } = fakePool({ max: 2, onAcquire: async () => {} })
  const holder = { id: 'me' }
  await warm(pool, 2)
  await pool.acquire({ holder })
  const second = watch(pool.acquire({ holder }))
  await settle()
  t.equal(second.value?.ended, false)
})

t.test('no deadlock while a connection is idle, though the pool is suspended', async (t) => {
  const { pool } = fakePool({ max: 2 })
  const holder = { id: 'me' }
  await warm(pool, 2)
  await pool.acquire({ holder })
  pool.suspend()
  const second = watch(pool.acquire({ holder }))
  await settle()
  t.equal(second.done, false)
  pool.resume()
  await settle()
  t.equal(second.value?.ended, false)
})

t.test('no deadlock while a connection is prepared for somebody, or closing', async (t) => {
  let answer = () => {}
  const { pool, connector } =
    fakePool({
      max: 2,
      onAcquire: (_, { holder }) => holder === 'slow'
        ? new Promise<void>((resolve) => { answer = resolve })
        : undefined
    })
  const holder = { id: 'me' }
  await pool.acquire({ holder })
  const slow = watch(pool.acquire({ holder: 'slow' }))
  await settle()
  t.match(pool.stats(), { used: 2, pending: 0 })
  const waiting = watch(pool.acquire({ holder }))
  await settle()
  t.equal(waiting.done, false)
  answer()
  await settle()
  connector.outcomes.destroy = 'gate'
  slow.value?.destroy()
  await settle()
  t.match(pool.stats(), { closing: 1, pending: 1 })
  const another = watch(pool.acquire({ holder }))
  await settle()
  t.equal(another.done, false)
  connector.pass('destroy')
  await settle()
  t.equal(waiting.done, true)
})

t.test('a larger pool is none: after a resize the same acquire waits for a create', async (t) => {
  const { pool } = fakePool({ max: 1 })
  const holder = { id: 'me' }
  await pool.acquire({ holder })
  t.match(await failure(pool.acquire({ holder })), { code: 'FST_POOL_DEADLOCK' })
  pool.resize({ max: 2 })
  t.equal((await pool.acquire({ holder })).ended, false)
})

t.test('tryAcquire of a holder is null, not a deadlock', async (t) => {
  const { pool } = fakePool({ max: 1 })
  const holder = { id: 'me' }
  await pool.acquire({ holder })
  t.equal(pool.tryAcquire({ holder }), null)
  t.equal(pool.stats().refused, 0)
})

t.test('what use runs within use of the same holder is a deadlock where max is 1, and the outer one gives back', async (t) => {
  const { pool } = fakePool({ max: 1 })
  const holder = { id: 'me' }
  t.match(await failure(pool.use(() => pool.use(() => {}, { holder }), { holder })), { code: 'FST_POOL_DEADLOCK' })
  t.match(pool.stats(), { used: 0, idle: 1, acquired: 1, released: 1, refused: 1 })
})

t.test('with thousands that wait, to look for a deadlock costs little: holders are looked at, and the line once', async (t) => {
  const { pool } = fakePool({ max: 2, maxPending: 100_000, overload: false })
  const [a, b] = [{ id: 'a' }, { id: 'b' }]
  await pool.acquire({ holder: a })
  await pool.acquire({ holder: b })
  for (let i = 0; i < 5000; i++) watch(pool.acquire({ holder: { id: `waits ${i}` } }))
  const waiting = watch(pool.acquire({ holder: a }))
  await settle()
  t.equal(waiting.done, false)
  t.match(await failure(pool.acquire({ holder: b })), { code: 'FST_POOL_DEADLOCK' })
})
