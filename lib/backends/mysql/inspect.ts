/**
 * How a server is asked for its replication. The first is MariaDB's and of all that it follows, the second that of MySQL from 8.0.22 on (8.4 has no other), the
 * last that of MySQL before.
 */
export const replications = ['SHOW ALL SLAVES STATUS', 'SHOW REPLICA STATUS', 'SHOW SLAVE STATUS'] as const

/** Of a variable: newer servers have more than two values. */
export function isOn (value: unknown): boolean {
  return !['0', 'OFF'].includes(String(value))
}

/** Under the names of `SHOW REPLICA STATUS`, or the older ones. */
export type Replication = Readonly<Record<string, unknown>>

function named (row: Replication, name: string): unknown {
  const older = name.replace('Replica', 'Slave').replace('Source', 'Master')
  return name in row ? row[name] : row[older]
}

/** It applies what another server does, or tries to. */
export function follows (row: Replication): boolean {
  return ['Replica_IO_Running', 'Replica_SQL_Running'].some((name) => named(row, name) !== 'No')
}

/** In ms. */
export function lagOf (row: Replication): number {
  const seconds = named(row, 'Seconds_Behind_Source')
  return seconds === null || seconds === undefined ? Infinity : Number(seconds) * 1000
}
