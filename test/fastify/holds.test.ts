import fastifyWebsocket from '@fastify/websocket'
import { request as requestHttp } from 'node:http'
import { connect as connectHttp2 } from 'node:http2'
import { Readable } from 'node:stream'
import { finished } from 'node:stream/promises'
import type { FastifyInstance, FastifyRequest, FastifyServerOptions } from 'fastify'
import t, { type Test } from 'tap'
import type { PluginOptions, PoolOptions, RoutePools } from '../../index.js'
import { Stage, on, say } from '../support/stage.js'
import { event, until } from '../support/until.js'

// How long a request may hold a connection (`holdTimeout`). The pool has one connection.

interface Line { readonly level: number, readonly msg: string, readonly reqId?: string }

interface SetOptions {
  holdTimeout?: number
  pool?: Partial<PoolOptions>
  plugin?: Partial<PluginOptions>
  server?: FastifyServerOptions
  before? (app: FastifyInstance): void
  routes (app: FastifyInstance, stage: Stage): void
}

async function set (t: Test, { holdTimeout, pool, plugin, server, before = () => {}, routes }: SetOptions) {
  const lines: Line[] = []
  const stream = { write: (line: string) => { lines.push(JSON.parse(line) as Line) } }
  const stage = await Stage.set(t, {
    server: { logger: { level: 'warn', stream }, ...server },
    pool: { ...(holdTimeout !== undefined && { holdTimeout }), ...pool },
    plugin: { log: {}, ...plugin },
    before,
    routes (app, stage) {
      app.get('/other', async (request) => { say(request, 'read'); return 'well' })
      routes(app, stage)
    },
  })
  return { stage, lines }
}

const own = (holdTimeout: number): { config: { pools: RoutePools } } => ({ config: { pools: { db: { holdTimeout } } } })
const never = 600_000

t.test('a handler that never ends keeps its connection for holdTimeout, and the log names it', async (t) => {
  const { stage, lines } = await set(t, {
    holdTimeout: 300,
    routes: (app, stage) => {
      app.get('/stuck', async (request) => {
        say(request, 'stuck')
        await stage.gate('stuck').wait()
        const again = () => on(request)
        t.throws(again, { code: 'FST_POOL_LEASE_RELEASED', message: /^the lease on pool 'db' was out for longer than its holdTimeout/ })
        say(request, 'again', await request.acquire('db') && 'db')
        return 'late'
      })
    },
  })
  const stuck = stage.client().send('GET', '/stuck', { id: 'S' })
  await stage.gate('stuck').reached
  t.equal((await stage.client().get('/other', { id: 'O' })).body, 'well')
  t.same(stage.witness.destroyed, ['overdue'])
  const [warned, ended] = lines.filter(({ reqId }) => reqId === 'S')
  t.match(warned, { level: 40, reqId: 'S', msg: /^GET \/stuck \(S\) has held connection 1 for .*, since \d{4}-.*Z: that is half of its holdTimeout \(300 ms\)$/ })
  t.match(ended, { level: 40, reqId: 'S', msg: /^GET \/stuck \(S\) has held connection 1 for .*, since \d{4}-.*Z, longer than its holdTimeout \(300 ms\): the lease was revoked and the connection destroyed$/ })
  stage.gate('stuck').open()
  t.equal((await stuck.answer()).body, 'late')
  await stage.settled(t)
  t.same(stage.witness.said, ['S:stuck#1', 'O:read#2', 'S:again#2'])
})

t.test('whose holdTimeout counts: the route\'s, the policy\'s, the pool\'s', async (t) => {
  interface Row {
    pool?: Partial<PoolOptions>
    plugin?: Partial<PluginOptions>
    route?: object
    /** Of `request.acquire`. */
    more?: object
    revoked: boolean
  }
  const rows: Row[] = [
    { pool: { holdTimeout: 50 }, revoked: true },
    { pool: { holdTimeout: 0 }, revoked: false },
    { revoked: false },
    { route: own(50), revoked: true },
    { pool: { holdTimeout: 50 }, route: own(0), revoked: false },
    { pool: { holdTimeout: 50 }, route: own(never), revoked: false },
    { pool: { lease: { holdTimeout: 50 } }, revoked: true },
    { plugin: { lease: { holdTimeout: 50 } }, revoked: true },
    { pool: { holdTimeout: 50, lease: { holdTimeout: 0 } }, revoked: false },
    { plugin: { lease: { holdTimeout: 50 } }, route: { config: { pools: { db: {} } } }, revoked: true },
    { pool: { holdTimeout: 50 }, more: { holdTimeout: never }, revoked: false },
    { more: { holdTimeout: 50 }, revoked: true },
    { route: { config: { pools: false } }, plugin: { lease: { holdTimeout: 50 } }, more: {}, revoked: true },
  ]
  for (const { pool, plugin, route = {}, more, revoked } of rows) {
    const { stage } = await set(t, {
      pool: { ...pool, acquireTimeout: 600 },
      ...(plugin && { plugin }),
      routes: (app, stage) => {
        app.get('/stuck', route, async (request) => {
          if (more !== undefined) await request.acquire('db', more)
          await stage.gate('stuck').wait()
          return 'late'
        })
      },
    })
    const stuck = stage.client().send('GET', '/stuck', { id: 'S' })
    await stage.gate('stuck').reached
    const { status } = await stage.client().get('/other', { id: 'O' })
    t.equal(status, revoked ? 200 : 503, JSON.stringify({ pool, plugin, route, more }))
    stage.gate('stuck').open()
    await stuck.answer()
  }
})

