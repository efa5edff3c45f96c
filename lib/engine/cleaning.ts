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
 * after a session reset. Meanwhile the connection is `RESETTING`, with one deadline for all of it.
 *
 * The promises here resolve to undefined, or to the report of a hook's failure; they reject with what the connector
 * threw.
 */
export class Cleaning<C> extends Room<C, Site<C>> {
  readonly #resets: boolean
  /** Made ahead for the next reset: an AbortController costs more than all the rest of a return. */
  #spare: AbortController | undefined

  constructor (site: Site<C>) {
    super(site)
    this.#resets = site.backend.reset !== undefined && site.options.reset !== 'none'
  }

  /** Nothing has to be cleaned after a lease without transactions. */
  get isNeedless (): boolean {
    return !this.#resets && this.options.onRelease === undefined
  }

  /** A lease has ended. @param transactions the transactions of the lease, if it had any */
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
    // In another state, the rollback came back late and the connection is gone.
    if (entry.state !== RESETTING) return undefined
    const hook = this.site.hooks.call('onRelease', entry, { holder })
    return hook?.then((failed) => failed ?? this.reset(entry)) ?? this.reset(entry)
  }

  /** Starts the connector's reset; undefined: the connection is clean already. Never throws. */
  reset (entry: Entry<C>): Promise<Error | undefined> | undefined {
    if (!this.#resets || entry.state !== RESETTING) return undefined
    try {
      // A signal only for a reset that takes one. Where the reset was not needed, the next one gets the same signal.
      const controller = this.backend.reset!.length < 2 ? undefined : (this.#spare ??= new AbortController())
      const resetting = () => this.backend.reset!(entry.connection, controller?.signal as AbortSignal)
      const reset = asPromise(this.events.runWithoutCopy(resetting))
      if (reset === undefined) return undefined
      this.#spare = undefined
      if (controller !== undefined) this.work.own(entry).controller = controller
      // A session reset, joined or not, undoes what `onConnect` has set: it runs again before the next loan.
      const again = this.options.reset !== 'transaction' && this.options.onConnect !== undefined
      return reset.then(() => {
        entry.freshAt = Math.floor(this.time.read())
        return again && entry.state === RESETTING ? this.site.hooks.call('onConnect', entry) : undefined
      })
    } catch (error) {
      return Promise.reject(error)
    }
  }

  /** The connection was prepared for a caller that has left, so it must not go to another one as it is. */
  again (entry: Entry<C>): void {
    this.entries.move(entry, RESETTING)
    this.wait(entry, this.reset(entry))
  }

  /** Offers the connection when it is clean; destroys it where cleaning fails or is past the deadline. */
  wait (entry: Entry<C>, cleaning: Promise<Error | undefined> | undefined): void {
    this.entries.move(entry, RESETTING)
    if (cleaning === undefined) return this.site.offer(entry)
    this.work.begin(entry, this.time.read() + this.options.resetTimeout)
    cleaning.then((failed) => {
      if (entry.state !== RESETTING) return
      // The hook's failure was reported where it happened.
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
