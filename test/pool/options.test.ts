import t, { type Test } from 'tap'
import Fastify from 'fastify'
import { PoolError } from '../../lib/engine/errors.js'
import { mongodb } from '../../lib/backends/mongodb/connector.js'
import { mysql } from '../../lib/backends/mysql/connector.js'
import { postgresql } from '../../lib/backends/postgresql/connector.js'
import { redis as redisBackend } from '../../lib/backends/redis/connector.js'
import { TargetPool } from '../../lib/balance/target-pool.js'
import { isMemoryUrl } from '../../lib/backends/sqlite/options.js'
import {
  checkPluginOptions, checkPoolOptions, pluginOptionsSchema, poolOptionsSchema, readRoutePools, requestProperties,
} from '../../lib/fastify/options.js'
import { checkEngineOptions, poolDefaults } from '../../lib/pool/options.js'
import type { PoolOptions } from '../../types/plugin.js'

const connector = { system: 'ldap', create: async () => ({}), destroy () {} }
const redis = { backend: 'redis' } as const

/** The error of a check that must refuse. */
function refusal (check: () => unknown): PoolError {
  try {
    check()
  } catch (error) {
    if (error instanceof PoolError) return error
    throw error
  }
  throw new Error('nothing was refused')
}

function refuses (t: Test, check: () => unknown, message: string): void {
  const error = refusal(check)
  t.equal(error.code, 'FST_POOL_BAD_OPTIONS')
  t.equal(error.message, message)
}

function deepFreeze<T> (value: T): T {
  if (typeof value === 'object' && value !== null) Object.values(value).forEach(deepFreeze)
  return Object.freeze(value)
}

/** One value of each kind that a user may give by mistake, or on purpose. */
const kinds = {
  null: null,
  true: true,
  false: false,
  text: 'ten',
  empty: '',
  zero: 0,
  one: 1,
  ten: 10,
  negative: -1,
  fraction: 1.5,
  NaN,
  Infinity,
  '-Infinity': -Infinity,
  huge: 2 ** 31,
  array: [],
  object: {},
  function: () => {},
  symbol: Symbol('s'),
  bigint: 10n,
}
type Kind = keyof typeof kinds

const deadline = {
  takes: ['one', 'ten', 'fraction'] as Kind[], expected: 'a number of milliseconds from 1 to 2147483647',
}
const time = {
  takes: ['zero', 'one', 'ten', 'fraction'] as Kind[], expected: 'a number of milliseconds from 0 to 2147483647',
}
const count = { takes: ['zero', 'one', 'ten', 'huge'] as Kind[], expected: 'an integer of at least 0' }
const positive = { takes: ['one', 'ten', 'huge'] as Kind[], expected: 'an integer of at least 1' }
/** The smallest pool over several servers. */
const several = { backend: undefined, targets: [{ connector }, { connector }] }
/** A pool per tenant. */
const tenants = { key: () => 'a', options: () => ({}) }
const hook = { takes: ['function'] as Kind[], expected: 'a function' }

/** `elsewhere`: refused too, but for what is in it. `beside`: with which other options. */
const table: Record<string, { takes: readonly Kind[], elsewhere?: Kind, expected: string, beside?: object }> = {
  backend: { takes: [], expected: "'mongodb', 'redis', 'postgresql', 'postgres', 'mysql' or 'sqlite'" },
  connector: { takes: [], elsewhere: 'object', expected: 'an object with system, create and destroy' },
  targets: { takes: [], expected: 'a list of at least one target' },
  url: { takes: ['text', 'function'], expected: 'a text that is not empty, or a function that returns one' },
  host: { takes: ['text'], expected: 'a host name, nothing else' },
  port: { takes: ['one', 'ten'], expected: 'an integer from 1 to 65535' },
  database: {
    takes: ['text', 'zero', 'one', 'ten', 'huge'],
    expected: 'a text that is not empty, or the number of a database of Redis',
  },
  driver: {
    takes: ['object',
      'function'],
    expected: "the driver's module or class, or of sqlite 'better-sqlite3', 'libsql' or 'node:sqlite'"
  },
  appName: { takes: ['text'], expected: 'a text that is not empty' },
  connection: { takes: ['object', 'function'], expected: 'an object, or a function that returns one' },
  min: { ...count, beside: { max: 2 ** 31 } },
  max: positive,
  startup: { takes: [], expected: "'require', 'warm' or 'lazy'" },
  acquireTimeout: deadline,
  connectTimeout: deadline,
  validateTimeout: deadline,
  resetTimeout: deadline,
  destroyTimeout: deadline,
  closeTimeout: deadline,
  commitTimeout: time,
  holdTimeout: time,
  idleTimeout: time,
  maxLifetime: time,
  maxUses: count,
  validateAfter: time,
  keepalive: time,
  maxPending: count,
  maxConnecting: positive,
  leakAfter: time,
  backoff: { takes: ['object'], expected: 'an object' },
  circuit: { takes: ['false', 'object'], expected: 'false or an object' },
  overload: { takes: ['true', 'false'], expected: 'true or false' },
  allowExitOnIdle: { takes: ['true', 'false'], expected: 'true or false' },
  reset: { takes: [], expected: "'session', 'transaction', 'none' or 'joined'" },
  onConnect: hook,
  onAcquire: hook,
  onRelease: hook,
  onDisconnect: hook,
  wrap: hook,
  lease: { takes: ['false', 'object'], expected: 'false or an object' },
  bulkhead: { takes: [], elsewhere: 'object', expected: 'an object with key and max' },
  balance: { takes: [], expected: "'weighted', 'round-robin', 'least-used' or 'random'", beside: several },
  maxLag: { ...deadline, beside: several },
  checkInterval: { ...deadline, beside: several },
  sticky: { takes: [], elsewhere: 'object', expected: 'an object', beside: several },
  stickyFor: { ...deadline, beside: several },
  affinity: { ...hook, beside: { backend: undefined, targets: [{ connector, role: 'peer' }] } },
  discover: { takes: [], expected: "'dns'" },
  key: { ...hook, beside: { options: () => ({}) } },
  options: { ...hook, beside: { key: () => 'a' } },
  maxPools: { ...positive, beside: tenants },
  idlePoolTimeout: { ...deadline, beside: tenants },
  maxTotal: { ...positive, beside: tenants },
  showKeys: { takes: ['true', 'false'], expected: 'true or false', beside: tenants },
}

t.test('the table below has every option of a pool', async (t) => {
  t.same(Object.keys(table).sort(), Object.keys(poolOptionsSchema.properties).sort())
})

