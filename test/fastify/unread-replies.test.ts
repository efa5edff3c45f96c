import { connect as connectHttp2, type ClientHttp2Session, type ClientHttp2Stream } from 'node:http2'
import { PassThrough, Readable } from 'node:stream'
import { createGzip } from 'node:zlib'
import Fastify, { type FastifyInstance, type FastifyRequest, type FastifyServerOptions } from 'fastify'
import t, { type Test } from 'tap'
import { fastifyPool } from '../../index.js'
import type { Policy, PluginOptions } from '../../index.js'
import { answerOf } from '../support/client.js'
import { FakeConnector } from '../support/fake-connector.js'
import { alarm } from '../support/order.js'
import { Stage, handlerTimeout, needsHandlerTimeout, on, say } from '../support/stage.js'
import { event, until } from '../support/until.js'
import { Witness } from '../support/witness.js'

// Replies that are handed over, and that a client reads slowly or not at all: they keep no connection from others. The
// pool has one connection.

const http2 = { http2: true } as unknown as FastifyServerOptions
/** Longer than any test. */
const never = 600_000

/** An HTTP/2 client that lets the server send headers, and no data. */
async function mute (t: Test, port: number): Promise<ClientHttp2Session> {
  const session = connectHttp2(`http://127.0.0.1:${port}`, { settings: { initialWindowSize: 0 } })
  session.on('error', () => session.destroy())
  t.teardown(() => { session.destroy() })
  await event(session, 'remoteSettings')
  return session
}

const begun = new WeakSet<ClientHttp2Stream>()

function ask (session: ClientHttp2Session, id: string, path = '/', method = 'GET'): ClientHttp2Stream {
  const stream = session.request({ ':method': method, ':path': path, 'x-id': id })
  stream.on('error', () => stream.destroy())
  stream.on('response', () => { begun.add(stream) })
  return stream
}

/** The headers of the answer are there. */
async function headersOf (stream: ClientHttp2Stream): Promise<void> {
  await until(() => begun.has(stream), { what: 'headers' })
}

async function other (t: Test, port: number): Promise<{ status: number, body: string }> {
  const session = connectHttp2(`http://127.0.0.1:${port}`)
  t.teardown(() => { session.destroy() })
  return await answerOf(ask(session, 'other', '/other'))
}

function routes (app: FastifyInstance, stage: Stage): void {
  app.get('/', async () => 'unused')
  app.get('/used', async (request) => { say(request, 'read'); return 'used' })
  app.get('/other', async (request) => { say(request, 'read'); return 'well' })
  app.get('/slow', { config: { pools: false } }, async () => { await stage.gate('slow').opened; return 'slow' })
  app.get('/slow-by-hand', { config: { pools: false } }, async (request) => {
    await stage.gate('slow').opened
    await request.acquire('db')
    say(request, 'read')
    return 'slow'
  })
}

const policies: Array<Partial<Policy>> = [{ release: 'onResponse' }, { release: 'onSend' }, { acquire: 'preHandler' }]

for (const lease of policies) {
  for (const { used, replyGrace } of [
    { used: false, replyGrace: never }, { used: true, replyGrace: 30 }, { used: true, replyGrace: 0 },
  ]) {
    const how = `${used ? 'used' : 'unused'}, ${JSON.stringify(lease)}, replyGrace ${replyGrace}`

    t.test(`an HTTP/2 client that takes no data keeps no connection: ${how}`, async (t) => {
      const stage = await Stage.set(t, { server: http2, plugin: { lease, replyGrace }, routes })
      const session = await mute(t, stage.port)
      const streams = Array.from({ length: 3 }, (_, at) => ask(session, `A${at}`, used ? '/used' : '/'))
      for (const stream of streams) await headersOf(stream)
      t.same(await other(t, stage.port), { status: 200, body: 'well' })
      t.ok(streams.every(({ destroyed }) => !destroyed), 'they are still being sent')
      session.destroy()
      await stage.settled(t)
      t.same(stage.witness.destroyed, [])
    })

    t.test(`requests that are pipelined behind a slow one keep no connection: ${how}`, async (t) => {
      const stage = await Stage.set(t, { plugin: { lease, replyGrace }, routes })
      const path = used ? '/used' : '/'
      const client = stage.client()
        .pipeline(['GET', '/slow', { id: 'S' }], ...['A', 'B', 'C'].map((id) => ['GET', path, { id }] as const))
      await stage.arrived('C')
      t.equal((await stage.client().get('/other', { id: 'D' })).body, 'well')
      stage.gate('slow').open()
      for (const body of ['slow',
        ...Array.from({ length: 3 }, () => used ? 'used' : 'unused')]) t.equal((await client.answer()).body, body)
      await stage.settled(t)
      t.same(stage.witness.destroyed, [])
    })

    t.test(`a request does not wait for the one that is pipelined behind it: ${how}`, async (t) => {
      const stage = await Stage.set(t, { plugin: { lease, replyGrace }, routes })
      const client = stage.client()
        .pipeline(['GET', '/slow-by-hand', { id: 'S' }], ['GET', used ? '/used' : '/', { id: 'A' }])
      await until(() => stage.witness.lent.includes('A'))
      stage.gate('slow').open()
      t.equal((await client.answer()).body, 'slow')
      t.equal((await client.answer()).status, 200)
      await stage.settled(t)
    })
  }
}

