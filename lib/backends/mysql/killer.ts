import { Commands } from './commands.js'
import { cut, type Core } from './wire.js'

/** How long one try to reach the server may take, in ms. */
const tryTimeout = 1000
/** How long it is tried while the server refuses a connection and no other one is idle, in ms. */
const patience = 2000
/** How long the end of the pool waits for what is being killed, in ms. */
const grace = 500
/** The first and the longest pause between two looks, in ms. */
const pauses = { first: 5, longest: 500 }

/** ER_NO_SUCH_THREAD: it has ended by itself. */
const noSuchThread = 1094

/** By what the server knows a connection that was cut off. */
export interface Victim {
  readonly id: number
  readonly user: unknown
  /** Of our socket. undefined: it has none, or nobody knows it. */
  readonly port: number | undefined
  /** The server's address. */
  readonly host: string | undefined
}

export function victimOf ({ threadId, config, stream }: Core): Victim {
  return { id: threadId, user: config.user, port: stream.localPort, host: stream.remoteAddress }
}

/** A connection over which the server is asked: the killer's own, or an idle one of the pool. */
interface Line { readonly core: Core, readonly commands: Commands }

/** What killing asks of the connector. */
interface KillerSite {
  /** Opens a connection outside of the pool. */
  open (signal: AbortSignal): Promise<Core>
  /** A connection of the pool on which nothing is under way, and nothing was sent since it was clean. */
  idle (): Line | undefined
  /** A statement could not be killed. Called once. */
  tell (reason: Error): void
}

interface Case {
  readonly victim: Victim
  readonly resolve: () => void
  killed: boolean
}

/** One row of the process list. */
type Row = readonly [id: unknown, user: unknown, host: unknown]

/**
 * Ends the statements of connections that were cut off while they ran: MySQL and MariaDB go on with them, for nobody,
 * and count their connections. All of a connector are ended over one connection, which is opened at the first need and
 * closed when none is left.
 *
 * Thread ids are per server, so a statement is killed only where the process list shows its id with our user and the
 * port of our socket. Behind a balancer another server may answer, and behind NAT the port is another one: there
 * nothing is killed.
 */
export class Killer {
  readonly #site: KillerSite
  readonly #cases = new Set<Case>()
  #own: Core | undefined
  #work: Promise<void> | undefined
  /** Ends the present pause. */
  #wake: () => void = () => {}
  #closed = false
  /** Somebody was told that a statement goes on. */
  #told = false

  constructor (site: KillerSite) { this.#site = site }

  /**
   * Resolves when the server has let go of the connection, or where nobody can know. Never rejects.
   */
  end (victim: Victim): Promise<void> {
    if (this.#closed) return Promise.resolve()
    return new Promise((resolve) => {
      this.#cases.add({ victim, resolve, killed: false })
      this.#wake()
      this.#work ??= this.#run().finally(() => { this.#work = undefined })
    })
  }

  /** Waits a moment for what is under way. */
  async close (): Promise<void> {
    const timer = setTimeout(() => {
      this.#closed = true
      this.#giveUp()
      this.#own?.stream.destroy()
    }, grace)
    await this.#work
    clearTimeout(timer)
    this.#closed = true
  }

  async #run (): Promise<void> {
    const began = performance.now()
    let pause = pauses.first
    while (this.#cases.size > 0) {
      const known = this.#cases.size
      const line = await this.#line()
      if (line instanceof Error) {
        // What can't be reached may be gone with all that it did. Who refuses us is there.
        if (!isAnswer(line)) this.#giveUp(isGone(line) ? undefined : line)
        else if (performance.now() - began > patience) this.#giveUp(line)
      } else {
        await this.#look(line).catch((error: unknown) => this.#giveUp(error as Error))
      }
      if (this.#cases.size > known) pause = pauses.first
      if (this.#cases.size > 0) await this.#pause(pause)
      pause = Math.min(pause * 2, pauses.longest)
    }
    const own = this.#own
    this.#own = undefined
    if (own !== undefined) await cut(own)
  }

  /** The connection of our own; where the server refuses one, an idle connection of the pool. */
  async #line (): Promise<Line | Error> {
    if (this.#own === undefined) {
      try {
        this.#own = await this.#site.open(AbortSignal.timeout(tryTimeout))
      } catch (error) {
        const idle = isAnswer(error) ? this.#site.idle() : undefined
        return idle ?? error as Error
      }
    }
    return { core: this.#own, commands: new Commands(this.#own) }
  }

  /** Looks for all of them in the process list, and kills those that are ours. */
  async #look ({ core, commands }: Line): Promise<void> {
    const cases = [...this.#cases]
    const ids = cases.map(({ victim }) => victim.id).join()
    const rows = await inTime(commands.rows<Row>(
      `SELECT ID, USER, HOST FROM information_schema.PROCESSLIST WHERE ID IN (${ids}) OR ID = CONNECTION_ID()`, true))
    const me = victimOf(core)
    const reached = rows.some((row) => isOf(row, me))
    for (const one of cases) {
      const { victim } = one
      const row = rows.find(([id]) => Number(id) === victim.id)
      if (row !== undefined && isOf(row, victim)) {
        if (!one.killed) await this.#kill(commands, one)
      } else if (row === undefined && reached && victim.host === me.host) this.#settle(one)
      else this.#settle(one, new Error('behind NAT or a balancer nobody knows which connection of the server it was'))
    }
  }

  async #kill (commands: Commands, one: Case): Promise<void> {
    one.killed = true
    try {
      await inTime(commands.run([`KILL CONNECTION ${one.victim.id}`]))
    } catch (error) {
      if ((error as { errno?: unknown }).errno === noSuchThread) return
      if (!isAnswer(error)) throw error
      this.#settle(one, error as Error)
    }
  }

  #giveUp (error?: Error): void {
    for (const one of this.#cases) this.#settle(one, error)
    this.#wake()
  }

  #settle (one: Case, cause?: Error): void {
    this.#cases.delete(one)
    one.resolve()
    if (cause === undefined || this.#told) return
    this.#told = true
    this.#site.tell(cause)
  }

  #pause (ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms)
      this.#wake = () => {
        clearTimeout(timer)
        resolve()
      }
    })
  }
}

/** Whether a row of the process list is that connection. The host ends with the port, but for a Unix socket. */
function isOf ([id, user, host]: Row, victim: Victim): boolean {
  const [, port] = /:(\d+)$/.exec(String(host)) ?? []
  return Number(id) === victim.id && user === victim.user && port !== undefined && Number(port) === victim.port
}

/** The server has answered, if only with a refusal. */
function isAnswer (error: unknown): boolean {
  return (error as { readonly errno?: unknown, readonly sqlState?: unknown }).sqlState !== undefined
}

function isGone (error: unknown): boolean {
  return (error as { readonly code?: unknown }).code === 'ECONNREFUSED'
}

async function inTime<T> (work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`the server did not answer within ${tryTimeout} ms`)), tryTimeout)
  })
  try {
    return await Promise.race([work, late])
  } finally {
    clearTimeout(timer)
  }
}
