import Fastify from 'fastify'
import type {
  FastifyInstance, FastifyReply, FastifyRequest, FastifyServerOptions, RouteShorthandOptions,
} from 'fastify'
import type { AddressInfo } from 'node:net'
import type { Test } from 'tap'
import { fastifyPool } from '../../index.js'
import type { PluginOptions, Pool, PoolOptions } from '../../index.js'
import { Client } from './client.js'
import { until } from './until.js'
import { Witness } from './witness.js'
import type { WitnessConnection } from './witness.js'

/** A door that the test opens. */
export interface Gate {
  readonly opened: Promise<void>
  readonly isOpen: boolean
  open (): void
  /** For what is tested: says that it has come, and waits. */
  wait (): Promise<void>
  /** Somebody waits. */
  readonly reached: Promise<void>
}

export function gate (): Gate {
  let pass = () => {}
  let reach = () => {}
  let isOpen = false
  const opened = new Promise<void>((resolve) => { pass = resolve })
  const reached = new Promise<void>((resolve) => { reach = resolve })
  return {
    opened,
    reached,
    get isOpen () { return isOpen },
    open () {
      isOpen = true
      pass()
    },
    wait () {
      reach()
      return opened
    },
  }
}

/** Fastify has it from 5.8 on. */
export const needsHandlerTimeout = {
  skip: 'handlerTimeout' in Fastify().initialConfig ? false : 'this Fastify has no handlerTimeout',
}

/** The option of a route, in ms: the types of an older Fastify don't know it. */
export const handlerTimeout = (ms: number): RouteShorthandOptions => ({ handlerTimeout: ms }) as RouteShorthandOptions

/** `request.<name>`, as the witness's connection. */
export function on (request: FastifyRequest, name = 'db'): WitnessConnection {
  return (request as unknown as Record<string, WitnessConnection>)[name]!
}

/** Says it on the request's own connection, in the request's own name. */
export function say (request: FastifyRequest, what: string, name = 'db'): void {
  on(request, name).say(request.id, what)
}

interface Seen {
  readonly request: FastifyRequest
  readonly reply: FastifyReply
  /** What the plugin's first hook added to the response and to the socket. */
  readonly ours: { readonly raw: readonly unknown[], readonly socket: readonly unknown[] }
}

export interface StageOptions {
  server?: FastifyServerOptions
  /** Of every pool. */
  pool?: Partial<PoolOptions>
  /** Names. */
  pools?: readonly string[]
  plugin?: Partial<PluginOptions>
  /** Hooks that are there before ours. */
  before? (app: FastifyInstance, stage: Stage): void
  routes (app: FastifyInstance, stage: Stage): void
  listen?: boolean
}

/**
 * A real Fastify with the plugin, on a port of its own; its pools are of one connection each, unless the test says
 * otherwise, and every connection is a witness.
 */
export class Stage {
  readonly app: FastifyInstance
  readonly witnesses = new Map<string, Witness>()
  readonly seen = new Map<string, Seen>()
  readonly #t: Test
  readonly #gates = new Map<string, Gate>()

  private constructor (t: Test, { server = {}, pool, pools = ['db'], plugin, before, routes }: StageOptions) {
    this.#t = t
    this.app = Fastify({ requestIdHeader: 'x-id', ...server } as FastifyServerOptions) as unknown as FastifyInstance
    before?.(this.app, this)
    const listeners = (emitter: { listeners? (name: string): unknown[] } | undefined) =>
      emitter?.listeners?.('close') ?? []
    const earlier = new WeakMap<FastifyRequest, Seen['ours']>()
    this.app.addHook('onRequest', (request, reply, done) => {
      earlier.set(request, { raw: listeners(reply.raw), socket: listeners(request.raw.socket) })
      this.seen.set(request.id, { request, reply, ours: { raw: [], socket: [] } })
      done()
    })
    const options = Object.fromEntries(pools.map((name) => {
      const witness = new Witness()
      this.witnesses.set(name, witness)
      return [name, { connector: witness, max: 1, closeTimeout: 500, ...pool }]
    }))
    this.app.register(fastifyPool, { log: false, ...plugin, pools: options } as PluginOptions)
    this.app.register((app, _, done) => {
      for (const [name, witness] of this.witnesses) witness.watch(app.pools.get(name))
      // An instance-level hook after ours: what is new since the one before is ours.
      app.addHook('onRequest', (request, reply, next) => {
        const { raw, socket } = earlier.get(request)!
        const ours =
          {
            raw: listeners(reply.raw).filter((one) => !raw.includes(one)),
            socket: listeners(request.raw.socket)
              .filter((one) => !socket.includes(one))
          }
        this.seen.set(request.id, { request, reply, ours })
        next()
      })
      routes(app, this)
      done()
    })
  }

