import type { Cluster, Redis } from '../../../types/drivers.js'
import type { RedisMessage } from '../../../types/messages.js'
import type { Ear } from '../shared/listening.js'
import { cutAtAbort } from '../shared/signal.js'
import { exclusive, type Site } from './options.js'
import { PubSub, RedisWire, SHARD } from './pubsub.js'
import { RedisSession } from './session.js'
import { cut } from './wire.js'

/** Internals of ioredis that are not in its types. */
interface Inside {
  /** The nodes of each slot, the master first, as `host:port`. */
  readonly slots: ReadonlyArray<readonly string[] | undefined>
  readonly connectionPool: { getInstanceByKey (key: string): Redis | undefined }
}

interface ClusterSite extends Pick<Site, 'driver' | 'events' | 'connectTimeout'>,
  Pick<ConstructorParameters<typeof PubSub>[0], 'backoff' | 'keepalive' | 'secrets'> {
  /** The client, with the slots. */
  reach (signal: AbortSignal): Promise<Cluster>
}

/** A node's connections: one for its shard channels, one for all others, as of a single server. */
const place = (node: string, kind: string) => `${kind} ${node}`

/**
 * The subscriptions of a cluster. Every node sends all messages of channels and patterns, so one connection to any of
 * them is enough. The messages of a shard channel come from the master of its slot.
 */
export class ClusterPubSub {
  readonly pubsub: PubSub
  readonly #site: ClusterSite
  #client: Cluster | undefined
  /** The node that sends channels and patterns. */
  #any: string | undefined

  constructor (site: ClusterSite) {
    this.#site = site
    const { connectTimeout, backoff, keepalive, events } = site
    this.pubsub = new PubSub({
      connect: (ear, signal, place) => this.#connect(ear, signal, place),
      locate: (key, signal) => this.#locate(key, signal),
      failed: (where) => { this.#failed(where) },
      connectTimeout,
      backoff,
      keepalive,
      events,
      secrets: () => site.secrets(),
    })
  }

  async #locate (key: string, signal: AbortSignal): Promise<string> {
    const client = await this.#site.reach(signal)
    if (this.#client !== client) {
      this.#client = client
      client.on('refresh', this.#review)
    }
    const where = this.#placeOf(key)
    if (where === undefined) throw new Error('no node of the cluster is known to have this channel')
    return where
  }

  /** undefined: nobody knows. */
  #placeOf (key: string): string | undefined {
    const client = this.#client!
    if (key.startsWith(SHARD)) {
      const [master] = insideOf(client).slots[slotOf(prefixOf(client) + key.slice(1), this.#site)] ?? []
      return master && place(master, SHARD)
    }
    if (this.#any === undefined || nodeAt(client, this.#any) === undefined) {
      const all = client.nodes('master')
      const { host, port } = all[Math.floor(Math.random() * all.length)]?.options ?? {}
      this.#any = host === undefined ? undefined : `${host}:${port}`
    }
    return this.#any && place(this.#any, '')
  }

  /** ioredis has asked a node for the slots. */
  readonly #review = () => {
    this.pubsub.listening.review((key, at) => {
      const now = this.#placeOf(key)
      return now !== undefined && now !== at
    })
  }

  /** A node is gone, or a slot has moved: the client may not know that yet. */
  #failed (where: string): void {
    if (this.#any !== undefined && where === place(this.#any, '')) this.#any = undefined
    // Its own events tell of a failure.
    this.#client?.refreshSlotsCache(() => {})
  }

  async #connect (ear: Ear<RedisMessage>, signal: AbortSignal, place: string): Promise<RedisWire> {
    const client = this.#client!
    const node = nodeAt(client, place.slice(place.indexOf(' ') + 1))
    if (node === undefined) throw new Error('the node has left the cluster')
    const connection = node.duplicate({ ...exclusive, readOnly: false })
    const session = new RedisSession(connection, this.#site)
    return await cutAtAbort(signal, () => { cut(connection) }, async () => {
      try {
        await connection.connect()
        if (session.error !== undefined) throw session.error
        await session.check(undefined)
        signal.throwIfAborted()
        session.open('none')
        return new RedisWire(session, ear, prefixOf(client))
      } catch (error) {
        const reason = session.error ?? error
        await session.end()
        throw signal.aborted ? signal.reason : reason
      }
    })
  }

  async close (): Promise<void> {
    this.#client?.off('refresh', this.#review)
    await this.pubsub.close()
  }
}

const insideOf = (client: Cluster) => client as unknown as Inside

function nodeAt (client: Cluster, node: string): Redis | undefined {
  return insideOf(client).connectionPool.getInstanceByKey(node)
}

function prefixOf ({ options }: Cluster): string {
  return String(options.keyPrefix ?? '')
}

/** The slot of a shard channel. */
function slotOf (name: string, { driver }: Pick<ClusterSite, 'driver'>): number {
  return new driver.Command('ssubscribe', [name], {}).getSlot() ?? 0
}
