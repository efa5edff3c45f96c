import Fastify from 'fastify'
import type { Db } from 'mongodb'
import t, { type Test } from 'tap'
import fastifyPool, { type PoolOptions } from '../../index.js'
import type { PoolFace } from '../../types/pool.js'
import { type MongoDouble, startMongoDouble } from '../doubles/mongo-wire.js'
import { listen } from '../support/app.js'
import { startPace } from '../support/order.js'
import { startMongoReplicaSet } from '../support/topologies.js'
import { until } from '../support/until.js'
import { ask, keepAliveAgent } from './client.js'

/** How long the double takes to elect, in ms. */
const election = 700
/** So many rounds of `startPace` the pool may add to an election: 1 s of them where nothing is slow. */
const beyond = 20

/** A replica set that a test can do to what a night does. */
interface Subject {
  readonly url: string
  /** The primary makes room for another one. */
  stepDown (): Promise<void>
  /** Cuts the primary off, with all its sockets. */
  kill (): Promise<void>
  /** Resolves when there is one. */
  elected (): Promise<unknown>
  /** Resolves when all members hear and say what they should: from then on a test may begin. */
  settled (): Promise<unknown>
  readonly double?: MongoDouble
}

interface Seen {
  readonly status: number
  readonly held: boolean
  readonly error: { readonly code?: string | number, readonly name: string } | undefined
  readonly sent: number
  readonly at: number
}

async function serve (
  t: Test, subject: Subject, connection: Record<string, unknown> = {}, pool: Partial<PoolOptions> = {}
) {
  const app = Fastify()
  const held = new WeakSet<object>()
  await app.register(fastifyPool, {
    backend: 'mongodb', url: subject.url, database: 'failover', max: 10, acquireTimeout: 5000, connection, ...pool,
  } as PoolOptions)
  app.setErrorHandler((error: Error & { statusCode?: number, code?: string | number }, request, reply) =>
    reply.code(error.statusCode ?? 500)
      .send({ held: held.has(request), error: { code: error.code, name: error.name } }))
  app.post('/', async (request) => {
    held.add(request)
    await (request as unknown as { db: Db }).db.collection('lines').insertOne({ at: Date.now() })
    return {}
  })
  const port = await listen(t, app)
  return { app, port }
}

/** Clients that write again and again, until the test ends. */
function startWriting (t: Test, port: number, writers = 8) {
  const agent = keepAliveAgent(t)
  const seen: Seen[] = []
  const load = { on: true }
  const clients = Promise.all(Array.from({ length: writers }, async () => {
    while (load.on) {
      const sent = performance.now()
      const { status, body } = await ask({ port, path: '/', method: 'POST', agent })
      const { held = true, error } = JSON.parse(body) as Partial<Seen>
      seen.push({ status, held, error, sent, at: performance.now() })
    }
  }))
  const stop = async () => {
    load.on = false
    await clients
  }
  t.teardown(stop)
  return { seen, stop }
}

const written = (seen: readonly Seen[], since = 0) => seen.filter(({ status, sent }) => status === 200 && sent >= since)

