import dns from 'node:dns'
import t, { type Test } from 'tap'
import { belongsTo, hashOf } from '../../lib/balance/rendezvous.js'
import { TargetPool, measureTargets, type TargetOptions, type TargetSpec } from '../../lib/balance/target-pool.js'
import type { Lease } from '../../types/pool.js'
import { VirtualClock } from '../support/clock.js'
import { FakeConnector, failure, watch, type FakeConnection } from '../support/fake-connector.js'

// Equal servers behind one name.

type Specs = Record<string, Partial<TargetSpec<FakeConnection>>>

function peers (t: Test, given: Specs, options: TargetOptions<FakeConnection> = {}) {
  const clock = new VirtualClock(1)
  const servers = new Map<string, FakeConnector>()
  const specs = Object.entries(given).map(([name, spec]): TargetSpec<FakeConnection> => {
    const connector = new FakeConnector()
    servers.set(name, connector)
    return { name, connector, role: 'peer', ...spec }
  })
  const pool = new TargetPool<FakeConnection>(specs, { max: 9, ...options }, clock)
  t.teardown(async () => {
    const closed = watch(pool.close())
    for (let round = 0; round < 30 && !closed.done; round++) await clock.advance(1000)
    const wrong = [...servers.values()].flatMap(({ violations }) => violations)
    if (!closed.done || clock.timers.set > 0 || wrong.length > 0) throw new Error(`left: ${wrong.join('; ')}`)
  })
  const at = (lease: Lease<FakeConnection>) =>
    [...servers].find(([, { connections }]) => connections.includes(lease.connection))![0]
  /** How many of so many leases each server has, three at a time. */
  const count = async (rounds: number, affinity?: string) => {
    const counts = new Map<string, number>([...servers.keys()].map((name) => [name, 0]))
    for (let round = 0; round < rounds; round++) {
      const options = affinity === undefined ? {} : { affinity }
      const taking = watch(Promise.all([0, 1, 2].map(() => pool.acquire(options))))
      await clock.advance(1)
      for (const lease of taking.value!) {
        counts.set(at(lease), counts.get(at(lease))! + 1)
        lease.release()
      }
    }
    return Object.fromEntries(counts)
  }
  const open = async () => {
    const opening = watch(pool.open())
    await clock.advance(5)
    if (opening.error !== undefined) throw opening.error
    t.ok(opening.done)
  }
  const kill = (name: string) => {
    const server = servers.get(name)!
    server.outcomes.create = 'error'
    for (const connection of server.connections) if (connection.state === 'open') connection.die(new Error('reset'))
  }
  return { clock, pool, servers, at, count, open, kill }
}

t.test('all take reads and writes, by weight', async (t) => {
  const { count, open, pool } = peers(t, { a: {}, b: {}, c: { weight: 2 } }, { min: 4 })
  await open()
  t.equal(pool.replicas, false)
  t.match(pool.stats().targets, [{ role: 'peer', min: 1 }, { role: 'peer', min: 1 }, { role: 'peer', min: 2 }])
  await count(40)
  const { a, b, c } = await count(100)
  t.ok(Math.abs(a! - 75) < 12 && Math.abs(b! - 75) < 12 && Math.abs(c! - 150) < 12, `${a} ${b} ${c}`)
  t.match(await pool.health(), { status: 'up' })
})

t.test('a peer that dies is skipped, and has its share again within 3 s of its return', async (t) => {
  const { clock, count, kill, open, pool, servers } = peers(t, { a: {}, b: {}, c: {} })
  await open()
  await count(40)
  kill('b')
  await clock.advance(200)
  const during = await count(50)
  t.equal(during.b, 0)
  t.equal(during.a! + during.c!, 150)
  t.match(await pool.health(), { status: 'degraded' })
  servers.get('b')!.outcomes.create = 'ok'
  await clock.advance(2000)
  await count(300)
  const { a, b, c } = await count(100)
  t.ok(Math.abs(b! - 100) < 15, `${a} ${b} ${c}`)
})

t.test('without any peer acquires are refused, and the pool is down', async (t) => {
  const { clock, kill, open, pool } = peers(t, { a: {}, b: {} })
  await open()
  kill('a')
  kill('b')
  const late = watch(pool.acquire({ timeout: 4000 }))
  await clock.advance(5000)
  t.ok(late.error)
  t.match(await pool.health(), { status: 'down' })
})

