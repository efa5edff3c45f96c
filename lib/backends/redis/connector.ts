import type { RedisOptions as IORedisOptions } from 'ioredis'
import { badOption, PoolError, secretsOf } from '../../pool/errors.js'
import { Addresses } from '../shared/address.js'
import { loadDriver } from '../shared/driver.js'
import { unlessAborted } from '../shared/signal.js'
import type { Connector, DriverEvent, ServerState } from '../../../types/connector.js'
import type { Redis } from '../../../types/drivers.js'
import { disconnectTimeout, exclusive, retryStrategy, sentinelled, driverOptions } from './options.js'
import type { RedisOptions } from './options.js'
import { sendOf, redisDriver, isBusy, drained, disconnected, cut } from './wire.js'
import type { Driver, Inside, Timed } from './wire.js'
import { SentinelWatch } from './sentinels.js'
import { guardOf, Guard } from './session.js'
import { isTransient, codeOf } from './errors.js'

export interface RedisConnector extends Connector<Redis> {
  readonly system: 'redis'
  /**
   * The shared client, which reconnects by itself: for single commands, and for work outside of requests. Made at first access, and connects with
   * its first command. `close` ends it, unless the app made it.
   *
   * Where `url` or `connection` is a function, it is made from the last answer, if there is one, and asks again whenever it connects. While it is
   * connected, a new password changes nothing for it; where it reconnects and the function fails, it tries as it did last. Whether it goes through
   * sentinels, and to which, is settled when it is made.
   *
   * @throws `FST_POOL_CLOSED` if it would be made after `close`
   */
  readonly client: Redis
  /** By its ROLE, or where the user may not ask for it, by INFO. Leaves nothing behind. `offset` is in bytes. */
  inspect (connection: Redis, signal: AbortSignal): Promise<ServerState>
  isTransient (error: unknown): boolean
}

/**
 * Redis. A connection is one exclusive ioredis connection that never reconnects behind the pool's back: a dead one is replaced, and one whose server
 * answered READONLY when it is given back.
 *
 * With `connection: { sentinels, name }` each create asks the sentinels for the master of now, once; the pool tries again. A further connection to
 * each sentinel hears of a new master: then every connection to the old one is cut off, lent ones too, since what is written there is lost.
 *
 * For a cluster there is `redisCluster`.
 *
 * Not undone by a reset: commands added by `defineCommand` and other properties set on the object stay, and what `duplicate()` and `monitor()`
 * open are connections outside of the pool, which whoever opened them closes. `options` of an exclusive connection is frozen.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`. Nothing is opened yet.
 */
export async function redis (options: RedisOptions): Promise<RedisConnector> {
  const addresses = new Addresses(options)
  const base = driverOptions(options, addresses.fixed)
  // A client that was taken over is of the app's copy of the driver, and so is what is made beside it.
  const { Redis, Command } = (options.client?.constructor ?? {}) as Partial<Driver>
  const driver = loadDriver(redisDriver, options.driver ?? (Redis && { Redis, Command }))
  return new RedisBackend(driver, base, addresses, options)
}

class RedisBackend implements RedisConnector {
  readonly system = 'redis'
  readonly isTransient = isTransient
  readonly #driver: Driver
  readonly #addresses: Addresses
  readonly #options: RedisOptions
  readonly #mode: 'session' | 'transaction' | 'none'
  readonly #connectTimeout: number
  readonly #theirs: boolean
  /** Of a client that was taken over. */
  readonly #theirSecrets: readonly string[] = []
  readonly #sentinels = new Set<Redis>()
  /** What ends an exclusive connection, or the making of one, when the sentinels name another master. */
  readonly #cuts = new Set<(reason: Error) => void>()
  /** As of the last answer. */
  #base: IORedisOptions
  #answered = false
  #watch: SentinelWatch | undefined
  #shared: Redis | undefined
  #unlisten: Array<() => void> = []
  #closing: Promise<void> | undefined
  #listener: ((event: DriverEvent) => void) | undefined

  constructor (driver: Driver, base: IORedisOptions, addresses: Addresses, options: RedisOptions) {
    const { reset = 'session', connectTimeout = 3000, client } = options
    this.#driver = driver
    this.#base = base
    this.#addresses = addresses
    this.#options = options
    this.#mode = reset
    this.#connectTimeout = connectTimeout
    this.#theirs = client !== undefined
    if (client === undefined) return
    this.#theirSecrets = secretsOf({ connection: client.options })
    this.#share(client)
  }

  get secrets (): readonly string[] {
    return this.#theirs ? this.#theirSecrets : this.#addresses.secrets
  }

