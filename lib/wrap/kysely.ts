import { Kysely, MysqlDialect, PostgresDialect, SqliteDialect } from 'kysely'
import type {
  DatabaseConnection, Dialect, Driver, KyselyConfig, MysqlDialectConfig, MysqlPoolConnection, PostgresDialectConfig,
  PostgresPoolClient, QueryCompiler, SqliteDialectConfig, TransactionSettings,
} from 'kysely'
import type { WrapInfo, WrapTransaction } from '../../types/pool.js'
import { optionsOf, unknownSystem } from './begin.js'
import { likeBetterSqlite3 } from './native.js'

/** Options of Kysely itself, but for the dialect, which follows from the pool's backend. */
export interface KyselyOptions extends Omit<KyselyConfig, 'dialect'> {
  /** PostgreSQL: `Cursor` of the package pg-cursor, for Kysely's `stream()`. */
  readonly cursor?: PostgresDialectConfig['cursor']
}

/**
 * For the option `wrap`: `request.<name>` is a Kysely over the leased connection, on PostgreSQL, MySQL and SQLite.
 *
 * Kysely's own transactions are the pool's: side by side on one connection they wait for each other (`acquireTimeout`
 * ms at most), and within a route's transaction they are refused with `FST_POOL_NOT_SUPPORTED`, since that one is
 * theirs already.
 *
 * @throws `FST_POOL_BAD_OPTIONS` when the first connection is made (at `register`, unless `startup` says later), on
 * another backend
 */
export function kysely<DB = any> (
  { cursor, ...config }: KyselyOptions = {}
): (connection: unknown, info: WrapInfo) => Kysely<DB> {
  return (connection, info) => {
    const dialect = new LeasedDialect(dialectOf(connection, info, cursor), info)
    return new Kysely<DB>({ ...config, dialect })
  }
}

export default kysely

/** Kysely's dialect for the backend, with a pool that has this one connection. */
function dialectOf (connection: unknown, info: WrapInfo, cursor: KyselyOptions['cursor']): Dialect {
  switch (info.system) {
    case 'postgresql': {
      const client = lent<PostgresPoolClient>(connection)
      const pool = { connect: async () => client, end: async () => {} }
      return new PostgresDialect({ pool, ...(cursor !== undefined && { cursor }) })
    }
    case 'mysql':
    case 'mariadb': {
      // Kysely works with the object inside of mysql2's promise connection.
      const client = lent<MysqlPoolConnection>((connection as { connection: unknown }).connection)
      const pool: MysqlDialectConfig['pool'] = {
        getConnection (done) { done(undefined, client) },
        end (done) { done(undefined) },
      }
      return new MysqlDialect({ pool })
    }
    case 'sqlite': {
      const database: unknown = likeBetterSqlite3(connection)
      return new SqliteDialect({ database: database as SqliteDialectConfig['database'] })
    }
    default:
      throw unknownSystem('kysely', info, ['postgresql', 'mysql', 'sqlite'])
  }
}

/** The connection as Kysely's pools give it. Bound, since drivers keep their state in it. */
function lent<T> (connection: unknown): T {
  const { query } = connection as { query (...args: unknown[]): unknown }
  return { query: query.bind(connection), release () {} } as T
}

/** Kysely's dialect of that database, with the transactions of the pool. */
class LeasedDialect implements Dialect {
  readonly #stock: Dialect
  readonly #info: WrapInfo
  readonly createAdapter: Dialect['createAdapter']
  readonly createIntrospector: Dialect['createIntrospector']

  constructor (stock: Dialect, info: WrapInfo) {
    this.#stock = stock
    this.#info = info
    this.createAdapter = () => stock.createAdapter()
    this.createIntrospector = (db) => stock.createIntrospector(db)
  }

  createDriver (): Driver {
    return new LeasedDriver(this.#stock.createDriver(), this.#info)
  }

  createQueryCompiler (): QueryCompiler {
    return this.#stock.createQueryCompiler()
  }
}

/**
 * What Kysely acquires for one query or one transaction: the leased connection, and this holder's transaction on it.
 */
class Loan implements DatabaseConnection {
  readonly executeQuery: DatabaseConnection['executeQuery']
  readonly streamQuery: DatabaseConnection['streamQuery']
  transaction: WrapTransaction | undefined

  constructor (connection: DatabaseConnection) {
    this.executeQuery = connection.executeQuery.bind(connection)
    this.streamQuery = connection.streamQuery.bind(connection)
  }
}

type OnSavepoint = (
  connection: DatabaseConnection, name: string, compileQuery: QueryCompiler['compileQuery'],
) => Promise<void>

/** Methods of Kysely's drivers from 0.28 on; earlier versions don't ask for them. */
interface Savepoints {
  savepoint?: OnSavepoint
  rollbackToSavepoint?: OnSavepoint
  releaseSavepoint?: OnSavepoint
}

class LeasedDriver implements Driver {
  readonly #stock: Driver & Savepoints
  readonly #info: WrapInfo
  #connection: DatabaseConnection | undefined

  constructor (stock: Driver, info: WrapInfo) {
    this.#stock = stock
    this.#info = info
  }

  async init (...options: Parameters<Driver['init']>): Promise<void> {
    await this.#stock.init(...options)
    // Acquired once and never given back: with Kysely's driver for SQLite a query within a transaction would wait for
    // that transaction.
    this.#connection = await this.#stock.acquireConnection()
  }

  async acquireConnection (): Promise<DatabaseConnection> {
    return new Loan(this.#connection!)
  }

  async beginTransaction (loan: DatabaseConnection, settings: TransactionSettings): Promise<void> {
    (loan as Loan).transaction = await this.#info.begin(optionsOf(settings))
  }

  async commitTransaction (loan: DatabaseConnection): Promise<void> {
    await (loan as Loan).transaction!.commit()
  }

  async rollbackTransaction (loan: DatabaseConnection): Promise<void> {
    // undefined where it did not begin: Kysely 0.27 rolls back then too, and the caller is to get the error of the
    // begin.
    await (loan as Loan).transaction?.rollback()
  }

  get savepoint (): Savepoints['savepoint'] {
    return this.#stock.savepoint?.bind(this.#stock)
  }

  get rollbackToSavepoint (): Savepoints['rollbackToSavepoint'] {
    return this.#stock.rollbackToSavepoint?.bind(this.#stock)
  }

  get releaseSavepoint (): Savepoints['releaseSavepoint'] {
    return this.#stock.releaseSavepoint?.bind(this.#stock)
  }

  /** The connection belongs to the lease. */
  async releaseConnection (): Promise<void> {}

  /** As `releaseConnection`: a Kysely that is destroyed leaves the connection to the pool. */
  async destroy (): Promise<void> {}
}
