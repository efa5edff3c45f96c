import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import type { Redis } from 'ioredis'
import t from 'tap'
import { redis } from '../../lib/backends/redis/connector.js'
import type { RedisConnector } from '../../lib/backends/redis/connector.js'
import type { RedisOptions } from '../../lib/backends/redis/options.js'
import { Pool } from '../../lib/pool/pool.js'
import type { DriverEvent } from '../../types/connector.js'
import { startProxy } from '../support/proxy.js'
import { infoOf, speaksResp3 } from '../support/redis.js'
import { knownTo, needsOwn, startRedis } from '../support/services.js'
import type { Server, Teardown } from '../support/services.js'
import { needsGroup, startRedisPair, startRedisSentinel } from '../support/topologies.js'
import { until } from '../support/until.js'

const server = await startRedis(t)
const admin = (await connector(t, { url: server.url })).client
await admin.ping()
/** In RESP2, the only protocol of ioredis 5, what is subscribed to any channel takes no other commands. */
const resp3 = speaksResp3(admin)

/** Only where something hangs is it ever reached. */
const soon = () => AbortSignal.timeout(10_000)

/** A connector that is closed, with every connection that it made, when the test ends. */
async function connector (t: Teardown, options: RedisOptions): Promise<RedisConnector> {
  const made = await redis(options)
  const connections = new Set<Redis>()
  const { create } = made
  made.create = async (signal) => {
    const connection = await create.call(made, signal)
    connections.add(connection)
    return connection
  }
  t.teardown(async () => {
    for (const connection of connections) await made.destroy(connection, 'closed')
    await made.close?.()
  })
  return made
}

let names = 0
const freshName = () => `test-${process.pid}-${names++}`

const known = (name: string) => knownTo([server], name)

async function pair (
  t: Teardown, options: RedisOptions & { connection?: Record<string, unknown> } = {}
): Promise<{ backend: RedisConnector, connection: Redis, name: string }> {
  const name = freshName()
  const { connection: more, ...rest } = options
  const backend = await connector(t, { url: server.url, ...rest, connection: { connectionName: name, ...more } })
  return { backend, name, connection: await backend.create(soon()) }
}

/** What the server holds against this connection, and what ioredis does. */
async function stateOf (connection: Redis): Promise<Record<string, unknown>> {
  const { id, name, db, sub, psub, ssub, multi, user, resp, flags } = await infoOf(connection, admin)
  const { condition } = connection
  const heard = connection.eventNames().map((name) => `${String(name)} ${connection.listenerCount(name)}`)
  const { select, subscriber, protocol } = (condition ?? {}) as {
    select?: number, subscriber?: unknown, protocol?: number,
  }
  return { id, name, db, sub, psub, ssub, multi, user, resp, flags, select, subscriber, protocol, heard }
}

/** Commands sent and not waited for. Whether they fail is not what is tested. */
function unheeded (...work: unknown[]): void {
  Promise.allSettled(work)
}

t.test('creates exclusive connections and destroys them, and the server knows each and then none', async (t) => {
  const name = freshName()
  const backend = await connector(t, { url: server.url, connection: { connectionName: name } })
  const connections = await Promise.all([1, 2, 3].map(() => backend.create(soon())))
  t.equal(await known(name), 3)
  t.equal(new Set(await Promise.all(connections.map((connection) => connection.client('ID')))).size, 3)
  await connections[0]!.set(name, 'x', 'EX', 5)
  t.equal(await connections[1]!.get(name), 'x')
  for (const connection of connections) {
    t.equal(await backend.validate!(connection, soon()), true)
    t.equal(backend.isBroken!(connection), false)
    await backend.destroy(connection, 'idle')
    t.equal(backend.isBroken!(connection), true)
  }
  t.equal(await known(name), 0, 'without waiting any longer')
  await t.rejects(connections[0]!.get('a'), /Connection is closed/)
})

t.test('nothing is reset where nothing was left', async (t) => {
  const { backend, connection } = await pair(t)
  t.equal(backend.reset!(connection, soon()), undefined)
  await connection.set('a', 1)
  await connection.pipeline().get('a').set('b', 2).exec()
  await connection.multi().get('a').exec()
  await connection.eval('return redis.call("select", 3)', 0)
  for (const command of ['GETNAME', 'ID', 'INFO', 'LIST'] as const) await connection.call('client', command)
  await connection.call('CLIENT', 'getname')
  await connection.script('EXISTS', 'abc')
  t.equal(backend.reset!(connection, soon()), undefined, 'and reading subcommands leave nothing')
  t.equal((await stateOf(connection)).db, '0')
})

const leaves: Record<string, (connection: Redis) => Promise<unknown>> = {
  SELECT: (connection) => connection.select(3),
  'SELECT in any case': (connection) => connection.call('SeLeCt', '3'),
  'a SELECT that failed': (connection) => Promise.allSettled([connection.select(9999)]),
  'SELECT in a pipeline': (connection) => connection.pipeline().select(2).get('a').exec(),
  'SELECT in a transaction': (connection) => connection.multi().select(2).get('a').exec(),
  'SELECT in a discarded transaction': async (connection) => {
    await connection.multi({ pipeline: false })
    await connection.select(4)
    await connection.discard()
  },
  'an open MULTI': async (connection) => {
    await connection.multi({ pipeline: false })
    await connection.set('never', 1)
  },
  'an open MULTI by call()': (connection) => connection.call('MuLTi'),
  WATCH: (connection) => connection.watch('k'),
  SUBSCRIBE: (connection) => connection.subscribe('a', 'b'),
  'SUBSCRIBE in any case': (connection) => connection.call('SubScribe', 'a', ...(resp3 ? ['b'] : [])),
  'SUBSCRIBE of a name that is no text': (connection) => connection.subscribe(Buffer.from([0xff, 0xfe, 0])),
  PSUBSCRIBE: (connection) => connection.psubscribe('a*'),
  SSUBSCRIBE: (connection) => connection.ssubscribe('a'),
  'a subscription with listeners': async (connection) => {
    connection.on('message', () => t.fail('a message for somebody else'))
    connection.once('messageBuffer', () => t.fail('a message for somebody else'))
    connection.on('error', () => t.fail('an error for somebody else'))
    await connection.subscribe('a')
  },
  'listeners alone': async (connection) => { connection.on('select', () => t.fail('told somebody else')) },
  ...(resp3 && {
    'an open MULTI with SELECT and SUBSCRIBE before it': async (connection) => {
      await connection.select(1)
      await connection.subscribe('a')
      await connection.watch('k')
      await connection.multi({ pipeline: false })
    },
    'every kind of subscription': async (connection) => {
      await connection.subscribe('a', 'b')
      await connection.psubscribe('a*', 'b*')
      await connection.ssubscribe('c')
    },
    'a subscription that ioredis has forgotten': async (connection) => {
      await connection.subscribe('a')
      await connection.ssubscribe('c')
      await connection.sunsubscribe('c')
    },
  }),
}
for (const [what, leave] of Object.entries(leaves)) {
  t.test(`the next user of the same connection finds nothing of: ${what}`, async (t) => {
    const { backend, connection } = await pair(t)
    const before = await stateOf(connection)
    await leave(connection)
    await backend.reset!(connection, soon())
    t.equal(backend.isBroken!(connection), false)
    t.equal(backend.reset!(connection, soon()), undefined, 'clean now')
    await admin.publish('a', 'hello')
    await admin.set('k', freshName())
    t.strictSame(await connection.multi().ping().exec(), [[null, 'PONG']], 'nothing is watched')
    t.strictSame(await stateOf(connection), before)
    t.equal(await admin.exists('never'), 0)
  })
}