for (const [option, { takes, elsewhere, expected, beside }] of Object.entries(table)) {
  t.test(`${option}: every wrong kind of value is refused, with what was given and what is expected`, async (t) => {
    for (const kind of Object.keys(kinds) as Kind[]) {
      const check = () => checkPoolOptions({ ...redis, ...beside, [option]: kinds[kind] }, 'pools.db')
      if (takes.includes(kind)) {
        t.doesNotThrow(check, `takes ${kind}`)
        continue
      }
      const { code, message } = refusal(check)
      t.equal(code, 'FST_POOL_BAD_OPTIONS', kind)
      if (kind === elsewhere) continue
      t.ok(message.startsWith(`option pools.db.${option} is `), `${kind}: ${message}`)
      t.ok(message.includes(`: expected ${expected}`), `${kind}: ${message}`)
    }
  })
}

t.test('what was given is said in words that fit its kind', async (t) => {
  const said = (value: unknown) =>
    /is (.*): expected/.exec(refusal(() => checkPoolOptions({ ...redis, max: value }, '')).message)![1]
  t.equal(said('ten'), "'ten'")
  t.equal(said(''), "''")
  t.equal(said(0), '0')
  t.equal(said(NaN), 'NaN')
  t.equal(said(Infinity), 'Infinity')
  t.equal(said(null), 'null')
  t.equal(said(true), 'true')
  t.equal(said(10n), '10n')
  t.equal(said([]), 'an array')
  t.equal(said({}), 'an object')
  t.equal(said(() => {}), 'a function')
  t.equal(said(Symbol('s')), 'a symbol')
  t.equal(said('x'.repeat(100)), 'a text')
})

t.test('the message of a wrong option is the path, the value and what is expected', async (t) => {
  refuses(t, () => checkPoolOptions({ ...redis, max: 'ten' }, 'pools.db'),
    "option pools.db.max is 'ten': expected an integer of at least 1")
  refuses(t, () => checkPoolOptions({ ...redis, max: 'ten' }, ''),
    "option max is 'ten': expected an integer of at least 1")
  refuses(t, () => checkPoolOptions('redis', 'pools.db'), "option pools.db is 'redis': expected an object")
  refuses(t, () => checkPoolOptions([], 'pools.db'), 'option pools.db is an array: expected an object')
})

// --- Defaults --------------------------------------------------------------------------------------------------------

const defaults = {
  connection: {},
  min: 0,
  max: 10,
  startup: 'require',
  acquireTimeout: 5000,
  connectTimeout: 3000,
  validateTimeout: 1000,
  resetTimeout: 1000,
  destroyTimeout: 2000,
  closeTimeout: 8000,
  commitTimeout: 5000,
  holdTimeout: 60_000,
  idleTimeout: 60000,
  maxLifetime: 1800000,
  maxUses: 0,
  validateAfter: 1000,
  keepalive: 0,
  maxPending: 1000,
  leakAfter: 0,
  backoff: { min: 50, max: 1000 },
  circuit: { failures: 5, rate: 0.5, sample: 20, after: 1000, openFor: 500 },
  overload: true,
  allowExitOnIdle: true,
  reset: 'session',
}
/** What only a pool over several servers uses. */
const balance = { balance: 'weighted', maxLag: Infinity, checkInterval: 1000, stickyFor: 5000 }
const policy = { acquire: 'onRequest', release: 'onResponse', transaction: false }

t.test('what is not given has its default', async (t) => {
  t.strictSame(poolDefaults, defaults)
  t.strictSame(checkPoolOptions(redis, ''), { ...redis, ...defaults, ...balance, name: 'db', lease: policy })
  t.strictSame(checkEngineOptions(connector, {}), { ...defaults, name: 'db' })
  const { pools, ...plugin } = checkPluginOptions(redis)
  const graces = { abortGrace: 5000, bodyGrace: 1000, replyGrace: 1000 }
  const observing = { healthRoutes: false, otel: false, prometheus: false, serverTiming: false }
  t.strictSame(plugin, { lease: policy, ...graces, ...observing, log: {} })
  t.strictSame([...pools], [['db', { ...redis, ...defaults, ...balance, name: 'db', lease: policy }]])
})

t.test('maxConnecting follows max, now and after a resize: it has no value unless it is given one', async (t) => {
  t.equal(checkPoolOptions({ ...redis, max: 3 }, '').maxConnecting, undefined)
  t.equal(checkPoolOptions({ ...redis, max: 3, maxConnecting: 2 }, '').maxConnecting, 2)
})

t.test('undefined is as if absent, for every option but url, known or not', async (t) => {
  const { url: _, ...others } = table
  const nothing = Object.fromEntries([...Object.keys(others), 'maxx'].map((name) => [name, undefined]))
  t.strictSame(checkPoolOptions({ ...nothing, ...redis }, ''), checkPoolOptions(redis, ''))
  t.strictSame(checkEngineOptions(connector, nothing), checkEngineOptions(connector, {}))
  t.strictSame(checkPoolOptions({ ...redis, backoff: { min: undefined, max: 60 } }, '').backoff, { min: 50, max: 60 })
  t.strictSame([...checkPluginOptions({
    ...nothing, ...redis, pools: undefined, name: undefined, log: undefined,
  }).pools], [...checkPluginOptions(redis).pools])
  t.strictSame([...checkPluginOptions({ ...nothing, pools: { a: redis, b: undefined } }).pools.keys()], ['a'])
})

t.test('a url that is there and undefined is refused: it would silently be a server on this machine', async (t) => {
  const url = undefined
  const message = (path: string) => `option ${path} is undefined: expected a text that is not empty, or no url at all ` +
    '(is an environment variable missing?)'
  for (const kind of [redis, { connector }, { backend: 'sqlite' }]) {
    refuses(t, () => checkPluginOptions({ ...kind, url }), message('url'))
    refuses(t, () => checkPluginOptions({ pools: { db: { ...kind, url } } }), message('pools.db.url'))
    refuses(t, () => checkPluginOptions({ pools: { db: kind }, url }), message('url'))
  }
  refuses(t, () => checkPluginOptions({ ...redis, targets: [{ url: 'redis://a' }, { url }] }),
    message('targets.1.url'))
  refuses(t, () => checkPluginOptions({ pools: { db: { ...redis, targets: [{ host: 'a', url }] } } }),
    message('pools.db.targets.0.url'))
  refuses(t, () => checkPluginOptions({ ...redis, url, targets: [{ host: 'a' }] }), message('url'))
  refuses(t, () => checkEngineOptions(connector, { url }), message('url'))
  refuses(t, () => checkPoolOptions(Object.create({ ...redis, url }), ''), message('url'))
  t.throws(() => new TargetPool([{ connector: connector as never }], { url } as never), { message: message('url') })
  t.doesNotThrow(() => checkPluginOptions({ ...redis, host: undefined, port: undefined, connection: { url } }))
  // Without Fastify.
  const makers: ReadonlyArray<(options: never) => Promise<unknown>> = [mongodb, mysql, postgresql, redisBackend]
  for (const make of makers) {
    await t.rejects(() => make({ url } as never), { code: 'FST_POOL_BAD_OPTIONS', message: message('url') })
  }
})

