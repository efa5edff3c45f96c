/** The part of a SQLite handle that libraries use, as better-sqlite3 and libsql have it: they are written for these. */
export interface Sqlite { prepare (sql: string): Statement }
export interface Statement {
  /** Whether it returns rows. */
  readonly reader: boolean
  run (...params: unknown[]): unknown
  all (...params: unknown[]): unknown[]
  iterate (...params: unknown[]): IterableIterator<unknown>
  /** From now on its rows are arrays. */
  raw (): Statement
}

/** The same part of node:sqlite. */
interface Native { prepare (sql: string): NativeStatement }
interface NativeStatement extends Omit<Statement, 'reader' | 'raw'> {
  columns (): unknown[]
  setReturnArrays (enabled: boolean): void
}

/** A handle whose statements behave like those of better-sqlite3, whichever driver it is of. */
export function likeBetterSqlite3 (connection: unknown): Sqlite {
  const database = connection as Native | Sqlite
  if ('pragma' in database) return database as Sqlite
  return { prepare: (sql) => new Likeness((database as Native).prepare(sql)) }
}

class Likeness implements Statement {
  readonly #statement: NativeStatement

  constructor (statement: NativeStatement) { this.#statement = statement }

  get reader (): boolean {
    return this.#statement.columns().length > 0
  }

  // Parameters may be in an array, which node:sqlite takes for named ones.
  run (...params: unknown[]): unknown {
    return this.#statement.run(...params.flat())
  }

  all (...params: unknown[]): unknown[] {
    return this.#statement.all(...params.flat())
  }

  iterate (...params: unknown[]): IterableIterator<unknown> {
    return this.#statement.iterate(...params.flat())
  }

  raw (): this {
    this.#statement.setReturnArrays(true)
    return this
  }
}
