import { sql as drizzleSql } from 'drizzle-orm'
import { drizzle as drizzlePg } from 'drizzle-orm/node-postgres'
import { integer, pgTable } from 'drizzle-orm/pg-core'
import Fastify, { type FastifyInstance, type FastifyRequest } from 'fastify'
import type { Knex } from 'knex'
import { sql as kyselySql, type Kysely } from 'kysely'
import { join } from 'node:path'
import type { Client } from 'pg'
import t, { type Test } from 'tap'
import fastifyPool from '../../index.js'
import type { PoolFace as Pool, PoolOptions } from '../../index.js'
import { drizzle } from '../../lib/wrap/drizzle.js'
import { knex } from '../../lib/wrap/knex.js'
import { kysely } from '../../lib/wrap/kysely.js'
import { startMariadb, startPostgres } from '../support/services.js'
import { gate } from '../support/stage.js'

// Query builders over a leased connection: their own transactions are the pool's, one after the other, and a commit of
// theirs never lies.

/** What the tests ask of a query builder. `T`: its database, or a transaction of it. */
interface Library<T> {
  readonly wrap: PoolOptions['wrap']
  add (db: T, n: number): Promise<unknown>
  list (db: T): Promise<number[]>
  transaction<R> (db: T, fn: (tx: T) => Promise<R>, options?: { isolationLevel: 'serializable' }): Promise<R>
  /** A savepoint in a transaction. */
  nested (tx: T, fn: (tx: T) => Promise<void>): Promise<void>
  run (db: T, text: string): Promise<unknown>
}

const numbers = (rows: unknown): number[] => (rows as Array<{ n: number }>).map(({ n }) => n).sort()

const withKysely: Library<Kysely<unknown>> = {
  wrap: kysely(),
  add: (db, n) => kyselySql`insert into numbers values (${n})`.execute(db),
  list: async (db) => numbers((await kyselySql`select n from numbers`.execute(db)).rows),
  transaction: (db, fn, options) => {
    const builder = db.transaction()
    return (options === undefined ? builder : builder.setIsolationLevel(options.isolationLevel)).execute(fn)
  },
  nested: async (tx, fn) => {
    await kyselySql`savepoint a`.execute(tx)
    try {
      await fn(tx)
    } catch {
      await kyselySql`rollback to savepoint a`.execute(tx)
    }
  },
  run: (db, text) => kyselySql.raw(text).execute(db),
}

interface Drizzle {
  execute? (query: unknown): Promise<unknown>
  run? (query: unknown): Promise<unknown>
  all? (query: unknown): Promise<unknown>
  transaction<R> (fn: (tx: Drizzle) => Promise<R>, options?: unknown): Promise<R>
}
const withDrizzle: Library<Drizzle> = {
  wrap: drizzle(),
  add: (db, n) => (db.execute ?? db.run)!.call(db, drizzleSql`insert into numbers values (${n})`),
  list: async (db) => {
    const query = drizzleSql`select n from numbers`
    if (db.all !== undefined) return numbers((await db.all(query) as unknown[][]).map(([n]) => ({ n })))
    const result = await db.execute!(query) as { rows: unknown } | [unknown]
    return numbers(Array.isArray(result) ? result[0] : result.rows)
  },
  transaction: (db, fn, options) => db.transaction(fn, options),
  nested: (tx, fn) => tx.transaction(fn).catch(() => {}),
  run: (db, text) => (db.execute ?? db.run)!.call(db, drizzleSql.raw(text)),
}

const withKnex: Library<Knex> = {
  wrap: knex(),
  add: (db, n) => db.raw('insert into numbers values (?)', [n]),
  list: async (db) => numbers(await db('numbers').select('n')),
  transaction: <R>(db: Knex, fn: (tx: Knex) => Promise<R>, options?: { isolationLevel: 'serializable' }) =>
    db.transaction((trx) => fn(trx), options) as Promise<R>,
  nested: (tx, fn) => (tx as Knex.Transaction).transaction((trx) => fn(trx)).then(() => {}, () => {}),
  run: async (db, text) => { await db.raw(text) },
}

const libraries = { Kysely: withKysely, Drizzle: withDrizzle, Knex: withKnex } as unknown as Record<string,
  Library<unknown>>

const create = 'create table numbers (n int unique)'

interface Database { readonly name: string, readonly isolation: boolean, start (t: Test): Promise<PoolOptions> }
const databases: readonly Database[] = [
  {
    name: 'PostgreSQL',
    isolation: true,
    start: async (t) => ({ backend: 'postgresql', url: (await startPostgres(t, { own: true })).url }),
  },
  {
    name: 'MariaDB',
    isolation: true,
    start: async (t) => ({ backend: 'mysql', url: (await startMariadb(t)).url }),
  },
  { name: 'SQLite', isolation: false, start: async (t) => ({ backend: 'sqlite', url: join(t.testdir(), 'orm.db') }) },
]

