import type { Capacity } from '../../../types/connector.js'
import type { Client } from '../../../types/drivers.js'
import type { Inside } from './wire.js'

/**
 * How many connections the server allows (to those who are no superusers, without those that it reserves), this role
 * and this database (-1: no limit); and how many there are of clients, of them all, of this role, of this database, and
 * of this app, from how many addresses. What a backend is, only the same role sees, and pg_read_all_stats: the others
 * count as clients where they have a database and a role.
 */
const question = {
  text: `SELECT pg_backend_pid(), current_setting('max_connections')::int -
  CASE WHEN current_setting('is_superuser') = 'on' THEN 0 ELSE
    current_setting('superuser_reserved_connections')::int +
    coalesce(current_setting('reserved_connections', true)::int, 0) END,
  (SELECT CASE WHEN rolsuper THEN -1 ELSE rolconnlimit END FROM pg_roles WHERE rolname = session_user),
  (SELECT CASE WHEN current_setting('is_superuser') = 'on' THEN -1 ELSE datconnlimit END FROM pg_database
    WHERE datname = current_database()),
  count(*), count(*) FILTER (WHERE usename = session_user), count(*) FILTER (WHERE datname = current_database()),
  count(*) FILTER (WHERE application_name = current_setting('application_name')),
  count(DISTINCT client_addr) FILTER (WHERE application_name = current_setting('application_name'))
  FROM pg_stat_activity WHERE datid IS NOT NULL AND usesysid IS NOT NULL AND
    coalesce(backend_type, 'client backend') = 'client backend'`,
  rowMode: 'array' as const,
  types: { getTypeParser: () => String },
}

/**
 * Asks a server. Of its limits the lowest counts.
 *
 * undefined: something like PgBouncer answers, whose clients are not the server's.
 */
export async function capacityOf (client: Client): Promise<Capacity | undefined> {
  const { rows: [row = []] } = await client.query<string[]>(question)
  const [pid, ofServer, ofRole, ofDatabase, all, role, database, ours, hosts] = row.map(Number) as Numbers
  if (pid !== (client as unknown as Inside).processID) return undefined
  const limits = [{ allowed: ofServer, inUse: all }]
  if (ofRole >= 0) limits.push({ allowed: ofRole, inUse: role })
  if (ofDatabase >= 0) limits.push({ allowed: ofDatabase, inUse: database })
  const lowest = limits.reduce((one, other) => other.allowed < one.allowed ? other : one)
  return { ...lowest, ours, hosts }
}

type Numbers = [number, number, number, number, number, number, number, number, number]
