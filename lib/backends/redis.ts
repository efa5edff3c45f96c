import type { Socket } from 'node:net'
import type { RedisOptions as IORedisOptions } from 'ioredis'
import { badOption, PoolError, secretsOf } from '../pool/errors.js'
import type { Address } from '../pool/options.js'
import { Addresses } from './shared/address.js'
import { loadDriver } from './shared/driver.js'
import { unlessAborted } from './shared/signal.js'
import type { AddressNow } from './shared/address.js'
import type { DriverKind } from './shared/driver.js'
import type { Connector, DriverEvent, ServerState } from '../../types/connector.js'
import type { Cluster, Command, Redis } from '../../types/drivers.js'

export interface RedisOptions {
  /**
   * `redis://`, `rediss://` (TLS), or a Unix socket: `/run/redis.sock`, `unix:///run/redis.sock`. Default `redis://localhost:6379`.
   * What the other options say wins over it. A function is asked at each create.
   */
  url?: Address['url']
  /** Default: the URL's, else 'localhost'. */
  host?: string
  /** Default: the URL's, else 6379. */
  port?: number
  /** The number of the database, 0 or more, as a number or a text. Default: the URL's, else 0. */
  database?: string | number
  /**
   * ioredis' own options, untouched: `username`, `password`, `tls`, `sentinels` + `name`, ... Those that would do the pool's work are refused. A
   * function is asked at each create.
   */
  connection?: Address['connection']
  /**
   * What is undone at return. Default 'session'.
   * - 'session': whatever the next borrower could notice, at the price of the connection where nothing else undoes it.
   * - 'transaction': an open MULTI and watched keys. The selected database, subscriptions, listeners and what `CLIENT` set stay as they are.
   * - 'none': nothing.
   */
  reset?: 'session' | 'transaction' | 'none'
  /** How long one attempt of the shared client may take, in ms; sentinels share it. An exclusive connection obeys its signal. Default 3000. */
  connectTimeout?: number
  /** The module ioredis, or its class: for bundles, and copies of one's own. Default: the one that @fastify/redis uses. */
  driver?: unknown
  /**
   * A client that the app made, instead of `url`, `host` and `port`: it is the shared one, its options are those of the exclusive connections, and
   * it is never closed.
   */
  client?: Redis
}

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

/** ioredis' own `sendCommand`, looked up at each command: what instruments it may patch the prototype at any time. */
export function sendOf (client: Redis | Cluster): Cluster['sendCommand'] {
  const own = Object.getOwnPropertyDescriptor(client, 'sendCommand') as { value: Cluster['sendCommand'] } | undefined
  const prototype = Object.getPrototypeOf(client) as Cluster
  return (command, stream, node) => (own ?? { value: prototype.sendCommand }).value.call(client as Cluster, command, stream, node)
}

/** What is used of the module ioredis. */
export interface Driver {
  readonly Redis: new (options: object) => Redis
  readonly Cluster: new (nodes: unknown[], options: object) => Cluster
  readonly Command: new (name: string, args: string[], options: object) => Command
}

