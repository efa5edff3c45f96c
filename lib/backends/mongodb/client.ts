import type { ReadPreference, ServerDescription, TopologyDescription } from 'mongodb'
import { badOption } from '../../pool/errors.js'
import type { DriverEvent } from '../../../types/connector.js'
import type { Db, MongoClient } from '../../../types/drivers.js'
import { Subscriptions } from '../shared/listeners.js'
import { unlessAborted } from '../shared/signal.js'
import { driverEvents, plain } from './events.js'

/** One client, and what is known of it. */
export class Shared {
  readonly client: MongoClient
  readonly database: string
  /** Called once no operation would find a server any more. */
  readonly deaths = new Set<(error: Error | undefined) => void>()
  /** How many connections were made from it, or are being made, and are not destroyed. */
  users = 0
  /**
   * Whether an operation would find a server, worked out when something changes: it is asked at every loan and return.
   */
  up = false

  readonly #owned: boolean
  readonly #subscriptions = new Subscriptions()
  /** What the driver last told. A client that was taken over may have told it all before we listened: then none. */
  #topology: TopologyDescription | undefined
  /** The driver's topology is open, and a socket of it worked. A selectable server alone may still refuse the login. */
  #connected = false
  #connecting: Promise<void> | undefined
  #closing: Promise<void> | undefined
  /** Of each server: the driver's last look at it, as counted over all of them, and why it failed, where it has. */
  readonly #looks = new Map<string, { readonly nth: number, error?: Error }>()
  #looked = 0
  /** Those who wait for a server, and see after each failure whether they should. */
  readonly #watchers = new Set<() => void>()

