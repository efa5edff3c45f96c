// Whether our transactions hold with the driver that is there is tried on it. Here that is tried on drivers that were
// broken.
import type { Db, MongoClient } from 'mongodb'
import { createRequire } from 'node:module'
import { sep } from 'node:path'
import t from 'tap'
import type { Test } from 'tap'
import { mongodb } from '../../lib/backends/mongodb/connector.js'
import type { MongoConnector } from '../../lib/backends/mongodb/connector.js'
import { startMongoDouble } from '../doubles/mongo-wire.js'
import type { MongoDouble } from '../doubles/mongo-wire.js'

const later = new AbortController().signal
const require = createRequire(import.meta.url)

/** What is broken in these tests: the driver's inside. */
interface Session { endSession (): Promise<void> }
interface Client {
  startSession (options?: object): Session
  topology: { selectServer (...args: unknown[]): Promise<{ command (...args: unknown[]): unknown }> }
}
interface Operation { commandName: string, session?: Session, options: object, buildOptions (timeout: unknown): object }
type Execute = (client: Client, operation: Operation, timeout?: unknown) => Promise<unknown>
type Methods = Record<string, (...args: unknown[]) => unknown>
interface Copy {
  MongoClient: new (url: string, options?: object) => MongoClient
  /** Of a class of the driver's. */
  methods (name: string, file?: string): Methods
  /** Puts another function into the place of the one by which all operations go. */
  execute (change: (original: Execute) => Execute): void
}

/** A copy of the driver of its own: nobody else sees what is done to it. */
function copyOfDriver (): Copy {
  const folder = `${sep}node_modules${sep}mongodb${sep}`
  const others = Object.keys(require.cache).filter((file) => file.includes(folder))
    .map((file) => [file, require.cache[file]] as const)
  const load = <T>(file: string) => require(`mongodb/lib/${file}.js`) as T
  for (const [file] of others) delete require.cache[file]
  try {
    const { MongoClient } = load<Pick<Copy, 'MongoClient'>>('index')
    const operations = load<{ executeOperation: Execute }>('operations/execute_operation')
    const files =
      new Map(['index', 'bulk/common',
        'operations/insert'].map((file) => [file, load<Record<string, { prototype: Methods }>>(file)]))
    return {
      MongoClient,
      methods: (name, file = 'index') => files.get(file)![name]!.prototype,
      execute: (change) => { operations.executeOperation = change(operations.executeOperation) },
    }
  } finally {
    for (const file of Object.keys(require.cache)) if (file.includes(folder)) delete require.cache[file]
    for (const [file, module] of others) require.cache[file] = module
  }
}

async function takeOver (
  t: Test, make: (url: string) => MongoClient
): Promise<{ server: MongoDouble, connector: MongoConnector, db: Db }> {
  const server = await startMongoDouble(t)
  const client = make(server.url)
  t.teardown(() => client.close())
  const connector = await mongodb({ client })
  t.teardown(() => connector.close!())
  const db = await connector.create(later)
  server.log.length = 0
  return { server, connector, db }
}

const begin = (connector: MongoConnector, db: Db) => connector.transactions.begin(db, {}, later)
const notSupported = { name: 'PoolError', code: 'FST_POOL_NOT_SUPPORTED' }

async function insertsAndCommits (
  { server, connector, db }: { server: MongoDouble, connector: MongoConnector, db: Db }
): Promise<unknown[]> {
  const transaction = await begin(connector, db)
  await transaction.connection.collection('items').insertOne({ n: 1 })
  await transaction.commit()
  return server.documents('test', 'items').map(({ n }) => n)
}

