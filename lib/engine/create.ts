import type { FailureKind } from '../../types/connector.js'
import type { Circuit as CircuitState } from '../../types/pool.js'
import { Backoff } from './backoff.js'
import { Circuit } from './circuit.js'
import type { Checks } from './checks.js'
import { CREATING, Creation, Entry, LATE, VALIDATING } from './entry.js'
import { kindOfSystem } from './failure.js'
import type { Hooks } from './hooks.js'
import { wrap, type Site as HostSite } from './host.js'
import { Room } from './room.js'

/** What the creator asks of the engine. */
export interface Site<C> extends HostSite<C> {
  readonly hooks: Hooks<C>
  readonly checks: Checks<C>
  /** The driver tells of a connection's death. */
  died (entry: Entry<C>, cause: Error | undefined): void
  /** The connection is ready: for the first in line, else it becomes idle. */
  offer (entry: Entry<C>): void
  destroy (entry: Entry<C>, reason: NonNullable<Creation['unwanted']>, error?: Error): void
  /** Destroys a connection that came after its deadline. */
  destroyLate (entry: Entry<C>): void
  gone (entry: Entry<C>): void
  pump (): void
}

/** Whom the creator tells of its results. */
export interface Told {
  /** The app has functions that may give another login to the next create. */
  readonly loginChanges: boolean
  /** A connection was made, within `took` ms, and has been offered. */
  made (took: number): void
  /** @param cause what was thrown. @param error its scrubbed copy */
  failed (cause: unknown, error: Error): void
}

/** After so many failures in a row beside connections that work, the server is taken to allow no more. */
const SURE = 3

/** Creates connections. A create belongs to the pool: it goes on when the caller that it began for has left. */
export class Creator<C> extends Room<C, Site<C>> {
  readonly #told: Told
  readonly circuit: Circuit
  /** The state of the circuit that listeners know. */
  #circuitTold: CircuitState = 'closed'
  readonly backoff: Backoff
  /** New connections that `onAcquire` refused: then, too, the next create has to wait. */
  readonly refusals: Backoff
  /** Creates that begin before one of them fails are a round: its number. */
  #round = 0
  /** Why the last create failed; undefined: it did not. */
  lastFailure: Error | undefined
  /** Why, where that is known. */
  lastKind: FailureKind | undefined
  /** The last create failed for good: it would fail again, however often it is tried. */
  isRefused = false
  /** The last create failed with an error that is permanent for the login that it had. */
  #wasRefused = false
  /**
   * The last create was refused while so many connections were there, and worked: the server allows no more. 0: that is
   * not known.
   */
  allowed = 0
  #lastId = 0

  constructor (site: Site<C>, told: Told) {
    super(site)
    this.#told = told
    this.circuit = new Circuit(site.options.circuit)
    this.backoff = new Backoff(site.options.backoff, () => site.time.random())
    this.refusals = new Backoff(site.options.backoff, () => site.time.random())
  }

  begin (): void {
    const now = this.time.read(true)
    const entry = new Entry<C>(this.owner?.nextId() ?? ++this.#lastId, Math.floor(now))
    const creation = new Creation(now, this.#round)
    this.entries.add(entry)
    const operation = this.work.begin(entry, now + this.options.connectTimeout)
    operation.creation = creation
    // While creates fail, each start puts off the next one. So a hung create does not stop the others, and no burst
    // follows a failure.
    if (this.backoff.failures > 0) this.backoff.pause(now)
    this.circuit.begin()
    this.events.run(() => this.#make(entry, creation, operation.signal))
    this.#tellCircuit()
  }

  async #make (entry: Entry<C>, creation: Creation, signal: AbortSignal): Promise<void> {
    const site = this.site
    const { backend, hooks, time } = site
    try {
      entry.connection = await backend.create(signal)
      creation.delivered = true
      entry.freshAt = Math.floor(time.clock.now())
      if (entry.state === LATE) return site.destroyLate(entry)
      backend.onDeath?.(entry.connection, (error) => {
        if (error !== undefined) site.checks.evidence.died(entry, error)
        site.died(entry, error)
      })
      if (creation.unwanted === undefined) {
        const failed = await hooks.call('onConnect', entry)
        if (failed !== undefined) return this.#notMade(entry, creation, failed, failed)
        // In another state, the deadline passed while `onConnect` ran.
        if (entry.state === CREATING) entry.face = wrap(site, entry, entry.connection)
      }
      // A connection that is dead at once is a failure: else a server that hangs up on everybody would be called
      // without a pause.
      if (entry.state === CREATING && site.checks.isDead(entry)) {
        throw entry.broken ?? new Error('the connection was dead at once')
      }
    } catch (error) {
      return this.#notMade(entry, creation, error)
    }
    // In another state, the deadline passed while `onConnect` ran.
    if (entry.state === CREATING) this.#made(entry, creation)
  }

  #made (entry: Entry<C>, creation: Creation): void {
    const now = this.time.read(true)
    const took = now - creation.began
    this.entries.move(entry, VALIDATING)
    this.work.finish(entry)
    this.books.created++
    this.books.creates.record(took)
    this.backoff.succeeded()
    this.lastFailure = undefined
    this.site.checks.evidence.good()
    this.isRefused = false
    this.allowed = 0
    this.circuit.succeeded()
    const { maxLifetime } = this.options
    // Up to a tenth less, so that connections that were made together do not end together.
    if (maxLifetime > 0) entry.expiresAt = Math.max(1, Math.floor(now + maxLifetime * (1 - 0.1 * this.time.random())))
    if (this.events.heard.connect) this.events.emit('connect', { id: entry.id, took })
    this.owner?.connected()
    entry.createdAt = Math.floor(now)
    this.#tellCircuit()
    if (creation.unwanted !== undefined) this.site.destroy(entry, creation.unwanted)
    else this.site.offer(entry)
    this.#told.made(took)
    this.site.pump()
  }

  /** @param reported the scrubbed copy of the cause, where it was reported already */
  #notMade (entry: Entry<C>, creation: Creation, cause: unknown, reported?: Error): void {
    const { state } = entry
    const { delivered, unwanted } = creation
    if (state === LATE && !delivered) {
      creation.explain?.(cause)
      return this.site.gone(entry)
    }
    if (state !== CREATING) return
    const error = unwanted === undefined
      ? this.#failed(creation, cause, reported === undefined, reported)
      : undefined
    if (delivered) this.site.destroy(entry, unwanted ?? 'error', error)
    else this.site.gone(entry)
  }