  static async set (t: Test, options: StageOptions): Promise<Stage> {
    const stage = new Stage(t, options)
    t.teardown(async () => {
      for (const one of stage.#gates.values()) one.open()
      await stage.app.close()
    })
    if (options.listen === false) await stage.app.ready()
    else await stage.app.listen({ port: 0, host: '127.0.0.1' })
    return stage
  }

  get port (): number {
    return (this.app.server.address() as AddressInfo).port
  }

  get pool (): Pool<WitnessConnection> {
    return this.poolOf('db')
  }

  poolOf (name: string): Pool<WitnessConnection> {
    return this.app.pools.get(name) as Pool<WitnessConnection>
  }

  get witness (): Witness {
    return this.witnesses.get('db')!
  }

  client (options?: { reading?: boolean }): Client {
    return new Client(this.#t, this.port, options)
  }

  /** A gate by its name, the same one for whoever waits and whoever opens. All are open when the test ends. */
  gate (name: string): Gate {
    const known = this.#gates.get(name) ?? gate()
    this.#gates.set(name, known)
    return known
  }

  /** The app has opened that gate. For the test itself: it fails where it would wait for ever. */
  async passed (name: string): Promise<void> {
    await until(() => this.gate(name).isOpen, { what: `the gate '${name}'` })
  }

  /** The request has arrived. */
  async arrived (id: string): Promise<Seen> {
    return until(() => this.seen.get(id), { what: `the arrival of ${id}` })
  }

  /** The server knows that the client of this request has gone. */
  async over (id: string): Promise<void> {
    const { reply } = await this.arrived(id)
    const raw = reply.raw as unknown as {
      readonly closed?: boolean, readonly stream?: object, readonly socket: unknown,
    }
    // HTTP/2's response has no `closed`: its socket is undefined from then on.
    await until(() => raw.stream === undefined ? raw.closed : raw.socket === undefined, { what: `the end of ${id}` })
  }

  /** That was said. */
  async hears (statement: string): Promise<void> {
    await until(() => this.witness.said.includes(statement),
      { what: `${statement} among ${this.witness.said.join(' | ')}` })
  }

  /** So many wait for a connection. */
  async waiting (count: number): Promise<void> {
    await until(() => this.pool.stats().pending === count, { what: `${count} in line` })
  }

  /** Nothing is leased, nobody waits, no connection was in two hands, every lease ended once, no listener is left. */
  async settled (t: Test): Promise<void> {
    for (const [name, witness] of this.witnesses) {
      const pool = this.poolOf(name)
      await until(() => {
        const { used, pending, creating, closing } = pool.stats()
        return used + pending + creating + closing === 0
      }, { what: `pool ${name} at rest: ${JSON.stringify(pool.stats())}` })
      const { acquired, released } = pool.stats()
      t.same(pool.holders(), [], 'nobody holds a connection')
      t.same(witness.violations, [], 'no connection was in two hands')
      t.equal(released, acquired, 'every lease has ended')
      t.same({ lent: witness.lent.length, ended: witness.ended }, { lent: acquired, ended: acquired }, 'exactly once')
    }
    for (const [id, { request, reply, ours }] of this.seen) {
      for (const listener of ours.raw) {
        await until(() => !reply.raw.listeners('close').includes(listener as () => void),
          { what: `no listener on the response of ${id}` })
      }
      for (const listener of ours.socket) {
        await until(() => !request.raw.socket.listeners('close').includes(listener as () => void),
          { what: `no listener on the socket of ${id}` })
      }
    }
  }
}
