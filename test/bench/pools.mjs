// The pools that are measured, each behind the same four methods. A process loads the one that it measures, and no
// other.
//
// A pool is { kind, lacks, load }. `load()` gives make(max, { create, timeoutMs, idleMs, reapMs }), which gives {
// acquire(signal), release(handle), close() } and, where the pool has it, tryAcquire(). `acquire()` gives a handle or a
// promise of one. What a pool lacks is told with the reason: a workload that needs it leaves the pool out, and the
// report says why.
//
// The peers have no acquire timeout but where the workload is about it: that is their best. Ours always has one, its
// stats and its defaults.
import { execFileSync } from 'node:child_process'
import { EventEmitter } from 'node:events'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

/** They are no dependencies of the project: they are brought when the bench first runs. */
const versions = {
  'generic-pool': '3.9.0',
  'lightning-pool': '4.14.0',
  mongodb: '7.8.0',
  mysql2: '3.24.5',
  'pg-pool': '3.14.0',
  // A peer dependency of pg-pool.
  pg: '8.23.1',
  'sequelize-pool': '8.0.1',
  tarn: '3.1.2',
}
const home = fileURLToPath(new URL('../../.cache/bench', import.meta.url))
const peer = createRequire(join(home, 'package.json'))

/** Does nothing where they are there in these versions. */
export function installPeers () {
  const installed = (name) => {
    const file = join(home, 'node_modules', name, 'package.json')
    return existsSync(file) && JSON.parse(readFileSync(file, 'utf8')).version === versions[name]
  }
  if (Object.keys(versions).every(installed)) return
  mkdirSync(home, { recursive: true })
  writeFileSync(join(home, 'package.json'), JSON.stringify({ private: true, dependencies: versions }, null, 2))
  execFileSync('npm', ['install', '--prefix', home, '--no-audit', '--no-fund', '--ignore-scripts'],
    { stdio: ['ignore', 'ignore', 'inherit'] })
}

/**
 * A copy of the package as it was built, or the run would measure two of them when somebody builds again meanwhile.
 * Returns its folder, which is the caller's to remove.
 */
export function copyOurs () {
  const root = fileURLToPath(new URL('../..', import.meta.url))
  if (!existsSync(join(root, 'dist/index.js'))) throw new Error('there is no dist: npm run build')
  const copy = mkdtempSync(join(home, 'ours-'))
  for (const name of ['package.json', 'dist']) cpSync(join(root, name), join(copy, name), { recursive: true })
  return copy
}

export const peerVersions = Object.entries(versions).map(([name, version]) => `${name} ${version}`).join(', ')

/** What is pooled: a plain object with four fields. */
export class Conn {
  static #last = 0
  id = Conn.#last++
  a = null
  b = null
  c = 0
}

const soon = async () => new Conn()

/** What the driver's files offer beside their front door. */
const inside = (name, file) => peer(join(dirname(peer.resolve(`${name}/package.json`)), file))

/** The smallest correct first-in-first-out pool: no features, not even a check for a second release. */
class MinimalPool {
  size = 0
  idle = []
  waiters = []
  head = 0

  constructor (max, create) {
    this.max = max
    this.create = create
  }

  acquire () {
    if (this.idle.length > 0) return Promise.resolve(this.idle.pop())
    if (this.size < this.max) {
      this.size++
      return this.create()
    }
    return new Promise((resolve) => { this.waiters.push(resolve) })
  }

  release (connection) {
    if (this.head === this.waiters.length) {
      this.idle.push(connection)
      return
    }
    const resolve = this.waiters[this.head]
    this.waiters[this.head++] = undefined
    if (this.head === this.waiters.length) {
      this.waiters.length = 0
      this.head = 0
    } else if (this.head > 1024 && this.head * 2 > this.waiters.length) {
      this.waiters = this.waiters.slice(this.head)
      this.head = 0
    }
    resolve(connection)
  }
}

const noLimit = 'it is no pool, only the least that a pool can cost: nobody can wait'
const quadratic = 'a quadratic line: minutes for 100,000 who wait'
const noSync = 'no acquire without a promise or callback'
const noSignal = 'no AbortSignal'

