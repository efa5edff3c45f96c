import type { DestroyReason } from '../../types/connector.js'
import type { AcquireOptions, AcquireSignal, HolderLabel, Lease } from '../../types/pool.js'
import type { Checks } from './checks.js'
import type { Cleaning } from './cleaning.js'
import { LENT, PREPARING, type Entry } from './entry.js'
import type { PoolError } from './errors.js'
import { label } from './events.js'
import * as faults from './faults.js'
import type { Hooks } from './hooks.js'
import { Lendable } from './lendable.js'
import { Guest, Moment, Waiter, kPlace, type Placed } from './line.js'
import { Pace } from './pace.js'
import type { Parts, Phase } from './parts.js'
import type { Report } from './report.js'
import { Room } from './room.js'
import type { Supply } from './supply.js'

/** What the waiting room asks of the engine. */
export interface Site<C> extends Parts<C> {
  readonly hooks: Hooks<C>
  readonly checks: Checks<C>
  readonly supply: Supply<C>
  readonly cleaning: Cleaning<C>
  readonly closing: {
    readonly phase: Phase
    /** New callers are refused. */
    readonly isClosed: boolean
    closeIdle (): void
    settle (): void
  }
  readonly isSuspended: boolean
  /** Callers that wait are not served. */
  readonly isHalted: boolean
  readonly report: Report<C>
  readonly upkeep: { readonly leaks: { joined (waiter: Waiter<C>): void } }
  /** The line has become empty, or is not empty any more. */
  gateChanged (): void
  /** Starts the periodic ticks. */
  wake (): void
  pump (): void
  lend (entry: Entry<C>, holder: HolderLabel | undefined, wait: number, waiter: Waiter<C>): Lease<C>
  destroy (entry: Entry<C>, reason: DestroyReason, error?: Error): void
}

/**
 * An acquire is refused when its predicted wait is more than this part of its deadline: to be refused at once is better
 * than to wait in vain.
 */
const MARGIN = 0.8

// A promise calls its executor at once: this keeps what it is given, without a closure for each promise.
let kept: (lease: never) => void
const keep = (resolve: typeof kept) => { kept = resolve }

/** The callers that wait for a connection: who may wait, who is served, who is sent away. */
export class Waiting<C> extends Room<C, Site<C>> {
  readonly pace = new Pace()
  readonly #lendable = new Lendable()
  /** How many callers wait for `onAcquire` to prepare their connection. */
  #preparing = 0
  /** In which order connections were first prepared for waiters: several may be put back into the line. */
  readonly #prepareds = new WeakMap<Waiter<C>, number>()
  #lastPrepared = 0
  /** When the last caller came. */
  #moment = new Moment(-1)
  /** The event `overflow` was emitted for this line. */
  #overflowing = false
  /** The same in the errors of all callers whose deadline passes in one tick. */
  #crowd: faults.Detail | undefined

  get isAwaited (): boolean {
    return this.line.size + this.#preparing > 0
  }

  // --- Coming --------------------------------------------------------------------------------------------------------

  /**
   * Stands a caller in the line, where it may wait.
   *
   * @param came when the caller began to wait, where that was at another engine
   */
  join (options: AcquireOptions | undefined, came: number | undefined): Promise<Lease<C>> {
    // No default `{}`: every caller that waits would allocate one.
    const signal = options?.signal
    const holder = options?.holder
    const timeout = options?.timeout ?? this.options.acquireTimeout
    // First, since listeners of that lease's end may do anything: abort the signal, close the pool.
    if (signal?.aborted !== true) this.recall()
    const moment = this.#now()
    if (signal?.aborted === true) {
      this.books.aborted++
      return Promise.reject(faults.aborted(this.name, signal))
    }
    this.site.supply.start()
    const place = (options as Placed | undefined)?.[kPlace]
    const refusal = this.#refusal(timeout, holder, place !== undefined)
    if (refusal !== undefined) return Promise.reject(this.#refuse(refusal, holder, 0))

    const leased = new Promise<Lease<C>>(keep)
    const waiter = came === undefined && signal === undefined && place === undefined
      ? new Waiter<C>(holder, moment, timeout, kept as Waiter<C>['resolve'])
      : this.#guest(options!, came, moment, timeout)
    if (this.options.leakAfter !== 0) this.site.upkeep.leaks.joined(waiter)
    if (this.line.size === 0) {
      this.pace.begin(moment.at)
      this.site.checks.begin()
    }
    if (place === undefined) this.line.add(waiter)
    else this.line.insert(waiter)
    this.#entered(waiter)
    // Where all connections are used, none is in doubt and there is no room for more, the pump could do nothing.
    const { idle, max, total } = this.entries
    if (idle.length > 0 || total < max || this.work.doubted > 0) this.site.pump()
    if (waiter.inLine) this.#tell(holder)
    return leased
  }

  #guest (options: AcquireOptions & Placed, came: number | undefined, moment: Moment, timeout: number): Guest<C> {
    const { holder, signal, [kPlace]: place } = options
    const began = came === undefined ? moment : new Moment(came)
    const left = came === undefined ? timeout : moment.at - came + timeout
    const guest = new Guest<C>(place, holder, began, left, kept as Waiter<C>['resolve'])
    if (signal !== undefined) guest.leaveOn(signal, this.#aborted)
    return guest
  }

  /**
   * When a caller comes. The clock is read exactly for the first one of a turn of the event loop: right behind a stall
   * the others' deadline would else be in the past.
   */
  #now (): Moment {
    if (this.time.read() !== this.#moment.at) this.#moment = new Moment(this.time.read(true))
    return this.#moment
  }

  readonly #aborted = (guest: Guest<C>, signal: AcquireSignal): void => {
    this.leave(guest)
    this.books.aborted++
    this.#failed(guest)
    guest.reject(faults.withoutStack(() => faults.aborted(this.name, signal)))
  }

