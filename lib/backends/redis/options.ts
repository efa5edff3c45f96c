import type { RedisOptions as IORedisOptions } from 'ioredis'
import { badOption } from '../../engine/errors.js'
import type { Redis } from '../../../types/drivers.js'
import type { Address, Backoff } from '../../../types/options.js'
import {
  Addresses, assignGiven, keepAliveAfter, readUrl, refuseBeside, refuseKeys, refuseNextTo,
  type AddressNow, type Discovered, type RefusedKeys,
} from '../shared/address.js'
import { appNameOf } from '../shared/app-name.js'
import type { DriverEvents } from '../shared/events.js'
import { takesNoWrites } from './errors.js'
import { disconnectTimeout, type Driver } from './wire.js'

export interface RedisOptions {
  /**
   * `redis://`, `rediss://` (TLS), or a Unix socket: `/run/redis.sock`, `unix:///run/redis.sock`. Default
   * `redis://localhost:6379`. Other options override it. A function is called at each create.
   */
  url?: Address['url']
  /** Default: the URL's, else 'localhost'. */
  host?: string
  /** Default: the URL's, else 6379. */
  port?: number
  /** The number of the database, 0 or more, as a number or a text. Default: the URL's, else 0. */
  database?: string | number
  /**
   * ioredis' own options, passed on as they are: `username`, `password`, `tls`, `sentinels` + `name`, ... Those that
   * would do the pool's work are refused. A function is called at each create.
   */
  connection?: Address['connection']
  /**
   * What is undone at return. Default 'session'.
   * - 'session': whatever the next borrower could notice. Where nothing else undoes it, the connection is closed.
   * - 'transaction': an open MULTI and watched keys. The selected database, subscriptions, listeners and what `CLIENT`
   *   set stay as they are.
   * - 'none': nothing.
   */
  reset?: 'session' | 'transaction' | 'none'
  /**
   * By which name the server shows these connections (`CLIENT SETNAME`), unless `connection` or the given client has a
   * `connectionName`. At most 128 characters of ASCII, without spaces. Default: the name in the app's package.json.
   */
  appName?: string
  /**
   * How long one attempt of the shared client may take, in ms; the sentinels share it. Exclusive connections obey the
   * signal of `create`. Default 3000.
   */
  connectTimeout?: number
  /**
   * How soon the connection of the subscriptions is made again, as the pool's option, which it is in a pool of the
   * plugin.
   */
  backoff?: Backoff | undefined
  /**
   * How often that connection is asked whether it is alive, in ms, as the pool's option. Here 0, or left out, is 10000:
   * nothing else would show that a network has gone silent.
   */
  keepalive?: number | undefined
  /**
   * The module ioredis, or its class: for bundles, and copies of one's own. Default: the one that @fastify/redis uses.
   */
  driver?: unknown
  /**
   * A client that the app made, instead of `url`, `host` and `port`: it becomes the shared client, exclusive
   * connections get its options, and it is never closed.
   */
  client?: Redis
}

/**
 * Makes a connection exclusive: it never reconnects, sends at once or not at all, and tells each failure to the pool.
 */
