import type { DestroyReason } from '../../types/connector.js'
import { Creator, type Site as CreatorSite } from './create.js'
import { CREATING, type Entry } from './entry.js'
import type { PoolError } from './errors.js'
import * as faults from './faults.js'
import { Openers } from './openers.js'
import type { Phase } from './parts.js'

/** What the supply asks of the engine. */
export interface Site<C> extends CreatorSite<C> {
  readonly phase: Phase
  readonly isSuspended: boolean
  readonly report: { readonly situation: faults.Situation }
}

/**
 * When callers leave the line, all but so many of the creates begun for them are cancelled. Two, so that a flickering load
 * still grows the pool.
 */
const SPARE = 2

/** Which connections are needed: for those who wait, for `min`, for those who open the pool. */
export class Supply<C> {
  readonly #site: Site<C>
  readonly creator: Creator<C>
  readonly #openers = new Openers()
  readonly #maxConnecting: number
  /** Somebody has used or opened the pool, so `min` is kept from now on. */
  #started = false

  constructor (site: Site<C>) {
    this.#site = site
    this.#maxConnecting = site.options.maxConnecting ?? Infinity
    this.creator = new Creator(site, {
      made: () => { this.settleOpeners() },
      failed: (cause, error) => { this.rejectOpeners(() => faults.cannotOpen(site.name, cause, error)) },
    })
  }

  get isAwaited (): boolean {
    return this.#openers.size > 0
  }

  start (): void {
    this.#started = true
  }

  /** Starts the creates that are needed. */
  feed (): void {
    while (!this.#site.isSuspended && this.#site.phase !== 'closed' && this.#mayCreate()) this.creator.begin()
  }

  #mayCreate (): boolean {
    const { entries, line, owner, phase, time, work } = this.#site
    const { circuit, backoff } = this.creator
    if (entries.total >= entries.max || entries.late >= entries.max) return false
    if (entries.creating >= Math.min(this.#maxConnecting, entries.max)) return false
    if (circuit.state !== 'closed') return this.#mayProbe()
    const missing = phase === 'open' && this.#started ? this.#target - entries.here - entries.coming : 0
    // Where something is in the way of those that are idle, another one would meet it, too.
    const lacking = entries.idle.length > 0 ? 0 : line.size - work.awaited - entries.coming
    if (lacking <= 0 && missing <= 0) return false
    if (backoff.failures > 0 && time.read() < backoff.retryAt) {
      time.arm(backoff.retryAt)
      return false
    }
    return owner?.mayCreate() ?? true
  }

  /**
   * While the circuit is not closed: one create at a time, also where nobody waits for it. Those begun before the circuit
   * opened do not count.
   */
  #mayProbe (): boolean {
    const { entries, line, owner, phase, time } = this.#site
    const { circuit } = this.creator
    if (circuit.state === 'half-open' && entries.creating > 0) return false
    if (phase !== 'open' && line.size === 0) return false
    if (time.read() < circuit.retryAt) {
      time.arm(circuit.retryAt)
      return false
    }
    return owner?.mayCreate() ?? true
  }

  /** There is no connection, and there won't be one soon. */
  get isHopeless (): boolean {
    const { entries, isSuspended, phase, time } = this.#site
    const { circuit } = this.creator
    if (circuit.state === 'closed' || entries.here > 0 || isSuspended) return false
    // A pool that drains creates nothing for itself: somebody who waits must be there when it is time to try.
    return phase === 'open' || (circuit.state === 'open' && time.read() < circuit.retryAt)
  }

  /** How many connections there should be even when nobody waits. */
  get #target (): number {
    return Math.max(this.#site.entries.min, this.#openers.target)
  }

  /** The line is shorter than the number of creates: those who stood in it were served by connections that came back. */
  cancelSpare (): void {
    const { entries, line } = this.#site
    if (entries.coming <= SPARE) return
    const needed = Math.max(SPARE, line.size + Math.max(0, this.#target - entries.here))
    if (entries.coming > needed) this.cancel(needed, 'released')
  }

  /** All creates but the first `kept` are told that they are not needed, and what they still deliver is destroyed. */
  cancel (kept: number, reason: DestroyReason): void {
    const { entries, name, work } = this.#site
    const isWanted = ({ state, creation }: Entry<C>) => state === CREATING && creation!.unwanted === undefined
    for (const entry of [...entries].filter(isWanted).slice(kept)) {
      entries.unwant(entry, reason)
      work.abort(entry, `pool '${name}' no longer needs this connection`)
    }
  }

  /** Resolves when `max(1, min)` connections are there. */
  async open (): Promise<void> {
    this.start()
    const { entries, time } = this.#site
    const opened = this.#openers.join(Math.max(1, entries.min))
    this.settleOpeners()
    this.#site.pump()
    time.keepAlive()
    await opened
  }

  settleOpeners (): void {
    if (this.#openers.size === 0) return
    const { backend: { driver }, entries, events, time } = this.#site
    const ready = this.#openers.take(entries.here, entries.max)
    if (ready.length > 0 && events.hears('open')) events.emit('open', { ...(driver !== undefined && { driver }) })
    for (const resolve of ready) resolve()
    // Nothing is created any more, until one comes back that is late; that may be never.
    if (entries.late >= entries.max) this.rejectOpeners(() => this.connectError)
    else time.keepAlive()
  }

  rejectOpeners (why: () => Error): void {
    this.#openers.reject(why)
    this.#site.time.keepAlive()
  }

  get connectError (): PoolError {
    const { report: { situation }, time } = this.#site
    const { backoff, lastFailure } = this.creator
    return faults.cannotConnect(situation, lastFailure, (backoff.retryAt - time.now) / 1000)
  }

  get circuitError (): PoolError {
    const { name, options, time } = this.#site
    const { circuit, lastFailure } = this.creator
    const { openFor } = options.circuit as { readonly openFor: number }
    return faults.circuitOpen(name, openFor, lastFailure, (circuit.retryAt - time.now) / 1000)
  }
}
