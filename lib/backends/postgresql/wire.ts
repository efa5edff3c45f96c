import type { EventEmitter } from 'node:events'
import type { Socket } from 'node:net'
import type { Client } from '../../../types/drivers.js'
import type { DriverKind } from '../shared/driver.js'

/** What is used of the module pg. */
export interface Driver { readonly Client: new (config: object) => Client, readonly Query: unknown }

export const postgresDriver: DriverKind<Driver> = {
  backend: 'postgresql',
  name: 'pg',
  expected: 'the module pg, or an object with its Client (not pg.native)',
  read ({ Client }) {
    const { prototype, Query } = (Client ?? {}) as { prototype?: Partial<Client>, Query?: unknown }
    // The native client has no `escapeLiteral`, and no connection that could be cut.
    const isDriver = typeof prototype?.escapeLiteral === 'function' && typeof Query === 'function'
    return isDriver ? { Client: Client as Driver['Client'], Query } : undefined
  },
}

export const terminate = Buffer.from([0x58, 0, 0, 0, 4])

/** Goes back to how a session begins: as DISCARD ALL, but prepared statements stay. */
const fresh = 'CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *; ' +
  'SELECT pg_advisory_unlock_all(); DISCARD SEQUENCES; DISCARD TEMP'

/**
 * The same for a reset that others' statements stand behind, none of which may run where it fails.
 *
 * `exit_on_error` has each error end the session. Until it is set, the extended protocol does the same: without a Sync
 * behind it, the server skips what follows an error. COMMIT comes before RESET ALL, which turns `exit_on_error` off:
 * the reset may fail in its commit. `search_path` and the isolation level are still the last borrower's.
 */
function joined (also = ''): Buffer {
  return Buffer.concat([
    unsynced('SET exit_on_error = on'),
    message('BEGIN ISOLATION LEVEL READ COMMITTED; CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; UNLISTEN *; ' +
      `SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD SEQUENCES; DISCARD TEMP; ${also}COMMIT; RESET ALL`),
  ])
}

/** Encoded once, since one of them is sent at each return. */
export const messages = {
  rollback: message('ROLLBACK'),
  discard: message('DISCARD ALL'),
  fresh: message(fresh),
  rollbackDiscard: message(`ROLLBACK; ${fresh}; DEALLOCATE ALL`),
  rollbackFresh: message(`ROLLBACK; ${fresh}`),
  joinedDiscard: joined('DEALLOCATE ALL; '),
  joinedFresh: joined(),
}

/** A simple query of the protocol: 'Q', the length of the rest, the text, 0. */
function message (text: string): Buffer {
  const buffer = Buffer.alloc(text.length + 6)
  buffer.write('Q')
  buffer.writeInt32BE(text.length + 5, 1)
  buffer.write(text, 5)
  return buffer
}

/** Parse, Bind and Execute of a statement without parameters: its name and its portal's are empty. */
function unsynced (text: string): Buffer {
  const [parse, bind, execute] = [Buffer.alloc(text.length + 9), Buffer.alloc(13), Buffer.alloc(10)]
  for (const [type, buffer] of [['P', parse], ['B', bind], ['E', execute]] as const) {
    buffer.write(type)
    buffer.writeInt32BE(buffer.length - 1, 1)
  }
  parse.write(text, 6)
  return Buffer.concat([parse, bind, execute])
}

/** Internals of pg that are not in its types. All of them are in 8.11 too, unless they may be undefined. */
export interface Inside {
  readonly connection: Wire
  readonly host: string
  readonly port: number
  readonly ssl: unknown
  readonly sslNegotiation?: string
  readonly processID: number | null
  binary: unknown
  readonly secretKey: number
  readonly readyForQuery: boolean | undefined
  readonly _ending: boolean
  /** The newer name. Where it exists, reading the older one warns. */
  readonly _activeQuery?: { readonly name?: string } | null
  readonly activeQuery?: { readonly name?: string } | null
  readonly connectionParameters: Record<string, unknown>
  readonly _types: { text: object, binary: object }
}

export interface Wire extends EventEmitter {
  readonly stream: Socket
  parsedStatements: object
  submittedNamedStatements?: object
  parse (query: { readonly name?: string }): void
  query (text: string): void
  bind (config?: object | null, more?: boolean): void
  close (what: { readonly type: 'S', readonly name: string }): void
  connect (port: number | string, host?: string): void
  requestSsl (): void
  cancel (processID: number, secretKey: number): void
}
