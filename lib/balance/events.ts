import type { PoolEventName, PoolEvents, PoolListener } from '../../types/pool.js'

type Own = (event: never) => unknown

/** Who listens to what is told of several targets as one. */
export class Listeners {
  readonly #lists = new Map<PoolEventName, readonly Own[]>()
  readonly #run: <T>(fn: () => T) => T
  readonly #scrub: (error: unknown) => Error
  readonly #report: (error: unknown) => void

  /**
   * @param run calls a listener in an async context of its own
   * @param report where goes what a listener throws: to those of `error`
   */
  constructor (run: <T>(fn: () => T) => T, scrub: (error: unknown) => Error, report: (error: unknown) => void) {
    this.#run = run
    this.#scrub = scrub
    this.#report = report
  }

  emit<E extends PoolEventName> (name: E, event: PoolEvents[E]): void {
    const frozen = Object.freeze(event) as never
    for (const listener of this.#lists.get(name) ?? []) {
      const failed = (error: unknown) => {
        // What the error listener throws can't go to the error listener.
        if (name === 'error') process.emitWarning(this.#scrub(error))
        else this.#report(error)
      }
      // At once, and whatever it throws or rejects with.
      this.#run(() => { new Promise((resolve) => { resolve(listener(frozen)) }).catch(failed) })
    }
  }

  /** Returns its own undo. */
  add<E extends PoolEventName> (name: E, listener: PoolListener<E>): () => void {
    // Its own function, so that the same listener may be added, and taken off, twice.
    const own: Own = (event) => listener(event)
    this.#lists.set(name, [...this.#lists.get(name) ?? [], own])
    return () => { this.#lists.set(name, (this.#lists.get(name) ?? []).filter((other) => other !== own)) }
  }

  clear (): void {
    this.#lists.clear()
  }
}
