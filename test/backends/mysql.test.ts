import { once } from 'node:events'
import { createServer } from 'node:net'
import type { AddressInfo, Server } from 'node:net'
import type { Connection, RowDataPacket } from 'mysql2/promise'
import t from 'tap'
import { mysql } from '../../lib/backends/mysql/connector.js'
import type { MysqlConnector } from '../../lib/backends/mysql/connector.js'
import type { MysqlOptions } from '../../lib/backends/mysql/options.js'
import { Pool } from '../../lib/pool/pool.js'
import type { EngineOptions } from '../../types/options.js'
import { startProxy } from '../support/proxy.js'
import { needsOwn, startMariadb } from '../support/services.js'
import type { Teardown } from '../support/services.js'
import { needsGroup, startMariadbPair } from '../support/topologies.js'
import { event, until } from '../support/until.js'

const server = await startMariadb(t)
const admin = await plainConnection(t)

/** Only where something hangs is it ever reached. */
const soon = () => AbortSignal.timeout(10_000)

async function plainConnection (t: Teardown, url = server.url): Promise<Connection> {
  const { createConnection } = await import('mysql2/promise')
  const connection = await createConnection({ uri: url })
  t.teardown(() => connection.destroy())
  return connection
}

/** All values of the first row. */
async function row (connection: Connection, sql: string): Promise<unknown[]> {
  const [rows] = await connection.query<RowDataPacket[][]>({ sql, rowsAsArray: true })
  return rows[0] ?? []
}

async function value (connection: Connection, sql: string): Promise<unknown> {
  return (await row(connection, sql))[0]
}

const idOf = (connection: Connection) => connection.threadId

/** An error of the server's, for `t.rejects`. */
const failure = (errno: number) => ({ errno } as object as Error)

/** What is inside of a promise connection. */
const coreOf = (connection: Connection) => (connection as unknown as {
  connection: {
    stream: import('node:net').Socket
    config: Record<string, unknown>
    listenerCount (name: string): number
    on (name: string, listener: () => void): void
    removeAllListeners (): void
    query (sql: string): { stream (): import('node:stream').Readable }
  }
}).connection

type Options = MysqlOptions & EngineOptions<Connection>

/** One connection, so that whoever comes next gets the one that was left. */
async function poolOf (
  t: Teardown, { url = server.url, host, port, database, connection, reset = 'session', ...rest }: Options = {}
) {
  const backend = await mysql({
    ...(host === undefined && port === undefined && { url }), host, port, database, connection, reset,
  } as MysqlOptions)
  const pool = new Pool(backend, { name: 'db', max: 1, reset, ...rest } as EngineOptions<Connection>)
  // What a test holds is not waited for.
  t.teardown(() => pool.close({ timeout: 1 }))
  const errors: Error[] = []
  pool.on('error', ({ error }) => errors.push(error))
  return { backend, pool, errors }
}

async function backendOf (
  t: Teardown, options: MysqlOptions = {}, address: MysqlOptions = { url: server.url }
): Promise<{ backend: MysqlConnector, make: () => Promise<Connection> }> {
  const backend = await mysql({ ...address, ...options })
  const made: Connection[] = []
  t.teardown(async () => { for (const connection of made) await backend.destroy(connection, 'error') })
  return {
    backend,
    make: async () => {
      const connection = await backend.create(soon())
      made.push(connection)
      return connection
    },
  }
}

/** Whether the server still knows a connection. */
const known = async (id: number) =>
  Number(await value(admin, `select count(*) from information_schema.processlist where id = ${id}`)) > 0

await admin.query('create database other')
await admin.query('create table account (id int primary key, sum int not null, note varchar(20)) engine=innodb character set utf8mb4')
await admin.query('create table word (id int primary key auto_increment, text varchar(20)) engine=innodb character set utf8mb4')
await admin.query('create role clerk')
await admin.query('grant clerk to pool@\'127.0.0.1\'')
await admin.query('insert into account values (1, 100, \'\'), (2, 100, \'\')')

const sumOf = async (id: number) => Number(await value(admin, `select sum from account where id = ${id}`))

const session = `select database(), current_role(), @@autocommit, @@sql_mode, @@time_zone, @@tx_isolation, @@character_set_client, @@collation_connection,
  @@character_set_results, @@wait_timeout, @a, last_insert_id(), is_used_lock('mine'), @@in_transaction, @@foreign_key_checks, user()`

t.test('creates connections and destroys them, and the server knows each and then none', async (t) => {
  const { backend, make } = await backendOf(t)
  const connections = [await make(), await make()]
  t.equal(backend.system, 'mysql')
  for (const connection of connections) {
    t.equal(await known(idOf(connection)), true)
    t.equal(await backend.validate!(connection, soon()), true)
    t.equal(backend.isBroken!(connection), false)
    t.equal(await value(connection, 'select database()'), 'test')
  }
  const [first, second] = connections
  await backend.destroy(first!, 'idle')
  t.equal(backend.isBroken!(first!), true)
  t.equal(await backend.validate!(first!, soon()), false)
  await until(async () => !await known(idOf(first!)), { what: 'the server has let go' })
  await backend.destroy(second!, 'error')
  await until(async () => !await known(idOf(second!)), { what: 'the server has let go' })
  await t.rejects(second!.query('select 1'))
  t.throws(() => backend.isBroken!({} as Connection), /not of this connector/)
})

/**
 * The driver's own `reset()`, which it has from 3.22 on. Before that nothing but `changeUser` begins a session anew.
 */
const resetBy = (connection: Connection & { reset? (): Promise<void> }): Promise<void> =>
  connection.reset?.() ?? connection.changeUser({})

const leaves: Record<string, (connection: Connection) => Promise<unknown>> = {
  'an open transaction': async (connection) => {
    await connection.beginTransaction()
    await connection.query('update account set sum = 0')
  },
  'an open XA transaction': async (connection) => {
    await connection.query('xa start \'x\'')
    await connection.query('update account set sum = 0')
  },
  'a user variable': (connection) => connection.query('set @a = 1'),
  'a user variable set by a plain statement': (connection) => connection.query('select @a := 1'),
  'a temporary table': (connection) => connection.query('create temporary table probe (id int)'),
  GET_LOCK: (connection) => connection.query('select get_lock(\'mine\', 0)'),
  'LOCK TABLES': (connection) => connection.query('lock tables account write'),
  sql_mode: (connection) => connection.query('set sql_mode = \'ANSI_QUOTES\''),
  time_zone: (connection) => connection.query('set time_zone = \'+05:00\''),
  'the isolation level': (connection) => connection.query('set session transaction isolation level serializable'),
  'autocommit = 0': async (connection) => {
    await connection.query('set autocommit = 0')
    await connection.query('update account set sum = 0')
  },
  'other settings': (connection) =>
    connection.query('set foreign_key_checks = 0, wait_timeout = 7, completion_type = 1'),
  'SET NAMES latin1': (connection) => connection.query('set names latin1'),
  'SQL PREPARE': (connection) => connection.query('prepare probe from \'select 1\''),
  'USE other': (connection) => connection.query('use other'),
  'USE by a prepared statement, untracked': async (connection) => {
    await connection.query('set session_track_schema = 0')
    await connection.query('execute immediate concat(\'us\', \'e other\')')
  },
  last_insert_id: (connection) => connection.query('insert into word (text) values (\'x\')'),
  'SET ROLE': (connection) => connection.query('set role clerk'),
  'SET ROLE and USE': async (connection) => {
    await connection.query('set role clerk')
    await connection.query('use other')
  },
  'changeUser to the same': (connection) => connection.changeUser({}),
  'reset()': resetBy,
  'options of the driver': async (connection) => {
    coreOf(connection).config.rowsAsArray = true
    coreOf(connection).config.timezone = '+09:00'
    await connection.ping()
  },
  listeners: async (connection) => {
    connection.on('error', () => t.fail('told somebody else'))
    coreOf(connection).on('end', () => t.fail('told somebody else'))
  },
  'an execute() whose statement the driver keeps': (connection) => connection.execute('select ? + 1', [1]),
  'more statements than the driver keeps': async (connection) => {
    for (let n = 0; n < 105; n++) await connection.execute(`select ${n}`)
  },
  'queries that were not waited for': async (connection) => {
    Promise.allSettled([connection.query('do sleep(0.05)'), connection.query('use other'),
      connection.beginTransaction()])
  },
}
for (const [what, leave] of Object.entries(leaves)) {
  t.test(`the next user of the same connection finds nothing of: ${what}`, async (t) => {
    const { pool, errors } = await poolOf(t)
    const first = await pool.acquire()
    const id = idOf(first.connection)
    const before = await row(first.connection, session)
    first.release()
    const second = await pool.acquire()
    t.equal(idOf(second.connection), id)
    t.strictSame(await row(second.connection, session), before, 'the first loan and later ones are alike')
    const heard = coreOf(second.connection).listenerCount('error')
    await leave(second.connection)
    second.release()
    const third = await pool.acquire()
    t.equal(idOf(third.connection), id)
    t.equal(await value(third.connection, 'select connection_id()'), id)
    t.strictSame(await row(third.connection, session), before)
    t.equal(coreOf(third.connection).listenerCount('error'), heard)
    await third.connection.query('insert into word (text) values (?)', ['é€😀'])
    t.equal(await value(third.connection, 'select text from word order by id desc limit 1'), 'é€😀')
    await t.rejects(third.connection.query('select * from probe'), failure(1146))
    await t.rejects(third.connection.query('execute probe'), failure(1243))
    t.strictSame((await third.connection.execute<RowDataPacket[]>('select ? + 1 as n', [1]))[0], [{ n: 2 }])
    t.equal(await sumOf(1), 100)
    await admin.query('update account set sum = 100')
    t.strictSame(errors, [])
  })
}

