import { once } from 'node:events'
import { Agent, get, type IncomingMessage } from 'node:http'
import { connect as connectHttp2 } from 'node:http2'
import type { AddressInfo } from 'node:net'
import { Readable } from 'node:stream'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import fastifyPool, { type PoolOptions } from '../../index.js'
import { FakeConnector, type FakeConnection } from '../support/fake-connector.js'
import { settle } from '../support/clock.js'
import { gate } from '../support/stage.js'
import { event } from '../support/until.js'

async function served (t: Test, options: Partial<PoolOptions> = {}, routes: (app: FastifyInstance) => void = () => {}) {
  const connector = new FakeConnector()
  const app = Fastify()
  await app.register(fastifyPool, { connector, ...options } as PoolOptions)
  routes(app)
  await app.listen({ port: 0, host: '127.0.0.1' })
  const agent = new Agent({ keepAlive: true })
  t.teardown(async () => {
    agent.destroy()
    await app.close()
  })
  const { port } = app.server.address() as AddressInfo
  const ask = async (path: string) => {
    const [response] = await once(get({ host: '127.0.0.1', port, path, agent }), 'response') as [IncomingMessage]
    return response
  }
  const text = async (response: IncomingMessage) => {
    let all = ''
    for await (const chunk of response) all += String(chunk)
    return all
  }
  return { app, ask, connector, port, text }
}

t.test('a request in flight, and one that waits for its connection, are answered; then the pool closes, and close() does not hang on keep-alive clients', async (t) => {
  const { wait, reached, open } = gate()
  const { app, ask, connector, text } = await served(t, { max: 1 }, (app) => {
    app.get('/', async (request) => {
      await wait()
      return String((request.db as FakeConnection).id)
    })
  })
  const pool = app.pools.get('db')
  const waits = new Promise<void>((resolve) => { pool.on('wait', () => { resolve() }) })
  const first = ask('/')
  await reached
  const second = ask('/')
  await waits
  const ended = event<'close'>(app.pools.get('db'), 'close')
  const closed = app.close()
  await settle()
  t.equal((await pool.health()).status, 'draining')
  t.equal(connector.live, 1)
  open()
  for (const response of [await first, await second]) {
    t.equal(response.statusCode, 200)
    t.equal(response.headers.connection, 'close')
    t.equal(await text(response), '1', 'the same connection')
  }
  await closed
  t.match(await ended, { destroyed: 1, holders: [] }, 'nothing was cut off at closeTimeout')
  t.equal(connector.live, 0)
  await t.rejects(pool.acquire(), { code: 'FST_POOL_CLOSED', statusCode: 503 })
})

t.test('an answer that had begun before the close is not cut, and its client does not hold up the close', async (t) => {
  const { wait, reached, open } = gate()
  const { app, ask, text } = await served(t, {}, (app) => {
    app.get('/', async () => Readable.from((async function * () {
      yield 'begun '
      await wait()
      yield 'and done'
    })()))
  })
  const response = await ask('/')
  await reached
  const ended = event<'close'>(app.pools.get('db'), 'close')
  const closed = app.close()
  await settle()
  open()
  t.equal(await text(response), 'begun and done')
  await closed
  t.match(await ended, { destroyed: 1, holders: [] }, 'nothing was cut off at closeTimeout')
})

t.test('a request that takes its connection only after the close began gets one', async (t) => {
  const { wait, reached, open } = gate()
  const { app, ask, connector, text } = await served(t, { lease: { acquire: 'manual', release: 'onResponse' } }, (app) => {
    app.get('/', async (request) => {
      await wait()
      return String(((await request.acquire('db')).connection as FakeConnection).id)
    })
  })
  const answer = ask('/')
  await reached
  const closed = app.close()
  await settle()
  t.equal(connector.live, 0, 'nothing idle is kept while draining')
  open()
  t.equal(await text(await answer), '2')
  await closed
  t.equal(connector.live, 0)
})

t.test('a request that app.inject made is waited for by the pool itself', async (t) => {
  const { wait, reached, open } = gate()
  const { app, connector } = await served(t, {}, (app) => {
    app.get('/', async () => {
      await wait()
      return 'done'
    })
  })
  const answer = app.inject('/')
  await reached
  const closed = app.close()
  await settle()
  t.equal(connector.live, 1)
  open()
  t.equal((await answer).body, 'done')
  await closed
  t.equal(connector.live, 0)
})

t.test('close() resolves within closeTimeout when a handler never ends', async (t) => {
  const { wait, reached } = gate()
  const { app, connector } = await served(t, { closeTimeout: 40 }, (app) => { app.get('/', wait) })
  app.inject('/').then(() => { t.fail('it has no answer') }, (error: unknown) => { throw error })
  await reached
  const holders = new Promise((resolve) => { app.pools.on('close', (event) => { resolve(event.holders) }) })
  await app.close()
  t.match(await holders, [{ holder: { route: 'GET /' } }])
  t.equal(connector.live, 0)
  t.equal(connector.connections[0]!.reason, 'closed')
})

t.test('HTTP/2 gets no connection header', async (t) => {
  const { wait, reached, open } = gate()
  const app = Fastify({ http2: true })
  await app.register(fastifyPool, { connector: new FakeConnector() })
  app.get('/', async () => {
    await wait()
    return 'done'
  })
  await app.listen({ port: 0, host: '127.0.0.1' })
  const session = connectHttp2(`http://127.0.0.1:${(app.server.address() as AddressInfo).port}`)
  t.teardown(() => { session.destroy() })
  const stream = session.request({ ':path': '/' })
  const answered = once(stream, 'response')
  await reached
  const closed = app.close()
  await settle()
  open()
  const [headers] = await answered as [Record<string, unknown>]
  t.equal(headers[':status'], 200)
  t.notOk(headers.connection)
  stream.resume()
  await once(stream, 'close')
  session.close()
  await closed
})

t.test('close() after a boot that failed closes what is open', async (t) => {
  const connector = new FakeConnector()
  const app = Fastify()
  app.register(fastifyPool, { connector })
  app.register(async () => { throw new Error('no luck') })
  await t.rejects(async () => { await app.ready() }, { message: 'no luck' })
  await app.close()
  t.equal(connector.live, 0)
})
