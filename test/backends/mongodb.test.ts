import { MongoClient } from 'mongodb'
import type { Db, MongoClient as Client } from 'mongodb'
import t from 'tap'
import type { Test } from 'tap'
import { mongodb } from '../../lib/backends/mongodb.js'
import type { MongoConnector, MongoOptions } from '../../lib/backends/mongodb.js'
import { PoolError } from '../../lib/pool/errors.js'
import type { DriverEvent } from '../../types/connector.js'
import { startMongoDouble } from '../doubles/mongo-wire.js'
import type { MongoDouble, MongoDoubleOptions } from '../doubles/mongo-wire.js'
import { startProxy } from '../support/proxy.js'
import { startMongo } from '../support/services.js'
import { until } from '../support/until.js'

const later = new AbortController().signal

interface Target { readonly url: string, readonly host: string, readonly port: number, kill (): Promise<void>, restart (): Promise<void> }

async function connect (t: Test, options: MongoOptions): Promise<MongoConnector> {
  const connector = await mongodb(options)
  t.teardown(() => connector.close!())
  return connector
}

/** To one server, by the way of a proxy: without `directConnection` a replica set would tell the driver its real address. */
const direct = ({ host, port }: { host: string, port: number }) => `mongodb://${host}:${port}/shop?directConnection=true`

function record (connector: MongoConnector): DriverEvent[] {
  const events: DriverEvent[] = []
  connector.onDriverEvent!((event) => { events.push(event) })
  return events
}

const active = (...kinds: string[]) => process.getActiveResourcesInfo().filter((name) => kinds.includes(name)).length
/** What keeps a process alive, and could be left by a driver. */
const alive = () => active('TCPSocketWrap', 'Timeout')

const roundTrip = async (db: Db) => {
  const items = db.collection<{ _id: string, n: number }>('items')
  await items.deleteMany({})
  await items.insertMany([{ _id: 'a', n: 1 }, { _id: 'b', n: 2 }])
  await items.updateOne({ _id: 'a' }, { $set: { n: 3 } })
  await items.deleteOne({ _id: 'b' })
  return await items.find({}).toArray()
}

// --- The same promises against each target --------------------------------------------------------------------------------------------

const real = await startMongo(t, { own: true })
const skip = real === undefined && 'no server and no Go to build FerretDB with'
const how = real?.kind ?? 'a real server'

t.test(`on ${how}`, { skip }, async (t) => {
  await suite(t, async () => real!, real!.pid === undefined && 'needs a server of its own, and only a URL was given')
})

t.test('on the double', async (t) => {
  await suite(t, async (t) => {
    const double = await startMongoDouble(t)
    const [member] = double.members
    return { url: double.url, host: member!.host, port: member!.port, kill: () => member!.kill(), restart: () => member!.restart() }
  }, false)
})

