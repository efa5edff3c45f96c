import { Cluster, Redis } from 'ioredis'
import { MongoClient } from 'mongodb'
import { createConnection } from 'mysql2/promise'
import pg from 'pg'
import t from 'tap'
import type { Test } from 'tap'
import { findMongod, runs } from './find.mjs'
import { childrenOf } from './services.js'
import type { Server, Teardown } from './services.js'
import {
  needsGroup, startMariadbPair, startMongoReplicaSet, startPostgresPair, startRedisCluster, startRedisPair,
  startRedisSentinel,
} from './topologies.js'
import type { MariadbPair, Pair, PairOptions } from './topologies.js'
import { until } from './until.js'

const family = (pid: number): number[] => childrenOf(pid).flatMap((child) => [child, ...family(child)])

/** A test after which no process of the group is left. */
function group (name: string, options: { skip: string | false }, fn: (t: Test) => Promise<void>): void {
  t.test(name, options, async (t) => {
    const others = new Set(family(process.pid))
    let ours: number[] = []
    await t.test('from its start to its end', async (t) => {
      await fn(t)
      ours = family(process.pid).filter((pid) => !others.has(pid))
    })
    t.not(ours.length, 0)
    t.same(ours.filter(runs), [], 'nothing is left')
  })
}

const since = (at: number): string => `${((performance.now() - at) / 1000).toFixed(2)} s`

/** What `ask` gives, or undefined where it fails: for `until`, since a server that comes or goes refuses. */
async function settled<T> (ask: () => Promise<T>): Promise<T | undefined> {
  const [result] = await Promise.allSettled([ask()])
  return result.status === 'fulfilled' ? result.value : undefined
}

t.test('a group is skipped where only a URL was given, and fails where there is nothing at all', async (t) => {
  const names = ['REDIS', 'POSTGRES', 'MARIADB'].map((name) => `POOL_TEST_${name}_URL`)
  const before = names.map((name) => [name, process.env[name]] as const)
  t.teardown(() => {
    for (const [name, url] of before) {
      if (url === undefined) delete process.env[name]
      else process.env[name] = url
    }
  })
  const missing = () => undefined
  const find =
    Object.fromEntries(['Redis', 'Postgres', 'Pgbouncer', 'Mariadb', 'Mongod',
      'Ferretdb'].map((name) => [`find${name}`, missing]))
  const services =
    await t.mockImport<object>('./services.js',
      { './find.mjs': { clearPostgres: missing, runs, which: missing, ...find } })
  const nothing =
    await t.mockImport<typeof import('./topologies.js')>('./topologies.js',
      { './find.mjs': find, './services.js': services })
  for (const name of names) process.env[name] = 'redis://127.0.0.1'
  for (const kind of ['Redis', 'PostgreSQL', 'MariaDB'] as const) {
    t.type(nothing.needsGroup(kind).skip, 'string')
    delete process.env[names.shift()!]
    t.same(nothing.needsGroup(kind), { skip: false })
  }
  const { startPostgresPair, startMariadbPair, startRedisPair, startRedisSentinel, startRedisCluster } = nothing
  const starts: Array<(t: Test) =>
  Promise<unknown>> = [startPostgresPair, startMariadbPair, startRedisPair, startRedisSentinel, startRedisCluster]
  for (const start of starts) await t.rejects(start(t), /npm run pretest/)
  t.equal(await nothing.startMongoReplicaSet(t), undefined)
})

// --- PostgreSQL and MariaDB ------------------------------------------------------------------------------------------

interface Session { ask (sql: string): Promise<unknown[][]> }

async function postgresSession (t: Teardown, { url }: Server): Promise<Session> {
  const client = new pg.Client({ connectionString: url })
  client.on('error', () => {}) // Its server is killed, which is what these tests are about.
  t.teardown(async () => await client.end())
  await client.connect()
  return { ask: async (sql) => (await client.query<unknown[]>({ text: sql, rowMode: 'array' })).rows }
}

async function mariadbSession (t: Teardown, { url }: Server): Promise<Session> {
  const connection = await createConnection({ uri: url, rowsAsArray: true })
  connection.on('error', () => {}) // As above.
  t.teardown(() => connection.destroy())
  return { ask: async (sql) => (await connection.query(sql))[0] as unknown as unknown[][] }
}

interface Kind {
  name: 'PostgreSQL' | 'MariaDB'
  start (t: Teardown, options?: PairOptions): Promise<Pair>
  open (t: Teardown, server: Server): Promise<Session>
  /** Of a write to a replica. */
  refusal: { code: string }
  /** The text of what a server has committed, or of what a replica has received. */
  committed (session: Session): Promise<string>
  received (session: Session): Promise<string>
}

const value = async (session: Session, sql: string) => String((await session.ask(sql))[0]?.[0])

