import type { Connector } from '../../types/connector.js'
import type { EngineOptions } from '../../types/options.js'
import { ownedPool, type Pool } from '../pool/pool.js'
import { Budget, type Member } from './budget.js'

/** One `max` for pools that come and go. */
export class SharedBudget {
  readonly #budget = new Budget<unknown>()
  readonly #members = new Map<object, Member<unknown>>()

  constructor (max: number) {
    this.#budget.max = max
  }

  /** Makes a pool whose connections count. */
  pool (connector: Connector<unknown>, options: EngineOptions<unknown> & { readonly max: number }): Pool<unknown> {
    const budget = this.#budget
    const { pool, engine } = ownedPool(connector, options, {
      target: undefined,
      nextId: () => budget.nextId(),
      wants: () => { budget.wants(member) },
      hasRoom: () => budget.hasRoom,
      mustYield: () => budget.mustYield(member),
      freed: () => { budget.freed() },
      connected: () => {},
      createFailed: () => {},
      lost: () => {},
      circuitMoved: () => {},
    })
    const member: Member<unknown> = { name: pool.name, engine, max: options.max, keepsLast: false }
    this.#members.set(pool, member)
    budget.join(member)
    return pool
  }

  /** The pool has closed. */
  forget (pool: object): void {
    const member = this.#members.get(pool)
    if (member === undefined) return
    this.#members.delete(pool)
    this.#budget.leave(member)
  }
}
