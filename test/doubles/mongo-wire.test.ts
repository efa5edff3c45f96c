// What the double promises to the tests that lean on it, shown with the real driver. It says nothing about MongoDB
// itself.
import { MongoClient } from 'mongodb'
import type { ClientSession, Document, MongoClientOptions, MongoServerError } from 'mongodb'
import { connect as dial } from 'node:net'
import { once } from 'node:events'
import t from 'tap'
import { startMongoDouble } from './mongo-wire.js'
import type { MongoDouble } from './mongo-wire.js'
import { alarm } from '../support/order.js'
import { until } from '../support/until.js'
import type { Teardown } from '../support/services.js'

async function connected (
  t: Teardown, double: MongoDouble, options: MongoClientOptions = {}, url = double.url
): Promise<MongoClient> {
  const client =
    new MongoClient(url,
      { heartbeatFrequencyMS: 500, minHeartbeatFrequencyMS: 20, serverSelectionTimeoutMS: 2000, ...options })
  t.teardown(() => client.close())
  return client.connect()
}

/** The driver hears of the next step-down at once. */
const listening = (double: MongoDouble) => until(() => double.connections.listening === double.members.length)

const numbered = (count: number) =>
  Array.from({ length: count }, (_, n) => ({ _id: n as unknown as Document['_id'], n }))

t.test('documents are written, found, changed and deleted', async (t) => {
  const double = await startMongoDouble(t)
  const users = (await connected(t, double)).db().collection<{
    _id: string, age?: number, tags?: string[], home?: { town: string },
  }>('users')
  await users.insertMany([{ _id: 'a', age: 1, home: { town: 'Ulm' } }, { _id: 'b', age: 2 }, { _id: 'c', age: 3 }])

  t.same(await users.findOne({ _id: 'a' }), { _id: 'a', age: 1, home: { town: 'Ulm' } })
  t.same(await users.find({ age: { $gt: 1 } }).sort({ age: -1 }).project({ _id: 1 }).toArray(),
    [{ _id: 'c' }, { _id: 'b' }])
  t.same(await users.find({ $or: [{ 'home.town': 'Ulm' }, { age: { $in: [3] } }] }).map(({ _id }) => _id).toArray(),
    ['a', 'c'])
  t.same(await users.find({ home: { $exists: false } }).skip(1).limit(1).map(({ _id }) => _id).toArray(), ['c'])
  const change = { $inc: { age: 9 }, $push: { tags: 'x' }, $set: { 'home.town': 'Bonn' } }
  t.match(await users.updateOne({ _id: 'a' }, change), { matchedCount: 1, modifiedCount: 1 })
  t.same(double.documents('test', 'users')[0], { _id: 'a', age: 10, home: { town: 'Bonn' }, tags: ['x'] })
  t.match(await users.updateMany({ age: { $lt: 5 } }, { $unset: { age: '' } }), { modifiedCount: 2 })
  t.match(await users.updateOne({ _id: 'd' }, { $set: { age: 4 }, $setOnInsert: { tags: ['new'] } }, { upsert: true }),
    { upsertedId: 'd' })
  t.match(await users.replaceOne({ _id: 'd' }, { age: 5 }), { modifiedCount: 1 })
  t.same(await users.findOneAndUpdate({ _id: 'd' }, { $inc: { age: 1 } }, { returnDocument: 'after' }),
    { _id: 'd', age: 6 })
  t.equal(await users.countDocuments({ age: { $gte: 6 } }), 2)
  t.equal(await users.estimatedDocumentCount(), 4)
  t.same(await users.distinct('tags'), ['x'])
  t.same(await users.aggregate([{ $match: {} }, { $group: { _id: null, sum: { $sum: '$age' } } }]).toArray(),
    [{ _id: null, sum: 16 }])
  t.match(await users.deleteMany({ age: { $exists: true } }), { deletedCount: 2 })
  t.same(double.documents('test', 'users'), [{ _id: 'b' }, { _id: 'c' }])
})