t.test('affinity: the same key has the same peer; of a peer that dies only its own keys move, and they come back', async (t) => {
  const { clock, at, kill, open, pool, servers } = peers(t, { a: {}, b: {}, c: {} })
  await open()
  const keys = Array.from({ length: 60 }, (_, n) => `user-${n}`)
  const homes = async () => {
    const all: string[] = []
    for (const affinity of keys) {
      const taking = watch(pool.acquire({ affinity }))
      await clock.advance(1)
      all.push(at(taking.value!))
      taking.value!.release()
    }
    return all
  }
  const before = await homes()
  t.same(new Set(before), new Set(['a', 'b', 'c']))
  t.same(await homes(), before)
  kill('c')
  await clock.advance(200)
  const without = await homes()
  t.same(without.map((home, n) => before[n] === 'c' ? home !== 'c' : home === before[n]), keys.map(() => true))
  servers.get('c')!.outcomes.create = 'ok'
  await clock.advance(3000)
  t.same(await homes(), before)
  t.match(await failure(pool.acquire({ affinity: 5 as unknown as string })), { code: 'FST_POOL_BAD_OPTIONS' })
})

t.test('rendezvous hashing: shares by weight, whatever the order', (t) => {
  const servers = [['a', 1], ['b', 1], ['c', 2]].map(([id, weight]) => ({ id, weight: weight as number, hash: hashOf(id as string) }))
  const counts: Record<string, number> = { a: 0, b: 0, c: 0 }
  for (let n = 0; n < 8000; n++) {
    const one = belongsTo(`key ${n}`, servers)
    counts[one.id as string]!++
    if (belongsTo(`key ${n}`, servers.toReversed?.() ?? [...servers].reverse()) !== one) t.fail('the order matters')
  }
  t.ok(Math.abs(counts.a! - 2000) < 250 && Math.abs(counts.c! - 4000) < 250, JSON.stringify(counts))
  t.end()
})

t.test('peers and other roles are not mixed', async (t) => {
  const connector = new FakeConnector()
  t.throws(() => new TargetPool([{ connector, role: 'peer' }, { connector }]),
    { code: 'FST_POOL_BAD_OPTIONS', message: /targets\.1\.role is missing: expected 'peer' like the others/ })
})

t.test('two targets that both say they are the primary are told of once', async (t) => {
  const says = (role: 'primary') => Object.assign(new FakeConnector(), { inspect: async () => ({ role }) })
  const clock = new VirtualClock(1)
  const pool = new TargetPool<FakeConnection>([{ connector: says('primary') }, { connector: says('primary') }], {}, clock)
  const errors: string[] = []
  pool.on('error', ({ phase, error }) => { errors.push(`${phase} ${error.message}`) })
  const opening = watch(pool.open())
  await clock.advance(3000)
  t.ok(opening.done)
  t.equal(errors.length, 1)
  t.match(errors[0], /^targets .*'primary-0', 'primary-1' all say .*role: 'peer'/)
  const closed = watch(pool.close())
  for (let round = 0; round < 9 && !closed.done; round++) await clock.advance(1000)
})

t.test("discover: a name's addresses come and go, leases end normally, and a name that fails retires nobody", async (t) => {
  let answer: string[] | Error = ['10.0.0.1', '10.0.0.2']
  const { lookup } = dns.promises
  t.teardown(() => { dns.promises.lookup = lookup })
  dns.promises.lookup = (async () => {
    if (answer instanceof Error) throw answer
    return answer.map((address) => ({ address, family: 4 }))
  }) as unknown as typeof lookup
  const made: string[] = []
  const { clock, open, pool } = peers(t, {
    db: {
      discover: {
        host: 'db.test',
        id: (address) => address,
        connect: async (address) => {
          made.push(address)
          return new FakeConnector()
        },
      },
    },
  })
  const names = () => pool.stats().targets!.map(({ target }) => target)
  await open()
  t.same(names(), ['db@10.0.0.1', 'db@10.0.0.2'])
  const taking = watch(Promise.all([pool.acquire(), pool.acquire()]))
  await clock.advance(5)
  answer = ['10.0.0.2', '10.0.0.3']
  await clock.advance(1500)
  t.same(names(), ['db@10.0.0.2', 'db@10.0.0.3'])
  t.equal(taking.value!.filter(({ ended }) => ended).length, 0)
  t.equal(pool.stats().used, 2, 'leases of a server that has gone count')
  for (const lease of taking.value!) lease.release()
  await clock.advance(100)
  t.equal(pool.stats().released >= 2, true, 'and so do its books')
  answer = new Error('no such name')
  const errors: string[] = []
  pool.on('error', ({ phase }) => { errors.push(phase) })
  await clock.advance(5000)
  t.same(names(), ['db@10.0.0.2', 'db@10.0.0.3'])
  t.same(errors, ['discover'], 'told once')
  answer = Array.from({ length: 20 }, (_, n) => `10.0.1.${n}`)
  await clock.advance(1500)
  t.equal(names().length, 9, 'no more than max')
  t.same(errors, ['discover', 'targets'])
})

