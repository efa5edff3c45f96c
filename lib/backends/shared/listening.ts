import { AsyncResource } from 'node:async_hooks'
import type { SubscribeOptions, SubscriptionStats, Unsubscribe } from '../../../types/messages.js'
import type { Backoff } from '../../../types/options.js'
import { PoolError } from '../../engine/errors.js'
import type { DriverEvents } from './events.js'
import { unlessAborted } from './signal.js'

/** What is subscribed to. */
export interface Topic {
  /** What tells it apart from all others. */
  readonly key: string
  /** What events and errors call it. */
  readonly name: string
}

/** One connection on which the server sends messages. */
export interface Wire {
  /**
   * Resolves when the server has answered for each key, with its errors for those that it refuses. Rejects where the
   * connection is of no use any more.
   */
  listen (keys: readonly string[]): Promise<ReadonlyMap<string, unknown>>
  unlisten (keys: readonly string[]): Promise<unknown>
  /** A round trip. */
  ping (): Promise<unknown>
  /** `Ear.lost` is not called any more. */
  end (): Promise<void> | void
}

/** Who is told of what happens on a connection. */
export interface Ear<M> {
  heard (key: string, message: M): void
  /** The connection has ended. */
  lost (error: Error | undefined): void
  /** The server sends these no more, though nobody asked it. */
  revoked (keys: readonly string[]): void
}

/** What the subscriptions ask of their backend. */
export interface ListeningSite<M> {
  /** Which connection the server sends this key on. Left out: there is one for all. */
  locate? (key: string, signal: AbortSignal): Promise<string>
  /** @param place as `locate` said. Leaves nothing open where it rejects */
  connect (ear: Ear<M>, signal: AbortSignal, place: string): Promise<Wire>
  /** A connection could not be made, or the server refuses a key: `locate` may have to say something else. */
  failed? (place: string): void
  readonly connectTimeout: number
  readonly backoff: Backoff | undefined
  /** How often a connection is asked whether it is alive, in ms: nothing else is sent on it. 0: as by default. */
  readonly keepalive: number | undefined
  readonly events: DriverEvents
  /** What events show of an error. */
  codeOf (error: unknown): string
  scrub (error: unknown): Error
}

interface Subscription<M> {
  readonly topic: Topic
  readonly deliver: (message: M) => void
  readonly reconnected: (() => void) | undefined
  /** Called when it is over. @param now nothing more is to be read */
  readonly over: (now: boolean) => void
  /** 'cut': the server sent it, and does not now. */
  state: 'new' | 'on' | 'cut'
  /** Settles the call that began it. undefined once it has settled. */
  settle: ((error?: unknown) => void) | undefined
  home: Listening<M>
}

/** A wire, as far as it is known. */
interface Held {
  readonly wire: Wire
  readonly since: number
  readonly known: Set<string>
  /** Known, but the server should send them on another connection now. */
  readonly misplaced: Set<string>
  /** Revoked while `listen` was under way. */
  readonly revoked: Set<string>
}

/** A connection that lived for less, in ms, was no success. */
const steady = 1000
/** The default of `keepalive`, in ms. */
const pingEvery = 10_000

/**
 * The connections that listen. One loop brings them from their present state to the wanted one: connected while
 * somebody listens, to exactly these channels.
 */
export class Listening<M> {
  readonly #site: ListeningSite<M>
  /** The loop runs in this context: no caller's async context may show in another one's listener. */
  readonly #context = new AsyncResource('fastify-pool listen')
  /** By the key. */
  readonly #subscriptions = new Map<string, Set<Subscription<M>>>()
  /** By the place. */
  readonly #wires = new Map<string, Held>()
  readonly #closing = new AbortController()
  /** Failures in a row. */
  #failures = 0
  #loop: Promise<void> | undefined
  /** Called at the end of the loop's next round. */
  readonly #turned: Array<() => void> = []
  /** Ends the pause between two attempts. */
  #hurry: (() => void) | undefined
  #pings: NodeJS.Timeout | undefined
  /** Where its subscriptions have moved: new ones go there, too. */
  #successor: Listening<M> | undefined
  #used = false
  readonly #counts = { received: 0, dropped: 0, reconnects: 0 }

