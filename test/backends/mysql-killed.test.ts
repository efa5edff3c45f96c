import * as mysql2 from 'mysql2'
import type { Connection, RowDataPacket } from 'mysql2/promise'
import { createConnection } from 'mysql2/promise'
import t from 'tap'
import type { Test } from 'tap'
import { mysql } from '../../lib/backends/mysql/connector.js'
import { Pool } from '../../lib/pool/pool.js'
import type { EngineOptions } from '../../types/options.js'
import { startProxy } from '../support/proxy.js'
import { needsOwn, startMariadb, type Server } from '../support/services.js'
import { until } from '../support/until.js'

const server = await startMariadb(t)

async function adminOf (t: Pick<Test, 'teardown'>, { url } = server): Promise<Connection> {
  const admin = await createConnection(url)
  t.teardown(() => admin.destroy())
  return admin
}
const admin = await adminOf(t)

let names = 0

/** A pool with a user of its own, by whom the server counts what the pool has. */
async function open (
  t: Test, options: EngineOptions<Connection> = {}, at: Pick<Server, 'host' | 'port'> = server, through = admin,
  more: object = {}
) {
  const user = `killed_${process.pid}_${++names}`
  await through.query(`CREATE USER ${user}@'%' IDENTIFIED BY 'secret'`)
  t.teardown(() => through.query(`DROP USER ${user}@'%'`))
  const pool = new Pool(await mysql({ url: `mysql://${user}:secret@${at.host}:${at.port}`, ...more }), { name: 'db', ...options })
  const told: string[] = []
  pool.on('error', ({ error, phase }) => told.push(`${phase}: ${error.message}`))
  pool.on('driver', ({ name, reason }) => told.push(`${name}: ${String(reason)}`))
  t.teardown(() => pool.close({ timeout: 500 }))
  const list = async () => {
    const [rows] = await through.query<RowDataPacket[]>(
      'SELECT ID AS id, INFO AS info FROM information_schema.PROCESSLIST WHERE USER = ?', [user])
    return rows as Array<{ id: number, info: string | null }>
  }
  const running = async () => (await list()).filter(({ info }) => info?.includes('SLEEP'))
  return { pool, told, list, running, user }
}

/** Runs until it is ended. */
async function block (connection: Connection, running: () => Promise<Array<{ id: number }>>): Promise<void> {
  const { threadId } = connection
  Promise.allSettled([connection.query('SELECT SLEEP(600)')])
  await until(async () => (await running()).some(({ id }) => id === threadId), { what: 'it runs' })
}

t.test('max is hard at the server: what ran on destroyed connections is killed, and its slot is taken until it is gone', async (t) => {
  const { pool, told, list, running } = await open(t, { max: 4 })
  let most = 0
  for (let round = 0; round < 10; round++) {
    const leases = await Promise.all(Array.from({ length: 4 }, () => pool.acquire()))
    most = Math.max(most, (await list()).length)
    await Promise.all(leases.map(({ connection }) => block(connection, running)))
    for (const lease of leases) lease.destroy(new Error('enough'))
    t.equal(pool.stats().closing, 4, 'they count')
  }
  await until(() => pool.stats().closing === 0)
  t.same(await running(), [])
  t.ok(most <= 4, `the server counted ${most} when four were lent`)
  await until(async () => (await list()).length === 0, { what: 'the one that kills is gone, too' })
  t.same(told, [])
  t.equal(pool.stats().late, 0)
})

t.test('what a borrower has cut off himself while it ran is killed', async (t) => {
  const { pool, running } = await open(t, { max: 1 })
  const cuts: Array<(connection: Connection) => void> = [
    (connection) => connection.destroy(),
    (connection) => {
      (connection as unknown as { connection: { stream: { destroy (): void } } }).connection.stream.destroy()
    },
  ]
  for (const cut of cuts) {
    const lease = await pool.acquire()
    await block(lease.connection, running)
    cut(lease.connection)
    lease.release()
    await pool.use(async () => t.same(await running(), [], 'before the slot is lent again'))
  }
})

