// An app with MongoDB.
import Fastify from 'fastify'
import pool, { Pool, mongodb } from 'fastify-pool'
import type { Connector, Lease, MongoConnector, PoolFace } from 'fastify-pool'
import type { Db, MongoClient } from 'mongodb'

declare module 'fastify-pool' {
  interface RequestPools { db: Db }
}

export async function serve (): Promise<void> {
  const app = Fastify()
  await app.register(pool, {
    pools: {
      db: {
        backend: 'mongodb',
        url: async () => 'mongodb://localhost/shop',
        connection: { readPreference: 'primary' },
      },
    },
  })

  app.get('/', async (request) => {
    const lease: Lease<Db> = await request.acquire('db')
    // @ts-expect-error It is a Db, not any.
    request.db.nonsense()
    return await lease.transaction(async (db) => db.collection('users').findOne({ name: request.db.databaseName }))
  })

  const face: PoolFace<Db, MongoConnector> = app.pools.get<'db', MongoConnector>('db')
  const client: MongoClient = face.backend.client
  const made: MongoConnector = await mongodb({ url: 'mongodb://localhost/shop', client })
  const connector: Connector<Db> = made
  const name: string = await new Pool(made).use((db) => db.databaseName)
  // @ts-expect-error The connector's client is MongoDB's, not any.
  made.client.nonsense()
  app.pools.add(name, new Pool(connector))
  console.log(app.pools.get('db').backend.database, app.mongo.client.options)
  // @ts-expect-error What hooks get is MongoDB's, not any.
  await app.register(pool, { backend: 'mongodb', name: 'other', onConnect: (db) => db.nonsense() })
}
