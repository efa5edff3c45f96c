import pg from 'pg'
import t from 'tap'
import { startPostgres } from '../support/services.js'
import { accounts, opening, runBank, type Transfer } from './bank.js'

t.test('PostgreSQL: through failures, aborts and a crash of the server the books stay balanced', async (t) => {
  const server = await startPostgres(t, { own: true })
  const outside = async <T>(fn: (client: pg.Client) => Promise<T>): Promise<T> => {
    const client = new pg.Client({ connectionString: server.url })
    await client.connect()
    try {
      return await fn(client)
    } finally {
      await client.end()
    }
  }
  await outside(async (client) => {
    await client.query('create table accounts (id int primary key, balance int not null)')
    await client.query('create table transfers (id int primary key, "from" int, "to" int, amount int)')
    await client.query('insert into accounts select id, $1 from generate_series(0, $2) as id', [opening, accounts - 1])
  })
  await runBank<pg.Client>(t, {
    pool: { backend: 'postgresql', url: server.url },
    bank: {
      async add (client, account, amount) {
        await client.query('update accounts set balance = balance + $1 where id = $2', [amount, account])
      },
      async record (client, { id, from, to, amount }) {
        await client.query('insert into transfers values ($1, $2, $3, $4)', [id, from, to, amount])
      },
      read: () => outside(async (client) => ({
        balances: (await client.query<{ balance: number }>('select balance from accounts order by id'))
          .rows.map(({ balance }) => balance),
        transfers: (await client.query<Transfer>('select * from transfers')).rows,
      })),
    },
    restart: async () => {
      await server.kill()
      await server.restart()
    },
  })
})
