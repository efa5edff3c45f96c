import { PassThrough, Readable } from 'node:stream'
import type { FastifyInstance } from 'fastify'
import t from 'tap'
import type { Test } from 'tap'
import type { Answer } from '../support/client.js'
import { Stage, on, say } from '../support/stage.js'
import type { StageOptions } from '../support/stage.js'
import { event } from '../support/until.js'

// Requests whose reply is sent: by the handler, or by something that went wrong before or after it.

interface Row {
  name: string
  routes (app: FastifyInstance): void
  before?: StageOptions['before']
  server?: StageOptions['server']
  method?: string
  path?: string
  body?: string
  headers?: Record<string, string>
  status: number
  answer?: string | RegExp
  /** How many leases a request has. */
  leases?: number
}

const rows: Row[] = [
  {
    name: 'an async handler that returns',
    routes: (app) => { app.get('/', async (request) => { say(request, 'read'); return 'well' }) },
    status: 200,
    answer: 'well',
  },
  {
    name: 'a handler that replies at once',
    routes: (app) => { app.get('/', (request, reply) => { say(request, 'read'); reply.send('well') }) },
    status: 200,
    answer: 'well',
  },
  {
    name: 'a handler that replies in a callback',
    routes: (app) => {
      app.get('/', (request, reply) => { setImmediate(() => { say(request, 'read'); reply.send('well') }) })
    },
    status: 200,
    answer: 'well',
  },
  {
    name: 'a reply of 204',
    routes: (app) => {
      app.get('/', (request, reply) => { say(request, 'read'); reply.code(204).send() })
    },
    status: 204
  },
  {
    name: 'a reply with trailers',
    routes: (app) => {
      app.get('/', (request, reply) => {
        say(request, 'read')
        reply.trailer('x-sum', (_reply, _payload, done) => { done(null, '42') })
        reply.send('well')
      })
    },
    status: 200,
    answer: /^well.*x-sum: 42$/is,
  },
  {
    name: 'a web Response with a stream in it, which is read from the connection to its end',
    routes: (app) => {
      app.get('/', (request) => {
        const parts = ['a', 'b', 'c']
        const body = new ReadableStream({
          pull (controller) {
            const part = parts.shift()
            if (part === undefined) return controller.close()
            say(request, part)
            controller.enqueue(Buffer.from(part))
          },
        }, { highWaterMark: 0 })
        return new Response(body, { status: 201 })
      })
    },
    status: 201,
    answer: 'abc',
  },
  {
    name: 'a node stream that is read from the connection to its end',
    routes: (app) => {
      app.get('/', (request) => Readable.from((async function * () {
        for (const part of ['a', 'b', 'c']) {
          say(request, part)
          yield part
        }
      })()))
    },
    status: 200,
    answer: 'abc',
  },
  {
    name: "a GET route's HEAD twin",
    routes: (app) => {
      app.get('/', async (request) => { say(request, 'read'); return 'well' })
    },
    method: 'HEAD',
    status: 200
  },
  {
    name: 'a handler that throws',
    routes: (app) => {
      app.get('/', async (request) => { say(request, 'read'); throw new Error('no') })
    },
    status: 500,
    answer: /no/
  },
  {
    name: 'a handler that throws before any promise',
    routes: (app) => {
      app.get('/', (request) => { say(request, 'read'); throw new Error('no') })
    },
    status: 500,
    answer: /no/
  },
  { name: 'a 404', routes: () => {}, path: '/nowhere', status: 404, leases: 0 },
  {
    name: 'a 405-like miss of the method',
    routes: (app) => {
      app.get('/',
        async () => 'well')
    },
    method: 'DELETE',
    status: 404,
    leases: 0
  },
  {
    name: 'a body that does not pass validation',
    routes: (app) => { app.post('/', { schema: { body: { type: 'object', required: ['a'] } } }, async () => 'well') },
    method: 'POST',
    body: '{}',
    status: 400,
    answer: /must have required property/,
  },
  {
    name: 'a reply that can not be serialised',
    routes: (app) => {
      app.get('/',
        { schema: { response: { 200: { type: 'object', required: ['a'], properties: { a: { type: 'string' } } } } } }, async (request) => { say(request, 'read'); return {} })
    },
    status: 500,
    answer: /a.*is required/,
  },
  {
    name: 'an error handler that throws',
    routes: (app) => {
      app.setErrorHandler(() => { throw new Error('and again') })
      app.get('/', async (request) => { say(request, 'read'); throw new Error('no') })
    },
    status: 500,
    answer: /and again/,
  },
  {
    name: 'an error handler that uses the connection',
    routes: (app) => {
      app.setErrorHandler(async (_error, request, reply) => {
        say(request, 'write')
        return reply.code(500).send('caught')
      })
      app.get('/', async (request) => { say(request, 'read'); throw new Error('no') })
    },
    status: 500,
    answer: 'caught',
  },
  {
    name: "an onSend hook of the user's that throws",
    routes: (app) => {
      app.get('/', { onSend: async () => { throw new Error('not sent') } },
        async (request) => { say(request, 'read'); return 'well' })
    },
    status: 500,
    answer: /not sent/,
  },
  {
    name: 'reply.callNotFound() of the root',
    routes: (app) => { app.get('/', (request, reply) => { say(request, 'read'); reply.callNotFound() }) },
    status: 404,
  },
  {
    name: "reply.callNotFound() on a route with onResponse hooks of its own, to the scope's handler",
    before: (app) => {
      app.setNotFoundHandler(async (request, reply) => { say(request, 'log'); return reply.code(404).send('not here') })
    },
    routes: (app) => {
      app.get('/', { onResponse: async () => {} }, (request, reply) => { say(request, 'read'); reply.callNotFound() })
    },
    status: 404,
    answer: 'not here',
  },
  {
    name: 'a body that is too large',
    routes: (app) => { app.post('/', { bodyLimit: 10 }, async () => 'well') },
    method: 'POST',
    body: JSON.stringify('x'.repeat(100)),
    status: 413,
  },
  {
    name: 'a later onRequest hook that rejects',
    routes: (app) => {
      app.get('/', { onRequest: async (_request, reply) => { reply.code(401); throw new Error('who are you') } },
        async () => 'well')
    },
    status: 401,
    answer: /who are you/,
  },
  {
    name: 'a later onRequest hook that replies',
    routes: (app) => {
      app.get('/', { onRequest: async (request, reply) => { say(request, 'who'); return reply.code(401).send('go') } },
        async () => 'well')
    },
    status: 401,
    answer: 'go',
  },
  {
    name: 'an earlier onRequest hook that rejects',
    before: (app) => {
      app.addHook('onRequest', async (_request, reply) => { reply.code(401); throw new Error('who are you') })
    },
    routes: (app) => { app.get('/', async () => 'well') },
    status: 401,
    leases: 0,
  },
  {
    name: 'an earlier onRequest hook that replies',
    before: (app) => { app.addHook('onRequest', async (_request, reply) => reply.send('cached')) },
    routes: (app) => { app.get('/', async () => 'well') },
    status: 200,
    leases: 0,
  },
  {
    name: 'a hijacked reply that is ended by hand',
    routes: (app) => {
      app.get('/', (request, reply) => { say(request, 'read'); reply.hijack(); reply.raw.end('raw') })
    },
    status: 200,
    answer: 'raw',
  },
  {
    name: 'a raw reply without hijack',
    routes: (app) => { app.get('/', (request, reply) => { say(request, 'read'); reply.raw.end('raw') }) },
    status: 200,
    answer: 'raw',
  },
  {
    name: 'a payload stream that fails before the headers are out',
    routes: (app) => {
      app.get('/', (request) => {
        say(request, 'read')
        const stream = new PassThrough()
        setImmediate(() => { stream.destroy(new Error('no file')) })
        return stream
      })
    },
    status: 500,
    answer: /no file/,
  },
  {
    name: 'an earlier onResponse hook that throws',
    before: (app) => { app.addHook('onResponse', async () => { throw new Error('no metrics') }) },
    routes: (app) => { app.get('/', async (request) => { say(request, 'read'); return 'well' }) },
    status: 200,
  },
  {
    name: 'an earlier onResponse hook that never calls done',
    before: (app) => { app.addHook('onResponse', () => {}) },
    routes: (app) => { app.get('/', async (request) => { say(request, 'read'); return 'well' }) },
    status: 200,
  },
  {
    name: 'an Upgrade header, where nobody listens for upgrades',
    routes: (app) => {
      app.get('/', async (request, reply) => { say(request, 'read'); return reply.code(426).send('no') })
    },
    headers: { connection: 'Upgrade', upgrade: 'WebSocket' },
    status: 426,
  },
  {
    name: 'OPTIONS on a route that does not name its pools',
    routes: (app) => { app.options('/', async () => 'well') },
    method: 'OPTIONS',
    status: 200,
    leases: 0,
  },
  {
    name: 'OPTIONS on a route that names its pools',
    routes: (app) => {
      app.options('/', { config: { pools: { db: true } } }, async (request) => { say(request, 'read'); return 'well' })
    },
    method: 'OPTIONS',
    status: 200,
  },
]

