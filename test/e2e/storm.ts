import { request } from 'node:http'
import type { Agent, ClientRequest } from 'node:http'

/** Seeded: the same numbers for the same seed (mulberry32). */
export function seeded (seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6D2B79F5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

/** When the client goes away. */
export type When =
  /** It stays. */
  | 'never'
  /** As soon as it is connected: with its headers sent, its body not or in part. */
  | 'before'
  /** When the handler has come to a point that it chose. */
  | 'during'
  /** When the answer's headers are there. */
  | 'answer'

export interface Plan {
  readonly id: number
  readonly method: 'GET' | 'POST'
  readonly path: string
  /** Of POST. */
  readonly body: string
  readonly when: When
}

export interface Outcome {
  readonly id: number
  readonly status: number | undefined
  readonly body: string | undefined
  readonly error: string | undefined
}

/** Clients in this process, so that a handler can make its own client go away. */
export class Storm {
  readonly outcomes: Outcome[] = []
  readonly #sent = new Map<number, ClientRequest>()
  readonly #port: () => number
  readonly #agent: Agent

  constructor (port: () => number, agent: Agent) {
    this.#port = port
    this.#agent = agent
  }

  /** Called by the handler: the client of that request is gone from here on. */
  goAway (id: number): void {
    this.#sent.get(id)?.destroy()
  }

  /** All of them, so many at a time. */
  async run (plans: readonly Plan[], width: number): Promise<void> {
    const rest = plans.values()
    await Promise.all(Array.from({ length: width }, async () => {
      for (const plan of rest) this.outcomes.push(await this.#one(plan))
    }))
  }

  #one ({ id, method, path, body, when }: Plan): Promise<Outcome> {
    return new Promise((resolve) => {
      let status: number | undefined
      let text = ''
      let whole = false
      let error: string | undefined
      const headers = {
        'x-id': String(id),
        ...method === 'POST' && {
          'content-type': 'text/plain', 'content-length': String(Buffer.byteLength(body)),
        }
      }
      const sent = request({ host: '127.0.0.1', port: this.#port(), agent: this.#agent, method, path, headers })
      this.#sent.set(id, sent)
      sent.on('error', (cause) => { error ??= cause.message })
      sent.on('close', () => {
        this.#sent.delete(id)
        resolve({ id, status, body: whole ? text : undefined, error })
      })
      sent.on('response', (response) => {
        status = response.statusCode
        response.setEncoding('utf8').on('data', (part: string) => { text += part })
        response.on('error', (cause) => { error ??= cause.message })
        response.on('end', () => { whole = true })
        if (when === 'answer') sent.destroy()
      })
      if (when === 'before') {
        sent.flushHeaders()
        // Half of the body, or nothing: what comes first on the server is chance.
        if (method === 'POST' && id % 2 === 0) sent.write(body.slice(0, body.length / 2))
        sent.on('socket', (socket) => {
          if (socket.connecting) socket.once('connect', () => { sent.destroy() })
          else setImmediate(() => { sent.destroy() })
        })
      } else {
        sent.end(method === 'POST' ? body : undefined)
      }
    })
  }
}
