import type { Connector } from '../../types/connector.js'
import type { Circuit } from '../../types/pool.js'
import type { Books } from './books.js'
import type { Entries } from './entry.js'
import type { Events } from './events.js'
import type { Waiters } from './line.js'
import type { Operations } from './operations.js'
import type { Settings } from './settings.js'
import type { Time } from './time.js'

/** The owner of several engines behind one name, as an engine sees it. All of it is cheap, and never throws. */
export interface Owner {
  /** The field `target` of the engine's events. */
  readonly target: string | undefined
  /** The next connection's id: unique among all engines of the owner. */
  nextId (): number
  /**
   * The engine needs one more connection. Engines with a better claim get theirs first. Where there is no room, the
   * others close connections as soon as they can, and the owner calls `pump` then.
   */
  wants (): void
  /** Whether one more connection may be made now. */
  hasRoom (): boolean
  /** A connection is ready: whether it must be closed so that another engine can make one. */
  mustYield (): boolean
  /** A connection is gone, or late: there may be room. */
  freed (): void
  /** A connection was made. */
  connected (): void
  createFailed (): void
  /** A connection is being destroyed. @param ill it died, or did not answer */
  lost (ill: boolean): void
  circuitMoved (from: Circuit, to: Circuit): void
}

/** What the rooms of an engine share: data and services, which know nothing of the engine. */
export interface Parts<C> {
  readonly name: string
  readonly options: Settings<C>
  readonly backend: Connector<C>
  readonly owner: Owner | undefined
  readonly entries: Entries<C>
  readonly line: Waiters<C>
  readonly work: Operations<C>
  readonly time: Time
  readonly events: Events
  readonly books: Books
}

/** How far a pool is on the way to its end. */
export type Phase = 'open' | 'draining' | 'closing' | 'closed'
