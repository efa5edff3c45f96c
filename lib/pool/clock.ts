import type { Clock } from '../../types/pool.js'

/** The process's own time. */
export const systemClock: Clock = {
  now: () => performance.now(),
  setTimer (fn, ms) {
    const timer = setTimeout(fn, ms).unref()
    return {
      ref: () => { timer.ref() },
      unref: () => { timer.unref() },
      cancel: () => { clearTimeout(timer) },
    }
  },
  random: Math.random,
}
