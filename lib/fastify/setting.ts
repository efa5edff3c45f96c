import type { HealthProbes } from './health.js'
import type { Plans } from './plan.js'
import type { PoolManager } from './pools.js'
import type { Graces } from './request/scope.js'

/** What the hooks of one scope work with. Requests find it at their server, scopes inside it at their app. */
export interface Setting extends Graces {
  readonly manager: PoolManager
  readonly plans: Plans
  readonly probes: HealthProbes
  readonly bodyGrace: number
  /** Called when the scope's pools are closed. */
  readonly ends: Array<() => void>
}

export const kSetting = Symbol('fastify-pool.setting')

declare module 'fastify' {
  interface FastifyInstance { [kSetting]: Setting }
}
