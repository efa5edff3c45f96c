import { getEventListeners } from 'node:events'
import t, { type Test } from 'tap'
import { TargetPool, type TargetOptions, type TargetSpec } from '../../lib/balance/target-pool.js'
import type { Role, ServerState } from '../../types/connector.js'
import type { Lease, PoolEventName, PoolEvents, TargetStats } from '../../types/pool.js'
import { VirtualClock } from '../support/clock.js'
import { FakeConnector, failure, watch, type FakeConnection, type Watched } from '../support/fake-connector.js'

// One pool over several servers, each of which says what it is.

class Server extends FakeConnector {
  /** What it says of itself; undefined: it does not answer. */
  says: ServerState | Error | undefined
  questions = 0
  asking = 0
  mostAsking = 0

  constructor (readonly name: string, says: ServerState) {
    super()
    this.says = says
  }

  async inspect (connection: FakeConnection, signal: AbortSignal): Promise<ServerState> {
    this.questions++
    this.mostAsking = Math.max(this.mostAsking, ++this.asking)
    if (!this.connections.includes(connection)) this.violations.push('it was asked on what is no connection of its own')
    else if (connection.state !== 'open') this.violations.push(`connection ${connection.id} was asked after its end`)
    try {
      if (this.says instanceof Error) throw this.says
      if (this.says !== undefined) return this.says
      return await new Promise((_resolve, reject) => {
        signal.addEventListener('abort', () => { reject(new Error('given up')) }, { once: true })
      })
    } finally {
      this.asking--
    }
  }

  isTransient (error: unknown): boolean {
    return error instanceof Error && error.message.includes('read-only')
  }

  /** As with `kill -9`. */
  kill (): void {
    this.outcomes.create = 'error'
    for (const connection of this.connections) if (connection.state === 'open') connection.die(new Error('connection reset'))
  }

  start (says: ServerState = { role: 'replica' }): void {
    this.outcomes.create = 'ok'
    this.says = says
  }
}

interface Cluster {
  readonly pool: TargetPool<FakeConnection, Server>
  readonly servers: Record<string, Server>
  readonly clock: VirtualClock
  readonly events: Array<{ readonly event: PoolEventName } & Record<string, unknown>>
  seen<E extends PoolEventName> (event: E): Array<PoolEvents[E]>
  /** Which server a lease is of. */
  at (lease: Lease<FakeConnection> | null | undefined): string
  stats (name: string): TargetStats
  take (count: number, role?: Role): Promise<Array<Lease<FakeConnection>>>
}

const names: readonly PoolEventName[] = [
  'connect', 'disconnect', 'acquire', 'release', 'wait', 'overflow', 'timeout', 'refuse', 'error', 'circuit',
  'failover', 'open', 'drain', 'close',
]

interface Given extends Partial<TargetSpec<FakeConnection>> { readonly says?: ServerState }

const primary = { role: 'primary' } as const
const replica = { role: 'replica' } as const

/** A pool over servers with these names. Each says the role that it is given as, unless it is told otherwise. */
function cluster (
  t: Test, given: Record<string, Given>, options: TargetOptions<FakeConnection> = {}, seed = 1
): Cluster {
  const clock = new VirtualClock(seed)
  const servers: Record<string, Server> = {}
  const specs = Object.entries(given).map(([name, { says, ...spec }]) => {
    const connector = (servers[name] = new Server(name, says ?? { role: spec.role as Role ?? 'primary' }))
    return { name, connector, ...spec }
  })
  const pool = new TargetPool<FakeConnection, Server>(specs, { max: 10, ...options }, clock)
  const events: Cluster['events'] = []
  for (const event of names) pool.on(event, (payload) => { events.push({ ...payload, event }) })
  t.teardown(async () => {
    const closed = watch(pool.close())
    for (let round = 0; round < 30 && !closed.done; round++) {
      await clock.advance(1000)
      for (const { calls } of Object.values(servers)) for (const call of [...calls]) call.pass()
    }
    await clock.advance(0)
    const wrong = Object.values(servers)
      .flatMap(({ violations, live, name }) =>
        [...violations, ...(live > 0 ? [`${live} connections of ${name} are left`] : [])])
    if (!closed.done) wrong.push('it did not close')
    if (clock.timers.set > 0) wrong.push(`${clock.timers.set} timers are left`)
    if (wrong.length > 0) throw new Error(wrong.join('; '))
  })
  return {
    pool,
    servers,
    clock,
    events,
    seen: <E extends PoolEventName>(event: E) =>
      events.filter((one) => one.event === event) as unknown as Array<PoolEvents[E]>,
    at: (lease) => Object.values(servers).find(({ connections }) => connections.includes(lease!.connection))!.name,
    stats: (name) => pool.stats().targets!.find(({ target }) => target === name)!,
    take: (count, role = 'primary') => Promise.all(Array.from({ length: count }, () => pool.acquire({ role }))),
  }
}

/** The servers of so many leases that are taken together, and given back. */
async function readers (all: Cluster, count: number): Promise<string[]> {
  const taking = watch(all.take(count, 'replica'))
  await all.clock.advance(0)
  const leases = taking.value!
  const names = new Set(leases.map(all.at))
  give(leases)
  return [...names].sort()
}

/** Opens it. */
async function opened (cluster: Cluster): Promise<void> {
  const opening = watch(cluster.pool.open())
  await cluster.clock.advance(0)
  if (opening.error !== undefined) throw opening.error
  if (!opening.done) throw new Error('it is not open yet')
}

const pair = { a: {}, b: replica }
const trio = { a: {}, b: replica, c: replica }

const live = ({ servers }: Cluster) => Object.values(servers).reduce((sum, { live }) => sum + live, 0)

function give (leases: Array<Lease<FakeConnection>>): void {
  for (const lease of leases) lease.release()
}

const states = (all: Array<Watched<unknown>>) => all.map(({ done, error }) => done ? error?.code ?? 'served' : 'waits')

// --- Options ---------------------------------------------------------------------------------------------------------

t.test('bad options are refused by name', (t) => {
  const connector = new FakeConnector()
  const rows: Array<[Array<TargetSpec<FakeConnection>>, TargetOptions<FakeConnection>, RegExp]> = [
    [[], {}, /targets is an array: expected a list of at least one/],
    [[{ connector, weight: 0 }], {}, /targets\.0\.weight is 0: expected a number above 0/],
    [[{ connector }], { balance: 'fair' as 'random' },
      /balance is 'fair': expected one of 'weighted', 'round-robin', 'least-used', 'random'/],
    [[{ connector }], { maxLag: 0 }, /maxLag is 0/],
    [[{ connector }], { checkInterval: 0 }, /checkInterval is 0/],
    [[{ connector }, { connector }], { max: 1 }, /max is 1: expected an integer from 2 \(one for each target\)/],
    [[{ connector }], { max: 0 }, /max is 0/],
    [[{ connector }], { nonsense: 1 } as TargetOptions<FakeConnection>, /nonsense/],
  ]
  for (const [targets, options, message] of rows) {
    t.throws(() => new TargetPool(targets, options),
      { code: 'FST_POOL_BAD_OPTIONS', message }, String(message))
  }
  t.end()
})

t.test('a role, a timeout or an event that there is not is refused', async (t) => {
  const { pool } = cluster(t, pair)
  const refused = { code: 'FST_POOL_BAD_OPTIONS' }
  t.match(await failure(pool.acquire({ role: 'writer' as Role })), refused)
  t.throws(() => pool.tryAcquire({ role: 'toString' as Role }), refused)
  for (const timeout of [0, NaN, Infinity, '5' as unknown as number]) {
    t.match(await failure(pool.acquire({ timeout })),
      refused)
  }
  t.throws(() => pool.on('end' as PoolEventName, () => {}), refused)
  t.throws(() => pool.resize({ max: 1 }), refused)
  t.throws(() => pool.resize({ min: 11 }), refused)
  t.match(pool.stats(), { min: 0, max: 10, created: 0 })
})

t.test('targets have names, weights and limits of their own, and the pool tells whether there may be replicas', (t) => {
  const { pool } = cluster(t, { a: { max: 3 }, b: { ...replica, max: 20 } }, { max: 5, min: 3 })
  t.match(pool.stats(),
    { min: 3, max: 5, targets: [{ target: 'a', role: 'primary', lag: null, min: 0, max: 3 }, { target: 'b', role: 'replica', min: 0, max: 5 }] })
  t.equal(pool.replicas, true)
  t.equal(cluster(t, { a: {} }).pool.replicas, false)
  t.same(new TargetPool([{ connector: new FakeConnector() }, { connector: new FakeConnector(), role: 'replica' }])
    .stats().targets!.map(({ target }) => target), ['primary-0', 'replica-1'])
  t.end()
})

// --- Roles -----------------------------------------------------------------------------------------------------------

