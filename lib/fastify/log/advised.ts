import type { Advice } from '../../../types/fastify.js'

/** Before that, a pool is too young for advice in the log, in ms. */
const YOUNG = 600_000
const HOUR = 3_600_000
/** So often those who hold connections are looked at while somebody waits, in ms. */
const PACE = 10_000

/** What advice asks of its pool. */
export interface AdvisedSite {
  /** Somebody waits for a connection. */
  isShort (): boolean
  /** Looks at who holds connections. */
  look (now: number): void
  advice (now: number): readonly Advice[]
  write (advice: Advice): void
}

/**
 * When a pool's advice is written: at most hourly, and not in its first ten minutes. Where nobody waits, none is
 * needed: a timer is set only behind a shortage. Its methods return when to look again.
 */
export class Advised {
  readonly #site: AdvisedSite
  /** When the next advice may be written. */
  #due: number
  /** When to look at the holders again; Infinity: nobody waits. */
  #next = Infinity
  /** There was a shortage since advice was last asked for. */
  #open = false

  constructor (site: AdvisedSite, now: number) {
    this.#site = site
    this.#due = now + YOUNG
  }

  /** All connections are used, and somebody waits. */
  overflow (now: number): number {
    this.#open = true
    this.#site.look(now)
    if (this.#next === Infinity) this.#next = now + PACE
    return Math.min(this.#next, Math.max(this.#due, now))
  }

  look (now: number): number {
    if (now >= this.#next) {
      this.#next = this.#site.isShort() ? now + PACE : Infinity
      if (this.#next !== Infinity) this.#site.look(now)
    }
    if (this.#open && now >= this.#due) {
      const all = this.#site.advice(now)
      for (const advice of all) this.#site.write(advice)
      if (all.length > 0) this.#due = now + HOUR
      // Where nothing can be said yet, and somebody waits, it may be soon.
      else if (this.#next !== Infinity) this.#due = now + 6 * PACE
      this.#open = this.#next !== Infinity
    }
    return Math.min(this.#next, this.#open ? this.#due : Infinity)
  }
}
