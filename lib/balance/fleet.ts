import type { EngineOptions } from '../../types/options.js'
import type { Clock, PoolEventName, PoolListener } from '../../types/pool.js'
import { Engine } from '../engine/engine.js'
import { badOption } from '../engine/errors.js'
import type { Events } from '../engine/events.js'
import type { Owner } from '../engine/parts.js'
import { limitOf } from '../engine/settings.js'
import { checkEngineOptions } from '../pool/options.js'
import { Budget } from './budget.js'
import { Target, type TargetSpec } from './target.js'

/** What the fleet asks of its pool. */
export interface Site<C> {
  readonly clock: Clock
  /** How many callers wait for a target that has their role. */
  pending (): number
  /** Called after every change. */
  review (): void
  /** A target fails: callers in its line may go elsewhere. */
  relieve (target: Target<C>): void
  /** The targets are asked soon. */
  askSoon (): void
}

/** Events of the pool as a whole. Those of one engine are not passed on: an acquire may go on at another target. */
const wholes: ReadonlySet<PoolEventName> =
  new Set<PoolEventName>(['refuse', 'timeout', 'failover', 'lag', 'open', 'drain', 'close'])

/** The targets of a pool, and what they share: its `min`, its `max`, and its listeners. */
export class Fleet<C> {
  readonly targets: Array<Target<C>> = []
  readonly #site: Site<C>
  readonly #budget = new Budget<C>()
  min = 0

  constructor (site: Site<C>) {
    this.#site = site
  }

  get max (): number {
    return this.#budget.max
  }

  get hasRoom (): boolean {
    return this.#budget.hasRoom
  }

  /** All targets have a fixed role, as SQLite's writer and readers have, and `max` is divided between them for good. */
  get isFixed (): boolean {
    return this.targets.every(({ spec: { fixed } }) => fixed === true)
  }

  /** @throws `FST_POOL_BAD_OPTIONS` */
  join (spec: TargetSpec<C>, index: number, options: EngineOptions<C>): Target<C> {
    const { weight = 1, role = 'primary', name = `${role}-${index}`, connector } = spec
    if (!(weight > 0)) throw badOption(`targets.${index}.weight`, weight, 'a number above 0')
    const checked = checkEngineOptions<C>(connector, options)
    const target: Target<C> = new Target<C>(name, spec, weight,
      () => new Engine(connector, checked, this.#site.clock, this.#ownerOf(name, () => target)))
    this.#budget.join(target)
    this.targets.push(target)
    return target
  }

  /** What a target's engine asks, and is told by. @param get must not be called before the engine is made */
  #ownerOf (name: string, get: () => Target<C>): Owner {
    const budget = this.#budget
    const { askSoon, pending, relieve, review } = this.#site
    return {
      target: name,
      nextId: () => budget.nextId(),
      wants: () => { budget.wants(get()) },
      hasRoom: () => budget.hasRoom,
      mustYield: () => budget.mustYield(get()),
      freed: () => { budget.freed() },
      connected: () => {
        get().failing = false
        if (pending() > 0) review()
      },
      createFailed: () => {
        const target = get()
        if (!target.failing) askSoon()
        target.failing = true
        relieve(target)
        review()
      },
      lost: (ill) => {
        // A connection that a check has ended tells nothing new.
        if (ill && get().check === undefined) askSoon()
        if (pending() > 0) review()
      },
      circuitMoved: (from, to) => {
        // Only when it opens or closes, not at each probe.
        if (from === 'closed' || to === 'closed') askSoon()
        review()
      },
    }
  }

  /** Events of one target have its name in `target`. @param own the pool's own */
  on<E extends PoolEventName> (own: Events, event: E, listener: PoolListener<E>): () => void {
    const undos = [own.on(event, listener)]
    if (!wholes.has(event)) undos.push(...this.targets.map(({ engine }) => engine.events.on(event, listener)))
    return () => { for (const undo of undos) undo() }
  }

  // --- Limits --------------------------------------------------------------------------------------------------------

  /** The most connections that the connectors allow together. */
  get limit (): number {
    const limits = this.targets.map(({ spec: { connector } }) => limitOf(connector))
    return limits.reduce((sum, limit) => Math.min(Number.MAX_SAFE_INTEGER, sum + limit), 0)
  }

  /** @throws `FST_POOL_BAD_OPTIONS` */
  resize ({ min = this.min, max = this.max }: { min?: number, max?: number }, primary: Target<C> | undefined): void {
    const [least, limit] = [this.targets.length, this.limit]
    const each = this.isFixed ? 'one that writes and one that reads' : 'one for each target'
    if (!Number.isSafeInteger(max) || max < least || max > limit) {
      throw badOption('max', max, `an integer from ${least} (${each}) to ${limit}`)
    }
    if (!Number.isSafeInteger(min) || min < 0 || min > max) {
      throw badOption('min', min, `an integer from 0 to max (${max})`)
    }
    this.min = min
    this.#budget.max = max
    this.spread(primary)
    this.#budget.settle()
  }

  /** Sets `min` and `max` of each engine. */
  spread (primary: Target<C> | undefined): void {
    const { max, isFixed } = this
    let [left, kept] = [max, this.min]
    for (const [index, target] of this.targets.entries()) {
      const own = Math.min(target.spec.max ?? max, limitOf(target.spec.connector), max)
      const isPrimary = target === primary
      // With fixed roles, each target leaves one connection for each that follows; the last has most of the `min`.
      const most = isFixed ? Math.min(own, left - (this.targets.length - 1 - index)) : own
      const least = isFixed ? Math.min(kept, most, index === 0 ? 1 : most) : isPrimary ? Math.min(kept, most) : 0
      left -= most
      kept -= least
      target.max = most
      target.engine.resize({ min: least, max: most })
    }
  }
}
