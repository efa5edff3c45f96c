import type { Client } from 'pg'
import t, { type Test } from 'tap'
import type { Pool, PoolOptions } from '../../index.js'
import { askPostgres, childrenOf, type Server } from '../support/services.js'
import { needsGroup, startPostgresPair } from '../support/topologies.js'
import { startPace } from '../support/order.js'
import { until } from '../support/until.js'
import { serve as serveOn, served, startLoad, within, type Service } from './failover.js'

function serve (t: Test, pool: Partial<PoolOptions>): Promise<Service> {
  const portBy = (sql: string) => async (connection: unknown) => {
    const { rows: [row] } = await (connection as Client).query<{ port: string }>(sql)
    return Number(row!.port)
  }
  return serveOn(t, { backend: 'postgresql', max: 10, ...pool } as PoolOptions, {
    read: portBy("SELECT current_setting('port') AS port FROM (SELECT count(*) FROM lines) AS counted"),
    write: portBy("INSERT INTO lines DEFAULT VALUES RETURNING current_setting('port') AS port"),
  })
}

async function pairWithTable (t: Test) {
  const { replicas: [replica], ...pair } = await startPostgresPair(t)
  await askPostgres(pair.primary.url, 'CREATE TABLE lines (id bigserial PRIMARY KEY)')
  await pair.caughtUp(replica!)
  return { ...pair, replica: replica! }
}

/** Writes to that server alone, which it can only when it is a primary. */
const paceOf = (t: Test, { url }: Server) => startPace(t, () => askPostgres(url, 'INSERT INTO lines DEFAULT VALUES'))

const readOnly = async (server: Server) => {
  await askPostgres(server.url, 'ALTER SYSTEM SET default_transaction_read_only = on')
  await askPostgres(server.url, 'SELECT pg_reload_conf()')
}

t.test('PostgreSQL: kill -9 of the primary, and its replica is promoted: writes go there, reads have never stopped', needsGroup('PostgreSQL'), async (t) => {
  const { primary, replica, promote } = await pairWithTable(t)
  const { app, port, failovers } =
    await serve(t,
      { targets: [{ name: 'first', url: primary.url }, { name: 'second', url: replica.url, role: 'replica' }] })
  const { seen, stop } = startLoad(t, port)
  await until(() => served(seen, 'POST').length > 50 && served(seen, 'GET').length > 50,
    { what: 'writes and reads are served' })
  t.same([...new Set(served(seen, 'POST').map((one) => one.port))], [primary.port], 'writes by the primary')
  t.same([...new Set(served(seen, 'GET').map((one) => one.port))], [replica.port], 'reads by the replica')
  t.same(seen.filter(({ status }) => status !== 200), [], 'nothing fails')
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
  t.same(seen.filter(({ sent, status }) => sent > back && status !== 200), [], 'all of them')
  const failed = seen.filter(({ status }) => status !== 200)
  t.same(failed.filter(({ method }) => method === 'GET').slice(0, 3), [], 'no read failed')
  t.same(failed.filter(({ status, retryAfter }) => status === 503 && !/^([1-9]|[12]\d|30)$/.test(retryAfter ?? ''))
    .slice(0, 3), [], 'who was refused knows when to come back')
  const codes =
    [...new Set(failed.map(({ code }) => code))].map((code) =>
      `${code} x${failed.filter((one) => one.code === code).length}`)
  t.comment(`${failed.length} writes failed meanwhile: ${codes.join(', ')}; the last one ${Math.round(Math.max(0, ...failed.map(({ at }) => at - killed)))} ms after the kill`)
  t.equal(failovers.at(0)?.from, 'first')
  t.equal(failovers.at(-1)?.to, 'second')
  t.match(app.pools.stats().db!.targets?.find(({ target }) => target === 'second'), { role: 'primary' })

  await primary.restart()
  await until(() => app.pools.stats()
    .db!.targets?.some(({ target, circuit, idle, used }) => target === 'first' && circuit === 'closed' && idle + used > 0), { what: 'the old primary is known to be back' })
  const returned = performance.now()
  await until(() => served(seen, 'POST', undefined, returned).length > 200, { what: 'writes are served' })
  t.same(served(seen, 'POST', primary, returned).length, 0,
    'an old primary that comes back, and takes itself for one, gets no writes')
  await stop()
  // Targets are asked by leases too.
  await until(() => app.pools.stats().db!.used === 0, { what: 'no connection is used' })
  t.match(app.pools.stats().db, { pending: 0, late: 0 })
})

