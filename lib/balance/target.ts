import type { Connector, Role, ServerState } from '../../types/connector.js'
import type { EngineOptions } from '../../types/options.js'
import type { Engine } from '../engine/engine.js'
import { PoolError } from '../engine/errors.js'
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
  /**
   * The role was decided with the connector, which is not asked: SQLite's connections that write, and those that read.
   * Default false.
   */
  readonly fixed?: boolean
  /** What a pool of this target alone would be given, where that is not the same for all. */
  readonly options?: EngineOptions<C>
}

/** What came of it when a target was asked last: an answer; silence; or there was no connection to ask on. */
type Answer = 'given' | 'none' | 'no connection'

/** A server, its engine, and what is known of it. */
export class Target<C> implements Member<C>, Candidate {
  readonly name: string
  readonly spec: TargetSpec<C>
  readonly weight: number
  readonly engine: Engine<C>
  /** The role that the options say. */
  readonly given: Role
  role: Role
  /** It can say what it is. */
  readonly speaks: boolean
  /** What it said last. */
  state: ServerState | undefined
  /** The role counts: the target has said it, or can't say. */
  known: boolean
  answer: Answer = 'given'
  /** The last create failed. */
  failing = false
  /**
   * The server that became the primary after this one. What was written there this one does not have: it is no primary
   * any more, whatever it says, until it has followed.
   */
  supersededBy: Target<C> | undefined
  /** Of a replica that tells its lag in ms: until when it is known to show all that was done, on the pool's clock. */
  shows = -Infinity
  /** Set while the target is asked. */
  check: AbortController | undefined
  /** How many checks gave up waiting for a connection. */
  gaveUp = 0
  /** A connection more is being made because the target's turn came too often when none was idle. */
  growing = false
  passedOver = 0
  credit = 0
  max = 0

  constructor (name: string, spec: TargetSpec<C>, weight: number, make: (target: Target<C>) => Engine<C>) {
    this.name = name
    this.spec = spec
    this.weight = weight
    this.role = this.given = spec.role ?? 'primary'
    this.speaks = spec.fixed !== true && spec.connector.inspect !== undefined
    this.known = !this.speaks
    this.engine = make(this)
  }

  /** Why the last create failed; undefined: it did not. */
  get failure (): Error | undefined {
    return this.engine.supply.creator.lastFailure
  }

  get #idle (): number {
    return this.engine.entries.idle.length
  }

  /** Connections that are lent, and callers that wait for one. */
  get busy (): number {
    return this.engine.entries.used + this.engine.line.size
  }

  get keepsLast (): boolean {
    return this.speaks
  }

  /** A caller would most likely be served at once. */
  get ready (): boolean {
    return this.#idle > 0 && this.engine.line.size === 0
  }

  /** There are connections, or one can soon be had. */
  get usable (): boolean {
    return this.engine.supply.creator.circuit.state === 'closed' || this.engine.entries.here > 0
  }

  /** Another target is to be preferred: there is no connection, or none but lent ones, which may be dead. */
  get lost (): boolean {
    return !this.usable || (this.failing && this.answer !== 'given' && this.#idle === 0)
  }

  /** It takes itself for the primary, as another one does that became it later. */
  get isSuperseded (): boolean {
    return this.role === 'primary' && this.supersededBy !== undefined
  }

  /** Nothing speaks against it; what is lent of it may be dead. */
  get sound (): boolean {
    return this.answer !== 'none' && (!this.failing || this.#idle > 0)
  }

  /** It has been seen whether it can be used, and what for. */
  get settled (): boolean {
    return this.known || this.failing || this.answer !== 'given' || !this.usable
  }

  /** Why it is not the primary. */
  get why (): string {
    if (this.failure !== undefined) return this.failure.message
    if (!this.known) return 'it does not answer'
    return `it says that it is a ${this.role}${this.isSuperseded ? ', but another one has become it since' : ''}`
  }
}

/** Rejects those who wait at a target that is of no use any more: they try elsewhere, and no caller sees it. */
export class Moved extends PoolError {
  constructor (name: string) {
    super('FST_POOL_CONNECT_FAILED', `pool '${name}': this target is not the one to wait for any more`)
  }
}
