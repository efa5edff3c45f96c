import { CircuitState, ConsecutiveBreaker, CountBreaker } from 'cockatiel'
import type { Circuit as State } from '../../types/pool.js'

/** When the circuit opens, and for how long. */
export interface CircuitOptions {
  readonly failures: number
  readonly rate: number
  readonly sample: number
  readonly openFor: number
}

/**
 * Whether creates are tried at all. When so many have failed, it opens: from then on there is one create at a time,
 * each `openFor` after the last one failed, until one succeeds.
 *
 * What opens it is for cockatiel's breakers to say. Its policy is not used: that reads the clock by itself, and tries
 * with a caller's call, where our pool creates for itself.
 */
export class Circuit {
  state: State = 'closed'
  /** While it is open: when the next create may begin. */
  retryAt = 0
  readonly #options: CircuitOptions | false
  readonly #breakers: ReadonlyArray<ConsecutiveBreaker | CountBreaker>

  /** @param options `false`: it never opens */
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

  /** @param random in [0, 1): up to a tenth more, so that many processes do not try at the same time */
  failed (now: number, random: number): void {
    if (this.#options === false) return
    const state = this.state === 'closed' ? CircuitState.Closed : CircuitState.HalfOpen
    // Each of them is told.
    const open = this.#breakers.map((breaker) => breaker.failure(state)).includes(true)
    if (this.state === 'closed' && !open) return
    this.state = 'open'
    this.retryAt = now + this.#options.openFor * (1 + 0.1 * random)
  }
}
