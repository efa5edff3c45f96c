// Writes go to the primary, reads to a replica: see README.md.
// `PRIMARY_URL=postgres://... REPLICA_URL=postgres://... npm run example:replicas`
import closeWithGrace from 'close-with-grace'
import Fastify from 'fastify'
import pool from 'fastify-pool'
import type { Client } from 'pg'
import Type, { type Static } from 'typebox'

declare module 'fastify-pool' {
  interface RequestPools { shop: Client }
}

const { PRIMARY_URL, REPLICA_URL, HOST = '127.0.0.1', PORT = '3000', LOG_LEVEL = 'info' } = process.env
if (PRIMARY_URL === undefined || REPLICA_URL === undefined) throw new Error('PRIMARY_URL or REPLICA_URL is not set')

const app = Fastify({ logger: { level: LOG_LEVEL } })
const closing = closeWithGrace({ delay: 10_000, logger: app.log }, async ({ err }) => {
  if (err) app.log.error({ err }, 'closing after an error')
  await app.close()
})
app.addHook('onClose', () => { closing.uninstall() })

await app.register(pool, {
  name: 'shop',
  backend: 'postgresql',
  max: 20,
  // What each says itself counts: after a failover the other one is the primary.
  targets: [{ name: 'one', url: PRIMARY_URL }, { name: 'two', url: REPLICA_URL, role: 'replica' }],
  // A replica that is further behind is left out until it has caught up.
  maxLag: 5000,
  // Whoever has written reads from the primary for as long as replicas may lag: a session sees its own writes.
  sticky: { header: 'x-session' },
  stickyFor: 5000,
  healthRoutes: true,
})

await app.pools.get('shop').execute('query',
  'create table if not exists items (id int generated always as identity primary key, name text not null)')

const NewItem = Type.Object({ name: Type.String({ minLength: 1 }) }, { additionalProperties: false })

// GET reads: a replica, where one is there.
app.get('/items', async (request) => {
  const { rows } = await request.shop.query('select id, name, pg_is_in_recovery() as replica from items order by id')
  return rows
})

app.post<{ Body: Static<typeof NewItem> }>('/items', { schema: { body: NewItem } }, async (request, reply) => {
  const { rows } = await request.shop.query('insert into items (name) values ($1) returning id', [request.body.name])
  return await reply.code(201).send(rows[0])
})

// A GET that must have the newest state says so.
app.get('/count', { config: { pools: { shop: { role: 'primary' } } } }, async (request) => {
  const { rows } = await request.shop.query('select count(*)::int as items, pg_is_in_recovery() as replica from items')
  return rows[0]
})

await app.listen({ host: HOST, port: Number(PORT) })
