import Fastify from 'fastify'
import t from 'tap'
import { fastifyPool } from '../../index.js'
import { configsOf as mysqlOf } from '../../lib/backends/mysql/options.js'
import { configsOf as postgresOf } from '../../lib/backends/postgresql/options.js'
import { Source } from '../../lib/backends/redis/options.js'
import { Addresses } from '../../lib/backends/shared/address.js'
import type { Connector } from '../../types/connector.js'
import type { PluginOptions } from '../../types/plugin.js'
import { logLines } from '../support/app.js'
import { FakeConnector } from '../support/fake-connector.js'
import { until } from '../support/until.js'

// What the options of several servers may be.

const peer = { role: 'peer' } as const

t.test('what peers and names can not be is refused at register', async (t) => {
  const rows: Array<[object, RegExp]> = [
    [{ backend: 'redis', targets: [{ url: 'redis://a', ...peer }, { url: 'redis://b' }] }, /targets\.1\.role .*'peer' like the others/],
    [{ backend: 'sqlite', targets: [{ url: 'a.db', ...peer }] }, /sqlite is a file.*a pool of its own/],
    [{ backend: 'redis', sticky: { cookie: 'a' }, targets: [{ url: 'redis://a', ...peer }] }, /none beside peers.*see affinity/],
    [{ backend: 'redis', affinity: () => 'a', targets: [{ url: 'redis://a' }] }, /affinity .*unless the targets are peers/],
    [{ targets: [{ connector: new FakeConnector() }, { connector: new FakeConnector() }] }, /targets\.1\.role .*'peer' for all targets/],
    [{ backend: 'postgresql', discover: 'dns', url: 'postgres://127.0.0.1/a' }, /discover .*host name/],
    [{ backend: 'mongodb', discover: 'dns', url: 'mongodb://a' }, /discover .*every mongos/],
  ]
  for (const [options, message] of rows) {
    const app = Fastify()
    await t.rejects(async () => { await app.register(fastifyPool, { startup: 'lazy', ...options } as PluginOptions) },
      { code: 'FST_POOL_BAD_OPTIONS', message })
    await app.close()
  }
})

t.test('Redis peers without affinity are warned of', async (t) => {
  for (const affinity of [undefined, () => 'a']) {
    const { stream, lines } = logLines()
    const app = Fastify({ logger: { stream } })
    const targets = ['a', 'b'].map((host) => ({ host, ...peer }))
    await app.register(fastifyPool, { backend: 'redis', startup: 'lazy', targets, affinity } as PluginOptions)
    await app.close()
    const warned = lines.filter(({ msg }) => /Give the pool affinity/.test(String(msg)))
    t.equal(warned.length, affinity === undefined ? 1 : 0)
  }
})

t.test('connections go to an address, and TLS checks the name', async (t) => {
  const { signal } = new AbortController()
  const hostaddr = '10.0.0.7'
  const pg = { url: 'postgres://app@db.test/shop', connection: { ssl: true }, hostaddr }
  t.match(await postgresOf(pg, new Addresses(pg))(signal), { host: hostaddr, ssl: { servername: 'db.test' } })
  const redis = new Source({ url: 'rediss://db.test', hostaddr } as { url: string })
  t.match(await redis.now(signal), { host: hostaddr, tls: { servername: 'db.test' } })
  const my = { url: 'mysql://app@db.test/shop', connection: { ssl: {} }, hostaddr }
  const config = await mysqlOf(my, new Addresses(my))(signal)
  t.match(config, { host: 'db.test', stream: Function })
})

t.test('affinity: the same user has the same server in each process, and comes back to it', async (t) => {
  const down = new Set<string>()
  const names = ['a', 'b', 'c']
  const start = async () => {
    const app = Fastify()
    t.teardown(() => app.close())
    const connections = new Set<{ server: string, end: () => void }>()
    const connectorOf = (server: string): Connector<{ server: string }> => ({
      system: 'test',
      create: async () => {
        if (down.has(server)) throw new Error(`${server} is down`)
        const connection = { server, end: () => {} }
        connections.add(connection)
        return connection
      },
      destroy () {},
      onDeath (connection, died) { (connection as { end?: () => void }).end = () => { died(new Error('reset')) } },
    })
    await app.register(fastifyPool, {
      targets: names.map((name) => ({ name, role: 'peer' as const, connector: connectorOf(name) })),
      max: 9,
      checkInterval: 20,
      backoff: { min: 5, max: 20 },
      affinity: (request) => request.headers['x-user'] as string | undefined,
    })
    app.get('/', async (request) => (request.lease('db').connection as unknown as { server: string }).server)
    const serverOf = async (user: string) => (await app.inject({ url: '/', headers: { 'x-user': user } })).body
    const kill = () => { for (const { server, end } of connections) if (down.has(server)) end() }
    return { app, kill, serverOf }
  }
  const [one, two] = [await start(), await start()]
  const users = Array.from({ length: 60 }, (_, n) => `user-${n}`)
  const all = async (of: typeof one) => await Promise.all(users.map((user) => of.serverOf(user)))
  const homes = await all(one)
  t.same(new Set(homes), new Set(names))
  t.same(await all(two), homes, 'another process sends them to the same servers')

  down.add('b')
  for (const { kill } of [one, two]) kill()
  const moved = await all(one)
  users.forEach((user, n) => {
    if (homes[n] === 'b') t.not(moved[n], 'b', user)
    else t.equal(moved[n], homes[n], `${user} stays`)
  })
  t.same(await all(two), moved, 'and where they move to is the same, too')

  down.clear()
  await until(async () => (await all(one)).join() === homes.join(), { what: 'they are back' })
  await until(async () => (await all(two)).join() === homes.join(), { what: 'and in the other process' })
})
