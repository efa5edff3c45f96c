import type { DestroyReason } from '../../types/connector.js'
import type { HolderLabel } from '../../types/pool.js'
import type { Waiter } from './line.js'
import type { Commit, LeaseTransactions, Phase } from './transaction.js'

// The states of a connection. An entry is in exactly one.
export const CREATING = 0
/** In the idle list. */
export const IDLE = 1
export const LENT = 2
/** `onAcquire` runs on it. */
export const PREPARING = 3
/** The pool asks whether it may be lent: a look at it, or a round trip to the server. */
export const VALIDATING = 4
/** The lease has ended, and the connection is made clean for the next one. */
export const RESETTING = 5
export const CLOSING = 6
/**
 * The create or destroy is past its deadline, or a connection that is destroyed was silent: it does not count against
 * `max`; its late answer is still handled.
 */
export const LATE = 7
export const GONE = 8

/** `takenAt` is exact, and not read from the coarse clock. */
export const EXACT = 1
/** A tick has seen the lease. */
export const SEEN = 2

export type State =
  | typeof CREATING | typeof IDLE | typeof LENT | typeof PREPARING | typeof VALIDATING | typeof RESETTING
  | typeof CLOSING | typeof LATE | typeof GONE

/** What is under way on a connection. It has a deadline; which room of the engine owns it, the state says. */
export class Operation<C> {
  /** What the connector does to a transaction of the lease that is out. */
  phase: Phase | undefined
  deadline = Infinity
  /** When it began, or when the event loop last went on after it had stood still. */
  since = 0
  /** A validation has taken so long that callers do not rely on it (see `Checks`). */
  doubted = false
  /** The event loop stood still for long meanwhile; that time was added to the deadline. */
  stalled = false
  /** The connection is validated because somebody waits. */
  awaited = false
  /** The acquire that waits while `onAcquire` prepares this connection. */
  prepared: Waiter<C> | undefined
  /** Set in the phase 'commit'. */
  commit: Commit | undefined
  controller: AbortController | undefined
  /** Set while the connector does something to a transaction: called when that is given up, with the reason. */
  cut: ((reason: Error) => void) | undefined
  /** Set while the connection is created. */
  creation: Creation | undefined

  get signal (): AbortSignal {
    return (this.controller ??= new AbortController()).signal
  }
}

/** What is known of a connection while it is created. */
export class Creation {
  /** `create` has delivered the connection. */
  delivered = false
  /**
   * Set from the deadline until the failure is reported: called once, with the connector's own reason if it gives one.
   */
  explain: ((cause: unknown) => void) | undefined
  /** Why the connection will not be kept; undefined: it will. */
  unwanted: DestroyReason | undefined

  /** @param round the number of its round: creates that begin before one of them fails */
  constructor (readonly began: number, readonly round: number) {}
}

/** What is known of a lease where the pool looks for leaks. */
export class Watch {
  reported = false
  /** The lease object was garbage collected: nobody can release it. */
  lost = false

  /** @param stack names the code that acquired the lease */
  constructor (public stack: string | undefined) {}

  /** What the events `leak` and `unleak` tell. */
  get told (): { readonly stack?: string } {
    return this.stack === undefined ? {} : { stack: this.stack }
  }
}

/** Who has a lease, as the pool asks them: at its ticks, and where somebody waits in vain. */
export interface Borrower {
  /** How long the lease may be out, in ms; 0: as long as it likes; undefined: as long as the pool's option says. */
  readonly holdTimeout: number | undefined
  /** How many bytes it has sent or received; undefined: that does not matter. Then the hold may start again. */
  readonly moved: number | undefined
  /** How many times the hold may start again. */
  readonly restarts: number
  /** Who it is that holds a connection and does not use it, and what to do about that. Undefined: it uses it. */
  readonly inVain: string | undefined
}

/** The state of a hold, from the first look at it on. */
export class Hold {
  /** When bytes were last seen to have moved. */
  movedAt: number
  moved = 0
  restarts = 0
  warned = false

  /** @param since when it began, or started again */
  constructor (public since: number) {
    this.movedAt = since
  }

  /** The event loop stood still for `ms`: that time does not count. */
  grant (ms: number, now: number): void {
    const granted = Math.max(0, Math.min(ms, now - this.since))
    this.since += granted
    this.movedAt += granted
  }
}

