import Fastify from 'fastify'
import mysql from '@fastify/mysql'

export async function build (url) {
  const app = Fastify()
  await app.register(mysql, { connectionString: url, promise: true })

  app.get('/users/:id', async (request, reply) => {
    const [rows] = await app.mysql.query('SELECT id, name FROM users WHERE id = ?', [request.params.id])
    return rows[0] ?? reply.code(404).send({ error: 'no such user' })
  })

  app.post('/users', async (request) => {
    const { name } = request.body
    const connection = await app.mysql.getConnection()
    try {
      await connection.beginTransaction()
      const [{ insertId: id }] = await connection.query('INSERT INTO users (name) VALUES (?)', [name])
      if (name === 'nobody') throw new Error('nobody is no name')
      await connection.commit()
      return { id, name }
    } catch (error) {
      await connection.rollback()
      throw error
    } finally {
      connection.release()
    }
  })

  app.get('/count', async () => {
    const [[row]] = await app.mysql.query('SELECT count(*) AS count FROM users')
    return row
  })

  return app
}
