import type { Command, Core, Done, Outgoing } from './wire.js'

/** A statement, or what decides when its turn has come what is sent: undefined is nothing. */
type Step = string | (() => string | undefined)

/** The number of COM_RESET_CONNECTION. */
const resetConnection = 0x1f

/** Sends our own commands on one connection, through the driver's queue. */
export class Commands {
  readonly #core: Core
  /** Whether the command that is being queued is ours. */
  #ours = false

  constructor (core: Core) { this.#core = core }

  get ours (): boolean {
    return this.#ours
  }

  /** Whether any command is queued or under way, ours or not. */
  get busy (): boolean {
    const { _command: command, _commands: commands, _paused: paused } = this.#core
    return Boolean(command) || commands.length > 0 || paused
  }

  /** Sends statements that answer with an OK, one after the other with nothing in between. */
  async run (steps: readonly Step[]): Promise<void> {
    await this.#send<unknown>((done) => {
      const core = this.#core
      const rest = [...steps]
      const query = core.constructor.createQuery('', undefined, done, core.config)
      const { start } = query
      const next = () => {
        try {
          while (rest.length > 0) {
            const step = rest.shift()!
            const sql = typeof step === 'string' ? step : step()
            if (sql === undefined) continue
            query.sql = sql
            core._resetSequenceId()
            return start.call(query, undefined, core)
          }
          done(null)
        } catch (error) {
          done(error as Error)
        }
        return null
      }
      query.start = next
      query.doneInsert = next
      core.addCommand(query)
    })
  }

  async row (sql: string): Promise<unknown[]> {
    return (await this.rows<unknown[]>(sql, true))[0]!
  }

  async rows<T> (sql: string, rowsAsArray: boolean): Promise<T[]> {
    const core = this.#core
    const options = { sql, rowsAsArray, nestTables: false, typeCast: true }
    // Not by the driver's `query`, which applies the user's `queryFormat`.
    return await this.#send<T[]>((done) => {
      core.addCommand(core.constructor.createQuery(options, undefined, done as Done<unknown[]>, core.config))
    })
  }

  async ping (): Promise<void> {
    await this.#send((done) => this.#core.ping(done))
  }

  /** Logs in again, as the same user. */
  async changeUser (): Promise<void> {
    await this.#send((done) => this.#core.changeUser({}, done))
  }

  /** COM_QUIT. */
  quit (): void {
    this.#own(() => this.#core.end())
  }

  /**
   * COM_RESET_CONNECTION. The statements that the driver remembers are gone in the server.
   *
   * mysql2 before 3.22 has no method for it. There it is a query of no text, sent under that command's number.
   */
  async reset (): Promise<void> {
    const core = this.#core
    if (core.reset !== undefined) return await this.#send((done) => core.reset!(done))
    await this.#send<unknown>((done) => {
      const query = core.constructor.createQuery('', undefined, done, core.config)
      const { start, doneInsert } = query
      query.start = () => {
        const { writePacket } = core
        core.writePacket = ({ constructor: Packet }: Outgoing) => {
          writePacket.call(core, new Packet(0, Buffer.from([0, 0, 0, 0, resetConnection]), 0, 5))
        }
        try {
          return start.call(query, undefined, core)
        } finally {
          core.writePacket = writePacket
        }
      }
      query.doneInsert = (header) => {
        core._statements.clear()
        return doneInsert.call(query, header)
      }
      core.addCommand(query)
    })
  }

  #send<T = void> (send: (done: (error: Error | null | undefined, result?: T) => void) => void): Promise<T> {
    return new Promise((resolve, reject) => {
      this.#own(() => send((error, result) => error ? reject(error) : resolve(result as T)))
    })
  }

  #own (send: () => void): void {
    this.#ours = true
    try {
      send()
    } finally {
      this.#ours = false
    }
  }
}

/** The text that a command sends, where it has one. */
export function textOf (command: Command): string | undefined {
  return command.sql ?? command.statement?.query ?? command.query
}
