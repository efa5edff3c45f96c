import { stat } from 'node:fs/promises'
import t from 'tap'
import { Sweep, type SweepParts } from '../../lib/backends/mongodb/sweep.js'
import { until } from '../support/until.js'

interface Ping {
  readonly signal: AbortSignal
  answer (): void
  fail (error: Error): void
}

function start (free: number, more: Partial<SweepParts> = {}) {
  const pings: Ping[] = []
  const seen = { ended: 0 }
  const sweep = new Sweep({
    ping: (signal) => new Promise<void>((resolve, reject) => {
      signal.addEventListener('abort', () => reject(signal.reason))
      pings.push({ signal, answer: resolve, fail: reject })
    }),
    free: () => free,
    uncounted: false,
    ended: () => { seen.ended++ },
    ...more,
  })
  sweep.waiting++
  const closed = () => pings.flatMap(({ signal }, index) => signal.aborted ? [index] : [])
  return { sweep, pings, seen, closed }
}

t.test('each free socket is asked at once, and the first answer is enough', async (t) => {
  const { sweep, pings, seen, closed } = start(3)
  t.equal(pings.length, 3)
  pings[1]!.answer()
  await sweep.answer
  t.strictSame(closed(), [], 'the others may be as quick')
  pings[0]!.answer()
  await until(() => seen.ended === 1, { what: 'the silent one is given up' })
  t.strictSame(closed(), [2])
  t.equal(pings.length, 3)
})

t.test('where no socket is free one is asked: the driver opens it', async (t) => {
  const { sweep, pings, seen } = start(0)
  t.equal(pings.length, 1)
  pings[0]!.answer()
  await sweep.answer
  t.equal(seen.ended, 1)
})

t.test('without an answer one socket makes room for a new one, whose answer shows that all others are silent', async (t) => {
  const { sweep, pings, seen, closed } = start(3)
  await until(() => pings.length === 4, { what: 'one more is asked' })
  t.ok(sweep.doubtful)
  t.strictSame(closed(), [0])
  pings[3]!.answer()
  await sweep.answer
  t.strictSame(closed(), [0, 1, 2])
  t.equal(seen.ended, 1)
})

t.test('a slow server keeps its sockets, but for the one that made room', async (t) => {
  const { sweep, pings, seen, closed } = start(3)
  await until(() => pings.length === 4, { what: 'it is in doubt' })
  pings[1]!.answer()
  await sweep.answer
  t.strictSame(closed(), [0])
  pings[2]!.answer()
  pings[3]!.answer()
  await until(() => seen.ended === 1, { what: 'all have answered' })
  t.strictSame(closed(), [0])
})

t.test('sockets that were opened before we counted are found by asking 1, 2, 4, ... more', async (t) => {
  const { sweep, pings, closed } = start(1, { uncounted: true })
  await until(() => pings.length === 1 + 1 + 2 + 4, { what: 'seven more are asked' })
  pings.at(-1)!.answer()
  await sweep.answer
  t.strictSame(closed(), [0, 1, 2, 3])
})

t.test('it rejects with the first error where no ping is answered, and not where one is', async (t) => {
  const none = start(2)
  none.pings[1]!.fail(new Error('first'))
  none.pings[0]!.fail(new Error('second'))
  await t.rejects(none.sweep.answer, { message: 'first' })
  t.equal(none.seen.ended, 1)
  const one = start(2)
  one.pings[1]!.fail(new Error('first'))
  one.pings[0]!.answer()
  await t.resolves(one.sweep.answer)
})

t.test('it ends when nobody waits for it, and when the client is closed', async (t) => {
  const left = start(2)
  left.sweep.waiting--
  const silent = t.rejects(left.sweep.answer, { message: 'no answer within 100 ms' })
  await until(() => left.seen.ended === 1, { what: 'it has ended' })
  await silent
  t.strictSame(left.closed(), [0, 1])
  const closed = start(2)
  closed.sweep.stop(new Error('the client is closed'))
  await t.rejects(closed.sweep.answer, { message: 'the client is closed' })
  t.strictSame(closed.closed(), [0, 1])
  t.strictSame([left.seen.ended, closed.seen.ended], [1, 1])
})

t.test('an event loop that stood still finds no silence: answers that are there are read first', async (t) => {
  // From here timers come before sockets.
  await new Promise<void>((resolve) => { setImmediate(resolve) })
  const asked: AbortSignal[] = []
  const { sweep } = start(2, {
    ping: (signal) => {
      asked.push(signal)
      return stat('.')
    },
  })
  const end = performance.now() + 250
  while (performance.now() < end) { /* The loop stands still. */ }
  await sweep.answer
  t.notOk(sweep.doubtful)
  t.strictSame(asked.map(({ aborted }) => aborted), [false, false])
})
