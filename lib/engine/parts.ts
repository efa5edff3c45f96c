import type { Connector } from '../../types/connector.js'
import type { Books } from './books.js'
import type { Entries } from './entry.js'
import type { Events } from './events.js'
import type { Waiters } from './line.js'
import type { Operations } from './operations.js'
import type { Settings } from './settings.js'
import type { Time } from './time.js'

/** Who owns several engines behind one name. All of it is cheap. */
export interface Owner {
  /** How events call the engine. */
  readonly target: string
  /** The next connection's id: unique among all of them. */
  nextId (): number
  /** Whether one more connection may be made. Where not, the others make room as soon as they can, and `pump` is called then. */
  mayCreate (): boolean
  /** A connection came back: whether it must be closed so that another engine can make one. */
  mustYield (): boolean
  /** A connection is gone: there may be room. */
  freed (): void
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

/** Where a pool is on its way to its end. */
export type Phase = 'open' | 'draining' | 'closing' | 'closed'
