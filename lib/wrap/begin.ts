import type { Isolation, TransactionOptions } from '../../types/connector.js'
import type { WrapInfo } from '../../types/pool.js'
import { PoolError } from '../engine/errors.js'

/** A library's names for the characteristics of its transactions. */
export interface LibraryOptions {
  readonly isolationLevel?: string | undefined
  readonly accessMode?: string | undefined
}

/** The pool's options for them. The pool refuses a level that the database has not. */
export function optionsOf ({ isolationLevel, accessMode }: LibraryOptions = {}): TransactionOptions {
  return {
    ...(isolationLevel !== undefined && { isolation: isolationLevel as Isolation }),
    ...(accessMode === 'read only' && { readOnly: true }),
  }
}

/** The error of an adapter on a database that it does not know. */
export function unknownSystem (adapter: string, { system }: WrapInfo, known: readonly string[]): PoolError {
  return new PoolError('FST_POOL_BAD_OPTIONS',
    `option wrap is ${adapter}(), which works on ${known.join(', ')}: this is ${system}`)
}