t.test('a holdTimeout that is none is refused', async (t) => {
  const { stage } = await set(t, {
    routes: (app) => {
      app.get('/', async (request) => (await request.acquire('db', { holdTimeout: -1 })).heldFor)
    },
  })
  t.match((await stage.client().get('/')).body, /option holdTimeout is -1/)
  t.match((await stage.client().get('/other')).body, 'well')
})

t.test('jobs have none, and name their own', async (t) => {
  const { stage } = await set(t, { holdTimeout: 50, routes: () => {} })
  const job = await stage.pool.acquire({ holder: 'a job' })
  const other = stage.client().send('GET', '/other', { id: 'O' })
  await stage.waiting(1)
  const waited = event(stage.pool, 'timeout', { where: () => true, timeout: 400 })
  await t.rejects(waited, 'nobody took it away')
  t.equal(job.ended, false)
  job.release()
  t.equal((await other.answer()).body, 'well')
  const bound = await stage.pool.acquire({ holder: 'a job', holdTimeout: 50 })
  t.equal((await stage.client().get('/other', { id: 'P' })).body, 'well')
  t.equal(bound.ended, true)
})

const handshake = {
  connection: 'Upgrade',
  upgrade: 'websocket',
  'sec-websocket-version': '13',
  'sec-websocket-key': 'AAAAAAAAAAAAAAAAAAAAAA==',
}

for (const { what, holdTimeout } of [
  { what: 'upgraded', holdTimeout: undefined }, { what: 'hijacked', holdTimeout: undefined },
  { what: 'upgraded', holdTimeout: 50 }, { what: 'hijacked', holdTimeout: 50 },
] as const) {
  t.test(`an ${what} request has none unless its route has: ${holdTimeout}`, async (t) => {
    const route = holdTimeout === undefined ? { config: { pools: { db: {} } } } : own(holdTimeout)
    const { stage } = await set(t, {
      holdTimeout: 50,
      pool: { acquireTimeout: 600 },
      before: (app) => { app.register(fastifyWebsocket) },
      routes: (app) => {
        app.get('/upgraded', { websocket: true, ...route }, (_socket, request) => { say(request, 'hello') })
        app.get('/hijacked', route, async (request, reply) => {
          reply.hijack()
          reply.raw.write('HTTP')
          say(request, 'hello')
        })
      },
    })
    stage.client().send('GET', `/${what}`, { id: 'S', ...(what === 'upgraded' && { headers: handshake }) })
    await stage.hears('S:hello#1')
    const { status } = await stage.client().get('/other', { id: 'O' })
    t.equal(status, holdTimeout === undefined ? 503 : 200)
  })
}

/** A reply in small parts, without end. */
function parts (): Readable {
  const stream = new Readable({ read () {} })
  const timer = setInterval(() => { stream.push('part ') }, 5)
  stream.on('close', () => { clearInterval(timer) })
  return stream
}

const streaming = (route: object) => (app: FastifyInstance) => {
  app.get('/moving', route, async (request, reply) => {
    say(request, 'stream')
    return reply.send(parts())
  })
  app.get('/unread', route, async (request, reply) => {
    say(request, 'stream')
    return reply.send(Readable.from((function * () { while (true) yield Buffer.alloc(60_000) })()))
  })
  app.post('/upload', route, async (request) => {
    await request.acquire('db')
    say(request, 'upload')
    await finished((request.body as Readable).resume())
    return 'in'
  })
}

