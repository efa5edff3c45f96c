import { finished, pipeline } from 'node:stream/promises'
import { Readable, type Writable } from 'node:stream'
import pg from 'pg'
import type { Client } from 'pg'
import copy from 'pg-copy-streams'
import QueryStream from 'pg-query-stream'
import t from 'tap'
import Fastify from 'fastify'
import fastifyPool from '../../index.js'
import { mongodb } from '../../lib/backends/mongodb/connector.js'
import { mysql } from '../../lib/backends/mysql/connector.js'
import { postgresql } from '../../lib/backends/postgresql/connector.js'
import type { PostgresOptions } from '../../lib/backends/postgresql/options.js'
import { redis } from '../../lib/backends/redis/connector.js'
import { sqlite } from '../../lib/backends/sqlite/connector.js'
import { Pool } from '../../lib/pool/pool.js'
import type { EngineOptions } from '../../types/options.js'
import { FakeConnector } from '../support/fake-connector.js'
import { findPgbouncer } from '../support/find.mjs'
import '../support/pg.js'
import { startProxy } from '../support/proxy.js'
import { startPgBouncer, startPostgres, type Teardown } from '../support/services.js'
import { event, until } from '../support/until.js'

// Mode 'joined'. What it undoes, the contract shows (contract-postgresql.test.ts); here is what else the mode may cost:
// the next borrower's statement is on its way before the reset is known to have worked.

const server = await startPostgres(t)
const admin = await client(t)
const ours = `joined_${process.pid}`
await admin.query(`CREATE TABLE ${ours} (x int); CREATE TABLE ${ours}_late (x int UNIQUE DEFERRABLE INITIALLY DEFERRED)`)
t.teardown(() => admin.query(`DROP TABLE ${ours}, ${ours}_late`))

async function client (t: Teardown): Promise<Client> {
  const made = new pg.Client({ connectionString: server.url })
  await made.connect()
  t.teardown(() => made.end())
  return made
}

async function value (c: Client, sql: string): Promise<unknown> {
  const { rows } = await c.query<unknown[]>({ text: sql, rowMode: 'array' })
  return rows[0]?.[0]
}
const pidOf = async (c: Client) => Number(await value(c, 'SELECT pg_backend_pid()'))
const rows = async () => Number(await value(admin, `SELECT count(*) FROM ${ours}`))
const insert = `INSERT INTO ${ours} VALUES (1)`
/** Statements of both protocols: one message, and several that end in a Sync. */
const statements: Array<[how: string, run: (c: Client) => Promise<unknown>]> = [
  ['a plain statement', (c) => c.query(insert)],
  ['a statement with values', (c) => c.query(`INSERT INTO ${ours} VALUES ($1)`, [1])],
  ['a named statement', (c) => c.query({ name: 'insert', text: `INSERT INTO ${ours} VALUES ($1)`, values: [1] })],
  ['statements at once', async (c) => {
    const all = await Promise.allSettled([c.query(insert), c.query(insert)])
    for (const one of all) if (one.status === 'rejected') throw one.reason
  }],
  ['a query stream', async (c) => {
    const stream = c.query(new QueryStream(`${insert} RETURNING x`))
    stream.resume()
    await finished(stream)
  }],
  ['COPY', (c) => pipeline(Readable.from(['1\n']), c.query(copy.from(`COPY ${ours} FROM STDIN`)))],
]

/**
 * Older versions of pg write a statement with values in pieces. Then a server that ends the session may reset the
 * connection before its last words are read: the statement does not run, but the reason is lost.
 */
const writesPieces = await (async () => {
  const c = await client(t)
  const writes = writesOf(c)
  await c.query('SELECT $1', [1])
  return writes.length > 1
})()

interface Place { pool: Pool<Client>, errors: Array<{ phase: string, error: Error }> }

/** A pool of one: who comes next gets the same connection. */
async function open (t: Teardown, options: PostgresOptions = {}, engine: EngineOptions<Client> = {}): Promise<Place> {
  const { resetTimeout = 10_000 } = engine
  const backend = await postgresql({ url: server.url, reset: 'joined', resetTimeout, ...options })
  const pool = new Pool<Client>(backend, { max: 1, reset: 'joined', acquireTimeout: 10_000, ...engine })
  const errors: Place['errors'] = []
  pool.on('error', ({ phase, error }) => { errors.push({ phase, error }) })
  t.teardown(() => pool.close())
  return { pool, errors }
}

