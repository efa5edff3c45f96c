import t from 'tap'
import { Pace, paying, Recent } from '../../lib/engine/pace.js'

// The arithmetic of what the pool expects; what it makes of it: overload.test.ts, pays.test.ts.

/** A line that is served by `max` connections, one round after the other, each as long as said, in ms. */
function lineOf (max: number, rounds: readonly number[], spread = true): { pace: Pace, now: number } {
  const pace = new Pace()
  let now = 1000
  pace.begin(now)
  for (const round of rounds) {
    for (let turn = 1; turn <= max; turn++) pace.turn(now + (spread ? round * turn / max : round), max)
    now += round
  }
  return { pace, now }
}

t.test('the pace is known from the third round on, and is the same whether connections come back together or in turn', async (t) => {
  for (const max of [1, 2, 10]) {
    for (const spread of [true, false]) {
      t.equal(lineOf(max, [100, 100], spread).pace.isKnown, false)
      const { pace } = lineOf(max, [100, 100, 100], spread)
      t.equal(pace.isKnown, true)
      t.equal(Math.round(pace.mean * max), 100)
    }
  }
})

t.test('one round that took long is no pace, two are', async (t) => {
  for (const max of [1, 10]) {
    t.equal(Math.round(lineOf(max, [10, 10, 4000]).pace.mean * max), 10)
    t.equal(Math.round(lineOf(max, [4000, 10, 10, 10]).pace.mean * max), 10)
    t.equal(Math.round(lineOf(max, [10, 4000, 4000]).pace.mean * max), 2005)
  }
})

t.test('it follows the last eight rounds', async (t) => {
  const { pace } = lineOf(2, [...Array<number>(20).fill(1000), ...Array<number>(8).fill(20)])
  t.equal(pace.mean, 10)
  pace.begin(50_000)
  t.same([pace.isKnown, pace.mean], [false, 0])
})

t.test('time in which the event loop stood still is taken out, wherever it was', async (t) => {
  // In the round that is under way.
  const under = lineOf(1, [10, 10])
  under.pace.stood(under.now + 400, 400, 1)
  under.pace.turn(under.now + 410, 1)
  under.pace.stood(under.now + 810, 400, 1)
  under.pace.turn(under.now + 820, 1)
  t.equal(under.pace.mean, 10)
  // In rounds that have ended since: turns came before the pool was told.
  const ended = lineOf(1, [10, 10, 410])
  ended.pace.stood(ended.now, 400, 1)
  ended.pace.turn(ended.now + 410, 1)
  ended.pace.stood(ended.now + 410, 400, 1)
  t.equal(ended.pace.mean, 10)
  // More than the round took, and before anything was served.
  const { pace, now } = lineOf(2, [10, 10, 100])
  pace.stood(now + 5, 5000, 2)
  t.ok(pace.mean >= 0 && pace.mean <= 5)
  const fresh = new Pace()
  fresh.begin(0)
  fresh.stood(500, 400, 2)
  t.equal(fresh.isKnown, false)
})

t.test('a mean of recent durations: the last ones count most, and none for more than a minute', async (t) => {
  const recent = new Recent(4)
  t.equal(recent.mean(0), undefined)
  recent.record(10, 0)
  recent.record(20, 0)
  t.equal(recent.mean(0), 15)
  for (let i = 0; i < 20; i++) recent.record(100, i)
  t.ok(recent.mean(20)! > 99 && recent.mean(20)! < 100)
  t.equal(recent.mean(60_020), undefined)
  recent.record(1, 60_020)
  t.equal(recent.mean(60_020), 1, 'what was before is forgotten')
  t.equal(recent.mean(120_020), 1)
})

t.test('what was measured across a stall of the event loop is not counted', async (t) => {
  const recent = new Recent(8)
  recent.record(10, 100)
  recent.keep()
  recent.record(2010, 2100)
  recent.stood(2100)
  t.equal(recent.mean(2100), 10)
  recent.record(2020, 2110)
  t.equal(recent.mean(2110), 10, 'it began before')
  recent.record(30, 2130)
  t.equal(recent.mean(2130), 20)
})

t.test('a create pays for those who would wait as long as a connect takes, or longer', async (t) => {
  // 5 connections that are held for 2 ms serve 5 in 2 ms, 50 in 20 ms.
  t.equal(paying(45, 5, 20, 2), 0)
  t.equal(paying(49, 5, 20, 2), 0)
  t.equal(paying(50, 5, 20, 2), 1)
  t.equal(paying(53, 5, 20, 2), 4)
  t.equal(paying(1, 1, 20, 20), 1)
  t.equal(paying(1, 1, 20, 19.9), 0)
  t.equal(paying(0, 5, 20, 2), 0)
  t.equal(paying(-3, 5, 20, 2), 0, 'more come than wait')
  t.equal(paying(1000, 5, 20, 0), 0)
})

t.test('a create pays for each one where nothing is known, where there is no connection, and where it takes no time', async (t) => {
  t.equal(paying(7, 5, undefined, 2), 7)
  t.equal(paying(7, 5, 20, undefined), 7)
  t.equal(paying(7, 0, 20, 2), 7)
  t.equal(paying(7, 5, 0, 2), 7)
  t.equal(paying(7, 5, 0, 0), 7)
  t.equal(paying(-1, 0, undefined, undefined), 0)
})