t.test('open asks each target what it is, and has the primary\'s connections', async (t) => {
  const all = cluster(t, { a: replica, b: replica, c: replica }, { min: 3 })
  all.servers.b!.says = primary
  await opened(all)
  t.match(all.pool.stats(),
    { min: 3, targets: [{ role: 'replica', idle: 1, min: 0 }, { role: 'primary', idle: 3, min: 3 }, { role: 'replica', idle: 1, min: 0 }] })
  t.equal(all.pool.backend, all.servers.b)
  t.same(all.seen('failover'), [], 'the first primary is no failover')
  t.equal(all.seen('open').length, 1)
  t.equal(all.at(await all.pool.acquire()), 'b')
})

t.test('open does not mind a target that can not be reached, or does not answer, where there is a primary', async (t) => {
  for (const how of ['dead', 'silent', 'hangs'] as const) {
    const all = cluster(t, trio, { min: 1, connectTimeout: 800 })
    if (how === 'dead') all.servers.b!.outcomes.create = 'error'
    else if (how === 'hangs') all.servers.b!.outcomes.create = 'hang'
    else all.servers.b!.says = undefined
    const opening = watch(all.pool.open())
    await all.clock.advance(how === 'dead' ? 0 : 1000)
    t.ok(opening.done, how)
    t.equal(opening.error, undefined, how)
    t.equal((await all.pool.health()).status, how === 'silent' ? 'up' : 'degraded', how)
    t.equal(all.at(await all.pool.acquire({ role: 'replica' })), 'c', how)
  }
})

t.test('open fails where there is no primary, and says why', async (t) => {
  const all = cluster(t, trio)
  all.servers.a!.outcomes.create = 'error'
  const opening = watch(all.pool.open())
  await all.clock.advance(0)
  t.match(opening.error, {
    code: 'FST_POOL_CONNECT_FAILED',
    message: "pool 'db' has no primary among its 3 targets (a: create failed; b: it says that it is a replica; c: it says that it is a replica)",
    cause: { message: 'create failed' },
  })
  t.equal(all.seen('open').length, 0)
  all.servers.a!.outcomes.create = 'ok'
  await all.clock.advance(1000)
  await opened(all)
})

t.test('a closed pool can not be opened, and closing ends an open', async (t) => {
  const all = cluster(t, { a: {} })
  all.servers.a!.outcomes.create = 'hang'
  const opening = watch(all.pool.open())
  await all.clock.advance(10)
  all.pool.close()
  await all.clock.advance(0)
  t.match(opening.error, { code: 'FST_POOL_CLOSED' })
  t.match(await failure(all.pool.open()), { code: 'FST_POOL_CLOSED' })
})

t.test('the first acquire waits until a target has said that it is the primary', async (t) => {
  const all = cluster(t, pair)
  all.servers.a!.says = replica
  all.servers.b!.says = primary
  t.equal(all.pool.tryAcquire(), null)
  const lease = watch(all.pool.acquire())
  await all.clock.advance(200)
  t.equal(all.at(lease.value), 'b')
})

t.test('each target is asked every checkInterval, never twice at the same time, and nobody else waits for that', async (t) => {
  const all = cluster(t, pair, { checkInterval: 500 })
  await opened(all)
  const { a, b } = all.servers as { a: Server, b: Server }
  t.same([a.questions, b.questions], [1, 1])
  await all.clock.advance(5000)
  t.same([a.questions, b.questions], [11, 11])
  b.says = undefined
  await all.clock.advance(5000)
  t.equal(b.mostAsking, 1)
  t.ok(b.questions <= 11 + 5, `at most one each second: ${b.questions}`)
  t.equal(all.clock.timers.ref, 0, 'and it does not keep the process alive')
})

t.test('a busy pool is not asked more than it can answer, and that is in no one\'s books', async (t) => {
  const all = cluster(t, { a: {} }, { max: 1, min: 1 })
  await opened(all)
  const lease = await all.pool.acquire()
  const waiting = watch(all.pool.acquire({ timeout: 5000 }))
  await all.clock.advance(4000)
  t.match(all.pool.stats(), { timeouts: 0, aborted: 0, refused: 0 })
  lease.release()
  await all.clock.advance(0)
  t.equal(states([waiting])[0], 'served')
  waiting.value!.release()
})

t.test('who can not be asked is what it was given as, and so is who refuses the question', async (t) => {
  const dumb = new FakeConnector()
  const pool =
    new TargetPool<FakeConnection>([{ name: 'a', connector: dumb },
      { name: 'b', role: 'replica', connector: new FakeConnector() }], {}, new VirtualClock())
  t.equal(pool.backend, dumb)
  const lease = await pool.acquire()
  t.ok(dumb.connections.includes(lease.connection))
  lease.release()
  await pool.close()

  const all = cluster(t, pair)
  all.servers.a!.says = new Error('permission denied')
  await opened(all)
  t.equal(all.at(await all.pool.acquire()), 'a')
  t.ok(all.seen('error').some(({ error }) => error.message === 'permission denied'))
  t.equal(all.servers.a!.creates <= 2, true, 'its connection is kept')
  const before = all.servers.a!.questions
  await all.clock.advance(5000)
  t.ok(all.servers.a!.questions - before <= 6, 'and it is not asked more often than others')
})

t.test('what wrap makes is for borrowers: a target is asked on the connection itself', async (t) => {
  const all = cluster(t, pair, { wrap: (connection) => ({ ...connection, wrapped: connection }) as FakeConnection })
  all.servers.a!.says = replica
  all.servers.b!.says = primary
  await opened(all)
  const { connection } = await all.pool.acquire()
  t.ok(all.servers.b!.connections.includes((connection as FakeConnection & { wrapped: FakeConnection }).wrapped))
  await all.clock.advance(5000)
  t.ok(all.servers.a!.questions >= 5)
  t.same([...all.servers.a!.violations, ...all.servers.b!.violations], [])
})

t.test('an answer that is none is an error', async (t) => {
  const all = cluster(t, pair)
  all.servers.b!.says = { role: 'master' as Role }
  await opened(all)
  t.match(all.seen('error')[0],
    { phase: 'validate', error: { code: 'FST_POOL_BAD_OPTIONS', message: /inspect\(\)\.role is 'master'/ } })
  t.equal(all.stats('b').role, 'replica', 'as it was given')
  for (const [says, message] of [[{ role: 'replica', lag: NaN }, /lag is NaN/], [{ role: 'replica', lag: -1 }, /lag is -1/], [{ role: 'replica', offset: 'x' }, /offset is 'x'/], [null, /role is missing/]] as const) {
    all.servers.b!.says = says as unknown as ServerState
    await all.clock.advance(1000)
    t.match(all.seen('error').at(-1), { error: { message } })
  }
})

// --- Failover --------------------------------------------------------------------------------------------------------

t.test('a new primary is followed: idle connections of the old one are closed, lent ones when they come back', async (t) => {
  const all = cluster(t, trio, { min: 2 })
  await opened(all)
  const before = await all.pool.acquire()
  t.equal(all.at(before), 'a')
  all.servers.a!.says = replica
  all.servers.b!.says = primary
  await all.clock.advance(1000)
  t.match(all.seen('failover'), [{ pool: 'db', from: 'a', to: 'b' }])
  t.equal(all.pool.backend, all.servers.b)
  t.equal(before.ended, false, 'who holds one keeps it')
  t.match(all.stats('a'), { used: 1, idle: 0, min: 0, role: 'replica', destroyed: { stale: 1 } })
  t.match(all.stats('b'), { min: 2, role: 'primary' })
  t.equal(all.at(await all.pool.acquire()), 'b')
  before.release()
  await all.clock.advance(0)
  t.match(all.stats('a').destroyed, { stale: 2 })
})

t.test('where the old primary steps down first there is none for a moment, and all are asked often', async (t) => {
  const all = cluster(t, pair)
  await opened(all)
  all.servers.a!.says = replica
  await all.clock.advance(1000)
  t.match(all.seen('failover'), [{ from: 'a', to: undefined }])
  t.match(await all.pool.health(),
    { status: 'degraded', reason: 'no primary: a: it says that it is a replica; b: it says that it is a replica' })
  const before = all.servers.b!.questions
  const waiting = watch(all.pool.acquire())
  await all.clock.advance(1000)
  const often = all.servers.b!.questions - before
  t.ok(often >= 5 && often <= 11, `${often} times in a second`)
  t.equal(all.pool.stats().pending, 1)
  all.servers.b!.says = primary
  await all.clock.advance(200)
  t.equal(all.at(waiting.value), 'b')
  t.match(all.seen('failover').at(-1), { from: undefined, to: 'b' })
})

