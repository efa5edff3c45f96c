import { AsyncResource } from 'node:async_hooks'
import { randomBytes } from 'node:crypto'
import type { EventEmitter } from 'node:events'
import type { Socket } from 'node:net'
import type { ClientConfig, Submittable } from 'pg'
import { badOption, PoolError, scrub, secretsOf } from '../pool/errors.js'
import { Addresses } from './shared/address.js'
import { facesOf, loadDriver, requirePackage } from './shared/driver.js'
import { somewhere } from './shared/failures.js'
import { unlessAborted } from './shared/signal.js'
import type { AddressNow } from './shared/address.js'
import type { DriverKind } from './shared/driver.js'
import type { Address } from '../pool/options.js'
import type { Connector, DriverEvent, Isolation, ServerState, Transaction, TransactionOptions, Transactions } from '../../types/connector.js'
import type { Client, Notification } from '../../types/drivers.js'
import type { Role } from '../../types/pool.js'

export interface PostgresOptions {
  /**
   * `postgresql://user:password@host:port/database?sslmode=...` as pg understands it, `postgres://`, `socket://`, or the folder of a Unix socket.
   * What the other options say wins over it. A function is asked at each create, that of `listen` too. Default: what pg takes from the environment
   * (`PGHOST`, ...), else localhost.
   */
  url?: Address['url']
  /** Instead of `url`. Default: `PGHOST`, else 'localhost'. */
  host?: string
  /** Instead of `url`. Default: `PGPORT`, else 5432. */
  port?: number
  /** Default: the URL's, else `PGDATABASE`, else the user's name. */
  database?: string
  /**
   * pg's own options, untouched: `user`, `password` (a function too), `ssl`, `application_name`, `options`, ... Those that would do the pool's work are
   * refused. A function is asked at each create; what is wrong with its answer is that create's `FST_POOL_BAD_OPTIONS`.
   */
  connection?: Address['connection']
  /**
   * What is undone at return. Default 'session'.
   * - 'session': the open transaction, settings, roles, temp tables, locks, LISTEN, cursors, what SQL PREPARE made, listeners and type parsers of the object.
   *   Statements that the driver named stay prepared. What `LOAD` loaded stays, and a PREPARE within a function where the driver holds named statements.
   * - 'transaction': an open transaction, nothing else. No round trip where none is open.
   * - 'none': nothing.
   */
  reset?: 'session' | 'transaction' | 'none'
  /** How long the connection for `listen` may take, in ms. The pool's connections obey their signal. Default 3000. */
  connectTimeout?: number
  /** The module pg, or an object with its `Client`: for bundles, and copies of one's own. Default: the installed one. */
  driver?: unknown
}

export interface ListenOptions {
  /** Called when the channel is listened to again after an outage: what was notified meanwhile is lost. */
  onReconnect?: () => unknown
}

/** Gets the payload, '' where there is none. What it throws, or rejects with, is told as the driver event `listener-error`. */
export type NotificationListener = (payload: string, notification: Notification) => unknown

export interface PostgresConnector extends Connector<Client> {
  readonly system: 'postgresql'
  /**
   * Calls `fn` for each notification on a channel, over one connection outside of the pool that all channels share: made with the first `listen`, made
   * again after an outage, closed when nobody listens any more.
   *
   * @param channel the exact name, as in `LISTEN "Name"`: `NOTIFY Name` without quotes notifies 'name'
   * @returns when the server listens: a function that ends it, and resolves when the server knows. It never rejects.
   * @throws `FST_POOL_CONNECT_FAILED`, `FST_POOL_CLOSED`, `FST_POOL_BAD_OPTIONS`; the server's own error where it refuses
   */
  listen (channel: string, fn: NotificationListener, options?: ListenOptions): Promise<() => Promise<void>>
}

/**
 * PostgreSQL (10 and later). A connection is one `pg.Client`.
 *
 * A connection that is destroyed while a statement runs asks the server to cancel it (over a second, short connection), so that its slot there is free
 * when it counts as closed here. What the server does not end within 500 ms is cut off.
 *
 * A connection on which the server refused a write (25006) is broken: another one may reach a server that takes it. Not so where the server itself takes
 * writes, and a transaction that was begun read only does not (PostgreSQL 14 and later tell the difference), nor where `inspect` has found a replica.
 *
 * Settings that every borrower should have belong into `connection` (`options: '-c search_path=app'`, `statement_timeout`, ...): a reset goes back to them.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`. Nothing is opened yet.
 */
export async function postgresql (options: PostgresOptions): Promise<PostgresConnector> {
  const addresses = new Addresses(options)
  const config = configsOf(options, addresses)
  return new PostgresBackend(loadDriver(postgresDriver, options.driver), config, addresses, options)
}

/** What is used of the module pg. */
interface Driver { readonly Client: new (config: object) => Client, readonly Query: unknown }

const postgresDriver: DriverKind<Driver> = {
  backend: 'postgresql',
  name: 'pg',
  expected: 'the module pg, or an object with its Client (not pg.native)',
  read ({ Client }) {
    const { prototype, Query } = (Client ?? {}) as { prototype?: Partial<Client>, Query?: unknown }
    // The native client has no `escapeLiteral`, and no connection that could be cut.
    return typeof prototype?.escapeLiteral === 'function' && typeof Query === 'function' ? { Client: Client as Driver['Client'], Query } : undefined
  },
}
type Mode = 'session' | 'transaction' | 'none'

class PostgresBackend implements PostgresConnector {
  readonly system = 'postgresql'
  readonly transactions: Transactions<Client>
  readonly #driver: Driver
  readonly #config: Config
  readonly #addresses: Addresses
  readonly #ownSecrets = secretsOf({ connection: { password: process.env.PGPASSWORD } })
  #secrets: { of: readonly string[], all: readonly string[] } | undefined
  readonly #mode: Mode
  readonly #own: OwnQueries
  readonly #listening: Listening
  #listener: ((event: DriverEvent) => void) | undefined
  /** As `inspect` has found it last. */
  #role: Role | undefined
  /** The server does not tell of its replication. */
  #reticent = false

