import type { Role } from '../../types/connector.js'
import type { PoolErrorCode } from '../../types/errors.js'
import type { AcquireOptions, Clock, Lease } from '../../types/pool.js'
import { Books, type Going } from '../engine/books.js'
import { PoolError, badOption, isPoolError } from '../engine/errors.js'
import { label, type Events } from '../engine/events.js'
import * as faults from '../engine/faults.js'
import { acquiredBy } from '../engine/lease.js'
import { Guest, Moment, Waiters, type Waiter } from '../engine/line.js'
import { Time, deadlineExpected, isDeadline, leftOf } from '../engine/time.js'
import type { Choice } from './choice.js'
import type { Ranks } from './roles.js'
import { Moved, type Target } from './target.js'

/** What the dispatch asks of its pool. */
export interface Site<C> {
  name (): string
  readonly targets: ReadonlyArray<Target<C>>
  readonly roles: Ranks<C>
  readonly choice: Choice<Target<C>>
  readonly events: Events
  readonly clock: Clock
  readonly acquireTimeout: number
  readonly maxPending: number
  isClosed (): boolean
  /** One more connection may be made. */
  hasRoom (): boolean
  /** Called at every acquire: the checks begin with the first one. */
  start (): void
  /** A caller waits for a primary: the targets are asked soon. */
  askSoon (): void
  closedError (): PoolError
}

/** A target whose turn came this many times when it had no idle connection gets one more. */
const PATIENCE = 4

/** Codes of acquires that were refused, or sent away from a line. */
const refusals: ReadonlySet<PoolErrorCode> = new Set<PoolErrorCode>([
  'FST_POOL_QUEUE_FULL', 'FST_POOL_OVERLOADED', 'FST_POOL_CIRCUIT_OPEN', 'FST_POOL_DEADLOCK', 'FST_POOL_CLOSED',
])

/** Codes of acquires whose deadline passed. */
const timeouts: ReadonlySet<PoolErrorCode> = new Set<PoolErrorCode>([
  'FST_POOL_ACQUIRE_TIMEOUT', 'FST_POOL_CONNECT_FAILED',
])

/** Codes with which a target that has no connection sends callers away: they are tried elsewhere. */
const hopeless: ReadonlySet<PoolErrorCode> = new Set<PoolErrorCode>([
  'FST_POOL_CIRCUIT_OPEN', 'FST_POOL_CONNECT_FAILED',
])

/** An acquire that was not served at once. Its deadline stays the same, wherever it waits. */
interface Request {
  readonly role: Role
  readonly options: AcquireOptions
  readonly since: number
  readonly deadline: number
  /** The target in whose line it waits; undefined: it waits for a primary. */
  target?: string | undefined
}

/** A request that waits until a target has its role. */
class Claim<C> extends Guest<C> {
  readonly request: Request

  constructor (request: Request, resolve: Waiter<C>['resolve']) {
    const { deadline, options: { holder }, since } = request
    super(undefined, holder, new Moment(since), deadline - since, resolve)
    this.request = request
  }
}

/** Sends callers to targets: to one that can serve them now, into the line of one, or into the line for a primary. */
export class Dispatch<C> {
  readonly #site: Site<C>
  /** The callers that wait for a primary. */
  readonly #line = new Waiters<C>()
  readonly time: Time
  /** How many acquires were not served at once and have not settled. */
  #unsettled = 0
  #quiet: Array<() => void> = []
  /** Of callers that no target served, and of the waits for a primary. */
  readonly books: Books

