// What a test plays with a pool of an app: its methods are replaced, on this one object, as long as it does.
import type { FastifyInstance } from 'fastify'
import type { Connector } from '../../../types/connector.js'
import type { AcquireOptions, Lease, PoolFace } from '../../../types/pool.js'
import { innardsOfTargets } from '../../balance/target-pool.js'
import { sessionOf, type Session } from '../../backends/shared/session.js'
import { PoolError } from '../../engine/errors.js'
import { bare } from '../../engine/lease.js'
import { innardsOf, type Innards } from '../../pool/pool.js'
import type { PoolManager } from '../pools.js'
import { kSetting } from '../setting.js'
import { tellHolder } from './holder.js'
import { OneConnection } from './connection.js'
import { FaultPlan, isObject, type Played } from './plan.js'
import { SharedPool } from './shared.js'

/** How long a test that is over waits for leases that are still out, in ms. */
const GRACE = 1000

/** What a shared pool does itself. */
const played = ['acquire', 'tryAcquire', 'use', 'begin', 'execute', 'transaction', 'stats', 'holders'] as const

type Any = PoolFace<object>
type Method = (...args: never[]) => unknown

/** @throws `FST_POOL_NOT_FOUND` */
export function managerOf (app: FastifyInstance): PoolManager {
  if (kSetting in app) return app[kSetting].manager
  throw new PoolError('FST_POOL_NOT_FOUND', 'this app has no pools: register fastify-pool, and await app.ready() first')
}

const stages = new WeakMap<object, Stage>()

/** One pool, as its tests play with it. */
export class Stage {
  readonly plan = new FaultPlan()
  readonly #pool: Any
  readonly #innards: Innards
  readonly #played: Played
  #faulty = false
  #shared: SharedPool<object> | undefined
  /** Puts the pool's own methods back. */
  #undo: Array<() => void> = []

