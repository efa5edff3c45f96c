import type { PoolError } from '../../lib/engine/errors.js'
import type { EngineOptions } from '../../types/options.js'
import { Pool } from '../../lib/pool/pool.js'
import type {
  Connector, DestroyReason, Isolation, Transaction, TransactionOptions, Transactions,
} from '../../types/connector.js'
import type { PoolEventName, PoolEvents } from '../../types/pool.js'
import { VirtualClock } from './clock.js'

/**
 * What a call to the connector does: answers at once, fails, throws, never answers, or answers when the test says so.
 */
export type Outcome = 'ok' | 'sync' | 'error' | 'throw' | 'hang' | 'gate' | 'no'

export interface FakeConnection {
  readonly id: number
  state: 'open' | 'destroyed'
  broken: boolean
  reason?: DestroyReason
  /** Tells the pool that it died, as a driver would. */
  die (error?: Error): void
}

export interface Call {
  readonly name: string
  readonly connection?: FakeConnection
  readonly signal?: AbortSignal
  pass (): void
  fail (error?: Error): void
}

type Method = 'create' | 'destroy' | 'validate' | 'reset' | 'begin' | 'commit' | 'rollback' | 'savepoint'

/** An open transaction, or a savepoint in one, as the connector knows it. */
interface Open { readonly name: string | undefined, readonly rows: string[] }

/** A connector in the test's hands. It keeps its own books of what the pool asked of it. */
// The names of the pools that tests have. Those of the examples are here too: all is one program to the compiler.
declare module '../../index.js' {
  interface RequestPools {
    db: FakeConnection
    cache: FakeConnection
    archive: FakeConnection
    inner: FakeConnection
    mine: FakeConnection
    own: FakeConnection
    root: FakeConnection
  }
}

export class FakeConnector implements Connector<FakeConnection> {
  readonly system = 'fake'
  /** What the next calls do, by method; the last one stays. */
  outcomes: Record<Method, Outcome> = {
    create: 'ok',
    destroy: 'ok',
    validate: 'ok',
    reset: 'sync',
    begin: 'ok',
    commit: 'ok',
    rollback: 'ok',
    savepoint: 'ok',
  }

  /** What the next calls of `transactions` do, one after the other, before `outcomes` says it again. */
  readonly next: Partial<Record<Method, Outcome[]>> = {}
  /** Gated and hanging calls that have not been answered. */
  readonly calls: Call[] = []
  readonly connections: FakeConnection[] = []
  creates = 0
  live = 0
  peak = 0
  /** How many times a connection was destroyed twice, or used after: must stay 0. */
  violations: string[] = []
  closed = 0
  honoursSignal = true
  brokenThrows = false
  /** The database: what was committed. Written to by `write`. */
  readonly rows: string[] = []
  /**
   * What transactions were asked, in order: `begin`, `savepoint x`, `commit`, `commit x`, `rollback`, `rollback x`,
   * each with ` #` and the connection's id.
   */
  readonly asked: string[] = []
  /** How each one began. */
  readonly begun: TransactionOptions[] = []
  /** Whether transactions work through another object than the connection, as MongoDB's do. */
  binds = false
  /** Whether there are transactions within transactions. */
  nests = true
  /** What transactions tell of a commit; undefined: nothing. */
  inDoubt: boolean | undefined
  /** Called within each call of `transactions`. */
  onAsked: (what: string) => void = () => {}
  readonly #open = new Map<number, Open[]>()
  /** What `transactions` do on each connection now. */
  readonly #under = new Map<number, string>()

  transactions?: Transactions<FakeConnection> = {
    isolation: ['read committed', 'serializable'] satisfies Isolation[],
    readOnly: true,
    begin: (connection, options, signal) => {
      this.begun.push(options)
      if (this.#levels(connection)
        .length > 0) this.violations.push(`begin on connection ${connection.id}, whose transaction is open`)
      return this.#ask('begin', connection, undefined, () => this.#opened(connection, undefined), signal)
    },
    isTransient: (error) => error instanceof Error && error.message.includes('transient'),
  }

  /** A statement: it stays if the transaction that it is in does, or at once where none is open. */
  write (connection: FakeConnection, row: string): void {
    const { id, state } = connection
    if (state !== 'open') throw new Error(`connection ${id} is closed`)
    const rows = this.#open.get(id)?.at(-1)?.rows ?? this.rows
    rows.push(row)
  }

