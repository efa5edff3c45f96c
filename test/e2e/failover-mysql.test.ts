import type { FastifyInstance } from 'fastify'
import { createConnection, type Connection, type RowDataPacket } from 'mysql2/promise'
import t, { type Test } from 'tap'
import type { PoolEvents, PoolOptions } from '../../index.js'
import { startMariadb, type Server } from '../support/services.js'
import { needsGroup, startMariadbPair } from '../support/topologies.js'
import { alarm, startPace } from '../support/order.js'
import { until } from '../support/until.js'
import { ask, keepAliveAgent } from './client.js'
import { failed, serve as serveOn, served, startLoad, tally, within, type Service } from './failover.js'

async function portOf (connection: unknown): Promise<number> {
  const [[row]] = await (connection as Connection).query<RowDataPacket[]>('SELECT @@port AS port')
  return Number(row!.port)
}

function serve (t: Test, pool: Partial<PoolOptions>): Promise<Service> {
  return serveOn(t, { backend: 'mysql', max: 10, ...pool } as PoolOptions, {
    read: portOf,
    write: async (connection) => {
      await (connection as Connection).query('INSERT INTO line () VALUES ()')
      return await portOf(connection)
    },
  })
}

/** May set what an ordinary user may not. */
async function rootOf (t: Test, { host, port }: Server): Promise<Connection> {
  const connection = await createConnection({ host, port, user: 'root' })
  // Its server may be killed under it.
  connection.on('error', () => {})
  t.teardown(() => connection.destroy())
  return connection
}

async function pairWithTable (t: Test, replicas = 1) {
  const pair = await startMariadbPair(t, { replicas })
  const root = await rootOf(t, pair.primary)
  await root.query('CREATE TABLE test.line (id bigint PRIMARY KEY AUTO_INCREMENT)')
  for (const replica of pair.replicas) await pair.caughtUp(replica)
  return { ...pair, root, replica: pair.replicas[0]! }
}

/** Writes to that server alone, as one who can only when it is a primary. */
const paceOf = (t: Test, { url }: Server) => startPace(t, async () => {
  const connection = await createConnection(url)
  await connection.query('INSERT INTO test.line () VALUES ()').finally(() => { connection.destroy() })
})

const targetsOf = (app: FastifyInstance) => app.pools.stats().db!.targets!
const targetOf = (app: FastifyInstance, name: string) => targetsOf(app).find(({ target }) => target === name)!

