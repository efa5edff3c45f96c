// The options of the plugin, of its pools and of routes: schemas, defaults and the check. Their types: types/plugin.ts.
import type { Connector, TargetRole } from '../../types/connector.js'
import type { Balance } from '../../types/options.js'
import type {
  Backend, BulkheadOptions, CommonPluginOptions, DriverOption, HealthRoutes, LogLevel, OtelOptions, Policy,
  PrometheusOptions, StickyOptions, StoryLine, TenantRules,
} from '../../types/plugin.js'
import type { PoolEventName } from '../../types/pool.js'
import { catalogue } from '../backends/catalogue.js'
import { balances } from '../balance/choice.js'
import { PoolError, badOption } from '../engine/errors.js'
import type { KeyOf } from './rules/keys.js'
import {
  addressProperties, checkAddress, checkReset, checkTogether, connectorSchema, engineProperties, hookProperties, seal,
  type ResolvedEngineOptions,
} from '../pool/options.js'
import {
  deadlineOnly, expected, isObject, isValid, join, nameSchema, optionalFunction, read, readAll, readObject, time,
  timeOnly, type ObjectSchema, type Options, type Properties,
} from '../pool/schema.js'

// --- Schemas ---------------------------------------------------------------------------------------------------------

export const policyProperties = {
  acquire: { enum: ['onRequest', 'preHandler', 'manual'] },
  release: { enum: ['onResponse', 'onSend'] },
  transaction: {
    anyOf: [{ type: 'boolean' }, {
      type: 'object',
      properties: {
        isolation: { enum: ['read uncommitted', 'read committed', 'repeatable read', 'serializable', 'snapshot'] },
        readOnly: { type: 'boolean' },
        commitOn: { enum: ['success', 'reply'] },
        commitTimeout: timeOnly,
      },
      additionalProperties: false,
    }],
  },
  role: { enum: ['primary', 'replica'] },
  holdTimeout: timeOnly,
} as const

const policySchema = { type: 'object', properties: policyProperties, additionalProperties: false } as const
const policyOrFalse = { anyOf: [{ const: false }, policySchema] } as const

/** Of a pool over several servers. */
export const balanceProperties = {
  balance: { enum: balances },
  maxLag: deadlineOnly,
  checkInterval: deadlineOnly,
  sticky: {
    type: 'object',
    properties: {
      cookie: { type: 'string', minLength: 1, title: 'the name of a cookie' },
      header: { type: 'string', minLength: 1, title: 'the name of a header' },
      key: optionalFunction,
    },
    additionalProperties: false,
  },
  stickyFor: deadlineOnly,
  affinity: optionalFunction,
  discover: { enum: ['dns'] },
} as const

const driverProperties = {
  // What it may be depends on the backend, which says so itself.
  driver: {
    anyOf: [optionalFunction, { anyOf: [{ enum: ['better-sqlite3', 'libsql', 'node:sqlite'] }, { type: 'object' }] }],
    title: "the driver's module or class, or of sqlite 'better-sqlite3', 'libsql' or 'node:sqlite'",
  },
} as const

export const targetProperties = {
  name: nameSchema,
  ...addressProperties,
  // Without a default: what a target leaves out is the pool's.
  connection: { anyOf: addressProperties.connection.anyOf, title: addressProperties.connection.title },
  role: { enum: ['primary', 'replica', 'peer'] },
  weight: { type: 'number', exclusiveMinimum: 0, title: 'a number above 0' },
  ...driverProperties,
  max: { type: 'integer', minimum: 1 },
} as const

const targetSchema = {
  type: 'object', properties: { connector: connectorSchema, ...targetProperties }, additionalProperties: false,
} as const

/** Of a pool per tenant. */
export const tenantProperties = {
  key: optionalFunction,
  options: optionalFunction,
  maxPools: { type: 'integer', minimum: 1 },
  idlePoolTimeout: deadlineOnly,
  maxTotal: { type: 'integer', minimum: 1 },
  showKeys: { type: 'boolean' },
} as const

export const backendSchema = { enum: Object.keys(catalogue) as unknown as readonly [Backend, ...Backend[]] }

