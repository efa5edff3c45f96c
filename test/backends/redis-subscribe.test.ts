import { AsyncLocalStorage } from 'node:async_hooks'
import Fastify, { type FastifyInstance } from 'fastify'
import { Redis, type Cluster } from 'ioredis'
import { Registry } from 'prom-client'
import t from 'tap'
import { fastifyPool } from '../../index.js'
import { redisCluster, type RedisClusterConnector } from '../../lib/backends/redis/cluster.js'
import { redis, type RedisConnector } from '../../lib/backends/redis/connector.js'
import type { RedisOptions } from '../../lib/backends/redis/options.js'
import { Pool } from '../../lib/pool/pool.js'
import { TargetPool } from '../../lib/balance/target-pool.js'
import type { Messages, RedisChannel, RedisMessage, RedisPubSub } from '../../types/messages.js'
import type { PoolEvents } from '../../types/pool.js'
import { startProxy } from '../support/proxy.js'
import { speaksResp3 } from '../support/redis.js'
import { askRedis, knownTo, startRedis, type Server, type Teardown } from '../support/services.js'
import { needsGroup, startRedisCluster, startRedisPair, startRedisSentinel } from '../support/topologies.js'
import { until } from '../support/until.js'

const server = await startRedis(t)

let names = 0
/** Of a channel, or of a connection: tests of other files may use the same server. */
const fresh = () => `subscribe-${process.pid}-${names++}`

/** The raw answer to a command. */
const ask = (command: string, { url }: { url: string } = server) => askRedis(new URL(url), command)

interface Stage {
  readonly pool: Pool<Redis, RedisConnector>
  readonly backend: RedisConnector
  /** Of its connections. */
  readonly name: string
  /** What the driver's events were, without those of other connections. */
  readonly told: string[]
  readonly errors: Array<PoolEvents['error']>
}

async function stage (t: Teardown, options: RedisOptions = {}): Promise<Stage> {
  const name = fresh()
  const isElsewhere = options.host !== undefined || 'sentinels' in (options.connection ?? {})
  const where = isElsewhere ? {} : { url: server.url }
  const backend = await redis({
    ...where, backoff: { min: 10, max: 50 }, ...options, connection: { connectionName: name, ...options.connection },
  })
  const pool = new Pool<Redis, RedisConnector>(backend, { max: 1 })
  const told: string[] = []
  const errors: Array<PoolEvents['error']> = []
  pool.on('driver', ({ name }) => { if (/^(listen|messages)/.test(name)) told.push(name) })
  pool.on('error', (event) => errors.push(event))
  t.teardown(() => pool.close())
  return { pool, backend, name, told, errors }
}

/** Kills the subscriber's connections, as the server sees them. */
async function kill (name: string, at: { url: string } = server): Promise<void> {
  const lines = (await ask('CLIENT LIST', at)).split('\n').filter((line) => line.includes(`name=${name} `))
  for (const line of lines) await ask(`CLIENT KILL ID ${/\bid=(\d+)/.exec(line)![1]}`, at)
}

t.test('one connection outside of max for all channels, made at the first and closed with the last', async (t) => {
  const { pool, backend, name } = await stage(t)
  t.equal(pool.stats().subscriptions, undefined)
  t.equal(await knownTo([server], name), 0)
  const [a, b] = [fresh(), fresh()]
  const heard: string[] = []
  const stops = await Promise.all([
    backend.subscribe(a, (message, channel) => heard.push(`1 ${channel} ${message}`)),
    backend.subscribe(a, (message, channel) => heard.push(`2 ${channel} ${message}`)),
    backend.subscribe({ pattern: `${a}*` }, (message, channel) => heard.push(`3 ${channel} ${message}`)),
    backend.subscribe(b, (message, channel) => heard.push(`4 ${channel} ${message}`)),
  ])
  t.equal(await knownTo([server], name), 1)
  await pool.use(async () => { t.equal(await knownTo([server], name), 2, 'max 1 has another one to lend') })
  await ask(`PUBLISH ${a} x`)
  await ask(`PUBLISH ${a}more y`)
  await ask(`PUBLISH ${b} z`)
  await until(() => heard.length === 5)
  t.strictSame(heard, [`1 ${a} x`, `2 ${a} x`, `3 ${a} x`, `3 ${a}more y`, `4 ${b} z`])
  t.match(pool.stats().subscriptions,
    { subscribers: 4, channels: 3, missing: 0, connections: 1, received: 4, dropped: 0, reconnects: 0 })
  await stops[0]!()
  await stops[0]!()
  await ask(`PUBLISH ${a} again`)
  await until(() => heard.length === 7)
  t.strictSame(heard.slice(5), [`2 ${a} again`, `3 ${a} again`])
  await Promise.all(stops.slice(1, 3).map((stop) => stop()))
  t.match(await ask(`PUBSUB NUMSUB ${a}`), /:0\r\n$/, 'the server knows')
  t.equal(await knownTo([server], name), 2)
  await stops[3]!()
  t.equal(await knownTo([server], name), 1, 'the pool\'s')
  t.match(pool.stats().subscriptions, { subscribers: 0, channels: 0, connections: 0 })
})