async function suite (t: Test, start: (t: Test) => Promise<Target>, notOurs: string | false) {
  await t.test('a connection is a Db of its own with the whole driver behind it', async (t) => {
    const { url } = await start(t)
    const connector = await connect(t, { url, database: 'shop' })
    const [one, two] = await Promise.all([connector.create(later), connector.create(later)])
    t.not(one, two)
    t.equal(one.databaseName, 'shop')
    t.equal(connector.database, 'shop')
    t.strictSame(await roundTrip(one), [{ _id: 'a', n: 3 }])
    t.notOk(connector.isBroken!(one))
    t.equal(connector.reset?.(one, later), undefined)
    t.equal(await connector.validate!(two, later), true)
    await connector.destroy(one, 'idle')
    t.strictSame(await two.collection('items').countDocuments(), 1, 'one connection ends alone')
  })

  await t.test('host and port do instead of a url', async (t) => {
    const { host, port } = await start(t)
    const connector = await connect(t, { host, port, connection: { directConnection: true } })
    t.equal(connector.database, 'test')
    t.equal(await connector.validate!(await connector.create(later), later), true)
  })

  await t.test('creates side by side share one client, which connects once', async (t) => {
    const { url } = await start(t)
    const connector = await connect(t, { url })
    const { client } = connector
    const events = record(connector)
    const dbs = await Promise.all(Array.from({ length: 10 }, () => connector.create(later)))
    t.equal(new Set(dbs).size, 10)
    t.equal(events.filter(({ name }) => name === 'topologyOpening').length, 1)
    t.equal(connector.client, client)
  })

  await t.test('the server never sees more than max connections, and the monitors', async (t) => {
    const proxy = await startProxy(t, await start(t))
    const connector = await connect(t, { url: direct(proxy), max: 4 })
    const events = record(connector)
    const dbs = await Promise.all(Array.from({ length: 4 }, () => connector.create(later)))
    await Promise.all(dbs.flatMap((db) => Array.from({ length: 10 }, () => db.collection('items').findOne({}))))
    t.ok(proxy.connections.peak <= 4 + 2, `${proxy.connections.peak} <= 4, a monitor and its clock`)
    t.equal(events.filter(({ name }) => name === 'connectionCreated').length, 4)
    t.match(events.find(({ name }) => name === 'connectionPoolCreated'), { address: `127.0.0.1:${proxy.port}` })
  })

  await t.test('a refused connect fails the create in time, leaves nothing open, and can be repeated on the same client', async (t) => {
    const proxy = await startProxy(t, await start(t))
    await proxy.refuse()
    const before = alive()
    const connector = await connect(t, { url: direct(proxy), acquireTimeout: 200 })
    const { client } = connector
    await t.rejects(connector.create(later), { name: 'MongoServerSelectionError', message: /ECONNREFUSED/ })
    await until(() => alive() <= before, { what: 'nothing is left open by the failure' })
    await proxy.heal()
    const db = await connector.create(later)
    t.equal(connector.client, client)
    t.notOk(connector.isBroken!(db))
    t.equal(await connector.validate!(db, later), true)
  })

  await t.test('a server that accepts and says nothing can not hold a create beyond its signal', async (t) => {
    const proxy = await startProxy(t, await start(t))
    proxy.silence()
    const connector = await connect(t, { url: direct(proxy), connectTimeout: 300 })
    const controller = new AbortController()
    const create = connector.create(controller.signal)
    await until(() => proxy.connections.open > 0)
    controller.abort(new Error('no longer wanted'))
    await t.rejects(create, { message: 'no longer wanted' })
    await proxy.heal()
    // The connect that went on meanwhile serves this one.
    t.notOk(connector.isBroken!(await connector.create(later)))
  })

  await t.test('close during a connect ends it, and no socket is left', async (t) => {
    const proxy = await startProxy(t, await start(t))
    proxy.silence()
    const connector = await connect(t, { url: direct(proxy), connectTimeout: 300 })
    const create = connector.create(later)
    await until(() => proxy.connections.open > 0)
    const ended = t.rejects(create, { name: 'MongoTopologyClosedError' })
    await connector.close!()
    await ended
    // The driver's monitor ends by `connectTimeoutMS` where it waits for its first answer.
    await until(() => proxy.connections.open === 0)
    await t.rejects(connector.create(later), /closed/)
  })

  await t.test('a signal that has aborted opens nothing', async (t) => {
    const proxy = await startProxy(t, await start(t))
    const connector = await connect(t, { url: direct(proxy) })
    await t.rejects(connector.create(AbortSignal.abort(new Error('too late'))), { message: 'too late' })
    t.equal(proxy.connections.total, 0)
  })

  await t.test('validate ends with its signal on a server that hangs, and the connection works afterwards', async (t) => {
    const proxy = await startProxy(t, await start(t))
    const connector = await connect(t, { url: direct(proxy) })
    const db = await connector.create(later)
    proxy.blackHole()
    const controller = new AbortController()
    const validation = t.rejects(connector.validate!(db, controller.signal), { message: 'too slow' })
    controller.abort(new Error('too slow'))
    await validation
    await proxy.heal()
    t.equal(await connector.validate!(db, later), true)
  })

  const killed = 'kill -9 breaks every connection and tells each onDeath once; after the restart creates succeed within 2 s'
  await t.test(killed, { skip: notOurs }, async (t) => {
    const server = await start(t)
    const before = active('TCPSocketWrap')
    // FerretDB is polled; a real MongoDB streams its death.
    const connector = await connect(t, { url: server.url, acquireTimeout: 1000, connection: { heartbeatFrequencyMS: 500 } })
    const dbs = await Promise.all([connector.create(later), connector.create(later), connector.create(later)])
    const deaths: unknown[] = []
    for (const db of dbs) connector.onDeath!(db, (error) => { deaths.push(error) })
    await connector.destroy(dbs[2]!, 'idle')
    await dbs[0]!.collection('items').findOne({})
    await server.kill()
    // An operation of driver 7.8 that writes between a socket's FIN and its 'close' waits for ever.
    await until(() => active('TCPSocketWrap') <= before, { what: 'the sockets of the dead server are closed' })
    await t.rejects(dbs[0]!.collection('items').findOne({}), 'whoever uses it gets the error of the driver')
    await until(() => deaths.length > 0)
    t.ok(dbs.every((db) => connector.isBroken!(db)))
    t.match(deaths, [Error, Error], 'and not the one that was destroyed before')
    await t.rejects(connector.create(later), { name: /^Mongo/ })
    await server.restart()
    const began = performance.now()
    const db = await connector.create(later)
    t.ok(performance.now() - began < 2000)
    t.notOk(connector.isBroken!(db))
    t.equal(typeof await db.collection('items').countDocuments(), 'number')
    t.equal(deaths.length, 2)
  })

  await t.test('a create while the server is away ends with its signal, and says why there is none', async (t) => {
    const proxy = await startProxy(t, await start(t))
    const connector = await connect(t, { url: direct(proxy), connection: { heartbeatFrequencyMS: 500 } })
    const db = await connector.create(later)
    await proxy.refuse()
    proxy.resetAll()
    await until(() => connector.isBroken!(db))
    const controller = new AbortController()
    const create = connector.create(controller.signal)
    controller.abort(new Error('time is up'))
    await t.rejects(create, { name: /^Mongo/ })
    await proxy.heal()
    t.notOk(connector.isBroken!(await connector.create(later)))
  })

  for (const state of ['connected', 'not connected', 'one that failed to connect'] as const) {
    await t.test(`a client that the app made is taken over (${state}), and not closed`, async (t) => {
      const proxy = await startProxy(t, await start(t))
      const client = new MongoClient(direct(proxy), { serverSelectionTimeoutMS: 200 })
      t.teardown(() => client.close())
      const mine = () => {}
      client.on('topologyDescriptionChanged', mine)
      if (state === 'connected') await client.connect()
      if (state === 'one that failed to connect') {
        await proxy.refuse()
        await t.rejects(client.connect())
        await proxy.heal()
      }
      const connector = await connect(t, { client })
      const events = record(connector)
      t.equal(connector.client, client)
      t.equal(connector.database, 'shop')
      const db = await connector.create(later)
      t.notOk(connector.isBroken!(db))
      await roundTrip(db)
      t.ok(events.some(({ name }) => name === 'connectionCheckedOut'))
      await connector.close!()
      t.ok(connector.isBroken!(db))
      t.strictSame(listeners(client), ['topologyDescriptionChanged'], 'it keeps its own listeners')
      t.equal(typeof await client.db().collection('items').countDocuments(), 'number', 'and works')
    })
  }

  await t.test('a client that the app has closed stays closed', async (t) => {
    const { url } = await start(t)
    const client = new MongoClient(url)
    const connector = await connect(t, { client })
    const db = await connector.create(later)
    let deaths = 0
    connector.onDeath!(db, () => { deaths++ })
    await client.close()
    t.equal(deaths, 1)
    t.ok(connector.isBroken!(db))
    await t.rejects(connector.create(later), { name: 'MongoNotConnectedError' })
  })

  await t.test('after close no listener, socket or timer is left, and closing again is all right', async (t) => {
    const before = alive()
    const proxy = await startProxy(t, await start(t))
    const connector = await mongodb({ url: direct(proxy) })
    const events = record(connector)
    const db = await connector.create(later)
    connector.onDeath!(db, () => t.fail('the end of the pool is no death'))
    await roundTrip(db)
    await Promise.all([connector.close!(), connector.close!()])
    await connector.close!()
    for (const name of ['connectionPoolClosed', 'topologyClosed']) t.ok(events.some((event) => event.name === name), `${name} is still told`)
    t.strictSame(listeners(connector.client), [])
    await until(() => proxy.connections.open === 0 && alive() <= before, { what: 'no socket and no timer is left' })
    await t.rejects(connector.create(later), /closed/)
  })
}

