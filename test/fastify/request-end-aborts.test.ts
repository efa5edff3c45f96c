import { PassThrough, Readable } from 'node:stream'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import t from 'tap'
import type { Client } from '../support/client.js'
import { Stage, on, say } from '../support/stage.js'
import type { StageOptions } from '../support/stage.js'
import { event, until } from '../support/until.js'

// Requests whose client goes away, or whose response is destroyed. The pool has one connection: whoever comes next waits for it, and must not get
// it while the handler of the request that is over may still be speaking to it.

interface Row {
  name: string
  /** The handler of A: says 'begin', then what happens to it. It waits for the gate 'A' where it goes on after the end. */
  handler? (stage: Stage, request: FastifyRequest, reply: FastifyReply): unknown
  routes? (stage: Stage, app: FastifyInstance): void
  server?: StageOptions['server']
  send? (client: Client): void
  /** How the client goes. Not at all: then the handler ends it. */
  leave?: ((client: Client, stage: Stage) => unknown) | false
  abortGrace?: number
  /** What becomes of A's connection: it goes to the next one, or it is destroyed. */
  then: 'released' | 'aborted'
  /** The handler speaks once more, after the end. */
  goesOn?: boolean
}

const begin = (request: FastifyRequest) => { say(request, 'begin') }

/** Waits, speaks once more, and ends as it does. On a connection that is closed meanwhile, speaking fails as it would with a driver. */
async function goOn (stage: Stage, request: FastifyRequest): Promise<void> {
  const connection = on(request)
  begin(request)
  await stage.gate('A').opened
  connection.say(request.id, 'end')
}

