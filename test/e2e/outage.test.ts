import Fastify, { type FastifyRequest } from 'fastify'
import type { Redis } from 'ioredis'
import type { Db } from 'mongodb'
import type pg from 'pg'
import t, { type Test } from 'tap'
import fastifyPool, { type PoolOptions } from '../../index.js'
import { listen, logLines, uncaught } from '../support/app.js'
import { alarm, type Alarm, startPace } from '../support/order.js'
import {
  type Server, askMongo, askRedis, needsOwn, startMongo, startPostgres, startRedis,
} from '../support/services.js'
import { until } from '../support/until.js'
import { type Answer, ask, keepAliveAgent } from './client.js'

const width = 50
const acquireTimeout = 800

/** One answer, with what the server knows of its making. */
interface Seen extends Answer { readonly at: number, readonly round: number, readonly body: string }

interface Story {
  /**
   * Of an error: whose it was, how long after the request had come, and whether a timer of acquireTimeout + 300 ms, set
   * then, had rung.
   */
  readonly held: boolean
  readonly code: string | undefined
  readonly message: string
  readonly ms: number
  readonly late: boolean
}

async function serve (t: Test, pool: PoolOptions, query: (connection: unknown) => Promise<unknown>) {
  const { stream, lines } = logLines()
  const app = Fastify({ logger: { level: 'info', stream } })
  app.addHook('onRequest', (request, _reply, done) => {
    Object.assign(request, { began: performance.now(), deadline: alarm(acquireTimeout + 300), held: false })
    done()
  })
  await app.register(fastifyPool, pool)
  app.setErrorHandler((error: Error & { statusCode?: number, code?: string }, request, reply) => {
    const { began, deadline, held } = request as FastifyRequest & { began: number, deadline: Alarm, held: boolean }
    const story: Story = {
      held, code: error.code, message: error.message, ms: performance.now() - began, late: deadline.rang,
    }
    return reply.code(error.statusCode ?? 500).send(story)
  })
  app.get('/', async (request) => {
    const { db } = request as FastifyRequest & { db: unknown }
    Object.assign(request, { held: true })
    await query(db)
    return 'served'
  })
  const port = await listen(t, app)
  return { app, lines, port }
}

/**
 * So many rounds of a plain client (see `startPace`) may come before all are served again: 2 s of them where nothing is
 * slow.
 */
const beyond = 40

/** Asks the server as one who has no pool. */
const plain = ({ url }: Server) => url.startsWith('redis') ? askRedis(new URL(url), 'PING') : askMongo(url, { ping: 1 })

