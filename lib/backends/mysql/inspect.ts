import type { ServerState } from '../../../types/connector.js'
import type { Commands } from './commands.js'
import { errors } from './errors.js'

/**
 * How a server is asked for its replication. The first is MariaDB's, and tells of all servers that it follows. The
 * second is that of MySQL from 8.0.22 on (8.4 has no other), the last that of MySQL before.
 */
const replications = ['SHOW ALL SLAVES STATUS', 'SHOW REPLICA STATUS', 'SHOW SLAVE STATUS'] as const

/** One row of them, under the names of `SHOW REPLICA STATUS` or the older ones. */
type Replication = Readonly<Record<string, unknown>>

/** Asks a server, over one connection, what it is. */
export class Inspection {
  readonly #commands: Commands
  /** The server does not tell us of its replication. */
  #reticent = false

  constructor (commands: Commands) { this.#commands = commands }

  async state (): Promise<ServerState> {
    const [server, storage] = await this.#commands.row('SELECT @@GLOBAL.read_only, @@GLOBAL.innodb_read_only')
    const rows = await this.#replication()
    if (!isOn(server) && !isOn(storage) && rows?.some(follows) !== true) return { role: 'primary' }
    // Storage that only reads, and nobody to follow: the storage is somebody else's.
    if (rows === undefined || (rows.length === 0 && isOn(storage))) return { role: 'replica' }
    return { role: 'replica', lag: rows.length === 0 ? Infinity : Math.max(...rows.map(lagOf)) }
  }

  /** One row for each server that it is told to follow. undefined: it does not say. */
  async #replication (): Promise<Replication[] | undefined> {
    for (const sql of this.#reticent ? [] : replications) {
      try {
        return await this.#commands.rows<Replication>(sql, false)
      } catch (error) {
        const { errno } = error as { errno?: unknown }
        if (errno === errors.syntax) continue
        if (errno !== errors.accessDenied) throw error
        break
      }
    }
    this.#reticent = true
    return undefined
  }
}

/** Of a variable: newer servers have more than two values. */
function isOn (value: unknown): boolean {
  return !['0', 'OFF'].includes(String(value))
}

function named (row: Replication, name: string): unknown {
  const older = name.replace('Replica', 'Slave').replace('Source', 'Master')
  return name in row ? row[name] : row[older]
}

/** It applies what another server does, or tries to. */
function follows (row: Replication): boolean {
  return ['Replica_IO_Running', 'Replica_SQL_Running'].some((name) => named(row, name) !== 'No')
}

/** In ms. */
function lagOf (row: Replication): number {
  const seconds = named(row, 'Seconds_Behind_Source')
  return seconds === null || seconds === undefined ? Infinity : Number(seconds) * 1000
}
