import { AsyncResource } from 'node:async_hooks'
import { channel, type Channel } from 'node:diagnostics_channel'
import type { Connector, FailureKind } from '../../types/connector.js'
import type { ErrorPhase, HolderLabel, PoolEventName, PoolEvents, PoolListener } from '../../types/pool.js'
import { badOption, scrub } from './errors.js'

/** All events; nobody listens yet. */
const silent: Readonly<Record<PoolEventName, boolean>> = {
  connect: false,
  disconnect: false,
  acquire: false,
  release: false,
  wait: false,
  overflow: false,
  timeout: false,
  refuse: false,
  leak: false,
  unleak: false,
  hold: false,
  overdue: false,
  error: false,
  circuit: false,
  failover: false,
  lag: false,
  driver: false,
  open: false,
  drain: false,
  close: false,
}

export const eventNames: ReadonlySet<PoolEventName> = new Set(Object.keys(silent) as PoolEventName[])

/** Rare events are published, too: each channel has those of all pools of the process. */
const channels: Readonly<Partial<Record<PoolEventName, Channel>>> = Object.freeze({
  connect: channel('fastify-pool:connect'),
  disconnect: channel('fastify-pool:disconnect'),
  circuit: channel('fastify-pool:circuit'),
  leak: channel('fastify-pool:leak'),
  refuse: channel('fastify-pool:refuse'),
})

/** Which events somebody hears: a listener, which sets them, or a subscriber of the event's channel. */
function hearing (): Record<PoolEventName, boolean> {
  const heard = { ...silent }
  for (const [name, channel] of Object.entries(channels)) {
    let hasListeners = false
    Object.defineProperty(heard, name, {
      get: () => hasListeners || channel.hasSubscribers,
      set: (has: boolean) => { hasListeners = has },
    })
  }
  return heard
}

type Own = (event: never) => unknown

/**
 * A neighbour inside the product that is told of all loans: by a call, in the async context of whoever acquires or
 * releases. It costs a fraction of an event, which is for users.
 */
export interface Meter {
  /** @param wait how long the borrower has waited, in ms. @param at when, as the pool's clock has it */
  lent (wait: number, holder: HolderLabel | undefined, at: number): void
  /** @param held how long the lease was out, in ms */
  ended (held: number, holder: HolderLabel | undefined, at: number): void
}

const newContext = () => new AsyncResource('FASTIFY_POOL')

/** The events of a pool, and the async context in which foreign code runs: connector, hooks, listeners, timers. */
export class Events {
  /** The field `pool` of all events. */
  pool: string
  readonly #target: string | undefined
  readonly #secrets: () => readonly string[]
  readonly #changed: () => void
  /** The context of no caller: foreign code must not see the one of whichever caller happened to set it off. */
  readonly #context = newContext()
  readonly #lists = new Map<PoolEventName, readonly Own[]>()
  #meters: readonly Meter[] = []
  /** Which events have listeners or subscribers: asked before a payload is built. */
  readonly heard = hearing()

  /**
   * @param target the field `target` of all events; undefined: they have none
   * @param secrets what no error may show
   * @param changed called when somebody begins to listen or to measure, or does so no more
   */
  constructor (
    pool: string, target: string | undefined, secrets: () => readonly string[], changed: () => void = () => {}
  ) {
    this.pool = pool
    this.#target = target
    this.#secrets = secrets
    this.#changed = changed
  }

  /** Each call runs in a new copy of the context, since foreign code may change it (`enterWith`). */
  run<T> (fn: () => T): T {
    return this.#context.runInAsyncScope(newContext).runInAsyncScope(fn)
  }

  /** As `run`, in a copy of the calling code's own context: what the connector sends then belongs to its trace. */
  runHere<T> (fn: () => T): T {
    return newContext().runInAsyncScope(fn)
  }

  /**
   * As `run`, without a copy of the context: for the reset, which is called at every return. A copy would cost more
   * than the rest of the return.
   */
  runWithoutCopy<T> (fn: () => T): T {
    return this.#context.runInAsyncScope(fn)
  }

