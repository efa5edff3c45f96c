import type { Holder } from '../../../types/pool.js'

/** How many looks are kept, and for how long, in ms. */
const KEPT = 60
const FRESH = 600_000
/** Two looks at the same moment would be one: they are so far apart at least, in ms. */
const APART = 1000
/** A connection that sends nothing for so long is idle, in ms: a shorter pause is one between two commands. */
const PAUSE = 5

/** What was seen of those who held connections, all looks together. */
export interface IdleTime {
  readonly looks: number
  /** Connections that were lent, and of which the driver says what they do. */
  readonly lent: number
  /** Those of them that did nothing. */
  readonly inHandler: number
  /** Those of these whose transaction was open. */
  readonly inTransaction: number
  /** Whose connections did nothing most often. undefined: not that of a route. */
  readonly route: string | undefined
}

interface Look {
  readonly at: number
  readonly lent: number
  readonly inTransaction: number
  /** By route; '': of none. */
  readonly idle: ReadonlyMap<string, number>
}

/** The latest looks at those who hold a pool's connections. */
export class Samples {
  #looks: Look[] = []

  /** @param holders asked only where a look is due */
  add (now: number, holders: () => readonly Holder[]): void {
    const last = this.#looks.at(-1)
    if (last !== undefined && now - last.at < APART) return
    this.#looks = [...this.#looks.slice(1 - KEPT), lookAt(now, holders())]
  }

  idleTime (now: number): IdleTime {
    const looks = this.#looks.filter(({ at }) => now - at <= FRESH)
    const routes = new Map<string, number>()
    let [lent, inHandler, inTransaction] = [0, 0, 0]
    for (const look of looks) {
      lent += look.lent
      inTransaction += look.inTransaction
      for (const [route, n] of look.idle) {
        inHandler += n
        routes.set(route, (routes.get(route) ?? 0) + n)
      }
    }
    const [[most = ''] = []] = [...routes].sort(([, a], [, b]) => b - a)
    return { looks: looks.length, lent, inHandler, inTransaction, route: most === '' ? undefined : most }
  }
}

function lookAt (at: number, holders: readonly Holder[]): Look {
  const known = holders.filter(({ doing }) => doing !== undefined)
  const idle = known.filter(({ doing, heldFor, sinceQuery = heldFor }) =>
    doing !== 'query' && Math.min(heldFor, sinceQuery) >= PAUSE)
  const routes = new Map<string, number>()
  for (const { holder } of idle) {
    const route = (typeof holder === 'object' ? holder.route : undefined) ?? ''
    routes.set(route, (routes.get(route) ?? 0) + 1)
  }
  const inTransaction = idle.filter(({ doing }) => doing === 'idle in transaction').length
  return { at, lent: known.length, inTransaction, idle: routes }
}
