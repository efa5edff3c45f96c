import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { execFileSync } from 'node:child_process'
import type { Client } from 'pg'
import fc from 'fast-check'
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import { fastifyPool, poolOptionsFromEnv, PoolError } from '../../index.js'
import { checkPoolOptions } from '../../lib/fastify/options.js'
import { startPostgres } from '../support/services.js'

/** The error of an environment that must be refused. */
function refusal (env: NodeJS.ProcessEnv): PoolError {
  try {
    poolOptionsFromEnv('DB', env)
  } catch (error) {
    if (error instanceof PoolError) return error
    throw error
  }
  throw new Error('nothing was refused')
}

function refuses (t: Test, env: NodeJS.ProcessEnv, message: string): void {
  const error = refusal(env)
  t.equal(error.code, 'FST_POOL_BAD_OPTIONS')
  t.equal(error.message, `the environment variable ${message}`)
}

function folder (t: Test): string {
  const path = mkdtempSync(join(tmpdir(), 'pool-env-'))
  t.teardown(() => { rmSync(path, { recursive: true }) })
  return path
}

t.test('the backend follows from the URL', async (t) => {
  const urls = {
    'postgres://db/app': 'postgresql',
    'postgresql://db/app': 'postgresql',
    'mysql://db/app': 'mysql',
    'mariadb://db/app': 'mysql',
    'mongodb://a,b/app': 'mongodb',
    'mongodb+srv://db/app': 'mongodb',
    'redis://cache': 'redis',
    'REDISS://cache': 'redis',
    'file:app.db': 'sqlite',
    ':memory:': 'sqlite',
  }
  for (const [url, backend] of Object.entries(urls)) {
    const options = poolOptionsFromEnv('DB', { DB_URL: url })
    t.strictSame(options, { backend, url })
    t.ok(checkPoolOptions(options, 'pools.db'))
  }
  t.strictSame(poolOptionsFromEnv('DB', { DB_URL: 'app.db', DB_BACKEND: 'sqlite' }), { backend: 'sqlite', url: 'app.db' })
  t.strictSame(poolOptionsFromEnv('DB', { DB_URL: 'postgres://db', DB_BACKEND: 'postgres' }),
    { backend: 'postgresql', url: 'postgres://db' })
})

t.test('each variable is an option', async (t) => {
  const env = {
    DB_BACKEND: 'postgresql',
    DB_HOST: 'db1',
    DB_PORT: '5433',
    DB_NAME: 'shop',
    DB_USER: 'app',
    DB_PASSWORD: 'Sw0rdfish',
    DB_POOL_MIN: '2',
    DB_POOL_MAX: '20',
    DB_POOL_TIMEOUT: '500ms',
    DB_POOL_IDLE: '1.5m',
    DB_POOL_RECYCLE: '1h',
    DB_SCHEMA: 'of the app',
    CACHE_URL: 'redis://cache',
    CACHE_POOL_SIZE: '7',
    CACHE_NAME: '',
  }
  const options = poolOptionsFromEnv('DB', env)
  t.strictSame(options, {
    backend: 'postgresql',
    host: 'db1',
    port: 5433,
    database: 'shop',
    connection: { user: 'app', password: 'Sw0rdfish' },
    min: 2,
    max: 20,
    acquireTimeout: 500,
    idleTimeout: 90_000,
    maxLifetime: 3_600_000,
  })
  t.ok(checkPoolOptions(options, 'pools.db'))
  t.strictSame(poolOptionsFromEnv('CACHE', env), { backend: 'redis', url: 'redis://cache', max: 7 }, 'another prefix; an empty one is absent')
  t.strictSame(poolOptionsFromEnv('DB', { DB_BACKEND: 'sqlite', DB_NAME: 'app.db' }), { backend: 'sqlite', url: 'app.db' })
  const login = { DB_USER: 'app', DB_PASSWORD: 'x' }
  t.match(poolOptionsFromEnv('DB', { DB_URL: 'redis://cache', ...login }), { connection: { username: 'app', password: 'x' } })
  t.match(poolOptionsFromEnv('DB', { DB_URL: 'mongodb://a', ...login }),
    { connection: { auth: { username: 'app', password: 'x' } } })
  t.match(poolOptionsFromEnv('DB', { DB_URL: 'mysql://a', ...login }), { connection: { user: 'app', password: 'x' } })
})

