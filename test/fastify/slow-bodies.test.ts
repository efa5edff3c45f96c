import type { FastifyInstance, FastifyServerOptions } from 'fastify'
import t from 'tap'
import type { PluginOptions, PoolOptions } from '../../index.js'
import { answerOf, http2Client } from '../support/client.js'
import { FakeConnector } from '../support/fake-connector.js'
import { Stage, on, say } from '../support/stage.js'
import { until } from '../support/until.js'

// A lease whose body is not in, and whose connection nobody has read, is lent on as soon as somebody waits for one.
// Whoever comes back keeps its place in line. Here `bodyGrace` is longer than any test: what is seen is not its doing.

const bodyGrace = 600_000
/** The beginning of a body of 7 bytes, and its end. */
const first = { body: '{"a"', length: 7 }
const rest = ':1}'

function routes (app: FastifyInstance): void {
  app.post('/', async (request) => { say(request, 'write'); return request.body })
  app.get('/', async (request) => { say(request, 'read'); return 'well' })
  app.get('/held', async (request) => {
    say(request, 'hold')
    await (app as unknown as { stage: Stage }).stage.gate(request.id).wait()
    return 'well'
  })
}

async function set (t: Parameters<typeof Stage.set>[0], more: Partial<Parameters<typeof Stage.set>[1]> = {}) {
  const stage = await Stage.set(t, {
    ...more,
    plugin: { bodyGrace, ...more.plugin },
    routes (app, stage) {
      app.decorate('stage' as never, stage as never)
      routes(app)
      more.routes?.(app, stage)
    },
  })
  return stage
}

/** It has its connections, and waits for its body. */
async function begins (stage: Stage, id: string): Promise<void> {
  await until(() => stage.witness.lent.includes(id))
  // What is sent and answered behind it shows that the next turn has come.
  await new Promise((resolve) => setImmediate(() => setImmediate(resolve)))
}

for (const { name, plugin } of [
  { name: 'onResponse', plugin: {} }, { name: 'onSend', plugin: { lease: { release: 'onSend' } } as Partial<PluginOptions> },
]) {
  t.test(`a connection that waits for a slow body is lent on as soon as somebody waits: ${name}`, async (t) => {
    const stage = await set(t, { plugin })
    const slow = stage.client().send('POST', '/', { id: 'A', ...first })
    await begins(stage, 'A')
    t.equal(stage.pool.stats().used, 1, 'while nobody waits it is kept')
    for (const id of ['B', 'C']) t.equal((await stage.client().get('/', { id })).body, 'well')
    slow.write(rest)
    t.equal((await slow.answer()).body, '{"a":1}')
    await stage.settled(t)
    t.same(stage.witness.lent, ['A', 'B', 'C', 'A'])
    t.same(stage.witness.said, ['B:read#1', 'C:read#1', 'A:write#1'])
  })
}

t.test('over HTTP/2 too', async (t) => {
  const stage = await set(t, { server: { http2: true } as unknown as FastifyServerOptions })
  const client = await http2Client(t, stage.port)
  const stream = client.send('POST', '/', { id: 'A', open: true })
  stream.write('{"a"')
  await begins(stage, 'A')
  t.equal((await answerOf(client.send('GET', '/', { id: 'B' }))).body, 'well')
  stream.end(rest)
  t.equal((await answerOf(stream)).body, '{"a":1}')
  await stage.settled(t)
  t.same(stage.witness.lent, ['A', 'B', 'A'])
})

t.test('the oldest goes first, and one goes for each that waits', async (t) => {
  const stage = await set(t, { pool: { min: 3, max: 3 } })
  const slow = []
  for (const id of ['A', 'B', 'C']) {
    slow.push(stage.client().send('POST', '/', { id, ...first }))
    await begins(stage, id)
  }
  const holding = ['X', 'Y'].map((id) => stage.client().send('GET', '/held', { id }))
  for (const id of ['X', 'Y']) await stage.gate(id).reached
  t.same(stage.pool.holders().map(({ holder }) => (holder as { id: string }).id).sort(), ['C', 'X', 'Y'])
  for (const id of ['X', 'Y']) stage.gate(id).open()
  for (const client of [...slow.map((one) => one.write(rest)), ...holding]) t.equal((await client.answer()).status, 200)
  await stage.settled(t)
})

t.test('somebody who waits already gets the next one whose body is slow', async (t) => {
  const stage = await set(t)
  const job = await stage.pool.acquire({ holder: 'a job' })
  const slow = stage.client().send('POST', '/', { id: 'A', ...first })
  await stage.waiting(1)
  const other = stage.client().send('GET', '/', { id: 'B' })
  await stage.waiting(2)
  job.release()
  t.equal((await other.answer()).body, 'well')
  slow.write(rest)
  t.equal((await slow.answer()).body, '{"a":1}')
  await stage.settled(t)
})