t.test('a statement that is kept over a reset fails, and harms nobody', async (t) => {
  const { pool } = await poolOf(t)
  const first = await pool.acquire()
  const kept = await first.connection.prepare('select 1')
  t.strictSame((await kept.execute([]))[0], [{ 1: 1 }])
  first.release()
  await pool.use(async (connection) => {
    await t.rejects(kept.execute([]), { code: 'ER_UNKNOWN_STMT_HANDLER' })
    t.equal(await value(connection, 'select 2'), 2)
  })
})

t.test('a connection whose user was changed is replaced, and its user is shown nowhere', async (t) => {
  const { pool, errors } = await poolOf(t)
  const first = await pool.acquire()
  await first.connection.changeUser({ database: 'other' })
  const id = idOf(first.connection)
  first.release()
  const second = await pool.acquire()
  t.not(idOf(second.connection), id)
  t.equal(await value(second.connection, 'select database()'), 'test')
  t.match(errors, [{ code: 'FST_POOL_RESET_FAILED', cause: { message: /changeUser/ } }])
})

t.test('without a configured database, a USE is undone too', async (t) => {
  const { pool, errors } = await poolOf(t, { url: server.url.replace(/\/test$/, '') })
  const first = await pool.acquire()
  const id = idOf(first.connection)
  const before = await row(first.connection, session)
  t.equal(before[0], null)
  await first.connection.query('use other')
  await first.connection.query('set role clerk')
  first.release()
  const second = await pool.acquire()
  t.equal(idOf(second.connection), id)
  t.strictSame(await row(second.connection, session), before)
  t.strictSame(errors, [])
})

t.test('a configured database that is dropped ends the connection', async (t) => {
  await admin.query('create database brief')
  const { pool, errors } = await poolOf(t, { url: server.url.replace(/\/test$/, '/brief') })
  const first = await pool.acquire()
  const id = idOf(first.connection)
  await first.connection.query('drop database brief')
  first.release()
  await event<'disconnect'>(pool, 'disconnect')
  t.match(errors, [{ code: 'FST_POOL_RESET_FAILED', cause: { message: /Unknown database/ } }])
  await admin.query('create database brief')
  t.not(idOf((await pool.acquire()).connection), id)
  await admin.query('drop database brief')
})

t.test('a role that the account has by default is put back', async (t) => {
  await admin.query('set default role clerk for pool@\'127.0.0.1\'')
  try {
    const { pool } = await poolOf(t)
    const first = await pool.acquire()
    t.equal(await value(first.connection, 'select current_role()'), 'clerk')
    await first.connection.query('set role none')
    first.release()
    t.equal(await value((await pool.acquire()).connection, 'select current_role()'), 'clerk')
  } finally {
    await admin.query('set default role none for pool@\'127.0.0.1\'')
  }
})

t.test('where nothing was sent nothing is, and what onConnect sends does not count', async (t) => {
  for (const reset of ['session', 'transaction', 'none'] as const) {
    const { pool } = await poolOf(t, { reset, onConnect: (connection: Connection) => connection.query('set @a = 5') })
    const bytes = () => pool.use((connection) => coreOf(connection).stream.bytesWritten)
    const before = await bytes()
    t.equal(await bytes(), before)
    await pool.use((connection) => connection.query('set @b = 1'))
    t.strictSame(await pool.use((connection) => row(connection, 'select @a, @b')), [5, reset === 'session' ? null : 1])
    const after = await bytes()
    t.equal(await bytes(), after)
    await pool.close()
  }
})

t.test('plain statements cost one round trip, and whatever may change the database one more', async (t) => {
  const { pool } = await poolOf(t)
  const written = async (sql: string) => {
    const lease = await pool.acquire()
    const { stream } = coreOf(lease.connection)
    await lease.connection.query(sql)
    const before = stream.bytesWritten
    lease.release()
    await pool.use(() => {})
    return stream.bytesWritten - before
  }
  t.equal(await written('select 1'), 5)
  t.ok(await written('set @a = 1') > 5)
  t.equal(await written('select 1'), 5, 'and only once')
})

t.test('transaction mode rolls back what is open, and sends nothing where the server said that none is', async (t) => {
  const { pool, errors } = await poolOf(t, { reset: 'transaction' })
  const left = async (leave: (connection: Connection) => Promise<unknown>) => {
    const lease = await pool.acquire()
    const { stream } = coreOf(lease.connection)
    await leave(lease.connection)
    const before = stream.bytesWritten
    lease.release()
    return await pool.use(async (connection) => {
      const sent = stream.bytesWritten - before
      t.equal(await value(connection, 'select @@in_transaction'), 0)
      t.equal(await sumOf(1), 100)
      return sent
    })
  }
  await left((connection) => connection.query('set @a = 7, completion_type = 1'))
  t.equal(await left((connection) => connection.query('select 1')), 0)
  t.equal(await left((connection) => connection.execute('select 1')), 0)
  t.equal(await left((connection) =>
    connection.query('insert into word (text) select repeat(\'x\', 3) from seq_1_to_300')), 0, 'a long OK is read right')
  t.equal(await left((connection) => connection.ping()), 0)
  t.ok(await left((connection) => connection.prepare('select 3')) > 0, 'which does not say')
  t.ok(await left((connection) => t.rejects(connection.query('nonsense'))) > 0, 'which does not say')
  t.ok(await left(async (connection) => {
    await connection.beginTransaction()
    await connection.query('update account set sum = 0')
  }) > 0)
  t.ok(await left(async (connection) => {
    await connection.beginTransaction()
    await connection.query('select * from account')
  }) > 0, 'the end of a result tells')
  t.ok(await left(async (connection) => {
    Promise.allSettled([connection.query('do sleep(0.02)'), connection.beginTransaction(),
      connection.query('update account set sum = 0')])
  }) > 0, 'what is still under way is waited for')
  t.ok(await left((connection) => connection.query('set autocommit = 0')) > 0)
  t.ok(await left((connection) => connection.query('update account set sum = 0')) > 0)
  t.equal(await pool.use((connection) => value(connection, 'select @a')), 7, 'and nothing else is undone')
  t.strictSame(errors, [])
})

t.test('a connection that is used while it is reset is destroyed', async (t) => {
  const { backend, make } = await backendOf(t)
  const connection = await make()
  backend.isBroken!(connection)
  await connection.query('select 1')
  const reset = backend.reset!(connection, soon())
  const late = connection.query('set @a = 1')
  await t.rejects(Promise.resolve(reset), /still used while it was reset/)
  await late
})

t.test('listeners of all others can be taken away, and no death ends the process', async (t) => {
  const { backend, make } = await backendOf(t)
  for (const which of [
    (connection: Connection) => connection.removeAllListeners(),
    (connection: Connection) => coreOf(connection).removeAllListeners(),
  ]) {
    const connection = await make()
    which(connection)
    t.equal(backend.isBroken!(connection), true)
    await new Promise<void>((resolve) => setImmediate(resolve))
    await admin.query(`kill ${idOf(connection)}`)
    await until(() => coreOf(connection).stream.closed)
  }
})

// --- Under way, and dying --------------------------------------------------------------------------------------------

t.test('a stream that nobody reads is cut off at resetTimeout, and the next gets a new connection', async (t) => {
  const { pool, errors } = await poolOf(t, { resetTimeout: 50 })
  const lease = await pool.acquire()
  const id = idOf(lease.connection)
  const stream = coreOf(lease.connection).query('select seq, repeat(\'x\', 1000) from seq_1_to_100000').stream()
  stream.on('error', () => {})
  await event(stream, 'readable')
  lease.release()
  t.not(idOf((await pool.acquire()).connection), id)
  t.match(errors, [{ code: 'FST_POOL_RESET_FAILED' }])
  await until(async () => !await known(id), { what: 'the server has let go' })
})

t.test('a destroyed connection rejects what it ran, and the locks of its transaction are freed', async (t) => {
  const { pool } = await poolOf(t)
  const lease = await pool.acquire()
  const { connection } = lease
  await lease.connection.beginTransaction()
  await lease.connection.query('select * from account for update')
  const running = lease.connection.query('do sleep(1)')
  const queued = lease.connection.query('select 1')
  const failed =
    Promise.all([t.rejects(running, { code: 'PROTOCOL_CONNECTION_LOST' }),
      t.rejects(queued, { code: 'PROTOCOL_CONNECTION_LOST' })])
  lease.destroy(new Error('enough'))
  await failed
  await until(() => pool.stats().closing === 0)
  t.equal(await known(idOf(connection)), false, 'nothing goes on in the server')
  await admin.query('update account set sum = 100')
})

t.test('what a borrower closes himself is told to those who wait, and replaced', async (t) => {
  const { pool } = await poolOf(t)
  for (const close of ['destroy', 'end'] as const) {
    const lease = await pool.acquire()
    const id = idOf(lease.connection)
    const rejected = close === 'destroy'
      ? t.rejects(lease.connection.query('do sleep(30)'), /closed/)
      : Promise.resolve()
    await lease.connection[close]()
    lease.release()
    await rejected
    t.not(idOf((await pool.use((connection) => connection))), id)
  }
})

