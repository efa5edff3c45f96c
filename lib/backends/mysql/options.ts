import type { ConnectionOptions } from 'mysql2'
import { badOption } from '../../pool/errors.js'
import { Addresses } from '../shared/address.js'
import type { AddressNow } from '../shared/address.js'
import type { Address } from '../../pool/options.js'

export interface MysqlOptions {
  /**
   * `mysql://user:password@host:port/database` or `mariadb://...`; of a query only `charset`, `timezone` and `ssl`. A function is asked at each create.
   * Default `mysql://localhost:3306`.
   */
  url?: Address['url']
  /** Default 'localhost'. Not next to `url`. */
  host?: string
  /** Default 3306. Not next to `url`. */
  port?: number
  /** Default: the URL's, else none. */
  database?: string
  /**
   * mysql2's own options, untouched: `user`, `password`, `ssl`, `charset`, `timezone`, `socketPath`, ... Those that would do the pool's work are refused.
   * `maxPreparedStatements` is 100 unless it is here. A function is asked at each create; what is wrong with its answer is that create's
   * `FST_POOL_BAD_OPTIONS`.
   */
  connection?: Address['connection']
  /** How long the server may take until it serves a new connection, in ms. Default: as long as the signal of `create` allows. */
  connectTimeout?: number
  /** The module mysql2, for bundles and copies of one's own. With mysql2/promise it is loaded by its name. Default: the installed one. */
  driver?: unknown
  /**
   * What is undone at return. Default 'session'.
   * - 'session': whatever the next borrower could notice. Costs nothing where nothing was sent.
   * - 'transaction': an open transaction, and listeners. Variables, temporary tables, locks of LOCK TABLES and GET_LOCK, the database, the character set
   *   and `autocommit` stay as they are.
   * - 'none': nothing.
   */
  reset?: 'session' | 'transaction' | 'none'
}

const queueing = 'callers wait in the pool, see acquireTimeout and maxPending'

/** The driver's keys that would do the pool's work, and what to use instead. */
const refused = new Map(Object.entries({
  host: 'use the option host',
  port: 'use the option port',
  database: 'use the option database',
  uri: 'use the option url',
  connectTimeout: 'use the option connectTimeout',
  connectionLimit: 'use the option max',
  maxIdle: 'use the options min and max',
  idleTimeout: 'use the option idleTimeout',
  queueLimit: queueing,
  waitForConnections: queueing,
  resetOnRelease: 'use the option reset',
  gracefulEnd: 'the pool ends each connection itself, see destroyTimeout',
  pool: 'the connection is in this pool',
  isServer: 'the connection is a client\'s',
  Promise: 'connections give promises of the language',
}))

/** mysql2's own that people may well put beside `url`. */
const belongInside = [
  'user', 'password', 'ssl', 'charset', 'timezone', 'socketPath', 'flags', 'multipleStatements', 'namedPlaceholders', 'rowsAsArray', 'nestTables', 'typeCast',
  'dateStrings', 'decimalNumbers', 'supportBigNumbers', 'bigNumberStrings', 'jsonStrings', 'maxPreparedStatements', 'enableKeepAlive',
  'keepAliveInitialDelay', 'compress', 'connectAttributes', 'authPlugins', 'infileStreamFactory', 'stream', 'localAddress', 'debug', 'trace',
]

/** What the next connection is made from. */
export type Config = (signal: AbortSignal) => ConnectionOptions | Promise<ConnectionOptions>

/** Made once, or anew at each create where a function is to be asked: what is known without it is checked now all the same. */
export function configsOf (options: MysqlOptions, addresses: Addresses): Config {
  const { url } = options
  // As it is, to be refused by its own name where it is no text.
  const config = driverOptions({ ...addresses.fixed, ...(typeof url !== 'function' && { url }) }, options)
  return addresses.change ? async (signal) => driverOptions(await addresses.now(signal), options) : () => config
}

function driverOptions ({ url, connection }: AddressNow, options: MysqlOptions): ConnectionOptions {
  const { host, port, database, connectTimeout } = options
  const given = new Map<string, unknown>(Object.entries(options))
  for (const name of belongInside) if (given.get(name) !== undefined) throw badOption(name, given.get(name), `it inside of connection: { ${name} }`)
  for (const [name, instead] of refused) {
    const isOurs = name === 'host' || name === 'port' || name === 'database' || name === 'connectTimeout' || name === 'idleTimeout'
    if (!isOurs && given.get(name) !== undefined) throw badOption(name, given.get(name), `nothing here: ${instead}`)
    if (connection[name] !== undefined) throw badOption(`connection.${name}`, connection[name], `nothing here: ${instead}`)
  }
  if (connection.stream !== undefined && typeof connection.stream !== 'function') {
    throw badOption('connection.stream', connection.stream, 'a function that makes a stream: each connection needs its own')
  }
  const addressed = Object.entries({ url: options.url, host, port }).find(([, value]) => value !== undefined)
  if (connection.socketPath !== undefined && addressed !== undefined) {
    throw badOption(addressed[0], addressed[1], `no ${addressed[0]} next to connection.socketPath`)
  }
  for (const [name, value] of Object.entries({ host, port })) {
    if (value !== undefined && options.url !== undefined) throw badOption(name, value, `no ${name} next to url: it has one`)
  }
  const base: Record<string, unknown> = { maxPreparedStatements: 100, ...(url === undefined ? {} : parseUrl(url)) }
  const said = { ...connection, host, port, database }
  for (const [name, value] of Object.entries(said)) if (value !== undefined) base[name] = value
  // The driver writes into it, and knows TLS sessions by it: one for all connections, and not the caller's.
  if (typeof base.ssl === 'object' && base.ssl !== null) base.ssl = { ...base.ssl }
  // 0: none of the driver's own, which would be 10 s.
  base.connectTimeout = connectTimeout ?? 0
  return base
}

/** By hand: the driver lets `options` be overridden by a URL's query, and its errors show the URL. No error of ours has the text. */
function parseUrl (url: unknown): Record<string, unknown> {
  const wrong = (expected: string) => badOption('url', url, expected)
  const form = 'mysql://user:password@host:port/database, or mariadb://...'
  if (typeof url !== 'string' || !/^(?:mysql|mariadb):\/\//i.test(url) || !URL.canParse(url)) throw wrong(form)
  const { username, password, hostname, port, pathname, searchParams } = new URL(url)
  const options: Record<string, unknown> = {}
  if (hostname !== '') options.host = hostname.replace(/^\[|\]$/g, '')
  if (port !== '') options.port = Number(port)
  try {
    for (const [name, part] of Object.entries({ user: username, password, database: pathname.replace(/^\//, '') })) {
      if (part !== '') options[name] = decodeURIComponent(part)
    }
  } catch {
    throw wrong('a url whose user, password and database are percent-encoded')
  }
  for (const [name, value] of searchParams) {
    if (name === 'charset' || name === 'timezone') options[name] = value
    else if (name === 'ssl') options.ssl = sslOf(value, wrong)
    else throw wrong('a url without other options than charset, timezone and ssl: the driver\'s go into connection')
  }
  return options
}

/** The name of a profile of mysql2's, or an object as JSON. */
function sslOf (text: string, wrong: (expected: string) => Error): unknown {
  if (!text.startsWith('{')) return text
  try {
    return JSON.parse(text)
  } catch {
    throw wrong('a url whose ssl is the name of a profile, or an object as JSON')
  }
}
