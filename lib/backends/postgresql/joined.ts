import { performance } from 'node:perf_hooks'
import type { Socket } from 'node:net'
import type { Client } from '../../../types/drivers.js'
import { PoolError, badOption, show } from '../../engine/errors.js'
import { isPassing, type Failed } from './errors.js'
import type { Inside, Wire } from './wire.js'

// The reset of mode 'joined' is not sent when a connection comes back. Its bytes go out in front of what is written
// next, in the same write; where nobody writes, they go out alone in the next turn of the event loop. The driver knows
// nothing of it: a gate in front of its listeners takes the answers out.
//
// The next borrower's statement is on its way before the reset is known to have worked, so a reset that fails must end
// the session in the server, with all that stands behind it (`messages.joined` in wire.ts does that).

/** What a joined reset asks of its session. */
export interface JoinedSite {
  /** Nothing that the driver knows of is queued or running. */
  readonly idle: boolean
  /**
   * Ends the connection at once.
   *
   * @param isRunning the server may still be at it, and go on to what is behind it: it is asked to cancel
   */
  abandon (error: Error, isRunning: boolean): void
  /** As `error.cause`, which users see. */
  scrub (error: unknown): Error
}

/** What the server says in answer to a reset, or still to the last borrower: nobody is told. */
const answers: ReadonlySet<string> = new Set([
  'parseComplete', 'bindComplete', 'commandComplete', 'rowDescription', 'dataRow', 'notice', 'notification', 'message',
])

/** Up to this size what follows is copied behind the reset, into one buffer: two would cost more. */
const small = 16_384

/** The joined resets of one connection. */
export class JoinedReset {
  /** The connection was written to since `clean`. */
  used = false
  /** When the reset was written. */
  sentAt = 0
  readonly #site: JoinedSite
  readonly #wire: Wire
  readonly #rounds: JoinedRounds
  readonly #write: Socket['write']
  /** What is to be written in front of the next bytes. */
  #unsent: Buffer | undefined
  /** From the borrower's return until the server has answered. */
  #isAhead = false
  /** The driver waits for the end of the reset. */
  #isAwaited = false

