import type { Connector, DestroyReason } from '../../types/connector.js'
import type { AcquireOptions, Clock, HolderLabel, Lease } from '../../types/pool.js'
import { Books } from './books.js'
import { Checks } from './checks.js'
import { Cleaning } from './cleaning.js'
import { Closing } from './closing.js'
import {
  CLOSING, CREATING, Entries, GONE, IDLE, LENT, PREPARING, RESETTING, VALIDATING, type Entry, type Watch,
} from './entry.js'
import { badOption } from './errors.js'
import { Events, asPromise, label } from './events.js'
import { Hooks } from './hooks.js'
import { LeaseHost, type Failed } from './host.js'
import { PoolLease } from './lease.js'
import { Waiters } from './line.js'
import { Operations } from './operations.js'
import type { Owner, Parts } from './parts.js'
import { Report } from './report.js'
import { secretsIn } from './secrets.js'
import { limitOf, type Settings } from './settings.js'
import { Supply } from './supply.js'
import { Time, isDeadline } from './time.js'
import { LeaseTransactions } from './transaction.js'
import { TICK, Upkeep } from './upkeep.js'
import { Waiting } from './waiting.js'

// One pool's machine. The states of a connection, and what moves it:
//
//             create ok                take | serve                   release
//  CREATING ------------> IDLE -----------------------> LENT ----------------------> RESETTING --+
//     | deadline           | ^ ^ alive    onAcquire      ^  | destroy, revoke          | clean   |
//     v                    | | +----- VALIDATING         |  v                          v         |
//    LATE <-- deadline -- CLOSING <----- unfit, dead -- PREPARING            offer: IDLE or LENT <+
//     |                    |
//     +-------> GONE <-----+
//
// The engine knows policy: who gets a connection, and whether it may be lent again. Each other room is asked by it, and
// asks of it what the interface `Site` at its top says. Promises: design.md, section 7.

// The gate: a bit for each reason why an idle connection is not lent the short way.
/** Somebody waits. */
const WAITED = 1
const SUSPENDED = 2
const CLOSED = 4
/** `onAcquire` runs before a loan. */
const PREPARED = 8
/** No tick is due: the coarse clock stands still. */
const ASLEEP = 16
/** Somebody listens to `acquire` or `release`. */
const HEARD = 32
/** The next leases are timed exactly. */
const SAMPLED = 64
/** The connector can tell of obstacles. */
const HINDERED = 128
/** Leaks are looked for. */
const WATCHED = 256
/** The pool drains, or closes: nothing is kept. */
const DRAINING = 512
/** The pool is closed: nobody is served any more. */
const ENDED = 1024

/** How many leases of a tick are timed exactly. */
const SAMPLES = 64

/** One pool's machine. Its faces are `Pool` and `TargetPool`. */
export class Engine<C> implements Parts<C> {
  readonly name: string
  readonly options: Settings<C>
  readonly backend: Connector<C>
  readonly owner: Owner | undefined
  readonly entries: Entries<C>
  readonly line = new Waiters<C>()
  readonly events: Events
  readonly time: Time
  readonly work: Operations<C>
  readonly books = new Books()
  readonly hooks: Hooks<C>
  readonly checks: Checks<C>
  readonly cleaning: Cleaning<C>
  readonly supply: Supply<C>
  readonly waiting: Waiting<C>
  readonly upkeep: Upkeep<C>
  readonly closing: Closing<C>
  readonly report: Report<C>
  /** The reasons of now against the short way to a loan. 0: there is none. */
  #gate = ASLEEP
  readonly #idle: Array<Entry<C>>
  /** A return has nothing to do but look whether the connection is alive. */
  readonly #returnsAsItIs: boolean
  readonly #validateAfter: number
  readonly #maxUses: number
  /** How many of the next leases are timed exactly. */
  #samples = SAMPLES
  /** There may be more connections than `max`. */
  #shrunk = false

