import type { ClientConfig } from 'pg'
import { badOption } from '../../engine/errors.js'
import type { Address, Backoff } from '../../../types/options.js'
import {
  assignGiven, keepAliveAfter, refuseBeside, refuseKeys, refuseNextTo, refuseNumber,
  type Addresses, type AddressNow, type Discovered, type RefusedKeys,
} from '../shared/address.js'
import { appNameOf } from '../shared/app-name.js'
import { facesOf, loadDriver, requirePackage } from '../shared/driver.js'
import { postgresDriver, type Inside } from './wire.js'

export type PostgresReset = 'session' | 'joined' | 'transaction' | 'none'

export interface PostgresOptions {
  /**
   * `postgresql://user:password@host:port/database?sslmode=...` as pg understands it, `postgres://`, `socket://`, or
   * the folder of a Unix socket. Other options override it. A function is called at each create, also for `listen`.
   * Default: what pg takes from the environment (`PGHOST`, ...), else localhost.
   */
  url?: Address['url']
  /** Instead of `url`. Default: `PGHOST`, else 'localhost'. */
  host?: string
  /** Instead of `url`. Default: `PGPORT`, else 5432. */
  port?: number
  /** Default: the URL's, else `PGDATABASE`, else the user's name. */
  database?: string
  /**
   * pg's own options, passed on as they are: `user`, `password` (a function too), `ssl`, `application_name`, `options`,
   * ... Those that would do the pool's work are refused. A function is called at each create; if its answer is wrong,
   * that create fails with `FST_POOL_BAD_OPTIONS`.
   */
  connection?: Address['connection']
  /**
   * What is undone at return. Default 'session'.
   * - 'session': the open transaction, settings, roles, temp tables, locks, LISTEN, cursors, what SQL PREPARE made,
   *   listeners and type parsers of the object, properties and methods that were set on it. Statements that the driver
   *   named stay prepared. What `LOAD` loaded stays, and a PREPARE within a function where the driver holds named
   *   statements.
   * - 'joined': the same, without a round trip: the reset goes out in front of the next borrower's first statement, in
   *   the same write, or in the next turn of the event loop. If it fails, the server ends the session before that
   *   statement, which rejects with `FST_POOL_RESET_FAILED`. Not behind a proxy such as PgBouncer: a create finds that
   *   out and fails.
   * - 'transaction': an open transaction, nothing else. No round trip where none is open.
   * - 'none': nothing.
   */
  reset?: PostgresReset
  /** How long the server may take to answer a joined reset, in ms. Then the connection is destroyed. Default 1000. */
  resetTimeout?: number
  /**
   * By which name the server shows these connections, where neither `url`, `connection` nor `PGAPPNAME` says another
   * one: `application_name`. At most 63 characters of ASCII. Default: the name in the app's package.json.
   */
  appName?: string
  /** How long the connection for `listen` may take, in ms. The pool's connections obey their signal. Default 3000. */
  connectTimeout?: number
  /** How soon the connection for `listen` is made again, as the pool's option, which it is in a pool of the plugin. */
  backoff?: Backoff | undefined
  /**
   * How often that connection is asked whether it is alive, in ms, as the pool's option. Here 0, or left out, is 10000:
   * nothing else would show that a network has gone silent.
   */
  keepalive?: number | undefined
  /**
   * The module pg, or an object with its `Client`: for bundles, and copies of one's own. Default: the installed one.
   */
  driver?: unknown
}

/** The driver's keys that would do the pool's work, or would not do what their name says, and what to use instead. */
const refused: RefusedKeys = new Map(Object.entries({
  connectionString: 'use the option url',
  host: 'use the option host',
  port: 'use the option port',
  connectionTimeoutMillis: 'use the option connectTimeout',
  pipeline: 'a reset must be known to have worked before the next borrower sends anything',
  max: 'use the option max',
  poolSize: 'use the option max',
  min: 'use the option min',
  idleTimeoutMillis: 'use the option idleTimeout',
  maxUses: 'use the option maxUses',
  maxLifetimeSeconds: 'use the option maxLifetime',
  allowExitOnIdle: 'use the option allowExitOnIdle',
  onConnect: 'use the option onConnect',
  verify: 'use the option onConnect',
  log: 'use the pool\'s events',
  Client: 'a connection is a pg.Client',
  Promise: 'a connection is a pg.Client that returns promises',
  connection: 'each client has its own',
  tls: 'pg calls it ssl',
  username: 'pg calls it user',
}))

