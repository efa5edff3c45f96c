// Calls of request.acquire for one pool, side by side: each has its own deadline and signal, and all who get a
// connection get the same one.
import fc from 'fast-check'
import t, { type Test } from 'tap'
import type { AcquireOptions, Lease } from '../../types/pool.js'
import type { FastifyRequest } from 'fastify'
import type { PluginOptions, PoolOptions } from '../../index.js'
import { settle } from '../support/clock.js'
import { FakeConnector, watch } from '../support/fake-connector.js'
import { some } from '../support/full.js'
import { Stage } from '../support/stage.js'

type Act = (request: FastifyRequest, stage: Stage) => Promise<unknown>

interface Around { pool?: Partial<PoolOptions>, plugin?: Partial<PluginOptions>, max?: number }

/** Runs `act` in a handler while all connections of the pool are held; what holds them, `stage.gate('held')` frees. */
async function inHandler (t: Test, act: Act, { pool, plugin, max = 1 }: Around = {}): Promise<Stage> {
  let failed: unknown
  const stage = await Stage.set(t, {
    pool: { max, ...pool },
    plugin: { lease: { acquire: 'manual' }, ...plugin },
    routes: (app, stage) => {
      app.get('/', async (request) => {
        try {
          await act(request, stage)
        } catch (error) {
          failed = error
        }
        return 'well'
      })
    },
  })
  const held = await Promise.all(Array.from({ length: max }, () => stage.pool.acquire({ holder: 'test' })))
  stage.gate('held').opened.then(() => { for (const lease of held) lease.release() })
  t.equal((await stage.client().get('/', { id: 'A' })).body, 'well')
  stage.gate('held').open()
  if (failed !== undefined) throw failed
  return stage
}

const timeout = { code: 'FST_POOL_ACQUIRE_TIMEOUT' }

for (const order of ['the short one first', 'the long one first', 'beside one without']) {
  t.test(`two with deadlines of their own: ${order}`, async (t) => {
    const stage = await inHandler(t, async (request, stage) => {
      const one = watch(request.acquire('db', order === 'the short one first' ? { timeout: 20 } : { timeout: 5000 }))
      const two = watch(request.acquire('db', order === 'the long one first' ? { timeout: 20 } : undefined))
      const three = watch(request.acquire('db', { timeout: 20 }))
      await t.rejects(request.acquire('db', { timeout: 40 }), { ...timeout, message: /within 40 ms/ })
      const [short, long] = order === 'the short one first' ? [one, two] : [two, one]
      if (order !== 'beside one without') t.match(short.error, { ...timeout, message: /within 20 ms/ })
      t.match(three.error, timeout)
      t.equal(long.done, false)
      stage.gate('held').open()
      const lease = await request.acquire('db')
      t.equal(long.value, lease)
      t.equal(stage.pool.stats().pending, 0)
      t.equal(stage.pool.stats().used, 1)
    })
    await stage.app.close()
  })
}

t.test('a signal ends its own call only', async (t) => {
  await inHandler(t, async (request, stage) => {
    const leave = new AbortController()
    const mine = watch(request.acquire('db', { signal: leave.signal }))
    const other = watch(request.acquire('db', { signal: new AbortController().signal }))
    const usual = watch(request.acquire('db'))
    leave.abort(new Error('enough'))
    await settle()
    t.match(mine.error, { code: 'FST_POOL_ABORTED', cause: { message: 'enough' } })
    t.same([other.done, usual.done], [false, false])
    stage.gate('held').open()
    const lease = await request.acquire('db')
    t.same([other.value, usual.value], [lease, lease])
    t.equal((await request.acquire('db', { signal: leave.signal })), lease, 'it is out: nobody waits')
  })
})

t.test('where two connections come in the same turn, one goes back', async (t) => {
  await inHandler(t, async (request, stage) => {
    const calls = [{ timeout: 5000 }, { timeout: 4000 }, { timeout: 3000 }]
      .map((options) => request.acquire('db', options))
    stage.gate('held').open()
    const [one, ...others] = await Promise.all(calls)
    t.ok(others.every((lease) => lease === one))
    t.match(stage.pool.stats(), { used: 1, idle: 2, pending: 0 })
    one!.release()
  }, { max: 3 })
})

t.test("the route's transaction is begun once", async (t) => {
  const connector = new FakeConnector()
  const stage = await inHandler(t, async (request, stage) => {
    const calls = [{ timeout: 5000 }, undefined, { timeout: 4000 }].map((options) => request.acquire('db', options))
    stage.gate('held').open()
    const [one, ...others] = await Promise.all(calls)
    t.ok(others.every((lease) => lease === one))
  }, { pool: { connector } as Partial<PoolOptions>, plugin: { lease: { acquire: 'manual', transaction: true } } })
  t.strictSame(connector.asked, ['begin #1', 'commit #1'])
  await stage.app.close()
})