const kinds: Kind[] = [{
  name: 'PostgreSQL',
  start: startPostgresPair,
  open: postgresSession,
  refusal: { code: '25006' },
  committed: async (session) => await value(session, 'SELECT pg_current_wal_flush_lsn()'),
  received: async (session) => await value(session, 'SELECT pg_last_wal_receive_lsn()'),
}, {
  name: 'MariaDB',
  start: startMariadbPair,
  open: mariadbSession,
  refusal: { code: 'ER_OPTION_PREVENTS_STATEMENT' },
  committed: async (session) => await value(session, 'SELECT @@gtid_binlog_pos'),
  received: async (session) =>
    String((await session.ask('SHOW SLAVE STATUS')).flat().find((field) => /^\d+-\d+-\d+$/.test(String(field)))),
}]

for (const { name, start, open, refusal, committed, received } of kinds) {
  group(`a ${name} with two replicas: they follow, lag when told to, and one is promoted when the primary is killed`, needsGroup(name), async (t) => {
    const started = performance.now()
    const { primary, replicas, promote, pauseReplay, resumeReplay, caughtUp } = await start(t, { replicas: 2 })
    t.comment(`ready after ${since(started)}`)
    const [one, two] = replicas as [Server, Server]
    t.equal(new Set([primary, one, two].map(({ port }) => port)).size, 3)
    const rows = async (session: Session) => (await session.ask('SELECT n FROM things ORDER BY n')).flat()
    const write = async (session: Session, n: number) => await session.ask(`INSERT INTO things VALUES (${n})`)

    const main = await open(t, primary)
    await main.ask('CREATE TABLE things (n int)')
    await write(main, 1)
    const written = performance.now()
    await Promise.all(replicas.map(caughtUp))
    t.comment(`caught up after ${since(written)}`)
    const reader = await open(t, one)
    t.same(await rows(reader), [1])
    t.same(await rows(await open(t, two)), [1])
    await t.rejects(write(reader, 9), refusal, 'a replica takes no writes')

    await pauseReplay(one)
    await write(main, 2)
    await caughtUp(two)
    await until(async () => await received(reader) === await committed(main),
      { what: 'it has received what it does not show' })
    t.same(await rows(reader), [1], 'it does not show what it has')
    t.same(await rows(await open(t, two)), [1, 2], 'the other one does')
    await resumeReplay(one)
    await caughtUp(one)
    t.same(await rows(reader), [1, 2])

    await one.kill()
    await write(main, 3)
    await one.restart()
    await caughtUp(one)
    const again = await open(t, one)
    t.same(await rows(again), [1, 2, 3])
    await t.rejects(write(again, 9), refusal)

    // Restarted itself, a primary is one again, and is found by its replicas.
    await primary.kill()
    await primary.restart()
    const restarted = await open(t, primary)
    await write(restarted, 4)
    await caughtUp(two)

    await caughtUp(one)
    await pauseReplay(one)
    await write(restarted, 5)
    await until(async () => await received(again) === await committed(restarted),
      { what: 'it has received what it does not show' })
    const killed = performance.now()
    await primary.kill()
    await promote(one)
    await write(again, 6)
    t.comment(`from kill -9 to a write at the promoted replica: ${since(killed)}`)
    t.same(await rows(again), [1, 2, 3, 4, 5, 6], 'what it had received is not lost')
    await t.rejects(write(await open(t, two), 9), refusal, 'the other one is still a replica')
    await one.kill()
    await one.restart()
    const promoted = await open(t, one)
    await write(promoted, 7)
    t.same(await rows(promoted), [1, 2, 3, 4, 5, 6, 7], 'restarted, it takes writes still')
    await primary.restart()
    t.same(await rows(await open(t, primary)), [1, 2, 3, 4, 5], 'the old primary knows nothing of that')
  })
}

group('the lag of a MariaDB replica is unknown when it is stopped, and grows when it is locked', needsGroup('MariaDB'), async (t) => {
  const pair: MariadbPair = await startMariadbPair(t)
  const [replica] = pair.replicas as [Server]
  const connection = await createConnection({ uri: replica.url })
  connection.on('error', () => {}) // Its server is killed, as in the other tests.
  t.teardown(() => connection.destroy())
  const lag = async () => {
    const [rows] = await connection.query('SHOW SLAVE STATUS')
    return (rows as Array<Record<string, unknown>>)[0]?.Seconds_Behind_Master
  }
  const main = await mariadbSession(t, pair.primary)
  t.equal(await lag(), 0)
  await pair.pauseReplay(replica)
  t.equal(await lag(), null)
  await pair.resumeReplay(replica)
  await until(async () => await lag() === 0)
  await pair.pauseReplay(replica, 'locked')
  t.equal(await lag(), 0)
  await main.ask('CREATE TABLE things (n int)')
  await until(async () => Number(await lag()) >= 1, { what: 'it lags' })
  await pair.resumeReplay(replica)
  await pair.caughtUp(replica)
  await until(async () => await lag() === 0)

  await pair.pauseReplay(replica, 'locked')
  await main.ask('INSERT INTO things VALUES (1)')
  await replica.kill()
  await replica.restart()
  await pair.caughtUp(replica)
  t.same(await (await mariadbSession(t, replica)).ask('SELECT n FROM things'), [[1]], 'a lock does not outlive a kill')
})

