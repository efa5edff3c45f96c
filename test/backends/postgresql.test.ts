import { execFileSync } from 'node:child_process'
import { chmodSync, chownSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import type { AddressInfo, Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import pg from 'pg'
import type { Client } from 'pg'
import t from 'tap'
import { postgresql } from '../../lib/backends/postgresql/connector.js'
import type { PostgresConnector } from '../../lib/backends/postgresql/connector.js'
import type { PostgresOptions } from '../../lib/backends/postgresql/options.js'
import { Pool } from '../../lib/pool/pool.js'
import type { EngineOptions } from '../../types/options.js'
import type { DriverEvent, Transaction, TransactionOptions } from '../../types/connector.js'
import type { PoolEvents } from '../../types/pool.js'
import '../support/pg.js'
import { startProxy } from '../support/proxy.js'
import { needsOwn, startPostgres } from '../support/services.js'
import type { Teardown } from '../support/services.js'
import { needsGroup, startPostgresPair } from '../support/topologies.js'
import { event, until } from '../support/until.js'

const server = await startPostgres(t)
const admin = await client(t)
await admin.query("DROP TABLE IF EXISTS notes; CREATE TABLE notes (id serial PRIMARY KEY, text text UNIQUE DEFERRABLE INITIALLY DEFERRED, n int DEFAULT 0); INSERT INTO notes (text) VALUES ('one'), ('two')")
await admin.query('DROP ROLE IF EXISTS pool_app; CREATE ROLE pool_app')
t.teardown(() => admin.query('DROP TABLE notes; DROP ROLE pool_app'))

/** Only where something hangs is it ever reached. */
const soon = () => AbortSignal.timeout(10_000)
process.on('warning', (warning) => {
  if (warning.name === 'DeprecationWarning' && /pg@9/.test(warning.message)) t.fail(warning.message)
})

async function client (t: Teardown, url = server.url): Promise<Client> {
  const made = new pg.Client({ connectionString: url })
  made.on('error', () => { /* Whoever kills the server says so. */ })
  await made.connect()
  t.teardown(() => made.end())
  return made
}

let names = 0
const freshName = () => `test-${process.pid}-${names++}`

interface Place { pool: Pool<Client>, backend: PostgresConnector, name: string, errors: Error[] }

/** A pool of one, unless said otherwise: who comes next gets the same connection. */
async function open (t: Teardown, options: PostgresOptions = {}, engine: EngineOptions<Client> = {}): Promise<Place> {
  const { connection, reset = 'session', ...rest } = options
  const name = freshName()
  const where = rest.host === undefined ? { url: server.url } : { database: 'postgres' }
  const backend = await postgresql({
    ...where,
    ...rest,
    reset,
    connection: {
      application_name: name, ...rest.host === undefined ? {} : { user: 'postgres' }, ...connection,
    }
  })
  const pool = new Pool<Client>(backend, { name, max: 1, reset, acquireTimeout: 10_000, ...engine })
  const errors: Error[] = []
  pool.on('error', ({ error }) => { errors.push(error) })
  t.teardown(() => pool.close())
  return { pool, backend, name, errors }
}

async function value (c: Client, sql: string): Promise<unknown> {
  const { rows } = await c.query<unknown[]>({ text: sql, rowMode: 'array' })
  return rows[0]?.[0]
}
const pidOf = async (c: Client) => Number(await value(c, 'SELECT pg_backend_pid()'))
/** How many connections of that name the server has. */
const known = async (name: string) =>
  Number(await value(admin, `SELECT count(*) FROM pg_stat_activity WHERE application_name = '${name}'`))
const bytes = (c: Client) => (c.connection.stream as Socket).bytesWritten
const idle = (pool: Pool<Client>) =>
  until(() => pool.stats().idle === 1 && pool.stats().used === 0, { what: 'the connection is idle again' })

// --- Reset: session --------------------------------------------------------------------------------------------------

const setting = (name: string) => (c: Client) => value(c, `SELECT current_setting('${name}', true)`)
const count = (from: string) => (c: Client) => value(c, `SELECT count(*)::int FROM ${from}`)
const codeOf = (sql: string) => async (c: Client) => {
  try {
    return await value(c, sql)
  } catch (error) {
    return (error as { code: string }).code
  }
}

const leftovers: Array<[what: string, leave: string, look: (c: Client) => Promise<unknown>]> = [
  ['SET ROLE', 'SET ROLE pool_app', (c) => value(c, 'SELECT current_user')],
  ['session authorization', 'SET SESSION AUTHORIZATION pool_app', (c) => value(c, 'SELECT session_user')],
  ['a setting of the app', "SELECT set_config('app.user', '42', false)",
    async (c) => await setting('app.user')(c) || null],
  ['search_path', 'SET search_path = pg_catalog', setting('search_path')],
  ['statement_timeout', "SET statement_timeout = '7s'", setting('statement_timeout')],
  ['lock_timeout', "SET lock_timeout = '7s'", setting('lock_timeout')],
  ['time zone', "SET TIME ZONE 'Asia/Tokyo'", setting('TimeZone')],
  ['application_name', "SET application_name = 'somebody'", setting('application_name')],
  ['client_encoding', "SET client_encoding = 'LATIN1'", setting('client_encoding')],
  ['session characteristics', 'SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY',
    setting('default_transaction_read_only')],
  ['LISTEN', 'LISTEN some_channel', count('pg_listening_channels()')],
  ['a temp table', 'CREATE TEMP TABLE secret_temp (a int)', codeOf('SELECT count(*)::int FROM secret_temp')],
  ['an advisory lock', 'SELECT pg_advisory_lock(4711)',
    count("pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()")],
  ['a WITH HOLD cursor', 'DECLARE held CURSOR WITH HOLD FOR SELECT 1', count('pg_cursors')],
  ['lastval', "SELECT nextval('notes_id_seq')", codeOf('SELECT lastval()')],
  ['SQL PREPARE', 'PREPARE mine AS SELECT 1', count('pg_prepared_statements WHERE from_sql')],
]

for (const named of [false, true]) {
  t.test(`session: nothing is left behind where the driver holds ${named ? 'named statements' : 'none'}`, async (t) => {
    const { pool, errors } = await open(t)
    for (const [what, leave, look] of leftovers) {
      const a = await pool.use(async (c) => {
        if (named) await c.query({ name: 'kept', text: 'SELECT 1 AS one' })
        return { pid: await pidOf(c), before: await look(c) }
      })
      await pool.use(async (c) => {
        await c.query(leave)
        t.not(await look(c), a.before, `${what} is there for who left it`)
      })
      await pool.use(async (c) => {
        t.equal(await look(c), a.before, `${what} is gone`)
        t.equal(await pidOf(c), a.pid, 'on the same connection')
        if (named) {
          t.same((await c.query({ name: 'kept', text: 'SELECT 1 AS one' })).rows, [{ one: 1 }],
            'the driver\'s statement still works')
        }
      })
    }
    t.same(errors, [])
  })
}

const transactions: Array<[what: string, leave: (c: Client) => Promise<unknown>]> = [
  ['an open transaction',
    (c) => c.query("BEGIN; INSERT INTO public.notes (text) VALUES ('left'); SET LOCAL search_path = pg_catalog; SET ROLE pool_app")],
  ['a failed transaction',
    (c) => c.query('BEGIN; SELECT 1/0').catch((error: { code: string }) => t.equal(error.code, '22012'))],
  ['a transaction in flight', async (c) => {
    c.query("BEGIN; INSERT INTO public.notes (text) VALUES ('left')").catch(t.error)
  }],
  ['a queue in flight', async (c) => {
    for (const sql of ['BEGIN', "INSERT INTO public.notes (text) VALUES ('left')"]) c.query(sql).catch(t.error)
  }],
  ['a slow statement', async (c) => { c.query('SELECT pg_sleep(0.1); SET search_path = pg_catalog').catch(t.error) }],
]

for (const reset of ['session', 'transaction'] as const) {
  for (const named of [false, true]) {
    t.test(`${reset}: a transaction left open is rolled back${named ? ', with named statements' : ''}`, async (t) => {
      const { pool, errors } = await open(t, { reset })
      for (const [what, leave] of transactions) {
        const pid = await pool.use(async (c) => {
          if (named) await c.query({ name: 'kept', text: 'SELECT 1 AS one' })
          const pid = await pidOf(c)
          await leave(c)
          return pid
        })
        await pool.use(async (c) => {
          t.equal(await pidOf(c), pid, what)
          t.equal(c.getTransactionStatus(), 'I', `${what} is over`)
          t.equal(await value(c, "SELECT count(*)::int FROM public.notes WHERE text = 'left'"), 0)
          t.equal(await value(c, 'SELECT current_user'), 'postgres')
          if (reset === 'session') t.match(await value(c, 'SHOW search_path'), /user/)
          if (named) t.same((await c.query({ name: 'kept', text: 'SELECT 1 AS one' })).rows, [{ one: 1 }])
        })
      }
      t.same(errors, [])
    })
  }
}

t.test('session: SQL PREPARE in a transaction that is left open goes too, and the driver prepares anew', async (t) => {
  const { pool } = await open(t)
  const query = { name: 'n2', text: 'SELECT 2 AS two' }
  await pool.use(async (c) => {
    await c.query({ name: 'kept', text: 'SELECT 1 AS one' })
    await c.query('BEGIN; PREPARE n2 AS SELECT 3')
  })
  await pool.use(async (c) => {
    t.equal(await value(c, 'SELECT count(*)::int FROM pg_prepared_statements'), 0)
    t.same((await c.query(query)).rows, [{ two: 2 }])
    t.same((await c.query({ name: 'kept', text: 'SELECT 1 AS one' })).rows, [{ one: 1 }])
  })
})

t.test('session: who takes the driver\'s statements away leaves nobody with names that fail', async (t) => {
  const { pool } = await open(t)
  for (const sql of ['DISCARD ALL', 'DEALLOCATE ALL', 'DEALLOCATE kept', 'PREPARE other AS SELECT 1']) {
    await pool.use(async (c) => {
      await c.query({ name: 'kept', text: 'SELECT 1 AS one' })
      await c.query(sql)
    })
    await pool.use(async (c) => {
      t.same((await c.query({ name: 'kept', text: 'SELECT 1 AS one' })).rows, [{ one: 1 }], sql)
      t.same((await c.query({ name: 'kept', text: 'SELECT 1 AS one' })).rows, [{ one: 1 }], sql)
    })
  }
})

t.test('session: settings of the startup packet survive', async (t) => {
  const { pool } =
    await open(t, { connection: { statement_timeout: 4321, options: '-c role=pool_app -c search_path=public' } })
  await pool.use((c) => c.query("SET ROLE postgres; SET statement_timeout = 0; SET search_path = 'x'"))
  await pool.use(async (c) => {
    t.equal(await value(c, 'SELECT current_user'), 'pool_app')
    t.equal(await value(c, 'SHOW statement_timeout'), '4321ms')
    t.equal(await value(c, 'SHOW search_path'), 'public')
  })
})

t.test('session: listeners and type parsers of the object go, ours stay', async (t) => {
  const { pool } = await open(t)
  const before =
    await pool.use((c) => ['notification', 'notice', 'error', 'drain', 'end'].map((name) => c.listenerCount(name)))
  await pool.use(async (c) => {
    for (const name of ['notification', 'notice', 'error', 'end'] as const) c.on(name as 'end', () => t.fail(name))
    c.once('drain', () => {})
    c.setTypeParser(23, () => 'not a number')
    t.same((await c.query('SELECT 1 AS one')).rows, [{ one: 'not a number' }])
  })
  await pool.use(async (c) => {
    t.same(['notification', 'notice', 'error', 'drain', 'end'].map((name) => c.listenerCount(name)), before)
    t.same((await c.query('SELECT 1 AS one')).rows, [{ one: 1 }])
  })
})

t.test('session: what onConnect did to the object or the session is there for every borrower', async (t) => {
  let notices = 0
  const { pool } = await open(t, {}, {
    onConnect: async (c) => {
      c.on('notice', () => { notices++ })
      c.setTypeParser(23, (text: string) => `int ${text}`)
      await c.query("SET app.who = 'everybody'")
    },
  })
  for (const round of [1, 2, 3]) {
    await pool.use(() => {})
    await pool.use(async (c) => {
      t.equal(await value(c, 'SHOW app.who'), 'everybody')
      t.equal(await value(c, 'SELECT 1'), 'int 1')
      await c.query("DO $$ BEGIN RAISE NOTICE 'hear'; END $$")
    })
    t.equal(notices, round, 'added once')
  }
})

t.test('session: properties and methods that onConnect and wrap have set are there for every borrower', async (t) => {
  interface Own extends Client { tell (): string, label: string }
  const { pool } = await open(t, {}, {
    onConnect: (c) => { (c as Own).tell ??= () => 'onConnect' },
    wrap: (c) => Object.assign(c, { label: 'wrap' }),
  })
  const first = await pool.use((c) => c)
  for (const leave of [
    (_c: Own) => {},
    (c: Own) => { c.tell = () => 'mine' },
    (c: Own) => { Reflect.deleteProperty(c, 'tell') },
    (c: Own) => { Object.assign(c, { first: 1, second: 2 }) },
  ]) {
    await pool.use(async (c) => {
      t.equal(await value(c, 'SELECT 1'), 1)
      leave(c as Own)
    })
    await pool.use((c) => {
      t.equal(c, first, 'it is the same connection')
      t.equal((c as Own).tell(), 'onConnect')
      t.equal((c as Own).label, 'wrap')
      t.notOk('first' in c || 'second' in c)
    })
  }
})

t.test('session: a property that can not be removed has the connection replaced', async (t) => {
  const { pool } = await open(t)
  const first = await pool.use((c) => {
    Object.defineProperty(c, 'mine', { value: 1, enumerable: true })
    return c
  })
  t.not(await pool.use((c) => c), first)
  t.equal(pool.stats().destroyed.error, 1)
})

t.test('session: a borrower who only touched the object costs no round trip', async (t) => {
  const { pool } = await open(t)
  const first = await pool.use((c) => bytes(c))
  await pool.use((c) => { c.on('notice', () => {}) })
  await idle(pool)
  await pool.use((c) => { Object.assign(c, { tenant: 'mine' }) })
  await idle(pool)
  t.equal(await pool.use((c) => bytes(c)), first)
  t.equal(await pool.use((c) => c.listenerCount('notice')), 0)
})

t.test('no round trip where nothing was sent; in transaction mode none where no transaction is open', async (t) => {
  for (const reset of ['session', 'transaction', 'none'] as const) {
    const { pool } = await open(t, { reset })
    const first = await pool.use((c) => bytes(c))
    await pool.use(() => {})
    await idle(pool)
    t.equal(await pool.use((c) => bytes(c)), first, reset)
    const sent = await pool.use(async (c) => { await c.query('SET app.mark = 1'); return bytes(c) })
    await idle(pool)
    const after = await pool.use(async (c) => ({ bytes: bytes(c), left: await setting('app.mark')(c) || null }))
    t.equal(after.bytes > sent, reset === 'session')
    t.equal(after.left, reset === 'session' ? null : '1')
  }
})

t.test('a validation is no use: no reset follows it', async (t) => {
  const { pool } = await open(t, {}, { validateAfter: 0 })
  await pool.use(() => {})
  const first = await pool.use((c) => bytes(c))
  const second = await pool.use((c) => bytes(c))
  await idle(pool)
  const third = await pool.use((c) => bytes(c))
  t.equal(second - first, third - second)
  t.ok(second > first, 'it was validated')
})

t.test('none: an open transaction stays, and the connection is still taken for alive', async (t) => {
  const { pool, backend } = await open(t, { reset: 'none' })
  await pool.use((c) => c.query('BEGIN; SELECT 1/0').catch(() => { /* That was the purpose. */ }))
  await pool.use(async (c) => {
    // The error comes before the state.
    await until(() => c.getTransactionStatus() === 'E')
    t.equal(await backend.validate!(c, soon()), true)
    t.equal(backend.reset!(c, soon()), undefined)
  })
})

t.test('query_timeout: neither a reset nor a commit is taken for late afterwards', async (t) => {
  for (const reset of ['session', 'transaction'] as const) {
    const { pool, errors } = await open(t, { reset, connection: { query_timeout: 600 } })
    const pid = await pool.use(async (c) => { await c.query('BEGIN'); return await pidOf(c) })
    await pool.use((c) => c.query('SELECT pg_sleep(0.35)'))
    await pool.use((c) => c.query('SELECT pg_sleep(0.35)'))
    await pool.use(async (c) => {
      await c.query('SELECT pg_sleep(0.35)')
      t.equal(await pidOf(c), pid)
    })
    t.same(errors, [])
  }
})

t.test('query_timeout: a connection whose statement goes on in the server is not lent before that is over', async (t) => {
  const { pool } = await open(t, { connection: { query_timeout: 400 } }, { resetTimeout: 5000 })
  const pid = await pool.use(async (c) => {
    const pid = await pidOf(c)
    await t.rejects(c.query('SELECT pg_sleep(0.6); SET search_path = pg_catalog'), { message: 'Query read timeout' })
    return pid
  })
  await pool.use(async (c) => {
    t.equal(await pidOf(c), pid)
    t.match(await value(c, 'SHOW search_path'), /user/)
  })
})

t.test('a reset that fails destroys the connection', async (t) => {
  const { pool, errors } = await open(t)
  const pid = await pool.use(async (c) => {
    const pid = await pidOf(c)
    await c.query('BEGIN; SET LOCAL statement_timeout = 0')
    const { stream } = c.connection
    const write = stream.write.bind(stream) as (data: Buffer) => boolean
    stream.write = (data: Buffer) =>
      write(Buffer.from(data.toString('latin1').replace('DISCARD TEMP', 'DISCARD NONE'), 'latin1'))
    return pid
  })
  await pool.use(async (c) => t.not(await pidOf(c), pid))
  t.match(errors, [{ code: 'FST_POOL_RESET_FAILED', cause: { code: '42601' } }])
})

t.test('a statement left running longer than resetTimeout is cancelled, and its slot at the server free', async (t) => {
  const { pool, name, errors } = await open(t, {}, { resetTimeout: 50 })
  let lost: Promise<unknown> | undefined
  const pid = await pool.use(async (c) => {
    const pid = await pidOf(c)
    lost = c.query('SELECT pg_sleep(60)').catch((error: unknown) => error)
    return pid
  })
  await pool.use(async (c) => {
    t.not(await pidOf(c), pid)
    t.equal(await known(name), 1, 'no more than max')
  })
  t.match(await lost, { code: '57014' })
  t.match(errors, [{ code: 'FST_POOL_RESET_FAILED' }])
})

t.test('a connection that dies while it waits to be reset, or is reset, is destroyed', async (t) => {
  const { pool, errors } = await open(t, {}, { resetTimeout: 5000 })
  await pool.use(async (c) => {
    const pid = await pidOf(c)
    c.query('SELECT pg_sleep(60)').catch(() => { /* It dies with the connection. */ })
    admin.query(`SELECT pg_terminate_backend(${pid})`).catch(t.error)
  })
  await pool.use((c) => pidOf(c))
  t.match(errors[0], { code: '57P01' }, 'the death, and its reason')
  t.match(errors[1], { code: 'FST_POOL_RESET_FAILED' })
})

t.test('the reset of a connection that has ended, or ends meanwhile, rejects', async (t) => {
  const backend = await postgresql({ url: server.url })
  for (const end of [(c: Client) => c.end(), (c: Client) => { c.end().catch(t.error) }]) {
    const c = await backend.create(soon())
    await c.query('SET app.mark = 1')
    await end(c)
    await t.rejects(backend.reset!(c, soon())!, { message: /ended|closed/ })
    await backend.destroy(c, 'error')
  }
})

// --- Life and death --------------------------------------------------------------------------------------------------

t.test('an idle connection that dies is evicted, and nothing is uncaught', async (t) => {
  const proxy = await startProxy(t, server)
  type Kill = (c: Client, pid: number) => unknown
  const deaths: Array<[how: string, kill: Kill, code: string | undefined, message: RegExp]> = [
    ['pg_terminate_backend', (_c, pid) => admin.query(`SELECT pg_terminate_backend(${pid})`), '57P01',
      /terminating connection/],
    ['RST', () => { proxy.resetAll() }, 'ECONNRESET', /ECONNRESET/],
    ['FIN', () => { proxy.endAll() }, undefined, /Connection terminated unexpectedly/],
  ]
  for (const [how, kill, code, message] of deaths) {
    const { pool, errors, backend } = await open(t, { host: proxy.host, port: proxy.port })
    const { c, pid } = await pool.use(async (c) => ({ c, pid: await pidOf(c) }))
    await idle(pool)
    const gone = event(pool, 'disconnect')
    await kill(c, pid)
    const { reason, error } = await gone as PoolEvents['disconnect']
    t.equal(reason, 'error', how)
    t.match(error, { message })
    t.equal((error as { code?: string }).code, code)
    t.equal(errors.length, 1, 'told once')
    t.equal(backend.isBroken!(c), true)
    t.equal(await backend.validate!(c, soon()), false)
    await pool.use(async (c) => t.not(await pidOf(c), pid))
    await pool.close()
  }
})

t.test('an idle timeout of the server evicts', async (t) => {
  for (const [options, leave, code] of [['idle_session_timeout=50', 'SELECT 1', '57P05'], ['idle_in_transaction_session_timeout=50', 'BEGIN', '25P03']] as const) {
    const { pool } = await open(t, { reset: 'none', connection: { options: `-c ${options}` } })
    const gone = event(pool, 'disconnect')
    await pool.use((c) => c.query(leave))
    t.match(await gone, { reason: 'error', error: { code } })
  }
})

t.test('a connection that dies in a borrower\'s hands rejects the query, and is not lent again', async (t) => {
  const proxy = await startProxy(t, server)
  const { pool } = await open(t, { host: proxy.host, port: proxy.port })
  for (const [kill, match] of [
    [(pid: number) => admin.query(`SELECT pg_terminate_backend(${pid})`), { code: '57P01' }],
    [() => proxy.resetAll(), { code: 'ECONNRESET' }],
    [() => proxy.endAll(), { message: 'Connection terminated unexpectedly' }],
  ] as const) {
    await pool.use(async (c) => {
      const pid = await pidOf(c)
      const sleeping = c.query('SELECT pg_sleep(60)')
      await until(() => value(admin, `SELECT state = 'active' FROM pg_stat_activity WHERE pid = ${pid}`))
      await Promise.all([t.rejects(sleeping, match), kill(pid)])
    })
    t.equal((await pool.use((c) => c.query('SELECT 1'))).rowCount, 1)
  }
})

t.test('a kill -9 of the server\'s process evicts', needsOwn(server), async (t) => {
  const own = await startPostgres(t, { own: true })
  const { pool } = await open(t, { url: own.url })
  const pid = await pool.use(pidOf)
  await idle(pool)
  const gone = event(pool, 'disconnect')
  process.kill(pid, 'SIGKILL')
  t.match(await gone, { reason: 'error', error: { message: /Connection terminated unexpectedly/ } })
  await until(async () => await pool.use(pidOf).catch(() => 0) !== 0, { what: 'the server has recovered' })
})

t.test('a borrower who ends the client, or removes all listeners, has used it up', async (t) => {
  const { pool } = await open(t)
  for (const spoil of [
    (c: Client) => c.end(), (c: Client) => { c.removeAllListeners() }, (c: Client) => { c.end().catch(t.error) },
  ]) {
    const pid = await pool.use(async (c) => { const pid = await pidOf(c); await spoil(c); return pid })
    await pool.use(async (c) => t.not(await pidOf(c), pid))
  }
})

t.test('a client without listeners that dies does not end the process', async (t) => {
  const { pool } = await open(t)
  await pool.use(async (c) => {
    const pid = await pidOf(c)
    c.removeAllListeners()
    const ended = event(c.connection, 'end')
    await admin.query(`SELECT pg_terminate_backend(${pid})`)
    await ended
  })
  await pool.use((c) => pidOf(c))
})

t.test('a death before anybody listens is told when somebody does', async (t) => {
  const backend = await postgresql({ url: server.url })
  const c = await backend.create(soon())
  await admin.query(`SELECT pg_terminate_backend(${await pidOf(c)})`)
  await until(() => backend.isBroken!(c))
  await until(() => c.connection.stream.closed)
  let told: Error | undefined
  backend.onDeath!(c, (error) => { told = error })
  await until(() => told)
  t.match(told, { code: '57P01' })
  await backend.destroy(c, 'error')
  await backend.close!()
})

t.test('destroy resolves when the server has let go: idle, in a transaction, and with a statement that runs', async (t) => {
  const { pool, name } = await open(t, {}, { max: 3 })
  for (const sql of [undefined, 'BEGIN', 'SELECT pg_sleep(60)', 'COPY notes FROM STDIN']) {
    const lease = await pool.acquire()
    const pid = await pidOf(lease.connection)
    let running: Promise<unknown> | undefined
    if (sql !== undefined) {
      running = lease.connection.query(sql).catch((error: unknown) => error)
      if (sql.startsWith('SELECT')) {
        await until(() =>
          value(admin, `SELECT state = 'active' FROM pg_stat_activity WHERE pid = ${pid}`))
      } else await running
    }
    lease.destroy()
    await until(() => pool.stats().closing === 0)
    t.equal(await known(name), 0, sql ?? 'idle')
    await running
  }
  t.equal(pool.stats().late, 0)
})

t.test('destroy cuts off what does not answer, busy or idle', async (t) => {
  const proxy = await startProxy(t, server)
  const backend = await postgresql({ host: proxy.host, port: proxy.port, connection: { user: 'postgres' } })
  const [quiet, busy, paused] =
    await Promise.all([backend.create(soon()), backend.create(soon()), backend.create(soon())])
  const running = busy.query('SELECT pg_sleep(60)').catch((error: unknown) => error)
  paused.connection.stream.pause()
  await backend.destroy(paused, 'released')
  proxy.blackHole()
  await Promise.all([backend.destroy(quiet, 'closed'), backend.destroy(busy, 'aborted')])
  t.match(await running, { message: 'Connection terminated unexpectedly' })
  t.ok(quiet.connection.stream.destroyed && busy.connection.stream.destroyed)
  await backend.destroy(busy, 'aborted')
  await backend.close!()
})

t.test('what a borrower has cut off himself while it ran is cancelled', async (t) => {
  const cuts: Array<[how: string, cut: (client: Client) => unknown]> = [
    ['end()', (client) => { Promise.allSettled([client.end()]) }],
    ['the socket', (client) => (client as unknown as { connection: { stream: Socket } }).connection.stream.destroy()],
  ]
  for (const [how, cut] of cuts) {
    const { pool } = await open(t)
    const lease = await pool.acquire()
    const { connection } = lease
    const { rows: [row] } = await connection.query('SELECT pg_backend_pid() AS pid')
    Promise.allSettled([connection.query('SELECT pg_sleep(600)')])
    const running = async () =>
      (await admin.query("SELECT FROM pg_stat_activity WHERE pid = $1 AND query LIKE '%pg_sleep%'", [row.pid])).rowCount
    await until(async () => await running() === 1)
    cut(connection)
    lease.release()
    await until(async () => await running() === 0, { what: `it is cancelled: ${how}` })
    t.equal((await pool.use((client) => client.query('SELECT 1'))).rowCount, 1)
  }
})

t.test('where the cancel can\'t be sent the connection is cut off all the same', async (t) => {
  const proxy = await startProxy(t, server)
  const backend = await postgresql({ host: proxy.host, port: proxy.port, connection: { user: 'postgres' } })
  const c = await backend.create(soon())
  const pid = await pidOf(c)
  const running = c.query('SELECT pg_sleep(60)').catch((error: unknown) => error)
  await proxy.refuse()
  await backend.destroy(c, 'aborted')
  t.match(await running, { message: 'Connection terminated unexpectedly' })
  await admin.query(`SELECT pg_terminate_backend(${pid})`)
})

t.test('validate is given up with its signal', async (t) => {
  const proxy = await startProxy(t, server)
  const backend = await postgresql({ host: proxy.host, port: proxy.port, connection: { user: 'postgres' } })
  const c = await backend.create(soon())
  t.equal(await backend.validate!(c, soon()), true)
  proxy.blackHole()
  const deadline = new AbortController()
  const asked = backend.validate!(c, deadline.signal)
  deadline.abort(new Error('too late'))
  await t.rejects(asked, { message: 'too late' })
  await t.rejects(backend.validate!(c, deadline.signal), { message: 'too late' })
  await backend.destroy(c, 'invalid')
})

// --- What a server says ----------------------------------------------------------------------------------------------

async function connection (t: Teardown, options: PostgresOptions): Promise<{ backend: PostgresConnector, c: Client }> {
  const backend = await postgresql(options)
  const c = await backend.create(soon())
  t.teardown(async () => {
    await backend.destroy(c, 'closed')
    await backend.close!()
  })
  return { backend, c }
}

t.test('inspect: a replica is level, or behind by the age of what it shows, or follows nobody, until it is promoted', needsGroup('PostgreSQL'), async (t) => {
  const { primary, replicas: [replica], ...pair } = await startPostgresPair(t)
  const writer = await client(t, primary.url)
  await writer.query('CREATE ROLE ordinary LOGIN; CREATE TABLE lines (n int)')
  await pair.caughtUp(replica!)
  const asOrdinary = (url: string) => url.replace('postgres@', 'ordinary@')
  const first = await connection(t, { url: primary.url })
  const seen = await Promise.all([replica!.url, asOrdinary(replica!.url)].map((url) => connection(t, { url })))
  const states = () => Promise.all(seen.map(({ backend, c }) => backend.inspect!(c, soon())))
  t.same(await first.backend.inspect!(first.c, soon()), { role: 'primary' })
  t.same(await states(), [{ role: 'replica', lag: 0 }, { role: 'replica', lag: 0 }])

  await pair.pauseReplay(replica!)
  t.same((await states()).map(({ lag }) => lag), [0, 0], 'nothing is missing')
  await writer.query('INSERT INTO lines VALUES (1)')
  await until(async () => (await states()).every(({ lag }) => lag! > 0), { what: 'it is seen to be behind' })
  const [before, after] =
    [await states(), await until(async () => { const now = await states(); return now[0]!.lag! > 50 && now })]
  for (const [i, { lag }] of after.entries()) {
    t.ok(Number.isFinite(lag) && lag! > before[i]!.lag!, 'more and more')
    t.ok(lag! < 60_000, `${lag} ms: since its last commit`)
  }
  await pair.resumeReplay(replica!)
  await pair.caughtUp(replica!)
  await until(async () => (await states()).every(({ lag }) => lag === 0), { what: 'it is level again' })

  await primary.kill()
  await until(async () => (await states()).every(({ lag }) => lag === Infinity), { what: 'an orphan follows nobody' })
  t.same((await states()).map(({ role }) => role), ['replica', 'replica'], 'and takes no writes')
  await pair.promote(replica!)
  t.same(await states(), [{ role: 'primary' }, { role: 'primary' }])
})

t.test('inspect: a server that was made read only takes no writes; what a borrower made read only does', needsOwn(server), async (t) => {
  const own = await startPostgres(t, { own: true })
  const { backend, c } = await connection(t, { url: own.url, reset: 'none' })
  const boss = await client(t, own.url)
  await c.query("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY; SET app.mark = '1'")
  t.same(await backend.inspect!(c, soon()), { role: 'primary' })
  await boss.query('ALTER SYSTEM SET default_transaction_read_only = on')
  await boss.query('SELECT pg_reload_conf()')
  await until(async () => (await backend.inspect!(c, soon())).role === 'replica')
  t.same(await backend.inspect!(c, soon()), { role: 'replica', lag: Infinity }, 'and it follows nobody')
  await c.query('BEGIN; SELECT 1/0').catch(() => { /* That was the purpose. */ })
  await t.rejects(backend.inspect!(c, soon()), { code: '25P02' })
})

t.test('inspect: where the server does not tell of its replication, it tells its role', needsOwn(server), async (t) => {
  const own = await startPostgres(t, { own: true })
  const boss = await client(t, own.url)
  await boss.query('CREATE ROLE ordinary LOGIN; REVOKE EXECUTE ON FUNCTION pg_last_wal_receive_lsn() FROM PUBLIC')
  await boss.query('ALTER ROLE ordinary SET default_transaction_read_only = on')
  const { backend, c } = await connection(t, { url: own.url.replace('postgres@', 'ordinary@') })
  t.same(await backend.inspect!(c, soon()), { role: 'replica' })
  const sent = bytes(c)
  t.same(await backend.inspect!(c, soon()), { role: 'replica' })
  t.ok(bytes(c) - sent < 400, 'what it does not tell is not asked again')
})

t.test('inspect is no use: no reset follows it, and whatever type parsers there are, it understands', async (t) => {
  const { pool, backend } =
    await open(t, { connection: { types: { getTypeParser: () => () => 'nonsense' }, binary: true } })
  const lease = await pool.acquire()
  const before = bytes(lease.connection)
  t.match(await backend.inspect!(lease.connection, soon()), { role: /primary|replica/ })
  const asked = bytes(lease.connection)
  t.ok(asked > before)
  lease.release()
  await idle(pool)
  t.equal(await pool.use((c) => bytes(c)), asked)
})

t.test('inspect is given up with its signal', async (t) => {
  const { backend, c } = await connection(t, { url: server.url })
  await t.rejects(backend.inspect!(c, AbortSignal.abort(new Error('too late'))), { message: 'too late' })
})

t.test('a connection on which a write was refused is not lent again', needsGroup('PostgreSQL'), async (t) => {
  const { primary, replicas: [replica] } = await startPostgresPair(t)
  const boss = await client(t, primary.url)
  const write = (c: Client) => t.rejects(c.query('CREATE TABLE never (n int)'), { code: '25006' })
  for (const reset of ['session', 'transaction', 'none'] as const) {
    const { pool, backend } = await open(t, { url: replica!.url, reset })
    const gone = event(pool, 'disconnect')
    const pid = await pool.use(async (c) => { await write(c); return await pidOf(c) })
    t.match(await gone, { reason: 'error' }, `${reset}: on a replica`)
    let unanswered: Promise<unknown> | undefined
    const late = await pool.use(async (c) => {
      t.not(await pidOf(c), pid)
      unanswered = write(c)
      return c
    })
    t.equal(backend.isBroken!(late), false, 'not known yet at its return')
    await unanswered
    await until(() => backend.isBroken!(late))
    await pool.use((c) => t.not(c, late, 'where the answer came after it'))
    await pool.use(async (c) => {
      t.equal(backend.isBroken!(c), false)
      await backend.inspect!(c, soon())
      await write(c)
      t.equal(backend.isBroken!(c), false, 'where it is known for a replica, another one would be no better')
    })
    await pool.close()
  }
  const { pool, backend } = await open(t, { url: primary.url })
  const pid = await pool.use(pidOf)
  await boss.query('ALTER SYSTEM SET default_transaction_read_only = on')
  await boss.query('SELECT pg_reload_conf()')
  await until(() => pool.use(async (c) => {
    const code =
      await codeOf('CREATE TEMP TABLE gone (n int); DROP TABLE gone; CREATE TABLE never (n int); DROP TABLE never')(c)
    return code === '25006' && await pidOf(c) === pid
  }))
  await pool.use(async (c) => {
    t.not(await pidOf(c), pid, 'on a primary that was made read only')
    t.equal((await backend.inspect!(c, soon())).role, 'replica')
  })
})

t.test('a connection on which a read-only transaction refused a write is as good as before', async (t) => {
  const { pool } = await open(t)
  const pid = await pool.use(pidOf)
  const refused = (c: Client) => t.rejects(c.query('CREATE TABLE never (n int)'), { code: '25006' })
  await t.rejects(pool.transaction((c) => c.query('CREATE TABLE never (n int)'), { readOnly: true }), { code: '25006' })
  for (const begin of [
    'BEGIN READ ONLY', 'BEGIN; SET TRANSACTION READ ONLY', "BEGIN; SET LOCAL transaction_read_only = 'on'",
  ]) {
    await pool.use(async (c) => {
      t.equal(await pidOf(c), pid)
      await c.query(begin)
      await refused(c)
    })
  }
  await pool.use(async (c) => {
    t.equal(await pidOf(c), pid)
    await c.query('SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY')
    await refused(c)
  })
  await pool.use(async (c) =>
    t.not(await pidOf(c), pid, 'but not where the session was made so: that may be the server\'s doing'))
})

t.test('transient is what another connection may not meet: a death, a server that ends, or takes no writes', async (t) => {
  const proxy = await startProxy(t, server)
  const { isTransient } = await postgresql({})
  const errorOf = async (fn: (c: Client) => Promise<unknown>): Promise<unknown> => {
    const { c } = await connection(t, { host: proxy.host, port: proxy.port, connection: { user: 'postgres' } })
    return await fn(c).then(() => t.fail('no error'), (error: unknown) => error)
  }
  const asleep = async (c: Client, kill: (pid: number) => unknown) => {
    const pid = await pidOf(c)
    const sleeping = c.query('SELECT pg_sleep(60)')
    sleeping.catch(() => { /* It is looked at below. */ })
    await until(() => value(admin, `SELECT state = 'active' FROM pg_stat_activity WHERE pid = ${pid}`))
    await kill(pid)
    return await sleeping
  }
  const transient: Array<[what: string, fn: (c: Client) => Promise<unknown>]> = [
    ['ended by the server', (c) => asleep(c, (pid) => admin.query(`SELECT pg_terminate_backend(${pid})`))],
    ['a reset', (c) => asleep(c, () => proxy.resetAll())],
    ['a FIN', (c) => asleep(c, () => proxy.endAll())],
    ['used after its death', async (c) => {
      await asleep(c, () => proxy.endAll()).catch(() => { /* The next one is looked at. */ })
      return await c.query('SELECT 1')
    }],
    ['used after its end', async (c) => { c.end().catch(t.error); return await c.query('SELECT 1') }],
    ['a write where there are none', (c) => c.query('BEGIN READ ONLY; CREATE TABLE never (n int)')],
  ]
  for (const [what, fn] of transient) {
    const error = await errorOf(fn)
    t.equal(isTransient!(error), true, `${what}: ${String(error)}`)
    t.equal(isTransient!(Object.assign(new Error('wrapped'), { cause: error })), true)
  }
  for (const code of ['57P02', '57P03', '08006', '08003', 'EPIPE', 'ETIMEDOUT']) {
    t.equal(isTransient!({ code }), true,
      code)
  }
  t.equal(isTransient!({ code: '08P01', severity: 'FATAL' }), true, 'a pooler\'s')
  const lasting: Array<[what: string, fn: (c: Client) => Promise<unknown>]> = [
    ['a statement that is wrong', (c) => c.query('SELECT 1/0')],
    ['a parameter too many (08P01)', (c) => c.query('SELECT 1', ['x'])],
    ['a text that reads like a death', (c) => c.query("DO $$ BEGIN RAISE 'Connection terminated'; END $$")],
    ['a timeout of the statement', (c) => c.query('SET statement_timeout = 10; SELECT pg_sleep(60)')],
  ]
  for (const [what, fn] of lasting) {
    const error = await errorOf(fn)
    t.equal(isTransient!(error), false, `${what}: ${String(error)}`)
  }
  for (const error of [undefined, null, 'Connection terminated', new Error('x'), { code: '53300' }, { code: '40001' },
    { code: '08' }]) t.equal(isTransient!(error), false)
})

// --- Addresses that change -------------------------------------------------------------------------------------------

t.test('url and connection may be functions: each create asks them, and that of listen too', async (t) => {
  let name = freshName()
  let asked = 0
  const ask = () => { asked++; return Promise.resolve(server.url) }
  const backend = await postgresql({ url: ask, connection: () => ({ application_name: name }) })
  t.equal(asked, 0, 'not before there is one')
  const c = await backend.create(soon())
  t.equal(asked, 1)
  t.equal(await value(c, 'SHOW application_name'), name)
  const before = name
  name = freshName()
  const stop = await backend.listen('a', () => {})
  t.equal(asked, 2)
  t.same([await known(before), await known(name)], [1, 1])
  await stop()
  await backend.destroy(c, 'closed')
  await backend.close!()
})

t.test('a function is held to what is asked of the option, at its create', async (t) => {
  const bad: Array<[PostgresOptions, RegExp]> = [
    [{ url: () => 'mysql://u:topsecret@h/d' }, /option url .*postgresql:\/\//],
    [{ url: () => 'postgres://u:topsecret@h:port/d' }, /can parse/],
    [{ url: () => 'postgres://h/d?max=5' }, /without max/],
    [{ url: async () => undefined as unknown as string }, /option url.* missing/],
    [{ url: server.url, connection: () => ({ max: 5 }) }, /connection\.max .*option max/],
    [{ url: server.url, connection: () => ({ connectionString: 'postgres://u:topsecret@h/d' }) }, /option url/],
    [{ url: server.url, connection: () => ({ database: 'x' }), database: 'y' }, /next to the option database/],
    [{ url: server.url, connection: () => ({ stream: {} }) }, /a function/],
    [{ url: server.url, connection: async () => 5 as unknown as Record<string, unknown> }, /an object/],
  ]
  for (const [options, message] of bad) {
    const backend = await postgresql(options)
    const error = await backend.create(soon()).catch((error: unknown) => error) as Error
    t.match(error, { code: 'FST_POOL_BAD_OPTIONS', message })
    t.notMatch(`${error.stack} ${String(error.cause)}`, /topsecret/)
    await t.rejects(backend.listen('a', () => {}),
      { code: 'FST_POOL_CONNECT_FAILED', cause: { code: 'FST_POOL_BAD_OPTIONS' } })
  }
  const known: Array<[PostgresOptions & Record<string, unknown>, RegExp]> = [
    [{ url: () => server.url, connection: { max: 5 } }, /connection\.max/],
    [{ url: () => server.url, host: 'h' }, /no host next to a url/],
    [{ url: 'mysql://h', connection: () => ({}) }, /option url/],
    [{ url: () => server.url, user: 'me' }, /inside of connection/],
  ]
  for (const [options, message] of known) {
    await t.rejects(postgresql(options),
      { code: 'FST_POOL_BAD_OPTIONS', message })
  }
})

t.test('a function that fails, or never answers, is the create\'s failure', async (t) => {
  const failing = await postgresql({ url: async () => { throw new Error('vault is shut') } })
  await t.rejects(failing.create(soon()), { message: 'vault is shut' })
  const silent = await postgresql({ url: server.url, connection: () => new Promise(() => {}) })
  const deadline = new AbortController()
  const creating = silent.create(deadline.signal)
  deadline.abort(new Error('too late'))
  await t.rejects(creating, { message: 'too late' })
})

t.test('what is secret in the answers is known, in a list that is another one only where there are others', async (t) => {
  let password = 'first-secret'
  const backend = await postgresql({
    url: () => server.url.replace(/\/\/.*@/, `//postgres:${password}@`), connection: { ssl: undefined },
  })
  t.equal(backend.secrets, backend.secrets)
  t.notOk(backend.secrets!.includes('first-secret'))
  const c = await backend.create(soon())
  const { secrets } = backend
  t.ok(secrets!.includes('first-secret'))
  t.equal(backend.secrets, secrets)
  password = 'second-secret'
  await backend.destroy(c, 'closed')
  await backend.destroy(await backend.create(soon()), 'closed')
  t.ok(['first-secret', 'second-secret'].every((secret) => backend.secrets!.includes(secret)), 'an error may come late')
  const fixed = await postgresql({ url: 'postgres://u:topsecret@h/d' })
  t.same(fixed.secrets, ['topsecret'])
})

t.test('a cancel goes where its connection was made, whatever the function says by then', async (t) => {
  const proxy = await startProxy(t, server)
  const through = new URL(server.url)
  Object.assign(through, { hostname: proxy.host, port: String(proxy.port) })
  let url = through.href
  const name = freshName()
  const backend = await postgresql({ url: () => url, connection: { application_name: name } })
  const c = await backend.create(soon())
  url = 'postgres://postgres@127.0.0.1:1/postgres'
  const running = c.query('SELECT pg_sleep(60)').catch((error: unknown) => error)
  await until(async () =>
    await value(admin, `SELECT state = 'active' FROM pg_stat_activity WHERE application_name = '${name}'`))
  await backend.destroy(c, 'aborted')
  t.match(await running, { code: '57014' })
  t.equal(proxy.connections.total, 2)
  t.equal(await known(name), 0)
})

// --- Connecting ------------------------------------------------------------------------------------------------------

t.test('a server that accepts and stays silent is given up at connectTimeout', async (t) => {
  const proxy = await startProxy(t, server)
  proxy.silence()
  const { pool } = await open(t, { host: proxy.host, port: proxy.port }, { connectTimeout: 100, acquireTimeout: 400 })
  await t.rejects(pool.acquire(), { code: /ACQUIRE_TIMEOUT|CONNECT_FAILED|CIRCUIT_OPEN/ })
  await pool.close()
  await until(() => proxy.connections.open === 0)
})

t.test('a signal that has aborted opens nothing, and one that aborts later ends it', async (t) => {
  const proxy = await startProxy(t, server)
  const backend = await postgresql({ host: proxy.host, port: proxy.port, connection: { user: 'postgres' } })
  await t.rejects(backend.create(AbortSignal.abort(new Error('no more'))), { message: 'no more' })
  t.equal(proxy.connections.total, 0)
  proxy.silence()
  const later = new AbortController()
  const creating = backend.create(later.signal)
  await until(() => proxy.connections.open === 1)
  later.abort(new Error('no longer'))
  await t.rejects(creating, { message: 'no longer' })
  await until(() => proxy.connections.open === 0)
})

t.test('refused, reset at once, and no such database are the cause of the failure', async (t) => {
  const proxy = await startProxy(t, server)
  proxy.resetOnConnect()
  const backend = await postgresql({ host: proxy.host, port: proxy.port, connection: { user: 'postgres' } })
  await t.rejects(backend.create(soon()), { code: 'ECONNRESET' })
  await proxy.refuse()
  await t.rejects(backend.create(soon()), { code: 'ECONNREFUSED' })
  await t.rejects((await postgresql({ url: server.url, database: 'nowhere' })).create(soon()), { code: '3D000' })
})

t.test('at max_connections the error is the server\'s, and a later try works', needsOwn(server), async (t) => {
  const small =
    await startPostgres(t,
      { args: ['-c', 'max_connections=4', '-c', 'superuser_reserved_connections=0', '-c', 'max_wal_senders=0'] })
  const hogs = await Promise.all([1, 2, 3, 4].map(() => client(t, small.url)))
  const { pool, errors } = await open(t, { url: small.url }, { acquireTimeout: 300 })
  await t.rejects(pool.acquire(), { code: /FST_POOL_/ })
  t.match(errors[0], { code: '53300' })
  await hogs.pop()!.end()
  await until(async () => (await pool.use(pidOf).catch(() => 0)) > 0, { what: 'there is room' })
})

t.test('SCRAM: the right password works, a wrong one is told without it', needsOwn(server), async (t) => {
  const secure = await startPostgres(t, { scram: true })
  const { pool } = await open(t, { url: secure.url })
  t.ok(await pool.use(pidOf))
  const byFunction =
    await open(t, { host: secure.host, port: secure.port, connection: { password: async () => 'secret' } })
  t.ok(await byFunction.pool.use(pidOf))
  const wrong = await open(t, { url: secure.url.replace('secret', 'hunter2-wrong') }, { acquireTimeout: 300 })
  await t.rejects(wrong.pool.acquire(), { code: /ACQUIRE_TIMEOUT|CONNECT_FAILED|CIRCUIT_OPEN/ })
  t.match(wrong.errors[0], { code: '28P01' })
  const told = wrong.errors.map((error) => `${error.stack} ${JSON.stringify(error)}`).join()
  t.notMatch(told, /hunter2/)
  t.ok(wrong.backend.secrets!.includes('hunter2-wrong'))
  const failing = await postgresql({
    host: secure.host,
    port: secure.port,
    connection: {
      user: 'postgres', password: async () => { throw new Error('vault is shut') },
    }
  })
  await t.rejects(failing.create(soon()), { message: 'vault is shut' })
})

t.test('statement_timeout is the query\'s error, and the connection is lent again', async (t) => {
  const { pool } = await open(t, { connection: { statement_timeout: 50 } })
  const pid = await pool.use(async (c) => {
    const pid = await pidOf(c)
    await t.rejects(c.query('SELECT pg_sleep(60)'), { code: '57014' })
    return pid
  })
  await pool.use(async (c) => t.equal(await pidOf(c), pid))
})

t.test('TLS: it connects, resets, and cancels, without touching the options', needsOwn(server), async (t) => {
  await t.rejects((await postgresql({ url: server.url, connection: { ssl: true } })).create(soon()),
    { message: /does not support SSL/ })
  const dir = t.testdir()
  const [key, cert] = [`${dir}/key.pem`, `${dir}/cert.pem`]
  execFileSync('openssl',
    ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-keyout', key, '-out', cert, '-days', '2', '-subj', '/CN=localhost'], { stdio: 'ignore' })
  const secure = await startTls(t, key, cert)
  const ssl = Object.freeze({ rejectUnauthorized: false })
  for (const connection of [{ ssl }, { ssl: Object.defineProperty({ rejectUnauthorized: false, cert: secure.cert }, 'key', { value: secure.key, enumerable: false }) }]) {
    const { pool, name } = await open(t, { host: secure.host, port: secure.port, connection }, { resetTimeout: 50 })
    const first = await pool.use((c) => bytes(c))
    await pool.use(() => {})
    t.equal(await pool.use((c) => bytes(c)), first, 'nothing sent, nothing reset')
    await pool.use(async (c) => {
      t.equal(await value(c, 'SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()'), true)
      await c.query('SET app.mark = 1')
    })
    await pool.use(async (c) => {
      t.notOk(await setting('app.mark')(c))
      c.query('SELECT pg_sleep(60)').catch(() => { /* It is cancelled. */ })
    })
    await pool.use(async () => t.equal(await known(name), 1))
  }
  t.same(ssl, { rejectUnauthorized: false })
  async function startTls (t: Teardown, key: string, cert: string) {
    const content = { key: readFileSync(key, 'utf8'), cert: readFileSync(cert, 'utf8') }
    const where = String(await value(admin, 'SHOW data_directory'))
    const { uid, gid } = statSync(where)
    for (const [name, text] of Object.entries(content)) {
      writeFileSync(`${where}/pool-${name}.pem`, text)
      chownSync(`${where}/pool-${name}.pem`, uid, gid)
      chmodSync(`${where}/pool-${name}.pem`, 0o600)
    }
    await admin.query('ALTER SYSTEM SET ssl_key_file = \'pool-key.pem\'')
    await admin.query('ALTER SYSTEM SET ssl_cert_file = \'pool-cert.pem\'')
    await admin.query('ALTER SYSTEM SET ssl = on')
    await admin.query('SELECT pg_reload_conf()')
    t.teardown(async () => {
      await admin.query('ALTER SYSTEM RESET ssl')
      await admin.query('SELECT pg_reload_conf()')
    })
    await until(async () => await value(admin, 'SHOW ssl') === 'on')
    return { host: server.host, port: server.port, ...content }
  }
})

// --- Prepared statements ---------------------------------------------------------------------------------------------

/** How often, of so many tries, and with which codes, it failed. */
async function tries (count: number, work: () => Promise<unknown>): Promise<unknown[]> {
  const codes = []
  for (let i = 0; i < count; i++) {
    const error = await work().then(() => undefined, (error: unknown) => error as { code?: unknown })
    if (error !== undefined) codes.push(error.code)
  }
  return codes
}

const mood = "CREATE TYPE mood AS ENUM ('glad', 'sad')"

/** What makes statements useless that were prepared before. */
const outdates: Array<[what: string, text: string, code: string, outdate: (c: Client) => unknown]> = [
  ['a column is added', 'SELECT * FROM moved', '0A000', () => admin.query('ALTER TABLE moved ADD COLUMN b int')],
  ['a type is made anew', "SELECT $1::mood = 'glad'", 'XX000', () => admin.query(`DROP TYPE mood; ${mood}`)],
  ['DEALLOCATE ALL in a DO', 'SELECT 1', '26000', (c) => c.query("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$")],
]
for (const reset of ['session', 'transaction', 'none'] as const) {
  for (const [what, text, code, outdate] of outdates) {
    t.test(`${reset}: ${what}: named statements fail once on a connection, whatever they are called`, async (t) => {
      await admin.query(`CREATE TABLE moved (a int); ${mood}`)
      t.teardown(() => admin.query('DROP TABLE moved; DROP TYPE mood'))
      const { pool, errors } = await open(t, { reset })
      const values = text.includes('$1') ? ['glad'] : []
      const all = ['first', 'second', 'third'].map((name) => ({ name, text, values }))
      const ask = (c: Client, which: number) => c.query(all[which]!)
      await pool.use(async (c) => { for (const which of all.keys()) await ask(c, which) })
      // By another client, or by who comes before in the same lease: that of the next would be reset first.
      const first = await pool.use(async (c) => {
        for (const which of all.keys()) await ask(c, which)
        await outdate(c)
        return [...await tries(2, () => ask(c, 0)), ...await tries(1, () => ask(c, 1))]
      })
      t.same(first, [code], 'once, in the same lease too')
      t.same(await tries(3, () => pool.use((c) => ask(c, 1))), [])
      t.same(await tries(3, () => pool.use((c) => ask(c, 2))), [])
      t.same(await tries(2, () => pool.use((c) => ask(c, 0))), [])
      t.equal(pool.stats().created, 1, 'the connection is kept')
      t.same(errors, [])
    })
  }

  t.test(`${reset}: a named statement that fails within a transaction fails once, and the next works on`, async (t) => {
    await admin.query('CREATE TABLE moved (a int)')
    t.teardown(() => admin.query('DROP TABLE moved'))
    const { pool } = await open(t, { reset })
    const named = { name: 'moved', text: 'SELECT * FROM moved' }
    await pool.use((c) => c.query(named))
    await pool.use(async (c) => {
      await c.query(named)
      await admin.query('ALTER TABLE moved ADD COLUMN b int')
      await c.query('BEGIN; SAVEPOINT mine')
      t.same(await tries(2, () => c.query(named)), ['0A000', '25P02'])
      await c.query('ROLLBACK TO mine')
      t.same((await c.query(named)).fields.map(({ name }) => name), ['a', 'b'])
      await c.query('COMMIT')
    })
    t.same(await tries(2, () => pool.use((c) => c.query(named))), [])
  })

  t.test(`${reset}: a statement by SQL PREPARE of the app's onConnect fails once, and is prepared anew`, async (t) => {
    await admin.query('CREATE TABLE moved (a int)')
    t.teardown(() => admin.query('DROP TABLE moved'))
    const prepare = async (c: Client) => { await c.query('PREPARE by_hand AS SELECT * FROM moved') }
    const { pool } = await open(t, { reset }, { onConnect: prepare })
    const ask = (c: Client) => c.query('EXECUTE by_hand')
    await pool.use(ask)
    const failed = await pool.use(async (c) => {
      await ask(c)
      await admin.query('ALTER TABLE moved ADD COLUMN b int')
      return await tries(1, () => ask(c))
    })
    t.same(failed, ['0A000'])
    t.same(await tries(3, () => pool.use(ask)), [])
    t.equal(pool.stats().created, reset === 'session' ? 1 : 2, 'what no reset undoes is replaced')
    await pool.use((c) => c.query('DEALLOCATE by_hand'))
    t.same(await tries(3, () => pool.use(ask)), reset === 'session' ? [] : ['26000'])
  })

  t.test(`${reset}: a name that the server has and the driver does not know of fails once`, async (t) => {
    const { pool } = await open(t, { reset })
    const named = (name: string) => ({ name, text: 'SELECT 1 AS one' })
    await pool.use(async (c) => {
      await c.query(named('other'))
      await c.query("DO $$ BEGIN EXECUTE 'PREPARE mine AS SELECT 2'; END $$")
    })
    t.same(await tries(3, () => pool.use((c) => c.query(named('mine')))), ['42P05'])
    t.same((await pool.use((c) => c.query(named('mine')))).rows, [{ one: 1 }])
    t.equal(pool.stats().created, 1)
  })
}

t.test('what a server says of other things costs no connection', async (t) => {
  const { pool } = await open(t, { reset: 'none' })
  const named = { name: 'no_type', text: 'SELECT $1::no_such_type', values: ['x'] }
  t.same(await tries(2, () => pool.use((c) => c.query(named))), ['42704', '42704'])
  t.same(await tries(1, () => pool.use((c) => c.query('ALTER TABLE notes CLUSTER ON no_such_index'))), ['42704'])
  await pool.use((c) => c.query('SELECT 1'))
  t.equal(pool.stats().created, 1)
})

// --- Transactions ----------------------------------------------------------------------------------------------------

async function transact (
  t: Teardown, options?: TransactionOptions
): Promise<{ backend: PostgresConnector, c: Client, tx: Transaction<Client> }> {
  const backend = await postgresql({ url: server.url })
  const c = await backend.create(soon())
  t.teardown(async () => {
    await backend.destroy(c, 'closed')
    await backend.close!()
  })
  return { backend, c, tx: await backend.transactions!.begin(c, options ?? {}, soon()) }
}
const has = async (text: string) => await value(admin, `SELECT count(*)::int FROM notes WHERE text = '${text}'`) === 1

t.test('a transaction commits what its statements did, those still queued too', async (t) => {
  const { backend, c, tx } = await transact(t)
  t.equal(tx.connection, c)
  const queued = c.query("INSERT INTO notes (text) VALUES ('committed')")
  await tx.commit()
  await queued
  t.ok(await has('committed'))
  await tx.rollback()
  t.equal(backend.isBroken!(c), false)
})

t.test('a rollback undoes it, a failed one too, and does nothing the second time', async (t) => {
  const { backend, c, tx } = await transact(t)
  await c.query("INSERT INTO notes (text) VALUES ('undone')")
  await tx.rollback()
  t.notOk(await has('undone'))
  await tx.rollback()
  const failed = await backend.transactions!.begin(c, {}, soon())
  await t.rejects(c.query('SELECT 1/0'))
  await failed.rollback()
  t.equal(c.getTransactionStatus(), 'I')
})

t.test('isolation and read only are as asked for, else as the session has them', async (t) => {
  const { backend, c, tx } = await transact(t)
  t.equal(await value(c, 'SHOW transaction_isolation'), 'read committed')
  await tx.rollback()
  t.equal(backend.transactions!.readOnly, true)
  for (const isolation of backend.transactions!.isolation) {
    for (const readOnly of [true, false]) {
      const tx = await backend.transactions!.begin(c, { isolation, readOnly }, soon())
      t.equal(await value(c, 'SHOW transaction_isolation'), isolation)
      t.equal(await value(c, 'SHOW transaction_read_only'), readOnly ? 'on' : 'off')
      if (readOnly) await t.rejects(c.query("INSERT INTO notes (text) VALUES ('never')"), { code: '25006' })
      await tx.rollback()
    }
  }
  await t.rejects(backend.transactions!.begin(c, { isolation: 'snapshot' }, soon()), { code: 'FST_POOL_NOT_SUPPORTED' })
})

t.test('nothing is begun within a transaction that somebody began by hand', async (t) => {
  const { backend, c, tx } = await transact(t)
  await tx.rollback()
  await c.query('BEGIN')
  await t.rejects(backend.transactions!.begin(c, {}, soon()), { code: 'FST_POOL_NOT_SUPPORTED' })
})

t.test('a begin that a silent server never answers is given up at its deadline, with its connection', async (t) => {
  const proxy = await startProxy(t, server)
  const { pool } = await open(t, { host: proxy.host, port: proxy.port }, { acquireTimeout: 300 })
  const lease = await pool.acquire()
  await lease.connection.query('SELECT 1')
  proxy.blackHole()
  await t.rejects(lease.transaction(() => t.fail('it ran')), { code: 'FST_POOL_ACQUIRE_TIMEOUT' })
  t.equal(lease.ended, true)
  await proxy.heal()
  t.equal(await pool.transaction((c) => value(c, 'SELECT 1')), 1)
})

t.test('a transaction that failed is never committed: the error says so, with the reason', async (t) => {
  const { c, tx } = await transact(t)
  await c.query("INSERT INTO notes (text) VALUES ('half')")
  await t.rejects(c.query('SELECT 1/0'), { code: '22012' })
  await t.rejects(tx.commit(), { code: 'FST_POOL_TRANSACTION_ENDED', cause: { code: '22012' } })
  await tx.rollback()
  t.notOk(await has('half'))
  t.equal(c.getTransactionStatus(), 'I')
})

t.test('a constraint that fails at the commit is the commit\'s error', async (t) => {
  const { c, tx } = await transact(t)
  await c.query("INSERT INTO notes (text) VALUES ('one')")
  await t.rejects(tx.commit(), { code: '23505' })
  await tx.rollback()
  t.equal(c.getTransactionStatus(), 'I')
})

const ends = [
  'COMMIT', 'ROLLBACK', 'COMMIT; BEGIN', 'ROLLBACK; BEGIN', 'COMMIT AND CHAIN', 'ROLLBACK AND CHAIN', 'END', 'ABORT',
  'ABORT; BEGIN',
  'SAVEPOINT a; ROLLBACK; BEGIN',
]
for (const sql of ends) {
  t.test(`somebody's own ${sql} is seen: no commit resolves`, async (t) => {
    const { c, tx } = await transact(t)
    await c.query(sql)
    await c.query("INSERT INTO notes (text) VALUES ('foreign')")
    await t.rejects(tx.savepoint!('a'), { code: 'FST_POOL_TRANSACTION_ENDED' })
    await t.rejects(tx.commit(), { code: 'FST_POOL_TRANSACTION_ENDED' })
    await tx.rollback()
    t.equal(c.getTransactionStatus(), 'I')
    await admin.query("DELETE FROM notes WHERE text = 'foreign'")
  })
}

t.test('somebody\'s COMMIT of a failed transaction is seen', async (t) => {
  const { c, tx } = await transact(t)
  await t.rejects(c.query('SELECT 1/0'))
  await c.query('COMMIT; BEGIN')
  await t.rejects(tx.commit(), { code: 'FST_POOL_TRANSACTION_ENDED' })
})

t.test('somebody\'s own savepoints are no end', async (t) => {
  const { c, tx } = await transact(t)
  await c.query("INSERT INTO notes (text) VALUES ('kept'); SAVEPOINT mine")
  await t.rejects(c.query('SELECT 1/0'))
  for (const sql of ['ROLLBACK TO mine', 'rollback work to savepoint "mine"',
    'ROLLBACK  TRANSACTION TO mine; RELEASE mine']) await c.query(sql)
  await tx.commit()
  t.ok(await has('kept'))
})

t.test('PREPARE TRANSACTION is an end', needsOwn(server), async (t) => {
  const own = await startPostgres(t, { args: ['-c', 'max_prepared_transactions=2'] })
  const backend = await postgresql({ url: own.url })
  const c = await backend.create(soon())
  const tx = await backend.transactions!.begin(c, {}, soon())
  await c.query("PREPARE TRANSACTION 'x'; BEGIN")
  await t.rejects(tx.commit(), { code: 'FST_POOL_TRANSACTION_ENDED' })
  await tx.rollback()
  await c.query("ROLLBACK PREPARED 'x'")
  await backend.destroy(c, 'closed')
})

t.test('what has no text that is known is judged by what it did', async (t) => {
  class Textless extends pg.Query {
    constructor (readonly sent: string) { super({ text: undefined as unknown as string }) }
    override submit = (connection: pg.Connection) => {
      connection.query(this.sent)
      return null
    }
  }
  for (const [sql, ends] of [['SAVEPOINT a; ROLLBACK TO a', false], ['ROLLBACK; BEGIN', true]] as const) {
    const { c, tx } = await transact(t)
    await new Promise<void>((resolve) => { c.query(new Textless(sql)).on('end', () => resolve()) })
    if (ends) await t.rejects(tx.commit(), { code: 'FST_POOL_TRANSACTION_ENDED' })
    else await tx.commit()
  }
})

t.test('a commit that answers ROLLBACK is none', async (t) => {
  const { c, tx } = await transact(t)
  const { connection } = c as unknown as { connection: { query (text: string): void } }
  const send = connection.query.bind(connection)
  connection.query = (text) => send(text === 'COMMIT' ? 'ROLLBACK' : text)
  await t.rejects(tx.commit(), { code: 'FST_POOL_TRANSACTION_ENDED' })
})

/** The texts that go out on a connection from now on. */
function textsOf (c: Client, change = (text: string) => text): string[] {
  const { connection } = c as unknown as { connection: { query (text: string): void } }
  const send = connection.query.bind(connection)
  const texts: string[] = []
  connection.query = (text) => {
    texts.push(text)
    send(change(text))
  }
  return texts
}

t.test('the mark goes with BEGIN, and where it is looked for with COMMIT: neither costs a round trip', async (t) => {
  const { backend, c, tx } = await transact(t)
  await tx.rollback()
  const texts = textsOf(c)
  const plain = await backend.transactions!.begin(c, {}, soon())
  await plain.commit()
  t.match(texts.splice(0), [/^BEGIN; SET LOCAL fastify_pool\.mark = '\w{24}'$/, /^COMMIT$/])
  const doubtful = await backend.transactions!.begin(c, {}, soon())
  await c.query('SAVEPOINT mine; ROLLBACK TO mine')
  await doubtful.commit()
  t.match(texts.splice(0), [/^BEGIN/, /^SAVEPOINT/, /^SELECT .*fastify_pool\.mark.*; COMMIT$/])
  const after = await backend.transactions!.begin(c, {}, soon())
  await after.commit()
  t.equal(texts.pop(), 'COMMIT', 'a doubt is of one transaction')
})

t.test('a marked transaction is as its borrower makes it, and its check as well', async (t) => {
  const { backend, c, tx } = await transact(t)
  await tx.rollback()
  for (const isolation of backend.transactions!.isolation) {
    for (const readOnly of [true, false]) {
      const tx = await backend.transactions!.begin(c, { isolation, readOnly }, soon())
      await c.query('SAVEPOINT mine; ROLLBACK TO mine')
      await tx.commit()
    }
  }
  const own = await backend.transactions!.begin(c, {}, soon())
  await c.query('SET TRANSACTION ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE')
  t.equal(await value(c, 'SHOW transaction_isolation'), 'serializable', 'no snapshot was taken before')
  await own.commit()
  t.equal(await value(c, 'SHOW fastify_pool.mark'), '', 'no mark is left behind')
})

t.test('a borrower\'s own functions make no mark', async (t) => {
  await admin.query(`CREATE SCHEMA mine;
    CREATE FUNCTION mine.int4div (int, int) RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION mine.texteq (text, text) RETURNS bool LANGUAGE sql AS 'SELECT true'`)
  t.teardown(() => admin.query('DROP SCHEMA mine CASCADE'))
  const { c, tx } = await transact(t)
  await c.query('ROLLBACK; BEGIN; SET LOCAL search_path = mine, pg_catalog')
  await t.rejects(tx.commit(), { code: 'FST_POOL_TRANSACTION_ENDED', cause: { code: '22012' } })
})

t.test('what takes the mark away is an end where there is a doubt, and none where there is not', async (t) => {
  for (const doubt of [false, true]) {
    const { c, tx } = await transact(t)
    await c.query(`RESET ALL; SAVEPOINT mine; ${doubt ? 'ROLLBACK TO' : 'RELEASE'} mine`)
    if (doubt) await t.rejects(tx.commit(), { code: 'FST_POOL_TRANSACTION_ENDED' })
    else await tx.commit()
  }
})

t.test('what fails in the commit itself is the commit\'s error, behind a check too', async (t) => {
  await admin.query(`CREATE FUNCTION divides () RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM 1 / 0; END $$;
    CREATE CONSTRAINT TRIGGER divides AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.text = 'divides') EXECUTE FUNCTION divides()`)
  t.teardown(() => admin.query('DROP TRIGGER divides ON notes; DROP FUNCTION divides'))
  for (const [text, code] of [['one', '23505'], ['divides', '22012']]) {
    const { c, tx } = await transact(t)
    await c.query(`SAVEPOINT mine; ROLLBACK TO mine; INSERT INTO notes (text) VALUES ('${text}')`)
    await t.rejects(tx.commit(), { code })
    await tx.rollback()
    t.equal(c.getTransactionStatus(), 'I')
  }
})

t.test('a server that takes no mark begins nothing', async (t) => {
  const { backend, c, tx } = await transact(t)
  await tx.rollback()
  const texts = textsOf(c, (text) => text.replace('fastify_pool.mark', 'no_such_setting'))
  await t.rejects(backend.transactions!.begin(c, {}, soon()), { code: '42704' })
  t.equal(c.getTransactionStatus(), 'I')
  t.equal(texts.at(-1), 'ROLLBACK')
})

t.test('a savepoint that the borrower ended with another one: neither it nor the whole is committed', async (t) => {
  for (const how of ['RELEASE', 'ROLLBACK TO']) {
    const { c, tx } = await transact(t)
    await c.query('SAVEPOINT mine')
    const inner = await tx.savepoint!('sp_1')
    await c.query(`INSERT INTO notes (text) VALUES ('inner'); ${how} mine`)
    await t.rejects(inner.commit(), { code: 'FST_POOL_TRANSACTION_ENDED', cause: { code: '3B001' } })
    await inner.rollback()
    await t.rejects(tx.commit(), { code: 'FST_POOL_TRANSACTION_ENDED' })
    await tx.rollback()
  }
  const { c, tx } = await transact(t)
  const inner = await tx.savepoint!('sp_1')
  await c.query('SAVEPOINT sp_1; ROLLBACK TO sp_1; RELEASE sp_1')
  await inner.commit()
  await tx.commit()
  t.notOk(await has('inner'), 'a name that a borrower might have is not ours')
})

t.test('savepoints: released ones are part of the whole, rolled back ones are not', async (t) => {
  const { c, tx } = await transact(t)
  await c.query("INSERT INTO notes (text) VALUES ('outer')")
  const kept = await tx.savepoint!('sp_1')
  await c.query("INSERT INTO notes (text) VALUES ('inner')")
  const deeper = await kept.savepoint!('sp_2')
  await c.query("INSERT INTO notes (text) VALUES ('deeper')")
  await t.rejects(c.query('SELECT 1/0'))
  await t.rejects(deeper.commit(), { code: 'FST_POOL_TRANSACTION_ENDED', cause: { code: '22012' } })
  await deeper.rollback()
  await kept.commit()
  await tx.commit()
  t.same([await has('outer'), await has('inner'), await has('deeper')], [true, true, false])
})

t.test('a savepoint goes with its transaction', async (t) => {
  const { c, tx } = await transact(t)
  const savepoint = await tx.savepoint!('sp_1')
  await c.query('ROLLBACK')
  await t.rejects(savepoint.commit(), { code: 'FST_POOL_TRANSACTION_ENDED' })
  await savepoint.rollback()
  await c.query('BEGIN')
  await savepoint.rollback()
  t.equal(c.getTransactionStatus(), 'T', 'what was begun instead is left to the outermost')
  await tx.rollback()
  t.equal(c.getTransactionStatus(), 'I')
})

t.test('a transaction whose connection died was not committed, and its rollback rejects', async (t) => {
  const { c, tx } = await transact(t)
  await c.query("SET LOCAL idle_in_transaction_session_timeout = 50; INSERT INTO notes (text) VALUES ('lost')")
  await until(() => c.connection.stream.closed)
  await t.rejects(tx.commit(), { code: 'FST_POOL_TRANSACTION_ENDED', cause: { code: '25P03' } })
  await t.rejects(tx.rollback())
  t.notOk(await has('lost'))
})

t.test('serialization failures and deadlocks are transient, wherever they come up', async (t) => {
  const a = await transact(t, { isolation: 'serializable' })
  const b = await transact(t, { isolation: 'serializable' })
  for (const { c } of [a, b]) await c.query('SELECT sum(n) FROM notes')
  await a.c.query("UPDATE notes SET n = n + 1 WHERE text = 'one'")
  await b.c.query("UPDATE notes SET n = n + 1 WHERE text = 'two'")
  await a.tx.commit()
  const failure: unknown = await b.tx.commit().catch((error: unknown) => error)
  t.match(failure, { code: '40001' })
  const { isTransient } = a.backend.transactions!
  t.equal(isTransient(failure), true)
  await b.tx.rollback()
  const [x, y] =
    [await a.backend.transactions!.begin(a.c, {}, soon()), await b.backend.transactions!.begin(b.c, {}, soon())]
  await Promise.all([a, b].map(({ c }) => c.query("SET LOCAL deadlock_timeout = '50ms'")))
  await a.c.query("UPDATE notes SET n = 7 WHERE text = 'one'")
  await b.c.query("UPDATE notes SET n = 7 WHERE text = 'two'")
  const crossed = await Promise.allSettled([a.c.query("UPDATE notes SET n = 8 WHERE text = 'two'"), b.c.query("UPDATE notes SET n = 8 WHERE text = 'one'")]
    .map((work, i) => work.catch(async (error: unknown) => {
      const ended: unknown = await [x, y][i]!.commit().catch((error: unknown) => error)
      await [x, y][i]!.rollback()
      throw Object.assign(new Error('wrapped'), { cause: error, ended })
    })))
  const rejected = crossed.find((result) => result.status === 'rejected')!.reason as { cause: unknown, ended: unknown }
  t.match(rejected.cause, { code: '40P01' })
  t.match(rejected.ended, { code: 'FST_POOL_TRANSACTION_ENDED' })
  for (const error of [rejected, rejected.cause, rejected.ended]) t.equal(isTransient(error), true)
  for (const error of [undefined, null, 'text', new Error('x'), { code: '23505' }]) t.equal(isTransient(error), false)
  await x.rollback()
  await y.rollback()
})

// --- LISTEN and NOTIFY -----------------------------------------------------------------------------------------------

async function listener (
  t: Teardown, options: PostgresOptions = {}
): Promise<{ backend: PostgresConnector, name: string, events: DriverEvent[] }> {
  const name = freshName()
  const where = options.host === undefined ? { url: server.url } : {}
  const backend = await postgresql({
    ...where, ...options, connection: { application_name: name, user: 'postgres', ...options.connection },
  })
  const events: DriverEvent[] = []
  backend.onDriverEvent!((event) => { events.push(event) })
  t.teardown(() => backend.close!())
  return { backend, name, events }
}

t.test('listen: one connection for all channels, made at the first and closed with the last', async (t) => {
  const { backend, name } = await listener(t)
  t.equal(await known(name), 0)
  const heard: string[] = []
  const odd = 'Odd "name"; x'
  const stop = await Promise.all([
    backend.listen('plain', (payload, { channel }) => heard.push(`1 ${channel} ${payload}`)),
    backend.listen('plain', (payload, { channel }) => heard.push(`2 ${channel} ${payload}`)),
    backend.listen(odd, (payload, { channel }) => heard.push(`3 ${channel} ${payload}`)),
  ])
  t.equal(await known(name), 1)
  await admin.query("NOTIFY plain, 'a'; NOTIFY plain")
  await admin.query('SELECT pg_notify($1, $2)', [odd, 'b'])
  await until(() => heard.length === 5)
  t.same(heard, ['1 plain a', '2 plain a', '1 plain ', '2 plain ', `3 ${odd} b`])
  await stop[0]!()
  await stop[0]!()
  await admin.query("NOTIFY plain, 'c'")
  await until(() => heard.length === 6)
  t.equal(heard[5], '2 plain c')
  await stop[1]!()
  t.equal(await known(name), 1)
  await stop[2]!()
  t.equal(await known(name), 0)
  const again = await backend.listen('plain', (payload) => heard.push(payload))
  await admin.query("NOTIFY plain, 'd'")
  await until(() => heard.at(-1) === 'd')
  await backend.close!()
  t.equal(await known(name), 0)
  await again()
  await t.rejects(backend.listen('plain', () => {}), { code: 'FST_POOL_CLOSED' })
})

t.test('listen: after an outage every channel is listened to again, and whoever wants to know is told', async (t) => {
  const proxy = await startProxy(t, server)
  const { backend, events } = await listener(t, { host: proxy.host, port: proxy.port })
  const heard: string[] = []
  let reconnects = 0
  await backend.listen('a', (payload) => heard.push(payload), { onReconnect: () => { reconnects++ } })
  await backend.listen('b', (payload) => heard.push(payload))
  await proxy.refuse()
  proxy.resetAll()
  await until(() => events.filter(({ name }) => name === 'listen-failed').length >= 3)
  t.match(events.slice(0, 2),
    [{ name: 'listen-lost', code: 'ECONNRESET' }, { name: 'listen-failed', code: 'ECONNREFUSED' }])
  await t.rejects(backend.listen('c', () => {}), { code: 'FST_POOL_CONNECT_FAILED', cause: { code: 'ECONNREFUSED' } })
  await proxy.heal()
  await until(() => reconnects === 1)
  t.match(events.at(-1), { name: 'listen-restored', channels: 2 })
  await admin.query("NOTIFY a, '1'; NOTIFY b, '2'; NOTIFY c, '3'")
  await until(() => heard.length === 2)
  t.same(heard, ['1', '2'])
})

t.test('listen: during an outage neither the end of a channel nor close waits', async (t) => {
  const proxy = await startProxy(t, server)
  const { backend, events } = await listener(t, { host: proxy.host, port: proxy.port })
  const stop = await backend.listen('a', () => {})
  await backend.listen('b', () => {})
  await proxy.refuse()
  proxy.endAll()
  await until(() => events.length >= 4)
  t.match(events[0], { name: 'listen-lost', code: 'Error' })
  await stop()
  await until(() => events.length >= 8)
  await backend.close!()
})

t.test('listen: nothing is heard after its end was asked for', async (t) => {
  const { backend } = await listener(t)
  const stop = await backend.listen('a', () => t.fail('heard'))
  const notified = admin.query('NOTIFY a')
  await Promise.all([stop(), notified])
})

t.test('listen: a restart of the server is an outage like any other', needsOwn(server), async (t) => {
  const own = await startPostgres(t, { own: true })
  const { backend } = await listener(t, { url: own.url })
  const heard: string[] = []
  let reconnects = 0
  await backend.listen('a', (payload) => heard.push(payload), { onReconnect: () => { reconnects++ } })
  await own.stop()
  await own.restart()
  await until(() => reconnects === 1)
  const other = await client(t, own.url)
  await other.query("NOTIFY a, 'back'")
  await until(() => heard.length === 1)
})

t.test('listen: what a listener throws is told, and the others go on', async (t) => {
  const { backend, events } = await listener(t)
  let heard = 0
  await backend.listen('a', () => { throw new Error('sync') })
  await backend.listen('a', async () => { throw new Error('async') },
    { onReconnect: () => { throw new Error('again') } })
  await backend.listen('a', () => { heard++ })
  await admin.query('NOTIFY a')
  await until(() => events.length === 2 && heard === 1)
  t.same(events, [{ name: 'listener-error', channel: 'a', message: 'sync' }, {
    name: 'listener-error', channel: 'a', message: 'async',
  }])
  await admin.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
  await until(() => events.some(({ message }) => message === 'again'))
})

t.test('listen: where nobody listens to events, a warning tells of it', async (t) => {
  const backend = await postgresql({ url: server.url })
  const warned = event<Error>(process, 'warning', { where: ({ name }) => name === 'PoolWarning' })
  await backend.listen('w', () => { throw new Error('nobody hears') })
  await admin.query('NOTIFY w')
  t.match(await warned, { message: /channel w failed: nobody hears/ })
  await backend.close!()
})

t.test('listen: bad arguments and a server that refuses are told', async (t) => {
  const { backend } = await listener(t, { connection: { options: '-c default_transaction_isolation=serializable' } })
  for (const channel of ['', 'x'.repeat(64), 'a\0b',
    undefined as unknown as string]) await t.rejects(backend.listen(channel, () => {}), { code: 'FST_POOL_BAD_OPTIONS' })
  await t.rejects(backend.listen('a', undefined as unknown as () => void), { code: 'FST_POOL_BAD_OPTIONS' })
  const nowhere = await listener(t, { database: 'nowhere' })
  await t.rejects(nowhere.backend.listen('a', () => {}), { code: 'FST_POOL_CONNECT_FAILED', cause: { code: '3D000' } })
})

t.test('listen: a silent server holds up neither listen nor close', async (t) => {
  const proxy = await startProxy(t, server)
  proxy.silence()
  const { backend } = await listener(t, { host: proxy.host, port: proxy.port, connectTimeout: 100 })
  await t.rejects(backend.listen('a', () => {}),
    { code: 'FST_POOL_CONNECT_FAILED', cause: { message: /connectTimeout/ } })
  await proxy.heal()
  await backend.listen('a', () => {})
  proxy.blackHole()
  await t.rejects(backend.listen('b', () => {}), { name: /TimeoutError|PoolError/ })
  const waiting = t.rejects(backend.listen('c', () => {}), { code: 'FST_POOL_CLOSED' })
  await backend.close!()
  await waiting
})

// --- Options ---------------------------------------------------------------------------------------------------------

t.test('options: what belongs to the pool, or elsewhere, is refused by name', async (t) => {
  const refused: Array<[PostgresOptions & Record<string, unknown>, RegExp]> = [
    [{ connection: { pipeline: true } }, /connection\.pipeline .*a reset must be known/],
    [{ connection: { max: 5 } }, /connection\.max .*option max/],
    [{ connection: { idleTimeoutMillis: 5 } }, /option idleTimeout/],
    [{ connection: { connectionTimeoutMillis: 5 } }, /option connectTimeout/],
    [{ connection: { allowExitOnIdle: true } }, /allowExitOnIdle/],
    [{ connection: { connectionString: 'postgres://u:topsecret@h/d' } }, /option url/],
    [{ connection: { host: 'h' } }, /option host/],
    [{ connection: { tls: {} } }, /pg calls it ssl/],
    [{ connection: { stream: {} } }, /a function/],
    [{ connection: { database: 'x' }, database: 'y' }, /next to the option database/],
    [{ user: 'me' }, /inside of connection: \{ user \}/],
    [{ username: 'me' }, /pg calls it user/],
    [{ url: 'postgres://h/d', host: 'h' }, /no host next to a url/],
    [{ url: 'postgres://h/d', port: 5 }, /no port next to a url/],
    [{ url: 'mysql://u:topsecret@h/d' }, /postgresql:\/\//],
    [{ url: 'postgres://u:topsecret@h:port/d' }, /can parse/],
    [{ url: 'postgres://h/d?max=5' }, /without max/],
    [{ url: 'postgres://u:topsecret@h/d?sslrootcert=/does/not/exist' }, /certificate files/],
    [{ url: 5 as unknown as string }, /postgresql:\/\//],
  ]
  for (const [options, message] of refused) {
    const error = await postgresql(options).catch((error: unknown) => error) as Error
    t.match(error, { code: 'FST_POOL_BAD_OPTIONS', message })
    t.notMatch(`${error.stack} ${String(error.cause)}`, /topsecret/)
  }
})

t.test('options: the url is pg\'s, and the others win over it', async (t) => {
  const parts = new URL(server.url)
  const { username, host } = parts
  const at = `${username}${parts.password && ':' + parts.password}@${host}`
  const backend =
    await postgresql({ url: `postgresql://${at}/nowhere?application_name=from-url`, database: 'postgres', connection: { application_name: 'from-connection', user: undefined } })
  const c = await backend.create(soon())
  t.equal(await value(c, 'SHOW application_name'), 'from-connection')
  t.equal(await value(c, 'SELECT current_database()'), 'postgres')
  await backend.destroy(c, 'closed')
  await backend.close!()
})

t.test('a Unix socket is found by its folder, and a cancel goes there too', needsOwn(server), async (t) => {
  // Not `t.testdir()`: the path of a socket may have but 107 bytes.
  const dir = mkdtempSync(join(tmpdir(), 'fastify-pool-unix-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  const proxy = createServer({ allowHalfOpen: true }, (socket) => {
    const there = connect({ host: server.host, port: server.port, allowHalfOpen: true })
    socket.pipe(there).pipe(socket)
    for (const [one, other] of [[socket, there], [there, socket]] as const) {
      one.on('close', () => other.destroy())
      one.on('error', () => other.destroy())
    }
  })
  proxy.listen(join(dir, '.s.PGSQL.5432'))
  await until(() => proxy.listening)
  t.teardown(() => proxy.close())
  const { pool, name } = await open(t, { host: dir, port: 5432 })
  const lease = await pool.acquire()
  const running = lease.connection.query('SELECT pg_sleep(60)').catch((error: unknown) => error)
  lease.destroy()
  t.match(await running, { code: '57014' })
  await until(() => pool.stats().closing === 0)
  t.equal(await known(name), 0)
})

t.test('a server that gives no key is not asked to cancel', async (t) => {
  // Says no more than that it is ready, once.
  const sockets = new Set<Socket>()
  const fake = createServer((socket) => {
    sockets.add(socket)
    socket.on('error', () => { /* The client's business. */ })
    socket.once('data', () => socket.write(Buffer.from([0x52, 0, 0, 0, 8, 0, 0, 0, 0, 0x5a, 0, 0, 0, 5, 0x49])))
  })
  fake.listen(0, '127.0.0.1')
  await until(() => fake.listening)
  t.teardown(() => { fake.close(); for (const socket of sockets) socket.destroy() })
  const backend = await postgresql({
    host: '127.0.0.1', port: (fake.address() as AddressInfo).port, connection: { user: 'x' },
  })
  const c = await backend.create(soon())
  const running = c.query('SELECT 1').catch((error: unknown) => error)
  await backend.destroy(c, 'error')
  t.match(await running, { message: /terminated/ })
  t.equal(sockets.size, 1)
})
