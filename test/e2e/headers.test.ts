import Fastify from 'fastify'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { createConnection, type Connection, type RowDataPacket } from 'mysql2/promise'
import type { AddressInfo } from 'node:net'
import pg from 'pg'
import t, { type Test } from 'tap'
import fastifyPool, { type PoolOptions } from '../../index.js'
import { Client } from '../support/client.js'
import { startMariadb, startPostgres } from '../support/services.js'
import { until } from '../support/until.js'

// What a request writes in a pool-wide transaction is counted at the server, by a connection that is not the pool's.

interface Subject {
  readonly url: string
  /** Writes a row with a connection of the pool. */
  write (connection: unknown, id: string): Promise<unknown>
  /** Of the connection that is not the pool's. */
  ask (sql: string): Promise<number>
  end (): Promise<unknown>
}

const subjects: Array<[backend: 'postgresql' | 'mysql', start: () => Promise<Subject>]> = [
  ['postgresql', async () => {
    const { url } = await startPostgres(t)
    const client = new pg.Client(url)
    await client.connect()
    return {
      url,
      write: (connection, id) => (connection as pg.Client).query('insert into headers values ($1)', [id]),
      ask: async (sql) => Number((await client.query<{ count: string }>(sql)).rows[0]?.count),
      end: () => client.end(),
    }
  }],
  ['mysql', async () => {
    const { url } = await startMariadb(t)
    const client = await createConnection(url)
    return {
      url,
      write: (connection, id) => (connection as Connection).query('insert into headers values (?)', [id]),
      ask: async (sql) => Number((await client.query<Array<RowDataPacket & { count: number }>>(sql))[0][0]?.count),
      end: () => client.end(),
    }
  }],
]

// Whatever a client may send to look like an upgrade or a preflight.
const disguises: Record<string, Record<string, string>> = {
  'no header of the kind': {},
  'Upgrade: websocket alone': { upgrade: 'websocket' },
  'Upgrade: websocket, Connection: upgrade': { upgrade: 'websocket', connection: 'upgrade' },
  'a whole handshake': {
    connection: 'Upgrade',
    upgrade: 'websocket',
    'sec-websocket-version': '13',
    'sec-websocket-key': 'AAAAAAAAAAAAAAAAAAAAAA==',
  },
  'Upgrade: h2c': { upgrade: 'h2c', connection: 'Upgrade, HTTP2-Settings', 'http2-settings': 'AAMAAABkAAQAAP__' },
  'a preflight': { origin: 'http://a', 'access-control-request-method': 'POST' },
}

async function serve (t: Test, backend: string, { url, write, ask }: Subject) {
  const app = Fastify() as unknown as FastifyInstance
  t.teardown(() => app.close())
  const pool = { backend, url, max: 1, lease: { transaction: true } } as PoolOptions
  await app.register(fastifyPool, { ...pool, log: false })
  /** What everybody else sees of the row when it is written, and its request goes on. */
  const seenByOthers: number[] = []
  const work = async (connection: unknown, request: FastifyRequest) => {
    const id = String(request.headers['x-id'])
    await write(connection, id)
    seenByOthers.push(await ask(`select count(*) as count from headers where id = '${id}'`))
    if (request.headers['x-fail'] !== undefined) throw new Error('refused')
    return 'well'
  }
  const byHand = async (request: FastifyRequest) => await work((await request.acquire('db')).connection, request)
  const stats = () => app.pools.get('db').stats()
  app.get('/acquire', byHand)
  app.get('/db', (request) => work(request.db, request))
  app.options('/acquire', byHand)
  await app.listen({ port: 0, host: '127.0.0.1' })
  const { port } = app.server.address() as AddressInfo
  let last = 0
  /** Sends one request, and counts what is stored of it when its connection is back. */
  const told = async (method: string, path: string, headers: Record<string, string>) => {
    const id = `${path.slice(1)}-${++last}`
    seenByOthers.length = 0
    const { status } = await new Client(t, port).send(method, path, { id, headers }).answer()
    await until(() => stats().used + stats().closing === 0, { what: 'the connection is back' })
    const stored = await ask(`select count(*) as count from headers where id = '${id}'`)
    return { status, seenByOthers: seenByOthers.slice(), stored }
  }
  return { told, stats }
}

for (const [backend, start] of subjects) {
  t.test(`${backend}: no header and no method takes a write out of the pool-wide transaction`, async (t) => {
    const subject = await start()
    t.teardown(() => subject.end())
    await subject.ask('create table headers (id varchar(40))')
    t.teardown(() => subject.ask('drop table headers'))
    const { told, stats } = await serve(t, backend, subject)
    for (const [name, headers] of Object.entries(disguises)) {
      for (const [method, path] of [
        ['GET', '/acquire'], ['HEAD', '/acquire'], ['OPTIONS', '/acquire'], ['GET', '/db'], ['HEAD', '/db'],
      ] as const) {
        const what = `${method} ${path}, ${name}`
        const failed = await told(method, path, { ...headers, 'x-fail': '1' })
        t.same(failed, { status: 500, seenByOthers: [0], stored: 0 }, `${what}: rolled back`)
        t.same(await told(method, path, headers), { status: 200, seenByOthers: [0], stored: 1 }, `${what}: committed`)
      }
    }
    t.equal(stats().created, 1, 'on one connection')
  })
}
