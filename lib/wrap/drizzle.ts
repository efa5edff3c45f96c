import type { WrapInfo, WrapTransaction } from '../../types/pool.js'
import { requirePackage } from '../backends/shared/driver.js'
import { PoolError, fieldOf, isPoolError } from '../engine/errors.js'
import { optionsOf, unknownSystem, type LibraryOptions } from './begin.js'
import { likeBetterSqlite3, type Sqlite } from './native.js'

/**
 * `drizzle` of `drizzle-orm/node-postgres`, `/mysql2` or `/sqlite-proxy`: makes a database of a driver's connection.
 */
type Make<T> = (...args: never) => T

/** The part of Drizzle's databases that is used here. */
interface Database {
  session: Session
  transaction (fn: (tx: unknown) => unknown, config?: Config): Promise<unknown>
  $client?: unknown
}

interface Session { readonly client: unknown, transaction (fn: (tx: unknown) => unknown): Promise<unknown> }
interface Config extends LibraryOptions {
  readonly deferrable?: boolean
  readonly withConsistentSnapshot?: boolean
  readonly behavior?: string
}

/** Options of Drizzle itself (`schema`, `casing`, `logger`, ...), and where it comes from. */
export interface DrizzleOptions<T> {
  /**
   * `drizzle` of `drizzle-orm/node-postgres`, `drizzle-orm/mysql2` or `drizzle-orm/sqlite-proxy`: where it can't be
   * required by name (in a bundle), and for its type. Default: the one for the pool's backend.
   */
  readonly drizzle?: Make<T>
  readonly [option: string]: unknown
}

/**
 * For the option `wrap`: `request.<name>` is a Drizzle database over the leased connection, on PostgreSQL, MySQL and
 * SQLite.
 *
 * Drizzle's own transactions are the pool's: side by side on one connection they wait for each other (`acquireTimeout`
 * ms at most), and within a route's transaction they are refused with `FST_POOL_NOT_SUPPORTED`, since that one is
 * theirs already. So are `deferrable` and `withConsistentSnapshot`.
 *
 * @throws `FST_POOL_BAD_OPTIONS` when the first connection is made (at `register`, unless `startup` says later), on
 * another backend; `FST_POOL_MISSING_DRIVER` without drizzle-orm
 */
export function drizzle<T = any> (options: DrizzleOptions<T> = {}): (connection: unknown, info: WrapInfo) => T {
  const { drizzle: given, ...config } = options
  return (connection, info) => {
    const backend = backends[info.system]
    if (backend === undefined) throw unknownSystem('drizzle', info, ['postgresql', 'mysql', 'sqlite'])
    const make = (given ?? installed(backend.module)) as (client: unknown, config: object) => Database
    const mode = info.system === 'mysql' && { mode: 'default' }
    const database = make(backend.client(connection), { ...mode, ...config })
    database.$client = connection
    const { session } = database
    database.transaction = async (fn, config = {}) => {
      for (const name of ['deferrable', 'withConsistentSnapshot'] as const) {
        if (config[name] !== true) continue
        const message = `drizzle's transaction option ${name} is not one of pool '${info.pool}'`
        throw new PoolError('FST_POOL_NOT_SUPPORTED', `${message}: it has isolationLevel and accessMode`)
      }
      const transaction = await info.begin(optionsOf(config))
      const end = new End(transaction)
      try {
        // Drizzle runs a whole transaction on its session's client. This one hands the texts of BEGIN, COMMIT and
        // ROLLBACK to the pool.
        const own = Object.create(session, { client: { value: backend.client(connection, end.take) } }) as Session
        return await own.transaction(end.behind(fn))
      } catch (error) {
        throw end.told(error)
      } finally {
        // Does nothing where the library has ended the transaction. Otherwise nothing of it may stay.
        await transaction.rollback()
      }
    }
    return database as T
  }
}

export default drizzle

