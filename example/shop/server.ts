// A shop: see README.md. `DATABASE_URL=postgres://... REDIS_URL=redis://... JWT_SECRET=... npm run example:shop`
import jwt from '@fastify/jwt'
import rateLimit from '@fastify/rate-limit'
import swagger from '@fastify/swagger'
import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox'
import closeWithGrace from 'close-with-grace'
import Fastify, { type FastifyRequest } from 'fastify'
import pool from 'fastify-pool'
import type { Redis } from 'ioredis'
import type { Client } from 'pg'
import { register } from 'prom-client'
import Type from 'typebox'

declare module 'fastify-pool' {
  interface RequestPools { shop: Client, pages: Redis }
}
declare module '@fastify/jwt' {
  interface FastifyJWT { payload: { name: string }, user: { name: string } }
}

const { HOST = '127.0.0.1', PORT = '3000', LOG_LEVEL = 'info' } = process.env
const [DATABASE_URL, REDIS_URL, JWT_SECRET] = ['DATABASE_URL', 'REDIS_URL', 'JWT_SECRET'].map((name) => {
  const value = process.env[name]
  if (value === undefined) throw new Error(`${name} is not set`)
  return value
}) as [string, string, string]

const app = Fastify({ logger: { level: LOG_LEVEL } }).withTypeProvider<TypeBoxTypeProvider>()
const closing = closeWithGrace({ delay: 10_000, logger: app.log }, async ({ err }) => {
  if (err) app.log.error({ err }, 'closing after an error')
  await app.close()
})
app.addHook('onClose', () => { closing.uninstall() })

await app.register(pool, {
  pools: {
    shop: { backend: 'postgresql', url: DATABASE_URL, max: 10 },
    pages: { backend: 'redis', url: REDIS_URL, lease: false },
  },
  // Who is refused by the rate limit, by a token or by a schema takes no connection: those come before.
  lease: { acquire: 'preHandler' },
  prometheus: true,
})
// Counts in Redis, by the shared client, for all processes together.
await app.register(rateLimit, { max: 100, timeWindow: 60_000, redis: app.redis })
await app.register(jwt, { secret: JWT_SECRET, sign: { expiresIn: '1h' } })
await app.register(swagger, { openapi: { info: { title: 'Shop', version: '1.0.0' } } })

await app.pools.get('shop').use(async (db) => {
  await db.query(`
    create table if not exists products (id int primary key, name text not null, stock int not null check (stock >= 0));
    create table if not exists orders (
      id int generated always as identity primary key, customer text not null, product int not null references products,
      quantity int not null);
    insert into products values (1, 'tea', 10), (2, 'milk', 10) on conflict do nothing`)
})

const Id = Type.Integer({ minimum: 1 })
const Product = Type.Object({ id: Id, name: Type.String(), stock: Type.Integer() })
const Order = Type.Object({ product: Id, quantity: Type.Integer({ minimum: 1, maximum: 100 }) })
// Behind the rate limit, and before the body is read.
const authenticated = { preParsing: async (request: FastifyRequest) => { await request.jwtVerify() } }
const none = { config: { pools: false } } as const

app.post('/login', { ...none, schema: { body: Type.Object({ name: Type.String({ minLength: 1 }) }) } },
  // In a real app: the password is checked first.
  async (request) => ({ token: app.jwt.sign({ name: request.body.name }) }))

// A product comes from the cache where it is there: then the database is not asked, and no connection is taken.
app.get('/products/:id', {
  config: { pools: { shop: { acquire: 'manual' } } },
  schema: { params: Type.Object({ id: Id }), response: { 200: Product, 404: Type.Object({ message: Type.String() }) } },
}, async (request, reply) => {
  const { id } = request.params
  const cached = await app.redis.get(`product:${id}`)
  reply.header('x-cache', cached === null ? 'miss' : 'hit')
  if (cached !== null) return JSON.parse(cached) as { id: number, name: string, stock: number }
  const { connection } = await request.acquire('shop')
  const { rows: [product] } = await connection.query('select id, name, stock from products where id = $1', [id])
  if (product === undefined) return await reply.code(404).send({ message: 'there is no such product' })
  await app.redis.set(`product:${id}`, JSON.stringify(product), 'EX', 60)
  return product
})

// The stock and the order in one transaction: a reply of 400 or more rolls both back.
app.post('/orders', {
  ...authenticated,
  config: { pools: { shop: { transaction: true } } },
  schema: { body: Order },
}, async (request, reply) => {
  const { product, quantity } = request.body
  const { shop } = request
  const { rowCount } = await shop.query(
    'update products set stock = stock - $2 where id = $1 and stock >= $2', [product, quantity])
  if (rowCount === 0) return await reply.code(409).send({ message: 'there is not enough of it' })
  const { rows: [{ id }] } = await shop.query(
    'insert into orders (customer, product, quantity) values ($1, $2, $3) returning id',
    [request.user.name, product, quantity])
  // Behind the commit. Whoever has read the old stock before may still put that into the cache, for 60 s at most.
  request.afterCommit('shop', () => app.redis.del(`product:${product}`))
  return await reply.code(201).send({ id })
})

app.get('/orders', { ...authenticated }, async (request) => {
  const { rows } = await request.shop.query(
    'select id, product, quantity from orders where customer = $1 order by id', [request.user.name])
  return rows
})

app.get('/openapi.json', { ...none, schema: { hide: true } }, async () => app.swagger())
app.get('/metrics', { config: { pools: false, rateLimit: false }, schema: { hide: true } }, async (_request, reply) =>
  await reply.type(register.contentType).send(await register.metrics()))

await app.listen({ host: HOST, port: Number(PORT) })
