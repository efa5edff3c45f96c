// How many connections real servers allow, as the connectors ask them.
import Fastify from 'fastify'
import t from 'tap'
import fastifyPool, { mysql, postgresql, redis, Pool, type PluginOptions } from '../../index.js'
import type { Capacity, Connector } from '../../types/connector.js'
import { logLines } from '../support/app.js'
import { askPostgres, startMariadb, startPgBouncer, startPostgres, startRedis } from '../support/services.js'
import { until } from '../support/until.js'

/** What a connector says while its app has two connections. */
async function ask<C> (connector: Connector<C>): Promise<Capacity | undefined> {
  const pool = new Pool<C>(connector, { max: 2 })
  try {
    return await pool.use(() => pool.use((connection) => connector.capacity!(connection, new AbortController().signal)))
  } finally {
    await pool.close()
  }
}

t.test('PostgreSQL', async (t) => {
  const server = await startPostgres(t)
  const { url } = server
  const ours = await ask(await postgresql({ url, appName: 'shop' }))
  t.match(ours, { allowed: Number, inUse: Number, ours: 2 })
  t.ok(ours!.inUse >= 2 && ours!.allowed > ours!.inUse)
  await askPostgres(url, 'CREATE ROLE few LOGIN CONNECTION LIMIT 7')
  const few = new URL(url)
  few.username = 'few'
  few.password = ''
  t.match(await ask(await postgresql({ url: few.href, appName: 'shop' })), { allowed: 7, inUse: 2, ours: 2 })
  const bouncer = await startPgBouncer(t, server)
  if (bouncer !== undefined) t.equal(await ask(await postgresql({ url: bouncer.url })), undefined, 'behind PgBouncer')
})

t.test('MariaDB', async (t) => {
  const { url } = await startMariadb(t, { args: ['--performance-schema=on', '--max-connections=33'] })
  t.match(await ask(await mysql({ url, appName: 'shop' })), { allowed: 33, inUse: Number, ours: 2 })
})

t.test('Redis', async (t) => {
  const { url } = await startRedis(t)
  t.match(await ask(await redis({ url, appName: 'shop' })), { allowed: Number, inUse: 2, ours: 2, hosts: 1 })
})

t.test('at the start: in pool.open, and as advice', async (t) => {
  const { url } = await startPostgres(t)
  const { stream, lines } = logLines<Record<string, unknown>>()
  const app = Fastify({ logger: { level: 'info', stream } })
  t.teardown(() => app.close())
  await app.register(fastifyPool, { backend: 'postgresql', url, max: 5000, appName: 'shop' } as PluginOptions)
  await until(() => lines.length > 1, { what: 'the lines' })
  t.match(lines[0], { event: 'pool.open', ours: 1, msg: /; the server allows \d+, \d+ in use, 1 of them by this app$/ })
  t.match(lines[1], { event: 'pool.advice', kind: 'server', msg: /^max 5000 does not fit the server's \d+: max \d+ would$/ })
  t.match(app.pools.advice(), [{ pool: 'db', kind: 'server', numbers: { max: 5000, instances: 1 } }])
})