async function outage (
  t: Test, server: Server, pool: PoolOptions, query: (connection: unknown) => Promise<unknown>
): Promise<void> {
  const strays = uncaught(t)
  const { app, lines, port } = await serve(t, { max: 10, acquireTimeout, ...pool } as PoolOptions, query)
  const agent = keepAliveAgent(t)
  const seen: Seen[] = []
  const load = { on: true }
  // Of a server that is away there is no round.
  const pace = startPace(t, () => plain(server))
  const clients = Promise.all(Array.from({ length: width }, async () => {
    while (load.on) seen.push({ ...await ask({ port, path: '/', agent }), at: performance.now(), round: pace.rounds })
  }))
  const servedSince = (time: number) => seen.filter(({ at, status }) => at > time && status === 200)
  const failing = () => lines.filter(({ event }) => event === 'pool.down')

  for (const episode of [1, 2]) {
    const start = performance.now()
    await until(() => servedSince(start).length > 100, { what: 'requests are served' })
    const used = await until(() => app.pools.stats().db!.used)
    t.ok(used > 0, `${used} connections are used when the server is killed`)
    seen.length = 0
    const killed = performance.now()
    await server.kill()
    const dead = performance.now()
    await until(() => seen.filter(({ at, status }) => at > dead && status === 503).length > width * 3,
      { timeout: 30_000, what: 'requests are refused' })

    const stories = seen.filter(({ at, status }) => at > killed && status !== 200)
      .map(({ status, headers, body }) => ({ status, headers, story: JSON.parse(body) as Story }))
    const held = stories.filter(({ story }) => story.held)
    const later = stories.filter(({ story }) => !story.held)
    t.ok(held.length > 0, `${held.length} requests held a connection`)
    t.same(held.filter(({ story, status }) => status !== 500 || story.code?.startsWith('FST_')).slice(0, 3), [],
      "they get the driver's own error")
    t.same(later.filter(({ story, status }) => status !== 503 || !story.code?.startsWith('FST_POOL_')).slice(0, 3), [],
      'all others get 503')
    t.same(later.filter(({ headers }) => !/^([1-9]|[12]\d|30)$/.test(String(headers['retry-after']))).slice(0, 3), [],
      'with Retry-After, from 1 to 30')
    const slowest = Math.max(...later.map(({ story }) => story.ms))
    t.same(later.filter(({ story }) => story.late).slice(0, 3), [],
      'before a timer of acquireTimeout + 300 ms, set when they came')
    const refusedAt = seen.find(({ at, status }) => at > dead && status === 503)!.at
    t.equal(seen.filter(({ at, status }) => at > refusedAt && status === 200).length, 0,
      'and nobody is served any more')
    // A line comes when it has lasted for a second.
    await until(() => failing().length === episode, { what: 'the outage is logged, once' })

    await server.restart()
    const back = performance.now()
    const returned = pace.rounds
    await until(() => servedSince(back).length > 0, { timeout: 30_000, what: 'a request is served again' })
    const first = servedSince(back)[0]!.at - back
    const rounds = servedSince(back)[0]!.round - returned
    t.ok(rounds < beyond, `a plain client was served ${rounds} times before`)
    // All of them, not only a lucky one.
    await until(() => servedSince(back).length > 100, { what: 'requests are served again' })
    const lastFailure =
      Math.max(0, ...seen.filter(({ at, status }) => at > back && status !== 200).map(({ at }) => at - back))
    const last = seen.findLast(({ at, status }) => at > back && status !== 200)
    t.ok(last === undefined || last.round - returned < beyond,
      `and ${(last?.round ?? returned) - returned} times before the last failure`)
    const codes =
      [...new Set(later.map(({ story }) => story.code))].map((code) =>
        `${code} x${later.filter(({ story }) => story.code === code).length}`)
    t.comment(`episode ${episode}: ${held.length} held (${[...new Set(held.map(({ story }) => story.message))].join('; ')})`)
    t.comment(`later: ${codes.join(', ')}, the slowest after ${Math.round(slowest)} ms of ${acquireTimeout}`)
    t.comment(`measured: back: first success after ${Math.round(first)} ms, last failure after ${Math.round(lastFailure)} ms`)
  }
  load.on = false
  await Promise.all([clients, pace.stop()])
  t.same(strays, [], 'nothing was uncaught')
  t.match(app.pools.stats().db, { used: 0, pending: 0, late: 0 })
  t.equal((await app.pools.health()).status, 'up')
}

t.test('kill -9 of Redis under load', async (t) => {
  const server = await startRedis(t, { own: true })
  const pool = { backend: 'redis', url: server.url } as PoolOptions
  // Something of it is under way when the server dies.
  await t.test('requests that hold a connection fail with the driver\'s error, all later ones with 503, and they succeed again soon after it is back', needsOwn(server), (t) =>
    outage(t, server, pool, (redis) => (redis as Redis).blpop('nothing', 0.01)))
  await t.test('a pool that nobody used while its server was away serves the next request', needsOwn(server),
    (t) => quiet(t, server, pool, (redis) => (redis as Redis).ping()))
})