t.test('what the double does not know is refused, never ignored', async (t) => {
  const double = await startMongoDouble(t)
  const db = (await connected(t, double)).db()
  await t.rejects(db.command({ mapReduce: 'users' }), { code: 59, codeName: 'CommandNotFound' })
  await t.rejects(db.collection('users').insertOne({}).then(() => db.collection('users').findOne({ a: { $near: 1 } })),
    { code: 2 })
  await t.rejects(db.collection('users').updateOne({}, { $bit: { a: { and: 1 } } }), { code: 9 })
  await t.rejects(db.collection('users').aggregate([{ $lookup: {} }]).toArray(), { code: 40324 })
  await t.rejects(db.collection('users').find({}, { collation: { locale: 'de' } }).toArray(), { code: 238 })
})

t.test('collections, databases and indexes are listed and dropped', async (t) => {
  const double = await startMongoDouble(t)
  const client = await connected(t, double)
  const db = client.db()
  await db.createCollection('a')
  await t.rejects(db.createCollection('a'), { code: 48 })
  await db.collection('b').createIndex({ x: 1 })
  t.same(await db.listCollections({}, { nameOnly: true }).map(({ name }) => name).toArray(), ['a', 'b'])
  t.same((await db.collection('b').indexes()).map(({ name }) => name), ['_id_', 'x_1'])
  t.match(await client.db().admin().listDatabases(), { databases: [{ name: 'test' }] })
  await db.collection('a').drop()
  t.same(await db.listCollections().map(({ name }) => name).toArray(), ['b'])
  await db.dropDatabase()
  t.same(await db.listCollections().toArray(), [])
})

t.test('a cursor runs over several batches, and one that is closed early is killed on the server', async (t) => {
  const double = await startMongoDouble(t)
  const items = (await connected(t, double)).db().collection('items')
  await items.insertMany(numbered(250))
  double.log.length = 0

  t.equal((await items.find().batchSize(100).toArray()).length, 250)
  t.same(double.log.map(({ command }) => command), ['find', 'getMore', 'getMore'])
  t.equal(double.openCursors, 0)

  const cursor = items.find().batchSize(10)
  await cursor.next()
  t.equal(double.openCursors, 1)
  await cursor.close()
  t.equal(double.openCursors, 0)
})

t.test('a unique index refuses the second one with 11000, on insert, update and when it is made', async (t) => {
  const double = await startMongoDouble(t)
  const users = (await connected(t, double)).db().collection('users')
  await users.createIndex({ email: 1 }, { unique: true })
  await users.insertMany([{ email: 'a' }, { email: 'b' }])

  await t.rejects(users.insertOne({ email: 'a' }), { code: 11000, keyPattern: { email: 1 }, keyValue: { email: 'a' } })
  await t.rejects(users.updateOne({ email: 'b' }, { $set: { email: 'a' } }), { code: 11000 })
  await t.rejects(users.insertMany([{ email: 'c' }, { email: 'a' }, { email: 'd' }], { ordered: false }),
    { code: 11000, insertedCount: 2 })
  await users.insertMany([{ other: 1, email: 'e' }, { other: 1, email: 'f' }])
  await t.rejects(users.createIndex({ other: 1 }, { unique: true }), { code: 11000 })
  await t.rejects(users.insertOne({ _id: (await users.findOne({ email: 'c' }))?._id }),
    { code: 11000, keyPattern: { _id: 1 } })
  t.equal(double.documents('test', 'users').length, 6)
})

t.test('with a user, only the right password gets in, and nobody without a login', async (t) => {
  const double = await startMongoDouble(t, { user: 'po=ol', password: 's3cr,et' })
  const client = await connected(t, double)
  await client.db().collection('a').insertOne({})
  t.equal(double.log[0]?.command, 'saslContinue', 'the first step rode on the hello')
  t.notMatch(JSON.stringify(double.log), 's3cr', 'and no payload is in the log')

  await t.rejects(connected(t, double, {}, double.url.replace('s3cr', 'wrong')),
    { code: 18, codeName: 'AuthenticationFailed' })
  await t.rejects(connected(t, double, {}, double.url.replace('po%3Dol', 'other')), { code: 18 })
  const nobody = await connected(t, double, {}, double.url.replace(/\/\/.*@/, '//'))
  await t.rejects(nobody.db().collection('a').findOne(), { code: 13, codeName: 'Unauthorized' })
})

