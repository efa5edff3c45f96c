import Fastify from 'fastify'
import type { RouteShorthandOptions } from 'fastify'
import type { Connection } from 'mysql2/promise'
import type { Client } from 'pg'
import t from 'tap'
import fastifyPool, { type PoolOptions } from '../../index.js'
import { startMariadb, startPostgres } from '../support/services.js'

/** A statement, and all values of the first column. */
type Ask = (connection: unknown, sql: string) => Promise<unknown[]>

const servers: Array<[backend: string, ask: Ask, start: () => Promise<{ url: string }>]> = [
  ['postgresql', async (connection, sql) => {
    const { rows } = await (connection as Client).query<unknown[]>({ text: sql, rowMode: 'array' })
    return rows.map(([first]) => first)
  }, () => startPostgres(t)],
  ['mysql', async (connection, sql) => {
    const [rows] = await (connection as Connection).query({ sql, rowsAsArray: true })
    return Array.isArray(rows) ? rows.map((row) => (row as unknown[])[0]) : []
  }, () => startMariadb(t)],
]
const inTransaction: RouteShorthandOptions = { config: { pools: { db: { transaction: true } } } }

for (const [backend, ask, start] of servers) {
  t.test(`${backend}: no request is told of a commit where its transaction had ended, whichever way`, async (t) => {
    const { url } = await start()
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(fastifyPool, { backend, url, max: 1 } as PoolOptions)
    const pool = app.pools.get('db')
    await pool.use((connection) => ask(connection, 'create table told (line varchar(20))'))
    t.teardown(() => pool.use((connection) => ask(connection, 'drop table told')))
    const work = async (connection: unknown) => {
      await ask(connection, "insert into told values ('before')")
      for (const sql of ['savepoint s', 'rollback to savepoint s', 'rollback', 'begin']) await ask(connection, sql)
      await ask(connection, "insert into told values ('after')")
      return 'stored'
    }
    app.get('/route', inTransaction, (request) => work(request.db))
    app.get('/within', inTransaction, (request) => request.transaction('db', work))
    app.get('/request', (request) => request.transaction('db', work))
    app.get('/lease', (request) => request.lease('db').transaction(work))
    app.get('/pool', { config: { pools: false } }, () => pool.transaction(work))
    for (const url of ['/route', '/within', '/request', '/lease', '/pool']) {
      const { statusCode, body } = await app.inject(url)
      t.match({ statusCode, body }, { statusCode: 500, body: /FST_POOL_TRANSACTION_ENDED/ }, url)
      t.same(await pool.use((connection) => ask(connection, 'select line from told')), [], 'nor is anything stored')
    }
    t.equal(pool.stats().created, 1, 'the connection is kept')
  })
}