/** pg's own options that are likely to be put beside `url` by mistake. */
const beside = [
  'user', 'username', 'password', 'ssl', 'tls', 'sslnegotiation', 'application_name', 'fallback_application_name',
  'client_encoding', 'options', 'types', 'statement_timeout', 'query_timeout', 'lock_timeout',
  'idle_in_transaction_session_timeout', 'keepAlive', 'keepAliveInitialDelayMillis', 'binary', 'enableChannelBinding',
  'replication', 'stream', 'pipeline', 'connectionString', 'connectionTimeoutMillis', 'idleTimeoutMillis',
]

/** Gives the configuration of the next connection. */
export type Config = (signal: AbortSignal) => ClientConfig | Promise<ClientConfig>

/** @throws `FST_POOL_BAD_OPTIONS`, for what is wrong whatever a function answers */
export function configsOf (options: PostgresOptions, addresses: Addresses): Config {
  const { url, host, port, driver } = options
  refuseBeside(options, beside, refused)
  refuseNumber(options.database)
  if (url !== undefined) refuseNextTo('a url', { host, port })
  if (typeof url !== 'function') checkUrl(url)
  const parse = url === undefined ? undefined : parserOf(driver)
  return addresses.configs((address) => driverOptions(address, options, parse))
}

/** The options override `url`; the driver's own options come last, as they are. */
function driverOptions (
  address: AddressNow, options: PostgresOptions & Discovered, parse: Parser | undefined
): ClientConfig {
  const { url, connection } = address
  const { host, port, database } = options
  refuseKeys(connection, refused)
  if (connection.stream !== undefined && typeof connection.stream !== 'function') {
    throw badOption('connection.stream', connection.stream, 'a function that makes a stream for each connection')
  }
  if (database !== undefined && connection.database !== undefined) {
    throw badOption('connection.database', connection.database, 'nothing here next to the option database')
  }
  const base: ClientConfig = { keepAlive: true, keepAliveInitialDelayMillis: keepAliveAfter }
  assignGiven(base, url === undefined ? {} : { ...parseUrl(url, parse!) }, { host, port, database }, connection)
  // pg takes it where there is no `application_name`, from wherever.
  base.fallback_application_name ||= appNameOf(options.appName, { longest: 63 })
  const { ssl } = base
  // A pg that was given the same object before has made its key invisible to a copy.
  if (typeof ssl === 'object' && ssl !== null && ssl.key !== undefined) base.ssl = { ...ssl, key: ssl.key }
  if (options.hostaddr !== undefined) goTo(options.hostaddr, base)
  return base
}

/** To one address of the host. Its name is what TLS asks for, and checks. */
function goTo (address: string, base: ClientConfig): void {
  if (base.ssl) {
    const { ssl } = base
    const given = typeof ssl === 'object' ? ssl : {}
    base.ssl = { servername: base.host!, ...given, ...(given.key !== undefined && { key: given.key }) }
  }
  base.host = address
}

type Parser = (url: string) => Record<string, unknown>

/** pg's own parser. Where the app has bundled the driver, its package may be absent: then a client parses the url. */
function parserOf (driver: unknown): Parser {
  try {
    const module = requirePackage('pg-connection-string', { via: 'pg', backend: 'postgresql' })
    return facesOf(module).find((face) => typeof face === 'function') as unknown as Parser
  } catch (error) {
    if (driver === undefined) throw error
    const { Client } = loadDriver(postgresDriver, driver)
    return (url) => {
      const { connectionParameters } = new Client({ connectionString: url }) as unknown as Inside
      // The password is not enumerable there.
      return { ...connectionParameters, password: connectionParameters.password }
    }
  }
}

function checkUrl (url: unknown): void {
  if (url === undefined || (typeof url === 'string' && /^(postgres(ql)?:\/\/|socket:|\/)/i.test(url))) return
  throw badOption('url', url, 'postgresql://user:password@host:port/database, or the folder of a Unix socket')
}

/**
 * Uses pg's own parser, so that each parameter means what it means to pg. No error of ours shows the text of the url.
 */
function parseUrl (url: string, parse: Parser): ClientConfig {
  checkUrl(url)
  const wrong = (expected: string) => badOption('url', url, expected)
  let parsed: Record<string, unknown>
  try {
    parsed = parse(url)
  } catch {
    // Its error may have the url in it.
    throw wrong('a url that pg can parse, whose certificate files can be read')
  }
  const options: ClientConfig = {}
  for (const [name, value] of Object.entries(parsed)) {
    if (value === undefined || value === null || value === '') continue
    const instead = name === 'host' || name === 'port' ? undefined : refused.get(name)
    if (instead !== undefined) throw wrong(`a url without ${name}: ${instead}`)
    Object.assign(options, { [name]: value })
  }
  return options
}