t.test('a large reply that nobody reads keeps its connection no longer than replyGrace', async (t) => {
  const stage = await Stage.set(t, {
    plugin: { replyGrace: 30 },
    routes: (app) => { app.get('/', async (request) => { say(request, 'read'); return Buffer.alloc(30e6) }) },
  })
  const slow = stage.client({ reading: false }).send('GET', '/', { id: 'A' })
  await event(stage.pool, 'release')
  const { reply } = await stage.arrived('A')
  t.equal(reply.raw.writableFinished, false)
  t.equal((await stage.client().get('/', { id: 'B' })).body.length, 30e6)
  slow.leave()
  await stage.over('A')
  await stage.settled(t)
  t.same(stage.witness.destroyed, [], 'the handler was done')
})

for (const when of ['before', 'routes'] as const) {
  for (const sent of ['returned', 'sent', 'thrown']) {
    const how = `${sent}, in a hook ${when === 'before' ? 'before' : 'behind'} ours`

    t.test(`a reply that a hook makes a stream of (compression) keeps its connection no longer either: ${how}`, async (t) => {
      const compress = (app: FastifyInstance) => {
        app.addHook('onSend', async (_request, reply, payload) => {
          reply.header('content-encoding', 'gzip')
          return Readable.from([payload]).pipe(createGzip({ level: 0 }))
        })
      }
      const stage = await Stage.set(t, {
        plugin: { replyGrace: 30 },
        before: (app) => { if (when === 'before') compress(app) },
        routes: (app) => {
          if (when === 'routes') compress(app)
          app.setErrorHandler(() => 'x'.repeat(30e6))
          app.get('/', async (request, reply) => {
            say(request, 'read')
            if (sent === 'thrown') throw new Error('no')
            if (sent === 'returned') return 'x'.repeat(30e6)
            reply.send('x'.repeat(30e6))
            return reply
          })
        },
      })
      const slow = stage.client({ reading: false }).send('GET', '/', { id: 'A' })
      await event(stage.pool, 'release')
      const { reply } = await stage.arrived('A')
      t.equal(reply.raw.writableEnded, false)
      slow.leave()
      await stage.over('A')
      await stage.settled(t)
      t.same(stage.witness.destroyed, [], 'the handler was done')
    })
  }
}

t.test('a transaction is committed before a reply that an earlier hook has made a stream of', async (t) => {
  const connector = new FakeConnector()
  connector.outcomes.commit = 'error'
  const app = Fastify()
  t.teardown(() => app.close())
  app.addHook('onSend', async (_request, _reply, payload) => Readable.from([payload]))
  await app.register(fastifyPool, { connector, lease: { transaction: true } })
  app.get('/', async (request) => {
    t.ok((request as unknown as { db: unknown }).db)
    return 'well'
  })
  const { statusCode } = await app.inject('/')
  t.equal(statusCode, 500, 'the commit has failed')
  t.strictSame(connector.asked, ['begin #1', 'commit #1', 'rollback #1'])
})