t.test('shard channels have the client\'s prefix, and a connection of their own, in both protocols', async (t) => {
  for (const protocol of [undefined, 2]) {
    const { backend, name, errors } = await stage(t, {
      connection: { keyPrefix: 'app:', ...(protocol !== undefined && { protocol }) },
    })
    const [shard, channel] = [fresh(), fresh()]
    const heard: string[] = []
    const hear = (message: string, from: string) => { heard.push(`${from} ${message}`) }
    const stop = await backend.subscribe({ shard }, hear)
    await backend.subscribe(channel, hear)
    await backend.client.spublish(shard, 'x')
    await backend.client.publish(channel, 'y')
    await until(() => heard.length === 2)
    t.strictSame(heard.toSorted(), [`${channel} y`, `${shard} x`].toSorted())
    t.match(await ask(`PUBSUB SHARDNUMSUB app:${shard}`), /:1\r\n$/)
    await stop()
    t.match(await ask(`PUBSUB SHARDNUMSUB app:${shard}`), /:0\r\n$/)
    await backend.client.publish(channel, 'z')
    await until(() => heard.includes(`${channel} z`))
    t.equal(await knownTo([server], name), 2, 'the shared client, and the one that still receives')
    t.strictSame(errors, [])
  }
})

t.test('a connection that is killed is made again: what comes then is heard, and onReconnect is called', async (t) => {
  const { pool, backend, name, told, errors } = await stage(t)
  const [a, b] = [fresh(), fresh()]
  const heard: string[] = []
  let reconnects = 0
  await backend.subscribe(a, (message) => heard.push(message), { onReconnect: () => { reconnects++ } })
  await backend.subscribe({ pattern: `${b}*` }, (message) => heard.push(message), {
    onReconnect: () => { reconnects++ },
  })
  for (const round of [1, 2, 3]) {
    await kill(name)
    await until(() => reconnects === 2 * round)
    await ask(`PUBLISH ${a} a${round}`)
    await ask(`PUBLISH ${b} b${round}`)
    await until(() => heard.length === 2 * round)
  }
  t.strictSame(heard, ['a1', 'b1', 'a2', 'b2', 'a3', 'b3'])
  t.strictSame(told, ['listen-lost', 'listen-restored', 'listen-lost', 'listen-restored', 'listen-lost', 'listen-restored'])
  t.match(errors[0], { phase: 'subscription', error: { message: /2 subscribed channels was lost/ } })
  t.equal(errors.length, 3, 'one for each outage')
  t.match(pool.stats().subscriptions, { channels: 2, missing: 0, connections: 1, reconnects: 3 })
})

t.test('a restart of the server is an outage like any other', async (t) => {
  const own = await startRedis(t, { own: true })
  const { pool, backend, told } = await stage(t, { url: own.url })
  const heard: string[] = []
  let reconnects = 0
  const stop = await backend.subscribe('news', (message) => heard.push(message), {
    onReconnect: () => { reconnects++ },
  })
  await own.kill()
  await until(() => told.filter((name) => name === 'listen-failed').length > 3)
  t.match(pool.stats().subscriptions, { channels: 1, missing: 1, connections: 0, reconnects: 0 })
  await t.rejects(backend.subscribe('other', () => {}), { code: 'FST_POOL_CONNECT_FAILED', cause: { code: 'ECONNREFUSED' } })
  await own.restart()
  await until(() => reconnects === 1)
  await ask('PUBLISH news back', own)
  await until(() => heard.length === 1)
  t.strictSame(heard, ['back'])
  await own.kill()
  await until(() => told.filter((name) => name === 'listen-lost').length === 2)
  await stop()
  t.match(pool.stats().subscriptions, { subscribers: 0, channels: 0, missing: 0, connections: 0 },
    'during an outage the end does not wait')
})

