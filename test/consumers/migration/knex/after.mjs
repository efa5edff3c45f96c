import Fastify from 'fastify'
import pool from 'fastify-pool'
import { knex } from 'fastify-pool/knex'

export async function build (url) {
  const app = Fastify()
  await app.register(pool, {
    backend: 'postgresql', url, max: 5, acquireTimeout: 2000, wrap: knex(), lease: false,
  })

  app.get('/users/:id', { config: { pools: ['db'] } }, async (request, reply) => {
    const user = await request.db('users').first('id', 'name').where({ id: request.params.id })
    return user ?? reply.code(404).send({ error: 'no such user' })
  })

  app.post('/users', { config: { pools: { db: { transaction: true } } } }, async (request) => {
    const { name } = request.body
    const [user] = await request.db('users').insert({ name }).returning(['id', 'name'])
    if (name === 'nobody') throw new Error('nobody is no name')
    return user
  })

  return app
}
