import fastifyMongodb from '@fastify/mongodb'
import fastifyRedis from '@fastify/redis'
import Fastify from 'fastify'
import * as ioredis from 'ioredis'
import LibSql from 'libsql'
import * as mongodbModule from 'mongodb'
import mongoose from 'mongoose'
import * as mysql2 from 'mysql2'
import * as mysql2Promise from 'mysql2/promise'
import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { pathToFileURL } from 'node:url'
import * as pgModule from 'pg'
import t, { type Test } from 'tap'
import ts from 'typescript'
import fastifyPool, { mongodb, mysql, Pool, PoolError, postgresql, redis, redisCluster, sqlite } from '../../index.js'
import type { Backend, PluginOptions, PoolOptions } from '../../types/plugin.js'
import type { Connector } from '../../types/connector.js'
import { startMongoDouble } from '../doubles/mongo-wire.js'
import { FakeConnector } from '../support/fake-connector.js'
import { findBetterSqlite } from '../support/find.mjs'
import { startMariadb, startMongo, startPostgres, startRedis } from '../support/services.js'
import { until } from '../support/until.js'

const require = createRequire(import.meta.url)
const servers = {
  postgresql: (await startPostgres(t)).url,
  mysql: (await startMariadb(t)).url,
  redis: (await startRedis(t)).url,
  mongodb: (await startMongo(t) ?? await startMongoDouble(t)).url,
  sqlite: ':memory:',
}

/** A class of the app's own over a driver's: what it makes is known by it. */
class MyRedis extends ioredis.Redis {}
class MyClient extends pgModule.default.Client {}
class MyMongo extends mongodbModule.MongoClient {}
class MyDatabase extends LibSql {}
/** As a bundler or an instrumentation hands on a module. */
const counting = { made: 0 }
const myMysql = {
  ...mysql2,
  createConnection: (options: mysql2.ConnectionOptions) => {
    counting.made++
    return mysql2.createConnection(options)
  },
}
const better = findBetterSqlite()
const betterSqlite = better === undefined
  ? undefined
  : createRequire(pathToFileURL(better + '/'))('better-sqlite3') as object

/** What a borrower does, to see that the connection is one. */
const ask: Record<keyof typeof servers, (connection: any) => Promise<unknown>> = {
  postgresql: async (client: pgModule.Client) => (await client.query<{ n: number }>('SELECT 1 AS n')).rows[0]!.n,
  mysql: async (connection: mysql2Promise.Connection) =>
    (await connection.query<mysql2.RowDataPacket[]>('SELECT 1 AS n'))[0][0]!.n as number,
  redis: async (client: ioredis.Redis) => await client.ping() === 'PONG' ? 1 : 0,
  mongodb: async (db: mongodbModule.Db) => (await db.command({ ping: 1 })).ok as number,
  sqlite: async (db: LibSql.Database) => (db.prepare('SELECT 1 AS n').get() as { n: number }).n,
}

type IsIt = (connection: any) => boolean
const taken: Array<[backend: keyof typeof servers, what: string, driver: unknown, isIt?: IsIt]> = [
  ['postgresql', 'the namespace of pg', pgModule],
  ['postgresql', 'what require gives for pg', require('pg')],
  ['postgresql', 'an object with a class over its Client', { Client: MyClient },
    (client) => client instanceof MyClient],
  ['mysql', 'the namespace of mysql2', mysql2],
  ['mysql', 'what require gives for mysql2', require('mysql2')],
  ['mysql', 'the namespace of mysql2/promise', mysql2Promise],
  ['mysql', 'what require gives for mysql2/promise', require('mysql2/promise')],
  ['mysql', 'a module over mysql2', myMysql, () => counting.made > 0],
  ['redis', 'the namespace of ioredis', ioredis],
  ['redis', 'what require gives for ioredis', require('ioredis')],
  ['redis', 'a class over Redis', MyRedis, (client) => client instanceof MyRedis],
  ['redis', '@fastify/redis', fastifyRedis],
  ['mongodb', 'the namespace of mongodb', mongodbModule],
  ['mongodb', 'what require gives for mongodb', require('mongodb')],
  ['mongodb', 'mongoose.mongo', mongoose.mongo],
  ['mongodb', 'an object with a class over MongoClient', { MongoClient: MyMongo },
    (db: mongodbModule.Db) => db.client instanceof MyMongo],
  ['mongodb', '@fastify/mongodb', fastifyMongodb],
  ['sqlite', 'the name libsql', 'libsql', (db) => db instanceof LibSql],
  ['sqlite', 'a namespace of libsql', { default: LibSql }],
  ['sqlite', 'a class over libsql', MyDatabase, (db) => db instanceof MyDatabase],
  ...betterSqlite === undefined
    ? []
    : [['sqlite', 'the class of better-sqlite3', betterSqlite,
      (db: unknown) => db instanceof (betterSqlite as typeof LibSql)] as const satisfies unknown[]] as never[],
]

