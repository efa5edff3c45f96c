import type {
  ClientSession, ClientSessionOptions, Db, DbOptions, MongoClient, MongoClientOptions, MongoError, ReadPreference, ServerDescription,
  TopologyDescription, WithSessionCallback,
} from 'mongodb'
import { badOption, PoolError, scrub, secretsOf } from '../pool/errors.js'
import { importDriver } from './driver.js'
import type { Connector, DriverEvent, Transaction, TransactionOptions, Transactions } from '../../types/connector.js'

export interface MongoOptions {
  /** `mongodb://` or `mongodb+srv://`. Its query may hold any option of the driver's, but for those that `connection` may not have either. */
  url?: string
  /** Instead of `url`. Default 'localhost'. */
  host?: string
  /** With `host`. Default 27017. */
  port?: number
  /** Default: the one in the URL's path, else the driver's own ('test'). */
  database?: string
  /** Options of the driver's `MongoClient`, untouched: `tls`, `authSource`, `replicaSet`, `readPreference`, ... */
  connection?: Record<string, unknown>
  /** The most sockets per server; the driver's monitors come on top. Default 10. */
  max?: number
  /** How long an operation waits for a socket, and at most for a server, in ms. Default 5000. */
  acquireTimeout?: number
  /** How long opening one socket may take, in ms, where neither `url` nor `connection` says `connectTimeoutMS`. Default 3000. */
  connectTimeout?: number
  /** A client that the app made: it is used as it is, never closed, and none of the options above goes with it but for `database`. */
  client?: MongoClient
}

export interface MongoConnector extends Connector<Db> {
  readonly system: 'mongodb'
  /** The one client that all connections share. It stays the same for good: the driver can connect it again after a failure. */
  readonly client: MongoClient
  readonly database: string
  readonly transactions: Transactions<Db>
}

/**
 * MongoDB. A connection is the right to use one shared `MongoClient`, as a `Db` of its own; the driver keeps the sockets.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`. Nothing is opened yet.
 */
export async function mongodb (options: MongoOptions): Promise<MongoConnector> {
  const { client, url, host, port, connection = {} } = options
  if (client === undefined) return new Mongo(await makeClient(options), options)
  for (const [name, given] of Object.entries({ url, host, port })) {
    if (given !== undefined) throw badOption(name, given, `no ${name} next to a client`)
  }
  if (Object.keys(connection).length > 0) throw badOption('connection', connection, 'no connection options next to a client')
  return new Mongo(client, options)
}

class Mongo implements MongoConnector {
  readonly system = 'mongodb'
  readonly secrets: readonly string[]
  readonly client: MongoClient
  readonly database: string
  readonly transactions: Transactions<Db> = {
    isolation: ['snapshot'],
    readOnly: false,
    begin: (db, options, signal) => this.#begin(db, options, signal),
    isTransient,
  }

  readonly #owned: boolean
  readonly #undo: Array<() => void> = []
  readonly #deaths = new Map<Db, (error?: Error) => void>()
  /** The last one of each connection. */
  readonly #transactions = new WeakMap<Db, MongoTransaction>()
  /** What the driver last told. A client that was taken over may have told it all before we listened: then none. */
  #topology: TopologyDescription | undefined
  /** The driver's topology is open, and a socket of it worked. A selectable server alone may still refuse the login. */
  #connected = false
  /** Both, worked out when something changes: it is asked at every loan and return. */
  #up = false
  #connecting: Promise<void> | undefined
  #closing: Promise<void> | undefined

