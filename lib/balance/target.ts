import type { Connector, ServerState, TargetRole } from '../../types/connector.js'
import type { EngineOptions } from '../../types/options.js'
import type { Engine } from '../engine/engine.js'
import { PoolError } from '../engine/errors.js'
import { secretsIn } from '../engine/secrets.js'
import type { Member } from './budget.js'
import type { Candidate } from './choice.js'
import { hashOf } from './rendezvous.js'

/** A host name whose addresses come and go. */
export interface HostName<C> {
  readonly host: string
  /** What names the server at an address in all processes. */
  id (address: string): string
  /** Makes the connector of the server at an address. Its TLS checks the name. */
  connect (address: string): Promise<Connector<C>>
}

/** One server of a pool over several. */
export interface TargetSpec<C> {
  /** What events, stats and errors call it. Default: its role and its place in the list, `'primary-0'`. */
  readonly name?: string | undefined
  /** The role until the target has said it itself; a peer is not asked. Default `'primary'`. */
  readonly role?: TargetRole | undefined
  /** It stands for all addresses of a host name, each of which becomes a target of its own. */
  readonly discover?: HostName<C> | undefined
  /** What names the server in all processes, where keys belong to servers. Default: `name`. */
  readonly id?: string | undefined
  /** Its share beside the others of its role. Default 1. */
  readonly weight?: number | undefined
  /** The most connections of this target. Default: the pool's `max`. */
  readonly max?: number | undefined
  readonly connector: Connector<C>
  /**
   * The role does not change and is not asked, as for SQLite's connections that write and those that only read. Default
   * false.
   */
  readonly fixed?: boolean
  /** The engine options of this target, where they are not the same for all. */
  readonly options?: EngineOptions<C>
}

/** What came of the last check: an answer, silence, or there was no connection to ask on. */
type Answer = 'given' | 'none' | 'no connection'

/** A server, its engine, and what is known of it. */
export class Target<C> implements Member<C>, Candidate {
  readonly name: string
  readonly spec: TargetSpec<C>
  readonly weight: number
  readonly engine: Engine<C>
  /** The role in the options. */
  readonly given: TargetRole
  role: TargetRole
  /** The target can say what its role is; a peer, whether it answers. */
  readonly speaks: boolean
  /** What the target said last. */
  state: ServerState | undefined
  /** `role` is reliable: the target has said it, or can't say. */
  known: boolean
  answer: Answer = 'given'
  /** The last create failed. */
  failing = false
  /**
   * The target that became the primary after this one. This one does not have what was written there, so it is no
   * primary any more, whatever it says, until it has followed.
   */
  supersededBy: Target<C> | undefined
  /** The time, on the pool's clock, up to which a replica that tells its lag in ms shows all that was done. */
  shows = -Infinity
  /** An event told that it is further behind than `maxLag`. */
  isBehind = false
  /** Set while the target is asked. */
  check: AbortController | undefined
  /** How many checks gave up waiting for a connection. */
  gaveUp = 0
  /** `Dispatch` is making one more connection. */
  growing = false
  passedOver = 0
  credit = 0
  max = 0
  readonly hash: number
  /** What no error or event may show. */
  readonly secrets: () => readonly string[]
  /** It is a host name whose addresses are targets of their own by now. */
  isResting = false

  constructor (name: string, spec: TargetSpec<C>, weight: number, make: (target: Target<C>) => Engine<C>) {
    this.name = name
    this.spec = spec
    this.weight = weight
    this.role = this.given = spec.role ?? 'primary'
    this.hash = hashOf(spec.id ?? name)
    this.speaks = this.isPeer || (spec.fixed !== true && spec.connector.inspect !== undefined)
    this.known = !this.speaks
    this.engine = make(this)
    this.secrets = secretsIn(this.engine.options, spec.connector)
  }

  get isPeer (): boolean {
    return this.given === 'peer'
  }

  /**
   * Asks it, over one of its connections, what it is. Rejects where a peer does not answer, or does not serve us. Of a
   * peer that can't be asked it is enough that there is a connection.
   */
  async ask (connection: C, signal: AbortSignal): Promise<ServerState> {
    const { connector } = this.spec
    if (!this.isPeer) return await connector.inspect!(connection, signal)
    const isWell = await connector.validate?.(connection, signal) ?? true
    if (!isWell) throw new Error('it does not serve this connection any more')
    return { role: 'primary' }
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

  /** A caller would most likely be served at once: a connection is idle, and nobody waits. */
  get ready (): boolean {
    return this.#idle > 0 && this.engine.line.size === 0
  }

  /** There are connections, or one can soon be had. */
  get usable (): boolean {
    const { supply, entries } = this.engine
    return entries.here > 0 || (supply.creator.circuit.state === 'closed' && !supply.isRefused)
  }

  /** No connection is known to be good: there are none, or only lent ones, while creates and checks fail. */
  get lost (): boolean {
    return !this.usable || (this.failing && this.answer !== 'given' && this.#idle === 0)
  }

  /** The target says that it is the primary, but another one became it later. */
  get isSuperseded (): boolean {
    return this.role === 'primary' && this.supersededBy !== undefined
  }

  /** The target is not known to fail: it answers, and can create connections or has idle ones. */
  get sound (): boolean {
    return this.answer !== 'none' && (!this.failing || this.#idle > 0)
  }

  /** It is known whether the target can be used, and in which role. */
  get settled (): boolean {
    return this.known || this.failing || this.answer !== 'given' || !this.usable
  }

  /** Why the target is not the primary. */
  get why (): string {
    if (this.failure !== undefined) return this.failure.message
    if (!this.known || this.isPeer) return 'it does not answer'
    return `it says that it is a ${this.role}${this.isSuperseded ? ', but another one has become it since' : ''}`
  }
}

/** Rejects callers in the line of a target that is not eligible any more. `Dispatch` sends them elsewhere. */
export class Moved extends PoolError {
  constructor (name: string) {
    super('FST_POOL_CONNECT_FAILED', `pool '${name}': this target is not the one to wait for any more`)
  }
}