for (const [backend, what, driver, isIt] of taken) {
  t.test(`${backend} takes ${what} as its driver`, async (t) => {
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(fastifyPool, { backend, url: servers[backend], driver: driver as object, max: 1 })
    app.get('/', async (request) => {
      t.equal(await ask[backend](request.db), 1)
      if (isIt !== undefined) t.ok(isIt(request.db), 'a connection of this driver')
      return { ok: true }
    })
    t.same((await app.inject('/')).json(), { ok: true })
  })
}

const connectors: Record<keyof typeof servers, (
  options: { url: string, driver?: unknown }
) => Promise<Connector<any>>> = {
  postgresql, mysql, redis, mongodb, sqlite: (options) => sqlite(options as { url: string }),
}

t.test('a connector that is made by hand takes a driver too', async (t) => {
  const drivers = {
    postgresql: { Client: MyClient },
    mysql: myMysql,
    redis: MyRedis,
    mongodb: { MongoClient: MyMongo },
    sqlite: MyDatabase,
  }
  for (const [backend, driver] of Object.entries(drivers) as Array<[keyof typeof servers, object]>) {
    const pool = new Pool(await connectors[backend]({ url: servers[backend], driver }), { max: 1 })
    t.equal(await pool.use(ask[backend]), 1, backend)
    await pool.close()
  }
})

const wrong: Array<[what: string, driver: unknown, shown: string]> = [
  ['an empty object', {}, 'an object'],
  ['an object of options', { user: 'me', password: 's3cret-1' }, 'an object (user, password)'],
  ['another class', Map, 'a function (Map)'],
  ['another module', { default: { createClient () {} } }, 'an object (default)'],
]
const expected: Record<keyof typeof servers, string> = {
  postgresql: 'the module pg, or an object with its Client (not pg.native)',
  mysql: 'the module mysql2',
  redis: 'the module ioredis, or its class Redis',
  mongodb: 'the module mongodb, mongoose.mongo or @fastify/mongodb',
  sqlite: "'better-sqlite3', 'libsql' or 'node:sqlite', or the class or the module of one of them",
}

for (const backend of Object.keys(servers) as Array<keyof typeof servers>) {
  t.test(`${backend} refuses what is not its driver, and says what it would take`, async (t) => {
    const drivers = { postgresql: pgModule, mysql: mysql2, redis: ioredis, mongodb: mongodbModule, sqlite: LibSql }
    const others = Object.entries(drivers).filter(([name]) => name !== backend)
    for (const [what, driver, shown] of wrong) {
      const error = await refusal(t, { backend, url: servers[backend], driver: driver as object, name: 'shop' })
      t.equal(error.message, `pool 'shop': option driver is ${shown}: expected ${expected[backend]}`, what)
    }
    for (const [name, driver] of others) {
      const { code, message } = await refusal(t, { backend, url: servers[backend], driver })
      t.equal(code, 'FST_POOL_BAD_OPTIONS', name)
      t.match(message, /^pool 'db': option driver is /)
    }
    if (backend !== 'sqlite') {
      t.equal((await refusal(t, { backend, driver: 'libsql' })).message,
        `pool 'db': option driver is 'libsql': expected ${expected[backend]}`)
    }
  })
}

