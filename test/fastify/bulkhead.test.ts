import Fastify from 'fastify'
import type { FastifyRequest } from 'fastify'
import t, { type Test } from 'tap'
import { fastifyPool } from '../../index.js'
import type { PluginOptions } from '../../index.js'
import { Bulkhead } from '../../lib/fastify/rules/bulkhead.js'
import { bounded } from '../../lib/fastify/rules/keys.js'
import type { AcquireOptions } from '../../types/pool.js'
import { FakeConnector, fakePool, failure, warm, watch } from '../support/fake-connector.js'
import { settle } from '../support/clock.js'
import type { Client } from '../support/client.js'
import { rulesOf } from '../support/rules.js'
import { Stage, on, say } from '../support/stage.js'
import { until } from '../support/until.js'

// Fair shares: requests of one key can't take all of a pool's connections.

const tenantOf = (request: FastifyRequest) => request.headers.tenant as string | undefined
const tenant = (name: string) => ({ headers: { tenant: name } })
const bulkheadOf = (stage: Stage, name = 'db') => rulesOf(stage.app.pools, name).bulkhead!

/** So many wait for their share. */
async function inLine (stage: Stage, count: number, name = 'db'): Promise<void> {
  await until(() => bulkheadOf(stage, name).pending === count, { what: `${count} in front of the pool` })
}

/** As `stage.settled`; and no share is left. */
async function settled (t: Test, stage: Stage): Promise<void> {
  await stage.settled(t)
  for (const name of stage.witnesses.keys()) {
    t.same([bulkheadOf(stage, name).keys, bulkheadOf(stage, name).pending],
      [0, 0], 'no share is left')
  }
}

// --- In an app -------------------------------------------------------------------------------------------------------

t.test('no key gets more than its share, and those who wait for it take no place in the pool\'s line: others get theirs at once', async (t) => {
  const stage = await Stage.set(t, {
    pool: { max: 4, min: 4, bulkhead: { key: tenantOf, max: 2 } },
    routes: (app, stage) => {
      app.get('/', async (request) => { say(request, 'read'); await stage.gate('end').opened; return 'well' })
    },
  })
  const waits: number[] = []
  stage.pool.on('acquire', ({ wait }) => { waits.push(wait) })
  const clients: Client[] = []
  const send = async (id: string, name: string, lent: number) => {
    clients.push(stage.client().send('GET', '/', { id, ...tenant(name) }))
    await until(() => stage.seen.has(id) && stage.witness.lent.length === lent)
  }
  await send('A1', 'a', 1)
  await send('A2', 'a', 2)
  await send('A3', 'a', 2)
  await send('A4', 'a', 2)
  await inLine(stage, 2)
  await send('B1', 'b', 3)
  await send('B2', 'b', 4)
  t.same(stage.witness.lent, ['A1', 'A2', 'B1', 'B2'])
  t.same(waits, [0, 0, 0, 0])
  t.equal(stage.pool.stats().pending, 0)
  t.equal(bulkheadOf(stage).keys, 2)
  stage.gate('end').open()
  for (const client of clients) t.equal((await client.answer()).body, 'well')
  await settled(t, stage)
})

t.test('first come, first served within a key', async (t) => {
  const stage = await Stage.set(t, {
    pool: { max: 3, bulkhead: { key: tenantOf, max: 1 } },
    routes: (app, stage) => {
      app.get('/', async (request) => { on(request); await stage.gate(request.id).opened; return 'well' })
    },
  })
  const ids = ['A', 'B', 'C', 'D', 'E']
  const clients = []
  for (const [at, id] of ids.entries()) {
    clients.push(stage.client().send('GET', '/', { id, ...tenant('a') }))
    if (at === 0) await until(() => stage.witness.lent.length === 1)
    else await inLine(stage, at)
  }
  for (const [at, id] of ids.entries()) {
    t.same(stage.witness.lent, ids.slice(0, at + 1))
    stage.gate(id).open()
    t.equal((await clients[at]!.answer()).body, 'well')
    await until(() => stage.witness.lent.length === Math.min(at + 2, ids.length))
  }
  await settled(t, stage)
})

