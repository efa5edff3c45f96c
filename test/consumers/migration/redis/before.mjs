import Fastify from 'fastify'
import redis from '@fastify/redis'

export async function build (url) {
  const app = Fastify()
  await app.register(redis, { url })

  app.get('/users/:name', async (request, reply) => {
    const { name } = request.params
    const user = await app.redis.hgetall(`user:${name}`)
    return 'name' in user ? user : reply.code(404).send({ error: 'no such user' })
  })

  app.post('/users', async (request) => {
    const { name } = request.body
    await app.redis.multi().hset(`user:${name}`, { name }).incr('users').exec()
    return { name }
  })

  return app
}
