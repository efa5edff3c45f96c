import { type ChildProcess, spawn } from 'node:child_process'
import { appendFileSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { connect as connectTls } from 'node:tls'
import { findFerretdb, findMongod, findRedis, which } from './find.mjs'
import type { Found } from './find.mjs'
import { until } from './until.js'

/** A tap test. Rather a subtest than tap itself, which ends on its own as soon as it has nothing to do, and the servers with it. */
export interface Teardown { teardown (fn: () => unknown): unknown }

/** A real server. It is gone, and so are its files, when the test that started it ends. */
export interface Server {
  readonly url: string
  readonly host: string
  readonly port: number
  /** Undefined: not ours (it was given as a URL), so it can't be killed, paused or restarted, and other tests may use it at the same time. */
  readonly pid: number | undefined
  /** Ends it in good order, and waits until it is gone. Its data stay for `restart`. */
  stop (): Promise<void>
  /** SIGKILL, and waits until it is gone. */
  kill (): Promise<void>
  /** After `kill` or `stop`: on the same port, with the data it had on disk. */
  restart (): Promise<void>
  /** SIGSTOP: sockets stay open, connects succeed, nothing answers. */
  pause (): void
  resume (): void
}

export type MongoServer = Server & {
  /** 'ferretdb': no transactions, no users, no failover. */
  readonly kind: 'mongod' | 'ferretdb'
}

/** For tests that kill, pause or restart: `t.test(name, needsOwn(server), fn)` is reported as skipped, saying why, where the server is not ours. */
export function needsOwn (server: Server): { skip: string | false } {
  return { skip: server.pid === undefined && 'needs a server of its own, and only a URL was given' }
}

/** For the summary of a test run. A double and an embedded database note themselves too. */
export function noteServer (kind: string, version: string, how: string, pid?: number): void {
  const log = process.env.POOL_TEST_RUN_LOG
  if (log !== undefined) appendFileSync(log, JSON.stringify({ kind, version, how, pid }) + '\n')
}

/** What differs between servers. */
interface Recipe {
  readonly found: Found
  args (port: number, dir: string): string[]
  /** In its output: it listens now. So that it is not taken for another server that got the same port. */
  readonly listening: RegExp
  url (port: number): string
  /** A real command. False, or an error: not yet. */
  answers (port: number): Promise<boolean>
}

const host = '127.0.0.1'
const startTimeout = 30_000

// --- Redis ----------------------------------------------------------------------------------------------------------------------------

export interface RedisOptions {
  /** More arguments, for example `['--maxclients', '5']`. Implies `own`. */
  args?: string[]
  /** Rather a server that can be killed than the one given as a URL. */
  own?: boolean
}

/** A Redis that saves nothing, unless `args` say so. @throws where there is none: never a silent skip. */
export async function startRedis (t: Teardown, { args = [], own = args.length > 0 }: RedisOptions = {}): Promise<Server> {
  const url = process.env.POOL_TEST_REDIS_URL
  const found = findRedis()
  if (url && (!own || (found === undefined && args.length === 0))) return await borrowRedis(url)
  if (found === undefined) throw new Error('no redis-server on PATH: `npm run pretest` brings it, or says how to')
  return await start(t, {
    found,
    args: (port, dir) => ['--bind', host, '--port', String(port), '--dir', dir, '--save', '', '--appendonly', 'no', ...args],
    listening: /Ready to accept connections/,
    url: (port) => `redis://${host}:${port}`,
    // -NOAUTH and -ERR max clients are answers too: `args` may ask for a password.
    answers: async (port) => /^[+-](?!LOADING)/.test(await askRedis(new URL(`redis://${host}:${port}`), 'PING')),
  })
}

async function borrowRedis (url: string): Promise<Server> {
  const info = await askRedis(new URL(url), 'INFO server')
  const version = /redis_version:([\d.]+)/.exec(info)?.[1]
  if (version === undefined) throw new Error(`the server of POOL_TEST_REDIS_URL does not answer as Redis does: ${info.slice(0, 80)}`)
  noteServer('Redis', version, 'POOL_TEST_REDIS_URL')
  return notOurs(url, 6379)
}

/** The raw answer to one inline command, without a driver. */
async function askRedis (url: URL, command: string): Promise<string> {
  const to = { host: url.hostname, port: Number(url.port || 6379) }
  const socket = url.protocol === 'rediss:' ? connectTls({ ...to, servername: url.hostname }) : connect(to)
  let answer = ''
  let failure: Error | undefined
  socket.setEncoding('utf8').on('data', (text) => { answer += text }).on('error', (error) => { failure = error })
  if (url.password) {
    const login = ['AUTH', decodeURIComponent(url.username) || 'default', decodeURIComponent(url.password)]
    socket.write(`*3\r\n${login.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`).join('')}`)
  }
  socket.write(`${command}\r\nQUIT\r\n`)
  try {
    await until(() => failure !== undefined || socket.readableEnded, { timeout: 2000, what: `Redis at ${to.host}:${to.port} answers` })
    if (failure) throw failure
    return url.password ? answer.replace(/^\+OK\r\n/, '') : answer
  } finally {
    socket.destroy()
  }
}

// --- MongoDB --------------------------------------------------------------------------------------------------------------------------

/**
 * The server of POOL_TEST_MONGO_URL, else a mongod (a replica set of one, so that transactions work), else FerretDB.
 *
 * Undefined only where there is neither, nor Go to build FerretDB with, and outside of CI.
 */
export async function startMongo (t: Teardown, { own = false }: { own?: boolean } = {}): Promise<MongoServer | undefined> {
  const url = process.env.POOL_TEST_MONGO_URL
  const found = findMongod() ?? findFerretdb()
  if (url && (!own || found === undefined)) return await borrowMongo(url)
  if (found === undefined) {
    if (!process.env.CI && (which('go') === undefined || process.env.POOL_TEST_NO_INSTALL)) return undefined
    throw new Error('no mongod on PATH and no FerretDB built: `npm run pretest` brings it, or says how to')
  }
  if (found.kind === 'FerretDB') {
    const url = (port: number) => `mongodb://${host}:${port}/`
    const server = await start(t, {
      found,
      args: (port, dir) => ['-listen', `${host}:${port}`, '-data', dir],
      listening: /listening/,
      url,
      answers: async (port) => (await askMongo(url(port), { hello: 1 })).isWritablePrimary === true,
    })
    return Object.assign(server, { kind: 'ferretdb' as const })
  }
  const server = await start(t, {
    found,
    args: (port, dir) => ['--dbpath', dir, '--bind_ip', host, '--port', String(port), '--replSet', 'rs0', '--nounixsocket', '--wiredTigerCacheSizeGB', '0.25'],
    listening: /Waiting for connections/,
    url: (port) => `mongodb://${host}:${port}/?replicaSet=rs0`,
    answers: async (port) => {
      const direct = `mongodb://${host}:${port}/?directConnection=true`
      const hello = await askMongo(direct, { hello: 1 })
      // Only the first start finds it without a set: a restarted one is primary again by itself, some time later.
      if (hello.isreplicaset === true) {
        await askMongo(direct, { replSetInitiate: { _id: 'rs0', members: [{ _id: 0, host: `${host}:${port}` }] } })
      }
      return hello.isWritablePrimary === true
    },
  })
  return Object.assign(server, { kind: 'mongod' as const })
}