t.test('a changed password holds for logins from then on', async (t) => {
  const double = await startMongoDouble(t, { user: 'pool', password: 'old' })
  const before = double.url
  const client = await connected(t, double, {}, before)
  double.setPassword('new')
  t.ok(await client.db().command({ ping: 1 }), 'who is in stays in')
  await t.rejects(connected(t, double, {}, before), { code: 18 })
  t.ok(await connected(t, double))
})

t.test('a committed transaction is seen by all at its commit, and by itself before', async (t) => {
  const double = await startMongoDouble(t)
  const client = await connected(t, double)
  const items = client.db().collection('items')
  await items.insertOne({ n: 0 })
  const session = client.startSession()
  session.startTransaction()
  await items.insertOne({ n: 1 }, { session })
  await items.updateOne({ n: 0 }, { $set: { n: 10 } }, { session })

  t.same(await items.find({}, { session }).map(({ n }) => n).toArray(), [10, 1])
  t.same(await items.find().map(({ n }) => n).toArray(), [0], 'nobody else sees it')
  t.equal(double.openTransactions, 1)
  await session.commitTransaction()
  t.same(await items.find().map(({ n }) => n).toArray(), [10, 1])
  t.equal(double.openTransactions, 0)
  const [first, second] = double.log.filter(({ autocommit }) => autocommit === false)
  t.match(first, { command: 'insert', startTransaction: true, lsid: /^[0-9a-f]{32}$/, txnNumber: Number })
  t.match(second, { command: 'update', startTransaction: undefined, lsid: first?.lsid, txnNumber: first?.txnNumber })
  await session.endSession()
})

t.test('an aborted transaction leaves nothing behind', async (t) => {
  const double = await startMongoDouble(t)
  const client = await connected(t, double)
  const items = client.db().collection('items')
  await items.insertOne({ n: 0 })
  await t.rejects(client.withSession((session) => session.withTransaction(async () => {
    await items.insertOne({ n: 1 }, { session })
    await items.deleteOne({ n: 0 }, { session })
    throw new Error('changed my mind')
  })), { message: 'changed my mind' })
  t.match(double.documents('test', 'items'), [{ n: 0 }])
  t.equal(double.openTransactions, 0)
})

t.test('a transaction reads what was there when it began', async (t) => {
  const double = await startMongoDouble(t)
  const client = await connected(t, double)
  const items = client.db().collection('items')
  await items.insertOne({ n: 0 })
  const session = client.startSession()
  session.startTransaction()
  await items.findOne({}, { session })
  await items.insertOne({ n: 1 })
  t.equal(await items.countDocuments({}, { session }), 1)
  await session.commitTransaction()
  t.equal(await items.countDocuments({}, { session }), 2)
  await session.endSession()
})

t.test('of two transactions that write the same document the second gets a transient write conflict', async (t) => {
  const double = await startMongoDouble(t)
  const client = await connected(t, double)
  const items = client.db().collection('items')
  await items.insertOne({ n: 0 })
  const [one, two] = [client.startSession(), client.startSession()]
  for (const session of [one, two]) session.startTransaction()
  await items.updateOne({}, { $set: { n: 1 } }, { session: one })
  const error = await failure(items.updateOne({}, { $set: { n: 2 } }, { session: two }))
  t.match(error, { code: 112, codeName: 'WriteConflict' })
  t.ok(error.hasErrorLabel('TransientTransactionError'))
  await t.rejects(items.findOne({}, { session: two }), { code: 251 }, 'it is aborted')
  await two.abortTransaction()
  await one.commitTransaction()
  t.match(double.documents('test', 'items'), [{ n: 1 }])

  two.startTransaction()
  await items.findOne({}, { session: two })
  await items.updateOne({}, { $set: { n: 3 } })
  await t.rejects(items.updateOne({}, { $set: { n: 4 } }, { session: two }), { code: 112 },
    'changed since its snapshot')
  await Promise.all([one, two].map((session) => session.endSession()))
})

t.test('withTransaction runs again after a write conflict, and then succeeds', async (t) => {
  const double = await startMongoDouble(t)
  const client = await connected(t, double)
  const items = client.db().collection('items')
  const fault = double.failCommand({ commands: 'insert', code: 112 })
  await client.withSession((session) => session.withTransaction(() => items.insertOne({}, { session })))
  t.equal(fault.hits, 1)
  t.equal(double.documents('test', 'items').length, 1)
})

