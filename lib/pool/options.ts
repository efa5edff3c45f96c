// The options of one pool without Fastify: schemas, defaults and the check. Their types: types/options.ts.
import type { Connector } from '../../types/connector.js'
import type { Address, Backoff, CircuitOptions, EngineNumbers, PoolHooks } from '../../types/options.js'
import { badOption } from '../engine/errors.js'
import { unjoined } from '../engine/settings.js'
import {
  deadline, join, nameSchema, optionalFunction, read, readAll, readObject, time, type Options,
} from './schema.js'

// --- Schemas ---------------------------------------------------------------------------------------------------------

export const addressProperties = {
  // What the functions return has no word in a schema: `Address` says it.
  url: {
    anyOf: [optionalFunction, { type: 'string', minLength: 1 }],
    title: 'a text that is not empty, or a function that returns one',
  },
  host: { type: 'string', pattern: '^[^\\s@]+$', title: 'a host name, nothing else' },
  port: { type: 'integer', minimum: 1, maximum: 65535 },
  database: {
    anyOf: [{ type: 'string', minLength: 1 }, { type: 'integer', minimum: 0 }],
    title: 'a text that is not empty, or the number of a database of Redis',
  },
  connection: {
    anyOf: [optionalFunction, { type: 'object' }],
    default: Object.freeze({}),
    title: 'an object, or a function that returns one',
  },
} as const

/** A member with the default `{}` gets the defaults of its own members. */
export const engineProperties = {
  ...addressProperties,
  min: { type: 'integer', minimum: 0, default: 0 },
  max: { type: 'integer', minimum: 1, default: 10 },
  startup: { enum: ['require', 'warm', 'lazy'], default: 'require' },
  acquireTimeout: deadline(5000),
  connectTimeout: deadline(3000),
  validateTimeout: deadline(1000),
  resetTimeout: deadline(1000),
  destroyTimeout: deadline(2000),
  commitTimeout: time(5000),
  holdTimeout: time(60_000),
  closeTimeout: deadline(8000),
  idleTimeout: time(60_000),
  maxLifetime: time(1_800_000),
  maxUses: { type: 'integer', minimum: 0, default: 0 },
  validateAfter: time(1000),
  keepalive: time(0),
  maxPending: { type: 'integer', minimum: 0, default: 1000 },
  maxConnecting: { type: 'integer', minimum: 1 },
  leakAfter: time(0),
  backoff: {
    type: 'object',
    properties: {
      min: deadline(50),
      max: deadline(1000),
    },
    additionalProperties: false,
    default: {},
  },
  circuit: {
    anyOf: [{ const: false }, {
      type: 'object',
      properties: {
        failures: { type: 'integer', minimum: 1, default: 5 },
        rate: {
          type: 'number', exclusiveMinimum: 0, exclusiveMaximum: 1, default: 0.5, title: 'a number between 0 and 1',
        },
        sample: { type: 'integer', minimum: 1, default: 20 },
        after: time(1000),
        openFor: deadline(500),
      },
      additionalProperties: false,
    }],
    default: {},
  },
  overload: { type: 'boolean', default: true },
  allowExitOnIdle: { type: 'boolean', default: true },
  reset: { enum: ['session', 'transaction', 'none', 'joined'], default: 'session' },
} as const

export const hookProperties = {
  onConnect: optionalFunction,
  onAcquire: optionalFunction,
  onRelease: optionalFunction,
  onDisconnect: optionalFunction,
  wrap: optionalFunction,
} as const

export const connectorSchema = {
  type: 'object',
  required: ['system', 'create', 'destroy'],
  properties: {
    system: { type: 'string', minLength: 1, title: "a text, such as 'ldap'" },
    create: optionalFunction,
    destroy: optionalFunction,
    validate: optionalFunction,
    isBroken: optionalFunction,
    reset: optionalFunction,
    onDeath: optionalFunction,
    describe: optionalFunction,
    onDriverEvent: optionalFunction,
    handOver: optionalFunction,
    close: optionalFunction,
    transactions: {
      type: 'object',
      required: ['isolation', 'readOnly', 'begin', 'isTransient'],
      properties: {
        isolation: { type: 'array', title: 'a list of levels' },
        readOnly: { type: 'boolean' },
        begin: optionalFunction,
        isTransient: optionalFunction,
      },
      title: 'an object with isolation, readOnly, begin and isTransient',
    },
    replica: { type: 'object', title: 'another connector' },
    isTransient: optionalFunction,
    isPermanent: optionalFunction,
    isIdleTimeout: optionalFunction,
    kindOf: optionalFunction,
    inspect: optionalFunction,
    max: { type: 'integer', minimum: 1 },
    secrets: { type: 'array', title: 'a list of texts' },
  },
  title: 'an object with system, create and destroy',
} as const