t.test('whoever comes back keeps its place in line', async (t) => {
  const stage = await set(t)
  const job = await stage.pool.acquire({ holder: 'a job' })
  const slow = stage.client().send('POST', '/', { id: 'A', ...first })
  await stage.waiting(1)
  const next = stage.client().send('GET', '/held', { id: 'B' })
  await stage.waiting(2)
  job.release()
  await stage.gate('B').reached
  const others = []
  for (const id of ['C', 'D']) {
    others.push(stage.client().send('GET', '/', { id }))
    await stage.waiting(others.length)
  }
  slow.write(rest)
  await stage.waiting(3)
  stage.gate('B').open()
  for (const client of [slow, next, ...others]) t.equal((await client.answer()).status, 200)
  await stage.settled(t)
  t.same(stage.witness.lent, ['a job', 'A', 'B', 'A', 'C', 'D'])
})

t.test('its place is before all that came later, also where it was lent a connection at once', async (t) => {
  const stage = await set(t)
  const slow = ['A', 'B'].map((id) => ({ id, client: stage.client() }))
  for (const { id, client } of slow) {
    client.send('POST', '/', { id, ...first })
    await begins(stage, id)
  }
  const holder = stage.client().send('GET', '/held', { id: 'H' })
  await stage.gate('H').reached
  const other = stage.client().send('GET', '/', { id: 'Z' })
  await stage.waiting(1)
  for (const { client } of slow.reverse()) {
    client.write(rest)
    await until(() => stage.pool.stats().pending > 1)
  }
  await stage.waiting(3)
  stage.gate('H').open()
  const all = [holder, other, ...slow.map(({ client }) => client)]
  for (const client of all) t.equal((await client.answer()).status, 200)
  t.same(stage.witness.lent, ['A', 'B', 'H', 'A', 'B', 'Z'])
})

t.test('it is not refused when it comes back, however long the line is', async (t) => {
  const stage = await set(t, { pool: { maxPending: 1 } })
  const slow = stage.client().send('POST', '/', { id: 'A', ...first })
  await begins(stage, 'A')
  const holder = stage.client().send('GET', '/held', { id: 'H' })
  await stage.gate('H').reached
  const other = stage.client().send('GET', '/', { id: 'Z' })
  await stage.waiting(1)
  slow.write(rest)
  await stage.waiting(2)
  stage.gate('H').open()
  for (const client of [holder, slow, other]) t.equal((await client.answer()).status, 200)
})

t.test('whoever may not wait is served, too', async (t) => {
  const stage = await set(t, { pool: { maxPending: 0 } })
  stage.client().send('POST', '/', { id: 'A', ...first })
  await begins(stage, 'A')
  t.equal((await stage.client().get('/', { id: 'B' })).body, 'well')
  await stage.client().get('/', { id: 'C' })
  t.same(stage.witness.said, ['B:read#1', 'C:read#1'])
})

t.test('a connection that somebody has read is not lent on', async (t) => {
  const stage = await set(t, {
    pool: { acquireTimeout: 100 },
    routes: (app) => {
      app.post('/tenant', { onRequest: async (request) => { say(request, 'tenant') } }, async () => 'well')
      app.post('/lease', { onRequest: async (request) => { request.lease('db') } }, async () => 'well')
      app.post('/acquire', { onRequest: async (request) => { await request.acquire('db') } }, async () => 'well')
    },
  })
  for (const path of ['/tenant', '/lease', '/acquire']) {
    const slow = stage.client().send('POST', path, { id: path, ...first })
    await begins(stage, path)
    t.equal((await stage.client().get('/', { id: 'B' })).status, 503, path)
    slow.write(rest)
    t.equal((await slow.answer()).body, 'well')
  }
})

t.test('a hook that reads it right behind ours has it', async (t) => {
  const stage = await set(t, {
    pool: { acquireTimeout: 1000 },
    routes: (app) => {
      app.post('/late', { onRequest: async (request) => { say(request, 'tenant') } }, async (request) => {
        say(request, 'write')
        return 'well'
      })
    },
  })
  const job = await stage.pool.acquire({ holder: 'a job' })
  const slow = stage.client().send('POST', '/late', { id: 'A', ...first })
  await stage.waiting(1)
  const other = stage.client().send('GET', '/', { id: 'B' })
  await stage.waiting(2)
  job.release()
  await stage.hears('A:tenant#1')
  slow.write(rest)
  t.equal((await slow.answer()).body, 'well')
  t.equal((await other.answer()).body, 'well')
})

t.test('while a later pool is held by the same request it is kept: else two requests could wait for each other', async (t) => {
  const stage = await set(t, {
    pools: ['db', 'cache'],
    pool: { acquireTimeout: 400 },
    routes: (app) => {
      app.get('/db', { config: { pools: ['db'] } }, async (request) => { say(request, 'read'); return 'well' })
      app.get('/cache', { config: { pools: ['cache'] } }, async (request) => { on(request, 'cache'); return 'well' })
    },
  })
  const slow = stage.client().send('POST', '/', { id: 'A', ...first })
  await begins(stage, 'A')
  t.equal((await stage.client().get('/db', { id: 'B' })).status, 503, 'cache is held')
  t.equal((await stage.client().get('/cache', { id: 'C' })).status, 200, 'nothing comes behind cache')
  t.equal((await stage.client().get('/db', { id: 'D' })).status, 200, 'cache is not held any more')
  slow.write(rest)
  t.equal((await slow.answer()).body, '{"a":1}')
  await stage.settled(t)
})

