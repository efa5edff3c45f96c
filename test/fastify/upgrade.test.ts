import fastifyWebsocket, { type WebSocket } from '@fastify/websocket'
import Fastify from 'fastify'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { AddressInfo, Socket } from 'node:net'
import t, { type Test } from 'tap'
import { fastifyPool } from '../../index.js'
import type { PoolOptions } from '../../index.js'
import { Client } from '../support/client.js'
import { FakeConnector, type FakeConnection } from '../support/fake-connector.js'
import { event, until } from '../support/until.js'

// What a client says of itself (a header, a method) must not change which policy its request gets. An upgrade is what
// Node makes of it.

interface Line { readonly level: number, readonly msg: string, readonly reqId?: string }

interface SetOptions {
  /** @fastify/websocket is registered: `'before'` the pool, or `'after'` it. */
  websocket?: 'before' | 'after'
  pool?: Partial<PoolOptions>
  abortGrace?: number
  routes (app: FastifyInstance): void
}

async function set (t: Test, { websocket, pool, abortGrace = 50, routes }: SetOptions) {
  const lines: Line[] = []
  const connector = new FakeConnector()
  const stream = { write: (line: string) => { lines.push(JSON.parse(line) as Line) } }
  const app = Fastify({ logger: { level: 'warn', stream }, requestIdHeader: 'x-id' }) as unknown as FastifyInstance
  if (websocket === 'before') await app.register(fastifyWebsocket)
  await app.register(fastifyPool, { pools: { db: { connector, max: 1, ...pool } as PoolOptions }, abortGrace })
  if (websocket === 'after') await app.register(fastifyWebsocket)
  await app.register(async (app) => { routes(app) })
  t.teardown(() => app.close())
  await app.listen({ port: 0, host: '127.0.0.1' })
  const { port } = app.server.address() as AddressInfo
  const stats = () => app.pools.get('db').stats()
  const rest = () =>
    until(() => stats().used + stats().pending + stats().closing === 0, { what: `rest: ${connector.asked.join()}` })
  return { app, connector, lines, stats, rest, client: () => new Client(t, port) }
}

const handshake = {
  connection: 'Upgrade',
  upgrade: 'websocket',
  'sec-websocket-version': '13',
  'sec-websocket-key': 'AAAAAAAAAAAAAAAAAAAAAA==',
}

function on (request: FastifyRequest): FakeConnection {
  return (request as unknown as Record<string, FakeConnection>).db!
}

const transaction = { lease: { transaction: true } } as const

// Whatever a client may send to look like something else.
const disguises: Array<{ name: string, headers: Record<string, string> }> = [
  { name: 'nothing of the kind', headers: {} },
  { name: 'Upgrade: websocket alone', headers: { upgrade: 'websocket' } },
  { name: 'Upgrade: WebSocket', headers: { upgrade: 'WebSocket', connection: 'Upgrade' } },
  { name: 'a whole handshake', headers: handshake },
  {
    name: 'Upgrade: h2c',
    headers: {
      upgrade: 'h2c', connection: 'Upgrade, HTTP2-Settings', 'http2-settings': 'AAMAAABkAAQAAP__',
    }
  },
  { name: 'a preflight\'s headers', headers: { origin: 'http://a', 'access-control-request-method': 'POST' } },
  { name: 'x-http-method-override: OPTIONS', headers: { 'x-http-method-override': 'OPTIONS' } },
]

for (const { name, headers } of disguises) {
  for (const how of ['request.db', 'request.acquire'] as const) {
    t.test(`a pool-wide transaction holds for ${how}, whatever the headers: ${name}`, async (t) => {
      const { connector, rest, client } = await set(t, {
        pool: transaction,
        routes: (app) => {
          app.get('/', async (request) => {
            connector.write(how === 'request.db'
              ? on(request)
              : (await request.acquire('db')).connection as FakeConnection, 'row')
            if (request.headers['x-fail'] !== undefined) throw new Error('refused')
            return 'well'
          })
        },
      })
      t.equal((await client().get('/', { headers: { ...headers, 'x-fail': '1' } })).status, 500)
      await rest()
      t.same([connector.asked, connector.rows], [['begin #1', 'rollback #1'], []],
        'a request that fails leaves nothing')
      t.equal((await client().get('/', { headers })).status, 200)
      await rest()
      t.same(connector.rows, ['row'], 'one that does not leaves what it wrote')
    })
  }
}