  constructor (client: MongoClient, owned: boolean, database: string | undefined) {
    this.client = client
    this.#owned = owned
    try {
      this.database = client.db(database).databaseName
    } catch {
      // All that `db()` refuses is the name.
      throw badOption('database', database, 'a name that MongoDB allows')
    }
    this.#listen('open', () => { this.#connected = true })
    this.#listen('topologyDescriptionChanged', ({ newDescription }) => {
      this.#topology = newDescription as TopologyDescription
    })
    this.#listen('topologyClosed', () => {
      this.#connected = false
      this.#topology = undefined
    })
    this.#listen('serverHeartbeatStarted', ({ connectionId }) => {
      this.#looks.set(String(connectionId), { nth: ++this.#looked })
    })
    this.#listen('serverHeartbeatFailed', ({ connectionId, failure }) => {
      Object.assign(this.#looks.get(String(connectionId)) ?? {}, { error: failure })
      for (const watch of this.#watchers) watch()
    })
  }

  tell (listener: (event: DriverEvent) => void): void {
    for (const name of driverEvents) this.#listen(name, (event) => listener(plain(name, event)))
  }

  /** The driver misses a signal that aborts between two of its steps, and goes on until its own timeout. */
  async ping (db: Db, signal: AbortSignal): Promise<void> {
    await unlessAborted(db.command({ ping: 1 }, { signal, readPreference: this.client.readPreference }), signal)
  }

  close (): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close (): Promise<void> {
    this.deaths.clear()
    this.up = false
    try {
      if (!this.#owned) return
      await this.client.close()
      if (this.#connecting !== undefined) {
        // While it still looked up names or read files there was no topology that `close()` could have closed.
        // Its failure is told to those who wait for it.
        await Promise.allSettled([this.#connecting])
        await this.client.close()
      }
    } finally {
      this.#subscriptions.end()
    }
  }

  /**
   * Resolves when a server can be had. Rejects when the signal aborts, and as soon as the driver has looked at each
   * server since, and none was there: to wait for one that comes back is the pool's affair, which knows how often to
   * try. What comes after that is nobody's: the next create finds the client connected, or tries again.
   */
  reach (signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const controller = new AbortController()
      const since = this.#looked
      const giveUp = (error: unknown) => {
        this.#watchers.delete(watch)
        signal.removeEventListener('abort', onAbort)
        reject(error)
        // Else it would wait on, and each of those that pile up would open a socket when there is a server.
        controller.abort(error)
      }
      const watch = () => {
        const error = this.#unreachable(since)
        if (error !== undefined) giveUp(error)
      }
      // Why no server can be had says more than that time is up.
      const onAbort = () => giveUp(this.#lastError() ?? signal.reason)
      this.#watchers.add(watch)
      signal.addEventListener('abort', onAbort, { once: true })
      this.#find(controller.signal).then(() => {
        this.#watchers.delete(watch)
        signal.removeEventListener('abort', onAbort)
        resolve()
      }, (error) => giveUp(signal.aborted ? this.#lastError() ?? error : error))
    })
  }

  async #find (signal: AbortSignal): Promise<void> {
    if (this.#owned) await this.#connect()
    // Connected, but no server is known to be there: a ping selects one, and has the driver look at once instead of at
    // the next heartbeat.
    if (!this.up) await this.#select(signal)
    if (this.#owned) return
    // It may have been open before we listened.
    this.#connected = true
    this.#update()
  }

  async #select (signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const db = this.client.db(this.database)
    try {
      await this.ping(db, signal)
    } catch (error) {
      // The app's client failed to connect before: only `connect()` makes it try again.
      // One that the app closed says something else, and stays closed.
      if (this.#owned || (error as Error).name !== 'MongoTopologyClosedError') throw error
      await this.#connect()
      await this.ping(db, signal)
    }
  }

  /**
   * Shared, and not under anybody's signal: the driver's `connect()` can't be aborted. It ends by
   * `serverSelectionTimeoutMS`, and leaves nothing open when it fails.
   */
  #connect (): Promise<void> {
    this.#connecting ??= this.client.connect().then(() => {}).finally(() => { this.#connecting = undefined })
    return this.#connecting
  }

  /** A listener of ours on the client, ahead of `#update`, until `close()`. */
  #listen (name: string, fn: (event: Record<string, unknown>) => void): void {
    this.#subscriptions.on(this.client, name, (event: Record<string, unknown>) => {
      fn(event)
      this.#update()
    })
  }

  #update (): void {
    const found = this.#topology === undefined || selectable(this.#topology, this.client.readPreference)
    const up = this.#closing === undefined && this.#connected && found
    if (up === this.up) return
    this.up = up
    if (up) return
    const error = this.#lastError()
    const deaths = [...this.deaths]
    this.deaths.clear()
    for (const death of deaths) death(error)
  }

  /** Why, where the driver's last look at each server that is known came after that one, and failed. */
  #unreachable (since: number): Error | undefined {
    const servers = [...this.#topology?.servers.keys() ?? []]
    const looks = servers.map((address) => this.#looks.get(address))
    return looks.every((look) => look?.error !== undefined && look.nth > since) ? looks[0]?.error : undefined
  }

  #lastError (): Error | undefined {
    for (const { error } of this.#topology?.servers.values() ?? []) if (error) return error
    return undefined
  }
}

/**
 * Whether an operation would find a server now, by the driver's rules for server selection, but for
 * `maxStalenessSeconds` (a secondary that lags is no reason to throw connections away).
 */
function selectable ({ type, servers }: TopologyDescription, { mode, tags }: ReadPreference): boolean {
  const some = (fits: (server: ServerDescription) => boolean) => [...servers.values()].some(fits)
  if (type !== 'ReplicaSetWithPrimary' && type !== 'ReplicaSetNoPrimary') {
    return type !== 'Unknown' && some((server) => server.type !== 'Unknown')
  }
  const tagged = (server: ServerDescription) => !tags?.length ||
    tags.some((set) => Object.entries(set).every(([key, value]) => server.tags[key] === value))
  return some((server) => {
    if (server.type === 'RSPrimary') return mode !== 'secondary' && (mode !== 'nearest' || tagged(server))
    return server.type === 'RSSecondary' && mode !== 'primary' && tagged(server)
  })
}