for (const server of [{}, http2]) {
  for (const used of [false, true]) {
    const how = `${server === http2 ? 'HTTP/2' : 'HTTP/1'}, ${used ? 'used' : 'unused'}`

    t.test(`a hijacked reply that nobody reads keeps its connection no longer either: ${how}`, async (t) => {
      const stage = await Stage.set(t, {
        server,
        plugin: { replyGrace: 30 },
        routes: (app) => {
          app.get('/', async (request, reply) => {
            if (used) say(request, 'read')
            reply.hijack()
            reply.raw.end('x'.repeat(30e6))
          })
          app.get('/other', async (request) => { say(request, 'read'); return 'well' })
        },
      })
      if (server === http2) {
        const session = await mute(t, stage.port)
        await headersOf(ask(session, 'A', '/'))
        t.same(await other(t, stage.port), { status: 200, body: 'well' })
        session.destroy()
      } else {
        const slow = stage.client({ reading: false }).send('GET', '/', { id: 'A' })
        await event(stage.pool, 'release')
        t.equal((await stage.client().get('/other', { id: 'B' })).body, 'well')
        slow.leave()
      }
      await stage.settled(t)
      t.same(stage.witness.destroyed, [])
    })
  }
}

t.test('a hijacked reply without end keeps a connection that is read behind its headers, and no other', async (t) => {
  const stage = await Stage.set(t, {
    pool: { max: 2 },
    plugin: { replyGrace: 30 },
    routes: (app) => {
      app.get('/events', async (request, reply) => {
        reply.hijack()
        reply.raw.write('hello')
        if (request.id === 'A') say(request, 'read')
      })
    },
  })
  const clients = ['A', 'B'].map((id) => stage.client().send('GET', '/events', { id }))
  await event(stage.pool, 'release')
  const late = alarm(200)
  await until(() => late.rang)
  t.same(stage.pool.holders().map(({ holder }) => (holder as { id: string }).id), ['A'])
  const { request } = await stage.arrived('B')
  t.throws(() => on(request), { code: 'FST_POOL_LEASE_RELEASED', message: /await request.acquire/ })
  for (const client of clients) client.leave()
  await stage.settled(t)
})

t.test('until then it keeps it, and gives it back when the client has left', async (t) => {
  const stage = await Stage.set(t, {
    plugin: { replyGrace: never },
    routes: (app) => { app.get('/', async (request) => { say(request, 'read'); return Buffer.alloc(30e6) }) },
  })
  const slow = stage.client({ reading: false }).send('GET', '/', { id: 'A' })
  await stage.hears('A:read#1')
  const next = stage.client().send('GET', '/', { id: 'B' })
  await stage.waiting(1)
  slow.leave()
  t.equal((await next.answer()).status, 200)
  await stage.settled(t)
  t.same(stage.witness.destroyed, [])
})

// --- Streams ---------------------------------------------------------------------------------------------------------

/** A stream of each kind that gives its first part at once, and reads a connection for the next. */
const kinds: Record<string, (stage: Stage, second: () => Promise<string>) => unknown> = {
  'a stream of Node': (stage, second) => Readable.from((async function * () {
    yield 'first '
    await stage.gate('half').opened
    yield await second()
  })()),
  'a stream of the web': (stage, second) => webStream(stage, second),
  'a Response': (stage, second) =>
    new Response(webStream(stage, second) as ReadableStream<Uint8Array>, { status: 200 }),
}

function webStream (stage: Stage, second: () => Promise<string>): ReadableStream {
  let at = 0
  return new ReadableStream({
    async pull (controller) {
      if (at++ === 0) return controller.enqueue(Buffer.from('first '))
      await stage.gate('half').opened
      controller.enqueue(Buffer.from(await second()))
      controller.close()
    },
  }, { highWaterMark: 0 })
}