  emit<E extends PoolEventName> (name: E, details: Omit<PoolEvents[E], 'pool' | 'time'>): void {
    const target = this.#target
    const event = Object.freeze({
      ...details, pool: this.pool, ...(target !== undefined && { target }), time: Date.now(),
    }) as unknown as never
    const failed = (error: unknown) => {
      // What a listener of `error` throws must not go to the listeners of `error`.
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
    const channel = channels[name]
    if (channel?.hasSubscribers === true) this.run(() => { channel.publish(event) })
  }

  /**
   * Reports a failure that no caller is told of to the listeners of `error`. Returns the scrubbed copy.
   *
   * @param kind of a create: why it failed, where that is known
   */
  report (error: unknown, phase: ErrorPhase, kind?: FailureKind): Error {
    const copy = this.scrub(error)
    if (this.heard.error) this.emit('error', { error: copy, phase, ...(kind !== undefined && { kind }) })
    return copy
  }

  /** Passes on what a connector tells by itself. */
  follow (backend: Pick<Connector, 'onDriverEvent'>): void {
    this.run(() => backend.onDriverEvent?.(
      (event) => { if (this.heard.driver) this.emit('driver', event) },
      (error, phase) => { this.report(error, phase) }))
  }

  scrub (error: unknown): Error {
    return scrub(error, this.#secrets())
  }

  /**
   * @returns its own undo
   * @throws `FST_POOL_BAD_OPTIONS` for an unknown event
   */
  on<E extends PoolEventName> (event: E, listener: PoolListener<E>): () => void {
    if (!eventNames.has(event)) throw badOption('event', event, `one of ${[...eventNames].join(', ')}`)
    if (typeof listener !== 'function') throw badOption('listener', listener, 'a function')
    // A function of its own, so that the same listener can be added twice, and each undone by itself.
    const own: Own = (payload) => listener(payload)
    // A new list each time, since `emit` may be walking the old one.
    this.#setList(event, [...this.#lists.get(event) ?? [], own])
    return () => { this.#setList(event, (this.#lists.get(event) ?? []).filter((other) => other !== own)) }
  }

  /** @returns its own undo */
  measure (meter: Meter): () => void {
    this.#setMeters([...this.#meters, meter])
    return () => { this.#setMeters(this.#meters.filter((other) => other !== meter)) }
  }

  get isMeasured (): boolean {
    return this.#meters.length > 0
  }

  /** Whether somebody is told of loans or of their ends. */
  get hearsLeases (): boolean {
    return this.isMeasured || this.heard.acquire || this.heard.release
  }

  /** Tells the meters of a loan. */
  lent (wait: number, holder: HolderLabel | undefined, at: number): void {
    for (const meter of this.#meters) {
      try {
        meter.lent(wait, holder, at)
      } catch (error) {
        this.report(error, 'listener')
      }
    }
  }

  /** Tells the meters of a lease's end. */
  ended (held: number, holder: HolderLabel | undefined, at: number): void {
    for (const meter of this.#meters) {
      try {
        meter.ended(held, holder, at)
      } catch (error) {
        this.report(error, 'listener')
      }
    }
  }

  clear (): void {
    this.#setMeters([])
    for (const event of this.#lists.keys()) this.#setList(event, [])
  }

  #setMeters (meters: readonly Meter[]): void {
    this.#meters = meters
    this.#changed()
  }

  #setList (event: PoolEventName, listeners: readonly Own[]): void {
    this.#lists.set(event, listeners)
    this.heard[event] = listeners.length > 0
    this.#changed()
  }
}

/** A promise of what foreign code returned, where that is a promise of any kind; else undefined. */
export function asPromise (value: unknown): Promise<unknown> | undefined {
  const then = typeof value === 'object' && value !== null ? (value as { then?: unknown }).then : undefined
  return typeof then === 'function' ? Promise.resolve(value) : undefined
}

/** The field `holder` of an event; left out where there is none. */
export function label (holder: HolderLabel | undefined): { readonly holder?: HolderLabel } {
  return holder === undefined ? {} : { holder }
}
