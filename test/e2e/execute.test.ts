import { join } from 'node:path'
import type { Cluster, Redis } from 'ioredis'
import type { Db } from 'mongodb'
import type { Connection } from 'mysql2/promise'
import type { Client } from 'pg'
import QueryStream from 'pg-query-stream'
import t, { type Test } from 'tap'
import { Pool, TargetPool, mongodb, mysql, postgresql, redis, redisCluster, sqlite } from '../../index.js'
import { startMongoDouble } from '../doubles/mongo-wire.js'
import { host, startMariadb, startMongo, startPostgres, startRedis } from '../support/services.js'
import { startRedisCluster } from '../support/topologies.js'
import { until } from '../support/until.js'

/** None of them may be open behind a call that was refused, nor behind one that was not. */
async function isFree (t: Test, pool: Pool<never> | TargetPool<never>): Promise<void> {
  // One that is being cleaned counts as used.
  await until(() => pool.stats().used === 0)
  t.equal(pool.stats().pending, 0)
}

const refused = { code: 'FST_POOL_NOT_SUPPORTED' }

t.test('PostgreSQL', async (t) => {
  const { url } = await startPostgres(t)
  const pool = new Pool<Client>(await postgresql({ url }), { max: 1 })
  t.teardown(() => pool.close())
  const { rows } = await pool.execute('query', 'select $1::int + 1 as sum', [1])
  t.strictSame(rows, [{ sum: 2 }])
  t.strictSame((await pool.execute('query', { text: 'select 1 as one', rowMode: 'array' })).rows, [[1]])
  await t.rejects(pool.execute('query', 'select nonsense'), { code: '42703' }, 'the database says it itself')
  const query = pool.execute as (...args: unknown[]) => Promise<unknown>
  await t.rejects(query.call(pool, 'query', new QueryStream('select 1')), refused)
  await t.rejects(query.call(pool, 'ask', 'select 1'), refused)
  t.strictSame((await pool.execute('query', 'select 1 as one')).rows, [{ one: 1 }], 'and the pool goes on')
  await isFree(t, pool as never)
})

t.test('MySQL', async (t) => {
  const { url } = await startMariadb(t)
  const pool = new Pool<Connection>(await mysql({ url }), { max: 1 })
  t.teardown(() => pool.close())
  for (const method of ['query', 'execute'] as const) {
    const [rows] = await pool.execute(method, 'select ? + 1 as total', [1])
    t.match(rows, [{ total: 2 }])
  }
  await t.rejects((pool.execute as (...args: unknown[]) => Promise<unknown>).call(pool, 'prepare', 'select 1'), refused)
  t.match((await pool.execute('query', 'select 1 as one'))[0], [{ one: 1 }])
  await isFree(t, pool as never)
})

t.test('Redis, and a cluster', async (t) => {
  const pool = new Pool<Redis>(await redis({ url: (await startRedis(t)).url }), { max: 1 })
  const nodes = (await startRedisCluster(t)).nodes.map(({ port }) => ({ host, port }))
  const cluster = new Pool<Cluster>(await redisCluster({ connection: { cluster: nodes } }), { max: 1 })
  t.teardown(() => Promise.all([pool.close(), cluster.close()]))
  for (const one of [pool, cluster as unknown as Pool<Redis>]) {
    t.equal(await one.execute('set', 'execute', 'value'), 'OK')
    t.equal(await one.execute('get', 'execute'), 'value')
    const call = (one.execute as (...args: unknown[]) => Promise<unknown>).bind(one)
    for (const method of ['pipeline', 'multi', ...one === pool ? ['scanStream', 'duplicate'] : ['sing']]) {
      await t.rejects(call(method), refused, method)
    }
    t.equal(await one.execute('del', 'execute'), 1)
    await isFree(t, one as never)
  }
})

t.test('MongoDB: the collection comes first', async (t) => {
  const { url } = await startMongo(t) ?? await startMongoDouble(t)
  const pool = new Pool<Db>(await mongodb({ url, database: `execute_${process.pid}` }), { max: 2 })
  t.teardown(() => pool.close())
  t.match(await pool.execute('insertOne', 'users', { name: 'ada' }), { acknowledged: true })
  t.match(await pool.execute('findOne', 'users', { name: 'ada' }), { name: 'ada' })
  t.equal(await pool.execute('countDocuments', 'users'), 1)
  const call = (pool.execute as (...args: unknown[]) => Promise<unknown>).bind(pool)
  for (const method of ['find', 'aggregate', 'initializeOrderedBulkOp', 'watch', 'listIndexes', 'findTwo']) {
    await t.rejects(call(method, 'users'), refused, method)
  }
  t.equal(await pool.execute('drop', 'users'), true)
  await isFree(t, pool as never)
})

t.test('SQLite: a statement is run and forgotten', async (t) => {
  const path = join(t.testdir(), 'app.db')
  const pool = TargetPool.ofRoles(await sqlite({ url: path }), { max: 2 })
  t.teardown(() => pool.close())
  await pool.use((db) => db.exec('create table notes (id integer primary key, text text)'))
  t.match(await pool.execute('run', 'insert into notes (text) values (?)', ['one']), { changes: 1, lastInsertRowid: 1 })
  t.match(await pool.execute('run', 'insert into notes (text) values (:text)', { text: 'two' }), { lastInsertRowid: 2 })
  t.match(await pool.execute({ method: 'get', role: 'replica' }, 'select text from notes where id = ?', [2]), { text: 'two' })
  t.match(await pool.execute('all', 'select id from notes order by id'), [{ id: 1 }, { id: 2 }])
  const call = (pool.execute as (...args: unknown[]) => Promise<unknown>).bind(pool)
  for (const method of ['prepare', 'iterate', 'exec', 'transaction']) await t.rejects(call(method, 'select 1'), refused, method)
  await isFree(t, pool as never)
})
