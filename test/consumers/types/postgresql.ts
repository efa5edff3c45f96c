// An app with PostgreSQL.
import Fastify from 'fastify'
import pool, { Pool, postgresql } from 'fastify-pool'
import type { Connector, Lease, PoolFace, PostgresConnector } from 'fastify-pool'
import type { Client } from 'pg'

declare module 'fastify-pool' {
  interface RequestPools { db: Client }
}

export async function serve (): Promise<void> {
  const app = Fastify()
  await app.register(pool, {
    pools: {
      db: {
        backend: 'postgresql',
        targets: [{ url: 'postgres://a' }, { url: 'postgres://b', role: 'replica' }],
        maxLag: 100,
      },
    },
  })

  app.post('/', { config: { pools: { db: { transaction: { isolation: 'serializable' } } } } }, async (request) => {
    const lease: Lease<Client> = request.lease('db')
    // @ts-expect-error It is a Client, not any.
    request.db.nonsense()
    const { rows } = await request.db.query<{ id: number }>('select 1 as id')
    return [rows[0]?.id.toFixed(), await lease.connection.query('select 1')]
  })

  // @ts-expect-error No pool has that name.
  app.get('/absent', { config: { pools: ['absent'] } }, async () => 'well')
  // @ts-expect-error There is no such policy.
  app.get<{ Params: object }>('/policy', { config: { pools: { db: { aquire: 'manual' } } } }, async () => 'well')
  await app.register(pool, {
    name: 'other',
    backend: 'postgresql',
    onConnect: async (client) => { await client.query('select 1') },
    // @ts-expect-error What hooks get is pg's, not any.
    wrap: (client) => client.nonsense(),
  })
  // @ts-expect-error There is no such option.
  await app.register(pool, { pools: { db: { backend: 'postgresql', maxx: 5 } } })

  const system: 'postgresql' = app.pools.get('db').backend.system
  console.log(system)
  const face: PoolFace<Client, PostgresConnector> = app.pools.get<'db', PostgresConnector>('db')
  const stop: () => Promise<void> = await face.backend.listen('orders', (payload, channel) => payload + channel)
  const made: PostgresConnector = await postgresql({ url: 'postgres://a', reset: 'transaction' })
  const connector: Connector<Client> = made
  const count: number | null = await new Pool(made).use(async (client) => (await client.query('select 1')).rowCount)
  // @ts-expect-error A borrowed connection is pg's, not any.
  await new Pool(made).use((client) => client.nonsense())
  app.pools.add(`${count}`, new Pool(connector))
  await stop()
  for await (const { payload } of app.pools.get('db').backend.listen('orders')) console.log(payload.length)
}
