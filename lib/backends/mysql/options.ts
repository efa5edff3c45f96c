import { connect } from 'node:net'
import type { ConnectionOptions } from 'mysql2'
import { badOption } from '../../engine/errors.js'
import type { Address } from '../../../types/options.js'
import {
  assignGiven, keepAliveAfter, readUrl, refuseBeside, refuseKeys, refuseNextTo, refuseNumber,
  type Addresses, type AddressNow, type Discovered, type RefusedKeys,
} from '../shared/address.js'
import { appNameOf } from '../shared/app-name.js'

export interface MysqlOptions {
  /**
   * `mysql://user:password@host:port/database` or `mariadb://...`. Its query may have `charset`, `timezone` and `ssl`
   * only. A function is called at each create. Default `mysql://localhost:3306`.
   */
  url?: Address['url']
  /** Default 'localhost'. Not next to `url`. */
  host?: string
  /** Default 3306. Not next to `url`. */
  port?: number
  /** Default: the URL's, else none. */
  database?: string
  /**
   * mysql2's own options, passed on as they are: `user`, `password`, `ssl`, `charset`, `timezone`, `socketPath`, ...
   * Those that would do the pool's work are refused. `maxPreparedStatements` is 100 unless given here. A function is
   * called at each create; if its answer is wrong, that create fails with `FST_POOL_BAD_OPTIONS`.
   */
  connection?: Address['connection']
  /**
   * By which name the server shows these connections: the connect attribute `program_name`, unless `connection` has
   * one. At most 128 characters of ASCII. Default: the name in the app's package.json.
   */
  appName?: string
  /**
   * How long the server may take until it serves a new connection, in ms. Default: as long as the signal of `create`
   * allows.
   */
  connectTimeout?: number
  /**
   * The module mysql2, for bundles and copies of one's own. With mysql2/promise it is loaded by its name. Default: the
   * installed one.
   */
  driver?: unknown
  /**
   * What is undone at return. Default 'session'.
   * - 'session': whatever the next borrower could notice. Costs nothing where nothing was sent.
   * - 'transaction': an open transaction, and listeners. Variables, temporary tables, locks of LOCK TABLES and
   *   GET_LOCK, the database, the character set and `autocommit` stay as they are.
   * - 'none': nothing.
   */
  reset?: 'session' | 'transaction' | 'none'
}

const queueing = 'callers wait in the pool, see acquireTimeout and maxPending'

/** The driver's keys that would do the pool's work, and what to use instead. */
const refused: RefusedKeys = new Map(Object.entries({
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

/** Names that mean something else among our own options. */
const ours = ['host', 'port', 'database', 'connectTimeout', 'idleTimeout']

/** mysql2's own options that are likely to be put beside `url` by mistake. */
const beside = [
  'user', 'password', 'ssl', 'charset', 'timezone', 'socketPath', 'flags', 'multipleStatements', 'namedPlaceholders',
  'rowsAsArray', 'nestTables', 'typeCast', 'dateStrings', 'decimalNumbers', 'supportBigNumbers', 'bigNumberStrings',
  'jsonStrings', 'maxPreparedStatements', 'enableKeepAlive', 'keepAliveInitialDelay', 'compress', 'connectAttributes',
  'authPlugins', 'infileStreamFactory', 'stream', 'localAddress', 'debug', 'trace',
  ...[...refused.keys()].filter((name) => !ours.includes(name)),
]

/** Gives the configuration of the next connection. */
export type Config = (signal: AbortSignal) => ConnectionOptions | Promise<ConnectionOptions>

/** @throws `FST_POOL_BAD_OPTIONS`, for what is wrong whatever a function answers */
export function configsOf (options: MysqlOptions, addresses: Addresses): Config {
  const { url, host, port } = options
  refuseBeside(options, beside, refused)
  refuseNumber(options.database)
  if (url !== undefined) refuseNextTo('url: it has one', { host, port })
  return addresses.configs((address) => driverOptions(address, options))
}

function driverOptions ({ url, connection }: AddressNow, options: MysqlOptions & Discovered): ConnectionOptions {
  const { host, port, database, connectTimeout, hostaddr } = options
  refuseKeys(connection, refused)
  if (connection.stream !== undefined && typeof connection.stream !== 'function') {
    throw badOption('connection.stream', connection.stream,
      'a function that makes a stream: each connection needs its own')
  }
  if (connection.socketPath !== undefined) refuseNextTo('connection.socketPath', { url: options.url, host, port })
  const base: Record<string, unknown> = { maxPreparedStatements: 100, keepAliveInitialDelay: keepAliveAfter }
  if (url !== undefined) assignGiven(base, parseUrl(url))
  assignGiven(base, connection, { host, port, database })
  const program = { program_name: appNameOf(options.appName, { longest: 128 }) }
  base.connectAttributes = Object.assign(program, base.connectAttributes)
  // The driver writes into this object, and tells TLS sessions apart by it: one copy for all connections, not the
  // caller's own object.
  if (typeof base.ssl === 'object' && base.ssl !== null) base.ssl = { ...base.ssl }
  if (hostaddr !== undefined) {
    // The driver's TLS asks for the name of its own `host`, and checks it: that stays.
    base.stream = () => connect({ host: hostaddr, port: base.port as number ?? 3306 })
      .setKeepAlive(base.enableKeepAlive !== false, base.keepAliveInitialDelay as number).setNoDelay(true)
  }
  // 0 turns the driver's own timeout off, which would be 10 s.
  base.connectTimeout = connectTimeout ?? 0
  return base
}

function parseUrl (url: unknown): Record<string, unknown> {
  const wrong = (expected: string) => badOption('url', url, expected)
  const form = 'mysql://user:password@host:port/database, or mariadb://...'
  if (typeof url !== 'string' || !/^(?:mysql|mariadb):\/\//i.test(url)) throw wrong(form)
  const { user, password, host, port, path: database, query } = readUrl(url, form)
  const options: Record<string, unknown> = { user, password, host, port, database }
  for (const [name, value] of query) {
    if (name === 'charset' || name === 'timezone') options[name] = value
    else if (name === 'ssl') options.ssl = sslOf(value, wrong)
    else throw wrong('a url without other options than charset, timezone and ssl: the driver\'s go into connection')
  }
  return options
}

/** `ssl` in a url: the name of a profile of mysql2, or an object as JSON. */
function sslOf (text: string, wrong: (expected: string) => Error): unknown {
  if (!text.startsWith('{')) return text
  try {
    return JSON.parse(text)
  } catch {
    throw wrong('a url whose ssl is the name of a profile, or an object as JSON')
  }
}
