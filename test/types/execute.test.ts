// What `execute` takes and gives, worked out from the drivers' own types.
import { expectTypeOf } from 'expect-type'
import type { Cluster, Redis } from 'ioredis'
import type { Db, Document, InsertOneResult, WithId } from 'mongodb'
import type { Connection, FieldPacket, QueryResult as MysqlResult } from 'mysql2/promise'
import type { Client, QueryResult } from 'pg'
import t from 'tap'
import type { PoolFace, SqliteDatabase } from '../../index.js'

interface Pools {
  readonly redis: PoolFace<Redis>
  readonly cluster: PoolFace<Cluster>
  readonly mongo: PoolFace<Db>
  readonly pg: PoolFace<Client>
  readonly mysql: PoolFace<Connection>
  readonly sqlite: PoolFace<SqliteDatabase>
  readonly any: PoolFace<unknown>
}

export function checkTypes ({ redis, cluster, mongo, pg, mysql, sqlite, any }: Pools): void {
  expectTypeOf(redis.execute('get', 'key')).resolves.toEqualTypeOf<string | null>()
  expectTypeOf(redis.execute({ method: 'get', retry: 2 }, 'key')).resolves.toEqualTypeOf<string | null>()
  expectTypeOf(redis.execute('mget', 'one', 'two')).resolves.toEqualTypeOf<Array<string | null>>()
  expectTypeOf(redis.execute('hgetall', 'key')).resolves.toEqualTypeOf<Record<string, string>>()
  expectTypeOf(cluster.execute('incr', 'key')).resolves.toEqualTypeOf<number>()
  expectTypeOf(mongo.execute('findOne', 'users', { name: 'a' })).resolves.toEqualTypeOf<WithId<Document> | null>()
  expectTypeOf(mongo.execute('insertOne', 'users', { name: 'a' })).resolves.toEqualTypeOf<InsertOneResult<Document>>()
  expectTypeOf(pg.execute('query', 'select 1')).resolves.toExtend<QueryResult>()
  expectTypeOf(pg.execute('query', 'select $1', [1])).resolves.toExtend<QueryResult>()
  expectTypeOf(mysql.execute('query', 'select ?', [1])).resolves.toEqualTypeOf<[MysqlResult, FieldPacket[]]>()
  expectTypeOf(sqlite.execute('run', 'insert', { a: 1 })).resolves
    .toEqualTypeOf<{ changes: number, lastInsertRowid: number | bigint }>()
  expectTypeOf(sqlite.execute('all', 'select ?', [1])).resolves.toEqualTypeOf<unknown[]>()
  expectTypeOf(any.execute('whatever', 1)).resolves.toEqualTypeOf<unknown>()

  // @ts-expect-error an unknown method
  redis.execute('sing')
  // @ts-expect-error other arguments
  redis.execute('get', 5, 5)
  // @ts-expect-error a stream
  redis.execute('scanStream')
  // @ts-expect-error a batch
  redis.execute('pipeline')
  // @ts-expect-error an option that there is not
  redis.execute({ method: 'get', tries: 2 }, 'key')
  // @ts-expect-error a cursor
  mongo.execute('find', 'users', {})
  // @ts-expect-error no collection
  mongo.execute('countDocuments', { name: 'a' })
  // @ts-expect-error a statement
  mysql.execute('prepare', 'select 1')
  // @ts-expect-error a statement
  sqlite.execute('prepare', 'select 1')
  // @ts-expect-error an iterator
  sqlite.execute('iterate', 'select 1')
}

t.test('types are checked by the compiler', async (t) => { t.type(checkTypes, 'function') })
