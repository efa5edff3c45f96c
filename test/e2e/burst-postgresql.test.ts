import pg from 'pg'
import Fastify from 'fastify'
import t from 'tap'
import fastifyPool, { type PoolOptions } from '../../index.js'
import { startPostgres } from '../support/services.js'

t.test('a burst of 50 quick queries with 5 warm connections does not open 45 more', async (t) => {
  const server = await startPostgres(t)
  const observer = new pg.Client(server.url)
  await observer.connect()
  t.teardown(() => observer.end())
  const opened: number[] = []
  for (let round = 0; round < 5; round++) {
    const app = Fastify()
    t.teardown(() => app.close())
    const appName = `burst ${round}`
    await app.register(fastifyPool, {
      backend: 'postgresql', url: server.url, max: 50, min: 5, connection: { application_name: appName },
    } as PoolOptions)
    const pool = app.pools.get('db')
    const query = () => pool.use((client) => (client as unknown as pg.Client).query('select 1'))
    const count = async () => {
      const { rows } = await observer.query<{ count: number }>(
        'select count(*)::int from pg_stat_activity where application_name = $1', [appName])
      return rows[0]!.count
    }
    // So that it knows how long a lease is held.
    for (let i = 0; i < 200; i++) await query()
    const before = await count()
    t.equal(before, 5)
    await Promise.all(Array.from({ length: 50 }, query))
    opened.push(await count() - before)
    await app.close()
  }
  t.comment(`measured: a burst opened ${opened.join(', ')} connections more`)
  // How many pay depends on how long the machine takes for a query and for a connect: pays.test.ts has the numbers, on
  // a virtual clock.
  t.ok(Math.min(...opened) < 45, `the fewest that a burst opened: ${Math.min(...opened)}`)
})
