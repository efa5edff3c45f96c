export const asText = { getTypeParser: () => String }

/** SQL. What a borrower set is not meant, where no reset has undone it. */
export const readsOnly = `(pg_is_in_recovery() OR current_setting('default_transaction_read_only') = 'on' AND
  (SELECT reset_val FROM pg_settings WHERE name = 'default_transaction_read_only') = 'on')::text`

/**
 * SQL, in ms. Of the receiver's row a user without privileges sees the pid alone, and all others the end of the primary's log too. The positions come first:
 * a server that does not support them (Amazon Aurora) has no receiver either, and must not be taken for one that follows nobody.
 */
export const lag = `(SELECT CASE
  WHEN NOT pg_is_in_recovery() THEN 'Infinity'
  WHEN pg_last_wal_replay_lsn() >= greatest(pg_last_wal_receive_lsn(), r.latest_end_lsn) AND follows THEN 0
  WHEN follows THEN greatest(0, coalesce(extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) * 1000, 'Infinity'))
  ELSE 'Infinity'
  END FROM (VALUES (1)) AS always LEFT JOIN pg_stat_wal_receiver r ON true, LATERAL (SELECT r.pid IS NOT NULL AND coalesce(r.status, 'streaming') = 'streaming' AS follows) f)::float8::text`

/** Not supported, not allowed, or not there: what only speaks PostgreSQL's protocol. */
export const untold: ReadonlySet<unknown> = new Set(['0A000', '42501', '42883', '42P01', '42703'])
