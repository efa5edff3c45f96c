import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { startMongo, startRedis } from '../support/services.js'
import { dist, startExample } from './example.js'

const root = fileURLToPath(new URL('../../', import.meta.url))
const quickstart = join(root, 'example/quickstart/server.mjs')

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

t.test('the quickstart', async (t) => {
  const { ask, stop } = await startExample(t, quickstart, { FILE: join(t.testdir({}), 'notes.db') })
  t.match(await ask('/notes', { text: 'buy milk' }), { status: 201, body: { id: 1, text: 'buy milk' } })
  t.match(await ask('/notes', {}), { status: 400 })
  t.match(await ask('/notes'), { status: 200, body: [{ id: 1, text: 'buy milk' }] })
  t.equal((await stop()).code, 0)
})

t.test('a database per tenant', async (t) => {
  const { ask, stop } = await startExample(t, 'multi-tenant/server.js', { FOLDER: t.testdir({}), TENANTS: 'tea,milk' })
  const [tea, milk, other] = ['tea', 'milk', '../tea'].map((key) => ({ 'x-tenant': key }))
  t.match(await ask('/notes', { text: 'green' }, tea), { status: 201 })
  t.same((await ask('/notes', undefined, tea)).body, [{ id: 1, text: 'green' }])
  t.same((await ask('/notes', undefined, milk)).body, [])
  t.match(await ask('/count/tea'), { status: 200, body: { notes: 1 } })
  t.match(await ask('/notes', undefined, other), { status: 404, body: { message: 'there is no such tenant' } })
  t.match(await ask('/notes'), { status: 400, body: { code: 'FST_POOL_NOT_LEASED' } })
  const { body } = await ask('/stats')
  t.match(body, { tenants: { open: 2 } })
  t.notMatch(JSON.stringify(body), /tea|milk/)
  t.equal((await stop()).code, 0)
})

t.test('each example says in a few lines how to start it', async (t) => {
  const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { scripts: object }
  const folders = readdirSync(join(root, 'example'), { withFileTypes: true }).filter((entry) => entry.isDirectory())
  t.equal(folders.length, 9)
  for (const { name } of folders) {
    const page = readFileSync(join(root, 'example', name, 'README.md'), 'utf8')
    t.ok(page.split('\n').length <= 25, name)
    const commands = [...page.matchAll(/npm (?:run )?([\w:-]+)/g)].map(([, command]) => command!)
    t.ok(commands.some((command) => command in scripts) || /node --test/.test(page), `${name}: ${commands.join(', ')}`)
  }
})
