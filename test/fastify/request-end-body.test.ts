import type { FastifyServerOptions } from 'fastify'
import t from 'tap'
import { answerOf, http2Client } from '../support/client.js'
import { alarm, type Alarm } from '../support/order.js'
import { Stage, on, say } from '../support/stage.js'
import { event, until } from '../support/until.js'

// A connection does not wait for a slow body: after `bodyGrace` one that nobody has touched is parked, and taken again
// when the body is in.

const bodyGrace = 100

/** The beginning of a body of 7 bytes, and its end. */
const first = { body: '{"a"', length: 7 }
const rest = ':1}'

t.test('clients that trickle their bodies keep nobody else waiting for longer than bodyGrace, and are served in the end', async (t) => {
  const stage = await Stage.set(t, {
    pool: { max: 2 },
    plugin: { bodyGrace },
    routes: (app) => {
      app.post('/', { preValidation: async (request) => { say(request, 'check') } },
        async (request) => { say(request, 'write'); return request.body })
      app.get('/', async (request) => { say(request, 'read'); return 'well' })
    },
  })
  let late: Alarm | undefined
  stage.pool.on('acquire', () => { late ??= alarm(bodyGrace + 100) })
  const one = stage.client().send('POST', '/', { id: 'A', ...first })
  const two = stage.client()
    .send('POST', '/', {
      id: 'B', headers: { 'transfer-encoding': 'chunked', 'content-type': 'application/json' },
    }).write('4\r\n{"a"\r\n')
  await until(() => stage.witness.lent.length === 2)
  let waits = 0
  stage.pool.on('wait', () => { waits++ })
  const inTime: boolean[] = []
  const undo = stage.pool.on('acquire', () => { inTime.push(waits === 0 || !late!.rang) })
  t.equal((await stage.client().get('/', { id: 'C' })).body, 'well')
  undo()
  t.same(inTime, [true],
    'C was lent one before a timer of bodyGrace + 100 ms that began with the loan of A, unless it came later')
  await until(() => stage.pool.stats().used === 0)
  one.write(rest)
  two.write('3\r\n:1}\r\n0\r\n\r\n')
  t.equal((await one.answer()).body, '{"a":1}')
  t.equal((await two.answer()).body, '{"a":1}')
  await stage.settled(t)
  t.equal(stage.witness.lent.length, 5, 'both were lent one twice')
  t.same(stage.witness.said.map((what) => what.slice(0, -2)).sort(),
    ['A:check', 'A:write', 'B:check', 'B:write', 'C:read'])
  t.same(stage.witness.destroyed, [])
})

t.test('over HTTP/2 too', async (t) => {
  const stage = await Stage.set(t, {
    server: { http2: true } as unknown as FastifyServerOptions,
    plugin: { bodyGrace },
    routes: (app) => {
      app.post('/', async (request) => { say(request, 'write'); return request.body })
      app.get('/', async (request) => { say(request, 'read'); return 'well' })
    },
  })
  const client = await http2Client(t, stage.port)
  const stream = client.send('POST', '/', { id: 'A', open: true })
  stream.write('{"a"')
  await until(() => stage.witness.lent.length === 1)
  t.equal((await answerOf(client.send('GET', '/', { id: 'B' }))).body, 'well')
  stream.end(rest)
  t.equal((await answerOf(stream)).body, '{"a":1}')
  await stage.settled(t)
  t.same(stage.witness.lent, ['A', 'B', 'A'])
})

t.test('a connection that a hook has touched is not parked: the hook may have kept it', async (t) => {
  const stage = await Stage.set(t, {
    pool: { max: 2 },
    plugin: { bodyGrace },
    routes: (app) => {
      app.post('/', { onRequest: async (request) => { if (request.id === 'A') say(request, 'who') } },
        async (request) => { say(request, 'write'); return 'well' })
      app.get('/', async (request) => { say(request, 'read'); return 'well' })
    },
  })
  const one = stage.client().send('POST', '/', { id: 'A', ...first })
  await stage.hears('A:who#1')
  stage.client().send('POST', '/', { id: 'B', ...first })
  await until(() => stage.witness.lent.length === 2)
  // B came later, so A's grace is over when B's is.
  t.equal((await stage.client().get('/', { id: 'C' })).body, 'well')
  t.same(stage.pool.holders().map(({ holder }) => holder), [{ id: 'A', route: 'POST /' }])
  one.write(rest)
  t.equal((await one.answer()).body, 'well')
  t.same(stage.witness.said, ['A:who#1', 'C:read#2', 'A:write#1'])
})

