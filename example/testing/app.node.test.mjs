// With node:test: `node --test example/testing/app.node.test.mjs`.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { assertIdle, fakePool, faults, rollbackEach } from 'fastify-pool/testing'
import { build } from './app.mjs'

const notes = { method: 'POST', url: '/notes', payload: { text: 'milk' } }

test('assertIdle: every request gives its connection back', async (t) => {
  const app = build()
  t.after(() => app.close())
  assert.equal((await app.inject(notes)).statusCode, 201)
  assertIdle(app)
})

test('rollbackEach: what a test stores is gone for the next one', async (t) => {
  const app = build()
  t.after(() => app.close())
  await t.test('one stores', async (t) => {
    await rollbackEach(t, app, 'db')
    await app.inject(notes)
    assert.equal((await app.inject('/notes')).json().length, 1)
  })
  await t.test('the next one finds nothing', async (t) => {
    await rollbackEach(t, app, 'db')
    assert.deepEqual((await app.inject('/notes')).json(), [])
  })
})

test('fakePool: without a database', async (t) => {
  const stored = []
  const statement = { all: () => [{ text: 'milk' }], run: (text) => stored.push(text) }
  const db = fakePool({ prepare: () => statement })
  const app = build(db)
  t.after(() => app.close())
  assert.deepEqual((await app.inject('/notes')).json(), [{ text: 'milk' }])
  assert.equal((await app.inject(notes)).statusCode, 201)
  assert.deepEqual(stored, ['milk'])
  assert.deepEqual([db.acquired, db.committed], [2, 1])
})

test('faults: what the app says when its database fails', async (t) => {
  const app = build()
  t.after(() => app.close())
  await app.ready()
  const db = faults(app, 'db')
  db.timeout()
  assert.deepEqual((await app.inject(notes)).json(), { hint: 'we are busy' })
  db.loseCommit()
  assert.equal((await app.inject(notes)).statusCode, 502)
  db.restore()
  assert.equal((await app.inject(notes)).statusCode, 201)
})
