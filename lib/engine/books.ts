import type { Durations } from '../../types/pool.js'

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

  /** Of several, as if they were one. */
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

/** Of a bucket, in microseconds. */
function middle (bucket: number): number {
  if (bucket < perPower) return bucket + 0.5
  const power = Math.floor(bucket / perPower) + 2
  return (perPower + (bucket % perPower) + 0.5) * 2 ** (power - 3)
}
