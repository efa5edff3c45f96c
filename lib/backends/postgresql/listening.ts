import { AsyncResource } from 'node:async_hooks'
import { badOption, PoolError } from '../../engine/errors.js'
import type { Notification } from '../../../types/drivers.js'
import { codeOf } from '../shared/failures.js'
import { unlessAborted } from '../shared/signal.js'
import { quote } from '../shared/sql.js'
import type { PostgresSession } from './session.js'

export interface ListenOptions {
  /** Called when the channel is listened to again after an outage. What was notified meanwhile is lost. */
  onReconnect?: () => unknown
}

/** Gets the payload, '' where there is none. If it throws or rejects, there is a driver event `listener-error`. */
export type NotificationListener = (payload: string, notification: Notification) => unknown

interface Subscription {
  readonly channel: string
  readonly notify: (notification: Notification) => void
  readonly onReconnect: (() => void) | undefined
  /** Settles the call of `listen`. undefined once it has settled. */
  settle: ((error?: unknown) => void) | undefined
  /** The generation of the connection on which it began to listen, or was last told of an outage. 0: none yet. */
  since: number
}

interface ListeningOptions {
  open (signal: AbortSignal): Promise<PostgresSession>
  connectTimeout: number
  scrub (error: unknown): Error
  tell (name: string, detail: Readonly<Record<string, unknown>>): void
}

/**
 * The connection that listens. One loop brings it from its present state to the wanted one: connected while somebody
 * listens, to exactly these channels.
 */
export class Listening {
  readonly #options: ListeningOptions
  /** The loop runs in this context: no caller's async context may show in another one's listener. */
  readonly #context = new AsyncResource('fastify-pool listen')
  readonly #subscriptions = new Map<string, Set<Subscription>>()
  /** The channels that the server has been told of. */
  readonly #known = new Set<string>()
  readonly #closing = new AbortController()
  #session: PostgresSession | undefined
  /** Counts the connections that were made. */
  #generation = 0
  /** Failures in a row. */
  #failures = 0
  #loop: Promise<void> | undefined
  /** Called at the end of the loop's next round. */
  readonly #turned: Array<() => void> = []
  /** Ends the pause between two attempts. */
  #hurry: (() => void) | undefined

