import type { Connector, DestroyReason } from '../../types/connector.js'
import type { HolderLabel, PoolEventName, PoolListener } from '../../types/pool.js'

/** A connection that knows in whose hands it is, and takes down who speaks to it. */
export class WitnessConnection {
  holder: string | undefined
  destroyed: DestroyReason | undefined
  readonly #witness: Witness

  constructor (readonly id: number, witness: Witness) {
    this.#witness = witness
  }

  /** A statement, as a driver would send it. Throws, as a driver would, once the connection is closed. */
  say (who: string, what: string): void {
    if (this.destroyed !== undefined) throw new Error(`connection ${this.id} is closed`)
    this.#witness.said.push(`${who}:${what}#${this.id}`)
    if (this.holder !== who) this.#witness.violations.push(`${who} said ${what} on connection ${this.id}, which ${this.holder ?? 'nobody'} holds`)
  }
}

interface Watched { on<E extends PoolEventName> (event: E, listener: PoolListener<E>): () => void }

/** A connector whose connections watch who uses them. What must never happen is in `violations`. */
export class Witness implements Connector<WitnessConnection> {
  readonly system = 'witness'
  /** Every statement, in order: who, what, on which connection. */
  readonly said: string[] = []
  readonly violations: string[] = []
  readonly connections: WitnessConnection[] = []
  /** Who was lent a connection, in order. */
  readonly lent: string[] = []
  ended = 0
  /** Why connections were destroyed, in order. */
  readonly destroyed: DestroyReason[] = []
  /** What creates do: they wait for it, or fail with it. */
  creating: Promise<void> = Promise.resolve()

  async create (): Promise<WitnessConnection> {
    // The pool numbers its connections in the order of its creates, as this does.
    const connection = new WitnessConnection(this.connections.length + 1, this)
    this.connections.push(connection)
    await this.creating
    return connection
  }

  destroy (connection: WitnessConnection, reason: DestroyReason): void {
    if (connection.destroyed !== undefined) this.violations.push(`connection ${connection.id} was destroyed twice`)
    if (connection.holder !== undefined) this.violations.push(`connection ${connection.id} was destroyed in the hands of ${connection.holder}`)
    connection.destroyed = reason
    this.destroyed.push(reason)
  }

  /** Follows a pool's leases by its events. */
  watch (pool: Watched): void {
    pool.on('acquire', ({ id, holder }) => {
      const connection = this.connections[id - 1]!
      const who = nameOf(holder)
      if (connection.holder !== undefined) this.violations.push(`connection ${id} was lent to ${who} while ${connection.holder} held it`)
      if (connection.destroyed !== undefined) this.violations.push(`connection ${id} was lent to ${who} after its end`)
      connection.holder = who
      this.lent.push(who)
    })
    pool.on('release', ({ id, holder }) => {
      const connection = this.connections[id - 1]!
      if (connection.holder !== nameOf(holder)) this.violations.push(`${nameOf(holder)} gave back connection ${id}, which ${connection.holder ?? 'nobody'} holds`)
      connection.holder = undefined
      this.ended++
    })
  }
}

function nameOf (holder: HolderLabel | undefined): string {
  return typeof holder === 'string' ? holder : holder?.id ?? 'somebody'
}
