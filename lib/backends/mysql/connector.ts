import type { Connector, ServerState, Transactions } from '../../../types/connector.js'
import type { Connection } from '../../../types/drivers.js'
import { Addresses } from '../shared/address.js'
import { loadDriver } from '../shared/driver.js'
import { ServerConnector, sessionOf, type ResetMode } from '../shared/session.js'
import { isConflict, isPassing } from './errors.js'
import { configsOf, type Config, type MysqlOptions } from './options.js'
import { MysqlSession } from './session.js'
import { cut, mysqlDriver, within, type Core, type Driver } from './wire.js'

export interface MysqlConnector extends Connector<Connection> {
  readonly system: 'mysql'
  readonly transactions: Transactions<Connection>
  inspect (connection: Connection, signal: AbortSignal): Promise<ServerState>
  isTransient (error: unknown): boolean
}

/**
 * MySQL 8 and MariaDB 10.2.4 or later, on mysql2. A connection is one of mysql2's promise connections.
 *
 * In mode 'session' a connection is reset (COM_RESET_CONNECTION) before its first loan too, as that changes what
 * connecting had set: the `IGNORE_SPACE` of mysql2's flags, the `wait_timeout` of the flag `INTERACTIVE`, and what the
 * server's `init_connect` set (but for the character set, which is kept).
 *
 * Not undone by a reset: properties set on the object, and a role (SET ROLE) that a stored function or trigger sets. A
 * statement from `prepare()` that is kept over a reset fails. A statement that runs when its connection is destroyed
 * goes on in the server, for nobody.
 *
 * A connection on which the server refused a write because it is read only (1290, 1836; 1792, unless the borrower asked
 * for a transaction that only reads) is broken: another one may reach a server that takes it. Not so where `inspect`
 * has found a replica.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`. Nothing is opened yet.
 */
export async function mysql (options: MysqlOptions): Promise<MysqlConnector> {
  return new MysqlBackend(options)
}

/**
 * `destroy` sends COM_QUIT, and waits until the server has closed, for 100 ms. What is dead or not at rest is cut off
 * at once: a running statement goes on in the server, which frees its transaction's locks when it hears of it (MariaDB
 * asks every 5 s where it sleeps, else at the statement's end). `validate` sends COM_PING.
 *
 * `inspect` says 'replica' where the server is read only, for all (`read_only`, `innodb_read_only`), or follows another
 * server, even where it would take writes. So of servers that follow each other in a ring none is a primary. The lag is
 * the server's own Seconds_Behind_Master, in whole seconds and of the worst where it follows several; Infinity where
 * that is NULL: replication does not run, or its primary is out of reach. To ask for it takes a privilege: REPLICATION
 * CLIENT, of MariaDB from 10.5.9 on SLAVE MONITOR. Without it (and on readers of Amazon Aurora, which replicate in
 * another way) the lag is left out, and `read_only` alone tells the role.
 */
class MysqlBackend extends ServerConnector<Connection, MysqlSession> implements MysqlConnector {
  // Of MariaDB too: nothing tells before the first connection which of the two it is.
  readonly system = 'mysql'
  readonly isTransient = isPassing
  readonly transactions: Transactions<Connection> = {
    isolation: ['read uncommitted', 'read committed', 'repeatable read', 'serializable'],
    readOnly: true,
    begin: (connection, options, signal) => sessionOf<MysqlSession>(connection).begin(options, signal),
    isTransient: isConflict,
  }

  readonly #driver: Driver
  readonly #config: Config
  readonly #addresses: Addresses
  readonly #mode: ResetMode

  constructor (options: MysqlOptions) {
    super()
    this.#addresses = new Addresses(options)
    this.#config = configsOf(options, this.#addresses)
    this.#driver = loadDriver(mysqlDriver, options.driver)
    this.#mode = options.reset ?? 'session'
  }

  get secrets (): readonly string[] {
    return this.#addresses.secrets
  }

  protected override async open (signal: AbortSignal): Promise<MysqlSession> {
    const config = await this.#config(signal)
    // Not the promise flavour: that gives nothing to abort before it is connected. A copy of the configuration, since
    // the driver changes what it is given.
    const core = this.#driver.createConnection({ ...config }) as unknown as Core
    // For all of its life: an error that nobody listens for ends the process. Before the session listens, `connect`
    // tells the first one.
    core.on('error', () => {})
    const connected = (resolve: () => void, reject: (error: Error) => void) => {
      core.connect((error) => error ? reject(error) : resolve())
    }
    try {
      await within(core, signal, new Promise<void>(connected))
      const session = new MysqlSession(core.promise(), core, this.#mode)
      await within(core, signal, session.prepare())
      return session
    } catch (error) {
      await cut(core)
      throw error
    }
  }

  /**
   * What is still under way is waited for. An unread `.stream()` never ends: past the deadline the pool destroys the
   * connection, which ends this too.
   *
   * @throws (rejects) where the user or the configured database can't be had again, or where the connection is used
   * meanwhile
   */
  reset (connection: Connection): Promise<void> | undefined {
    return sessionOf<MysqlSession>(connection).undo()
  }
}
