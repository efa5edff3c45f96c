import { PoolError } from '../../engine/errors.js'
import { secretsOf } from '../../engine/secrets.js'
import type { Connector, ConnectorError, DriverEvent } from '../../../types/connector.js'
import type { Cluster, Command, Redis } from '../../../types/drivers.js'
import type {
  Messages, MessagesOptions, RedisChannel, RedisListener, RedisMessage, RedisPubSub, SubscribeOptions,
  SubscriptionStats, Unsubscribe,
} from '../../../types/messages.js'
import { keepAliveAfter } from '../shared/address.js'
import { loadDriver } from '../shared/driver.js'
import { DriverEvents } from '../shared/events.js'
import { Subscriptions } from '../shared/listeners.js'
import { unlessAborted } from '../shared/signal.js'
import { checkClient, clusterOptions, type Given, type RedisClusterOptions } from './cluster-options.js'
import { ClusterPubSub } from './cluster-pubsub.js'
import { leavesState } from './commands.js'
import { codeOf, isPermanent, isTransient, kindOf } from './errors.js'
import { healScripts } from './scripts.js'
import { cut, disconnectTimeout, drained, isBusy, redisDriver, sendOf, sharedGrace, type Driver } from './wire.js'

export interface RedisClusterConnector extends Connector<Cluster>, RedisPubSub {
  readonly system: 'redis'
  /**
   * The one client that all connections are. It reconnects by itself, is made at first access, and connects with its
   * first command. `close` ends it, unless the app made it.
   *
   * @throws `FST_POOL_CLOSED` if it would be made after `close`
   */
  readonly client: Cluster
  isTransient (error: unknown): boolean
}

/** What it is: ../connectors.ts, whose function of the same name calls this one. */
export async function redisCluster (options: RedisClusterOptions): Promise<RedisClusterConnector> {
  const given = options.client === undefined ? clusterOptions(options) : undefined
  checkClient(options)
  return new ClusterBackend(loadDriver(redisDriver, options.driver), given, options)
}

/** A create that waits for the client. */
interface Waiting { resolve (): void, reject (error: unknown): void }

class ClusterBackend implements RedisClusterConnector {
  readonly system = 'redis'
  readonly isTransient = isTransient
  readonly isPermanent = isPermanent
  readonly kindOf = kindOf
  readonly #driver: Driver
  /** Not a plain field: whoever shows the connector would show them. */
  readonly #secrets: readonly string[]
  readonly #given: Given | undefined
  readonly #connectTimeout: number
  readonly #waiting = new Set<Waiting>()
  /** The connections of the client that we made to its nodes, until they have ended. */
  readonly #nodes = new Set<Redis>()
  /** The connections by which that client asks the nodes for the slots, until they have ended. */
  readonly #refreshers = new Set<Redis>()
  readonly #subscriptions = new Subscriptions()
  #client: Cluster | undefined
  /** The first error since the client was ready. */
  #error: Error | undefined
  /** The client has the slots, and now asks whether the cluster is whole. */
  #checking = false
  #closing: Promise<void> | undefined
  readonly #events = new DriverEvents()
  readonly #pubsub: ClusterPubSub