  constructor (client: MongoClient, options: MongoOptions) {
    this.client = client
    this.#owned = options.client === undefined
    this.secrets = this.#owned ? [] : secretsOf({ connection: client.options.credentials })
    try {
      this.database = client.db(options.database).databaseName
    } catch {
      // All that `db()` refuses is the name.
      throw badOption('database', options.database, 'a name that MongoDB allows')
    }
    this.#listen('open', () => { this.#connected = true })
    this.#listen('topologyDescriptionChanged', ({ newDescription }) => { this.#topology = newDescription as TopologyDescription })
    this.#listen('topologyClosed', () => {
      this.#connected = false
      this.#topology = undefined
    })
  }

  async create (signal: AbortSignal): Promise<Db> {
    signal.throwIfAborted()
    if (this.#closing !== undefined) throw new Error('the MongoDB connector is closed')
    if (!this.#up) await this.#race(this.#reach(signal), signal)
    return this.client.db(this.database)
  }

  /**
   * Nothing to close: the sockets are the client's. A transaction that is open is undone when the server gets round to it, and nobody waits for it:
   * after `transactionLifetimeLimitSeconds` (60 unless told otherwise) the server ends it by itself.
   */
  destroy (db: Db): void {
    this.#deaths.delete(db)
    const transaction = this.#transactions.get(db)
    // The driver tells no error of a rollback, and if it did there would be nobody left to tell.
    if (transaction !== undefined) Promise.allSettled([transaction.rollback()])
  }

  async validate (db: Db, signal: AbortSignal): Promise<boolean> {
    await this.#ping(db, signal)
    return true
  }

  isBroken (): boolean {
    return !this.#up
  }

  async #begin (db: Db, options: TransactionOptions, signal: AbortSignal): Promise<MongoTransaction> {
    const inside = this.client as unknown as Inside
    // The client's own word: one that was taken over may come from another copy of the driver than ours. Others may have put themselves behind it.
    const version = String((await inside.options.metadata)?.driver?.version ?? 'unknown').split('|')[0]!
    if (!tested.some((minor) => version.startsWith(`${minor}.`))) {
      const message = `transactions need a version of the MongoDB driver on which they were tested: ${tested.join(', ')}; this is ${version}`
      throw new PoolError('FST_POOL_NOT_SUPPORTED', message)
    }
    signal.throwIfAborted()
    const { topology } = inside
    if (topology === undefined) throw new Error('the MongoDB client is closed')
    if (!hasTransactions(topology.description)) throw noTransactions()
    if (this.client.writeConcern?.w === 0) {
      throw new PoolError('FST_POOL_NOT_SUPPORTED', 'a transaction can not be committed with write concern 0: nobody would know whether it was')
    }
    const transaction = new MongoTransaction(this.client, topology, db.databaseName, options)
    this.#transactions.set(db, transaction)
    return transaction
  }

  onDeath (db: Db, listener: (error?: Error) => void): void {
    this.#deaths.set(db, listener)
  }

  onDriverEvent (listener: (event: DriverEvent) => void): void {
    for (const name of driverEvents) this.#listen(name, (event) => listener(plain(name, event)))
  }

  /** Closes the client, if we made it. Operations under way on it fail. */
  close (): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close (): Promise<void> {
    this.#deaths.clear()
    this.#up = false
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

  /** Makes sure that a server can be had, or rejects. */
  async #reach (signal: AbortSignal): Promise<void> {
    if (this.#owned) await this.#connect()
    // Connected, but no server is known to be there: a ping selects one, and has the driver look at once instead of at the next heartbeat.
    if (!this.#up) await this.#select(signal)
    if (this.#owned) return
    // It may have been open before we listened.
    this.#connected = true
    this.#update()
  }

  async #select (signal: AbortSignal): Promise<void> {
    const db = this.client.db(this.database)
    try {
      await this.#ping(db, signal)
    } catch (error) {
      // The app's client failed to connect before: only `connect()` makes it try again.
      // One that the app closed says something else, and stays closed.
      if (this.#owned || (error as Error).name !== 'MongoTopologyClosedError') throw error
      await this.#connect()
      await this.#ping(db, signal)
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

  async #ping (db: Db, signal: AbortSignal): Promise<void> {
    await db.command({ ping: 1 }, { signal, readPreference: this.client.readPreference })
  }

  /** What comes after the signal is nobody's: there is nothing to destroy, and the next create finds the client connected or tries again. */
  #race (work: Promise<void>, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      // Why no server can be had says more than that time is up.
      const onAbort = () => reject(this.#lastError() ?? signal.reason)
      signal.addEventListener('abort', onAbort, { once: true })
      work.then(resolve, (error) => reject(signal.aborted ? this.#lastError() ?? error : error))
        .finally(() => signal.removeEventListener('abort', onAbort))
    })
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
    if (up === this.#up) return
    this.#up = up
    if (up) return
    const error = this.#lastError()
    const deaths = [...this.#deaths.values()]
    this.#deaths.clear()
    for (const death of deaths) death(error)
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

// --- Transactions ---------------------------------------------------------------------------------------------------------------------

/** The minors of the driver on which the tests of what is below ran: it is the driver's inside, which may change with any of them. */
const tested: readonly string[] = ['7.8']

/** What is used of the driver's inside. */
interface Inside { readonly topology?: Topology, readonly options: { readonly metadata?: Promise<{ driver?: { version?: unknown } }> } }
interface Topology {
  readonly description: TopologyDescription
  selectServer (selector: unknown, options: { session?: ClientSession }): Promise<Server>
}
interface Server { command (operation: Operation, ...more: unknown[]): Promise<unknown> }
interface Operation { readonly command?: object }
/** `explicit` is false where the driver itself asks for a session, for an operation that was given none. */
interface SessionOptions extends ClientSessionOptions { readonly explicit?: boolean }

/**
 * A session with a transaction, and a `Db` whose every operation is in it without being told.
 *
 * The driver asks the `Db`'s client for a session where an operation was given none, and that client's topology for a server before each
 * command. So the `Db` gets a client of its own: a view of the real one in which both are answered here.
 */
class MongoTransaction implements Transaction<Db> {
  readonly connection: Db
  readonly #client: MongoClient
  readonly #session: ClientSession
  /** Settles when all commands that have come so far are done. Never rejects. */
  #last: Promise<void> = Promise.resolve()
  /** Takes no more commands. */
  #closed = false
  /** The borrower has sent a commit or an abort of his own. */
  #meddled = false
  #commitment: Promise<void> | undefined
  #undoing: Promise<void> | undefined

  constructor (client: MongoClient, topology: Topology, database: string, { isolation }: TransactionOptions) {
    this.#client = client
    const withGate: unknown = Object.create(topology, {
      selectServer: { value: (selector: unknown, options: { session?: ClientSession }) => this.#select(topology, selector, options) },
    })
    // Concerns are the transaction's: servers refuse them on what is inside of it. And there it is always the primary that answers.
    const plain = { readConcern: undefined, writeConcern: undefined, readPreference: 'primary' }
    const view = Object.create(client, {
      topology: { value: withGate },
      startSession: {
        value: (options?: SessionOptions) => options?.explicit === false ? this.#lend() : client.startSession.call(view, options),
      },
      // Else a bulk would end the session behind it.
      withSession: {
        value: async (options: SessionOptions | WithSessionCallback, fn: WithSessionCallback) => 'explicit' in options && options.explicit === false
          ? await fn(this.#lend())
          : await (client.withSession as (...args: unknown[]) => unknown).call(view, options, fn),
      },
      db: { value: (name?: string, options?: DbOptions) => client.db.call(view, name, { ...plain, ...options } as DbOptions) },
    }) as MongoClient
    this.connection = view.db(database)
    this.#session = view.startSession()
    // What is left out is as the client has it.
    this.#session.startTransaction({ readPreference: 'primary', ...isolation === 'snapshot' && { readConcern: { level: 'snapshot' } } })
  }

  /**
   * Whatever was called before is done first, also what nobody waited for. Where the driver can't know whether the server has committed
   * (`UnknownTransactionCommitResult`) it has asked it twice.
   */
  commit (): Promise<void> {
    this.#commitment ??= this.#commit()
    return this.#commitment
  }

  /** Those who wait for their turn are refused; what the server works at is waited for, since an abort that overtakes it would undo nothing. */
  rollback (): Promise<void> {
    this.#undoing ??= this.#undo()
    return this.#undoing
  }

  async #commit (): Promise<void> {
    for (let last; last !== this.#last;) await (last = this.#last)
    if (this.#closed || this.#meddled) throw ended()
    this.#leave()
    try {
      await this.#session.commitTransaction()
    } finally {
      await this.#session.endSession()
    }
  }

  async #undo (): Promise<void> {
    this.#leave()
    await Promise.allSettled([this.#last, this.#commitment])
    // Aborts what is open.
    await this.#session.endSession()
  }

  #lend (): ClientSession {
    if (this.#closed) throw ended()
    return this.#session
  }

  /** From here on the session is of use to nobody but us: the view takes no commands, and ours go by the real client. */
  #leave (): void {
    this.#closed = true
    Object.assign(this.#session, { client: this.#client })
  }

  /**
   * A server for one command, when its turn has come: one after the other. Of two first ones side by side each would begin the transaction, and
   * MongoDB promises nothing for later ones. A command ends its turn, whether it was sent or not; a cursor has one for each batch.
   */
  async #select (topology: Topology, selector: unknown, options: { session?: ClientSession }): Promise<Server> {
    // Of a session that the borrower has made himself: not of this transaction.
    if (options.session !== this.#session) return await topology.selectServer(selector, options)
    const before = this.#last
    let done!: () => void
    this.#last = new Promise((resolve) => { done = resolve })
    await before
    try {
      if (this.#closed) throw ended()
      const server = await topology.selectServer(selector, options)
      return Object.create(server, {
        command: { value: (operation: Operation, ...more: unknown[]) => this.#run(server, operation, more).finally(done) },
      }) as Server
    } catch (error) {
      done()
      throw error
    }
  }

  async #run (server: Server, operation: Operation, more: unknown[]): Promise<unknown> {
    const { command = {} } = operation
    if ('commitTransaction' in command || 'abortTransaction' in command) this.#meddled = true
    try {
      return await server.command(operation, ...more)
    } catch (error) {
      throw error instanceof Error && refusal.test(error.message) ? noTransactions(error) : error
    }
  }
}

/** How servers that have no transactions answer the first command of one, where nothing told so before: MongoDB, and FerretDB. */
const refusal = /^Transaction numbers are only allowed on|unknown field "?(?:startTransaction|autocommit|txnNumber)/

/** As far as one can know without asking. A single server may be reached directly and still be the member of a set, or a mongos. */
function hasTransactions ({ type, servers, logicalSessionTimeoutMinutes }: TopologyDescription): boolean {
  const known = [...servers.values()].filter((server) => server.type !== 'Unknown')
  if (type === 'LoadBalanced' || known.length === 0) return true
  return logicalSessionTimeoutMinutes !== null && known.some((server) => server.type !== 'Standalone')
}

function noTransactions (cause?: unknown): PoolError {
  return new PoolError('FST_POOL_NOT_SUPPORTED', 'this MongoDB has no transactions: they need a replica set or a sharded cluster', { cause })
}

function ended (): PoolError {
  return new PoolError('FST_POOL_TRANSACTION_ENDED', 'the transaction is no longer open')
}

function isTransient (error: unknown): boolean {
  return error instanceof Error && 'hasErrorLabel' in error && (error as MongoError).hasErrorLabel('TransientTransactionError')
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

async function makeClient (options: MongoOptions): Promise<MongoClient> {
  const { connection = {}, max = 10, acquireTimeout = 5000, connectTimeout = 3000 } = options
  const url = urlOf(options)
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
  const { MongoClient } = await importDriver<typeof import('mongodb')>('mongodb', { via: '@fastify/mongodb', backend: 'mongodb' })
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
    const cause = scrub(error, secretsOf(options))
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

function urlOf ({ url, host, port }: MongoOptions): string {
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