t.test('what a close ends while it runs is killed', async (t) => {
  const { pool, list, running } = await open(t, { max: 2 })
  const leases = await Promise.all([pool.acquire(), pool.acquire()])
  await Promise.all(leases.map(({ connection }) => block(connection, running)))
  await pool.close({ timeout: 50 })
  await until(async () => (await list()).length === 0, { what: 'nothing is left' })
})

t.test('where the server takes no more connections, an idle one kills', needsOwn(server), async (t) => {
  const small = await startMariadb(t, { args: ['--max-connections=10'] })
  const through = await adminOf(t, small)
  const { pool, running, told } = await open(t, { max: 3 }, small, through)
  const leases = await Promise.all(Array.from({ length: 3 }, () => pool.acquire()))
  const others: Connection[] = []
  t.teardown(() => { for (const other of others) other.destroy() })
  await t.rejects(async () => {
    for (let n = 0; n < 10; n++) others.push(await createConnection(small.url))
  }, { errno: 1040 } as object as Error)
  const [busy, used, idle] = leases
  await block(busy!.connection, running)
  await used!.connection.query('SET @mine = 1')
  busy!.destroy(new Error('enough'))
  // None of them is idle: one runs, one is used, and of the third nobody knows.
  idle!.release()
  await until(async () => (await running()).length === 0, { what: 'it is killed' })
  await until(() => pool.stats().closing === 0)
  const [[row]] = await used!.connection.query<RowDataPacket[]>('SELECT @mine AS mine')
  t.equal(row!.mine, 1, 'a connection that is used is left alone')
  used!.release()
  t.same(told, [])
})

t.test('behind NAT or a proxy, where the server sees another port, nothing is killed, and that is told once', async (t) => {
  const proxy = await startProxy(t, server)
  const { pool, running, told, user } = await open(t, { max: 1 }, proxy)
  t.teardown(async () => {
    const them = await createConnection(Object.assign(new URL(server.url), { username: user, pathname: '/' }).href)
    for (const { id } of await running()) await them.query(`KILL ${id}`)
    them.destroy()
  })
  for (let round = 0; round < 3; round++) {
    const lease = await pool.acquire()
    await block(lease.connection, running)
    lease.destroy(new Error('enough'))
    await until(() => pool.stats().closing === 0)
  }
  t.equal((await running()).length, 3, 'they go on')
  t.equal(told.length, 1)
  t.match(told[0], /^not-killed: behind NAT/)
})

t.test('a thread of the same id that is somebody else\'s is not killed', async (t) => {
  let theirs = 0
  // As behind a balancer: the id is that of another server, where another connection has it.
  const driver = {
    ...mysql2,
    createConnection: (options: mysql2.ConnectionOptions) => {
      const core = mysql2.createConnection(options)
      if (theirs !== 0) core.once('connect', () => Object.assign(core, { threadId: theirs }))
      return core
    },
  }
  const { pool, running, told } = await open(t, { max: 2 }, server, admin, { driver })
  const other = await pool.acquire()
  await block(other.connection, running)
  theirs = other.connection.threadId
  const lease = await pool.acquire()
  Promise.allSettled([lease.connection.query('SELECT SLEEP(600)')])
  await until(async () => (await running()).length === 2)
  lease.destroy(new Error('enough'))
  await until(() => pool.stats().closing === 0)
  t.same((await running()).filter(({ id }) => id === theirs).length, 1, 'it goes on')
  t.match(told, [/^not-killed: /])
  theirs = 0
  const them = (await running()).find(({ id }) => id !== other.connection.threadId)!
  other.destroy()
  await until(() => pool.stats().closing === 0)
  await pool.use((connection) => connection.query(`KILL ${them.id}`))
})
