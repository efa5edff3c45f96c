import { createConnection } from 'mysql2/promise'
import type { Connection, RowDataPacket } from 'mysql2/promise'
import t from 'tap'
import { mysql } from '../../lib/backends/mysql/connector.js'
import { startMariadb } from '../support/services.js'
import { until } from '../support/until.js'
import { collide, contract } from './contract.js'
import type { Ending, Failing, Subject, Trace } from './contract.js'
import { startNeighbour } from './neighbour.js'

const server = await startMariadb(t, { own: true })
const admin = await createConnection(server.url)

/** The one value of the one row. */
const value = async (connection: Connection, sql: string, values?: unknown[]): Promise<unknown> => {
  const [rows] = await connection.query<RowDataPacket[]>(sql, values)
  return Object.values(rows[0] ?? {})[0]
}

/**
 * The database of our tables, and by its beginning those of the pools: the server knows a connection by its database.
 */
const ours = `contract_${process.pid}`
const databases = [ours]
await admin.query(`CREATE DATABASE ${ours}`)
for (const table of ['lines_ (line VARCHAR(100))', 'levels (x INT)', 'pairs (id INT PRIMARY KEY, n INT)',
  'counters (id INT AUTO_INCREMENT PRIMARY KEY)']) await admin.query(`CREATE TABLE ${ours}.${table}`)
await admin.query(`INSERT INTO ${ours}.pairs VALUES (0, 0), (1, 0)`)
await admin.query(`CREATE ROLE ${ours}_role`)
t.teardown(async () => {
  for (const name of databases) await admin.query(`DROP DATABASE ${name}`)
  await admin.query(`DROP ROLE ${ours}_role`)
  await admin.end()
})

const variable = (name: string, other: string | number): Trace<Connection> => ({
  name: `the variable ${name}`,
  leave: (connection) => connection.query(`SET SESSION ${name} = ${typeof other === 'string' ? `'${other}'` : other}`),
  seen: async (connection) => await value(connection, `SELECT @@SESSION.${name}`) === other,
})

/** What a request puts in the place of a method. */
const queryAsItIs = function (this: Connection, ...args: unknown[]) {
  const { query } = Object.getPrototypeOf(this) as { query: (...args: unknown[]) => unknown }
  return query.apply(this, args)
} as Connection['query']
const asItIs = (_field: unknown, next: () => unknown) => next()

const traces: Array<Trace<Connection>> = [
  variable('sql_mode', 'ANSI_QUOTES'),
  variable('time_zone', '+09:00'),
  variable('autocommit', 0),
  variable('tx_isolation', 'SERIALIZABLE'),
  variable('foreign_key_checks', 0),
  {
    name: 'a user variable',
    leave: (connection) => connection.query('SET @tenant = 42'),
    seen: async (connection) => await value(connection, 'SELECT @tenant') !== null,
  },
  {
    name: 'SET NAMES',
    leave: (connection) => connection.query('SET NAMES latin1'),
    seen: async (connection) => await value(connection, 'SELECT @@character_set_client') === 'latin1' ||
      await value(connection, "SELECT 'é€'") !== 'é€',
  },
  {
    name: 'another database',
    leave: (connection) => connection.query(`USE ${ours}`),
    seen: async (connection) => await value(connection, 'SELECT DATABASE()') === ours,
  },
  {
    name: 'a temporary table',
    leave: (connection) => connection.query(`CREATE TEMPORARY TABLE ${ours}.left_behind (x INT)`),
    seen: async (connection) => {
      try {
        await connection.query(`SELECT * FROM ${ours}.left_behind`)
        return true
      } catch (error) {
        if ((error as { code?: string }).code !== 'ER_NO_SUCH_TABLE') throw error
        return false
      }
    },
  },
  {
    name: 'a lock by GET_LOCK',
    leave: (connection) => connection.query(`SELECT GET_LOCK('${ours}', 1)`),
    seen: async (connection) => await value(connection, `SELECT IS_USED_LOCK('${ours}') <=> CONNECTION_ID()`) === 1,
  },
  {
    name: 'a statement by SQL PREPARE',
    leave: (connection) => connection.query("PREPARE by_hand FROM 'SELECT 1'"),
    seen: async (connection) => {
      try {
        await connection.query('EXECUTE by_hand')
        return true
      } catch (error) {
        if ((error as { code?: string }).code !== 'ER_UNKNOWN_STMT_HANDLER') throw error
        return false
      }
    },
  },
  {
    name: 'the last insert id',
    leave: (connection) => connection.query(`INSERT INTO ${ours}.counters VALUES ()`),
    seen: async (connection) => Number(await value(connection, 'SELECT LAST_INSERT_ID()')) > 0,
  },
  {
    name: 'an open HANDLER',
    leave: (connection) => connection.query(`HANDLER ${ours}.pairs OPEN AS handled`),
    seen: async (connection) => {
      try {
        await connection.query('HANDLER handled READ FIRST')
        return true
      } catch (error) {
        if ((error as { code?: string }).code !== 'ER_UNKNOWN_TABLE') throw error
        return false
      }
    },
  },
  {
    name: 'SET ROLE',
    leave: (connection) => connection.query(`SET ROLE ${ours}_role`),
    seen: async (connection) => await value(connection, 'SELECT CURRENT_ROLE()') !== null,
  },
  {
    name: 'another typeCast',
    leave: (connection) => { connection.config.typeCast = asItIs },
    seen: (connection) => connection.config.typeCast === asItIs,
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
    name: 'a listener',
    transaction: true,
    leave: (connection) => connection.on('enqueue', () => {}),
    seen: (connection) => connection.listenerCount('enqueue') > 0,
  },
  {
    name: 'LOCK TABLES',
    leave: (connection) => connection.query(`LOCK TABLES ${ours}.pairs READ`),
    seen: async (connection) => {
      try {
        await connection.query(`SELECT * FROM ${ours}.levels`)
        return false
      } catch (error) {
        if ((error as { code?: string }).code !== 'ER_TABLE_NOT_LOCKED') throw error
        return true
      }
    },
    alone: 'it commits, and no other table can be used',
  },
  {
    name: 'an open transaction with a savepoint',
    transaction: true,
    leave: (connection) =>
      Promise.all(['START TRANSACTION', `INSERT INTO ${ours}.levels VALUES (7)`,
        'SAVEPOINT mine'].map((sql) => connection.query(sql))),
    seen: async (connection) => {
      try {
        await connection.query('RELEASE SAVEPOINT mine')
        return true
      } catch (error) {
        if ((error as { code?: string }).code !== 'ER_SP_DOES_NOT_EXIST') throw error
        return Number(await value(connection, 'SELECT @@in_transaction')) === 1
      }
    },
  },
]

