import t from 'tap'
import { AsyncLocalStorage } from 'node:async_hooks'
import { hold, isBeside } from '../../lib/pool/pool.js'
import type { WrapInfo } from '../../types/pool.js'
import { settle } from '../support/clock.js'
import type { FakeConnection } from '../support/fake-connector.js'
import { failure, FakeConnector, fakePool, watch } from '../support/fake-connector.js'

/** What borrowers see: it is no connection, but knows its own. */
class Wrapped {
  constructor (readonly of: FakeConnection) {}
}

const seen = (face: unknown) => face as Wrapped

t.test('wrap is called once for each connection, behind onConnect, and leases and use() give what it made', async (t) => {
  const calls: string[] = []
  const faces: Wrapped[] = []
  const { pool } = fakePool({
    max: 2,
    onConnect: async ({ id }) => {
      await settle()
      calls.push(`onConnect ${id}`)
    },
    wrap: (connection) => {
      calls.push(`wrap ${connection.id}`)
      const face = new Wrapped(connection)
      faces.push(face)
      return face
    },
  })
  const [one, two] = await Promise.all([pool.acquire(), pool.acquire()])
  t.same(calls.sort(), ['onConnect 1', 'onConnect 2', 'wrap 1', 'wrap 2'])
  t.same([seen(one.connection), seen(two.connection)], faces)
  t.equal(seen(one.connection), seen(one.connection))
  one.release()
  two.release()
  await pool.use((connection, lease) => {
    t.ok(faces.includes(seen(connection)))
    t.equal(connection, lease.connection)
  })
  t.ok(faces.includes(seen(pool.tryAcquire()!.connection)))
  t.equal(calls.length, 4)
})

t.test('hooks and the connector get the connection itself', async (t) => {
  const given: unknown[] = []
  const noted = (connection: FakeConnection) => {
    given.push(connection)
    return connection
  }
  const hook = (connection: FakeConnection) => { noted(connection) }
  const { pool, connector, clock } = fakePool({
    max: 1,
    validateAfter: 0,
    onConnect: hook,
    onAcquire: hook,
    onRelease: hook,
    onDisconnect: hook,
    wrap: (connection) => new Wrapped(connection),
  })
  connector.outcomes.reset = 'ok'
  const { reset, validate, isBroken, destroy, transactions } = connector
  connector.reset = (connection, signal) => reset.call(connector, noted(connection), signal)
  connector.validate = (connection, signal) => validate.call(connector, noted(connection), signal)
  connector.isBroken = (connection) => isBroken.call(connector, noted(connection))
  connector.destroy = (connection, reason) => destroy.call(connector, noted(connection), reason)
  connector.transactions = {
    ...transactions!, begin: (connection, ...rest) => transactions!.begin(noted(connection), ...rest),
  }
  const lease = await pool.acquire()
  await lease.transaction(() => {})
  lease.release()
  await clock.advance(10)
  const again = await pool.acquire()
  again.destroy()
  await settle()
  t.ok(given.length > 8, `${given.length}`)
  t.ok(given.every((connection) => connection === connector.connections[0]))
})

t.test('a session reset keeps what wrap made', async (t) => {
  let wraps = 0
  let connects = 0
  const { pool, connector } = fakePool({
    max: 1,
    reset: 'session',
    onConnect: () => { connects++ },
    wrap: (connection) => {
      wraps++
      return new Wrapped(connection)
    },
  })
  connector.outcomes.reset = 'ok'
  const lease = await pool.acquire()
  const { connection } = lease
  lease.release()
  const next = await pool.acquire()
  t.equal(next.connection, connection)
  t.same({ wraps, connects }, { wraps: 1, connects: 2 })
})

t.test('without wrap, what leases give is the connection', async (t) => {
  const { pool, connector } = fakePool()
  connector.binds = true
  const lease = await pool.acquire()
  t.equal(lease.connection, connector.connections[0])
  await lease.transaction((inner) => { t.same([inner === connector.connections[0], inner.id], [false, 1]) })
})

