import type { PoolErrorCode } from '../../types/errors.js'
import type { Holder } from '../../types/pool.js'
import { patternOf, secretKey } from './secrets.js'

/** Codes that tell an HTTP client to come back later. */
const unavailable: ReadonlySet<PoolErrorCode> = new Set<PoolErrorCode>([
  'FST_POOL_ACQUIRE_TIMEOUT', 'FST_POOL_QUEUE_FULL', 'FST_POOL_OVERLOADED', 'FST_POOL_CIRCUIT_OPEN',
  'FST_POOL_CONNECT_FAILED', 'FST_POOL_CLOSED',
])

/**
 * Codes of a commit that is not known to be stored. Whatever status the reply was to have, it is a failure of the
 * service.
 */
const uncommitted: ReadonlySet<PoolErrorCode> = new Set<PoolErrorCode>([
  'FST_POOL_COMMIT_TIMEOUT', 'FST_POOL_COMMIT_UNKNOWN',
])

export interface PoolErrorOptions {
  cause?: unknown
  /** Whole seconds until it is worth another try; 1 to 30. Only for codes that mean "unavailable". */
  retryAfter?: number
  /** Who held connections when the error happened: for the log, never for a client. */
  holders?: readonly Holder[]
}

/**
 * Every error of this package. `message` may reach HTTP clients: it has names and counts, never a host, a holder or a
 * secret.
 *
 * Where the service is unavailable, `statusCode` is 503 and `headers` has `retry-after`; Fastify's own error handling
 * sends both. Where a commit timed out, or its outcome is not known, `statusCode` is 500.
 */
export class PoolError extends Error {
  override readonly name = 'PoolError'
  readonly code: PoolErrorCode
  // Declared and not defined: else every error would show these fields as `undefined`.
  declare readonly statusCode?: number
  declare readonly headers?: { readonly 'retry-after': string }
  /** The longest held first. Not enumerable, so that no serializer sends it. */
  declare readonly holders?: readonly Holder[]

  constructor (code: PoolErrorCode, message: string, { cause, retryAfter = 1, holders }: PoolErrorOptions = {}) {
    super(message, cause === undefined ? undefined : { cause })
    this.code = code
    if (unavailable.has(code)) {
      this.statusCode = 503
      // A prediction may be NaN (nothing measured yet) or Infinity (nothing moves).
      this.headers = { 'retry-after': String(Math.min(30, Math.max(1, Math.ceil(retryAfter) || 1))) }
    }
    if (uncommitted.has(code)) this.statusCode = 500
    if (holders !== undefined) Object.defineProperty(this, 'holders', { value: holders })
  }
}

// Whatever was thrown is no reason to throw something else: it may be undefined, or a Proxy whose traps throw.

export function isPoolError (error: unknown): error is PoolError {
  try {
    return error instanceof PoolError
  } catch {
    return false
  }
}

/** False for a Proxy whose traps throw. */
export function isReadable (error: unknown): boolean {
  try {
    Object.prototype.toString.call(error)
    return true
  } catch {
    return false
  }
}

/** A field of what was thrown; undefined where it has none, or can't be read. */
export function fieldOf (error: unknown, key: string): unknown {
  try {
    return (error as Readonly<Record<string, unknown>> | null | undefined)?.[key]
  } catch {
    return undefined
  }
}

/**
 * Whether the error, or one of its causes, says that nobody knows whether a commit is stored. To run the transaction
 * again could then do everything twice.
 */
export function isCommitUnknown (error: unknown): boolean {
  // A chain of causes may lead back to itself.
  for (let depth = 0; depth < 16 && typeof error === 'object' && error !== null; depth++) {
    if (fieldOf(error, 'code') === 'FST_POOL_COMMIT_UNKNOWN') return true
    error = fieldOf(error, 'cause')
  }
  return false
}

// --- Options ---------------------------------------------------------------------------------------------------------

/** @param path which option, as the user wrote it: 'pools.db.max'; '' for the options as a whole */
export function badOption (path: string, given: unknown, expected: string): PoolError {
  const what = path === '' ? 'the options: given' : `option ${path} is`
  return new PoolError('FST_POOL_BAD_OPTIONS', `${what} ${describe(path, given)}: expected ${expected}`)
}

