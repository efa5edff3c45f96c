import {
  Binary, GridFSBucket, MongoClient, MongoNetworkError, MongoNetworkTimeoutError, MongoOperationTimeoutError,
  MongoServerError,
  MongoTopologyClosedError, ObjectId, ReadPreference,
} from 'mongodb'
import type { Collection, CollectionOptions, Db, DbOptions, MongoClient as Client, MongoError } from 'mongodb'
import Fastify from 'fastify'
import { once } from 'node:events'
import t from 'tap'
import type { Test } from 'tap'
import { fastifyPool } from '../../index.js'
import { mongodb } from '../../lib/backends/mongodb/connector.js'
import type { MongoConnector } from '../../lib/backends/mongodb/connector.js'
import type { MongoOptions } from '../../lib/backends/mongodb/options.js'
import { PoolError } from '../../lib/engine/errors.js'
import type { EngineOptions } from '../../types/options.js'
import { Pool } from '../../lib/pool/pool.js'
import type { DriverEvent, Transaction, TransactionOptions } from '../../types/connector.js'
import { startMongoDouble } from '../doubles/mongo-wire.js'
import type { MongoDouble, MongoDoubleOptions } from '../doubles/mongo-wire.js'
import { alarm } from '../support/order.js'
import { startProxy } from '../support/proxy.js'
import { startMongo } from '../support/services.js'
import { until } from '../support/until.js'

const later = new AbortController().signal

interface Target {
  readonly url: string
  readonly host: string
  readonly port: number
  kill (): Promise<void>
  restart (): Promise<void>
}

async function connect (t: Test, options: MongoOptions): Promise<MongoConnector> {
  const connector = await mongodb(options)
  t.teardown(() => connector.close!())
  return connector
}

/**
 * To one server, by the way of a proxy: without `directConnection` a replica set would tell the driver its real
 * address.
 */
const direct = ({ host, port }: { host: string, port: number }) =>
  `mongodb://${host}:${port}/shop?directConnection=true`

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

// --- The same promises against each target ---------------------------------------------------------------------------

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
    return {
      url: double.url,
      host: member!.host,
      port: member!.port,
      kill: () => member!.kill(),
      restart: () =>
        member!.restart()
    }
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
    await t.rejects(connector.create(later), { name: 'MongoNetworkError', message: /ECONNREFUSED/ })
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

  const killed =
    'kill -9 breaks every connection and tells each onDeath once; after the restart creates succeed when the driver has looked'
  await t.test(killed, { skip: notOurs }, async (t) => {
    const server = await start(t)
    const before = active('TCPSocketWrap')
    // FerretDB is polled; a real MongoDB streams its death.
    const connector =
      await connect(t, { url: server.url, acquireTimeout: 1000, connection: { heartbeatFrequencyMS: 500 } })
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
    const looks = record(connector)
    const db = await connector.create(later)
    t.ok(looks.filter(({ name }) => name === 'serverHeartbeatSucceeded').length <= 2,
      'it does not wait for another look of the driver')
    t.notOk(connector.isBroken!(db))
    t.equal(typeof await db.collection('items').countDocuments(), 'number')
    t.equal(deaths.length, 2)
  })

  await t.test('a create fails as soon as no server is there when the driver has looked, with the reason, and does not use up its deadline', async (t) => {
    const proxy = await startProxy(t, await start(t))
    const connector = await connect(t, { url: direct(proxy), connection: { heartbeatFrequencyMS: 500 } })
    await t.test('where it was connected before', async (t) => {
      const db = await connector.create(later)
      await proxy.refuse()
      proxy.resetAll()
      await until(() => connector.isBroken!(db))
      const looks = record(connector)
      await t.rejects(Promise.all([connector.create(later), connector.create(later)]), { message: /ECONNREFUSED/ })
      t.ok(looks.filter(({ name }) => name === 'serverHeartbeatFailed').length <= 3,
        'of the ten or so in the 5000 ms that the driver would wait')
    })
    await t.test('where it was not', async (t) => {
      const fresh = await connect(t, { url: direct(proxy) })
      const late = alarm(2500)
      await t.rejects(fresh.create(later), { message: /ECONNREFUSED/ })
      await t.rejects(fresh.create(later), { message: /ECONNREFUSED/ },
        'and again, while the driver still tries for the first one')
      t.notOk(late.rang, 'before a timer of half of what the driver would wait')
      await fresh.close!()
    })
    await proxy.heal()
    t.notOk(connector.isBroken!(await connector.create(later)))
  })

  const away =
    'while the server is away a pool tries no more often than the driver does, leaves nothing open, and serves when the driver has seen its return'
  await t.test(away, { skip: notOurs }, async (t) => {
    const server = await start(t)
    const before = alive()
    const connector = await mongodb({
      url: server.url, max: 5, acquireTimeout: 500, connection: { heartbeatFrequencyMS: 500 },
    })
    const pool = new Pool<Db>(connector, { max: 5, acquireTimeout: 500, connectTimeout: 1000 })
    t.teardown(() => pool.close())
    const events = record(connector)
    const count = (wanted: string) => events.filter(({ name }) => name === wanted).length
    const ask = () => pool.use((db) => db.command({ ping: 1 }))
    const load = { on: true, served: 0, failed: 0 }
    await ask()
    const users = Promise.all(Array.from({ length: 20 }, async () => {
      while (load.on) {
        await ask().then(() => { load.served++ }, () => { load.failed++ })
        // Who is refused at once and comes again at once would leave no time for anything else.
        await new Promise(setImmediate)
      }
    }))
    await until(() => load.served > 100)
    await server.kill()
    await until(() => load.failed > 0)
    events.length = 0
    const lost = performance.now()
    await until(() => count('serverHeartbeatFailed') >= 5)
    const lasted = performance.now() - lost
    const tries = count('serverHeartbeatFailed')
    t.ok(tries <= lasted / 500 + 2, `${tries} looks in ${Math.round(lasted)} ms`)
    t.equal(count('topologyOpening') + count('connectionReady'), 0)
    t.ok(count('connectionCreated') <= 5, `${count('connectionCreated')} sockets were tried`)
    t.ok(active('TCPSocketWrap') <= before + 2, 'none is open but for what is being tried')
    t.match(pool.stats(), { used: 0, late: 0 })

    await server.restart()
    const back = performance.now()
    const seen = count('serverHeartbeatSucceeded')
    const { served } = load
    await until(() => load.served > served)
    const took = performance.now() - back
    t.comment(`measured: served again ${Math.round(took)} ms after the return`)
    t.ok(count('serverHeartbeatSucceeded') - seen <= 2, 'without another look of the driver')
    load.on = false
    await users
    t.match(pool.stats(), { used: 0, pending: 0, late: 0 })
    t.ok(pool.stats().created <= pool.stats().acquired)
    await pool.close()
    await until(() => alive() <= before, { what: 'no socket and no timer is left' })
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

  await t.test('sockets that the app\'s client had opened before, and that are silent, are found and closed', async (t) => {
    const proxy = await startProxy(t, await start(t))
    const client = new MongoClient(direct(proxy))
    t.teardown(() => client.close())
    const closed: string[] = []
    client.on('connectionClosed', ({ reason }) => { closed.push(reason) })
    let made = 0
    client.on('connectionReady', () => { made++ })
    await client.connect()
    const ping = () => client.db().command({ ping: 1 })
    await until(async () => {
      await Promise.all(Array.from({ length: 4 }, ping))
      return made >= 4
    }, { what: 'it has some sockets' })
    const sockets = made
    const connector = await connect(t, { client })
    const db = await connector.create(later)
    proxy.forget()
    // The driver's monitor would find out later.
    const monitor = alarm(5000)
    t.equal(await connector.validate!(db, later), true)
    await Promise.all(Array.from({ length: 4 }, () => db.command({ ping: 1 })))
    await until(() => closed.length >= sockets, { what: 'the silent ones are closed' })
    t.notOk(monitor.rang)
    t.ok(closed.every((reason) => reason === 'error'), closed.join())
  })

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
    for (const name of ['connectionPoolClosed', 'topologyClosed']) {
      t.ok(events.some((event) => event.name === name),
      `${name} is still told`)
    }
    t.strictSame(listeners(connector.client), [])
    await until(() => proxy.connections.open === 0 && alive() <= before, { what: 'no socket and no timer is left' })
    await t.rejects(connector.create(later), /closed/)
  })
}

/** Names of events that somebody listens to, but for the driver's own guard. */
function listeners (client: Client): string[] {
  return client.eventNames().map(String).filter((name) => name !== 'error')
}

// --- What only a steerable server can show ---------------------------------------------------------------------------

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
    await until(() =>
      events.some(({ name, to }) => name === 'topologyDescriptionChanged' && to === 'ReplicaSetNoPrimary'))
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
  const { double: server, connector } =
    await double(t, { standalone: true, monitoring: 'poll' }, { acquireTimeout: 200, connection })
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

// --- Errors ----------------------------------------------------------------------------------------------------------

t.test('an error is transient where another connection may do it a moment later, and no other one is', async (t) => {
  const connector = await mongodb({ url: 'mongodb://127.0.0.1/' })
  const server = (code: number, ...labels: string[]) => {
    const error = new MongoServerError({ message: 'no', code })
    for (const label of labels) error.addErrorLabel(label)
    return error
  }
  const yes: unknown[] = [
    new MongoNetworkError('gone'), new MongoNetworkTimeoutError('timed out'), new MongoTopologyClosedError('closed'),
    Object.assign(new Error('of another copy of the driver'), { name: 'MongoPoolClearedError' }),
    server(0, 'RetryableWriteError'), server(112, 'TransientTransactionError'), server(0, 'PoolRequestedRetry'),
    server(0, 'ResumableChangeStreamError'),
    ...[6, 7, 89, 91, 133, 134, 189, 262, 9001, 10058, 10107, 11600, 11602, 13435, 13436].map((code) => server(code)),
  ]
  const overloaded = new MongoNetworkError('refused')
  overloaded.addErrorLabel('SystemOverloadedError')
  const no: unknown[] = [
    undefined, null, 'MongoNetworkError', { name: 'MongoNetworkError' }, new Error('another'),
    new TypeError('a mistake'),
    new MongoOperationTimeoutError('the caller was in a hurry'),
    Object.assign(new Error('no socket'), { name: 'MongoWaitQueueTimeoutError' }),
    server(462, 'RetryableError', 'SystemOverloadedError'), server(18, 'HandshakeError'), server(11000), server(112),
    server(50), server(43), server(64), server(8),
    new PoolError('FST_POOL_TRANSACTION_ENDED', 'it has ended'),
  ]
  for (const error of [...yes, overloaded]) t.ok(connector.isTransient(error), String(error))
  for (const error of no) t.notOk(connector.isTransient(error), String(error))
  await connector.close!()
})