async function failover (t: Test, subject: Subject, how: 'stepDown' | 'kill', connection: Record<string, unknown>) {
  const { app, port } = await serve(t, subject, connection)
  await subject.settled()
  const { seen, stop } = startWriting(t, port)
  await until(() => written(seen).length > 50, { what: 'writes are answered' })
  t.same(seen.filter(({ status }) => status !== 200), [], 'nothing fails before')
  // Else the test would not know what was under way; and an operation of driver 7.8 that is about to write when its
  // socket dies may wait for ever.
  const inFlight = subject.double?.hold('insert')
  await inFlight?.arrived(8)
  const began = performance.now()
  const done = subject[how]()
  // Of a member that is gone they are gone; of one that is there they are answered by what it is by then.
  inFlight?.release()
  await done
  const gone = performance.now()
  const pace = startPace(t, () => subject.elected())
  const elected = subject.elected().then(() => performance.now())
  // Behind it, not one that had been answered before.
  const first =
    await until(() => written(seen, gone)[0] ?? seen.find(({ status, at }) => status === 200 && at > gone),
      { timeout: 30_000, what: 'a write is answered again' })
  t.ok(pace.rounds < beyond, `${pace.rounds} looks at the new primary before the first write`)
  t.comment(`measured: ${how}: the first successful write ${Math.round(first.at - began)} ms after it, ${Math.round(await elected - began)} ms of which were the election`)
  const back = performance.now()
  await until(() => written(seen, back).length > 100, { what: 'writes are answered' })
  t.same(seen.filter(({ status, sent }) => status !== 200 && sent > back), [], 'all of them')
  await stop()
  const failed = seen.filter(({ status }) => status !== 200)
  const kinds = [...new Set(failed.map(({ status, error }) => `${status} ${error!.name} ${error!.code ?? ''}`))]
  t.comment(`${failed.length} of ${seen.length} writes failed: ${kinds.join(', ')}`)
  t.same(failed.filter(({ held, status, error }) => held && (status !== 500 || !error!.name.startsWith('Mongo'))), [],
    "who held a connection got the driver's own error")
  t.same(failed.filter(({ held, status }) => !held && status !== 503), [], 'who waited got 503, or nothing but a write')
  t.match(app.pools.stats().db, { used: 0, pending: 0, late: 0, circuit: 'closed' })
  t.equal((await app.pools.health()).status, 'up')
  return { app, failed, seen }
}

async function ridesThrough (t: Test, subject: Subject, how: 'stepDown' | 'kill' = 'stepDown') {
  const { app } = await serve(t, subject, { retryWrites: false, retryReads: false })
  const pool = app.pools.get('db') as unknown as PoolFace<Db>
  await subject.settled()
  let runs = 0
  const load = { on: true, done: 0 }
  const writers = Promise.all(Array.from({ length: 8 }, async () => {
    while (load.on) {
      await pool.use((db) => {
        runs++
        return db.collection('lines').insertOne({ at: Date.now() })
      }, { retry: 3 })
      load.done++
    }
  }))
  await until(() => load.done > 50, { what: 'writes are done' })
  const inFlight = subject.double?.hold('insert')
  await inFlight?.arrived(8)
  const done = subject[how]()
  inFlight?.release()
  await done
  await subject.elected()
  const after = load.done
  await until(() => load.done > after + 100, { what: 'writes are done by the new primary' })
  load.on = false
  await t.resolves(writers, 'no error has reached a caller')
  t.ok(runs > load.done, `${runs - load.done} runs were done again`)
  t.match(app.pools.stats().db, { used: 0, pending: 0, late: 0 })
}

async function startDouble (t: Test): Promise<Subject> {
  const double = await startMongoDouble(t, { members: 3, election })
  return {
    url: double.url,
    double,
    stepDown: async () => { double.stepDown() },
    kill: () => double.primary!.kill(),
    elected: () => until(() => double.primary),
    // A driver listens some time after it has connected.
    settled: () => until(() => double.connections.listening >= 3, { what: 'the driver listens to all members' }),
  }
}

t.test('on the double, a step-down without retries of the driver: writes go to the new primary', async (t) => {
  const { failed } = await failover(t, await startDouble(t), 'stepDown', { retryWrites: false })
  t.ok(failed.some(({ held }) => held), 'those that were under way failed')
})

t.test('on the double, the primary is killed, without retries of the driver: writes go to the new primary', async (t) => {
  const { failed } = await failover(t, await startDouble(t), 'kill', { retryWrites: false })
  t.ok(failed.filter(({ held }) => held).length >= 8, 'those that were under way failed')
})

t.test('on the double, as the driver comes (it sends a write again): a step-down is survived by all writes', async (t) => {
  const { failed, seen } = await failover(t, await startDouble(t), 'stepDown', {})
  t.same(failed, [], `of ${seen.length}`)
})

