import type { DestroyReason } from '../../types/connector.js'
import type { HolderLabel } from '../../types/pool.js'
import { Watch, type Entry } from './entry.js'
import { label } from './events.js'
import type { Waiter } from './line.js'
import type { Parts } from './parts.js'
import { Room } from './room.js'
import { callerStack } from './stack.js'

/** What the search for leaks asks of the engine. */
export interface Site<C> extends Parts<C> {
  /** The pool itself ends a lease. */
  revoke (entry: Entry<C>, reason: DestroyReason): void
}

/** Looks for leases that are never released. */
export class Leaks<C> extends Room<C, Site<C>> {
  readonly #registry: FinalizationRegistry<{ readonly entry: Entry<C>, readonly turn: number }> | undefined
  /** Where those who wait have called. */
  readonly #callers = new WeakMap<Waiter<C>, string>()

  constructor (site: Site<C>) {
    super(site)
    if (site.options.leakAfter === 0) return
    this.#registry = new FinalizationRegistry(({ entry, turn }) => {
      if (entry.turn === turn) this.#lose(entry)
    })
  }

  get areSought (): boolean {
    return this.#registry !== undefined
  }

  /** Where the calling code is. A stack costs some us, so none is taken before something has leaked. */
  get caller (): string | undefined {
    return this.areSought && this.books.leaked > 0 ? callerStack() : undefined
  }

  /** A caller begins to wait: when it is served, its code is not on the stack any more. */
  joined (waiter: Waiter<C>): void {
    const { caller } = this
    if (caller !== undefined) this.#callers.set(waiter, caller)
  }

  /** A lease begins. @param waiter the caller, where it has waited */
  begin (lease: object, entry: Entry<C>, waiter: Waiter<C> | undefined): void {
    if (this.#registry === undefined) return
    this.#registry.register(lease, { entry, turn: entry.turn })
    entry.more.watch = new Watch(waiter === undefined ? this.caller : this.#callers.get(waiter))
  }

  /** Reports a lease that has been out for too long. Returns when to look again. */
  look (entry: Entry<C>, now: number): number {
    const watch = entry.extras?.watch
    if (watch === undefined || watch.reported) return Infinity
    const leakAt = entry.takenAt + this.options.leakAfter
    if (leakAt > now) return leakAt
    this.books.leaked++
    watch.reported = true
    const { id, holder, takenAt } = entry
    if (this.events.heard.leak) {
      this.events.emit('leak', { id, held: now - takenAt, ...label(holder), ...watch.told })
    }
    if (watch.lost) this.site.revoke(entry, 'leaked')
    return Infinity
  }

  /** A lease has ended that was reported. @param taken why the pool itself has ended it */
  ended (watch: Watch, lease: { id: number, held: number, holder?: HolderLabel }, taken?: DestroyReason): void {
    if (!this.events.heard.unleak) return
    this.events.emit('unleak', { ...lease, ...watch.told, ...(taken !== undefined && { taken }) })
  }

  /** The lease object was garbage collected, and the lease was not released. */
  #lose (entry: Entry<C>): void {
    const watch = entry.more.watch!
    watch.lost = true
    if (watch.reported) this.site.revoke(entry, 'leaked')
  }
}
