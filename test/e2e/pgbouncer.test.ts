import type { AddressInfo } from 'node:net'
import Fastify from 'fastify'
import type { Client } from 'pg'
import t from 'tap'
import fastifyPool, { Pool, postgresql, type PostgresConnector } from '../../index.js'
import { findPgbouncer } from '../support/find.mjs'
import { startPgBouncer, startPostgres } from '../support/services.js'
import { until } from '../support/until.js'
import { ask, keepAliveAgent } from './client.js'

const servers = 2
const clients = 20

// What docs/postgresql.md says of PgBouncer in transaction mode: what works, what to set, and what not to use.
t.test('PostgreSQL behind PgBouncer in transaction mode', { skip: findPgbouncer() === undefined && !process.env.CI && 'no pgbouncer' }, async (t) => {
  const postgres = await startPostgres(t)
  const bouncer = (await startPgBouncer(t, postgres, { ini: { default_pool_size: servers, max_client_conn: 200 } }))!
  const options = { url: bouncer.url, reset: 'transaction' } as const
  const direct = new Pool(await postgresql({ url: postgres.url }))
  t.teardown(() => direct.close())
  await direct.use(async (client) => {
    await client.query('drop table if exists bouncer_counters')
    await client.query('create table bouncer_counters as select id, 0 as n from generate_series(0, 9) id')
  })
  const total = () =>
    direct.use(async (client) =>
      Number((await client.query<{ sum: string }>('select sum(n) from bouncer_counters')).rows[0]!.sum))

  t.test(`requests and their transactions share ${servers} server connections among ${clients}`, async (t) => {
    const app = Fastify()
    // All are served, however slow the machine is.
    const patient = { acquireTimeout: 60_000, commitTimeout: 60_000, overload: false }
    await app.register(fastifyPool, { backend: 'postgresql', ...options, ...patient, max: clients })
    const pids = new Set<number>()
    app.post<{ Querystring: { id: string, fail?: string } }>('/add', { config: { pools: { db: { transaction: true } } } }, async (request) => {
      const client = request.db as unknown as Client
      await client.query('update bouncer_counters set n = n + 1 where id = $1', [Number(request.query.id)])
      pids.add((await client.query<{ pid: number }>('select pg_backend_pid() pid')).rows[0]!.pid)
      if (request.query.fail !== undefined) throw new Error('rolled back')
      return 'added'
    })
    app.get('/read',
      async (request) => (await (request.db as unknown as Client).query('select $1::int as one', [1])).rows[0])
    await app.listen({ host: '127.0.0.1', port: 0 })
    const agent = keepAliveAgent(t)
    const { port } = app.server.address() as AddressInfo
    const statuses = await Promise.all(Array.from({ length: 300 }, async (_, id) => {
      if (id % 3 === 0) return (await ask({ port, agent, path: '/read' })).status
      return (await ask({
        port, agent, method: 'POST', path: `/add?id=${id % 10}${id % 3 === 1 ? '&fail' : ''}`,
      })).status
    }))
    for (const [kind, status] of [200, 500, 200].entries()) {
      t.strictSame([...new Set(statuses.filter((_, id) => id % 3 === kind))], [status])
    }
    t.equal(await total(), 100, 'what was answered with success is there, and nothing else')
    t.ok(pids.size <= servers, `${pids.size} server connections`)
    t.match(app.pools.stats().db, { used: 0, acquired: 300, released: 300, destroyed: { error: 0 } })
    await app.close()
  })

  t.test('a transaction that a request leaves open is rolled back, and its server connection serves others', async (t) => {
    const pool = new Pool(await postgresql(options), { ...options, max: 1 })
    t.teardown(() => pool.close())
    for (let i = 0; i < 5; i++) {
      await pool.use(async (client) => {
        await client.query('begin')
        await client.query('update bouncer_counters set n = n + 1000')
      })
    }
    t.equal(await pool.use(async (client) =>
      (await client.query<{ n: number }>('select max(n) n from bouncer_counters')).rows[0]!.n < 1000), true)
    t.equal(pool.stats().created, 1)
  })

  t.test('what is not for it: a session setting reaches other requests; SET LOCAL in a transaction does not', async (t) => {
    const pool = new Pool(await postgresql(options), { ...options, max: servers })
    t.teardown(() => pool.close())
    const setting = async (client: Client) =>
      (await client.query<{ work_mem: string }>('select current_setting($1) work_mem, pg_sleep(0.1)', ['work_mem']))
        .rows[0]!.work_mem
    // At the same time, so that each has a server connection of its own.
    const everywhere = () => Promise.all(Array.from({ length: servers }, () => pool.use(setting)))
    await pool.transaction((client) => client.query("set local work_mem to '456kB'"))
    t.notOk((await everywhere()).includes('456kB'))
    await pool.use((client) => client.query("set work_mem to '123kB'"))
    t.ok((await everywhere()).includes('123kB'))
  })

  t.test('what is not for it: named statements fail on another server connection', async (t) => {
    const pool = new Pool(await postgresql(options), { ...options, max: 4 })
    t.teardown(() => pool.close())
    const named = { name: 'one', text: 'select pg_sleep(0.02), pg_backend_pid() pid' }
    const results =
      await Promise.allSettled(Array.from({ length: 12 }, () => pool.use((client) => client.query(named))))
    t.ok(results.some(({ status }) => status === 'rejected'), 'PgBouncer before 1.21 knows nothing of them')
  })

  t.test('listen() needs a connection of its own to the server itself', async (t) => {
    const connector: PostgresConnector = await postgresql({ url: postgres.url })
    const pool = new Pool(connector, { max: 1 })
    t.teardown(() => pool.close())
    const heard: string[] = []
    const stop = await pool.backend.listen('news', (payload) => { heard.push(payload) })
    const through = new Pool(await postgresql(options), options)
    t.teardown(() => through.close())
    await through.transaction(async (client) => { await client.query("notify news, 'through the bouncer'") })
    await until(() => heard.length > 0, { what: 'the notification' })
    t.strictSame(heard, ['through the bouncer'])
    await stop()
  })
})