  /** How deep that connection is in transactions. */
  depth ({ id }: FakeConnection): number {
    return this.#open.get(id)?.length ?? 0
  }

  #levels ({ id }: FakeConnection): Open[] {
    const levels = this.#open.get(id) ?? []
    this.#open.set(id, levels)
    return levels
  }

  #opened (connection: FakeConnection, name: string | undefined): Transaction<FakeConnection> {
    const levels = this.#levels(connection)
    const open: Open = { name, rows: [] }
    levels.push(open)
    const innermost = (what: string) => {
      if (levels.at(-1) !== open) this.violations.push(`${what} ${name ?? ''} on connection ${connection.id}: it is not the innermost`)
    }
    const tellDoubt = () => this.inDoubt as boolean
    return {
      connection: this.binds ? { ...connection } : connection,
      get inDoubt () { return tellDoubt() },
      commit: () => {
        innermost('commit')
        return this.#ask('commit', connection, name, () => {
          levels.pop()
          const outer = levels.at(-1)?.rows ?? this.rows
          outer.push(...open.rows)
        })
      },
      // Undoes those within it too; does nothing where it is not open any more.
      rollback: () => this.#ask('rollback', connection, name, () => {
        if (levels.includes(open)) levels.length = levels.indexOf(open)
      }),
      ...(this.nests && {
        savepoint: (inner: string) => {
          innermost('savepoint in')
          if (levels.some((level) => level.name === inner)) this.violations.push(`savepoint ${inner} is open already`)
          return this.#ask('savepoint', connection, inner, () => this.#opened(connection, inner))
        },
      }),
    }
  }

  #ask<T> (
    method: Method, connection: FakeConnection, name: string | undefined, ok: () => T, signal?: AbortSignal
  ): Promise<T> {
    const { id } = connection
    const what = `${method}${name === undefined ? '' : ` ${name}`} #${id}`
    this.#check(`asked to ${what}`, connection)
    const under = this.#under.get(id)
    if (under !== undefined) this.violations.push(`${what} while ${under} was under way`)
    this.asked.push(what)
    this.onAsked(what)
    const done = () => { this.#under.delete(id) }
    this.#under.set(id, what)
    return this.#answer(method, this.next[method]?.shift() ?? this.outcomes[method], () => {
      done()
      return ok()
    }, { connection, ...(signal && { signal }), failed: done })
  }

  create (signal: AbortSignal): Promise<FakeConnection> {
    this.creates++
    this.live++
    this.peak = Math.max(this.peak, this.live)
    const made = (): FakeConnection => {
      const connection: FakeConnection = {
        id: this.connections.length + 1, state: 'open', broken: false, die: () => {},
      }
      this.connections.push(connection)
      return connection
    }
    const failed = () => { this.live-- }
    return this.#answer('create', this.outcomes.create, made, { signal, failed })
  }

  destroy (connection: FakeConnection, reason: DestroyReason, _signal?: AbortSignal): Promise<void> | void {
    if (connection.state === 'destroyed') this.violations.push(`connection ${connection.id} was destroyed twice`)
    connection.state = 'destroyed'
    connection.reason = reason
    const done = () => { this.live-- }
    if (this.outcomes.destroy === 'sync') return done()
    return this.#answer('destroy', this.outcomes.destroy, done, { connection, failed: done })
  }

  validate (connection: FakeConnection, signal: AbortSignal): Promise<boolean> {
    this.#check('validated', connection)
    const { validate } = this.outcomes
    return this.#answer('validate', validate, () => validate !== 'no', { connection, signal })
  }

  isBroken (connection: FakeConnection): boolean {
    if (this.brokenThrows) throw new Error('isBroken threw')
    return connection.broken
  }

  reset (connection: FakeConnection, signal: AbortSignal): Promise<void> | undefined {
    this.#check('reset', connection)
    if (this.outcomes.reset === 'sync') return undefined
    return this.#answer('reset', this.outcomes.reset, () => {}, { connection, signal })
  }

  onDeath (connection: FakeConnection, listener: (error?: Error) => void): void {
    connection.die = (error) => {
      connection.broken = true
      listener(error)
    }
  }

  close (): void {
    this.closed++
  }

  /** Answers the oldest unanswered call of that name. */
  pass (name: string): void {
    this.#next(name).pass()
  }

  fail (name: string, error?: Error): void {
    this.#next(name).fail(error)
  }

  #next (name: string): Call {
    const call = this.calls.find((one) => one.name === name)
    if (call === undefined) throw new Error(`no ${name} is under way`)
    return call
  }

  #check (what: string, connection: FakeConnection): void {
    if (connection.state !== 'open') this.violations.push(`connection ${connection.id} was ${what} after its end`)
    if (/^(reset|validated)/.test(what) &&
      this.depth(connection) > 0) this.violations.push(`connection ${connection.id} was ${what} with an open transaction`)
  }

  #answer<T> (
    name: string,
    outcome: Outcome,
    ok: () => T,
    { connection, signal, failed = () => {} }:
    { connection?: FakeConnection, signal?: AbortSignal, failed?: () => void }
  ): Promise<T> {
    if (outcome === 'throw') {
      failed()
      throw new Error(`${name} threw`)
    }
    return new Promise<T>((resolve, reject) => {
      const pass = () => { if (remove()) resolve(ok()) }
      const fail = (error = new Error(`${name} failed`)) => {
        if (!remove()) return
        failed()
        reject(error)
      }
      const call: Call = { name, pass, fail, ...(connection && { connection }), ...(signal && { signal }) }
      const remove = () => {
        const at = this.calls.indexOf(call)
        if (at >= 0) this.calls.splice(at, 1)
        return at >= 0
      }
      this.calls.push(call)
      if (outcome === 'ok' || outcome === 'no' || outcome === 'sync') pass()
      else if (outcome === 'error') fail()
      else if (outcome === 'gate' && this.honoursSignal) {
        signal?.addEventListener('abort',
          () => { fail(signal.reason as Error) }, { once: true })
      }
    })
  }
}

