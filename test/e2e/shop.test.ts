import { randomBytes } from 'node:crypto'
import t, { type Test } from 'tap'
import { askPostgres, askRedis, needsOwn, startPostgres, startRedis } from '../support/services.js'
import { startExample } from './example.js'

// example/shop on a real PostgreSQL and a real Redis.

const database = await startPostgres(t, { own: true })
const cache = await startRedis(t, { own: true })

async function start (t: Test) {
  const env = { DATABASE_URL: database.url, REDIS_URL: cache.url, JWT_SECRET: randomBytes(32).toString('hex') }
  const app = await startExample(t, 'shop/server.js', env)
  const { body: { token } } = await app.ask('/login', { name: 'ada' })
  return { ...app, ada: { authorization: `Bearer ${String(token)}` } }
}

t.test('an order takes from the stock, and the cache is told', needsOwn(database), async (t) => {
  const { url, ask, stop, ada } = await start(t)
  t.match(await ask('/products/1'), { status: 200, cache: 'miss', body: { name: 'tea', stock: 10 } })
  t.match(await ask('/products/1'), { status: 200, cache: 'hit', body: { stock: 10 } })
  t.match(await ask('/products/9'), { status: 404 })
  t.match(await ask('/products/x'), { status: 400 })

  t.match(await ask('/orders', { product: 1, quantity: 3 }), { status: 401 })
  t.match(await ask('/orders', { product: 1, quantity: 3 }, ada), { status: 201, body: { id: 1 } })
  t.match(await ask('/products/1'), { status: 200, cache: 'miss', body: { stock: 7 } })
  t.match(await ask('/orders', { product: 1, quantity: 8 }, ada), { status: 409 })
  t.equal(await askPostgres(database.url, 'select count(*) from orders'), '1', 'the order that failed is undone')
  t.match(await ask('/orders', { product: 9, quantity: 1 }, ada), { status: 409 })
  t.same((await ask('/orders', undefined, ada)).body, [{ id: 1, product: 1, quantity: 3 }])

  t.match((await ask('/openapi.json')).body, { openapi: /^3/, paths: { '/orders': { post: {} }, '/products/{id}': {} } })
  const metrics = await (await fetch(`${url}/metrics`)).text()
  t.match(metrics, /db_client_connection_count\{pool="shop",state="idle"\} [1-9]/)
  t.equal((await stop()).code, 0)
})

t.test('who is refused takes no connection', needsOwn(database), async (t) => {
  const { url, ask, stop } = await start(t)
  const taken = async () => /db_client_connection_wait_time_seconds_count\{pool="shop"\} (\d+)/
    .exec(await (await fetch(`${url}/metrics`)).text())?.[1]
  const before = await taken()
  t.ok(before !== undefined)
  t.equal((await ask('/orders')).status, 401)
  t.equal((await ask('/orders', { product: 1, quantity: 0 }, { authorization: 'Bearer no' })).status, 401)
  t.equal(await taken(), before)
  let status = 0
  for (let n = 0; n < 100 && status !== 429; n++) status = (await ask('/orders')).status
  t.equal(status, 429)
  t.match(await askRedis(new URL(cache.url), 'KEYS *'), /rate-limit/, 'the limit is counted in Redis')
  t.equal(await taken(), before)
  t.equal((await stop()).code, 0)
})
