import type { Collection, Db, MongoClient } from 'mongodb'
import { setImmediate as turn } from 'node:timers/promises'
import { PoolError } from '../../engine/errors.js'
import { MongoTransaction, type Operation, type Server, type Topology } from './transaction.js'

/** The check of each class of clients: a client of the app's may be of another copy of the driver than ours. */
const checks = new WeakMap<object, Promise<void>>()

/**
 * Resolves where our transactions work with the driver of this client. They rest on its internals, so they are tried on
 * the driver that is there, once for each class of clients: a transaction is begun on an unconnected client of that
 * class, over a topology without network, and each way by which operations take a session is tried. Each command must
 * come to the server in its turn, with the transaction's session.
 *
 * @throws `FST_POOL_NOT_SUPPORTED`, which names what went outside of the transaction
 */
export function checkDriver (client: MongoClient): Promise<void> {
  const known = checks.get(client.constructor)
  if (known !== undefined) return known
  const check = tryAll(client)
  checks.set(client.constructor, check)
  return check
}

async function tryAll (client: MongoClient): Promise<void> {
  let route = 'MongoClient'
  try {
    const fresh = unconnected(client)
    const stub = new StubServer()
    Object.assign(fresh, { topology: stub.topology })
    const begin = () => (stub.transaction = new MongoTransaction(fresh, stub.topology, 'check', {}))
    const done = begin()
    for (const [name, [commands, run]] of Object.entries(routes)) {
      route = name
      await stub.expect(commands, () => run(done.connection))
    }
    route = 'commit'
    await stub.expect('commitTransaction', () => done.commit())
    route = 'rollback'
    const undone = begin()
    await stub.expect('ping', () => undone.connection.command({ ping: 1 }))
    await stub.expect('abortTransaction', () => undone.rollback())
  } catch (cause) {
    throw new PoolError('FST_POOL_NOT_SUPPORTED',
      `this version of the MongoDB driver would not keep '${route}' in a transaction: ` +
        'transactions are not supported with it', { cause })
  }
}

/** A client of the same class. The driver's own class makes it: a subclass may want other arguments, or connect. */
function unconnected (client: MongoClient): MongoClient {
  const kind = Object.getPrototypeOf(client) as object
  let own = kind
  const above = (of: object) => Object.getPrototypeOf(of) as object | null
  for (let next = above(kind); next !== null && 'startSession' in next; next = above(next)) own = next
  const { constructor: Driver } = own as { constructor: new (url: string) => MongoClient }
  return Object.setPrototypeOf(new Driver('mongodb://127.0.0.1/'), kind) as MongoClient
}

/** The part of the driver's commands that a server uses. */
interface Sent extends Operation {
  readonly SERVER_COMMAND_RESPONSE_TYPE: { make (bytes: Uint8Array): unknown }
  buildCommand (connection: unknown, session: unknown): Readonly<Record<string, unknown>>
  buildOptions (timeout: unknown): { readonly session?: unknown }
}

/** A server that answers everything at once, and checks that each command is in the transaction. */
class StubServer {
  transaction: MongoTransaction | undefined
  /** The names of the commands that came. */
  #commands: string[] = []
  #failure: unknown
  readonly #server: Server = {
    description,
    command: async (operation: Operation, timeout: unknown) => this.#answer(operation as Sent, timeout),
  } as Server

  readonly topology = {
    description: { type: 'ReplicaSetWithPrimary', logicalSessionTimeoutMinutes: 30, servers: new Map() },
    logicalSessionTimeoutMinutes: 30,
    loadBalanced: false,
    s: { options: { retryReads: true, retryWrites: true, maxAdaptiveRetries: 2 }, servers: new Map() },
    selectServer: async () => this.#server,
    lastHello: () => description,
  } as unknown as Topology

  /** @param commands the names of the commands that must come */
  async expect (commands: string, work: () => Promise<unknown>): Promise<void> {
    this.#commands = []
    const route: { done?: true, error?: unknown } = {}
    work().catch((error: unknown) => {
      route.error = error
      if (error instanceof PoolError) this.#failure ??= error
    }).finally(() => { route.done = true })
    for (let turns = 0; !route.done && turns < patience; turns++) await turn()
    if (this.#failure !== undefined) throw this.#failure
    if (!route.done) throw new Error('it does not end')
    // The answer need not suit the operation: its command has come.
    const missing = commands.split(' ').filter((name) => !this.#commands.includes(name))
    if (missing.length > 0) {
      const sent = this.#commands.join(', ') || 'nothing'
      throw new Error(`it sent ${sent}, but not ${missing.join(', ')}`, { cause: route.error })
    }
    const aborts = this.#commands.includes('abortTransaction')
    if (aborts !== commands.includes('abortTransaction')) throw new Error('it ends the transaction')
  }

  #answer (operation: Sent, timeout: unknown): unknown {
    const { session } = this.transaction!
    const command = operation.buildCommand({ description }, operation.session)
    const [name = 'nothing'] = Object.keys(command)
    this.#commands.push(name)
    if (operation.session !== session || operation.buildOptions(timeout).session !== session) {
      throw this.#failure ??= new Error(`the command ${name} has another session, or none`)
    }
    // The driver's connection does this at the first answer.
    const { transaction } = session as unknown as { transaction: { transition (state: string): void } }
    transaction.transition('TRANSACTION_IN_PROGRESS')
    const { batchSize, cursor } = command as { batchSize?: unknown, cursor?: { batchSize?: unknown } }
    return operation.SERVER_COMMAND_RESPONSE_TYPE.make(batchSize === 1 || cursor?.batchSize === 1 ? some : all)
  }
}

