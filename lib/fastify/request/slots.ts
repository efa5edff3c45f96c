import type { FastifyReply } from 'fastify'
import type { Role } from '../../../types/connector.js'
import type { RouteTransaction } from '../../../types/plugin.js'
import type { AcquireOptions, Lease } from '../../../types/pool.js'
import { PoolError } from '../../engine/errors.js'
import { abandon, lentTo, checkHoldTimeout, isBeside, isBusy } from '../../engine/lease.js'
import type { Step } from '../plan.js'
import type { Visit } from '../rules/sticky.js'
import { expectBody, isBodyRead, type Awaiting } from './body.js'
import { errorOf, overError } from './ending.js'
import type { RequestHolder } from './holder.js'
import { Slot, type Owner } from './slot.js'
import { Traffic } from './traffic.js'
import { Asked, Served, Wait, isShared } from './wait.js'

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

/** What is known of the request's body. */
type Body = 'none' | 'awaited' | 'read' | 'left to the handler'

/** The connections of one request, one for each pool that it leases. */
export class Slots implements Awaiting, Owner {
  readonly #site: Site
  readonly #reply: FastifyReply
  readonly #holder: RequestHolder
  /** The others follow as `next`: an array of its own would be a literal that reaches the request (see `Wait`). */
  #first: Slot | undefined
  /** Made where a hold is looked at. */
  #traffic: Traffic | undefined
  #body: Body = 'none'
  #bodyTimer: NodeJS.Timeout | undefined
  /** Acquires that may write, where the pool is sticky. */
  #writes: Set<Visit> | undefined

  constructor (site: Site, reply: FastifyReply, holder: RequestHolder) {
    this.#site = site
    this.#reply = reply
    this.#holder = holder
  }

  // --- Taking -------------------------------------------------------------------------------------------------------

  /**
   * Takes a connection for each step, one after the other. Calls `done` at once where all are idle; else when it has
   * them, or can't have one.
   */
  take (steps: readonly Step[], done: (error?: Error) => void, from = 0): void {
    // An earlier hook may have waited while the request ended: then nothing would ever end a lease.
    if (this.#site.over) return this.#failed(overError(), done)
    for (let at = from; at < steps.length; at++) {
      const slot = this.#slotFor(steps[at]!)
      // Taken by hand before its turn.
      if (slot.isOut) continue
      let lease: Lease<unknown> | null | undefined = null
      try {
        const { source, transaction } = slot.step
        // A transaction begins with a round trip: it takes the way that waits.
        const waits = slot.isAwaited || transaction !== undefined
        if (waits && !source.serves(this.#reply.request)) continue
        if (!waits) lease = source.tryAcquire(this.#reply.request, this.#askedOf(slot))
      } catch (error) {
        return this.#failed(errorOf(error), done)
      }
      if (lease === undefined) continue
      if (lease === null) {
        this.#leaseOf(slot).then(() => { this.take(steps, done, at + 1) }, (error: unknown) => {
          this.#failed(errorOf(error), done)
        })
        return
      }
      this.#lent(slot, lease)
    }
    done()
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
    if (slot.writes && slot.isOut) this.#mayWrite(slot)
    return this.#leaseOf(slot, options)
  }

  /** A call says how long its connection may be held, one that is out already included. */
  #bound (slot: Slot, options: AcquireOptions): void {
    checkHoldTimeout(options)
    slot.asked = options.holdTimeout
    if (slot.isOut) lentTo(slot.lease!, slot)
  }

  #leaseOf (slot: Slot, options?: AcquireOptions): Promise<Lease<unknown>> {
    if (slot.isOut) return Promise.resolve(slot.lease!)
    const shares = isShared(options)
    if (shares && slot.taking !== undefined) return slot.taking
    if (this.#site.over) return Promise.reject(overError())
    if (slot.served !== undefined) return slot.served
    try {
      const lease = this.#wait(slot, options)
      if (shares) slot.taking = lease
      return lease
    } catch (error) {
      return Promise.reject(error)
    }
  }

  /** Waits in the pool's line. Of several waits for one slot, whichever is served first ends the others. */
  #wait (slot: Slot, options: AcquireOptions | undefined): Promise<Lease<unknown>> {
    const came = slot.is === 'parked' ? slot.since : undefined
    slot.since ??= performance.now()
    const affinity = options?.affinity ?? slot.step.affinityOf?.(this.#reply.request)
    const wait = new Wait(this.#holder, this.#roleOf(slot, options?.role), affinity, options, came)
    const { visit } = slot
    slot.join(wait)
    return slot.step.source.acquire(this.#reply.request, wait).then((lease) => {
      slot.leave(wait)
      if (slot.served === undefined && !slot.isOut) return this.#serve(slot, lease, visit)
      // Two were served in the same turn.
      lease.release()
      return slot.served ?? slot.lease!
    }, (error: unknown) => {
      slot.leave(wait)
      if (wait.reason instanceof Served) return wait.reason.lease
      if (slot.waits === undefined) slot.writes = false
      throw error
    })
  }

  /** One who waited has a connection: makes it ready, for all who wait. */
  #serve (slot: Slot, lease: Lease<unknown>, visit: Visit | undefined): Lease<unknown> | Promise<Lease<unknown>> {
    const { transaction } = slot.step
    if (transaction === undefined) {
      this.#ready(slot, lease, visit)
      if (slot.waits !== undefined) slot.abort(new Served(Promise.resolve(lease)))
      return lease
    }
    const begin = async (): Promise<Lease<unknown>> => {
      try {
        await this.#site.begin(lease, transaction)
      } catch (error) {
        lease.release()
        throw error
      }
      this.#ready(slot, lease, visit)
      return lease
    }
    slot.served = begin().finally(() => { slot.served = undefined })
    slot.abort(new Served(slot.served))
    return slot.served
  }

