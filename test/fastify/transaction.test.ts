import { constants } from 'node:http2'
import { PassThrough, Readable } from 'node:stream'
import Fastify from 'fastify'
import type {
  FastifyInstance, FastifyReply, FastifyRequest, FastifyServerOptions, RouteHandlerMethod, RouteShorthandOptions,
} from 'fastify'
import type { AddressInfo } from 'node:net'
import t, { type Test } from 'tap'
import { fastifyPool } from '../../index.js'
import type { PluginOptions, PoolError, PoolOptions } from '../../index.js'
import type { RoutePools } from '../../types/fastify.js'
import { Client, answerOf, http2Client } from '../support/client.js'
import { FakeConnector, type FakeConnection, failure } from '../support/fake-connector.js'
import { gate, type Gate, handlerTimeout, needsHandlerTimeout } from '../support/stage.js'
import { until } from '../support/until.js'

// A route's transaction, and `request.transaction`. The database is a fake whose begin, commit, rollback and savepoint
// are in the test's hands; it keeps what was committed in `rows`, and what it was asked in `asked`.

type Name = 'db' | 'cache'
interface Line {
  readonly level: number
  readonly msg: string
  readonly reqId?: string
  readonly err?: { readonly message: string }
}

interface SceneOptions {
  server?: FastifyServerOptions
  pools?: readonly Name[]
  pool?: Partial<PoolOptions>
  plugin?: Partial<PluginOptions>
  /** Hooks that are there before ours. */
  before? (app: FastifyInstance): void
  routes (app: FastifyInstance, scene: Scene): void
  listen?: boolean
}

class Scene {
  readonly app: FastifyInstance
  readonly connectors = new Map<Name, FakeConnector>()
  readonly lines: Line[] = []
  readonly #t: Test
  readonly #gates = new Map<string, Gate>()

  private constructor (t: Test, { server, pools = ['db'], pool, plugin, before, routes }: SceneOptions) {
    this.#t = t
    const stream = { write: (line: string) => { this.lines.push(JSON.parse(line) as Line) } }
    this.app = Fastify({
      logger: { level: 'warn', stream }, requestIdHeader: 'x-id', ...server,
    } as FastifyServerOptions) as unknown as FastifyInstance
    before?.(this.app)
    const map = Object.fromEntries(pools.map((name) => {
      const connector = new FakeConnector()
      this.connectors.set(name, connector)
      return [name, { connector, max: 1, closeTimeout: 500, ...pool }]
    }))
    this.app.register(fastifyPool, { ...plugin, pools: map } as PluginOptions)
    this.app.register((app, _, done) => {
      routes(app, this)
      done()
    })
  }