export const exclusive: IORedisOptions = {
  lazyConnect: true,
  // ioredis 5 accepts null, though its type does not say so.
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

/** How soon the shared client tries again, in ms: the same pace as the pool's. */
export function retryStrategy (times: number): number {
  return Math.min(500, 50 * 2 ** (times - 1)) * (0.9 + 0.1 * Math.random())
}

/** What the shared client needs where there are sentinels. */
export function sentinelled ({ role = 'master' }: IORedisOptions): IORedisOptions {
  return {
    sentinelRetryStrategy: retryStrategy,
    // The server has become a replica: reconnect, and send the refused command again to the new master.
    ...(role === 'master' && { reconnectOnError: (error: Error) => takesNoWrites(error) && 2 }),
  }
}

const replaces = 'the pool replaces a connection that dies, see backoff'

/** The driver's keys that would do the pool's work, and what to use instead. */
const refused: RefusedKeys = new Map(Object.entries({
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

/** Names that mean something else among our own options. */
const ours = ['host', 'port', 'connectTimeout']

/** ioredis' own options that are likely to be put beside `url` by mistake. */
const beside = [
  'username', 'password', 'tls', 'family', 'keyPrefix', 'connectionName',
  'sentinels', 'sentinelUsername', 'sentinelPassword', 'sentinelTLS', 'natMap',
  'commandTimeout', 'socketTimeout', 'blockingTimeout', 'keepAlive', 'noDelay', 'readOnly', 'protocol', 'replyMapping',
  'stringNumbers', 'enableAutoPipelining', 'showFriendlyErrorStack', 'scripts', 'clientInfoTag',
  ...[...refused.keys()].filter((name) => !ours.includes(name)),
]

/** What the parts of a connector share. */
export interface Site {
  readonly driver: Driver
  readonly source: Source
  readonly connectTimeout: number
  readonly events: DriverEvents
}

/** What the connections of a connector are made from. */
export class Source {
  /** The options as of the last answer. */
  base: IORedisOptions
  /** Whether a function has answered. */
  answered = false
  readonly #options: RedisOptions
  readonly #addresses: Addresses

  /** @throws `FST_POOL_BAD_OPTIONS` */
  constructor (options: RedisOptions) {
    this.#options = options
    this.#addresses = new Addresses(options)
    this.base = driverOptions(options, this.#addresses.fixed)
  }

  /** Whether there is a function to ask. */
  get changes (): boolean {
    return this.#addresses.change
  }

  get secrets (): readonly string[] {
    return this.#addresses.secrets
  }

  async now (signal: AbortSignal): Promise<IORedisOptions> {
    if (!this.changes) return this.base
    this.base = driverOptions(this.#options, await this.#addresses.now(signal))
    this.answered = true
    return this.base
  }
}

/**
 * The driver's options for the next connection: the options override `url`, the driver's own options come last, as they
 * are.
 */
function driverOptions (options: RedisOptions & Discovered, { url, connection }: AddressNow): IORedisOptions {
  const { host, port, database, client } = options
  refuseBeside(options, beside, refused)
  refuseKeys(connection, refused)
  if (connection.cluster !== undefined) {
    throw badOption('connection.cluster', connection.cluster, 'it given to redisCluster(), and not by a function')
  }
  if (client !== undefined) {
    if (typeof client.options !== 'object' || client.isCluster) {
      throw badOption('client', client, 'an ioredis Redis, and not a Cluster')
    }
    refuseNextTo('a client', { url: options.url, host, port })
  }
  const { sentinels, name: group } = connection
  if (sentinels !== undefined) {
    if (!Array.isArray(sentinels) || sentinels.length === 0) {
      throw badOption('connection.sentinels', sentinels, 'an array of { host, port }')
    }
    if (typeof group !== 'string' || group === '') {
      throw badOption('connection.name', group, 'the name of the master that the sentinels know')
    }
    refuseNextTo('connection.sentinels', { url: options.url, host, port })
  }
  const fromUrl = url === undefined ? {} : parseUrl(url)
  if (fromUrl.path !== undefined) refuseNextTo('the url of a Unix socket', { host, port })
  if (fromUrl.tls !== undefined && connection.tls !== undefined && !connection.tls) {
    throw badOption('connection.tls', connection.tls, 'an object, since the url says rediss://')
  }
  const base: IORedisOptions = { keepAlive: keepAliveAfter, ...client?.options, ...fromUrl }
  assignGiven(base, { host, port, db: numberOf(database) }, connection)
  base.connectionName ??= clientName(options.appName)
  if (options.hostaddr !== undefined) {
    // TLS asks for the name, and checks it.
    if (base.tls !== undefined) base.tls = { servername: base.host!, ...base.tls }
    base.host = options.hostaddr
  }
  return base
}

/** Redis refuses names with spaces. */
export function clientName (appName: string | undefined): string {
  return appNameOf(appName, { longest: 128, spaces: false })
}

function numberOf (database: unknown): number | undefined {
  if (database === undefined) return undefined
  const number = typeof database === 'string' && /^\d+$/.test(database) ? Number(database) : database
  if (typeof number !== 'number' || !Number.isSafeInteger(number) || number < 0) {
    throw badOption('database', database, 'the number of a database: 0 or more')
  }
  return number
}

function parseUrl (url: unknown): IORedisOptions {
  const wrong = (expected: string) => badOption('url', url, expected)
  const form = 'redis://user:password@host:port/database, rediss://..., or the path of a Unix socket'
  if (typeof url !== 'string') throw wrong(form)
  const socket = /^(?:unix:\/\/)?(\/[^/?#][^?#]*)(?:\?([^#]*))?$/i.exec(url)
  const options: IORedisOptions = {}
  let query: URLSearchParams
  if (socket !== null) {
    options.path = socket[1]!
    query = new URLSearchParams(socket[2])
  } else {
    if (!/^rediss?:\/\//i.test(url)) throw wrong(form)
    const { protocol, user, password, host, port, path, query: found } = readUrl(url, form)
    query = found
    assignGiven(options, { username: user, password, host, port, ...(protocol === 'rediss:' && { tls: {} }) })
    if (path !== undefined) options.db = databaseOf(path, wrong)
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
