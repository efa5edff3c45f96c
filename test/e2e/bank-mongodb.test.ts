import { type Db, MongoClient } from 'mongodb'
import t from 'tap'
import { startMongoDouble } from '../doubles/mongo-wire.js'
import { accounts, opening, runBank } from './bank.js'

interface Account { _id: number, balance: number }
interface Row { _id: number, from: number, to: number, amount: number }

// A real server that has transactions is not to be had everywhere; FerretDB has none.
t.test("MongoDB's double: through failures, aborts, conflicts and a restart the books stay balanced", async (t) => {
  const double = await startMongoDouble(t)
  const client = await MongoClient.connect(double.url)
  t.teardown(() => client.close())
  await client.db('test').collection<Account>('accounts')
    .insertMany(Array.from({ length: accounts }, (_, _id) => ({ _id, balance: opening })))
  await client.db('test').createCollection('transfers')
  const documents = <T>(collection: string) => double.documents('test', collection) as unknown as T[]
  await runBank<Db>(t, {
    pool: { backend: 'mongodb', url: double.url },
    bank: {
      async add (db, account, amount) {
        await db.collection<Account>('accounts').updateOne({ _id: account }, { $inc: { balance: amount } })
      },
      async record (db, { id, from, to, amount }) {
        await db.collection<Row>('transfers').insertOne({ _id: id, from, to, amount })
      },
      read: async () => ({
        balances: documents<Account>('accounts').sort((a, b) => a._id - b._id).map(({ balance }) => balance),
        transfers: documents<Row>('transfers').map(({ _id: id, from, to, amount }) => ({ id, from, to, amount })),
      }),
    },
    restart: async () => {
      await double.members[0]!.kill()
      await double.members[0]!.restart()
    },
  })
})
