import { Readable } from 'node:stream'
import { finished, pipeline } from 'node:stream/promises'
import pg from 'pg'
import type { Client } from 'pg'
import copy from 'pg-copy-streams'
import QueryStream from 'pg-query-stream'
import t from 'tap'
import { postgresql } from '../../lib/backends/postgresql/connector.js'
import { startPostgres } from '../support/services.js'
import { until } from '../support/until.js'
import { collide, contract } from './contract.js'
import type { Ending, Failing, Subject, Trace } from './contract.js'
import { startNeighbour } from './neighbour.js'

const server = await startPostgres(t, { own: true, args: ['-c', 'max_prepared_transactions=5'] })
const admin = new pg.Client(server.url)
await admin.connect()
t.teardown(() => admin.end())

/** The one value of the one row. */
const value = async (connection: Client, sql: string): Promise<unknown> =>
  Object.values((await connection.query<Record<string, unknown>>(sql)).rows[0] ?? {})[0]
const setting = (name: string, other: string): Trace<Client> => ({
  name: `the setting ${name}`,
  leave: (connection) => connection.query(`SET ${name} = '${other}'`),
  seen: async (connection) => await value(connection, `SHOW ${name}`) === other,
})

const ours = `contract_${process.pid}`
await admin.query(`CREATE TABLE ${ours}_lines (line text); CREATE TABLE ${ours}_skew (line text); CREATE SEQUENCE ${ours}_sequence; CREATE ROLE ${ours}_role; GRANT ALL ON SEQUENCE ${ours}_sequence TO PUBLIC`)
await admin.query(`CREATE PROCEDURE ${ours}_commits () LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$;
  CREATE FUNCTION ${ours}_function () RETURNS void LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$`)
t.teardown(() => admin.query(`DROP PROCEDURE ${ours}_commits; DROP FUNCTION ${ours}_function`))
t.teardown(() =>
  admin.query(`DROP TABLE ${ours}_lines, ${ours}_skew; DROP SEQUENCE ${ours}_sequence; DROP ROLE ${ours}_role`))

await admin.query('SELECT setseed(0.42)')
/** The first number after that seed. */
const seeded = await value(admin, 'SELECT round(random()::numeric, 12)::text')

const ignored = () => {}
/** What a request puts in the place of a method. */
const queryAsItIs = function (this: Client, ...args: unknown[]) {
  const { query } = Object.getPrototypeOf(this) as { query: (...args: unknown[]) => unknown }
  return query.apply(this, args)
} as Client['query']

