import { type Connection, createConnection, type RowDataPacket } from 'mysql2/promise'
import t from 'tap'
import { startMariadb } from '../support/services.js'
import { accounts, opening, runBank, type Transfer } from './bank.js'

t.test('MariaDB: through failures, aborts, deadlocks and a crash of the server the books stay balanced', async (t) => {
  const server = await startMariadb(t, { own: true })
  const outside = async <T>(fn: (connection: Connection) => Promise<T>): Promise<T> => {
    const connection = await createConnection(server.url)
    try {
      return await fn(connection)
    } finally {
      await connection.end()
    }
  }
  await outside(async (connection) => {
    await connection.query('create table accounts (id int primary key, balance int not null)')
    await connection.query('create table transfers (id int primary key, `from` int, `to` int, amount int)')
    await connection.query('insert into accounts values ?',
      [Array.from({ length: accounts }, (_, id) => [id, opening])])
  })
  await runBank<Connection>(t, {
    pool: { backend: 'mysql', url: server.url },
    bank: {
      async add (connection, account, amount) {
        await connection.query('update accounts set balance = balance + ? where id = ?', [amount, account])
      },
      async record (connection, { id, from, to, amount }) {
        await connection.query('insert into transfers values (?, ?, ?, ?)', [id, from, to, amount])
      },
      read: () => outside(async (connection) => ({
        balances: (await connection.query<Array<RowDataPacket & { balance: number }>>('select balance from accounts order by id'))[0].map(({ balance }) => balance),
        transfers: (await connection.query<Array<RowDataPacket & Transfer>>('select * from transfers'))[0].map(({ id, from, to, amount }) => ({ id, from, to, amount })),
      })),
    },
    restart: async () => {
      await server.kill()
      await server.restart()
    },
  })
})
