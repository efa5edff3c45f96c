import t from 'tap'
import fc from 'fast-check'
import { Guest, Moment, Waiter, Waiters } from '../../lib/engine/line.js'

const waiter = (deadline = 1000) => new Waiter<object>(undefined, new Moment(0), deadline, () => {})

/** The line from first to last, taken apart. */
function rest (waiters: Waiters<object>): Array<Waiter<object>> {
  const all: Array<Waiter<object>> = []
  for (let one = waiters.first(); one !== undefined; one = waiters.first()) {
    all.push(one)
    waiters.remove(one)
  }
  return all
}

t.test('the first to come is the first', (t) => {
  const waiters = new Waiters<object>()
  t.equal(waiters.first(), undefined)
  const all = [waiter(), waiter(), waiter()]
  for (const one of all) waiters.add(one)
  t.equal(waiters.size, 3)
  t.ok(all.every(({ inLine }) => inLine))
  const line = rest(waiters)
  t.ok(line.every((one, index) => one === all[index]))
  t.equal(waiters.size, 0)
  t.notOk(all.some(({ inLine }) => inLine))
  t.end()
})

t.test('anybody can leave: the first, the last, one in the middle, the only one', (t) => {
  for (const leaving of [[0], [1], [2], [0, 1], [1, 2], [0, 2], [2, 0, 1]]) {
    const waiters = new Waiters<object>()
    const all = [waiter(), waiter(), waiter()]
    for (const one of all) waiters.add(one)
    for (const index of leaving) waiters.remove(all[index]!)
    const more = waiter()
    waiters.add(more)
    t.equal(waiters.size, 4 - leaving.length)
    const expected = [...all.filter((_, index) => !leaving.includes(index)), more]
    const line = rest(waiters)
    t.ok(line.length === expected.length && line.every((one, index) => one === expected[index]), leaving.join())
  }
  t.end()
})

t.test('however many come and go, and wherever they stood, the order is that of their coming', async (t) => {
  // 0: one comes; else one leaves, by its place in the line.
  const steps = fc.array(fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 60 })), { minLength: 1, maxLength: 400 })
  const seed = 20_251
  t.comment(`seed ${seed}`)
  fc.assert(fc.property(steps, (steps) => {
    const waiters = new Waiters<object>()
    const model: Array<Waiter<object>> = []
    for (const step of steps) {
      if (step === 0) {
        const one = waiter(model.length % 3)
        waiters.add(one)
        model.push(one)
      } else if (model.length > 0) {
        const [one] = model.splice(step % model.length, 1)
        waiters.remove(one!)
      }
      const line = [...waiters]
      if (waiters.size !== model.length || waiters.first() !== model[0]) return false
      if (line.length !== model.length || line.some((one, at) => one !== model[at])) return false
      if (model.length > 0 && waiters.at(model.length - 1) !== model.at(-1)) return false
    }
    return true
  }), { seed, numRuns: 300 })
})

t.test('a sweep finds those whose deadline has come, and tells the next one', (t) => {
  const waiters = new Waiters<object>()
  for (const deadline of [10, 20, 20, 30]) waiters.add(waiter(deadline))
  const swept: number[] = []
  const sweep = (now: number) => waiters.sweep(now, (one) => {
    swept.push(one.deadline)
    waiters.remove(one)
  })
  t.equal(sweep(5), 10)
  t.same(swept, [])
  t.equal(sweep(20), 30)
  t.same(swept, [10, 20, 20])
  t.equal(sweep(30), Infinity)
  t.equal(waiters.size, 0)
  t.equal(sweep(40), Infinity)
  t.end()
})

t.test('while deadlines rise, a sweep looks at nobody behind the first that is live', (t) => {
  const waiters = new Waiters<object>()
  let looks = 0
  for (let i = 0; i < 100; i++) {
    const one = waiter(i)
    Object.defineProperty(one, 'deadline', {
      get () {
        looks++
        return i
      },
    })
    waiters.add(one)
  }
  looks = 0
  t.equal(waiters.sweep(9, (one) => { waiters.remove(one) }), 10)
  t.ok(looks < 30, `${looks} looks`)
  t.end()
})

