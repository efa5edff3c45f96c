import type { EngineOptions } from '../../types/options.js'
import type { Connector } from '../../types/connector.js'
import type { Clock, PoolEventName, PoolListener } from '../../types/pool.js'
import { Books } from '../engine/books.js'
import { Engine } from '../engine/engine.js'
import { badOption } from '../engine/errors.js'
import type { Events } from '../engine/events.js'
import type { Owner } from '../engine/parts.js'
import { limitOf } from '../engine/settings.js'
import { checkEngineOptions } from '../pool/options.js'
import { renameEngine } from '../pool/pool.js'
import { Budget } from './budget.js'
import { Moved, Target, type TargetSpec } from './target.js'

/** What the fleet asks of its pool. */
export interface Site<C> {
  readonly clock: Clock
  /** The pool's name. */
  name (): string
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

/** How many books of targets that have gone are kept apart, so that `lastMinute` has them too. */
const KEPT = 50

/** A listener on all engines, those included that come later. */
interface Subscription {
  begin (target: Target<unknown>): void
  forget (target: Target<unknown>): void
}

/** What a target that has gone had counted. */
export interface Gone { readonly books: Books, readonly gaveUp: number }

/**
 * The targets of a pool, and what they share: its `min`, its `max`, and its listeners. Those that stand for a host name
 * rest once its addresses are targets of their own; targets of addresses retire, which means that they are not used any
 * more, their leases end normally, and then they are gone.
 */
export class Fleet<C> {
  /** Those that are in use. */
  readonly targets: Array<Target<C>> = []
  /** Those in the options, resting ones included: whatever comes and goes, they stay. */
  given: ReadonlyArray<Target<C>> = []
  readonly #others = new Set<Target<C>>()
  readonly #subscriptions = new Set<Subscription>()
  gone: Gone[] = []
  #isSuspended = false
  readonly #site: Site<C>
  readonly #budget = new Budget<C>()
  min = 0

  constructor (site: Site<C>) {
    this.#site = site
  }

  /** Resting and retiring ones included. */
  get all (): ReadonlyArray<Target<C>> {
    return this.#others.size === 0 ? this.targets : [...this.targets, ...this.#others]
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

  get arePeers (): boolean {
    return this.targets.every(({ isPeer }) => isPeer)
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
    for (const { begin } of this.#subscriptions) begin(target as Target<unknown>)
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
    const undo = own.on(event, listener)
    if (wholes.has(event)) return undo
    const end = this.subscribe(({ engine }) => engine.events.on(event, listener))
    return () => {
      undo()
      end()
    }
  }

  /** Calls `begin` for each target, those included that come later. What it returns is called at the end. */
  subscribe (begin: (target: Target<unknown>) => () => void): () => void {
    const undos = new Map<Target<unknown>, () => void>()
    const subscription: Subscription = {
      begin: (target) => { undos.set(target, begin(target)) },
      forget: (target) => { undos.delete(target) },
    }
    for (const target of this.all) subscription.begin(target as Target<unknown>)
    this.#subscriptions.add(subscription)
    return () => {
      this.#subscriptions.delete(subscription)
      for (const undo of undos.values()) undo()
    }
  }

  // --- Coming and going ----------------------------------------------------------------------------------------------

  /** A host name has one more address. @param options the pool's, where the name has none of its own */
  add (seed: Target<C>, address: string, connector: Connector<C>, options: EngineOptions<C>): Target<C> {
    const { discover, ...spec } = seed.spec
    const own = { ...spec, name: `${seed.name}@${address}`, id: discover!.id(address), connector }
    const target = this.join(own, this.targets.length, spec.options ?? options)
    renameEngine(target.engine, this.#site.name())
    if (this.#isSuspended) target.engine.suspend()
    return target
  }

  /** A host name's addresses are targets of their own. It is kept: the app's shared client is its connector's. */
  rest (seed: Target<C>): void {
    seed.isResting = true
    this.#leave(seed)
    const { engine } = seed
    engine.resize({ min: 0 })
    engine.suspend()
    engine.evict()
  }

  /** An address is not its name's any more. */
  retire (target: Target<C>): void {
    this.#leave(target)
    target.engine.events.run(() => this.#end(target))
  }

  #leave (target: Target<C>): void {
    this.targets.splice(this.targets.indexOf(target), 1)
    this.#others.add(target)
    const why = 'this target is not used any more'
    target.check?.abort(new Error(why))
    target.engine.waiting.sendAllAway(() => new Moved(this.#site.name()))
  }

  async #end (target: Target<C>): Promise<void> {
    const { engine } = target
    await engine.closing.drain()
    await engine.closing.close()
    this.#others.delete(target)
    this.#budget.leave(target)
    for (const { forget } of this.#subscriptions) forget(target as Target<unknown>)
    this.gone.push({ books: engine.books, gaveUp: target.gaveUp })
    if (this.gone.length <= KEPT) return
    const [first, second, ...later] = this.gone as [Gone, Gone, ...Gone[]]
    first.books.absorb(second.books, this.#site.clock.now())
    this.gone = [{ books: first.books, gaveUp: first.gaveUp + second.gaveUp }, ...later]
  }

  /** What listens to another target goes on at the new primary. */
  handOver (to: Connector<C>, events: Events): void {
    for (const { spec: { connector } } of this.all) {
      if (connector === to) continue
      try {
        events.run(() => connector.handOver?.(to))
      } catch (error) {
        events.report(error, 'subscription')
      }
    }
  }

  suspend (): void {
    this.#isSuspended = true
    for (const { engine } of this.all) engine.suspend()
  }

  resume (): void {
    this.#isSuspended = false
    for (const { engine, isResting } of this.all) if (!isResting) engine.resume()
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

  /** What each peer keeps of `min`: in proportion to their weights. */
  #sharesOfPeers (): Map<Target<C>, number> {
    const shares = new Map(this.targets.map((target) => [target, 0]))
    for (let left = this.min; left > 0; left--) {
      const fill = (target: Target<C>) => shares.get(target)! / target.weight
      const least = this.targets.reduce((least, one) => fill(one) < fill(least) ? one : least)
      shares.set(least, shares.get(least)! + 1)
    }
    return shares
  }

  /** Sets `min` and `max` of each engine. */
  spread (primary: Target<C> | undefined): void {
    const { max, isFixed } = this
    let [left, kept] = [max, this.min]
    const shares = this.arePeers ? this.#sharesOfPeers() : undefined
    for (const [index, target] of this.targets.entries()) {
      const own = Math.min(target.spec.max ?? max, limitOf(target.spec.connector), max)
      const isPrimary = target === primary
      // With fixed roles, each target leaves one connection for each that follows; the last has most of the `min`.
      const most = isFixed ? Math.min(own, left - (this.targets.length - 1 - index)) : own
      const share = shares?.get(target) ?? (isFixed ? (index === 0 ? 1 : most) : isPrimary ? most : 0)
      const least = Math.min(kept, most, share)
      left -= most
      kept -= least
      target.max = most
      target.engine.resize({ min: least, max: most })
    }
  }
}