// Whoever takes the connection by hand gets the policy of the route: at any moment, with any method.
interface ByHand {
  name: string
  route?: { config: object }
  method?: 'GET' | 'HEAD' | 'OPTIONS'
  hook?: 'onRequest' | 'preHandler'
}
const byHand: ByHand[] = [
  { name: 'in the handler' },
  {
    name: 'in the handler, where the route takes it by hand',
    route: {
      config: { pools: { db: { acquire: 'manual', transaction: true } } },
    }
  },
  { name: 'in the handler, where the route names it', route: { config: { pools: ['db'] } } },
  { name: 'on OPTIONS', method: 'OPTIONS' },
  { name: 'on HEAD', method: 'HEAD' },
  { name: 'in an onRequest hook', hook: 'onRequest' },
  {
    name: 'in an onRequest hook, where the route takes it in preHandler',
    hook: 'onRequest',
    route: {
      config: { pools: { db: { acquire: 'preHandler', transaction: true } } },
    }
  },
]

for (const { name, route, method = 'GET', hook } of byHand) {
  t.test(`request.acquire gets the route's transaction: ${name}`, async (t) => {
    const take = async (request: FastifyRequest) => (await request.acquire('db')).connection as FakeConnection
    const { app, connector, rest } = await set(t, {
      pool: transaction,
      routes: (app) => {
        if (hook !== undefined) app.addHook(hook, async (request) => { await take(request) })
        app.route({
          ...route,
          method: method === 'HEAD' ? 'GET' : method,
          url: '/',
          handler: async (request) => {
            connector.write(await take(request), 'row')
            if (request.headers['x-fail'] !== undefined) throw new Error('refused')
            return 'well'
          },
        })
      },
    })
    t.equal((await app.inject({ method, url: '/', headers: { 'x-fail': '1' } })).statusCode, 500)
    await rest()
    t.same([connector.asked, connector.rows], [['begin #1', 'rollback #1'], []])
    t.equal((await app.inject({ method, url: '/' })).statusCode, 200)
    await rest()
    t.same(connector.rows, ['row'])
  })
}

t.test('a route without that pool gives it by hand without any policy', async (t) => {
  const { app, connector, rest } = await set(t, {
    pool: transaction,
    routes: (app) => {
      app.get('/', { config: { pools: false } }, async (request) => {
        connector.write((await request.acquire('db')).connection as FakeConnection, 'row')
        throw new Error('refused')
      })
    },
  })
  t.equal((await app.inject('/')).statusCode, 500)
  await rest()
  t.same(connector.asked, [], 'it has said that it wants none of it')
})

for (const websocket of ['before', 'after'] as const) {
  t.test(`an upgrade by @fastify/websocket, registered ${websocket} the pool, leases what its route names`, async (t) => {
    const { connector, lines, stats, rest, client } = await set(t, {
      websocket,
      pool: transaction,
      routes: (app) => {
        app.get('/named', { websocket: true, config: { pools: ['db'] } },
          (_socket, request) => { connector.write(on(request), 'row') })
        app.get('/without', { websocket: true }, () => {})
        app.get('/plain', async (request) => { connector.write(on(request), 'plain'); return 'well' })
      },
    })
    for (const url of ['/without', '/named']) {
      const one = client().send('GET', url, { id: url, headers: handshake })
      await one.hears('101')
      t.equal(stats().used, url === '/named' ? 1 : 0, url)
      one.leave()
      await rest()
    }
    t.match(lines, [{ level: 50, reqId: '/named', msg: /hijacked.*rolled back/ }])
    t.same(connector.rows, [])
    t.equal((await client().get('/plain')).status, 200, 'the same app still leases for ordinary requests')
    t.same(connector.rows, ['plain'])
  })
}

t.test('an upgrade made by injectWS() is one, too', async (t) => {
  const { app, stats, rest } =
    await set(t, { websocket: 'before', routes: (app) => { app.get('/', { websocket: true }, () => {}) } })
  const socket = await app.injectWS('/')
  t.equal(stats().acquired, 0)
  const closed = event(socket, 'close')
  socket.terminate()
  await closed
  await rest()
})

// --- The end of a socket that Fastify does not answer on -------------------------------------------------------------

/** Longer than any test: whoever waits for it waits in vain. */
const never = 600_000
/** A close frame of RFC 6455, as a client sends it. */
const closeFrame = '\x88\x80\0\0\0\0'

interface End {
  name: string
  route: { websocket?: true, config: object }
  handler (request: FastifyRequest, other: { reply: FastifyReply, socket: WebSocket }): unknown
  leave (client: Client): void
}

function goodbye (client: Client): void {
  client.write(closeFrame).socket.end()
}

const named = { config: { pools: ['db'] } } as const
const ws = { websocket: true, ...named }