  constructor (driver: Driver, given: Given | undefined, options: RedisClusterOptions) {
    const { connection, connectTimeout = 3000, client, backoff, keepalive } = options
    this.#driver = driver
    this.#given = given
    this.#connectTimeout = connectTimeout
    const theirs = client && [client.options, Reflect.get(client, 'startupNodes')]
    this.#secrets = secretsOf({ connection: theirs ?? connection })
    this.#pubsub = new ClusterPubSub({
      driver,
      events: this.#events,
      connectTimeout,
      backoff,
      keepalive,
      secrets: () => this.#secrets,
      reach: (signal) => this.create(signal),
    })
    if (client !== undefined) this.#adopt(client)
  }

  get secrets (): readonly string[] {
    return this.#secrets
  }

  get client (): Cluster {
    if (this.#client !== undefined) return this.#client
    if (this.#closing !== undefined) throw new PoolError('FST_POOL_CLOSED', 'the pool of this Redis client is closed')
    const { nodes, options } = this.#given!
    const { redisOptions, ...rest } = options
    // ioredis asks each node in turn for the slots, and then one of them whether the cluster is whole.
    const share = Math.max(1, Math.floor(this.#connectTimeout / (nodes.length + 1)))
    const client = new this.#driver.Cluster([...nodes], {
      slotsRefreshTimeout: share,
      // A silent master does not tell that it has been replaced.
      slotsRefreshInterval: 5000,
      ...rest,
      lazyConnect: true,
      clusterRetryStrategy: (times: number) => Math.min(500, 50 * 2 ** (times - 1)) * (0.9 + 0.1 * Math.random()),
      redisOptions: { keepAlive: keepAliveAfter, ...redisOptions, connectTimeout: share, disconnectTimeout },
    })
    this.#adopt(client)
    refuseWhatIsShared(client)
    return client
  }

  async create (signal: AbortSignal): Promise<Cluster> {
    signal.throwIfAborted()
    if (this.#closing !== undefined) throw new Error('the Redis connector is closed')
    const { client } = this
    if (client.status !== 'ready') await this.#reach(client, signal)
    return client
  }

  /** Nothing to close: the sockets are the client's. */
  destroy (): void {}

  /** Sends a PING to any of the masters. */
  async validate (client: Cluster, signal: AbortSignal): Promise<boolean> {
    if (client.status !== 'ready') return false
    try {
      return await unlessAborted(client.ping(), signal) === 'PONG'
    } catch (error) {
      // A refusal for lack of permission is an answer too.
      if (error instanceof Error && error.message.startsWith('NOPERM')) return true
      throw error
    }
  }

  isBroken (client: Cluster): boolean {
    return client.status !== 'ready'
  }

  /**
   * Of the client: `connect`, `ready`, `close`, `end`, `error` {code}, `reconnecting`. Of its nodes: `node` {port},
   * `node-gone` {port}, `node-error` {code}. Of `subscribe`: as of `redis`.
   */
  onDriverEvent (listener: (event: DriverEvent) => void, failed?: ConnectorError): void {
    this.#events.listen(listener, failed)
  }

  subscribe (channel: RedisChannel, fn: RedisListener, options?: SubscribeOptions): Promise<Unsubscribe>
  subscribe (channel: RedisChannel, options?: MessagesOptions): Messages<RedisMessage>
  subscribe (
    channel: RedisChannel, fn?: RedisListener | MessagesOptions, options?: SubscribeOptions
  ): Promise<Unsubscribe> | Messages<RedisMessage> {
    return this.#pubsub.pubsub.subscribe(channel, fn, options)
  }

  get subscriptions (): SubscriptionStats | undefined {
    return this.#pubsub.pubsub.stats
  }

  /**
   * Ends the client, if we made it, after up to 500 ms for its pending commands. One that was never used never
   * connects.
   */
  close (): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close (): Promise<void> {
    for (const waiting of [...this.#waiting]) waiting.reject(new Error('the Redis connector is closed'))
    const client = this.#client
    try {
      await this.#pubsub.close()
      if (client === undefined || this.#given === undefined) return
      const nodes = client.status === 'ready' ? client.nodes() : []
      const busy = nodes.filter((node) => node.status === 'ready' && isBusy(node))
      await Promise.all(busy.map((node) => this.#drained(node)))
      const inside = client as unknown as Inside
      const subscriber = inside.subscriber.getInstance()
      if (subscriber !== null && subscriber.status !== 'wait') this.#track(subscriber, this.#nodes)
      client.disconnect()
      for (const refresher of this.#refreshers) cut(refresher)
      await Promise.all([...this.#nodes, ...this.#refreshers].map(ended))
      // The client ends when its nodes do. Without any node, it and the commands that wait would never end.
      inside.flushQueue(new Error('Connection is closed.'))
      if (client.status !== 'end') inside.setStatus('end')
    } finally {
      this.#subscriptions.end()
    }
  }

  async #drained (node: Redis): Promise<void> {
    try {
      await drained(node, AbortSignal.timeout(sharedGrace))
    } catch (error) {
      this.#tell('error', { code: codeOf(error) })
    }
  }

  /** Waits for the end of the client's present or next attempt to connect. Begins one where the client would not. */
  #reach (client: Cluster, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const done = () => {
        this.#waiting.delete(waiting)
        signal.removeEventListener('abort', aborted)
      }
      const waiting: Waiting = {
        resolve: () => {
          done()
          resolve()
        },
        reject: (error) => {
          done()
          reject(error)
        },
      }
      const aborted = () => {
        // The reason why no node can be reached says more than that time is up.
        waiting.reject(this.#error ?? signal.reason)
        // ioredis has no deadline for a node that accepts and is silent. The next attempt may find another node.
        const underWay = client.status === 'connecting' || client.status === 'connect'
        if (underWay && this.#waiting.size === 0 && this.#given !== undefined) this.#giveUp(client)
      }
      this.#waiting.add(waiting)
      signal.addEventListener('abort', aborted, { once: true })
      const begin = () => {
        // Events report its failure too; and it does not settle where the cluster is not whole.
        const rests = ['wait', 'end', 'close'].includes(client.status)
        if (rests && this.#waiting.has(waiting)) Promise.allSettled([client.connect()])
      }
      // 'close' is a passing state: the end follows, or another attempt. But where nodes go after the end, it stays.
      if (client.status === 'close') setImmediate(begin)
      else begin()
    })
  }

  #giveUp (client: Cluster): void {
    client.disconnect(true)
    for (const refresher of this.#refreshers) cut(refresher)
  }

  #adopt (client: Cluster): void {
    this.#client = client
    const listen = <T = unknown>(name: string, fn: (detail: T) => void) => this.#subscriptions.on(client, name, fn)
    listen('connect', () => {
      this.#checking = true
      this.#tell('connect')
    })
    listen('ready', () => {
      this.#checking = false
      this.#error = undefined
      this.#tell('ready')
      for (const waiting of [...this.#waiting]) waiting.resolve()
    })
    listen('close', () => {
      const reason = this.#error ?? new Error(this.#checking
        ? 'the nodes say that the cluster is not whole (cluster_state:fail)'
        : 'no node of the cluster is there')
      this.#checking = false
      this.#tell('close')
      for (const waiting of [...this.#waiting]) waiting.reject(reason)
    })
    for (const name of ['reconnecting', 'end']) listen(name, () => this.#tell(name))
    // Without a listener ioredis writes errors to the console.
    listen<Error>('error', (error) => {
      this.#error ??= error
      this.#tell('error', { code: codeOf(error) })
    })
    listen<Error>('node error', (error) => {
      // The last error of a node is that its connection is closed. The one before it says why.
      if (error.message !== 'Connection is closed.') this.#error = error
      this.#tell('node-error', { code: codeOf(error) })
    })
    listen<Redis>('+node', (node) => {
      this.#tell('node', { port: node.options.port })
      if (this.#given !== undefined) this.#watch(node)
    })
    listen<Redis>('-node', (node) => this.#tell('node-gone', { port: node.options.port }))
  }

  /** ioredis asks a node for the slots over a duplicate of its connection, and ignores why that fails. */
  #watch (node: Redis): void {
    this.#track(node, this.#nodes)
    const duplicate = node.duplicate.bind(node)
    node.duplicate = (override) => {
      const made = duplicate(override)
      // Any other duplicate belongs to whoever made it.
      if (override?.connectionName?.startsWith('ioredis-cluster(refresher)') !== true) return made
      this.#track(made, this.#refreshers)
      made.on('error', (error: Error) => { this.#error = error })
      return made
    }
  }

  #track (socket: Redis, all: Set<Redis>): void {
    all.add(socket)
    socket.once('end', () => { all.delete(socket) })
  }

  #tell (name: string, detail: { code?: string, port?: number | undefined } = {}): void {
    this.#events.tell(name, { shared: true, ...detail })
  }
}

/** Internals of ioredis that are not in its types. */
interface Inside {
  readonly subscriber: { getInstance (): Redis | null }
  flushQueue (error: Error): void
  setStatus (status: string): void
}

/** Refuses the commands that would change what the commands of others do on a shared connection. */
function refuseWhatIsShared (client: Cluster): void {
  const send = sendOf(client)
  const value: Cluster['sendCommand'] = (command, stream, node) => {
    if (command.name === 'exec') healScripts(client, command)
    // A pipeline is sent as a whole, so MULTI and WATCH are together with what they belong to.
    if (stream !== undefined || !leavesState(command)) return send(command, stream, node)
    const name = command.name.toUpperCase()
    const message = `all share the connections of a Redis cluster: ${name} needs one of its own, ` +
      'from duplicate() or from a node\'s duplicate()'
    return refuse(command, new PoolError('FST_POOL_NOT_SUPPORTED', message))
  }
  Object.defineProperty(client, 'sendCommand', { value, writable: true, configurable: true })
}

function refuse (command: Command, error: Error): unknown {
  command.reject(error)
  return command.promise
}

async function ended (connection: Redis): Promise<void> {
  if (connection.status === 'end') return
  await new Promise<void>((resolve) => { connection.once('end', () => resolve()) })
}
