import type { FastifyRequest } from 'fastify'
import type { Role } from '../../types/connector.js'
import type { Policy, RouteTransaction } from '../../types/plugin.js'
import type { PoolFace } from '../../types/pool.js'
import { PoolError } from '../engine/errors.js'
import { checkTransactionOptions } from '../engine/transaction.js'
import { defaultPolicy, readRoutePools } from './options.js'
import type { Managed, PoolManager } from './pools.js'
import { isBodiless } from './request/body.js'
import type { KeyOf } from './rules/keys.js'
import type { Source } from './rules/source.js'
import type { Sticky } from './rules/sticky.js'

/** One connection that a route leases: of which pool, and how. */
export interface Step {
  readonly name: string
  /** Its place among all pools: requests take them in this order, so that two can't wait for each other. */
  readonly order: number
  readonly source: Source
  readonly release: Policy['release']
  readonly role: Role
  readonly transaction: RouteTransaction | undefined
  /** How long a request may hold it, in ms; undefined: as the pool says. */
  readonly holdTimeout: number | undefined
  /** It is the route that says so. */
  readonly ownHold: boolean
  /** Whether requests may write with it. */
  readonly writes: boolean
  readonly sticky: Sticky | undefined
  /** Where the servers are peers: the key of a request. */
  readonly affinityOf: KeyOf | undefined
}

/**
 * What a route leases of one scope's pools. Steps are in the order in which the pools were registered, for all routes:
 * within a phase two requests can't wait for each other.
 */
export interface Plan {
  /** The route as holders and the log show it: 'GET /users/:id'. */
  readonly route: string
  readonly onRequest: readonly Step[]
  readonly preHandler: readonly Step[]
  /** Taken when the handler asks for it. */
  readonly manual: readonly Step[]
  /** The route's config names its pools: then they are leased for OPTIONS and WebSocket upgrades too. */
  readonly named: boolean
  /** The manager's, when the plan was made. */
  readonly version: number
  readonly method: string
  /** The plan for another method of the route. */
  readonly next: Plan | undefined
}

/**
 * The plans of one scope's routes. A route's config object is its own (Fastify copies it), so its plans are kept there:
 * under a symbol of this scope, in a chain, one for each method.
 */
export class Plans {
  readonly #key = Symbol('fastify-pool.plan')
  readonly #manager: PoolManager
  readonly #outer: Plans | undefined

  /** @param outer those of the scope around */
  constructor (manager: PoolManager, outer: Plans | undefined) {
    this.#manager = manager
    this.#outer = outer
  }

  /** Whether a plan of the request's route is the one for this request. */
  fits (plan: Plan, request: FastifyRequest): boolean {
    return plan.method === request.method && plan.version === this.#manager.version
  }

