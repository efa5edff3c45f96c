// A pool per tenant, on real servers: a database each on PostgreSQL, a numbered one each on Redis.
import Fastify, { type FastifyInstance, type FastifyRequest } from 'fastify'
import type { Redis } from 'ioredis'
import pg, { type Client } from 'pg'
import t from 'tap'
import { fastifyPool, type PluginOptions } from '../../index.js'
import { startPostgres, startRedis } from '../support/services.js'
import { until } from '../support/until.js'

const key = ({ headers }: FastifyRequest) => headers['x-tenant'] as string | undefined

t.test('PostgreSQL: each tenant sees its own database, and `maxTotal` holds for all', async (t) => {
  const { url } = await startPostgres(t)
  const admin = new pg.Pool({ connectionString: url, max: 4 })
  t.teardown(() => admin.end())
  const tenants = ['a', 'b', 'c'].map((name) => `tenant_${name}_${process.pid}`)
  for (const name of tenants) await admin.query(`create database ${name}`)
  const counted = async () => {
    const { rows } = await admin.query('select count(*)::int as n from pg_stat_activity where datname = any($1)', [tenants])
    return (rows[0] as { n: number }).n
  }
  const app = Fastify() as unknown as FastifyInstance
  t.teardown(() => app.close())
  await app.register(fastifyPool, {
    backend: 'postgresql',
    key,
    options: (name: string) => {
      if (!tenants.includes(name)) throw Object.assign(new Error('no such tenant'), { statusCode: 404 })
      const own = new URL(url)
      own.pathname = `/${name}`
      return { url: own.href }
    },
    max: 5,
    maxTotal: 4,
    maxPools: 2,
  } as PluginOptions)
  app.get('/', async (request) => {
    const { rows } = await (request.db as unknown as Client).query('select current_database() as name, pg_sleep(0.01)')
    return (rows[0] as { name: string }).name
  })
  const ask = async (name: string) => await app.inject({ url: '/', headers: { 'x-tenant': name } })
  t.equal((await ask('nobody')).statusCode, 404)
  for (const name of [...tenants, ...tenants]) t.equal((await ask(name)).body, name)
  t.equal(app.pools.stats().db!.tenants!.open, 2)

  const [one, two] = tenants.slice(1) as [string, string]
  const seen: number[] = []
  const replies = Promise.all(Array.from({ length: 60 }, async (_, at) => {
    const name = at % 2 === 0 ? one : two
    const { body } = await ask(name)
    seen.push(await counted())
    return body === name
  }))
  t.ok((await replies).every((right) => right), 'no request saw the database of another tenant')
  t.ok(Math.max(...seen) <= 4, `the server counted ${Math.max(...seen)} connections at most`)
  t.equal(await app.pools.get('db').of(one).use(async (client) =>
    ((await (client as unknown as Client).query('select current_database() as name')).rows[0] as { name: string }).name), one)
  await app.close()
  await until(async () => await counted() === 0, { what: 'the server has no connection any more' })
})

t.test('Redis: each tenant sees its own numbered database', async (t) => {
  const { url } = await startRedis(t)
  const app = Fastify() as unknown as FastifyInstance
  t.teardown(() => app.close())
  await app.register(fastifyPool, {
    name: 'cache', backend: 'redis', key, options: (name: string) => ({ url, database: Number(name) }), max: 2,
  } as PluginOptions)
  app.get('/', async (request) => {
    const cache = (request as unknown as { cache: Redis }).cache
    return await cache.incr('tenants:visits')
  })
  const ask = async (name: number) => (await app.inject({ url: '/', headers: { 'x-tenant': String(name) } })).body
  t.same([await ask(1), await ask(1), await ask(2), await ask(1)], ['1', '2', '1', '3'])
  t.equal(await app.pools.get('cache').of('2').execute('get' as never, 'tenants:visits' as never), '1')
})
