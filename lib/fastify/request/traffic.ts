import type { FastifyRequest } from 'fastify'

/** What of a request's bytes counts as its progress. */
export class Traffic {
  readonly #request: FastifyRequest
  #sentBefore: number | undefined
  #receivedBefore: number | undefined
  /** The reply is a stream. */
  streams = false

  constructor (request: FastifyRequest) {
    this.#request = request
  }

  /**
   * How many bytes of the body, or of a streamed reply, have moved since this was first asked for either. Undefined:
   * the body is in, and the reply is no stream. Of HTTP/2 it is all that its session moves.
   */
  get moved (): number | undefined {
    const { raw } = this.#request
    // Under inject the socket counts nothing.
    const { bytesRead = 0, bytesWritten = 0, writableLength = 0 } = raw.socket
    let moved: number | undefined
    if (!raw.complete) moved = bytesRead - (this.#receivedBefore ??= bytesRead)
    if (this.streams) {
      // Without those that wait in our own buffer: a client that reads nothing moves nothing.
      const sent = bytesWritten - writableLength
      moved = (moved ?? 0) + sent - (this.#sentBefore ??= sent)
    }
    return moved
  }
}
