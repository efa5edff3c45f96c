import t from 'tap'
import { fastifyPool } from '../../index.js'
import type { PluginOptions } from '../../index.js'
import { Stage, gate, on, say } from '../support/stage.js'
import { event, until } from '../support/until.js'
import { Witness } from '../support/witness.js'

// When a request takes its connections, which, and when it gives them back.

const notLeased = { code: 'FST_POOL_NOT_LEASED' }
const released = { code: 'FST_POOL_LEASE_RELEASED' }

t.test("acquire 'preHandler': nothing is leased before, and a request that is refused before costs no connection", async (t) => {
  const stage = await Stage.set(t, {
    plugin: { lease: { acquire: 'preHandler' } },
    routes: (app) => {
      for (const hook of ['onRequest', 'preValidation'] as const) {
        app.addHook(hook,
          async (request) => { t.throws(() => on(request), notLeased, hook) })
      }
      app.addHook('preHandler', async (request) => { say(request, 'check') })
      app.post('/', { schema: { body: { type: 'object', required: ['a'] } } },
        async (request) => { say(request, 'write'); return 'well' })
    },
  })
  const client = stage.client()
  t.equal((await client.send('POST', '/', { id: 'A', body: '{}' }).answer()).status, 400)
  t.same(stage.witness.lent, [])
  t.equal((await client.send('POST', '/', { id: 'B', body: '{"a":1}' }).answer()).body, 'well')
  await stage.settled(t)
  t.same(stage.witness.said, ['B:check#1', 'B:write#1'])
})

t.test("acquire 'preHandler' holds nothing while a body trickles in", async (t) => {
  const stage = await Stage.set(t, {
    routes: (app) => {
      app.post('/', { config: { pools: { db: { acquire: 'preHandler' } } } },
        async (request) => { say(request, 'write'); return 'well' })
    },
  })
  const client = stage.client().send('POST', '/', { id: 'A', body: '{', length: 2 })
  await stage.arrived('A')
  t.equal(stage.pool.stats().used, 0)
  client.write('}')
  t.equal((await client.answer()).body, 'well')
  await stage.settled(t)
})

t.test("acquire 'preHandler', and an earlier hook that takes the connection by hand: there is one lease", async (t) => {
  const stage = await Stage.set(t, {
    plugin: { lease: { acquire: 'preHandler' } },
    pool: { min: 2, max: 2 },
    routes: (app) => {
      app.get('/', {
        onRequest: async (request) => {
          await request.acquire('db')
          say(request, 'who')
        },
      }, async (request) => { say(request, 'read'); return 'well' })
    },
  })
  const client = stage.client()
  for (const id of ['A', 'B']) t.equal((await client.get('/', { id })).body, 'well')
  await stage.settled(t)
  t.same(stage.witness.lent, ['A', 'B'])
})

t.test("acquire 'manual': nothing is leased until the handler asks, and it is given back without being asked", async (t) => {
  const stage = await Stage.set(t, {
    plugin: { lease: { acquire: 'manual' } },
    routes: (app) => {
      app.get('/', async (request) => {
        t.throws(() => on(request), notLeased)
        t.throws(() => request.lease('db'), notLeased)
        const lease = await request.acquire('db')
        t.equal(lease.connection, on(request))
        t.equal(request.lease('db'), lease)
        say(request, 'read')
        return 'well'
      })
      app.get('/none', async () => 'none')
    },
  })
  const client = stage.client()
  t.equal((await client.get('/none', { id: 'A' })).body, 'none')
  t.equal((await client.get('/', { id: 'B' })).body, 'well')
  t.equal((await client.get('/', { id: 'C' })).body, 'well')
  await stage.settled(t)
  t.same(stage.witness.lent, ['B', 'C'])
})

t.test("acquire 'manual' with release 'onSend' gives the connection back before a slow reader is done", async (t) => {
  const stage = await Stage.set(t, {
    routes: (app) => {
      app.get('/', { config: { pools: { db: { acquire: 'manual', release: 'onSend' } } } }, async (request) => {
        await request.acquire('db')
        say(request, 'read')
        return Buffer.alloc(30e6)
      })
    },
  })
  const slow = stage.client({ reading: false }).send('GET', '/', { id: 'A' })
  await event(stage.pool, 'release')
  const { reply } = await stage.arrived('A')
  t.equal(reply.raw.writableFinished, false)
  slow.leave()
  await stage.over('A')
  await stage.settled(t)
})