t.test('listeners that onConnect adds are there for every borrower, once', async (t) => {
  const backend = await connector(t, { url: server.url })
  const heard: number[] = []
  const pool = new Pool<Redis, RedisConnector>(backend, {
    max: 1, onConnect: (connection) => { connection.on('message', () => { heard.push(1) }) },
  })
  t.teardown(() => pool.close())
  for (let turn = 1; turn <= 3; turn++) {
    await pool.use(async (connection) => {
      connection.emit('message')
      t.equal(heard.length, turn)
    })
  }
  t.equal(pool.stats().created, 1)
})

t.test('shard channels keep their key prefix once, and the database goes back to the configured one', async (t) => {
  const { backend, connection } = await pair(t, { database: '5', connection: { keyPrefix: 'p:' } })
  const before = await stateOf(connection)
  t.match(before, { db: '5', select: 5 })
  await connection.select(1)
  await connection.ssubscribe('c')
  await backend.reset!(connection, soon())
  t.strictSame(await stateOf(connection), before)
})

t.test('in RESP2 subscriptions are undone before all else, and shard channels next to others are refused', async (t) => {
  const { backend, connection } = await pair(t, { connection: { protocol: 2 } })
  const before = await stateOf(connection)
  await connection.select(1)
  await connection.watch('k')
  await connection.subscribe('a')
  await connection.psubscribe('b*')
  await backend.reset!(connection, soon())
  t.strictSame(await stateOf(connection), before)
  await connection.ssubscribe('c')
  await backend.reset!(connection, soon())
  t.strictSame(await stateOf(connection), before)
  await connection.subscribe('a')
  await connection.ssubscribe('c')
  await t.rejects(async () => await backend.reset!(connection, soon()), /RESP2/)
})

t.test('a WATCH that EXEC ended costs no reset, one that outlived a refused MULTI does', async (t) => {
  const { backend, connection } = await pair(t)
  await connection.watch('k')
  await connection.multi().get('k').exec()
  t.equal(backend.reset!(connection, soon()), undefined)
  await connection.watch('k')
  await t.rejects(connection.call('multi', 'x'), /wrong number/)
  await t.rejects(connection.exec(), /EXEC without MULTI/)
  await backend.reset!(connection, soon())
  await admin.set('k', freshName())
  t.strictSame(await connection.multi().ping().exec(), [[null, 'PONG']])
})

const losing: Record<string, (connection: Redis) => unknown> = {
  'CLIENT SETNAME': (connection) => connection.client('SETNAME', 'me'),
  'CLIENT in any case, in a pipeline': (connection) => connection.pipeline().call('cLiEnt', 'no-evict', 'on').exec(),
  'CLIENT REPLY OFF': (connection) => unheeded(connection.call('client', 'reply', 'off'), connection.get('a')),
  'CLIENT TRACKING': (connection) => connection.call('client', 'tracking', 'on'),
  HELLO: (connection) => connection.call('hello', resp3 ? '3' : '2'),
  RESET: (connection) => connection.reset(),
  READONLY: (connection) => Promise.allSettled([connection.readonly()]),
  'SCRIPT DEBUG': (connection) => connection.script('DEBUG', 'YES'),
  QUIT: (connection) => connection.quit(),
  MONITOR: (connection) => unheeded(connection.call('monitor')),
  'SUBSCRIBE within MULTI': (connection) => unheeded(connection.multi({ pipeline: false }), connection.subscribe('a')),
  'a sendCommand of the request\'s own': (connection) => { connection.sendCommand = () => Promise.resolve() },
}
for (const [what, leave] of Object.entries(losing)) {
  t.test(`a connection is refused by the reset after: ${what}`, async (t) => {
    const { backend, connection, name } = await pair(t)
    await leave(connection)
    await t.rejects(async () => await backend.reset!(connection, soon()),
      /only closing the connection undoes what .+ left/)
    await backend.destroy(connection, 'error')
    await until(async () => await known(name) === 0)
  })
}

t.test('a connection of another user is refused by the reset', async (t) => {
  await admin.call('ACL', 'SETUSER', 'other', 'on', '>other-secret', '~*', '+@all')
  t.teardown(() => admin.call('ACL', 'DELUSER', 'other'))
  const { backend, connection } = await pair(t)
  await connection.auth('other', 'other-secret')
  const refusal = await Promise.resolve(backend.reset!(connection, soon())).catch((error: Error) => error)
  t.match(refusal, { message: /what auth left/ })
  t.notMatch(String((refusal as Error).stack), /other-secret/)
})

t.test('a reset waits for the commands that were left behind, without taking their failures for handled', async (t) => {
  const { backend, connection } = await pair(t)
  const answers: unknown[] = []
  const slow = connection.eval('local n = 0 while n < 2000000 do n = n + 1 end return n', 0)
    .then((n) => answers.push(n))
  const reset = backend.reset!(connection, soon())
  t.ok(reset)
  await reset
  t.equal(connection.commandQueue.length, 0)
  await slow
  t.strictSame(answers, [2_000_000])
  // The test runner's own would take it for a failed test.
  const others = process.listeners('unhandledRejection')
  process.removeAllListeners('unhandledRejection')
  try {
    const unhandled = once(process, 'unhandledRejection', { signal: soon() })
    connection.call('nonsense')
    await backend.reset!(connection, soon())
    t.match((await unhandled)[0], /unknown command/)
  } finally {
    for (const listener of others) process.on('unhandledRejection', listener)
  }
  t.equal(backend.isBroken!(connection), false)
})

t.test('auto-pipelined commands that are not even sent count as under way', async (t) => {
  const { backend, connection } = await pair(t, { connection: { enableAutoPipelining: true } })
  // ioredis 5 does not wait for the answers of its own handshake.
  await connection.ping()
  const key = freshName()
  const sent = connection.set(key, 'x', 'EX', 5)
  t.equal(connection.commandQueue.length, 0)
  const reset = backend.reset!(connection, soon())
  t.ok(reset)
  await reset
  t.equal(await admin.get(key), 'x')
  t.equal(await sent, 'OK')
  await connection.select(3)
  await connection.subscribe('a')
  await backend.reset!(connection, soon())
  t.match(await stateOf(connection), { db: '0', sub: '0' })
})

t.test('a reset behind a blocked BLPOP ends with its signal, and the connection can be destroyed', async (t) => {
  const { backend, connection, name } = await pair(t)
  const blocked = connection.blpop(freshName(), 0)
  unheeded(blocked)
  const deadline = new AbortController()
  const reset = backend.reset!(connection, deadline.signal)
  await until(async () => /cmd=blpop/.test(String(await admin.client('LIST'))))
  deadline.abort(new Error('too late'))
  await t.rejects(async () => await reset, /too late/)
  await backend.destroy(connection, 'error')
  await t.rejects(blocked, /Connection is closed/)
  t.equal(await known(name), 0)
})

