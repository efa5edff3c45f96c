/** The longest pause where haste is of no use, in ms. */
const PATIENT = 30_000

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
  /** The same where haste is of no use: these pauses grow up to 30 s. */
  patientAt = 0

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
    const limit = min * 2 ** (this.failures - 1)
    const random = this.#random()
    this.retryAt = now + Math.max(1, random * Math.min(max, limit))
    this.patientAt = now + Math.max(1, random * Math.min(Math.max(max, PATIENT), limit))
  }

  /** The next create may begin now. */
  end (now: number): void {
    this.retryAt = this.patientAt = now
  }
}
