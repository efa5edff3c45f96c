import createKnex from 'knex'
import type { Knex } from 'knex'
import type { Isolation } from '../../types/connector.js'
import type { WrapInfo, WrapTransaction } from '../../types/pool.js'
import { unknownSystem } from './begin.js'
import { likeBetterSqlite3 } from './native.js'

/** Knex's client for each backend. */
const clients: Readonly<Record<string, string>> = { postgresql: 'pg', mysql: 'mysql2', sqlite: 'better-sqlite3' }

/**
 * The part of Knex's clients and transactions that is used here. They have no types, but are documented for own
 * dialects.
 */
interface Client {
  readonly transacting?: boolean
  transaction (container: unknown, config: unknown, outer?: unknown): Transaction
  query (connection: unknown, query: unknown): Promise<unknown>
}
interface Transaction {
  readonly trxClient: Client
  readonly isolationLevel?: string
  readonly readOnly?: boolean
  begin (connection: unknown): Promise<unknown>
}

/** Options of Knex itself, but for the client and its pool, which are the pool's. */
export type KnexOptions = Omit<Knex.Config, 'client' | 'connection' | 'pool' | 'acquireConnectionTimeout'>

/**
 * For the option `wrap`: `request.<name>` is a Knex over the leased connection, on PostgreSQL, MySQL and SQLite.
 *
 * Knex' own transactions are the pool's: side by side on one connection they wait for each other (`acquireTimeout` ms
 * at most), and within a route's transaction they are refused with `FST_POOL_NOT_SUPPORTED`, since that one is theirs
 * already.
 *
 * @throws `FST_POOL_BAD_OPTIONS` when the first connection is made (at `register`, unless `startup` says later), on
 * another backend
 */
export function knex<Row extends {} = any> (
  options: KnexOptions = {}
): (connection: unknown, info: WrapInfo) => Knex<Row> {
  return (connection, info) => {
    const name = clients[info.system]
    if (name === undefined) throw unknownSystem('knex', info, ['postgresql', 'mysql', 'sqlite'])
    let raw = connection
    // Knex works with the object inside of mysql2's promise connection.
    if (info.system === 'mysql') raw = (connection as { connection: unknown }).connection
    if (info.system === 'sqlite') raw = likeBetterSqlite3(connection)
    const config = { ...(info.system === 'sqlite' && { useNullAsDefault: true }), ...options }
    const Base = createKnex({ ...config, client: name }).client.constructor as new (config: object) => Client
    return createKnex<Row>({ ...config, client: leased(Base, raw, info) as unknown as typeof Knex.Client })
  }
}

export default knex

/** Knex's client of that database, with this one connection and the pool's transactions. */
function leased (Base: new (config: object) => Client, raw: unknown, info: WrapInfo) {
  /** The pool's transaction, by the client that Knex makes for each outermost transaction. */
  const begun = new WeakMap<Client, WrapTransaction>()
  return class Leased extends Base {
    async acquireConnection () {
      return raw
    }

    /** The connection belongs to the lease. */
    async releaseConnection () {}

    override transaction (container: unknown, config: unknown, outer?: unknown): Transaction {
      const transaction = super.transaction(container, config, outer)
      // A transaction within another is a savepoint of Knex's own.
      if (outer != null) return transaction
      // Knex calls `begin` in a later turn, when its own client for the transaction is there.
      transaction.begin = async () => {
        const { isolationLevel, readOnly, trxClient } = transaction
        begun.set(trxClient, await info.begin({
          ...(isolationLevel !== undefined && { isolation: isolationLevel as Isolation }),
          ...(readOnly === true && { readOnly }),
        }))
      }
      return transaction
    }

    override async query (connection: unknown, query: unknown): Promise<unknown> {
      const transaction = typeof query === 'string' ? begun.get(this) : undefined
      if (transaction !== undefined && query === 'COMMIT;') return await transaction.commit()
      if (transaction !== undefined && query === 'ROLLBACK') return await transaction.rollback()
      return await super.query(connection, query)
    }
  }
}
