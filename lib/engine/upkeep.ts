import type { DestroyReason } from '../../types/connector.js'
import type { Checks } from './checks.js'
import type { Cleaning } from './cleaning.js'
import type { Closing } from './closing.js'
import {
  CLOSING, CREATING, GONE, IDLE, LATE, LENT, PREPARING, RESETTING, SEEN, VALIDATING, type Borrower, type Entry,
} from './entry.js'
import * as faults from './faults.js'
import { Holds } from './holds.js'
import type { Failed } from './host.js'
import { Leaks } from './leaks.js'
import { TICK } from './operations.js'
import type { Parts } from './parts.js'
import { Room } from './room.js'
import type { Supply } from './supply.js'
import { commitLate } from './transaction.js'
import type { Waiting } from './waiting.js'

/** What upkeep asks of the engine. */
export interface Site<C> extends Parts<C> {
  readonly supply: Supply<C>
  readonly waiting: Waiting<C>
  readonly checks: Checks<C>
  readonly cleaning: Cleaning<C>
  readonly closing: Closing<C>
  /** Starts the periodic ticks. */
  wake (): void
  /** A tick begins: the next leases are timed exactly. */
  sample (): void
  /** No tick is due while nothing happens. */
  fallAsleep (): void
  destroy (entry: Entry<C>, reason: DestroyReason, error?: Error): void
  /** The pool itself ends a lease. @param failed the failure to report */
  revoke (entry: Entry<C>, reason: DestroyReason, failed?: Failed): void
  pump (): void
}

/** How long a late destroy counts as late, in ms. Then its connection is not waited for any more. */
export const FORGET = 60_000

/** Housekeeping at each tick: deadlines, idle connections, leases that are out for long. */
export class Upkeep<C> extends Room<C, Site<C>> {
  readonly leaks: Leaks<C>
  readonly #holds: Holds<C>
  #acquiredAtTick = 0

  constructor (site: Site<C>) {
    super(site)
    this.leaks = new Leaks(site)
    this.#holds = new Holds(site)
  }

  /** The event loop stood still: what is under way gets that time back. Callers' own deadlines stand. */
  stood (ms: number): void {
    const { supply, waiting } = this.site
    supply.stood(this.time.now)
    waiting.pace.stood(this.time.now, ms, this.entries.max)
    for (const entry of this.entries) {
      this.work.grant(entry, ms)
      entry.extras?.hold?.grant(ms, this.time.now)
    }
  }

  tick (): void {
    const now = this.time.read()
    let works = false
    let out = 0
    this.site.sample()
    this.site.supply.tick(now)
    this.time.arm(this.line.sweep(now, (waiter) => { this.site.waiting.expire(waiter) }))
    this.time.wakeSleepers(now)
    for (const entry of this.entries) {
      const deadline = entry.operation?.deadline ?? Infinity
      if (entry.state === LENT) {
        entry.timed |= SEEN
        out += Math.max(0, now - entry.takenAt)
      }
      if (deadline <= now) this.#overdue(entry)
      else if (entry.state === IDLE) this.time.arm(this.#keep(entry, now))
      else if (entry.state === LENT) this.time.arm(this.#look(entry, now))
      if (entry.operation !== undefined) {
        works ||= entry.state !== LATE
        if (entry.state === VALIDATING) this.site.checks.watch(entry.operation, now)
        this.time.arm(entry.operation.deadline)
      }
    }
    this.site.checks.review()
    this.site.waiting.endTick()
    this.site.pump()
    // While nothing is lent and nobody waits there are no periodic ticks; the next acquire wakes the clock.
    const quiet = this.books.acquired === this.#acquiredAtTick && this.line.size === 0
    this.#acquiredAtTick = this.books.acquired
    this.books.tick(now, out, quiet)
    if (quiet) this.site.fallAsleep()
    if (!quiet || works) this.time.arm(now + TICK)
    this.time.keepAlive()
  }

  /** The operation on a connection is past its deadline: the room that owns the state handles it. */
  #overdue (entry: Entry<C>): void {
    const { checks, cleaning, supply, waiting } = this.site
    switch (entry.state) {
      case CREATING: supply.creator.overdue(entry); break
      case LENT: this.#transactionOverdue(entry); break
      case PREPARING: waiting.overdue(entry); break
      case VALIDATING: checks.overdue(entry); break
      case RESETTING: cleaning.overdue(entry); break
      case CLOSING: this.#closingOverdue(entry); break
      case LATE: this.#lateOverdue(entry); break
    }
    this.site.closing.settle()
    supply.settleOpeners()
    if (entry.state >= LATE) this.owner?.freed()
  }

  #transactionOverdue (entry: Entry<C>): void {
    const { checks } = this.site
    const { commit, phase } = entry.operation!
    const obstacle = phase === 'begin' && checks.isHindered(entry) ? checks.obstacle : undefined
    const error = phase === 'begin'
      ? faults.beginTimedOut(this.name, this.options.acquireTimeout, obstacle)
      : phase === 'commit'
        ? commitLate(this.name, commit!.timeout, commit!.inDoubt() ?? true)
        : new Error(`a transaction was not rolled back within ${this.options.resetTimeout} ms (resetTimeout)`)
    this.work.abort(entry, error)
    this.site.revoke(entry, 'error', { error, phase: phase! })
  }