const rows: Row[] = [
  // The handler settles in time: its connection is clean, and goes back.
  {
    name: 'a GET whose client leaves while its async handler runs, which then returns',
    handler: async (stage, request) => { await goOn(stage, request); return 'well' },
    then: 'released',
    goesOn: true,
  },
  {
    name: 'a GET whose client leaves while its handler runs, which then replies',
    handler: (stage, request, reply) => { goOn(stage, request).then(() => reply.send('well'), (error) => reply.send(error)) },
    then: 'released',
    goesOn: true,
  },
  {
    name: 'a GET whose client leaves while its handler runs, which then throws',
    handler: async (stage, request) => { await goOn(stage, request); throw new Error('no') },
    then: 'released',
    goesOn: true,
  },
  {
    name: 'a POST whose body was read, and whose client leaves while its handler runs',
    handler: async (stage, request) => { await goOn(stage, request); return request.body },
    send: (client) => { client.send('POST', '/', { id: 'A', body: '{"a":1}' }) },
    then: 'released',
    goesOn: true,
  },
  {
    name: 'a POST with a chunked body that was read, and whose client leaves while its handler runs',
    handler: async (stage, request) => { await goOn(stage, request); return request.body },
    send: (client) => { client.send('POST', '/', { id: 'A', headers: { 'transfer-encoding': 'chunked', 'content-type': 'application/json' } }).write('2\r\n{}\r\n0\r\n\r\n') },
    then: 'released',
    goesOn: true,
  },
  {
    name: 'a GET whose client resets the connection while its handler runs',
    handler: async (stage, request) => { await goOn(stage, request); return 'well' },
    leave: (client) => { client.socket.resetAndDestroy() },
    then: 'released',
    goesOn: true,
  },
  {
    name: 'a half-close right after the request',
    handler: async (stage, request) => { await goOn(stage, request); return 'well' },
    leave: (client) => { client.socket.end() },
    then: 'released',
    goesOn: true,
  },
  {
    name: 'a handler that destroys its response and returns',
    handler: async (stage, request, reply) => { begin(request); reply.raw.destroy(); await stage.gate('A').opened; say(request, 'end'); return 'well' },
    leave: false,
    then: 'released',
    goesOn: true,
  },
  {
    name: 'a handler that destroys its request and returns',
    handler: async (stage, request) => { begin(request); request.raw.destroy(); await stage.gate('A').opened; say(request, 'end'); return 'well' },
    leave: false,
    then: 'released',
    goesOn: true,
  },
  {
    name: 'an error handler that still runs when the client leaves',
    routes: (stage, app) => {
      app.setErrorHandler(async (_error, request) => { await goOn(stage, request); return 'caught' })
    },
    handler: () => { throw new Error('no') },
    then: 'released',
    goesOn: true,
  },
  {
    name: 'connectionTimeout, while the handler runs',
    server: { connectionTimeout: 100 },
    handler: async (stage, request) => { await goOn(stage, request); return 'well' },
    leave: false,
    then: 'released',
    goesOn: true,
  },

  // It does not, or nobody can tell: nobody else gets that connection.
  {
    name: 'a GET whose client leaves, and whose handler never settles',
    handler: async (_stage, request) => { begin(request); await new Promise(() => {}) },
    abortGrace: 50,
    then: 'aborted',
  },
  {
    name: 'a GET whose client leaves, and whose handler returns undefined',
    handler: async (stage, request) => { begin(request); await stage.gate('A').opened },
    abortGrace: 50,
    then: 'aborted',
  },
  {
    name: 'a POST whose body was read, whose client leaves, and whose handler never settles',
    handler: async (_stage, request) => { begin(request); await new Promise(() => {}) },
    send: (client) => { client.send('POST', '/', { id: 'A', body: '{"a":1}' }) },
    abortGrace: 50,
    then: 'aborted',
  },
  {
    name: 'a GET whose client leaves, with an abortGrace of 0',
    handler: async (stage, request) => { begin(request); await stage.gate('A').opened; return 'well' },
    abortGrace: 0,
    then: 'aborted',
  },
  {
    name: 'a hijacked response that is destroyed',
    handler: (_stage, request, reply) => { begin(request); reply.hijack(); reply.raw.destroy() },
    leave: false,
    abortGrace: 50,
    then: 'aborted',
  },
  {
    name: 'server-sent events whose client leaves',
    handler: (_stage, request, reply) => {
      begin(request)
      reply.hijack()
      reply.raw.writeHead(200, { 'content-type': 'text/event-stream' })
      reply.raw.write('data: 1\n\n')
    },
    leave: async (client) => { await client.hears('data: 1'); client.leave() },
    abortGrace: 50,
    then: 'aborted',
  },
  {
    name: 'a raw body stream whose client leaves during the upload, while the handler reads it',
    routes: (_stage, app) => { app.addContentTypeParser('application/json', (_request, _payload, done) => { done(null) }) },
    handler: async (_stage, request) => {
      // No connection waits for an upload by itself.
      await request.acquire('db')
      begin(request)
      await new Promise<void>((resolve) => { request.raw.on('close', resolve).resume() })
    },
    send: (client) => { client.send('POST', '/', { id: 'A', body: '{', length: 100 }) },
    abortGrace: 50,
    then: 'aborted',
  },
  {
    name: 'a node stream that is cut',
    handler: (_stage, request) => {
      begin(request)
      const stream = new PassThrough()
      stream.write('begin')
      return stream
    },
    leave: async (client) => { await client.hears('begin'); client.leave() },
    then: 'aborted',
  },
  {
    name: 'a web stream that is cut',
    handler: (_stage, request, reply) => {
      begin(request)
      reply.send(new ReadableStream({ start (controller) { controller.enqueue(Buffer.from('begin')) } }))
    },
    leave: async (client) => { await client.hears('begin'); client.leave() },
    then: 'aborted',
  },
  {
    name: 'a web Response that is cut',
    handler: (_stage, request, reply) => {
      begin(request)
      reply.send(new Response(new ReadableStream({ start (controller) { controller.enqueue(Buffer.from('begin')) } })))
    },
    leave: async (client) => { await client.hears('begin'); client.leave() },
    then: 'aborted',
  },
  {
    name: "a web Response that is not of Node's own class and is cut",
    handler: (_stage, request, reply) => {
      begin(request)
      const body = new ReadableStream({ start (controller) { controller.enqueue(Buffer.from('begin')) } })
      reply.send({ [Symbol.toStringTag]: 'Response', status: 200, headers: new Headers(), body, bodyUsed: false })
    },
    leave: async (client) => { await client.hears('begin'); client.leave() },
    then: 'aborted',
  },
  {
    name: 'a payload stream that fails midway',
    handler: (_stage, request) => {
      begin(request)
      return Readable.from((async function * () {
        yield 'begin'
        throw new Error('the cursor died')
      })())
    },
    leave: false,
    then: 'aborted',
  },
  {
    name: 'a handler that replies to nobody with a stream',
    handler: async (stage, request) => { begin(request); await stage.gate('A').opened; return new PassThrough() },
    leave: async (client, stage) => {
      client.leave()
      await stage.over('A')
      stage.gate('A').open()
    },
    then: 'aborted',
  },
]