t.test('on the double, as the driver comes, the primary is killed: writes go to the new primary', async (t) => {
  // It does not send those again whose sockets it had given up before it saw them die.
  await failover(t, await startDouble(t), 'kill', {})
})

t.test('on the double: a lease that was out when the primary was killed works again when there is another one, and is given back as it should', async (t) => {
  const subject = await startDouble(t)
  const { app } = await serve(t, subject, { retryWrites: false, retryReads: false })
  const pool = app.pools.get('db') as unknown as PoolFace<Db>
  const errors: unknown[] = []
  pool.on('error', ({ error }) => { errors.push(error) })
  await subject.settled()
  const lease = await pool.acquire()
  const hold = subject.double!.hold('find')
  const find = t.rejects(lease.connection.collection('lines').findOne({}), { name: 'MongoNetworkError' })
  await hold.reached
  await subject.kill()
  await find
  hold.release()
  t.match(await lease.connection.collection('lines').insertOne({}), { acknowledged: true },
    'the driver waits for the election by itself')
  lease.release()
  await until(() => pool.stats().used === 0)
  t.match(await pool.use((db) => db.command({ ping: 1 })), { ok: 1 })
  t.match(pool.stats(), { used: 0, idle: 1, destroyed: { error: 1 } },
    'a connection that was dead once is not lent again')
  t.ok(errors.length <= 1, 'its death is told once')
})

t.test('on the double: use with retry rides through a step-down', async (t) => ridesThrough(t, await startDouble(t)))
t.test('on the double: use with retry rides through the death of the primary',
  async (t) => ridesThrough(t, await startDouble(t), 'kill'))

t.test('on the double: where no member is left requests are told so at once, and served again soon after the return', async (t) => {
  const subject = await startDouble(t)
  const double = subject.double!
  const { app, port } =
    await serve(t, subject, { retryWrites: false, serverSelectionTimeoutMS: 500 }, { acquireTimeout: 1500 })
  await subject.settled()
  const { seen, stop } = startWriting(t, port)
  await until(() => written(seen).length > 50)
  // An operation of driver 7.8 that is about to write when its socket dies may wait for ever.
  const inFlight = double.hold('insert')
  await inFlight.arrived(8)
  await Promise.all(double.members.map((member) => member.kill()))
  inFlight.release()
  await until(() => app.pools.stats().db!.circuit === 'open', { what: 'the circuit opens' })
  const open = performance.now()
  await until(() => seen.filter(({ sent }) => sent > open).length > 20)
  t.same(seen.filter(({ sent, status, error }) => sent > open &&
    (status !== 503 || error!.code !== 'FST_POOL_CIRCUIT_OPEN')).slice(0, 3), [])
  for (const member of double.members) await member.restart()
  double.elect(0)
  const back = performance.now()
  const pace = startPace(t, () => subject.elected())
  const first = await until(() => written(seen, back)[0], { timeout: 30_000, what: 'a write is answered again' })
  t.ok(pace.rounds < beyond, `${pace.rounds} looks at the new primary before the first write`)
  t.comment(`measured: all members away: the first successful write ${Math.round(first.at - back)} ms after their return`)
  await stop()
  t.match(app.pools.stats().db, { used: 0, pending: 0, late: 0 })
})

const set = await startMongoReplicaSet(t)
const real: Subject | undefined = set && {
  url: set.url,
  stepDown: () => set.stepDown(),
  kill: async () => (await set.primary()).kill(),
  elected: () => set.primary(),
  settled: () => set.primary(),
}
const skip = real === undefined && 'no mongod is here, and FerretDB has no replica sets'

t.test('on a real replica set: a step-down', { skip }, async (t) => {
  await failover(t, real!, 'stepDown', { retryWrites: false })
})
t.test('on a real replica set: use with retry rides through a step-down', { skip }, (t) => ridesThrough(t, real!))
t.test('on a real replica set: kill -9 of the primary', { skip }, async (t) => {
  await failover(t, real!, 'kill', { retryWrites: false })
})
