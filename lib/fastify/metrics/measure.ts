import { measureTargets } from '../../balance/target-pool.js'
import type { Meter } from '../../engine/events.js'
import { measurePool } from '../../pool/pool.js'
import type { Managed } from '../pools.js'
import { TenantPool } from '../tenants/pool.js'

/**
 * Tells a meter of all loans of a pool, those of its targets and tenants included. Where the app brought a pool of
 * another kind, by its events.
 *
 * @returns its own undo
 */
export function measure (pool: Managed['pool'], meter: Meter): () => void {
  if (pool instanceof TenantPool) return pool.tenants.follow((one) => measure(one, meter))
  return measurePool(pool, meter) ?? measureTargets(pool, meter) ?? hear(pool, meter)
}

function hear (pool: Managed['pool'], meter: Meter): () => void {
  const undos = [
    pool.on('acquire', ({ wait, holder }) => { meter.lent(wait, holder, performance.now()) }),
    pool.on('release', ({ held, holder }) => { meter.ended(held, holder, performance.now()) }),
  ]
  return () => { for (const undo of undos) undo() }
}
