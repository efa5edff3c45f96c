import type { HookInfo } from '../../types/pool.js'
import type { Entry } from './entry.js'
import { asPromise, type Events } from './events.js'
import type { Settings } from './settings.js'

/** Calls the app's hooks. */
export class Hooks<C> {
  readonly #options: Settings<C>
  readonly #events: Events
  /** `onAcquire` returns promises: then every acquire goes through the line. */
  waits: boolean

  constructor (options: Settings<C>, events: Events) {
    this.#options = options
    this.#events = events
    this.waits = options.onAcquire?.constructor.name === 'AsyncFunction'
  }

  /**
   * Calls a hook, and reports its failure. Never throws, never rejects.
   *
   * @returns undefined where the hook is done or there is none; else a promise of undefined, or of the failure's report
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
      // Reported in a microtask, as the failure of a promise is.
      return Promise.reject(error).catch(failed)
    }
  }

  /**
   * Calls `onAcquire`. undefined: it is done; false, or a promise of it: it refuses the connection.
   *
   * @throws what the hook throws, without a report
   */
  prepare (entry: Entry<C>, more: Partial<HookInfo>): Promise<unknown> | false | undefined {
    const hook = this.#options.onAcquire!
    const info = this.#info(entry, { ...more, uses: entry.uses + 1 })
    const answer = this.#events.run(() => hook(entry.connection, info))
    const preparation = asPromise(answer)
    this.waits ||= preparation !== undefined
    return preparation ?? (answer === false ? false : undefined)
  }

  #info ({ id, uses }: Entry<C>, more: Partial<HookInfo> = {}): HookInfo {
    return { pool: this.#events.pool, id, uses, ...more }
  }
}
