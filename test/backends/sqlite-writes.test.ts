// A write that resolved is stored: another handle on the file sees it at once, whatever failed before it on its handle.
import { join } from 'node:path'
import t from 'tap'
import type { Test } from 'tap'
import { TargetPool } from '../../lib/balance/target-pool.js'
import { sqlite } from '../../lib/backends/sqlite/connector.js'
import type { SqliteDatabase, SqliteDriver, SqliteStatement } from '../../lib/backends/sqlite/handle.js'
import type { Connector } from '../../types/connector.js'
import { VirtualClock } from '../support/clock.js'
import { until } from '../support/until.js'
import { findBetterSqlite } from '../support/find.mjs'
import { startNeighbour } from './neighbour.js'
import { codeOf, eachDriver, inTransaction, isOpen, thrownBy } from './sqlite-drivers.js'
import type { DriverName } from './sqlite-drivers.js'

const later = new AbortController().signal

/** All ways to run a statement. */
const ways: Record<string, (statement: SqliteStatement) => unknown> = {
  run: (statement) => statement.run(),
  get: (statement) => statement.get(),
  all: (statement) => statement.all(),
  iterate: (statement) => [...statement.iterate() as Iterable<unknown>],
  'iterate, broken off': (statement) => { for (const row of statement.iterate() as Iterable<unknown>) if (row) break },
}

interface Place { connector: Connector<SqliteDatabase>, db: SqliteDatabase, other: SqliteDatabase, path: string }

/** A lent handle, and another one that sees what is in the file. */
async function open (
  t: Test, Driver: SqliteDriver, onConnect: (db: SqliteDatabase) => void = () => {}
): Promise<Place> {
  const path = join(t.testdir(), 'app.db')
  const connector = await sqlite({ url: path, driver: Driver })
  const db = await connector.create(later)
  onConnect(db)
  // Nobody cuts the power here.
  db.exec('PRAGMA synchronous = OFF')
  db.exec('CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT UNIQUE CHECK (length(text) < 100))')
  connector.isBroken!(db)
  const other = new Driver(path, { timeout: 0 })
  t.teardown(async () => {
    if (isOpen(other)) other.close()
    await connector.destroy(db, 'closed')
  })
  return { connector, db, other, path }
}

const texts = (db: SqliteDatabase) =>
  (db.prepare('SELECT text FROM notes ORDER BY id').all() as Array<{ text: string }>).map(({ text }) => text)
const add = (db: SqliteDatabase, text: string) => db.prepare('INSERT INTO notes (text) VALUES (?)').run(text)
const count = (db: SqliteDatabase) =>
  Number(Object.values(db.prepare('SELECT count(*) FROM notes').all()[0] as object)[0])

/** Writes in every way, and looks for each write at once. */
function writesAreStored (t: Test, { db, other }: Place, what: string) {
  const sql = ['INSERT INTO notes (text) VALUES (', ') RETURNING id']
  for (const [way, run] of Object.entries(ways)) {
    const text = `${what}, ${way}`
    run(db.prepare(`${sql[0]}'${text}'${sql[1]}`))
    t.ok(texts(other).includes(text), `stored: ${text}`)
  }
  const text = `${what}, plain`
  add(db, text)
  t.ok(texts(other).includes(text), `stored: ${text}`)
  other.exec('BEGIN IMMEDIATE; ROLLBACK')
}

await eachDriver(t, import.meta.url, async (t, Driver, name) => {
  await failures(t, Driver, name)
  await interrupts(t, Driver, name)
  await ownTransactions(t, Driver, name)
  await migrations(t, Driver)
  await walks(t, Driver, name)
  await rivals(t, Driver)
})

