import type { MongoClientOptions, ReadPreference, ServerDescription, TopologyDescription } from 'mongodb'
import { isDeepStrictEqual } from 'node:util'
import { badOption, PoolError, scrub, secretsOf } from '../pool/errors.js'
import type { Address } from '../pool/options.js'
import { Addresses } from './shared/address.js'
import { loadDriver } from './shared/driver.js'
import { unlessAborted } from './shared/signal.js'
import type { AddressNow } from './shared/address.js'
import type { DriverKind } from './shared/driver.js'
import { checkDriver } from './mongodb-check.js'
import { MongoTransaction, labelsOf, mayRunAgain, topologyOf } from './mongodb-transaction.js'
import type { Connector, DriverEvent, TransactionOptions, Transactions } from '../../types/connector.js'
import type { Db, MongoClient } from '../../types/drivers.js'

export interface MongoOptions {
  /**
   * `mongodb://` or `mongodb+srv://`. Its query may hold any option of the driver's, but for those that `connection` may not have either.
   * A function is asked once by `mongodb()` itself, for the first client, and then at each create.
   */
  url?: Address['url']
  /** Instead of `url`. Default 'localhost'. */
  host?: string
  /** With `host`. Default 27017. */
  port?: number
  /** Default: the one in the URL's path, else the driver's own ('test'). */
  database?: string
  /** Options of the driver's `MongoClient`, untouched: `tls`, `authSource`, `replicaSet`, `readPreference`, ... A function is asked as `url` is. */
  connection?: Address['connection']
  /** The most sockets per server and client; the driver's monitors come on top. Default 10. */
  max?: number
  /** How long an operation waits for a socket, and at most for a server, in ms. Default 5000. */
  acquireTimeout?: number
  /** The module mongodb, `mongoose.mongo` or @fastify/mongodb: for bundles, and copies of one's own. Default: the one that @fastify/mongodb uses. */
  driver?: unknown
  /** How long opening one socket may take, in ms, where neither `url` nor `connection` says `connectTimeoutMS`. Default 3000. */
  connectTimeout?: number
  /** A client that the app made: it is used as it is, never closed, and none of the options above goes with it but for `database`. */
  client?: MongoClient
}

export interface MongoConnector extends Connector<Db> {
  readonly system: 'mongodb'
  /**
   * The client that all connections share; the driver connects it again after a failure. Only where `url` or `connection` is a function there is another
   * one when its answer changes: this is the newest. The one before is closed when the last connection made from it is destroyed, which `pool.evict()`
   * brings about softly; whoever has kept it gets the driver's `MongoNotConnectedError` from then on.
   */
  readonly client: MongoClient
  readonly database: string
  readonly secrets: readonly string[]
  readonly transactions: Transactions<Db>
  isTransient (error: unknown): boolean
}

/**
 * MongoDB. A connection is the right to use one shared `MongoClient`, as a `Db` of its own; the driver keeps the sockets, and finds its way to the primary.
 *
 * A create opens nothing where the client has a server. Where it has none it waits for one, as long as any of the servers answers (an election will end);
 * once the driver has looked at all of them since it began, and none was there, it rejects with the reason.
 *
 * A function for `url` or `connection` should answer the same for as long as that holds: with each other answer there is another client, with sockets and
 * monitors of its own, up to 4; while there are that many, creates use the newest. A client whose login is refused is dead to the driver, and so are its
 * connections: the next create asks again.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`; `FST_POOL_CONNECT_FAILED` where a function fails, or takes longer than `connectTimeout`.
 * Nothing is opened yet.
 */
export async function mongodb (options: MongoOptions): Promise<MongoConnector> {
  const { client, url, host, port, connection = {}, connectTimeout = 3000 } = options
  const addresses = new Addresses(options)
  if (client === undefined) {
    const driver = loadDriver(mongoDriver, options.driver)
    const address = addresses.change ? await firstAddress(addresses, connectTimeout) : addresses.fixed
    return new Mongo(options, addresses, address, (address) => makeClient(driver, options, address))
  }
  for (const [name, given] of Object.entries({ url, host, port })) {
    if (given !== undefined) throw badOption(name, given, `no ${name} next to a client`)
  }
  if (typeof connection === 'function' || Object.keys(connection).length > 0) throw badOption('connection', connection, 'no connection options next to a client')
  return new Mongo(options, addresses, addresses.fixed, () => client)
}

