import { Operation, type Entry } from './entry.js'
import type { Events } from './events.js'
import type { Time } from './time.js'
import type { Phase } from './transaction.js'

/** Begins and ends what is under way on connections. */
export class Operations<C> {
  readonly #time: Time
  readonly #events: Events
  /** How many connections are validated because somebody waits. */
  awaited = 0

  constructor (time: Time, events: Events) {
    this.#time = time
    this.#events = events
  }

  own (entry: Entry<C>): Operation<C> {
    return (entry.operation ??= new Operation())
  }

  /** Begins an operation; one that is under way goes on as the new one. */
  begin (entry: Entry<C>, deadline: number, phase?: Phase): Operation<C> {
    const operation = this.own(entry)
    operation.phase = phase
    operation.deadline = deadline
    this.#time.arm(deadline)
    return operation
  }

  /** As `begin`, for a validation that somebody waits for. */
  beginAwaited (entry: Entry<C>, deadline: number): Operation<C> {
    const operation = this.begin(entry, deadline)
    operation.awaited = true
    this.awaited++
    return operation
  }

  finish (entry: Entry<C>): void {
    if (entry.operation?.awaited === true) this.awaited--
    entry.operation = undefined
  }

  /** Aborts the signal that the connector got, if it asked for one. */
  abort (entry: Entry<C>, why: string | Error): void {
    const controller = entry.operation?.controller
    if (controller === undefined) return
    this.#events.run(() => { controller.abort(typeof why === 'string' ? new Error(why) : why) })
  }
}
