// A pool that connects to nothing.
import type { Connector, Isolation, Transaction } from '../../../types/connector.js'
import type { FakePool } from '../../../types/testing.js'

const levels: readonly Isolation[] =
  ['read uncommitted', 'read committed', 'repeatable read', 'serializable', 'snapshot']

class Fake<C> implements FakePool<C> {
  readonly connector: Connector<C>
  // Own properties, since whoever adds options to these spreads them.
  readonly onAcquire = (): void => { this.#acquired++ }
  readonly onRelease = (): void => { this.#released++ }
  readonly #connections: C[] = []
  #acquired = 0
  #released = 0
  #destroyed = 0
  #committed = 0
  #rolledBack = 0

  constructor (make: () => C | Promise<C>) {
    this.connector = {
      system: 'fake',
      create: async () => {
        const connection = await make()
        this.#connections.push(connection)
        return connection
      },
      destroy: () => { this.#destroyed++ },
      transactions: {
        isolation: levels,
        readOnly: true,
        begin: async (connection) => this.#begin(connection),
        isTransient: () => false,
      },
    }
  }

  #begin (connection: C): Transaction<C> {
    const savepoint = async (): Promise<Transaction<C>> =>
      ({ connection, commit: async () => {}, rollback: async () => {}, savepoint })
    return {
      connection,
      inDoubt: false,
      commit: async () => { this.#committed++ },
      rollback: async () => { this.#rolledBack++ },
      savepoint,
    }
  }

  get connections (): readonly C[] { return [...this.#connections] }
  get created (): number { return this.#connections.length }
  get acquired (): number { return this.#acquired }
  get released (): number { return this.#released }
  get destroyed (): number { return this.#destroyed }
  get committed (): number { return this.#committed }
  get rolledBack (): number { return this.#rolledBack }
}

/**
 * The options of a pool that connects to nothing: `app.register(pool, { pools: { db: fakePool(fake) } })`. Other
 * options go beside them: `{ ...fake, max: 2 }`; the numbers stay at the object that this returns.
 *
 * A transaction of it is one in name only: `connection` is the same object, and a rollback undoes nothing.
 *
 * @param connection what requests get, all of them the same object; or a function that makes one at each connect
 */
export function fakePool<C> (connection: C | (() => C | Promise<C>)): FakePool<C> {
  return new Fake<C>(typeof connection === 'function' ? connection as () => C | Promise<C> : () => connection)
}
