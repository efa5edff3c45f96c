import { inspect } from 'node:util'
import type { Test } from 'tap'
import { PoolError } from '../../lib/engine/errors.js'
import type { EngineOptions } from '../../types/options.js'
import { Pool } from '../../lib/pool/pool.js'
import type { Connector, Isolation, Role } from '../../types/connector.js'
import type { Lease, PoolEvents, PoolFace, RunOptions } from '../../types/pool.js'
import { VirtualClock } from '../support/clock.js'
import { startProxy } from '../support/proxy.js'
import { alarm } from '../support/order.js'
import { event, until } from '../support/until.js'
import type { Neighbour } from './neighbour.js'

export type Mode = 'session' | 'transaction' | 'none'
export interface Address { readonly host: string, readonly port: number }

/** What a database has, or in one sentence why it can't have it: that is what is said of the cases it can't answer. */
export type Or<T> = T | string

/** One kind of state that a request can leave on its connection. */
export interface Trace<C> {
  readonly name: string
  /** Sends all of it at once, so that a release may come before the answers. */
  leave (connection: C): unknown
  /** Whether it is there. Asked on the connection that has it too: a trace that nobody sees proves nothing. */
  seen (connection: C): boolean | Promise<boolean>
  /** A session reset undoes it by a new connection. */
  readonly replaced?: true
  /** Undone in mode 'transaction' too: most often since it is of an open transaction. All others survive that mode. */
  readonly transaction?: true
  /** It is documented to stay, and why that is all right. */
  readonly stays?: string
  /** Looking for it ends it. */
  readonly fleeting?: true
  /** Why it can't be left together with the others. */
  readonly alone?: string
}

/** What a borrower does within a transaction that is the pool's to begin and to end. */
export interface Ending<C> {
  readonly name: string
  /** What it rejects with is the test's failure: whoever expects an error looks for it himself. */
  end (connection: C): unknown
  /** It is no end: the transaction goes on, and all of it is committed. Else no commit of it may resolve. */
  readonly goesOn?: true
}

/** Rows of one table, which other connections see when they are committed. */
export interface Rows<C> {
  /** Makes the table where there is none: the pool's `onConnect`. */
  prepare (connection: C): unknown
  add (connection: C, row: string): unknown
  all (connection: C): string[] | Promise<string[]>
  /** The level of the transaction that is open, as the server says it. */
  level: Or<(connection: C) => string | Promise<string>>
  /** With which a transaction sees one moment only. */
  readonly snapshot: Or<RunOptions>
  /**
   * Two connections get in each other's way once, with `run` as the pool's `transaction`. Resolves to how often the
   * transactions ran.
   */
  conflict: Or<(t: Test, run: Transact<C>) => Promise<number>>
  /** All ways to end a transaction behind the pool's back, whatever is begun instead; and what only looks like one. */
  readonly endings: Or<ReadonlyArray<Ending<C>>>
  /** How often the transactions of `conflict` run when none of them fails. */
  readonly peaceful?: number
}

export type Transact<C> = (fn: (connection: C) => Promise<void>, options?: RunOptions) => Promise<void>

export interface Setup {
  readonly reset: Mode
  /** By which the server knows the connections of one pool. */
  readonly name: string
  /** Where none is asked for: to be looked for in errors. */
  readonly password?: string
  /** Of the pool. */
  readonly resetTimeout?: number | undefined
}

/** One database, and all that the contract has to know of it. */
export interface Subject<C> {
  /** Of its server. */
  readonly address: Or<Address>
  connector (at: Address, setup: Setup): Promise<Connector<C>>
  /** How many connections the pools of these tests have at most. */
  readonly max: number
  /** The mode that undoes everything, where it is another one than 'session': `reset` of the pool. */
  readonly whole?: 'joined'
  /** Default: a `Pool`. */
  pool? (connector: Connector<C>, options: EngineOptions<C>): PoolFace<C>
  readonly role?: Role
  /** It is the driver's own object. */
  isDriver (connection: C): boolean
  /** Of the connection, at the server. */
  id (connection: C): unknown
  /** How many connections of that name the server counts. */
  readonly count: Or<(name: string) => number | Promise<number>>
  /** The server ends that connection, and it is gone there. */
  readonly end: Or<(id: unknown) => Promise<unknown>>
  /** One plain operation. */
  ask (connection: C): unknown
  /** One that takes longer than any test. */
  readonly block: Or<(connection: C) => Promise<unknown>>
  /** A statement that goes on when its connection is gone keeps that in the server's count. */
  readonly blockEnds: Or<true>
  /** One that is still under way when it returns, and soon done. */
  readonly linger: Or<(connection: C) => unknown>
  /** Bytes that were sent. */
  readonly written: Or<(connection: C) => number>
  /** A connection dies with its socket. */
  readonly dies: Or<true>
  /** It is unmade and made anew when it is replaced. */
  readonly renewed: Or<true>
  /** A password can be given, and is told to nobody. */
  readonly password: Or<true>
  /** Why a create fails, and whether it does so for good. */
  readonly failures: Or<ReadonlyArray<Failing<C>>>
  /** Outside of transactions, too, it is known what a connection is doing; and what the server calls it. */
  readonly describes: Or<'named' | 'nameless'>
  /** What an app's `onConnect` would set, and a request changes. */
  readonly setting: Or<{
    set (connection: C): unknown, change (connection: C): unknown, isSet (connection: C): boolean | Promise<boolean>,
  }>
  readonly traces: Or<ReadonlyArray<Trace<C>>>
  readonly rows: Or<Rows<C>>
  /** Another pool sees the same data. */
  readonly shared: Or<true>
  /** Another process that has the same data. */
  readonly neighbour: Or<Beside<C>>
}

/** A connector whose creates fail. */
export interface Failing<C> {
  readonly name: string
  readonly permanent: boolean
  connector (t: Test): Promise<Connector<C>> | Connector<C>
}