/** A name whose addresses are `answers.now`. */
function named (t: Test, answers: { now: string[] }) {
  const { lookup } = dns.promises
  t.teardown(() => { dns.promises.lookup = lookup })
  dns.promises.lookup = (async () => answers.now.map((address) => ({ address, family: 4 }))) as unknown as typeof lookup
  const made = new Map<string, FakeConnector>()
  const connect = async (address: string) => {
    made.set(address, new FakeConnector())
    return made.get(address)!
  }
  return { made, discover: { host: 'db.test', id: (address: string) => address, connect } }
}

t.test('discover: replicas of a primary by their name', async (t) => {
  const answers = { now: ['10.0.0.1', '10.0.0.2'] }
  const { made, discover } = named(t, answers)
  const { at, clock, open, pool, servers } = peers(t, {
    one: { role: 'primary' }, reads: { role: 'replica', discover },
  })
  const names = () => pool.stats().targets!.map(({ target, role }) => `${target} ${role}`)
  await open()
  t.same(names(), ['one primary', 'reads@10.0.0.1 replica', 'reads@10.0.0.2 replica'])
  const taking = watch(Promise.all([pool.acquire(), ...[1, 2].map(() => pool.acquire({ role: 'replica' }))]))
  await clock.advance(5)
  const [write, ...reads] = taking.value!
  t.equal(at(write!), 'one')
  t.same(reads.map(({ connection }) => [...made].findIndex(([, { connections }]) => connections.includes(connection))),
    [0, 1])
  for (const lease of taking.value!) lease.release()
  answers.now = ['10.0.0.2']
  await clock.advance(1500)
  t.same(names(), ['one primary', 'reads@10.0.0.2 replica'])
  t.equal(made.get('10.0.0.1')!.connections.filter(({ state }) => state === 'open').length, 0)
  t.equal(servers.get('reads')!.connections.length, 0, 'the name itself is not connected to')
})

t.test('discover: a hundred addresses of a name at most', async (t) => {
  const answers = { now: Array.from({ length: 150 }, (_, n) => `10.0.1.${n}`) }
  const { discover } = named(t, answers)
  const { clock, open, pool } = peers(t, { db: { discover } }, { max: 300 })
  const warnings: string[] = []
  pool.on('error', ({ error }) => { warnings.push(error.message) })
  await open()
  t.equal(pool.stats().targets!.length, 100)
  t.match(warnings, [/has 150 addresses, of which 100 are used: there are 100 at most/])
  answers.now = answers.now.slice(0, 3)
  await clock.advance(1500)
  t.equal(pool.stats().targets!.length, 3)
})

t.test('discover: listeners and meters hear of servers that come later, until they are undone', async (t) => {
  const answers = { now: ['10.0.0.1'] }
  const { discover } = named(t, answers)
  const { clock, open, pool } = peers(t, { db: { discover } })
  await open()
  const heard: string[] = []
  let lent = 0
  const undoOn = pool.on('acquire', ({ target }) => { heard.push(target!) })
  const undoMeter = measureTargets(pool, { lent: () => { lent++ }, ended: () => {} })!
  answers.now = ['10.0.0.2']
  await clock.advance(1500)
  const use = async () => {
    const taking = watch(pool.acquire())
    await clock.advance(5)
    taking.value!.release()
  }
  await use()
  // The pool's own checks take connections, too.
  t.same(new Set(heard), new Set(['db@10.0.0.2']))
  t.equal(lent, heard.length)
  const before = lent
  undoOn()
  undoMeter()
  answers.now = ['10.0.0.3']
  await clock.advance(1500)
  await use()
  t.same([heard.length, lent], [before, before])
})

for (const balance of ['weighted', 'round-robin', 'least-used', 'random'] as const) {
  t.test(`peers are balanced: ${balance}`, async (t) => {
    const { count, open } = peers(t, { a: {}, b: {}, c: { weight: 2 } }, { balance })
    await open()
    const counts = await count(400)
    const shares = { a: counts.a! / 1200, b: counts.b! / 1200, c: counts.c! / 1200 }
    t.comment(shares)
    // Of three leases at a time the least used one for its weight has one of each.
    const isEven = balance === 'round-robin' || balance === 'least-used'
    const [most, least] = isEven ? [1 / 3, 1 / 3] : [1 / 2, 1 / 4]
    for (const [name, share] of Object.entries(shares)) {
      t.ok(Math.abs(share - (name === 'c' ? most : least)) < 0.05, `${name}: ${share}`)
    }
  })
}