interface Scene {
  readonly app: FastifyInstance
  readonly library: Library<unknown>
  db (request: FastifyRequest): unknown
  stored (): Promise<number[]>
}

/** An app whose one connection is wrapped, and another pool on the same database that tells what is stored. */
async function set (t: Test, options: PoolOptions, library: Library<unknown>): Promise<Scene> {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(fastifyPool, {
    pools: {
      db: { ...options, max: 1, wrap: library.wrap } as PoolOptions,
      other: { ...options, max: 1, wrap: library.wrap } as PoolOptions,
    },
    lease: { acquire: 'manual' },
  })
  const other = <R>(fn: (db: unknown) => Promise<R>) => app.pools.get('other').use(fn)
  await other(async (db) => {
    await library.run(db, 'drop table if exists numbers')
    await library.run(db, create)
  })
  return {
    app,
    library,
    db: (request) => (request as unknown as { db: unknown }).db,
    stored: () => other((db) => library.list(db)),
  }
}

const named = { config: { pools: { db: { acquire: 'onRequest' } } } } as const
const inTransaction = { config: { pools: { db: { acquire: 'onRequest', transaction: true } } } } as const

for (const { name, isolation, start } of databases) {
  t.test(name, async (t) => {
    const options = await start(t)
    for (const [libraryName, library] of Object.entries(libraries)) {
      await t.test(libraryName, async (t) => {
        await t.test('two transactions side by side: the one that resolved is stored, the one that rejected is not', async (t) => {
          const { app, db, stored } = await set(t, options, library)
          app.post('/', named, async (request) => {
            const entered = gate()
            const settled = await Promise.allSettled([
              library.transaction(db(request), async (tx) => {
                entered.open()
                await library.add(tx, 1)
                // The other one has asked for its turn by then, and writes only when this one is over.
                await new Promise((resolve) => setImmediate(resolve))
                t.same(await library.list(tx), [1])
                throw new Error('back')
              }),
              entered.opened.then(() => library.transaction(db(request), async (tx) => {
                await library.add(tx, 2)
                return 'there'
              })),
            ])
            return settled.map(({ status }) => status)
          })
          t.same((await app.inject({ method: 'POST', url: '/' })).json(), ['rejected', 'fulfilled'])
          t.same(await stored(), [2])
        })

        await t.test('ten side by side, every second of which fails', async (t) => {
          const { app, db, stored } = await set(t, options, library)
          app.post('/', named, async (request) => {
            const tens = Array.from({ length: 10 }, (_, n) => n)
            const settled = await Promise.allSettled(tens.map((n) => library.transaction(db(request), async (tx) => {
              await library.add(tx, n)
              if (n % 2 === 0) throw new Error('back')
            })))
            return settled.map(({ status }) => status)
          })
          t.same((await app.inject({ method: 'POST', url: '/' })).json(),
            Array.from({ length: 10 }, (_, n) => n % 2 === 0 ? 'rejected' : 'fulfilled'))
          t.same(await stored(), [1, 3, 5, 7, 9])
        })

        await t.test('beside request.transaction they wait for each other, too', async (t) => {
          const { app, db, stored } = await set(t, options, library)
          app.post('/', named, async (request) => {
            const settled = await Promise.allSettled([
              request.transaction('db' as never, async () => {
                await library.add(db(request), 1)
                throw new Error('back')
              }),
              library.transaction(db(request), (tx) => library.add(tx, 2)),
              request.transaction('db' as never, () => library.add(db(request), 3)),
            ])
            return settled.map(({ status }) => status)
          })
          t.same((await app.inject({ method: 'POST', url: '/' })).json(), ['rejected', 'fulfilled', 'fulfilled'])
          t.same(await stored(), [2, 3])
        })

        await t.test("within a route's transaction it is refused, and the route is rolled back", async (t) => {
          const { app, db, stored } = await set(t, options, library)
          app.post('/', inTransaction, async (request) => {
            await library.add(db(request), 1)
            return await library.transaction(db(request), (tx) => library.add(tx, 2))
          })
          app.post('/caught', inTransaction, async (request) => {
            await library.add(db(request), 3)
            await t.rejects(library.transaction(db(request), (tx) => library.add(tx, 4)),
              { code: 'FST_POOL_NOT_SUPPORTED' })
            return 'well'
          })
          const refused = await app.inject({ method: 'POST', url: '/' })
          t.equal(refused.statusCode, 500)
          t.match(refused.json(), { code: 'FST_POOL_NOT_SUPPORTED', message: /request\.transaction\('db', fn\)/ })
          t.same(await stored(), [])
          t.equal((await app.inject({ method: 'POST', url: '/caught' })).statusCode, 200)
          t.same(await stored(), [3], 'a handler that goes on without it keeps its own transaction')
        })

        await t.test('within request.transaction it is refused', async (t) => {
          const { app, db, stored } = await set(t, options, library)
          app.post('/', named, async (request) => {
            await request.transaction('db' as never, () => library.transaction(db(request), (tx) => library.add(tx, 1)))
          })
          t.match((await app.inject({ method: 'POST', url: '/' })).json(), { code: 'FST_POOL_NOT_SUPPORTED' })
          t.same(await stored(), [])
        })

        await t.test('savepoints in it are its own', async (t) => {
          const { app, db, stored } = await set(t, options, library)
          app.post('/', named, async (request) => {
            await library.transaction(db(request), async (tx) => {
              await library.add(tx, 1)
              await library.nested(tx, async (inner) => {
                await library.add(inner, 2)
                throw new Error('back')
              })
              await library.nested(tx, async (inner) => { await library.add(inner, 3) })
            })
          })
          t.equal((await app.inject({ method: 'POST', url: '/' })).statusCode, 200)
          t.same(await stored(), [1, 3])
        })

        await t.test('where its commit fails, it rejects, and the next one is not harmed', async (t) => {
          const { app, db, stored } = await set(t, options, library)
          app.post('/', named, async (request) => {
            const settled = await Promise.allSettled([
              library.transaction(db(request), async (tx) => {
                await library.add(tx, 1)
                // Whoever writes that ends it: there is nothing left to commit, and what comes after must not be taken
                // for a part of it.
                await library.run(tx, 'rollback')
              }),
              library.transaction(db(request), (tx) => library.add(tx, 2)),
            ])
            return settled.map(({ status }) => status)
          })
          t.same((await app.inject({ method: 'POST', url: '/' })).json(), ['rejected', 'fulfilled'])
          t.same(await stored(), [2])
        })

        await t.test('a COMMIT or ROLLBACK of its user ends it, and no write behind it is taken for a part of it', async (t) => {
          const { app, db, stored } = await set(t, options, library)
          app.post('/:text', named, async (request) => {
            const { text } = request.params as { text: string }
            const [ended, behind] = [gate(), gate()]
            const settled = await Promise.allSettled([
              library.transaction(db(request), async (tx) => {
                await library.run(tx, text)
                ended.open()
                await new Promise((resolve) => setImmediate(resolve))
                await library.add(tx, 1)
                behind.open()
              }),
              ended.opened.then(() => library.transaction(db(request), async () => {
                await behind.opened
                throw new Error('back')
              })),
            ])
            return settled.map((one) => one.status === 'rejected'
              ? (one.reason as { code?: string }).code ?? (one.reason as Error).message
              : 'well')
          })
          for (const text of ['commit', 'rollback']) {
            t.same((await app.inject({ method: 'POST', url: `/${text}` })).json(),
              ['FST_POOL_TRANSACTION_ENDED', 'back'], text)
            t.same(await stored(), [1], 'it stands by itself')
            await app.pools.get('other').use((db) => library.run(db, 'delete from numbers'))
          }
        })

        if (isolation) {
          await t.test('its isolation level is the transaction\'s', async (t) => {
            const { app, db, stored } = await set(t, options, library)
            app.post('/', named, async (request) => {
              await Promise.all([1,
                2].map((n) => library.transaction(db(request), (tx) => library.add(tx, n), { isolationLevel: 'serializable' })))
            })
            t.equal((await app.inject({ method: 'POST', url: '/' })).statusCode, 200)
            t.same(await stored(), [1, 2])
          })
        }

        await t.test('lease.raw is the driver\'s own, and plain queries go to the same connection', async (t) => {
          const { app } = await set(t, options, library)
          await app.pools.get('db').use(async (db, lease) => {
            t.equal(lease.connection, db)
            t.not(lease.raw, db)
            await library.add(db, 1)
            const { prepare, query } =
              lease.raw as {
                prepare? (text: string): { all (): unknown }
                query? (text: string): Promise<{ rows?: unknown } & unknown[]>
              }
            const result = query === undefined
              ? prepare!.call(lease.raw, 'select n from numbers').all()
              : await query.call(lease.raw, 'select n from numbers')
            t.same(numbers((result as { rows?: unknown })
              .rows ?? (Array.isArray((result as unknown[])[0]) ? (result as unknown[])[0] : result)), [1])
          })
        })
      })
    }
  })
}