for (const [kind, make] of Object.entries(kinds)) {
  for (const server of [undefined, http2]) {
    const over = server === undefined ? 'HTTP/1.1' : 'HTTP/2'
    t.test(`${kind} over ${over} that has not read its connection when its headers are out has none: it is told so, and takes one by hand`, async (t) => {
      const told: unknown[] = []
      const stage = await Stage.set(t, {
        ...(server !== undefined && { server }),
        plugin: { replyGrace: 20 },
        routes: (app, stage) => {
          app.get('/', (request, reply) => {
            reply.send(make(stage, async () => {
              try {
                on(request)
              } catch (error) {
                told.push(error)
              }
              t.equal(request.lease('db').ended, true)
              await request.acquire('db')
              say(request, 'second')
              return 'second'
            }))
          })
          app.get('/other', async (request) => { say(request, 'read'); return 'well' })
        },
      })
      const answer = stage.app.server.listening && server === undefined
        ? stage.client().send('GET', '/', { id: 'A' })
        : ask(connect(t, stage), 'A')
      t.equal((server === undefined ? await stage.client().get('/other', { id: 'B' }) : await other(t, stage.port))
        .body, 'well', 'it is free while the stream goes on')
      stage.gate('half').open()
      const { body } = 'answer' in answer ? await answer.answer() : await answerOf(answer)
      t.equal(body, 'first second')
      t.match(told, [{ code: 'FST_POOL_LEASE_RELEASED', message: /headers.*request\.db.*request\.acquire\('db'\)/ }])
      await stage.settled(t)
      t.ok(stage.witness.said.includes('A:second#1'))
      t.same(stage.witness.destroyed, [])
    })
  }
}

function connect (t: Test, stage: Stage): ClientHttp2Session {
  const session = connectHttp2(`http://127.0.0.1:${stage.port}`)
  t.teardown(() => { session.destroy() })
  return session
}

t.test('slow downloads of files keep no connection that nobody has read', async (t) => {
  const stage = await Stage.set(t, {
    plugin: { replyGrace: never },
    routes: (app) => {
      app.get('/', (_request, reply) => {
        reply.header('content-length', 30e6).send(Readable.from(Array.from({ length: 30 }, () => Buffer.alloc(1e6))))
      })
      app.get('/other', async (request) => { say(request, 'read'); return 'well' })
    },
  })
  const slow = ['A', 'B', 'C'].map((id) => stage.client({ reading: false }).send('GET', '/', { id }))
  await until(() => stage.pool.stats().acquired === 3 && stage.pool.stats().used === 0)
  t.equal((await stage.client().get('/other', { id: 'D' })).body, 'well')
  for (const client of slow) client.leave()
  await stage.settled(t)
  t.same(stage.witness.destroyed, [], 'nor does the end of the download cost one')
})

t.test('a stream that reads its connection before its first data keeps it to its end, however long that takes', async (t) => {
  const stage = await Stage.set(t, {
    plugin: { replyGrace: 10 },
    routes: (app, stage) => {
      app.get('/', async (request) => Readable.from((async function * () {
        say(request, 'first')
        yield 'first '
        await stage.gate('half').opened
        say(request, 'second')
        yield 'second'
      })()))
    },
  })
  const one = stage.client().send('GET', '/', { id: 'A' })
  await one.hears('first')
  // Looked at several times meanwhile.
  const late = alarm(400)
  await until(() => late.rang)
  t.equal(stage.pool.stats().used, 1)
  stage.gate('half').open()
  t.equal((await one.answer()).body, 'first second')
  await stage.settled(t)
})

t.test('a stream that was used, has ended and is not read keeps its connection no longer than replyGrace', async (t) => {
  const stage = await Stage.set(t, {
    server: http2,
    plugin: { replyGrace: 20 },
    routes: (app, stage) => {
      routes(app, stage)
      app.get('/stream', async (request) => { say(request, 'read'); return Readable.from(['short']) })
    },
  })
  const session = await mute(t, stage.port)
  await headersOf(ask(session, 'A', '/stream'))
  t.same(await other(t, stage.port), { status: 200, body: 'well' })
  session.destroy()
  await stage.settled(t)
  t.same(stage.witness.destroyed, [])
})

t.test('a stream that takes its connection behind the headers, on a route without one, gives it back as well', async (t) => {
  const stage = await Stage.set(t, {
    server: http2,
    plugin: { replyGrace: 20 },
    routes: (app, stage) => {
      routes(app, stage)
      app.get('/stream', { config: { pools: false } }, async (request) => Readable.from((async function * () {
        yield 'first'
        await request.acquire('db')
        say(request, 'read')
        yield 'second'
      })()))
    },
  })
  const session = await mute(t, stage.port)
  ask(session, 'A', '/stream')
  await stage.hears('A:read#1')
  t.same(await other(t, stage.port), { status: 200, body: 'well' })
  session.destroy()
  await stage.settled(t)
})

