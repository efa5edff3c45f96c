import { once } from 'node:events'
import { createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import { Cluster } from 'ioredis'
import t from 'tap'
import { redisCluster } from '../../lib/backends/redis/cluster.js'
import type { RedisClusterConnector } from '../../lib/backends/redis/cluster.js'
import type { RedisClusterOptions } from '../../lib/backends/redis/cluster-options.js'
import { Pool } from '../../lib/pool/pool.js'
import type { DriverEvent } from '../../types/connector.js'
import { startProxy } from '../support/proxy.js'
import { askRedis, knownTo, startRedis } from '../support/services.js'
import type { Teardown } from '../support/services.js'
import { needsGroup, startRedisCluster } from '../support/topologies.js'
import { until } from '../support/until.js'

/** Only where something hangs is it ever reached. */
const soon = () => AbortSignal.timeout(10_000)

async function connector (t: Teardown, options: RedisClusterOptions): Promise<RedisClusterConnector> {
  const made = await redisCluster(options)
  t.teardown(() => made.close!())
  return made
}

const at = (servers: ReadonlyArray<{ host: string, port: number }>) => servers.map(({ host, port }) => ({ host, port }))

/** Accepts, and says nothing. */
async function silent (t: Teardown): Promise<{ host: string, port: number, open: () => number, total: () => number }> {
  let open = 0
  let total = 0
  const server = createServer((socket) => {
    open++
    total++
    socket.on('error', () => {}) // It is cut off, which is what is tested.
    socket.on('close', () => { open-- }).on('end', () => socket.end()).resume()
  }).listen(0, '127.0.0.1')
  t.teardown(() => server.close())
  await once(server, 'listening')
  return { host: '127.0.0.1', port: (server.address() as AddressInfo).port, open: () => open, total: () => total }
}

async function closedPort (): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}