t.test('a connection that dies while its reset waits is refused at once', async (t) => {
  const { backend, connection } = await pair(t)
  const id = await connection.client('ID')
  unheeded(connection.blpop(freshName(), 0))
  const reset = backend.reset!(connection, new AbortController().signal)
  const refused = t.rejects(async () => await reset, /closed while commands were under way/)
  await admin.client('KILL', 'ID', id)
  await refused
})

t.test('an unsubscribe that ioredis never sees the end of makes a reset fail, not the process', async (t) => {
  const { backend, connection } = await pair(t)
  await connection.subscribe('a')
  await connection.psubscribe('b*')
  unheeded(connection.unsubscribe())
  const deadline = new AbortController()
  const reset = backend.reset!(connection, deadline.signal)
  await until(async () => /sub=0 psub=1/.test(String(await admin.client('LIST'))))
  deadline.abort(new Error('too late'))
  await t.rejects(async () => await reset, /too late/)
})

t.test('a connection that is used during its reset is refused', async (t) => {
  const { backend, connection } = await pair(t)
  await connection.watch('k')
  const reset = backend.reset!(connection, soon())
  unheeded(connection.select(3))
  await t.rejects(async () => await reset, /still used/)
})

t.test('mode transaction undoes MULTI and WATCH, and leaves the rest', async (t) => {
  const { backend, connection } = await pair(t, { reset: 'transaction' })
  connection.on('message', () => {})
  await connection.select(2)
  if (resp3) await connection.subscribe('a')
  t.equal(backend.reset!(connection, soon()), undefined)
  await connection.watch('k')
  await connection.multi({ pipeline: false })
  await backend.reset!(connection, soon())
  await admin.set('k', freshName())
  t.strictSame(await connection.multi().ping().exec(), [[null, 'PONG']])
  t.match(await stateOf(connection), { db: '2', sub: resp3 ? '1' : '0', multi: '-1' })
  t.equal(connection.listenerCount('message'), 1)
  t.equal(await backend.validate!(connection, soon()), true)
})

t.test('mode none undoes nothing', async (t) => {
  const { backend, connection } = await pair(t, { reset: 'none' })
  await connection.client('SETNAME', 'me')
  await connection.select(2)
  t.equal(backend.reset!(connection, soon()), undefined)
  t.match(await stateOf(connection), { db: '2', name: 'me' })
  unheeded(connection.get('a'))
  t.equal(backend.reset!(connection, soon()), undefined, 'and waits for nothing')
  t.equal(await backend.validate!(connection, soon()), true)
})

const lua = 'return redis.call("incr", KEYS[1])'
interface Scripts { both (key: string): Promise<number> }
type Scripted = Redis & Scripts
type Chain = ReturnType<Redis['multi']> & { both (key: string): Chain }
/** What the first of them answered, or its error. */
const firstOf = (all: Array<[error: Error | null, result: unknown]>) => all[0]![0] ?? all[0]![1]

type Call = (connection: Scripted, key: string) => Promise<unknown>
/** The ways to call a script of `defineCommand`, and how often each fails on a connection whose server has lost it. */
const scripted: Record<string, readonly [failures: number, call: Call]> = {
  'by itself': [0, (connection, key) => connection.both(key)],
  'in a pipeline': [0, async (connection, key) =>
    firstOf((await (connection.pipeline() as Chain).both(key).exec())!)],
  'in MULTI': [1, async (connection, key) =>
    firstOf((await (connection.multi() as Chain).both(key).get(key).exec())!)],
  'in MULTI, one after the other': [1, async (connection, key) => {
    await connection.multi({ pipeline: false })
    await connection.both(key)
    return firstOf((await connection.exec())!)
  }],
}

for (const reset of ['session', 'transaction', 'none'] as const) {
  for (const [way, [failures, call]] of Object.entries(scripted)) {
    t.test(`reset ${reset}: a script that the server has lost fails ${failures} times, ${way}`, async (t) => {
      const scripts = { both: { lua, numberOfKeys: 1 } }
      const backend = await redis({ url: server.url, reset, connection: { scripts } })
      const pool = new Pool(backend, { max: 2 })
      t.teardown(() => pool.close())
      const key = freshName()
      const leases = [await pool.acquire(), await pool.acquire()]
      for (const { connection } of leases) t.type(await call(connection as Scripted, key), 'number')
      for (const { connection } of leases) {
        await admin.script('FLUSH')
        const answers: unknown[] = []
        for (let times = 0; times < 3; times++) answers.push(await call(connection as Scripted, key))
        t.match(answers.splice(0, failures), Array(failures).fill({ message: /^NOSCRIPT/ }))
        for (const answer of answers) t.type(answer, 'number')
      }
      for (const lease of leases) lease.release()
      await until(() => pool.stats().idle === 2)
      t.equal(pool.stats().created, 2, 'and the connections are kept')
      t.equal(Number(await admin.get(key)), 8 - 2 * failures, 'each that was answered was done once')
      await admin.del(key)
    })
  }
}

t.test('a hash that the server does not know is the caller\'s own, until somebody sends its script', async (t) => {
  const backend = await redis({ url: server.url })
  const pool = new Pool(backend, { max: 2 })
  t.teardown(() => pool.close())
  const key = freshName()
  await admin.script('FLUSH')
  const sha = createHash('sha1').update(lua).digest('hex')
  const leases = [await pool.acquire(), await pool.acquire()]
  const error = await leases[0]!.connection.evalsha(sha, 1, key).then(() => undefined, (error: unknown) => error)
  t.match(error, { message: /^NOSCRIPT/ })
  t.notOk(backend.isTransient!(error), 'another connection would hear the same')
  await leases[0]!.connection.eval(lua, 1, key)
  t.equal(await leases[1]!.connection.evalsha(sha, 1, key), 2, 'scripts are the server\'s, not a connection\'s')
  for (const lease of leases) lease.release()
  t.match(pool.stats(), { idle: 2, created: 2 })
  await admin.del(key)
})

t.test('the options of a connection can\'t be changed by whoever has it', async (t) => {
  const { connection } = await pair(t)
  t.throws(() => { connection.options.keyPrefix = 'mine:' }, TypeError)
})

t.test('a borrower who removes all listeners gets no other after him, and no error reaches the console', async (t) => {
  const errors = t.capture(console, 'error')
  const { backend, connection } = await pair(t)
  connection.removeAllListeners()
  t.equal(backend.isBroken!(connection), true)
  await until(() => connection.listenerCount('error') === 1)
  connection.stream.destroy(new Error('torn'))
  await until(() => connection.status === 'end')
  t.strictSame(errors(), [])
})

// --- Death -----------------------------------------------------------------------------------------------------------

