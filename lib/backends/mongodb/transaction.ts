import type {
  ClientSession, ClientSessionOptions, CollectionOptions, CreateCollectionOptions, Db, DbOptions, MongoClient,
  MongoError, TopologyDescription, WithSessionCallback,
} from 'mongodb'
import { setImmediate as turn } from 'node:timers/promises'
import { PoolError } from '../../engine/errors.js'
import type { Activity, Transaction, TransactionOptions } from '../../../types/connector.js'
import { somewhere } from '../shared/failures.js'

/** Internals of the driver. */
export interface Topology {
  readonly description: TopologyDescription
  selectServer (selector: unknown, options: Selecting): Promise<Server>
}
interface Selecting { readonly session?: ClientSession, readonly operationName?: string }
export interface Server { command (operation: Operation, ...more: unknown[]): Promise<unknown> }
export interface Operation {
  readonly commandName?: string
  readonly session?: ClientSession
  /** What was given to `db.command`. */
  readonly command?: object
  writeConcern?: unknown
  options?: object
}
/** `explicit` is false where the driver itself asks for a session, for an operation that was given none. */
interface SessionOptions extends ClientSessionOptions { readonly explicit?: boolean }

/**
 * In a transaction the concerns are the transaction's own, and the primary answers: servers and driver refuse others
 * for its operations.
 */
const plain = { readConcern: undefined, writeConcern: undefined, readPreference: 'primary' } as const

/** An object with the same state, but for these members. */
function view<T extends object> (of: T, members: Readonly<Record<string, unknown>>): T {
  return Object.create(of, Object.fromEntries(Object.entries(members).map(([name, value]) => [name, { value }]))) as T
}

/**
 * A session with a transaction, and a `Db` whose every operation is in it without being told.
 *
 * Where an operation was given no session, the driver asks the `Db`'s client for one, and before each command it asks
 * that client's topology for a server. So the `Db` gets a client of its own: a view of the real one that answers both
 * questions.
 */
export class MongoTransaction implements Transaction<Db> {
  readonly connection: Db
  /** The commit was sent, and its answer has not come, or leaves it open. */
  inDoubt = false
  readonly session: ClientSession
  readonly #client: MongoClient
  readonly #topology: Topology
  /** Sessions that the borrower has made on the view himself: they don't belong to this transaction. */
  readonly #others = new WeakSet<ClientSession>()
  /** Resolves when all commands that have come so far are done. Never rejects. */
  #last: Promise<void> = Promise.resolve()
  /** How many commands wait for their turn, or for the server. */
  #pending = 0
  /** Operations that failed without an answer that ended the transaction, with their last errors. */
  readonly #failed = new Map<Operation, unknown>()
  /** The view takes no more commands. */
  #closed = false
  /** The borrower has sent commitTransaction or abortTransaction himself. */
  #meddled = false
  /** A commit was sent and not answered. */
  #unanswered = false
  #commitment: Promise<void> | undefined
  #undoing: Promise<void> | undefined