t.test('in a cluster', needsGroup('Redis'), async (t) => {
  const cluster = await startRedisCluster(t)
  const masters = cluster.nodes.slice(0, 3)

  await t.test('all leases are the one client, up to max, with the events of any pool', async (t) => {
    const backend = await connector(t, { connection: { cluster: at(masters).slice(0, 1) } })
    const pool = new Pool<Cluster, RedisClusterConnector>(backend, { max: 2 })
    t.teardown(() => pool.close())
    const told: string[] = []
    for (const name of ['connect', 'acquire', 'release', 'wait'] as const) pool.on(name, () => told.push(name))
    const [one, two] = await Promise.all([pool.acquire(), pool.acquire()])
    t.ok(one.connection instanceof Cluster)
    t.equal(one.connection, two.connection)
    t.equal(one.connection, backend.client)
    t.equal(pool.tryAcquire(), null, 'max holds')
    const waits = pool.acquire()
    await until(() => pool.stats().pending === 1)
    one.release()
    const three = await waits
    t.throws(() => one.connection, { code: 'FST_POOL_LEASE_RELEASED' })
    for (const node of masters) t.equal(await three.connection.set(await cluster.keyOn(node), 'x'), 'OK')
    two.release()
    three.release()
    t.strictSame(new Set(told), new Set(['connect', 'acquire', 'release', 'wait']))
    t.match(pool.stats(), { created: 2, idle: 2 })
    t.match(await pool.health(), { status: 'up', latency: Number })
  })

  await t.test('what all would feel of it is refused, and what goes out in one piece is not', async (t) => {
    const { client } = await connector(t, { connection: { cluster: at(masters) } })
    const key = await cluster.keyOn(masters[1]!)
    const refused: Record<string, () => unknown> = {
      MULTI: () => client.multi({ pipeline: false }),
      'MULTI in any case': () => client.call('MuLti'),
      WATCH: () => client.watch(key),
      EXEC: () => client.exec(),
      AUTH: () => client.auth('x'),
      'CLIENT REPLY': () => client.call('client', 'reply', 'off'),
      MONITOR: () => client.call('monitor'),
      READONLY: () => client.readonly(),
      RESET: () => client.reset(),
    }
    for (const [what, ask] of Object.entries(refused)) {
      await t.rejects(async () => await ask(),
        { code: 'FST_POOL_NOT_SUPPORTED', message: /needs one of its own/ }, what)
    }
    t.ok(await client.client('ID'))
    t.strictSame(await client.multi().set(key, 'y').get(key).exec(), [[null, 'OK'], [null, 'y']])
    t.strictSame(await client.pipeline([['watch', key], ['multi'], ['set', key, 'z'], ['exec'], ['get', key]]).exec(),
      [[null, 'OK'], [null, 'OK'], [null, 'QUEUED'], [null, ['OK']], [null, 'z']])
    t.equal(await client.eval('return redis.call("get", KEYS[1])', 1, key), 'z')
    const own = client.duplicate()
    t.teardown(() => own.disconnect())
    await t.rejects(own.exec(), /EXEC without MULTI/, 'a client of one\'s own asks the server')
  })

  await t.test('a script that a node has lost fails in one MULTI at most, and otherwise not at all', async (t) => {
    const scripts = { both: { lua: 'return redis.call("incr", KEYS[1])', numberOfKeys: 1 } }
    const { client } = await connector(t, { connection: { cluster: at(masters), scripts } })
    type Chain = ReturnType<Cluster['multi']> & { both (key: string): Chain }
    const scripted = client as Cluster & { both (key: string): Promise<number> }
    const lose = () => Promise.all(client.nodes('master').map((node) => node.script('FLUSH')))
    for (const node of masters) {
      const key = await cluster.keyOn(node)
      const inMulti = async () => (await (client.multi() as Chain).both(key).get(key).exec())![0]
      await client.del(key)
      t.equal(await scripted.both(key), 1)
      await lose()
      t.equal(await scripted.both(key), 2)
      await lose()
      t.match(await inMulti(), [{ message: /^NOSCRIPT/ }])
      t.strictSame(await inMulti(), [null, 3])
      t.strictSame(await inMulti(), [null, 4])
      await client.del(key)
    }
  })

  await t.test('a client that somebody disconnected is connected again by the next acquire', async (t) => {
    const backend = await connector(t, { connection: { cluster: at(masters) } })
    const pool = new Pool<Cluster, RedisClusterConnector>(backend, { max: 2 })
    t.teardown(() => pool.close())
    const { client } = backend
    const ended = once(client, 'end')
    await pool.use((client) => client.disconnect())
    await ended
    t.equal(backend.isBroken!(client), true)
    // The last node to go may do so after the end, and take it back.
    const inside = client as unknown as { setStatus (status: string): void }
    inside.setStatus('close')
    t.equal(await pool.use((client) => client.ping()), 'PONG')
    t.equal(pool.stats().destroyed.error, 1)
  })

  await t.test('close leaves no connection at any node, answers what was asked, and later commands fail at once', async (t) => {
    const name = `closing-${process.pid}`
    const backend = await connector(t, { connection: { cluster: at(masters), redisOptions: { connectionName: name } } })
    const { client } = backend
    for (const node of masters) await client.set(await cluster.keyOn(node), 1)
    await client.subscribe('channel')
    t.ok(await knownTo(cluster.nodes, name) >= 4, 'three nodes and the subscriber')
    const answers = Promise.all([client.get(await cluster.keyOn(masters[0]!)), client.blpop('nobody', 0.2)])
    const stuck = await connector(t, { connection: { cluster: at(masters) } })
    const events: DriverEvent[] = []
    stuck.onDriverEvent!((event) => events.push(event))
    const blocked = (await stuck.create(soon())).blpop('nobody', 0)
    const failure = blocked.catch((error: unknown) => error)
    await until(() => stuck.client.nodes().some((node) => node.commandQueue.length > 0 && node.status === 'ready'))
    await stuck.close!()
    t.match(await failure, { message: /closed|ended/ })
    t.ok(events.some(({ name, code }) => name === 'error' && code === 'TimeoutError'))
    await backend.close!()
    t.strictSame(await answers, ['1', null])
    t.equal(client.status, 'end')
    await until(async () => await knownTo(cluster.nodes, name) === 0)
    await t.rejects(client.get('a'), /Connection is closed/)
    await t.rejects(backend.create(soon()), /closed/)
    t.equal(backend.client, client)
    await backend.close!()
  })

  await t.test('a client of the app is taken over as it is, and never closed', async (t) => {
    const theirs = new Cluster(at(masters), { lazyConnect: true })
    t.teardown(() => theirs.disconnect())
    const backend = await connector(t, { client: theirs })
    t.equal(await backend.create(soon()), theirs)
    t.equal(await theirs.ping(), 'PONG')
    await backend.close!()
    t.equal(theirs.status, 'ready')
    for (const name of ['node error', 'ready', 'error']) t.equal(theirs.listenerCount(name), 0, name)
    t.notOk(Object.hasOwn(theirs, 'sendCommand'))
  })

  await t.test('the login goes to all nodes, and what is wrong with it is told without it', async (t) => {
    for (const { url } of cluster.nodes) await askRedis(new URL(url), 'ACL SETUSER limited on >right-secret ~* +@all')
    const options = (password: string) => ({
      connection: { cluster: at(masters), redisOptions: { username: 'limited', password } },
    })
    const right = await connector(t, options('right-secret'))
    const client = await right.create(soon())
    for (const node of masters) t.equal(await client.set(await cluster.keyOn(node), 1), 'OK')
    t.equal(await right.validate!(client, soon()), true)
    for (const { url } of cluster.nodes) await askRedis(new URL(url), 'ACL SETUSER limited -ping')
    t.equal(await right.validate!(client, soon()), true, 'being refused is an answer')
    t.ok(right.secrets!.includes('right-secret'))
    const wrong = await connector(t, options('wrong-secret'))
    const error = await wrong.create(soon()).catch((error: Error) => error)
    t.match(error, { message: /WRONGPASS/ })
    t.notMatch(String((error as Error).stack), /wrong-secret/)
  })

  await t.test('silent nodes before one that answers cost their share of the time', async (t) => {
    const hung = await silent(t)
    const backend = await connector(t, {
      connectTimeout: 300, connection: { cluster: [{ host: hung.host, port: hung.port }, ...at(masters).slice(0, 1)] },
    })
    t.equal(await (await backend.create(soon())).ping(), 'PONG')
    await until(() => hung.open() === 0)
  })

  await t.test('all nodes are lost: no lease is given, a create says why, and all is well when they can be reached again', async (t) => {
    const proxies = await Promise.all(masters.map((node) => startProxy(t, node)))
    const byPort = new Map(masters.map((node, i) => [`${node.host}:${node.port}`, proxies[i]!]))
    const natMap = (key: string) => {
      const proxy = byPort.get(key)
      return proxy === undefined ? null : { host: proxy.host, port: proxy.port }
    }
    const backend = await connector(t, { connection: { cluster: at(proxies), natMap } })
    const events: DriverEvent[] = []
    backend.onDriverEvent!((event) => events.push(event))
    const client = await backend.create(soon())
    for (const node of masters) await client.set(await cluster.keyOn(node), 1)
    const replica = await startProxy(t, cluster.replica)
    byPort.set(`${cluster.replica.host}:${cluster.replica.port}`, replica)
    await Promise.all([...proxies, replica].map((proxy) => proxy.refuse()))
    for (const proxy of [...proxies, replica]) proxy.resetAll()
    for (const node of client.nodes()) node.disconnect()
    await until(() => backend.isBroken!(client))
    t.equal(await backend.validate!(client, soon()), false)
    await t.rejects(backend.create(soon()), { code: 'ECONNREFUSED' })
    await Promise.all([...proxies, replica].map((proxy) => proxy.heal()))
    t.equal(await until(() => backend.create(soon()).catch(() => undefined)), client)
    t.equal(await client.ping(), 'PONG')
    for (const name of ['connect', 'ready', 'close', 'reconnecting', 'node', 'node-gone',
      'node-error']) t.ok(events.some((event) => event.name === name && event.shared === true), name)
  })
})