t.test('a silent server is left after the grace, and holds up neither validation nor closing', async (t) => {
  const proxy = await startProxy(t, server)
  const backend = await mysql({ url: server.url.replace(String(server.port), String(proxy.port)) })
  const idle = await backend.create(soon())
  const busy = await backend.create(soon())
  const asked = await backend.create(soon())
  proxy.blackHole()
  await backend.destroy(idle, 'idle')
  const query = t.rejects(busy.query('select 1'), { code: 'PROTOCOL_CONNECTION_LOST' })
  await backend.destroy(busy, 'idle')
  await query
  await t.rejects(backend.validate!(asked, AbortSignal.abort(new Error('in time'))), /in time/)
  await backend.destroy(asked, 'invalid')
  for (const connection of [idle, busy, asked]) t.equal(coreOf(connection).stream.closed, true)
})

t.test('a begin that a silent server never answers is given up at its deadline, with its connection', async (t) => {
  const proxy = await startProxy(t, server)
  const url = new URL(server.url)
  url.host = `${proxy.host}:${proxy.port}`
  const { pool } = await poolOf(t, { url: url.href, acquireTimeout: 300 })
  const lease = await pool.acquire()
  await lease.connection.query('SELECT 1')
  proxy.blackHole()
  await t.rejects(lease.transaction(() => t.fail('it ran')), { code: 'FST_POOL_ACQUIRE_TIMEOUT' })
  t.equal(lease.ended, true)
  await proxy.heal()
  t.equal(await pool.transaction((connection) => value(connection, 'SELECT 1')), 1)
})

t.test('a server that accepts and is silent is given up on in time, by signal and by connectTimeout', async (t) => {
  const silent = createServer((socket) => socket.on('error', () => {}).resume()).listen(0, '127.0.0.1')
  t.teardown(() => silent.close())
  await once(silent, 'listening')
  const { port } = silent.address() as AddressInfo
  const { pool } =
    await poolOf(t,
      { url: `mysql://pool:secret@127.0.0.1:${port}/test`, connectTimeout: 50, acquireTimeout: 200, backoff: { min: 1, max: 1 } })
  await t.rejects(pool.acquire(), { code: 'FST_POOL_CONNECT_FAILED' })
  const backend = await mysql({ host: '127.0.0.1', port, connectTimeout: 20 })
  await t.rejects(backend.create(soon()), { code: 'ETIMEDOUT' })
  await t.rejects(backend.create(AbortSignal.abort(new Error('not wanted'))), /not wanted/)
  const aborting = new AbortController()
  const create = (await mysql({ host: '127.0.0.1', port })).create(aborting.signal)
  await event(silent, 'connection')
  aborting.abort(new Error('no longer wanted'))
  await t.rejects(create, /no longer wanted/)
  await until(async () =>
    await new Promise<boolean>((resolve) => silent.getConnections((_error, count) => resolve(count === 0))))
})

t.test('refused, a wrong password and an unknown database fail at once, and show no secret', async (t) => {
  const free = createServer().listen(0, '127.0.0.1')
  await once(free, 'listening')
  const { port } = free.address() as AddressInfo
  free.close()
  await once(free, 'close')
  await t.rejects((await mysql({ host: '127.0.0.1', port })).create(soon()), { code: 'ECONNREFUSED' })
  const wrong = await mysql({ url: server.url.replace(':secret@', ':hush-hush@') })
  t.ok(wrong.secrets!.includes('hush-hush'))
  const error = await wrong.create(soon()).then(() => undefined, (error: Error) => error)
  t.match(error, { code: 'ER_ACCESS_DENIED_ERROR' })
  t.notMatch(JSON.stringify([error, error!.message, error!.stack]), /hush-hush/)
  await t.rejects((await mysql({
    url: server.url, connection: { database: undefined }, database: 'nowhere',
  })).create(soon()), { code: 'ER_BAD_DB_ERROR' })
})

t.test('deaths of idle connections evict them, whatever they died of', async (t) => {
  const proxy = await startProxy(t, server)
  const deaths: Record<string, (connection: Connection) => unknown> = {
    KILL: (connection) => admin.query(`kill ${idOf(connection)}`),
    RST: () => proxy.resetAll(),
    FIN: () => proxy.endAll(),
  }
  for (const [how, die] of Object.entries(deaths)) {
    const { pool } = await poolOf(t, { url: server.url.replace(String(server.port), String(proxy.port)) })
    const lease = await pool.acquire()
    const { connection } = lease
    lease.release()
    const gone = event<'disconnect'>(pool, 'disconnect')
    await die(connection)
    t.equal((await gone).reason, 'error', how)
    t.equal(await pool.use((connection) => value(connection, 'select 1')), 1)
    await pool.close()
  }
  const { pool } =
    await poolOf(t, { reset: 'none', onConnect: (connection: Connection) => connection.query('set wait_timeout = 1') })
  await pool.use(() => {})
  t.equal((await event<'disconnect'>(pool, 'disconnect')).reason, 'error', 'wait_timeout')
})

t.test('a death under a query rejects it, and the connection is replaced', async (t) => {
  const { pool } = await poolOf(t)
  const lease = await pool.acquire()
  const running = t.rejects(lease.connection.query('do sleep(30)'))
  await admin.query(`kill ${idOf(lease.connection)}`)
  await running
  lease.release()
  t.equal(await pool.use((connection) => value(connection, 'select 1')), 1)
})

t.test('a death that was not yet listened for is told', async (t) => {
  const { backend, make } = await backendOf(t)
  const connection = await make()
  await admin.query(`kill ${idOf(connection)}`)
  await until(() => coreOf(connection).stream.closed)
  t.equal(backend.isBroken!(connection), true)
  t.match(await new Promise((resolve) => backend.onDeath!(connection, resolve)), { code: 'PROTOCOL_CONNECTION_LOST' })
})

t.test('too many connections fail with the server\'s own error, and a killed server is found again', needsOwn(server), async (t) => {
  const small = await startMariadb(t, { args: ['--max-connections=10'] })
  const { backend, pool } = await poolOf(t, { url: small.url, max: 4, backoff: { min: 5, max: 20 } })
  const made: Connection[] = []
  await t.rejects(async () => {
    for (let n = 0; n < 20; n++) made.push(await backend.create(soon()))
  }, { errno: 1040, code: 'ER_CON_COUNT_ERROR' })
  for (const connection of made) await backend.destroy(connection, 'idle')
  const lease = await until(async () => await pool.acquire().catch(() => undefined))
  const running = t.rejects(lease.connection.query('do sleep(30)'))
  await small.kill()
  await running
  lease.release()
  await small.restart()
  t.equal(await until(async () => await pool.use((connection) => value(connection, 'select 1')).catch(() => undefined)),
    1)
})

t.test('a character set that the server gave at connecting survives the reset', needsOwn(server), async (t) => {
  const own = await startMariadb(t, { args: ['--init-connect=SET NAMES utf8mb4 COLLATE utf8mb4_bin'] })
  const { pool } = await poolOf(t, { url: own.url })
  for (let n =
    0; n < 2; n++) t.equal(await pool.use((connection) => value(connection, 'select @@collation_connection')), 'utf8mb4_bin')
  const withoutDatabase = await poolOf(t, { url: own.url.replace(/\/test$/, '') })
  await withoutDatabase.pool.use((connection) => connection.query('use test'))
  t.strictSame(await withoutDatabase.pool.use((connection) =>
    row(connection, 'select @@collation_connection, database()')), ['utf8mb4_bin', null])
})

// --- What a server says ----------------------------------------------------------------------------------------------

/** May do all, but what `root` may not either. */
async function rootOf (t: Teardown, { host, port }: { host: string, port: number }): Promise<Connection> {
  const connection = await plainConnection(t, `mysql://root@${host}:${port}`)
  // Its server may be killed under it.
  connection.on('error', () => {})
  return connection
}

const sent = (connection: Connection) => coreOf(connection).stream.bytesWritten

t.test('inspect: a replica is level, or behind by what it says itself, or follows nobody, until it is promoted', needsGroup('MariaDB'), async (t) => {
  const { primary, replicas: [replica], ...pair } = await startMariadbPair(t)
  const writer = await plainConnection(t, primary.url)
  writer.on('error', () => {})
  await writer.query('create table line (n int)')
  await pair.caughtUp(replica!)
  const first = await backendOf(t, { url: primary.url })
  const second = await backendOf(t, { url: replica!.url })
  const [onFirst, onSecond] = [await first.make(), await second.make()]
  const state = () => second.backend.inspect(onSecond, soon())
  t.strictSame(await first.backend.inspect(onFirst, soon()), { role: 'primary' })
  t.strictSame(await state(), { role: 'replica', lag: 0 })

  await pair.pauseReplay(replica!)
  t.strictSame(await state(), { role: 'replica', lag: Infinity }, 'it applies nothing')
  await pair.resumeReplay(replica!)
  await until(async () => (await state()).lag === 0, { what: 'it is level again' })
  await pair.pauseReplay(replica!, 'locked')
  await writer.query('insert into line values (1)')
  const { lag } = await until(async () => {
    const now = await state()
    return now.lag! > 0 && now
  }, { what: 'it is seen to be behind' })
  t.ok(lag! >= 1000 && lag! < 60_000 && lag! % 1000 === 0, `${lag} ms, in whole seconds`)
  await pair.resumeReplay(replica!)
  await pair.caughtUp(replica!)
  await until(async () => (await state()).lag === 0, { what: 'it is level again' })

  const root = await rootOf(t, replica!)
  await root.query('set global read_only = 0')
  t.strictSame(await state(), { role: 'replica', lag: 0 },
    'who follows another is none to write to, even where it would take it')
  await root.query('set global read_only = 1')
  await primary.kill()
  await until(async () => (await state()).lag === Infinity, { what: 'an orphan follows nobody' })
  t.equal((await state()).role, 'replica', 'and takes no writes')
  await pair.promote(replica!)
  t.strictSame(await state(), { role: 'primary' })
  await root.query('set global read_only = 1')
  t.strictSame(await state(), { role: 'replica', lag: Infinity },
    'made read only it takes no writes, and follows nobody')
})