// --- The check -------------------------------------------------------------------------------------------------------

/** What a check leaves: every option is there. */
export type Complete<T> = { readonly [K in keyof T]-?: Exclude<T[K], undefined> }

/** One pool's options: checked, complete and frozen. */
export interface ResolvedEngineOptions<C = unknown>
  extends Complete<Omit<EngineNumbers, 'maxConnecting' | 'backoff' | 'circuit'>>,
  Readonly<Omit<Address, 'connection'>>, Readonly<PoolHooks<C>> {
  readonly name: string
  /** The very object, or function, that was given. */
  readonly connection: NonNullable<Address['connection']>
  /** undefined: `max`. */
  readonly maxConnecting?: number | undefined
  readonly backoff: Complete<Backoff>
  readonly circuit: false | Complete<CircuitOptions>
}

/** The options that a check made: `new Pool`, which checks for itself, takes them as they are. */
const checked = new WeakSet<object>()

/** The schemas' defaults. `maxConnecting` follows `max`; a backend may have others (lib/backends/catalogue.ts). */
export const poolDefaults =
  Object.freeze(readAll(engineProperties, {}, '')) as unknown as Omit<ResolvedEngineOptions, 'name'>

/**
 * The options of `new Pool(connector, options)`. Those that `seal` has marked are taken as they are.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, for the first thing that is wrong
 */
export function checkEngineOptions<C = unknown> (connector: unknown, options: unknown): ResolvedEngineOptions<C> {
  read(connectorSchema, connector, 'connector')
  if (typeof options === 'object' && options !== null && checked.has(options)) {
    checkReset(options as Options, (connector as Connector<C>).system, '')
    return options as ResolvedEngineOptions<C>
  }
  const properties = { name: { ...nameSchema, default: 'db' }, ...engineProperties, ...hookProperties }
  const given = readObject(properties, options, '')
  const result = readAll(properties, given, '')
  checkTogether(result, given, '')
  checkReset(result, (connector as Connector<C>).system, '')
  return seal<ResolvedEngineOptions<C>>(result)
}

/**
 * What one option says about another; the error names the one that was given.
 *
 * @throws `FST_POOL_BAD_OPTIONS`
 */
export function checkTogether (result: Options, given: Options, path: string): void {
  checkAddress(given, path)
  checkRange(result, given, path)
  checkRange(result.backoff as Options, given.backoff as Options | undefined, join(path, 'backoff'))
}

/**
 * @param system what the connector calls its database
 * @throws `FST_POOL_BAD_OPTIONS`
 */
export function checkReset ({ reset }: Options, system: unknown, path: string): void {
  if (reset === 'joined' && system !== 'postgresql') throw badOption(join(path, 'reset'), reset, unjoined)
}

export function checkAddress (given: Options, path: string): void {
  const url = given.url !== undefined
  if (url && given.host !== undefined) throw badOption(join(path, 'host'), given.host, 'none beside url')
  if (url && given.port !== undefined) throw badOption(join(path, 'port'), given.port, 'none beside url')
}

/** @throws `FST_POOL_BAD_OPTIONS`: `min` is more than `max` */
function checkRange (result: Options, given: Options | undefined, path: string): void {
  const [min, max] = [result.min as number, result.max as number]
  if (min <= max) return
  throw given?.min === undefined
    ? badOption(join(path, 'max'), max, `at least min (${min})`)
    : badOption(join(path, 'min'), min, `at most max (${max})`)
}

/** Freezes options that have been checked, and marks them as such. */
export function seal<T extends ResolvedEngineOptions<never>> (result: Options): T {
  const sealed = Object.freeze(result)
  checked.add(sealed)
  return sealed as unknown as T
}
