import { join } from 'node:path'
import Database from 'libsql'
import t from 'tap'
import type { SqliteDatabase } from '../../index.js'
import { accounts, opening, runBank, type Transfer } from './bank.js'

t.test('SQLite: through failures, aborts and handles that are replaced the books stay balanced', async (t) => {
  const file = join(t.testdir(), 'bank.db')
  const outside = new Database(file, { timeout: 5000 }) as unknown as SqliteDatabase
  t.teardown(() => { outside.close() })
  outside.exec('pragma journal_mode = wal; create table accounts (id int primary key, balance int not null); create table transfers (id int primary key, "from" int, "to" int, amount int)')
  for (let id = 0; id < accounts; id++) outside.prepare('insert into accounts values (?, ?)').run(id, opening)

  await runBank<SqliteDatabase>(t, {
    pool: { backend: 'sqlite', url: file, onConnect: (db) => { connected = db as SqliteDatabase } },
    bank: {
      async add (db, account, amount) {
        db.prepare('update accounts set balance = balance + ? where id = ?').run(amount, account)
        await aTurn()
      },
      async record (db, { id, from, to, amount }) {
        db.prepare('insert into transfers values (?, ?, ?, ?)').run(id, from, to, amount)
      },
      read: async () => ({
        balances: (outside.prepare('select balance from accounts order by id').all() as Array<{ balance: number }>)
          .map(({ balance }) => balance),
        transfers: outside.prepare('select * from transfers').all() as Transfer[],
      }),
    },
    // There is no server: what dies is the handle, in the middle of a transaction.
    restart: async () => { connected?.close() },
  })
})

let connected: SqliteDatabase | undefined
const aTurn = () => new Promise((resolve) => { setImmediate(resolve) })