  constructor (site: Site<C>) {
    this.#site = site
    const { clock, events } = site
    this.books = new Books(clock.now())
    this.time = new Time(clock, (fn) => events.run(fn), () => { this.#tick() }, () => this.#line.size > 0)
  }

  /** How many callers wait for a primary. */
  get pending (): number {
    return this.#line.size
  }

  get going (): Going {
    const now = this.time.read()
    return { now, waiting: [...this.#line].map(({ since }) => Math.max(0, now - since)), out: [] }
  }

  acquire (options: AcquireOptions): Promise<Lease<C>> {
    try {
      const role = readRole(options)
      checkAffinity(options)
      if (options.timeout !== undefined && !isDeadline(options.timeout)) {
        throw badOption('timeout', options.timeout, deadlineExpected)
      }
      const lease = options.signal?.aborted === true ? null : this.take(role, options)
      return lease === null ? this.#serve(role, options) : Promise.resolve(lease)
    } catch (error) {
      return Promise.reject(error)
    }
  }

  /** Lends an idle connection of a target that has the role now, or returns null. */
  take (role: Role, { affinity, holder }: AcquireOptions): Lease<C> | null {
    const { choice, roles } = this.#site
    this.#site.start()
    // Callers that wait for a primary come first.
    if (this.#line.size > 0) return null
    const eligible = roles.eligible(role, affinity)
    if (eligible.length === 1) return eligible[0]!.engine.take(holder)
    const ready = eligible.filter((target) => target.ready)
    if (ready.length === 0) return null
    const best = choice.next(eligible)
    while (ready.length > 0) {
      const target = ready.includes(best) ? best : choice.next(ready)
      const lease = target.engine.take(holder)
      if (lease !== null) {
        this.#took(target, eligible, best)
        return lease
      }
      ready.splice(ready.indexOf(target), 1)
    }
    return null
  }

  #took (target: Target<C>, eligible: ReadonlyArray<Target<C>>, best: Target<C>): void {
    this.#site.choice.took(target, eligible)
    // A caller never waits while another target has an idle connection. Without `grow`, all connections would stay at
    // the target that had the first ones.
    if (best !== target && ++best.passedOver % PATIENCE === 0) this.#grow(best, eligible)
  }

  /**
   * A target that comes back finds its connections with the others. One of those gives up an idle connection, where it
   * has more for its weight even then: so the shares become even, and none is closed and created in turns.
   */
  #makeRoom (target: Target<C>, eligible: ReadonlyArray<Target<C>>): boolean {
    const { choice } = this.#site
    const fill = (one: Target<C>, more: number) => (one.engine.entries.total + more) / choice.weightOf(one)
    const [richest] = eligible
      .filter((one) => one !== target && one.engine.entries.idle.length > 0 && fill(one, -1) >= fill(target, 1))
      .sort((one, other) => fill(other, 0) - fill(one, 0))
    return richest !== undefined && richest.engine.shed()
  }

  /** Makes one more connection of a target, where there is room, or another one has more than its share. */
  #grow (target: Target<C>, eligible: ReadonlyArray<Target<C>>): void {
    const { entries: { coming, total }, supply } = target.engine
    if (target.growing || coming > 0 || supply.isFull || supply.creator.circuit.state !== 'closed') return
    if (total >= target.max || !(this.#site.hasRoom() || this.#makeRoom(target, eligible))) return
    target.growing = true
    const grown = () => { target.growing = false }
    // A failure was reported by the engine; the next turn of the target tries again.
    supply.grow().then(grown, grown)
  }

  /** Acquires for a caller that was not served at once. */
  async #serve (role: Role, options: AcquireOptions): Promise<Lease<C>> {
    const since = this.time.read(true)
    const request = { role, options, since, deadline: since + (options.timeout ?? this.#site.acquireTimeout) }
    const { caller } = this
    this.#unsettled++
    try {
      const lease = await this.#attempt(request)
      if (caller !== undefined) acquiredBy(lease, caller)
      return lease
    } catch (error) {
      if (isPoolError(error)) this.#tell(error, request)
      throw error
    } finally {
      if (--this.#unsettled === 0) for (const resolve of this.#quiet.splice(0)) resolve()
    }
  }

  /** See `Leaks`. */
  get caller (): string | undefined {
    for (const { engine: { upkeep: { leaks } } } of this.#site.targets) {
      const { caller } = leaks
      if (caller !== undefined) return caller
    }
    return undefined
  }

  /** Counts an acquire that failed, and emits its event. Failures at a target were counted by its engine. */
  #tell (error: PoolError, { since, deadline, target, options: { holder } }: Request): void {
    const { events } = this.#site
    const now = this.time.read()
    const wait = now - since
    // Of a server that refuses us for good its callers are told at once.
    const isTimeout = timeouts.has(error.code) && (error.code !== 'FST_POOL_CONNECT_FAILED' || now >= deadline)
    this.books.tick(now, 0, true)
    if (error.code === 'FST_POOL_ABORTED' && target === undefined) this.books.aborted++
    if (refusals.has(error.code) || (timeouts.has(error.code) && !isTimeout)) {
      this.books.refuse(error.code)
      events.emit('refuse', { error, wait, ...label(holder) })
    }
    if (isTimeout) {
      if (target === undefined) this.books.timeouts++
      events.emit('timeout', { error, wait, ...(target !== undefined && { target }), ...label(holder) })
    }
  }

  /** Acquires at the next target, or waits for a primary. */
  #attempt (request: Request): Promise<Lease<C>> {
    const { choice, roles } = this.#site
    const eligible = roles.eligible(request.role, request.options.affinity)
    if (eligible.length === 0) return this.#standInLine(request)
    const ready = eligible.filter((target) => target.ready)
    const best = choice.next(eligible)
    const target = ready.length === 0 || ready.includes(best) ? best : choice.next(ready)
    this.#took(target, eligible, best)
    const timeout = leftOf(request.deadline, this.time.read())
    request.target = target.name
    return target.engine.acquire({ ...request.options, timeout }, request.since).catch((error: unknown) => {
      const isHopeless = isPoolError(error) && hopeless.has(error.code) && !target.usable
      const isElsewhere = error instanceof Moved || (isHopeless && this.time.read() < request.deadline)
      if (!isElsewhere) throw error
      return this.#attempt(request)
    })
  }

  /** Waits until a target has the role, then acquires there. */
  #standInLine (request: Request): Promise<Lease<C>> {
    const { askSoon, events } = this.#site
    const { options: { signal, holder }, deadline } = request
    request.target = undefined
    const refusal = this.#refusal(request)
    if (refusal !== undefined) return Promise.reject(refusal)
    const served = new Promise<Lease<C>>((resolve) => {
      const claim = new Claim<C>(request, resolve)
      if (signal !== undefined) {
        claim.leaveOn(signal, () => { this.#reject(claim, faults.aborted(this.#site.name(), signal)) })
      }
      this.#line.add(claim)
    })
    this.time.arm(deadline)
    this.time.keepAlive()
    askSoon()
    if (events.heard.wait) events.emit('wait', { pending: this.#line.size, ...label(holder) })
    return served
  }

  /** Why a request may not wait for a primary; undefined: it may. */
  #refusal (request: Request): PoolError | undefined {
    const { closedError, isClosed, maxPending, name, roles } = this.#site
    const { options: { signal }, deadline } = request
    if (isClosed()) return closedError()
    if (signal?.aborted === true) return faults.aborted(name(), signal)
    if (!roles.mayServe) return this.#circuitError
    if (deadline <= this.time.read()) return this.#timeoutError(request)
    if (this.#line.size < maxPending) return undefined
    return new PoolError('FST_POOL_QUEUE_FULL', `${this.noPrimary}, and ${this.#line.size} wait for one already`)
  }

  #leave (claim: Waiter<C>): void {
    this.#line.remove(claim)
    claim.end()
    this.time.keepAlive()
  }

  #reject (claim: Waiter<C>, error: PoolError): void {
    this.#leave(claim)
    const now = this.time.read()
    this.books.tick(now, 0, true)
    this.books.failedWait(Math.max(0, now - claim.since))
    claim.reject(error)
  }

  #tick (): void {
    const now = this.time.read()
    this.time.arm(this.#line.sweep(now, (claim) => { this.#reject(claim, this.#timeoutError(claim)) }))
    this.time.wakeSleepers(now)
    this.time.keepAlive()
  }

  /** Called after every change: serves callers that wait for a primary, or rejects them where none can be had. */
  review (): void {
    const { roles } = this.#site
    for (const claim of [...this.#line] as Array<Claim<C>>) {
      // To serve one may have led to others being served.
      if (!claim.inLine) continue
      if (roles.eligible(claim.request.role).length > 0) {
        this.#leave(claim)
        claim.resolve(this.#attempt(claim.request))
      } else if (!roles.mayServe) this.#reject(claim, this.#circuitError)
    }
  }

  /** Resolves when all acquires have settled; undefined: they have. */
  settled (): Promise<void> | undefined {
    return this.#unsettled === 0 ? undefined : new Promise((resolve) => { this.#quiet.push(resolve) })
  }

  /** The pool closes: rejects all that wait. */
  close (): void {
    for (const claim of [...this.#line]) this.#reject(claim, this.#site.closedError())
    this.time.end()
  }

  // --- Errors --------------------------------------------------------------------------------------------------------

  get noPrimary (): string {
    const { name, roles: { arePeers }, targets } = this.#site
    if (arePeers) return `pool '${name()}' has no server that it could use among its ${targets.length} peers`
    return `pool '${name()}' has no primary among its ${targets.length} targets`
  }

  /** Why a target can't be connected to; undefined: none is known to fail. */
  get cause (): Error | undefined {
    return this.#site.targets.find(({ failing }) => failing)?.failure
  }

  get #circuitError (): PoolError {
    const isRefused = this.#site.targets.some(({ engine }) => engine.supply.creator.isRefused)
    return new PoolError(isRefused ? 'FST_POOL_CONNECT_FAILED' : 'FST_POOL_CIRCUIT_OPEN',
      `pool '${this.#site.name()}' can't connect to any target that it could use. Are its servers up, and are their ` +
      'addresses and logins right?', { cause: this.cause })
  }

  #timeoutError ({ since, deadline }: { readonly since: number, readonly deadline: number }): PoolError {
    return new PoolError('FST_POOL_ACQUIRE_TIMEOUT', `${this.noPrimary}, and did not get one within ` +
      `${Math.round(deadline - since)} ms`, { cause: this.cause })
  }
}

/** @throws `FST_POOL_BAD_OPTIONS` */
export function checkAffinity ({ affinity }: Pick<AcquireOptions, 'affinity'>): void {
  if (affinity === undefined || typeof affinity === 'string') return
  throw badOption('affinity', affinity, 'a text, or undefined for none')
}

export function readRole ({ role = 'primary' }: Pick<AcquireOptions, 'role'>): Role {
  if (role !== 'primary' && role !== 'replica') throw badOption('role', role, "'primary' or 'replica'")
  return role
}