function check (t: Test, answer: Answer, row: Row) {
  t.equal(answer.status, row.status)
  if (typeof row.answer === 'string') t.equal(answer.body, row.answer)
  else if (row.answer !== undefined) t.match(answer.body, row.answer)
}

for (const row of rows) {
  const { name, routes, before, server, method = 'GET', path = '/', leases = 1, ...options } = row
  t.test(`the connection goes back once, and whole, after ${name}`, async (t) => {
    const stage = await Stage.set(t, { routes, before, server })
    // The pool has one connection: the second request would never get one.
    for (const id of ['A', 'B']) {
      const client = stage.client()
      check(t, await client.send(method, path, { id, ...options }).answer(), row)
      client.leave()
    }
    await stage.settled(t)
    t.same(stage.witness.lent, leases === 0 ? [] : ['A', 'B'])
    t.same(stage.witness.destroyed, [], 'and is kept')
    t.equal(stage.witness.connections.length, 1)
  })
}

t.test('fifty requests on one keep-alive connection take turns with one connection, and leave no listener behind', async (t) => {
  const stage =
    await Stage.set(t,
      { routes: (app) => { app.post('/', async (request) => { say(request, 'write'); return request.body }) } })
  const client = stage.client()
  const counts = new Set<number>()
  for (let at = 0; at < 50; at++) {
    client.send('POST', '/', { id: `r${at}`, body: `{"at":${at}}` })
    t.same(JSON.parse((await client.answer()).body), { at })
    const { request } = await stage.arrived(`r${at}`)
    counts.add(request.raw.socket.listenerCount('close'))
  }
  await stage.settled(t)
  t.equal(stage.witness.lent.length, 50)
  t.equal(stage.witness.connections.length, 1)
  t.equal(counts.size, 1, 'the socket has as many listeners after the last as after the first')
})