t.test('during an outage, and where the network is silent, close does not wait', async (t) => {
  const proxy = await startProxy(t, server)
  const { pool, backend, told } = await stage(t, { host: proxy.host, port: proxy.port })
  await backend.subscribe(fresh(), () => {})
  await proxy.refuse()
  proxy.resetAll()
  await until(() => told.includes('listen-failed'))
  await pool.close()
  await proxy.heal()
  const silent = await stage(t, { host: proxy.host, port: proxy.port })
  await silent.backend.subscribe(fresh(), () => {})
  proxy.blackHole()
  await silent.pool.close()
})

t.test('a network that goes silent is noticed, since the connection is asked', async (t) => {
  const proxy = await startProxy(t, server)
  const { backend, told } = await stage(t, {
    host: proxy.host, port: proxy.port, keepalive: 20, connectTimeout: 200,
  })
  const [channel, heard] = [fresh(), [] as string[]]
  await backend.subscribe(channel, (message) => heard.push(message))
  proxy.forget()
  await until(() => told.includes('listen-restored'))
  await ask(`PUBLISH ${channel} x`)
  await until(() => heard.length === 1)
})

t.test('a server that does not answer is told so, with the option that says how long it may take', async (t) => {
  const proxy = await startProxy(t, server)
  const { backend } = await stage(t, { host: proxy.host, port: proxy.port, connectTimeout: 200 })
  await backend.subscribe(fresh(), () => {})
  proxy.blackHole()
  await t.rejects(async () => { await backend.subscribe(fresh(), () => {}) }, {
    code: 'FST_POOL_CONNECT_FAILED',
    message: 'no connection to listen on: the server did not answer within 200 ms (connectTimeout)',
  })
})

t.test('what a listener throws is an error event of the pool, and the others go on', async (t) => {
  const { backend, name, errors } = await stage(t)
  const channel = fresh()
  let heard = 0
  await backend.subscribe(channel, () => { throw new Error('sync') })
  await backend.subscribe(channel, async () => { throw new Error('async') },
    { onReconnect: () => { throw new Error('again') } })
  await backend.subscribe(channel, () => { heard++ })
  await ask(`PUBLISH ${channel} x`)
  await until(() => errors.length === 2 && heard === 1)
  t.match(errors, [{ phase: 'listener', error: { message: 'sync' } }, { phase: 'listener', error: { message: 'async' } }])
  await kill(name)
  await until(() => errors.some(({ error }) => error.message === 'again'))
  await ask(`PUBLISH ${channel} x`)
  await until(() => heard === 2)
})

t.test('a listener runs in the async context of who subscribed', async (t) => {
  const { backend } = await stage(t)
  const storage = new AsyncLocalStorage<string>()
  const channel = fresh()
  const heard: Array<string | undefined> = []
  const hear = () => { heard.push(storage.getStore()) }
  await storage.run('one', () => backend.subscribe(channel, hear))
  await storage.run('two', () => backend.subscribe(channel, hear))
  await ask(`PUBLISH ${channel} x`)
  await until(() => heard.length === 2)
  t.strictSame(heard, ['one', 'two'])
})

