import type { MongoClient } from '../../../types/drivers.js'
import { Subscriptions } from '../shared/listeners.js'

/** An event of the driver about one of its sockets; `connectionId` is unique per server. */
interface SocketEvent { readonly address: string, readonly connectionId: number | string }

/** Counts the sockets of a client that no operation uses, by the driver's events. */
export class FreeSockets {
  readonly #free = new Map<string, Set<number | string>>()

  constructor (client: MongoClient, subscriptions: Subscriptions) {
    const on = (name: string, fn: (event: SocketEvent) => void) => subscriptions.on<SocketEvent>(client, name, fn)
    const add = ({ address, connectionId }: SocketEvent) => {
      const free = this.#free.get(address)
      if (free === undefined) this.#free.set(address, new Set([connectionId]))
      else free.add(connectionId)
    }
    const remove = ({ address, connectionId }: SocketEvent) => { this.#free.get(address)?.delete(connectionId) }
    on('connectionReady', add)
    on('connectionCheckedIn', add)
    on('connectionCheckedOut', remove)
    on('connectionClosed', remove)
    // The driver closes them at a later checkout, and lends none of them before.
    for (const name of ['connectionPoolCleared', 'connectionPoolClosed']) {
      on(name, ({ address }) => { this.#free.delete(address) })
    }
  }

  /** @param addresses of the servers that are meant: all of them unless told */
  count (addresses: Iterable<string> = this.#free.keys()): number {
    let sum = 0
    for (const address of addresses) sum += this.#free.get(address)?.size ?? 0
    return sum
  }
}

/** How long an answer is relied on, in ms: the pool's own limit for a validation. */
const DOUBT = 100

interface Ping {
  readonly round: number
  readonly controller: AbortController
}

/** What a sweep is made of. */
export interface SweepParts {
  /** One ping, on whichever socket the driver takes. An abort closes that socket. */
  ping (signal: AbortSignal): Promise<unknown>
  /** How many sockets are free now, as far as we know. */
  free (): number
  /** There may be sockets that we do not know: they were opened before we listened. */
  readonly uncounted: boolean
  /** No ping waits any more. */
  ended (): void
}

/**
 * Asks all free sockets of a client at once. A ping can't choose its socket: with as many pings as there are free
 * sockets each has one, and a silent socket is lent to nobody as long as its ping waits.
 *
 * Each 100 ms without any answer one silent socket is closed, which makes room, and one more ping goes out, on a new
 * socket (where there may be sockets that we do not know: 1, 2, 4, ... of them). The first answer settles the sweep.
 * Pings that were sent before the one that was answered have been overtaken: their sockets are closed at once. Those
 * sent with it have 100 ms more, and are closed then.
 */
export class Sweep {
  /** Rejects with the first error, where no ping was answered. */
  readonly answer: Promise<void>
  /** No answer after 100 ms. */
  doubtful = false
  /** How many rely on it. Without any it ends at the next round. */
  waiting = 0

  readonly #parts: SweepParts
  readonly #pings = new Set<Ping>()
  #resolve!: () => void
  #reject!: (error: unknown) => void
  #round = 0
  #answered = false
  #error: unknown
  #timer: NodeJS.Timeout | undefined

  constructor (parts: SweepParts) {
    this.#parts = parts
    this.answer = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
    this.#ask(Math.max(1, parts.free()))
    this.#arm()
  }

  /** Ends it: closes the sockets that have not answered. */
  stop (why: Error): void {
    clearTimeout(this.#timer)
    for (const ping of [...this.#pings]) this.#giveUp(ping, why)
    this.#settle(why)
  }

  #ask (count: number): void {
    for (let asked = 0; asked < count; asked++) {
      const ping: Ping = { round: this.#round, controller: new AbortController() }
      this.#pings.add(ping)
      this.#parts.ping(ping.controller.signal).then(() => this.#heard(ping), (error) => this.#failed(ping, error))
    }
  }

  #heard (ping: Ping): void {
    if (!this.#pings.delete(ping)) return
    const isFirst = !this.#answered
    this.#answered = true
    for (const other of [...this.#pings]) if (other.round < ping.round) this.#giveUp(other, silence)
    this.#resolve()
    if (isFirst && this.#pings.size > 0) this.#arm()
    this.#settle()
  }

  #failed (ping: Ping, error: unknown): void {
    if (!this.#pings.delete(ping)) return
    this.#error ??= error
    this.#settle(this.#error)
  }

  #giveUp (ping: Ping, why: Error): void {
    this.#pings.delete(ping)
    ping.controller.abort(why)
  }

  #settle (error?: unknown): void {
    if (this.#pings.size > 0) return
    clearTimeout(this.#timer)
    if (!this.#answered) this.#reject(error)
    this.#parts.ended()
  }

  /** Judges in 100 ms, once the sockets have been read: an event loop that stood still is no silence of theirs. */
  #arm (): void {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => setImmediate(() => this.#judge()), DOUBT).unref()
  }

  #judge (): void {
    if (this.#pings.size === 0) return
    if (this.#answered || this.waiting === 0) return this.stop(silence)
    this.doubtful = true
    const count = this.#parts.uncounted ? 2 ** this.#round : 1
    this.#round++
    for (const ping of [...this.#pings].slice(0, count)) this.#giveUp(ping, silence)
    this.#ask(count)
    this.#arm()
  }
}

const silence = new Error(`no answer within ${DOUBT} ms`)