t.test('deadlines in any order are found all the same, and order comes back when the reason for it has gone', (t) => {
  const waiters = new Waiters<object>()
  for (const deadline of [500, 100, 300, 200]) waiters.add(waiter(deadline))
  const swept: number[] = []
  const sweep = (now: number) => waiters.sweep(now, (one) => {
    swept.push(one.deadline)
    waiters.remove(one)
  })
  t.equal(sweep(50), 100)
  t.equal(sweep(100), 200)
  t.equal(sweep(250), 300)
  t.equal(sweep(300), 500)
  waiters.add(waiter(600))
  t.equal(sweep(500), 600)
  t.same(swept, [100, 200, 300, 500])
  t.end()
})

t.test('a line that was emptied begins anew', (t) => {
  const waiters = new Waiters<object>()
  waiters.add(waiter(500))
  waiters.add(waiter(100))
  rest(waiters)
  waiters.add(waiter(600))
  waiters.add(waiter(700))
  t.equal(waiters.sweep(650, (one) => { waiters.remove(one) }), 700)
  t.end()
})

t.test('whoever is told of one expiry may add to the line and take out of it', (t) => {
  const waiters = new Waiters<object>()
  const all = [waiter(10), waiter(10), waiter(10)]
  for (const one of all) waiters.add(one)
  const swept: Array<Waiter<object>> = []
  waiters.sweep(10, (one) => {
    swept.push(one)
    waiters.remove(one)
    if (one !== all[0]) return
    waiters.remove(all[1]!)
    waiters.add(waiter(500))
    waiters.add(waiter(100))
  })
  t.ok(swept.length === 2 && swept[0] === all[0] && swept[1] === all[2], 'not the one that had left')
  t.equal(waiters.size, 2)
  t.equal(waiters.sweep(100, (one) => { waiters.remove(one) }), 500)
  t.end()
})

t.test('one who is put back stands at the head of the line, whatever its deadline', (t) => {
  for (const deadlines of [[], [500, 700]]) {
    const waiters = new Waiters<object>()
    const others = deadlines.map((deadline) => waiter(deadline))
    for (const one of others) waiters.add(one)
    const back = waiter(600)
    waiters.putBack(back)
    t.equal(waiters.first(), back)
    t.equal(back.inLine, true)
    t.equal(waiters.size, deadlines.length + 1)
    const swept: number[] = []
    t.equal(waiters.sweep(550, (one) => {
      swept.push(one.deadline)
      waiters.remove(one)
    }), 600)
    t.same(swept, deadlines.length === 0 ? [] : [500], 'nobody behind it is overlooked')
    t.equal(rest(waiters)[0], back)
  }
  t.end()
})

t.test('several who are put back stand in the order in which they were called', (t) => {
  const waiters = new Waiters<object>()
  const [first, second, third, last] = [waiter(1), waiter(2), waiter(3), waiter(4)]
  const called = [first, second, third]
  waiters.add(last!)
  for (const one of [second, third, first]) {
    waiters.putBack(one!, (other) => called.includes(other) && called.indexOf(other) < called.indexOf(one))
  }
  t.same(rest(waiters).map(({ deadline }) => deadline), [1, 2, 3, 4])
  t.end()
})

t.test('one who comes back stands behind those who came before, and in front of all others', (t) => {
  const came = (since: number) => new Waiter<object>(undefined, new Moment(since), 1000, () => {})
  const back = (place: number, now: number) => new Guest<object>(place, undefined, new Moment(now), 1000, () => {})
  const waiters = new Waiters<object>()
  const [first, second, third] = [came(10), came(20), came(30)]
  waiters.insert(back(5, 30))
  waiters.remove(waiters.first()!)
  for (const one of [first, second, third]) waiters.add(one!)
  const [older, younger, oldest, youngest] = [back(15, 40), back(17, 41), back(1, 42), back(35, 43)]
  // One who came back sooner, and had come later, stands behind.
  for (const one of [younger, older, oldest, youngest]) waiters.insert(one!)
  const last = came(44)
  waiters.add(last)
  t.equal(waiters.size, 8)

  const expired: Array<Waiter<object>> = []
  const next = waiters.sweep(1025, (one) => {
    waiters.remove(one)
    expired.push(one)
  })
  t.ok(expired.length === 2 && expired[0] === first && expired[1] === second, 'a deadline is no place')
  t.equal(next, 1030)
  const expected = [oldest, older, younger, third, youngest, last]
  const line = rest(waiters)
  t.ok(line.length === expected.length && line.every((one, index) => one === expected[index]))
  t.end()
})