t.test('secrets from files', async (t) => {
  const path = join(folder(t), 'secret')
  writeFileSync(path, 'Sw0rdfish\n')
  const base = { DB_URL: 'postgres://app@db/shop' }
  t.match(poolOptionsFromEnv('DB', { ...base, DB_PASSWORD_FILE: path }), { connection: { password: 'Sw0rdfish' } })
  writeFileSync(path, 'postgres://app:Sw0rdfish@db/shop\n')
  t.match(poolOptionsFromEnv('DB', { DB_URL_FILE: path }), { backend: 'postgresql', url: 'postgres://app:Sw0rdfish@db/shop' })
  refuses(t, { ...base, DB_PASSWORD_FILE: path, DB_PASSWORD: 'x' },
    'DB_PASSWORD_FILE is given: expected none beside DB_PASSWORD')
  refuses(t, { ...base, DB_PASSWORD_FILE: path + '.none' },
    "DB_PASSWORD_FILE can't be read (ENOENT): expected the path of a file")
  writeFileSync(path, '\n')
  refuses(t, { ...base, DB_PASSWORD_FILE: path }, 'DB_PASSWORD_FILE names an empty file: expected a file with the value')
})

t.test('a list of targets', async (t) => {
  const options = poolOptionsFromEnv('DB', {
    DB_TARGETS: 'primary=postgres://a/x?b=c, replica=postgres://b/x\npostgres://c/x', DB_POOL_MAX: '9', DB_USER: 'app',
  })
  t.strictSame(options, {
    backend: 'postgresql',
    connection: { user: 'app' },
    max: 9,
    targets: [
      { url: 'postgres://a/x?b=c', role: 'primary' }, { url: 'postgres://b/x', role: 'replica' }, { url: 'postgres://c/x' },
    ],
  })
  t.ok(checkPoolOptions(options, 'pools.db'))
  refuses(t, { DB_TARGETS: 'postgres://a/x,main=postgres://b/x' },
    'DB_TARGETS has something else as number 2: expected URLs with commas between them, each perhaps behind primary=, replica= or peer=')
  refuses(t, { DB_TARGETS: 'postgres://a/x,redis://b' },
    'DB_TARGETS is a URL of redis: expected one of postgresql, as the first is')
})

t.test('what is wrong names the variable', async (t) => {
  const url = { DB_URL: 'postgres://db/shop' }
  refuses(t, {}, 'DB_URL is missing: expected a URL, or DB_BACKEND and DB_HOST')
  refuses(t, { DB_HOST: 'db1' }, 'DB_BACKEND is missing: expected the name of a backend, since no URL says it')
  refuses(t, { DB_BACKEND: 'oracle' },
    "DB_BACKEND is 'oracle': expected mongodb, redis, postgresql, postgres, mysql, sqlite")
  refuses(t, { DB_URL: 'oracle://db' }, 'DB_URL is a URL of no backend: expected one that begins with ' +
    'postgres:, postgresql:, mysql:, mariadb:, mongodb:, mongodb+srv:, redis:, rediss:, file:')
  refuses(t, { ...url, DB_BACKEND: 'mysql' }, 'DB_URL is a URL of postgresql: expected one of mysql, as DB_BACKEND says')
  refuses(t, { DB_BACKEND: 'mysql', DB_PORT: 'tcp://10.0.0.1:3306' }, 'DB_PORT is a text: expected integer')
  refuses(t, { DB_BACKEND: 'mysql', DB_PORT: '70000' }, "DB_PORT is '70000': expected <= 65535")
  refuses(t, { ...url, DB_POOL_MAX: '0' }, "DB_POOL_MAX is '0': expected >= 1")
  refuses(t, { ...url, DB_POOL_MIN: '1.5' }, "DB_POOL_MIN is '1.5': expected integer")
  refuses(t, { ...url, DB_POOL_MAX: '5', DB_POOL_SIZE: '6' },
    'DB_POOL_SIZE is 6: expected one of the two, or DB_POOL_MAX\'s 5')
  t.match(poolOptionsFromEnv('DB', { ...url, DB_POOL_MAX: '5', DB_POOL_SIZE: '5' }), { max: 5 })
  refuses(t, { ...url, DB_HOST: 'db1' }, 'DB_HOST is given: expected none beside DB_URL')
  refuses(t, { ...url, DB_TARGETS: 'postgres://a' }, 'DB_TARGETS is given: expected none beside DB_URL')
  refuses(t, { DB_TARGETS: 'postgres://a', DB_PORT: '1' }, 'DB_PORT is given: expected none beside DB_TARGETS')
  refuses(t, { DB_URL: 'file:a.db', DB_NAME: 'b.db' },
    'DB_NAME is given: expected none beside DB_URL, since sqlite is one file')
  refuses(t, { ...url, DB_POOL_MIN: '5', DB_POOL_SIZE: '2' }, 'DB_POOL_MIN is 5: expected at most DB_POOL_SIZE, which is 2')
  t.match(poolOptionsFromEnv('DB', { ...url, DB_POOL_MIN: '50' }), { min: 50 }, 'the app may add a max')
  refuses(t, { DB_URL: 'file:a.db', DB_USER: 'app' }, 'DB_USER is given: expected none, since sqlite is a file (DB_URL)')
  refuses(t, { ...url, DB_POOL_TIMEOUT: '30' },
    "DB_POOL_TIMEOUT is '30', without a unit: expected 30s for seconds or 30ms for milliseconds")
  for (const wrong of ['soon', '-1s', '1 hour', '30S']) {
    refuses(t, { ...url, DB_POOL_IDLE: wrong },
      `DB_POOL_IDLE is '${wrong}': expected a duration: 500ms, 30s, 10m or 1h`)
  }
})