/** What is used of the module mongodb. */
interface Driver {
  readonly MongoClient: new (url: string, options?: object) => MongoClient
  readonly ObjectId?: unknown
}

export const mongoDriver: DriverKind<Driver> = {
  backend: 'mongodb',
  name: 'mongodb',
  via: '@fastify/mongodb',
  expected: 'the module mongodb, mongoose.mongo or @fastify/mongodb',
  read (module) {
    // @fastify/mongodb has its copy there.
    const driver = (module.MongoClient === undefined ? module.mongodb : module) as Partial<Driver> | undefined
    const { prototype } = (driver?.MongoClient ?? {}) as { prototype?: Partial<MongoClient> }
    return typeof prototype?.startSession === 'function' ? driver as Driver : undefined
  },
}

async function firstAddress (addresses: Addresses, timeout: number): Promise<AddressNow> {
  try {
    return await addresses.now(AbortSignal.timeout(timeout))
  } catch (error) {
    if (error instanceof PoolError) throw error
    const cause = scrub(error, addresses.secrets)
    throw new PoolError('FST_POOL_CONNECT_FAILED', `the function for url or connection failed: ${cause.message}`, { cause })
  }
}

/** How many clients there are at most besides the newest, and the one whose place it takes. */
const maxOthers = 3

class Mongo implements MongoConnector {
  readonly system = 'mongodb'
  readonly transactions: Transactions<Db> = {
    isolation: ['snapshot'],
    readOnly: false,
    begin: (db, options, signal) => this.#begin(db, options, signal),
    isTransient: mayRunAgain,
  }

  readonly #owned: boolean
  readonly #secrets: readonly string[] | undefined
  readonly #addresses: Addresses
  readonly #make: (address: AddressNow) => Shared
  /** In the order of their making: the last is the newest. */
  readonly #clients: Shared[] = []
  readonly #from = new WeakMap<Db, Shared>()
  /** The last one of each connection. */
  readonly #transactions = new WeakMap<Db, MongoTransaction>()
  #newest: Shared
  /** What the newest was made from, and which question that was the answer to: one that was asked before it says nothing new. */
  #address: AddressNow
  #answered = 0
  #asked = 0
  #listener: ((event: DriverEvent) => void) | undefined
  #closing: Promise<void> | undefined
  #closeErrors: unknown[] = []

  constructor (options: MongoOptions, addresses: Addresses, address: AddressNow, client: (address: AddressNow) => MongoClient) {
    this.#owned = options.client === undefined
    this.#secrets = options.client && secretsOf({ connection: options.client.options.credentials })
    this.#addresses = addresses
    this.#address = address
    this.#make = (address) => new Shared(client(address), this.#owned, options.database)
    this.#newest = this.#add(address)
  }

  get secrets (): readonly string[] {
    return this.#secrets ?? this.#addresses.secrets
  }

  get client (): MongoClient {
    return this.#newest.client
  }

  get database (): string {
    return this.#newest.database
  }

