import type { AcquireSignal, HolderLabel, Lease } from '../../types/pool.js'

// Where a waiter is, unless it stands in a line: there it has the number of its place.
/** Out of the line, on the way to a connection. */
const CALLED = -1
/** Out of the line, while a connection is prepared for it. */
const PREPARING = -2
const DONE = -3

/**
 * In the options of an acquire: since when its caller waits, on the pool's clock, where it had a connection meanwhile,
 * and gave it back for somebody else. It keeps its place in the line.
 */
export const kPlace = Symbol('fastify-pool.place')

/**
 * A signal that has it calls `handleEvent` of a listener that is an object, as an `AbortSignal` does. So no function is
 * made for each wait of a request: what functions reach, V8 comes to allocate in old space.
 */
export const kTakesObjects = Symbol('fastify-pool.takes-objects')

/** What the request scope adds to the options of an acquire. */
export interface Placed { readonly [kPlace]?: number }

/** A time on the pool's clock. All who come in one turn of the event loop share one, which costs less memory. */
export class Moment {
  constructor (readonly at: number) {}
}

/**
 * A caller that waits for a connection: in one line, which it leaves once. There may be 100,000 of them, so a field
 * more counts.
 */
export class Waiter<C> {
  /** The number of its place in the line, or where else it is: see above. */
  at = CALLED

  constructor (
    readonly holder: HolderLabel | undefined,
    readonly moment: Moment,
    /** The deadline, in ms from `moment` on; it never changes. */
    readonly timeout: number,
    readonly resolve: (lease: Lease<C> | PromiseLike<Lease<C>>) => void
  ) {}

  get since (): number {
    return this.moment.at
  }

  get deadline (): number {
    return this.moment.at + this.timeout
  }

  /** Those who came earlier stand in front. */
  get place (): number {
    return this.moment.at
  }

  /** Rejects through `resolve`: a field for the promise's `reject` would make every waiter larger. */
  reject (error: Error): void {
    this.resolve(Promise.reject(error))
  }

  /** False once the waiter has been served, or has given up. */
  get waiting (): boolean {
    return this.at !== DONE
  }

  /** The waiter stands in the line. */
  get inLine (): boolean {
    return this.at >= 0
  }

  /** The waiter has left the line, and a connection is being prepared for it. */
  get preparing (): boolean {
    return this.at === PREPARING
  }

  set preparing (preparing: boolean) {
    this.at = preparing ? PREPARING : CALLED
  }

  /** The waiter was served, or has given up. */
  end (): void {
    this.at = DONE
  }
}

const once = { once: true }

/** A caller that leaves when its signal aborts, or that comes back to its place. */
export class Guest<C> extends Waiter<C> {
  readonly #place: number | undefined
  #signal: AcquireSignal | undefined
  #leave: ((guest: Guest<C>, signal: AcquireSignal) => void) | undefined
  /** What the signal calls: the guest itself, where the signal takes objects. */
  #listener: (() => void) | undefined

  /** @param place since when it has waited in all, where it comes back */
  constructor (place: number | undefined, ...waiter: ConstructorParameters<typeof Waiter<C>>) {
    super(...waiter)
    this.#place = place
  }

  override get place (): number {
    return this.#place ?? this.since
  }

  /** Calls `leave` when the signal aborts while the guest waits. */
  leaveOn (signal: AcquireSignal, leave: (guest: Guest<C>, signal: AcquireSignal) => void): void {
    this.#signal = signal
    this.#leave = leave
    const takesObjects = signal instanceof AbortSignal || kTakesObjects in signal
    this.#listener = takesObjects ? this as unknown as () => void : () => { this.handleEvent() }
    signal.addEventListener('abort', this.#listener, once)
  }

  handleEvent (): void {
    if (this.waiting) this.#leave!(this, this.#signal!)
  }

  override end (): void {
    super.end()
    this.#signal?.removeEventListener('abort', this.#listener!)
    this.#signal = this.#leave = this.#listener = undefined
  }
}

/** A ring that is longer than this is not kept when its line is empty. */
const KEPT = 1024

/**
 * A line of waiters: first come, first served. Any of them can leave in O(1).
 *
 * They stand in a ring, each at the number of its place; who leaves, leaves a hole. The first of the ring is never a
 * hole. A linked list would need two fields more for each, and the garbage collector would follow it link by link.
 */
export class Waiters<C> {
  size = 0
  /** Its length is a power of two, so that a mask makes an index of a number. */
  #ring: Array<Waiter<C> | undefined> = []
  /** The number of the first place, and of the next one to be taken. */
  #head = 0
  #tail = 0
  /**
   * Whether deadlines rise from first to last, as they do while all callers have the same timeout. Then a sweep ends at
   * the first waiter that is not due.
   */
  #ordered = true
  /** No deadline in the line is later. The last waiter's may be earlier: another one may have left. */
  #latest = -Infinity

