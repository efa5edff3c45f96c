import Fastify from 'fastify'
import createKnex from 'knex'

export async function build (url) {
  const app = Fastify()
  const knex = createKnex({ client: 'pg', connection: url, pool: { min: 0, max: 5 }, acquireConnectionTimeout: 2000 })
  app.addHook('onClose', () => knex.destroy())

  app.get('/users/:id', async (request, reply) => {
    const user = await knex('users').first('id', 'name').where({ id: request.params.id })
    return user ?? reply.code(404).send({ error: 'no such user' })
  })

  app.post('/users', async (request) => {
    const { name } = request.body
    return knex.transaction(async (trx) => {
      const [user] = await trx('users').insert({ name }).returning(['id', 'name'])
      if (name === 'nobody') throw new Error('nobody is no name')
      return user
    })
  })

  return app
}
