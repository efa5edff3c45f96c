import type { ClientConfig } from 'pg'
import type { Socket } from 'node:net'
import type { Activity, Capacity, ServerState } from '../../../types/connector.js'
import type { Client } from '../../../types/drivers.js'
import { Properties } from '../shared/properties.js'
import { ServerSession } from '../shared/session.js'
import { capacityOf } from './capacity.js'
import { cancelLeft, end } from './ending.js'
import { outdated, readOnly, type Failed } from './errors.js'
import type { Inspection } from './inspect.js'
import { JoinedReset, type JoinedRounds } from './joined.js'
import type { PostgresReset } from './options.js'
import { PreparedNames } from './prepared.js'
import type { OwnQueries, Undo } from './queries.js'
import { messages, type Inside, type Wire } from './wire.js'

/** Makes the rejection of what the server says. @param first no command of the text had completed */
type Failing = (error: Error, first: boolean) => Error

/** What all sessions of a connector share. */
export interface Common {
  readonly own: OwnQueries
  readonly inspection: Inspection
  readonly mode: PostgresReset
  /** Of mode 'joined'. */
  readonly rounds: JoinedRounds
  scrub (error: unknown): Error
}

const nothing = Buffer.alloc(0)

/** What a reset resolves to that goes out in front of whatever is sent next. */
const joined = Promise.resolve()

/** Watches what goes through one `pg.Client`, and knows how to undo it. */
export class PostgresSession extends ServerSession<Client> {
  /**
   * The transaction status of the last ReadyForQuery. 'I': no transaction; 'T': in one; 'E': in one that has failed.
   */
  status = 'I'
  /** Counts each ReadyForQuery outside of a transaction: while a transaction is open, the number stays the same. */
  turn = 0
  /** Whether a command has completed, since our last BEGIN, that may have ended its transaction. */
  doubtful = false
  /** The last error that the server sent. */
  failure: Error | undefined
  /** What the connection was made from. */
  readonly base: ClientConfig
  /** The server has let go of the connection. */
  ended = false
  /** The server has closed its side. */
  #finished = false
  readonly #inside: Inside
  readonly #common: Common
  /** The TCP socket. With TLS, `#stream` is the TLS socket above it. */
  readonly #raw: Socket
  readonly #undo: Undo
  readonly #prepared: PreparedNames
  /** In mode 'joined'. */
  #joined: JoinedReset | undefined
  /** The server was asked to cancel what ran when the connection was abandoned. */
  #left: Promise<void> | undefined
  #stream: Socket
  #mode: PostgresReset = 'none'
  /** The stream's `bytesWritten` when the connection was clean last. */
  #mark = 0
  /** Whether the driver asks for binary results, as it was configured. */
  readonly #binary: unknown
  /** Of the client. From the first loan on. */
  #properties: Properties | undefined
  /** A borrower has called `setTypeParser`. */
  #typed = false
  /** A statement made by SQL PREPARE is out of date, and no reset of this mode removes it. */
  #spoilt = false
  /** When the last statement was sent, or answered. */
  #since = performance.now()
  /** A write was refused since the last ReadyForQuery. */
  #writeRefused = false
  /** Parameters that the server reports by itself, from PostgreSQL 14 on. */
  readonly #reports = { in_hot_standby: '', default_transaction_read_only: '' }
  /** An error came, and no ReadyForQuery since. */
  #failing = false
  /** Called with true by the next ReadyForQuery, with false at the end of the connection. */
  #settled: ((goesOn: boolean) => void) | undefined
  #told: (() => void) | undefined

