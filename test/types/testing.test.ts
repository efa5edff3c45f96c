import { expectTypeOf } from 'expect-type'
import type { FastifyInstance } from 'fastify'
import { test as nodeTest, type TestContext as NodeContext } from 'node:test'
import t, { type Test } from 'tap'
import { onTestFinished } from 'vitest'
import { fastifyPool, type Connector, type PoolOptions } from '../../index.js'
import {
  assertIdle, fakePool, faults, rollbackEach, type FakePool, type Faults, type TestContext,
} from '../../lib/fastify/testing.js'

// What is checked here is checked by `npm run typecheck`; nothing of it runs.
export function checkTypes (app: FastifyInstance, tap: Test, node: NodeContext): void {
  expectTypeOf(assertIdle(app)).toEqualTypeOf<void>()

  // Whatever calls a function when a test ends.
  expectTypeOf<NodeContext>().toExtend<TestContext>()
  expectTypeOf<Test>().toExtend<TestContext>()
  const vitest = { after: onTestFinished }
  for (const one of [tap, node, vitest]) expectTypeOf(rollbackEach(one, app, 'db')).resolves.toEqualTypeOf<void>()
  // @ts-expect-error nothing says when the test ends
  rollbackEach({}, app, 'db').catch(() => {})
  nodeTest('as it is', async (t) => { await rollbackEach(t, app, 'db') }).catch(() => {})

  const one = fakePool({ query: async () => [1] })
  expectTypeOf(one).toEqualTypeOf<FakePool<{ query: () => Promise<number[]> }>>()
  expectTypeOf(fakePool(async () => 1)).toEqualTypeOf<FakePool<number>>()
  expectTypeOf(one.connector).toExtend<Connector<{ query: () => Promise<number[]> }>>()
  expectTypeOf(one.connections[0]!.query()).resolves.toEqualTypeOf<number[]>()
  expectTypeOf(one.acquired).toEqualTypeOf<number>()
  expectTypeOf(one).toExtend<PoolOptions<{ query: () => Promise<number[]> }>>()
  app.register(fastifyPool, { pools: { db: one, other: { ...one, max: 2 } } })
  app.register(fastifyPool, one)

  const fault = faults(app, 'db')
  expectTypeOf(fault).toEqualTypeOf<Faults>()
  expectTypeOf(fault).toExtend<Disposable>()
  fault.timeout()
  fault.timeout(2)
  fault.failCommit(new Error('no'))
  fault.loseCommit({ stored: true })
  // @ts-expect-error an error, and no text
  fault.failCommit('no')
  // @ts-expect-error unknown
  fault.loseCommit({ kept: true })
}

t.test('types are checked by the compiler', async (t) => { t.type(checkTypes, 'function') })
