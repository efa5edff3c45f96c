import { PassThrough } from 'node:stream'
import type { FastifyServerOptions } from 'fastify'
import t from 'tap'
import { Stage, handlerTimeout, needsHandlerTimeout, on, say } from '../support/stage.js'
import { until } from '../support/until.js'

// Requests that a timeout of Fastify's or of Node's ends. Whatever the client is told, the handler may go on.

t.test('handlerTimeout answers 503 while the handler goes on with its connection: the next one does not get it', needsHandlerTimeout, async (t) => {
  const stage = await Stage.set(t, {
    plugin: { abortGrace: 400 },
    routes: (app, stage) => {
      app.get('/', handlerTimeout(50), async (request) => {
        const connection = on(request)
        connection.say(request.id, 'begin')
        await stage.gate('answered').opened
        connection.say(request.id, 'end')
        return 'late'
      })
      app.get('/next', async (request) => { say(request, 'begin'); return 'next' })
    },
  })
  const client = stage.client()
  t.equal((await client.get('/', { id: 'A' })).status, 503)
  t.same(stage.pool.holders().map(({ holder }) => holder), [{ route: 'GET /', id: 'A' }], 'it still holds it')
  stage.gate('answered').open()
  await stage.hears('A:end#1')
  t.equal((await client.get('/next', { id: 'B' })).body, 'next')
  await stage.settled(t)
  t.same(stage.witness.said, ['A:begin#1', 'A:end#1', 'B:begin#2'])
  t.same(stage.witness.destroyed, ['aborted'], 'a handler that ran into handlerTimeout does not tell its end')
})

t.test('handlerTimeout, with an abortGrace of 0: the connection is destroyed at once, and the handler learns it', needsHandlerTimeout, async (t) => {
  const stage = await Stage.set(t, {
    plugin: { abortGrace: 0 },
    routes: (app, stage) => {
      app.get('/', handlerTimeout(50), async (request) => {
        const connection = on(request)
        connection.say(request.id, 'begin')
        await stage.gate('answered').opened
        t.throws(() => connection.say(request.id, 'end'), /closed/)
        t.throws(() => on(request), { code: 'FST_POOL_LEASE_RELEASED' })
        stage.gate('done').open()
      })
    },
  })
  t.equal((await stage.client().get('/', { id: 'A' })).status, 503)
  await stage.settled(t)
  stage.gate('answered').open()
  await stage.passed('done')
  t.same(stage.witness.destroyed, ['aborted'])
})

t.test('handlerTimeout before the handler has touched its connection: it goes back', needsHandlerTimeout, async (t) => {
  const stage = await Stage.set(t, {
    routes: (app, stage) => { app.get('/', handlerTimeout(50), async () => { await stage.gate('never').opened }) },
  })
  t.equal((await stage.client().get('/', { id: 'A' })).status, 503)
  await stage.settled(t)
  t.same(stage.witness.destroyed, [])
})

t.test('handlerTimeout while the request waits for a connection: it leaves the line, and keeps its 503', needsHandlerTimeout, async (t) => {
  let ran = 0
  const stage = await Stage.set(t, {
    routes: (app) => {
      app.get('/', handlerTimeout(50), async () => { ran++ })
    },
  })
  const lease = await stage.pool.acquire({ holder: 'a job' })
  t.equal((await stage.client().get('/', { id: 'A' })).status, 503)
  await stage.waiting(0)
  lease.release()
  await stage.settled(t)
  t.same(stage.witness.lent, ['a job'])
  t.equal(ran, 0)
  t.equal((await stage.arrived('A')).reply.statusCode, 503, 'in the log too')
})

t.test('handlerTimeout while an error handler runs: its connection goes to nobody else', needsHandlerTimeout, async (t) => {
  const stage = await Stage.set(t, {
    plugin: { abortGrace: 400 },
    routes: (app, stage) => {
      app.setErrorHandler(async (_error, request) => {
        const connection = on(request)
        connection.say(request.id, 'begin')
        await stage.gate('answered').opened
        connection.say(request.id, 'end')
        return 'late'
      })
      app.get('/', handlerTimeout(50), async () => { throw new Error('no') })
      app.get('/next', async (request) => { say(request, 'begin'); return 'next' })
    },
  })
  const client = stage.client()
  t.equal((await client.get('/', { id: 'A' })).status, 503)
  t.equal(stage.pool.holders().length, 1)
  stage.gate('answered').open()
  await stage.hears('A:end#1')
  t.equal((await client.get('/next', { id: 'B' })).body, 'next')
  await stage.settled(t)
  t.same(stage.witness.said, ['A:begin#1', 'A:end#1', 'B:begin#2'])
})