/** Names of events that somebody listens to, but for the driver's own guard. */
function listeners (client: Client): string[] {
  return client.eventNames().map(String).filter((name) => name !== 'error')
}

// --- What only a steerable server can show --------------------------------------------------------------------------------------------

interface Doubled { double: MongoDouble, connector: MongoConnector, events: DriverEvent[] }

async function double (t: Test, options: MongoDoubleOptions, more: Omit<MongoOptions, 'url'> = {}): Promise<Doubled> {
  const double = await startMongoDouble(t, options)
  const connector = await connect(t, { url: double.url, ...more })
  return { double, connector, events: record(connector) }
}

t.test('on the double: a wrong password fails the create at once, and is in no event or error; the right one works later', async (t) => {
  const password = 'p@ss/w0rd-s3cret'
  const { double: server, connector, events } = await double(t, { user: 'me', password })
  server.setPassword('another one')
  const error: unknown = await connector.create(later).catch((error: unknown) => error)
  t.match(error, { name: 'MongoServerError', code: 18 })
  for (const name of ['connectionPoolCreated', 'connectionCreated', 'connectionClosed', 'topologyClosed']) {
    t.ok(events.some((event) => event.name === name), name)
  }
  for (const text of [password, encodeURIComponent(password)]) {
    t.notOk(JSON.stringify(events).includes(text))
    t.notOk(`${JSON.stringify(error)}${String(error)}`.includes(text))
  }
  t.strictSame(events, JSON.parse(JSON.stringify(events)), 'events are plain data')
  t.match(events.find(({ name }) => name === 'connectionCheckOutFailed'), { error: { name: 'MongoServerError' } })
  server.setPassword(password)
  t.notOk(connector.isBroken!(await connector.create(later)))
})

