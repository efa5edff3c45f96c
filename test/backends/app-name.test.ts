// `appName`: by which name a server shows the pool's connections, and what comes before it.
import { once } from 'node:events'
import { type AddressInfo, connect, createServer } from 'node:net'
import { join } from 'node:path'
import Fastify from 'fastify'
import type { Redis } from 'ioredis'
import type { Connection } from 'mysql2/promise'
import type { Client } from 'pg'
import t, { type Test } from 'tap'
import fastifyPool, { mongodb, mysql, postgresql, redis, redisCluster, Pool, type PostgresConnector } from '../../index.js'
import { appNameOf, usualName } from '../../lib/backends/shared/app-name.js'
import type { Connector } from '../../types/connector.js'
import type { PoolFace } from '../../types/pool.js'
import { startMariadb, startMongo, startPostgres, startRedis } from '../support/services.js'

/** What a connection of this connector says. */
async function ask<C, T> (connector: Connector<C>, question: (connection: C) => Promise<T>): Promise<T> {
  const pool = new Pool<C>(connector, { max: 1 })
  try {
    return await pool.use(question)
  } finally {
    await pool.close()
  }
}

/** This repository's, which tests run in. */
const own = 'fastify-pool'
const long = `${'shop of Zoë '.repeat(20)}end`

t.test('PostgreSQL', async (t) => {
  const { url } = await startPostgres(t)
  const named = async (options: object, base = url) => {
    const { rows: [row] } = await ask(await postgresql({ url: base, ...options }),
      (client: Client) => client.query<{ application_name: string }>('show application_name'))
    return row!.application_name
  }
  t.equal(await named({}), own)
  t.equal(await named({ appName: 'shop' }), 'shop')
  t.equal(await named({ appName: 'the shop' }), 'the shop')
  t.equal(await named({ appName: long }), 'shop of Zo- '.repeat(20).slice(0, 63))
  t.equal(await named({ appName: 'shop', connection: { application_name: 'mine' } }), 'mine')
  t.equal(await named({ appName: 'shop', connection: () => ({ application_name: 'mine' }) }), 'mine')
  t.equal(await named({ appName: 'shop', connection: { fallback_application_name: 'mine' } }), 'mine')
  t.equal(await named({ appName: 'shop' }, `${url}?application_name=urls`), 'urls')
  process.env.PGAPPNAME = 'environments'
  t.teardown(() => { delete process.env.PGAPPNAME })
  t.equal(await named({ appName: 'shop' }), 'environments')
})

t.test('PostgreSQL: it is there again behind a reset, and on the connection for listen', async (t) => {
  const { url } = await startPostgres(t)
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(fastifyPool, { backend: 'postgresql', url, max: 1, appName: 'shop', lease: false })
  const pool = app.pools.get('db') as unknown as PoolFace<Client, PostgresConnector>
  const first = await pool.use(async (client: Client) => {
    await client.query("set application_name = 'other'")
    return (client as unknown as { processID: number }).processID
  })
  const unlisten = await pool.backend.listen('a', () => {})
  const { rows } = await pool.use((client: Client) => client.query(
    'select application_name as name, pid from pg_stat_activity where datname is not null order by pid'))
  t.ok(rows.some(({ pid }) => pid === first))
  t.same(rows.map(({ name }) => name), ['shop', 'shop'])
  await unlisten()
})

t.test('MariaDB', async (t) => {
  const { url } = await startMariadb(t, { args: ['--performance-schema=on'] })
  const named = async (options: object) => ask(await mysql({ url, ...options }), async (connection: Connection) => {
    const [rows] = await connection.query('select attr_name as name, attr_value as value ' +
      "from performance_schema.session_connect_attrs where processlist_id = connection_id() and attr_name like '%name%'")
    return Object.fromEntries((rows as Array<{ name: string, value: string }>).map(({ name, value }) => [name, value]))
  })
  t.match(await named({}), { program_name: own, _client_name: /mysql/i })
  t.match(await named({ appName: 'shop' }), { program_name: 'shop' })
  t.match(await named({ appName: long }), { program_name: 'shop of Zo- '.repeat(20).slice(0, 128) })
  t.match(await named({ appName: 'shop', connection: { connectAttributes: { program_name: 'mine' } } }),
    { program_name: 'mine' })
  t.match(await named({ appName: 'shop', connection: { connectAttributes: { my_name: 'x' } } }),
    { program_name: 'shop', my_name: 'x' })
})