t.test('a refused channel is told, and disturbs no other', async (t) => {
  const own = await startRedis(t, { args: ['--requirepass', 'hidden-word'] })
  const admin = new Redis({ host: own.host, port: own.port, password: 'hidden-word' })
  t.teardown(() => admin.disconnect())
  await admin.call('ACL', 'SETUSER', 'reader', 'on', '>hidden-word', '+@all', 'resetchannels', '&open*')
  const { backend, told, errors } = await stage(t, {
    host: own.host, port: own.port, connection: { username: 'reader', password: 'hidden-word' },
  })
  const heard: string[] = []
  await backend.subscribe('open', (message) => heard.push(message))
  await t.rejects(backend.subscribe('closed', () => {}), { name: 'ReplyError', message: /^NOPERM/ })
  await admin.publish('open', 'x')
  await until(() => heard.length === 1)
  t.strictSame([...told, ...errors], [])
  const wrong = await stage(t, { host: own.host, port: own.port, connection: { password: 'wrong-hidden' } })
  const error = await wrong.backend.subscribe('open', () => {}).catch((error: unknown) => error) as Error
  t.match(error, { code: 'FST_POOL_CONNECT_FAILED', cause: { message: /WRONGPASS/ } })
  t.notMatch(`${error.stack} ${String(error.cause)}`, /hidden/)
})

t.test('wrong arguments are refused by name', async (t) => {
  const { backend, pool } = await stage(t)
  const any = backend as unknown as { subscribe (...args: unknown[]): Promise<unknown> | Messages<RedisMessage> }
  const wrong: Array<[unknown[], RegExp]> = [
    [['', () => {}], /option channel is '': expected the name of a channel/],
    [[undefined, () => {}], /option channel is missing/],
    [[5, () => {}], /option channel/],
    [[['a'], () => {}], /option channel/],
    [[{}, () => {}], /option channel/],
    [[{ pattern: '' }, () => {}], /option channel.pattern is ''/],
    [[{ shard: 5 }, () => {}], /option channel.shard is 5/],
    [[{ pattern: 'a', shard: 'b' }, () => {}], /option channel/],
    [[{ patern: 'a' }, () => {}], /option channel/],
    [['a', 5], /option fn is 5: expected a function/],
    [['a', 'fn'], /option fn/],
    [['a', undefined, {}], /option fn/],
    [['a', () => {}, 5], /options/],
    [['a', () => {}, { onReconect: () => {} }], /unknown option options.onReconect: did you mean onReconnect/],
    [['a', () => {}, { limit: 5 }], /unknown option options.limit/],
    [['a', () => {}, { onReconnect: 5 }], /option options.onReconnect is 5/],
    [['a', () => {}, { signal: {} }], /option options.signal/],
  ]
  for (const [args, message] of wrong) {
    await t.rejects(any.subscribe(...args) as Promise<unknown>, { code: 'FST_POOL_BAD_OPTIONS', message })
  }
  const atOnce: Array<[unknown[], RegExp]> = [
    [['a', { limit: 0 }], /option options.limit is 0: expected an integer of at least 1/],
    [['a', { limit: 1.5 }], /options.limit/],
    [['a', { limt: 5 }], /did you mean limit/],
    [['a', { signal: 5 }], /options.signal/],
    [['', {}], /option channel/],
    [[''], /option channel/],
  ]
  for (const [args, message] of atOnce) {
    t.throws(() => any.subscribe(...args), { code: 'FST_POOL_BAD_OPTIONS', message })
  }
  t.equal(pool.stats().subscriptions, undefined, 'nothing was begun')
})

t.test('a signal ends a subscription, and one that has not begun', async (t) => {
  const { backend, name } = await stage(t)
  await t.rejects(backend.subscribe('a', () => {}, { signal: AbortSignal.abort('why') }),
    { code: 'FST_POOL_ABORTED', cause: 'why' })
  const first = new AbortController()
  const begun = backend.subscribe(fresh(), () => {}, { signal: first.signal })
  first.abort()
  await t.rejects(begun, { code: 'FST_POOL_ABORTED' })
  const second = new AbortController()
  const channel = fresh()
  const stop = await backend.subscribe(channel, () => t.fail('heard'), { signal: second.signal })
  second.abort()
  await ask(`PUBLISH ${channel} x`)
  await until(async () => await knownTo([server], name) === 0)
  await stop()
})

t.test('a closed pool ends subscriptions, and begins none', async (t) => {
  const { pool, backend, name } = await stage(t)
  const stop = await backend.subscribe(fresh(), () => {})
  const messages = backend.subscribe(fresh())
  await messages.ready()
  const next = messages.next()
  await pool.close()
  t.equal(await knownTo([server], name), 0)
  t.strictSame(await next, { done: true, value: undefined })
  await stop()
  await t.rejects(backend.subscribe('a', () => {}), { code: 'FST_POOL_CLOSED' })
  await t.rejects(backend.subscribe('a').next(), { code: 'FST_POOL_CLOSED' })
})

