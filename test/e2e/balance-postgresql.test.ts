import Fastify, { type FastifyInstance, type FastifyReply } from 'fastify'
import pg, { type Client } from 'pg'
import t, { type Test } from 'tap'
import fastifyPool, { type PoolEvents, type PoolOptions } from '../../index.js'
import { listen } from '../support/app.js'
import { askPostgres, startPostgres, type Server } from '../support/services.js'
import { needsGroup, startPostgresPair } from '../support/topologies.js'
import { until } from '../support/until.js'
import { ask, keepAliveAgent } from './client.js'
import { tally } from './failover.js'

/** Requests that hold their connection until they are let go, each with the port that its server says it has. */
class Held {
  readonly #gates: Array<{ port: number, open: () => void }> = []

  wait (port: number): Promise<void> {
    return new Promise((resolve) => { this.#gates.push({ port, open: resolve }) })
  }

  get ports (): number[] {
    return this.#gates.map(({ port }) => port)
  }

  letGo (which: (port: number) => boolean = () => true): void {
    const kept = this.#gates.splice(0).filter((gate) => {
      if (which(gate.port)) gate.open()
      return !which(gate.port)
    })
    this.#gates.push(...kept)
  }
}

async function serve (t: Test, pool: Partial<PoolOptions>) {
  const app = Fastify()
  const held = new Held()
  await app.register(fastifyPool, { backend: 'postgresql', ...pool } as PoolOptions)
  app.setErrorHandler((error: Error & { statusCode?: number, code?: string }, _request, reply) =>
    reply.code(error.statusCode ?? 500).send(`${error.code} ${error.message}`))
  const where = async (request: { db: unknown }, reply: FastifyReply) => {
    const { rows: [row] } = await (request.db as Client)
      .query<{ port: string }>("SELECT current_setting('port') AS port")
    reply.header('x-port', row!.port)
    return Number(row!.port)
  }
  app.route({
    method: ['GET', 'POST', 'PUT', 'PATCH', 'DELETE'],
    url: '/',
    handler: async (request,
      reply) => { await where(request, reply) }
  })
  app.get('/held', async (request, reply) => held.wait(await where(request, reply)))
  const port = await listen(t, app, () => { held.letGo() })
  const agent = keepAliveAgent(t)
  /** The port of the server that served it. @throws where it was not served */
  const request = async (method = 'GET', path = '/'): Promise<number> => {
    const { status, headers, body } = await ask({ port, path, method, agent })
    if (status !== 200) throw new Error(`${method} ${path}: ${status} ${body}`)
    return Number(headers['x-port'])
  }
  return { app, held, request }
}

/**
 * Each target has been asked what it is, and is not asked again: whoever asks takes a connection of it, which would
 * count.
 */
async function serveAsked (t: Test, pool: Partial<PoolOptions>) {
  const served = await serve(t, { ...pool, checkInterval: 600_000 })
  await until(() => served.app.pools.stats().db!.targets!.every(({ lag, role, used }) =>
    used === 0 && (role === 'primary' || lag !== null)), { what: 'each target has been asked' })
  return served
}

async function oneByOne (count: number, request: () => Promise<number>): Promise<number[]> {
  const ports: number[] = []
  while (ports.length < count) ports.push(await request())
  return ports
}

