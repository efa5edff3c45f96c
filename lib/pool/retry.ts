import type { AcquireOptions, Lease, UseOptions } from '../../types/pool.js'
import { badOption, isCommitUnknown } from '../engine/errors.js'

/** What running again asks of a pool. */
export interface Retrying<C> {
  acquire (options: AcquireOptions): Promise<Lease<C>>
  /** Whether it may succeed on another connection. */
  isTransient (error: unknown): boolean
  /** Resolves after `ms`, or sooner where the pool has closed. */
  wait (ms: number): Promise<unknown>
  now (): number
  random (): number
  readonly acquireTimeout: number
  readonly backoff: { readonly min: number, readonly max: number }
}

/**
 * Calls `fn` with a connection; where it fails with a transient error, again with another one, up to `retry` times. One
 * deadline for all acquires together: once it has passed, the error is the caller's.
 *
 * @throws `FST_POOL_BAD_OPTIONS`; what `acquire` throws; what `fn` throws
 */
export async function useWithRetry<C, T> (
  pool: Retrying<C>, fn: (connection: C, lease: Lease<C>) => T | Promise<T>, options: UseOptions = {}
): Promise<T> {
  const { retry = 0, ...rest } = options
  if (!Number.isSafeInteger(retry) || retry < 0) throw badOption('retry', retry, 'an integer of at least 0')
  let pause = 0
  const deadline = pool.now() + (rest.timeout ?? pool.acquireTimeout)
  for (let again = 0; ; again++) {
    if (again > 0) await pool.wait(pause)
    // `acquire` itself says what is wrong with a timeout.
    const lease = await pool.acquire(again === 0 ? rest : { ...rest, timeout: Math.max(1, deadline - pool.now()) })
    try {
      return await fn(lease.connection, lease)
    } catch (error) {
      // The connection died while it was committing: what was done may be stored, and would be done twice.
      if (again >= retry || isCommitUnknown(error) || !pool.isTransient(error)) throw error
      pause = Math.max(1, pool.random() * Math.min(pool.backoff.max, pool.backoff.min * 2 ** again))
      if (pool.now() + pause >= deadline) throw error
      // Else the next run might get the same one.
      lease.destroy(error as Error)
    } finally {
      lease.release()
    }
  }
}
