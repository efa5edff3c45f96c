import type { DestroyReason } from '../../types/connector.js'
import type { PoolErrorCode } from '../../types/errors.js'
import type { Counts, HolderLabel, PoolStats, RefuseReason, WindowStats } from '../../types/pool.js'
import { Histogram, type Mark as Durations } from './histogram.js'

const noneDestroyed: Readonly<Record<DestroyReason, number>> = {
  idle: 0,
  lifetime: 0,
  uses: 0,
  invalid: 0,
  stale: 0,
  error: 0,
  aborted: 0,
  leaked: 0,
  overdue: 0,
  closed: 0,
  released: 0,
}

export const noneRefused: Readonly<Record<RefuseReason, number>> = {
  full: 0, overload: 0, circuit: 0, connect: 0, deadlock: 0, closed: 0,
}

const reasons: { readonly [C in PoolErrorCode]?: RefuseReason } = {
  FST_POOL_QUEUE_FULL: 'full',
  FST_POOL_OVERLOADED: 'overload',
  FST_POOL_CIRCUIT_OPEN: 'circuit',
  FST_POOL_CONNECT_FAILED: 'connect',
  FST_POOL_DEADLOCK: 'deadlock',
  FST_POOL_CLOSED: 'closed',
}

/** Why an acquire was refused with this error. */
export function refusedFor (code: PoolErrorCode): RefuseReason {
  return reasons[code] ?? 'connect'
}

/** How long `lastMinute` is, in ms, and how often its beginning moves on. */
const MINUTE = 60_000
const STEP = 5000

/** The most routes, and the most kinds of failed creates, that are told apart. */
const ROUTES = 200
const FAILURES = 20
const OTHERS = '(others)'

/** All numbers of the books that are sums. */
interface Totals {
  readonly acquired: number
  readonly released: number
  readonly created: number
  readonly createErrors: number
  readonly timeouts: number
  readonly refused: number
  readonly aborted: number
  readonly leaked: number
  /** Waits that ended without a connection. */
  readonly failedWaits: number
  readonly busy: number
  readonly saturated: number
}

/** The books at a moment. */
interface Mark extends Totals {
  readonly at: number
  readonly destroyed: Readonly<Record<DestroyReason, number>>
  readonly refusals: Readonly<Record<RefuseReason, number>>
  readonly waits: Durations
  readonly holds: Durations
  readonly creates: Durations
}

/** What goes on now: how long it has gone on, in ms. */
export interface Going {
  readonly now: number
  /** Of callers that wait. */
  readonly waiting: readonly number[]
  /** Of leases that are out. */
  readonly out: ReadonlyArray<{ readonly held: number, readonly holder: HolderLabel | undefined }>
}

interface Short { readonly held: number, readonly route: string | undefined }

/** What an engine has counted since it was made. */
export class Books {
  acquired = 0
  released = 0
  created = 0
  createErrors = 0
  readonly createFailures = new Map<string, number>()
  readonly destroyed = { ...noneDestroyed }
  timeouts = 0
  refused = 0
  readonly refusals = { ...noneRefused }
  aborted = 0
  leaked = 0
  /** Waits that ended without a connection. */
  failedWaits = 0
  readonly waits = new Histogram()
  readonly #holds = new Histogram()
  readonly creates = new Histogram()
  /** For how long leases that have ended were held, in ms. */
  #busy = 0
  readonly #routes = new Map<string, number>()
  /** Leases that ended before a tick saw them, and were timed: they stand for all that ended so soon. */
  #short: Short[] = []
  /** The short ones stand for all that have been released, but for so many. */
  #settled = 0
  #saturated = 0
  /** Since when all connections are used, and somebody waits; undefined: they are not. */
  #saturatedSince: number | undefined
  /** The first is where `lastMinute` begins, or before that where no tick came for long. */
  readonly #marks: Mark[]

  constructor (now: number) {
    this.#marks = [this.#mark(now, 0)]
  }

  get destroyedTotal (): number {
    return Object.values(this.destroyed).reduce((sum, count) => sum + count, 0)
  }

  refuse (code: PoolErrorCode): void {
    this.refused++
    this.refusals[refusedFor(code)]++
  }

  /** @param error scrubbed; undefined: the deadline passed */
  createFailed (error: Error | undefined): void {
    add(this.createFailures, error === undefined ? 'timeout' : kindOf(error), 1, FAILURES)
  }

  /** A caller waited, and gets no connection. */
  failedWait (ms: number): void {
    this.failedWaits++
    this.waits.record(ms)
  }

  /**
   * A lease has ended that was timed. Not all are: those that no tick has seen are a sample.
   *
   * @param isSeen a tick has seen it: then it was not left out, however many there are
   */
  ended (held: number, isSeen: boolean, holder: HolderLabel | undefined): void {
    const route = routeOf(holder)
    if (!isSeen) {
      this.#short.push({ held, route })
      return
    }
    this.#settled++
    this.#end(held, 1, route)
  }