export const pools = {
  L0: {
    kind: 'limit',
    about: 'an array, no promise',
    lacks: { line: noLimit, create: noLimit },
    load: async () => (max) => {
      const idle = Array.from({ length: max }, () => new Conn())
      return { acquire: () => idle.pop(), tryAcquire: () => idle.pop(), release (c) { idle.push(c) }, close () {} }
    },
  },

  L1: {
    kind: 'limit',
    about: 'an array behind one `await`: no pool with a promise in its API can beat it',
    lacks: { line: noLimit, create: noLimit, tryAcquire: noSync },
    load: async () => (max) => {
      const idle = Array.from({ length: max }, () => new Conn())
      return { async acquire () { return idle.pop() }, release (c) { idle.push(c) }, close () {} }
    },
  },

  L2: {
    kind: 'limit',
    about: 'the smallest correct FIFO pool, without features',
    lacks: { timeout: 'it has no features', abort: 'it has no features' },
    load: async () => (max, { create = soon } = {}) => {
      const pool = new MinimalPool(max, create)
      return {
        acquire: () => pool.acquire(), tryAcquire: () => pool.idle.pop(), release (c) { pool.release(c) }, close () {},
      }
    },
  },

  ours: {
    kind: 'ours',
    about: 'this project, as built: an acquire timeout, stats, no listener',
    lacks: {},
    async load () {
      const { Pool } = await import(pathToFileURL(join(process.env.BENCH_OURS, 'dist/index.js')).href)
      return (max, { create = soon, timeoutMs = 30000, idleMs = 60000 } = {}) => {
        const pool =
          new Pool({ system: 'bench', create, destroy () {} },
            { max, acquireTimeout: timeoutMs, idleTimeout: idleMs, maxPending: 1e6 })
        return {
          acquire: (signal) => signal === undefined ? pool.acquire() : pool.acquire({ signal }),
          tryAcquire: () => pool.tryAcquire(),
          release (lease) { lease.release() },
          close: () => pool.close(),
        }
      }
    },
  },

  'generic-pool': {
    kind: 'peer',
    lacks: { tryAcquire: noSync, abort: noSignal },
    async load () {
      const { createPool } = peer('generic-pool')
      return (max, { create = soon, timeoutMs, idleMs, reapMs } = {}) => {
        const pool = createPool({ create: () => create(), destroy: async () => {} }, {
          max,
          min: 0,
          ...timeoutMs && { acquireTimeoutMillis: timeoutMs },
          ...idleMs && { idleTimeoutMillis: idleMs, evictionRunIntervalMillis: reapMs, numTestsPerEvictionRun: max },
        })
        return {
          acquire: () => pool.acquire(),
          release (c) { pool.release(c) },
          async close () { await pool.drain(); await pool.clear() },
        }
      }
    },
  },

  tarn: {
    kind: 'peer',
    // It always has an acquire timeout, of 30 s unless told otherwise.
    lacks: { tryAcquire: noSync, deep: quadratic, abort: noSignal },
    async load () {
      const { Pool } = peer('tarn')
      return (max, { create = soon, timeoutMs, idleMs, reapMs } = {}) => {
        const pool = new Pool({
          create: () => create(),
          destroy () {},
          min: 0,
          max,
          ...timeoutMs && { acquireTimeoutMillis: timeoutMs },
          ...idleMs && { idleTimeoutMillis: idleMs, reapIntervalMillis: reapMs },
        })
        return { acquire: () => pool.acquire().promise, release (c) { pool.release(c) }, close: () => pool.destroy() }
      }
    },
  },

  'lightning-pool': {
    kind: 'peer',
    lacks: { tryAcquire: noSync, timeout: 'it stops serving once very many have timed out', abort: noSignal },
    async load () {
      const { Pool } = peer('lightning-pool')
      return (max, { create = soon, timeoutMs, idleMs, reapMs } = {}) => {
        const pool = new Pool({ create: () => create(), destroy () {} }, {
          max,
          min: 0,
          maxQueue: 1e9,
          ...timeoutMs && { acquireTimeoutMillis: timeoutMs },
          ...idleMs && { idleTimeoutMillis: idleMs, houseKeepInterval: reapMs },
        })
        return { acquire: () => pool.acquire(), release (c) { pool.release(c) }, close: () => pool.close(true) }
      }
    },
  },

  'pg-pool': {
    kind: 'peer',
    lacks: { tryAcquire: noSync, deep: quadratic, abort: noSignal },
    async load () {
      const PgPool = peer('pg-pool')
      return (max, { create = soon, timeoutMs, idleMs } = {}) => {
        class Client extends EventEmitter {
          _queryable = true
          _ending = false
          a = null
          b = null
          c = 0
          connect (done) { create().then(() => done(null), done) }
          end (done) { this._ending = true; this._queryable = false; if (done) process.nextTick(done) }
          isConnected () { return true }
          ref () {}
          unref () {}
        }
        const pool = new PgPool({
          max, min: 0, Client, idleTimeoutMillis: idleMs || 0, ...timeoutMs && { connectionTimeoutMillis: timeoutMs },
        })
        return { acquire: () => pool.connect(), release (c) { c.release() }, close: () => pool.end() }
      }
    },
  },

  mysql2: {
    kind: 'peer',
    // Its list of free connections is filled by hand with objects that have its connections' own release().
    lacks: {
      tryAcquire: noSync,
      timeout: 'it has no acquire timeout',
      abort: noSignal,
      create: 'its create can not be replaced without a server',
    },
    async load () {
      const BasePool = inside('mysql2', 'lib/base/pool.js')
      const PoolConnection = inside('mysql2', 'lib/pool_connection.js')
      class Stub {
        _released = false
        lastActiveTime = Date.now()
        id = 0
        a = null
        b = null
        c = 0
        constructor (pool) { this._pool = pool }
        destroy () {}
      }
      Stub.prototype.release = PoolConnection.prototype.release
      return (max, { idleMs } = {}) => {
        const pool = new BasePool({
          config: {
            connectionConfig: {},
            // It looks for idle ones only where maxIdle is below the limit.
            connectionLimit: idleMs ? max + 1 : max,
            maxIdle: max,
            idleTimeout: idleMs || 60000,
            waitForConnections: true,
            queueLimit: 0,
          },
        })
        for (let i = 0; i < max; i++) {
          const connection = new Stub(pool)
          pool._allConnections.push(connection)
          pool._freeConnections.push(connection)
        }
        return {
          // As mysql2/promise does it.
          acquire: () => new Promise((resolve, reject) => {
            pool.getConnection((error, connection) => { if (error) reject(error); else resolve(connection) })
          }),
          release (c) { c.release() },
          close () { clearTimeout(pool._removeIdleTimeoutConnectionsTimer) },
        }
      }
    },
  },

  'sequelize-pool': {
    kind: 'peer',
    lacks: { tryAcquire: noSync, deep: quadratic, abort: noSignal },
    async load () {
      const { Pool } = peer('sequelize-pool')
      return (max, { create = soon, timeoutMs, idleMs, reapMs } = {}) => {
        const pool = new Pool({
          create: () => create(),
          destroy: async () => {},
          validate: () => true,
          min: 0,
          max,
          // It always has one: this is the longest.
          acquireTimeoutMillis: timeoutMs || 0x7fffffff,
          idleTimeoutMillis: idleMs || 30000,
          reapIntervalMillis: reapMs || 1000,
        })
        return {
          acquire: () =>
            pool.acquire(),
          release (c) { pool.release(c) },
          close () { clearTimeout(pool._removeIdleTimer) }
        }
      }
    },
  },

  mongodb: {
    kind: 'peer',
    lacks: { tryAcquire: noSync },
    async load () {
      const { ConnectionPool } = inside('mongodb', 'lib/cmap/connection_pool.js')
      const { Timeout } = inside('mongodb', 'lib/timeout.js')
      class Stub {
        generation = 0
        closed = false
        lastUse = 0
        a = null
        b = null
        c = 0
        get idleTime () { return performance.now() - this.lastUse }
        markAvailable () { this.lastUse = performance.now() }
        destroy () { this.closed = true }
      }
      return (max, { create = soon, timeoutMs, idleMs } = {}) => {
        const server = {
          topology: { client: { mongoLogger: undefined, s: {}, options: {} } }, description: {}, handleError () {},
        }
        const pool = new ConnectionPool(server, {
          maxPoolSize: max,
          minPoolSize: 0,
          // Its default.
          maxConnecting: 2,
          maxIdleTimeMS: idleMs || 0,
          hostAddress: 'stub:1',
          waitQueueTimeoutMS: timeoutMs || 0,
        })
        pool.createConnection = function (callback) {
          this.pending++
          create().then(() => { this.pending--; callback(undefined, new Stub()) }, callback)
        }
        pool.ready()
        const none = { connectionCheckoutTimeout: null, csotEnabled: () => false }
        const plain = { timeoutContext: none }
        return {
          acquire (signal) {
            if (!timeoutMs && !signal) return pool.checkOut(plain)
            const timeoutContext = timeoutMs
              ? {
                  connectionCheckoutTimeout: Timeout.expires(timeoutMs), csotEnabled: () => false,
                }
              : none
            return pool.checkOut({ signal, timeoutContext })
          },
          release (c) { pool.checkIn(c) },
          close () { pool.close() },
        }
      }
    },
  },
}
