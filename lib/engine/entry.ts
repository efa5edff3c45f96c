import type { DestroyReason } from '../../types/connector.js'
import type { HolderLabel } from '../../types/pool.js'
import type { Waiter } from './line.js'
import type { Commit, LeaseTransactions, Phase } from './transaction.js'

// The states of a connection. Its entry is in exactly one.
export const CREATING = 0
/** In the idle list. */
export const IDLE = 1
export const LENT = 2
/** `onAcquire` runs on it. */
export const PREPARING = 3
/** It is asked whether it is alive: for somebody who waits, to keep it alive, or for `health()`. */
export const VALIDATING = 4
/** Its lease has ended, and it is made clean for the next one. */
export const RESETTING = 5
export const CLOSING = 6
/** Its create or destroy is past the deadline: it does not count against `max`, and its late answer has an owner. */
export const LATE = 7
export const GONE = 8

export type State =
  | typeof CREATING | typeof IDLE | typeof LENT | typeof PREPARING | typeof VALIDATING | typeof RESETTING
  | typeof CLOSING | typeof LATE | typeof GONE

/** What is under way on a connection that is not at rest: it has a deadline, and a room of the engine that owns it. */
export class Operation<C> {
  /** What the connector does to a transaction of the lease that is out. */
  phase: Phase | undefined
  deadline = Infinity
  /** The connection is validated because somebody waits. */
  awaited = false
  /** The acquire that waits while `onAcquire` prepares this connection. */
  prepared: Waiter<C> | undefined
  /** Of the phase 'commit'. */
  commit: Commit | undefined
  controller: AbortController | undefined

  get signal (): AbortSignal {
    return (this.controller ??= new AbortController()).signal
  }
}

/** What is known of a connection until it is made. */
export class Creation {
  /** `create` has delivered the connection. */
  delivered = false
  /**
   * Set from the deadline until the failure is reported: called once, with the connector's own reason if it gives one.
   */
  explain: ((cause: unknown) => void) | undefined
  /** Why the connection will not be kept. */
  unwanted: DestroyReason | undefined

  /** @param failures how many creates in a row had failed when it began */
  constructor (readonly began: number, readonly failures: number) {}
}

/** What is known of a lease where the pool looks for leaks. */
export class Watch {
  reported = false
  /** The lease object was garbage collected: nobody can release it. */
  lost = false

  constructor (readonly stack: string | undefined) {}

  /** What events tell of it. */
  get told (): { readonly stack?: string } {
    return this.stack === undefined ? {} : { stack: this.stack }
  }
}

/**
 * The pool's record of one connection. There may be thousands: what only some of them need for a while is in objects of
 * its own, and times are whole ms but for `takenAt`.
 */
export class Entry<C> {
  connection: C = undefined as C
  /** What borrowers get: the connection, or what `wrap` made of it. */
  face: C = undefined as C
  /** Only `Entries` changes it. */
  state: State = CREATING
  /**
   * Counts the beginnings and the ends of leases. A lease knows its turn, so one that has ended can't touch a later
   * one.
   */
  turn = 0
  holder: HolderLabel | undefined
  takenAt = 0
  /** Whether `takenAt` is exact. */
  timed = false
  /** Of the lease that is out, from its first transaction on. */
  transactions: LeaseTransactions<C> | undefined
  watch: Watch | undefined
  /** Called when the lease that is out ends, by whomever. */
  onEnd: (() => void) | undefined
  idleSince = 0
  /** When it was last known to be alive. */
  freshAt = 0
  /** 0: never. */
  expiresAt = 0
  /** An idle connection may be lent without a further look until then. */
  goodUntil = 0
  operation: Operation<C> | undefined
  creation: Creation | undefined
  /** The pool's own reason against lending it again. */
  doomed: DestroyReason | undefined
  /** What it died of. */
  broken: Error | undefined
  /** How long the lease was held that the pool itself ended, in ms: the connection's last one. */
  revokedAfter = 0

  constructor (readonly id: number, public createdAt: number) {}

  /** It is made and not closed: these states share one counter, so a loan changes no count. */
  get isHere (): boolean {
    return this.state >= IDLE && this.state <= RESETTING
  }

  /** How many times it was lent. */
  get uses (): number {
    return (this.turn + 1) >> 1
  }
}

/** The connections of one pool: knows their states, and nothing of policy. */
export class Entries<C> {
  /** So many are kept when nobody waits. */
  min: number
  /** `creating + here + closing` is never more, but for connections that were there when `max` became smaller. */
  max: number
  readonly #all = new Set<Entry<C>>()
  /** The last is the next to be lent; those at the front are left to idle out. */
  readonly idle: Array<Entry<C>> = []
  creating = 0
  /** Idle, lent, or on the way between the two. */
  here = 0
  closing = 0
  late = 0
  #unwanted = 0

  constructor (min: number, max: number) {
    this.min = min
    this.max = max
  }

  /** What counts against `max`. */
  get total (): number {
    return this.creating + this.here + this.closing
  }

  get used (): number {
    return this.here - this.idle.length
  }

  /** Creates whose connection will be kept. */
  get coming (): number {
    return this.creating - this.#unwanted
  }

  [Symbol.iterator] (): IterableIterator<Entry<C>> {
    return this.#all.values()
  }

  /** A create begins. */
  add (entry: Entry<C>): void {
    this.#all.add(entry)
    this.creating++
  }

  /** Any change of state but to `IDLE`. */
  move (entry: Entry<C>, state: Exclude<State, typeof CREATING | typeof IDLE>): void {
    if (entry.state === IDLE) this.#leaveIdle(entry)
    if (entry.state === CREATING && entry.creation!.unwanted !== undefined) this.#unwanted--
    this.#count(entry, -1)
    entry.state = state
    this.#count(entry, 1)
    if (state === GONE) this.#all.delete(entry)
  }

  /**
   * A connection that is here becomes idle.
   *
   * @param since when it was used last, where nobody has used it meanwhile: then it keeps its place among the idle
   */
  rest (entry: Entry<C>, now: number, since?: number): void {
    entry.state = IDLE
    entry.idleSince = since ?? now
    if (since === undefined) this.idle.push(entry)
    else this.idle.splice(this.idle.filter(({ idleSince }) => idleSince <= since).length, 0, entry)
  }

  /** Nobody needs the connection that is being created: it will not be kept. */
  unwant (entry: Entry<C>, reason: DestroyReason): void {
    entry.creation!.unwanted = reason
    this.#unwanted++
  }

  #leaveIdle (entry: Entry<C>): void {
    if (this.idle.at(-1) === entry) this.idle.pop()
    else this.idle.splice(this.idle.indexOf(entry), 1)
  }

  #count ({ state, isHere }: Entry<C>, more: 1 | -1): void {
    if (state === CREATING) this.creating += more
    else if (isHere) this.here += more
    else if (state === CLOSING) this.closing += more
    else if (state === LATE) this.late += more
  }
}
