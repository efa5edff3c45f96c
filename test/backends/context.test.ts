// BEGIN, COMMIT and ROLLBACK go out in the async context of whoever asked for them, so that they are in its trace. What
// the pool does by itself, behind a lease's end, goes out in nobody's; and nobody sees the context of another caller.
import { AsyncLocalStorage } from 'node:async_hooks'
import Fastify from 'fastify'
import LibSql from 'libsql'
import type { MongoClient } from 'mongodb'
import type { Connection } from 'mysql2/promise'
import pg from 'pg'
import t, { type Test } from 'tap'
import fastifyPool, { Pool, TargetPool, mongodb, mysql, postgresql, sqlite } from '../../index.js'
import { hold } from '../../lib/pool/pool.js'
import type { Connector } from '../../types/connector.js'
import type { PoolFace } from '../../types/pool.js'
import { startMongoDouble } from '../doubles/mongo-wire.js'
import { startMariadb, startPostgres } from '../support/services.js'

const store = new AsyncLocalStorage<string>()

interface Subject {
  readonly pool: PoolFace<never>
  /** Says a statement or two in a transaction. */
  work (connection: never): Promise<unknown>
  /** Calls `seen` whenever something goes to the driver of this connection. */
  spy (seen: () => void): Promise<void>
}

/** Replaces a method of a prototype by one that tells of its calls. */
function tap (t: Test, proto: object, name: string, seen: () => void): void {
  const real = Reflect.get(proto, name) as (...args: unknown[]) => unknown
  Object.defineProperty(proto, name, {
    configurable: true,
    writable: true,
    value (this: object, ...args: unknown[]) {
      seen()
      return real.apply(this, args)
    },
  })
  t.teardown(() => { Object.defineProperty(proto, name, { configurable: true, writable: true, value: real }) })
}

const face = <C>(connector: Connector<C>) => new Pool(connector, { max: 1 }) as unknown as PoolFace<never>

const subjects: Record<string, (t: Test) => Promise<Subject>> = {
  async postgresql (t) {
    const { url } = await startPostgres(t)
    return {
      pool: face(await postgresql({ url })),
      work: (client: pg.Client) => client.query('select 1'),
      spy: async (seen) => { tap(t, pg.Client.prototype, 'query', seen) },
    }
  },

  async mysql (t) {
    const { url } = await startMariadb(t)
    const pool = face(await mysql({ url }))
    return {
      pool,
      work: (connection: Connection) => connection.query('select 1'),
      spy: async (seen) => {
        let proto = await pool.use((connection: Connection & { connection: object }) => connection.connection)
        while (!Object.hasOwn(proto, 'addCommand')) proto = Object.getPrototypeOf(proto) as object
        tap(t, proto, 'addCommand', seen)
      },
    }
  },

  async sqlite (t) {
    const connector = await sqlite({ url: `${t.testdir()}/app.db`, driver: LibSql })
    return {
      pool: TargetPool.ofRoles(connector, { max: 2 }) as unknown as PoolFace<never>,
      work: async (db: LibSql.Database) => db.exec('create table if not exists a (b)'),
      spy: async (seen) => { tap(t, LibSql.prototype as object, 'exec', seen) },
    }
  },

  async mongodb (t) {
    const { url } = await startMongoDouble(t)
    const connector = await mongodb({ url, database: 'test', connection: { monitorCommands: true } })
    return {
      pool: face(connector),
      work: (db: import('mongodb').Db) => db.collection('a').insertOne({ b: 1 }),
      spy: async (seen) => {
        (connector.client as MongoClient).on('commandStarted', ({ commandName }) => {
          if (!['hello', 'ping', 'endSessions'].includes(commandName)) seen()
        })
      },
    }
  },
}

for (const [name, make] of Object.entries(subjects)) {
  t.test(name, async (t) => {
    const { pool, work, spy } = await make(t)
    t.teardown(() => pool.close())
    const seen: string[] = []
    await spy(() => { seen.push(store.getStore() ?? 'nobody') })
    await pool.transaction(work)
    seen.length = 0
    /** Who was seen since, one after the other. */
    const took = () => seen.splice(0).filter((who, at, all) => who !== all[at - 1])

    await Promise.all(['a', 'b'].map((who) => store.run(who, async () => {
      await pool.transaction(async (connection) => {
        t.equal(store.getStore(), who)
        await work(connection)
      })
      t.equal(store.getStore(), who)
    })))
    t.same(took().filter((who) => who !== 'nobody'), ['a', 'b'], 'one waited for the other')

    await store.run('c', async () => {
      await t.rejects(pool.transaction(async (connection) => {
        await work(connection)
        seen.length = 0
        throw new Error('mine')
      }), { message: 'mine' })
    })
    t.equal(took()[0], 'c', 'the rollback')

    // Begun by one, and ended by another.
    const lease = await store.run('d', () => pool.acquire())
    const held = await store.run('d', () => hold(lease, {}))
    await store.run('d', () => work(lease.connection))
    t.same(took().filter((who) => who !== 'nobody'), ['d'])
    await store.run('e', () => held.commit())
    t.same(took(), ['e'])
    lease.release()

    // The pool rolls back by itself.
    const lost = await store.run('f', () => pool.acquire())
    await store.run('f', () => hold(lost, {}))
    await store.run('f', () => work(lost.connection))
    seen.length = 0
    store.run('f', () => { lost.release() })
    await pool.use(() => {})
    t.same(took(), ['nobody'], 'who waits for it is not seen')
  })
}

t.test("a route's transaction is in its request's context, also where its connection was waited for", async (t) => {
  const { url } = await startPostgres(t)
  const app = Fastify()
  t.teardown(() => app.close())
  app.addHook('onRequest', (request, _reply, done) => { store.run(request.id, done) })
  await app.register(fastifyPool, { backend: 'postgresql', url, max: 1, lease: { transaction: true }, reset: 'none' })
  app.get('/', async (request) => {
    const { rows } = await (request as unknown as { db: pg.Client }).db.query('select 1 as one')
    return { ...rows[0], id: request.id, seen: store.getStore() }
  })
  await app.ready()
  const seen: string[] = []
  tap(t, pg.Client.prototype, 'query', () => { seen.push(store.getStore() ?? 'nobody') })
  const replies = await Promise.all([1, 2, 3].map(() => app.inject('/')))
  for (const reply of replies) t.equal(reply.json().seen, reply.json().id)
  const ids = replies.map((reply) => reply.json().id as string)
  t.same(seen, ids.flatMap((id) => [id, id, id]), 'BEGIN, the query, COMMIT')
})