  #closingOverdue (entry: Entry<C>): void {
    this.entries.move(entry, LATE)
    this.#cut(entry)
  }

  /** The destroy is past its deadline: the connector is told, and has some more time. */
  #cut (entry: Entry<C>): void {
    const error = new Error(`a connection was not closed within ${this.options.destroyTimeout} ms (destroyTimeout)`)
    this.work.abort(entry, error)
    this.work.begin(entry, this.time.now + FORGET)
    this.events.report(error, 'destroy')
  }

  #lateOverdue (entry: Entry<C>): void {
    if (!entry.operation!.signal.aborted) return this.#cut(entry)
    this.work.finish(entry)
    this.entries.move(entry, GONE)
    const message = `a connection was not closed ${FORGET / 1000} s after its deadline, and does not count any more`
    this.events.report(new Error(message), 'destroy')
  }

  /** Destroys or pings an idle connection where that is due. Returns when to look again. */
  #keep (entry: Entry<C>, now: number): number {
    const { checks, entries: { here, coming, min }, options: { idleTimeout, keepalive } } = this.site
    const idleAt = idleTimeout > 0 && here + coming > min ? entry.idleSince + idleTimeout : Infinity
    const pingAt = keepalive > 0 && this.backend.validate !== undefined ? entry.freshAt + keepalive : Infinity
    const expiresAt = entry.expiresAt || Infinity
    const reason = expiresAt <= now ? 'lifetime' : idleAt <= now ? 'idle' : undefined
    if (reason !== undefined) {
      this.site.destroy(entry, reason)
      return Infinity
    }
    if (pingAt > now) return Math.min(expiresAt, idleAt, pingAt)
    checks.ping(entry)
    return Math.min(expiresAt, idleAt, now + keepalive)
  }

  borrowed (entry: Entry<C>, borrower: Borrower): void {
    entry.more.borrower = borrower
    const { holdTimeout = this.options.holdTimeout } = borrower
    if (holdTimeout === 0) return
    // The next tick looks at it; a short hold is over before that.
    this.site.wake()
    if (holdTimeout < 2 * TICK) this.time.arm(this.time.now + holdTimeout / 2)
  }

  /** Looks after a lease. Returns when to look again. */
  #look (entry: Entry<C>, now: number): number {
    const lookAt = this.leaks.look(entry, now)
    const borrower = entry.extras?.borrower
    // The listeners of a leak may have ended the lease.
    return borrower === undefined ? lookAt : Math.min(lookAt, this.#holds.look(entry, borrower, now))
  }
}
