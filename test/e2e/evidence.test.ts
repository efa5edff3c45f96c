// What `health()` says of real servers that die, and of those that only end what is idle for long.
import t from 'tap'
import { mysql, Pool, postgresql, type EngineOptions, type PoolHealth } from '../../index.js'
import { needsOwn, startMariadb, startPostgres, type Server } from '../support/services.js'
import { event, until } from '../support/until.js'

/** Asks until it says so, as a probe does. */
async function untilSays (pool: Pool<unknown>, status: PoolHealth['status']): Promise<PoolHealth> {
  return await until(async () => {
    const health = await pool.health()
    return health.status === status && health
  }, { what: `health: ${status}` })
}

const connectors = {
  PostgreSQL: ({ url }: Server) => postgresql({ url }),
  MariaDB: ({ url }: Server) => mysql({ url }),
}
const options: EngineOptions<never> = { min: 0, connectTimeout: 5000, backoff: { min: 20, max: 100 } }

async function used (pool: Pool<unknown>): Promise<void> {
  const lease = await pool.acquire()
  lease.release()
  await until(() => pool.stats().idle === 1, { what: 'an idle connection' })
}

for (const [what, start] of [['PostgreSQL', startPostgres], ['MariaDB', startMariadb]] as const) {
  t.test(what, async (t) => {
    const server = await start(t, { own: true })
    await t.test('killed and back, min: 0, no traffic', needsOwn(server), async (t) => {
      const pools = [
        new Pool<unknown>(await connectors[what](server), { ...options, circuit: false }),
        new Pool<unknown>(await connectors[what](server), options),
      ]
      const unasked = new Pool<unknown>(await connectors[what](server), options)
      t.teardown(() => Promise.all([...pools, unasked].map((pool) => pool.close())))
      for (const pool of [...pools, unasked]) await used(pool)
      for (const pool of pools) t.match(await pool.health(), { status: 'up', stats: { idle: 1 } })
      const before = Date.now()
      const died = [...pools, unasked].map((pool) => event(pool, 'disconnect'))
      await server.kill()
      await Promise.all(died)
      for (const pool of pools) {
        const { reason, since, latency } = await untilSays(pool, 'down')
        t.match(reason, /^(no connection, and (a connection died|the last create failed): |the circuit is )\S/)
        t.ok(since! >= before && since! <= Date.now(), `since ${since}`)
        t.equal(latency, null)
        await until(() => pool.stats().createErrors >= 2, { what: 'it tries again and again' })
        t.match(await pool.health(), { status: 'down', since, reason: /ECONNREFUSED/ })
      }
      await server.restart()
      for (const pool of pools) {
        const health = await untilSays(pool, 'up')
        t.notOk('since' in health)
        t.match(health.stats, { acquired: 1, pending: 0, circuit: 'closed', idle: 1 }, 'nobody had to acquire')
      }
      t.match(unasked.stats(), { created: 1, createErrors: 0, idle: 0, creating: 0 }, 'nobody asks, nobody probes')
      await used(unasked)
      t.match(await unasked.health(), { status: 'up' })
    })
  })
}

t.test('PostgreSQL ends what is idle for long (57P05): it is up, and stays asleep', async (t) => {
  const server = await startPostgres(t, { args: ['-c', 'idle_session_timeout=100'] })
  const pool = new Pool<unknown>(await connectors.PostgreSQL(server), options)
  t.teardown(() => pool.close())
  const died = event(pool, 'disconnect')
  ;(await pool.acquire()).release()
  t.match(await died, { reason: 'error', error: { code: '57P05' } })
  const asleep = { status: 'up', latency: null, stats: { idle: 0, creating: 0 } }
  for (let i = 0; i < 5; i++) t.match(await pool.health(), asleep)
  t.match(pool.stats(), { created: 1, createErrors: 0 })
  const again = await pool.acquire()
  again.release()
  t.match(pool.stats(), { created: 2 })
})

t.test('MariaDB ends what is idle for long, and does not say why: it is down until one probe has seen more', async (t) => {
  const server = await startMariadb(t, { args: ['--wait-timeout=1'] })
  const pool = new Pool<unknown>(await connectors.MariaDB(server), options)
  t.teardown(() => pool.close())
  const died = event(pool, 'disconnect')
  ;(await pool.acquire()).release()
  t.match(await died, { reason: 'error' })
  t.match(pool.stats(), { created: 1, createErrors: 0, creating: 0 }, 'nobody has asked')
  const reason = /^no connection, and a connection died: \S/
  t.match(await pool.health(), { status: 'down', reason, stats: { creating: 1 } })
  t.match(await untilSays(pool, 'up'), { stats: { created: 2, createErrors: 0, acquired: 1 } })
})
