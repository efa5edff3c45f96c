// `npm run bench:fastify`: what the plugin costs a request, beside hooks written by hand and other plugins. Prints
// Markdown, and puts it into FASTIFY.md.
//
//   node --import @tapjs/typescript/import test/bench/fastify.mjs [--rounds 15] [--only process,socket] [--quick]
//
// --only names some of import, process and socket.
//
// The built package is measured: build first. BENCH_OURS names the folder of another one (with package.json and dist),
// to compare builds. --only and --quick (3 short rounds) print, and write nothing.
//
// In process: Fastify's own routing, with Node's own request and response on a socket that leads nowhere, ten requests
// in each turn of the event loop; one process for each round and app, so that no app's inline caches touch another's,
// and the apps of a round take turns. Over a socket: a server process for each app, and a client process; each round
// asks every server for the same number of requests, one server after the other. Both count CPU time of the process
// that serves. Ratios and differences are taken within a round, and their median is told, with their range.
import { execFileSync, fork } from 'node:child_process'
import { once } from 'node:events'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { IncomingMessage, ServerResponse } from 'node:http'
import { connect } from 'node:net'
import { cpus, loadavg } from 'node:os'
import { join } from 'node:path'
import { Duplex } from 'node:stream'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import { home, inProcess, max, overSocket, peers } from './fastify-apps.mjs'
import { importReport } from './import.mjs'

const { values: args, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: 'string' },
    only: { type: 'string' },
    quick: { type: 'boolean', default: false },
    /** What this process is: 'process', 'server' or 'client'; none: the one that starts the others. */
    role: { type: 'string' },
  },
})

const ours = () => import(pathToFileURL(join(process.env.BENCH_OURS, 'dist/index.js')).href)

/** Of this process so far, in microseconds. */
function cpu () {
  const { user, system } = process.cpuUsage()
  return user + system
}

