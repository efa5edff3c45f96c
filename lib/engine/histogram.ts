import type { Bucket, Durations } from '../../types/pool.js'

/** Eight buckets for each power of two, counted in microseconds: a percentile is exact to about 6 %. */
const perPower = 8
const buckets = 32 * perPower

/** The upper bounds of the buckets that `Durations` tells, in ms. */
export const bounds = [
  0.1, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000,
] as const

/** What a histogram held at a moment, without the buckets that were empty. */
export interface Mark {
  readonly from: number
  readonly counts: Float64Array
  readonly within: Float64Array
  readonly count: number
  readonly sum: number
  /** Of what was recorded since the mark before this one. */
  readonly max: number
}

/** A distribution of durations, of constant size. */
export class Histogram {
  readonly #counts = new Float64Array(buckets)
  /** How many there are of each of `bounds`, without those of the bounds below it. */
  readonly #within = new Float64Array(bounds.length)
  count = 0
  sum = 0
  max = 0
  /** Since the last mark. */
  #maxLately = 0
  #mark: Mark | undefined

  /** @param ms a duration in milliseconds. @param weight for how many durations it stands */
  record (ms: number, weight = 1): void {
    const us = Math.min(2 ** 31 - 1, Math.max(0, ms * 1000)) | 0
    const power = 31 - Math.clz32(us | 1)
    // Below 8 us a bucket holds one microsecond; above, the three bits after the highest choose it.
    const bucket = power < 3 ? us : (power - 2) * perPower + ((us >>> (power - 3)) & 7)
    this.#counts[bucket]! += weight
    let bound = 0
    while (bound < bounds.length && ms > bounds[bound]!) bound++
    if (bound < bounds.length) this.#within[bound]! += weight
    this.count += weight
    if (ms <= 0) return
    this.sum += ms * weight
    if (ms > this.max) this.max = ms
    if (ms > this.#maxLately) this.#maxLately = ms
  }

  /** What is recorded now. The same object as the last time, where nothing was recorded since the one before it. */
  mark (): Mark {
    const { count, sum } = this
    if (this.#mark?.count === count && this.#mark.max === 0) return this.#mark
    const from = Math.max(0, this.#counts.findIndex((one) => one > 0))
    const to = this.#counts.findLastIndex((one) => one > 0) + 1
    const counts = this.#counts.slice(from, to)
    this.#mark = { from, counts, within: this.#within.slice(), count, sum, max: this.#maxLately }
    this.#maxLately = 0
    return this.#mark
  }

  /** Adds what another one has, or takes away what a mark of it had. */
  add (other: Histogram): this {
    if (other.count === 0) return this
    return this.#change(other.#counts, 0, other.#within, other, 1)
  }

  #change (
    counts: Float64Array, from: number, within: Float64Array, { count, sum, max }: Pick<Mark, 'count' | 'sum' | 'max'>,
    sign: 1 | -1
  ): this {
    // No iterators: stats of many pools add up hundreds of thousands of these.
    for (let at = 0; at < counts.length; at++) this.#counts[from + at]! += sign * counts[at]!
    for (let at = 0; at < within.length; at++) this.#within[at]! += sign * within[at]!
    this.count += sign * count
    this.sum += sign * sum
    if (sign > 0) this.max = Math.max(this.max, max)
    return this
  }

  /** What was recorded behind the first of these marks; the others are all that were made since. */
  since ([base, ...later]: readonly Mark[]): Histogram {
    // Most pools of many tenants have done all of it lately, or nothing.
    if (base === undefined || base.count === 0) return this
    if (base.count === this.count) return nothing
    const lately = new Histogram()
    lately.add(this)
    lately.#change(base.counts, base.from, base.within, base, -1)
    lately.max = Math.max(this.#maxLately, ...later.map(({ max }) => max))
    return lately
  }

  /** Half of the durations are not longer. */
  get median (): number {
    return this.#quantile(0.5, 0)
  }

  #quantile (q: number, zeros: number): number {
    let rank = Math.ceil(q * (this.count + zeros)) - zeros
    let bucket = -1
    while (rank > 0 && bucket < buckets - 1) rank -= this.#counts[++bucket]!
    return bucket < 0 ? 0 : Math.min(this.max, middle(bucket) / 1000)
  }

  /**
   * @param zeros how many durations of 0 there were that nobody recorded
   * @param going what goes on has taken so long by now, in ms
   */
  summary (zeros = 0, going: readonly number[] = []): Durations {
    const all = going.length === 0 ? this : new Histogram().add(this)
    if (all !== this) for (const ms of going) all.record(ms)
    let ended = zeros
    const told = bounds.map((le, at): Bucket => {
      ended += this.#within[at]!
      return Object.freeze({ le, count: Math.round(ended) })
    })
    return Object.freeze({
      count: Math.round(all.count) + zeros,
      sum: all.sum,
      p50: all.#quantile(0.5, zeros),
      p99: all.#quantile(0.99, zeros),
      max: all.max,
      buckets: Object.freeze(told),
    })
  }
}

/** Nobody records anything in it. */
const nothing = new Histogram()

/** The middle of a bucket, in microseconds. */
function middle (bucket: number): number {
  if (bucket < perPower) return bucket + 0.5
  const power = Math.floor(bucket / perPower) + 2
  return (perPower + (bucket % perPower) + 0.5) * 2 ** (power - 3)
}
