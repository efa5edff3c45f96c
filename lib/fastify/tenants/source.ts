import type { FastifyRequest } from 'fastify'
import type { AcquireOptions, Lease } from '../../../types/pool.js'
import { PoolError } from '../../engine/errors.js'
import { lendable } from '../../engine/lease.js'
import { askKey, type KeyOf } from '../rules/keys.js'
import type { Source } from '../rules/source.js'
import { acquireOf, tryAcquireOf, type TenantPool } from './pool.js'

/** Where requests take connections of their tenant's pool. */
export class TenantSource implements Source {
  readonly #pool: TenantPool
  readonly #keyOf: KeyOf

  constructor (pool: TenantPool, keyOf: KeyOf) {
    this.#pool = pool
    this.#keyOf = keyOf
  }

  /** The key is asked when the connection is taken: authentication may come before that. */
  #ask (request: FastifyRequest): string | undefined {
    return askKey(this.#keyOf, request, this.#pool.name, 'key')
  }

  serves (request: FastifyRequest): boolean {
    return this.#ask(request) !== undefined
  }

  tryAcquire (request: FastifyRequest, options: AcquireOptions): Lease<unknown> | null | undefined {
    const key = this.#ask(request)
    return key === undefined ? undefined : tryAcquireOf(this.#pool.tenants, key, options)
  }

  async acquire (request: FastifyRequest, options: AcquireOptions): Promise<Lease<unknown>> {
    const key = this.#ask(request)
    if (key === undefined) throw keyless(this.#pool.name)
    return await acquireOf(this.#pool.tenants, key, options)
  }

  lendable (lease: Lease<unknown>, recall: () => boolean): () => void {
    return lendable(lease, recall)
  }

  close (): void { /* Those who wait for their pool are turned away when it closes. */ }
}

/** The request is of no tenant: most likely it lacks what should say so. */
export function keyless (name: string): PoolError {
  const message = `pool '${name}' has a pool for each tenant, and this request has no key of one`
  return Object.assign(new PoolError('FST_POOL_NOT_LEASED', message), { statusCode: 400 })
}
