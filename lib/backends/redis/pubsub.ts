import { badOption, scrub } from '../../engine/errors.js'
import type {
  Messages, MessagesOptions, RedisChannel, RedisListener, RedisMessage, SubscribeOptions, SubscriptionStats,
  Unsubscribe,
} from '../../../types/messages.js'
import type { Backoff } from '../../../types/options.js'
import type { DriverEvents } from '../shared/events.js'
import { Listening, type Ear, type ListeningSite, type Topic, type Wire } from '../shared/listening.js'
import { subscribe } from '../shared/subscribing.js'
import { codeOf } from './errors.js'
import type { RedisSession } from './session.js'
import { cut } from './wire.js'

/** The first letter of a key: what its name is. */
export const CHANNEL = 'c'
export const PATTERN = 'p'
export const SHARD = 's'

/** Of what is subscribed to, by the first letter of its key. */
const commands = new Map([[CHANNEL, 'subscribe'], [PATTERN, 'psubscribe'], [SHARD, 'ssubscribe']])

/** @throws `FST_POOL_BAD_OPTIONS` */
export function topicOf (channel: unknown): Topic {
  const wrong = (path: string, given: unknown, expected: string) => badOption(path, given, expected)
  const isName = (name: unknown): name is string => typeof name === 'string' && name !== ''
  if (isName(channel)) return { key: CHANNEL + channel, name: channel }
  const forms = 'the name of a channel, { pattern } or { shard }'
  if (typeof channel !== 'object' || channel === null) throw wrong('channel', channel, forms)
  const given = Object.entries(channel).filter(([, value]) => value !== undefined)
  const [[form, name] = ['', undefined]] = given
  if (given.length !== 1 || (form !== 'pattern' && form !== 'shard')) throw wrong('channel', channel, forms)
  if (!isName(name)) throw wrong(`channel.${form}`, name, 'a text that is not empty')
  return { key: (form === 'pattern' ? PATTERN : SHARD) + name, name }
}

/** A connection that receives. */
export class RedisWire implements Wire {
  readonly #session: RedisSession
  readonly #ear: Ear<RedisMessage>
  /** The client's `keyPrefix`, which ioredis puts before the names of shard channels. */
  readonly #prefix: string
  /** The shard channels that the server sends, without the prefix. */
  readonly #shards = new Set<string>()

  constructor (session: RedisSession, ear: Ear<RedisMessage>, prefix: string) {
    this.#session = session
    this.#ear = ear
    this.#prefix = prefix
    const { connection } = session
    connection.on('message', (channel: string, message: string) => {
      ear.heard(CHANNEL + channel, Object.freeze({ message, channel }))
    })
    connection.on('pmessage', (pattern: string, channel: string, message: string) => {
      ear.heard(PATTERN + pattern, Object.freeze({ message, channel }))
    })
    connection.on('smessage', (name: string, message: string) => {
      const channel = name.slice(prefix.length)
      ear.heard(SHARD + channel, Object.freeze({ message, channel }))
    })
    // ioredis 6: the slot of a shard channel went to another node.
    connection.on('moved', () => { this.#moved() })
    // ioredis 5 takes that for an answer to no question. Whatever it is, nobody knows what this connection receives.
    connection.on('error', () => { cut(connection) })
    session.onDeath((error) => { ear.lost(error) })
  }

  async listen (keys: readonly string[]): Promise<ReadonlyMap<string, unknown>> {
    const refused = new Map<string, unknown>()
    // One command for each: the server refuses all names of a command together.
    await Promise.all(keys.map(async (key) => {
      try {
        if (key.startsWith(SHARD)) this.#shards.add(key.slice(1))
        await this.#session.command(commands.get(key[0]!)!, [this.#nameOf(key)])
      } catch (error) {
        this.#shards.delete(key.slice(1))
        if ((error as Error).name !== 'ReplyError' || this.#session.broken) throw error
        refused.set(key, error)
      }
    }))
    return refused
  }

  async unlisten (keys: readonly string[]): Promise<void> {
    await Promise.all(keys.map(async (key) => {
      if (key.startsWith(SHARD)) this.#shards.delete(key.slice(1))
      const name = commands.get(key[0]!)!.replace('subscribe', 'unsubscribe')
      await this.#session.command(name, [this.#nameOf(key)])
    }))
  }

  async ping (): Promise<void> {
    await this.#session.ping()
  }

  end (): Promise<void> | void {
    return this.#session.end()
  }

  #nameOf (key: string): string {
    return key.startsWith(SHARD) ? this.#prefix + key.slice(1) : key.slice(1)
  }

  /** ioredis does not say which, but it knows which are left. */
  #moved (): void {
    const { subscriber } = (this.#session.connection.condition ?? {}) as { subscriber?: Subscribed | false }
    const left = new Set(subscriber ? subscriber.channels('ssubscribe') : [])
    const gone = [...this.#shards].filter((name) => !left.has(this.#prefix + name))
    for (const name of gone) this.#shards.delete(name)
    if (gone.length > 0) this.#ear.revoked(gone.map((name) => SHARD + name))
  }
}

/** Internal to ioredis: what it is subscribed to. */
interface Subscribed { channels (set: 'ssubscribe'): string[] }

interface PubSubSite extends Pick<ListeningSite<RedisMessage>, 'connect' | 'locate' | 'failed'> {
  readonly connectTimeout: number
  readonly backoff: Backoff | undefined
  readonly keepalive: number | undefined
  readonly events: DriverEvents
  secrets (): readonly string[]
}

/** The subscriptions of a Redis connector. */
export class PubSub {
  readonly listening: Listening<RedisMessage>

  constructor (site: PubSubSite) {
    this.listening = new Listening<RedisMessage>({
      connect: (ear, signal, place) => site.connect(ear, signal, place),
      ...(site.locate && { locate: (key: string, signal: AbortSignal) => site.locate!(key, signal) }),
      ...(site.failed && { failed: (place: string) => { site.failed!(place) } }),
      connectTimeout: site.connectTimeout,
      backoff: site.backoff,
      keepalive: site.keepalive,
      events: site.events,
      codeOf,
      scrub: (error) => scrub(error, site.secrets()),
    })
  }

  subscribe (
    channel: RedisChannel, fn?: RedisListener | MessagesOptions, options?: SubscribeOptions
  ): Promise<Unsubscribe> | Messages<RedisMessage> {
    const call = ({ message, channel }: RedisMessage) => (fn as RedisListener)(message, channel)
    return subscribe(this.listening, () => topicOf(channel), fn, options, call)
  }

  get stats (): SubscriptionStats | undefined {
    return this.listening.stats
  }

  moveTo (other: PubSub): void {
    this.listening.moveTo(other.listening)
  }

  close (): Promise<void> {
    return this.listening.close()
  }
}
