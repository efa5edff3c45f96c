import { createWriteStream, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import multipart from '@fastify/multipart'
import type { FastifyInstance, FastifyReply, FastifyRequest, FastifyServerOptions } from 'fastify'
import t from 'tap'
import { fastifyPool } from '../../index.js'
import type { PluginOptions, Policy } from '../../index.js'
import { answerOf, http2Client } from '../support/client.js'
import { FakeConnector } from '../support/fake-connector.js'
import { Stage, on, say } from '../support/stage.js'
import { event, until } from '../support/until.js'
import { Witness, type WitnessConnection } from '../support/witness.js'

// A handler that reads the body itself (an upload) may take as long as its client likes: no connection waits for that.

/** Longer than any test. */
const never = 600_000
const upload = '--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\nzzz\r\n--x--\r\n'
const headers = { 'content-type': 'multipart/form-data; boundary=x' }
const half = { headers, body: upload.slice(0, 70), length: upload.length }
const rest = upload.slice(70)
const missing = {
  code: 'FST_POOL_NOT_LEASED',
  message: "the handler of this request reads its body (an upload), and the connection of pool 'db' does not wait for that: " +
    "await request.acquire('db') when the body has been read",
}

async function readParts (request: FastifyRequest): Promise<number> {
  let size = 0
  for await (const part of request.parts()) {
    if (part.type !== 'file') continue
    for await (const chunk of part.file) size += (chunk as Buffer).length
  }
  return size
}

async function store (request: FastifyRequest): Promise<string> {
  const size = await readParts(request)
  await request.acquire('db')
  say(request, 'store')
  return `${size} bytes`
}

function routes (app: FastifyInstance): void {
  app.post('/', store)
  app.get('/', async (request) => { say(request, 'read'); return 'well' })
}

const policies: Array<Partial<Policy>> = [{}, { acquire: 'preHandler' }, { acquire: 'manual' }, { release: 'onSend' }]
for (const lease of policies) {
  t.test(`slow uploads keep no connection, and get one when their body is in: ${JSON.stringify(lease)}`, async (t) => {
    const stage =
      await Stage.set(t, { plugin: { bodyGrace: never, lease }, before: (app) => { app.register(multipart) }, routes })
    const slow = ['A', 'B', 'C'].map((id) => stage.client().send('POST', '/', { id, ...half }))
    await stage.arrived('C')
    const direct = await stage.pool.acquire({ holder: 'a job' })
    direct.release()
    for (const client of slow) client.write(rest)
    for (const client of slow) t.equal((await client.answer()).body, '3 bytes')
    await stage.settled(t)
    t.same(stage.witness.said.sort(), ['A:store#1', 'B:store#1', 'C:store#1'])
    t.same(stage.witness.destroyed, [])
  })
}

t.test('a request beside slow uploads is served', async (t) => {
  const stage =
    await Stage.set(t, { plugin: { bodyGrace: never }, before: (app) => { app.register(multipart) }, routes })
  const slow = ['A', 'B', 'C'].map((id) => stage.client().send('POST', '/', { id, ...half }))
  await stage.arrived('C')
  t.equal((await stage.client().get('/', { id: 'D' })).body, 'well')
  for (const client of slow) client.leave()
  await stage.settled(t)
  t.same(stage.witness.said, ['D:read#1'])
})

for (const lease of policies.slice(0, 2)) {
  t.test(`a handler that reads the body and uses request.db without asking fails the first time, with no load at all: ${JSON.stringify(lease)}`, async (t) => {
    const told: unknown[] = []
    const stage = await Stage.set(t, {
      plugin: { lease },
      before: (app) => { app.register(multipart) },
      routes: (app) => {
        app.post('/', async (request) => {
          for (const read of [false, true]) {
            if (read) await readParts(request)
            for (const use of [() => on(request), () => request.lease('db')]) {
              try {
                use()
              } catch (error) {
                told.push({ ...error as Error, message: (error as Error).message })
              }
            }
          }
          return 'well'
        })
      },
    })
    t.equal((await stage.client().send('POST', '/', { id: 'A', headers, body: upload }).answer()).body, 'well',
      'in one packet')
    t.equal((await stage.app.inject({ method: 'POST', url: '/', headers, payload: upload })).body, 'well',
      'under inject')
    t.match(told, Array.from({ length: 8 }, () => missing))
    await stage.settled(t)
  })
}

t.test('nor does it matter that the whole body has come before the handler begins', async (t) => {
  const stage = await Stage.set(t, {
    before: (app) => { app.register(multipart) },
    routes: (app) => {
      app.addHook('preValidation', async (request) => {
        await until(() => request.raw.complete || request.raw.readableLength > 0)
      })
      app.post('/', async (request) => { t.throws(() => on(request), missing); return await store(request) })
    },
  })
  t.equal((await stage.client().send('POST', '/', { id: 'A', headers, body: upload }).answer()).body, '3 bytes')
  await stage.settled(t)
})

t.test('over HTTP/2 too', async (t) => {
  const stage = await Stage.set(t, {
    server: { http2: true } as unknown as FastifyServerOptions,
    plugin: { bodyGrace: never },
    routes: (app) => {
      app.addContentTypeParser('application/json', (_request, _payload, done) => { done(null) })
      app.post('/', async (request) => {
        t.throws(() => on(request), missing)
        for await (const chunk of request.raw) t.ok(chunk)
        await request.acquire('db')
        say(request, 'store')
        return 'well'
      })
      app.get('/', async (request) => { say(request, 'read'); return 'well' })
    },
  })
  const client = await http2Client(t, stage.port)
  const stream = client.send('POST', '/', { id: 'A', open: true })
  stream.write('{"a"')
  await stage.arrived('A')
  t.equal((await answerOf(client.send('GET', '/', { id: 'B' }))).body, 'well')
  stream.end(':1}')
  t.equal((await answerOf(stream)).body, 'well')
  await stage.settled(t)
})

t.test('a handler that passes its body on as a stream keeps no connection', async (t) => {
  const stage = await Stage.set(t, {
    plugin: { bodyGrace: never },
    routes: (app) => {
      app.addContentTypeParser('application/json', (_request, payload, done) => { done(null, payload) })
      app.post('/', async (request, reply) => reply.send(request.body))
      app.get('/', async (request) => { say(request, 'read'); return 'well' })
    },
  })
  const slow = stage.client().send('POST', '/', { id: 'A', body: '{', length: 2 })
  await stage.arrived('A')
  t.equal((await stage.client().get('/', { id: 'B' })).body, 'well')
  slow.write('}')
  t.equal((await slow.answer()).body, '{}')
  await stage.settled(t)
})

t.test('a connection that a hook has used stays: the hook may have kept it, or set something on it', async (t) => {
  const stage = await Stage.set(t, {
    before: (app) => { app.register(multipart) },
    routes: (app) => {
      app.addHook('onRequest', async (request) => { say(request, 'tenant') })
      app.post('/', async (request) => {
        say(request, 'begin')
        await readParts(request)
        say(request, 'store')
        return 'well'
      })
    },
  })
  const client = stage.client().send('POST', '/', { id: 'A', ...half })
  await stage.hears('A:begin#1')
  t.equal(stage.pool.stats().used, 1)
  client.write(rest)
  t.equal((await client.answer()).body, 'well')
  await stage.settled(t)
  t.same(stage.witness.lent, ['A'])
})

for (const when of ['before', 'after'] as const) {
  t.test(`a hook reads the whole body (attachFieldsToBody), registered ${when} the pool: the handler has its connection`, async (t) => {
    const attach = (app: FastifyInstance) => { app.register(multipart, { attachFieldsToBody: 'keyValues' }) }
    const stage = await Stage.set(t, {
      plugin: { bodyGrace: 50 },
      before: (app) => { if (when === 'before') attach(app) },
      routes: (app) => {
        if (when === 'after') attach(app)
        app.register(async (child) => {
          child.post('/', async (request) => { say(request, 'store'); return Object.keys(request.body as object) })
          child.get('/', async (request) => { say(request, 'read'); return 'well' })
        })
      },
    })
    t.equal((await stage.client().send('POST', '/', { id: 'A', headers, body: upload }).answer()).body, '["f"]')
    // A slow one is parked, and gets its connection again.
    const slow = stage.client().send('POST', '/', { id: 'B', ...half })
    await event<'release'>(stage.pool, 'release', { where: ({ holder }) => (holder as { id: string }).id === 'B' })
    t.equal((await stage.client().get('/', { id: 'C' })).body, 'well')
    slow.write(rest)
    t.equal((await slow.answer()).body, '["f"]')
    await stage.settled(t)
  })
}

t.test('a client can not take the connection from a handler that reads no body', async (t) => {
  const stage = await Stage.set(t, {
    before: (app) => { app.register(multipart) },
    routes: (app) => {
      for (const url of ['/', '/late']) {
        app.route({
          method: ['GET', 'POST', 'DELETE'],
          url,
          config: { pools: { db: { acquire: url === '/' ? 'onRequest' : 'preHandler' } } },
          handler: async (request) => { say(request, 'read'); return 'well' },
        })
      }
    },
  })
  for (const url of ['/', '/late']) {
    // Fastify reads no body of a GET; the others' are JSON, none at all, or empty.
    t.equal((await stage.client().send('GET', url, { headers, body: upload }).answer()).body, 'well')
    t.equal((await stage.client().send('HEAD', url, { headers, body: upload }).answer()).status, 200)
    t.equal((await stage.client().send('GET', url, { headers: { 'transfer-encoding': 'chunked' } }).answer()).body,
      'well')
    for (const method of ['POST', 'DELETE']) {
      t.equal((await stage.client().send(method, url, { body: 'null' }).answer()).body, 'well')
      t.equal((await stage.client().send(method, url).answer()).body, 'well')
      t.equal((await stage.client().send(method, url, { headers: { 'content-length': '0' } }).answer()).body, 'well')
    }
  }
  await stage.settled(t)
})

t.test('a client that leaves in the middle of its upload costs no connection', async (t) => {
  const stage = await Stage.set(t, { before: (app) => { app.register(multipart) }, routes })
  const client = stage.client().send('POST', '/', { id: 'A', ...half })
  await stage.arrived('A')
  await until(() => stage.pool.stats().used === 0)
  client.leave()
  await stage.over('A')
  await stage.settled(t)
  t.same([stage.witness.said, stage.witness.destroyed], [[], []])
})

t.test('of several pools, those of an inner scope included, all that nobody has read go back', async (t) => {
  const inner = new Witness()
  const stage = await Stage.set(t, {
    pools: ['db', 'cache'],
    before: (app) => { app.register(multipart) },
    routes: (app) => {
      app.register(async (child) => {
        await child.register(fastifyPool,
          { name: 'inner', connector: inner, max: 1, log: false, lease: { acquire: 'preHandler' } } as PluginOptions)
        child.addHook('onRequest', async (request) => { say(request, 'who', 'cache') })
        child.post('/', async (request) => {
          for (const name of ['db', 'inner']) {
            t.throws(() => on(request, name),
              { code: 'FST_POOL_NOT_LEASED', message: new RegExp(`upload.*pool '${name}'`) })
          }
          await readParts(request)
          say(request, 'store', 'cache')
          const lease = await request.acquire('inner')
          t.equal(lease.connection, on(request, 'inner'))
          return 'well'
        })
      })
    },
  })
  const client = stage.client().send('POST', '/', { id: 'A', ...half })
  await stage.arrived('A')
  await until(() => stage.poolOf('db').stats().used === 0 && stage.poolOf('db').stats().released === 1)
  t.equal(stage.poolOf('cache').stats().used, 1)
  client.write(rest)
  t.equal((await client.answer()).body, 'well')
  await stage.settled(t)
})

for (const fail of [false, true]) {
  t.test(`the transaction of an upload's route begins when the handler takes its connection, and ${fail ? 'is rolled back' : 'is committed'}`, async (t) => {
    const { default: Fastify } = await import('fastify')
    const connector = new FakeConnector()
    const app = Fastify() as unknown as FastifyInstance
    t.teardown(() => app.close())
    await app.register(multipart)
    await app.register(fastifyPool, { connector, max: 1, log: false, lease: { transaction: true } } as PluginOptions)
    app.post('/', async (request: FastifyRequest, reply: FastifyReply) => {
      await readParts(request)
      const lease = await request.acquire('db')
      connector.write(lease.connection as never, 'row')
      return reply.code(fail ? 400 : 200).send('well')
    })
    t.equal((await app.inject({ method: 'POST', url: '/', headers, payload: upload })).body, 'well')
    await until(() => app.pools.get('db').stats().used === 0)
    t.same(connector.asked, ['begin #1', 'rollback #1', 'begin #1', fail ? 'rollback #1' : 'commit #1'],
      'the first is the one that nobody has used')
    t.same([connector.rows, connector.violations], [fail ? [] : ['row'], []])
  })
}

t.test('the recipe of docs/realtime.md: the file is stored, and then its row, on a connection that no upload has kept waiting', async (t) => {
  const folder = t.testdir()
  const stage = await Stage.set(t, {
    before: (app) => { app.register(multipart) },
    routes: (app) => {
      app.post('/files', { config: { pools: { db: { acquire: 'manual' } } } }, async (request) => {
        const part = (await request.file())!
        await pipeline(part.file, createWriteStream(join(folder, request.id)))
        const { connection } = await request.acquire('db')
        const db = connection as unknown as WitnessConnection
        db.say(request.id, `insert ${part.filename}`)
        return { id: request.id }
      })
      app.get('/', async (request) => { say(request, 'read'); return 'well' })
    },
  })
  const slow = ['A', 'B'].map((id) => stage.client().send('POST', '/files', { id, ...half }))
  await stage.arrived('B')
  t.equal((await stage.client().get('/', { id: 'C' })).body, 'well')
  for (const client of slow) client.write(rest)
  for (const [at, id] of ['A', 'B'].entries()) {
    t.equal((await slow[at]!.answer()).body, `{"id":"${id}"}`)
    t.equal(readFileSync(join(folder, id), 'utf8'), 'zzz')
  }
  await stage.settled(t)
  t.same(stage.witness.said.sort(), ['A:insert a#1', 'B:insert a#1', 'C:read#1'])
})
