// With Vitest: `vitest run example/testing/app.vitest.test.mjs`.
import { assertIdle, fakePool, faults, rollbackEach } from 'fastify-pool/testing'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { build } from './app.mjs'

const notes = { method: 'POST', url: '/notes', payload: { text: 'milk' } }
/** What the others call `t`. */
const t = { after: onTestFinished }

test('assertIdle: every request gives its connection back', async () => {
  const app = build()
  onTestFinished(() => app.close())
  expect((await app.inject(notes)).statusCode).toBe(201)
  assertIdle(app)
})

describe('rollbackEach: what a test stores is gone for the next one', () => {
  const app = build()
  beforeAll(() => app.ready())
  afterAll(() => app.close())

  test('one stores', async () => {
    await rollbackEach(t, app, 'db')
    await app.inject(notes)
    expect((await app.inject('/notes')).json()).toHaveLength(1)
  })

  test('the next one finds nothing', async () => {
    await rollbackEach(t, app, 'db')
    expect((await app.inject('/notes')).json()).toEqual([])
  })
})

test('fakePool: without a database', async () => {
  const stored = []
  const statement = { all: () => [{ text: 'milk' }], run: (text) => stored.push(text) }
  const db = fakePool({ prepare: () => statement })
  const app = build(db)
  onTestFinished(() => app.close())
  expect((await app.inject('/notes')).json()).toEqual([{ text: 'milk' }])
  expect((await app.inject(notes)).statusCode).toBe(201)
  expect(stored).toEqual(['milk'])
  expect([db.acquired, db.committed]).toEqual([2, 1])
})

test('faults: what the app says when its database fails', async () => {
  const app = build()
  onTestFinished(() => app.close())
  await app.ready()
  const db = faults(app, 'db')
  db.timeout()
  expect((await app.inject(notes)).json()).toEqual({ hint: 'we are busy' })
  db.loseCommit()
  expect((await app.inject(notes)).statusCode).toBe(502)
  db.restore()
  expect((await app.inject(notes)).statusCode).toBe(201)
})
