import type { AddressInfo } from 'node:net'
import { Readable } from 'node:stream'
import Fastify, { type FastifyInstance, type FastifyRequest } from 'fastify'
import { Redis } from 'ioredis'
import type { Db } from 'mongodb'
import t, { type Test } from 'tap'
import fastifyPool, { type PoolOptions } from '../../index.js'
import { startMongoDouble } from '../doubles/mongo-wire.js'
import { some } from '../support/full.js'
import { startProxy } from '../support/proxy.js'
import { startMongo, startRedis } from '../support/services.js'
import { until } from '../support/until.js'
import { keepAliveAgent } from './client.js'
import { type Plan, Storm, seeded, type When } from './storm.js'

const requests = some(4000, 10_000)
const width = 100
const max = 20
const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31))

/** Who uses a connection now. It is entered by the handler's own hand, so what the plugin believes does not matter. */
class Ownership {
  readonly faults: string[] = []
  readonly #owners = new Map<object, number>()

  enter (connection: object, id: number): void {
    const other = this.#owners.get(connection)
    if (other !== undefined) this.faults.push(`request ${id} got a connection that request ${other} still uses`)
    this.#owners.set(connection, id)
  }

  leave (connection: object, id: number): void {
    if (this.#owners.get(connection) === id) this.#owners.delete(connection)
    else this.faults.push(`the connection of request ${id} was given to request ${this.#owners.get(connection)} before it was done`)
  }

  fault (text: string): void { this.faults.push(text) }
}

const routes = ['/plain', '/onSend', '/manual', '/preHandler', '/stream', '/early', '/throws'] as const

function plansOf (random: () => number): Plan[] {
  const pick = <T>(from: readonly T[]): T => from[Math.floor(random() * from.length)]!
  return Array.from({ length: requests }, (_, id) => ({
    id,
    method: pick(['GET', 'POST']),
    path: pick(routes),
    body: 'x'.repeat(1 + Math.floor(random() * (random() < 0.1 ? 100_000 : 500))),
    // A third stay, or the pool would mostly see handlers that nobody waits for.
    when: pick<When>(['never', 'never', 'before', 'during', 'during', 'answer']),
  }))
}

/** What a handler does with its connection. `step` is a point at which its client may go away. */
type Work<C> = (connection: C, id: number, step: () => void) => Promise<void>

interface Setup<C> {
  readonly pool: PoolOptions
  readonly work: Work<C>
  readonly ownership: Ownership
  readonly sample?: () => Promise<void>
}

async function run<C extends object> (t: Test, { pool, work, ownership, sample }: Setup<C>) {
  t.comment(`seed ${seed}: set SEED to run it again`)
  const random = seeded(seed)
  const plans = plansOf(random)
  const departures =
    new Map(plans.filter(({ when }) => when === 'during').map(({ id }) => [id, 1 + Math.floor(random() * 4)]))
  const app = Fastify()
  await app.register(fastifyPool, { ...pool, acquireTimeout: 20_000 } as PoolOptions)
  app.addContentTypeParser('text/plain', { parseAs: 'string' }, (_request, body, done) => { done(null, body) })
  app.setErrorHandler((error: Error & { statusCode?: number, code?: string }, _request, reply) =>
    reply.code(error.statusCode ?? 500).send(error.code ?? error.message))

  const agent = keepAliveAgent(t, width)
  const storm = new Storm(() => (app.server.address() as AddressInfo).port, agent)
  const handled = async (request: FastifyRequest, connection: C) => {
    const id = Number(request.headers['x-id'])
    let steps = 0
    ownership.enter(connection, id)
    try {
      await work(connection, id, () => { if (++steps === departures.get(id)) storm.goAway(id) })
    } finally {
      ownership.leave(connection, id)
    }
    return String(id)
  }
  const leased = (request: FastifyRequest) => (request as FastifyRequest & { db: C }).db
  type Handler = (request: FastifyRequest) => Promise<unknown>
  const add = (url: (typeof routes)[number], pools: Record<string, unknown> | undefined, handler: Handler) => {
    app.route({ method: ['GET', 'POST'], url, ...pools && { config: { pools: { db: pools } } }, handler })
  }
  add('/plain', undefined, (request) => handled(request, leased(request)))
  add('/onSend', { release: 'onSend' }, (request) => handled(request, leased(request)))
  add('/manual', { acquire: 'manual' },
    async (request) => handled(request, (await request.acquire('db')).connection as C))
  add('/preHandler', { acquire: 'preHandler' }, (request) => handled(request, leased(request)))
  add('/throws', undefined, async (request) => {
    throw Object.assign(new Error('as asked'), { code: await handled(request, leased(request)), statusCode: 418 })
  })
  add('/early', undefined, async (request) => {
    const id = await handled(request, leased(request))
    request.lease('db').release()
    const { connection } = await request.acquire('db')
    return (await handled(request, connection as C)) && id
  })
  add('/stream', undefined, async (request) => {
    const connection = leased(request)
    return Readable.from((async function * () {
      yield ''
      const id = await handled(request, connection)
      yield id.slice(0, 1)
      yield id.slice(1)
    })())
  })

  await app.listen({ port: 0, host: '127.0.0.1' })
  t.teardown(() => app.close())
  const began = performance.now()
  const weather = { running: true }
  const sampling = (async () => {
    while (weather.running) {
      await sample?.()
      const due = performance.now() + 20
      await until(() => !weather.running || performance.now() > due)
    }
  })()
  await storm.run(plans, width)
  weather.running = false
  await sampling
  const took = performance.now() - began
  // Handlers whose client has gone may still run.
  await until(() => app.pools.stats().db!.used === 0, { what: 'everything is given back' })
  await check(t, app, storm, plans, ownership)
  return { app, took }
}

async function check (
  t: Test, app: FastifyInstance, storm: Storm, plans: readonly Plan[], ownership: Ownership
): Promise<void> {
  const { used, pending, creating, closing, idle, late, acquired, released, destroyed } = app.pools.stats().db!
  t.match({ used, pending, late, out: app.pools.holders().length }, { used: 0, pending: 0, late: 0, out: 0 },
    'nothing is leased, nobody waits')
  t.equal(acquired, released)
  t.ok(creating + idle + closing <= max)
  t.same(ownership.faults.slice(0, 5), [], 'no connection in two hands, no value of another request')

  const byId = new Map(plans.map((plan) => [plan.id, plan]))
  const wrong = storm.outcomes.filter(({ id, status, body, error }) => {
    const { when, path } = byId.get(id)!
    if (status !== undefined && status !== (path === '/throws' ? 418 : 200)) return true
    // Who leaves in the middle of an answer may have seen a part of it.
    return when === 'never' ? body !== String(id) || error !== undefined : !String(id).startsWith(body ?? '')
  })
  t.same(wrong.slice(0, 5), [], 'every client that stayed has its own answer')
  t.equal(storm.outcomes.length, requests)
  const answered = storm.outcomes.filter(({ body }) => body !== undefined).length
  t.ok(answered > requests / 4 && answered < requests * 0.8, `${answered} of ${requests} are answered`)
  t.comment(`${acquired} leases, destroyed ${JSON.stringify(Object.fromEntries(Object.entries(destroyed).filter(([, count]) => count > 0)))}`)
}

t.test(`${requests} requests with random aborts against Redis leave nothing leased, nothing open beyond max, and see nothing of each other`, async (t) => {
  const server = await startRedis(t)
  const name = `aborts-${process.pid}`
  const control = new Redis(server.port, server.host)
  t.teardown(() => { control.disconnect() })
  const ownership = new Ownership()
  const random = seeded(seed + 1)
  const watched = `${name}-watched`
  const expected = ['db=0 ', 'multi=-1 ', ' sub=0 ', 'psub=0 ', 'ssub=0 ']

  const work: Work<Redis> = async (redis, id, step) => {
    step()
    // An open MULTI would answer QUEUED; a watched key makes EXEC fail, since the INCR touches it.
    const answers =
      await Promise.all([redis.client('INFO'), redis.incr(watched), redis.multi().echo(String(id)).exec()])
    const info = `${String(answers[0])} `
    for (const field of expected) if (!info.includes(field)) ownership.fault(`request ${id} finds ${field} not true: ${info}`)
    if (typeof answers[1] !== 'number') ownership.fault(`request ${id} got ${String(answers[1])} for INCR`)
    if (answers[2]?.[0]?.[1] !== String(id)) ownership.fault(`request ${id} got ${JSON.stringify(answers[2])} for MULTI`)
    if (redis.listenerCount('message') > 0) ownership.fault(`request ${id} finds a listener`)
    step()
    // Its own mark on its own connection: whoever else spoke on it would have written over it.
    const mark = `${name}-${/\bid=(\d+)/.exec(info)?.[1]}`
    await redis.set(mark, id)
    if (random() < 0.2) await redis.blpop(`${name}-nothing`, 0.005)
    step()
    const [echo, read] = await Promise.all([redis.echo(`of ${id}`), redis.get(mark)])
    if (echo !== `of ${id}`) ownership.fault(`request ${id} got the answer ${echo}`)
    if (read !== String(id)) ownership.fault(`request ${id} finds the mark of ${read} on its connection`)
    step()
    // What it leaves behind, some of it not even waited for.
    const left = random()
    if (left < 0.10) await redis.select(1 + Math.floor(random() * 8))
    else if (left < 0.20) await redis.watch(watched)
    else if (left < 0.30) {
      await redis.multi({ pipeline: false })
      await redis.set(`${name}-never`, id)
    } else if (left < 0.40) {
      redis.on('message', () => { ownership.fault(`request ${id} is still told`) })
      await redis.subscribe(`${name}-channel-${id}`)
    } else if (left < 0.45) await redis.psubscribe(`${name}-*`)
    else if (left < 0.50) {
      redis.get(mark).catch((error: Error) => {
        // Its connection was destroyed, or will be before this is answered: nobody needs to know.
        if (!/^Connection is closed|^Stream isn't writeable/.test(error.message)) ownership.fault(error.message)
      })
    } else if (left < 0.51) await redis.client('SETNAME', `${name}-renamed`)
  }

  const counts: number[] = []
  const sample = async () => {
    counts.push(String(await control.client('LIST')).split('\n').filter((line) => line.includes(` name=${name}`))
      .length)
    // A value for those who are wrongly subscribed.
    await control.publish(`${name}-x`, 'to nobody')
  }
  const pool: PoolOptions = { backend: 'redis', url: server.url, max, connection: { connectionName: name } }
  const { took } = await run(t, { pool, work, ownership, sample })
  t.equal(await control.exists(`${name}-never`), 0, 'no MULTI that was left was ever executed')
  t.ok(counts.length > 20, `${counts.length} samples`)
  t.ok(Math.max(...counts) <= max + 1,
    `the server counts at most ${Math.max(...counts)} connections, the shared client's among them`)
  t.comment(`Redis: ${Math.round(took)} ms, ${counts.length} samples, at most ${Math.max(...counts)} connections`)
})

t.test(`${requests} requests with random aborts against MongoDB leave nothing leased, nothing open beyond max, and see nothing of each other`, async (t) => {
  const real = await startMongo(t)
  const server = real ?? (await startMongoDouble(t)).primary!
  t.comment(`the server is ${real?.kind ?? 'the double: there is neither a mongod nor FerretDB'}`)
  const proxy = await startProxy(t, server)
  const ownership = new Ownership()
  const random = seeded(seed + 1)

  const work: Work<Db> = async (db, id, step) => {
    step()
    // Handlers of one pool share sockets: what they must never share is an answer.
    const values = db.collection<{ _id: string, by: number }>(`values${id % 4}`)
    const _id = `of ${id}`
    const write = random() < 0.1
    if (write) {
      // A second lease of the same request comes here again.
      await values.updateOne({ _id }, { $set: { by: id } }, { upsert: true })
      step()
      const found = await values.findOne({ _id })
      if (found?.by !== id) ownership.fault(`request ${id} reads ${JSON.stringify(found)}`)
    } else {
      const echo = await db.command({ ping: 1, comment: id })
      if (echo.ok !== 1) ownership.fault(`request ${id} gets ${JSON.stringify(echo)}`)
      step()
      const found = id % 2 === 0 ? null : await values.findOne({ _id })
      if (found !== null && found.by !== id) ownership.fault(`request ${id} reads ${JSON.stringify(found)}`)
    }
    step()
    if (db.databaseName !== 'aborts') ownership.fault(`request ${id} has the database ${db.databaseName}`)
    step()
  }

  const pool: PoolOptions = {
    backend: 'mongodb', url: `mongodb://${proxy.host}:${proxy.port}/?directConnection=true`, database: 'aborts', max,
  }
  const { took } = await run(t, { pool, work, ownership })
  const { peak } = proxy.connections
  // One that listens for changes, and one that measures round trips.
  t.ok(peak <= max + 2, `at most ${peak} connections, the driver's monitors among them`)
  t.comment(`${real?.kind ?? 'double'}: ${Math.round(took)} ms, at most ${peak} connections`)
})
