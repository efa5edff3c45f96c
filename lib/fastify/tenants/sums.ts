// The numbers of several pools together.
import type { Bucket, Circuit, Counts, Durations, PoolStats, WindowStats } from '../../../types/pool.js'
import { Books } from '../../engine/books.js'
import type { Part } from '../../engine/report.js'

const rank: readonly Circuit[] = ['closed', 'half-open', 'open']

/** Of a pool without connections. @param books what was counted at that time; left out: nothing */
export function noStats (
  name: string, system: string, { min, max }: { min: number, max: number }, books = new Books(0), now = 0
): PoolStats {
  const zeros = { creating: 0, idle: 0, used: 0, resetting: 0, closing: 0, pending: 0, late: 0 }
  const counts = Books.tell([{ books, going: { now, waiting: [], out: [] } }])
  return Object.freeze({ name, system, min, max, ...zeros, circuit: 'closed', ...counts })
}

const gauges = ['min', 'max', 'creating', 'idle', 'used', 'resetting', 'closing', 'pending', 'late'] as const

type Gauges = Pick<PoolStats, typeof gauges[number] | 'circuit'>

function gaugesOf (all: readonly Gauges[]): Gauges {
  const sums = gauges.map((gauge) => [gauge, sum(all.map((one) => one[gauge]))])
  const circuit = all.map(({ circuit }) => circuit).reduce((a, b) => rank.indexOf(b) > rank.indexOf(a) ? b : a)
  return { ...Object.fromEntries(sums) as Record<typeof gauges[number], number>, circuit }
}

/** As `sumOf`, of pools that have not told their numbers: there may be thousands. @param parts at least one */
export function sumOfParts (name: string, system: string, parts: readonly Part[]): PoolStats {
  return Object.freeze({ name, system, ...gaugesOf(parts), ...Books.tell(parts) })
}

/** @param all at least one. The sum has the name of the first. */
export function sumOf (all: readonly PoolStats[]): PoolStats {
  const { targets: _targets, tenants: _tenants, ...first } = all[0]!
  return Object.freeze({
    ...first,
    ...gaugesOf(all),
    ...countsOf(all),
    createFailures: records(all.map(({ createFailures }) => createFailures)),
    routes: records(all.map(({ routes }) => routes)),
    lastMinute: minuteOf(all.map(({ lastMinute }) => lastMinute)),
  })
}

function minuteOf (all: readonly WindowStats[]): WindowStats {
  return Object.freeze({ ...countsOf(all), span: Math.max(...all.map(({ span }) => span)) })
}

function countsOf (all: readonly Counts[]): Counts {
  const of = (key: keyof { [K in keyof Counts as Counts[K] extends number ? K : never]: K }) =>
    sum(all.map((one) => one[key]))
  return {
    acquired: of('acquired'),
    released: of('released'),
    created: of('created'),
    createErrors: of('createErrors'),
    destroyed: records(all.map(({ destroyed }) => destroyed)),
    timeouts: of('timeouts'),
    refused: of('refused'),
    refusals: records(all.map(({ refusals }) => refusals)),
    aborted: of('aborted'),
    leaked: of('leaked'),
    wait: durations(all.map(({ wait }) => wait)),
    held: durations(all.map(({ held }) => held)),
    create: durations(all.map(({ create }) => create)),
    saturated: Math.max(...all.map(({ saturated }) => saturated)),
    busy: of('busy'),
  }
}

/** The percentiles are no better than the buckets. */
function durations (all: readonly Durations[]): Durations {
  const count = sum(all.map((one) => one.count))
  const max = Math.max(...all.map((one) => one.max))
  const buckets = all[0]!.buckets.map(({ le }, at): Bucket =>
    Object.freeze({ le, count: sum(all.map((one) => one.buckets[at]!.count)) }))
  const quantile = (q: number) => {
    if (count === 0) return 0
    return Math.min(max, buckets.find((bucket) => bucket.count >= q * count)?.le ?? max)
  }
  const [p50, p99] = [quantile(0.5), quantile(0.99)]
  return Object.freeze({ count, sum: sum(all.map((one) => one.sum)), p50, p99, max, buckets: Object.freeze(buckets) })
}

function records<K extends string> (all: ReadonlyArray<Readonly<Record<K, number>>>): Readonly<Record<K, number>> {
  const total: Record<string, number> = {}
  for (const one of all) for (const [key, value] of Object.entries<number>(one)) total[key] = (total[key] ?? 0) + value
  return Object.freeze(total as Record<K, number>)
}

function sum (numbers: readonly number[]): number {
  return numbers.reduce((total, one) => total + one, 0)
}