// --- Who still uses a connection -------------------------------------------------------------------------------------

t.test("a hook of the app's that holds a reply up has its connection, however long that takes", async (t) => {
  const stage = await Stage.set(t, {
    plugin: { replyGrace: 10 },
    routes: (app, stage) => {
      app.addHook('onSend', async (request) => {
        await stage.gate('audit').opened
        say(request, 'audit')
      })
      app.get('/', async () => 'well')
      app.get('/stream', async () => Readable.from(['well']))
    },
  })
  const clients = [stage.client().send('GET', '/', { id: 'A' })]
  await until(() => stage.witness.lent.length === 1)
  clients.push(stage.client().send('GET', '/stream', { id: 'B' }))
  const late = alarm(200)
  await until(() => late.rang)
  t.equal(stage.pool.stats().used, 1)
  stage.gate('audit').open()
  for (const client of clients) t.equal((await client.answer()).body, 'well')
  await stage.settled(t)
  t.same(stage.witness.said, ['A:audit#1', 'B:audit#1'])
})

t.test('a trailer that reads the connection has it until it is written', async (t) => {
  const stage = await Stage.set(t, {
    plugin: { replyGrace: 10 },
    routes: (app, stage) => {
      app.get('/', async (request, reply) => {
        say(request, 'read')
        reply.trailer('x-sum', (_reply, _payload, done) => {
          stage.gate('sum').opened.then(() => {
            say(request, 'sum')
            done(null, '42')
          }, done)
        })
        return 'well'
      })
    },
  })
  const client = stage.client().send('GET', '/', { id: 'A' })
  await client.hears('well')
  const late = alarm(200)
  await until(() => late.rang)
  stage.gate('sum').open()
  t.match((await client.answer()).body, /x-sum: 42$/)
  await stage.settled(t)
  t.same(stage.witness.said, ['A:read#1', 'A:sum#1'])
})

t.test('an error handler that takes its time has its connection, and the reply of the error frees it', async (t) => {
  const stage = await Stage.set(t, {
    server: http2,
    plugin: { replyGrace: 20 },
    routes: (app, stage) => {
      app.setErrorHandler(async (_error, request, reply) => {
        await stage.gate('report').opened
        say(request, 'report')
        return reply.code(500).send('caught')
      })
      app.addHook('onSend', async (_request, _reply, payload) => {
        if (payload === 'bad') throw new Error('not sent')
      })
      app.get('/', async () => 'bad')
      routes2(app)
    },
  })
  const session = await mute(t, stage.port)
  const stream = ask(session, 'A')
  await until(() => stage.witness.lent.length === 1)
  const late = alarm(100)
  await until(() => late.rang)
  t.equal(stage.pool.stats().used, 1)
  stage.gate('report').open()
  await headersOf(stream)
  t.equal((await other(t, stage.port)).body, 'well')
  session.destroy()
  await stage.settled(t)
  t.same(stage.witness.said, ['A:report#1', 'other:read#1'])
})

function routes2 (app: FastifyInstance): void {
  app.get('/other', async (request) => { say(request, 'read'); return 'well' })
}

t.test('behind an unread reply the request is over: the handler that goes on is told so', async (t) => {
  const told: unknown[] = []
  const stage = await Stage.set(t, {
    server: http2,
    plugin: { replyGrace: 20 },
    routes: (app, stage) => {
      app.get('/', async (request, reply) => {
        say(request, 'read')
        reply.send('early')
        await stage.gate('later').opened
        t.throws(() => on(request), { code: 'FST_POOL_LEASE_RELEASED' })
        await request.acquire('db').catch((error: unknown) => { told.push(error) })
        stage.gate('told').open()
        return reply
      })
      routes2(app)
    },
  })
  const session = await mute(t, stage.port)
  await headersOf(ask(session, 'A'))
  t.equal((await other(t, stage.port)).body, 'well')
  stage.gate('later').open()
  await stage.passed('told')
  t.match(told, [{ code: 'FST_POOL_ABORTED' }])
  session.destroy()
  await stage.settled(t)
})