t.test('inspect: of several that a replica follows the worst tells', needsGroup('MariaDB'), async (t) => {
  const { replicas: [replica] } = await startMariadbPair(t)
  const { backend, make } = await backendOf(t, { url: replica!.url })
  const connection = await make()
  const root = await rootOf(t, replica!)
  await root.query('change master \'other\' to master_host=\'127.0.0.1\', master_port=1, master_user=\'pool\', master_password=\'secret\'')
  t.strictSame(await backend.inspect(connection, soon()), { role: 'replica', lag: Infinity })
})

t.test('inspect: without the privilege read_only alone tells the role, and is asked for no more than that', needsGroup('MariaDB'), async (t) => {
  const { primary, replicas: [replica], caughtUp } = await startMariadbPair(t)
  const writer = await plainConnection(t, primary.url)
  await writer.query('create user ordinary@\'127.0.0.1\' identified by \'secret\'')
  await caughtUp(replica!)
  const asOrdinary = (url: string) => url.replace('pool:', 'ordinary:').replace(/\/test$/, '')
  for (const [server, role] of [[primary, 'primary'], [replica!, 'replica']] as const) {
    const { backend, make } = await backendOf(t, { url: asOrdinary(server.url) })
    const connection = await make()
    t.strictSame(await backend.inspect(connection, soon()), { role })
    const before = sent(connection)
    t.strictSame(await backend.inspect(connection, soon()), { role })
    t.ok(sent(connection) - before < 70, 'one question')
    t.equal(backend.isBroken!(connection), false)
  }
})

t.test('inspect: a storage that only reads is a replica, which does not say how far behind it is', needsOwn(server), async (t) => {
  const own = await startMariadb(t, { args: ['--innodb-read-only=1'] })
  const { backend, make } = await backendOf(t, { url: own.url })
  const connection = await make()
  t.strictSame(await backend.inspect(connection, soon()), { role: 'replica' })
})

/** No server: it answers as its documentation says that MySQL does, of which there is none here. */
async function mysqlDouble (
  t: Teardown, answers: Record<string, Array<Record<string, unknown>> | number>
): Promise<{ url: string, asked: string[] }> {
  const { createServer } = (await import('mysql2')).default
  const asked: string[] = []
  const double = createServer((connection) => {
    t.teardown(() => connection.destroy())
    connection.on('error', () => {})
    connection.serverHandshake({ protocolVersion: 10, serverVersion: '8.4.0', connectionId: 1, statusFlags: 2, characterSet: 33, capabilityFlags: 0xffffff ^ 0x800 ^ 0x20 })
    connection.on('query', (text: unknown) => {
      const sql = text as string
      asked.push(sql)
      const answer = answers[sql] ?? 1064
      if (typeof answer === 'number') {
        return (connection as unknown as { writeError (error: object): void })
          .writeError({ code: answer, message: `error ${answer}` })
      }
      const column = (name: string) =>
        ({ catalog: 'def', schema: '', table: '', orgTable: '', name, orgName: name, characterSet: 33, columnLength: 64, columnType: 253, flags: 0, decimals: 0 })
      connection.writeTextResult(answer, Object.keys(answer[0]!).map(column))
    })
  }) as unknown as { _server: Server, listen (port: number, host: string): void, close (): void }
  double.listen(0, '127.0.0.1')
  t.teardown(() => double.close())
  if (!double._server.listening) await once(double._server, 'listening')
  return { url: `mysql://u@127.0.0.1:${(double._server.address() as AddressInfo).port}`, asked }
}

t.test('inspect: MySQL is asked in its own words, those of 8.4 and those before 8.0.22', async (t) => {
  const variables = 'SELECT @@GLOBAL.read_only, @@GLOBAL.innodb_read_only'
  const onOrOff = (readOnly: string) => [{ '@@GLOBAL.read_only': readOnly, '@@GLOBAL.innodb_read_only': '0' }]
  const running = { Replica_IO_Running: 'Yes', Replica_SQL_Running: 'Yes' }
  const stopped = { Replica_IO_Running: 'No', Replica_SQL_Running: 'No', Seconds_Behind_Source: null }
  const cases: Array<[what: string, readOnly: string, answers: Parameters<typeof mysqlDouble>[1], state: object]> = [
    ['level', '1', { 'SHOW REPLICA STATUS': [{ ...running, Seconds_Behind_Source: '0' }] },
      { role: 'replica', lag: 0 }],
    ['of two the worst', 'ON', {
      'SHOW REPLICA STATUS': [{ ...running, Seconds_Behind_Source: '7' }, { ...running, Seconds_Behind_Source: '2' }],
    }, { role: 'replica', lag: 7000 }],
    ['its primary is out of reach', '1', {
      'SHOW REPLICA STATUS': [{ ...running, Replica_IO_Running: 'Connecting', Seconds_Behind_Source: null }],
    }, { role: 'replica', lag: Infinity }],
    ['promoted by STOP REPLICA alone', '0', { 'SHOW REPLICA STATUS': [stopped] }, { role: 'primary' }],
    ['stopped, and takes no writes', '1', { 'SHOW REPLICA STATUS': [stopped] }, { role: 'replica', lag: Infinity }],
    ['without the privilege', '1', { 'SHOW REPLICA STATUS': 1227 }, { role: 'replica' }],
    ['old', '1', {
      'SHOW SLAVE STATUS': [{ Slave_IO_Running: 'Yes', Slave_SQL_Running: 'Yes', Seconds_Behind_Master: '3' }],
    }, { role: 'replica', lag: 3000 }],
    ['it knows none of the words', 'OFF', {}, { role: 'primary' }],
    ['newer than we are', 'NO_LOCK_NO_ADMIN', {}, { role: 'replica' }],
  ]
  for (const [what, readOnly, answers, state] of cases) {
    const { url, asked } = await mysqlDouble(t, { [variables]: onOrOff(readOnly), ...answers })
    const { backend, make } = await backendOf(t, { url, reset: 'none' })
    const connection = await make()
    t.strictSame(await backend.inspect(connection, soon()), state, what)
    t.strictSame(asked,
      [variables, 'SHOW ALL SLAVES STATUS', 'SHOW REPLICA STATUS', 'SHOW SLAVE STATUS'].slice(0, asked.length))
  }
  const failing = await mysqlDouble(t, { [variables]: onOrOff('1'), 'SHOW REPLICA STATUS': 1053 })
  const { backend, make } = await backendOf(t, { url: failing.url, reset: 'none' })
  const error = await backend.inspect(await make(), soon()).catch((error: unknown) => error)
  t.match(error, { errno: 1053 })
  t.equal(backend.isTransient(error), true)
})

t.test('inspect is no use: no reset follows it, and whatever the driver makes of values, it understands', async (t) => {
  for (const reset of ['session', 'transaction', 'none'] as const) {
    const { pool, backend } = await poolOf(t, {
      reset,
      connection: {
        typeCast: () => 'nonsense', rowsAsArray: true, nestTables: true, queryFormat: () => 'nonsense',
      }
    })
    await pool.use(() => {})
    const lease = await pool.acquire()
    const before = sent(lease.connection)
    t.match(await backend.inspect(lease.connection, soon()), { role: /primary|replica/ })
    const asked = sent(lease.connection)
    t.ok(asked > before)
    lease.release()
    t.equal(await pool.use(sent), asked, reset)
    await pool.close()
  }
})

t.test('inspect is given up with its signal, and fails with its connection', async (t) => {
  const { backend, make } = await backendOf(t)
  const connection = await make()
  await t.rejects(backend.inspect(connection, AbortSignal.abort(new Error('too late'))), { message: 'too late' })
  await admin.query(`kill ${idOf(connection)}`)
  await until(() => coreOf(connection).stream.closed)
  await t.rejects(backend.inspect(connection, soon()))
})

t.test('a connection on which a write was refused is not lent again', needsGroup('MariaDB'), async (t) => {
  const { primary, replicas: [replica] } = await startMariadbPair(t)
  const write = (connection: Connection) => t.rejects(connection.query('create table never (n int)'), failure(1290))
  for (const reset of ['session', 'transaction', 'none'] as const) {
    const { pool, backend } = await poolOf(t, { url: replica!.url, reset })
    const gone = event<'disconnect'>(pool, 'disconnect')
    const first = await pool.use(async (connection) => { await write(connection); return connection })
    t.match(await gone, { reason: 'error' }, `${reset}: on a replica`)
    let unanswered: Promise<unknown> | undefined
    const late = await pool.use((connection) => {
      t.not(connection, first)
      unanswered = write(connection)
      return connection
    })
    t.equal(backend.isBroken!(late), false, 'not known yet at its return')
    await unanswered
    await pool.use((connection) => t.not(connection, late, 'where the answer came after it'))
    await pool.use(async (connection) => {
      await backend.inspect(connection, soon())
      await write(connection)
      await t.rejects(connection.execute('insert into never values (?)', [1]))
      t.equal(backend.isBroken!(connection), false, 'where it is known for a replica, another one would be no better')
    })
    await pool.close()
  }
  const { pool, backend } = await poolOf(t, { url: primary.url })
  const root = await rootOf(t, primary)
  await root.query('create table test.line (n int)')
  const first = await pool.use(async (connection) => {
    t.equal((await backend.inspect(connection, soon())).role, 'primary')
    return connection
  })
  const gone = event<'disconnect'>(pool, 'disconnect')
  await t.rejects(pool.transaction(async (connection) => {
    t.equal(connection, first)
    await connection.query('insert into line values (1)')
    await root.query('set global read_only = 1')
  }), failure(1290), 'a commit is refused too')
  t.match(await gone, { reason: 'error' }, 'on a primary that was made read only')
})