t.test('a body that comes in time keeps its connection', async (t) => {
  const stage = await Stage.set(t, {
    plugin: { bodyGrace: 60_000 },
    routes: (app) => {
      app.post('/', async (request) => { say(request, 'write'); return request.body })
    }
  })
  const client = stage.client().send('POST', '/', { id: 'A', ...first })
  await until(() => stage.witness.lent.length === 1)
  client.write(rest)
  t.equal((await client.answer()).body, '{"a":1}')
  await stage.settled(t)
  t.same(stage.witness.lent, ['A'])
})

t.test('a hook that takes its time does not cost a request its connection: its body is in', async (t) => {
  const stage = await Stage.set(t, {
    pool: { max: 2 },
    plugin: { bodyGrace },
    routes: (app, stage) => {
      app.post('/', {
        onRequest: async (request) => {
          if (request.id !== 'A') return
          await stage.gate('keys').opened
          say(request, 'who')
        },
      }, async (request) => { say(request, 'write'); return 'well' })
    },
  })
  const one = stage.client().send('POST', '/', { id: 'A', body: '{}' })
  await until(() => stage.witness.lent.length === 1)
  // Its grace begins later, and its end shows in the pool.
  stage.client().send('POST', '/', { id: 'B', ...first })
  await event<'release'>(stage.pool, 'release', { where: ({ holder }) => (holder as { id: string }).id === 'B' })
  t.same(stage.pool.holders().map(({ holder }) => (holder as { id: string }).id), ['A'])
  stage.gate('keys').open()
  t.equal((await one.answer()).body, 'well')
  t.same(stage.witness.said, ['A:who#1', 'A:write#1'])
})

t.test('once the body is in, nothing is parked any more, however long the handler takes', async (t) => {
  const stage = await Stage.set(t, {
    pool: { max: 2 },
    plugin: { bodyGrace },
    routes: (app, stage) => {
      app.post('/', async (request) => { await stage.gate('A').opened; say(request, 'write'); return 'well' })
      app.get('/', async () => 'well')
    },
  })
  const one = stage.client().send('POST', '/', { id: 'A', body: '{}' })
  await until(() => stage.witness.lent.length === 1)
  // Its grace begins later, and its end shows in the pool.
  stage.client().send('POST', '/', { id: 'B', ...first })
  await event<'release'>(stage.pool, 'release', { where: ({ holder }) => (holder as { id: string }).id === 'B' })
  t.same(stage.pool.holders().map(({ holder }) => (holder as { id: string }).id), ['A'])
  stage.gate('A').open()
  t.equal((await one.answer()).body, 'well')
})

t.test('a parked request whose body comes when all connections are used waits for one, and is refused when there is none', async (t) => {
  const stage = await Stage.set(t, {
    pool: { acquireTimeout: 300 },
    plugin: { bodyGrace },
    routes: (app) => { app.post('/', async (request) => { say(request, 'write'); return 'well' }) },
  })
  const one = stage.client().send('POST', '/', { id: 'A', ...first })
  await event(stage.pool, 'release')
  const two = stage.client().send('POST', '/', { id: 'B', ...first })
  await event(stage.pool, 'release')
  const lease = await stage.pool.acquire({ holder: 'a job' })
  one.write(rest)
  const refused = await one.answer()
  t.equal(refused.status, 503)
  t.match(refused.headers['retry-after'], /^\d+$/)
  two.write(rest)
  await stage.waiting(1)
  lease.release()
  t.equal((await two.answer()).body, 'well')
  await stage.settled(t)
  t.same(stage.witness.said, ['B:write#1'])
})

const ends = {
  'a body that can not be parsed': { rest: 'xxx', status: 400 },
  'a body that is too large': { rest: 'x'.repeat(96), status: 413 },
}

for (const [name, { rest, status }] of Object.entries(ends)) {
  t.test(`${name} while parked costs no connection`, async (t) => {
    const stage = await Stage.set(t, {
      server: { bodyLimit: 50 },
      plugin: { bodyGrace },
      routes: (app) => { app.post('/', async () => 'well') },
    })
    const client = stage.client().send('POST', '/', {
      id: 'A', headers: { 'transfer-encoding': 'chunked', 'content-type': 'application/json' },
    }).write('4\r\n{"a"\r\n')
    await event(stage.pool, 'release')
    client.write(`${rest.length.toString(16)}\r\n${rest}\r\n0\r\n\r\n`)
    t.equal((await client.answer()).status, status)
    client.leave()
    await stage.over('A')
    await stage.settled(t)
    t.same(stage.witness.lent, ['A'])
  })
}

