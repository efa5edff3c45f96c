// `fastify-pool/testing`: for the tests of an app. Nothing of it is loaded, and nothing is asked, where it is not used.
import type { FastifyInstance } from 'fastify'
import type { Faults, TestContext } from '../../types/testing.js'
import { badOption } from '../engine/errors.js'
import { Stage } from './testing/stage.js'

export { fakePool } from './testing/fake.js'
export { assertIdle } from './testing/idle.js'
export type * from '../../types/testing.js'

/**
 * All that `app` does with a pool from now on runs in one transaction on one connection, which is rolled back when the
 * test ends. Resolves when it has begun; `app` is ready then.
 *
 * Transactions of the app are savepoints in it: `transaction: true` of a route, `pool.transaction` and `pool.begin`
 * (their `isolation` and `readOnly` are checked, and not applied). Requests take their turns: each has the connection
 * until its last lease is back, and the next one waits, `acquireTimeout` ms at most. A request that acquires again
 * shares its connection, and so does the code outside of requests. On PostgreSQL a statement outside of a transaction
 * may fail without harm to the others, as it may without this.
 *
 * The app's own BEGIN, COMMIT and ROLLBACK would end the transaction, and so does DDL on MySQL: then the test fails at
 * its end, as it does where a connection is still held.
 *
 * @param t the test: only its `after(fn)` is called
 * @throws `FST_POOL_BAD_OPTIONS` where `t` has no `after`; `FST_POOL_NOT_SUPPORTED` for Redis, MongoDB, a pool per
 * tenant, a database without savepoints, and a pool that is rolled back already; `FST_POOL_NOT_FOUND`; what `acquire`
 * throws
 */
export async function rollbackEach (t: TestContext, app: FastifyInstance, name: string): Promise<void> {
  if (typeof (t as TestContext | undefined)?.after !== 'function') throw badOption('t', t, 'a test, with after(fn)')
  await app.ready()
  const end = await Stage.of(app, name, 'rollbackEach').share()
  t.after(end)
}

/**
 * Faults of a pool, for tests of what an app does then: the errors, their codes and their status are the real ones.
 *
 * @throws `FST_POOL_NOT_FOUND`; `FST_POOL_NOT_SUPPORTED` for a pool per tenant
 */
export function faults (app: FastifyInstance, name: string): Faults {
  const stage = Stage.of(app, name, 'faults')
  const { plan } = stage
  stage.beginFaults()
  const restore = (): void => { stage.endFaults() }
  return {
    timeout: (n) => { plan.timeout(n) },
    die: () => { plan.die() },
    failCommit: (error) => { plan.failCommit(error) },
    loseCommit: (options) => { plan.loseCommit(options) },
    restore,
    [Symbol.dispose]: restore,
  }
}
