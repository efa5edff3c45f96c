// The options of a pool's methods: names that are not known are refused, as those of a pool's own options are.
import type { CallOptions, PoolFace, UseOptions } from '../../types/pool.js'
import { isObject, readObject, type Properties } from './schema.js'

type Face = PoolFace<unknown>
type Options<Call extends 'acquire' | 'evict' | 'resize' | 'close'> = NonNullable<Parameters<Face[Call]>[0]>
type Names<O> = { readonly [K in keyof O]-?: object }

const acquire: Names<Options<'acquire'>> = {
  signal: {}, timeout: {}, holder: {}, holdTimeout: {}, role: {}, affinity: {},
}
const use: Names<UseOptions> = { ...acquire, retry: {} }
const execute: Names<CallOptions<string>> = { method: {}, ...use }
const evict: Names<Options<'evict'>> = { idle: {}, used: {} }
const resize: Names<Options<'resize'>> = { min: {}, max: {} }
const close: Names<Options<'close'>> = { timeout: {} }
const calls = { acquire, use, execute, evict, resize, close } satisfies Record<string, Properties>

/**
 * Checks the names of a call's options. What their values may be, the call itself checks.
 *
 * @throws `FST_POOL_BAD_OPTIONS`: it is no object, or has an unknown name
 */
export function checkNames (call: keyof typeof calls, given: object | undefined): void {
  if (given === undefined) return
  const known = calls[call]
  if (isObject(given)) {
    let strange = false
    for (const key in given) strange ||= !Object.hasOwn(known, key)
    if (!strange) return
  }
  // Which may still say that it is as if absent, since it is undefined.
  readObject(known, given, call)
}
