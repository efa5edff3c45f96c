import type { AddressInfo } from 'node:net'
import { Readable } from 'node:stream'
import Fastify, { type FastifyReply } from 'fastify'
import type { Test } from 'tap'
import fastifyPool, { type PluginOptions, type PoolFace, type PoolOptions } from '../../index.js'
import { Client } from '../support/client.js'
import { type FaultProxy, startProxy } from '../support/proxy.js'
import type { Server } from '../support/services.js'
import { until } from '../support/until.js'

/**
 * In ms: the tests of what never ends wait for it. What should end has so much time that it is not a matter of time.
 */
const commitTimeout = 500
const patience = 60_000

/** So many tests of a file run side by side: each has an app of its own, and waits most of its time. */
const together = 4

/** A kind of database, for tests of commits that do not end. */
export interface Subject<C> {
  readonly server: Server
  pool (url: string): PoolOptions
  /** Makes the table `kept (id)`. */
  prepare (connection: C): Promise<unknown>
  keep (connection: C, id: string): Promise<unknown>
  kept (connection: C): Promise<string[]>
  /** In the text of what is sent for a commit. */
  readonly commit: string
  /** Whether an error is one that the pool runs again, and its driver's code. */
  isTransient (error: unknown): boolean
}

/** What a handler does after it has written, and what its client should hear. */
export interface Case<C> {
  readonly name: string
  readonly method?: 'GET' | 'HEAD'
  then (connection: C, reply: FastifyReply): unknown
  readonly status: number
  /** Where the status is 500. */
  readonly code?: 'FST_POOL_COMMIT_TIMEOUT'
  /** Where it is neither `patience` nor that of a commit which never ends. */
  readonly commitTimeout?: number
}

interface ServeOptions<C> {
  cases?: ReadonlyArray<Case<C>>
  url?: string
  max?: number
  commitTimeout?: number
  acquireTimeout?: number
}

export async function serve<C> (
  t: Test,
  { pool, keep, server, ...subject }: Subject<C>,
  { cases = [], url = server.url, ...options }: ServeOptions<C> = {}
) {
  const app = Fastify()
  await app.register(fastifyPool,
    { max: 2, acquireTimeout: patience, commitTimeout, log: false, ...pool(url), ...options } as PluginOptions)
  const db = app.pools.get('db') as unknown as PoolFace<C>
  await db.use((connection) => subject.prepare(connection))
  const errors: unknown[] = []
  app.addHook('onError', (_request, _reply, error, done) => {
    errors.push(error)
    done()
  })
  const inTransaction = { config: { pools: { db: { transaction: true } } } }
  const idOf = (query: unknown) => (query as { id: string }).id
  for (const [at, { then }] of cases.entries()) {
    app.get(`/${at}`, inTransaction, async (request, reply) => {
      await keep(request.db as C, idOf(request.query))
      return await then(request.db as C, reply)
    })
  }
  app.get('/route', inTransaction, async (request) => {
    await keep(request.db as C, idOf(request.query))
    return 'done'
  })
  app.get('/by-hand', async (request) => {
    await request.transaction('db', (connection) => keep(connection as C, idOf(request.query)))
    return 'done'
  })
  app.get('/stream', inTransaction, async (request, reply) => {
    await keep(request.db as C, idOf(request.query))
    return await reply.send(Readable.from(['one\n', 'two\n']))
  })
  app.get('/ping', async (request) => ({ kept: await subject.kept(request.db as C) }))
  await app.listen({ port: 0, host: '127.0.0.1' })
  t.teardown(() => app.close())
  const { port } = app.server.address() as AddressInfo
  const client = () => new Client(t, port)
  const ask = (method: string, path: string) => client().send(method, path).answer()
  return { app, db, port, errors, client, ask, stats: () => db.stats() }
}

export async function unused ({ stats }: { stats (): { used: number, closing: number } }): Promise<void> {
  await until(() => stats().used + stats().closing === 0, { what: `no connection used: ${JSON.stringify(stats())}` })
}

