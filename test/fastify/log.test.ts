import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import t, { type Test } from 'tap'
import fastifyPool, { Pool, type PluginOptions } from '../../index.js'
import { FakeConnector, type FakeConnection } from '../support/fake-connector.js'
import type { PoolEventName, PoolEvents, PoolListener } from '../../types/pool.js'
import { settle } from '../support/clock.js'

interface Line {
  level: number
  msg: string
  pool?: string
  target?: string
  reqId?: string
  err?: { code: string, message: string, stack: string }
  longestHeld?: string
  [detail: string]: unknown
}

const trace = 10
const debug = 20
const info = 30
const warn = 40
const error = 50

/** An app whose log lines the test can read: those that have to do with pools. */
async function logged (
  t: Test, options: Partial<PluginOptions>, level: FastifyServerOptions['logger'] & string = 'trace' as never
) {
  const lines: Line[] = []
  let requests = 7
  const app =
    Fastify({
      logger: { level, stream: { write: (line: string) => { lines.push(JSON.parse(line)) } } },
      genReqId: () =>
      `req-${requests++}`
    })
  t.teardown(() => app.close())
  const connector = new FakeConnector()
  await app.register(fastifyPool, { connector, ...options } as PluginOptions)
  app.get('/', async () => 'hello')
  const ofPool = () => lines.filter(({ pool }) => pool !== undefined)
  return { app, connector, lines, ofPool }
}

const ask = (app: FastifyInstance) => app.inject('/')

t.test('what a request causes is logged with its id, and what the pool does by itself with the pool\'s name', async (t) => {
  const { app, connector, ofPool } = await logged(t, {})
  await ask(app)
  t.match(ofPool().find(({ msg }) => /lent/.test(msg)), { level: trace, pool: 'db', reqId: 'req-7', id: 1, wait: 0 })
  t.match(ofPool().find(({ msg }) => /given back/.test(msg)),
    { level: trace, pool: 'db', reqId: 'req-7', held: Number })
  connector.connections[0]!.die(new Error('gone'))
  t.match(ofPool().at(-2), { level: debug, pool: 'db', event: 'error', phase: 'death', err: { message: 'gone' } })
  t.match(ofPool().at(-1),
    { level: debug, pool: 'db', msg: 'disconnected: error', reason: 'error', err: { message: 'gone' } })
  t.notOk(ofPool().at(-1)!.reqId)
  await app.close()
  t.match(ofPool().find(({ event }) => event === 'drain'), { level: info, msg: 'pool drains' })
  t.match(ofPool().find(({ event }) => event === 'close'), { level: info, msg: /^pool closed in/, took: Number })
})

t.test('what happens while pools open is logged', async (t) => {
  const { lines, ofPool } = await logged(t, {})
  t.match(ofPool(), [
    { level: debug, event: 'connect', msg: /^connected in/ },
    { level: debug, event: 'open', msg: 'pool is open' },
    { level: info, event: 'pool.open', system: 'fake', max: 10, min: 0, msg: "pool 'db' is open: fake, max 10, min 0" },
  ])
  const failing = new FakeConnector()
  failing.outcomes.create = 'error'
  const log = { level: 'info', stream: { write: (line: string) => { lines.push(JSON.parse(line)) } } }
  const app = Fastify({ logger: log })
  await t.rejects(async () => {
    await app.register(fastifyPool, { connector: failing } as PluginOptions)
  }, { code: 'FST_POOL_CONNECT_FAILED' })
  t.match(lines.find(({ event }) => event === 'pool.down'), {
    level: error, pool: 'db', attempts: 1, cause: 'create failed', remedy: String,
  })
  await app.close()
  const embedded = Fastify({ logger: log })
  t.teardown(() => embedded.close())
  await embedded.register(fastifyPool, { backend: 'sqlite', url: ':memory:', driver: 'libsql' })
  t.match(lines.at(-1), { level: info, pool: 'db', event: 'pool.open', driver: 'libsql', database: ':memory:', msg: "pool 'db' is open: sqlite on libsql at :memory:, max 1, min 0" })
})

