import type { Holder, HolderLabel, PoolEvents } from '../../../types/pool.js'
import { heldBy } from './held.js'
import * as texts from './texts.js'

/** What is told of leases. */
export type LeaseLine = 'pool.leak' | 'pool.leak.end' | 'pool.leak.taken' | 'pool.hold' | 'pool.overdue'

/** So long others of the same line may come behind one, in ms: they are one line together. */
const TOGETHER = 200
/** How soon to ask again for room, in ms. */
const SOON = 1000
/** How many requests one line names. */
const NAMED = 20

export interface Site {
  readonly pool: string
  holders (): readonly Holder[]
  /** Whether a line may be written now, or too many were. */
  hasRoom (line: LeaseLine, now: number): boolean
  write (line: LeaseLine, fields: object, msg: string, holder: HolderLabel | undefined): void
}

/** One lease of which something is to be told. */
interface Told {
  readonly event: PoolEvents['leak'] & { readonly holdTimeout?: number, readonly taken?: string }
  /** Who has it, and what the connection is doing, where it still is out. */
  readonly out: Holder
}

interface Waiting {
  /** Until when those who come are told together. */
  until: number
  readonly all: Told[]
}

/**
 * What is told of leases that are out for too long. The first one has a line at once; those that follow it at once, and
 * those for which there is no room, have one line together, which names them: none is left out.
 */
export class Leases {
  readonly #site: Site
  readonly #lines = new Map<LeaseLine, Waiting>()

  constructor (site: Site) {
    this.#site = site
  }

  /** Returns when to look. */
  add (line: LeaseLine, event: Told['event'], now: number): number {
    const { id, holder, held } = event
    const { pool } = this.#site
    const isIt = (one: Holder) => one.id === id && one.holder === holder
    const out = this.#site.holders().find(isIt) ?? { pool, id, holder, heldFor: held }
    const waiting = this.#lines.get(line) ?? { until: -Infinity, all: [] }
    this.#lines.set(line, waiting)
    waiting.all.push({ event, out })
    return this.look(now)
  }

  /** Returns when to look again. */
  look (now: number): number {
    let next = Infinity
    for (const [line, waiting] of this.#lines) {
      if (waiting.all.length === 0) continue
      if (now >= waiting.until && this.#site.hasRoom(line, now)) {
        waiting.until = now + TOGETHER
        this.#tell(line, waiting.all.splice(0))
      } else next = Math.min(next, now < waiting.until ? waiting.until : now + SOON)
    }
    return next
  }

  /** The pool is closed: what waits is told. */
  close (): void {
    for (const [line, { all }] of this.#lines) if (all.length > 0) this.#tell(line, all.splice(0))
  }

  #tell (line: LeaseLine, all: readonly Told[]): void {
    const [first] = all as readonly [Told, ...Told[]]
    const { event: { holder, target, holdTimeout, taken, id } } = first
    const stack = all.find(({ event }) => event.stack !== undefined)?.event.stack
    const begins = all.map(({ event: { time, held } }) => time - held)
    const held = heldBy(all.map(({ out }) => out).sort((a, b) => b.heldFor - a.heldFor))
    const ids = idsOf(all)
    const about = {
      ...(target !== undefined && { target }),
      ...(all.length === 1 ? { connection: id, ...labelOf(holder) } : { leases: all.length, ids }),
      held,
      since: new Date(Math.min(...begins)).toISOString(),
      ...(holdTimeout !== undefined && { holdTimeout }),
      ...(taken !== undefined && { taken }),
      ...(stack !== undefined && line === 'pool.leak' && { stack }),
      ...why(line, stack),
    }
    const msg = all.length === 1
      ? sentences[line](first.event)
      : texts.together(line, { leases: all.length, held, ids, holdTimeout })
    this.#site.write(line, about, msg, all.length === 1 ? holder : undefined)
  }
}

const sentences: Readonly<Record<LeaseLine, (event: Told['event']) => string>> = {
  'pool.leak': (event) => texts.leak(event),
  'pool.leak.end': (event) => texts.leakEnd(event),
  'pool.leak.taken': (event) => texts.leakTaken(event, event.taken!),
  'pool.hold': (event) => texts.hold(event, event.holdTimeout!),
  'pool.overdue': (event) => texts.overdue(event, event.holdTimeout!),
}

function labelOf (holder: HolderLabel | undefined): { readonly route?: string, readonly id?: string } {
  const { route, id } = typeof holder === 'string' ? { route: holder, id: undefined } : holder ?? {}
  return { ...(route !== undefined && { route }), ...(id !== undefined && { id }) }
}

/** The requests, the longest held first. */
function idsOf (all: readonly Told[]): string[] {
  const sorted = [...all].sort((a, b) => b.out.heldFor - a.out.heldFor)
  return sorted.flatMap(({ event: { holder } }) => labelOf(holder).id ?? []).slice(0, NAMED)
}

/** Cause and remedy, as fields, where something is wrong. */
function why (line: LeaseLine, stack: string | undefined): { readonly cause?: string, readonly remedy?: string } {
  if (line === 'pool.leak.end') return {}
  if (line === 'pool.leak.taken') {
    return {
      cause: 'the lease was never released',
      remedy: 'release it on every path (pool.use does); the leak was told with the stack of its acquire, where known',
    }
  }
  if (line === 'pool.leak') {
    return {
      cause: 'a lease is out for longer than leakAfter',
      remedy: stack === undefined
        ? 'release it on every path (pool.use does); the next leak is told with the stack of its acquire'
        : 'release it on every path (pool.use does): the stack is of its acquire',
    }
  }
  return {
    cause: 'a lease is out for longer than a request should need',
    remedy: 'look for slow queries or waits in that handler, or give the route a longer holdTimeout',
  }
}
