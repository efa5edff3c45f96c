import type { DestroyReason, Transactions } from '../../types/connector.js'
import type { ErrorPhase, WrapInfo } from '../../types/pool.js'
import type { After } from './aftermath.js'
import type { Checks } from './checks.js'
import { LENT, RESETTING, type Entry } from './entry.js'
import { PoolError } from './errors.js'
import type { Parts } from './parts.js'
import {
  commitLost, released, type Commit, type Host, type LeaseTransactions, type Phase,
} from './transaction.js'

/** A failure that is to be reported. */
export interface Failed { readonly error: unknown, readonly phase: ErrorPhase }

/** What the transactions of leases ask of the engine. */
export interface Site<C> extends Parts<C> {
  readonly checks: Checks<C>
  readonly closing: { after (fn: () => unknown, on: After): void }
  transactionsOf (entry: Entry<C>): LeaseTransactions<C>
  /** The pool itself ends a lease. */
  revoke (entry: Entry<C>, reason: DestroyReason, failed: Failed): void
}

/** What borrowers get: the connection, or the one of a transaction on it, through the option `wrap`. */
export function wrap<C> (site: Site<C>, entry: Entry<C>, connection: C): C {
  const { backend, events, name, options } = site
  if (options.wrap === undefined) return connection
  const info: WrapInfo = {
    pool: name,
    system: backend.system,
    inTransaction: connection !== entry.connection,
    begin: async (begin) => {
      if (entry.state !== LENT) throw released(name)
      return await site.transactionsOf(entry).begin(begin, options.commitTimeout)
    },
  }
  return events.run(() => options.wrap!(connection, info)) as C
}

/** What the transactions of one lease need of its connection and its engine. */
export class LeaseHost<C> implements Host<C> {
  readonly #site: Site<C>
  readonly #entry: Entry<C>
  readonly #turn: number

  constructor (site: Site<C>, entry: Entry<C>) {
    this.#site = site
    this.#entry = entry
    this.#turn = entry.turn
  }

  get pool (): object {
    return this.#site
  }

  get name (): string {
    return this.#site.name
  }

  get transactions (): Transactions<C> | undefined {
    return this.#site.backend.transactions
  }

  get connection (): C {
    return this.#entry.connection
  }

  get patience (): number {
    return this.#site.options.acquireTimeout
  }

  get ended (): boolean {
    return this.#entry.turn !== this.#turn
  }

  face (connection: C): C {
    return connection === this.#entry.connection ? this.#entry.face : wrap(this.#site, this.#entry, connection)
  }

  async call<T> (phase: Phase, call: (signal: () => AbortSignal) => Promise<T>, commit?: Commit): Promise<T> {
    const { events, name, options: { acquireTimeout, resetTimeout }, time, work } = this.#site
    const timeout = phase === 'begin' ? acquireTimeout : resetTimeout
    const now = time.read()
    const deadline = commit === undefined ? now + timeout : commit.deadline + time.stalled
    const operation = work.begin(this.#entry, deadline, phase)
    operation.commit = commit
    // The deadline of a commit counts from before the operation, and so does time in which the event loop stood still.
    if (commit !== undefined) operation.since = Math.min(now, deadline - commit.timeout)
    let aborted = false
    const cut = new Promise<never>((_resolve, reject) => {
      operation.cut = (reason) => {
        aborted = true
        // Asked now, before the end of the connection can change the answer.
        const inDoubt = commit !== undefined && (commit.inDoubt() ?? true)
        if (reason instanceof PoolError) reject(reason)
        else reject(inDoubt ? commitLost(name) : released(name))
      }
    })
    cut.catch(() => { /* Where the connector was faster, it is asked for below. */ })
    try {
      return await Promise.race([events.runHere(() => call(() => operation.signal)), cut])
    } catch (error) {
      // An aborted connector only tells that it gave up; the reason is that of the abort.
      if (aborted) return await cut
      if (commit !== undefined && (commit.inDoubt() ?? this.#site.checks.isDead(this.#entry))) {
        throw commitLost(name, events.scrub(error))
      }
      throw error
    } finally {
      if (!this.ended) work.finish(this.#entry)
    }
  }

  async callLate (call: () => Promise<void>): Promise<void> {
    // In another state, the wait for the work before took so long that the connection is gone.
    if (this.#entry.state === RESETTING) await this.#site.events.run(call)
  }

  fail (error: unknown, phase: Phase): void {
    // Several transactions may be past the same deadline; the first of them ends the lease.
    if (!this.ended) this.#site.revoke(this.#entry, 'error', { error, phase })
  }

  after (fn: () => unknown, on: After): void {
    this.#site.closing.after(fn, on)
  }

  isTransient (error: unknown): boolean {
    try {
      return this.transactions!.isTransient(error)
    } catch (failure) {
      this.#site.events.report(failure, 'isTransient')
      return false
    }
  }

  now (): number {
    return this.#site.time.running
  }

  async wait (ms: number, done?: Promise<unknown>): Promise<boolean> {
    const sleep = this.#site.time.sleep(ms, true)
    const awake = done === undefined ? [] : [done.then(() => true)]
    try {
      return await Promise.race([sleep.over.then(() => false), ...awake])
    } finally {
      sleep.cancel()
    }
  }

  random (): number {
    return this.#site.time.random()
  }
}
