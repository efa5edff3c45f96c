// An app with every backend, whichever way its modules were loaded. Answers with what one request of it got.
module.exports = async function serve (Fastify, pool, urls) {
  const app = Fastify()
  await app.register(pool, {
    pools: {
      lite: { backend: 'sqlite', url: ':memory:' },
      cache: { backend: 'redis', url: urls.redis },
      pg: { backend: 'postgresql', url: urls.postgres },
      my: { backend: 'mysql', url: urls.mariadb },
      docs: { backend: 'mongodb', url: urls.mongo, database: 'test' },
    },
  })
  app.get('/', async (request) => {
    const [[row]] = await request.my.query('select 1 as one')
    return {
      sqlite: request.lite.prepare('select 1 as one').get().one,
      redis: await request.cache.ping(),
      postgresql: (await request.pg.query('select 1 as one')).rows[0].one,
      mysql: row.one,
      mongodb: (await request.docs.command({ ping: 1 })).ok,
    }
  })
  try {
    // Not by inject(): on Node 20 Jest can't load what that needs.
    const response = await fetch(await app.listen({ host: '127.0.0.1', port: 0 }), { headers: { connection: 'close' } })
    return await response.text()
  } finally {
    await app.close()
  }
}

module.exports.expected = '{"sqlite":1,"redis":"PONG","postgresql":1,"mysql":1,"mongodb":1}'
