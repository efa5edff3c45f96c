import type { Connection as Callbacks } from 'mysql2'
import type { EventEmitter } from 'node:events'
import type { Socket } from 'node:net'
import type { Connection } from '../../../types/drivers.js'
import type { DriverKind } from '../shared/driver.js'
import { cutAtAbort, unlessAborted } from '../shared/signal.js'

export type Driver = Pick<typeof import('mysql2'), 'createConnection'>

/** What tells mysql2 from other modules. */
interface ModuleShape { readonly createConnection: unknown, readonly Connection: { prototype?: Partial<Callbacks> } }

export const mysqlDriver: DriverKind<Driver> = {
  backend: 'mysql',
  name: 'mysql2',
  expected: 'the module mysql2',
  read (module) {
    const { createConnection, Connection } = module as Partial<ModuleShape>
    const isDriver = typeof createConnection === 'function' && typeof Connection?.prototype?.promise === 'function'
    return isDriver ? module as unknown as Driver : undefined
  },
  // mysql2/promise: its connections can't be ended before they are connected.
  belongs: ({ PromiseConnection }) => typeof PromiseConnection === 'function',
}

/** A command of the driver's queue. */
export interface Command {
  sql?: string
  /** Of a statement that is prepared. */
  readonly query?: string
  readonly statement?: { readonly query: string }
  readonly parameterCount?: number
  readonly id?: number
}

interface Query extends Command {
  start (packet: undefined, connection: Core): unknown
  doneInsert (header: unknown): unknown
}

export type Done<T = void> = (error: Error | null, result?: T) => void

export interface Packet { readonly buffer: Buffer, readonly offset: number, readonly end: number }

/** A packet to be sent. Its first four bytes are filled in when it is sent. */
export interface Outgoing {
  readonly constructor: new (id: number, buffer: Buffer, start: number, end: number) => Outgoing
}

/** What is used of mysql2, typed here: its own types differ from version to version. */
export interface Core extends EventEmitter {
  readonly constructor: {
    createQuery (sql: string | object, values: undefined, done: Done<unknown[]>, config: object): Query
  }
  readonly config: Record<string, unknown> & { readonly clientFlags: number }
  readonly stream: Socket
  /** The server's id of it. Another server may have the same. */
  readonly threadId: number
  /** From 3.16 on. */
  readonly state?: string
  readonly authorized: boolean
  clientEncoding: string
  _closing?: boolean
  readonly _fatalError?: unknown
  readonly _protocolError?: unknown
  readonly _command: Command | null | undefined
  readonly _commands: { readonly length: number }
  readonly _statements: { entries (): Iterable<[string, unknown]>, delete (key: string): void, clear (): void }
  readonly _paused: boolean
  _resetSequenceId (): void
  _notifyError (error: Error): void
  addCommand (command: Command): unknown
  handlePacket (packet?: Packet): void
  writePacket (packet: Outgoing): void
  connect (done: Done): void
  ping (done: Done): void
  /** From 3.22 on. */
  reset? (done: Done): void
  changeUser (options: object, done: Done): void
  end (): void
  promise (): Connection
}

/** Whether it is logged in and neither side has ended it. From 3.16 on the driver's `state` says so. */
export function isOpen (core: Core): boolean {
  if (core.state !== undefined) return core.state === 'authenticated'
  return core.authorized && !core._closing && !core._fatalError && !core._protocolError && !core.stream.destroyed
}

/** Ends a connection at once, whatever it is doing. The driver's own `destroy()` only half-closes it. */
export async function cut (core: Core): Promise<void> {
  const { stream } = core
  if (!stream.closed) {
    await new Promise<void>((resolve) => {
      stream.once('close', () => resolve())
      stream.destroy()
    })
  }
  // Where the borrower had closed it himself, the driver does not reject the commands that wait for an answer.
  if (core._command || core._commands.length > 0) core._notifyError(new Error('the connection was closed'))
}

/** Settles as `work` does. At the signal the connection is cut off, so that nothing hangs. */
export async function within (core: Core, signal: AbortSignal, work: Promise<void>): Promise<void> {
  await cutAtAbort(signal, () => core.stream.destroy(), () => unlessAborted(work, signal))
}