t.test('a cluster that is not there fails a create with the reason, in time, and leaves nothing', async (t) => {
  const errors = t.capture(console, 'error')
  const ports = [await closedPort(), await closedPort()]
  const refusing = await connector(t, { connection: { cluster: ports.map((port) => ({ host: '127.0.0.1', port })) } })
  await t.rejects(refusing.create(soon()), { code: 'ECONNREFUSED' })
  await refusing.close!()
  t.equal(refusing.client.status, 'end')

  const nodes = [await silent(t), await silent(t)]
  const hung = await connector(t, { connectTimeout: 60, connection: { cluster: at(nodes) } })
  await t.rejects(hung.create(new AbortController().signal), Error, 'by itself')
  const deadline = new AbortController()
  const slow = await connector(t, { connectTimeout: 60_000, connection: { cluster: at(nodes) } })
  const made = slow.create(deadline.signal)
  await until(() => nodes.some(({ open }) => open() > 0))
  deadline.abort(new Error('too late'))
  await t.rejects(made, /too late/)
  const before = nodes.reduce((sum, { total }) => sum + total(), 0)
  await until(() => nodes.reduce((sum, { total }) => sum + total(), 0) > before,
    { what: 'a new attempt begins: that one is over' })
  await t.rejects(slow.create(AbortSignal.abort(new Error('before it began'))), /before it began/)
  await Promise.all([hung.close!(), slow.close!()])
  await until(() => nodes.every(({ open }) => open() === 0))

  const single = await startRedis(t, { own: true })
  const alone = await connector(t, { connection: { cluster: at([single]) } })
  await t.rejects(alone.create(soon()), /cluster support disabled/)
  const unused = await redisCluster({ connection: { cluster: [{ port: 1 }] } })
  await unused.close!()
  t.throws(() => unused.client, { code: 'FST_POOL_CLOSED' })
  t.strictSame(errors(), [], 'and nothing is written to the console')
})