for (const version of [1, 2] as const) {
  for (const kind of ['a streamed reply', 'an upload'] as const) {
    t.test(`the hold of ${kind} starts again while bytes move, ten times at most: HTTP/${version}`, async (t) => {
      for (const { route, more } of [{ route: {}, more: false }, { route: own(120), more: true }]) {
        const { stage } = await set(t, {
          holdTimeout: 120,
          server: version === 2 ? { http2: true } as unknown as FastifyServerOptions : {},
          pool: { acquireTimeout: 30_000 },
          routes (app) {
            // As an upload to a stream of the handler's own: its connection is used while the body comes in.
            app.addContentTypeParser('text/x-up', (_request: FastifyRequest, body: Readable, done: (error: null, body: unknown) => void) => { done(null, body) })
            streaming(route)(app)
          },
        })
        const isUpload = kind === 'an upload'
        const path = isUpload ? '/upload' : '/moving'
        const stop = version === 1 ? send1(stage, path, isUpload) : send2(stage, path, isUpload)
        t.teardown(stop)
        await stage.hears(isUpload ? 'S:upload#1' : 'S:stream#1')
        if (more) {
          await until(() => stage.pool.holders()[0]!.heldFor > 1800)
          t.same(stage.witness.destroyed, [])
        } else {
          const { held } = await event<'overdue'>(stage.pool, 'overdue')
          t.ok(held > 360, 'it has started again')
          t.same(stage.witness.destroyed, ['overdue'])
        }
        stop()
      }
    })
  }
}

function send1 (stage: Stage, path: string, isUpload: boolean): () => void {
  const request = requestHttp({ port: stage.port, path, method: isUpload ? 'POST' : 'GET', agent: false, headers: { 'x-id': 'S', ...(isUpload && { 'content-type': 'text/x-up' }) } })
  request.on('error', () => {}).on('response', (response) => response.resume())
  if (!isUpload) request.end()
  const timer = isUpload ? setInterval(() => { request.write('part') }, 5) : undefined
  return () => { clearInterval(timer); request.destroy() }
}

function send2 (stage: Stage, path: string, isUpload: boolean): () => void {
  const session = connectHttp2(`http://127.0.0.1:${stage.port}`)
  session.on('error', () => {})
  const stream = session.request({ ':path': path, ':method': isUpload ? 'POST' : 'GET', 'x-id': 'S', ...(isUpload && { 'content-type': 'text/x-up' }) }, { endStream: !isUpload })
  stream.on('error', () => {}).resume()
  const timer = isUpload ? setInterval(() => { stream.write('part') }, 5) : undefined
  return () => { clearInterval(timer); session.destroy() }
}

t.test('a streamed reply that its client does not read is one that does not move', async (t) => {
  const { stage } = await set(t, { pool: { acquireTimeout: 30_000 }, routes: streaming(own(400)) })
  stage.client({ reading: false }).send('GET', '/unread', { id: 'S' })
  await stage.hears('S:stream#1')
  t.equal((await stage.client().get('/other', { id: 'O' })).status, 200)
  t.same(stage.witness.destroyed, ['overdue'])
})

t.test('the share of a bulkhead is free again', async (t) => {
  const { stage } = await set(t, {
    holdTimeout: 50,
    pool: { max: 2, bulkhead: { key: () => 'all', max: 1 } },
    routes: (app, stage) => { app.get('/stuck', async () => { await stage.gate('stuck').wait(); return 'late' }) },
  })
  stage.client().send('GET', '/stuck', { id: 'S' })
  await stage.gate('stuck').reached
  t.equal((await stage.client().get('/other', { id: 'O' })).body, 'well')
})

t.test('a reply that comes after the revocation of its transaction is a failure, and nothing is stored', async (t) => {
  const { FakeConnector } = await import('../support/fake-connector.js')
  const connector = new FakeConnector()
  const { stage } = await set(t, {
    pool: { connector, holdTimeout: 50, lease: { transaction: true } } as Partial<PoolOptions>,
    routes: (app, stage) => { app.get('/stuck', async () => { await stage.gate('stuck').wait(); return 'late' }) },
  })
  const stuck = stage.client().send('GET', '/stuck', { id: 'S' })
  await stage.gate('stuck').reached
  await until(() => connector.connections[0]?.reason === 'overdue')
  stage.gate('stuck').open()
  const { status, body } = await stuck.answer()
  t.equal(status, 500)
  t.match(JSON.parse(body), { code: 'FST_POOL_LEASE_RELEASED' })
  t.same(connector.asked, ['begin #1'])
})
