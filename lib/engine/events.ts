import { AsyncResource } from 'node:async_hooks'
import type { ErrorPhase, HolderLabel, PoolEventName, PoolEvents, PoolListener } from '../../types/pool.js'
import { badOption, scrub } from './errors.js'

export const eventNames: ReadonlySet<PoolEventName> = new Set<PoolEventName>([
  'connect', 'disconnect', 'acquire', 'release', 'wait', 'overflow', 'timeout', 'refuse', 'leak', 'unleak', 'error',
  'circuit', 'failover', 'driver', 'open', 'drain', 'close',
])

type Own = (event: never) => unknown

const newContext = () => new AsyncResource('FASTIFY_POOL')

/** Events, and the async context in which foreign code runs: connector, hooks, listeners and timers. */
export class Events {
  readonly #pool: string
  readonly #target: string | undefined
  readonly #secrets: () => readonly string[]
  readonly #changed: () => void
  /** Of no caller: whoever sets off a call must not be seen in what it calls. */
  readonly #context = newContext()
  readonly #lists = new Map<PoolEventName, readonly Own[]>()
  /** Whether somebody listens: ask before a payload is built. */
  readonly heard = Object.fromEntries([...eventNames].map((name) => [name, false])) as Record<PoolEventName, boolean>

  /**
   * @param target which of several targets all events are of; undefined: they say no target
   * @param secrets what no error may show
   * @param changed called when somebody begins to listen, or listens no more
   */
  constructor (
    pool: string, target: string | undefined, secrets: () => readonly string[], changed: () => void = () => {}
  ) {
    this.#pool = pool
    this.#target = target
    this.#secrets = secrets
    this.#changed = changed
  }

  /** Each call has a new copy of the context: what foreign code stores there (`enterWith`) would stay in it. */
  run<T> (fn: () => T): T {
    return this.#context.runInAsyncScope(newContext).runInAsyncScope(fn)
  }

  /**
   * As `run`, without a copy: for the one call on the way of every return, where a copy costs more than all the rest.
   */
  runWithoutCopy<T> (fn: () => T): T {
    return this.#context.runInAsyncScope(fn)
  }

  emit<E extends PoolEventName> (name: E, details: Omit<PoolEvents[E], 'pool' | 'time'>): void {
    const target = this.#target
    const event = Object.freeze({
      ...details, pool: this.#pool, ...(target !== undefined && { target }), time: Date.now(),
    }) as unknown as never
    const failed = (error: unknown) => {
      // What a listener of `error` throws can't go to the listeners of `error`.
      if (name === 'error') process.emitWarning(this.scrub(error))
      else this.report(error, 'listener')
    }
    for (const listener of this.#lists.get(name) ?? []) {
      try {
        asPromise(this.run(() => listener(event)))?.then(undefined, failed)
      } catch (error) {
        failed(error)
      }
    }
  }

  /** Tells the listeners of `error` of what no caller is told. Returns the scrubbed copy. */
  report (error: unknown, phase: ErrorPhase): Error {
    const copy = this.scrub(error)
    if (this.heard.error) this.emit('error', { error: copy, phase })
    return copy
  }

  scrub (error: unknown): Error {
    return scrub(error, this.#secrets())
  }

  /**
   * @returns its own undo
   * @throws `FST_POOL_BAD_OPTIONS` for an event that there is not
   */
  on<E extends PoolEventName> (event: E, listener: PoolListener<E>): () => void {
    if (!eventNames.has(event)) throw badOption('event', event, `one of ${[...eventNames].join(', ')}`)
    if (typeof listener !== 'function') throw badOption('listener', listener, 'a function')
    // A function of its own, so that the same listener may be added, and taken off, twice.
    const own: Own = (payload) => listener(payload)
    // A new list each time: one that is being walked does not change.
    this.#setList(event, [...this.#lists.get(event) ?? [], own])
    return () => { this.#setList(event, (this.#lists.get(event) ?? []).filter((other) => other !== own)) }
  }

  clear (): void {
    for (const event of this.#lists.keys()) this.#setList(event, [])
  }

  #setList (event: PoolEventName, listeners: readonly Own[]): void {
    this.#lists.set(event, listeners)
    this.heard[event] = listeners.length > 0
    this.#changed()
  }
}

/** What foreign code returned, where it is a promise: perhaps one that keeps none of the rules. */
export function asPromise (value: unknown): Promise<unknown> | undefined {
  const then = typeof value === 'object' && value !== null ? (value as { then?: unknown }).then : undefined
  return typeof then === 'function' ? Promise.resolve(value) : undefined
}

/** Who holds or waits, as events tell it. */
export function label (holder: HolderLabel | undefined): { readonly holder?: HolderLabel } {
  return holder === undefined ? {} : { holder }
}