async function failures (t: Test, Driver: SqliteDriver, name: DriverName) {
  let most: { max_page_count: number }
  // How it fails, and what is to be done before and after.
  type At = (place: Place) => unknown
  const kinds: Array<[what: string, sql: string, code: RegExp, before?: At, after?: At]> = [
    ['a lock', "INSERT INTO notes (text) VALUES ('x')", /^SQLITE_BUSY$/, ({ other }) => other.exec('BEGIN IMMEDIATE'),
      ({ other }) => other.exec('ROLLBACK')],
    ['a lock, with rows', "INSERT INTO notes (text) VALUES ('x') RETURNING id", /^SQLITE_BUSY$/,
      ({ other }) => other.exec('BEGIN IMMEDIATE'), ({ other }) => other.exec('ROLLBACK')],
    ['a lock, DDL', 'CREATE TABLE more (x)', /^SQLITE_BUSY$/, ({ other }) => other.exec('BEGIN IMMEDIATE'),
      ({ other }) => other.exec('ROLLBACK')],
    ['a lock, BEGIN', 'BEGIN IMMEDIATE', /^SQLITE_BUSY$/, ({ other }) => other.exec('BEGIN IMMEDIATE'),
      ({ other }) => other.exec('ROLLBACK')],
    ['a lock, PRAGMA', 'PRAGMA user_version = 3', /^SQLITE_BUSY$/, ({ other }) => other.exec('BEGIN IMMEDIATE'),
      ({ other }) => other.exec('ROLLBACK')],
    ['a snapshot that is out of date', "INSERT INTO notes (text) VALUES ('x')", /^SQLITE_BUSY_SNAPSHOT$/, ({ db, other }) => {
      db.exec('BEGIN')
      count(db)
      add(other, 'meanwhile')
    }, ({ db }) => db.exec('ROLLBACK')],
    ['UNIQUE', "INSERT INTO notes (text) VALUES ('there')", /^SQLITE_CONSTRAINT/, ({ db }) => add(db, 'there')],
    ['CHECK', "INSERT INTO notes (text) SELECT printf('%200s', 'x')", /^SQLITE_CONSTRAINT/],
    ['a type', "INSERT INTO notes (id) VALUES ('no number')", /^SQLITE.*(20|MISMATCH)$/],
    ['RAISE', "UPDATE notes SET text = 'y'", /^SQLITE_CONSTRAINT/, ({ db }) => {
      add(db, 'there')
      db.exec("CREATE TRIGGER tr BEFORE UPDATE ON notes BEGIN SELECT raise(FAIL, 'no'); END")
    }],
    ['RAISE ROLLBACK', "UPDATE notes SET text = 'y'", /^SQLITE_CONSTRAINT/, ({ db }) => {
      add(db, 'there')
      db.exec("CREATE TRIGGER tr BEFORE UPDATE ON notes BEGIN SELECT raise(ROLLBACK, 'no'); END")
    }],
    ['a full disk', 'CREATE TABLE big AS SELECT zeroblob(100000)', /^SQLITE_FULL$/,
      ({ db }) => {
        most = db.prepare('PRAGMA max_page_count').get() as { max_page_count: number }
        db.exec('PRAGMA max_page_count = 4')
      }, ({ db }) => db.exec(`PRAGMA max_page_count = ${most.max_page_count}`)],
    ['an overflow', 'INSERT INTO notes (id) VALUES (abs(-9223372036854775808))', /^SQLITE_ERROR$/],
    ['a COMMIT that breaks a reference', 'COMMIT', /^SQLITE_CONSTRAINT/, ({ db }) => {
      db.exec('PRAGMA foreign_keys = ON; CREATE TABLE refs (note REFERENCES notes (id) DEFERRABLE INITIALLY DEFERRED); BEGIN; INSERT INTO refs VALUES (99)')
    }, ({ db }) => db.exec('ROLLBACK')],
  ]
  for (const [what, sql, code, before, after] of kinds) {
    await t.test(`behind ${what}, every write is stored, within the same lease and later`, async (t) => {
      for (const [way, run] of Object.entries(ways)) {
        for (const kept of [false, true]) {
          let statement: SqliteStatement | undefined
          const prepare = (db: SqliteDatabase) => { statement = db.prepare(sql) }
          const table = 'CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT UNIQUE CHECK (length(text) < 100))'
          const place = await open(t, Driver, (db) => {
            db.exec(table)
            // Like a statement of onConnect.
            if (kept) prepare(db)
          })
          before?.(place)
          if (!kept) prepare(place.db)
          const error = thrownBy(() => run(statement!))
          // better-sqlite3 refuses `get`, `all` and `iterate` of what gives no rows; PRAGMA user_version gives none of
          // its errors there.
          if (error === undefined || error instanceof TypeError) {
            t.ok(way !== 'run', `${way} does not do it`)
            after?.(place)
            continue
          }
          t.match(codeOf(error), code, `${way}${kept ? ', kept' : ''}: ${String(error)}`)
          after?.(place)
          writesAreStored(t, place, 'same lease')
          await place.connector.reset!(place.db, later)
          t.notOk(place.connector.isBroken!(place.db))
          writesAreStored(t, place, 'next lease')
          place.other.close()
          await place.connector.destroy(place.db, 'closed')
        }
      }
    })
  }

  await t.test('rows of a write that nobody read hinder no later write', async (t) => {
    const place = await open(t, Driver)
    for (const [way, run] of Object.entries(ways)) {
      run(place.db.prepare(`INSERT INTO notes (text) VALUES ('${way} 1'), ('${way} 2') RETURNING id`))
      t.same(texts(place.other).filter((text) => text.startsWith(`${way} `)), [`${way} 1`, `${way} 2`], way)
    }
    const rows = place.db.prepare("INSERT INTO notes (text) VALUES ('held 1'), ('held 2') RETURNING id")
      .iterate() as Iterator<unknown>
    rows.next()
    // better-sqlite3 does nothing else meanwhile, and says so: nothing is acknowledged.
    const error = thrownBy(() => add(place.db, 'beside'))
    if (name === 'better-sqlite3') t.match(error, { message: /busy executing/ })
    else t.same([error, texts(place.other).slice(-3)], [undefined, ['held 1', 'held 2', 'beside']])
    t.equal(place.connector.reset!(place.db, later), undefined)
    t.same(texts(place.other).filter((text) => text.startsWith('held')), ['held 1', 'held 2'])
  })

  await t.test('run tells of its changes, rows or not', async (t) => {
    const { db } = await open(t, Driver)
    t.match(db.prepare("INSERT INTO notes (text) VALUES ('a')").run(), { changes: 1, lastInsertRowid: 1 })
    t.match(db.prepare("INSERT INTO notes (text) VALUES ('b'), ('c') RETURNING id").run(),
      { changes: 2, lastInsertRowid: 3 })
  })

  await t.test('a query that nobody read to its end keeps no old snapshot, on handles that read as well', async (t) => {
    const { connector, other } = await open(t, Driver)
    const reader = connector.replica!
    const db = await reader.create(later)
    t.teardown(() => reader.destroy(db, 'closed'))
    reader.isBroken!(db)
    for (const [way, run] of Object.entries(ways)) {
      add(other, `before ${way}`)
      run(db.prepare('SELECT a.text FROM notes a, notes b, sqlite_schema'))
      add(other, `after ${way}`)
      t.equal(texts(db).at(-1), `after ${way}`, way)
      t.match(other.prepare('PRAGMA wal_checkpoint(TRUNCATE)').all(), [{ busy: 0 }],
        `${way}: and hinders no checkpoint`)
    }
  })

  await t.test('a query that met a lock keeps no old snapshot', async (t) => {
    const { connector, db, other } = await open(t, Driver)
    for (const [way, run] of Object.entries(ways)) {
      // Without a WAL a writer locks out those who read.
      db.prepare('PRAGMA journal_mode = DELETE').all()
      other.exec('BEGIN EXCLUSIVE')
      t.match(codeOf(thrownBy(() => run(db.prepare('SELECT text FROM notes')))), /^SQLITE_BUSY/, way)
      other.exec('COMMIT')
      count(db)
      add(other, `since ${way}`)
      t.equal(texts(db).at(-1), `since ${way}`)
      add(db, `mine ${way}`)
      t.equal(texts(other).at(-1), `mine ${way}`)
      t.notOk(connector.isBroken!(db))
    }
  })

  await t.test('a COMMIT of a borrower that met a lock commits when it is run again', async (t) => {
    const { db, other } = await open(t, Driver)
    db.prepare('PRAGMA journal_mode = DELETE').all()
    other.exec('BEGIN')
    count(other)
    db.exec("BEGIN IMMEDIATE; INSERT INTO notes (text) VALUES ('mine')")
    const commit = db.prepare('COMMIT')
    t.match(codeOf(thrownBy(() => commit.run())), /^SQLITE_BUSY/)
    t.ok(inTransaction(db))
    other.exec('COMMIT')
    commit.run()
    t.same(texts(other), ['mine'])
    add(db, 'more')
    t.same(texts(other), ['mine', 'more'])
  })

  await t.test('a statement that is run again ends its iterator, and does nothing twice', async (t) => {
    if (name === 'better-sqlite3') return
    const { db, other } = await open(t, Driver)
    for (let row = 0; row < 300; row++) add(db, `n${row}`)
    const statement = db.prepare('SELECT id FROM notes ORDER BY id')
    for (const [way, run] of Object.entries(ways)) {
      const rows = statement.iterate() as Iterator<unknown>
      rows.next()
      run(statement)
      t.throws(() => rows.next(), { code: 'FST_POOL_TRANSACTION_ENDED', message: /run again/ }, way)
      t.match(statement.get(), { id: 1 }, `${way}: get gives the first row`)
    }
    const insert = db.prepare('INSERT INTO notes (text) VALUES (NULL) RETURNING id')
    const rows = insert.iterate() as Iterator<unknown>
    rows.next()
    insert.all()
    t.equal(rows.next().done, true)
    t.equal(count(other), 302)
  })
}

