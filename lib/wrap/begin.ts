import type { Isolation, TransactionOptions } from '../../types/connector.js'
import type { WrapInfo } from '../../types/pool.js'
import { PoolError } from '../pool/errors.js'

/** What a library calls the characteristics of its transactions. */
export interface LibraryOptions {
  readonly isolationLevel?: string | undefined
  readonly accessMode?: string | undefined
}

/** As the pool has it. A level that the database has not is refused by the pool. */
export function optionsOf ({ isolationLevel, accessMode }: LibraryOptions = {}): TransactionOptions {
  return {
    ...(isolationLevel !== undefined && { isolation: isolationLevel as Isolation }),
    ...(accessMode === 'read only' && { readOnly: true }),
  }
}

/** An adapter that does not know this database. */
export function unknownSystem (adapter: string, { system }: WrapInfo, known: readonly string[]): PoolError {
  const message = `option wrap is ${adapter}(), which works on ${known.join(', ')}: this is ${system}`
  return new PoolError('FST_POOL_BAD_OPTIONS', message)
}