t.test('who waits at the old primary waits at the new one, in the same order and until the same deadline', async (t) => {
  const all =
    cluster(t, { a: { max: 1 }, b: { ...replica, max: 1 } }, { max: 2, acquireTimeout: 3000, validateTimeout: 200 })
  await opened(all)
  const held = await all.pool.acquire()
  const order: number[] = []
  const waiting = [0, 1, 2].map((at) => watch(all.pool.acquire().then((lease) => { order.push(at); return lease })))
  await all.clock.advance(500)
  all.servers.b!.says = primary
  await all.clock.advance(1500)
  t.match(all.seen('failover'), [{ from: 'a', to: 'b' }])
  t.same(states(waiting), ['served', 'waits', 'waits'])
  waiting[0]!.value!.release()
  await all.clock.advance(0)
  t.same(order, [0, 1])
  await all.clock.advance(990)
  t.same(states(waiting), ['served', 'served', 'waits'])
  await all.clock.advance(20)
  t.equal(waiting[2]!.error?.code, 'FST_POOL_ACQUIRE_TIMEOUT', 'its deadline is what it was')
  t.match(all.pool.stats(), { refused: 0, timeouts: 1 })
  t.same(all.seen('refuse'), [], 'nobody was refused')
  held.release()
  waiting[1]!.value!.release()
})

t.test('a primary that is killed: writes go on where another one is promoted', async (t) => {
  const all = cluster(t, trio, { min: 2, acquireTimeout: 5000 })
  await opened(all)
  const { a, c } = all.servers as { a: Server, c: Server }
  a.kill()
  const began = all.clock.now()
  const waiting = Array.from({ length: 5 }, () => watch(all.pool.acquire()))
  await all.clock.advance(700)
  t.same(states(waiting), ['waits', 'waits', 'waits', 'waits', 'waits'])
  c.says = primary
  const promoted = all.clock.now()
  while (!waiting.every(({ done }) => done)) await all.clock.advance(10)
  t.ok(all.clock.now() - promoted <= 250,
    `served ${all.clock.now() - promoted} ms after it was promoted, ${all.clock.now() - began} ms after the kill`)
  t.same(waiting.map(({ value }) => all.at(value)), ['c', 'c', 'c', 'c', 'c'])
  t.match(all.pool.stats(), { refused: 0, timeouts: 0 })
  give(waiting.map(({ value }) => value!))
  t.equal((await all.pool.health()).status, 'degraded')

  // It comes back, and still thinks that it is the primary; then it follows the new one.
  a.start(primary)
  await all.clock.advance(3000)
  t.equal(all.pool.backend, c)
  t.match(all.stats('a'), { role: 'primary', circuit: 'closed' })
  a.says = replica
  await all.clock.advance(1500)
  t.equal((await all.pool.health()).status, 'up')
  t.same(await readers(all, 6), ['a', 'b'], 'and serves readers')
})

t.test('a primary that hangs does not keep the room of the one that is promoted', async (t) => {
  const all = cluster(t, pair, { max: 10, connectTimeout: 20_000 })
  await opened(all)
  const { a, b } = all.servers as { a: Server, b: Server }
  a.says = undefined
  a.outcomes.create = 'gate'
  a.outcomes.validate = 'hang'
  const waiting = Array.from({ length: 20 }, () => watch(all.pool.acquire({ timeout: 20_000 })))
  await all.clock.advance(3000)
  b.says = primary
  await all.clock.advance(210)
  t.ok(waiting.filter(({ done }) => done).length >= 7,
    `${waiting.filter(({ done }) => done).length} of 20 are served, of 10 that there may be`)
  while (waiting.some(({ done }) => !done)) {
    for (const { value } of waiting) value?.release()
    await all.clock.advance(10)
  }
  t.match(all.pool.stats(), { refused: 0, timeouts: 0 })
})

t.test('of two that say primary, the last one to become it is it; the old one gets no writes until it has followed', async (t) => {
  const all = cluster(t, pair)
  await opened(all)
  const held = await all.take(2)
  held[0]!.release()
  all.servers.b!.says = primary
  await all.clock.advance(1000)
  t.equal(all.pool.backend, all.servers.b)
  t.match(all.stats('a'), { idle: 0, destroyed: { stale: 1 } }, 'the idle ones of the old one are closed')
  held[1]!.release()
  await all.clock.advance(0)
  t.match(all.stats('a').destroyed, { stale: 2 }, 'and those that were lent as they come back')
  await all.clock.advance(10_000)
  t.equal(all.pool.backend, all.servers.b, 'the other one says nothing new')
  t.equal(all.seen('failover').length, 1)

  t.match(await all.pool.health(),
    { status: 'degraded', reason: 'a: it says that it is a primary, but another one has become it since' })

  // What was written since is not on the old one.
  all.servers.b!.kill()
  const waiting = watch(all.pool.acquire({ timeout: 3000 }))
  await all.clock.advance(3000)
  t.ok(['FST_POOL_ACQUIRE_TIMEOUT', 'FST_POOL_CIRCUIT_OPEN'].includes(states([waiting])[0]!), states([waiting])[0]!)
  t.equal((await all.pool.health()).status, 'down')
  all.servers.a!.says = replica
  await all.clock.advance(1000)
  all.servers.a!.says = primary
  await all.clock.advance(1000)
  t.equal(all.pool.backend, all.servers.a, 'one that is promoted anew is it')
})

t.test('an old primary that was not there at the start, and comes back as one, gets no writes', async (t) => {
  const all = cluster(t, pair)
  const { a, b } = all.servers as { a: Server, b: Server }
  a.kill()
  b.says = primary
  await opened(all)
  t.equal(all.pool.backend, b)
  a.start(primary)
  await all.clock.advance(5000)
  t.match(all.stats('a'), { circuit: 'closed', role: 'primary' })
  t.equal(all.pool.backend, b)
  b.kill()
  await all.clock.advance(3000)
  t.equal(all.pool.backend, b)
})

t.test('an old primary is it again where the new one follows it, also where nobody has seen it follow', async (t) => {
  const all = cluster(t, pair)
  await opened(all)
  all.servers.b!.says = primary
  await all.clock.advance(1000)
  all.servers.b!.says = { role: 'replica', lag: Infinity }
  await all.clock.advance(2000)
  t.match(all.seen('failover').at(-1), { to: undefined }, 'it follows nobody: another one may soon be promoted')
  t.match(await all.pool.health(),
    { status: 'degraded', reason: 'no primary: a: it says that it is a primary, but another one has become it since; b: it says that it is a replica' })
  all.servers.b!.says = { role: 'replica', lag: 0 }
  await all.clock.advance(300)
  t.equal(all.pool.backend, all.servers.a)
})

t.test('two that have both been primaries all along stand in for each other', async (t) => {
  const all = cluster(t, { a: {}, b: {} })
  await opened(all)
  const first = all.pool.backend
  const second = first === all.servers.a ? all.servers.b : all.servers.a
  first.kill()
  await all.clock.advance(3000)
  t.equal(all.pool.backend, second)
  first.start(primary)
  second!.kill()
  await all.clock.advance(3000)
  t.equal(all.pool.backend, first)
})

t.test('a primary that hangs: writes go on at once where another one is promoted, and stay there when it wakes', async (t) => {
  const all = cluster(t, pair, { max: 20 })
  await opened(all)
  const { a, b } = all.servers as { a: Server, b: Server }
  const held = await all.take(3)
  a.says = undefined
  a.outcomes.create = a.outcomes.validate = a.outcomes.destroy = 'hang'
  const waiting = Array.from({ length: 5 }, () => watch(all.pool.acquire({ timeout: 20_000 })))
  await all.clock.advance(4000)
  const asked = b.questions
  await all.clock.advance(2000)
  t.ok(b.questions - asked >= 10, `the other one is asked often: ${b.questions - asked} times in 2 s`)
  b.says = primary
  await all.clock.advance(210)
  t.same(waiting.map(({ value }) => value && all.at(value)), Array(5).fill('b'))
  a.start(primary)
  a.outcomes.validate = a.outcomes.destroy = 'ok'
  for (const call of [...a.calls]) call.pass()
  await all.clock.advance(5000)
  t.equal(all.pool.backend, b)
  give(held)
  give(waiting.map(({ value }) => value!))
  await all.clock.advance(0)
  t.ok(a.connections.filter(({ state }) => state === 'open').length <= 1, 'one that is asked')
})

t.test('a connection that fails with an error has all targets asked at once, but not without a pause', async (t) => {
  const all = cluster(t, pair, { checkInterval: 60_000 })
  await opened(all)
  const leases = await all.take(5)
  await all.clock.advance(1000)
  all.servers.b!.says = primary
  all.servers.a!.says = replica
  for (const lease of leases.slice(0, 3)) lease.destroy(new Error('cannot execute INSERT in a read-only transaction'))
  await all.clock.advance(2)
  t.match(all.seen('failover'), [{ from: 'a', to: 'b' }])
  const before = all.servers.a!.questions
  for (const lease of leases.slice(3)) lease.destroy(new Error('read-only'))
  await all.clock.advance(50)
  t.equal(all.servers.a!.questions, before)
})

t.test('use runs again on the new primary where the old one takes no writes any more', async (t) => {
  const all = cluster(t, pair, { checkInterval: 60_000 })
  await opened(all)
  all.servers.a!.says = replica
  all.servers.b!.says = primary
  const tried: string[] = []
  const used = watch(all.pool.use((_, lease) => {
    tried.push(all.at(lease))
    if (all.at(lease) === 'a') throw new Error('read-only')
    return 'written'
  }, { retry: 2 }))
  await all.clock.advance(500)
  t.match(used, { done: true, value: 'written' })
  t.same(tried.at(-1), 'b')
  t.match(await failure(all.pool.use(() => {}, { retry: -1 })), { code: 'FST_POOL_BAD_OPTIONS' })
})