await admin.query(`CREATE PROCEDURE ${ours}.begins_another () BEGIN COMMIT; START TRANSACTION; END`)
await admin.query(`CREATE PROCEDURE ${ours}.only_reads () SELECT 1`)

/** One after the other. */
const sent = (...statements: string[]): Pick<Ending<Connection>, 'name' | 'end'> => ({
  name: statements.join('; '),
  end: async (connection) => { for (const sql of statements) await connection.query(sql) },
})
const refusedEnd = (sql: string): Ending<Connection> => ({
  name: `${sql}, which the server refuses`,
  goesOn: true,
  end: async (connection) => {
    const error: unknown = await connection.query(sql).catch((error: unknown) => error)
    if (!(error instanceof Error)) throw new Error(`${sql} was not refused`)
  },
})

const endings: Array<Ending<Connection>> = [
  sent('ROLLBACK'), sent('COMMIT'), sent('ROLLBACK', 'START TRANSACTION'), sent('COMMIT', 'BEGIN'),
  sent('FLUSH STATUS'), sent('START TRANSACTION'), sent('COMMIT AND CHAIN'), sent('ROLLBACK AND CHAIN'),
  sent('SAVEPOINT s', 'ROLLBACK TO s', 'ROLLBACK AND CHAIN'),
  sent('/* select */ COMMIT AND CHAIN'), sent('/*!50000 COMMIT AND CHAIN */'), sent('(SELECT 1)', 'COMMIT AND CHAIN'),
  sent('SET autocommit = 0', 'COMMIT', 'SET autocommit = 1', 'BEGIN'),
  sent(`CALL ${ours}.begins_another()`), sent("EXECUTE IMMEDIATE 'COMMIT AND CHAIN'"),
  sent('BEGIN NOT ATOMIC COMMIT; START TRANSACTION; END'),
  sent(`CREATE TABLE IF NOT EXISTS ${ours}.lines_ (x INT)`), sent(`ANALYZE TABLE ${ours}.lines_`, 'BEGIN'),
  sent(`LOCK TABLES ${ours}.lines_ WRITE`, 'UNLOCK TABLES', 'BEGIN'),
  sent('ROLLBACK', "XA START 'x'", "XA END 'x'", "XA ROLLBACK 'x'", 'BEGIN'),
  {
    name: 'a COMMIT AND CHAIN that is prepared',
    end: (connection) => connection.execute('COMMIT AND CHAIN'),
  },
  {
    name: 'beginTransaction() of the driver',
    end: (connection) => connection.beginTransaction(),
  },
  ...[
    sent('SAVEPOINT s', 'ROLLBACK TO s'), sent('SAVEPOINT s', 'ROLLBACK TO s', 'RELEASE SAVEPOINT s'),
    sent('SET @a = 1'), sent(`CALL ${ours}.only_reads()`), sent("SELECT 'commit; start transaction'"),
    sent('/* commit */ DO 1'),
    sent('CREATE TEMPORARY TABLE held (x INT)', 'DROP TEMPORARY TABLE held'), sent("EXECUTE IMMEDIATE 'DO 1'"),
    sent("PREPARE p FROM 'DO 1'", 'EXECUTE p', 'DEALLOCATE PREPARE p'),
  ].map((one): Ending<Connection> => ({ ...one, goesOn: true })),
  refusedEnd('nonsense'), refusedEnd("XA START 'x'"), refusedEnd('ROLLBACK TO nowhere'),
]