t.test('PostgreSQL: a primary and two replicas', needsGroup('PostgreSQL'), async (t) => {
  const { primary, replicas, ...pair } = await startPostgresPair(t, { replicas: 2 })
  const [light, heavy] = replicas as [Server, Server]
  const servers = [primary, light, heavy]
  const targets =
    [{ name: 'primary', url: primary.url }, { name: 'light', url: light.url, role: 'replica', weight: 1 },
      { name: 'heavy', url: heavy.url, role: 'replica', weight: 3 }] as const

  await t.test('the method decides: GET and HEAD read from replicas, all others go to the primary', async (t) => {
    const { request } = await serve(t, { targets })
    for (const method of ['POST', 'PUT', 'PATCH', 'DELETE']) t.equal(await request(method), primary.port, method)
    for (const method of ['GET', 'HEAD']) t.not(await request(method), primary.port, method)
  })

  for (const together of [1, 8]) {
    await t.test(`weighted: 400 reads, ${together} at a time, are shared by weight, and 100 writes are the primary's`, async (t) => {
      const { request } = await serveAsked(t, { targets, max: 30 })
      const reads = (await Promise.all(Array.from({ length: together }, () => oneByOne(400 / together, request))))
        .flat()
      const [none, few, many] = tally(servers, reads) as [number, number, number]
      t.equal(none, 0)
      t.equal(few + many, 400)
      t.ok(Math.abs(few - 100) <= 12, `${few} to ${many} for 1 to 3`)
      t.comment(`weighted, ${together} at a time: ${few} to ${many} for 1 to 3`)
      t.same(tally(servers, await oneByOne(100, () => request('POST'))), [100, 0, 0])
    })
  }

  await t.test('round-robin: in turn, whatever the weights', async (t) => {
    const { request } = await serveAsked(t, { targets, balance: 'round-robin' })
    const [none, one, other] = tally(servers, await oneByOne(200, request)) as [number, number, number]
    t.equal(none, 0)
    // A target without an idle connection is passed over, and gets its turn later.
    t.ok(Math.abs(one - other) <= 4, `${one} to ${other}`)
  })

  await t.test('random: by chance, as the weights say', async (t) => {
    const { request } = await serveAsked(t, { targets, balance: 'random' })
    const [none, few, many] = tally(servers, await oneByOne(400, request)) as [number, number, number]
    t.equal(none, 0)
    // Six standard deviations.
    t.ok(Math.abs(few - 100) < 52, `${few} to ${many} for 1 to 3`)
    t.comment(`random: ${few} to ${many} for 1 to 3`)
  })

  await t.test('least-used: to the one with the fewest leases for its weight, as the servers themselves count them', async (t) => {
    const equals = [targets[0], { ...targets[1], weight: 1 }, { ...targets[2], weight: 1 }]
    for (const [weighted, [none, few, many]] of [[equals, [0, 3, 3]], [targets, [0, 2, 6]]] as const) {
      const { app, request, held } = await serveAsked(t, { targets: weighted, balance: 'least-used', max: 30 })
      const pending: Array<Promise<number>> = []
      const more = async (how: number) => {
        for (let i = 0; i < how; i++) {
          const before = held.ports.length
          pending.push(request('GET', '/held'))
          await until(() => held.ports.length > before, { what: 'a request holds a connection' })
        }
      }
      await more(few + many)
      t.same(tally(servers, held.ports), [none, few, many])
      held.letGo((port) => port === heavy.port)
      await until(() => app.pools.stats().db!.targets!.find(({ target }) => target === 'heavy')!.used === 0,
        { what: 'one replica has no leases' })
      await more(many)
      t.same(tally(servers, held.ports), [none, few, many], 'what one has lost it gets back')
      held.letGo()
      await Promise.all(pending)
    }
  })

  await t.test('a replica further behind than maxLag is left out until it has caught up, and no read fails', async (t) => {
    const { request, app } = await serve(t, {
      targets: [targets[0], { ...targets[1], weight: 1 }, { ...targets[2], weight: 1 }], maxLag: 300, checkInterval: 50,
    })
    const lagOf = (name: string) => app.pools.stats().db!.targets!.find(({ target }) => target === name)!.lag
    await askPostgres(primary.url, 'CREATE TABLE IF NOT EXISTS lines (n int)')
    await Promise.all(replicas.map((replica) => pair.caughtUp(replica)))
    await until(() => lagOf('light') === 0 && lagOf('heavy') === 0)
    const shares = async () => {
      const [none, one, other] = tally(servers, await oneByOne(40, request)) as [number, number, number]
      return { none, one, other }
    }
    /** Not to one: who is just being asked for its lag is passed over. */
    const areEven = ({ none, one, other }: { none: number, one: number, other: number }) =>
      t.ok(none === 0 && Math.abs(one - other) <= 12, `both are read from: ${one} to ${other}`)
    areEven(await shares())
    await pair.pauseReplay(light)
    t.teardown(() => pair.resumeReplay(light))
    areEven(await shares())
    await askPostgres(primary.url, 'INSERT INTO lines VALUES (1)')
    await until(() => (lagOf('light') ?? 0) > 300, { what: 'it is seen to lag' })
    t.same(await shares(), { none: 0, one: 0, other: 40 }, 'then the other one alone')
    t.equal(await request('POST'), primary.port, 'writes have nothing to do with it')
    await pair.resumeReplay(light)
    await until(() => lagOf('light') === 0, { what: 'it has caught up' })
    areEven(await shares())
  })

  for (const holds of [false, true]) {
    await t.test(`a replica that is killed is left out, and no read fails${holds ? ', also where a request has not given back what it has of it' : ''}`, async (t) => {
      const { request, held } = await serve(t, { targets, checkInterval: 50, max: 30 })
      const holding = holds ? request('GET', '/held') : undefined
      await until(() => !holds || held.ports.length === 1)
      const [victim, other] = held.ports[0] === heavy.port ? [heavy, light] : [light, heavy]
      await until(async () => await request() === victim.port)
      await until(async () => await request() === other.port)
      await victim.kill()
      t.same(tally([victim, other], await oneByOne(100, request)), [0, 100])
      held.letGo()
      if (holds) t.equal(await holding, victim.port, 'who had its answer already got it')
      await victim.restart()
      await until(async () => await request() === victim.port, { what: 'it is read from again' })
    })
  }
})