t.test('on the double: without a primary every idle connection is dead; a new primary serves the next create', async (t) => {
  const { double: server, connector } = await double(t, { members: 3 })
  const dbs = await Promise.all([connector.create(later), connector.create(later)])
  let deaths = 0
  for (const db of dbs) connector.onDeath!(db, () => { deaths++ })
  server.noPrimary()
  await until(() => deaths === 2)
  t.ok(dbs.every((db) => connector.isBroken!(db)))
  server.elect(1)
  const db = await connector.create(later)
  t.notOk(connector.isBroken!(db))
  await db.collection('items').insertOne({})
  server.noPrimary()
  await until(() => connector.isBroken!(db))
  t.equal(deaths, 2, 'once for each, however often the primary goes')
})

for (const readPreference of ['primaryPreferred', 'secondary', 'secondaryPreferred', 'nearest']) {
  t.test(`on the double: with readPreference ${readPreference} a secondary is enough`, async (t) => {
    const { double: server, connector, events } = await double(t, { members: 3 }, { connection: { readPreference } })
    const db = await connector.create(later)
    connector.onDeath!(db, () => t.fail('it is not dead'))
    server.noPrimary()
    await until(() => events.some(({ name, to }) => name === 'topologyDescriptionChanged' && to === 'ReplicaSetNoPrimary'))
    t.notOk(connector.isBroken!(db))
    t.equal(await connector.validate!(db, later), true)
    t.notOk(connector.isBroken!(await connector.create(later)))
  })
}

t.test('on the double: tags that no server has make no server selectable', async (t) => {
  const connection = { readPreference: 'nearest', readPreferenceTags: [{ dc: 'nowhere' }] }
  const { connector } = await double(t, { members: 3 }, { connection, acquireTimeout: 200 })
  await t.rejects(connector.create(later), { name: 'MongoServerSelectionError' })
})

