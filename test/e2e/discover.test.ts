import { once } from 'node:events'
import dns from 'node:dns'
import { connect, createServer, type AddressInfo, type Server as Listener, type Socket } from 'node:net'
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import fastifyPool, { type PoolOptions } from '../../index.js'
import { startMariadb, startPostgres, startRedis, type Server } from '../support/services.js'
import { needsGroup } from '../support/topologies.js'
import { until } from '../support/until.js'

// `discover: 'dns'` with real servers. The test answers for the resolver; each address, 127.0.0.2 to 4, leads to a
// server of its own, by way of a listener on a port that all addresses share.

type Kind = 'Redis' | 'PostgreSQL' | 'MariaDB'
interface Way {
  readonly backend: string
  readonly ask: (connection: any) => Promise<unknown>
  start (t: Test): Promise<Server>
}
const kinds: Record<Kind, Way> = {
  Redis: { backend: 'redis', start: startRedis, ask: (redis) => redis.ping() },
  PostgreSQL: { backend: 'postgresql', start: startPostgres, ask: (client) => client.query('select 1') },
  MariaDB: { backend: 'mysql', start: startMariadb, ask: (connection) => connection.query('select 1') },
}
const addresses = ['127.0.0.2', '127.0.0.3', '127.0.0.4'] as const

/** What the resolver says of `db.test`. */
function resolver (t: Test) {
  const state: { answer: readonly string[] | Error } = { answer: [] }
  const { lookup } = dns.promises
  t.teardown(() => { dns.promises.lookup = lookup })
  dns.promises.lookup = (async (host: string, ...rest: []) => {
    if (host !== 'db.test') return await lookup(host, ...rest)
    if (state.answer instanceof Error) throw state.answer
    return state.answer.map((address) => ({ address, family: 4 }))
  }) as unknown as typeof lookup
  return state
}

/** Listens on all addresses, at one port, and counts the sockets that are open at each. */
async function relays (t: Test, servers: readonly Server[]) {
  const sockets = addresses.map(() => new Set<Socket>())
  const listen = async (index: number, port: number): Promise<Listener> => {
    const { hostname, port: to } = new URL(servers[index]!.url)
    const relay = createServer((socket) => {
      const server = connect(Number(to), hostname)
      for (const one of [socket, server]) {
        one.on('error', () => {})
        one.on('close', () => { socket.destroy(); server.destroy() })
      }
      sockets[index]!.add(socket)
      socket.on('close', () => { sockets[index]!.delete(socket) })
      socket.pipe(server).pipe(socket)
    }).listen(port, addresses[index])
    await Promise.race([once(relay, 'listening'), once(relay, 'error').then(([error]) => { throw error })])
    t.teardown(() => { relay.close() })
    return relay
  }
  const { port } = (await listen(0, 0)).address() as AddressInfo
  for (const index of [1, 2]) await listen(index, port)
  return { port, open: () => sockets.map(({ size }) => size) }
}

for (const [name, { backend, ask, start }] of Object.entries(kinds)) {
  t.test(`${name}: servers come and go by their name, and no request fails`, needsGroup(name as Kind), async (t) => {
    const servers = await Promise.all(addresses.map(() => start(t)))
    const { port, open } = await relays(t, servers)
    const dns = resolver(t)
    dns.answer = addresses.slice(0, 2)
    const url = new URL(servers[0]!.url)
    url.host = `db.test:${port}`
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(fastifyPool, {
      // `app.redis` would ask the system's resolver, which knows no such name.
      startup: backend === 'redis' ? 'lazy' : 'require',
      backend,
      url: url.href,
      discover: 'dns',
      max: 12,
      checkInterval: 50,
      balance: 'round-robin',
    } as PoolOptions)
    app.get('/', async (request) => { await ask(request.db); return 'ok' })
    await app.ready()
    const pool = app.pools.get('db')
    const errors: string[] = []
    pool.on('error', ({ phase }) => { errors.push(phase) })
    const names = () => pool.stats().targets!.map(({ target }) => target.split('@')[1])
    const load = { on: true, failed: 0, served: 0 }
    const clients = [1, 2, 3].map(async () => {
      while (load.on) {
        if ((await app.inject('/')).statusCode === 200) load.served++
        else load.failed++
      }
    })
    t.teardown(() => { load.on = false })
    const servesAt = (count: number) => until(() => open().filter((sockets) => sockets > 0).length === count)
    await servesAt(2)
    t.same(names(), addresses.slice(0, 2))

    // One address leaves while somebody holds a connection to it, and another one comes.
    const kept = () => pool.holders().filter(({ holder, target }) => holder === 'test' && target!.endsWith(addresses[0]))
    const leases = []
    while (leases.length === 0 || kept().length === 0) leases.push(await pool.acquire({ holder: 'test' }))
    dns.answer = addresses.slice(1)
    await until(() => names().join() === addresses.slice(1).join(), { what: 'the pool knows of it' })
    await until(() => open()[2]! > 0, { what: 'the new one serves' })
    for (const { connection } of leases) await ask(connection)
    await until(() => open()[0] === kept().length, { what: 'who holds a connection keeps it, and nobody else has one' })
    for (const lease of leases) lease.release()
    await until(() => open()[0] === 0, { what: 'nobody uses what has gone' })

    // A name that can't be resolved, or has no address, says nothing of the servers.
    for (const answer of [new Error('queryA ESERVFAIL db.test'), []]) {
      dns.answer = answer
      const { served } = load
      await until(() => load.served > served + 50)
      t.same(names(), addresses.slice(1))
    }
    t.same(errors, ['discover'], 'it is told once')

    // One that comes back serves again.
    dns.answer = addresses
    await until(() => open().every((sockets) => sockets > 0), { what: 'all three serve' })
    load.on = false
    await Promise.all(clients)
    t.equal(load.failed, 0, `of ${load.served} requests none failed`)
    // Targets are asked by leases, too.
    await until(() => pool.stats().acquired === pool.stats().released, { what: 'all leases have ended' })
    const { targets, acquired } = pool.stats()
    t.ok(acquired > targets!.reduce((sum, target) => sum + target.acquired, 0), 'the sums have what has gone')
    await app.close()
    await until(() => open().every((sockets) => sockets === 0), { what: 'nothing is left' })
  })
}