t.test('nodes that are no whole cluster say so', async (t) => {
  const node = await startRedis(t, { args: ['--cluster-enabled', 'yes'] })
  await askRedis(new URL(node.url), 'CLUSTER ADDSLOTSRANGE 0 100')
  const backend = await connector(t, { connection: { cluster: at([node]) } })
  await t.rejects(backend.create(soon()), /not whole/)
})

t.test('options that are wrong, or would do the pool\'s work, are refused by name', async (t) => {
  const cluster = [{ host: 'h', port: 1 }]
  const bad: Array<[RegExp, object]> = [
    [/option connection\.cluster is missing/, { connection: {} }],
    [/option connection\.cluster /, { connection: { cluster: [] } }],
    [/option connection\.cluster\.0 /, { connection: { cluster: ['redis://:secret-value@h'] } }],
    [/option connection is a function/, { connection: () => ({ cluster }) }],
    [/option url .*connection\.cluster/, { url: 'redis://:secret-value@h', connection: { cluster } }],
    [/option database /, { database: '1', connection: { cluster } }],
    [/option connection\.redisOptions /, { connection: { cluster, redisOptions: 'x' } }],
    [/option client /, { client: {} }],
    ...['lazyConnect', 'clusterRetryStrategy',
      'enableReadyCheck'].map((name): [RegExp, object] => [new RegExp(`connection\\.${name} .*nothing here: .+`), { connection: { cluster, [name]: null } }]),
    ...['host', 'db', 'retryStrategy', 'reconnectOnError', 'connectTimeout', 'lazyConnect', 'sentinels'].map((name): [RegExp, object] =>
      [new RegExp(`connection\\.redisOptions\\.${name} .*nothing here: .+`), { connection: { cluster, redisOptions: { [name]: null } } }]),
    ...['password', 'username',
      'tls'].map((name): [RegExp, object] => [new RegExp(`connection\\.${name} .*redisOptions: \\{ ${name} \\}`), { connection: { cluster, [name]: 'secret-value' } }]),
  ]
  for (const [message, options] of bad) {
    await t.rejects(redisCluster(options as RedisClusterOptions), { code: 'FST_POOL_BAD_OPTIONS', message })
    await t.rejects(redisCluster(options as RedisClusterOptions), { message: /^((?!secret-value).)*$/ })
  }
  const given =
    Object.freeze({ cluster: Object.freeze([Object.freeze({ host: '127.0.0.1', port: 1 })]), redisOptions: Object.freeze({ password: 'x' }), maxRedirections: 3, lazyConnect: undefined })
  const backend = await connector(t, { connection: given, connectTimeout: 100 })
  t.match(backend.client.options,
    { maxRedirections: 3, slotsRefreshTimeout: 50, redisOptions: { password: 'x', connectTimeout: 50 } })
})
