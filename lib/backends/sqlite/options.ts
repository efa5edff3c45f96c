// What SQLite says of a pool's options.
import { badOption } from '../../pool/errors.js'
import { join, type Options } from '../../pool/schema.js'

/** Whether a url of SQLite is a database in the memory of its connection, which ends with it. */
export function isMemoryUrl (url: unknown): boolean {
  return typeof url === 'string' && /^(:memory:$|file::memory:|file:[^?]*\?(.*&)?mode=memory(&|$))/.test(url)
}

/**
 * Refuses what a file, or a database in memory, can't have, and sets the defaults that differ from other backends'.
 *
 * @throws `FST_POOL_BAD_OPTIONS`
 */
export function adaptToSqlite (result: Record<string, unknown>, given: Options, path: string): void {
  for (const key of ['host', 'port']) {
    if (given[key] !== undefined) throw badOption(join(path, key), given[key], 'none, since sqlite is a file (url)')
  }
  for (const key of ['url', 'connection']) {
    if (typeof given[key] !== 'function') continue
    throw badOption(join(path, key), given[key], 'none, since a file does not change its address')
  }
  if (!isMemoryUrl(given.url)) return
  if (given.max === undefined) result.max = 1
  else if (given.max !== 1) {
    throw badOption(join(path, 'max'), given.max, '1, since a database in memory is its connection')
  }
  for (const key of ['idleTimeout', 'maxLifetime', 'maxUses']) {
    if (given[key] !== undefined && given[key] !== 0) {
      throw badOption(join(path, key), given[key],
        '0, since a database in memory ends with its connection, and the next one would be empty')
    }
    result[key] = 0
  }
}
