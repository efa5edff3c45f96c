import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest, type InjectOptions } from 'fastify'
import { Readable } from 'node:stream'
import t, { type Test } from 'tap'
import { fastifyPool } from '../../index.js'
import type { PluginOptions, PoolOptions } from '../../index.js'
import { Sticky } from '../../lib/fastify/rules/sticky.js'
import type { Role } from '../../types/connector.js'
import { VirtualClock } from '../support/clock.js'
import { FakeConnector, type FakeConnection } from '../support/fake-connector.js'
import { rulesOf } from '../support/rules.js'
import { until } from '../support/until.js'

// Read your writes: after a write the same key reads from the primary for a while.

interface Setting {
  readonly app: FastifyInstance
  readonly primary: FakeConnector
  /** Which connection the request got. @param who in the header x-session */
  ask (method: 'GET' | 'HEAD' | 'POST', url: string, who?: string, headers?: Record<string, string>): Promise<Role>
}

const on = (request: FastifyRequest) => (request as unknown as { db: FakeConnection }).db
const byHeader = { sticky: { header: 'X-Session' } }

type Routes = (app: FastifyInstance, roleOf: (connection: unknown) => Role) => void

/** An app with a pool of both roles. */
async function set (t: Test, options: Partial<PoolOptions> = byHeader, routes: Routes = () => {}): Promise<Setting> {
  const app = Fastify()
  t.teardown(() => app.close())
  const replica = new FakeConnector()
  const primary = new FakeConnector()
  const roleOf = (connection: unknown): Role => replica.connections.includes(connection as FakeConnection)
    ? 'replica'
    : 'primary'
  const targets = [{ connector: primary }, { connector: replica, role: 'replica' as const }]
  await app.register(fastifyPool, { targets, max: 4, log: false, ...options } as PluginOptions)
  app.route({
    method: ['GET', 'HEAD', 'POST'],
    url: '/',
    handler: async (request, reply) =>
      reply.header('role', roleOf(on(request))).send('')
  })
  routes(app, roleOf)
  await app.ready()
  return {
    app,
    primary,
    async ask (method, url, who, headers = {}) {
      const answer = await app.inject({
        method, url, headers: { ...(who !== undefined && { 'x-session': who }), ...headers },
      } as InjectOptions)
      if (answer.statusCode !== 200) throw new Error(answer.body)
      return answer.headers.role as Role
    },
  }
}

t.test('after a write, who has written reads from the primary, and nobody else does', async (t) => {
  const { ask } = await set(t)
  t.equal(await ask('GET', '/', 'A'), 'replica')
  t.equal(await ask('POST', '/', 'A'), 'primary')
  t.equal(await ask('GET', '/', 'A'), 'primary')
  t.equal(await ask('HEAD', '/', 'A'), 'primary')
  t.equal(await ask('GET', '/', 'B'), 'replica')
  t.equal(await ask('GET', '/'), 'replica')
})

t.test('who is nobody in particular is not remembered', async (t) => {
  const { app, ask } = await set(t)
  t.equal(await ask('POST', '/'), 'primary')
  t.equal(await ask('POST', '/', ''), 'primary')
  t.equal(await ask('GET', '/', ''), 'replica')
  t.equal(rulesOf(app.pools).sticky!.keys, 0)
})

t.test('a read from the primary is no write', async (t) => {
  const { app, ask } = await set(t, byHeader, (app, roleOf) => {
    const handler = async (request: FastifyRequest, reply: FastifyReply) => reply.header('role', roleOf(on(request)))
      .send('')
    app.get('/primary', { config: { pools: { db: { role: 'primary' } } } }, handler)
    app.post('/reads', { config: { pools: { db: { role: 'primary', transaction: { readOnly: true } } } } }, handler)
    app.post('/replica', { config: { pools: { db: { role: 'replica' } } } }, handler)
  })
  t.equal(await ask('GET', '/primary', 'A'), 'primary')
  t.equal(await ask('POST', '/reads', 'A'), 'primary')
  t.equal(await ask('POST', '/replica', 'A'), 'replica')
  t.equal(rulesOf(app.pools).sticky!.keys, 0)
  t.equal(await ask('GET', '/', 'A'), 'replica')
  // Nor is one that is sticky: else it would never end.
  await ask('POST', '/', 'A')
  t.equal(await ask('POST', '/replica', 'A'), 'primary', 'also where the route says replica')
})

