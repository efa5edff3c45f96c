import { secretsOf } from '../../engine/secrets.js'
import type { Connector, ConnectorError, DriverEvent, ServerState } from '../../../types/connector.js'
import type { Redis } from '../../../types/drivers.js'
import type {
  Messages, MessagesOptions, RedisChannel, RedisListener, RedisMessage, RedisPubSub, SubscribeOptions,
  SubscriptionStats, Unsubscribe,
} from '../../../types/messages.js'
import { loadDriver } from '../shared/driver.js'
import { DriverEvents } from '../shared/events.js'
import { ServerConnector, refuseJoined, sessionOf, type ResetMode } from '../shared/session.js'
import { cutAtAbort } from '../shared/signal.js'
import { SharedClient } from './client.js'
import { isPermanent, isTransient, kindOf, withCode } from './errors.js'
import { exclusive, Source, type RedisOptions, type Site } from './options.js'
import { PubSub, RedisWire, SHARD } from './pubsub.js'
import { limitSentinels, SentinelWatch } from './sentinels.js'
import { RedisSession } from './session.js'
import { cut, redisDriver, type Driver } from './wire.js'

export interface RedisConnector extends Connector<Redis>, RedisPubSub {
  readonly system: 'redis'
  /**
   * The shared client, which reconnects by itself: for single commands, and for work outside of requests. It is made at
   * first access, and connects with its first command. `close` ends it, unless the app made it.
   *
   * Where `url` or `connection` is a function, the client is made from its last answer, if there is one, and asks again
   * whenever it connects. A new password changes nothing for a connected client; where the function fails at a
   * reconnect, its last answer is used. Whether the client uses sentinels, and which, is decided when it is made.
   *
   * @throws `FST_POOL_CLOSED` if it would be made after `close`
   */
  readonly client: Redis
  /** Asks for ROLE, or where the user may not, for INFO. Leaves nothing behind. `offset` is in bytes. */
  inspect (connection: Redis, signal: AbortSignal): Promise<ServerState>
  isTransient (error: unknown): boolean
}

/** What it is: ../connectors.ts, whose function of the same name calls this one. */
export async function redis (options: RedisOptions): Promise<RedisConnector> {
  const source = new Source(options)
  // Beside a client of the app, the app's own copy of the driver is used.
  const { Redis, Command } = (options.client?.constructor ?? {}) as Partial<Driver>
  const driver = loadDriver(redisDriver, options.driver ?? (Redis && { Redis, Command }))
  return new RedisBackend(driver, source, options)
}

/**
 * `destroy` half-closes: the server's own end shows that it has let go. What does not end within 100 ms is cut off.
 * `validate` sends a PING; a refusal for lack of permission is an answer too.
 */
class RedisBackend extends ServerConnector<Redis, RedisSession> implements RedisConnector {
  readonly system = 'redis'
  readonly isTransient = isTransient
  readonly isPermanent = isPermanent
  readonly kindOf = kindOf
  readonly #site: Site
  readonly #mode: ResetMode
  readonly #shared: SharedClient
  readonly #pubsub: PubSub
  /** The secrets of a client that the app made. */
  readonly #theirSecrets: readonly string[] | undefined
  /** What ends an exclusive connection, or the making of one, when the sentinels name another master. */
  readonly #cuts = new Set<(reason: Error) => void>()
  #watch: SentinelWatch | undefined
  #closed = false

