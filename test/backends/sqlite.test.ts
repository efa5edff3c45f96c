import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync, readlinkSync } from 'node:fs'
import { join } from 'node:path'
import LibSql from 'libsql'
import t from 'tap'
import type { Test } from 'tap'
import { sqlite } from '../../lib/backends/sqlite/connector.js'
import type { SqliteConnector } from '../../lib/backends/sqlite/connector.js'
import type { SqliteDatabase, SqliteDriver, SqliteStatement } from '../../lib/backends/sqlite/handle.js'
import type { SqliteOptions } from '../../lib/backends/sqlite/options.js'
import { PoolError } from '../../lib/engine/errors.js'
import type { Connector, Transaction, TransactionOptions } from '../../types/connector.js'
import { until } from '../support/until.js'
import { codeOf, eachDriver, inTransaction, isChild, isOpen, thrownBy } from './sqlite-drivers.js'
import type { DriverName } from './sqlite-drivers.js'

const later = new AbortController().signal

/** Lends as a pool of one would: what comes back dirty is destroyed, and made anew. */
class Borrower {
  readonly connector: Connector<SqliteDatabase>
  readonly onConnect: (db: SqliteDatabase) => void
  refused: unknown
  #db: SqliteDatabase | undefined

  constructor (connector: Connector<SqliteDatabase>, onConnect: (db: SqliteDatabase) => void = () => {}) {
    this.connector = connector
    this.onConnect = onConnect
  }

