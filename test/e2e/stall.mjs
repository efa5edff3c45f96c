// A pool whose event loop stands still, with operations of every kind under way. For stall.test.ts.
import { once } from 'node:events'
import { setImmediate as turn } from 'node:timers/promises'
import { Pool, postgresql, redis } from 'fastify-pool'

const { backend, url, how, ms } = JSON.parse(process.argv[2])

const connector = await { postgresql, redis }[backend]({ url })
const ping = (connection) => backend === 'redis' ? connection.ping() : connection.query('select 1')
const pool = new Pool(connector, { max: 8, validateAfter: 0 })
const errors = []
pool.on('error', ({ error, phase }) => { errors.push(`${phase}: ${error.message}`) })

// Four are idle, and are asked before they are lent; four more are created.
const warm = await Promise.all(Array.from({ length: 4 }, () => pool.acquire()))
for (const lease of warm) lease.release()
const refusals = []
const use = (timeout) => pool.use(ping, { timeout }).catch((error) => { refusals.push(error.code) })
const work = Array.from({ length: 8 }, () => use(20_000))
// Some of what was sent is on its way.
await turn()
if (how === 'block') {
  const end = performance.now() + ms
  while (performance.now() < end) { /* A handler that computes for too long. */ }
} else {
  // The test stops the process, and lets it go on.
  process.send({ ready: true })
  await once(process, 'message')
}
work.push(use(2000))
await Promise.all(work)
const { circuit, createErrors, destroyed } = pool.stats()
const total = Object.values(destroyed).reduce((sum, one) => sum + one)
process.send({ done: { circuit, createErrors, destroyed: total, errors, refusals } })
await pool.close()
process.disconnect()