t.test('what is inherited is given too, as for everyone who reads a property', async (t) => {
  t.equal(checkPoolOptions(Object.create({ ...redis, max: 3 }), '').max, 3)
  refuses(t, () => checkPoolOptions(Object.create({ ...redis, maxx: 3 }), ''), 'unknown option maxx: did you mean max?')
})

t.test('nothing that is given is changed, and the result is frozen', async (t) => {
  const options = deepFreeze({
    pools: {
      db: {
        ...redis, max: 3, backoff: { max: 60 }, connection: { tls: { ca: 'x' } }, lease: { acquire: 'manual' },
      },
      ldap: { connector }
    },
    lease: { release: 'onSend' },
    log: { connect: 'info' },
  })
  const result = checkPluginOptions(options)
  t.ok(Object.isFrozen(result))
  t.ok(Object.isFrozen(result.lease))
  t.ok(Object.isFrozen(result.log))
  for (const pool of result.pools.values()) {
    t.ok(Object.isFrozen(pool))
    t.ok(Object.isFrozen(pool.backoff))
    t.ok(Object.isFrozen(pool.lease))
  }
  t.ok(Object.isFrozen(poolDefaults))
  t.not(result.pools.get('db')!.backoff, options.pools.db.backoff)
})

t.test('what goes to the driver or is called is kept as the very thing that was given, and not frozen', async (t) => {
  const connection = { tls: {} }
  class Ldap { readonly system = 'ldap'; async create () { return {} } destroy () {} }
  const given =
    {
      connector: new Ldap(),
      connection,
      onConnect () {},
      onAcquire () {},
      onRelease () {},
      onDisconnect () {},
      wrap () {}
    }
  const result = checkPoolOptions(given, '')
  for (const [key, value] of Object.entries(given)) t.equal(result[key as keyof typeof result], value, key)
  t.notOk(Object.isFrozen(connection))
  t.notOk(Object.isFrozen(given.connector))
})

// --- What one option says about another ------------------------------------------------------------------------------

t.test('a pool has a backend or a connector, and not both', async (t) => {
  refuses(t, () => checkPoolOptions({}, 'pools.db'),
    "option pools.db.backend is missing: expected 'mongodb', 'redis', 'postgresql', 'postgres', 'mysql' or 'sqlite', or a connector or targets instead")
  refuses(t, () => checkPoolOptions({ ...redis, connector }, 'pools.db'),
    'option pools.db.connector is an object: expected none beside backend')
  refuses(t, () => checkPoolOptions({ backend: 'oracle' }, ''),
    "option backend is 'oracle': expected 'mongodb', 'redis', 'postgresql', 'postgres', 'mysql' or 'sqlite'")
})

t.test('a connector has a system, create and destroy, and functions for the rest', async (t) => {
  for (const key of ['system', 'create', 'destroy']) {
    refuses(t, () => checkPoolOptions({ connector: { ...connector, [key]: undefined } }, 'pools.db'),
      `option pools.db.connector.${key} is missing: expected ${key === 'system' ? "a text, such as 'ldap'" : 'a function'}`)
  }
  for (const key of [
    'create', 'destroy', 'validate', 'isBroken', 'reset', 'onDeath', 'onDriverEvent', 'handOver', 'close',
  ]) {
    refuses(t, () => checkPoolOptions({ connector: { ...connector, [key]: 5 } }, ''),
      `option connector.${key} is 5: expected a function`)
  }
  t.doesNotThrow(() => checkPoolOptions({ connector: { ...connector, anything: 5 } }, ''),
    'it is an object of the user, with members of its own')
  refuses(t, () => checkPoolOptions({ connector: class {} }, ''),
    'option connector is a function: expected an object with system, create and destroy')
})

t.test('circuit: what is given of it, and the defaults for the rest; false turns it off', async (t) => {
  const circuit = (given: unknown) => checkPoolOptions({ ...redis, circuit: given }, '').circuit
  t.strictSame(circuit({}), defaults.circuit)
  t.strictSame(circuit({ openFor: 1, failures: 1 }), { ...defaults.circuit, openFor: 1, failures: 1 })
  t.ok(Object.isFrozen(circuit({ failures: 3 })))
  t.equal(circuit(false), false)
  t.equal(checkEngineOptions(connector, { circuit: false }).circuit, false)
  t.strictSame(circuit({ rate: 0.01, sample: 1 }), { ...defaults.circuit, rate: 0.01, sample: 1 })
  const refused = (given: object, message: string) =>
    refuses(t, () => checkPoolOptions({ ...redis, circuit: given }, 'pools.db'), message)
  for (const failures of [0, -1, 1.5, NaN]) {
    refused({ failures },
    `option pools.db.circuit.failures is ${failures}: expected an integer of at least 1`)
  }
  for (const rate of [0, 1, -0.5, 50, NaN]) {
    refused({ rate },
    `option pools.db.circuit.rate is ${rate}: expected a number between 0 and 1`)
  }
  refused({ rate: '0.5' }, "option pools.db.circuit.rate is '0.5': expected a number between 0 and 1")
  for (const sample of [0, 2.5]) {
    refused({ sample },
    `option pools.db.circuit.sample is ${sample}: expected an integer of at least 1`)
  }
  for (const openFor of [0, -1, Infinity, 2 ** 31]) {
    refused({ openFor },
    `option pools.db.circuit.openFor is ${openFor}: expected a number of milliseconds from 1 to 2147483647`)
  }
  refused({ openfor: 5 }, 'unknown option pools.db.circuit.openfor: did you mean openFor?')
  refused({ threshold: 5 }, 'unknown option pools.db.circuit.threshold: expected failures, rate, sample, after or openFor')
})

t.test('url and connection may be functions, which the check does not call', async (t) => {
  const url = () => { throw new Error('called') }
  const connection = async () => { throw new Error('called') }
  const resolved = checkPoolOptions({ ...redis, url, connection }, '')
  t.equal(resolved.url, url)
  t.equal(resolved.connection, connection)
  t.equal(checkEngineOptions(connector, { url, connection }).url, url)
  refuses(t, () => checkPoolOptions({ ...redis, url, host: 'a' }, ''), "option host is 'a': expected none beside url")
  refuses(t, () => checkPoolOptions({ backend: 'sqlite', url }, ''),
    'option url is a function: expected none, since a file does not change its address')
  refuses(t, () => checkPoolOptions({ backend: 'sqlite', url: 'a.db', connection }, ''),
    'option connection is a function: expected none, since a file does not change its address')
})