for (const { name, handler, routes, server, send, leave = (client: Client) => { client.leave() }, abortGrace = 5000, then, goesOn } of rows) {
  t.test(`${then === 'released' ? 'the connection goes to nobody before the handler is done, and is kept' : 'the connection goes to nobody, and is destroyed'}: ${name}`, async (t) => {
    const stage = await Stage.set(t, {
      server,
      plugin: { abortGrace },
      routes: (app, stage) => {
        app.get('/next', async (request) => { say(request, 'begin'); return 'next' })
        routes?.(stage, app)
        app.route({ method: ['GET', 'POST'], url: '/', handler: (request, reply) => handler?.(stage, request, reply) })
      },
    })
    await stage.app.ready()
    const client = stage.client()
    if (send === undefined) client.send('GET', '/', { id: 'A' })
    else send(client)
    await stage.hears('A:begin#1')
    if (leave !== false) await leave(client, stage)
    await stage.over('A')

    const next = stage.client().send('GET', '/next', { id: 'B' })
    if (goesOn === true) {
      await stage.waiting(1)
      t.equal(stage.pool.stats().used, 1)
      t.same(stage.witness.said, ['A:begin#1'])
      stage.gate('A').open()
    }
    t.equal((await next.answer()).body, 'next')
    t.same(stage.witness.said, ['A:begin#1', ...(goesOn === true ? ['A:end#1'] : []), then === 'released' ? 'B:begin#1' : 'B:begin#2'])
    await stage.settled(t)
    t.same(stage.witness.destroyed, then === 'released' ? [] : ['aborted'])
    t.same(stage.witness.lent, ['A', 'B'])
  })
}

t.test('what nobody has touched goes back at the end, whatever the handler still does', async (t) => {
  const stage = await Stage.set(t, {
    routes: (app, stage) => {
      app.get('/', async (request) => {
        stage.gate('begun').open()
        await stage.gate('A').opened
        t.throws(() => on(request), { code: 'FST_POOL_LEASE_RELEASED' })
        await t.rejects(request.acquire('db'), { code: 'FST_POOL_ABORTED' })
        stage.gate('done').open()
      })
      app.get('/next', async () => 'next')
    },
  })
  const client = stage.client().send('GET', '/', { id: 'A' })
  await stage.passed('begun')
  client.leave()
  t.equal((await stage.client().get('/next', { id: 'B' })).body, 'next')
  stage.gate('A').open()
  await stage.passed('done')
  await stage.settled(t)
  t.same(stage.witness.destroyed, [])
})

t.test('an aborted upload that the parser reads gives the connection back: no handler has run', async (t) => {
  const stage = await Stage.set(t, { routes: (app) => { app.post('/', async () => 'well') } })
  const client = stage.client().send('POST', '/', { id: 'A', body: '{', length: 100 })
  await until(() => stage.witness.lent.length === 1)
  client.leave()
  await stage.over('A')
  await stage.settled(t)
  t.same(stage.witness.destroyed, [])
})

t.test('an aborted upload in which a hook has used the connection gives it back once the error is answered', async (t) => {
  const stage = await Stage.set(t, {
    routes: (app) => {
      app.addHook('preParsing', async (request) => { say(request, 'begin') })
      app.post('/', async () => 'well')
    },
  })
  const client = stage.client().send('POST', '/', { id: 'A', body: '{', length: 100 })
  await stage.hears('A:begin#1')
  client.leave()
  await stage.over('A')
  await stage.settled(t)
  t.same(stage.witness.destroyed, [])
})

t.test('a client that leaves while its request waits for a connection leaves the line at once', async (t) => {
  let ran = 0
  const stage = await Stage.set(t, { routes: (app) => { app.get('/', async () => { ran++ }) } })
  const lease = await stage.pool.acquire({ holder: 'a job' })
  const client = stage.client().send('GET', '/', { id: 'A' })
  await stage.waiting(1)
  client.leave()
  await stage.waiting(0)
  t.match(stage.pool.stats(), { aborted: 1, used: 1 })
  lease.release()
  await stage.settled(t)
  t.equal(ran, 0)
  t.same(stage.witness.lent, ['a job'])
})

t.test('a client that leaves while its POST waits for a connection leaves the line at once', async (t) => {
  const stage = await Stage.set(t, { routes: (app) => { app.post('/', async () => 'well') } })
  const lease = await stage.pool.acquire({ holder: 'a job' })
  const client = stage.client().send('POST', '/', { id: 'A', body: '{}' })
  await stage.waiting(1)
  client.leave()
  await stage.waiting(0)
  lease.release()
  await stage.settled(t)
})

t.test('a client that leaves while a connection is made for it: the connection is for whoever comes next', async (t) => {
  const stage = await Stage.set(t, { pool: { startup: 'lazy' }, routes: (app) => { app.get('/', async (request) => { say(request, 'begin'); return 'well' }) } })
  stage.witness.creating = stage.gate('made').opened
  const client = stage.client().send('GET', '/', { id: 'A' })
  await until(() => stage.pool.stats().creating === 1)
  client.leave()
  await stage.waiting(0)
  stage.gate('made').open()
  t.equal((await stage.client().get('/', { id: 'B' })).body, 'well')
  await stage.settled(t)
  t.same(stage.witness.said, ['B:begin#1'])
})