t.test('on the double: what the driver throws when its server goes, or takes no writes any more, is transient', async (t) => {
  const impatient = { retryWrites: false, retryReads: false, serverSelectionTimeoutMS: 1000, heartbeatFrequencyMS: 500 }
  const { double: server, connector } = await double(t, { members: 3, monitoring: 'poll' }, { connection: impatient })
  const db = await connector.create(later)
  const items = db.collection('items')
  await items.insertOne({ n: 1 })
  const seen = async (work: Promise<unknown>, expected: object) => {
    const error = await failure(work)
    t.match(error, expected)
    t.ok(connector.isTransient(error), String(error))
  }
  server.stepDown()
  await seen(items.insertOne({ n: 2 }), { code: 10107 })
  await until(() => connector.create(later))
  const hold = server.hold('find')
  const find = seen(items.findOne({}), { name: 'MongoNetworkError' })
  await hold.reached
  await server.primary!.kill()
  await find
  await seen(items.findOne({}), { name: 'MongoServerSelectionError' })
  server.elect(server.members.find(({ state }) => state === 'secondary')!.index)
  await until(() => connector.create(later))
  t.notOk(connector.isTransient(await failure(db.command({ nonsense: 1 }))))
})

// --- Addresses that change -------------------------------------------------------------------------------------------

/** A server whose user's password changes, and a connector that is told of it at each create. */
async function rotating (t: Test, more: Omit<MongoOptions, 'url'> = {}) {
  const server = await startMongoDouble(t, { user: 'me', password: 'p4ssword-1' })
  const answers = { asked: 0, url: server.url }
  const url = async () => {
    answers.asked++
    return answers.url
  }
  const connector = await connect(t, { ...more, url })
  let last = 1
  return {
    server,
    answers,
    connector,
    events: record(connector),
    rotate: () => {
      server.setPassword(`p4ssword-${++last}`)
      answers.url = server.url
    },
  }
}

const isClosed = (client: Client) => client.db().command({ ping: 1 })
  .then(() => false, (error: Error) => error.name === 'MongoNotConnectedError')

t.test('on the double: a url that is a function is asked at each create, and an answer that is the same changes nothing', async (t) => {
  const { server, answers, connector } = await rotating(t)
  t.equal(answers.asked, 1, 'once for the first client')
  const { client } = connector
  const dbs = await Promise.all([connector.create(later), connector.create(later)])
  t.equal(answers.asked, 3)
  t.equal(connector.client, client)
  for (const db of dbs) t.equal(await connector.validate!(db, later), true)
  t.ok(server.connections.total >= 1)
})

t.test('on the double: after another answer connections are made from a new client, and the old one is closed with its last connection', async (t) => {
  const { server, connector, rotate, events } = await rotating(t)
  const old = connector.client
  const [one, two] = [await connector.create(later), await connector.create(later)]
  rotate()
  const three = await connector.create(later)
  t.not(connector.client, old)
  t.equal(three.client, connector.client)
  t.strictSame([one, two, three].map((db) => connector.isBroken!(db)), [false, false, false], 'softly')
  t.equal(await connector.validate!(one, later), true, 'its sockets have logged in before')
  const transaction = await begin(connector, one)
  await transaction.connection.collection('items').insertOne({ n: 1 })
  await transaction.commit()
  t.strictSame(numbers(server), [1])
  await connector.destroy(one, 'stale')
  t.notOk(connector.isBroken!(two))
  events.length = 0
  await connector.destroy(two, 'stale')
  t.ok(await isClosed(old))
  t.ok(events.some(({ name }) => name === 'topologyClosed'), 'events of each client are told')
  t.equal(await connector.validate!(three, later), true)
  t.strictSame(listeners(old), [])
  await connector.close!()
  await until(() => server.connections.all === 0)
})

t.test('on the double: connections of a client whose login is refused are dead, and the next ones log in with what the function says now', async (t) => {
  const { server, connector, rotate } = await rotating(t)
  const pool = new Pool<Db>(connector, { max: 4 })
  t.teardown(() => pool.close())
  const [one, two] = [await pool.acquire(), await pool.acquire()]
  await one.connection.command({ ping: 1 })
  two.release()
  rotate()
  await server.resetAll()
  const error = await failure(until(() => one.connection.command({ ping: 1 }).then(() => false, (error: Error) => {
    // A socket that was reset, before the driver needs a new one.
    if (error.name === 'MongoServerError') throw error
  })))
  t.match(error, { code: 18 })
  t.ok(connector.isTransient(error), 'on another connection it goes well')
  one.release()
  t.match(await pool.use((db) => db.command({ ping: 1 })), { ok: 1 })
  t.match(pool.stats(), { created: 3, destroyed: { error: 2 }, idle: 1 })
})

t.test('on the double: evict retires the connections of an old password softly, and its client with them', async (t) => {
  const { connector, rotate } = await rotating(t)
  const pool = new Pool<Db>(connector, { max: 4 })
  t.teardown(() => pool.close())
  const old = connector.client
  const [one, two] = [await pool.acquire(), await pool.acquire()]
  two.release()
  rotate()
  pool.evict()
  t.match(await pool.use((db) => db.command({ ping: 1 })), { ok: 1 })
  t.not(connector.client, old)
  t.match(await one.connection.command({ ping: 1 }), { ok: 1 }, 'who still holds one can go on')
  one.release()
  await until(() => isClosed(old))
  t.match(pool.stats(), { created: 3, destroyed: { stale: 2 } })
})

t.test('on the double: a function that answers something else each time has a few clients, not one for each connection', async (t) => {
  const server = await startMongoDouble(t)
  let answers = 0
  const connector = await connect(t, { url: server.url, connection: () => ({ appName: `app-${++answers}` }), max: 2 })
  const pool = new Pool<Db>(connector, { max: 20 })
  const leases = await Promise.all(Array.from({ length: 20 }, () => pool.acquire()))
  const clients = new Set(leases.map(({ connection }) => connection.client))
  t.equal(answers, 21)
  // The first one, which nobody has used, may still be closing.
  t.ok(clients.size >= 3 && clients.size <= 4, `${clients.size} clients`)
  t.ok(clients.has(connector.client))
  await Promise.all(leases.map((lease) => lease.connection.command({ ping: 1 })))
  t.ok(server.connections.peak <= 4 * 2, `${server.connections.peak} sockets`)
  for (const lease of leases) lease.destroy()
  await until(() => pool.stats().closing === 0)
  for (const client of clients) t.equal(await isClosed(client), client !== connector.client, 'only the newest is kept')
  for (let round = 0; round < 20; round++) {
    const [one, two] = [await pool.acquire(), await pool.acquire()]
    await one.connection.command({ ping: 1 })
    one.destroy()
    two.release()
  }
  t.ok(server.connections.peak <= 5 * 2, `${server.connections.peak} sockets`)
  t.match(pool.stats(), { createErrors: 0 })
  await pool.close()
  await until(() => server.connections.all === 0)
})

t.test('on the double: an answer that comes late says nothing new', async (t) => {
  const server = await startMongoDouble(t)
  const questions: Array<(appName: string) => void> = []
  const connection = () =>
    new Promise<{ appName: string }>((resolve) => questions.push((appName) => resolve({ appName })))
  const made = mongodb({ url: server.url, connection })
  await until(() => questions.length === 1)
  questions[0]!('first')
  const connector = await made
  t.teardown(() => connector.close!())
  const creates = [connector.create(later), connector.create(later)]
  await until(() => questions.length === 3)
  questions[2]!('second')
  await creates[1]
  questions[1]!('first')
  await creates[0]
  t.equal(connector.client.options.appName, 'second')
  t.equal((await creates[0])!.client, connector.client)
})

t.test('on the double: a client that never worked is closed at once when there is another answer', async (t) => {
  const { server, connector, answers, rotate } = await rotating(t)
  server.setPassword('not told yet')
  await t.rejects(connector.create(later), { code: 18 })
  const old = connector.client
  rotate()
  const db = await connector.create(later)
  t.equal(await connector.validate!(db, later), true)
  t.ok(await isClosed(old))
  t.equal(answers.asked, 3)
})

t.test('on the double: while a client connects that nobody wants any more another answer is served', async (t) => {
  const server = await startMongoDouble(t)
  const proxy = await startProxy(t, server.members[0]!)
  proxy.silence()
  let url = direct(proxy)
  const connector = await connect(t, { url: () => url, connectTimeout: 300 })
  const controller = new AbortController()
  const create = connector.create(controller.signal)
  await until(() => proxy.connections.open > 0)
  const old = connector.client
  url = server.url
  const db = await connector.create(later)
  t.not(db.client, old)
  controller.abort(new Error('time is up'))
  await t.rejects(create, { message: 'time is up' })
  await until(() => isClosed(old))
  await until(() => proxy.connections.open === 0)
  t.notOk(connector.isBroken!(db))
})