// --- Passwords that change -------------------------------------------------------------------------------------------

interface Vault { password: string, asked: number, ask (): Promise<string> }

async function rotating (t: Test, pool: Partial<PoolOptions>) {
  const server = await startPostgres(t, { scram: true })
  const admin = new pg.Client(server.url)
  await admin.connect()
  t.teardown(() => admin.end())
  await admin.query("CREATE ROLE app LOGIN PASSWORD 'first-secret'")
  const vault: Vault = {
    password: 'first-secret',
    asked: 0,
    async ask () {
      this.asked++
      return server.url.replace('postgres:secret@', `app:${this.password}@`)
    },
  }
  const service = await serve(t, { url: () => vault.ask(), ...pool })
  const disconnects: Array<PoolEvents['disconnect']> = []
  const errors: Array<PoolEvents['error']> = []
  service.app.pools.on('disconnect', (event) => { disconnects.push(event) })
  service.app.pools.on('error', (event) => { errors.push(event) })
  return { ...service, server, admin, vault, disconnects, errors }
}

const dbOf = (app: FastifyInstance) => app.pools.get('db' as never) as unknown as { evict (): void }

t.test('PostgreSQL: a password is changed while requests go on: none fails, and after evict() nobody is in by the old one', needsGroup('PostgreSQL'), async (t) => {
  const { app, request, admin, vault } = await rotating(t, { max: 5, maxUses: 20 })
  let served = 0
  const load = { on: true }
  const clients = Promise.all(Array.from({ length: 8 }, async () => {
    while (load.on) {
      await request()
      served++
    }
  }))
  for (const password of ['second-secret', 'third-secret', 'fourth-secret']) {
    const before = served
    await until(() => served > before + 100, { what: 'requests are served' })
    await admin.query(`ALTER ROLE app PASSWORD '${password}'`)
    vault.password = password
    const { rows: [now] } = await admin.query<{ now: string }>('SELECT clock_timestamp()::text AS now')
    dbOf(app).evict()
    await until(async () => {
      const { rowCount } =
        await admin.query("SELECT FROM pg_stat_activity WHERE usename = 'app' AND backend_start < $1", [now!.now])
      return rowCount === 0
    }, { what: 'no connection is left that was made with the old password' })
    const after = served
    await until(() => served > after + 100, { what: 'requests are served' })
  }
  load.on = false
  await t.resolves(clients, 'not one request failed')
  const { created, createErrors, destroyed } = app.pools.stats().db!
  t.ok(destroyed.stale > 0)
  t.comment(`${served} requests over ${created} connections; ${createErrors} creates failed, and were made again`)
})

t.test('PostgreSQL: a create that is under way with the old password is made again with the new one, and its request is served', needsGroup('PostgreSQL'), async (t) => {
  const { app, request, admin, vault, errors } = await rotating(t, { max: 1 })
  const old = await vault.ask()
  dbOf(app).evict()
  // The next create has its answer, and is slow to use it.
  let letGo: ((url: string) => void) | undefined
  const ask = vault.ask.bind(vault)
  vault.ask = () => new Promise((resolve) => {
    letGo = resolve
    vault.ask = ask
  })
  await until(() => app.pools.stats().db!.idle === 0)
  const waiting = request()
  await until(() => letGo)
  await admin.query("ALTER ROLE app PASSWORD 'second-secret'")
  vault.password = 'second-secret'
  letGo!(old)
  t.ok(await waiting > 0, 'served')
  t.match(errors.map(({ error }) => error), [{ code: '28P01' }])
  t.notMatch(JSON.stringify(errors.map(({ error }) => [error, error.message, error.stack])),
    /first-secret|second-secret/)
})

t.test('PostgreSQL: evict() means creates under way too: what they bring is lent to nobody', needsGroup('PostgreSQL'), async (t) => {
  const { app, request, vault, disconnects, errors } = await rotating(t, { max: 1, startup: 'lazy' })
  let letGo: (() => void) | undefined
  const ask = vault.ask.bind(vault)
  vault.ask = async () => {
    vault.ask = ask
    const url = await ask()
    await new Promise<void>((resolve) => { letGo = resolve })
    return url
  }
  const waiting = request()
  await until(() => letGo)
  dbOf(app).evict()
  letGo!()
  t.ok(await waiting > 0, 'served by another one')
  t.same(disconnects, [], 'it was given up before it had connected')
  t.equal(vault.asked, 2)
  t.same(errors, [])
})