  add (waiter: Waiter<C>): void {
    if (this.#tail - this.#head === this.#ring.length) this.#makeRoom()
    const { deadline } = waiter
    if (this.size === 0) {
      this.#ordered = true
      this.#latest = deadline
    } else if (deadline < this.#latest) this.#ordered = false
    else this.#latest = deadline
    this.#ring[this.#tail & (this.#ring.length - 1)] = waiter
    waiter.at = this.#tail++
    this.size++
  }

  /** Adds a waiter at its place: it came before others that stand in the line. */
  insert (waiter: Waiter<C>): void {
    this.#addBehind(waiter, (other) => other.place <= waiter.place)
  }

  /**
   * Puts a waiter back at the head of the line: the connection that was prepared for it died.
   *
   * @param isBefore whether another one who stands at the head was called before it
   */
  putBack (waiter: Waiter<C>, isBefore: (other: Waiter<C>) => boolean = () => false): void {
    this.#addBehind(waiter, isBefore)
  }

  /** Adds a waiter behind all at the head for whom `isBefore` is true. Those behind it move. */
  #addBehind (waiter: Waiter<C>, isBefore: (other: Waiter<C>) => boolean): void {
    const behind: Array<Waiter<C>> = []
    for (const other of this) if (behind.length > 0 || !isBefore(other)) behind.push(other)
    for (const other of behind) this.remove(other)
    for (const other of [waiter, ...behind]) this.add(other)
  }

  /** The ring is full, of waiters or of holes: makes one without holes, with room for at least as many more. */
  #makeRoom (): void {
    const old = this.#ring
    let length = 16
    while (length < this.size * 2) length *= 2
    const ring = new Array<Waiter<C> | undefined>(length).fill(undefined)
    let tail = 0
    for (let at = this.#head; at < this.#tail; at++) {
      const waiter = old[at & (old.length - 1)]
      if (waiter === undefined) continue
      ring[tail] = waiter
      waiter.at = tail++
    }
    this.#ring = ring
    this.#head = 0
    this.#tail = tail
  }

  first (): Waiter<C> | undefined {
    return this.size === 0 ? undefined : this.#ring[this.#head & (this.#ring.length - 1)]
  }

  /** @param index from 0 on, less than `size`: walks so far */
  at (index: number): Waiter<C> {
    for (const waiter of this) if (index-- === 0) return waiter
    throw new RangeError('beyond the end of the line')
  }

  * [Symbol.iterator] (): Generator<Waiter<C>, void> {
    const ring = this.#ring
    for (let at = this.#head; at < this.#tail; at++) {
      const waiter = ring[at & (ring.length - 1)]
      if (waiter !== undefined) yield waiter
    }
  }

  /** @param waiter must stand in this line */
  remove (waiter: Waiter<C>): void {
    const ring = this.#ring
    const mask = ring.length - 1
    ring[waiter.at & mask] = undefined
    waiter.at = CALLED
    if (--this.size === 0) {
      this.#head = this.#tail = 0
      if (ring.length > KEPT) this.#ring = []
      return
    }
    while (ring[this.#head & mask] === undefined) this.#head++
  }

  /** Calls `expired`, which must remove the waiter, for each waiter that is due. Returns the next deadline. */
  sweep (now: number, expired: (waiter: Waiter<C>) => void): number {
    const due: Array<Waiter<C>> = []
    let earliest = Infinity
    let latest = -Infinity
    let ordered = true
    for (const waiter of this) {
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
