import { existsSync, mkdirSync, readdirSync, readlinkSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import LibSql from 'libsql'
import t from 'tap'
import type { Test } from 'tap'
import { sqlite } from '../../lib/backends/sqlite.js'
import type { SqliteConnector, SqliteDatabase, SqliteDriver, SqliteOptions } from '../../lib/backends/sqlite.js'
import { PoolError } from '../../lib/pool/errors.js'

/** better-sqlite3 has to be compiled, so it is no dependency of ours: the suite runs on it where it is installed, or where this names its folder. */
const better = await (async () => {
  const from = process.env.POOL_TEST_BETTER_SQLITE3
  try {
    const file = createRequire(from === undefined ? import.meta.url : pathToFileURL(from + '/').href).resolve('better-sqlite3')
    return (await import(pathToFileURL(file).href) as { default: SqliteDriver }).default
  } catch (error) {
    // Asked for by name, it must be there.
    if (from !== undefined) throw error
    return undefined
  }
})()

const drivers: Array<[name: string, driver: SqliteDriver | undefined]> = [['libsql', LibSql], ['better-sqlite3', better]]
const later = new AbortController().signal

/** Lends as a pool of one would: what comes back dirty is destroyed, and made anew. */
class Borrower {
  readonly connector: SqliteConnector
  readonly onConnect: (db: SqliteDatabase) => void
  refused: unknown
  #db: SqliteDatabase | undefined

  constructor (connector: SqliteConnector, onConnect: (db: SqliteDatabase) => void = () => {}) {
    this.connector = connector
    this.onConnect = onConnect
  }

  async use<T> (fn: (db: SqliteDatabase) => T): Promise<T> {
    if (this.#db === undefined) {
      this.#db = await this.connector.create(later)
      this.onConnect(this.#db)
    }
    const db = this.#db
    if (this.connector.isBroken!(db)) throw new Error('a fresh connection must not be broken')
    this.refused = undefined
    try {
      return fn(db)
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

interface Place { borrower: Borrower, path: string, options: SqliteOptions, Driver: SqliteDriver }

interface OpenOptions extends SqliteOptions { memory?: boolean, onConnect?: (db: SqliteDatabase) => void }

async function open (t: Test, Driver: SqliteDriver, { memory = false, onConnect, ...more }: OpenOptions = {}): Promise<Place> {
  const path = memory ? ':memory:' : join(t.testdir(), 'app.db')
  const options: SqliteOptions = { url: path, driver: Driver, ...more }
  const borrower = new Borrower(await sqlite(options), onConnect)
  t.teardown(() => borrower.close())
  await borrower.use((db) => db.exec('CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)'))
  return { borrower, path, options, Driver }
}

const texts = (db: SqliteDatabase) => (db.prepare('SELECT text FROM notes ORDER BY id').all() as Array<{ text: string }>).map(({ text }) => text)
const fill = (db: SqliteDatabase) => {
  db.exec("WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 500) INSERT INTO notes (text) SELECT 'n' || i FROM c")
}
/** The one value of the one row. By `all`, since libsql adds a `_metadata` to what `get` gives, and does not pluck there. */
const value = (db: SqliteDatabase, sql: string) => Object.values(db.prepare(sql).all()[0] as object)[0] as unknown
const count = (db: SqliteDatabase) => value(db, 'SELECT count(*) FROM notes')
const pragma = (db: SqliteDatabase, name: string) => value(db, `PRAGMA ${name}`)
const temps = (db: SqliteDatabase) => value(db, 'SELECT count(*) FROM temp.sqlite_schema')
const databases = (db: SqliteDatabase) => (db.pragma('database_list') as Array<{ name: string }>)
  .map(({ name }) => name).filter((name) => name !== 'temp')

/** The file descriptor of the listing itself is gone by then. */
const linkOf = (path: string) => existsSync(path) ? readlinkSync(path) : undefined

for (const [name, driver] of drivers) {
  // better-sqlite3 takes a minute to compile: only where POOL_TEST_BETTER_SQLITE3 names a folder in which it is installed.
  if (driver === undefined) continue
  t.test(name, (t) => {
    suite(t, driver)
    t.end()
  })
}

function suite (t: Test, Driver: SqliteDriver) {
  t.test('a borrower has the whole driver, and its committed rows stay', async (t) => {
    const { borrower } = await open(t, Driver)
    await borrower.use((db) => {
      t.type(db, Driver)
      db.prepare('INSERT INTO notes (text) VALUES (?)').run('one')
      const add = db.transaction((...list: string[]) => { for (const text of list) db.prepare('INSERT INTO notes (text) VALUES (?)').run(text) })
      add.immediate('two', 'three')
      t.same([...db.prepare('SELECT id FROM notes').iterate() as Iterable<{ id: number }>].map(({ id }) => id), [1, 2, 3])
    })
    await borrower.use((db) => t.same(texts(db), ['one', 'two', 'three']))
  })

  t.test('a clean return needs no round trip and keeps the handle', async (t) => {
    const { borrower } = await open(t, Driver)
    const first = await borrower.use((db) => db)
    await borrower.use((db) => {
      db.exec("INSERT INTO notes (text) VALUES ('temperature is attached to nothing')")
      db.pragma('table_info(notes)')
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
      t.throws(() => db.exec('BEGIN IMMEDIATE'), { code: 'SQLITE_BUSY' })
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
      t.notOk(db.inTransaction)
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
  const left: Array<[what: string, leave: (db: SqliteDatabase) => unknown, look: (db: SqliteDatabase) => unknown, clean: unknown]> = [
    ['a temp table', (db) => db.exec('CREATE TEMP TABLE scratch (x)'), temps, 0],
    ['a temp table, made by a prepared statement', (db) => db.prepare('CREATE TABLE "temp".scratch (x)').run(), temps, 0],
    ['a temp view that hides a table', (db) => db.exec('create temporary view notes as select 1 as id, 2 as text'), texts, []],
    ['a temp trigger', (db) => db.exec('CREATE TEMP TRIGGER tr AFTER INSERT ON notes BEGIN DELETE FROM notes; END'), temps, 0],
    ['an attached database', (db) => db.exec("ATTACH ':memory:' AS other"), databases, ['main']],
    ['foreign_keys', (db) => db.pragma('foreign_keys = OFF'), (db) => pragma(db, 'foreign_keys'), 1],
    ['query_only, prepared', (db) => db.prepare('PRAGMA main.query_only = ON').run(), (db) => pragma(db, 'query_only'), 0],
    ['recursive_triggers, by exec', (db) => db.exec('select 1; pragma recursive_triggers(1);'), (db) => pragma(db, 'recursive_triggers'), 0],
    ['busy_timeout', (db) => db.exec('PRAGMA busy_timeout = 5000'), (db) => pragma(db, 'busy_timeout'), 0],
    ['ignore_check_constraints', (db) => db.pragma('ignore_check_constraints = 1'), (db) => pragma(db, 'ignore_check_constraints'), 0],
    ['legacy_alter_table', (db) => db.pragma('legacy_alter_table = 1'), (db) => pragma(db, 'legacy_alter_table'), 0],
    ['all at once, in an open transaction', (db) => {
      db.pragma('reverse_unordered_selects = 1')
      db.exec("ATTACH ':memory:' AS other; BEGIN; CREATE TEMP TABLE a (x UNIQUE); CREATE TEMP TABLE b (x); CREATE INDEX temp.i ON b (x)")
    }, (db) => [pragma(db, 'reverse_unordered_selects'), temps(db), db.inTransaction], [0, 0, false]],
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
      let rows = 0
      try {
        while (!held!.next().done) rows++
      } catch {
        // It ended with an error: just as well.
      }
      t.ok(rows < 500, 'the held iterator has ended')
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
        t.notOk(db.inTransaction)
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
    t.notOk(first.open)
    t.not(await borrower.use((db) => db), first)
  })

  t.test('what was undone by the borrower itself keeps the handle', async (t) => {
    const { borrower } = await open(t, Driver)
    const first = await borrower.use((db) => db)
    await borrower.use((db) => db.exec('CREATE TEMP TABLE scratch (x); PRAGMA foreign_keys = 0; DROP TABLE scratch; PRAGMA foreign_keys = 1'))
    t.equal(await borrower.use((db) => db), first)
  })

  t.test('settings that can not be read back, and those in odd writing, have the handle opened anew', async (t) => {
    const { borrower } = await open(t, Driver)
    const odd = [
      'PRAGMA case_sensitive_like = ON', 'PRAGMA/**/foreign_keys = OFF', 'PRAGMA foreign_keys/**/ = OFF', 'PRAGMA mmap_size = 4096',
      'PRAGMA temp.cache_size = 7', 'pragma "query_only" = 1',
    ]
    for (const sql of odd) {
      const first = await borrower.use((db) => {
        db.exec(sql)
        return db
      })
      t.match(borrower.refused, /settings|pragmas/, sql)
      t.notOk(first.open)
      await borrower.use((db) => t.same(['foreign_keys', 'query_only'].map((name) => pragma(db, name)), [1, 0]))
    }
  })

  t.test('a statement that was prepared in one lease and run in a later one leaves nothing either', async (t) => {
    const { borrower } = await open(t, Driver)
    const [first, attach] = await borrower.use((db) => [db, db.prepare("ATTACH ':memory:' AS other")] as const)
    await borrower.use((db) => {
      t.equal(db, first)
      attach.run()
    })
    await borrower.use((db) => t.same(databases(db), ['main']))
  })

  t.test('what onConnect sets is kept, and is what a reset goes back to', async (t) => {
    let connects = 0
    const { borrower } = await open(t, Driver, {
      onConnect: (db) => {
        connects++
        db.exec("PRAGMA recursive_triggers = ON; ATTACH ':memory:' AS side; CREATE TEMP TABLE seen (x); PRAGMA case_sensitive_like = ON")
      },
    })
    const look = (db: SqliteDatabase) => [pragma(db, 'recursive_triggers'), databases(db), temps(db), value(db, "SELECT 'A' LIKE 'a'")]
    const first = await borrower.use((db) => db)
    t.equal(await borrower.use((db) => db), first)
    t.same(await borrower.use(look), [1, ['main', 'side'], 1, 0])
    t.equal(connects, 1)
    await borrower.use((db) => db.exec('PRAGMA recursive_triggers = OFF; DETACH side'))
    t.match(borrower.refused, /attached databases and changed pragmas/)
    t.same(await borrower.use(look), [1, ['main', 'side'], 1, 0])
    t.equal(connects, 2)
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
    t.notOk(first.open)
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
    t.notOk(db.open)
    const other = new Driver(path, { timeout: 0 })
    other.exec('BEGIN IMMEDIATE; DELETE FROM notes; COMMIT')
    t.match(other.pragma('wal_checkpoint(TRUNCATE)'), [{ busy: 0 }], 'no snapshot is held')
    other.close()
  })

  // libsql lets go of the file when the last statement that was prepared on it has been collected as garbage.
  if (Driver === better) {
    t.test('destroy of the last handle leaves no WAL behind', async (t) => {
      const { borrower, path } = await open(t, Driver)
      t.ok(existsSync(`${path}-wal`))
      await borrower.close()
      t.notOk(existsSync(`${path}-wal`))
    })
  }

  t.test('a create after the signal, or that fails half-way, leaves nothing open', async (t) => {
    const path = join(t.testdir({ 'app.db': 'this is no database, but it is long enough to be looked at as one. '.repeat(100) }), 'app.db')
    const connector = await sqlite({ url: path, driver: Driver })
    await t.rejects(connector.create(AbortSignal.abort(new Error('too late'))), /too late/)
    await t.rejects(connector.create(later), /not a database/)
    // Only Linux can tell which files a process has open.
    if (process.platform === 'linux') t.notOk(readdirSync('/proc/self/fd').some((fd) => linkOf(`/proc/self/fd/${fd}`) === path))
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
      [`file:${dir}/a b.db`]: 'a b.db', [`file:${dir}/c%20d.db`]: 'c d.db', [`file://${dir}/e.db`]: 'e.db', [`file://localhost${dir}/f.db`]: 'f.db',
    }
    for (const [url, file] of Object.entries(urls)) {
      const connector = await sqlite({ url, driver: Driver })
      await connector.destroy(await connector.create(later), 'closed')
      t.ok(existsSync(join(dir, file)), url)
    }
    const memory = await sqlite({ url: 'file::memory:', driver: Driver })
    t.equal((await memory.create(later)).memory, true)
    memory.close!()
  })

  t.test('options are not mutated', async (t) => {
    const options: SqliteOptions = Object.freeze({ url: join(t.testdir(), 'app.db'), connection: Object.freeze({ timeout: 5 }), driver: Driver })
    const connector = await sqlite(options)
    await connector.destroy(await connector.create(later), 'closed')
  })
}

t.test('system and max are told', async (t) => {
  t.match(await sqlite({ url: ':memory:' }), { system: 'sqlite', max: 1 })
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
    undefined, '', 'libsql://user:s3cret@host', 'http://host/s3cret', 'file://host/app.db', 'file:app.db?mode=ro&key=s3cret', 'file:', 'file:%zz',
  ]
  for (const url of bad) {
    const error: unknown = await sqlite({ url }).catch((error: unknown) => error)
    t.type(error, PoolError)
    t.match(error, { code: 'FST_POOL_BAD_OPTIONS', message: /option url is (missing|a text): expected a path/ })
    t.notMatch(String(error), /s3cret|%zz/)
  }
})

t.test('a missing driver is named', async (t) => {
  const driver = 'no-such-sqlite-driver' as 'libsql'
  await t.rejects(sqlite({ url: ':memory:', driver }), { code: 'FST_POOL_MISSING_DRIVER', message: /npm install no-such-sqlite-driver/ })
})
