// A process of its own, run with `--trace-gc-nvp`: 64 requests in flight at an app with a pool of 10, over sockets.
import { once } from 'node:events'
import { connect } from 'node:net'
import Fastify from 'fastify'
import { fastifyPool } from '../../index.js'

const requests = 50_000
const question = 'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'

const connector = {
  system: 'test',
  create: async () => ({ ask: async () => await new Promise<object>((resolve) => { setImmediate(resolve, { v: 1 }) }) }),
  destroy () {},
}
const app = Fastify()
await app.register(fastifyPool, { connector, max: 10 })
app.get('/', async (request) => await (request.db as unknown as { ask (): Promise<object> }).ask())
await app.listen({ port: 0, host: '127.0.0.1' })
const { port } = app.server.address() as { port: number }

let left = requests
await Promise.all(Array.from({ length: 64 }, async () => {
  const socket = connect({ port, host: '127.0.0.1', noDelay: true })
  socket.on('data', (answer) => {
    if (!answer.toString('latin1').startsWith('HTTP/1.1 200')) throw new Error(answer.toString())
    if (left-- > 0) socket.write(question)
    else socket.end()
  })
  socket.write(question)
  await once(socket, 'close')
}))
await app.close()
