/** The time for which lines are counted, in ms. */
const SPAN = 10_000
/** How many lines of one name there are at most within that time, but for those that have a pace of their own. */
const EACH = 3
/** How many lines of all names together. */
const ALL = 10

/** Writes a line. @param omitted how many lines of its name were left out before it */
export type Write = (omitted: number) => void

/**
 * Bounds how much is written about one pool, whatever happens. What is too much is left out; the last line that was is
 * written as soon as there is room, with how many others there were.
 */
export class Throttle {
  readonly #written: Array<{ readonly name: string, readonly at: number }> = []
  readonly #waiting = new Map<string, { write: Write, omitted: number, paced: boolean }>()

  /** @param paced its lines come one a second at most: it is bounded by the sum only */
  add (name: string, now: number, write: Write, paced = false): void {
    const waiting = this.#waiting.get(name)
    if (waiting === undefined && this.hasRoom(name, now, paced)) return this.#write(name, now, write, 0)
    this.#waiting.set(name, { write, omitted: waiting === undefined ? 0 : waiting.omitted + 1, paced })
  }

  /** Writes what waits, where there is room. Returns when to call this again. */
  look (now: number): number {
    for (const [name, { write, omitted, paced }] of this.#waiting) {
      if (!this.hasRoom(name, now, paced)) continue
      this.#waiting.delete(name)
      this.#write(name, now, write, omitted)
    }
    return this.#waiting.size === 0 ? Infinity : now + 1000
  }

  /** The pool is closed: writes what waits. */
  end (now: number): void {
    for (const [name, { write, omitted }] of this.#waiting) this.#write(name, now, write, omitted)
    this.#waiting.clear()
  }

  #write (name: string, at: number, write: Write, omitted: number): void {
    this.#written.push({ name, at })
    write(omitted)
  }

  /** Whether a line of that name may be written now. */
  hasRoom (name: string, now: number, paced = false): boolean {
    while (this.#written.length > 0 && now - this.#written[0]!.at >= SPAN) this.#written.shift()
    if (this.#written.length >= ALL) return false
    return paced || this.#written.filter((line) => line.name === name).length < EACH
  }
}
