// An app without any driver: a pool of connections of its own.
import Fastify from 'fastify'
import pool, { Pool, PoolError, TargetPool } from 'fastify-pool'
import type {
  Connector, Lease, PluginOptions, PoolEvents, PoolFace, PoolOptions, PoolStats, Pools, RunOptions,
} from 'fastify-pool'
import { assertIdle, fakePool, faults, rollbackEach, type FakePool } from 'fastify-pool/testing'

class Line {
  say (text: string): string { return text }
}

declare module 'fastify-pool' {
  interface RequestPools { line: Line }
}

const connector: Connector<Line> = {
  system: 'line',
  create: async (signal) => { signal.throwIfAborted(); return new Line() },
  destroy: (line, reason) => { line.say(reason) },
  isBroken: (line) => line.say('') !== '',
}
const options: PoolOptions<Line> = { connector, max: 5, circuit: { failures: 3 }, lease: { acquire: 'preHandler' } }
const all: PluginOptions = { pools: { line: options }, log: { acquire: 'debug' } }

export async function serve (): Promise<void> {
  const app = Fastify()
  await app.register(pool, all)
  await app.register(pool, { connector, name: 'other', max: 2, onConnect: (connection, info) => { info.pool.at(0) } })

  app.get('/', { config: { pools: { line: { release: 'onSend', role: 'replica' } } } }, async (request) => {
    const lease: Lease<Line> = request.lease('line')
    const taken: Lease<unknown> = await request.acquire('other', { timeout: 100 })
    const length: number = await request.transaction('line', (line) => line.say('a').length)
    // @ts-expect-error No pool of that name was declared.
    request.absent.toString()
    // @ts-expect-error It is a Line, not any.
    request.line.shout()
    return [request.line.say('a'), lease.connection.say('b'), taken.pool, length]
  })

  const pools: Pools = app.pools
  const face: PoolFace<Line> = pools.get('line')
  const stats: PoolStats = face.stats()
  const undo: () => void = pools.on('failover', ({ from }: PoolEvents['failover']) => from?.at(0))
  const run: RunOptions = { isolation: 'serializable', retry: 1 }

  const own = new Pool(connector, { max: 2 })
  const text: string = await own.use((line, lease) => line.say(lease.pool), { signal: AbortSignal.timeout(100) })
  const code: string = await own.transaction((line) => line.say(text), run).catch((error: unknown) => {
    if (error instanceof PoolError && error.code === 'FST_POOL_ACQUIRE_TIMEOUT') return error.code
    throw error
  })
  const targets = new TargetPool([{ connector, role: 'primary' }], { balance: 'least-used' })
  const several: Line = (await targets.acquire({ role: 'replica' })).connection
  several.say(`${code} ${stats.max} ${stats.circuit} ${(await pools.health()).status}`)
  undo()

  // @ts-expect-error There is no such backend.
  const wrong: PoolOptions = { backend: 'oracle' }
  await app.register(pool, wrong)
}

export async function tests (t: { after (fn: () => Promise<void>): void }): Promise<void> {
  const app = Fastify()
  const line: FakePool<Line> = fakePool(() => new Line())
  await app.register(pool, { pools: { line, other: { ...line, max: 1 } } })
  await rollbackEach(t, app, 'line')
  faults(app, 'line').loseCommit({ stored: line.acquired > 0 })
  assertIdle(app)
}
