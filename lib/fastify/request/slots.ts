import type { FastifyReply } from 'fastify'
import type { RouteTransaction } from '../../../types/plugin.js'
import type { AcquireOptions, Lease } from '../../../types/pool.js'
import { PoolError } from '../../engine/errors.js'
import type { Borrower } from '../../engine/entry.js'
import { kPlace } from '../../engine/line.js'
import { abandon, lentTo, checkHoldTimeout, isBeside, isBusy } from '../../engine/lease.js'
import type { Step } from '../plan.js'
import type { Visit } from '../rules/sticky.js'
import { expectBody, isBodyRead, type Awaiting } from './body.js'
import { Leave, errorOf, overError } from './ending.js'
import type { RequestHolder } from './holder.js'
import { Traffic } from './traffic.js'

/** What the connections of a request ask of its scope. */
export interface Site {
  /** The request has ended: nothing is taken any more. */
  readonly over: boolean
  /** A connection was lent: begins the route's transaction on it, unless the reply is out that would end it. */
  begin (lease: Lease<unknown>, transaction: RouteTransaction): Promise<void> | undefined
  /** A lease went back that nobody has used, and its transaction, which had done nothing, with it. */
  forget (lease: Lease<unknown>): void
  /** Its transaction is being committed or rolled back. */
  isEnding (lease: Lease<unknown>): boolean
  /** Nothing tells when whoever uses a connection has ended: the socket was upgraded, or the reply hijacked. */
  readonly isHijacked: boolean
}

/**
 * A request's place for the connection of one pool.
 *
 * ```
 *           lent             the body is slow
 *   empty --------> held ---------------------> parked
 *                   | ^ ^                         |
 *                   | | '------- lent again ------'
 *         released  | | lent again
 *                   v |
 *                   done <------------------- doubtful
 *                           not in use any more
 * ```
 *
 * A slot is 'parked' from the beginning where the handler reads the body and the connection is taken in `preHandler`. A
 * slot that is 'held' becomes 'doubtful' when the response is cut and the handler may still run; and 'unused', which
 * is 'done' by another name, when the headers of the reply are out and nobody has read its connection. The handler or
 * the pool may end a lease while its slot is 'held': `isOut` sees that.
 */
class Slot implements Borrower {
  readonly #all: Slots
  step: Step
  is: 'empty' | 'held' | 'parked' | 'doubtful' | 'unused' | 'done' = 'empty'
  /** The last one that was lent; none while the slot is parked. */
  lease: Lease<unknown> | undefined = undefined
  /** The next lease, while it is waited for: whoever else wants the connection waits for the same one. */
  taking: Promise<Lease<unknown>> | undefined = undefined
  /** Those who stand in the pool's line: several, where calls have deadlines or signals of their own. */
  waits: Leave[] | undefined = undefined
  /** The first of them has been served: the connection is made ready, for all of them. */
  served: Promise<Lease<unknown>> | undefined = undefined
  /** Somebody has seen the connection, or asked for it, and may use it until the request ends. */
  touched = false
  /** Where the pool is sticky: the acquire that the lease comes from. */
  visit: Visit | undefined = undefined
  /** One of those who wait has asked for the primary. */
  writes = false
  /** When it was first waited for, or lent, in ms of `performance.now()`: set where it may have to come back. */
  since: number | undefined = undefined
  /** The `holdTimeout` of a call of `request.acquire`. */
  asked: number | undefined = undefined

  constructor (all: Slots, step: Step) {
    this.#all = all
    this.step = step
  }

  get #isOwn (): boolean {
    return this.asked !== undefined || this.step.ownHold
  }

  get holdTimeout (): number | undefined {
    return this.#all.isHijacked && !this.#isOwn ? 0 : this.asked ?? this.step.holdTimeout
  }

  get moved (): number | undefined {
    return this.#all.moved
  }

  get restarts (): number {
    return this.#isOwn ? Infinity : RESTARTS
  }

  get inVain (): string | undefined {
    return isUnused(this) ? UNREAD : undefined
  }
}

/**
 * So it is in an app whose handlers take their connections from `app.pools`, and have one more each by default: where
 * all wait for a second one, none comes.
 */
const UNREAD = 'requests that have never read theirs: where handlers take connections from app.pools, or need none, ' +
  'set lease: false (of the plugin or of the pool) and name the pools of other routes in their config.pools.'