t.test('on the double: that an old client did not close is told by whoever closes it, and at the end where that was nobody', async (t) => {
  const server = await startMongoDouble(t)
  let answers = 0
  const connector = await mongodb({ url: server.url, connection: () => ({ appName: `app-${answers}` }) })
  const spoilt: Client[] = []
  t.teardown(() => Promise.all(spoilt.map((client) => MongoClient.prototype.close.call(client))))
  const spoil = () => {
    spoilt.push(connector.client)
    Object.assign(connector.client, { close: () => Promise.reject(new Error(`not closed: ${answers}`)) })
  }
  const db = await connector.create(later)
  spoil()
  answers++
  await connector.destroy(await connector.create(later), 'idle')
  await t.rejects(async () => connector.destroy(db, 'stale'), { message: 'not closed: 1' })
  spoil()
  answers++
  t.notOk(connector.isBroken!(await connector.create(later)))
  await t.rejects(async () => connector.close!(), { message: 'not closed: 2' })
})

t.test('on the double: passwords of all answers are secrets, and in no event or error', async (t) => {
  const { server, connector, rotate, events } = await rotating(t)
  const pool = new Pool<Db>(connector, { max: 1 })
  t.teardown(() => pool.close())
  const errors: unknown[] = []
  pool.on('error', ({ error }) => { errors.push(error) })
  const { secrets } = connector
  rotate()
  await pool.use((db) => db.command({ ping: 1 }))
  t.not(connector.secrets, secrets)
  for (const password of ['p4ssword-1', 'p4ssword-2']) t.ok(connector.secrets.includes(password), password)
  server.setPassword('p4ssword-4')
  pool.evict()
  await server.resetAll()
  await pool.use((db) => db.command({ ping: 1 })).catch((error: unknown) => errors.push(String(error)))
  t.notMatch(JSON.stringify([events, errors.map(String)]), /p4ssword/)
})

t.test('a function that fails, hangs or answers nonsense fails the create, and the first one of all the connector itself', async (t) => {
  const server = await startMongoDouble(t)
  let answer: unknown = server.url
  const url = () => typeof answer === 'function' ? (answer as () => string)() : answer as string
  const connector = await connect(t, { url })
  const nonsense = [undefined, '', 5, 'mongodb//me:s3cret@h', 'mongodb://h/?maxPoolSize=5']
  for (answer of nonsense) {
    await t.rejects(connector.create(later),
      { code: 'FST_POOL_BAD_OPTIONS', message: /^option url/ })
  }
  for (answer of nonsense) await t.rejects(mongodb({ url }), { code: 'FST_POOL_BAD_OPTIONS', message: /^option url/ })
  answer = () => { throw new Error('no vault today') }
  await t.rejects(connector.create(later), { message: 'no vault today' })
  await t.rejects(mongodb({ url }),
    { code: 'FST_POOL_CONNECT_FAILED', message: /no vault today/, cause: { message: 'no vault today' } })
  answer = () => new Promise(() => {})
  await t.rejects(connector.create(AbortSignal.abort(new Error('too late'))), { message: 'too late' })
  const controller = new AbortController()
  const create = connector.create(controller.signal)
  controller.abort(new Error('time is up'))
  await t.rejects(create, { message: 'time is up' })
  await t.rejects(mongodb({ url, connectTimeout: 20 }), { code: 'FST_POOL_CONNECT_FAILED' })
  answer = server.url
  t.notOk(connector.isBroken!(await connector.create(later)), 'and none of it lasts')
  const client = new MongoClient(server.url)
  await t.rejects(mongodb({ client, url }), { code: 'FST_POOL_BAD_OPTIONS' })
  await t.rejects(mongodb({ client, connection: () => ({}) }), { code: 'FST_POOL_BAD_OPTIONS' })
  const asked = connector.create(later)
  await connector.close!()
  await t.rejects(asked, /closed/, 'nor is a client made behind the back of a close')
})

// --- Transactions ----------------------------------------------------------------------------------------------------

const begin = (connector: MongoConnector, db: Db, options: TransactionOptions = {}) =>
  connector.transactions.begin(db, options, later)
const notSupported = { name: 'PoolError', code: 'FST_POOL_NOT_SUPPORTED' }
const hasEnded = { name: 'PoolError', code: 'FST_POOL_TRANSACTION_ENDED' }

interface Opened { server: MongoDouble, connector: MongoConnector, db: Db, transaction: Transaction<Db> }

/** One that is begun, on a double. */
async function opened (
  t: Test, options: MongoDoubleOptions = {}, more: Omit<MongoOptions, 'url'> = {}
): Promise<Opened> {
  const { double: server, connector } = await double(t, options, more)
  const db = await connector.create(later)
  await db.collection('items').createIndex({ n: 1 }, { unique: true })
  await db.collection('items').insertMany([{ n: 1 }, { n: 2 }, { n: 3 }])
  server.log.length = 0
  return { server, connector, db, transaction: await begin(connector, db) }
}

const numbers = (server: MongoDouble) => server.documents('test', 'items').map(({ n }) => n)
/** Those commands in which the driver began a transaction. */
const starts = (server: MongoDouble) => server.log.filter(({ startTransaction }) => startTransaction)
const names = (server: MongoDouble) => server.log.map(({ command }) => command)
const failure = (work: Promise<unknown>): Promise<unknown> =>
  work.then(() => { throw new Error('it did not fail') }, (error: unknown) => error)

/** Else operations side by side would go one after the other, for want of sockets. */
async function openSockets (server: MongoDouble, db: Db, count: number): Promise<void> {
  const hold = server.hold('find')
  const finds = Array.from({ length: count }, () => db.collection('items').findOne({}))
  await hold.arrived(count)
  hold.release()
  await Promise.all(finds)
  server.log.length = 0
}

/** By the command that it sends. What a server refuses in a transaction it must still be asked within it. */
const operations: Record<string, (db: Db) => Promise<unknown>> = {
  insertOne: (db) => db.collection('items').insertOne({ n: 10 }),
  insertMany: (db) => db.collection('items').insertMany([{ n: 10 }, { n: 11 }]),
  updateOne: (db) => db.collection('items').updateOne({ n: 1 }, { $set: { m: 1 } }),
  updateMany: (db) => db.collection('items').updateMany({}, { $set: { m: 1 } }),
  replaceOne: (db) => db.collection('items').replaceOne({ n: 1 }, { n: 10 }),
  deleteOne: (db) => db.collection('items').deleteOne({ n: 1 }),
  deleteMany: (db) => db.collection('items').deleteMany({}),
  findOne: (db) => db.collection('items').findOne({ n: 1 }),
  'find, in batches': (db) => db.collection('items').find({}, { batchSize: 1 }).toArray(),
  'find, closed early': async (db) => {
    const cursor = db.collection('items').find({}, { batchSize: 1 })
    await cursor.next()
    await cursor.close()
  },
  'find, as a stream': (db) => db.collection('items').find({}).stream().toArray(),
  findOneAndUpdate: (db) => db.collection('items').findOneAndUpdate({ n: 1 }, { $set: { m: 1 } }),
  findOneAndReplace: (db) => db.collection('items').findOneAndReplace({ n: 1 }, { n: 10 }),
  findOneAndDelete: (db) => db.collection('items').findOneAndDelete({ n: 1 }),
  countDocuments: (db) => db.collection('items').countDocuments({}),
  estimatedDocumentCount: (db) => db.collection('items').estimatedDocumentCount(),
  distinct: (db) => db.collection('items').distinct('n'),
  aggregate: (db) => db.collection('items').aggregate([{ $match: { n: 1 } }]).toArray(),
  'aggregate of a database': (db) => db.aggregate([{ $documents: [] }]).toArray(),
  bulkWrite: (db) => db.collection('items')
    .bulkWrite([{ insertOne: { document: { n: 10 } } }, { deleteOne: { filter: { n: 1 } } }]),
  'an ordered bulk': (db) => db.collection('items').initializeOrderedBulkOp().insert({ n: 10 }).find({ n: 1 })
    .deleteOne().execute(),
  'an unordered bulk': (db) => db.collection('items').initializeUnorderedBulkOp().insert({ n: 10 }).find({ n: 1 })
    .deleteOne().execute(),
  'bulkWrite of the client': (db) => db.client.bulkWrite([{
    namespace: 'test.items', name: 'insertOne', document: { n: 10 },
  }]),
  'another database of the client': (db) => db.client.db('other').collection('items').insertOne({ n: 10 }),
  command: (db) => db.command({ insert: 'items', documents: [{ n: 10 }] }),
  runCursorCommand: (db) => db.runCursorCommand({ find: 'items', batchSize: 1 }).toArray(),
  listCollections: (db) => db.listCollections().toArray(),
  collections: (db) => db.collections(),
  'admin().listDatabases': (db) => db.admin().listDatabases(),
  'admin().command': (db) => db.admin().command({ buildInfo: 1 }),
  stats: (db) => db.stats(),
  createCollection: (db) => db.createCollection('more'),
  rename: (db) => db.collection('items').rename('others'),
  drop: (db) => db.collection('items').drop(),
  dropDatabase: (db) => db.dropDatabase(),
  createIndex: (db) => db.collection('items').createIndex({ m: 1 }),
  indexes: (db) => db.collection('items').indexes(),
  dropIndexes: (db) => db.collection('items').dropIndexes(),
  createSearchIndex: (db) => db.collection('items').createSearchIndex({ definition: { mappings: { dynamic: true } } }),
  listSearchIndexes: (db) => db.collection('items').listSearchIndexes().toArray(),
  watch: async (db) => {
    const stream = db.collection('items').watch()
    await stream.next().finally(() => stream.close())
  },
  'an upload to GridFS': async (db) => {
    const upload = new GridFSBucket(db).openUploadStream('a.txt')
    const finished = once(upload, 'finish')
    upload.end('text')
    await finished
  },
  'a download from GridFS': async (db) => {
    const id = new ObjectId()
    await db.collection('fs.files').insertOne({ _id: id, filename: 'a.txt', length: 4, chunkSize: 4 })
    await db.collection('fs.chunks').insertOne({ files_id: id, n: 0, data: new Binary(Buffer.from('text')) })
    const [chunk] = await new GridFSBucket(db).openDownloadStreamByName('a.txt').toArray() as Buffer[]
    if (String(chunk) !== 'text') throw new Error('that is not what was put there')
  },
  'find of GridFS': (db) => new GridFSBucket(db).find().toArray(),
}

