import type { FailureKind } from '../../../types/connector.js'
import { remedies } from '../../engine/failure.js'
import { ago, Episode } from './episode.js'
import * as texts from './texts.js'

/** Outages within this time are counted, in ms. */
const MINUTE = 60_000
/** So many within it are told, and called flapping. */
export const FLAPS = 3

export interface Numbers {
  readonly max: number
  /** Connections that are there. */
  readonly here: number
  readonly pending: number
  /** Requests that were refused, or waited in vain. */
  readonly refused: number
}

export interface Site {
  readonly pool: string
  readonly target: string | undefined
  /** undefined: it is gone. */
  numbers (): Numbers | undefined
  write (
    line: 'pool.down' | 'pool.up' | 'pool.limit' | 'pool.limit.end' | 'pool.error', fields: object, msg: string,
    level?: 'warn'
  ): void
}

export interface Why {
  readonly cause: string
  readonly remedy: string
  readonly code?: unknown
  readonly kind?: FailureKind
}

/** Connections can't be made: from the first create that fails to the next that succeeds. */
export class Outage {
  readonly #site: Site
  #episode: Episode | undefined
  /** What the last line was about. */
  #line: 'pool.down' | 'pool.limit' | 'pool.error' | undefined
  #attempts = 0
  /** How many there were at the last line. */
  #attemptsTold = 0
  #refusedBefore = 0
  #cause: { readonly error: Error, readonly kind: FailureKind | undefined } | undefined
  /** There was no connection when a create failed. */
  #isDown = false
  /** When the last outages began. */
  #outages: number[] = []

  constructor (site: Site) {
    this.#site = site
  }

  /** Returns when to look. */
  failed (error: Error, kind: FailureKind | undefined, now: number): number {
    const numbers = this.#site.numbers()
    this.#attempts++
    if (this.#episode === undefined) {
      this.#cause = undefined
      this.#episode = new Episode(now)
      this.#refusedBefore = numbers?.refused ?? 0
    }
    // Within one outage, a failure of a known kind says more than the reset that comes of the same thing.
    if (kind !== undefined || this.#cause?.kind === undefined) this.#cause = { error, kind }
    if (!this.#isDown && numbers?.here === 0) {
      this.#isDown = true
      this.#outages = [...this.#outages.filter((at) => now - at < MINUTE), now]
    }
    return this.#episode.due
  }

  /** Creates fail. */
  get goesOn (): boolean {
    return this.#episode !== undefined
  }

  /** How many outages there were within the last minute, one that goes on included. */
  recent (now: number): number {
    return this.#outages.filter((at) => now - at < MINUTE).length
  }

  /** Why connections can't be made, as fields; undefined: they can. */
  get why (): Why | undefined {
    return this.#cause === undefined || this.#episode === undefined ? undefined : this.#why()
  }

  /** A connection was made. */
  connected (now: number): void {
    if (this.#episode === undefined) return
    const outages = this.#isDown ? this.recent(now) : 0
    const lasted = now - this.#episode.since
    const { pool, target } = this.#site
    const about = { ...(target !== undefined && { target }), for: Math.round(lasted), attempts: this.#attempts }
    if (this.#line === 'pool.limit') {
      this.#site.write('pool.limit.end', about, texts.limitEnd(pool, target, lasted, this.#attempts))
    } else if (this.#line === 'pool.down' || outages >= FLAPS) {
      const refused = this.#refused(this.#site.numbers())
      const flaps = outages >= FLAPS
      this.#site.write('pool.up', { ...about, refused, outages, ...(flaps && { flaps, ...this.#why() }) },
        texts.up({ pool, target, for: lasted, attempts: this.#attempts, refused, outages }), flaps ? 'warn' : undefined)
    }
    this.#end()
  }

  /** Returns when to look again. */
  look (now: number): number {
    if (this.#episode === undefined) return Infinity
    if (now < this.#episode.due) return this.#episode.due
    const numbers = this.#site.numbers()
    if (numbers === undefined) return Infinity
    // Where nobody has tried since the last line, nothing is known that is new.
    if (this.#episode.takeDue(now) && this.#attempts > this.#attemptsTold) this.#tell(numbers, now)
    return this.#episode.due
  }

  /** The pool closes, and what was to be told has not been. */
  close (now: number): void {
    const numbers = this.#site.numbers()
    if (this.#episode !== undefined && this.#line === undefined && numbers !== undefined) this.#tell(numbers, now)
    this.#end()
  }

  #tell (numbers: Numbers, now: number): void {
    const { max, here, pending } = numbers
    const { pool, target } = this.#site
    const { error, kind } = this.#cause!
    const { since } = this.#episode!
    const lasted = now - since
    const refused = this.#refused(numbers)
    const attempts = this.#attempts
    this.#attemptsTold = attempts
    this.#line = here === 0 ? 'pool.down' : kind === 'full' ? 'pool.limit' : 'pool.error'
    const about = {
      ...(target !== undefined && { target }),
      since: ago(lasted),
      for: Math.round(lasted),
      attempts,
      refused,
      pending,
      ...this.#why(),
    }
    const cause = error.message
    if (this.#line === 'pool.down') {
      this.#site.write('pool.down', about, texts.down({ pool, target, for: lasted, attempts, refused, pending, cause }))
    } else if (this.#line === 'pool.limit') {
      this.#site.write('pool.limit', { ...about, allowed: here, max }, texts.limit(pool, target, here, max, cause))
    } else this.#site.write('pool.error', { ...about, phase: 'create' }, texts.failed('create', cause), 'warn')
  }

  /** Cause and remedy, as fields. */
  #why (): Why {
    const { error, kind } = this.#cause!
    const { code } = error as { code?: unknown }
    return {
      cause: error.message,
      ...(code !== undefined && { code }),
      ...(kind !== undefined && { kind }),
      remedy: remedies[kind ?? 'other'],
    }
  }

  #refused (numbers: Numbers | undefined): number {
    return Math.max(0, (numbers?.refused ?? 0) - this.#refusedBefore)
  }

  #end (): void {
    this.#episode = undefined
    this.#line = undefined
    this.#attempts = this.#attemptsTold = 0
    this.#isDown = false
  }
}
