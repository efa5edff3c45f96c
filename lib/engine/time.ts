import type { Clock, Timer } from '../../types/pool.js'

// A clock read costs as much as lending a connection. So the clock is read once in each turn of the event loop, as
// Node's own timers do, which are no more exact.
let read = 0
let fresh = false
// Kept from the start: if a test of the app replaced it by a fake that never fires, this clock would stand still.
const { setImmediate } = globalThis
const turn = () => { fresh = false }

/** The process's own time. */
export const systemClock: Clock = {
  now (exactly = false) {
    if (fresh && !exactly) return read
    // Not unref'd: else the event loop could wait for I/O first, and the clock would stand still meanwhile.
    if (!fresh) setImmediate(turn)
    fresh = true
    return (read = performance.now())
  },
  setTimer (fn, ms) {
    const timer = setTimeout(() => {
      fresh = false
      fn()
    }, ms).unref()
    return {
      ref: () => { timer.ref() },
      unref: () => { timer.unref() },
      cancel: () => { clearTimeout(timer) },
    }
  },
  random: Math.random,
}

/**
 * The longest delay of Node's timers: a longer one fires after 1 ms
 * (https://nodejs.org/api/timers.html#settimeoutcallback-delay-args).
 */
export const longest = 2 ** 31 - 1

export function isDeadline (ms: unknown): ms is number {
  return isTime(ms) && ms >= 1
}

/** A time that 0 turns off. */
export function isTime (ms: unknown): ms is number {
  return typeof ms === 'number' && ms >= 0 && ms <= longest
}

/** One timer for many: it rings at the earliest time that it was set to. */
export class Alarm {
  readonly #clock: Clock
  readonly #run: <T>(fn: () => T) => T
  readonly #ring: () => void
  readonly #isAwaited: () => boolean
  #timer: Timer | undefined
  #at = Infinity
  /** The timer keeps the process alive. */
  #ref = false

  /**
   * @param run sets the timer, and calls `ring`, in an async context that belongs to no caller
   * @param ring called at the earliest time; later times must be set again
   * @param isAwaited whether somebody waits: then the process stays alive for the timer
   */
  constructor (clock: Clock, run: <T>(fn: () => T) => T, ring: () => void, isAwaited: () => boolean) {
    this.#clock = clock
    this.#run = run
    this.#ring = ring
    this.#isAwaited = isAwaited
  }

  /** @param at Infinity: never */
  set (at: number): void {
    if (at >= this.#at || at === Infinity) return
    this.#timer?.cancel()
    this.#at = at
    this.#ref = false
    const ms = Math.max(1, Math.ceil(at - this.#clock.now()))
    this.#timer = this.#run(() => this.#clock.setTimer(() => {
      this.cancel()
      this.#run(this.#ring)
    }, ms))
    this.keepAlive()
  }

  cancel (): void {
    this.#timer?.cancel()
    this.#timer = undefined
    this.#at = Infinity
  }

  /** To be called when somebody begins to wait, and when nobody does any more. */
  keepAlive (): void {
    if (this.#timer === undefined) return
    const wanted = this.#isAwaited()
    if (wanted === this.#ref) return
    this.#ref = wanted
    if (wanted) this.#timer.ref()
    else this.#timer.unref()
  }
}

interface Sleeper { readonly at: number, readonly wake: () => void }

/** The time of one engine. */
export class Time {
  // `declare`: see `Room`.
  declare readonly clock: Clock
  /** The time of the last read: the coarse clock of the fast path. */
  declare now: number
  readonly #alarm: Alarm
  readonly #sleepers = new Set<Sleeper>()

  /**
   * @param tick called at the earliest time that was asked for by `arm`
   * @param isAwaited whether somebody waits, besides those who sleep
   */
  constructor (clock: Clock, run: <T>(fn: () => T) => T, tick: () => void, isAwaited: () => boolean) {
    this.clock = clock
    this.now = clock.now()
    this.#alarm = new Alarm(clock, run, tick, () => this.#sleepers.size > 0 || isAwaited())
  }

  /** @param exactly even where it was read before in this turn of the event loop */
  read (exactly?: boolean): number {
    return (this.now = this.clock.now(exactly))
  }

  random (): number {
    return this.clock.random()
  }

  /** Asks for a tick at this time, or before it. */
  arm (at: number): void {
    this.#alarm.set(at)
  }

  keepAlive (): void {
    this.#alarm.keepAlive()
  }

  /** Resolves after `ms`, or at `end`. The process stays alive until then, or until `cancel`. */
  sleep (ms: number): { readonly over: Promise<void>, cancel: () => void } {
    let cancel = () => {}
    const over = new Promise<void>((resolve) => {
      const sleeper = { at: this.read() + ms, wake: resolve }
      cancel = () => {
        this.#sleepers.delete(sleeper)
        this.keepAlive()
      }
      this.#sleepers.add(sleeper)
      this.arm(sleeper.at)
      this.keepAlive()
    })
    return { over, cancel }
  }

  /** Wakes those whose time has come, and arms for the others. */
  wakeSleepers (now: number): void {
    for (const sleeper of this.#sleepers) {
      if (sleeper.at > now) this.arm(sleeper.at)
      else if (this.#sleepers.delete(sleeper)) sleeper.wake()
    }
  }

  /** Ends all sleeps and ticks. */
  end (): void {
    for (const { wake } of this.#sleepers) wake()
    this.#sleepers.clear()
    this.#alarm.cancel()
  }
}
