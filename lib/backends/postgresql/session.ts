import type { Socket } from 'node:net'
import type { ClientConfig } from 'pg'
import type { Client } from '../../../types/drivers.js'
import { terminate, messages } from './wire.js'
import type { Inside, Wire } from './wire.js'
import type { Undo, OwnQueries } from './queries.js'
import { readOnly, outdated } from './errors.js'
import type { Failed } from './errors.js'

export type Mode = 'session' | 'transaction' | 'none'

/** How long the server may take to let go of a connection, until it is cut off, in ms. */
const grace = 500

const guardKey: unique symbol = Symbol('fastify-pool guard')

export function guardOf (connection: Client): Guard {
  return (connection as Client & { [guardKey]: Guard })[guardKey]
}

/** Follows what goes through one connection, and knows how to undo it. */
export class Guard {
  readonly client: Client
  /** 'I': no transaction. 'T': in one. 'E': in one that has failed. Of the last ReadyForQuery. */
  status = 'I'
  /** How often it was seen outside of a transaction: while one is open, this stays. */
  turn = 0
  /** Since the last BEGIN of ours a command has completed that may have ended its transaction. */
  doubtful = false
  /** What the server complained of last. */
  failure: Error | undefined
  /** What the connection died of. */
  error: Error | undefined
  /** The server refused a write, and not because of the borrower's own transaction. */
  misplaced = false
  /** A statement by SQL PREPARE is of no use any more, and no reset will undo it. */
  spoilt = false
  readonly #inside: Inside
  readonly #own: OwnQueries
  readonly #base: ClientConfig
  /** The socket; with TLS that below it. */
  readonly #raw: Socket
  readonly #undo: Undo
  #stream: Socket
  #mode: Mode = 'none'
  /** The stream's `bytesWritten` when it was clean last. */
  #mark = 0
  /** What the driver believes to be prepared may not be what is. */
  #prepared = false
  /** Names that the driver has forgotten and the server may still have: closed there before they are prepared anew. */
  readonly #stale = new Set<string>()
  #added: Array<readonly [event: string | symbol, listener: Listener]> = []
  #typed = false
  /** We ourselves add a listener. */
  #adding = false
  /** A write was refused since the last ReadyForQuery. */
  #refused = false
  /** Of the server's reports, from PostgreSQL 14 on. */
  readonly #reports = { in_hot_standby: '', default_transaction_read_only: '' }
  /** An error came, and no ReadyForQuery since. */
  #failing = false
  /** Waits for which of the two it is. */
  #settled: ((goesOn: boolean) => void) | undefined
  #dead = false
  #ended = false
  #closing: Promise<void> | undefined
  #closed: (() => void) | undefined
  #cancelling: Wire | undefined
  #died: ((error: Error) => void) | undefined

