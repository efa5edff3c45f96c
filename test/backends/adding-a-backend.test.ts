import { readFileSync } from 'node:fs'
import t from 'tap'
import { PoolError } from '../../lib/engine/errors.js'
import { Pool } from '../../lib/pool/pool.js'
import { event, until } from '../support/until.js'
import { contract } from './contract.js'
import type { Trace } from './contract.js'
import { shelf } from './shelf/connector.js'
import { ShelfClient } from './shelf/driver.js'
import { startShelf } from './shelf/server.js'

const read = (path: string): string => readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8')

t.test('the page shows the files as they are', async (t) => {
  const page = read('docs/adding-a-backend.md')
  const shown = [...page.matchAll(/^`(test\/backends\/shelf\/\w+\.ts)`:\n\n```ts\n(.*?)```$/gms)]
  t.same(shown.map(([, path]) => path),
    ['options', 'session', 'connector'].map((name) => `test/backends/shelf/${name}.ts`))
  for (const [, path, code] of shown) t.equal(code, read(path!), String(path))
})

const at = await startShelf(t)
const admin = new ShelfClient({ ...at, user: 'admin' })
await admin.connect()
t.teardown(() => { admin.socket.destroy() })

const traces: Array<Trace<ShelfClient>> = [
  {
    name: 'another room',
    leave: (client) => client.ask('USE attic'),
    seen: async (client) => await client.ask('WHERE') === 'attic',
  },
  {
    name: 'another name',
    replaced: true,
    leave: (client) => client.ask('AS somebody'),
    seen: async (client) => await client.ask('WHO') === 'somebody',
  },
  {
    name: 'a listener',
    leave: (client) => client.on('end', nothing),
    seen: (client) => client.listeners('end').includes(nothing),
  },
]

function nothing (): void {}

await contract<ShelfClient>(t, {
  address: at,
  connector: ({ host, port }, { reset, name, password }) =>
    shelf({ host, port, reset, connection: { user: name, ...(password !== undefined && { password }) } }),
  max: 5,
  isDriver: (client) => client instanceof ShelfClient,
  id: (client) => client.ask('ID'),
  count: async (name) => Number(await admin.ask(`COUNT ${name}`)),
  end: async (id) => {
    await admin.ask(`KILL ${String(id)}`)
  },
  ask: (client) => client.ask('PING'),
  block: (client) => client.ask('WAIT'),
  blockEnds: true,
  linger: (client) => client.ask('WAIT 20'),
  written: ({ socket }) => socket.bytesWritten,
  dies: true,
  renewed: true,
  password: true,
  failures: 'a shelf lets everybody in',
  describes: 'nameless',
  setting: {
    set: (client) => client.ask('USE app'),
    change: (client) => client.ask('USE attic'),
    isSet: async (client) => await client.ask('WHERE') === 'app',
  },
  traces,
  rows: 'a shelf has no transactions',
  shared: true,
  neighbour: 'a shelf is in one process',
})

t.test('what an error can be, and what an option must not be', async (t) => {
  const backend = await shelf(at)
  const pool = new Pool(backend, { max: 1 })
  t.teardown(() => pool.close())
  const lease = await pool.acquire()
  const killed = event(lease.connection, 'end')
  await admin.ask(`KILL ${await lease.connection.ask('ID')}`)
  await killed
  const error = await lease.connection.ask('PING').catch((error: unknown) => error)
  t.equal(backend.isTransient!(error), true)
  t.equal(backend.isTransient!(new Error('what?')), false)
  lease.release()
  await until(() => pool.stats().used === 0)
  const secret = 'hush hush'
  for (const options of [
    { connection: { reconnect: true } }, { user: 'me' }, { url: 'shelf://host', port: 1 }, { url: 'http://host' },
    { url: `shelf://me:${secret}%@host` },
  ]) {
    const error = await shelf(options).catch((error: unknown) => error)
    t.match(error, { code: 'FST_POOL_BAD_OPTIONS' })
    t.notMatch((error as PoolError).message, secret)
  }
})
