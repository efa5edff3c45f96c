import type { Circuit as State } from '../../types/pool.js'

/** When the circuit opens, and for how long. */
export interface CircuitOptions {
  readonly failures: number
  readonly rate: number
  readonly sample: number
  readonly after: number
  readonly openFor: number
}

/**
 * The circuit breaker of creates. When too many creates have failed, for long enough, it opens: from then on there is
 * one create at a time, each `openFor` after the last one failed, until one succeeds.
 *
 * Creates that are under way together are a round, and the failures of a round count once: whatever hit one of them
 * most likely hit all.
 */
export class Circuit {
  state: State = 'closed'
  /** When the next create may begin, while the circuit is open. */
  retryAt = 0
  readonly #options: CircuitOptions | false
  /** How many rounds have failed since the last create that succeeded. */
  #inARow = 0
  /** Whether the last creates failed: `sample` of them, or fewer while there are no more. */
  readonly #sample: boolean[] = []

  /** @param options `false`: the circuit never opens */
  constructor (options: CircuitOptions | false) {
    this.#options = options
  }

  /** A create begins. */
  begin (): void {
    if (this.state === 'open') this.state = 'half-open'
  }

  succeeded (): void {
    this.#inARow = 0
    // What was before the outage does not count any more.
    if (this.state !== 'closed') this.#sample.length = 0
    this.#record(false)
    this.state = 'closed'
  }

  /**
   * @param isFirst no other create of its round has failed
   * @param since when the first of the creates that failed in a row did so
   * @param random in [0, 1): lengthens `openFor` by up to a tenth, so that many processes do not try at the same time
   */
  failed (now: number, isFirst: boolean, since: number, random: number): void {
    if (this.#options === false) return
    if (isFirst) {
      this.#inARow++
      this.#record(true)
    }
    const isEnough = isFirst && this.#isEnough(this.#options)
    if (this.state === 'closed' && !(isEnough && now - since >= this.#options.after)) return
    this.state = 'open'
    this.retryAt = now + this.#options.openFor * (1 + 0.1 * random)
  }

  #isEnough ({ failures, rate, sample }: CircuitOptions): boolean {
    if (this.#inARow >= failures) return true
    return this.#sample.length === sample && this.#sample.filter((failed) => failed).length > rate * sample
  }

  #record (failed: boolean): void {
    if (this.#options === false) return
    this.#sample.push(failed)
    if (this.#sample.length > this.#options.sample) this.#sample.shift()
  }
}
