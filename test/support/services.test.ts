import { spawn } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { connect } from 'node:net'
import type { Socket } from 'node:net'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { MongoClient } from 'mongodb'
import t from 'tap'
import type { Test } from 'tap'
import { needsOwn, noteServer, startMongo, startRedis } from './services.js'
import type { Server, Teardown } from './services.js'
import { event, until } from './until.js'

const onLinux = process.platform === 'linux'

/** Dead, though maybe not yet waited for by its parent. */
function isGone (pid: number | undefined): boolean {
  try {
    process.kill(pid!, 0)
    return onLinux && /^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
  } catch {
    return true // ESRCH, or ENOENT.
  }
}

interface Talk { socket: Socket, heard: string, closed: boolean }

function talk (t: Teardown, { host, port }: Server): Talk {
  const me: Talk = { socket: connect(port, host), heard: '', closed: false }
  me.socket.setEncoding('utf8')
  me.socket.on('data', (text) => { me.heard += text })
  me.socket.on('error', () => { me.closed = true }) // The server went away, which is what these tests are about.
  me.socket.on('close', () => { me.closed = true })
  t.teardown(() => me.socket.destroy())
  return me
}

async function ask (t: Teardown, server: Server, command: string): Promise<string> {
  const me = talk(t, server)
  me.socket.write(command + '\r\n')
  await until(() => me.heard.endsWith('\r\n'), { what: `the answer to ${command}` })
  me.socket.destroy()
  return me.heard.trim()
}

/** What this test notes is no part of the run's summary. @returns what was noted */
function ownLog (t: Test): () => unknown[] {
  const log = join(t.testdir({}), 'log')
  const { POOL_TEST_RUN_LOG } = process.env
  process.env.POOL_TEST_RUN_LOG = log
  t.teardown(() => {
    if (POOL_TEST_RUN_LOG === undefined) delete process.env.POOL_TEST_RUN_LOG
    else process.env.POOL_TEST_RUN_LOG = POOL_TEST_RUN_LOG
  })
  return () => readFileSync(log, 'utf8').trim().split('\n').map((line) => JSON.parse(line))
}

t.test('a Redis of our own', async (t) => {
  const pids: Array<number | undefined> = []
  let server: Server | undefined
  await t.test('is there, can be killed, restarted on the same port, and stopped', async (t) => {
    server = await startRedis(t, { own: true, args: ['--appendonly', 'yes', '--appendfsync', 'always'] })
    t.equal(server.url, `redis://127.0.0.1:${server.port}`)
    t.same(needsOwn(server), { skip: false })
    pids.push(server.pid)
    t.equal(await ask(t, server, 'SET name value'), '+OK')
    const me = talk(t, server)
    await event(me.socket, 'connect')
    await server.kill()
    t.ok(isGone(server.pid))
    await until(() => me.closed)
    await server.restart()
    pids.push(server.pid)
    t.not(pids[0], pids[1])
    t.equal(await ask(t, server, 'GET name'), '$5\r\nvalue', 'its data are back')
    await server.stop()
    t.ok(isGone(server.pid))
    await server.restart()
    pids.push(server.pid)
    await t.rejects(server.restart(), /still runs/)
  })
  t.ok(pids.every(isGone), 'nothing is left')
})

t.test('a paused server accepts and says nothing, until it is resumed', async (t) => {
  const server = await startRedis(t, { own: true })
  server.pause()
  const me = talk(t, server)
  await event(me.socket, 'connect')
  me.socket.write('PING\r\n')
  if (onLinux) await until(() => /^State:\s+T/m.test(readFileSync(`/proc/${server.pid}/status`, 'utf8')))
  t.equal(me.heard, '')
  server.resume()
  await until(() => me.heard === '+PONG\r\n')
})

t.test('a paused server is gone at the end too', async (t) => {
  let server: Server | undefined
  await t.test('paused', async (t) => {
    server = await startRedis(t, { own: true })
    server.pause()
  })
  t.ok(isGone(server?.pid))
})

t.test('several start side by side, each on a port of its own', async (t) => {
  const servers = await Promise.all(Array.from({ length: 4 }, () => startRedis(t, { own: true })))
  t.equal(new Set(servers.map(({ port }) => port)).size, 4)
  for (const server of servers) t.match(await ask(t, server, 'INFO server'), new RegExp(`process_id:${server.pid}\r`))
})

t.test('arguments go to Redis, and a wrong one is told', async (t) => {
  const server = await startRedis(t, { args: ['--requirepass', 'secret'] })
  t.match(await ask(t, server, 'PING'), '-NOAUTH')
  await t.rejects(startRedis(t, { args: ['--no-such-option', '1'] }), /no-such-option/)
})

