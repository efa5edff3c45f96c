import type { FastifyReply } from 'fastify'
import { Turn } from './turn.js'

// Replies that were handed over, and may be read slowly or not at all.

/** A request whose reply was handed over. */
export interface Replied {
  readonly over: boolean
  /** The request is not over one turn of the event loop later. */
  linger (): void
}

/**
 * Replies that were handed over just now. Nearly all requests are over before the next turn of the event loop: one look
 * for all replies of a turn is cheaper than a timer for each of them.
 */
const handed = new Turn<Replied>((request) => { if (!request.over) request.linger() })

/** A reply is handed over now. */
export function handOver (request: Replied): void {
  handed.add(request)
}

/**
 * Calls `fn` when the headers of a response are written, or now if they are: those of a stream go with its first data.
 */
export function onHeaders (raw: FastifyReply['raw'], fn: () => void): void {
  if (raw.headersSent) return fn()
  const { writeHead } = raw
  raw.writeHead = function (this: typeof raw, ...args: unknown[]) {
    const result = Reflect.apply(writeHead, this, args) as typeof raw
    fn()
    return result
  }
}