t.test('onDeath tells once of a connection that the server closes, and somebody\'s connect() does not revive it', async (t) => {
  const { backend, connection } = await pair(t)
  const deaths: unknown[] = []
  backend.onDeath!(connection, (error) => deaths.push(error))
  await admin.client('KILL', 'ID', await connection.client('ID'))
  await until(() => deaths.length > 0)
  t.equal(backend.isBroken!(connection), true)
  await t.rejects(connection.get('a'), /Connection is closed/)
  await connection.connect()
  t.equal(connection.status, 'ready')
  t.equal(backend.isBroken!(connection), true)
  t.equal(await backend.validate!(connection, soon()), false)
  await backend.destroy(connection, 'error')
  t.equal(connection.status, 'end')
  t.strictSame(deaths, [undefined])
})

t.test('a destroyed connection is no death', async (t) => {
  const { backend, connection } = await pair(t)
  backend.onDeath!(connection, () => t.fail('told of a death'))
  await backend.destroy(connection, 'idle')
  await until(() => connection.status === 'end')
})

t.test('onDeath on a connection that is dead already tells at once', async (t) => {
  const { backend, connection } = await pair(t)
  await admin.client('KILL', 'ID', await connection.client('ID'))
  await until(() => connection.status === 'end')
  t.equal(await new Promise((resolve) => backend.onDeath!(connection, (error) => resolve(error))), undefined)
})

t.test('RST and FIN, idle and with a command under way, end a connection and nothing else', async (t) => {
  const proxy = await startProxy(t, server)
  const backend = await connector(t, { host: proxy.host, port: proxy.port })
  for (const fault of ['resetAll', 'endAll'] as const) {
    for (const busy of [false, true]) {
      const connection = await backend.create(soon())
      const deaths: unknown[] = []
      backend.onDeath!(connection, (error) => deaths.push(error))
      const blocked = busy ? connection.blpop(freshName(), 0) : undefined
      const failure = blocked?.then(() => t.fail('answered'), (error: Error) => error)
      proxy[fault]()
      await until(() => deaths.length === 1)
      if (failure !== undefined) t.match(await failure, { message: /Connection is closed/ })
      t.equal((deaths[0] as NodeJS.ErrnoException | undefined)?.code, fault === 'resetAll' ? 'ECONNRESET' : undefined)
      t.equal(backend.isBroken!(connection), true)
      await backend.destroy(connection, 'error')
      t.equal(deaths.length, 1)
    }
  }
})

t.test('a killed server ends idle and busy connections; new ones fail with the reason, until it is back', needsOwn(server), async (t) => {
  const server = await startRedis(t, { own: true })
  const backend = await connector(t, { url: server.url })
  const [idle, busy] = [await backend.create(soon()), await backend.create(soon())]
  const deaths: Redis[] = []
  for (const connection of [idle, busy]) backend.onDeath!(connection, () => deaths.push(connection))
  const blocked = busy.blpop('nothing', 0)
  unheeded(blocked)
  await server.kill()
  await until(() => deaths.length === 2)
  await t.rejects(blocked, /Connection is closed/)
  await t.rejects(backend.create(soon()), { code: 'ECONNREFUSED' })
  await server.restart()
  t.equal(await (await backend.create(soon())).ping(), 'PONG')
})

t.test('a server that no longer answers: validate and destroy end', needsOwn(server), async (t) => {
  const server = await startRedis(t, { own: true })
  const backend = await connector(t, { url: server.url })
  const connection = await backend.create(soon())
  server.pause()
  const deadline = new AbortController()
  const validated = backend.validate!(connection, deadline.signal)
  deadline.abort(new Error('too late'))
  await t.rejects(validated, /too late/)
  await backend.destroy(connection, 'invalid')
  t.equal(connection.stream.destroyed, true)
  server.resume()
})

// --- Failing creates -------------------------------------------------------------------------------------------------

t.test('a failed create rejects with the reason, and leaves no connection', async (t) => {
  const server = await startRedis(t, { args: ['--requirepass', 'right-secret'] })
  const { port } = server
  const proxy = await startProxy(t, server)
  const at = { host: proxy.host, port: proxy.port }
  const create = async (options: RedisOptions) => await (await connector(t, options)).create(soon())
  await t.rejects(create({ ...at, connection: { password: 'wrong-secret' } }), /WRONGPASS/)
  await t.rejects(create({ ...at, connection: { password: 'wrong-secret', protocol: 2 } }), /WRONGPASS/)
  await t.rejects(create(at), /NOAUTH/)
  await t.rejects(create({ url: `redis://:right-secret@${at.host}:${at.port}`, database: 9999 }),
    /DB index is out of range/)
  await until(() => proxy.connections.open === 0)
  t.equal(proxy.connections.total, 4)
  t.equal(await (await create({ url: `redis://:right%2Dsecret@127.0.0.1:${port}` })).ping(), 'PONG')
  proxy.resetOnConnect()
  await t.rejects(create({ ...at, connection: { password: 'right-secret' } }), { code: 'ECONNRESET' })
  await proxy.refuse()
  await t.rejects(create(at), { code: 'ECONNREFUSED' })
  await t.rejects(create({ host: 'nowhere.invalid' }), { code: /ENOTFOUND|EAI_AGAIN/ })
  await t.rejects(create({ url: '/nowhere/redis.sock' }), { code: 'ENOENT' })
})

t.test('a server that still loads fails a create at once, and leaves no timer', async (t) => {
  const loading = createServer((socket) => {
    socket.on('data', (data) => {
      for (const [, name] of data.toString().matchAll(/\*\d+\r\n\$\d+\r\n(\w+)\r\n/g)) {
        const loads = 'loading:1\r\nloading_eta_seconds:9'
        if (name === 'info') socket.write(`$${loads.length}\r\n${loads}\r\n`)
        else if (name === 'ping') socket.write('-LOADING Redis is loading the dataset in memory\r\n')
        else socket.write(name === 'hello' ? '%1\r\n+proto\r\n:3\r\n' : '+OK\r\n')
      }
    })
    socket.on('end', () => socket.end())
  }).listen(0, '127.0.0.1')
  t.teardown(() => loading.close())
  await once(loading, 'listening')
  const backend = await connector(t, { host: '127.0.0.1', port: (loading.address() as AddressInfo).port })
  const timers = () => process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length
  const before = timers()
  await t.rejects(backend.create(new AbortController().signal), /LOADING/)
  t.ok(timers() <= before)
})

t.test('a user who may not PING can still have a connection', async (t) => {
  await admin.call('ACL', 'SETUSER', 'mute', 'on', '>mute', '~*', '+@all', '-ping')
  t.teardown(() => admin.call('ACL', 'DELUSER', 'mute'))
  const { backend, connection } = await pair(t, { connection: { username: 'mute', password: 'mute' } })
  t.equal(await backend.validate!(connection, soon()), true)
})

