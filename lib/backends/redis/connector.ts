import { secretsOf } from '../../pool/errors.js'
import type { Connector, DriverEvent, ServerState } from '../../../types/connector.js'
import type { Redis } from '../../../types/drivers.js'
import { loadDriver } from '../shared/driver.js'
import { DriverEvents } from '../shared/events.js'
import { ServerConnector, sessionOf, type ResetMode } from '../shared/session.js'
import { cutAtAbort } from '../shared/signal.js'
import { SharedClient } from './client.js'
import { isTransient } from './errors.js'
import { exclusive, Source, type RedisOptions, type Site } from './options.js'
import { limitSentinels, SentinelWatch } from './sentinels.js'
import { RedisSession } from './session.js'
import { cut, redisDriver, type Driver } from './wire.js'

export interface RedisConnector extends Connector<Redis> {
  readonly system: 'redis'
  /**
   * The shared client, which reconnects by itself: for single commands, and for work outside of requests. Made at first
   * access, and connects with its first command. `close` ends it, unless the app made it.
   *
   * Where `url` or `connection` is a function, it is made from the last answer, if there is one, and asks again
   * whenever it connects. While it is connected, a new password changes nothing for it; where it reconnects and the
   * function fails, it tries as it did last. Whether it goes through sentinels, and to which, is settled when it is
   * made.
   *
   * @throws `FST_POOL_CLOSED` if it would be made after `close`
   */
  readonly client: Redis
  /** By its ROLE, or where the user may not ask for it, by INFO. Leaves nothing behind. `offset` is in bytes. */
  inspect (connection: Redis, signal: AbortSignal): Promise<ServerState>
  isTransient (error: unknown): boolean
}

/**
 * Redis. A connection is one exclusive ioredis connection that never reconnects behind the pool's back: a dead one is
 * replaced, and one whose server answered READONLY when it is given back.
 *
 * With `connection: { sentinels, name }` each create asks the sentinels for the master of now, once; the pool tries
 * again. A further connection to each sentinel hears of a new master: then every connection to the old one is cut off,
 * lent ones too, since what is written there is lost.
 *
 * For a cluster there is `redisCluster`.
 *
 * Not undone by a reset: commands added by `defineCommand` and other properties set on the object stay, and what
 * `duplicate()` and `monitor()` open are connections outside of the pool, which whoever opened them closes. `options`
 * of an exclusive connection is frozen.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`. Nothing is opened yet.
 */
export async function redis (options: RedisOptions): Promise<RedisConnector> {
  const source = new Source(options)
  // A client that was taken over is of the app's copy of the driver, and so is what is made beside it.
  const { Redis, Command } = (options.client?.constructor ?? {}) as Partial<Driver>
  const driver = loadDriver(redisDriver, options.driver ?? (Redis && { Redis, Command }))
  return new RedisBackend(driver, source, options)
}

/**
 * `destroy` half-closes first: the server's answer to it shows that it has let go. What does not answer within 100 ms
 * is cut off. `validate` sends a PING; being refused permission is an answer too.
 */
class RedisBackend extends ServerConnector<Redis, RedisSession> implements RedisConnector {
  readonly system = 'redis'
  readonly isTransient = isTransient
  readonly #site: Site
  readonly #mode: ResetMode
  readonly #shared: SharedClient
  /** Of a client that was taken over. */
  readonly #theirSecrets: readonly string[] | undefined
  /** What ends an exclusive connection, or the making of one, when the sentinels name another master. */
  readonly #cuts = new Set<(reason: Error) => void>()
  #watch: SentinelWatch | undefined
  #closed = false

  constructor (driver: Driver, source: Source, options: RedisOptions) {
    super()
    const { reset = 'session', connectTimeout = 3000, client: theirs } = options
    this.#site = { driver, source, connectTimeout, events: new DriverEvents() }
    this.#mode = reset
    this.#theirSecrets = theirs && secretsOf({ connection: theirs.options })
    this.#shared = new SharedClient(this.#site, theirs)
  }

  get secrets (): readonly string[] {
    return this.#theirSecrets ?? this.#site.source.secrets
  }

  get client (): Redis {
    return this.#shared.get()
  }

  protected override async open (signal: AbortSignal): Promise<RedisSession> {
    const { driver, source, connectTimeout } = this.#site
    const base = await source.now(signal)
    signal.throwIfAborted()
    const { role = 'master' } = base
    const connection: Redis = new driver.Redis({
      ...base,
      ...exclusive,
      // ioredis tells of each error that the server answers, before the caller is told: for nothing where there is
      // none.
      ...(role === 'master' && { reconnectOnError: (error: Error) => { session.answered(error); return false } }),
    })
    const session = new RedisSession(connection, this.#site)
    const sentinels = new Set<Redis>()
    limitSentinels(connection, connectTimeout, sentinels, () => signal.aborted)
    // ioredis' own timeout ends where the handshake begins, and nothing of it ends the search for a master.
    const abort = () => {
      cut(connection)
      for (const sentinel of sentinels) cut(sentinel)
    }
    if (base.sentinels) this.#cutWhenMoved(session, abort)
    return await cutAtAbort(signal, abort, async () => {
      try {
        await this.#connect(session, base.sentinels ? role : undefined, signal)
        return session
      } catch (error) {
        // The reason was told by an event. What rejects is that the connection is closed.
        const reason = session.error ?? error
        await session.end()
        throw signal.aborted ? signal.reason : reason
      }
    })
  }

  async #connect (session: RedisSession, role: string | undefined, signal: AbortSignal): Promise<void> {
    await session.connection.connect()
    // ioredis goes on where SELECT failed, on the wrong database.
    if (session.error !== undefined) throw session.error
    await session.check(role)
    signal.throwIfAborted()
    if (session.error !== undefined) throw session.error
    session.open(this.#mode)
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
   * The sentinels have named another master. The old one may be dead and silent, or still take writes that get lost.
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
   * `error` {shared, code}, `end` {shared}, `readonly` {shared}: the server takes no writes; of the shared client
   * `connect`, `ready`, `close` and `reconnecting` {delay} too; `switch-master`: the sentinels have named another one.
   */
  onDriverEvent (listener: (event: DriverEvent) => void): void {
    this.#site.events.listen(listener)
  }

  /**
   * Ends the shared client, if we made it: what it was asked is answered, up to 500 ms. One that was never used never
   * connects.
   */
  async close (): Promise<void> {
    this.#closed = true
    await Promise.all([this.#watch?.close(), this.#shared.close()])
  }
}