/**
 * What a handler left on its connection does not keep the app from serving: twice as many requests as there are
 * connections, side by side, then another one.
 *
 * @param cases of the database
 */
export async function behind<C> (t: Test, subject: Subject<C>, cases: ReadonlyArray<Case<C>>): Promise<void> {
  t.jobs = together
  await Promise.all(cases.map(({ name, method = 'GET', status, code, commitTimeout: own }, at) =>
    t.test(`${name}: ${status}`, { buffered: true }, async (t) => {
      const served =
        await serve(t, subject, { cases, commitTimeout: own ?? (code === undefined ? patience : commitTimeout) })
      const ids = [1, 2, 3, 4].map((n) => `${process.pid}-${at}-${n}`)
      const answers = await Promise.all(ids.map((id) => served.ask(method, `/${at}?id=${id}`)))
      t.same(answers.map((answer) => answer.status), ids.map(() => status))
      t.same(served.errors.map((error) => (error as { code?: unknown }).code),
        code === undefined ? [] : ids.map(() => code))
      const { kept } = JSON.parse((await served.ask('GET', '/ping')).body) as { kept: string[] }
      t.same(ids.filter((id) => kept.includes(id)), status < 400 ? ids : [],
        status < 400 ? 'all is stored' : 'nothing is stored')
      await unused(served)
    })))
}

/** Clients that stop reading keep their connections until they leave, and then the app serves again. */
export async function stalled<C> (t: Test, subject: Subject<C>, source: (connection: C) => Readable): Promise<void> {
  const served =
    await serve(t, subject,
      { cases: [{ name: 'a stream', then: (connection, reply) => reply.send(source(connection)), status: 200 }] })
  const ids = [1, 2].map((n) => `${process.pid}-stalled-${n}`)
  const clients = ids.map((id) => new Client(t, served.port, { reading: false }).send('GET', `/0?id=${id}`))
  await until(() => clients.every(({ socket }) => socket.readableLength > 0), { what: 'the beginning of both replies' })
  for (const client of clients) client.leave()
  await unused(served)
  t.same(served.stats().destroyed.aborted, 2)
  const { kept } = JSON.parse((await served.ask('GET', '/ping')).body) as { kept: string[] }
  t.same(ids.filter((id) => kept.includes(id)), [])
}