t.test('MariaDB: kill -9 of the primary, and its replica is promoted: writes go there, reads have never stopped', needsGroup('MariaDB'), async (t) => {
  const { primary, replica, promote } = await pairWithTable(t)
  const { app, port, failovers } =
    await serve(t,
      { checkInterval: 200, targets: [{ name: 'first', url: primary.url }, { name: 'second', url: replica.url, role: 'replica' }] })
  const { seen, stop } = startLoad(t, port)
  await until(() => served(seen, 'POST').length > 50 && served(seen, 'GET', replica).length > 50,
    { what: 'writes and reads are served' })
  const known = performance.now()
  await until(() => served(seen, 'GET', undefined, known).length > 50, { what: 'reads are served' })
  t.same([...new Set(served(seen, 'POST').map((one) => one.port))], [primary.port], 'writes by the primary')
  t.same([...new Set(served(seen, 'GET', undefined, known).map((one) => one.port))], [replica.port],
    'reads by the replica')
  t.same(failed(seen).slice(0, 3), [], 'nothing fails')
  t.same(failovers, [])

  const pace = paceOf(t, replica)
  const killed = performance.now()
  await primary.kill()
  const dead = performance.now()
  await promote(replica)
  const promoted = performance.now()
  const first =
    await until(() => served(seen, 'POST', replica)[0], { timeout: 30_000, what: 'a write is served again' })
  t.ok(pace.rounds < within, `a plain client wrote ${pace.rounds} times before`)
  t.comment(`measured: first successful write ${Math.round(first.at - killed)} ms after the kill: dead after ${Math.round(dead - killed)} ms, promoted after ${Math.round(promoted - killed)} ms`)

  const back = performance.now()
  await until(() => served(seen, 'POST', replica, back).length > 100, { what: 'writes are served' })
  t.same(failed(seen, undefined, back).slice(0, 3), [], 'all of them')
  t.same(failed(seen, 'GET').slice(0, 3), [], 'no read failed')
  const lost = failed(seen)
  t.same(lost.filter(({ status, retryAfter }) => status === 503 && !/^([1-9]|[12]\d|30)$/.test(retryAfter ?? ''))
    .slice(0, 3), [], 'who was refused knows when to come back')
  const codes =
    [...new Set(lost.map(({ code }) => code))].map((code) =>
      `${code} x${lost.filter((one) => one.code === code).length}`)
  t.comment(`${lost.length} writes failed meanwhile: ${codes.join(', ')}; the last one ${Math.round(Math.max(0, ...lost.map(({ at }) => at - killed)))} ms after the kill`)
  t.equal(failovers.at(0)?.from, 'first')
  t.equal(failovers.at(-1)?.to, 'second')
  t.match(targetOf(app, 'second'), { role: 'primary' })

  await primary.restart()
  await until(() => {
    const { circuit, idle, used } = targetOf(app, 'first')
    return circuit === 'closed' && idle + used > 0
  }, { what: 'the old primary is known to be back' })
  const returned = performance.now()
  await until(() => served(seen, 'POST', undefined, returned).length > 200, { what: 'writes are served' })
  t.same(served(seen, 'POST', primary, returned).length, 0,
    'an old primary that comes back, and takes itself for one, gets no writes')
  await stop()
  // A target may just be asked what it is.
  await until(() => {
    const { used, pending, late } = app.pools.stats().db!
    return used + pending + late === 0
  }, { what: 'nothing is left' })
})

t.test('MariaDB: which target is the primary is asked, not believed', needsGroup('MariaDB'), async (t) => {
  const { primary, replica } = await pairWithTable(t)
  const { app, port } =
    await serve(t,
      { checkInterval: 200, targets: [{ name: 'first', url: replica.url }, { name: 'second', url: primary.url, role: 'replica' }] })
  const { seen, stop } = startLoad(t, port)
  await until(() => served(seen, 'POST').length > 50 && served(seen, 'GET').length > 50,
    { what: 'writes and reads are served' })
  await stop()
  t.same(failed(seen).slice(0, 3), [], 'from the first one on')
  t.same([...new Set(served(seen, 'POST').map((one) => one.port))], [primary.port])
  t.same([...new Set(served(seen, 'GET').map((one) => one.port))], [replica.port])
  t.match(targetsOf(app), [{ target: 'first', role: 'replica' }, { target: 'second', role: 'primary' }])
})

