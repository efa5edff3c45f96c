import Fastify from 'fastify'
import t from 'tap'
import { fastifyPool } from '../../index.js'
import type { PoolEventName, PoolEvents } from '../../index.js'
import { FakeConnector } from '../support/fake-connector.js'
import { until } from '../support/until.js'

// A bulkhead's waits, timeouts and refusals are seen: in stats, events, holders and health, with hashed keys.

t.test('49 of 50 requests of one key get a 503, and every number says so', async (t) => {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(fastifyPool, {
    connector: new FakeConnector(),
    max: 5,
    acquireTimeout: 100,
    maxPending: 40,
    bulkhead: { key: (request) => request.headers['x-tenant'] as string, max: 1 },
  })
  const seen: Array<{ event: PoolEventName, bulkhead: string | undefined }> = []
  for (const event of ['timeout', 'refuse', 'wait'] as const) {
    app.pools.on(event, (payload: PoolEvents[typeof event]) => { seen.push({ event, bulkhead: payload.bulkhead }) })
  }
  let end = () => {}
  const ended = new Promise<void>((resolve) => { end = resolve })
  app.get('/', async () => { await ended; return 'ok' })
  await app.ready()
  t.match(app.pools.stats().db!.bulkhead, { pending: 0, shares: 0, keys: [], wait: { count: 0 } })
  const answers = Array.from({ length: 50 }, () => app.inject({ url: '/', headers: { 'x-tenant': 'acme' } }))
  await until(() => app.pools.stats().db!.bulkhead!.pending === 40)
  const during = app.pools.stats().db!.bulkhead!
  const [{ key } = { key: '' }] = during.keys
  t.match(key, /^[0-9a-f]{12}$/)
  t.match(during, { pending: 40, refused: 9, shares: 1, keys: [{ used: 1, pending: 40, refused: 9 }] })
  t.match(app.pools.holders(), [{ bulkhead: key, holder: { route: 'GET /' } }])
  const health = await app.pools.health()
  t.match(health, {
    status: 'degraded',
    pools: { db: { reason: /^40 wait for their share/, stats: { bulkhead: { pending: 40 } } } },
  })
  await until(() => app.pools.stats().db!.bulkhead!.timeouts === 40)
  end()
  const codes = (await Promise.all(answers)).map(({ statusCode }) => statusCode)
  t.equal(codes.filter((code) => code === 503).length, 49)
  const { timeouts, refused, pending, wait } = app.pools.stats().db!.bulkhead!
  t.same({ timeouts, refused, pending }, { timeouts: 40, refused: 9, pending: 0 })
  t.equal(wait.count, 41)
  t.ok(wait.max >= 99, `${wait.max}`)
  const count = (event: PoolEventName) => seen.filter((one) => one.event === event && one.bulkhead === key).length
  t.same([count('wait'), count('timeout'), count('refuse')], [40, 40, 9])
  t.notMatch(JSON.stringify([during, seen, health]), /acme/)
  t.equal((await app.pools.health()).status, 'up')
})