/** A network that swallows the commit, or its answer, or loses the connection with it. */
export async function lost<C> (t: Test, subject: Subject<C>): Promise<void> {
  const through = async (t: Test, options: Parameters<typeof serve<C>>[2] = {}) => {
    const proxy = await startProxy(t, subject.server)
    const url = new URL(subject.server.url)
    url.host = `${proxy.host}:${proxy.port}`
    const served = await serve(t, subject, { url: url.href, ...options })
    const kept = async (id: string) => (await served.db.use((connection) => subject.kept(connection))).includes(id)
    return { proxy, served, kept }
  }
  let last = 0
  const fresh = () => `lost-${process.pid}-${++last}`
  t.jobs = together
  const tests: Array<Promise<unknown>> = []
  const test = (name: string, fn: (t: Test) => Promise<void>) => { tests.push(t.test(name, { buffered: true }, fn)) }

  for (const what of ['command', 'answer'] as const) {
    for (const path of ['/route', '/by-hand']) {
      test(`${path}: a network that swallows the commit's ${what}: nobody knows, within commitTimeout`, async (t) => {
        const { proxy, served, kept } = await through(t)
        t.equal((await served.ask('GET', `${path}?id=${fresh()}`)).status, 200)
        proxy.loseFrom(subject.commit, what)
        const ids = [fresh(), fresh()]
        const answers = await Promise.all(ids.map((id) => served.ask('GET', `${path}?id=${id}`)))
        for (const { status, body } of answers) {
          t.equal(status, 500)
          t.match(JSON.parse(body), { code: 'FST_POOL_COMMIT_UNKNOWN', message: /^nobody knows/ })
        }
        await proxy.heal()
        t.same(await Promise.all(ids.map(kept)), ids.map(() => what === 'answer'), 'and it is true')
        await unused(served)
      })
    }
  }

  test('a streamed reply whose commit nobody knows of is cut off', async (t) => {
    const { proxy, served } = await through(t)
    proxy.loseFrom(subject.commit, 'answer')
    const client = served.client().send('GET', `/stream?id=${fresh()}`)
    await client.hears('two')
    await until(() => client.closed, { what: 'the end of the reply' })
    await t.rejects(client.answer())
    await unused(served)
  })

  const cuts: Record<string, (proxy: FaultProxy) => void> = {
    'a RST': (proxy) => { proxy.resetAll() },
    'a FIN': (proxy) => { proxy.endAll() },
  }
  for (const [name, cut] of Object.entries(cuts)) {
    test(`${name} instead of the commit's answer: nobody knows, and nothing is run again`, async (t) => {
      const { proxy, served, kept } = await through(t, { max: 1 })
      const id = fresh()
      let runs = 0
      proxy.loseFrom(subject.commit, 'answer')
      const job = served.db.use((_, lease) => {
        runs++
        return lease.transaction((connection) => subject.keep(connection, id), { retry: 2 })
      }, { retry: 2 })
      const failed = job.then(() => undefined, (error: unknown) => error as Error & { code?: string })
      await until(async () => (await outside(subject)).includes(id), { what: 'the server has committed' })
      cut(proxy)
      const error = await failed
      t.equal(error?.code, 'FST_POOL_COMMIT_UNKNOWN')
      t.ok(error?.cause instanceof Error, 'with what the driver says')
      t.notOk(subject.isTransient(error))
      t.equal(runs, 1)
      await proxy.heal()
      t.ok(await kept(id))
      await unused(served)
    })
  }

  test('a commit on a connection that died before is not in doubt: it is what the driver says', async (t) => {
    const { proxy, served, kept } = await through(t, { max: 1 })
    const id = fresh()
    const error = await served.db.transaction(async (connection) => {
      await subject.keep(connection, id)
      proxy.resetAll()
      await until(() => served.db.backend.isBroken!(connection), { what: 'the death' })
    }).then(() => undefined, (error: unknown) => error as Error & { code?: string })
    t.ok(error instanceof Error)
    t.not(error?.code, 'FST_POOL_COMMIT_UNKNOWN')
    t.notOk(await kept(id))
  })

  for (const [phase, how] of [['begin', 'FST_POOL_ACQUIRE_TIMEOUT'], ['savepoint', 'FST_POOL_ACQUIRE_TIMEOUT'], ['release', 'FST_POOL_COMMIT_TIMEOUT'], ['rollback', 'mine']] as const) {
    test(`a network that is silent from the ${phase} on: its deadline, and the connection is destroyed`, async (t) => {
      const { proxy, served } = await through(t, { max: 1, acquireTimeout: 2000 })
      const error = await served.db.use(async (_, lease) => {
        if (phase === 'begin') proxy.blackHole()
        return await lease.transaction(async (connection) => {
          await subject.keep(connection, fresh())
          if (phase === 'savepoint' || phase === 'rollback') proxy.blackHole()
          if (phase === 'rollback') throw new Error('mine')
          await lease.transaction(() => { if (phase === 'release') proxy.blackHole() })
        }, { commitTimeout })
      }).then(() => undefined, (error: unknown) => error as Error & { code?: string })
      t.equal(error?.code ?? error?.message, how)
      t.equal(served.stats().destroyed.error, 1)
      await proxy.heal()
      t.equal((await served.ask('GET', '/ping')).status, 200)
      await unused(served)
    })
  }
  await Promise.all(tests)
}

/** What is stored, as somebody else sees it. */
async function outside<C> (subject: Subject<C>): Promise<string[]> {
  const app = Fastify()
  try {
    await app.register(fastifyPool, { log: false, ...subject.pool(subject.server.url), max: 1 } as PluginOptions)
    return await (app.pools.get('db') as unknown as PoolFace<C>).use((connection) => subject.kept(connection))
  } finally {
    await app.close()
  }
}