t.test('a driver that calls itself 99.0 has transactions, if it keeps its operations in them', async (t) => {
  const { MongoClient } = copyOfDriver()
  const taken = await takeOver(t, (url) => {
    const client = new MongoClient(url)
    Object.assign(client.options, { metadata: Promise.resolve({ driver: { name: 'nodejs', version: '99.0.0' } }) })
    return client
  })
  t.strictSame(await insertsAndCommits(taken), [1])
  t.strictSame(taken.server.log.map(({ command }) => command), ['insert', 'commitTransaction'],
    'and the check has sent nothing')
})

t.test('so has a client of a class that extends the driver\'s, and takes other arguments', async (t) => {
  const { MongoClient } = copyOfDriver()
  class Own extends MongoClient {
    constructor ({ url }: { url: string }) {
      super(url)
    }
  }
  t.strictSame(await insertsAndCommits(await takeOver(t, (url) => new Own({ url }))), [1])
})

t.test('the check is made once for a class of clients, at the first begin, and leaves nothing open', async (t) => {
  const copy = copyOfDriver()
  let sessions = 0
  const { startSession } = copy.methods('MongoClient')
  copy.methods('MongoClient').startSession = function (...args) {
    sessions++
    return startSession!.apply(this, args)
  }
  // Else the monitor, and the double, begin to wait at some time during the check.
  const polled = { serverMonitoringMode: 'poll' }
  const { connector, db, server } = await takeOver(t, (url) => new copy.MongoClient(url, polled))
  const active = () => process.getActiveResourcesInfo().sort()
  sessions = 0
  const before = active()
  const [first, second] = await Promise.all([begin(connector, db), begin(connector, await connector.create(later))])
  t.equal(sessions, 4, 'two for the check, and one for each transaction')
  t.strictSame(active(), before)
  await Promise.all([first.rollback(), second.rollback()])
  t.strictSame(server.log, [])
})

/** An operation that goes its own way: with a session of its own. */
const astray = (name: string) => (original: Execute): Execute => async (client, operation, timeout) => {
  if (operation.commandName === name) operation.session = client.startSession()
  return await original(client, operation, timeout)
}