  get client (): Redis {
    if (this.#shared !== undefined) return this.#shared
    if (this.#closing !== undefined) throw new PoolError('FST_POOL_CLOSED', 'the pool of this Redis client is closed')
    const base = this.#base
    const ours = { retryStrategy, lazyConnect: true, connectTimeout: this.#connectTimeout, disconnectTimeout }
    const client = new this.#driver.Redis({ ...base, ...(base.sentinels && sentinelled(base)), ...ours })
    this.#watchSentinels(client, this.#sentinels, () => this.#closing !== undefined)
    if (this.#addresses.change) this.#followAnswers(client)
    this.#share(client)
    return client
  }

  async create (signal: AbortSignal): Promise<Redis> {
    signal.throwIfAborted()
    const base = await this.#ask(signal)
    signal.throwIfAborted()
    const { role = 'master' } = base
    const connection: Redis = new this.#driver.Redis({
      ...base,
      ...exclusive,
      // ioredis tells of each error that the server answers, before the caller is told: for nothing where there is none.
      ...(role === 'master' && { reconnectOnError: (error: Error) => { guard.answered(error); return false } }),
    })
    const guard = new Guard(connection, this.#driver, (event) => this.#listener?.(event))
    const sentinels = new Set<Redis>()
    this.#watchSentinels(connection, sentinels, () => signal.aborted)
    // ioredis' own timeout ends where the handshake begins, and nothing of it ends the search for a master.
    const abort = () => {
      cut(connection)
      for (const sentinel of sentinels) cut(sentinel)
    }
    signal.addEventListener('abort', abort, { once: true })
    if (base.sentinels) this.#cutWhenMoved(guard, abort)
    try {
      await connection.connect()
      // ioredis goes on where SELECT failed, on the wrong database.
      if (guard.error !== undefined) throw guard.error
      await guard.check(base.sentinels ? role : undefined)
      signal.throwIfAborted()
      if (guard.error !== undefined) throw guard.error
      guard.open(this.#mode)
      if (base.sentinels && this.#closing === undefined) {
        this.#watch ??= new SentinelWatch(this.#driver, () => this.#base, this.#connectTimeout, () => this.#moved())
      }
      return connection
    } catch (error) {
      // The reason was told by an event. What rejects is that the connection is closed.
      const reason = guard.error ?? error
      await guard.close()
      throw signal.aborted ? signal.reason : reason
    } finally {
      signal.removeEventListener('abort', abort)
    }
  }

  /** What a connection is made from now. */
  async #ask (signal: AbortSignal): Promise<IORedisOptions> {
    if (!this.#addresses.change) return this.#base
    const base = driverOptions(this.#options, await this.#addresses.now(signal))
    this.#answered = true
    this.#base = base
    return base
  }

  /** The shared client asks whenever it connects: it may be long after the connections before it, and the password another one. */
  #followAnswers (client: Redis): void {
    const connect = client.connect.bind(client)
    const send = sendOf(client)
    let closed = new AbortController()
    client.on('end', () => closed.abort(new Error('Connection is closed.')))
    let before = this.#base
    /** Whether there is an address to try again. */
    let known = this.#answered
    let asking: Promise<void> | undefined
    let connecting: Promise<void> | undefined
    const follow = async (): Promise<void> => {
      const { signal } = closed
      try {
        const base = await this.#ask(AbortSignal.any([AbortSignal.timeout(this.#connectTimeout), signal]))
        if ((base.sentinels === undefined) !== (client.options.sentinels === null || client.options.sentinels === undefined)) {
          throw badOption('connection()', base, 'sentinels in every answer, or in none')
        }
        const gone = Object.keys(before).filter((name) => !(name in base)).map((name) => [name, undefined])
        Object.assign(client.options, Object.fromEntries(gone), base)
        before = base
        known = true
      } catch (error) {
        signal.throwIfAborted()
        this.#tell('error', { shared: true, code: codeOf(error) })
        if (!known) throw error
      }
    }
    const connectAsked = (): Promise<void> => {
      if (connecting !== undefined) return connecting
      closed = new AbortController()
      asking = follow()
      connecting = asking.then(() => connect()).finally(() => { connecting = undefined })
      return connecting
    }
    const value = (callback?: (error?: Error | null) => void): Promise<void> => {
      const done = connectAsked()
      if (callback !== undefined) done.then(() => callback(null), callback)
      return done
    }
    // ioredis notes the database with each command that waits for a connection: there must be one by then.
    const held: Redis['sendCommand'] = (command, stream) => {
      if (client.status !== 'wait') return send(command, stream)
      // Why it did not connect, it tells by events, and tries again.
      Promise.allSettled([connectAsked()])
      asking!.then(() => send(command, stream), (error: Error) => command.reject(error))
      return command.promise
    }
    Object.defineProperty(client, 'connect', { value, configurable: true, writable: true })
    Object.defineProperty(client, 'sendCommand', { value: held, configurable: true, writable: true })
  }

  #cutWhenMoved (guard: Guard, abort: () => void): void {
    const end = (reason: Error) => {
      guard.error ??= reason
      abort()
    }
    this.#cuts.add(end)
    guard.ended = () => { this.#cuts.delete(end) }
  }

  /** The sentinels have named another master. The old one may be dead and silent, or still take writes that nobody will ever see again. */
  #moved (): void {
    this.#tell('switch-master', { shared: true })
    for (const end of [...this.#cuts]) end(new Error('the sentinels have named another master'))
    // It connects again by itself, and then sends what was not answered.
    if (!this.#theirs && this.#shared !== undefined) (this.#shared as unknown as Inside).connector.stream?.destroy()
  }

  /** A half-close first: the server's answer to it shows that it has let go. What does not answer within 100 ms is cut off. */
  async destroy (connection: Redis): Promise<void> {
    await guardOf(connection).close()
  }

  /** A PING. Being refused permission is an answer too. */
  async validate (connection: Redis, signal: AbortSignal): Promise<boolean> {
    const guard = guardOf(connection)
    return !guard.broken && await unlessAborted(guard.ping(), signal)
  }

  isBroken (connection: Redis): boolean {
    return guardOf(connection).broken
  }

  /** @throws (rejects) where commands are still under way when `signal` aborts, or state was left that can't be undone */
  reset (connection: Redis, signal: AbortSignal): Promise<void> | undefined {
    return guardOf(connection).reset(signal)
  }

  onDeath (connection: Redis, listener: (error?: Error) => void): void {
    guardOf(connection).onDeath(listener)
  }

  async inspect (connection: Redis, signal: AbortSignal): Promise<ServerState> {
    return await unlessAborted(guardOf(connection).inspect(), signal)
  }

  /**
   * `error` {shared, code}, `end` {shared}, `readonly` {shared}: the server takes no writes; of the shared client `connect`, `ready`, `close` and
   * `reconnecting` {delay} too; `switch-master`: the sentinels have named another one.
   */
  onDriverEvent (listener: (event: DriverEvent) => void): void {
    this.#listener = listener
  }

  /** Ends the shared client, if we made it: what it was asked is answered, up to 500 ms. One that was never used never connects. */
  close (): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close (): Promise<void> {
    await this.#watch?.close()
    const client = this.#shared
    if (client === undefined) return
    if (this.#theirs) {
      for (const undo of this.#unlisten.splice(0)) undo()
      return
    }
    if (client.status === 'ready' && isBusy(client)) {
      // Not QUIT: it would wait behind a blocked BLPOP for ever.
      await drained(client, AbortSignal.timeout(sharedGrace)).catch((error: unknown) => this.#tell('error', { shared: true, code: codeOf(error) }))
    }
    const inside = client as unknown as Inside
    if (client.status === 'reconnecting') {
      // `disconnect()` would leave its status and the commands that wait as they are, for ever.
      if (inside.reconnectTimeout !== null) clearTimeout(inside.reconnectTimeout)
      inside.reconnectTimeout = null
      inside.flushQueue(new Error('Connection is closed.'))
      inside.setStatus('end')
    }
    await disconnected(client, () => { for (const sentinel of this.#sentinels) cut(sentinel) })
  }

  #share (client: Redis): void {
    const listen = (name: string, fn: (detail: unknown) => void) => {
      client.on(name, fn)
      this.#unlisten.push(() => client.off(name, fn))
    }
    // Without a listener ioredis writes errors to the console.
    listen('error', (error) => this.#tell('error', { shared: true, code: codeOf(error) }))
    for (const name of ['connect', 'ready', 'close', 'end']) listen(name, () => this.#tell(name, { shared: true }))
    listen('reconnecting', (delay) => this.#tell('reconnecting', { shared: true, delay: Number(delay) }))
    this.#shared = client
  }

  #tell (name: string, detail: { shared: boolean, code?: string, delay?: number }): void {
    this.#listener?.({ name, ...detail })
  }

  /**
   * ioredis asks each sentinel over a connection that only it knows: without a deadline for one that accepts and is silent, and leaving a timer of
   * 2 s behind. Here each gets its share of `connectTimeout`, and can be cut off.
   */
  #watchSentinels (client: Redis, sentinels: Set<Redis>, stopped: () => boolean): void {
    const { connector } = client as unknown as Inside
    const connect = connector.connectToSentinel
    if (connect === undefined) return
    const { sentinels: seeds, sentinelCommandTimeout } = client.options
    const share = Math.max(1, Math.floor(this.#connectTimeout / ((seeds?.length ?? 0) + 1)))
    connector.connectToSentinel = (endpoint, given) => {
      if (stopped()) throw new Error('Connection is closed.')
      const commandTimeout = sentinelCommandTimeout ?? share
      const sentinel = connect.call(connector, endpoint, { connectTimeout: share, commandTimeout, ...given })
      sentinels.add(sentinel)
      sentinel.disconnect = () => {
        sentinels.delete(sentinel)
        cut(sentinel)
      }
      const { sendCommand } = sentinel
      sentinel.sendCommand = (command, stream) => {
        // ioredis before 5.10 leaves the timer of a command that fails in another way.
        command.promise.catch(() => clearTimeout((command as unknown as Timed)._commandTimeoutTimer))
        return sendCommand.call(sentinel, command, stream)
      }
      return sentinel
    }
  }
}

/** How long `close` waits for what the shared client was asked, in ms. */
const sharedGrace = 500