t.test('while a request runs, one listener of ours waits for its end, and none on the socket', async (t) => {
  const stage = await Stage.set(t, { routes: (app) => { app.get('/', async () => 'well') } })
  await stage.client().get('/', { id: 'A' })
  const { ours } = await stage.arrived('A')
  t.same({ raw: ours.raw.length, socket: ours.socket.length }, { raw: 1, socket: 0 })
  await stage.settled(t)
})

t.test('Expect: 100-continue takes one connection and gives it back', async (t) => {
  const stage =
    await Stage.set(t,
      { routes: (app) => { app.post('/', async (request) => { say(request, 'write'); return request.body }) } })
  const client = stage.client()
  client.send('POST', '/', { id: 'A', length: 2, headers: { expect: '100-continue' } })
  t.equal((await client.answer()).status, 100)
  client.write('{}')
  t.match(await client.answer(), { status: 200, body: '{}' })
  await stage.settled(t)
  t.same(stage.witness.lent, ['A'])
})

t.test('an acquire that fails answers 503 with Retry-After, and the handler never runs', async (t) => {
  let ran = 0
  const stage =
    await Stage.set(t, { pool: { acquireTimeout: 30 }, routes: (app) => { app.get('/', async () => { ran++ }) } })
  const lease = await stage.pool.acquire({ holder: 'a job' })
  const client = stage.client()
  const answer = await client.get('/', { id: 'A' })
  t.equal(answer.status, 503)
  t.match(answer.headers['retry-after'], /^([1-9]|[12]\d|30)$/)
  t.match(answer.body, /FST_POOL_ACQUIRE_TIMEOUT/)
  t.notMatch(answer.body, /a job/, 'who holds the connection is nobody else\'s business')
  t.equal(ran, 0)
  lease.release()
  t.equal((await client.get('/', { id: 'B' })).status, 200)
  t.equal(ran, 1)
  await stage.settled(t)
})

