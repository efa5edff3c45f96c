import type { FastifyRequest } from 'fastify'
import type { HolderLabel } from '../../../types/pool.js'

/** Who holds the connections of a request. The request itself is not shown: it is there for the log. */
export class RequestHolder {
  readonly route: string
  readonly id: string
  #request: FastifyRequest | undefined

  constructor (route: string, request: FastifyRequest, id: string = request.id) {
    this.route = route
    this.id = id
    this.#request = request
  }

  /** As the options of an acquire: for a request that asks for nothing else, there is no object of its own. */
  get holder (): this {
    return this
  }

  /** The request has ended, and holds nothing any more. Whoever keeps its holder must not keep the request. */
  forget (): void {
    this.#request = undefined
  }

  static requestOf (holder: HolderLabel | undefined): FastifyRequest | undefined {
    return holder instanceof RequestHolder ? holder.#request : undefined
  }

  /** What a request's handler calls itself, and still known to be that request. */
  static named (request: FastifyRequest, holder: HolderLabel = {}): RequestHolder {
    if (holder instanceof RequestHolder) return holder
    const { route = '', id } = typeof holder === 'string' ? { route: holder } : holder
    return new RequestHolder(route, request, id)
  }
}