t.test('who held the connections is in the log of a timeout, and not in the answer', async (t) => {
  const { app, ofPool } = await logged(t, { max: 1, acquireTimeout: 10 } as Partial<PluginOptions>)
  let finish = () => {}
  const reached = new Promise<void>((resolve) => {
    app.get('/reports', async () => {
      resolve()
      await new Promise<void>((resolve) => { finish = resolve })
      return 1
    })
  })
  const first = app.inject('/reports')
  await reached
  const second = await ask(app)
  t.equal(second.statusCode, 503)
  t.match(second.headers['retry-after'], /^[1-9]\d*$/)
  t.same(Object.keys(second.json()).sort(), ['code', 'error', 'message', 'statusCode'])
  t.notMatch(second.body, /reports|req-7/)
  const line = ofPool().find(({ err }) => err?.code === 'FST_POOL_ACQUIRE_TIMEOUT')!
  t.match(line, { level: debug, pool: 'db', reqId: 'req-8', longestHeld: /by GET \/reports \(req-7\)/ })
  t.match(line.msg, /max 1, used 1, idle 0, creating 0, pending/)
  t.match(ofPool().find(({ msg }) => /in line from now on/.test(msg)), { level: debug, pending: 1 })
  t.match(ofPool().find(({ msg }) => /waiting/.test(msg)), { level: debug, pending: 1, reqId: 'req-8' })
  finish()
  await first
})

t.test('a lease of a share is logged as every other, and nobody sees the key', async (t) => {
  const { app, lines, ofPool } =
    await logged(t, { bulkhead: { key: () => 's3cr3t', max: 1 } } as Partial<PluginOptions>)
  let holders = ''
  app.get('/holders', async () => { holders = JSON.stringify(app.pools.holders()) })
  await app.inject('/holders')
  t.match(JSON.parse(holders), [{ pool: 'db', holder: { route: 'GET /holders', id: 'req-7' } }])
  for (const what of [/lent/, /given back/]) {
    t.match(ofPool().find(({ msg }) => what.test(msg)),
      { level: trace, pool: 'db', reqId: 'req-7' })
  }
  t.notMatch(holders + JSON.stringify(lines), /s3cr3t/)
})

/** A pool that tells whatever the test says. */
class Telling extends Pool<FakeConnection, FakeConnector> {
  readonly #listeners: Array<{ readonly name: PoolEventName, readonly listener: (event: never) => void }> = []

  constructor () { super(new FakeConnector(), { name: 'far' }) }

  override on<E extends PoolEventName> (name: E, listener: PoolListener<E>): () => void {
    this.#listeners.push({ name, listener })
    return super.on(name, listener)
  }