t.test('who asks at the same time gets the same lease; after an early release there is a new one', async (t) => {
  const stage = await Stage.set(t, {
    routes: (app) => {
      app.get('/', { config: { pools: false } }, async (request) => {
        const [one, two] = await Promise.all([request.acquire('db'), request.acquire('db')])
        t.equal(one, two)
        t.equal(await request.acquire('db'), one, 'while it is out it is the same')
        say(request, 'one')
        one.release()
        one.release()
        t.throws(() => on(request), released)
        t.throws(() => one.connection, released)
        t.equal(request.lease('db').ended, true)
        const three = await request.acquire('db')
        t.not(three, one)
        t.equal(three.ended, false)
        t.throws(() => one.connection, released, 'an ended lease stays ended')
        one.release()
        t.equal(three.ended, false, 'and ends nobody else\'s')
        say(request, 'two')
        return 'well'
      })
    },
  })
  t.equal((await stage.client().get('/', { id: 'A' })).body, 'well')
  await stage.settled(t)
  t.same(stage.witness.lent, ['A', 'A'])
})

t.test('a connection that the handler gives back early is free for others while the handler goes on, and request.db never is theirs', async (t) => {
  const stage = await Stage.set(t, {
    routes: (app, stage) => {
      app.get('/', async (request) => {
        say(request, 'begin')
        request.lease('db').release()
        await stage.gate('other').opened
        t.throws(() => on(request), released)
        return 'well'
      })
      app.get('/other', async (request) => {
        say(request, 'read')
        stage.gate('other').open()
        await stage.gate('A').opened
        say(request, 'more')
        return 'other'
      })
    },
  })
  const one = stage.client().send('GET', '/', { id: 'A' })
  await stage.hears('A:begin#1')
  const two = stage.client().send('GET', '/other', { id: 'B' })
  t.equal((await one.answer()).body, 'well')
  t.same(stage.pool.holders().map(({ holder }) => (holder as { id: string }).id), ['B'],
    'the end of A took nothing from B')
  stage.gate('A').open()
  t.equal((await two.answer()).body, 'other')
  await stage.settled(t)
  t.same(stage.witness.said, ['A:begin#1', 'B:read#1', 'B:more#1'])
})

t.test('a lease that the handler destroys is over: the next request gets a new connection', async (t) => {
  const stage = await Stage.set(t, {
    routes: (app) => {
      app.get('/', async (request) => {
        say(request, 'read')
        request.lease('db').destroy(new Error('odd'))
        t.throws(() => on(request), released)
        return 'well'
      })
    },
  })
  const client = stage.client()
  for (const id of ['A', 'B']) t.equal((await client.get('/', { id })).body, 'well')
  await stage.settled(t)
  t.same(stage.witness.said, ['A:read#1', 'B:read#2'])
  t.same(stage.witness.destroyed, ['error', 'error'])
})

t.test('request.acquire() takes a signal and a timeout of its own', async (t) => {
  const stage = await Stage.set(t, {
    plugin: { lease: false },
    routes: (app) => {
      app.get('/', async (request) => {
        await t.rejects(request.acquire('db', { signal: AbortSignal.abort() }), { code: 'FST_POOL_ABORTED' })
        await t.rejects(request.acquire('db', { timeout: 20 }), { code: 'FST_POOL_ACQUIRE_TIMEOUT' })
        lease.release()
        await request.acquire('db')
        say(request, 'read')
        return 'well'
      })
    },
  })
  const lease = await stage.pool.acquire({ holder: 'a job' })
  t.equal((await stage.client().get('/', { id: 'A' })).body, 'well')
  await stage.settled(t)
})

t.test('request.acquire() and request.lease() know which pools there are', async (t) => {
  const stage = await Stage.set(t, {
    routes: (app) => {
      app.get('/', { config: { pools: false } }, async (request) => {
        await t.rejects(request.acquire('nope'), { code: 'FST_POOL_NOT_FOUND' })
        t.throws(() => request.lease('nope'), { code: 'FST_POOL_NOT_FOUND' })
        t.throws(() => request.lease('db'), notLeased)
        t.throws(() => on(request), { ...notLeased, message: /GET \/.*config\.pools.*request\.acquire\('db'\)/ })
        return 'well'
      })
    },
  })
  t.equal((await stage.client().get('/')).body, 'well')
  await stage.settled(t)
})