  #tell (holder: HolderLabel | undefined): void {
    if (this.events.heard.wait) this.events.emit('wait', { pending: this.line.size, ...label(holder) })
    if (!this.#overflowing && this.#isOverflow) {
      this.#overflowing = true
      this.#saturate()
      if (this.events.heard.overflow) this.events.emit('overflow', { pending: this.line.size })
    }
  }

  /** Since when each caller has waited, in the line or for a connection that is being prepared. */
  get since (): number[] {
    const all = [...this.line].map(({ since }) => since)
    if (this.#preparing === 0) return all
    const prepared = [...this.entries].map(({ operation }) => operation?.prepared)
    return [...all, ...prepared.filter((waiter) => waiter?.waiting === true).map((waiter) => waiter!.since)]
  }

  /** @param recall see `lendable` */
  lend (recall: () => boolean): () => void {
    const undo = this.#lendable.add(recall)
    if (this.line.size > 0) this.recall()
    return undo
  }

  /** Somebody waits: recalls a lease, where no connection is idle. False: none was. */
  recall (): boolean {
    if (this.#lendable.size === 0 || this.entries.idle.length > 0 || this.site.isHalted) return false
    return this.#lendable.recall()
  }

  /** Why an acquire may not wait; undefined: it may. @param returned the caller has waited before */
  #refusal (timeout: number, holder: HolderLabel | undefined, returned: boolean): PoolError | undefined {
    const { report, supply } = this.site
    if (this.site.closing.isClosed) return this.closedError
    if (!returned && this.#isFull) {
      return faults.queueFull(report.situation, { retryAfter: this.#wait / 1000, holding: report.holding })
    }
    if (supply.isHopeless) return supply.hopelessError
    if (this.options.overload && !returned && this.#isPaced && this.#nextTurn > MARGIN * timeout) {
      return faults.overloaded(report.situation, this.#nextTurn, timeout, report.holding)
    }
    if (holder === undefined || !this.#isDeadlock(holder)) return undefined
    return faults.deadlocked(report.situation, report.holding)
  }

  /**
   * `maxPending` callers wait for capacity. Callers that an idle connection, or one that is or can be created, will
   * serve do not wait for capacity, and are not counted.
   */
  get #isFull (): boolean {
    const { maxPending } = this.options
    if (this.line.size < maxPending) return false
    const { idle, coming, max, total } = this.entries
    return this.line.size >= maxPending + idle.length + coming + this.work.awaited + Math.max(0, max - total)
  }

  /** Tells the books whether all connections are used while somebody waits. */
  #saturate (): void {
    const { here, idle, max } = this.entries
    const hasRoom = here < max && this.owner?.hasRoom() !== false
    this.books.saturate(this.line.size > 0 && here > 0 && idle.length === 0 && !hasRoom, this.time.now)
  }

  get #isOverflow (): boolean {
    const { idle, coming, max, total } = this.entries
    return total >= max && idle.length === 0 && this.line.size > coming + this.work.awaited
  }

  /** Whether all who hold connections wait for another one, this caller included. */
  #isDeadlock (holder: HolderLabel): boolean {
    if (typeof holder === 'string' || this.entries.idle.length > 0 || this.entries.here < this.entries.max) return false
    // The quick way out: most callers that wait hold no connection.
    let holds = false
    for (const { holder: other } of this.entries) holds ||= other === holder
    if (!holds) return false
    const others = new Set<object>()
    for (const entry of this.entries) {
      if (!entry.isHere) continue
      if (entry.state !== LENT || typeof entry.holder !== 'object') return false
      if (entry.holder !== holder) others.add(entry.holder)
    }
    if (others.size > this.line.size) return false
    // Holders are compared by identity: a text is only a label, and a client may have chosen the id.
    for (const waiter of this.line) if (typeof waiter.holder === 'object') others.delete(waiter.holder)
    return others.size === 0
  }

  #entered (waiter: Waiter<C>): void {
    this.time.arm(waiter.deadline)
    if (this.line.size > 1) return
    this.site.gateChanged()
    this.site.wake()
    this.time.keepAlive()
  }

  #remove (waiter: Waiter<C>): void {
    this.line.remove(waiter)
    if (this.line.size === 0) this.site.gateChanged()
  }

  // --- Being served --------------------------------------------------------------------------------------------------

  /** Lends a connection that is ready to the first in line; there is one. */
  serve (entry: Entry<C>): void {
    const waiter = this.line.first()!
    // Removed first, so that what hooks and listeners do can't serve it a second time.
    this.#remove(waiter)
    if (this.options.onAcquire === undefined) this.#handOver(entry, waiter)
    else this.#prepare(entry, waiter)
  }

  #prepare (entry: Entry<C>, waiter: Waiter<C>): void {
    let preparation: Promise<unknown> | false | undefined
    try {
      this.entries.move(entry, PREPARING)
      preparation = this.site.hooks.prepare(entry, { holder: waiter.holder })
    } catch (error) {
      this.#unprepared(entry, waiter, error)
      return
    }
    if (preparation === undefined) return this.#prepared(entry, waiter)
    if (preparation === false) return this.#unfit(entry, waiter)
    // The deadline stays the acquire's. While this connection lives, the caller gets no other one.
    this.work.begin(entry, waiter.deadline).prepared = waiter
    this.#setPreparing(waiter, true)
    preparation.then((answer) => { this.#preparedLate(entry, waiter, answer) }, (error: unknown) => {
      this.#unprepared(entry, waiter, error)
    })
  }

  #preparedLate (entry: Entry<C>, waiter: Waiter<C>, answer: unknown): void {
    if (entry.state !== PREPARING) return
    this.work.finish(entry)
    // During a long `onAcquire` the periodic ticks may have stopped.
    this.site.wake()
    const { checks, cleaning } = this.site
    if (answer === false) return this.#unfit(entry, waiter)
    const isDead = checks.isDead(entry)
    if (!waiter.waiting || (!isDead && !checks.isSuspect(entry))) return this.#prepared(entry, waiter)
    this.putBack(waiter)
    if (isDead) this.site.destroy(entry, 'error', entry.broken)
    else cleaning.again(entry)
  }

  /** `onAcquire` refused the connection: its caller gets another one. */
  #unfit (entry: Entry<C>, waiter: Waiter<C>): void {
    this.putBack(waiter)
    // A connection that nobody has used yet: the next one may be refused, too, so it does not come at once.
    if (entry.uses === 0) this.site.supply.creator.refusals.failed(this.time.read())
    this.site.destroy(entry, 'invalid')
  }

  /** A caller whose connection is prepared gets another one, before all others. */
  putBack (waiter: Waiter<C>): void {
    if (!waiter.waiting) return
    this.#setPreparing(waiter, false)
    const order = this.#prepareds.get(waiter) ?? 0
    this.line.putBack(waiter, (other) => (this.#prepareds.get(other) ?? Infinity) < order)
    this.#entered(waiter)
  }

  #prepared (entry: Entry<C>, waiter: Waiter<C>): void {
    if (waiter.waiting) this.#handOver(entry, waiter)
    // A connection that was prepared for a caller that has left is cleaned before another one gets it.
    else this.site.cleaning.again(entry)
  }

  /** `onAcquire` failed. */
  #unprepared (entry: Entry<C>, waiter: Waiter<C>, error: unknown): void {
    const reported = this.events.report(error, 'onAcquire')
    // In another state, the caller does not wait for this connection any more.
    if (entry.state !== PREPARING) return
    this.site.destroy(entry, 'error', reported)
    if (!this.leave(waiter)) return
    this.#failed(waiter)
    waiter.reject(error as Error)
  }

  #handOver (entry: Entry<C>, waiter: Waiter<C>): void {
    const now = this.time.read()
    const wait = now - waiter.since
    this.books.waits.record(wait)
    this.pace.turn(now, this.entries.max)
    this.site.supply.creator.refusals.succeeded()
    this.#setPreparing(waiter, false)
    waiter.end()
    this.#left()
    waiter.resolve(this.site.lend(entry, waiter.holder, wait, waiter))
  }

  #setPreparing (waiter: Waiter<C>, preparing: boolean): void {
    if (waiter.preparing === preparing) return
    waiter.preparing = preparing
    this.#preparing += preparing ? 1 : -1
    if (preparing && !this.#prepareds.has(waiter)) this.#prepareds.set(waiter, ++this.#lastPrepared)
    this.time.keepAlive()
  }

  /** `onAcquire` is past the deadline of its acquire. */
  overdue (entry: Entry<C>): void {
    const { prepared } = entry.operation!
    this.work.abort(entry, 'past its deadline')
    this.work.finish(entry)
    this.expire(prepared!)
    const error = new Error('onAcquire was not done at the deadline of its acquire')
    this.site.destroy(entry, 'error', this.events.report(error, 'onAcquire'))
  }

  // --- Leaving -------------------------------------------------------------------------------------------------------

  /**
   * Ends a wait, in the line or for a connection that is being prepared. False: it had ended already.
   */
  leave (waiter: Waiter<C>): boolean {
    if (!waiter.waiting) return false
    if (waiter.inLine) this.#remove(waiter)
    else this.#setPreparing(waiter, false)
    waiter.end()
    this.#left()
    return true
  }

  /** One wait has ended. */
  #left (): void {
    if (this.entries.creating > 0) this.site.supply.cancelSpare()
    if (this.line.size > 0) return
    this.#overflowing = false
    this.#saturate()
    // A pool that drains keeps idle connections and creates only for callers that wait.
    if (this.site.closing.phase !== 'open') this.site.closing.closeIdle()
    this.site.closing.settle()
  }

  /** The acquire's deadline has passed. */
  expire (waiter: Waiter<C>): void {
    // Read before it leaves: in a pool that drains, the idle connections go with the last waiter, and the obstacle too.
    const { obstacle } = this.site.checks
    if (!this.leave(waiter)) return
    this.books.timeouts++
    this.#failed(waiter)
    const { holder, since, deadline } = waiter
    const error = faults.withoutStack(() => this.#timeoutError(deadline - since, obstacle))
    if (this.events.heard.timeout) this.events.emit('timeout', { error, wait: this.time.now - since, ...label(holder) })
    waiter.reject(error)
  }

  #timeoutError (timeout: number, obstacle: string | undefined): PoolError {
    const { report, supply } = this.site
    const { lastFailure: cause } = supply.creator
    if (cause !== undefined && this.entries.here === 0) return supply.connectError
    this.#crowd ??= { cause, retryAfter: this.#wait / 1000, holding: report.holding }
    return faults.timedOut(report.situation, timeout, obstacle, this.#crowd)
  }

  /** Rejects those who wait while it is hopeless: a listener that is told of the first ones may end that. */
  giveUp (): void {
    const { supply } = this.site
    while (this.line.size > 0 && supply.isHopeless) {
      this.turnAway(this.line.first()!, faults.withoutStack(() => supply.hopelessError))
    }
  }

  /** Rejects all that wait now, but not those that come back at once. */
  turnAllAway (why: () => PoolError): void {
    for (const waiter of [...this.line]) this.turnAway(waiter, faults.withoutStack(why))
  }

  turnAway (waiter: Waiter<C>, error: PoolError): void {
    if (!this.leave(waiter)) return
    waiter.reject(this.#refuse(error, waiter.holder, this.#failed(waiter)))
  }

  /** All that wait now go on waiting elsewhere. */
  sendAllAway (why: () => PoolError): void {
    for (const waiter of [...this.line]) if (this.leave(waiter)) waiter.reject(faults.withoutStack(why))
  }

  /** A caller has waited in vain. Returns how long, in ms. */
  #failed ({ since }: Waiter<C>): number {
    const wait = Math.max(0, this.time.read() - since)
    this.books.failedWait(wait)
    return wait
  }

  /** A tick is over. Leases that could not be recalled before may be now. */
  endTick (): void {
    this.#crowd = undefined
    this.#saturate()
    for (let { size } = this.line; size > 0 && this.recall(); size--) { /* One for each that waits. */ }
  }

  #refuse (error: PoolError, holder: HolderLabel | undefined, wait: number): PoolError {
    this.books.refuse(error.code)
    if (this.events.heard.refuse) this.events.emit('refuse', { error, wait, ...label(holder) })
    return error
  }

  // --- Telling -------------------------------------------------------------------------------------------------------

  /**
   * Whether the line tells how fast it moves. An empty line does not; a suspended one does not move, and everybody
   * waits.
   */
  get #isPaced (): boolean {
    return this.line.size > 0 && !this.site.isSuspended && this.pace.isKnown
  }

  /** How long a new caller would wait by the pace of the line, in ms. */
  get #nextTurn (): number {
    return (this.line.size + 1) * this.pace.mean
  }

  /** How long a new caller would wait, in ms, by the pace of the line or else by how long leases are held. */
  get #wait (): number {
    if (this.#isPaced) return this.#nextTurn
    const { holds: { count, median } } = this.books
    return count === 0 ? 1000 : (this.line.size + 1) * median / this.entries.max
  }

  get closedError (): PoolError {
    return faults.closed(this.name, this.site.closing.phase, this.options.closeTimeout)
  }
}
