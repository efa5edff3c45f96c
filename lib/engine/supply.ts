import type { DestroyReason } from '../../types/connector.js'
import { Creator, type Site as CreatorSite } from './create.js'
import { CREATING, type Entry } from './entry.js'
import type { PoolError } from './errors.js'
import * as faults from './faults.js'
import { Login } from './login.js'
import { Openers } from './openers.js'
import { paying, Recent } from './pace.js'
import type { Phase } from './parts.js'
import { Room } from './room.js'

/** What the supply asks of the engine. */
export interface Site<C> extends CreatorSite<C> {
  readonly closing: CreatorSite<C>['closing'] & { readonly phase: Phase }
  readonly isSuspended: boolean
  /** Nothing is lent to those who wait, and nothing created. */
  readonly isHalted: boolean
  readonly report: { readonly situation: faults.Situation }
  readonly waiting: { turnAllAway (why: () => PoolError): void }
}

/**
 * When callers leave the line, all but two of the creates begun for them are cancelled. Two, so that a flickering load
 * still grows the pool.
 */
const SPARE = 2

/** Decides which creates are needed: for callers that wait, for `min`, for callers of `open()`. */
export class Supply<C> extends Room<C, Site<C>> {
  readonly creator: Creator<C>
  readonly #openers = new Openers()
  readonly #login: Login
  readonly #maxConnecting: number
  /** How many creates that have not ended callers get for validations that were given up. */
  #owed = 0
  /** How long connects took, and how long leases were held, lately. */
  readonly #connects = new Recent(8)
  readonly holds = new Recent(64)
  /** The pool was used or opened, so `min` is kept from now on. */
  #started = false
  /** When the last tick was. Behind a stall of the event loop ticks come last, when the line has been served. */
  #tickedAt = -Infinity
  /** When the event loop stood still last. */
  #stoodUntil = -Infinity
  /** When the app's functions were asked for the login, since the server refuses us. */
  #askedAt = -Infinity

  constructor (site: Site<C>) {
    super(site)
    this.#maxConnecting = site.options.maxConnecting ?? Infinity
    this.#login = new Login(site.options)
    this.creator = new Creator(site, {
      loginChanges: this.#login.changes,
      made: (took) => {
        this.#paid()
        this.#connects.record(took, this.time.now)
        this.settleOpeners()
      },
      failed: (cause, error) => {
        this.#paid()
        if (this.creator.isRefused) this.#login.note()
        this.rejectOpeners(() => faults.cannotOpen(site.name, cause, error))
      },
    })
  }

  /** Somebody waits until the pool is open. */
  get isAwaited (): boolean {
    return this.#openers.size > 0
  }

  start (): void {
    this.#started = true
  }

  /** A tick begins. */
  tick (now: number): void {
    this.#tickedAt = now
    this.#connects.keep()
    this.holds.keep()
  }

  /** The event loop stood still until now: nobody was served meanwhile, and no create would have been done. */
  stood (now: number): void {
    this.#stoodUntil = now
    this.#connects.stood(now)
    this.holds.stood(now)
  }

  /** Starts the creates that are needed. */
  feed (): void {
    while (this.#isNeeded && this.#isTime()) {
      this.owner?.wants()
      // `wants` may have led to creates of other engines, and of this one.
      if (!this.#isNeeded || this.owner?.hasRoom() === false) return
      this.creator.begin()
    }
  }

  /** Whether creates are allowed, but for their room and the pauses behind failures. */
  get #isAllowed (): boolean {
    const { creating, late, max } = this.entries
    return late < max && creating < Math.min(this.#maxConnecting, max) && !this.site.isHalted
  }

  /** A validation that a caller waits for was given up for a create. */
  owe (): void {
    this.#owed++
  }

  /** A create has ended. */
  #paid (): void {
    this.#owed = this.line.size === 0 ? 0 : Math.max(0, this.#owed - 1)
  }

