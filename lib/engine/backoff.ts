/** Exponential backoff of creates, with full jitter. */
export class Backoff {
  readonly #options: { readonly min: number, readonly max: number }
  readonly #random: () => number
  /** How many rounds of creates in a row have failed. Creates that are under way together are one round. */
  failures = 0
  /** When the first of them failed. */
  since = 0
  /** When the next create may begin, while there are failures. */
  retryAt = 0

  constructor (options: { readonly min: number, readonly max: number }, random: () => number) {
    this.#options = options
    this.#random = random
  }

  /** A round of creates failed. */
  failed (now: number): void {
    if (this.failures === 0) this.since = now
    this.failures++
    this.pause(now)
  }

  succeeded (): void {
    this.failures = 0
  }

  /** Puts off the next create. */
  pause (now: number): void {
    const { min, max } = this.#options
    this.retryAt = now + Math.max(1, this.#random() * Math.min(max, min * 2 ** (this.failures - 1)))
  }
}
