import Fastify from 'fastify'
import pool from 'fastify-pool'

export async function build (url) {
  const app = Fastify()
  await app.register(pool, { backend: 'mysql', url, lease: false })

  app.get('/users/:id', { config: { pools: ['db'] } }, async (request, reply) => {
    const [rows] = await request.db.query('SELECT id, name FROM users WHERE id = ?', [request.params.id])
    return rows[0] ?? reply.code(404).send({ error: 'no such user' })
  })

  app.post('/users', { config: { pools: { db: { transaction: true } } } }, async (request) => {
    const { name } = request.body
    const [{ insertId: id }] = await request.db.query('INSERT INTO users (name) VALUES (?)', [name])
    if (name === 'nobody') throw new Error('nobody is no name')
    return { id, name }
  })

  app.get('/count', async () => {
    const [[row]] = await app.pools.get('db').execute('query', 'SELECT count(*) AS count FROM users')
    return row
  })

  return app
}