/** What a socket writes from now on, one entry for each write to the system. */
function writesOf (c: Client, change = (bytes: Buffer) => bytes): string[] {
  const { stream } = (c as unknown as { connection: { stream: Writable } }).connection
  const [write, writev] = [stream._write.bind(stream), stream._writev!.bind(stream)]
  const seen: string[] = []
  stream._write = (chunk: Buffer, encoding, done) => {
    seen.push(chunk.toString('latin1'))
    write(change(chunk), encoding, done)
  }
  stream._writev = (chunks, done) => {
    seen.push(chunks.map(({ chunk }) => (chunk as Buffer).toString('latin1')).join(''))
    writev(chunks.map((one) => ({ ...one, chunk: change(one.chunk as Buffer) })), done)
  }
  return seen
}

const nextTurn = () => new Promise<void>((resolve) => { setImmediate(resolve) })
const failureOf = (work: Promise<unknown>) => work.then(() => undefined, (error: unknown) => error as Error)

/** Leaves a temp table that another session holds on to: DISCARD TEMP waits until `letGo`. */
async function leaveLocked (t: Teardown, pool: Pool<Client>, sql = 'SELECT 1') {
  const other = await client(t)
  const pid = await pool.use(async (c) => {
    await c.query('CREATE TEMP TABLE held (x int)')
    const schema = await value(c, 'SELECT nspname FROM pg_namespace WHERE oid = pg_my_temp_schema()')
    await other.query(`BEGIN; DROP TABLE ${String(schema)}.held`)
    await c.query(sql)
    return await pidOf(c)
  })
  /** The transaction that waits for the lock. */
  const waiting = () => value(admin, `SELECT virtualtransaction FROM pg_locks WHERE pid = ${pid} AND NOT granted`)
  const waits = () => until(waiting, { what: 'the reset waits for the lock' })
  /** It still waits, but with a transaction of its end. */
  const ends = (reset: unknown) => until(async () => ![reset, undefined].includes(await waiting()),
    { what: 'the session ends' })
  /** The session too wants to drop its tables before it ends. */
  const letGo = async () => {
    await until(() => pool.stats().closing === 0, { what: 'the server was asked to cancel' })
    await other.query('ROLLBACK')
    await until(async () => await value(admin, `SELECT count(*) FROM pg_stat_activity WHERE pid = ${pid}`) === '0',
      { what: 'the session is gone' })
  }
  return { pid, waits, ends, letGo }
}

// --- How it travels --------------------------------------------------------------------------------------------------

t.test('it goes out with the next statement, in one write', async (t) => {
  const { pool, errors } = await open(t)
  for (const [how, run] of statements.slice(0, 4)) {
    const lease = await pool.acquire()
    const pid = await pidOf(lease.connection)
    await lease.connection.query("SELECT set_config('app.mine', 'yes', false)")
    const writes = writesOf(lease.connection)
    lease.release()
    const next = await pool.acquire()
    t.equal(writes.length, 0, 'nothing is sent at the return')
    const done = run(next.connection)
    await nextTurn()
    if (!writesPieces) t.equal(writes.length, 1, how)
    t.match(writes[0], /SET exit_on_error = on.*BEGIN.*COMMIT; RESET ALL.*INSERT/s)
    await done
    t.equal(await value(next.connection, "SELECT coalesce(current_setting('app.mine', true), '')"), '')
    t.equal(await pidOf(next.connection), pid)
    next.release()
  }
  t.same(errors, [])
})