  async create (signal: AbortSignal): Promise<Db> {
    signal.throwIfAborted()
    this.#mustBeOpen()
    const shared = this.#addresses.change ? await this.#ask(signal) : this.#enter()
    try {
      if (!shared.up) await shared.reach(signal)
      const db = shared.client.db(shared.database)
      if (this.#addresses.change) this.#from.set(db, shared)
      return db
    } catch (error) {
      // Whoever made another one meanwhile left it to us to close this one.
      this.#leave(shared)?.catch((error: unknown) => { this.#closeErrors.push(error) })
      throw error
    }
  }

  /**
   * The sockets are the client's; it is closed with the last connection of an address that has changed. A transaction that is open is undone when the
   * server gets round to it, and nobody waits for it: after `transactionLifetimeLimitSeconds` (60 unless told otherwise) the server ends it by itself.
   */
  destroy (db: Db): Promise<void> | void {
    const transaction = this.#transactions.get(db)
    // The driver tells no error of a rollback, and if it did there would be nobody left to tell.
    if (transaction !== undefined) Promise.allSettled([transaction.rollback()])
    const shared = this.#of(db)
    shared.deaths.delete(db)
    return this.#leave(shared)
  }

  async validate (db: Db, signal: AbortSignal): Promise<boolean> {
    await this.#of(db).ping(db, signal)
    return true
  }

  isBroken (db: Db): boolean {
    return !this.#of(db).up
  }

  /**
   * True for what may go well a moment later on a connection to whichever server is there then: no network, no server, a primary that is one no more, a
   * server that shuts down, and what the driver or the server itself labels as such. False for what would only add to a load (no socket in time, an
   * overloaded server: the driver has tried again by itself), for the caller's own deadlines, and for all that the server means to say.
   */
  isTransient (error: unknown): boolean {
    // Another connection logs in with what the function says by then.
    return isTransient(error) || (this.#addresses.change && isRefusedLogin(error))
  }

  async #begin (db: Db, options: TransactionOptions, signal: AbortSignal): Promise<MongoTransaction> {
    const { client } = this.#of(db)
    signal.throwIfAborted()
    await unlessAborted(checkDriver(client), signal)
    const transaction = new MongoTransaction(client, topologyOf(client), db.databaseName, options)
    this.#transactions.set(db, transaction)
    return transaction
  }

  onDeath (db: Db, listener: (error?: Error) => void): void {
    this.#of(db).deaths.set(db, listener)
  }

  onDriverEvent (listener: (event: DriverEvent) => void): void {
    this.#listener = listener
    for (const shared of this.#clients) shared.tell(listener)
  }

  /** Closes the clients, if we made them. Operations under way on them fail. */
  close (): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close (): Promise<void> {
    const closed = await Promise.allSettled(this.#clients.map((shared) => shared.close()))
    const errors = [...this.#closeErrors, ...closed.flatMap((one) => one.status === 'rejected' ? [one.reason as unknown] : [])]
    if (errors.length > 0) throw errors[0]
  }

  #mustBeOpen (): void {
    if (this.#closing !== undefined) throw new Error('the MongoDB connector is closed')
  }

  /** Whose it is. Asked at every loan and return. */
  #of (db: Db): Shared {
    return this.#addresses.change ? this.#from.get(db)! : this.#newest
  }

  /** One connection more, of the newest client: told at once, so that no other answer closes it meanwhile. */
  #enter (): Shared {
    this.#newest.users++
    return this.#newest
  }

  /** As `#enter`, when the newest client is that of the address as of now. */
  async #ask (signal: AbortSignal): Promise<Shared> {
    const question = ++this.#asked
    const address = await this.#addresses.now(signal)
    this.#mustBeOpen()
    if (question > this.#answered) {
      this.#answered = question
      if (!isDeepStrictEqual(address, this.#address)) this.#change(address)
    }
    return this.#enter()
  }

  /** @throws `FST_POOL_BAD_OPTIONS` */
  #change (address: AddressNow): void {
    const before = this.#newest
    const others = this.#clients.filter((shared) => shared !== before || before.users > 0)
    if (others.length > maxOthers) return
    this.#newest = this.#add(address)
    this.#address = address
    if (before.users === 0) this.#retire(before).catch((error: unknown) => { this.#closeErrors.push(error) })
  }

  /** @throws `FST_POOL_BAD_OPTIONS` */
  #add (address: AddressNow): Shared {
    const shared = this.#make(address)
    if (this.#listener !== undefined) shared.tell(this.#listener)
    this.#clients.push(shared)
    return shared
  }

  /** One connection less. */
  #leave (shared: Shared): Promise<void> | undefined {
    shared.users--
    return shared === this.#newest || shared.users > 0 ? undefined : this.#retire(shared)
  }

  async #retire (shared: Shared): Promise<void> {
    try {
      await shared.close()
    } finally {
      const index = this.#clients.indexOf(shared)
      if (index >= 0) this.#clients.splice(index, 1)
    }
  }
}

