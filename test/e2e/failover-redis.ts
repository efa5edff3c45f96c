import type { AddressInfo } from 'node:net'
import Fastify, { type FastifyInstance, type FastifyRequest } from 'fastify'
import type { Cluster, Redis } from 'ioredis'
import type { Test } from 'tap'
import fastifyPool, { type PoolOptions } from '../../index.js'
import type { PoolEvents, PoolHealth } from '../../types/pool.js'
import { until } from '../support/until.js'
import { ask, keepAliveAgent } from './client.js'

export type Client = Redis | Cluster

/** One answer to a write. */
export interface Written {
  /** When it was asked, and when it was answered. */
  readonly began: number
  readonly at: number
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
  /** @param health what the pool should say of itself then. Default 'up' */
  stop (health?: PoolHealth['status']): Promise<void>
}

const width = 6

/** A service that writes to one key for each request, by `write`, under the load of a few clients that try again at once. */
export async function serve (t: Test, pool: PoolOptions, write: (connection: Client, n: number) => Promise<unknown>): Promise<Service> {
  const strays: unknown[] = []
  const listen = (error: unknown) => { strays.push(error) }
  process.on('unhandledRejection', listen)
  t.teardown(() => process.off('unhandledRejection', listen))
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(fastifyPool, pool)
  const failovers: Array<PoolEvents['failover']> = []
  app.pools.on('failover', (event) => failovers.push(event))
  app.setErrorHandler((error: Error & { statusCode?: number, code?: string }, _request, reply) => reply.code(error.statusCode ?? 500).send(error.code ?? error.message))
  let n = 0
  app.post('/', async (request) => {
    const mine = ++n
    await write((request as FastifyRequest & { db: Client }).db, mine)
    return String(mine)
  })
  await app.listen({ port: 0, host: '127.0.0.1' })
  const { port } = app.server.address() as AddressInfo
  const agent = keepAliveAgent(t)
  const answers: Written[] = []
  const load = { on: true }
  const clients = Promise.all(Array.from({ length: width }, async () => {
    while (load.on) {
      const began = performance.now()
      const { status, body } = await ask({ port, path: '/', method: 'POST', agent })
      const at = performance.now()
      answers.push({ began, at, status, body })
      // Others need the CPU too.
      await until(() => !load.on || performance.now() > at + 4)
    }
  }))
  const firstAfter = (time: number) => until(() => answers.find(({ began, status }) => began > time && status === 200), { timeout: 20_000, what: 'a write succeeds' })
  await firstAfter(performance.now())
  return {
    app,
    shared: (app as FastifyInstance & { redis: Client }).redis,
    answers,
    failovers,
    firstAfter,
    stop: async (health = 'up') => {
      load.on = false
      await clients
      t.same(strays, [], 'nothing was uncaught')
      t.match(app.pools.stats().db, { used: 0, pending: 0, late: 0 })
      t.equal((await app.pools.health()).status, health)
    },
  }
}

/** How often each answer was given that was no success. */
export function failuresOf (answers: readonly Written[]): string {
  const counts = new Map<string, number>()
  for (const { status, body } of answers) if (status !== 200) counts.set(`${status} ${body}`, (counts.get(`${status} ${body}`) ?? 0) + 1)
  return [...counts].map(([what, count]) => `${what} x${count}`).join(', ') || 'none'
}