t.test('in an app: the pool\'s options count, the log warns, metrics count', async (t) => {
  const own = await startRedis(t, { own: true })
  const lines: string[] = []
  const registry = new Registry()
  const app = Fastify({ logger: { stream: { write: (line) => { lines.push(line) } } } }) as unknown as FastifyInstance
  t.teardown(() => app.close())
  await app.register(fastifyPool, {
    pools: { live: { backend: 'redis', url: own.url, backoff: { min: 5, max: 5 }, startup: 'lazy' } },
    prometheus: { register: registry },
  })
  await app.ready()
  const { backend } = app.pools.get<'live', RedisConnector>('live')
  let failures = 0
  app.pools.on('driver', ({ name }) => { if (name === 'listen-failed') failures++ })
  const one = await hear(backend, 'news')
  const messages = backend.subscribe('news', { limit: 1 })
  await messages.ready()
  for (const text of ['1', '2', '3']) await ask(`PUBLISH news ${text}`, own)
  await until(() => one.heard.length === 3)
  await own.kill()
  // With the usual backoff, so many would take minutes.
  await until(() => failures >= 100)
  t.match(await registry.metrics(), /^fastify_pool_subscription_channels\{pool="live",state="missing"\} 1$/m)
  await own.restart()
  await until(() => one.reconnects === 1)
  const metrics = await registry.metrics()
  for (const line of [
    'fastify_pool_subscription_channels{pool="live",state="on"} 1',
    'fastify_pool_subscription_channels{pool="live",state="missing"} 0',
    'fastify_pool_subscription_reconnects_total{pool="live"} 1',
    'fastify_pool_subscription_messages_total{pool="live",state="received"} 3',
    'fastify_pool_subscription_messages_total{pool="live",state="dropped"} 2',
  ]) t.ok(metrics.includes(`${line}\n`), line)
  const warned = lines.map((line) => JSON.parse(line) as Record<string, unknown>).filter(({ phase }) => phase === 'subscription')
  t.match(warned, [{ level: 40, event: 'pool.error', pool: 'live', cause: /1 subscribed channel was lost/ }])
  // A handler that waits for a message ends with the pool.
  const rest = (async () => { for await (const message of messages) t.equal(message.dropped, 2) })()
  await app.close()
  await rest
})

// --- The iterator ----------------------------------------------------------------------------------------------------

t.test('the iterator gives messages in order, and the end of the loop is the end of the subscription', async (t) => {
  const { pool, backend, name } = await stage(t)
  const channel = fresh()
  const messages = backend.subscribe({ pattern: `${channel}*` })
  await messages.ready()
  for (const n of [1, 2, 3, 4]) await ask(`PUBLISH ${channel}${n} m${n}`)
  const seen: unknown[] = []
  for await (const message of messages) {
    seen.push(message)
    if (seen.length === 3) break
  }
  t.strictSame(seen, [1, 2, 3].map((n) => ({ message: `m${n}`, channel: `${channel}${n}`, dropped: 0 })))
  t.equal(await knownTo([server], name), 0)
  t.match(pool.stats().subscriptions, { subscribers: 0, dropped: 0 })
  t.strictSame(await messages.next(), { done: true, value: undefined })
})

t.test('the iterator survives an outage, and onReconnect tells', async (t) => {
  const { backend, name } = await stage(t)
  const channel = fresh()
  let reconnects = 0
  const messages = backend.subscribe(channel, { onReconnect: () => { reconnects++ } })
  t.teardown(() => messages.return())
  await messages.ready()
  await ask(`PUBLISH ${channel} before`)
  t.match(await messages.next(), { value: { message: 'before' } })
  const next = messages.next()
  await kill(name)
  await until(() => reconnects === 1)
  await ask(`PUBLISH ${channel} after`)
  t.match(await next, { value: { message: 'after', dropped: 0 } })
})