t.test('what a request writes in other ways counts too', async (t) => {
  const { ask } = await set(t, byHeader, (app) => {
    const manual = { config: { pools: { db: { acquire: 'manual' } } } } as const
    app.get('/acquire', manual, async (request) => { await request.acquire('db', { role: 'primary' }); return '' })
    app.get('/none', { config: { pools: false } }, async (request) => {
      await request.acquire('db', { role: 'primary' })
      return ''
    })
    app.post('/hand', manual, async (request) => { await request.acquire('db'); return '' })
    app.get('/transaction', manual, async (request) => request.transaction('db', () => ''))
    app.get('/route', { config: { pools: { db: { transaction: true } } } }, async () => '')
    app.get('/out', { config: { pools: { db: { role: 'primary' } } } },
      async (request) => request.transaction('db', () => ''))
    app.get('/both', manual, async (request) => {
      await Promise.all([request.acquire('db', { role: 'primary' }), request.acquire('db')])
      return ''
    })
    // Those only read.
    app.get('/reads', manual, async (request) => request.transaction('db', () => '', { readOnly: true }))
    app.get('/replica', manual, async (request) => { await request.acquire('db', { role: 'replica' }); return '' })
    app.get('/late', async (request) => { await request.acquire('db', { role: 'primary' }); return '' })
    app.post('/unused', manual, async () => '')
  })
  for (const url of ['/acquire', '/none', '/hand', '/transaction', '/route', '/out', '/both']) {
    await ask(url === '/hand' ? 'POST' : 'GET', url, url)
    t.equal(await ask('GET', '/', url), 'primary', url)
  }
  for (const [method, url] of [['GET', '/reads'], ['GET', '/replica'], ['GET', '/late'], ['POST', '/unused']] as const) {
    await ask(method, url, url)
    t.equal(await ask('GET', '/', url), 'replica', url)
  }
})

t.test('by hand, too, who has written gets the primary', async (t) => {
  const { ask } = await set(t, byHeader, (app, roleOf) => {
    const manual = { config: { pools: { db: { acquire: 'manual' } } } } as const
    app.get('/hand', manual,
      async (request, reply) => reply.header('role', roleOf((await request.acquire('db')).connection)).send(''))
    app.get('/replica', manual,
      async (request, reply) => reply.header('role', roleOf((await request.acquire('db', { role: 'replica' })).connection)).send(''))
  })
  for (const url of ['/hand', '/replica']) {
    t.equal(await ask('GET', url, url), 'replica')
    await ask('POST', '/', url)
    t.equal(await ask('GET', url, url), 'primary')
  }
})

t.test('it is marked when the connection is taken, before the reply is sent, and when the request is over', async (t) => {
  const marks: string[] = []
  let marked: () => void = () => {}
  const { app, ask } = await set(t, byHeader, (app) => {
    app.addHook('onSend', async () => { marks.push('before the reply') })
    app.post('/slow', async (_request, reply) => {
      marks.push('handler')
      t.equal(await ask('GET', '/', 'A'), 'primary', 'while it writes')
      reply.raw.on('close', () => { marks.push('over') })
      return ''
    })
  })
  const { sticky } = rulesOf(app.pools)
  const mark = sticky!.mark.bind(sticky)
  sticky!.mark = (key) => {
    marks.push('mark')
    mark(key)
    marked()
  }
  const over = new Promise<void>((resolve) => {
    marked = () => { if (marks.filter((one) => one === 'mark').length === 3) resolve() }
  })
  await app.inject({ method: 'POST', url: '/slow', headers: { 'x-session': 'A' } })
  await over
  // The onSend in the middle is that of the request that read.
  t.same(marks.filter((one) => one !== 'over'),
    ['mark', 'handler', 'before the reply', 'mark', 'before the reply', 'mark'])
})

