import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import { fastifyPool, type PluginOptions } from '../../index.js'
import { FakeConnector } from '../support/fake-connector.js'

function appOf (t: Test): FastifyInstance {
  const app = Fastify() as unknown as FastifyInstance
  t.teardown(() => app.close())
  return app
}

const pools = (...names: string[]) => Object.fromEntries(names.map((name) =>
  [name, { connector: new FakeConnector(), max: 1 }])) as NonNullable<PluginOptions['pools']>

/** The metrics of a header: name, and duration in ms. */
function read (header: unknown): Map<string, number> {
  return new Map(String(header).split(', ').map((metric) => {
    const [, name, ms] = /^([\w-]+);dur=([\d.]+)$/.exec(metric) ?? []
    return [name ?? metric, Number(ms)]
  }))
}

function wait (): { readonly promise: Promise<void>, readonly end: () => void } {
  let end = () => {}
  const promise = new Promise<void>((resolve) => { end = resolve })
  return { promise, end }
}

t.test('each pool that a request leased, once, whatever scopes tell of it', async (t) => {
  const app = appOf(t)
  await app.register(fastifyPool, { pools: pools('db', 'cache'), serverTiming: true })
  await app.register(fastifyPool, { pools: pools('more'), serverTiming: true })
  app.get('/none', { config: { pools: false } }, async () => 'x')
  app.get('/db', { config: { pools: ['db'] } }, async () => 'x')
  app.get('/own', { config: { pools: ['db'] } }, async (_, reply) => reply.header('server-timing', 'app;dur=1').send('x'))
  app.get('/fails', async () => { throw new Error('no') })
  app.get('/sent', { config: { pools: { db: { release: 'onSend' } } } }, async () => 'x')
  await app.register(async (scope) => {
    await scope.register(fastifyPool, { pools: pools('inner'), serverTiming: true })
    scope.get('/inner', async () => 'x')
  })
  const names = async (url: string) => [...read((await app.inject(url)).headers['server-timing']).keys()]
  t.equal((await app.inject('/none')).headers['server-timing'], undefined)
  t.same(await names('/db'), ['db-wait', 'db'])
  t.same(await names('/own'), ['app', 'db-wait', 'db'])
  t.same(await names('/fails'), ['db-wait', 'db', 'cache-wait', 'cache', 'more-wait', 'more'])
  t.same(await names('/sent'), ['db-wait', 'db'])
  t.same(await names('/inner'), ['db-wait', 'db', 'cache-wait', 'cache', 'more-wait', 'more', 'inner-wait', 'inner'])
})

t.test('who had to wait: for a connection, or for its share', async (t) => {
  for (const [bulkhead, max] of [[undefined, 1], [{ key: () => 'one', max: 1 }, 2]] as const) {
    const app = appOf(t)
    await app.register(fastifyPool, {
      pools: { db: { connector: new FakeConnector(), max, bulkhead } }, serverTiming: true, log: false,
    })
    const held = wait()
    const has = wait()
    app.get('/slow', async () => {
      has.end()
      await held.promise
      return 'x'
    })
    app.get('/fast', async () => 'x')
    await app.ready()
    const slow = app.inject('/slow').then((reply) => reply)
    await has.promise
    const waits = wait()
    const acquired = new Promise<number>((resolve) => { app.pools.on('acquire', () => { resolve(performance.now()) }) })
    let began = 0
    app.pools.on('wait', () => {
      began = performance.now()
      waits.end()
    })
    const fast = app.inject('/fast').then((reply) => reply)
    await waits.promise
    held.end()
    const least = await acquired - began
    const told = read((await fast).headers['server-timing']).get('db-wait')!
    // Both clocks are read at the same events; the header is rounded to a hundredth.
    t.ok(told > 0 && told >= least - 1, `${told} of ${least}`)
    t.ok(read((await slow).headers['server-timing']).get('db')! > 0)
  }
})

t.test('a request that got none says for how long it waited', async (t) => {
  const app = appOf(t)
  await app.register(fastifyPool, {
    pools: { db: { connector: new FakeConnector(), max: 1, acquireTimeout: 20 } }, serverTiming: true, log: false,
  })
  app.get('/x', async () => 'x')
  await app.ready()
  const lease = await app.pools.get('db').acquire()
  const { statusCode, headers } = await app.inject('/x')
  t.equal(statusCode, 503)
  const told = read(headers['server-timing'])
  t.ok(told.get('db-wait')! > 0)
  t.equal(told.get('db'), 0)
  lease.release()
})

t.test('off: no header', async (t) => {
  const app = appOf(t)
  await app.register(fastifyPool, { pools: pools('db') })
  app.get('/x', async () => 'x')
  t.equal((await app.inject('/x')).headers['server-timing'], undefined)
})
