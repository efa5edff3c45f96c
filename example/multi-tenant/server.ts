// A database per tenant: see README.md. `npm run example:multi-tenant`
import { join } from 'node:path'
import closeWithGrace from 'close-with-grace'
import Fastify from 'fastify'
import pool, { type SqliteDatabase } from 'fastify-pool'
import Type, { type Static } from 'typebox'

declare module 'fastify-pool' {
  interface RequestPools { tenant: SqliteDatabase }
}

const NewNote = Type.Object({ text: Type.String({ minLength: 1, maxLength: 1000 }) }, { additionalProperties: false })

const { FOLDER = '.', TENANTS = 'tea,milk', PORT = '3000' } = process.env
// In a real app: a table, or the service that knows the customers. It may be asked asynchronously.
const tenants = new Set(TENANTS.split(','))

const app = Fastify({ logger: true })
const closing = closeWithGrace({ delay: 10_000, logger: app.log }, async ({ err }) => {
  if (err) app.log.error({ err }, 'closing after an error')
  await app.close()
})
app.addHook('onClose', () => { closing.uninstall() })

await app.register(pool, {
  name: 'tenant',
  backend: 'sqlite',
  // In a real app: from the token that was verified. A request without a key gets 400 when it reads `request.tenant`.
  key: (request) => request.headers['x-tenant'] as string | undefined,
  // Asked once for each tenant. The key comes from the client: only what is known becomes the name of a file.
  options: (key) => {
    if (!tenants.has(key)) throw Object.assign(new Error('there is no such tenant'), { statusCode: 404 })
    return { url: join(FOLDER, `${key}.db`) }
  },
  maxPools: 100,
  idlePoolTimeout: 600_000,
  onConnect: (db: SqliteDatabase) => {
    if (!db.readonly) db.exec('create table if not exists notes (id integer primary key, text text)')
  },
})

app.get('/notes', async (request) => request.tenant.prepare('select * from notes order by id').all())

app.post<{ Body: Static<typeof NewNote> }>('/notes', { schema: { body: NewNote } }, async (request, reply) => {
  request.tenant.prepare('insert into notes (text) values (?)').run(request.body.text)
  return reply.code(201).send({ text: request.body.text })
})

// A job takes a tenant's pool by its key. The numbers show hashes, not keys.
app.get<{ Params: { key: string } }>('/count/:key', { config: { pools: false } }, async (request) => {
  return await app.pools.get('tenant').of(request.params.key).execute('get', 'select count(*) as notes from notes')
})
app.get('/stats', { config: { pools: false } }, async () => app.pools.stats().tenant)

await app.listen({ port: Number(PORT) })