async function borrowMongo (url: string): Promise<MongoServer> {
  const build = await askMongo(url, { buildInfo: 1 }, 10_000)
  const kind = build.ferretdb === undefined && build.ferretdbVersion === undefined ? 'mongod' : 'ferretdb'
  noteServer(kind === 'mongod' ? 'MongoDB' : 'FerretDB', String(build.version), 'POOL_TEST_MONGO_URL')
  return Object.assign(notOurs(url, 27017), { kind } as const)
}

async function askMongo (url: string, command: Record<string, unknown>, timeout = 1000): Promise<Record<string, unknown>> {
  const { MongoClient } = await import('mongodb')
  const client = new MongoClient(url, { serverSelectionTimeoutMS: timeout, connectTimeoutMS: timeout, socketTimeoutMS: timeout + 1000 })
  try {
    return await client.db('admin').command(command)
  } finally {
    await client.close()
  }
}

// --- All of them ----------------------------------------------------------------------------------------------------------------------

function notOurs (url: string, defaultPort: number): Server {
  // By hand, since `new URL` refuses several hosts.
  const [, name = 'localhost', port] = /^[^:]+:\/\/(?:[^/?]*@)?([^/?:,]+)(?::(\d+))?/.exec(url) ?? []
  const refuse = () => { throw new Error('this server is not ours: give the test needsOwn(server)') }
  return { url, host: name, port: Number(port ?? defaultPort), pid: undefined, stop: async () => refuse(), kill: async () => refuse(), restart: async () => refuse(), pause: refuse, resume: refuse }
}

