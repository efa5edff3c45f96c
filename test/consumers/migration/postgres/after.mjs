import Fastify from 'fastify'
import pool from 'fastify-pool'

export async function build (url) {
  const app = Fastify()
  await app.register(pool, { backend: 'postgresql', url, max: 5, acquireTimeout: 2000, lease: false })

  app.get('/users/:id', { config: { pools: ['db'] } }, async (request, reply) => {
    const { rows } = await request.db.query('SELECT id, name FROM users WHERE id = $1', [request.params.id])
    return rows[0] ?? reply.code(404).send({ error: 'no such user' })
  })

  app.post('/users', { config: { pools: { db: { transaction: true } } } }, async (request) => {
    const { name } = request.body
    const { rows: [user] } = await request.db.query('INSERT INTO users (name) VALUES ($1) RETURNING id, name', [name])
    if (name === 'nobody') throw new Error('nobody is no name')
    return user
  })

  app.get('/count', async () => {
    const { rows: [row] } = await app.pools.get('db').execute('query', 'SELECT count(*)::int AS count FROM users')
    return row
  })

  return app
}