t.test('a reader that is too slow: the oldest are dropped, and it is told where, and how many', async (t) => {
  const { pool, backend, told } = await stage(t)
  const channel = fresh()
  const messages = backend.subscribe(channel, { limit: 2 })
  t.teardown(() => messages.return())
  await messages.ready()
  const publish = async (...texts: string[]) => {
    const before = pool.stats().subscriptions!.received
    for (const text of texts) await ask(`PUBLISH ${channel} ${text}`)
    await until(() => pool.stats().subscriptions!.received === before + texts.length)
  }
  await publish('1', '2', '3', '4', '5')
  t.equal(messages.dropped, 3)
  t.match(await messages.next(), { value: { message: '4', dropped: 3 } })
  t.match(await messages.next(), { value: { message: '5', dropped: 0 } })
  await publish('6', '7', '8')
  t.match(await messages.next(), { value: { message: '7', dropped: 1 } })
  t.equal(messages.dropped, 4)
  t.equal(pool.stats().subscriptions!.dropped, 4)
  t.strictSame(told, ['messages-dropped', 'messages-dropped'], 'once each time it begins')
})

t.test('a long queue keeps its order', async (t) => {
  const { pool, backend } = await stage(t)
  const channel = fresh()
  const messages = backend.subscribe(channel, { limit: 2000 })
  t.teardown(() => messages.return())
  await messages.ready()
  const publish = (from: number, to: number) =>
    Promise.all(Array.from({ length: to - from }, (_, n) => backend.client.publish(channel, String(from + n))))
  await publish(0, 1500)
  for (let n = 0; n < 1000; n++) t.equal((await messages.next()).value!.message === String(n) || n, true)
  await publish(1500, 3500)
  await until(() => pool.stats().subscriptions!.received === 3500)
  t.equal(messages.dropped, 500)
  t.match(await messages.next(), { value: { message: '1500', dropped: 500 } })
  for (let n = 1501; n < 3500; n++) t.equal((await messages.next()).value!.message === String(n) || n, true)
})

t.test('a signal, return() and dispose end the iterator, also while it waits', async (t) => {
  const { backend, name } = await stage(t)
  const abort = new AbortController()
  const first = backend.subscribe(fresh(), { signal: abort.signal })
  await first.ready()
  const waiting = [first.next(), first.next()]
  abort.abort()
  t.strictSame(await Promise.all(waiting), [{ done: true, value: undefined }, { done: true, value: undefined }])
  const second = backend.subscribe(fresh())
  const next = second.next()
  await second.return()
  t.strictSame(await next, { done: true, value: undefined })
  await t.rejects(second.ready(), { code: 'FST_POOL_ABORTED' }, 'it had not begun')
  {
    await using third = backend.subscribe(fresh())
    await third.ready()
  }
  await until(async () => await knownTo([server], name) === 0)
  await t.rejects(backend.subscribe('a', { signal: AbortSignal.abort() }).next(), { code: 'FST_POOL_ABORTED' })
})

t.test('why an iterator has no subscription is told once: by ready() or by next()', async (t) => {
  const { backend } = await stage(t, { host: '127.0.0.1', port: 1 })
  const first = backend.subscribe('a')
  await t.rejects(first.next(), { code: 'FST_POOL_CONNECT_FAILED' })
  t.strictSame(await first.next(), { done: true, value: undefined })
  const second = backend.subscribe('a')
  await t.rejects(second.ready(), { code: 'FST_POOL_CONNECT_FAILED' })
  t.strictSame(await second.next(), { done: true, value: undefined })
  const third = backend.subscribe('a')
  await t.rejects(async () => { for await (const message of third) t.fail(message.message) }, { code: 'FST_POOL_CONNECT_FAILED' })
})

// --- Groups ----------------------------------------------------------------------------------------------------------

/** A subscription, and what it heard. */
async function hear (backend: RedisPubSub, channel: RedisChannel) {
  const heard: string[] = []
  const told = { heard, reconnects: 0 }
  await backend.subscribe(channel, (message) => heard.push(message), { onReconnect: () => { told.reconnects++ } })
  return told
}