/**
 * `url` is the one option that is not as if absent where it holds undefined: without one, a driver connects to a server
 * on this machine, and an environment variable that is not set would do so silently.
 *
 * @param path whose option it is: 'pools.db'
 */
export function undefinedUrl (path: string): PoolError {
  const option = path === '' ? 'url' : `${path}.url`
  return new PoolError('FST_POOL_BAD_OPTIONS', `option ${option} is undefined: expected a text that is not empty, or ` +
    'no url at all (is an environment variable missing?)')
}

/**
 * A text as a message may show it: itself if it is short and plain, else 'a text'. A URL, or anything else that could
 * hold a password, is never shown.
 */
export function show (text: string): string {
  return /^[\w $.,+-]{0,60}$/.test(text) ? text : 'a text'
}

/** The value that was given, where it can't be a secret; else its type. */
function describe (path: string, value: unknown): string {
  if (value === undefined) return 'missing'
  if (value === null) return 'null'
  if (Array.isArray(value)) return 'an array'
  if (typeof value === 'function' || typeof value === 'symbol') return `a ${typeof value}`
  if (typeof value === 'object') return 'an object'
  const type = typeof value === 'string' ? 'text' : typeof value
  const names = path.split('.')
  if (names.some((name) => name === 'url' || name === 'connection') || secretKey.test(names.at(-1)!)) return `a ${type}`
  if (typeof value === 'bigint') return `${value}n`
  if (typeof value !== 'string') return String(value)
  return show(value) === value ? `'${value}'` : 'a text'
}

// --- Safe copies -----------------------------------------------------------------------------------------------------

/**
 * A copy of an error that is safe to show: name, message, code, stack and cause, with the secrets replaced. The
 * driver's own object is never shown, since it can hold secrets anywhere: ioredis has the password in `command.args`,
 * Node and mysql2 the URL in `input`.
 *
 * A `PoolError` stays one, and keeps its cause: that was scrubbed already, or is the caller's own.
 */
export function scrub (error: unknown, secrets: readonly string[]): Error {
  const pattern = secrets.length === 0 ? undefined : patternOf(secrets)
  return copy(error, (text) => pattern === undefined ? text : text.replace(pattern, '***'), 0)
}

function copy (error: unknown, clean: (text: string) => string, depth: number): Error {
  try {
    return copyFields(error, clean, depth)
  } catch {
    return new Error('what was thrown can not be read')
  }
}

function copyFields (error: unknown, clean: (text: string) => string, depth: number): Error {
  const fields = (typeof error === 'object' && error !== null ? error : {}) as Record<string, unknown>
  const { name, stack, code, cause } = fields
  const message = clean(messageOf(error, 0))
  if (error instanceof PoolError) {
    if (message === error.message) return error
    const { headers, holders } = error
    const retryAfter = Number(headers?.['retry-after'] ?? 1)
    const result = new PoolError(error.code, message, { cause, holders, retryAfter })
    result.stack = clean(error.stack ?? '')
    return result
  }
  const result = new Error(message)
  if (typeof name === 'string') define(result, 'name', clean(name))
  if (typeof stack === 'string') result.stack = clean(stack)
  if (typeof code === 'string') Object.assign(result, { code: clean(code) })
  if (typeof code === 'number') Object.assign(result, { code })
  // A chain of causes may lead back to itself.
  if (cause !== undefined && depth < 4) define(result, 'cause', copy(cause, clean, depth + 1))
  return result
}

/** Defines a field that is not enumerable, as `name` and `cause` of JavaScript's own errors are. */
function define (error: Error, key: string, value: unknown): void {
  Object.defineProperty(error, key, { value, writable: true, configurable: true })
}

function messageOf (error: unknown, depth: number): string {
  if (typeof error === 'object' && error !== null) {
    const { message, errors } = error as Record<string, unknown>
    if (typeof message === 'string' && message !== '') return message
    // When Node tried several addresses, it throws an AggregateError without a message.
    if (Array.isArray(errors) && errors.length > 0 && depth < 4) {
      return errors.slice(0, 16).map((one) => messageOf(one, depth + 1)).join('; ')
    }
    return typeof message === 'string' ? message : Object.prototype.toString.call(error)
  }
  // Not the source of a function.
  return typeof error === 'function' ? 'a function was thrown' : String(error)
}
