// Anything can be thrown: undefined, a function, a Proxy whose traps throw. It is an error like any other.
import { inspect } from 'node:util'
import fc from 'fast-check'
import Fastify from 'fastify'
import t from 'tap'
import { PoolError, scrub } from '../../lib/engine/errors.js'
import { fastifyPool } from '../../lib/fastify/plugin.js'
import { Pool } from '../../lib/pool/pool.js'
import { TargetPool } from '../../lib/balance/target-pool.js'
import type { Connector, DestroyReason } from '../../types/connector.js'
import type { EngineOptions } from '../../types/options.js'
import type { PoolFace } from '../../types/pool.js'
import { uncaught } from '../support/app.js'
import { VirtualClock } from '../support/clock.js'
import { FakeConnector, watch, type Watched } from '../support/fake-connector.js'
import { some } from '../support/full.js'
import type { Teardown } from '../support/services.js'

const traps = [
  'apply', 'construct', 'defineProperty', 'deleteProperty', 'get', 'getOwnPropertyDescriptor', 'getPrototypeOf', 'has',
  'isExtensible', 'ownKeys', 'preventExtensions', 'set', 'setPrototypeOf',
]
const throwing = (target: object) =>
  new Proxy(target, Object.fromEntries(traps.map((name) => [name, () => { throw new Error(`trap ${name}`) }])))
const revoked = () => {
  const { proxy, revoke } = Proxy.revocable({}, {})
  revoke()
  return proxy
}
const circle = () => {
  const error: AggregateError = new AggregateError([], '')
  error.errors.push(error)
  return error
}
/** What may be thrown, made anew each time. */
const things: Record<string, () => unknown> = {
  undefined: () => undefined,
  null: () => null,
  zero: () => 0,
  'an empty text': () => '',
  'a text': () => 'text',
  'a symbol': () => Symbol('s'),
  'a bigint': () => 1n,
  'a function': () => () => 'its source',
  'a function without text': () => Object.assign(() => {}, { toString () { throw new Error('toString') } }),
  'an object of nothing': () => Object.create(null),
  'an array': () => [],
  'a frozen error': () => Object.freeze(new Error('frozen')),
  'an error without text': () => Object.assign(new Error('x'), { message: undefined, stack: 5, name: {} }),
  'an error whose getters throw': () => Object.create(Error.prototype,
    Object.fromEntries(['message', 'code', 'cause', 'stack', 'name'].map((name) =>
      [name, { get () { throw new Error(`getter ${name}`) } }]))),
  'a Proxy': () => throwing({}),
  'a Proxy of an error': () => throwing(new Error('x')),
  'a Proxy of a function': () => throwing(() => {}),
  'a Proxy of an array': () => throwing([]),
  'a revoked Proxy': revoked,
  'an error with such a cause': () => new Error('x', { cause: throwing({}) }),
  'errors with such ones': () => new AggregateError([throwing({}), revoked()], ''),
  'errors that contain themselves': circle,
  'an error of ours that is a Proxy': () => throwing(new PoolError('FST_POOL_CLOSED', 'x')),
}
const names = Object.keys(things)

t.test('a copy of it is an error with a text, which can be shown', async (t) => {
  for (const name of names) {
    const copy = scrub(things[name]!(), ['its source', 'hush'])
    t.equal(Object.getPrototypeOf(copy), Error.prototype, name)
    t.type(copy.message, 'string')
    t.type(inspect(copy), 'string')
    t.type(JSON.stringify(copy), 'string')
  }
  const messageOf = (name: string) => scrub(things[name]!(), []).message
  t.equal(messageOf('undefined'), 'undefined')
  t.equal(messageOf('a function'), 'a function was thrown', 'and not its source')
  t.equal(messageOf('a Proxy'), 'what was thrown can not be read')
  t.match(scrub(things['an error with such a cause']!(), []), {
    message: 'x', cause: { message: 'what was thrown can not be read' },
  })
})

// --- A pool ----------------------------------------------------------------------------------------------------------

/** Where something is thrown next, and what: by the connector, by hooks, by listeners, by who uses a connection. */
interface Throwing { readonly place: string, readonly thing: string, readonly at: number, readonly later: boolean }

interface Connection { alive: boolean, died?: (error?: Error) => void }