t.test('on a backend that it does not know an adapter says so at register', async (t) => {
  const url = join(t.testdir(), 'other.db')
  const connector = { system: 'ldap', create: async () => ({}), destroy () {} }
  for (const [name, { wrap }] of Object.entries(libraries)) {
    const app = Fastify()
    await t.rejects(async () => { await app.register(fastifyPool, { connector, wrap } as never) },
      { code: 'FST_POOL_BAD_OPTIONS', message: /pool 'db': option wrap is .*ldap/ }, name)
    await app.close()
  }
  const app = Fastify()
  await app.register(fastifyPool,
    { backend: 'sqlite', url, wrap: drizzle({ drizzle: drizzlePg as never }) } as PoolOptions)
  await app.close()
})

t.test("what Drizzle's transactions can not have here is refused by name", async (t) => {
  const { app, db } = await set(t, { backend: 'sqlite', url: join(t.testdir(), 'refused.db') }, libraries.Drizzle!)
  app.post('/', named, async (request) => (db(request) as Drizzle).transaction(async () => {}, { deferrable: true }))
  t.match((await app.inject({ method: 'POST', url: '/' })).json(),
    { code: 'FST_POOL_NOT_SUPPORTED', message: /deferrable/ })
})

t.test('whatever is thrown in a transaction of a library comes out as it is, and rolls back', async (t) => {
  for (const [name, library] of Object.entries(libraries)) {
    // Knex makes an error of its own of what is none.
    if (name === 'Knex') continue
    const { app, db, stored } = await set(t, { backend: 'sqlite', url: join(t.testdir(), 'thrown.db') }, library)
    app.post('/', named, async (request) => {
      const [settled] = await Promise.allSettled([library.transaction(db(request), async (tx) => {
        await library.add(tx, 1)
        // eslint-disable-next-line no-throw-literal
        throw undefined
      })])
      return { status: settled.status, reason: (settled as { reason?: unknown }).reason === undefined }
    })
    t.same((await app.inject({ method: 'POST', url: '/' })).json(), { status: 'rejected', reason: true }, name)
    t.same(await stored(), [])
  }
})