  private constructor (pool: Any, innards: Innards) {
    this.#pool = pool
    this.#innards = innards
    this.#played = {
      ...innards,
      name: pool.name,
      situation: () => ({ ...pool.stats(), name: pool.name }),
      holding: () => ({ holders: pool.holders(), inVain: [] }),
    }
  }

  /** @throws `FST_POOL_NOT_FOUND`, `FST_POOL_NOT_SUPPORTED` for a pool per tenant, or one of the app's own kind */
  static of (app: FastifyInstance, name: string, what: string): Stage {
    const pool = managerOf(app).require(name).pool as unknown as Any
    const innards = innardsOf(pool) ?? innardsOfTargets(pool)
    if (innards === undefined) {
      throw new PoolError('FST_POOL_NOT_SUPPORTED', `${what}: pool '${name}' is a pool per tenant, or none of ours`)
    }
    const known = stages.get(pool) ?? new Stage(pool, innards)
    stages.set(pool, known)
    return known
  }

  // --- Faults --------------------------------------------------------------------------------------------------------

  beginFaults (): void {
    this.#faulty = true
    this.#replace()
  }

  endFaults (): void {
    this.plan.clear()
    this.#faulty = false
    this.#replace()
  }

  // --- One connection ------------------------------------------------------------------------------------------------

  /** @returns what rolls back. @throws `FST_POOL_NOT_SUPPORTED`; what `acquire` throws */
  async share (): Promise<() => Promise<void>> {
    const { name, backend } = this.#pool
    const refuse = (why: string): PoolError =>
      new PoolError('FST_POOL_NOT_SUPPORTED', `rollbackEach: pool '${name}' ${why}`)
    if (backend.transactions === undefined || ['redis', 'mongodb'].includes(backend.system)) {
      throw refuse(`is ${backend.system}, which has no transaction that can be rolled back as a whole`)
    }
    if (this.#shared !== undefined) throw refuse('is rolled back by another test already')
    const own = { role: 'primary', holdTimeout: 0, holder: 'rollbackEach' } as const
    const lease = await this.#call<Promise<Lease<object>>>('acquire', own)
    try {
      if (!isObject(bare(lease))) throw refuse('has connections that are no objects')
      const signal = AbortSignal.timeout(this.#innards.options.acquireTimeout)
      const one = await OneConnection.begin(backend, bare(lease), () => lease.ended, signal)
      const shared = new SharedPool(name, this.#innards, backend, one, this.plan)
      await shared.open()
      if (this.#shared !== undefined) {
        await shared.end(GRACE)
        throw refuse('is rolled back by another test already')
      }
      let ending: Promise<void> | undefined
      const end = (): Promise<void> => (ending ??= this.#end(shared, one, lease))
      this.#shared = shared
      this.#replace(end)
      return end
    } catch (error) {
      // What was begun is undone with the connection.
      lease.destroy()
      throw error
    }
  }

  async #end (shared: SharedPool<object>, one: OneConnection<object>, lease: Lease<object>): Promise<void> {
    const left = await shared.end(Math.min(GRACE, this.#pool.closeTimeout))
    this.#shared = undefined
    this.#replace()
    try {
      await one.end()
    } finally {
      lease.release()
    }
    if (left.length > 0) {
      throw new Error(`rollbackEach: still held at the end of the test:\n${left.map(tellHolder).join('\n')}`)
    }
  }

  // --- The pool's methods --------------------------------------------------------------------------------------------

  /** The pool's own method. */
  #call<R> (method: keyof Any, ...args: unknown[]): R {
    const own = Reflect.get(Object.getPrototypeOf(this.#pool) as object, method) as (...args: unknown[]) => R
    return own.apply(this.#pool, args)
  }

  /** Puts in place what is played now. @param end ends what is shared */
  #replace (end?: () => Promise<void>): void {
    if (end === undefined && this.#shared !== undefined) return
    for (const undo of this.#undo.splice(0)) undo()
    const shared = this.#shared
    if (shared !== undefined && end !== undefined) this.#playShared(shared, end)
    else if (this.#faulty) this.#playFaults()
  }

  #playShared (shared: SharedPool<object>, end: () => Promise<void>): void {
    for (const name of played) {
      this.#put(name, (shared[name] as Method).bind(shared))
    }
    // An app that is closed before its test has ended. What fails is told at the end of the test.
    for (const name of ['drain', 'close'] as const) {
      this.#put(name, async (...args: never[]) => {
        await end().catch(() => {})
        return await this.#call<Promise<void>>(name, ...args)
      })
    }
  }

  #playFaults (): void {
    const { plan } = this
    this.#put('acquire', async (options: AcquireOptions = {}) => {
      const late = plan.takeTimeout(this.#played, options)
      if (late !== undefined) throw late
      return plan.lent(await this.#call<Promise<Lease<object>>>('acquire', options), cut)
    })
    this.#put('tryAcquire', (options: AcquireOptions = {}) => {
      const lease = plan.timesOut ? null : this.#call<Lease<object> | null>('tryAcquire', options)
      return lease && plan.lent(lease, cut)
    })
    for (const { transactions } of this.#innards.connectors as ReadonlyArray<Connector<object>>) {
      if (transactions === undefined) continue
      const { begin } = transactions
      Object.assign(transactions, {
        begin: (connection: object, options: object, signal: AbortSignal) =>
          plan.begin(begin.bind(transactions), connection, options, signal),
      })
      this.#undo.push(() => { Object.assign(transactions, { begin }) })
    }
  }

  #put (name: keyof Any, value: Method): void {
    Object.defineProperty(this.#pool, name, { value, configurable: true, writable: true })
    this.#undo.push(() => { Reflect.deleteProperty(this.#pool, name) })
  }
}

/** Destroys the socket of a connection. False: it has none of its own. */
function cut (connection: object): boolean {
  let session: Pick<Session<object>, 'socket'>
  try {
    session = sessionOf(connection)
  } catch {
    return false
  }
  const socket = session.socket as { destroy? (): unknown } | undefined
  if (typeof socket?.destroy !== 'function') return false
  socket.destroy()
  return true
}
