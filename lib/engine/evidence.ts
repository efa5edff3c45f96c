import type { Entry } from './entry.js'
import type { Parts } from './parts.js'
import { Room } from './room.js'

/** For how long the pool goes on learning how its server is, after it was last asked, in ms. */
const INTEREST = 60_000

/** What was heard of the server last. */
export type News =
  | { readonly is: 'none' }
  | { readonly is: 'good' }
  /** @param since when it was bad first, in ms since 1970 */
  | { readonly is: 'bad', readonly what: string, readonly since: number }

/**
 * What is known of the server: from creates, validations and deaths. Where the last news is bad and no connection is
 * left, the pool creates one to learn more, but only while somebody asks: databases that scale to zero stay asleep.
 */
export class Evidence<C> extends Room<C, Parts<C>> {
  news: News = { is: 'none' }
  /** When `health()` was called last. */
  #askedAt = -Infinity
  /** When a caller was last turned away, or waited in vain. */
  #missedAt = -Infinity
  /** Connections that the server has ended since they were idle for too long: it is well. */
  readonly #idledOut = new WeakSet<Entry<C>>()

  asked (): void {
    this.#askedAt = this.time.read()
  }

  missed (): void {
    this.#missedAt = this.time.now
  }

  good (): void {
    if (this.news.is !== 'good') this.news = { is: 'good' }
  }

  /** @param what happened, for whoever reads `health()`; scrubbed */
  bad (what: string): void {
    const since = this.news.is === 'bad' ? this.news.since : Date.now()
    this.news = { is: 'bad', what, since }
  }

  /** The driver tells of a death, and why. */
  died (entry: Entry<C>, cause: unknown): void {
    try {
      if (this.backend.isIdleTimeout?.(cause) === true) this.#idledOut.add(entry)
    } catch (error) {
      this.events.report(error, 'death')
    }
  }

  /** A connection is destroyed since it is dead. */
  lost (entry: Entry<C>): void {
    if (this.#idledOut.has(entry)) this.good()
    else this.bad(`a connection died: ${entry.broken?.message ?? 'it is broken'}`)
  }

  /** A connection is here, and is not known to be dead. */
  get works (): boolean {
    for (const entry of this.entries) if (entry.isHere && entry.broken === undefined) return true
    return false
  }

  /** A create is wanted though nobody may need its connection: it tells how the server is. */
  get isWanted (): boolean {
    if (this.news.is !== 'bad' || this.entries.creating > 0 || this.works) return false
    return this.time.read() - this.#askedAt < INTEREST
  }

  /** Somebody asked for the pool's health, or for a connection in vain, within the last minute. */
  get isOfInterest (): boolean {
    return this.time.read() - Math.max(this.#askedAt, this.#missedAt) < INTEREST
  }
}
