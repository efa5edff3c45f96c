// An app with SQLite, on either driver.
import Fastify from 'fastify'
import pool, { Pool, TargetPool, sqlite } from 'fastify-pool'
import type { Connector, Lease, PoolFace, SqliteConnector, SqliteDatabase } from 'fastify-pool'

declare module 'fastify-pool' {
  interface RequestPools { db: SqliteDatabase }
}

export async function serve (): Promise<void> {
  const app = Fastify()
  await app.register(pool, { backend: 'sqlite', url: 'app.db', connection: { timeout: 100 } })

  app.get('/', async (request) => {
    const lease: Lease<SqliteDatabase> = request.lease('db')
    // @ts-expect-error It is a SqliteDatabase, not any.
    request.db.nonsense()
    return [request.db.prepare('select 1').get(), lease.connection.inTransaction]
  })

  const face: PoolFace<SqliteDatabase, SqliteConnector> = app.pools.get<'db', SqliteConnector>('db')
  const replica: Connector<SqliteDatabase> | undefined = face.backend.replica
  const made: SqliteConnector = await sqlite({ url: ':memory:', driver: 'libsql' })
  const open: boolean = await new Pool(made).use((database) => database.open)
  // @ts-expect-error A borrowed handle is a database, not any.
  await new Pool(made).use((database) => database.nonsense())
  app.pools.add(`${open} ${replica?.system}`, TargetPool.ofRoles(made, { max: 2 }))
}
