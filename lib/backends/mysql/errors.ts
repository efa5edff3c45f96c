import type { FailureKind } from '../../../types/connector.js'
import { isHopeless, kindBy, socketCodes, somewhere, type Failure } from '../shared/failures.js'

/**
 * Whether the error is the server's answer to a statement. An error by which the server ends the connection is none.
 */
export function isAnswer (error: unknown): boolean {
  const { errno, sqlState } = error as { readonly errno?: unknown, readonly sqlState?: unknown }
  return sqlState !== undefined && !endings.has(errno)
}

export const errors = {
  /** ER_ILLEGAL_HA: every write fails with it after the reset of a prepared XA transaction. */
  illegalHandler: 1031,
  syntax: 1064,
  accessDenied: 1227,
  /** ER_UNKNOWN_STMT_HANDLER */
  unknownStatement: 1243,
  optionPrevents: 1290,
  /** ER_XAER_RMFAIL: refused in the present state of an XA transaction. */
  xaState: 1399,
  /** ER_NEED_REPREPARE */
  needsReprepare: 1615,
  readOnlyTransaction: 1792,
  readOnlyMode: 1836,
} as const

/**
 * 1290 is also raised for other options, so its text is searched for the option's name, which is the same in all
 * languages.
 */
export function isReadOnly (errno: unknown, text: () => string): boolean {
  return errno === errors.readOnlyMode || (errno === errors.optionPrevents && /read[-_]only/i.test(text()))
}

/**
 * ER_CHECKREAD (MariaDB's snapshot isolation), ER_LOCK_DEADLOCK, ER_TRANSACTION_ROLLBACK_DURING_COMMIT (group
 * replication). Not ER_LOCK_WAIT_TIMEOUT: by default it undoes one statement and not the transaction, and a caller who
 * waited for 50 s should not wait again unasked.
 */
const conflicts: ReadonlySet<unknown> = new Set([1020, 1213, 3101])

/**
 * The server shuts down (1053 ER_SERVER_SHUTDOWN, 3032 ER_SERVER_OFFLINE_MODE) or has ended the connection (1927
 * ER_CONNECTION_KILLED, 3169 ER_SESSION_WAS_KILLED, 4031 ER_CLIENT_INTERACTION_TIMEOUT); a proxy has lost its own
 * connection (2006, 2013).
 */
const endings: ReadonlySet<unknown> = new Set([1053, 1927, 2006, 2013, 3032, 3169, 4031])

/**
 * 1792 also where the borrower himself asked for read only: a second run is no use then, and no harm.
 *
 * Not 1317 ER_QUERY_INTERRUPTED: somebody cancelled that statement on purpose. Not 1040 and 1203: connecting callers
 * get those.
 */
const passingNumbers: ReadonlySet<unknown> = new Set([...endings, errors.readOnlyTransaction])

/**
 * Codes of a socket that was connected. Not PROTOCOL_SEQUENCE_TIMEOUT, by which mysql2 gives up a query that has a
 * `timeout`.
 */
const passingCodes: ReadonlySet<unknown> = new Set(['PROTOCOL_CONNECTION_LOST', ...socketCodes])

const closedState = /^Can't (?:add new command when connection is|write) in closed state$/

function isPassingOne ({ code, errno, message }: Failure): boolean {
  if (passingNumbers.has(errno) || passingCodes.has(code) || isReadOnly(errno, () => String(message))) return true
  // mysql2's own errors have no code.
  return code === undefined && typeof message === 'string' && closedState.test(message)
}

/**
 * The connection died or was ended, its server shuts down, or it takes no writes. Not what connecting callers get: the
 * pool retries connects by itself.
 */
export function isPassing (error: unknown): boolean {
  return somewhere(error, isPassingOne)
}

export function isConflict (error: unknown): boolean {
  return somewhere(error, ({ errno }) => conflicts.has(errno))
}

/**
 * The server refuses the user: 1044 (not for this database), 1045 (the password), 1129 (his host is blocked), 1130 (his
 * host is not allowed), 1251 and 1524 (how he logs in is not known), 1698 (he may not log in by a password), 1862 (the
 * password has expired), 3118 and 4151 (he is locked), 3159 (he must use TLS). Or it has no such database: 1049. Not
 * 1040, 1203 and 1226 (too many connections), which pass.
 */
const refusals: ReadonlySet<unknown> = new Set([
  1044, 1045, 1049, 1129, 1130, 1251, 1524, 1698, 1862, 3118, 3159, 4151,
])

/** mysql2's own codes: TLS is wanted and refused; it does not know how the server wants the user to log in. */
const unready: ReadonlySet<unknown> = new Set([
  'HANDSHAKE_NO_SSL_SUPPORT', 'AUTH_SWITCH_PLUGIN_ERROR', 'MYSQL_CLEAR_PASSWORD_NOT_ENABLED',
])

export function isPermanent (error: unknown): boolean {
  return isHopeless(error, ({ code, errno, message }) => refusals.has(errno) || unready.has(code) ||
    // mysql2 replaces the code of a certificate that is not trusted.
    (code === 'HANDSHAKE_SSL_ERROR' && /certificate/i.test(String(message))))
}

/** The server's wait_timeout, as MySQL tells it since 8.0.24 (ER_CLIENT_INTERACTION_TIMEOUT). MariaDB only hangs up. */
export function isIdleTimeout (error: unknown): boolean {
  return somewhere(error, ({ code, errno }) =>
    errno === 4031 || code === 4031 || code === 'ER_CLIENT_INTERACTION_TIMEOUT')
}

/**
 * Full: 1040 (the server), 1203 and 1226 (the user's own limit). No such database: 1049. It shuts down: 1053, 3032. All
 * other refusals are the user's.
 */
export function kindOf (error: unknown): FailureKind | undefined {
  return kindBy(error, ({ code, errno }) => {
    if (errno === 1040 || errno === 1203 || errno === 1226) return 'full'
    if (errno === 1049) return 'database'
    if (errno === 1053 || errno === 3032) return 'starting'
    if (code === 'HANDSHAKE_NO_SSL_SUPPORT' || code === 'HANDSHAKE_SSL_ERROR' || errno === 3159) return 'tls'
    return refusals.has(errno) || unready.has(code) ? 'login' : undefined
  })
}