// --- A pool on it ----------------------------------------------------------------------------------------------------

export interface FakePool {
  readonly pool: Pool<FakeConnection, FakeConnector>
  readonly connector: FakeConnector
  readonly clock: VirtualClock
  /** Every event that was listened to, in order, with its name. */
  readonly events: Array<{ readonly event: PoolEventName } & Record<string, unknown>>
  /** Those of one name. */
  seen<E extends PoolEventName> (name: E): Array<PoolEvents[E]>
}

const everyEvent: readonly PoolEventName[] = [
  'connect', 'disconnect', 'acquire', 'release', 'wait', 'overflow', 'timeout', 'refuse', 'leak', 'unleak', 'hold',
  'overdue', 'error',
  'circuit', 'driver', 'open', 'drain', 'close',
]

/**
 * A pool with a connector and a clock in the test's hands, and no circuit breaker unless it asks for one.
 *
 * @param more.listen which events it listens to; all of them unless given
 */
export function fakePool (
  options: EngineOptions<FakeConnection> = {},
  {
    connector = new FakeConnector(), clock = new VirtualClock(), listen = everyEvent,
  }: { connector?: FakeConnector, clock?: VirtualClock, listen?: readonly PoolEventName[] } = {}
): FakePool {
  const pool = new Pool<FakeConnection, FakeConnector>(connector, { circuit: false, ...options }, clock)
  const events: FakePool['events'] = []
  for (const name of listen) pool.on(name, (payload) => { events.push({ ...payload, event: name }) })
  const seen = <E extends PoolEventName>(name: E) =>
    events.filter(({ event }) => event === name) as unknown as Array<PoolEvents[E]>
  return { pool, connector, clock, events, seen }
}

/** What a promise has come to by now. */
export interface Watched<T> { readonly done: boolean, readonly value?: T, readonly error?: PoolError }

/** Watches a promise without waiting for it. Its rejection is handled. */
export function watch<T> (promise: Promise<T>): Watched<T> {
  const watched: { done: boolean, value?: T, error?: PoolError } = { done: false }
  promise.then((value) => { Object.assign(watched, { done: true, value }) },
    (error: unknown) => { Object.assign(watched, { done: true, error }) })
  return watched
}

/** What a promise rejects with. @throws if it does not */
export function failure (promise: Promise<unknown>): Promise<PoolError> {
  return promise.then(() => { throw new Error('it should have failed') }, (error: PoolError) => error)
}

/** Acquires and gives back `count` connections at once: they are idle afterwards. */
export async function warm (pool: Pool<FakeConnection, FakeConnector>, count = 1): Promise<void> {
  const leases = await Promise.all(Array.from({ length: count }, () => pool.acquire()))
  for (const lease of leases) lease.release()
}