t.test('without a key there is no share', async (t) => {
  const stage = await Stage.set(t, {
    pool: { max: 3, bulkhead: { key: tenantOf, max: 1 } },
    routes: (app, stage) => {
      app.get('/', async (request) => { on(request); await stage.gate('end').opened; return 'well' })
    },
  })
  const clients = ['A', 'B', 'C'].map((id) => stage.client().send('GET', '/', { id }))
  await until(() => stage.witness.lent.length === 3)
  t.equal(bulkheadOf(stage).keys, 0)
  stage.gate('end').open()
  for (const client of clients) t.equal((await client.answer()).body, 'well')
  await settled(t, stage)
})

t.test('a client that leaves while it waits for its share leaves the line at once, and never has a connection', async (t) => {
  const stage = await Stage.set(t, {
    pool: { max: 2, bulkhead: { key: tenantOf, max: 1 } },
    routes: (app, stage) => {
      app.get('/', async (request) => { on(request); await stage.gate(request.id).opened; return 'well' })
    },
  })
  const [one, two, three] = ['A', 'B', 'C'].map((id) => stage.client().send('GET', '/', { id, ...tenant('a') }))
  await until(() => stage.witness.lent.length === 1)
  await inLine(stage, 2)
  const first = stage.witness.lent[0]!
  t.equal(first, 'A')
  two!.leave()
  await inLine(stage, 1)
  stage.gate('C').open()
  stage.gate('A').open()
  t.equal((await one!.answer()).body, 'well')
  t.equal((await three!.answer()).body, 'well')
  await settled(t, stage)
  t.same(stage.witness.lent, ['A', 'C'])
})

t.test('a connection that is parked for a slow body gives its place in the share back, and takes it again', async (t) => {
  const stage = await Stage.set(t, {
    pool: { max: 2, bulkhead: { key: tenantOf, max: 1 } },
    plugin: { bodyGrace: 30 },
    routes: (app, stage) => {
      app.post('/', async (request) => { say(request, 'write'); return 'well' })
      app.get('/', async (request) => { say(request, 'read'); await stage.gate('end').opened; return 'well' })
    },
  })
  const slow = stage.client().send('POST', '/', { id: 'A', body: '{', length: 2, ...tenant('a') })
  await until(() => stage.witness.lent.length === 1)
  const other = stage.client().send('GET', '/', { id: 'B', ...tenant('a') })
  await stage.hears('B:read#1')
  slow.write('}')
  await inLine(stage, 1)
  stage.gate('end').open()
  t.equal((await other.answer()).body, 'well')
  t.equal((await slow.answer()).body, 'well')
  await settled(t, stage)
  t.same(stage.witness.lent, ['A', 'B', 'A'])
})

t.test('a connection that the handler gives back early, or destroys, gives its place in the share back with it', async (t) => {
  const stage = await Stage.set(t, {
    pool: { max: 2, bulkhead: { key: tenantOf, max: 1 } },
    routes: (app, stage) => {
      app.get('/release', async (request) => {
        request.lease('db').release()
        await stage.gate('end').opened
        return 'well'
      })
      app.get('/destroy', async (request) => {
        request.lease('db').destroy()
        await stage.gate('end').opened
        return 'well'
      })
      app.get('/again', async (request) => {
        request.lease('db').release()
        await request.acquire('db')
        say(request, 'again')
        await stage.gate('end').opened
        return 'well'
      })
      app.get('/', async (request) => { say(request, 'read'); return 'well' })
    },
  })
  const clients = [stage.client().send('GET', '/release', { id: 'A', ...tenant('a') })]
  await until(() => stage.pool.stats().released === 1)
  t.equal(bulkheadOf(stage).keys, 0)
  clients.push(stage.client().send('GET', '/destroy', { id: 'B', ...tenant('a') }))
  await until(() => stage.pool.stats().released === 2)
  t.equal((await stage.client().get('/', { id: 'C', ...tenant('a') })).body, 'well')
  clients.push(stage.client().send('GET', '/again', { id: 'D', ...tenant('a') }))
  await until(() => stage.witness.said.some((what) => what.startsWith('D:again')))
  const last = stage.client().send('GET', '/', { id: 'E', ...tenant('a') })
  await inLine(stage, 1)
  stage.gate('end').open()
  for (const client of [...clients, last]) t.equal((await client.answer()).body, 'well')
  await settled(t, stage)
})

