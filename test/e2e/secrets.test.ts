import { Writable } from 'node:stream'
import { inspect } from 'node:util'
import fastifyRedis from '@fastify/redis'
import fastifyMongo from '@fastify/mongodb'
import Fastify, { type FastifyInstance } from 'fastify'
import { Redis } from 'ioredis'
import { MongoClient } from 'mongodb'
import t, { type Test } from 'tap'
import fastifyPool, { type PluginOptions } from '../../index.js'
import { startMongoDouble } from '../doubles/mongo-wire.js'
import { startProxy } from '../support/proxy.js'
import { startRedis } from '../support/services.js'
import { until } from '../support/until.js'
import { Program } from './child.js'

/**
 * In every form of it, raw, encoded or decoded, this word stands as it is (a driver may take it for a host's name, in
 * lower case).
 */
const core = 'xyzzy42'
const right = `p@${core}/ü :?#%`
const wrong = `w@${core}/é :?#%`
const encoded = encodeURIComponent

const redisServer = await startRedis(t, { args: ['--requirepass', right] })
const mongoDouble = await startMongoDouble(t, { user: 'shop', password: right })
const member = mongoDouble.primary!
const redisProxy = await startProxy(t, redisServer)
const mongoProxy = await startProxy(t, member)
const redisAt = `127.0.0.1:${redisProxy.port}`
const mongoAt = `127.0.0.1:${mongoProxy.port}`
const mongoQuery = 'directConnection=true&authSource=admin'

interface Case {
  readonly name: string
  readonly options: unknown
  /** What the message says: what is wrong, and what to do. */
  readonly says: RegExp
  readonly code: string
}

const bad = (name: string, options: unknown, says: RegExp, code = 'FST_POOL_BAD_OPTIONS'): Case =>
  ({ name, options, says, code })
const redisUrl = `redis://:${encoded(right)}@${redisAt}`
const mongoUrl = `mongodb://shop:${encoded(right)}@${mongoAt}/?${mongoQuery}`
const redis = { backend: 'redis', url: redisUrl }
const mongo = { backend: 'mongodb', url: mongoUrl }

