import Fastify, { type FastifyRequest } from 'fastify'
import type { Redis } from 'ioredis'
import type { Db } from 'mongodb'
import type { Connection } from 'mysql2/promise'
import type pg from 'pg'
import t from 'tap'
import fastifyPool, { type PoolOptions } from '../../index.js'
import { listen, logLines, uncaught } from '../support/app.js'
import { startProxy } from '../support/proxy.js'
import { startMariadb, startMongo, startPostgres, startRedis } from '../support/services.js'
import { until } from '../support/until.js'
import { ask, keepAliveAgent } from './client.js'

// A partition: what is said to the database, and its answers, are lost without a word, and nobody is told. The database
// is well again, and reached again, but the connections that were in use wait for answers that will never come.

interface Subject {
  readonly backend: 'postgresql' | 'mysql' | 'redis' | 'mongodb'
  readonly server: { readonly url: string, readonly host: string, readonly port: number } | undefined
  query (connection: never): Promise<unknown>
  /** Its connections share a client, so the call itself ends by the driver's own limits: some time later. */
  readonly connection?: object
}

const mongo = await startMongo(t)
const subjects: Subject[] = [
  { backend: 'postgresql', server: await startPostgres(t), query: (db: pg.Client) => db.query('select 1') },
  { backend: 'mysql', server: await startMariadb(t), query: (db: Connection) => db.query('select 1') },
  { backend: 'redis', server: await startRedis(t), query: (db: Redis) => db.ping() },
  { backend: 'mongodb', server: mongo, query: (db: Db) => db.command({ ping: 1 }), connection: { socketTimeoutMS: 2000 } },
]
const max = 5

for (const { backend, server, query, connection = {} } of subjects) {
  const skip = server === undefined && `there is no ${backend} here`
  t.test(`connections whose answers were lost are held for holdTimeout: ${backend}`, { skip }, async (t) => {
    const strays = uncaught(t)
    const proxy = await startProxy(t, server!)
    const url = new URL(server!.url)
    url.host = `${proxy.host}:${proxy.port}`
    const { stream, lines } = logLines<{ level: number, msg: string, event?: string, id?: string, ids?: string[] }>()
    const app = Fastify({ logger: { level: 'warn', stream } })
    const options = { backend, url: url.href, connection, max, min: max, holdTimeout: 1500, validateAfter: 60_000 }
    await app.register(fastifyPool, options as PoolOptions)
    app.get('/', async (request) => {
      await query((request as FastifyRequest & { db: never }).db)
      return 'served'
    })
    const port = await listen(t, app)
    const agent = keepAliveAgent(t)
    const stats = () => app.pools.stats().db!
    const all = () => Promise.all(Array.from({ length: max }, () => ask({ port, path: '/', agent })))
    t.same((await all()).map(({ status }) => status), Array(max).fill(200))
    // Not those that are still being cleaned: they have another deadline.
    await until(() => stats().idle === max)

    proxy.blackHole()
    const lost = all()
    await until(() => app.pools.holders().filter(({ heldFor }) => heldFor > 200).length === max)
    await proxy.heal()
    t.equal(stats().used, max, 'the database is reached again, and all connections are held')

    t.same((await all()).map(({ status }) => status), Array(max).fill(200))
    t.match(stats(), { destroyed: { overdue: max, error: 0 } })
    const statuses = (await lost).map(({ status }) => status)
    // MongoDB's driver may have tried one again by itself.
    if (backend !== 'mongodb') t.same(statuses, Array(max).fill(500), "the driver's calls have rejected")
    // The first one has a line of its own, and the others have few together: each is named once.
    for (const event of ['pool.hold', 'pool.overdue']) {
      const all = () => lines.filter((line) => line.event === event)
      const named = () => all().flatMap(({ id, ids }) => ids ?? [id])
      await until(() => named().length >= max, { what: `${event} of all` })
      t.equal(new Set(named()).size, max, `${event} names ${named().join()}`)
      t.ok(all().length <= 3 && all().every(({ level }) => level === 40))
    }
    t.match(await app.pools.health(), { status: 'up' })
    t.same(strays, [])
  })
}
