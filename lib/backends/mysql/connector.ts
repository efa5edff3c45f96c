import type { ConnectionOptions } from 'mysql2'
import { scrub } from '../../engine/errors.js'
import type { Connector, DriverEvent, ServerState, Transactions } from '../../../types/connector.js'
import type { Connection } from '../../../types/drivers.js'
import { Addresses } from '../shared/address.js'
import { loadDriver } from '../shared/driver.js'
import { DriverEvents } from '../shared/events.js'
import { refuseRelease } from '../shared/released.js'
import { ServerConnector, refuseJoined, sessionOf, type ResetMode } from '../shared/session.js'
import { isConflict, isIdleTimeout, isPassing, isPermanent, kindOf } from './errors.js'
import { Killer } from './killer.js'
import { configsOf, type Config, type MysqlOptions } from './options.js'
import { MysqlSession } from './session.js'
import { cut, mysqlDriver, within, type Core, type Driver } from './wire.js'

export interface MysqlConnector extends Connector<Connection> {
  readonly system: 'mysql'
  readonly transactions: Transactions<Connection>
  inspect (connection: Connection, signal: AbortSignal): Promise<ServerState>
  isTransient (error: unknown): boolean
}

/** What it is: ../connectors.ts, whose function of the same name calls this one. */
export async function mysql (options: MysqlOptions): Promise<MysqlConnector> {
  return new MysqlBackend(options)
}

/**
 * `destroy` sends COM_QUIT, and waits up to 1 s until the server has closed. A dead or busy connection is cut off at
 * once, and what it ran is killed. `validate` sends COM_PING.
 *
 * `inspect`: 'replica' where the server is read only for all (`read_only`, `innodb_read_only`), or follows another
 * server, even where it would take writes. So of servers that follow each other in a ring none is a primary. The lag is
 * the server's own Seconds_Behind_Master, in whole seconds, the highest where it follows several; Infinity where that
 * is NULL: replication does not run, or its primary is out of reach. Asking for it takes a privilege: REPLICATION
 * CLIENT; for MariaDB from 10.5.9 on SLAVE MONITOR. Without it (and on readers of Amazon Aurora, which replicate in
 * another way) the lag is left out, and `read_only` alone tells the role.
 */
class MysqlBackend extends ServerConnector<Connection, MysqlSession> implements MysqlConnector {
  // For MariaDB too: before the first connection nothing tells which of the two it is.
  readonly system = 'mysql'
  readonly isTransient = isPassing
  readonly isPermanent = isPermanent
  readonly isIdleTimeout = isIdleTimeout
  readonly kindOf = kindOf
  readonly transactions: Transactions<Connection> = {
    isolation: ['read uncommitted', 'read committed', 'repeatable read', 'serializable'],
    readOnly: true,
    // Without a signal: past the deadline the pool ends the connection, which ends this.
    begin: (connection, options) => sessionOf<MysqlSession>(connection).begin(options),
    isTransient: isConflict,
  }

  readonly #driver: Driver
  readonly #config: Config
  readonly #addresses: Addresses
  readonly #mode: ResetMode
  readonly #events = new DriverEvents()
  /** All that are open. */
  readonly #sessions = new Set<MysqlSession>()
  readonly #killer = new Killer({
    // Without the database, which may be gone.
    open: (signal) => this.#connect(signal, { database: undefined }),
    idle: () => [...this.#sessions].find((session) => session.rests),
    tell: ({ message }) => {
      const reason = scrub(new Error(message), this.secrets).message
      this.#events.tell('not-killed', { reason })
      const what = 'a statement whose connection was destroyed may go on in the MySQL server, and count there'
      process.emitWarning(`${what}: ${reason}`, 'PoolWarning')
    },
  })

  constructor (options: MysqlOptions) {
    super()
    refuseJoined(options)
    this.#addresses = new Addresses(options)
    this.#config = configsOf(options, this.#addresses)
    this.#driver = loadDriver(mysqlDriver, options.driver)
    this.#mode = options.reset ?? 'session'
  }

  get secrets (): readonly string[] {
    return this.#addresses.secrets
  }

  protected override async open (signal: AbortSignal): Promise<MysqlSession> {
    const core = await this.#connect(signal)
    try {
      const session = new MysqlSession(core.promise(), core, this.#mode, this.#killer)
      await within(core, signal, session.prepare())
      refuseRelease(session.connection)
      this.#sessions.add(session)
      session.onEnd = () => { this.#sessions.delete(session) }
      return session
    } catch (error) {
      await cut(core)
      throw error
    }
  }

  /** Logs in. Leaves nothing open where it rejects. */
  async #connect (signal: AbortSignal, more: Partial<ConnectionOptions> = {}): Promise<Core> {
    const config = { ...await this.#config(signal), ...more }
    // Not mysql2/promise, which gives nothing that could be ended before it is connected. A copy of the configuration,
    // since the driver changes the object that it is given.
    const core = this.#driver.createConnection(config) as unknown as Core
    // Stays for the connection's life: an `error` without a listener ends the process. Until the session listens,
    // `connect` reports the first one.
    core.on('error', () => {})
    const connected = (resolve: () => void, reject: (error: Error) => void) => {
      core.connect((error) => error ? reject(error) : resolve())
    }
    try {
      await within(core, signal, new Promise<void>(connected))
      return core
    } catch (error) {
      await cut(core)
      throw error
    }
  }

  /**
   * Waits for commands that are under way. An unread `.stream()` never ends: past the deadline the pool destroys the
   * connection, and this rejects.
   *
   * @throws (rejects) where the user or the configured database can't be had again, or where the connection is used
   * meanwhile
   */
  reset (connection: Connection): Promise<void> | undefined {
    return sessionOf<MysqlSession>(connection).undo()
  }

  /** `not-killed` {reason}, once: the statement of a destroyed connection may go on in the server. */
  onDriverEvent (listener: (event: DriverEvent) => void): void {
    this.#events.listen(listener)
  }

  /** Waits up to 500 ms for statements that are being killed. */
  close (): Promise<void> {
    return this.#killer.close()
  }
}
