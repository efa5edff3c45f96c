import type { DestroyReason } from '../../types/connector.js'
import type { Holder, PoolHealth, PoolStats } from '../../types/pool.js'
import { Books, type Going } from './books.js'
import type { Checks } from './checks.js'
import { IDLE, LENT, RESETTING, type Entry } from './entry.js'
import * as faults from './faults.js'
import type { Parts, Phase } from './parts.js'
import { Room } from './room.js'
import type { Supply } from './supply.js'

/** What the report asks of the engine. */
export interface Site<C> extends Parts<C> {
  readonly closing: { readonly phase: Phase }
  readonly checks: Checks<C>
  readonly supply: Supply<C>
  readonly waiting: { readonly since: readonly number[] }
  /** Starts the periodic ticks. */
  wake (): void
  pump (): void
  destroy (entry: Entry<C>, reason: DestroyReason, error?: Error): void
}

/** The numbers of one engine, not told yet: those of many are added up before. */
export interface Part extends Pick<PoolStats,
  'min' | 'max' | 'creating' | 'idle' | 'used' | 'resetting' | 'closing' | 'pending' | 'late' | 'circuit'> {
  readonly books: Books
  readonly going: Going
}

/** What an engine tells about itself. */
export class Report<C> extends Room<C, Site<C>> {
  get situation (): faults.Situation {
    const { entries: { max, used, idle, creating, late } } = this.site
    return { name: this.name, max, used, idle: idle.length, creating, pending: this.line.size, late }
  }

  get stats (): PoolStats {
    const { books, going, ...now } = this.part
    const { subscriptions } = this.backend
    return Object.freeze({
      name: this.name,
      system: this.backend.system,
      ...now,
      ...Books.tell([{ books, going }]),
      ...(subscriptions !== undefined && { subscriptions }),
    })
  }

  get part (): Part {
    const { min, max, creating, idle, used, closing, late } = this.entries
    return {
      min,
      max,
      creating,
      idle: idle.length,
      used,
      resetting: [...this.entries].filter(({ state }) => state === RESETTING).length,
      closing,
      pending: this.line.size,
      late,
      circuit: this.site.supply.creator.circuit.state,
      books: this.books,
      going: this.going,
    }
  }

  /** The waits and leases that go on. */
  get going (): Going {
    const now = this.time.read(true)
    return {
      now,
      waiting: this.site.waiting.since.map((since) => Math.max(0, now - since)),
      out: this.#held.map(({ takenAt, holder }) => ({ held: Math.max(0, now - takenAt), holder })),
    }
  }

  /** The leases that are out now, the longest held first. */
  get holders (): Holder[] {
    const held = this.#held
    return this.#tell(held).map((holder, at) => ({ ...holder, ...this.#activityOf(held[at]!, holder.heldFor) }))
  }

  /** What the connection is doing, as far as its driver says. */
  #activityOf (entry: Entry<C>, heldFor: number): Pick<Holder, 'target' | 'doing' | 'sinceQuery' | 'serverId'> {
    const target = this.owner?.target
    const activity = this.site.checks.activityOf(entry)
    const { id, doing, since } = activity ?? {}
    return {
      ...(target !== undefined && { target }),
      ...(doing !== undefined && { doing }),
      // An idle connection may have been idle before it was lent.
      ...(since !== undefined && { sinceQuery: Math.min(heldFor, Math.max(0, performance.now() - since)) }),
      ...(id !== undefined && { serverId: id }),
    }
  }

  get #held (): Array<Entry<C>> {
    return [...this.entries].filter(({ state }) => state === LENT).sort((a, b) => a.takenAt - b.takenAt)
  }

  #tell (held: ReadonlyArray<Entry<C>>): Holder[] {
    const now = this.time.read()
    return held.map(({ id, holder, takenAt }) => ({ pool: this.name, holder, id, heldFor: Math.max(0, now - takenAt) }))
  }

  /** Who holds connections, for errors. */
  get holding (): faults.Holding {
    const held = this.#held.slice(0, 10)
    const inVain = held.map(({ borrower }) => borrower?.inVain).filter((why) => why !== undefined)
    return { holders: this.#tell(held), inVain }
  }

  /**
   * Asks one idle connection, if there is one and the connector can; never waits for a connection. Where the last news
   * of the server was bad and no connection is left, creates are tried from now on, for a minute.
   */
  async health (): Promise<PoolHealth> {
    const { checks } = this.site
    checks.evidence.asked()
    for (const idle of [...this.entries.idle]) {
      const isDead = idle.state === IDLE && checks.isDead(idle)
      // Asked again, since a listener that is told of a failing `isBroken` may have asked for the health, too.
      if (isDead && idle.state === IDLE) this.site.destroy(idle, 'error', idle.broken)
    }
    // It may be time to learn how the server is.
    this.site.pump()
    const entry = this.entries.idle.at(-1)
    // The answer is waited for, so the connection has to keep the process alive.
    if (entry !== undefined) this.site.wake()
    const ping = entry === undefined || this.backend.validate === undefined ? undefined : checks.ping(entry)
    const latency = await ping
    return this.#judge(latency === undefined ? null : roundOf(latency))
  }

  #judge (latency: number | null): PoolHealth {
    const { closing: { phase }, checks: { evidence: { news, works } }, supply: { creator } } = this.site
    const { lastFailure } = creator
    const { stats } = this
    const { circuit, pending } = stats
    const judged = (status: PoolHealth['status'], reason?: string, since?: number): PoolHealth => ({
      status, ...(reason !== undefined && { reason }), ...(since !== undefined && { since }), latency, circuit, stats,
    })
    const [what, since] = news.is === 'bad' ? [news.what, news.since] : []
    const late = faults.tooLate(stats)
    if (phase !== 'open') return judged('draining', `the pool is ${phase}`)
    if (late !== undefined) return judged(works ? 'degraded' : 'down', late, since)
    if (circuit !== 'closed') {
      const why = lastFailure === undefined ? '' : `: ${lastFailure.message}`
      return judged(works ? 'degraded' : 'down', `the circuit is ${circuit}: creates keep failing${why}`, since)
    }
    if (what !== undefined && works) return judged('degraded', what, since)
    if (what !== undefined) return judged('down', `no connection, and ${what}`, since)
    if (news.is === 'none') return judged('degraded', 'no connection was made yet: nothing is known of the server')
    return pending > 0 ? judged('degraded', `${pending} wait for a connection`) : judged('up')
  }
}

/** A time in ms that fits: to a hundredth. */
function roundOf (ms: number): number {
  return Math.round(ms * 100) / 100
}
