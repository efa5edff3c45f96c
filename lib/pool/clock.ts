import type { Clock } from '../../types/pool.js'

// A clock read costs as much as lending a connection, so it is read once in each turn of the event loop: as Node's own timers do, which are no more exact.
let read = 0
let fresh = false
const turn = () => { fresh = false }

/** The process's own time. */
export const systemClock: Clock = {
  now () {
    if (fresh) return read
    fresh = true
    // Not unref'd: then the loop could wait for I/O before it comes round, and the time would stand still for as long.
    setImmediate(turn)
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