export const poolProperties = {
  backend: backendSchema,
  connector: connectorSchema,
  targets: { type: 'array', minItems: 1, items: targetSchema, title: 'a list of at least one target' },
  ...driverProperties,
  appName: { type: 'string', minLength: 1, title: 'a text that is not empty' },
  ...engineProperties,
  ...hookProperties,
  lease: policyOrFalse,
  bulkhead: {
    type: 'object',
    required: ['key', 'max'],
    properties: { key: optionalFunction, max: { type: 'integer', minimum: 1 } },
    additionalProperties: false,
    title: 'an object with key and max',
  },
  ...balanceProperties,
  ...tenantProperties,
} as const

const pathSchema = { type: 'string', pattern: '^/', title: "a path that begins with '/'" } as const
const level = { enum: ['fatal', 'error', 'warn', 'info', 'debug', 'trace', false] } as const

const healthRoutesSchema = {
  type: 'object',
  properties: {
    live: pathSchema,
    ready: pathSchema,
    downIs503: { type: 'array', items: nameSchema, title: "a list of pools' names" },
  },
  additionalProperties: false,
} as const

export const pluginProperties = {
  lease: policyOrFalse,
  abortGrace: time(5000),
  bodyGrace: time(1000),
  replyGrace: time(1000),
  healthRoutes: { anyOf: [{ type: 'boolean' }, healthRoutesSchema], default: false },
  otel: {
    anyOf: [{ type: 'boolean' }, {
      type: 'object', properties: { meter: { type: 'object' } }, additionalProperties: false,
    }],
    default: false,
  },
  prometheus: {
    anyOf: [{ type: 'boolean' }, {
      type: 'object', properties: { register: { type: 'object' } }, additionalProperties: false,
    }],
    default: false,
  },
  serverTiming: { type: 'boolean', default: false },
  log: {
    anyOf: [{ const: false }, {
      type: 'object',
      properties: {
        connect: level,
        disconnect: level,
        acquire: level,
        release: level,
        wait: level,
        overflow: level,
        timeout: level,
        refuse: level,
        leak: level,
        unleak: level,
        hold: level,
        overdue: level,
        error: level,
        circuit: level,
        failover: level,
        lag: level,
        driver: level,
        open: level,
        drain: level,
        close: level,
        'pool.open': level,
        'pool.exhausted': level,
        'pool.exhausted.end': level,
        'pool.down': level,
        'pool.up': level,
        'pool.died': level,
        'pool.leak': level,
        'pool.leak.end': level,
        'pool.leak.taken': level,
        'pool.hold': level,
        'pool.overdue': level,
        'pool.deadlock': level,
        'pool.lag': level,
        'pool.failover': level,
        'pool.limit': level,
        'pool.limit.end': level,
        'pool.closing': level,
        'pool.error': level,
        'pool.advice': level,
      } satisfies Record<PoolEventName | StoryLine, { readonly enum: readonly LogLevel[] }>,
      additionalProperties: false,
    }],
    default: {},
  },
} as const

/**
 * One pool's options, as a JSON Schema (with TypeBox's `type: 'function'`). What one option says about another is not
 * in it.
 */
export const poolOptionsSchema: ObjectSchema = {
  type: 'object', properties: poolProperties, additionalProperties: false,
}

/**
 * The plugin's options, as a JSON Schema (with TypeBox's `type: 'function'`). What one option says about another is not
 * in it.
 */
export const pluginOptionsSchema: { readonly anyOf: readonly [ObjectSchema, ObjectSchema] } = {
  anyOf: [{
    type: 'object',
    properties: {
      pools: { type: 'object', minProperties: 1, additionalProperties: poolOptionsSchema }, ...pluginProperties,
    },
    required: ['pools'],
    additionalProperties: false,
  }, {
    type: 'object',
    properties: { name: nameSchema, ...poolProperties, ...pluginProperties },
    additionalProperties: false,
  }],
}

// --- Checked options -------------------------------------------------------------------------------------------------

/** One server of a pool over several: checked, complete and frozen. */
export interface ResolvedTarget<C = unknown> {
  readonly name: string
  readonly role: TargetRole
  readonly weight: number
  readonly max: number
  readonly connector?: Connector<C>
  /** The options of a pool of this target alone: the pool's own, with the target's address. */
  readonly options: ResolvedPoolOptions<C>
}

