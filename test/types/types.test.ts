import { expectTypeOf } from 'expect-type'
import type { FastifyInstance, FastifyRequest, RouteShorthandOptions } from 'fastify'
import type { Db } from 'mongodb'
import type { Redis } from 'ioredis'
import t from 'tap'
import {
  Pool, mongodb, redis, sqlite, type Connector, type Lease, type MongoConnector, type PluginOptions, type PoolEvents,
  type PoolFace, type PoolOptions, type PoolStats, type SqliteDatabase,
} from '../../index.js'
import type { FakeConnection } from '../support/fake-connector.js'

// What is checked here is checked by `npm run typecheck`; nothing of it runs. `db` and `cache` are declared in
// test/fastify/register.test.ts.
export function checkTypes (app: FastifyInstance, request: FastifyRequest, connector: Connector<number>): void {
  // What a request sees.
  expectTypeOf(request.db).toEqualTypeOf<FakeConnection>()
  expectTypeOf(request.lease('db')).toEqualTypeOf<Lease<FakeConnection>>()
  expectTypeOf(request.acquire('db')).resolves.toEqualTypeOf<Lease<FakeConnection>>()
  expectTypeOf(request.lease('other')).toEqualTypeOf<Lease<unknown>>()
  expectTypeOf(app.pools.get('db')).toEqualTypeOf<PoolFace<FakeConnection>>()
  expectTypeOf(app.pools.get('other')).toEqualTypeOf<PoolFace<unknown>>()
  expectTypeOf(request.transaction('db', async ({ id }) => id, { isolation: 'serializable', retry: 2 }))
    .resolves.toEqualTypeOf<number>()
  // @ts-expect-error no pool of that name was declared
  expectTypeOf(request.other)

  // Options.
  expectTypeOf<{ backend: 'redis', url: string }>().toExtend<PoolOptions>()
  expectTypeOf<{ connector: Connector<number>, max: number }>().toExtend<PoolOptions<number>>()
  expectTypeOf<{ pools: { db: { backend: 'sqlite' } }, abortGrace: number }>().toExtend<PluginOptions>()
  expectTypeOf<{ backend: 'oracle' }>().not.toExtend<PoolOptions>()
  expectTypeOf<{ max: number }>().not.toExtend<PoolOptions>()
  expectTypeOf<{ backend: 'redis', max: string }>().not.toExtend<PoolOptions>()
  expectTypeOf<{
    backend: 'redis', url: () => Promise<string>, connection: () => { password: string },
  }>().toExtend<PoolOptions>()
  expectTypeOf<{ backend: 'redis', url: () => number }>().not.toExtend<PoolOptions>()
  expectTypeOf<{ backend: 'redis', circuit: false, overload: false }>().toExtend<PoolOptions>()
  expectTypeOf<{ backend: 'redis', circuit: { failures: number } }>().toExtend<PoolOptions>()
  expectTypeOf<{ backend: 'redis', circuit: true }>().not.toExtend<PoolOptions>()
  expectTypeOf<{ backend: 'redis', targets: Array<{ url: string, role: 'replica', weight: number }>, balance: 'least-used', maxLag: number }>().toExtend<PoolOptions>()
  expectTypeOf<{ targets: Array<{ connector: Connector<number> }> }>().toExtend<PoolOptions<number>>()
  expectTypeOf<{ targets: Array<{ url: string }> }>().not.toExtend<PoolOptions>()
  expectTypeOf<{ backend: 'redis', targets: Array<{ url: string, role: 'master' }> }>().not.toExtend<PoolOptions>()
  expectTypeOf<{
    backend: 'redis', bulkhead: { key: (request: FastifyRequest) => string | undefined, max: number },
  }>().toExtend<PoolOptions>()
  expectTypeOf<{ backend: 'redis', bulkhead: { max: number } }>().not.toExtend<PoolOptions>()
  expectTypeOf<{
    backend: 'redis', sticky: { key: (request: FastifyRequest) => string | undefined }, stickyFor: number,
  }>().toExtend<PoolOptions>()
  expectTypeOf<{ config: { pools: false } }>().toExtend<RouteShorthandOptions>()
  expectTypeOf<{ config: { pools: Array<'db' | 'cache'> } }>().toExtend<RouteShorthandOptions>()
  expectTypeOf<{ config: { pools: { db: { acquire: 'manual' } } } }>().toExtend<RouteShorthandOptions>()
  expectTypeOf<{
    config: { pools: { db: { transaction: true, role: 'primary' } } },
  }>().toExtend<RouteShorthandOptions>()
  expectTypeOf<{
    config: { pools: { db: { transaction: { isolation: 'serializable', commitOn: 'reply' } } } },
  }>().toExtend<RouteShorthandOptions>()
  expectTypeOf<{
    config: { pools: { db: { transaction: { isolation: 'none' } } } },
  }>().not.toExtend<RouteShorthandOptions>()
  expectTypeOf<{ config: { pools: { db: { acquire: 'never' } } } }>().not.toExtend<RouteShorthandOptions>()

  // The engine.
  const pool = new Pool(connector, { onConnect: (connection) => { expectTypeOf(connection).toEqualTypeOf<number>() } })
  expectTypeOf(pool.acquire()).resolves.toEqualTypeOf<Lease<number>>()
  expectTypeOf(pool.tryAcquire()).toEqualTypeOf<Lease<number> | null>()
  expectTypeOf(pool.use(async (connection, lease) => [connection, lease] as const))
    .resolves.toEqualTypeOf<readonly [number, Lease<number>]>()
  expectTypeOf(pool.stats()).toEqualTypeOf<PoolStats>()
  expectTypeOf(pool.use(async (connection) => String(connection), { retry: 2, timeout: 5, role: 'replica' }))
    .resolves.toEqualTypeOf<string>()
  expectTypeOf(pool.stats().circuit).toEqualTypeOf<'closed' | 'open' | 'half-open'>()
  pool.on('circuit', ({ from, to, error }) => {
    expectTypeOf(from).toEqualTypeOf<PoolStats['circuit']>()
    expectTypeOf(to).toEqualTypeOf<PoolStats['circuit']>()
    expectTypeOf(error).toEqualTypeOf<Error | undefined>()
  })
  pool.on('failover', ({ from, to }) => { expectTypeOf([from, to]).toEqualTypeOf<Array<string | undefined>>() })
  pool.on('disconnect', (event) => { expectTypeOf(event).toEqualTypeOf<PoolEvents['disconnect']>() })
  // @ts-expect-error there is no such event
  pool.on('explode', () => {})

  // Connectors, and what only they have.
  expectTypeOf(mongodb).returns.resolves.toExtend<Connector<Db>>()
  expectTypeOf(redis).returns.resolves.toExtend<Connector<Redis>>()
  expectTypeOf(sqlite<SqliteDatabase>).returns.resolves.toExtend<Connector<SqliteDatabase>>()
  expectTypeOf((mongo: MongoConnector) => new Pool(mongo).backend.client).returns.toHaveProperty('db')
}

t.test('types are checked by the compiler', async (t) => { t.type(checkTypes, 'function') })