t.test('a driver that could be none is refused before any backend is asked', async (t) => {
  const message = "expected the driver's module or class, or of sqlite 'better-sqlite3', 'libsql' or 'node:sqlite'"
  for (const [driver, shown] of [['pg', "'pg'"], ['postgres://me:s3cret-1@host', 'a text'], [5, '5'], [null, 'null'], [[], 'an array']] as const) {
    t.equal((await refusal(t, { backend: 'postgresql', driver: driver as never })).message,
      `option driver is ${shown}: ${message}`)
  }
  t.equal((await refusal(t, { pools: { shop: { backend: 'redis', driver: 5 as never } } })).message,
    `option pools.shop.driver is 5: ${message}`)
  t.equal((await refusal(t, { connector: new FakeConnector(), driver: ioredis } as never)).message,
    'option driver is an object: expected none without backend')
  const targets = [{ connector: new FakeConnector(), driver: ioredis }]
  t.equal((await refusal(t, { targets } as never)).message,
    'option targets.0.driver is an object: expected none without backend')
})

t.test('the native client of pg is refused, not used: it has no connection that could be cut', async (t) => {
  class Native { query () {} connect () {} end () {} static Query = class {} }
  t.match((await refusal(t, { backend: 'postgresql', driver: { Client: Native } })).message, /not pg\.native/)
})

t.test("the pool's driver is that of its targets, unless they have another", async (t) => {
  const [url, other] = [servers.redis, (await startRedis(t, { own: true })).url]
  class Other extends ioredis.Redis {}
  const made = new Set<unknown>()
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(fastifyPool, {
    name: 'cache',
    backend: 'redis',
    driver: MyRedis,
    max: 4,
    targets: [{ url }, { url: other, driver: Other }],
    onConnect: (connection) => { made.add(Object.getPrototypeOf(connection)) },
  })
  // Each is asked for its role.
  await until(() => made.size === 2)
  t.same(made, new Set([MyRedis.prototype, Other.prototype]))
})

t.test('beside a client that is taken over, connections are of the same copy of ioredis', async (t) => {
  const files = Object.keys(require.cache).filter((file) => file.includes('/node_modules/ioredis/'))
  for (const file of files) delete require.cache[file]
  const copy = require('ioredis') as typeof ioredis
  t.not(copy.Redis, ioredis.Redis)
  const client = new copy.Redis(servers.redis)
  t.teardown(() => client.disconnect())
  const pool = new Pool(await redis({ client }), { max: 1 })
  t.teardown(() => pool.close())
  await pool.use(async (connection) => {
    t.equal(await ask.redis(connection), 1)
    t.ok(connection instanceof copy.Redis)
  })
})

t.test("what patches ioredis' prototype is heard, whether it comes before the pool or after it", async (t) => {
  for (const shared of [false, true]) {
    class Patched extends ioredis.Redis {}
    const heard: string[] = []
    const patch = (by: string) => {
      const { sendCommand } = Patched.prototype
      Patched.prototype.sendCommand = function (command, stream) {
        if (command.name === 'get') heard.push(by)
        return sendCommand.call(this, command, stream)
      }
    }
    patch('before')
    const connector = await redis({ url: () => servers.redis, driver: Patched })
    const pool = new Pool(connector, { max: 1 })
    // A command that waits for the connection is sent twice, by ioredis itself.
    await connector.client.ping()
    const get = () => shared ? connector.client.get('key') : pool.use((connection) => connection.get('key'))
    await get()
    t.same(heard.splice(0), ['before'])
    patch('after')
    await get()
    t.same(heard.splice(0), ['after', 'before'])
    await pool.close()
  }
})

t.test('a cluster takes the driver too', async (t) => {
  class MyCluster extends ioredis.Cluster {}
  const connector = await redisCluster({
    connection: { cluster: [{ host: '127.0.0.1', port: 1 }] }, driver: { Redis: ioredis.Redis, Cluster: MyCluster },
  })
  t.teardown(() => connector.close?.())
  t.ok(connector.client instanceof MyCluster)
})