t.test('a write outside waits for the transaction whose document it wants', async (t) => {
  const double = await startMongoDouble(t)
  const client = await connected(t, double)
  const items = client.db().collection('items')
  await items.insertOne({ n: 0 })
  const session = client.startSession()
  session.startTransaction()
  await items.updateOne({}, { $inc: { n: 1 } }, { session })
  let done = false
  const outside = items.updateOne({}, { $inc: { n: 10 } }).then(() => { done = true })
  await until(() => double.log.filter(({ command }) => command === 'update').length === 2)
  t.equal(await items.countDocuments(), 1, 'others go on')
  t.notOk(done)
  await session.commitTransaction()
  await outside
  t.match(double.documents('test', 'items'), [{ n: 11 }])
  await session.endSession()
})

t.test('what a server refuses in a transaction is refused', async (t) => {
  const double = await startMongoDouble(t)
  const client = await connected(t, double)
  const db = client.db()
  const inTransaction = (fn: (session: ClientSession) => Promise<unknown>) => client.withSession(async (session) => {
    session.startTransaction()
    await fn(session)
  })
  await t.rejects(inTransaction((session) => db.collection('a').estimatedDocumentCount({ session })), { code: 263 })
  await t.rejects(inTransaction((session) => db.collection('a').createIndex({ a: 1 }, { session })), { code: 263 })
  const standalone = await connected(t, await startMongoDouble(t, { standalone: true }))
  const error = await failure(standalone.withSession(async (session) => {
    session.startTransaction()
    await standalone.db().collection('a').insertOne({}, { session })
  }))
  t.match(error, { originalError: { code: 20, codeName: 'IllegalOperation' } })
})

t.test('writes side by side in one session carry one number, and all but one are taken for retries', async (t) => {
  const double = await startMongoDouble(t)
  const client = await connected(t, double)
  const items = client.db().collection('items')
  await client.withSession((session) => Promise.all(numbered(4).map((doc) => items.insertOne(doc, { session }))))
  t.equal(new Set(double.log.filter(({ command }) => command === 'insert').map(({ txnNumber }) => txnNumber)).size, 1)
  t.equal(double.documents('test', 'items').length, 1)
})

t.test('two first operations side by side both begin the transaction, and the server refuses the second', async (t) => {
  const double = await startMongoDouble(t)
  const client = await connected(t, double)
  const items = client.db().collection('items')
  const session = client.startSession()
  session.startTransaction()
  const hold = double.hold('insert')
  const inserts = Promise.allSettled(numbered(2).map((doc) => items.insertOne(doc, { session })))
  await hold.arrived(2)
  hold.release()
  const results = await inserts
  t.equal(double.log.filter(({ startTransaction }) => startTransaction).length, 2)
  t.match(results.filter(({ status }) => status === 'rejected'),
    [{ reason: { code: 117, codeName: 'ConflictingOperationInProgress' } }])
  await session.endSession()
})

t.test('an error that a test asks for ends the transaction of its command', async (t) => {
  const double = await startMongoDouble(t)
  const client = await connected(t, double)
  const items = client.db().collection('items')
  const session = client.startSession()
  session.startTransaction()
  await items.insertOne({ n: 1 }, { session })
  double.failCommand({ commands: 'update', code: 112 })
  await t.rejects(items.updateOne({}, { $set: { n: 2 } }, { session }), { code: 112 })
  t.equal(double.openTransactions, 0)
  double.failCommand({ commands: 'commitTransaction', code: 8 })
  await t.rejects(session.commitTransaction(), { code: 8 })
  await t.rejects(session.commitTransaction(), { code: 251 })
  await session.endSession()
})

