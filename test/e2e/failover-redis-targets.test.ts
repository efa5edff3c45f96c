import type { Redis } from 'ioredis'
import t from 'tap'
import type { PoolOptions } from '../../index.js'
import { askRedis } from '../support/services.js'
import { needsGroup, startRedisPair } from '../support/topologies.js'
import { until } from '../support/until.js'
import { failuresOf, serve, within, writeTo } from './failover-redis.js'

t.test('a master that is killed, and its replica promoted: writes succeed again at once, and the pool tells of the failover', needsGroup('Redis'), async (t) => {
  const { master, replica, promote, caughtUp } = await startRedisPair(t)
  const targets = [
    { name: 'one', url: master.url, role: 'primary' as const },
    { name: 'two', url: replica.url, role: 'replica' as const },
  ]
  // What it is now, each says itself.
  const pool: PoolOptions = { backend: 'redis', max: 8, targets, checkInterval: 200 }
  const { app, answers, failovers, firstAfter, compare, stop } =
    await serve(t, pool, (connection, n) => (connection as Redis).set('written', n))
  await caughtUp()
  t.equal(failovers.filter(({ from }) => from !== undefined).length, 0)

  compare(() => writeTo(replica, 'plain'))
  const start = performance.now()
  await master.kill()
  const dead = performance.now()
  await promote()
  const promoted = performance.now()
  const first = await firstAfter(dead)
  t.comment(`measured: from kill -9 to the first write: ${Math.round(first.at - start)} ms; promoted after ${Math.round(promoted - start)} ms; failures: ${failuresOf(answers)}`)
  t.ok(first.round < within, `a plain client wrote ${first.round} times before`)
  await until(() => failovers.some(({ to }) => to === 'two'), { what: 'the failover is told' })
  t.comment(failovers.map(({ from, to }) => `${from ?? 'none'} -> ${to ?? 'none'}`).join(', '))
  await until(() => answers.filter(({ at, status }) => at > first.at && status === 200).length > 100)
  // The dead one is missed.
  await stop('degraded')
  const [, there] = (await askRedis(new URL(replica.url), 'GET written')).split('\r\n')
  t.ok(Number(there) >= Number(first.body), 'they are at the new primary')

  await app.close()
})