t.test('where nobody writes it goes out in the next turn: locks, LISTEN and temp tables are given up', async (t) => {
  const { pool } = await open(t)
  const lease = await pool.acquire()
  const c = lease.connection
  const pid = await pidOf(c)
  await c.query('SELECT pg_advisory_lock(815); LISTEN news; CREATE TEMP TABLE mine (x int)')
  const writes = writesOf(c)
  const locks = () => value(admin, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = ${pid}`)
  t.equal(await locks(), '1')
  writes.length = 0
  lease.release()
  await nextTurn()
  t.match(writes, [/RESET ALL/])
  await until(async () => await locks() === '0', { what: 'the lock is given up' })
  await pool.use(async (c) => {
    t.equal(await value(c, 'SELECT count(*) FROM pg_listening_channels()'), '0')
    t.equal(await value(c, "SELECT to_regclass('pg_temp.mine')"), null)
    t.equal(await pidOf(c), pid)
  })
})

t.test('who sends nothing costs no reset, and who comes in between changes nothing', async (t) => {
  const { pool } = await open(t)
  const lease = await pool.acquire()
  await lease.connection.query("SELECT set_config('app.mine', 'yes', false)")
  const writes = writesOf(lease.connection)
  lease.release()
  for (let i = 0; i < 3; i++) await pool.use(() => {})
  await nextTurn()
  t.equal(writes.length, 1)
  for (let i = 0; i < 3; i++) await pool.use(() => {})
  await nextTurn()
  t.equal(writes.length, 1)
  await pool.use(async (c) => t.equal(await value(c, "SELECT current_setting('app.mine', true)"), ''))
})

t.test('the first statement behind it has a transaction of its own', async (t) => {
  const { pool } = await open(t)
  for (const sql of [`VACUUM ${ours}`, 'BEGIN', 'SELECT 1']) {
    await pool.use((c) => c.query("SELECT set_config('app.mine', 'yes', false)"))
    await pool.use(async (c) => {
      await c.query(sql)
      t.equal(c.getTransactionStatus(), sql === 'BEGIN' ? 'T' : 'I')
    })
  }
  await pool.use(async (c) => t.equal(await value(c, 'SELECT now() = statement_timestamp()'), true))
})

t.test('a transaction of the pool begins behind it, in one write, and commits only what is its own', async (t) => {
  const { pool } = await open(t)
  const before = await rows()
  await pool.use(async (c) => {
    await c.query(`BEGIN; ${insert}`)
  })
  const writes = await pool.use(async (c) => {
    await c.query('SET work_mem = 1234')
    return writesOf(c)
  })
  await pool.transaction(async (c) => {
    t.match(writes, [/RESET ALL.*BEGIN/s])
    t.not(await value(c, 'SHOW work_mem'), '1234kB')
    await c.query(insert)
  })
  t.equal(await rows(), before + 1, 'what was left open was rolled back')
})

t.test('onConnect runs again behind it, in the same write, and before the next borrower', async (t) => {
  let runs = 0
  const { pool } = await open(t, {}, {
    onConnect: async (c) => {
      runs++
      await c.query("SET app.who = 'everybody'")
    },
  })
  const writes = await pool.use(async (c) => {
    await c.query("SET app.who = 'me'; SET app.other = 'me'")
    return writesOf(c)
  })
  await pool.use(async (c) => {
    t.match(writes, [/RESET ALL.*SET app\.who = 'everybody'/s])
    t.equal(runs, 2)
    t.equal(await value(c, 'SHOW app.who'), 'everybody')
    t.equal(await value(c, "SELECT current_setting('app.other', true)"), '')
  })
})

t.test('what the server still says to the last borrower is not told to the next one', async (t) => {
  const { pool } = await open(t)
  const lease = await pool.acquire()
  await lease.connection.query('LISTEN news')
  lease.release()
  const next = await pool.acquire()
  const c = next.connection
  const heard: string[] = []
  for (const name of ['notification', 'notice'] as const) c.on(name as 'notice', () => { heard.push(name) })
  const { connection: wire } = c as unknown as { connection: NodeJS.EventEmitter }
  wire.emit('notification', { channel: 'news' })
  wire.emit('notice', { message: 'for another one' })
  t.same(heard, [])
  await c.query("LISTEN mine; DO $$ BEGIN RAISE NOTICE 'mine'; END $$; NOTIFY mine")
  await until(() => heard.length === 2)
  next.release()
})

for (const [how, run] of statements) {
  t.test(`${how} is answered as always behind it, and again in the lease that follows`, async (t) => {
    const { pool, errors } = await open(t)
    const before = await rows()
    const pids = new Set<number>()
    for (let round = 0; round < 3; round++) {
      await pool.use(async (c) => {
        await run(c)
        pids.add(await pidOf(c))
      })
      if (round === 1) await nextTurn()
    }
    t.equal(await rows(), before + (how === 'statements at once' ? 6 : 3))
    t.equal(pids.size, 1)
    t.same(errors, [])
  })
}

t.test('a query that reads the socket by itself gets all of its own answer, and nothing else', async (t) => {
  const { pool, errors } = await open(t)
  const read = async (stream: Readable) => (await stream.toArray()).join('')
  const text = 'COPY (SELECT generate_series(1, 3)) TO STDOUT'
  await pool.use((c) => c.query("SET app.who = 'me'"))
  await pool.use(async (c) => t.equal(await read(c.query(copy.to(text))), '1\n2\n3\n', 'not yet written'))
  await nextTurn()
  await pool.use(async (c) => t.equal(await read(c.query(copy.to(text))), '1\n2\n3\n', 'written, not answered'))
  await pool.use(async (c) => {
    const before = c.query('SELECT 1 AS one')
    t.equal(await read(c.query(copy.to(text))), '1\n2\n3\n', 'behind another statement')
    t.same((await before).rows, [{ one: 1 }])
  })
  t.same(errors, [])
  const error = await failureOf(pool.use((c) =>
    // Nobody can know of it.
    read(Object.getPrototypeOf(c).query.call(c, copy.to(text)) as Readable)))
  t.match(error, { code: 'FST_POOL_RESET_FAILED', message: /reads the socket by itself/ })
})

// --- Where it fails --------------------------------------------------------------------------------------------------

for (const [how, run] of statements) {
  t.test(`a reset that is cancelled ends the session: ${how} behind it rejects, and did not run`, async (t) => {
    const { pool, errors } = await open(t)
    const before = await rows()
    const { pid, waits, letGo } = await leaveLocked(t, pool)
    const failed = failureOf(pool.use(run))
    await waits()
    await admin.query(`SELECT pg_cancel_backend(${pid})`)
    t.match(await failed, { code: 'FST_POOL_RESET_FAILED', cause: { code: '57014' } })
    await letGo()
    t.equal(await rows(), before)
    t.match(errors, [{ phase: 'reset', error: { code: 'FST_POOL_RESET_FAILED' } }])
    t.equal(pool.stats().destroyed.error, 1)
    await pool.use(async (c) => t.not(await pidOf(c), pid, 'the pool goes on'))
  })

  t.test(`a reset that the borrower's own timeout ends, ends the session: ${how} behind it did not run`, async (t) => {
    const { pool } = await open(t)
    const before = await rows()
    const { letGo } = await leaveLocked(t, pool, "SET lock_timeout = '50ms'")
    t.match(await failureOf(pool.use(run)), { code: 'FST_POOL_RESET_FAILED', cause: { code: '55P03' } })
    await letGo()
    t.equal(await rows(), before)
  })

  t.test(`a reset that is not answered in time is cancelled and cut: ${how} behind it did not run`, async (t) => {
    const { pool, errors } = await open(t, {}, { resetTimeout: 300 })
    const before = await rows()
    const { waits, ends, letGo } = await leaveLocked(t, pool)
    const lease = await pool.acquire()
    const failed = failureOf(run(lease.connection))
    const reset = await waits()
    t.match(await failed, { code: 'FST_POOL_RESET_FAILED', message: /not answered within 300 ms \(resetTimeout\)/ })
    // The borrower has not given it back.
    await ends(reset)
    await letGo()
    t.equal(await rows(), before)
    t.match(errors, [{ phase: 'reset' }])
    lease.release()
    await pool.use((c) => c.query('SELECT 1'))
  })

  t.test(`where the network swallows it, ${how} behind it rejects at resetTimeout, and did not run`, async (t) => {
    const proxy = await startProxy(t, server)
    const url = Object.assign(new URL(server.url), { port: String(proxy.port), hostname: proxy.host }).href
    const { pool } = await open(t, { url }, { resetTimeout: 200, destroyTimeout: 1000 })
    const before = await rows()
    const lease = await pool.acquire()
    await lease.connection.query("SET app.who = 'me'")
    proxy.blackHole()
    lease.release()
    t.match(await failureOf(pool.use(run)), { code: 'FST_POOL_RESET_FAILED' })
    await proxy.heal()
    await pool.use((c) => c.query('SELECT 1'))
    t.equal(await rows(), before)
  })

  // Each has as many bytes as what it takes the place of.
  for (const [what, from, to] of [
    ['before exit_on_error is set', 'exit_on_error = on', 'exit_on_errxr = on'],
    ['in the middle', 'pg_advisory_unlock_all', 'pg_advisory_unlock_xll'],
    ['in its commit', 'DISCARD SEQUENCES; DISCARD TEMP', `INSERT INTO ${ours}_late VALUES (1)`],
  ] as const) {
    t.test(`a reset that fails ${what}: ${how} behind it did not run`, async (t) => {
      const { pool, errors } = await open(t)
      await admin.query(`TRUNCATE ${ours}_late; INSERT INTO ${ours}_late VALUES (1)`)
      const before = await rows()
      await pool.use(async (c) => {
        await c.query("SET app.who = 'me'")
        writesOf(c, (bytes) => exchange(bytes, from, to))
      })
      const failed = await failureOf(pool.use(run))
      const isLost = writesPieces && failed?.message === 'Connection terminated unexpectedly'
      if (!isLost) t.match(failed, { code: 'FST_POOL_RESET_FAILED', cause: { code: /42704|42883|23505/ } })
      await pool.use((c) => c.query('SELECT 1'))
      t.equal(await rows(), before)
      t.match(errors, [{ phase: isLost ? 'death' : 'reset' }])
    })
  }
}