t.test('a handler whose client has gone keeps its place in the share as long as its connection, which is destroyed in the end', async (t) => {
  const stage = await Stage.set(t, {
    pool: { max: 2, bulkhead: { key: tenantOf, max: 1 } },
    plugin: { abortGrace: 60 },
    routes: (app, stage) => {
      app.get('/hangs', async (request) => { say(request, 'read'); await stage.gate('never').opened })
      app.get('/', async (request) => { say(request, 'read'); return 'well' })
    },
  })
  const gone = stage.client().send('GET', '/hangs', { id: 'A', ...tenant('a') })
  await stage.hears('A:read#1')
  const next = stage.client().send('GET', '/', { id: 'B', ...tenant('a') })
  await inLine(stage, 1)
  gone.leave()
  await stage.over('A')
  t.equal(stage.pool.stats().used, 1)
  t.equal(bulkheadOf(stage).pending, 1)
  t.equal((await next.answer()).body, 'well')
  await settled(t, stage)
  t.same(stage.witness.said, ['A:read#1', 'B:read#2'])
  t.same(stage.witness.destroyed, ['aborted'])
})

t.test('at the deadline the answer is 503 with Retry-After, says that it is the share, and never says the key', async (t) => {
  const stage = await Stage.set(t, {
    pool: { max: 3, acquireTimeout: 30, bulkhead: { key: tenantOf, max: 1 } },
    routes: (app, stage) => {
      app.get('/', async (request) => { on(request); await stage.gate('end').opened; return 'well' })
    },
  })
  const first = stage.client().send('GET', '/', { id: 'A', ...tenant('s3cr3t') })
  await until(() => stage.witness.lent.length === 1)
  const { status, headers, body } = await stage.client().get('/', { id: 'B', ...tenant('s3cr3t') })
  t.equal(status, 503)
  t.match(headers['retry-after'], /^([1-9]|[12]\d|30)$/)
  t.match(JSON.parse(body), {
    code: 'FST_POOL_ACQUIRE_TIMEOUT',
    message: /^no connection from pool 'db' within 30 ms: requests of the same key have their whole share of it \(bulkhead\.max 1, used 1, pending 1\)/,
  })
  t.notMatch(body, /s3cr3t/)
  stage.gate('end').open()
  t.equal((await first.answer()).body, 'well')
  await settled(t, stage)
})

t.test('request.acquire: its own timeout and signal count for the share too', async (t) => {
  const stage = await Stage.set(t, {
    plugin: { lease: { acquire: 'manual' } },
    pool: { max: 3, bulkhead: { key: tenantOf, max: 1 } },
    routes: (app, stage) => {
      app.get('/', async (request) => {
        await request.acquire('db', { holder: 'a job' })
        await stage.gate('end').opened
        return 'well'
      })
      app.get('/timeout', async (request) => { await request.acquire('db', { timeout: 20 }) })
      app.get('/bad', async (request) => { await request.acquire('db', { timeout: 0 }) })
      app.get('/signal', async (request) => {
        const controller = new AbortController()
        const lease = request.acquire('db', { signal: controller.signal })
        await inLine(stage, 1)
        controller.abort(new Error('changed my mind'))
        await lease
      })
      app.setErrorHandler(async (error: Error & { code: string }) =>
        `${error.code} ${(error.cause as Error | undefined)?.message ?? ''}`)
    },
  })
  const first = stage.client().send('GET', '/', { id: 'A', ...tenant('a') })
  await until(() => stage.witness.lent.length === 1)
  t.same(stage.pool.holders().map(({ holder }) => ({ ...holder as object })), [{ route: 'a job', id: 'A' }])
  const get = async (path: string) => (await stage.client().get(path, { id: path, ...tenant('a') })).body
  t.equal(await get('/timeout'), 'FST_POOL_ACQUIRE_TIMEOUT ')
  t.equal(await get('/bad'), 'FST_POOL_BAD_OPTIONS ')
  t.equal(await get('/signal'), 'FST_POOL_ABORTED changed my mind')
  stage.gate('end').open()
  t.equal((await first.answer()).body, 'well')
  await settled(t, stage)
})

