import { Redis } from 'ioredis'
import t from 'tap'
import { redis } from '../../lib/backends/redis/connector.js'
import { idOf, infoOf, isDeaf, speaksResp3 } from '../support/redis.js'
import { startRedis } from '../support/services.js'
import { contract } from './contract.js'
import type { Failing, Subject, Trace } from './contract.js'
import { startNeighbour } from './neighbour.js'

const server = await startRedis(t)
const backend = await redis({ url: server.url })
const admin = backend.client
t.teardown(() => backend.close!())

const key = `contract:${process.pid}`
const info = (connection: Redis) => infoOf(connection, admin)
/** In a MULTI the server says so to everything. */
const inMulti = async (connection: Redis) => await connection.ping() as string === 'QUEUED'

await admin.ping()
const resp3 = speaksResp3(admin)
const channels = resp3 ? {} : { alone: 'in RESP2 what is subscribed to any channel takes no other commands' }

const traces: Array<Trace<Redis>> = [
  {
    name: 'another database',
    leave: (connection) => connection.select(3),
    seen: async (connection) => await inMulti(connection) || (await info(connection)).db !== '0',
  },
  {
    name: 'a database that was selected in odd writing',
    leave: (connection) => connection.call('SeLeCt', '4'),
    seen: async (connection) => await inMulti(connection) || (await info(connection)).db !== '0',
  },
  {
    name: 'channels and patterns that are subscribed to',
    leave: (connection) =>
      Promise.all([connection.subscribe(`${key}:a`, `${key}:b`), connection.psubscribe(`${key}:*`)]),
    seen: async (connection) => {
      const { sub, psub } = await info(connection)
      return sub !== '0' || psub !== '0' || connection.condition?.subscriber !== false
    },
    ...channels,
  },
  {
    name: 'shard channels that are subscribed to',
    leave: (connection) => connection.ssubscribe(`${key}:shard`),
    seen: async (connection) => (await info(connection)).ssub !== '0',
    ...channels,
  },
  {
    name: 'a listener for messages',
    leave: (connection) => connection.on('message', () => {}),
    seen: (connection) => connection.listenerCount('message') > 0,
  },
  {
    name: 'a watched key',
    fleeting: true,
    transaction: true,
    leave: (connection) => connection.watch(`${key}:watched`),
    // Seen by an EXEC that does nothing once the key has changed.
    seen: async (connection) => {
      await admin.set(`${key}:watched`, Math.random(), 'EX', 60)
      const answer = await connection.multi().set(`${key}:by`, 1, 'EX', 60).exec()
      return answer === null
    },
    alone: 'looking for it ends it, and MULTI too',
  },
  {
    name: 'a name',
    replaced: true,
    leave: (connection) => connection.client('SETNAME', 'somebody'),
    seen: async (connection) => await connection.client('GETNAME') === 'somebody',
  },
  {
    name: 'another user',
    replaced: true,
    leave: (connection) => connection.auth(`${process.pid}`, 'word'),
    seen: async (connection) => await connection.acl('WHOAMI') !== 'default',
  },
  {
    name: 'client tracking',
    replaced: true,
    leave: (connection) => connection.client('TRACKING' as 'INFO', 'ON' as never),
    seen: async (connection) => String(await connection.client('TRACKINGINFO' as 'INFO')).includes('on'),
  },
  {
    name: 'a property of the object',
    stays: 'ioredis adds some of its own as it works',
    leave: (connection) => { Object.assign(connection, { tenant: 'mine' }) },
    seen: (connection) => 'tenant' in connection,
    alone: 'with others the connection is replaced',
  },
  {
    name: 'a command of defineCommand',
    stays: 'it is a property of the object',
    leave: (connection) => { connection.defineCommand('mine', { lua: 'return 1', numberOfKeys: 0 }) },
    seen: (connection) => 'mine' in connection,
    alone: 'with others the connection is replaced',
  },
  {
    name: 'an open MULTI',
    transaction: true,
    leave: (connection) => Promise.all([connection.multi({ pipeline: false }), connection.set(`${key}:never`, 1)]),
    seen: inMulti,
  },
]
if (resp3) {
  traces.push({
    name: 'another protocol',
    replaced: true,
    leave: (connection) => connection.hello(2),
    seen: async (connection) => (await info(connection)).resp === '2',
    alone: 'there, what is subscribed to any channel takes no other commands',
  })
}

await admin.acl('SETUSER', `${process.pid}`, 'on', '>word', 'allkeys', 'allchannels', '+@all')
t.teardown(() => admin.acl('DELUSER', `${process.pid}`))

const secure = await startRedis(t, { args: ['--requirepass', 'right'] })
type Options = Parameters<typeof redis>[0]
const failing = (name: string, permanent: boolean, options: Options, at = server): Failing<Redis> => ({
  name,
  permanent,
  connector: () => redis({ host: at.host, port: at.port, ...options }),
})
const failures: Array<Failing<Redis>> = [
  failing('a wrong password', true, { connection: { password: 'wrong' } }, secure),
  failing('a wrong password, in RESP2', true, { connection: { password: 'wrong', protocol: 2 } }, secure),
  failing('no password', true, {}, secure),
  failing('no such database', true, { database: 99 }),
  {
    name: 'too many connections',
    permanent: false,
    connector: async (t) => {
      const full = await startRedis(t, { args: ['--maxclients', '1'] })
      const first = new Redis(full.url)
      t.teardown(() => first.disconnect())
      await first.ping()
      return await redis({ url: full.url })
    },
  },
]

const subject: Subject<Redis> = {
  address: server,
  max: 4,
  connector: ({ host, port }, { reset, name, password }) => redis({
    host, port, reset, connection: { connectionName: name, ...(password !== undefined && { password }) },
  }),
  isDriver: (connection) => connection instanceof Redis,
  id: idOf,
  count: async (name) => String(await admin.client('LIST')).split('\n')
    .filter((line) => line.includes(` name=${name} `)).length,
  end: async (id) => await admin.client('KILL', 'ID', Number(id)),
  ask: (connection) => isDeaf(connection) ? info(connection) : connection.get(key),
  block: (connection) => connection.blpop(`${key}:nobody`, 0),
  blockEnds: true,
  linger: (connection) => connection.blpop(`${key}:nobody`, 0.03),
  written: (connection) => connection.stream.bytesWritten,
  dies: true,
  renewed: true,
  password: true,
  failures,
  describes: 'named',
  setting: {
    set: (connection) => connection.select(5),
    change: (connection) => connection.select(6),
    isSet: async (connection) => (await info(connection)).db === '5',
  },
  traces,
  rows: 'Redis has MULTI, which is the driver\'s own, and no transactions that read what they wrote',
  shared: true,
  neighbour: {
    start: (t) => startNeighbour(t, 'redis', { url: server.url, key: 'contract:lines' }),
    add: (connection, row) => connection.rpush('contract:lines', row),
    fail: (connection) => connection.incr('contract:lines'),
  },
}

t.test('redis', (t) => contract(t, subject))

t.test('redis, with an address that is asked at each create', (t) => contract(t, {
  ...subject,
  connector: ({ host, port }, { reset, name, password }) => redis({
    url: async () => `redis://${host}:${port}`,
    reset,
    connection: async () => ({ connectionName: name, ...(password !== undefined && { password }) }),
  }),
}))
