import { somewhere } from '../shared/failures.js'
import type { SqliteDriver } from './handle.js'

/** What every driver's prepared statements have. */
export interface Statement {
  run (...params: unknown[]): unknown
  get (...params: unknown[]): unknown
  all (...params: unknown[]): unknown[]
  iterate (...params: unknown[]): IterableIterator<unknown>
}

/** What every driver's handles have. */
export interface Handle {
  prepare (sql: string, ...more: unknown[]): Statement
  exec (sql: string): unknown
  close (): unknown
}

export type DriverName = 'better-sqlite3' | 'libsql' | 'node:sqlite'

/** Where the drivers differ. */
export interface Dialect {
  readonly name: DriverName
  /**
   * libsql resets a statement only when it is run again: not when it met a lock, nor when its rows were not read to the
   * end. Until then it is under way, and what others write on the handle is committed only when it ends. (With
   * node:sqlite that is so of iterators alone, which can be told that nobody wants the rest.)
   */
  readonly leavesOpen: boolean
  /** The handle refuses all else while an iterator is open, so nobody can write meanwhile. */
  readonly oneAtATime: boolean
  /** Methods of a handle that leave nothing on it. All others count as leaving what can't be read back. */
  readonly leaveNothing: ReadonlySet<string>
  /** The driver's options, of those that were given. */
  options (given: Readonly<Record<string, unknown>>): Record<string, unknown>
  isOpen (handle: Handle): boolean
  inTransaction (handle: Handle): boolean
  /** Whether it gives rows. */
  isReader (statement: Statement): boolean
}

interface Usual extends Handle { readonly open: boolean, readonly inTransaction: boolean }
interface UsualStatement extends Statement { readonly reader: boolean }

const usual = {
  leaveNothing: new Set([
    'prepare', 'exec', 'pragma', 'transaction', 'close', 'interrupt', 'backup', 'serialize', 'sync', 'syncUntil',
    'maxWriteReplicationIndex',
  ]),
  // The busy timeout in ms, during which SQLite blocks the event loop.
  options: (given: Readonly<Record<string, unknown>>) => ({ ...given, timeout: given.timeout ?? 0 }),
  isOpen: (handle: Handle) => (handle as Usual).open,
  inTransaction: (handle: Handle) => (handle as Usual).inTransaction,
  isReader: (statement: Statement) => (statement as UsualStatement).reader,
}

const betterSqlite3: Dialect = { ...usual, name: 'better-sqlite3', leavesOpen: false, oneAtATime: true }
const libsql: Dialect = { ...usual, name: 'libsql', leavesOpen: true, oneAtATime: false }

interface Native extends Handle { readonly isOpen: boolean, readonly isTransaction: boolean }
interface NativeStatement extends Statement { columns (): unknown[] }

const node: Dialect = {
  ...usual,
  name: 'node:sqlite',
  leavesOpen: false,
  oneAtATime: false,
  leaveNothing: new Set(['prepare', 'exec', 'close', 'location', 'applyChangeset', 'serialize']),
  isOpen: (handle) => (handle as Native).isOpen,
  inTransaction: (handle) => (handle as Native).isTransaction,
  isReader: (statement) => (statement as NativeStatement).columns().length > 0,
}

/** Found by what the class has, since it may be a subclass, or an instrumented copy. */
export function dialectOf ({ prototype }: SqliteDriver<unknown>): Dialect {
  if (!('pragma' in prototype)) return node
  return 'maxWriteReplicationIndex' in prototype ? libsql : betterSqlite3
}

/** The first column of a row, whichever shape a row has. */
export function first (row: unknown): unknown {
  return Object.values(row as object)[0]
}

/** SQLite's primary result code of a driver's error, as a name: 'SQLITE_BUSY'. */
export function codeOf (error: unknown): string {
  if (!(error instanceof Error)) return ''
  const { code, errcode } = error as { readonly code?: unknown, readonly errcode?: unknown }
  // node:sqlite has the extended code, as a number.
  if (code === 'ERR_SQLITE_ERROR') return nodeCodes[Number(errcode) & 0xff] ?? ''
  return typeof code === 'string' ? code : ''
}

const nodeCodes: Readonly<Record<number, string>> = {
  5: 'SQLITE_BUSY', 8: 'SQLITE_READONLY', 11: 'SQLITE_CORRUPT', 26: 'SQLITE_NOTADB',
}

/** The path of the file can't be opened by anybody: its directory is missing, or it is a directory. */
export class Unopenable extends Error {}

/** The file can't be opened, is no database, or is damaged. Not SQLITE_CANTOPEN: too many files may be open. */
export function isPermanent (error: unknown): boolean {
  return somewhere(error, (failure) =>
    failure instanceof Unopenable || /^SQLITE_(?:NOTADB|CORRUPT)(?:_|$)/.test(codeOf(failure)))
}

/** Also SQLITE_BUSY_SNAPSHOT: a transaction wants to write after others have written to what it read. */
export function isBusy (error: unknown): boolean {
  return /^SQLITE_BUSY(_|$)/.test(codeOf(error))
}