t.test('bulkhead: a key and a max, both', async (t) => {
  const key = () => 'tenant'
  t.strictSame(checkPoolOptions({ ...redis, bulkhead: { key, max: 2 } }, '').bulkhead, { key, max: 2 })
  const refused = (given: object, message: string) =>
    refuses(t, () => checkPoolOptions({ ...redis, bulkhead: given }, 'pools.db'), message)
  refused({ max: 2 }, 'option pools.db.bulkhead.key is missing: expected a function')
  refused({ key }, 'option pools.db.bulkhead.max is missing: expected an integer of at least 1')
  refused({ key: undefined, max: 2 }, 'option pools.db.bulkhead.key is missing: expected a function')
  refused({ key, max: 0 }, 'option pools.db.bulkhead.max is 0: expected an integer of at least 1')
  refused({ key: 'x-tenant', max: 1 }, 'option pools.db.bulkhead.key is a text: expected a function')
  refused({ key, max: 1, queue: 5 }, 'unknown option pools.db.bulkhead.queue: expected key or max')
  t.throws(() => checkEngineOptions(connector, { bulkhead: { key, max: 2 } }),
    { code: 'FST_POOL_BAD_OPTIONS', message: 'unknown option bulkhead' })
})

// --- Several servers -------------------------------------------------------------------------------------------------

t.test('targets: each has a name, a role, a weight, a max and an address, and the options of the pool for the rest', async (t) => {
  const options = deepFreeze({
    ...redis,
    max: 8,
    database: '2',
    connection: { tls: {} },
    validateAfter: 7,
    targets: [
      { url: 'redis://a' },
      { host: 'b', port: 1, role: 'replica', weight: 2.5, max: 3, connection: { family: 6 } },
      { name: 'third', url: () => 'redis://c', role: 'replica' },
    ],
  })
  const { targets, backend, max, ...rest } = checkPoolOptions(options, 'pools.db', { name: 'main' })
  t.match({ backend, max, ...rest }, { backend: 'redis', max: 8, ...balance })
  t.match(targets, [
    {
      name: 'primary-0',
      role: 'primary',
      weight: 1,
      max: 8,
      options: {
        name: 'main', backend: 'redis', url: 'redis://a', database: '2', max: 8, validateAfter: 7,
      }
    },
    {
      name: 'replica-1',
      role: 'replica',
      weight: 2.5,
      max: 3,
      options: {
        host: 'b', port: 1, database: '2', connection: { family: 6 }, max: 3,
      }
    },
    { name: 'third', role: 'replica', weight: 1, max: 8, options: { url: options.targets[2]!.url } },
  ])
  t.equal(targets![0]!.options.connection, options.connection)
  t.ok(Object.isFrozen(targets))
  for (const target of targets!) {
    t.ok(Object.isFrozen(target))
    t.ok(Object.isFrozen(target.options))
    t.equal(checkEngineOptions(connector, target.options), target.options, 'a pool takes them as they are')
  }
})

t.test("a target's address is of one piece: where it has any of its own, it has none of the pool's", async (t) => {
  const addressOf = (pool: object, target: object) => {
    const { url, host, port, database } = checkPoolOptions({
      ...redis, ...pool, targets: [target, { url: 'redis://z' }],
    }, '').targets![0]!.options
    return { url, host, port, database }
  }
  t.strictSame(addressOf({ url: 'redis://p', database: '1' }, { host: 'a' }),
    { url: undefined, host: 'a', port: undefined, database: '1' })
  t.strictSame(addressOf({ host: 'p', port: 7 }, { url: 'redis://a' }),
    { url: 'redis://a', host: undefined, port: undefined, database: undefined })
  t.strictSame(addressOf({ host: 'p', port: 7 }, { host: 'a' }),
    { url: undefined, host: 'a', port: undefined, database: undefined })
  t.strictSame(addressOf({ url: 'redis://p' }, { database: '3' }),
    { url: 'redis://p', host: undefined, port: undefined, database: '3' })
})

t.test('targets: what is wrong is refused with its place in the list', async (t) => {
  const refused = (targets: unknown, message: string, more: object = redis) =>
    refuses(t, () => checkPoolOptions({ ...more, targets }, 'pools.db'), message)
  const a = { url: 'redis://a' }
  refused([], 'option pools.db.targets is an array: expected a list of at least one target')
  refused([a, 'redis://b'], 'option pools.db.targets.1 is a text: expected an object')
  refused([a, { ...a, role: 'master' }], "option pools.db.targets.1.role is 'master': expected 'primary', 'replica' or 'peer'")
  for (const weight of [0, -1, NaN, Infinity]) {
    refused([{ ...a, weight }],
    `option pools.db.targets.0.weight is ${weight}: expected a number above 0`)
  }
  refused([{ ...a, max: 0 }], 'option pools.db.targets.0.max is 0: expected an integer of at least 1')
  refused([{ ...a, wieght: 1 }], 'unknown option pools.db.targets.0.wieght: did you mean weight?')
  refused([{ ...a, port: 1 }], 'option pools.db.targets.0.port is 1: expected none beside url')
  refused([{ ...a, name: 'x' }, { ...a, name: 'x' }],
    "option pools.db.targets.1.name is 'x': expected a name that no other target has")
  refused([{ ...a, name: 'primary-1' }, a],
    "option pools.db.targets.1.name is 'primary-1': expected a name that no other target has")
  refused([{ ...a, name: 'a b' }],
    "option pools.db.targets.0.name is 'a b': expected a name of letters, digits, '_', '$' and '-', a letter first")
  refused([{ ...a, connector }], 'option pools.db.targets.0.connector is an object: expected none beside backend')
  refused([a], 'option pools.db.targets.0.connector is missing: expected an object with system, create and destroy', {})
  refused([{ connector: { ...connector, create: 5 } }],
    'option pools.db.targets.0.connector.create is 5: expected a function', {})
  refused([{ connector }], 'option pools.db.connector is an object: expected none beside targets', { connector })
  refused([a, a, a], 'option pools.db.max is 2: expected at least one connection for each of the 3 targets',
    { ...redis, max: 2 })
  for (const backend of ['mongodb', 'sqlite']) {
    t.match(refusal(() => checkPoolOptions({ backend, targets: [{}] }, ''))
      .message, /^option targets is an array: expected none, since /)
  }
  t.throws(() => checkEngineOptions(connector, { targets: [{ connector }] }), { code: 'FST_POOL_BAD_OPTIONS' },
    'an engine pool has one')
})