t.test('a create under way ends with its signal, whoever is silent, and nothing is left', async (t) => {
  const proxy = await startProxy(t, server)
  proxy.silence()
  const backend = await connector(t, { host: proxy.host, port: proxy.port })
  const sentinel =
    await connector(t,
      { connectTimeout: 60_000, connection: { sentinels: [{ host: proxy.host, port: proxy.port }], name: 'main' } })
  for (const { create } of [{ create: backend.create.bind(backend) }, { create: sentinel.create.bind(sentinel) }]) {
    const before = proxy.connections.total
    const deadline = new AbortController()
    const made = create(deadline.signal)
    await until(() => proxy.connections.total > before)
    deadline.abort(new Error('too late'))
    await t.rejects(made, /too late/)
    await until(() => proxy.connections.open === 0)
    await t.rejects(create(AbortSignal.abort(new Error('before it began'))), /before it began/)
    const atOnce = new AbortController()
    const unborn = create(atOnce.signal)
    atOnce.abort(new Error('at once'))
    await t.rejects(unborn, /at once/)
    const inTheNextTurn = new AbortController()
    const young = create(inTheNextTurn.signal)
    await Promise.resolve()
    process.nextTick(() => inTheNextTurn.abort(new Error('in the next turn')))
    await t.rejects(young, /in the next turn/)
    await until(() => proxy.connections.open === 0)
  }
})

t.test('unreachable sentinels fail a create, once each, and leave no timer', async (t) => {
  const closed = createServer().listen(0, '127.0.0.1')
  await once(closed, 'listening')
  const { port } = closed.address() as AddressInfo
  closed.close()
  await once(closed, 'close')
  const timers = () => process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length
  const backend =
    await connector(t,
      { connection: { sentinels: [{ host: '127.0.0.1', port }, { host: '127.0.0.1', port }], name: 'main' } })
  const before = timers()
  await t.rejects(backend.create(new AbortController().signal), /All sentinels are unreachable/)
  t.ok(timers() <= before)
})

t.test('a silent sentinel before one that answers costs its share of the time', async (t) => {
  const proxy = await startProxy(t, server)
  proxy.silence()
  const sentinels = [proxy, server].map(({ host, port }) => ({ host, port }))
  const backend = await connector(t, { connectTimeout: 90, connection: { sentinels, name: 'main' } })
  // The second one is no sentinel: it answers that it does not know the command.
  await t.rejects(backend.create(soon()), /All sentinels are unreachable.*unknown command/)
  await until(() => proxy.connections.open === 0)
})

// --- The shared client -----------------------------------------------------------------------------------------------

t.test('the shared client is made and connects when it is used, and is closed with the connector', async (t) => {
  const name = freshName()
  const backend = await connector(t, { url: server.url, connection: { connectionName: name } })
  const { client } = backend
  t.equal(client.status, 'wait')
  t.equal(backend.client, client)
  t.equal(await known(name), 0)
  t.equal(await client.ping(), 'PONG')
  t.equal(await known(name), 1)
  await backend.close!()
  t.equal(client.status, 'end')
  t.equal(await known(name), 0)
  t.equal(backend.client, client)
  await backend.close!()
})

t.test('closing does not connect a shared client that was never used, nor make one', async (t) => {
  const proxy = await startProxy(t, server)
  const [used, unused] =
    [await connector(t, { host: proxy.host, port: proxy.port }),
      await connector(t, { host: proxy.host, port: proxy.port })]
  const { client } = used
  await used.close!()
  t.equal(client.status, 'end')
  await unused.close!()
  t.throws(() => unused.client, { code: 'FST_POOL_CLOSED' })
  t.equal(proxy.connections.total, 0)
})

t.test('closing answers what the shared client was asked, but for a blocked BLPOP', async (t) => {
  const backend = await connector(t, { url: server.url })
  await backend.client.ping()
  // The last one waits for longer than a half-closed connection is let live.
  const answers =
    Promise.all([backend.client.set('a', 1), backend.client.get('a'), backend.client.blpop(freshName(), 0.2)])
  await backend.close!()
  t.strictSame(await answers, ['OK', '1', null])
  const stuck = await connector(t, { url: server.url })
  await stuck.client.ping()
  const blocked = stuck.client.blpop(freshName(), 0)
  unheeded(blocked)
  await stuck.close!()
  await t.rejects(blocked, /Connection is closed/)
})

t.test('a shared client that reconnects writes nothing to the console, tells its events, and can be closed', async (t) => {
  const errors = t.capture(console, 'error')
  const proxy = await startProxy(t, server)
  const backend = await connector(t, { url: `redis://default:in-the-url@${proxy.host}:${proxy.port}` })
  const events: DriverEvent[] = []
  backend.onDriverEvent!((event) => events.push(event))
  const { client } = backend
  t.equal(await client.ping(), 'PONG')
  await proxy.refuse()
  proxy.resetAll()
  await until(() => events.some((event) => event.code === 'ECONNREFUSED'))
  await until(() => client.status === 'reconnecting')
  const waiting = client.get('a')
  unheeded(waiting)
  await backend.close!()
  t.equal(client.status, 'end')
  await t.rejects(waiting, /Connection is closed/)
  await t.rejects(client.get('a'), /Connection is closed/)
  t.ok(['connect', 'ready', 'error', 'close',
    'reconnecting'].every((name) => events.some((event) => event.name === name && event.shared === true)))
  t.strictSame(errors(), [])
  t.notMatch(JSON.stringify(events), /in-the-url/)
})

t.test('a shared client of unreachable sentinels can be closed', async (t) => {
  const proxy = await startProxy(t, server)
  proxy.silence()
  const backend =
    await connector(t, { connection: { sentinels: [{ host: proxy.host, port: proxy.port }], name: 'main' } })
  const asked = backend.client.get('a')
  unheeded(asked)
  await until(() => proxy.connections.total > 0)
  await backend.close!()
  t.equal(backend.client.status, 'end')
  await t.rejects(asked)
  await until(() => proxy.connections.open === 0)
})

t.test('events of exclusive connections are told without a secret', async (t) => {
  const proxy = await startProxy(t, server)
  const backend = await connector(t, { url: `redis://default:in-the-url@${proxy.host}:${proxy.port}` })
  const events: DriverEvent[] = []
  backend.onDriverEvent!((event) => events.push(event))
  const connection = await backend.create(soon())
  proxy.resetAll()
  await until(() => connection.status === 'end' && events.length === 2)
  t.strictSame(events, [{ name: 'error', shared: false, code: 'ECONNRESET' }, { name: 'end', shared: false }])
})

t.test('a client of the app is taken over: its options are used, it is heard, and never closed', async (t) => {
  const app = await connector(t, { url: `${server.url}/3`, connection: { keyPrefix: 'app:' } })
  const { client } = app
  const heard = client.listenerCount('error')
  const backend = await connector(t, { client })
  t.equal(backend.client, client)
  t.equal(client.listenerCount('error'), heard + 1)
  const connection = await backend.create(soon())
  t.match(await stateOf(connection), { db: '3' })
  t.match(connection.options, { keyPrefix: 'app:', retryStrategy: null, enableOfflineQueue: false })
  await backend.destroy(connection, 'closed')
  await backend.close!()
  t.equal(client.listenerCount('error'), heard)
  t.equal(await client.ping(), 'PONG')
  t.type(client.options.retryStrategy, 'function')
})

// --- Roles and errors ------------------------------------------------------------------------------------------------

