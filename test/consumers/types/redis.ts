// An app with Redis.
import Fastify from 'fastify'
import pool, { Pool, redis, redisCluster } from 'fastify-pool'
import type { Connector, Lease, PoolFace, RedisClusterConnector, RedisConnector } from 'fastify-pool'
import type { Cluster, Redis } from 'ioredis'

declare module 'fastify-pool' {
  interface RequestPools { cache: Redis, cluster: Cluster }
}

export async function serve (): Promise<void> {
  const app = Fastify()
  await app.register(pool, {
    pools: {
      cache: { backend: 'redis', url: 'redis://localhost', connection: { db: 1 } },
      cluster: { backend: 'redis', connection: { cluster: [{ host: 'localhost', port: 7000 }] } },
    },
  })

  app.get('/', async (request) => {
    const lease: Lease<Redis> = await request.acquire('cache')
    const cluster: Cluster = request.cluster
    // @ts-expect-error It is a Redis, not any.
    request.cache.nonsense()
    return [await request.cache.get('a'), await lease.connection.get('b'), await cluster.get('c')]
  })

  const face: PoolFace<Redis, RedisConnector> = app.pools.get<'cache', RedisConnector>('cache')
  const client: Redis = face.backend.client
  const made: RedisConnector = await redis({ url: 'redis://localhost', client })
  const connector: Connector<Redis> = made
  const several: RedisClusterConnector = await redisCluster({ connection: { cluster: [] } })
  const value: string | null = await new Pool(made).use((connection) => connection.get('a'), { retry: 1 })
  const nodes: number = await new Pool(several).use((cluster) => cluster.nodes().length)
  // @ts-expect-error The connector's client is ioredis', not any.
  made.client.nonsense()
  app.pools.add(`${value} ${nodes}`, new Pool(connector))
  const stop: () => Promise<void> =
    await app.pools.get('cache').backend.subscribe('a', (message, channel) => message + channel)
  for await (const { message, dropped } of app.pools.get('cluster').backend.subscribe({ shard: 'a' }, { limit: 9 })) {
    console.log(message.length + dropped)
  }
  await stop()
  const shared: Redis = app.pools.get('cache').backend.client
  await app.redis.set('a', await shared.get('b') ?? '')
  // @ts-expect-error What hooks get is ioredis', not any.
  await app.register(pool, { backend: 'redis', name: 'other', onConnect: (client) => client.nonsense() })
}
