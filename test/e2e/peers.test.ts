import Fastify from 'fastify'
import t, { type Test } from 'tap'
import fastifyPool, { type PoolOptions } from '../../index.js'
import { startMariadb, startPostgres, startRedis, type Server } from '../support/services.js'
import { needsGroup } from '../support/topologies.js'
import { until } from '../support/until.js'

// Three equal servers, counted: one is killed, and comes back.

interface Kind { readonly backend: 'redis' | 'postgresql' | 'mysql', start (t: Test): Promise<Server> }

const kinds: Record<'Redis' | 'PostgreSQL' | 'MariaDB', Kind> = {
  Redis: { backend: 'redis', start: startRedis },
  PostgreSQL: { backend: 'postgresql', start: startPostgres },
  MariaDB: { backend: 'mysql', start: startMariadb },
}

for (const [name, { backend, start }] of Object.entries(kinds)) {
  t.test(`${name}: leases are shared, one server is killed and back`, needsGroup(name as keyof typeof kinds), async (t) => {
    const servers = await Promise.all([start(t), start(t), start(t)])
    const app = Fastify()
    t.teardown(() => app.close())
    const targets = servers.map(({ url }) => ({ url, role: 'peer' as const }))
    await app.register(fastifyPool, { backend, targets, max: 12, checkInterval: 200 } as PoolOptions)
    app.post('/', async () => 'ok')
    await app.ready()
    const acquired = () => app.pools.stats().db!.targets!.map(({ acquired }) => acquired)
    const share = async (count: number) => {
      const before = acquired()
      for (let n = 0; n < count; n += 4) {
        const replies = await Promise.all([0, 1, 2, 3].map(() => app.inject({ method: 'POST', url: '/' })))
        for (const { statusCode } of replies) if (statusCode !== 200) throw new Error(`answered ${statusCode}`)
      }
      return acquired().map((all, n) => all - before[n]!) as [number, number, number]
    }
    const areEven = (shares: readonly number[], what: string) =>
      t.ok(Math.max(...shares) - Math.min(...shares) <= 60, `${what}: ${shares.join(', ')}`)
    await share(100)
    areEven(await share(600), 'at first')
    await servers[1]!.kill()
    await until(async () => app.pools.stats().db!.targets![1]!.idle === 0)
    const [a, b, c] = await share(600)
    t.ok(b <= 12, `the dead one has only its checks: ${b}`)
    areEven([a, c], 'two are left')
    await servers[1]!.restart()
    await until(async () => (await share(40))[1] > 8, { timeout: 10_000, what: 'it serves again' })
    let shares: readonly number[] = []
    const isEven = async () => {
      shares = await share(300)
      return Math.max(...shares) - Math.min(...shares) <= 30
    }
    await until(isEven, { timeout: 3000, what: 'it has its full share' })
    t.pass(`all three again: ${shares.join(', ')}`)
  })
}
