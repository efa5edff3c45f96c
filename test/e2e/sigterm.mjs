// A service as people write it: the plugin and close-with-grace. For sigterm.test.ts.
//
// It waits for a word of the test's before it exits, so that the test can see what is open while the process still
// lives.
import closeWithGrace from 'close-with-grace'
import Fastify from 'fastify'
import pool from 'fastify-pool'

const { kind, options } = JSON.parse(process.argv[2])

const app = Fastify({ logger: { level: 'info' }, disableRequestLogging: true })
let arrived = 0
// Ahead of the plugin: it sees requests that wait for a connection too.
app.addHook('onRequest', (request, reply, done) => {
  if (request.routeOptions.config.pools !== false) arrived++
  if (arrived === 200) process.send({ arrived })
  if (request.routeOptions.url === '/never') process.send({ never: String(request.id) })
  done()
})
// What comes in time after the signal, or after the last answer that followed it, comes before this timer.
let late = false
let answered = () => {}
let patience
process.once('SIGTERM', () => {
  const wait = () => {
    clearTimeout(patience)
    patience = setTimeout(() => { late = true }, 1000 + (options.closeTimeout ?? 0))
  }
  wait()
  answered = wait
})
app.addHook('onResponse', (request, reply, done) => {
  answered()
  done()
})
await app.register(pool, options)

app.get('/warm', { config: { pools: false } }, async () => 'warm')
if (kind === 'redis') {
  app.get('/work', async (request) => {
    await request.db.blpop('nothing', 0.04)
    return 'done'
  })
} else {
  app.get('/work', async (request) => {
    await request.db.collection('things').findOne({})
    return 'done'
  })
}
app.get('/never', async (request) => {
  const kept = request.db
  await new Promise(() => {})
  return kept
})

closeWithGrace({ delay: 10_000, logger: app.log }, async ({ err }) => {
  if (err) app.log.error({ err }, 'it crashed')
  await app.close()
  await new Promise((resolve) => {
    process.once('message', resolve)
    process.send({ closed: app.pools.stats(), late })
  })
})
await app.listen({ port: 0, host: '127.0.0.1' })
process.send({ port: app.server.address().port })