t.test('a transaction that does not begin fails for all who wait', async (t) => {
  const connector = new FakeConnector()
  connector.outcomes.begin = 'error'
  const stage = await inHandler(t, async (request, stage) => {
    const calls = [{ timeout: 5000 }, undefined, { timeout: 4000 }]
      .map((options) => watch(request.acquire('db', options)))
    stage.gate('held').open()
    await request.acquire('db').catch(() => {})
    await settle()
    for (const { error } of calls) t.match(error, { message: 'begin failed' })
    t.match(stage.pool.stats(), { used: 0, pending: 0 })
  }, { pool: { connector } as Partial<PoolOptions>, plugin: { lease: { acquire: 'manual', transaction: true } } })
  await stage.app.close()
})

t.test('the client leaves: all of them leave the line', async (t) => {
  const calls: Array<ReturnType<typeof watch>> = []
  const stage = await Stage.set(t, {
    plugin: { lease: { acquire: 'manual' } },
    routes: (app) => {
      app.get('/', async (request) => {
        const all = [{ timeout: 5000 }, undefined, { timeout: 4000 }].map((options) => request.acquire('db', options))
        calls.push(...all.map(watch))
        await all[0]
      })
    },
  })
  const held = await stage.pool.acquire({ holder: 'test' })
  const client = stage.client().send('GET', '/', { id: 'A' })
  await stage.waiting(3)
  client.leave()
  await stage.waiting(0)
  await settle()
  t.same(calls.map(({ error }) => error?.code), Array(3).fill('FST_POOL_ABORTED'))
  held.release()
})

t.test('an option that it does not know is refused', async (t) => {
  await inHandler(t, async (request) => {
    await t.rejects(request.acquire('db', { timout: 5 } as never), {
      code: 'FST_POOL_BAD_OPTIONS', message: 'unknown option acquire.timout: did you mean timeout?',
    })
  })
})

t.test('at random: each call has one answer, all leases are the same, nothing is left', async (t) => {
  const step = fc.oneof(
    fc.record({ what: fc.constant('acquire' as const), own: fc.constantFrom('none', 'timeout', 'signal', 'short') }),
    fc.record({ what: fc.constantFrom('abort', 'free', 'turn', 'release' as const), own: fc.constant('none') })
  )
  await fc.assert(fc.asyncProperty(fc.array(step, { maxLength: 12 }), fc.boolean(), async (steps, transaction) => {
    const connector = new FakeConnector()
    const stage = await Stage.set(t, {
      listen: false,
      pool: { max: 2, connector } as Partial<PoolOptions>,
      plugin: { lease: { acquire: 'manual', transaction } },
      routes: (app, stage) => {
        app.get('/', async (request) => {
          const calls: Array<ReturnType<typeof watch<Lease<unknown>>>> = []
          const signals: AbortController[] = []
          for (const { what, own } of steps) {
            if (what === 'acquire') {
              const options: AcquireOptions = {}
              if (own === 'timeout') options.timeout = 60_000
              if (own === 'short') options.timeout = 1
              if (own === 'signal') {
                signals.push(new AbortController())
                options.signal = signals.at(-1)!.signal
              }
              calls.push(watch(request.acquire('db', own === 'none' ? undefined : options)))
            } else if (what === 'abort') signals.shift()?.abort()
            else if (what === 'free') held.shift()?.release()
            else if (what === 'release' && !transaction) calls.find(({ value }) => value?.ended === false)?.value!.release()
            else await settle()
            const out = new Set(calls.flatMap(({ value }) => value?.ended === false ? [value] : []))
            if (out.size > 1) throw new Error('two leases are out')
          }
          for (const lease of held.splice(0)) lease.release()
          await request.acquire('db')
          for (let turn = 0; turn < 5; turn++) await settle()
          if (calls.some(({ done }) => !done)) throw new Error('a call has no answer')
          const { used, pending } = stage.pool.stats()
          if (used !== 1 || pending !== 0) throw new Error(`used ${used}, pending ${pending}`)
          return 'well'
        })
      },
    })
    const held = await Promise.all([stage.pool.acquire(), stage.pool.acquire()])
    const { body } = await stage.app.inject('/')
    if (body !== 'well') throw new Error(body)
    await stage.app.close()
    if (connector.violations.length > 0 || connector.live > 0) throw new Error(connector.violations.join())
  }), { numRuns: some(100, 3000) })
})
