import type { FastifyRequest } from 'fastify'
import type { AcquireOptions, Lease, PoolFace } from '../../../types/pool.js'
import { lendable } from '../../engine/lease.js'

/** Where requests take the connections of a pool: at the pool itself, or at the bulkhead in front of it. */
export interface Source {
  /** Whether the request leases a connection at all. */
  serves (request: FastifyRequest): boolean
  /** As the pool's own: null where the request would have to wait; undefined where `serves` is false. */
  tryAcquire (request: FastifyRequest, options: AcquireOptions): Lease<unknown> | null | undefined
  acquire (request: FastifyRequest, options: AcquireOptions): Promise<Lease<unknown>>
  /** See `lendable`: somebody may wait for the connection, or for the place in front of the pool. */
  lendable (lease: Lease<unknown>, recall: () => boolean): () => void
  /** Turns away those who wait here. The pool itself is closed by its manager. */
  close (): void
}

/** A pool without a bulkhead: all requests are the same to it. */
export class Direct implements Source {
  readonly #pool: PoolFace<unknown>

  constructor (pool: PoolFace<unknown>) {
    this.#pool = pool
  }

  serves (): boolean {
    return true
  }

  tryAcquire (_request: FastifyRequest, options: AcquireOptions): Lease<unknown> | null {
    return this.#pool.tryAcquire(options)
  }

  acquire (_request: FastifyRequest, options: AcquireOptions): Promise<Lease<unknown>> {
    return this.#pool.acquire(options)
  }

  lendable (lease: Lease<unknown>, recall: () => boolean): () => void {
    return lendable(lease, recall)
  }

  close (): void { /* Nobody waits here. */ }
}