t.test('a server says what it is, how far it is, and when it has lost its master', needsGroup('Redis'), async (t) => {
  const { master, replica, pauseReplay, resumeReplay, caughtUp, promote } = await startRedisPair(t)
  const [first, second] = [await connector(t, { url: master.url }), await connector(t, { url: replica.url })]
  const [writer, reader] = [await first.create(soon()), await second.create(soon())]
  const before = await first.inspect(writer, soon())
  t.match(before, { role: 'primary', offset: Number })
  t.notOk('lag' in before)
  await writer.set('a', 'x'.repeat(1000))
  const after = await first.inspect(writer, soon())
  t.ok(after.offset! > before.offset! + 1000, 'in bytes')
  await caughtUp()
  const following = await second.inspect(reader, soon())
  t.equal(following.role, 'replica')
  t.ok(following.offset! >= after.offset!)
  t.notOk('lag' in following)
  await pauseReplay()
  await until(async () => (await second.inspect(reader, soon())).lag === Infinity)
  t.strictSame(await second.inspect(reader, soon()), { role: 'replica', lag: Infinity })
  await resumeReplay()
  await until(async () => (await second.inspect(reader, soon())).lag === undefined)
  t.equal(second.reset!(reader, soon()), undefined, 'and nothing is to be undone for having asked')
  await promote()
  t.match(await second.inspect(reader, soon()), { role: 'primary' })
})

t.test('who may not ask for a ROLE asks for INFO, and who may ask neither is told', needsGroup('Redis'), async (t) => {
  const { master, replica, pauseReplay } = await startRedisPair(t)
  for (const { url } of [master, replica]) {
    const { client } = await connector(t, { url })
    await client.call('ACL', 'SETUSER', 'limited', 'on', 'nopass', '~*', '+@all', '-role')
    await client.call('ACL', 'SETUSER', 'blind', 'on', 'nopass', '~*', '+@all', '-role', '-info')
  }
  const as = async ({ url }: Server, username: string) => {
    const backend = await connector(t, { url, connection: { username, password: 'any' } })
    const connection = await backend.create(soon())
    return async () => await backend.inspect(connection, soon())
  }
  t.match(await (await as(master, 'limited'))(), { role: 'primary', offset: Number })
  const ask = await as(replica, 'limited')
  t.match(await ask(), { role: 'replica', offset: Number })
  await pauseReplay()
  await until(async () => (await ask()).lag === Infinity)
  await t.rejects((await as(master, 'blind'))(), /NOPERM/)
})

t.test('a server that does not answer what it is: the asking ends with its signal', needsOwn(server), async (t) => {
  const server = await startRedis(t, { own: true })
  const backend = await connector(t, { url: server.url })
  const connection = await backend.create(soon())
  server.pause()
  const deadline = new AbortController()
  const asked = backend.inspect(connection, deadline.signal)
  deadline.abort(new Error('too late'))
  await t.rejects(asked, /too late/)
  server.resume()
})

const writes: Record<string, (connection: Redis) => Promise<unknown>> = {
  'a write': (connection) => connection.set('a', 1),
  'a write in a pipeline': (connection) => connection.pipeline().get('a').set('a', 1).exec(),
  'a write in a transaction': (connection) => connection.multi().set('a', 1).exec(),
  'a write in a script': (connection) => connection.eval('return redis.call("set", KEYS[1], 1)', 1, 'a'),
  'a write in a script that catches errors': (connection) =>
    connection.eval('return redis.pcall("set", KEYS[1], 1)', 1, 'a'),
}
t.test('a connection whose server takes no writes any more is not lent again', needsGroup('Redis'), async (t) => {
  const { replica } = await startRedisPair(t)
  for (const reset of ['session', 'none'] as const) {
    const backend = await connector(t, { url: replica.url, reset })
    const pool = new Pool<Redis, RedisConnector>(backend, { max: 1 })
    t.teardown(() => pool.close())
    const events: DriverEvent[] = []
    pool.on('driver', (event) => events.push(event))
    for (const [what, write] of Object.entries(writes)) {
      const lease = await pool.acquire()
      const { connection } = lease
      await connection.get('a')
      await connection.call('nonsense').catch(() => {}) // Another error is none of that.
      t.equal(backend.isBroken!(connection), false)
      // A pipeline gives it as a result, all others reject with it.
      const error = await write(connection)
        .then((results) => (results as Array<[Error | null]>).find(([error]) => error !== null)![0],
          (error: Error) => error)
      t.equal(backend.isTransient(error), true, `${what}: ${error!.message}`)
      t.equal(await connection.get('a'), null, 'the borrower still has it')
      lease.release()
      t.not(await pool.use((next) => next), connection)
    }
    t.equal(pool.stats().destroyed.error, Object.keys(writes).length)
    t.equal(events.filter(({ name, shared }) => name === 'readonly' && shared === false).length,
      Object.keys(writes).length)
  }
})

t.test('what may succeed on another connection a moment later is called transient, and nothing else', async (t) => {
  const transient = [
    'Connection is closed.', "Stream isn't writeable and enableOfflineQueue options is false",
    'Command aborted due to connection close',
    "READONLY You can't write against a read only replica.",
    "ERR Error running script (call to f_0): @user_script:1: -READONLY You can't write against a read only replica.",
    'UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)',
    'LOADING Redis is loading the dataset in memory',
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    'CLUSTERDOWN The cluster is down', 'TRYAGAIN Multiple keys request during rehashing of slot',
    'EXECABORT Transaction discarded because of: READONLY You can\'t write against a read only replica.',
    'Too many Cluster redirections. Last error: x',
    'All sentinels are unreachable and retry is disabled. Last error: x', 'None of startup nodes is available',
    'Failed to refresh slots cache.',
  ].map((message) => new Error(message))
  const lasting = [
    'ERR syntax error', 'WRONGTYPE Operation against a key holding the wrong kind of value',
    'NOAUTH Authentication required.', 'NOPERM this user has no permissions',
    'EXECABORT Transaction discarded because of previous errors.', 'EXECABORT Transaction discarded because of: OOM',
    'OOM command not allowed', 'BUSY Redis is busy running a script',
    'MOVED 1 127.0.0.1:1', 'Command timed out', "ERR unknown command 'LOADING'", '',
  ].map((message) => new Error(message))
  const { isTransient } = await redis({})
  for (const error of transient) t.equal(isTransient(error), true, error.message)
  for (const error of lasting) t.equal(isTransient(error), false, error.message)
  for (const code of ['ECONNRESET', 'ECONNREFUSED', 'EPIPE',
    'ETIMEDOUT']) t.equal(isTransient(Object.assign(new Error('x'), { code })), true, code)
  for (const other of [undefined, null, 'LOADING', { message: 'LOADING' },
    Object.assign(new Error('x'), { code: 'ENOENT' })]) t.equal(isTransient(other), false)
  const aborted =
    Object.assign(new Error('EXECABORT Transaction discarded because of previous errors.'),
      { previousErrors: [lasting[0], transient[3]] })
  t.equal(isTransient(aborted), true)
  t.equal(isTransient(Object.assign(aborted, { previousErrors: [lasting[0]] })), false)
})

t.test('what a dead connection rejects with is transient', async (t) => {
  const proxy = await startProxy(t, server)
  const backend = await connector(t, { host: proxy.host, port: proxy.port })
  const { isTransient } = backend
  const connection = await backend.create(soon())
  const blocked = connection.blpop(freshName(), 0).catch((error: unknown) => error)
  proxy.resetAll()
  t.equal(isTransient(await blocked), true)
  t.equal(isTransient(await connection.get('a').catch((error: unknown) => error)), true)
})

