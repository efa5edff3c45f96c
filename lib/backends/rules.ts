// What single backends say of a pool's options, beyond the schema that all share.
import type { Options } from '../pool/schema.js'
import { adaptToSqlite } from './sqlite/options.js'

export interface BackendRules {
  /** What `targets` should be where there can be none, with the reason. undefined: there can. */
  readonly noTargets?: string
  /**
   * Refuses what the backend can't have, and sets its own defaults in `result`.
   *
   * @throws `FST_POOL_BAD_OPTIONS`
   */
  readonly adapt?: (result: Record<string, unknown>, given: Options, path: string) => void
}

const none: BackendRules = {}
const rules: Readonly<Record<string, BackendRules | undefined>> = {
  mongodb: {
    noTargets: 'none, since the url of mongodb lists all members, and connection.readPreference chooses',
  },
  sqlite: { noTargets: 'none, since sqlite is a file', adapt: adaptToSqlite },
}

export function rulesOf (backend: unknown): BackendRules {
  return rules[String(backend)] ?? none
}
