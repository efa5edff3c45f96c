import type { Role } from '../../../types/connector.js'
import type { AcquireOptions, AcquireSignal, HolderLabel, Lease } from '../../../types/pool.js'
import { kPlace, kTakesObjects, type Placed } from '../../engine/line.js'

/** What a request asks a pool for. */
export class Asked implements AcquireOptions {
  constructor (readonly holder: HolderLabel, readonly role: Role, readonly affinity: string | undefined) {}
}

/** Why a wait ends: another one for the same slot has been served. */
export class Served {
  constructor (readonly lease: Promise<Lease<unknown>>) {}
}

/** No deadline or signal of its own: whoever else wants the connection waits for the same one. */
export function isShared (options: AcquireOptions | undefined): boolean {
  return options?.timeout === undefined && options?.signal === undefined
}

/**
 * One wait in a pool's line: the options of its acquire, and the signal that ends it. One object of a class, since
 * hundreds of requests wait at once: literals that reach a request are what V8 comes to allocate in old space, where
 * they keep the requests that are done until the next full collection.
 */
export class Wait extends Asked implements AcquireSignal, Placed {
  readonly signal: AcquireSignal = this
  readonly timeout: number | undefined
  readonly [kPlace]: number | undefined
  readonly #isShared: boolean
  #aborted = false
  #reason: unknown
  #listener: (() => void) | undefined
  /** More listeners than one: of a signal that is waited with at two places. */
  #others: Set<() => void> | undefined
  #unfollow: (() => void) | undefined
  #next: Wait | undefined

  /** @param place since when the request waits, where it had a connection meanwhile */
  constructor (
    holder: HolderLabel, role: Role, affinity: string | undefined, options: AcquireOptions | undefined,
    place: number | undefined
  ) {
    super(options?.holder ?? holder, role, affinity)
    this.timeout = options?.timeout
    this[kPlace] = place
    this.#isShared = isShared(options)
    if (options?.signal !== undefined) this.#follow(options.signal)
  }

  get isShared (): boolean {
    return this.#isShared
  }

  /** The next one that waits for the same slot. No field: the options of an acquire have known names only. */
  get next (): Wait | undefined {
    return this.#next
  }

  set next (next: Wait | undefined) {
    this.#next = next
  }

  get aborted (): boolean {
    return this.#aborted
  }

  get reason (): unknown {
    return this.#reason
  }

  addEventListener (_type: 'abort', listener: () => void): void {
    if (this.#listener === undefined) this.#listener = listener
    else (this.#others ??= new Set()).add(listener)
  }

  removeEventListener (_type: 'abort', listener: () => void): void {
    if (this.#listener === listener) this.#listener = undefined
    else this.#others?.delete(listener)
  }

  abort (reason: unknown): void {
    if (this.#aborted) return
    this.#aborted = true
    this.#reason = reason
    const listener = this.#listener
    const others = this.#others
    this.#listener = this.#others = undefined
    if (listener !== undefined) call(listener)
    if (others !== undefined) for (const other of others) call(other)
  }

  get [kTakesObjects] (): true {
    return true
  }

  /** Aborts when the signal of the call does, with its reason. */
  #follow (signal: AcquireSignal): void {
    const abort = () => { this.abort(signal.reason) }
    if (signal.aborted) return abort()
    signal.addEventListener('abort', abort, { once: true })
    this.#unfollow = () => { signal.removeEventListener('abort', abort) }
  }

  /** The wait is over. */
  end (): void {
    this.#unfollow?.()
    this.#unfollow = undefined
  }
}

function call (listener: (() => void) | { handleEvent (): void }): void {
  if (typeof listener === 'function') listener()
  else listener.handleEvent()
}
