import { execFile } from 'node:child_process'
import { chmodSync, chownSync, existsSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import type { Connection } from 'mysql2/promise'
import { findMariadb, findMongod, findPostgres, findRedis } from './find.mjs'
import {
  askMongo, askPostgres, askRedis, directMongo, freePort, host, mariadbRecipe, mongodRecipe, postgresRecipe,
  redisRecipe, start,
} from './services.js'
import type { Recipe, Server, Teardown } from './services.js'
import { until } from './until.js'

// Servers in groups. Each is ready when all of it answers and replicates, is always ours (never one given as a URL),
// and is gone when its test ends. Killed and restarted, a server has the role that it had: an old primary comes back as
// a primary, next to the one promoted meanwhile.

const run = promisify(execFile)
const startTimeout = 30_000

/**
 * For tests of groups: reported as skipped, saying why, where only a URL was given. Where there is nothing at all they
 * run, and fail.
 */
export function needsGroup (kind: 'Redis' | 'PostgreSQL' | 'MariaDB'): { skip: string | false } {
  const find = { Redis: findRedis, PostgreSQL: findPostgres, MariaDB: findMariadb }[kind]
  const given = process.env[`POOL_TEST_${kind === 'PostgreSQL' ? 'POSTGRES' : kind.toUpperCase()}_URL`]
  return {
    skip: Boolean(given) && find() === undefined && `needs ${kind} servers of our own, and only a URL was given`,
  }
}

/** As Promise.all, but where one fails it waits for the others too: what still starts can't be torn down. */
async function all<T> (promises: ReadonlyArray<Promise<T>>): Promise<T[]> {
  await Promise.allSettled(promises)
  return await Promise.all(promises)
}

export interface PairOptions {
  /** Default 1. */
  replicas?: number
}

/** A primary with replicas. */
export interface Pair {
  readonly primary: Server
  readonly replicas: readonly Server[]
  /**
   * Resolves when it takes writes, with all that it had received. Tells nobody else: the other replicas and the old
   * primary stay as they are.
   */
  promote (replica: Server): Promise<void>
  /** It still receives, and answers, but shows nothing new. */
  pauseReplay (replica: Server): Promise<void>
  resumeReplay (replica: Server): Promise<void>
  /** Resolves when it shows all that the first primary had committed at the call. */
  caughtUp (replica: Server): Promise<void>
}

// --- PostgreSQL ------------------------------------------------------------------------------------------------------

/**
 * Streaming replication, asynchronous: a commit that the primary acknowledged just before it was killed may be missing
 * after `promote`.
 */
export async function startPostgresPair (t: Teardown, { replicas: count = 1 }: PairOptions = {}): Promise<Pair> {
  // Else a replica looks for its restarted primary every 5 s, and the log that a copy needs is removed by the
  // checkpoint of the next copy.
  const recipe = postgresRecipe(['-c', 'wal_retrieve_retry_interval=100ms', '-c', 'wal_keep_size=64MB'])
  const primary = await start(t, recipe)
  const copy = async (dir: string, slot: string) => {
    const { user, found } = recipe
    // pg_basebackup takes the folder as it is, and the server wants it to be its own.
    chmodSync(dir, 0o700)
    if (user !== undefined) chownSync(dir, user.uid, user.gid)
    const from = ['-h', host, '-p', String(primary.port), '-U', 'postgres', '-C', '-S', slot]
    const args = [...from, '-D', dir, '-R', '-X', 'stream', '-c', 'fast', '--no-sync']
    await run(join(dirname(found.file), 'pg_basebackup'), args, { ...user, cwd: dirname(dir) })
  }
  const replicas =
    await all(Array.from({ length: count }, (_, i) => start(t, { ...recipe, fill: (dir) => copy(dir, `replica${i}`) })))
  const streaming = async () =>
    await askPostgres(primary.url,
      "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") === String(count)
  await until(streaming, { timeout: startTimeout, what: `${count} PostgreSQL replicas stream` })
  const paused = async (replica: Server) => await askPostgres(replica.url, 'SELECT pg_get_wal_replay_pause_state()')
  const resumeReplay = async (replica: Server) => { await askPostgres(replica.url, 'SELECT pg_wal_replay_resume()') }
  return {
    primary,
    replicas,
    promote: async (replica) => {
      // A paused one takes a second to notice.
      await resumeReplay(replica)
      const promoted = await askPostgres(replica.url, 'SELECT pg_promote(true, 20)', startTimeout)
      if (promoted !== 'true') throw new Error('PostgreSQL was not promoted within 20 s')
    },
    pauseReplay: async (replica) => {
      await askPostgres(replica.url, 'SELECT pg_wal_replay_pause()')
      await until(async () => await paused(replica) === 'paused')
    },
    resumeReplay,
    caughtUp: async (replica) => {
      const position = await askPostgres(primary.url, 'SELECT pg_current_wal_flush_lsn()')
      const sql = `SELECT pg_last_wal_replay_lsn() >= '${position}'`
      await until(async () => await askPostgres(replica.url, sql) === 'true', { what: `the replica is at ${position}` })
    },
  }
}

// --- MariaDB ---------------------------------------------------------------------------------------------------------

export interface MariadbPair extends Pair {
  /**
   * 'stopped' (default): the replica says so itself, its Seconds_Behind_Master is NULL. 'locked': to itself it seems to
   * replicate, and from the first write on that it can't apply its Seconds_Behind_Master grows, in whole seconds.
   */
  pauseReplay (replica: Server, how?: 'stopped' | 'locked'): Promise<void>
}

/**
 * Replication by GTID, asynchronous. The user `pool` of the URLs may not write to a replica, and may ask for SHOW SLAVE
 * STATUS.
 */
export async function startMariadbPair (t: Teardown, { replicas: count = 1 }: PairOptions = {}): Promise<MariadbPair> {
  const { args, ...recipe } = mariadbRecipe()
  const promoted = new Set<number>()
  const startOne = async (id: number) => await start(t, {
    ...recipe,
    args: (port, dir) => [
      ...args(port, dir), `--server-id=${id}`, '--log-bin=bin', '--relay-log=relay', '--log-slave-updates=1',
      '--relay-log-recovery=1',
      `--read-only=${id === 1 || promoted.has(port) ? 0 : 1}`,
    ],
  })
  const [primary, ...replicas] =
    await all(Array.from({ length: 1 + count }, (_, i) => startOne(1 + i))) as [Server, ...Server[]]
  const source = `MASTER_HOST='${host}', MASTER_PORT=${primary.port}, MASTER_USER='pool', MASTER_PASSWORD='secret'`
  await all(replicas.map(async (replica) => {
    // All began with the same data, so they need the primary's whole log. Else they look for a restarted primary once a
    // minute.
    await askRoot(replica, `CHANGE MASTER TO ${source}, MASTER_CONNECT_RETRY=1, MASTER_USE_GTID=slave_pos`,
      'START SLAVE')
    let status: Row | undefined
    const replicates = async () => {
      status = await slaveStatus(replica)
      return status?.Slave_IO_Running === 'Yes' && status.Slave_SQL_Running === 'Yes' &&
        status.Seconds_Behind_Master === 0
    }
    try {
      await until(replicates, { timeout: startTimeout, what: 'a MariaDB replica replicates' })
    } catch (error) {
      throw new Error(`${String(status?.Last_IO_Error)} ${String(status?.Last_SQL_Error)}`, { cause: error })
    }
  }))
  const locks = new Map<Server, Connection>()
  t.teardown(() => { for (const lock of locks.values()) lock.destroy() })
  const resumeReplay = async (replica: Server) => {
    const lock = locks.get(replica)
    locks.delete(replica)
    if (lock !== undefined) await lock.end()
    await askRoot(replica, 'START SLAVE SQL_THREAD')
  }
  const waitFor = async (replica: Server, position: unknown) => {
    const [row] = await askRoot(replica, `SELECT MASTER_GTID_WAIT('${String(position)}', 10) AS failed`)
    if (row?.failed !== 0) throw new Error(`the replica is not at ${String(position)} after 10 s`)
  }
  return {
    primary,
    replicas,
    promote: async (replica) => {
      // What it has received and not yet applied is thrown away by RESET SLAVE, and by a start after both threads were
      // stopped.
      await resumeReplay(replica)
      await askRoot(replica, 'STOP SLAVE IO_THREAD')
      await waitFor(replica, (await slaveStatus(replica))?.Gtid_IO_Pos)
      promoted.add(replica.port)
      await askRoot(replica, 'STOP SLAVE', 'RESET SLAVE ALL', 'SET GLOBAL read_only = 0')
    },
    pauseReplay: async (replica, how = 'stopped') => {
      if (how === 'stopped') {
        await askRoot(replica, 'STOP SLAVE SQL_THREAD')
      } else if (!locks.has(replica)) {
        const lock = await connectRoot(replica)
        // The server was killed, and the lock is gone with it.
        lock.on('error', () => locks.delete(replica))
        locks.set(replica, lock)
        await lock.query('FLUSH TABLES WITH READ LOCK')
      }
    },
    resumeReplay,
    caughtUp: async (replica) => {
      const [row] = await askRoot(primary, 'SELECT @@gtid_binlog_pos AS position')
      await waitFor(replica, row?.position)
    },
  }
}

type Row = Record<string, unknown>

async function connectRoot ({ port }: Server): Promise<Connection> {
  const { createConnection } = await import('mysql2/promise')
  return await createConnection({ host, port, user: 'root', connectTimeout: 5000 })
}

/** @returns the rows of the last one */
async function askRoot (server: Server, ...statements: string[]): Promise<Row[]> {
  const connection = await connectRoot(server)
  try {
    let rows: unknown
    for (const sql of statements) [rows] = await connection.query({ sql, timeout: startTimeout })
    return rows as Row[]
  } finally {
    await connection.end()
  }
}

async function slaveStatus (replica: Server): Promise<Row | undefined> {
  return (await askRoot(replica, 'SHOW SLAVE STATUS'))[0]
}

// --- Redis -----------------------------------------------------------------------------------------------------------

/** The raw answer to one inline command. @throws where that is an error */
async function askNode ({ url }: Pick<Server, 'url'>, command: string): Promise<string> {
  const answer = await askRedis(new URL(url), command)
  if (answer.startsWith('-')) throw new Error(`${command}: ${answer.split('\r\n')[0]}`)
  return answer
}

/** Of an answer that is an array of strings, or of arrays of strings. */
function strings (answer: string): string[] {
  return answer.split('\r\n').filter((line) => !/^[$*]\d+$/.test(line))
}

/** Of an INFO. */
async function infoOf (server: Server, section: string): Promise<Map<string, string>> {
  const lines = (await askNode(server, `INFO ${section}`)).split('\r\n')
  return new Map(lines.filter((line) => line.includes(':'))
    .map((line) => [line.slice(0, line.indexOf(':')), line.slice(line.indexOf(':') + 1)]))
}

/** Resolves with the first answer that there is: some may be dead or paused. */
async function askFirst<T> (servers: readonly Server[], ask: (server: Server) => Promise<T>): Promise<T> {
  const errors: unknown[] = []
  for (const server of servers) {
    try {
      return await ask(server)
    } catch (error) {
      errors.push(error) // The next one may answer.
    }
  }
  throw new AggregateError(errors, `none answers: ${errors.map(String).join(', ')}`)
}

const linked = async (replica: Server) => (await infoOf(replica, 'replication')).get('master_link_status') === 'up'

async function redisCaughtUp (master: Server, replica: Server): Promise<void> {
  const position = Number((await infoOf(master, 'replication')).get('master_repl_offset'))
  const reached = async () => Number((await infoOf(replica, 'replication')).get('slave_repl_offset'))
  await until(async () => await reached() >= position, { what: `the replica is at ${position}` })
}

/**
 * A restarted one still is what REPLICAOF, of ours or of a sentinel, made of it: they keep that in a file. Their data
 * they don't keep.
 */
async function startMasterAndReplica (t: Teardown): Promise<{ master: Server, replica: Server }> {
  // The delay, of 5 s by default, is the master's.
  const { args, ...recipe } = redisRecipe(['--repl-diskless-sync-delay', '0'])
  const withFile = (port: number, dir: string) => {
    const file = join(dir, 'redis.conf')
    if (!existsSync(file)) writeFileSync(file, '')
    return [file, ...args(port, dir)]
  }
  const [master, replica] = await all([1, 2].map(() => start(t, { ...recipe, args: withFile }))) as [Server, Server]
  await follow(replica, `${host} ${master.port}`)
  await until(() => linked(replica), { timeout: startTimeout, what: 'the Redis replica has its master' })
  return { master, replica }
}

async function follow (replica: Server, whom: string): Promise<void> {
  await askNode(replica, `REPLICAOF ${whom}`)
  await askNode(replica, 'CONFIG REWRITE')
}

export interface RedisPair {
  readonly master: Server
  readonly replica: Server
  /** The replica takes writes from now on. The old master is not told. */
  promote (): Promise<void>
  /**
   * The replica answers with what it has, its `slave_repl_offset` stands still and its `master_link_status` is down.
   */
  pauseReplay (): Promise<void>
  resumeReplay (): Promise<void>
  /** Resolves when the replica has all that the master had at the call. */
  caughtUp (): Promise<void>
}

export async function startRedisPair (t: Teardown): Promise<RedisPair> {
  const { master, replica } = await startMasterAndReplica(t)
  return {
    master,
    replica,
    promote: async () => await follow(replica, 'NO ONE'),
    // Nobody listens there.
    pauseReplay: async () => await follow(replica, `${host} 1`),
    resumeReplay: async () => {
      await follow(replica, `${host} ${master.port}`)
      await until(() => linked(replica), { what: 'the Redis replica has its master' })
    },
    caughtUp: async () => await redisCaughtUp(master, replica),
  }
}

export interface RedisSentinel {
  /** Who they were at the start: see `masterNow`. */
  readonly master: Server
  readonly replica: Server
  readonly sentinels: readonly Server[]
  /** Of the master, for the sentinels. */
  readonly name: 'mymaster'
  /** Its port, as the first sentinel that answers announces it: about 1 s after it takes writes. */
  masterNow (): Promise<number>
  /** Resolves when a sentinel has begun. */
  failover (): Promise<void>
  /** Resolves when the replica has all that the master had at the call. */
  caughtUp (): Promise<void>
}

/** They miss a master after 1 s. @param options.sentinels 3 vote, of one the word is law. Default 1 */
export async function startRedisSentinel (
  t: Teardown, { sentinels: count = 1 }: { sentinels?: 1 | 3 } = {}
): Promise<RedisSentinel> {
  const name = 'mymaster'
  const { master, replica } = await startMasterAndReplica(t)
  const recipe = sentinelRecipe(name, master, Math.ceil(count / 2))
  const sentinels = await all(Array.from({ length: count }, () => start(t, recipe)))
  const agreed = async (sentinel: Server) => {
    const known = strings(await askNode(sentinel, `SENTINEL MASTER ${name}`))
    const replicas = strings(await askNode(sentinel, `SENTINEL REPLICAS ${name}`))
    const value = (list: string[], key: string) => list[list.indexOf(key) + 1]
    // Without a link it has no candidate, and no failover begins.
    return value(known, 'num-other-sentinels') === String(count - 1) && value(known, 'flags') === 'master' &&
      value(known, 'num-slaves') === '1' && value(replicas, 'master-link-status') === 'ok' &&
        value(replicas, 'flags') === 'slave'
  }
  const agree = { timeout: startTimeout, what: 'the sentinels know of each other and of the replica' }
  for (const sentinel of sentinels) await until(() => agreed(sentinel), agree)
  return {
    master,
    replica,
    sentinels,
    name,
    masterNow: async () =>
      Number(strings(await askFirst(sentinels,
        (sentinel) => askNode(sentinel, `SENTINEL GET-MASTER-ADDR-BY-NAME ${name}`)))[1]),
    failover: async () => {
      let refused = ''
      const begun = async () => {
        refused = await askFirst(sentinels, ({ url }) => askRedis(new URL(url), `SENTINEL FAILOVER ${name}`))
        return refused.startsWith('+OK')
      }
      try {
        await until(begun, { what: 'a sentinel begins the failover' })
      } catch (error) {
        throw new Error(`no failover: ${refused}`, { cause: error })
      }
    },
    caughtUp: async () => await redisCaughtUp(master, replica),
  }
}

function sentinelRecipe (name: string, master: Server, quorum: number): Recipe {
  const recipe = redisRecipe()
  return {
    ...recipe,
    args: (port, dir) => {
      const file = join(dir, 'sentinel.conf')
      // It keeps in there what it knows: a restarted one needs that.
      if (!existsSync(file)) {
        const settings =
          [`down-after-milliseconds ${name} 1000`, `failover-timeout ${name} 2000`, `announce-ip ${host}`]
        writeFileSync(file,
          [`monitor ${name} ${host} ${master.port} ${quorum}`, ...settings].map((line) => `sentinel ${line}\n`).join(''))
      }
      return [file, '--sentinel', '--bind', host, '--port', String(port), '--dir', dir, '--protected-mode', 'no']
    },
    listening: /Sentinel ID is/,
    answers: async (port) => {
      // By default 10, 1 and 2 s. It forgets them when it ends. Not its ping-period: that would keep it from failing
      // over.
      await askNode({ url: recipe.url(port) }, 'SENTINEL DEBUG info-period 200 ask-period 200 publish-period 200')
      return true
    },
  }
}

export interface RedisCluster {
  /**
   * All four: the three masters of the start, then the replica of the first one of them. Without a replica nothing
   * would fail over.
   */
  readonly nodes: readonly Server[]
  readonly replica: Server
  /** The master of that key now. */
  nodeOf (key: string): Promise<Server>
  /** A key of which that node is the master now. */
  keyOn (node: Server): Promise<string>
  /** The replica takes over while its master lives. Resolves when all nodes know: they must all live. */
  failover (): Promise<void>
  /** Resolves when the replica has all that the first master had at the call. */
  caughtUp (): Promise<void>
}

/** @param options.nodeTimeout in ms: how long a node may be silent before it is taken for dead. Default 500 */
export async function startRedisCluster (
  t: Teardown, { nodeTimeout = 500 }: { nodeTimeout?: number } = {}
): Promise<RedisCluster> {
  const { args, ...recipe } = redisRecipe([
    '--cluster-enabled', 'yes', '--cluster-config-file', 'nodes.conf', '--cluster-node-timeout', String(nodeTimeout),
    '--cluster-announce-ip', host,
    // The replica may stand for its master however long that has been away.
    '--cluster-replica-validity-factor', '0', '--repl-diskless-sync-delay', '0',
  ])
  const one = async () => {
    // By default 10000 above the other one, where there may be none.
    const bus = await freePort()
    const server =
      await start(t, { ...recipe, args: (port, dir) => [...args(port, dir), '--cluster-port', String(bus)] })
    return { server, bus }
  }
  const started = await all([one(), one(), one(), one()])
  const nodes = started.map(({ server }) => server)
  const masters = nodes.slice(0, 3)
  const replica = nodes[3]!
  const ids =
    new Map(await Promise.all(nodes.map(async (node) =>
      [node, strings(await askNode(node, 'CLUSTER MYID'))[0]!] as const)))
  await Promise.all(masters.map(async (node, i) => {
    // Else all claim to have the newest view, and settle that first.
    await askNode(node, `CLUSTER SET-CONFIG-EPOCH ${1 + i}`)
    await askNode(node, `CLUSTER ADDSLOTSRANGE ${firstSlot(i)} ${firstSlot(i + 1) - 1}`)
  }))
  // Each one the others, rather than wait for the gossip.
  for (const [i, node] of nodes.entries()) {
    for (const { server, bus } of started.slice(i + 1)) {
      await askNode(node,
      `CLUSTER MEET ${host} ${server.port} ${bus}`)
    }
  }
  const whole = { timeout: startTimeout, what: 'the Redis cluster is whole' }
  const met = async (node: Server) => {
    const seen = await viewOf(node)
    return seen.length === nodes.length &&
      [...ids.values()].every((id) => seen.some((one) => one.id === id && one.connected))
  }
  for (const node of nodes) await until(() => met(node), whole)
  await askNode(replica, `CLUSTER REPLICATE ${ids.get(masters[0]!)}`)
  const ready = async (node: Server) => {
    const seen = await viewOf(node)
    const follows = seen.some(({ id, masterId }) => id === ids.get(replica) && masterId === ids.get(masters[0]!))
    return follows && seen.filter(({ slots }) => slots.length > 0).length === 3 &&
      /^cluster_state:ok\r$/m.test(await askNode(node, 'CLUSTER INFO'))
  }
  for (const node of nodes) await until(() => ready(node), whole)
  await until(() => linked(replica), whole)

  /** Who has which slots. */
  const owners = async () => {
    const views = await Promise.allSettled(nodes.map(viewOf)) // Some nodes may be dead.
    // The newest claim first: the others have not heard of it.
    const claims = views.flatMap((view) => view.status === 'fulfilled' ? view.value : [])
      .sort((a, b) => b.epoch - a.epoch)
    return (slot: number) => {
      const claim = claims.find(({ slots }) => slots.some(([first, last]) => first <= slot && slot <= last))
      return nodes.find((node) => ids.get(node) === claim?.id)
    }
  }
  const slotOf = async (key: string) =>
    await askFirst(nodes, async (node) => Number((await askNode(node, `CLUSTER KEYSLOT ${key}`)).slice(1)))
  return {
    nodes,
    replica,
    nodeOf: async (key) => {
      const [slot, owner] = await Promise.all([slotOf(key), owners()])
      return owner(slot) ?? fail(`nobody has slot ${slot}`)
    },
    keyOn: async (node) => {
      const owner = await owners()
      for (let i = 0; i < 200; i++) if (owner(await slotOf(`key${i}`)) === node) return `key${i}`
      throw new Error('that node has no keys: it is a replica')
    },
    failover: async () => {
      await askNode(replica, 'CLUSTER FAILOVER')
      const told = async (node: Server) => (await viewOf(node))
        .some(({ id, slots }) => id === ids.get(replica) && slots.length > 0)
      for (const node of nodes) await until(() => told(node), { what: 'the node knows of the failover' })
    },
    caughtUp: async () => await redisCaughtUp(masters[0]!, replica),
  }
}

const firstSlot = (i: number): number => Math.ceil(16384 / 3 * i)

function fail (message: string): never {
  throw new Error(message)
}

/** What a node knows of a node. */
interface View {
  id: string
  masterId: string
  epoch: number
  connected: boolean
  slots: Array<[first: number, last: number]>
}

async function viewOf (node: Server): Promise<View[]> {
  const lines = (await askNode(node, 'CLUSTER NODES')).split(/\r?\n/).filter((line) => /^[0-9a-f]{40} /.test(line))
  return lines.map((line) => {
    const [id = '', , flags = '', masterId = '', , , epoch, link, ...slots] = line.split(' ')
    return {
      id,
      masterId,
      epoch: Number(epoch),
      connected: link === 'connected' && !/handshake|noaddr/.test(flags),
      // [slot->-id] is one that is on its way to another node.
      slots: slots.filter((slot) => /^\d/.test(slot)).map((slot) => {
        const [first, last = first] = slot.split('-').map(Number)
        return [first!, last!]
      }),
    }
  })
}

// --- MongoDB ---------------------------------------------------------------------------------------------------------

export interface MongoReplicaSet {
  /** Names all three. */
  readonly url: string
  readonly nodes: readonly Server[]
  /** The one that takes writes now. Waits for it. */
  primary (): Promise<Server>
  /** The primary makes room for another. */
  stepDown (): Promise<void>
}

/**
 * Three real mongod, who miss a primary after 1 s. Undefined where there is no mongod: FerretDB has no replica sets.
 */
export async function startMongoReplicaSet (t: Teardown): Promise<MongoReplicaSet | undefined> {
  const found = findMongod()
  if (found === undefined) return undefined
  const nodes = await all([1, 2, 3].map(() => start(t, mongodRecipe(found))))
  const names = nodes.map(({ port }) => `${host}:${port}`)
  const settings = { electionTimeoutMillis: 1000, heartbeatIntervalMillis: 200 }
  const config = { _id: 'rs0', members: names.map((host, _id) => ({ _id, host })), settings }
  await askMongo(directMongo(nodes[0]!.port), { replSetInitiate: config }, startTimeout)
  const helloOf = async ({ port }: Server) => await askMongo(directMongo(port), { hello: 1 })
  const primary = async (): Promise<Server> => await until(async () => {
    const answers = await Promise.allSettled(nodes.map(helloOf)) // One may be dead.
    return nodes.find((_, i) => answers[i]?.status === 'fulfilled' && answers[i].value.isWritablePrimary === true)
  }, { timeout: startTimeout, what: 'the replica set has a primary' })
  const first = await primary()
  const whole = { timeout: startTimeout, what: 'the replica set is whole' }
  for (const node of nodes) if (node !== first) await until(async () => (await helloOf(node)).secondary === true, whole)
  return {
    url: `mongodb://${names.join()}/?replicaSet=rs0`,
    nodes,
    primary,
    stepDown: async () => {
      await askMongo(directMongo((await primary()).port), { replSetStepDown: 10, secondaryCatchUpPeriodSecs: 5 },
        startTimeout)
    },
  }
}
