import type { Clock, Timer } from '../../types/pool.js'

interface Due { at: number, order: number, fn: () => void, ref: boolean }

/** A clock whose time is a matter of steps, and whose chance comes from a seed. */
export class VirtualClock implements Clock {
  #now = 0
  #order = 0
  #seed: number
  readonly #due = new Set<Due>()

  constructor (seed = 1) {
    this.#seed = seed
  }

  now (): number {
    return this.#now
  }

  /** Mulberry32: small, and good enough for jitter. */
  random (): number {
    this.#seed = (this.#seed + 0x6d2b79f5) | 0
    let x = Math.imul(this.#seed ^ (this.#seed >>> 15), 1 | this.#seed)
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32
  }

  setTimer (fn: () => void, ms: number): Timer {
    const due: Due = { at: this.#now + ms, order: this.#order++, fn, ref: false }
    this.#due.add(due)
    return {
      ref: () => { due.ref = true },
      unref: () => { due.ref = false },
      cancel: () => { this.#due.delete(due) },
    }
  }

  /** The event loop stands still for `ms`: time passes, and timers that fall due meanwhile come late. */
  stall (ms: number): void {
    this.#now += ms
  }

  /** Timers that are set; `ref` counts those that keep the process alive. */
  get timers (): { readonly set: number, readonly ref: number } {
    return { set: this.#due.size, ref: [...this.#due].filter(({ ref }) => ref).length }
  }

  /**
   * Lets `ms` pass: each timer runs at its own time, and what it sets off runs before the next one.
   *
   * @param rested called each time that is so, with nothing under way
   */
  async advance (ms: number, rested: () => void = () => {}): Promise<void> {
    const end = this.#now + ms
    await settle()
    while (true) {
      const next = [...this.#due].filter(({ at }) => at <= end).sort((a, b) => a.at - b.at || a.order - b.order)[0]
      if (next === undefined) break
      this.#due.delete(next)
      // Behind a stall a timer is late.
      this.#now = Math.max(this.#now, next.at)
      next.fn()
      await settle()
      rested()
    }
    this.#now = Math.max(this.#now, end)
    await settle()
  }
}

/** Until every promise that can go on has gone on. */
export function settle (): Promise<void> {
  return new Promise((resolve) => { setImmediate(resolve) })
}