t.test('a pause before the next run ends with the pool', async (t) => {
  const all = cluster(t, { a: {} }, { backoff: { min: 1000, max: 1000 } })
  await opened(all)
  const used = watch(all.pool.use(() => { throw new Error('read-only') }, { retry: 9 }))
  await all.clock.advance(1)
  all.pool.close()
  await all.clock.advance(0)
  t.match(used.error, { code: 'FST_POOL_CLOSED' })
})

t.test('who waited at several targets, and in vain, is told of all of its deadline', async (t) => {
  const all = cluster(t, { a: { max: 1 }, b: { ...replica, max: 1 } }, { max: 2, validateTimeout: 200 })
  await opened(all)
  const held = await all.pool.acquire()
  const [first, second] =
    [{ id: '1' },
      { id: '2' }].map((holder) => watch(all.pool.acquire({ holder, timeout: 3000 }))) as [Watched<Lease<FakeConnection>>, Watched<Lease<FakeConnection>>]
  await all.clock.advance(500)
  all.servers.b!.says = primary
  await all.clock.advance(3000)
  t.ok(first.value)
  t.match(second.error,
    { code: 'FST_POOL_ACQUIRE_TIMEOUT', message: /^no connection from pool 'db' within 3000 ms \(max 1, used 1,/, holders: [{ heldFor: Number }] })
  t.match(all.seen('timeout'), { length: 1, 0: { wait: 3000, holder: { id: '2' }, target: 'b', error: second.error } })
  t.equal(all.pool.stats().timeouts, 1)
  give([held, first.value!])
})

// --- The line for a primary ------------------------------------------------------------------------------------------

/** No primary, and all are well. */
async function headless (t: Test, options: TargetOptions<FakeConnection> = {}): Promise<Cluster> {
  const all = cluster(t, pair, options)
  await opened(all)
  all.servers.a!.says = replica
  await all.clock.advance(1000)
  return all
}

t.test('who waits for a primary is served in order, may leave, and has a deadline', async (t) => {
  const all = await headless(t)
  const controller = new AbortController()
  const order: number[] = []
  const acquire = (at: number, options = {}) =>
    watch(all.pool.acquire({ holder: String(at), ...options }).then((lease) => { order.push(at); return lease }))
  const { ref } = all.clock.timers
  const waiting = [acquire(0), acquire(1, { signal: controller.signal }), acquire(2, { timeout: 300 }), acquire(3)]
  await all.clock.advance(0)
  t.equal(all.pool.stats().pending, 4)
  t.equal(all.clock.timers.ref, ref + 1, 'and the process stays alive for them')
  controller.abort(new Error('gone'))
  await all.clock.advance(299)
  t.same(states(waiting), ['waits', 'FST_POOL_ABORTED', 'waits', 'waits'])
  t.match(waiting[1]!.error!.cause, { message: 'gone' })
  await all.clock.advance(2)
  t.match(waiting[2]!.error,
    { code: 'FST_POOL_ACQUIRE_TIMEOUT', statusCode: 503, message: "pool 'db' has no primary among its 2 targets, and did not get one within 300 ms" })
  t.match(all.seen('timeout'), [{ holder: '2', wait: 300 }])
  t.match(all.pool.stats(), { pending: 2, aborted: 1, timeouts: 1 })
  t.match(await failure(all.pool.acquire({ signal: controller.signal })), { code: 'FST_POOL_ABORTED' })
  all.servers.b!.says = primary
  await all.clock.advance(200)
  t.same(order, [0, 3])
  t.equal(all.pool.stats().pending, 0)
})

t.test('the line for a primary is no longer than maxPending', async (t) => {
  const all = await headless(t, { maxPending: 2 })
  const waiting = [all.pool.acquire(), all.pool.acquire()].map(watch)
  t.match(await failure(all.pool.acquire({ holder: 'third' })), { code: 'FST_POOL_QUEUE_FULL', statusCode: 503 })
  t.match(all.seen('refuse'), [{ holder: 'third' }])
  t.equal(all.pool.stats().refused, 1)
  t.same(states(waiting), ['waits', 'waits'])
  all.servers.b!.says = primary
  await all.clock.advance(300)
  t.same(states(waiting), ['served', 'served'])
})

t.test('where no target can be had, all are refused at once, until one can', async (t) => {
  const all = cluster(t, pair)
  await opened(all)
  for (const name of ['a', 'b']) all.servers[name]!.kill()
  const waiting = watch(all.pool.acquire({ timeout: 20_000 }))
  await all.clock.advance(5000)
  t.match(waiting.error, { code: 'FST_POOL_CIRCUIT_OPEN', statusCode: 503, cause: { message: 'create failed' } })
  t.match(await failure(all.pool.acquire()), { code: 'FST_POOL_CIRCUIT_OPEN' })
  t.match(await failure(all.pool.acquire({ role: 'replica' })), { code: 'FST_POOL_CIRCUIT_OPEN' })
  t.equal(all.pool.stats().circuit, 'open')
  t.equal((await all.pool.health()).status, 'down')
  const tried = all.servers.a!.creates
  await all.clock.advance(5000)
  t.ok(all.servers.a!.creates - tried <= 10, 'and there are no more creates than the circuit breaker tries')
  all.servers.b!.start(replica)
  await all.clock.advance(1000)
  const later = watch(all.pool.acquire())
  await all.clock.advance(100)
  t.same(states([later]), ['waits'], 'one that may be the primary soon')
  all.servers.a!.start(primary)
  await all.clock.advance(1000)
  t.equal(all.at(later.value), 'a')
})

t.test('a primary that can not be asked, and fails, has nobody to take its place', async (t) => {
  const a = new FakeConnector()
  const clock = new VirtualClock()
  const pool =
    new TargetPool<FakeConnection>([{ name: 'a', connector: a },
      { name: 'b', role: 'replica', connector: new FakeConnector() }], {}, clock)
  a.outcomes.create = 'error'
  const waiting = watch(pool.acquire({ timeout: 10_000 }))
  await clock.advance(3000)
  t.match(waiting.error, { code: 'FST_POOL_CIRCUIT_OPEN' })
  t.match(await failure(pool.acquire()), { code: 'FST_POOL_CIRCUIT_OPEN' })
  const reader = await pool.acquire({ role: 'replica' })
  reader.release()
  a.outcomes.create = 'ok'
  await clock.advance(600)
  ;(await pool.acquire()).release()
  await pool.close()
  t.equal(clock.timers.set, 0)
})

// --- Replicas --------------------------------------------------------------------------------------------------------

t.test('who reads gets a replica; where none can be used, the primary', async (t) => {
  const all = cluster(t, trio)
  await opened(all)
  t.same(await readers(all, 4), ['b', 'c'])
  all.servers.b!.kill()
  await all.clock.advance(100)
  t.same(await readers(all, 4), ['c'])
  all.servers.c!.kill()
  await all.clock.advance(100)
  t.same(await readers(all, 2), ['a'])
  all.servers.b!.start()
  await all.clock.advance(3000)
  t.equal(all.at(await all.pool.acquire({ role: 'replica' })), 'b', 'and the replica again when it is back')
})

t.test('who waits at a replica that fails goes to another one', async (t) => {
  const all = cluster(t, trio)
  await opened(all)
  const { b } = all.servers as { b: Server }
  b.kill()
  b.outcomes.create = 'gate'
  const waiting = Array.from({ length: 6 }, () => watch(all.pool.acquire({ role: 'replica' })))
  await all.clock.advance(0)
  t.ok(states(waiting).includes('waits'))
  b.outcomes.create = 'error'
  while (b.calls.length > 0) b.fail('create')
  await all.clock.advance(10)
  t.same(new Set(states(waiting)), new Set(['served']))
  t.match(all.pool.stats(), { refused: 0 })
})

t.test('a replica that is gone is left out, also where somebody still holds a connection of it and the other one is just being asked', async (t) => {
  const all = cluster(t, trio, { checkInterval: 500 })
  await opened(all)
  const held = (await all.take(2, 'replica')).find((lease) => all.at(lease) === 'b')!
  all.servers.b!.kill()
  all.servers.c!.says = undefined
  await all.clock.advance(600)
  t.equal(all.servers.c!.asking, 1)
  const reads = Array.from({ length: 6 }, () => watch(all.pool.acquire({ role: 'replica' })))
  await all.clock.advance(0)
  t.same(reads.map(({ value }) => value && all.at(value)), Array(6).fill('c'))
  held.release()
})

t.test('who waits at a replica of which only dead connections are left goes to another one', async (t) => {
  const all = cluster(t, trio)
  await opened(all)
  const held = (await all.take(2, 'replica')).filter((lease) => all.at(lease) === 'b')
  const { b, c } = all.servers as { b: Server, c: Server }
  b.outcomes.create = c.outcomes.create = 'gate'
  const waiting = Array.from({ length: 4 }, () => watch(all.pool.acquire({ role: 'replica' })))
  await all.clock.advance(0)
  t.ok(all.stats('b').pending > 0)
  b.kill()
  c.outcomes.create = 'ok'
  for (const server of [b, c]) {
    while (server.calls.length > 0) {
      server === b
        ? server.fail('create')
        : server.pass('create')
    }
  }
  await all.clock.advance(10)
  t.same(waiting.map(({ value }) => value && all.at(value)), Array(4).fill('c'))
  give(held)
})

t.test('a replica that hangs is left out from when it has not answered, and who waits there goes to another one', async (t) => {
  const all = cluster(t, trio, { max: 30, checkInterval: 500, validateTimeout: 300 })
  await opened(all)
  const { b } = all.servers as { b: Server }
  b.says = undefined
  b.outcomes.create = 'hang'
  await all.clock.advance(700)
  const early = Array.from({ length: 4 }, () => watch(all.pool.acquire({ role: 'replica' })))
  t.ok(states(early).includes('waits'))
  await all.clock.advance(300)
  const later = Array.from({ length: 6 }, () => watch(all.pool.acquire({ role: 'replica' })))
  await all.clock.advance(10)
  t.same([...early, ...later].map(({ value }) => value && all.at(value)), Array(10).fill('c'))
  b.start()
  await all.clock.advance(5000)
  give([...early, ...later].map(({ value }) => value!))
  t.same(await readers(all, 4), ['b', 'c'], 'and is read from again when it answers')
})

t.test('a replica of which one connection dies as it is asked is soon asked again on another one', async (t) => {
  const all = cluster(t, trio, { checkInterval: 10_000 })
  await opened(all)
  all.servers.b!.says = new Error('read-only')
  await all.clock.advance(10_000)
  t.same(await readers(all, 4), ['c'])
  all.servers.b!.says = replica
  await all.clock.advance(101)
  t.same(await readers(all, 4), ['b', 'c'])
  all.servers.b!.kill()
  await all.clock.advance(10_000)
  const before = all.servers.c!.questions
  await all.clock.advance(60_000)
  t.ok(all.servers.c!.questions - before <= 30,
    `where it stays away, the others are not asked all the time: ${all.servers.c!.questions - before} times in a minute`)
})

t.test('a replica whose primary died is read from until it may be further behind than maxLag', async (t) => {
  const all = cluster(t, trio, { maxLag: 2000, checkInterval: 100 })
  all.servers.b!.says = { role: 'replica', lag: 300 }
  all.servers.c!.says = { role: 'replica', lag: Infinity }
  await opened(all)
  t.equal(all.stats('c').lag, Infinity)
  t.same(await readers(all, 4), ['b'], 'one that was never near is left out')
  await all.clock.advance(1000)
  t.equal(all.stats('b').lag, 300, 'it is behind by what it says')
  all.servers.b!.says = { role: 'replica', lag: Infinity }
  await all.clock.advance(1500)
  t.equal(all.stats('b').lag, 1800, 'and no further than the time that has passed since')
  t.same(await readers(all, 4), ['b'])
  await all.clock.advance(300)
  t.equal(all.stats('b').lag, 2100)
  t.same(await readers(all, 2), ['a'])
  all.servers.b!.says = { role: 'replica', lag: 2000 }
  await all.clock.advance(100)
  t.same(await readers(all, 4), ['b'], 'it follows again')
})

t.test('a lag that says how long ago the last change was is no lag after an idle hour', async (t) => {
  const all = cluster(t, pair, { maxLag: 2000 })
  all.servers.b!.says = { role: 'replica', lag: 0 }
  await opened(all)
  await all.clock.advance(3_600_000)
  all.servers.b!.says = { role: 'replica', lag: 3_600_000 }
  await all.clock.advance(1000)
  t.equal(all.stats('b').lag, 1000)
  t.same(await readers(all, 2), ['b'])
})

t.test('what a primary had is not what it has once it follows another one', async (t) => {
  const all = cluster(t, pair, { maxLag: 2000 })
  all.servers.b!.says = { role: 'replica', lag: 0 }
  await opened(all)
  all.servers.b!.says = primary
  await all.clock.advance(1000)
  all.servers.a!.says = { role: 'replica', lag: Infinity }
  all.servers.b!.says = { role: 'replica', lag: Infinity }
  await all.clock.advance(1000)
  t.same([all.stats('a').lag, all.stats('b').lag], [Infinity, Infinity])
})

t.test('a replica that is too far behind is left out: in ms, in bytes, and where it does not say', async (t) => {
  const lag = cluster(t, trio, { maxLag: 100 })
  lag.servers.b!.says = { role: 'replica', lag: 100 }
  lag.servers.c!.says = { role: 'replica', lag: 101 }
  await opened(lag)
  t.same(await readers(lag, 4), ['b'])
  t.match([lag.stats('a').lag, lag.stats('b').lag, lag.stats('c').lag], [null, 100, 101])
  lag.servers.b!.says = { role: 'replica', lag: Infinity }
  lag.servers.c!.says = { role: 'replica' }
  await lag.clock.advance(1101)
  t.same(await readers(lag, 2), ['a'])
  t.equal(lag.stats('c').lag, null)

  const offset = cluster(t, trio, { maxLag: 100 })
  offset.servers.a!.says = { role: 'primary', offset: 1000 }
  offset.servers.b!.says = { role: 'replica', offset: 899 }
  offset.servers.c!.says = { role: 'replica', offset: 1001 }
  await opened(offset)
  t.same(await readers(offset, 4), ['c'])
  t.same([offset.stats('b').lag, offset.stats('c').lag], [101, 0])

  const any = cluster(t, pair)
  any.servers.b!.says = { role: 'replica', lag: Infinity }
  await opened(any)
  t.equal(any.at(await any.pool.acquire({ role: 'replica' })), 'b', 'without maxLag, however far')
})

// --- Balance ---------------------------------------------------------------------------------------------------------

const four = { p: {}, a: { ...replica, weight: 1 }, b: { ...replica, weight: 2 }, c: { ...replica, weight: 3 } }

/** How often each replica was taken, by `total` leases, so many at the same time. */
async function spread (all: Cluster, total: number, atOnce: number): Promise<Record<string, number>> {
  const counts: Record<string, number> = { a: 0, b: 0, c: 0 }
  const leases: Array<Lease<FakeConnection>> = []
  for (let i = 0; i < total; i++) {
    const lease = all.pool.tryAcquire({ role: 'replica' }) ?? await all.pool.acquire({ role: 'replica' })
    counts[all.at(lease)]!++
    leases.push(lease)
    if (leases.length === atOnce) leases.shift()!.release()
    if (i % 10 === 0) await all.clock.advance(1)
  }
  give(leases)
  return counts
}

t.test('leases are spread by weight, or evenly, or to the least used', async (t) => {
  type Row = [TargetOptions<FakeConnection>, atOnce: number, expected: Record<string, number>, within: number]
  const rows: Row[] = [
    [{}, 1, { a: 100, b: 200, c: 300 }, 1],
    [{ balance: 'weighted' }, 7, { a: 100, b: 200, c: 300 }, 15],
    [{ balance: 'round-robin' }, 1, { a: 200, b: 200, c: 200 }, 1],
    [{ balance: 'round-robin' }, 7, { a: 200, b: 200, c: 200 }, 15],
    [{ balance: 'least-used' }, 7, { a: 100, b: 200, c: 300 }, 30],
    [{ balance: 'random' }, 1, { a: 100, b: 200, c: 300 }, 45],
    [{ balance: 'random' }, 7, { a: 100, b: 200, c: 300 }, 60],
  ]
  for (const [options, atOnce, expected, within] of rows) {
    const all = cluster(t, four, { max: 30, ...options }, 7)
    await opened(all)
    const counts = await spread(all, 600, atOnce)
    for (const name of ['a', 'b', 'c']) {
      t.ok(Math.abs(counts[name]! - expected[name]!) <= within,
      `${options.balance} ${atOnce}: ${JSON.stringify(counts)}`)
    }
  }
})

t.test('least-used goes where the fewest are, whoever is slow', async (t) => {
  const all = cluster(t, trio, { balance: 'least-used' })
  await opened(all)
  const leases = await all.take(4, 'replica')
  const slow = leases.filter((lease) => all.at(lease) === 'b')
  give(leases.filter((lease) => !slow.includes(lease)))
  t.equal(slow.length, 2)
  t.same((await all.take(2, 'replica')).map(all.at), ['c', 'c'])
})

t.test('nobody waits where another target has an idle one, and the one that had none gets more', async (t) => {
  const all = cluster(t, trio)
  await opened(all)
  // All of b's are lent, and c has many.
  const held = await all.take(8, 'replica')
  give(held.filter((lease) => all.at(lease) === 'c'))
  const before = all.servers.b!.creates
  for (let i = 0; i < 4; i++) {
    const lease = all.pool.tryAcquire({ role: 'replica' })
    t.equal(all.at(lease), 'c')
    lease!.release()
  }
  await all.clock.advance(0)
  const grown = all.servers.b!.creates - before
  t.ok(grown >= 0 && grown <= 1)
  give(held)
})

t.test('a target that has none idle gets more also where a create would not pay for one who waits there', async (t) => {
  const all = cluster(t, trio)
  for (const server of Object.values(all.servers)) {
    const create = server.create.bind(server)
    server.create = (signal) => new Promise((resolve, reject) => {
      all.clock.setTimer(() => { create(signal).then(resolve, reject) }, 20)
    })
  }
  const opening = watch(all.pool.open())
  await all.clock.advance(100)
  t.equal(opening.done, true)
  const taking = all.take(6, 'replica')
  await all.clock.advance(100)
  give(await taking)
  // Of b all are lent, of c none.
  const held = await all.take(6, 'replica')
  give(held.filter((lease) => all.at(lease) === 'c'))
  const before = all.servers.b!.creates
  const opens = all.seen('open').length
  for (let i = 0; i < 8; i++) all.pool.tryAcquire({ role: 'replica' })!.release()
  await all.clock.advance(30)
  t.equal(all.servers.b!.creates - before, 1)
  t.equal(all.stats('b').idle, 1)
  t.equal(all.seen('open').length, opens, 'that is no opening')
  give(held)
})

t.test('a target whose login is refused for good: callers are served elsewhere, or told at once where nobody else can', async (t) => {
  const all = cluster(t, pair, { acquireTimeout: 20_000 })
  for (const server of Object.values(all.servers)) {
    Object.assign(server, { isPermanent: (error: Error) => error.message === 'create failed' })
  }
  await opened(all)
  give(await all.take(1, 'replica'))
  const refuse = async (name: string) => {
    all.servers[name]!.outcomes.create = 'error'
    for (const connection of all.servers[name]!.connections) {
      if (connection.state === 'open') connection.die(new Error('the administrator has ended it'))
    }
    await all.clock.advance(10)
  }
  await refuse('b')
  const elsewhere = watch(all.pool.acquire({ role: 'replica' }))
  await all.clock.advance(2000)
  t.equal(all.at(elsewhere.value), 'a')
  elsewhere.value!.release()
  await refuse('a')
  const waiting = watch(all.pool.acquire())
  await all.clock.advance(2000)
  t.match(waiting.error, { code: 'FST_POOL_CONNECT_FAILED', cause: { message: 'create failed' } })
  t.equal(all.pool.stats().timeouts, 0)
  t.ok(all.pool.stats().refused > 0)
  const tried = all.servers.a!.creates
  await all.clock.advance(600_000)
  t.ok(all.servers.a!.creates - tried < 80, `${all.servers.a!.creates - tried} in 10 minutes`)
})

// --- One max for all -------------------------------------------------------------------------------------------------

t.test('max is of all together, and an idle connection of one target makes room for another', async (t) => {
  const all = cluster(t, pair, { max: 4 })
  await opened(all)
  give(await all.take(3))
  t.equal(live(all), 4)
  const reading = all.take(3, 'replica')
  await all.clock.advance(0)
  t.same((await reading).map(all.at), ['b', 'b', 'b'])
  t.equal(live(all), 4)
  t.match(all.stats('a'), { idle: 1, destroyed: { idle: 2 } })
})

t.test('where none is idle, a target with many yields what comes back, until they have about the same', async (t) => {
  const all = cluster(t, pair, { max: 6 })
  await opened(all)
  const writers = await all.take(5)
  const more = Array.from({ length: 20 }, () => watch(all.pool.acquire()))
  const reader = watch(all.pool.acquire({ role: 'replica' }))
  const second = watch(all.pool.acquire({ role: 'replica' }))
  const third = watch(all.pool.acquire({ role: 'replica' }))
  await all.clock.advance(0)
  t.same(states([reader, second, third]), ['served', 'waits', 'waits'])
  for (const writer of writers) {
    writer.release()
    await all.clock.advance(0)
  }
  t.same(states([reader, second, third]), ['served', 'served', 'served'])
  t.same([all.stats('a').used, all.stats('b').used], [3, 3])
  t.equal(more.filter(({ done }) => done).length, 3, 'and no more than that')
  const creates = all.servers.a!.creates + all.servers.b!.creates
  // From now on nothing goes to and fro.
  const waiting = Array.from({ length: 10 }, () => watch(all.pool.acquire({ role: 'replica' })))
  for (const one of [reader, second, third]) one.value!.release()
  for (const { value } of more) value?.release()
  await all.clock.advance(0)
  t.equal(all.servers.a!.creates + all.servers.b!.creates, creates)
  for (let round = 0; round < 30; round++) {
    for (const { value } of [...more, ...waiting]) value?.release()
    await all.clock.advance(0)
  }
  t.ok([...more, ...waiting].every(({ done, error }) => done && error === undefined))
})

t.test('a target that fails takes nothing from the others', async (t) => {
  const all = cluster(t, pair, { max: 4, min: 1 })
  await opened(all)
  all.servers.b!.kill()
  const writers = await all.take(4)
  const waiting = Array.from({ length: 50 }, () => watch(all.pool.acquire({ timeout: 60_000 })))
  const before = all.servers.a!.creates
  for (let round = 0; round < 100; round++) {
    for (const lease of writers.splice(0)) lease.release()
    await all.clock.advance(10)
    const served = waiting.filter(({ value }) => value !== undefined && !value.ended).map(({ value }) => value!)
    writers.push(...served)
  }
  t.ok(all.servers.a!.creates - before <= 12, `one of a's at each try of b's: ${all.servers.a!.creates - before}`)
  t.ok(waiting.every(({ done }) => done))
  give(writers)
})

t.test('a max that is made smaller is kept, and one that is made larger is used', async (t) => {
  const all = cluster(t, pair, { max: 6 })
  await opened(all)
  const leases = [...await all.take(3), ...await all.take(3, 'replica')]
  const waiting = [watch(all.pool.acquire()), watch(all.pool.acquire({ role: 'replica' }))]
  all.pool.resize({ max: 2 })
  t.equal(all.pool.stats().max, 2)
  for (const lease of leases.slice(0, 5)) {
    lease.release()
    await all.clock.advance(0)
  }
  t.equal(live(all), 2)
  give(leases)
  await all.clock.advance(0)
  t.ok(live(all) <= 2)
  all.pool.resize({ max: 8, min: 3 })
  await all.clock.advance(200)
  t.same(states(waiting), ['served', 'served'])
  t.match(all.pool.stats(), { min: 3, max: 8 })
  const more = [watch(all.take(3)), watch(all.take(3, 'replica'))]
  await all.clock.advance(10)
  t.same(states(more), ['served', 'served'])
  t.equal(live(all), 8)
})

t.test('max is hard whatever happens, and nobody is forgotten', async (t) => {
  const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31))
  t.comment(`SEED=${seed}`)
  for (let run = 0; run < 8; run++) {
    const chance = new VirtualClock(seed + run)
    const below = (n: number) => Math.floor(chance.random() * n)
    const max = 3 + below(5)
    const all = cluster(t,
      { a: { max: 1 + below(max) }, b: { ...replica, max: 1 + below(max) }, c: { ...replica, weight: 2 } },
      { max, min: below(3), acquireTimeout: 2000, connectTimeout: 300, idleTimeout: 400, destroyTimeout: 300, validateAfter: 100, balance: (['weighted', 'least-used', 'random'] as const)[run % 3]! }, seed + run)
    const { pool, clock } = all
    const servers = Object.values(all.servers)
    let limit = max
    const acquires: Array<Watched<Lease<FakeConnection>>> = []
    const held = () => acquires.filter(({ value }) => value !== undefined && !value.ended).map(({ value }) => value!)
    const check = () => {
      const stats = pool.stats()
      const total = stats.creating + stats.idle + stats.used + stats.closing
      if (total > limit) t.fail(`${total} of ${limit}`)
      if (live(all) - stats.late > limit) t.fail(`${live(all)} live of ${limit}, ${stats.late} late`)
      for (const target of stats.targets!) {
        if (target.creating + target.idle + target.used +
        target.closing > Math.max(target.max, limit)) t.fail(`${target.target} has more than its own`)
      }
    }
    for (let step = 0; step < 250; step++) {
      const server = servers[below(3)]!
      const what = below(24)
      if (what < 9) acquires.push(watch(pool.acquire({ role: below(2) === 0 ? 'primary' : 'replica' })))
      else if (what < 15) held()[below(held().length)]?.release()
      else if (what === 15) held()[below(held().length)]?.destroy(new Error('no'))
      else if (what === 16) server.kill()
      else if (what === 17) server.start({ role: below(2) === 0 ? 'primary' : 'replica' })
      else if (what === 18) server.says = below(3) === 0 ? undefined : { role: 'primary' }
      else if (what === 19) server.outcomes.create = (['ok', 'gate', 'hang', 'error'] as const)[below(4)]!
      else if (what === 20) server.outcomes.destroy = (['ok', 'sync', 'gate', 'error'] as const)[below(4)]!
      else if (what === 21) [...server.calls][0]?.pass()
      else if (what === 22) pool.evict({ idle: below(2) === 0 })
      else {
        // It may take as long as those that are lent.
        const smaller = 3 + below(6)
        if (smaller >= limit || held().length === 0) {
          pool.resize({ min: 0, max: smaller })
          limit = Math.max(limit, smaller)
        }
      }
      check()
      await clock.advance(below(3) === 0 ? 0 : below(60), check)
    }
    // All is well again.
    for (const server of servers) {
      server.outcomes.destroy = server.outcomes.create = 'ok'
      server.start({ role: server.name === 'b' ? 'primary' : 'replica' })
      for (const call of [...server.calls]) call.pass()
    }
    for (let round = 0; round < 60; round++) {
      give(held())
      await clock.advance(100, check)
    }
    t.ok(acquires.every(({ done }) => done), `run ${run}: each of ${acquires.length} came to an end`)
    const last = [watch(pool.acquire()), watch(pool.acquire({ role: 'replica' }))]
    await clock.advance(500)
    t.same(states(last), ['served', 'served'], `run ${run}`)
    t.equal(all.at(last[0]!.value), 'b')
    give(last.map(({ value }) => value!))
  }
})