t.test('a key function that throws fails the request with its error, which then holds nothing', async (t) => {
  let asked = 0
  const stage = await Stage.set(t, {
    pools: ['db', 'cache'],
    pool: {
      bulkhead: {
        key: (request) => {
          asked++
          if (asked % 2 === 0) {
            throw request.id === 'A'
              ? Object.assign(new Error('who is it?'), { statusCode: 400 })
              : undefined
          }
          return 'a'
        },
        max: 1,
      },
    },
    routes: (app) => { app.get('/', async () => 'well') },
  })
  // So that the first pool's is taken on the short way.
  for (const name of ['db', 'cache']) (await stage.poolOf(name).acquire()).release()
  const before = [...stage.witness.lent]
  t.match(await stage.client().get('/', { id: 'A' }), { status: 400, body: /who is it\?/ })
  t.match(await stage.client().get('/', { id: 'B' }), { status: 500, body: /bulkhead\.key threw/ })
  t.same(stage.witness.lent, [...before, 'A', 'B'])
  await settled(t, stage)
})

t.test('a key that is no text is an error that says so', async (t) => {
  const keys: Array<() =>
  unknown> =
      [() => 7, () => null, () => ({ name: 's3cr3t' }), async () => { throw new Error('s3cr3t') }, async () => 's3cr3t']
  const stage = await Stage.set(t, {
    pool: { bulkhead: { key: (() => keys.shift()!()) as () => string, max: 1 } },
    routes: (app) => { app.get('/', async () => 'well') },
  })
  for (const what of ['a value of type number', 'null', 'a value of type object', 'a promise', 'a promise']) {
    const { status, body } = await stage.client().get('/')
    t.equal(status, 500)
    t.match(JSON.parse(body),
      { code: 'FST_POOL_BAD_OPTIONS', message: `pool 'db': bulkhead.key gave ${what}: expected a text, or undefined for none` })
  }
  t.same(keys, [])
  await settled(t, stage)
})

t.test('of several pools: when the share of one can not be had, the connections of the others go back at once', async (t) => {
  const stage = await Stage.set(t, {
    pools: ['db', 'cache'],
    pool: { max: 2, acquireTimeout: 30, bulkhead: { key: tenantOf, max: 1 } },
    routes: (app, stage) => {
      app.addHook('onError', async (request) => {
        if (request.id === 'B') {
          t.same([stage.pool.stats().used, bulkheadOf(stage).keys], [0, 0],
            'before the answer is made')
        }
      })
      app.get('/cache', { config: { pools: ['cache'] } }, async (request) => {
        on(request, 'cache')
        await stage.gate('end').opened
        return 'well'
      })
      app.get('/', async () => 'well')
    },
  })
  const first = stage.client().send('GET', '/cache', { id: 'A', ...tenant('a') })
  await until(() => stage.witnesses.get('cache')!.lent.length === 1)
  t.equal((await stage.client().get('/', { id: 'B', ...tenant('a') })).status, 503)
  t.same(stage.witness.lent, ['B'])
  stage.gate('end').open()
  t.equal((await first.answer()).body, 'well')
  await settled(t, stage)
})