  constructor (options: ListeningOptions) { this.#options = options }

  async listen (
    channel: string, fn: NotificationListener, { onReconnect }: ListenOptions = {}
  ): Promise<() => Promise<void>> {
    // PostgreSQL cuts longer names off, and the listener would get another channel's notifications. NUL ends a text
    // there.
    if (typeof channel !== 'string' || channel === '' || Buffer.byteLength(channel) > 63 || channel.includes('\0')) {
      throw badOption('channel', channel, 'the name of a channel: 1 to 63 bytes')
    }
    if (typeof fn !== 'function') throw badOption('fn', fn, 'a function')
    if (this.#closing.signal.aborted) throw closed()
    const call = AsyncResource.bind((fn: (...args: never[]) => unknown, args: never[]) => this.#call(channel, fn, args))
    const subscription: Subscription = {
      channel,
      notify: (notification) => call(fn, [notification.payload, notification] as never[]),
      onReconnect: onReconnect && (() => call(onReconnect, [])),
      settle: undefined,
      since: 0,
    }
    const subscribed = new Promise<void>((resolve, reject) => {
      subscription.settle = (error) => {
        subscription.settle = undefined
        if (error === undefined) resolve()
        else reject(error)
      }
    })
    const others = this.#subscriptions.get(channel) ?? new Set()
    this.#subscriptions.set(channel, others.add(subscription))
    this.#hurry?.()
    this.#start()
    await subscribed
    return async () => {
      this.#forget(subscription)
      if (this.#closing.signal.aborted) return
      this.#start()
      // In an outage there is nothing to unlisten, and the loop goes on for other subscribers.
      while (this.#known.has(channel) && !this.#subscriptions.has(channel)) {
        await new Promise<void>((resolve) => { this.#turned.push(resolve) })
      }
      if (this.#subscriptions.size > 0) return
      this.#hurry?.()
      await this.#loop
    }
  }

  async close (): Promise<void> {
    this.#closing.abort(closed())
    this.#hurry?.()
    for (const subscription of this.#all()) {
      this.#forget(subscription)
      subscription.settle?.(closed())
    }
    this.#start()
    // This also rejects a statement that waits for its answer.
    await this.#disconnect()
    await this.#loop
  }

  #start (): void {
    if (this.#settled) return
    this.#loop ??= this.#context.runInAsyncScope(() => this.#run())
  }

  async #run (): Promise<void> {
    while (!this.#settled) {
      try {
        await this.#step()
        this.#failures = 0
      } catch (error) {
        await this.#failed(error)
        this.#failures++
      }
      for (const turned of this.#turned.splice(0)) turned()
      if (this.#failures > 0 && this.#subscriptions.size > 0) {
        await this.#pause(Math.min(1000, 25 * 2 ** this.#failures))
      }
    }
    this.#loop = undefined
  }

  get #settled (): boolean {
    if (this.#subscriptions.size === 0) return this.#session === undefined
    return this.#session !== undefined && this.#missing.length === 0 && this.#surplus.length === 0 &&
      this.#all().every(({ settle }) => settle === undefined)
  }

  get #missing (): string[] {
    return [...this.#subscriptions.keys()].filter((channel) => !this.#known.has(channel))
  }

  get #surplus (): string[] {
    return [...this.#known].filter((channel) => !this.#subscriptions.has(channel))
  }

  async #step (): Promise<void> {
    if (this.#subscriptions.size === 0) return await this.#disconnect()
    const session = this.#session ?? await this.#connect()
    const missing = this.#missing
    const surplus = this.#surplus
    const statements = [
      ...surplus.map((channel) => `UNLISTEN ${quote(channel)}`),
      ...missing.map((channel) => `LISTEN ${quote(channel)}`),
    ]
    if (statements.length > 0) {
      const late = AbortSignal.timeout(this.#options.connectTimeout)
      await unlessAborted(session.connection.query(statements.join('; ')), late)
    }
    for (const channel of surplus) this.#known.delete(channel)
    for (const channel of missing) this.#known.add(channel)
    const again = this.#all().filter(({ channel, since }) => this.#known.has(channel) && since !== this.#generation)
    const restored = again.some(({ since }) => since !== 0)
    if (restored) this.#options.tell('listen-restored', { channels: this.#known.size })
    for (const subscription of again) {
      const isNew = subscription.since === 0
      subscription.since = this.#generation
      if (isNew) subscription.settle?.()
      else subscription.onReconnect?.()
    }
  }

  async #connect (): Promise<PostgresSession> {
    const deadline = new AbortController()
    const { connectTimeout } = this.#options
    const late = () => deadline.abort(new Error(`no connection within ${connectTimeout} ms (connectTimeout)`))
    const timer = setTimeout(late, connectTimeout)
    let session: PostgresSession
    try {
      session = await this.#options.open(AbortSignal.any([this.#closing.signal, deadline.signal]))
    } finally {
      clearTimeout(timer)
    }
    this.#session = session
    this.#generation++
    session.connection.on('notification', (notification) => {
      for (const { notify } of [...this.#subscriptions.get(notification.channel) ?? []]) notify(notification)
    })
    session.onDeath((error) => this.#context.runInAsyncScope(() => this.#lost(error)))
    return session
  }

  async #disconnect (): Promise<void> {
    const session = this.#session
    this.#session = undefined
    this.#known.clear()
    await session?.end()
  }

  #lost (error: Error | undefined): void {
    this.#session = undefined
    this.#known.clear()
    this.#options.tell('listen-lost', { code: codeOf(error) })
    this.#start()
  }

  /** Rejects the pending calls of `listen` and forgets them. For those who listened already it is tried again. */
  async #failed (cause: unknown): Promise<void> {
    const error = this.#options.scrub(cause)
    const connected = this.#session !== undefined
    for (const subscription of this.#all()) {
      if (subscription.settle === undefined) continue
      this.#forget(subscription)
      // Where the connection works, the server refused the statement: its own error says why.
      subscription.settle(connected
        ? error
        : new PoolError('FST_POOL_CONNECT_FAILED', `no connection to listen on: ${error.message}`, { cause: error }))
    }
    await this.#disconnect()
    if (this.#subscriptions.size === 0) return
    this.#options.tell('listen-failed', { code: codeOf(cause) })
  }

  /** With full jitter. */
  async #pause (longest: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, Math.max(1, Math.random() * longest))
      this.#hurry = () => {
        clearTimeout(timer)
        resolve()
      }
    })
    this.#hurry = undefined
  }

  #all (): Subscription[] {
    return [...this.#subscriptions.values()].flatMap((set) => [...set])
  }

  #forget (subscription: Subscription): void {
    const others = this.#subscriptions.get(subscription.channel)
    others?.delete(subscription)
    if (others?.size === 0) this.#subscriptions.delete(subscription.channel)
  }

  #call (channel: string, fn: (...args: never[]) => unknown, args: never[]): void {
    const failed = (error: unknown) => this.#options.tell('listener-error', {
      channel, message: this.#options.scrub(error).message,
    })
    try {
      Promise.resolve(fn(...args)).catch(failed)
    } catch (error) {
      failed(error)
    }
  }
}

function closed (): PoolError {
  return new PoolError('FST_POOL_CLOSED', 'the pool of this connection is closed')
}