const mongo = await startMongo(t, { own: true })
const noMongo = { skip: mongo === undefined && 'neither a mongod nor FerretDB is here' }
t.test(`kill -9 of MongoDB (${mongo?.kind ?? 'none'}) under load`, noMongo, async (t) => {
  const pool = { backend: 'mongodb', url: mongo!.url, database: 'outage' } as PoolOptions
  await t.test('requests that hold a connection fail with the driver\'s error, all later ones with 503, and they succeed again soon after it is back', needsOwn(mongo!), (t) =>
    outage(t, mongo!, pool, (db) => (db as Db).collection('things').findOne({})))
  await t.test('a pool that nobody used while its server was away serves the next request', needsOwn(mongo!),
    (t) => quiet(t, mongo!, { ...pool, connection: { heartbeatFrequencyMS: 500 } } as PoolOptions,
      (db) => (db as Db).command({ ping: 1 })))
})

async function quiet (
  t: Test, server: Server, pool: PoolOptions, query: (connection: unknown) => Promise<unknown>
): Promise<void> {
  const { app, port } = await serve(t, { max: 10, acquireTimeout: 2000, ...pool } as PoolOptions, query)
  const agent = keepAliveAgent(t)
  t.equal((await ask({ port, path: '/', agent })).status, 200)
  await server.kill()
  // A death between two loans is seen without anybody's asking.
  await until(() => app.pools.stats().db!.idle === 0, { what: 'the dead connections are gone' })
  await server.restart()
  const back = performance.now()
  const pace = startPace(t, () => plain(server))
  const { status } = await ask({ port, path: '/', agent })
  const took = performance.now() - back
  t.equal(status, 200)
  t.ok(pace.rounds < beyond, `a plain client was served ${pace.rounds} times before`)
  t.comment(`measured: the first request after the return took ${Math.round(took)} ms`)
}

t.test('a restart of PostgreSQL under 20 clients, with default options: nobody who waits is refused', async (t) => {
  const server = await startPostgres(t, { own: true })
  await t.test('all but those that held a connection are served', needsOwn(server), async (t) => {
    const strays = uncaught(t)
    const { app, port } = await serve(t, { backend: 'postgresql', url: server.url } as PoolOptions,
      (client) => (client as pg.Client).query('select 1'))
    const pool = app.pools.get('db')
    // From the first create that fails to the first one that works: what the pool itself knows of the outage.
    const failing = { since: Infinity, longest: 0 }
    pool.on('error', ({ phase }) => {
      if (phase === 'create') failing.since = Math.min(failing.since, performance.now())
    })
    pool.on('connect', () => {
      failing.longest = Math.max(failing.longest, performance.now() - failing.since)
      failing.since = Infinity
    })
    const agent = keepAliveAgent(t)
    const seen: Answer[] = []
    const load = { on: true }
    const clients = Promise.all(Array.from({ length: 20 }, async () => {
      while (load.on) seen.push(await ask({ port, path: '/', agent }))
    }))
    const served = async (more: number) => {
      const goal = seen.filter(({ status }) => status === 200).length + more
      await until(() => seen.filter(({ status }) => status === 200).length >= goal, { what: `${more} more are served` })
    }
    for (let round = 0; round < 3; round++) {
      await served(200)
      await server.stop()
      await server.restart()
    }
    await served(200)
    load.on = false
    await clients
    const stories = seen.filter(({ status }) => status !== 200).map(({ body }) => JSON.parse(body) as Story)
    const refused = stories.filter(({ held }) => !held)
    t.comment(`measured: ${seen.length} requests, ${stories.length} failed; creates failed for at most ${Math.round(failing.longest)} ms`)
    // On a machine that is busy the restart may take longer than that: then the circuit opens, as it should.
    if (failing.longest < 1000) t.same(refused.slice(0, 3), [], 'nobody who waited')
    t.ok(stories.length - refused.length <= 3 * 10, 'each connection was held by one request')
    t.same(strays, [])
  })
})