t.test('a client that leaves while its handler waits for a connection by hand: the handler is told', async (t) => {
  const stage = await Stage.set(t, {
    plugin: { lease: { acquire: 'manual' } },
    routes: (app, stage) => {
      app.get('/', async (request) => {
        await t.rejects(request.acquire('db'), { code: 'FST_POOL_ABORTED' })
        stage.gate('told').open()
      })
    },
  })
  const lease = await stage.pool.acquire({ holder: 'a job' })
  const client = stage.client().send('GET', '/', { id: 'A' })
  await stage.waiting(1)
  client.leave()
  await stage.passed('told')
  lease.release()
  await stage.settled(t)
})

for (const method of ['GET', 'POST']) {
  t.test(`a client that leaves while an earlier hook of its ${method} waits costs no connection: every sign of its end is past`, async (t) => {
    let ran = 0
    const stage = await Stage.set(t, {
      before: (app, stage) => { app.addHook('onRequest', async (request) => { stage.seen.set(request.id, { request, reply: undefined as never, ours: { raw: [], socket: [] } }); await stage.gate('auth').opened }) },
      routes: (app, stage) => {
        app.addHook('onError', async () => { stage.gate('refused').open() })
        app.route({ method: ['GET', 'POST'], url: '/', handler: async () => { ran++ } })
      },
    })
    const client = stage.client().send(method, '/', { id: 'A', ...(method === 'POST' && { body: '{}' }) })
    const { request } = await stage.arrived('A')
    client.leave()
    await until(() => request.raw.socket.closed)
    stage.gate('auth').open()
    await stage.passed('refused')
    await stage.settled(t)
    t.same(stage.witness.lent, [])
    t.equal(ran, 0, 'the handler is spared')
  })
}

for (const acquire of ['preHandler', 'manual'] as const) {
  t.test(`a client that leaves before its route takes a connection (${acquire}) costs none`, async (t) => {
    const stage = await Stage.set(t, {
      plugin: { lease: { acquire } },
      routes: (app, stage) => {
        app.addHook('onError', async () => { stage.gate('refused').open() })
        app.get('/', { preValidation: async () => { stage.gate('begun').open(); await stage.gate('auth').opened } }, async (request) => {
          await request.acquire('db')
        })
      },
    })
    const client = stage.client().send('GET', '/', { id: 'A' })
    await stage.passed('begun')
    client.leave()
    await stage.over('A')
    stage.gate('auth').open()
    await stage.passed('refused')
    await stage.settled(t)
    t.same(stage.witness.lent, [])
  })
}

for (const method of ['GET', 'POST']) {
  t.test(`pipelined ${method}s behind one that is pending give their connections back when the client leaves`, async (t) => {
    const stage = await Stage.set(t, {
      pool: { max: 4 },
      routes: (app, stage) => {
        app.route({ method: ['GET', 'POST'], url: '/', handler: async (request) => { await goOn(stage, request); return 'well' } })
        app.route({ method: ['GET', 'POST'], url: '/done', handler: async (request) => { say(request, 'begin'); return 'well' } })
      },
    })
    const body = method === 'POST' ? { body: '{}' } : {}
    const client = stage.client()
    client.pipeline([method, '/', { id: 'A', ...body }], [method, '/', { id: 'B', ...body }], [method, '/done', { id: 'C', ...body }])
    await until(() => stage.witness.said.length === 3)
    t.match(stage.pool.stats(), { used: 3 }, 'a reply that is queued has not been sent')
    // Node 20 and 22 never close the response of a request that is queued; 24 does.
    await stage.arrived('B')
    client.leave()
    await stage.over('A')
    await until(() => stage.pool.stats().used === 2, { what: 'the end of the request that was done' })
    t.same(stage.pool.holders().map(({ holder }) => (holder as { id: string }).id).sort(), ['A', 'B'], 'the others may still speak')
    stage.gate('A').open()
    await stage.settled(t)
    t.same(stage.witness.destroyed, [])
  })
}