/** Puts one text in the place of another, and sets the length of the simple query that has it. */
function exchange (bytes: Buffer, from: string, to: string): Buffer {
  const at = bytes.indexOf(from)
  if (at < 0) return bytes
  const result = Buffer.concat([bytes.subarray(0, at), Buffer.from(to), bytes.subarray(at + from.length)])
  const begins = result.lastIndexOf('BEGIN ISOLATION', at) - 5
  if (begins >= 0) result.writeInt32BE(result.readInt32BE(begins + 1) + to.length - from.length, begins + 1)
  return result
}

t.test('a reset that fails while the connection is idle replaces it', async (t) => {
  const { pool } = await open(t, {}, { resetTimeout: 200 })
  const { pid, letGo } = await leaveLocked(t, pool)
  t.match(await event(pool, 'disconnect'), { reason: 'error', error: { code: 'FST_POOL_RESET_FAILED' } })
  await letGo()
  await pool.use(async (c) => t.not(await pidOf(c), pid))
})

t.test('a call that may be repeated is, since nothing of it ran', async (t) => {
  const { pool } = await open(t)
  const before = await rows()
  const { pid, waits, letGo } = await leaveLocked(t, pool)
  const done = pool.use((c) => c.query(insert), { retry: 1 })
  await waits()
  await admin.query(`SELECT pg_cancel_backend(${pid})`)
  await done
  await letGo()
  t.equal(await rows(), before + 1)
  const again = await leaveLocked(t, pool)
  const failed = failureOf(pool.transaction((c) => c.query(insert)))
  await again.waits()
  await admin.query(`SELECT pg_cancel_backend(${again.pid})`)
  t.match(await failed, { code: 'FST_POOL_RESET_FAILED' }, 'no commit of which nobody knows')
  await again.letGo()
  t.equal(await rows(), before + 1)
})

