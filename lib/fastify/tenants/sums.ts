// The numbers of all tenants' pools together.
import type { PoolHealth, PoolStats } from '../../../types/pool.js'
import type { ResolvedPoolOptions } from '../options.js'
import type { Tenants } from './tenants.js'

export function statsOfAll (name: string, system: string, tenants: Tenants): PoolStats {
  return { ...unopened(name, system, {} as ResolvedPoolOptions), ...tenants.all[0]?.pool.stats(), name }
}

export function unopened (name: string, system: string, options: ResolvedPoolOptions): PoolStats {
  return { name, system, max: options.max } as PoolStats
}

export async function healthOfAll (
  phase: 'open' | 'draining' | 'closed', stats: PoolStats, tenants: Tenants
): Promise<PoolHealth> {
  return { ...await tenants.all[0]!.pool.health(), reason: phase, stats }
}
