import { spawn } from 'node:child_process'
import { existsSync, readFileSync, readdirSync, readlinkSync } from 'node:fs'
import { connect } from 'node:net'
import type { Socket } from 'node:net'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { MongoClient } from 'mongodb'
import { createConnection } from 'mysql2/promise'
import pg from 'pg'
import t from 'tap'
import type { Test } from 'tap'
import { clearPostgres, findPgbouncer, runs } from './find.mjs'
import {
  needsOwn, noteServer, startMariadb, startMongo, startPgBouncer, startPostgres, startRedis,
} from './services.js'
import type { Server, Teardown } from './services.js'
import { event, until } from './until.js'

const onLinux = process.platform === 'linux'

const isGone = (pid: number | undefined): boolean => !runs(pid!)

/** Those that have their current folder in there, as every server has. */
function processesIn (folder: string): string[] {
  return readdirSync('/proc').filter((pid) => {
    try {
      return /^\d+$/.test(pid) && readlinkSync(`/proc/${pid}/cwd`).startsWith(folder)
    } catch {
      return false // It has gone meanwhile.
    }
  })
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

function setEnvironment (t: Teardown, wanted: Record<string, string | undefined>): void {
  const before = Object.keys(wanted).map((name) => [name, process.env[name]] as const)
  const set = (name: string, value: string | undefined) => {
    if (value === undefined) delete process.env[name]
    else process.env[name] = value
  }
  t.teardown(() => { for (const [name, value] of before) set(name, value) })
  for (const [name, value] of Object.entries(wanted)) set(name, value)
}

/** What this test notes is no part of the run's summary. @returns what was noted */
function ownLog (t: Test): () => unknown[] {
  const log = join(t.testdir({}), 'log')
  setEnvironment(t, { POOL_TEST_RUN_LOG: log })
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
  setEnvironment(t, { POOL_TEST_REDIS_URL: url })
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

interface Session { ask (sql: string): Promise<unknown[][]>, end (): Promise<void> }

async function postgresSession (t: Teardown, url: string): Promise<Session> {
  const client = new pg.Client({ connectionString: url })
  client.on('error', () => {}) // Its server is killed, which is what these tests are about.
  t.teardown(async () => await client.end())
  await client.connect()
  return {
    ask: async (sql) => (await client.query<unknown[]>({ text: sql, rowMode: 'array' })).rows,
    end: async () => await client.end(),
  }
}

async function mariadbSession (t: Teardown, url: string): Promise<Session> {
  const connection = await createConnection({ uri: url, rowsAsArray: true })
  connection.on('error', () => {}) // As above.
  t.teardown(() => connection.destroy())
  return {
    ask: async (sql) => (await connection.query(sql))[0] as unknown as unknown[][],
    end: async () => await connection.end(),
  }
}

/** Asks a PostgreSQL whether it has TLS: the first byte that it says. */
const sslRequest = Buffer.from([0, 0, 0, 8, 4, 210, 22, 47])

const databases = [
  {
    name: 'PostgreSQL',
    start: startPostgres,
    open: postgresSession,
    hello: sslRequest,
    setting: ['-c',
      'max_connections=9'],
    show: 'SHOW max_connections',
    url: 'POOL_TEST_POSTGRES_URL'
  },
  { name: 'MariaDB', start: startMariadb, open: mariadbSession, hello: Buffer.of(), setting: ['--max-connections=11'], show: 'SELECT @@max_connections', url: 'POOL_TEST_MARIADB_URL' },
]

for (const { name, start, open, hello, setting, show, url } of databases) {
  t.test(`a ${name} of our own`, async (t) => {
    const pids: Array<number | undefined> = []
    await t.test('is there, has what it acknowledged after a kill, is restarted on the same port, and stopped', async (t) => {
      const server = await start(t, { own: true })
      const rows = async () => (await (await open(t, server.url)).ask('SELECT n FROM things ORDER BY n')).flat()
      const { port } = server
      pids.push(server.pid)
      const one = await open(t, server.url)
      await one.ask('CREATE TABLE things (n int)')
      await one.ask('INSERT INTO things VALUES (1)')
      await server.kill()
      t.ok(isGone(server.pid))
      await t.rejects(one.ask('SELECT 1'), 'its clients are cut off')
      await server.restart()
      pids.push(server.pid)
      t.equal(server.port, port)
      t.same(await rows(), [1])
      const two = await open(t, server.url)
      await two.ask('INSERT INTO things VALUES (2)')
      await server.stop()
      t.ok(isGone(server.pid), 'although it had clients')
      await server.restart()
      pids.push(server.pid)
      t.same(await rows(), [1, 2])
      await t.rejects(server.restart(), /still runs/)
    })
    t.equal(new Set(pids).size, 3)
    t.ok(pids.every(isGone), 'nothing is left')
  })

  t.test(`a paused ${name} accepts and says nothing, until it is resumed; and is gone at the end even when paused`, async (t) => {
    let server: Server | undefined
    await t.test('paused', async (t) => {
      server = await start(t, { own: true })
      server.pause()
      if (onLinux) await until(() => /^State:\s+T/m.test(readFileSync(`/proc/${server?.pid}/status`, 'utf8')))
      const me = talk(t, server)
      await event(me.socket, 'connect')
      me.socket.write(hello)
      t.equal(me.heard, '')
      server.resume()
      await until(() => me.heard !== '')
      server.pause()
    })
    t.ok(isGone(server?.pid))
  })

  t.test(`several ${name} start side by side, each with data of its own`, async (t) => {
    const servers = await Promise.all(Array.from({ length: 3 }, () => start(t, { own: true })))
    t.equal(new Set(servers.map(({ port }) => port)).size, 3)
    for (const server of servers) await (await open(t, server.url)).ask('CREATE TABLE things (n int)')
  })

  t.test(`arguments go to ${name}, and a wrong one is told`, async (t) => {
    const session = await open(t, (await start(t, { args: setting })).url)
    t.match(String((await session.ask(show))[0]?.[0]), setting.at(-1)!.split('=')[1])
    await t.rejects(start(t, { args: ['--no-such-option=1'] }), /no.such.option/)
  })

  t.test(`a ${name} that was given as a URL is used and never touched`, async (t) => {
    const noted = ownLog(t)
    const own = await start(t, { own: true })
    setEnvironment(t, { [url]: own.url })
    const server = await start(t)
    t.equal(server.url, own.url)
    t.equal(server.port, own.port)
    t.equal(server.pid, undefined)
    t.type(needsOwn(server).skip, 'string')
    await t.rejects(server.kill(), /not ours/)
    t.not((await start(t, { own: true })).url, own.url, 'a test that must kill gets one of its own')
    t.match(noted(),
      [{ kind: name, version: /^\d+\./, pid: own.pid }, { kind: name, version: /^\d+\./, how: url, pid: undefined }, { kind: name, pid: Number }])
  })
}

t.test('a killed PostgreSQL leaves no process, not even a busy one, and no shared memory', { skip: !onLinux && 'looks into /proc' }, async (t) => {
  const server = await startPostgres(t, { own: true })
  const busy = await postgresSession(t, server.url)
  const pids = (await busy.ask('SELECT pid FROM pg_stat_activity')).flat() as number[]
  t.ok(pids.length > 3)
  const [[me]] = await busy.ask('SELECT pg_backend_pid()') as [[number]]
  const ended = t.rejects(busy.ask('DO $$ BEGIN LOOP END LOOP; END $$'))
  await until(() => /^State:\s+R/m.test(readFileSync(`/proc/${me}/status`, 'utf8')), { what: 'it is busy' })
  const memory = () => readFileSync('/proc/sysvipc/shm', 'utf8').split('\n').map((line) => line.trim().split(/\s+/)[4])
    .filter((creator) => creator === String(server.pid))
  t.equal(memory().length, 1)
  await server.kill()
  t.same(pids.filter((pid) => !isGone(pid)), [])
  t.same(memory(), [])
  await ended
})

t.test('a PostgreSQL with SCRAM takes the password of its URL, and no other', async (t) => {
  const server = await startPostgres(t, { scram: true })
  const session = await postgresSession(t, server.url)
  t.match(await session.ask('SELECT rolpassword FROM pg_authid WHERE rolname = current_user'), [[/^SCRAM-SHA-256/]])
  const url = new URL(server.url)
  url.password = 'wrong'
  await t.rejects(postgresSession(t, url.href), { code: '28P01' })
})

t.test('the user of MariaDB makes databases, sees and kills its own connections, and can not get in over the limit', async (t) => {
  // Fewer than 10 there can't be.
  const server = await startMariadb(t, { args: ['--max-connections=10'] })
  const one = await mariadbSession(t, server.url)
  await one.ask('CREATE DATABASE other')
  const other = await mariadbSession(t, server.url.replace(/test$/, 'other'))
  const [[id]] = await other.ask('SELECT connection_id()') as [[number]]
  t.ok((await one.ask('SHOW PROCESSLIST')).some((row) => row[0] === id))
  await one.ask(`KILL ${id}`)
  await t.rejects(other.ask('SELECT 1'))
  const more = await Promise.allSettled(Array.from({ length: 10 }, () => mariadbSession(t, server.url)))
  const refused = more.flatMap((result) => result.status === 'rejected' ? [result.reason as unknown] : [])
  t.ok(refused.length > 0, 'as for an ordinary user: for some others there is one place more')
  t.match(refused, refused.map(() => ({ code: 'ER_CON_COUNT_ERROR' })))
})

t.test('a PgBouncer before a PostgreSQL', { skip: findPgbouncer() === undefined && !process.env.CI && 'no pgbouncer' }, async (t) => {
  let bouncer: Server | undefined
  await t.test('shares its few connections, can be killed, restarted and paused, and survives its server', async (t) => {
    const postgres = await startPostgres(t, { scram: true })
    bouncer = await startPgBouncer(t, postgres, { ini: { default_pool_size: 1 } })
    if (bouncer === undefined) throw new Error('it is there')
    const { url, port } = bouncer
    const pid = async (session: Session) => (await session.ask('SELECT pg_backend_pid()'))[0]?.[0]
    const [one, two] = [await postgresSession(t, url), await postgresSession(t, url)]
    t.equal(await pid(one), await pid(two), 'transaction mode')
    const direct = await postgresSession(t, postgres.url)
    t.same(await direct.ask("SELECT count(*)::int FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"), [[1]])
    await one.end()
    await two.end()

    const first = bouncer.pid
    await bouncer.kill()
    t.ok(isGone(first))
    await bouncer.restart()
    t.equal(bouncer.port, port)
    t.type(await pid(await postgresSession(t, url)), 'number')

    await postgres.kill()
    await postgres.restart()
    const answer = async () => {
      const session = await postgresSession(t, url)
      // Refused until PgBouncer has noticed that its server is back: asked again.
      return await pid(session).catch(() => undefined)
    }
    await until(answer, { what: 'PgBouncer has found its server again' })

    bouncer.pause()
    const me = talk(t, bouncer)
    await event(me.socket, 'connect')
    me.socket.write(sslRequest)
    bouncer.resume()
    await until(() => me.heard === 'N')
    await bouncer.stop()
    t.ok(isGone(bouncer.pid))
  })
  const postgres = await startPostgres(t)
  const session = await startPgBouncer(t, postgres, { mode: 'session' })
  const console = await postgresSession(t, session!.url.replace(/postgres$/, 'pgbouncer'))
  t.match(await console.ask('SHOW CONFIG'), /pool_mode,session/)
  await t.rejects(startPgBouncer(t, postgres, { ini: { no_such_setting: 1 } }), /no_such_setting/)
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

t.test('a server that is missing is a failure, but outside of CI neither MongoDB nor PgBouncer is', async (t) => {
  const postgres = await startPostgres(t)
  setEnvironment(t,
    {
      CI: undefined,
      POOL_TEST_MONGO_URL: undefined,
      POOL_TEST_REDIS_URL: undefined,
      POOL_TEST_POSTGRES_URL: undefined,
      POOL_TEST_MARIADB_URL: undefined
    })
  const missing = () => undefined
  const nothing = await t.mockImport<typeof import('./services.js')>('./services.js', {
    './find.mjs': { clearPostgres, runs, which: missing, findRedis: missing, findPostgres: missing, findPgbouncer: missing, findMariadb: missing, findMongod: missing, findFerretdb: missing },
  })
  t.equal(await nothing.startMongo(t), undefined)
  t.equal(await nothing.startPgBouncer(t, postgres), undefined)
  for (const start of [nothing.startRedis, nothing.startPostgres, nothing.startMariadb]) {
    await t.rejects(start(t),
      /npm run pretest/)
  }
  process.env.CI = 'true'
  await t.rejects(nothing.startMongo(t), /npm run pretest/)
  await t.rejects(nothing.startPgBouncer(t, postgres), /npm run pretest/)
})

t.test('two files of a run that start servers at once share the data these begin with; killed, they leave none running', { skip: !onLinux && 'needs setpriv' }, async (t) => {
  const folder = t.testdir({})
  const log = join(folder, 'log')
  const services = fileURLToPath(new URL('services.ts', import.meta.url))
  const script = `
    const { startMariadb, startPostgres, startRedis } = await import(${JSON.stringify(services)})
    await Promise.all([startRedis, startPostgres, startMariadb].map((start) => start({ teardown () {} }, { own: true })))
    setInterval(() => {}, 1000)`
  const children = [1, 2].map(() => spawn(process.execPath, [...process.execArgv, '--input-type=module', '-e', script], {
    stdio: ['ignore', 'inherit', 'inherit'],
    env: { ...process.env, POOL_TEST_RUN_LOG: log, TMPDIR: folder },
  }))
  t.teardown(() => { for (const child of children) child.kill('SIGKILL') })
  // A line that is being written has no end yet.
  const noted = () => existsSync(log)
    ? readFileSync(log, 'utf8').split('\n').slice(0, -1).map((line) => JSON.parse(line) as { pid: number })
    : []
  const ended = () => children.some((child) => child.exitCode !== null)
  await until(() => noted().length === 6 || ended(), { timeout: 60_000, what: 'both have started their servers' })
  t.notOk(ended())
  const pids = noted().map(({ pid }) => pid)
  t.same(pids.filter(isGone), [])
  t.match(readdirSync(folder).filter((name) => name.startsWith('template-')).sort(),
    [/^template-mariadb-[\d.]+$/, /^template-postgresql-[\d.]+$/])
  for (const child of children) child.kill('SIGKILL')
  // The processes that PostgreSQL has for its clients too, which go when they notice.
  await until(() => pids.every(isGone) && processesIn(folder).length === 0, { what: 'their servers are gone' })
  // As run.mjs does.
  for (const name of readdirSync(folder)) clearPostgres(join(folder, name, 'data'))
  t.notOk(ended())
})

t.test('each server is noted for the summary', async (t) => {
  const noted = ownLog(t)
  const server = await startRedis(t, { own: true })
  noteServer('a double', '', 'ours')
  t.match(noted(), [{ kind: 'Redis', version: /^\d+\./, pid: server.pid }, { kind: 'a double', how: 'ours' }])
})