t.test('PostgreSQL: a kill -9 of the primary and a promotion fail no write that may be tried again', needsGroup('PostgreSQL'), async (t) => {
  const { primary, replica, promote } = await pairWithTable(t)
  const { app } =
    await serve(t,
      { targets: [{ name: 'first', url: primary.url }, { name: 'second', url: replica.url, role: 'replica' }] })
  const pool = app.pools.get('db' as never) as unknown as Pick<Pool<Client>, 'use'>
  const load = { on: true, id: 0 }
  const ports: number[] = []
  let runs = 0
  const write = async (id: number): Promise<void> => {
    const port = await pool.use(async (client) => {
      runs++
      await client.query('INSERT INTO lines VALUES ($1) ON CONFLICT DO NOTHING', [id])
      return Number((await client.query<{ port: string }>("SELECT current_setting('port') AS port")).rows[0]!.port)
    }, { retry: 5 })
    ports.push(port)
  }
  const writers = Promise.all(Array.from({ length: 4 }, async () => { while (load.on) await write(++load.id) }))
  t.teardown(() => { load.on = false })
  await until(() => ports.length > 100)
  // On busy cores all others may be answered before the kill is seen: this one is in the server for sure.
  let tries = 0
  const long = pool.use(async (client) => await client.query(++tries === 1 ? 'SELECT pg_sleep(600)' : 'SELECT 1'),
    { retry: 5 })
  const isUnderWay = async () => await pool.use(async (client) =>
    (await client.query("SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'")).rowCount === 1)
  await until(isUnderWay, { what: 'the long one is in the server' })
  await primary.kill()
  await promote(replica)
  await until(() => ports.filter((port) => port === replica.port).length > 100,
    { what: 'writes are done by the new primary' })
  load.on = false
  await t.resolves(writers, 'not one failed')
  await t.resolves(long, 'nor the one that was under way')
  t.equal(tries, 2, 'it was tried again')
  t.comment(`${ports.length} writes took ${runs} runs`)
})

/**
 * Sockets stay open, connects are accepted, and nothing answers: neither the server nor the processes that it has for
 * its clients. Returns its undo.
 */
function hang (server: Server): () => void {
  server.pause()
  const family = childrenOf(server.pid!)
  for (const pid of family) process.kill(pid, 'SIGSTOP')
  return () => {
    for (const pid of family) process.kill(pid, 'SIGCONT')
    server.resume()
  }
}

t.test('PostgreSQL: a primary that hangs, and its replica is promoted: writes go there at once, and stay there when the old one wakes', needsGroup('PostgreSQL'), async (t) => {
  const { primary, replica, promote } = await pairWithTable(t)
  const { app, port, failovers } =
    await serve(t,
      { targets: [{ name: 'first', url: primary.url }, { name: 'second', url: replica.url, role: 'replica' }] })
  const { seen, stop } = startLoad(t, port)
  await until(() => served(seen, 'POST').length > 50 && served(seen, 'GET').length > 50,
    { what: 'writes and reads are served' })

  const wake = hang(primary)
  const hung = performance.now()
  // Those of before hang; others come meanwhile.
  const later = startLoad(t, port)
  await until(() => app.pools.stats().db!.targets!.find(({ target }) => target === 'first')!.pending > 0,
    { what: 'writes wait' })
  await until(() => performance.now() - hung > 2500)
  const pace = paceOf(t, replica)
  await promote(replica)
  const promoted = performance.now()
  const first =
    await until(() => served(later.seen, 'POST', replica)[0], { timeout: 30_000, what: 'a write is served again' })
  t.ok(pace.rounds < 40, `a plain client wrote ${pace.rounds} times before`)
  await until(() => served(later.seen, 'POST', replica).length > 100, { what: 'writes are served' })
  t.comment(`measured: first successful write ${Math.round(first.at - promoted)} ms after the promotion, 100 after ${Math.round(performance.now() - promoted)} ms; ${app.pools.stats().db!.used} used`)
  const failed = later.seen.filter(({ status }) => status !== 200)
  t.same(failed.filter(({ method }) => method === 'GET'), [], 'no read failed')
  const codes =
    [...new Set(failed.map(({ code }) => code))].map((code) =>
      `${code} x${failed.filter((one) => one.code === code).length}`)
  t.comment(`${failed.length} of those who came while it hung failed: ${codes.join(', ')}`)
  t.match(failovers.at(-1), { to: 'second' })

  wake()
  await until(() => app.pools.stats()
    .db!.targets!.some(({ target, circuit, idle, used }) => target === 'first' && circuit === 'closed' && idle + used === 1), { what: 'the old primary is asked again' })
  const woken = performance.now()
  await until(() => served([...seen, ...later.seen], 'POST', undefined, woken).length > 200,
    { what: 'writes are served' })
  t.same(served([...seen, ...later.seen], 'POST', primary, woken), [],
    'it takes itself for a primary, and gets no writes')
  t.match(app.pools.stats().db!.targets, [{ target: 'first', role: 'primary' }, { target: 'second', role: 'primary' }])
  await Promise.all([stop(), later.stop()])
  await replica.kill()
  const second = () => app.pools.stats().db!.targets!.find(({ target }) => target === 'second')!
  await until(() => second().idle + second().used === 0, { what: 'the new primary is known to be dead' })
  const refused: unknown = await app.pools.get('db').acquire({ timeout: 1000 })
    .then(() => 'served', (error: unknown) => error)
  t.match(refused, { statusCode: 503 }, 'nor when the new one dies')
  await until(() => app.pools.stats().db!.used === 0, { what: 'no connection is used' })
})

