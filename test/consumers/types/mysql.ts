// An app with MySQL or MariaDB.
import Fastify from 'fastify'
import pool, { Pool, mysql } from 'fastify-pool'
import type { Connector, Lease, MysqlConnector, PoolFace } from 'fastify-pool'
import type { RowDataPacket } from 'mysql2'
import type { Connection } from 'mysql2/promise'

declare module 'fastify-pool' {
  interface RequestPools { db: Connection }
}

export async function serve (): Promise<void> {
  const app = Fastify()
  await app.register(pool, {
    pools: { db: { backend: 'mysql', url: 'mysql://localhost/shop', connection: { charset: 'utf8mb4' } } },
  })

  app.get('/', async (request) => {
    const lease: Lease<Connection> = await request.acquire('db')
    // @ts-expect-error It is a Connection, not any.
    request.db.nonsense()
    const [rows] = await request.db.query<RowDataPacket[]>('select 1 as id')
    return [rows[0]?.id, await lease.connection.execute('select 1')]
  })

  const face: PoolFace<Connection, MysqlConnector> = app.pools.get<'db', MysqlConnector>('db')
  const system: 'mysql' = face.backend.system
  const made: MysqlConnector = await mysql({ url: 'mysql://localhost/shop', reset: 'none' })
  const connector: Connector<Connection> = made
  const id: number | null = await new Pool(made).use((connection) => connection.threadId)
  // @ts-expect-error A borrowed connection is mysql2's, not any.
  await new Pool(made).use((connection) => connection.nonsense())
  app.pools.add(`${system} ${id}`, new Pool(connector))
}
