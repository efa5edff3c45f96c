import { IDLE, VALIDATING, type Entry, type Operation } from './entry.js'
import type { Activity, DestroyReason } from '../../types/connector.js'
import { Evidence } from './evidence.js'
import type { Parts } from './parts.js'
import { Room } from './room.js'

/** What the checks ask of the engine. */
export interface Site<C> extends Parts<C> {
  /** The connection answered. @param since when a borrower used it last: its idle time goes on */
  offer (entry: Entry<C>, alive: boolean, since: number): void
  /** @param silent the server does not answer: it is not waited for */
  destroy (entry: Entry<C>, reason: DestroyReason, error: Error | undefined, silent: boolean): void
  readonly supply: {
    /** Callers need a create that may begin, and there is no room for it. */
    readonly isCramped: boolean
    /** A connection was given up for a create. */
    owe (): void
  }
  /** Some connections are suspect, or none is any more. */
  gateChanged (): void
}

/** How long callers rely on a validation, in ms: then a create begins beside it. */
const DOUBT = 100

/** How long after an obstacle was met the pool looks again, in ms: the first pause, doubled up to the second one. */
const LOOK = 1
const LOOK_LATER = 25

/**
 * Asks whether a connection is alive, and whether something outside of the pool (an obstacle) hinders loans.
 *
 * A validation without an answer after 100 ms is in doubt: a create begins beside it, and whichever is first serves the
 * caller. Where there is no room for the create, the connection is given up. One that ends in silence makes all
 * connections that were not seen alive since it began suspect: none of them is lent before it has answered.
 */
export class Checks<C> extends Room<C, Site<C>> {
  readonly evidence: Evidence<C>
  readonly #asks: boolean
  /** The connection that was last found dead. */
  #dead: Entry<C> | undefined
  /** The connector can tell of obstacles. */
  readonly meets: boolean
  /** The obstacle that hinders those who wait, in the connector's words. */
  obstacle: string | undefined
  #lookAgain = 0
  /** When the latest validation that ended in silence began. */
  #silentSince = -Infinity
  /** There may be suspects. */
  isSuspicious = false

  constructor (site: Site<C>) {
    super(site)
    this.evidence = new Evidence(site)
    this.#asks = site.backend.isBroken !== undefined
    this.meets = site.backend.obstacle !== undefined
  }

  /** What the driver knows without asking the server. */
  isDead (entry: Entry<C>): boolean {
    return entry.broken !== undefined || (this.#asks && this.#isBroken(entry))
  }

  #isBroken (entry: Entry<C>): boolean {
    try {
      if (!this.backend.isBroken!(entry.connection)) return false
      this.#dead = entry
      return true
    } catch (error) {
      // Set before the report, so that listeners that acquire do not get this connection.
      entry.broken = this.events.scrub(error)
      this.events.report(error, 'isBroken')
      return true
    }
  }

