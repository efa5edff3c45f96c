import t from 'tap'
import { fakePool, warm, watch, FakeConnector, type FakeConnection } from '../support/fake-connector.js'
import { settle } from '../support/clock.js'

// `health()` never says `up` without evidence, and learns by itself while somebody asks.

/** How often health is asked for, as a probe of Kubernetes does. */
async function askFor (fake: ReturnType<typeof fakePool>, ms: number): Promise<string[]> {
  const said: string[] = []
  for (let past = 0; past < ms; past += 1000) {
    said.push((await fake.pool.health()).status)
    await fake.clock.advance(1000)
  }
  return said
}

t.test('a database that dies without traffic is down, since when and why; and up again by itself', async (t) => {
  const before = Date.now()
  for (const circuit of [false, undefined] as const) {
    const fake = fakePool({ ...(circuit === undefined ? { circuit: {} } : { circuit }) })
    const { pool, connector } = fake
    await warm(pool)
    t.equal((await pool.health()).status, 'up')
    connector.outcomes.create = 'error'
    connector.connections[0]!.die(new Error('connection reset'))
    t.match(pool.stats(), { idle: 0, destroyed: { error: 1 } })
    const health = await pool.health()
    t.match(health, { status: 'down', reason: 'no connection, and the last create failed: create failed', latency: null })
    t.ok(health.since! >= before && health.since! <= Date.now())
    const said = await askFor(fake, 20_000)
    t.ok(said.every((status) => status === 'down'), said.join())
    t.match(await pool.health(), { status: 'down', reason: /: create failed$/, since: health.since })
    t.ok(connector.creates > 5, `${connector.creates} creates`)
    connector.outcomes.create = 'ok'
    const after = await askFor(fake, 5000)
    t.equal(after.at(-1), 'up')
    t.notOk('since' in await pool.health())
    t.match(pool.stats(), { idle: 1, acquired: 1 }, 'nobody had to acquire')
  }
})

t.test('one probe at a time, paced by backoff', async (t) => {
  const fake = fakePool({ backoff: { min: 100, max: 400 }, connectTimeout: 1000 })
  const { pool, connector, clock } = fake
  await warm(pool)
  connector.outcomes.create = 'hang'
  connector.connections[0]!.die()
  for (let i = 0; i < 50; i++) watch(pool.health())
  await clock.advance(900)
  t.match(pool.stats(), { creating: 1, createErrors: 0 })
  connector.outcomes.create = 'error'
  const before = connector.creates
  await askFor(fake, 20_000)
  const more = connector.creates - before
  t.ok(more > 20 && more < 200, `${more} creates in 20 s`)
})

t.test('nobody asks, nobody probes: a minute after the last question', async (t) => {
  for (const circuit of [{ circuit: false as const }, { circuit: {} }]) {
    const fake = fakePool(circuit)
    const { pool, connector, clock } = fake
    await warm(pool)
    connector.outcomes.create = 'error'
    connector.connections[0]!.die(new Error('gone'))
    await clock.advance(10_000)
    t.equal(connector.creates, 1, 'nobody has asked')
    await pool.health()
    await clock.advance(59_000)
    t.ok(connector.creates > 10)
    await clock.advance(5000)
    const before = connector.creates
    await clock.advance(600_000)
    t.equal(connector.creates, before)
    t.same(clock.timers.ref, 0)
    // Who comes then waits for a create, and does not hear of what was long ago.
    connector.outcomes.create = 'ok'
    const lease = watch(pool.acquire())
    await clock.advance(1)
    t.ok(lease.done && lease.error === undefined)
    t.equal((await pool.health()).status, 'up')
  }
})

t.test('a death that the server calls an idle timeout is none', async (t) => {
  const connector = new FakeConnector()
  const isIdleTimeout = (error: unknown) => (error as { code?: string }).code === '57P05'
  const { pool, clock } = fakePool({}, { connector: Object.assign(connector, { isIdleTimeout }) })
  await warm(pool)
  connector.connections[0]!.die(Object.assign(new Error('idle-session timeout'), { code: '57P05' }))
  t.match(await pool.health(), { status: 'up', stats: { idle: 0 } })
  await clock.advance(60_000)
  t.equal(connector.creates, 1, 'it stays asleep')
  await warm(pool)
  connector.connections[1]!.die(new Error('FIN'))
  t.match(await pool.health(), { status: 'down', stats: { creating: 1 } })
  await settle()
  t.match(await pool.health(), { status: 'up' })
})

t.test('a pool that was never connected is degraded, and so stays until somebody needs it', async (t) => {
  const { pool, connector, clock } = fakePool()
  t.match(await pool.health(), { status: 'degraded', reason: /nothing is known of the server/ })
  await clock.advance(30_000)
  t.equal((await pool.health()).status, 'degraded')
  t.equal(connector.creates, 0)
})

t.test('a dead connection that is lent tells nothing, and one that is idle is found', async (t) => {
  const fake = fakePool()
  const { pool, connector, clock } = fake
  const lease = await pool.acquire()
  connector.outcomes.create = 'error'
  ;(connector.connections[0] as FakeConnection).die(new Error('gone'))
  watch(pool.acquire({ timeout: 500 }))
  await clock.advance(1000)
  t.match(await pool.health(), { status: 'down', stats: { used: 1 } })
  connector.outcomes.create = 'ok'
  await askFor(fake, 3000)
  t.match(await pool.health(), { status: 'up', stats: { used: 1, idle: 1 } })
  lease.release()
  connector.connections.at(-1)!.broken = true
  connector.outcomes.create = 'hang'
  t.match(await pool.health(), { status: 'down', reason: 'no connection, and a connection died: it is broken' })
})