t.test('a transaction that can not begin gives the place in the share back', async (t) => {
  const app = Fastify()
  t.teardown(() => app.close())
  const connector = new FakeConnector()
  await app.register(fastifyPool,
    { connector, log: false, max: 2, bulkhead: { key: () => 'a', max: 1 } } as PluginOptions)
  app.get('/', { config: { pools: { db: { transaction: true } } } }, async () => 'well')
  await app.ready()
  const { bulkhead } = rulesOf(app.pools)
  connector.next.begin = ['error']
  t.equal((await app.inject('/')).statusCode, 500)
  t.equal((await app.inject('/')).body, 'well')
  await until(() => app.pools.get('db').stats().used === 0)
  t.equal(bulkhead!.keys, 0)
})

t.test('while the app closes, who waits for a share is still served', async (t) => {
  const stage = await Stage.set(t, {
    pool: { max: 3, closeTimeout: 5000, bulkhead: { key: tenantOf, max: 1 } },
    routes: (app, stage) => {
      app.get('/', async (request) => { on(request); await stage.gate(request.id).opened; return 'well' })
    },
  })
  const clients = ['A', 'B'].map((id) => stage.client().send('GET', '/', { id, ...tenant('a') }))
  await until(() => stage.witness.lent.length === 1)
  await inLine(stage, 1)
  const drains = new Promise<void>((resolve) => { stage.pool.on('drain', () => { resolve() }) })
  const closed = stage.app.close()
  await drains
  for (const id of ['A', 'B']) stage.gate(id).open()
  for (const client of clients) t.equal((await client.answer()).body, 'well')
  await closed
  t.same(stage.witness.lent, ['A', 'B'])
  t.equal(bulkheadOf(stage).keys, 0)
})

t.test('when the pool closes, who waits for a share is turned away', async (t) => {
  const stage = await Stage.set(t, {
    pool: { max: 3, closeTimeout: 100, bulkhead: { key: tenantOf, max: 1 } },
    routes: (app, stage) => {
      app.get('/', async (request) => { on(request); await stage.gate('end').opened; return 'well' })
    },
  })
  stage.client().send('GET', '/', { id: 'A', ...tenant('a') })
  await until(() => stage.witness.lent.length === 1)
  const second = stage.client().send('GET', '/', { id: 'B', ...tenant('a') })
  await inLine(stage, 1)
  const closed = stage.app.close()
  const { status, body } = await second.answer()
  t.equal(status, 503)
  t.match(JSON.parse(body), { code: 'FST_POOL_CLOSED', message: "pool 'db' is closing" })
  await closed
  t.same([stage.witness.lent, bulkheadOf(stage).pending], [['A'], 0])
})

t.test('a pool that is removed turns away who waits for a share, by the time that it is closed', async (t) => {
  const stage = await Stage.set(t, {
    pool: { max: 3, closeTimeout: 50, bulkhead: { key: tenantOf, max: 1 } },
    routes: (app, stage) => {
      app.get('/', async (request) => { on(request); await stage.gate('end').opened; return 'well' })
    },
  })
  const bulkhead = bulkheadOf(stage)
  stage.client().send('GET', '/', { id: 'A', ...tenant('a') })
  await until(() => stage.witness.lent.length === 1)
  const clients = ['B', 'C'].map((id) => stage.client().send('GET', '/', { id, ...tenant('a') }))
  await inLine(stage, 2)
  await stage.app.pools.remove('db')
  for (const client of clients) t.match(JSON.parse((await client.answer()).body), { code: 'FST_POOL_CLOSED' })
  t.same([bulkhead.keys, bulkhead.pending], [0, 0])
})

