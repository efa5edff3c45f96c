import { randomUUID } from 'node:crypto'
import { PoolError } from '../../engine/errors.js'
import type { Transaction, TransactionOptions } from '../../../types/connector.js'
import type { Handle } from './dialect.js'
import { patiently } from './lock.js'

/** What a transaction asks of its session. */
export interface Host {
  readonly connection: Handle
  /** The message for a write, where the handle only reads. */
  readonly refusal: string | undefined
  exec (sql: string): unknown
  readonly isOpen: boolean
  readonly inTransaction: boolean
  /** Ends what is under way: iterators, and the transaction. */
  endWork (): void
  endIterators (): void
  /** Refuses writes, until `left`. */
  readOnly (): void
  /** One of the pool's transactions is open from now on. */
  entered (): void
  /** The pool knows that the transaction has ended, or could not begin. */
  left (): void
  /** The error with which SQLite ended the transaction. */
  readonly endedBy: unknown
  /** Another process has the lock. */
  met (error: unknown): void
}

/**
 * Begins a transaction of the pool's.
 *
 * All of a transaction is within a savepoint of random name: its mark, which dies with it. A COMMIT goes out only where
 * the mark is still there, so that it can't commit a transaction which somebody else began in its place.
 */
export async function begin (
  host: Host, options: TransactionOptions, signal: AbortSignal
): Promise<Transaction<Handle>> {
  const { readOnly = false } = options
  if (!readOnly && host.refusal !== undefined) throw new PoolError('FST_POOL_NOT_SUPPORTED', host.refusal)
  if (readOnly && host.refusal === undefined) host.readOnly()
  const mark = markOf()
  try {
    // A transaction that may write takes the lock now: later, what it has read may be out of date
    // (SQLITE_BUSY_SNAPSHOT), and no waiting helps.
    await patiently(() => attempt(host, `BEGIN ${readOnly ? 'DEFERRED' : 'IMMEDIATE'}; SAVEPOINT ${mark}`), signal)
  } catch (error) {
    if (host.isOpen) host.left()
    throw error
  }
  host.entered()
  return {
    connection: host.connection,
    // COMMIT is one synchronous call: it is done, or not done.
    inDoubt: false,
    commit: async () => {
      await patiently(() => commit(host, mark))
      host.left()
    },
    rollback: async () => { if (host.isOpen) host.endWork() },
    savepoint: async () => savepoint(host),
  }
}

function commit (host: Host, mark: string): void {
  release(host, mark)
  try {
    attempt(host, 'COMMIT')
  } catch (error) {
    // COMMIT is tried again in a later turn of the event loop, and somebody may have ended the transaction by then.
    if (isUnderWay(host)) host.exec(`SAVEPOINT ${mark}`)
    throw error
  }
}

function savepoint (host: Host): Transaction<Handle> {
  // Without an open transaction SAVEPOINT would begin one.
  if (!isUnderWay(host)) throw ended(host.endedBy)
  const mark = markOf()
  host.exec(`SAVEPOINT ${mark}`)
  return {
    connection: host.connection,
    commit: async () => { release(host, mark) },
    rollback: async () => {
      if (!isUnderWay(host)) return
      host.endIterators()
      try {
        host.exec(`ROLLBACK TO ${mark}; RELEASE ${mark}`)
      } catch (error) {
        // It is not open any more: there is nothing to undo.
        if (!isNoSavepoint(error)) throw error
      }
    },
    savepoint: async () => savepoint(host),
  }
}

function release (host: Host, mark: string): void {
  if (!isUnderWay(host)) throw ended(host.endedBy)
  try {
    host.exec(`RELEASE ${mark}`)
  } catch (error) {
    throw isNoSavepoint(error) ? ended(undefined) : error
  }
}

function attempt (host: Host, sql: string): void {
  try {
    host.exec(sql)
  } catch (error) {
    host.met(error)
    throw error
  }
}

function isUnderWay (host: Host): boolean {
  // In this order: asking a closed handle of libsql for its transaction aborts the process.
  return host.endedBy === undefined && host.isOpen && host.inTransaction
}

/** A name that nobody can guess. */
function markOf (): string {
  return `"fastify_pool_${randomUUID()}"`
}

/** @param cause the error with which SQLite ended the transaction; undefined: a borrower's statement did */
export function ended (cause: unknown): PoolError {
  const why = cause === undefined ? 'by a COMMIT or ROLLBACK that is not the pool\'s' : 'by SQLite, after an error'
  return new PoolError('FST_POOL_TRANSACTION_ENDED',
    `the transaction is no longer open: it was ended ${why}`, { cause })
}

function isNoSavepoint (error: unknown): boolean {
  return error instanceof Error && error.message.startsWith('no such savepoint')
}