t.test('whatever happens, each acquire ends by its deadline, and close leaves nothing and nobody', async (t) => {
  const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31))
  t.comment(`SEED=${seed}`)
  const unhandled: unknown[] = []
  const note = (error: unknown) => { unhandled.push(error) }
  process.on('unhandledRejection', note)
  t.teardown(() => process.off('unhandledRejection', note))
  for (let run = 0; run < 30; run++) {
    const chance = new VirtualClock(seed + run)
    const below = (n: number) => Math.floor(chance.random() * n)
    const oneOf = <T>(...all: T[]): T => all[below(all.length)]!
    const fixed = run % 5 === 4
    const all = cluster(t, { a: { fixed }, b: { role: oneOf('replica', 'primary'), fixed: fixed && oneOf(true, false) }, c: { ...replica, fixed: fixed && oneOf(true, false) } }, {
      ...{
        max: 3 +
      below(6),
        maxPending: 20,
        acquireTimeout: 2000,
        connectTimeout: 300,
        validateTimeout: 200,
        destroyTimeout: 300,
        idleTimeout: 400,
        validateAfter: 100
      },
      ...{
        balance: oneOf('weighted', 'least-used', 'random', 'round-robin'),
        maxLag: oneOf(1000,
          undefined),
        checkInterval: 500,
        ...(oneOf(true, false, false) && { circuit: false as const })
      },
    }, seed + run)
    const { pool, clock } = all
    const servers = Object.values(all.servers)
    const controllers: AbortController[] = []
    const acquires: Array<{ readonly due: number, readonly acquire: Watched<Lease<FakeConnection>> }> = []
    const others: Array<Watched<unknown>> = []
    const held = () => acquires.filter(({ acquire: { value } }) => value !== undefined && !value.ended)
      .map(({ acquire: { value } }) => value!)
    const check = () => {
      for (const { due, acquire } of acquires) {
        if (!acquire.done &&
        clock.now() > due + 1) t.fail(`run ${run}: an acquire is ${clock.now() - due} ms late`)
      }
    }
    let closed: Watched<unknown> | undefined
    for (let step = 0; step < 200; step++) {
      const server = oneOf(...servers)
      const what = below(30)
      if (what < 10) {
        const timeout = oneOf(undefined, 1 + below(500))
        const controller = new AbortController()
        controllers.push(controller)
        const acquire = watch(pool.acquire({
          role: oneOf('primary', 'replica'), signal: controller.signal, ...(timeout !== undefined && { timeout }),
        }))
        acquires.push({ due: clock.now() + (timeout ?? 2000), acquire })
      } else if (what < 15) oneOf(...held())?.release()
      else if (what === 15) oneOf(...held())?.destroy(oneOf(undefined, new Error('read-only')))
      else if (what < 18) oneOf(...controllers)?.abort()
      else if (what === 18) server.kill()
      else if (what === 19) server.start({ role: oneOf('primary', 'replica'), lag: oneOf(0, 500, 5000, Infinity) })
      else if (what === 20) {
        server.says =
        oneOf<Server['says']>(undefined, new Error('no'), new Error('read-only'), {} as ServerState,
          { role: 'replica', lag: NaN })
      } else if (what === 21) server.outcomes.create = oneOf('ok', 'gate', 'hang', 'error', 'throw')
      else if (what === 22) server.outcomes.validate = oneOf('ok', 'hang', 'error', 'no')
      else if (what === 23) server.outcomes.destroy = oneOf('ok', 'sync', 'gate', 'hang', 'throw')
      else if (what === 24) server.calls[0]?.pass()
      else if (what === 25) pool.evict({ idle: oneOf(true, false) })
      else if (what === 26) oneOf(() => pool.suspend(), () => pool.resume(), () => pool.resume())()
      else if (what === 27) {
        const max = 3 + below(8)
        pool.resize({ max, min: below(max) })
      } else if (what === 28) others.push(watch(pool.use(() => { throw new Error('read-only') }, { retry: below(4), timeout: 500 })))
      else others.push(watch(oneOf<() => Promise<unknown>>(() => pool.open(), () => pool.health())()))
      if (step === 150 && run % 3 === 0) others.push(watch(pool.drain()))
      if (step === 180 && run % 3 === 1) closed = watch(pool.close())
      check()
      await clock.advance(below(3) === 0 ? 0 : below(60), check)
    }
    closed ??= watch(pool.close())
    await clock.advance(8000, check)
    t.ok(closed.done, `run ${run}: it is closed`)
    t.equal(acquires.filter(({ acquire }) => !acquire.done).length, 0, `run ${run}: each acquire came to its end`)
    t.equal(others.filter(({ done }) => !done).length, 0, `run ${run}: and so did all else`)
    t.equal(clock.timers.set, 0, `run ${run}: no timer is left`)
    t.equal(controllers.filter(({ signal }) => getEventListeners(signal, 'abort').length > 0).length, 0,
      `run ${run}: no listener is left`)
    const stats = pool.stats()
    t.match(stats, { creating: 0, idle: 0, used: 0, closing: 0, pending: 0 })
    t.equal(stats.acquired - stats.released, 0)
    t.ok(stats.targets!.every(({ aborted }) => aborted >= 0))
    const ended = acquires.filter(({ acquire: { error } }) => error?.code === 'FST_POOL_ABORTED').length
    t.equal(stats.aborted, ended, `run ${run}: as many are counted as aborted as were`)
    for (const { error } of acquires.map(({ acquire }) => acquire)) {
      if (error !== undefined &&
      !/^FST_POOL_/.test(error.code)) t.fail(`run ${run}: ${error}`)
    }
    if (acquires.some(({ acquire: { error } }) =>
      error?.message.includes('not the one to wait for'))) t.fail('who moved was told')
    // What is late is still owned.
    for (const { calls } of servers) for (const call of [...calls]) call.pass()
    await clock.advance(0)
  }
  t.same(unhandled, [])
})

