import Fastify from 'fastify'
import type { RouteShorthandOptions } from 'fastify'
import type { Connection } from 'mysql2/promise'
import type { Client } from 'pg'
import t from 'tap'
import fastifyPool, { type PoolOptions } from '../../index.js'
import { startMariadb, startPostgres } from '../support/services.js'

/** A statement, and all values of the first column. */
type Ask = (connection: unknown, sql: string) => Promise<unknown[]>

const servers: Array<[backend: string, connection: object, ask: Ask, start: () => Promise<{ url: string }>]> = [
  ['postgresql', {}, async (connection, sql) => {
    const result = await (connection as Client).query<unknown[]>({ text: sql, rowMode: 'array' })
    // Of several statements in one text there is one each.
    return [result].flat().flatMap(({ rows }) => rows.map(([first]) => first))
  }, () => startPostgres(t)],
  ['mysql', { multipleStatements: true }, async (connection, sql) => {
    const [rows] = await (connection as Connection).query({ sql, rowsAsArray: true })
    return Array.isArray(rows) ? rows.map((row) => (row as unknown[])[0]) : []
  }, () => startMariadb(t)],
]
/** Each ends the transaction and begins another one: as the texts that are sent one after the other. */
const lies: string[][] = [
  ['savepoint s', 'rollback to savepoint s', 'rollback', 'begin'],
  ['savepoint s; rollback to savepoint s; rollback; begin'],
  ['rollback; begin /* not a rollback to a savepoint */'],
  ["rollback; begin; select 'rollback to savepoint s'"],
  ['commit and chain'],
]
const inTransaction: RouteShorthandOptions = { config: { pools: { db: { transaction: true } } } }

for (const [backend, connection, ask, start] of servers) {
  t.test(`${backend}: no request is told of a commit where its transaction had ended, whichever way`, async (t) => {
    const { url } = await start()
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(fastifyPool, { backend, url, max: 1, connection } as PoolOptions)
    const pool = app.pools.get('db')
    await pool.use((connection) => ask(connection, 'create table told (line varchar(20))'))
    t.teardown(() => pool.use((connection) => ask(connection, 'drop table told')))
    let lie: string[] = []
    const work = async (connection: unknown) => {
      await ask(connection, "insert into told values ('before')")
      for (const sql of lie) await ask(connection, sql)
      await ask(connection, "insert into told values ('after')")
      return 'stored'
    }
    app.get('/route', inTransaction, (request) => work(request.db))
    app.get('/within', inTransaction, (request) => request.transaction('db', work))
    app.get('/request', (request) => request.transaction('db', work))
    app.get('/lease', (request) => request.lease('db').transaction(work))
    app.get('/pool', { config: { pools: false } }, () => pool.transaction(work))
    for (lie of lies) {
      const left = lie[0] === 'commit and chain' ? ['before'] : []
      for (const url of ['/route', '/within', '/request', '/lease', '/pool']) {
        const { statusCode, body } = await app.inject(url)
        t.match({ statusCode, body }, { statusCode: 500, body: /FST_POOL_TRANSACTION_ENDED/ },
          `${url}: ${lie.join(', then ')}`)
        t.same(await pool.use((connection) => ask(connection, 'select line from told')), left,
          'what came after is not stored')
        await pool.use((connection) => ask(connection, 'delete from told'))
      }
    }
    t.equal(pool.stats().created, 1, 'the connection is kept')
  })
}
