// `begin`: a transaction that its holder ends.
import type { AcquireOptions, HoldOptions, Lease, PoolFace, Tx } from '../../types/pool.js'
import { after, hold } from '../engine/lease.js'
import { checkTransactionOptions, type HeldTransaction } from '../engine/transaction.js'

class HeldTx<C> implements Tx<C> {
  readonly #lease: Lease<C>
  readonly #transaction: HeldTransaction

  constructor (lease: Lease<C>, transaction: HeldTransaction) {
    this.#lease = lease
    this.#transaction = transaction
  }

  get connection (): C {
    return this.#lease.connection
  }

  async commit (): Promise<void> {
    try {
      await this.#transaction.commit()
    } finally {
      this.#lease.release()
    }
  }

  async rollback (): Promise<void> {
    try {
      await this.#transaction.rollback()
    } finally {
      this.#lease.release()
    }
  }

  afterCommit (fn: () => unknown): void {
    after(this.#lease, 'afterCommit', fn)
  }

  afterRollback (fn: () => unknown): void {
    after(this.#lease, 'afterRollback', fn)
  }

  async [Symbol.asyncDispose] (): Promise<void> {
    await this.rollback()
  }
}

/** @throws what `acquire` throws, and `Lease.transaction` where it can't begin */
export async function begin<C> (
  pool: Pick<PoolFace<C>, 'name' | 'backend' | 'acquire'>, options: AcquireOptions & HoldOptions = {}
): Promise<Tx<C>> {
  const { signal, timeout, holder, role, affinity, holdTimeout, commitTimeout = 0, ...how } = options
  // Checked before the caller waits for a connection.
  checkTransactionOptions({ name: pool.name, transactions: pool.backend.transactions }, { ...how, commitTimeout })
  const lease = await pool.acquire({ signal, timeout, holder, role, affinity, holdTimeout } as AcquireOptions)
  try {
    return new HeldTx(lease, await hold(lease, { ...how, commitTimeout }))
  } catch (error) {
    lease.release()
    throw error
  }
}
