import { setTimeout as pause } from 'node:timers/promises'
import type { EventEmitter } from 'node:events'
import type { PoolEventName, PoolEvents, PoolListener } from '../../types/pool.js'

export interface UntilOptions {
  /** In ms. Default 30 s: only a failing test ever waits that long, however busy the machine. */
  timeout?: number
  /** What is waited for, for the failure's message. */
  what?: string
}

/**
 * Resolves with the first truthy value of `condition`, which is asked again and again. The only place where tests wait
 * on time.
 *
 * @throws what `condition` throws, at once; after `timeout` an error that names `what`.
 */
export async function until<T> (
  condition: () => T | Promise<T>, { timeout = 30_000, what = condition.toString() }: UntilOptions = {}
): Promise<Exclude<T, false | 0 | '' | null | undefined>> {
  const deadline = performance.now() + timeout
  for (let round = 0; ; round++) {
    const value = await condition()
    if (value) return value as Exclude<T, false | 0 | '' | null | undefined>
    if (performance.now() >= deadline) throw new Error(`waited ${timeout} ms in vain for: ${what}`)
    // Most conditions hold within a few turns of the loop; a long wait must not burn the CPU that it waits for.
    if (round < 20) await new Promise<void>((resolve) => setImmediate(resolve))
    else await pause(Math.min(10, round - 19))
  }
}

export interface EventOptions<E> extends UntilOptions {
  /** Only an event of which this is true. */
  where?: (event: E) => boolean
}

/** Resolves with the next event (of an emitter: its first argument). Listens at once, and no longer than needed. */
export async function event<E extends PoolEventName> (pool: { on (name: E, listener: PoolListener<E>): () => void },
  name: E, options?: EventOptions<PoolEvents[E]>): Promise<PoolEvents[E]>
export async function event<E = unknown> (emitter: EventEmitter, name: string, options?: EventOptions<E>): Promise<E>
export async function event (
  source: { on (name: never, listener: (event: unknown) => void): unknown },
  name: string,
  options: EventOptions<unknown> = {}
): Promise<unknown> {
  const { where = () => true, ...rest } = options
  const seen: unknown[] = []
  const listener = (event: unknown) => { if (where(event)) seen.push(event) }
  const undo = source.on(name as never, listener)
  try {
    await until(() => seen.length > 0, { what: `the event ${name}`, ...rest })
    return seen[0]
  } finally {
    if (typeof undo === 'function') undo()
    else (source as EventEmitter).off(name, listener)
  }
}
