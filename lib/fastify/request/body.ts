import type { FastifyRequest } from 'fastify'
import { isStream } from './payload.js'
import { Turn } from './turn.js'

// The body of a request: whether it has one, and whether somebody has read it.

/** Methods whose body Fastify never reads. A client may send one all the same: that must not change anything. */
export function isBodiless (method: string): boolean {
  return method === 'GET' || method === 'HEAD' || method === 'TRACE'
}

/** Whether the headers announce a body that will be read. */
export function hasBody ({ method, raw }: FastifyRequest): boolean {
  if (isBodiless(method)) return false
  const { stream } = raw as { stream?: { endAfterHeaders?: boolean } }
  if (stream?.endAfterHeaders !== undefined) return !stream.endAfterHeaders
  const length = raw.headers['content-length']
  return (length !== undefined && length !== '0') || raw.headers['transfer-encoding'] !== undefined
}

/** A request whose body is awaited. */
export interface Awaiting {
  /** The body is not in one turn of the event loop later. */
  bodyIsSlow (): void
}

/**
 * Requests that began just now to wait for their bodies. Nearly all bodies are in before the next turn of the event
 * loop: one look for all requests of a turn is cheaper than to be ready to give back the connections of each.
 */
const awaited = new Turn<Awaiting>((request) => { request.bodyIsSlow() })

/** A request begins to wait for its body. */
export function expectBody (request: Awaiting): void {
  awaited.add(request)
}

/**
 * Whether the body has been read. Where it has not when its content type parser is done, the handler reads it (uploads
 * by @fastify/multipart, proxies): how much of it has come by then is chance, so it is not asked.
 */
export function isBodyRead ({ body, raw }: FastifyRequest): boolean {
  return raw.readableEnded || (body !== undefined && !isStream(body))
}
