// Notes in a SQLite file, in thirty lines. `npm run example:quickstart`
import closeWithGrace from 'close-with-grace'
import Fastify from 'fastify'
import pool from 'fastify-pool'

const { FILE = 'notes.db', PORT = '3000' } = process.env
const app = Fastify({ logger: true })

// On SIGTERM or SIGINT: requests in flight are answered, then the pool closes.
const closing = closeWithGrace({ delay: 10_000, logger: app.log }, async ({ err }) => {
  if (err) app.log.error({ err }, 'closing after an error')
  await app.close()
})
app.addHook('onClose', () => { closing.uninstall() })

await app.register(pool, { backend: 'sqlite', url: FILE })

// Outside of a request the pool lends a connection for as long as a function runs.
await app.pools.get('db').use((db) => db.exec('create table if not exists notes (id integer primary key, text text)'))

// GET and HEAD read, side by side. All other methods get the one connection that writes, in turn.
app.get('/notes', async (request) => request.db.prepare('select * from notes order by id').all())

app.post('/notes', {
  schema: { body: { type: 'object', required: ['text'], properties: { text: { type: 'string', minLength: 1 } } } },
}, async (request, reply) => {
  const { lastInsertRowid: id } = request.db.prepare('insert into notes (text) values (?)').run(request.body.text)
  return reply.code(201).send({ id, text: request.body.text })
})

await app.listen({ port: Number(PORT) })