// --- Redis -----------------------------------------------------------------------------------------------------------

const needsRedis = needsGroup('Redis')

/** Each command is tried once. A sentinel cuts off the clients of whom it promotes: it connects again. */
function redis (t: Teardown, { port }: Server): Redis {
  const client = new Redis({
    port, host: '127.0.0.1', lazyConnect: true, retryStrategy: () => 10, maxRetriesPerRequest: 0,
  })
  client.on('error', () => {}) // Its server is killed, which is what these tests are about.
  t.teardown(() => client.disconnect())
  return client
}

group('a Redis with a replica: it follows, lags when told to, and takes writes once promoted', needsRedis, async (t) => {
  const started = performance.now()
  const { master, replica, promote, pauseReplay, resumeReplay, caughtUp } = await startRedisPair(t)
  t.comment(`ready after ${since(started)}`)
  const main = redis(t, master)
  const reader = redis(t, replica)
  await main.set('key', '1')
  await caughtUp()
  t.equal(await reader.get('key'), '1')
  await t.rejects(reader.set('key', '9'), /READONLY/)
  await pauseReplay()
  await main.set('key', '2')
  t.match(await reader.info('replication'), /master_link_status:down/)
  t.equal(await reader.get('key'), '1')
  await resumeReplay()
  await caughtUp()
  t.equal(await reader.get('key'), '2')

  await replica.kill()
  await main.set('key', '3')
  await replica.restart()
  const again = redis(t, replica)
  await until(async () => await again.get('key') === '3', { what: 'the restarted replica has it' })
  await t.rejects(again.set('key', '9'), /READONLY/)

  const killed = performance.now()
  await master.kill()
  await promote()
  await again.set('key', '4')
  t.comment(`from kill -9 to a write at the promoted replica: ${since(killed)}`)
  await replica.kill()
  await replica.restart()
  t.equal(await redis(t, replica).set('key', '5'), 'OK', 'restarted, it takes writes still')
})

group('a Redis with a sentinel: told to, it makes the replica the master', needsRedis, async (t) => {
  const started = performance.now()
  const { master, replica, sentinels, name, masterNow, failover, caughtUp } = await startRedisSentinel(t)
  t.comment(`ready after ${since(started)}`)
  t.equal(sentinels.length, 1)
  t.equal(await masterNow(), master.port)
  const main = redis(t, master)
  await main.set('key', '1')
  await caughtUp()
  const told = performance.now()
  await failover()
  const promoted = redis(t, replica)
  await until(async () => await settled(() => promoted.set('key', '2')), { what: 'the replica takes writes' })
  t.comment(`from SENTINEL FAILOVER to a write at the promoted replica: ${since(told)}`)
  await until(async () => await masterNow() === replica.port, { what: 'the sentinel announces it' })
  t.comment(`from SENTINEL FAILOVER to its announcement: ${since(told)}`)
  await until(async () => await settled(() => main.set('key', '9')) === undefined,
    { what: 'the old master takes no writes any more' })
  const client = new Redis({ sentinels: sentinels.map(({ host, port }) => ({ host, port })), name })
  t.teardown(() => client.disconnect())
  t.equal(await client.get('key'), '2')
})

group('a Redis with three sentinels: when the master is killed, and one of them, the replica becomes the master', needsRedis, async (t) => {
  const started = performance.now()
  const { master, replica, sentinels, name, masterNow, caughtUp } = await startRedisSentinel(t, { sentinels: 3 })
  t.comment(`ready after ${since(started)}`)
  const client = new Redis({
    sentinels: sentinels.map(({ host, port }) => ({ host, port })),
    name,
    sentinelRetryStrategy: () => 50,
    retryStrategy: () => 50,
    maxRetriesPerRequest: null,
    connectTimeout: 1000,
  })
  client.on('error', () => {}) // Its server is killed, which is what this test is about.
  t.teardown(() => client.disconnect())
  await client.set('key', '1')
  await caughtUp()
  for (const sentinel of sentinels) t.match(await redis(t, sentinel).call('SENTINEL', 'CKQUORUM', name), /^OK 3 usable/)
  await sentinels[0]!.kill()
  t.equal(await masterNow(), master.port, 'the others answer')
  const killed = performance.now()
  await master.kill()
  const promoted = redis(t, replica)
  await until(async () => await settled(() => promoted.set('key', '2')), { what: 'the replica takes writes' })
  t.comment(`from kill -9 to a write at the promoted replica: ${since(killed)}`)
  await until(async () => await masterNow() === replica.port, { what: 'the sentinels announce it' })
  t.comment(`from kill -9 to the announcement: ${since(killed)}`)
  t.equal(await client.get('key'), '2')
  await client.set('key', '3')
  t.comment(`from kill -9 to a write of an ioredis that asks the sentinels: ${since(killed)}`)
  t.equal(await promoted.get('key'), '3')
})