t.test('whoever waits for the first pool gets it when the last one has gone back', async (t) => {
  const stage = await set(t, {
    pools: ['db', 'cache'],
    routes: (app) => {
      app.get('/db', { config: { pools: ['db'] } }, async (request) => { say(request, 'read'); return 'well' })
      app.get('/cache', { config: { pools: ['cache'] } }, async (request) => { on(request, 'cache'); return 'well' })
    },
  })
  const slow = stage.client().send('POST', '/', { id: 'A', ...first })
  await begins(stage, 'A')
  const waiting = stage.client().send('GET', '/db', { id: 'B' })
  await stage.waiting(1)
  t.equal((await stage.client().get('/cache', { id: 'C' })).status, 200)
  t.equal((await waiting.answer()).body, 'well')
  slow.write(rest)
  t.equal((await slow.answer()).body, '{"a":1}')
  await stage.settled(t)
})

t.test('a route\'s transaction, which has done nothing, is rolled back with it, and begins again', async (t) => {
  const connector = new FakeConnector()
  const stage = await Stage.set(t, {
    pool: { connector, lease: { transaction: true } } as Partial<PoolOptions>,
    plugin: { bodyGrace },
    routes: (app) => {
      app.post('/', async (request) => { connector.write(on(request) as never, 'row'); return request.body })
      app.get('/', { config: { pools: { db: { transaction: false } } } }, async (request) => { on(request); return 'well' })
    },
  })
  const slow = stage.client().send('POST', '/', { id: 'A', ...first })
  await until(() => connector.asked.length === 1)
  await new Promise((resolve) => setImmediate(() => setImmediate(resolve)))
  t.equal((await stage.client().get('/', { id: 'B' })).body, 'well')
  slow.write(rest)
  t.equal((await slow.answer()).body, '{"a":1}')
  t.same(connector.asked, ['begin #1', 'rollback #1', 'begin #1', 'commit #1'])
  t.same(connector.rows, ['row'])
})

t.test('requests of the same bulkhead key wait for no slow body', async (t) => {
  const stage = await set(t, { pool: { max: 2, bulkhead: { key: () => 'all', max: 1 } } })
  const slow = stage.client().send('POST', '/', { id: 'A', ...first })
  await begins(stage, 'A')
  const holder = stage.client().send('GET', '/held', { id: 'H' })
  await stage.gate('H').reached
  const other = stage.client().send('GET', '/', { id: 'Z' })
  await stage.arrived('Z')
  slow.write(rest)
  stage.gate('H').open()
  for (const client of [holder, slow, other]) t.equal((await client.answer()).status, 200)
  await stage.settled(t)
  t.equal(stage.witness.lent[0], 'A')
  t.equal(stage.witness.lent[1], 'H')
})

t.test('unfinished bodies, more than there are connections, keep nobody waiting', async (t) => {
  const stage = await set(t, { pool: { max: 3, acquireTimeout: 60_000 } })
  for (let n = 0; n < 40; n++) {
    stage.client().send('POST', '/', { id: `S${n}`, ...first })
    if (n % 4 === 0) t.equal((await stage.client().get('/', { id: `G${n}` })).body, 'well')
  }
  t.equal(stage.pool.stats().timeouts, 0)
})

t.test('a client that leaves while its body is awaited, or after its connection was lent on, leaves nothing behind', async (t) => {
  for (const lentOn of [false, true]) {
    const stage = await set(t)
    const slow = stage.client().send('POST', '/', { id: 'A', ...first })
    await begins(stage, 'A')
    if (lentOn) t.equal((await stage.client().get('/', { id: 'B' })).body, 'well')
    slow.leave()
    await stage.over('A')
    t.equal((await stage.client().get('/', { id: 'C' })).body, 'well')
    await stage.settled(t)
    t.same(stage.witness.destroyed, [])
  }
})

t.test('a target that has no room left gets that of a slow body at another one', async (t) => {
  const connectors = [new FakeConnector(), new FakeConnector()]
  const targets = connectors.map((connector, at) => ({ connector, role: at === 0 ? 'primary' as const : 'replica' as const }))
  const stage = await Stage.set(t, {
    pool: { connector: undefined, targets, min: 2, max: 2 } as never,
    plugin: { bodyGrace },
    routes: (app) => {
      app.post('/', async (request) => { on(request); return request.body })
      app.get('/', async (request) => { on(request); return 'well' })
    },
  })
  const slow = ['A', 'B'].map((id) => stage.client().send('POST', '/', { id, ...first }))
  await until(() => stage.pool.holders().length === 2)
  await new Promise((resolve) => setImmediate(() => setImmediate(resolve)))
  t.equal((await stage.client().get('/', { id: 'C' })).body, 'well')
  for (const client of slow) client.write(rest)
  for (const client of slow) t.equal((await client.answer()).status, 200)
})
