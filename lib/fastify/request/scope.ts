import type { FastifyReply, FastifyRequest } from 'fastify'
import type { RouteTransaction } from '../../../types/plugin.js'
import type { Lease } from '../../../types/pool.js'
import { RouteTransactions, type Site as CommitSite } from './commit.js'
import { Queue, hasTimedOut, isHandlerTimeout, isOver, isUpgrade } from './ending.js'
import { handOver, onHeaders, type Replied } from './handed.js'
import { RequestHolder } from './holder.js'
import { isStream } from './payload.js'
import { Slots, type Site as SlotsSite } from './slots.js'

/** Where a request keeps its scope, from the first need of one. */
export const kScope = Symbol('fastify-pool.scope')
/** Where a request keeps its reply. */
export const kReply = Symbol('fastify-pool.reply')
/** Where a request keeps what became of its reply before there was a scope: 'none' where it has failed. */
export const kGiven = Symbol('fastify-pool.given')

declare module 'fastify' {
  interface FastifyRequest {
    [kScope]: RequestScope | undefined
    [kReply]: FastifyReply | undefined
    [kGiven]: None | Given | undefined
  }
}

/** How long a request's connections outlast its client, or its reply, in ms. */
export interface Graces {
  readonly abortGrace: number
  readonly replyGrace: number
}

/** Whether the request goes on. It ends once, and its leases with it. */
type Life = 'open' | 'over'

/** What became of the handler. One that timed out may still run, and the reply is not its own. */
type Handler = 'well' | 'failed' | 'timed out'

/** What became of the reply. */
type Reply = None | Ending | Given

/** There is no reply yet. */
interface None { readonly is: 'none' }

/** The reply waits while the route's transactions are committed or rolled back. */
interface Ending {
  readonly is: 'ending'
  readonly streams: boolean
  /** The handler threw meanwhile: the reply of its error replaces the one that waits. */
  failed: boolean
  /** Sends the reply of that error. */
  instead: (() => void) | undefined
}

/** The reply was handed to Fastify. */
interface Given {
  readonly is: 'given'
  /** The reply is a stream: it may read from a connection until its end. */
  readonly streams: boolean
}

const none: None = { is: 'none' }
const whole: Given = { is: 'given', streams: false }
const stream: Given = { is: 'given', streams: true }

/** What Fastify gives an `onSend` hook to call. */
export type OnSendDone = (error?: Error | null, payload?: unknown) => void

/** Marks a method of replies that tells the request's scope. */
const kTells = Symbol('fastify-pool.tells')

/**
 * No hook tells what a handler sends before other hooks have seen it, nor that it writes its reply by hand. So `send`
 * and `hijack` of this kind of replies (the prototype that Fastify gives to a scope of the app) do. A method of each
 * reply's own would make a request three times as expensive.
 */
function tell (reply: FastifyReply): void {
  if (kTells in reply.send) return
  const kind = Object.getPrototypeOf(reply) as FastifyReply
  const { send, hijack } = kind
  const telling: FastifyReply['send'] = function (this: FastifyReply, payload) {
    this.request[kScope]?.sends(payload)
    return send.call(this, payload)
  }
  kind.send = Object.assign(telling, { [kTells]: true })
  kind.hijack = function () {
    this.request[kScope]?.linger()
    return hijack.call(this)
  }
}

/**
 * One request: its life, its handler and its reply, each a small state of its own. `slots` has its connections, and
 * `#transactions`, from the first one on, those of its route.
 *
 * Two questions at the end. Did the request end well: was its reply written, and not by `handlerTimeout`? If not, may
 * its handler still be running with a connection? Then that connection is for nobody else: it waits for the handler to
 * settle, `abortGrace` long, and is destroyed.
 */
export class RequestScope implements SlotsSite, CommitSite, Replied {
  readonly reply: FastifyReply
  readonly slots: Slots
  readonly #graces: Graces
  #life: Life = 'open'
  #handler: Handler = 'well'
  #reply: Reply
  #transactions: RouteTransactions | undefined
  readonly #end = () => { this.end() }
  #leaveQueue: (() => void) | undefined
  #lingers = false
  /**
   * The handler replied with something that is no stream. An `onSend` hook that comes before ours may have made one of
   * it since (compression); it reads from no connection.
   */
  #sentWhole = false
  #lookTimer: NodeJS.Timeout | undefined