group('a Redis Cluster: each master has its keys, and the replica takes over when told to, or when its master dies', needsRedis, async (t) => {
  const started = performance.now()
  const { nodes, replica, nodeOf, keyOn, failover, caughtUp } = await startRedisCluster(t)
  t.comment(`ready after ${since(started)}`)
  const [first, second, third, last] = nodes as [Server, Server, Server, Server]
  t.equal(last, replica)
  await t.rejects(keyOn(replica), /no keys/)
  const soon = { clusterRetryStrategy: () => 50, retryDelayOnFailover: 50, retryDelayOnClusterDown: 50 }
  const client = new Cluster(nodes.map(({ host, port }) => ({ host, port })), soon)
  client.on('error', () => {}) // One of its servers is killed, which is what this test is about.
  t.teardown(() => client.disconnect())
  const keys: string[] = []
  for (const node of [first, second, third]) {
    const key = await keyOn(node)
    keys.push(key)
    t.equal(await nodeOf(key), node)
    await client.set(key, node.port)
    t.equal(await redis(t, node).get(key), String(node.port), 'it is there')
  }
  const [key] = keys as [string]
  await t.rejects(redis(t, second).get(key), new RegExp(`MOVED \\d+ 127.0.0.1:${first.port}`), 'and nowhere else')
  await caughtUp()

  const told = performance.now()
  await failover()
  t.comment(`CLUSTER FAILOVER, until all nodes know: ${since(told)}`)
  t.equal(await nodeOf(key), replica)
  t.equal(await keyOn(replica), key)
  await client.set(key, 'moved')
  t.equal(await redis(t, replica).get(key), 'moved')

  // The other way round: who was the first master is the replica now.
  const back = redis(t, first)
  const isReplica = async (client: Redis) =>
    /role:slave\r[^]*master_link_status:up/.test(await client.info('replication'))
  await until(async () => await isReplica(back), { what: 'the old master has become a replica' })
  await until(async () => await back.readonly() && await back.get(key) === 'moved', { what: 'it has caught up' })
  const killed = performance.now()
  await replica.kill()
  await until(async () => await settled(() => back.set(key, 'back')), { what: 'it takes writes' })
  t.comment(`from kill -9 to a write at the promoted replica: ${since(killed)}`)
  t.equal(await nodeOf(key), first, 'though the others may not have heard of it')
  await client.set(key, 'again')
  t.comment(`from kill -9 to a write of an ioredis.Cluster: ${since(killed)}`)
  t.equal(await back.get(key), 'again')
  t.same(await Promise.all(keys.slice(1).map((other) => client.get(other))),
    [second, third].map(({ port }) => String(port)), 'the rest is as it was')
  await replica.restart()
  const restarted = redis(t, replica)
  await until(async () => await settled(() => isReplica(restarted)), { what: 'the killed one comes back as a replica' })
})

// --- MongoDB ---------------------------------------------------------------------------------------------------------

const needsMongod = { skip: findMongod() === undefined && 'no mongod' }

group('a MongoDB replica set: another one becomes the primary when the first steps down, and when it is killed', needsMongod, async (t) => {
  const set = await startMongoReplicaSet(t)
  if (set === undefined) throw new Error('there is a mongod')
  const client = new MongoClient(set.url, { heartbeatFrequencyMS: 500 })
  t.teardown(async () => await client.close())
  const things = client.db('test').collection<{ n: number }>('things')
  const write = async (n: number) => await things.insertOne({ n }, { writeConcern: { w: 'majority' } })
  await write(1)
  const first = await set.primary()
  const told = performance.now()
  await set.stepDown()
  await until(async () => await set.primary() !== first)
  await write(2)
  t.comment(`from replSetStepDown to a write: ${since(told)}`)
  const second = await set.primary()
  const killed = performance.now()
  await second.kill()
  await write(3)
  t.comment(`from kill -9 to a write: ${since(killed)}`)
  t.not(await set.primary(), second)
  t.same((await things.find().sort({ n: 1 }).toArray()).map(({ n }) => n), [1, 2, 3])
})