// What a library has not prepared no migration makes useless. By their user's wish Drizzle and Knex prepare.
const preparing: Record<string, { wrap: PoolOptions['wrap'], prepared (db: unknown): Promise<unknown> }> = {
  'Drizzle, prepare(name)': {
    wrap: drizzle(),
    prepared: (db) => (db as ReturnType<typeof drizzlePg>).select().from(pgTable('moved', { a: integer() }))
      .prepare('of_moved').execute(),
  },
  'Knex, options({ name })': {
    wrap: knex(),
    prepared: async (db) => await (db as Knex)('moved').select('a').options({ name: 'of_moved' }),
  },
}

t.test('PostgreSQL: a prepared statement of a library fails at most once on a connection, any reset', async (t) => {
  const { url } = await startPostgres(t)
  for (const [name, { wrap, prepared }] of Object.entries(preparing)) {
    for (const reset of ['session', 'transaction', 'none'] as const) {
      const app = Fastify()
      const options = { backend: 'postgresql', url, max: 1 } as const
      await app.register(fastifyPool, { pools: { db: { ...options, reset, wrap }, admin: options } as never })
      const pool = app.pools.get('db') as unknown as Pool<unknown>
      const admin = app.pools.get('admin') as unknown as Pool<Client>
      const run = (sql: string) => admin.use((client) => client.query(sql))
      await run('drop table if exists moved; create table moved (a int); insert into moved values (1)')
      await pool.use(prepared)
      const known = await pool.use((_, lease) => (lease.raw as Client).query('select name from pg_prepared_statements'))
      if (reset !== 'session') t.same(known.rows, [{ name: 'of_moved' }], `${name}, reset ${reset}: it is prepared`)
      await run('alter table moved alter a type numeric')
      const settled: string[] = []
      for (let times = 0; times < 4; times++) settled.push(await pool.use(prepared).then(() => 'well', () => 'failed'))
      t.same(settled.slice(1), ['well', 'well', 'well'], `${name}, reset ${reset}: ${settled.join()}`)
      await app.close()
    }
  }
})

t.test('PostgreSQL: no library prepares a statement that its user has not named', async (t) => {
  const { url } = await startPostgres(t)
  const options: PoolOptions = { backend: 'postgresql', url, reset: 'none' }
  for (const [name, library] of Object.entries(libraries)) {
    const { app } = await set(t, options, library)
    const pool = app.pools.get('db') as unknown as Pool<unknown>
    await pool.use(async (db, lease) => {
      await library.transaction(db, (tx) => library.add(tx, 1))
      await library.list(db)
      const { rows } = await (lease.raw as Client).query('select name from pg_prepared_statements')
      t.same(rows, [], name)
    })
  }
})