  /** The create is past its deadline. */
  overdue (entry: Entry<C>): void {
    const creation = entry.creation!
    const { delivered, unwanted } = creation
    const error = new Error(`no connection within ${this.options.connectTimeout} ms (connectTimeout)`)
    this.work.abort(entry, error)
    this.entries.move(entry, delivered ? VALIDATING : LATE)
    this.work.finish(entry)
    if (unwanted === undefined) {
      if (delivered) this.#failed(creation, error, false)
      else this.#failedLate(creation, error)
    }
    // The connection was delivered, and `onConnect` is still running.
    if (delivered) this.site.destroy(entry, unwanted ?? 'error', error)
  }

  /**
   * Returns the scrubbed copy of the cause.
   *
   * @param isAnswer it is what the connector's `create` rejected with
   */
  #failed (creation: Creation, cause: unknown, isAnswer: boolean, reported?: Error): Error {
    const isPermanent = isAnswer && this.#isPermanent(cause)
    // A function may say something else than when this create asked it: one more create asks it again.
    const isRefused = isPermanent && (this.#wasRefused || !this.#told.loginChanges)
    this.#wasRefused = isPermanent
    this.#count(creation, isRefused)
    const isLimit = isAnswer && !isRefused && this.backoff.failures >= SURE && this.site.checks.evidence.works
    this.allowed = isLimit ? this.entries.here + this.entries.closing : 0
    return this.#tell(cause, isAnswer || reported !== undefined, reported)
  }

  #isPermanent (cause: unknown): boolean {
    try {
      return this.events.run(() => this.backend.isPermanent?.(cause) === true)
    } catch (error) {
      this.events.report(error, 'create')
      return false
    }
  }

  #kindOf (cause: unknown): FailureKind | undefined {
    try {
      return this.events.run(() => this.backend.kindOf?.(cause)) ?? kindOfSystem(cause)
    } catch (error) {
      this.events.report(error, 'create')
      return undefined
    }
  }

  /** What the server refused us for may be over: a long pause ends. */
  forgive (): void {
    if (!this.isRefused && this.allowed === 0) return
    const now = this.time.read()
    this.isRefused = false
    this.allowed = 0
    this.backoff.end(now)
    this.circuit.retryAt = now
  }

  /** The signal has aborted: a connector that heeds it rejects in this turn, and says why the create took so long. */
  #failedLate (creation: Creation, error: Error): void {
    this.allowed = 0
    this.#count(creation, false)
    this.#fail(error)
    this.lastKind = 'timeout'
    creation.explain = (cause) => {
      creation.explain = undefined
      this.#tell(cause === undefined || cause === error ? error : new Error(error.message, { cause }), false)
    }
    // After all promises that are about to settle now.
    queueMicrotask(() => { process.nextTick(() => { creation.explain?.(undefined) }) })
  }

  #count ({ round }: Creation, isRefused: boolean): void {
    const { backoff, circuit, time } = this
    const now = time.read()
    const isFirst = round === this.#round
    this.books.createErrors++
    this.isRefused = isRefused
    if (isFirst) {
      this.#round++
      backoff.failed(now)
    }
    // A server that refuses us is there: that is nothing for the circuit, unless it is open already.
    const { state } = circuit
    circuit.failed(now, isFirst && !isRefused, backoff.since, time.random())
    // Whoever the creates were for, somebody needed them.
    if (state === 'closed' && circuit.state !== state) this.site.checks.evidence.missed()
  }

  /**
   * Called after `#count`: listeners that acquire must not begin another create at once.
   *
   * @param isInTime its deadline has not passed
   */
  #tell (cause: unknown, isInTime: boolean, reported?: Error): Error {
    this.lastKind = this.#kindOf(cause)
    const error = reported ?? this.events.report(cause, 'create', this.lastKind)
    this.books.createFailed(isInTime ? error : undefined)
    this.#fail(error)
    this.owner?.createFailed()
    this.#told.failed(cause, error)
    this.#tellCircuit(error)
    return error
  }

  #fail (error: Error): void {
    this.lastFailure = error
    this.site.checks.evidence.bad(`the last create failed: ${error.message}`)
  }

  #tellCircuit (error?: Error): void {
    const from = this.#circuitTold
    const to = this.circuit.state
    if (from === to) return
    this.#circuitTold = to
    if (this.events.heard.circuit) this.events.emit('circuit', { from, to, ...(error && { error }) })
    this.owner?.circuitMoved(from, to)
  }
}