interface Interruptible extends SqliteDatabase { interrupt (): void }

/**
 * Only libsql's handles have `interrupt`: until no statement is under way any more, all that runs on the handle fails.
 */
async function interrupts (t: Test, Driver: SqliteDriver, name: DriverName) {
  t.equal('interrupt' in Driver.prototype, name === 'libsql')
  if (name !== 'libsql') return
  /** Leaves a query under way, and interrupts it. */
  const interrupt = (db: SqliteDatabase) => {
    const rows = db.prepare('SELECT id FROM notes').iterate()
    rows.next()
    ;(db as Interruptible).interrupt()
    return rows
  }
  const fill = (db: SqliteDatabase) =>
    db.exec("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300) INSERT INTO notes (text) SELECT 'n' || i FROM n")
  const ends: Record<string, (rows: IterableIterator<unknown>, place: Place) => unknown> = {
    'is read on': (rows) => thrownBy(() => [...rows]),
    'is left': (rows) => rows.return!(),
    'ends with its lease': (_, { connector, db }) => connector.reset!(db, later),
  }

  for (const [how, end] of Object.entries(ends)) {
    await t.test(`behind an interrupt, every write is stored once the query ${how}`, async (t) => {
      for (const [way, run] of Object.entries(ways)) {
        for (const inside of ['', 'BEGIN']) {
          const place = await open(t, Driver)
          const { connector, db, other } = place
          fill(db)
          const statement = db.prepare("INSERT INTO notes (text) VALUES ('x')")
          if (inside !== '') db.exec(inside)
          const rows = interrupt(db)
          for (const fn of [
            () => run(statement), () => add(db, 'x'), () => db.exec("INSERT INTO notes (text) VALUES ('x')"),
          ]) {
            t.equal(codeOf(thrownBy(fn)), 'SQLITE_INTERRUPT', `${way} ${inside}`)
          }
          t.notOk(inTransaction(db), 'SQLite has rolled it back')
          end(rows, place)
          t.equal(count(other), 300)
          writesAreStored(t, place, 'same lease')
          await connector.reset!(db, later)
          t.notOk(connector.isBroken!(db))
          writesAreStored(t, place, 'next lease')
        }
      }
    })
  }

  await t.test("a write that is interrupted ends the pool's transaction: nothing after it is run, and no commit resolves", async (t) => {
    const place = await open(t, Driver)
    const { connector, db, other } = place
    fill(db)
    const transaction = await connector.transactions!.begin(db, {}, later)
    add(db, 'lost')
    const statement = db.prepare("INSERT INTO notes (text) VALUES ('x')")
    const rows = interrupt(db)
    t.equal(codeOf(thrownBy(() => statement.run())), 'SQLITE_INTERRUPT')
    rows.return!()
    t.match(thrownBy(() => add(db, 'behind')), { code: 'FST_POOL_TRANSACTION_ENDED' })
    await t.rejects(transaction.commit(), { code: 'FST_POOL_TRANSACTION_ENDED' })
    await transaction.rollback()
    t.equal(count(other), 300)
    writesAreStored(t, place, 'behind it')
  })

  await t.test("a text that is interrupted before it is compiled leaves the pool's transaction, which commits what resolved", async (t) => {
    const place = await open(t, Driver)
    const { connector, db, other } = place
    fill(db)
    const transaction = await connector.transactions!.begin(db, {}, later)
    add(db, 'before')
    const rows = interrupt(db)
    for (const fn of [() => db.exec("INSERT INTO notes (text) VALUES ('x')"),
      () => add(db, 'x')]) t.equal(codeOf(thrownBy(fn)), 'SQLITE_INTERRUPT')
    rows.return!()
    add(db, 'behind')
    await transaction.commit()
    t.same(texts(other).slice(300), ['before', 'behind'])
    writesAreStored(t, place, 'behind it')
  })

  await t.test("a commit of the pool's that is interrupted is rolled back", async (t) => {
    const place = await open(t, Driver)
    const { connector, db, other } = place
    fill(db)
    const transaction = await connector.transactions!.begin(db, {}, later)
    add(db, 'lost')
    interrupt(db)
    await t.rejects(transaction.commit(), { code: 'SQLITE_INTERRUPT' })
    await transaction.rollback()
    t.equal(count(other), 300)
    writesAreStored(t, place, 'behind it')
  })

  await t.test("a transaction of the driver's that is interrupted is over, and every write behind it is stored", async (t) => {
    const place = await open(t, Driver)
    const { connector, db, other } = place
    fill(db)
    const kept = db.prepare('INSERT INTO notes (text) VALUES (?)')
    const kinds: Record<string, () => unknown> = {
      'a prepare': () => add(db, 'x'),
      'a statement': () => kept.run('x'),
      exec: () => db.exec("INSERT INTO notes (text) VALUES ('x')"),
      COMMIT: () => {},
    }
    for (const [what, fn] of Object.entries(kinds)) {
      const before = count(other)
      const run = db.transaction(() => {
        kept.run(`lost by ${what}`)
        interrupt(db)
        fn()
      })
      t.ok(thrownBy(run), what)
      t.notOk(inTransaction(db), what)
      t.equal(count(other), before)
      writesAreStored(t, place, `same lease, ${what}`)
      await connector.reset!(db, later)
      writesAreStored(t, place, `next lease, ${what}`)
    }
  })
}