  #end (held: number, weight: number, route: string | undefined): void {
    this.#holds.record(held, weight)
    this.#busy += held * weight
    if (route !== undefined) add(this.#routes, route, held * weight, ROUTES)
  }

  /** Lets the short leases that were timed stand for all that have ended since the last time. */
  #settle (): void {
    const { length } = this.#short
    if (length === 0) return
    const weight = (this.released - this.#settled) / length
    this.#settled = this.released
    for (const { held, route } of this.#short) this.#end(held, weight, route)
    this.#short = []
  }

  /**
   * @param out for how long leases that are out are held, all together, in ms
   * @param isLast no tick comes while nothing happens
   */
  tick (now: number, out: number, isLast: boolean): void {
    this.#settle()
    const marks = this.#marks
    if (!isLast && now - marks.at(-1)!.at < STEP) return
    // A pool that wakes up again and again does not need all of its marks.
    const needless = marks.length > 1 && now - marks.at(-2)!.at < STEP ? marks.pop() : undefined
    const mark = this.#mark(now, out)
    marks.push(needless === undefined ? mark : { ...mark, ...longest(needless, mark) })
    while (marks.length > 1 && marks[1]!.at <= now - MINUTE) marks.shift()
  }

  /** All connections are used while somebody waits, or it is not so any more. */
  saturate (is: boolean, now: number): void {
    if (is) this.#saturatedSince ??= now
    else if (this.#saturatedSince !== undefined) {
      this.#saturated += Math.max(0, now - this.#saturatedSince)
      this.#saturatedSince = undefined
    }
  }

  get holds (): Histogram {
    this.#settle()
    return this.#holds
  }

  /** Adds what another one has counted, whose engine is gone. Nothing of either is of the last minute any more. */
  absorb (other: Books, now: number): void {
    for (const books of [this, other]) books.#settle()
    const sums = [
      'acquired', 'released', 'created', 'createErrors', 'timeouts', 'refused', 'aborted', 'leaked', 'failedWaits',
    ] as const
    for (const key of sums) this[key] += other[key]
    for (const key of Object.keys(this.destroyed) as DestroyReason[]) this.destroyed[key] += other.destroyed[key]
    for (const key of Object.keys(this.refusals) as RefuseReason[]) this.refusals[key] += other.refusals[key]
    for (const [kind, count] of other.createFailures) add(this.createFailures, kind, count, FAILURES)
    for (const [route, ms] of other.#routes) add(this.#routes, route, ms, ROUTES)
    this.waits.add(other.waits)
    this.#holds.add(other.#holds)
    this.creates.add(other.creates)
    this.#busy += other.#busy
    this.#settled = this.released
    this.saturate(false, now)
    this.#saturated = Math.max(this.#saturated, other.#totals(now, 0).saturated)
    this.#marks.splice(0, Infinity, this.#mark(now, 0))
  }

  #totals (now: number, out: number): Totals {
    const { acquired, released, created, createErrors, timeouts, refused, aborted, leaked, failedWaits } = this
    const saturated = this.#saturated + Math.max(0, now - (this.#saturatedSince ?? now))
    const busy = this.#busy + out
    const counts = { acquired, released, created, createErrors, timeouts, refused, aborted, leaked, failedWaits }
    return { ...counts, busy, saturated }
  }

  #mark (at: number, out: number): Mark {
    return {
      at,
      ...this.#totals(at, out),
      destroyed: { ...this.destroyed },
      refusals: { ...this.refusals },
      waits: this.waits.mark(),
      holds: this.#holds.mark(),
      creates: this.creates.mark(),
    }
  }