t.test('a server that was given as a URL is used and never touched', async (t) => {
  const noted = ownLog(t)
  const own = await startRedis(t, { args: ['--requirepass', 'p@ss'] })
  const url = `redis://:p%40ss@127.0.0.1:${own.port}`
  const { POOL_TEST_REDIS_URL } = process.env
  process.env.POOL_TEST_REDIS_URL = url
  t.teardown(() => {
    if (POOL_TEST_REDIS_URL === undefined) delete process.env.POOL_TEST_REDIS_URL
    else process.env.POOL_TEST_REDIS_URL = POOL_TEST_REDIS_URL
  })
  const server = await startRedis(t)
  t.equal(server.url, url)
  t.equal(server.port, own.port)
  t.equal(server.pid, undefined)
  t.type(needsOwn(server).skip, 'string')
  await t.rejects(server.kill(), /not ours/)
  t.throws(() => server.pause(), /not ours/)
  t.not((await startRedis(t, { own: true })).url, url, 'a test that must kill gets one of its own')
  t.match(noted(), [{ pid: Number }, { how: 'POOL_TEST_REDIS_URL', pid: undefined }, { pid: Number }])
  process.env.POOL_TEST_REDIS_URL = `redis://:wrong@127.0.0.1:${own.port}`
  await t.rejects(startRedis(t), /does not answer/)
})

t.test('a MongoDB that can be killed and restarted with its data', async (t) => {
  const server = await startMongo(t, { own: true })
  const extra = server === undefined ? { skip: 'neither a mongod nor Go to build FerretDB with' } : needsOwn(server)
  await t.test('kill -9', extra, async (t) => {
    if (server === undefined) return
    const write = async (n: number) => {
      const client = new MongoClient(server.url, { serverSelectionTimeoutMS: 10_000 })
      try {
        const things = client.db('test').collection<{ n: number }>('things')
        await things.insertOne({ n })
        return (await things.find().sort({ n: 1 }).toArray()).map((thing) => thing.n)
      } finally {
        await client.close()
      }
    }
    t.same(await write(1), [1])
    const { pid, port } = server
    await server.kill()
    t.ok(isGone(pid))
    await server.restart()
    t.equal(server.port, port)
    t.same(await write(2), [1, 2])
    await server.stop()
    t.ok(isGone(server.pid))
  })
})

t.test('in CI no MongoDB is a failure; elsewhere undefined', async (t) => {
  const { CI, POOL_TEST_MONGO_URL, POOL_TEST_REDIS_URL } = process.env
  const before = Object.entries({ CI, POOL_TEST_MONGO_URL, POOL_TEST_REDIS_URL })
  t.teardown(() => { for (const [name, value] of before) if (value === undefined) delete process.env[name]; else process.env[name] = value })
  for (const [name] of before) delete process.env[name]
  const nothing = await t.mockImport<typeof import('./services.js')>('./services.js', {
    './find.mjs': { findMongod: () => undefined, findFerretdb: () => undefined, findRedis: () => undefined, which: () => undefined },
  })
  t.equal(await nothing.startMongo(t), undefined)
  await t.rejects(nothing.startRedis(t), /npm run pretest/)
  process.env.CI = 'true'
  await t.rejects(nothing.startMongo(t), /npm run pretest/)
})

t.test('a runner that is killed leaves nothing behind', { skip: !onLinux && 'needs setpriv' }, async (t) => {
  const folder = t.testdir({})
  const log = join(folder, 'log')
  const services = fileURLToPath(new URL('services.ts', import.meta.url))
  const script = `const { startRedis } = await import(${JSON.stringify(services)}); await startRedis({ teardown () {} }, { own: true }); setInterval(() => {}, 1000)`
  const child = spawn(process.execPath, [...process.execArgv, '--input-type=module', '-e', script], {
    stdio: ['ignore', 'inherit', 'inherit'],
    env: { ...process.env, POOL_TEST_RUN_LOG: log, TMPDIR: folder },
  })
  t.teardown(() => child.kill('SIGKILL'))
  await until(() => existsSync(log) || child.exitCode !== null, { timeout: 30_000, what: 'the child has started a Redis' })
  const { pid } = JSON.parse(readFileSync(log, 'utf8')) as { pid: number }
  t.notOk(isGone(pid))
  child.kill('SIGKILL')
  await until(() => isGone(pid), { what: 'its Redis is gone' })
  t.equal(child.exitCode, null)
})

t.test('each server is noted for the summary', async (t) => {
  const noted = ownLog(t)
  const server = await startRedis(t, { own: true })
  noteServer('a double', '', 'ours')
  t.match(noted(), [{ kind: 'Redis', version: /^\d+\./, pid: server.pid }, { kind: 'a double', how: 'ours' }])
})
