// Rooms whose messages reach every browser, whichever process it is connected to: see README.md.
//
// `REDIS_URL=redis://... npm run example:sse`
import { Readable } from 'node:stream'
import closeWithGrace from 'close-with-grace'
import Fastify from 'fastify'
import pool, { type Messages, type RedisMessage } from 'fastify-pool'
import type { Redis } from 'ioredis'
import Type, { type Static } from 'typebox'

declare module 'fastify-pool' {
  interface RequestPools { live: Redis }
}

const Room = Type.Object({ room: Type.String({ pattern: '^[a-z0-9-]{1,50}$' }) })
const Text = Type.String({ minLength: 1, maxLength: 1000 })
const NewMessage = Type.Object({ text: Text }, { additionalProperties: false })

const { REDIS_URL, CLOSE_TIMEOUT = '8000', HOST = '127.0.0.1', PORT = '3000', LOG_LEVEL = 'info' } = process.env
if (REDIS_URL === undefined) throw new Error('REDIS_URL is not set: redis://user:password@host:6379')

const app = Fastify({ logger: { level: LOG_LEVEL } })

// On SIGTERM or SIGINT: requests in flight are answered, the streams end, the pool closes.
const closing = closeWithGrace({ delay: 10_000, logger: app.log }, async ({ err }) => {
  if (err) app.log.error({ err }, 'closing after an error')
  await app.close()
})
app.addHook('onClose', () => { closing.uninstall() })

// Fastify waits for open replies. `preClose` comes before that: the streams end, and their browsers connect to another
// process.
const ending = new AbortController()
app.addHook('preClose', (done) => {
  ending.abort()
  done()
})

await app.register(pool, {
  pools: { live: { backend: 'redis', url: REDIS_URL, max: 5, lease: false, closeTimeout: Number(CLOSE_TIMEOUT) } },
})
const live = app.pools.get('live')

app.post<{ Params: Static<typeof Room>, Body: Static<typeof NewMessage> }>('/rooms/:room/messages', {
  schema: { params: Room, body: NewMessage },
}, async (request, reply) => {
  const processes = await live.execute('publish', `room:${request.params.room}`, JSON.stringify(request.body))
  return reply.code(202).send({ processes })
})

app.get<{ Params: Static<typeof Room> }>('/rooms/:room/events', {
  schema: { params: Room },
}, async (request, reply) => {
  // All streams of this process share one connection to Redis. A browser that reads slowly loses the oldest messages.
  const messages = live.backend.subscribe(`room:${request.params.room}`, {
    limit: 100,
    signal: ending.signal,
    // Some may have been missed: the browser connects again, and would read here what it has missed.
    onReconnect: () => { messages.return() },
  })
  // The browser has gone. The generator below may be waiting for a message, and could not be told.
  reply.raw.once('close', () => { messages.return() })
  // From here on no message is missed. Without Redis: 503.
  await messages.ready()
  reply.header('content-type', 'text/event-stream').header('cache-control', 'no-store')
  return reply.send(Readable.from(events(messages)))
})

async function * events (messages: Messages<RedisMessage>): AsyncGenerator<string> {
  yield ': subscribed\n\n'
  for await (const { message, dropped } of messages) {
    if (dropped > 0) yield `event: dropped\ndata: ${dropped}\n\n`
    yield `data: ${message}\n\n`
  }
}

await app.listen({ host: HOST, port: Number(PORT) })