t.test('a write whose answer was lost is retried, answered and not executed twice', async (t) => {
  const double = await startMongoDouble(t)
  const items = (await connected(t, double)).db().collection('items')
  await items.insertOne({ n: 0 })
  double.failCommand({ commands: ['update', 'findAndModify'], times: 1, closeConnection: true, when: 'after' })
  t.match(await items.updateOne({}, { $inc: { n: 1 } }), { modifiedCount: 1 })
  double.failCommand({ commands: 'findAndModify', closeConnection: true, when: 'after' })
  t.match(await items.findOneAndUpdate({}, { $inc: { n: 10 } }), { n: 1 })
  t.match(double.documents('test', 'items'), [{ n: 11 }])
  const [first, second] = double.log.filter(({ command }) => command === 'update')
  t.ok(first !== undefined && first.txnNumber === second?.txnNumber && first.connectionId !== second?.connectionId)

  const once = (await connected(t, double, { retryWrites: false })).db().collection('items')
  double.failCommand({ commands: 'update', closeConnection: true, when: 'after' })
  await t.rejects(once.updateOne({}, { $inc: { n: 100 } }), { name: 'MongoNetworkError' })
  t.match(double.documents('test', 'items'), [{ n: 111 }], 'it was executed all the same')
  double.failCommand({ commands: 'update', closeConnection: true })
  await t.rejects(once.updateOne({}, { $inc: { n: 1000 } }), { name: 'MongoNetworkError' })
  t.match(double.documents('test', 'items'), [{ n: 111 }], 'and this one was not')
})

t.test('failCommand fails what it names, as often as asked, with the labels of a server', async (t) => {
  const double = await startMongoDouble(t)
  const client = await connected(t, double)
  const items = client.db().collection('items')
  const twice = double.failCommand({ commands: ['find'], times: 2, code: 50, message: 'too slow' })
  await t.rejects(items.findOne(), { code: 50, message: 'too slow' })
  await t.rejects(items.findOne(), { code: 50 })
  await items.findOne()
  t.equal(twice.hits, 2)

  await listening(double)
  const types: string[] = []
  client.on('serverDescriptionChanged', ({ newDescription }) => types.push(newDescription.type))
  double.failCommand({ commands: 'insert', code: 189 })
  await items.insertOne({})
  t.equal(double.log.filter(({ command }) => command === 'insert').length, 2, 'the label made the driver try again')
  t.same(types, ['Unknown', 'RSPrimary'], 'and it looked who the primary is')
  double.failCommand({ commands: 'insert', code: 189, labels: [] })
  await t.rejects(items.insertOne({}), { code: 189 })

  const always = double.failCommand({
    commands: '*', times: Infinity, code: 8000, where: ({ collection }) => collection === 'items',
  })
  await t.rejects(items.findOne(), { code: 8000 })
  always.off()
  await items.findOne()
})

t.test('after a step-down and an election the next write succeeds', async (t) => {
  const double = await startMongoDouble(t, { members: 3 })
  const items = (await connected(t, double)).db().collection('items')
  await items.insertOne({})
  t.equal(double.primary?.index, 0)
  await listening(double)
  double.stepDown()
  t.same(double.members.map(({ state }) => state), ['secondary', 'primary', 'secondary'])
  await items.insertOne({})
  t.equal(double.log.findLast(({ command }) => command === 'insert')?.member, 1)
})

t.test('a driver that polls learns of a step-down from 10107, and tries again', async (t) => {
  const double = await startMongoDouble(t, { members: 3, monitoring: 'poll' })
  const items = (await connected(t, double, { heartbeatFrequencyMS: 60000 })).db().collection('items')
  await items.insertOne({})
  double.stepDown()
  await items.insertOne({})
  t.same(double.log.filter(({ command }) => command === 'insert').map(({ member }) => member), [0, 0, 1])
})

t.test('a step-down aborts open transactions', async (t) => {
  const double = await startMongoDouble(t, { members: 3 })
  const client = await connected(t, double)
  const items = client.db().collection('items')
  const session = client.startSession()
  session.startTransaction()
  await items.insertOne({}, { session })
  await listening(double)
  double.stepDown()
  t.equal(double.openTransactions, 0)
  t.ok((await failure(items.insertOne({}, { session }))).hasErrorLabel('TransientTransactionError'))
  await session.endSession()
  t.same(double.documents('test', 'items'), [])
})