const codeOf = (error: unknown) => {
  const { code, cause } = error as { code?: unknown, cause?: { code?: unknown } }
  return code ?? cause?.code
}

t.test('on the double: whatever is called on the Db of a transaction is in it, without being told', async (t) => {
  const concerns = {
    writeConcern: { w: 1, journal: true }, readConcernLevel: 'majority', readPreference: 'secondaryPreferred',
  }
  const { server, connector, db, transaction } = await opened(t, {}, { connection: concerns })
  await transaction.rollback()
  for (const [name, run] of Object.entries(operations)) {
    server.log.length = 0
    const transaction = await begin(connector, db)
    // What servers do not allow in a transaction (263), and what the double does not know (59, 238, 40324), but nothing
    // of the driver's own.
    await run(transaction.connection).catch((error: unknown) => {
      t.ok([59, 238, 251, 263, 40324].some((code) => code === codeOf(error)),
        `${name} is refused by the server: ${String(error)}`)
    })
    const sent = server.log.filter(({ command }) => command !== 'abortTransaction')
    t.ok(sent.length > 0, `${name} sends ${sent.map(({ command }) => command).join(', ')}`)
    const [{ lsid, txnNumber } = {}] = sent
    t.type(lsid, 'string')
    t.type(txnNumber, 'number')
    for (const [index, entry] of sent.entries()) {
      const { startTransaction, body: { readConcern, writeConcern } } = entry
      t.match(entry, { lsid, txnNumber, autocommit: false }, `${name}: ${entry.command}`)
      const expected = index === 0 ? [true, { level: 'majority' }] : [undefined, undefined]
      t.strictSame([startTransaction, readConcern, writeConcern], [...expected, undefined],
        'with the concerns of the transaction only')
    }
    await transaction.rollback()
    t.equal(server.openTransactions, 0)
  }
  t.strictSame(numbers(server), [1, 2, 3])
  t.equal(server.openCursors, 0)
})

for (const [on, start, skip] of [
  ['on the double', async (t: Test) => (await startMongoDouble(t)).url, false],
  [`on ${how}, transactions`, async () => real!.url, real?.kind !== 'mongod' && 'needs a real replica set'],
] as const) {
  t.test(`${on}: a transaction is done as a whole or not at all, on its own, and knows its end`, { skip }, async (t) => {
    const connector = await connect(t, { url: await start(t), database: 'transactions' })
    const [one, two] = [await connector.create(later), await connector.create(later)]
    const items = one.collection('items')
    await one.dropDatabase()
    await items.insertMany([1, 2, 3].map((n) => ({ n, by: 'nobody' })))
    const sorted = async (db: Db) => (await db.collection('items').find({}, { sort: { n: 1 } }).toArray())
      .map(({ n }) => Number(n))

    const first = await begin(connector, one)
    const own = first.connection.collection('items')
    await Promise.all([4, 5, 6, 7].map((n) => own.insertOne({ n })))
    await own.bulkWrite([{ insertOne: { document: { n: 8 } } }, { deleteOne: { filter: { n: 1 } } }])
    t.strictSame([await sorted(first.connection), await sorted(one)], [[2, 3, 4, 5, 6, 7, 8], [1, 2, 3]])
    await first.commit()
    t.strictSame(await sorted(one), [2, 3, 4, 5, 6, 7, 8])
    await t.rejects(own.insertOne({ n: 9 }), hasEnded)

    const undone = await begin(connector, one)
    await undone.connection.collection('items').deleteMany({})
    await undone.rollback()
    t.strictSame(await sorted(one), [2, 3, 4, 5, 6, 7, 8])

    const [winner, loser] = [await begin(connector, one, { isolation: 'snapshot' }), await begin(connector, two)]
    await winner.connection.collection('items').updateOne({ n: 2 }, { $set: { by: 'winner' } })
    const conflict = await failure(loser.connection.collection('items').updateOne({ n: 2 }, { $set: { by: 'loser' } }))
    t.match(conflict, { code: 112 })
    t.ok(connector.transactions.isTransient(conflict))
    await t.rejects(loser.commit(), { code: 251 }, 'and who caught that has committed nothing')
    await loser.rollback()
    await winner.commit()
    t.match(await items.findOne({ n: 2 }), { by: 'winner' })
    t.strictSame(await sorted(two), [2, 3, 4, 5, 6, 7, 8])
  })
}

t.test('on the double: what was done in a transaction is seen by it alone until its commit, and by all at once then', async (t) => {
  const { server, connector, db, transaction } = await opened(t)
  const other = await begin(connector, await connector.create(later))
  await other.connection.collection('items').findOne({})
  const items = transaction.connection.collection('items')
  await items.insertOne({ n: 4 })
  await items.deleteOne({ n: 1 })
  t.strictSame(await items.distinct('n'), [2, 3, 4])
  t.strictSame(await db.collection('items').distinct('n'), [1, 2, 3], 'nor by the connection that it was begun on')
  await transaction.commit()
  t.strictSame(await db.collection('items').distinct('n'), [2, 3, 4])
  t.strictSame(await other.connection.collection('items').distinct('n'), [1, 2, 3],
    'another one sees what was there when it began')
  await other.commit()
  t.equal(server.openTransactions, 0)
  const own = server.log.find(({ command, autocommit }) => command === 'distinct' && autocommit === undefined)
  t.match(own, { txnNumber: undefined, startTransaction: undefined }, 'outside of it there is no transaction')
})

t.test('on the double: a rollback leaves nothing behind', async (t) => {
  const { server, transaction } = await opened(t)
  await transaction.connection.collection('items').deleteMany({})
  t.equal(server.openTransactions, 1)
  await Promise.all([transaction.rollback(), transaction.rollback()])
  await transaction.rollback()
  t.equal(server.openTransactions, 0)
  t.strictSame(numbers(server), [1, 2, 3])
  t.equal(names(server).filter((name) => name === 'abortTransaction').length, 1)
})

t.test('on the double: first operations side by side begin one transaction, and each is done', async (t) => {
  const { server, db, transaction } = await opened(t)
  await openSockets(server, db, 4)
  const items = transaction.connection.collection('items')
  const hold = server.hold('insert')
  const inserts = Promise.all([4, 5, 6, 7].map((n) => items.insertOne({ n })))
  await hold.reached
  hold.release()
  await inserts
  t.equal(starts(server).length, 1)
  await transaction.commit()
  t.strictSame(numbers(server), [1, 2, 3, 4, 5, 6, 7])
})

/** Whether this driver sends again by itself what an overloaded server refused: then it has an option for how often. */
const sendsAgain = (() => {
  try {
    return new MongoClient('mongodb://127.0.0.1/', { maxAdaptiveRetries: 1 } as object) !== undefined
  } catch {
    // It does not know the option.
    return false
  }
})()

const first = 'on the double: of first operations that an overloaded server refuses one '
t.test(first + (sendsAgain ? 'begins the transaction later' : 'fails, as does what follows'), async (t) => {
  const { server, transaction } = await opened(t)
  const items = transaction.connection.collection('items')
  const labels = ['RetryableError', 'SystemOverloadedError']
  const fault = server.failCommand({ commands: 'insert', code: 462, labels })
  const errors = reasons(await Promise.allSettled([4, 5, 6].map((n) => items.insertOne({ n }))))
  t.equal(fault.hits, 1)
  if (sendsAgain) {
    t.strictSame(errors, [])
    await transaction.commit()
    t.equal(starts(server).length, 2, 'the one that was refused, and one that was not')
    t.same(numbers(server).sort(), [1, 2, 3, 4, 5, 6])
  } else {
    t.strictSame(errors.map(({ code }) => code), [462, 251, 251],
      'the driver takes it for begun, and the server does not')
    t.equal(await failure(transaction.commit()), errors[0])
    t.strictSame(numbers(server), [1, 2, 3])
  }
})

t.test('on the double: operations side by side are sent one after the other', async (t) => {
  const { server, db, transaction } = await opened(t)
  await openSockets(server, db, 4)
  const hold = server.hold('update')
  const updates =
    Promise.all([1, 2, 3].map((n) => transaction.connection.collection('items').updateOne({ n }, { $set: { m: n } })))
  await hold.reached
  await db.collection('items').findOne({})
  t.strictSame(names(server), ['update', 'find'])
  hold.release()
  await updates
  await transaction.commit()
})

t.test('on the double: a first operation that never got a socket leaves it to the next one to begin the transaction', async (t) => {
  const { server, db, transaction } = await opened(t, {}, { max: 1, acquireTimeout: 300 })
  const items = transaction.connection.collection('items')
  const hold = server.hold({ commands: 'find', where: ({ autocommit }) => autocommit === undefined })
  const find = db.collection('items').findOne({})
  await hold.reached
  await t.rejects(items.insertOne({ n: 4 }), { name: 'MongoWaitQueueTimeoutError' })
  hold.release()
  await find
  await items.insertOne({ n: 5 })
  await transaction.commit()
  t.equal(starts(server).length, 1)
  t.strictSame(numbers(server), [1, 2, 3, 5])
})

t.test('on the double: a first operation whose signal has aborted is not sent, and the next one begins the transaction', async (t) => {
  const { server, transaction } = await opened(t)
  const items = transaction.connection.collection('items')
  await t.rejects(items.find({}, { signal: AbortSignal.abort(new Error('too late')) }).toArray(),
    { message: 'too late' })
  await t.rejects(transaction.connection.command({ ping: 1 }, { signal: AbortSignal.abort(new Error('too late')) }),
    { message: 'too late' })
  await items.insertOne({ n: 4 })
  await transaction.commit()
  t.strictSame(names(server), ['insert', 'commitTransaction'])
})

