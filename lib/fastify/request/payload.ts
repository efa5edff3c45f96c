import type { ServerHttp2Stream } from 'node:http2'
import { Readable, Transform, finished, pipeline } from 'node:stream'
import type { ReadableStream } from 'node:stream/web'
import type { FastifyReply } from 'fastify'

// The payload of a reply where it is more than a text: a stream of Node's, one of the web, or one in a `Response`.

interface OfWeb { getReader?: unknown }

/** Whether a payload is a stream of Node's or of the web, or a `Response` with one in it, of whatever class. */
export function isStream (payload: unknown): boolean {
  if (payload === null || typeof payload !== 'object') return false
  const { pipe, getReader, body } = payload as OfWeb & { pipe?: unknown, body?: OfWeb | null }
  return typeof pipe === 'function' || typeof getReader === 'function' || typeof body?.getReader === 'function'
}

export function isResponse (payload: unknown): payload is Response {
  return Object.prototype.toString.call(payload) === '[object Response]'
}

/** @throws where a stream of the web is being read by somebody else */
export function readableOf (stream: unknown): Readable {
  return stream instanceof globalThis.ReadableStream ? Readable.fromWeb(stream as ReadableStream) : stream as Readable
}

/**
 * Passes a stream on, and ends it when `commit` has resolved; when that rejects, the stream fails, and so does the
 * client's reading of it.
 *
 * @param sized the client knows the length, and takes the reply for complete when it has the last byte: the last chunk
 * waits for the commit, too
 */
export function gate (source: Readable, sized: boolean, commit: () => Promise<void>): Readable {
  let last: Buffer | undefined
  const gated = new Transform({
    transform (chunk: Buffer, _encoding, next) {
      if (!sized) return next(null, chunk)
      if (chunk.length > 0) {
        if (last !== undefined) this.push(last)
        last = chunk
      }
      next()
    },
    flush (end) { commit().then(() => { end(null, last) }, end) },
  })
  return pipeline(source, gated, () => { /* Whoever reads `gated` hears of a failure. */ })
}

/** HTTP/2's INTERNAL_ERROR (RFC 9113, section 7). Written here so that `node:http2` is not loaded for one constant. */
const internalError = 2

/**
 * Fastify destroys a response whose stream fails. HTTP/1.1 then cuts it; HTTP/2 would reset it with NO_ERROR, which
 * clients take for the end of the reply.
 */
export function resetHttp2 ({ raw }: FastifyReply): void {
  const { stream } = raw as { stream?: ServerHttp2Stream }
  if (raw.headersSent) stream?.close(internalError)
}

/**
 * Reads a stream that is for nobody, and throws it away. Destroying it would not stop the query that feeds it, and
 * nothing more could be sent on that connection, not even COMMIT. A stream that has not ended after half of the time is
 * destroyed all the same: some queries end then.
 *
 * @param ms Infinity: the stream has all the time that it needs
 * @returns when the stream is closed, and reads no more; at the latest after `ms`
 * @throws what the stream fails with
 */
export function drain (source: Readable, ms: number): Promise<void> {
  return new Promise((resolve, reject) => {
    let timer: NodeJS.Timeout | undefined
    let stopped = false
    const stop = () => {
      stopped = true
      timer = setTimeout(resolve, ms / 2)
      source.destroy()
    }
    if (ms !== Infinity) timer = setTimeout(stop, ms / 2)
    finished(source, (error) => {
      clearTimeout(timer)
      if (stopped || error === undefined || error === null) resolve()
      else reject(error)
    })
    source.resume()
  })
}