t.test('MariaDB: a primary that is made read only, with all its connections, hands over to the one that is promoted', needsGroup('MariaDB'), async (t) => {
  const { primary, replica, promote, root } = await pairWithTable(t)
  // Its check alone would come too late: a write that is refused tells.
  const { app, port, failovers, disconnects } =
    await serve(t,
      { checkInterval: 60_000, targets: [{ name: 'first', url: primary.url }, { name: 'second', url: replica.url, role: 'replica' }] })
  const { seen, stop } = startLoad(t, port)
  await until(() => served(seen, 'POST', primary).length > 50, { what: 'writes are served' })
  const pace = paceOf(t, replica)
  const fenced = performance.now()
  await root.query('SET GLOBAL read_only = 1')
  await until(() => failovers.length > 0, { what: 'it is no primary any more' })
  const known = performance.now()
  t.match(failovers, [{ from: 'first', to: undefined }])
  t.ok(disconnects.some(({ target, reason }) => target === 'first' && reason === 'error'),
    'a connection that refused a write is closed')
  t.match(targetOf(app, 'first'), { role: 'replica' })
  await promote(replica)
  const first =
    await until(() => served(seen, 'POST', replica)[0],
      { timeout: 30_000, what: 'a write is served by the new primary' })
  t.ok(pace.rounds < within, `a plain client wrote ${pace.rounds} times before`)
  t.comment(`measured: known after ${Math.round(known - fenced)} ms, first successful write ${Math.round(first.at - fenced)} ms after the old primary became read only`)
  const back = performance.now()
  await until(() => served(seen, 'POST', replica, back).length > 100, { what: 'writes are served' })
  await stop()
  t.same(failed(seen, undefined, back).slice(0, 3), [])
  t.same(failed(seen).filter(({ status, code }) => code !== 'ER_OPTION_PREVENTS_STATEMENT' && status !== 503)
    .slice(0, 3), [], 'meanwhile writes failed with what the server said, or were refused')
  t.same(failed(seen, 'GET').slice(0, 3), [], 'no read failed')
  t.match(failovers.at(-1), { to: 'second' })
  t.match(targetsOf(app), [{ target: 'first', role: 'replica' }, { target: 'second', role: 'primary' }])
})

t.test('MariaDB: one address that moves: a connection that refused a write is replaced by one to where the url leads now', needsGroup('MariaDB'), async (t) => {
  const { primary, replica, promote, root } = await pairWithTable(t)
  let url = primary.url
  const { app, port } = await serve(t, { url: async () => url })
  const { seen, stop } = startLoad(t, port, { readers: 0 })
  await until(() => served(seen, 'POST', primary).length > 50, { what: 'writes are served' })
  const pace = paceOf(t, replica)
  const fenced = performance.now()
  await root.query('SET GLOBAL read_only = 1')
  await until(() => seen.some(({ code }) => code === 'ER_OPTION_PREVENTS_STATEMENT'), { what: 'a write is refused' })
  await promote(replica)
  url = replica.url
  const first =
    await until(() => served(seen, 'POST', replica)[0],
      { timeout: 30_000, what: 'a write is served by the new primary' })
  t.ok(pace.rounds < within, `a plain client wrote ${pace.rounds} times before`)
  t.comment(`measured: first successful write ${Math.round(first.at - fenced)} ms after the old primary became read only`)
  // Those that are still lent at the old one are refused once more, each.
  const settled = pace.rounds + 10
  await until(() => pace.rounds >= settled)
  const back = performance.now()
  await until(() => served(seen, 'POST', replica, back).length > 100, { what: 'writes are served' })
  await stop()
  t.same(failed(seen, undefined, back).slice(0, 3), [])
  t.ok(app.pools.stats().db!.destroyed.error > 0, 'without anybody\'s evict()')
})

t.test('MariaDB: what says that it may be done twice, and is under way when the primary is killed, is done at the new one', needsGroup('MariaDB'), async (t) => {
  const { primary, replica, promote, root } = await pairWithTable(t)
  const { app } =
    await serve(t,
      { checkInterval: 200, targets: [{ name: 'first', url: primary.url }, { name: 'second', url: replica.url, role: 'replica' }] })
  const ran: number[] = []
  const writes = Promise.allSettled(Array.from({ length: 5 }, (_, id) => app.pools.get('db').use(async (db) => {
    const connection = db as unknown as Connection
    const [[row]] = await connection.query<RowDataPacket[]>('SELECT @@port AS port')
    ran.push(Number(row!.port))
    if (row!.port === primary.port) await connection.query('DO SLEEP(30)')
    await connection.query('REPLACE INTO line VALUES (?)', [100 + id])
    return Number(row!.port)
  }, { retry: 10, timeout: 10_000 })))
  const asleep = "SELECT count(*) AS count FROM information_schema.processlist WHERE state = 'User sleep'"
  await until(async () => (await root.query<RowDataPacket[]>(asleep))[0][0]!.count === 5, { what: 'all are under way' })
  const pace = paceOf(t, replica)
  const killed = performance.now()
  await primary.kill()
  await promote(replica)
  t.same(await writes, Array.from({ length: 5 }, () => ({ status: 'fulfilled', value: replica.port })))
  t.comment(`measured: all written ${Math.round(performance.now() - killed)} ms after the kill, in ${ran.length} runs`)
  t.ok(pace.rounds < within, `a plain client wrote ${pace.rounds} times before`)
  t.same(tally([primary, replica], ran), [5, 5])
})