t.test('on the double: after a first operation that can not be written nothing hangs, and nothing is committed', async (t) => {
  const { server, transaction } = await opened(t)
  const circular: Record<string, unknown> = { n: 4 }
  circular.self = circular
  await t.rejects(transaction.connection.collection('items').insertOne(circular), { name: 'BSONError' })
  await t.rejects(transaction.commit(), { code: 251 })
  await transaction.rollback()
  t.strictSame(numbers(server), [1, 2, 3])
})

t.test('on the double: a cursor that nobody reads, and one that is not read to its end, are in nobody\'s way', async (t) => {
  const { server, transaction } = await opened(t)
  const items = transaction.connection.collection('items')
  items.find({})
  const cursor = items.find({}, { batchSize: 1 })
  t.match(await cursor.next(), { n: 1 })
  await items.insertOne({ n: 4 })
  await transaction.commit()
  t.strictSame(names(server), ['find', 'insert', 'commitTransaction'])
  await t.rejects(cursor.next(), { name: 'MongoExpiredSessionError' }, 'it ends with the transaction')
  await cursor.close()
})

t.test('on the double: a commit of nothing sends nothing', async (t) => {
  const { server, transaction } = await opened(t)
  await transaction.commit()
  await transaction.rollback()
  t.strictSame(names(server), [])
})

t.test('on the double: a commit waits for what nobody waited for', async (t) => {
  const { server, transaction } = await opened(t)
  const items = transaction.connection.collection('items')
  const hold = server.hold('insert')
  const inserts = Promise.all([items.insertOne({ n: 4 }), items.insertOne({ n: 5 })])
  const commit = transaction.commit()
  await hold.reached
  hold.release()
  await commit
  t.strictSame(numbers(server), [1, 2, 3, 4, 5])
  await inserts
})

t.test('on the double: a rollback waits for the operation that the server works at, and refuses those behind it', async (t) => {
  const { server, transaction } = await opened(t)
  const items = transaction.connection.collection('items')
  const hold = server.hold('insert')
  const [first, second] = [items.insertOne({ n: 4 }), t.rejects(items.insertOne({ n: 5 }), hasEnded)]
  await hold.reached
  const rollback = transaction.rollback()
  hold.release()
  await Promise.all([first, second, rollback])
  t.strictSame(names(server), ['insert', 'abortTransaction'])
  t.equal(server.openTransactions, 0)
  t.strictSame(numbers(server), [1, 2, 3])
})

for (const end of ['commit', 'rollback'] as const) {
  t.test(`on the double: after the ${end} the Db that was kept does nothing any more, inside or outside of a transaction`, async (t) => {
    const { server, db, transaction } = await opened(t)
    const kept = transaction.connection
    const items = kept.collection('items')
    const bulk = items.initializeOrderedBulkOp().insert({ n: 6 })
    await items.insertOne({ n: 4 })
    await transaction[end]()
    server.log.length = 0
    await t.rejects(items.insertOne({ n: 5 }), hasEnded)
    await t.rejects(items.find({}).toArray(), hasEnded)
    await t.rejects(kept.command({ ping: 1 }), hasEnded)
    await t.rejects(bulk.execute(), hasEnded)
    await t.rejects(items.bulkWrite([{ insertOne: { document: { n: 6 } } }]), hasEnded)
    await t.rejects(transaction.commit().then(() => kept.collection('new').insertOne({})), /open|abort/)
    t.strictSame(names(server), [])
    await db.collection('items').insertOne({ n: 7 })
    t.match(server.log, [{ command: 'insert', autocommit: undefined }], 'and the connection itself works')
  })
}

t.test('on the double: isolation snapshot and the write concern of the url go where they belong, and all goes to the primary', async (t) => {
  const server = await startMongoDouble(t, { members: 3 })
  const connector = await connect(t, { url: `${server.url}&w=majority&readPreference=secondaryPreferred` })
  const transaction = await begin(connector, await connector.create(later), { isolation: 'snapshot' })
  const items = transaction.connection.collection('items')
  await items.findOne({})
  await items.insertOne({ n: 4 })
  await items.findOneAndUpdate({ n: 4 }, { $set: { n: 5 } })
  await transaction.commit()
  const sent = server.log.filter(({ autocommit }) => autocommit === false)
  t.match(sent, [{ member: 0 }, { member: 0 }, { member: 0 }, {
    command: 'commitTransaction', body: { writeConcern: { w: 'majority' } },
  }])
  t.match(sent.map(({ body }) => body.readConcern), [{ level: 'snapshot' }, undefined, undefined, undefined])
  t.match(sent.slice(0, 3).map(({ body }) => body.writeConcern), [undefined, undefined, undefined])
})

t.test('on the double: of two transactions that write the same document the second is given up, and can be run again', async (t) => {
  const { server, connector, transaction } = await opened(t)
  const other = await begin(connector, await connector.create(later))
  await transaction.connection.collection('items').updateOne({ n: 1 }, { $set: { m: 1 } })
  const error = await failure(other.connection.collection('items').updateOne({ n: 1 }, { $set: { m: 2 } }))
  t.match(error, { code: 112 })
  t.ok(connector.transactions.isTransient(error))
  await other.rollback()
  await transaction.commit()
  t.match(server.documents('test', 'items')[0], { n: 1, m: 1 })
  for (const error of [new Error('another'), undefined, 'text',
    { hasErrorLabel: 1 }]) t.notOk(connector.transactions.isTransient(error))
})

t.test('on the double: an error that was caught is an error at the commit', async (t) => {
  const { server, connector, transaction } = await opened(t)
  const items = transaction.connection.collection('items')
  await items.insertOne({ n: 4 })
  await t.rejects(items.insertOne({ n: 1 }), { code: 11000 })
  const error = await failure(transaction.commit())
  t.match(error, { code: 251, codeName: 'NoSuchTransaction' })
  t.ok(connector.transactions.isTransient(error), 'with the labels of the server')
  await transaction.rollback()
  t.strictSame(numbers(server), [1, 2, 3])
})

t.test('on the double: a step-down ends transactions, which can be run again', async (t) => {
  const { server, connector, transaction } = await opened(t, { members: 3 })
  await transaction.connection.collection('items').insertOne({ n: 4 })
  server.stepDown()
  const error = await failure(transaction.commit())
  t.ok(connector.transactions.isTransient(error))
  await transaction.rollback()
  t.strictSame(numbers(server), [1, 2, 3])
})

t.test('on the double: a commit whose answer was lost is asked for again', async (t) => {
  const { server, transaction } = await opened(t)
  await transaction.connection.collection('items').insertOne({ n: 4 })
  server.failCommand({ commands: 'commitTransaction', closeConnection: true, when: 'after' })
  await transaction.commit()
  t.strictSame(numbers(server), [1, 2, 3, 4])
  t.match(server.log.filter(({ command }) => command === 'commitTransaction'),
    [{}, { body: { writeConcern: { w: 'majority' } } }])
})

t.test('on the double: where nobody knows whether it was committed the commit fails, and must not be run again', async (t) => {
  const { connector, server, transaction } = await opened(t)
  await transaction.connection.collection('items').insertOne({ n: 4 })
  server.failCommand({ commands: 'commitTransaction', closeConnection: true, when: 'after', times: 2 })
  const error = await failure(transaction.commit())
  t.ok((error as MongoError).hasErrorLabel('UnknownTransactionCommitResult'))
  t.notOk(connector.transactions.isTransient(error))
  await transaction.rollback()
  t.notOk(names(server).includes('abortTransaction'))
})

/** Several transactions of one client, each with a document of its own. */
async function side (
  t: Test, count: number, more: Omit<MongoOptions, 'url'> = {}
): Promise<Opened & { transactions: Array<Transaction<Db>> }> {
  const opening = await opened(t, {}, more)
  const { connector, server, db, transaction } = opening
  await openSockets(server, db, count)
  const transactions = [transaction]
  while (transactions.length < count) transactions.push(await begin(connector, await connector.create(later)))
  return { ...opening, transactions }
}

/** All of these commands arrive, and then the sockets of all die together, executed or not. */
async function loseTogether (
  server: MongoDouble, command: string, count: number, when: 'before' | 'after', work: () => Array<Promise<unknown>>
): Promise<Array<PromiseSettledResult<unknown>>> {
  const hold = server.hold(command)
  server.failCommand({ commands: command, closeConnection: true, when, times: count })
  const all = Promise.allSettled(work())
  await hold.arrived(count)
  hold.release()
  return await all
}

const reasons = (results: Array<PromiseSettledResult<unknown>>) =>
  results.flatMap((one) => one.status === 'rejected' ? [one.reason as MongoError] : [])

t.test('on the double: commits whose answers are lost together, with their sockets, are each asked for again', async (t) => {
  const { server, transactions } = await side(t, 4)
  for (const [n, { connection }] of transactions.entries()) {
    await connection.collection('items')
      .insertOne({ n: 10 + n })
  }
  const results =
    await loseTogether(server, 'commitTransaction', 4, 'after', () => transactions.map((one) => one.commit()))
  t.strictSame(reasons(results), [], 'the driver labels the error of the first socket only')
  t.strictSame(numbers(server), [1, 2, 3, 10, 11, 12, 13])
})

t.test('on the double: commits whose second answers are lost too say that nobody knows, each', async (t) => {
  const { connector, server, transactions } = await side(t, 4)
  for (const [n, { connection }] of transactions.entries()) {
    await connection.collection('items')
      .insertOne({ n: 10 + n })
  }
  server.failCommand({ commands: 'commitTransaction', closeConnection: true, when: 'after', times: Infinity, where: ({ body }) => Boolean(body.writeConcern) })
  const results =
    await loseTogether(server, 'commitTransaction', 4, 'after', () => transactions.map((one) => one.commit()))
  const errors = reasons(results)
  t.equal(errors.length, 4)
  for (const error of errors) {
    t.ok(error.hasErrorLabel('UnknownTransactionCommitResult'), String(error))
    t.notOk(connector.transactions.isTransient(error))
  }
  t.strictSame(numbers(server), [1, 2, 3, 10, 11, 12, 13])
})

