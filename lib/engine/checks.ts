import { VALIDATING, type Entry } from './entry.js'
import type { DestroyReason } from '../../types/connector.js'
import type { Parts } from './parts.js'
import { Room } from './room.js'

/** What the checks ask of the engine. */
export interface Site<C> extends Parts<C> {
  /** The connection answered. @param since when a borrower used it last: its idle time goes on */
  offer (entry: Entry<C>, alive: boolean, since: number): void
  destroy (entry: Entry<C>, reason: DestroyReason, error?: Error): void
}

/** How long after an obstacle was met the pool looks again, in ms: the first pause, doubled up to the second one. */
const LOOK = 1
const LOOK_LATER = 25

/** Asks whether a connection is alive, and whether something outside of the pool (an obstacle) hinders loans. */
export class Checks<C> extends Room<C, Site<C>> {
  readonly #asks: boolean
  /** The connector can tell of obstacles. */
  readonly meets: boolean
  /** The obstacle that hinders those who wait, in the connector's words. */
  obstacle: string | undefined
  #lookAgain = 0

  constructor (site: Site<C>) {
    super(site)
    this.#asks = site.backend.isBroken !== undefined
    this.meets = site.backend.obstacle !== undefined
  }

  /** What the driver knows without asking the server. */
  isDead (entry: Entry<C>): boolean {
    return entry.broken !== undefined || (this.#asks && this.#isBroken(entry))
  }

  #isBroken (entry: Entry<C>): boolean {
    try {
      return this.backend.isBroken!(entry.connection)
    } catch (error) {
      // Set before the report, so that listeners that acquire do not get this connection.
      entry.broken = this.events.scrub(error)
      this.events.report(error, 'isBroken')
      return true
    }
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

  /** A line begins: the pauses between looks for an obstacle start with the shortest. */
  begin (): void {
    this.#lookAgain = 0
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
      this.site.destroy(entry, 'invalid', failure)
      return undefined
    }
    const latency = this.time.read(true) - began
    this.site.offer(entry, false, entry.idleSince)
    return latency
  }

  /** The validation is past its deadline. */
  overdue (entry: Entry<C>): void {
    this.work.abort(entry, 'past its deadline')
    this.work.finish(entry)
    const error = new Error(`no answer within ${this.options.validateTimeout} ms (validateTimeout)`)
    this.site.destroy(entry, 'invalid', this.events.report(error, 'validate'))
  }
}
