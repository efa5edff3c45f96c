import { VALIDATING, type Entry } from './entry.js'
import type { DestroyReason } from '../../types/connector.js'
import type { Parts } from './parts.js'
import { Room } from './room.js'

/** What the checks ask of the engine. */
export interface Site<C> extends Parts<C> {
  /** The connection is alive. @param since when it was used last: nobody has used it since */
  offer (entry: Entry<C>, alive: boolean, since: number): void
  destroy (entry: Entry<C>, reason: DestroyReason, error?: Error): void
}

/** In ms: how long after an obstacle was met it is looked for again, doubled each time up to the second. */
const LOOK = 1
const LOOK_LATER = 25

/** Whether a connection is alive, and whether something outside of the pool is in the way of loans. */
export class Checks<C> extends Room<C, Site<C>> {
  readonly #asks: boolean
  /** The connector can tell of obstacles. */
  readonly meets: boolean
  /** What is in the way of those who wait. */
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
      // Before the report: what listeners do must find it broken.
      entry.broken = this.events.scrub(error)
      this.events.report(error, 'isBroken')
      return true
    }
  }

  /** A line begins: whatever its first caller meets, it is looked for again soon. */
  begin (): void {
    this.#lookAgain = 0
  }

  /**
   * Whether something outside of the pool is in the way of a loan. Then it is looked for again while somebody waits.
   */
  isHindered (entry: Entry<C>): boolean {
    if (!this.meets) return false
    const now = this.time.read()
    try {
      const obstacle = this.backend.obstacle!(entry.connection)
      // The connector's own words: they may name an address.
      this.obstacle = obstacle === undefined ? undefined : this.events.scrub(obstacle).message
    } catch (error) {
      // The borrower will see what is wrong.
      this.obstacle = undefined
      // Behind the loan: what listeners do must not come between.
      queueMicrotask(() => { this.events.report(error, 'obstacle') })
    }
    this.#lookAgain = this.obstacle === undefined ? 0 : Math.min(LOOK_LATER, this.#lookAgain * 2 || LOOK)
    if (this.obstacle === undefined) return false
    this.time.arm(now + this.#lookAgain)
    return true
  }

  /** Asks an idle connection, for its own sake: nobody gets it meanwhile. Resolves as `validate`. */
  ping (entry: Entry<C>): Promise<number | undefined> {
    this.entries.move(entry, VALIDATING)
    return this.validate(entry)
  }

  /**
   * Asks a connection in the state `VALIDATING`, and offers it where it is alive. Resolves to the round trip's ms;
   * undefined: the connection is gone.
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
      // At the deadline the connection is destroyed, and whoever asked here is told, even where the connector ignores
      // the signal.
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
