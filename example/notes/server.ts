// A small notes service: a database, and a cache before it.
//
// `npm start`: SQLite in ./notes.db and a cache in memory, no server needed.
//
// `DB_URL=mongodb://localhost/notes CACHE_URL=redis://localhost npm start`: MongoDB and Redis, which
// `docker compose -f example/compose.yml up -d` starts.
//
// `npm run load` measures it.
import { randomUUID } from 'node:crypto'
import closeWithGrace from 'close-with-grace'
import Fastify from 'fastify'
import pool from 'fastify-pool'
import pretty from 'pino-pretty'
import { register } from 'prom-client'
import Type, { type Static } from 'typebox'
import { cacheOptions, type Cache } from './cache.js'
import { databaseOptions, notesOf, type Database } from './database.js'

declare module 'fastify-pool' {
  interface RequestPools { db: Database, cache: Cache }
}

const NewNote = Type.Object({ text: Type.String({ minLength: 1, maxLength: 1000 }) }, { additionalProperties: false })
const NoteId = Type.Object({ id: Type.String({ format: 'uuid' }) })

const { DB_URL = 'notes.db', CACHE_URL, HOST = '127.0.0.1', PORT = '3000', LOG_LEVEL = 'info', NODE_ENV } = process.env

const app = Fastify({
  logger: {
    level: LOG_LEVEL,
    ...(NODE_ENV !== 'production' && {
      stream: pretty({ sync: true, singleLine: true, ignore: 'pid,hostname' }),
    })
  }
})

// On SIGTERM or SIGINT: requests in flight are answered, then the pools close.
const closing = closeWithGrace({ delay: 10_000, logger: app.log }, async ({ signal, err }) => {
  if (err) app.log.error({ err }, 'closing after an error')
  else app.log.info(`closing after ${signal}`)
  await app.close()
})
app.addHook('onClose', () => { closing.uninstall() })

await app.register(pool, {
  pools: {
    db: databaseOptions(DB_URL),
    // Only those routes that name it have a connection of the cache.
    cache: { ...cacheOptions(CACHE_URL), lease: false },
  },
  // Adds /livez and /readyz.
  healthRoutes: true,
  // Puts the pools' numbers into prom-client's own registry.
  prometheus: true,
})

// Needs no database: it takes no connection.
app.get('/', { config: { pools: false } }, async () => ({
  routes: ['GET /notes', 'POST /notes', 'GET /notes/:id', 'GET /livez', 'GET /readyz', 'GET /metrics'],
}))

app.post<{ Body: Static<typeof NewNote> }>('/notes', { schema: { body: NewNote } }, async (request, reply) => {
  const note = { id: randomUUID(), text: request.body.text, at: new Date().toISOString() }
  await notesOf(request.db).add(note)
  return reply.code(201).send(note)
})

app.get('/notes', async (request) => notesOf(request.db).list())

// The database is asked only where the cache has no answer: its connection is taken by hand.
app.get<{ Params: Static<typeof NoteId> }>('/notes/:id', {
  schema: { params: NoteId },
  config: { pools: { cache: true, db: { acquire: 'manual' } } },
}, async (request, reply) => {
  const { id } = request.params
  const cached = await request.cache.get(id)
  if (cached !== null) return reply.header('x-cache', 'hit').type('application/json').send(cached)

  const { connection } = await request.acquire('db')
  const note = await notesOf(connection).get(id)
  if (note === undefined) {
    return reply.code(404).send({
      error: 'Not Found', message: `there is no note ${id}`, statusCode: 404,
    })
  }
  await request.cache.set(id, JSON.stringify(note), 'EX', 60)
  return reply.header('x-cache', 'miss').send(note)
})

// For Prometheus. Reading the numbers takes no connection.
app.get('/metrics', { config: { pools: false }, logLevel: 'warn' }, async (_request, reply) =>
  reply.type(register.contentType).send(await register.metrics()))

await app.listen({ host: HOST, port: Number(PORT) })
