import { Db } from 'mongodb'
import t from 'tap'
import { mongodb } from '../../lib/backends/mongodb/connector.js'
import { startMongoDouble } from '../doubles/mongo-wire.js'
import type { CommandEntry } from '../doubles/mongo-wire.js'
import { startMongo } from '../support/services.js'
import { collide, contract } from './contract.js'
import type { Address, Failing, Or, Rows, Subject } from './contract.js'
import { startNeighbour } from './neighbour.js'

interface Line { line: string }

/** @param log of a double's */
function rowsOf (log: Or<readonly CommandEntry[]>): Rows<Db> {
  return {
    // A transaction can't make it everywhere.
    prepare: async (db) => {
      await db.collection<{ _id: string }>('pairs').updateOne({ _id: 'x' }, { $inc: { n: 1 } }, { upsert: true })
      await db.collection('lines').countDocuments()
    },
    add: (db, line) => db.collection<Line>('lines').insertOne({ line }),
    all: async (db) => (await db.collection<Line>('lines').find().toArray()).map(({ line }) => line),
    level: typeof log === 'string'
      ? log
      : async (db) => {
        await db.collection('lines').findOne()
        return String((log.findLast(({ startTransaction }) =>
          startTransaction)?.body.readConcern as { level?: string } | undefined)?.level)
      },
    snapshot: { isolation: 'snapshot' },
    endings: ['commitTransaction', 'abortTransaction'].map((command) => ({
      name: command,
      end: (db: Db) => db.admin().command({ [command]: 1 }),
    })),
    // A write conflict.
    conflict: (t, run) => collide<Db>(
      (db) => db.collection<{ _id: string }>('pairs').findOne({ _id: 'x' }),
      (db) => db.collection<{ _id: string }>('pairs').updateOne({ _id: 'x' }, { $inc: { n: 1 } }))(t, run),
  }
}

function subjectOf (
  server: Address & { readonly url: string }, rows: Or<Rows<Db>>, failures?: Array<Failing<Db>>
): Subject<Db> {
  const ids = new WeakMap<Db, number>()
  let last = 0
  const sockets = 'a connection is the right to use one client, whose sockets are the driver\'s to keep and to replace'
  const nothing = 'a Db has no state of its own: the driver gives each operation a session of its own'
  return {
    address: server,
    max: 4,
    connector: ({ host, port }) => {
      // Without `directConnection` a replica set would tell the driver the way around the proxy.
      const url = server.url.replace(/^(mongodb:\/\/(?:[^/@]*@)?)[^/?]*.*$/, `$1${host}:${port}/?directConnection=true`)
      return mongodb({ url, database: 'contract', max: 4, acquireTimeout: 1000, connectTimeout: 500, connection: { heartbeatFrequencyMS: 500 } })
    },
    isDriver: (db) => db instanceof Db,
    id: (db) => {
      if (!ids.has(db)) ids.set(db, ++last)
      return ids.get(db)
    },
    count: sockets,
    end: sockets,
    ask: (db) => db.collection('lines').findOne(),
    block: sockets,
    blockEnds: sockets,
    linger: nothing,
    written: sockets,
    dies: sockets,
    renewed: true,
    failures: failures ?? 'it asks for no login',
    describes: 'the driver does not say which operations are of which Db',
    password: 'what is said of a refused login is tested on the double, in mongodb.test.ts',
    setting: nothing,
    traces: nothing,
    rows,
    shared: true,
    neighbour: {
      start: (t) => startNeighbour(t, 'mongodb', { url: server.url, database: 'contract', collection: 'beside' }),
      add: (db, row) => db.collection('beside').insertOne({ row }),
      fail: (db) => db.collection<{ _id: number, row: string }>('beside')
        .insertMany([{ _id: 1, row: 'twice' }, { _id: 1, row: 'twice' }]),
    },
  }
}

const real = await startMongo(t)
t.test(real?.kind ?? 'a real server', { skip: real === undefined && 'no server and no Go to build FerretDB with' }, async (t) => {
  const rows = real!.kind === 'mongod'
    ? rowsOf('a server does not say at which level a transaction runs')
    : 'FerretDB has no transactions: they are tested on the double'
  await contract(t, subjectOf(real!, rows))
})

t.test('the double', async (t) => {
  const double = await startMongoDouble(t)
  const { host, port } = double.members[0]!
  const locked = await startMongoDouble(t, { user: 'somebody', password: 'right' })
  const failing = (name: string, permanent: boolean, url: string): Failing<Db> =>
    ({ name, permanent, connector: () => mongodb({ url }) })
  await contract(t, subjectOf({ host, port, url: double.url }, rowsOf(double.log), [
    failing('a wrong password (18)', true, locked.url.replace('right', 'wrong')),
  ]))
})