  static async set (t: Test, options: SceneOptions): Promise<Scene> {
    const scene = new Scene(t, options)
    t.teardown(async () => {
      for (const one of scene.#gates.values()) one.open()
      for (const connector of scene.connectors.values()) for (const call of [...connector.calls]) call.pass()
      await scene.app.close()
    })
    if (options.listen === true) await scene.app.listen({ port: 0, host: '127.0.0.1' })
    else await scene.app.ready()
    return scene
  }

  get db (): FakeConnector {
    return this.connectors.get('db')!
  }

  client (): Client {
    return new Client(this.#t, (this.app.server.address() as AddressInfo).port)
  }

  gate (name: string): Gate {
    const known = this.#gates.get(name) ?? gate()
    this.#gates.set(name, known)
    return known
  }

  stats (name: Name = 'db') {
    return this.app.pools.get(name).stats()
  }

  /** The database is asked that, and has not answered. */
  async underWay (what: string, name: Name = 'db'): Promise<void> {
    await until(() => this.connectors.get(name)!.calls.some((call) => call.name === what),
      { what: `${what} under way` })
  }

  /** Every connection is idle or gone, each was in one hand at a time, and has no transaction. */
  async rest (): Promise<void> {
    for (const [name, connector] of this.connectors) {
      await until(() => {
        const { used, pending, creating, closing } = this.stats(name)
        return used + pending + creating + closing === 0
      }, { what: `pool ${name} at rest: ${JSON.stringify(this.stats(name))} ${connector.asked.join()}` })
      const { acquired, released } = this.stats(name)
      this.#t.equal(released, acquired, 'every lease has ended, once')
      this.#t.same(connector.violations, [])
      this.#t.same(this.app.pools.holders(name), [])
      for (const connection of connector.connections) if (connection.state === 'open') this.#t.equal(connector.depth(connection), 0)
    }
  }

  errors (): string[] {
    return this.lines.filter(({ level }) => level >= 50).map(({ msg }) => msg)
  }
}

const inTransaction: RouteShorthandOptions = { config: { pools: { db: { transaction: true } } } }
const onReply: RouteShorthandOptions = { config: { pools: { db: { transaction: { commitOn: 'reply' } } } } }

function on (request: FastifyRequest, name: Name = 'db'): FakeConnection {
  return (request as unknown as Record<string, FakeConnection>)[name]!
}

/** A route whose handler writes a row, and then does that. */
function writes (scene: Scene, then: (request: FastifyRequest, reply: FastifyReply) => unknown): RouteHandlerMethod {
  return async (request, reply) => {
    scene.db.write(on(request), 'row')
    return then(request, reply)
  }
}

const committed = ['begin #1', 'commit #1']
const rolledBack = ['begin #1', 'rollback #1']

// --- Which replies commit --------------------------------------------------------------------------------------------

const commits: Array<{ name: string, then (request: FastifyRequest, reply: FastifyReply): unknown, status: number, method?: 'HEAD' | 'POST', body?: string }> = [
  { name: 'a value', then: () => ({ a: 1 }), status: 200, body: '{"a":1}' },
  {
    name: 'a 201',
    then: (_request, reply) => reply.code(201)
      .send({ a: 1 }),
    status: 201,
    method: 'POST',
    body: '{"a":1}'
  },
  { name: 'a Buffer', then: () => Buffer.from('text'), status: 200, body: 'text' },
  { name: 'an empty text', then: () => '', status: 200, body: '' },
  { name: 'null', then: (_request, reply) => reply.send(null), status: 200, body: 'null' },
  { name: 'nothing', then: (_request, reply) => reply.send(), status: 200, body: '' },
  { name: 'a 204', then: (_request, reply) => reply.code(204).send(), status: 204, body: '' },
  { name: 'a 304', then: (_request, reply) => reply.code(304).send(), status: 304, body: '' },
  { name: 'a redirect', then: (_request, reply) => reply.redirect('/other'), status: 302, body: '' },
  { name: 'a redirect for ever', then: (_request, reply) => reply.redirect('/other', 308), status: 308, body: '' },
  { name: 'HEAD', then: () => ({ a: 1 }), status: 200, method: 'HEAD', body: '' },
  {
    name: 'a Response without a body',
    then: () =>
      new Response(null, { status: 202, headers: { 'x-a': 'b' } }),
    status: 202,
    body: ''
  },
  // Not awaited, not returned: Fastify sends what the handler returns too, and must find that this one has been sent.
  {
    name: 'a reply that the async handler does not wait for',
    then: (_request,
      reply) => { reply.send({ a: 1 }) },
    status: 200,
    body: '{"a":1}'
  },
]

for (const { name, then, status, method = 'GET', body } of commits) {
  t.test(`${name} commits`, async (t) => {
    const scene = await Scene.set(t, {
      routes: (app, scene) => {
        app.route({
          ...inTransaction, method: method === 'POST' ? 'POST' : 'GET', url: '/', handler: writes(scene, then),
        })
      }
    })
    const answer = await scene.app.inject({ method, url: '/' })
    t.same([answer.statusCode, answer.body], [status, body])
    await scene.rest()
    t.same(scene.db.asked, committed)
    t.same(scene.db.rows, ['row'])
    t.same(scene.errors(), [])
  })
}

const no = () => new Error('no')
interface Refused {
  name: string
  route?: RouteShorthandOptions
  setUp? (app: FastifyInstance): void
  then (request: FastifyRequest, reply: FastifyReply): unknown
  status: number
}
const refusals: Refused[] = [
  { name: 'an error that the handler throws', then: () => { throw no() }, status: 500 },
  { name: 'an error that the handler sends', then: (_request, reply) => reply.send(no()), status: 500 },
  {
    name: 'an error with a status of its own',
    then: () => {
      throw Object.assign(no(),
        { statusCode: 409 })
    },
    status: 409
  },
  {
    name: 'an error that an error handler answers with 200',
    setUp: (app) => {
      app.setErrorHandler((_error, _request, reply) => reply.code(200).send('caught'))
    },
    then: () => { throw no() },
    status: 200
  },
  {
    name: 'an error that an async error handler answers with 200',
    setUp: (app) => {
      app.setErrorHandler(async (_error, _request, reply) => { reply.code(200); return 'caught' })
    },
    then: () => { throw no() },
    status: 200
  },
  { name: 'an error handler that throws', setUp: (app) => { app.setErrorHandler(() => { throw no() }) }, then: () => { throw no() }, status: 500 },
  {
    name: 'a reply that does not fit its schema',
    route: {
      schema: { response: { 200: { type: 'object', required: ['a'], properties: { a: { type: 'string' } } } } },
    },
    then: () => ({}),
    status: 500,
  },
  {
    name: 'an error in preSerialization',
    route: { preSerialization: async () => { throw no() } },
    then: () =>
      ({ a: 1 }),
    status: 500
  },
  { name: 'a 404 by callNotFound', then: (_request, reply) => { reply.callNotFound() }, status: 404 },
]

for (const { name, route, setUp, then, status } of refusals) {
  for (const commitOn of name.includes('callNotFound') ? ['success'] as const : ['success', 'reply'] as const) {
    t.test(`${name} is rolled back, with commitOn '${commitOn}'`, async (t) => {
      const scene = await Scene.set(t, {
        routes: (app, scene) => {
          setUp?.(app)
          app.get('/', { ...route, ...(commitOn === 'reply' ? onReply : inTransaction) }, writes(scene, then))
        },
      })
      t.equal((await scene.app.inject('/')).statusCode, status)
      await scene.rest()
      t.same(scene.db.asked, rolledBack)
      t.same(scene.db.rows, [])
    })
  }
}

for (const status of [400, 404, 409, 499, 500, 503]) {
  t.test(`a reply of ${status} is rolled back; with commitOn 'reply' it commits`, async (t) => {
    const scene = await Scene.set(t, {
      routes: (app, scene) => {
        app.get('/', inTransaction, writes(scene, (_request, reply) => reply.code(status).send('no')))
        app.get('/reply', onReply, writes(scene, (_request, reply) => reply.code(status).send('no')))
      },
    })
    t.equal((await scene.app.inject('/')).statusCode, status)
    t.same(scene.db.rows, [])
    t.equal((await scene.app.inject('/reply')).statusCode, status)
    await scene.rest()
    t.same(scene.db.asked, [...rolledBack, ...committed])
    t.same(scene.db.rows, ['row'])
  })
}

t.test('a synchronous handler that throws is rolled back, and one that replies commits', async (t) => {
  const scene = await Scene.set(t, {
    routes: (app, scene) => {
      app.get('/throw', inTransaction, (request) => { scene.db.write(on(request), 'no'); throw no() })
      app.get('/send', inTransaction, (request, reply) => { scene.db.write(on(request), 'yes'); reply.send('well') })
    },
  })
  t.equal((await scene.app.inject('/throw')).statusCode, 500)
  t.equal((await scene.app.inject('/send')).body, 'well')
  await scene.rest()
  t.same(scene.db.rows, ['yes'])
})

t.test('a body that does not fit is a 400 and rolled back, and the handler is not called', async (t) => {
  const scene = await Scene.set(t, {
    routes: (app) => {
      app.post('/', { ...inTransaction, schema: { body: { type: 'object', required: ['a'] } } },
        async () => t.fail('called'))
    },
  })
  t.equal((await scene.app.inject({ method: 'POST', url: '/', payload: {} })).statusCode, 400)
  t.equal((await scene.app.inject({
    method: 'POST', url: '/', payload: '{', headers: { 'content-type': 'application/json' },
  })).statusCode, 400)
  await scene.rest()
  t.same(scene.db.asked, [...rolledBack, ...rolledBack])
})

t.test('an error in a preHandler of the route is rolled back, and so is one with acquire preHandler', async (t) => {
  const preHandler = async () => { throw no() }
  const scene = await Scene.set(t, {
    routes: (app) => {
      app.get('/', { ...inTransaction, preHandler }, async () => t.fail('called'))
      app.get('/later', { config: { pools: { db: { transaction: true, acquire: 'preHandler' } } }, preHandler },
        async () => t.fail('called'))
    },
  })
  for (const url of ['/', '/later']) t.equal((await scene.app.inject(url)).statusCode, 500)
  await scene.rest()
  t.same(scene.db.asked, [...rolledBack, ...rolledBack])
})

t.test('rolling back comes after the error handler, which still reads within the transaction', async (t) => {
  const scene = await Scene.set(t, {
    routes: (app, scene) => {
      app.setErrorHandler(async (_error, request, reply) => {
        t.same(scene.db.asked, ['begin #1'])
        t.equal(scene.db.depth(on(request)), 1)
        return await reply.code(500).send('caught')
      })
      app.get('/', inTransaction, writes(scene, () => { throw no() }))
    },
  })
  t.equal((await scene.app.inject('/')).body, 'caught')
  await scene.rest()
  t.same(scene.db.asked, rolledBack)
})

// --- When it begins --------------------------------------------------------------------------------------------------

for (const acquire of ['onRequest', 'preHandler', 'manual'] as const) {
  t.test(`with acquire '${acquire}' it begins when the connection is taken`, async (t) => {
    const asked: string[][] = []
    const scene = await Scene.set(t, {
      routes: (app, scene) => {
        const look = async () => { asked.push([...scene.db.asked]) }
        app.get('/', { config: { pools: { db: { acquire, transaction: true } } }, onRequest: look, preHandler: look }, async (request) => {
          const [one, two] = await Promise.all([request.acquire('db'), request.acquire('db')])
          t.equal(one, two)
          await look()
          scene.db.write(one.connection as FakeConnection, 'row')
          return 'well'
        })
      },
    })
    t.equal((await scene.app.inject('/')).body, 'well')
    await scene.rest()
    const begun = ['begin #1']
    t.same(asked,
      { onRequest: [begun, begun, begun], preHandler: [[], begun, begun], manual: [[], [], begun] }[acquire])
    t.same(scene.db.asked, committed)
    t.same(scene.db.rows, ['row'])
  })
}

t.test("with acquire 'manual' nothing is begun where nothing is taken", async (t) => {
  const scene = await Scene.set(t, {
    routes: (app) => {
      app.get('/', { config: { pools: { db: { acquire: 'manual', transaction: true } } } }, async () => 'well')
    },
  })
  t.equal((await scene.app.inject('/')).body, 'well')
  t.same(scene.db.asked, [])
  t.equal(scene.stats().acquired, 0)
})

t.test('what takes its connection behind the reply is outside of any transaction: nothing would commit it', async (t) => {
  const scene = await Scene.set(t, {
    plugin: { lease: { transaction: true } },
    routes: (app, scene) => {
      const write = async (request: FastifyRequest) => {
        const { connection } = await request.acquire('db')
        scene.db.write(connection as FakeConnection, 'behind')
      }
      app.addHook('onSend', async (request) => {
        const { how } = request.query as { how?: string }
        if (how === 'acquire') await write(request)
        if (how === 'transaction') {
          await request.transaction('db', (connection) => {
            scene.db.write(connection as FakeConnection, 'behind')
          })
        }
      })
      app.options('/preflight', async () => 'well')
      app.get('/manual', { config: { pools: { db: { acquire: 'manual' } } } }, async () => 'well')
      app.get('/stream', { config: { pools: { db: { acquire: 'manual' } } } }, async (request, reply) => reply.send(Readable.from((async function * () {
        await write(request)
        yield 'well'
      })())))
    },
  })
  for (const [method, url, asked] of [
    ['OPTIONS', '/preflight?how=acquire', []], ['OPTIONS', '/preflight?how=transaction', committed],
    ['GET', '/manual?how=acquire', []], ['GET', '/manual?how=transaction', committed], ['GET', '/stream', []],
  ] as const) {
    t.match(await scene.app.inject({ method, url }), { statusCode: 200, body: 'well' }, url)
    await scene.rest()
    t.same(scene.db.rows.splice(0), ['behind'], `${method} ${url}`)
    t.same(scene.db.asked.splice(0), asked)
  }
  t.same(scene.errors(), [])
})

t.test('a reply by handlerTimeout is not the handler\'s: what that takes now is within its transaction, and rolled back', needsHandlerTimeout, async (t) => {
  const scene = await Scene.set(t, {
    routes: (app, scene) => {
      app.addHook('onSend', async () => {
        scene.gate('sending').open()
        await scene.gate('written').opened
      })
      app.get('/', { ...handlerTimeout(20), config: { pools: { db: { acquire: 'manual', transaction: true } } } }, async (request) => {
        await scene.gate('sending').opened
        scene.db.write((await request.acquire('db')).connection as FakeConnection, 'row')
        scene.gate('written').open()
      })
    },
    listen: true,
  })
  t.equal((await scene.client().get('/')).status, 503)
  await scene.rest()
  t.same(scene.db.rows, [])
  t.same(scene.db.asked.slice(0, 1), ['begin #1'])
})

t.test('it begins as the route says', async (t) => {
  const scene = await Scene.set(t, {
    plugin: { lease: { transaction: { isolation: 'serializable' } } },
    routes: (app) => {
      const well = async () => 'well'
      app.get('/plugin', well)
      app.get('/named', { config: { pools: ['db'] } }, well)
      app.get('/own', { config: { pools: { db: { transaction: { isolation: 'read committed', readOnly: true } } } } },
        well)
      app.get('/bare', { config: { pools: { db: { transaction: true } } } }, well)
      app.get('/without', { config: { pools: { db: { transaction: false } } } }, well)
    },
  })
  for (const url of ['/plugin', '/named', '/own', '/bare', '/without']) {
    t.equal((await scene.app.inject(url)).body,
      'well')
  }
  await scene.rest()
  t.same(scene.db.begun.map(({ isolation, readOnly }) => [isolation, readOnly]),
    [['serializable', undefined], ['serializable', undefined], ['read committed', true], [undefined, undefined]])
})

t.test("the policy of a pool is its routes'", async (t) => {
  const scene =
    await Scene.set(t,
      { pool: { lease: { transaction: true } }, routes: (app, scene) => { app.get('/', writes(scene, () => 'well')) } })
  t.equal((await scene.app.inject('/')).body, 'well')
  t.same(scene.db.asked, committed)
})

t.test('a transaction that can not begin is an error, the handler is not called, and the connection goes back', async (t) => {
  const scene = await Scene.set(t, { routes: (app) => { app.get('/', inTransaction, async () => t.fail('called')) } })
  scene.db.next.begin = ['error']
  const answer = await scene.app.inject('/')
  t.equal(answer.statusCode, 500)
  t.match(answer.json(), { message: 'begin failed' })
  await scene.rest()
  t.same(scene.db.asked, ['begin #1'])
})

t.test('a client that leaves while it begins gets it undone, and the connection serves the next one', async (t) => {
  const scene = await Scene.set(t, {
    listen: true,
    routes: (app, scene) => {
      app.get('/', inTransaction, async () => t.fail('called'))
      app.get('/next', writes(scene, () => 'well'))
    },
  })
  scene.db.next.begin = ['gate']
  const client = scene.client().send('GET', '/')
  await scene.underWay('begin')
  client.leave()
  const next = scene.client().send('GET', '/next')
  await until(() => scene.stats().pending === 1)
  scene.db.pass('begin')
  t.equal((await next.answer()).body, 'well')
  await scene.rest()
  t.same(scene.db.asked, rolledBack)
  t.same(scene.db.rows, ['row'])
})

t.test('an onAcquire that throws is an error, in a transaction or not, and nothing is begun', async (t) => {
  const scene = await Scene.set(t, {
    pool: { onAcquire: () => { throw no() } },
    routes: (app) => {
      app.get('/', async () => t.fail('called'))
      app.get('/transaction', inTransaction, async () => t.fail('called'))
    },
  })
  for (const url of ['/', '/transaction']) t.equal((await scene.app.inject(url)).statusCode, 500)
  await scene.rest()
  t.same(scene.db.asked, [])
})

// --- The commit and the reply ----------------------------------------------------------------------------------------

t.test('nothing of the reply goes out before the commit has passed', async (t) => {
  const scene = await Scene.set(t, {
    listen: true,
    routes: (app, scene) => {
      app.get('/', inTransaction, writes(scene, () => 'well'))
      app.get('/ping', { config: { pools: false } }, async () => 'pong')
    },
  })
  scene.db.next.commit = ['gate']
  const client = scene.client()
  let bytes = 0
  client.socket.on('data', (text) => { bytes += text.length })
  client.send('GET', '/')
  await scene.underWay('commit')
  // A whole round trip: what had been sent would have arrived.
  t.equal((await scene.client().get('/ping')).body, 'pong')
  t.equal(bytes, 0)
  scene.db.pass('commit')
  t.equal((await client.answer()).body, 'well')
  t.ok(bytes > 0)
  await scene.rest()
})

t.test('a commit that fails is a 500: the error handler is called, and nothing is committed or rolled back a second time', async (t) => {
  for (const sent of ['sync', 'async']) {
    const caught: string[] = []
    let sends = 0
    const scene = await Scene.set(t, {
      listen: true,
      routes: (app, scene) => {
        app.setErrorHandler(async (error: Error, _request, reply) => {
          caught.push(error.message)
          return await reply.code(500).send('caught')
        })
        app.addHook('onSend', async () => { sends++ })
        app.get('/', inTransaction,
          sent === 'async' ? writes(scene, () => 'well') : (request, reply) => { scene.db.write(on(request), 'row'); reply.send('well') })
      },
    })
    scene.db.next.commit = ['error']
    const answer = await scene.client().get('/')
    t.same([answer.status, answer.body], [500, 'caught'])
    await scene.rest()
    t.same(caught, ['commit failed'])
    t.equal(sends, 1, 'the first reply never got to the hooks behind ours')
    t.same(scene.db.asked, ['begin #1', 'commit #1', 'rollback #1'])
    t.same(scene.db.rows, [])
    t.equal((await scene.client().get('/')).body, 'well')
    t.same([scene.stats().acquired, scene.stats().released, scene.stats().created], [2, 2, 1])
  }
})

t.test('a commit that fails and does not say why is a 500 all the same', async (t) => {
  for (const reason of [undefined, null, '', 0]) {
    const scene =
      await Scene.set(t, { routes: (app, scene) => { app.get('/', inTransaction, writes(scene, () => 'well')) } })
    const { transactions } = scene.db
    const begin = transactions!.begin.bind(transactions)
    Object.assign(transactions!, {
      begin: async (...args: Parameters<typeof begin>) => {
        const transaction = await begin(...args)
        return { ...transaction, commit: () => Promise.reject(reason) }
      },
    })
    t.equal((await scene.app.inject('/')).statusCode, 500, String(reason))
    await scene.rest()
    t.same(scene.db.rows, [])
  }
})

t.test('a commit that fails, and a rollback that fails then: the connection is destroyed, and the next request has another', async (t) => {
  const scene =
    await Scene.set(t, { routes: (app, scene) => { app.get('/', inTransaction, writes(scene, () => 'well')) } })
  scene.db.next.commit = ['error']
  scene.db.next.rollback = ['error']
  t.equal((await scene.app.inject('/')).statusCode, 500)
  t.equal((await scene.app.inject('/')).statusCode, 200)
  await scene.rest()
  t.same(scene.db.asked, ['begin #1', 'commit #1', 'rollback #1', 'begin #2', 'commit #2'])
  t.equal(scene.stats().destroyed.error, 1)
})

t.test('a rollback that fails changes nothing of the reply, and the connection is destroyed', async (t) => {
  const scene = await Scene.set(t, {
    routes: (app, scene) => {
      app.get('/', inTransaction, writes(scene, (_request, reply) => reply.code(409).send('no')))
    }
  })
  scene.db.next.rollback = ['error']
  const answer = await scene.app.inject('/')
  t.same([answer.statusCode, answer.body], [409, 'no'])
  await scene.rest()
  t.equal(scene.stats().destroyed.error, 1)
})

t.test("release 'onSend' gives the connection back after the commit, before the reply's end", async (t) => {
  const scene = await Scene.set(t, {
    routes: (app, scene) => {
      app.addHook('onSend', async () => {
        t.equal(scene.stats().used, 0)
        t.match(scene.db.asked.at(-1), /commit|rollback/)
      })
      app.get('/', { config: { pools: { db: { transaction: true, release: 'onSend' } } } }, writes(scene, () => 'well'))
    },
  })
  t.equal((await scene.app.inject('/')).body, 'well')
  scene.db.next.commit = ['error']
  t.equal((await scene.app.inject('/')).statusCode, 500)
  await scene.rest()
  t.same(scene.db.rows, ['row'])
})

t.test('a reply that Fastify can not write after the commit is an error, and not the end of the process', async (t) => {
  const scene = await Scene.set(t, {
    routes: (app, scene) => {
      app.get('/payload', inTransaction,
        writes(scene, (_request, reply) => reply.type('text/plain').send(12 as unknown as string)))
    },
  })
  t.equal((await scene.app.inject('/payload')).statusCode, 500)
  await scene.rest()
})

t.test('a handler that replies twice while the commit is under way: the first reply is sent, after the commit', async (t) => {
  const twice: Array<[string, RouteHandlerMethod]> = [
    ['/return', async (_request, reply) => { reply.send('first'); return 'second' }],
    ['/undefined', async (_request, reply) => { reply.send('first') }],
    ['/send', (_request, reply) => { reply.send('first'); reply.send('second') }],
  ]
  const scene =
    await Scene.set(t,
      { routes: (app) => { for (const [url, handler] of twice) app.get(url, inTransaction, handler) } })
  for (const [at, [url]] of twice.entries()) {
    scene.db.next.commit = ['gate']
    let answered = false
    const answer = scene.app.inject(url).then((answer) => { answered = true; return answer })
    await scene.underWay('commit')
    t.equal((await scene.app.inject('/nowhere')).statusCode, 404)
    t.notOk(answered, 'nothing was sent before the commit')
    scene.db.pass('commit')
    const { statusCode, body } = await answer
    t.same([statusCode, body], [200, 'first'], url)
    t.equal(scene.lines.filter(({ msg }) => /already sent/i.test(msg)).length, at + 1, 'and somebody is told')
  }
  await scene.rest()
})

t.test("a handler that replies and then throws while the commit is under way: the error's reply is sent, after the commit", async (t) => {
  const scene = await Scene.set(t, {
    routes: (app) => { app.get('/', inTransaction, async (_request, reply) => { reply.send('first'); throw no() }) },
  })
  for (const outcome of ['pass', 'fail'] as const) {
    scene.db.next.commit = ['gate']
    let answered = false
    const answer = scene.app.inject('/').then((answer) => { answered = true; return answer })
    await scene.underWay('commit')
    t.equal((await scene.app.inject('/nowhere')).statusCode, 404)
    t.notOk(answered)
    scene.db[outcome]('commit')
    const { statusCode, headers, body } = await answer
    t.same([statusCode, headers['content-type']], [500, 'application/json; charset=utf-8'])
    t.match(JSON.parse(body), { message: outcome === 'pass' ? 'no' : 'commit failed' })
    await scene.rest()
  }
})

t.test('handlerTimeout while the commit is under way: the client gets the timeout, the log what became of the commit, and the process goes on', needsHandlerTimeout, async (t) => {
  for (const outcome of ['pass', 'fail'] as const) {
    const scene = await Scene.set(t, {
      listen: true,
      routes: (app, scene) => {
        app.get('/', { ...inTransaction, ...handlerTimeout(50) }, writes(scene, () => 'well'))
      }
    })
    scene.db.next.commit = ['gate']
    const client = scene.client().send('GET', '/', { id: 'A' })
    t.equal((await client.answer()).status, 503)
    scene.db[outcome]('commit')
    await until(() => scene.lines.some(({ msg }) => /while the transaction was being ended/.test(msg)))
    t.match(scene.lines.at(-1), outcome === 'pass'
      ? { level: 40, reqId: 'A', msg: /which it was then/ }
      : {
          level: 50, reqId: 'A', msg: /that failed/, err: { message: 'commit failed' },
        })
    await scene.rest()
    t.equal((await scene.client().get('/')).body, 'well')
    await scene.rest()
  }
})

t.test('a commit past commitTimeout is a 500 that says whether something may be stored, and the next request has another connection', async (t) => {
  for (const [inDoubt, code] of [[false, 'FST_POOL_COMMIT_TIMEOUT'], [true, 'FST_POOL_COMMIT_UNKNOWN']] as const) {
    const scene = await Scene.set(t, {
      listen: true,
      pool: { commitTimeout: 50 },
      routes: (app, scene) => {
        app.get('/', inTransaction, writes(scene, (_request, reply) => reply.code(201).send('well')))
        app.get('/by-hand', async (request) => request.transaction('db', () => 'well'))
        app.get('/own', { config: { pools: { db: { transaction: { commitTimeout: 20 } } } } }, async () => 'well')
        app.get('/plain', async (request) => on(request).id)
      },
    })
    scene.db.inDoubt = inDoubt
    for (const [url, id] of [['/', 2], ['/by-hand', 3], ['/own', 4]] as const) {
      scene.db.next.commit = ['hang']
      const answer = await scene.app.inject(url)
      t.equal(answer.statusCode, 500)
      t.match(answer.json(),
        { code, message: url === '/own' ? / 20 ms \(commitTimeout\)/ : / 50 ms \(commitTimeout\)/ })
      t.equal((await scene.app.inject('/plain')).body, String(id))
    }
    await scene.rest()
    t.equal(scene.stats().destroyed.error, 3)
    t.notOk(scene.db.asked.some((what) => what.startsWith('rollback')))
  }
})

t.test('a stream whose commit is past commitTimeout is a reply that is cut', async (t) => {
  const scene = await Scene.set(t, {
    listen: true,
    pool: { commitTimeout: 50 },
    routes: (app, scene) => {
      app.get('/', inTransaction, writes(scene, (_request, reply) => reply.send(Readable.from(['one']))))
    },
  })
  scene.db.next.commit = ['hang']
  const client = scene.client().send('GET', '/')
  await client.hears('one')
  await until(() => client.closed)
  await t.rejects(client.answer())
  await scene.rest()
  t.equal(scene.stats().destroyed.error, 1)
})

// --- Abnormal ends ---------------------------------------------------------------------------------------------------

t.test('a client that leaves while the handler runs: rolled back when it settles, and the connection is used again', async (t) => {
  for (const end of ['return', 'throw']) {
    const scene = await Scene.set(t, {
      listen: true,
      routes: (app, scene) => {
        app.get('/', inTransaction, async (request) => {
          scene.db.write(on(request), 'one')
          scene.gate('runs').open()
          await scene.gate('go on').opened
          scene.db.write(on(request), 'two')
          if (end === 'throw') throw no()
          return 'well'
        })
        app.get('/next', writes(scene, () => 'well'))
      },
    })
    const client = scene.client().send('GET', '/')
    await scene.gate('runs').opened
    client.leave()
    const next = scene.client().send('GET', '/next')
    await until(() => scene.stats().pending === 1)
    t.same(scene.db.asked, ['begin #1'], 'not under a handler that runs')
    scene.gate('go on').open()
    t.equal((await next.answer()).body, 'well')
    await scene.rest()
    t.same(scene.db.asked, rolledBack)
    t.same(scene.db.rows, ['row'])
    t.equal(scene.stats().created, 1)
  }
})

t.test('a client that leaves, and a handler that never settles: the connection is destroyed after abortGrace, and not rolled back', async (t) => {
  const scene = await Scene.set(t, {
    listen: true,
    plugin: { abortGrace: 50 },
    routes: (app, scene) => {
      app.get('/', inTransaction, async (request) => {
        scene.db.write(on(request), 'row')
        scene.gate('runs').open()
        await new Promise(() => {})
      })
    },
  })
  const client = scene.client().send('GET', '/')
  await scene.gate('runs').opened
  client.leave()
  await scene.rest()
  t.same(scene.db.asked, ['begin #1'])
  t.equal(scene.stats().destroyed.aborted, 1)
  t.same(scene.db.rows, [])
})

t.test('a client that leaves while the commit is under way: the commit stands, once, and the connection is there for the next as soon as it is done', async (t) => {
  const scene = await Scene.set(t, {
    listen: true,
    // Longer than the test.
    plugin: { abortGrace: 1_000_000 },
    routes: (app, scene) => {
      app.get('/', inTransaction, writes(scene, (_request, reply) => {
        // Behind the plugin's own listener.
        reply.raw.on('close', () => { scene.gate('closed').open() })
        return 'well'
      }))
      app.addHook('onResponse', async () => {})
    },
  })
  scene.db.next.commit = ['gate']
  const client = scene.client().send('GET', '/', { id: 'A' })
  await scene.underWay('commit')
  client.leave()
  await scene.gate('closed').opened
  scene.db.pass('commit')
  await scene.rest()
  t.same(scene.db.asked, committed)
  t.same(scene.db.rows, ['row'])
  t.match(scene.stats(), { used: 0, idle: 1, created: 1 })
})

t.test('handlerTimeout: never rolled back under a handler that still runs; its connection is destroyed', needsHandlerTimeout, async (t) => {
  const scene = await Scene.set(t, {
    listen: true,
    plugin: { abortGrace: 50 },
    routes: (app, scene) => {
      app.get('/', { ...inTransaction, ...handlerTimeout(50) }, async (request) => {
        const connection = on(request)
        scene.db.write(connection, 'row')
        await scene.gate('go on').opened
        t.throws(() => scene.db.write(connection, 'late'), { message: /closed/ })
        scene.gate('ended').open()
        return 'late'
      })
    },
  })
  t.equal((await scene.client().get('/')).status, 503)
  await scene.rest()
  t.same(scene.db.asked, ['begin #1'])
  t.equal(scene.stats().destroyed.aborted, 1)
  scene.gate('go on').open()
  await scene.gate('ended').opened
  t.same(scene.db.rows, [])
})

t.test('app.close() with a handler that hangs ends in time, and nothing is committed', async (t) => {
  const scene = await Scene.set(t, {
    listen: true,
    pool: { closeTimeout: 200 },
    routes: (app, scene) => {
      app.get('/', inTransaction, async (request) => {
        scene.db.write(on(request), 'row')
        scene.gate('runs').open()
        await new Promise(() => {})
      })
    },
  })
  const client = scene.client().send('GET', '/')
  await scene.gate('runs').opened
  await scene.app.close()
  await until(() => client.closed)
  t.same(scene.db.rows, [])
  t.equal(scene.db.live, 0)
  t.same(scene.db.asked, ['begin #1'])
  t.same(scene.db.violations, [])
})

t.test('app.close() waits for a handler in flight, and its transaction is committed', async (t) => {
  const scene = await Scene.set(t, {
    listen: true,
    routes: (app, scene) => {
      app.get('/', inTransaction, async (request) => {
        scene.db.write(on(request), 'row')
        scene.gate('runs').open()
        await scene.gate('go on').opened
        return 'well'
      })
    },
  })
  const client = scene.client().send('GET', '/')
  await scene.gate('runs').opened
  const closed = scene.app.close()
  scene.gate('go on').open()
  t.equal((await client.answer()).body, 'well')
  await closed
  t.same(scene.db.rows, ['row'])
})

t.test('a lease that the handler releases early makes the reply an error, not a lie', async (t) => {
  for (const how of ['release', 'destroy', 'again'] as const) {
    const scene = await Scene.set(t, {
      routes: (app, scene) => {
        app.get('/', inTransaction, writes(scene, async (request) => {
          const lease = request.lease('db')
          if (how === 'destroy') lease.destroy()
          else lease.release()
          if (how === 'again') scene.db.write((await request.acquire('db')).connection as FakeConnection, 'second')
          return 'well'
        }))
      },
    })
    const answer = await scene.app.inject('/')
    t.equal(answer.statusCode, 500)
    t.match(answer.json(), { code: 'FST_POOL_LEASE_RELEASED' })
    await scene.rest()
    t.same(scene.db.rows, [], how)
  }
})

t.test('a slow body: rolled back while it comes in, begun again when it is there, committed once', async (t) => {
  const scene = await Scene.set(t, {
    listen: true,
    plugin: { bodyGrace: 20 },
    routes: (app, scene) => { app.post('/', inTransaction, writes(scene, () => 'well')) },
  })
  const client = scene.client().send('POST', '/', { body: '{', length: 2 })
  await until(() => scene.db.asked.length === 2 && scene.stats().idle === 1, { what: 'the connection back' })
  t.same(scene.db.asked, rolledBack)
  client.write('}')
  const answer = await client.answer()
  t.same([answer.status, answer.body], [200, 'well'])
  await scene.rest()
  t.same(scene.db.asked, [...rolledBack, ...committed])
  t.same(scene.db.rows, ['row'])
})

t.test('hijacked: rolled back, and logged as an error on the log of the request', async (t) => {
  const scene = await Scene.set(t, {
    listen: true,
    plugin: { abortGrace: 50 },
    routes: (app, scene) => {
      app.get('/', inTransaction, writes(scene, (_request, reply) => { reply.hijack(); reply.raw.end('raw') }))
      app.get('/left', inTransaction, writes(scene, (_request, reply) => { reply.hijack(); scene.gate('runs').open() }))
    },
  })
  t.equal((await scene.client().get('/', { id: 'A' })).body, 'raw')
  await scene.rest()
  t.same(scene.db.asked, rolledBack)
  t.match(scene.lines, [{ level: 50, reqId: 'A', msg: /hijacked.*rolled back/ }])

  const client = scene.client().send('GET', '/left', { id: 'B' })
  await scene.gate('runs').opened
  client.leave()
  await scene.rest()
  t.match(scene.lines, [{}, { level: 50, reqId: 'B', msg: /hijacked.*rolled back/ }], 'whoever ends it')
  t.same(scene.db.rows, [])
})

// --- Several pools ---------------------------------------------------------------------------------------------------

const both = { config: { pools: { db: { transaction: true }, cache: { transaction: true } } satisfies RoutePools } }

t.test('several pools: all begin, and all commit', async (t) => {
  const scene =
    await Scene.set(t, { pools: ['db', 'cache'], routes: (app) => { app.get('/', both, async () => 'well') } })
  t.equal((await scene.app.inject('/')).body, 'well')
  await scene.rest()
  for (const connector of scene.connectors.values()) t.same(connector.asked, committed)
})

t.test("several pools: the first's failed commit rolls back the rest, and is a 500", async (t) => {
  const scene =
    await Scene.set(t, { pools: ['db', 'cache'], routes: (app) => { app.get('/', both, async () => 'well') } })
  scene.db.next.commit = ['error']
  t.equal((await scene.app.inject('/')).statusCode, 500)
  await scene.rest()
  t.same(scene.db.asked, ['begin #1', 'commit #1', 'rollback #1'])
  t.same(scene.connectors.get('cache')!.asked, rolledBack)
})

t.test("several pools: the second's failed commit is a 500", async (t) => {
  const scene =
    await Scene.set(t, { pools: ['db', 'cache'], routes: (app) => { app.get('/', both, async () => 'well') } })
  scene.connectors.get('cache')!.next.commit = ['error']
  t.equal((await scene.app.inject('/')).statusCode, 500)
  await scene.rest()
  t.same(scene.db.asked, committed)
  t.same(scene.connectors.get('cache')!.asked, ['begin #1', 'commit #1', 'rollback #1'])
})

t.test('several pools: where the second can not be had or begun, the first is rolled back', async (t) => {
  const scene =
    await Scene.set(t,
      { pools: ['db', 'cache'], routes: (app) => { app.get('/', both, async () => t.fail('called')) } })
  const cache = scene.connectors.get('cache')!
  cache.next.begin = ['error']
  t.equal((await scene.app.inject('/')).statusCode, 500)
  await scene.rest()
  t.same(scene.db.asked, rolledBack)
  t.same(cache.asked, ['begin #1'])

  const lease = await scene.app.pools.get('cache').acquire()
  cache.outcomes.create = 'error'
  scene.app.pools.get('cache').resize({ max: 1 })
  const held = scene.app.inject('/')
  await until(() => scene.stats('cache').pending === 1)
  lease.destroy()
  t.equal((await held).statusCode, 503)
  await scene.rest()
  t.same(scene.db.asked, [...rolledBack, ...rolledBack])
})

t.test("several pools, of which one's transaction commits on any reply: a 404 commits that one only, as a text and as a stream", async (t) => {
  for (const payload of [() => 'no', () => Readable.from(['no'])]) {
    const scene = await Scene.set(t, {
      pools: ['db', 'cache'],
      routes: (app) => {
        app.get('/',
          { config: { pools: { db: { transaction: true }, cache: { transaction: { commitOn: 'reply' } } } } }, async (_request, reply) => { reply.code(404); return payload() })
      },
    })
    const answer = await scene.app.inject('/')
    t.same([answer.statusCode, answer.body], [404, 'no'])
    await scene.rest()
    t.same(scene.db.asked, rolledBack)
    t.same(scene.connectors.get('cache')!.asked, committed)
  }
})

// --- Streams ---------------------------------------------------------------------------------------------------------

/** Reads two rows within the transaction. */
async function * reading (scene: Scene, request: FastifyRequest, rows = ['one\n', 'two\n']): AsyncGenerator<string> {
  for (const row of rows) {
    t.equal(scene.db.depth(on(request)), 1, 'it reads within the transaction')
    scene.db.write(on(request), row)
    yield row
  }
  scene.db.write(on(request), 'last read')
}

const webStreamOf = (rows: AsyncGenerator<string>): ReadableStream =>
  Readable.toWeb(Readable.from(rows).map((row: string) => Buffer.from(row))) as ReadableStream

const kinds: Record<string, (
  rows: AsyncGenerator<string>, reply: FastifyReply, length: string | undefined
) => unknown> = {
  'a Node stream': (rows, reply, length) => {
    if (length !== undefined) reply.header('content-length', length)
    return reply.send(Readable.from(rows))
  },
  'a Node stream of bytes': (rows, reply, length) => {
    if (length !== undefined) reply.header('content-length', length)
    return reply.send(Readable.from(rows).pipe(new PassThrough()))
  },
  'a web stream': (rows, reply, length) => {
    if (length !== undefined) reply.header('content-length', length)
    return reply.send(webStreamOf(rows))
  },
  'a Response': (rows, reply, length) => {
    const headers = new Headers({ 'x-a': 'b', ...(length !== undefined && { 'content-length': length }) })
    for (const cookie of ['a=1', 'b=2']) headers.append('set-cookie', cookie)
    return reply.send(new Response(webStreamOf(rows), { status: 201, headers }))
  },
}

for (const [kind, send] of Object.entries(kinds)) {
  for (const length of [undefined, '8']) {
    const what = `${kind}, ${length === undefined ? 'chunked' : 'with a content-length'}`
    const routes = (app: FastifyInstance, scene: Scene) => {
      app.get('/', inTransaction, (request, reply) => send(reading(scene, request), reply, length))
      app.get('/ping', { config: { pools: false } }, async () => 'pong')
    }

    t.test(`${what}: committed after its last read, and only then does it end`, async (t) => {
      const scene = await Scene.set(t, { listen: true, routes })
      scene.db.next.commit = ['gate']
      const client = scene.client()
      let heard = ''
      client.socket.on('data', (text) => { heard += String(text) })
      client.send('GET', '/')
      await scene.underWay('commit')
      t.equal((await scene.client().get('/ping')).body, 'pong')
      if (length !== undefined) t.notOk(heard.endsWith('two\n'), 'the last byte is kept')
      t.notOk(heard.endsWith('0\r\n\r\n'), 'it has not ended')
      scene.db.pass('commit')
      const { status, headers, body } = await client.answer()
      t.same([status, body], [kind === 'a Response' ? 201 : 200, 'one\ntwo\n'])
      if (kind === 'a Response') {
        t.equal(headers['x-a'], 'b')
        t.match(heard, /set-cookie: a=1\r\nset-cookie: b=2\r\n/)
      }
      await scene.rest()
      t.same(scene.db.asked, committed)
      t.same(scene.db.rows, ['one\n', 'two\n', 'last read'])
      t.same(scene.errors(), [])
    })

    t.test(`${what}: a commit that fails is a reply that is cut`, async (t) => {
      const scene = await Scene.set(t, { listen: true, routes })
      scene.db.next.commit = ['gate']
      const client = scene.client()
      let heard = ''
      client.socket.on('data', (text) => { heard += String(text) })
      client.send('GET', '/')
      await scene.underWay('commit')
      scene.db.fail('commit')
      await until(() => client.closed)
      if (length === undefined) t.notMatch(heard, /0\r\n\r\n$/)
      else t.notMatch(heard, /two\n$/)
      await scene.rest()
      t.same(scene.db.rows, [])
    })
  }
}

t.test('over HTTP/2 a commit that fails is a stream that is reset with an error, not one that ends', async (t) => {
  const scene = await Scene.set(t, {
    listen: true,
    server: { http2: true } as unknown as FastifyServerOptions,
    routes: (app, scene) => {
      app.get('/', inTransaction, (request, reply) => reply.send(Readable.from(reading(scene, request))))
      app.get('/web', inTransaction, (request, reply) => reply.send(webStreamOf(reading(scene, request))))
      app.get('/text', inTransaction, async () => 'well')
    },
  })
  const { send } = await http2Client(t, (scene.app.server.address() as AddressInfo).port)
  for (const url of ['/', '/web', '/text']) t.same((await answerOf(send('GET', url))).status, 200)
  for (const url of ['/', '/web']) {
    scene.db.next.commit = ['gate']
    const stream = send('GET', url)
    let ended = false
    stream.on('end', () => { ended = true })
    stream.resume()
    await scene.underWay('commit')
    scene.db.fail('commit')
    await until(() => stream.closed, { what: 'the end of the stream' })
    t.equal(stream.rstCode, constants.NGHTTP2_INTERNAL_ERROR, url)
    t.notOk(ended)
  }
  scene.db.next.commit = ['error']
  t.same((await answerOf(send('GET', '/text'))).status, 500)
  await scene.rest()
})

t.test('the parts of a stream arrive as they come, before its commit', async (t) => {
  const scene = await Scene.set(t, {
    listen: true,
    routes: (app, scene) => {
      app.get('/', inTransaction, (request, reply) => {
        async function * rows () {
          scene.db.write(on(request), 'one')
          yield 'one'
          await scene.gate('go on').opened
          yield 'two'
        }
        return reply.send(Readable.from(rows()))
      })
    },
  })
  const client = scene.client().send('GET', '/')
  await client.hears('one')
  t.same(scene.db.asked, ['begin #1'])
  scene.gate('go on').open()
  t.equal((await client.answer()).body, 'onetwo')
  await scene.rest()
  t.same(scene.db.asked, committed)
})

t.test('an empty part at the end of a stream with a content-length gives its last byte away no sooner', async (t) => {
  const scene = await Scene.set(t, {
    listen: true,
    routes: (app) => {
      app.get('/', inTransaction,
        (_request, reply) => reply.header('content-length', '3').send(Readable.from(['one', '', ''])))
      app.get('/ping', { config: { pools: false } }, async () => 'pong')
    },
  })
  scene.db.next.commit = ['gate']
  const client = scene.client()
  let heard = ''
  client.socket.on('data', (text) => { heard += String(text) })
  client.send('GET', '/')
  await scene.underWay('commit')
  t.equal((await scene.client().get('/ping')).body, 'pong')
  t.notMatch(heard, /one$/)
  scene.db.pass('commit')
  t.equal((await client.answer()).body, 'one')
  await scene.rest()
})

t.test('an empty stream whose commit fails is a 500', async (t) => {
  for (const length of [undefined, '0']) {
    const scene = await Scene.set(t, {
      routes: (app) => {
        app.get('/', inTransaction, (_request, reply) => {
          if (length !== undefined) reply.header('content-length', length)
          return reply.send(Readable.from([]))
        })
      },
    })
    t.equal((await scene.app.inject('/')).statusCode, 200)
    scene.db.next.commit = ['error']
    t.equal((await scene.app.inject('/')).statusCode, 500)
    await scene.rest()
  }
})

t.test('a stream that fails is rolled back: before its first part a 500, later a reply that is cut', async (t) => {
  const scene = await Scene.set(t, {
    listen: true,
    routes: (app, scene) => {
      app.get('/first', inTransaction,
        writes(scene, (_request, reply) => reply.send(new Readable({ read () { this.destroy(no()) } }))))
      app.get('/later', inTransaction, writes(scene, (_request, reply) => {
        async function * rows () { yield 'one'; await scene.gate('go on').opened; throw no() }
        return reply.send(Readable.from(rows()))
      }))
    },
  })
  t.equal((await scene.client().get('/first')).status, 500)
  await scene.rest()
  t.same(scene.db.asked, rolledBack)
  const client = scene.client().send('GET', '/later')
  await client.hears('one')
  scene.gate('go on').open()
  await until(() => client.closed)
  await scene.rest()
  t.notOk(scene.db.asked.includes('commit #1'))
  t.same(scene.db.rows, [])
})

t.test('a client that leaves in the middle of a stream: its connection is destroyed, and its source too', async (t) => {
  const sources: Array<(reply: FastifyReply, source: Readable) => unknown> = [
    (reply, source) => reply.send(source),
    (reply, source) => reply.send(Readable.toWeb(source)),
    (reply, source) => reply.send(new Response(Readable.toWeb(source) as ReadableStream)),
  ]
  for (const send of sources) {
    let source: Readable | undefined
    const scene = await Scene.set(t, {
      listen: true,
      routes: (app, scene) => {
        app.get('/', inTransaction, writes(scene, (_request, reply) => {
          source = new Readable({ read () {} })
          source.push(Buffer.from('one'))
          source.on('error', () => {}) // That it was cut.
          return send(reply, source)
        }))
      },
    })
    const client = scene.client().send('GET', '/')
    await client.hears('one')
    client.leave()
    await until(() => source!.destroyed, { what: 'the source destroyed' })
    await scene.rest()
    t.same(scene.db.asked, ['begin #1'])
    t.equal(scene.stats().destroyed.aborted, 1)
    t.same(scene.db.rows, [])
  }
})

t.test('a stream with status 500 is sent, and rolled back', async (t) => {
  const scene = await Scene.set(t, {
    routes: (app, scene) => {
      app.get('/', inTransaction, writes(scene, (_request, reply) => reply.code(500).send(Readable.from(['no']))))
      app.get('/response', inTransaction,
        writes(scene, (_request, reply) => reply.send(new Response(webStreamOf((async function * () { yield 'no' })()), { status: 503 }))))
    },
  })
  const answers = [await scene.app.inject('/'), await scene.app.inject('/response')]
  t.same(answers.map(({ statusCode, body }) => [statusCode, body]), [[500, 'no'], [503, 'no']])
  await scene.rest()
  t.same(scene.db.asked, [...rolledBack, ...rolledBack])
  t.same(scene.db.rows, [])
  t.same(scene.errors(), [])
})

t.test('a big stream is not read faster than its client reads', async (t) => {
  const size = 64 * 1024
  let read = 0
  const scene = await Scene.set(t, {
    listen: true,
    routes: (app, scene) => {
      app.get('/', inTransaction, writes(scene, (_request, reply) => reply.send(new Readable({
        read () {
          read += size
          this.push(read > 256 * 1024 * 1024 ? null : Buffer.alloc(size))
        },
      }))))
      app.get('/ping', { config: { pools: false } }, async () => 'pong')
    },
  })
  const client = new Client(t, (scene.app.server.address() as AddressInfo).port, { reading: false }).send('GET', '/')
  let before = -1
  // The kernel's buffers fill first: until a few round trips change nothing any more.
  for (let still = 0; still < 50;) {
    await scene.client().get('/ping')
    still = read === before ? still + 1 : 0
    before = read
  }
  t.ok(read > 0 && read < 64 * 1024 * 1024, `${read} bytes read`)
  client.leave()
  await scene.rest()
  t.same(scene.db.rows, [])
})

t.test('a HEAD, and a 204, whose payload is a stream: the commit comes before the reply', async (t) => {
  const cases: Array<['HEAD' | 'GET', string, number]> =
    [['HEAD', '/', 200], ['HEAD', '/web', 200], ['HEAD', '/own', 200], ['GET', '/204', 204]]
  for (const [method, url, status] of cases) {
    const sources: Readable[] = []
    const source = () => {
      const one = Readable.from(['one'])
      sources.push(one)
      return one
    }
    const scene = await Scene.set(t, {
      listen: true,
      routes: (app, scene) => {
        app.get('/', inTransaction, writes(scene, (_request, reply) => reply.send(source())))
        app.get('/web', inTransaction, writes(scene, (_request, reply) => reply.send(Readable.toWeb(source()))))
        app.head('/own', inTransaction, writes(scene, (_request, reply) => reply.send(source())))
        app.get('/204', inTransaction, writes(scene, (_request, reply) => reply.code(204).send(source())))
      },
    })
    t.equal((await scene.client().send(method, url).answer()).status, status)
    await scene.rest()
    t.same(scene.db.asked, committed, `${method} ${url}`)
    t.same(scene.db.rows, ['row'])
    scene.db.next.commit = ['error']
    t.equal((await scene.client().send(method, url).answer()).status, 500, `${method} ${url}: a failed commit`)
    await scene.rest()
    await until(() => sources.every(({ destroyed }) => destroyed), { what: 'the sources destroyed' })
  }
})

t.test('a HEAD, a 204 and a 304 whose payload is a stream: it is read to its end first, as for a GET, and its failure is one', async (t) => {
  const scene = await Scene.set(t, {
    listen: true,
    routes: (app, scene) => {
      app.get('/:status', inTransaction, (request, reply) => {
        const { status } = request.params as { status: string }
        return reply.code(Number(status)).send(Readable.from(reading(scene, request)))
      })
      app.get('/fails', inTransaction,
        writes(scene, (_request, reply) => reply.send(new Readable({ read () { this.destroy(no()) } }))))
    },
  })
  for (const [method, status] of [['HEAD', 200], ['GET', 204], ['GET', 304]] as const) {
    const answer = await scene.client().send(method, `/${status}`).answer()
    t.same([answer.status, answer.body], [status, ''])
    await scene.rest()
    t.same(scene.db.asked.splice(0), committed)
    t.same(scene.db.rows.splice(0), ['one\n', 'two\n', 'last read'])
  }
  t.equal((await scene.client().send('HEAD', '/fails').answer()).status, 500)
  await scene.rest()
  t.same(scene.db.asked, rolledBack)
  t.same(scene.db.rows, [])
})

t.test('a HEAD whose stream does not end: it is stopped after half of commitTimeout, and what was written is committed', async (t) => {
  const sources: Readable[] = []
  const scene = await Scene.set(t, {
    listen: true,
    pool: { commitTimeout: 200 },
    routes: (app, scene) => {
      const stream = (destroy: (done: () => void) => void) => writes(scene, (_request, reply) => {
        const source = new Readable({ read () {}, destroy: (_error, done) => { destroy(done) } })
        sources.push(source)
        return reply.send(source)
      })
      app.get('/endless', inTransaction, stream((done) => { done() }))
      // Never closed: the commit goes on without it.
      app.get('/deaf', inTransaction, stream(() => {}))
    },
  })
  for (const url of ['/endless', '/deaf']) {
    t.equal((await scene.app.inject({ method: 'HEAD', url })).statusCode, 200,
      url)
  }
  t.same(sources.map(({ destroyed }) => destroyed), [true, true])
  await scene.rest()
  t.same(scene.db.rows, ['row', 'row'])
  scene.db.next.commit = ['hang']
  scene.db.inDoubt = false
  const answer = await scene.app.inject({ method: 'HEAD', url: '/endless' })
  t.equal(answer.statusCode, 500)
  await scene.rest()
})

t.test('a stream that an onSend hook replaces is not committed, and that is logged as an error', async (t) => {
  const scene = await Scene.set(t, {
    routes: (app, scene) => {
      app.get('/', { ...inTransaction, onSend: async () => 'other' },
        writes(scene, (_request, reply) => reply.send(Readable.from(['one']))))
    },
  })
  t.equal((await scene.app.inject({ url: '/', headers: { 'x-id': 'A' } })).body, 'other')
  await scene.rest()
  t.same(scene.db.rows, [])
  t.match(scene.lines, [{ level: 50, reqId: 'A', msg: /rolled back/ }])
})

t.test('a web stream that is in use, and a Response that was read, are an error and rolled back', async (t) => {
  const scene = await Scene.set(t, {
    routes: (app, scene) => {
      app.get('/locked', inTransaction, writes(scene, (_request, reply) => {
        const stream = webStreamOf((async function * () { yield 'one' })())
        stream.getReader()
        return reply.send(stream)
      }))
      app.get('/read', inTransaction, writes(scene, async (_request, reply) => {
        const response = new Response('one')
        await response.text()
        return await reply.send(response)
      }))
    },
  })
  for (const url of ['/locked', '/read']) t.equal((await scene.app.inject(url)).statusCode, 500, url)
  await scene.rest()
  t.same(scene.db.rows, [])
})

// --- request.transaction ---------------------------------------------------------------------------------------------

t.test('request.transaction takes the connection if it must, gives what its function gives, and commits', async (t) => {
  const scene = await Scene.set(t, {
    plugin: { lease: { acquire: 'manual' } },
    routes: (app, scene) => {
      app.get('/', async (request) => {
        const value = await request.transaction('db', (connection) => {
          scene.db.write(connection as FakeConnection, 'row')
          return { a: 1 }
        }, { isolation: 'serializable' })
        t.same(scene.db.asked, committed)
        t.equal(scene.stats().used, 1, "it is the request's until its end")
        return value
      })
    },
  })
  t.same((await scene.app.inject('/')).json(), { a: 1 })
  await scene.rest()
  t.same(scene.db.rows, ['row'])
  t.same(scene.db.begun, [{ isolation: 'serializable' }])
})

t.test('request.transaction rolls back what its function throws, and nothing else of the request', async (t) => {
  const scene = await Scene.set(t, {
    routes: (app, scene) => {
      app.get('/', async (request) => {
        t.match(await failure(request.transaction('db', (connection) => {
          scene.db.write(connection as FakeConnection, 'no')
          throw no()
        })), { message: 'no' })
        scene.db.write(on(request), 'outside')
        return 'well'
      })
    },
  })
  t.equal((await scene.app.inject('/')).body, 'well')
  await scene.rest()
  t.same(scene.db.asked, rolledBack)
  t.same(scene.db.rows, ['outside'])
})

t.test('request.transaction within another, and in a route that has one, is a savepoint', async (t) => {
  const scene = await Scene.set(t, {
    routes: (app, scene) => {
      const write = (row: string) => (connection: unknown) => { scene.db.write(connection as FakeConnection, row) }
      app.get('/within', async (request) => request.transaction('db', async (connection) => {
        write('one')(connection)
        await request.transaction('db', write('two'))
        await failure(request.transaction('db', (inner) => { write('no')(inner); throw no() }))
        return 'well'
      }))
      app.get('/route', inTransaction, async (request) => {
        write('three')(on(request))
        await request.transaction('db', write('four'))
        await failure(request.transaction('db', (inner) => { write('no')(inner); throw no() }))
        return 'well'
      })
      app.get('/undone', inTransaction, async (request) => {
        await request.transaction('db', write('no'))
        throw no()
      })
    },
  })
  for (const url of ['/within', '/route']) {
    t.equal((await scene.app.inject(url)).body, 'well')
    await scene.rest()
    t.match(scene.db.asked.splice(0).map((what) => what.split(' ')[0]).join(' '),
      'begin savepoint commit savepoint rollback commit')
  }
  t.same(scene.db.rows, ['one', 'two', 'three', 'four'])
  t.equal((await scene.app.inject('/undone')).statusCode, 500)
  await scene.rest()
  t.equal(scene.db.asked.at(-1), 'rollback #1')
  t.equal(scene.db.rows.length, 4)
})

t.test('two of request.transaction side by side are two transactions, one after the other', async (t) => {
  const scene = await Scene.set(t, {
    plugin: { lease: { acquire: 'manual' } },
    routes: (app, scene) => {
      app.get('/', async (request) => {
        const run = (row: string) => request.transaction('db', async (connection) => {
          scene.db.write(connection as FakeConnection, row)
          if (row === 'no') throw no()
          return row
        })
        const [one, two, three] = await Promise.allSettled([run('one'), run('no'), run('three')])
        return { one, two: two.status, three }
      })
    },
  })
  t.match((await scene.app.inject('/')).json(), { one: { value: 'one' }, two: 'rejected', three: { value: 'three' } })
  await scene.rest()
  t.same(scene.db.asked, [...committed, ...rolledBack, ...committed])
  t.same(scene.db.rows, ['one', 'three'])
  t.equal(scene.stats().acquired, 1)
})

t.test('a connection that is used beside a transaction on it: warned of, once for each route', async (t) => {
  const scene = await Scene.set(t, {
    routes: (app, scene) => {
      const beside = (
        during: (request: FastifyRequest, opened: Gate, close: Gate) => Promise<unknown>
      ) => async (request: FastifyRequest) => {
        const [opened, close] = [gate(), gate()]
        const run = request.transaction('db', async (connection) => {
          opened.open()
          scene.db.write(on(request), 'within')
          // A savepoint's is another one.
          await request.transaction('db', () => { scene.db.write(on(request), 'within') })
          scene.db.write(connection as FakeConnection, 'within')
          await close.opened
        })
        await during(request, opened, close)
        close.open()
        await run
        return on(request).id
      }
      const plain = beside(async (request, opened) => {
        await opened.opened
        scene.db.write(on(request), 'beside')
      })
      app.get('/beside', plain)
      app.get('/again', plain)
      app.get('/in-route', inTransaction, plain)
      app.get('/begin', beside(async (request) => {
        await scene.underWay('begin')
        scene.db.write(on(request), 'beside')
        scene.db.pass('begin')
      }))
      app.get('/behind', beside(async (_request, opened, close) => {
        await opened.opened
        close.open()
      }))
      app.get('/before', async (request) => {
        scene.db.write(on(request), 'before')
        await failure(request.transaction('db', () => { throw no() }))
        return on(request).id
      })
    },
  })
  const warnings = () => scene.lines.splice(0).filter(({ msg }) => /beside a transaction/.test(msg))
  for (const url of ['/behind', '/before']) {
    t.equal((await scene.app.inject(url)).statusCode, 200)
    t.same(warnings(), [], url)
  }
  for (const url of ['/beside', '/again', '/in-route', '/begin']) {
    for (const times of [1, 0]) {
      if (url === '/begin') scene.db.next.begin = ['gate']
      t.equal((await scene.app.inject({ url, headers: { 'x-id': 'A' } })).statusCode, 200)
      t.match(warnings(), Array.from({ length: times }, () => ({
        level: 40, reqId: 'A', pool: 'db', route: `GET ${url}`, msg: /^request\.db was used beside/,
      })))
    }
  }
  await scene.rest()
})

t.test('request.transaction runs again where the caller says so', async (t) => {
  let tries = 0
  const scene = await Scene.set(t, {
    routes: (app) => {
      app.get('/', async (request) => request.transaction('db', () => {
        if (++tries < 3) throw new Error('transient')
        return 'well'
      }, { retry: 2 }))
    },
  })
  t.equal((await scene.app.inject('/')).body, 'well')
  await scene.rest()
  t.same(scene.db.asked, [...rolledBack, ...rolledBack, ...committed])
})

t.test('request.transaction rejects when the request is over, and where the pool is unknown or has none', async (t) => {
  const scene = await Scene.set(t, {
    pools: ['db', 'cache'],
    routes: (app, scene) => {
      app.get('/', async (request) => {
        t.match(await failure(request.transaction('other', () => {})), { code: 'FST_POOL_NOT_FOUND' })
        t.match(await failure(request.transaction('cache', () => {})), { code: 'FST_POOL_NOT_SUPPORTED' })
        t.match(await failure(request.transaction('db', () => {}, { isolation: 'snapshot' })),
          { code: 'FST_POOL_BAD_OPTIONS' })
        kept = request
        return 'well'
      })
      delete scene.connectors.get('cache')!.transactions
    },
  })
  let kept: FastifyRequest | undefined
  t.equal((await scene.app.inject('/')).body, 'well')
  await scene.rest()
  t.match(await failure(kept!.transaction('db', () => t.fail('called'))), { code: 'FST_POOL_ABORTED' })
  await scene.rest()
  t.same(scene.db.asked, [])
})

t.test('in an onSend hook behind the commit request.transaction is one of its own', async (t) => {
  const scene = await Scene.set(t, {
    routes: (app, scene) => {
      app.get('/', {
        ...inTransaction,
        onSend: async (request) => {
          await request.transaction('db', (connection) => { scene.db.write(connection as FakeConnection, 'audit') })
        },
      }, writes(scene, () => 'well'))
    },
  })
  t.equal((await scene.app.inject('/')).body, 'well')
  await scene.rest()
  t.same(scene.db.asked, [...committed, ...committed])
  t.same(scene.db.rows, ['row', 'audit'])
})

// --- Boot ------------------------------------------------------------------------------------------------------------

/** What a route says to a policy that it can't have. */
async function refused (t: Test, pools: unknown, { transactions = true } = {}): Promise<PoolError> {
  const app = Fastify()
  t.teardown(() => app.close())
  const connector = new FakeConnector()
  if (!transactions) delete connector.transactions
  await app.register(fastifyPool, { connector })
  try {
    app.get('/orders', { config: { pools: pools as RoutePools } }, async () => {})
  } catch (error) {
    return error as PoolError
  }
  throw new Error('it was taken')
}

t.test('a route that asks for what its pool does not have is an error where it is declared', async (t) => {
  const isolation = await refused(t, { db: { transaction: { isolation: 'snapshot' } } })
  t.equal(isolation.code, 'FST_POOL_BAD_OPTIONS')
  t.match(isolation.message, /route GET \/orders/)
  t.match(isolation.message,
    /config\.pools\.db\.transaction.*isolation.*'snapshot'.*'read committed' or 'serializable'/)
  const none = await refused(t, { db: { transaction: true } }, { transactions: false })
  t.equal(none.code, 'FST_POOL_NOT_SUPPORTED')
  t.match(none.message, /route GET \/orders.*db.*has no transactions/)
})

t.test('a route that names a pool that there is none of is an error where it is declared', async (t) => {
  const error = await refused(t, { orders: { transaction: true } })
  t.equal(error.code, 'FST_POOL_NOT_FOUND')
  t.match(error.message,
    /route GET \/orders: config\.pools names 'orders', and there is no such pool \(there is 'db'\)/)
})

t.test('options of a transaction that are wrong say which, what was given, and what is expected', async (t) => {
  const rows: Array<[unknown, RegExp]> = [
    [{ transaction: 'yes' }, /config\.pools\.db\.transaction is 'yes': expected true, false or an object/],
    [{ transaction: 1 }, /config\.pools\.db\.transaction is 1: expected true, false or an object/],
    [{ transaction: null }, /config\.pools\.db\.transaction is null: expected true, false or an object/],
    [{ transaction: { isolation: 'high' } },
      /config\.pools\.db\.transaction\.isolation is 'high': expected 'read uncommitted', .* or 'snapshot'/],
    [{ transaction: { readOnly: 'yes' } }, /config\.pools\.db\.transaction\.readOnly is 'yes': expected true or false/],
    [{ transaction: { commitOn: 'always' } },
      /config\.pools\.db\.transaction\.commitOn is 'always': expected 'success' or 'reply'/],
    [{ transaction: { retry: 3 } }, /unknown option config\.pools\.db\.transaction\.retry/],
    [{ role: 'reader' }, /config\.pools\.db\.role is 'reader': expected 'primary' or 'replica'/],
  ]
  for (const [policy, message] of rows) {
    const error = await refused(t, { db: policy })
    t.equal(error.code, 'FST_POOL_BAD_OPTIONS')
    t.match(error.message, message)
  }
})

t.test('a policy of a pool or of the plugin that a pool can not have is an error at register, and nothing is left open', async (t) => {
  const makes: Array<(connector: FakeConnector) => PluginOptions> = [
    (connector) => ({ connector, lease: { transaction: true } }),
    (connector) => ({ pools: { db: { connector, lease: { transaction: true } } } }),
    (connector) => ({ pools: { db: { connector } }, lease: { transaction: true } }),
    (connector) => ({
      pools: {
        first: { connector: new FakeConnector() }, db: { connector },
      },
      lease: { transaction: { isolation: 'serializable' } }
    }),
  ]
  for (const make of makes) {
    const connector = new FakeConnector()
    delete connector.transactions
    const app = Fastify()
    const error = await failure(Promise.resolve(app.register(fastifyPool, make(connector)).then(() => {})))
    t.match(error, { code: 'FST_POOL_NOT_SUPPORTED', message: /db.*has no transactions/ })
    t.same([connector.live, connector.closed], [0, 1])
    await failure(Promise.resolve(app.close().then(() => { throw no() })))
  }
})

// Reported: PoolManager.add, or what admits a pool there, should ask checkPolicy about the plugin's policy.
t.test('a pool that is added later, and can not have the policy of the plugin, is refused', async (t) => {
  const { Pool } = await import('../../index.js')
  const scene = await Scene.set(t, {
    plugin: { lease: { transaction: true } },
    routes: (app) => {
      const connector = new FakeConnector()
      delete connector.transactions
      const pool = new Pool(connector, { name: 'cache' })
      t.teardown(() => pool.close())
      t.throws(() => { app.pools.add('cache', pool) }, { code: 'FST_POOL_NOT_SUPPORTED' })
      app.get('/', async () => 'well')
    },
  })
  t.equal((await scene.app.inject('/')).body, 'well')
})

t.test('a pool without transactions, and routes without them, are as they were: no promise on the way where a connection is idle', async (t) => {
  let handled = false
  let atOnce: boolean | undefined
  const scene = await Scene.set(t, {
    pools: ['db', 'cache'],
    before: (app) => {
      app.addHook('onRequest', (_request, _reply, done) => {
        handled = false
        done()
        atOnce = handled
      })
    },
    routes: (app, scene) => {
      delete scene.connectors.get('cache')!.transactions
      app.get('/', (request, reply) => {
        handled = true
        reply.send([on(request).id, on(request, 'cache').id])
      })
      app.get('/transaction', inTransaction, (_request, reply) => {
        handled = true
        reply.send('well')
      })
    },
  })
  t.same((await scene.app.inject('/')).json(), [1, 1])
  t.equal(atOnce, true, 'the handler was called within the first hook')
  await scene.app.inject('/transaction')
  t.equal(atOnce, false, 'which a transaction does not allow')
  await scene.rest()
  t.same(scene.db.asked, committed)
})
