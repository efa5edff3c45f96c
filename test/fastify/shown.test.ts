// Whoever shows the app, a pool, a request or an error shows no password of the options.
import { inspect } from 'node:util'
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import { fastifyPool } from '../../lib/fastify/plugin.js'
import type { PluginOptions } from '../../types/plugin.js'
import { FakeConnector } from '../support/fake-connector.js'

const word = 'hush'

function showsNothing (t: Test, what: string, value: unknown): void {
  const texts = {
    'console.log': inspect(value),
    'all of it': inspect(value, { depth: 8, showHidden: true }),
    json: jsonOf(value),
  }
  for (const [how, text] of Object.entries(texts)) {
    const at = text.indexOf(word)
    t.equal(at, -1, `${what}, ${how}: ${text.slice(Math.max(0, at - 80), at + 20)}`)
  }
}

function jsonOf (value: unknown): string {
  try {
    return JSON.stringify(value) ?? ''
  } catch (error) {
    // It leads back to itself, or has a bigint: then nothing is shown.
    return String(error)
  }
}

// Nothing listens there: what counts is what is kept.
const at = '127.0.0.1:1'
const cases: Record<string, PluginOptions> = {
  postgresql: {
    backend: 'postgresql', url: `postgres://u:${word}@${at}/x`, connection: { ssl: { key: `${word}-key` } },
  },
  'a function': { backend: 'postgresql', url: () => `postgres://u:${word}@${at}/x` },
  mysql: { backend: 'mysql', url: `mysql://u:${word}@${at}/x` },
  redis: { backend: 'redis', url: `redis://u:${word}@${at}` },
  sentinel: {
    backend: 'redis',
    connection: {
      sentinels: [{ host: '127.0.0.1', port: 1 }], name: 'm', password: word, sentinelPassword: `${word}-too`,
    },
  },
  cluster: {
    backend: 'redis', connection: { cluster: [{ host: '127.0.0.1', port: 1 }], redisOptions: { password: word } },
  },
  mongodb: { backend: 'mongodb', url: `mongodb://u:${word}@${at}/x` },
  targets: {
    backend: 'postgresql',
    targets: [{ url: `postgres://u:${word}@${at}/x` }, { url: `postgres://u:${word}@${at}/y`, role: 'replica' }],
  },
  connector: { connector: new FakeConnector(), url: `ldap://u:${word}@${at}`, connection: { token: word } },
}
for (const [name, options] of Object.entries(cases)) {
  t.test(`${name}: the app and its pools`, async (t) => {
    const app = Fastify()
    await app.register(fastifyPool, { ...options, startup: 'lazy', acquireTimeout: 200 } as PluginOptions)
    t.teardown(() => app.close())
    await app.ready()
    const error = await app.pools.get('db').acquire({ timeout: 50 }).catch((error: unknown) => error)
    showsNothing(t, 'an error', error)
    showsNothing(t, 'the app', app)
    showsNothing(t, 'the pools', app.pools)
    showsNothing(t, 'the pool', app.pools.get('db'))
    showsNothing(t, 'its stats', app.pools.stats())
    showsNothing(t, 'its health', await app.pools.health())
    const { mongo, redis } = app as { mongo?: { client: object, db: object }, redis?: object }
    if (redis !== undefined) showsNothing(t, 'app.redis', redis)
    if (mongo !== undefined) showsNothing(t, 'app.mongo', mongo)
  })
}

t.test('a request, its reply, and its lease', async (t) => {
  const connector = new FakeConnector()
  const { create } = connector
  connector.create = async (signal) => Object.assign(await create.call(connector, signal), { password: word })
  const app = Fastify()
  await app.register(fastifyPool, { connector, url: `ldap://u:${word}@${at}` })
  app.get('/', async (request, reply) => {
    const lease = request.lease('db')
    t.match(lease.connection, { password: word })
    for (const [what, value] of Object.entries({ request, reply, lease, holders: app.pools.holders() })) {
      showsNothing(t, what, value)
    }
    return 'well'
  })
  t.equal((await app.inject('/')).body, 'well')
  await app.close()
})
