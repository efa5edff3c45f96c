import { randomBytes } from 'node:crypto'
import type { EventEmitter } from 'node:events'
import type { Socket } from 'node:net'
import type { Connection as Callbacks, ConnectionOptions } from 'mysql2'
import { badOption, PoolError } from '../pool/errors.js'
import { Addresses } from './shared/address.js'
import { loadDriver } from './shared/driver.js'
import { somewhere, type Failure } from './shared/failures.js'
import { unlessAborted } from './shared/signal.js'
import type { AddressNow } from './shared/address.js'
import type { DriverKind } from './shared/driver.js'
import type { Address } from '../pool/options.js'
import type { Connector, Isolation, ServerState, Transaction, TransactionOptions, Transactions } from '../../types/connector.js'
import type { Connection } from '../../types/drivers.js'
import type { Role } from '../../types/pool.js'

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

export interface MysqlConnector extends Connector<Connection> {
  readonly system: 'mysql'
  readonly transactions: Transactions<Connection>
  inspect (connection: Connection, signal: AbortSignal): Promise<ServerState>
  isTransient (error: unknown): boolean
}

/**
 * MySQL 8 and MariaDB 10.2.4 or later, on mysql2. A connection is one of mysql2's promise connections.
 *
 * In mode 'session' a connection is reset (COM_RESET_CONNECTION) before its first loan too, as that changes what connecting had set: the `IGNORE_SPACE` of
 * mysql2's flags, the `wait_timeout` of the flag `INTERACTIVE`, and what the server's `init_connect` set (but for the character set, which is kept).
 *
 * Not undone by a reset: properties set on the object, and a role (SET ROLE) that a stored function or trigger sets. A statement from `prepare()` that is
 * kept over a reset fails. A statement that runs when its connection is destroyed goes on in the server, for nobody.
 *
 * A connection on which the server refused a write because it is read only (1290, 1836; 1792, unless the borrower asked for a transaction that only reads)
 * is broken: another one may reach a server that takes it. Not so where `inspect` has found a replica.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`. Nothing is opened yet.
 */
export async function mysql (options: MysqlOptions): Promise<MysqlConnector> {
  const addresses = new Addresses(options)
  const config = configsOf(options, addresses)
  return new MysqlBackend(loadDriver(mysqlDriver, options.driver), config, addresses, options)
}

type Driver = Pick<typeof import('mysql2'), 'createConnection'>

const mysqlDriver: DriverKind<Driver> = {
  backend: 'mysql',
  name: 'mysql2',
  expected: 'the module mysql2',
  read (module) {
    const { createConnection, Connection } = module as { createConnection?: unknown, Connection?: { prototype?: Partial<Callbacks> } }
    return typeof createConnection === 'function' && typeof Connection?.prototype?.promise === 'function' ? module as unknown as Driver : undefined
  },
  // mysql2/promise: what it makes can't be ended before it is connected.
  belongs: ({ PromiseConnection }) => typeof PromiseConnection === 'function',
}

class MysqlBackend implements MysqlConnector {
  // Of MariaDB too: nothing tells before the first connection which of the two it is.
  readonly system = 'mysql'
  readonly #driver: Driver
  readonly #config: Config
  readonly #addresses: Addresses
  readonly #mode: 'session' | 'transaction' | 'none'
  readonly #guards = new WeakMap<Connection, Guard>()
  /** As `inspect` has found it last. */
  #role: Role | undefined

  constructor (driver: Driver, config: Config, addresses: Addresses, { reset = 'session' }: MysqlOptions) {
    this.#driver = driver
    this.#config = config
    this.#addresses = addresses
    this.#mode = reset
  }

  get secrets (): readonly string[] {
    return this.#addresses.secrets
  }

  readonly transactions: Transactions<Connection> = {
    isolation: ['read uncommitted', 'read committed', 'repeatable read', 'serializable'],
    readOnly: true,
    begin: (connection, options, signal) => this.#guardOf(connection).begin(options, signal),
    isTransient: (error) => somewhere(error, ({ errno }) => conflicts.has(errno)),
  }

