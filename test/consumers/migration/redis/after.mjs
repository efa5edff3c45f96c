import Fastify from 'fastify'
import pool from 'fastify-pool'

export async function build (url) {
  const app = Fastify()
  await app.register(pool, { name: 'cache', backend: 'redis', url, lease: false })

  app.get('/users/:name', async (request, reply) => {
    const { name } = request.params
    const user = await app.redis.hgetall(`user:${name}`)
    return 'name' in user ? user : reply.code(404).send({ error: 'no such user' })
  })

  app.post('/users', { config: { pools: ['cache'] } }, async (request) => {
    const { name } = request.body
    await request.cache.multi().hset(`user:${name}`, { name }).incr('users').exec()
    return { name }
  })

  return app
}
