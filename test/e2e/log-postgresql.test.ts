import Fastify, { type FastifyRequest } from 'fastify'
import type { Client } from 'pg'
import t, { type Test } from 'tap'
import fastifyPool, { type PluginOptions } from '../../index.js'
import { logLines } from '../support/app.js'
import { startProxy } from '../support/proxy.js'
import { startPostgres } from '../support/services.js'
import { until } from '../support/until.js'

// What a stranger sees of an incident: the first lines of a production log.

interface Line extends Record<string, unknown> { level: number, msg: string, event?: string }

async function serve (t: Test, url: string, options: Partial<PluginOptions> = {}) {
  const { stream, lines } = logLines<Line>()
  const app = Fastify({ logger: { level: 'info', stream }, disableRequestLogging: true })
  t.teardown(() => app.close())
  await app.register(fastifyPool, { backend: 'postgresql', url, ...options } as PluginOptions)
  const db = (request: FastifyRequest) => (request as FastifyRequest & { db: Client }).db
  app.get('/', async (request) => (await db(request).query('SELECT 1')).rowCount)
  app.get('/reports/sales', async (request) => (await db(request).query('SELECT pg_sleep(3)')).rowCount)
  /** Those at warn or above that are ours. */
  const ours = () => lines.filter(({ event, level }) => level >= 40 && event?.startsWith('pool.') === true)
  return { app, lines, ours }
}

t.test('the log of PostgreSQL', async (t) => {
  const server = await startPostgres(t)
  const login = new URL(server.url)

  await t.test('all connections are used: the culprit is in the first line, with what a DBA finds', async (t) => {
    const { app, lines, ours } = await serve(t, server.url, { max: 2, overload: false })
    await until(() => lines.length > 0, { what: 'the server to say how many connections it allows' })
    t.match(lines[0], { event: 'pool.open', allowed: Number, inUse: Number, ours: Number, system: 'postgresql', host: login.hostname, port: Number(login.port), max: 2, msg: /^pool 'db' is open: postgresql at / })
    const slow = [app.inject('/reports/sales'), app.inject('/reports/sales')]
    await until(() => app.pools.stats().db!.used === 2)
    const waiting = [app.inject('/'), app.inject('/')]
    await until(() => ours().length > 0, { what: 'the line' })
    t.match(ours()[0], {
      event: 'pool.exhausted',
      pool: 'db',
      pending: 2,
      held: [{ route: 'GET /reports/sales', connections: 2, id: 'req-1', doing: 'query', sinceQuery: Number, serverId: Number }],
      cause: 'GET /reports/sales holds 2 of 2 (query)',
      remedy: /slow queries in GET \/reports\/sales/,
    })
    t.match((await Promise.all([...slow, ...waiting])).map(({ statusCode }) => statusCode), [200, 200, 200, 200])
    await until(() => lines.some(({ event }) => event === 'pool.exhausted.end'), { what: 'its end' })
  })

  await t.test('a dead host: cause and remedy are in the first lines, and no secret is', async (t) => {
    const proxy = await startProxy(t, server)
    const url = new URL(server.url)
    url.host = `127.0.0.1:${proxy.port}`
    url.password = 'hunter2-hunter2'
    const { app, lines, ours } = await serve(t, url.href, { max: 3, acquireTimeout: 300 })
    t.equal((await app.inject('/')).statusCode, 200)
    await proxy.refuse()
    proxy.resetAll()
    let asked = 0
    await until(async () => {
      asked++
      await app.inject('/')
      return ours().some(({ event }) => event === 'pool.down')
    }, { what: 'the line' })
    const first = ours().slice(0, 3)
    t.match(first.find(({ event }) => event === 'pool.died'), { died: Number, cause: /\S/, remedy: /\S/ })
    t.match(first.find(({ event }) => event === 'pool.down'), {
      level: 50, code: 'ECONNREFUSED', kind: 'refused', cause: /ECONNREFUSED/, remedy: 'Is its server running, and are host and port right?',
    })
    t.ok(ours().length <= 3, `${ours().length} lines for ${asked} requests`)
    await proxy.heal()
    await until(async () => (await app.inject('/')).statusCode === 200, { what: 'an answer' })
    t.match(lines.find(({ event }) => event === 'pool.up'), { level: 30, attempts: Number, refused: Number })
    t.notMatch(JSON.stringify(lines), /hunter2/)
  })
})