t.test('with sentinels: a subscription follows the master', needsGroup('Redis'), async (t) => {
  const group = await startRedisSentinel(t)
  const { backend, errors, name } = await stage(t, {
    connection: { sentinels: group.sentinels.map(({ host, port }) => ({ host, port })), name: group.name },
  })
  const one = await hear(backend, 'news')
  await ask('PUBLISH news before', group.master)
  await until(() => one.heard.length === 1)
  t.equal(await knownTo([group.master], name), 1)
  await group.master.kill()
  await until(() => one.reconnects === 1, { what: 'it is subscribed at the new master' })
  t.equal(await knownTo([group.replica], name), 1)
  // A connection that was made before the announcement is cut by it, and made again.
  await until(async () => {
    await ask('PUBLISH news after', group.replica)
    return one.heard.length > 1
  })
  t.strictSame([...new Set(one.heard)], ['before', 'after'])
  t.match(errors.find(({ phase }) => phase === 'subscription'), { error: { message: /1 subscribed channel was lost/ } })
})

t.test('with sentinels: a failover without a death leaves no subscription at the old master', needsGroup('Redis'), async (t) => {
  const group = await startRedisSentinel(t)
  const { backend, name, pool } = await stage(t, {
    connection: { sentinels: group.sentinels.map(({ host, port }) => ({ host, port })), name: group.name },
  })
  const one = await hear(backend, 'news')
  await group.failover()
  await until(() => one.reconnects > 0)
  await until(async () => await knownTo([group.replica], name) === 1 && await knownTo([group.master], name) === 0)
  await until(async () => {
    await ask('PUBLISH news after', group.replica)
    return one.heard.length > 0
  })
  await pool.close()
})

t.test('with targets: a subscription follows the primary', needsGroup('Redis'), async (t) => {
  const { master, replica, promote } = await startRedisPair(t)
  const name = fresh()
  const make = ({ url }: Server) => redis({ url, backoff: { min: 10, max: 50 }, connection: { connectionName: name } })
  const pool = new TargetPool<Redis, RedisConnector>([
    { name: 'one', role: 'primary', connector: await make(master) },
    { name: 'two', role: 'replica', connector: await make(replica) },
  ], { max: 4, checkInterval: 100 })
  t.teardown(() => pool.close())
  await pool.open()
  const old = pool.backend
  const one = await hear(old, 'news')
  const messages = pool.backend.subscribe({ pattern: 'new*' })
  await messages.ready()
  await ask('PUBLISH news before', master)
  await until(() => one.heard.length === 1)
  t.match(pool.stats().subscriptions, { subscribers: 2, channels: 2, connections: 1 })
  await master.kill()
  await promote()
  await until(() => one.reconnects === 1)
  await ask('PUBLISH news after', replica)
  await until(() => one.heard.length === 2)
  t.match(await messages.next(), { value: { message: 'before' } })
  t.match(await messages.next(), { value: { message: 'after' } })
  t.match(pool.stats(), {
    subscriptions: { subscribers: 2, channels: 2, missing: 0, connections: 1, received: 4, reconnects: 1 },
    targets: [{ subscriptions: { subscribers: 0 } }, { subscriptions: { subscribers: 2 } }],
  })
  const late = await hear(old, 'late')
  await ask('PUBLISH late x', replica)
  await until(() => late.heard.length === 1, { what: 'who asks the old primary\'s connector is sent there' })
  await messages.return()
  await pool.close()
  t.equal(await knownTo([replica], name), 0)
})

// --- A cluster -------------------------------------------------------------------------------------------------------

