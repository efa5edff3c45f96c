import Fastify, { type FastifyInstance, type FastifyRequest } from 'fastify'
import type { Cluster, Redis } from 'ioredis'
import type { Test } from 'tap'
import fastifyPool, { type PoolOptions } from '../../index.js'
import type { PoolEvents, PoolHealth } from '../../types/pool.js'
import { listen, uncaught } from '../support/app.js'
import { startPace, type Pace } from '../support/order.js'
import { askRedis, type Server } from '../support/services.js'
import { until } from '../support/until.js'
import { ask, keepAliveAgent } from './client.js'

export type Client = Redis | Cluster

/** One answer to a write. */
export interface Written {
  /** When it was asked, and when it was answered. */
  readonly began: number
  readonly at: number
  /** How often a plain client had written by then: see `compare`. */
  readonly round: number
  readonly status: number
  /** The write's number; of an error its code, or its message. */
  readonly body: string
}

export interface Service {
  readonly app: FastifyInstance
  readonly shared: Client
  /** All that was answered, in this order. */
  readonly answers: readonly Written[]
  readonly failovers: ReadonlyArray<PoolEvents['failover']>
  /** Resolves with the first write that was asked after that moment and succeeded. */
  firstAfter (time: number): Promise<Written>
  /** From here on a plain client writes too, and each answer says how often it has. */
  compare (write: () => Promise<unknown>): void
  /** @param health what the pool should say of itself then. Default 'up' */
  stop (health?: PoolHealth['status']): Promise<void>
}

const width = 6

/**
 * A service that writes to one key for each request, by `write`, under the load of a few clients that try again at
 * once.
 */
export async function serve (
  t: Test, pool: PoolOptions, write: (connection: Client, n: number) => Promise<unknown>
): Promise<Service> {
  const strays = uncaught(t)
  const app = Fastify()
  await app.register(fastifyPool, pool)
  const failovers: Array<PoolEvents['failover']> = []
  app.pools.on('failover', (event) => failovers.push(event))
  app.setErrorHandler((error: Error & { statusCode?: number, code?: string }, _request, reply) =>
    reply.code(error.statusCode ?? 500).send(error.code ?? error.message))
  let n = 0
  app.post('/', async (request) => {
    const mine = ++n
    await write((request as FastifyRequest & { db: Client }).db, mine)
    return String(mine)
  })
  const port = await listen(t, app)
  const agent = keepAliveAgent(t)
  const answers: Written[] = []
  let pace: Pace | undefined
  const load = { on: true }
  const clients = Promise.all(Array.from({ length: width }, async () => {
    while (load.on) {
      const began = performance.now()
      const { status, body } = await ask({ port, path: '/', method: 'POST', agent })
      const at = performance.now()
      answers.push({ began, at, round: pace?.rounds ?? 0, status, body })
      // Others need the CPU too.
      await until(() => !load.on || performance.now() > at + 4)
    }
  }))
  const firstAfter = (time: number) =>
    until(() => answers.find(({ began, status }) => began > time && status === 200),
      { timeout: 20_000, what: 'a write succeeds' })
  await firstAfter(performance.now())
  return {
    app,
    shared: (app as FastifyInstance & { redis: Client }).redis,
    answers,
    failovers,
    firstAfter,
    compare: (write) => { pace = startPace(t, write) },
    stop: async (health = 'up') => {
      load.on = false
      await pace?.stop()
      await clients
      t.same(strays, [], 'nothing was uncaught')
      // Targets are asked by leases, too.
      const isAtRest = () => { const { used, pending } = app.pools.stats().db!; return used + pending === 0 }
      await until(isAtRest, { what: 'nobody has a connection or waits for one' })
      t.match(app.pools.stats().db, { late: 0 })
      t.equal((await app.pools.health()).status, health)
    },
  }
}

/**
 * From the first write of a plain client to the first one of ours there are less rounds than these: 3 s where nothing
 * is slow.
 */
export const within = 60

/** A write of a plain client: it throws where that server takes none. */
export async function writeTo ({ url }: Server, key: string): Promise<void> {
  const answer = await askRedis(new URL(url), `SET ${key} 1`)
  if (!answer.startsWith('+OK')) throw new Error(answer)
}

/**
 * Those that failed though ten writes of the plain client came after the first success: one that was lucky proves
 * nothing.
 */
export function failedSince (first: Written, answers: readonly Written[]): Written[] {
  return answers.filter(({ round, status }) => round > first.round + 10 && status !== 200)
}

/** How often each answer was given that was no success. */
export function failuresOf (answers: readonly Written[]): string {
  const counts = new Map<string, number>()
  for (const { status, body } of answers) {
    if (status !== 200) {
      counts.set(`${status} ${body}`,
        (counts.get(`${status} ${body}`) ?? 0) + 1)
    }
  }
  return [...counts].map(([what, count]) => `${what} x${count}`).join(', ') || 'none'
}