t.test('no error shows what may be secret', async () => {
  const secret = fc.stringMatching(/^[a-z0-9:/@=,%?&-]{12,40}$/).map((text) => `Sw0rdfish${text}`)
  const key = fc.constantFrom('DB_URL', 'DB_USER', 'DB_PASSWORD', 'DB_TARGETS')
  fc.assert(fc.property(fc.dictionary(key, secret), fc.constantFrom('mysql', 'sqlite', 'none', ''), (env, backend) => {
    try {
      poolOptionsFromEnv('DB', { ...env, DB_BACKEND: backend })
    } catch (error) {
      const { code, message, stack } = error as PoolError
      return code === 'FST_POOL_BAD_OPTIONS' && !/Sw0rdfish/.test(message + stack)
    }
    return true
  }), { seed: Number(process.env.SIM_SEED ?? Date.now() % 1e6), verbose: true })
})

t.test('env-schema is loaded by the first call, not by the import', async (t) => {
  const script = `
    const { poolOptionsFromEnv } = require('./dist/index.js')
    const loaded = () => Object.keys(require.cache).some((file) => file.includes('env-schema'))
    const before = loaded()
    poolOptionsFromEnv('DB', { DB_URL: ':memory:' })
    console.log(before, loaded(), require('fastify-pool/env').poolOptionsFromEnv === poolOptionsFromEnv)`
  const root = new URL('../../', import.meta.url)
  const env = { ...process.env, NODE_OPTIONS: '' }
  t.equal(execFileSync(process.execPath, ['--input-type=commonjs', '-e', script], { cwd: root, env, encoding: 'utf8' }).trim(),
    'false true true')
})

t.test('an app whose database is in the environment', async (t) => {
  const server = await startPostgres(t)
  const { hostname, port, pathname, username, password } = new URL(server.url)
  const path = join(folder(t), 'password')
  writeFileSync(path, decodeURIComponent(password) || 'none')
  const env = {
    APP_BACKEND: 'postgresql',
    APP_HOST: hostname,
    APP_PORT: port,
    APP_NAME: pathname.slice(1) || 'postgres',
    APP_USER: decodeURIComponent(username),
    APP_PASSWORD_FILE: path,
    APP_POOL_SIZE: '3',
  }
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(fastifyPool, { pools: { db: poolOptionsFromEnv('APP', env) } })
  t.equal(app.pools.stats().db!.max, 3)
  app.get('/', async (request) => (await (request.db as unknown as Client).query('select 1 as one')).rows)
  t.same((await app.inject('/')).json(), [{ one: 1 }])
})
