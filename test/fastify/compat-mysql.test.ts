import Fastify, { type FastifyInstance } from 'fastify'
import t from 'tap'
import fastifyPool from '../../index.js'
import {
  isMySQLConnection, isMySQLPool, isMySQLPromiseConnection, isMySQLPromisePool, mysqlCompat, type MysqlCompatOptions,
  type MysqlDb, type MysqlPromisePool,
} from '../../lib/compat/mysql.js'
import { startMariadb, type Teardown } from '../support/services.js'

// What @fastify/mysql promises, its own suite shows (`npm run test:compat`). Here is what our pool adds.

const server = await startMariadb(t)

type App = FastifyInstance & { mysql: MysqlDb & Record<string, unknown> }
const kinds = [isMySQLPool, isMySQLPromisePool, isMySQLConnection, isMySQLPromiseConnection]

async function appOf (t: Teardown, options: MysqlCompatOptions, before?: (app: FastifyInstance) => Promise<void>) {
  const app = Fastify() as unknown as App
  t.teardown(() => app.close())
  await before?.(app)
  await app.register(mysqlCompat, options)
  return app
}
const ownPool = (app: FastifyInstance) => app.register(fastifyPool, {
  pools: { db: { backend: 'mysql', url: server.url, max: 2, lease: false } },
}) as unknown as Promise<void>
const lent = (app: App, name: string) => {
  const { used, resetting } = app.pools.get(name as never).stats()
  return used - resetting
}

t.test('it works over a pool of the app, with promises', async (t) => {
  const app = await appOf(t, { pool: 'db', promise: true }, ownPool)
  t.same(kinds.map((is) => is(app.mysql)), [false, true, false, false])
  const mysql = app.mysql as MysqlPromisePool & MysqlDb
  t.same((await mysql.query('SELECT ? AS n', [1]))[0], [{ n: 1 }])
  t.same((await mysql.execute('SELECT ? AS n', ['1']))[0], [{ n: '1' }])
  const connection = await mysql.getConnection()
  t.equal(lent(app, 'db'), 1)
  t.same((await connection.query('SELECT 2 AS n'))[0], [{ n: 2 }])
  connection.release()
  t.equal(lent(app, 'db'), 0)
  t.throws(() => { connection.release() }, { code: 'FST_POOL_NOT_SUPPORTED' })
  await t.rejects(mysql.query('SELECT nothing'), { code: 'ER_BAD_FIELD_ERROR' })
  t.equal(mysql.escape('a'), "'a'")
})

t.test('with callbacks', async (t) => {
  const app = await appOf(t, { name: 'one', connectionString: server.url })
  const mysql = app.mysql.one as {
    query (...args: unknown[]): void
    getConnection (fn: (error: Error | null, connection: any) => void): void
  }
  t.same(kinds.map((is) => is(mysql as unknown as MysqlDb)), [true, false, false, false])
  t.same(await new Promise((resolve) => {
    mysql.query('SELECT ? AS n', [1], (error: Error | null, rows: unknown) => resolve([error, rows]))
  }), [null, [{ n: 1 }]])
  t.match(await new Promise((resolve) => { mysql.query('SELECT nothing', (error: Error) => resolve(error)) }),
    { code: 'ER_BAD_FIELD_ERROR' })
  await new Promise<void>((resolve) => {
    mysql.getConnection((error, connection) => {
      t.equal(error, null)
      connection.query('SELECT 1 AS n', (_error: Error | null, rows: unknown) => {
        t.same(rows, [{ n: 1 }])
        t.equal(lent(app, 'mysql_one'), 1)
        connection.release()
        t.equal(lent(app, 'mysql_one'), 0)
        resolve()
      })
    })
  })
  t.throws(() => { mysql.query('SELECT 1') }, { code: 'FST_POOL_NOT_SUPPORTED' })
})

t.test('one connection for the app, which goes back when it closes', async (t) => {
  for (const promise of [true, false]) {
    const app = await appOf(t, { type: 'connection', promise, connectionString: server.url })
    t.same(kinds.map((is) => is(app.mysql)), [false, false, !promise, promise])
    t.equal(lent(app, 'mysql_default'), 1)
    const pool = app.pools.get('mysql_default' as never)
    await app.close()
    t.match(pool.stats(), { used: 0, idle: 0 })
  }
})

t.test('bad options are refused by name, and what the driver says comes through', async (t) => {
  const fails = async (options: MysqlCompatOptions, error: { code: string, message?: RegExp }) => {
    const app = Fastify()
    t.teardown(() => app.close())
    await t.rejects(async () => { await app.register(mysqlCompat, options) }, error)
  }
  await fails({ type: 'both' as 'pool' }, { code: 'FST_POOL_BAD_OPTIONS', message: /type/ })
  await fails({ host: '127.0.0.1', port: 1 }, { code: 'ECONNREFUSED', message: /connect ECONNREFUSED/ })
  const app = await appOf(t, { connectionString: server.url })
  await t.rejects(async () => { await app.register(mysqlCompat, { connectionString: server.url }) },
    { code: 'FST_POOL_DUPLICATE_NAME' })
})