  tell<E extends PoolEventName> (name: E, details: Omit<PoolEvents[E], 'pool' | 'time'>): void {
    for (const one of this.#listeners) if (one.name === name) (one.listener as PoolListener<E>)({ ...details, pool: 'far', time: 0 } as unknown as PoolEvents[E])
  }
}

async function telling (t: Test, options: Partial<PluginOptions>, level?: string) {
  const { app, ofPool } = await logged(t, options, level as never)
  const pool = new Telling()
  app.pools.add('far', pool)
  await app.ready()
  return { pool, ofFar: () => ofPool().filter(({ pool }) => pool === 'far') }
}

t.test('a circuit has its target and its cause; a failover is a warning', async (t) => {
  const { pool, ofFar } = await telling(t, {})
  pool.tell('circuit', { from: 'closed', to: 'open', error: new Error('nobody there'), target: 'replica-1' })
  pool.tell('circuit', { from: 'open', to: 'half-open', target: 'replica-1' })
  pool.tell('circuit', { from: 'half-open', to: 'closed', target: 'replica-1' })
  pool.tell('failover', { from: 'a', to: 'b' })
  pool.tell('failover', { from: undefined, to: 'b' })
  pool.tell('failover', { from: 'b', to: undefined })
  t.match(ofFar(), [
    { level: debug, pool: 'far', target: 'replica-1', from: 'closed', to: 'open', msg: 'circuit open: nobody there', err: { message: 'nobody there' } },
    { level: debug, target: 'replica-1', to: 'half-open', msg: 'circuit half-open: one create is tried' },
    { level: debug, target: 'replica-1', to: 'closed', msg: 'circuit closed: connections can be made again' },
    { level: debug, event: 'failover', from: 'a', to: 'b', msg: 'the primary is b now, and was a' },
    { level: warn, event: 'pool.failover', from: 'a', to: 'b', msg: 'the primary is b now, and was a' },
    { level: debug, to: 'b' },
    { level: warn, to: 'b', msg: 'the primary is b now' },
    { level: debug, from: 'b' },
    { level: warn, from: 'b', msg: 'no primary any more: it was b' },
  ])
  t.equal(ofFar().length, 9)
})

t.test('a replica that does not keep up is a warning, and its end is news', async (t) => {
  const { pool, ofFar } = await telling(t, {}, 'info')
  pool.tell('lag', { target: 'replica-1', lag: 7000, maxLag: 5000, over: true })
  pool.tell('lag', { target: 'replica-1', lag: 10, maxLag: 5000, over: false })
  t.match(ofFar(), [
    {
      level: warn,
      event: 'pool.lag',
      target: 'replica-1',
      lag: 7000,
      over: true,
      cause: String,
      remedy: String,
      msg: 'replica-1 is left out: it is 7.0 s behind, and maxLag is 5.0 s'
    },
    { level: info, event: 'pool.lag', over: false },
  ])
})

t.test('failing creates are told per target', async (t) => {
  const { pool, ofFar } = await telling(t, {}, 'info')
  const fail = (target: string) => { pool.tell('error', { error: new Error('refused'), phase: 'create', target }) }
  fail('a')
  fail('b')
  pool.tell('connect', { id: 1, took: 1, target: 'b' })
  t.same(ofFar(), [], 'what does not last is no news')
})

t.test('levels can be set, and turned off, for each event', async (t) => {
  const { app, ofPool } = await logged(t, { log: { acquire: 'warn', release: false } })
  await ask(app)
  t.match(ofPool().find(({ msg }) => /lent/.test(msg)), { level: warn })
  t.notOk(ofPool().some(({ msg }) => /given back/.test(msg)))
})

t.test('log: false logs nothing', async (t) => {
  const { app, connector, ofPool } = await logged(t, { log: false })
  await ask(app)
  connector.connections[0]!.die()
  t.same(ofPool(), [])
})

t.test('a payload is built only for levels that are enabled', async (t) => {
  const { app, ofPool } = await logged(t, {}, 'info' as never)
  const pool = app.pools.get('db')
  await ask(app)
  await settle()
  t.match(ofPool(), [{ event: 'pool.open' }])
  // A lease that somebody listens to is timed exactly; here nobody does, so the sample of 64 runs out.
  const reads = t.capture(performance, 'now', performance.now)
  for (let i = 0; i < 1000; i++) (await pool.acquire()).release()
  const { length } = reads()
  t.ok(length < 1000, `the clock was read ${length} times`)
})

t.test('a leak, and its end, are logged', async (t) => {
  const { app, ofPool } = await logged(t, { leakAfter: 5 } as Partial<PluginOptions>)
  const leaked = new Promise<void>((resolve) => { app.pools.on('leak', () => { resolve() }) })
  app.get('/slow', async () => { await leaked })
  // The pool's own timer keeps no process alive for a lease that is out; a server does.
  await app.listen({ port: 0, host: '127.0.0.1' })
  await app.inject('/slow')
  await settle()
  t.match(ofPool().find(({ event }) => event === 'pool.leak'), { level: warn, reqId: 'req-7' })
  t.match(ofPool().find(({ event }) => event === 'pool.leak.end'), { level: info, reqId: 'req-7' })
})

t.test('at the close, who still held a connection is named', async (t) => {
  const { app, ofPool } = await logged(t, { closeTimeout: 20 } as Partial<PluginOptions>)
  let reached = () => {}
  const there = new Promise<void>((resolve) => { reached = resolve })
  app.get('/hangs', async () => {
    reached()
    await new Promise(() => {})
  })
  app.inject('/hangs').then(() => t.fail('it has no answer'), (error: unknown) => { throw error })
  await there
  await app.close()
  const end = ofPool().find(({ event }) => event === 'close')
  t.equal(end?.level, warn)
  t.match(end?.msg, /leases still out: .* by GET \/hangs \(req-7\)/)
})

t.test('works without a logger, and with one of the app\'s own', async (t) => {
  const silent = Fastify({ logger: false })
  await silent.register(fastifyPool, { connector: new FakeConnector() })
  silent.get('/', async (request) => (request.db as FakeConnection).id)
  t.equal((await silent.inject('/')).body, '1')
  await silent.close()

  const said: string[] = []
  const own = {
    info: (...args: unknown[]) => { said.push(String(args.at(-1))) },
    error: () => {},
    debug: () => {},
    fatal: () => {},
    warn: () => {},
    trace: () => {},
    silent: () => {},
    level: 'info',
    msgPrefix: '',
    child () { return own },
  }
  const app = Fastify({ loggerInstance: own })
  await app.register(fastifyPool, { connector: new FakeConnector() })
  await app.ready()
  await app.close()
  t.ok(said.includes('pool drains'))
})

t.test('a lost lease that is taken back is called that', async (t) => {
  const { pool, ofFar } = await telling(t, {}, 'info')
  pool.tell('unleak', { id: 1, held: 2000, holder: { route: 'GET /lost', id: 'req-1' }, taken: 'leaked' })
  t.match(ofFar(), [{ level: warn, event: 'pool.leak.taken', route: 'GET /lost', taken: 'leaked', msg: /^the pool took connection 1 back from GET \/lost \(req-1\) after 2\.0 s/ }])
})
