import Fastify from 'fastify'
import mongodb from '@fastify/mongodb'

export async function build (url) {
  const app = Fastify()
  await app.register(mongodb, { url, maxPoolSize: 5 })

  app.get('/users/:name', async (request, reply) => {
    const { name } = request.params
    const user = await app.mongo.db.collection('users').findOne({ name }, { projection: { _id: 0 } })
    return user ?? reply.code(404).send({ error: 'no such user' })
  })

  app.post('/users', async (request) => {
    const { name } = request.body
    await app.mongo.db.collection('users').insertOne({ name })
    return { name }
  })

  return app
}