for (const method of ['GET', 'POST']) {
  t.test(`a connection that goes to a pipelined ${method} in the very moment in which its client leaves goes back too`, async (t) => {
    let ran = 0
    const stage = await Stage.set(t, {
      routes: (app, stage) => {
        app.get('/', async () => { await stage.gate('A').opened; return 'well' })
        app.route({ method: ['GET', 'POST'], url: '/queued', handler: async () => { ran++ } })
      },
    })
    const client = stage.client()
    client.pipeline(['GET', '/', { id: 'A' }], [method, '/queued', { id: 'B', ...(method === 'POST' && { body: '{}' }) }])
    await stage.waiting(1)
    client.leave()
    // The end of A hands its connection to B, and B ends in the same breath.
    await stage.over('A')
    await stage.settled(t)
    t.equal(ran, 0)
  })
}

t.test('pipelined requests that are answered leave no listener on the socket', async (t) => {
  const stage = await Stage.set(t, {
    pool: { max: 3 },
    routes: (app, stage) => {
      app.get('/', async (request) => { say(request, 'begin'); return request.id })
      app.get('/gate', async (request) => { say(request, 'begin'); await stage.gate('A').opened; return request.id })
    },
  })
  const client = stage.client()
  client.pipeline(['GET', '/gate', { id: 'A' }], ['GET', '/', { id: 'B' }], ['GET', '/', { id: 'C' }])
  await stage.hears('C:begin#3')
  stage.gate('A').open()
  for (const id of ['A', 'B', 'C']) t.equal((await client.answer()).body, id)
  await stage.settled(t)
})

t.test('thirty pipelined requests do not look like a leak of listeners', async (t) => {
  const warnings: Error[] = []
  const warn = (warning: Error) => { warnings.push(warning) }
  process.on('warning', warn)
  t.teardown(() => process.off('warning', warn))
  const stage = await Stage.set(t, { pool: { max: 30 }, routes: (app, stage) => { app.get('/', async (request) => { await goOn(stage, request); return 'well' }) } })
  const client = stage.client()
  client.pipeline(...Array.from({ length: 30 }, (_, at) => ['GET', '/', { id: `r${at}` }] as const))
  await until(() => stage.witness.said.length === 30)
  client.leave()
  await stage.over('r0')
  stage.gate('A').open()
  await stage.settled(t)
  t.same(stage.witness.destroyed, [])
  t.same(warnings, [])
})

t.test('app.close() with forceCloseConnections waits for the handler that still runs, and closes its connection after it', async (t) => {
  const stage = await Stage.set(t, {
    server: { forceCloseConnections: true },
    pool: { closeTimeout: 5000 },
    routes: (app, stage) => { app.get('/', async (request) => { await goOn(stage, request); return 'well' }) },
  })
  stage.client().send('GET', '/', { id: 'A', headers: { connection: 'keep-alive' } })
  await stage.hears('A:begin#1')
  const closed = stage.app.close()
  await stage.over('A')
  t.match(stage.pool.stats(), { used: 1 })
  stage.gate('A').open()
  await closed
  await stage.settled(t)
  t.same(stage.witness.said, ['A:begin#1', 'A:end#1'])
  t.same(stage.witness.destroyed, ['closed'])
})

t.test('app.close() does not wait longer than closeTimeout for a handler whose client was cut off', async (t) => {
  const stage = await Stage.set(t, {
    server: { forceCloseConnections: true },
    pool: { closeTimeout: 100 },
    routes: (app, stage) => { app.get('/', async (request) => { await goOn(stage, request); return 'well' }) },
  })
  const closes = event<'close'>(stage.pool, 'close')
  stage.client().send('GET', '/', { id: 'A', headers: { connection: 'keep-alive' } })
  await stage.hears('A:begin#1')
  await stage.app.close()
  t.match((await closes).holders, [{ holder: { id: 'A', route: 'GET /' } }])
  stage.gate('A').open()
  await stage.settled(t)
  t.same(stage.witness.said, ['A:begin#1'])
  t.same(stage.witness.destroyed, ['closed'])
})

t.test('a reply that is cut while a later onSend hook uses the connection is not given to the next one meanwhile', async (t) => {
  const stage = await Stage.set(t, {
    routes: (app, stage) => {
      app.get('/', { onSend: async (request) => { await goOn(stage, request) } }, async () => 'well')
      app.get('/next', async (request) => { say(request, 'begin'); return 'next' })
    },
    plugin: { abortGrace: 500 },
  })
  const client = stage.client().send('GET', '/', { id: 'A' })
  await stage.hears('A:begin#1')
  client.leave()
  await stage.over('A')
  const next = stage.client().send('GET', '/next', { id: 'B' })
  await stage.waiting(1)
  stage.gate('A').open()
  t.equal((await next.answer()).body, 'next')
  t.same(stage.witness.said, ['A:begin#1', 'A:end#1', 'B:begin#1'])
  await stage.settled(t)
})
