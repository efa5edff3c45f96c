import t from 'tap'
import type { Client } from 'pg'
import { TargetPool } from '../../lib/balance/target-pool.js'
import { postgresql, type PostgresConnector } from '../../lib/backends/postgresql/connector.js'
import type { PostgresOptions } from '../../lib/backends/postgresql/options.js'
import { Pool } from '../../lib/pool/pool.js'
import type { Messages, PostgresNotification } from '../../types/messages.js'
import type { PoolEvents } from '../../types/pool.js'
import { startProxy } from '../support/proxy.js'
import { askPostgres, startPostgres, type Server, type Teardown } from '../support/services.js'
import { needsGroup, startPostgresPair } from '../support/topologies.js'
import { until } from '../support/until.js'

// What `listen` has in common with `subscribe` of Redis (redis-subscribe.test.ts). The rest is in postgresql.test.ts.

const server = await startPostgres(t)
const ask = (sql: string, { url }: { url: string } = server) => askPostgres(url, sql, 30_000)

let names = 0
const fresh = () => `listen_${process.pid}_${names++}`

async function stage (t: Teardown, options: PostgresOptions = {}) {
  const where = options.host === undefined ? { url: server.url } : { connection: { user: 'postgres' } }
  const backend = await postgresql({ ...where, backoff: { min: 10, max: 50 }, ...options })
  const pool = new Pool<Client, PostgresConnector>(backend, { max: 1 })
  const told: string[] = []
  const errors: Array<PoolEvents['error']> = []
  pool.on('driver', ({ name }) => told.push(name))
  pool.on('error', (event) => errors.push(event))
  t.teardown(() => pool.close())
  return { pool, backend, told, errors }
}

const end = (channel: string, at?: Server) =>
  ask(`SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'LISTEN%${channel}%' AND pid <> pg_backend_pid()`, at)

t.test('numbers, events and errors of a subscription', async (t) => {
  const { pool, backend, told, errors } = await stage(t)
  const channel = fresh()
  t.equal(pool.stats().subscriptions, undefined)
  let reconnects = 0
  const processes: number[] = []
  const stop = await backend.listen(channel, (payload, from, { processId }) => {
    t.equal(from, channel)
    processes.push(processId)
    if (payload === 'bad') throw new Error('bad payload')
  }, { onReconnect: () => { reconnects++ } })
  await ask(`NOTIFY ${channel}, 'bad'`)
  await until(() => errors.length === 1)
  t.match(errors, [{ phase: 'listener', error: { message: 'bad payload' } }])
  t.type(processes[0], 'number')
  await end(channel)
  await until(() => reconnects === 1)
  t.match(errors[1], { phase: 'subscription', error: { message: /1 subscribed channel was lost: terminating/ } })
  await ask(`NOTIFY ${channel}`)
  await until(() => processes.length === 2)
  t.match(pool.stats().subscriptions,
    { subscribers: 1, channels: 1, missing: 0, connections: 1, received: 2, dropped: 0, reconnects: 1 })
  await stop()
  t.match(pool.stats().subscriptions, { subscribers: 0, channels: 0, connections: 0 })
  t.strictSame(told, ['listener-error', 'listen-lost', 'listen-restored'])
})

t.test('as an iterator, with a limit and a signal', async (t) => {
  const { pool, backend } = await stage(t)
  const channel = fresh()
  const abort = new AbortController()
  const messages = backend.listen(channel, { limit: 2, signal: abort.signal })
  await messages.ready()
  for (const n of [1, 2, 3]) await ask(`NOTIFY ${channel}, '${n}'`)
  await until(() => messages.dropped === 1)
  t.match((await messages.next()).value, { payload: '2', channel, processId: Number, dropped: 1 })
  t.match((await messages.next()).value, { payload: '3', channel, processId: Number, dropped: 0 })
  const next = messages.next()
  abort.abort()
  t.strictSame(await next, { done: true, value: undefined })
  await until(() => pool.stats().subscriptions!.connections === 0)
  const seen: string[] = []
  const again = backend.listen(channel)
  await again.ready()
  await ask(`NOTIFY ${channel}, 'x'`)
  await ask(`NOTIFY ${channel}, 'y'`)
  for await (const { payload } of again) {
    seen.push(payload)
    if (payload === 'y') break
  }
  t.strictSame(seen, ['x', 'y'])
  t.match(pool.stats().subscriptions, { subscribers: 0, connections: 0 })
})

t.test('wrong arguments are refused by name', async (t) => {
  const { backend } = await stage(t)
  const any = backend as unknown as { listen (...args: unknown[]): Promise<unknown> | Messages<PostgresNotification> }
  for (const [args, message] of [
    [['a', () => {}, { onReconect: () => {} }], /did you mean onReconnect/],
    [['a', () => {}, { limit: 5 }], /unknown option options.limit/],
    [['a', () => {}, { signal: 5 }], /options.signal/],
    [[{ pattern: 'a' }, () => {}], /option channel/],
    [['a', 5], /option fn is 5/],
  ] as const) {
    await t.rejects(any.listen(...args) as Promise<unknown>, { code: 'FST_POOL_BAD_OPTIONS', message })
  }
  t.throws(() => any.listen('a', { limit: 0 }), { code: 'FST_POOL_BAD_OPTIONS', message: /options.limit/ })
  t.throws(() => any.listen('a\0'), { code: 'FST_POOL_BAD_OPTIONS', message: /option channel/ })
  await t.rejects(backend.listen('a', () => {}, { signal: AbortSignal.abort() }), { code: 'FST_POOL_ABORTED' })
})

t.test('a network that goes silent is noticed, since the connection is asked', async (t) => {
  const proxy = await startProxy(t, server)
  const { backend, told } = await stage(t, {
    host: proxy.host, port: proxy.port, keepalive: 20, connectTimeout: 500,
  })
  const [channel, heard] = [fresh(), [] as string[]]
  await backend.listen(channel, (payload) => heard.push(payload))
  proxy.forget()
  await until(() => told.includes('listen-restored'))
  await ask(`NOTIFY ${channel}, 'x'`)
  await until(() => heard.length === 1)
})

t.test('with targets: a subscription follows the primary', needsGroup('PostgreSQL'), async (t) => {
  const pair = await startPostgresPair(t)
  const [replica] = pair.replicas as [Server]
  const make = ({ url }: Server) => postgresql({ url, backoff: { min: 10, max: 50 } })
  const pool = new TargetPool<Client, PostgresConnector>([
    { name: 'one', role: 'primary', connector: await make(pair.primary) },
    { name: 'two', role: 'replica', connector: await make(replica) },
  ], { max: 4, checkInterval: 100 })
  t.teardown(() => pool.close())
  await pool.open()
  const heard: string[] = []
  let reconnects = 0
  const stop = await pool.backend.listen('news', (payload) => heard.push(payload), {
    onReconnect: () => { reconnects++ },
  })
  await ask("NOTIFY news, 'before'", pair.primary)
  await until(() => heard.length === 1)
  await pair.caughtUp(replica)
  await pair.primary.kill()
  await pair.promote(replica)
  await until(() => reconnects === 1)
  await ask("NOTIFY news, 'after'", replica)
  await until(() => heard.length === 2)
  t.strictSame(heard, ['before', 'after'])
  t.match(pool.stats(), {
    subscriptions: { subscribers: 1, missing: 0, connections: 1, reconnects: 1 },
    targets: [{ subscriptions: { subscribers: 0 } }, { subscriptions: { subscribers: 1 } }],
  })
  await stop()
  t.match(pool.stats().subscriptions, { subscribers: 0, connections: 0 })
})