t.test('a hook that comes before the plugin has no connection yet, and is told so', async (t) => {
  let told = 0
  const stage = await Stage.set(t, {
    before: (app) => {
      app.addHook('onRequest', async (request) => {
        t.throws(() => on(request), notLeased)
        await t.rejects(request.acquire('db'), notLeased)
        told++
      })
    },
    routes: (app) => { app.get('/', async () => 'well') },
  })
  t.equal((await stage.client().get('/')).body, 'well')
  t.equal(told, 1)
  await stage.settled(t)
})

t.test('a 404 leases nothing by itself; its handler can take a connection by hand, and it goes back', async (t) => {
  const stage = await Stage.set(t, {
    before: (app) => {
      app.setNotFoundHandler(async (request, reply) => {
        t.throws(() => on(request), notLeased)
        await request.acquire('db')
        say(request, 'note')
        return reply.code(404).send('not here')
      })
    },
    routes: () => {},
  })
  const client = stage.client()
  for (const id of ['A', 'B']) t.equal((await client.get('/nowhere', { id })).body, 'not here')
  await stage.settled(t)
  t.same(stage.witness.said, ['A:note#1', 'B:note#1'])
})

t.test('config.pools names exactly what a route leases', async (t) => {
  const stage = await Stage.set(t, {
    pools: ['db', 'cache'],
    routes: (app) => {
      app.get('/all', async () => 'well')
      app.get('/none', { config: { pools: false } }, async (request) => {
        t.throws(() => on(request, 'db'), notLeased)
        t.throws(() => on(request, 'cache'), notLeased)
        return 'well'
      })
      app.get('/empty', { config: { pools: [] } }, async () => 'well')
      app.get('/list', { config: { pools: ['cache'] } }, async (request) => {
        t.throws(() => on(request, 'db'), notLeased)
        say(request, 'read', 'cache')
        return 'well'
      })
      app.get('/object', { config: { pools: { db: { release: 'onSend' } } } }, async (request) => {
        t.throws(() => on(request, 'cache'), notLeased)
        say(request, 'read')
        return 'well'
      })
      app.get('/true', { config: { pools: { cache: true } } },
        async (request) => { say(request, 'read', 'cache'); return 'well' })
    },
  })
  const client = stage.client()
  for (const path of ['/all', '/none', '/empty', '/list', '/object',
    '/true']) t.equal((await client.get(path, { id: path })).body, 'well', path)
  await stage.settled(t)
  t.same(stage.witnesses.get('db')!.lent, ['/all', '/object'])
  t.same(stage.witnesses.get('cache')!.lent, ['/all', '/list', '/true'])
})

t.test('lease false for the plugin: only routes that name a pool lease it', async (t) => {
  const stage = await Stage.set(t, {
    plugin: { lease: false },
    routes: (app) => {
      app.get('/', async (request) => { t.throws(() => on(request), notLeased); return 'well' })
      app.get('/named', { config: { pools: ['db'] } }, async (request) => { say(request, 'read'); return 'well' })
      app.get('/hand', async (request) => { await request.acquire('db'); say(request, 'read'); return 'well' })
    },
  })
  const client = stage.client()
  for (const path of ['/', '/named', '/hand']) t.equal((await client.get(path, { id: path })).body, 'well', path)
  await stage.settled(t)
  t.same(stage.witness.lent, ['/named', '/hand'])
})

t.test('several pools are taken in the order in which they were registered, whatever the route says', async (t) => {
  const stage = await Stage.set(t, {
    pools: ['db', 'cache', 'archive'],
    routes: (app) => { app.get('/', { config: { pools: ['archive', 'cache', 'db'] } }, async () => 'well') },
  })
  const order: string[] = []
  stage.app.pools.on('acquire', ({ pool }) => { order.push(pool) })
  t.equal((await stage.client().get('/', { id: 'A' })).body, 'well')
  // Where it has to wait for one, too.
  const lease = await stage.poolOf('cache').acquire({ holder: 'a job' })
  order.length = 0
  const client = stage.client().send('GET', '/', { id: 'B' })
  await until(() => stage.poolOf('cache').stats().pending === 1)
  t.same(order, ['db'])
  t.equal(stage.poolOf('archive').stats().used, 0)
  lease.release()
  t.equal((await client.answer()).body, 'well')
  t.same(order, ['db', 'cache', 'archive'])
  await stage.settled(t)
})

