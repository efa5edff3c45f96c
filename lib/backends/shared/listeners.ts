type Name = string | symbol
type Listener = (...args: never[]) => void

/** What is used of a driver's emitter. Their own types want one literal event name for each listener. */
interface Emitter {
  on (event: Name, listener: Listener): unknown
  off (event: Name, listener: Listener): unknown
  listeners (event: Name): Listener[]
}

type Registration = readonly [emitter: Emitter, event: Name, listener: Listener]

/**
 * The listeners on one connection's emitters: ours stay, whatever a borrower does, and the borrower's go at the reset.
 *
 * A borrower's `removeAllListeners()` takes ours away too. From then on a death could not be told any more, and an
 * `error` would end the process: the session is told (`lost`), and ours are put back.
 */
export class Listeners {
  readonly #emitters: readonly Emitter[]
  readonly #lost: () => void
  readonly #ours: Registration[] = []
  /** Added since the last `restore()`. */
  readonly #added: Registration[] = []
  /** We ourselves add a listener. */
  #quiet = false

  /** @param lost called when a listener of ours was removed */
  constructor (emitters: readonly object[], lost: () => void) {
    this.#emitters = emitters as readonly Emitter[]
    this.#lost = lost
    for (const emitter of this.#emitters) {
      // The driver's own: without these it would no longer pass events on.
      for (const listener of emitter.listeners('newListener')) this.#ours.push([emitter, 'newListener', listener])
      this.keep(emitter, 'removeListener', (_event: Name, listener: Listener) => { this.#removed(listener) })
    }
  }

  /** Adds one of ours. */
  keep (emitter: object, event: Name, listener: (...args: never[]) => void): void {
    const ours: Registration = [emitter as Emitter, event, listener]
    this.#ours.push(ours)
    ours[0].on(event, ours[2])
  }

  /** From here on whatever is added is a borrower's. */
  follow (): void {
    for (const emitter of this.#emitters) {
      this.keep(emitter, 'newListener', (event: Name, listener: Listener) => {
        if (!this.#quiet) this.#added.push([emitter, event, listener])
      })
    }
  }

  /** Adds a listener of ours that goes by itself. */
  quietly (add: () => void): void {
    this.#quiet = true
    add()
    this.#quiet = false
  }

  /** Whether a borrower has added any. */
  get changed (): boolean {
    return this.#added.length > 0
  }

  /** Removes the borrower's. */
  restore (): void {
    for (const [emitter, event, listener] of this.#added.splice(0)) emitter.off(event, listener)
  }

  #removed (listener: Listener): void {
    if (!this.#ours.some((ours) => ours[2] === listener)) return
    this.#lost()
    // In a later turn of the event loop, since all of ours may be about to go.
    process.nextTick(() => {
      for (const [emitter, event, ours] of this.#ours) {
        if (!emitter.listeners(event).includes(ours)) emitter.on(event, ours)
      }
    })
  }
}

/** Listeners of ours on clients that others use too: they go when the pool ends. */
export class Subscriptions {
  readonly #undo: Array<() => void> = []

  on<T = unknown> (emitter: object, event: Name, listener: (detail: T) => void): void {
    const of = emitter as Emitter
    of.on(event, listener)
    this.#undo.push(() => of.off(event, listener))
  }

  end (): void {
    for (const undo of this.#undo.splice(0)) undo()
  }
}