t.test('in a transaction on the same connection it is what leases give', async (t) => {
  const { pool } = fakePool({ wrap: (connection) => new Wrapped(connection) })
  const lease = await pool.acquire()
  await lease.transaction(async (outer) => {
    t.equal(outer, lease.connection)
    await lease.transaction((inner) => { t.equal(inner, outer) })
  })
  const held = await hold(lease, {})
  t.equal(lease.connection, seen(lease.connection))
  await held.commit()
})

t.test('what a transaction works through, where that is another object, is wrapped anew, once', async (t) => {
  const wrapped: FakeConnection[] = []
  const { pool, connector } = fakePool({
    max: 1,
    wrap: (connection) => {
      wrapped.push(connection)
      return new Wrapped(connection)
    },
  })
  connector.binds = true
  const lease = await pool.acquire()
  const face = lease.connection
  await lease.transaction((bound) => {
    t.not(bound, face)
    t.equal(seen(bound).of, wrapped[1])
    t.equal(lease.connection, face)
  })
  t.equal(wrapped.length, 2)
  const held = await hold(lease, {})
  const inside = lease.connection
  t.equal(lease.connection, inside)
  t.equal(seen(inside).of, wrapped[2])
  await held.commit()
  t.equal(lease.connection, face)
  t.equal(wrapped.length, 3)
})

t.test('a wrap that throws fails the create', async (t) => {
  let wraps = 0
  const { pool, connector, clock, seen } = fakePool({
    max: 1,
    url: 'fake://me:hunter22@host',
    wrap: (connection) => {
      if (wraps++ === 0) throw new Error('no: hunter22')
      return connection
    },
  })
  const asking = watch(pool.acquire())
  await settle()
  t.match(seen('error'), [{ phase: 'create', error: { message: 'no: ***' } }])
  t.match(seen('disconnect'), [{ id: 1, reason: 'error', error: { message: 'no: ***' } }])
  t.equal(connector.connections[0]?.reason, 'error')
  t.match(pool.stats(), { createErrors: 1, created: 0 })
  await clock.advance(100)
  t.equal(asking.value?.connection.id, 2)
})

t.test('a wrap that throws in a transaction fails that, and nothing else', async (t) => {
  let wraps = 0
  const { pool, connector } = fakePool({
    max: 1,
    wrap: (connection) => {
      if (wraps++ > 0) throw new Error('no')
      return connection
    },
  })
  connector.binds = true
  const lease = await pool.acquire()
  t.equal((await failure(lease.transaction(() => t.fail('it ran')))).message, 'no')
  t.same(connector.asked, ['begin #1', 'rollback #1'])
  t.equal(lease.ended, false)
})

t.test("behind a library's transaction it is still known who uses the connection beside one of ours", async (t) => {
  let begin: WrapInfo['begin'] | undefined
  const { pool } = fakePool({
    max: 1,
    wrap: (connection, info) => {
      begin = info.begin
      return connection
    },
  })
  const lease = await pool.acquire()
  for (const end of ['commit', 'rollback'] as const) await (await begin!())[end]()
  let within: boolean | undefined
  const run = lease.transaction(() => { within = isBeside(lease) })
  t.equal(isBeside(lease), true)
  await run
  t.equal(within, false)
  t.equal(isBeside(lease), false)
})

t.test('a connection whose onConnect took too long is not wrapped', async (t) => {
  let wraps = 0
  let connected = () => {}
  const { pool, connector, clock } = fakePool({
    max: 1,
    connectTimeout: 100,
    acquireTimeout: 100,
    onConnect: () => new Promise<void>((resolve) => { connected = resolve }),
    wrap: (connection) => {
      wraps++
      return connection
    },
  })
  const asking = watch(pool.acquire())
  await clock.advance(100)
  t.equal(connector.connections[0]?.state, 'destroyed')
  connected()
  await settle()
  t.equal(asking.done, true)
  t.equal(wraps, 0)
})

t.test('wrap sees no caller\'s async context', async (t) => {
  const store = new AsyncLocalStorage<string>()
  const contexts: unknown[] = []
  const connector = new FakeConnector()
  connector.binds = true
  const { pool } = fakePool({
    max: 1,
    wrap: (connection) => {
      contexts.push(store.getStore())
      return connection
    },
  }, { connector })
  await store.run('a caller', () => pool.transaction(() => {}))
  t.same(contexts, [undefined, undefined])
})