  constructor (driver: Driver, config: Config, addresses: Addresses, { reset = 'session', connectTimeout = 3000 }: PostgresOptions) {
    this.#driver = driver
    this.#config = config
    this.#addresses = addresses
    this.#mode = reset
    this.#own = ownQueries(driver)
    this.transactions = {
      isolation: [...levels.keys()],
      readOnly: true,
      begin: (connection, options, signal) => unlessAborted(begin(guardOf(connection), options), signal),
      isTransient: isConflict,
    }
    this.#listening = new Listening({
      open: (signal) => this.#open(signal),
      connectTimeout,
      scrub: (error) => scrub(error, this.secrets),
      tell: (event) => this.#tell(event),
    })
  }

  /** A pool that was not given the url and the connection itself does not know what is secret in them. */
  get secrets (): readonly string[] {
    const { secrets: of } = this.#addresses
    if (this.#secrets?.of !== of) this.#secrets = { of, all: [...of, ...this.#ownSecrets].sort((a, b) => b.length - a.length) }
    return this.#secrets.all
  }

  async create (signal: AbortSignal): Promise<Client> {
    return (await this.#open(signal)).client
  }

  async #open (signal: AbortSignal): Promise<Guard> {
    signal.throwIfAborted()
    const config = await this.#config(signal)
    signal.throwIfAborted()
    const { ssl } = config
    // pg changes the object that it is given.
    const client = new this.#driver.Client({ ...config, ...(typeof ssl === 'object' && { ssl: { ...ssl } }) })
    const guard = new Guard(client, this.#own, config)
    const abort = () => guard.cut()
    signal.addEventListener('abort', abort, { once: true })
    try {
      await client.connect()
      signal.throwIfAborted()
      guard.open(this.#mode)
      return guard
    } catch (error) {
      await guard.close()
      throw signal.aborted ? signal.reason : error
    } finally {
      signal.removeEventListener('abort', abort)
    }
  }

  /** In good order where it is idle. What still runs is cancelled. */
  async destroy (connection: Client): Promise<void> {
    await guardOf(connection).close()
  }

  async validate (connection: Client, signal: AbortSignal): Promise<boolean> {
    const guard = guardOf(connection)
    if (guard.broken) return false
    // The empty statement: it is answered within a failed transaction too.
    await unlessAborted(connection.query(''), signal)
    guard.mark()
    return true
  }

  /**
   * 'replica': it recovers, or its transactions are read only unless they say otherwise, and not by a borrower's doing. The lag is 0 where all is replayed
   * that is known to exist, else the age of the last commit that is replayed. It is Infinity where nothing is received: its primary is gone or out of reach,
   * or has refused it; a replica by log shipping alone receives nothing either.
   *
   * Whoever has the role `pg_read_all_stats` (of `pg_monitor`) also sees what is still on its way from the primary; others see but what has arrived, and a
   * replica that catches up may seem to have done so. Of a replica of a replica it is the lag behind that one. Rejects within a failed transaction.
   */
  async inspect (connection: Client, signal: AbortSignal): Promise<ServerState> {
    const guard = guardOf(connection)
    const state = await unlessAborted(this.#inspect(connection), signal)
    guard.mark()
    this.#role = state.role
    return state
  }

  async #inspect (connection: Client): Promise<ServerState> {
    try {
      const { rows: [row] } = await connection.query<string[]>({ text: this.#reticent ? `SELECT ${readsOnly}` : `SELECT ${readsOnly}, ${lag}`, rowMode: 'array', types: asText })
      if (row![0] !== 'true') return { role: 'primary' }
      return row!.length < 2 ? { role: 'replica' } : { role: 'replica', lag: Number(row![1]) }
    } catch (error) {
      if (this.#reticent || !untold.has((error as { code?: unknown }).code)) throw error
      this.#reticent = true
      return await this.#inspect(connection)
    }
  }

  isBroken (connection: Client): boolean {
    const guard = guardOf(connection)
    return guard.broken || guard.spoilt || (guard.misplaced && this.#role !== 'replica')
  }

  /**
   * That the connection died, or its server ends or is not up yet; that it takes no writes (25006). Not that the server has too many connections (53300):
   * that is said to who connects, and connects are the pool's to try again, in its own time.
   */
  isTransient (error: unknown): boolean {
    return isPassing(error)
  }

  /**
   * Goes behind what is still queued or running. Does not listen to the signal: past it, the pool destroys the connection, and then the server is asked
   * to cancel what runs.
   */
  reset (connection: Client): Promise<void> | undefined {
    return guardOf(connection).reset()
  }

  onDeath (connection: Client, listener: (error?: Error) => void): void {
    guardOf(connection).onDeath(listener)
  }

  /** Of `listen`: `listen-lost` {code}, `listen-failed` {code}, `listen-restored` {channels}, `listener-error` {channel, message}. */
  onDriverEvent (listener: (event: DriverEvent) => void): void {
    this.#listener = listener
  }

  listen (channel: string, fn: NotificationListener, { onReconnect }: ListenOptions = {}): Promise<() => Promise<void>> {
    return this.#listening.listen(channel, fn, onReconnect)
  }

  close (): Promise<void> {
    return this.#listening.close()
  }

  #tell (event: DriverEvent): void {
    if (this.#listener !== undefined) this.#listener(event)
    else if (event.name === 'listener-error') process.emitWarning(`a listener of channel ${String(event.channel)} failed: ${String(event.message)}`, 'PoolWarning')
  }
}

// --- Options --------------------------------------------------------------------------------------------------------------------------

/** The driver's keys that would do the pool's work, or would not do what their name says, and what to use instead. */
const refused = new Map(Object.entries({
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
  allowExitOnIdle: 'close the pool when the app ends',
  onConnect: 'use the option onConnect',
  verify: 'use the option onConnect',
  log: 'use the pool\'s events',
  Client: 'a connection is a pg.Client',
  Promise: 'a connection is a pg.Client that returns promises',
  connection: 'each client has its own',
  tls: 'pg calls it ssl',
  username: 'pg calls it user',
}))

/** pg's own that people may well put beside `url`. */
const belongInside = [
  'user', 'username', 'password', 'ssl', 'tls', 'sslnegotiation', 'application_name', 'fallback_application_name', 'client_encoding', 'options', 'types',
  'statement_timeout', 'query_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'keepAlive', 'keepAliveInitialDelayMillis', 'binary',
  'enableChannelBinding', 'replication', 'stream', 'pipeline', 'connectionString', 'connectionTimeoutMillis', 'idleTimeoutMillis', 'allowExitOnIdle',
]

/** What the next connection is made from. */
type Config = (signal: AbortSignal) => ClientConfig | Promise<ClientConfig>

/** Made once, or anew at each create where a function is to be asked: what is known without it is checked now all the same. */
function configsOf (options: PostgresOptions, addresses: Addresses): Config {
  const { url, driver } = options
  checkNames(options)
  if (typeof url !== 'function') checkUrl(url)
  const parse = url === undefined ? undefined : parserOf(driver)
  const make = (address: AddressNow) => driverOptions(address, options, parse)
  const config = make(addresses.fixed)
  return addresses.change ? async (signal) => make(await addresses.now(signal)) : () => config
}

/** @throws `FST_POOL_BAD_OPTIONS`, for what is wrong whatever a function answers */
function checkNames (options: PostgresOptions): void {
  const { url, host, port } = options
  const given = new Map<string, unknown>(Object.entries(options))
  for (const name of belongInside) {
    if (given.get(name) === undefined) continue
    const instead = refused.get(name)
    throw badOption(name, given.get(name), instead === undefined ? `it inside of connection: { ${name} }` : `nothing here: ${instead}`)
  }
  for (const [name, value] of Object.entries({ host, port })) {
    if (url !== undefined && value !== undefined) throw badOption(name, value, `no ${name} next to a url`)
  }
}

/** `url` is the base, the other options win over it, the driver's come as they are. */
function driverOptions ({ url, connection }: AddressNow, { host, port, database }: PostgresOptions, parse: Parser | undefined): ClientConfig {
  for (const [name, instead] of refused) {
    if (connection[name] !== undefined) throw badOption(`connection.${name}`, connection[name], `nothing here: ${instead}`)
  }
  if (connection.stream !== undefined && typeof connection.stream !== 'function') {
    throw badOption('connection.stream', connection.stream, 'a function that makes a stream for each connection')
  }
  if (database !== undefined && connection.database !== undefined) {
    throw badOption('connection.database', connection.database, 'nothing here next to the option database')
  }
  const base = url === undefined ? {} : parseUrl(url, parse!)
  for (const [name, value] of Object.entries({ host, port, database, ...connection })) if (value !== undefined) Object.assign(base, { [name]: value })
  const { ssl } = base
  // A pg that was given the same object before has made its key invisible to a copy.
  if (typeof ssl === 'object' && ssl !== null && ssl.key !== undefined) base.ssl = { ...ssl, key: ssl.key }
  return base
}

type Parser = (url: string) => Record<string, unknown>

/** pg's own. Beside a driver that the app has bundled its package may be absent: there it is what a client makes of the url. */
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

/** By pg's own parser, so that each parameter means what it means to pg. No error of ours has the text. */
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
    if (name !== 'host' && name !== 'port' && refused.has(name)) throw wrong(`a url without ${name}: ${refused.get(name)!}`)
    Object.assign(options, { [name]: value })
  }
  return options
}

// --- One connection -------------------------------------------------------------------------------------------------------------------

/** How long the server may take to let go of a connection, until it is cut off, in ms. */
const grace = 500
const terminate = Buffer.from([0x58, 0, 0, 0, 4])

/** What the server has when a session begins, and `DISCARD ALL` but for what the driver prepared. */
const fresh = 'CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *; SELECT pg_advisory_unlock_all(); DISCARD SEQUENCES; DISCARD TEMP'

/** Ready to be sent: it saves what is done anew at each return. */
const messages = {
  rollback: message('ROLLBACK'),
  discard: message('DISCARD ALL'),
  fresh: message(fresh),
  rollbackDiscard: message(`ROLLBACK; ${fresh}; DEALLOCATE ALL`),
  rollbackFresh: message(`ROLLBACK; ${fresh}`),
}

/** As the protocol has a simple query: 'Q', the length of the rest, the text, 0. */
function message (text: string): Buffer {
  const buffer = Buffer.alloc(text.length + 6)
  buffer.write('Q')
  buffer.writeInt32BE(text.length + 5, 1)
  buffer.write(text, 5)
  return buffer
}

const guardKey: unique symbol = Symbol('fastify-pool guard')

function guardOf (connection: Client): Guard {
  return (connection as Client & { [guardKey]: Guard })[guardKey]
}

/** Follows what goes through one connection, and knows how to undo it. */
class Guard {
  readonly client: Client
  /** 'I': no transaction. 'T': in one. 'E': in one that has failed. Of the last ReadyForQuery. */
  status = 'I'
  /** How often it was seen outside of a transaction: while one is open, this stays. */
  turn = 0
  /** Since the last BEGIN of ours a command has completed that may have ended its transaction. */
  doubtful = false
  /** What the server complained of last. */
  failure: Error | undefined
  /** What the connection died of. */
  error: Error | undefined
  /** The server refused a write, and not because of the borrower's own transaction. */
  misplaced = false
  /** A statement by SQL PREPARE is of no use any more, and no reset will undo it. */
  spoilt = false
  readonly #inside: Inside
  readonly #own: OwnQueries
  readonly #base: ClientConfig
  /** The socket; with TLS that below it. */
  readonly #raw: Socket
  readonly #undo: Undo
  #stream: Socket
  #mode: Mode = 'none'
  /** The stream's `bytesWritten` when it was clean last. */
  #mark = 0
  /** What the driver believes to be prepared may not be what is. */
  #prepared = false
  /** Names that the driver has forgotten and the server may still have: closed there before they are prepared anew. */
  readonly #stale = new Set<string>()
  #added: Array<readonly [event: string | symbol, listener: Listener]> = []
  #typed = false
  /** We ourselves add a listener. */
  #adding = false
  /** A write was refused since the last ReadyForQuery. */
  #refused = false
  /** Of the server's reports, from PostgreSQL 14 on. */
  readonly #reports = { in_hot_standby: '', default_transaction_read_only: '' }
  /** An error came, and no ReadyForQuery since. */
  #failing = false
  /** Waits for which of the two it is. */
  #settled: ((goesOn: boolean) => void) | undefined
  #dead = false
  #ended = false
  #closing: Promise<void> | undefined
  #closed: (() => void) | undefined
  #cancelling: Wire | undefined
  #died: ((error: Error) => void) | undefined

  constructor (client: Client, own: OwnQueries, base: ClientConfig) {
    this.client = client
    this.#inside = client as unknown as Inside
    this.#own = own
    this.#base = base
    const { connection: wire } = this.#inside
    this.#stream = this.#raw = wire.stream
    this.#undo = new own.Undo(this)
    Object.defineProperty(client, guardKey, { value: this })
    client.on('error', this.#onError)
    client.on('end', this.#onEnd)
    client.on('removeListener' as 'end', this.#onRemove as () => void)
    // Before pg's own listeners, which go on with the next query from there.
    wire.on('readyForQuery', ({ status }: { status: string }) => {
      this.status = status
      if (status === 'I') this.turn++
      this.#failing = false
      this.#settled?.(true)
      if (this.#refused) this.#place()
    })
    wire.on('commandComplete', ({ text }: { text: string }) => this.#completed(text))
    wire.on('errorMessage', (error: Error & { code?: string }) => {
      this.failure = error
      this.#failing = true
      if (error.code === readOnly) this.#refused = true
      else if (outdated.has(error.code)) this.#forget(error)
    })
    wire.on('parameterStatus', ({ parameterName: name, parameterValue }: { parameterName: string, parameterValue: string }) => {
      if (name === 'in_hot_standby' || name === 'default_transaction_read_only') this.#reports[name] = parameterValue
    })
    wire.on('end', () => {
      this.#ended = true
      this.#settled?.(false)
      this.#closed?.()
    })
  }

  /** From here on the connection may be lent. */
  open (mode: Mode): void {
    this.#mode = mode
    this.#stream = this.#inside.connection.stream
    this.mark()
    if (mode !== 'session') return
    this.client.on('newListener' as 'end', this.#onNew as () => void)
    const set = this.client.setTypeParser
    const seam = (...args: unknown[]) => {
      this.#typed = true
      return (set as Listener).apply(this.client, args)
    }
    Object.defineProperty(this.client, 'setTypeParser', { value: seam, writable: true, configurable: true })
  }

  /** No I/O. Dead for good, or about to be. */
  get broken (): boolean {
    return this.#dead || this.#inside._ending || !this.#stream.writable
  }

  get idle (): boolean {
    return this.#inside.readyForQuery === true
  }

  /** It is clean now. */
  mark (): void {
    this.#mark = this.#stream.bytesWritten
  }

  onDeath (listener: (error: Error) => void): void {
    const { error } = this
    if (error !== undefined) queueMicrotask(() => listener(error))
    else this.#died = listener
  }

  /** Once the server has reported what changed meanwhile, which it does between an error and ReadyForQuery. */
  #place (): void {
    this.#refused = false
    const { in_hot_standby: standby, default_transaction_read_only: readsOnly } = this.#reports
    this.misplaced ||= standby !== 'off' || readsOnly !== 'off'
  }

  // --- Reset ----------------------------------------------------------------------------------------------------------------------------

  reset (): Promise<void> | undefined {
    if (this.#mode === 'session') {
      const restored = this.#added.length > 0 || this.#typed
      if (restored) this.#restoreObject()
      // A promise: then `onConnect` runs again, and may have been who changed the object.
      if (this.idle && this.#stream.bytesWritten === this.#mark) return restored ? Promise.resolve() : undefined
    } else if (this.#mode === 'none' || (this.idle && this.status === 'I')) {
      return undefined
    }
    const done = this.#undo.begin()
    this.#undoWhenIdle()
    return done
  }

  /** Not by the driver's queue, which warns of those who use it. */
  readonly #undoWhenIdle = (): void => {
    if (this.broken) return this.#undo.handleError(this.error ?? new Error('the connection ended while it was reset'))
    if (this.idle) return this.#undo.send()
    this.#adding = true
    this.client.once('drain', this.#undoWhenIdle)
    this.#adding = false
  }

  /** What is to be sent now, when all that came before has been answered. undefined: nothing. */
  undoing (): Buffer | undefined {
    if (this.#mode === 'transaction') return this.status === 'I' ? undefined : messages.rollback
    const { connection: wire } = this.#inside
    const discard = this.#prepared || isEmpty(wire.parsedStatements)
    if (discard) {
      // They go with these bytes: a name that the driver takes for prepared would fail from now on.
      this.#forgetNames()
      this.#stale.clear()
    }
    if (this.status === 'I') return discard ? messages.discard : messages.fresh
    // In one message, where DISCARD ALL refuses to be.
    return discard ? messages.rollbackDiscard : messages.rollbackFresh
  }

  undone (): void {
    this.#prepared = false
    this.failure = undefined
    this.mark()
  }

  #restoreObject (): void {
    for (const [event, listener] of this.#added) this.client.off(event, listener)
    this.#added = []
    if (this.#typed) {
      const { _types: types } = this.#inside
      types.text = {}
      types.binary = {}
      this.#typed = false
    }
  }

  #completed (tag: string): void {
    switch (tag) {
      // The tag of ROLLBACK TO a savepoint, and of ROLLBACK AND CHAIN, too.
      case 'ROLLBACK':
      case 'COMMIT':
      case 'PREPARE TRANSACTION':
        this.doubtful = true
        break
      case 'PREPARE':
      case 'DEALLOCATE':
      case 'DEALLOCATE ALL':
      case 'DISCARD ALL':
        this.#prepared = true
    }
  }

  // --- Prepared statements ------------------------------------------------------------------------------------------

  /**
   * A prepared statement is not what it was: a migration has changed its tables or types, or it was deallocated where
   * no command tag tells. All that the driver has prepared is prepared anew when it is used next, so that this is met
   * once on a connection, and not once for each name.
   */
  #forget ({ code, routine }: Failed): void {
    const { _activeQuery: active = this.#inside.activeQuery } = this.#inside
    const named = typeof active?.name === 'string' && active.name !== ''
    if (named) {
      this.#closeBeforeParse()
      // 42P05: one that the server has, and the driver does not know of.
      this.#stale.add(active.name!)
      for (const name of Object.keys(this.#inside.connection.parsedStatements)) this.#stale.add(name)
      this.#forgetNames()
    } else if (code === '26000' || routine === 'RevalidateCachedQuery') {
      if (this.#mode === 'session') this.#prepared = true
      else this.spoilt = true
    }
  }

  #forgetNames (): void {
    const { connection: wire } = this.#inside
    wire.parsedStatements = {}
    wire.submittedNamedStatements = {}
  }

  /** The two go out together, also within a failed transaction: DEALLOCATE would be a round trip, and fail there. */
  #closeBeforeParse (): void {
    const { connection: wire } = this.#inside
    if (Object.hasOwn(wire, 'parse')) return
    const { parse } = wire
    wire.parse = (query) => {
      if (this.#stale.delete(query.name!)) wire.close({ type: 'S', name: query.name! })
      parse.call(wire, query)
    }
  }

  // --- Statements of ours ---------------------------------------------------------------------------------------------------------------

  /**
   * Behind all that is queued already.
   *
   * @param decide asked when its turn has come: what is sent, or why nothing is
   * @param failed makes the rejection of what the server says; `first`: no command of the text had completed
   * @returns the tag of its last command
   */
  run (decide: () => string | Error, failed: Failing = (error) => error): Promise<string> {
    return new Promise((resolve, reject) => {
      const step = new this.#own.Step(decide, (error, result) => {
        if (error) return reject(failed(error, step.completed === 0))
        const [last] = [result!].flat().slice(-1)
        resolve(last!.command)
      })
      this.client.query(step)
    })
  }

  /**
   * Whether the server goes on after the error that came last. It says so behind the error, and where it ends the
   * connection it does not. What others have queued meanwhile is not waited for.
   */
  settles (): Promise<boolean> {
    return new Promise((resolve) => {
      if (!this.#failing || this.#ended) resolve(!this.#failing)
      else this.#settled = resolve
    })
  }

  // --- End ------------------------------------------------------------------------------------------------------------------------------

  close (): Promise<void> {
    this.#closing ??= this.#ended ? Promise.resolve() : this.#close()
    return this.#closing
  }

  #close (): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => this.cut(), grace)
      let again: NodeJS.Timeout | undefined
      this.#closed = () => {
        clearTimeout(timer)
        clearTimeout(again)
        this.#cancelling?.stream.destroy()
        resolve()
      }
      const { stream } = this.#inside.connection
      if (stream.destroyed) return
      // A borrower may have paused it, and then its end would never be seen.
      stream.resume()
      if (this.idle && !this.broken) {
        this.client.end(() => {})
        return
      }
      // Not `client.end()`, which cuts: the server would go on with the statement, and not be heard when it lets go.
      const { processID } = this.#inside
      if (this.broken || this.idle || processID === null) {
        stream.end(terminate)
        return
      }
      // What is queued must not go out when the statement has been cancelled.
      stream.write = () => false
      const cancel = () => {
        this.#cancelling = this.#cancel(processID).on('end', () => {
          if (this.#ended) return
          // Not before the server knows: a PgBouncer forgets whom to cancel.
          if (!stream.writableEnded) stream.end(terminate)
          // The server does nothing where the statement reaches it after that.
          again = setTimeout(cancel, grace / 5)
        })
      }
      cancel()
    })
  }

  /** Asks the server, over another connection that it then ends, to end what runs on this one. */
  #cancel (processID: number): Wire {
    const { secretKey, host, port, ssl, sslNegotiation } = this.#inside
    const Connection = this.#inside.connection.constructor as new (config: object) => Wire
    const wire = new Connection({ ssl, sslNegotiation, stream: this.#base.stream })
    const ask = () => wire.cancel(processID, secretKey)
    wire.on('connect', () => {
      if (!ssl) ask()
      else if (sslNegotiation !== 'direct') wire.requestSsl()
    })
    wire.on('sslconnect', ask)
    wire.on('error', () => {
      // The statement goes on then. There is nobody to tell, and its connection is cut at the end of the grace.
      wire.stream.destroy()
    })
    if (host.startsWith('/')) wire.connect(`${host}/.s.PGSQL.${port}`)
    else wire.connect(port, host)
    return wire
  }

  /** At once. Whatever waits for an answer is rejected. */
  cut (): void {
    this.#inside.connection.stream.destroy()
    this.#raw.destroy()
  }

  readonly #onError = (error: Error): void => {
    // With a query under way it was that query which was told the reason.
    const { severity } = (this.failure ?? {}) as { severity?: string }
    this.#die(severity === 'FATAL' ? this.failure! : error)
  }

  readonly #onEnd = (): void => { this.#die(new Error('the connection was closed')) }

  /** A death is told up to three times: `error` with the reason, `error` that it is closed, `end`. */
  #die (error: Error): void {
    if (this.#dead) return
    this.#dead = true
    this.error = error
    this.#undo.handleError(error)
    const died = this.#died
    this.#died = undefined
    if (this.#closing === undefined) died?.(error)
  }

  readonly #onNew = (event: string | symbol, listener: Listener): void => {
    if (!this.#adding) this.#added.push([event, listener])
  }

  /** A borrower's `removeAllListeners()` takes ours away too: then nothing is known any more. */
  readonly #onRemove = (_event: string | symbol, listener: Listener): void => {
    const ours: unknown[] = [this.#onError, this.#onEnd, this.#onNew, this.#onRemove]
    if (!ours.includes(listener)) return
    this.#dead = true
    // Once all are gone. Without a listener an error ends the process.
    process.nextTick(() => {
      if (!this.client.listeners('error').includes(this.#onError)) this.client.on('error', this.#onError)
    })
  }
}

type Listener = (...args: unknown[]) => void
type Failing = (error: Error, first: boolean) => Error

function isEmpty (statements: object): boolean {
  for (const name in statements) if (name in statements) return false
  return true
}

// --- pg's inside ----------------------------------------------------------------------------------------------------------------------

/** What is used of pg and not in its types; all of it is in 8.11 too, but for what may be undefined. */
interface Inside {
  readonly connection: Wire
  readonly host: string
  readonly port: number
  readonly ssl: unknown
  readonly sslNegotiation?: string
  readonly processID: number | null
  readonly secretKey: number
  readonly readyForQuery: boolean | undefined
  readonly _ending: boolean
  /** Its older name would warn where this one is there. */
  readonly _activeQuery?: { readonly name?: string } | null
  readonly activeQuery?: { readonly name?: string } | null
  readonly connectionParameters: Record<string, unknown>
  readonly _types: { text: object, binary: object }
}

interface Wire extends EventEmitter {
  readonly stream: Socket
  parsedStatements: object
  submittedNamedStatements?: object
  parse (query: { readonly name?: string }): void
  close (what: { readonly type: 'S', readonly name: string }): void
  connect (port: number | string, host?: string): void
  requestSsl (): void
  cancel (processID: number, secretKey: number): void
}

type Callback = (error: Error | null | undefined, result?: { command: string } | Array<{ command: string }>) => void

interface Submitted {
  text: string
  callback: Callback | undefined
  submit (wire: Wire): Error | null
  handleRowDescription (): void
  handleDataRow (): void
  handleCommandComplete (message: object, wire: Wire): void
  handleReadyForQuery (): void
  handleError (error: Error): void
}

interface Undo {
  /** Resolves when the server has undone it all. */
  begin (): Promise<void>
  send (): void
  handleError (error: Error): void
}

type Step = new (decide: () => string | Error, callback: Callback) => { readonly completed: number, submit (): void }

interface OwnQueries { readonly Undo: new (guard: Guard) => Undo, readonly Step: Step }

/** Of the driver's own class: in some modes it takes no others. */
function ownQueries (driver: Driver): OwnQueries {
  const Query = driver.Query as unknown as new (text: string, values?: undefined, callback?: Callback) => Submitted

  /** The reset, used again and again, and without what makes a query dear. */
  class UndoQuery extends Query implements Undo {
    readonly #guard: Guard
    #resolve: (() => void) | undefined
    #reject: ((error: Error) => void) | undefined

    constructor (guard: Guard) {
      super('')
      this.#guard = guard
    }

    begin (): Promise<void> {
      return new Promise((resolve, reject) => {
        this.#resolve = resolve
        this.#reject = reject
      })
    }

    send (): void {
      // pg before 8.19 calls it, with `query_timeout`, whether there is one or not.
      this.callback = unheard
      this.#guard.client.query(this as unknown as Submittable)
    }

    override submit (wire: Wire): Error | null {
      const message = this.#guard.undoing()
      if (message === undefined) return nothingToDo
      wire.stream.write(message)
      return null
    }

    override handleRowDescription (): void {}
    override handleDataRow (): void {}
    override handleCommandComplete (): void {}

    override handleReadyForQuery (): void {
      this.#guard.undone()
      this.#settle()?.resolve()
    }

    override handleError (error: Error): void {
      const settle = this.#settle(error)
      if (settle === undefined) return
      if (error === nothingToDo) return settle.resolve()
      // Else what is queued behind it would go out on a connection that is not clean.
      this.#guard.cut()
      settle.reject(error)
    }

    #settle (error?: Error): { resolve: () => void, reject: (error: Error) => void } | undefined {
      // With `query_timeout` it ends a timer.
      this.callback?.(error)
      this.callback = undefined
      if (this.#resolve === undefined || this.#reject === undefined) return undefined
      const settle = { resolve: this.#resolve, reject: this.#reject }
      this.#resolve = this.#reject = undefined
      return settle
    }
  }

  /** A text that is decided when its turn comes. */
  class StepQuery extends Query {
    /** How many of its commands have. */
    completed = 0
    readonly #decide: () => string | Error

    constructor (decide: () => string | Error, callback: Callback) {
      super('', undefined, callback)
      this.#decide = decide
    }

    override submit (wire: Wire): Error | null {
      const decided = this.#decide()
      if (decided instanceof Error) return decided
      this.text = decided
      return super.submit(wire)
    }

    override handleCommandComplete (message: object, wire: Wire): void {
      this.completed++
      super.handleCommandComplete(message, wire)
    }
  }

  return { Undo: UndoQuery, Step: StepQuery as unknown as Step }
}

function unheard (): void {}

/** What a statement is refused with where that is right. */
const nothingToDo = new Error('nothing to do')

// --- What a server says ---------------------------------------------------------------------------------------------------------------

const asText = { getTypeParser: () => String }

/** SQL. What a borrower set is not meant, where no reset has undone it. */
const readsOnly = `(pg_is_in_recovery() OR current_setting('default_transaction_read_only') = 'on' AND
  (SELECT reset_val FROM pg_settings WHERE name = 'default_transaction_read_only') = 'on')::text`

/**
 * SQL, in ms. Of the receiver's row a user without privileges sees the pid alone, and all others the end of the primary's log too. The positions come first:
 * a server that does not support them (Amazon Aurora) has no receiver either, and must not be taken for one that follows nobody.
 */
const lag = `(SELECT CASE
  WHEN NOT pg_is_in_recovery() THEN 'Infinity'
  WHEN pg_last_wal_replay_lsn() >= greatest(pg_last_wal_receive_lsn(), r.latest_end_lsn) AND follows THEN 0
  WHEN follows THEN greatest(0, coalesce(extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) * 1000, 'Infinity'))
  ELSE 'Infinity'
  END FROM (VALUES (1)) AS always LEFT JOIN pg_stat_wal_receiver r ON true, LATERAL (SELECT r.pid IS NOT NULL AND coalesce(r.status, 'streaming') = 'streaming' AS follows) f)::float8::text`

/** Not supported, not allowed, or not there: what only speaks PostgreSQL's protocol. */
const untold: ReadonlySet<unknown> = new Set(['0A000', '42501', '42883', '42P01', '42703'])

const readOnly = '25006'

/** What the server says of an error, besides. */
type Failed = Error & { readonly code?: string, readonly routine?: string }

/**
 * Of a prepared statement: its result is another one now (0A000), it is not there (26000), it is there already (42P05),
 * a type of it is not there any more (XX000, 42704). Where it is said of something else, a statement of the driver's is
 * prepared once more than it had to be.
 */
const outdated: ReadonlySet<unknown> = new Set(['0A000', '26000', '42P05', 'XX000', '42704'])

/** Of the server: it ends (57P01), a process of it crashed (57P02), it is not up yet (57P03). Of the socket, once it was connected. */
const passing: ReadonlySet<unknown> = new Set([readOnly, '57P01', '57P02', '57P03', 'ECONNRESET', 'EPIPE', 'ETIMEDOUT', 'EHOSTUNREACH', 'ENETUNREACH'])

function isPassing (error: unknown): boolean {
  return somewhere(error, ({ code, severity, message }) => {
    if (passing.has(code)) return true
    // Class 08 is of the connection, but 08P01 is also said of a parameter too many.
    if (typeof code === 'string' && code.length === 5 && code.startsWith('08')) return code !== '08P01' || severity === 'FATAL'
    // pg's own have no code.
    return code === undefined && typeof message === 'string' && /^Connection terminated\b|^Client .+ is not queryable$/.test(message)
  })
}

// --- Transactions ---------------------------------------------------------------------------------------------------------------------

const levels: ReadonlyMap<Isolation, string> = new Map<Isolation, string>([
  ['read uncommitted', ' ISOLATION LEVEL READ UNCOMMITTED'],
  ['read committed', ' ISOLATION LEVEL READ COMMITTED'],
  ['repeatable read', ' ISOLATION LEVEL REPEATABLE READ'],
  ['serializable', ' ISOLATION LEVEL SERIALIZABLE'],
])

/**
 * What a transaction of ours is known by: a setting that ends with its transaction, and that one which somebody else
 * began does not have. Not by SELECT set_config(), which takes the snapshot: then it is too late for SET TRANSACTION.
 * One for all transactions of a process, since the server's statistics (pg_stat_statements) keep each different text.
 */
const mark = randomBytes(12).toString('hex')
const setMark = `SET LOCAL fastify_pool.mark = '${mark}'`

/**
 * Fails (22012, 42704) where the mark is not there: what stands behind it in the same text is not done then, and
 * nothing comes between the two. By the functions' full names: operators are looked up in the borrower's search_path.
 */
const isMarked = `pg_catalog.texteq(pg_catalog.current_setting('fastify_pool.mark'), '${mark}')`
const checkMark = `SELECT pg_catalog.int4div(1, pg_catalog.int4(${isMarked}))`
const noMark: ReadonlySet<unknown> = new Set(['22012', '42704'])

/** There is no such savepoint. */
const noSavepoint = '3B001'

const hadFailed = 'the transaction had failed: nothing of it can be committed'
const begunByHand = 'a transaction was begun on this connection by a statement of its own'

async function begin (guard: Guard, { isolation, readOnly = false }: TransactionOptions): Promise<Transaction<Client>> {
  const level = isolation === undefined ? '' : levels.get(isolation)
  if (level === undefined) throw new PoolError('FST_POOL_NOT_SUPPORTED', `PostgreSQL has no isolation level '${isolation!}'`)
  let began = false
  try {
    await guard.run(() => {
      guard.failure = undefined
      guard.doubtful = false
      // The server would only warn, and a commit would commit what came before it too.
      if (guard.status !== 'I') return new PoolError('FST_POOL_NOT_SUPPORTED', begunByHand)
      began = true
      return `BEGIN${level}${readOnly ? ' READ ONLY' : ''}; ${setMark}`
    })
  } catch (error) {
    if (began && !guard.broken) await guard.run(() => guard.status === 'I' ? nothingToDo : 'ROLLBACK').catch(unlessDone)
    throw error
  }
  return new OpenTransaction(guard)
}

class OpenTransaction implements Transaction<Client> {
  readonly connection: Client
  readonly #guard: Guard
  readonly #turn: number
  /** In quotes. undefined: it is the outermost. */
  readonly #savepoint: string | undefined
  /** COMMIT is on its way, and there is no answer. */
  inDoubt = false
  /** The server has refused its COMMIT, and ended it with that. */
  #refused = false

  constructor (guard: Guard, turn = guard.turn, savepoint?: string) {
    this.connection = guard.client
    this.#guard = guard
    this.#turn = turn
    this.#savepoint = savepoint
  }

  async commit (): Promise<void> {
    const statement = this.#savepoint === undefined ? 'COMMIT' : `RELEASE SAVEPOINT ${this.#savepoint}`
    const tag = await this.#run(statement, () => { this.inDoubt = true }).catch(async (error: unknown) => {
      // What the server said, where something else was made of it.
      const { cause = error } = error as { readonly cause?: unknown }
      const answered = cause === this.#guard.failure && !unresolved.has((cause as Coded).code)
      const told = answered && await this.#guard.settles()
      this.#refused = this.inDoubt && told && this.#guard.status === 'I'
      this.inDoubt &&= !told
      throw error
    })
    this.inDoubt = false
    // Where it says ROLLBACK, it has rolled back.
    if (tag !== 'COMMIT' && tag !== 'RELEASE') throw this.#ended('the transaction was rolled back by its commit')
  }

  async rollback (): Promise<void> {
    // It would wait behind what a borrower has queued meanwhile.
    if (this.#refused) return
    const savepoint = this.#savepoint
    // A savepoint goes with its transaction. Whatever else was begun instead of the outermost is rolled back too.
    const isOver = () => this.#guard.status === 'I' || (savepoint !== undefined && this.#guard.turn !== this.#turn)
    const whole = savepoint === undefined
    const statement = whole ? 'ROLLBACK' : `ROLLBACK TO SAVEPOINT ${savepoint}; RELEASE SAVEPOINT ${savepoint}`
    await this.#guard.run(() => isOver() ? nothingToDo : statement).catch((error: Failed) => {
      // It went with another savepoint, or with its transaction. What is open has failed now, and can't be committed.
      if (whole || error.code !== noSavepoint) unlessDone(error)
    })
  }

  async savepoint (name: string): Promise<Transaction<Client>> {
    // One that no text of a borrower's has.
    const savepoint = quoted(`${name}_${mark}`)
    await this.#run(`SAVEPOINT ${savepoint}`)
    return new OpenTransaction(this.#guard, this.#turn, savepoint)
  }

  /** @param sent called when it goes out */
  async #run (statement: string, sent: () => void = () => {}): Promise<string> {
    const guard = this.#guard
    if (guard.broken) throw this.#ended('the connection of the transaction is gone', guard.error)
    const ended = (cause?: Error) => this.#ended('the transaction was ended by a statement of its own', cause)
    const isInner = this.#savepoint !== undefined
    let checked = false
    return await guard.run(() => {
      if (guard.turn !== this.#turn) return ended()
      if (guard.status === 'E') return this.#ended(hadFailed, guard.failure)
      checked = guard.doubtful
      sent()
      return checked ? `${checkMark}; ${statement}` : statement
    }, (error: Failed, first) => {
      const isGone = checked && first ? noMark.has(error.code) : isInner && error.code === noSavepoint
      return isGone ? ended(error) : error
    })
  }

  #ended (message: string, cause?: Error): PoolError {
    return new PoolError('FST_POOL_TRANSACTION_ENDED', message, { cause })
  }
}

function unlessDone (error: unknown): void {
  if (error !== nothingToDo) throw error
}

interface Coded { readonly code?: unknown }

/**
 * The server does not know either what became of a commit: transaction_resolution_unknown,
 * statement_completion_unknown.
 */
const unresolved: ReadonlySet<unknown> = new Set(['08007', '40003'])

/** A serialization failure or a deadlock. */
function isConflict (error: unknown): boolean {
  return somewhere(error, ({ code }) => code === '40001' || code === '40P01')
}

function quoted (name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}

// --- LISTEN ---------------------------------------------------------------------------------------------------------------------------

interface Subscription {
  readonly channel: string
  readonly notify: (notification: Notification) => void
  readonly onReconnect: (() => void) | undefined
  /** Settles the call of `listen`, until it has. */
  settle: ((error?: unknown) => void) | undefined
  /** It was told of an outage, or will be. */
  since: number
}

interface ListeningOptions {
  open (signal: AbortSignal): Promise<Guard>
  connectTimeout: number
  scrub (error: unknown): Error
  tell (event: DriverEvent): void
}

/**
 * The connection that listens. One loop brings it from what is to what should be: connected while somebody listens, to exactly these channels.
 */
class Listening {
  readonly #options: ListeningOptions
  /** A connection is made for all: none of its callers' async context may show in another's listener. */
  readonly #context = new AsyncResource('fastify-pool listen')
  readonly #subscriptions = new Map<string, Set<Subscription>>()
  /** What the server knows of. */
  readonly #known = new Set<string>()
  readonly #closing = new AbortController()
  #guard: Guard | undefined
  /** How many connections there were. */
  #generation = 0
  /** How many failures there were since it worked. */
  #failures = 0
  #loop: Promise<void> | undefined
  /** Wait for the loop's next turn. */
  readonly #turned: Array<() => void> = []
  /** Ends the pause between two attempts. */
  #hurry: (() => void) | undefined

  constructor (options: ListeningOptions) { this.#options = options }

  async listen (channel: string, fn: NotificationListener, onReconnect: (() => unknown) | undefined): Promise<() => Promise<void>> {
    // The server would cut off the rest, and then notify another channel. NUL ends a text there.
    if (typeof channel !== 'string' || channel === '' || Buffer.byteLength(channel) > 63 || channel.includes('\0')) {
      throw badOption('channel', channel, 'the name of a channel: 1 to 63 bytes')
    }
    if (typeof fn !== 'function') throw badOption('fn', fn, 'a function')
    if (this.#closing.signal.aborted) throw closed()
    const call = AsyncResource.bind((fn: (...args: never[]) => unknown, args: never[]) => this.#call(channel, fn, args))
    const subscription: Subscription = {
      channel,
      notify: (notification) => call(fn, [notification.payload, notification] as never[]),
      onReconnect: onReconnect && (() => call(onReconnect, [])),
      settle: undefined,
      since: 0,
    }
    const subscribed = new Promise<void>((resolve, reject) => {
      subscription.settle = (error) => {
        subscription.settle = undefined
        if (error === undefined) resolve()
        else reject(error)
      }
    })
    const others = this.#subscriptions.get(channel) ?? new Set()
    this.#subscriptions.set(channel, others.add(subscription))
    this.#hurry?.()
    this.#start()
    await subscribed
    return async () => {
      this.#forget(subscription)
      if (this.#closing.signal.aborted) return
      this.#start()
      // In an outage the server knows of no channel, and the loop goes on for the others.
      while (this.#known.has(channel) && !this.#subscriptions.has(channel)) await new Promise<void>((resolve) => { this.#turned.push(resolve) })
      if (this.#subscriptions.size > 0) return
      this.#hurry?.()
      await this.#loop
    }
  }

  async close (): Promise<void> {
    this.#closing.abort(closed())
    this.#hurry?.()
    for (const subscription of this.#all()) {
      this.#forget(subscription)
      subscription.settle?.(closed())
    }
    this.#start()
    // What waits for an answer is rejected.
    await this.#disconnect()
    await this.#loop
  }

  #start (): void {
    if (this.#settled) return
    this.#loop ??= this.#context.runInAsyncScope(() => this.#run())
  }

  async #run (): Promise<void> {
    while (!this.#settled) {
      try {
        await this.#step()
        this.#failures = 0
      } catch (error) {
        await this.#failed(error)
        this.#failures++
      }
      for (const turned of this.#turned.splice(0)) turned()
      if (this.#failures > 0 && this.#subscriptions.size > 0) await this.#pause(Math.min(1000, 25 * 2 ** this.#failures))
    }
    this.#loop = undefined
  }

  get #settled (): boolean {
    if (this.#subscriptions.size === 0) return this.#guard === undefined
    return this.#guard !== undefined && this.#missing.length === 0 && this.#surplus.length === 0 &&
      this.#all().every(({ settle }) => settle === undefined)
  }

  get #missing (): string[] {
    return [...this.#subscriptions.keys()].filter((channel) => !this.#known.has(channel))
  }

  get #surplus (): string[] {
    return [...this.#known].filter((channel) => !this.#subscriptions.has(channel))
  }

  async #step (): Promise<void> {
    if (this.#subscriptions.size === 0) return await this.#disconnect()
    const guard = this.#guard ?? await this.#connect()
    const missing = this.#missing
    const surplus = this.#surplus
    const statements = [...surplus.map((channel) => `UNLISTEN ${quoted(channel)}`), ...missing.map((channel) => `LISTEN ${quoted(channel)}`)]
    if (statements.length > 0) await unlessAborted(guard.client.query(statements.join('; ')), AbortSignal.timeout(this.#options.connectTimeout))
    for (const channel of surplus) this.#known.delete(channel)
    for (const channel of missing) this.#known.add(channel)
    const again = this.#all().filter(({ channel, since }) => this.#known.has(channel) && since !== this.#generation)
    const restored = again.some(({ since }) => since !== 0)
    if (restored) this.#options.tell({ name: 'listen-restored', channels: this.#known.size })
    for (const subscription of again) {
      const isNew = subscription.since === 0
      subscription.since = this.#generation
      if (isNew) subscription.settle?.()
      else subscription.onReconnect?.()
    }
  }

  async #connect (): Promise<Guard> {
    const deadline = new AbortController()
    const { connectTimeout } = this.#options
    const timer = setTimeout(() => deadline.abort(new Error(`no connection within ${connectTimeout} ms (connectTimeout)`)), connectTimeout)
    let guard: Guard
    try {
      guard = await this.#options.open(AbortSignal.any([this.#closing.signal, deadline.signal]))
    } finally {
      clearTimeout(timer)
    }
    this.#guard = guard
    this.#generation++
    guard.client.on('notification', (notification) => {
      for (const { notify } of [...this.#subscriptions.get(notification.channel) ?? []]) notify(notification)
    })
    guard.onDeath((error) => this.#context.runInAsyncScope(() => this.#lost(error)))
    return guard
  }

  async #disconnect (): Promise<void> {
    const guard = this.#guard
    this.#guard = undefined
    this.#known.clear()
    await guard?.close()
  }

  #lost (error: Error): void {
    this.#guard = undefined
    this.#known.clear()
    this.#options.tell({ name: 'listen-lost', code: codeOf(error) })
    this.#start()
  }

  /** Who waits for it is told, and is forgotten. For those who listened already it is tried again. */
  async #failed (cause: unknown): Promise<void> {
    const error = this.#options.scrub(cause)
    const connected = this.#guard !== undefined
    for (const subscription of this.#all()) {
      if (subscription.settle === undefined) continue
      this.#forget(subscription)
      // Refused by a server that serves: its own error says more.
      subscription.settle(connected ? error : new PoolError('FST_POOL_CONNECT_FAILED', `no connection to listen on: ${error.message}`, { cause: error }))
    }
    await this.#disconnect()
    if (this.#subscriptions.size === 0) return
    this.#options.tell({ name: 'listen-failed', code: codeOf(cause) })
  }

  /** With full jitter. */
  async #pause (longest: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, Math.max(1, Math.random() * longest))
      this.#hurry = () => {
        clearTimeout(timer)
        resolve()
      }
    })
    this.#hurry = undefined
  }

  #all (): Subscription[] {
    return [...this.#subscriptions.values()].flatMap((set) => [...set])
  }

  #forget (subscription: Subscription): void {
    const others = this.#subscriptions.get(subscription.channel)
    others?.delete(subscription)
    if (others?.size === 0) this.#subscriptions.delete(subscription.channel)
  }

  #call (channel: string, fn: (...args: never[]) => unknown, args: never[]): void {
    const failed = (error: unknown) => this.#options.tell({ name: 'listener-error', channel, message: this.#options.scrub(error).message })
    try {
      Promise.resolve(fn(...args)).catch(failed)
    } catch (error) {
      failed(error)
    }
  }
}

function closed (): PoolError {
  return new PoolError('FST_POOL_CLOSED', 'the pool of this connection is closed')
}

/** ECONNREFUSED, 57P01, ...: never the text, which may hold anything. */
function codeOf (error: unknown): string {
  const { code, name = 'Error' } = error as { code?: unknown, name?: string }
  return typeof code === 'string' ? code : name
}
