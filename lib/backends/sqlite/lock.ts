import { setTimeout as pause } from 'node:timers/promises'
import { isBusy } from './dialect.js'

/** The longest pause between two attempts, in ms. */
const longestPause = 25
/**
 * How long a COMMIT is tried, in ms. Nothing else ends it, and a response waits for it. With a WAL nobody is in its
 * way; without one (on a file system that has none) it waits for readers, whose locks are short.
 */
const commitPatience = 1000

/**
 * Tries again while somebody else has the lock, without blocking the event loop as SQLite would. At the signal it
 * rejects as the last attempt did.
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
        // The signal only says that time is up.
        throw error
      }
    }
  }
}

/** How long after another process was seen to write the lock is looked for before each loan, in ms. */
const wariness = 60_000
/** The file is looked at once in so many loans, since that costs more than all else of a loan. */
const loansPerLook = 64

/** Whether anybody but this handle writes to its file: other processes, and other pools of this one. */
export class Rivals {
  readonly #version: () => unknown
  #last: unknown
  #loans = 0
  /** When the wariness ends, as `performance.now()`. 0: nobody was seen to write. */
  #until = 0

  /** @param version a value that changes with each write of others: `PRAGMA data_version` */
  constructor (version: () => unknown) {
    this.#version = version
  }

  /** Begins to look: earlier writes don't count. */
  begin (): void {
    this.#last = this.#version()
  }

  /** Somebody else had the lock, or wrote. */
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

  /** Whether somebody else wrote within the last minute. Read at each loan. */
  get about (): boolean {
    if (++this.#loans % loansPerLook === 0) this.look()
    if (this.#until === 0) return false
    if (performance.now() > this.#until) this.#until = 0
    return this.#until !== 0
  }
}
