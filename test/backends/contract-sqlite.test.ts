import { writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t from 'tap'
import type { Test } from 'tap'
import { TargetPool } from '../../lib/balance/target-pool.js'
import { sqlite } from '../../lib/backends/sqlite/connector.js'
import type { SqliteDatabase, SqliteDriver } from '../../lib/backends/sqlite/handle.js'
import type { Connector } from '../../types/connector.js'
import { findBetterSqlite } from '../support/find.mjs'
import { contract } from './contract.js'
import type { Failing, Or, Rows, Subject, Trace } from './contract.js'
import { startNeighbour } from './neighbour.js'
import { eachDriver, inTransaction, isOpen } from './sqlite-drivers.js'
import type { DriverName } from './sqlite-drivers.js'

/** The one value of the one row. */
const value = (db: SqliteDatabase, sql: string): unknown =>
  Object.values((db.prepare(sql).all() as object[])[0] ?? {})[0]

const hasSide = (db: SqliteDatabase) => value(db, "SELECT count(*) FROM pragma_database_list WHERE name = 'side'") === 1

interface Place {
  readonly Driver: SqliteDriver
  readonly kind: 'writer' | 'writer among roles' | 'reader among roles' | 'memory'
  /** Of the database. */
  readonly path: string
  /** To be attached. */
  readonly side: string
}

function tracesOf ({ kind, side }: Place): Array<Trace<SqliteDatabase>> {
  // Where the handle itself is the database, all is undone on it.
  const anew = kind === 'memory' ? {} : { replaced: true } as const
  const pragma = (name: string, other: number): Trace<SqliteDatabase> => ({
    name: `pragma ${name}`,
    ...anew,
    leave: (db) => db.exec(`PRAGMA ${name} = ${other}`),
    seen: (db) => value(db, `PRAGMA ${name}`) === other,
  })
  const reading: Array<Trace<SqliteDatabase>> = [
    pragma('cache_size', -777),
    pragma('recursive_triggers', 1),
    {
      name: 'an attached database',
      ...anew,
      leave: (db) => db.exec(`ATTACH '${side}' AS side`),
      seen: hasSide,
    },
    {
      name: 'an iterator with rows to come',
      transaction: true,
      leave: (db) => {
        (db.prepare('WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c) SELECT i FROM c').iterate()).next()
      },
      // It has no sign of its own: a handle with one under way can't be switched to another journal, or
      // (better-sqlite3) is busy for all.
      seen: (db) => {
        try {
          db.exec('BEGIN; COMMIT')
          db.exec('VACUUM INTO \':memory:\'')
          return false
        } catch (error) {
          return /busy|SQL statements in progress|unable to open|query_only|readonly/i.test((error as Error).message)
        }
      },
      alone: 'better-sqlite3 does nothing else meanwhile',
    },
    {
      name: 'an open transaction',
      transaction: true,
      leave: (db) => db.exec('BEGIN'),
      seen: inTransaction,
    },
  ]
  // Whoever reads can't write, in that mode too.
  if (kind === 'reader among roles') return [{ ...pragma('query_only', 0), transaction: true }, ...reading]
  return [
    {
      name: 'a temp table',
      ...anew,
      leave: (db) => db.exec('CREATE TEMP TABLE left_behind (x)'),
      seen: (db) => value(db, "SELECT count(*) FROM temp.sqlite_schema WHERE name = 'left_behind'") === 1,
    },
    {
      name: 'a temp view and a temp trigger',
      ...anew,
      leave: (db) => db.exec(`CREATE TABLE IF NOT EXISTS watched (x); CREATE TEMP VIEW peek AS SELECT 1 AS x;
        CREATE TEMP TRIGGER spy AFTER INSERT ON main.watched BEGIN SELECT 1; END`),
      seen: (db) => Number(value(db, "SELECT count(*) FROM temp.sqlite_schema WHERE name IN ('peek', 'spy')")) > 0,
    },
    pragma('foreign_keys', 0),
    ...reading.slice(0, -1),
    {
      name: 'a savepoint with rows',
      transaction: true,
      leave: (db) => db.exec('CREATE TABLE IF NOT EXISTS watched (x); SAVEPOINT mine; INSERT INTO watched VALUES (1)'),
      seen: inTransaction,
      alone: 'a transaction can not be begun within it',
    },
    ...reading.slice(-1),
  ]
}

function rowsOf ({ Driver, side }: Place): Rows<SqliteDatabase> {
  return {
    prepare: (db) => db.exec('CREATE TABLE IF NOT EXISTS lines (text TEXT)'),
    add: (db, row) => db.prepare('INSERT INTO lines (text) VALUES (?)').run(row),
    all: (db) => (db.prepare('SELECT text FROM lines').all() as Array<{ text: string }>).map(({ text }) => text),
    level: () => 'serializable',
    snapshot: { isolation: 'serializable', readOnly: true },
    endings: ['COMMIT', 'ROLLBACK'].map((sql) => ({ name: sql, end: (db: SqliteDatabase) => db.exec(sql) })),
    peaceful: 1,
    // The pool waits for the lock of its own file, so what gets in the way is the lock of another one.
    conflict: async (t: Test, run) => {
      const other = new Driver(side, { timeout: 0 })
      t.teardown(() => { if (isOpen(other)) other.close() })
      other.exec('CREATE TABLE IF NOT EXISTS things (x)')
      other.exec('BEGIN IMMEDIATE')
      let runs = 0
      try {
        await run(async (db) => {
          runs++
          if (!hasSide(db)) db.exec(`ATTACH '${side}' AS side`)
          try {
            db.exec('INSERT INTO side.things VALUES (1)')
          } finally {
            // It lets go of it, too late for this run.
            if (inTransaction(other)) other.exec('ROLLBACK')
          }
        })
      } finally {
        other.close()
      }
      return runs
    },
  }
}

function failuresOf ({ Driver, kind, path, side }: Place): Or<Array<Failing<SqliteDatabase>>> {
  if (kind === 'memory') return 'a database in memory can always be opened'
  const failing = (name: string, permanent: boolean, url: string, prepare?: (t: Test) => unknown) => ({
    name,
    permanent,
    connector: async (t: Test) => {
      await prepare?.(t)
      const connector = await sqlite({ url, driver: Driver })
      return kind === 'reader among roles' ? connector.replica! : connector
    },
  })
  const folder = dirname(path)
  return [
    failing('its directory is missing', true, join(folder, 'missing', 'app.db')),
    failing('it is a directory', true, folder),
    failing('it is no database', true, join(folder, 'text.db'),
      () => writeFileSync(join(folder, 'text.db'), 'no database, but a text that is long enough for the header of one\n'.repeat(20))),
    // A file that is not in WAL mode yet is put into it, which needs the lock.
    failing('another one has the lock', false, `${side}.locked`, (t) => {
      const other = new Driver(`${side}.locked`, { timeout: 0 })
      t.teardown(() => { if (isOpen(other)) other.close() })
      other.exec('CREATE TABLE IF NOT EXISTS things (x)')
      other.exec('BEGIN EXCLUSIVE')
    }),
  ]
}

function subjectOf (place: Place, driver: DriverName): Subject<SqliteDatabase> {
  const { Driver, kind, path } = place
  const alone = kind === 'memory' ? ':memory: is one handle, which nobody else sees' : 'readers only read'
  const ids = new WeakMap<SqliteDatabase, number>()
  let last = 0
  const made = new Map<string, Set<SqliteDatabase>>()
  const noServer = 'SQLite has no server: there is no network, and nobody else who could end a connection'
  const note = (connector: Connector<SqliteDatabase>, handles: Set<SqliteDatabase>) => {
    const create = connector.create.bind(connector)
    connector.create = async (signal) => {
      const db = await create(signal)
      handles.add(db)
      return db
    }
  }
  return {
    address: noServer,
    max: kind === 'reader among roles' ? 3 : 1,
    connector: async (_, { reset, name }) => {
      const connector = await sqlite({ url: kind === 'memory' ? ':memory:' : path, driver: Driver, reset, name })
      const handles = new Set<SqliteDatabase>()
      made.set(name, handles)
      note(kind === 'reader among roles' ? connector.replica! : connector, handles)
      return connector
    },
    // `max` of the suite is of what it leases: one more is of the other role.
    ...(kind.endsWith('among roles') && {
      role: kind === 'reader among roles' ? 'replica' as const : 'primary' as const,
      pool: (connector, options) => TargetPool.ofRoles(connector, { ...options, max: options.max! + 1 }),
    }),
    isDriver: (db) => db instanceof Driver,
    id: (db) => {
      if (!ids.has(db)) ids.set(db, ++last)
      return ids.get(db)
    },
    count: (name) => [...made.get(name)!].filter(isOpen).length,
    end: noServer,
    ask: (db) => db.prepare('SELECT 1').get(),
    block: 'SQLite\'s statements are done when they return',
    blockEnds: true,
    linger: 'SQLite\'s statements are done when they return',
    written: 'SQLite sends nothing',
    dies: noServer,
    renewed: kind === 'memory' ? 'the one handle of :memory: is its data, and is kept' : true,
    password: noServer,
    failures: failuresOf(place),
    describes: 'nameless',
    setting: {
      set: (db) => db.exec('PRAGMA cache_size = -500'),
      change: (db) => db.exec('PRAGMA cache_size = -600'),
      isSet: (db) => value(db, 'PRAGMA cache_size') === -500,
    },
    traces: tracesOf(place),
    rows: kind === 'reader among roles' ? 'readers only read' : rowsOf(place),
    shared: kind === 'memory' ? ':memory: is one handle, which nobody else sees' : true,
    neighbour: kind === 'memory' || kind === 'reader among roles'
      ? alone
      : {
          start: (t) => startNeighbour(t, 'sqlite', { driver, path, table: 'lines', from: findBetterSqlite() }),
          add: (db, row) => db.prepare('INSERT INTO lines (text) VALUES (?)').run(row),
          fail: async (db, neighbour) => {
            await neighbour.exec('BEGIN IMMEDIATE')
            try {
              db.prepare("INSERT INTO lines (text) VALUES ('not stored')").run()
            } finally {
              await neighbour.exec('ROLLBACK')
            }
          },
        },
  }
}

await eachDriver(t, import.meta.url, async (t, Driver, driver) => {
  for (const kind of ['writer', 'writer among roles', 'reader among roles', 'memory'] as const) {
    await t.test(kind, async (t) => {
      const folder = t.testdir()
      const place = { Driver, kind, path: join(folder, 'app.db'), side: join(folder, 'side.db') }
      // The file is there: who only reads would make none.
      const first = new Driver(place.path)
      first.exec('CREATE TABLE IF NOT EXISTS lines (text TEXT)')
      first.close()
      await contract(t, subjectOf(place, driver))
    })
  }
})