// --- Several that are read from --------------------------------------------------------------------------------------

/** One after the other. @returns which server did each */
async function requests (t: Test, port: number, count: number, method = 'GET'): Promise<number[]> {
  const agent = keepAliveAgent(t)
  const ports: number[] = []
  while (ports.length < count) {
    const { status, body } = await ask({ port, path: '/', method, agent })
    if (status !== 200) throw new Error(`${method}: ${status} ${body}`)
    ports.push((JSON.parse(body) as { port: number }).port)
  }
  return ports
}

t.test('MariaDB: a primary and two replicas', needsGroup('MariaDB'), async (t) => {
  const { primary, replicas, root, ...pair } = await pairWithTable(t, 2)
  const [light, heavy] = replicas as [Server, Server]
  const servers = [primary, light, heavy]
  const targets =
    [{ name: 'primary', url: primary.url }, { name: 'light', url: light.url, role: 'replica', weight: 1 },
      { name: 'heavy', url: heavy.url, role: 'replica', weight: 3 }] as const
  const equals = [targets[0], targets[1], { ...targets[2], weight: 1 }]
  /** Which of them serve 20 reads. */
  const readers = async (t: Test, port: number) => {
    const counts = tally(servers, await requests(t, port, 20))
    return targets.map(({ name }) => name).filter((_, i) => counts[i]! > 0)
  }

  for (const together of [1, 8]) {
    await t.test(`weighted: 400 reads, ${together} at a time, are shared by weight, and 100 writes are the primary's`, async (t) => {
      const { port } = await serve(t, { targets, max: 30 })
      const reads = (await Promise.all(Array.from({ length: together }, () => requests(t, port, 400 / together))))
        .flat()
      const [none, few, many] = tally(servers, reads) as [number, number, number]
      t.equal(none, 0)
      t.equal(few + many, 400)
      t.ok(Math.abs(few - 100) <= 12, `${few} to ${many} for 1 to 3`)
      t.comment(`weighted, ${together} at a time: ${few} to ${many} for 1 to 3`)
      t.same(tally(servers, await requests(t, port, 100, 'POST')), [100, 0, 0])
    })
  }

  await t.test('round-robin: in turn, whatever the weights', async (t) => {
    const { port } = await serve(t, { targets, balance: 'round-robin' })
    const [none, one, other] = tally(servers, await requests(t, port, 200)) as [number, number, number]
    t.equal(none, 0)
    // Who has none idle at the moment, since it is being asked what it is, is passed over.
    t.ok(Math.abs(one - other) <= 8, `${one} to ${other}`)
    t.comment(`round-robin: ${one} to ${other}`)
  })

  await t.test('a replica that applies nothing is left out when it may be further behind than maxLag, until it does, and with none left the primary is read', async (t) => {
    for (const replica of replicas) await pair.caughtUp(replica)
    const { app, port } = await serve(t, { targets: equals, maxLag: 1000, checkInterval: 50 })
    const level = (name: string) => until(() => targetOf(app, name).lag === 0, { what: `${name} is level` })
    /** It says nothing but that it does not replicate; the time since it did is told. */
    const behind = async (name: string) => {
      const soon = alarm(800)
      const pace = startPace(t, () => root.query('SELECT 1'))
      await until(() => (targetOf(app, name).lag ?? 0) > 1000,
        { timeout: 30_000, what: `${name} is seen to be behind` })
      await pace.stop()
      t.ok(pace.rounds < 40, `a plain client asked ${pace.rounds} times before ${name} was seen to be behind`)
      t.ok(soon.rang, `${name} is not behind when it has just stopped`)
    }
    await Promise.all([level('light'), level('heavy')])
    t.same(await readers(t, port), ['light', 'heavy'], 'level, both are read')
    await pair.pauseReplay(light)
    await behind('light')
    t.same(await readers(t, port), ['heavy'], 'then the other one alone')
    await pair.pauseReplay(heavy)
    await behind('heavy')
    t.same(await readers(t, port), ['primary'])
    await Promise.all([light, heavy].map((replica) => pair.resumeReplay(replica)))
    await Promise.all([level('light'), level('heavy')])
    t.same(await readers(t, port), ['light', 'heavy'])
  })

  await t.test('a replica further behind than maxLag, though it replicates, is left out until it has caught up', async (t) => {
    const { app, port } = await serve(t, { targets: equals, maxLag: 900, checkInterval: 50 })
    const lag = () => targetOf(app, 'light').lag
    await until(() => lag() === 0 && targetOf(app, 'heavy').lag === 0)
    await pair.pauseReplay(light, 'locked')
    await root.query('INSERT INTO test.line () VALUES ()')
    await until(() => (lag() ?? 0) >= 1000, { what: 'it is seen to lag' })
    t.ok(Number.isFinite(lag()))
    t.same(await readers(t, port), ['heavy'])
    await pair.resumeReplay(light)
    await until(() => lag() === 0, { what: 'it has caught up' })
    t.same(await readers(t, port), ['light', 'heavy'])
  })
})