  /** Callers need a create that may begin now, and there is no room for it. */
  get isCramped (): boolean {
    const { max, total } = this.entries
    const { circuit } = this.creator
    if (this.lacking <= 0 || !this.#isAllowed || circuit.state !== 'closed' || !this.#isTime()) return false
    return total >= max || this.owner?.hasRoom() === false
  }

  /** Whether one more create is needed, and there is room for it. */
  get #isNeeded (): boolean {
    const { creating, coming, here, max, total } = this.entries
    const { closing: { phase } } = this.site
    const { circuit } = this.creator
    if (total >= max || !this.#isAllowed) return false
    // Creates that began before the circuit opened do not stop its probe, which is one at a time; it needs nobody who
    // waits.
    if (circuit.state !== 'closed') {
      if (circuit.state !== 'open' && creating > 0) return false
      if (this.isFull) return this.lacking > 0 || this.#openers.size > 0
      return this.line.size > 0 || this.#isProbed
    }
    const isKept = phase === 'open' && this.#started && !(this.isFull && this.#openers.size === 0)
    const isProbe = phase === 'open' && this.site.checks.evidence.isWanted
    return (isKept && this.#target > here + coming) || this.lacking > 0 || isProbe
  }

  /** While the circuit is open, creates are tried though nobody waits. */
  get #isProbed (): boolean {
    const { checks: { evidence }, closing: { phase } } = this.site
    return phase === 'open' && ((this.#started && this.#target > this.entries.here) || evidence.isOfInterest)
  }

  /** How many creates those who wait need, besides those under way. */
  get lacking (): number {
    // Whose validation takes long, or was given up, gets a create beside it.
    const inDoubt = this.site.checks.hasMet ? 0 : this.work.awaitedInDoubt + this.#owed
    return Math.max(Math.min(this.line.size, inDoubt) - this.entries.coming, this.#paying)
  }

  /**
   * How many creates pay, besides those under way, and for whoever has waited as long as a connect takes, since a pace
   * goes stale. A tick sees the latter, and comes when it is so.
   */
  get #paying (): number {
    const { coming, here, idle } = this.entries
    const served = this.work.awaited - this.work.awaitedInDoubt + coming
    const waiting = this.line.size - served
    // Callers wait beside idle connections only where an obstacle hinders loans: a new connection would meet it too.
    if (waiting <= 0 || idle.length > 0) return 0
    const now = this.time.read()
    const connect = this.#connects.mean(now)
    const pays = paying(waiting, here, connect, this.holds.mean(now))
    if (pays > 0 || connect === undefined) return pays
    const overdueAt = Math.max(this.line.at(served).since, this.#stoodUntil) + connect
    if (overdueAt <= this.#tickedAt) return 1
    this.time.arm(overdueAt)
    return 0
  }

  /** When the next create may begin. */
  get #retryAt (): number {
    const { backoff, circuit, isRefused } = this.creator
    if (backoff.failures === 0) return -Infinity
    const isPatient = isRefused || this.isFull
    if (circuit.state === 'closed') return isPatient ? backoff.patientAt : backoff.retryAt
    return isPatient ? Math.max(circuit.retryAt, backoff.patientAt) : circuit.retryAt
  }

  /** Whether the pause after failed creates is over; if not, a tick comes at its end. */
  #isTime (): boolean {
    const { refusals } = this.creator
    const retryAt = Math.max(this.#retryAt, refusals.failures > 0 ? refusals.retryAt : -Infinity)
    if (this.time.read() >= retryAt) return true
    this.time.arm(retryAt)
    if (this.creator.isRefused && this.#login.changes) this.#askLogin()
    return false
  }

  /** The server allows no more connections than there are: one is created only for somebody who waits, and rarely. */
  get isFull (): boolean {
    const { creator: { allowed }, entries: { closing, here } } = this
    return allowed > 0 && here > 0 && here + closing >= allowed
  }

  /** The server refused us for good, and nothing is tried now. */
  get isRefused (): boolean {
    return this.creator.isRefused && this.entries.coming === 0 && this.time.read() < this.#retryAt
  }

  /**
   * Asks the app's functions for the login. Another one ends the pause; with the same one nobody waits in vain. Where
   * there are connections, that is asked once in a tick.
   */
  #askLogin (): void {
    if (this.#login.isAsked || (this.entries.here > 0 && this.#askedAt > this.#tickedAt)) return
    this.#askedAt = this.time.now
    this.events.run(() => this.#login.isAnother()).then((isAnother) => {
      if (!this.isRefused) return
      if (isAnother) {
        this.creator.forgive()
        this.site.pump()
      } else this.#giveUp()
    })
  }

  /** Tells all who wait for a connection that there won't be one soon, but not those who wait for one that is there. */
  #giveUp (): void {
    const { lastFailure } = this.creator
    this.rejectOpeners(() => faults.cannotOpen(this.name, lastFailure, lastFailure!))
    if (this.entries.here === 0) this.site.waiting.turnAllAway(() => this.connectError)
  }

  /** There is no connection, and there won't be one soon. */
  get isHopeless (): boolean {
    const { circuit } = this.creator
    const { isSuspended } = this.site
    if (this.entries.here > 0 || isSuspended) return false
    // Whoever comes waits for what the app's functions say by now.
    if (this.isRefused) return !this.#login.changes
    if (circuit.state === 'closed') return false
    // Where the pool probes only while somebody waits, a waiter must not be sent away when it is time to probe.
    if (this.#isProbed || this.entries.late >= this.entries.max) return true
    return circuit.state === 'open' && this.time.read() < circuit.retryAt
  }

  /** How many connections there should be even when nobody waits. */
  get #target (): number {
    return Math.max(this.entries.min, this.#openers.target)
  }

  /**
   * Cancels creates that the line does not need any more, since connections that came back served it.
   */
  cancelSpare (): void {
    if (this.entries.coming <= SPARE) return
    const needed = Math.max(SPARE, this.line.size + Math.max(0, this.#target - this.entries.here))
    if (this.entries.coming > needed) this.cancel(needed, 'released')
  }

  /**
   * Cancels all creates but the first `kept`; connections that they still deliver are destroyed.
   *
   * @param goesOn what is under way is not aborted: while the circuit is open there is one create at a time
   */
  cancel (kept: number, reason: DestroyReason, goesOn = false): void {
    const isWanted = ({ state, creation }: Entry<C>) => state === CREATING && creation!.unwanted === undefined
    for (const entry of [...this.entries].filter(isWanted).slice(kept)) {
      this.entries.unwant(entry, reason)
      if (!goesOn) this.work.abort(entry, `pool '${this.name}' no longer needs this connection`)
    }
  }

  /** Resolves when `max(1, min)` connections are there. */
  open (): Promise<void> {
    return this.#grow(Math.max(1, this.entries.min), true)
  }

  /** Makes one more connection, though nobody may need it. Resolves when it is there. */
  grow (): Promise<void> {
    return this.#grow(this.entries.here + this.entries.coming + 1, false)
  }

  async #grow (target: number, isTold: boolean): Promise<void> {
    this.start()
    const grown = this.#openers.join(target, isTold)
    this.settleOpeners()
    if (this.isRefused && !this.#login.changes) this.#giveUp()
    this.site.pump()
    this.time.keepAlive()
    await grown
  }

  settleOpeners (): void {
    if (this.#openers.size === 0) return
    const { backend: { driver } } = this.site
    const ready = this.#openers.take(this.entries.here, this.entries.max)
    if (this.events.heard.open && ready.some(({ isTold }) => isTold)) {
      this.events.emit('open', { ...(driver !== undefined && { driver }) })
    }
    for (const { resolve } of ready) resolve()
    // Where as many as `max` are late, nothing is created until one of them comes back, which may be never.
    if (this.entries.late >= this.entries.max) this.rejectOpeners(() => this.connectError)
    else this.time.keepAlive()
  }

  rejectOpeners (why: () => Error): void {
    this.#openers.reject(why)
    this.time.keepAlive()
  }

  get connectError (): PoolError {
    const { report: { situation } } = this.site
    const { lastFailure: cause, lastKind: kind } = this.creator
    return faults.cannotConnect(situation, { cause, kind, retryAfter: (this.#retryAt - this.time.now) / 1000 })
  }

  /** Why callers are sent away: it is hopeless. */
  get hopelessError (): PoolError {
    const { circuit, isRefused, lastFailure: cause, lastKind: kind } = this.creator
    if (isRefused) return this.connectError
    const { openFor } = this.options.circuit as { readonly openFor: number }
    return faults.circuitOpen(this.name, openFor, { cause, kind, retryAfter: (circuit.retryAt - this.time.now) / 1000 })
  }
}
