import { badOption, PoolError } from '../../engine/errors.js'
import type { Redis } from '../../../types/drivers.js'
import { Subscriptions } from '../shared/listeners.js'
import { codeOf } from './errors.js'
import { retryStrategy, sentinelled, type Site } from './options.js'
import { limitSentinels } from './sentinels.js'
import {
  cut, disconnected, disconnectTimeout, drained, isBusy, sendOf, sharedGrace, type Inside,
} from './wire.js'

/** The client that the app may use beside the pool's connections. It reconnects by itself. */
export class SharedClient {
  readonly #site: Site
  readonly #theirs: boolean
  /** The connections by which it asks the sentinels. */
  readonly #sentinels = new Set<Redis>()
  readonly #subscriptions = new Subscriptions()
  #client: Redis | undefined
  #closing: Promise<void> | undefined

  /** @param theirs a client that the app made */
  constructor (site: Site, theirs: Redis | undefined) {
    this.#site = site
    this.#theirs = theirs !== undefined
    if (theirs !== undefined) this.#adopt(theirs)
  }

  /** @throws `FST_POOL_CLOSED` if it would be made after `close` */
  get (): Redis {
    if (this.#client !== undefined) return this.#client
    if (this.#closing !== undefined) throw new PoolError('FST_POOL_CLOSED', 'the pool of this Redis client is closed')
    const { driver, source, connectTimeout } = this.#site
    const { base } = source
    const ours = { retryStrategy, lazyConnect: true, connectTimeout, disconnectTimeout }
    const client = new driver.Redis({ ...base, ...(base.sentinels && sentinelled(base)), ...ours })
    limitSentinels(client, connectTimeout, this.#sentinels, () => this.#closing !== undefined)
    if (source.changes) new Following(client, this.#site).begin()
    this.#adopt(client)
    return client
  }

  /** Its server is no longer the master: it reconnects, and sends again what was not answered. */
  moved (): void {
    if (this.#theirs || this.#client === undefined) return
    (this.#client as unknown as Inside).connector.stream?.destroy()
  }

  close (): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close (): Promise<void> {
    const client = this.#client
    if (client === undefined) return
    if (this.#theirs) return this.#subscriptions.end()
    if (client.status === 'ready' && isBusy(client)) {
      // Not QUIT: it would wait behind a blocked BLPOP for ever.
      const answered = drained(client, AbortSignal.timeout(sharedGrace))
      await answered.catch((error: unknown) => this.#tell('error', { code: codeOf(error) }))
    }
    const inside = client as unknown as Inside
    if (client.status === 'reconnecting') {
      // `disconnect()` would leave the status and the waiting commands of a reconnecting client as they are, for ever.
      if (inside.reconnectTimeout !== null) clearTimeout(inside.reconnectTimeout)
      inside.reconnectTimeout = null
      inside.flushQueue(new Error('Connection is closed.'))
      inside.setStatus('end')
    }
    await disconnected(client, () => { for (const sentinel of this.#sentinels) cut(sentinel) })
  }

  #adopt (client: Redis): void {
    const listen = (name: string, fn: (detail: unknown) => void) => this.#subscriptions.on(client, name, fn)
    // Without a listener ioredis writes errors to the console.
    listen('error', (error) => this.#tell('error', { code: codeOf(error) }))
    for (const name of ['connect', 'ready', 'close', 'end']) listen(name, () => this.#tell(name))
    listen('reconnecting', (delay) => this.#tell('reconnecting', { delay: Number(delay) }))
    this.#client = client
  }

  #tell (name: string, detail: { code?: string, delay?: number } = {}): void {
    this.#site.events.tell(name, { shared: true, ...detail })
  }
}

/**
 * Has the shared client ask for its address whenever it connects: long after other connections were made, the password
 * may be another one.
 */
class Following {
  readonly #client: Redis
  readonly #site: Site
  readonly #connect: () => Promise<void>
  /** Aborts when the client ends. */
  #ended = new AbortController()
  /** What the client was last given. */
  #before: Readonly<Record<string, unknown>>
  /** Whether there is an address to try again. */
  #known: boolean
  #asking: Promise<void> | undefined
  #connecting: Promise<void> | undefined

  constructor (client: Redis, site: Site) {
    this.#client = client
    this.#site = site
    this.#connect = client.connect.bind(client)
    this.#before = site.source.base as Readonly<Record<string, unknown>>
    this.#known = site.source.answered
  }

  /** Own properties hide the client's `connect` and `sendCommand`. */
  begin (): void {
    const client = this.#client
    const send = sendOf(client)
    client.on('end', () => this.#ended.abort(new Error('Connection is closed.')))
    const connect = (callback?: (error?: Error | null) => void): Promise<void> => {
      const done = this.#reconnect()
      if (callback !== undefined) done.then(() => callback(null), callback)
      return done
    }
    // ioredis notes the database with each command that waits for a connection: it must be known by then.
    const sendCommand: Redis['sendCommand'] = (command, stream) => {
      if (client.status !== 'wait') return send(command, stream)
      // Events report why it did not connect, and it tries again.
      Promise.allSettled([this.#reconnect()])
      this.#asking!.then(() => send(command, stream), (error: Error) => command.reject(error))
      return command.promise
    }
    for (const [name, value] of Object.entries({ connect, sendCommand })) {
      Object.defineProperty(client, name, { value, configurable: true, writable: true })
    }
  }

  #reconnect (): Promise<void> {
    if (this.#connecting !== undefined) return this.#connecting
    this.#ended = new AbortController()
    this.#asking = this.#ask()
    this.#connecting = this.#asking.then(() => this.#connect()).finally(() => { this.#connecting = undefined })
    return this.#connecting
  }

  /** Where a function fails, its last answer is used again. */
  async #ask (): Promise<void> {
    const { signal } = this.#ended
    const { options } = this.#client
    const { source, connectTimeout, events } = this.#site
    try {
      const base = await source.now(AbortSignal.any([AbortSignal.timeout(connectTimeout), signal]))
      const hasSentinels = options.sentinels !== null && options.sentinels !== undefined
      if (hasSentinels !== (base.sentinels !== undefined)) {
        throw badOption('connection()', base, 'sentinels in every answer, or in none')
      }
      const gone = Object.keys(this.#before).filter((name) => !(name in base)).map((name) => [name, undefined])
      Object.assign(options, Object.fromEntries(gone), base)
      this.#before = base as Readonly<Record<string, unknown>>
      this.#known = true
    } catch (error) {
      signal.throwIfAborted()
      events.tell('error', { shared: true, code: codeOf(error) })
      if (!this.#known) throw error
    }
  }
}