/** What only some leases need. */
export class LeaseExtras<C> {
  /** The transactions of the lease, from the first one on. */
  transactions: LeaseTransactions<C> | undefined
  /** Where the pool looks for leaks. */
  watch: Watch | undefined
  /** Called when the lease ends: set by `onEnd`. */
  onEnd: (() => void) | undefined
  /** Set at the first look at it. */
  hold: Hold | undefined
  /** How long the lease was held, in ms, where the pool itself ended it. */
  held = 0
  /** Why the pool itself ended the lease. */
  revoked: DestroyReason | undefined
}

/**
 * The pool's record of one connection. There may be thousands: what only some need for a while is in objects of its
 * own, and times are whole ms (V8 stores them without an allocation), except `takenAt`.
 */
export class Entry<C> {
  connection: C = undefined as C
  /** What borrowers get: the connection, or what `wrap` made of it. */
  face: C = undefined as C
  /** Changed by `Entries`, and by the engine between two states that share a counter. */
  state: State = CREATING
  /**
   * Counts the begins and ends of leases. A lease keeps the turn of its begin, so a lease that has ended can do nothing
   * to a later one.
   */
  turn = 0
  holder: HolderLabel | undefined
  /** Who has the lease, where it may not be out for as long as it likes: set by `lentTo`. */
  borrower: Borrower | undefined
  takenAt = 0
  /** How the lease is timed: bits of `EXACT` and `SEEN`. */
  timed = 0
  /** Of the lease that is out, or of the last one where the pool itself ended it. */
  extras: LeaseExtras<C> | undefined
  idleSince = 0
  /** When the connection was last known to be alive. */
  freshAt = 0
  /** When `maxLifetime` is over; 0: never. */
  expiresAt = 0
  /** Until then an idle connection may be lent without a further check; 0: not at all. */
  goodUntil = 0
  operation: Operation<C> | undefined
  /** Why the pool will not lend it again. */
  doomed: DestroyReason | undefined
  /** Why the connection is dead. */
  broken: Error | undefined

  constructor (readonly id: number, public createdAt: number) {}

  /** The connection was made and is not closed. These states share one counter, so a loan changes no count. */
  get isHere (): boolean {
    return this.state >= IDLE && this.state <= RESETTING
  }

  /** The extras of the lease that is out. */
  get more (): LeaseExtras<C> {
    return (this.extras ??= new LeaseExtras())
  }

  /** Set while the connection is created. */
  get creation (): Creation | undefined {
    return this.operation?.creation
  }

  /** How many times the connection was lent. */
  get uses (): number {
    return (this.turn + 1) >> 1
  }
}

/** The connections of one pool and their states. It knows no policy. */
export class Entries<C> {
  // `declare`: see `Room`.
  /** The number of connections to keep when nobody waits. */
  declare min: number
  /** The most that `total` may be. It is more only after `max` was made smaller, until enough have gone. */
  declare max: number
  readonly #all = new Set<Entry<C>>()
  /** The last is lent next, so those at the front idle out. */
  readonly idle: Array<Entry<C>> = []
  creating = 0
  /** Idle, lent, or between the two. */
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

  /** How many creates there are whose connection will be kept. */
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

  /**
   * Changes the state, except to `IDLE`, which is `rest`. The operation of the old state must not have been finished
   * yet.
   */
  move (entry: Entry<C>, state: Exclude<State, typeof CREATING | typeof IDLE>): void {
    if (entry.state === IDLE) this.#leaveIdle(entry)
    if (entry.state === CREATING && entry.creation!.unwanted !== undefined) this.#unwanted--
    this.#count(entry, -1)
    entry.state = state
    this.#count(entry, 1)
    if (state === GONE) this.#all.delete(entry)
  }

  /**
   * Makes a connection idle.
   *
   * @param since when it was used last, where it was only checked since: then it keeps its place among the idle
   */
  rest (entry: Entry<C>, now: number, since?: number): void {
    entry.state = IDLE
    entry.idleSince = since ?? now
    if (since === undefined) this.idle.push(entry)
    else this.idle.splice(this.idle.filter(({ idleSince }) => idleSince <= since).length, 0, entry)
  }

  /** Marks a create: its connection will be destroyed when it comes. */
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
