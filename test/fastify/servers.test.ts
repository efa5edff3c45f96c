import Fastify from 'fastify'
import t from 'tap'
import { fastifyPool } from '../../index.js'
import { configsOf as mysqlOf } from '../../lib/backends/mysql/options.js'
import { configsOf as postgresOf } from '../../lib/backends/postgresql/options.js'
import { Source } from '../../lib/backends/redis/options.js'
import { Addresses } from '../../lib/backends/shared/address.js'
import type { PluginOptions } from '../../types/plugin.js'
import { logLines } from '../support/app.js'
import { FakeConnector } from '../support/fake-connector.js'

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