  constructor (driver: Driver, source: Source, options: RedisOptions) {
    super()
    refuseJoined(options)
    const { reset = 'session', connectTimeout = 3000, client: theirs } = options
    this.#site = { driver, source, connectTimeout, events: new DriverEvents() }
    this.#mode = reset
    this.#theirSecrets = theirs && secretsOf({ connection: theirs.options })
    this.#shared = new SharedClient(this.#site, theirs)
    this.#pubsub = new PubSub({
      connect: async (ear, signal) => {
        const session = await this.#make(signal, 'none')
        return new RedisWire(session, ear, String(session.connection.options.keyPrefix ?? ''))
      },
      // ioredis takes the end of the last shard channel for the end of all subscriptions on that connection.
      locate: async (key) => key.startsWith(SHARD) ? 'shards' : '',
      connectTimeout,
      backoff: options.backoff,
      keepalive: options.keepalive,
      events: this.#site.events,
      secrets: () => this.secrets,
    })
  }

  get secrets (): readonly string[] {
    return this.#theirSecrets ?? this.#site.source.secrets
  }

  get client (): Redis {
    return this.#shared.get()
  }

  protected override async open (signal: AbortSignal): Promise<RedisSession> {
    return await this.#make(signal, this.#mode)
  }

  async #make (signal: AbortSignal, mode: ResetMode): Promise<RedisSession> {
    const { driver, source, connectTimeout } = this.#site
    const base = await source.now(signal)
    signal.throwIfAborted()
    const { role = 'master' } = base
    const connection: Redis = new driver.Redis({
      ...base,
      ...exclusive,
      // ioredis calls this for each error that the server answers, before it tells the caller. Where it is not needed
      // it is left out.
      ...(role === 'master' && { reconnectOnError: (error: Error) => { session.answered(error); return false } }),
    })
    const session = new RedisSession(connection, this.#site)
    const refusal = hearRefusal(connection)
    const sentinels = new Set<Redis>()
    limitSentinels(connection, connectTimeout, sentinels, () => signal.aborted)
    // ioredis' own timeout covers neither the handshake nor the search for a master.
    const abort = () => {
      cut(connection)
      for (const sentinel of sentinels) cut(sentinel)
    }
    if (base.sentinels) this.#cutWhenMoved(session, abort)
    return await cutAtAbort(signal, abort, async () => {
      try {
        await this.#connect(session, base.sentinels ? role : undefined, signal)
        session.open(mode)
        return session
      } catch (error) {
        // `connect()` rejects with no more than that the connection is closed. The reason came by an event.
        const reason = refusal() ?? session.error ?? error
        await session.end()
        throw signal.aborted ? signal.reason : withCode(reason)
      }
    })
  }

  async #connect (session: RedisSession, role: string | undefined, signal: AbortSignal): Promise<void> {
    await session.connection.connect()
    // Where SELECT fails, ioredis goes on, on the wrong database.
    if (session.error !== undefined) throw session.error
    await session.check(role)
    signal.throwIfAborted()
    if (session.error !== undefined) throw session.error
    if (role === undefined || this.#closed) return
    this.#watch ??= new SentinelWatch(this.#site, () => this.#moved())
  }

  #cutWhenMoved (session: RedisSession, abort: () => void): void {
    const end = (reason: Error) => {
      session.error ??= reason
      abort()
    }
    this.#cuts.add(end)
    session.ended = () => { this.#cuts.delete(end) }
  }

  /**
   * The sentinels have named another master. The old one may be dead and silent, or still accept writes that get lost.
   */
  #moved (): void {
    this.#site.events.tell('switch-master', { shared: true })
    for (const end of [...this.#cuts]) end(new Error('the sentinels have named another master'))
    this.#shared.moved()
  }

  reset (connection: Redis, signal: AbortSignal): Promise<void> | undefined {
    return sessionOf<RedisSession>(connection).undo(signal)
  }

  /**
   * Of exclusive connections: `error` {shared, code}, `end` {shared}, `readonly` {shared} (the server takes no writes).
   * Of the shared client also `connect`, `ready`, `close` and `reconnecting` {delay}. `switch-master`: the sentinels
   * have named another master. Of `subscribe`: `listen-lost` {code, channels}, `listen-failed` {code},
   * `listen-restored` {channels}, `listener-error` {channel, message}, `messages-dropped` {channel}: an iterator has
   * begun to drop.
   */
  onDriverEvent (listener: (event: DriverEvent) => void, failed?: ConnectorError): void {
    this.#site.events.listen(listener, failed)
  }

  subscribe (channel: RedisChannel, fn: RedisListener, options?: SubscribeOptions): Promise<Unsubscribe>
  subscribe (channel: RedisChannel, options?: MessagesOptions): Messages<RedisMessage>
  subscribe (
    channel: RedisChannel, fn?: RedisListener | MessagesOptions, options?: SubscribeOptions
  ): Promise<Unsubscribe> | Messages<RedisMessage> {
    return this.#pubsub.subscribe(channel, fn, options)
  }

  get subscriptions (): SubscriptionStats | undefined {
    return this.#pubsub.stats
  }

  handOver (to: Connector<Redis>): void {
    if (to instanceof RedisBackend) this.#pubsub.moveTo(to.#pubsub)
  }

  /**
   * Ends the subscriptions, and the shared client, if we made it, after up to 500 ms for its pending commands. One that
   * was never used never connects.
   */
  async close (): Promise<void> {
    this.#closed = true
    await Promise.all([this.#watch?.close(), this.#pubsub.close(), this.#shared.close()])
  }
}

/**
 * A full server says so before it is asked anything, and closes the connection: ioredis drops an answer that belongs to
 * no command, and tells only of the end.
 *
 * @returns what it said, once it has
 */
function hearRefusal (connection: Redis): () => Error | undefined {
  let refusal: Error | undefined
  connection.once('connect', () => {
    connection.stream.once('data', (data: Buffer | string) => {
      const [, message] = /^-(ERR max number of clients[^\r]*)/.exec(String(data)) ?? []
      if (message !== undefined) refusal = Object.assign(new Error(message), { name: 'ReplyError' })
    })
  })
  return () => refusal
}