t.test('a connection on which a transaction that only reads refused a write is as good as before', async (t) => {
  const { pool } = await poolOf(t)
  await admin.query('update account set sum = 100')
  const id = await pool.use(idOf)
  const refused = (connection: Connection) => t.rejects(connection.query('update account set sum = 0'), failure(1792))
  await t.rejects(pool.transaction((connection) => connection.query('update account set sum = 0'), { readOnly: true }),
    failure(1792))
  const declared: Array<(connection: Connection) => Promise<unknown>> = [
    (connection) => connection.query('start transaction read only'),
    (connection) => connection.query('set transaction read only'),
    (connection) => connection.query('set session transaction read only'),
    (connection) => connection.execute('set tx_read_only = 1'),
    (connection) => connection.query('execute immediate concat(\'set tx_\', \'read_\', \'on\', \'ly = 1\')'),
  ]
  for (const declare of declared) {
    await pool.use(async (connection) => {
      t.equal(idOf(connection), id)
      await declare(connection)
      await refused(connection)
    })
  }
  await pool.use(async (connection) => {
    t.equal(idOf(connection), id)
    await t.rejects(connection.query('select 1 into outfile \'/nowhere/at/all\''))
    await t.rejects(connection.query('nonsense, read-only'), failure(1064))
  })
  t.equal(await pool.use(idOf), id, 'nor is any other error a reason')
})

t.test('a connection whose transactions were made read only by the server is replaced', needsOwn(server), async (t) => {
  const own = await startMariadb(t, { args: ['--transaction-read-only=1', '--secure-file-priv=/usr'] })
  const { pool } = await poolOf(t, { url: own.url })
  const id = await pool.use(idOf)
  await pool.use((connection) => t.rejects(connection.query('select 1 into outfile \'/tmp/never\''), failure(1290)))
  t.equal(await pool.use(idOf), id, '1290 of another option is no reason')
  await pool.use((connection) => t.rejects(connection.query('create table never (n int)'), failure(1792)))
  t.not(await pool.use(idOf), id)
})

t.test('transient is what another connection may not meet: a death, a server that ends, or takes no writes', async (t) => {
  const proxy = await startProxy(t, server)
  const { isTransient } = await mysql({})
  const errorOf = async (fn: (connection: Connection) => Promise<unknown>): Promise<unknown> => {
    const { make } = await backendOf(t, { url: server.url.replace(String(server.port), String(proxy.port)) })
    return await fn(await make()).then(() => t.fail('no error'), (error: unknown) => error)
  }
  const asleep = async (connection: Connection, kill: () => unknown) => {
    const sleeping = connection.query('do sleep(30)')
    sleeping.catch(() => { /* It is looked at below. */ })
    await until(async () =>
      await value(admin, `select state from information_schema.processlist where id = ${idOf(connection)}`) === 'User sleep')
    await kill()
    return await sleeping
  }
  const transient: Record<string, (connection: Connection) => Promise<unknown>> = {
    'a KILL': (connection) => asleep(connection, () => admin.query(`kill ${idOf(connection)}`)),
    'a RST': (connection) => asleep(connection, () => proxy.resetAll()),
    'a FIN': (connection) => asleep(connection, () => proxy.endAll()),
    'used after its death': async (connection) => {
      await asleep(connection, () => proxy.resetAll()).catch(() => { /* The next one is looked at. */ })
      return await connection.query('select 1')
    },
    'a write where there are none': async (connection) => {
      await connection.query('start transaction read only')
      return await connection.query('update account set sum = 0')
    },
  }
  for (const [what, fn] of Object.entries(transient)) {
    const error = await errorOf(fn)
    t.equal(isTransient(error), true, `${what}: ${String(error)}`)
    t.equal(isTransient(new Error('wrapped', { cause: error })), true)
  }
  for (const errno of [1053, 1836, 1927, 2006, 2013, 3032, 3169, 4031]) {
    t.equal(isTransient({ errno }), true,
      String(errno))
  }
  for (const code of ['EPIPE', 'ECONNRESET', 'ETIMEDOUT', 'EHOSTUNREACH']) t.equal(isTransient({ code }), true, code)
  for (const option of ['--read-only', '--super-read-only',
    '--read_only']) t.equal(isTransient({ errno: 1290, message: `running with the ${option} option` }), true)
  const lasting: Record<string, (connection: Connection) => Promise<unknown>> = {
    'a statement that is wrong': (connection) => connection.query('nonsense'),
    'a text that reads like a death': (connection) =>
      connection.query('signal sqlstate \'45000\' set message_text = \'Can\\\'t write in closed state\''),
    'a query that took too long': (connection) => connection.query({ sql: 'do sleep(0.2)', timeout: 1 }),
    'a KILL QUERY': (connection) => asleep(connection, () => admin.query(`kill query ${idOf(connection)}`))
      .then(() => connection.query('nonsense')),
  }
  for (const [what, fn] of Object.entries(lasting)) {
    const error = await errorOf(fn)
    t.equal(isTransient(error), false, `${what}: ${String(error)}`)
  }
  const others: unknown[] =
    [undefined, null, 'x', new Error('x'), { errno: 1317 }, { errno: 1040 }, { errno: 1203 }, { errno: 1205 },
      { errno: 1213 }, { code: 'ECONNREFUSED' }]
  for (const error of [...others, {
    errno: 1290, message: 'running with the --secure-file-priv option',
  }]) t.equal(isTransient(error), false, JSON.stringify(error))
})

t.test('the errors of a server that ends are transient, and what runs again on the one that comes up succeeds', needsOwn(server), async (t) => {
  const own = await startMariadb(t, { own: true })
  const { pool, backend } = await poolOf(t, { url: own.url, backoff: { min: 1, max: 50 } })
  const seen: unknown[] = []
  const answer = pool.use(async (connection) => {
    if (seen.length > 0) return await value(connection, 'select 1')
    const restarted = own.kill().then(() => own.restart())
    try {
      return await connection.query('do sleep(30)')
    } catch (error) {
      seen.push(error)
      await restarted
      throw error
    }
  }, { retry: 5, timeout: 20_000 })
  t.equal(await answer, 1)
  t.equal(backend.isTransient(seen[0]), true, String(seen[0]))
})

// --- Addresses that change -------------------------------------------------------------------------------------------

t.test('url and connection may be functions, asked at each create, and not before there is one', async (t) => {
  let database = 'test'
  let asked = 0
  const { make } = await backendOf(t, {
    url: () => { asked++; return Promise.resolve(server.url.replace(/\/test$/, `/${database}`)) },
    connection: () => ({ multipleStatements: database === 'other' }),
  })
  t.equal(asked, 0)
  const first = await make()
  t.equal(asked, 1)
  database = 'other'
  const second = await make()
  t.equal(asked, 2)
  t.strictSame([await value(first, 'select database()'), await value(second, 'select database()')], ['test', 'other'])
  await t.rejects(first.query('select 1; select 2'), failure(1064))
  await second.query('select 1; select 2')
})

