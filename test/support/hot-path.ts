// A process of its own: how many bytes the paths that are taken most allocate, and which asynchronous resources they
// make. Prints it as JSON.
import { createHook } from 'node:async_hooks'
import Fastify from 'fastify'
import { Pool, fastifyPool } from '../../index.js'

const rounds = 100

/** Of one call each, in bytes. A collection makes a round too small, so it is the median. */
const bytes: Record<string, number> = {}
/** The types of all asynchronous resources that 100 calls make, but for promises. */
const resources: Record<string, string[]> = {}

async function measure (name: string, calls: number, fn: () => void | Promise<void>): Promise<void> {
  const measured = []
  for (let round = 0; round < rounds; round++) {
    const before = process.memoryUsage().heapUsed
    for (let call = 0; call < calls; call++) {
      const pending = fn()
      if (pending !== undefined) await pending
    }
    measured.push((process.memoryUsage().heapUsed - before) / calls)
  }
  bytes[name] = measured.sort((a, b) => a - b)[rounds / 2]!

  const made = new Set<string>()
  const hook = createHook({ init: (_id, type) => { made.add(type) } }).enable()
  for (let call = 0; call < 100; call++) await fn()
  hook.disable()
  made.delete('PROMISE')
  resources[name] = [...made].sort()
}

const connector = { system: 'test', create: async () => ({}), destroy () {} }

const pool = new Pool(connector, { max: 2 })
await pool.open()
await measure('nothing', 2000, () => {})
await measure('tryAcquire', 2000, () => { pool.tryAcquire()!.release() })
await measure('await', 2000, async () => { await Promise.resolve() })
await measure('acquire', 2000, async () => { (await pool.acquire()).release() })
const other = await pool.acquire()
let lease = await pool.acquire()
await measure('wait', 2000, async () => {
  const next = pool.acquire()
  lease.release()
  lease = await next
})
lease.release()
other.release()
const forget = pool.on('release', () => {})
await measure('listener', 2000, () => { pool.tryAcquire()!.release() })
forget()
await pool.close()

// The first one is not looked at: Fastify's own code becomes fast meanwhile.
for (const kind of ['warm', 'hooks', 'no pool', 'one pool']) {
  const app = Fastify()
  if (kind === 'warm' || kind === 'hooks') {
    app.addHook('onRequest', (_request, _reply, done) => { done() })
    app.addHook('onResponse', (_request, _reply, done) => { done() })
  } else await app.register(fastifyPool, { connector, max: 2 })
  app.get('/', { config: { pools: kind === 'one pool' && ['db'] } }, (_request, reply) => { reply.send('') })
  await app.ready()
  await measure(kind, 50, async () => { await app.inject('/') })
  await app.close()
}

console.log(JSON.stringify({ bytes, resources }))