t.test('a transaction of the route has marked it again when it is committed, before the client knows', async (t) => {
  const steps: string[] = []
  const { app, primary, ask } = await set(t, byHeader, (app) => {
    app.post('/transaction', { config: { pools: { db: { transaction: true } } } }, async () => '')
  })
  const { sticky } = rulesOf(app.pools)
  const mark = sticky!.mark.bind(sticky)
  sticky!.mark = (key) => { steps.push('mark'); mark(key) }
  primary.onAsked = (what) => { steps.push(what.replace(/ #.*/, '')) }
  await app.inject({ method: 'POST', url: '/transaction', headers: { 'x-session': 'A' } })
    .then(() => { steps.push('answer') })
  t.same(steps.slice(0, 4), ['begin', 'mark', 'commit', 'mark'])
  t.ok(steps.indexOf('answer') > 3)
  t.equal(await ask('GET', '/', 'A'), 'primary')
})

t.test('a streamed reply, too, has marked it again when its transaction is committed', async (t) => {
  const steps: string[] = []
  const { app, primary } = await set(t, byHeader, (app) => {
    app.post('/stream', { config: { pools: { db: { transaction: true } } } }, async () => Readable.from(['a', 'b']))
  })
  const { sticky } = rulesOf(app.pools)
  const mark = sticky!.mark.bind(sticky)
  sticky!.mark = (key) => { steps.push('mark'); mark(key) }
  primary.onAsked = (what) => { steps.push(what.replace(/ #.*/, '')) }
  t.equal((await app.inject({ method: 'POST', url: '/stream', headers: { 'x-session': 'A' } })).body, 'ab')
  await until(() => app.pools.get('db').stats().used === 0)
  t.same(steps, ['begin', 'mark', 'mark', 'commit', 'mark', 'mark'], 'taken, sent, committed, over')
})

t.test('it ends stickyFor after the write', async (t) => {
  const { ask } = await set(t, { ...byHeader, stickyFor: 30 })
  await ask('POST', '/', 'A')
  await until(async () => await ask('GET', '/', 'A') === 'replica')
})

t.test('by a cookie', async (t) => {
  const { ask } = await set(t, { sticky: { cookie: 'sid' } })
  const writes = async (cookie: string) => { await ask('POST', '/', undefined, { cookie }) }
  const reads = async (cookie: string) => ask('GET', '/', undefined, { cookie })
  await writes('sid=abc=d%20e')
  for (const same of [
    'sid=abc=d%20e', 'a=1; sid=abc=d%20e; b=2', 'a=1;sid=abc=d%20e', 'asid=1; sid="abc=d%20e"',
    ' sid = abc=d%20e ; sid=other',
    'alone; sid=abc=d%20e', 'a="x y"; ; sid=abc=d%20e;',
  ]) {
    t.equal(await reads(same), 'primary', same)
  }
  const others =
    ['sid=abc', 'sid=other; sid=abc=d%20e', 'SID=abc=d%20e', 'asid=abc=d%20e', 'b=2', '', 'sid', 'sid=', 'sid=abc=d e',
      '__proto__=1']
  for (const other of others) t.equal(await reads(other), 'replica', other)
  await writes('sid="quoted"')
  t.equal(await reads('sid=quoted'), 'primary')
  await writes('sid=')
  await writes('sid=""')
  t.equal(await reads('sid='), 'replica', 'an empty one is none')
})

t.test('by a function of the request', async (t) => {
  const { ask, app } = await set(t, { sticky: { key: (request) => (request.query as { user?: string }).user } })
  await ask('POST', '/?user=A')
  t.equal(await ask('GET', '/?user=A'), 'primary')
  t.equal(await ask('GET', '/?user=B'), 'replica')
  t.equal(await ask('GET', '/'), 'replica')
  const { message } = (await app.inject('/?user=A&user=B')).json() as { message: string }
  t.equal(message, "pool 'db': sticky.key gave a value of type object: expected a text, or undefined for none")
})

t.test('a function that throws fails the request with its error, which holds nothing', async (t) => {
  const { app } =
    await set(t, { sticky: { key: () => { throw Object.assign(new Error('who is it?'), { statusCode: 400 }) } } })
  for (const method of ['GET', 'POST'] as const) {
    t.match((await app.inject({ method, url: '/' })).json(),
      { statusCode: 400, message: 'who is it?' })
  }
  t.equal(app.pools.get('db').stats().used, 0)
})

t.test('a pool without replicas asks nobody who it is', async (t) => {
  const app = Fastify()
  t.teardown(() => app.close())
  let asked = 0
  const targets = [{ connector: new FakeConnector() }]
  await app.register(fastifyPool,
    { targets, log: false, sticky: { key: () => { asked++; return 'A' } } } as PluginOptions)
  app.post('/', async () => 'well')
  t.equal((await app.inject({ method: 'POST', url: '/' })).body, 'well')
  t.equal(asked, 0)
})

t.test('together with a bulkhead', async (t) => {
  const { app, ask } =
    await set(t,
      { ...byHeader, bulkhead: { key: (request) => request.headers['x-session'] as string | undefined, max: 1 } })
  await ask('POST', '/', 'A')
  t.same(await Promise.all([ask('GET', '/', 'A'), ask('GET', '/', 'A'), ask('GET', '/', 'B')]),
    ['primary', 'primary', 'replica'])
  await until(() => rulesOf(app.pools).bulkhead!.keys === 0)
})

// --- By itself, with the time in the test's hands --------------------------------------------------------------------

const from = (session: string) => ({ headers: { session } } as unknown as FastifyRequest)

t.test('exactly stickyFor, from the last write on', async (t) => {
  const clock = new VirtualClock()
  const sticky = new Sticky('db', { header: 'session' }, 5000, clock)
  const role = () => sticky.visit(from('A'), 'replica', false)?.role
  t.equal(role(), 'replica')
  const write = sticky.visit(from('A'), 'primary', true)
  t.equal(role(), 'replica')
  write?.mark()
  await clock.advance(4999)
  t.equal(role(), 'primary')
  write?.mark()
  await clock.advance(4999)
  t.equal(role(), 'primary')
  await clock.advance(1)
  t.equal(role(), 'replica')
})

t.test('10,000 keys at most, those that wrote last', async (t) => {
  const clock = new VirtualClock()
  const sticky = new Sticky('db', { header: 'session' }, 5000, clock)
  const write = (at: number) => { sticky.visit(from(`user ${at}`), 'primary', true)?.mark() }
  const role = (at: number) => sticky.visit(from(`user ${at}`), 'replica', false)?.role
  let peak = 0
  for (let at = 0; at < 20_000; at++) {
    write(at)
    peak = Math.max(peak, sticky.keys)
  }
  t.equal(peak, 10_000)
  t.same([role(0), role(9999), role(10_000), role(19_999)], ['replica', 'replica', 'primary', 'primary'])
  write(10_000)
  write(20_000)
  t.same([role(10_000), role(10_001), role(10_002)], ['primary', 'replica', 'primary'],
    'who has written again is not forgotten')
  t.equal(sticky.keys, 10_000)
  // Those whose time is over go with the next write.
  await clock.advance(5000)
  write(7)
  t.equal(sticky.keys, 1)
})

t.test('a key that is long is not kept, and stays apart from others', async (t) => {
  const sticky = new Sticky('db', { header: 'session' }, 5000, new VirtualClock())
  const long = 'x'.repeat(10_000)
  sticky.visit(from(`${long}a`), 'primary', true)?.mark()
  t.same(['a', 'b'].map((last) => sticky.visit(from(`${long}${last}`), 'replica', false)?.role), ['primary', 'replica'])
})
