import { Readable } from 'node:stream'
import type { Connection as Core } from 'mysql2'
import type { Connection, RowDataPacket } from 'mysql2/promise'
import t from 'tap'
import { mysql } from '../../index.js'
import { startMariadb } from '../support/services.js'
import { until } from '../support/until.js'
import { behind, lost, serve, stalled, unused, type Case, type Subject } from './commit.js'

const server = await startMariadb(t)
const backend = await mysql({ url: server.url })

const subject: Subject<Connection> = {
  server,
  pool: (url) => ({ backend: 'mysql', url }),
  prepare: (connection) => connection.query('create table if not exists kept (id varchar(40) primary key)'),
  keep: (connection, id) => connection.query('insert into kept values (?)', [id]),
  kept: async (connection) =>
    (await connection.query<Array<RowDataPacket & { id: string }>>('select id from kept'))[0].map(({ id }) => id),
  commit: 'COMMIT',
  isTransient: (error) => backend.isTransient!(error) || backend.transactions!.isTransient(error),
}

/** MariaDB's sequence engine makes them one by one. */
const rowsOf = (connection: Connection, count: number): Readable =>
  (connection as unknown as { readonly connection: Core })
    .connection.query(`select seq, repeat('x', 500) as x from seq_1_to_${count}`).stream()
const texts = (connection: Connection, count: number) => {
  // Outside of the generator: where that is stopped before it begins, nobody ends the query.
  const stream = rowsOf(connection, count)
  return Readable.from((async function * () { for await (const { seq } of stream) yield `${String(seq)}\n` })())
}

const some = 5000
const endless = 2_000_000_000

const cases: Array<Case<Connection>> = [
  {
    name: 'HEAD of a stream of rows',
    method: 'HEAD',
    then: (connection, reply) =>
      reply.send(rowsOf(connection, some)),
    status: 200
  },
  {
    name: 'HEAD of a generator over a stream of rows',
    method: 'HEAD',
    then: (connection, reply) =>
      reply.send(texts(connection, some)),
    status: 200
  },
  {
    name: 'a 204 with a stream of rows',
    then: (connection, reply) => reply.code(204)
      .send(rowsOf(connection, some)),
    status: 204
  },
  {
    name: 'a 304 with a stream of rows',
    then: (connection, reply) => reply.code(304)
      .send(texts(connection, some)),
    status: 304
  },
  {
    name: 'HEAD of a stream of rows that never ends',
    method: 'HEAD',
    then: (connection, reply) => reply.send(texts(connection, endless)),
    status: 500,
    code: 'FST_POOL_COMMIT_TIMEOUT',
  },
  {
    name: 'a stream that was not read to its end',
    then: (connection) => new Promise((resolve) => {
      const rows = rowsOf(connection, endless)
      rows.once('data', () => {
        rows.pause()
        resolve('one')
      })
    }),
    status: 500,
    code: 'FST_POOL_COMMIT_TIMEOUT',
  },
  {
    name: 'a query that nobody waited for',
    then: (connection) => {
      connection.query('select sleep(600)').catch(() => { /* Its connection is destroyed. */ })
      return 'early'
    },
    status: 500,
    code: 'FST_POOL_COMMIT_TIMEOUT',
  },
]

t.test('MariaDB: what was begun before and has not ended', async (t) => { await behind(t, subject, cases) })

t.test('MariaDB: a client that stops reading', async (t) => {
  await stalled(t, subject, (connection) => texts(connection, endless))
})

t.test('MariaDB: a network that swallows the commit', async (t) => { await lost(t, subject) })

t.test('MariaDB: a connection that is killed while it commits: nobody knows', async (t) => {
  const served = await serve(t, subject, { max: 3, commitTimeout: 60_000 })
  const locked = await served.db.acquire()
  const locker = locked.connection
  let id = 0
  const commit = served.db.transaction(async (connection) => {
    id = connection.threadId
    await subject.keep(connection, `${process.pid}-killed`)
    // From now on no commit gets through.
    await locker.query('flush tables with read lock')
  }).then(() => undefined, (error: unknown) => error as Error & { code?: string })
  const other = (text: string) =>
    served.db.use(async (connection) => (await connection.query<RowDataPacket[]>(text))[0])
  await until(async () => (await other(`select 1 from information_schema.processlist where id = ${id} and info like 'COMMIT%'`)).length === 1,
    { what: 'COMMIT at work' })
  await other(`kill ${id}`)
  const error = await commit
  t.match(error, { code: 'FST_POOL_COMMIT_UNKNOWN' })
  t.ok(error?.cause instanceof Error)
  t.notOk(subject.isTransient(error))
  await locker.query('unlock tables')
  locked.release()
  await unused(served)
})
