// The apps that `npm run bench:fastify` measures. Each is (dist, servers) => Fastify app that answers GET / with a
// small JSON; `dist` is what the package exports, `servers` the addresses of a PostgreSQL and a Redis. A process makes
// those that it measures, and no others.
import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'
import Fastify from 'fastify'

/** They are no dependencies of the project: they are brought when the bench first runs. */
export const peers = {
  '@fastify/postgres': '6.1.0',
  'generic-pool': '3.9.0',
  pg: '8.23.1',
}
// Not the folder of `npm run bench`: npm would take away there what that one has put.
export const home = fileURLToPath(new URL('../../.cache/bench/fastify', import.meta.url))
const peer = createRequire(`${home}/package.json`)

const body = { hello: 'world', n: 42 }
const schema = {
  response: {
    200: { type: 'object', properties: { hello: { type: 'string' }, n: { type: 'number' }, v: { type: 'string' } } },
  }
}

// --- In process: what hooks and leases cost, with nothing behind them ------------------------------------------------

const plain = (_request, reply) => { reply.send(body) }
/** Looks at its connections, as every handler that wants one does. */
const using = (...names) => (request, reply) => {
  for (const name of names) if (request[name].ready !== true) throw new Error(`no connection: ${name}`)
  reply.send(body)
}

const connector = { system: 'bench', create: async () => ({ ready: true }), destroy () {} }

const many = (pools) => Array.from({ length: pools }, (_, i) => `db${i}`)

async function plugged ({ default: pool }, names, route, handler) {
  const app = Fastify()
  await app.register(pool, { pools: Object.fromEntries(names.map((name) => [name, { connector, max: 1 }])) })
  app.get('/', { schema, ...route }, handler)
  return app
}

/**
 * As somebody would write it by hand who knows that `onResponse` is not always called: callbacks, and a listener for
 * the response's end.
 */
function byHand (take, give) {
  const app = Fastify()
  app.decorateRequest('db', null)
  app.decorateRequest('end', null)
  app.addHook('onRequest', (request, reply, done) => {
    const lease = take()
    if (lease === null) return done(new Error('no connection'))
    request.db = lease.connection
    let ended = false
    request.end = () => {
      if (ended) return
      ended = true
      give(lease)
    }
    reply.raw.on('close', request.end)
    done()
  })
  app.addHook('onResponse', (request, _reply, done) => {
    request.end?.()
    done()
  })
  app.get('/', { schema }, using('db'))
  return app
}

function idle (hooks) {
  const app = Fastify()
  for (const hook of hooks) {
    app.addHook(hook,
      hook === 'onSend' || hook === 'onError' ? (_request, _reply, _payload, done) => { done() } : (_request, _reply, done) => { done() })
  }
  app.get('/', { schema }, plain)
  return app
}

export const inProcess = {
  bare: () => idle([]),
  // As many as the plugin has.
  hooks: () => idle(['onRequest', 'preValidation', 'onSend', 'onError', 'onResponse']),
  'hooks of a pair': () => idle(['onRequest', 'onResponse']),
  'pair, array': () => {
    const connections = [{ connection: { ready: true } }]
    return byHand(() => connections.pop() ?? null, (lease) => { connections.push(lease) })
  },
  'pair, engine': async ({ Pool }) => {
    const pool = new Pool(connector, { max: 1, min: 1 })
    await pool.open()
    const app = byHand(() => pool.tryAcquire(), (lease) => { lease.release() })
    app.addHook('onClose', () => pool.close())
    return app
  },
  'one pool': (dist) => plugged(dist, ['db'], {}, using('db')),
  'two pools': (dist) => plugged(dist, ['db', 'cache'], {}, using('db', 'cache')),
  '5 pools': (dist) => plugged(dist, many(5), {}, using(...many(5))),
  '20 pools': (dist) => plugged(dist, many(20), {}, using(...many(20))),
  'pools: false': (dist) => plugged(dist, ['db'], { config: { pools: false } }, plain),
}

// --- Over a socket: a query behind each request ----------------------------------------------------------------------

/** Connections of a pool. */
export const max = 10
const text = 'select 1::text as v'

