import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import t from 'tap'
import { Pool } from '../../lib/pool/pool.js'
import { FakeConnector } from '../support/fake-connector.js'

const names = ['connect', 'disconnect', 'circuit', 'leak', 'refuse'] as const

t.test('rare events are published to whoever subscribes, without a listener of the pool', async (t) => {
  const seen: Array<[string, Record<string, unknown>]> = []
  const hear = (message: unknown, name: string | symbol) => {
    seen.push([String(name), message as Record<string, unknown>])
  }
  for (const name of names) subscribe(`fastify-pool:${name}`, hear)
  t.teardown(() => { for (const name of names) unsubscribe(`fastify-pool:${name}`, hear) })
  const pool = new Pool(new FakeConnector(), { name: 'db', max: 1, maxPending: 0 })
  const lease = await pool.acquire()
  await t.rejects(pool.acquire(), { code: 'FST_POOL_QUEUE_FULL' })
  lease.destroy()
  await pool.close()
  t.same(seen.map(([name]) => name), ['fastify-pool:connect', 'fastify-pool:refuse', 'fastify-pool:disconnect'])
  t.match(seen.map(([, message]) => message), [
    { pool: 'db', took: Number },
    { pool: 'db', error: { code: 'FST_POOL_QUEUE_FULL' } },
    { pool: 'db', reason: 'released' },
  ])
})

t.test('a listener and a subscriber hear the same event; nobody who has left hears any', async (t) => {
  const seen: unknown[] = []
  const hear = (message: unknown) => { seen.push(message) }
  subscribe('fastify-pool:connect', hear)
  const told: unknown[] = []
  const pool = new Pool(new FakeConnector(), { max: 2 })
  t.teardown(() => pool.close())
  pool.on('connect', (event) => { told.push(event) })
  const one = await pool.acquire()
  t.equal(seen.length, 1)
  t.equal(seen[0], told[0])
  unsubscribe('fastify-pool:connect', hear)
  const two = await pool.acquire()
  t.same([seen.length, told.length], [1, 2])
  one.release()
  two.release()
})

t.test('the circuit opens', async (t) => {
  const seen: unknown[] = []
  const hear = (message: unknown) => { seen.push(message) }
  subscribe('fastify-pool:circuit', hear)
  t.teardown(() => unsubscribe('fastify-pool:circuit', hear))
  const connector = new FakeConnector()
  connector.create = () => Promise.reject(new Error('refused'))
  const pool = new Pool(connector, { name: 'db', circuit: { failures: 1, after: 0 } })
  await t.rejects(pool.acquire())
  t.match(seen, [{ pool: 'db', from: 'closed', to: 'open' }])
  await pool.close()
})
