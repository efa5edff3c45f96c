import { Readable } from 'node:stream'
import t from 'tap'
import { Stage, on, say } from '../support/stage.js'
import { until } from '../support/until.js'

// app.inject(): no socket, and signs of its own.

t.test('an injected request gives its connection back, whether it replies, throws, streams or is not found', async (t) => {
  const stage = await Stage.set(t, {
    listen: false,
    routes: (app) => {
      app.get('/well', async (request) => { say(request, 'read'); return 'well' })
      app.post('/body', async (request) => { say(request, 'write'); return request.body })
      app.get('/throws', async (request) => { say(request, 'read'); throw new Error('no') })
      app.get('/stream', async (request) => Readable.from((async function * () {
        for (const part of ['a', 'b']) {
          say(request, part)
          yield part
        }
      })()))
    },
  })
  const { app } = stage
  t.equal((await app.inject({ url: '/well', headers: { 'x-id': 'A' } })).body, 'well')
  t.same((await app.inject({ method: 'POST', url: '/body', payload: { a: 1 }, headers: { 'x-id': 'B' } })).json(),
    { a: 1 })
  t.equal((await app.inject({ url: '/throws', headers: { 'x-id': 'C' } })).statusCode, 500)
  t.equal((await app.inject({ url: '/stream', headers: { 'x-id': 'D' } })).body, 'ab')
  t.equal((await app.inject({ url: '/nowhere', headers: { 'x-id': 'E' } })).statusCode, 404)
  t.equal((await app.inject({ method: 'HEAD', url: '/well', headers: { 'x-id': 'F' } })).statusCode, 200)
  await stage.settled(t)
  t.same(stage.witness.lent, ['A', 'B', 'C', 'D', 'F'])
  t.same(stage.witness.destroyed, [])
})

t.test('an injected request whose signal aborts: its connection goes to nobody before the handler is done', async (t) => {
  const stage = await Stage.set(t, {
    listen: false,
    routes: (app, stage) => {
      app.get('/', async (request) => {
        const connection = on(request)
        connection.say(request.id, 'begin')
        await stage.gate('A').opened
        connection.say(request.id, 'end')
        return 'well'
      })
      app.get('/next', async (request) => { say(request, 'begin'); return 'next' })
    },
  })
  const abort = new AbortController()
  const one = t.rejects(stage.app.inject({ url: '/', headers: { 'x-id': 'A' }, signal: abort.signal }))
  await stage.hears('A:begin#1')
  abort.abort()
  await one
  const next = stage.app.inject({ url: '/next', headers: { 'x-id': 'B' } })
  const answer = next.then(({ body }) => body)
  await stage.waiting(1)
  stage.gate('A').open()
  t.equal(await answer, 'next')
  await stage.settled(t)
  t.same(stage.witness.said, ['A:begin#1', 'A:end#1', 'B:begin#1'])
  t.same(stage.witness.destroyed, [])
})

t.test('an injected request whose signal aborts while it waits for a connection leaves the line', async (t) => {
  const stage = await Stage.set(t, { listen: false, routes: (app) => { app.get('/', async () => 'well') } })
  const lease = await stage.pool.acquire({ holder: 'a job' })
  const abort = new AbortController()
  const one = t.rejects(stage.app.inject({ url: '/', signal: abort.signal }))
  await stage.waiting(1)
  abort.abort()
  await one
  await stage.waiting(0)
  lease.release()
  await stage.settled(t)
})

t.test('an injected request whose signal aborts, and whose handler never settles: its connection is destroyed', async (t) => {
  const stage = await Stage.set(t, {
    listen: false,
    plugin: { abortGrace: 50 },
    routes: (app) => { app.get('/', async (request) => { say(request, 'begin'); await new Promise(() => {}) }) },
  })
  const abort = new AbortController()
  const one = t.rejects(stage.app.inject({ url: '/', headers: { 'x-id': 'A' }, signal: abort.signal }))
  await stage.hears('A:begin#1')
  abort.abort()
  await one
  await stage.settled(t)
  t.same(stage.witness.destroyed, ['aborted'])
})

t.test('app.close() while an injected request runs waits for it, which Fastify does not', async (t) => {
  const stage = await Stage.set(t, {
    listen: false,
    pool: { closeTimeout: 5000 },
    routes: (app, stage) => {
      app.get('/', async (request) => {
        say(request, 'begin')
        await stage.gate('A').opened
        say(request, 'end')
        return 'well'
      })
    },
  })
  const one = stage.app.inject({ url: '/', headers: { 'x-id': 'A' } }).then(({ body }) => body)
  await stage.hears('A:begin#1')
  let closed = false
  const closing = stage.app.close().then(() => { closed = true })
  await until(() => stage.app.server.listening === false)
  t.equal(closed, false)
  stage.gate('A').open()
  t.equal(await one, 'well')
  await closing
  await stage.settled(t)
  t.same(stage.witness.destroyed, ['closed'])
})
