import { Readable } from 'node:stream'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { AcquireOptions, Lease } from '../../../types/pool.js'
import { abandon, hold, isBeside } from '../../pool/pool.js'
import type { HeldTransaction } from '../../pool/transaction.js'
import type { Step } from '../plan.js'
import type { Visit } from '../rules/sticky.js'
import { Leave, Queue, either, hasTimedOut, isHandlerTimeout, isOver, overError } from './ending.js'
import { RequestHolder } from './holder.js'
import { drain, gate, isResponse, isStream, readableOf, resetHttp2 } from './payload.js'

/** Where a request keeps its scope, and the reply that the scope listens to. */
export const kScope = Symbol('fastify-pool.scope')
export const kReply = Symbol('fastify-pool.reply')
/** What was sent before there was a scope. */
export const kSent = Symbol('fastify-pool.sent')

declare module 'fastify' {
  interface FastifyRequest {
    [kScope]: RequestScope | null
    [kReply]: FastifyReply | null
    [kSent]: 'whole' | 'stream' | null
  }
}

/** A request's place for one pool's connection. */
interface Slot {
  step: Step
  lease: Lease<unknown> | undefined
  /** It is being waited for: whoever else wants it waits for the same one. */
  taking: Promise<Lease<unknown>> | undefined
  /** Somebody has seen the connection, and may have kept it. */
  touched: boolean
  /** Given back while the body trickles in; taken again when it is there. */
  parked: boolean
  /** Of a pool that is sticky: the acquire that the lease comes from. */
  visit: Visit | undefined
}

interface Held { readonly slot: Slot, readonly transaction: HeldTransaction, readonly commitOn: 'success' | 'reply' }

export interface Graces { readonly abortGrace: number, readonly bodyGrace: number }

/**
 * The leases of one request. They end with it, whichever way it ends, exactly once.
 *
 * Two questions at the end. Did the request end well: was its reply written (`writableEnded`), and not by `handlerTimeout`? If not, may its
 * handler still be running with a connection? Then that connection is for nobody else: it waits for the handler to settle, `abortGrace` long,
 * and is destroyed.
 */
export class RequestScope {
  readonly #reply: FastifyReply
  readonly #graces: Graces
  readonly #holder: { readonly holder: RequestHolder }
  readonly #slots: Slot[] = []
  /** The transactions that the route asks for, until the reply ends them. */
  #held: Held[] = []
  #ended = false
  /** `onSend` has run: the handler has replied. */
  #replied = false
  /** The reply is a stream, which may read from a connection until its end. */
  #streams = false
  #timedOut = false
  /** Transactions are being committed or rolled back: the reply waits for it. */
  #ending = false
  /** The handler threw while its reply waited: sends the error's reply instead. */
  #overtaken: (() => void) | undefined
  /** An error handler has been called. */
  #failing = false
  /** And that while the reply waited. */
  #failedLate = false
  /** Ends the acquires that wait. */
  #leave: Leave | undefined
  #bodyTimer: NodeJS.Timeout | undefined
  /** After an abnormal end: connections that the handler may still be using. */
  #doubtful: Slot[] = []
  readonly #end = () => { this.end() }
  #leaveQueue: (() => void) | undefined
  /** Acquires of the primary, of pools that are sticky. */
  #writes: Set<Visit> | undefined

