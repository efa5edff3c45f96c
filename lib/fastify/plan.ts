import type { FastifyRequest } from 'fastify'
import { PoolError } from '../pool/errors.js'
import { readRoutePools, type Policy } from '../pool/options.js'
import type { Pool } from '../pool/pool.js'
import type { PoolManager } from './pools.js'

/** One connection that a route leases. */
export interface Step {
  readonly name: string
  readonly pool: Pool<unknown>
  readonly release: Policy['release']
}

/** What one scope's pools owe to one route, in the order in which the pools were registered: two requests can't wait for each other within a phase. */
export interface Plan {
  /** As holders and the log show it: 'GET /users/:id'. */
  readonly route: string
  readonly onRequest: readonly Step[]
  readonly preHandler: readonly Step[]
  /** Taken when the handler asks for it. */
  readonly manual: readonly Step[]
  /** The route's config names its pools: then they are leased for OPTIONS and WebSocket upgrades too. */
  readonly named: boolean
  readonly version: number
}

/** A route's config object is its own (Fastify copies it), so what was worked out is kept there, under a symbol for each scope. */
export class Plans {
  readonly #key = Symbol('fastify-pool.plan')
  readonly #manager: PoolManager

  constructor (manager: PoolManager) {
    this.#manager = manager
  }

  /** Worked out at a route's first request. */
  of (request: FastifyRequest): Plan {
    const config = request.routeOptions.config as object as { [key: symbol]: Plan | undefined }
    const known = config[this.#key]
    if (known !== undefined && known.version === this.#manager.version) return known
    return (config[this.#key] = this.#make(config, `${request.method} ${request.routeOptions.url ?? ''}`))
  }

  #make (config: unknown, route: string): Plan {
    const named = readRoutePools(config, `route ${route}`)
    const wanted = this.#manager.own.flatMap(({ name, pool, policy }) => {
      const own = named?.get(name)
      if (named === undefined ? policy === false : own === undefined) return []
      const { acquire, release } = { ...defaults, ...(policy === false ? {} : policy), ...own }
      return [{ acquire, name, pool, release }]
    })
    const phase = (when: Policy['acquire']) => wanted.filter(({ acquire }) => acquire === when).map(({ name, pool, release }) => ({ name, pool, release }))
    return { route, onRequest: phase('onRequest'), preHandler: phase('preHandler'), manual: phase('manual'), named: named !== undefined, version: this.#manager.version }
  }
}

const defaults: Policy = { acquire: 'onRequest', release: 'onResponse' }

/**
 * Whether a route's `config.pools` can be followed, at boot: where a mistake costs a start, not a request.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_NOT_FOUND`
 */
export function checkRoute (route: { readonly method: string | string[], readonly url: string, readonly config?: unknown }, manager: PoolManager): void {
  const where = `route ${[route.method].flat().join(',')} ${route.url}`
  for (const name of readRoutePools(route.config, where)?.keys() ?? []) {
    if (manager.has(name)) continue
    throw new PoolError('FST_POOL_NOT_FOUND', `${where}: config.pools names '${name}', and there is no such pool (there is ${manager.names.map((one) => `'${one}'`).join(', ')})`)
  }
}
