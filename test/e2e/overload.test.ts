import Fastify, { type FastifyInstance, type FastifyRequest } from 'fastify'
import type { Client } from 'pg'
import t from 'tap'
import fastifyPool from '../../index.js'
import { listen } from '../support/app.js'
import { some } from '../support/full.js'
import { quantile, round } from '../support/measured.js'
import { tellAtOnce } from '../support/order.js'
import { startPostgres } from '../support/services.js'
import { until } from '../support/until.js'
import { type Answer, ask, keepAliveAgent } from './client.js'

const max = 10
/** How long one query takes, in ms. */
const service = 50
/** The bound of the line, in ms: nobody waits longer. */
const acquireTimeout = 400
const seconds = some(6, 20)
const times = 3

interface Seen {
  readonly status: number
  readonly code: string | undefined
  readonly ms: number
  readonly inside: number
  /** How many others were served between its coming and its answer. */
  readonly others: number
  readonly atOnce: boolean
  readonly retryAfter: string | undefined
}

t.test(`with ${times} times more than it can do for ${seconds} s, the app answers what it can in time, refuses the rest at once, and is as before afterwards`, async (t) => {
  const server = await startPostgres(t)
  const app = Fastify()
  tellAtOnce(app as unknown as FastifyInstance)
  let served = 0
  const came = new WeakMap<object, number>()
  app.addHook('onRequest', (request, _reply, done) => {
    came.set(request, served)
    done()
  })
  await app.register(fastifyPool, { backend: 'postgresql', url: server.url, max, acquireTimeout })
  app.get('/', async (request, reply) => {
    await (request as FastifyRequest & { db: Client }).db.query(`select pg_sleep(${service / 1000})`)
    reply.header('x-others', String(served++ - came.get(request)!))
    return 'served'
  })
  app.get('/idle', { config: { pools: false } }, async () => 'served')
  // Told by the server itself: what this process's client side costs is not the pool's.
  app.addHook('onSend', (_request, reply, payload, done) => {
    reply.header('x-inside', String(reply.elapsedTime))
    done(null, payload)
  })
  const port = await listen(t, app)
  const agent = keepAliveAgent(t)
  const pool = app.pools.get('db')
  const get = async (path = '/'): Promise<Seen> => {
    const began = performance.now()
    const { status, headers, body }: Answer = await ask({ port, path, agent })
    const { code } = status === 200 ? { code: undefined } : JSON.parse(body) as { code?: string }
    return { status, code, ms: performance.now() - began, inside: Number(headers['x-inside']), others: Number(headers['x-others']), atOnce: headers['x-at-once'] === 'true', retryAfter: headers['retry-after'] }
  }

  // What it can do: ten at a time, for two seconds; and what one request takes that is alone.
  await Promise.all(Array.from({ length: max }, () => get()))
  const alone: number[] = []
  for (let i = 0; i < 10; i++) alone.push((await get()).inside)
  const unloaded = quantile(alone, 0.5)
  let done = 0
  const began = performance.now()
  await Promise.all(Array.from({ length: max }, async () => {
    while (performance.now() - began < 2000) {
      await get()
      done++
    }
  }))
  const capacity = done / (performance.now() - began) * 1000
  const before = pool.stats()

  // Requests come by the clock, whether or not those before them were answered.
  const seen: Seen[] = []
  const floor: Seen[] = []
  const flying = new Set<Promise<unknown>>()
  const start = performance.now()
  let sent = 0
  let longest = 0
  const looks = { all: 0, full: 0 }
  await new Promise<void>((resolve) => {
    const timer = setInterval(() => {
      const now = performance.now()
      const due = Math.min(seconds, (now - start) / 1000) * capacity * times
      const send = (path: string, into: Seen[]) => {
        const flight = get(path).then((answer) => { into.push(answer) }).finally(() => { flying.delete(flight) })
        flying.add(flight)
      }
      for (; sent < due; sent++) {
        send('/', seen)
        // How fast this process answers at all, under the same load.
        if (sent % 10 === 0) send('/idle', floor)
      }
      const { pending, used } = pool.stats()
      longest = Math.max(longest, pending)
      looks.all++
      if (used === max) looks.full++
      if (now - start < seconds * 1000) return
      clearInterval(timer)
      resolve()
    }, 5)
  })
  await Promise.all(flying)
  const took = (performance.now() - start) / 1000

  const answered = seen.filter(({ status }) => status === 200)
  const refused = seen.filter(({ code }) => code === 'FST_POOL_OVERLOADED')
  const late = seen.filter(({ code }) => code === 'FST_POOL_ACQUIRE_TIMEOUT')
  const p99 = quantile(answered.map(({ inside }) => inside), 0.99)
  const told = quantile(refused.map(({ inside }) => inside), 0.99)
  const anyway = quantile(floor.map(({ inside }) => inside), 0.99)
  t.comment(`measured: alone ${round(unloaded)} ms; capacity ${round(capacity)} requests/s; offered ${round(sent / took)}/s for ${round(took)} s; ` +
    `answered ${answered.length} (${round(answered.length / took)}/s), p50 ${round(quantile(answered.map(({ inside }) => inside), 0.5))} ms, p99 ${round(p99)} ms (over the socket ${round(quantile(answered.map(({ ms }) => ms), 0.99))} ms); ` +
    `refused ${refused.length}, p50 ${round(quantile(refused.map(({ inside }) => inside), 0.5))} ms, p99 ${round(told)} ms (a route without a pool at the same time: ${round(anyway)} ms); ` +
    `timed out ${late.length}; longest line ${longest}`)

  t.equal(seen.length, sent, 'every request was answered')
  t.equal(answered.length + refused.length + late.length, sent, 'with a result, or with one of the two refusals')
  t.ok(looks.full >= 0.9 * looks.all,
    `it does what it can: all connections were used at ${looks.full} of ${looks.all} looks`)
  t.ok(answered.length >= 0.5 * capacity * seconds, `and ${answered.length} were answered`)
  // No connection serves more than one each `service` ms: so many in the time that one may wait, those that were being
  // served when it came, and those beside it.
  const most = (acquireTimeout / service + 2) * max
  const others = quantile(answered.map(({ others }) => others), 0.99)
  t.ok(others <= most, `${others} others were served from the coming of an answered one to its answer, and ${most} may`)
  const slow = refused.filter(({ atOnce }) => !atOnce).length
  t.equal(slow, 0, `each of ${refused.length} was refused in the turn of the event loop in which it came`)
  // On the virtual clock less than one in a hundred waits for nothing. Here those count too for whom the machine has
  // become slower than it was.
  t.ok(late.length < 3 * refused.length, `${late.length} waited for nothing`)
  t.ok(refused.every(({ retryAfter }) => /^[1-9]\d?$/.test(retryAfter ?? '')), 'and are told when to come back')

  await until(() => pool.stats().used === 0 && pool.stats().pending === 0)
  const after = pool.stats()
  t.equal(after.created, before.created, 'no connection was made anew')
  t.equal(after.idle, max)
  t.same(after.destroyed, before.destroyed)
  let waits = 0
  pool.on('wait', () => { waits++ })
  for (let i = 0; i < 10; i++) t.equal((await get()).status, 200)
  t.equal(waits, 0, 'a request waits for nobody, as before')
})
