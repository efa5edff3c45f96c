// The faults that a test has asked for, of one pool.
import type { Transaction, TransactionOptions, Transactions } from '../../../types/connector.js'
import type { AcquireOptions, Lease } from '../../../types/pool.js'
import type { LostCommit } from '../../../types/testing.js'
import { badOption } from '../../engine/errors.js'
import { label } from '../../engine/events.js'
import { timedOut } from '../../engine/faults.js'
import { bare } from '../../engine/lease.js'
import type { Innards } from '../../pool/pool.js'
import { deadError, viewOf } from './view.js'

export const isObject = (value: unknown): value is object =>
  typeof value === 'function' || (typeof value === 'object' && value !== null)

/** What becomes of a commit. */
type CommitFault = { readonly refused: Error } | { readonly stored: boolean }

/** What an acquire needs of the pool that a test plays with. */
export interface Played extends Innards {
  readonly name: string
  readonly situation: () => Parameters<typeof timedOut>[0]
  readonly holding: () => Parameters<typeof timedOut>[3]['holding']
}

export class FaultPlan {
  #timeouts = 0
  #deaths = 0
  readonly #commits: CommitFault[] = []
  /** The leases of connections that died without a driver to say so, by the connection. */
  readonly #dead = new WeakMap<object, Lease<unknown>>()

  timeout (n = 1): void {
    if (!Number.isSafeInteger(n) || n < 1) throw badOption('n', n, 'an integer of at least 1')
    this.#timeouts += n
  }

  die (): void {
    this.#deaths++
  }

  failCommit (error = new Error('the commit was refused (faults of fastify-pool/testing)')): void {
    this.#commits.push({ refused: error })
  }

  loseCommit ({ stored = false }: LostCommit = {}): void {
    this.#commits.push({ stored })
  }

  clear (): void {
    this.#timeouts = 0
    this.#deaths = 0
    this.#commits.length = 0
  }

  get timesOut (): boolean {
    return this.#timeouts > 0
  }

  /** The error of an acquire that times out; undefined: it does not. */
  takeTimeout (pool: Played, { timeout = pool.options.acquireTimeout, holder }: AcquireOptions): Error | undefined {
    if (this.#timeouts === 0) return undefined
    this.#timeouts--
    const error = timedOut(pool.situation(), timeout, undefined, { retryAfter: 1, holding: pool.holding() })
    pool.events.emit('timeout', { error, wait: timeout, ...label(holder) })
    return error
  }

  /** @param kill ends the connection of the lease; false: it can not */
  lent<C> (lease: Lease<C>, kill: (connection: C) => boolean): Lease<C> {
    if (this.#deaths === 0) return lease
    this.#deaths--
    if (!kill(bare(lease))) this.#bury(lease)
    return lease
  }

  /** Nothing of the connection answers any more, while this lease is out. */
  #bury<C> (lease: Lease<C>): void {
    const dead = deadError()
    const { connection } = lease
    const face = isObject(connection) ? viewOf(connection, { dead }) : connection
    const inside = bare(lease)
    if (isObject(inside)) this.#dead.set(inside, lease)
    Object.defineProperties(lease, {
      connection: { get: () => face },
      raw: { get: () => face },
      release: { value: () => { lease.destroy(dead) } },
    })
  }

  /** As `begin` of the connector, whose commit may fail then. */
  async begin<C> (
    begin: Transactions<C>['begin'], connection: C, options: TransactionOptions, signal: AbortSignal
  ): Promise<Transaction<C>> {
    if (isObject(connection) && this.#dead.get(connection)?.ended === false) throw deadError()
    const transaction = await begin(connection, options, signal)
    return new Faulty(transaction, () => this.#commits.shift())
  }
}

/** A transaction whose commit may fail. */
class Faulty<C> implements Transaction<C> {
  readonly connection: C
  readonly savepoint?: (name: string) => Promise<Transaction<C>>
  readonly #inner: Transaction<C>
  readonly #fault: () => CommitFault | undefined
  #lost = false

  constructor (inner: Transaction<C>, fault: () => CommitFault | undefined) {
    this.connection = inner.connection
    this.#inner = inner
    this.#fault = fault
    if (inner.savepoint !== undefined) this.savepoint = (name) => inner.savepoint!(name)
  }

  get inDoubt (): boolean {
    // Left out, it is undefined, which says something else than false.
    return this.#lost || this.#inner.inDoubt as boolean
  }

  async commit (): Promise<void> {
    const fault = this.#fault()
    if (fault === undefined) return await this.#inner.commit()
    if ('refused' in fault) throw fault.refused
    if (fault.stored) await this.#inner.commit()
    this.#lost = true
    throw deadError()
  }

  async rollback (): Promise<void> {
    await this.#inner.rollback()
  }
}