function installed (module: string): unknown {
  return (requirePackage(module, { backend: 'drizzle' }) as { readonly drizzle: unknown }).drizzle
}

/**
 * Carries a statement out by the pool where it begins or ends the transaction. undefined: it is not such a statement.
 */
type Ender = (text: string) => Promise<void> | undefined

/** Tells the texts of one transaction that are the library's from those of its user. */
class End {
  readonly #transaction: WrapTransaction
  #turn: 'begin' | 'user' | 'end' = 'begin'
  #failure: unknown

  constructor (transaction: WrapTransaction) { this.#transaction = transaction }

  /** The user's function, which runs between BEGIN and the transaction's end. */
  behind (fn: (tx: unknown) => unknown): (tx: unknown) => Promise<unknown> {
    return async (tx) => {
      this.#turn = 'user'
      try {
        return await fn(tx)
      } finally {
        this.#turn = 'end'
      }
    }
  }

  readonly take: Ender = (text) => {
    if (this.#turn === 'begin') return Promise.resolve()
    if (this.#turn === 'user') return undefined
    switch (text) {
      case 'commit': return this.#transaction.commit().catch((error: unknown) => {
        this.#failure = error
        throw error
      })
      case 'rollback': return this.#transaction.rollback()
      default: return undefined
    }
  }

  /**
   * The pool's own error of a commit, where the library has made an error of its own around it: callers look at its
   * code.
   */
  told (error: unknown): unknown {
    // Anything can be thrown, also undefined.
    const cause = fieldOf(error, 'cause')
    return isPoolError(cause) && cause === this.#failure ? cause : error
  }
}

interface Backend {
  readonly module: string
  /** What Drizzle gets as its driver's client. */
  client (connection: unknown, ender?: Ender): unknown
}

/** Which methods of a driver's connection send statements, and how. */
interface Methods {
  readonly methods: readonly string[]
  /** Of a query that is given as an object: where its text is. */
  readonly key: string
  /** What the library gets where the pool has carried the statement out. */
  readonly nothing: unknown
}

/** A driver's connection whose methods first ask whether a statement ends the transaction. */
function ending (connection: unknown, ender: Ender | undefined, { methods, key, nothing }: Methods): unknown {
  if (ender === undefined) return connection
  const own = connection as Record<string, (...args: unknown[]) => unknown>
  return Object.create(own, Object.fromEntries(methods.map((name) => [name, {
    value: (query: string | Readonly<Record<string, string>>, ...rest: unknown[]) => {
      const text = typeof query === 'string' ? query : query[key]!
      return ender(text)?.then(() => nothing) ?? own[name]!(query, ...rest)
    },
  }])))
}

const backends: Readonly<Record<string, Backend>> = {
  postgresql: {
    module: 'drizzle-orm/node-postgres',
    client: (connection, ender) => ending(connection, ender, {
      methods: ['query'], key: 'text', nothing: { rows: [], rowCount: 0, fields: [] },
    }),
  },
  mysql: {
    module: 'drizzle-orm/mysql2',
    client: (connection, ender) => ending(connection, ender, {
      methods: ['query', 'execute'], key: 'sql', nothing: [{ affectedRows: 0 }, []],
    }),
  },
  sqlite: {
    module: 'drizzle-orm/sqlite-proxy',
    client: (connection, ender) => async (sql: string, params: unknown[], method: string) => {
      const ended = ender?.(sql)
      if (ended === undefined) return runSqlite(likeBetterSqlite3(connection), sql, params, method)
      await ended
      return { rows: [] }
    },
  },
}

/** One statement, in the form in which Drizzle's proxy wants its rows. */
function runSqlite (database: Sqlite, sql: string, params: unknown[], method: string): { rows: unknown } {
  const statement = database.prepare(sql)
  if (!statement.reader) {
    statement.run(...params)
    return { rows: [] }
  }
  const rows = statement.raw().all(...params)
  return { rows: method === 'get' ? rows[0] : rows }
}
