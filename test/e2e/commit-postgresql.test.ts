import { Readable } from 'node:stream'
import type { Client } from 'pg'
import { from as copyFrom, to as copyTo } from 'pg-copy-streams'
import QueryStream from 'pg-query-stream'
import t from 'tap'
import { postgresql, type PoolOptions } from '../../index.js'
import { startPostgres } from '../support/services.js'
import { until } from '../support/until.js'
import { behind, lost, serve, stalled, unused, type Case, type Subject } from './commit.js'

const server = await startPostgres(t)
const backend = await postgresql({ url: server.url })

const subject: Subject<Client> = {
  server,
  pool: (url) => ({ backend: 'postgresql', url }),
  prepare: (client) => client.query('create table if not exists kept (id text primary key)'),
  keep: (client, id) => client.query('insert into kept values ($1)', [id]),
  kept: async (client) => (await client.query<{ id: string }>('select id from kept')).rows.map(({ id }) => id),
  commit: 'COMMIT',
  isTransient: (error) => backend.isTransient!(error) || backend.transactions!.isTransient(error),
}

const rows = (count: number) => `select generate_series(1, ${count}) as g, repeat('x', 500) as x`
const csv = (client: Client, count: number) => client.query(copyTo(`copy (${rows(count)}) to stdout csv`))
const rowsOf = (client: Client, count: number) => client.query(new QueryStream(rows(count)))
const texts = (client: Client, count: number) => {
  // Outside of the generator: where that is stopped before it begins, nobody ends the query.
  const stream = rowsOf(client, count)
  return Readable.from((async function * () { for await (const { g } of stream) yield `${String(g)}\n` })())
}

const some = 2000
const endless = 2_000_000_000

const cases: Array<Case<Client>> = [
  { name: 'HEAD of a COPY', method: 'HEAD', then: (client, reply) => reply.send(csv(client, some)), status: 200 },
  {
    name: 'HEAD of a generator over a query stream',
    method: 'HEAD',
    then: (client, reply) =>
      reply.send(texts(client, some)),
    status: 200
  },
  {
    name: 'HEAD of a web stream of a COPY',
    method: 'HEAD',
    then: (client, reply) =>
      reply.send(Readable.toWeb(csv(client, some))),
    status: 200
  },
  {
    name: 'HEAD of a Response of a COPY',
    method: 'HEAD',
    then: (client, reply) =>
      reply.send(new Response(Readable.toWeb(csv(client, some)) as ReadableStream)),
    status: 200
  },
  { name: 'a 204 with a COPY', then: (client, reply) => reply.code(204).send(csv(client, some)), status: 204 },
  { name: 'a 304 with a COPY', then: (client, reply) => reply.code(304).send(csv(client, some)), status: 304 },
  {
    name: 'HEAD of a query stream that never ends',
    method: 'HEAD',
    then: (client, reply) =>
      reply.send(texts(client, endless)),
    status: 200,
    commitTimeout: 2000
  },
  {
    name: 'HEAD of a query stream that does not begin',
    method: 'HEAD',
    then: (client, reply) =>
      reply.send(Readable.from(client.query(new QueryStream('select pg_sleep(600)')), { objectMode: false })),
    status: 500,
    code: 'FST_POOL_COMMIT_TIMEOUT'
  },
  {
    name: 'HEAD of a COPY that never ends',
    method: 'HEAD',
    then: (client, reply) =>
      reply.send(csv(client, endless)),
    status: 500,
    code: 'FST_POOL_COMMIT_TIMEOUT'
  },
  {
    name: 'a cursor that is not closed',
    then: (client) => new Promise((resolve) => {
      rowsOf(client, some).once('data', () => { resolve('one') }).once('data', function (this: Readable) { this.pause() })
    }),
    status: 500,
    code: 'FST_POOL_COMMIT_TIMEOUT'
  },
  {
    name: 'a COPY FROM that is never ended',
    then: (client) => {
      client.query(copyFrom('copy kept from stdin')).on('error', () => {}).write('a\n')
      return 'written'
    },
    status: 500,
    code: 'FST_POOL_COMMIT_TIMEOUT'
  },
  {
    name: 'a query that nobody waited for',
    then: (client) => {
      client.query('select pg_sleep(600)')
        .catch(() => {}); return 'early'
    },
    status: 500,
    code: 'FST_POOL_COMMIT_TIMEOUT'
  },
]