t.test('a death while it is ahead is a death like any other', async (t) => {
  const { pool } = await open(t)
  const before = await rows()
  const { pid, waits, letGo } = await leaveLocked(t, pool)
  const failed = failureOf(pool.use((c) => c.query(insert)))
  await waits()
  await admin.query(`SELECT pg_terminate_backend(${pid})`)
  t.match(await failed, { code: '57P01' }, 'the server\'s own error')
  await letGo()
  await until(() => pool.stats().destroyed.error === 1, { what: 'it is destroyed' })
  t.equal(await rows(), before)
  const lease = await pool.acquire()
  const cut = (lease.connection as unknown as { connection: { stream: { destroy (): void } } }).connection.stream
  await lease.connection.query("SET app.who = 'me'")
  lease.release()
  const next = await pool.acquire()
  cut.destroy()
  t.match(await failureOf(next.connection.query(insert)), { message: /^Connection terminated|not queryable/ })
  next.release()
  await pool.use((c) => c.query('SELECT 1'))
  t.equal(await rows(), before)
})

t.test('an event loop that stands still for longer than resetTimeout cuts nothing', async (t) => {
  // The proxy stands still too, and needs some turns to hand on what is sent.
  const proxy = await startProxy(t, server)
  const url = Object.assign(new URL(server.url), { port: String(proxy.port), hostname: proxy.host }).href
  const { pool, errors } = await open(t, { url }, { resetTimeout: 150 })
  const pid = await pool.use(async (c) => {
    await c.query("SET app.who = 'me'")
    return await pidOf(c)
  })
  const next = pool.use(pidOf)
  await nextTurn()
  const end = performance.now() + 400
  while (performance.now() < end) { /* Nothing else can run. */ }
  t.equal(await next, pid)
  t.same(errors, [])
})

