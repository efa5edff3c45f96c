import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import { fastifyPool, type PluginOptions } from '../../index.js'
import { Events } from '../../lib/engine/events.js'
import { FakeConnector } from '../support/fake-connector.js'

// Metrics cost an acquire next to nothing: no event is made for them. How long it takes, the bench tells.

const nothing = () => {}
const instrument = () => ({ record: nothing })
const meter = {
  createObservableCounter: instrument,
  createObservableGauge: instrument,
  createObservableUpDownCounter: instrument,
  createHistogram: instrument,
  addBatchObservableCallback: nothing,
  removeBatchObservableCallback: nothing,
}
const register = { registerMetric: nothing, removeSingleMetric: nothing }

const isCreate = (name: string) => name.endsWith('create_time')

/** What all pools of the process do from now on: which events are listened to, and made; how many meters there are. */
function spy (t: Test) {
  const seen = { on: [] as string[], emitted: [] as string[], meters: 0 }
  const { prototype } = Events
  const { on, emit, measure } = prototype
  t.teardown(() => Object.assign(prototype, { on, emit, measure }))
  Object.assign(prototype, {
    on (this: Events, ...args: Parameters<typeof on>) {
      seen.on.push(args[0])
      return on.apply(this, args)
    },
    emit (this: Events, ...args: Parameters<typeof emit>) {
      seen.emitted.push(args[0])
      emit.apply(this, args)
    },
    measure (this: Events, ...args: Parameters<typeof measure>) {
      seen.meters++
      return measure.apply(this, args)
    },
  })
  return seen
}

async function serve (t: Test, options: Partial<PluginOptions>) {
  const app = Fastify() as unknown as FastifyInstance
  t.teardown(() => app.close())
  await app.register(fastifyPool, { pools: { db: { connector: new FakeConnector() } }, log: false, ...options })
  app.get('/', async () => 'x')
  for (let i = 0; i < 5; i++) t.equal((await app.inject('/')).statusCode, 200)
  t.match(app.pools.stats(), { db: { acquired: 5, released: 5 } })
  return app
}

for (const [what, options, meters] of [
  ['nothing', {}, 0],
  ['prometheus', { prometheus: { register } }, 0],
  ['otel', { otel: { meter } }, 1],
  ['serverTiming', { serverTiming: true }, 1],
] as const) {
  t.test(`${what}: no listener on acquire and release, no event of them`, async (t) => {
    const seen = spy(t)
    await serve(t, options)
    t.equal(seen.meters, meters)
    for (const event of ['acquire', 'release']) {
      t.notOk(seen.on.includes(event), `on '${event}'`)
      t.notOk(seen.emitted.includes(event), event)
    }
  })
}

t.test('the meters of targets, and of tenants that come', async (t) => {
  const seen = spy(t)
  const waits: number[] = []
  const held: number[] = []
  const told = (name: string) => {
    const values = name.endsWith('wait_time') ? waits : held
    return { record: (value: number) => { values.push(value) } }
  }
  const app = Fastify() as unknown as FastifyInstance
  t.teardown(() => app.close())
  await app.register(fastifyPool, {
    pools: {
      several: { targets: [{ connector: new FakeConnector() }, { connector: new FakeConnector(), role: 'replica' }] },
      each: { key: () => 'a', options: () => ({ connector: new FakeConnector() }), max: 2 },
    },
    lease: false,
    log: false,
    otel: { meter: { ...meter, createHistogram: (name: string) => isCreate(name) ? instrument() : told(name) } },
  } as PluginOptions)
  const several = app.pools.get('several')
  ;(await several.acquire()).release()
  ;(await several.acquire({ role: 'replica' })).release()
  t.match([waits.length, held.length], [2, 2])
  const each = app.pools.get('each')
  ;(await each.of('a').acquire()).release()
  ;(await each.of('b').acquire()).destroy()
  t.match([waits.length, held.length], [4, 4])
  t.match(seen, { meters: 4 })
  await app.pools.remove('several')
})

t.test('a meter that throws is reported, and nobody else suffers', async (t) => {
  const errors: unknown[] = []
  const broken = { record: () => { throw new Error('no room') } }
  const app = Fastify() as unknown as FastifyInstance
  t.teardown(() => app.close())
  await app.register(fastifyPool, {
    pools: { db: { connector: new FakeConnector() } },
    log: false,
    otel: { meter: { ...meter, createHistogram: (name: string) => isCreate(name) ? instrument() : broken } },
  })
  app.pools.on('error', ({ phase, error: { message } }) => { errors.push([phase, message]) })
  const pool = app.pools.get('db')
  const lease = await pool.acquire()
  lease.release()
  t.ok(lease.ended)
  ;(await pool.acquire()).release()
  t.match(pool.stats(), { acquired: 2, released: 2, idle: 1 })
  t.equal(errors.filter((error) => String(error) === 'listener,no room').length, 4, 'two loans, two ends')
})