/** Nothing of these gets as far as the network. */
const wrongOptions: Case[] = [
  bad('an unknown name', { ...redis, maxx: 3 }, /unknown option maxx: did you mean max/),
  bad('an unknown name in a map', { pools: { db: { ...mongo, maxPool: 3 } } }, /unknown option pools\.db\.maxPool/),
  bad("the driver's option beside ours", { backend: 'redis', host: '127.0.0.1', password: right },
    /password.*connection/),
  bad('a wrong type', { ...redis, max: '10' }, /option max is '10': expected an integer/),
  bad('a wrong type of url', { backend: 'redis', url: { password: right } },
    /option url is an object: expected a text/),
  bad('a wrong type of connection', { ...redis, connection: right }, /option connection is a text: expected an object/),
  bad('min above max', { ...redis, min: 5, max: 2 }, /option min is 5: expected at most max \(2\)/),
  bad('NaN', { ...mongo, acquireTimeout: 'NaN' },
    /option acquireTimeout is (NaN|'NaN'): expected a number of milliseconds/),
  bad('an unknown backend', { ...redis, backend: 'oracle' },
    /backend.*'mongodb', 'redis', 'postgresql', 'postgres', 'mysql' or 'sqlite'/),
  bad('host beside url', { ...redis, host: 'a' }, /option host is 'a': expected none beside url/),
  bad('a password in host', { backend: 'redis', host: `:${right}@127.0.0.1` },
    /option host is a text: expected a host name, nothing else/),
  bad('a url of another scheme', { ...redis, url: `http://:${encoded(right)}@${redisAt}` },
    /option url is a text: expected redis:\/\//),
  bad('a url with a bad port', { ...redis, url: `redis://:${encoded(right)}@127.0.0.1:port` },
    /option url is a text: expected redis:\/\//),
  bad('a url with a password that is not encoded', { ...redis, url: `redis://:${right}@${redisAt}` },
    /option url is a text: expected/),
  bad('a url with a bad percent sign', { ...redis, url: `redis://:${core}%zz@${redisAt}` }, /percent-encoded/),
  bad('a url with an option of the driver', { ...redis, url: `${redisUrl}?password=${encoded(right)}` }, /connection/),
  bad('a MongoDB url of another scheme', { ...mongo, url: `mongo://shop:${encoded(right)}@${mongoAt}` },
    /option url is a text: expected a MongoDB URL/),
  bad('a MongoDB url with a password that is not encoded', { ...mongo, url: `mongodb://shop:${right}@${mongoAt}/` },
    /percent-encoded/),
  bad('a MongoDB url with two @', { ...mongo, url: `mongodb://shop:p@${core}@${mongoAt}/` }, /percent-encoded/),
  bad('a MongoDB url with a ? and an @ in its password',
    { ...mongo, url: `mongodb://shop@${core}?${core}@${mongoAt}/` }, /percent-encoded/),
  bad('a MongoDB url with an option that the driver does not know',
    { ...mongo, url: `${mongoUrl}&nonsense=${encoded(right)}` }, /options known to the driver/),
  bad('a MongoDB url with an option that is ours', { ...mongo, url: `${mongoUrl}&maxPoolSize=5` },
    /maxPoolSize.*option max/),
  bad("a driver's key that is ours (mongodb)", { ...mongo, connection: { password: right, maxPoolSize: 5 } },
    /connection\.maxPoolSize.*option max/),
  bad("a driver's key that is ours (redis)", { ...redis, connection: { password: right, lazyConnect: true } },
    /connection\.lazyConnect.*min and startup/),
  bad('an option that the driver refuses', {
    ...mongo, connection: { auth: { username: 'shop', password: right }, nonsense: right },
  }, /connection is not what the MongoDB driver takes: .*nonsense/),
  bad('a url that is no file', { backend: 'sqlite', url: `libsql://shop:${encoded(right)}@${redisAt}/db` },
    /option url is a text: expected a path/),
  bad('a name that shadows a Fastify property', { pools: { query: redis } },
    /'query': request\.query is something else already.*another name/),
]

const slow = { connectTimeout: 300, acquireTimeout: 300 }
const failed = (name: string, options: object, says: RegExp) =>
  bad(name, { ...slow, ...options }, says, 'FST_POOL_CONNECT_FAILED')

/** These do, and fail there. Redis first: its faults are the proxy's. */
const failures: Case[] = [
  failed('a wrong password in the url (Redis)', {
    ...redis, connectTimeout: 3000, url: `redis://:${encoded(wrong)}@${redisAt}`,
  }, /can't connect: .*(WRONGPASS|invalid)/),
  failed('a wrong password in connection (Redis)', {
    backend: 'redis', host: '127.0.0.1', port: redisProxy.port, connectTimeout: 3000, connection: { password: wrong },
  }, /can't connect: .*(WRONGPASS|invalid)/),
  failed('no password (Redis)', { backend: 'redis', host: '127.0.0.1', port: redisProxy.port, connectTimeout: 3000 },
    /can't connect: .*NOAUTH/),
  failed('a wrong password in the url (MongoDB)',
    { ...mongo, acquireTimeout: 3000, connectTimeout: 3000, url: `mongodb://shop:${encoded(wrong)}@${mongoAt}/?${mongoQuery}` }, /can't connect: .*[Aa]uthentication failed/),
  failed('a wrong password in connection (MongoDB)',
    { backend: 'mongodb', host: '127.0.0.1', port: mongoProxy.port, acquireTimeout: 3000, connectTimeout: 3000, connection: { directConnection: true, auth: { username: 'shop', password: wrong } } }, /can't connect: .*[Aa]uthentication failed/),
]
const unreached: Case[] = [
  failed('Redis', redis, /can't connect: /),
  failed('MongoDB', mongo, /can't connect: /),
]

const revive = (value: unknown): unknown => value === 'NaN'
  ? NaN
  : typeof value === 'object' &&
  value !== null
    ? Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, revive(inner)]))
    : value

/** An app that logs everything, and what it has logged. */
function logged (t: Test): { app: FastifyInstance, text: () => string } {
  let text = ''
  const stream = new Writable({
    write (chunk, _encoding, done) {
      text += String(chunk)
      done()
    },
  })
  const app = Fastify({ logger: { level: 'trace', stream } })
  t.teardown(() => app.close())
  return { app, text: () => text }
}

/** The error in every way in which somebody may print it. */
function printed (error: unknown): string {
  const texts = [String(error), inspect(error, { depth: 10, showHidden: true }), JSON.stringify(error)]
  for (let one = error as Error | undefined; one instanceof Error; one = one.cause as Error | undefined) {
    texts.push(one.message, one.stack ?? '', JSON.stringify(one, Object.getOwnPropertyNames(one)))
  }
  return texts.join('\n')
}

const open = () => [redisProxy.connections.open, mongoProxy.connections.open, mongoDouble.connections.all]

async function fails (t: Test, { options, says, code }: Case): Promise<void> {
  const { app, text } = logged(t)
  const output = ['log', 'error', 'warn', 'info', 'debug'].map((name) => t.capture(console, name as 'log'))
  let thrown: unknown
  try {
    await app.register(fastifyPool, revive(options) as PluginOptions)
  } catch (error) {
    thrown = error
    app.log.error(error)
    app.log.fatal({ err: error })
  }
  t.match(thrown, { code }, String(thrown))
  t.match((thrown as Error).message, says)
  await until(() => open().every((count) => count === 0), { what: `nothing is open: ${open().join()}` })
  const all = printed(thrown) + text()
  t.notOk(all.toLowerCase().includes(core), `no password in ${all.length} characters`)
  for (const calls of output) t.same(calls(), [], 'nothing goes to the console')
}

t.test('wrong options fail register, say what is wrong and how to fix it, and show no password', async (t) => {
  for (const one of wrongOptions) await t.test(one.name, (t) => fails(t, one))
})

t.test('a login or a server that fails at register leaves nothing open and shows no password', async (t) => {
  for (const one of failures) await t.test(one.name, (t) => fails(t, one))
  const faults = {
    'a server that accepts and stays silent': () => { for (const proxy of [redisProxy, mongoProxy]) proxy.silence() },
    'a server that resets': () => { for (const proxy of [redisProxy, mongoProxy]) proxy.resetOnConnect() },
    'a server that refuses': () => Promise.all([redisProxy, mongoProxy].map((proxy) => proxy.refuse())),
  }
  for (const [name, fault] of Object.entries(faults)) {
    for (const one of unreached) {
      await t.test(`${name}: ${one.name}`, async (t) => {
        t.teardown(() => Promise.all([redisProxy, mongoProxy].map((proxy) => proxy.heal())))
        await fault()
        await fails(t, one)
      })
    }
  }
})

t.test('a password that somebody else puts into an error is taken out of it', async (t) => {
  for (const form of [right, encoded(right), encoded(right).toLowerCase(), redisUrl]) {
    const onConnect = () => {
      throw Object.assign(new Error(`no login with ${form}`, { cause: new Error(form) }),
        { command: { args: [form] }, code: form })
    }
    const says = /can't connect: no login with (\*\*\*|redis:\/\/:\*\*\*@)/
    await fails(t, bad('a hook', { ...redis, onConnect }, says, 'FST_POOL_CONNECT_FAILED'))
  }
})

t.test('of several pools one fails: the others are closed, and nothing stays open', async (t) => {
  const [{ options, says, code }] = failures as [Case]
  await fails(t, { name: 'several', code, says, options: { pools: { a: redis, b: mongo, c: options, d: redis } } })
})

t.test('the client that is shared as app.redis fails where the pool did not: nothing stays open, and no password is shown', async (t) => {
  const other = await startRedis(t, { args: ['--requirepass', right] })
  const proxy = await startProxy(t, other)
  const at = { backend: 'redis', url: `redis://:${encoded(right)}@127.0.0.1:${proxy.port}`, connectTimeout: 500 }
  const cases = {
    'its login is refused': {
      onConnect: (connection: Redis) => connection.config('SET', 'requirepass', `not-${core}`),
    },
    'its server is silent': { onConnect: () => proxy.silence() },
    'its server refuses': { onConnect: () => proxy.refuse() },
  }
  for (const [name, more] of Object.entries(cases).reverse()) {
    await t.test(name, async (t) => {
      t.teardown(() => proxy.heal())
      await fails(t, bad(name, { ...at, ...more }, /app\.redis can't connect: /, 'FST_POOL_CONNECT_FAILED'))
      await until(() => proxy.connections.open === 0)
    })
  }
})

t.test('a name is taken: register fails, and the pool that has it goes on', async (t) => {
  const { app, text } = logged(t)
  await app.register(fastifyPool, { pools: { cache: redis } } as PluginOptions)
  await t.rejects(async () => {
    await app.register(fastifyPool, { pools: { cache: redis } } as PluginOptions)
  }, { code: 'FST_POOL_DUPLICATE_NAME', message: /'cache'.*another name/ })
  t.equal(await app.pools.get('cache').use((connection) => (connection as unknown as Redis).ping()), 'PONG')
  await app.close()
  t.same(await until(() => open().every((count) => count === 0)), true)
  t.notOk(text().toLowerCase().includes(core))
})

t.test('a process that registers with wrong options says no password, and nothing keeps it alive', async (t) => {
  const cases = [...wrongOptions, ...failures].map(({ options }) => options)
  const program = new Program(t, 'secrets.mjs', { cases }, { ipc: false })
  const { code, signal } = await program.end(60_000)
  t.same({ code, signal }, { code: 0, signal: null }, program.stderr.slice(-500))
  t.equal(program.stdout.match(/^FAILED FST_POOL_/gm)?.length, cases.length)
  t.notOk(program.stdout.toLowerCase().includes(core), `none in ${program.stdout.length} characters of stdout`)
  t.notOk(program.stderr.toLowerCase().includes(core), `none in ${program.stderr.length} characters of stderr`)
})

t.test('a process that nobody catches for crashes without a password', async (t) => {
  const chosen = [wrongOptions[2]!, ...failures.filter(({ name }) => /in the url/.test(name))]
  const programs =
    chosen.map(({ options }) => new Program(t, 'secrets.mjs', { cases: [options], crash: true }, { ipc: false }))
  for (const [at, program] of programs.entries()) {
    const { code } = await program.end(60_000)
    t.equal(code, 1)
    t.match(program.stderr, chosen[at]!.code)
    t.notOk(program.stderr.toLowerCase().includes(core) || program.stdout.toLowerCase().includes(core),
      `${chosen[at]!.name}: none in ${program.stderr.length} characters of stderr`)
  }
})

t.test('the right password works in the url and in connection, and is not shown while the server fails and comes back', async (t) => {
  const { app, text } = logged(t)
  const output = ['log', 'error', 'warn', 'info', 'debug'].map((name) => t.capture(console, name as 'log'))
  await app.register(fastifyPool, {
    pools: {
      a: { ...redis, acquireTimeout: 300, min: 1 },
      b: { backend: 'redis', host: '127.0.0.1', port: redisProxy.port, acquireTimeout: 300, connection: { password: right } },
      c: { ...mongo, acquireTimeout: 300 },
      d: {
        backend: 'mongodb',
        host: '127.0.0.1',
        port: mongoProxy.port,
        acquireTimeout: 300,
        connection: {
          directConnection: true, auth: { username: 'shop', password: right },
        }
      },
    },
  } as PluginOptions)
  app.get('/:name', { config: { pools: false } }, async (request) => {
    const { name } = request.params as { name: string }
    const { connection } = await request.acquire(name)
    await (name < 'c'
      ? (connection as unknown as Redis).incr('served')
      : (connection as { command (what: object): Promise<unknown> }).command({ ping: 1 }))
    return 'served'
  })
  await app.ready()
  const round = async () => {
    const answers = []
    for (const name of app.pools.names) answers.push(await app.inject(`/${name}`))
    return answers
  }
  t.same((await round()).map(({ statusCode }) => statusCode), [200, 200, 200, 200])
  for (const proxy of [redisProxy, mongoProxy]) {
    await proxy.refuse()
    proxy.resetAll()
  }
  await until(() => /"event"|"driver: error"|driver: error/.test(text()),
    { what: 'the shared client tells that it is down' })
  const refused = await round()
  t.notSame(refused.map(({ statusCode }) => statusCode), [200, 200, 200, 200])
  const health = await app.pools.health()
  t.not(health.status, 'up')
  for (const proxy of [redisProxy, mongoProxy]) await proxy.heal()
  await until(async () => (await round()).every(({ statusCode }) => statusCode === 200), { what: 'all serve again' })
  await app.close()
  t.same(await until(() => open().every((count) => count === 0)), true, 'nothing stays open')
  const all = text() +
    JSON.stringify([refused.map(({ body, headers }) => ({ body, headers })), health, app.pools.stats()])
  t.match(text(), /opening a connection failed/)
  t.notOk(all.toLowerCase().includes(core), `no password in ${all.length} characters`)
  for (const calls of output) t.same(calls(), [], 'nothing goes to the console')
})

// --- What is shared with the app -------------------------------------------------------------------------------------

type Shared =
  FastifyInstance & { redis: Redis & Record<string, Redis>, mongo: FastifyInstance['mongo'] & Record<string, FastifyInstance['mongo'] | undefined> }

const clientOf = (app: FastifyInstance, name: string) => (app.pools.get(name).backend as unknown as { client: unknown })
  .client

/** Connections of these names, as the server counts them. */
async function counter (t: Test): Promise<(name: string) => Promise<number>> {
  const control = new Redis(redisServer.port, redisServer.host, { password: right })
  t.teardown(() => { control.disconnect() })
  return async (name) => String(await control.client('LIST')).split('\n')
    .filter((line) => line.includes(` name=${name} `)).length
}

t.test('app.redis is the shared client of the first pool, app.redis.<name> of each further one, and all of them end with the app', async (t) => {
  const count = await counter(t)
  const { app: plain } = logged(t)
  const app = plain as Shared
  const pool = (connectionName: string) => ({ ...redis, connection: { connectionName } })
  await app.register(fastifyPool, {
    pools: { cache: pool('one'), session: pool('two'), late: { ...pool('three'), startup: 'lazy' } },
  } as PluginOptions)
  t.equal(await app.redis.set('shared', 'yes'), 'OK')
  t.equal(await app.redis.session!.get('shared'), 'yes')
  t.equal(await app.redis.late!.get('shared'), 'yes')
  t.equal(app.redis, clientOf(app, 'cache'))
  t.same(await Promise.all(['one', 'two', 'three'].map(count)), [2, 2, 1], "the pool's one and the shared one")
  await app.close()
  t.same(await Promise.all(['one', 'two', 'three'].map(count)), [0, 0, 0])
})

t.test('a client that @fastify/redis made is taken over, and is not ours to close', async (t) => {
  const count = await counter(t)
  const { app: plain } = logged(t)
  const app = plain as Shared
  await app.register(fastifyRedis,
    { host: redisServer.host, port: redisServer.port, password: right, connectionName: 'theirs' })
  const theirs = app.redis
  await app.register(fastifyPool, { backend: 'redis', name: 'cache' } as PluginOptions)
  t.equal(app.redis, theirs)
  // Behind the start the server is asked what it allows.
  await until(() => app.pools.stats().cache!.idle === 1)
  t.equal(await app.pools.get('cache').use((connection) => (connection as unknown as Redis).ping()), 'PONG')
  t.equal(await count('theirs'), 2)
  await app.pools.get('cache').close()
  t.equal(await count('theirs'), 1, 'ours are closed, theirs is not')
  t.equal(await app.redis.ping(), 'PONG')
  await app.close()
  t.equal(await until(async () => await count('theirs') === 0), true, 'whoever made it closes it')
})

t.test('a client that the app made itself outlives the app', async (t) => {
  const count = await counter(t)
  const { app } = logged(t)
  const client = new Redis({ host: redisServer.host, port: redisServer.port, password: right, connectionName: 'own' })
  t.teardown(() => { client.disconnect() })
  await app.register(fastifyRedis, { client })
  await app.register(fastifyPool, {
    pools: { cache: { backend: 'redis' }, other: { ...redis, connection: { connectionName: 'beside' } } },
  } as PluginOptions)
  t.equal((app as Shared).redis, client)
  t.equal(await (app as Shared).redis.other!.ping(), 'PONG', 'one with an address of its own gets a client of its own')
  t.equal(await count('beside'), 2)
  await app.close()
  t.equal(await client.ping(), 'PONG')
  t.same([await count('own'), await count('beside')], [1, 0])
  t.equal(client.listenerCount('error'), 0, 'and nothing of ours is left on it')
})

t.test('app.mongo is the shared client, app.mongo.<name> each one\'s, and all of them end with the app', async (t) => {
  const { app: plain } = logged(t)
  const app = plain as Shared
  await app.register(fastifyPool,
    { pools: { shop: { ...mongo, database: 'shop' }, archive: { ...mongo, database: 'archive' } } } as PluginOptions)
  t.equal(app.mongo.client, clientOf(app, 'shop'))
  t.equal(app.mongo.db?.databaseName, 'shop')
  t.equal(app.mongo.archive?.db?.databaseName, 'archive')
  t.match(await app.mongo.archive!.db!.command({ ping: 1 }), { ok: 1 })
  t.ok(mongoDouble.connections.open > 0)
  await app.close()
  t.ok(await until(() => mongoDouble.connections.all === 0))
})

t.test('a client that @fastify/mongodb made is taken over, and is not ours to close', async (t) => {
  const { app: plain } = logged(t)
  const app = plain as Shared
  await app.register(fastifyMongo, { url: mongoUrl, database: 'shop', forceClose: true })
  const { client } = app.mongo
  await app.register(fastifyPool, { backend: 'mongodb', database: 'shop' } as PluginOptions)
  t.match(await app.pools.get('db')
    .use((db) => (db as unknown as { command (what: object): Promise<unknown> }).command({ ping: 1 })), { ok: 1 })
  t.equal(app.mongo.client, client)
  await app.pools.get('db').close()
  t.match(await app.mongo.db!.command({ ping: 1 }), { ok: 1 })
  t.ok(mongoDouble.connections.open > 0)
  await app.close()
  t.ok(await until(() => mongoDouble.connections.all === 0), 'whoever made it closes it')
})

t.test('a client of MongoDB that the app made itself outlives the app', async (t) => {
  const { app } = logged(t)
  const client = new MongoClient(mongoUrl)
  t.teardown(() => client.close())
  await client.connect()
  await app.register(fastifyMongo, { client })
  await app.register(fastifyPool, { backend: 'mongodb', database: 'shop' } as PluginOptions)
  await app.close()
  t.match(await client.db('shop').command({ ping: 1 }), { ok: 1 })
})

t.test('a pool whose name is taken there starts all the same, and says where its client is', async (t) => {
  const { app: plain, text } = logged(t)
  const app = plain as Shared
  await app.register(fastifyMongo, { url: mongoUrl, database: 'theirs', forceClose: true })
  // `db` is the usual name of a pool, and of what @fastify/mongodb puts there.
  await app.register(fastifyPool,
    { pools: { db: { ...mongo, database: 'ours' }, client: { ...mongo, database: 'ours' } } } as PluginOptions)
  t.equal(app.mongo.db?.databaseName, 'theirs')
  t.match(text(), /app\.mongo\.db is something else: .*app\.pools\.get\('db'\)/)
  for (const startup of ['lazy', 'require']) {
    const { app: plain, text } = logged(t)
    const app = plain as Shared
    await app.register(fastifyPool,
      { pools: { cache: { ...redis, startup }, get: { ...redis, startup } } } as PluginOptions)
    t.equal(await app.redis.get('nothing'), null, 'a method of the client is still a method')
    t.match(text(), /app\.redis\.get is something else/)
  }
})

t.test('the first MongoDB pool may have any name', async (t) => {
  for (const name of ['client', 'ObjectId', 'db']) {
    const { app: plain } = logged(t)
    const app = plain as Shared
    await app.register(fastifyPool, { pools: { [name]: { ...mongo, database: 'shop' } } } as PluginOptions)
    t.equal(app.mongo.db?.databaseName, 'shop')
    t.equal(typeof app.mongo.ObjectId, 'function')
    await app.close()
  }
})
