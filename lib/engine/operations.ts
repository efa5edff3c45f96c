import { Operation, type Entry } from './entry.js'
import type { Events } from './events.js'
import type { Time } from './time.js'
import type { Phase } from './transaction.js'

/** The period of the ticks, which is how coarse the clock of the fast path is, in ms. */
export const TICK = 100

/** Begins and ends what is under way on connections. */
export class Operations<C> {
  readonly #time: Time
  readonly #events: Events
  /** How many connections are validated because somebody waits. */
  awaited = 0
  /** How many validations are in doubt, and how many of them somebody waits for. */
  doubted = 0
  awaitedInDoubt = 0

  constructor (time: Time, events: Events) {
    this.#time = time
    this.#events = events
  }

  own (entry: Entry<C>): Operation<C> {
    return (entry.operation ??= new Operation())
  }

  /**
   * Begins an operation; one that is under way goes on as the new one. While there are any, there are ticks: a late one
   * shows that the event loop stood still, and that time is added to `deadline` (see `grant`).
   */
  begin (entry: Entry<C>, deadline: number, phase?: Phase): Operation<C> {
    const operation = this.own(entry)
    const { now } = this.#time
    operation.phase = phase
    operation.deadline = deadline
    operation.since = now
    operation.stalled = false
    operation.doubted = false
    this.#time.arm(Math.min(deadline, now + TICK))
    return operation
  }

  /**
   * The event loop stood still for `ms`: the deadline is that much later. Not the one of `onAcquire`, which is its
   * caller's own.
   */
  grant ({ operation }: Entry<C>, ms: number): void {
    if (operation === undefined || operation.prepared !== undefined) return
    const { now } = this.#time
    const granted = Math.max(0, Math.min(ms, now - operation.since))
    operation.deadline += granted
    // Up to a tick of a stall is not seen, so behind a long one what callers rely on begins anew.
    operation.since = ms < TICK ? operation.since + granted : now
    operation.stalled ||= ms >= TICK
  }

  /** The validation takes long. */
  doubt (operation: Operation<C>): void {
    operation.doubted = true
    this.doubted++
    if (operation.awaited) this.awaitedInDoubt++
  }

  /** As `begin`, for a validation that somebody waits for. */
  beginAwaited (entry: Entry<C>, deadline: number): Operation<C> {
    const operation = this.begin(entry, deadline)
    operation.awaited = true
    this.awaited++
    return operation
  }

  finish (entry: Entry<C>): void {
    const { awaited, doubted } = entry.operation ?? {}
    if (awaited === true) this.awaited--
    if (doubted === true) this.doubted--
    if (awaited === true && doubted === true) this.awaitedInDoubt--
    entry.operation = undefined
  }

  /** Tells whoever waits, then aborts the signal that the connector got, if it asked for one. */
  abort ({ operation }: Entry<C>, why: string | Error): void {
    if (operation === undefined) return
    const { cut, controller } = operation
    const reason = typeof why === 'string' ? new Error(why) : why
    cut?.(reason)
    if (controller !== undefined) this.#events.run(() => { controller.abort(reason) })
  }
}