  /** @param owner who has several engines behind one name */
  constructor (backend: Connector<C>, options: Settings<C>, clock: Clock, owner?: Owner) {
    this.name = options.name
    this.options = options
    this.backend = backend
    this.owner = owner
    const max = Math.min(options.max, limitOf(backend))
    this.entries = new Entries(Math.min(options.min, max), max)
    this.#idle = this.entries.idle
    this.events = new Events(this.name, owner?.target, secretsIn(options, backend), () => {
      this.#setGate(HEARD, this.events.heard.acquire || this.events.heard.release)
    })
    this.time = new Time(clock, (fn) => this.events.run(fn), () => { this.upkeep.tick() },
      () => this.waiting.isAwaited || this.supply.isAwaited)
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
    this.#setGate(WATCHED, this.upkeep.watches)
    this.events.run(() => backend.onDriverEvent?.((event) => {
      if (this.events.heard.driver) this.events.emit('driver', event)
    }))
  }

  #setGate (reason: number, is: boolean): void {
    if (is) this.#gate |= reason
    else this.#gate &= ~reason
  }

  // --- Taking --------------------------------------------------------------------------------------------------------

  /** @param since when the caller began to wait, where that was elsewhere */
  acquire (options?: AcquireOptions, since?: number): Promise<Lease<C>> {
    if (options?.timeout !== undefined && !isDeadline(options.timeout)) {
      return Promise.reject(badOption('timeout', options.timeout, 'milliseconds, at least 1'))
    }
    if (options?.signal?.aborted !== true) {
      try {
        const lease = this.take(options?.holder)
        if (lease !== null) return Promise.resolve(lease)
      } catch (error) {
        return Promise.reject(error)
      }
    }
    return new Promise((resolve, reject) => { this.waiting.join(options, since, resolve, reject) })
  }

  /** Lends an idle connection, or returns null. The fast path: no promise, no clock, no timer. */
  take (holder: HolderLabel | undefined): Lease<C> | null {
    if (this.#gate !== 0) return this.#takeTheLongWay(holder)
    const entry = this.#idle[this.#idle.length - 1]
    if (entry === undefined) return null
    if (this.time.now >= entry.goodUntil || this.checks.isDead(entry)) return this.#takeTheLongWay(holder)
    this.#idle.pop()
    return this.#lend(entry, holder)
  }

  #lend (entry: Entry<C>, holder: HolderLabel | undefined): Lease<C> {
    entry.state = LENT
    entry.turn++
    entry.holder = holder
    entry.timed = false
    entry.takenAt = this.time.now
    this.books.acquired++
    return new PoolLease<C>(this, entry)
  }

  /** As `take`, where a look at the connection, a hook or a listener comes before the loan. */
  #takeTheLongWay (holder: HolderLabel | undefined): Lease<C> | null {
    while (true) {
      // Those who wait come first, even before a connection that became idle this moment. Asked each time: listeners
      // may change it.
      if ((this.#gate & (WAITED | SUSPENDED | CLOSED)) !== 0 || this.#idle.length === 0 || this.hooks.waits) return null
      const entry = this.#idle.at(-1)!
      this.wake()
      if (this.#isStale(entry)) return null
      this.entries.move(entry, VALIDATING)
      const reason = this.#unfit(entry)
      if (reason !== undefined) this.destroy(entry, reason, entry.broken)
      else if (this.#isHindered(entry)) {
        this.entries.rest(entry, entry.idleSince)
        return null
      } else return this.options.onAcquire === undefined ? this.lend(entry, holder, 0) : this.#prepare(entry, holder)
    }
  }

  #prepare (entry: Entry<C>, holder: HolderLabel | undefined): Lease<C> | null {
    const failed = (error: unknown) => this.events.report(error, 'onAcquire')
    let preparation: Promise<unknown> | undefined
    this.entries.move(entry, PREPARING)
    try {
      preparation = this.hooks.prepare(entry, { holder })
    } catch (error) {
      this.destroy(entry, 'error', failed(error))
      throw error
    }
    if (preparation === undefined) return this.lend(entry, holder, 0)
    // The first promise of this hook. Nobody waits for it: the connection is made clean, and the caller comes again.
    this.cleaning.wait(entry, preparation.then(() => this.cleaning.reset(entry), failed))
    return null
  }

  /** As `#lend`, with all that the gate says. @param wait how long the borrower has waited, in ms */
  lend (entry: Entry<C>, holder: HolderLabel | undefined, wait: number): Lease<C> {
    const lease = this.#lend(entry, holder)
    if ((this.#gate & (SAMPLED | HEARD | WATCHED)) !== 0) this.#tellLoan(lease, entry, wait)
    return lease
  }

  #tellLoan (lease: Lease<C>, entry: Entry<C>, wait: number): void {
    const { events } = this
    entry.timed = this.#samples > 0 || events.heard.release
    if (entry.timed) entry.takenAt = this.time.read(true)
    if (--this.#samples <= 0) this.#setGate(SAMPLED, false)
    this.upkeep.watchOver(lease, entry)
    if (events.heard.acquire) events.emit('acquire', { id: entry.id, wait, ...label(entry.holder) })
  }

  // --- Giving back ---------------------------------------------------------------------------------------------------

  /** Returns how long the lease was held, in ms. */
  giveBack (entry: Entry<C>): number {
    const { holder, transactions } = entry
    const held = this.#endLease(entry)
    if (this.checks.isDead(entry)) this.destroy(entry, 'error', entry.broken)
    else if (this.#returnsAsItIs && transactions === undefined) this.offer(entry, true)
    else this.cleaning.begin(entry, holder, transactions)
    return held
  }

  /** The borrower ends the lease, and its connection with it. */
  throwAway (entry: Entry<C>, reason: DestroyReason, error?: Error): void {
    this.#endLease(entry)
    this.destroy(entry, reason, error && this.events.scrub(error))
  }

  /** The pool itself ends a lease. @param failed what is to be reported */
  revoke (entry: Entry<C>, reason: DestroyReason, failed?: Failed): void {
    entry.revokedAfter = this.time.read() - entry.takenAt
    // Before the report: who listens to it may end the lease, too.
    this.#endLease(entry)
    this.destroy(entry, reason, failed && this.events.report(failed.error, failed.phase))
  }

  #endLease (entry: Entry<C>): number {
    const { holder, watch, onEnd } = entry
    entry.state = RESETTING
    entry.turn++
    entry.holder = undefined
    entry.watch = undefined
    entry.transactions = undefined
    this.books.released++
    if (onEnd !== undefined) {
      entry.onEnd = undefined
      onEnd()
    }
    // While no tick is due the coarse clock stands still.
    const exactly = entry.timed || (this.#gate & (ASLEEP | HEARD)) !== 0 || watch?.reported === true
    return exactly ? this.#tellReturn(entry, holder, watch) : Math.max(0, this.time.now - entry.takenAt)
  }

  #tellReturn (entry: Entry<C>, holder: HolderLabel | undefined, watch: Watch | undefined): number {
    const { events } = this
    const { id, takenAt, timed } = entry
    const held = Math.max(0, this.time.read(true) - takenAt)
    if (timed) this.books.holds.record(held)
    if (events.heard.release) events.emit('release', { id, held, ...label(holder) })
    if (watch?.reported === true && events.heard.unleak) {
      events.emit('unleak', { id, held, ...label(holder), ...watch.told })
    }
    return held
  }

  heldSince (entry: Entry<C>): number {
    const exactly = entry.timed || (this.#gate & ASLEEP) !== 0
    return Math.max(0, (exactly ? this.time.read(true) : this.time.now) - entry.takenAt)
  }

  transactionsOf (entry: Entry<C>): LeaseTransactions<C> {
    return (entry.transactions ??= new LeaseTransactions(new LeaseHost<C>(this, entry)))
  }

  // --- Offering ------------------------------------------------------------------------------------------------------

  /**
   * A connection is ready: for the first in line, else it is idle.
   *
   * @param alive it was seen alive this moment
   * @param since when it was used last, where nobody has used it meanwhile: then its idle time goes on
   */
  offer (entry: Entry<C>, alive = false, since?: number): void {
    const reason = this.#unfit(entry, alive)
    if (reason !== undefined) return this.destroy(entry, reason, entry.broken)
    if ((this.#gate !== 0 || this.owner !== undefined) && this.#isTaken(entry)) return
    entry.freshAt = Math.floor(this.time.now)
    entry.goodUntil = Math.min(entry.freshAt + this.#validateAfter, entry.expiresAt || Infinity)
    this.entries.rest(entry, entry.freshAt, since)
    if (this.supply.isAwaited) this.supply.settleOpeners()
  }

  /** Whether a connection that is ready does not become idle. */
  #isTaken (entry: Entry<C>): boolean {
    const isCalled = this.line.size > 0 && !this.isHalted
    const isKept = isCalled || (this.#gate & DRAINING) === 0
    if (!isKept || this.owner?.mustYield() === true) {
      this.destroy(entry, isKept ? 'idle' : 'closed')
      return true
    }
    this.wake()
    if (!isCalled || this.#isHindered(entry)) return false
    entry.freshAt = Math.floor(this.time.now)
    this.waiting.serve(entry)
    return true
  }

  /** Idle for so long that it must answer before it is lent. */
  #isStale (entry: Entry<C>): boolean {
    return this.time.now - entry.freshAt >= this.#validateAfter
  }

  /** Why a connection may not be lent, if so. @param alive it was seen alive this moment */
  #unfit (entry: Entry<C>, alive = false): DestroyReason | undefined {
    if (entry.doomed !== undefined) return entry.doomed
    if (entry.uses >= this.#maxUses) return 'uses'
    if (entry.expiresAt !== 0 && entry.expiresAt <= this.time.now) return 'lifetime'
    if (this.#shrunk) {
      // Creates and closes count against `max` too, but only connections that are here can be too many.
      this.#shrunk = this.entries.here > this.entries.max
      if (this.#shrunk) return 'idle'
    }
    return alive || !this.checks.isDead(entry) ? undefined : 'error'
  }

  #isHindered (entry: Entry<C>): boolean {
    return (this.#gate & HINDERED) !== 0 && this.checks.isHindered(entry)
  }

  /** The heart: after every change, brings connections to those who wait, and starts the creates that are needed. */
  pump (): void {
    const { entries, line, supply, waiting, work } = this
    if (line.size > 0 && supply.isHopeless) waiting.turnAllAway(() => supply.circuitError)
    // Unless it is met again: who waits may do so for something else by now.
    this.checks.obstacle = undefined
    // Asked each time: hooks and listeners may change it.
    while (this.#idle.length > 0 && line.size > work.awaited && !this.isHalted) {
      if (!this.#bring(this.#idle.at(-1)!)) break
    }
    if (entries.total < entries.max) supply.feed()
  }

  /** Brings an idle connection to the first in line. False: something is in the way of all. */
  #bring (entry: Entry<C>): boolean {
    this.entries.move(entry, VALIDATING)
    const reason = this.#unfit(entry)
    if (reason !== undefined) this.destroy(entry, reason, entry.broken)
    else if (this.owner?.mustYield() === true) this.destroy(entry, 'idle')
    else if (this.#isHindered(entry)) {
      // Nobody has used it, or seen it alive: its times go on.
      this.entries.rest(entry, entry.idleSince)
      return false
    } else if (this.#isStale(entry)) this.checks.validate(entry, true)
    else this.waiting.serve(entry)
    return true
  }

  /** Nothing is lent to those who wait. */
  get isHalted (): boolean {
    return (this.#gate & (SUSPENDED | ENDED)) !== 0
  }

  // --- Ending connections --------------------------------------------------------------------------------------------

  /** Ends a connection that is here, or that was delivered. Nothing may wait for it; it counts until it is gone. */
  destroy (entry: Entry<C>, reason: DestroyReason, error?: Error): void {
    const { books, events, hooks, time, work } = this
    // A borrower may wait for its transaction, and the driver may never answer any more.
    if (entry.operation?.phase !== undefined) work.abort(entry, 'the connection is destroyed')
    work.finish(entry)
    this.entries.move(entry, CLOSING)
    const now = time.read()
    work.begin(entry, now + this.options.destroyTimeout)
    books.destroyed[reason]++
    const { id, uses, createdAt } = entry
    if (events.heard.disconnect) {
      events.emit('disconnect', { id, reason, age: now - createdAt, uses, ...(error && { error }) })
    }
    this.owner?.lost(reason === 'error' || reason === 'invalid')
    hooks.call('onDisconnect', entry, { reason })
    this.#end(entry, reason)
    this.closing.settle()
    // However long it takes to close: there may be room for another one already.
    this.pump()
  }

  /** A connection came after its deadline: nobody was told of it, so it goes without an event. */
  destroyLate (entry: Entry<C>): void {
    this.books.destroyed.released++
    this.#end(entry, 'released')
  }

  #end (entry: Entry<C>, reason: DestroyReason): void {
    const failed = (error: unknown) => { this.events.report(error, 'destroy') }
    let ending: Promise<unknown> | undefined
    try {
      ending = asPromise(this.events.run(() => this.backend.destroy(entry.connection, reason)))
    } catch (error) {
      failed(error)
    }
    if (ending === undefined) this.gone(entry)
    else ending.catch(failed).then(() => { this.gone(entry) })
  }

  gone (entry: Entry<C>): void {
    this.work.finish(entry)
    this.entries.move(entry, GONE)
    this.closing.settle()
    this.pump()
    this.owner?.freed()
  }

  /** The driver tells of a connection's death. */
  died (entry: Entry<C>, cause: Error | undefined): void {
    if (entry.broken !== undefined || entry.state >= CLOSING) return
    // First of all: nobody gets it, whatever listeners do.
    entry.broken = new Error('the connection was closed')
    if (cause !== undefined) entry.broken = this.events.report(cause, 'death')
    if (entry.state === IDLE) this.destroy(entry, 'error', entry.broken)
  }

  // --- Control -------------------------------------------------------------------------------------------------------

  get isSuspended (): boolean {
    return (this.#gate & SUSPENDED) !== 0
  }

  /** For `Closing`. */
  phaseChanged (): void {
    const { phase, isClosed } = this.closing
    this.#setGate(DRAINING, phase !== 'open')
    this.#setGate(ENDED, phase === 'closed')
    this.#setGate(CLOSED, isClosed)
  }

  /** For `Waiting`. */
  lineChanged (): void {
    this.#setGate(WAITED, this.line.size > 0)
  }

  /** The coarse clock ticks from now on. */
  wake (): void {
    if ((this.#gate & ASLEEP) === 0) return
    this.#setGate(ASLEEP, false)
    this.sample()
    this.time.arm(this.time.read() + TICK)
  }

  /** For `Upkeep`. */
  fallAsleep (): void {
    this.#setGate(ASLEEP, true)
  }

  /** For `Upkeep`. */
  sample (): void {
    this.#samples = SAMPLES
    this.#setGate(SAMPLED, true)
  }

  async open (): Promise<void> {
    if (this.closing.phase !== 'open' || this.closing.isClosed) throw this.waiting.closedError
    await this.supply.open()
  }

  evict ({ idle = false }: { idle?: boolean } = {}): void {
    for (const entry of this.entries) {
      if (idle && entry.state !== IDLE) continue
      if (entry.state === CREATING && entry.creation!.unwanted === undefined) this.entries.unwant(entry, 'stale')
      entry.doomed = 'stale'
      entry.goodUntil = 0
    }
    // All were marked first: what listeners do meanwhile gets none that is still to go.
    for (const entry of [...this.#idle]) if (entry.state === IDLE) this.destroy(entry, 'stale')
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
    // Creates first: what is there already is worth more.
    supply.cancel(Math.max(0, max - entries.here), 'idle')
    while (entries.here > max && this.shed()) { /* One at a time. */ }
    // With another `min`, other connections may idle out.
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
  }

  resume (): void {
    this.#setGate(SUSPENDED, false)
    // How long it stood still is not its pace.
    this.waiting.pace.begin(this.time.read())
    this.pump()
  }
}
