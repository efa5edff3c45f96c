/** After how long a line is written about what lasts, in ms; then each minute. */
const STEPS = [1000, 10_000, 60_000]

/** When something began that has lasted for so long, in ms, as a date. */
export function ago (lasted: number): string {
  return new Date(Date.now() - lasted).toISOString()
}

/** Something that lasts: when a line about it is due. */
export class Episode {
  /** When it began. */
  readonly since: number
  /** How many lines were written. */
  told = 0

  constructor (since: number) {
    this.since = since
  }

  /** When the next line is due. */
  get due (): number {
    return this.since + (STEPS[this.told] ?? 60_000 * (this.told - 1))
  }

  /** Whether a line is due. If so, it is taken as written: a late look writes one line, and not all that were due. */
  takeDue (now: number): boolean {
    if (now < this.due) return false
    while (this.due <= now) this.told++
    return true
  }
}