  constructor (site: JoinedSite, wire: Wire, rounds: JoinedRounds) {
    this.#site = site
    this.#wire = wire
    this.#rounds = rounds
    const { stream } = wire
    const { write } = stream
    this.#write = write
    stream.write = ((chunk: Uint8Array | string, encoding?: BufferEncoding, done?: () => void): boolean => {
      this.used = true
      return this.#isAhead ? this.#join(chunk, encoding, done) : write.call(stream, chunk, encoding, done)
    }) as Socket['write']
    const { emit } = wire
    wire.emit = (...args: [string, ...unknown[]]): boolean =>
      (this.#isAhead && this.#takes(args[0], args[1])) || Reflect.apply(emit, wire, args)
  }

  /** A reset is not yet answered, or not even written. */
  get isAhead (): boolean {
    return this.#isAhead
  }

  /** A reset was written, and is not answered. */
  get isUnanswered (): boolean {
    return this.#isAhead && this.#unsent === undefined
  }

  /** What was written until now needs no reset. */
  clean (): void {
    this.used = false
  }

  /** The borrower is gone, and nothing of it runs: the reset comes before anything else. */
  begin (message: Buffer): void {
    this.clean()
    this.#isAhead = true
    this.#unsent = message
    this.#rounds.flushSoon(this)
  }

  /** Writes the reset where nobody has done so. */
  flush (): void {
    const { stream } = this.#wire
    const message = this.#send()
    if (message !== undefined && stream.writable) this.#write.call(stream, message)
  }

  /** The connection ends: what is not written yet is not written any more, and no answer is waited for. */
  end (): void {
    if (this.#unsent !== undefined) this.#isAhead = false
    this.#unsent = undefined
    this.#rounds.answered(this)
  }

  /** A query of ours has the turn: it writes nothing, and ends with the reset. False: there is none to wait for. */
  awaitEnd (): boolean {
    if (!this.#isAhead) return false
    this.flush()
    this.#isAwaited = true
    return true
  }

  overdue (timeout: number): void {
    this.#fail(`was not answered within ${timeout} ms (resetTimeout)`, undefined, true)
  }

  #send (): Buffer | undefined {
    const message = this.#unsent
    if (message === undefined) return undefined
    this.#unsent = undefined
    this.#rounds.sent(this)
    return message
  }

  #join (chunk: Uint8Array | string, encoding: BufferEncoding | undefined, done: (() => void) | undefined): boolean {
    const { stream } = this.#wire
    // Who reads the socket by himself would take the answers to the reset for his own.
    if (stream.listenerCount('data') === 0) {
      this.#fail('can not be answered while a query reads the socket by itself; call query() of the connection for it')
      return false
    }
    const message = this.#send()
    if (message === undefined) return this.#write.call(stream, chunk as Buffer, encoding, done)
    if (typeof chunk === 'string' || chunk.length > small || stream.writableCorked > 0) {
      this.#write.call(stream, message)
      return this.#write.call(stream, chunk as Buffer, encoding, done)
    }
    const both = Buffer.allocUnsafe(message.length + chunk.length)
    both.set(message)
    both.set(chunk, message.length)
    return this.#write.call(stream, both, encoding, done)
  }

  /** Whether an event is about the reset, and goes no further. */
  #takes (name: string, detail: unknown): boolean {
    if (answers.has(name)) return true
    // Before the reset is written, an error is the connection's end.
    if (this.#unsent !== undefined) return false
    if (name === 'readyForQuery') {
      this.#isAhead = false
      this.#rounds.answered(this)
      const isOurs = !this.#isAwaited
      this.#isAwaited = false
      return isOurs
    }
    // That the server ends, or was told to end the session, is no failure of the reset.
    if (name !== 'errorMessage' || isPassing(detail)) return false
    this.#fail('failed', detail as Failed)
    return true
  }

  #fail (what: string, cause?: Error, isRunning = false): void {
    this.#rounds.answered(this)
    const message = `the reset of a connection (reset: 'joined') ${what}; the connection was destroyed`
    const error = new PoolError('FST_POOL_RESET_FAILED', message, { cause: cause && this.#site.scrub(cause) })
    this.#site.abandon(error, isRunning)
  }
}

/** The joined resets of all connections of one pool: what is to be written, and what is to be answered in time. */
export class JoinedRounds {
  readonly #timeout: number
  #unsent: JoinedReset[] = []
  #flushing: NodeJS.Immediate | undefined
  /** Written and not answered, the oldest first. */
  readonly #awaited = new Set<JoinedReset>()
  #alarm: NodeJS.Timeout | undefined
  #dueAt = 0

  /** @param timeout how long the server has to answer, in ms */
  constructor (timeout: number) { this.#timeout = timeout }

  flushSoon (reset: JoinedReset): void {
    this.#unsent.push(reset)
    this.#flushing ??= setImmediate(this.#flush)
  }

  sent (reset: JoinedReset): void {
    reset.sentAt = performance.now()
    this.#awaited.add(reset)
    if (this.#alarm === undefined) this.#arm(this.#timeout)
  }

  answered (reset: JoinedReset): void {
    this.#awaited.delete(reset)
  }

  readonly #flush = (): void => {
    this.#flushing = undefined
    const unsent = this.#unsent
    this.#unsent = []
    for (const reset of unsent) reset.flush()
  }

  /** The pool has closed. */
  close (): void {
    clearImmediate(this.#flushing)
    clearTimeout(this.#alarm)
  }

  /** One timer for all: it is not stopped by an answer, so that a return costs none. */
  #arm (ms: number): void {
    this.#dueAt = performance.now() + ms
    this.#alarm = setTimeout(this.#ring, ms).unref()
  }

  /** Judges after the sockets were read: where the event loop stood still, the answers may be there. */
  readonly #ring = (): void => {
    const late = performance.now() - this.#dueAt
    setImmediate(() => {
      this.#alarm = undefined
      const now = performance.now()
      // The event loop stood still, for how long nobody knows: they have all of their time again.
      if (late > tolerated) for (const reset of this.#awaited) reset.sentAt = now
      this.#judge(now)
    })
  }

  #judge (now: number): void {
    for (const reset of this.#awaited) {
      const left = reset.sentAt + this.#timeout - now
      if (left > 0) return this.#arm(Math.ceil(left))
      reset.overdue(this.#timeout)
    }
  }
}

/** A timer later than that, in ms, tells of an event loop that stood still. */
const tolerated = 20

// --- Where it works --------------------------------------------------------------------------------------------------

/** Read as text, whatever type parsers there are. */
const question = {
  text: "SELECT pg_backend_pid(), current_setting('exit_on_error', true), current_setting('server_version', true)",
  rowMode: 'array' as const,
  types: { getTypeParser: () => String },
}

/** SQLSTATEs by which a server that only speaks PostgreSQL's protocol may refuse the question. */
const isUnknown = ({ code }: Failed): boolean => code === '0A000' || code?.startsWith('42') === true

/**
 * Looks whether the server itself answers, and knows what a joined reset needs.
 *
 * @throws `FST_POOL_BAD_OPTIONS`; what the connection died of
 */
export async function refuseUnlessJoined (client: Client): Promise<void> {
  const { rows: [row = []] } = await client.query<string[]>(question).catch((error: Failed) => {
    if (isUnknown(error)) return { rows: [] }
    throw error
  })
  const [pid, exits, version = 'unknown'] = row
  const refuse = (expected: string) => badOption('reset', 'joined', expected)
  if (pid === undefined || exits == null) {
    throw refuse(`'session', since this server (version ${show(version.split(' ')[0]!)}) does not know exit_on_error`)
  }
  if (Number(pid) !== (client as unknown as Inside).processID) {
    throw refuse("'transaction' behind a proxy such as PgBouncer, or a url that leads to the server itself")
  }
}
