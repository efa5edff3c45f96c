import { once } from 'node:events'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import t, { type Test } from 'tap'
import { startMongo, startRedis } from '../support/services.js'

// The examples as `npm start` runs them: `npm test` has built them.
const dist = fileURLToPath(new URL('../../dist/example/', import.meta.url))

/** Starts the notes service. Resolves to its address, and what ends it. */
async function notes (t: Test, env: NodeJS.ProcessEnv) {
  const child = spawn(process.execPath, [join(dist, 'notes/server.js')], {
    env: { ...process.env, NODE_OPTIONS: '', PORT: '0', NODE_ENV: 'production', ...env },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const ended = once(child, 'close') as Promise<[number | null]>
  t.teardown(() => child.kill('SIGKILL'))
  const lines: string[] = []
  const url = await new Promise<string>((resolve, reject) => {
    createInterface({ input: child.stdout }).on('line', (line) => {
      lines.push(line)
      const address = /listening at (http:[^"]+)"/.exec(line)?.[1]
      if (address !== undefined) resolve(address)
    }).on('close', () => { reject(new Error(`it ended: ${lines.join('\n')}`)) })
  })
  return {
    ask: async (path: string, body?: object) => {
      const response = await fetch(url + path, body === undefined
        ? {}
        : {
            method: 'POST', body: JSON.stringify(body), headers: { 'content-type': 'application/json' },
          })
      return { status: response.status, cache: response.headers.get('x-cache'), body: await response.json() as Record<string, unknown> & Array<unknown> }
    },
    stop: async () => {
      child.kill('SIGTERM')
      const [code] = await ended
      return { code, lines }
    },
  }
}

async function behaves (t: Test, env: NodeJS.ProcessEnv): Promise<void> {
  const { ask, stop } = await notes(t, env)
  const { status, body: note } = await ask('/notes', { text: 'buy milk' })
  t.equal(status, 201)
  t.match(note, { id: /^[\da-f-]{36}$/, text: 'buy milk' })
  t.same((await ask('/notes')).body, [note])
  t.same(await ask(`/notes/${String(note.id)}`), { status: 200, cache: 'miss', body: note })
  t.same(await ask(`/notes/${String(note.id)}`), { status: 200, cache: 'hit', body: note })
  t.equal((await ask('/notes/2d8fdc39-9f8b-4b26-8f7f-1d9f7c3a7f11')).status, 404)
  t.equal((await ask('/notes/nonsense')).status, 400)
  t.equal((await ask('/notes', { text: '' })).status, 400)
  t.match(await ask('/health'),
    { status: 200, body: { status: 'up', pools: { db: { status: 'up' }, cache: { status: 'up' } } } })
  const { code, lines } = await stop()
  t.equal(code, 0)
  t.match(lines.join('\n'), /pool closed/)
}

t.test('the notes service, embedded', (t) => behaves(t, { DB_URL: join(t.testdir(), 'notes.db') }))

t.test('the notes service, on Redis and MongoDB', async (t) => {
  const [redis, mongo] = await Promise.all([startRedis(t), startMongo(t)])
  await behaves(t,
    { CACHE_URL: redis.url, DB_URL: mongo === undefined ? join(t.testdir(), 'notes.db') : `mongodb://${mongo.host}:${mongo.port}/notes${new URL(mongo.url).search}` })
})

t.test('a custom pool', async (t) => {
  const child =
    spawn(process.execPath, [join(dist, 'custom/server.js')],
      { env: { ...process.env, NODE_OPTIONS: '' }, stdio: ['ignore', 'pipe', 'inherit'] })
  let said = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => { said += text })
  const [code] = await once(child, 'close') as [number | null]
  t.same({ code, said }, { code: 0, said: 'HELLO\n' })
})
