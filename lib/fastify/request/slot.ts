import type { Lease } from '../../../types/pool.js'
import type { Borrower } from '../../engine/entry.js'
import type { Step } from '../plan.js'
import type { Visit } from '../rules/sticky.js'
import type { Wait } from './wait.js'

/** What pools ask about the request that has a slot. */
export interface Owner {
  /** Nothing tells when whoever uses a connection has ended: the socket was upgraded, or the reply hijacked. */
  readonly isHijacked: boolean
  /** How many bytes have moved, of a body that comes in or a reply that is a stream; undefined: there is neither. */
  readonly moved: number | undefined
}

/**
 * So it is in an app whose handlers take their connections from `app.pools`, and have one more each by default: where
 * all wait for a second one, none comes.
 */
const UNREAD = 'requests that have never read theirs: where handlers take connections from app.pools, or need none, ' +
  'set lease: false (of the plugin or of the pool) and name the pools of other routes in their config.pools.'

/** How many times the hold of a request whose bytes move starts again, unless its route has a hold of its own. */
const RESTARTS = 10

/**
 * A request's place for the connection of one pool.
 *
 * ```
 *           lent             the body is slow
 *   empty --------> held ---------------------> parked
 *                   | ^ ^                         |
 *                   | | '------- lent again ------'
 *         released  | | lent again
 *                   v |
 *                   done <------------------- doubtful
 *                           not in use any more
 * ```
 *
 * A slot is 'parked' from the beginning where the handler reads the body and the connection is taken in `preHandler`. A
 * slot that is 'held' becomes 'doubtful' when the response is cut and the handler may still run; and 'unused', which
 * is 'done' by another name, when the headers of the reply are out and nobody has read its connection. The handler or
 * the pool may end a lease while its slot is 'held': `isOut` sees that.
 */
export class Slot implements Borrower {
  readonly #owner: Owner
  step: Step
  is: 'empty' | 'held' | 'parked' | 'doubtful' | 'unused' | 'done' = 'empty'
  /** Somebody has seen the connection, or asked for it, and may use it until the request ends. */
  touched = false
  /** The last one that was lent; none while the slot is parked. */
  lease: Lease<unknown> | undefined = undefined
  /** The next slot of the request. */
  next: Slot | undefined = undefined
  /** The next lease, while it is waited for: whoever else wants the connection waits for the same one. */
  taking: Promise<Lease<unknown>> | undefined = undefined
  /** The first of those who stand in the pool's line: several, where calls have deadlines or signals of their own. */
  waits: Wait | undefined = undefined
  /** The first of them has been served: the connection is made ready, for all of them. */
  served: Promise<Lease<unknown>> | undefined = undefined
  /** Where the pool is sticky: the acquire that the lease comes from. */
  visit: Visit | undefined = undefined
  /** One of those who wait has asked for the primary. */
  writes = false
  /** When it was first waited for, or lent, in ms of `performance.now()`: set where it may have to come back. */
  since: number | undefined = undefined
  /** The `holdTimeout` of a call of `request.acquire`. */
  asked: number | undefined = undefined
  /** While the body is slow: takes back the offer to lend the connection on. */
  undoOffer: (() => void) | undefined = undefined

  constructor (owner: Owner, step: Step) {
    this.#owner = owner
    this.step = step
  }

  get #isOwn (): boolean {
    return this.asked !== undefined || this.step.ownHold
  }

  get holdTimeout (): number | undefined {
    return this.#owner.isHijacked && !this.#isOwn ? 0 : this.asked ?? this.step.holdTimeout
  }

  get moved (): number | undefined {
    return this.#owner.moved
  }

  get restarts (): number {
    return this.#isOwn ? Infinity : RESTARTS
  }

  get inVain (): string | undefined {
    return this.isUnused ? UNREAD : undefined
  }

  /** Its connection can be used. */
  get isOut (): boolean {
    return this.is === 'held' && !this.lease!.ended
  }

  /** It has a connection that nobody has seen. */
  get isUnused (): boolean {
    return this.is === 'held' && !this.touched
  }

  /** Its next connection is waited for. */
  get isAwaited (): boolean {
    return this.waits !== undefined || this.served !== undefined
  }

  join (wait: Wait): void {
    wait.next = this.waits
    this.waits = wait
  }

  leave (wait: Wait): void {
    wait.end()
    if (this.waits === wait) this.waits = wait.next
    else {
      let other = this.waits
      while (other !== undefined && other.next !== wait) other = other.next
      if (other !== undefined) other.next = wait.next
    }
    wait.next = undefined
  }

  /** Ends all waits for it. */
  abort (reason: unknown): void {
    for (let wait = this.waits; wait !== undefined; wait = wait.next) wait.abort(reason)
  }

  /** Gives its connection back. */
  release (): void {
    if (this.is !== 'held') return
    this.is = 'done'
    this.lease!.release()
  }
}
