import type { RedisOptions as IORedisOptions } from 'ioredis'
import type { Redis } from '../../../types/drivers.js'
import { keepAliveAfter } from '../shared/address.js'
import type { Site } from './options.js'
import { cut, disconnected, disconnectTimeout, type Inside, type Newer, type Timed } from './wire.js'

/** How long after a sentinel went away it is looked for again, in ms. */
const sentinelPause = 1000

/** Learns from each of the given sentinels when there is another master. It has no part in making connections. */
export class SentinelWatch {
  readonly #site: Site
  readonly #moved: () => void
  readonly #connections = new Set<Redis>()
  readonly #timers = new Set<NodeJS.Timeout>()
  #master: string | undefined
  #closed = false

  constructor (site: Site, moved: () => void) {
    this.#site = site
    this.#moved = moved
    for (const at of site.source.base.sentinels ?? []) this.#listen(at)
  }

  async close (): Promise<void> {
    this.#closed = true
    for (const timer of this.#timers) clearTimeout(timer)
    await Promise.all([...this.#connections].map((connection) => disconnected(connection)))
  }

  #listen (at: { host?: string, port?: number, family?: number }): void {
    const { driver, source, connectTimeout } = this.#site
    // The sentinels' password may change with an answer; which sentinels there are does not.
    const base: IORedisOptions & Newer = source.base
    const { sentinelUsername, sentinelPassword, sentinelTLS, protocol, family } = base
    const connection = new driver.Redis({
      host: at.host,
      port: at.port ?? 26379,
      family: at.family ?? family,
      username: sentinelUsername,
      password: sentinelPassword,
      tls: sentinelTLS,
      protocol,
      keepAlive: keepAliveAfter,
      retryStrategy: null,
      lazyConnect: true,
      enableReadyCheck: false,
      connectTimeout,
      disconnectTimeout,
    } as object as IORedisOptions)
    this.#connections.add(connection)
    // Creates report that a sentinel can't be reached. Without a listener ioredis writes errors to the console.
    connection.on('error', () => {})
    connection.on('message', (_channel, text) => {
      const [name, , , host, port] = text.split(' ')
      if (name === source.base.name) this.#hear(`${host}:${port}`)
    })
    connection.once('end', () => {
      this.#connections.delete(connection)
      if (this.#closed) return
      const timer = setTimeout(() => {
        this.#timers.delete(timer)
        this.#listen(at)
      }, sentinelPause).unref()
      this.#timers.add(timer)
    })
    this.#ask(connection).catch(() => {
      // The connection has failed: it ends, and is made again as above.
      cut(connection)
    })
  }

  async #ask (connection: Redis): Promise<void> {
    await connection.connect()
    // This connection does not keep the process alive.
    connection.stream.unref()
    // Both are sent together, so that nothing is missed between them; and in RESP2 no question can follow SUBSCRIBE.
    const asked = connection.call('SENTINEL', 'GET-MASTER-ADDR-BY-NAME', this.#site.source.base.name!)
    const [address] = await Promise.all([asked, connection.subscribe('+switch-master')])
    if (Array.isArray(address)) this.#hear(address.join(':'))
  }

  #hear (address: string): void {
    const moved = this.#master !== undefined && this.#master !== address
    this.#master = address
    if (moved && !this.#closed) this.#moved()
  }
}

/**
 * Limits how long a client may take to ask its sentinels. ioredis asks each over a connection that only it knows,
 * without a deadline for a sentinel that accepts and is silent, and leaves a timer of 2 s behind. Here each gets its
 * share of `connectTimeout`, and can be cut off.
 *
 * @param sentinels gets these connections, until they have ended
 * @param stopped whether no further sentinel is to be asked
 */
export function limitSentinels (
  client: Redis, connectTimeout: number, sentinels: Set<Redis>, stopped: () => boolean
): void {
  const { connector } = client as unknown as Inside
  const connect = connector.connectToSentinel
  if (connect === undefined) return
  const { sentinels: seeds, sentinelCommandTimeout } = client.options
  const share = Math.max(1, Math.floor(connectTimeout / ((seeds?.length ?? 0) + 1)))
  connector.connectToSentinel = (endpoint, given) => {
    if (stopped()) throw new Error('Connection is closed.')
    const commandTimeout = sentinelCommandTimeout ?? share
    const sentinel = connect.call(connector, endpoint, { connectTimeout: share, commandTimeout, ...given })
    sentinels.add(sentinel)
    sentinel.disconnect = () => {
      sentinels.delete(sentinel)
      cut(sentinel)
    }
    const { sendCommand } = sentinel
    sentinel.sendCommand = (command, stream) => {
      // ioredis before 5.10 leaves this timer running where the command fails in another way.
      command.promise.catch(() => clearTimeout((command as unknown as Timed)._commandTimeoutTimer))
      return sendCommand.call(sentinel, command, stream)
    }
    return sentinel
  }
}
