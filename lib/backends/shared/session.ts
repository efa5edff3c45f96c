import type { Activity, Capacity, Connector, DestroyReason, Role, ServerState } from '../../../types/connector.js'
import { badOption } from '../../engine/errors.js'
import { unjoined } from '../../engine/settings.js'
import { Listeners } from './listeners.js'
import { cutAtAbort, unlessAborted } from './signal.js'

/** What is undone when a connection is given back. */
export type ResetMode = 'session' | 'transaction' | 'none'

/**
 * For all backends but PostgreSQL.
 *
 * @throws `FST_POOL_BAD_OPTIONS` for its mode 'joined'
 */
export function refuseJoined (options: object): void {
  if ('reset' in options && options.reset === 'joined') throw badOption('reset', 'joined', unjoined)
}

const sessionKey: unique symbol = Symbol('fastify-pool session')

/** One driver connection, and what a borrower may leave on it. */
export abstract class Session<C extends object> {
  readonly connection: C
  /** What the connection died of, or what went wrong with it last. */
  error: Error | undefined
  /** It ended, or nobody can know any more what happens on it. */
  protected dead = false
  /** `end` was called. */
  protected ending = false
  #ended: Promise<void> | void = undefined
  #gone = false
  #died: ((error?: Error) => void) | undefined

  constructor (connection: C) {
    this.connection = connection
    Object.defineProperty(connection, sessionKey, { value: this })
  }

  /** What keeps the process alive; undefined: nothing, or something that is not this connection's. */
  get socket (): { ref? (): unknown, unref? (): unknown } | undefined {
    return undefined
  }

  /** Whether it is dead, or about to be. No I/O. */
  abstract get broken (): boolean

  /** What it is doing now, as far as the driver knows. No I/O. */
  abstract describe (): Activity | undefined

  /** A round trip: whether it answers as it should. Not called where it is broken. */
  abstract ping (signal: AbortSignal): Promise<boolean>

  /** Closes it, and resolves when the other side has let go. */
  protected abstract close (): Promise<void> | void

  /**
   * Whether it must not be lent again. No I/O. Asked before every loan and at every return: the first time is when
   * `onConnect` has run, and no borrower was there yet.
   */
  unfit (): boolean {
    return this.broken
  }

  /** Ends it at once, without waiting for the other side: `close` then resolves. */
  protected drop (): void {}

  /**
   * Closes it, once. From here on its death is not reported any more.
   *
   * @param signal when it aborts, the other side is not waited for any more
   */
  end (signal?: AbortSignal): Promise<void> | void {
    if (this.ending) return this.#ended
    this.ending = true
    const ended = this.close()
    this.#ended = ended
    if (ended !== undefined && signal !== undefined) {
      this.#ended = cutAtAbort(signal, () => { this.drop() }, () => ended)
    }
    return this.#ended
  }

  onDeath (listener: (error?: Error) => void): void {
    if (this.#gone) queueMicrotask(() => listener(this.error))
    else this.#died = listener
  }

  /** It has ended. A driver may say so several times; it is told once, and not where `end` was called. */
  protected die (): void {
    this.dead = true
    this.#gone = true
    const died = this.#died
    this.#died = undefined
    if (!this.ending) died?.(this.error)
  }
}

/** The session of a connection: a property of it, since it is looked up at every loan and return. */
export function sessionOf<S> (connection: object): S {
  const session = (connection as { readonly [sessionKey]?: S })[sessionKey]
  if (session === undefined) throw new TypeError('this connection is not of this connector')
  return session
}

/**
 * The part of a connector that is the same for all whose connections have sessions.
 *
 * `reset` is each backend's own: one that declares the signal gets one, which costs the pool about 1 us.
 */
export abstract class SessionConnector<C extends object, S extends Session<C>> implements Connector<C> {
  abstract readonly system: string

  /** Opens one, ready for use. Leaves nothing open where it rejects. */
  protected abstract open (signal: AbortSignal): Promise<S>

  async create (signal: AbortSignal): Promise<C> {
    signal.throwIfAborted()
    return (await this.open(signal)).connection
  }

  destroy (connection: C, _reason?: DestroyReason, signal?: AbortSignal): Promise<void> | void {
    return sessionOf<S>(connection).end(signal)
  }

  async validate (connection: C, signal: AbortSignal): Promise<boolean> {
    const session = sessionOf<S>(connection)
    return !session.broken && await unlessAborted(session.ping(signal), signal)
  }

  isBroken (connection: C): boolean {
    return sessionOf<S>(connection).unfit()
  }

  onDeath (connection: C, listener: (error?: Error) => void): void {
    sessionOf<S>(connection).onDeath(listener)
  }

  ref (connection: C, keepsAlive: boolean): void {
    const { socket } = sessionOf<S>(connection)
    // A stream that the app's own function has made may have neither.
    if (keepsAlive) socket?.ref?.()
    else socket?.unref?.()
  }

  describe (connection: C): Activity | undefined {
    return sessionOf<S>(connection).describe()
  }
}

/** A session over a connection of its own to a server, whose driver's object is an event emitter. */
export abstract class ServerSession<C extends object> extends Session<C> {
  /** The server refused a write because it is a replica, and not because of the borrower's own transaction. */
  misplaced = false
  protected readonly listeners: Listeners

  /** @param emitters all on which a borrower can add listeners */
  constructor (connection: C, emitters: readonly object[] = [connection]) {
    super(connection)
    this.listeners = new Listeners(emitters, () => { this.dead = true })
  }

  /** What the server says of itself. */
  abstract inspect (): Promise<ServerState>

  /** How many connections the server allows; undefined: it does not say. */
  abstract capacity (): Promise<Capacity | undefined>
}

/** A connector of such sessions. */
export abstract class ServerConnector<C extends object, S extends ServerSession<C>> extends SessionConnector<C, S> {
  /** As `inspect` has found it last. */
  #role: Role | undefined

  /**
   * A connection on which a write was refused is broken, since another one may reach a server that takes it. Not where
   * the pool knows the server for a replica.
   */
  override isBroken (connection: C): boolean {
    const session = sessionOf<S>(connection)
    return session.unfit() || (session.misplaced && this.#role !== 'replica')
  }

  async inspect (connection: C, signal: AbortSignal): Promise<ServerState> {
    const state = await unlessAborted(sessionOf<S>(connection).inspect(), signal)
    this.#role = state.role
    return state
  }

  async capacity (connection: C, signal: AbortSignal): Promise<Capacity | undefined> {
    return await unlessAborted(sessionOf<S>(connection).capacity(), signal)
  }
}
