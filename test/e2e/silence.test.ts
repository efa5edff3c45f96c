import t, { type Test } from 'tap'
import { Pool, mongodb, mysql, postgresql, redis } from '../../index.js'
import { alarm } from '../support/order.js'
import { startMariadb, startMongo, startPostgres, startRedis } from '../support/services.js'
import { startProxy } from '../support/proxy.js'
import { until } from '../support/until.js'

// Idle connections whose server is gone without a word, while new ones work: a NAT that has forgotten them. A caller
// that had to wait for a `validateTimeout` would be past its deadline.
const acquireTimeout = 800

interface Case {
  start (t: Test): Promise<{ readonly host: string, readonly port: number, readonly url: string }>
  connector (options: { url: string, max: number, connectTimeout: number, acquireTimeout: number }): Promise<unknown>
  query (connection: never): Promise<unknown>
}

const cases: Readonly<Record<string, Case>> = {
  postgresql: {
    start: (t) => startPostgres(t),
    connector: postgresql,
    query: (client: { query (sql: string): Promise<unknown> }) => client.query('select 1'),
  },
  mysql: {
    start: (t) => startMariadb(t),
    connector: mysql,
    query: (connection: { query (sql: string): Promise<unknown> }) => connection.query('select 1'),
  },
  redis: {
    start: (t) => startRedis(t),
    connector: redis,
    query: (client: { get (key: string): Promise<unknown> }) => client.get('it'),
  },
}

for (const [name, { start, connector, query }] of Object.entries(cases)) {
  for (const idle of [3, 10]) {
    t.test(`${name}: ${idle} of 10 connections are idle and die in silence: nobody waits for a deadline`, async (t) => {
      const server = await start(t)
      const proxy = await startProxy(t, server)
      const url = server.url.replace(`${server.host}:${server.port}`, `${proxy.host}:${proxy.port}`)
      const max = 10
      const made = await connector({ url, max, connectTimeout: 3000, acquireTimeout }) as never
      const pool = new Pool<never>(made, { max, acquireTimeout, validateAfter: 0 })
      t.teardown(() => pool.close({ timeout: 2000 }))
      const leases = await Promise.all(Array.from({ length: idle }, () => pool.acquire({ timeout: 10_000 })))
      await Promise.all(leases.map(({ connection }) => query(connection)))
      for (const lease of leases) lease.release()
      await until(() => pool.stats().idle >= idle, { what: 'they are idle' })

      proxy.forget()
      for (let request = 1; request <= 4; request++) await t.resolves(pool.use(query), `request ${request}`)
      await t.resolves(Promise.all(Array.from({ length: 5 }, () => pool.use(query))), 'five at once')
      // Beside those that were given up, the others are found out by one silence, if no tick was late.
      await until(async () => {
        await Promise.all(Array.from({ length: max }, () => pool.use(query)))
        return pool.stats().destroyed.invalid >= idle
      }, { what: 'the dead ones are gone' })
      await until(() => pool.stats().late === 0, { what: 'the driver has let go of them' })
      t.match(pool.stats(), { timeouts: 0, refused: 0, createErrors: 0, circuit: 'closed' })
    })
  }
}

// MongoDB's connections share the driver's sockets, and a ping can't choose its socket: all free ones are asked.
const mongo = await startMongo(t)

for (const idle of [3, 10]) {
  const name = `mongodb: ${idle} of 10 sockets are idle and die in silence: one silence is waited for, and they are closed`
  t.test(name, { skip: mongo === undefined && 'no server and no Go to build FerretDB with' }, async (t) => {
    const proxy = await startProxy(t, mongo!)
    const url = `mongodb://${proxy.host}:${proxy.port}/?directConnection=true`
    const max = 10
    const connector = await mongodb({ url, max, acquireTimeout })
    const sockets = { made: 0, silent: 0 }
    connector.onDriverEvent!(({ name, reason }) => {
      if (name === 'connectionReady') sockets.made++
      // A client that goes closes them with another reason.
      if (name === 'connectionClosed' && reason === 'error') sockets.silent++
    })
    const pool = new Pool(connector, { max, acquireTimeout, validateAfter: 0 })
    t.teardown(() => pool.close({ timeout: 2000 }))
    const leases = await Promise.all(Array.from({ length: idle }, () => pool.acquire({ timeout: 10_000 })))
    const ping = (db: { command (command: object): Promise<unknown> }) => db.command({ ping: 1 })
    await until(async () => {
      await Promise.all(leases.map(({ connection }) => ping(connection)))
      return sockets.made === idle
    }, { what: 'each has a socket' })
    for (const lease of leases) lease.release()

    proxy.forget()
    // Before, each call on such a socket took 12 s, until the driver's monitor gave up its server.
    const monitor = alarm(5000)
    for (let request = 1; request <= 4; request++) await t.resolves(pool.use(ping), `request ${request}`)
    await t.resolves(Promise.all(Array.from({ length: max }, () => pool.use(ping))), 'as many at once as there may be')
    await until(() => sockets.silent >= idle, { what: 'the silent ones are closed' })
    t.notOk(monitor.rang)
    t.equal(sockets.silent, idle, 'no other one is')
    t.match(pool.stats(), { timeouts: 0, refused: 0, createErrors: 0, circuit: 'closed', late: 0 })
  })
}