t.test('an upgrade that the server answers by itself runs no hook and leases nothing', async (t) => {
  const stage = await Stage.set(t, {
    routes: (app) => {
      app.get('/', async () => 'well')
      app.server.on('upgrade', (_request, socket) => {
        socket.end('HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n')
      })
    },
  })
  const answer = await stage.client()
    .send('GET', '/', { id: 'A', headers: { connection: 'Upgrade', upgrade: 'websocket' } }).answer()
  t.equal(answer.status, 101)
  t.equal(stage.seen.size, 0)
  await stage.settled(t)
  t.same(stage.witness.lent, [])
})

t.test('a bad request that never becomes one leases nothing', async (t) => {
  const stage = await Stage.set(t, { routes: (app) => { app.get('/', async () => 'well') } })
  const client = stage.client()
  client.write('NONSENSE\r\n\r\n')
  t.equal((await client.answer()).status, 400)
  t.equal(stage.seen.size, 0)
  await stage.settled(t)
  t.same(stage.witness.lent, [])
})

t.test('an earlier onResponse hook that takes its time holds the connection no longer than the response', async (t) => {
  const stage = await Stage.set(t, {
    before: (app, stage) => { app.addHook('onResponse', () => stage.gate('metrics').opened) },
    routes: (app) => { app.get('/', async (request) => { say(request, 'read'); return 'well' }) },
  })
  t.equal((await stage.client().get('/', { id: 'A' })).status, 200)
  await stage.settled(t)
})

t.test('a reply that comes early frees the connection while its handler goes on: the limit that docs/acquire-and-release.md names', async (t) => {
  const stage = await Stage.set(t, {
    routes: (app, stage) => {
      app.get('/', async (request, reply) => {
        const connection = on(request)
        connection.say(request.id, 'read')
        reply.send('early')
        await stage.gate('later').opened
        t.throws(() => on(request).say(request.id, 'more'), { code: 'FST_POOL_LEASE_RELEASED' }, 'request.db knows')
        t.throws(() => request.lease('db').connection, { code: 'FST_POOL_LEASE_RELEASED' }, 'so does the lease')
        connection.say(request.id, 'more')
        stage.gate('done').open()
        return reply
      })
    },
  })
  const released = event(stage.pool, 'release')
  t.equal((await stage.client().get('/', { id: 'A' })).body, 'early')
  await released
  stage.gate('later').open()
  await stage.passed('done')
  t.same(stage.witness.violations.splice(0), ['A said more on connection 1, which nobody holds'],
    'a connection kept in a variable does not')
  await stage.settled(t)
})

t.test("release 'onSend' gives the connection back before a slow reader is done", async (t) => {
  const stage = await Stage.set(t, {
    plugin: { lease: { release: 'onSend' } },
    routes: (app) => { app.get('/', async (request) => { say(request, 'read'); return Buffer.alloc(30e6) }) },
  })
  const slow = stage.client({ reading: false }).send('GET', '/', { id: 'A' })
  await event(stage.pool, 'release')
  const { reply } = await stage.arrived('A')
  t.equal(reply.raw.writableFinished, false)
  t.equal((await stage.client().get('/', { id: 'B' })).body.length, 30e6)
  t.equal(reply.raw.writableFinished, false, 'the first has not read a thing yet')
  slow.leave()
  await stage.over('A')
  await stage.settled(t)
  t.same(stage.witness.said, ['A:read#1', 'B:read#1'])
})

t.test("release 'onSend' keeps the connection of a stream to its end", async (t) => {
  const stage = await Stage.set(t, {
    plugin: { lease: { release: 'onSend' } },
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
  const two = stage.client().send('GET', '/', { id: 'B' })
  await stage.waiting(1)
  stage.gate('half').open()
  t.equal((await one.answer()).body, 'first second')
  t.equal((await two.answer()).body, 'first second')
  await stage.settled(t)
  t.same(stage.witness.said, ['A:first#1', 'A:second#1', 'B:first#1', 'B:second#1'])
})