t.test('a connection that is destroyed with a reset ahead of it ends in good order', async (t) => {
  const { pool, errors } = await open(t, {}, { maxUses: 1 })
  for (let i = 0; i < 3; i++) await pool.use((c) => c.query("SET app.who = 'me'"))
  const lease = await pool.acquire()
  await lease.connection.query("SET app.who = 'me'")
  lease.release()
  await pool.close()
  t.same(errors, [])
})

// --- Where it can not be ---------------------------------------------------------------------------------------------

t.test('behind PgBouncer it is refused, whatever its mode', { skip: findPgbouncer() === undefined && !process.env.CI && 'no pgbouncer' }, async (t) => {
  for (const mode of ['transaction', 'session'] as const) {
    const bouncer = (await startPgBouncer(t, server, { mode }))!
    const { pool } = await open(t, { url: bouncer.url })
    const refusal = { code: 'FST_POOL_BAD_OPTIONS', message: /option reset is 'joined'.*'transaction'.*PgBouncer/ }
    await t.rejects(pool.open(), refusal)
    const app = Fastify()
    await t.rejects(async () => {
      await app.register(fastifyPool, { backend: 'postgresql', url: bouncer.url, reset: 'joined' })
    }, refusal)
    await app.close()
  }
})

t.test('a server that does not know exit_on_error is refused', async (t) => {
  for (const answer of ["current_setting('exit_on_err', true)", 'no_such_function()']) {
    class Other extends pg.Client {
      override query (...args: never[]): never {
        const [query] = args as unknown as [{ text: string }]
        const text = query.text.replace("current_setting('exit_on_error', true)", answer)
        return (super.query as (...args: unknown[]) => never)({ ...query, text }) as never
      }
    }
    const { pool } = await open(t, { driver: { Client: Other } })
    await t.rejects(pool.open(), {
      code: 'FST_POOL_BAD_OPTIONS', message: /option reset is 'joined': expected 'session', since this server .*exit_on_error/,
    })
  }
})

t.test('other backends refuse it by name', async (t) => {
  const refusal = (path: string) => ({
    code: 'FST_POOL_BAD_OPTIONS',
    message: `option ${path} is 'joined': expected 'session', 'transaction' or 'none', since 'joined' is for postgresql alone`,
  })
  const options = { reset: 'joined' } as never
  for (const [backend, url] of Object.entries({
    mysql: 'mysql://localhost', redis: 'redis://localhost', mongodb: 'mongodb://localhost', sqlite: ':memory:',
  })) {
    const app = Fastify()
    await t.rejects(async () => {
      await app.register(fastifyPool, { pools: { db: { backend, url, reset: 'joined' } } } as never)
    }, refusal('pools.db.reset'), backend)
    await app.close()
  }
  for (const make of [
    () => mysql(options), () => redis(options), () => sqlite({ url: ':memory:', ...options as object }),
    async () => new Pool(await mongodb({ url: 'mongodb://localhost' }), options),
    async () => new Pool(new FakeConnector(), options),
  ]) await t.rejects(async () => { await make() }, refusal('reset'))
})