t.test('a reply of handlerTimeout that nobody reads: the connection of its handler, which goes on, is for nobody else', needsHandlerTimeout, async (t) => {
  const stage = await Stage.set(t, {
    server: http2,
    pools: ['db', 'cache'],
    plugin: { replyGrace: 20, abortGrace: 20 },
    routes: (app) => {
      app.get('/', handlerTimeout(30), async (request) => { say(request, 'read'); await new Promise(() => {}) })
      routes2(app)
    },
  })
  const session = await mute(t, stage.port)
  await headersOf(ask(session, 'A'))
  t.equal((await other(t, stage.port)).body, 'well')
  t.same([stage.witness.destroyed, stage.witnesses.get('cache')!.destroyed], [['aborted'], []])
  t.same(stage.witness.said, ['A:read#1', 'other:read#2'])
  session.destroy()
  await stage.settled(t)
})

// --- Siblings --------------------------------------------------------------------------------------------------------

t.test('of several pools those go back at the headers that nobody has read, also of a scope inside', async (t) => {
  const inner = new Witness()
  const stage = await Stage.set(t, {
    server: http2,
    pools: ['db', 'cache'],
    plugin: { replyGrace: never },
    routes: (app) => {
      app.register(async (child) => {
        await child.register(fastifyPool, { name: 'inner', connector: inner, max: 1, log: false } as PluginOptions)
        child.get('/', async (request) => { say(request, 'read'); return 'well' })
      })
    },
  })
  const session = await mute(t, stage.port)
  await headersOf(ask(session, 'A'))
  const { pools } = stage.seen.get('A')!.request.server
  await until(() => pools.get('cache').stats().used + pools.get('inner').stats().used === 0)
  t.equal(pools.get('db').stats().used, 1)
  session.destroy()
  await stage.settled(t)
})

for (const method of ['GET', 'HEAD', 'OPTIONS', 'DELETE']) {
  for (const status of [200, 204, 304, 404, 500]) {
    t.test(`whatever the reply is: ${method} ${status}`, async (t) => {
      const stage = await Stage.set(t, {
        plugin: { replyGrace: 20 },
        routes: (app, stage) => {
          const config = { pools: ['db'] } as const
          for (const path of ['/', '/stream']) {
            app.route({
              method: ['GET', 'OPTIONS', 'DELETE'],
              url: path,
              config,
              handler: async (request, reply) => {
                if (request.headers['x-use'] !== undefined) say(request, 'read')
                reply.code(status)
                if (status === 500) throw new Error('no')
                return path === '/' ? 'some text' : Readable.from(['some ', 'text'])
              },
            })
          }
          app.get('/slow', { config: { pools: false } }, async () => { await stage.gate('slow').opened; return 'slow' })
          app.get('/other', async (request) => { say(request, 'read'); return 'well' })
        },
      })
      const client = stage.client().pipeline(
        ['GET', '/slow', { id: 'S' }], [method, '/', { id: 'A' }],
        [method, '/', { id: 'B', headers: { 'x-use': '1' } }],
        [method, '/stream', { id: 'C' }], [method, '/stream', { id: 'D', headers: { 'x-use': '1' } }])
      await until(() => stage.witness.lent.length === 4)
      t.equal((await stage.client().get('/other', { id: 'E' })).body, 'well')
      stage.gate('slow').open()
      for (const expected of [200, status, status, status, status]) t.equal((await client.answer()).status, expected)
      await stage.settled(t)
      t.same(stage.witness.destroyed, [])
    })
  }
}

t.test('under inject as over a socket: a stream that nobody has read a connection for keeps none', async (t) => {
  const stage = await Stage.set(t, {
    listen: false,
    plugin: { replyGrace: never },
    routes: (app, stage) => {
      app.get('/', async () => {
        const stream = new PassThrough()
        stream.write('first ')
        stage.gate('half').opened.then(() => stream.end('second'), () => stream.destroy())
        return stream
      })
      app.get('/other', async (request) => { say(request, 'read'); return 'well' })
    },
  })
  const slow = stage.app.inject({ url: '/', headers: { 'x-id': 'A' } })
  await until(() => stage.witness.lent.length === 1)
  t.equal((await stage.app.inject({ url: '/other', headers: { 'x-id': 'B' } })).body, 'well')
  stage.gate('half').open()
  t.equal((await slow).body, 'first second')
  await stage.settled(t)
})

