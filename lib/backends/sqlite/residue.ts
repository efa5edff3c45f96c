import { quote } from '../shared/sql.js'

/** Bits: what a statement may have changed. */
const schema = 1
export const pragmas = 2
/** The statement may have changed something that can't be read back. */
export const unreadable = 4

/** Most statements have none of these words, and are looked at no further. */
export const mayLeave = /\b(?:pragma|temp|temporary|attach|detach|load_extension)\b/i

/** Pragmas whose values can be read together in one row, and that are undone by setting the old value. */
const readable = [
  'analysis_limit', 'automatic_index', 'busy_timeout', 'cache_size', 'cell_size_check', 'checkpoint_fullfsync',
  'count_changes', 'defer_foreign_keys', 'empty_result_callbacks', 'foreign_keys', 'full_column_names', 'fullfsync',
  'ignore_check_constraints', 'journal_mode', 'journal_size_limit', 'legacy_alter_table', 'locking_mode',
  'max_page_count', 'query_only', 'read_uncommitted', 'recursive_triggers', 'reverse_unordered_selects',
  'secure_delete', 'short_column_names', 'synchronous', 'temp_store', 'threads', 'trusted_schema', 'writable_schema',
]
const compared: ReadonlySet<string> = new Set(readable)

/** Pragmas that only read when they have an argument, or change the file and not the handle. */
const harmless: ReadonlySet<string> = new Set([
  'table_info', 'table_xinfo', 'table_list', 'index_list', 'index_info', 'index_xinfo', 'foreign_key_list',
  'foreign_key_check', 'integrity_check',
  'quick_check', 'user_version', 'application_id', 'wal_checkpoint', 'optimize', 'incremental_vacuum',
])

/** What follows the word PRAGMA. Any other spelling (quotes, comments) counts as unreadable. */
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

interface Schema {
  temp: Array<[type: string, name: string, sql: string]>
  attached: Array<[name: string, file: string]>
}

const schemaQuery = `select json_object(
  'temp', (select json_group_array(json_array(type, name, sql)) from temp.sqlite_schema where name not like 'sqlite_%'),
  'attached', (select json_group_array(json_array(name, file)) from pragma_database_list
    where name not in ('main', 'temp')))`
const pragmasQuery = `select ${readable.map((name) => `(select * from pragma_${name})`).join(" || '|' || ")}`

/** Compares a handle with its state before its borrowers had it. */
export class Residue {
  readonly #ask: (sql: string) => unknown
  readonly #exec: (sql: string) => unknown
  #schema = ''
  #pragmas = ''

  /** @param ask returns the one value of a query's one row */
  constructor (ask: (sql: string) => unknown, exec: (sql: string) => unknown) {
    this.#ask = ask
    this.#exec = exec
  }

  /** The present state is what every borrower is to find. */
  remember (): void {
    this.#schema = this.#schemaNow()
    this.#pragmas = this.#pragmasNow()
  }

  /** The remembered value of a pragma. */
  pragma (name: string): string {
    return this.#pragmas.split('|')[readable.indexOf(name)]!
  }

  /** What differs from the remembered state, among what may have changed. */
  left (changed: number): string[] {
    const left = []
    if ((changed & unreadable) !== 0) left.push('settings that can not be read back')
    if ((changed & schema) !== 0 && this.#schemaNow() !== this.#schema) left.push('temp objects or attached databases')
    if ((changed & pragmas) !== 0 && this.#pragmasNow() !== this.#pragmas) left.push('changed pragmas')
    return left
  }

  /** Undoes what can be read back. */
  undo (changed: number): void {
    // First, since `query_only` would forbid the rest.
    if ((changed & pragmas) !== 0) this.#undoPragmas()
    if ((changed & schema) !== 0) this.#undoSchema()
  }

  #undoPragmas (): void {
    const before = this.#pragmas.split('|')
    for (const [index, value] of this.#pragmasNow().split('|').entries()) {
      if (value !== before[index]) this.#exec(`PRAGMA ${readable[index]} = ${before[index]}`)
    }
  }

  #undoSchema (): void {
    const before: Schema = JSON.parse(this.#schema)
    const now: Schema = JSON.parse(this.#schemaNow())
    const known = new Set(before.temp.map((object) => JSON.stringify(object)))
    const added = now.temp.filter((object) => !known.has(JSON.stringify(object)))
    // Dropping a table drops its indexes and triggers.
    const order = ['trigger', 'view', 'table', 'index']
    for (const [type, name] of added.sort(([a], [b]) => order.indexOf(a) - order.indexOf(b))) {
      this.#exec(`DROP ${type} IF EXISTS temp.${quote(name)}`)
    }
    for (const [name, file] of now.attached) {
      if (!before.attached.some((known) => known[0] === name && known[1] === file)) this.#exec(`DETACH ${quote(name)}`)
    }
    for (const [name, file] of before.attached) {
      if (now.attached.some((known) => known[0] === name && known[1] === file)) continue
      this.#exec(`ATTACH '${file.replaceAll("'", "''")}' AS ${quote(name)}`)
    }
  }

  #schemaNow (): string {
    return this.#ask(schemaQuery) as string
  }

  #pragmasNow (): string {
    return this.#ask(pragmasQuery) as string
  }
}