/** Drivers that have `transaction(fn)`: what it does when another process has the lock. */
async function ownTransactions (t: Test, Driver: SqliteDriver, name: DriverName) {
  t.equal('transaction' in Driver.prototype, name !== 'node:sqlite')
  if (name === 'node:sqlite') return
  const modes = ['default', 'deferred', 'immediate', 'exclusive'] as const
  type Made = Record<typeof modes[number], (text: string) => unknown>

  await t.test("the driver's own transaction that meets another process's lock does nothing, and every write behind it is stored", async (t) => {
    const place = await open(t, Driver)
    const { connector, db, path } = place
    const neighbour =
      await startNeighbour(t, 'sqlite', { driver: name, path, table: 'notes', from: findBetterSqlite() })
    const stored: string[] = []
    const made = db.transaction((text: string) => add(db, text)) as unknown as Made
    for (const mode of modes) {
      await neighbour.exec('BEGIN IMMEDIATE')
      t.equal(codeOf(thrownBy(() => made[mode]('refused'))), 'SQLITE_BUSY', mode)
      t.notOk(inTransaction(db), mode)
      await neighbour.exec('ROLLBACK')
      for (const lease of ['same lease', 'next lease']) {
        const plain = `${lease}, ${mode}`
        const retried = `${plain}, once more`
        add(db, plain)
        t.same(await neighbour.all(), [...stored, plain])
        made[mode](retried)
        stored.push(plain, retried)
        t.same(await neighbour.all(), stored)
        // Nothing is left open, so the other process may write.
        await neighbour.exec(`INSERT INTO notes (text) VALUES ('theirs, ${plain}')`)
        stored.push(`theirs, ${plain}`)
        t.equal(connector.reset!(db, later), undefined)
        t.notOk(connector.isBroken!(db))
      }
    }
    t.equal(stored.length, 3 * 2 * modes.length)
  })

  await t.test("the driver's own transaction whose COMMIT meets a lock does nothing, and every write behind it is stored", async (t) => {
    for (const mode of modes) {
      const place = await open(t, Driver)
      const { connector, db, other } = place
      // Without a WAL readers are in the way of a COMMIT.
      db.prepare('PRAGMA journal_mode = DELETE').all()
      other.exec('BEGIN')
      count(other)
      let ran = 0
      const made = db.transaction((text: string) => {
        add(db, text)
        ran++
      }) as unknown as Made
      t.match(codeOf(thrownBy(() => made[mode]('refused'))), /^SQLITE_BUSY/, mode)
      t.equal(ran, mode === 'exclusive' ? 0 : 1)
      t.notOk(inTransaction(db))
      other.exec('COMMIT')
      t.same(texts(other), [])
      writesAreStored(t, place, 'same lease')
      made[mode]('once more')
      t.equal(texts(other).at(-1), 'once more')
      db.prepare('PRAGMA journal_mode = WAL').all()
      await connector.reset!(db, later)
      writesAreStored(t, place, 'next lease')
    }
  })
}