t.test('on the double: a step-down is survived by writes, and by the next create', async (t) => {
  const { double: server, connector } = await double(t, { members: 3 })
  const db = await connector.create(later)
  await db.collection('items').insertOne({ n: 1 })
  server.stepDown()
  await db.collection('items').insertOne({ n: 2 })
  t.equal(server.documents('test', 'items').length, 2)
  t.notOk(connector.isBroken!(await connector.create(later)))
})

t.test('on the double: a server that is only polled is known to be dead when it dies under an operation', async (t) => {
  const connection = { retryReads: false }
  const { double: server, connector } = await double(t, { standalone: true, monitoring: 'poll' }, { acquireTimeout: 200, connection })
  const [one, two] = await Promise.all([connector.create(later), connector.create(later)])
  let deaths = 0
  connector.onDeath!(two, () => { deaths++ })
  const hold = server.hold('find')
  const find = t.rejects(one.collection('items').findOne({}), { name: 'MongoNetworkError' })
  await hold.reached
  await server.members[0]!.kill()
  await find
  t.equal(deaths, 1)
  t.ok(connector.isBroken!(two))
})

t.test('on the double: sockets that are reset break no more than their own operations', async (t) => {
  const { double: server, connector } = await double(t, { members: 1 })
  const db = await connector.create(later)
  await server.resetAll()
  await until(() => connector.create(later))
  await db.collection('items').insertOne({})
})

t.test('on the double: connections at the server stay within max, however many operations run', async (t) => {
  const { double: server, connector } = await double(t, {}, { max: 3 })
  const db = await connector.create(later)
  const hold = server.hold('find')
  const finds = Array.from({ length: 12 }, () => db.collection('items').findOne({}))
  await hold.arrived(3)
  t.equal(hold.waiting, 3)
  hold.release()
  await Promise.all(finds)
  t.ok(server.connections.peak <= 3)
})

t.test('on the double: an operation waits for a socket no longer than acquireTimeout', async (t) => {
  const { double: server, connector } = await double(t, {}, { max: 1, acquireTimeout: 100 })
  const db = await connector.create(later)
  const hold = server.hold('find')
  const first = db.collection('items').findOne({})
  await hold.reached
  await t.rejects(db.collection('items').findOne({}), { name: 'MongoWaitQueueTimeoutError' })
  hold.release()
  await first
})

// --- Options --------------------------------------------------------------------------------------------------------------------------

t.test('what is the pool\'s to set is refused by name, with the option to use instead, and in any case', async (t) => {
  const instead = { maxPoolSize: 'max', minPoolSize: 'min', maxConnecting: 'maxConnecting', waitQueueTimeoutMS: 'acquireTimeout' }
  for (const [key, ours] of Object.entries(instead)) {
    for (const written of [key, key.toLowerCase()]) {
      const code = 'FST_POOL_BAD_OPTIONS'
      const inConnection = mongodb({ url: 'mongodb://127.0.0.1/', connection: { [written]: 5 } })
      await t.rejects(inConnection, { code, message: new RegExp(`^option connection\\.${written} .* option ${ours}$`) })
      const inUrl = mongodb({ url: `mongodb://127.0.0.1/?tls=false&${written}=5` })
      await t.rejects(inUrl, { code, message: new RegExp(`^option url .* without ${written}: .* option ${ours}$`) })
    }
  }
})