t.test('handlerTimeout while the not-found handler runs that a route has called: its connection goes to nobody else', needsHandlerTimeout, async (t) => {
  const stage = await Stage.set(t, {
    plugin: { abortGrace: 400 },
    before: (app, stage) => {
      app.setNotFoundHandler(async (request) => {
        const connection = on(request)
        connection.say(request.id, 'begin')
        await stage.gate('answered').opened
        connection.say(request.id, 'end')
        return 'late'
      })
    },
    routes: (app) => {
      app.get('/', handlerTimeout(50), (_request, reply) => { reply.callNotFound() })
      app.get('/next', async (request) => { say(request, 'begin'); return 'next' })
    },
  })
  const client = stage.client()
  t.equal((await client.get('/', { id: 'A' })).status, 503)
  t.equal(stage.pool.holders().length, 1)
  stage.gate('answered').open()
  await stage.hears('A:end#1')
  t.equal((await client.get('/next', { id: 'B' })).body, 'next')
  await stage.settled(t)
  t.same(stage.witness.said, ['A:begin#1', 'A:end#1', 'B:begin#2'])
})

t.test('an error handler that answers in time on a route with handlerTimeout gives the connection back', needsHandlerTimeout, async (t) => {
  const stage = await Stage.set(t, {
    routes: (app) => {
      app.setErrorHandler(async (_error, request, reply) => {
        say(request, 'write')
        return reply.code(500).send('caught')
      })
      app.get('/', handlerTimeout(10_000), async () => { throw new Error('no') })
    },
  })
  t.equal((await stage.client().get('/', { id: 'A' })).body, 'caught')
  await stage.settled(t)
  t.same(stage.witness.destroyed, [])
})

t.test('handlerTimeout in the middle of a stream cuts the response, and its connection is destroyed', needsHandlerTimeout, async (t) => {
  const stage = await Stage.set(t, {
    routes: (app) => {
      app.get('/', handlerTimeout(50), async (request) => {
        say(request, 'begin')
        const stream = new PassThrough()
        stream.write('begin')
        return stream
      })
    },
  })
  const client = stage.client().send('GET', '/', { id: 'A' })
  await client.hears('begin')
  await stage.over('A')
  await stage.settled(t)
  t.same(stage.witness.destroyed, ['aborted'])
})

t.test('handlerTimeout does not end a POST with a body whose handler never replies (fastify#6725): its connection is held until the client leaves', needsHandlerTimeout, async (t) => {
  const stage = await Stage.set(t, {
    plugin: { abortGrace: 50 },
    routes: (app, stage) => {
      app.post('/', handlerTimeout(50), async (request) => {
        say(request, 'begin')
        await stage.gate('never').opened
      })
      app.get('/other', { ...handlerTimeout(100), config: { pools: false } },
        async () => { await stage.gate('never').opened })
    },
  })
  const client = stage.client().send('POST', '/', { id: 'A', body: '{}' })
  await stage.hears('A:begin#1')
  t.equal((await stage.client().get('/other', { id: 'clock' })).status, 503, 'a GET that came later has been told')
  t.match(stage.pool.stats(), { used: 1 })
  client.leave()
  await stage.over('A')
  await stage.settled(t)
  t.same(stage.witness.destroyed, ['aborted'])
})

t.test('requestTimeout ends a body that never comes in, and the connection goes back', async (t) => {
  const stage = await Stage.set(t, {
    server: {
      requestTimeout: 100, http: { connectionsCheckingInterval: 30, headersTimeout: 100 },
    } as FastifyServerOptions,
    routes: (app) => { app.post('/', async () => 'well') },
  })
  const client = stage.client().send('POST', '/', { id: 'A', body: '{', length: 100 })
  await until(() => stage.witness.lent.length === 1)
  t.equal((await client.answer()).status, 408)
  await stage.over('A')
  await stage.settled(t)
  t.same(stage.witness.destroyed, [])
})

t.test('requestTimeout is not for handlers: one that takes longer answers', async (t) => {
  const stage = await Stage.set(t, {
    server: {
      requestTimeout: 50, http: { connectionsCheckingInterval: 20, headersTimeout: 50 },
    } as FastifyServerOptions,
    routes: (app, stage) => {
      app.get('/', async (request) => {
        say(request, 'begin')
        await stage.gate('A').opened
        say(request, 'end')
        return 'well'
      })
      app.post('/slow', { config: { pools: false } }, async () => 'never')
    },
  })
  const client = stage.client().send('GET', '/', { id: 'A' })
  await stage.hears('A:begin#1')
  t.equal((await stage.client().send('POST', '/slow', { id: 'clock', body: '{', length: 9 }).answer()).status, 408)
  stage.gate('A').open()
  t.equal((await client.answer()).body, 'well')
  await stage.settled(t)
  t.same(stage.witness.destroyed, [])
})

t.test('connectionTimeout while the request waits for a connection: it leaves the line', async (t) => {
  const stage =
    await Stage.set(t, { server: { connectionTimeout: 100 }, routes: (app) => { app.get('/', async () => 'well') } })
  const lease = await stage.pool.acquire({ holder: 'a job' })
  stage.client().send('GET', '/', { id: 'A' })
  await stage.waiting(1)
  await stage.over('A')
  await stage.waiting(0)
  lease.release()
  await stage.settled(t)
  t.same(stage.witness.lent, ['a job'])
})