  /** @throws where the request has ended between the loan and now */
  #ready (slot: Slot, lease: Lease<unknown>, visit: Visit | undefined): void {
    if (this.#site.over) {
      lease.release()
      throw overError()
    }
    slot.visit = visit
    this.#lent(slot, lease)
  }

  #askedOf (slot: Slot): AcquireOptions {
    const role = this.#roleOf(slot, undefined)
    const affinity = slot.step.affinityOf?.(this.#reply.request)
    return role === 'primary' && affinity === undefined ? this.#holder : new Asked(this.#holder, role, affinity)
  }

  /** Which kind of connection a request gets. @param asked the one that its call asks for */
  #roleOf (slot: Slot, asked: Role | undefined): Role {
    const { role, sticky, writes } = slot.step
    if (sticky === undefined) return asked ?? role
    const may = asked === undefined ? writes : asked === 'primary'
    slot.visit = sticky.visit(this.#reply.request, asked ?? role, may)
    return slot.visit?.role ?? asked ?? role
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
    for (let slot = this.#first; slot !== undefined; slot = slot.next) if (!slot.touched) slot.release()
    // Nobody reads the reply of a request that is over: with 499 its log line does not look like a fault of the app.
    // A reply whose headers are out keeps its status.
    if (this.#site.over && !this.#reply.raw.headersSent) this.#reply.code(499)
    done(error)
  }

  #slotFor (step: Step): Slot {
    let last: Slot | undefined
    for (let slot = this.#first; slot !== undefined; slot = slot.next) {
      if (slot.step.name === step.name) {
        slot.step = step
        return slot
      }
      last = slot
    }
    const slot = new Slot(this, step)
    if (last === undefined) this.#first = slot
    else last.next = slot
    return slot
  }

  #find (name: string): Slot | undefined {
    for (let slot = this.#first; slot !== undefined; slot = slot.next) if (slot.step.name === name) return slot
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
    for (const slot of chain(this.#first)) {
      if (slot.isUnused) slot.undoOffer = slot.step.source.lendable(slot.lease!, () => this.#recall(slot))
    }
  }

  /**
   * Somebody waits for this connection. A request that holds a pool that comes later must not wait for this one again:
   * another request may hold this one and wait for that.
   */
  #recall (slot: Slot): boolean {
    if (!slot.isUnused || slot.lease!.ended || this.#reply.request.raw.complete) return false
    const { order } = slot.step
    for (const other of chain(this.#first)) {
      if (other.step.order > order && (other.isOut || other.isAwaited)) return false
    }
    this.#park(slot)
    return true
  }

  #parkAll (): void {
    for (const slot of chain(this.#first)) if (slot.isUnused) this.#park(slot)
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
    // Set where a body was awaited: nearly all requests have none.
    if (this.#bodyTimer === undefined) return
    clearTimeout(this.#bodyTimer)
    for (const slot of chain(this.#first)) {
      slot.undoOffer?.()
      slot.undoOffer = undefined
    }
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
    const parked = [...chain(this.#first)].filter(({ is }) => is === 'parked').map(({ step }) => step)
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
    if (isBeside(slot.lease)) warnOf(this.#reply, this.#holder, name)
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
    for (let slot = this.#first; slot !== undefined; slot = slot.next) {
      if (slot.step.release === 'onSend') slot.release()
    }
  }

  /** The headers of the reply are out: gives back the connections that nobody has seen. */
  headersOut (): void {
    for (const slot of chain(this.#first)) {
      if (slot.isUnused && !this.#site.isEnding(slot.lease!)) this.#giveBack(slot, 'unused')
    }
  }

  /** The request has had its time: destroys the connections on which commands of it still run. */
  abandonBusy (): void {
    for (const slot of chain(this.#first)) {
      if (!slot.isOut || !isBusy(slot.lease!)) continue
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
    abortWaits(this.#first)
    let doubt = false
    for (let slot = this.#first; slot !== undefined; slot = slot.next) {
      // What nobody has seen nobody can be using.
      if (well || !slot.touched || !slot.isOut) slot.release()
      else {
        slot.is = 'doubtful'
        doubt = true
      }
    }
    if (!doubt) this.#holder.forget()
    return doubt
  }

  /**
   * Decides on connections that are in doubt.
   *
   * @param clean nobody uses them any more: they go back. Else they are destroyed.
   */
  settle (clean: boolean): void {
    for (const slot of chain(this.#first)) {
      if (slot.is !== 'doubtful') continue
      slot.is = 'done'
      if (clean) slot.lease!.release()
      else abandon(slot.lease!)
    }
    this.#holder.forget()
  }
}

/** For what few requests do: those that do it often walk along `next`. */
function * chain (first: Slot | undefined): Generator<Slot, void> {
  for (let slot = first; slot !== undefined; slot = slot.next) yield slot
}

function abortWaits (first: Slot | undefined): void {
  // Made only where an acquire waits: the error has a stack.
  let error: PoolError | undefined
  for (let slot = first; slot !== undefined; slot = slot.next) {
    if (slot.waits !== undefined) slot.abort(error ??= overError())
  }
}

function unusedError (name: string): PoolError {
  return new PoolError('FST_POOL_LEASE_RELEASED', `the connection of pool '${name}' went back when the headers ` +
    `of the reply were out, as nobody had read request.${name} until then: read it before, or ` +
      `await request.acquire('${name}')`)
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
