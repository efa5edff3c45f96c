import type { AcquireOptions, Lease, UseOptions } from '../../types/pool.js'
import { badOption, isCommitUnknown } from '../engine/errors.js'
import { leftOf } from '../engine/time.js'
import { checkNames } from './calls.js'

/** What `useWithRetry` asks of a pool. */
export interface Retrying<C> {
  acquire (options: AcquireOptions): Promise<Lease<C>>
  /** Whether a call that failed with this error may succeed on another connection. */
  isTransient (error: unknown): boolean
  /** Resolves after `ms`, or when the pool closes. */
  wait (ms: number): Promise<unknown>
  now (): number
  random (): number
  readonly acquireTimeout: number
  readonly backoff: { readonly min: number, readonly max: number }
}

/**
 * Calls `fn` with a connection. Where it fails with a transient error, `fn` is called again with another connection, up
 * to `retry` times. All acquires together have one deadline; after it the error is thrown.
 *
 * @throws `FST_POOL_BAD_OPTIONS`; what `acquire` throws; what `fn` throws
 */
export async function useWithRetry<C, T> (
  pool: Retrying<C>, fn: (connection: C, lease: Lease<C>) => T | Promise<T>, options: UseOptions = {}
): Promise<T> {
  checkNames('use', options)
  const { retry = 0, ...rest } = options
  if (!Number.isSafeInteger(retry) || retry < 0) throw badOption('retry', retry, 'an integer of at least 0')
  let pause = 0
  const deadline = pool.now() + (rest.timeout ?? pool.acquireTimeout)
  for (let again = 0; ; again++) {
    if (again > 0) await pool.wait(pause)
    // `acquire` checks the timeout.
    const lease = await pool.acquire(again === 0 ? rest : { ...rest, timeout: leftOf(deadline, pool.now()) })
    try {
      return await fn(lease.connection, lease)
    } catch (error) {
      // After an unknown commit, everything may be stored already, and would be done twice.
      if (again >= retry || isCommitUnknown(error) || !pool.isTransient(error)) throw error
      pause = Math.max(1, pool.random() * Math.min(pool.backoff.max, pool.backoff.min * 2 ** again))
      if (pool.now() + pause >= deadline) throw error
      // Destroyed, so that the next run can't get the same connection.
      lease.destroy(error as Error)
    } finally {
      lease.release()
    }
  }
}
