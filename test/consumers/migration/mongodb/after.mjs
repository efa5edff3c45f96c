import Fastify from 'fastify'
import pool from 'fastify-pool'

export async function build (url) {
  const app = Fastify()
  await app.register(pool, { backend: 'mongodb', url, max: 5, lease: false })

  app.get('/users/:name', { config: { pools: ['db'] } }, async (request, reply) => {
    const { name } = request.params
    const user = await request.db.collection('users').findOne({ name }, { projection: { _id: 0 } })
    return user ?? reply.code(404).send({ error: 'no such user' })
  })

  app.post('/users', { config: { pools: ['db'] } }, async (request) => {
    const { name } = request.body
    await request.db.collection('users').insertOne({ name })
    return { name }
  })

  return app
}