  constructor (client: Client, own: OwnQueries, base: ClientConfig) {
    this.client = client
    this.#inside = client as unknown as Inside
    this.#own = own
    this.#base = base
    const { connection: wire } = this.#inside
    this.#stream = this.#raw = wire.stream
    this.#undo = new own.Undo(this)
    Object.defineProperty(client, guardKey, { value: this })
    client.on('error', this.#onError)
    client.on('end', this.#onEnd)
    client.on('removeListener' as 'end', this.#onRemove as () => void)
    // Before pg's own listeners, which go on with the next query from there.
    wire.on('readyForQuery', ({ status }: { status: string }) => {
      this.status = status
      if (status === 'I') this.turn++
      this.#failing = false
      this.#settled?.(true)
      if (this.#refused) this.#place()
    })
    wire.on('commandComplete', ({ text }: { text: string }) => this.#completed(text))
    wire.on('errorMessage', (error: Error & { code?: string }) => {
      this.failure = error
      this.#failing = true
      if (error.code === readOnly) this.#refused = true
      else if (outdated.has(error.code)) this.#forget(error)
    })
    wire.on('parameterStatus', ({ parameterName: name, parameterValue }: { parameterName: string, parameterValue: string }) => {
      if (name === 'in_hot_standby' || name === 'default_transaction_read_only') this.#reports[name] = parameterValue
    })
    wire.on('end', () => {
      this.#ended = true
      this.#settled?.(false)
      this.#closed?.()
    })
  }

  /** From here on the connection may be lent. */
  open (mode: Mode): void {
    this.#mode = mode
    this.#stream = this.#inside.connection.stream
    this.mark()
    if (mode !== 'session') return
    this.client.on('newListener' as 'end', this.#onNew as () => void)
    const set = this.client.setTypeParser
    const seam = (...args: unknown[]) => {
      this.#typed = true
      return (set as Listener).apply(this.client, args)
    }
    Object.defineProperty(this.client, 'setTypeParser', { value: seam, writable: true, configurable: true })
  }

  /** No I/O. Dead for good, or about to be. */
  get broken (): boolean {
    return this.#dead || this.#inside._ending || !this.#stream.writable
  }

  get idle (): boolean {
    return this.#inside.readyForQuery === true
  }

  /** It is clean now. */
  mark (): void {
    this.#mark = this.#stream.bytesWritten
  }

  onDeath (listener: (error: Error) => void): void {
    const { error } = this
    if (error !== undefined) queueMicrotask(() => listener(error))
    else this.#died = listener
  }

  /** Once the server has reported what changed meanwhile, which it does between an error and ReadyForQuery. */
  #place (): void {
    this.#refused = false
    const { in_hot_standby: standby, default_transaction_read_only: readsOnly } = this.#reports
    this.misplaced ||= standby !== 'off' || readsOnly !== 'off'
  }

  // --- Reset ----------------------------------------------------------------------------------------------------------------------------

  reset (): Promise<void> | undefined {
    if (this.#mode === 'session') {
      const restored = this.#added.length > 0 || this.#typed
      if (restored) this.#restoreObject()
      // A promise: then `onConnect` runs again, and may have been who changed the object.
      if (this.idle && this.#stream.bytesWritten === this.#mark) return restored ? Promise.resolve() : undefined
    } else if (this.#mode === 'none' || (this.idle && this.status === 'I')) {
      return undefined
    }
    const done = this.#undo.begin()
    this.#undoWhenIdle()
    return done
  }

  /** Not by the driver's queue, which warns of those who use it. */
  readonly #undoWhenIdle = (): void => {
    if (this.broken) return this.#undo.handleError(this.error ?? new Error('the connection ended while it was reset'))
    if (this.idle) return this.#undo.send()
    this.#adding = true
    this.client.once('drain', this.#undoWhenIdle)
    this.#adding = false
  }

  /** What is to be sent now, when all that came before has been answered. undefined: nothing. */
  undoing (): Buffer | undefined {
    if (this.#mode === 'transaction') return this.status === 'I' ? undefined : messages.rollback
    const { connection: wire } = this.#inside
    const discard = this.#prepared || isEmpty(wire.parsedStatements)
    if (discard) {
      // They go with these bytes: a name that the driver takes for prepared would fail from now on.
      this.#forgetNames()
      this.#stale.clear()
    }
    if (this.status === 'I') return discard ? messages.discard : messages.fresh
    // In one message, where DISCARD ALL refuses to be.
    return discard ? messages.rollbackDiscard : messages.rollbackFresh
  }

  undone (): void {
    this.#prepared = false
    this.failure = undefined
    this.mark()
  }

  #restoreObject (): void {
    for (const [event, listener] of this.#added) this.client.off(event, listener)
    this.#added = []
    if (this.#typed) {
      const { _types: types } = this.#inside
      types.text = {}
      types.binary = {}
      this.#typed = false
    }
  }

  #completed (tag: string): void {
    switch (tag) {
      // The tag of ROLLBACK TO a savepoint, and of ROLLBACK AND CHAIN, too.
      case 'ROLLBACK':
      case 'COMMIT':
      case 'PREPARE TRANSACTION':
        this.doubtful = true
        break
      case 'PREPARE':
      case 'DEALLOCATE':
      case 'DEALLOCATE ALL':
      case 'DISCARD ALL':
        this.#prepared = true
    }
  }

  // --- Prepared statements ------------------------------------------------------------------------------------------

  /**
   * A prepared statement is not what it was: a migration has changed its tables or types, or it was deallocated where
   * no command tag tells. All that the driver has prepared is prepared anew when it is used next, so that this is met
   * once on a connection, and not once for each name.
   */
  #forget ({ code, routine }: Failed): void {
    const { _activeQuery: active = this.#inside.activeQuery } = this.#inside
    const named = typeof active?.name === 'string' && active.name !== ''
    if (named) {
      this.#closeBeforeParse()
      // 42P05: one that the server has, and the driver does not know of.
      this.#stale.add(active.name!)
      for (const name of Object.keys(this.#inside.connection.parsedStatements)) this.#stale.add(name)
      this.#forgetNames()
    } else if (code === '26000' || routine === 'RevalidateCachedQuery') {
      if (this.#mode === 'session') this.#prepared = true
      else this.spoilt = true
    }
  }

  #forgetNames (): void {
    const { connection: wire } = this.#inside
    wire.parsedStatements = {}
    wire.submittedNamedStatements = {}
  }

  /** The two go out together, also within a failed transaction: DEALLOCATE would be a round trip, and fail there. */
  #closeBeforeParse (): void {
    const { connection: wire } = this.#inside
    if (Object.hasOwn(wire, 'parse')) return
    const { parse } = wire
    wire.parse = (query) => {
      if (this.#stale.delete(query.name!)) wire.close({ type: 'S', name: query.name! })
      parse.call(wire, query)
    }
  }

  // --- Statements of ours ---------------------------------------------------------------------------------------------------------------

  /**
   * Behind all that is queued already.
   *
   * @param decide asked when its turn has come: what is sent, or why nothing is
   * @param failed makes the rejection of what the server says; `first`: no command of the text had completed
   * @returns the tag of its last command
   */
  run (decide: () => string | Error, failed: Failing = (error) => error): Promise<string> {
    return new Promise((resolve, reject) => {
      const step = new this.#own.Step(decide, (error, result) => {
        if (error) return reject(failed(error, step.completed === 0))
        const [last] = [result!].flat().slice(-1)
        resolve(last!.command)
      })
      this.client.query(step)
    })
  }

  /**
   * Whether the server goes on after the error that came last. It says so behind the error, and where it ends the
   * connection it does not. What others have queued meanwhile is not waited for.
   */
  settles (): Promise<boolean> {
    return new Promise((resolve) => {
      if (!this.#failing || this.#ended) resolve(!this.#failing)
      else this.#settled = resolve
    })
  }

  // --- End ------------------------------------------------------------------------------------------------------------------------------

  close (): Promise<void> {
    this.#closing ??= this.#ended ? Promise.resolve() : this.#close()
    return this.#closing
  }

  #close (): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => this.cut(), grace)
      let again: NodeJS.Timeout | undefined
      this.#closed = () => {
        clearTimeout(timer)
        clearTimeout(again)
        this.#cancelling?.stream.destroy()
        resolve()
      }
      const { stream } = this.#inside.connection
      if (stream.destroyed) return
      // A borrower may have paused it, and then its end would never be seen.
      stream.resume()
      if (this.idle && !this.broken) {
        this.client.end(() => {})
        return
      }
      // Not `client.end()`, which cuts: the server would go on with the statement, and not be heard when it lets go.
      const { processID } = this.#inside
      if (this.broken || this.idle || processID === null) {
        stream.end(terminate)
        return
      }
      // What is queued must not go out when the statement has been cancelled.
      stream.write = () => false
      const cancel = () => {
        this.#cancelling = this.#cancel(processID).on('end', () => {
          if (this.#ended) return
          // Not before the server knows: a PgBouncer forgets whom to cancel.
          if (!stream.writableEnded) stream.end(terminate)
          // The server does nothing where the statement reaches it after that.
          again = setTimeout(cancel, grace / 5)
        })
      }
      cancel()
    })
  }

  /** Asks the server, over another connection that it then ends, to end what runs on this one. */
  #cancel (processID: number): Wire {
    const { secretKey, host, port, ssl, sslNegotiation } = this.#inside
    const Connection = this.#inside.connection.constructor as new (config: object) => Wire
    const wire = new Connection({ ssl, sslNegotiation, stream: this.#base.stream })
    const ask = () => wire.cancel(processID, secretKey)
    wire.on('connect', () => {
      if (!ssl) ask()
      else if (sslNegotiation !== 'direct') wire.requestSsl()
    })
    wire.on('sslconnect', ask)
    wire.on('error', () => {
      // The statement goes on then. There is nobody to tell, and its connection is cut at the end of the grace.
      wire.stream.destroy()
    })
    if (host.startsWith('/')) wire.connect(`${host}/.s.PGSQL.${port}`)
    else wire.connect(port, host)
    return wire
  }

  /** At once. Whatever waits for an answer is rejected. */
  cut (): void {
    this.#inside.connection.stream.destroy()
    this.#raw.destroy()
  }

  readonly #onError = (error: Error): void => {
    // With a query under way it was that query which was told the reason.
    const { severity } = (this.failure ?? {}) as { severity?: string }
    this.#die(severity === 'FATAL' ? this.failure! : error)
  }

  readonly #onEnd = (): void => { this.#die(new Error('the connection was closed')) }

  /** A death is told up to three times: `error` with the reason, `error` that it is closed, `end`. */
  #die (error: Error): void {
    if (this.#dead) return
    this.#dead = true
    this.error = error
    this.#undo.handleError(error)
    const died = this.#died
    this.#died = undefined
    if (this.#closing === undefined) died?.(error)
  }

  readonly #onNew = (event: string | symbol, listener: Listener): void => {
    if (!this.#adding) this.#added.push([event, listener])
  }

  /** A borrower's `removeAllListeners()` takes ours away too: then nothing is known any more. */
  readonly #onRemove = (_event: string | symbol, listener: Listener): void => {
    const ours: unknown[] = [this.#onError, this.#onEnd, this.#onNew, this.#onRemove]
    if (!ours.includes(listener)) return
    this.#dead = true
    // Once all are gone. Without a listener an error ends the process.
    process.nextTick(() => {
      if (!this.client.listeners('error').includes(this.#onError)) this.client.on('error', this.#onError)
    })
  }
}

type Listener = (...args: unknown[]) => void

type Failing = (error: Error, first: boolean) => Error

function isEmpty (statements: object): boolean {
  for (const name in statements) if (name in statements) return false
  return true
}