const traces: Array<Trace<Client>> = [
  setting('statement_timeout', '12345ms'),
  setting('lock_timeout', '23456ms'),
  setting('TimeZone', 'Asia/Tokyo'),
  setting('application_name', 'somebody'),
  setting('search_path', 'elsewhere'),
  setting('client_encoding', 'LATIN1'),
  {
    name: 'a setting by set_config',
    leave: (connection) => connection.query("SELECT set_config('my.tenant', '42', false)"),
    seen: async (connection) => Boolean(await value(connection, "SELECT current_setting('my.tenant', true)")),
  },
  {
    name: 'SET SESSION CHARACTERISTICS',
    leave: (connection) =>
      connection.query('SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY'),
    seen: async (connection) => await value(connection, 'SHOW default_transaction_isolation') === 'serializable',
    alone: 'temp tables apart, what only reads can leave little else',
  },
  {
    name: 'a temp table',
    leave: (connection) => connection.query('CREATE TEMP TABLE left_behind (x int)'),
    seen: async (connection) =>
      Boolean(await value(connection, "SELECT to_regclass('pg_temp.left_behind') IS NOT NULL")),
  },
  {
    name: 'an advisory lock',
    leave: (connection) => connection.query('SELECT pg_advisory_lock(4711)'),
    seen: async (connection) =>
      await value(connection,
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()") !== '0',
  },
  {
    name: 'LISTEN',
    leave: (connection) => connection.query('LISTEN channel_left'),
    seen: async (connection) => await value(connection, 'SELECT count(*) FROM pg_listening_channels()') !== '0',
  },
  {
    name: 'a cursor WITH HOLD',
    leave: (connection) => connection.query('DECLARE held CURSOR WITH HOLD FOR SELECT 1'),
    seen: async (connection) => await value(connection, 'SELECT count(*) FROM pg_cursors WHERE is_holdable') !== '0',
  },
  {
    name: 'a statement by SQL PREPARE',
    leave: (connection) => connection.query('PREPARE prepared_by_hand AS SELECT 1'),
    seen: async (connection) =>
      await value(connection, 'SELECT count(*) FROM pg_prepared_statements WHERE from_sql') !== '0',
  },
  {
    name: 'the last value of a sequence',
    leave: (connection) => connection.query(`SELECT nextval('public.${ours}_sequence')`),
    seen: async (connection) => {
      try {
        await connection.query('SELECT lastval()')
        return true
      } catch (error) {
        if ((error as { code?: string }).code !== '55000') throw error
        return false
      }
    },
    alone: 'looking for it fails a transaction that is open',
  },
  {
    name: 'a listener for notifications',
    leave: (connection) => connection.on('notification', () => {}),
    seen: (connection) => connection.listenerCount('notification') > 0,
  },
  {
    name: 'a type parser',
    leave: (connection) => connection.setTypeParser(23, () => 'mine'),
    seen: async (connection) => await value(connection, 'SELECT 7') === 'mine',
  },
  {
    name: 'binary results',
    leave: (connection) => { Object.assign(connection, { binary: true }) },
    seen: (connection) => Reflect.get(connection, 'binary') === true,
  },
  {
    name: 'a property of the object',
    leave: (connection) => { Object.assign(connection, { tenant: 'mine' }) },
    seen: (connection) => 'tenant' in connection,
  },
  {
    name: 'a query of its own',
    leave: (connection) => { connection.query = queryAsItIs },
    seen: (connection) => connection.query === queryAsItIs,
  },
  {
    name: 'a setTypeParser of its own',
    leave: (connection) => { connection.setTypeParser = ignored },
    seen: (connection) => connection.setTypeParser === ignored,
  },
  {
    name: 'the seed of random()',
    stays: 'no statement of PostgreSQL brings the old one back',
    leave: (connection) => connection.query('SELECT setseed(0.42)'),
    seen: async (connection) => await value(connection, 'SELECT round(random()::numeric, 12)::text') === seeded,
    fleeting: true,
    alone: 'looking for it takes the next number',
  },
  {
    name: 'a statement that the driver named',
    stays: 'the driver knows of it, and what it prepared is what it runs',
    leave: (connection) => connection.query({ name: 'named', text: 'SELECT 7 AS x' }),
    seen: async (connection) => {
      const known = await value(connection, "SELECT count(*) FROM pg_prepared_statements WHERE name = 'named'")
      const { rows } = await connection.query({ name: 'named', text: 'SELECT 7 AS x' })
      return known === '1' && rows[0].x === 7
    },
    alone: 'an SQL PREPARE takes it along',
  },
  {
    name: 'SET SESSION AUTHORIZATION',
    leave: (connection) => connection.query(`SET SESSION AUTHORIZATION ${ours}_role`),
    seen: async (connection) => await value(connection, 'SELECT session_user') === `${ours}_role`,
    alone: 'it ends a SET ROLE',
  },
  {
    name: 'SET ROLE',
    leave: (connection) => connection.query(`SET ROLE ${ours}_role`),
    seen: async (connection) => await value(connection, 'SELECT current_user') === `${ours}_role`,
  },
  {
    name: 'a failed transaction',
    transaction: true,
    leave: (connection) => connection.query('BEGIN; SELECT 1 / 0')
      .catch((error: { code?: string }) => { if (error.code !== '22012') throw error }),
    seen: async (connection) => {
      try {
        await connection.query('SELECT 1')
        return false
      } catch (error) {
        if ((error as { code?: string }).code !== '25P02') throw error
        return true
      }
    },
    alone: 'nothing else can be left with it',
  },
  {
    name: 'an open transaction with a savepoint and a cursor',
    transaction: true,
    leave: (connection) => connection.query('BEGIN; SAVEPOINT mine; DECLARE open_cursor CURSOR FOR SELECT 1'),
    seen: async (connection) => await value(connection, 'SELECT now() = statement_timestamp()') === false ||
      await value(connection, 'SELECT count(*) FROM pg_cursors WHERE NOT is_holdable') !== '0',
  },
]

const ends = [
  'ROLLBACK', 'COMMIT', 'END', 'ABORT', 'ROLLBACK; BEGIN', 'COMMIT; BEGIN', 'COMMIT AND CHAIN', 'ROLLBACK AND CHAIN',
  'SAVEPOINT s; ROLLBACK TO s; ROLLBACK; BEGIN', 'ROLLBACK; BEGIN /* not a ROLLBACK TO a savepoint */',
  "ROLLBACK; BEGIN; SELECT 'rollback to s'", 'ROLLBACK; BEGIN; SAVEPOINT s; ROLLBACK TO s',
  'SAVEPOINT s; ROLLBACK AND CHAIN', "ROLLBACK; BEGIN; SELECT set_config('fastify_pool.mark', 'a guess', true)",
]
const goOn = [
  'SAVEPOINT s; ROLLBACK TO s', 'SAVEPOINT s; rollback work to savepoint "s"; RELEASE s', "SELECT 'rollback; begin'",
  'BEGIN',
  'SET LOCAL search_path = pg_temp, public; SAVEPOINT s; ROLLBACK TO s',
  "DO $$ BEGIN PERFORM set_config('app.user', 'x', true); END $$", 'SELECT 1; SELECT 2',
  'DECLARE c CURSOR FOR SELECT 1; FETCH c; CLOSE c', '',
]
const read = async (stream: Readable) => {
  stream.resume()
  await finished(stream)
}
const refusedEnd = (sql: string): Ending<Client> => ({
  name: `${sql}, which the server refuses, and ROLLBACK TO before it`,
  goesOn: true,
  end: async (connection) => {
    await connection.query('SAVEPOINT s')
    const error: unknown = await connection.query(sql).catch((error: unknown) => error)
    if (!(error instanceof Error)) throw new Error(`${sql} was not refused`)
    await connection.query('ROLLBACK TO s')
  },
})

/** By a statement of its own, by a named one, by a cursor, in rows as they come. */
const endings: Array<Ending<Client>> = [
  ...ends.map((sql): Ending<Client> => ({ name: sql, end: (connection) => connection.query(sql) })),
  ...goOn.map((sql): Ending<Client> => ({ name: `'${sql}'`, goesOn: true, end: (client) => client.query(sql) })),
  {
    name: 'ROLLBACK, then BEGIN',
    end: async (connection) => {
      await connection.query('ROLLBACK')
      await connection.query('BEGIN')
    },
  },
  {
    name: 'ROLLBACK AND CHAIN as a named statement',
    end: (connection) => connection.query({ name: 'chain', text: 'ROLLBACK AND CHAIN' }),
  },
  {
    name: 'ROLLBACK TO as a named statement',
    goesOn: true,
    end: async (connection) => {
      await connection.query({ name: 'savepoint', text: 'SAVEPOINT s' })
      await connection.query({ name: 'back', text: 'ROLLBACK TO s' })
    },
  },
  {
    name: 'COMMIT AND CHAIN read as a stream',
    end: async (connection) => {
      await read(connection.query(new QueryStream('COMMIT AND CHAIN')))
    },
  },
  {
    name: 'PREPARE TRANSACTION',
    end: async (connection) => {
      for (const sql of ["PREPARE TRANSACTION 'x'", "ROLLBACK PREPARED 'x'", 'BEGIN']) await connection.query(sql)
    },
  },
  {
    name: 'a query stream, and ROLLBACK TO behind it',
    goesOn: true,
    end: async (connection) => {
      await connection.query('SAVEPOINT s')
      await read(connection.query(new QueryStream('SELECT generate_series(1, 300)')))
      await connection.query('ROLLBACK TO s')
    },
  },
  {
    name: 'COPY in and out, and ROLLBACK TO behind it',
    goesOn: true,
    end: async (connection) => {
      await connection.query('SAVEPOINT s')
      await pipeline(Readable.from(['copied\n']), connection.query(copy.from(`COPY ${ours}_lines FROM STDIN`)))
      await read(connection.query(copy.to(`COPY ${ours}_lines TO STDOUT`)))
      await connection.query('ROLLBACK TO s')
    },
  },
  {
    name: 'COPY, and ROLLBACK AND CHAIN behind it',
    end: async (connection) => {
      await read(connection.query(copy.to(`COPY ${ours}_lines TO STDOUT`)))
      await connection.query('ROLLBACK AND CHAIN')
    },
  },
  {
    name: 'a procedure that commits, between a ROLLBACK and a BEGIN',
    end: async (connection) => {
      await connection.query('ROLLBACK')
      await connection.query(`CALL ${ours}_commits()`)
      await connection.query('BEGIN')
    },
  },
  refusedEnd(`CALL ${ours}_commits()`),
  refusedEnd('DO $$ BEGIN COMMIT; END $$'),
  refusedEnd(`SELECT ${ours}_function()`),
  refusedEnd('SELECT 1 / 0'),
]

const secure = await startPostgres(t, { scram: true })
await admin.query(`CREATE ROLE ${ours}_none LOGIN CONNECTION LIMIT 0`)
await admin.query(`CREATE ROLE ${ours}_other LOGIN`)
await admin.query(`CREATE DATABASE ${ours}_closed`)
await admin.query(`REVOKE CONNECT ON DATABASE ${ours}_closed FROM PUBLIC`)
t.teardown(() => admin.query(`DROP DATABASE ${ours}_closed`))
t.teardown(() => admin.query(`DROP ROLE ${ours}_none, ${ours}_other`))

const failing = (name: string, permanent: boolean, parts: { [part: string]: string }, at = server) => ({
  name,
  permanent,
  connector: () => postgresql({ url: Object.assign(new URL(at.url), parts).href }),
})
const failures: Array<Failing<Client>> = [
  failing('a wrong password (28P01)', true, { password: 'wrong' }, secure),
  failing('no password', true, { password: '' }, secure),
  failing('no such user (28000)', true, { username: 'nobody' }),
  failing('no such database (3D000)', true, { pathname: '/nowhere' }),
  failing('a database that the user may not use (42501)', true, { username: `${ours}_other`, pathname: `/${ours}_closed` }),
  failing('TLS, which the server has not', true, { search: '?sslmode=require' }),
  failing('too many connections (53300)', false, { username: `${ours}_none` }),
]

/** @param whole the mode that undoes everything */
const connectorOf = (whole: 'session' | 'joined'): Subject<Client>['connector'] =>
  ({ host, port }, { reset, name, password, resetTimeout = 1000 }) => {
    const url = new URL(server.url)
    Object.assign(url, { hostname: host, port: String(port), ...(password !== undefined && { password }) })
    const mode = reset === 'session' ? whole : reset
    return postgresql({ url: url.href, reset: mode, resetTimeout, connection: { application_name: name } })
  }

const subject: Subject<Client> = {
  address: server,
  max: 4,
  connector: connectorOf('session'),
  isDriver: (connection) => connection instanceof pg.Client,
  id: (connection) => value(connection, 'SELECT pg_backend_pid()::text').then(Number),
  count: async (name) =>
    Number((await admin.query('SELECT count(*) FROM pg_stat_activity WHERE application_name = $1', [name]))
      .rows[0].count),
  end: async (id) => {
    await admin.query('SELECT pg_terminate_backend($1)', [id])
    await until(async () => (await admin.query('SELECT FROM pg_stat_activity WHERE pid = $1', [id])).rowCount === 0,
      { what: `backend ${String(id)} is gone` })
  },
  ask: async (connection) => {
    await connection.query({ name: 'ask', text: 'SELECT $1::text AS x', values: ['x'] })
  },
  block: (connection) => connection.query('SELECT pg_sleep(60)'),
  blockEnds: true,
  linger: (connection) => connection.query('SELECT pg_sleep(0.03)'),
  written: (connection) => (connection as unknown as { connection: { stream: { bytesWritten: number } } })
    .connection.stream.bytesWritten,
  dies: true,
  renewed: true,
  password: true,
  failures,
  describes: 'named',
  setting: {
    set: (connection) => connection.query('SET search_path = app'),
    change: (connection) => connection.query('SET search_path = other'),
    isSet: async (connection) => await value(connection, 'SHOW search_path') === 'app',
  },
  traces,
  rows: {
    prepare: () => {},
    add: (connection, row) => connection.query(`INSERT INTO ${ours}_lines VALUES ($1)`, [row]),
    all: async (connection) => (await connection.query<{ line: string }>(`SELECT line FROM ${ours}_lines`))
      .rows.map(({ line }) => line),
    level: async (connection) => String(await value(connection, 'SHOW transaction_isolation')),
    snapshot: { isolation: 'repeatable read', readOnly: true },
    endings,
    // Write skew: each adds what the other would have had to count.
    conflict: (t, run) => collide<Client>(
      (connection) => connection.query(`SELECT count(*) FROM ${ours}_skew`),
      (connection) => connection.query(`INSERT INTO ${ours}_skew VALUES ('x')`),
      { isolation: 'serializable' })(t, run),
  },
  shared: true,
  neighbour: {
    start: (t) => startNeighbour(t, 'postgresql', { url: server.url, table: `${ours}_lines` }),
    add: (connection, row) => connection.query(`INSERT INTO ${ours}_lines VALUES ($1)`, [row]),
    fail: (connection) => connection.query('INSERT INTO nowhere VALUES (1)'),
  },
}

t.test('postgresql', (t) => contract(t, subject))
t.test("postgresql, reset: 'joined'", async (t) => {
  await admin.query(`TRUNCATE ${ours}_lines, ${ours}_skew`)
  await contract(t, { ...subject, whole: 'joined', connector: connectorOf('joined') })
})
