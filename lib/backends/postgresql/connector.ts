import { scrub } from '../../engine/errors.js'
import type { Connector, DriverEvent, Transactions } from '../../../types/connector.js'
import type { Client } from '../../../types/drivers.js'
import { Addresses } from '../shared/address.js'
import { loadDriver } from '../shared/driver.js'
import { DriverEvents } from '../shared/events.js'
import { refuseRelease } from '../shared/released.js'
import { ServerConnector, sessionOf } from '../shared/session.js'
import { cutAtAbort } from '../shared/signal.js'
import { isConflict, isIdleTimeout, isPassing, isPermanent, kindOf } from './errors.js'
import { Inspection } from './inspect.js'
import { JoinedRounds, refuseUnlessJoined } from './joined.js'
import { Listening, type ListenOptions, type NotificationListener } from './listening.js'
import { configsOf, type Config, type PostgresOptions } from './options.js'
import { ownQueries } from './queries.js'
import { PostgresSession, type Common } from './session.js'
import { begin, levels } from './transaction.js'
import { postgresDriver, type Driver } from './wire.js'

export interface PostgresConnector extends Connector<Client> {
  readonly system: 'postgresql'
  /**
   * Calls `fn` for each notification on a channel. All channels share one connection outside of the pool: it is made
   * with the first `listen`, made again after an outage, and closed when nobody listens any more.
   *
   * @param channel the exact name, as in `LISTEN "Name"`: `NOTIFY Name` without quotes notifies 'name'
   * @returns when the server listens: a function that ends it, and resolves when the server knows. It never rejects.
   * @throws `FST_POOL_CONNECT_FAILED`, `FST_POOL_CLOSED`, `FST_POOL_BAD_OPTIONS`; the server's own error where it
   * refuses
   */
  listen (channel: string, fn: NotificationListener, options?: ListenOptions): Promise<() => Promise<void>>
}

/** What it is: ../connectors.ts, whose function of the same name calls this one. */
export async function postgresql (options: PostgresOptions): Promise<PostgresConnector> {
  return new PostgresBackend(options)
}

/**
 * `destroy` closes an idle connection in good order, and has the server cancel what still runs on a busy one.
 *
 * `isTransient`: the connection died, or its server ends, is not up yet, or takes no writes (25006). Not that the
 * server has too many connections (53300): connecting callers get that, and the pool retries connects by itself.
 *
 * `inspect`: 'replica' where the server is in recovery, or where its transactions are read only by default (and not
 * because a borrower set that). Its lag is 0 where all WAL that is known to exist is replayed, else the age of the last
 * replayed commit; Infinity where no WAL receiver streams: the primary is gone, out of reach or refuses it, or the
 * replica is fed by log shipping alone. With the role `pg_read_all_stats` (of `pg_monitor`) the lag includes WAL that
 * is still on its way; without it, a replica that catches up may seem to have done so. A replica of a replica counts
 * its lag behind that one. `inspect` rejects within a failed transaction.
 */
class PostgresBackend extends ServerConnector<Client, PostgresSession> implements PostgresConnector {
  readonly system = 'postgresql'
  readonly isTransient = isPassing
  readonly isPermanent = isPermanent
  readonly isIdleTimeout = isIdleTimeout
  readonly kindOf = kindOf
  readonly transactions: Transactions<Client> = {
    isolation: [...levels.keys()],
    readOnly: true,
    // Without a signal: past the deadline the pool ends the connection, which ends this.
    begin: (connection, options) => begin(sessionOf(connection), options),
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
    const { reset = 'session', connectTimeout = 3000, resetTimeout = 1000 } = options
    this.#addresses = new Addresses(options, { password: process.env.PGPASSWORD })
    this.#config = configsOf(options, this.#addresses)
    this.#driver = loadDriver(postgresDriver, options.driver)
    this.#common = {
      own: ownQueries(this.#driver),
      inspection: new Inspection(),
      mode: reset,
      rounds: new JoinedRounds(resetTimeout),
      scrub: (error) => scrub(error, this.secrets),
    }
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
        if (this.#common.mode === 'joined') await refuseUnlessJoined(client)
        signal.throwIfAborted()
        refuseRelease(client)
        session.open()
        return session
      } catch (error) {
        await session.end()
        throw signal.aborted ? signal.reason : error
      }
    })
  }

  /**
   * Takes no signal: past the deadline the pool destroys the connection, and then the server is asked to cancel what
   * runs.
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
    this.#common.rounds.close()
    return this.#listening.close()
  }
}
