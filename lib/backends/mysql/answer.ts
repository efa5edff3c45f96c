import type { Command, Packet } from './wire.js'

/** Flags of the status that the server sends with each answer. */
const inTransaction = 1
const autocommit = 2

/** The last packet that came on a connection. Where none is under way it is the end of an answer. */
export class LastAnswer {
  #buffer: Buffer | undefined
  #offset = 0
  /** It is the answer to a `prepare`, which has no status. */
  #prepared = false

  /** Whether a transaction was open before the last error. */
  #before = false

  take ({ buffer, offset }: Packet, command: Command): void {
    if (buffer[offset] === 0xff) this.#before = this.isWithin
    this.#buffer = buffer
    this.#offset = offset
    this.#prepared = command.parameterCount !== undefined
  }

  /** undefined: an error, which does not say, or no answer yet. */
  get status (): number | undefined {
    const buffer = this.#buffer
    if (buffer === undefined || this.#prepared) return undefined
    const at = this.#offset
    if (buffer[at] === 0xfe) return buffer.readUInt16LE(at + 3)
    if (buffer[at] !== 0) return undefined
    // An OK: affected rows and insert id come first.
    const rest = afterNumber(buffer, afterNumber(buffer, at + 1))
    return buffer.readUInt16LE(rest)
  }

  /** undefined: it does not say. */
  get inTransaction (): boolean | undefined {
    const { status } = this
    return status === undefined ? undefined : (status & inTransaction) !== 0
  }

  /** Whether a transaction seems to be open: where the last answer does not say, what the one before it said. */
  get isWithin (): boolean {
    return this.inTransaction ?? this.#before
  }

  /** False also where it does not say. */
  get autocommit (): boolean {
    return ((this.status ?? 0) & autocommit) !== 0
  }

  /** No transaction is open, and none begins by itself. */
  get idle (): boolean {
    return this.inTransaction === false && this.autocommit
  }
}

/** Where the length-encoded number that is at `at` ends. */
function afterNumber (buffer: Buffer, at: number): number {
  const first = buffer[at]!
  if (first < 0xfb) return at + 1
  return at + (first === 0xfc ? 3 : first === 0xfd ? 4 : 9)
}
