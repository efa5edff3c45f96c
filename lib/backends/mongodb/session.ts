import type { Activity, TransactionOptions } from '../../../types/connector.js'
import type { Db } from '../../../types/drivers.js'
import { Session } from '../shared/session.js'
import { unlessAborted } from '../shared/signal.js'
import { checkDriver } from './check.js'
import type { Shared } from './client.js'
import { MongoTransaction, topologyOf } from './transaction.js'

/** The right to use a shared client, as a `Db`. The sockets are the client's, so nothing is reset. */
export class MongoSession extends Session<Db> {
  readonly #shared: Shared
  readonly #leave: () => Promise<void> | undefined
  /** The last one. */
  #transaction: MongoTransaction | undefined

  /** @param leave called when it ends */
  constructor (shared: Shared, leave: () => Promise<void> | undefined) {
    super(shared.client.db(shared.database))
    this.#shared = shared
    this.#leave = leave
    shared.deaths.add(this.#lost)
  }

  override get broken (): boolean {
    return !this.#shared.up
  }

  /** Only of a transaction: the driver does not say which of its operations are this `Db`'s. */
  override describe (): Activity | undefined {
    return this.#transaction?.activity
  }

  override async ping (signal: AbortSignal): Promise<boolean> {
    await this.#shared.ask(signal)
    return true
  }

  async begin (options: TransactionOptions, signal: AbortSignal): Promise<MongoTransaction> {
    const { client } = this.#shared
    signal.throwIfAborted()
    await unlessAborted(checkDriver(client), signal)
    this.#transaction = new MongoTransaction(client, topologyOf(client), this.connection.databaseName, options)
    return this.#transaction
  }

  protected override close (): Promise<void> | undefined {
    // The driver hides errors of a rollback, and nobody is left to be told.
    if (this.#transaction !== undefined) Promise.allSettled([this.#transaction.rollback()])
    this.#shared.deaths.delete(this.#lost)
    return this.#leave()
  }

  readonly #lost = (error: Error | undefined): void => {
    this.error = error
    this.die()
  }
}
