import type { DestroyReason } from '../../types/connector.js'
import type { AcquireOptions, Holder, HolderLabel, Lease } from '../../types/pool.js'
import { Pace } from './books.js'
import type { Checks } from './checks.js'
import type { Cleaning } from './cleaning.js'
import { LENT, PREPARING, type Entry } from './entry.js'
import type { PoolError } from './errors.js'
import { label } from './events.js'
import * as faults from './faults.js'
import type { Hooks } from './hooks.js'
import { Waiter } from './line.js'
import type { Parts, Phase } from './parts.js'
import type { Report } from './report.js'
import type { Supply } from './supply.js'

/** What the waiting room asks of the engine. */
export interface Site<C> extends Parts<C> {
  readonly hooks: Hooks<C>
  readonly checks: Checks<C>
  readonly supply: Supply<C>
  readonly cleaning: Cleaning<C>
  readonly phase: Phase
  readonly isSuspended: boolean
  /** Nobody is taken any more. */
  readonly isClosed: boolean
  readonly report: Report<C>
  /** Somebody is, or nobody is any more, in the line. */
  lineChanged (): void
  /** Nobody waits any more. */
  lineEmptied (): void
  /** Ticks come from now on. */
  wake (): void
  pump (): void
  lend (entry: Entry<C>, holder: HolderLabel | undefined, wait: number): Lease<C>
  destroy (entry: Entry<C>, reason: DestroyReason, error?: Error): void
}

/** An acquire may be predicted to wait for this part of its deadline: to be refused at once is better than to wait in vain. */
const MARGIN = 0.8

/** Those who wait for a connection: who may, who is served, who is sent away. */
export class Waiting<C> {
  readonly #site: Site<C>
  readonly pace = new Pace()
  /** How many have left the line for a connection that is being prepared for them. */
  #preparing = 0
  /** `overflow` was told of this line. */
  #overflowing = false
  /** What is the same in the errors of all whose deadline comes in one tick. */
  #crowd: { readonly retryAfter: number, readonly holders: readonly Holder[] } | undefined

  constructor (site: Site<C>) {
    this.#site = site
  }

  get isAwaited (): boolean {
    return this.#site.line.size + this.#preparing > 0
  }

  // --- Coming ---------------------------------------------------------------------------------------------------------

  join (options: AcquireOptions = {}, resolve: Waiter<C>['resolve'], reject: (error: Error) => void): void {
    const { name, books, checks, events, line, options: settings, supply, time } = this.#site
    const { signal, holder, timeout = settings.acquireTimeout } = options
    const now = time.read()
    if (signal?.aborted === true) {
      books.aborted++
      return reject(faults.aborted(name, signal))
    }
    supply.start()
    const refusal = this.#refusal(timeout, holder)
    if (refusal !== undefined) return reject(this.#refuse(refusal, holder, 0))

    const waiter = new Waiter<C>(holder, now, now + timeout, resolve)
    if (signal !== undefined) {
      waiter.leaveOn(signal, () => {
        this.leave(waiter)
        books.aborted++
        reject(faults.aborted(name, signal))
      })
    }
    if (line.size === 0) {
      this.pace.begin(now)
      checks.begin()
    }
    this.#enter(waiter, false)
    this.#site.wake()
    this.#site.pump()
    if (!waiter.inLine) return
    if (events.hears('wait')) events.emit('wait', { pending: line.size, ...label(holder) })
    if (!this.#overflowing && this.#isOverflow) {
      this.#overflowing = true
      if (events.hears('overflow')) events.emit('overflow', { pending: line.size })
    }
  }

  /** Why an acquire may not even wait. */
  #refusal (timeout: number, holder: HolderLabel | undefined): PoolError | undefined {
    const { options, report: { situation }, supply } = this.#site
    if (this.#site.isClosed) return this.closedError
    if (this.#isFull) return faults.queueFull(situation, { retryAfter: this.#wait / 1000, holders: this.#holders })
    if (supply.isHopeless) return supply.circuitError
    if (options.overload && this.#isPaced && this.#wait > MARGIN * timeout) {
      return faults.overloaded(situation, this.#wait, timeout, this.#holders)
    }
    return holder !== undefined && this.#isDeadlock(holder) ? faults.deadlocked(situation, this.#holders) : undefined
  }

  /** Whoever gets an idle connection, or one of its own made, does not wait for capacity and needs no place in the line. */
  get #isFull (): boolean {
    const { entries, line, options: { maxPending }, work } = this.#site
    if (line.size < maxPending) return false
    const { idle, coming, max, total } = entries
    return line.size >= maxPending + idle.length + coming + work.awaited + Math.max(0, max - total)
  }

  get #isOverflow (): boolean {
    const { entries, line, work } = this.#site
    const { idle, coming, max, total } = entries
    return total >= max && idle.length === 0 && line.size > coming + work.awaited
  }

  /** Whether all who hold connections wait for another one, this caller included. */
  #isDeadlock (holder: HolderLabel): boolean {
    const { entries, line } = this.#site
    if (typeof holder === 'string' || entries.idle.length > 0 || entries.here < entries.max) return false
    // Nearly everybody who waits holds none, and is done here.
    let holds = false
    for (const { holder: other } of entries) holds ||= other === holder
    if (!holds) return false
    const others = new Set<object>()
    for (const entry of entries) {
      if (!entry.isHere) continue
      if (entry.state !== LENT || typeof entry.holder !== 'object') return false
      if (entry.holder !== holder) others.add(entry.holder)
    }
    if (others.size > line.size) return false
    // By the very object: a text is only a label, and an id may be its client's choice.
    for (const waiter of line) if (typeof waiter.holder === 'object') others.delete(waiter.holder)
    return others.size === 0
  }

