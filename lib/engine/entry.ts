import type { DestroyReason } from '../../types/connector.js'
import type { HolderLabel } from '../../types/pool.js'
import type { Waiter } from './line.js'
import type { Commit, LeaseTransactions, Phase } from './transaction.js'

// A connection's states. Its entry is in exactly one, and only `Engine.move` changes it.
export const CREATING = 0
export const IDLE = 1
/** Lent, or being prepared, validated, kept alive or reset. */
export const USED = 2
export const CLOSING = 3
/** Its create or destroy is past the deadline: it no longer counts against `max`, and its late answer is still owned. */
export const LATE = 4
export const GONE = 5
/** Where the idle and the used ones are counted, together: which of them are idle, their list says. */
export const HERE = USED
export type State = typeof CREATING | typeof IDLE | typeof USED | typeof CLOSING | typeof LATE | typeof GONE

/** What the pool does with a connection that is not at rest. */
export class Operation<C> {
  /** The phases of a transaction are for the borrower; undefined: its create, or its end. */
  doing: 'prepare' | 'validate' | 'reset' | Phase | undefined
  deadline = Infinity
  /** It is validated because somebody waits. */
  awaited = false
  /** The acquire that waits while `onAcquire` prepares this connection. */
  prepared: Waiter<C> | undefined
  /** The commit that it is, or that was under way when its lease was given back. */
  commit: Commit | undefined
  controller: AbortController | undefined

  get signal (): AbortSignal {
    return (this.controller ??= new AbortController()).signal
  }
}

/** What is to be known of a connection until it is made. */
export class Creation {
  /** `create` has delivered the connection. */
  delivered = false
  /** The create is past the deadline, and the reason is not told yet: tells it. */
  explain: ((cause: unknown) => void) | undefined
  /** Why its connection will not be kept. */
  unwanted: DestroyReason | undefined

  /** @param failures how many creates in a row had failed when it began */
  constructor (readonly began: number, readonly failures: number) {}
}

/** What is to be known of a lease where the pool looks for leaks. */
export class Watch {
  reported = false
  /** The lease object was garbage collected: nobody can release it. */
  lost = false

  constructor (readonly stack: string | undefined) {}
}

/** The pool's record of one connection. There may be thousands: what only some of them need for a while is in objects of its own, and times are whole ms but for `takenAt`. */
export class Entry<C> {
  connection: C = undefined as C
  /** What borrowers get: the connection, or what `wrap` made of it. */
  face: C = undefined as C
  state: State = CREATING
  /** Counts the beginnings and the ends of its leases: odd while it is lent. A lease knows its turn, so one that has ended can do nothing to a later one. */
  turn = 0
  holder: HolderLabel | undefined
  takenAt = 0
  /** Whether `takenAt` is exact. */
  timed = false
  /** Of the lease that is out, from its first transaction on. */
  transactions: LeaseTransactions<C> | undefined
  watch: Watch | undefined
  idleSince = 0
  /** When it was last known to be alive. */
  freshAt = 0
  /** 0: never. */
  expiresAt = 0
  operation: Operation<C> | undefined
  creation: Creation | undefined
  /** The pool's own reason against lending it again. */
  doomed: DestroyReason | undefined
  /** What it died of. */
  broken: Error | undefined
  /** How long the lease was held that the pool itself ended, in ms: its last one. */
  revokedAfter = 0

  constructor (readonly id: number, public createdAt: number) {}

  get lent (): boolean {
    return (this.turn & 1) === 1
  }

  /** How many times it was lent. */
  get uses (): number {
    return (this.turn + 1) >> 1
  }
}
