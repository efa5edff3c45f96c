import { PoolError } from '../../engine/errors.js'

/**
 * Gives a driver's connection a `release` that says what to do instead: code that comes from a pool of the driver's own
 * calls it, and a missing method would tell nothing. Not enumerable, so that no reset takes it for a borrower's.
 */
export function refuseRelease (connection: object): void {
  Object.defineProperty(connection, 'release', { value: refuse, writable: true, configurable: true })
}

function refuse (): never {
  throw new PoolError('FST_POOL_NOT_SUPPORTED', 'this connection goes back to its pool by itself, when the request ' +
    'or the function of use() ends: leave out release(). What acquire() gave is released by lease.release()')
}