// --- Sentinels -------------------------------------------------------------------------------------------------------

t.test('connections come from whom the sentinels name, once the server says that it is what they say', needsGroup('Redis'), async (t) => {
  const group = await startRedisSentinel(t)
  const sentinels = group.sentinels.map(({ host, port }) => ({ host, port }))
  const backend = await connector(t, { connection: { sentinels, name: group.name } })
  const connection = await backend.create(soon())
  t.equal(connection.stream.remotePort, group.master.port)
  t.match(await backend.inspect(connection, soon()), { role: 'primary' })
  const reading = await connector(t, { connection: { sentinels, name: group.name, role: 'slave' } })
  const reader = await reading.create(soon())
  t.equal(reader.stream.remotePort, group.replica.port)
  await t.rejects(reader.set('a', 1), /READONLY/)
  t.equal(reading.isBroken!(reader), false, 'it was never to be written to')
  await t.rejects((await connector(t, { connection: { sentinels, name: 'nobody' } })).create(soon()), /sentinel/)
  // What the sentinels name is a master no more.
  await backend.client.replicaof(group.replica.host, group.replica.port)
  await t.rejects(backend.create(soon()), /named a server that is a slave/)
})

t.test('a further connection to each sentinel is there once there is one to the master, and none is left after close', needsGroup('Redis'), async (t) => {
  const group = await startRedisSentinel(t)
  const proxy = await startProxy(t, group.sentinels[0]!)
  const backend =
    await connector(t, { connection: { sentinels: [{ host: proxy.host, port: proxy.port }], name: group.name } })
  t.equal(proxy.connections.total, 0)
  await backend.create(soon())
  await until(() => proxy.connections.total === 2 && proxy.connections.open === 1,
    { what: 'the one that asked has gone, and one stays' })
  // It comes again by itself.
  proxy.resetAll()
  await until(() => proxy.connections.total === 3 && proxy.connections.open === 1)
  await backend.close!()
  await until(() => proxy.connections.open === 0)
})

/** Says whatever `address` is, in RESP2. */
async function startSentinel (
  t: Teardown, { port }: { port: number }
): Promise<{ host: string, port: number, address: number, heard: number }> {
  const says = { host: '127.0.0.1', port: 0, address: port, heard: 0 }
  const sentinel = createServer((socket) => {
    socket.on('error', () => {}) // It is cut off, by whoever asked or by the test.
    socket.on('data', (data) => {
      for (const [, name, args] of data.toString().matchAll(/\*\d+\r\n\$\d+\r\n(\w+)\r\n([^*]*)/g)) {
        if (name === 'hello') socket.write("-ERR unknown command 'HELLO'\r\n")
        else if (/subscribe/i.test(name!)) {
          socket.write('*3\r\n$9\r\nsubscribe\r\n$14\r\n+switch-master\r\n:1\r\n',
            () => { says.heard++ })
        } else if (/get-master/i.test(args!)) socket.write(`*2\r\n$9\r\n127.0.0.1\r\n$${String(says.address).length}\r\n${says.address}\r\n`)
        else if (/^sentinel$/i.test(name!)) socket.write('*0\r\n')
        else socket.write('+OK\r\n')
      }
    })
  }).listen(0, says.host)
  t.teardown(() => sentinel.close())
  await once(sentinel, 'listening')
  says.port = (sentinel.address() as AddressInfo).port
  return says
}

t.test('a new master that was announced while no sentinel could be heard is noticed as soon as one can', async (t) => {
  const [one, two] = [await startRedis(t, { own: true }), await startRedis(t, { own: true })]
  const sentinel = await startSentinel(t, one)
  const proxy = await startProxy(t, sentinel)
  const backend =
    await connector(t, { connection: { sentinels: [{ host: proxy.host, port: proxy.port }], name: 'main' } })
  const connection = await backend.create(soon())
  const deaths: unknown[] = []
  backend.onDeath!(connection, (error) => deaths.push(error))
  await backend.client.ping()
  const shared = backend.client.stream
  await until(() => sentinel.heard === 1)
  // Its answer has come before that of another question.
  await backend.create(soon())
  await until(() => proxy.connections.open === 1)
  await proxy.refuse()
  proxy.resetAll()
  sentinel.address = two.port
  t.equal(await connection.ping(), 'PONG')
  await proxy.heal()
  await until(() => deaths.length > 0)
  t.match(deaths, [{ message: 'the sentinels have named another master' }])
  t.equal(shared.destroyed, true)
  t.equal((await backend.create(soon())).stream.remotePort, two.port)
  await backend.client.ping()
  t.equal(backend.client.stream.remotePort, two.port)
})

// --- Addresses that change -------------------------------------------------------------------------------------------

t.test('a password that changes while requests run fails none of them: each connection is made with the one of now', async (t) => {
  const name = freshName()
  const login = { username: name, password: 'first-secret' }
  await admin.call('ACL', 'SETUSER', name, 'on', '>first-secret', '~*', '+@all')
  t.teardown(() => admin.call('ACL', 'DELUSER', name))
  let asked = 0
  const connection = async () => {
    asked++
    return { ...login, connectionName: name }
  }
  const backend = await connector(t, { url: () => server.url, connection })
  const pool = new Pool<Redis, RedisConnector>(backend, { max: 4 })
  t.teardown(() => pool.close())
  const load = { on: true }
  let served = 0
  const failures: unknown[] = []
  const clients = Promise.all(Array.from({ length: 8 }, async () => {
    while (load.on) {
      await pool.use((redis) => redis.incr(name)).then(() => { served++ }, (error: unknown) => { failures.push(error) })
    }
  }))
  await until(() => served > 200)
  await backend.client.get(name)
  const ids = () => admin.client('LIST')
    .then((list) => [...String(list).matchAll(new RegExp(`^id=(\\d+) .* name=${name} `, 'gm'))].map(([, id]) => id))
  const before = new Set(await ids())
  // As it is done: both are good for a while.
  await admin.call('ACL', 'SETUSER', name, '>second-secret')
  login.password = 'second-secret'
  pool.evict()
  await admin.call('ACL', 'SETUSER', name, '<first-secret')
  const then = served
  await until(() => served > then + 200)
  load.on = false
  await clients
  t.strictSame(failures, [])
  const left = (await ids()).filter((id) => before.has(id))
  t.equal(left.length, 1, 'all are new, but for the shared client')
  t.ok(backend.secrets!.includes('first-secret') && backend.secrets!.includes('second-secret'))
  // It asks too, when it connects again.
  const times = asked
  await admin.client('KILL', 'ID', Number(left[0]))
  await until(async () => await backend.client.get(name) !== null && !(await ids()).includes(left[0]))
  t.equal(asked, times + 1)
  await admin.del(name)
})