t.test('in a cluster', needsGroup('Redis'), async (t) => {
  const cluster = await startRedisCluster(t)
  const masters = cluster.nodes.slice(0, 3)
  const stageOf = async (t: Teardown) => {
    const name = fresh()
    const backend = await redisCluster({
      connection: {
        cluster: masters.map(({ host, port }) => ({ host, port })), redisOptions: { connectionName: name },
      },
      backoff: { min: 10, max: 50 },
    })
    const pool = new Pool<Cluster, RedisClusterConnector>(backend, { max: 2 })
    t.teardown(() => pool.close())
    return { pool, backend, name }
  }

  await t.test('channels and patterns come from any node, shard channels from the master of their slot', async (t) => {
    const { pool, backend, name } = await stageOf(t)
    const all = await hear(backend, 'news')
    const some = await hear(backend, { pattern: 'n*s' })
    for (const [n, node] of masters.entries()) {
      await ask(`PUBLISH news from${n}`, node)
      await until(() => all.heard.length === n + 1 && some.heard.length === n + 1)
    }
    t.equal(pool.stats().subscriptions!.connections, 1)
    const shards = await Promise.all(masters.map((node) => cluster.keyOn(node)))
    const heard = await Promise.all(shards.map((shard) => hear(backend, { shard })))
    for (const [n, node] of masters.entries()) {
      t.match(await ask(`PUBSUB SHARDNUMSUB ${shards[n]}`, node), /:1\r\n$/)
      await ask(`SPUBLISH ${shards[n]} shard${n}`, node)
      await until(() => heard[n]!.heard.length === 1)
    }
    t.strictSame(heard.map((one) => one.heard), [['shard0'], ['shard1'], ['shard2']])
    t.match(pool.stats().subscriptions, { channels: 5, missing: 0, reconnects: 0 })
    await pool.close()
    for (const node of masters) await until(async () => await knownTo([node], name) === 0)
  })

  await t.test('a slot that moves takes its shard channels along', async (t) => {
    const { pool, backend } = await stageOf(t)
    const [from, to] = [masters[1]!, masters[2]!]
    const shard = await cluster.keyOn(from)
    const slot = (await ask(`CLUSTER KEYSLOT ${shard}`, from)).slice(1).trim()
    const [one, still] = [await hear(backend, { shard }), await hear(backend, { shard: await cluster.keyOn(to) })]
    const idOf = async (node: Server) => /[0-9a-f]{40}/.exec(await ask('CLUSTER MYID', node))![0]
    for (const [back, forth] of [[from, to], [to, from]] as const) {
      const before = one.reconnects
      const id = await idOf(forth)
      await ask(`CLUSTER SETSLOT ${slot} IMPORTING ${await idOf(back)}`, forth)
      await ask(`CLUSTER SETSLOT ${slot} MIGRATING ${id}`, back)
      for (const node of [forth, back, ...cluster.nodes]) await ask(`CLUSTER SETSLOT ${slot} NODE ${id}`, node)
      await until(() => one.reconnects > before, { what: 'it is subscribed at the new node' })
      const count = one.heard.length
      await ask(`SPUBLISH ${shard} x`, forth)
      await until(() => one.heard.length > count)
    }
    // ioredis 5 takes the news of it for a mistake, and the connection is made again.
    if (speaksResp3(backend.client.nodes('master')[0]!)) t.equal(still.reconnects, 0, 'no other one was disturbed')
    t.match(pool.stats().subscriptions, { channels: 2, missing: 0 })
  })

  await t.test('a node that is killed: its replica sends what it sent', async (t) => {
    const { pool, backend, name } = await stageOf(t)
    const shard = await cluster.keyOn(masters[0]!)
    const [one, all] = [await hear(backend, { shard }), await hear(backend, 'news')]
    await cluster.caughtUp()
    await masters[0]!.kill()
    await until(() => one.reconnects === 1, { what: 'it is subscribed at the replica' })
    await ask(`SPUBLISH ${shard} x`, cluster.replica)
    await until(() => one.heard.length === 1)
    await until(() => pool.stats().subscriptions!.missing === 0)
    await ask('PUBLISH news x', cluster.replica)
    await until(() => all.heard.length === 1)
    await pool.close()
    t.equal(await knownTo([cluster.replica], name), 0)
  })
})

t.test('in a cluster whose replica takes over from its living master: shard channels move', needsGroup('Redis'), async (t) => {
  const cluster = await startRedisCluster(t)
  const master = cluster.nodes[0]!
  const backend = await redisCluster({
    connection: { cluster: cluster.nodes.slice(0, 3).map(({ host, port }) => ({ host, port })) },
    backoff: { min: 10, max: 50 },
  })
  t.teardown(() => backend.close!())
  const shard = await cluster.keyOn(master)
  const [one, all] = [await hear(backend, { shard }), await hear(backend, 'news')]
  await cluster.caughtUp()
  await cluster.failover()
  await until(async () => /:1\r\n$/.test(await ask(`PUBSUB SHARDNUMSUB ${shard}`, cluster.replica)))
  await until(() => one.reconnects > 0)
  await ask(`SPUBLISH ${shard} x`, cluster.replica)
  await until(() => one.heard.length > 0)
  // Where it came from the old master, it comes from another node now.
  await until(async () => {
    await ask('PUBLISH news x', cluster.replica)
    return all.heard.length > 0
  })
})
