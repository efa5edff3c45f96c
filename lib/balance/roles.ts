import type { Role, ServerState } from '../../types/connector.js'
import type { Clock } from '../../types/pool.js'
import type { Target } from './target.js'

/** What a pool asks about its targets: of `Roles`, or of `Peers`. */
export type Ranks<C> = Omit<Roles<C>, 'primary' | 'become'> & {
  readonly primary: Target<C> | undefined
}

/**
 * Which target has which role.
 *
 * The primary is the target that was promoted last: it says 'primary', and said 'replica' before or was given as one.
 * An old primary that still says 'primary', or says so again after an outage, gets no writes until it has followed
 * another server, even where the new primary dies.
 */
export class Roles<C> {
  readonly #targets: ReadonlyArray<Target<C>>
  readonly #clock: Clock
  readonly #maxLag: number
  readonly arePeers: boolean = false
  primary: Target<C> | undefined
  /** The primary that the last `failover` event told of. */
  #told: Target<C> | undefined
  /** There was a primary: a change from now on is a failover. */
  #settled: boolean

  /** @param maxLag replicas that are further behind are left out: in ms, or in bytes */
  constructor (targets: ReadonlyArray<Target<C>>, clock: Clock, maxLag: number) {
    this.#targets = targets
    this.#clock = clock
    this.#maxLag = maxLag
    this.primary = this.#told = targets.find(({ known, role }) => known && role === 'primary')
    this.#settled = this.primary !== undefined
  }

  /**
   * A target has said what it is.
   *
   * @param at when it was asked
   * @returns the target that should be the primary now; undefined: there is none
   */
  said (target: Target<C>, state: ServerState, at: number): Target<C> | undefined {
    const { role, lag = Infinity } = state
    const promoted = role === 'primary' && target.role === 'replica'
    target.known = true
    target.state = state
    target.role = role
    target.shows = role === 'primary' ? -Infinity : Math.max(target.shows, at - lag)
    if (promoted) for (const other of this.#targets) other.supersededBy = target
    if (promoted || role === 'replica') target.supersededBy = undefined
    // A server that was promoted once now follows again. The server that it follows is one that it had superseded, so
    // that one may be primary again.
    if (role === 'replica' && state.lag !== Infinity) {
      for (const other of this.#targets) if (other.supersededBy === target) other.supersededBy = undefined
    }
    if (promoted) return target
    return role === 'replica' && target === this.primary ? this.another : this.primary
  }

  /** Another target that says it is the primary, and can be used. */
  get another (): Target<C> | undefined {
    return this.#targets.find((target) => target !== this.primary && target.role === 'primary' && target.known &&
      !target.lost && !target.isSuperseded)
  }

  /** The primary is lost, or there is none. */
  get isLost (): boolean {
    return this.primary?.lost !== false
  }

  /** Makes a target the primary; undefined: there is none now. */
  become (target: Target<C> | undefined): void {
    this.primary = target
  }

  /** Whether a target may become the primary while a caller waits. */
  get mayServe (): boolean {
    return this.#targets.some((target) => target.usable && (target.speaks || target.role === 'primary'))
  }

  /** There is no primary, or it may be lost: targets are asked more often. */
  get isUrgent (): boolean {
    const { primary } = this
    return primary === undefined || !primary.usable || primary.failing || primary.answer !== 'given'
  }

  /** The targets that have a role and can be used now. */
  eligible (role: Role, _key?: string): ReadonlyArray<Target<C>> {
    const primary = this.primary?.usable === true ? [this.primary] : []
    if (role === 'primary') return primary
    const replicas = this.#targets
      .filter((target) => target.role === 'replica' && target.known && target.usable && this.#isClose(target))
    // A target that fails is used only where there is no other. Its next check tells when it is back.
    const sound = replicas.filter((target) => target.sound)
    if (sound.length > 0) return sound
    const useAll = primary.length === 0 || replicas.some(({ speaks }) => !speaks)
    return replicas.length > 0 && useAll ? replicas : primary
  }

  /** Replicas that are further behind than `maxLag` since the last call, or not any more: the events to emit. */
  takeLags (): Array<{ target: string, lag: number | null, maxLag: number, over: boolean }> {
    if (this.#maxLag === Infinity) return []
    const moved = this.#targets.filter((target) => {
      const lag = this.lagOf(target)
      // Where the lag is not known, nothing is told; the primary has none.
      if (lag === null && target.role === 'replica') return false
      return target.isBehind !== (lag !== null && lag > this.#maxLag)
    })
    return moved.map((target) => {
      target.isBehind = !target.isBehind
      return { target: target.name, lag: this.lagOf(target), maxLag: this.#maxLag, over: target.isBehind }
    })
  }

  #isClose (target: Target<C>): boolean {
    return this.#maxLag === Infinity || (this.lagOf(target) ?? Infinity) <= this.#maxLag
  }

  /**
   * How far a replica is behind, in ms or in bytes; null: not known. A lag in ms is bounded by the time since the
   * replica was up to date: servers report Infinity when the primary dies, and an hour at the first change after an
   * idle hour.
   */
  lagOf ({ state, role, shows }: Target<C>): number | null {
    if (state === undefined || role === 'primary') return null
    if (state.lag !== undefined) return Math.min(state.lag, this.#clock.now() - shows)
    const ahead = this.primary?.state?.offset
    return ahead === undefined || state.offset === undefined ? null : Math.max(0, ahead - state.offset)
  }

  /**
   * The failover to emit, once; undefined: none. Where one target steps down and another is promoted in the same round
   * of checks, that is one failover and not two.
   */
  takeFailover (): { readonly from: string | undefined, readonly to: string | undefined } | undefined {
    const [from, to] = [this.#told, this.primary]
    if (from === to || (to === undefined && this.#targets.some(({ check }) => check !== undefined))) return undefined
    this.#told = to
    const isFailover = this.#settled
    this.#settled = true
    return isFailover ? { from: from?.name, to: to?.name } : undefined
  }
}