/** One pool's options: checked, complete and frozen. */
export interface ResolvedPoolOptions<C = unknown> extends ResolvedEngineOptions<C> {
  readonly backend?: Backend
  /** The driver option as it was given. */
  readonly driver?: NonNullable<DriverOption['driver']>
  readonly appName?: string
  /** The connector option: the very object that was given. */
  readonly connector?: Connector<C>
  /** The whole policy: the pool's own over the plugin's. */
  readonly lease: Policy | false
  readonly targets?: ReadonlyArray<ResolvedTarget<C>>
  readonly balance: Balance
  /** In ms, or bytes of Redis; Infinity: no limit. */
  readonly maxLag: number
  readonly checkInterval: number
  readonly bulkhead?: BulkheadOptions
  readonly sticky?: StickyOptions
  readonly stickyFor: number
  readonly affinity?: KeyOf
  readonly discover?: 'dns'
  /** Where each tenant has a pool. */
  readonly tenants?: ResolvedTenants
}

/** A pool per tenant: checked, complete and frozen. */
export interface ResolvedTenants {
  readonly key: KeyOf
  /**
   * The options of a tenant's pool: what the app gives, over those of all.
   *
   * @throws what the app's function throws; `FST_POOL_BAD_OPTIONS`
   */
  optionsOf (key: string): Promise<ResolvedPoolOptions>
  readonly maxPools: number
  readonly idlePoolTimeout: number
  readonly maxTotal: number | undefined
  readonly showKeys: boolean
  readonly acquireTimeout: number
}

/** The plugin's options: checked, complete and frozen. */
export interface ResolvedPluginOptions {
  /** In the order in which they were given. */
  readonly pools: ReadonlyMap<string, ResolvedPoolOptions>
  readonly lease: Policy | false
  readonly abortGrace: number
  readonly bodyGrace: number
  readonly replyGrace: number
  readonly healthRoutes: boolean | HealthRoutes
  readonly otel: boolean | OtelOptions
  readonly prometheus: boolean | PrometheusOptions
  readonly serverTiming: boolean
  /** Only what was given; lib/fastify/log/levels.ts has the defaults. */
  readonly log: false | Readonly<NonNullable<Exclude<CommonPluginOptions['log'], false>>>
}

/** The pools that a route leases, each with what the route says about it. */
export type ResolvedRoutePools = ReadonlyMap<string, Partial<Policy>>

const tenantDefaults = Object.freeze({ maxPools: 100, idlePoolTimeout: 600_000, maxTotal: undefined, showKeys: false })
const balanceDefaults = Object.freeze({ balance: 'weighted', maxLag: Infinity, checkInterval: 1000, stickyFor: 5000 })
export const defaultPolicy: Policy = Object.freeze({
  acquire: 'onRequest', release: 'onResponse', transaction: false,
})

// --- Names -----------------------------------------------------------------------------------------------------------

/** What a request has already, so that no pool can have such a name. Fastify's own, then ours. */
export const requestProperties: ReadonlySet<string> = new Set([
  'body', 'compileValidationSchema', 'constructor', 'getDecorator', 'getValidationFunction', 'headers', 'host',
  'hostname', 'id', 'ip', 'ips', 'is404', 'log', 'mediaType', 'method', 'originalUrl', 'params', 'port', 'protocol',
  'query', 'raw', 'routeOptions', 'server', 'setDecorator', 'signal', 'socket', 'url', 'validateInput',
  'validationError',
  'acquire', 'afterCommit', 'afterRollback', 'lease', 'transaction',
])

/** Fastify's own options of `register`: it leaves them in the plugin's options. */
const registerOptions: ReadonlySet<string> = new Set(['prefix', 'logLevel', 'logSerializers'])

/**
 * @param path where the name was given
 * @throws `FST_POOL_BAD_OPTIONS`: no pool of a request can have that name
 */
export function checkRequestName (name: unknown, path = 'name'): asserts name is string {
  if (!isValid(nameSchema, name)) throw badOption(path, name, nameSchema.title)
  if (requestProperties.has(name as string) || name as string in Object.prototype) {
    throw new PoolError('FST_POOL_BAD_OPTIONS', `a pool can't have the name '${String(name)}': ` +
      `request.${String(name)} is something else already. Give it another name.`)
  }
}

// --- The check -------------------------------------------------------------------------------------------------------

