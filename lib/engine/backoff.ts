/** When creates may be tried that have failed before. */
export class Backoff {
  readonly #options: { readonly min: number, readonly max: number }
  readonly #random: () => number
  /** How many rounds of creates in a row have failed. Creates that are under way together are one round. */
  failures = 0
  /** While there are failures: when the next create may begin. */
  retryAt = 0

  constructor (options: { readonly min: number, readonly max: number }, random: () => number) {
    this.#options = options
    this.#random = random
  }

  /** @param known how many failures there had been when the create began: one of a later round is a new failure */
  failed (known: number, now: number): void {
    if (known < this.failures) return
    this.failures++
    this.pause(now)
  }

  succeeded (): void {
    this.failures = 0
  }

  /** Exponential backoff with full jitter. */
  pause (now: number): void {
    const { min, max } = this.#options
    this.retryAt = now + Math.max(1, this.#random() * Math.min(max, min * 2 ** (this.failures - 1)))
  }
}