t.test('without a primary a write fails within serverSelectionTimeoutMS, and goes through after an election', async (t) => {
  const double = await startMongoDouble(t)
  const items = (await connected(t, double, { serverSelectionTimeoutMS: 200 })).db().collection('items')
  await items.insertOne({})
  await listening(double)
  double.noPrimary()
  const late = alarm(1000)
  await t.rejects(items.insertOne({}), { name: 'MongoServerSelectionError' })
  t.notOk(late.rang)
  t.ok(await items.findOne({}, { readPreference: 'secondaryPreferred' }), 'it can still be read')
  double.elect(0)
  await items.insertOne({})
  t.equal(double.documents('test', 'items').length, 2)
})

t.test('reads go to secondaries where the driver is told so', async (t) => {
  const double = await startMongoDouble(t, { members: 3 })
  const client = await connected(t, double)
  await client.db().collection('items').insertOne({ n: 1 })
  t.match(await client.db().collection('items').findOne({}, { readPreference: 'secondary' }), { n: 1 })
  t.not(double.log.find(({ command }) => command === 'find')?.member, 0)

  const direct =
    await connected(t, double, { directConnection: true, replicaSet: 'rs' },
      `mongodb://127.0.0.1:${double.members[1]?.port}/test`)
  t.match(await direct.db().collection('items').findOne({}), { n: 1 })
  await t.rejects(direct.db().collection('items').insertOne({}), { code: 10107, codeName: 'NotWritablePrimary' })
})

t.test('the primary is killed, another is elected, the dead one comes back as a secondary', async (t) => {
  const double = await startMongoDouble(t, { members: 3 })
  const items = (await connected(t, double)).db().collection('items')
  await items.insertOne({})
  const [first] = double.members
  await first?.kill()
  t.match(first, { state: 'down', connections: { all: 0 } })
  t.equal(double.primary, null)
  t.throws(() => double.elect(0), /down/)
  const write = items.insertOne({})
  double.elect(2)
  await write
  t.equal(double.log.findLast(({ command }) => command === 'insert')?.member, 2)
  const port = first?.port
  await first?.restart()
  t.match(first, { state: 'secondary', port })
  double.elect(0)
  await items.insertOne({})
  t.equal(double.log.findLast(({ command }) => command === 'insert')?.member, 0)
})

t.test('a single member that is killed refuses connections until it is restarted, and keeps its data', async (t) => {
  const double = await startMongoDouble(t)
  const [only] = double.members
  const items = (await connected(t, double, { serverSelectionTimeoutMS: 300 })).db().collection('items')
  await items.insertOne({})
  await only?.kill()
  await t.rejects(items.insertOne({}), { name: 'MongoServerSelectionError' })
  await only?.restart()
  t.equal(only?.state, 'primary')
  await until(() => double.connections.monitors > 0)
  await items.insertOne({})
  t.equal(double.documents('test', 'items').length, 2)
})

t.test('resetAll cuts what is open: the command under way fails, the next one gets a new connection', async (t) => {
  const double = await startMongoDouble(t)
  const items = (await connected(t, double, { retryReads: false })).db().collection('items')
  const held = double.hold('find')
  const find = failure(items.findOne())
  await held.reached
  await double.resetAll()
  t.match(await find, { name: 'MongoNetworkError' })
  t.equal(held.waiting, 0)
  held.release()
  t.equal(await items.findOne(), null)
  t.equal(double.connections.total, 2)
})

t.test('a paused member accepts and stays silent, and goes on when resumed', async (t) => {
  const double = await startMongoDouble(t)
  const [only] = double.members
  const items = (await connected(t, double, { retryReads: false, socketTimeoutMS: 100 })).db().collection('items')
  await items.findOne()
  only?.pause()
  await t.rejects(items.findOne(), { name: 'MongoNetworkTimeoutError' })
  const socket = dial(Number(only?.port), '127.0.0.1')
  await once(socket, 'connect')
  socket.destroy()
  const find = items.findOne()
  only?.resume()
  t.equal(await find, null)
})