/** Another process changes the schema under a statement that is kept for all leases. */
async function migrations (t: Test, Driver: SqliteDriver) {
  await t.test('a statement that is kept over a change of the schema goes on, without one failure', async (t) => {
    const kept: SqliteStatement[] = []
    const { connector, db, path, other } = await open(t, Driver, (db) => {
      db.exec('CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT UNIQUE CHECK (length(text) < 100))')
      kept.push(db.prepare('SELECT * FROM notes'), db.prepare('INSERT INTO notes (text) VALUES (?)'))
    })
    const [all, insert] = kept as [SqliteStatement, SqliteStatement]
    let id = 0
    const changes: Array<[sql: string, columns: object]> = [
      ['SELECT 1', {}],
      ["ALTER TABLE notes ADD COLUMN more TEXT DEFAULT 'm'", { more: 'm' }],
      ['ALTER TABLE notes RENAME COLUMN more TO less', { less: 'm' }],
      ['ALTER TABLE notes DROP COLUMN less', {}],
      ['CREATE INDEX by_text ON notes (text)', {}],
      ['DROP INDEX by_text', {}],
      ['VACUUM', {}],
      ['DROP TABLE notes; CREATE TABLE notes (id INTEGER PRIMARY KEY, first INT DEFAULT 1, text TEXT)', { first: 1 }],
    ]
    const migrator = new Driver(path, { timeout: 0 })
    t.teardown(() => migrator.close())
    for (const [sql, columns] of changes) {
      migrator.exec(sql)
      const text = `behind ${sql}`
      insert.run(text)
      if (/DROP TABLE/.test(sql)) id = 0
      const row = { id: ++id, text, ...columns }
      t.same({ ...other.prepare('SELECT * FROM notes').all().at(-1) as object }, row)
      for (const rows of [all.all(), [...all.iterate()]]) t.same({ ...rows.at(-1) as object }, row, text)
      connector.reset!(db, later)
    }
  })
}

