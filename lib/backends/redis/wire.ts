import type { Socket } from 'node:net'
import type { Cluster, Command, Redis } from '../../../types/drivers.js'
import type { DriverKind } from '../shared/driver.js'

/** ioredis' own `sendCommand`, looked up at each command: instrumentation may patch the prototype at any time. */
export function sendOf (client: Redis | Cluster): Cluster['sendCommand'] {
  const own = Object.getOwnPropertyDescriptor(client, 'sendCommand') as { value: Cluster['sendCommand'] } | undefined
  const prototype = Object.getPrototypeOf(client) as Cluster
  return (command, stream, node) => {
    return (own?.value ?? prototype.sendCommand).call(client as Cluster, command, stream, node)
  }
}

/** How long a half-closed connection may take until it is cut off, in ms. */
export const disconnectTimeout = 100

/** How long the end of a shared client waits for what the client was asked, in ms. */
export const sharedGrace = 500

/** What is used of the module ioredis. */
export interface Driver {
  readonly Redis: new (options: object) => Redis
  readonly Cluster: new (nodes: unknown[], options: object) => Cluster
  readonly Command: new (name: string, args: string[], options: object) => Command
}

type RedisClass = Partial<Driver> & { readonly prototype?: Partial<Redis> }

export const redisDriver: DriverKind<Driver> = {
  backend: 'redis',
  name: 'ioredis',
  via: '@fastify/redis',
  expected: 'the module ioredis, or its class Redis',
  read (module) {
    // ioredis exports its class as the module. A subclass of the app's is used as it is.
    const Redis = (typeof module === 'function' ? module : module.Redis ?? {}) as RedisClass
    const { Cluster = Redis.Cluster, Command = Redis.Command } = module as Partial<Driver>
    if (typeof Redis.prototype?.sendCommand !== 'function' || Command === undefined) return undefined
    return { Redis, Cluster, Command } as unknown as Driver
  },
  // @fastify/redis does not export its copy of the driver.
  belongs: ({ fastifyRedis }) => typeof fastifyRedis === 'function',
}

/** Internals of ioredis that are not in its types. */
export interface Inside {
  readonly connector: {
    readonly stream?: Socket
    connectToSentinel?: (endpoint: unknown, options?: object) => Redis
  }
  reconnectTimeout: NodeJS.Timeout | null
  flushQueue (error: Error): void
  setStatus (status: string): void
}

/** A command of ioredis, with `commandTimeout`. */
export interface Timed { readonly _commandTimeoutTimer?: NodeJS.Timeout }

/** In ioredis 6 only: 5 speaks RESP2 only. */
export interface Newer { readonly protocol?: 2 | 3 }

export function speaksResp3 ({ condition }: Redis): boolean {
  return (condition as Newer | null)?.protocol === 3
}

export function isBusy (connection: Redis): boolean {
  const { commandQueue, options, autoPipelineQueueSize } = connection
  return commandQueue.length > 0 || (options.enableAutoPipelining === true && autoPipelineQueueSize > 0)
}

/**
 * Resolves when all that was sent has been answered. It looks at the queue after each piece of data: to wait on a
 * command's promise would take its failure for handled, and a further command could be one too many.
 */
export function drained (connection: Redis, signal: AbortSignal): Promise<void> {
  const { stream } = connection
  return new Promise((resolve, reject) => {
    const stop = () => {
      stream.off('data', check)
      stream.off('close', closed)
      signal.removeEventListener('abort', aborted)
    }
    const check = () => {
      if (isBusy(connection)) return
      stop()
      resolve()
    }
    const closed = () => {
      stop()
      reject(new Error('the connection closed while commands were under way'))
    }
    const aborted = () => {
      stop()
      reject(signal.reason)
    }
    // ioredis' own listener for data came first, so the queue is up to date.
    stream.on('data', check)
    stream.on('close', closed)
    signal.addEventListener('abort', aborted)
    if (signal.aborted) aborted()
    else if (stream.closed) closed()
  })
}

export async function disconnected (client: Redis, also?: () => void): Promise<void> {
  if (client.status === 'end') return
  await new Promise<void>((resolve) => {
    client.once('end', () => resolve())
    client.disconnect()
    also?.()
  })
}

/**
 * Ends a connection at once, whatever it is doing. `disconnect()` would leave a timer behind where the socket has
 * closed already.
 */
export function cut (connection: Redis): void {
  const { stream } = (connection as unknown as Inside).connector
  if (stream !== undefined) stream.destroy()
  // Not the connection's own `disconnect`, which for a sentinel calls this function.
  else (Object.getPrototypeOf(connection) as Redis).disconnect.call(connection)
}