t.test('at random: no key ever has more than its share, and none is left in the end', async (t) => {
  const seed = Number(process.env.SEED ?? Date.now() % 1e6)
  t.comment(`SEED=${seed}`)
  let state = seed
  const random = (below: number) => {
    state = (state * 1103515245 + 12345) % 2 ** 31
    return Math.floor(state / 2 ** 31 * below)
  }
  const had = new Map<string, number>()
  let most = 0
  let broken = 0
  const stage = await Stage.set(t, {
    pool: { max: 5, acquireTimeout: 200, bulkhead: { key: tenantOf, max: 2 } },
    plugin: { bodyGrace: 5, abortGrace: 20 },
    routes: (app, stage) => {
      const work = async (request: FastifyRequest) => {
        say(request, 'work')
        if (request.id.endsWith('0')) request.lease('db').release()
        await stage.gate(request.id).opened
        if (request.id.endsWith('1')) throw new Error('odd')
        if (request.id.endsWith('2')) request.lease('db').destroy()
        return 'well'
      }
      app.get('/', work)
      app.post('/', work)
      app.get('/onSend', { config: { pools: { db: { release: 'onSend' } } } }, work)
      app.get('/manual', { config: { pools: { db: { acquire: 'manual' } } } }, async (request) => {
        await request.acquire('db', { timeout: 1 + random(60) })
        return work(request)
      })
    },
  })
  const count = (holder: unknown, by: number) => {
    const { id } = holder as { id: string }
    const key = tenantOf(stage.seen.get(id)!.request)
    if (key === undefined) return
    had.set(key, (had.get(key) ?? 0) + by)
    most = Math.max(most, had.get(key)!)
    if (had.get(key)! > 2) broken++
  }
  stage.pool.on('acquire', ({ holder }) => { count(holder, 1) })
  stage.pool.on('release', ({ holder }) => { count(holder, -1) })
  const open: Array<{ readonly id: string, readonly client: Client, readonly slow: boolean }> = []
  const tenants = ['a', 'a', 'a', 'b', 'c', undefined]
  for (let at = 0; at < 250; at++) {
    const id = `R${at}`
    const act = open.length === 0 ? 0 : random(4)
    if (act < 2 && open.length < 25) {
      const name = tenants[random(tenants.length)]
      const options = { id, ...(name !== undefined && tenant(name)) }
      const client = stage.client()
      const slow = random(3) === 0
      if (slow) client.send('POST', '/', { ...options, body: '{', length: 2 })
      else client.send('GET', ['/', '/onSend', '/manual'][random(3)]!, options)
      open.push({ id, client, slow })
      if (random(2) === 0) await stage.arrived(id)
    } else {
      const [one] = open.splice(random(open.length), 1)
      stage.gate(one!.id)
      if (act === 2) one!.client.leave()
      else {
        if (one!.slow) one!.client.write('}')
        stage.gate(one!.id).open()
      }
      if (random(2) === 0) await settle()
    }
  }
  for (const { id, client, slow } of open) {
    if (slow) client.write('}')
    stage.gate(id).open()
  }
  for (const id of stage.seen.keys()) stage.gate(id).open()
  await settled(t, stage)
  t.same({ broken, most }, { broken: 0, most: 2 })
  t.comment(`${stage.witness.lent.length} leases of ${stage.seen.size} requests`)
})

// --- By itself, with the time in the test's hands --------------------------------------------------------------------

/** A bulkhead before a pool of `max` connections, all of them there. */
async function setUp (t: Test, { max = 4, share = 1, acquireTimeout = 100, maxPending = 1000 } = {}) {
  const { pool, clock, connector } = fakePool({ max, acquireTimeout, maxPending }, { listen: [] })
  t.teardown(async () => {
    const closed = pool.close()
    await clock.advance(10_000)
    await closed
  })
  await warm(pool, max)
  const bulkhead = new Bulkhead(pool, { acquireTimeout, maxPending, bulkhead: { key: tenantOf, max: share } }, clock)
  let ids = 0
  const request = (key?: string) => ({ id: `R${ids++}`, headers: { tenant: key } } as unknown as FastifyRequest)
  const acquire = (key?: string, options: AcquireOptions = {}) => bulkhead.acquire(request(key), options)
  return { pool, clock, connector, bulkhead, request, acquire }
}