t.test('what only several servers need is refused where there is one', async (t) => {
  for (const [key, value] of Object.entries({ balance: 'random', maxLag: 5, checkInterval: 5, sticky: { cookie: 'sid' }, stickyFor: 5 })) {
    t.match(refusal(() => checkPoolOptions({ ...redis, [key]: value }, 'pools.db')).message,
      new RegExp(`^option pools\\.db\\.${key} is .*: expected none without targets$`))
    t.doesNotThrow(() => checkPoolOptions({ ...several, [key]: value }, ''))
  }
})

t.test('sticky: one of cookie, header and key', async (t) => {
  const key = () => 'me'
  for (const sticky of [{ cookie: 'sid' }, { header: 'x-user' },
    { key }]) t.strictSame(checkPoolOptions({ ...several, sticky }, '').sticky, sticky)
  const refused = (sticky: object, message: string) =>
    refuses(t, () => checkPoolOptions({ ...several, sticky }, ''), message)
  refused({}, 'option sticky is an object: expected one of cookie, header and key')
  refused({ cookie: 'sid', key }, 'option sticky is an object: expected one of cookie, header and key')
  refused({ cookie: '' }, "option sticky.cookie is '': expected the name of a cookie")
  refused({ header: 5 }, 'option sticky.header is 5: expected the name of a header')
  refused({ key: 'x' }, 'option sticky.key is a text: expected a function')
  refused({ coookie: 'x' }, 'unknown option sticky.coookie: did you mean cookie?')
})

t.test('ranges: the one that was given is to blame', async (t) => {
  refuses(t, () => checkPoolOptions({ ...redis, min: 5, max: 3 }, 'pools.db'),
    'option pools.db.min is 5: expected at most max (3)')
  refuses(t, () => checkPoolOptions({ ...redis, min: 11 }, ''), 'option min is 11: expected at most max (10)')
  refuses(t, () => checkPoolOptions({ ...redis, backoff: { min: 9, max: 8 } }, ''),
    'option backoff.min is 9: expected at most max (8)')
  refuses(t, () => checkPoolOptions({ ...redis, backoff: { max: 8 } }, ''),
    'option backoff.max is 8: expected at least min (50)')
  refuses(t, () => checkPoolOptions({ ...redis, backoff: { min: 2000 } }, ''),
    'option backoff.min is 2000: expected at most max (1000)')
  refuses(t, () => checkEngineOptions(connector, { min: 5, max: 3 }), 'option min is 5: expected at most max (3)')
  t.strictSame(checkPoolOptions({ ...redis, min: 3, max: 3, backoff: { min: 7, max: 7 } }, '').backoff,
    { min: 7, max: 7 })
})

t.test('the longest time is the longest that a timer of Node can wait', async (t) => {
  t.equal(checkPoolOptions({ ...redis, idleTimeout: 2147483647 }, '').idleTimeout, 2147483647)
  refuses(t, () => checkPoolOptions({ ...redis, idleTimeout: 2147483648 }, ''),
    'option idleTimeout is 2147483648: expected a number of milliseconds from 0 to 2147483647')
})

t.test('a url says where the database is; a host or port beside it is refused', async (t) => {
  const url = 'redis://127.0.0.1'
  refuses(t, () => checkPoolOptions({ ...redis, url, host: 'a' }, ''), "option host is 'a': expected none beside url")
  refuses(t, () => checkPoolOptions({ ...redis, url, port: 1 }, ''), 'option port is 1: expected none beside url')
  t.match(checkPoolOptions({ ...redis, url, database: '2' }, ''), { url, database: '2' })
  t.match(checkPoolOptions({ ...redis, url, database: 0 }, ''), { url, database: 0 })
  t.match(checkPoolOptions({ ...redis, host: '::1', port: 6379 }, ''), { host: '::1', port: 6379 })
})

t.test('sqlite is a file', async (t) => {
  const sqlite = { backend: 'sqlite', url: 'app.db' }
  t.match(checkPoolOptions(sqlite, ''), { max: 10, min: 0, idleTimeout: 60000 })
  t.equal(checkPoolOptions({ ...sqlite, max: 2, min: 2 }, '').min, 2)
  refuses(t, () => checkPoolOptions({ backend: 'sqlite', host: 'a' }, ''),
    "option host is 'a': expected none, since sqlite is a file (url)")
  refuses(t, () => checkPoolOptions({ backend: 'sqlite', port: 1 }, ''),
    'option port is 1: expected none, since sqlite is a file (url)')
})

t.test('a sqlite database in memory keeps its connection, and says why it must', async (t) => {
  const sqlite = { backend: 'sqlite', url: ':memory:' }
  t.match(checkPoolOptions(sqlite, ''), { max: 1, idleTimeout: 0, maxLifetime: 0, maxUses: 0 })
  t.equal(checkPoolOptions({ ...sqlite, max: 1, min: 1 }, '').min, 1)
  refuses(t, () => checkPoolOptions({ ...sqlite, max: 2 }, ''),
    'option max is 2: expected 1, since a database in memory is its connection')
  refuses(t, () => checkPoolOptions({ ...sqlite, min: 2 }, ''), 'option min is 2: expected at most max (1)')
  for (const key of ['idleTimeout', 'maxLifetime', 'maxUses']) {
    t.doesNotThrow(() => checkPoolOptions({ ...sqlite, [key]: 0 }, ''))
    refuses(t, () => checkPoolOptions({ ...sqlite, [key]: 5 }, ''),
      `option ${key} is 5: expected 0, since a database in memory ends with its connection, and the next one would be empty`)
  }
  for (const url of [':memory:', 'file::memory:', 'file::memory:?cache=shared', 'file:a?mode=memory',
    'file:a?cache=shared&mode=memory']) t.ok(isMemoryUrl(url), url)
  for (const url of ['app.db', 'file:a.db', ':MEMORY:', './:memory:', 'file:a?mode=memoryx', undefined,
    5]) t.notOk(isMemoryUrl(url), String(url))
})

// --- Unknown names ---------------------------------------------------------------------------------------------------

t.test('an unknown name is refused, with the name that was probably meant', async (t) => {
  const unknown = (name: string) => refusal(() => checkPoolOptions({ ...redis, [name]: 1 }, 'pools.db'))
    .message.replace('unknown option pools.db.', '')
  const near = {
    maxx: 'max',
    Max: 'max',
    uri: 'url',
    hots: 'host',
    hosts: 'host',
    idletimeout: 'idleTimeout',
    idleTimeoutMillis: 'idleTimeout',
    acquireTimeoutMillis: 'acquireTimeout',
    connectionTimeoutMillis: 'connectTimeout',
    maxConnections: 'maxConnecting',
    keepAlive: 'keepalive',
    onconect: 'onConnect',
  }
  for (const [name, meant] of Object.entries(near)) t.equal(unknown(name), `${name}: did you mean ${meant}?`)
  // Those of later releases too: an option that does nothing must not look as if it did something.
  for (const name of ['transaction', 'role', 'retry', 'fallback', 'x', '']) {
    t.equal(unknown(name), `${name}: the driver's own go into connection`)
  }
})

