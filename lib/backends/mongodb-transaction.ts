import type {
  ClientSession, ClientSessionOptions, Db, DbOptions, MongoClient, TopologyDescription, WithSessionCallback,
} from 'mongodb'
import { PoolError } from '../pool/errors.js'
import type { Transaction, TransactionOptions } from '../../types/connector.js'

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

/** @throws `FST_POOL_NOT_SUPPORTED`; the signal's reason */
export async function beginTransaction (
  client: MongoClient, database: string, options: TransactionOptions, signal: AbortSignal
): Promise<MongoTransaction> {
  const inside = client as unknown as Inside
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
  if (client.writeConcern?.w === 0) {
    throw new PoolError('FST_POOL_NOT_SUPPORTED', 'a transaction can not be committed with write concern 0: nobody would know whether it was')
  }
  return new MongoTransaction(client, topology, database, options)
}

/**
 * A session with a transaction, and a `Db` whose every operation is in it without being told.
 *
 * The driver asks the `Db`'s client for a session where an operation was given none, and that client's topology for a server before each
 * command. So the `Db` gets a client of its own: a view of the real one in which both are answered here.
 */
export class MongoTransaction implements Transaction<Db> {
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

export function mayRunAgain (error: unknown): boolean {
  return labelsOf(error).has('TransientTransactionError')
}

export function labelsOf (error: unknown): ReadonlySet<string> {
  const labels = error instanceof Error ? (error as { errorLabels?: unknown }).errorLabels : undefined
  return new Set(Array.isArray(labels) ? labels.map(String) : [])
}
