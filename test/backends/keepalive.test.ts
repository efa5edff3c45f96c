import { Socket } from 'node:net'
import t from 'tap'
import { mongodb, mysql, postgresql, redis, redisCluster, type Connector } from '../../index.js'
import { startMongoDouble } from '../doubles/mongo-wire.js'
import { startMariadb, startPostgres, startRedis } from '../support/services.js'
import { startRedisCluster } from '../support/topologies.js'

/** What the sockets of one connection were told, as the kernel is. */
async function told (connector: Connector<any>): Promise<Array<[on: unknown, delay: unknown]>> {
  const all: Array<[unknown, unknown]> = []
  const { setKeepAlive } = Socket.prototype
  Socket.prototype.setKeepAlive = function (on, delay) {
    all.push([on, delay])
    return setKeepAlive.call(this, on, delay)
  }
  try {
    const connection: unknown = await connector.create(AbortSignal.timeout(10_000))
    await connector.destroy(connection, 'closed')
    await connector.close?.()
    return all
  } finally {
    Socket.prototype.setKeepAlive = setKeepAlive
  }
}

const on: [unknown, unknown] = [true, 30_000]

t.test('postgresql', async (t) => {
  const { url } = await startPostgres(t)
  t.same(await told(await postgresql({ url })), [on])
  t.same(await told(await postgresql({ url, connection: { keepAlive: false } })), [])
  t.same(await told(await postgresql({ url, connection: { keepAliveInitialDelayMillis: 5000 } })), [[true, 5000]])
})

t.test('mysql', async (t) => {
  const { url } = await startMariadb(t)
  t.same(await told(await mysql({ url })), [on])
  t.same(await told(await mysql({ url, connection: { enableKeepAlive: false } })), [])
  t.same(await told(await mysql({ url, connection: { keepAliveInitialDelay: 5000 } })), [[true, 5000]])
})

t.test('redis', async (t) => {
  const { url } = await startRedis(t)
  t.same(await told(await redis({ url })), [on])
  t.same(await told(await redis({ url, connection: { keepAlive: 5000 } })), [[true, 5000]])
})

t.test('redis cluster', async (t) => {
  const { nodes } = await startRedisCluster(t)
  const cluster = nodes.map(({ host, port }) => ({ host, port }))
  const all = await told(await redisCluster({ connection: { cluster } }))
  t.ok(all.length > 0)
  for (const one of all) t.same(one, on)
})

t.test('mongodb, whose driver does so itself', async (t) => {
  const { url } = await startMongoDouble(t)
  const all = await told(await mongodb({ url }))
  t.ok(all.length > 0)
  for (const [isOn] of all) t.equal(isOn, true)
})
