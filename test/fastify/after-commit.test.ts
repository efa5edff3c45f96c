// `request.afterCommit` and `request.afterRollback`.
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import { fastifyPool } from '../../index.js'
import { settle } from '../support/clock.js'
import { FakeConnector } from '../support/fake-connector.js'
import { until } from '../support/until.js'

interface Line { readonly level: number, readonly msg: string, readonly reqId?: string, readonly err?: object }

async function serve (t: Test, routes: (app: FastifyInstance, ran: string[]) => void) {
  const connector = new FakeConnector()
  const lines: Line[] = []
  const ran: string[] = []
  const stream = { write: (line: string) => { lines.push(JSON.parse(line) as Line) } }
  const app = Fastify({ logger: { level: 'error', stream } }) as unknown as FastifyInstance
  t.teardown(() => app.close())
  await app.register(fastifyPool, { connector, max: 1 })
  app.register(async (app) => { routes(app, ran) })
  await app.ready()
  return { app, connector, lines, ran }
}

const transaction = { config: { pools: { db: { transaction: true } } } } as const

t.test('of a route\'s transaction: behind its commit, or behind its rollback', async (t) => {
  const { app, ran } = await serve(t, (app, ran) => {
    app.get<{ Querystring: { fail?: string } }>('/', transaction, async (request) => {
      request.afterCommit('db', () => { ran.push('stored') })
      request.afterRollback('db', () => { ran.push('undone') })
      if (request.query.fail !== undefined) throw new Error('no')
      return 'ok'
    })
  })
  t.equal((await app.inject('/')).statusCode, 200)
  await until(() => ran.length > 0)
  t.equal((await app.inject('/?fail')).statusCode, 500)
  await until(() => ran.length > 1)
  await settle()
  t.same(ran, ['stored', 'undone'])
})

t.test('no reply waits for it, app.close() does, and what it throws is in the request\'s log', async (t) => {
  let end = () => {}
  const { app, ran, lines } = await serve(t, (app, ran) => {
    app.get('/', transaction, async (request) => {
      request.afterCommit('db', async () => {
        await new Promise<void>((resolve) => { end = resolve })
        ran.push('sent')
        throw new Error('bounced')
      })
      return 'ok'
    })
  })
  t.equal((await app.inject('/')).body, 'ok', 'the reply is here')
  await settle()
  t.same(ran, [])
  const closing = app.close().then(() => { ran.push('closed') })
  await settle()
  end()
  await closing
  t.same(ran, ['sent', 'closed'])
  t.match(lines, [{ level: 50, msg: 'afterCommit failed', pool: 'db', reqId: 'req-1', err: { message: 'bounced' } }])
})

t.test('of request.transaction, also within another one; where none is open, at once', async (t) => {
  const { app, ran } = await serve(t, (app, ran) => {
    app.get('/', async (request) => {
      await request.transaction('db', async () => {
        request.afterCommit('db', () => { ran.push('outer') })
        await request.transaction('db', async () => {
          request.afterCommit('db', () => { ran.push('lost') })
          request.afterRollback('db', () => { ran.push('undone') })
          throw new Error('inner')
        }).catch(() => {})
        await settle()
        ran.push('still open')
      })
      await settle()
      request.afterCommit('db', () => { ran.push('alone') })
      request.afterRollback('db', () => { ran.push('never') })
      return 'ok'
    })
  })
  await app.inject('/')
  await until(() => ran.length > 3)
  await settle()
  t.same(ran, ['undone', 'still open', 'outer', 'alone'])
})

t.test('a pool that the route does not lease, and one that there is not, are refused by name', async (t) => {
  const codes: unknown[] = []
  const { app } = await serve(t, (app) => {
    app.get('/', { config: { pools: false } }, async (request) => {
      for (const name of ['db', 'other']) {
        try {
          request.afterCommit(name, () => {})
        } catch (error) {
          codes.push((error as { code: string }).code)
        }
      }
      return 'ok'
    })
  })
  await app.inject('/')
  t.same(codes, ['FST_POOL_NOT_LEASED', 'FST_POOL_NOT_FOUND'])
})

t.test('what is no function is refused at once', async (t) => {
  const { app } = await serve(t, (app) => {
    app.get('/', async (request) => { request.afterCommit('db', undefined as never) })
  })
  const { statusCode, body } = await app.inject('/')
  t.equal(statusCode, 500)
  t.match(body, /option fn is missing: expected a function/)
})
