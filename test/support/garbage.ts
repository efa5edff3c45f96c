// A process of its own, run with `--trace-gc-nvp`: 64 requests in flight at an app with a pool of 10, over sockets.
// With the argument `kept` each request is kept until 2,000 more have ended: a fault as the test looks for.
import { once } from 'node:events'
import { connect } from 'node:net'
import { setImmediate as turn } from 'node:timers/promises'
import Fastify from 'fastify'
import { fastifyPool } from '../../index.js'

const requests = 50_000
/** So many are asked before `begun` is said. */
const warm = 20_000
const question = 'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'

const connector = {
  system: 'test',
  create: async () => ({
    ask: async () => await new Promise<object>((resolve) => { setImmediate(resolve, { v: 1 }) }),
  }),
  destroy () {},
}
const app = Fastify()
await app.register(fastifyPool, { connector, max: 10 })
app.get('/', async (request) => {
  const { connection } = request.lease('db' as never) as unknown as { connection: { ask (): Promise<object> } }
  return await connection.ask()
})
if (process.argv[2] === 'kept') {
  const kept: unknown[] = []
  let ended = 0
  app.addHook('onResponse', (request, _reply, done) => {
    kept[ended++ % 2000] = request
    done()
  })
}
await app.listen({ port: 0, host: '127.0.0.1' })
const { port } = app.server.address() as { port: number }

// One more is in flight each 20 requests. If all came at once, what is made for each of them would all be alive at the
// first collections, and V8 would make it in old space from then on: what is Fastify's, too.
let left = requests
const mustWait = (client: number) => left > requests - client * 20
await Promise.all(Array.from({ length: 64 }, async (_, client) => {
  while (mustWait(client)) await turn()
  const socket = connect({ port, host: '127.0.0.1', noDelay: true })
  socket.on('data', (answer) => {
    if (!answer.toString('latin1').startsWith('HTTP/1.1 200')) throw new Error(answer.toString())
    if (left === requests - warm) console.log('begun')
    if (left-- > 0) socket.write(question)
    else socket.end()
  })
  socket.write(question)
  await once(socket, 'close')
}))
await app.close()