t.test('when one of several pools can not give a connection, those of the others go back at once, and the answer is 503 with Retry-After', async (t) => {
  const stage = await Stage.set(t, {
    pools: ['db', 'cache', 'archive'],
    pool: { acquireTimeout: 50 },
    routes: (app, stage) => {
      app.addHook('onError', async () => {
        t.same(['db', 'archive'].map((name) => stage.poolOf(name).stats().used), [0, 0], 'before the answer is made')
        stage.gate('failed').open()
      })
      app.setErrorHandler(async (error, request, reply) => {
        t.throws(() => on(request), released)
        return reply.send(error)
      })
      app.get('/', async () => 'well')
    },
  })
  const lease = await stage.poolOf('cache').acquire({ holder: 'a job' })
  const answer = await stage.client().get('/', { id: 'A' })
  t.equal(answer.status, 503)
  t.match(answer.headers['retry-after'], /^([1-9]|[12]\d|30)$/)
  await stage.passed('failed')
  lease.release()
  await stage.settled(t)
  t.same(stage.witnesses.get('archive')!.lent, [])
})

t.test('a client that leaves while its request has one connection and waits for the next gives the first back', async (t) => {
  const stage = await Stage.set(t, { pools: ['db', 'cache'], routes: (app) => { app.get('/', async () => 'well') } })
  const lease = await stage.poolOf('cache').acquire({ holder: 'a job' })
  const client = stage.client().send('GET', '/', { id: 'A' })
  await until(() => stage.poolOf('cache').stats().pending === 1)
  t.equal(stage.poolOf('db').stats().used, 1)
  client.leave()
  await until(() => stage.poolOf('db').stats().used === 0 && stage.poolOf('cache').stats().pending === 0)
  lease.release()
  await stage.settled(t)
})

t.test('an aborted request keeps only the connection that its handler has touched', async (t) => {
  const stage = await Stage.set(t, {
    pools: ['db', 'cache'],
    routes: (app, stage) => {
      app.get('/', async (request) => {
        say(request, 'begin')
        await stage.gate('A').opened
        say(request, 'end')
        return 'well'
      })
    },
  })
  const client = stage.client().send('GET', '/', { id: 'A' })
  await stage.hears('A:begin#1')
  client.leave()
  await stage.over('A')
  await until(() => stage.poolOf('cache').stats().used === 0)
  t.equal(stage.poolOf('db').stats().used, 1)
  stage.gate('A').open()
  await stage.settled(t)
  t.same(stage.witness.said, ['A:begin#1', 'A:end#1'])
})

t.test('a scope inside another, with a pool of its own: its requests lease both, and give both back, whichever way they end', async (t) => {
  const inner = new Witness()
  const held = gate()
  const stage = await Stage.set(t, {
    plugin: { abortGrace: 50 },
    routes: (app) => {
      app.register(async (child) => {
        await child.register(fastifyPool, { name: 'cache', connector: inner, max: 1, log: false } as PluginOptions)
        inner.watch(child.pools.get('cache'))
        child.get('/child', async (request) => {
          say(request, 'read')
          on(request, 'cache').say(request.id, 'read')
          if (request.id === 'B') await held.opened
          return 'well'
        })
      })
      app.get('/', async (request) => {
        t.throws(() => request.lease('cache'), { code: 'FST_POOL_NOT_FOUND' })
        return 'well'
      })
    },
  })
  const client = stage.client()
  t.equal((await client.get('/child', { id: 'A' })).body, 'well')
  t.equal((await client.get('/', { id: 'X' })).body, 'well')
  client.send('GET', '/child', { id: 'B' })
  await until(() => inner.said.includes('B:read#1'))
  client.leave()
  t.equal((await stage.client().get('/child', { id: 'C' })).body, 'well')
  held.open()
  await stage.settled(t)
  await until(() => inner.ended === 3)
  t.same(inner.lent, ['A', 'B', 'C'])
  t.same(inner.violations, [])
  t.same([...inner.destroyed, ...stage.witness.destroyed], ['aborted', 'aborted'])
})
