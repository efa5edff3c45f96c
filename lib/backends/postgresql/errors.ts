import type { FailureKind } from '../../../types/connector.js'
import { isHopeless, kindBy, socketCodes, somewhere } from '../shared/failures.js'

export const readOnly = '25006'

/** Fields of a server's error. */
export type Failed = Error & { readonly code?: string, readonly routine?: string }

/**
 * SQLSTATEs of a prepared statement that is out of date: its result type changed (0A000), it does not exist (26000), it
 * exists already (42P05), a type of it is gone (XX000, 42704). They are also used for other errors; then a statement of
 * the driver's is prepared once more than needed.
 */
export const outdated: ReadonlySet<unknown> = new Set(['0A000', '26000', '42P05', 'XX000', '42704'])

/**
 * From the server: it shuts down (57P01), one of its processes crashed (57P02), it is not up yet (57P03). From the
 * socket, once it was connected: Node's codes. Ours: the statement stood behind a joined reset that failed.
 */
const passing: ReadonlySet<unknown> =
  new Set([readOnly, '57P01', '57P02', '57P03', 'FST_POOL_RESET_FAILED', ...socketCodes])

const ofTheDriver = /^Connection terminated\b|^Client .+ is not queryable$/

export function isPassing (error: unknown): boolean {
  return somewhere(error, ({ code, severity, message }) => {
    if (passing.has(code)) return true
    // Class 08 is about the connection, but 08P01 is also raised for one parameter too many.
    if (typeof code === 'string' && /^08...$/.test(code)) return code !== '08P01' || severity === 'FATAL'
    // pg's own errors have no code.
    return code === undefined && typeof message === 'string' && ofTheDriver.test(message)
  })
}

/**
 * The server refuses the user (28000, 28P01), or has no such database (3D000). Not 53300 (too many connections) nor
 * 57P03 (it is not up yet), which pass. 42501 too, where it ends the connection: the user may not use the database.
 */
const refusals: ReadonlySet<unknown> = new Set(['28000', '28P01', '3D000'])

/** pg's own errors, which have no code: a password is asked for and none was given; TLS is wanted and refused. */
const unready =
  /^SASL: SCRAM-SERVER-FIRST-MESSAGE: client password must be|^The server does not support SSL connections$/

export function isPermanent (error: unknown): boolean {
  return isHopeless(error, ({ code, severity, message }) => refusals.has(code) ||
    (code === '42501' && severity === 'FATAL') || (code === undefined && unready.test(String(message))))
}

/** The server's idle_session_timeout (57P05). */
export function isIdleTimeout (error: unknown): boolean {
  return somewhere(error, ({ code }) => code === '57P05')
}

/** Too many connections: of the server, of the role or the database (53300); of a proxy too. */
const kinds: Readonly<Record<string, FailureKind>> = {
  28000: 'login',
  '28P01': 'login',
  42501: 'login',
  '3D000': 'database',
  53300: 'full',
  '57P03': 'starting',
  '57P01': 'starting',
}

/** Messages of pg's own, and of proxies that answer with a code of their own. */
export function kindOf (error: unknown): FailureKind | undefined {
  return kindBy(error, ({ code, message }) => {
    if (typeof code === 'string' && Object.hasOwn(kinds, code)) return kinds[code]
    const text = String(message)
    if (/^The server does not support SSL connections$|no pg_hba\.conf entry.*no encryption/.test(text)) return 'tls'
    if (/^SASL: /.test(text)) return 'login'
    return /no more connections allowed|max_client_conn|too many clients/.test(text) ? 'full' : undefined
  })
}

/**
 * transaction_resolution_unknown, statement_completion_unknown: the server does not know either whether it committed.
 */
export const unresolved: ReadonlySet<unknown> = new Set(['08007', '40003'])

/** A serialization failure or a deadlock. */
export function isConflict (error: unknown): boolean {
  return somewhere(error, ({ code }) => code === '40001' || code === '40P01')
}
