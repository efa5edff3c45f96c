import type { FastifyInstance, RouteOptions } from 'fastify'
import type { HealthRoutes } from '../../types/plugin.js'
import type { PoolHealth, TargetHealth } from '../../types/pool.js'
import { badOption } from '../engine/errors.js'
import type { PoolManager } from './pools.js'

const paths = { live: '/livez', ready: '/readyz' } as const

/** The routes that tell an orchestrator how this process is, of one scope. They lease nothing. */
export class HealthProbes {
  readonly #app: FastifyInstance
  readonly #manager: PoolManager
  /** By their path: whose pools make `ready` answer 503 while they are down. */
  readonly #ready = new Map<string, Set<string>>()
  readonly #live = new Set<string>()

  constructor (app: FastifyInstance, manager: PoolManager) {
    this.#app = app
    this.#manager = manager
  }

  /** Registrations of one scope that name the same path have one route together. */
  add (option: boolean | HealthRoutes): void {
    if (option === false) return
    const { live = paths.live, ready = paths.ready, downIs503 = [] } = option === true ? {} : option
    if (live === ready) throw badOption('healthRoutes.ready', ready, 'another path than healthRoutes.live')
    const isKnown = this.#live.has(live)
    if (!isKnown) this.#addLive(live)
    const known = this.#ready.get(ready)
    const down = known ?? new Set<string>()
    for (const name of downIs503) down.add(name)
    if (known === undefined) this.#addReady(ready, down)
  }

  /** It never asks a pool: a process is not restarted because its database is away. */
  #addLive (path: string): void {
    this.#live.add(path)
    this.#app.get(path, quiet, async (_request, reply) => {
      reply.header('cache-control', 'no-store')
      return { status: 'up' }
    })
  }

  #addReady (path: string, down: Set<string>): void {
    this.#ready.set(path, down)
    let isClosing = false
    this.#app.addHook('preClose', (done) => {
      isClosing = true
      done()
    })
    // A name that is not there would never be down.
    this.#app.addHook('onReady', async () => { for (const name of down) this.#manager.require(name) })
    this.#app.get(path, quiet, async (_request, reply) => {
      const { status, pools } = await this.#manager.health()
      const all = Object.entries(pools)
      const isDraining = isClosing || all.some(([, pool]) => pool.status === 'draining')
      const isDown = all.some(([name, pool]) => pool.status === 'down' && down.has(name))
      reply.code(isDraining || isDown ? 503 : 200).header('cache-control', 'no-store')
      return {
        status: isDraining ? 'draining' : status,
        pools: Object.fromEntries(all.map(([name, pool]) => [name, tell(pool)])),
      }
    })
  }
}

/** Fastify logs a request at info; these are asked every few seconds. */
const quiet: Pick<RouteOptions, 'config' | 'logLevel' | 'schema'> = {
  config: { pools: false },
  logLevel: 'warn',
  // @fastify/swagger's.
  schema: { hide: true } as object,
}

/** What a probe shows of a pool: how it is, and none of its books. */
function tell ({ status, reason, since, latency, targets }: PoolHealth): object {
  return {
    ...told({ status, reason, since, latency }),
    ...(targets !== undefined && {
      targets: targets.map(({ target, role, lag, ...health }) => ({ target, role, lag, ...told(health) })),
    }),
  }
}

type Told = Pick<TargetHealth, 'status' | 'latency'> &
  { readonly reason?: string | undefined, readonly since?: number | undefined }

function told ({ status, reason, since, latency }: Told): object {
  return {
    status,
    ...(reason !== undefined && { reason }),
    ...(since !== undefined && { since }),
    latency,
  }
}