async function start (t: Teardown, recipe: Recipe): Promise<Server> {
  const base = mkdtempSync(join(tmpdir(), `fastify-pool-${recipe.found.kind.toLowerCase()}-`))
  const dir = join(base, 'data')
  mkdirSync(dir)
  let child: Child | undefined
  t.teardown(async () => {
    await child?.end('SIGKILL')
    rmSync(base, { recursive: true, force: true })
  })
  let port = 0
  for (let tries = 3; child === undefined; tries--) {
    port = await freePort()
    child = await tryStart(recipe, port, dir, tries > 1)
  }
  const running = (): Child => {
    if (child === undefined || child.gone) throw new Error(`${recipe.found.kind} on port ${port} does not run`)
    return child
  }
  return {
    url: recipe.url(port),
    host,
    port,
    get pid () { return child?.pid },
    stop: async () => await child?.end('SIGTERM'),
    kill: async () => await child?.end('SIGKILL'),
    restart: async () => {
      if (child?.gone !== true) throw new Error('it still runs: kill or stop it before restart')
      // What a dead server leaves behind (a lingering client) can hold its port for a moment.
      let next: Child | undefined
      for (let tries = 3; next === undefined; tries--) next = await tryStart(recipe, port, dir, tries > 1)
      child = next
    },
    pause: () => running().signal('SIGSTOP'),
    resume: () => running().signal('SIGCONT'),
  }
}

/** @returns undefined where the port was taken meanwhile, and `again` says that this is no failure */
async function tryStart ({ found, args, listening, answers }: Recipe, port: number, dir: string, again: boolean): Promise<Child | undefined> {
  const child = new Child(found.file, args(port, dir))
  let refused: unknown
  const isReady = async () => {
    if (child.gone || !listening.test(child.output)) return child.gone
    try {
      return await answers(port)
    } catch (error) {
      refused = error // Not ready yet, or never: told if the time runs out.
      return false
    }
  }
  try {
    await until(isReady, { timeout: startTimeout, what: `${found.kind} on port ${port} answers` })
  } catch (error) {
    await child.end('SIGKILL')
    throw new Error(`${found.file} did not start: ${String(refused ?? error)}\n${child.output}`, { cause: error })
  }
  if (child.gone) {
    if (again && /address already in use/i.test(child.output)) return undefined
    throw new Error(`${found.file} ended at start:\n${child.output}`)
  }
  noteServer(found.kind, found.version, found.how, child.pid)
  return child
}

async function freePort (): Promise<number> {
  const probe = createServer().listen(0, host)
  await until(() => probe.listening, { what: 'a free port' })
  const { port } = probe.address() as AddressInfo
  await new Promise<void>((resolve) => probe.close(() => resolve()))
  return port
}

/** setpriv becomes the server, with the same pid, and asks the kernel to end it with us: nothing is left, even when we are killed with -9. */
const setpriv = process.platform === 'linux' ? which('setpriv') : undefined

const children = new Set<Child>()
process.once('exit', () => { for (const child of children) child.signal('SIGKILL') })

class Child {
  readonly pid: number
  /** The last of what it said. */
  output = ''
  readonly #process: ChildProcess
  #gone = false

  constructor (file: string, args: string[]) {
    const [command, ...rest] = setpriv === undefined ? [file, ...args] : [setpriv, '--pdeathsig', 'KILL', '--', file, ...args]
    this.#process = spawn(command!, rest, { stdio: ['ignore', 'pipe', 'pipe'] })
    this.#process.on('error', (error) => { this.output += String(error) })
    if (this.#process.pid === undefined) throw new Error(`${command} can't be started`)
    this.pid = this.#process.pid
    children.add(this)
    this.#process.once('exit', () => {
      this.#gone = true
      children.delete(this)
    })
    for (const stream of [this.#process.stdout!, this.#process.stderr!]) {
      stream.setEncoding('utf8').on('data', (text: string) => { this.output = (this.output + text).slice(-8000) })
    }
    // It must not keep a test alive that has ended: whoever waits for it does so in `until`.
    this.#process.unref()
    for (const stream of [this.#process.stdout, this.#process.stderr]) (stream as unknown as { unref (): void }).unref()
  }

  get gone (): boolean { return this.#gone }

  signal (signal: NodeJS.Signals): void { if (!this.#gone) this.#process.kill(signal) }

  /** Waits until it is gone: after SIGTERM for 10 s, then it is killed. */
  async end (signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    this.signal(signal)
    this.signal('SIGCONT')
    const timer = setTimeout(() => this.signal('SIGKILL'), 10_000)
    try {
      await until(() => this.#gone, { timeout: 20_000, what: `process ${this.pid} is gone` })
    } finally {
      clearTimeout(timer)
    }
  }
}
