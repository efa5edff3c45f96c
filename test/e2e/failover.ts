import Fastify, { type FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import fastifyPool, { type PoolEvents, type PoolOptions } from '../../index.js'
import { listen } from '../support/app.js'
import type { Server } from '../support/services.js'
import { ask, keepAliveAgent } from './client.js'

/**
 * So many writes of a plain client (see `startPace`) the new primary may do before one of ours: 3 s of them where
 * nothing is slow.
 */
export const within = 60

export interface Seen {
  readonly method: string
  readonly status: number
  /** Of the server that did it, as it says itself. */
  readonly port: number | undefined
  readonly code: string | undefined
  readonly retryAfter: string | undefined
  /** When it was sent and when it was answered. */
  readonly sent: number
  readonly at: number
}

export interface Service {
  readonly app: FastifyInstance
  readonly port: number
  readonly failovers: Array<PoolEvents['failover']>
  readonly disconnects: Array<PoolEvents['disconnect']>
}

/** GET / reads and POST / writes, each on `db`; both answer with the port of the server that did it. */
export async function serve (
  t: Test, pool: PoolOptions, { read, write }: Record<'read' | 'write', (connection: unknown) => Promise<number>>
): Promise<Service> {
  const app = Fastify()
  await app.register(fastifyPool, pool)
  app.setErrorHandler((error: Error & { statusCode?: number, code?: string }, _request, reply) =>
    reply.code(error.statusCode ?? 500).send({ code: error.code ?? error.message }))
  const answer = (work: (connection: unknown) => Promise<number>) => async (request: object) =>
    ({ port: await work((request as { db: unknown }).db) })
  app.get('/', answer(read))
  app.post('/', answer(write))
  const failovers: Service['failovers'] = []
  const disconnects: Service['disconnects'] = []
  app.pools.on('failover', (event) => { failovers.push(event) })
  app.pools.on('disconnect', (event) => { disconnects.push(event) })
  const port = await listen(t, app)
  return { app, port, failovers, disconnects }
}

/** Clients that ask again and again, until the test ends. */
export function startLoad (t: Test, port: number, { writers = 4, readers = 2 } = {}) {
  const agent = keepAliveAgent(t)
  const seen: Seen[] = []
  const load = { on: true }
  const client = async (method: string): Promise<void> => {
    while (load.on) {
      const sent = performance.now()
      const { status, headers, body } = await ask({ port, path: '/', method, agent })
      const { port: server, code } = JSON.parse(body) as { port?: number, code?: string }
      seen.push({ method, status, port: server, code, retryAfter: headers['retry-after'], sent, at: performance.now() })
    }
  }
  const clients =
    Promise.all([...Array<string>(writers).fill('POST'), ...Array<string>(readers).fill('GET')].map(client))
  const stop = async () => {
    load.on = false
    await clients
  }
  t.teardown(stop)
  return { seen, stop }
}

export const served = (seen: readonly Seen[], method: string, server?: Server, since = 0) =>
  seen.filter((one) => one.method === method && one.status === 200 && one.sent >= since &&
    (server === undefined || one.port === server.port))

export const failed = (seen: readonly Seen[], method?: string, since = 0) =>
  seen.filter((one) => one.status !== 200 && one.sent >= since && (method === undefined || one.method === method))

/** How often each server is among those that answered. */
export function tally (servers: readonly Server[], ports: readonly number[]): number[] {
  return servers.map(({ port }) => ports.filter((one) => one === port).length)
}