  /** Worked out at a route's first request, and again when a pool has come or gone. */
  of (request: FastifyRequest): Plan {
    // A getter that makes an object each time: asked once.
    const { config, url } = request.routeOptions
    const { method } = request
    const kept = config as object as { [key: symbol]: Plan | undefined }
    const first = kept[this.#key]
    let plan = first?.version === this.#manager.version ? first : undefined
    while (plan !== undefined && plan.method !== method) plan = plan.next
    return plan ?? (kept[this.#key] = this.#make(config, method, url ?? '', first))
  }

  /**
   * The step of a request that takes a pool's connection by hand, at whichever moment. It is the same one that the
   * hooks take where the route's policy has the pool, its transaction above all.
   */
  stepOf (request: FastifyRequest, managed: Managed): Step {
    return this.#planned(request, managed.name) ?? this.#stepOf(request.method, managed)
  }

  #planned (request: FastifyRequest, name: string): Step | undefined {
    const { onRequest, preHandler, manual } = this.of(request)
    for (const steps of [onRequest, preHandler, manual]) {
      const step = steps.find((one) => one.name === name)
      if (step !== undefined) return step
    }
    return this.#outer === undefined ? undefined : this.#outer.#planned(request, name)
  }

  #make (config: unknown, method: string, url: string, known: Plan | undefined): Plan {
    const route = `${method} ${url}`
    const named = readRoutePools(config, `route ${route}`)
    const wanted = this.#manager.own.flatMap((managed) => {
      const own = named?.get(managed.name)
      if (named === undefined ? managed.policy === false : own === undefined) return []
      const policy = { ...defaultPolicy, ...managed.policy || undefined, ...own }
      const ownHold = own?.holdTimeout !== undefined
      return [{ acquire: policy.acquire, step: this.#stepOf(method, managed, policy, ownHold) }]
    })
    const phase = (when: Policy['acquire']): Step[] =>
      wanted.filter(({ acquire }) => acquire === when).map(({ step }) => step)
    const { version } = this.#manager
    return {
      route,
      onRequest: phase('onRequest'),
      preHandler: phase('preHandler'),
      manual: phase('manual'),
      named: named !== undefined,
      version,
      method,
      next: known?.version === version ? known : undefined,
    }
  }

  #stepOf (
    method: string, { name, pool, source, sticky, affinityOf, policy: usual }: Managed, policy: Policy = defaultPolicy,
    ownHold = false
  ): Step {
    const transaction = policy.transaction === true ? {} : policy.transaction || undefined
    const reads = transaction === undefined ? method === 'GET' || method === 'HEAD' : transaction.readOnly === true
    const role = policy.role ?? (pool.replicas && reads ? 'replica' : 'primary')
    return {
      name,
      order: this.#manager.names.indexOf(name),
      source,
      release: policy.release,
      role,
      transaction,
      holdTimeout: policy.holdTimeout ?? (usual === false ? undefined : usual.holdTimeout),
      ownHold,
      writes: role === 'primary' && !reads,
      // Where there is one kind of connection, everybody has the same one.
      sticky: pool.replicas ? sticky : undefined,
      affinityOf,
    }
  }
}

/**
 * Checks that a pool has the transactions that a policy asks for.
 *
 * @throws `FST_POOL_NOT_SUPPORTED`, `FST_POOL_BAD_OPTIONS`
 */
export function checkPolicy (policy: Partial<Policy> | false, { name, backend }: PoolFace<unknown>): void {
  if (policy === false || policy.transaction === undefined || policy.transaction === false) return
  const { commitOn: _, ...begin } = policy.transaction === true ? {} as RouteTransaction : policy.transaction
  checkTransactionOptions({ name, transactions: backend.transactions }, begin)
}

interface Route { readonly method: string | string[], readonly url: string, readonly config?: unknown }

/** Whether requests of a route may have something left to do before their handler: see `preHandlerHook`. */
export function needsPreHandler (route: Route): boolean {
  if (![route.method].flat().every(isBodiless)) return true
  const pools = readRoutePools(route.config, route.url)
  return pools !== undefined && [...pools.values()].some(({ acquire }) => acquire === 'preHandler')
}

/**
 * Checks a route's `config.pools` at boot, where a mistake costs a start and no request.
 *
 * @param manager of the route's own scope. None: whether the pools are there is not asked
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_NOT_FOUND`, `FST_POOL_NOT_SUPPORTED`
 */
export function checkRoute (route: Route, manager?: PoolManager): void {
  const where = `route ${[route.method].flat().join(',')} ${route.url}`
  const pools = readRoutePools(route.config, where)
  if (pools === undefined || manager === undefined) return
  for (const [name, policy] of pools) {
    const found = manager.find(name)
    if (found === undefined) {
      const there = manager.names.map((one) => `'${one}'`).join(', ')
      const message = `${where}: config.pools names '${name}', and there is no such pool (there is ${there})`
      throw new PoolError('FST_POOL_NOT_FOUND', message)
    }
    try {
      checkPolicy(policy, found.pool)
    } catch (error) {
      if (!(error instanceof PoolError)) throw error
      throw new PoolError(error.code, `${where}: config.pools.${name}.transaction: ${error.message}`)
    }
  }
}