function median (numbers) {
  const sorted = numbers.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

// --- In process ------------------------------------------------------------------------------------------------------

/** Takes what is written, and answers nothing. */
class Nowhere extends Duplex {
  _read () { /* Nothing comes. */ }
  _write (_chunk, _encoding, done) { done() }
  _writev (_chunks, done) { done() }
}

/**
 * Asks an app, one request after the other. What Node's server does around a request is done here: it is the same for
 * all.
 */
class Asker {
  #app
  #socket = new Nowhere()
  #left = 0
  #turn = 0
  #done
  #closed = (response) => {
    response.destroyed = true
    response._closed = true
    response.emit('close')
    this.#next()
  }

  constructor (app) {
    this.#app = app
  }

  /** Resolves to the CPU time of one, in ns. */
  async ask (requests) {
    const before = cpu()
    await new Promise((resolve) => {
      this.#left = requests
      this.#done = resolve
      this.#next()
    })
    return (cpu() - before) / requests * 1000
  }

  #next () {
    if (this.#left-- === 0) return this.#done()
    // A server's turn of the event loop has a few requests, too.
    if (++this.#turn % 10 === 0) setImmediate(() => { this.#send() })
    else this.#send()
  }

  #send () {
    const socket = this.#socket
    const request = new IncomingMessage(socket)
    request.method = 'GET'
    request.url = '/'
    request.httpVersionMajor = request.httpVersionMinor = 1
    request.httpVersion = '1.1'
    request.rawHeaders = ['Host', '127.0.0.1', 'Connection', 'keep-alive']
    request.complete = true
    const response = new ServerResponse(request)
    response.shouldKeepAlive = true
    response.assignSocket(socket)
    response.on('finish', () => {
      if (response.statusCode !== 200) throw new Error(`answered ${response.statusCode}`)
      response.detachSocket(socket)
      process.nextTick(this.#closed, response)
    })
    this.#app.routing(request, response)
  }
}

/** One app's median slice. */
async function measureInProcess (name, { slices, requests, warm }) {
  const app = await inProcess[name](await ours())
  await app.ready()
  const asker = new Asker(app)
  await asker.ask(warm)
  const figures = []
  for (let slice = 0; slice < slices; slice++) figures.push(await asker.ask(requests))
  return median(figures)
}

// --- Over a socket ---------------------------------------------------------------------------------------------------

/** Pools have 10 connections: with 8 requests in flight nobody waits, but for a reset; with 64 most do. */
const loads = [
  { database: 'PostgreSQL', inFlight: 8 },
  { database: 'PostgreSQL', inFlight: 64 },
  { database: 'PostgreSQL, three statements in a transaction', inFlight: 8 },
  { database: 'Redis', inFlight: 8 },
  { database: 'Redis', inFlight: 64 },
]

/** Tells its port, and its CPU time whenever it is asked. */
async function serve (database, name, servers) {
  const app = await overSocket[database][name](await ours(), JSON.parse(servers))
  await app.listen({ port: 0, host: '127.0.0.1' })
  process.on('message', () => { process.send({ cpu: cpu() }) })
  process.on('disconnect', () => { process.exit() })
  process.send({ port: app.server.address().port })
}

const question = 'GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: keep-alive\r\n\r\n'

/** Asks `requests` times in all, each connection as soon as it has its answer. */
async function load (port, requests, connections) {
  let left = requests
  await Promise.all(Array.from({ length: connections }, async () => {
    const socket = connect({ port, host: '127.0.0.1', noDelay: true })
    let answer = ''
    let length
    const next = () => {
      answer = ''
      if (left-- > 0) socket.write(question)
      else socket.end()
    }
    socket.setEncoding('latin1').on('data', (chunk) => {
      answer += chunk
      if (length === undefined) {
        const end = answer.indexOf('\r\n\r\n')
        if (end < 0) return
        // All answers of a server are as long as the first.
        length = end + 4 + Number(/content-length: (\d+)/i.exec(answer)[1])
      }
      if (answer.length < length) return
      if (!answer.startsWith('HTTP/1.1 200')) socket.destroy(new Error(answer))
      else next()
    })
    await once(socket, 'connect')
    next()
    await once(socket, 'close')
  }))
}

async function beClient () {
  process.on('disconnect', () => { process.exit() })
  process.on('message', async ({ port, requests, connections }) => {
    await load(port, requests, connections)
    process.send({})
  })
  process.send({})
}

/** A process of ours with a role. `ask` resolves to its next message. */
class Helper {
  #child

  static async start (role, ...positionals) {
    const helper = new Helper()
    helper.#child =
      fork(fileURLToPath(import.meta.url), ['--role', role, '--', ...positionals],
        { execArgv: [], stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
    return Object.assign(helper, { told: await helper.#answer() })
  }

  async ask (message = {}) {
    this.#child.send(message)
    return await this.#answer()
  }

  async #answer () {
    const gone = new AbortController()
    const exit = (code, signal) => {
      gone.abort(new Error(`a helper process ended: ${this.#child.spawnargs.slice(2).join(' ')}: ${code ?? signal}`))
    }
    this.#child.once('exit', exit)
    try {
      const [message] =
        await once(this.#child, 'message', { signal: AbortSignal.any([gone.signal, AbortSignal.timeout(120_000)]) })
      return message
    } catch (error) {
      throw error.cause ?? error
    } finally {
      this.#child.off('exit', exit)
    }
  }

  end () {
    if (this.#child.connected) this.#child.disconnect()
  }
}

/** In microseconds of the server's CPU for each request, by load, app and round. */
async function measureOverSocket (rounds, requests) {
  const { startPostgres, startRedis } = await import('../support/services.js')
  const teardowns = []
  const t = { teardown: (fn) => { teardowns.unshift(fn) } }
  const helpers = []
  const helper = async (...about) => {
    const started = await Helper.start(...about)
    helpers.push(started)
    return started
  }
  try {
    const addresses = JSON.stringify({ postgres: (await startPostgres(t)).url, redis: (await startRedis(t)).url })
    const client = await helper('client')
    const figures = new Map()
    for (const { database, inFlight } of loads) {
      const servers = []
      for (const name of Object.keys(overSocket[database])) {
        servers.push({
          name, server: await helper('server', database, name, addresses), costs: [],
        })
      }
      const one = async ({ server, costs }) => {
        const before = await server.ask()
        await client.ask({ port: server.told.port, requests, connections: inFlight })
        const after = await server.ask()
        costs.push((after.cpu - before.cpu) / requests)
      }
      // A server where requests wait is warm only after some 20,000.
      for (let i = 0; i < 8; i++) for (const each of servers) await one(each)
      for (const { costs } of servers) costs.length = 0
      for (let round = 0; round < rounds; round++) {
        for (let i = 0; i < servers.length; i++) await one(servers[(round + i) % servers.length])
      }
      figures.set(`${database}, ${inFlight} requests in flight`,
        Object.fromEntries(servers.map(({ name, costs }) => [name, costs])))
      for (const { server } of servers) server.end()
    }
    return figures
  } finally {
    for (const one of helpers) one.end()
    for (const fn of teardowns) await fn()
  }
}

// --- The report ------------------------------------------------------------------------------------------------------

const row = (cells) => `| ${cells.join(' | ')} |`
/** [median, least, most] */
const spread = (numbers) => [median(numbers), Math.min(...numbers), Math.max(...numbers)]
const told = (numbers, digits) => {
  const [middle, least, most] = spread(numbers).map((number) => number.toFixed(digits))
  return `${middle} [${least} to ${most}]`
}

const verdict = (limit, numbers) => median(numbers) <= limit
  ? 'met'
  : `**missed** by ${Math.max(1, Math.round((median(numbers) / limit - 1) * 100))} %`

const about = [
  "Fastify's own routing, with a request and a response of Node's and a socket that leads nowhere; no logger, no other hook. The apps:",
  '',
  '- `bare`: nothing. `hooks`: five hooks that do nothing, as many as the plugin has. `hooks of a pair`: two, `onRequest` and `onResponse`.',
  '- `pair`: written by hand, in callbacks: `onRequest` takes, `onResponse` and a listener for the `close` of the response give back. Over an array of one',
  '  connection, without a promise, a lease or a limit; and over our engine.',
  '- `one pool`, `two pools`, `5 pools`, `20 pools`: the plugin, each with one idle connection, and a handler that looks at it. `pools: false`: a route without any.',
]

function processReport (rounds) {
  const of = (name) => rounds.map((round) => round[name])
  const above = (name, base) => rounds.map((round) => round[name] - round[base])
  const lines = [
    row(['app', 'ns of CPU, whole request', 'above `bare`', 'whole request, to `pair, array`']),
    row(['---', '---:', '---:', '---:']),
  ]
  for (const name of Object.keys(inProcess)) {
    lines.push(row([`\`${name}\``, median(of(name)).toFixed(0), name === 'bare' ? '' : told(above(name, 'bare'), 0),
      told(rounds.map((round) => round[name] / round['pair, array']), 2)]))
  }
  const cost = (a, b) => rounds.map((round) => (round[a] - round.bare) / (round[b] - round.bare))
  const targets = [
    ['one pool, to the pair by hand over an array (of what both cost above `bare`)', 1.3,
      cost('one pool', 'pair, array')],
    ['one pool, to the pair by hand over our engine (the same)', 1.1, cost('one pool', 'pair, engine')],
    ['one pool, to the pair by hand over an array (whole request)', 1.3,
      rounds.map((round) => round['one pool'] / round['pair, array'])],
    ['two pools, to one pool (of what both cost above `bare`)', 1.6, cost('two pools', 'one pool')],
    ['each pool more, from 1 to 20, us', 0.15, rounds.map((round) => (round['20 pools'] - round['one pool']) / 19000)],
    ['`pools: false`, above as many hooks that do nothing, ns', 80, above('pools: false', 'hooks')],
  ]
  return [
    ...lines,
    '',
    row(['target', 'at most', 'measured', '']),
    row(['---', '---:', '---:', '---']),
    ...targets.map(([name, limit, numbers]) =>
      row([name, limit, told(numbers, limit > 10 ? 0 : 2), verdict(limit, numbers)])),
  ].join('\n')
}

/** What we want of loads over a socket: [load, app, to which app, at most]. */
const socketTargets = [
  ...[8, 64].flatMap((inFlight) => [['none', 0.95], ['transaction', 0.95], ['session', 1.4], ['joined', 1.2]]
    .map(([reset, limit]) => [`PostgreSQL, ${inFlight} requests in flight`, `ours, \`reset: '${reset}'\``, undefined, limit])),
  ['PostgreSQL, three statements in a transaction, 8 requests in flight',
    "ours, `transaction: true`, `reset: 'transaction'`", undefined, 1.1],
  ['Redis, 64 requests in flight', 'ours, exclusive, `request.cache`', 'generic-pool of ioredis, exclusive', 0.95],
]

function socketTargetsReport (loads) {
  return [
    row(['target', 'at most', 'measured', '']),
    row(['---', '---:', '---:', '---']),
    ...socketTargets.map(([load, name, base, limit]) => {
      const figures = loads.get(load)
      const beside = base ?? Object.keys(figures)[1]
      const ratios = figures[name].map((us, round) => us / figures[beside][round])
      return row([`${load}: ${name}, to ${beside}`, limit, told(ratios, 2), verdict(limit, ratios)])
    }),
  ].join('\n')
}

/** Beside the second app: the first has no database. */
function socketReport (load, figures) {
  const base = Object.keys(figures)[1]
  const lines = [row([load, 'us of CPU, server', `above ${base}`, 'ratio']), row(['---', '---:', '---:', '---:'])]
  for (const [name, costs] of Object.entries(figures)) {
    const cells = name === base
      ? ['', '1']
      : [told(costs.map((us, round) => us - figures[base][round]), 1),
          told(costs.map((us, round) => us / figures[base][round]), 2)]
    lines.push(row([name, median(costs).toFixed(1), ...cells]))
  }
  return lines.join('\n')
}

const peerVersions = Object.entries(peers).map(([name, version]) => `${name} ${version}`).join(', ')

/** Does nothing where they are there in these versions. */
function installPeers () {
  const installed = ([name, version]) => {
    const file = join(home, 'node_modules', name, 'package.json')
    return existsSync(file) && JSON.parse(readFileSync(file, 'utf8')).version === version
  }
  if (Object.entries(peers).every(installed)) return
  mkdirSync(home, { recursive: true })
  writeFileSync(join(home, 'package.json'), JSON.stringify({ private: true, dependencies: peers }, null, 2))
  execFileSync('npm', ['install', '--prefix', home, '--no-audit', '--no-fund', '--ignore-scripts'],
    { stdio: ['ignore', 'ignore', 'inherit'] })
}

/**
 * The package as it is built now, or the run would measure two of them when somebody builds again meanwhile. It is the
 * caller's to remove.
 */
function copyOurs () {
  const root = fileURLToPath(new URL('../..', import.meta.url))
  if (!existsSync(join(root, 'dist/index.js'))) throw new Error('there is no dist: npm run build')
  const copy = mkdtempSync(join(home, 'ours-'))
  for (const name of ['package.json', 'dist']) cpSync(join(root, name), join(copy, name), { recursive: true })
  return copy
}

async function main () {
  const rounds = Number(args.rounds ?? (args.quick ? 3 : 15))
  if (!Number.isInteger(rounds) ||
    rounds < 1) throw new Error(`--rounds ${args.rounds}: a number of rounds, at least 1`)
  const parts = (args.only ?? 'import,process,socket').split(',')
  const begun = performance.now()
  const load = loadavg().map((number) => number.toFixed(1)).join(', ')
  installPeers()
  const copy = process.env.BENCH_OURS === undefined ? copyOurs() : undefined
  process.env.BENCH_OURS ??= copy
  const sections = []
  try {
    if (parts.includes('import')) {
      sections.push('## An import', '', importReport(process.env.BENCH_OURS, rounds), '')
    }
    if (parts.includes('process')) {
      const options =
        JSON.stringify(args.quick
          ? { slices: 10, requests: 2000, warm: 30000 }
          : { slices: 30, requests: 2000, warm: 40000 })
      const names = Object.keys(inProcess)
      const figures = []
      for (let round = 0; round < rounds; round++) {
        figures.push({})
        for (let i = 0; i < names.length; i++) {
          const name = names[(round + i) % names.length]
          const helper = await Helper.start('process', name, options)
          figures[round][name] = helper.told
          helper.end()
        }
      }
      sections.push('## In process', '', ...about, '', processReport(figures), '')
    }
    if (parts.includes('socket')) {
      const figures = await measureOverSocket(rounds, args.quick ? 1500 : 3000)
      sections.push('## Over a socket', '',
        `CPU time of the server's process for one request with one \`select 1\` or \`GET\`; pools of ${max} connections. Peers: ${peerVersions}.`, '')
      sections.push(socketTargetsReport(figures), '')
      for (const [load, costs] of figures) sections.push(socketReport(load, costs), '')
    }
  } finally {
    if (copy !== undefined) rmSync(copy, { recursive: true })
  }
  const [{ model }] = cpus()
  const report = [
    '# What the plugin costs a request',
    '',
    `\`npm run bench:fastify\`, ${new Date().toISOString().slice(0, 10)}: Node ${process.version}, ${cpus().length} x ${model}, ${process.platform} ${process.arch}, ` +
      `load average at the start ${load}; ${rounds} rounds in ${((performance.now() - begun) / 60000).toFixed(1)} minutes.`,
    '',
    ...sections,
  ].join('\n')
  process.stdout.write(report)
  if (!args.quick && args.only === undefined) writeFileSync(new URL('FASTIFY.md', import.meta.url), report)
}

if (args.role === 'process') {
  process.send(await measureInProcess(positionals[0], JSON.parse(positionals[1])), () => { process.exit() })
} else if (args.role === 'server') await serve(...positionals)
else if (args.role === 'client') await beClient()
else await main()
