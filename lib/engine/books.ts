import type { DestroyReason } from '../../types/connector.js'
import type { Durations, PoolStats } from '../../types/pool.js'

/** Eight buckets for each power of two, counted in microseconds: a percentile is exact to about 6 %. */
const perPower = 8
const buckets = 32 * perPower

/** A distribution of durations, of constant size. */
export class Histogram {
  readonly #counts = new Uint32Array(buckets)
  #count = 0
  #max = 0

  /** @param ms a duration in milliseconds */
  record (ms: number): void {
    const us = Math.min(2 ** 31 - 1, Math.max(0, ms * 1000)) | 0
    const power = 31 - Math.clz32(us | 1)
    // Below 8 us a bucket holds one microsecond; above, the three bits after the highest choose it.
    const bucket = power < 3 ? us : (power - 2) * perPower + ((us >>> (power - 3)) & 7)
    this.#counts[bucket]!++
    this.#count++
    if (ms > this.#max) this.#max = ms
  }

  /** @param zeros how many durations of 0 there were that nobody recorded */
  summary (zeros = 0): Durations {
    return Histogram.summary([this], zeros)
  }

  /** The summary of several histograms, as if they were one. */
  static summary (all: readonly Histogram[], zeros = 0): Durations {
    const count = all.reduce((sum, one) => sum + one.#count, zeros)
    const max = all.reduce((most, one) => Math.max(most, one.#max), 0)
    const quantile = (q: number) => {
      let rank = Math.ceil(q * count) - zeros
      if (rank <= 0) return 0
      let bucket = -1
      while (rank > 0) {
        bucket++
        for (const one of all) rank -= one.#counts[bucket]!
      }
      return Math.min(max, middle(bucket) / 1000)
    }
    return Object.freeze({ count, p50: quantile(0.5), p99: quantile(0.99), max })
  }
}

/** The middle of a bucket, in microseconds. */
function middle (bucket: number): number {
  if (bucket < perPower) return bucket + 0.5
  const power = Math.floor(bucket / perPower) + 2
  return (perPower + (bucket % perPower) + 0.5) * 2 ** (power - 3)
}

const none: Readonly<Record<DestroyReason, number>> = {
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

type Counter =
  | 'acquired' | 'released' | 'created' | 'createErrors' | 'destroyed' | 'timeouts' | 'refused' | 'aborted' | 'leaked'

/** What an engine has counted since it was made. */
export class Books {
  acquired = 0
  released = 0
  created = 0
  createErrors = 0
  readonly destroyed = { ...none }
  timeouts = 0
  refused = 0
  aborted = 0
  leaked = 0
  readonly waits = new Histogram()
  readonly holds = new Histogram()
  readonly creates = new Histogram()

  get destroyedTotal (): number {
    return Object.values(this.destroyed).reduce((sum, count) => sum + count, 0)
  }

  get counters (): Pick<PoolStats, Counter> {
    const { acquired, released, created, createErrors, destroyed, timeouts, refused, aborted, leaked } = this
    const reasons = Object.freeze({ ...destroyed })
    return { acquired, released, created, createErrors, destroyed: reasons, timeouts, refused, aborted, leaked }
  }

  /** How long acquires waited, leases were held and creates took, in several engines together. */
  static durations (all: readonly Books[]): Pick<PoolStats, 'wait' | 'held' | 'create'> {
    // Acquires that were served at once are in no histogram: they count as 0.
    const acquired = all.reduce((sum, books) => sum + books.acquired, 0)
    const waits = all.map((books) => books.waits)
    return {
      wait: Histogram.summary(waits, acquired - Histogram.summary(waits).count),
      held: Histogram.summary(all.map((books) => books.holds)),
      create: Histogram.summary(all.map((books) => books.creates)),
    }
  }
}
