import type { Holder } from '../../../types/pool.js'
import { ago, Episode } from './episode.js'
import { heldBy } from './held.js'
import type { Why } from './outage.js'
import * as texts from './texts.js'

/** How often the pool is looked at while its connections are all used, in ms. */
const LOOK = 250
/** So long somebody must be served without a wait, in ms, until it is over: it often begins again at once. */
const CALM = 1000

/** What is used up: a pool, one of its targets, or the share of one key. */
export interface Used {
  readonly max: number
  /** Connections that are there. */
  readonly here: number
  readonly creating: number
  readonly pending: number
  /** Connections that are free now. */
  readonly free: number
  readonly acquired: number
  readonly released: number
  readonly refused: number
  readonly timeouts: number
}

/** What it asks, and how it writes. */
export interface Site {
  /** undefined: it is gone, or nobody knows; 'over': all of it was given back. */
  used (): Used | 'over' | undefined
  holders (): readonly Holder[]
  /** Why there are no more connections; undefined: more can be made, up to `max`. */
  failing (): Why | undefined
  write (line: 'pool.exhausted' | 'pool.exhausted.end', fields: object, msg: string): void
}

/** Whether all connections are used while somebody waits. */
export class Exhausted {
  readonly #site: Site
  readonly #about: { readonly target?: string, readonly bulkhead?: string }
  #episode: Episode | undefined
  /** The numbers when it began. */
  #before: Used | undefined
  /** The numbers at the last look. */
  #last: Used | undefined
  #calmSince: number | undefined
  /** How many waited at most. */
  #most = 0
  /** How many connections there were at most: of a share, what is used of it. */
  #max = 0

  constructor (site: Site, about: { readonly target?: string, readonly bulkhead?: string }) {
    this.#site = site
    this.#about = about
  }

  /** All are used, and somebody begins to wait. Returns when to look. */
  begins (now: number): number {
    if (this.#episode !== undefined && (this.#episode.told > 0 || this.#about.bulkhead !== undefined)) return Infinity
    // The line was empty in between: what was before does not count.
    this.#episode = new Episode(now)
    const used = this.#site.used()
    this.#before = used === 'over' ? undefined : used
    return this.#about.bulkhead === undefined ? this.#episode.due : now + LOOK
  }

  /** Returns when to look again. */
  look (now: number): number {
    const episode = this.#episode
    if (episode === undefined) return Infinity
    if (episode.told === 0 && this.#about.bulkhead === undefined && now < episode.due) return episode.due
    const used = this.#site.used()
    if (used === undefined) return this.#forget()
    if (used === 'over') {
      return episode.told > 0 && this.#last !== undefined ? this.#end(this.#last, now) : this.#forget()
    }
    this.#most = Math.max(this.#most, used.pending)
    this.#max = Math.max(this.#max, used.max)
    if (episode.told === 0) {
      if (used.pending === 0 || used.free > 0) return this.#forget()
      if (now < episode.due) return now + LOOK
    } else if (this.#isCalm(used)) {
      this.#calmSince ??= now
      if (now - this.#calmSince >= CALM) return this.#end(used, this.#calmSince)
    } else this.#calmSince = undefined
    this.#last = used
    if (this.#calmSince === undefined && episode.takeDue(now)) this.#tell(used, now)
    return now + LOOK
  }

  /** The pool is closed. */
  close (now: number): void {
    const seen = this.#site.used()
    const used = seen === 'over' || seen === undefined ? this.#last : seen
    if (this.#episode !== undefined && this.#episode.told > 0 && used !== undefined) this.#end(used, now)
  }

  #isCalm ({ pending, free, released }: Used): boolean {
    if (pending > 0) return free > 0
    // Nobody waits. Where nothing was given back either, they hold on: the next one who comes waits.
    return free > 0 || released > (this.#last?.released ?? 0) || this.#calmSince !== undefined
  }

  #forget (): number {
    this.#episode = undefined
    this.#most = this.#max = 0
    return Infinity
  }

  #rate (used: Used, now: number): number {
    const seconds = (now - this.#episode!.since) / 1000
    return Math.round((used.acquired - (this.#before ?? used).acquired) / seconds * 10) / 10
  }

  #tell (used: Used, now: number): void {
    const { since } = this.#episode!
    const { max, here, creating, pending } = used
    const failing = here < max ? this.#site.failing() : undefined
    const { target, bulkhead } = this.#about
    const held = heldBy(this.#site.holders())
    const lasted = now - since
    const rate = this.#rate(used, now)
    const { msg, cause, remedy } = texts.exhausted({
      max, here, creating, pending, for: lasted, rate, held, target, bulkhead, failing,
    })
    this.#site.write('pool.exhausted', {
      ...this.#about,
      since: ago(lasted),
      for: Math.round(lasted),
      max,
      creating,
      pending,
      rate,
      ...this.#failed(used),
      held,
      ...failing,
      cause,
      remedy,
    }, msg)
  }

  #failed (used: Used): { readonly timeouts: number, readonly refused: number } {
    const before = this.#before ?? used
    // A share's counters begin anew when all of it was given back.
    const grown = (name: 'timeouts' | 'refused') => Math.max(0, used[name] - before[name])
    return { timeouts: grown('timeouts'), refused: grown('refused') }
  }

  #end (used: Used, at: number): number {
    const lasted = at - this.#episode!.since
    const max = this.#about.bulkhead === undefined ? used.max : this.#max
    const [rate, most, failed] = [this.#rate(used, at), this.#most, this.#failed(used)]
    this.#site.write('pool.exhausted.end', {
      ...this.#about, for: Math.round(lasted), max, most, rate, ...failed,
    }, texts.exhaustedEnd({ ...this.#about, for: lasted, max, most, rate, ...failed }))
    this.#calmSince = undefined
    return this.#forget()
  }
}