t.test('a client that leaves while parked costs no connection', async (t) => {
  const stage = await Stage.set(t, { plugin: { bodyGrace }, routes: (app) => { app.post('/', async () => 'well') } })
  const client = stage.client().send('POST', '/', { id: 'A', ...first })
  await event(stage.pool, 'release')
  client.leave()
  await stage.over('A')
  await stage.settled(t)
  t.same(stage.witness.lent, ['A'])
})

t.test('a client that leaves while its parked request waits in line leaves it', async (t) => {
  const stage = await Stage.set(t, { plugin: { bodyGrace }, routes: (app) => { app.post('/', async () => 'well') } })
  const client = stage.client().send('POST', '/', { id: 'A', ...first })
  await event(stage.pool, 'release')
  const lease = await stage.pool.acquire({ holder: 'a job' })
  client.write(rest)
  await stage.waiting(1)
  client.leave()
  await stage.waiting(0)
  lease.release()
  await stage.settled(t)
})

t.test('a client that leaves while an earlier preValidation hook of its parked request waits: nothing is taken again', async (t) => {
  let ran = 0
  const stage = await Stage.set(t, {
    plugin: { bodyGrace },
    before: (app, stage) => {
      app.addHook('preValidation', async () => {
        stage.gate('body is in').open()
        await stage.gate('checked').opened
      })
    },
    routes: (app, stage) => {
      app.addHook('onError', async () => { stage.gate('refused').open() })
      app.post('/', async () => { ran++ })
    },
  })
  const client = stage.client().send('POST', '/', { id: 'A', ...first })
  await event(stage.pool, 'release')
  client.write(rest)
  await stage.passed('body is in')
  client.leave()
  await stage.over('A')
  stage.gate('checked').open()
  await stage.passed('refused')
  await stage.settled(t)
  t.same(stage.witness.lent, ['A'])
  t.equal(ran, 0)
})

t.test('a hook that takes its connection by hand while parked has the one that the handler gets', async (t) => {
  const stage = await Stage.set(t, {
    plugin: { bodyGrace },
    routes: (app, stage) => {
      app.addHook('preParsing', async (request) => {
        await stage.gate('parked').opened
        t.throws(() => on(request), { code: 'FST_POOL_NOT_LEASED', message: /bodyGrace.*request\.acquire\('db'\)/ })
        const lease = await request.acquire('db')
        t.equal(lease.connection, on(request))
        say(request, 'check')
      })
      app.post('/', async (request) => { say(request, 'write'); return 'well' })
    },
  })
  const client = stage.client().send('POST', '/', { id: 'A', ...first })
  await event(stage.pool, 'release')
  stage.gate('parked').open()
  await stage.hears('A:check#1')
  client.write(rest)
  t.equal((await client.answer()).body, 'well')
  await stage.settled(t)
  t.same(stage.witness.lent, ['A', 'A'])
})

t.test('a hook that is taking a connection by hand when the body comes in: there is one for both', async (t) => {
  const stage = await Stage.set(t, {
    plugin: { bodyGrace },
    routes: (app, stage) => {
      app.addHook('preParsing', (request, _reply, _payload, done) => {
        stage.gate('parked').opened.then(() => {
          const taking = request.acquire('db')
          done()
          return taking
        }, done)
      })
      app.post('/', async (request) => { say(request, 'write'); return 'well' })
    },
  })
  const client = stage.client().send('POST', '/', { id: 'A', ...first })
  await event(stage.pool, 'release')
  const lease = await stage.pool.acquire({ holder: 'a job' })
  stage.gate('parked').open()
  await stage.waiting(1)
  client.write(rest)
  await until(() => stage.seen.get('A')!.request.raw.readableEnded)
  t.equal(stage.pool.stats().pending, 1)
  lease.release()
  t.equal((await client.answer()).body, 'well')
  await stage.settled(t)
  t.same(stage.witness.lent, ['A', 'a job', 'A'])
})

t.test('several connections are parked together, and taken again in order', async (t) => {
  const stage = await Stage.set(t, {
    pools: ['db', 'cache'],
    plugin: { bodyGrace },
    routes: (app) => {
      app.post('/', async (request) => {
        say(request, 'write')
        on(request, 'cache').say(request.id, 'forget')
        return 'well'
      })
    },
  })
  const client = stage.client().send('POST', '/', { id: 'A', ...first })
  await until(() => stage.poolOf('db').stats().released + stage.poolOf('cache').stats().released === 2)
  const order: string[] = []
  stage.app.pools.on('acquire', ({ pool }) => { order.push(pool) })
  client.write(rest)
  t.equal((await client.answer()).body, 'well')
  await stage.settled(t)
  t.same(order, ['db', 'cache'])
})
