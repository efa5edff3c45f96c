import fastifyRedis from '@fastify/redis'
import Fastify from 'fastify'
import t from 'tap'
import plugin from '../../index.js'
import { startRedis } from '../support/services.js'

const server = await startRedis(t)

async function appWith (names: readonly string[]) {
  const app = Fastify()
  t.teardown(() => app.close())
  for (const [at, namespace] of names.entries()) {
    await app.register(fastifyRedis, { namespace, url: `${server.url}/${at + 1}`, closeClient: true })
  }
  return app
}

t.test('a pool without an address takes over the client of @fastify/redis that has its name', async (t) => {
  const app = await appWith(['sessions', 'cache'])
  const taken = (app as unknown as { redis: Record<string, object> }).redis.cache
  await app.register(plugin, { pools: { cache: { backend: 'redis', startup: 'lazy' } } })
  t.equal(Reflect.get(app.pools.get('cache' as never).backend, 'client'), taken)
  await app.pools.get('cache' as never).use((connection: import('ioredis').Redis) => {
    t.equal(connection.options.db, 2, 'its connections go where that client goes')
  })
})

t.test('where there are clients with names and none has the pool\'s, it is refused: localhost is not meant', async (t) => {
  const app = await appWith(['sessions'])
  await t.rejects(async () => { await app.register(plugin, { pools: { cache: { backend: 'redis' } } }) }, {
    code: 'FST_POOL_BAD_OPTIONS', message: /pool 'cache'.*'sessions'/,
  })
})