/** By what is wrong with it: the driver, and the route that the refusal names. */
const broken: Record<string, readonly [route: string | RegExp, (copy: Copy) => void]> = {
  ...Object.fromEntries(Object.entries({
    insert: 'insertOne',
    update: 'updateOne',
    delete: 'deleteOne',
    find: 'findOne',
    getMore: 'find',
    killCursors: 'find',
    findAndModify: 'findOneAndUpdate',
    aggregate: 'countDocuments',
    count: 'estimatedDocumentCount',
    distinct: 'distinct',
    bulkWrite: 'bulkWrite of the client',
    runCommand: 'command',
    listDatabases: 'listDatabases',
    listCollections: 'listCollections',
    create: 'createCollection',
    drop: 'drop',
    dropDatabase: 'dropDatabase',
    createIndexes: 'createIndex',
    listIndexes: 'indexes',
    dropIndexes: 'dropIndex',
    createSearchIndexes: 'createSearchIndex',
  }).map(([command, route]) => [`its ${command} has a session of its own`, [route, (copy: Copy) => copy.execute(astray(command))]] as const)),
  'it asks no view for a session': ['insertOne', (copy) => copy.execute((original) => (client, ...more) =>
    original(Object.getPrototypeOf(client) as Client, ...more))],
  'it needs no session': ['deleteOne', (copy) => copy.execute((original) => async (client, operation, ...more) => {
    if (operation.commandName !== 'delete') return await original(client, operation, ...more)
    return await (await client.topology.selectServer('primary', {})).command(operation)
  })],
  'it selects a server with the session, and forgets it then': ['distinct', (copy) => copy.execute((original) => async (client, operation, ...more) => {
    if (operation.commandName !== 'distinct') return await original(client, operation, ...more)
    const server = await client.topology.selectServer('primary', { session: client.startSession({ explicit: false }) })
    return await server.command(operation)
  })],
  'it asks for its sessions without saying that they are implicit': ['insertOne', (copy) => copy.execute((original) => (client, operation, ...more) => {
    operation.session ??= client.startSession({ owner: Symbol('owner') })
    return original(client, operation, ...more)
  })],
  'it ends each session behind its operation': ['insertOne', (copy) => copy.execute((original) => async (client, operation, ...more) => {
    const result = await original(client, operation, ...more)
    if (operation.commandName !== 'runCommand') await operation.session?.endSession()
    return result
  })],
  'its command leaves the session out of what is sent': ['insertOne', (copy) => {
    const { buildOptions } = copy.methods('InsertOneOperation', 'operations/insert')
    copy.methods('InsertOneOperation', 'operations/insert').buildOptions = function (...args) {
      return { ...buildOptions!.apply(this, args) as object, session: undefined }
    }
  }],
  'its cursors have sessions of their own': ['findOne', (copy) => {
    const { cursorInit } = copy.methods('AbstractCursor')
    copy.methods('AbstractCursor').cursorInit = function (
      this: { cursorSession: unknown, client: Client }, ...args: unknown[]
    ) {
      this.cursorSession = this.client.startSession()
      return cursorInit!.apply(this, args)
    } as never
  }],
  'its cursors stay with one server, out of turn': ['find', (copy) => {
    copy.methods('AbstractCursor').getMore = async function (
      this: { selectedServer: { command (operation: object): unknown }, session: unknown }
    ) {
      return await this.selectedServer.command({ commandName: 'getMore', session: this.session })
    } as never
  }],
  'its bulks have sessions of their own': [/^(bulkWrite|insertMany)$/, (copy) => {
    const { execute } = copy.methods('BulkOperationBase', 'bulk/common')
    copy.methods('BulkOperationBase', 'bulk/common').execute = function (
      this: { collection: { client: Client } }, options: object
    ) {
      return execute!.call(this, { ...options, session: this.collection.client.startSession() })
    } as never
  }],
  'its insertOne never ends': ['insertOne', (copy) => {
    copy.methods('Collection').insertOne = () => new Promise(() => {})
  }],
  'its commit sends nothing': ['commit', (copy) => {
    copy.methods('ClientSession').commitTransaction = async () => {}
  }],
  'its abort sends nothing': ['rollback', (copy) => {
    copy.methods('ClientSession').abortTransaction = async () => {}
  }],
  'it has no topology any more': ['insertOne',
    (copy) => copy.execute(() => async () => { throw new Error('there is another way now') })],
}

for (const [wrong, [route, breakIt]] of Object.entries(broken)) {
  t.test(`a driver is refused by name: ${wrong}`, async (t) => {
    const copy = copyOfDriver()
    const { server, connector, db } = await takeOver(t, (url) => new copy.MongoClient(url))
    breakIt(copy)
    for (let times = 0; times < 2; times++) {
      const error = await begin(connector, db)
        .then(() => { throw new Error('it began') }, (error: unknown) => error as Error)
      t.match(error, notSupported)
      t.match(/'(.*)'/.exec(error.message)?.[1], route, `${error.message}: ${String(error.cause)}`)
    }
    t.strictSame(server.log, [])
  })
}

t.test('what goes another way than any that was tried is not sent', async (t) => {
  const copy = copyOfDriver()
  const { server, connector, db } = await takeOver(t, (url) => new copy.MongoClient(url))
  const transaction = await begin(connector, db)
  const implicit = copy.methods('MongoClient').startSession!
  copy.execute((original) => (client, operation, ...more) => {
    if (operation.commandName === 'insert') operation.session = implicit.call(client, { explicit: false }) as Session
    return original(client, operation, ...more)
  })
  await t.rejects(transaction.connection.collection('items').insertOne({ n: 1 }),
    { ...notSupported, message: /'insert' outside/ })
  await transaction.connection.collection('items').findOne()
  t.strictSame(server.log.map(({ command }) => command), ['find'])
  await transaction.rollback()
})
