import { scrub, secretsOf } from '../../pool/errors.js'
import { Addresses } from '../shared/address.js'
import { loadDriver } from '../shared/driver.js'
import { unlessAborted } from '../shared/signal.js'
import type { Connector, DriverEvent, ServerState, Transactions } from '../../../types/connector.js'
import type { Client } from '../../../types/drivers.js'
import type { Role } from '../../../types/pool.js'
import { configsOf } from './options.js'
import type { PostgresOptions, Config } from './options.js'
import { Listening } from './listening.js'
import type { ListenOptions, NotificationListener } from './listening.js'
import { postgresDriver } from './wire.js'
import type { Driver } from './wire.js'
import { guardOf, Guard } from './session.js'
import type { Mode } from './session.js'
import { ownQueries } from './queries.js'
import type { OwnQueries } from './queries.js'
import { asText, readsOnly, lag, untold } from './inspect.js'
import { isPassing, isConflict } from './errors.js'
import { levels, begin } from './transaction.js'

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