/** One client, and what is known of it. */
class Shared {
  readonly client: MongoClient
  readonly database: string
  readonly deaths = new Map<Db, (error?: Error) => void>()
  /** How many connections were made from it, or are being made, and are not destroyed. */
  users = 0
  /** Whether an operation would find a server, worked out when something changes: it is asked at every loan and return. */
  up = false

  readonly #owned: boolean
  readonly #undo: Array<() => void> = []
  /** What the driver last told. A client that was taken over may have told it all before we listened: then none. */
  #topology: TopologyDescription | undefined
  /** The driver's topology is open, and a socket of it worked. A selectable server alone may still refuse the login. */
  #connected = false
  #connecting: Promise<void> | undefined
  #closing: Promise<void> | undefined
  /** Of each server: the driver's last look at it, as counted over all of them, and why it failed, where it has. */
  readonly #looks = new Map<string, { readonly nth: number, error?: Error }>()
  #looked = 0
  /** Those who wait for a server, and see after each failure whether they should. */
  readonly #watchers = new Set<() => void>()

  constructor (client: MongoClient, owned: boolean, database: string | undefined) {
    this.client = client
    this.#owned = owned
    try {
      this.database = client.db(database).databaseName
    } catch {
      // All that `db()` refuses is the name.
      throw badOption('database', database, 'a name that MongoDB allows')
    }
    this.#listen('open', () => { this.#connected = true })
    this.#listen('topologyDescriptionChanged', ({ newDescription }) => { this.#topology = newDescription as TopologyDescription })
    this.#listen('topologyClosed', () => {
      this.#connected = false
      this.#topology = undefined
    })
    this.#listen('serverHeartbeatStarted', ({ connectionId }) => { this.#looks.set(String(connectionId), { nth: ++this.#looked }) })
    this.#listen('serverHeartbeatFailed', ({ connectionId, failure }) => {
      Object.assign(this.#looks.get(String(connectionId)) ?? {}, { error: failure })
      for (const watch of this.#watchers) watch()
    })
  }

  tell (listener: (event: DriverEvent) => void): void {
    for (const name of driverEvents) this.#listen(name, (event) => listener(plain(name, event)))
  }

  /** The driver misses a signal that aborts between two of its steps, and goes on until its own timeout. */
  async ping (db: Db, signal: AbortSignal): Promise<void> {
    await unlessAborted(db.command({ ping: 1 }, { signal, readPreference: this.client.readPreference }), signal)
  }

  close (): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close (): Promise<void> {
    this.deaths.clear()
    this.up = false
    try {
      if (!this.#owned) return
      await this.client.close()
      if (this.#connecting !== undefined) {
        // While it still looked up names or read files there was no topology that `close()` could have closed.
        // Its failure is told to those who wait for it.
        await Promise.allSettled([this.#connecting])
        await this.client.close()
      }
    } finally {
      for (const undo of this.#undo.splice(0)) undo()
    }
  }

  /**
   * Resolves when a server can be had. Rejects when the signal aborts, and as soon as the driver has looked at each server since, and none was there: to wait
   * for one that comes back is the pool's affair, which knows how often to try. What comes after that is nobody's: the next create finds the client
   * connected, or tries again.
   */
  reach (signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const controller = new AbortController()
      const since = this.#looked
      const giveUp = (error: unknown) => {
        this.#watchers.delete(watch)
        signal.removeEventListener('abort', onAbort)
        reject(error)
        // Else it would wait on, and each of those that pile up would open a socket when there is a server.
        controller.abort(error)
      }
      const watch = () => {
        const error = this.#unreachable(since)
        if (error !== undefined) giveUp(error)
      }
      // Why no server can be had says more than that time is up.
      const onAbort = () => giveUp(this.#lastError() ?? signal.reason)
      this.#watchers.add(watch)
      signal.addEventListener('abort', onAbort, { once: true })
      this.#find(controller.signal).then(() => {
        this.#watchers.delete(watch)
        signal.removeEventListener('abort', onAbort)
        resolve()
      }, (error) => giveUp(signal.aborted ? this.#lastError() ?? error : error))
    })
  }

  async #find (signal: AbortSignal): Promise<void> {
    if (this.#owned) await this.#connect()
    // Connected, but no server is known to be there: a ping selects one, and has the driver look at once instead of at the next heartbeat.
    if (!this.up) await this.#select(signal)
    if (this.#owned) return
    // It may have been open before we listened.
    this.#connected = true
    this.#update()
  }

  async #select (signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const db = this.client.db(this.database)
    try {
      await this.ping(db, signal)
    } catch (error) {
      // The app's client failed to connect before: only `connect()` makes it try again.
      // One that the app closed says something else, and stays closed.
      if (this.#owned || (error as Error).name !== 'MongoTopologyClosedError') throw error
      await this.#connect()
      await this.ping(db, signal)
    }
  }

  /**
   * Shared, and not under anybody's signal: the driver's `connect()` can't be aborted. It ends by `serverSelectionTimeoutMS`, and leaves
   * nothing open when it fails.
   */
  #connect (): Promise<void> {
    this.#connecting ??= this.client.connect().then(() => {}).finally(() => { this.#connecting = undefined })
    return this.#connecting
  }

  /** A listener of ours on the client, ahead of `#update`, until `close()`. */
  #listen (name: string, fn: (event: Record<string, unknown>) => void): void {
    // The driver's own type of `on` wants one literal name; each of ours is one of its events.
    const client = this.client as unknown as NodeJS.EventEmitter
    const listener = (event: Record<string, unknown>) => {
      fn(event)
      this.#update()
    }
    client.on(name, listener)
    this.#undo.push(() => client.off(name, listener))
  }

  #update (): void {
    const found = this.#topology === undefined || selectable(this.#topology, this.client.readPreference)
    const up = this.#closing === undefined && this.#connected && found
    if (up === this.up) return
    this.up = up
    if (up) return
    const error = this.#lastError()
    const deaths = [...this.deaths.values()]
    this.deaths.clear()
    for (const death of deaths) death(error)
  }

  /** Why, where the driver's last look at each server that is known came after that one, and failed. */
  #unreachable (since: number): Error | undefined {
    const servers = [...this.#topology?.servers.keys() ?? []]
    const looks = servers.map((address) => this.#looks.get(address))
    return looks.every((look) => look?.error !== undefined && look.nth > since) ? looks[0]?.error : undefined
  }

  #lastError (): Error | undefined {
    for (const { error } of this.#topology?.servers.values() ?? []) if (error) return error
    return undefined
  }
}

/**
 * Whether an operation would find a server now, by the driver's rules for server selection, but for `maxStalenessSeconds` (a secondary that lags
 * is no reason to throw connections away).
 */
function selectable ({ type, servers }: TopologyDescription, { mode, tags }: ReadPreference): boolean {
  const some = (fits: (server: ServerDescription) => boolean) => [...servers.values()].some(fits)
  if (type !== 'ReplicaSetWithPrimary' && type !== 'ReplicaSetNoPrimary') return type !== 'Unknown' && some((server) => server.type !== 'Unknown')
  const tagged = (server: ServerDescription) => !tags?.length ||
    tags.some((set) => Object.entries(set).every(([key, value]) => server.tags[key] === value))
  return some((server) => {
    if (server.type === 'RSPrimary') return mode !== 'secondary' && (mode !== 'nearest' || tagged(server))
    return server.type === 'RSSecondary' && mode !== 'primary' && tagged(server)
  })
}

// --- Errors ---------------------------------------------------------------------------------------------------------------------------

/** By the driver or by the server: what these say may be done again, elsewhere or later. */
const transientLabels: readonly string[] = [
  // Of a write: the network, or a server whose role changes. Also where the driver has tried again already, and failed again.
  'RetryableWriteError',
  // None of the transaction was committed.
  'TransientTransactionError',
  // The driver never sent it: the server's sockets had just been given up.
  'PoolRequestedRetry',
  // A change stream or its cursor went with its server.
  'ResumableChangeStreamError',
]

/** The driver's own, by name: there may be two copies of the driver. */
const transientNames: ReadonlySet<string> = new Set([
  'MongoNetworkError', 'MongoNetworkTimeoutError',
  // Its sockets were given up because the server could not be reached.
  'MongoPoolClearedError', 'PoolClearedOnNetworkError', 'MongoPoolClosedError', 'MongoServerClosedError',
  // No server in time: an election, or all of them are down. The caller's deadline ends that.
  'MongoServerSelectionError',
  // It took a member for the primary that was one no more.
  'MongoStalePrimaryError',
  // The client was closed under the operation: that of an address that has changed. Another connection is of the newest.
  'MongoTopologyClosedError',
])

/** What servers say when they, or those behind them, go away or change their roles. Where nothing was labelled: reads, and commands. */
const transientCodes: ReadonlySet<unknown> = new Set([
  // HostUnreachable, HostNotFound, NetworkTimeout, SocketException: between a mongos or a member, and others.
  6, 7, 89, 9001,
  // ShutdownInProgress, InterruptedAtShutdown.
  91, 11600,
  // PrimarySteppedDown, InterruptedDueToReplStateChange, NotWritablePrimary (and as it was before), NotPrimaryNoSecondaryOk, NotPrimaryOrSecondary.
  189, 11602, 10107, 10058, 13435, 13436,
  // FailedToSatisfyReadPreference: a mongos finds no member. ReadConcernMajorityNotAvailableYet: just started.
  133, 134,
  // ExceededTimeLimit: of a server among servers. The caller's own limit is MaxTimeMSExpired (50), and no reason to try again.
  262,
])

function isTransient (error: unknown): boolean {
  if (!(error instanceof Error)) return false
  if (transientNames.has(error.name)) return true
  const labels = labelsOf(error)
  // What the server says of itself; the driver has waited, and tried again.
  if (labels.has('SystemOverloadedError')) return false
  return transientLabels.some((label) => labels.has(label)) || transientCodes.has((error as { code?: unknown }).code)
}

/** The server answered a login with an error. */
function isRefusedLogin (error: unknown): boolean {
  return error instanceof Error && error.name === 'MongoServerError' && labelsOf(error).has('HandshakeError')
}

// --- Events ---------------------------------------------------------------------------------------------------------------------------

/** The driver's connection pools and what it knows of the servers. Without commands (they hold data), and without the heartbeats that went well. */
const driverEvents = [
  'connectionPoolCreated', 'connectionPoolReady', 'connectionPoolCleared', 'connectionPoolClosed',
  'connectionCreated', 'connectionReady', 'connectionClosed',
  'connectionCheckOutStarted', 'connectionCheckOutFailed', 'connectionCheckedOut', 'connectionCheckedIn',
  'topologyOpening', 'topologyClosed', 'topologyDescriptionChanged',
  'serverOpening', 'serverClosed', 'serverDescriptionChanged', 'serverHeartbeatFailed',
] as const

/** What may be passed on as it is: names, numbers, texts of the driver's own. */
const plainFields = ['address', 'connectionId', 'reason', 'durationMS', 'duration', 'awaited', 'interruptInUseConnections'] as const

/** Of a server or of the topology. */
interface Description { readonly type: string, readonly error?: Error | null }

function plain (name: string, event: Record<string, unknown>): DriverEvent {
  const copy: Record<string, unknown> = {}
  for (const field of plainFields) {
    const value = event[field]
    if (typeof value === 'string' || typeof value === 'number' || typeof value === 'boolean') copy[field] = value
  }
  // `connectionId` of a server that a heartbeat names is '<monitor>' or host and port.
  const error = event.error ?? event.failure
  if (error instanceof Error) copy.error = identity(error)
  const { previousDescription: before, newDescription: now } = event as { previousDescription?: Description, newDescription?: Description }
  if (before !== undefined && now !== undefined) {
    copy.from = before.type
    copy.to = now.type
    if (now.error) copy.error = identity(now.error)
  }
  return { ...copy, name }
}

/** An error's message may hold anything. */
function identity ({ name, code }: Error & { code?: unknown }): { name: string, code?: string | number } {
  return typeof code === 'string' || typeof code === 'number' ? { name, code } : { name }
}

// --- Options --------------------------------------------------------------------------------------------------------------------------

/** The driver's options that are the pool's to set, in lower case as the driver compares them, and ours instead. */
const reserved: ReadonlyMap<string, string> = new Map([
  ['maxpoolsize', 'max'], ['minpoolsize', 'min'], ['maxconnecting', 'maxConnecting'], ['waitqueuetimeoutms', 'acquireTimeout'],
])

function makeClient ({ MongoClient }: Driver, options: MongoOptions, address: AddressNow): MongoClient {
  const { host, port, max = 10, acquireTimeout = 5000, connectTimeout = 3000 } = options
  const { connection } = address
  const url = urlOf(address.url, host, port)
  const inUrl = [...new URLSearchParams(/\?([^#]*)/.exec(url)?.[1] ?? '')]
  for (const key of Object.keys(connection)) {
    const ours = reserved.get(key.toLowerCase())
    if (ours !== undefined) throw badOption(`connection.${key}`, connection[key], `nothing there: it is set from the pool's option ${ours}`)
  }
  for (const [key] of inUrl) {
    const ours = reserved.get(key.toLowerCase())
    if (ours !== undefined) throw badOption('url', url, `a URL without ${key}: it is set from the pool's option ${ours}`)
  }
  // The driver takes an option's name in any case, and `connection` before the URL.
  const said = (name: string) => [...inUrl, ...Object.entries(connection)].findLast(([key]) => key.toLowerCase() === name.toLowerCase())?.[1]
  const selection = Number(said('serverSelectionTimeoutMS') ?? acquireTimeout)
  try {
    return new MongoClient(url, {
      ...Object.fromEntries(Object.entries(connection).filter(([key]) => key.toLowerCase() !== 'serverselectiontimeoutms')),
      ...said('connectTimeoutMS') === undefined && { connectTimeoutMS: connectTimeout },
      maxPoolSize: max,
      // The default of 2 would have requests wait for each other's handshakes.
      maxConnecting: max,
      waitQueueTimeoutMS: acquireTimeout,
      // 0 means for ever to the driver.
      serverSelectionTimeoutMS: selection > 0 ? Math.min(selection, acquireTimeout) : acquireTimeout,
    } satisfies MongoClientOptions)
  } catch (error) {
    if (!accepts(() => new MongoClient(url))) {
      // What the driver says of a bad URL may show parts of it.
      throw badOption('url', url, 'a MongoDB URL (mongodb:// or mongodb+srv://, user and password percent-encoded, options known to the driver)')
    }
    const cause = scrub(error, secretsOf(address))
    throw new PoolError('FST_POOL_BAD_OPTIONS', `option connection is not what the MongoDB driver takes: ${cause.message}`, { cause })
  }
}

function accepts (make: () => unknown): boolean {
  try {
    make()
    return true
  } catch {
    // The question was whether it throws.
    return false
  }
}

/** Whether there is an `@` that is neither the one before the hosts nor in the value of an option. */
function isMisread (url: string): boolean {
  const [, authority = '', rest = ''] = /^[^/]*\/\/([^/?#]*)(.*)$/s.exec(url) ?? []
  const [before, ...more] = rest.split('@')
  if (authority.split('@').length > 2) return true
  const option = before!.slice(Math.max(before!.indexOf('?'), before!.lastIndexOf('&')) + 1)
  return more.length > 0 && !(before!.includes('?') && option.includes('='))
}

function urlOf (url: string | undefined, host: string | undefined, port: number | undefined): string {
  if (url !== undefined) {
    if (host !== undefined) throw badOption('host', host, 'no host next to a url')
    if (port !== undefined) throw badOption('port', port, 'no port next to a url')
    // The driver would take a part of such a password for a host, look it up, and say its name in errors and events.
    if (isMisread(url)) throw badOption('url', url, 'a MongoDB URL whose user and password are percent-encoded')
    return url
  }
  if (host === undefined && port === undefined) throw badOption('url', undefined, 'a MongoDB URL, or host and port')
  const name = host ?? 'localhost'
  return `mongodb://${name.includes(':') && !name.startsWith('[') ? `[${name}]` : name}:${port ?? 27017}/`
}
