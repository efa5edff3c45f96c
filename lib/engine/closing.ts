import type { DestroyReason } from '../../types/connector.js'
import type { PoolEvents } from '../../types/pool.js'
import type { After } from './aftermath.js'
import { CREATING, LATE, LENT, VALIDATING, type Entry } from './entry.js'
import { badOption } from './errors.js'
import type { Parts, Phase } from './parts.js'
import type { Report } from './report.js'
import { Room } from './room.js'
import type { Supply } from './supply.js'
import { deadlineExpected, isDeadline } from './time.js'
import type { Waiting } from './waiting.js'

/** What closing asks of the engine. */
export interface Site<C> extends Parts<C> {
  readonly supply: Supply<C>
  readonly waiting: Waiting<C>
  readonly report: Report<C>
  readonly isSuspended: boolean
  phaseChanged (): void
  /** The pool itself ends a lease. */
  revoke (entry: Entry<C>, reason: DestroyReason): void
  destroy (entry: Entry<C>, reason: DestroyReason): void
}

/** Drains and closes the engine. */
export class Closing<C> extends Room<C, Site<C>> {
  phase: Phase = 'open'
  #closed: Promise<void> | undefined
  /** What the event `close` tells; undefined: the engine has not closed. */
  end: Omit<PoolEvents['close'], 'pool' | 'time'> | undefined
  /** How many connections had been destroyed when the drain began. */
  #destroyedBefore = 0
  /** How many functions of `after` are running, or will. */
  #after = 0
  /** Resolved when nobody waits for a connection, none is used, and all that runs behind transactions has ended. */
  #quiet: Array<() => void> = []
  /** Resolved when there is no connection. */
  #empty: Array<() => void> = []

  /** `close` was called. */
  get isClosed (): boolean {
    return this.#closed !== undefined
  }

  drain (): Promise<void> {
    if (this.phase === 'open') {
      const { supply, waiting } = this.site
      this.phase = 'draining'
      this.site.phaseChanged()
      this.#destroyedBefore = this.books.destroyedTotal
      if (this.events.heard.drain) this.events.emit('drain', {})
      supply.rejectOpeners(() => waiting.closedError)
      this.closeIdle()
    }
    return new Promise((resolve) => {
      this.#quiet.push(resolve)
      this.settle()
    })
  }

  /** @throws `FST_POOL_BAD_OPTIONS` (at once: nothing is closed) */
  close (timeout = this.options.closeTimeout): Promise<void> {
    if (!isDeadline(timeout)) throw badOption('timeout', timeout, deadlineExpected)
    if (this.#closed !== undefined) return this.#closed
    let settle: (closed: Promise<void>) => void = () => {}
    // Set before anything else: whatever listeners do from now on, they do to a pool that closes.
    this.#closed = new Promise((resolve) => { settle = resolve })
    this.site.phaseChanged()
    settle(this.events.run(() => this.#shut(timeout)))
    return this.#closed
  }

  async #shut (timeout: number): Promise<void> {
    const began = this.time.read(true)
    const drained = this.drain()
    this.phase = 'closing'
    this.suspended()
    const deadline = this.time.sleep(timeout)
    const grace = this.time.sleep(timeout - Math.min(this.options.destroyTimeout, timeout / 4))
    await Promise.race([drained, grace.over])
    grace.cancel()

    const holders = this.site.report.holders
    this.phase = 'closed'
    this.site.phaseChanged()
    this.#endAll()
    const emptied = new Promise<void>((resolve) => { this.#empty.push(resolve) })
    this.settle()
    await Promise.race([emptied, deadline.over])
    // What the connections share has at least 100 ms, even where the connections took all the time.
    await this.#closeShared(Math.max(100, began + timeout - this.time.read()))
    deadline.cancel()
    // Creates and destroys that have not come back are late: their answers are still handled.
    for (const entry of this.entries) {
      if (entry.state !== LATE) this.entries.move(entry, LATE)
      this.work.abort(entry, `pool '${this.name}' is closed`)
    }
    const destroyed = this.books.destroyedTotal - this.#destroyedBefore
    this.end = { took: this.time.read(true) - began, destroyed, holders }
    if (this.events.heard.close) this.events.emit('close', this.end)
    // A transaction that waits for its turn wakes up and finds its lease ended.
    this.time.end()
    this.events.clear()
  }

  /** Sends all away who wait, and destroys every connection. */
  #endAll (): void {
    const { supply, waiting } = this.site
    const why = `pool '${this.name}' closes`
    waiting.turnAllAway(() => waiting.closedError)
    supply.cancel(0, 'closed')
    for (const entry of this.entries) {
      // The connection was delivered, and `onConnect` is still running.
      if (entry.state === CREATING && entry.creation!.delivered) this.entries.move(entry, VALIDATING)
      // Also creates that `evict` has marked, which `cancel` leaves alone.
      if (entry.state === CREATING) this.work.abort(entry, why)
      if (!entry.isHere) continue
      const prepared = entry.operation?.prepared
      if (prepared !== undefined) waiting.turnAway(prepared, waiting.closedError)
      this.work.abort(entry, why)
      if (entry.state === LENT) this.site.revoke(entry, 'closed')
      else this.site.destroy(entry, 'closed')
    }
  }

  /** A suspended pool lends nothing: where it also closes, nobody needs to wait for that any more. */
  suspended (): void {
    const { isSuspended, waiting } = this.site
    if (this.isClosed && isSuspended) waiting.turnAllAway(() => waiting.closedError)
  }

  /** Destroys connections that are here, whoever has them, with the reason 'stale'. */
  interrupt (entries: ReadonlyArray<Entry<C>>): void {
    for (const entry of entries) {
      if (!entry.isHere) continue
      const prepared = entry.operation?.prepared
      if (prepared !== undefined) this.site.waiting.putBack(prepared)
      this.work.abort(entry, 'the connection is evicted')
      if (entry.state === LENT) this.site.revoke(entry, 'stale')
      else this.site.destroy(entry, 'stale')
    }
  }

  /** Closes what the connector's connections share. */
  async #closeShared (timeout: number): Promise<void> {
    if (this.backend.close === undefined) return
    const closing = Promise.resolve().then(() => this.backend.close!())
      .catch((error: unknown) => { this.events.report(error, 'close') })
    const last = this.time.sleep(timeout)
    await Promise.race([closing, last.over])
    last.cancel()
  }

  /** Destroys idle connections, and cancels creates that nobody waits for. */
  closeIdle (): void {
    const { entries: { idle }, supply } = this.site
    for (let entry = idle.at(-1); entry !== undefined; entry = idle.at(-1)) this.site.destroy(entry, 'closed')
    supply.cancel(this.line.size, 'closed')
  }

  /**
   * Calls `fn` in a turn of its own, so that no reply waits for it, and in the caller's async context. `drain()` and
   * `close()` wait for it.
   */
  after (fn: () => unknown, on: After): void {
    this.#after++
    setImmediate(() => this.#runAfter(fn, on))
  }

  async #runAfter (fn: () => unknown, on: After): Promise<void> {
    try {
      await fn()
    } catch (error) {
      this.events.report(error, on)
    }
    this.#after--
    this.settle()
  }

  /** Resolves `drain()` and `close()` where they are due. */
  settle (): void {
    if (this.#quiet.length > 0 && this.entries.used === 0 && this.line.size === 0 && this.#after === 0) {
      for (const resolve of this.#quiet.splice(0)) resolve()
    }
    if (this.#empty.length > 0 && this.entries.total === 0) {
      for (const resolve of this.#empty.splice(0)) resolve()
    }
  }
}
