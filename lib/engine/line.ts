import type { AcquireSignal, HolderLabel, Lease } from '../../types/pool.js'

// Where a waiter is.
const LINE = 0
/** Out of the line, on the way to a connection. */
const CALLED = 1
/** Out of the line, while a connection is prepared for it. */
const PREPARING = 2
const DONE = 3

/**
 * In the options of an acquire: since when its caller waits, on the pool's clock, where it had a connection meanwhile,
 * and gave it back for somebody else. It keeps its place in the line.
 */
export const kPlace = Symbol('fastify-pool.place')

/** What the request scope adds to the options of an acquire. */
export interface Placed { readonly [kPlace]?: number }

/**
 * A caller that waits for a connection: in one line, which it leaves once. There may be 100,000 of them, so a field
 * more counts.
 */
export class Waiter<C> {
  previous: Waiter<C> | undefined = undefined
  next: Waiter<C> | undefined = undefined
  /** Removes the listener from the caller's signal. */
  unlisten: (() => void) | undefined = undefined
  #place: typeof LINE | typeof CALLED | typeof PREPARING | typeof DONE = CALLED

  constructor (
    readonly holder: HolderLabel | undefined,
    readonly since: number,
    /** Absolute; it never changes. */
    readonly deadline: number,
    readonly resolve: (lease: Lease<C> | PromiseLike<Lease<C>>) => void
  ) {}

  /** Those who came earlier stand in front. */
  get place (): number {
    return this.since
  }

  /** Rejects through `resolve`: a field for the promise's `reject` would make every waiter a fifth larger. */
  reject (error: Error): void {
    this.resolve(Promise.reject(error))
  }

  /** False once the waiter has been served, or has given up. */
  get waiting (): boolean {
    return this.#place !== DONE
  }

  /** The waiter stands in the line. */
  get inLine (): boolean {
    return this.#place === LINE
  }

  set inLine (inLine: boolean) {
    this.#place = inLine ? LINE : CALLED
  }

  /** The waiter has left the line, and a connection is being prepared for it. */
  get preparing (): boolean {
    return this.#place === PREPARING
  }

  set preparing (preparing: boolean) {
    this.#place = preparing ? PREPARING : CALLED
  }

  /** Calls `leave` when the signal aborts while the waiter waits. */
  leaveOn (signal: AcquireSignal, leave: () => void): void {
    signal.addEventListener('abort', leave, { once: true })
    this.unlisten = () => { signal.removeEventListener('abort', leave) }
  }

  /** The waiter was served, or has given up. */
  end (): void {
    this.unlisten?.()
    this.#place = DONE
  }
}

/** A caller that comes back to its place in the line. */
export class Returned<C> extends Waiter<C> {
  readonly #place: number

  constructor (place: number, ...waiter: ConstructorParameters<typeof Waiter<C>>) {
    super(...waiter)
    this.#place = place
  }

  override get place (): number {
    return this.#place
  }
}

/** A line of waiters: first come, first served. Any of them can leave in O(1). */
export class Waiters<C> {
  size = 0
  #first: Waiter<C> | undefined
  #last: Waiter<C> | undefined
  /**
   * Whether deadlines rise from first to last, as they do while all callers have the same timeout. Then a sweep ends at
   * the first waiter that is not due.
   */
  #ordered = true
  /** No deadline in the line is later. The last waiter's may be earlier: another one may have left. */
  #latest = -Infinity

  add (waiter: Waiter<C>): void {
    const last = this.#last
    if (last === undefined) {
      this.#first = waiter
      this.#ordered = true
      this.#latest = waiter.deadline
    } else {
      if (waiter.deadline < this.#latest) this.#ordered = false
      else this.#latest = waiter.deadline
      last.next = waiter
      waiter.previous = last
    }
    this.#last = waiter
    waiter.inLine = true
    this.size++
  }

  /** Adds a waiter at its place: it came before others that stand in the line. */
  insert (waiter: Waiter<C>): void {
    let next = this.#first
    while (next !== undefined && next.place <= waiter.place) next = next.next
    if (next === undefined) this.add(waiter)
    else this.#addBefore(next, waiter)
  }

  /**
   * Puts a waiter back at the head of the line: the connection that was prepared for it died.
   *
   * @param isBefore whether another one who stands at the head was called before it
   */
  putBack (waiter: Waiter<C>, isBefore: (other: Waiter<C>) => boolean = () => false): void {
    let next = this.#first
    while (next !== undefined && isBefore(next)) next = next.next
    if (next === undefined) this.add(waiter)
    else this.#addBefore(next, waiter)
  }

  #addBefore (next: Waiter<C>, waiter: Waiter<C>): void {
    const { previous } = next
    const isBehind = previous !== undefined && waiter.deadline < previous.deadline
    if (isBehind || next.deadline < waiter.deadline) this.#ordered = false
    this.#latest = Math.max(this.#latest, waiter.deadline)
    waiter.previous = previous
    waiter.next = next
    next.previous = waiter
    if (previous === undefined) this.#first = waiter
    else previous.next = waiter
    waiter.inLine = true
    this.size++
  }

  first (): Waiter<C> | undefined {
    return this.#first
  }

  /** @param index from 0 on, less than `size`: walks so far */
  at (index: number): Waiter<C> {
    let waiter = this.#first!
    while (index-- > 0) waiter = waiter.next!
    return waiter
  }

  * [Symbol.iterator] (): Generator<Waiter<C>, void> {
    for (let waiter = this.#first; waiter !== undefined; waiter = waiter.next) yield waiter
  }

  /** @param waiter must stand in this line */
  remove (waiter: Waiter<C>): void {
    const { previous, next } = waiter
    if (previous === undefined) this.#first = next
    else previous.next = next
    if (next === undefined) this.#last = previous
    else next.previous = previous
    waiter.previous = waiter.next = undefined
    waiter.inLine = false
    this.size--
  }

  /** Calls `expired`, which must remove the waiter, for each waiter that is due. Returns the next deadline. */
  sweep (now: number, expired: (waiter: Waiter<C>) => void): number {
    const due: Array<Waiter<C>> = []
    let earliest = Infinity
    let latest = -Infinity
    let ordered = true
    for (let waiter = this.#first; waiter !== undefined; waiter = waiter.next) {
      const { deadline } = waiter
      if (deadline <= now) {
        due.push(waiter)
        continue
      }
      earliest = Math.min(earliest, deadline)
      if (this.#ordered) break
      ordered &&= deadline >= latest
      latest = deadline
    }
    if (!this.#ordered && ordered) this.#latest = latest
    this.#ordered = ordered
    // After the walk: `expired` calls listeners, which may change the line.
    for (const waiter of due) if (waiter.inLine) expired(waiter)
    return earliest
  }
}
