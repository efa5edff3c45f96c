import type { Connector, DestroyReason } from '../../types/connector.js'
import type { AcquireOptions, Clock, HolderLabel, Lease } from '../../types/pool.js'
import { Books } from './books.js'
import { Checks } from './checks.js'
import { Cleaning } from './cleaning.js'
import { Closing } from './closing.js'
import {
  CLOSING, EXACT, Entries, GONE, IDLE, LATE, LENT, MEASURED, PREPARING, RESETTING, SEEN, VALIDATING, type Entry,
  type Watch,
} from './entry.js'
import { badOption } from './errors.js'
import { Events, asPromise, label } from './events.js'
import * as faults from './faults.js'
import { Hooks } from './hooks.js'
import { LeaseHost, type Failed } from './host.js'
import { PoolLease } from './lease.js'
import { Waiters, type Waiter } from './line.js'
import { Operations, TICK } from './operations.js'
import type { Owner, Parts } from './parts.js'
import { refer } from './refer.js'
import { Report } from './report.js'
import { secretsIn } from './secrets.js'
import { limitOf, type Settings } from './settings.js'
import { Supply } from './supply.js'
import { Time, deadlineExpected, isDeadline } from './time.js'
import { LeaseTransactions } from './transaction.js'
import { FORGET, Upkeep } from './upkeep.js'
import { Waiting } from './waiting.js'

// One pool's machine. The states of a connection, and what moves it:
//
//              made                 offer                take, serve              release
//  CREATING ---------> VALIDATING ----------> IDLE --------------------> LENT -------------> RESETTING
//    |   |                 ^                 |    |                        ^                      |
//    |   |                 '-----------------'    '------> PREPARING ------'                      |
//    |   |                  must answer first               onAcquire                             |
//    |   | deadline                                                         offer: IDLE or LENT <-'
//    |   v
//    |  LATE <-- deadline -- CLOSING <-- from VALIDATING, IDLE, PREPARING, LENT and RESETTING:
//    |   |                      |        dead, unfit, destroyed, revoked, past its deadline
//    '---+-------> GONE <-------'        (a create that fails is GONE at once)
//
// The engine decides who gets a connection, and whether it may be lent again. Each other room has a task of its own;
// what it asks of the engine, the interface `Site` at the top of its file says.

// The gate has a bit for each reason why an idle connection can't be lent the short way.
/** The line is not empty. */
const WAITED = 1
const SUSPENDED = 2
const CLOSED = 4
/** `onAcquire` runs before a loan. */
const PREPARED = 8
/** There are no periodic ticks, so the coarse clock stands still. */
const ASLEEP = 16
/** Somebody listens to `acquire` or `release`, or measures leases. An idle connection is lent the short way, too. */
const HEARD = 32
/** The next leases are timed exactly. */
const SAMPLED = 64
/** The connector can tell of obstacles. */
const HINDERED = 128
/** Leaks are looked for. */
const WATCHED = 256
/** The pool drains, or closes: nothing is kept. */
const DRAINING = 512
/** The pool is closed: callers that wait are not served any more. */
const ENDED = 1024
/** Some connections must answer before they are lent, since another one was silent. */
const SUSPICIOUS = 2048

/** How many leases of a tick are timed exactly. */
const SAMPLES = 64

/** One pool's machine. Its faces are `Pool` and `TargetPool`. */
export class Engine<C> implements Parts<C> {
  // `declare`: see `Room`.
  /** `renameEngine` changes it. */
  declare name: string
  declare readonly options: Settings<C>
  declare readonly backend: Connector<C>
  declare readonly owner: Owner | undefined
  declare readonly entries: Entries<C>
  readonly line = new Waiters<C>()
  declare readonly events: Events
  declare readonly time: Time
  declare readonly work: Operations<C>
  declare readonly books: Books
  declare readonly hooks: Hooks<C>
  declare readonly checks: Checks<C>
  declare readonly cleaning: Cleaning<C>
  declare readonly supply: Supply<C>
  declare readonly waiting: Waiting<C>
  declare readonly upkeep: Upkeep<C>
  declare readonly closing: Closing<C>
  declare readonly report: Report<C>
  /** The bits that are set now. None, but for `HEARD`: an idle connection is lent the short way. */
  #gate = ASLEEP
  readonly #idle: Array<Entry<C>>
  /** After a lease without transactions, a connection only has to be alive to be lent again. */
  readonly #returnsAsItIs: boolean
  readonly #validateAfter: number
  readonly #maxUses: number
  /** How many of the next leases are timed exactly. */
  #samples = SAMPLES
  /** There may be more connections than `max`. */
  #shrunk = false

