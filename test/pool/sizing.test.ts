import fc from 'fast-check'
import t from 'tap'
import { PoolError, recommendedPoolSize } from '../../index.js'

t.test('from the load: the mean and 2.33 standard deviations', async (t) => {
  t.equal(recommendedPoolSize({ perSecond: 150, heldMs: 50 }), 14)
  t.equal(recommendedPoolSize({ perSecond: 1, heldMs: 1 }), 1)
  t.equal(recommendedPoolSize({ perSecond: 1000, heldMs: 100, cores: 4 }), 124, 'the load is known: cores say nothing')
})

t.test('from the cores of the server, divided among the processes', async (t) => {
  t.equal(recommendedPoolSize({ cores: 4 }), 9)
  t.equal(recommendedPoolSize({ cores: 16, instances: 4 }), 8)
  t.equal(recommendedPoolSize({ cores: 1, instances: 10 }), 1)
})

t.test('no more than the server allows', async (t) => {
  t.equal(recommendedPoolSize({ perSecond: 1000, heldMs: 100, instances: 4, serverMax: 97 }), 24)
  t.equal(recommendedPoolSize({ serverMax: 5 }), 5)
  t.equal(recommendedPoolSize(), 10)
})

t.test('99 of 100 arrivals at random find a connection', async () => {
  // Erlang's B formula: the part of arrivals that find all of them in use.
  const busy = (load: number, size: number) => {
    let blocked = 1
    for (let n = 1; n <= size; n++) blocked = load * blocked / (n + load * blocked)
    return blocked
  }
  fc.assert(fc.property(fc.integer({ min: 1, max: 5000 }), fc.integer({ min: 1, max: 500 }), (perSecond, heldMs) => {
    const load = perSecond * heldMs / 1000
    return load < 0.5 || busy(load, recommendedPoolSize({ perSecond, heldMs })) < 0.07
  }), { seed: 1 })
})

t.test('what is wrong is named', async (t) => {
  const refused = (sizing: object, message: string) => {
    t.throws(() => recommendedPoolSize(sizing), { code: 'FST_POOL_BAD_OPTIONS', message })
  }
  refused({ core: 4 }, 'unknown option core: did you mean cores?')
  refused({ instance: 4, cores: 4 }, 'unknown option instance: did you mean instances?')
  refused(null as never, 'the options: given null: expected an object')
  refused({ cores: 0 }, 'option cores is 0: expected a number above 0')
  refused({ heldMs: NaN, perSecond: 1 }, 'option heldMs is NaN: expected a number above 0')
  refused({ heldMs: 1 }, 'option perSecond is missing: expected requests a second, beside heldMs')
  refused({ perSecond: 1 }, 'option heldMs is missing: expected milliseconds, beside perSecond')
  t.throws(() => recommendedPoolSize({ cores: '4' as never }), PoolError)
})