t.test('an unknown name is refused within options too', async (t) => {
  refuses(t, () => checkPoolOptions({ ...redis, backoff: { maximum: 1 } }, 'pools.db'),
    'unknown option pools.db.backoff.maximum: expected min or max')
  refuses(t, () => checkPoolOptions({ ...redis, lease: { aquire: 'manual' } }, 'pools.db'),
    'unknown option pools.db.lease.aquire: did you mean acquire?')
  refuses(t, () => checkPoolOptions({ ...redis, lease: { bulkhead: 1 } }, ''),
    'unknown option lease.bulkhead: expected acquire, release, transaction, role or holdTimeout')
  refuses(t, () => checkPluginOptions({ ...redis, log: { conect: 'info' } }),
    'unknown option log.conect: did you mean connect?')
  refuses(t, () => checkEngineOptions(connector, { backend: 'redis' }), 'unknown option backend')
  refuses(t, () => checkEngineOptions(connector, { lease: false }), 'unknown option lease')
})

t.test('a name from JSON that would reach a prototype is an unknown name', async (t) => {
  const json = '{ "backend": "redis", "__proto__": { "max": 3 } }'
  refuses(t, () => checkPoolOptions(JSON.parse(json), ''),
    "unknown option __proto__: the driver's own go into connection")
  refuses(t, () => checkPluginOptions(JSON.parse(json)),
    "unknown option __proto__: the driver's own go into connection")
  refuses(t, () => checkPoolOptions({ ...redis, constructor: 1 }, ''),
    "unknown option constructor: the driver's own go into connection")
  refuses(t, () => checkPoolOptions({ ...redis, toString: 1 }, ''),
    "unknown option toString: the driver's own go into connection")
})

// --- The engine's ----------------------------------------------------------------------------------------------------

t.test('new Pool(connector, options): the connector is checked like an option', async (t) => {
  refuses(t, () => checkEngineOptions(undefined, {}),
    'option connector is missing: expected an object with system, create and destroy')
  refuses(t, () => checkEngineOptions({ system: 'ldap' }, {}),
    'option connector.create is missing: expected a function')
  refuses(t, () => checkEngineOptions(connector, null), 'the options: given null: expected an object')
  t.match(checkEngineOptions(connector, { name: 'jobs', max: 3 }), { name: 'jobs', max: 3 })
  for (const name of ['', 'a b', 5, null]) {
    t.match(refusal(() => checkEngineOptions(connector, { name })).message,
      /^option name is .*: expected a name of letters/)
  }
})

t.test('what was checked is not checked again: a pool takes what the plugin made of its options', async (t) => {
  const resolved = checkPluginOptions({ pools: { mem: { backend: 'sqlite', url: ':memory:' } } }).pools.get('mem')!
  t.equal(checkEngineOptions(connector, resolved), resolved)
  t.equal(resolved.name, 'mem')
  t.throws(() => checkEngineOptions(connector, { ...resolved }), { code: 'FST_POOL_BAD_OPTIONS' },
    'a copy may be anything')
})

// --- The plugin's ----------------------------------------------------------------------------------------------------

t.test('one pool: its options beside the plugin\'s, errors without a path', async (t) => {
  const { pools, abortGrace } = checkPluginOptions({ backend: 'sqlite', url: 'app.db', name: 'notes', abortGrace: 0 })
  t.equal(abortGrace, 0)
  t.strictSame([...pools.keys()], ['notes'])
  t.match(pools.get('notes'), { backend: 'sqlite', url: 'app.db', name: 'notes' })
  refuses(t, () => checkPluginOptions({ ...redis, max: 0 }), 'option max is 0: expected an integer of at least 1')
  refuses(t, () => checkPluginOptions({ ...redis, name: 5 }),
    "option name is 5: expected a name of letters, digits, '_', '$' and '-', a letter first")
  refuses(t, () => checkPluginOptions({}),
    "option backend is missing: expected 'mongodb', 'redis', 'postgresql', 'postgres', 'mysql' or 'sqlite', or a connector or targets instead")
  refuses(t, () => checkPluginOptions({ pool: {} }), 'unknown option pool: did you mean pools?')
  refuses(t, () => checkPluginOptions({ ...redis, abortGrase: 1 }),
    'unknown option abortGrase: did you mean abortGrace?')
})

t.test('several pools: in their order, errors with the path that the user wrote', async (t) => {
  const { pools } = checkPluginOptions({ pools: { main: { backend: 'mongodb' }, cache: redis, ldap: { connector } } })
  t.strictSame([...pools.keys()], ['main', 'cache', 'ldap'])
  refuses(t, () => checkPluginOptions({ pools: { db: { ...redis, max: 'ten' } } }),
    "option pools.db.max is 'ten': expected an integer of at least 1")
  refuses(t, () => checkPluginOptions({ pools: { db: 5 } }), 'option pools.db is 5: expected an object')
  refuses(t, () => checkPluginOptions({ pools: {} }), 'option pools is an object: expected at least one pool in it')
  refuses(t, () => checkPluginOptions({ pools: { db: undefined } }),
    'option pools is an object: expected at least one pool in it')
  for (const [given, said] of [[null, 'null'], [[], 'an array'], ['db', "'db'"]]) {
    refuses(t, () => checkPluginOptions({ pools: given }),
      `option pools is ${said}: expected an object with the options of each pool by its name`)
  }
  refuses(t, () => checkPluginOptions({ pools: { db: redis }, max: 3 }),
    'unknown option max: it belongs to a pool, pools.<name>.max')
  refuses(t, () => checkPluginOptions({ pools: { db: redis }, name: 'db' }),
    'unknown option name: beside pools, whose keys are the names')
  refuses(t, () => checkPluginOptions({ pools: { db: redis }, bodyGrases: 3 }),
    'unknown option bodyGrases: did you mean bodyGrace?')
})

t.test('the options must be an object', async (t) => {
  for (const [given, said] of [
    [undefined, 'missing'], [null, 'null'], ['redis', "'redis'"], [[], 'an array'], [() => {}, 'a function'],
  ]) {
    refuses(t, () => checkPluginOptions(given), `the options: given ${String(said)}: expected an object`)
  }
})

t.test("register's own options are Fastify's business", async (t) => {
  t.doesNotThrow(() => checkPluginOptions({ ...redis, prefix: '/v1', logLevel: 'warn', logSerializers: {} }))
  refuses(t, () => checkPluginOptions({ pools: { db: { ...redis, prefix: '/v1' } } }),
    "unknown option pools.db.prefix: the driver's own go into connection")
})

