import type { FastifyRequest } from 'fastify'
import type { Role } from '../../types/connector.js'
import type { PoolFace } from '../../types/pool.js'
import { PoolError } from '../pool/errors.js'
import type { Policy } from '../../types/plugin.js'
import { defaultPolicy, readRoutePools } from './options.js'
import { checkTransactionOptions } from '../pool/transaction.js'
import type { Bulkhead } from './bulkhead.js'
import type { PoolManager } from './pools.js'
import type { Sticky } from './sticky.js'

export type TransactionPolicy = Exclude<Policy['transaction'], boolean>

/** One connection that a route leases. */
export interface Step {
  readonly name: string
  readonly pool: PoolFace<unknown>
  readonly release: Policy['release']
  readonly role: Role
  readonly transaction: TransactionPolicy | undefined
  /** Whether the request may write with it. */
  readonly writes: boolean
  readonly bulkhead: Bulkhead | undefined
  readonly sticky: Sticky | undefined
}

/** What a pool asks of the requests that lease it. */
export type Rules = Pick<Step, 'bulkhead' | 'sticky'>

/** By pool, as those that are added by hand have none. */
const rules = new WeakMap<PoolFace<unknown>, Rules>()
const noRules: Rules = { bulkhead: undefined, sticky: undefined }

export function setRules (pool: PoolFace<unknown>, of: Rules): void {
  rules.set(pool, of)
}

export function rulesOf (pool: PoolFace<unknown>): Rules {
  return rules.get(pool) ?? noRules
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

/** A route's config object is its own (Fastify copies it), so what was worked out is kept there, under a symbol for each scope, by method. */
export class Plans {
  readonly #key = Symbol('fastify-pool.plan')
  readonly #manager: PoolManager
  /** Some route leases in `preHandler`: until then that hook need not look for its request's plan, which `onRequest` has worked out. */
  usePreHandler = false

  constructor (manager: PoolManager) {
    this.#manager = manager
  }

  /** Worked out at a route's first request. */
  of (request: FastifyRequest): Plan {
    const config = request.routeOptions.config as object as { [key: symbol]: Record<string, Plan> | undefined }
    const plans = (config[this.#key] ??= {})
    const known = plans[request.method]
    if (known !== undefined && known.version === this.#manager.version) return known
    return (plans[request.method] = this.#make(config, request.method, request.routeOptions.url ?? ''))
  }

  #make (config: unknown, method: string, url: string): Plan {
    const route = `${method} ${url}`
    const named = readRoutePools(config, `route ${route}`)
    const wanted = this.#manager.own.flatMap(({ name, pool, policy }) => {
      const own = named?.get(name)
      if (named === undefined ? policy === false : own === undefined) return []
      const merged = { ...defaultPolicy, ...(policy === false ? {} : policy), ...own }
      const { acquire, release } = merged
      const transaction = merged.transaction === true ? {} : merged.transaction || undefined
      return [{ acquire, step: stepOf(method, { name, pool, release, transaction, role: merged.role ?? roleOf(method, pool, transaction) }) }]
    })
    const phase = (when: Policy['acquire']): Step[] => wanted.filter(({ acquire }) => acquire === when).map(({ step }) => step)
    const preHandler = phase('preHandler')
    this.usePreHandler ||= preHandler.length > 0
    return { route, onRequest: phase('onRequest'), preHandler, manual: phase('manual'), named: named !== undefined, version: this.#manager.version }
  }
}

/** Which connection a request gets, unless somebody says which. */
export function roleOf (method: string, pool: PoolFace<unknown>, transaction?: TransactionPolicy): Role {
  return pool.replicas && reads(method, transaction) ? 'replica' : 'primary'
}

function reads (method: string, transaction: TransactionPolicy | undefined): boolean {
  return transaction === undefined ? method === 'GET' || method === 'HEAD' : transaction.readOnly === true
}

/** With what follows from the rest. */
export function stepOf (method: string, step: Omit<Step, 'writes' | keyof Rules>): Step {
  const { bulkhead, sticky } = rulesOf(step.pool)
  // Where there is one kind of connection, everybody has the same one.
  return { ...step, writes: step.role === 'primary' && !reads(method, step.transaction), bulkhead, sticky: step.pool.replicas ? sticky : undefined }
}

/**
 * Whether a policy asks for transactions that its pool can have.
 *
 * @throws `FST_POOL_NOT_SUPPORTED`, `FST_POOL_BAD_OPTIONS`
 */
export function checkPolicy (policy: Partial<Policy> | false, { name, backend: { transactions } }: PoolFace<unknown>): void {
  if (policy === false || policy.transaction === undefined || policy.transaction === false) return
  const { commitOn: _, ...begin } = policy.transaction === true ? {} as TransactionPolicy : policy.transaction
  checkTransactionOptions({ name, transactions }, begin)
}

/**
 * Whether a route's `config.pools` can be followed, at boot: where a mistake costs a start, not a request.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_NOT_FOUND`, `FST_POOL_NOT_SUPPORTED`
 */
export function checkRoute (route: { readonly method: string | string[], readonly url: string, readonly config?: unknown }, manager: PoolManager): void {
  const where = `route ${[route.method].flat().join(',')} ${route.url}`
  for (const [name, policy] of readRoutePools(route.config, where) ?? []) {
    const found = manager.find(name)
    if (found !== undefined) {
      try {
        checkPolicy(policy, found.pool)
      } catch (error) {
        if (!(error instanceof PoolError)) throw error
        throw new PoolError(error.code, `${where}: config.pools.${name}.transaction: ${error.message}`)
      }
      continue
    }
    throw new PoolError('FST_POOL_NOT_FOUND', `${where}: config.pools names '${name}', and there is no such pool (there is ${manager.names.map((one) => `'${one}'`).join(', ')})`)
  }
}
