import type { ResolvedPoolOptions } from '../options.js'
import { patternOf, secretsOf } from '../../engine/secrets.js'

/** Where a pool's server is, and as whom it logs in, as far as its options say. No secret is in it. */
export interface Place {
  readonly host?: string
  readonly port?: number
  readonly database?: string
  readonly user?: string
}

type Options = Pick<ResolvedPoolOptions, 'url' | 'host' | 'port' | 'database' | 'connection'> & {
  readonly backend?: string | undefined
}

/** Their own ports. */
const ports: Readonly<Record<string, number>> = {
  postgresql: 5432, postgres: 5432, mysql: 3306, redis: 6379, mongodb: 27017,
}

/** `protocol://user:password@hosts/database?...` */
const form = /^[a-z][a-z+]*:\/\/(?:([^:@/?#]*)(?::[^@/?#]*)?@)?([^@/?#]*)(?:\/([^?#]*))?/i

export function placeOf (options: Options): Place {
  const { backend, host, port, database } = options
  const connection = typeof options.connection === 'function' ? {} : options.connection as Record<string, unknown>
  if (backend === undefined) return {}
  if (backend === 'sqlite') return clean({ database: text(options.url) }, options)
  // What a function says is not asked for the log.
  if (typeof options.url === 'function') return {}
  const [, userIn, hostsIn, databaseIn] = form.exec(text(options.url) ?? '') ?? []
  const [single, portIn] = hostsIn?.includes(',') === true ? [hostsIn] : splitPort(hostsIn)
  const isPostgres = backend === 'postgresql' || backend === 'postgres'
  const { PGHOST, PGPORT, PGUSER, PGDATABASE } = isPostgres ? process.env : {}
  const name = host ?? (single === '' ? undefined : single) ?? PGHOST ?? 'localhost'
  const isPath = name.startsWith('/')
  const number = port ?? portIn ?? (PGPORT === undefined ? undefined : Number(PGPORT)) ?? ports[backend]
  return clean({
    host: decode(name),
    port: isPath || name.includes(',') ? undefined : number,
    database: text(database) ?? text(connection.database) ?? text(connection.db) ?? decode(databaseIn) ?? PGDATABASE,
    user: text(connection.user) ?? text(connection.username) ?? decode(userIn) ?? PGUSER,
  }, options)
}

function splitPort (host: string | undefined): [host?: string, port?: number] {
  const [, name, port] = /^(.*?)(?::(\d+))?$/.exec(host ?? '') ?? []
  return [name, port === undefined ? undefined : Number(port)]
}

function text (value: unknown): string | undefined {
  return (typeof value === 'string' && value !== '') || typeof value === 'number' ? String(value) : undefined
}

function decode (value: string | undefined): string | undefined {
  if (value === undefined || value === '') return undefined
  try {
    return decodeURIComponent(value)
  } catch {
    return value
  }
}

/** Without what is not known, and without any secret: a password that is not encoded may look like a host. */
function clean (place: { readonly [K in keyof Place]?: Place[K] | undefined }, { url, connection }: Options): Place {
  const secrets = secretsOf({ url, connection })
  const pattern = secrets.length === 0 ? undefined : patternOf(secrets)
  const entries = Object.entries(place).filter(([, value]) => value !== undefined)
  const scrub = (value: unknown) =>
    typeof value === 'string' && pattern !== undefined ? value.replace(pattern, '***') : value
  return Object.fromEntries(entries.map(([key, value]) => [key, scrub(value)]))
}