/** How many times the hold of a request whose bytes move starts again, unless its route has a hold of its own. */
const RESTARTS = 10

/** What is known of the request's body. */
type Body = 'none' | 'awaited' | 'read' | 'left to the handler'

/** Why a wait ends: another one for the same slot has been served. */
class Served {
  constructor (readonly lease: Promise<Lease<unknown>>) {}
}

/** Whether its next connection is waited for. */
function isAwaited ({ waits, served }: Slot): boolean {
  return served !== undefined || (waits !== undefined && waits.length > 0)
}

/** Whether its connection can be used. */
function isOut ({ is, lease }: Slot): boolean {
  return is === 'held' && !lease!.ended
}

/** The connections of one request, one for each pool that it leases. */
export class Slots implements Awaiting {
  readonly #site: Site
  readonly #reply: FastifyReply
  readonly #holder: { readonly holder: RequestHolder }
  readonly #all: Slot[] = []
  /** Made where a hold is looked at. */
  #traffic: Traffic | undefined
  #body: Body = 'none'
  #bodyTimer: NodeJS.Timeout | undefined
  /** While the body is slow: take back the offers to lend the connections on. */
  #undoOffers: Array<() => void> | undefined
  /** Acquires that may write, where the pool is sticky. */
  #writes: Set<Visit> | undefined

  constructor (site: Site, reply: FastifyReply, holder: RequestHolder) {
    this.#site = site
    this.#reply = reply
    this.#holder = { holder }
  }

  // --- Taking -------------------------------------------------------------------------------------------------------

