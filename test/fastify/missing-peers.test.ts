import { register } from 'node:module'
import Fastify from 'fastify'
import t from 'tap'
import { fastifyPool, type PluginOptions } from '../../index.js'
import { FakeConnector } from '../support/fake-connector.js'

// The packages that metrics need are not installed, as far as this process can see.
const missing = ['@opentelemetry/api', 'prom-client']
register(`data:text/javascript,${encodeURIComponent(`
  export async function resolve (name, context, next) {
    if (!${JSON.stringify(missing)}.includes(name)) return await next(name, context)
    throw Object.assign(new Error('Cannot find package ' + name), { code: 'ERR_MODULE_NOT_FOUND' })
  }`)}`)

for (const [option, name] of [['otel', missing[0]], ['prometheus', missing[1]]] as const) {
  t.test(`${option}: true without ${name}: register says what to install, and nothing is open`, async (t) => {
    const connector = new FakeConnector()
    let observed = 0
    const instrument = () => ({ record: () => {} })
    const meter = {
      createObservableCounter: instrument,
      createObservableGauge: instrument,
      createObservableUpDownCounter: instrument,
      createHistogram: instrument,
      addBatchObservableCallback: () => { observed++ },
      removeBatchObservableCallback: () => { observed-- },
    }
    const app = Fastify()
    const options = { pools: { db: { connector, min: 1, startup: 'require' } }, otel: { meter }, [option]: true }
    app.register(fastifyPool, options as PluginOptions)
    await t.rejects(async () => { await app.ready() }, {
      code: 'FST_POOL_MISSING_DRIVER',
      message: `option ${option} needs the package ${name}: npm install ${name}`,
      cause: { code: 'ERR_MODULE_NOT_FOUND' },
    })
    t.match(connector, { creates: 0, live: 0 })
    await app.close()
    t.equal(observed, 0, 'what was added before it is taken out again')
  })
}

t.test('who brings a meter and a registry needs no package', async (t) => {
  const app = Fastify()
  const instrument = () => ({ record: () => {} })
  const meter = {
    createObservableCounter: instrument,
    createObservableGauge: instrument,
    createObservableUpDownCounter: instrument,
    createHistogram: instrument,
    addBatchObservableCallback: () => {},
    removeBatchObservableCallback: () => {},
  }
  const registry = { registerMetric: () => {}, removeSingleMetric: () => {} }
  await app.register(fastifyPool, {
    pools: { db: { connector: new FakeConnector() } }, otel: { meter }, prometheus: { register: registry },
  } as PluginOptions)
  await app.ready()
  t.ok(app.pools.has('db'))
  await app.close()
})