  async create (signal: AbortSignal): Promise<Connection> {
    signal.throwIfAborted()
    const config = await this.#config(signal)
    // Not the promise flavour: that gives nothing to abort before it is connected. A copy, since the driver changes what it is given.
    const core = this.#driver.createConnection({ ...config }) as unknown as Core
    // For all of its life: an error that nobody listens for ends the process. Before `Guard` listens, `connect` tells the first one.
    core.on('error', () => {})
    try {
      await within(core, signal, new Promise<void>((resolve, reject) => core.connect((error) => error ? reject(error) : resolve())))
      const connection = core.promise()
      const guard = new Guard(connection, core, this.#mode)
      await within(core, signal, guard.open())
      this.#guards.set(connection, guard)
      return connection
    } catch (error) {
      await cut(core)
      throw error
    }
  }

  /**
   * COM_QUIT, and waits until the server has closed, for 100 ms. What is dead or not at rest is cut off at once: a running statement goes on in the server,
   * which frees its transaction's locks when it hears of it (MariaDB asks every 5 s where it sleeps, else at the statement's end).
   */
  async destroy (connection: Connection): Promise<void> {
    await this.#guardOf(connection).close()
  }

  /** COM_PING. */
  async validate (connection: Connection, signal: AbortSignal): Promise<boolean> {
    const guard = this.#guardOf(connection)
    return !guard.broken && await guard.ping(signal)
  }

  isBroken (connection: Connection): boolean {
    const guard = this.#guardOf(connection)
    // The pool asks before every loan: the first time after a reset is when `onConnect` is done, and no borrower was there.
    guard.settle()
    // And at every return.
    guard.forgetStatements()
    return guard.broken || guard.spoilt || (guard.misplaced && this.#role !== 'replica')
  }

  /**
   * 'replica': it is read only, for all (`read_only`, `innodb_read_only`), or it follows another server, even where it would take writes. So of servers that
   * follow each other in a ring none is a primary.
   *
   * The lag is the server's own Seconds_Behind_Master, in whole seconds and of the worst where it follows several; Infinity where that is NULL: replication
   * does not run, or its primary is out of reach. To ask for it takes a privilege: REPLICATION CLIENT, of MariaDB from 10.5.9 on SLAVE MONITOR. Without it
   * (and on readers of Amazon Aurora, which replicate in another way) the lag is left out, and `read_only` alone tells the role.
   */
  async inspect (connection: Connection, signal: AbortSignal): Promise<ServerState> {
    const state = await unlessAborted(this.#guardOf(connection).inspect(), signal)
    this.#role = state.role
    return state
  }

  /** That the connection died or was ended, or its server ends; that it takes no writes. Not what is said to who connects: connects are the pool's to try again. */
  isTransient (error: unknown): boolean {
    return somewhere(error, isPassing)
  }

  /**
   * What is still under way is waited for. An unread `.stream()` never ends: past the deadline the pool destroys the connection, which ends this too.
   *
   * @throws (rejects) where the user or the configured database can't be had again, or where the connection is used meanwhile
   */
  reset (connection: Connection): Promise<void> | undefined {
    return this.#guardOf(connection).reset()
  }

  onDeath (connection: Connection, listener: (error?: Error) => void): void {
    this.#guardOf(connection).onDeath(listener)
  }

  #guardOf (connection: Connection): Guard {
    const guard = this.#guards.get(connection)
    if (guard === undefined) throw new TypeError('this connection is not of this connector')
    return guard
  }
}

// --- Options --------------------------------------------------------------------------------------------------------------------------

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
type Config = (signal: AbortSignal) => ConnectionOptions | Promise<ConnectionOptions>

/** Made once, or anew at each create where a function is to be asked: what is known without it is checked now all the same. */
function configsOf (options: MysqlOptions, addresses: Addresses): Config {
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

// --- One connection -------------------------------------------------------------------------------------------------------------------

/** Of the status that the server sends with each answer. */
const inTransaction = 1
const autocommit = 2
/** Of the client's flags. */
const multiStatements = 0x10000
/** The number of the command. */
const resetConnection = 0x1f

/**
 * Can end no transaction, and change neither role nor database. The words that stand first decide: within one statement (and not several) nothing else
 * follows. Whatever is written in another way counts for more than it is.
 */
const plain = /^\s*(?:select|insert|update|delete|replace|with)\b/i
/**
 * Can change neither role nor database; `bounds`, where nothing else is in the text. No part of a text can be matched
 * in two ways: to try all of them would take minutes for a long one.
 */
const harmless = /^\s*(?:select|insert|update|delete|replace|with|savepoint|show)\b/i
const bounds = /^\s*(?:start\s+transaction|begin|commit|rollback)\s*(?:;\s*)?$/i

/** Explicitly, since the variable `completion_type` may say otherwise. */
const commit = 'COMMIT AND NO CHAIN NO RELEASE'
const rollback = 'ROLLBACK AND NO CHAIN NO RELEASE'

const state = 'SELECT DATABASE(), CURRENT_ROLE()'

/** A text that may make transactions read only, of those that are not harmless: by its own words, or by some that it has elsewhere. */
const mayOnlyRead = /only|call|execute/i

/** The states of an XA transaction that COM_RESET_CONNECTION undoes, in whatever language the server tells of them. */
const resettable = /\b(?:ACTIVE|IDLE|ROLLBACK ONLY)\b/

/** How long a healthy connection may take to end, in ms. */
const quitGrace = 100

/** Sees all that goes through one connection, and knows how to undo it. */
class Guard {
  readonly #connection: Connection
  readonly #core: Core
  readonly #mode: 'session' | 'transaction' | 'none'
  readonly #config: Record<string, unknown>
  readonly #before: Record<string, unknown>
  readonly #encoding: string
  readonly #several: boolean
  /** Commands that others sent, and how many of them were sent when the connection was clean. */
  #sent = 0
  #clean = 0
  #settled = false
  /** One of those may have changed role or database. */
  #suspect = false
  /** One of those may have asked for transactions that only read. */
  #onlyReads = false
  /** The server refused a write, and not because of the borrower's own transaction. */
  misplaced = false
  /** It is in a state that no reset undoes. */
  spoilt = false
  /** The server has refused to execute a prepared statement: others may be out of date too. */
  #outdated = false
  /** It does not tell us of its replication. */
  #reticent = false
  /** This command is ours. */
  #ours = false
  /** The last packet that came: of a connection at rest it is the end of an answer. */
  #buffer: Buffer | undefined
  #offset = 0
  #prepared = false
  /** What the first borrower found: the database, the role, and a character set where the reset undoes that of the connection. */
  #first = { database: null as string | null, role: null as string | null, names: '' }
  #added: Array<readonly [emitter: Emitter, event: string | symbol, listener: Listener]> = []
  #open: Open | undefined
  #broken = false
  #closing = false
  #died: ((error?: Error) => void) | undefined
  #error: Error | undefined

  constructor (connection: Connection, core: Core, mode: 'session' | 'transaction' | 'none') {
    this.#connection = connection
    this.#core = core
    this.#mode = mode
    this.#config = core.config
    this.#before = { ...core.config }
    this.#encoding = core.clientEncoding
    this.#several = (core.config.clientFlags & multiStatements) !== 0
    core.on('error', this.#onError)
    core.on('end', this.#onEnd)
    core.stream.on('close', this.#onEnd)
    this.#hide()
  }

  /** No I/O. */
  get broken (): boolean {
    return this.#broken || !isOpen(this.#core)
  }

  /** How the last answer left the connection. Undefined: an error, which does not say, or no answer yet. Only where none is under way. */
  get status (): number | undefined {
    const buffer = this.#buffer
    if (buffer === undefined || this.#prepared) return undefined
    const at = this.#offset
    if (buffer[at] === 0xfe) return buffer.readUInt16LE(at + 3)
    if (buffer[at] !== 0) return undefined
    // An OK: affected rows and insert id come first.
    const rest = afterNumber(buffer, afterNumber(buffer, at + 1))
    return buffer.readUInt16LE(rest)
  }

  get #busy (): boolean {
    const { _command: command, _commands: commands, _paused: paused } = this.#core
    return Boolean(command) || commands.length > 0 || paused
  }

  get #idle (): boolean {
    const { status } = this
    return status !== undefined && (status & inTransaction) === 0 && (status & autocommit) !== 0
  }

  /** From here on the connection may be lent. */
  async open (): Promise<void> {
    if (this.#mode === 'session') {
      const charset = 'SELECT @@character_set_client, @@collation_connection'
      const before = await this.#row(charset)
      await this.#resetConnection()
      const after = await this.#row(charset)
      // By its documentation MySQL goes back to the server's own.
      if (before.join() !== after.join()) this.#first.names = `SET NAMES ${String(before[0])} COLLATE ${String(before[1])}`
      if (this.#first.names !== '') await this.run([this.#first.names])
      const [database, role] = await this.#row(state)
      this.#first = { ...this.#first, database: textOrNull(database), role: textOrNull(role) }
    }
    if (this.#mode !== 'none') {
      for (const emitter of [this.#connection, this.#core]) {
        emitter.on('newListener', (event, listener) => { this.#added.push([emitter, event, listener]) })
      }
    }
    this.#core.on('removeListener', this.#onRemove)
    this.#connection.on('removeListener', this.#onRemove)
    this.#added = []
  }

  settle (): void {
    if (this.#settled) return
    this.#settled = true
    this.#clean = this.#sent
  }

  onDeath (listener: (error?: Error) => void): void {
    if (this.broken) queueMicrotask(() => listener(this.#reason))
    else this.#died = listener
  }

  async ping (signal: AbortSignal): Promise<boolean> {
    await unlessAborted(this.#command((done) => this.#core.ping(done)), signal)
    return true
  }

  /** No use of it: no reset follows. */
  async inspect (): Promise<ServerState> {
    const [server, storage] = await this.#row('SELECT @@GLOBAL.read_only, @@GLOBAL.innodb_read_only')
    const rows = await this.#replication()
    if (!isOn(server) && !isOn(storage) && rows?.some(follows) !== true) return { role: 'primary' }
    // Storage that only reads, and nobody to follow: it is somebody else's.
    if (rows === undefined || (rows.length === 0 && isOn(storage))) return { role: 'replica' }
    return { role: 'replica', lag: rows.length === 0 ? Infinity : Math.max(...rows.map(lagOf)) }
  }

  /** One row for each server that it is told to follow. Undefined: it does not say. */
  async #replication (): Promise<Replication[] | undefined> {
    for (const sql of this.#reticent ? [] : replications) {
      try {
        return await this.#rows<Replication>(sql, false)
      } catch (error) {
        const { errno } = error as { errno?: unknown }
        if (errno === errors.syntax) continue
        if (errno !== errors.accessDenied) throw error
        break
      }
    }
    this.#reticent = true
    return undefined
  }

  async close (): Promise<void> {
    this.#closing = true
    const core = this.#core
    if (this.broken || this.#busy) return await cut(core)
    const timer = setTimeout(() => core.stream.destroy(), quitGrace)
    try {
      await new Promise<void>((resolve) => {
        core.stream.once('close', () => resolve())
        this.#own(() => core.end())
        // The server's end would wait behind data that nobody reads.
        core.stream.resume()
      })
    } finally {
      clearTimeout(timer)
    }
  }

  // --- Reset ---

  reset (): Promise<void> | undefined {
    if (this.#mode === 'none') return undefined
    if (this.#added.length > 0) {
      for (const [emitter, event, listener] of this.#added.splice(0)) emitter.off(event, listener)
    }
    const busy = this.#busy
    if (!busy && this.#sent === this.#clean) return undefined
    if (this.#mode === 'session') return this.#undo()
    if (!busy && this.#idle) {
      this.#clean = this.#sent
      return undefined
    }
    const sent = this.#sent
    return this.#rollBack(() => this.#idle).then(() => this.#cleaned(sent))
  }

  /** @param isOver asked when its turn has come: nothing is sent then */
  async #rollBack (isOver: () => boolean): Promise<void> {
    await this.run([() => isOver() ? undefined : rollback]).catch((cause: unknown) => {
      const { errno, message } = cause as Failure
      if (errno !== errors.xaState) throw cause
      if (this.#mode === 'session' && resettable.test(String(message))) return
      throw new Error('the connection was left with an XA transaction, which can not be undone', { cause })
    })
  }

  async #undo (): Promise<void> {
    const sent = this.#sent
    // An XA transaction refuses it. After the reset of one that is prepared, MariaDB (10.11) would refuse all writes.
    await this.#rollBack(() => this.status !== undefined && (this.status & inTransaction) === 0)
    await this.#resetConnection()
    for (const name of ['user', 'password', 'passwordSha1', 'database']) {
      if (this.#config[name] !== this.#before[name]) throw new Error('the connection was left with another user or database by changeUser')
    }
    // What the driver learned from SET NAMES, which the server has forgotten; and what was written into the configuration.
    Object.assign(this.#config, this.#before)
    this.#core.clientEncoding = this.#encoding
    if (this.#first.names !== '') await this.run([this.#first.names])
    if (this.#suspect) await this.#restore()
    this.#suspect = false
    this.#onlyReads = false
    this.#cleaned(sent)
  }

  /** Neither role (MariaDB) nor database is reset. The configured database may be gone: then this fails. */
  async #restore (): Promise<void> {
    const { database, role } = this.#first
    const isBack = async () => {
      const [nowDatabase, nowRole] = await this.#row(state)
      return { database: textOrNull(nowDatabase) === database, role: textOrNull(nowRole) === role }
    }
    const now = await isBack()
    if (now.database && now.role) return
    if (database === null && !now.database) {
      // No statement leaves a database for none.
      await this.#command((done) => this.#core.changeUser({}, done))
      await this.#resetConnection()
      if (this.#first.names !== '') await this.run([this.#first.names])
    }
    const steps = []
    if (database !== null && !now.database) steps.push(`USE ${quote(database)}`)
    // MySQL gives its roles as SET ROLE takes them, MariaDB a bare name.
    if (!now.role) steps.push(`SET ROLE ${role === null ? 'NONE' : role === 'NONE' || role.includes('@') ? role : quote(role)}`)
    await this.run(steps)
    const then = await isBack()
    if (!then.database || !then.role) throw new Error('the connection was left with another role or database, which can not be undone')
  }

  /**
   * COM_RESET_CONNECTION. mysql2 before 3.22 has no method for it: there it is a query of no text, sent under that command's number. The statements that
   * the driver remembers are gone in the server.
   */
  async #resetConnection (): Promise<void> {
    const core = this.#core
    if (core.reset !== undefined) return await this.#command((done) => core.reset!(done))
    await this.#command<unknown>((done) => {
      const query = core.constructor.createQuery('', undefined, done, core.config)
      const { start, doneInsert } = query
      query.start = () => {
        const { writePacket } = core
        core.writePacket = ({ constructor: Packet }) => {
          writePacket.call(core, new Packet(0, Buffer.from([0, 0, 0, 0, resetConnection]), 0, 5))
        }
        try {
          return start.call(query, undefined, core)
        } finally {
          core.writePacket = writePacket
        }
      }
      query.doneInsert = (header) => {
        core._statements.clear()
        return doneInsert.call(query, header)
      }
      core.addCommand(query)
    })
  }

  #cleaned (sent: number): void {
    if (this.#sent !== sent || this.#busy) throw new Error('the connection was still used while it was reset')
    this.#clean = sent
    this.#settled = false
  }

  // --- Transactions ---

  async begin ({ isolation, readOnly = false }: TransactionOptions, signal: AbortSignal): Promise<Transaction<Connection>> {
    const open: Open = { marked: false, lost: false, readOnly }
    let began = false
    await within(this.#core, signal, this.run([
      () => {
        const { status } = this
        // START TRANSACTION would commit it.
        if (status !== undefined && (status & inTransaction) !== 0) throw new Error('a transaction is open on this connection already')
        return isolation === undefined ? undefined : `SET TRANSACTION ISOLATION LEVEL ${levels[isolation]}`
      },
      readOnly ? 'START TRANSACTION READ ONLY' : 'START TRANSACTION',
      () => {
        began = true
        this.#open = open
        if (!this.#several && ((this.status ?? 0) & autocommit) !== 0) return undefined
        open.marked = true
        return `SAVEPOINT ${mark}`
      },
    ])).catch(async (error: unknown) => {
      if (this.#open === open) this.#open = undefined
      if (began && !this.broken) await this.run([rollback])
      throw error
    })
    return this.#transaction(open)
  }

  /**
   * A commit must not lie: a deadlock, DDL or somebody's own COMMIT ends a transaction, and what follows is committed
   * by itself. As long as only plain statements were sent, and autocommit is on, no other can have begun, and the last
   * answer's status tells. Before anything else is sent, a savepoint marks the transaction: it lives as long as that
   * does, and to release it fails where another has begun meanwhile. It is older than all other savepoints: who goes
   * back to one of those keeps it.
   */
  #transaction (open: Open): Transaction<Connection> {
    const ended = (cause?: unknown) => {
      const message = 'the transaction was no longer open when it should have been committed'
      return new PoolError('FST_POOL_TRANSACTION_ENDED', message, { cause })
    }
    const end = () => { if (this.#open === open) this.#open = undefined }
    let inDoubt = false
    const check = (marked: boolean) => () => {
      if (open.lost) throw ended()
      if (marked) return `RELEASE SAVEPOINT ${mark}`
      // An error's packet has no status.
      return this.status === undefined ? 'DO 0' : undefined
    }
    const unlessEnded = (marked: boolean) => () => {
      if (!marked && ((this.status ?? 0) & inTransaction) === 0) throw ended()
      // It is written in this turn.
      inDoubt = true
      return commit
    }
    const savepoint = async (name: string): Promise<Transaction<Connection>> => {
      // One that no text of a borrower's has.
      const own = quote(`${name}_${salt}`)
      const first = open.marked ? [] : [`SAVEPOINT ${mark}`]
      open.marked = true
      await this.run([...first, `SAVEPOINT ${own}`])
      return {
        connection: this.#connection,
        savepoint,
        commit: async () => await this.run([`RELEASE SAVEPOINT ${own}`]).catch(unlessGone(ended)),
        rollback: async () => {
          await this.run([`ROLLBACK TO SAVEPOINT ${own}`, `RELEASE SAVEPOINT ${own}`]).catch(unlessGone(() => {
            // With the whole transaction, or released with another savepoint: then what was done since is still there.
            open.lost = true
            return undefined
          }))
        },
      }
    }
    return {
      connection: this.#connection,
      savepoint,
      get inDoubt () { return inDoubt },
      commit: async () => {
        // As of now: a mark for what is sent from here on would be made behind the commit.
        const { marked } = open
        await this.run([check(marked), unlessEnded(marked)]).catch((error: unknown) => {
          inDoubt &&= !isAnswer(error)
          return unlessGone(ended)(error)
        })
        inDoubt = false
        end()
      },
      rollback: async () => {
        await this.run([() => this.#idle ? undefined : rollback])
        end()
      },
    }
  }

  // --- Commands ---

  /**
   * Sends statements that answer with an OK, one after the other with nothing in between. A step may decide, when its turn comes, what is sent: undefined
   * is nothing.
   */
  async run (steps: ReadonlyArray<string | (() => string | undefined)>): Promise<void> {
    await this.#command<unknown>((done) => {
      const core = this.#core
      const rest = [...steps]
      const query = core.constructor.createQuery('', undefined, done, core.config)
      const { start } = query
      const next = () => {
        try {
          while (rest.length > 0) {
            const step = rest.shift()!
            const sql = typeof step === 'string' ? step : step()
            if (sql === undefined) continue
            query.sql = sql
            core._resetSequenceId()
            return start.call(query, undefined, core)
          }
          done(null)
        } catch (error) {
          done(error as Error)
        }
        return null
      }
      query.start = next
      query.doneInsert = next
      core.addCommand(query)
    })
  }

  async #row (sql: string): Promise<unknown[]> {
    return (await this.#rows<unknown[]>(sql, true))[0]!
  }

  async #rows<T> (sql: string, rowsAsArray: boolean): Promise<T[]> {
    const core = this.#core
    const options = { sql, rowsAsArray, nestTables: false, typeCast: true }
    // Past the driver's `query`, whose `queryFormat` is the user's.
    return await this.#command<T[]>((done) => core.addCommand(core.constructor.createQuery(options, undefined, done as Done<unknown[]>, core.config)))
  }

  #command<T = void> (send: (done: (error: Error | null | undefined, result?: T) => void) => void): Promise<T> {
    return new Promise((resolve, reject) => {
      this.#own(() => send((error, result) => error ? reject(error) : resolve(result as T)))
    })
  }

  #own (send: () => void): void {
    this.#ours = true
    try {
      send()
    } finally {
      this.#ours = false
    }
  }

  // --- The seam ---

  /** Own properties hide the driver's methods, look, and call them. */
  #hide (): void {
    const core = this.#core
    const { addCommand, handlePacket } = core
    core.addCommand = (command) => {
      if (!this.#ours) this.#note(command)
      return addCommand.call(core, command)
    }
    core.handlePacket = (packet) => {
      const command = core._command
      // Before it is handled: then the next command may be sent already.
      if (packet && command && !core._paused) {
        this.#buffer = packet.buffer
        this.#offset = packet.offset
        this.#prepared = command.parameterCount !== undefined
        if (packet.buffer[packet.offset] === 0xff) this.#refused(packet, command)
      }
      handlePacket.call(core, packet)
    }
  }

  #note (command: Command): void {
    const text = command.sql ?? command.statement?.query ?? command.query
    // COM_STMT_CLOSE: has no answer, and leaves nothing. The driver sends it by itself.
    if (text === undefined && command.id !== undefined) return
    this.#sent++
    const single = text !== undefined && !(this.#several && text.includes(';'))
    if (!single || !(harmless.test(text) || bounds.test(text))) {
      this.#suspect = true
      if (text === undefined || mayOnlyRead.test(text)) this.#onlyReads = true
    }
    const open = this.#open
    if (open === undefined || open.marked || (single && plain.test(text))) return
    open.marked = true
    this.run([`SAVEPOINT ${mark}`]).catch(() => {
      // Then there is no such savepoint, which is what the commit asks for.
    })
  }

  /** An error came. */
  #refused ({ buffer, offset, end }: Packet, { statement }: Command): void {
    const errno = buffer.readUInt16LE(offset + 1)
    if (errno === errors.illegalHandler || (errno === errors.xaState && this.#mode === 'none')) this.spoilt = true
    if (errno === errors.unknownStatement || errno === errors.needsReprepare) this.#forget(statement)
    if (errno === errors.readOnlyTransaction) this.misplaced ||= !this.#onlyReads && this.#open?.readOnly !== true
    else if (isReadOnly(errno, () => buffer.toString('latin1', offset + 3, end))) this.misplaced = true
  }

  /** Where one was out of date: to close them has no answer, so there is nothing to wait for. */
  forgetStatements (): void {
    if (!this.#outdated) return
    this.#outdated = false
    // A session reset does so itself.
    if (this.#mode !== 'session') this.#core._statements.clear()
  }

  /**
   * A prepared statement can't be executed any more: the driver forgets it at once, all others when the borrower has
   * gone, who may hold them. One by SQL PREPARE only a session reset undoes.
   */
  #forget (statement: Command['statement']): void {
    this.#outdated = true
    const { _statements: statements } = this.#core
    for (const [key, one] of [...statements.entries()]) if (one === statement) statements.delete(key)
    if (statement === undefined && this.#mode !== 'session') this.spoilt = true
  }

  readonly #onError = (error: Error): void => {
    this.#error = error
    this.#onEnd()
  }

  readonly #onEnd = (): void => {
    this.#broken = true
    const died = this.#died
    this.#died = undefined
    if (!this.#closing) died?.(this.#reason)
  }

  /** The server's FIN comes before the driver says what it means, under the same code. */
  get #reason (): Error {
    return this.#error ?? Object.assign(new Error('the server closed the connection'), { code: 'PROTOCOL_CONNECTION_LOST' })
  }

  /** A borrower's `removeAllListeners()` takes the driver's and ours away too: then a death can't be told any more, and would end the process. */
  readonly #onRemove = (event: string | symbol, listener: Listener): void => {
    if (listener !== this.#onError && event !== 'newListener') return
    this.#broken = true
    process.nextTick(() => { if (!this.#core.listeners('error').includes(this.#onError)) this.#core.on('error', this.#onError) })
  }
}

/** Whether the server refused a statement. Where it ends the connection it says nothing of the statement. */
function isAnswer (error: unknown): boolean {
  const { errno, sqlState } = error as { readonly errno?: unknown, readonly sqlState?: unknown }
  return sqlState !== undefined && !endings.has(errno)
}

/** An open transaction. */
interface Open {
  /** It has the savepoint that marks it. */
  marked: boolean
  /** What a transaction within it did could not be undone. */
  lost: boolean
  readonly readOnly: boolean
}

/** Of this process and not of each transaction, since the server's statistics (statement digests) keep each name. */
const salt = randomBytes(8).toString('hex')
const mark = `\`fastify_pool_${salt}\``

const levels: Record<Isolation, string> = {
  'read uncommitted': 'READ UNCOMMITTED',
  'read committed': 'READ COMMITTED',
  'repeatable read': 'REPEATABLE READ',
  serializable: 'SERIALIZABLE',
  // Not of those that `isolation` names. InnoDB's snapshots are those of this level.
  snapshot: 'REPEATABLE READ',
}

/** ER_SP_DOES_NOT_EXIST: what a savepoint that is not there gives. */
function unlessGone (otherwise: (cause: unknown) => Error | undefined): (error: unknown) => void {
  return (error) => {
    const told = (error as { errno?: unknown }).errno === 1305 ? otherwise(error) : error
    if (told !== undefined) throw told
  }
}

// --- What a server says ---------------------------------------------------------------------------------------------------------------

/**
 * How a server is asked for its replication. The first is MariaDB's and of all that it follows, the second that of MySQL from 8.0.22 on (8.4 has no other), the
 * last that of MySQL before.
 */
const replications = ['SHOW ALL SLAVES STATUS', 'SHOW REPLICA STATUS', 'SHOW SLAVE STATUS'] as const

/** Of a variable: newer servers have more than two values. */
function isOn (value: unknown): boolean {
  return !['0', 'OFF'].includes(String(value))
}

/** Under the names of `SHOW REPLICA STATUS`, or the older ones. */
type Replication = Readonly<Record<string, unknown>>

function named (row: Replication, name: string): unknown {
  const older = name.replace('Replica', 'Slave').replace('Source', 'Master')
  return name in row ? row[name] : row[older]
}

/** It applies what another server does, or tries to. */
function follows (row: Replication): boolean {
  return ['Replica_IO_Running', 'Replica_SQL_Running'].some((name) => named(row, name) !== 'No')
}

/** In ms. */
function lagOf (row: Replication): number {
  const seconds = named(row, 'Seconds_Behind_Source')
  return seconds === null || seconds === undefined ? Infinity : Number(seconds) * 1000
}

const errors = {
  /** ER_ILLEGAL_HA: of every write that comes after the reset of a prepared XA transaction. */
  illegalHandler: 1031,
  syntax: 1064,
  accessDenied: 1227,
  /** ER_UNKNOWN_STMT_HANDLER */
  unknownStatement: 1243,
  optionPrevents: 1290,
  /** ER_XAER_RMFAIL: not in the state in which an XA transaction is. */
  xaState: 1399,
  /** ER_NEED_REPREPARE */
  needsReprepare: 1615,
  readOnlyTransaction: 1792,
  readOnlyMode: 1836,
} as const

/** Its text is looked at, since 1290 is also said of other options: the option's name is in it, in whatever language. */
function isReadOnly (errno: unknown, text: () => string): boolean {
  return errno === errors.readOnlyMode || (errno === errors.optionPrevents && /read[-_]only/i.test(text()))
}

/**
 * ER_CHECKREAD (MariaDB's snapshot isolation), ER_LOCK_DEADLOCK, ER_TRANSACTION_ROLLBACK_DURING_COMMIT (group replication). Not ER_LOCK_WAIT_TIMEOUT: by
 * default it undoes one statement and not the transaction, and whoever waited for 50 s does not want to wait again unasked.
 */
const conflicts: ReadonlySet<unknown> = new Set([1020, 1213, 3101])

/**
 * The server ends (1053 ER_SERVER_SHUTDOWN, 3032 ER_SERVER_OFFLINE_MODE) or has ended the connection (1927 ER_CONNECTION_KILLED, 3169
 * ER_SESSION_WAS_KILLED, 4031 ER_CLIENT_INTERACTION_TIMEOUT); a proxy has lost its own (2006, 2013).
 */
const endings: ReadonlySet<unknown> = new Set([1053, 1927, 2006, 2013, 3032, 3169, 4031])

/**
 * 1792: where the borrower asked for it himself, to run again is of no use, and of no harm.
 *
 * Not 1317 ER_QUERY_INTERRUPTED: somebody did not want that statement. Not 1040, 1203: they are said to who connects.
 */
const passingNumbers: ReadonlySet<unknown> = new Set([...endings, errors.readOnlyTransaction])

/** Of the socket, once it was connected. Not PROTOCOL_SEQUENCE_TIMEOUT, by which mysql2 gives up a query that was given a `timeout`. */
const passingCodes: ReadonlySet<unknown> = new Set(['PROTOCOL_CONNECTION_LOST', 'ECONNRESET', 'EPIPE', 'ETIMEDOUT', 'EHOSTUNREACH', 'ENETUNREACH'])

function isPassing ({ code, errno, message }: Failure): boolean {
  if (passingNumbers.has(errno) || passingCodes.has(code) || isReadOnly(errno, () => String(message))) return true
  // mysql2's own have no code.
  return code === undefined && typeof message === 'string' && /^Can't (?:add new command when connection is|write) in closed state$/.test(message)
}

// --- mysql2's inside ------------------------------------------------------------------------------------------------------------------

type Listener = (...args: unknown[]) => void
type Emitter = Pick<EventEmitter, 'on' | 'off'>

/** A command of the driver's queue. */
interface Command {
  sql?: string
  /** Of a statement that is prepared. */
  readonly query?: string
  readonly statement?: { readonly query: string }
  readonly parameterCount?: number
  readonly id?: number
}

interface Query extends Command {
  start (packet: undefined, connection: Core): unknown
  doneInsert (header: unknown): unknown
}

type Done<T = void> = (error: Error | null, result?: T) => void

interface Packet { readonly buffer: Buffer, readonly offset: number, readonly end: number }

/** A packet to be sent: its first four bytes are written last. */
interface Outgoing { readonly constructor: new (id: number, buffer: Buffer, start: number, end: number) => Outgoing }

/** What is used of mysql2, be it in its types or not: those differ from version to version. */
interface Core extends EventEmitter {
  readonly constructor: { createQuery (sql: string | object, values: undefined, done: Done<unknown[]>, config: object): Query }
  readonly config: Record<string, unknown> & { readonly clientFlags: number }
  readonly stream: Socket
  /** From 3.16 on. */
  readonly state?: string
  readonly authorized: boolean
  clientEncoding: string
  _closing?: boolean
  readonly _fatalError?: unknown
  readonly _protocolError?: unknown
  readonly _command: Command | null | undefined
  readonly _commands: { readonly length: number }
  readonly _statements: { entries (): Iterable<[string, unknown]>, delete (key: string): void, clear (): void }
  readonly _paused: boolean
  _resetSequenceId (): void
  _notifyError (error: Error): void
  addCommand (command: Command): unknown
  handlePacket (packet?: Packet): void
  writePacket (packet: Outgoing): void
  connect (done: Done): void
  ping (done: Done): void
  /** From 3.22 on. */
  reset? (done: Done): void
  changeUser (options: object, done: Done): void
  end (): void
  promise (): Connection
}

/** It was logged in, and neither side has ended it: as the driver's `state` says, where it has one. */
function isOpen (core: Core): boolean {
  if (core.state !== undefined) return core.state === 'authenticated'
  return core.authorized && !core._closing && !core._fatalError && !core._protocolError && !core.stream.destroyed
}

/** Ends it at once, whatever it is doing. Not the driver's `destroy()`, which only half-closes. */
async function cut (core: Core): Promise<void> {
  const { stream } = core
  if (!stream.closed) {
    await new Promise<void>((resolve) => {
      stream.once('close', () => resolve())
      stream.destroy()
    })
  }
  // Where the borrower had closed it himself, nobody told those that wait for an answer.
  if (core._command || core._commands.length > 0) core._notifyError(new Error('the connection was closed'))
}

/** Cut off when `signal` aborts, so that nothing hangs. */
async function within (core: Core, signal: AbortSignal, work: Promise<void>): Promise<void> {
  const abort = () => core.stream.destroy()
  signal.addEventListener('abort', abort)
  try {
    if (signal.aborted) abort()
    await unlessAborted(work, signal)
  } finally {
    signal.removeEventListener('abort', abort)
  }
}

/** Where the number that is at `at` ends. */
function afterNumber (buffer: Buffer, at: number): number {
  const first = buffer[at]!
  if (first < 0xfb) return at + 1
  return at + (first === 0xfc ? 3 : first === 0xfd ? 4 : 9)
}

function textOrNull (value: unknown): string | null {
  return value === null || value === undefined ? null : String(value)
}

function quote (name: string): string {
  return `\`${name.replaceAll('`', '``')}\``
}
