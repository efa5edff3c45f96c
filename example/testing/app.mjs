// A small app, as its own tests see it.
import Fastify from 'fastify'
import pool from 'fastify-pool'

/** @param db the options of its pool: a test gives others than the server does */
export function build (db = { backend: 'sqlite', url: ':memory:', onConnect }) {
  const app = Fastify()
  app.register(pool, { pools: { db } })

  app.register(async (app) => {
    app.get('/notes', async (request) => request.db.prepare('select text from notes').all())

    app.post('/notes', { config: { pools: { db: { transaction: true } } } }, async (request, reply) => {
      request.db.prepare('insert into notes values (?)').run(request.body.text)
      reply.code(201)
      return { text: request.body.text }
    })

    app.setErrorHandler((error, request, reply) => {
      switch (error.code) {
        case 'FST_POOL_COMMIT_UNKNOWN': return reply.code(502).send({ hint: 'look before you send it again' })
        case 'FST_POOL_ACQUIRE_TIMEOUT': return reply.code(503).send({ hint: 'we are busy' })
        default: return reply.send(error)
      }
    })
  })
  return app
}

/** Makes the table. */
function onConnect (db) {
  db.exec('create table if not exists notes (text text)')
}