// --- Passwords that change -------------------------------------------------------------------------------------------

t.test('MariaDB: a password is changed while requests go on: none fails, and after evict() nobody is in by the old one', needsGroup('MariaDB'), async (t) => {
  const server = await startMariadb(t, { own: true })
  const root = await rootOf(t, server)
  await root.query('CREATE TABLE test.line (id bigint PRIMARY KEY AUTO_INCREMENT)')
  await root.query("CREATE USER app@'127.0.0.1' IDENTIFIED BY 'first-secret'")
  await root.query("GRANT SELECT, INSERT ON test.* TO app@'127.0.0.1'")
  let password = 'first-secret'
  let asked = 0
  const url = () => {
    asked++
    return server.url.replace('pool:secret@', `app:${password}@`)
  }
  const { app, port } = await serve(t, { url, max: 5, maxUses: 20 })
  const errors: Array<PoolEvents['error']> = []
  app.pools.on('error', (event) => { errors.push(event) })
  const { seen, stop } = startLoad(t, port)
  const more = async () => {
    const before = seen.length
    await until(() => seen.length > before + 100, { what: 'requests are served' })
  }
  const one = async (sql: string, values?: unknown[]) =>
    Number(Object.values((await root.query<RowDataPacket[]>(sql, values))[0][0]!)[0])
  for (const next of ['second-secret', 'third-secret', 'fourth-secret']) {
    await more()
    await root.query("ALTER USER app@'127.0.0.1' IDENTIFIED BY ?", [next])
    password = next
    const last = await one('SELECT max(id) FROM information_schema.processlist')
    app.pools.get<'db'>('db' as never).evict()
    await until(async () =>
      await one("SELECT count(*) FROM information_schema.processlist WHERE user = 'app' AND id <= ?", [last]) === 0, { what: 'no connection is left that was made with the old password' })
    await more()
  }
  await stop()
  t.same(failed(seen), [], 'not one request failed')
  const { created, createErrors, destroyed } = app.pools.stats().db!
  t.ok(destroyed.stale > 0)
  t.ok(asked >= created)
  t.notMatch(JSON.stringify(errors.map(({ error }) => [error, error.message, error.stack])),
    /(?:first|second|third|fourth)-secret/)
  t.comment(`${seen.length} requests over ${created} connections; ${createErrors} creates failed, and were made again`)
})