  private constructor (request: FastifyRequest, reply: FastifyReply, route: string, graces: Graces) {
    this.#reply = reply
    this.#graces = graces
    this.#holder = { holder: new RequestHolder(route, request) }
    const { [kSent]: sent } = request
    this.#replied = sent !== null
    this.#streams = sent === 'stream'
    reply.raw.on('close', this.#end)
    // A pipelined response that is still queued has no socket, and never emits 'close'.
    if (reply.raw.socket === null) this.#leaveQueue = Queue.join(request.raw.socket, this.#end)
  }

  /** The request's scope, made at its first need. Undefined: the request is over already, and nothing would ever end a lease. */
  static of (request: FastifyRequest, reply: FastifyReply, route: string, graces: Graces): RequestScope | undefined {
    const known = request[kScope]
    if (known !== null) return known.#ended ? undefined : known
    if (isOver(request, reply)) return undefined
    return (request[kScope] = new RequestScope(request, reply, route, graces))
  }

  // --- Taking ---------------------------------------------------------------------------------------------------------------------------

  /** Takes a connection for each step, one after the other. Calls `done` at once where all are idle; else when it has them, or can't have one. */
  take (steps: readonly Step[], done: (error?: Error) => void): void {
    // An earlier hook may have waited while the request ended: then nothing would ever end a lease.
    if (this.#ended) return this.#failed(overError(), done)
    for (let at = 0; at < steps.length; at++) {
      const slot = this.#slotFor(steps[at]!)
      // Taken by hand before its turn.
      if (slot.lease !== undefined && !slot.lease.ended) continue
      let lease: Lease<unknown> | null = null
      try {
        if (slot.taking === undefined && slot.step.transaction === undefined) lease = slot.step.source.tryAcquire(this.#reply.request, this.#optionsOf(slot))
      } catch (error) {
        return this.#failed(errorOf(error), done)
      }
      if (lease === null) {
        this.#takeRest(steps, at).then(() => { done() }, (error: unknown) => { this.#failed(errorOf(error), done) })
        return
      }
      this.#taken(slot, lease)
    }
    done()
  }

  async #takeRest (steps: readonly Step[], from: number): Promise<void> {
    for (const step of steps.slice(from)) await this.#leaseOf(this.#slotFor(step))
  }

  /** By hand. While a lease is out it is the same one; callers at the same time get the same one. */
  acquire (step: Step, options?: AcquireOptions): Promise<Lease<unknown>> {
    const slot = this.#find(step.name) ?? this.#slotFor(step)
    slot.touched = true
    const lease = this.#leaseOf(slot, options)
    // Also where it is out already, and was taken for reading.
    if (options?.role === 'primary' && slot.visit?.role === 'primary') {
      slot.visit.writes = true
      if (slot.taking === undefined) this.#wrote(slot.visit)
    }
    return lease
  }

  #leaseOf (slot: Slot, options?: AcquireOptions): Promise<Lease<unknown>> {
    if (slot.lease !== undefined && !slot.lease.ended) return Promise.resolve(slot.lease)
    return (slot.taking ??= this.#wait(slot, options).then((lease) => {
      this.#taken(slot, lease)
      return lease
    }).finally(() => { slot.taking = undefined }))
  }

  async #wait (slot: Slot, options?: AcquireOptions): Promise<Lease<unknown>> {
    if (this.#ended) throw overError()
    const { step } = slot
    const own = (this.#leave ??= new Leave())
    const both = options?.signal === undefined ? undefined : either([own, options.signal])
    const asked = { ...this.#optionsOf(slot, options), signal: both?.signal ?? own }
    const taking = step.source.acquire(this.#reply.request, asked)
    const lease = await (both === undefined ? taking : taking.finally(() => { both.stop() }))
    try {
      // Behind the reply nothing would commit it: what is written then stands by itself.
      if (!this.#ended && !this.#replied && step.transaction !== undefined) {
        const { commitOn = 'success', ...begin } = step.transaction
        this.#held.push({ slot, transaction: await hold(lease, begin), commitOn })
      }
      // The request may have ended between the loan and now.
      if (this.#ended) throw overError()
      return lease
    } catch (error) {
      lease.release()
      throw error
    }
  }

  #taken (slot: Slot, lease: Lease<unknown>): void {
    slot.lease = lease
    slot.parked = false
    if (slot.visit?.writes === true) this.#wrote(slot.visit)
  }

  #optionsOf (slot: Slot, options?: AcquireOptions): AcquireOptions {
    const { role, sticky, writes } = slot.step
    if (sticky === undefined && options === undefined) return role === 'primary' ? this.#holder : { ...this.#holder, role }
    const asked = options?.role
    slot.visit = sticky?.visit(this.#reply.request, asked ?? role, asked === undefined ? writes : asked === 'primary')
    return { ...this.#holder, ...options, role: slot.visit?.role ?? asked ?? role }
  }

  /** Marks it now, and again when the reply is sent and when the request ends: nobody knows when it writes. */
  #wrote (visit: Visit): void {
    (this.#writes ??= new Set()).add(visit)
    visit.mark()
  }

  #markWrites (): void {
    if (this.#writes !== undefined) for (const visit of this.#writes) visit.mark()
  }

  /** One connection can't be had: those that nobody has seen go back at once. */
  #failed (error: Error, done: (error: Error) => void): void {
    for (const { lease, touched } of this.#slots) if (!touched) lease?.release()
    // Nobody reads this reply: its log line should not look like a fault of ours. One that is sent keeps its status.
    if (this.#ended && !this.#reply.raw.headersSent) this.#reply.code(499)
    done(error)
  }

  #slotFor (step: Step): Slot {
    let slot = this.#find(step.name)
    if (slot === undefined) {
      slot = { step, lease: undefined, taking: undefined, touched: false, parked: false, visit: undefined }
      this.#slots.push(slot)
    }
    slot.step = step
    return slot
  }

  // --- The request's body ---------------------------------------------------------------------------------------------------------------

  /** From now on the body has `bodyGrace` to come in. Else connections that nobody has seen go back: slow bodies must not hold them all. */
  awaitBody (): void {
    if (this.#bodyTimer !== undefined || this.#ended) return
    this.#bodyTimer = setTimeout(() => {
      // It is in, and what takes so long is another hook, which may want its connection.
      if (this.#reply.request.raw.complete) return
      for (const slot of this.#slots) {
        if (slot.touched || slot.lease === undefined) continue
        slot.lease.release()
        slot.lease = undefined
        slot.parked = true
        // Its transaction was rolled back with the lease, and had done nothing.
        this.#held = this.#held.filter((held) => held.slot !== slot)
      }
    }, this.#graces.bodyGrace).unref()
  }

  /** The body is in: takes again what went back meanwhile. */
  bodyIn (done: (error?: Error) => void): void {
    if (this.#bodyTimer === undefined) return done()
    clearTimeout(this.#bodyTimer)
    const parked = this.#slots.filter((slot) => slot.parked).map(({ step }) => step)
    if (parked.length === 0) return done()
    this.take(parked, done)
  }

  // --- What the request sees ------------------------------------------------------------------------------------------------------------

  isParked (name: string): boolean {
    return this.#find(name)?.parked === true
  }

  connection (name: string): unknown {
    const slot = this.#find(name)
    if (slot === undefined || slot.lease === undefined) return undefined
    slot.touched = true
    const { connection } = slot.lease
    if (isBeside(slot.lease)) this.#warnOf(name)
    return connection
  }

  /** Once for each route and pool. */
  #warnOf (name: string): void {
    const { log, request } = this.#reply
    const { config } = request.routeOptions
    const warned = besides.get(config) ?? new Set<string>()
    if (warned.has(name)) return
    besides.set(config, warned.add(name))
    const { route } = this.#holder.holder
    log.warn({ pool: name, route }, `request.${name} was used beside a transaction that is open on the same connection: ` +
      'what is sent there is part of that transaction, and is rolled back with it, whatever was answered before. Await ' +
      'the transaction first, or use the connection that its function is given. (If it was used within that function, ' +
      'its async context was lost on the way.)')
  }

  lease (name: string): Lease<unknown> | undefined {
    const slot = this.#find(name)
    if (slot === undefined) return undefined
    slot.touched = true
    return slot.lease
  }

  #find (name: string): Slot | undefined {
    for (const slot of this.#slots) if (slot.step.name === name) return slot
    return undefined
  }

  // --- Transactions of the route --------------------------------------------------------------------------------------------------------

  /**
   * Commits, before the reply goes out, or rolls back. Done once: `onSend` runs again for the error that a commit throws, and by then it is rolled back.
   * Resolves to what should be sent instead of a stream, which reads within the transaction: that is committed at its end.
   */
  async #endTransactions (payload: unknown): Promise<unknown> {
    const reply = this.#reply
    const response = isResponse(payload) ? payload : undefined
    const status = response?.status ?? reply.statusCode
    const fits = ({ commitOn }: Held) => !this.#failing && (commitOn === 'reply' || status < 400)
    const end = async (spent = 0) => {
      await endAll(this.#held.splice(0), fits, spent)
      this.#markWrites()
    }
    if (!this.#streams) {
      await end()
      return payload
    }
    if (!this.#held.some(fits)) {
      // They end with their leases: the stream may read until then.
      this.#held = []
      return payload
    }
    // Fastify refuses it, and the error's reply rolls back.
    if (response?.bodyUsed === true) return payload
    const source = readableOf(response?.body ?? payload)
    if (response !== undefined) {
      // As Fastify would have done.
      reply.code(response.status)
      for (const [name, value] of response.headers) reply.header(name, value)
    }
    if (reply.request.method !== 'HEAD' && status !== 204 && status !== 304) {
      return gate(source, reply.hasHeader('content-length'), () => end().catch((error: unknown) => {
        resetHttp2(reply)
        throw error
      }))
    }
    // A reply without a body: Fastify would send it at once. One deadline for its stream and the commit.
    const began = performance.now()
    const limit = Math.min(...this.#held.filter(fits).map(({ transaction }) => transaction.commitTimeout || Infinity))
    await drain(source, limit)
    await end(performance.now() - began)
    return Readable.from([])
  }

  // --- The end --------------------------------------------------------------------------------------------------------------------------

  /** An error is about to be answered. After `handlerTimeout` that reply is not the handler's, which goes on. */
  failing (error: { readonly code?: unknown }): void {
    this.#failing = true
    this.#failedLate = this.#ending
    this.#timedOut ||= isHandlerTimeout(error)
  }

  /** Where an error handler runs into `handlerTimeout`, Fastify calls no `onError` a second time. Its signal is there already, and knows. */
  #isTimedOut (): boolean {
    if (!this.#timedOut && this.#failing) this.#timedOut = hasTimedOut(this.#reply.request)
    return this.#timedOut
  }

  /** A reply is about to be sent, and the request has no scope until now. */
  static replying (request: FastifyRequest, payload: unknown): void {
    // Then the handler goes on.
    if (!hasTimedOut(request)) request[kSent] = isStream(payload) ? 'stream' : 'whole'
  }

  /** A reply is about to be sent. Also after the end, when a handler replies to a client that has gone: then it has settled. */
  replying (payload: unknown, done: (error?: Error | null, payload?: unknown) => void): void {
    if (this.#isTimedOut()) return done()
    if (this.#ending) {
      // Fastify can't know yet that there is a reply. The first one goes out, as it always does; but an error has its status and headers set already.
      if (this.#failedLate) this.#overtaken = done
      else this.#reply.log.warn('the reply was already sent, and waits for the commit of its transaction: did you forget to return or await reply.send()?')
      return
    }
    this.#replied = true
    this.#streams = isStream(payload)
    if (this.#ended) {
      this.#settleDoubtful(true)
      return done()
    }
    if (this.#held.length > 0) {
      this.#ending = true
      this.#endTransactions(payload).then((replaced) => {
        this.#releaseOnSend()
        this.#goOn(this.#overtaken ?? (() => { done(null, replaced) }), done)
      }, (error: Error) => { this.#goOn(() => { done(error) }, done, error) })
      return
    }
    this.#releaseOnSend()
    done()
  }

  /** With the reply that waited. */
  #goOn (next: () => void, done: (error: Error) => void, failure?: Error): void {
    this.#ending = false
    const { log, raw } = this.#reply
    // By `handlerTimeout`.
    if (raw.headersSent) {
      if (failure === undefined) log.warn('a reply went out while the transaction was being ended, which it was then')
      else log.error({ err: failure }, 'a reply went out while the transaction was being ended, and that failed')
      return
    }
    try {
      next()
    } catch (error) {
      // Fastify can't write it (a payload that is no text, a header that is none), and would have told the handler, which has long returned.
      done(error as Error)
    }
    // The client left while its reply waited. No hook of others waits behind ours: nobody uses a connection any more.
    if (this.#ended && raw.headersSent) this.#settleDoubtful(true)
  }

  #releaseOnSend (): void {
    // Before the reply: the client's next request can't be sooner than the mark.
    this.#markWrites()
    if (this.#streams) return
    for (const { step, lease } of this.#slots) if (step.release === 'onSend') lease?.release()
  }

  /** Ends every lease. Called by whichever signal of the request's end comes first, and does nothing the next time. */
  end (): void {
    if (this.#ended) return
    this.#ended = true
    this.#markWrites()
    const { raw } = this.#reply
    raw.off('close', this.#end)
    this.#leaveQueue?.()
    clearTimeout(this.#bodyTimer)
    // The error has a stack, and most have long been served.
    if (this.#leave !== undefined && this.#slots.some(({ taking }) => taking !== undefined)) this.#leave.abort(overError())

    const well = raw.writableEnded && !this.#isTimedOut()
    // Whoever hijacked it may also leave the end of it to the client.
    if (this.#held.length > 0 && this.#reply.sent && !this.#isTimedOut()) {
      this.#reply.log.error(this.#replied
        ? 'a transaction that the reply did not end was rolled back: it was begun after that, or the stream at whose end it commits was replaced'
        : 'the reply was hijacked: nothing says whether its transaction should be committed, and it was rolled back')
    }
    for (const slot of this.#slots) {
      // What nobody has seen, nobody can be using.
      if (well || !slot.touched) slot.lease?.release()
      else if (slot.lease !== undefined && !slot.lease.ended) this.#doubtful.push(slot)
    }
    if (this.#doubtful.length === 0) return
    // Until the headers are out, hooks of others that come after ours may use a connection.
    const settled = this.#replied && (this.#streams || raw.headersSent)
    if (settled || this.#graces.abortGrace === 0) return this.#settleDoubtful(settled)
    setTimeout(() => { this.#settleDoubtful(this.#replied && raw.headersSent) }, this.#graces.abortGrace).unref()
  }

  /**
   * The handler has replied, to nobody: its connections are free again, but for a stream that was cut in the middle of its reading. Or it is not
   * known to have settled: what it may still be using is destroyed.
   */
  #settleDoubtful (settled: boolean): void {
    for (const { lease } of this.#doubtful.splice(0)) {
      if (settled && !this.#streams) lease!.release()
      else abandon(lease!)
    }
    this.#markWrites()
  }
}

/** By a route's config: the pools of which it was warned that they are used beside a transaction. */
const besides = new WeakMap<object, Set<string>>()

/** Whatever a connector rejects with: Fastify takes an error that is falsy for none. */
function errorOf (reason: unknown): Error {
  return reason ? reason as Error : new Error('a transaction failed, and its connector did not say why')
}

/**
 * One after the other. After a commit that fails the rest is rolled back; what was committed before stays so: two
 * databases have no common transaction.
 *
 * @param spent how many ms of the commits' time have gone already
 */
async function endAll (ending: readonly Held[], fits: (held: Held) => boolean, spent: number): Promise<void> {
  let failure: unknown
  for (const held of ending) {
    try {
      if (failure === undefined && fits(held)) await held.transaction.commit(spent)
      else await held.transaction.rollback()
    } catch (error) {
      failure ??= errorOf(error)
    }
  }
  if (failure !== undefined) throw failure
}
