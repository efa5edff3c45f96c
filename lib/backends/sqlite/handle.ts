/** What prepared statements of libsql and better-sqlite3 have. */
export interface SqliteStatement {
  readonly reader: boolean
  run (...params: unknown[]): { changes: number, lastInsertRowid: number | bigint }
  get (...params: unknown[]): unknown
  all (...params: unknown[]): unknown[]
  iterate (...params: unknown[]): IterableIterator<unknown>
  pluck (on?: boolean): this
  raw (on?: boolean): this
  safeIntegers (on?: boolean): this
  columns (): unknown[]
}

/**
 * What handles of libsql and better-sqlite3 have. For the rest, and for node:sqlite, type the pool as the driver that
 * you use.
 */
export interface SqliteDatabase {
  readonly name: string
  readonly memory: boolean
  readonly readonly: boolean
  readonly open: boolean
  readonly inTransaction: boolean
  prepare (sql: string): SqliteStatement
  exec (sql: string): unknown
  pragma (source: string, options?: { simple?: boolean }): unknown
  transaction<A extends unknown[], R> (fn: (...args: A) => R): SqliteTransaction<A, R>
  close (): unknown
}

/** Calls its function between BEGIN and COMMIT. */
export interface SqliteTransaction<A extends unknown[], R> {
  (...args: A): R
  deferred (...args: A): R
  immediate (...args: A): R
  exclusive (...args: A): R
}

/** A driver's class: `Database` of better-sqlite3 or libsql, `DatabaseSync` of node:sqlite. */
export type SqliteDriver<D = SqliteDatabase> = new (path: string, options?: object) => D