  /**
   * Takes a connection for each step, one after the other. Calls `done` at once where all are idle; else when it has
   * them, or can't have one.
   */
  take (steps: readonly Step[], done: (error?: Error) => void): void {
    // An earlier hook may have waited while the request ended: then nothing would ever end a lease.
    if (this.#site.over) return this.#failed(overError(), done)
    for (let at = 0; at < steps.length; at++) {
      const slot = this.#slotFor(steps[at]!)
      // Taken by hand before its turn.
      if (isOut(slot)) continue
      let lease: Lease<unknown> | null | undefined = null
      try {
        // A transaction begins with a round trip: it takes the way that waits.
        if (!isAwaited(slot) && slot.step.transaction === undefined) {
          lease = slot.step.source.tryAcquire(this.#reply.request, this.#optionsOf(slot))
        }
      } catch (error) {
        return this.#failed(errorOf(error), done)
      }
      if (lease === undefined) continue
      if (lease === null) {
        this.#takeRest(steps, at).then(() => { done() }, (error: unknown) => { this.#failed(errorOf(error), done) })
        return
      }
      this.#lent(slot, lease)
    }
    done()
  }

  async #takeRest (steps: readonly Step[], from: number): Promise<void> {
    for (const step of steps.slice(from)) {
      if (step.source.serves(this.#reply.request)) await this.#leaseOf(this.#slotFor(step))
    }
  }

  /**
   * Takes a connection by hand. While a lease is out it is the same one; callers at the same time get the same one, or
   * each the error of its own deadline or signal.
   */
  acquire (step: Step, options?: AcquireOptions): Promise<Lease<unknown>> {
    const slot = this.#find(step.name) ?? this.#slotFor(step)
    slot.touched = true
    if (options?.holdTimeout !== undefined) this.#bound(slot, options)
    if (options?.role === 'primary') slot.writes = true
    // Also where the lease is out already, and was taken for reading.
    if (slot.writes && isOut(slot)) this.#mayWrite(slot)
    return this.#leaseOf(slot, options)
  }

  /** A call says how long its connection may be held, one that is out already included. */
  #bound (slot: Slot, options: AcquireOptions): void {
    checkHoldTimeout(options)
    slot.asked = options.holdTimeout
    if (isOut(slot)) lentTo(slot.lease!, slot)
  }

  #leaseOf (slot: Slot, options?: AcquireOptions): Promise<Lease<unknown>> {
    if (isOut(slot)) return Promise.resolve(slot.lease!)
    if (options?.timeout !== undefined || options?.signal !== undefined) return this.#wait(slot, options)
    return (slot.taking ??= this.#wait(slot, options).finally(() => { slot.taking = undefined }))
  }

  /** Waits in the pool's line. Of several waits for one slot, whichever is served first ends the others. */
  async #wait (slot: Slot, options?: AcquireOptions): Promise<Lease<unknown>> {
    if (this.#site.over) throw overError()
    if (slot.served !== undefined) return await slot.served
    const leave = new Leave()
    const waits = (slot.waits ??= [])
    waits.push(leave)
    const unlink = options?.signal && leave.follow(options.signal)
    const came = slot.is === 'parked' ? slot.since : undefined
    slot.since ??= performance.now()
    let lease: Lease<unknown>
    let visit: Visit | undefined
    try {
      const place = came !== undefined && { [kPlace]: came }
      const asked = { ...this.#optionsOf(slot, options), signal: leave, ...place }
      visit = slot.visit
      lease = await slot.step.source.acquire(this.#reply.request, asked)
    } catch (error) {
      if (leave.reason instanceof Served) return await leave.reason.lease
      if (waits.length === 1) slot.writes = false
      throw error
    } finally {
      unlink?.()
      waits.splice(waits.indexOf(leave), 1)
    }
    if (slot.served === undefined && !isOut(slot)) return await this.#serve(slot, lease, visit)
    // Two were served in the same turn.
    lease.release()
    return await (slot.served ?? slot.lease!)
  }

  /** One who waited has a connection: makes it ready, for all who wait. */
  async #serve (slot: Slot, lease: Lease<unknown>, visit: Visit | undefined): Promise<Lease<unknown>> {
    const ready = async (): Promise<Lease<unknown>> => {
      const { transaction } = slot.step
      try {
        if (transaction !== undefined) await this.#site.begin(lease, transaction)
        // The request may have ended between the loan and now.
        if (this.#site.over) throw overError()
        slot.visit = visit
        this.#lent(slot, lease)
        return lease
      } catch (error) {
        lease.release()
        throw error
      }
    }
    slot.served = ready()
    for (const leave of slot.waits!) leave.abort(new Served(slot.served))
    try {
      return await slot.served
    } finally {
      slot.served = undefined
    }
  }

  #optionsOf (slot: Slot, options?: AcquireOptions): AcquireOptions {
    const { role, sticky, writes } = slot.step
    if (sticky === undefined && options === undefined) {
      return role === 'primary' ? this.#holder : { ...this.#holder, role }
    }
    const asked = options?.role
    const may = asked === undefined ? writes : asked === 'primary'
    slot.visit = sticky?.visit(this.#reply.request, asked ?? role, may)
    return { ...this.#holder, ...options, role: slot.visit?.role ?? asked ?? role, holdTimeout: undefined }
  }

  #lent (slot: Slot, lease: Lease<unknown>): void {
    slot.is = 'held'
    slot.lease = lease
    lentTo(lease, slot)
    if (slot.writes) this.#mayWrite(slot)
    else if (slot.visit?.writes === true) this.#wrote(slot.visit)
  }

  /** Somebody has asked for the primary, and has it. */
  #mayWrite (slot: Slot): void {
    slot.writes = false
    if (slot.visit?.role !== 'primary') return
    slot.visit.writes = true
    this.#wrote(slot.visit)
  }

  /** One connection can't be had: those of the request that nobody has seen go back at once. */
  #failed (error: Error, done: (error: Error) => void): void {
    for (const slot of this.#all) if (!slot.touched) release(slot)
    // Nobody reads the reply of a request that is over: with 499 its log line does not look like a fault of the app.
    // A reply whose headers are out keeps its status.
    if (this.#site.over && !this.#reply.raw.headersSent) this.#reply.code(499)
    done(error)
  }

  #slotFor (step: Step): Slot {
    let slot = this.#find(step.name)
    if (slot === undefined) {
      slot = new Slot(this, step)
      this.#all.push(slot)
    }
    slot.step = step
    return slot
  }

  #find (name: string): Slot | undefined {
    for (const slot of this.#all) if (slot.step.name === name) return slot
    return undefined
  }

  // --- How long they may be held ------------------------------------------------------------------------------------

  get isHijacked (): boolean {
    return this.#site.isHijacked
  }

  /** How many bytes have moved, of a body that comes in or a reply that is a stream; undefined: there is neither. */
  get moved (): number | undefined {
    return this.#site.over ? undefined : this.#trafficNow.moved
  }

  /** The reply is a stream. */
  streams (): void {
    this.#trafficNow.streams = true
  }

  get #trafficNow (): Traffic {
    return (this.#traffic ??= new Traffic(this.#reply.request))
  }

  // --- Read your writes ---------------------------------------------------------------------------------------------

  /** Marks an acquire now, and again when the reply is sent and when the request ends: nobody knows when it writes. */
  #wrote (visit: Visit): void {
    (this.#writes ??= new Set()).add(visit)
    visit.mark()
  }

  markWrites (): void {
    if (this.#writes !== undefined) for (const visit of this.#writes) visit.mark()
  }

  // --- The request's body -------------------------------------------------------------------------------------------

  /**
   * The body has `grace` ms to come in, from now on. Then the connections that nobody has seen go back; while it is
   * slow, as soon as somebody waits for one.
   */
  awaitBody (grace: number): void {
    if (this.#body !== 'none' || this.#site.over) return
    this.#body = 'awaited'
    this.#bodyTimer = setTimeout(() => {
      // If the body is in, it is another hook that takes so long, and it may want its connection.
      if (!this.#reply.request.raw.complete) this.#parkAll()
    }, grace).unref()
    expectBody(this)
  }

  bodyIsSlow (): void {
    if (this.#body !== 'awaited' || this.#site.over || this.#reply.request.raw.complete) return
    const offers: Array<() => void> = this.#undoOffers = []
    for (const slot of this.#all) {
      if (isUnused(slot)) offers.push(slot.step.source.lendable(slot.lease!, () => this.#recall(slot)))
    }
  }

  /**
   * Somebody waits for this connection. A request that holds a pool that comes later must not wait for this one again:
   * another request may hold this one and wait for that.
   */
  #recall (slot: Slot): boolean {
    if (!isUnused(slot) || slot.lease!.ended || this.#reply.request.raw.complete) return false
    const { order } = slot.step
    const isLater = (other: Slot) => other.step.order > order && (isOut(other) || isAwaited(other))
    if (this.#all.some(isLater)) return false
    this.#park(slot)
    return true
  }

  #parkAll (): void {
    for (const slot of this.#all) if (isUnused(slot)) this.#park(slot)
  }

  #park (slot: Slot): void {
    slot.since ??= performance.now() - slot.lease!.heldFor
    this.#giveBack(slot, 'parked')
    slot.lease = undefined
  }

  /** The body is awaited no more. */
  #bodyCame (body: 'read' | 'left to the handler'): void {
    this.#body = body
    this.#stopWaiting()
  }

  #stopWaiting (): void {
    clearTimeout(this.#bodyTimer)
    if (this.#undoOffers === undefined) return
    for (const undo of this.#undoOffers) undo()
    this.#undoOffers = undefined
  }

  /** Gives a connection back that nobody has used, and its transaction, which has done nothing. */
  #giveBack (slot: Slot, as: 'parked' | 'unused'): void {
    slot.is = as
    slot.lease!.release()
    this.#site.forget(slot.lease!)
  }

  get awaitsBody (): boolean {
    return this.#body === 'awaited'
  }

  /**
   * The content type parser is done. If the body has been read, takes the connections again that went back meanwhile.
   */
  bodyParsed (done: (error?: Error) => void): void {
    if (this.#body !== 'awaited' || !isBodyRead(this.#reply.request)) return done()
    this.#bodyCame('read')
    const parked = this.#all.filter(({ is }) => is === 'parked').map(({ step }) => step)
    if (parked.length === 0) return done()
    this.take(parked, done)
  }

  /**
   * As `bodyParsed`; but if nobody has read the body by now, the handler will, which may take as long as the client
   * likes. Connections that nobody has seen go back, whether somebody waits for one or not: so a handler that misses
   * `request.acquire` fails at its first try, and not under load.
   */
  handlerBegins (done: (error?: Error) => void): void {
    if (isBodyRead(this.#reply.request)) return this.bodyParsed(done)
    this.#parkAll()
    this.leaveToHandler([])
    done()
  }

  /** The handler reads the body: it takes these connections by hand, when it has done so. */
  leaveToHandler (steps: readonly Step[]): void {
    this.#bodyCame('left to the handler')
    for (const step of steps) {
      const slot = this.#slotFor(step)
      if (slot.is === 'empty') slot.is = 'parked'
    }
  }

  // --- What the request sees ----------------------------------------------------------------------------------------

  /** Why a connection is not there: it went back for the body's sake. Undefined: it did not. */
  parkedFor (name: string): 'a slow body' | 'an upload' | undefined {
    if (this.#find(name)?.is !== 'parked') return undefined
    return this.#body === 'left to the handler' ? 'an upload' : 'a slow body'
  }

  /**
   * A connection, for whoever uses it. Undefined: there was no lease.
   *
   * @throws `FST_POOL_LEASE_RELEASED`
   */
  connection (name: string): unknown {
    const slot = this.#find(name)
    if (slot === undefined || slot.lease === undefined) return undefined
    if (slot.is === 'unused') throw unusedError(name)
    slot.touched = true
    const { connection } = slot.lease
    if (isBeside(slot.lease)) warnOf(this.#reply, this.#holder.holder, name)
    return connection
  }

  lease (name: string): Lease<unknown> | undefined {
    const slot = this.#find(name)
    if (slot === undefined) return undefined
    slot.touched = true
    return slot.lease
  }

  // --- The end ------------------------------------------------------------------------------------------------------

  /** The reply is about to be sent: gives back the connections that the route holds only until then. */
  releaseOnSend (): void {
    for (const slot of this.#all) if (slot.step.release === 'onSend') release(slot)
  }

  /** The headers of the reply are out: gives back the connections that nobody has seen. */
  headersOut (): void {
    for (const slot of this.#all) {
      if (isUnused(slot) && !this.#site.isEnding(slot.lease!)) this.#giveBack(slot, 'unused')
    }
  }

  /** The request has had its time: destroys the connections on which commands of it still run. */
  abandonBusy (): void {
    for (const slot of this.#all) {
      if (!isOut(slot) || !isBusy(slot.lease!)) continue
      slot.is = 'done'
      abandon(slot.lease!)
    }
  }

  /**
   * The request is over: ends acquires that wait, and leases that nobody can be using.
   *
   * @param well the request's handler uses no connection any more
   * @returns whether connections are in doubt, since the handler may still be using them: `settle` decides on them
   */
  end (well: boolean): boolean {
    this.#stopWaiting()
    // Only where an acquire waits: most have long been served, and the error has a stack.
    if (this.#all.some(isAwaited)) {
      const error = overError()
      for (const { waits } of this.#all) if (waits !== undefined) for (const leave of waits) leave.abort(error)
    }
    let doubt = false
    for (const slot of this.#all) {
      // What nobody has seen nobody can be using.
      if (well || !slot.touched || !isOut(slot)) release(slot)
      else {
        slot.is = 'doubtful'
        doubt = true
      }
    }
    return doubt
  }

  /**
   * Decides on connections that are in doubt.
   *
   * @param clean nobody uses them any more: they go back. Else they are destroyed.
   */
  settle (clean: boolean): void {
    for (const slot of this.#all) {
      if (slot.is !== 'doubtful') continue
      slot.is = 'done'
      if (clean) slot.lease!.release()
      else abandon(slot.lease!)
    }
  }
}

/** Whether it has a connection that nobody has seen. */
function isUnused ({ is, touched }: Slot): boolean {
  return is === 'held' && !touched
}

function unusedError (name: string): PoolError {
  return new PoolError('FST_POOL_LEASE_RELEASED', `the connection of pool '${name}' went back when the headers ` +
    `of the reply were out, as nobody had read request.${name} until then: read it before, or ` +
      `await request.acquire('${name}')`)
}

function release (slot: Slot): void {
  if (slot.is !== 'held') return
  slot.is = 'done'
  slot.lease!.release()
}

/** By a route's config: the pools of which it was warned that they are used beside a transaction. */
const besides = new WeakMap<object, Set<string>>()

/** Warns once for each route and pool. */
function warnOf ({ log, request }: FastifyReply, { route }: RequestHolder, name: string): void {
  const { config } = request.routeOptions
  const warned = besides.get(config) ?? new Set<string>()
  if (warned.has(name)) return
  besides.set(config, warned.add(name))
  log.warn({ pool: name, route }, `request.${name} was used beside a transaction that is open on the same ` +
    'connection: what is sent there is part of that transaction, and is rolled back with it, whatever was answered ' +
    'before. Await the transaction first, or use the connection that its function is given. (If it was used within ' +
    'that function, its async context was lost on the way.)')
}