const failing = (name: string, permanent: boolean, parts: { [part: string]: string }): Failing<Connection> => ({
  name,
  permanent,
  connector: () => mysql({ url: Object.assign(new URL(server.url), parts).href }),
})
for (const login of ["IDENTIFIED BY 'right'", 'IDENTIFIED VIA unix_socket', "IDENTIFIED BY '' WITH MAX_USER_CONNECTIONS 1", 'ACCOUNT LOCK']) {
  const name = `${ours}_${login.split(' ').at(-1)!.toLowerCase().replaceAll("'", '')}`
  await admin.query(`CREATE USER ${name} ${login}`)
  t.teardown(() => admin.query(`DROP USER ${name}`))
}
const failures: Array<Failing<Connection>> = [
  failing('a wrong password (1045)', true, { username: `${ours}_right`, password: 'wrong' }),
  failing('a user who logs in by no password (1698)', true, { username: `${ours}_unix_socket` }),
  failing('no such database (1049)', true, { pathname: '/nowhere' }),
  failing('a database that the user may not use (1044)', true, { username: `${ours}_1`, password: '', pathname: `/${ours}` }),
  failing('a locked user (4151)', true, { username: `${ours}_lock` }),
  failing('TLS, which the server has not', true, { search: '?ssl={"rejectUnauthorized":false}' }),
  {
    name: 'too many connections (1226)',
    permanent: false,
    connector: async (t) => {
      const url = Object.assign(new URL(server.url), { username: `${ours}_1`, password: '', pathname: '/' })
      const first = await createConnection(url.href)
      t.teardown(() => first.end())
      return await mysql({ url: url.href })
    },
  },
]

const subject: Subject<Connection> = {
  address: server,
  max: 4,
  connector: async ({ host, port }, { reset, name, password }) => {
    await admin.query(`CREATE DATABASE ${name}`)
    databases.push(name)
    const url = new URL(server.url)
    Object.assign(url,
      { hostname: host, port: String(port), pathname: `/${name}`, ...(password !== undefined && { password }) })
    return await mysql({ url: url.href, reset })
  },
  isDriver: (connection) => Object.getPrototypeOf(connection) === Object.getPrototypeOf(admin),
  id: (connection) => value(connection, 'SELECT CONNECTION_ID()'),
  count: async (name) =>
    Number(await value(admin, 'SELECT COUNT(*) FROM information_schema.processlist WHERE db = ?', [name])),
  end: async (id) => {
    await admin.query(`KILL ${String(id)}`)
    await until(async () =>
      Number(await value(admin, 'SELECT COUNT(*) FROM information_schema.processlist WHERE id = ?', [id])) === 0, { what: `connection ${String(id)} is gone` })
  },
  ask: (connection) => connection.execute('SELECT ? + 1', [1]),
  block: (connection) => connection.query('SELECT SLEEP(60)'),
  blockEnds: true,
  linger: (connection) => connection.query('SELECT SLEEP(0.03)'),
  written: (connection) => (connection as unknown as { connection: { stream: { bytesWritten: number } } })
    .connection.stream.bytesWritten,
  dies: true,
  renewed: true,
  password: true,
  failures,
  describes: 'named',
  setting: {
    set: (connection) => connection.query('SET @app = 1'),
    change: (connection) => connection.query('SET @app = 2'),
    isSet: async (connection) => Number(await value(connection, 'SELECT @app')) === 1,
  },
  traces,
  rows: {
    prepare: () => {},
    add: (connection, row) => connection.query(`INSERT INTO ${ours}.lines_ VALUES (?)`, [row]),
    all: async (connection) =>
      (await connection.query<RowDataPacket[]>(`SELECT line FROM ${ours}.lines_`))[0].map(({ line }) => String(line)),
    // What it shows is as old as the last time that nobody had asked for 0.1 s.
    level: async (connection) => {
      await connection.query(`INSERT INTO ${ours}.levels VALUES (1)`)
      await connection.query('DO SLEEP(0.12)')
      const sql =
        'SELECT trx_isolation_level FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = CONNECTION_ID()'
      return String(await value(connection, sql)).toLowerCase()
    },
    snapshot: { isolation: 'repeatable read', readOnly: true },
    endings,
    // A deadlock.
    conflict: (t, run) => collide<Connection>(
      (connection, which) => connection.query(`UPDATE ${ours}.pairs SET n = n + 1 WHERE id = ${which}`),
      (connection, which) => connection.query(`UPDATE ${ours}.pairs SET n = n + 1 WHERE id = ${1 - which}`))(t, run),
  },
  shared: true,
  neighbour: {
    start: (t) => startNeighbour(t, 'mysql', { url: server.url, table: `${ours}.lines_` }),
    add: (connection, row) => connection.query(`INSERT INTO ${ours}.lines_ VALUES (?)`, [row]),
    fail: (connection) => connection.query(`INSERT INTO ${ours}.nowhere VALUES (1)`),
  },
}

t.test('mysql', (t) => contract(t, subject))
