import { constants } from 'node:http2'
import { PassThrough } from 'node:stream'
import type { FastifyServerOptions } from 'fastify'
import t from 'tap'
import { answerOf, http2Client } from '../support/client.js'
import { Stage, on, say } from '../support/stage.js'
import { until } from '../support/until.js'

// HTTP/2: an aborted request runs onResponse too, and its response says 'finished'. Neither means that it ended well.

const server = { http2: true } as unknown as FastifyServerOptions

t.test('fifty streams on one session take turns with one connection', async (t) => {
  const stage = await Stage.set(t, {
    server,
    routes: (app) => {
      app.get('/', async (request) => { say(request, 'read'); return request.id })
      app.post('/', async (request) => { say(request, 'write'); return request.body })
    },
  })
  const client = await http2Client(t, stage.port)
  const answers = await Promise.all(Array.from({ length: 50 }, (_, at) => {
    const stream = client.send(at % 2 === 0 ? 'GET' : 'POST', '/', { id: `r${at}`, open: at % 2 === 1 })
    if (at % 2 === 1) stream.end('{"a":1}')
    return answerOf(stream)
  }))
  t.same(answers.map(({ status, body }) => `${status} ${body}`),
    Array.from({ length: 50 }, (_, at) => at % 2 === 0 ? `200 r${at}` : '200 {"a":1}'))
  await stage.settled(t)
  t.equal(stage.witness.lent.length, 50)
  t.same(stage.witness.destroyed, [])
})

const ways = {
  'the client resets its stream': (stream: { close (code: number): void }) => { stream.close(constants.NGHTTP2_CANCEL) },
  'the client destroys its session': (_stream: unknown, session: { destroy (): void }) => { session.destroy() },
}

for (const [way, leave] of Object.entries(ways)) {
  for (const method of ['GET', 'POST']) {
    t.test(`${way} while the handler of its ${method} runs: the connection goes to nobody before the handler is done`, async (t) => {
      const stage = await Stage.set(t, {
        server,
        routes: (app, stage) => {
          app.route({
            method: ['GET', 'POST'],
            url: '/',
            handler: async (request) => {
              const connection = on(request)
              connection.say(request.id, 'begin')
              await stage.gate('A').opened
              connection.say(request.id, 'end')
              return 'well'
            },
          })
          app.get('/next', async (request) => { say(request, 'begin'); return 'next' })
        },
      })
      const client = await http2Client(t, stage.port)
      const stream = client.send(method, '/', { id: 'A', open: method === 'POST' })
      if (method === 'POST') stream.end('{}')
      await stage.hears('A:begin#1')
      leave(stream, client.session)
      await stage.over('A')
      const next = answerOf((await http2Client(t, stage.port)).send('GET', '/next', { id: 'B' }))
      await stage.waiting(1)
      stage.gate('A').open()
      t.equal((await next).body, 'next')
      await stage.settled(t)
      t.same(stage.witness.said, ['A:begin#1', 'A:end#1', 'B:begin#1'])
      t.same(stage.witness.destroyed, [])
    })
  }

  t.test(`${way} while the handler runs, which never settles: the connection is destroyed`, async (t) => {
    const stage = await Stage.set(t, {
      server,
      plugin: { abortGrace: 50 },
      routes: (app) => { app.get('/', async (request) => { say(request, 'begin'); await new Promise(() => {}) }) },
    })
    const client = await http2Client(t, stage.port)
    const stream = client.send('GET', '/', { id: 'A' })
    await stage.hears('A:begin#1')
    leave(stream, client.session)
    await stage.over('A')
    await stage.settled(t)
    t.same(stage.witness.destroyed, ['aborted'])
  })

  t.test(`${way} while a stream is sent: the connection is destroyed`, async (t) => {
    const stage = await Stage.set(t, {
      server,
      routes: (app) => {
        app.get('/', async (request) => {
          say(request, 'begin')
          const stream = new PassThrough()
          stream.write('begin')
          return stream
        })
      },
    })
    const client = await http2Client(t, stage.port)
    const stream = client.send('GET', '/', { id: 'A' })
    let heard = false
    stream.on('data', () => { heard = true })
    await until(() => heard)
    leave(stream, client.session)
    await stage.over('A')
    await stage.settled(t)
    t.same(stage.witness.destroyed, ['aborted'])
  })

  t.test(`${way} during its upload: the connection goes back`, async (t) => {
    const stage = await Stage.set(t, { server, routes: (app) => { app.post('/', async () => 'well') } })
    const client = await http2Client(t, stage.port)
    const stream = client.send('POST', '/', { id: 'A', open: true })
    stream.write('{')
    await until(() => stage.witness.lent.length === 1)
    leave(stream, client.session)
    await stage.over('A')
    await stage.settled(t)
    t.same(stage.witness.destroyed, [])
  })

  t.test(`${way} while it waits for a connection: it leaves the line`, async (t) => {
    const stage = await Stage.set(t, { server, routes: (app) => { app.get('/', async () => 'well') } })
    const lease = await stage.pool.acquire({ holder: 'a job' })
    const client = await http2Client(t, stage.port)
    const stream = client.send('GET', '/', { id: 'A' })
    await stage.waiting(1)
    leave(stream, client.session)
    await stage.waiting(0)
    lease.release()
    await stage.settled(t)
    t.same(stage.witness.lent, ['a job'])
  })

  for (const open of [false, true]) {
    t.test(`${way} while an earlier hook waits${open ? ', during its upload' : ''}: it costs no connection`, async (t) => {
      let ran = 0
      const stage = await Stage.set(t, {
        server,
        before: (app, stage) => {
          app.addHook('onRequest', async (request, reply) => {
            stage.seen.set(request.id, { request, reply, ours: { raw: [], socket: [] } })
            await stage.gate('auth').opened
          })
        },
        routes: (app, stage) => {
          app.addHook('onError', async () => { stage.gate('refused').open() })
          app.route({ method: ['GET', 'POST'], url: '/', handler: async () => { ran++ } })
        },
      })
      const client = await http2Client(t, stage.port)
      const stream = client.send(open ? 'POST' : 'GET', '/', { id: 'A', open })
      if (open) stream.write('{')
      await stage.arrived('A')
      leave(stream, client.session)
      await stage.over('A')
      stage.gate('auth').open()
      await stage.passed('refused')
      await stage.settled(t)
      t.same(stage.witness.lent, [])
      t.equal(ran, 0)
    })
  }
}
