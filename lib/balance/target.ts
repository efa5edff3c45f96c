import type { Connector, Role, ServerState } from '../../types/connector.js'
import { PoolError } from '../pool/errors.js'
import type { EngineOptions } from '../../types/options.js'
import { inside, type Pool } from '../pool/pool.js'
import type { Member } from './budget.js'
import type { Candidate } from './choice.js'

/** One server of a pool over several. */
export interface TargetSpec<C> {
  /** What events, stats and errors call it. Default: its role and its place in the list, `'primary-0'`. */
  readonly name?: string | undefined
  /** What it is, until it has said so itself. Default `'primary'`. */
  readonly role?: Role | undefined
  /** Its share beside the others of its role. Default 1. */
  readonly weight?: number | undefined
  /** Its connections at most. Default: the pool's `max`. */
  readonly max?: number | undefined
  readonly connector: Connector<C>
  /** What it is was decided with the connector, which is not asked: SQLite's connections that write, and those that read. Default false. */
  readonly fixed?: boolean
  /** What a pool of this target alone would be given, where that is not the same for all. */
  readonly options?: EngineOptions<C>
}

/** A server, its pool, and what is known of it. */
export class Target<C> implements Member<C>, Candidate {
  readonly pool: Pool<C>
  /** What it was given as. */
  readonly given: Role
  role: Role
  /** Whether it can say what it is. */
  readonly speaks: boolean
  /** As it said last. */
  state: ServerState | undefined
  /** Who became the primary after it. What was written there it does not have: it is no primary any more, whatever it says, until it has followed. */
  supersededBy: Target<C> | undefined
  /** Its role counts: it has said so, or can't. */
  known: boolean
  /** The last create failed. */
  failing = false
  /** Of its creates. */
  lastError: Error | undefined
  /** When it was asked last, nothing was heard of it: it did not answer, or no connection of it could be had. */
  mute = false
  /** It was asked, and did not answer. */
  silent = false
  /** Of a replica that tells its lag in ms: until when it is known to show all that was done, on the pool's clock. */
  shows = -Infinity
  /** It is being asked now. */
  check: AbortController | undefined
  /** How many checks gave up waiting for a connection. */
  gaveUp = 0
  growing = false
  passedOver = 0
  credit = 0
  max = 0

  constructor (readonly name: string, readonly spec: TargetSpec<C>, readonly weight: number, make: (target: Target<C>) => Pool<C>) {
    this.role = this.given = spec.role ?? 'primary'
    this.speaks = spec.fixed !== true && spec.connector.inspect !== undefined
    this.known = !this.speaks
    this.pool = make(this)
  }

  get load (): ReturnType<typeof inside.load> {
    return inside.load(this.pool)
  }

  get busy (): number {
    const { used, pending } = this.load
    return used + pending
  }

  get keepsLast (): boolean {
    return this.speaks
  }

  /** A caller would most likely be served at once. */
  get ready (): boolean {
    const { idle, pending } = this.load
    return idle > 0 && pending === 0
  }

  /** Its connections, or soon one, can be had. */
  get usable (): boolean {
    const { circuit, idle, used } = this.load
    return circuit === 'closed' || idle + used > 0
  }

  /** Another one is to be preferred: it has no connection, or none but those that are lent, and may be dead. */
  get lost (): boolean {
    return !this.usable || (this.failing && this.mute && this.load.idle === 0)
  }

  /** It takes itself for the primary, as another one does that became it later. */
  get isSuperseded (): boolean {
    return this.role === 'primary' && this.supersededBy !== undefined
  }

  /** As far as is known; what is lent of it may be dead. */
  get sound (): boolean {
    return !this.silent && (!this.failing || this.load.idle > 0)
  }

  /** It has been seen whether it can be used, and what for. */
  get settled (): boolean {
    return this.known || this.failing || this.mute || !this.usable
  }

  /** Why it is not the primary. */
  get why (): string {
    if (this.lastError !== undefined && (this.failing || !this.usable)) return this.lastError.message
    if (!this.known) return 'it does not answer'
    return `it says that it is a ${this.role}${this.isSuperseded ? ', but another one has become it since' : ''}`
  }
}

/** No caller sees it: who waited where it is of no use any more tries elsewhere. */
export class Moved extends PoolError {
  constructor (name: string) {
    super('FST_POOL_CONNECT_FAILED', `pool '${name}': this target is not the one to wait for any more`)
  }
}