t.test('what a function of an address throws fails the create, and so does what it should not answer; the next one is asked anew', async (t) => {
  let answer: () => unknown = () => { throw new Error('no token today') }
  const backend = await connector(t, { url: async () => answer() as string })
  await t.rejects(backend.create(soon()), /no token today/)
  for (const wrong of ['http://x:hidden@y', 7, undefined, '']) {
    answer = () => wrong
    await t.rejects(backend.create(soon()), { code: 'FST_POOL_BAD_OPTIONS', message: /^((?!hidden).)*$/ })
  }
  const deadline = new AbortController()
  answer = () => new Promise(() => {})
  const waiting = backend.create(deadline.signal)
  deadline.abort(new Error('too late'))
  await t.rejects(waiting, /too late/)
  answer = () => server.url
  t.equal(await (await backend.create(soon())).ping(), 'PONG')
  const other = await connector(t, { connection: () => ({ retryStrategy: null }) })
  await t.rejects(other.create(soon()), { code: 'FST_POOL_BAD_OPTIONS', message: /connection\.retryStrategy/ })
  const clustered = await connector(t, { connection: () => ({ cluster: [{}] }) })
  await t.rejects(clustered.create(soon()), { code: 'FST_POOL_BAD_OPTIONS', message: /connection\.cluster/ })
})

t.test('the shared client asks by itself where there was no connection before it, fails with the reason, and can be closed meanwhile', async (t) => {
  let answer: () => unknown = () => { throw new Error('no token today') }
  const backend = await connector(t, { url: async () => answer() as string })
  const events: DriverEvent[] = []
  backend.onDriverEvent!((event) => events.push(event))
  await t.rejects(backend.client.get('a'), /no token today/)
  t.match(events, [{ name: 'error', shared: true }])
  answer = () => server.url
  t.strictSame(await Promise.all([backend.client.ping(), backend.client.ping()]), ['PONG', 'PONG'])
  backend.client.disconnect()
  await until(() => backend.client.status === 'end')
  await backend.client.connect()
  t.equal(await backend.client.ping(), 'PONG', 'whoever disconnects it can connect it again')
  const late = await connector(t, { connection: () => ({ sentinels: [{ host: '127.0.0.1', port: 1 }], name: 'main' }) })
  await t.rejects(late.client.get('a'),
    { code: 'FST_POOL_BAD_OPTIONS', message: /sentinels in every answer, or in none/ })
  const waiting = await connector(t, { url: () => new Promise<string>(() => {}) })
  const asked = waiting.client.get('a')
  unheeded(asked)
  await waiting.close!()
  t.equal(waiting.client.status, 'end')
  await t.rejects(asked, /Connection is closed/)
})

t.test('a shared client that reconnects while the function fails tries as it did last', async (t) => {
  const proxy = await startProxy(t, server)
  let fails = false
  const backend =
    await connector(t,
      { url: () => { if (fails) throw new Error('no token today'); return `redis://${proxy.host}:${proxy.port}` } })
  t.equal(await backend.client.ping(), 'PONG')
  fails = true
  proxy.resetAll()
  await until(() => proxy.connections.total === 2)
  t.equal(await backend.client.ping(), 'PONG')
})

// --- Options ---------------------------------------------------------------------------------------------------------

t.test('the driver\'s options that would do the pool\'s work are refused by name', async (t) => {
  const names = ['host', 'port', 'path', 'db', 'connectTimeout', 'disconnectTimeout', 'retryStrategy', 'reconnectOnError', 'sentinelRetryStrategy',
    'sentinelReconnectStrategy', 'failoverDetector', 'maxRetriesPerRequest', 'autoResubscribe',
    'autoResendUnfulfilledCommands', 'lazyConnect',
    'enableOfflineQueue', 'enableReadyCheck', 'maxLoadingRetryTime', 'monitor']
  for (const name of names) {
    const message = new RegExp(`connection\\.${name} .*nothing here: .+`)
    await t.rejects(redis({ connection: { [name]: null } }), { code: 'FST_POOL_BAD_OPTIONS', message })
  }
  await redis({ connection: { retryStrategy: undefined } })
  for (const name of ['password', 'tls', 'sentinels', 'retryStrategy', 'db']) {
    await t.rejects(redis({ [name]: 'secret-value' } as RedisOptions),
      { code: 'FST_POOL_BAD_OPTIONS', message: new RegExp(`option ${name} `) })
  }
  await t.rejects(redis({ password: 'secret-value' } as RedisOptions),
    { message: /^((?!secret-value).)*connection: \{ password \}/ })
})

t.test('options that are wrong or contradict each other are refused at once', async (t) => {
  const bad: Array<[RegExp, RedisOptions]> = [
    ...['', 'http://x', 'localhost:6379', 'redis:6379', '//host', 'redis://host:port', 'redis://host/name', 'redis://:%E0%A4%A@h',
      'redis://h?retryStrategy=1', 'redis://h?db=x', 'mongodb://secret-value@h',
    ].map((url): [RegExp, RedisOptions] => [/option url is a text/, { url }]),
    ...[-1, 1.5, NaN, 'x', '1.0', ''].map((database): [RegExp, RedisOptions] => [/option database/, { database }]),
    [/option host .* socket/, { url: '/tmp/redis.sock', host: 'h' }],
    [/connection\.tls/, { url: 'rediss://h', connection: { tls: false } }],
    [/connection\.sentinels/, { connection: { sentinels: [], name: 'main' } }],
    [/connection\.name/, { connection: { sentinels: [{}] } }],
    [/option url .*sentinels/, { url: 'redis://h', connection: { sentinels: [{}], name: 'main' } }],
    [/option host .*client/, { host: 'h', client: admin }],
    [/option client/, { client: {} as Redis }],
  ]
  for (const [message, options] of bad) {
    await t.rejects(redis(options), { code: 'FST_POOL_BAD_OPTIONS', message })
    await t.rejects(redis(options), { message: /^((?!secret-value).)*$/ })
  }
})

t.test('the options are left as they are, and what is said outright wins over the url', async (t) => {
  const undefinedIsAbsent = await pair(t, { database: '3', connection: { db: undefined } })
  t.equal(undefinedIsAbsent.connection.options.db, 3)
  const connection = Object.freeze({ connectionName: 'x', family: undefined, username: '', password: '' })
  const { host, port } = server
  const options = Object.freeze({
    url: 'redis://u:p%40ss@nowhere.invalid:1/7?family=4', host, port, database: 2, connection,
  })
  const backend = await connector(t, options)
  const made = await backend.create(soon())
  t.match(made.options, { host: server.host, port: server.port, db: 2, family: 4, connectionName: 'x' })
  const fromUrl = await connector(t, { url: 'rediss://u:p%40ss@[::1]:7000/7?family=6' })
  t.match(fromUrl.client.options,
    { host: '::1', port: 7000, db: 7, family: 6, username: 'u', password: 'p@ss', tls: {} })
  const socket = await connector(t, { url: 'unix:///tmp/x.sock?db=3' })
  t.match(socket.client.options, { path: '/tmp/x.sock', db: 3 })
})

t.test('a Unix socket works as well', needsOwn(server), async (t) => {
  const path = `${t.testdir()}/r`
  await startRedis(t, { args: ['--unixsocket', path] })
  const backend = await connector(t, { url: path })
  t.equal(await (await backend.create(soon())).ping(), 'PONG')
})