t.test('a function is held to what is asked of the option, at its create', async (t) => {
  const bad: Array<[MysqlOptions, RegExp]> = [
    [{ url: () => 'postgres://u:topsecret@h/d' }, /option url .*mysql:\/\//],
    [{ url: () => 'mysql://u:topsecret@h:port/d' }, /option url .*mysql:\/\//],
    [{ url: () => 'mysql://u:topsecret@h/d?connectionLimit=5' }, /without other options/],
    [{ url: async () => undefined as unknown as string }, /option url.* missing/],
    [{ url: server.url, connection: () => ({ connectionLimit: 5 }) }, /connection\.connectionLimit .*option max/],
    [{ url: server.url, connection: () => ({ uri: 'mysql://u:topsecret@h/d' }) }, /connection\.uri .*option url/],
    [{ url: server.url, connection: () => ({ stream: {} }) }, /a function/],
    [{ url: server.url, connection: () => ({ socketPath: '/s' }) }, /no url next to connection\.socketPath/],
    [{ url: () => server.url, connection: () => ({ socketPath: '/s' }) }, /no url next to connection\.socketPath/],
    [{ url: server.url, connection: async () => 5 as unknown as Record<string, unknown> }, /an object/],
  ]
  for (const [options, message] of bad) {
    const error = await (await mysql(options)).create(soon()).catch((error: unknown) => error) as Error
    t.match(error, { code: 'FST_POOL_BAD_OPTIONS', message })
    t.notMatch(`${error.stack} ${String(error.cause)}`, /topsecret/)
  }
  const known: Array<[MysqlOptions & Record<string, unknown>, RegExp]> = [
    [{ url: () => server.url, connection: { connectionLimit: 5 } }, /connection\.connectionLimit/],
    [{ url: () => server.url, host: 'h' }, /no host next to url/],
    [{ url: () => server.url, connection: { socketPath: '/s' } }, /no url next to connection\.socketPath/],
    [{ url: 'postgres://h', connection: () => ({}) }, /option url/],
    [{ url: () => server.url, user: 'me' }, /inside of connection/],
  ]
  for (const [options, message] of known) await t.rejects(mysql(options), { code: 'FST_POOL_BAD_OPTIONS', message })
})

t.test('a function that fails, or never answers, is the create\'s failure', async (t) => {
  await t.rejects((await mysql({ url: async () => { throw new Error('vault is shut') } })).create(soon()),
    { message: 'vault is shut' })
  const deadline = new AbortController()
  const creating = (await mysql({ url: server.url, connection: () => new Promise(() => {}) })).create(deadline.signal)
  deadline.abort(new Error('too late'))
  await t.rejects(creating, { message: 'too late' })
})

t.test('what is secret in the answers is known, in a list that is another one only where there are others', async (t) => {
  let password = 'first-secret'
  const { backend } = await backendOf(t, { url: () => server.url.replace(':secret@', `:${password}@`) })
  t.equal(backend.secrets, backend.secrets)
  t.notOk(backend.secrets!.includes('first-secret'))
  await t.rejects(backend.create(soon()), { code: 'ER_ACCESS_DENIED_ERROR' })
  const { secrets } = backend
  t.ok(secrets!.includes('first-secret'))
  t.equal(backend.secrets, secrets)
  password = 'second-secret'
  await t.rejects(backend.create(soon()), { code: 'ER_ACCESS_DENIED_ERROR' })
  t.ok(['first-secret', 'second-secret'].every((secret) => backend.secrets!.includes(secret)), 'an error may come late')
  t.strictSame((await mysql({ url: 'mysql://u:topsecret@h/d' })).secrets, ['topsecret'])
})

t.test('a password that is changed while connections are out is asked for, and the old ones go on until they are retired', needsOwn(server), async (t) => {
  let password = 'first-secret'
  await admin.query('create user rotated@\'127.0.0.1\' identified by \'first-secret\'')
  t.teardown(() => admin.query('drop user rotated@\'127.0.0.1\''))
  const { pool, errors } =
    await poolOf(t, { url: () => server.url.replace('pool:secret@', `rotated:${password}@`).replace(/\/test$/, '') })
  const first = await pool.use(async (connection) => {
    await admin.query('set password for rotated@\'127.0.0.1\' = password(\'second-secret\')')
    password = 'second-secret'
    await connection.query('set @a = 1')
    return idOf(connection)
  })
  t.equal(await pool.use(idOf), first, 'a reset needs no password')
  pool.evict()
  t.not(await pool.use(idOf), first)
  t.strictSame(errors, [])
})

// --- XA, and prepared statements -------------------------------------------------------------------------------------

/** How often, of so many tries, and with which numbers, it failed. */
async function tries (count: number, work: () => Promise<unknown>): Promise<unknown[]> {
  const numbers = []
  for (let i = 0; i < count; i++) {
    const error = await work().then(() => undefined, (error: unknown) => error as { errno?: unknown })
    if (error !== undefined) numbers.push(error.errno)
  }
  return numbers
}

/** The branch of a prepared one is there until somebody ends it, but not before its connection is gone. */
const endBranch = () => until(async () => (await tries(1, () => admin.query("xa rollback 'x'"))).length === 0)

const branches: Array<[state: string, statements: string[]]> = [
  ['begun', ["xa start 'x'"]],
  ['written to', ["xa start 'x'", 'update account set sum = 0 where id = 2']],
  ['ended', ["xa start 'x'", 'update account set sum = 0 where id = 2', "xa end 'x'"]],
  ['prepared', ["xa start 'x'", 'update account set sum = 0 where id = 2', "xa end 'x'", "xa prepare 'x'"]],
]
for (const reset of ['session', 'transaction', 'none'] as const) {
  // In mode 'none' who comes next goes on with one that takes writes, and ends it.
  for (const [state, statements] of reset === 'none' ? branches.slice(2) : branches) {
    t.test(`${reset}: an XA transaction that was left ${state} keeps nobody from writing for long`, async (t) => {
      await admin.query('update account set sum = 100')
      const { pool, errors } = await poolOf(t, { reset })
      for (const last of ['', 'nonsense']) {
        const id = await pool.use(async (connection) => {
          for (const sql of statements) await connection.query(sql)
          // Then the last answer does not tell that a transaction is open.
          if (last !== '') await t.rejects(connection.query(last))
          return idOf(connection)
        })
        const write = (connection: Connection) => connection.query('update account set sum = 1 where id = 1')
        t.same(await tries(3, () => pool.use(write)), reset === 'none' ? [1399] : [])
        await pool.transaction(write)
        const kept = reset === 'session' && state !== 'prepared'
        t.equal(await pool.use(idOf) === id, kept, kept ? 'a reset is enough' : 'it is replaced')
        if (state === 'prepared') await endBranch()
      }
      t.equal(await sumOf(2), 100)
      for (const error of errors) t.match(error, { cause: { message: /XA transaction/ } })
    })
  }
}

t.test('a prepared XA transaction on a connection that its borrower has reset spoils it once', async (t) => {
  const { pool } = await poolOf(t)
  await pool.use(async (connection) => {
    for (const sql of branches[3]![1]) await connection.query(sql)
    await resetBy(connection)
  })
  const write = (connection: Connection) => connection.query('update account set sum = 1 where id = 1')
  t.same(await tries(3, () => pool.use(write)), [1031])
  await endBranch()
})

await admin.query(`create procedure outdated (number int)
  begin if @fails then signal sqlstate 'HY000' set mysql_errno = number; end if; end`)
const prepares = async (connection: Connection) => {
  const [, count] = await row(connection, "show session status like 'com_stmt_prepare'")
  return Number(count)
}

for (const reset of ['session', 'transaction', 'none'] as const) {
  t.test(`${reset}: a prepared statement that the server does not have any more fails once`, async (t) => {
    const { pool, errors } = await poolOf(t, { reset })
    const ask = (connection: Connection, what = 'select 1') => connection.execute(what)
    const failed = await pool.use(async (connection) => {
      await ask(connection)
      await ask(connection, 'select 2')
      // The driver goes on to believe that they are there.
      for (const sql of ['select 1', 'select 2']) await (await connection.prepare(sql)).close()
      return await tries(3, () => ask(connection))
    })
    t.same(failed, [1243])
    t.same(await tries(3, () => pool.use((connection) => ask(connection, 'select 2'))), [])
    t.equal(pool.stats().created, 1)
    t.same(errors, [])
  })

  t.test(`${reset}: prepared statements go on where another connection changes the schema, and see the change`, async (t) => {
    await admin.query('create table moved (a int)')
    await admin.query('insert into moved values (1)')
    t.teardown(() => admin.query('drop table moved'))
    const onConnect = async (connection: Connection) => {
      await connection.query("prepare moving from 'select * from moved'")
    }
    const { pool } = await poolOf(t, { reset, onConnect })
    const kinds: Array<(connection: Connection) => Promise<unknown>> = [
      async (connection) => (await connection.execute('select * from moved'))[0],
      async (connection) => (await connection.query('execute moving'))[0],
    ]
    const held = await pool.acquire()
    for (const [sql, row] of Object.entries({
      'select 1': { a: 1 },
      'alter table moved add column b varchar(5) default \'x\'': { a: 1, b: 'x' },
      'update moved set b = null; alter table moved drop column a, modify b int; update moved set b = 7': { b: 7 },
      'alter table moved change b c int': { c: 7 },
      'drop table moved; create table moved (d date); insert into moved values (\'2020-02-02\')': {
        d: new Date(2020, 1,
          2)
      },
    })) {
      for (const statement of sql.split('; ')) await admin.query(statement)
      for (const ask of kinds) t.same(await ask(held.connection), [row], `${sql}: in the same lease`)
    }
    held.release()
    for (const ask of kinds) t.same(await pool.use(ask), [{ d: new Date(2020, 1, 2) }])
    t.equal(pool.stats().created, 1)
  })

  for (const errno of [1243, 1615]) {
    t.test(`${reset}: whose execution fails with ${errno} is prepared anew, in the same lease too`, async (t) => {
      const { pool } = await poolOf(t, { reset })
      const call = (connection: Connection) => connection.execute('call outdated(?)', [errno])
      const held = await pool.acquire()
      await held.connection.execute('select 1')
      await call(held.connection)
      const before = await prepares(held.connection)
      await call(held.connection)
      t.equal(await prepares(held.connection), before, 'it is prepared once')
      await held.connection.query('set @fails = 1')
      t.same(await tries(1, () => call(held.connection)), [errno])
      await held.connection.query('set @fails = 0')
      await call(held.connection)
      t.equal(await prepares(held.connection), before + 1)
      await held.connection.execute('select 1')
      t.equal(await prepares(held.connection), before + 1, 'the others are what their borrower may hold')
      held.release()
      await pool.use(call)
      t.equal(pool.stats().created, 1, 'the connection is kept')
    })

    t.test(`${reset}: one by SQL PREPARE of the app's onConnect that fails with ${errno} is made anew`, async (t) => {
      const prepare = `prepare by_hand from 'call outdated(${errno})'`
      const onConnect = async (connection: Connection) => { await connection.query(prepare) }
      const { pool } = await poolOf(t, { reset, onConnect })
      const failed = await pool.use(async (connection) => {
        await connection.query('set @fails = 1')
        return await tries(1, () => connection.query('execute by_hand'))
      })
      t.same(failed, [errno])
      t.same(await tries(2, () => pool.use((connection) => connection.query('execute by_hand'))), [])
      t.equal(pool.stats().created, reset === 'session' ? 1 : 2)
    })
  }
}

// --- Transactions ----------------------------------------------------------------------------------------------------

/** A transaction on a connection of its own, undone at the end. */
async function begun (t: Teardown, { options = {}, mysql: more = {} }: { options?: Parameters<MysqlConnector['transactions']['begin']>[1], mysql?: MysqlOptions } = {}) {
  await admin.query('update account set sum = 100')
  const { backend, make } = await backendOf(t, more)
  const connection = await make()
  return { backend, connection, transaction: await backend.transactions.begin(connection, options, soon()) }
}

t.test('a transaction commits all or nothing', async (t) => {
  const { backend, connection, transaction } = await begun(t)
  t.equal(transaction.connection, connection)
  await connection.query('update account set sum = 90 where id = 1')
  t.equal(await sumOf(1), 100)
  await connection.execute('update account set sum = ? where id = 2', [110])
  await transaction.commit()
  t.strictSame([await sumOf(1), await sumOf(2)], [90, 110])
  const second = await backend.transactions.begin(connection, {}, soon())
  await connection.query('update account set sum = 0')
  await second.rollback()
  t.strictSame([await sumOf(1), await sumOf(2)], [90, 110])
  await second.rollback()
  t.equal(await value(connection, 'select @@in_transaction'), 0)
})

t.test('plain statements need two round trips of ours, others a savepoint', async (t) => {
  const { connection, transaction } = await begun(t)
  const { stream } = coreOf(connection)
  await connection.query('select 1')
  let before = stream.bytesWritten
  await transaction.commit()
  t.equal(stream.bytesWritten - before, 'COMMIT AND NO CHAIN NO RELEASE'.length + 5)
  const other = await begun(t)
  before = coreOf(other.connection).stream.bytesWritten
  await other.connection.query('set @a = 1')
  const mark = 'SAVEPOINT `fastify_pool_0123456789abcdef`'
  t.equal(coreOf(other.connection).stream.bytesWritten - before, mark.length + 5 + 'set @a = 1'.length + 5)
  await other.transaction.commit()
})

t.test('levels and read only hold for one transaction', async (t) => {
  const { backend, connection, transaction } =
    await begun(t, { options: { isolation: 'serializable', readOnly: true } })
  await t.rejects(connection.query('update account set sum = 0'), failure(1792))
  await transaction.rollback()
  const seen = async (isolation?: 'read uncommitted' | 'read committed') => {
    const transaction = await backend.transactions.begin(connection, { isolation }, soon())
    await connection.query('select * from account')
    await admin.query('update account set sum = sum + 1 where id = 1')
    const [sum] = await row(connection, 'select sum - 100 from account where id = 1')
    await transaction.commit()
    await admin.query('update account set sum = 100')
    return sum
  }
  t.strictSame([await seen(), await seen('read committed'), await seen('read uncommitted'), await seen()], [0, 1, 1, 0])
  t.strictSame(backend.transactions.isolation,
    ['read uncommitted', 'read committed', 'repeatable read', 'serializable'])
  t.equal(backend.transactions.readOnly, true)
})

const lies: Record<string, (connection: Connection) => Promise<unknown>> = {
  'DDL committed it': (connection) => connection.query('create or replace table scrap (id int)'),
  'DDL that failed committed it': (connection) =>
    t.rejects(connection.query('create table account (id int)'), failure(1050)),
  'the borrower committed it': (connection) => connection.commit(),
  'the borrower rolled it back': (connection) => connection.rollback(),
  'the borrower committed it by a prepared statement': (connection) => connection.execute('commit'),
  'COMMIT AND CHAIN began another': (connection) => connection.query('commit and chain'),
  'the borrower began another': async (connection) => {
    await connection.beginTransaction()
    await connection.query('update account set sum = 1 where id = 2')
  },
  'the borrower began another, hidden in a comment': (connection) => connection.query('/*!start*/ transaction'),
  'a procedure committed it and began another': (connection) => connection.query('call again()'),
  'reset() ended it': resetBy,
  'a deadlock ended it': (connection) => deadlock(connection),
  'a deadlock ended it, and plain statements followed': async (connection) => {
    await deadlock(connection)
    await connection.query('select 1')
  },
  'a deadlock ended it, and the borrower began another': async (connection) => {
    await deadlock(connection)
    await connection.beginTransaction()
    await connection.query('select * from account')
  },
  'a deadlock ended it, and a savepoint followed': async (connection) => {
    await deadlock(connection)
    await connection.query('savepoint mine')
    await connection.query('select * from account')
  },
  'with autocommit = 0 a deadlock ended it, and another began by itself': async (connection) => {
    await connection.query('set autocommit = 0')
    await deadlock(connection)
    await connection.query('update account set sum = 1 where id = 2')
  },
}

/** The connection's transaction is the one that InnoDB gives up: it has written less. */
async function deadlock (connection: Connection): Promise<void> {
  const other = await plainConnection(t)
  await other.beginTransaction()
  await other.query('insert into word (text) select \'x\' from seq_1_to_50')
  await other.query('update account set note = \'other\' where id = 2')
  await connection.query('update account set note = \'mine\' where id = 1')
  const waits = other.query('update account set note = \'other\' where id = 1')
  await until(async () => {
    // What it shows is as old as the last time that nobody had asked for 0.1 s.
    await admin.query('do sleep(0.12)')
    return Number(await value(admin,
      'select count(*) from information_schema.innodb_trx where trx_state = \'LOCK WAIT\'')) > 0
  })
  const error = await connection.query('update account set note = \'mine\' where id = 2')
    .then(() => undefined, (error: unknown) => error)
  t.match(error, { errno: 1213 })
  t.equal((await mysql({})).transactions.isTransient(error), true)
  await waits
  await other.rollback()
  other.destroy()
}

await admin.query('create procedure again() begin commit; start transaction; end')
for (const [what, lie] of Object.entries(lies)) {
  t.test(`a commit is refused where ${what}`, async (t) => {
    const { backend, connection, transaction } = await begun(t)
    await connection.query('select 1')
    await lie(connection)
    await t.rejects(transaction.commit(), { code: 'FST_POOL_TRANSACTION_ENDED' })
    await transaction.rollback()
    t.equal(await sumOf(2), 100, 'nor is what came after committed')
    t.equal(await value(connection, 'select @@in_transaction'), 0)
    t.equal(backend.isBroken!(connection), false)
  })
}

t.test('a commit waits for what was not waited for, and sees what it does', async (t) => {
  const { connection, transaction } = await begun(t)
  Promise.allSettled([connection.query('update account set sum = 1 where id = 1'), connection.query('do sleep(0.01)'),
    connection.commit()])
  await t.rejects(transaction.commit(), { code: 'FST_POOL_TRANSACTION_ENDED' })
})

t.test('an error that undoes one statement only leaves the transaction, which commits', async (t) => {
  for (const sql of ['insert into account values (1, 1, \'\')', 'nonsense']) {
    const { connection, transaction } = await begun(t)
    await connection.query('update account set sum = 95 where id = 1')
    await t.rejects(connection.query(sql))
    await transaction.commit()
    t.equal(await sumOf(1), 95)
  }
})

t.test('a lock wait timeout leaves the transaction, is not transient, and where it ends the transaction the commit is refused', needsOwn(server), async (t) => {
  const wait = async (url: string) => {
    const other = await plainConnection(t, url)
    await other.query('create table if not exists account (id int primary key, sum int) engine=innodb')
    await other.query('replace into account (id, sum) values (1, 100), (2, 100)')
    await other.beginTransaction()
    await other.query('select * from account where id = 2 for update')
    const { backend, make } = await backendOf(t, { url })
    const connection = await make()
    await connection.query('set innodb_lock_wait_timeout = 1')
    const transaction = await backend.transactions.begin(connection, {}, soon())
    await connection.query('update account set sum = 90 where id = 1')
    const error = await connection.query('update account set sum = 0 where id = 2')
      .then(() => undefined, (error: unknown) => error)
    t.match(error, { errno: 1205 })
    t.equal(backend.transactions.isTransient(error), false)
    return transaction
  }
  await (await wait(server.url)).commit()
  t.equal(await sumOf(1), 90)
  const own = await startMariadb(t, { args: ['--innodb-rollback-on-timeout=1'] })
  await t.rejects((await wait(own.url)).commit(), { code: 'FST_POOL_TRANSACTION_ENDED' })
})

t.test('with several statements in one text, and with autocommit off, a commit is as sure', async (t) => {
  for (const sql of ['select 1; commit; start transaction', 'select 1; select 2']) {
    const { connection, transaction } = await begun(t, { mysql: { connection: { multipleStatements: true } } })
    await connection.query(sql)
    if (sql.includes('commit')) await t.rejects(transaction.commit(), { code: 'FST_POOL_TRANSACTION_ENDED' })
    else await transaction.commit()
  }
  const { backend, make } = await backendOf(t)
  const connection = await make()
  await connection.query('set autocommit = 0')
  const transaction = await backend.transactions.begin(connection, {}, soon())
  await deadlock(connection)
  await connection.query('update account set sum = 1 where id = 2')
  await t.rejects(transaction.commit(), { code: 'FST_POOL_TRANSACTION_ENDED' })
  await transaction.rollback()
  await connection.query('select * from account')
  await t.rejects(backend.transactions.begin(connection, {}, soon()), /open on this connection already/)
})

t.test('a lost connection is no commit', async (t) => {
  const { connection, transaction } = await begun(t)
  await admin.query(`kill ${idOf(connection)}`)
  await t.rejects(transaction.commit())
  await t.rejects(transaction.rollback())
  const other = await begun(t)
  const running = other.connection.query('select sleep(1)')
  const queued = other.connection.query('set @a = 1')
  coreOf(other.connection).stream.destroy()
  await t.rejects(Promise.all([running, queued]), { code: 'PROTOCOL_CONNECTION_LOST' })
  await t.rejects(other.transaction.commit())
})

t.test('savepoints undo their part, and are refused with their transaction', async (t) => {
  const { connection, transaction } = await begun(t)
  await connection.query('update account set sum = 90 where id = 1')
  const kept = await transaction.savepoint!('a')
  await connection.query('update account set sum = 80 where id = 1')
  await kept.commit()
  const undone = await transaction.savepoint!('b')
  t.equal(undone.connection, connection)
  await connection.query('update account set sum = 70 where id = 1')
  const inner = await undone.savepoint!('c')
  await connection.query('update account set sum = 60 where id = 1')
  await inner.rollback()
  t.equal(await value(connection, 'select sum from account where id = 1'), 70)
  await undone.rollback()
  await transaction.commit()
  t.equal(await sumOf(1), 80)

  const second = await begun(t)
  const gone = await second.transaction.savepoint!('a')
  const alsoGone = await gone.savepoint!('b')
  await deadlock(second.connection)
  await alsoGone.rollback()
  await t.rejects(gone.commit(), { code: 'FST_POOL_TRANSACTION_ENDED', cause: { errno: 1305 } })
  await gone.rollback()
  await t.rejects(second.transaction.commit(), { code: 'FST_POOL_TRANSACTION_ENDED' })
  await second.transaction.rollback()
  const lost = await begun(t)
  const savepoint = await lost.transaction.savepoint!('a')
  coreOf(lost.connection).stream.destroy()
  await t.rejects(savepoint.commit())
  await t.rejects(savepoint.rollback())
})

t.test('a savepoint that the borrower ended with another one: neither it nor the whole is committed', async (t) => {
  for (const how of ['release savepoint', 'rollback to']) {
    const { connection, transaction } = await begun(t)
    await connection.query('savepoint mine')
    const inner = await transaction.savepoint!('a')
    await connection.query('update account set sum = 60 where id = 1')
    await connection.query(`${how} mine`)
    const gone = { code: 'FST_POOL_TRANSACTION_ENDED', cause: { errno: 1305 } }
    if (how === 'rollback to') await t.rejects(inner.commit(), gone)
    await inner.rollback()
    await t.rejects(transaction.commit(), { code: 'FST_POOL_TRANSACTION_ENDED' })
    await transaction.rollback()
    t.equal(await sumOf(1), 100)
  }
  const { connection, transaction } = await begun(t)
  const inner = await transaction.savepoint!('a')
  await connection.query('update account set sum = 60 where id = 1')
  await t.rejects(connection.query('release savepoint a'), failure(1305), 'its name is not for a borrower')
  await inner.rollback()
  await transaction.commit()
  t.equal(await sumOf(1), 100)
})

t.test('what is sent behind the call of commit is no part of it', async (t) => {
  const { connection, transaction } = await begun(t)
  await connection.query('update account set sum = 90 where id = 1')
  // Plain, so that nothing has marked the transaction yet when the commit is called.
  const running = connection.query('select sleep(0.01)')
  const commit = transaction.commit()
  const behind = connection.query('set @a = 1')
  await Promise.all([running, commit, behind])
  t.equal(await sumOf(1), 90)
})

t.test('a begin that fails in the middle leaves nothing open', async (t) => {
  const { backend, connection, transaction } = await begun(t, { mysql: { connection: { multipleStatements: true } } })
  await transaction.rollback()
  const core = coreOf(connection) as unknown as { writePacket (packet: { buffer: Buffer }): void }
  const { writePacket } = core
  core.writePacket = (packet) => {
    const at = packet.buffer.indexOf('SAVEPOINT')
    if (at >= 0) packet.buffer.write('NONSENSE!', at)
    writePacket.call(core, packet)
  }
  await t.rejects(backend.transactions.begin(connection, {}, soon()), failure(1064))
  core.writePacket = writePacket
  t.equal(await value(connection, 'select @@in_transaction'), 0)
})

t.test('what is looked for in a text takes as long as the text is, and not its square', async (t) => {
  const { connection, transaction } = await begun(t)
  /** What our own part costs: the text is not sent. */
  const cost = (text: string) => {
    const before = process.cpuUsage()
    const command = connection.query(text)
    const { user, system } = process.cpuUsage(before)
    return command.then(() => user + system, () => user + system)
  }
  const hostile: Array<(n: number) => string> = [
    (n) => `commit${' '.repeat(n)}x`, (n) => `rollback ${' '.repeat(n)};${' '.repeat(n)}x`,
    (n) => `start${' '.repeat(n)}x`, (n) => `${' '.repeat(n)}x`, (n) => ' ;'.repeat(n),
    (n) => `begin${'\n\t '.repeat(n)};;`, (n) => 'commit;'.repeat(n),
    (n) => `select${'\u00a0'.repeat(n)}x`, (n) => 'start transaction '.repeat(n),
  ]
  for (const text of hostile) {
    const [once, twice] = [await cost(text(60_000)), await cost(text(240_000))]
    // Quadratic is 16 times as much, and seconds of it. What is too short to be measured is let go.
    t.ok(twice < 8 * once + 100_000, `${JSON.stringify(text(2))}: ${once} us, ${twice} us`)
  }
  await transaction.rollback()
})

t.test('only what can be run again is transient', async (t) => {
  const { isTransient } = (await mysql({})).transactions
  for (const errno of [1020, 1213,
    3101]) t.equal(isTransient(new Error('wrapped', { cause: Object.assign(new Error('x'), { errno }) })), true)
  for (const error of [undefined, null, 'x', new Error('x'),
    Object.assign(new Error('x'), { errno: 1205 })]) t.equal(isTransient(error), false)
})

t.test('a transaction that is left open is undone by the pool', async (t) => {
  const { pool } = await poolOf(t)
  await admin.query('update account set sum = 100')
  await t.rejects(pool.transaction(async (connection) => {
    await connection.query('update account set sum = 0')
    throw new Error('no')
  }), /no/)
  t.equal(await sumOf(1), 100)
  t.equal(await pool.transaction(async (connection) => {
    await connection.query('update account set sum = 99 where id = 1')
    return 'done'
  }), 'done')
  t.equal(await sumOf(1), 99)
})

// --- Options ---------------------------------------------------------------------------------------------------------

t.test('options that would do the pool\'s work, or stand in the wrong place, are refused by name', async (t) => {
  const refused: Array<[options: object, message: RegExp]> = [
    [{ connection: { connectionLimit: 5 } },
      /connection\.connectionLimit is a number: expected nothing here: use the option max/],
    [{ connection: { uri: 'mysql://u:hush@h' } },
      /connection\.uri is a text: expected nothing here: use the option url/],
    [{ waitForConnections: true }, /waitForConnections .* callers wait in the pool/],
    [{ connection: { stream: {} } }, /connection\.stream .* a function/],
    [{ connection: { host: 'h' } }, /connection\.host .* use the option host/],
    [{ user: 'u' }, /option user is 'u': expected it inside of connection: \{ user \}/],
    [{ password: 'hush' }, /option password is a text: expected it inside of connection/],
    [{ url: 'mysql://h', host: 'h' }, /option host is 'h': expected no host next to url/],
    [{ url: 'mysql://h', port: 1 }, /option port is 1: expected no port next to url/],
    [{ port: 1, connection: { socketPath: '/s' } }, /no port next to connection\.socketPath/],
    [{ url: 'postgres://u:hush@h/d' }, /option url is a text: expected mysql:/],
    [{ url: 'mysql://u:hush@h:port' }, /option url is a text: expected mysql:/],
    [{ url: 5 }, /option url is a number/],
    [{ url: 'mysql://u:hush%@h' }, /percent-encoded/],
    [{ url: 'mysql://u:hush@h/d?connectionLimit=5' }, /without other options than charset, timezone and ssl/],
    [{ url: 'mysql://u:hush@h/d?ssl={hush' }, /ssl is the name of a profile, or an object as JSON/],
  ]
  for (const [options, message] of refused) {
    const error = await mysql(options).then(() => undefined, (error: Error) => error)
    t.match(error, { code: 'FST_POOL_BAD_OPTIONS', message })
    t.notMatch(error!.message, /hush/)
  }
})

t.test('all the ways to say where the server is lead there, and the options are left as they were', async (t) => {
  const { host, port } = server
  const login = { user: 'pool', password: 'secret' }
  const ssl = { rejectUnauthorized: false }
  const ways: MysqlOptions[] = [
    { host, port, database: 'test', connection: login },
    { url: `MARIADB://pool:se%63ret@${host}:${port}/te%73t?charset=utf8mb4&timezone=Z` },
    { url: `mysql://${host}:${port}/other`, database: 'test', connection: login },
  ]
  for (const options of ways) {
    const before = structuredClone(options)
    const made = await backendOf(t, options, {})
    t.strictSame(await row(await made.make(), 'select database(), user()'), ['test', 'pool@127.0.0.1'])
    t.strictSame(options, before)
  }
  const secure = await mysql({
    url: `mysql://pool:secret@${host}:${port}/test?ssl={"minVersion":"TLSv1.3"}`, connection: { compress: false },
  })
  const profile = await mysql({ url: `mysql://pool:secret@[::1]:${port}/test?ssl=Amazon%20RDS`, connection: { ssl } })
  t.strictSame(ssl, { rejectUnauthorized: false })
  await t.rejects(secure.create(soon()), { code: /HANDSHAKE_NO_SSL_SUPPORT/ })
  await t.rejects(profile.create(soon()), { code: /ECONNREFUSED|EADDRNOTAVAIL|EAFNOSUPPORT/ })
})
