import type { Plans } from './plan.js'
import type { PoolManager } from './pools.js'

/** What one scope's hooks work with. */
export interface Setting {
  /** Of the scope around. */
  readonly outer: Setting | undefined
  readonly manager: PoolManager
  readonly plans: Plans
  readonly graces: { readonly abortGrace: number, readonly bodyGrace: number }
}

export const kSetting = Symbol('fastify-pool.setting')

declare module 'fastify' {
  interface FastifyInstance { [kSetting]: Setting }
}