  private constructor (request: FastifyRequest, reply: FastifyReply, route: string, graces: Graces) {
    this.reply = reply
    this.slots = new Slots(this, reply, new RequestHolder(route, request))
    this.#graces = graces
    this.#reply = request[kGiven] ?? none
    if (this.#reply.is === 'given') handOver(this)
    reply.raw.on('close', this.#end)
    tell(reply)
    // A pipelined response that is still queued has no socket, and never emits 'close'.
    if (reply.raw.socket === null) this.#leaveQueue = Queue.join(request.raw.socket, this.#end)
  }

  /**
   * The request's scope, made at its first need. Undefined: the request is over already, and nothing would ever end a
   * lease.
   */
  static of (
    request: FastifyRequest, reply: FastifyReply, route: string, graces: Graces
  ): RequestScope | undefined {
    const known = request[kScope]
    if (known !== undefined) return known.over ? undefined : known
    if (isOver(request, reply)) return undefined
    return (request[kScope] = new RequestScope(request, reply, route, graces))
  }

  // --- What slots and transactions ask ------------------------------------------------------------------------------

  get over (): boolean {
    return this.#life === 'over'
  }

  get failed (): boolean {
    return this.#handler !== 'well'
  }

  begin (lease: Lease<unknown>, transaction: RouteTransaction): Promise<void> | undefined {
    // Behind the reply nothing would commit it: what is written then stands by itself.
    if (this.over || this.#reply.is !== 'none') return undefined
    return (this.#transactions ??= new RouteTransactions(this)).begin(lease, transaction)
  }

  forget (lease: Lease<unknown>): void {
    this.#transactions?.forget(lease)
  }

  isEnding (lease: Lease<unknown>): boolean {
    return this.#transactions?.isEnding(lease) === true
  }

  committed (): void {
    this.slots.markWrites()
  }

  /** The handler, or an error handler, gives what is to be sent: before any `onSend` hook. */
  sends (payload: unknown): void {
    this.#sentWhole = !isStream(payload)
  }

  // --- The reply ----------------------------------------------------------------------------------------------------

  /** The handler failed, or timed out: an error is about to be answered. */
  failing (error: unknown): void {
    if (isHandlerTimeout(error)) this.#handler = 'timed out'
    else if (this.#handler === 'well') this.#handler = 'failed'
    if (this.#reply.is === 'ending') this.#reply.failed = true
  }

  /**
   * Where an error handler runs into `handlerTimeout`, Fastify calls no `onError` a second time: the request's signal
   * tells of it.
   */
  get #isTimedOut (): boolean {
    return this.#handler === 'timed out' || (this.#handler === 'failed' && hasTimedOut(this.reply.request))
  }

  /** As `failing`, and the request has no scope until now. */
  static failing (request: FastifyRequest): void {
    request[kGiven] ??= none
  }

  /** A reply is about to be sent, and the request has no scope until now. */
  static replying (request: FastifyRequest, payload: unknown): void {
    // The reply of a timeout is not the handler's, which goes on.
    if (request[kGiven] !== undefined && hasTimedOut(request)) return
    request[kGiven] = isStream(payload) ? stream : whole
  }

  /**
   * A reply is about to be sent.
   *
   * | handler   | reply       | life | what becomes of the new reply                                                |
   * | --------- | ----------- | ---- | ---------------------------------------------------------------------------- |
   * | timed out |             |      | It is not the handler's: it is sent, and no state changes.                   |
   * |           | ending      |      | That of an error replaces the one that waits. Another one is dropped.        |
   * |           | none, given | over | It goes to nobody. The handler has settled: no connection is in doubt.       |
   * |           | none, given | open | It waits until open transactions of the route have ended, and is sent.       |
   */
  replying (payload: unknown, done: OnSendDone): void {
    if (this.#isTimedOut) {
      handOver(this)
      return done()
    }
    if (this.#reply.is === 'ending') return this.#secondReply(this.#reply, done)
    this.#reply = isStream(payload) && !this.#sentWhole ? stream : whole
    if (this.over) this.#settle(true)
    else if (this.#transactions?.open === true) return this.#ending(this.#transactions, payload, this.#reply, done)
    else this.#sending(this.#reply)
    done()
  }

  /**
   * A second reply, while the first one waits: Fastify can't know yet that there is one. The first one goes out, as
   * with Fastify itself. The reply of an error is the exception: its status and headers are set already.
   */
  #secondReply (ending: Ending, done: OnSendDone): void {
    if (ending.failed) ending.instead = done
    else {
      this.reply.log.warn('the reply was already sent, and waits for the commit of its transaction: ' +
        'did you forget to return or await reply.send()?')
    }
  }

  #ending (transactions: RouteTransactions, payload: unknown, given: Given, done: OnSendDone): void {
    const ending: Ending = this.#reply = { is: 'ending', streams: given.streams, failed: false, instead: undefined }
    transactions.end(payload, given.streams).then((replaced) => {
      this.#reply = given
      this.#sending(given)
      this.#goOn(ending.instead ?? (() => { done(null, replaced) }), done)
    }, (error: Error) => {
      this.#reply = given
      this.#goOn(() => { done(error) }, done, error)
    })
  }

  /** Goes on with the reply that waited. */
  #goOn (next: () => void, done: OnSendDone, failure?: Error): void {
    const { log, raw } = this.reply
    if (raw.headersSent) {
      // `handlerTimeout` has sent another reply.
      if (failure === undefined) log.warn('a reply went out while the transaction was being ended, which it was then')
      else log.error({ err: failure }, 'a reply went out while the transaction was being ended, and that failed')
      return
    }
    try {
      next()
    } catch (error) {
      // Fastify can't write the reply (a payload that is no text, a bad header). It would have told the handler, which
      // has long returned.
      done(error as Error)
    }
    // The client left while its reply waited. All other hooks have run, too: nobody uses a connection any more.
    if (this.over && raw.headersSent) this.#settle()
  }

  #sending ({ streams }: Given): void {
    // Before the reply: the client's next request can't be sooner than the mark.
    this.slots.markWrites()
    if (streams) this.slots.streams()
    else this.slots.releaseOnSend()
    handOver(this)
  }

  /**
   * The reply is on its way, and its end does not depend on us: the client may read it slowly, or not at all, or
   * another reply of the same socket comes first.
   *
   * Connections that nobody has read go back once the headers are out; of a hijacked reply, `replyGrace` ms later. The
   * request is over `replyGrace` ms later where the whole reply is written by then, and a connection on which a command
   * still runs is destroyed; the reply of a stream is looked at again, since it may read from a connection until its
   * end.
   */
  linger (): void {
    if (this.#lingers) return
    this.#lingers = true
    onHeaders(this.reply.raw, () => {
      if (this.over) return
      // Whoever writes a hijacked reply by hand may only now begin to read.
      if (!this.isHijacked || this.#isTimedOut) this.slots.headersOut()
      this.#lookIn(this.#graces.replyGrace)
    })
  }

  #lookIn (ms: number): void {
    this.#lookTimer = setTimeout(() => {
      if (this.reply.raw.writableEnded || this.#isWhole) return this.#graceOver()
      this.slots.headersOut()
      this.#lookIn(Math.max(ms, 100))
    }, ms).unref()
  }

  #graceOver (): void {
    this.slots.abandonBusy()
    this.end()
  }

  /**
   * The reply was given as a whole, though it may not be written yet: a later hook made a stream of it (compression).
   * Nothing but trailers can need a connection behind it.
   */
  get #isWhole (): boolean {
    return this.#reply.is === 'given' && !this.#reply.streams && !this.reply.hasHeader('trailer')
  }

  // --- The end ------------------------------------------------------------------------------------------------------

  /**
   * Ends the request. Each signal of its end calls this, and the first one counts.
   *
   * | response | handler  | reply is a stream | connections that were seen (all others go back)                       |
   * | -------- | -------- | ----------------- | --------------------------------------------------------------------- |
   * | written  |          |                   | They go back.                                                         |
   * | cut      | settled  | no                | They go back.                                                         |
   * | cut      | settled  | yes               | They are destroyed: the stream may be reading from them.              |
   * | cut      | may run  |                   | They wait for the handler; after `abortGrace` ms they are destroyed.  |
   * | cut      | hijacked |                   | They are destroyed: nothing tells when it has settled.                |
   *
   * A response that `handlerTimeout` wrote counts as cut, and an upgraded socket as hijacked.
   */
  end (): void {
    if (this.over) return
    this.#life = 'over'
    this.slots.markWrites()
    const { raw } = this.reply
    raw.off('close', this.#end)
    this.#leaveQueue?.()
    if (this.#lookTimer !== undefined) clearTimeout(this.#lookTimer)
    const timedOut = this.#isTimedOut
    // Where the client left before there was a reply, nobody expects a commit. A hijacked reply counts as sent.
    if (this.#transactions?.open === true && this.reply.sent && !timedOut) {
      this.reply.log.error(this.#reply.is === 'none'
        ? 'the reply was hijacked: nothing says whether its transaction should be committed, and it was rolled back'
        : 'a transaction that the reply did not end was rolled back: it was begun after that, or the stream at whose ' +
          'end it commits was replaced')
    }
    if (!this.slots.end(raw.writableEnded && !timedOut)) return
    const { abortGrace } = this.#graces
    if (this.#isSettled || (!timedOut && this.isHijacked) || abortGrace === 0) this.#settle()
    else setTimeout(() => { this.#settle() }, abortGrace).unref()
  }

  /** Whether a response that was cut was not Fastify's: what used it may go on for as long as it likes. */
  get isHijacked (): boolean {
    return this.#reply.is === 'none' && (this.reply.sent || isUpgrade(this.reply.request))
  }

  /**
   * Whether nobody but a stream may still use a connection. Until the headers of a reply are out, other hooks that come
   * after ours may; once a stream has been given, no more is to be waited for.
   */
  get #isSettled (): boolean {
    return this.#reply.is !== 'none' && (this.#reply.streams || this.reply.raw.headersSent)
  }

  /** Decides on the connections that are in doubt. They are destroyed unless all is settled and there is no stream. */
  #settle (settled = this.#isSettled): void {
    this.slots.settle(settled && this.#reply.is !== 'none' && !this.#reply.streams)
    this.slots.markWrites()
  }
}
