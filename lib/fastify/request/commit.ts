import { Readable } from 'node:stream'
import type { FastifyReply } from 'fastify'
import type { RouteTransaction } from '../../../types/plugin.js'
import type { Lease } from '../../../types/pool.js'
import { hold } from '../../engine/lease.js'
import type { HeldTransaction } from '../../engine/transaction.js'
import { errorOf } from './ending.js'
import { drain, gate, isResponse, readableOf, resetHttp2 } from './payload.js'

/** What the transactions of a route ask of their request's scope. */
export interface Site {
  readonly reply: FastifyReply
  /** An error handler was called: nothing is committed. */
  readonly failed: boolean
  /** The transactions have ended: what they wrote can be read from now on. */
  committed (): void
}

interface Held {
  readonly lease: Lease<unknown>
  readonly transaction: HeldTransaction
  readonly commitOn: 'success' | 'reply'
}

/** The transactions that a route asks for: each begins with its connection, and the reply ends all of them. */
export class RouteTransactions {
  readonly #site: Site
  #held: Held[] = []
  /** Those that are committed or rolled back now. */
  #ending: readonly Held[] = []

  constructor (site: Site) {
    this.#site = site
  }

  /** Whether some have not ended yet. */
  get open (): boolean {
    return this.#held.length > 0
  }

  async begin (lease: Lease<unknown>, { commitOn = 'success', ...begin }: RouteTransaction): Promise<void> {
    this.#held.push({ lease, transaction: await hold(lease, begin), commitOn })
  }

  /** Whether a transaction on that lease is being committed or rolled back. */
  isEnding (lease: Lease<unknown>): boolean {
    return this.#ending.some((held) => held.lease === lease)
  }

  /** It was rolled back with its lease. */
  forget (lease: Lease<unknown>): void {
    this.#held = this.#held.filter((held) => held.lease !== lease)
  }

  /**
   * Ends them before the reply goes out. A stream reads within the transaction, which is committed at its end.
   *
   * Done once: `onSend` runs again for the error that a commit throws, and then they are rolled back already.
   *
   * @returns what to send, which may stand for a stream
   * @throws what a commit or a rollback throws
   */
  async end (payload: unknown, streams: boolean): Promise<unknown> {
    const { reply } = this.#site
    const response = isResponse(payload) ? payload : undefined
    const status = response?.status ?? reply.statusCode
    if (!streams) {
      await this.#endAll(status)
      return payload
    }
    if (!this.#held.some((held) => this.#commits(held, status))) {
      // They are rolled back when their leases end: the stream may read until then.
      this.#held = []
      return payload
    }
    // Fastify refuses it, and the error's reply rolls back.
    if (response?.bodyUsed === true) return payload
    const source = readableOf(response?.body ?? payload)
    if (response !== undefined) {
      // As Fastify would have done.
      reply.code(response.status)
      for (const [name, value] of response.headers) reply.header(name, value)
    }
    // Fastify sends a reply without a body at once.
    if (reply.request.method === 'HEAD' || status === 204 || status === 304) return await this.#readAll(source, status)
    return gate(source, reply.hasHeader('content-length'), () => this.#endAll(status).catch((error: unknown) => {
      resetHttp2(reply)
      throw error
    }))
  }

  /** Ends them behind a stream that nobody reads. Both have one deadline together. */
  async #readAll (source: Readable, status: number): Promise<Readable> {
    const began = performance.now()
    const committing = this.#held.filter((held) => this.#commits(held, status))
    await drain(source, Math.min(...committing.map(({ transaction }) => transaction.commitTimeout || Infinity)))
    await this.#endAll(status, performance.now() - began)
    return Readable.from([])
  }

  /** Asked when it ends: the handler of a stream may fail long after its reply began. */
  #commits ({ commitOn }: Held, status: number): boolean {
    return !this.#site.failed && (commitOn === 'reply' || status < 400)
  }

  /**
   * One after the other. Behind a commit that fails the rest is rolled back; what was committed before it stays so: two
   * databases have no common transaction.
   *
   * @param spent how many ms of the commits' time have gone already
   */
  async #endAll (status: number, spent = 0): Promise<void> {
    let failure: unknown
    this.#ending = this.#held.splice(0)
    for (const held of this.#ending) {
      try {
        if (failure === undefined && this.#commits(held, status)) await held.transaction.commit(spent)
        else await held.transaction.rollback()
      } catch (error) {
        failure ??= errorOf(error)
      }
    }
    this.#ending = []
    if (failure !== undefined) throw failure
    this.#site.committed()
  }
}