/**
 * One pool's options, complete and frozen; what is given stays as it is.
 *
 * @param path how the user gets there: 'pools.db', or '' where the options are the plugin's own
 * @throws `FST_POOL_BAD_OPTIONS`, for the first thing that is wrong
 */
export function checkPoolOptions<C = unknown> (
  options: unknown, path: string, { name = 'db', lease = defaultPolicy }: { name?: string, lease?: Policy | false } = {}
): ResolvedPoolOptions<C> {
  const given = readObject(poolProperties, options, path)
  const tenants = readTenants(given, path, { name, lease })
  if (tenants !== undefined) return tenants as ResolvedPoolOptions<C>
  const { lease: own, targets, ...result } = readAll(poolProperties, given, path)
  if (given.backend === undefined && given.connector === undefined && targets === undefined) {
    throw badOption(join(path, 'backend'), undefined, `${expected(backendSchema)}, or a connector or targets instead`)
  }
  for (const other of ['backend', 'targets']) {
    if (given[other] === undefined || given.connector === undefined) continue
    throw badOption(join(path, 'connector'), given.connector, `none beside ${other}`)
  }
  for (const key of ['driver', 'appName']) {
    if (given[key] !== undefined && given.backend === undefined) {
      throw badOption(join(path, key), given[key], 'none without backend')
    }
  }
  if (given.backend !== undefined) {
    const { adapt, system = given.backend } = catalogue[given.backend as Backend]
    adapt?.(result, given, path)
    checkReset(result, system, path)
  } else if (given.connector !== undefined) checkReset(result, (given.connector as { system?: unknown }).system, path)
  checkTogether(result, given, path)
  checkSticky(result, path)
  const policy = own === undefined ? lease : mergePolicy(own, lease)
  const complete: Options = { ...balanceDefaults, ...result, name, lease: policy }
  if (targets !== undefined || (complete.discover !== undefined && given.connector === undefined)) {
    const read = Object.freeze(readTargets({ ...given, targets }, complete, path))
    checkPeers(read, given, path)
    return seal<ResolvedPoolOptions<C>>({ ...complete, targets: read })
  }
  for (const key of Object.keys(balanceProperties)) {
    if (given[key] !== undefined) throw badOption(join(path, key), given[key], 'none without targets')
  }
  return seal<ResolvedPoolOptions<C>>(complete)
}

/** What is of all tenants together. */
const notOfOne = [
  'key', 'options', 'lease', 'startup', 'maxPools', 'bulkhead', 'sticky', 'stickyFor', 'affinity',
] as const

const anyConnector: Connector<unknown> = { system: 'other', create: async () => ({}), destroy: () => {} }

/**
 * A pool per tenant. The options of all are checked as those of one pool, though what each adds is not there yet.
 *
 * @returns undefined: it is one pool for all
 */
function readTenants (given: Options, path: string, named: { name: string, lease: Policy | false }): unknown {
  if (given.key === undefined) {
    for (const name of Object.keys(tenantProperties)) {
      if (given[name] !== undefined) throw badOption(join(path, name), given[name], 'none without key')
    }
    return undefined
  }
  if (given.options === undefined) throw badOption(join(path, 'options'), undefined, 'a function beside key')
  for (const name of ['connector', 'targets', 'bulkhead', 'startup', ...Object.keys(balanceProperties)]) {
    if (given[name] !== undefined) throw badOption(join(path, name), given[name], 'none beside key')
  }
  if (given.maxTotal !== undefined && given.backend === 'sqlite') {
    throw badOption(join(path, 'maxTotal'), given.maxTotal, 'none, since sqlite has files and no server')
  }
  const isOwn = (name: string) => Object.hasOwn(tenantProperties, name)
  const common = Object.fromEntries(Object.entries(given).filter(([name]) => !isOwn(name)))
  // Without a backend, each tenant brings a connector.
  const bare = given.backend === undefined ? { ...common, connector: anyConnector } : common
  const base = checkPoolOptions(bare, path, named)
  const rules = Object.fromEntries(Object.entries(given).filter(([name, value]) => isOwn(name) && value !== undefined))
  const { key, options, ...limits } = readAll(tenantProperties, rules, path) as unknown as
    Required<TenantRules> & { maxTotal?: number }
  const where = join(path, 'options(key)')
  const optionsOf = async (key: string) => {
    const own: unknown = await options(key)
    if (!isObject(own)) throw badOption(where, own, 'an object')
    for (const name of notOfOne) {
      if (own[name] !== undefined) throw badOption(`${where}.${name}`, own[name], 'none for one tenant')
    }
    if (limits.maxTotal !== undefined && own.targets !== undefined) {
      throw badOption(`${where}.targets`, own.targets, 'none beside maxTotal')
    }
    return checkPoolOptions({ ...common, startup: 'lazy', ...own }, where, named)
  }
  const { acquireTimeout } = base
  const tenants = Object.freeze({ ...tenantDefaults, ...limits, key, optionsOf, acquireTimeout })
  const { connector: _any, ...all } = base
  return Object.freeze({ ...all, startup: 'lazy', tenants })
}

