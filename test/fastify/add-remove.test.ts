// Pools that an app adds and removes while it runs.
import v8 from 'node:v8'
import vm from 'node:vm'
import Fastify, { type FastifyInstance } from 'fastify'
import t from 'tap'
import { TargetPool } from '../../lib/balance/target-pool.js'
import { fastifyPool } from '../../lib/fastify/plugin.js'
import { Pool } from '../../lib/pool/pool.js'
import type { PoolEventName, PoolFace } from '../../types/pool.js'
import { logLines, listen } from '../support/app.js'
import { FakeConnector, type FakeConnection } from '../support/fake-connector.js'
import { until } from '../support/until.js'

v8.setFlagsFromString('--expose-gc')
const collect = vm.runInNewContext('gc') as () => void

function appWith (stream?: object): FastifyInstance {
  const app = Fastify({ logger: stream === undefined ? false : { level: 'trace', stream: stream as never } })
  app.register(fastifyPool, { connector: new FakeConnector() })
  return app
}

t.test('an added pool has the name that it is added under, in all that tells of it', async (t) => {
  const { stream, lines } = logLines<{ pool?: string, msg: string }>()
  const app = appWith(stream)
  await app
  const cases: Record<string, PoolFace<FakeConnection>> = {
    one: new Pool(new FakeConnector(), { max: 1 }),
    'tenant-2': new Pool(new FakeConnector(), { max: 1, name: 'other' }),
    several: new TargetPool([{ connector: new FakeConnector() }], { max: 1 }),
  }
  for (const [name, pool] of Object.entries(cases)) {
    const told = new Set<string>()
    const events: PoolEventName[] = ['connect', 'acquire', 'release', 'timeout', 'disconnect', 'drain', 'close']
    const stops = events.map((event) => app.pools.on(event, (payload) => { told.add(payload.pool) }))
    app.pools.add(name, pool)
    const hooked = app.pools.get(name)
    t.equal(hooked.name, name)
    const lease = await hooked.acquire({ holder: name })
    t.equal(lease.pool, name)
    t.match(hooked.stats(), { name })
    t.match(app.pools.stats(), { [name]: { name } })
    t.match(app.pools.holders(name), [{ pool: name, holder: name }])
    t.match(await hooked.health(), { stats: { name } })
    const late = await hooked.acquire({ timeout: 1 }).catch((error: Error) => error) as Error
    t.match(late.message, `pool '${name}'`)
    lease.release()
    t.throws(() => lease.connection, { message: `pool '${name}'` })
    await app.pools.remove(name)
    await t.rejects(hooked.acquire(), { message: `pool '${name}' is closed` })
    t.strictSame([...told], [name])
    for (const stop of stops) stop()
    t.ok(lines.some(({ pool, msg }) => pool === name && msg.startsWith('pool closed')), 'the log says so, too')
  }
  t.notOk(lines.some(({ pool }) => pool === 'other'))
  await app.close()
})

t.test('hooks of an added pool are told its name', async (t) => {
  const app = appWith()
  await app
  const told: string[] = []
  const hook = (_: unknown, { pool }: { pool: string }) => { told.push(pool) }
  app.pools.add('mine', new Pool(new FakeConnector(), {
    onConnect: hook,
    onAcquire: hook,
    onRelease: hook,
    onDisconnect: hook,
    wrap: (connection, { pool }) => {
      told.push(pool)
      return connection
    },
  }))
  await app.pools.get('mine').use(() => {})
  await app.close()
  t.strictSame(told, ['mine', 'mine', 'mine', 'mine', 'mine'])
})

t.test('an unread connection of an added pool counts as that pool\'s, in the advice of its error', async (t) => {
  const app = appWith()
  await app
  app.pools.add('mine', new Pool(new FakeConnector(), { max: 1, acquireTimeout: 20 }))
  app.get('/', { config: { pools: ['mine'] } }, async () => {
    await app.pools.get('mine').use(() => {})
  })
  const port = await listen(t, app)
  const { message } = await (await fetch(`http://127.0.0.1:${port}/`)).json() as { message: string }
  t.match(message, "no connection from pool 'mine'")
  t.match(message, 'have never read theirs')
})

t.test('a name is free again when its pool was removed, before the app is ready and after it', async (t) => {
  const app = appWith()
  await app
  const add = () => { app.pools.add('mine', new Pool(new FakeConnector())) }
  add()
  await app.pools.remove('mine')
  add()
  app.get('/', async (request) => ({ has: (request as { mine?: unknown }).mine !== undefined }))
  t.strictSame((await app.inject('/')).json(), { has: true })
  await app.pools.remove('mine')
  add()
  await app.close()
})

t.test('nothing stays of a pool that was removed', async (t) => {
  const { stream, lines } = logLines()
  const app = appWith(stream)
  await app.ready()
  app.pools.on('disconnect', () => {})
  app.pools.on('error', () => {})
  const gone: Array<WeakRef<object>> = []
  const child = app.log.child.bind(app.log)
  app.log.child = (...given) => {
    const made = child(...given)
    gone.push(new WeakRef(made))
    return made
  }
  const oneMore = async (name: string) => {
    const failing = new FakeConnector()
    failing.outcomes.create = 'error'
    for (const connector of [new FakeConnector(), failing]) {
      const pool = new Pool(connector, { acquireTimeout: 5, backoff: { min: 1, max: 1 } })
      gone.push(new WeakRef(pool), new WeakRef(connector))
      app.pools.add(name, pool)
      await app.pools.get(name).use(() => {}).catch(() => {})
      await app.pools.remove(name)
    }
  }
  for (let id = 0; id < 20; id++) await oneMore(`tenant-${id}`)
  t.ok(gone.length >= 20 * 2 * 3, 'pools, connectors and loggers')
  lines.length = 0
  await until(() => {
    collect()
    return gone.every((one) => one.deref() === undefined)
  }, { what: 'all of them are gone' })
  t.strictSame(app.pools.names, ['db'])
  await app.close()
})
