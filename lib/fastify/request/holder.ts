import type { FastifyRequest } from 'fastify'
import type { HolderLabel } from '../../../types/pool.js'

/** Who holds a request's connections. The request itself is not shown: it is there for the log. */
export class RequestHolder {
  readonly route: string
  readonly id: string
  readonly #request: FastifyRequest

  constructor (route: string, request: FastifyRequest, id: string = request.id) {
    this.route = route
    this.id = id
    this.#request = request
  }

  static requestOf (holder: HolderLabel | undefined): FastifyRequest | undefined {
    return holder instanceof RequestHolder ? holder.#request : undefined
  }
}