  /** A connection is destroyed. */
  lost (entry: Entry<C>, reason: DestroyReason): void {
    if (reason === 'error' && (entry.broken !== undefined || this.#dead === entry)) this.evidence.lost(entry)
    this.#dead = undefined
  }

  /** Whether a command is under way on it, as far as its driver says. */
  isBusy (entry: Entry<C>): boolean {
    try {
      return this.backend.describe?.(entry.connection)?.doing === 'query'
    } catch (error) {
      this.events.report(error, 'describe')
      return true
    }
  }

  /** What it is doing, as far as its driver says. */
  activityOf (entry: Entry<C>): Activity | undefined {
    try {
      return this.backend.describe?.(entry.connection)
    } catch (error) {
      this.events.report(error, 'describe')
      return undefined
    }
  }

  /** A line begins: the pauses between looks for an obstacle start with the shortest. */
  begin (): void {
    this.#lookAgain = 0
  }

  /** An obstacle hindered a loan when the pool looked last. */
  get hasMet (): boolean {
    return this.#lookAgain > 0
  }

  /**
   * Whether an obstacle hinders a loan of this connection. Then the pool looks again while somebody waits.
   */
  isHindered (entry: Entry<C>): boolean {
    if (!this.meets) return false
    const now = this.time.read()
    try {
      const obstacle = this.backend.obstacle!(entry.connection)
      // Scrubbed, since the connector's words may name an address.
      this.obstacle = obstacle === undefined ? undefined : this.events.scrub(obstacle).message
    } catch (error) {
      // The connection is lent: its borrower will see what is wrong.
      this.obstacle = undefined
      // After the loan: listeners must not come between.
      queueMicrotask(() => { this.events.report(error, 'obstacle') })
    }
    this.#lookAgain = this.obstacle === undefined ? 0 : Math.min(LOOK_LATER, this.#lookAgain * 2 || LOOK)
    if (this.obstacle === undefined) return false
    this.time.arm(now + this.#lookAgain)
    return true
  }

  /** Asks an idle connection to keep it alive, or for `health()`; it is not lent meanwhile. Resolves as `validate`. */
  ping (entry: Entry<C>): Promise<number | undefined> {
    this.entries.move(entry, VALIDATING)
    return this.validate(entry)
  }

  /**
   * Asks a connection in the state `VALIDATING`, and offers it where it answers. Resolves to the round trip in ms, or
   * to undefined where the connection is gone.
   *
   * @param awaited somebody waits for it
   */
  async validate (entry: Entry<C>, awaited = false): Promise<number | undefined> {
    const began = this.time.read(true)
    const deadline = began + this.options.validateTimeout
    const operation = awaited ? this.work.beginAwaited(entry, deadline) : this.work.begin(entry, deadline)
    const { signal } = operation
    let valid = false
    let failure: Error | undefined
    try {
      const answer = this.events.run(() => this.backend.validate!(entry.connection, signal))
      // At the deadline the connection is destroyed; the race ends then even where the connector ignores the signal.
      const late = new Promise<false>((resolve) => { signal.addEventListener('abort', () => { resolve(false) }) })
      valid = await Promise.race([answer, late])
    } catch (error) {
      if (entry.operation === operation) failure = this.events.report(error, 'validate')
    }
    if (entry.operation !== operation) return undefined
    this.work.finish(entry)
    if (!valid) {
      this.evidence.bad(`a validation failed${failure === undefined ? '' : `: ${failure.message}`}`)
      this.site.destroy(entry, 'invalid', failure, false)
      return undefined
    }
    const now = this.time.read(true)
    const latency = now - began
    this.evidence.good()
    entry.freshAt = Math.floor(now)
    this.site.offer(entry, false, entry.idleSince)
    return latency
  }

  /** The validation is past its deadline. */
  overdue (entry: Entry<C>): void {
    const { since, stalled } = entry.operation!
    const error = new Error(`no answer within ${this.options.validateTimeout} ms (validateTimeout)`)
    this.work.abort(entry, error)
    this.work.finish(entry)
    // Where the event loop stood still the silence may be our own. Where the driver knows of the end, it is none.
    if (!stalled && !this.isDead(entry)) this.#suspect(since)
    this.evidence.bad(`a validation failed: ${error.message}`)
    this.site.destroy(entry, 'invalid', this.events.report(error, 'validate'), true)
    this.#askSuspects()
  }

  // --- Silence -------------------------------------------------------------------------------------------------------

  /** Called at each tick for a validation that is under way. */
  watch (operation: Operation<C>, now: number): void {
    if (operation.doubted) return
    if (now - operation.since >= DOUBT) this.work.doubt(operation)
    else this.time.arm(operation.since + DOUBT)
  }

  /** Gives up connections whose validation is in doubt, where callers need their room for creates. */
  relieve (): void {
    while (this.site.supply.isCramped) {
      const isDoubted = ({ state, operation }: Entry<C>) => state === VALIDATING && operation?.doubted === true
      const entry = [...this.entries].find(isDoubted)
      if (entry === undefined) return
      if (entry.operation!.awaited) this.site.supply.owe()
      const error = new Error(`no answer within ${DOUBT} ms, and somebody waits`)
      this.work.abort(entry, error)
      this.work.finish(entry)
      this.evidence.bad(`a validation failed: ${error.message}`)
      this.site.destroy(entry, 'invalid', this.events.report(error, 'validate'), true)
    }
  }

  /** Whether the connection must answer before it is lent, since another one was silent. */
  isSuspect ({ freshAt }: Entry<C>): boolean {
    return freshAt < this.#silentSince
  }

  /** @param since when the validation that ended in silence began */
  #suspect (since: number): void {
    this.#silentSince = Math.max(this.#silentSince, Math.floor(since))
    this.isSuspicious = true
    for (const entry of this.entries.idle) if (this.isSuspect(entry)) entry.goodUntil = 0
    this.site.gateChanged()
  }

  #askSuspects (): void {
    if (!this.isSuspicious) return
    for (const entry of [...this.entries.idle]) if (entry.state === IDLE && this.isSuspect(entry)) this.ask(entry)
  }

  /** Asks a connection that would be lent. */
  ask (entry: Entry<C>): void {
    this.entries.move(entry, VALIDATING)
    this.validate(entry, this.line.size > this.work.awaited)
  }

  /** Called at the end of each tick: whether there are suspects still. */
  review (): void {
    if (!this.isSuspicious) return
    this.isSuspicious = [...this.entries].some((entry) => entry.isHere && this.isSuspect(entry))
    if (!this.isSuspicious) this.site.gateChanged()
  }
}