  constructor (client: Client, common: Common, base: ClientConfig) {
    super(client)
    this.#inside = client as unknown as Inside
    this.#common = common
    this.base = base
    this.#binary = this.#inside.binary
    const { connection: wire } = this.#inside
    this.#stream = this.#raw = wire.stream
    this.#raw.on('end', () => { this.#finished = true })
    this.#undo = new common.own.Undo(this)
    this.#prepared = new PreparedNames(this.#inside)
    this.listeners.keep(client, 'error', (error: Error) => {
      // pg gives the server's own reason only to the query that was under way.
      const { severity } = (this.failure ?? {}) as { severity?: string }
      this.#ends(severity === 'FATAL' ? this.failure! : error)
    })
    this.listeners.keep(client, 'end', () => this.#ends(new Error('the connection was closed')))
    this.#time(wire)
    // These run before pg's own listeners, since those send the next query from there.
    wire.on('readyForQuery', ({ status }: { status: string }) => this.#ready(status))
    wire.on('commandComplete', ({ text }: { text: string }) => this.#completed(text))
    wire.on('errorMessage', (error: Failed) => this.#failed(error))
    wire.on('parameterStatus', ({ parameterName: name, parameterValue: value }: Record<string, string>) => {
      if (name === 'in_hot_standby' || name === 'default_transaction_read_only') this.#reports[name] = value!
    })
    wire.on('end', () => {
      this.ended = true
      this.#settled?.(false)
      this.#told?.()
    })
  }

  /** Notes when a statement is sent: each one sends one of these two messages. */
  #time (wire: Wire): void {
    const { query, bind } = wire
    wire.query = (text) => {
      this.#since = performance.now()
      query.call(wire, text)
    }
    wire.bind = (config, more) => {
      this.#since = performance.now()
      bind.call(wire, config, more)
    }
  }

  /** Starts to watch what borrowers do. From here on the connection may be lent. */
  open (): void {
    this.#mode = this.#common.mode
    this.#stream = this.#inside.connection.stream
    this.mark()
    if (!this.#isWhole) return
    if (this.#mode === 'joined') this.#join()
    this.listeners.follow()
    const set = this.connection.setTypeParser as (...args: unknown[]) => unknown
    const value = (...args: unknown[]) => {
      this.#typed = true
      return set.apply(this.connection, args)
    }
    Object.defineProperty(this.connection, 'setTypeParser', { value, writable: true, configurable: true })
  }

  override get socket (): Socket {
    return this.#stream
  }

  override get broken (): boolean {
    return this.dead || this.#inside._ending || !this.#stream.writable
  }

  override unfit (): boolean {
    // pg marks a client that has sent a query by `hasExecuted`.
    if (this.#properties === undefined) {
      const hidden = this.#joined === undefined ? ['setTypeParser'] : ['setTypeParser', 'query']
      this.#properties = new Properties(this.connection, ['hasExecuted'], hidden)
    }
    return this.broken || this.#spoilt
  }

  /** Nothing is queued or running. */
  get idle (): boolean {
    return this.#inside.readyForQuery === true
  }

  override describe (): Activity {
    const { processID } = this.#inside
    return {
      ...(processID !== null && { id: processID }),
      doing: !this.idle ? 'query' : this.status === 'I' ? 'idle' : 'idle in transaction',
      since: this.#since,
    }
  }

  /** Sends the empty statement, which is answered within a failed transaction too. */
  override async ping (): Promise<boolean> {
    await this.connection.query('')
    this.mark()
    return true
  }

  override async inspect (): Promise<ServerState> {
    const state = await this.#common.inspection.of(this.connection)
    this.mark()
    return state
  }

  override async capacity (): Promise<Capacity | undefined> {
    const capacity = await capacityOf(this.connection)
    this.mark()
    return capacity
  }

  /** Declares the connection clean: what was sent until now needs no reset. */
  mark (): void {
    this.#joined?.clean()
    this.#mark = this.#stream.bytesWritten
  }

  /** Nothing was sent since it was clean last. */
  get #isUnused (): boolean {
    return this.#joined === undefined ? this.#stream.bytesWritten === this.#mark : !this.#joined.used
  }

  // --- Reset ---------------------------------------------------------------------------------------------------------

  /** Everything that a borrower leaves is undone. */
  get #isWhole (): boolean {
    return this.#mode === 'session' || this.#mode === 'joined'
  }

  /** Queues the reset behind what is still running. undefined: there is nothing to undo. */
  undo (): Promise<void> | undefined {
    if (this.#isWhole) {
      const restored = this.#isTouched
      if (restored) this.#restoreObject()
      // `onConnect` may have added those listeners: a promise lets the pool run it again.
      if (this.idle && this.#isUnused) return restored ? Promise.resolve() : undefined
      if (this.#joined?.isAhead === false && this.idle && this.status === 'I') {
        this.#joined.begin(this.#forgetsStatements() ? messages.joinedDiscard : messages.joinedFresh)
        this.undone()
        return joined
      }
    } else if (this.#mode === 'none' || (this.idle && this.status === 'I')) {
      return undefined
    }
    const done = this.#undo.begin()
    this.#undoWhenIdle()
    return done
  }

  /** Waits for 'drain', since the driver's own queue warns of those who use it. */
  readonly #undoWhenIdle = (): void => {
    if (this.broken) return this.#undo.handleError(this.error ?? new Error('the connection ended while it was reset'))
    if (this.idle) return this.#undo.send()
    this.listeners.quietly(() => this.connection.once('drain', this.#undoWhenIdle))
  }

  /** The message to send when all earlier queries are answered. undefined: nothing. */
  undoing (): Buffer | undefined {
    if (this.#mode === 'transaction') return this.status === 'I' ? undefined : messages.rollback
    const discard = this.#forgetsStatements()
    if (this.status === 'I') return discard ? messages.discard : messages.fresh
    // In one message with ROLLBACK, where DISCARD ALL is refused.
    return discard ? messages.rollbackDiscard : messages.rollbackFresh
  }

  /** Whether all prepared statements go. Those that the driver knows of stay where it can trust what it knows. */
  #forgetsStatements (): boolean {
    const goes = this.#prepared.doubtful || this.#prepared.empty
    if (goes) this.#prepared.clear()
    return goes
  }

  undone (): void {
    this.#prepared.doubtful = false
    this.failure = undefined
    this.mark()
  }

  /** A borrower has changed the driver's object. */
  get #isTouched (): boolean {
    if (this.listeners.changed || this.#typed || this.#inside.binary !== this.#binary) return true
    return this.#properties?.changed === true
  }

  #restoreObject (): void {
    this.listeners.restore()
    this.#properties?.restore()
    this.#inside.binary = this.#binary
    if (!this.#typed) return
    const { _types: types } = this.#inside
    types.text = {}
    types.binary = {}
    this.#typed = false
  }

  /** From here on resets are joined. A query that may read the socket by itself waits for the reset's answer. */
  #join (): void {
    const { connection: client } = this
    const { own, rounds } = this.#common
    const reset = this.#joined = new JoinedReset(this, this.#inside.connection, rounds)
    const before = new own.Undo({
      connection: client,
      undoing: () => reset.awaitEnd() ? nothing : undefined,
      undone: () => {},
      cut: () => this.cut(),
    })
    const driver = Object.getPrototypeOf(client) as { query: (...args: unknown[]) => unknown }
    const value = (...args: unknown[]) => {
      const [query] = args
      const isOther = typeof query === 'object' && query !== null && 'submit' in query && !own.isPlain(query)
      if (isOther && reset.isAhead && this.idle) before.send()
      return Reflect.apply(driver.query, client, args)
    }
    Object.defineProperty(client, 'query', { value, writable: true, configurable: true })
  }

  abandon (error: Error, isRunning: boolean): void {
    if (isRunning) this.#left = cancelLeft(this)
    this.cut(error)
  }

  scrub (error: unknown): Error {
    return this.#common.scrub(error)
  }

  // --- What the server says ------------------------------------------------------------------------------------------

  #ready (status: string): void {
    this.status = status
    this.#since = performance.now()
    if (status === 'I') this.turn++
    this.#failing = false
    this.#settled?.(true)
    if (!this.#writeRefused) return
    this.#writeRefused = false
    // By now the server has reported what changed: it does so between the error and ReadyForQuery.
    const { in_hot_standby: standby, default_transaction_read_only: readsOnly } = this.#reports
    this.misplaced ||= standby !== 'off' || readsOnly !== 'off'
  }

  #completed (tag: string): void {
    // The tag ROLLBACK also ends ROLLBACK TO SAVEPOINT and ROLLBACK AND CHAIN.
    if (tag === 'ROLLBACK' || tag === 'COMMIT' || tag === 'PREPARE TRANSACTION') this.doubtful = true
    else this.#prepared.completed(tag)
  }

  #failed (error: Failed): void {
    this.failure = error
    this.#failing = true
    if (error.code === readOnly) this.#writeRefused = true
    else if (outdated.has(error.code) && !this.#prepared.refused(error)) {
      if (this.#isWhole) this.#prepared.doubtful = true
      else this.#spoilt = true
    }
  }

  // --- Statements of ours --------------------------------------------------------------------------------------------

  /**
   * Queues a statement behind all that is queued already.
   *
   * @param decide called when its turn has come: returns the text to send, or the error to reject with instead
   * @returns the tag of its last command
   */
  run (decide: () => string | Error, failed: Failing = (error) => error): Promise<string> {
    return new Promise((resolve, reject) => {
      const step = new this.#common.own.Step(decide, (error, result) => {
        if (error) return reject(failed(error, step.completed === 0))
        const [last] = [result!].flat().slice(-1)
        resolve(last!.command)
      })
      this.connection.query(step)
    })
  }

  /**
   * Whether the server goes on after its last error: it sends ReadyForQuery behind the error, or ends the connection.
   * What others have queued meanwhile is not waited for.
   */
  settles (): Promise<boolean> {
    return new Promise((resolve) => {
      if (!this.#failing || this.ended) resolve(!this.#failing)
      else this.#settled = resolve
    })
  }

  // --- End -----------------------------------------------------------------------------------------------------------

  protected override async close (): Promise<void> {
    const cut = this.ended || this.#inside.connection.stream.destroyed
    this.#joined?.end()
    if (!this.ended) await end(this)
    if (this.#left !== undefined) await this.#left
    else if (cut && !this.idle && !this.#finished) await cancelLeft(this)
  }

  onEnd (told: () => void): void {
    this.#told = told
  }

  protected override drop (): void {
    this.cut()
  }

  /** Ends the connection at once. Whatever waits for an answer is rejected, with `error` where there is one. */
  cut (error?: Error): void {
    this.#inside.connection.stream.destroy(error)
    this.#raw.destroy()
  }

  /** pg tells a death up to three times: `error` with the reason, `error` that it is closed, `end`. */
  #ends (error: Error): void {
    if (this.dead) return
    this.dead = true
    this.error = error
    this.#undo.handleError(error)
    this.#joined?.end()
    this.die()
  }
}
