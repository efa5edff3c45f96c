// Drives the notes service of ./notes with autocannon: `npm run load [-- --duration 5 --connections 20]`.
//
// Starts the service on a free port, as in production and with the same DB_URL and CACHE_URL as `npm start` (without
// DB_URL: on a new file of SQLite), loads one route after the other, and ends the service by SIGTERM. Of each route it
// shows requests a second and latency, and, from /metrics, what its requests waited for: connections. Ends with code 1
// where a reply was not a 2xx, or the service did not end well.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import autocannon from 'autocannon'

const { values } = parseArgs({
  options: {
    /** Of each route, in seconds. */
    duration: { type: 'string', default: '5' },
    connections: { type: 'string', default: '20' },
  },
})
const duration = Number(values.duration)
const connections = Number(values.connections)

const folder = await mkdtemp(join(tmpdir(), 'fastify-pool-load-'))
const port = await freePort()
const url = `http://127.0.0.1:${port}`
const service = spawn(process.execPath, [fileURLToPath(new URL('../dist/example/notes/server.js', import.meta.url))], {
  env: {
    DB_URL: join(folder, 'notes.db'),
    ...process.env,
    HOST: '127.0.0.1',
    PORT: String(port),
    NODE_ENV: 'production',
    LOG_LEVEL: 'warn',
  },
  stdio: 'inherit',
})
const ended = once(service, 'close')

try {
  if (!await drive()) process.exitCode = 1
  service.kill('SIGTERM')
  const [code, signal] = await ended
  if (code !== 0) throw new Error(`the service ended with ${signal ?? `code ${code}`}`)
} finally {
  service.kill('SIGKILL')
  await ended
  await rm(folder, { recursive: true, force: true })
}

/** @returns whether every request got a reply that is a 2xx */
async function drive () {
  await isUp()
  const ids = []
  for (let n = 1; n <= 20; n++) ids.push(await addNote(`note ${n}`))
  let isWell = true
  for (const route of ['/', '/notes', '/notes/:id']) {
    const before = await readMetrics()
    const result = await autocannon({ url: url + route.replace(':id', ids[0]), duration, connections })
    const after = await readMetrics()
    tell(route, result, poolsBetween(before, after))
    isWell &&= result.errors + result.non2xx === 0 && result['2xx'] > 0
  }
  return isWell
}

function tell (route, { requests, latency, errors, non2xx }, pools) {
  console.log(`GET ${route}: ${Math.round(requests.average)} req/s, latency ` +
    `p50 ${latency.p50} ms, p99 ${latency.p99} ms, max ${latency.max} ms`)
  if (errors + non2xx > 0) console.log(`  ${errors} failed, ${non2xx} replies were not 2xx`)
  for (const { name, acquired, wait, saturated } of pools) {
    console.log(`  pool '${name}': ${acquired} acquires, which waited for ${wait.toFixed(3)} ms on average; ` +
      `all connections used while somebody waited: ${saturated.toFixed(1)} s`)
  }
}

/** What happened between two readings of /metrics, of each pool that was used: in ms on average, and in s. */
function poolsBetween (before, after) {
  const grew = (name, pool) => {
    const key = `${name}{pool="${pool}"}`
    return (after.get(key) ?? 0) - (before.get(key) ?? 0)
  }
  const names = [...after.keys()].map((key) => /^db_client_connection_max\{pool="(.*)"\}$/.exec(key)?.[1])
  return names.filter((name) => name !== undefined).map((name) => {
    const acquired = grew('db_client_connection_wait_time_seconds_count', name)
    return {
      name,
      acquired,
      wait: 1000 * grew('db_client_connection_wait_time_seconds_sum', name) / acquired,
      saturated: grew('fastify_pool_saturated_time_seconds_total', name),
    }
  }).filter(({ acquired }) => acquired > 0)
}

/** Each sample's value, by its name and labels as they are written. */
async function readMetrics () {
  const text = await (await fetch(`${url}/metrics`)).text()
  return new Map(text.split('\n').filter((line) => line !== '' && !line.startsWith('#')).map((line) => {
    const at = line.lastIndexOf(' ')
    return [line.slice(0, at), Number(line.slice(at + 1))]
  }))
}

async function addNote (text) {
  const response = await fetch(`${url}/notes`, {
    method: 'POST', body: JSON.stringify({ text }), headers: { 'content-type': 'application/json' },
  })
  if (response.status !== 201) throw new Error(`POST /notes: ${response.status} ${await response.text()}`)
  const { id } = await response.json()
  return id
}

async function isUp () {
  for (;;) {
    if (service.exitCode !== null || service.signalCode !== null) throw new Error('the service ended at its start')
    try {
      if ((await fetch(`${url}/livez`)).ok) return
    } catch (error) {
      // Nothing listens yet: a process that can't is one that ends.
      if (error.cause?.code !== 'ECONNREFUSED') throw error
    }
    await pause(50)
  }
}

async function freePort () {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address()
  server.close()
  await once(server, 'close')
  return port
}