t.test('a connector that throws where it is asked what an error is breaks nothing', async (t) => {
  const all = cluster(t, pair, { backoff: { min: 1000, max: 1000 } })
  await opened(all)
  for (const server of Object.values(all.servers)) server.isTransient = () => { throw new Error('isTransient threw') }
  all.servers.b!.says = new Error('no')
  await all.clock.advance(3000)
  t.match(await failure(all.pool.use(() => { throw new Error('mine') }, { retry: 3 })), { message: 'mine' })
  t.ok(all.seen('error').some(({ error, phase }) => error.message === 'isTransient threw' && phase === 'isTransient'))
})

t.test('a use that is tried again after close leaves no timer', async (t) => {
  const all = cluster(t, pair, { backoff: { min: 60_000, max: 60_000 } })
  await opened(all)
  let fail = (_error: Error) => {}
  const used =
    watch(all.pool.use(() => new Promise((_resolve, reject) => { fail = reject }), { retry: 3, timeout: 600_000 }))
  await all.clock.advance(0)
  const closed = watch(all.pool.close({ timeout: 100 }))
  await all.clock.advance(200)
  t.ok(closed.done)
  fail(new Error('read-only'))
  await all.clock.advance(0)
  t.same(states([used]), ['FST_POOL_CLOSED'])
  t.equal(all.clock.timers.set, 0)
})

