import type { Socket } from 'node:net'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { PoolError, fieldOf, isReadable, scrub } from '../../engine/errors.js'

/**
 * The pipelined requests whose responses are queued on one socket, behind others. One listener for all of them: thirty
 * would look like a leak to Node.
 */
export class Queue extends Set<() => void> {
  static readonly #all = new WeakMap<Socket, Queue>()
  readonly #end = () => { for (const end of this) end() }

  /** Calls `end` when the socket closes. Returns its own undo. */
  static join (socket: Socket, end: () => void): () => void {
    let queue = Queue.#all.get(socket)
    if (queue === undefined) {
      queue = new Queue()
      Queue.#all.set(socket, queue)
      socket.on('close', queue.#end)
    }
    queue.add(end)
    return () => { queue.#leave(socket, end) }
  }

  #leave (socket: Socket, end: () => void): void {
    this.delete(end)
    if (this.size > 0) return
    Queue.#all.delete(socket)
    socket.off('close', this.#end)
  }
}

/** Whether a request has ended: every signal of that may have been emitted already, while an earlier hook waited. */
export function isOver (request: FastifyRequest, { raw }: FastifyReply): boolean {
  // HTTP/2's response has no `destroyed` of its own; under inject the socket has none.
  const { stream } = raw as { stream?: { destroyed: boolean } }
  return raw.writableEnded || (stream?.destroyed ?? raw.destroyed) || request.raw.socket?.destroyed === true
}

/**
 * A CORS preflight, or a socket that Node has given up for an upgrade: it leases only what its route names. A header
 * alone makes no upgrade: an app without a listener for upgrades is asked by Node as for any other request.
 */
export function isUnusual (request: FastifyRequest): boolean {
  return request.method === 'OPTIONS' || isUpgrade(request)
}

export function isUpgrade (request: FastifyRequest): boolean {
  const { upgrade } = request.raw as { upgrade?: boolean }
  // @fastify/websocket makes the requests of injectWS() by hand, without Node's mark; it marks them with `ws`.
  return upgrade === true || (request as { ws?: unknown }).ws === true
}

export function overError (): PoolError {
  return new PoolError('FST_POOL_ABORTED', 'the request is over: it gets no connection any more')
}

/** What requests have of `handlerTimeout`, from Fastify 5.8 on. */
interface Timed {
  readonly routeOptions: { readonly handlerTimeout?: number }
  /** A getter: Fastify makes the signal when it is read. */
  readonly signal?: AbortSignal
}

export function hasTimedOut (request: object): boolean {
  const timed = request as Timed
  const { handlerTimeout = 0 } = timed.routeOptions
  return handlerTimeout > 0 && isHandlerTimeout(timed.signal?.reason)
}

export function isHandlerTimeout (error: unknown): boolean {
  return fieldOf(error, 'code') === 'FST_ERR_HANDLER_TIMEOUT'
}

/**
 * An error that Fastify can answer with, whatever was thrown: it takes one that is falsy for none, and answers with the
 * status 200 where it can't be read.
 */
export function errorOf (reason: unknown): Error {
  if (!reason) return new Error(`what was thrown is no error: ${String(reason)}`)
  return isReadable(reason) ? reason as Error : scrub(reason, [])
}