t.test('where there is room, a lease is had without a promise; where there is none, nothing is held', async (t) => {
  const { bulkhead, pool, request } = await setUp(t, { max: 2 })
  const lease = bulkhead.tryAcquire(request('a'), {})
  t.equal(lease?.ended, false)
  t.equal(bulkhead.tryAcquire(request('a'), {}), null)
  const other = bulkhead.tryAcquire(request('b'), {})
  t.equal(other?.ended, false)
  t.equal(bulkhead.tryAcquire(request('c'), {}), null, 'the pool has none')
  t.equal(bulkhead.tryAcquire(request(), {}), null)
  t.equal(bulkhead.keys, 2)
  t.equal(pool.stats().used, 2)
  lease?.release()
  other?.release()
  bulkhead.tryAcquire(request(), {})?.release()
  t.equal(bulkhead.keys, 0)
})

t.test('one deadline for both waits: what was waited for the share is not there for the pool', async (t) => {
  const { bulkhead, pool, clock, acquire } = await setUp(t, { max: 1 })
  const first = await acquire('a')
  const second = watch(acquire('a'))
  await clock.advance(60)
  // Somebody else stands in the pool's line before it.
  const job = watch(pool.acquire({ timeout: 1000 }))
  first.release()
  await clock.advance(39)
  t.equal(job.done, true)
  t.equal(second.done, false)
  t.same([bulkhead.pending, pool.stats().pending], [0, 1], 'it waits for the pool now')
  await clock.advance(1)
  t.match(second.error, { code: 'FST_POOL_ACQUIRE_TIMEOUT' })
  t.equal(bulkhead.keys, 0)
  job.value?.release()
})

t.test('all wait with one timer, which is gone with the last of them', async (t) => {
  const { bulkhead, clock, acquire } = await setUp(t)
  const keys = ['a', 'b', 'c']
  const leases = await Promise.all(keys.map((key) => acquire(key)))
  const before = clock.timers
  const waiting = []
  for (let at = 0; at < 300; at++) waiting.push(watch(acquire(keys[at % 3], { timeout: 300 - at % 7 * 10 })))
  t.equal(bulkhead.pending, 300)
  t.same(clock.timers, { set: before.set + 1, ref: before.ref + 1 })
  await clock.advance(239)
  t.equal(waiting.filter(({ done }) => done).length, 0)
  await clock.advance(1)
  t.equal(waiting.filter(({ done }) => done).length, Math.floor(300 / 7),
    'those of the shortest deadline, wherever they stand')
  await clock.advance(60)
  t.ok(waiting.every(({ error }) => error?.code === 'FST_POOL_ACQUIRE_TIMEOUT'))
  t.equal(bulkhead.pending, 0)
  t.equal(clock.timers.ref, 0)
  for (const lease of leases) lease.release()
  t.equal(bulkhead.keys, 0)
})

t.test('who aborts in line leaves it at once, from its middle, and nobody else does', async (t) => {
  const { bulkhead, clock, acquire } = await setUp(t)
  const first = await acquire('a')
  const controllers = ['B', 'C', 'D'].map(() => new AbortController())
  const waiting = controllers.map(({ signal }) => watch(acquire('a', { signal })))
  controllers[1]!.abort(new Error('enough'))
  await settle()
  t.same(waiting.map(({ done }) => done), [false, true, false])
  t.match(waiting[1]!.error, { code: 'FST_POOL_ABORTED', cause: { message: 'enough' } })
  t.equal(bulkhead.pending, 2)
  const served = []
  for (const at of [0, 2]) {
    (served.at(-1) ?? first).release()
    await settle()
    served.push(waiting[at]!.value!)
    t.equal(served.at(-1)!.ended, false)
    // Too late: it has its lease.
    controllers[at]!.abort()
  }
  t.match(await failure(acquire('a', { signal: AbortSignal.abort(new Error('before')) })),
    { code: 'FST_POOL_ABORTED', cause: { message: 'before' } })
  served.at(-1)!.release()
  t.same([bulkhead.keys, bulkhead.pending], [0, 0])
  await clock.advance(1000)
  t.equal(clock.timers.ref, 0)
})