t.test('of two primaries the other one is taken where of the first only dead connections are left, that somebody still holds', async (t) => {
  const all = cluster(t, { a: {}, b: {} })
  await opened(all)
  const held = await all.pool.acquire()
  const first = all.pool.backend
  first.kill()
  const waiting = watch(all.pool.acquire({ timeout: 20_000 }))
  await all.clock.advance(4000)
  t.ok(waiting.value !== undefined && all.at(waiting.value) !== first.name)
  held.release()
})

t.test('who waits at a busy primary of which no more connections can be made is served when one comes back', async (t) => {
  const all = cluster(t, { a: {} })
  await opened(all)
  const held = await all.take(2)
  all.servers.a!.outcomes.create = 'error'
  const waiting = Array.from({ length: 3 }, () => watch(all.pool.acquire({ timeout: 20_000 })))
  await all.clock.advance(8000)
  t.equal(all.pool.stats().circuit, 'open')
  waiting.push(watch(all.pool.acquire()))
  t.same(states(waiting), ['waits', 'waits', 'waits', 'waits'])
  for (let round = 0; round < 6; round++) {
    for (const { value } of [...waiting, ...held.map((value) => ({ value }))]) value?.release()
    await all.clock.advance(0)
  }
  t.same(states(waiting), ['served', 'served', 'served', 'served'])
  give(waiting.map(({ value }) => value!))
})

