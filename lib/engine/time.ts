import type { Clock } from '../../types/pool.js'

// A clock read costs as much as lending a connection, so it is read once in each turn of the event loop: as Node's own timers do, which are no more exact.
let read = 0
let fresh = false
// As it is now: where a test of the app fakes it and never lets it fire, the time would stand still for good.
const { setImmediate } = globalThis
const turn = () => { fresh = false }

/** The process's own time. */
export const systemClock: Clock = {
  now (exactly = false) {
    if (fresh && !exactly) return read
    // Not unref'd: then the loop could wait for I/O before it comes round, and the time would stand still for as long.
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

/** Node fires a timer of more than 2^31 - 1 ms at once (its documentation of setTimeout). */
export function isDeadline (ms: unknown): ms is number {
  return typeof ms === 'number' && ms >= 1 && ms <= 2 ** 31 - 1
}