/**
 * Statements by chance, on a few kept and many new statements, beside another handle that takes the lock at times; a
 * model says what must be in the file.
 */
async function walks (t: Test, Driver: SqliteDriver, name: DriverName) {
  await t.test('random walks: what was acknowledged is seen by another handle at once', async (t) => {
    let failed = 0
    let stored = 0
    for (let seed = 1; seed <= 12; seed++) {
      const kept: SqliteStatement[] = []
      const { connector, db, other } = await open(t, Driver, (db) => {
        db.exec('CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT UNIQUE CHECK (length(text) < 100))')
        kept.push(db.prepare('INSERT INTO notes (text) VALUES (?) RETURNING id'),
          db.prepare('INSERT INTO notes (text) VALUES (?)'))
      })
      const chance = new VirtualClock(seed)
      const pick = <T>(list: readonly T[]): T => list[Math.floor(chance.random() * list.length)]!
      const model: string[] = []
      let pending: string[] | undefined
      let held: IterableIterator<unknown> | undefined
      let next = 0
      for (let step = 0; step < 60; step++) {
        const text = `s${seed}n${++next}`
        const own = model.length > 0 && chance.random() < 0.2 ? pick(model) : text
        const doing =
          pick(['plain', 'plain', 'kept', 'rows', 'exec', 'several', 'begin', 'end', 'lock', 'unlock', 'hold', 'read',
            'return'])
        const write = (fn: () => unknown, ...written: string[]) => {
          const error = thrownBy(fn)
          if (error !== undefined) {
            failed++
            if (!inTransaction(db)) pending = undefined
            return
          }
          if (pending === undefined) model.push(...written)
          else pending.push(...written)
        }
        if (doing === 'plain') write(() => add(db, own), own)
        else if (doing === 'kept') {
          write(() =>
            pick([(s: SqliteStatement) => s.run(own), (s: SqliteStatement) => s.all(own)])(kept[name === 'better-sqlite3' ? 0 : Math.floor(chance.random() * 2)]!), own)
        } else if (doing === 'rows') {
          write(() =>
            pick(Object.values(ways))(db.prepare(`INSERT INTO notes (text) VALUES ('${own}') RETURNING id`)), own)
        } else if (doing === 'exec') write(() => db.exec(`INSERT INTO notes (text) VALUES ('${own}')`), own)
        else if (doing === 'several') {
          write(() => db.exec(`BEGIN; INSERT INTO notes (text) VALUES ('${text}'); COMMIT`),
            text)
        } else if (doing === 'begin' && !inTransaction(db) &&
          thrownBy(() => db.prepare(pick(['BEGIN', 'BEGIN IMMEDIATE'])).run()) === undefined) pending = []
        else if (doing === 'end' && pending !== undefined) {
          const commits = chance.random() < 0.5
          if (thrownBy(() => db.prepare(commits ? 'COMMIT' : 'ROLLBACK').run()) === undefined) {
            if (commits) model.push(...pending)
            pending = undefined
          }
        } else if (doing === 'lock') thrownBy(() => other.exec('BEGIN IMMEDIATE'))
        else if (doing === 'unlock' && inTransaction(other)) other.exec('COMMIT')
        else if (doing === 'hold' && name !== 'better-sqlite3') {
          held = db.prepare('SELECT a.id FROM notes a, notes b, notes c').iterate()
          thrownBy(() => held!.next())
        } else if (doing === 'read') thrownBy(() => pick(Object.values(ways))(db.prepare('SELECT text FROM notes')))
        else if (doing === 'return') {
          t.equal(connector.reset!(db, later), undefined)
          t.notOk(connector.isBroken!(db))
          pending = undefined
        }
        // A transaction of several statements may have failed in its midst.
        if (pending === undefined && inTransaction(db)) db.exec('ROLLBACK')
        if (pending !== undefined && !inTransaction(db)) pending = undefined
        const seen = texts(other)
        if (JSON.stringify([...seen].sort()) !== JSON.stringify([...model].sort())) {
          t.same(seen, model, `seed ${seed}, step ${step}, after ${doing}`)
          return
        }
      }
      stored += model.length
    }
    t.ok(failed > 100 && stored > 100, `${stored} stored, ${failed} failed`)
  })
}

