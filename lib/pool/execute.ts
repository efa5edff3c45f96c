// `execute`: one call of the driver's, on a connection that goes back by itself.
import type { Connector } from '../../types/connector.js'
import type { CallOptions, Lease, PoolFace } from '../../types/pool.js'
import { PoolError, badOption } from '../engine/errors.js'
import { methodOf, type Method } from '../engine/method.js'
import { checkNames } from './calls.js'

/** What only handles have: cursors and streams, iterators, what a driver sends by itself, statements and batches. */
const handleMethods = [Symbol.asyncIterator, 'pipe', 'next', 'submit', 'execute', 'exec'] as const

/**
 * @throws what `use` throws; `FST_POOL_NOT_SUPPORTED` where there is no such method, or it gave something that lives on
 * the connection
 */
export async function execute<C> (
  pool: PoolFace<C>, call: string | CallOptions<string>, args: readonly unknown[]
): Promise<unknown> {
  if (typeof call === 'object') checkNames('execute', call)
  const { method, ...options } = typeof call === 'object' ? call : { method: call }
  if (typeof method !== 'string') throw badOption('method', method, 'the name of a method')
  return await pool.use(async (connection, lease) => {
    const fn = callOf(pool.backend, lease, connection, method)
    if (fn === undefined) throw new PoolError('FST_POOL_NOT_SUPPORTED', `execute: there is no call '${method}'`)
    const answer = fn(...args)
    // Methods such as `on` give the connection itself.
    const lives = (value: unknown) => value === connection || value === lease.raw || isHandle(value)
    // Looked at before it is awaited, too: some handles have a `then`.
    const result = lives(answer) ? answer : await answer
    if (!lives(result)) return result
    lease.destroy()
    throw new PoolError('FST_POOL_NOT_SUPPORTED', `execute: '${method}' gave something that lives on the ` +
      'connection (a cursor, a stream, a statement): call it within pool.use()')
  }, options)
}

function callOf<C> (backend: Connector<C>, { raw }: Lease<C>, connection: C, method: string): Method | undefined {
  // The connector knows its own connections, and nothing of what the option `wrap` made of them.
  if (backend.call !== undefined && raw === connection) return backend.call(connection, method)
  return methodOf(connection, method)
}

function isHandle (value: unknown): boolean {
  if (value === null || (typeof value !== 'object' && typeof value !== 'function')) return false
  return handleMethods.some((name) => typeof (value as Record<PropertyKey, unknown>)[name] === 'function')
}
