import { scrub } from '../../pool/errors.js'
import type { Connector, DriverEvent, Transactions } from '../../../types/connector.js'
import type { Client } from '../../../types/drivers.js'
import { Addresses } from '../shared/address.js'
import { loadDriver } from '../shared/driver.js'
import { DriverEvents } from '../shared/events.js'
import { ServerConnector, sessionOf } from '../shared/session.js'
import { cutAtAbort, unlessAborted } from '../shared/signal.js'
import { isConflict, isPassing } from './errors.js'
import { Inspection } from './inspect.js'
import { Listening, type ListenOptions, type NotificationListener } from './listening.js'
import { configsOf, type Config, type PostgresOptions } from './options.js'
import { ownQueries } from './queries.js'
import { PostgresSession, type Common } from './session.js'
import { begin, levels } from './transaction.js'
import { postgresDriver, type Driver } from './wire.js'

export interface PostgresConnector extends Connector<Client> {
  readonly system: 'postgresql'
  /**
   * Calls `fn` for each notification on a channel, over one connection outside of the pool that all channels share:
   * made with the first `listen`, made again after an outage, closed when nobody listens any more.
   *
   * @param channel the exact name, as in `LISTEN "Name"`: `NOTIFY Name` without quotes notifies 'name'
   * @returns when the server listens: a function that ends it, and resolves when the server knows. It never rejects.
   * @throws `FST_POOL_CONNECT_FAILED`, `FST_POOL_CLOSED`, `FST_POOL_BAD_OPTIONS`; the server's own error where it
   * refuses
   */
  listen (channel: string, fn: NotificationListener, options?: ListenOptions): Promise<() => Promise<void>>
}

/**
 * PostgreSQL (10 and later). A connection is one `pg.Client`.
 *
 * A connection that is destroyed while a statement runs asks the server to cancel it (over a second, short connection),
 * so that its slot there is free when it counts as closed here. What the server does not end within 500 ms is cut off.
 *
 * A connection on which the server refused a write (25006) is broken: another one may reach a server that takes it. Not
 * so where the server itself takes writes, and a transaction that was begun read only does not (PostgreSQL 14 and later
 * tell the difference), nor where `inspect` has found a replica.
 *
 * Settings that every borrower should have belong into `connection` (`options: '-c search_path=app'`,
 * `statement_timeout`, ...): a reset goes back to them.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`. Nothing is opened yet.
 */
export async function postgresql (options: PostgresOptions): Promise<PostgresConnector> {
  return new PostgresBackend(options)
}

/**
 * `destroy` ends in good order what is idle, and has the server cancel what still runs. `isTransient` means that the
 * connection died, or its server ends, is not up yet, or takes no writes (25006). Not that the server has too many
 * connections (53300): that is said to who connects, and the pool tries connects again in its own time.
 *
 * `inspect` says 'replica' where the server recovers, or where its transactions are read only unless they say
 * otherwise, and not by a borrower's doing. The lag is 0 where all is replayed that is known to exist, else the age of
 * the last commit that is replayed. It is Infinity where nothing is received: its primary is gone or out of reach, or
 * has refused it; a replica by log shipping alone receives nothing either. With the role `pg_read_all_stats` (of
 * `pg_monitor`) it includes what is still on its way from the primary; without it, a replica that catches up may seem
 * to have done so. Of a replica of a replica it is the lag behind that one. Rejects within a failed transaction.
 */
class PostgresBackend extends ServerConnector<Client, PostgresSession> implements PostgresConnector {
  readonly system = 'postgresql'
  readonly isTransient = isPassing
  readonly transactions: Transactions<Client> = {
    isolation: [...levels.keys()],
    readOnly: true,
    begin: (connection, options, signal) => unlessAborted(begin(sessionOf(connection), options), signal),
    isTransient: isConflict,
  }

  readonly #driver: Driver
  readonly #config: Config
  readonly #addresses: Addresses
  readonly #common: Common
  readonly #listening: Listening
  readonly #events = new DriverEvents()

  constructor (options: PostgresOptions) {
    super()
    const { reset = 'session', connectTimeout = 3000 } = options
    this.#addresses = new Addresses(options, { password: process.env.PGPASSWORD })
    this.#config = configsOf(options, this.#addresses)
    this.#driver = loadDriver(postgresDriver, options.driver)
    this.#common = { own: ownQueries(this.#driver), inspection: new Inspection(), mode: reset }
    this.#listening = new Listening({
      open: (signal) => this.open(signal),
      connectTimeout,
      scrub: (error) => scrub(error, this.secrets),
      tell: (name, detail) => {
        if (this.#events.tell(name, detail) || name !== 'listener-error') return
        const { channel, message } = detail
        process.emitWarning(`a listener of channel ${String(channel)} failed: ${String(message)}`, 'PoolWarning')
      },
    })
  }

  get secrets (): readonly string[] {
    return this.#addresses.secrets
  }

  protected override async open (signal: AbortSignal): Promise<PostgresSession> {
    const config = await this.#config(signal)
    signal.throwIfAborted()
    const { ssl } = config
    // pg changes the object that it is given.
    const client = new this.#driver.Client({ ...config, ...(typeof ssl === 'object' && { ssl: { ...ssl } }) })
    const session = new PostgresSession(client, this.#common, config)
    return await cutAtAbort(signal, () => session.cut(), async () => {
      try {
        await client.connect()
        signal.throwIfAborted()
        session.open()
        return session
      } catch (error) {
        await session.end()
        throw signal.aborted ? signal.reason : error
      }
    })
  }

  /**
   * Does not listen to the signal: past it, the pool destroys the connection, and then the server is asked to cancel
   * what runs.
   */
  reset (connection: Client): Promise<void> | undefined {
    return sessionOf<PostgresSession>(connection).undo()
  }

  /**
   * Of `listen`: `listen-lost` {code}, `listen-failed` {code}, `listen-restored` {channels}, `listener-error`
   * {channel, message}.
   */
  onDriverEvent (listener: (event: DriverEvent) => void): void {
    this.#events.listen(listener)
  }

  listen (channel: string, fn: NotificationListener, options?: ListenOptions): Promise<() => Promise<void>> {
    return this.#listening.listen(channel, fn, options)
  }

  close (): Promise<void> {
    return this.#listening.close()
  }
}
