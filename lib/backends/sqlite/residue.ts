/** What a text may have changed. */
export const schema = 1
export const pragmas = 2
/** Something that can't be read back. */
export const unreadable = 4

/** Most texts have none of these words, and are looked at no further. */
export const mayLeave = /\b(?:pragma|temp|temporary|attach|detach|load_extension)\b/i

/** Its value can be read with others in one row, and setting it back undoes it. */
export const readable = [
  'analysis_limit', 'automatic_index', 'busy_timeout', 'cache_size', 'cell_size_check', 'checkpoint_fullfsync', 'count_changes', 'defer_foreign_keys',
  'empty_result_callbacks', 'foreign_keys', 'full_column_names', 'fullfsync', 'ignore_check_constraints', 'journal_mode', 'journal_size_limit',
  'legacy_alter_table', 'locking_mode', 'max_page_count', 'query_only', 'read_uncommitted', 'recursive_triggers', 'reverse_unordered_selects',
  'secure_delete', 'short_column_names', 'synchronous', 'temp_store', 'threads', 'trusted_schema', 'writable_schema',
]
const compared: ReadonlySet<string> = new Set(readable)

/** With an argument they only read, or change the file and not the handle. */
const harmless: ReadonlySet<string> = new Set([
  'table_info', 'table_xinfo', 'table_list', 'index_list', 'index_info', 'index_xinfo', 'foreign_key_list', 'foreign_key_check', 'integrity_check',
  'quick_check', 'user_version', 'application_id', 'wal_checkpoint', 'optimize', 'incremental_vacuum',
])

/** Stands behind the word PRAGMA. What is written in any other way (quoted, with comments) counts as unreadable. */
const pragmaCall = /\s+(?:(?<of>\w+)\s*\.\s*)?(?<name>\w+)\s*(?:$|(?<then>[;=(]))/y

export function judge (sql: string): number {
  let what = 0
  if (/\b(?:temp|temporary|attach|detach)\b/i.test(sql)) what |= schema
  if (/\bload_extension\b/i.test(sql)) what |= unreadable
  for (const { index } of sql.matchAll(/\bpragma\b/gi)) {
    pragmaCall.lastIndex = index + 'pragma'.length
    const { of, name, then } = pragmaCall.exec(sql)?.groups ?? {}
    if (name === undefined) what |= unreadable
    else if (then === undefined || then === ';' || harmless.has(name.toLowerCase())) continue
    else what |= compared.has(name.toLowerCase()) && (of ?? 'main').toLowerCase() === 'main' ? pragmas : unreadable
  }
  return what
}