t.test('Redis', async (t) => {
  const { url } = await startRedis(t)
  const named = async (options: object) => ask(await redis({ url, ...options }), (client: Redis) => client.client('GETNAME'))
  t.equal(await named({}), own)
  t.equal(await named({ appName: '@acme/shop' }), '@acme/shop')
  t.equal(await named({ appName: 'the shop\n' }), 'the-shop-')
  t.equal(await named({ appName: 'shop', connection: { connectionName: 'mine' } }), 'mine')
  t.equal(await named({ appName: 'shop', connection: () => ({ connectionName: 'mine' }) }), 'mine')
  t.equal(await named({ appName: 'shop', connection: { connectionName: '' } }), null)

  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(fastifyPool, { backend: 'redis', url, appName: 'shop' })
  t.equal(await (app as unknown as { redis: Redis }).redis.client('GETNAME'), 'shop', 'the shared client')
  const other = await redisCluster({ connection: { cluster: [{ host: 'a', port: 1 }] }, appName: 'the shop' })
  t.equal(other.client.options.redisOptions?.connectionName, 'the-shop')
  const theirs = await redisCluster({
    connection: { cluster: [{ host: 'a', port: 1 }], redisOptions: { connectionName: 'mine' } }, appName: 'shop',
  })
  t.equal(theirs.client.options.redisOptions?.connectionName, 'mine')
})

/** The address of a door to a server, and all that goes in by it. */
async function listenIn (t: Test, port: number): Promise<{ port: number, heard: () => string }> {
  let heard = ''
  const door = createServer((client) => {
    const server = connect(port, '127.0.0.1')
    client.on('data', (chunk) => { heard += chunk.toString('latin1') }).pipe(server).pipe(client)
    for (const socket of [client, server]) socket.on('error', () => { client.destroy(); server.destroy() })
  }).listen(0, '127.0.0.1')
  await once(door, 'listening')
  t.teardown(() => { door.close() })
  return { port: (door.address() as AddressInfo).port, heard: () => heard }
}

t.test('MongoDB', async (t) => {
  const server = await startMongo(t)
  if (server === undefined) return t.pass('there is no MongoDB')
  const named = async (options: object, query = '') => {
    const door = await listenIn(t, Number(new URL(server.url).port))
    const url = `mongodb://127.0.0.1:${door.port}/test?directConnection=true${query}`
    await ask(await mongodb({ url, ...options }), (db) => db.command({ ping: 1 }))
    // BSON: in the document `application` the text `name`, behind its length.
    const [, behind] = door.heard().split('application\0')
    return behind?.split('name\0')[1]?.slice(4).split('\0')[0]
  }
  t.equal(await named({}), own)
  t.equal(await named({ appName: 'the shop' }), 'the shop')
  t.equal(await named({ appName: 'shop', connection: { appName: 'mine' } }), 'mine')
  t.equal(await named({ appName: 'shop' }, '&appname=urls'), 'urls')
})

t.test('the default is the name of the package that the app is', async (t) => {
  const at = t.testdir({
    'package.json': '{ "name": "@acme/shop" }',
    dist: { 'package.json': '{ "type": "module" }', 'server.js': '' },
    node_modules: { tool: { 'package.json': '{ "name": "tool" }', 'cli.js': '' } },
    broken: { 'package.json': '{ name', 'main.js': '' },
  })
  const main = join(at, 'dist/server.js')
  t.equal(usualName(main, '/'), '@acme/shop', 'its package.json is above, behind one without a name')
  t.equal(usualName(join(at, 'node_modules/tool/cli.js'), join(at, 'dist')), '@acme/shop', 'a tool has started the app')
  t.equal(usualName(undefined, at), '@acme/shop', 'a REPL')
  t.equal(usualName(join(at, 'broken/main.js'), '/'), '@acme/shop')
  t.equal(usualName(undefined, '/'), 'fastify-pool', 'nothing has a name')
})

t.test('a name of no letter that servers take is ours', async (t) => {
  t.equal(appNameOf('店', { longest: 63 }), 'fastify-pool')
  t.equal(appNameOf('店 7', { longest: 63 }), '- 7')
  t.equal(appNameOf('a b', { longest: 63, spaces: false }), 'a-b')
})
