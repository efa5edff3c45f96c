import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { startMongo, startRedis } from '../support/services.js'
import { dist, startExample } from './example.js'

async function behaves (t: Test, env: NodeJS.ProcessEnv): Promise<void> {
  const { url, ask, stop } = await startExample(t, 'notes/server.js', env)
  const { status, body: note } = await ask('/notes', { text: 'buy milk' })
  t.equal(status, 201)
  t.match(note, { id: /^[\da-f-]{36}$/, text: 'buy milk' })
  t.same((await ask('/notes')).body, [note])
  t.same(await ask(`/notes/${String(note.id)}`), { status: 200, cache: 'miss', body: note })
  t.same(await ask(`/notes/${String(note.id)}`), { status: 200, cache: 'hit', body: note })
  t.equal((await ask('/notes/2d8fdc39-9f8b-4b26-8f7f-1d9f7c3a7f11')).status, 404)
  t.equal((await ask('/notes/nonsense')).status, 400)
  t.equal((await ask('/notes', { text: '' })).status, 400)
  t.match((await ask('/')).body, { routes: Array })
  t.equal((await ask('/livez')).status, 200)
  t.match(await ask('/readyz'),
    { status: 200, body: { status: 'up', pools: { db: { status: 'up' }, cache: { status: 'up' } } } })
  const samples = samplesOf(await (await fetch(`${url}/metrics`)).text())
  for (const name of ['db', 'cache']) {
    const [idle, used] = ['idle', 'used'].map((state) =>
      samples.get(`db_client_connection_count{pool="${name}",state="${state}"}`))
    t.ok(idle! + used! > 0, `${name} has connections`)
    t.ok(samples.get(`db_client_connection_wait_time_seconds_count{pool="${name}"}`)! > 0, `${name} was used`)
  }
  const { code, lines } = await stop()
  t.equal(code, 0)
  t.match(lines.join('\n'), /pool closed/)
}

/** Prometheus' text: each sample's value by its name and labels. @throws where a line is neither that nor a comment */
function samplesOf (text: string): Map<string, number> {
  return new Map(text.split('\n').filter((line) => line !== '' && !/^# (HELP|TYPE) \w+ ./.test(line)).map((line) => {
    const [, sample, value] = /^(\w+(?:\{(?:\w+="(?:[^"\\]|\\.)*",?)*\})?) (\S+)$/.exec(line) ?? []
    if (sample === undefined || (value !== '+Inf' && !Number.isFinite(Number(value)))) throw new Error(line)
    return [sample, Number(value)]
  }))
}

/** Runs a program of an example to its end. */
async function run (path: string, ...args: string[]): Promise<{ code: number | null, said: string }> {
  const child = spawn(process.execPath, [path, ...args],
    { env: { ...process.env, NODE_OPTIONS: '' }, stdio: ['ignore', 'pipe', 'inherit'] })
  let said = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => { said += text })
  const [code] = await once(child, 'close') as [number | null]
  return { code, said }
}

t.test('the notes service, embedded', (t) => behaves(t, { DB_URL: join(t.testdir(), 'notes.db') }))

t.test('the notes service, on Redis and MongoDB', async (t) => {
  const [redis, mongo] = await Promise.all([startRedis(t), startMongo(t)])
  await behaves(t,
    { CACHE_URL: redis.url, DB_URL: mongo === undefined ? join(t.testdir(), 'notes.db') : `mongodb://${mongo.host}:${mongo.port}/notes${new URL(mongo.url).search}` })
})

t.test('the notes service, driven by autocannon', async (t) => {
  const { code, said } = await run(
    fileURLToPath(new URL('../../example/load.mjs', import.meta.url)), '--duration', '1', '--connections', '4')
  t.equal(code, 0, said)
  for (const route of ['/', '/notes', '/notes/:id']) {
    t.match(said, new RegExp(`^GET ${route}: [1-9]\\d* req/s, latency p50 [\\d.]+ ms, p99 [\\d.]+ ms, max [\\d.]+ ms$`, 'm'))
  }
  for (const name of ['db', 'cache']) {
    t.match(said, new RegExp(`^  pool '${name}': [1-9]\\d* acquires, which waited for [\\d.]+ ms on average; all connections used while somebody waited: [\\d.]+ s$`, 'm'))
  }
})

t.test('a custom pool', async (t) => {
  t.same(await run(join(dist, 'custom/server.js')), { code: 0, said: 'HELLO\n' })
})