t.test('PostgreSQL: which target is the primary is asked, not believed', needsGroup('PostgreSQL'), async (t) => {
  const { primary, replica } = await pairWithTable(t)
  const { app, port } =
    await serve(t,
      { checkInterval: 200, targets: [{ name: 'first', url: replica.url }, { name: 'second', url: primary.url, role: 'replica' }] })
  const { seen, stop } = startLoad(t, port)
  await until(() => served(seen, 'POST').length > 50 && served(seen, 'GET').length > 50,
    { what: 'writes and reads are served' })
  await stop()
  t.same(seen.filter(({ status }) => status !== 200), [], 'from the first one on')
  t.same([...new Set(served(seen, 'POST').map((one) => one.port))], [primary.port])
  t.same([...new Set(served(seen, 'GET').map((one) => one.port))], [replica.port])
  t.match(app.pools.stats().db!.targets,
    [{ target: 'first', role: 'replica', lag: Number }, { target: 'second', role: 'primary', lag: null }])
})

t.test('PostgreSQL: a primary that takes no writes any more hands over to the one that was promoted', needsGroup('PostgreSQL'), async (t) => {
  const { primary, replica, promote } = await pairWithTable(t)
  const { app, port, failovers } =
    await serve(t,
      { checkInterval: 200, targets: [{ name: 'first', url: primary.url }, { name: 'second', url: replica.url, role: 'replica' }] })
  const { seen, stop } = startLoad(t, port)
  await until(() => served(seen, 'POST', primary).length > 50, { what: 'writes are served' })
  const pace = paceOf(t, replica)
  const fenced = performance.now()
  await readOnly(primary)
  await promote(replica)
  const first =
    await until(() => served(seen, 'POST', replica)[0],
      { timeout: 30_000, what: 'a write is served by the new primary' })
  t.ok(pace.rounds < within, `a plain client wrote ${pace.rounds} times before`)
  t.comment(`measured: first successful write ${Math.round(first.at - fenced)} ms after the old primary became read only`)
  const back = performance.now()
  await until(() => served(seen, 'POST', replica, back).length > 100, { what: 'writes are served' })
  await stop()
  const failed = seen.filter(({ status }) => status !== 200)
  t.same(failed.filter(({ status, code }) => code !== '25006' && status !== 503).slice(0, 3), [],
    'meanwhile writes failed with what the server said, or were refused')
  t.same(failed.filter(({ method }) => method === 'GET').slice(0, 3), [], 'no read failed')
  t.match(failovers.at(-1), { to: 'second' })
  t.match(app.pools.stats().db!.targets, [{ target: 'first', role: 'replica' }, { target: 'second', role: 'primary' }])
})

t.test('PostgreSQL: one address that moves: a connection that refused a write is replaced by one to where the url leads now', needsGroup('PostgreSQL'), async (t) => {
  const { primary, replica, promote } = await pairWithTable(t)
  let url = primary.url
  const { app, port } = await serve(t, { url: async () => url })
  const { seen, stop } = startLoad(t, port, { readers: 0 })
  await until(() => served(seen, 'POST', primary).length > 50, { what: 'writes are served' })
  const pace = paceOf(t, replica)
  const fenced = performance.now()
  await readOnly(primary)
  await until(() => seen.some(({ code }) => code === '25006'), { what: 'a write is refused' })
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
  t.same(seen.filter(({ sent, status }) => sent > back && status !== 200), [])
  t.ok(app.pools.stats().db!.destroyed.error > 0, 'without anybody\'s evict()')
})
