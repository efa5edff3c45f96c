import type { Pools } from '../../index.js'
import type { PoolManager } from '../../lib/fastify/pools.js'
import { Bulkhead } from '../../lib/fastify/rules/bulkhead.js'
import type { Sticky } from '../../lib/fastify/rules/sticky.js'

/** What a pool asks of the requests that lease it. */
export function rulesOf (pools: Pools, name = 'db'): { readonly bulkhead?: Bulkhead, readonly sticky?: Sticky } {
  const { source, sticky } = (pools as PoolManager).find(name)!
  return { ...(source instanceof Bulkhead && { bulkhead: source }), ...(sticky !== undefined && { sticky }) }
}
