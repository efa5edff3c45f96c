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
 * The longest delay of Node's timers, in ms: a longer one fires after 1 ms
 * (https://nodejs.org/api/timers.html#settimeoutcallback-delay-args).
 */
export const LONGEST = 2 ** 31 - 1

export const deadlineExpected = `a number of milliseconds from 1 to ${LONGEST}`

export function isDeadline (ms: unknown): ms is number {
  return isTime(ms) && ms >= 1
}

export const timeExpected = `a number of milliseconds from 0 to ${LONGEST}`

/** A time that 0 turns off. */
export function isTime (ms: unknown): ms is number {
  return typeof ms === 'number' && ms >= 0 && ms <= LONGEST
}

/** What is left of a deadline, in ms, as `isDeadline` wants it: a rounding error may make it longer than it was. */
export function leftOf (deadline: number, now: number): number {
  return Math.min(LONGEST, Math.max(1, deadline - now))
}

/** The delay of a timer that is to fire at a time. A longer one than Node has fires sooner, and must be set again. */
export function delayUntil (at: number, now: number): number {
  return Math.min(LONGEST, Math.max(1, Math.ceil(at - now)))
}

/** A timer that is this late, in ms, shows that the event loop stood still. */
const STALL = 20

/**
 * One timer for many: it rings at the earliest time that it was set to.
 *
 * Where the event loop stood still, timers come before the sockets are read. Then the alarm tells of the stall, and
 * rings one turn later: whatever was answered meanwhile is known by then.
 */
export class Alarm {
  readonly #clock: Clock
  readonly #run: <T>(fn: () => T) => T
  readonly #ring: () => void
  readonly #isAwaited: () => boolean
  readonly #stood: (ms: number) => void
  #timer: Timer | undefined
  #at = Infinity
  /** The timer keeps the process alive. */
  #ref = false
  /** The last timer was late, and nothing was judged. The next one rings, however late it is. */
  #putOff = false

  /**
   * @param run sets the timer, and calls `ring`, in an async context that belongs to no caller
   * @param ring called at the earliest time, or before it where that is further away than a timer of Node can be; all
   * times must be set again
   * @param isAwaited whether somebody waits: then the process stays alive for the timer
   * @param stood called before `ring` where the event loop stood still, with how long
   */
  constructor (
    clock: Clock, run: <T>(fn: () => T) => T, ring: () => void, isAwaited: () => boolean,
    stood: (ms: number) => void = () => {}
  ) {
    this.#clock = clock
    this.#run = run
    this.#ring = ring
    this.#isAwaited = isAwaited
    this.#stood = stood
  }

  /** @param at Infinity: never */
  set (at: number): void {
    if (at >= this.#at || at === Infinity) return
    this.#timer?.cancel()
    this.#at = at
    this.#ref = false
    const now = this.#clock.now(true)
    const ms = delayUntil(at, now)
    this.#timer = this.#run(() => this.#clock.setTimer(() => { this.#due(now + ms) }, ms))
    this.keepAlive()
  }

  #due (at: number): void {
    this.cancel()
    const now = this.#clock.now(true)
    const isLate = now - at >= STALL
    if (isLate) this.#stood(now - at)
    this.#putOff = isLate && !this.#putOff
    if (this.#putOff) this.set(now + 1)
    else this.#run(this.#ring)
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

/**
 * Calls `fn` after `ms` in which the event loop ran: time in which it stood still does not count. For deadlines of what
 * others do; a timer of its own for each.
 */
export function setRunningTimer (clock: Clock, fn: () => void, ms: number): Timer {
  const set = (ms: number): Timer => {
    const due = clock.now(true) + ms
    return clock.setTimer(() => {
      const late = clock.now(true) - due
      if (late < STALL) return fn()
      timer = set(late)
    }, ms)
  }
  let timer = set(ms)
  return { ref: () => { timer.ref() }, unref: () => { timer.unref() }, cancel: () => { timer.cancel() } }
}

interface Sleeper { at: number, readonly isGranted: boolean, readonly since: number, readonly wake: () => void }

/** The time of one engine. */
export class Time {
  // `declare`: see `Room`.
  declare readonly clock: Clock
  /** The time of the last read: the coarse clock of the fast path. */
  declare now: number
  /**
   * For how long, in ms, the event loop is known to have stood still, in all. Seen by late ticks, so a stall is known
   * one turn later, and up to a period of the ticks is missing.
   */
  stalled = 0
  readonly #alarm: Alarm
  readonly #sleepers = new Set<Sleeper>()

  /**
   * @param tick called at the earliest time that was asked for by `arm`
   * @param isAwaited whether somebody waits, besides those who sleep
   * @param stood called, a turn before the tick, where the event loop stood still: with how long
   */
  constructor (
    clock: Clock, run: <T>(fn: () => T) => T, tick: () => void, isAwaited: () => boolean,
    stood: (ms: number) => void = () => {}
  ) {
    this.clock = clock
    this.now = clock.now()
    this.#alarm = new Alarm(clock, run, tick, () => this.#sleepers.size > 0 || isAwaited(), (ms) => {
      const now = this.read()
      this.stalled += ms
      for (const sleeper of this.#sleepers) if (sleeper.isGranted) sleeper.at += Math.min(ms, now - sleeper.since)
      stood(ms)
    })
  }

  /**
   * The time in which the event loop ran, in ms: the clock's, without what it is known to have stood still. A deadline
   * on it is not met by a stall.
   */
  get running (): number {
    return this.read() - this.stalled
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

  /**
   * Resolves after `ms`, or at `end`. The process stays alive until then, or until `cancel`.
   *
   * @param isGranted time in which the event loop stood still does not count
   */
  sleep (ms: number, isGranted = false): { readonly over: Promise<void>, cancel: () => void } {
    let cancel = () => {}
    const over = new Promise<void>((resolve) => {
      const since = this.read()
      const sleeper = { at: since + ms, isGranted, since, wake: resolve }
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
