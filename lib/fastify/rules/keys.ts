import { createHash } from 'node:crypto'
import type { FastifyRequest } from 'fastify'
import { PoolError } from '../../engine/errors.js'

// Keys tell requests apart: a tenant, a session. A key comes from outside, and may be a secret: no error shows it.

/** An app's function that gives a request its key; undefined: the request has none. */
export type KeyOf = (request: FastifyRequest) => string | undefined

/** Longer keys, in bytes, are kept as their hash. */
const longest = 256
const hashed = 'sha256:'

/**
 * A key of at most 256 bytes: keys that differ stay different. A key that looks like a hash is hashed as well, so that
 * nobody can pass for another whose long key has that hash.
 */
export function bounded (key: string): string {
  // A UTF-16 unit has three bytes at most.
  if ((key.length * 3 <= longest || Buffer.byteLength(key) <= longest) && !key.startsWith(hashed)) return key
  // As UTF-16: in UTF-8 all lone surrogates are the same.
  return hashed + createHash('sha256').update(key, 'utf16le').digest('base64')
}

/** What stats, events and holders show of a key: it may be a secret, and they only have to tell keys apart. */
export function shown (key: string): string {
  return createHash('sha256').update(key).digest('hex').slice(0, 12)
}

/** As `askText`, for keys that are kept. */
export function askKey (keyOf: KeyOf, request: FastifyRequest, pool: string, option: string): string | undefined {
  const key = askText(keyOf, request, pool, option)
  return key === undefined ? undefined : bounded(key)
}

/**
 * Asks the app's function.
 *
 * @param option what the user calls it: `bulkhead.key`
 * @throws what the function throws; `FST_POOL_BAD_OPTIONS` where it gives anything but a text or undefined
 */
export function askText (keyOf: KeyOf, request: FastifyRequest, pool: string, option: string): string | undefined {
  let key: unknown
  try {
    key = keyOf(request)
  } catch (error) {
    // Fastify takes an error that is falsy for none.
    throw error || new PoolError('FST_POOL_BAD_OPTIONS', `pool '${pool}': ${option} threw, and not an error`)
  }
  if (typeof key === 'string' || key === undefined) return key
  if (key instanceof Promise) key.catch(() => { /* The request fails already, since a promise is no key. */ })
  const what = key === null ? 'null' : key instanceof Promise ? 'a promise' : `a value of type ${typeof key}`
  const message = `pool '${pool}': ${option} gave ${what}: expected a text, or undefined for none`
  throw new PoolError('FST_POOL_BAD_OPTIONS', message)
}
