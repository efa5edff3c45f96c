// `assertIdle`: nobody holds a connection any more.
import { AssertionError } from 'node:assert'
import type { FastifyInstance } from 'fastify'
import { tellHolder } from './holder.js'
import { managerOf } from './stage.js'

/**
 * Throws where somebody still holds a connection of a pool of `app`: of the scope that it is, and of those around it.
 *
 * @throws an `AssertionError` that names, for each, the pool, the route, the request's id and for how long in ms;
 * `FST_POOL_NOT_FOUND` where `app` has no pools yet
 */
export function assertIdle (app: FastifyInstance): void {
  const actual = managerOf(app).holders()
  if (actual.length === 0) return
  const many = actual.length === 1 ? 'a connection is' : `${actual.length} connections are`
  const message = `${many} still held:\n${actual.map(tellHolder).join('\n')}`
  throw new AssertionError({ message, actual, expected: [], operator: 'assertIdle', stackStartFn: assertIdle })
}