export interface Beside<C> {
  /** The process is to be on the bare driver. */
  start (t: Test): Promise<Neighbour>
  /** A plain write, outside of any transaction, of what the neighbour counts. */
  add (connection: C, row: string): unknown
  /** A plain write that fails. It may be the other process that is in its way. */
  fail (connection: C, neighbour: Neighbour): Promise<unknown>
}

/**
 * The cases of a subject. Those that its database can't have are named, each with the reason: nothing was left out that
 * could be tested.
 */
class Cases {
  readonly #t: Test
  readonly #missing = new Map<string, string[]>()

  constructor (t: Test) { this.#t = t }

  /** @param needed where one of these is a reason, the case is not asked */
  async test (name: string, needed: readonly unknown[], fn: (t: Test) => Promise<void>): Promise<void> {
    const reason = needed.find((thing) => typeof thing === 'string') as string | undefined
    if (reason === undefined) await this.#t.test(name, fn)
    else this.#missing.set(reason, [...this.#missing.get(reason) ?? [], name])
  }

  end (): void {
    for (const [reason, names] of this.#missing) {
      this.#t.comment(`${reason}. So these are not asked:`)
      for (const name of names) this.#t.comment(`  ${name}`)
    }
  }
}

function have<T> (thing: Or<T>): T {
  if (typeof thing === 'string') throw new Error(`a case that is asked needs what is not there: ${thing}`)
  return thing
}

/** Sent and not waited for. Whether it fails is not what is tested. */
function unheeded (...work: unknown[]): void {
  Promise.allSettled(work)
}

/** What it rejects with; undefined where it does not. */
function failureOf (work: Promise<unknown>): Promise<unknown> {
  return work.then(() => undefined, (error: unknown) => error)
}

/** Resolves for all when so many have come. Never for less: whoever waits is told by the test's own deadline. */
export function meeting (count: number): () => Promise<void> {
  let come = 0
  return async () => {
    come++
    await until(() => come >= count, { what: `${count} meet` })
  }
}

/**
 * Two transactions at the same time, each of which does its second step when both have done the first. Run again, they
 * need not meet.
 */
export function collide<C> (
  first: (connection: C, which: 0 | 1) => unknown,
  second: (connection: C, which: 0 | 1) => unknown,
  options: RunOptions = {}
) {
  return async (_: Test, run: Transact<C>): Promise<number> => {
    const meet = meeting(2)
    let runs = 0
    const one = (which: 0 | 1) => {
      let met = false
      return run(async (connection) => {
        runs++
        await first(connection, which)
        if (!met) await meet()
        met = true
        await second(connection, which)
      }, options)
    }
    const failed = (await Promise.allSettled([one(0), one(1)])).find((result) => result.status === 'rejected')
    if (failed !== undefined) throw failed.reason
    return runs
  }
}

interface Opened<C> {
  readonly pool: PoolFace<C>
  readonly connector: Connector<C>
  readonly name: string
  readonly made: Set<C>
}
interface OpenOptions<C> extends EngineOptions<C> {
  reset?: Mode
  at?: Address
  password?: string
  /** The pool hears of no death: only `validate` can tell. */
  blind?: boolean
  beforeCreate?: (opened: Opened<C>) => Promise<void>
}

let names = 0
const nowhere: Address = { host: '', port: 0 }

/** What every backend promises. Each case is a pool of its own on the subject's server. */
export async function contract<C> (t: Test, subject: Subject<C>): Promise<void> {
  const cases = new Cases(t)
  const { max, role, describes, whole } = subject
  const traces = typeof subject.traces === 'string' ? [] : subject.traces

  async function open (t: Test, options: OpenOptions<C> = {}): Promise<Opened<C>> {
    const {
      reset = 'session', at = typeof subject.address === 'string'
        ? nowhere
        : subject.address, password, blind = false, beforeCreate, ...rest
    } = options
    const name = `contract_${process.pid}_${++names}`
    const { resetTimeout } = options
    const setup = { reset, name, resetTimeout, ...(password !== undefined && { password }) }
    const connector = await subject.connector(at, setup)
    const made = new Set<C>()
    for (const one of [connector, connector.replica]) {
      if (one === undefined) continue
      const create = one.create.bind(one)
      one.create = async (signal) => {
        await beforeCreate?.(opened)
        const connection = await create(signal)
        made.add(connection)
        return connection
      }
      if (blind) Object.assign(one, { isBroken: undefined, onDeath: undefined })
    }
    const all = { max, reset: reset === 'session' ? whole ?? reset : reset, ...rest }
    const pool = subject.pool?.(connector, all) ?? new Pool(connector, all)
    t.teardown(() => pool.close({ timeout: 500 }))
    const opened = { pool, connector, name, made }
    return opened
  }

  const take = (pool: PoolFace<C>, timeout?: number): Promise<Lease<C>> =>
    pool.acquire({ ...(role && { role }), ...(timeout && { timeout }) })

  async function use<T> (pool: PoolFace<C>, fn: (connection: C) => T | Promise<T>): Promise<T> {
    const lease = await take(pool)
    try {
      return await fn(lease.connection)
    } finally {
      lease.release()
    }
  }

  /** What keeps its connections while its sockets are gone may need a moment, until the driver has found out. */
  /** Refused at once where its circuit is still open, which says so by itself a moment later. */
  const refused = /^FST_POOL_(CONNECT_FAILED|CIRCUIT_OPEN)$/
  const worksAgain = async (pool: PoolFace<C>) => {
    await until(async () => await failureOf(use(pool, subject.ask)) === undefined, { what: 'it works again' })
  }
  const proxied = async (t: Test) => await startProxy(t, have(subject.address))
  /** All that the pool has, however it stands. */
  const total = (pool: PoolFace<C>) => {
    const { creating, idle, used, closing } = pool.stats()
    return creating + idle + used + closing
  }
  const counted = (opened: Opened<C>) => typeof subject.count === 'string'
    ? total(opened.pool)
    : subject.count(opened.name)
  const counts = async (opened: Opened<C>, expected: number) => {
    await until(async () => await counted(opened) === expected, { what: `the server counts ${expected}` })
  }

  // --- Creates and lends ---------------------------------------------------------------------------------------------

  await cases.test('it lends connections of their own, which are the driver\'s objects and work', [], async (t) => {
    const opened = await open(t)
    const leases = await Promise.all(Array.from({ length: max }, () => take(opened.pool)))
    for (const { connection } of leases) {
      t.ok(subject.isDriver(connection), 'it is the driver\'s own object')
      t.ok(opened.made.has(connection), 'and no wrapper of what the connector made')
      await subject.ask(connection)
    }
    const ids = new Set(await Promise.all(leases.map(({ connection }) => subject.id(connection))))
    t.equal(ids.size, max, 'each is another one at the server')
    t.equal(await counted(opened), max, 'which counts them')
    for (const lease of leases) lease.release()
    await until(() => opened.pool.stats().used === 0)
    t.equal(opened.pool.stats().created, max)
    await opened.pool.close()
    await counts(opened, 0)
  })

  await cases.test('a lease that sent nothing costs no round trip and keeps its connection', [], async (t) => {
    const { pool } = await open(t, { max: 1 })
    const first = await take(pool)
    const { connection } = first
    await subject.ask(connection)
    first.release()
    const second = await take(pool)
    const sent = typeof subject.written === 'string' ? 0 : subject.written(connection)
    second.release()
    for (let round = 0; round < 3; round++) {
      const lease = pool.tryAcquire({ ...(role && { role }) })
      t.equal(lease?.connection, connection, 'the same one, without a turn of the event loop in between')
      lease?.release()
    }
    if (typeof subject.written !== 'string') t.equal(subject.written(connection), sent, 'nothing was sent')
  })

  // --- What a request leaves -----------------------------------------------------------------------------------------

  /** Request A leaves traces on the only connection, then request B looks for them. */
  async function handOver (
    t: Test,
    reset: Mode,
    left: ReadonlyArray<Trace<C>>,
    leave: (lease: Lease<C>) => unknown,
    options: OpenOptions<C> = {}
  ): Promise<void> {
    const { pool } = await open(t, { max: 1, reset, ...options })
    const a = await take(pool)
    const before = { connection: a.connection, id: await subject.id(a.connection) }
    await leave(a)
    a.release()
    const b = await take(pool)
    for (const { name, seen, transaction, stays } of left) {
      const survives = reset === 'none' || stays !== undefined || (reset === 'transaction' && !transaction)
      t.equal(await seen(b.connection), survives,
        survives ? `B sees ${name}, as documented` : `B sees nothing of: ${name}`)
    }
    // Left as it is, a connection may answer nothing any more, not even who it is.
    if (reset === 'none') t.equal(b.connection, before.connection, 'it is the same connection')
    else if (reset === 'session' && left.some(({ replaced }) => replaced)) {
      t.not(await subject.id(b.connection),
        before.id, 'it is a new connection')
    } else t.equal(await subject.id(b.connection), before.id, 'it is the same connection, by the server\'s own id')
    if (reset !== 'none') await subject.ask(b.connection)
    b.destroy()
  }

  const leaveAll = async (connection: C, left: ReadonlyArray<Trace<C>>) => {
    for (const { leave } of left) await leave(connection)
  }
  const together = traces.filter(({ alone }) => alone === undefined)
  const kept = together.filter(({ replaced }) => !replaced)

  for (const trace of traces) {
    const { name, replaced, stays, transaction, fleeting, seen, leave } = trace
    const whatHappens = stays !== undefined
      ? `stays, since ${stays}`
      : `is never seen by the next request, on ${replaced ? 'a new' : 'the same'} connection`
    const leaveSeen = async ({ connection }: Lease<C>) => {
      await leave(connection)
      t.equal(await seen(connection), true, 'whoever left it sees it')
      if (fleeting) await leave(connection)
    }
    await cases.test(`${name}: ${whatHappens}`, [], async (t) => {
      await handOver(t, 'session', [trace], leaveSeen)
    })
    await cases.test(`${name}: the same where it was sent and not waited for`, [], async (t) => {
      await handOver(t, 'session', [trace], ({ connection }) => unheeded(leave(connection)))
    })
    await cases.test(`${name}: mode 'transaction' ${transaction ? 'undoes it, on the same connection' : 'leaves it'}`, [], async (t) => {
      await handOver(t, 'transaction', [trace], leaveSeen)
    })
  }

  await cases.test('all that is undone on the connection itself, left at once, is never seen by the next request', [subject.traces], async (t) => {
    await handOver(t, 'session', kept, ({ connection }) => leaveAll(connection, kept))
  })

  if (together.length > kept.length) {
    await cases.test('all that can be left at once, what is undone by a new connection too, is never seen by the next request', [], async (t) => {
      await handOver(t, 'session', together, ({ connection }) => leaveAll(connection, together))
    })
  }

  await cases.test('all that can be left at once: what is of a transaction is undone in mode \'transaction\'', [subject.traces], async (t) => {
    await handOver(t, 'transaction', together.filter(({ transaction }) => transaction),
      ({ connection }) => leaveAll(connection, together))
  })

  await cases.test('with an operation still under way at release, the same connection is clean for the next request', [subject.traces, subject.linger], async (t) => {
    await handOver(t, 'session', kept, async ({ connection }) => {
      await leaveAll(connection, kept)
      unheeded(have(subject.linger)(connection))
    })
  })

  await cases.test('with one under way that does not end, a new connection is clean for the next request', [subject.setting, subject.block], async (t) => {
    const { change, isSet, set } = have(subject.setting)
    const opened =
      await open(t, { max: 1, resetTimeout: 100, onConnect: async (connection) => { await set(connection) } })
    const a = await take(opened.pool)
    const before = await subject.id(a.connection)
    await change(a.connection)
    unheeded(have(subject.block)(a.connection))
    a.release()
    const b = await take(opened.pool)
    t.not(await subject.id(b.connection), before)
    t.ok(await isSet(b.connection))
    t.equal(opened.pool.stats().destroyed.error, 1)
    if (subject.blockEnds === true) await counts(opened, 1)
  })

  await cases.test('in mode \'none\' everything stays', [subject.traces], async (t) => {
    for (const trace of traces) await handOver(t, 'none', [trace], ({ connection }) => trace.leave(connection))
  })

  await cases.test('what onConnect sets is there for every request, whatever the one before it did', [subject.setting], async (t) => {
    const { set, change, isSet } = have(subject.setting)
    const { pool } = await open(t, { max: 1, onConnect: async (connection) => { await set(connection) } })
    for (let round = 0; round < 3; round++) {
      const lease = await take(pool)
      t.ok(await isSet(lease.connection))
      await subject.ask(lease.connection)
      if (round > 0) {
        await change(lease.connection)
        t.notOk(await isSet(lease.connection), 'it is changed')
      }
      lease.release()
    }
    await use(pool, async (connection) => t.ok(await isSet(connection)))
  })

  // --- What a connection is doing ------------------------------------------------------------------------------------

  await cases.test('it says what a connection is doing, without asking it', [describes === 'named' || describes === 'nameless' ? undefined : describes], async (t) => {
    const { pool, connector } = await open(t, { max: 1 })
    const maker = role === 'replica' ? connector.replica! : connector
    const lease = await take(pool)
    const { connection } = lease
    const now = () => maker.describe!(connection)!
    t.equal(now().doing, 'idle')
    const id = describes === 'named' ? String(await subject.id(connection)) : 'undefined'
    t.equal(String(now().id), id, 'by the server\'s own name')
    if (typeof subject.linger !== 'string') {
      const lingers = subject.linger(connection)
      t.equal(now().doing, 'query')
      await lingers
    }
    t.equal(now().doing, 'idle')
    lease.release()
    await until(() => pool.stats().idle === 1)
    t.equal(now().doing, 'idle')
  })

  // --- Validates -----------------------------------------------------------------------------------------------------

  await cases.test('a connection that is alive is validated and lent', [], async (t) => {
    const { pool, connector } = await open(t, { max: 1, validateAfter: 0 })
    const target = role === 'replica' ? connector.replica! : connector
    let validated = 0
    const validate = target.validate!.bind(target)
    target.validate = (connection, signal) => {
      validated++
      return validate(connection, signal)
    }
    const before = await use(pool, (connection) => subject.id(connection))
    t.equal(validated, 0, 'a new one need not be')
    await until(() => pool.stats().idle === 1)
    t.equal(await use(pool, (connection) => subject.id(connection)), before)
    t.equal(validated, 1)
    await until(() => pool.stats().idle === 1)
    // Of a handle that writes, and was never used, nothing is known.
    t.equal((await pool.health()).status, role === 'replica' && subject.pool !== undefined ? 'degraded' : 'up')
  })

  await cases.test('a connection that the server has ended, unnoticed, is found out by validation and replaced', [subject.end], async (t) => {
    const { pool } = await open(t, { max: 1, validateAfter: 0, blind: true })
    const before = await use(pool, (connection) => subject.id(connection))
    await until(() => pool.stats().idle === 1)
    await have(subject.end)(before)
    const lease = await take(pool)
    t.not(await subject.id(lease.connection), before)
    t.equal(pool.stats().destroyed.invalid, 1)
    lease.release()
  })

  await cases.test('a connection that nothing answers on is replaced after validateTimeout', [subject.address, subject.dies], async (t) => {
    const proxy = await proxied(t)
    const { pool } = await open(t, { max: 1, at: proxy, validateAfter: 0, validateTimeout: 100, destroyTimeout: 200 })
    const before = await use(pool, (connection) => subject.id(connection))
    await until(() => pool.stats().idle === 1)
    proxy.blackHole()
    pool.on('disconnect', () => { proxy.heal() })
    const lease = await take(pool)
    t.not(await subject.id(lease.connection), before)
    t.equal(pool.stats().destroyed.invalid, 1)
    lease.release()
  })

  // --- Dies ----------------------------------------------------------------------------------------------------------

  type Die = (id: unknown, at: Awaited<ReturnType<typeof proxied>>) => unknown
  const deaths: ReadonlyArray<readonly [how: string, needed: unknown, die: Die]> = [
    ['ended by the server', subject.end, (id) => have(subject.end)(id)],
    ['reset by the network', undefined, (_, proxy) => proxy.resetAll()],
    ['closed from afar', undefined, (_, proxy) => proxy.endAll()],
  ]
  for (const [how, needed, die] of deaths) {
    await cases.test(`an idle connection that is ${how} is evicted, and the next request gets a new one`, [subject.address, needed, subject.dies], async (t) => {
      const proxy = await proxied(t)
      const { pool } = await open(t, { max: 1, at: proxy })
      const before = await use(pool, (connection) => subject.id(connection))
      await until(() => pool.stats().idle === 1)
      const gone = event<'disconnect'>(pool, 'disconnect')
      await die(before, proxy)
      t.equal((await gone).reason, 'error')
      await until(() => total(pool) === 0)
      t.not(await use(pool, (connection) => subject.id(connection)), before)
      t.equal(pool.stats().destroyed.error, 1)
    })

    await cases.test(`a lent connection that is ${how} gives the driver's own error, and is replaced`, [subject.address, needed, subject.dies, subject.block], async (t) => {
      const proxy = await proxied(t)
      const { pool } = await open(t, { max: 1, at: proxy })
      const lease = await take(pool)
      const before = await subject.id(lease.connection)
      const blocked = failureOf(have(subject.block)(lease.connection))
      await die(before, proxy)
      const error = await blocked
      t.ok(error instanceof Error && !(error instanceof PoolError), inspect(error))
      t.ok(await failureOf(Promise.resolve(subject.ask(lease.connection))) instanceof Error, 'it is dead for good')
      lease.release()
      t.not(await use(pool, (connection) => subject.id(connection)), before)
    })
  }

  if (typeof subject.dies === 'string') {
    await cases.test('sockets that are cut cost nobody more than the time to open others', [subject.address], async (t) => {
      const proxy = await proxied(t)
      const { pool } = await open(t, { at: proxy })
      for (const cut of [() => proxy.resetAll(), () => proxy.endAll()]) {
        await use(pool, subject.ask)
        cut()
        await worksAgain(pool)
      }
    })
  }

  // --- A server that fails -------------------------------------------------------------------------------------------

  await cases.test('a server that accepts and stays silent fails an acquire by its deadline, and leaves nothing open', [subject.address], async (t) => {
    const proxy = await proxied(t)
    const { pool } =
      await open(t, { at: proxy, connectTimeout: 100, acquireTimeout: 250, backoff: { min: 10, max: 50 } })
    proxy.silence()
    const [almost, late] = [alarm(200), alarm(2000)]
    const error = await failureOf(take(pool))
    const inTime = almost.rang && !late.rang
    t.ok(error instanceof PoolError &&
      (error.code === 'FST_POOL_CONNECT_FAILED' || error.code === 'FST_POOL_ACQUIRE_TIMEOUT'), inspect(error))
    t.ok(inTime, 'by timers of 200 and 2000 ms that were set when it was asked')
    await until(() => total(pool) === 0 && pool.stats().late === 0,
      { what: `no create under way: ${JSON.stringify(pool.stats())}` })
    if (subject.dies === true) await until(() => proxy.connections.open === 0, { what: 'no socket is open' })
    await proxy.heal()
    await worksAgain(pool)
  })

  await cases.test('a server that refuses fails an acquire, with a reason and without a secret; when it is back, so are the connections', [subject.address], async (t) => {
    const proxy = await proxied(t)
    const secret = 'Xq7-pass-9w'
    const options = { at: proxy, connectTimeout: 150, acquireTimeout: 350, backoff: { min: 10, max: 50 } }
    const { pool } = await open(t, { ...options, ...(subject.password === true && { password: secret }) })
    const told: Array<PoolEvents['error']> = []
    pool.on('error', (event) => told.push(event))
    await proxy.refuse()
    const error = await failureOf(take(pool))
    t.match(error, { code: refused, statusCode: 503 })
    t.match(inspect((error as Error).cause), /ECONNREFUSED/)
    t.notMatch(inspect([error, told], { depth: 10, showHidden: true }), secret)
    const { createErrors } = pool.stats()
    t.ok(createErrors >= 1 && createErrors <= 30 * max, `it backs off: ${createErrors} creates`)
    // Its password may be wrong.
    const { pool: another } = await open(t, options)
    t.match(await failureOf(take(another)), { code: refused })
    await proxy.heal()
    await worksAgain(another)
  })

  await cases.test('a server that was away is used again when it is back', [subject.address], async (t) => {
    const proxy = await proxied(t)
    const { pool } = await open(t, { at: proxy, acquireTimeout: 5000 })
    await use(pool, subject.ask)
    await proxy.refuse()
    proxy.resetAll()
    await until(() => proxy.connections.open === 0)
    const failed = await take(pool, 200).then((lease) => lease.release(), (error: PoolError) => error)
    if (subject.dies === true) t.match(failed, { code: refused })
    await proxy.heal()
    await worksAgain(pool)
    t.ok(total(pool) >= 1)
  })

  await cases.test('a server that refuses connections is no permanent failure', [subject.address], async (t) => {
    const proxy = await proxied(t)
    await proxy.refuse()
    const connector = await subject.connector(proxy, { reset: 'session', name: `contract_${process.pid}_${++names}` })
    const error = await failureOf(connector.create(AbortSignal.timeout(5000)))
    t.match(inspect(error), /ECONNREFUSED/)
    t.equal(connector.isPermanent?.(error) ?? false, false)
    await connector.close?.()
  })

  for (const { name, permanent, connector: make } of typeof subject.failures === 'string' ? [] : subject.failures) {
    await cases.test(`a create that fails, ${permanent ? 'for good' : 'for now'}: ${name}`, [], async (t) => {
      const connector = await make(t)
      const error = await failureOf(connector.create(AbortSignal.timeout(5000)))
      t.ok(error instanceof Error && error.name !== 'TimeoutError', inspect(error))
      t.equal(connector.isPermanent!(error), permanent, inspect(error))
      const wrapped = new Error('wrapped', { cause: error })
      t.equal(connector.isPermanent!(wrapped), permanent, 'as the cause of another error')
      await connector.close?.()
    })
  }
  if (typeof subject.failures === 'string') await cases.test('a create that fails for good', [subject.failures], async () => {})

  await cases.test('a slow server works, and what is left is undone there too', [subject.address], async (t) => {
    // What has no settings is slow all the same.
    const { set, change, isSet } = typeof subject.setting === 'string'
      ? { set: () => {}, change: subject.ask, isSet: () => true }
      : subject.setting
    const proxy = await proxied(t)
    const { pool } = await open(t, { max: 1, at: proxy, onConnect: async (connection) => { await set(connection) } })
    proxy.latency(15)
    const before = await use(pool, async (connection) => {
      await change(connection)
      return await subject.id(connection)
    })
    const lease = await take(pool)
    t.ok(await isSet(lease.connection))
    t.equal(await subject.id(lease.connection), before)
    lease.release()
  })

  await cases.test('a network that swallows everything while a connection is lent holds up the pool no longer than resetTimeout', [subject.address, subject.setting, subject.dies], async (t) => {
    const { change } = have(subject.setting)
    const proxy = await proxied(t)
    const { pool } = await open(t, { max: 1, at: proxy, resetTimeout: 100, destroyTimeout: 1000 })
    const most: number[] = []
    for (const name of ['connect', 'disconnect', 'acquire', 'release'] as const) {
      pool.on(name,
        () => { most.push(total(pool)) })
    }
    const lease = await take(pool)
    await change(lease.connection)
    proxy.blackHole()
    const failure = event<'error'>(pool, 'error', { where: ({ phase }) => phase === 'reset' })
    const gone = event<'disconnect'>(pool, 'disconnect')
    const late = alarm(1500)
    const inTime: boolean[] = []
    pool.on('disconnect', () => { inTime.push(!late.rang) })
    lease.release()
    t.equal((await gone).reason, 'error')
    t.match((await failure).error, { code: 'FST_POOL_RESET_FAILED' })
    t.same(inTime, [true], 'before a timer of 1500 ms')
    await proxy.heal()
    await use(pool, subject.ask)
    t.ok(Math.max(...most) <= 1, 'max holds')
  })

  // --- Closes --------------------------------------------------------------------------------------------------------

  const close = async (t: Test, opened: Opened<C>, leases: Array<Lease<C>>) => {
    const late = alarm(1500)
    await opened.pool.close({ timeout: 200 })
    t.notOk(late.rang, 'it resolves by its timeout')
    t.equal(total(opened.pool), 0)
    for (const lease of leases) {
      t.ok(lease.ended)
      t.throws(() => lease.connection, { code: 'FST_POOL_LEASE_RELEASED' })
    }
    await t.rejects(take(opened.pool), { code: 'FST_POOL_CLOSED' })
  }

  await cases.test('a close with leases out resolves by its timeout, and the server counts no connection', [], async (t) => {
    const opened = await open(t)
    const leases = await Promise.all(Array.from({ length: max }, () => take(opened.pool)))
    for (const { connection } of leases) await subject.ask(connection)
    await counts(opened, max)
    await close(t, opened, leases)
    await counts(opened, 0)
  })

  const theirEnd = subject.blockEnds === true ? ', and the server counts no connection' : `; ${subject.blockEnds}`
  await cases.test(`a close with operations under way resolves by its timeout${theirEnd}`, [subject.block], async (t) => {
    const opened = await open(t)
    const leases = await Promise.all(Array.from({ length: max }, () => take(opened.pool)))
    unheeded(...leases.map(({ connection }) => have(subject.block)(connection)))
    await counts(opened, max)
    await close(t, opened, leases)
    if (subject.blockEnds === true) await counts(opened, 0)
  })

  // --- max -----------------------------------------------------------------------------------------------------------

  await cases.test('max is hard as the server counts it, whatever is destroyed meanwhile', [], async (t) => {
    // Slow, so that a connection which nobody waited for is still there when another is made.
    const proxy = typeof subject.address === 'string' ? undefined : await proxied(t)
    proxy?.latency(5)
    // The one that is about to be made: the pool counts it already, and a handle that is kept is there all the time.
    const next = typeof subject.count === 'string' || typeof subject.renewed === 'string' ? 0 : 1
    let peak = 0
    const opened = await open(t, {
      ...(proxy && { at: proxy }),
      beforeCreate: async (opened) => { peak = Math.max(peak, await counted(opened) + next) },
    })
    const { pool } = opened
    const chance = new VirtualClock(42)
    let left = 200
    const work = async () => {
      while (left-- > 0) {
        const lease = await take(pool)
        await subject.ask(lease.connection)
        peak = Math.max(peak, await counted(opened))
        const dice = chance.random()
        if (dice < 0.2) lease.destroy()
        else if (dice < 0.4) lease.destroy(new Error('on purpose'))
        else lease.release()
      }
    }
    await Promise.all(Array.from({ length: max * 3 }, work))
    t.ok(peak <= max, `${peak} at most`)
    t.ok(peak >= max, 'and no less: else nothing was tried')
    t.equal(pool.stats().acquired, 200)
    t.ok(pool.stats().destroyed.released > 10 && pool.stats().destroyed.error > 10)
    if (subject.renewed === true) t.ok(opened.made.size > 20, `${opened.made.size} were made`)
  })

  // --- Two processes -------------------------------------------------------------------------------------------------

  /** What the other process counts is what was acknowledged: no row less, no row twice. */
  const isStored = async (t: Test, neighbour: Neighbour, rows: readonly string[], prefix: string) => {
    t.same((await neighbour.all()).filter((row) => row.startsWith(prefix)).sort(), [...rows].sort(),
      `${rows.length} acknowledged, and no other`)
  }

  await cases.test('two processes that write side by side: all that was acknowledged is there, as the other one counts', [subject.neighbour], async (t) => {
    const { start, add } = have(subject.neighbour)
    const { pool } = await open(t)
    const neighbour = await start(t)
    const prefix = `beside${process.pid}_${++names}_`
    const theirs = neighbour.add(Array.from({ length: 100 }, (_, row) => `${prefix}theirs${row}`))
    const mine: string[] = []
    let last = 0
    const work = async () => {
      while (last < 100) {
        const row = `${prefix}mine${++last}`
        if (await failureOf(use(pool,
          async (connection) => { await add(connection, row) })) === undefined) mine.push(row)
      }
    }
    await Promise.all(Array.from({ length: max * 2 }, work))
    const acknowledged = [...mine, ...await theirs]
    t.ok(mine.length > 0 && acknowledged.length > mine.length, `${mine.length} of mine`)
    await isStored(t, neighbour, acknowledged, prefix)
  })

  await cases.test('behind a write that failed, every write is there, in the same lease and in later ones, as another process counts', [subject.neighbour], async (t) => {
    const { start, add, fail } = have(subject.neighbour)
    const { pool } = await open(t, { max: 1 })
    const neighbour = await start(t)
    const prefix = `behind${process.pid}_${++names}_`
    const rows: string[] = []
    for (let round = 0; round < 3; round++) {
      await use(pool, async (connection) => {
        t.ok(await failureOf(fail(connection, neighbour)) instanceof Error, 'it fails')
        for (let row = 0; row < 3; row++) {
          rows.push(`${prefix}${round}_${row}`)
          await add(connection, rows.at(-1)!)
          await isStored(t, neighbour, rows, prefix)
        }
      })
    }
    // The other one can still write, too.
    t.equal((await neighbour.add([`${prefix}theirs`])).length, 1)
  })

  await cases.test('transactions', [subject.rows], async (t) => {
    const within = new Cases(t)
    await transactions(within, subject, { open, take, use })
    await within.end()
  })
  cases.end()
}

interface Tools<C> {
  open (t: Test, options?: OpenOptions<C>): Promise<Opened<C>>
  take (pool: PoolFace<C>): Promise<Lease<C>>
  use<T> (pool: PoolFace<C>, fn: (connection: C) => T | Promise<T>): Promise<T>
}

async function transactions<C> (
  cases: Cases, subject: Subject<C>, { open: openPool, take, use }: Tools<C>
): Promise<void> {
  const rows = have(subject.rows)
  const { max } = subject
  let last = 0
  const fresh = () => `row${process.pid}_${++last}`
  const several = max > 1 ? true : 'there is one connection only'

  const open = async (t: Test, options?: OpenOptions<C>) => {
    return await openPool(t, { onConnect: async (connection) => { await rows.prepare(connection) }, ...options })
  }
  /** Another pool, where there is one that sees the same. */
  const elsewhere = async (t: Test, { pool }: Opened<C>) => subject.shared === true ? (await open(t)).pool : pool
  const there = (pool: PoolFace<C>, row: string) =>
    use(pool, async (connection) => (await rows.all(connection)).includes(row))

  /** Whether a transaction has savepoints. */
  const nests = ({ pool }: Opened<C>) => pool.use(async (connection) => {
    const transaction = await pool.backend.transactions!.begin(connection, {}, new AbortController().signal)
    await transaction.rollback()
    return transaction.savepoint !== undefined
  })

  await cases.test('a commit is seen by others, and not before it', [], async (t) => {
    const opened = await open(t)
    const other = await elsewhere(t, opened)
    const row = fresh()
    const given = await opened.pool.transaction(async (connection) => {
      await rows.add(connection, row)
      t.ok((await rows.all(connection)).includes(row), 'it sees its own')
      if (subject.shared === true) t.notOk(await there(other, row), 'others do not, yet')
      return 42
    })
    t.equal(given, 42)
    t.ok(await there(other, row))
  })

  await cases.test('it says that a transaction is open, and no longer when it has ended', [], async (t) => {
    const { pool, connector } = await open(t)
    await pool.use(async (connection, lease) => {
      const doing = () => connector.describe!(connection)?.doing
      await lease.transaction(async (within) => {
        await rows.add(within, fresh())
        t.equal(doing(), 'idle in transaction')
        const adding = rows.add(within, fresh())
        if (typeof subject.linger !== 'string') t.equal(doing(), 'query')
        await adding
        t.equal(doing(), 'idle in transaction')
      })
      t.ok([undefined, 'idle'].includes(doing()), String(doing()))
    })
  })

  await cases.test('what throws is rolled back and thrown', [], async (t) => {
    const opened = await open(t)
    const other = await elsewhere(t, opened)
    const row = fresh()
    const mine = new Error('mine')
    const error = await failureOf(opened.pool.transaction(async (connection) => {
      await rows.add(connection, row)
      throw mine
    }))
    t.equal(error, mine)
    t.notOk(await there(other, row))
    t.equal(opened.pool.stats().created, 1, 'the connection is kept')
  })

  await cases.test('savepoints: of two within, the one that throws is undone, and the other is committed with the whole', [], async (t) => {
    const opened = await open(t)
    const [outer, kept, undone, deep] = [fresh(), fresh(), fresh(), fresh()]
    const nested = await nests(opened)
    if (!nested) {
      await t.rejects(opened.pool.use((_, lease) => lease.transaction(() => lease.transaction(() => undefined))),
        { code: 'FST_POOL_NOT_SUPPORTED' })
      return
    }
    await opened.pool.use((_, lease) => lease.transaction(async (connection) => {
      await rows.add(connection, outer)
      await lease.transaction(async (within) => { await rows.add(within, kept) })
      await t.rejects(lease.transaction(async (within) => {
        await rows.add(within, undone)
        await lease.transaction(async (deeper) => { await rows.add(deeper, deep) })
        throw new Error('mine')
      }), { message: 'mine' })
    }))
    const other = await elsewhere(t, opened)
    t.same(await Promise.all([outer, kept, undone, deep].map((row) => there(other, row))), [true, true, false, false])
  })

  await cases.test('each isolation level that it says it has is had, and no other', [rows.level], async (t) => {
    const { pool, connector } = await open(t)
    for (const isolation of connector.transactions!.isolation) {
      t.equal(await pool.transaction((connection) => have(rows.level)(connection), { isolation }), isolation)
    }
    await t.rejects(pool.transaction(() => t.fail('it must not run'), { isolation: 'nonsense' as Isolation }),
      { code: 'FST_POOL_BAD_OPTIONS' })
    await use(pool, subject.ask)
  })

  await cases.test('a transaction at a level that allows it sees one moment only', [rows.snapshot, subject.shared], async (t) => {
    const opened = await open(t)
    const other = await elsewhere(t, opened)
    const row = fresh()
    await opened.pool.transaction(async (connection) => {
      await rows.all(connection)
      await use(other, (another) => rows.add(another, row))
      t.notOk((await rows.all(connection)).includes(row))
    }, have(rows.snapshot))
    t.ok(await there(opened.pool, row))
  })

  await cases.test('a transaction that only reads can not write, and the next one can', [], async (t) => {
    const { pool, connector } = await open(t)
    const row = fresh()
    const write = async (connection: C) => { await rows.add(connection, row) }
    if (!connector.transactions!.readOnly) {
      await t.rejects(pool.transaction(write, { readOnly: true }), { code: 'FST_POOL_BAD_OPTIONS' })
      return
    }
    t.ok(await failureOf(pool.transaction(write, { readOnly: true })) instanceof Error)
    t.notOk(await there(pool, row))
    await pool.transaction(write)
    t.ok(await there(pool, row))
  })

  await cases.test('two side by side, on two connections, do not see each other', [several], async (t) => {
    const { pool } = await open(t)
    const [kept, undone] = [fresh(), fresh()]
    const [written, looked] = [meeting(2), meeting(2)]
    const one = (row: string, otherRow: string, end: () => void) => pool.transaction(async (connection) => {
      await rows.add(connection, row)
      await written()
      t.notOk((await rows.all(connection)).includes(otherRow))
      await looked()
      end()
    })
    await Promise.all([
      one(kept, undone, () => {}),
      t.rejects(one(undone, kept, () => { throw new Error('mine') }), { message: 'mine' }),
    ])
    t.same([await there(pool, kept), await there(pool, undone)], [true, false])
  })

  await cases.test('two side by side, on one lease, run one after the other, and one\'s end is not the other\'s', [], async (t) => {
    const { pool } = await open(t)
    const [kept, undone] = [fresh(), fresh()]
    await pool.use((_, lease) => Promise.all([
      t.rejects(lease.transaction(async (connection) => {
        await rows.add(connection, undone)
        throw new Error('mine')
      }), { message: 'mine' }),
      lease.transaction(async (connection) => { await rows.add(connection, kept) }),
    ]))
    t.same([await there(pool, kept), await there(pool, undone)], [true, false])
  })

  await cases.test('a lease released in the middle is rolled back, never committed, and its connection is clean', [], async (t) => {
    const opened = await open(t, { max: 1 })
    const { pool } = opened
    const row = fresh()
    const lease = await take(pool)
    const before = await subject.id(lease.connection)
    await t.rejects(lease.transaction(async (connection) => {
      await rows.add(connection, row)
      lease.release()
    }), { code: 'FST_POOL_LEASE_RELEASED' })
    const next = await take(pool)
    t.equal(await subject.id(next.connection), before)
    t.notOk((await rows.all(next.connection)).includes(row))
    next.release()
    t.notOk(await there(await elsewhere(t, opened), row))
    await pool.transaction((connection) => rows.add(connection, row))
    t.ok(await there(pool, row))
  })

  await cases.test('a connection that dies in the middle commits nothing, and says so', [subject.end, subject.dies], async (t) => {
    const opened = await open(t, { max: 1 })
    const row = fresh()
    const error = await failureOf(opened.pool.transaction(async (connection) => {
      await rows.add(connection, row)
      await have(subject.end)(await subject.id(connection))
    }))
    t.ok(error instanceof Error, inspect(error))
    t.notOk(await there(opened.pool, row))
  })

  for (const { name, end, goesOn = false } of typeof rows.endings === 'string' ? [] : rows.endings) {
    const what = goesOn ? 'the transaction goes on, and all of it is committed' : 'no commit resolves'
    await cases.test(`a commit never lies: ${name}: ${what}`, [], async (t) => {
      const opened = await open(t, { max: 1 })
      const { pool } = opened
      const other = await elsewhere(t, opened)
      /** @returns the rows of it */
      const work = async (connection: C): Promise<string[]> => {
        const [before, after] = [fresh(), fresh()]
        await rows.add(connection, before)
        await end(connection)
        const error = await failureOf((async () => rows.add(connection, after))())
        if (goesOn) t.equal(error, undefined)
        return [before, after]
      }
      const check = async (transaction: Promise<string[]>, how: string) => {
        let added: string[] = []
        const error = await failureOf(transaction.then((those) => { added = those }))
        if (!goesOn) return t.match(error, { code: 'FST_POOL_TRANSACTION_ENDED' }, how)
        t.equal(error, undefined, how)
        for (const row of added) t.ok(await there(other, row), `${how}: ${row} is committed`)
      }
      await check(pool.transaction(work), 'by the pool')
      await check(pool.use((_, lease) => lease.transaction(work)), 'by the lease')
      if (await nests(opened)) {
        await check(pool.use((_, lease) => lease.transaction(() => lease.transaction(work))), 'within another')
        // Told of it or not, the outer one can't be committed: the rows that it had before are gone.
        await check(pool.use((_, lease) => lease.transaction(async (connection) => {
          const outer = fresh()
          await rows.add(connection, outer)
          let added: string[] = []
          await failureOf(lease.transaction(work).then((those) => { added = those }))
          return [outer, ...added]
        })), 'within another, which goes on')
      }
      const next = fresh()
      await pool.transaction((connection) => rows.add(connection, next))
      t.ok(await there(other, next), 'the next transaction is none the worse')
      t.equal(pool.stats().destroyed.error, 0, 'the connection is kept')
    })
  }

  if (typeof rows.endings === 'string') {
    await cases.test('a commit never lies, whatever a borrower does', [rows.endings], async () => {})
  }

  await cases.test('two that get in each other\'s way: one fails, as can be told; with retry it runs again', [rows.conflict], async (t) => {
    const { pool, connector } = await open(t)
    const conflict = have(rows.conflict)
    const peaceful = rows.peaceful ?? 2
    const error = await failureOf(conflict(t, (fn, options) => pool.transaction(fn, options)))
    t.ok(connector.transactions!.isTransient(error), inspect(error))
    const runs = await conflict(t, (fn, options) => pool.transaction(fn, { ...options, retry: 5 }))
    t.ok(runs > peaceful, `they ran ${runs} times`)
  })
}