t.test('what is ours goes to the driver, and what is the user\'s goes through untouched', async (t) => {
  const options = async (options: MongoOptions) => (await mongodb({ url: 'mongodb://127.0.0.1/', ...options })).client.options
  t.match(await options({}), { maxPoolSize: 10, maxConnecting: 10, waitQueueTimeoutMS: 5000, serverSelectionTimeoutMS: 5000, connectTimeoutMS: 3000 })
  t.match(await options({ max: 3, acquireTimeout: 700, connectTimeout: 400 }), {
    maxPoolSize: 3, maxConnecting: 3, waitQueueTimeoutMS: 700, serverSelectionTimeoutMS: 700, connectTimeoutMS: 400,
  })
  const given = { serverSelectionTimeoutMS: 60, connectTimeoutMS: 9000, appName: 'x' }
  t.match(await options({ connection: given }), given)
  t.match(await options({ connection: { serverselectiontimeoutms: 60_000 } }), { serverSelectionTimeoutMS: 5000 })
  t.match(await options({ connection: { serverSelectionTimeoutMS: 0 } }), { serverSelectionTimeoutMS: 5000 })
  const url = 'mongodb://127.0.0.1/?serverSelectionTimeoutMS=70&connectTimeoutMS=80'
  t.match(await options({ url }), { serverSelectionTimeoutMS: 70, connectTimeoutMS: 80 })
  const theirs = { tls: true, authSource: 'there', replicaSet: 'rs9', readPreference: 'nearest' }
  t.match(await options({ connection: theirs }), { tls: true, replicaSet: 'rs9', readPreference: { mode: 'nearest' } })
})

t.test('the database is the option, else the one in the url, else the driver\'s own', async (t) => {
  t.equal((await mongodb({ url: 'mongodb://127.0.0.1/shop', database: 'other' })).database, 'other')
  t.equal((await mongodb({ url: 'mongodb://127.0.0.1/shop?tls=false' })).database, 'shop')
  t.equal((await mongodb({ url: 'mongodb://127.0.0.1' })).database, 'test')
  await t.rejects(mongodb({ url: 'mongodb://127.0.0.1/', database: 'a.b' }), { code: 'FST_POOL_BAD_OPTIONS', message: /option database is 'a\.b'/ })
})

t.test('host may be an IPv6 address', async (t) => {
  t.match((await mongodb({ host: '::1' })).client.options.hosts.map(String), ['[::1]:27017'])
  t.match((await mongodb({ port: 5 })).client.options.hosts.map(String), ['localhost:5'])
})

t.test('a bad url is refused without being shown', async (t) => {
  const bad = [
    'mongodb://me:s3cret@', 'mongodb//me:s3cret@host', 'http://me:s3cret@host/',
    'mongodb://me:s3cret@host:99999999/', 'mongodb://me:s3:cret@host/', 'mongodb://host/?s3cret=1', 's3cret',
  ]
  for (const url of bad) {
    const error: unknown = await mongodb({ url }).catch((error: unknown) => error)
    t.type(error, PoolError)
    t.match(error, { code: 'FST_POOL_BAD_OPTIONS', message: /^option url is a text: expected a MongoDB URL/ }, url)
    t.notMatch(String(error), /s3cret/)
    t.equal((error as Error).cause, undefined)
  }
})

t.test('a connection option that the driver does not know is refused by its name, without secrets', async (t) => {
  const error: unknown = await mongodb({ url: 'mongodb://me:s3cret@host/', connection: { nonsense: 's3cret' } }).catch((error: unknown) => error)
  t.match(error, { code: 'FST_POOL_BAD_OPTIONS', message: /option connection .*nonsense/ })
  t.notMatch(String(error), /s3cret/)
})

t.test('options that contradict each other are refused', async (t) => {
  const client = new MongoClient('mongodb://127.0.0.1/')
  const bad: MongoOptions[] = [
    {}, { url: 'mongodb://h/', host: 'h' }, { url: 'mongodb://h/', port: 1 },
    { client, url: 'mongodb://h/' }, { client, host: 'h' }, { client, connection: { tls: true } },
  ]
  for (const options of bad) {
    await t.rejects(mongodb(options), { code: 'FST_POOL_BAD_OPTIONS' })
  }
  t.equal((await mongodb({ client, connection: {}, max: 5 })).client, client)
})

t.test('options are not mutated', async () => {
  const auth = Object.freeze({ username: 'me', password: 'p' })
  const connection = Object.freeze({ appName: 'x', serverSelectionTimeoutMS: 5, auth })
  const options: MongoOptions = Object.freeze({ url: 'mongodb://127.0.0.1/', connection })
  await (await mongodb(options)).close!()
})
