import { once } from 'node:events'
import { createServer } from 'node:net'
import t from 'tap'
import { mongodb, mysql, postgresql, redis, redisCluster, type Connector } from '../../index.js'
import { startMongoDouble } from '../doubles/mongo-wire.js'
import { startMariadb, startPostgres, startRedis } from '../support/services.js'
import { startRedisCluster } from '../support/topologies.js'

/** Node's handle of a TCP socket: options of `connect` and calls of `setKeepAlive` both end here. */
interface Handle { setKeepAlive (on: boolean, seconds: number): unknown }

async function handles (): Promise<Handle> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { _handle } = server as unknown as { readonly _handle: Handle }
  server.close()
  return Object.getPrototypeOf(_handle) as Handle
}

/** What the sockets of one connection were told, with the delay in ms. */
async function told (connector: Connector<any>): Promise<Array<[on: boolean, delay: number]>> {
  const all: Array<[boolean, number]> = []
  const handle = await handles()
  const { setKeepAlive } = handle
  handle.setKeepAlive = function (on, seconds) {
    all.push([on, seconds * 1000])
    return setKeepAlive.call(this, on, seconds)
  }
  try {
    const connection: unknown = await connector.create(AbortSignal.timeout(10_000))
    await connector.destroy(connection, 'closed')
    await connector.close?.()
    return all
  } finally {
    handle.setKeepAlive = setKeepAlive
  }
}

const on: [boolean, number] = [true, 30_000]

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