/** Without a network nothing waits for more than a few turns of the event loop. */
const patience = 1000

/** What the driver knows of a server, and of a connection to it. */
const description = {
  type: 'RSPrimary',
  maxWireVersion: 25,
  logicalSessionTimeoutMinutes: 30,
  maxBsonObjectSize: 16777216,
  maxMessageSizeBytes: 48000000,
  maxWriteBatchSize: 100000,
}

interface BsonDocument { readonly [name: string]: number | bigint | string | BsonDocument | readonly BsonDocument[] }

/** As BSON: 32-bit integers, 64-bit integers, texts, documents and lists of documents. */
function bson (of: BsonDocument | readonly BsonDocument[]): Buffer {
  const fields = Object.entries<BsonDocument[string]>(of as BsonDocument).map(([name, value]) => {
    const [type, bytes] = bsonValue(value)
    return Buffer.concat([Buffer.from([type]), Buffer.from(`${name}\0`), bytes])
  })
  const body = Buffer.concat(fields)
  return Buffer.concat([int32(body.length + 5), body, Buffer.from([0])])
}

function bsonValue (value: BsonDocument[string]): [type: number, bytes: Buffer] {
  if (typeof value === 'number') return [16, int32(value)]
  if (typeof value === 'bigint') return [18, Buffer.from(BigInt64Array.of(value).buffer)]
  if (typeof value === 'string') return [2, Buffer.concat([int32(value.length + 1), Buffer.from(`${value}\0`)])]
  return [Array.isArray(value) ? 4 : 3, bson(value)]
}

function int32 (value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeInt32LE(value)
  return bytes
}

/** One answer for all commands. @param id of the cursor; 0: there is no more */
function answer (id: bigint): Buffer {
  const counts = { nInserted: 1, nUpserted: 0, nMatched: 0, nModified: 0, nDeleted: 0, nErrors: 0 }
  const first = { _id: 1, ok: 1, idx: 0, n: 1, name: 'items', key: { _id: 1 } }
  const cursor = { id, ns: 'check.items', firstBatch: [first] }
  return bson({ ok: 1, n: 1, was: 0, value: { _id: 1 }, values: [], databases: [], cursor, ...counts })
}

const all = answer(0n)
const some = answer(1n)

const items = (db: Db): Collection => db.collection('items')
const filter = { a: 1 }
const update = { $set: { a: 2 } }
const one = { batchSize: 1 }

/**
 * By operation: the commands that must come, and the call. Every way by which an operation of the driver takes its
 * session is here.
 */