/** The pool whose writer waits for the lock of somebody else. */
async function rivals (t: Test, Driver: SqliteDriver) {
  /** A pool, and another handle on its file. `begins` counts how often the pool looked for the lock. */
  const openPool = async (t: Test, options: { acquireTimeout?: number, timeout?: number } = {}) => {
    let begins = 0
    class Counting extends (Driver as new (path: string, options?: object) => SqliteDatabase) {
      override exec (sql: string): unknown {
        if (sql === 'BEGIN IMMEDIATE; ROLLBACK') begins++
        return super.exec(sql)
      }
    }
    const path = join(t.testdir(), 'app.db')
    const { acquireTimeout = 5000, timeout } = options
    const connector = await sqlite({
      url: path, driver: Counting, ...(timeout !== undefined && { connection: { timeout } }),
    })
    const pool = TargetPool.ofRoles(connector, { max: 2, acquireTimeout })
    t.teardown(() => pool.close({ timeout: 500 }))
    await pool.use((db) => db.exec('CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)'))
    const other = new Driver(path, { timeout: 0 })
    t.teardown(() => { if (isOpen(other)) other.close() })
    return { pool, other, begins: () => begins }
  }

  await t.test('where nobody else writes, a loan looks for no lock', async (t) => {
    const { pool, begins } = await openPool(t)
    for (let loan = 0; loan < 200; loan++) await pool.use((db) => add(db, `n${loan}`))
    t.equal(begins(), 0)
  })

  const hows =
    ['it met the lock', 'it saw that the file changed', "it met the lock in the driver's own transaction"] as const
  for (const how of hows.slice(0, 'transaction' in Driver.prototype ? 3 : 2)) {
    await t.test(`once ${how}, the writer is lent when nobody has the lock, and the event loop goes on`, async (t) => {
      const { pool, other, begins } = await openPool(t)
      if (how !== 'it saw that the file changed') {
        const write = (db: SqliteDatabase) => add(db, 'refused')
        other.exec('BEGIN IMMEDIATE')
        await t.rejects(pool.use((db) => how === 'it met the lock' ? write(db) : db.transaction(write).immediate(db)),
          { message: 'database is locked' })
      } else {
        add(other, 'theirs')
        for (let loan = 0; loan < 64; loan++) await pool.use((db) => count(db))
        other.exec('BEGIN IMMEDIATE')
      }
      let written = false
      const pending = pool.use((db) => add(db, 'mine')).finally(() => { written = true })
      const before = begins()
      await until(() => begins() > before + 3, { what: 'it asks again' })
      t.notOk(written)
      t.equal(await pool.use(count, { role: 'replica' }), how === 'it saw that the file changed' ? 1 : 0,
        'readers need not wait')
      other.exec('COMMIT')
      await pending
      t.equal(texts(other).at(-1), 'mine')
      // A minute without others: it is as it was.
      const now = performance.now.bind(performance)
      performance.now = () => now() + 61_000
      t.teardown(() => { performance.now = now })
      await pool.use((db) => add(db, 'more'))
      const then = begins()
      await pool.use((db) => add(db, 'and more'))
      t.equal(begins(), then)
      performance.now = now
    })
  }

  await t.test('who waits in vain is told of the lock: a loan, and a transaction', async (t) => {
    const { pool, other } = await openPool(t, { acquireTimeout: 200 })
    other.exec('BEGIN IMMEDIATE')
    await t.rejects(pool.transaction((db) => add(db, 'x')),
      { code: 'FST_POOL_ACQUIRE_TIMEOUT', message: /did not begin within 200 ms: in the way is the lock of the SQLite file/ })
    await t.rejects(pool.use((db) => add(db, 'x')), { message: 'database is locked' })
    await t.rejects(pool.use((db) => add(db, 'x')), {
      code: 'FST_POOL_ACQUIRE_TIMEOUT', message: /in the way is the lock of the SQLite file, which another process has/,
    })
    other.exec('COMMIT')
    await pool.use((db) => add(db, 'mine'))
    t.same(texts(other), ['mine'])
  })

  await t.test('with a busy timeout of its own no loan looks for the lock', async (t) => {
    const { pool, other, begins } = await openPool(t, { timeout: 1 })
    other.exec('BEGIN IMMEDIATE')
    for (let loan = 0; loan < 3; loan++) {
      await t.rejects(pool.use((db) => add(db, 'refused')),
        { message: 'database is locked' })
    }
    t.equal(begins(), 0)
  })
}