  /** The sums of several engines' books, as stats tell them. */
  static tell (
    all: ReadonlyArray<{ readonly books: Books, readonly going: Going }>
  ): Counts & Pick<PoolStats, 'createFailures' | 'routes' | 'lastMinute'> {
    for (const { books } of all) books.#settle()
    const routes = new Map<string, number>()
    const failures = new Map<string, number>()
    for (const { books, going } of all) {
      for (const [route, ms] of books.#routes) add(routes, route, ms, ROUTES)
      for (const [kind, count] of books.createFailures) add(failures, kind, count, FAILURES)
      for (const { held, holder } of going.out) {
        const route = routeOf(holder)
        if (route !== undefined) add(routes, route, held, ROUTES)
      }
    }
    const minutes = all.map(({ books, going }) => books.#lastMinute(going))
    const going = {
      waiting: all.flatMap(({ going: { waiting } }) => waiting),
      out: all.flatMap(({ going: { out } }) => out.map(({ held }) => held)),
    }
    return {
      ...countsOf(all.map(({ books, going }) => books.#part(going)), going),
      createFailures: Object.freeze(Object.fromEntries(failures)),
      routes: Object.freeze(Object.fromEntries(routes)),
      lastMinute: Object.freeze<WindowStats>({
        ...countsOf(minutes.map(({ part }) => part), going),
        span: Math.max(...minutes.map(({ span }) => span)),
      }),
    }
  }

  #part ({ now, out }: Going): Part {
    const { destroyed, refusals, waits, creates } = this
    const held = out.reduce((sum, one) => sum + one.held, 0)
    return { ...this.#totals(now, held), destroyed, refusals, waits, holds: this.#holds, creates }
  }

  #lastMinute (going: Going): { readonly part: Part, readonly span: number } {
    const all = this.#part(going)
    const { now } = going
    const from = Math.max(0, this.#marks.findLastIndex(({ at }) => at <= now - MINUTE))
    const marks = this.#marks.slice(from)
    const base = marks[0]!
    const part = {
      ...less(all, base),
      destroyed: less(all.destroyed, base.destroyed),
      refusals: less(all.refusals, base.refusals),
      waits: all.waits.since(marks.map(({ waits }) => waits)),
      holds: all.holds.since(marks.map(({ holds }) => holds)),
      creates: all.creates.since(marks.map(({ creates }) => creates)),
    }
    if (now - base.at <= MINUTE + STEP) return { part, span: now - base.at }
    // No tick came for long, and nothing happened meanwhile: only what went on has to be divided.
    const next = marks[1] ?? { ...all, at: now }
    const before = (now - MINUTE - base.at) / (next.at - base.at)
    const busy = part.busy - before * (next.busy - base.busy)
    const saturated = part.saturated - before * (next.saturated - base.saturated)
    return { part: { ...part, busy, saturated }, span: MINUTE }
  }
}

/** Sums and distributions of one engine, since it was made or in a window of time. */
interface Part extends Totals {
  readonly destroyed: Readonly<Record<DestroyReason, number>>
  readonly refusals: Readonly<Record<RefuseReason, number>>
  readonly waits: Histogram
  readonly holds: Histogram
  readonly creates: Histogram
}

/** The distributions of a mark, with the longest ones since the mark before the one that is left out. */
function longest (needless: Mark, mark: Mark): Pick<Mark, 'waits' | 'holds' | 'creates'> {
  const of = (key: 'waits' | 'holds' | 'creates') =>
    ({ ...mark[key], max: Math.max(mark[key].max, needless[key].max) })
  return { waits: of('waits'), holds: of('holds'), creates: of('creates') }
}

function countsOf (
  parts: readonly Part[], { waiting, out }: { readonly waiting: readonly number[], readonly out: readonly number[] }
): Counts {
  const sum = (of: (part: Part) => number) => parts.reduce((total, part) => total + of(part), 0)
  const records = <K extends string>(of: (part: Part) => Readonly<Record<K, number>>): Readonly<Record<K, number>> => {
    const [first, ...rest] = parts
    const sums: Record<K, number> = { ...of(first!) }
    for (const part of rest) {
      const one = of(part)
      for (const key in sums) sums[key] += one[key]
    }
    return Object.freeze(sums)
  }
  const all = (of: (part: Part) => Histogram): Histogram =>
    parts.length === 1 ? of(parts[0]!) : parts.reduce((whole, part) => whole.add(of(part)), new Histogram())
  const [acquired, failedWaits] = [sum((part) => part.acquired), sum((part) => part.failedWaits)]
  const waits = all(({ waits }) => waits)
  return {
    acquired,
    released: sum(({ released }) => released),
    created: sum(({ created }) => created),
    createErrors: sum(({ createErrors }) => createErrors),
    destroyed: records(({ destroyed }) => destroyed),
    timeouts: sum(({ timeouts }) => timeouts),
    refused: sum(({ refused }) => refused),
    refusals: records(({ refusals }) => refusals),
    aborted: sum(({ aborted }) => aborted),
    leaked: sum(({ leaked }) => leaked),
    // Acquires that were served at once are in no histogram: they count as 0.
    wait: waits.summary(Math.max(0, acquired - (waits.count - failedWaits)), waiting),
    held: all(({ holds }) => holds).summary(0, out),
    create: all(({ creates }) => creates).summary(),
    saturated: Math.max(...parts.map(({ saturated }) => saturated)),
    busy: sum(({ busy }) => busy),
  }
}

/** The numbers of one object, less those of another. */
function less<T extends object> (all: T, before: object): T {
  const rest = { ...all } as Record<string, unknown>
  for (const key in rest) {
    if (typeof rest[key] === 'number') rest[key] -= (before as Record<string, number>)[key]!
  }
  return rest as T
}

function add (to: Map<string, number>, key: string, more: number, most: number): void {
  const known = to.has(key) || to.size < most ? key : OTHERS
  to.set(known, (to.get(known) ?? 0) + more)
}

function routeOf (holder: HolderLabel | undefined): string | undefined {
  return typeof holder === 'object' ? holder.route : holder
}

/** What a create failed with, in a word. */
function kindOf (error: Error): string {
  const { code } = error as { readonly code?: unknown }
  return (typeof code === 'string' || typeof code === 'number' ? String(code) : error.name).slice(0, 60)
}