t.test('on the double: a commit that can not be asked for again says that nobody knows', async (t) => {
  const { connector, server, transaction } = await opened(t, {}, { acquireTimeout: 300, connectTimeout: 300 })
  await transaction.connection.collection('items').insertOne({ n: 4 })
  const hold = server.hold('commitTransaction')
  server.failCommand({ commands: 'commitTransaction', closeConnection: true, when: 'after' })
  const commit = failure(transaction.commit())
  await hold.reached
  server.failCommand({ commands: 'hello', closeConnection: true, times: Infinity })
  hold.release()
  const error = await commit
  t.match(error, { name: 'MongoServerSelectionError' })
  t.ok((error as MongoError).hasErrorLabel('UnknownTransactionCommitResult'))
  t.notOk(connector.transactions.isTransient(error))
  t.strictSame(numbers(server), [1, 2, 3, 4])
})

const always = !sendsAgain &&
  'this driver has no option by which it may not: without maxAdaptiveRetries it asks once more'
t.test('on the double: a commit that the driver may not ask for again says that nobody knows', { skip: always }, async (t) => {
  const { server, transaction } = await opened(t, {}, { connection: { maxAdaptiveRetries: 0 } })
  await transaction.connection.collection('items').insertOne({ n: 4 })
  server.failCommand({ commands: 'commitTransaction', closeConnection: true, when: 'after' })
  const error = await failure(transaction.commit())
  t.ok((error as MongoError).hasErrorLabel('UnknownTransactionCommitResult'))
  t.strictSame(numbers(server), [1, 2, 3, 4])
})

t.test('on the double: a commit that the server refuses is no unknown one', async (t) => {
  const { server, transaction } = await opened(t)
  await transaction.connection.collection('items').insertOne({ n: 4 })
  server.failCommand({ commands: 'commitTransaction', code: 8000, message: 'no' })
  const error = await failure(transaction.commit())
  t.match(error, { code: 8000 })
  t.notOk((error as MongoError).hasErrorLabel('UnknownTransactionCommitResult'))
})

t.test('on the double: operations whose sockets die together can be run again, each with its transaction', async (t) => {
  const { connector, server, transactions } = await side(t, 4)
  const results = await loseTogether(server, 'insert', 4, 'before', () =>
    transactions.map(({ connection }, n) => connection.collection('items').insertOne({ n: 10 + n })))
  const errors = reasons(results)
  t.equal(errors.length, 4)
  for (const error of errors) t.ok(connector.transactions.isTransient(error), String(error))
})

t.test('on the double: rollbacks whose sockets die together are each asked for again', async (t) => {
  const { server, transactions } = await side(t, 4)
  for (const [n, { connection }] of transactions.entries()) {
    await connection.collection('items')
      .insertOne({ n: 10 + n })
  }
  await loseTogether(server, 'abortTransaction', 4, 'before', () => transactions.map((one) => one.rollback()))
  t.equal(server.openTransactions, 0, 'none waits for the end of its lifetime, with its locks')
})

t.test('on the double: an operation whose answer was lost is an error at the commit, even if it was caught', async (t) => {
  const { connector, server, transaction } = await opened(t)
  const items = transaction.connection.collection('items')
  await items.insertOne({ n: 4 })
  server.failCommand({ commands: 'insert', closeConnection: true, when: 'after' })
  const lost = await failure(items.insertOne({ n: 5 }))
  const error = await failure(transaction.commit())
  t.equal(error, lost, 'nobody knows whether it would be committed too')
  t.ok(connector.transactions.isTransient(error))
  await transaction.rollback()
  t.equal(server.openTransactions, 0)
  t.strictSame(numbers(server), [1, 2, 3])
})

t.test('on the double: an operation that nobody waited for and an overloaded server refused makes the commit fail', async (t) => {
  const { server, transaction } = await opened(t)
  const items = transaction.connection.collection('items')
  await items.insertOne({ n: 4 })
  const fault = server.failCommand({
    commands: 'insert', code: 462, labels: ['RetryableError', 'SystemOverloadedError'],
  })
  const insert = failure(items.insertOne({ n: 5 }))
  const error = await failure(transaction.commit())
  t.match(error, { code: 462 }, 'a driver that sends it again waits, and would do so when the commit has been sent')
  t.equal(fault.hits, 1)
  await transaction.rollback()
  t.match(await insert, sendsAgain ? hasEnded : { code: 462 })
  t.strictSame(numbers(server), [1, 2, 3])
  t.notOk(names(server).includes('commitTransaction'))
})

t.test('on the double: a commit waits for all batches of a bulk that nobody waited for', async (t) => {
  const { server, transaction } = await opened(t)
  const bulk = transaction.connection.collection('items').bulkWrite([
    { insertOne: { document: { n: 4 } } }, { deleteOne: { filter: { n: 1 } } }, { insertOne: { document: { n: 5 } } },
  ])
  await transaction.commit()
  t.strictSame(numbers(server), [2, 3, 4, 5])
  await bulk
})

t.test('on the double: a collection with concerns of its own is in the transaction, without them', async (t) => {
  const { server, connector, db } = await opened(t, { members: 3 })
  const concerns: CollectionOptions[] = [
    { readPreference: 'secondary' }, { readPreference: ReadPreference.SECONDARY_PREFERRED },
    { readConcern: { level: 'majority' } },
    { writeConcern: { w: 0 } }, { writeConcern: { w: 'majority' } }, { writeConcern: { w: 1, journal: true } },
  ]
  const work: Record<string, (items: Collection, db: Db) => Promise<unknown>> = {
    insertOne: (items) => items.insertOne({ n: 10 }),
    updateOne: (items) => items.updateOne({ n: 1 }, { $set: { m: 1 } }),
    deleteOne: (items) => items.deleteOne({ n: 1 }),
    findOneAndUpdate: (items) => items.findOneAndUpdate({ n: 1 }, { $set: { m: 1 } }),
    bulkWrite: (items) => items.bulkWrite([{ insertOne: { document: { n: 10 } } }]),
    findOne: (items) => items.findOne({ n: 1 }),
    aggregate: (items) => items.aggregate([{ $match: { n: 1 } }]).toArray(),
    distinct: (items) => items.distinct('n'),
    countDocuments: (items) => items.countDocuments(),
  }
  for (const options of concerns) {
    for (const [name, run] of Object.entries(work)) {
      const of =
        {
          collection: () => transaction.connection.collection('items', options),
          database: () => database()
            .collection('items')
        }
      const database = () => transaction.connection.client.db('test', options as DbOptions)
      let transaction = await begin(connector, db)
      for (const [whose, items] of Object.entries(of)) {
        const what = `${name}, ${JSON.stringify(options)} of the ${whose}`
        server.log.length = 0
        await t.resolves(run(items(), database()), what)
        t.match(server.log,
          [{
            autocommit: false,
            startTransaction: true,
            member: 0,
            body: { writeConcern: undefined, readConcern: undefined }
          }], what)
        await transaction.rollback()
        transaction = await begin(connector, db)
      }
      await transaction.rollback()
    }
  }
})

t.test('on the double: concerns of an operation are left out, but for a read preference, which the driver refuses', async (t) => {
  const { server, connector, db } = await opened(t)
  for (const writeConcern of [{ w: 0 }, { w: 'majority' }, { w: 1, j: true }] as const) {
    const transaction = await begin(connector, db)
    const items = transaction.connection.collection('items')
    server.log.length = 0
    t.match(await items.insertOne({ n: 10 }, { writeConcern }), { acknowledged: true })
    await items.findOneAndUpdate({ n: 1 }, { $set: { m: 1 } }, { writeConcern })
    await items.bulkWrite([{ updateOne: { filter: { n: 1 }, update: { $set: { m: 2 } } } }], { writeConcern })
    await items.find({}, { readConcern: 'majority' }).toArray()
    t.equal(server.log.length, 4)
    for (const { body } of server.log) {
      t.match(body,
        { writeConcern: undefined, readConcern: undefined, autocommit: false })
    }
    await t.rejects(items.findOne({}, { readPreference: 'secondary' }), { name: 'MongoTransactionError' })
    await transaction.rollback()
  }
})

t.test('on the double: a write conflict that no label tells of can be run again', async (t) => {
  const { server, connector, db } = await opened(t)
  for (const [name, run] of Object.entries<(db: Db) => Promise<unknown>>({
    updateOne: (db) => db.collection('items').updateOne({ n: 1 }, { $set: { m: 1 } }),
    bulkWrite: (db) => db.collection('items').bulkWrite([{
      updateOne: { filter: { n: 1 }, update: { $set: { m: 1 } } },
    }]),
    'find and update': (db) => db.collection('items').findOneAndUpdate({ n: 1 }, { $set: { m: 1 } }),
    'bulkWrite of the client': (db) => db.client.bulkWrite([{
      namespace: 'test.items', name: 'insertOne', document: { n: 9 },
    }]),
  })) {
    const transaction = await begin(connector, db)
    server.failCommand({ commands: ['update', 'findAndModify', 'bulkWrite'], code: 112, labels: [] })
    t.ok(connector.transactions.isTransient(await failure(run(transaction.connection))), name)
    await transaction.rollback()
  }
})

for (const command of ['commitTransaction', 'abortTransaction']) {
  t.test(`on the double: the borrower's own ${command} is seen at the commit`, async (t) => {
    const { transaction } = await opened(t)
    await transaction.connection.collection('items').insertOne({ n: 4 })
    await transaction.connection.admin().command({ [command]: 1 })
    await t.rejects(transaction.commit(), hasEnded)
    await transaction.rollback()
  })
}