t.test('who aborts in the moment of its turn gives it to the next one', async (t) => {
  const { bulkhead, acquire } = await setUp(t)
  const first = await acquire('a')
  const controller = new AbortController()
  const second = watch(acquire('a', { signal: controller.signal }))
  const third = watch(acquire('a'))
  first.release()
  controller.abort()
  await settle()
  t.match(second.error, { code: 'FST_POOL_ABORTED' })
  t.equal(third.value?.ended, false)
  third.value?.release()
  t.equal(bulkhead.keys, 0)
})

t.test('at most maxPending wait, whatever their keys are, and 0 is nobody', async (t) => {
  const { bulkhead, acquire, clock } = await setUp(t, { maxPending: 2 })
  const leases = [await acquire('a'), await acquire('b')]
  const waiting = [watch(acquire('a')), watch(acquire('b'))]
  const error = await failure(acquire('a'))
  t.match(error,
    { code: 'FST_POOL_QUEUE_FULL', statusCode: 503, message: /whole share of pool 'db' \(bulkhead\.max 1, used 1, pending 1\), and 2 wait/ })
  const other = await acquire('c')
  for (const lease of [...leases, other]) lease.release()
  await settle()
  for (const { value } of waiting) value?.release()
  await clock.advance(100)
  t.equal(bulkhead.keys, 0)

  const none = await setUp(t, { maxPending: 0 })
  const only = await none.acquire('a')
  t.match(await failure(none.acquire('a')), { code: 'FST_POOL_QUEUE_FULL' })
  only.release()
})

t.test('Retry-After is as long as the line would take, at the pace of late', async (t) => {
  const { acquire, clock } = await setUp(t, { acquireTimeout: 60_000 })
  for (let at = 0; at < 5; at++) {
    const lease = await acquire('a')
    const next = watch(acquire('a', { timeout: 5000 }))
    await clock.advance(4000)
    lease.release()
    await settle()
    next.value?.release()
  }
  let lease = await acquire('a')
  const next = watch(acquire('a'))
  await clock.advance(4000)
  lease.release()
  await settle()
  lease = next.value!
  const second = watch(acquire('a', { timeout: 10 }))
  await clock.advance(10)
  t.match(second.error?.headers, { 'retry-after': '8' })
  lease.release()
})

t.test('close() turns away who waits, and who comes later and would have to', async (t) => {
  const { bulkhead, pool, clock, acquire } = await setUp(t)
  const lease = await acquire('a')
  const waiting = [watch(acquire('a')), watch(acquire('a'))]
  bulkhead.close()
  const closed = pool.close()
  await settle()
  for (const { error } of waiting) t.match(error, { code: 'FST_POOL_CLOSED', statusCode: 503 })
  t.match(await failure(acquire('a')), { code: 'FST_POOL_CLOSED' })
  t.match(await failure(acquire('b')), { code: 'FST_POOL_CLOSED' })
  lease.release()
  t.same([bulkhead.keys, bulkhead.pending], [0, 0])
  await clock.advance(10_000)
  await closed
  t.same(clock.timers, { set: 0, ref: 0 })
})

t.test('long keys are kept as hashes, and all that differ are apart', async (t) => {
  const { bulkhead, acquire } = await setUp(t, { max: 10 })
  const long = 'x'.repeat(100_000)
  const keys = [
    `${long}a`, `${long}b`, '\ud800'.repeat(200), '\ud801'.repeat(200), bounded(`${long}a`), '',
    'x'.repeat(256), 'x'.repeat(257), 'ä'.repeat(128), 'ä'.repeat(129),
  ]
  for (const key of keys) t.ok(Buffer.byteLength(bounded(key)) <= 256)
  t.equal(bounded('x'.repeat(256)), 'x'.repeat(256))
  const leases = await Promise.all(keys.map((key) => acquire(key)))
  t.equal(bulkhead.keys, keys.length)
  for (const lease of leases) lease.release()
  t.equal(bulkhead.keys, 0)
})
