import { CircuitState, ConsecutiveBreaker, CountBreaker } from 'cockatiel'
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
 *
 * cockatiel's breakers decide when it opens. Its circuit breaker policy is not used: it reads the system's clock, and
 * tries again with a caller's call, while this pool creates by itself.
 */
export class Circuit {
  state: State = 'closed'
  /** When the next create may begin, while the circuit is open. */
  retryAt = 0
  readonly #options: CircuitOptions | false
  readonly #breakers: ReadonlyArray<ConsecutiveBreaker | CountBreaker>

  /** @param options `false`: the circuit never opens */
  constructor (options: CircuitOptions | false) {
    this.#options = options
    this.#breakers = options === false
      ? []
      : [
          new ConsecutiveBreaker(options.failures),
          new CountBreaker({ threshold: options.rate, size: options.sample }),
        ]
  }

  /** A create begins. */
  begin (): void {
    if (this.state === 'open') this.state = 'half-open'
  }

  succeeded (): void {
    const state = this.state === 'closed' ? CircuitState.Closed : CircuitState.HalfOpen
    for (const breaker of this.#breakers) breaker.success(state)
    this.state = 'closed'
  }

  /**
   * @param isFirst no other create of its round has failed
   * @param since when the first of the creates that failed in a row did so
   * @param random in [0, 1): lengthens `openFor` by up to a tenth, so that many processes do not try at the same time
   */
  failed (now: number, isFirst: boolean, since: number, random: number): void {
    if (this.#options === false) return
    const state = this.state === 'closed' ? CircuitState.Closed : CircuitState.HalfOpen
    // All breakers must be told, so this is no `some`.
    const isEnough = isFirst && this.#breakers.map((breaker) => breaker.failure(state)).includes(true)
    if (this.state === 'closed' && !(isEnough && now - since >= this.#options.after)) return
    this.state = 'open'
    this.retryAt = now + this.#options.openFor * (1 + 0.1 * random)
  }
}