const ends: End[] = [
  { name: 'a WebSocket whose client says goodbye', route: ws, handler: (request) => { on(request) }, leave: goodbye },
  { name: 'a WebSocket whose client is gone', route: ws, handler: (request) => { on(request) }, leave: (client) => { client.leave() } },
  {
    name: 'a WebSocket that the server closes',
    route: ws,
    handler: (request, { socket }) => { on(request); socket.close() },
    leave: goodbye,
  },
  {
    name: 'a WebSocket whose handler waits for its end',
    route: ws,
    handler: async (request, { socket }) => { on(request); await event(socket, 'close') },
    leave: goodbye,
  },
  {
    name: 'server-sent events whose handler has returned',
    route: named,
    handler: (request, { reply }) => {
      on(request)
      reply.hijack()
      reply.raw.writeHead(200, { 'content-type': 'text/event-stream' }).write('data: 101\n\n')
    },
    leave: (client) => { client.leave() },
  },
  {
    name: 'server-sent events whose handler waits for the end',
    route: named,
    handler: async (request, { reply }) => {
      on(request)
      reply.hijack()
      reply.raw.writeHead(200, { 'content-type': 'text/event-stream' }).write('data: 101\n\n')
      await event(reply.raw, 'close')
    },
    leave: (client) => { client.leave() },
  },
]

for (const { name, route, handler, leave } of ends) {
  t.test(`a connection is destroyed as soon as its socket has closed: ${name}`, async (t) => {
    const { app, connector, client, rest } = await set(t, {
      websocket: 'before',
      abortGrace: never,
      routes: (app) => {
        app.get('/', route as object, ((first: never, second: never) => route.websocket === true
          ? handler(second, { socket: first } as never)
          : handler(first, { reply: second } as never)) as never)
        app.get('/plain', async (request) => { on(request); return 'well' })
      },
    })
    const reasons: string[] = []
    app.pools.on('disconnect', ({ reason }) => { reasons.push(reason) })
    const one = client().send('GET', '/', { headers: route.websocket === true ? handshake : {} })
    await one.hears('101')
    t.equal(app.pools.get('db').stats().used, 1)
    leave(one)
    t.equal((await client().get('/plain')).body, 'well', 'its slot is free')
    t.same(reasons, ['aborted'], 'somebody may still hold it')
    await rest()
    t.same(connector.violations, [])
  })

  t.test(`one that nobody has read goes back: ${name}`, async (t) => {
    const { app, client, rest } = await set(t, {
      websocket: 'before',
      abortGrace: never,
      routes: (app) => {
        app.get('/', route as object, ((first: never, second: never) => {
          const [request, it] = route.websocket === true ? [second, { socket: first }] : [first, { reply: second }]
          // All but the connection.
          return handler({ ...request as object, db: 'none' } as never, it as never)
        }) as never)
      },
    })
    const one = client().send('GET', '/', { headers: route.websocket === true ? handshake : {} })
    await one.hears('101')
    leave(one)
    await rest()
    t.equal(app.pools.get('db').stats().destroyed.aborted, 0)
  })
}

t.test('an upgraded socket that closes before its handler has begun: a hook may hold the connection, which is destroyed', async (t) => {
  let go = () => {}
  const sockets: Socket[] = []
  const door = new Promise<void>((resolve) => { go = resolve })
  const { app, client, rest } = await set(t, {
    websocket: 'before',
    abortGrace: never,
    routes: (app) => {
      app.addHook('preHandler', async (request) => {
        on(request)
        sockets.push(request.raw.socket)
        await door
      })
      app.get('/', ws, () => {})
    },
  })
  t.teardown(go)
  client().send('GET', '/', { headers: handshake })
  await until(() => sockets.length === 1)
  sockets[0]!.destroy()
  await until(() => app.pools.get('db').stats().destroyed.aborted === 1)
  go()
  await rest()
})

t.test('a connection for each message is in nobody\'s way when the socket closes', async (t) => {
  const { app, client, rest } = await set(t, {
    websocket: 'before',
    abortGrace: never,
    routes: (app) => {
      app.get('/', { websocket: true }, (socket) => {
        socket.on('message', () => {
          app.pools.get('db').use((connection) => { socket.send(`101 by ${(connection as FakeConnection).id}`) })
            .catch((error: unknown) => { t.fail(String(error)) })
        })
      })
    },
  })
  const one = client().send('GET', '/', { headers: handshake })
  // 'hi', unmasked by a mask of zeros.
  one.write('\x81\x82\0\0\0\0hi')
  await one.hears('101 by 1')
  goodbye(one)
  await rest()
  t.match(app.pools.get('db').stats(), { acquired: 1, used: 0, destroyed: { aborted: 0 } })
})