  /** @param owner where several engines are behind one name */
  constructor (backend: Connector<C>, options: Settings<C>, clock: Clock, owner?: Owner) {
    this.name = options.name
    this.options = options
    this.backend = backend
    this.owner = owner
    const max = Math.min(options.max, limitOf(backend))
    this.entries = new Entries(Math.min(options.min, max), max)
    this.#idle = this.entries.idle
    this.events = new Events(this.name, owner?.target, secretsIn(options, backend),
      () => { this.#setGate(HEARD, this.events.hearsLeases) })
    this.time = new Time(clock, (fn) => this.events.run(fn), () => { this.upkeep.tick() },
      () => this.waiting.isAwaited || this.supply.isAwaited, (ms) => { this.upkeep.stood(ms) })
    this.books = new Books(this.time.now)
    this.work = new Operations(this.time, this.events)
    this.hooks = new Hooks(options, this.events)
    this.checks = new Checks(this)
    this.cleaning = new Cleaning(this)
    this.supply = new Supply(this)
    this.waiting = new Waiting(this)
    this.upkeep = new Upkeep(this)
    this.closing = new Closing(this)
    this.report = new Report(this)
    this.#returnsAsItIs = this.cleaning.isNeedless
    this.#validateAfter = backend.validate === undefined ? Infinity : options.validateAfter
    this.#maxUses = options.maxUses === 0 ? Infinity : options.maxUses
    this.#setGate(SAMPLED, true)
    this.#setGate(PREPARED, options.onAcquire !== undefined)
    this.#setGate(HINDERED, this.checks.meets)
    this.#setGate(WATCHED, this.upkeep.leaks.areSought)
    this.events.follow(backend)
  }

  #setGate (reason: number, is: boolean): void {
    if (is) this.#gate |= reason
    else this.#gate &= ~reason
  }

  // --- Taking --------------------------------------------------------------------------------------------------------

  /** @param since when the caller began to wait, where that was at another engine */
  acquire (options?: AcquireOptions, since?: number): Promise<Lease<C>> {
    if (options?.timeout !== undefined && !isDeadline(options.timeout)) {
      return Promise.reject(badOption('timeout', options.timeout, deadlineExpected))
    }
    if (options?.signal?.aborted !== true) {
      try {
        const lease = this.take(options?.holder)
        if (lease !== null) return Promise.resolve(lease)
      } catch (error) {
        return Promise.reject(error)
      }
    }
    return this.waiting.join(options, since)
  }

  /** Lends an idle connection, or returns null. The fast path: no timer; no clock is read, unless somebody hears. */
  take (holder: HolderLabel | undefined): Lease<C> | null {
    if ((this.#gate & ~HEARD) !== 0) return this.#takeTheLongWay(holder)
    const entry = this.#idle[this.#idle.length - 1]
    if (entry === undefined) return null
    if (this.time.now >= entry.goodUntil || this.checks.isDead(entry)) return this.#takeTheLongWay(holder)
    this.#idle.pop()
    return this.lend(entry, holder, 0)
  }

  #lend (entry: Entry<C>, holder: HolderLabel | undefined): Lease<C> {
    entry.state = LENT
    entry.turn++
    entry.holder = holder
    entry.timed = 0
    entry.takenAt = this.time.now
    this.books.acquired++
    return new PoolLease<C>(this, entry)
  }

  /** As `take`, where a look at the connection, a hook or a listener comes before the loan. */
  #takeTheLongWay (holder: HolderLabel | undefined): Lease<C> | null {
    while (true) {
      // Callers that wait come first, also where a connection has just become idle. Asked in each round, since
      // listeners may have changed it.
      if ((this.#gate & (WAITED | SUSPENDED | CLOSED)) !== 0 || this.#idle.length === 0 || this.hooks.waits) return null
      const entry = this.#idle.at(-1)!
      this.wake()
      // Where the event loop stood still, the coarse clock is behind, perhaps by more than a connection lives.
      this.time.read(true)
      if (this.#isStale(entry)) return null
      this.entries.move(entry, VALIDATING)
      const reason = this.#unfit(entry)
      if (reason !== undefined) this.destroy(entry, reason, entry.broken)
      else if (this.#isHindered(entry)) {
        this.entries.rest(entry, entry.idleSince)
        return null
      } else {
        const lease = this.options.onAcquire === undefined ? this.lend(entry, holder, 0) : this.#prepare(entry, holder)
        if (lease !== undefined) return lease
      }
    }
  }

  /** undefined: the hook refused the connection. */
  #prepare (entry: Entry<C>, holder: HolderLabel | undefined): Lease<C> | null | undefined {
    const failed = (error: unknown) => this.events.report(error, 'onAcquire')
    let preparation: Promise<unknown> | false | undefined
    this.entries.move(entry, PREPARING)
    try {
      preparation = this.hooks.prepare(entry, { holder })
    } catch (error) {
      this.destroy(entry, 'error', failed(error))
      throw error
    }
    if (preparation === undefined) return this.lend(entry, holder, 0)
    if (preparation === false) {
      this.destroy(entry, 'invalid')
      return undefined
    }
    // The hook returned its first promise. This caller can't wait for it here: the connection is cleaned, and the
    // caller gets null.
    this.cleaning.wait(entry, preparation.then((answer) => {
      if (answer !== false) return this.cleaning.reset(entry)
      if (entry.state === RESETTING) this.destroy(entry, 'invalid')
      return undefined
    }, failed))
    return null
  }

  /** As `#lend`, with what the gate asks for. @param wait how long the borrower has waited, in ms */
  lend (entry: Entry<C>, holder: HolderLabel | undefined, wait: number, waiter?: Waiter<C>): Lease<C> {
    const lease = this.#lend(entry, holder)
    if ((this.#gate & (SAMPLED | HEARD | WATCHED)) !== 0) this.#tellLoan(lease, entry, wait, waiter)
    return lease
  }

  #tellLoan (lease: Lease<C>, entry: Entry<C>, wait: number, waiter: Waiter<C> | undefined): void {
    const { events } = this
    entry.timed = this.#samples > 0 || events.heard.release ? EXACT : events.isMeasured ? MEASURED : 0
    if (entry.timed !== 0) entry.takenAt = this.time.read(true)
    if (--this.#samples <= 0) this.#setGate(SAMPLED, false)
    this.upkeep.leaks.begin(lease, entry, waiter)
    events.lent(wait, entry.holder, entry.takenAt)
    if (events.heard.acquire) events.emit('acquire', { id: entry.id, wait, ...label(entry.holder) })
  }

  // --- Giving back ---------------------------------------------------------------------------------------------------

  /** Returns how long the lease was held, in ms. */
  giveBack (entry: Entry<C>): number {
    const { holder, extras } = entry
    const held = this.#endLease(entry)
    if (this.checks.isDead(entry)) this.destroy(entry, 'error', entry.broken)
    else if (this.#returnsAsItIs && extras?.transactions === undefined) this.offer(entry, true)
    else this.cleaning.begin(entry, holder, extras?.transactions)
    return held
  }

  /** The borrower ends the lease, and its connection with it. */
  throwAway (entry: Entry<C>, reason: DestroyReason, error?: Error): void {
    this.#endLease(entry)
    this.destroy(entry, reason, error && this.events.scrub(error))
  }

  /** The pool itself ends a lease. @param failed the failure to report */
  revoke (entry: Entry<C>, reason: DestroyReason, failed?: Failed): void {
    const held = this.time.read() - entry.takenAt
    // Before the report, since a listener may end the lease, too.
    this.#endLease(entry, reason)
    entry.more.held = held
    entry.more.revoked = reason
    this.destroy(entry, reason, failed && this.events.report(failed.error, failed.phase))
  }

  /** @param taken why the pool itself ends it */
  #endLease (entry: Entry<C>, taken?: DestroyReason): number {
    const { holder, extras } = entry
    entry.state = RESETTING
    entry.turn++
    entry.holder = entry.borrower = undefined
    entry.extras = undefined
    this.books.released++
    extras?.onEnd?.()
    extras?.transactions?.leaseEnds()
    // While there are no periodic ticks the coarse clock stands still.
    const exactly = entry.timed !== 0 || (this.#gate & (ASLEEP | HEARD)) !== 0 || extras?.watch?.reported === true
    return exactly ? this.#tellReturn(entry, holder, extras?.watch, taken) : Math.max(0, this.time.now - entry.takenAt)
  }

  #tellReturn (entry: Entry<C>, holder: HolderLabel | undefined, watch?: Watch, taken?: DestroyReason): number {
    const { events } = this
    const { id, takenAt, timed } = entry
    const held = Math.max(0, this.time.read(true) - takenAt)
    if ((timed & EXACT) !== 0) this.supply.holds.record(held, this.time.now)
    if ((timed & (EXACT | SEEN)) !== 0) this.books.ended(held, (timed & SEEN) !== 0, holder)
    events.ended(held, holder, this.time.now)
    if (events.heard.release) events.emit('release', { id, held, ...label(holder) })
    if (watch?.reported === true) this.upkeep.leaks.ended(watch, { id, held, ...label(holder) }, taken)
    return held
  }

  heldSince (entry: Entry<C>): number {
    const exactly = entry.timed !== 0 || (this.#gate & ASLEEP) !== 0
    return Math.max(0, (exactly ? this.time.read(true) : this.time.now) - entry.takenAt)
  }

  transactionsOf (entry: Entry<C>): LeaseTransactions<C> {
    return (entry.more.transactions ??= new LeaseTransactions(new LeaseHost<C>(this, entry)))
  }

  // --- Offering ------------------------------------------------------------------------------------------------------

  /**
   * A connection is ready: the first in line gets it, else it becomes idle.
   *
   * @param alive it was just seen alive
   * @param since when it was used last, where it was only checked since: then its idle time goes on
   */
  offer (entry: Entry<C>, alive = false, since?: number): void {
    // The coarse clock may be behind by more than a connection lives. The loan to somebody who waits reads the clock
    // anyway.
    if (this.line.size > 0) this.time.read()
    const reason = this.#unfit(entry, alive)
    if (reason !== undefined) return this.destroy(entry, reason, entry.broken)
    if ((this.#gate !== 0 || this.owner !== undefined) && this.#isTaken(entry)) return
    entry.freshAt = Math.floor(this.time.now)
    const staleAt = entry.freshAt + this.#validateAfter
    // No `Math.min`: this keeps small integers, which V8 stores without an allocation.
    entry.goodUntil = entry.expiresAt !== 0 && entry.expiresAt < staleAt ? entry.expiresAt : staleAt
    this.entries.rest(entry, entry.freshAt, since)
    if (this.supply.isAwaited) this.supply.settleOpeners()
  }

  /** Whether a connection that is ready was lent or destroyed; else it becomes idle. */
  #isTaken (entry: Entry<C>): boolean {
    const isCalled = this.line.size > 0 && !this.isHalted
    const isKept = isCalled || (this.#gate & DRAINING) === 0
    if (!isKept || this.owner?.mustYield() === true) {
      this.destroy(entry, isKept ? 'idle' : 'closed')
      return true
    }
    this.wake()
    if ((this.#gate & SUSPICIOUS) !== 0 && this.checks.isSuspect(entry)) {
      entry.idleSince = Math.floor(this.time.now)
      this.checks.ask(entry)
      return true
    }
    if (!isCalled || this.#isHindered(entry)) return false
    entry.freshAt = Math.floor(this.time.now)
    this.waiting.serve(entry)
    return true
  }

  /** Whether a connection must answer before it is lent: it was idle for long, or others were silent. */
  #isStale (entry: Entry<C>): boolean {
    return this.time.now - entry.freshAt >= this.#validateAfter || this.checks.isSuspect(entry)
  }

  /** Why a connection may not be lent; undefined: it may. @param alive it was just seen alive */
  #unfit (entry: Entry<C>, alive = false): DestroyReason | undefined {
    if (entry.doomed !== undefined) return entry.doomed
    if (entry.uses >= this.#maxUses) return 'uses'
    if (entry.expiresAt !== 0 && entry.expiresAt <= this.time.now) return 'lifetime'
    if (this.#shrunk) {
      // Creates and closes count against `max` too, but only connections that are here can be given up.
      this.#shrunk = this.entries.here > this.entries.max
      if (this.#shrunk) return 'idle'
    }
    return alive || !this.checks.isDead(entry) ? undefined : 'error'
  }

  #isHindered (entry: Entry<C>): boolean {
    return (this.#gate & HINDERED) !== 0 && this.checks.isHindered(entry)
  }

  /** Called after every change: serves the line with idle connections, and starts the creates that are needed. */
  pump (): void {
    const { entries, line, supply, waiting, work } = this
    if (line.size > 0) waiting.giveUp()
    // The obstacle may be gone, and callers wait for something else: it is set again where it is met again.
    this.checks.obstacle = undefined
    // Asked in each round, since hooks and listeners may have changed it.
    while (this.#idle.length > 0 && line.size > work.awaited && !this.isHalted) {
      if (!this.#bring(this.#idle.at(-1)!)) break
    }
    if (entries.total < entries.max) supply.feed()
    if (work.doubted > 0) this.checks.relieve()
  }

  /** Serves the first in line with an idle connection. False: an obstacle hinders all loans. */
  #bring (entry: Entry<C>): boolean {
    // Where the event loop stood still, the coarse clock is behind, perhaps by more than a connection lives.
    this.time.read(true)
    this.entries.move(entry, VALIDATING)
    const reason = this.#unfit(entry)
    if (reason !== undefined) this.destroy(entry, reason, entry.broken)
    else if (this.owner?.mustYield() === true) this.destroy(entry, 'idle')
    else if (this.#isHindered(entry)) {
      // It was not used, and not seen alive: its times go on.
      this.entries.rest(entry, entry.idleSince)
      return false
    } else if (this.#isStale(entry)) this.checks.validate(entry, true)
    else this.waiting.serve(entry)
    return true
  }

  /** Callers that wait are not served, and nothing is created. */
  get isHalted (): boolean {
    return (this.#gate & (SUSPENDED | ENDED)) !== 0
  }

  // --- Ending connections --------------------------------------------------------------------------------------------

  /**
   * Destroys a connection that is here or was delivered. It counts against `max` until it is gone or late.
   *
   * @param silent the server does not answer: the connection is late at once, and the connector need not wait
   */
  destroy (entry: Entry<C>, reason: DestroyReason, error?: Error, silent = false): void {
    const { books, events, hooks, time, work } = this
    // A borrower may be waiting for its transaction, and the driver may never answer.
    if (entry.operation?.phase !== undefined) work.abort(entry, 'the connection is destroyed')
    this.entries.move(entry, silent ? LATE : CLOSING)
    work.finish(entry)
    const now = time.read()
    work.begin(entry, now + (silent ? FORGET : this.options.destroyTimeout))
    books.destroyed[reason]++
    const { id, uses, createdAt } = entry
    if (events.heard.disconnect) {
      events.emit('disconnect', { id, reason, age: now - createdAt, uses, ...(error && { error }) })
    }
    this.checks.lost(entry, reason)
    this.owner?.lost(reason === 'error' || reason === 'invalid')
    hooks.call('onDisconnect', entry, { reason })
    this.#end(entry, reason, silent)
    this.closing.settle()
    if (silent) this.owner?.freed()
    // The destroy may take long, but a connection less in use may already allow a create.
    this.pump()
  }

  /** Destroys a connection that was delivered after its deadline. No event told of it, so none tells of its end. */
  destroyLate (entry: Entry<C>): void {
    this.books.destroyed.released++
    // A closed pool sets no timers.
    const isClosed = this.closing.end !== undefined
    if (isClosed) this.work.own(entry)
    else this.work.begin(entry, this.time.read() + this.options.destroyTimeout)
    this.#end(entry, 'released', isClosed)
  }

  /** @param atOnce the server is not waited for */
  #end (entry: Entry<C>, reason: DestroyReason, atOnce: boolean): void {
    const failed = (error: unknown) => { this.events.report(error, 'destroy') }
    const { signal } = entry.operation!
    if (atOnce) this.work.abort(entry, 'the server is not waited for')
    let ending: Promise<unknown> | undefined
    try {
      ending = asPromise(this.events.run(() => this.backend.destroy(entry.connection, reason, signal)))
    } catch (error) {
      failed(error)
    }
    if (ending === undefined) this.gone(entry)
    else ending.catch(failed).then(() => { this.gone(entry) })
  }

  gone (entry: Entry<C>): void {
    // It is already where its destroy took so long that it was not waited for any more.
    if (entry.state === GONE) return
    this.entries.move(entry, GONE)
    this.work.finish(entry)
    this.closing.settle()
    this.pump()
    this.owner?.freed()
  }

  /** The driver tells of a connection's death. */
  died (entry: Entry<C>, cause: Error | undefined): void {
    if (entry.broken !== undefined || entry.state >= CLOSING) return
    // Set before the report, so that listeners that acquire do not get this connection.
    entry.broken = new Error('the connection was closed')
    if (cause !== undefined) entry.broken = this.events.report(cause, faults.phaseOfDeath(cause))
    if (entry.state === IDLE) this.destroy(entry, 'error', entry.broken)
  }

  // --- Control -------------------------------------------------------------------------------------------------------

  get isSuspended (): boolean {
    return (this.#gate & SUSPENDED) !== 0
  }

  /** `Closing` has moved on. */
  phaseChanged (): void {
    const { phase, isClosed } = this.closing
    this.#setGate(DRAINING, phase !== 'open')
    this.#setGate(ENDED, phase === 'closed')
    this.#setGate(CLOSED, isClosed)
  }

  /** The line has become empty, or is not empty any more; or there are suspects, or none any more. */
  gateChanged (): void {
    this.#setGate(WAITED, this.line.size > 0)
    this.#setGate(SUSPICIOUS, this.checks.isSuspicious)
  }

  /** Starts the periodic ticks, which move the coarse clock. */
  wake (): void {
    if ((this.#gate & ASLEEP) === 0) return
    this.#setGate(ASLEEP, false)
    refer(this, true)
    this.sample()
    this.time.arm(this.time.read() + TICK)
  }

  /** The periodic ticks have stopped. */
  fallAsleep (): void {
    this.#setGate(ASLEEP, true)
    refer(this, false)
  }

  /** The next leases are timed exactly. */
  sample (): void {
    this.#samples = SAMPLES
    this.#setGate(SAMPLED, true)
  }

  async open (): Promise<void> {
    if (this.closing.phase !== 'open' || this.closing.isClosed) throw this.waiting.closedError
    await this.supply.open()
  }

  evict ({ idle = false, used = false }: { idle?: boolean, used?: boolean } = {}): void {
    const isMeant = ({ state }: Entry<C>) => used || !idle || state === IDLE
    const evicted = [...this.entries].filter(isMeant)
    for (const entry of evicted) {
      entry.doomed = 'stale'
      entry.goodUntil = 0
    }
    if (used || !idle) this.supply.creator.forgive()
    // All were marked first, so that listeners that acquire get none of them.
    if (used || !idle) this.supply.cancel(0, 'stale', this.supply.creator.circuit.state !== 'closed')
    for (const entry of evicted) if (entry.state === IDLE) this.destroy(entry, 'stale')
    if (used) this.closing.interrupt(evicted)
    this.pump()
  }

  /** @throws `FST_POOL_BAD_OPTIONS` */
  resize ({ min = this.entries.min, max = this.entries.max }: { min?: number, max?: number }): void {
    const { entries, supply } = this
    const limit = limitOf(this.backend)
    if (!Number.isSafeInteger(max) || max < 1 || max > limit) {
      throw badOption('max', max, `an integer from 1 to ${limit}`)
    }
    if (!Number.isSafeInteger(min) || min < 0 || min > max) {
      throw badOption('min', min, `an integer from 0 to max (${max})`)
    }
    entries.min = min
    entries.max = max
    this.#shrunk = true
    // Creates are given up first: connections that are here are worth more.
    supply.cancel(Math.max(0, max - entries.here), 'idle')
    while (entries.here > max && this.shed()) { /* One at a time. */ }
    // With another `min`, other connections may idle out: a tick must look at them.
    if (!this.closing.isClosed) this.wake()
    supply.settleOpeners()
    this.pump()
  }

  /** Closes the connection that has been idle longest, with reason 'idle'. False: none is idle. */
  shed (): boolean {
    const entry = this.#idle[0]
    if (entry !== undefined) this.destroy(entry, 'idle')
    return entry !== undefined
  }

  suspend (): void {
    this.#setGate(SUSPENDED, true)
    this.closing.suspended()
  }

  resume (): void {
    this.#setGate(SUSPENDED, false)
    // The time for which the line stood still says nothing about its pace.
    this.waiting.pace.begin(this.time.read())
    this.pump()
  }
}