function answering (handler) {
  const app = Fastify()
  app.get('/', { schema }, handler)
  return app
}

async function leasing ({ default: pool }, options, handler, route = {}) {
  const app = Fastify()
  await app.register(pool, options)
  app.get('/', { schema, ...route }, handler)
  return app
}

/** As its documentation shows it. */
function generic (create, destroy, ask) {
  const { createPool } = peer('generic-pool')
  const pool = createPool({ create, destroy }, { max })
  return answering(async () => {
    const connection = await pool.acquire()
    try {
      return await ask(connection)
    } finally {
      await pool.release(connection)
    }
  })
}

const select = async (client) => (await client.query(text)).rows[0]

/** Three statements in a transaction: as `pg.transact` has them, and as our routes do. */
const three = async (client) => {
  await client.query(text)
  await client.query(text)
  return await select(client)
}

const ours = (reset) => (dist, { postgres }) =>
  leasing(dist, { backend: 'postgresql', url: postgres, max, reset }, (request) => select(request.db))

async function getKey (client) {
  return { v: await client.get('key') }
}
const redisPool = (redis) => ({ name: 'cache', backend: 'redis', url: redis, max })

export const overSocket = {
  PostgreSQL: {
    'no database': () => answering(async () => ({ v: '1' })),
    '@fastify/postgres, `connect()` and `release()`': async (_dist, { postgres }) => {
      const app = Fastify()
      await app.register(peer('@fastify/postgres'), { connectionString: postgres, max })
      app.get('/', { schema }, async () => {
        const client = await app.pg.connect()
        try {
          return await select(client)
        } finally {
          client.release()
        }
      })
      return app
    },
    'pg.Pool, `query()`': (_dist, { postgres }) => {
      const { Pool } = peer('pg')
      const pool = new Pool({ connectionString: postgres, max })
      return answering(() => select(pool))
    },
    'generic-pool of pg.Client': (_dist, { postgres }) => {
      const { Client } = peer('pg')
      return generic(async () => {
        const client = new Client({ connectionString: postgres })
        await client.connect()
        return client
      }, (client) => client.end(), select)
    },
    "ours, `reset: 'none'`": ours('none'),
    "ours, `reset: 'transaction'`": ours('transaction'),
    "ours, `reset: 'session'`": ours('session'),
    "ours, `reset: 'joined'`": ours('joined'),
  },
  'PostgreSQL, three statements in a transaction': {
    'no database': () => answering(async () => ({ v: '1' })),
    '@fastify/postgres, `transact()`': async (_dist, { postgres }) => {
      const app = Fastify()
      await app.register(peer('@fastify/postgres'), { connectionString: postgres, max })
      app.get('/', { schema }, () => app.pg.transact(three))
      return app
    },
    ...Object.fromEntries(['transaction', 'session', 'joined'].map((reset) => [
      `ours, \`transaction: true\`, \`reset: '${reset}'\``,
      (dist, { postgres }) => leasing(dist, { backend: 'postgresql', url: postgres, max, reset },
        (request) => three(request.db), { config: { pools: { db: { transaction: true } } } }),
    ])),
  },
  Redis: {
    'no database': () => answering(async () => ({ v: '1' })),
    // In a handler, `this` is the app.
    'shared client, `app.redis`': (dist, { redis }) =>
      leasing(dist, redisPool(redis), function () { return getKey(this.redis) }, { config: { pools: false } }),
    'ours, exclusive, `request.cache`': (dist, { redis }) =>
      leasing(dist, redisPool(redis), (request) => getKey(request.cache)),
    "ours, exclusive, `release: 'onSend'`": (dist, { redis }) =>
      leasing(dist, redisPool(redis), (request) => getKey(request.cache),
        { config: { pools: { cache: { release: 'onSend' } } } }),
    'generic-pool of ioredis, exclusive': async (_dist, { redis }) => {
      const { Redis } = await import('ioredis')
      return generic(async () => {
        const client = new Redis(redis, { lazyConnect: true })
        await client.connect()
        return client
      }, async (client) => { client.disconnect() }, getKey)
    },
  },
}
