// The own tests of each of the small apps: they pass before the migration, on the way, and after it. Run as
// `node --test app.test.mjs` with APP (its file) and DB_URL.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { pathToFileURL } from 'node:url'

const { build } = await import(pathToFileURL(process.env.APP).href)
let app
before(async () => { app = await build(process.env.DB_URL) })
after(() => app.close())

const post = (name) => app.inject({ method: 'POST', url: '/users', payload: { name } })

test('a user is there once it was added', async () => {
  const added = await post('ada')
  assert.equal(added.statusCode, 200, added.body)
  const { id, name } = added.json()
  const found = await app.inject(`/users/${id ?? name}`)
  assert.equal(found.statusCode, 200, found.body)
  assert.equal(found.json().name, 'ada')
})

test('who was not added is not there', async () => {
  assert.equal((await app.inject(`/users/${process.env.IDS ? 999_999 : 'nobody'}`)).statusCode, 404)
})

test('what fails is rolled back', { skip: process.env.COUNTS ? false : 'this app has no transaction' }, async () => {
  const count = async () => (await app.inject('/count')).json().count
  const before = await count()
  assert.equal((await post('nobody')).statusCode, 500)
  assert.equal(await count(), before)
})

test('many at once are served', async () => {
  const replies = await Promise.all(Array.from({ length: 50 }, (_, i) => post(`user ${i}`)))
  assert.deepEqual(replies.filter(({ statusCode }) => statusCode !== 200), [])
})