  #enter (waiter: Waiter<C>, first: boolean): void {
    const { line, time } = this.#site
    if (first) line.putBack(waiter)
    else line.add(waiter)
    this.#site.lineChanged()
    time.arm(waiter.deadline)
    time.keepAlive()
  }

  #remove (waiter: Waiter<C>): void {
    this.#site.line.remove(waiter)
    this.#site.lineChanged()
  }

  // --- Being served ---------------------------------------------------------------------------------------------------

  /** Lends a connection that is ready to the first in line; there is one. */
  serve (entry: Entry<C>): void {
    const { entries, hooks, line, options, work } = this.#site
    const waiter = line.first()!
    // First of all: what hooks and listeners set off must not serve it a second time.
    this.#remove(waiter)
    if (options.onAcquire === undefined) return this.#handOver(entry, waiter)
    let preparation: Promise<unknown> | undefined
    try {
      entries.move(entry, PREPARING)
      preparation = hooks.prepare(entry, { holder: waiter.holder })
    } catch (error) {
      this.#unprepared(entry, waiter, error)
      return
    }
    if (preparation === undefined) return this.#prepared(entry, waiter)
    // Its deadline goes on, and no other connection is tried for it as long as this one lives.
    work.begin(entry, waiter.deadline).prepared = waiter
    this.#setPreparing(waiter, true)
    preparation.then(() => { this.#preparedLate(entry, waiter) }, (error: unknown) => {
      this.#unprepared(entry, waiter, error)
    })
  }

  #preparedLate (entry: Entry<C>, waiter: Waiter<C>): void {
    if (entry.state !== PREPARING) return
    const { checks, work } = this.#site
    work.finish(entry)
    if (!waiter.waiting || !checks.isDead(entry)) return this.#prepared(entry, waiter)
    this.#setPreparing(waiter, false)
    this.#enter(waiter, true)
    this.#site.destroy(entry, 'error', entry.broken)
  }

  #prepared (entry: Entry<C>, waiter: Waiter<C>): void {
    if (waiter.waiting) this.#handOver(entry, waiter)
    // Prepared for somebody who has left: not for the next one.
    else this.#site.cleaning.again(entry)
  }

  /** `onAcquire` failed. */
  #unprepared (entry: Entry<C>, waiter: Waiter<C>, error: unknown): void {
    const reported = this.#site.events.report(error, 'onAcquire')
    if (entry.state === PREPARING) this.#site.destroy(entry, 'error', reported)
    if (this.leave(waiter)) waiter.reject(error as Error)
  }

  #handOver (entry: Entry<C>, waiter: Waiter<C>): void {
    const { books, entries, time } = this.#site
    // A long `onAcquire` may have seen the last tick.
    this.#site.wake()
    const now = time.read()
    const wait = now - waiter.since
    books.waits.record(wait)
    this.pace.turn(now, entries.max)
    const { resolve, holder } = waiter
    this.leave(waiter)
    resolve(this.#site.lend(entry, holder, wait))
  }

  #setPreparing (waiter: Waiter<C>, preparing: boolean): void {
    if (waiter.preparing === preparing) return
    waiter.preparing = preparing
    this.#preparing += preparing ? 1 : -1
    this.#site.time.keepAlive()
  }

  /** `onAcquire` is past the deadline of its acquire. */
  overdue (entry: Entry<C>): void {
    const { events, work } = this.#site
    const { prepared } = entry.operation!
    work.abort(entry, 'past its deadline')
    work.finish(entry)
    this.expire(prepared!)
    const error = new Error('onAcquire was not done at the deadline of its acquire')
    this.#site.destroy(entry, 'error', events.report(error, 'onAcquire'))
  }

  // --- Leaving --------------------------------------------------------------------------------------------------------

  /** Takes a waiter out of the line, or from the connection that is being prepared for it. False: it has left already. */
  leave (waiter: Waiter<C>): boolean {
    if (!waiter.waiting) return false
    if (waiter.inLine) this.#remove(waiter)
    else this.#setPreparing(waiter, false)
    waiter.end()
    this.#site.supply.cancelSpare()
    if (this.#site.line.size === 0) {
      this.#overflowing = false
      this.#site.lineEmptied()
    }
    return true
  }

  /** The acquire's deadline has passed. */
  expire (waiter: Waiter<C>): void {
    const { books, checks, events, time } = this.#site
    // Before it leaves: from a pool that drains, the idle connections go with the last who waits.
    const { obstacle } = checks
    if (!this.leave(waiter)) return
    books.timeouts++
    const { holder, since, deadline } = waiter
    const error = faults.withoutStack(() => this.#timeoutError(deadline - since, obstacle))
    if (events.hears('timeout')) events.emit('timeout', { error, wait: time.now - since, ...label(holder) })
    waiter.reject(error)
  }

  #timeoutError (timeout: number, obstacle: string | undefined): PoolError {
    const { entries, report: { situation }, supply } = this.#site
    const { lastFailure: cause } = supply.creator
    if (cause !== undefined && entries.here === 0) return supply.connectError
    this.#crowd ??= { retryAfter: this.#wait / 1000, holders: this.#holders }
    return faults.timedOut(situation, timeout, obstacle, { ...this.#crowd, cause })
  }

  /** Sends all away who wait now: not those who come back at once. */
  turnAllAway (why: () => PoolError): void {
    for (const waiter of [...this.#site.line]) this.turnAway(waiter, faults.withoutStack(why))
  }

  turnAway (waiter: Waiter<C>, error: PoolError): void {
    if (this.leave(waiter)) waiter.reject(this.#refuse(error, waiter.holder, this.#site.time.now - waiter.since))
  }

  /** A tick is over. */
  endTick (): void {
    this.#crowd = undefined
  }

  #refuse (error: PoolError, holder: HolderLabel | undefined, wait: number): PoolError {
    const { books, events } = this.#site
    books.refused++
    if (events.hears('refuse')) events.emit('refuse', { error, wait, ...label(holder) })
    return error
  }

  // --- Telling --------------------------------------------------------------------------------------------------------

  /** Whether the line tells how fast it moves: where it is empty it does not, and where it is stopped everybody waits. */
  get #isPaced (): boolean {
    const { entries, isSuspended, line } = this.#site
    return line.size > 0 && !isSuspended && this.pace.isKnown(entries.max)
  }

  /** How long somebody who came now would wait, in ms, as far as recent leases tell. */
  get #wait (): number {
    const { books, entries, line } = this.#site
    if (this.#isPaced) return (line.size + 1) * this.pace.mean
    const { count, p50 } = books.holds.summary()
    return count === 0 ? 1000 : (line.size + 1) * p50 / entries.max
  }

  get #holders (): readonly Holder[] {
    return this.#site.report.topHolders
  }

  get closedError (): PoolError {
    const { name, options, phase } = this.#site
    return faults.closed(name, phase, options.closeTimeout)
  }
}
