import Fastify from 'fastify'
import postgres from 'fastify-pool/compat/postgres'

export async function build (url) {
  const app = Fastify()
  await app.register(postgres, { connectionString: url, max: 5, connectionTimeoutMillis: 2000 })

  app.get('/users/:id', async (request, reply) => {
    const client = await app.pg.connect()
    try {
      const { rows } = await client.query('SELECT id, name FROM users WHERE id = $1', [request.params.id])
      return rows[0] ?? reply.code(404).send({ error: 'no such user' })
    } finally {
      client.release()
    }
  })

  app.post('/users', async (request) => {
    const { name } = request.body
    return app.pg.transact(async (client) => {
      const { rows: [user] } = await client.query('INSERT INTO users (name) VALUES ($1) RETURNING id, name', [name])
      if (name === 'nobody') throw new Error('nobody is no name')
      return user
    })
  })

  app.get('/count', async () => {
    const { rows: [row] } = await app.pg.query('SELECT count(*)::int AS count FROM users')
    return row
  })

  return app
}