t.test('on the double: sessions that the borrower makes himself are his own', async (t) => {
  const { server, transaction } = await opened(t)
  const { client } = transaction.connection
  await transaction.connection.collection('items').insertOne({ n: 4 })
  const inside = server.log.at(-1)!.lsid
  await client.withSession(async (session) => {
    const hold = server.hold('insert')
    const insert = transaction.connection.collection('items').insertOne({ n: 6 })
    await hold.reached
    await client.db().collection('items').findOne({}, { session })
    t.match(server.log.at(-1), { command: 'find', autocommit: undefined }, 'and wait for nothing of the transaction')
    t.not(server.log.at(-1)!.lsid, inside)
    hold.release()
    await insert
  })
  await client.withSession({ causalConsistency: false }, async (session) => {
    t.notOk(session.supports.causalConsistency)
  })
  const session = client.startSession()
  await session.withTransaction(() => client.db().collection('items').insertOne({ n: 5 }, { session }))
  await session.endSession()
  await transaction.rollback()
  t.strictSame(numbers(server), [1, 2, 3, 5])
})

t.test('on the double: destroy waits for nobody, and the transaction is undone', async (t) => {
  const { server, connector, db, transaction } = await opened(t)
  const items = transaction.connection.collection('items')
  await items.insertOne({ n: 4 })
  const hold = server.hold('update')
  const update = items.updateOne({ n: 1 }, { $set: { m: 1 } })
  await hold.reached
  t.equal(connector.destroy(db, 'aborted'), undefined)
  await t.rejects(items.findOne({}), hasEnded)
  hold.release()
  await update
  await until(() => server.openTransactions === 0)
  t.strictSame(numbers(server), [1, 2, 3])
  await t.rejects(transaction.commit(), hasEnded)
})

t.test('on the double: destroy does not abort what is being committed', async (t) => {
  const { server, connector, db, transaction } = await opened(t)
  await openSockets(server, db, 3)
  await transaction.connection.collection('items').insertOne({ n: 4 })
  const hold = server.hold('commitTransaction')
  const commit = transaction.commit()
  await hold.reached
  connector.destroy(db, 'aborted')
  // What goes out at once has arrived by then.
  await db.collection('items').findOne({})
  hold.release()
  await commit
  await transaction.rollback()
  t.strictSame(numbers(server), [1, 2, 3, 4])
  t.notOk(names(server).includes('abortTransaction'))
})

t.test('on the double: what destroy finds waiting in front of a commit is not committed', async (t) => {
  const { server, connector, db, transaction } = await opened(t)
  const hold = server.hold('insert')
  const insert = transaction.connection.collection('items').insertOne({ n: 4 })
  const commit = t.rejects(transaction.commit(), hasEnded)
  await hold.reached
  connector.destroy(db, 'aborted')
  hold.release()
  await Promise.all([insert, commit, transaction.rollback()])
  t.strictSame(numbers(server), [1, 2, 3])
  t.equal(server.openTransactions, 0)
})

t.test('on the double: close ends what is open, also on a server that says nothing any more', async (t) => {
  const impatient = { connectTimeout: 500, acquireTimeout: 500, connection: { heartbeatFrequencyMS: 500 } }
  const { server, connector, transaction } = await opened(t, {}, impatient)
  await transaction.connection.collection('items').insertOne({ n: 4 })
  server.members[0]!.pause()
  const rollback = transaction.rollback()
  await connector.close!()
  await rollback
  await t.rejects(transaction.connection.collection('items').findOne({}), hasEnded)
})

t.test('on the double: a transaction does not begin where it can not be', async (t) => {
  const server = await startMongoDouble(t)
  const client = new MongoClient(server.url)
  const connector = await connect(t, { client })
  const db = await connector.create(later)
  await t.rejects(connector.transactions.begin(db, {}, AbortSignal.abort(new Error('too late'))),
    { message: 'too late' })
  const { description } = (client as unknown as { topology: { description: object } }).topology
  Object.assign(description, { logicalSessionTimeoutMinutes: null })
  await t.rejects(begin(connector, db), notSupported, 'a server without sessions')
  await client.close()
  await t.rejects(begin(connector, db), { message: 'the MongoDB client is closed' })

  const { url } = server
  const unsure = await connect(t, { url, connection: { w: 0 } })
  await t.rejects(begin(unsure, await unsure.create(later)), { ...notSupported, message: /write concern 0/ })
})

t.test('on the double: a client that the app made has transactions too, and one server of a set that is reached directly', async (t) => {
  const server = await startMongoDouble(t)
  const client = new MongoClient(direct(server.members[0]!))
  t.teardown(() => client.close())
  const connector = await connect(t, { client })
  const transaction = await begin(connector, await connector.create(later))
  await transaction.connection.collection('items').insertOne({ n: 1 })
  await transaction.commit()
  t.match(server.documents('shop', 'items'), [{ n: 1 }])
})

t.test('on the double: a transaction is begun where no server is known just now, and ends in peace', async (t) => {
  const { server, connector, db, transaction } = await opened(t, {}, { acquireTimeout: 500, connectTimeout: 500 })
  await transaction.connection.collection('items').insertOne({ n: 4 })
  await server.members[0]!.kill()
  await until(() => connector.isBroken!(db))
  const other = await begin(connector, db)
  await t.rejects(other.connection.collection('items').findOne({}), { name: 'MongoServerSelectionError' })
  await other.rollback()
  await transaction.rollback()
})

const without = 'without transactions: they are refused, by an error that says so'
t.test(`on the double: a standalone server is ${without}`, async (t) => {
  const { double: server, connector } = await double(t, { standalone: true })
  await t.rejects(begin(connector, await connector.create(later)),
    { ...notSupported, message: /replica set or a sharded cluster/ })
  t.notOk(server.log.some(({ txnNumber }) => txnNumber))
})

t.test(`on ${how}: a server is ${without}`, { skip: real?.kind === 'mongod' ? 'it has transactions' : skip }, async (t) => {
  const connector = await connect(t, { url: real!.url })
  await t.rejects(begin(connector, await connector.create(later)),
    { ...notSupported, message: /replica set or a sharded cluster/ })
})

for (const message of [
  'Transaction numbers are only allowed on a replica set member or mongos', 'insert: unknown field "autocommit"',
]) {
  t.test(`on the double: a server that only tells at the first operation: ${message}`, async (t) => {
    const { server, transaction } = await opened(t)
    server.failCommand({ commands: 'insert', code: 20, message })
    const insert = transaction.connection.collection('items').insertOne({ n: 4 })
    await t.rejects(insert,
      { ...notSupported, message: /replica set or a sharded cluster/, cause: { name: 'MongoServerError', code: 20, message } })
    await transaction.rollback()
  })
}

// --- Through a pool

async function pooled (t: Test, server: MongoDouble, options: EngineOptions<Db> = {}): Promise<Pool<Db>> {
  const pool = new Pool(await mongodb({ url: server.url }), options)
  t.teardown(() => pool.close())
  return pool
}

t.test('through a pool on the double: transactions in each other\'s way are all done, where they may be run again', async (t) => {
  const server = await startMongoDouble(t)
  const pool = await pooled(t, server, { max: 5 })
  await pool.use((db) => db.collection('items').insertOne({ n: 0 }))
  let runs = 0
  await Promise.all(Array.from({ length: 5 }, () => pool.transaction(async (db) => {
    runs++
    const items = db.collection('items')
    const doc = await items.findOne({})
    await items.updateOne({}, { $set: { n: Number(doc!.n) + 1 } })
  }, { retry: 100 })))
  t.strictSame(numbers(server), [5], 'no increment is lost')
  t.ok(runs > 5)
  t.equal(server.openTransactions, 0)
})

t.test('through a pool on the double: what fn throws rolls back, on the connection that is lent again afterwards', async (t) => {
  const server = await startMongoDouble(t)
  const pool = await pooled(t, server, { max: 1 })
  await t.rejects(pool.transaction(async (db) => {
    await db.collection('items').insertOne({ n: 1 })
    throw new Error('changed my mind')
  }), { message: 'changed my mind' })
  t.equal(server.openTransactions, 0)
  await pool.transaction((db) => db.collection('items').insertOne({ n: 2 }), { isolation: 'snapshot' })
  t.strictSame(numbers(server), [2])
  const nested = pool.use((_, lease) => lease.transaction(() => lease.transaction(() => {})))
  await t.rejects(nested, { ...notSupported, message: /within/ })
  t.match(pool.stats(), { created: 1, used: 0 })
})

t.test('through a pool on the double: a lease that ends with its transaction open leaves none', async (t) => {
  const server = await startMongoDouble(t)
  const pool = await pooled(t, server, { max: 1 })
  const lease = await pool.acquire()
  const transaction = lease.transaction(async (db) => {
    await db.collection('items').insertOne({ n: 1 })
    lease.release()
    await db.collection('items').insertOne({ n: 2 })
  })
  await t.rejects(transaction)
  await pool.use((db) => db.collection('items').insertOne({ n: 3 }))
  await until(() => server.openTransactions === 0)
  t.strictSame(numbers(server), [3])
})

t.test('through a pool on the double: a rollback on a server that has fallen silent takes resetTimeout, and is made up for', async (t) => {
  const server = await startMongoDouble(t)
  const pool = await pooled(t, server, { max: 1, resetTimeout: 50 })
  const [member] = server.members
  await t.rejects(pool.transaction(async (db) => {
    await db.collection('items').insertOne({ n: 1 })
    member!.pause()
    throw new Error('changed my mind')
  }), { message: 'changed my mind' })
  t.match(pool.stats(), { destroyed: { error: 1 } })
  t.equal(server.openTransactions, 1)
  member!.resume()
  await until(() => server.openTransactions === 0)
  t.strictSame(numbers(server), [])
})

interface Loss {
  /** Called in the transaction, behind its last operation. Returns what makes the server well again. */
  lose (server: MongoDouble): () => unknown
  /** What of it is stored when the server is well again: once at most. */
  readonly stored: readonly number[]
  /** How often the server is asked to commit: the driver itself asks a second time where a socket died. */
  readonly commits: number
  /** How many transactions the server is left with: nobody aborts what may be committed, so their age ends them. */
  readonly open: number
  /** The answer does not come: `commitTimeout` ends it. */
  readonly silent: boolean
}

