import type { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import type { PoolOptions } from '../../index.js'
import { askRedis, knownTo, type Server } from '../support/services.js'
import { needsGroup, startRedisSentinel, type RedisSentinel } from '../support/topologies.js'
import { until } from '../support/until.js'
import { failedSince, failuresOf, serve, writeTo, type Client } from './failover-redis.js'

const name = 'failing-over'

function pool ({ sentinels, name: group }: RedisSentinel): PoolOptions {
  return {
    backend: 'redis',
    max: 4,
    connection: {
      sentinels: sentinels.map(({ host, port }) => ({ host, port })), name: group, connectionName: name,
    }
  }
}

const write = (connection: Client, n: number) => (connection as Redis).set('written', n)

/**
 * So many writes of a plain client that asks the sentinels (see `startPace`) may come before the first one of ours: 1 s
 * of them where nothing is slow.
 */
const beyond = 20

/** Asks the sentinels as a client does, and writes to a new master that they name. */
async function writeToNew ({ masterNow, master, replica }: RedisSentinel): Promise<void> {
  if (await masterNow() === master.port) throw new Error('no new master is announced')
  await writeTo(replica, 'plain')
}

/** Resolves with when the sentinels first name another one than `master`. */
async function announcement ({ masterNow }: RedisSentinel, master: Server): Promise<number> {
  return await until(async () => await masterNow() !== master.port && performance.now(),
    { timeout: 20_000, what: 'the sentinels announce a new master' })
}

async function killed (t: Test, group: RedisSentinel, alsoKill: readonly Server[]): Promise<void> {
  const { app, shared, answers, firstAfter, compare, stop } = await serve(t, pool(group), write)
  await group.caughtUp()
  compare(() => writeToNew(group))
  const start = performance.now()
  const announced = announcement(group, group.master)
  await Promise.all([group.master, ...alsoKill].map((server) => server.kill()))
  const dead = performance.now()
  const sharedWrite = shared.set('shared', 1).then(() => ({ at: performance.now(), round: answers.at(-1)!.round }))
  const first = await firstAfter(dead)
  const [at, { at: sharedAt, round: sharedRound }] = await Promise.all([announced, sharedWrite])
  t.comment(`measured: from kill -9 to the first write: ${Math.round(first.at - start)} ms; the sentinels' announcement: ${Math.round(at - start)} ms; the shared client: ${Math.round(sharedAt - start)} ms`)
  t.comment(`failures: ${failuresOf(answers)}`)
  t.ok(first.round < beyond, `a plain client wrote ${first.round} times before`)
  t.ok(sharedRound < beyond, `and ${sharedRound} times before the shared client`)
  // All of them, not only a lucky one.
  await until(() => answers.filter(({ round, status }) => round > first.round + 10 && status === 200).length > 100)
  t.same(failedSince(first, answers), [], 'and all succeed from then on')
  await stop()
  const [, there] = (await askRedis(new URL(group.replica.url), 'GET written')).split('\r\n')
  t.ok(Number(there) >= Number(first.body), 'they are at the new master')
  await app.close()
  await until(async () => await knownTo([group.replica], name) === 0)
}

t.test('a master that is killed: writes succeed again as soon as the sentinels have announced another one', needsGroup('Redis'), async (t) => {
  await killed(t, await startRedisSentinel(t), [])
})

t.test('a master that is killed together with the sentinel that is asked first', needsGroup('Redis'), async (t) => {
  const group = await startRedisSentinel(t, { sentinels: 3 })
  await killed(t, group, group.sentinels.slice(0, 1))
})

t.test('a failover without a death leaves no connection at the demoted master, and no request hangs', needsGroup('Redis'), async (t) => {
  const group = await startRedisSentinel(t)
  const { app, shared, answers, firstAfter, compare, stop } = await serve(t, pool(group), write)
  await shared.set('shared', 1)
  t.ok(await knownTo([group.master], name) > 1, 'they are at the master')
  compare(() => writeToNew(group))
  await group.failover()
  const at = await announcement(group, group.master)
  // Before the sentinels demote it, which is what makes it take no more writes.
  await until(async () => await knownTo([group.master], name) === 0,
    { what: 'the old master has no connection of ours' })
  const role = await askRedis(new URL(group.master.url), 'ROLE')
  t.comment(`the old master has no connection ${Math.round(performance.now() - at)} ms after the announcement, and is a ${/master|slave/.exec(role)?.[0]}`)
  const first = await firstAfter(performance.now())
  t.ok(first.round < beyond, `a plain client wrote ${first.round} times before`)
  await shared.set('shared', 2)
  t.comment(`failures: ${failuresOf(answers)}`)
  t.same(answers.filter(({ status, body }) => status !== 200 && !/closed|READONLY/.test(body)).slice(0, 3), [],
    'only what was under way at the old master failed')
  await stop()
  t.equal(await knownTo([group.master], name), 0)
  t.match(await askRedis(new URL(group.replica.url), 'GET shared'), /2/)
  await app.close()
})

t.test('a master that hangs is left as soon as there is another one', needsGroup('Redis'), async (t) => {
  const group = await startRedisSentinel(t)
  const { answers, shared, firstAfter, compare, stop } = await serve(t, pool(group), write)
  await shared.set('shared', 1)
  compare(() => writeToNew(group))
  const announced = announcement(group, group.master)
  const start = performance.now()
  group.master.pause()
  const sharedWrite = shared.set('shared', 2)
  const at = await announced
  const first = await firstAfter(at)
  await sharedWrite
  t.comment(`measured: from SIGSTOP to the first write: ${Math.round(first.at - start)} ms; the announcement: ${Math.round(at - start)} ms; failures: ${failuresOf(answers)}`)
  t.ok(first.round < beyond, `a plain client wrote ${first.round} times before`)
  await stop()
  group.master.resume()
})
