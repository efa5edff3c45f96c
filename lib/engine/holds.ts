import type { DestroyReason } from '../../types/connector.js'
import { EXACT, Hold, MEASURED, type Borrower, type Entry } from './entry.js'
import { label } from './events.js'
import { TICK } from './operations.js'
import type { Parts } from './parts.js'
import { Room } from './room.js'

/** What the watch over holds asks of the engine. */
export interface Site<C> extends Parts<C> {
  /** The pool itself ends a lease. */
  revoke (entry: Entry<C>, reason: DestroyReason): void
}

/**
 * The pool looks this many times within a `holdTimeout`, where it does not tick anyway: when bytes have moved, and that
 * the event loop stood still, is seen by looks only.
 */
const LOOKS = 10

/** Looks after leases that may not be out for as long as they like. */
export class Holds<C> extends Room<C, Site<C>> {
  /** Revokes a lease that is out for too long, and warns before that. Returns when to look again. */
  look (entry: Entry<C>, borrower: Borrower, now: number): number {
    const { holdTimeout = this.options.holdTimeout, moved } = borrower
    if (holdTimeout === 0) return Infinity
    const hold = (entry.more.hold ??= new Hold(this.#beganAt(entry, now)))
    if (moved !== undefined && moved !== hold.moved) {
      hold.moved = moved
      hold.movedAt = now
    }
    const mayRestart = hold.movedAt > hold.since && hold.restarts < borrower.restarts
    if (now >= hold.since + holdTimeout) {
      if (!mayRestart) {
        this.#end(entry, holdTimeout, now)
        return Infinity
      }
      hold.restarts++
      hold.since = hold.movedAt
      hold.warned = false
    }
    const half = hold.since + holdTimeout / 2
    if (now >= half && !hold.warned && !mayRestart) {
      hold.warned = true
      if (this.events.heard.hold) this.events.emit('hold', this.#told(entry, holdTimeout, now))
    }
    return Math.min(now < half ? half : hold.since + holdTimeout, now + Math.max(TICK, holdTimeout / LOOKS))
  }

  /** At the first look, which is one tick behind the loan at most unless the event loop stood still meanwhile. */
  #beganAt ({ takenAt, timed }: Entry<C>, now: number): number {
    // A coarse clock may have been behind at the loan, and no hold may end too early.
    return (timed & (EXACT | MEASURED)) !== 0 ? Math.max(takenAt, now - TICK) : now
  }

  #end (entry: Entry<C>, holdTimeout: number, now: number): void {
    const told = this.#told(entry, holdTimeout, now)
    this.site.revoke(entry, 'overdue')
    if (this.events.heard.overdue) this.events.emit('overdue', told)
  }

  #told ({ id, holder, takenAt }: Entry<C>, holdTimeout: number, now: number) {
    return { id, held: Math.max(0, now - takenAt), holdTimeout, ...label(holder) }
  }
}
