import { setTimeout as pause } from 'node:timers/promises'
import { isBusy } from './dialect.js'

/** In ms: the longest between two attempts. */
const longestPause = 25
/**
 * In ms: how long a COMMIT is tried. Nothing from outside ends it, and a response waits for it. With a WAL it finds
 * nobody in its way; without one (a file system that has none) it waits for readers, whose locks are short.
 */
const commitPatience = 1000

/**
 * Tries again while somebody else has the lock, from JS: SQLite would wait by blocking the event loop. At the signal it
 * fails as the last attempt did.
 */
export async function patiently (attempt: () => unknown, signal?: AbortSignal): Promise<void> {
  for (let ms = 1; ; ms = Math.min(ms * 2, longestPause)) {
    try {
      attempt()
      return
    } catch (error) {
      if (!isBusy(error)) throw error
      signal ??= AbortSignal.timeout(commitPatience)
      try {
        await pause(ms, undefined, { signal })
      } catch {
        // The signal has no more to tell than that time is up.
        throw error
      }
    }
  }
}

/** In ms: for how long the lock is asked for before each loan, once another process was seen to write. */
const wariness = 60_000
/** At one loan of so many the file is looked at: it costs more than all the rest of a loan. */
const loansPerLook = 64

/** Whether anybody but this handle writes to its file: other processes, and other pools of this one. */
export class Rivals {
  readonly #version: () => unknown
  #last: unknown
  #loans = 0
  /** As `performance.now()`. 0: nobody was seen. */
  #until = 0

  /** @param version what is another value after each write of others: `PRAGMA data_version` */
  constructor (version: () => unknown) {
    this.#version = version
  }

  /** What was written until now is of no interest. */
  begin (): void {
    this.#last = this.#version()
  }

  /** Somebody had the lock. */
  met (): void {
    this.#until = performance.now() + wariness
  }

  look (): void {
    try {
      const version = this.#version()
      if (version !== this.#last) this.met()
      this.#last = version
    } catch (error) {
      if (!isBusy(error)) throw error
      this.met()
    }
  }

  /** Asked at each loan: whether somebody wrote within the last minute. */
  get about (): boolean {
    if (++this.#loans % loansPerLook === 0) this.look()
    if (this.#until === 0) return false
    if (performance.now() > this.#until) this.#until = 0
    return this.#until !== 0
  }
}