t.test('a bulkhead counts no unread reply', async (t) => {
  const stage = await Stage.set(t, {
    server: http2,
    pool: { max: 3, bulkhead: { key: () => 'everybody', max: 1 } },
    plugin: { replyGrace: 20 },
    routes,
  })
  const session = await mute(t, stage.port)
  for (const [id, path] of [['A', '/'], ['B', '/used']] as const) await headersOf(ask(session, id, path))
  t.equal((await other(t, stage.port)).body, 'well')
  session.destroy()
  await stage.settled(t)
})

// --- Transactions of routes ------------------------------------------------------------------------------------------

interface Line { readonly level: number, readonly msg: string }

async function withTransaction (t: Test, handler: (request: FastifyRequest, connector: FakeConnector) => unknown) {
  const connector = new FakeConnector()
  const lines: Line[] = []
  const stream = { write: (line: string) => { lines.push(JSON.parse(line) as Line) } }
  const app =
    Fastify({ http2: true, logger: { level: 'warn', stream } } as unknown as FastifyServerOptions) as unknown as FastifyInstance
  await app.register(fastifyPool,
    { connector, max: 1, replyGrace: 20, lease: { transaction: true }, log: { overflow: false } } as PluginOptions)
  app.get('/', async (request) => await handler(request, connector))
  app.get('/other', { config: { pools: { db: { transaction: false } } } },
    async (request) => { t.ok(request.lease('db').connection); return 'well' })
  t.teardown(() => app.close())
  await app.listen({ port: 0, host: '127.0.0.1' })
  const { port } = app.server.address() as { port: number }
  const session = await mute(t, port)
  await headersOf(ask(session, 'A'))
  t.equal((await other(t, port)).body, 'well')
  session.destroy()
  await until(() => app.pools.get('db').stats().used === 0)
  t.same(lines, [], 'nothing to be warned of')
  t.same(connector.violations, [])
  return connector
}

t.test('a transaction is committed before a reply that nobody reads, and its connection goes back', async (t) => {
  const connector = await withTransaction(t, (request, connector) => {
    connector.write((request as unknown as { db: never }).db, 'row')
    return 'well'
  })
  t.same([connector.asked, connector.rows], [['begin #1', 'commit #1'], ['row']])
})

t.test('a transaction that nobody has used is committed before a reply that nobody reads', async (t) => {
  const connector = await withTransaction(t, () => 'well')
  t.same(connector.asked, ['begin #1', 'commit #1'])
})

t.test('a transaction that nobody has used is rolled back with its connection when the headers of a stream are out', async (t) => {
  const connector = await withTransaction(t, () => {
    const stream = new PassThrough()
    stream.write('first')
    return stream
  })
  t.same(connector.asked, ['begin #1', 'rollback #1'])
})

t.test('a transaction that a stream uses is committed at its end, and its connection goes back though nobody reads', async (t) => {
  const connector = await withTransaction(t, (request, connector) => Readable.from((function * () {
    connector.write((request as unknown as { db: never }).db, 'row')
    yield 'first'
  })()))
  t.same([connector.asked, connector.rows], [['begin #1', 'commit #1'], ['row']])
})

t.test('commits under way when the headers of their stream are out are not disturbed, nor are those that come behind them', async (t) => {
  const [first, second] = [new FakeConnector(), new FakeConnector()]
  first.outcomes.commit = 'gate'
  const app = Fastify() as unknown as FastifyInstance
  const pools = { db: { connector: first, max: 1 }, cache: { connector: second, max: 1 } }
  await app.register(fastifyPool, { pools, replyGrace: 20, log: false, lease: { transaction: true } } as PluginOptions)
  // Its data and its end come together.
  app.get('/', async () => Readable.from(['all of it'], { objectMode: false }))
  t.teardown(() => app.close())
  const answer = app.inject('/')
  await until(() => first.asked.includes('commit #1'))
  const late = alarm(100)
  await until(() => late.rang)
  t.same([app.pools.get('db').stats().used, app.pools.get('cache').stats().used], [1, 1])
  for (const { pass } of first.calls) pass()
  t.equal((await answer).body, 'all of it')
  await until(() => app.pools.get('db').stats().used + app.pools.get('cache').stats().used === 0)
  for (const { asked, violations } of [first, second]) t.same([asked, violations], [['begin #1', 'commit #1'], []])
})