t.test('the app shares the clients of the driver that it gave', async (t) => {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(fastifyPool, {
    pools: {
      docs: { backend: 'mongodb', url: servers.mongodb, driver: { ...mongodbModule, MongoClient: MyMongo }, max: 1 },
      cache: { backend: 'redis', url: servers.redis, driver: MyRedis, max: 1 },
    }
  })
  const { mongo, redis: shared } = app as unknown as { mongo: Record<'client', unknown>, redis: unknown }
  t.ok(mongo.client instanceof MyMongo)
  t.ok(shared instanceof MyRedis)
})

t.test("a driver's name is for SQLite, and tells what is missing", async (t) => {
  t.match(await refusal(t, { backend: 'sqlite', url: ':memory:', driver: 'better-sqlite3' }), {
    code: 'FST_POOL_MISSING_DRIVER',
    message: "pool 'db': backend 'sqlite' needs the package better-sqlite3: npm install better-sqlite3",
  })
  t.match((await refusal(t, { backend: 'sqlite', driver: 'sqlite3' as 'libsql' })).message,
    /^option driver is 'sqlite3': expected /)
  if (process.getBuiltinModule('node:sqlite' as 'node:fs') !== undefined) return
  t.match(await refusal(t, { backend: 'sqlite', url: ':memory:', driver: 'node:sqlite' }), {
    code: 'FST_POOL_MISSING_DRIVER',
    message: `pool 'db': driver 'node:sqlite' needs Node 22.16 or later, and this is ${process.version}`,
  })
})

// --- The look-up -----------------------------------------------------------------------------------------------------

/** Runs a copy of the look-up of a package that says in which of these folders it was found. */
function lookUp (t: Test, plants: ReadonlyArray<'ours' | 'app' | 'cwd'>): string {
  const folder = t.testdir({ ours: {}, app: {}, cwd: {} })
  for (const name of ['backends/shared/driver', 'engine/errors', 'engine/secrets']) {
    const source = readFileSync(new URL(`../../lib/${name}.ts`, import.meta.url), 'utf8')
    const to = join(folder, 'ours/lib', `${name}.js`)
    mkdirSync(dirname(to), { recursive: true })
    writeFileSync(to, ts.transpile(source, { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 }))
  }
  writeFileSync(join(folder, 'ours/package.json'), '{ "type": "module" }')
  for (const where of plants) {
    const at = join(folder, where, 'node_modules/such-a-driver')
    mkdirSync(at, { recursive: true })
    writeFileSync(join(at, 'index.js'), `module.exports = '${where}'`)
  }
  const main = join(folder, 'app/main.mjs')
  writeFileSync(main, `
    import { requirePackage } from '../ours/lib/backends/shared/driver.js'
    try {
      console.log(requirePackage('such-a-driver', { backend: 'sqlite' }))
    } catch (error) {
      console.log(error.code, error.message, error.cause.errors.map(({ code }) => code).join())
    }`)
  return execFileSync(process.execPath, [main],
    { cwd: join(folder, 'cwd'), encoding: 'utf8', env: { ...process.env, NODE_OPTIONS: '' } }).trim()
}

t.test('a driver is looked for from here, then from the main file of the app, then from the working directory', async (t) => {
  t.equal(lookUp(t, ['ours', 'app', 'cwd']), 'ours')
  t.equal(lookUp(t, ['app', 'cwd']), 'app')
  t.equal(lookUp(t, ['cwd']), 'cwd')
  t.equal(lookUp(t, []),
    "FST_POOL_MISSING_DRIVER backend 'sqlite' needs the package such-a-driver: npm install such-a-driver MODULE_NOT_FOUND,MODULE_NOT_FOUND,MODULE_NOT_FOUND")
})

/** What `register` says to options that it can't take. */
async function refusal (
  t: Test, options: PluginOptions | (PoolOptions & { backend: Backend, name?: string })
): Promise<PoolError> {
  const app = Fastify()
  t.teardown(async () => {
    await app.close().catch((error: unknown) => { if (!(error instanceof PoolError)) throw error })
  })
  try {
    await app.register(fastifyPool, options as PluginOptions)
    await app.ready()
  } catch (error) {
    if (error instanceof PoolError) return error
    throw error
  }
  throw new Error('it was taken')
}
