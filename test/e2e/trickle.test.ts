import { once } from 'node:events'
import { type Socket, connect } from 'node:net'
import Fastify from 'fastify'
import type { Redis } from 'ioredis'
import t from 'tap'
import fastifyPool from '../../index.js'
import { listen } from '../support/app.js'
import { alarm, type Alarm } from '../support/order.js'
import { startRedis } from '../support/services.js'
import { until } from '../support/until.js'
import { ask } from './client.js'

const max = 4
const bodyGrace = 1000
const server = await startRedis(t)

interface Trickler { readonly socket: Socket, readonly write: (text: string) => void, answer: string }

t.test('max clients that trickle their POST bodies do not keep another request from being served', async (t) => {
  const app = Fastify()
  let came = 0
  // Ahead of the plugin.
  app.addHook('onRequest', (_request, _reply, done) => {
    came++
    done()
  })
  await app.register(fastifyPool, { backend: 'redis', url: server.url, max, bodyGrace })
  // Of the first loan, which is the first to be over.
  let grace: Alarm | undefined
  app.pools.on('acquire', () => { grace ??= alarm(bodyGrace + 100) })
  app.post('/slow',
    async (request) => `${await (request.db as unknown as Redis).echo('slow')} ${JSON.stringify(request.body)}`)
  app.get('/fast', async (request) => {
    const late = grace!.rang
    return { late, echo: await (request.db as unknown as Redis).echo('fast') }
  })
  const port = await listen(t, app)

  const body = JSON.stringify({ text: 'x'.repeat(30) })
  const tricklers = await Promise.all(Array.from({ length: max }, async (): Promise<Trickler> => {
    const socket = connect(port, '127.0.0.1')
    t.teardown(() => { socket.destroy() })
    await once(socket, 'connect')
    const one: Trickler = { socket, answer: '', write: (text) => { socket.write(text) } }
    socket.setEncoding('utf8').on('data', (text: string) => { one.answer += text })
    one.write(`POST /slow HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body[0]}`)
    return one
  }))
  await until(() => came === max && app.pools.stats().db!.pending === 0, { what: 'each of them was lent one' })
  const held = performance.now()

  const asked = ask({ port, path: '/fast' })
  let sent = 1
  const arrived: { answer?: Awaited<typeof asked> } = {}
  asked.then((answer) => { arrived.answer = answer }, (error: unknown) => { throw error })
  await until(() => {
    // They go on, a byte at a time, and never fall silent.
    if (performance.now() > held + sent * 50 && sent < body.length / 2) {
      for (const { write } of tricklers) write(body[sent]!)
      sent++
    }
    return arrived.answer
  }, { what: 'the other request is answered' })
  const { status, body: text } = arrived.answer!
  const { late, echo } = JSON.parse(text) as { late: boolean, echo: string }
  t.same({ status, echo }, { status: 200, echo: 'fast' })
  t.ok(tricklers.every(({ answer }) => answer === ''), `they still trickle, ${sent} bytes so far`)
  t.notOk(late, `its handler began before a timer of ${bodyGrace} + 100 ms, set when the first of them was lent one`)

  for (const { write } of tricklers) write(body.slice(sent))
  await until(() => tricklers.every(({ answer }) => answer.endsWith(`slow ${body}`)),
    { what: 'those who trickled are served too' })
  await until(() => app.pools.stats().db!.used === 0)
  t.match(app.pools.stats().db, { pending: 0, timeouts: 0, refused: 0 })
})
