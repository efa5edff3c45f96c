import type { Circuit, PoolHealth, PoolStats, TargetHealth, TargetStats } from '../../types/pool.js'
import { Books, type Going } from '../engine/books.js'
import type { Gone } from './fleet.js'
import type { Ranks } from './roles.js'
import type { Target } from './target.js'

// What a pool over several targets tells of itself, from what each target tells.

const circuitRank: readonly Circuit[] = ['closed', 'half-open', 'open']
const worst = <T>(rank: readonly T[], all: readonly T[]): T =>
  all.reduce((worse, one) => rank.indexOf(one) > rank.indexOf(worse) ? one : worse)

/** What a part of the pool has counted. */
interface Counted { readonly books: Books, readonly going: Going }

/** What `statsOf` asks of its pool. */
interface StatsSite<C> {
  /** Those that rest or retire included. */
  readonly all: ReadonlyArray<Target<C>>
  readonly gone: readonly Gone[]
  readonly targets: ReadonlyArray<Target<C>>
  readonly roles: Ranks<C>
  readonly min: number
  readonly max: number
  /** Callers that wait in front of all targets. */
  readonly pending: number
  /** What is counted in front of all targets. */
  readonly front: Counted
}

/** The sums over all targets, and each one's numbers in `targets`. `refused` counts callers that no target served. */
export function statsOf<C> ({ all, gone, targets: used, roles, min, max, pending, front }: StatsSite<C>): PoolStats {
  const tell = (target: Target<C>) => {
    const { engine: { report: { stats } }, name, role, gaveUp } = target
    const lag = roles.lagOf(target)
    return Object.freeze<TargetStats>({ target: name, role, lag, ...stats, aborted: stats.aborted - gaveUp })
  }
  const targets = used.map(tell)
  const whole = sumOf(all === used ? targets : all.map(tell))
  const parts = all.map(({ engine: { books, report } }) => ({ books, going: report.going }))
  for (const { books } of gone) parts.push({ books, going: { now: front.going.now, waiting: [], out: [] } })
  const told = Books.tell([...parts, front])
  // A caller that one target refused may have been served by another one.
  const { refused, refusals, lastMinute } = Books.tell([front])
  const gaveUp = [...all, ...gone].reduce((sum, one) => sum + one.gaveUp, 0)
  return Object.freeze<PoolStats>({
    ...whole,
    ...told,
    refused,
    refusals,
    aborted: told.aborted - gaveUp,
    lastMinute: Object.freeze({
      ...told.lastMinute, refused: lastMinute.refused, refusals: lastMinute.refusals,
    }),
    min,
    max: Math.min(max, whole.max),
    pending: whole.pending + pending,
    circuit: worst(circuitRank, targets.map(({ circuit }) => circuit)),
    targets: Object.freeze(targets),
  })
}

/** Adds up the numbers of all targets, but not those that `Books.tell` adds up. */
function sumOf ([first, ...others]: readonly TargetStats[]): PoolStats {
  const { target: _target, role: _role, lag: _lag, ...whole } = first!
  const add = <T extends object>(to: T, more: T): T => {
    const other = more as Record<string, number>
    const numbers = Object.entries(to).filter(([, value]) => typeof value === 'number')
    return { ...to, ...Object.fromEntries(numbers.map(([key, value]) => [key, value + other[key]!])) }
  }
  const all = [first!, ...others].map(({ subscriptions }) => subscriptions).filter((one) => one !== undefined)
  const subscriptions = all.length === 0 ? undefined : Object.freeze(all.reduce(add))
  return { ...others.reduce((sum, stats) => add(sum, stats), whole), ...(subscriptions && { subscriptions }) }
}

/** Why no target is the primary. */
export function reasonsOf<C> (targets: ReadonlyArray<Target<C>>): string {
  return targets.map(({ name, why }) => `${name}: ${why}`).join('; ')
}

/** Targets that nobody has needed yet are not ill. */
function isKnown<C> ({ engine }: Target<C>): boolean {
  return engine.checks.evidence.news.is !== 'none'
}

const unknown = 'nothing is known of the servers yet'

/** What `healthOf` asks of its pool. */
interface Site<C> {
  readonly targets: ReadonlyArray<Target<C>>
  readonly roles: Ranks<C>
  readonly phase: string
  /** The pool was used, so the targets were asked what they are. */
  readonly started: boolean
  stats (): PoolStats
}

/**
 * Of peers: `degraded` where one is not up, `down` where none answers. Else the health of the primary, by name;
 * `degraded` while reads work without it, where another target is not up, or an old primary still says that it is the
 * primary; `down` where there is no primary, and nothing can be read.
 */
export async function healthOf<C> ({ targets, roles, phase, started, stats: read }: Site<C>): Promise<PoolHealth> {
  const all = await Promise.all(targets.map(async (target) => ({ target, ...await target.engine.report.health() })))
  const latencies = all.map(({ latency }) => latency).filter((latency) => latency !== null)
  const latency = latencies.length === 0 ? null : Math.max(...latencies)
  const stats = read()
  const parts = Object.freeze(all.map(({ target, stats: _, ...health }): TargetHealth =>
    Object.freeze({ target: target.name, role: target.role, lag: roles.lagOf(target), ...health })))
  const judged = (status: PoolHealth['status'], reason?: string, since?: number): PoolHealth => ({
    status,
    ...(reason !== undefined && { reason }),
    ...(since !== undefined && { since }),
    latency,
    circuit: stats.circuit,
    stats,
    targets: parts,
  })
  const primary = all.find(({ target }) => target === roles.primary)
  const reader = all.find(({ target, status }) =>
    target !== roles.primary && status !== 'down' && roles.eligible('replica').includes(target))
  const ill = all.find((one) => one !== primary && one.status !== 'up' && isKnown(one.target))
  const old = targets.find(({ isSuperseded }) => isSuperseded)
  // Down, unless somebody can read.
  const down = (reason: string, since?: number) => reader === undefined
    ? judged('down', reason, since)
    : judged('degraded', `${reason}; reads work (${reader.target.name})`, since)
  if (phase !== 'open') return judged('draining', `the pool is ${phase}`)
  if (roles.arePeers) {
    const up = all.find(({ status, target }) => status !== 'down' && isKnown(target))
    const since = all.map(({ since }) => since).find((since) => since !== undefined)
    if (up === undefined && !all.some(({ target }) => isKnown(target))) return judged('degraded', unknown)
    if (up === undefined) return judged('down', `no peer answers: ${reasonsOf(targets)}`, since)
    return ill === undefined ? judged('up') : judged('degraded', `${ill.target.name}: ${ill.reason}`, ill.since)
  }
  if (primary?.status === 'down') return down(`${primary.target.name}: ${primary.reason}`, primary.since)
  if (primary !== undefined && primary.status !== 'up') {
    return judged(primary.status, `${primary.target.name}: ${primary.reason}`, primary.since)
  }
  if (primary === undefined && started) {
    const since = all.map(({ since }) => since).find((since) => since !== undefined)
    return down(`no primary: ${reasonsOf(targets)}`, since)
  }
  if (primary === undefined) return judged('degraded', unknown)
  if (ill !== undefined) return judged('degraded', `${ill.target.name}: ${ill.reason}`, ill.since)
  return old === undefined ? judged('up') : judged('degraded', `${old.name}: ${old.why}`)
}