/**
 * Peers are equal, and what is about roles says nothing of them.
 *
 * @throws `FST_POOL_BAD_OPTIONS`
 */
function checkPeers (targets: readonly ResolvedTarget[], given: Options, path: string): void {
  const index = targets.findIndex(({ role }) => role !== 'peer')
  if (index < 0) {
    for (const [name, instead] of [['sticky', ': see affinity'], ['stickyFor', ''], ['maxLag', '']]) {
      if (given[name!] === undefined) continue
      throw badOption(join(path, name!), given[name!], `none beside peers, which have no replicas${instead}`)
    }
    return
  }
  if (targets.some(({ role }) => role === 'peer')) {
    throw badOption(join(path, `targets.${index}.role`), targets[index]!.role,
      "'peer' like the others: peers are equal, and can't be mixed with a primary and its replicas")
  }
  if (given.affinity !== undefined) {
    throw badOption(join(path, 'affinity'), given.affinity, "none unless the targets are peers (role: 'peer')")
  }
}

/** The targets of a pool, each with the options of a pool of its own; without any, its own address is one of peers. */
function readTargets (given: Options, pool: Options, path: string): ResolvedTarget[] {
  const { targets = [{ role: 'peer' }] } = given as { readonly targets?: readonly Options[] }
  const names = new Set<string>()
  const noTargets = pool.backend === undefined ? undefined : catalogue[pool.backend as Backend].noTargets
  if (noTargets !== undefined) {
    if (given.targets === undefined) throw badOption(join(path, 'discover'), given.discover, noTargets)
    throw badOption(join(path, 'targets'), targets, noTargets)
  }
  if (pool.max as number < targets.length) {
    throw badOption(join(path, 'max'), pool.max, `at least one connection for each of the ${targets.length} targets`)
  }
  return targets.map((target, index) => {
    const where = join(path, `targets.${index}`)
    const { connector, role = 'primary', weight = 1, max = pool.max, ...rest } = target
    const { name = `${String(role)}-${index}`, ...address } = rest
    if (names.has(name as string)) throw badOption(join(where, 'name'), name, 'a name that no other target has')
    names.add(name as string)
    if (pool.backend !== undefined && connector !== undefined) {
      throw badOption(join(where, 'connector'), connector, 'none beside backend')
    }
    if (pool.backend === undefined && target.driver !== undefined) {
      throw badOption(join(where, 'driver'), target.driver, 'none without backend')
    }
    if (pool.backend === undefined && connector === undefined) {
      throw badOption(join(where, 'connector'), undefined, connectorSchema.title)
    }
    checkAddress(target, where)
    // An address is of one piece: a host of the target's own is not looked up at the pool's url.
    const { url: _url, host: _host, port: _port, ...common } = pool
    const own = ['url', 'host', 'port'].some((key) => address[key] !== undefined)
    const made = connector === undefined ? {} : { connector }
    const options = seal<ResolvedPoolOptions>({ ...(own ? common : pool), ...address, ...made, max })
    return Object.freeze({ name, role, weight, max, ...made, options }) as unknown as ResolvedTarget
  })
}

/** @throws `FST_POOL_BAD_OPTIONS` */
function checkSticky ({ sticky }: Options, path: string): void {
  if (sticky === undefined || Object.keys(sticky as object).length === 1) return
  throw badOption(join(path, 'sticky'), sticky, 'one of cookie, header and key')
}

/**
 * The plugin's options, complete and frozen; what is given stays as it is.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, for the first thing that is wrong
 */
