import type { ServerState } from '../../../types/connector.js'
import type { Client } from '../../../types/drivers.js'

/** SQL: whether the server only reads. A borrower's own `default_transaction_read_only` does not count. */
const readsOnly = `(pg_is_in_recovery() OR current_setting('default_transaction_read_only') = 'on' AND
  (SELECT reset_val FROM pg_settings WHERE name = 'default_transaction_read_only') = 'on')::text`

/**
 * SQL: the lag in ms. Without privileges a user sees only the pid in the receiver's row. Others also see the end of the
 * primary's log.
 *
 * The positions come first: a server that does not support them (Amazon Aurora) has no receiver either, and must not be
 * taken for one that follows nobody.
 */
const lag = `(SELECT CASE
  WHEN NOT pg_is_in_recovery() THEN 'Infinity'
  WHEN pg_last_wal_replay_lsn() >= greatest(pg_last_wal_receive_lsn(), r.latest_end_lsn) AND follows THEN 0
  WHEN follows THEN
    greatest(0, coalesce(extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) * 1000, 'Infinity'))
  ELSE 'Infinity'
  END FROM (VALUES (1)) AS always LEFT JOIN pg_stat_wal_receiver r ON true,
  LATERAL (SELECT r.pid IS NOT NULL AND coalesce(r.status, 'streaming') = 'streaming' AS follows) f)::float8::text`

/** SQLSTATEs for: not supported, not allowed, not there. So answer servers that only speak PostgreSQL's protocol. */
const untold: ReadonlySet<unknown> = new Set(['0A000', '42501', '42883', '42P01', '42703'])

const asText = { getTypeParser: () => String }

/** Asks one server, over its connections, what it is. */
export class Inspection {
  /** The server does not say anything about its replication: only its role is asked for. */
  #reticent = false

  async of (client: Client): Promise<ServerState> {
    const text = this.#reticent ? `SELECT ${readsOnly}` : `SELECT ${readsOnly}, ${lag}`
    try {
      const { rows: [row] } = await client.query<string[]>({ text, rowMode: 'array', types: asText })
      if (row![0] !== 'true') return { role: 'primary' }
      return row!.length < 2 ? { role: 'replica' } : { role: 'replica', lag: Number(row![1]) }
    } catch (error) {
      if (this.#reticent || !untold.has((error as { code?: unknown }).code)) throw error
      this.#reticent = true
      return await this.of(client)
    }
  }
}
