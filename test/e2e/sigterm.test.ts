import { once } from 'node:events'
import { connect } from 'node:net'
import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { startMongoDouble } from '../doubles/mongo-wire.js'
import { startRedis } from '../support/services.js'
import { until } from '../support/until.js'
import { Program } from './child.js'
import { ask, keepAliveAgent, refusal } from './client.js'

const requests = 200

/** What is open at a server, of the program under test. */
type Count = () => number | Promise<number>

async function redisCase (t: Test, more: object = {}): Promise<{ program: Program, count: Count }> {
  const server = await startRedis(t)
  const control = new Redis(server.port, server.host)
  t.teardown(() => { control.disconnect() })
  const connectionName = `sigterm-${process.pid}`
  const count = async () => String(await control.client('LIST')).split('\n')
    .filter((line) => line.includes(` name=${connectionName} `)).length
  const program =
    new Program(t, 'sigterm.mjs', {
      kind: 'redis', options: { backend: 'redis', url: server.url, max: 10, connection: { connectionName }, ...more },
    })
  return { program, count }
}

async function mongoCase (t: Test, more: object = {}): Promise<{ program: Program, count: Count }> {
  const double = await startMongoDouble(t)
  double.delay('find', 20)
  const program =
    new Program(t, 'sigterm.mjs',
      { kind: 'mongodb', options: { backend: 'mongodb', url: double.url, max: 10, ...more } })
  return { program, count: () => double.connections.all }
}

/** Says SIGTERM, and looks at what is left when the app is closed and the process still lives. */
async function terminate (t: Test, program: Program, count: Count, meanwhile: () => Promise<unknown> = async () => {}) {
  const began = performance.now()
  program.kill('SIGTERM')
  const during = meanwhile()
  const [closed] =
    await Promise.all([program.message<Record<string, { used: number, idle: number, creating: number }>>('closed'),
      during])
  // A server hears of a close a moment after it; the process still lives, so it was the pool that closed them.
  await until(async () => await count() === 0, { what: 'no connection of ours is open, after close() has resolved' })
  program.send({ go: true })
  const { code, signal, at } = await program.end()
  t.comment(`measured: from SIGTERM to the exit ${Math.round(at - began)} ms`)
  return { code, signal, late: await program.message<boolean>('late'), stats: closed.db! }
}

// Beside the pool's: the shared client, or the driver's monitors.
for (const [name, begin, others] of [['Redis', redisCase, 1], ['the double of MongoDB', mongoCase, 2]] as const) {
  t.test(`SIGTERM during ${requests} requests over keep-alive connections on a pool of 10 (${name}): all are answered, new ones refused, nothing stays open`, async (t) => {
    const { program, count } = await begin(t)
    const port = await program.message<number>('port')
    const agent = keepAliveAgent(t)
    const one = (path: string) => ask({ port, path, agent })
    // All connections are open, and have been used, before.
    await Promise.all(Array.from({ length: requests }, () => one('/warm')))
    // One that stays idle, and one on which a second request follows the first.
    const [idle, busy] = await Promise.all([raw(t, port), raw(t, port)])
    idle.socket.write('GET /warm HTTP/1.1\r\nhost: a\r\n\r\n')
    await until(() => idle.text.includes('warm'))
    busy.socket.write('GET /work HTTP/1.1\r\nhost: a\r\n\r\n')
    const answers = Array.from({ length: requests - 1 }, () => one('/work'))
    await program.message('arrived')
    await until(async () => await count() >= 10, { what: 'connections are open' })

    let peak = 0
    const { code, signal, late, stats } = await terminate(t, program, count, async () => {
      await until(() => program.stdout.includes('pool drains'), { what: 'the pool drains' })
      busy.socket.write('GET /work HTTP/1.1\r\nhost: a\r\n\r\n')
      await until(async () => await refusal(port) === 'ECONNREFUSED', { what: 'a new connection is refused' })
      await until(() => idle.closed, { what: 'the idle connection is closed' })
      // Redis looks for blocked commands whose time is over when it has something to do, else ten times a second.
      await until(async () => {
        peak = Math.max(peak, await count())
        return program.messages.some((message) => 'closed' in message)
      }, { what: 'the app is closed' })
    })

    const results = await Promise.allSettled(answers)
    t.same([...new Set(results.map((result) => result.status === 'fulfilled'
      ? result.value.status
      : String(result.reason)))], [200])
    await until(() => busy.closed)
    t.equal(busy.text.match(/HTTP\/1\.1 200/g)?.length, 1,
      'the one that was accepted is answered, and the one that came later is not served')
    t.same({ code, signal }, { code: 0, signal: null })
    t.notOk(late, 'the app was closed before a timer of 1 s, set at the last answer')
    t.ok(peak <= 10 + others, `at most ${peak} connections meanwhile`)
    t.match(stats, { used: 0, idle: 0, creating: 0 })
  })

  t.test(`SIGTERM with nothing under way (${name}) ends at once, with 0`, async (t) => {
    const { program, count } = await begin(t)
    const port = await program.message<number>('port')
    const agent = keepAliveAgent(t)
    t.equal((await ask({ port, path: '/work', agent })).status, 200)
    const { code, late } = await terminate(t, program, count)
    t.equal(code, 0)
    t.notOk(late, 'the app was closed before a timer of 1 s, set at the signal')
  })

  t.test(`SIGTERM with a handler that never ends (${name}): it is cut off at closeTimeout, its route and request are in the log, and the exit code is 0`, async (t) => {
    const { program, count } = await begin(t, { closeTimeout: 500 })
    const port = await program.message<number>('port')
    const agent = keepAliveAgent(t)
    const stuck = Promise.allSettled([ask({ port, path: '/never', agent })])
    const id = await program.message<string>('never')
    const { code, late } = await terminate(t, program, count)
    t.equal(code, 0)
    t.notOk(late, 'the app was closed before a timer of closeTimeout + 1 s, set at the signal')
    const line = program.log.find(({ msg }) => String(msg).startsWith('pool closed'))
    t.match(line, { msg: /leases still out: .* by GET \/never/, })
    t.ok(String(line?.msg).includes(`(${id})`))
    t.match(await stuck, [{ status: 'rejected' }], 'its client is not left waiting')
  })
}

interface Raw { readonly socket: ReturnType<typeof connect>, text: string, closed: boolean }

async function raw (t: Test, port: number): Promise<Raw> {
  const socket = connect(port, '127.0.0.1')
  t.teardown(() => { socket.destroy() })
  const one: Raw = { socket, text: '', closed: false }
  socket.setEncoding('utf8').on('data', (text: string) => { one.text += text })
  // A reset is an end too.
  socket.on('error', () => { one.closed = true })
  socket.on('close', () => { one.closed = true })
  await once(socket, 'connect')
  return one
}