export function checkPluginOptions (options: unknown): ResolvedPluginOptions {
  if (!isObject(options)) throw badOption('', options, 'an object')
  // Without a prototype, so that '__proto__' is a name like any other: an unknown one.
  const own: Record<string, unknown> = Object.create(null)
  for (const key in options) if (!registerOptions.has(key)) own[key] = options[key]
  return own.pools === undefined ? checkOnePool(own) : checkPoolMap(own)
}

function checkPoolMap (options: Options): ResolvedPluginOptions {
  for (const key in options) {
    if (options[key] === undefined || key === 'pools' || Object.hasOwn(pluginProperties, key)) continue
    const why = key === 'name' ? 'beside pools, whose keys are the names' : `it belongs to a pool, pools.<name>.${key}`
    if (key !== 'name' && !Object.hasOwn(poolProperties, key)) continue
    throw new PoolError('FST_POOL_BAD_OPTIONS', `unknown option ${key}: ${why}`)
  }
  const { pools: map, ...rest } = readObject({ pools: {}, ...pluginProperties }, options, '')
  const plugin = readPlugin(rest)
  if (!isObject(map)) throw badOption('pools', map, 'an object with the options of each pool by its name')
  const pools = new Map<string, ResolvedPoolOptions>()
  for (const name in map) {
    if (map[name] === undefined) continue
    checkRequestName(name, 'pools.<name>')
    pools.set(name, checkPoolOptions(map[name], `pools.${name}`, { name, lease: plugin.lease }))
  }
  if (pools.size === 0) throw badOption('pools', map, 'at least one pool in it')
  return Object.freeze({ ...plugin, pools })
}

function checkOnePool (options: Options): ResolvedPluginOptions {
  const given = readObject({ pools: {}, name: nameSchema, ...pluginProperties, ...poolProperties }, options, '')
  const part = (properties: Properties) =>
    Object.fromEntries(Object.entries(given).filter(([key]) => Object.hasOwn(properties, key)))
  const plugin = readPlugin(part(pluginProperties))
  const { name = 'db' } = given
  checkRequestName(name, 'name')
  const { lease: _, ...pool } = part(poolProperties)
  const checked = checkPoolOptions(pool, '', { name, lease: plugin.lease })
  return Object.freeze({ ...plugin, pools: new Map([[name, checked]]) })
}

function readPlugin (given: Options): Omit<ResolvedPluginOptions, 'pools'> {
  const { lease = {}, ...rest } = readAll(pluginProperties, given, '')
  return { ...rest, lease: mergePolicy(lease, defaultPolicy) } as Omit<ResolvedPluginOptions, 'pools'>
}

/**
 * A route's `config.pools`, in one form: `undefined` where the route says nothing, an empty map where it wants none.
 * Whether pools of those names exist is not asked.
 *
 * @param config the route's `config`
 * @param where 'route GET /a': errors begin with it
 * @throws `FST_POOL_BAD_OPTIONS`
 */
export function readRoutePools (config: unknown, where: string): ResolvedRoutePools | undefined {
  const pools = isObject(config) ? config.pools : undefined
  if (pools === undefined) return undefined
  if (pools === false) return new Map()
  const path = 'config.pools'
  try {
    if (Array.isArray(pools)) {
      return new Map(Array.from(pools, (name, index) => [read(nameSchema, name, `${path}.${index}`) as string, {}]))
    }
    if (!isObject(pools)) {
      throw badOption(path, pools, 'false, an array of names, or an object with a policy for each name')
    }
    const result = new Map<string, Partial<Policy>>()
    for (const name in pools) {
      const policy = pools[name]
      if (policy === undefined) continue
      if (policy !== true && !isObject(policy)) {
        throw badOption(join(path, name), policy, 'true or a policy (a route leases exactly the pools that it names)')
      }
      result.set(name, policy === true ? {} : read(policySchema, policy, join(path, name)) as Partial<Policy>)
    }
    return result
  } catch (error) {
    if (!(error instanceof PoolError)) throw error
    throw new PoolError(error.code, `${where}: ${error.message}`)
  }
}

function mergePolicy (own: unknown, outer: Policy | false): Policy | false {
  if (own === false) return false
  return Object.freeze({ ...(outer === false ? defaultPolicy : outer), ...own as Partial<Policy> })
}