  constructor (client: MongoClient, topology: Topology, database: string, { isolation }: TransactionOptions) {
    this.#client = client
    this.#topology = topology
    const selectServer = (selector: unknown, options: Selecting) => this.#select(selector, options)
    const own = view(client, {
      topology: view(topology, { selectServer }),
      startSession: (options?: SessionOptions) => options?.explicit === false ? this.#lend() : other(options),
      // Otherwise a bulk write would end the session when it is done.
      withSession: async (options: SessionOptions | WithSessionCallback, fn: WithSessionCallback) => {
        if ('explicit' in options && options.explicit === false) return await fn(this.#lend())
        return await (client.withSession as (...args: unknown[]) => unknown).call(own, options, fn)
      },
      db: (name?: string, options?: DbOptions) =>
        plainDb(client.db.call(own, name, { ...options, ...plain } as DbOptions)),
    })
    const other = (options?: SessionOptions) => {
      const session = client.startSession.call(own, options)
      this.#others.add(session)
      return session
    }
    this.connection = own.db(database)
    this.session = client.startSession.call(own)
    // Other options are as the client has them.
    const snapshot = isolation === 'snapshot' && { readConcern: { level: 'snapshot' } as const }
    this.session.startTransaction({ readPreference: 'primary', ...snapshot })
  }

  /** undefined: it has ended. */
  get activity (): Activity | undefined {
    if (this.session.hasEnded) return undefined
    // Closed: the commit, or the abort, is under way.
    return { doing: this.#pending > 0 || this.#closed ? 'query' : 'idle in transaction' }
  }

  /**
   * Waits for all earlier operations first, also those that nobody waited for. An operation that was not answered, or
   * that an overloaded server refused, is an error here too.
   *
   * Where nobody knows whether the server has committed, it was asked twice, and the error says so
   * (`UnknownTransactionCommitResult`).
   */
  commit (): Promise<void> {
    this.#commitment ??= this.#commit()
    return this.#commitment
  }

  /**
   * Refuses the commands that wait for their turn, and waits for those that the server works at: an abort that
   * overtakes one would undo nothing.
   */
  rollback (): Promise<void> {
    this.#undoing ??= this.#undo()
    return this.#undoing
  }

  async #commit (): Promise<void> {
    await this.#quiet()
    if (this.#closed || this.#meddled) throw ended()
    const [first] = this.#failed.values()
    if (first !== undefined) throw first
    this.#leave()
    try {
      this.inDoubt = true
      await this.session.commitTransaction()
      this.inDoubt = false
    } catch (error) {
      if (isAnswer(error) ? isOpen(error) : this.#unanswered) label(error, 'UnknownTransactionCommitResult')
      this.inDoubt = labelsOf(error).has('UnknownTransactionCommitResult')
      throw error
    } finally {
      await this.session.endSession()
    }
  }

  /** Resolves when nothing is under way. */
  async #quiet (): Promise<void> {
    for (let last; last !== this.#last;) {
      await (last = this.#last)
      // An operation of several commands, such as a bulk write, sends its next command in the turn of the event loop in
      // which the last one was answered.
      await turn()
    }
  }

  async #undo (): Promise<void> {
    this.#leave()
    await Promise.allSettled([this.#last, this.#commitment])
    // This aborts an open transaction.
    await this.session.endSession()
  }

  #lend (): ClientSession {
    if (this.#closed) throw ended()
    return this.session
  }

  /**
   * Takes the session away from the borrower: the view takes no commands, and the commit or the abort uses another
   * view.
   */
  #leave (): void {
    this.#closed = true
    const topology = view(this.#topology, {
      selectServer: async (selector: unknown, options: Selecting) => {
        const server = await this.#topology.selectServer(selector, options)
        const command = (operation: Operation, ...more: unknown[]) => this.#end(server, operation, more)
        return view(server, { command })
      },
    })
    Object.assign(this.session, { client: view(this.#client, { topology }) })
  }

  /**
   * A server for one command, when its turn has come: commands go one after the other. Two first commands side by side
   * would both begin the transaction, and MongoDB promises nothing for later ones. A turn ends with its command,
   * whether it was sent or not; a cursor takes one for each batch.
   */
  async #select (selector: unknown, options: Selecting): Promise<Server> {
    const { session, operationName } = options
    if (session !== this.session) {
      if (session === undefined || !this.#others.has(session)) throw unbound(operationName)
      return await this.#topology.selectServer(selector, options)
    }
    const before = this.#last
    let done!: () => void
    this.#pending++
    this.#last = new Promise((resolve) => {
      done = () => {
        this.#pending--
        resolve()
      }
    })
    await before
    try {
      if (this.#closed) throw ended()
      const server = await this.#topology.selectServer(selector, options)
      let used = false
      return view(server, {
        command: async (operation: Operation, ...more: unknown[]) => {
          if (used || operation.session !== this.session) throw unbound(operation.commandName)
          used = true
          return await this.#run(server, operation, more).finally(done)
        },
      })
    } catch (error) {
      done()
      if ((error as Partial<Error>)?.name === 'MongoServerSelectionError') label(error, 'TransientTransactionError')
      throw error
    }
  }

  async #run (server: Server, operation: Operation, more: unknown[]): Promise<unknown> {
    const { command = {} } = operation
    if ('commitTransaction' in command || 'abortTransaction' in command) this.#meddled = true
    if (operation.writeConcern !== undefined) {
      operation.writeConcern = undefined
      operation.options = { ...operation.options, writeConcern: undefined }
    }
    try {
      const result = await server.command(operation, ...more)
      this.#failed.delete(operation)
      return result
    } catch (error) {
      if (isNetworkError(error)) label(error, 'TransientTransactionError')
      if (isNetworkError(error) || isOverload(error)) this.#failed.set(operation, error)
      else this.#failed.delete(operation)
      throw error instanceof Error && refusal.test(error.message) ? noTransactions(error) : error
    }
  }

  /**
   * The driver labels the error of only the first of several sockets that die together, and retries what has the label.
   */
  async #end (server: Server, operation: Operation, more: unknown[]): Promise<unknown> {
    try {
      return await server.command(operation, ...more)
    } catch (error) {
      if (isNetworkError(error)) label(error, 'RetryableWriteError')
      if (!isAnswer(error)) this.#unanswered = true
      throw error
    }
  }
}

/** A `Db` whose collections have plain concerns, whatever their own options say. */
function plainDb (db: Db): Db {
  const { collection, createCollection } = db
  const get = (name: string, options?: CollectionOptions) => collection.call(db, name, { ...options, ...plain })
  const create = (name: string, options?: CreateCollectionOptions) =>
    createCollection.call(db, name, { ...options, ...plain })
  return Object.defineProperties(db, { collection: { value: get }, createCollection: { value: create } })
}

/**
 * The errors of servers without transactions for the first command of one, where nothing told so before: MongoDB, and
 * FerretDB.
 */
const refusal = /^Transaction numbers are only allowed on|unknown field "?(?:startTransaction|autocommit|txnNumber)/

/**
 * The topology of a client on whose servers there may be transactions.
 *
 * @throws `FST_POOL_NOT_SUPPORTED`
 */
export function topologyOf (client: MongoClient): Topology {
  const { topology } = client as unknown as { topology?: Topology }
  if (topology === undefined) throw new Error('the MongoDB client is closed')
  if (!hasTransactions(topology.description)) throw noTransactions()
  if (client.writeConcern?.w === 0) {
    throw new PoolError('FST_POOL_NOT_SUPPORTED',
      'a transaction can not be committed with write concern 0: nobody would know whether it was')
  }
  return topology
}

/**
 * As far as it is known without asking. A server that is reached directly may still be a member of a set, or a mongos.
 */
function hasTransactions ({ type, servers, logicalSessionTimeoutMinutes }: TopologyDescription): boolean {
  const known = [...servers.values()].filter((server) => server.type !== 'Unknown')
  if (type === 'LoadBalanced' || known.length === 0) return true
  return logicalSessionTimeoutMinutes !== null && known.some((server) => server.type !== 'Standalone')
}

function noTransactions (cause?: unknown): PoolError {
  return new PoolError('FST_POOL_NOT_SUPPORTED',
    'this MongoDB has no transactions: they need a replica set or a sharded cluster', { cause })
}

function ended (): PoolError {
  return new PoolError('FST_POOL_TRANSACTION_ENDED', 'the transaction is no longer open')
}

/** @param what the driver's name of the operation */
function unbound (what = 'unknown'): PoolError {
  return new PoolError('FST_POOL_NOT_SUPPORTED',
    `the MongoDB driver would send the operation '${what}' outside of the transaction: it was not sent`)
}

// --- Errors ----------------------------------------------------------------------------------------------------------

/**
 * Whether the server, or the driver, has undone the transaction because of others. Some servers don't label a write
 * conflict.
 */
export function mayRunAgain (error: unknown): boolean {
  if (labelsOf(error).has('UnknownTransactionCommitResult')) return false
  return somewhere(error, (failure) =>
    labelsOf(failure).has('TransientTransactionError') || failure.code === writeConflict)
}

const writeConflict = 112

/** The connection failed under a command, or before it. By name, since there may be two copies of the driver. */
function isNetworkError (error: unknown): boolean {
  return error instanceof Error && networkErrors.has(error.name)
}

const networkErrors: ReadonlySet<string> = new Set([
  'MongoNetworkError', 'MongoNetworkTimeoutError', 'MongoPoolClearedError', 'PoolClearedOnNetworkError',
])

/** The server has not looked at the command, and the transaction is as it was. The driver may send it again. */
function isOverload (error: unknown): boolean {
  return labelsOf(error).has('SystemOverloadedError')
}

/** The error is the server's own answer. */
function isAnswer (error: unknown): boolean {
  return error instanceof Error && (error.name === 'MongoServerError' || error.name === 'MongoWriteConcernError')
}

/** Whether the server may have committed, though it answered the commit with this error. */
function isOpen (error: unknown): boolean {
  const { name, code } = error as { name: string, code?: unknown }
  if (name === 'MongoWriteConcernError') return !unsatisfiable.has(code)
  // MaxTimeMSExpired.
  return code === 50 || labelsOf(error).has('RetryableWriteError')
}

/** UnknownReplWriteConcern, UnsatisfiableWriteConcern: asking again would not help. */
const unsatisfiable: ReadonlySet<unknown> = new Set([79, 100])

function label (error: unknown, name: string): void {
  (error as Partial<MongoError>).addErrorLabel?.(name)
}

/** The labels that the driver or the server has put on an error. */
export function labelsOf (error: unknown): ReadonlySet<string> {
  const labels = error instanceof Error ? (error as { errorLabels?: unknown }).errorLabels : undefined
  return new Set(Array.isArray(labels) ? labels.map(String) : [])
}