t.test('connections above the limit are closed at once, and counted', async (t) => {
  const double = await startMongoDouble(t, { maxConnections: 4, monitoring: 'poll' })
  const client = await connected(t, double, { maxPoolSize: 10, maxConnecting: 10 })
  const held = double.hold('ping')
  const pings = Array.from({ length: 6 }, () => client.db().command({ ping: 1 }).then(() => true, () => false))
  await until(() => double.connections.refused > 0)
  await held.arrived(3)
  held.release()
  t.ok((await Promise.all(pings)).filter(Boolean).length >= 3)
  t.equal(double.connections.all, 4)
  t.equal(double.connections.peak, 3)
  t.match(await client.db().admin().serverStatus(), { connections: { current: 4, available: 0 } })
})

t.test('a pool of ten opens ten connections, and monitors are counted apart', async (t) => {
  const double = await startMongoDouble(t)
  const client = await connected(t, double, { maxPoolSize: 10, maxConnecting: 10 })
  const held = double.hold('find')
  const finds = Array.from({ length: 30 }, () => client.db().collection('items').findOne())
  await held.arrived(10)
  t.equal(held.waiting, 10)
  t.match(double.connections, { open: 10, peak: 10, total: 10 })
  t.match(double.members[0]?.connections, { open: 10 })
  held.release()
  await Promise.all(finds)
  t.match(double.connections, { open: 10, total: 10 })
  t.equal(new Set(double.log.filter(({ command }) => command === 'find').map(({ connectionId }) => connectionId)).size,
    10)
  t.ok(double.connections.monitors >= 1)
  await client.close()
  await until(() => double.connections.all === 0)
  t.match(double.connections, { open: 0, peak: 10, total: 10, monitors: 0 })
})

t.test('a held command waits until it is released, and others pass', async (t) => {
  const double = await startMongoDouble(t)
  const db = (await connected(t, double)).db()
  const held = double.hold({ commands: 'insert', where: ({ collection }) => collection === 'slow' })
  let done = false
  const slow = db.collection('slow').insertOne({}).then(() => { done = true })
  await held.reached
  await db.collection('fast').insertOne({})
  t.notOk(done)
  t.same(double.documents('test', 'slow'), [])
  held.release()
  await slow
  t.equal(double.documents('test', 'slow').length, 1)
  await db.collection('slow').insertOne({})
})

t.test('a delayed command takes that much longer, until it is switched off', async (t) => {
  const double = await startMongoDouble(t)
  const db = (await connected(t, double)).db()
  const delay = double.delay('ping', 60)
  const almost = alarm(55)
  await db.command({ ping: 1 })
  t.ok(almost.rang)
  delay.off()
  await db.command({ ping: 1 })
  t.equal(delay.hits, 1)
})

t.test('an unacknowledged write is executed and not answered', async (t) => {
  const double = await startMongoDouble(t)
  const items = (await connected(t, double)).db().collection('items', { writeConcern: { w: 0 } })
  t.match(await items.insertOne({}), { acknowledged: false })
  await until(() => double.documents('test', 'items').length === 1)
  t.equal(await items.countDocuments(), 1)
})

t.test('a stopped double leaves no socket and no listener', async (t) => {
  const double = await startMongoDouble(t, { members: 3 })
  const client = await connected(t, double, { serverSelectionTimeoutMS: 100 })
  await client.db().command({ ping: 1 })
  double.hold('find')
  await double.stop()
  t.equal(double.connections.all, 0)
  const [error] = await once(dial(Number(double.members[0]?.port), '127.0.0.1'), 'error') as [NodeJS.ErrnoException]
  t.equal(error.code, 'ECONNREFUSED')
})

async function failure (promise: Promise<unknown>): Promise<MongoServerError> {
  return promise.then(() => { throw new Error('it should have failed') }, (error: MongoServerError) => error)
}

t.test('where it is told to elect, the next living member is the primary so many ms after a step-down or a kill, while most members live', async (t) => {
  const double = await startMongoDouble(t, { members: 3, election: 50 })
  const elected = async (index: number, leave: () => unknown) => {
    const almost = alarm(45)
    await leave()
    t.equal(double.primary, null)
    t.equal((await until(() => double.primary)).index, index)
    t.ok(almost.rang)
  }
  await elected(1, () => double.stepDown())
  await elected(2, () => double.members[1]!.kill())
  await double.members[2]!.kill()
  double.elect(0)
  t.equal(double.primary?.index, 0, 'a test may elect one')
})
