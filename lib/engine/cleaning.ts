import type { DestroyReason } from '../../types/connector.js'
import type { HolderLabel } from '../../types/pool.js'
import { RESETTING, type Entry } from './entry.js'
import { asPromise } from './events.js'
import * as faults from './faults.js'
import type { Hooks } from './hooks.js'
import type { Parts } from './parts.js'
import { Room } from './room.js'
import type { LeaseTransactions } from './transaction.js'

/** What the cleaning of connections asks of the engine. */
export interface Site<C> extends Parts<C> {
  readonly hooks: Hooks<C>
  /** @param alive the connection was seen alive this moment */
  offer (entry: Entry<C>, alive?: boolean): void
  destroy (entry: Entry<C>, reason: DestroyReason, error?: Error): void
}

/**
 * Makes connections clean for the next borrower: a rollback, `onRelease`, the connector's reset, and `onConnect` again
 * behind a session reset. While any of it waits the connection is `RESETTING`, under one deadline.
 *
 * A promise of it resolves to undefined, or to the report of a hook's failure; it rejects with what the connector
 * threw.
 */
export class Cleaning<C> extends Room<C, Site<C>> {
  readonly #resets: boolean
  /** For the next reset: to make one costs more than all the rest of a return. */
  #spare: AbortController | undefined

  constructor (site: Site<C>) {
    super(site)
    this.#resets = site.backend.reset !== undefined && site.options.reset !== 'none'
  }

  /** Where a return has nothing to do but look whether the connection is alive. */
  get isNeedless (): boolean {
    return !this.#resets && this.options.onRelease === undefined
  }

  /** A lease has ended. @param transactions those that it had */
  begin (entry: Entry<C>, holder: HolderLabel | undefined, transactions: LeaseTransactions<C> | undefined): void {
    const undoing = transactions?.abandon()
    if (undoing !== undefined) return this.wait(entry, undoing.then(() => this.#tidy(entry, holder)))
    const { onRelease } = this.options
    const cleaning = onRelease === undefined ? this.reset(entry) : this.#tidy(entry, holder)
    if (cleaning !== undefined) this.wait(entry, cleaning)
    else this.site.offer(entry, onRelease === undefined)
  }

  /** Runs `onRelease`, then the reset: undefined where neither waits. */
  #tidy (entry: Entry<C>, holder: HolderLabel | undefined): Promise<Error | undefined> | undefined {
    // Else a rollback came back late, and the connection is gone.
    if (entry.state !== RESETTING) return undefined
    const hook = this.site.hooks.call('onRelease', entry, { holder })
    return hook?.then((failed) => failed ?? this.reset(entry)) ?? this.reset(entry)
  }

  /** Starts the connector's reset: undefined when the connection is clean already. Never throws. */
  reset (entry: Entry<C>): Promise<Error | undefined> | undefined {
    if (!this.#resets || entry.state !== RESETTING) return undefined
    try {
      // Only for a reset that takes a signal; one that was not needed is there for the next.
      const controller = this.backend.reset!.length < 2 ? undefined : (this.#spare ??= new AbortController())
      const resetting = () => this.backend.reset!(entry.connection, controller?.signal as AbortSignal)
      const reset = asPromise(this.events.runWithoutCopy(resetting))
      if (reset === undefined) return undefined
      this.#spare = undefined
      if (controller !== undefined) this.work.own(entry).controller = controller
      // A session reset undoes what `onConnect` had set, so it is set again before the next loan.
      const again = this.options.reset === 'session' && this.options.onConnect !== undefined
      return reset.then(() => again && entry.state === RESETTING ? this.site.hooks.call('onConnect', entry) : undefined)
    } catch (error) {
      return Promise.reject(error)
    }
  }

  /** The connection was prepared for somebody who has left. */
  again (entry: Entry<C>): void {
    this.entries.move(entry, RESETTING)
    this.wait(entry, this.reset(entry))
  }

  /** Waits, not for ever, until a connection is clean, and offers it. A failure destroys it. */
  wait (entry: Entry<C>, cleaning: Promise<Error | undefined> | undefined): void {
    this.entries.move(entry, RESETTING)
    if (cleaning === undefined) return this.site.offer(entry)
    this.work.begin(entry, this.time.read() + this.options.resetTimeout)
    cleaning.then((failed) => {
      if (entry.state !== RESETTING) return
      // A hook's own error was reported where it happened.
      if (failed !== undefined) return this.site.destroy(entry, 'error', failed)
      this.work.finish(entry)
      this.site.offer(entry)
    }, (error: unknown) => {
      if (entry.state === RESETTING) this.#failed(entry, error)
    })
  }

  #failed (entry: Entry<C>, cause: unknown): void {
    const error = faults.resetFailed(this.name, this.events.scrub(cause))
    this.site.destroy(entry, 'error', this.events.report(error, 'reset'))
  }

  /** The cleaning is past its deadline. */
  overdue (entry: Entry<C>): void {
    this.work.abort(entry, 'past its deadline')
    this.work.finish(entry)
    this.#failed(entry, new Error(`not clean within ${this.options.resetTimeout} ms (resetTimeout)`))
  }
}
