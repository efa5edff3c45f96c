import type { Holder } from '../../types/pool.js'
import { PoolError } from '../engine/errors.js'
import type { PoolManager } from './pools.js'
import { RequestHolder } from './request/holder.js'
import { kScope } from './request/scope.js'

/**
 * Tells an acquire that failed when connections are held in vain: by requests that have never read theirs. So it is in
 * an app whose handlers take their connections from `app.pools`, and have one more each by default.
 *
 * The pool knows who holds its connections, and only the requests know whether they read them: so the error is
 * completed here, before its caller and the log have it. To be called before the log subscribes.
 */
export function adviseOnUnused (manager: PoolManager): void {
  manager.onOwn('timeout', ({ error }) => { advise(error) })
  manager.onOwn('refuse', ({ error }) => { advise(error) })
}

function advise (error: Error): void {
  if (!(error instanceof PoolError) || error.holders === undefined || error.holders.length === 0) return
  const { holders } = error
  const unused = holders.filter(isUnused).length
  // Some have only just been lent theirs.
  if (unused * 2 < holders.length) return
  const which = holders.length === 1 ? 'one connection' : `${holders.length} connections`
  error.message += ` Of the ${which} held longest, ${unused} ${unused === 1 ? 'is' : 'are'} held by requests that have ` +
    'never read theirs: where handlers take connections from app.pools, or need none, set lease: false (of the plugin ' +
    'or of the pool) and name the pools of other routes in their config.pools.'
}

/** Whether the request that holds a connection has never read it. */
function isUnused ({ pool, holder }: Holder): boolean {
  return RequestHolder.requestOf(holder)?.[kScope]?.slots.isUnused(pool) === true
}