t.test("the plugin's own options: every wrong kind of value is refused", async (t) => {
  const own: Record<string, { takes: readonly Kind[], expected: string }> = {
    abortGrace: time,
    bodyGrace: time,
    replyGrace: time,
    lease: { takes: ['false', 'object'], expected: 'false or an object' },
    log: { takes: ['false', 'object'], expected: 'false or an object' },
  }
  for (const [option, { takes, expected }] of Object.entries(own)) {
    for (const kind of Object.keys(kinds) as Kind[]) {
      for (const options of [{ ...redis, [option]: kinds[kind] }, { pools: { db: redis }, [option]: kinds[kind] }]) {
        if (takes.includes(kind)) t.doesNotThrow(() => checkPluginOptions(options), `${option} takes ${kind}`)
        else {
          t.match(refusal(() => checkPluginOptions(options)).message,
            new RegExp(`^option ${option} is .*: expected ${expected}$`), kind)
        }
      }
    }
  }
})

t.test('log: a level or false for each event', async (t) => {
  const log = { connect: 'info', acquire: false, error: 'fatal', driver: 'trace' }
  t.strictSame(checkPluginOptions({ ...redis, log }).log, log)
  t.equal(checkPluginOptions({ ...redis, log: false }).log, false)
  for (const level of ['silent', true, 30, null]) {
    t.match(refusal(() => checkPluginOptions({ ...redis, log: { connect: level } })).message,
      /^option log\.connect is .*: expected 'fatal', 'error', 'warn', 'info', 'debug', 'trace' or false$/)
  }
})

t.test("a policy is the pool's over the plugin's over the default", async (t) => {
  const leases = (lease: unknown, own: unknown) => {
    const { pools } = checkPluginOptions({ lease, pools: { db: { ...redis, lease: own } } })
    t.strictSame(checkPluginOptions({ ...redis, lease }).pools.get('db')!.lease,
      checkPluginOptions({ ...redis, lease }).lease)
    return pools.get('db')!.lease
  }
  t.strictSame(leases(undefined, undefined), policy)
  t.strictSame(leases({ release: 'onSend' }, undefined), { ...policy, release: 'onSend' })
  t.strictSame(leases({ release: 'onSend' }, { acquire: 'manual' }),
    { ...policy, acquire: 'manual', release: 'onSend' })
  t.strictSame(leases({ release: 'onSend' }, { release: 'onResponse' }), policy)
  t.equal(leases(false, undefined), false)
  t.strictSame(leases(false, { acquire: 'preHandler' }), { ...policy, acquire: 'preHandler' })
  t.equal(leases({ acquire: 'manual' }, false), false)
  refuses(t, () => leases({ acquire: 'onSend' }, undefined),
    "option lease.acquire is 'onSend': expected 'onRequest', 'preHandler' or 'manual'")
  t.strictSame(leases({ transaction: true }, { role: 'primary' }), { ...policy, transaction: true, role: 'primary' })
  t.strictSame(leases({ transaction: true }, { transaction: { readOnly: true, commitOn: 'reply' } }),
    { ...policy, transaction: { readOnly: true, commitOn: 'reply' } })
  refuses(t, () => leases({ transaction: 'yes' }, undefined),
    "option lease.transaction is 'yes': expected true, false or an object")
  refuses(t, () => leases({ transaction: { commitOn: 'success', isolation: 'none' } }, undefined),
    "option lease.transaction.isolation is 'none': expected 'read uncommitted', 'read committed', 'repeatable read', 'serializable' or 'snapshot'")
  refuses(t, () => leases({ transaction: { readOnly: 1 } }, undefined),
    'option lease.transaction.readOnly is 1: expected true or false')
  refuses(t, () => leases({ transaction: { retry: 1 } }, undefined),
    'unknown option lease.transaction.retry: expected isolation, readOnly, commitOn or commitTimeout')
  refuses(t, () => leases(undefined, { role: 'reader' }),
    "option pools.db.lease.role is 'reader': expected 'primary' or 'replica'")
  refuses(t, () => leases(undefined, { release: 5 }),
    "option pools.db.lease.release is 5: expected 'onResponse' or 'onSend'")
})

// --- Names of pools --------------------------------------------------------------------------------------------------

t.test('the list of what a request has is what a real request has', async (t) => {
  const app = Fastify({ trustProxy: true })
  t.teardown(() => app.close())
  const found = new Set<string>()
  const schema = { querystring: { type: 'object', required: ['missing'] } }
  app.get('/', { schema, attachValidation: true }, async (request) => {
    for (let object: object = request; object !== Object.prototype; object = Object.getPrototypeOf(object)) {
      for (const name of Object.getOwnPropertyNames(object)) found.add(name)
    }
    return ''
  })
  await app.inject('/')
  for (const ours of ['acquire', 'afterCommit', 'afterRollback', 'lease', 'transaction']) found.add(ours)
  t.strictSame([...found].sort(), [...requestProperties].sort())
})

t.test('a pool can not have a name that a request or an object has already', async (t) => {
  for (const name of [...requestProperties, 'toString', 'hasOwnProperty', '__proto__', 'valueOf', '__defineGetter__']) {
    const pools = JSON.parse(`{ "${name}": { "backend": "redis" } }`)
    refuses(t, () => checkPluginOptions({ pools }),
      `a pool can't have the name '${name}': request.${name} is something else already. Give it another name.`)
    refuses(t, () => checkPluginOptions({ ...redis, name }),
      `a pool can't have the name '${name}': request.${name} is something else already. Give it another name.`)
  }
})

t.test("a pool's name is a name", async (t) => {
  for (const name of ['db', 'Cache', '_x', '$x', 'my-db', 'db2']) {
    t.ok(checkPluginOptions({ pools: { [name]: redis } })
      .pools.has(name), name)
  }
  for (const name of ['', '2db', '-db', 'a b', 'a.b', 'é']) {
    t.match(refusal(() => checkPluginOptions({ pools: { [name]: redis } })).message,
      /^option pools\.<name> is .*: expected a name of letters/)
    t.match(refusal(() => checkPluginOptions({ ...redis, name })).message,
      /^option name is .*: expected a name of letters/)
  }
})

// --- Routes ----------------------------------------------------------------------------------------------------------

t.test('config.pools: nothing said, none, exactly these, exactly these with a policy', async (t) => {
  for (const config of [undefined, {}, { pools: undefined }, { other: 1 }]) {
    t.equal(readRoutePools(config,
      'route GET /a'), undefined)
  }
  t.strictSame(readRoutePools({ pools: false }, ''), new Map())
  t.strictSame(readRoutePools({ pools: [] }, ''), new Map())
  t.strictSame(readRoutePools({ pools: {} }, ''), new Map())
  t.strictSame(readRoutePools({ pools: ['cache', 'db'] }, ''), new Map([['cache', {}], ['db', {}]]))
  t.strictSame(readRoutePools({ pools: deepFreeze({ db: true, cache: { acquire: 'manual' }, x: {}, y: undefined }) }, ''),
    new Map<string, object>([['db', {}], ['cache', { acquire: 'manual' }], ['x', {}]]))
})