// --- Control and reading ---------------------------------------------------------------------------------------------

t.test('events say of which target they are; the pool\'s own come once', async (t) => {
  const all = cluster(t, pair)
  await opened(all)
  give(await all.take(1))
  give(await all.take(1, 'replica'))
  t.same(new Set(all.seen('connect').map(({ target }) => target)), new Set(['a', 'b']))
  t.same(all.seen('acquire').filter(({ holder }) => holder === undefined).map(({ target }) => target), ['a', 'b'])
  all.servers.b!.kill()
  await all.clock.advance(5000)
  t.match(all.seen('circuit')[0], { target: 'b', from: 'closed', to: 'open' })
  await all.pool.drain()
  const ids = all.seen('connect').map(({ id }) => id)
  t.equal(new Set(ids).size, ids.length)
  const closed = watch(all.pool.close())
  await all.clock.advance(3000)
  t.ok(closed.done)
  for (const event of ['open', 'drain', 'close'] as const) {
    t.match(all.seen(event),
      { length: 1, 0: { pool: 'db', target: undefined } }, event)
  }
})

t.test('a listener that throws is told of to the listeners of error, and breaks nothing', async (t) => {
  const all = cluster(t, pair)
  all.pool.on('failover', () => { throw new Error('listener') })
  all.pool.on('failover', (() => Promise.reject(new Error('async listener'))) as () => void)
  const undo = all.pool.on('failover', () => { t.fail('called') })
  undo()
  await opened(all)
  all.servers.b!.says = primary
  await all.clock.advance(1000)
  t.same(all.seen('error').map(({ error, phase }) => [error.message, phase]),
    [['listener', 'listener'], ['async listener', 'listener']])
  t.equal(all.at(await all.pool.acquire()), 'b')
})

t.test('suspended, nothing is lent and nobody asked; who waits is served when it goes on', async (t) => {
  const all = cluster(t, pair)
  await opened(all)
  all.pool.suspend()
  const waiting = [watch(all.pool.acquire()), watch(all.pool.acquire({ role: 'replica' }))]
  const before = all.servers.a!.questions
  await all.clock.advance(3000)
  t.same(states(waiting), ['waits', 'waits'])
  t.ok(all.servers.a!.questions - before <= 1)
  all.pool.resume()
  await all.clock.advance(0)
  t.same(states(waiting), ['served', 'served'])
})

t.test('suspended, a pool is opened as soon as its primary is there, as any other pool; else when it goes on', async (t) => {
  const all = cluster(t, trio, { connectTimeout: 3000 })
  all.servers.b!.outcomes.create = 'hang'
  const opening = watch(all.pool.open())
  await all.clock.advance(10)
  t.equal(opening.done, false)
  all.pool.suspend()
  await all.clock.advance(0)
  t.same(states([opening]), ['served'], 'it has a primary, and nobody is asked any more')
  const again = watch(all.pool.open())
  await all.clock.advance(0)
  t.ok(again.done)

  const late = cluster(t, pair)
  late.pool.suspend()
  const waiting = watch(late.pool.open())
  await late.clock.advance(10_000)
  t.equal(waiting.done, false)
  late.pool.resume()
  await late.clock.advance(10)
  t.same(states([waiting]), ['served'])
})

t.test('drain waits for those who wait for a primary, and for what is lent', async (t) => {
  const all = await headless(t)
  const waiting = watch(all.pool.acquire())
  const drained = watch(all.pool.drain())
  await all.clock.advance(500)
  t.match([drained.done, waiting.done], [false, false])
  t.equal((await all.pool.health()).status, 'draining')
  all.servers.b!.says = primary
  await all.clock.advance(300)
  t.match([drained.done, waiting.done], [false, true])
  waiting.value!.release()
  await all.clock.advance(0)
  t.ok(drained.done)
  const asked = all.servers.b!.questions
  await all.clock.advance(5000)
  t.ok(all.servers.b!.questions <= asked + 1, 'and nobody is asked any more')
  t.equal(live(all), 0)
})

t.test('close leaves nothing, also while there is no primary, and in the middle of a check', async (t) => {
  const all = await headless(t)
  const waiting = watch(all.pool.acquire())
  all.servers.a!.says = undefined
  await all.clock.advance(200)
  t.equal(all.servers.a!.asking, 1)
  t.throws(() => all.pool.close({ timeout: 0 }), { code: 'FST_POOL_BAD_OPTIONS' })
  const closing = all.pool.close()
  t.equal(all.pool.close(), closing)
  const closed = watch(closing)
  await all.clock.advance(0)
  t.match(waiting.error, { code: 'FST_POOL_CLOSED' })
  t.ok(closed.done)
  t.same([live(all), all.clock.timers.set, all.servers.a!.asking], [0, 0, 0])
  t.same([all.servers.a!.closed, all.servers.b!.closed], [1, 1])
  t.match(await failure(all.pool.acquire()), { code: 'FST_POOL_CLOSED' })
  t.equal(all.pool.tryAcquire(), null)
})

t.test('transactions nest within those of the same role', async (t) => {
  const all = cluster(t, pair)
  await opened(all)
  await all.pool.transaction(async () => {
    await all.pool.transaction(() => {})
    await all.pool.transaction(() => {}, { role: 'replica' })
  })
  t.match(all.servers.a!.asked, [/^begin/, /^savepoint/, /^commit/, /^commit/])
  t.match(all.servers.b!.asked, [/^begin/, /^commit/])
  const lease = await all.pool.acquire()
  await lease.transaction(async () => { await all.pool.transaction(() => {}) })
  lease.release()
  t.match(all.servers.a!.asked.slice(4), [/^begin/, /^savepoint/, /^commit/, /^commit/])
})

t.test('the numbers are the sums; health is that of the primary', async (t) => {
  const all = cluster(t, trio, { max: 4 })
  t.match(await all.pool.health(), { status: 'degraded' }, 'before it was used')
  await opened(all)
  const leases = await all.take(2)
  const stats = all.pool.stats()
  t.match(stats, { name: 'db', system: 'fake', max: 4, used: 2, idle: 2, pending: 0, circuit: 'closed' })
  for (const frozen of [stats, stats.targets, stats.targets![0]]) t.ok(Object.isFrozen(frozen))
  t.match(await all.pool.health(), { status: 'up', circuit: 'closed', latency: 0 })
  t.same(all.pool.holders().length, 2)
  give(leases)
  all.servers.c!.kill()
  await all.clock.advance(100)
  t.match(await all.pool.health(), { status: 'degraded', reason: /^c: / })
})

t.test('a lag beyond maxLag is an event, when it begins and when it ends', async (t) => {
  const all = cluster(t, pair, { maxLag: 1000 })
  all.servers.b!.says = { role: 'replica', lag: 100 }
  await opened(all)
  await all.clock.advance(3000)
  const lags: Array<PoolEvents['lag']> = []
  all.pool.on('lag', (event) => { lags.push(event) })
  all.servers.b!.says = { role: 'replica', lag: 5000 }
  await all.clock.advance(3000)
  t.match(lags, [{ target: 'b', maxLag: 1000, over: true }])
  t.ok(lags[0]!.lag! > 1000)
  all.servers.b!.says = { role: 'replica', lag: 10 }
  await all.clock.advance(3000)
  t.match(lags.slice(1), [{ target: 'b', lag: 10, maxLag: 1000, over: false }])
  t.equal(lags.length, 2)
})

t.test('health is degraded, not down, while reads work, and names each part', async (t) => {
  const all = cluster(t, pair)
  await opened(all)
  const read = await all.pool.acquire({ role: 'replica' })
  read.release()
  t.match(await all.pool.health(), {
    status: 'up',
    targets: [{ target: 'a', role: 'primary', status: 'up' }, { target: 'b', role: 'replica', status: 'up' }],
  })
  all.servers.a!.kill()
  await all.clock.advance(2000)
  const health = await all.pool.health()
  t.match(health, {
    status: 'degraded',
    reason: /^a: .*; reads work \(b\)$/,
    targets: [{ target: 'a', status: 'down', reason: /create failed/ }, { target: 'b', status: 'up' }],
  })
  t.ok(health.since! > 0)
  all.servers.b!.kill()
  await all.clock.advance(2000)
  t.match(await all.pool.health(), { status: 'down', targets: [{ status: 'down' }, { status: 'down' }] })
})