const routes: Readonly<Record<string, readonly [commands: string, run: (db: Db) => Promise<unknown>]>> = {
  insertOne: ['insert', (db) => items(db).insertOne({ a: 1 })],
  insertMany: ['insert', (db) => items(db).insertMany([{ a: 1 }, { a: 2 }])],
  updateOne: ['update', (db) => items(db).updateOne(filter, update)],
  updateMany: ['update', (db) => items(db).updateMany(filter, update)],
  replaceOne: ['update', (db) => items(db).replaceOne(filter, { a: 2 })],
  deleteOne: ['delete', (db) => items(db).deleteOne(filter)],
  deleteMany: ['delete', (db) => items(db).deleteMany(filter)],
  findOne: ['find', (db) => items(db).findOne(filter)],
  find: ['find getMore killCursors', (db) => inBatches(items(db).find({}, one))],
  'find().stream': ['find', (db) => items(db).find().stream().toArray()],
  findOneAndUpdate: ['findAndModify', (db) => items(db).findOneAndUpdate(filter, update)],
  findOneAndReplace: ['findAndModify', (db) => items(db).findOneAndReplace(filter, { a: 2 })],
  findOneAndDelete: ['findAndModify', (db) => items(db).findOneAndDelete(filter)],
  countDocuments: ['aggregate', (db) => items(db).countDocuments()],
  estimatedDocumentCount: ['count', (db) => items(db).estimatedDocumentCount()],
  distinct: ['distinct', (db) => items(db).distinct('a')],
  aggregate: ['aggregate getMore killCursors', (db) => inBatches(items(db).aggregate([{ $match: filter }], one))],
  'aggregate of the database': ['aggregate', (db) => db.aggregate([{ $documents: [] }]).next()],
  bulkWrite: ['insert delete',
    (db) => items(db).bulkWrite([{ insertOne: { document: { a: 1 } } }, { deleteOne: { filter } }])],
  initializeOrderedBulkOp: ['insert update',
    (db) => items(db).initializeOrderedBulkOp().insert({ a: 1 }).find(filter).updateOne(update).execute()],
  initializeUnorderedBulkOp: ['insert delete',
    (db) => items(db).initializeUnorderedBulkOp().insert({ a: 1 }).find(filter).deleteOne().execute()],
  'bulkWrite of the client': ['bulkWrite',
    (db) => db.client.bulkWrite([{ namespace: 'check.items', name: 'insertOne', document: { a: 1 } }])],
  'another database': ['insert', (db) => items(db.client.db('other')).insertOne({ a: 1 })],
  command: ['ping', (db) => db.command({ ping: 1 })],
  'command of admin': ['ping', (db) => db.admin().command({ ping: 1 })],
  runCursorCommand: ['find getMore killCursors',
    (db) => inBatches(db.runCursorCommand({ find: 'items', ...one }).setBatchSize(1))],
  listDatabases: ['listDatabases', (db) => db.admin().listDatabases()],
  validateCollection: ['validate', (db) => db.admin().validateCollection('items')],
  listCollections: ['listCollections getMore killCursors', (db) => inBatches(db.listCollections({}, one))],
  collections: ['listCollections', (db) => db.collections()],
  options: ['listCollections', (db) => items(db).options()],
  stats: ['dbStats', (db) => db.stats()],
  profilingLevel: ['profile', (db) => db.profilingLevel()],
  setProfilingLevel: ['profile', (db) => db.setProfilingLevel('off')],
  createCollection: ['create', (db) => db.createCollection('more')],
  rename: ['renameCollection', (db) => items(db).rename('others')],
  drop: ['drop', (db) => items(db).drop()],
  dropDatabase: ['dropDatabase', (db) => db.dropDatabase()],
  removeUser: ['dropUser', (db) => db.removeUser('somebody')],
  createIndex: ['createIndexes', (db) => items(db).createIndex({ a: 1 })],
  indexes: ['listIndexes', (db) => items(db).indexes()],
  listIndexes: ['listIndexes getMore killCursors', (db) => inBatches(items(db).listIndexes(one))],
  dropIndex: ['dropIndexes', (db) => items(db).dropIndex('a_1')],
  createSearchIndex: ['createSearchIndexes', (db) => items(db).createSearchIndex({ definition: {} })],
  updateSearchIndex: ['updateSearchIndex', (db) => items(db).updateSearchIndex('a', {})],
  dropSearchIndex: ['dropSearchIndex', (db) => items(db).dropSearchIndex('a')],
  listSearchIndexes: ['aggregate', (db) => items(db).listSearchIndexes().next()],
  watch: ['aggregate', async (db) => {
    const stream = items(db).watch()
    await stream.tryNext().finally(() => stream.close())
  }],
}

/** Two batches, and the end before the third. */
async function inBatches (cursor: { next (): Promise<unknown>, close (): Promise<void> }): Promise<void> {
  await cursor.next()
  await cursor.next()
  await cursor.close()
}
