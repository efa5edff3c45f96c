import { tracingChannel } from 'node:diagnostics_channel'
import type { AcquireOptions, HolderLabel, Lease } from '../../types/pool.js'

/** What subscribers of the acquires are told: later with the lease, or the error. */
interface Acquiring {
  readonly pool: string
  readonly holder: HolderLabel | undefined
  result?: unknown
  error?: unknown
}

/** The tracing channel of all acquires of the process: asked for subscribers before a call is traced. */
export const acquires = tracingChannel<unknown, Acquiring>('fastify-pool:acquire')

/** Calls an acquire, and tells the subscribers of its begin and end. */
export function trace<C> (
  pool: string, options: AcquireOptions | undefined, acquire: () => Promise<Lease<C>>
): Promise<Lease<C>> {
  return acquires.tracePromise(acquire, { pool, holder: options?.holder }) as Promise<Lease<C>>
}
