import type { HookInfo } from '../../types/pool.js'
import type { Entry } from './entry.js'
import { asPromise, type Events } from './events.js'
import type { Settings } from './settings.js'

/** Calls the app's hooks. What they throw is reported where it happens. */
export class Hooks<C> {
  readonly #options: Settings<C>
  readonly #events: Events
  /** `onAcquire` returns promises: then an acquire takes the way that can wait. */
  waits: boolean

  constructor (options: Settings<C>, events: Events) {
    this.#options = options
    this.#events = events
    this.waits = options.onAcquire?.constructor.name === 'AsyncFunction'
  }

  /**
   * Never throws, never rejects. Undefined: the hook is done, or there is none. Else resolves to undefined, or to the
   * report of its failure.
   */
  call (
    name: 'onConnect' | 'onRelease' | 'onDisconnect', entry: Entry<C>, more?: Partial<HookInfo>
  ): Promise<Error | undefined> | undefined {
    const hook = this.#options[name]
    if (hook === undefined) return undefined
    const failed = (error: unknown) => this.#events.report(error, name)
    try {
      const pending = asPromise(this.#events.run(() => hook(entry.connection, this.#info(entry, more))))
      return pending?.then(() => undefined, failed)
    } catch (error) {
      // Behind what happens now, as is every other failure.
      return Promise.reject(error).catch(failed)
    }
  }

  /**
   * Runs `onAcquire`; undefined: it is done.
   *
   * @throws what it throws: it was not reported
   */
  prepare (entry: Entry<C>, more: Partial<HookInfo>): Promise<unknown> | undefined {
    const hook = this.#options.onAcquire!
    const info = this.#info(entry, { ...more, uses: entry.uses + 1 })
    const preparation = asPromise(this.#events.run(() => hook(entry.connection, info)))
    this.waits ||= preparation !== undefined
    return preparation
  }

  #info ({ id, uses }: Entry<C>, more: Partial<HookInfo> = {}): HookInfo {
    return { pool: this.#options.name, id, uses, ...more }
  }
}
