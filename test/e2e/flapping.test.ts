import Fastify, { type FastifyInstance, type FastifyRequest } from 'fastify'
import type { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import fastifyPool, { type PoolOptions } from '../../index.js'
import { listen, logLines, uncaught } from '../support/app.js'
import { some } from '../support/full.js'
import { quantile, round } from '../support/measured.js'
import { alarm, type Alarm, tellAtOnce } from '../support/order.js'
import { startProxy } from '../support/proxy.js'
import { startRedis } from '../support/services.js'
import { until } from '../support/until.js'
import { type Answer, ask, keepAliveAgent } from './client.js'

const max = 5
const acquireTimeout = 1000

interface Seen {
  readonly late: boolean
  readonly atOnce: boolean
  readonly status: number
  readonly code: string | undefined
  readonly retryAfter: string | undefined
  readonly ms: number
}

async function serve (t: Test) {
  const strays = uncaught(t)
  const server = await startRedis(t)
  const proxy = await startProxy(t, server)
  const { stream, lines } = logLines<{ level: number, msg: string, event?: string }>()
  const app = Fastify({ logger: { level: 'info', stream }, disableRequestLogging: true })
  tellAtOnce(app as unknown as FastifyInstance)
  const alarms = new WeakMap<object, Alarm>()
  app.addHook('onRequest', (request, _reply, done) => {
    alarms.set(request, alarm(acquireTimeout + 500))
    done()
  })
  app.addHook('onSend', (request, reply, payload, done) => {
    reply.header('x-late', String(alarms.get(request)!.rang))
    done(null, payload)
  })
  const pool: PoolOptions = {
    backend: 'redis', url: `redis://127.0.0.1:${proxy.port}`, max, acquireTimeout, startup: 'lazy',
  }
  await app.register(fastifyPool, pool)
  app.get('/', async (request) => await (request as FastifyRequest & { db: Redis }).db.ping())
  const port = await listen(t, app)
  const agent = keepAliveAgent(t)
  const get = async (): Promise<Seen> => {
    const began = performance.now()
    const { status, headers, body }: Answer = await ask({ port, path: '/', agent })
    const { code } = status === 200 ? { code: undefined } : JSON.parse(body) as { code?: string }
    return { status, code, late: headers['x-late'] === 'true', atOnce: headers['x-at-once'] === 'true', retryAfter: headers['retry-after'], ms: performance.now() - began }
  }
  return { app, pool: app.pools.get('db'), proxy, get, strays, lines }
}

/** Calls `step` every `ms` for a while: what goes by the clock here is the world outside. */
async function every (ms: number, times: number, step: (n: number) => void): Promise<void> {
  await new Promise<void>((resolve) => {
    let n = 0
    const timer = setInterval(() => {
      step(n++)
      if (n < times) return
      clearInterval(timer)
      resolve()
    }, ms)
  })
}

/** In ms. */
const lasts = some(10_000, 30_000)

t.test(`a server that is up for 200 ms and down for 200 ms, for ${lasts / 1000} s, is not called more often than the backoff and the circuit say`, async (t) => {
  const { pool, proxy, get, strays } = await serve(t)
  let opened = 0
  pool.on('circuit', ({ to }) => { if (to === 'open') opened++ })
  await get()
  const seen: Seen[] = []
  const flying = new Set<Promise<unknown>>()
  let most = 0
  let down = false
  let phases = 0
  await every(20, lasts / 20, (n) => {
    // Ten steps of 20 ms each.
    if (n % 10 === 0) {
      down = !down
      if (down) {
        phases++
        // Refused, but seen: a closed listener could not count.
        proxy.resetOnConnect()
        proxy.resetAll()
      } else {
        proxy.heal()
      }
    }
    const flight = get().then((answer) => { seen.push(answer) }).finally(() => { flying.delete(flight) })
    flying.add(flight)
    most = Math.max(most, proxy.connections.open)
  })
  await proxy.heal()
  await Promise.all(flying)
  const { created, createErrors } = pool.stats()
  const { total } = proxy.connections
  t.comment(`measured: ${seen.length} requests: ${seen.filter(({ status }) => status === 200).length} served, ${seen.filter(({ code }) => code === 'FST_POOL_CIRCUIT_OPEN').length} refused by the open circuit; ` +
    `${total} connects (${created} worked, ${createErrors} failed), the circuit opened ${opened} times; longest answer ${round(Math.max(...seen.map(({ ms }) => ms)))} ms`)

  // The pauses themselves are shown on the virtual clock. In each time that it is down, all may fail at once, and then
  // one after the other, with pauses of about 25, 50 and 100 ms.
  const bound = phases * (max + 6)
  t.ok(createErrors <= bound, `${createErrors} creates failed, and ${bound} may`)
  t.ok(created <= (phases + 1) * max, `${created} worked: each connection once for each time that it was cut`)
  t.ok(total <= createErrors + created + max, 'and there were no others')
  t.ok(most <= max, `at most ${most} connections at a time`)
  t.same(seen.filter(({ late }) => late), [],
    'every request was answered before a timer of acquireTimeout + 500 ms, set when it came')
  t.same(strays, [], 'and nothing was left unhandled')

  await until(() => pool.stats().circuit === 'closed', { what: 'the circuit to close' })
  t.equal((await get()).status, 200)
  await until(() => pool.stats().used === 0 && pool.stats().creating === 0)
  t.equal(pool.stats().pending, 0)
})

t.test('with its server gone, an app says so at once; when it is back, so is the app, within openFor', async (t) => {
  const { pool, proxy, get, lines } = await serve(t)
  t.equal((await get()).status, 200)
  const changes: string[] = []
  pool.on('circuit', ({ from, to }) => { changes.push(`${from} > ${to}`) })
  await proxy.refuse()
  proxy.resetAll()
  await until(async () => (await get()).code === 'FST_POOL_CIRCUIT_OPEN', { what: 'the circuit to open' })

  const seen: Seen[] = []
  for (let i = 0; i < 200; i++) seen.push(await get())
  const p99 = quantile(seen.map(({ ms }) => ms), 0.99)
  t.ok(seen.every(({ status, code }) => status === 503 && code === 'FST_POOL_CIRCUIT_OPEN'))
  t.ok(seen.every(({ retryAfter }) => retryAfter === '1'))
  t.ok(seen.every(({ atOnce }) => atOnce), 'in the turn of the event loop in which they came: nobody waits')
  t.match(await pool.health(), { status: 'down', circuit: /open/ })

  await proxy.heal()
  const before = changes.length
  const back = performance.now()
  await until(async () => (await get()).status === 200, { what: 'the first answer' })
  const took = performance.now() - back
  t.comment(`measured: refused in ${round(quantile(seen.map(({ ms }) => ms), 0.5))} ms (p99 ${round(p99)} ms); served again ${round(took)} ms after the server was back`)
  // One that was under way when the server came back may have failed. How long after each other they are is shown on
  // the virtual clock.
  const failed = changes.slice(before).filter((change) => change === 'half-open > open').length
  t.ok(failed <= 1, `by the first create that is tried: ${changes.join(', ')}`)
  t.match(lines.find(({ level }) => level === 50), { event: 'pool.down', cause: /\S/, remedy: /\S/ })
  t.ok(lines.filter(({ level }) => level >= 30).filter(({ event }) => /^pool\.(down|up)$/.test(String(event))).length <= 6,
    'the log tells of the outage, and not of each request')
})