  constructor (site: ListeningSite<M>) { this.#site = site }

  /** undefined: nobody has subscribed yet. */
  get stats (): SubscriptionStats | undefined {
    if (!this.#used) return undefined
    return Object.freeze({
      subscribers: this.#all().length,
      channels: this.#subscriptions.size,
      missing: this.#missing.length,
      connections: this.#wires.size,
      ...this.#counts,
    })
  }

  /**
   * Begins a subscription.
   *
   * @param over called when the signal aborts, and when the pool is closed
   */
  join (
    topic: Topic, fn: (message: M) => unknown, { onReconnect, signal }: SubscribeOptions,
    over: (now: boolean) => void = () => {}
  ): { readonly subscribed: Promise<void>, readonly stop: Unsubscribe } {
    if (this.#successor !== undefined) return this.#successor.join(topic, fn, { onReconnect, signal }, over)
    if (this.#closing.signal.aborted) return { subscribed: Promise.reject(closed()), stop: async () => {} }
    if (signal?.aborted === true) return { subscribed: Promise.reject(aborted(signal)), stop: async () => {} }
    // In the caller's async context.
    const call = AsyncResource.bind((fn: (...args: M[]) => unknown, ...args: M[]) => this.#call(topic, fn, args))
    const abort = () => {
      subscription.settle?.(aborted(signal!))
      stop().catch((error: unknown) => { this.#site.events.fail(error, 'subscription') })
      over(true)
    }
    const subscription: Subscription<M> = {
      topic,
      deliver: (message) => { call(fn, message) },
      reconnected: onReconnect && (() => { call(onReconnect) }),
      over: (now) => {
        signal?.removeEventListener('abort', abort)
        over(now)
      },
      state: 'new',
      settle: undefined,
      home: this,
    }
    const subscribed = new Promise<void>((resolve, reject) => {
      subscription.settle = (error) => {
        subscription.settle = undefined
        if (error === undefined) return resolve()
        signal?.removeEventListener('abort', abort)
        reject(error)
      }
    })
    const stop = async () => {
      signal?.removeEventListener('abort', abort)
      await subscription.home.#leave(subscription)
    }
    signal?.addEventListener('abort', abort, { once: true })
    this.#used = true
    this.#add(subscription)
    return { subscribed, stop }
  }

  /** An iterator has dropped a message. */
  dropped ({ name }: Topic, first: boolean): void {
    this.#counts.dropped++
    if (first) this.#site.events.tell('messages-dropped', { channel: name })
  }

  /** Its subscriptions go on at another server, until that hands them over again. */
  moveTo (other: Listening<M>): void {
    if (other === this || other.#closing.signal.aborted) return
    other.#successor = undefined
    this.#successor = other
    for (const subscription of this.#all()) {
      this.#forget(subscription)
      if (subscription.state === 'on') subscription.state = 'cut'
      subscription.home = other
      other.#used = true
      other.#add(subscription)
    }
    this.#hurry?.()
    this.#start()
  }

  /** Has the server send keys on another connection. @param isMisplaced whether it should */
  review (isMisplaced: (key: string, place: string) => boolean): void {
    for (const [place, held] of this.#wires) {
      const moved = [...held.known].filter((key) => isMisplaced(key, place))
      for (const key of moved) held.misplaced.add(key)
      this.#cut(moved)
      if (moved.length > 0) this.#site.events.tell('listen-lost', { code: 'MOVED', channels: moved.length })
    }
    this.#start()
  }

  async close (): Promise<void> {
    this.#closing.abort(closed())
    this.#hurry?.()
    for (const subscription of this.#all()) {
      this.#forget(subscription)
      subscription.settle?.(closed())
      subscription.over(false)
    }
    this.#start()
    // This also rejects what waits for its answer.
    await this.#endAll()
    await this.#loop
  }

  #add (subscription: Subscription<M>): void {
    const { key } = subscription.topic
    const others = this.#subscriptions.get(key) ?? new Set()
    this.#subscriptions.set(key, others.add(subscription))
    this.#hurry?.()
    this.#start()
  }

  /** Resolves when the server knows. */
  async #leave (subscription: Subscription<M>): Promise<void> {
    const { key } = subscription.topic
    this.#forget(subscription)
    subscription.settle?.(new PoolError('FST_POOL_ABORTED', 'the subscription was ended before it began'))
    if (this.#closing.signal.aborted) return
    this.#start()
    // In an outage there is nothing to undo, and the loop goes on for other subscribers. It may be in a pause for them.
    if (this.#knows(key)) this.#hurry?.()
    while (this.#knows(key) && !this.#subscriptions.has(key)) {
      await new Promise<void>((resolve) => { this.#turned.push(resolve) })
    }
    if (this.#subscriptions.size > 0) return
    this.#hurry?.()
    await this.#loop
  }

  // --- The loop ------------------------------------------------------------------------------------------------------

  #start (): void {
    if (this.#settled) return
    this.#loop ??= this.#context.runInAsyncScope(() => this.#run())
  }

  async #run (): Promise<void> {
    while (!this.#settled) {
      const failed = await this.#step()
      if (failed) this.#failures++
      for (const turned of this.#turned.splice(0)) turned()
      if (failed && this.#subscriptions.size > 0) await this.#pause()
    }
    this.#loop = undefined
  }

  get #settled (): boolean {
    if (this.#subscriptions.size === 0) return this.#wires.size === 0
    return this.#missing.length === 0 && this.#all().every(({ state }) => state === 'on') &&
      [...this.#wires.values()].every((held) => held.known.size > 0 && this.#surplusOf(held).length === 0)
  }

  #knows (key: string): boolean {
    return [...this.#wires.values()].some(({ known }) => known.has(key))
  }

  get #missing (): string[] {
    return [...this.#subscriptions.keys()].filter((key) => !this.#knows(key))
  }

  #surplusOf ({ known, misplaced }: Held): string[] {
    return [...known].filter((key) => !this.#subscriptions.has(key) || misplaced.has(key))
  }

  /** @returns whether something failed, for somebody who still listens */
  async #step (): Promise<boolean> {
    if (this.#subscriptions.size === 0) {
      await this.#endAll()
      return false
    }
    await Promise.all([...this.#wires].map(([place, held]) => this.#prune(place, held)))
    const failures = await this.#extend(this.#missing)
    for (const [place, held] of this.#wires) if (held.known.size === 0) await this.#end(place, held)
    this.#settle()
    return this.#refuse(failures)
  }

  /** Has the server send no more on a connection than is wanted. */
  async #prune (place: string, held: Held): Promise<void> {
    const surplus = this.#surplusOf(held)
    if (surplus.length === 0) return
    try {
      await this.#inTime(held.wire.unlisten(surplus))
    } catch (error) {
      // Its end undoes it, too.
      await this.#drop(place, held, error)
    }
    for (const key of surplus) {
      held.known.delete(key)
      held.misplaced.delete(key)
    }
  }

  /** @returns why which key can't be had */
  async #extend (keys: readonly string[]): Promise<Map<string, unknown>> {
    const failures = new Map<string, unknown>()
    const places = new Map<string, string[]>()
    const late = AbortSignal.any([this.#closing.signal, AbortSignal.timeout(this.#site.connectTimeout)])
    for (const key of keys) {
      try {
        const place = await this.#site.locate?.(key, late) ?? ''
        places.set(place, [...places.get(place) ?? [], key])
      } catch (error) {
        failures.set(key, this.#unreachable(error))
      }
    }
    await Promise.all([...places].map(async ([place, keys]) => {
      const refused = await this.#listen(place, keys).catch((error: unknown) => {
        this.#site.failed?.(place)
        return new Map(keys.map((key) => [key, this.#unreachable(error)]))
      })
      for (const [key, error] of refused) failures.set(key, error)
    }))
    return failures
  }

  async #listen (place: string, keys: readonly string[]): Promise<ReadonlyMap<string, unknown>> {
    const held = this.#wires.get(place) ?? await this.#connect(place)
    held.revoked.clear()
    let refused: ReadonlyMap<string, unknown>
    try {
      refused = await this.#inTime(held.wire.listen(keys))
    } catch (error) {
      await this.#drop(place, held, error)
      throw error
    }
    for (const key of keys) if (!refused.has(key) && !held.revoked.has(key)) held.known.add(key)
    if (refused.size > 0) this.#site.failed?.(place)
    return refused
  }

  async #inTime<T> (answer: Promise<T>): Promise<T> {
    const { connectTimeout } = this.#site
    const late = AbortSignal.timeout(connectTimeout)
    return await unlessAborted(answer, late).catch((error: unknown) => {
      throw late.aborted && error === late.reason
        ? new Error(`the server did not answer within ${connectTimeout} ms (connectTimeout)`)
        : error
    })
  }

  async #connect (place: string): Promise<Held> {
    const deadline = new AbortController()
    const { connectTimeout } = this.#site
    const late = () => deadline.abort(new Error(`no connection within ${connectTimeout} ms (connectTimeout)`))
    const timer = setTimeout(late, connectTimeout)
    const inContext = <A extends unknown[]>(fn: (...args: A) => void) =>
      (...args: A) => this.#context.runInAsyncScope(fn, undefined, ...args)
    let held: Held | undefined
    let dead: { readonly error: Error | undefined } | undefined
    const ear: Ear<M> = {
      heard: (key, message) => { this.#heard(key, message) },
      lost: inContext((error: Error | undefined) => {
        dead = { error }
        if (held !== undefined) this.#lost(place, held, error)
      }),
      revoked: inContext((keys: readonly string[]) => { if (held !== undefined) this.#revoked(place, held, keys) }),
    }
    try {
      const wire = await this.#site.connect(ear, AbortSignal.any([this.#closing.signal, deadline.signal]), place)
      held = { wire, since: performance.now(), known: new Set(), misplaced: new Set(), revoked: new Set() }
    } finally {
      clearTimeout(timer)
    }
    const { error } = (dead ?? {}) as { error?: Error }
    if (dead !== undefined) throw error ?? new Error('the connection was closed')
    this.#wires.set(place, held)
    this.#pings ??= setInterval(() => { this.#ping() }, this.#site.keepalive || pingEvery).unref()
    return held
  }

  /** Tells the subscribers of what the server sends now. */
  #settle (): void {
    const due = this.#all().filter(({ state, topic }) => state !== 'on' && this.#knows(topic.key))
    const restored = new Set(due.filter(({ state }) => state === 'cut').map(({ topic }) => topic.key)).size
    if (restored > 0) {
      this.#counts.reconnects++
      this.#site.events.tell('listen-restored', { channels: restored })
    }
    for (const subscription of due) {
      const isNew = subscription.state === 'new'
      subscription.state = 'on'
      if (isNew) subscription.settle?.()
      else subscription.reconnected?.()
    }
  }

  /** Rejects the calls that wait, and forgets them. For those who listened already it is tried again. */
  #refuse (failures: ReadonlyMap<string, unknown>): boolean {
    let code: string | undefined
    for (const [key, error] of failures) {
      for (const subscription of [...this.#subscriptions.get(key) ?? []]) {
        if (subscription.settle === undefined) {
          code ??= this.#site.codeOf(error instanceof PoolError ? error.cause : error)
          continue
        }
        this.#forget(subscription)
        subscription.settle(error instanceof PoolError ? error : this.#site.scrub(error))
      }
    }
    if (code === undefined) return false
    this.#site.events.tell('listen-failed', { code })
    return true
  }

  #unreachable (cause: unknown): PoolError {
    if (this.#closing.signal.aborted) return closed()
    const error = this.#site.scrub(cause)
    return new PoolError('FST_POOL_CONNECT_FAILED', `no connection to listen on: ${error.message}`, { cause: error })
  }

  /** With full jitter, as the pool's creates. */
  async #pause (): Promise<void> {
    const { min = 50, max = 1000 } = this.#site.backoff ?? {}
    const longest = Math.min(max, min * 2 ** (this.#failures - 1))
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, Math.max(1, Math.random() * longest))
      this.#hurry = () => {
        clearTimeout(timer)
        resolve()
      }
    })
    this.#hurry = undefined
  }

  // --- What happens on a connection ----------------------------------------------------------------------------------

  #heard (key: string, message: M): void {
    const subscriptions = this.#subscriptions.get(key)
    if (subscriptions === undefined) return
    this.#counts.received++
    for (const { deliver } of [...subscriptions]) deliver(message)
  }

  #lost (place: string, held: Held, error: Error | undefined): void {
    if (this.#wires.get(place) !== held) return
    this.#wires.delete(place)
    if (this.#wires.size === 0) this.#restPings()
    // One that dies at once, each time, is not made again at once.
    const isSteady = performance.now() - held.since >= steady
    this.#failures = isSteady ? 0 : this.#failures + 1
    const cut = this.#cut([...held.known])
    if (cut > 0) {
      this.#site.events.tell('listen-lost', { code: this.#site.codeOf(error), channels: cut })
      const why = error === undefined ? 'it was closed' : this.#site.scrub(error).message
      const text = `the connection of ${cut} subscribed channel${cut === 1 ? '' : 's'} was lost: ${why}`
      this.#site.events.fail(new Error(text, { cause: error }), 'subscription')
    }
    if (isSteady) this.#start()
    else this.#startLater()
  }

  #startLater (): void {
    if (this.#loop !== undefined || this.#settled) return
    this.#loop = this.#context.runInAsyncScope(async () => {
      await this.#pause()
      await this.#run()
    })
  }

  #revoked (place: string, held: Held, keys: readonly string[]): void {
    this.#site.failed?.(place)
    for (const key of keys) {
      held.revoked.add(key)
      held.known.delete(key)
      held.misplaced.delete(key)
    }
    const cut = this.#cut(keys)
    if (cut > 0) this.#site.events.tell('listen-lost', { code: 'MOVED', channels: cut })
    this.#start()
  }

  /** The server sends these no more. @returns of how many somebody was told that it does */
  #cut (keys: readonly string[]): number {
    let count = 0
    for (const key of keys) {
      const on = [...this.#subscriptions.get(key) ?? []].filter(({ state }) => state === 'on')
      for (const subscription of on) subscription.state = 'cut'
      if (on.length > 0) count++
    }
    return count
  }

  /** Nothing else would show that a network swallows all. */
  #ping (): void {
    for (const [place, held] of this.#wires) {
      this.#inTime(held.wire.ping()).catch((error: unknown) => this.#drop(place, held, error))
        .catch((error: unknown) => { this.#site.events.fail(error, 'subscription') })
    }
  }

  #restPings (): void {
    clearInterval(this.#pings)
    this.#pings = undefined
  }

  /** Ends a connection that is of no use any more. */
  async #drop (place: string, held: Held, error: unknown): Promise<void> {
    this.#lost(place, held, this.#site.scrub(error))
    await held.wire.end()
  }

  async #end (place: string, held: Held): Promise<void> {
    this.#wires.delete(place)
    if (this.#wires.size === 0) this.#restPings()
    await held.wire.end()
  }

  async #endAll (): Promise<void> {
    await Promise.all([...this.#wires].map(([place, held]) => this.#end(place, held)))
  }

  // --- Subscribers ---------------------------------------------------------------------------------------------------

  #all (): Array<Subscription<M>> {
    return [...this.#subscriptions.values()].flatMap((set) => [...set])
  }

  #forget (subscription: Subscription<M>): void {
    const { key } = subscription.topic
    const others = this.#subscriptions.get(key)
    others?.delete(subscription)
    if (others?.size === 0) this.#subscriptions.delete(key)
  }

  #call ({ name }: Topic, fn: (...args: M[]) => unknown, args: M[]): void {
    const failed = (error: unknown) => {
      const { message } = this.#site.scrub(error)
      this.#site.events.tell('listener-error', { channel: name, message })
      if (this.#site.events.fail(error, 'listener')) return
      process.emitWarning(`a listener of channel ${name} failed: ${message}`, 'PoolWarning')
    }
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

function aborted (signal: AbortSignal): PoolError {
  return new PoolError('FST_POOL_ABORTED', 'the signal of this subscription is aborted', { cause: signal.reason })
}
