// Orders, and messages about them that are sent if, and only if, the order is stored: see README.md.
//
// `DATABASE_URL=postgres://... npm run example:outbox`
import closeWithGrace from 'close-with-grace'
import Fastify from 'fastify'
import pool, { type PostgresConnector } from 'fastify-pool'
import type { Client } from 'pg'
import Type, { type Static } from 'typebox'
import { Outbox, createTables, put, type Message } from './outbox.js'

declare module 'fastify-pool' {
  interface RequestPools { shop: Client }
}

const NewOrder = Type.Object({
  item: Type.String({ minLength: 1, maxLength: 100 }),
  quantity: Type.Integer({ minimum: 1, maximum: 1000 }),
}, { additionalProperties: false })

const { DATABASE_URL, SEND_URL, POLL = '5000', HOST = '127.0.0.1', PORT = '3000', LOG_LEVEL = 'info' } = process.env
if (DATABASE_URL === undefined) throw new Error('DATABASE_URL is not set: postgres://user:password@host:5432/database')

const app = Fastify({ logger: { level: LOG_LEVEL } })

// On SIGTERM or SIGINT: requests in flight are answered, the worker ends, the pool closes.
const closing = closeWithGrace({ delay: 10_000, logger: app.log }, async ({ err }) => {
  if (err) app.log.error({ err }, 'closing after an error')
  await app.close()
})
app.addHook('onClose', () => { closing.uninstall() })

// `require`: without its database it does not start. One of the ten connections is the worker's while it sends.
await app.register(pool, {
  pools: { shop: { backend: 'postgresql', url: DATABASE_URL, max: 10, startup: 'require' } },
})
const shop = app.pools.get<'shop', PostgresConnector>('shop')
await shop.transaction(createTables)

const outbox = new Outbox({ pool: shop, send, log: app.log, poll: Number(POLL) })
app.addHook('onReady', () => outbox.start())
// Fastify runs `onClose` behind the last request, and those added later first: so before the plugin's, which closes the
// pool.
app.addHook('onClose', () => outbox.stop())

app.post<{ Body: Static<typeof NewOrder> }>('/orders', {
  schema: { body: NewOrder },
  config: { pools: { shop: { transaction: true } } },
}, async (request, reply) => {
  const { item, quantity } = request.body
  const { rows: [order] } = await request.shop.query<{ id: string }>(
    'insert into orders (item, quantity) values ($1, $2) returning id', [item, quantity])
  await put(request.shop, 'order.placed', { order: order!.id, item, quantity })
  // The quick path: this process' worker need not wait for the notification, which is for the others.
  request.afterCommit('shop', () => { outbox.wake() })
  // Undoes the order, and its message with it.
  if (item === 'nothing') return reply.code(409).send({ error: 'Conflict', message: 'sold out', statusCode: 409 })
  return reply.code(201).send({ id: order!.id })
})

/** To SEND_URL where that is set; else the log is all. */
async function send ({ id, topic, payload }: Message): Promise<void> {
  if (SEND_URL !== undefined) {
    const response = await fetch(SEND_URL, {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'idempotency-key': id },
      body: JSON.stringify({ id, topic, payload }),
      signal: AbortSignal.timeout(5000),
    })
    if (!response.ok) throw new Error(`the receiver answered ${response.status}`)
  }
  app.log.info({ id, topic, payload }, 'sent')
}

await app.listen({ host: HOST, port: Number(PORT) })
