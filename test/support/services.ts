import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process'
import {
  appendFileSync, chmodSync, chownSync, existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync,
  writeFileSync,
} from 'node:fs'
import { connect, createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { connect as connectTls } from 'node:tls'
import { promisify } from 'node:util'
import {
  clearPostgres, findFerretdb, findMariadb, findMongod, findPgbouncer, findPostgres, findRedis, runs, which,
} from './find.mjs'
import type { Found } from './find.mjs'
import { until } from './until.js'

/**
 * A tap test. Rather a subtest than tap itself, which ends on its own as soon as it has nothing to do, and the servers
 * with it.
 */
export interface Teardown { teardown (fn: () => unknown): unknown }

/** A real server. It is gone, and so are its files, when the test that started it ends. */
export interface Server {
  readonly url: string
  readonly host: string
  readonly port: number
  /**
   * Undefined: not ours (it was given as a URL), so it can't be killed, paused or restarted, and other tests may use it
   * at the same time.
   */
  readonly pid: number | undefined
  /** Ends it in good order, and waits until it is gone. Its data stay for `restart`. */
  stop (): Promise<void>
  /** SIGKILL, and waits until it is gone, and the processes that it had for its clients. */
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

/**
 * For tests that kill, pause or restart: `t.test(name, needsOwn(server), fn)` is reported as skipped, saying why, where
 * the server is not ours.
 */
export function needsOwn (server: Server): { skip: string | false } {
  return { skip: server.pid === undefined && 'needs a server of its own, and only a URL was given' }
}

/** For the summary of a test run. A double and an embedded database note themselves too. */
export function noteServer (kind: string, version: string, how: string, pid?: number): void {
  const log = process.env.POOL_TEST_RUN_LOG
  if (log !== undefined) appendFileSync(log, JSON.stringify({ kind, version, how, pid }) + '\n')
}

/**
 * What differs between servers. The functions `...Recipe` throw where there is no such server to be started: never a
 * silent skip.
 */
export interface Recipe {
  readonly found: Found
  /** Whom it runs as, where it refuses to run as root. */
  readonly user?: User | undefined
  /** Fills `dir` before the first start. */
  fill? (dir: string): Promise<void>
  args (port: number, dir: string): string[]
  /** What ends it in good order without waiting for its clients. Default SIGTERM. */
  readonly stop?: NodeJS.Signals
  /** After SIGKILL: removes what it left outside of `dir`, or what would keep it from starting again. */
  clear? (dir: string): void
  /** In its output: it listens now. So that it is not taken for another server that got the same port. */
  readonly listening: RegExp
  url (port: number): string
  /** A real command. False, or an error: not yet. */
  answers (port: number): Promise<boolean>
}

export interface User { readonly uid: number, readonly gid: number }

export const host = '127.0.0.1'
/**
 * run.mjs started us: the folder for temporary files is its own, shared with the other test files, and removed at the
 * end.
 */
const inRun = process.env.POOL_TEST_RUN_LOG !== undefined
const run = promisify(execFile)
const startTimeout = 30_000

// --- Redis -----------------------------------------------------------------------------------------------------------

export interface RedisOptions {
  /** More arguments, for example `['--maxclients', '5']`. Implies `own`. */
  args?: string[]
  /** Rather a server that can be killed than the one given as a URL. */
  own?: boolean
}

/** A Redis that saves nothing, unless `args` say so. @throws where there is none: never a silent skip. */
export async function startRedis (
  t: Teardown, { args = [], own = args.length > 0 }: RedisOptions = {}
): Promise<Server> {
  const url = process.env.POOL_TEST_REDIS_URL
  const found = findRedis()
  if (url && (!own || (found === undefined && args.length === 0))) return await borrowRedis(url)
  return await start(t, redisRecipe(args))
}

export function redisRecipe (args: readonly string[] = []): Recipe {
  const found = findRedis()
  if (found === undefined) throw new Error('no redis-server on PATH: `npm run pretest` brings it, or says how to')
  return {
    found,
    args: (port, dir) =>
      ['--bind', host, '--port', String(port), '--dir', dir, '--save', '', '--appendonly', 'no', ...args],
    listening: /Ready to accept connections/,
    url: (port) => `redis://${host}:${port}`,
    // -NOAUTH and -ERR max clients are answers too: `args` may ask for a password.
    answers: async (port) => /^[+-](?!LOADING)/.test(await askRedis(new URL(`redis://${host}:${port}`), 'PING')),
  }
}

async function borrowRedis (url: string): Promise<Server> {
  const info = await askRedis(new URL(url), 'INFO server')
  const version = /redis_version:([\d.]+)/.exec(info)?.[1]
  if (version === undefined) throw new Error(`the server of POOL_TEST_REDIS_URL does not answer as Redis does: ${info.slice(0, 80)}`)
  noteServer('Redis', version, 'POOL_TEST_REDIS_URL')
  return notOurs(url, 6379)
}

/** The raw answer to one inline command, without a driver. */
export async function askRedis (url: URL, command: string): Promise<string> {
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
  // A sentinel does not know QUIT.
  const bye = /(\+OK|-ERR unknown command .QUIT.*)\r\n$/
  try {
    await until(() => failure !== undefined || socket.readableEnded || bye.exec(answer)?.[1]?.startsWith('-'),
      { timeout: 2000, what: `Redis at ${to.host}:${to.port} answers` })
    if (failure) throw failure
    return (url.password ? answer.replace(/^\+OK\r\n/, '') : answer).replace(bye, '')
  } finally {
    socket.destroy()
  }
}

/** How many connections of that name (in a cluster: of a name that ends with it) these servers of Redis know. */
export async function knownTo (servers: readonly Server[], name: string): Promise<number> {
  const lists = await Promise.all(servers.map(({ url }) => askRedis(new URL(url), 'CLIENT LIST')))
  return lists.join('\n').split('\n').filter((line) => line.includes(` name=${name} `) || line.includes(`:${name} `))
    .length
}

// --- MongoDB ---------------------------------------------------------------------------------------------------------

/**
 * The server of POOL_TEST_MONGO_URL, else a mongod (a replica set of one, so that transactions work), else FerretDB.
 *
 * Undefined only where there is neither, nor Go to build FerretDB with, and outside of CI.
 */
export async function startMongo (
  t: Teardown, { own = false }: { own?: boolean } = {}
): Promise<MongoServer | undefined> {
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
    ...mongodRecipe(found),
    answers: async (port) => {
      const direct = directMongo(port)
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

/** One of the set rs0, which somebody must initiate. */
export function mongodRecipe (found: Found): Recipe {
  return {
    found,
    args: (port, dir) =>
      ['--dbpath', dir, '--bind_ip', host, '--port', String(port), '--replSet', 'rs0', '--nounixsocket',
        '--wiredTigerCacheSizeGB', '0.25'],
    listening: /Waiting for connections/,
    url: (port) => `mongodb://${host}:${port}/?replicaSet=rs0`,
    answers: async (port) => (await askMongo(directMongo(port), { ping: 1 })).ok === 1,
  }
}

/** For one server, not for its set. */
export const directMongo = (port: number): string => `mongodb://${host}:${port}/?directConnection=true`

async function borrowMongo (url: string): Promise<MongoServer> {
  const build = await askMongo(url, { buildInfo: 1 }, 10_000)
  const kind = build.ferretdb === undefined && build.ferretdbVersion === undefined ? 'mongod' : 'ferretdb'
  noteServer(kind === 'mongod' ? 'MongoDB' : 'FerretDB', String(build.version), 'POOL_TEST_MONGO_URL')
  return Object.assign(notOurs(url, 27017), { kind } as const)
}

export async function askMongo (
  url: string, command: Record<string, unknown>, timeout = 1000
): Promise<Record<string, unknown>> {
  const { MongoClient } = await import('mongodb')
  const client =
    new MongoClient(url,
      { serverSelectionTimeoutMS: timeout, connectTimeoutMS: timeout, socketTimeoutMS: timeout + 1000 })
  try {
    return await client.db('admin').command(command)
  } finally {
    await client.close()
  }
}

// --- PostgreSQL ------------------------------------------------------------------------------------------------------

export interface PostgresOptions {
  /** More arguments, for example `['-c', 'max_connections=8']`. Implies `own`. */
  args?: string[]
  /** Rather a server that can be killed than the one given as a URL. */
  own?: boolean
  /**
   * It asks for a password by SCRAM-SHA-256; the URL has it. Otherwise any password, or none, is right. Implies `own`.
   */
  scram?: boolean
}

/**
 * A PostgreSQL with the superuser `postgres`, that never syncs its disk, yet has every commit it acknowledged after a
 * `kill`.
 *
 * @throws where there is none: never a silent skip.
 */
export async function startPostgres (
  t: Teardown, { args = [], scram = false, own = scram || args.length > 0 }: PostgresOptions = {}
): Promise<Server> {
  const given = process.env.POOL_TEST_POSTGRES_URL
  const found = findPostgres()
  if (given && (!own || (found === undefined && args.length === 0 && !scram))) return await borrowPostgres(given)
  return await start(t, postgresRecipe(args, scram))
}

export function postgresRecipe (args: readonly string[] = [], scram = false): Recipe {
  const found = findPostgres()
  if (found === undefined) throw new Error('no PostgreSQL in /usr/lib/postgresql or on PATH: `npm run pretest` brings it, or says how to')
  const user = ordinaryUser('postgres')
  const url = (port: number) => `postgres://postgres${scram ? ':secret' : ''}@${host}:${port}/postgres`
  return {
    found,
    user,
    fill: async (dir) => {
      await copyTemplate(found, dir, user, async (data, folder) => {
        const password = join(folder, 'password')
        writeFileSync(password, 'secret\n')
        const initdb = join(dirname(found.file), 'initdb')
        await run(initdb,
          ['-D', data, '-U', 'postgres', '--auth=trust', `--pwfile=${password}`, '--no-sync', '-E', 'UTF8', '--locale=C', '--wal-segsize=1'], { ...user, cwd: folder })
      })
      if (scram) writeFileSync(join(dir, 'pg_hba.conf'), 'host all,replication all 127.0.0.1/32 scram-sha-256\n')
    },
    args: (port, dir) => {
      const settings = {
        listen_addresses: host,
        unix_socket_directories: '',
        // Never synchronous_commit: what was acknowledged would be lost with a killed server.
        fsync: 'off',
        full_page_writes: 'off',
        // Else shared memory that outlives a killed server.
        dynamic_shared_memory_type: 'mmap',
        shared_buffers: '32MB',
      }
      return ['-D', dir, '-p', String(port),
        ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]), ...args]
    },
    listening: /database system is ready to accept (read-only )?connections/,
    url,
    answers: async (port) => await askPostgres(url(port), 'SELECT 1') === '1',
    // SIGTERM waits for the clients.
    stop: 'SIGINT',
    clear: clearPostgres,
  }
}

async function borrowPostgres (url: string): Promise<Server> {
  noteServer('PostgreSQL', (await askPostgres(url, 'SHOW server_version', 10_000)).split(' ')[0]!,
    'POOL_TEST_POSTGRES_URL')
  return notOurs(url, 5432)
}

/** The only value of the only row, as text. */
export async function askPostgres (url: string, sql: string, timeout = 2000): Promise<string> {
  const { default: { Client } } = await import('pg')
  const client = new Client({ connectionString: url, connectionTimeoutMillis: timeout, query_timeout: timeout })
  let lost: Error | undefined
  client.on('error', (error) => { lost = error })
  try {
    await client.connect()
    const { rows } = await client.query<string[]>({ text: sql, rowMode: 'array' })
    if (lost !== undefined) throw lost
    return String(rows[0]?.[0])
  } finally {
    await client.end()
  }
}

// --- PgBouncer -------------------------------------------------------------------------------------------------------

export interface PgBouncerOptions {
  /** Its `pool_mode`. */
  mode?: 'session' | 'transaction' | 'statement'
  /** More settings, for example `{ default_pool_size: 2 }`. They win over ours. */
  ini?: Record<string, string | number>
}

/**
 * A PgBouncer before that PostgreSQL, for the user of its URL. Who logs in needs no password; its console is the
 * database `pgbouncer`.
 *
 * Undefined only where there is none, and outside of CI.
 */
export async function startPgBouncer (
  t: Teardown, postgres: Server, { mode = 'transaction', ini = {} }: PgBouncerOptions = {}
): Promise<Server | undefined> {
  const found = findPgbouncer()
  if (found === undefined) {
    if (!process.env.CI) return undefined
    throw new Error('no pgbouncer on PATH: `npm run pretest` brings it, or says how to')
  }
  const { username, password, pathname } = new URL(postgres.url)
  const [name, secret] = [username, password].map((part) => decodeURIComponent(part).replaceAll('"', '""'))
  const url = (port: number, database: string) => `postgres://${username}@${host}:${port}${database}`
  return await start(t, {
    found,
    user: ordinaryUser('postgres'),
    args: (port, dir) => {
      const users = join(dir, 'users.txt')
      const settings = {
        listen_addr: host,
        listen_port: port,
        unix_socket_dir: '',
        auth_type: 'trust',
        auth_file: users,
        admin_users: name,
        pool_mode: mode,
        // Else it refuses for 15 s after its server was away.
        server_login_retry: 0.1,
        ...ini,
      }
      writeFileSync(users, `"${name}" "${secret}"\n`)
      const lines =
        ['[databases]', `* = host=${postgres.host} port=${postgres.port}`, '[pgbouncer]',
          ...Object.entries(settings).map((pair) => pair.join(' = '))]
      const file = join(dir, 'pgbouncer.ini')
      writeFileSync(file, lines.join('\n') + '\n')
      return [file]
    },
    listening: /process up/,
    url: (port) => url(port, pathname),
    // Not the database: a connection would stay open to it.
    answers: async (port) => /PgBouncer/.test(await askPostgres(url(port, '/pgbouncer'), 'SHOW VERSION')),
    // From 1.23 on SIGTERM waits for the clients; before, SIGQUIT is not heeded.
    stop: found.version.localeCompare('1.23', 'en', { numeric: true }) < 0 ? 'SIGTERM' : 'SIGQUIT',
  })
}

// --- MariaDB ---------------------------------------------------------------------------------------------------------

export interface MariadbOptions {
  /** More arguments, for example `['--max-connections=10']`. Implies `own`. */
  args?: string[]
  /** Rather a server that can be killed than the one given as a URL. */
  own?: boolean
}

/**
 * A MariaDB with the empty database `test` and the user `pool`, who may do all in every database, see all connections
 * and KILL their own. `root` has no password. It keeps every commit it acknowledged when it is killed.
 *
 * @throws where there is none: never a silent skip.
 */
export async function startMariadb (
  t: Teardown, { args = [], own = args.length > 0 }: MariadbOptions = {}
): Promise<Server> {
  const given = process.env.POOL_TEST_MARIADB_URL
  const found = findMariadb()
  if (given && (!own || (found === undefined && args.length === 0))) return await borrowMariadb(given)
  return await start(t, mariadbRecipe(args))
}

export function mariadbRecipe (args: readonly string[] = []): Recipe {
  const found = findMariadb()
  if (found === undefined) throw new Error('no mariadbd with mariadb-install-db on PATH: `npm run pretest` brings it, or says how to')
  const asRoot = process.getuid?.() === 0 ? ['--user=root'] : []
  const files = (folder: string) => [
    // Of its own: each one that starts removes the temporary tables of all that are in there.
    `--tmpdir=${folder}`,
    // As small as can be, since they are copied for each start.
    '--innodb-log-file-size=4M', '--innodb-data-file-path=ibdata1:2M:autoextend',
    '--innodb-temp-data-file-path=ibtmp1:1M:autoextend', '--innodb-autoextend-increment=1',
  ]
  const url = (port: number) => `mysql://pool:secret@${host}:${port}/test`
  return {
    found,
    fill: async (dir) => await copyTemplate(found, dir, undefined, async (data, folder) => {
      const sql = join(folder, 'pool.sql')
      writeFileSync(sql, [
        'FLUSH PRIVILEGES',
        'CREATE DATABASE test',
        `CREATE USER pool@'${host}' IDENTIFIED BY 'secret'`,
        `GRANT ALL ON *.* TO pool@'${host}'`,
        // Who has these gets in when there are too many connections, and writes to what is read only.
        `REVOKE SUPER, CONNECTION ADMIN, READ_ONLY ADMIN ON *.* FROM pool@'${host}'`,
      ].join(';\n') + ';\n')
      const install = which('mariadb-install-db')!
      await run(install,
        ['--no-defaults', `--datadir=${data}`, ...asRoot, '--auth-root-authentication-method=normal', '--skip-test-db', '--skip-name-resolve', `--extra-file=${sql}`, ...files(folder)], { cwd: folder })
    }),
    args: (port, dir) => [
      // First, or the machine's own files decide over the port.
      '--no-defaults', ...asRoot, `--datadir=${dir}`, `--port=${port}`, `--bind-address=${host}`,
      // In its folder: a whole path may be too long.
      '--socket=socket',
      '--skip-name-resolve', '--performance-schema=off', '--skip-log-bin', '--innodb-buffer-pool-size=32M',
      '--innodb-use-native-aio=0', ...files(dirname(dir)),
      // Written at each commit, and synced once a second.
      '--innodb-flush-log-at-trx-commit=2',
      ...args,
    ],
    listening: /ready for connections/,
    url,
    answers: async (port) => await askMariadb(url(port), 'SELECT 1') === '1',
  }
}

async function borrowMariadb (url: string): Promise<Server> {
  const version = await askMariadb(url, 'SELECT version()', 10_000)
  noteServer(/mariadb/i.test(version) ? 'MariaDB' : 'MySQL', version.split('-')[0]!, 'POOL_TEST_MARIADB_URL')
  return notOurs(url, 3306)
}

/** The only value of the only row, as text. */
async function askMariadb (url: string, sql: string, timeout = 2000): Promise<string> {
  const { createConnection } = await import('mysql2/promise')
  const connection = await createConnection({ uri: url, connectTimeout: timeout })
  try {
    const [rows] = await connection.query({ sql, timeout, rowsAsArray: true })
    return String((rows as unknown[][])[0]?.[0])
  } finally {
    await connection.end()
  }
}

// --- All of them -----------------------------------------------------------------------------------------------------

function notOurs (url: string, defaultPort: number): Server {
  // By hand, since `new URL` refuses several hosts.
  const [, name = 'localhost', port] = /^[^:]+:\/\/(?:[^/?]*@)?([^/?:,]+)(?::(\d+))?/.exec(url) ?? []
  const refuse = () => { throw new Error('this server is not ours: give the test needsOwn(server)') }
  return {
    url,
    host: name,
    port: Number(port ?? defaultPort),
    pid: undefined,
    stop: async () =>
      refuse(),
    kill: async () => refuse(),
    restart: async () => refuse(),
    pause: refuse,
    resume: refuse
  }
}

/** On a free port, with a data folder of its own, which `recipe.fill` gets empty. */
export async function start (t: Teardown, recipe: Recipe): Promise<Server> {
  const base = openFolder(`fastify-pool-${recipe.found.kind.toLowerCase()}-`)
  const dir = join(base, 'data')
  mkdirSync(dir)
  let child: Child | undefined
  const kill = async () => {
    await child?.end('SIGKILL')
    recipe.clear?.(dir)
  }
  t.teardown(async () => {
    try {
      await kill()
    } finally {
      rmSync(base, { recursive: true, force: true, maxRetries: 3 })
    }
  })
  await recipe.fill?.(dir)
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
    stop: async () => await child?.end(recipe.stop ?? 'SIGTERM'),
    kill,
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
async function tryStart (
  { found, user, args, listening, answers }: Recipe, port: number, dir: string, again: boolean
): Promise<Child | undefined> {
  const child = new Child(found.file, args(port, dir), { ...user, cwd: dirname(dir) })
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
    await child.saidAll()
    if (again && /address already in use/i.test(child.output)) return undefined
    throw new Error(`${found.file} ended at start:\n${child.output}`)
  }
  noteServer(found.kind, found.version, found.how, child.pid)
  return child
}

/** For servers that refuse to run as root. Undefined where we are not root: they run as ourselves. */
function ordinaryUser (name: string): User | undefined {
  if (process.getuid?.() !== 0) return undefined
  const id = (of: string) => Number(execFileSync('id', [of, name], { encoding: 'utf8' }))
  return { uid: id('-u'), gid: id('-g') }
}

/** A new one in the folder for temporary files, into which any user may go. */
function openFolder (prefix: string): string {
  const folder = mkdtempSync(join(tmpdir(), prefix))
  chmodSync(folder, 0o755)
  return folder
}

const made = new Map<string, Promise<string>>()

/**
 * A data folder takes 0.5 s to make and 0.05 s to copy: so it is made once in a run of all tests, or once in a file
 * that is run alone.
 */
async function copyTemplate (
  { kind, version }: Found, dir: string, user: User | undefined, make: (data: string, folder: string) => Promise<void>
): Promise<void> {
  const name = `template-${kind.toLowerCase()}-${version}`
  let template = made.get(name)
  if (template === undefined) {
    template = makeTemplate(name, user, make)
    made.set(name, template)
  }
  await run('cp', ['-a', `${join(await template, 'data')}/.`, dir])
}

async function makeTemplate (
  name: string, user: User | undefined, make: (data: string, folder: string) => Promise<void>
): Promise<string> {
  const shared = inRun ? join(tmpdir(), name) : undefined
  if (shared !== undefined && existsSync(shared)) return shared
  const folder = openFolder(`${name}-`)
  if (shared === undefined) process.once('exit', () => rmSync(folder, { recursive: true, force: true }))
  const data = join(folder, 'data')
  mkdirSync(data, { mode: 0o700 })
  if (user !== undefined) chownSync(data, user.uid, user.gid)
  await make(data, folder)
  if (shared === undefined) return folder
  try {
    renameSync(folder, shared)
  } catch (error) {
    // Another process of this run was faster.
    if (!existsSync(shared)) throw error
    rmSync(folder, { recursive: true })
  }
  return shared
}

export async function freePort (): Promise<number> {
  const probe = createServer().listen(0, host)
  await until(() => probe.listening, { what: 'a free port' })
  const { port } = probe.address() as AddressInfo
  await new Promise<void>((resolve) => probe.close(() => resolve()))
  return port
}

export function childrenOf (pid: number): number[] {
  if (onLinux) return readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean).map(Number)
  const all = execFileSync('ps', ['-A', '-o', 'pid=,ppid='], { encoding: 'utf8' }).trim().split('\n')
    .map((line) => line.trim().split(/\s+/).map(Number))
  return all.filter(([, parent]) => parent === pid).map(([child]) => child!)
}

const onLinux = process.platform === 'linux'

/**
 * setpriv becomes the server, with the same pid, and asks the kernel to end it with us: nothing is left, even when we
 * are killed with -9.
 */
const setpriv = onLinux ? which('setpriv') : undefined

const children = new Set<Child>()
process.once('exit', () => { for (const child of children) child.signal('SIGKILL') })

class Child {
  readonly pid: number
  /** The last of what it said. */
  output = ''
  readonly #process: ChildProcess
  #gone = false
  #closed = false

  constructor (file: string, args: string[], options: Partial<User> & { cwd: string }) {
    const [command, ...rest] = setpriv === undefined
      ? [file, ...args]
      : [setpriv, '--pdeathsig', 'KILL', '--', file, ...args]
    this.#process = spawn(command!, rest, { ...options, stdio: ['ignore', 'pipe', 'pipe'] })
    this.#process.on('error', (error) => { this.output += String(error) })
    if (this.#process.pid === undefined) throw new Error(`${command} can't be started`)
    this.pid = this.#process.pid
    children.add(this)
    this.#process.once('exit', () => {
      this.#gone = true
      children.delete(this)
    })
    this.#process.once('close', () => { this.#closed = true })
    for (const stream of [this.#process.stdout!, this.#process.stderr!]) {
      stream.setEncoding('utf8').on('data', (text: string) => { this.output = (this.output + text).slice(-8000) })
    }
    // It must not keep a test alive that has ended: whoever waits for it does so in `until`.
    this.#process.unref()
    for (const stream of [this.#process.stdout, this.#process.stderr]) (stream as unknown as { unref (): void }).unref()
  }

  get gone (): boolean { return this.#gone }

  /** Resolves when all that it said has been read: that may be after its end. */
  async saidAll (): Promise<void> {
    await until(() => this.#closed, { what: `the output of process ${this.pid} has been read` })
  }

  signal (signal: NodeJS.Signals): void { if (!this.#gone) this.#process.kill(signal) }

  /** Waits until it is gone: after another signal than SIGKILL for 10 s, then it is killed. */
  async end (signal: NodeJS.Signals): Promise<void> {
    if (signal === 'SIGKILL') return await this.#kill()
    this.signal(signal)
    this.signal('SIGCONT')
    const slow = setTimeout(() => this.signal('SIGKILL'), 10_000)
    try {
      await until(() => this.#gone, { timeout: 20_000, what: `process ${this.pid} is gone` })
    } finally {
      clearTimeout(slow)
    }
  }

  /** With the processes it has for its clients, which would live on until they notice, and keep its data in use. */
  async #kill (): Promise<void> {
    this.signal('SIGSTOP')
    // Or it might start one more.
    await until(() => this.#gone || !onLinux ||
      /^State:\s+[TZX]/m.test(readFileSync(`/proc/${this.pid}/status`, 'utf8')))
    const family = this.#gone ? [] : childrenOf(this.pid)
    this.signal('SIGKILL')
    for (const pid of family) {
      try {
        process.kill(pid, 'SIGKILL')
      } catch (error) {
        // ESRCH: it has gone by itself meanwhile.
        if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
      }
    }
    await until(() => this.#gone && !family.some(runs),
      { timeout: 20_000, what: `process ${this.pid} is gone, and ${family.join(' ')}` })
  }
}
