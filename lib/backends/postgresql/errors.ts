import { socketCodes, somewhere } from '../shared/failures.js'

export const readOnly = '25006'

/** What the server says of an error, besides. */
export type Failed = Error & { readonly code?: string, readonly routine?: string }

/**
 * Of a prepared statement: its result is another one now (0A000), it is not there (26000), it is there already (42P05),
 * a type of it is not there any more (XX000, 42704). Where it is said of something else, a statement of the driver's is
 * prepared once more than it had to be.
 */
export const outdated: ReadonlySet<unknown> = new Set(['0A000', '26000', '42P05', 'XX000', '42704'])

/**
 * Of the server: it ends (57P01), a process of it crashed (57P02), it is not up yet (57P03). Of the socket, once it was
 * connected.
 */
const passing: ReadonlySet<unknown> = new Set([readOnly, '57P01', '57P02', '57P03', ...socketCodes])

const ofTheDriver = /^Connection terminated\b|^Client .+ is not queryable$/

export function isPassing (error: unknown): boolean {
  return somewhere(error, ({ code, severity, message }) => {
    if (passing.has(code)) return true
    // Class 08 is of the connection, but 08P01 is also said of a parameter too many.
    if (typeof code === 'string' && /^08...$/.test(code)) return code !== '08P01' || severity === 'FATAL'
    // pg's own have no code.
    return code === undefined && typeof message === 'string' && ofTheDriver.test(message)
  })
}

export interface Coded { readonly code?: unknown }

/**
 * The server does not know either what became of a commit: transaction_resolution_unknown,
 * statement_completion_unknown.
 */
export const unresolved: ReadonlySet<unknown> = new Set(['08007', '40003'])

/** A serialization failure or a deadlock. */
export function isConflict (error: unknown): boolean {
  return somewhere(error, ({ code }) => code === '40001' || code === '40P01')
}
