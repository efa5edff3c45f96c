import t from 'tap'
import type { PoolOptions } from '../../index.js'
import { askRedis, knownTo, type Server } from '../support/services.js'
import { needsGroup, startRedisCluster, type RedisCluster } from '../support/topologies.js'
import { until } from '../support/until.js'
import { failedSince, failuresOf, serve, within, writeTo } from './failover-redis.js'

const name = 'clustered'

const pool = ({ nodes }: RedisCluster): PoolOptions => ({
  backend: 'redis',
  max: 4,
  connection: {
    cluster: nodes.slice(0, 2).map(({ host, port }) => ({ host, port })), redisOptions: { connectionName: name },
  },
})

t.test('a master of a cluster that is killed: writes to its keys succeed again as soon as there is another one, and no lease is lost', needsGroup('Redis'), async (t) => {
  const cluster = await startRedisCluster(t)
  const [dying, living] = cluster.nodes as [Server, Server]
  const [lost, kept] = [await cluster.keyOn(dying), await cluster.keyOn(living)]
  const { app, shared, answers, firstAfter, compare, stop } =
    await serve(t, pool(cluster), (connection, n) => connection.set(lost, n))
  t.equal(shared, await app.pools.get('db').use((connection) => connection), 'app.redis is what every request has')
  await cluster.caughtUp()

  // Sent elsewhere until that node has the key.
  compare(() => writeTo(cluster.replica, lost))
  const start = performance.now()
  await dying.kill()
  const dead = performance.now()
  const others = (async () => {
    let slowest = 0
    let refused = 0
    while (answers.every(({ began, status }) => began < dead || status !== 200)) {
      const asked = performance.now()
      await shared.set(kept, 1).catch(() => { refused++ })
      slowest = Math.max(slowest, performance.now() - asked)
    }
    return `the slowest write took ${Math.round(slowest)} ms, ${refused} failed`
  })()
  const first = await firstAfter(dead)
  t.comment(`measured: from kill -9 to the first write: ${Math.round(first.at - start)} ms; failures: ${failuresOf(answers)}`)
  // The nodes refuse all keys while some have no master, and ioredis tries again.
  t.comment(`to keys of another node: ${await others}`)
  t.ok(first.round < within, `a plain client wrote ${first.round} times before`)
  await until(() => answers.filter(({ round, status }) => round > first.round + 10 && status === 200).length > 100)
  t.same(failedSince(first, answers), [], 'and all succeed from then on')
  await stop()
  t.equal((await cluster.nodeOf(lost)).port, cluster.replica.port)
  t.match(await askRedis(new URL(cluster.replica.url), `GET ${lost}`), /^\$\d+\r\n\d+/, 'they are at the new master')
  t.equal(app.pools.stats().db!.destroyed.error, 0, 'no lease was lost for it')
  await app.close()
  for (const node of cluster.nodes.slice(1)) {
    await until(async () => await knownTo([node], name) === 0,
      { what: 'no connection is left' })
  }
})

t.test('a replica of a cluster that takes over from its living master fails no request', needsGroup('Redis'), async (t) => {
  const cluster = await startRedisCluster(t)
  const key = await cluster.keyOn(cluster.nodes[0]!)
  const { answers, firstAfter, stop } = await serve(t, pool(cluster), (connection, n) => connection.set(key, n))
  await cluster.failover()
  await firstAfter(performance.now())
  await stop()
  t.equal(failuresOf(answers), 'none')
  t.match(await askRedis(new URL(cluster.replica.url), `GET ${key}`), /^\$\d+\r\n\d+/, 'they are at the new master')
})
