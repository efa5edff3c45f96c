import t from 'tap'
import { Histogram } from '../../lib/engine/histogram.js'

t.test('an empty distribution is all 0', (t) => {
  t.match(new Histogram().summary(), { count: 0, sum: 0, p50: 0, p99: 0, max: 0 })
  t.ok(new Histogram().summary().buckets.every(({ count }) => count === 0))
  t.end()
})

t.test('a percentile is exact to about 6 %, from microseconds to half an hour, and never above the maximum', (t) => {
  for (let ms = 0.008; ms < 2_000_000; ms *= 1.0137) {
    const histogram = new Histogram()
    histogram.record(ms)
    const { p50, p99, max, count } = histogram.summary()
    if (Math.abs(p50 - ms) > ms * 0.0626 || p99 !== p50 || p50 > max) t.fail(`${ms}: ${p50}`)
    if (max !== ms || count !== 1) t.fail(`${ms}`)
  }
  t.end()
})

t.test('below 8 microseconds a percentile is exact to one', (t) => {
  for (const us of [0, 1, 2, 3, 4, 5, 6, 7]) {
    const histogram = new Histogram()
    histogram.record(us / 1000)
    histogram.record(1)
    t.ok(Math.abs(histogram.summary().p50 * 1000 - us) <= 1, `${us}`)
  }
  t.end()
})

t.test('what is out of range is taken as the nearest', (t) => {
  const histogram = new Histogram()
  histogram.record(-5)
  t.match(histogram.summary(), { count: 1, sum: 0, p50: 0, p99: 0, max: 0 })
  histogram.record(10_000_000)
  const { p99, max } = histogram.summary()
  t.equal(max, 10_000_000)
  t.ok(p99 > 2_000_000 && p99 <= max)
  t.end()
})

t.test('half of all are at or below the median, and one in a hundred above the 99th percentile', (t) => {
  const histogram = new Histogram()
  for (let ms = 1; ms <= 1000; ms++) histogram.record(ms)
  const { count, p50, p99, max } = histogram.summary()
  t.equal(count, 1000)
  t.ok(p50 > 500 * 0.93 && p50 < 500 * 1.07, `${p50}`)
  t.ok(p99 > 990 * 0.93 && p99 <= 1000, `${p99}`)
  t.equal(max, 1000)
  t.end()
})

t.test('durations of 0 that nobody recorded count all the same', (t) => {
  const histogram = new Histogram()
  histogram.record(100)
  t.match(histogram.summary(1), { count: 2, p50: 0, max: 100 })
  t.ok(histogram.summary(1).p99 > 93)
  t.match(histogram.summary(99), { count: 100, p50: 0, p99: 0, max: 100 })
  t.end()
})

t.test('a summary is a frozen copy', (t) => {
  const histogram = new Histogram()
  const summary = histogram.summary()
  histogram.record(1)
  t.ok(Object.isFrozen(summary))
  t.equal(summary.count, 0)
  t.end()
})
