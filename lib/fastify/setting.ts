import type { Plans } from './plan.js'
import type { PoolManager } from './pools.js'

/** What the hooks of one scope work with. Requests find it at their server, scopes inside it at their app. */
export interface Setting {
  readonly manager: PoolManager
  readonly plans: Plans
  readonly abortGrace: number
  readonly bodyGrace: number
}

export const kSetting = Symbol('fastify-pool.setting')

declare module 'fastify' {
  interface FastifyInstance { [kSetting]: Setting }
}