export const redisDriver: DriverKind<Driver> = {
  backend: 'redis',
  name: 'ioredis',
  via: '@fastify/redis',
  expected: 'the module ioredis, or its class Redis',
  read (module) {
    // The module is the class itself. A class of the app's over it is used as it is.
    const Redis = (typeof module === 'function' ? module : module.Redis ?? {}) as Partial<Driver> & { prototype?: Partial<Redis> }
    const { Cluster = Redis.Cluster, Command = Redis.Command } = module as Partial<Driver>
    if (typeof Redis.prototype?.sendCommand !== 'function' || Command === undefined) return undefined
    return { Redis, Cluster, Command } as unknown as Driver
  },
  // @fastify/redis does not give its copy.
  belongs: ({ fastifyRedis }) => typeof fastifyRedis === 'function',
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

// --- Sentinels ------------------------------------------------------------------------------------------------------------------------

/** How long after a sentinel went away it is looked for again, in ms. */
const sentinelPause = 1000

/** Hears from each of the sentinels that were named when there is another master. It has no part in making connections. */
class SentinelWatch {
  readonly #driver: Driver
  /** As of the last answer: the sentinels' password may change, which they are does not. */
  readonly #base: () => IORedisOptions
  readonly #connectTimeout: number
  readonly #moved: () => void
  readonly #connections = new Set<Redis>()
  readonly #timers = new Set<NodeJS.Timeout>()
  #master: string | undefined
  #closed = false

  constructor (driver: Driver, base: () => IORedisOptions, connectTimeout: number, moved: () => void) {
    this.#driver = driver
    this.#base = base
    this.#connectTimeout = connectTimeout
    this.#moved = moved
    for (const at of base().sentinels ?? []) this.#listen(at)
  }

  async close (): Promise<void> {
    this.#closed = true
    for (const timer of this.#timers) clearTimeout(timer)
    await Promise.all([...this.#connections].map((connection) => disconnected(connection)))
  }

  #listen (at: { host?: string, port?: number, family?: number }): void {
    const { sentinelUsername, sentinelPassword, sentinelTLS, protocol, family } = this.#base() as IORedisOptions & Newer
    const connection = new this.#driver.Redis({
      host: at.host,
      port: at.port ?? 26379,
      family: at.family ?? family,
      username: sentinelUsername,
      password: sentinelPassword,
      tls: sentinelTLS,
      protocol,
      retryStrategy: null,
      lazyConnect: true,
      enableReadyCheck: false,
      connectTimeout: this.#connectTimeout,
      disconnectTimeout,
    } as object as IORedisOptions)
    this.#connections.add(connection)
    // That a sentinel can't be had is told by the creates that ask it. Without a listener ioredis writes errors to the console.
    connection.on('error', () => {})
    connection.on('message', (_channel, text) => {
      const [name, , , host, port] = text.split(' ')
      if (name === this.#base().name) this.#hear(`${host}:${port}`)
    })
    connection.once('end', () => {
      this.#connections.delete(connection)
      if (this.#closed) return
      const timer = setTimeout(() => {
        this.#timers.delete(timer)
        this.#listen(at)
      }, sentinelPause).unref()
      this.#timers.add(timer)
    })
    this.#ask(connection).catch(() => {
      // It ended, or is not asked so: then it is tried again, as above.
      cut(connection)
    })
  }

  async #ask (connection: Redis): Promise<void> {
    await connection.connect()
    // It is no reason for the process to live.
    connection.stream.unref()
    // Sent together, so that nothing is missed between them; and in RESP2 nothing can be asked after it.
    const asked = connection.call('SENTINEL', 'GET-MASTER-ADDR-BY-NAME', this.#base().name!)
    const [address] = await Promise.all([asked, connection.subscribe('+switch-master')])
    if (Array.isArray(address)) this.#hear(address.join(':'))
  }

  #hear (address: string): void {
    const moved = this.#master !== undefined && this.#master !== address
    this.#master = address
    if (moved && !this.#closed) this.#moved()
  }
}

// --- Options --------------------------------------------------------------------------------------------------------------------------

/** How long a half-closed connection may take until it is cut off, in ms. */
const disconnectTimeout = 100
/** How long `close` waits for what the shared client was asked, in ms. */
const sharedGrace = 500

/** What makes a connection exclusive: it lives once, sends at once or not at all, and tells each failure to the pool. */
const exclusive: IORedisOptions = {
  lazyConnect: true,
  // ioredis 5 takes it, and does not say so.
  retryStrategy: null as unknown as () => null,
  reconnectOnError: null,
  enableOfflineQueue: false,
  enableReadyCheck: false,
  autoResubscribe: false,
  autoResendUnfulfilledCommands: false,
  maxRetriesPerRequest: null,
  sentinelRetryStrategy: () => null,
  failoverDetector: false,
  monitor: false,
  connectTimeout: 0,
  disconnectTimeout,
}

/** How soon the shared client tries again, in ms: as often as the pool does. */
const retryStrategy = (times: number): number => Math.min(500, 50 * 2 ** (times - 1)) * (0.9 + 0.1 * Math.random())

/** What the shared client needs where there are sentinels. */
function sentinelled ({ role = 'master' }: IORedisOptions): IORedisOptions {
  return {
    sentinelRetryStrategy: retryStrategy,
    // Its server has become a replica: what that refused is sent again to the new master.
    ...(role === 'master' && { reconnectOnError: (error: Error) => takesNoWrites(error) && 2 }),
  }
}

const replaces = 'the pool replaces a connection that dies, see backoff'
/** The driver's keys that would do the pool's work, and what to use instead. */
const refused = new Map(Object.entries({
  host: 'use the option host',
  port: 'use the option port',
  path: 'use the option url: unix:///path/of/the/socket',
  db: 'use the option database',
  connectTimeout: 'use the option connectTimeout',
  disconnectTimeout: 'use the option destroyTimeout',
  retryStrategy: replaces,
  reconnectOnError: replaces,
  sentinelRetryStrategy: replaces,
  sentinelReconnectStrategy: replaces,
  failoverDetector: 'the pool listens to the sentinels itself',
  maxRetriesPerRequest: `exclusive connections never retry; ${replaces}`,
  autoResubscribe: `exclusive connections never reconnect; ${replaces}`,
  autoResendUnfulfilledCommands: `exclusive connections never reconnect; ${replaces}`,
  lazyConnect: 'the pool decides when to connect, see min and startup',
  enableOfflineQueue: 'callers wait in the pool, see acquireTimeout and maxPending',
  enableReadyCheck: 'the pool asks each new connection itself',
  maxLoadingRetryTime: 'the pool tries again while the server loads, see backoff',
  monitor: 'call monitor() on a connection or on the shared client',
}))

/** ioredis' own that people may well put beside `url`. */
const belongInside = [
  'username', 'password', 'tls', 'family', 'keyPrefix', 'connectionName',
  'sentinels', 'sentinelUsername', 'sentinelPassword', 'sentinelTLS', 'natMap',
  'commandTimeout', 'socketTimeout', 'blockingTimeout', 'keepAlive', 'noDelay', 'readOnly', 'protocol', 'replyMapping', 'stringNumbers',
  'enableAutoPipelining', 'showFriendlyErrorStack', 'scripts', 'clientInfoTag',
]

/** What connections are made from: `url` is the base, the other options win over it, the driver's come as they are. */
function driverOptions (options: RedisOptions, { url, connection }: AddressNow): IORedisOptions {
  const { host, port, database, client } = options
  const given = new Map<string, unknown>(Object.entries(options))
  for (const name of belongInside) if (given.get(name) !== undefined) throw badOption(name, given.get(name), `it inside of connection: { ${name} }`)
  for (const [name, instead] of refused) {
    const isOurs = name === 'host' || name === 'port' || name === 'connectTimeout'
    if (!isOurs && given.get(name) !== undefined) throw badOption(name, given.get(name), `nothing here: ${instead}`)
    if (connection[name] !== undefined) throw badOption(`connection.${name}`, connection[name], `nothing here: ${instead}`)
  }
  if (connection.cluster !== undefined) throw badOption('connection.cluster', connection.cluster, 'it given to redisCluster(), and not by a function')
  const addressed = Object.entries({ url: options.url, host, port }).find(([, value]) => value !== undefined)
  if (client !== undefined) {
    if (typeof client.options !== 'object' || client.isCluster) throw badOption('client', client, 'an ioredis Redis, and not a Cluster')
    if (addressed !== undefined) throw badOption(addressed[0], addressed[1], `no ${addressed[0]} next to a client`)
  }
  const { sentinels, name: group } = connection
  if (sentinels !== undefined) {
    if (!Array.isArray(sentinels) || sentinels.length === 0) throw badOption('connection.sentinels', sentinels, 'an array of { host, port }')
    if (typeof group !== 'string' || group === '') throw badOption('connection.name', group, 'the name of the master that the sentinels know')
    if (addressed !== undefined) throw badOption(addressed[0], addressed[1], `no ${addressed[0]} next to connection.sentinels`)
  }
  const fromUrl = url === undefined ? {} : parseUrl(url)
  for (const [name, value] of Object.entries({ host, port })) {
    if (value !== undefined && fromUrl.path !== undefined) throw badOption(name, value, `no ${name} next to the url of a Unix socket`)
  }
  if (fromUrl.tls !== undefined && connection.tls !== undefined && !connection.tls) {
    throw badOption('connection.tls', connection.tls, 'an object, since the url says rediss://')
  }
  const base: IORedisOptions = { ...client?.options, ...fromUrl }
  const said = [...Object.entries({ host, port, db: numberOf(database) }), ...Object.entries(connection)]
  for (const [name, value] of said) if (value !== undefined) Object.assign(base, { [name]: value })
  return base
}

function numberOf (database: unknown): number | undefined {
  if (database === undefined) return undefined
  const number = typeof database === 'string' && /^\d+$/.test(database) ? Number(database) : database
  if (typeof number !== 'number' || !Number.isSafeInteger(number) || number < 0) {
    throw badOption('database', database, 'the number of a database: 0 or more')
  }
  return number
}

/** By hand: ioredis lets the URL win over the options, takes any text for a host, and takes its query for options. No error of ours has the text. */
function parseUrl (url: unknown): IORedisOptions {
  const wrong = (expected: string) => badOption('url', url, expected)
  const form = 'redis://user:password@host:port/database, rediss://..., or the path of a Unix socket'
  if (typeof url !== 'string') throw wrong(form)
  const socket = /^(?:unix:\/\/)?(\/[^/?#][^?#]*)(?:\?([^#]*))?$/i.exec(url)
  if (socket === null && !/^rediss?:\/\//i.test(url)) throw wrong(form)
  const options: IORedisOptions = {}
  let query: URLSearchParams
  if (socket !== null) {
    options.path = socket[1]!
    query = new URLSearchParams(socket[2])
  } else {
    if (!URL.canParse(url)) throw wrong(form)
    const { protocol, username, password, hostname, port, pathname, searchParams } = new URL(url)
    query = searchParams
    if (protocol === 'rediss:') options.tls = {}
    if (hostname !== '') options.host = hostname.replace(/^\[|\]$/g, '')
    if (port !== '') options.port = Number(port)
    try {
      if (username !== '') options.username = decodeURIComponent(username)
      if (password !== '') options.password = decodeURIComponent(password)
    } catch {
      throw wrong('a url whose user and password are percent-encoded')
    }
    if (pathname !== '' && pathname !== '/') options.db = databaseOf(pathname.slice(1), wrong)
  }
  for (const [name, value] of query) {
    if (name === 'db') options.db = databaseOf(value, wrong)
    else if (name === 'family' && /^[046]$/.test(value)) options.family = Number(value)
    else throw wrong('a url without other options than db and family: the driver\'s go into connection')
  }
  return options
}

function databaseOf (text: string, wrong: (expected: string) => Error): number {
  if (!/^\d{1,9}$/.test(text)) throw wrong('a url whose database is a number: redis://host/3')
  return Number(text)
}

// --- One exclusive connection ---------------------------------------------------------------------------------------------------------

/** What a borrower left behind: bits of `Guard.#left`. */
const multi = 1
const watch = 2
const select = 4
const subscribed = 8
const listeners = 16
/** Nothing but closing the connection undoes it. */
const lost = 32

type Kind = 'harmless' | 'multi' | 'exec' | 'watch' | 'select' | 'subscribe' | 'unsubscribe' | 'client' | 'script' | 'lost'

/** The commands that change what a later command on the same connection does. All others leave nothing. */
const stateful: ReadonlyMap<string, Exclude<Kind, 'harmless'>> = new Map([
  ['multi', 'multi'], ['exec', 'exec'], ['watch', 'watch'], ['select', 'select'],
  ['subscribe', 'subscribe'], ['psubscribe', 'subscribe'], ['ssubscribe', 'subscribe'],
  ['unsubscribe', 'unsubscribe'], ['punsubscribe', 'unsubscribe'], ['sunsubscribe', 'unsubscribe'],
  ['client', 'client'], ['script', 'script'],
  ['auth', 'lost'], ['hello', 'lost'], ['reset', 'lost'], ['quit', 'lost'], ['monitor', 'lost'],
  ['readonly', 'lost'], ['readwrite', 'lost'], ['asking', 'lost'],
  ['sync', 'lost'], ['psync', 'lost'], ['replconf', 'lost'], ['himport', 'lost'],
])

/** By names as they are typed: to lower-case one costs many times what finding it here does. Bounded, since names may come from outside. */
const kinds = new Map<string, Kind>()

function kindOf (name: string): Kind {
  const known = kinds.get(name)
  if (known !== undefined) return known
  const kind = stateful.get(name.toLowerCase()) ?? 'harmless'
  if (kinds.size < 1000) kinds.set(name, kind)
  return kind
}

/** Subcommands of CLIENT that leave this connection as it was: they read, or act on others. One that is not known is taken for the worse. */
const harmlessClient: ReadonlySet<string> = new Set([
  'getname', 'getredir', 'help', 'id', 'info', 'kill', 'list', 'pause', 'trackinginfo', 'unblock', 'unpause',
])

/**
 * Whether a command, by itself, changes what later ones on its connection do; but for subscriptions, which a cluster's client has a connection of its
 * own for, and SELECT, which no cluster knows.
 */
export function leavesState ({ name, args }: Command): boolean {
  const kind = kindOf(name)
  if (kind === 'client') return !harmlessClient.has(String(args[0]).toLowerCase())
  if (kind === 'script') return String(args[0]).toLowerCase() === 'debug'
  return kind === 'multi' || kind === 'exec' || kind === 'watch' || kind === 'lost'
}

const guardKey: unique symbol = Symbol('fastify-pool guard')

function guardOf (connection: Redis): Guard {
  return (connection as Redis & { [guardKey]: Guard })[guardKey]
}

/** Sees all that goes through one exclusive connection, and knows how to undo it. */
class Guard {
  /** Before the connection is open: what went wrong first. Afterwards: what went wrong last. */
  error: Error | undefined
  /** Called once it is gone. */
  ended: (() => void) | undefined
  readonly #connection: Redis
  readonly #driver: Driver
  readonly #tell: (event: DriverEvent) => void
  readonly #send: Redis['sendCommand']
  #seam: Redis['sendCommand']
  #mode: 'session' | 'transaction' | 'none' = 'none'
  #left = 0
  /** What made it `lost`. */
  #culprit = ''
  /** Every name that was subscribed to since the last reset. ioredis' own list forgets some: it takes no shard channel left for nothing left. */
  readonly #names = new Map<string, Set<Command['args'][number]>>()
  #added: Array<readonly [event: string | symbol, listener: Listener]> = []
  #open = false
  #broken = false
  #closing = false
  #died: ((error?: Error) => void) | undefined

  constructor (connection: Redis, driver: Driver, tell: (event: DriverEvent) => void) {
    this.#connection = connection
    this.#driver = driver
    this.#tell = tell
    this.#send = sendOf(connection)
    this.#seam = this.#send
    Object.defineProperty(connection, guardKey, { value: this })
    // ioredis copies the options it is made from. A borrower who changed them would change them for all that come after.
    Object.freeze(connection.options)
    connection.on('error', this.#onError)
    connection.on('end', this.#onEnd)
    connection.on('removeListener', this.#onRemove)
  }

  /** No I/O. Dead for good once it has ended, even if somebody connects it again. */
  get broken (): boolean {
    return this.#broken || this.#connection.status !== 'ready' || !this.#connection.stream.writable
  }

  /**
   * The server serves, and is what it should be. Instead of ioredis' own check, which leaves a timer of up to 10 s behind while the server loads:
   * the pool tries again.
   */
  async check (role: string | undefined): Promise<void> {
    await this.ping()
    if (role === undefined) return
    const answer = await unlessDenied(this.#command('role'))
    if (Array.isArray(answer) && answer[0] !== role) throw new Error(`the sentinels named a server that is a ${String(answer[0])}, not a ${role}`)
  }

  async ping (): Promise<boolean> {
    const answer = await unlessDenied(this.#command('ping'))
    // A mode that leaves an open MULTI or a subscription gets other answers.
    return this.#mode !== 'session' || answer === undefined || answer === 'PONG'
  }

  /** What the server answered an error to. One that takes no writes any more is not for the next borrower. */
  answered (error: Error): void {
    if (!this.#open || this.#broken || !takesNoWrites(error)) return
    this.#broken = true
    this.#tell({ name: 'readonly', shared: false })
  }

  async inspect (): Promise<ServerState> {
    const answer = await unlessDenied(this.#command('role'))
    if (!Array.isArray(answer)) return stateOf(String(await this.#command('info', ['replication'])))
    const [role, ...rest] = answer as unknown[]
    if (role === 'master') return { role: 'primary', offset: Number(rest[0]) }
    if (role !== 'slave') throw new Error(`the server is neither a master nor a replica: ${String(role)}`)
    const [, , link, offset] = rest
    return { role: 'replica', ...(link === 'connected' ? { offset: Number(offset) } : { lag: Infinity }) }
  }

  /** From here on the connection may be lent. */
  open (mode: 'session' | 'transaction' | 'none'): void {
    this.#mode = mode
    this.#open = true
    if (mode === 'none') return
    this.#seam = (command, stream) => {
      const kind = kindOf(command.name)
      if (kind !== 'harmless' && (mode === 'session' || kind === 'multi' || kind === 'exec' || kind === 'watch')) this.#note(kind, command)
      return this.#send(command, stream)
    }
    Object.defineProperty(this.#connection, 'sendCommand', { value: this.#seam, writable: true, configurable: true })
    if (mode === 'session') this.#connection.on('newListener', this.#onNew)
  }

  onDeath (listener: (error?: Error) => void): void {
    if (this.#connection.status === 'end') queueMicrotask(() => listener(this.error))
    else this.#died = listener
  }

  async close (): Promise<void> {
    this.#closing = true
    await disconnected(this.#connection)
  }

  reset (signal: AbortSignal): Promise<void> | undefined {
    if (this.#mode === 'none') return undefined
    if (this.#connection.sendCommand !== this.#seam) this.#lose('another sendCommand')
    if ((this.#left & ~listeners) === 0 && !isBusy(this.#connection)) {
      if (this.#left === 0) return undefined
      this.#forgetListeners()
      // No round trip, and yet a reset: `onConnect` may have been the one that added them, and runs again.
      return Promise.resolve()
    }
    return this.#clean(signal)
  }

  async #clean (signal: AbortSignal): Promise<void> {
    this.#unlessLost()
    // Nothing is sent while something is under way: behind a BLPOP it would wait, and behind an `unsubscribe()` that hangs, ioredis throws.
    if (isBusy(this.#connection)) await drained(this.#connection, signal)
    this.#unlessLost()
    this.#forgetListeners()
    const left = this.#left
    this.#left = 0
    const undo = [() => this.#undoTransaction(left), () => this.#undoSubscriptions()]
    // In RESP2 a subscribed connection takes no other commands. In RESP3 an open MULTI would queue the unsubscribing.
    if (!speaksResp3(this.#connection)) undo.reverse()
    for (const step of undo) await unlessAborted(step(), signal)
    if (this.#left !== 0 || isBusy(this.#connection)) throw new Error('the connection was still used while it was reset')
  }

  async #undoTransaction (left: number): Promise<void> {
    const answers: Array<Promise<unknown>> = []
    // Whether it is still open is not known for sure: a DISCARD of the borrower's may have been refused.
    if ((left & multi) !== 0) answers.push(this.#command('discard').catch(unlessWithoutMulti))
    if ((left & watch) !== 0) answers.push(this.#command('unwatch'))
    // Both the server's idea of the database and ioredis' own: they differ after `call('SeLeCt', 3)`, a failed SELECT and one in a discarded MULTI.
    if ((left & select) !== 0) answers.push(this.#command('select', [String(this.#connection.options.db ?? 0)]))
    await Promise.all(answers)
  }

  /** By name: without names ioredis hangs where there are channels and patterns. */
  async #undoSubscriptions (): Promise<void> {
    if (this.#names.size === 0) return
    const shards = this.#names.has('ssubscribe')
    if (!speaksResp3(this.#connection) && shards && this.#names.size > 1) {
      throw new Error('ioredis can\'t undo shard subscriptions next to others in RESP2')
    }
    const subscriptions = [...this.#names]
    this.#names.clear()
    const counts = await Promise.all(subscriptions.map(async ([name, names]) => {
      const count = await this.#command(name.replace('subscribe', 'unsubscribe'), [...names])
      return { name, count: Number(count) }
    }))
    // The server counts channels and patterns together, so only the last answer is the whole truth.
    const rest = counts.filter(({ name }) => name !== 'ssubscribe').at(-1)?.count ?? 0
    const shardRest = counts.find(({ name }) => name === 'ssubscribe')?.count ?? 0
    if (rest !== 0 || shardRest !== 0 || this.#connection.condition?.subscriber) throw new Error('the connection is still subscribed')
  }

  /** Past the seam, past auto-pipelining, and without the key prefix, which subscribed shard channels have already. */
  async #command (name: string, args: Command['args'] = []): Promise<unknown> {
    const command = new this.#driver.Command(name, args as string[], { replyEncoding: 'utf8' })
    return await this.#send(command)
  }

  #note (kind: Kind, command: Command): void {
    const name = command.name.toLowerCase()
    switch (kind) {
      case 'multi':
        // With arguments the server refuses it.
        if (command.args.length === 0) this.#left |= multi
        break
      case 'exec':
        // However it ends, an open MULTI is over and nothing is watched. Without one it fails, and changes nothing.
        if ((this.#left & multi) !== 0) this.#left &= ~(multi | watch)
        break
      case 'watch': this.#left |= watch; break
      case 'select': this.#left |= select; break
      case 'subscribe': {
        if ((this.#left & multi) !== 0) this.#lose(`${name} in MULTI`)
        this.#left |= subscribed
        const names = this.#names.get(name) ?? new Set()
        this.#names.set(name, names)
        for (const arg of command.args) names.add(arg)
        break
      }
      case 'unsubscribe':
        // Its answers come at another time than ioredis expects, and are taken for those of other commands.
        if ((this.#left & multi) !== 0) this.#lose(`${name} in MULTI`)
        break
      case 'client':
        if (!harmlessClient.has(String(command.args[0]).toLowerCase())) this.#lose(name)
        break
      case 'script':
        if (String(command.args[0]).toLowerCase() === 'debug') this.#lose(name)
        break
      default: this.#lose(name)
    }
  }

  #lose (culprit: string): void {
    this.#left |= lost
    this.#culprit ||= culprit
  }

  #unlessLost (): void {
    if ((this.#left & lost) !== 0) throw new Error(`only closing the connection undoes what ${this.#culprit} left`)
  }

  #forgetListeners (): void {
    for (const [event, listener] of this.#added) this.#connection.off(event, listener)
    this.#added = []
    this.#left &= ~listeners
  }

  readonly #onError = (error: Error): void => {
    if (this.#open) {
      // The connection is about to end, or ioredis takes answers for those of other commands.
      this.error = error
      this.#broken = true
      this.#tell({ name: 'error', shared: false, code: codeOf(error) })
    } else {
      this.error ??= error
    }
  }

  readonly #onEnd = (): void => {
    this.#broken = true
    this.ended?.()
    if (this.#open) this.#tell({ name: 'end', shared: false })
    const died = this.#died
    this.#died = undefined
    if (!this.#closing) died?.(this.error)
  }

  readonly #onNew = (event: string | symbol, listener: Listener): void => {
    this.#added.push([event, listener])
    this.#left |= listeners
  }

  /** A borrower's `removeAllListeners()` takes ours away too: then nothing is known any more. */
  readonly #onRemove = (_event: string | symbol, listener: Listener): void => {
    const ours: unknown[] = [this.#onError, this.#onEnd, this.#onNew, this.#onRemove]
    if (!ours.includes(listener)) return
    this.#broken = true
    // Once all are gone. A connection without a listener for errors writes them to the console.
    process.nextTick(() => {
      if (!this.#connection.listeners('error').includes(this.#onError)) this.#connection.on('error', this.#onError)
      if (!this.#connection.listeners('end').includes(this.#onEnd)) this.#connection.on('end', this.#onEnd)
    })
  }
}

type Listener = (...args: unknown[]) => void

// --- ioredis' inside ------------------------------------------------------------------------------------------------------------------

/** What is used of ioredis and not in its types. */
interface Inside {
  readonly connector: {
    readonly stream?: Socket
    connectToSentinel?: (endpoint: unknown, options?: object) => Redis
  }
  reconnectTimeout: NodeJS.Timeout | null
  flushQueue (error: Error): void
  setStatus (status: string): void
}

/** A command of ioredis, with `commandTimeout`. */
interface Timed { readonly _commandTimeoutTimer?: NodeJS.Timeout }

/** What ioredis 6 has, and 5 has not: that one speaks RESP2 only. */
interface Newer { readonly protocol?: 2 | 3 }

function speaksResp3 ({ condition }: Redis): boolean {
  return (condition as Newer | null)?.protocol === 3
}

export function isBusy (connection: Redis): boolean {
  return connection.commandQueue.length > 0 || (connection.options.enableAutoPipelining === true && connection.autoPipelineQueueSize > 0)
}

/**
 * Resolves when all that was sent has been answered. Asks the queue after each piece of data rather than wait on a command: that would take its
 * failure for handled, and a new command could be one too many.
 */
export function drained (connection: Redis, signal: AbortSignal): Promise<void> {
  const { stream } = connection
  return new Promise((resolve, reject) => {
    const stop = () => {
      stream.off('data', check)
      stream.off('close', closed)
      signal.removeEventListener('abort', aborted)
    }
    const check = () => {
      if (isBusy(connection)) return
      stop()
      resolve()
    }
    const closed = () => {
      stop()
      reject(new Error('the connection closed while commands were under way'))
    }
    const aborted = () => {
      stop()
      reject(signal.reason)
    }
    // ioredis' own listener for data came first, so the queue is up to date.
    stream.on('data', check)
    stream.on('close', closed)
    signal.addEventListener('abort', aborted)
    if (signal.aborted) aborted()
    else if (stream.closed) closed()
  })
}

export async function disconnected (client: Redis, also?: () => void): Promise<void> {
  if (client.status === 'end') return
  await new Promise<void>((resolve) => {
    client.once('end', () => resolve())
    client.disconnect()
    also?.()
  })
}

/** Ends it at once, whatever it is doing. Not `disconnect()`, which leaves a timer behind where the socket has closed already. */
export function cut (connection: Redis): void {
  const { stream } = (connection as unknown as Inside).connector
  if (stream !== undefined) stream.destroy()
  // A sentinel's own `disconnect` is this function.
  else (Object.getPrototypeOf(connection) as Redis).disconnect.call(connection)
}

/** Of an INFO replication. */
function stateOf (info: string): ServerState {
  const fields = new Map(info.split('\r\n').map((line) => line.split(':', 2) as [string, string]))
  const role = fields.get('role')
  if (role === 'master') return { role: 'primary', offset: Number(fields.get('master_repl_offset')) }
  if (role !== 'slave') throw new Error('the server does not say whether it is a master or a replica')
  return { role: 'replica', ...(fields.get('master_link_status') === 'up' ? { offset: Number(fields.get('slave_repl_offset')) } : { lag: Infinity }) }
}

async function unlessDenied (answer: Promise<unknown>): Promise<unknown> {
  try {
    return await answer
  } catch (error) {
    // The user may not ask: then it can't be known, and the server did answer.
    if (error instanceof Error && error.message.startsWith('NOPERM')) return undefined
    throw error
  }
}

function unlessWithoutMulti (error: unknown): void {
  // No MULTI is open, which is all that was wanted.
  if (!(error instanceof Error && error.message.startsWith('ERR DISCARD without MULTI'))) throw error
}

// --- Errors ---------------------------------------------------------------------------------------------------------------------------

/** Also from within a script, and for the EXEC of a transaction that has writes. */
function takesNoWrites ({ message }: Error): boolean {
  return message.startsWith('READONLY') || /[ -]READONLY You can't write against/.test(message)
}

/** What a server answers that another one, or the same a moment later, would not. */
const passing = new Set([
  'READONLY', // It became a replica: the master is another one now.
  'UNBLOCKED', // It became one while a command was blocked on it.
  'LOADING', // It has just started, and still reads its data.
  'MASTERDOWN', // A replica without its master that is told not to answer from what it has: others may have theirs.
  'CLUSTERDOWN', // A part of the cluster has no master, until its replica has taken over.
  'TRYAGAIN', // The keys of one command are on their way to another node, some here and some there.
])

/** That the connection is gone, or none could be had: what died, another one does not share. */
const deaths = new Set([
  'Connection is closed.', // While the command was under way, or before.
  "Stream isn't writeable and enableOfflineQueue options is false", // The socket has ended, and ioredis has not heard of it yet.
  'Command aborted due to connection close', // In the middle of a pipeline or a transaction.
  'None of startup nodes is available',
  'Cluster is ended.',
  "Cluster isn't ready and enableOfflineQueue options is false",
  'Failed to refresh slots cache.', // No node of the cluster answers.
])

/** Of the network, as Node says them. */
const network = new Set(['ECONNREFUSED', 'ECONNRESET', 'EPIPE', 'ETIMEDOUT', 'ECONNABORTED', 'EHOSTUNREACH', 'ENETUNREACH', 'EAI_AGAIN'])

/** Whether what failed with it may succeed on another connection, a moment later. */
export function isTransient (error: unknown): boolean {
  if (!(error instanceof Error)) return false
  const { message, name, code, previousErrors } = error as Error & { code?: unknown, previousErrors?: unknown }
  if (typeof code === 'string' && network.has(code)) return true
  if (deaths.has(message) || takesNoWrites(error)) return true
  // A client that reconnects by itself gave up, and so did one that was sent from one node of a cluster to the next.
  if (name === 'MaxRetriesPerRequestError' || message.startsWith('Too many Cluster redirections.')) return true
  if (message.startsWith('All sentinels are unreachable')) return true
  const [word = ''] = message.split(' ', 1)
  if (passing.has(word)) return true
  if (word !== 'EXECABORT') return false
  // Why nothing of a transaction was done, EXEC says itself, or what was to be a part of it.
  const [, reason] = /^EXECABORT Transaction discarded because of: ([A-Z]+)/.exec(message) ?? []
  return passing.has(reason ?? '') || (Array.isArray(previousErrors) && previousErrors.some(isTransient))
}

/** ECONNREFUSED, WRONGPASS, ...: never the text, which may hold anything. */
export function codeOf (error: unknown): string {
  const { code, message = '', name = 'Error' } = (error ?? {}) as { code?: unknown, message?: string, name?: string }
  return typeof code === 'string' ? code : /^[A-Z]{3,}\b/.exec(message)?.[0] ?? name
}