const places = [
  'create', 'destroy', 'validate', 'isBroken', 'reset', 'onDeath', 'obstacle', 'isTransient', 'inspect', 'begin',
  'commit', 'rollback', 'savepoint', 'conflict', 'close', 'onConnect', 'onAcquire', 'onRelease', 'onDisconnect', 'wrap',
  'listener', 'use', 'transaction', 'death', 'lease', 'signal',
]

/** A connector, hooks, listeners and callers that throw as they are told. */
class Stage {
  readonly live = new Set<Connection>()
  readonly told: unknown[] = []
  readonly #plan: Throwing[]
  readonly #counts = new Map<string, number>()

  constructor (plan: readonly Throwing[]) {
    this.#plan = [...plan]
  }

  /** Throws, if it is time to. */
  act (place: string): void {
    const count = (this.#counts.get(place) ?? 0) + 1
    this.#counts.set(place, count)
    const found = this.#plan.find((one) => one.place === place && one.at === count)
    if (found !== undefined) throw things[found.thing]!()
  }

  async soon (place: string): Promise<void> {
    if (this.#plan.some((one) => one.place === place && one.later)) await undefined
    this.act(place)
  }

  get connector (): Connector<Connection> {
    const transaction = (connection: Connection) => ({
      connection,
      commit: () => this.soon('commit'),
      rollback: () => this.soon('rollback'),
      savepoint: async () => {
        await this.soon('savepoint')
        return transaction(connection)
      },
    })
    return {
      system: 'thrown',
      create: async () => {
        await this.soon('create')
        const connection = { alive: true }
        this.live.add(connection)
        return connection
      },
      destroy: (connection: Connection, _: DestroyReason) => {
        this.live.delete(connection)
        return this.soon('destroy')
      },
      validate: async () => {
        await this.soon('validate')
        return true
      },
      isBroken: ({ alive }) => {
        this.act('isBroken')
        return !alive
      },
      obstacle: () => {
        this.act('obstacle')
        return undefined
      },
      reset: () => this.soon('reset'),
      onDeath: (connection, listener) => {
        connection.died = listener
        this.act('onDeath')
      },
      isTransient: () => {
        this.act('isTransient')
        return true
      },
      inspect: async () => {
        await this.soon('inspect')
        return { role: 'primary' }
      },
      close: () => this.soon('close'),
      transactions: {
        isolation: [],
        readOnly: false,
        begin: async (connection: Connection) => {
          await this.soon('begin')
          return transaction(connection)
        },
        isTransient: () => {
          this.act('conflict')
          return true
        },
      },
    }
  }

  get hooks (): EngineOptions<Connection> {
    return {
      onConnect: () => this.soon('onConnect'),
      onAcquire: () => { this.act('onAcquire') },
      onRelease: () => this.soon('onRelease'),
      onDisconnect: () => { this.act('onDisconnect') },
      wrap: (connection) => {
        this.act('wrap')
        return connection
      },
    }
  }

  listenTo (pool: PoolFace<Connection>): void {
    pool.on('error', ({ error }) => { this.told.push(error) })
    for (const event of ['error', 'connect', 'disconnect', 'acquire', 'release'] as const) {
      pool.on(event, () => { this.act('listener') })
    }
  }

  /** What an app does with a pool. */
  async work (pool: PoolFace<Connection>): Promise<void> {
    await pool.use(() => this.soon('use'), { retry: 2 })
    await pool.transaction(async () => {
      await pool.transaction(() => this.soon('transaction'))
      this.act('transaction')
    }, { retry: 2 })
    const lease = await pool.acquire()
    const { connection } = lease
    try {
      this.act('death')
      this.act('lease')
    } catch (error) {
      if (this.#plan.some(({ place }) => place === 'lease')) lease.destroy(error as Error)
      else connection.died?.(error as Error)
    } finally {
      lease.release()
    }
    const leave = new AbortController()
    const waits = pool.acquire({ signal: leave.signal })
    try {
      this.act('signal')
    } catch (error) {
      leave.abort(error)
    }
    (await waits).release()
  }
}

const throwings: fc.Arbitrary<Throwing> = fc.record({
  place: fc.constantFrom(...places),
  thing: fc.constantFrom(...names),
  at: fc.integer({ min: 1, max: 4 }),
  later: fc.boolean(),
})

/** Lets a pool be worked with, and closes it. */
async function tried (plan: readonly Throwing[], several: boolean): Promise<void> {
  const stage = new Stage(plan)
  const clock = new VirtualClock()
  const options = { ...stage.hooks, max: 2, min: 1, validateAfter: 1, keepalive: 50, acquireTimeout: 1000 }
  const ended = async (what: string, ...all: Array<Watched<unknown>>) => {
    for (let step = 0; step < 50; step++) {
      await clock.advance(100)
      if (all.every(({ done }) => done)) return
    }
    throw new Error(`${what} hangs: ${inspect(pool.stats())}`)
  }
  const pool: PoolFace<Connection> = several
    ? new TargetPool<Connection>([{ connector: stage.connector }], options, clock)
    : new Pool<Connection>(stage.connector, options, clock)
  stage.listenTo(pool)
  await ended('open', watch(pool.open()))
  for (let round = 0; round < 3; round++) {
    await ended('work', watch(stage.work(pool)), watch(stage.work(pool)), watch(pool.health()))
  }
  // What is still cleaned has ended then.
  await clock.advance(3000)
  const { used, pending, idle, creating } = pool.stats()
  if (used + pending + creating > 0) throw new Error(`left behind: ${inspect(pool.stats())}`)
  if (stage.live.size !== idle) throw new Error(`${stage.live.size} connections, and ${idle} known`)
  const closed = watch(pool.close())
  await ended('close', closed)
  if (closed.error !== undefined) throw closed.error
  if (stage.live.size > 0 || clock.timers.set > 0) throw new Error('something is left')
  for (const error of stage.told) if (!(error instanceof Error)) throw new Error('what is told is no error')
}

/** A listener of `error` that throws leads to a warning. */
function quiet (t: Teardown): void {
  const { emitWarning } = process
  process.emitWarning = () => {}
  t.teardown(() => { process.emitWarning = emitWarning })
}

t.test('a pool goes on, whatever is thrown wherever', async (t) => {
  const lost = uncaught(t)
  quiet(t)
  const kinds = [
    'undefined', 'a text', 'a function', 'a frozen error', 'an error whose getters throw', 'a Proxy', 'a revoked Proxy',
    'errors that contain themselves',
  ]
  for (const place of places) {
    for (const thing of kinds) {
      const plan = [1, 2].map((at) => ({ place, thing, at, later: true }))
      for (const several of [false, true]) {
        await tried(plan, several).catch((error: Error) => { t.fail(`${place}, ${thing}: ${error.message}`) })
      }
    }
  }
  t.strictSame(lost, [])
})

t.test('a pool goes on, whatever is thrown, at random', async (t) => {
  const lost = uncaught(t)
  quiet(t)
  await fc.assert(fc.asyncProperty(fc.array(throwings, { minLength: 1, maxLength: 12 }), fc.boolean(), tried),
    { numRuns: some(200, 5000) })
  t.strictSame(lost, [])
})

// --- A request -------------------------------------------------------------------------------------------------------

t.test('a request is answered with an error, its transaction rolled back, and its connection goes back', async (t) => {
  const lost = uncaught(t)
  quiet(t)
  for (const place of ['onAcquire', 'bulkhead.key', 'handler', 'begin', 'commit']) {
    const connector = new FakeConnector()
    let thing: string | undefined
    const act = (here: string) => { if (place === here && thing !== undefined) throw things[thing]!() }
    connector.onAsked = (what) => { act(what.split(' ')[0]!) }
    const app = Fastify()
    await app.register(fastifyPool, {
      connector,
      max: 1,
      acquireTimeout: 1000,
      onAcquire: () => { act('onAcquire') },
      bulkhead: {
        max: 1,
        key: () => {
          act('bulkhead.key')
          return 'a'
        },
      },
      lease: { transaction: { commitOn: 'reply' } },
    })
    app.get('/', async () => {
      act('handler')
      return 'well'
    })
    for (thing of names) {
      const before = connector.asked.length
      const { statusCode } = await app.inject('/')
      const asked = connector.asked.slice(before).join(' ')
      if (place === 'handler') {
        // Fastify itself takes a Proxy whose traps throw for an error with the status 200.
        t.match(asked, /^begin #1 rollback #1$/, `${place}, ${thing}`)
      } else t.equal(statusCode, 500, `${place}, ${thing}`)
      t.equal(app.pools.stats().db!.used, 0)
    }
    thing = undefined
    t.equal((await app.inject('/')).body, 'well')
    await app.close()
  }
  t.strictSame(lost, [])
})
