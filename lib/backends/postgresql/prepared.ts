import type { Failed } from './errors.js'
import type { Inside } from './wire.js'

/** Names of prepared statements: what the driver believes that the server has, and where the two have parted. */
export class PreparedNames {
  /** What the driver believes may be wrong: by statements in SQL (PREPARE, DEALLOCATE, DISCARD ALL). */
  doubtful = false
  readonly #inside: Inside
  /**
   * The driver has forgotten them, and the server may still have them. They are closed before they are prepared anew.
   */
  readonly #stale = new Set<string>()

  constructor (inside: Inside) { this.#inside = inside }

  /** Whether the driver holds none. */
  get empty (): boolean {
    const { parsedStatements: names } = this.#inside.connection
    for (const name in names) if (name in names) return false
    return true
  }

  /** All of the server's are about to go: a name that the driver takes for prepared would fail from then on. */
  clear (): void {
    this.#forgetAll()
    this.#stale.clear()
  }

  /** A command has completed: its tag tells whether it was one that prepares or deallocates in SQL. */
  completed (tag: string): void {
    if (inSql.has(tag)) this.doubtful = true
  }

  /**
   * The server has refused a prepared statement that is out of date: a migration has changed its tables or types, or it
   * was deallocated where no command tag tells. All that the driver has prepared is prepared anew when it is used next,
   * so that a connection meets this once, and not once for each name.
   *
   * @returns false where it was not one of the driver's, but one by SQL PREPARE: only the server's own list can be
   * reset
   */
  refused ({ code, routine }: Failed): boolean {
    const { _activeQuery: active = this.#inside.activeQuery } = this.#inside
    if (typeof active?.name === 'string' && active.name !== '') {
      this.#closeBeforeParse()
      // 42P05: one that the server has, and the driver does not know of.
      this.#stale.add(active.name)
      for (const name of Object.keys(this.#inside.connection.parsedStatements)) this.#stale.add(name)
      this.#forgetAll()
      return true
    }
    return code !== '26000' && routine !== 'RevalidateCachedQuery'
  }

  #forgetAll (): void {
    const { connection: wire } = this.#inside
    wire.parsedStatements = {}
    wire.submittedNamedStatements = {}
  }

  /**
   * From here on the protocol's Close goes out right before Parse, also within a failed transaction. DEALLOCATE would
   * be a round trip, and would fail there.
   */
  #closeBeforeParse (): void {
    const { connection: wire } = this.#inside
    if (Object.hasOwn(wire, 'parse')) return
    const { parse } = wire
    wire.parse = (query) => {
      if (this.#stale.delete(query.name!)) wire.close({ type: 'S', name: query.name! })
      parse.call(wire, query)
    }
  }
}

const inSql: ReadonlySet<string> = new Set(['PREPARE', 'DEALLOCATE', 'DEALLOCATE ALL', 'DISCARD ALL'])