const cut = { commands: 'commitTransaction', closeConnection: true, times: Infinity } as const

const losses: Record<string, Loss> = {
  'whose answer never comes': {
    lose (server) {
      const hold = server.hold('commitTransaction')
      return () => { hold.release() }
    },
    stored: [1],
    commits: 1,
    open: 0,
    silent: true,
  },
  'on a server that falls silent': {
    lose (server) {
      server.members[0]!.pause()
      return () => { server.members[0]!.resume() }
    },
    stored: [1],
    commits: 1,
    open: 0,
    silent: true,
  },
  'whose server dies': {
    lose (server) {
      const [member] = server.members
      const hold = server.hold('commitTransaction')
      const killed = hold.reached.then(() => member!.kill())
      return async () => {
        await killed
        hold.release()
        await member!.restart()
      }
    },
    stored: [],
    commits: 2,
    open: 0,
    silent: true,
  },
  'whose answers are lost with their sockets': {
    lose (server) {
      const fault = server.failCommand({ ...cut, when: 'after' })
      return () => { fault.off() }
    },
    stored: [1],
    commits: 2,
    open: 0,
    silent: false,
  },
  'which is lost with its sockets': {
    lose (server) {
      const fault = server.failCommand({ ...cut, when: 'before' })
      return () => { fault.off() }
    },
    stored: [],
    commits: 2,
    open: 1,
    silent: false,
  },
}

const unknownCommit = { name: 'PoolError', code: 'FST_POOL_COMMIT_UNKNOWN', message: /^nobody knows/ }

for (const [name, { lose, stored, commits, open, silent }] of Object.entries(losses)) {
  /** What is true whichever way it was committed, when the error is told. */
  const behind = async (t: Test, server: MongoDouble, heal: () => unknown, next: () => Promise<unknown>) => {
    await heal()
    await t.resolves(next(), 'the next one is served')
    const sent = (name: string) => names(server).filter((command) => command === name).length
    await until(() => server.openTransactions === open && sent('commitTransaction') === commits)
    t.strictSame(numbers(server), stored)
    t.equal(sent('insert'), 1, 'it was not run again')
    t.equal(sent('abortTransaction'), 0)
  }

  t.test(`through a pool on the double: nobody knows of a commit ${name}, and nothing is run again`, async (t) => {
    const server = await startMongoDouble(t)
    const pool = await pooled(t, server, { max: 2 })
    let heal = (): unknown => undefined
    let runs = 0
    const late = alarm(60_000)
    const error = await failure(pool.use((_, lease) => lease.transaction(async (db) => {
      runs++
      await db.collection('items').insertOne({ n: 1 })
      heal = lose(server)
    }, { retry: 2, commitTimeout: silent ? 300 : 60_000 }), { retry: 2 }))
    t.match(error, unknownCommit)
    if (!silent) t.match(error, { cause: { name: 'MongoNetworkError' } }, 'it says why, as the driver does')
    t.notOk(late.rang)
    t.equal(runs, 1)
    t.match(pool.stats(), { used: 0, destroyed: { error: 1 } }, 'its connection is not lent again')
    await behind(t, server, heal, () => pool.use((db) => db.collection('items').findOne()))
  })

  t.test(`on a route on the double: nobody knows of a commit ${name}, and its client is told`, async (t) => {
    const server = await startMongoDouble(t)
    const app = Fastify()
    t.teardown(() => app.close())
    const commitTimeout = silent ? 300 : 60_000
    await app.register(fastifyPool, { backend: 'mongodb', url: server.url, max: 2, commitTimeout, log: false })
    let heal = (): unknown => undefined
    app.get('/', { config: { pools: { db: { transaction: true } } } }, async (request) => {
      await (request.db as unknown as Db).collection('items').insertOne({ n: 1 })
      heal = lose(server)
      return 'well'
    })
    const { statusCode, body } = await app.inject('/')
    t.equal(statusCode, 500)
    t.match(JSON.parse(body), { code: unknownCommit.code, message: unknownCommit.message })
    const find = (db: unknown) => (db as Db).collection('items').findOne()
    await behind(t, server, heal, () => app.pools.get('db').use(find))
  })
}

t.test('through a pool on the double: commits whose sockets die twice are unknown, and applied once', async (t) => {
  const server = await startMongoDouble(t)
  const pool = await pooled(t, server, { max: 4 })
  await pool.use((db) => openSockets(server, db, 4))
  // The second commit of each, as the driver asks for it.
  server.failCommand({ ...cut, when: 'after', where: ({ body }) => Boolean(body.writeConcern) })
  const runs: number[] = []
  const results = await loseTogether(server, 'commitTransaction', 4, 'after', () => [1, 2, 3, 4].map((n) =>
    pool.transaction(async (db) => {
      runs.push(n)
      await db.collection('items').insertOne({ n })
    }, { retry: 2 })))
  const errors = reasons(results)
  t.equal(errors.length, 4)
  for (const error of errors) t.match(error, unknownCommit)
  t.strictSame(runs.sort(), [1, 2, 3, 4])
  t.strictSame(numbers(server).sort(), [1, 2, 3, 4])
})

t.test('through a pool on the double: a commit behind an operation that does not end is not sent', async (t) => {
  const server = await startMongoDouble(t)
  const pool = await pooled(t, server, { max: 2 })
  const hold = server.hold('update')
  let update: Promise<unknown> | undefined
  const error = await failure(pool.transaction(async (db) => {
    await db.collection('items').insertOne({ n: 1 })
    update = db.collection('items').updateOne({ n: 1 }, { $set: { m: 1 } })
    await hold.reached
  }, { commitTimeout: 300 }))
  t.match(error, { name: 'PoolError', code: 'FST_POOL_COMMIT_TIMEOUT' })
  hold.release()
  await update
  await until(() => server.openTransactions === 0)
  t.strictSame(numbers(server), [])
  t.notOk(names(server).includes('commitTransaction'))
})

// What may become useless between two operations: with a pool it is as with the driver alone.
const gone: Record<string, (server: MongoDouble, db: Db) => Promise<unknown>> = {
  'its collection is dropped': (_, db) => db.collection('items').drop(),
  'its collection is dropped and made again': async (_, db) => {
    await db.collection('items').drop()
    await db.collection('items').insertOne({ n: 1 })
  },
  'its server is killed, and another is elected': async (server) => {
    await server.primary!.kill()
    server.elect(1)
  },
}

for (const [name, happen] of Object.entries(gone)) {
  t.test(`through a pool on the double: a cursor that is open when ${name} is the driver's own matter`, async (t) => {
    /**
     * What the rest of the cursor is, or its error. The next write is served, once the driver knows the new primary.
     */
    const told = async (server: MongoDouble, db: Db) => {
      await db.collection('items').insertMany([{ n: 1 }, { n: 2 }, { n: 3 }])
      const cursor = db.collection('items').find({}, { batchSize: 1 })
      await cursor.next()
      const first = server.primary
      await happen(server, db)
      const rest = await cursor.toArray().then((all) => all.length, ({ name, code }: MongoError) => ({ name, code }))
      const write = () => db.collection('items').insertOne({ n: 9 })
      if (server.primary === first) {
        await write()
        return rest
      }
      // Which error it is, is a matter of which socket dies first.
      t.type(rest, 'object')
      await until(() => write().then(() => true, () => false), { what: 'a write on the new primary' })
      return 'an error'
    }
    const bare = await startMongoDouble(t, { members: 3 })
    const client = new MongoClient(bare.url)
    t.teardown(() => client.close())
    const alone = await told(bare, client.db('test'))
    const server = await startMongoDouble(t, { members: 3 })
    const pool = await pooled(t, server, { max: 1 })
    t.strictSame(await pool.use((db) => told(server, db)), alone)
    t.ok(await pool.use((db) => db.collection('items').findOne()))
    t.equal(pool.stats().used, 0)
  })
}

// --- Options ---------------------------------------------------------------------------------------------------------

t.test('what is the pool\'s to set is refused by name, with the option to use instead, and in any case', async (t) => {
  const instead = {
    maxPoolSize: 'max', minPoolSize: 'min', maxConnecting: 'maxConnecting', waitQueueTimeoutMS: 'acquireTimeout',
  }
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
  const options = async (options: MongoOptions) => (await mongodb({ url: 'mongodb://127.0.0.1/', ...options }))
    .client.options
  t.match(await options({}),
    {
      maxPoolSize: 10,
      maxConnecting: 10,
      waitQueueTimeoutMS: 5000,
      serverSelectionTimeoutMS: 5000,
      connectTimeoutMS: 3000
    })
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
  await t.rejects(mongodb({ url: 'mongodb://127.0.0.1/', database: 'a.b' }),
    { code: 'FST_POOL_BAD_OPTIONS', message: /option database is 'a\.b'/ })
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

t.test('a url is refused whose password the driver would take for a part of a host', async (t) => {
  for (const url of ['mongodb://me:s3@cret@host/', 'mongodb://me:s3/cret@host/', 'mongodb://me:s3?cret@host/', 'mongodb://me:s3/c?x=1&ret@host/']) {
    const error: unknown = await mongodb({ url }).catch((error: unknown) => error)
    t.match(error, { code: 'FST_POOL_BAD_OPTIONS', message: /percent-encoded$/ }, url)
    t.notMatch(String(error), /cret/)
  }
  t.ok(await mongodb({ url: 'mongodb://me:s3cret@host/?appName=me@home' }))
})

t.test('a connection option that the driver does not know is refused by its name, without secrets', async (t) => {
  const error: unknown = await mongodb({ url: 'mongodb://me:s3cret@host/', connection: { nonsense: 's3cret' } })
    .catch((error: unknown) => error)
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
