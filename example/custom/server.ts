// A pool of anything: here, connections to a line-based TCP service. `node dist/example/custom/server.js` starts such a
// service and an app that uses it, asks the app once, and closes both.
import { once } from 'node:events'
import { createServer, connect, type AddressInfo, type Socket } from 'node:net'
import { createInterface } from 'node:readline'
import Fastify from 'fastify'
import pool, { type Connector } from 'fastify-pool'

/** One connection: asks a line, gets a line. */
class LineClient {
  readonly #answers: AsyncIterator<string>
  /** Questions whose answers have not come. */
  pending = 0

  constructor (readonly socket: Socket) {
    this.#answers = createInterface({ input: socket })[Symbol.asyncIterator]()
  }

  async ask (question: string): Promise<string> {
    this.pending++
    this.socket.write(`${question}\n`)
    const { value, done } = await this.#answers.next()
    if (done === true) throw new Error('the service hung up')
    this.pending--
    return value
  }
}

/** All that the pool has to be told. Only `system`, `create` and `destroy` are needed. */
function lines (host: string, port: number): Connector<LineClient> {
  return {
    system: 'lines',

    // `signal` aborts at `connectTimeout`, and when the pool closes.
    async create (signal) {
      const socket = connect({ host, port, signal })
      await once(socket, 'connect')
      // A socket without a listener for its errors ends the process; what dies is told by `onDeath`.
      socket.on('error', () => { socket.destroy() })
      return new LineClient(socket)
    },

    // Resolves when it is closed, so that there are never more than `max`.
    async destroy ({ socket }) {
      if (socket.closed) return
      socket.destroy()
      await once(socket, 'close')
    },

    // A round trip, before lending a connection that was idle for a while.
    validate: async (client) => await client.ask('PING') === 'PONG',

    // No round trip: at every return and before every loan.
    isBroken: ({ socket }) => socket.destroyed,

    // What the last request left: here, an answer that it did not wait for. It would be the next one's.
    reset: (client) => client.pending > 0 ? Promise.reject(new Error('left in the middle of an answer')) : undefined,

    // An idle connection that dies leaves the pool at once.
    onDeath ({ socket }, died) { socket.once('close', () => { died() }) },
  }
}

declare module 'fastify-pool' {
  interface RequestPools { lines: LineClient }
}

// The service: it answers PING, and anything else in capitals.
const service = createServer((socket) => {
  socket.on('error', () => { socket.destroy() })
  createInterface({ input: socket }).on('line', (line) => {
    socket.write(`${line === 'PING' ? 'PONG' : line.toUpperCase()}\n`)
  })
}).listen(0, '127.0.0.1')
await once(service, 'listening')

const app = Fastify()
await app.register(pool,
  { pools: { lines: { connector: lines('127.0.0.1', (service.address() as AddressInfo).port), max: 5 } } })
app.get<{ Params: { text: string } }>('/shout/:text', (request) => request.lines.ask(request.params.text))

const { body } = await app.inject('/shout/hello')
console.log(body)
await app.close()
service.close()