t.test('PostgreSQL: what was begun before and has not ended', async (t) => { await behind(t, subject, cases) })

t.test('PostgreSQL: a client that stops reading', async (t) => {
  await stalled(t, subject, (client) => csv(client, endless))
})

t.test('PostgreSQL: a network that swallows the commit', async (t) => { await lost(t, subject) })

t.test('PostgreSQL: a connection that is terminated while it commits: nobody knows; what the server refuses is what it says', async (t) => {
  const served = await serve(t, subject, { commitTimeout: 60_000 })
  await served.db.use((connection) => connection.query(`
    create table late (id int unique deferrable initially deferred, slow bool);
    create function wait_for_it() returns trigger language plpgsql as $$ begin if new.slow then perform pg_sleep(600); end if; return null; end $$;
    create constraint trigger slow after insert on late deferrable initially deferred for each row execute function wait_for_it()`))
  const failed = (fn: (client: Client) => Promise<unknown>) => served.db.transaction(fn)
    .then(() => undefined, (error: unknown) => error as Error & { code?: string })
  t.equal((await failed((client) => client.query('insert into late values (1, false), (1, false)')))?.code, '23505')
  t.equal(served.stats().destroyed.error, 0, 'its connection is kept')
  const [clients, sleep] = [await served.db.acquire(), await served.db.acquire()]
  await sleep.connection.query('select pg_advisory_lock(1)')
  let behind: Promise<unknown> | undefined
  const refused = clients.transaction(async (client) => {
    await client.query('insert into late values (1, false), (1, false)')
    // COMMIT is on its way by then.
    setImmediate(() => { behind = client.query('select pg_advisory_xact_lock(1)') })
  }).then(() => undefined, (error: unknown) => error as Error & { code?: string })
  t.equal((await refused)?.code, '23505', 'whatever has been sent behind it')
  await sleep.connection.query('select pg_advisory_unlock(1)')
  sleep.release()
  await behind
  clients.release()
  t.equal(served.stats().destroyed.error, 0, 'its connection is kept')

  let pid = 0
  const commit = failed(async (client) => {
    pid = (await client.query<{ pid: number }>('select pg_backend_pid() as pid')).rows[0]!.pid
    await client.query('insert into late values (2, true)')
  })
  const other = (text: string) =>
    served.db.use(async (connection) => (await connection.query<Record<string, unknown>>(text)).rows)
  await until(async () => (await other(`select from pg_stat_activity where pid = ${pid} and query = 'COMMIT' and wait_event = 'PgSleep'`)).length === 1,
    { what: 'COMMIT at work' })
  await other(`select pg_terminate_backend(${pid})`)
  const error = await commit
  t.match(error, { code: 'FST_POOL_COMMIT_UNKNOWN', cause: { code: '57P01' } })
  t.notOk(subject.isTransient(error))
  await unused(served)

  // The driver gives up waiting, and the server goes on.
  const patient = await serve(t, {
    ...subject, pool: (url) => ({ ...subject.pool(url), connection: { query_timeout: 800 } }) as PoolOptions,
  }, { max: 1 })
  const late = await patient.db.transaction((connection) => connection.query('insert into late values (3, true)'))
    .then(() => undefined, (error: unknown) => error as Error & { code?: string })
  t.match(late, { code: 'FST_POOL_COMMIT_UNKNOWN', cause: { message: 'Query read timeout' } })
  await unused(patient)
})
