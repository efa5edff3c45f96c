// What the compat plugins share: connections that go back by `release()`, as those of the drivers' own pools do.
import type { FastifyInstance } from 'fastify'
import type { PluginOptions, PoolOptions } from '../../types/plugin.js'
import type { Lease, PoolFace } from '../../types/pool.js'
import { badOption, fieldOf, isPoolError } from '../engine/errors.js'
import { fastifyPool } from '../fastify/plugin.js'

/** As the drivers' pools call back: with an error, or with a connection and what gives it back. */
export type Callback<T> = (error: Error | null, result?: T, done?: (error?: Error | boolean) => void) => void

/** A connection and its `release`, which destroys it where it gets an error, or true. */
export type Releasable<C> = C & { release (error?: Error | boolean): void }

/**
 * The pool that a compat plugin works with: one of the app's own, or one that is made here.
 *
 * @param named the option `pool`
 * @param options of a pool that is made here; they name nothing where `named` is given
 * @throws `FST_POOL_NOT_FOUND`, `FST_POOL_BAD_OPTIONS`, and what `register` of the plugin throws
 */
export async function poolFor (
  app: FastifyInstance, named: string | undefined, own: string, options: PoolOptions
): Promise<PoolFace<unknown>> {
  if (named === undefined) {
    await app.register(fastifyPool, { pools: { [own]: { ...options, lease: false } } } as PluginOptions)
    return app.pools.get(own as never) as PoolFace<unknown>
  }
  const [beside] = Object.entries(options).filter(([name, value]) => name !== 'backend' && value !== undefined)
  if (beside !== undefined) throw badOption(beside[0], beside[1], `none beside pool: '${named}' has its own options`)
  const pool = app.pools.get(named as never) as PoolFace<unknown>
  const { backend } = options as { backend: string }
  if (pool.backend.system !== backend) throw badOption('pool', named, `the name of a pool of backend '${backend}'`)
  return pool
}

/**
 * Lends the connection until somebody calls its `release`.
 *
 * @param connection the object that gets the `release`: the lease's own, or a part of it
 */
export function lent<C extends object> (lease: Lease<unknown>, connection: C): Releasable<C> {
  const before = Object.getOwnPropertyDescriptor(connection, 'release')
  let isOut = true
  const release = (error?: Error | boolean): void => {
    if (!isOut) throw new Error('release() was called for a connection that had gone back to its pool already')
    isOut = false
    if (before === undefined) delete (connection as Partial<Releasable<C>>).release
    else Object.defineProperty(connection, 'release', before)
    if (error === undefined || error === false) lease.release()
    else lease.destroy(error instanceof Error ? error : undefined)
  }
  // Not enumerable: a reset takes enumerable ones for what the borrower has left.
  Object.defineProperty(connection, 'release', { value: release, writable: true, configurable: true })
  return connection as Releasable<C>
}

/** Where no connection could be made, apps look at the reason of the driver, or of the server. */
export function driverError (error: unknown): unknown {
  if (!isPoolError(error) || error.code !== 'FST_POOL_CONNECT_FAILED') return error
  return fieldOf(error, 'cause') ?? error
}

/** A promise, or undefined where the result goes to a callback. */
export function answer<T> (work: Promise<T>, callback: Callback<T> | undefined): Promise<T> | undefined {
  const told = work.catch((error: unknown) => { throw driverError(error) })
  if (callback === undefined) return told
  // In a turn of its own: what a callback throws must not become a rejection.
  told.then((result) => { setImmediate(callback, null, result) }, (error: Error) => { setImmediate(callback, error) })
  return undefined
}

/** Splits the callback off, where the last argument is one. */
export function withCallback<T> (args: readonly unknown[]): [args: unknown[], callback: Callback<T> | undefined] {
  const last = args.at(-1)
  return typeof last === 'function' ? [args.slice(0, -1), last as Callback<T>] : [[...args], undefined]
}