t.test('config.pools: errors name the route', async (t) => {
  const refused = (pools: unknown, message: string) =>
    refuses(t, () => readRoutePools({ pools }, 'route GET /a'), `route GET /a: ${message}`)
  for (const [given, said] of [[true, 'true'], [null, 'null'], ['db', "'db'"], [5, '5']]) {
    refused(given,
      `option config.pools is ${said}: expected false, an array of names, or an object with a policy for each name`)
  }
  for (const [given, said] of [[false, 'false'], [null, 'null'], ['manual', "'manual'"], [[], 'an array']]) {
    refused({ db: given },
      `option config.pools.db is ${said}: expected true or a policy (a route leases exactly the pools that it names)`)
  }
  refused({ db: { acquire: 'later' } },
    "option config.pools.db.acquire is 'later': expected 'onRequest', 'preHandler' or 'manual'")
  refused({ db: { relase: 'onSend' } }, 'unknown option config.pools.db.relase: did you mean release?')
  refused({ db: { transaction: { commit: true } } },
    'unknown option config.pools.db.transaction.commit: did you mean commitOn?')
  refused(['db', 5], "option config.pools.1 is 5: expected a name of letters, digits, '_', '$' and '-', a letter first")
  // eslint would call a hole in a literal a slip; so does the check.
  refused(new Array(1),
    "option config.pools.0 is missing: expected a name of letters, digits, '_', '$' and '-', a letter first")
})

// --- Secrets ---------------------------------------------------------------------------------------------------------

t.test('no message shows a secret, wherever it was put by mistake', async (t) => {
  const secret = 'hunter2xyz'
  const url = `redis://:${secret}@127.0.0.1`
  const places: unknown[] = [
    url,
    [url],
    ...['backend', 'connector', 'host', 'port', 'database', 'connection', 'max', 'startup', 'backoff', 'reset', 'lease',
      'onConnect', 'maxx', 'name', 'log', url]
      .map((option) => ({ [option]: url })),
    { ...redis, url, host: 'a' },
    { ...redis, url: [secret] },
    { ...redis, url: Buffer.from(secret) },
    { ...redis, url: () => secret },
    { ...redis, connection: secret },
    { ...redis, connection: [secret] },
    { ...redis, connection: () => secret },
    { ...redis, connection: { password: secret }, max: 0 },
    { ...redis, url, max: 0 },
    { ...redis, targets: [{ url, max: 0 }] },
    { ...redis, targets: [{ url }, url] },
    { ...redis, targets: [{ url, host: 'a' }] },
    { ...redis, targets: [{ url, name: url }] },
    { ...redis, targets: [{ connection: secret }] },
    { ...redis, circuit: url, sticky: url, balance: url, bulkhead: url },
    { ...redis, password: secret },
    { ...redis, lease: { [url]: 1 } },
  ]
  for (const options of places) {
    for (const check of [
      () => checkPluginOptions(options),
      () => checkPluginOptions({ pools: { db: options } }),
      () => checkPluginOptions({ pools: options }),
    ]) {
      const error = refusal(() => { check(); throw new PoolError('FST_POOL_BAD_OPTIONS', 'fine') })
      t.notOk(`${error.message} ${error.stack} ${JSON.stringify(error)}`.includes(secret), error.message)
    }
  }
  t.match(refusal(() => checkPoolOptions({ ...redis, url: 12345 }, 'pools.db')).message,
    /^option pools\.db\.url is a number: expected/)
  t.match(refusal(() => checkPoolOptions({ ...redis, connection: 12345 }, '')).message,
    /^option connection is a number: expected/)
  t.match(refusal(() => checkPoolOptions({ ...redis, connection: 'x' }, '')).message,
    /^option connection is a text: expected/)
})

// --- Types and schemas -----------------------------------------------------------------------------------------------

t.test('the schemas are JSON, but for the functions that they describe', async (t) => {
  for (const schema of [poolOptionsSchema, pluginOptionsSchema]) {
    t.strictSame(JSON.parse(JSON.stringify(schema)),
      schema)
  }
})

t.test('the types say what the check says', async (t) => {
  const good: PoolOptions[] = [
    { backend: 'redis', max: 3, backoff: { min: 1 }, lease: { acquire: 'manual' }, host: undefined },
    { connector, onConnect (connection) { return connection } },
    {
      backend: 'redis', url: async () => 'redis://a', connection: () => ({ tls: {} }), circuit: false, overload: false,
    },
    { backend: 'redis', circuit: { failures: 3 }, bulkhead: { key: ({ headers }) => headers.host, max: 2 } },
    {
      backend: 'redis',
      targets: [{ url: 'redis://a' },
        { host: 'b', role: 'replica', weight: 2 }],
      balance: 'least-used',
      sticky: { key: ({ id }) => id },
      stickyFor: 10,
      maxLag: 5
    },
    { targets: [{ connector, name: 'a' }, { connector }] },
    {
      connector: { ...connector, create: async () => ({ bind: 1 }) },
      onConnect (connection: { bind: number },
        info) { return [connection.bind, info.uses] }
    },
  ]
  const bad: PoolOptions[] = [
    // @ts-expect-error neither a backend nor a connector
    { max: 3 },
    // @ts-expect-error both
    { backend: 'redis', connector },
    // @ts-expect-error unknown
    { backend: 'redis', maxx: 3 },
    // @ts-expect-error of the wrong type
    { backend: 'redis', max: '3' },
    // @ts-expect-error not one of the three
    { backend: 'redis', reset: 'all' },
    // @ts-expect-error its own connector beside a backend
    { backend: 'redis', targets: [{ url: 'redis://a', connector }] },
    // @ts-expect-error neither a backend nor a connector of its own
    { targets: [{ url: 'redis://a' }] },
    // @ts-expect-error beside a connector
    { connector, targets: [{ connector }] },
    // @ts-expect-error without max
    { backend: 'redis', bulkhead: { key: () => 'a' } },
    // @ts-expect-error not one of the four
    { backend: 'redis', targets: [{ url: 'redis://a' }], balance: 'fair' },
    // @ts-expect-error it is an object, or false
    { backend: 'redis', circuit: true },
  ]
  for (const options of good) t.doesNotThrow(() => checkPoolOptions(options, ''))
  for (const options of bad) t.throws(() => checkPoolOptions(options, ''), { code: 'FST_POOL_BAD_OPTIONS' })
})