  async use<T> (fn: (db: SqliteDatabase) => T): Promise<Awaited<T>> {
    if (this.#db === undefined) {
      this.#db = await this.connector.create(later)
      this.onConnect(this.#db)
    }
    const db = this.#db
    if (this.connector.isBroken!(db)) throw new Error('a fresh connection must not be broken')
    this.refused = undefined
    try {
      return await fn(db)
    } finally {
      const broken = this.connector.isBroken!(db)
      if (!broken) await this.connector.reset!(db, later)?.catch((error: unknown) => { this.refused = error })
      if (broken || this.refused !== undefined) await this.evict()
    }
  }

  async evict (): Promise<void> {
    const db = this.#db
    this.#db = undefined
    if (db !== undefined) await this.connector.destroy(db, 'error')
  }

  async close (): Promise<void> {
    if (this.#db !== undefined) await this.connector.destroy(this.#db, 'closed')
    await this.connector.close!()
  }
}

interface Place {
  borrower: Borrower
  reader: Borrower
  connector: SqliteConnector
  path: string
  options: SqliteOptions
}

interface OpenOptions extends SqliteOptions { memory?: boolean, onConnect?: (db: SqliteDatabase) => void }

async function open (
  t: Test, Driver: SqliteDriver, { memory = false, onConnect, ...more }: OpenOptions = {}
): Promise<Place> {
  const path = memory ? ':memory:' : join(t.testdir(), 'app.db')
  const options: SqliteOptions = { url: path, driver: Driver, ...more }
  const connector = await sqlite(options)
  const borrower = new Borrower(connector, onConnect)
  const reader = new Borrower(connector.replica ?? connector, onConnect)
  t.teardown(async () => {
    if (!memory) await reader.close()
    await borrower.close()
  })
  await borrower.use((db) => db.exec('CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)'))
  return { borrower, reader, connector, path, options }
}

/** Another handle, as another process has it. */
function elsewhere (t: Test, Driver: SqliteDriver, path: string): SqliteDatabase {
  const other = new Driver(path, { timeout: 0 })
  t.teardown(() => { if (isOpen(other)) other.close() })
  return other
}

const begin =
  (connector: Connector<SqliteDatabase>, db: SqliteDatabase, options: TransactionOptions = {}, signal = later) =>
    connector.transactions!.begin(db, options, signal)

/** All ways to run a statement. */
const runs: Record<string, (statement: SqliteStatement) => unknown> = {
  run: (statement) => statement.run(),
  get: (statement) => statement.get(),
  all: (statement) => statement.all(),
  iterate: (statement) => [...statement.iterate() as Iterable<unknown>],
}

const add = (db: SqliteDatabase, text: string) => db.prepare('INSERT INTO notes (text) VALUES (?)').run(text)
const texts = (db: SqliteDatabase) =>
  (db.prepare('SELECT text FROM notes ORDER BY id').all() as Array<{ text: string }>).map(({ text }) => text)
const fill = (db: SqliteDatabase) => {
  db.exec("WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 500) INSERT INTO notes (text) SELECT 'n' || i FROM c")
}
/**
 * The one value of the one row. By `all`, since libsql adds a `_metadata` to what `get` gives, and does not pluck
 * there.
 */
const value = (db: SqliteDatabase, sql: string) => Object.values(db.prepare(sql).all()[0] as object)[0] as unknown
const count = (db: SqliteDatabase) => value(db, 'SELECT count(*) FROM notes')
const pragma = (db: SqliteDatabase, name: string) => value(db, `PRAGMA ${name}`)
const temps = (db: SqliteDatabase) => value(db, 'SELECT count(*) FROM temp.sqlite_schema')
const databases = (db: SqliteDatabase) => (usePragma(db, 'database_list') as Array<{ name: string }>)
  .map(({ name }) => name).filter((name) => name !== 'temp')

/** By the driver's own method, where it has one: Node's has not. */
const usePragma = (db: SqliteDatabase, source: string) => 'pragma' in db
  ? db.pragma(source)
  : (db as SqliteDatabase).prepare(`PRAGMA ${source}`).all()
const locked = { message: 'database is locked' }
const readonly = { message: /readonly database/ }

/** The file descriptor of the listing itself is gone by then. */
const linkOf = (path: string) => existsSync(path) ? readlinkSync(path) : undefined

await eachDriver(t, import.meta.url, async (t, Driver, name) => {
  suite(t, Driver, name)
  transactions(t, Driver)
  readers(t, Driver)
})

function suite (t: Test, Driver: SqliteDriver, name: DriverName) {
  t.test('a borrower has the whole driver, and its committed rows stay', async (t) => {
    const { borrower } = await open(t, Driver)
    await borrower.use((db) => {
      t.type(db, Driver)
      db.prepare('INSERT INTO notes (text) VALUES (?)').run('one')
      const addAll = (...list: string[]) => { for (const text of list) add(db, text) }
      if ('transaction' in db) db.transaction(addAll).immediate('two', 'three')
      else addAll('two', 'three')
      t.same([...db.prepare('SELECT id FROM notes').iterate() as Iterable<{ id: number }>].map(({ id }) => id),
        [1, 2, 3])
    })
    await borrower.use((db) => t.same(texts(db), ['one', 'two', 'three']))
  })

  t.test('a clean return needs no round trip and keeps the handle', async (t) => {
    const { borrower } = await open(t, Driver)
    const first = await borrower.use((db) => db)
    await borrower.use((db) => {
      db.exec("INSERT INTO notes (text) VALUES ('temperature is attached to nothing')")
      usePragma(db, 'table_info(notes)')
      db.prepare('PRAGMA foreign_keys').get()
      t.equal(db, first)
    })
    t.equal(await borrower.use((db) => db), first)
    t.equal(borrower.connector.reset!(first, later), undefined)
  })

  t.test('a file is in WAL mode, and no statement waits for another process by blocking the event loop', async (t) => {
    const { borrower, path } = await open(t, Driver)
    const other = new Driver(path, { timeout: 0 })
    t.teardown(() => other.close())
    other.exec('BEGIN IMMEDIATE')
    await borrower.use((db) => {
      t.equal(pragma(db, 'journal_mode'), 'wal')
      t.equal(pragma(db, 'busy_timeout'), 0)
      t.throws(() => db.exec('BEGIN IMMEDIATE'), locked)
    })
  })

  t.test('connection goes to the driver untouched', async (t) => {
    const { borrower } = await open(t, Driver, { connection: { timeout: 123 } })
    await borrower.use((db) => t.equal(pragma(db, 'busy_timeout'), 123))
  })

  t.test('an open transaction is rolled back: its rows are never seen, its lock is gone', async (t) => {
    const { borrower, path } = await open(t, Driver)
    const first = await borrower.use((db) => {
      db.exec("BEGIN IMMEDIATE; INSERT INTO notes (text) VALUES ('lost')")
      return db
    })
    await borrower.use((db) => {
      t.equal(db, first, 'the handle is kept')
      t.notOk(inTransaction(db))
      t.same(texts(db), [])
    })
    const other = new Driver(path, { timeout: 0 })
    t.teardown(() => other.close())
    other.exec("INSERT INTO notes (text) VALUES ('free')")
    await borrower.use((db) => {
      db.exec("SAVEPOINT s; INSERT INTO notes (text) VALUES ('lost too')")
    })
    await borrower.use((db) => t.same(texts(db), ['free']))
  })

  // What is left, how it is seen, and what the next one must see instead.
  type OnDatabase = (db: SqliteDatabase) => unknown
  const left: Array<[what: string, leave: OnDatabase, look: OnDatabase, clean: unknown]> = [
    ['a temp table', (db) => db.exec('CREATE TEMP TABLE scratch (x)'), temps, 0],
    ['a temp table, made by a prepared statement', (db) => db.prepare('CREATE TABLE "temp".scratch (x)').run(), temps,
      0],
    ['a temp view that hides a table', (db) => db.exec('create temporary view notes as select 1 as id, 2 as text'),
      texts, []],
    ['a temp trigger', (db) => db.exec('CREATE TEMP TRIGGER tr AFTER INSERT ON notes BEGIN DELETE FROM notes; END'),
      temps, 0],
    ['an attached database', (db) => db.exec("ATTACH ':memory:' AS other"), databases, ['main']],
    ['foreign_keys', (db) => usePragma(db, 'foreign_keys = OFF'), (db) => pragma(db, 'foreign_keys'), 1],
    ['query_only, prepared', (db) => db.prepare('PRAGMA main.query_only = ON').run(), (db) => pragma(db, 'query_only'),
      0],
    ['recursive_triggers, by exec', (db) => db.exec('select 1; pragma recursive_triggers(1);'),
      (db) => pragma(db, 'recursive_triggers'), 0],
    ['busy_timeout', (db) => db.exec('PRAGMA busy_timeout = 5000'), (db) => pragma(db, 'busy_timeout'), 0],
    ['ignore_check_constraints', (db) => usePragma(db, 'ignore_check_constraints = 1'),
      (db) => pragma(db, 'ignore_check_constraints'), 0],
    ['legacy_alter_table', (db) => usePragma(db, 'legacy_alter_table = 1'), (db) => pragma(db, 'legacy_alter_table'),
      0],
    ['all at once, in an open transaction', (db) => {
      usePragma(db, 'reverse_unordered_selects = 1')
      db.exec("ATTACH ':memory:' AS other; BEGIN; CREATE TEMP TABLE a (x UNIQUE); CREATE TEMP TABLE b (x); CREATE INDEX temp.i ON b (x)")
    }, (db) => [pragma(db, 'reverse_unordered_selects'), temps(db), inTransaction(db)], [0, 0, false]],
  ]

  for (const memory of [false, true]) {
    const where = memory ? 'in :memory:' : 'in a file'
    for (const [what, leave, look, clean] of left) {
      t.test(`${what} left behind ${where} is not seen by the next borrower`, async (t) => {
        const { borrower } = await open(t, Driver, { memory })
        await borrower.use((db) => {
          leave(db)
          t.strictNotSame(look(db), clean, 'it can be seen where it was left')
        })
        await borrower.use((db) => {
          t.strictSame(look(db), clean)
          db.exec("INSERT INTO notes (text) VALUES ('still writes')")
          t.equal(count(db), 1)
        })
      })
    }

    t.test(`not undone ${where}: last_insert_rowid() and changes() tell the next borrower of the last write`, async (t) => {
      const { borrower } = await open(t, Driver, { memory })
      const tally = 'SELECT last_insert_rowid() AS row, changes() AS rows'
      const handle = await borrower.use((db) => {
        db.exec("INSERT INTO notes (id, text) VALUES (41, 'a'), (42, 'b'), (43, 'c')")
        return db
      })
      await borrower.use((db) => {
        t.equal(db, handle, 'it is the same handle')
        t.match(db.prepare(tally).all()[0], { row: 43, rows: 3 }, 'as documented')
        db.prepare("INSERT INTO notes (id, text) VALUES (50, 'own')").run()
        t.match(db.prepare(tally).all()[0], { row: 50, rows: 1 }, 'behind a write of its own they are its own')
      })
    })

    t.test(`an iterator that was broken off ${where} holds no old snapshot, and no lock, for the next borrower`, async (t) => {
      const { borrower, path } = await open(t, Driver, { memory })
      let held: IterableIterator<unknown> | undefined
      await borrower.use((db) => {
        fill(db)
        held = db.prepare('SELECT text FROM notes').iterate()
        held.next()
        for (const row of db.prepare('SELECT id FROM notes').iterate()) if (row) break
      })
      if (!memory) {
        const other = new Driver(path)
        other.exec("INSERT INTO notes (text) VALUES ('from elsewhere')")
        other.close()
      }
      await borrower.use((db) => {
        t.equal(count(db), memory ? 500 : 501)
        db.exec("INSERT INTO notes (text) VALUES ('mine'); DROP TABLE notes")
      })
      t.equal(borrower.refused, undefined, 'and the handle was kept')
      // Rather than end, as if these had been all rows.
      t.throws(() => held!.next(), { code: 'FST_POOL_LEASE_RELEASED' })
    })

    t.test(`an iterator without an end, ${where}, is ended`, async (t) => {
      const { borrower } = await open(t, Driver, { memory })
      const first = await borrower.use((db) => {
        db.prepare('WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c) SELECT i FROM c').iterate().next()
        return db
      })
      await borrower.use((db) => {
        t.equal(db, first)
        db.exec('DROP TABLE notes')
      })
    })

    t.test(`rows of an iterator that writes ${where} do not keep the lock`, async (t) => {
      const { borrower } = await open(t, Driver, { memory })
      await borrower.use((db) => {
        fill(db)
        const rows = db.prepare("UPDATE notes SET text = 'x' RETURNING id").iterate()
        rows.next()
      })
      await borrower.use((db) => {
        t.notOk(inTransaction(db))
        db.exec('BEGIN IMMEDIATE; DELETE FROM notes; COMMIT')
        t.equal(count(db), 0)
      })
    })
  }

  t.test('iterators inside an open transaction do not hinder its rollback', async (t) => {
    const { borrower } = await open(t, Driver)
    await borrower.use(fill)
    await borrower.use((db) => {
      db.exec('BEGIN')
      db.exec('DELETE FROM notes WHERE id > 400')
      db.prepare('SELECT * FROM notes').iterate().next()
    })
    await borrower.use((db) => t.equal(count(db), 500))
  })

  t.test('a dirty file handle is refused, saying what was left, and a new one is opened', async (t) => {
    const { borrower } = await open(t, Driver)
    const first = await borrower.use((db) => {
      db.exec('CREATE TEMP TABLE scratch (x); PRAGMA foreign_keys = OFF')
      return db
    })
    t.match(borrower.refused, { message: /temp objects or attached databases and changed pragmas/ })
    t.notOk(isOpen(first))
    t.not(await borrower.use((db) => db), first)
  })

  t.test('what was undone by the borrower itself keeps the handle', async (t) => {
    const { borrower } = await open(t, Driver)
    const first = await borrower.use((db) => db)
    await borrower.use((db) =>
      db.exec('CREATE TEMP TABLE scratch (x); PRAGMA foreign_keys = 0; DROP TABLE scratch; PRAGMA foreign_keys = 1'))
    t.equal(await borrower.use((db) => db), first)
  })

  t.test('settings that can not be read back, and those in odd writing, have the handle opened anew', async (t) => {
    const { borrower } = await open(t, Driver)
    const odd = [
      'PRAGMA case_sensitive_like = ON', 'PRAGMA/**/foreign_keys = OFF', 'PRAGMA foreign_keys/**/ = OFF',
      'PRAGMA mmap_size = 4096',
      'PRAGMA temp.cache_size = 7', 'pragma "query_only" = 1',
    ]
    for (const sql of odd) {
      const first = await borrower.use((db) => {
        db.exec(sql)
        return db
      })
      t.match(borrower.refused, /settings|pragmas/, sql)
      t.notOk(isOpen(first))
      await borrower.use((db) => t.same(['foreign_keys', 'query_only'].map((name) => pragma(db, name)), [1, 0]))
    }
  })

  for (const [way, run] of Object.entries(runs)) {
    t.test(`a statement that was kept beyond its lease is refused: ${way}`, async (t) => {
      const { borrower } = await open(t, Driver)
      const [first, kept] = await borrower.use((db) => {
        const statement = db.prepare('INSERT INTO notes (text) VALUES (1) RETURNING id')
        run(statement)
        return [db, statement] as const
      })
      t.throws(() => run(kept), { code: 'FST_POOL_LEASE_RELEASED', message: /prepare it again/ },
        'while nobody has the handle')
      await borrower.use((db) => {
        t.equal(db, first)
        db.exec('BEGIN')
        t.throws(() => run(kept), { code: 'FST_POOL_LEASE_RELEASED' }, 'and in the midst of what the next one does')
        t.equal(count(db), 1)
      })
      await borrower.evict()
      t.throws(() => run(kept), { code: 'FST_POOL_LEASE_RELEASED', message: /closed/ }, 'and when the handle is closed')
    })
  }

  for (const memory of [false, true]) {
    t.test(`statements that onConnect prepared ${memory ? 'in :memory:' : 'for a file'} work for all borrowers`, async (t) => {
      const prepared = new WeakMap<SqliteDatabase, SqliteStatement[]>()
      const { borrower } = await open(t, Driver, {
        memory,
        onConnect: (db) => {
          prepared.set(db,
            [...prepared.get(db) ?? [], db.prepare('SELECT count(*) FROM sqlite_schema'), db.prepare("ATTACH ':memory:' AS other")])
        },
      })
      for (let lease = 0; lease < 3; lease++) await borrower.use((db) => t.equal(prepared.get(db)![0]!.all().length, 1))
      await borrower.evict()
      const last = await borrower.use((db) => {
        for (const statement of prepared.get(db)!) if (statement.reader) t.equal(statement.all().length, 1)
        prepared.get(db)!.at(-1)!.run()
        t.same(databases(db), ['main', 'other'])
        return db
      })
      await borrower.use((db) => t.same(databases(db), ['main'], 'and what they leave behind is seen'))
      await borrower.close()
      t.throws(() => prepared.get(last)![0]!.all(), { code: 'FST_POOL_LEASE_RELEASED' }, 'until the handle is closed')
    })
  }

  t.test('a handle that was kept until it was destroyed is refused, whatever it is asked', async (t) => {
    const { borrower } = await open(t, Driver)
    const kept = await borrower.use((db) => db)
    await borrower.evict()
    const uses = [
      () => kept.exec('SELECT 1'), () => kept.prepare('SELECT 1'), () => usePragma(kept, 'user_version'),
      () => (kept as SqliteDatabase & { function (name: string, fn: () => void): void }).function('f', () => {}),
    ]
    for (const use of uses) t.throws(use, { code: 'FST_POOL_LEASE_RELEASED' }, String(use))
    // libsql's own would abort the process.
    ;(kept as { interrupt?: () => void }).interrupt?.()
  })

  if (name === 'libsql') {
    t.test('a borrower may interrupt what is under way', async (t) => {
      const { borrower } = await open(t, Driver)
      await borrower.use((db) => {
        fill(db)
        const rows = db.prepare('SELECT id FROM notes').iterate()
        rows.next()
        ;(db as SqliteDatabase & { interrupt (): void }).interrupt()
        t.throws(() => { while (!rows.next().done); }, { code: 'SQLITE_INTERRUPT' })
        t.same(rows.next(), { done: true, value: undefined })
      })
    })
  }

  t.test('an iterator that has given all its rows does not begin again', async (t) => {
    const { borrower } = await open(t, Driver)
    await borrower.use((db) => {
      // libsql fetches 100 at a time.
      db.exec("WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 100) INSERT INTO notes (text) SELECT 'n' || i FROM c")
      const rows = db.prepare('SELECT id FROM notes').iterate()
      t.equal([...rows as Iterable<unknown>].length, 100)
      t.equal(rows.next().done, true)
    })
  })

  t.test('what onConnect sets is kept, and is what a reset goes back to', async (t) => {
    let connects = 0
    const { borrower } = await open(t, Driver, {
      onConnect: (db) => {
        connects++
        db.exec("PRAGMA recursive_triggers = ON; ATTACH ':memory:' AS side; CREATE TEMP TABLE seen (x); PRAGMA case_sensitive_like = ON")
      },
    })
    const look = (db: SqliteDatabase) =>
      [pragma(db, 'recursive_triggers'), databases(db), temps(db), value(db, "SELECT 'A' LIKE 'a'")]
    const first = await borrower.use((db) => db)
    t.equal(await borrower.use((db) => db), first)
    t.same(await borrower.use(look), [1, ['main', 'side'], 1, 0])
    t.equal(connects, 1)
    await borrower.use((db) => db.exec('PRAGMA recursive_triggers = OFF; DETACH side'))
    t.match(borrower.refused, /attached databases and changed pragmas/)
    t.same(await borrower.use(look), [1, ['main', 'side'], 1, 0])
    t.equal(connects, 2)
  })

  t.test('in :memory: what onConnect attached is attached again', async (t) => {
    const { borrower } = await open(t, Driver, {
      memory: true,
      onConnect: (db) => db.exec("ATTACH ':memory:' AS side"),
    })
    const first = await borrower.use((db) => {
      db.exec('DETACH side')
      return db
    })
    await borrower.use((db) => {
      t.equal(db, first)
      t.same(databases(db), ['main', 'side'])
    })
  })

  t.test('what can not be bound is the driver\'s own error, and leaves nothing open', async (t) => {
    const { borrower } = await open(t, Driver)
    await borrower.use((db) => {
      const statement = db.prepare('SELECT id FROM notes WHERE id = ?')
      t.not(codeOf(thrownBy(() => [...statement.iterate(Symbol('no value')) as Iterable<unknown>])),
        'FST_POOL_LEASE_RELEASED')
      db.exec('DROP TABLE notes')
    })
  })

  t.test("with reset 'transaction' only what is under way is ended", async (t) => {
    const { borrower } = await open(t, Driver, { reset: 'transaction' })
    await borrower.use((db) => {
      db.exec('PRAGMA recursive_triggers = ON; CREATE TEMP TABLE scratch (x)')
      db.exec("BEGIN; INSERT INTO notes (text) VALUES ('lost')")
    })
    await borrower.use((db) => {
      t.same([pragma(db, 'recursive_triggers'), texts(db)], [1, []])
      t.equal(temps(db), 1)
    })
  })

  t.test(':memory: keeps its data over leases, and over the pool\'s evictions, until close', async (t) => {
    const { borrower, options } = await open(t, Driver, { memory: true })
    const first = await borrower.use((db) => {
      db.exec("INSERT INTO notes (text) VALUES ('kept')")
      return db
    })
    await borrower.evict()
    await borrower.use((db) => {
      t.same(texts(db), ['kept'])
      t.equal(db, first)
      db.exec("BEGIN; INSERT INTO notes (text) VALUES ('lost'); CREATE TEMP TABLE scratch (x)")
    })
    const other = new Borrower(await sqlite(options))
    t.teardown(() => other.close())
    await other.use((db) => t.throws(() => texts(db), /no such table/))
    await borrower.connector.destroy(first, 'aborted')
    t.same(texts(first), ['kept'], 'made clean all the same')
    await borrower.close()
    t.notOk(isOpen(first))
    await t.rejects(borrower.connector.create(later), /closed/)
  })

  t.test(':memory: begins anew when a borrower has closed it', async (t) => {
    const { borrower } = await open(t, Driver, { memory: true })
    await borrower.use((db) => db.close())
    await borrower.use((db) => t.throws(() => texts(db), /no such table/))
  })

  t.test('a handle that a borrower closed is broken; destroying it is all right', async (t) => {
    const { borrower } = await open(t, Driver)
    const db = await borrower.connector.create(later)
    t.notOk(borrower.connector.isBroken!(db))
    t.equal(await borrower.connector.validate!(db, later), true)
    db.close()
    t.ok(borrower.connector.isBroken!(db))
    t.equal(await borrower.connector.validate!(db, later), false)
    await borrower.connector.destroy(db, 'invalid')
  })

  t.test('destroy closes a file, whatever is under way on it', async (t) => {
    const { borrower, path } = await open(t, Driver)
    await borrower.use(fill)
    const db = await borrower.connector.create(later)
    db.exec('BEGIN IMMEDIATE')
    const held = db.prepare('SELECT * FROM notes').iterate()
    held.next()
    await borrower.connector.destroy(db, 'aborted')
    t.notOk(isOpen(db))
    const other = new Driver(path, { timeout: 0 })
    other.exec('BEGIN IMMEDIATE; DELETE FROM notes; COMMIT')
    t.match(usePragma(other, 'wal_checkpoint(TRUNCATE)'), [{ busy: 0 }], 'no snapshot is held')
    other.close()
  })

  // libsql lets go of the file when the last statement that was prepared on it has been collected as garbage.
  if (name !== 'libsql') {
    t.test('destroy of the last handle leaves no WAL behind', async (t) => {
      const { borrower, path } = await open(t, Driver)
      t.ok(existsSync(`${path}-wal`))
      await borrower.close()
      t.notOk(existsSync(`${path}-wal`))
    })
  }

  t.test('a create after the signal, or that fails half-way, leaves nothing open', async (t) => {
    const path = join(t.testdir({
      'app.db': 'this is no database, but it is long enough to be looked at as one. '.repeat(100),
    }), 'app.db')
    const connector = await sqlite({ url: path, driver: Driver })
    await t.rejects(connector.create(AbortSignal.abort(new Error('too late'))), /too late/)
    await t.rejects(connector.create(later), /not a database/)
    // Only Linux can tell which files a process has open.
    if (process.platform === 'linux') {
      t.notOk(readdirSync('/proc/self/fd')
        .some((fd) => linkOf(`/proc/self/fd/${fd}`) === path))
    }
  })

  t.test('a directory that does not exist is named; once it is there, it opens', async (t) => {
    const dir = join(t.testdir(), 'data')
    const connector = await sqlite({ url: join(dir, 'app.db'), driver: Driver })
    await t.rejects(connector.create(later), { message: `the database file's directory does not exist: ${dir}` })
    mkdirSync(dir)
    const db = await connector.create(later)
    await connector.destroy(db, 'closed')
    t.ok(existsSync(join(dir, 'app.db')))
  })

  t.test('a file: URL is the same file as its path, and no file is named file:', async (t) => {
    const dir = t.testdir()
    const urls = {
      [`file:${dir}/a b.db`]: 'a b.db',
      [`file:${dir}/c%20d.db`]: 'c d.db',
      [`file://${dir}/e.db`]: 'e.db',
      [`file://localhost${dir}/f.db`]: 'f.db',
    }
    for (const [url, file] of Object.entries(urls)) {
      const connector = await sqlite({ url, driver: Driver })
      await connector.destroy(await connector.create(later), 'closed')
      t.ok(existsSync(join(dir, file)), url)
    }
    const memory = await sqlite({ url: 'file::memory:', driver: Driver })
    t.notOk(existsSync(join(dir, ':memory:')), String(await memory.create(later)))
    memory.close!()
  })

  t.test('options are not mutated', async (t) => {
    const options: SqliteOptions = Object.freeze({
      url: join(t.testdir(), 'app.db'), connection: Object.freeze({ timeout: 5 }), driver: Driver,
    })
    const connector = await sqlite(options)
    await connector.destroy(await connector.create(later), 'closed')
  })
}

function transactions (t: Test, Driver: SqliteDriver) {
  t.test('a transaction is committed as a whole, or rolled back as a whole', async (t) => {
    const { borrower, reader, connector } = await open(t, Driver)
    await borrower.use(async (db) => {
      const first = await begin(connector, db)
      t.equal(first.connection, db)
      add(db, 'one')
      add(db, 'two')
      await reader.use((reads) => t.same(texts(reads), [], 'nobody sees it before'))
      await first.commit()
      t.notOk(inTransaction(db))
      await reader.use((reads) => t.same(texts(reads), ['one', 'two']))
      const second = await begin(connector, db)
      add(db, 'three')
      await second.rollback()
      t.notOk(inTransaction(db))
      await second.rollback()
      t.same(texts(db), ['one', 'two'])
    })
    t.same(connector.transactions!.isolation, ['serializable'])
    t.equal(connector.transactions!.readOnly, true)
  })

  t.test('savepoints are kept or undone one by one', async (t) => {
    const { borrower, connector } = await open(t, Driver)
    await borrower.use(async (db) => {
      const whole = await begin(connector, db)
      add(db, 'a')
      const kept = await whole.savepoint!('s1')
      add(db, 'b')
      const undone = await kept.savepoint!('s2')
      t.equal(undone.connection, db)
      add(db, 'c')
      const inner = await undone.savepoint!('s3')
      add(db, 'd')
      await inner.commit()
      await undone.rollback()
      await undone.rollback()
      await kept.commit()
      t.ok(inTransaction(db))
      t.same(texts(db), ['a', 'b'])
      await whole.commit()
      t.same(texts(db), ['a', 'b'])
    })
  })

  t.test('a transaction waits for the lock of another process, and the event loop goes on', async (t) => {
    const { borrower, connector, path } = await open(t, Driver)
    const child = spawn(process.execPath, ['-e', `
      const db = new (require('libsql'))(process.argv[1])
      db.exec("BEGIN IMMEDIATE; INSERT INTO notes (text) VALUES ('from the child')")
      process.stdout.write('locked')
      process.stdin.once('data', () => { db.exec('COMMIT'); process.exit() })
    `, path], { stdio: ['pipe', 'pipe', 'inherit'] })
    const exited = once(child, 'exit')
    t.teardown(async () => {
      child.kill('SIGKILL')
      await exited
    })
    await once(child.stdout, 'data')
    await borrower.use(async (db) => {
      let settled = false
      const pending = begin(connector, db).finally(() => { settled = true })
      // Its later rounds are timers.
      let rounds = 0
      await until(() => ++rounds > 40)
      t.notOk(settled, 'it waits')
      child.stdin.write('commit')
      const transaction = await pending
      add(db, 'mine')
      await transaction.commit()
      t.same(texts(db), ['from the child', 'mine'])
    })
    await exited
  })

  t.test('when the signal ends the wait for the lock, SQLite says what was waited for', async (t) => {
    const { borrower, connector, path } = await open(t, Driver)
    const other = elsewhere(t, Driver, path)
    other.exec('BEGIN IMMEDIATE')
    await borrower.use(async (db) => {
      const controller = new AbortController()
      const pending = begin(connector, db, {}, controller.signal)
      controller.abort()
      const error: unknown = await pending.catch((error: unknown) => error)
      t.match(error, locked)
      t.ok(connector.transactions!.isTransient(error))
      t.notOk(inTransaction(db))
      await t.rejects(begin(connector, db, {}, AbortSignal.abort()), locked)
      other.exec('ROLLBACK')
      await (await begin(connector, db)).commit()
    })
  })

  t.test('what can be run again is told from what can not', async (t) => {
    const { borrower, connector, path } = await open(t, Driver)
    const { isTransient } = connector.transactions!
    const other = elsewhere(t, Driver, path)
    const caught = (fn: () => unknown): unknown => {
      try {
        return fn()
      } catch (error) {
        return error
      }
    }
    await borrower.use((db) => {
      db.exec('BEGIN')
      count(db)
      other.exec("INSERT INTO notes (text) VALUES ('meanwhile')")
      const error = caught(() => add(db, 'on what is out of date'))
      t.equal(codeOf(error), 'SQLITE_BUSY_SNAPSHOT')
      t.ok(isTransient(error))
      t.notOk(isTransient(caught(() => db.exec('no sql'))))
    })
    for (const error of [undefined, 'SQLITE_BUSY', new Error('SQLITE_BUSY'),
      Object.assign(new Error('x'), { code: 5 })]) t.notOk(isTransient(error))
  })

  const ends: Array<[how: string, end: (db: SqliteDatabase, t: Test) => unknown, cause?: object]> = [
    ['a COMMIT of its own', (db) => db.exec('COMMIT')],
    ['a ROLLBACK of its own', (db) => db.prepare('ROLLBACK').run()],
    ['a COMMIT, and a new BEGIN', (db) => db.exec('COMMIT; BEGIN IMMEDIATE')],
    ['a ROLLBACK, and a new BEGIN', (db) => { for (const sql of ['ROLLBACK', 'BEGIN']) db.prepare(sql).run() }],
    ['closing the handle', (db) => db.close()],
    ['OR ROLLBACK', (db, t) => {
      t.throws(() => db.exec("INSERT OR ROLLBACK INTO notes (id, text) VALUES (1, 'again')"))
    }, { message: /UNIQUE constraint failed/ }],
    ['a trigger', (db, t) => {
      t.throws(() => db.prepare("UPDATE notes SET text = 'x'").run())
    }, { message: /no updates/ }],
    ['an error at an iterator', (db, t) => {
      t.throws(() => db.prepare("UPDATE notes SET text = 'x' RETURNING id").iterate().next())
    }, { message: /no updates/ }],
  ]
  for (const [how, end, cause] of ends) {
    t.test(`a commit does not resolve where the transaction was ended by ${how}`, async (t) => {
      const { borrower, connector } = await open(t, Driver)
      await borrower.use((db) => {
        add(db, 'before')
        db.exec("CREATE TRIGGER no_updates BEFORE UPDATE ON notes BEGIN SELECT raise(ROLLBACK, 'no updates'); END")
      })
      await borrower.use(async (db) => {
        const transaction = await begin(connector, db)
        const inner = await transaction.savepoint!('inner')
        add(db, 'lost or not')
        end(db, t)
        const ended = { code: 'FST_POOL_TRANSACTION_ENDED', ...cause && { cause } }
        if (cause !== undefined) {
          // They would be committed one by one.
          t.throws(() => add(db, 'after'), ended)
          t.throws(() => db.exec('DELETE FROM notes'), ended)
          t.throws(() => usePragma(db, 'user_version = 3'), ended)
        }
        await t.rejects(inner.commit(), ended)
        await inner.rollback()
        if (!isOpen(db) || !inTransaction(db)) await t.rejects(transaction.savepoint!('another'), ended)
        await t.rejects(transaction.commit(), ended)
        await transaction.rollback()
        if (!isOpen(db)) return
        t.notOk(inTransaction(db))
        t.equal(value(db, "SELECT count(*) FROM notes WHERE text = 'after'"), 0)
        const next = await begin(connector, db)
        add(db, 'next')
        await next.commit()
        t.equal(texts(db).at(-1), 'next')
      })
    })
  }

  t.test("a savepoint's commit does not resolve where its borrower went back behind it", async (t) => {
    const { borrower, connector } = await open(t, Driver)
    await borrower.use(async (db) => {
      const transaction = await begin(connector, db)
      add(db, 'kept')
      db.exec('SAVEPOINT mine')
      const inner = await transaction.savepoint!('inner')
      add(db, 'lost')
      db.exec('ROLLBACK TO mine')
      await t.rejects(inner.commit(), { code: 'FST_POOL_TRANSACTION_ENDED' })
      await inner.rollback()
      await transaction.commit()
      t.same(texts(db), ['kept'])
    })
  })

  // What the text looks like says nothing: each of these fooled a pattern, or a known name.
  const lies = [
    'ROLLBACK; BEGIN; SAVEPOINT fastify_pool', 'SAVEPOINT s; ROLLBACK TO s; ROLLBACK; BEGIN',
    "ROLLBACK; BEGIN; SELECT 'rollback to s'", 'ROLLBACK; BEGIN /* rollback to s */',
    'ROLLBACK; BEGIN; SAVEPOINT inner; SAVEPOINT fastify_pool_1', 'COMMIT; BEGIN; SAVEPOINT fastify_pool',
  ]
  for (const lie of lies) {
    t.test(`a commit does not resolve behind: ${lie}`, async (t) => {
      const { borrower, connector, path } = await open(t, Driver)
      await borrower.use(async (db) => {
        const transaction = await begin(connector, db)
        add(db, 'first')
        db.exec(lie)
        add(db, 'second')
        await t.rejects(transaction.commit(), { code: 'FST_POOL_TRANSACTION_ENDED' })
        await transaction.rollback()
        t.notOk(inTransaction(db))
      })
      t.same(texts(elsewhere(t, Driver, path)), lie.startsWith('COMMIT') ? ['first'] : [])
    })
  }

  t.test("a borrower's own savepoints, and its way back to them, hinder no commit", async (t) => {
    const { borrower, connector, path } = await open(t, Driver)
    await borrower.use(async (db) => {
      const transaction = await begin(connector, db)
      add(db, 'one')
      db.exec('SAVEPOINT fastify_pool')
      add(db, 'undone')
      db.exec('ROLLBACK TO fastify_pool')
      add(db, 'two')
      db.prepare('RELEASE fastify_pool').run()
      await transaction.commit()
    })
    t.same(texts(elsewhere(t, Driver, path)), ['one', 'two'])
  })

  t.test('a commit that is tried again does not commit what was begun in its place meanwhile', async (t) => {
    const { borrower, connector, path } = await open(t, Driver)
    await borrower.use(async (db) => {
      value(db, 'PRAGMA journal_mode = DELETE')
      const other = elsewhere(t, Driver, path)
      other.exec('BEGIN')
      count(other)
      const transaction = await begin(connector, db)
      add(db, 'mine')
      const committed = transaction.commit()
      // Without a WAL it waits for the reader.
      db.exec('ROLLBACK')
      other.exec('COMMIT')
      db.exec("BEGIN; INSERT INTO notes (text) VALUES ('not mine')")
      await t.rejects(committed, { code: 'FST_POOL_TRANSACTION_ENDED' })
      await transaction.rollback()
    })
    t.same(texts(elsewhere(t, Driver, path)), [])
  })

  t.test('a commit that the database refuses rejects with its error, and can be rolled back', async (t) => {
    const { borrower, connector } = await open(t, Driver)
    await borrower.use((db) =>
      db.exec('CREATE TABLE marks (note INTEGER REFERENCES notes (id) DEFERRABLE INITIALLY DEFERRED)'))
    await borrower.use(async (db) => {
      const transaction = await begin(connector, db)
      db.exec('INSERT INTO marks VALUES (99)')
      await t.rejects(transaction.commit(), { message: /FOREIGN KEY constraint failed/ })
      await transaction.rollback()
      t.equal(value(db, 'SELECT count(*) FROM marks'), 0)
    })
  })

  t.test('a commit waits for readers where the file has no WAL, but not for ever', async (t) => {
    const { borrower, connector, path } = await open(t, Driver)
    await borrower.use(async (db) => {
      t.equal(value(db, 'PRAGMA journal_mode = DELETE'), 'delete')
      const other = elsewhere(t, Driver, path)
      other.exec('BEGIN')
      count(other)
      const transaction = await begin(connector, db)
      add(db, 'one')
      let settled = false
      const committed = transaction.commit().finally(() => { settled = true })
      // Its later rounds are timers.
      let rounds = 0
      await until(() => ++rounds > 25)
      t.notOk(settled)
      other.exec('COMMIT')
      await committed
      other.exec('BEGIN')
      t.equal(count(other), 1)
      const refused = await begin(connector, db)
      add(db, 'two')
      await t.rejects(refused.commit(), locked)
      await refused.rollback()
      t.same(texts(db), ['one'])
    })
  })

  t.test('a transaction that only reads refuses writes on the writer too, and leaves it as it was', async (t) => {
    for (const memory of [false, true]) {
      const { borrower, connector } = await open(t, Driver, { memory })
      const refused =
        { code: 'FST_POOL_NOT_SUPPORTED', message: /this transaction only reads: begin it without readOnly/, cause: readonly }
      await borrower.use(async (db) => {
        const reads = await begin(connector, db, { readOnly: true, isolation: 'serializable' })
        t.equal(count(db), 0)
        t.throws(() => add(db, 'x'), refused)
        t.throws(() => db.exec("INSERT INTO notes (text) VALUES ('x')"), refused)
        await reads.commit()
        add(db, 'one')
        const again = await begin(connector, db, { readOnly: true })
        await again.rollback()
        add(db, 'two')
        usePragma(db, 'query_only = ON')
        await (await begin(connector, db, { readOnly: true })).commit()
        t.equal(pragma(db, 'query_only'), 1, 'as the borrower had set it')
        usePragma(db, 'query_only = OFF')
      })
      const first = await borrower.use(async (db) => {
        await begin(connector, db, { readOnly: true })
        return db
      })
      await borrower.use((db) => {
        t.equal(db, first)
        add(db, 'three')
        t.same(texts(db), ['one', 'two', 'three'])
      })
    }
  })

  t.test('a rollback is not hindered by iterators, and ends them', async (t) => {
    const { borrower, connector } = await open(t, Driver)
    await borrower.use(async (db) => {
      fill(db)
      const transaction = await begin(connector, db)
      add(db, 'lost')
      const inner = await transaction.savepoint!('inner')
      const rows = db.prepare('SELECT id FROM notes').iterate()
      rows.next()
      await inner.rollback()
      t.throws(() => rows.next(), { code: 'FST_POOL_TRANSACTION_ENDED', message: /ended by a rollback/ })
      db.prepare('SELECT id FROM notes').iterate().next()
      await transaction.rollback()
      t.equal(count(db), 500)
    })
  })

  t.test('rows of a write that nobody read to their end hinder no savepoint', async (t) => {
    const { borrower, connector } = await open(t, Driver)
    await borrower.use(async (db) => {
      fill(db)
      const transaction = await begin(connector, db)
      const inner = await transaction.savepoint!('inner')
      db.prepare("UPDATE notes SET text = 'x' RETURNING id").iterate().next()
      await inner.rollback()
      add(db, 'kept')
      await transaction.commit()
      t.equal(value(db, "SELECT count(*) FROM notes WHERE text = 'x'"), 0)
      t.equal(texts(db).at(-1), 'kept')
    })
  })

  t.test('a lease that ends with its transaction open leaves nothing of it', async (t) => {
    const { borrower, connector, path } = await open(t, Driver)
    let kept: Transaction<SqliteDatabase> | undefined
    const first = await borrower.use(async (db) => {
      kept = await begin(connector, db)
      t.throws(() => db.exec('INSERT OR ROLLBACK INTO notes (id) VALUES (1), (1)'))
      return db
    })
    await borrower.use(async (db) => {
      t.equal(db, first)
      add(db, 'next')
      await begin(connector, db)
      add(db, 'lost')
    })
    elsewhere(t, Driver, path).exec("INSERT INTO notes (text) VALUES ('free')")
    await borrower.use((db) => t.same(texts(db), ['next', 'free']))
    await borrower.evict()
    await t.rejects(kept!.commit(), { code: 'FST_POOL_TRANSACTION_ENDED' })
    await kept!.rollback()
  })

  t.test('a handle that was closed before its reset is refused', async (t) => {
    const { connector } = await open(t, Driver)
    const db = await connector.create(later)
    connector.isBroken!(db)
    db.close()
    await t.rejects(connector.reset!(db, later)!, /closed/)
    await connector.destroy(db, 'error')
  })
}

function readers (t: Test, Driver: SqliteDriver) {
  t.test('a reader sees what the writer has committed, and may be the first to open the file', async (t) => {
    const path = join(t.testdir(), 'app.db')
    const connector = await sqlite({ url: path, driver: Driver })
    const [reader, writer] = [new Borrower(connector.replica!), new Borrower(connector)]
    t.teardown(async () => {
      await reader.close()
      await writer.close()
    })
    t.equal(connector.replica!.system, 'sqlite')
    t.equal(connector.replica!.max, undefined)
    await reader.use((db) => {
      t.type(db, Driver)
      t.equal(pragma(db, 'journal_mode'), 'wal')
      t.equal(pragma(db, 'query_only'), 1)
    })
    await writer.use((db) =>
      db.exec("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT); INSERT INTO notes (text) VALUES ('one')"))
    await reader.use((db) => t.same(texts(db), ['one']))
    await writer.use(async (db) => {
      db.exec("BEGIN IMMEDIATE; INSERT INTO notes (text) VALUES ('two')")
      await reader.use((db) => t.same(texts(db), ['one'], 'neither waits for the other'))
    })
  })

  const transacted: Array<[way: string, write: (db: SqliteDatabase) => unknown]> = [
    ["the driver's transaction", (db) => db.transaction((text: string) => add(db, text))('x')],
    ["the driver's transaction, immediate", (db) => db.transaction((text: string) => add(db, text)).immediate('x')],
  ]
  const writes: Array<[way: string, write: (db: SqliteDatabase) => unknown]> = [
    ['exec', (db) => db.exec("INSERT INTO notes (text) VALUES ('x')")],
    ['DDL', (db) => db.exec('CREATE TABLE more (x)')],
    ['a temp table', (db) => db.exec('CREATE TEMP TABLE more (x)')],
    ['pragma', (db) => usePragma(db, 'user_version = 7')],
    ['run', (db) => add(db, 'x')],
    ...Object.entries(runs).slice(1)
      .map(([way, run]): [string, (db: SqliteDatabase) => unknown] =>
        [way, (db) => run(db.prepare("INSERT INTO notes (text) VALUES ('x') RETURNING id"))]),
    ['BEGIN IMMEDIATE', (db) => db.exec('BEGIN IMMEDIATE')],
    ...'transaction' in Driver.prototype ? transacted : [],
  ]
  t.test('a write on a reader fails, and says where to write', async (t) => {
    const { reader, borrower } = await open(t, Driver, { name: 'shop' })
    const first = await reader.use((db) => db)
    for (const [way, write] of writes) {
      await reader.use((db) => {
        t.equal(db, first)
        t.throws(() => write(db), {
          code: 'FST_POOL_NOT_SUPPORTED',
          message: "this connection of pool 'shop' only reads: lease role: 'primary' to write",
          cause: readonly,
        }, way)
      })
    }
    await borrower.use((db) => t.equal(count(db), 0))
    await reader.use((db) =>
      t.throws(() => db.exec('no sql'), { message: /syntax/ }, 'other errors are the driver\'s own'))
  })

  t.test("a reader has the driver's own transactions, which read", async (t) => {
    const { reader } = await open(t, Driver)
    await reader.use((db) => {
      if (!('transaction' in db)) return
      const read = (db as SqliteDatabase).transaction((plus: number) => Number(count(db)) + plus)
      t.same([read(1), read.deferred(2)], [1, 2])
    })
  })

  t.test('without a name the message does without', async (t) => {
    const { reader } = await open(t, Driver)
    await reader.use((db) =>
      t.throws(() => add(db, 'x'), { message: "this connection only reads: lease role: 'primary' to write" }))
  })

  t.test("a reader's transactions only read, all from one snapshot", async (t) => {
    const { reader, borrower, connector } = await open(t, Driver)
    await borrower.use((db) => add(db, 'one'))
    await reader.use(async (db) => {
      await t.rejects(begin(connector.replica!, db),
        { code: 'FST_POOL_NOT_SUPPORTED', message: /lease role: 'primary'/ })
      const transaction = await begin(connector.replica!, db, { readOnly: true })
      t.same(texts(db), ['one'])
      await borrower.use((writer) => add(writer, 'two'))
      t.same(texts(db), ['one'])
      t.throws(() => add(db, 'x'), { code: 'FST_POOL_NOT_SUPPORTED', message: /lease role: 'primary'/ })
      await transaction.commit()
      t.same(texts(db), ['one', 'two'])
      t.equal(pragma(db, 'query_only'), 1)
    })
  })

  const opened: Array<[how: string, open: (db: SqliteDatabase) => unknown]> = [
    ['pragma', (db) => usePragma(db, 'query_only = OFF')],
    ['exec', (db) => db.exec('PRAGMA main.query_only = 0')],
    ['a statement', (db) => db.prepare('pragma query_only(0)').run()],
    ['odd writing', (db) => db.exec('PRAGMA/**/query_only = 0')],
  ]
  for (const reset of ['session', 'transaction'] as const) {
    for (const [how, open_] of opened) {
      t.test(`a reader on which query_only was switched off by ${how} does not write for the next borrower, with reset '${reset}'`, async (t) => {
        const { reader } = await open(t, Driver, { reset })
        await reader.use((db) => {
          open_(db)
          t.equal(pragma(db, 'query_only'), 0)
        })
        t.equal(reader.refused !== undefined, reset === 'session')
        await reader.use((db) => t.throws(() => add(db, 'x'), { code: 'FST_POOL_NOT_SUPPORTED' }))
      })
    }
  }

  t.test('a reader that was left with an attached database is opened anew', async (t) => {
    const { reader } = await open(t, Driver)
    const first = await reader.use((db) => {
      db.exec("ATTACH ':memory:' AS other")
      return db
    })
    t.match(reader.refused, { message: /attached databases/ })
    await reader.use((db) => {
      t.not(db, first)
      t.same(databases(db), ['main'])
    })
  })

  t.test('onConnect may make what it needs on a reader too, and can not leave it writing', async (t) => {
    const { reader } = await open(t, Driver, {
      onConnect: (db) =>
        db.exec('PRAGMA query_only = OFF; CREATE TABLE IF NOT EXISTS made (x); CREATE TEMP TABLE IF NOT EXISTS seen (x); PRAGMA recursive_triggers = ON'),
    })
    const first = await reader.use((db) => db)
    await reader.use((db) => {
      t.equal(db, first)
      t.same([temps(db), pragma(db, 'recursive_triggers'), value(db, 'SELECT count(*) FROM made')], [1, 1, 0])
      t.throws(() => add(db, 'x'), { code: 'FST_POOL_NOT_SUPPORTED' })
      t.throws(() => db.exec('INSERT INTO seen VALUES (1)'), { code: 'FST_POOL_NOT_SUPPORTED' })
    })
    t.equal(reader.refused, undefined)
  })

  t.test('a reader that was given back holds no snapshot: the WAL can be emptied', async (t) => {
    const { reader, borrower, connector } = await open(t, Driver)
    await borrower.use(fill)
    const leave: Array<(db: SqliteDatabase) => unknown> = [
      (db) => db.prepare('SELECT id FROM notes').get(),
      (db) => db.prepare('SELECT id FROM notes').iterate().next(),
      (db) => { for (const row of db.prepare('SELECT id FROM notes').iterate()) if (row) break },
      (db) => db.exec('BEGIN; SELECT * FROM notes'),
      (db) => begin(connector.replica!, db, { readOnly: true }).then(() => count(db)),
    ]
    const first = await reader.use((db) => db)
    for (const fn of leave) {
      await reader.use(async (db) => {
        t.equal(db, first)
        await fn(db)
      })
      await borrower.use((db) => {
        add(db, 'more')
        t.match(usePragma(db, 'wal_checkpoint(TRUNCATE)'), [{ busy: 0 }], String(fn))
      })
    }
  })

  t.test('a create waits for the lock of another process', async (t) => {
    const path = join(t.testdir(), 'app.db')
    const other = elsewhere(t, Driver, path)
    other.exec('CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT); BEGIN EXCLUSIVE')
    const connector = await sqlite({ url: path, driver: Driver })
    let settled = false
    const pending = connector.replica!.create(later).finally(() => { settled = true })
    let rounds = 0
    await until(() => ++rounds > 25)
    t.notOk(settled)
    other.exec('COMMIT')
    const db = await pending
    t.equal(pragma(db, 'journal_mode'), 'wal')
    await connector.replica!.destroy(db, 'closed')
  })
}

if (!isChild) {
  t.test('system and max are told; :memory: has no readers', async (t) => {
    const connector = await sqlite({ url: ':memory:' })
    t.match(connector, { system: 'sqlite', max: 1 })
    t.equal(connector.replica, undefined)
  })

  t.test('without a driver option libsql is taken where it is installed', async (t) => {
    const connector = await sqlite({ url: ':memory:' })
    t.type(await connector.create(later), LibSql)
    connector.close!()
  })

  t.test("libsql's handle fits our type", async (t) => {
    const handle: SqliteDatabase = new LibSql(':memory:')
    t.ok(handle.open)
    handle.close()
  })

  t.test('a url that is no path is refused without being shown', async (t) => {
    const bad = [
      undefined, '', 'libsql://user:s3cret@host', 'http://host/s3cret', 'file://host/app.db',
      'file:app.db?mode=ro&key=s3cret', 'file:', 'file:%zz',
    ]
    for (const url of bad) {
      const error: unknown = await sqlite({ url }).catch((error: unknown) => error)
      t.type(error, PoolError)
      t.match(error, { code: 'FST_POOL_BAD_OPTIONS', message: /option url is (missing|a text): expected a path/ })
      t.notMatch(String(error), /s3cret|%zz/)
    }
  })
}
