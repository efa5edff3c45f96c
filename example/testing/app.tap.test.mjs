// With tap: `tap example/testing/app.tap.test.mjs`.
import { assertIdle, fakePool, faults, rollbackEach } from 'fastify-pool/testing'
import { test } from 'tap'
import { build } from './app.mjs'

const notes = { method: 'POST', url: '/notes', payload: { text: 'milk' } }

test('assertIdle: every request gives its connection back', async (t) => {
  const app = build()
  t.after(() => app.close())
  t.equal((await app.inject(notes)).statusCode, 201)
  assertIdle(app)
})

test('rollbackEach: what a test stores is gone for the next one', async (t) => {
  const app = build()
  t.after(() => app.close())
  await t.test('one stores', async (t) => {
    await rollbackEach(t, app, 'db')
    await app.inject(notes)
    t.equal((await app.inject('/notes')).json().length, 1)
  })
  await t.test('the next one finds nothing', async (t) => {
    await rollbackEach(t, app, 'db')
    t.same((await app.inject('/notes')).json(), [])
  })
})

test('fakePool: without a database', async (t) => {
  const stored = []
  const statement = { all: () => [{ text: 'milk' }], run: (text) => stored.push(text) }
  const db = fakePool({ prepare: () => statement })
  const app = build(db)
  t.after(() => app.close())
  t.same((await app.inject('/notes')).json(), [{ text: 'milk' }])
  t.equal((await app.inject(notes)).statusCode, 201)
  t.same(stored, ['milk'])
  t.same([db.acquired, db.committed], [2, 1])
})

test('faults: what the app says when its database fails', async (t) => {
  const app = build()
  t.after(() => app.close())
  await app.ready()
  const db = faults(app, 'db')
  db.timeout()
  t.same((await app.inject(notes)).json(), { hint: 'we are busy' })
  db.loseCommit()
  t.equal((await app.inject(notes)).statusCode, 502)
  db.restore()
  t.equal((await app.inject(notes)).statusCode, 201)
})
