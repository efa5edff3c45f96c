import { setTimeout as pause } from 'node:timers/promises'
import type { ReadPreference, ServerDescription, TopologyDescription } from 'mongodb'
import { badOption } from '../../engine/errors.js'
import type { DriverEvent } from '../../../types/connector.js'
import type { Db, MongoClient } from '../../../types/drivers.js'
import { Subscriptions } from '../shared/listeners.js'
import { unlessAborted } from '../shared/signal.js'
import { driverEvents, plain } from './events.js'
import { FreeSockets, Sweep } from './sweep.js'

/** How long `close` waits for a connect that is under way, in ms. */
const grace = 100

/** One client, and what is known of it. */
export class Shared {
  readonly client: MongoClient
  readonly database: string
  /** Called once no operation would find a server any more. */
  readonly deaths = new Set<(error: Error | undefined) => void>()
  /** Connections that were made from it, or are being made, and are not destroyed. */
  users = 0
  /** Whether an operation would find a server. Kept up to date, since it is asked at every loan and return. */
  up = false

  readonly #owned: boolean
  readonly #subscriptions = new Subscriptions()
  /**
   * The driver's last description of the servers. undefined for a client of the app's that said all before we listened.
   */
  #topology: TopologyDescription | undefined
  /**
   * The driver's topology is open, and one of its sockets worked. A selectable server alone may still refuse the login.
   */
  #connected = false
  #connecting: Promise<void> | undefined
  #closing: Promise<void> | undefined
  /** By server: the number of the driver's last heartbeat, counted over all servers, and its error. */
  readonly #looks = new Map<string, { readonly nth: number, error?: Error }>()
  #looked = 0
  readonly #free: FreeSockets
  /** Those in which a ping waits. The latest one is joined as long as it has no answer. */
  readonly #sweeps = new Set<Sweep>()
  #sweep: Sweep | undefined
  /** Called after each failed heartbeat: those who wait for a server decide whether to go on. */
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
    this.#free = new FreeSockets(client, this.#subscriptions)
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

  /** Resolves once a socket has answered, and each that has not is in nobody's way. */
  async ask (signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const sweep = this.#sweep ??= this.#newSweep()
    sweep.waiting++
    try {
      await unlessAborted(sweep.answer, signal)
    } finally {
      sweep.waiting--
    }
  }

  /** Resolves when a server can be had, and its sockets are not in doubt. Rejects as `reach` does. */
  async ready (signal: AbortSignal): Promise<void> {
    if (this.#sweep?.doubtful === true) {
      try {
        await this.ask(signal)
      } catch (error) {
        // Without a server, `reach` says why.
        if (signal.aborted || this.up) throw error
      }
    }
    if (!this.up) await this.reach(signal)
  }

  #newSweep (): Sweep {
    const db = this.client.db(this.database)
    const sweep = new Sweep({
      uncounted: !this.#owned,
      ping: (signal) => this.#command(db, signal),
      free: () => this.#free.count(this.#addresses()),
      ended: () => { this.#sweeps.delete(sweep) },
    })
    this.#sweeps.add(sweep)
    const settled = () => { if (this.#sweep === sweep) this.#sweep = undefined }
    sweep.answer.then(settled, settled)
    return sweep
  }

  /** Of the servers that a ping may go to, where they are known. */
  #addresses (): string[] | undefined {
    return this.#topology && eligible(this.#topology, this.client.readPreference).map(({ address }) => address)
  }

  #command (db: Db, signal: AbortSignal): Promise<unknown> {
    return db.command({ ping: 1 }, { signal, readPreference: this.client.readPreference })
  }

  close (): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close (): Promise<void> {
    this.deaths.clear()
    this.up = false
    for (const sweep of [...this.#sweeps]) sweep.stop(new Error('the client is closed'))
    try {
      if (!this.#owned) return
      await this.client.close()
      if (this.#connecting !== undefined) {
        // `close()` had nothing to close while the client still looked up names or read files. The failure is told to
        // those who wait for it. A name server that does not answer is not waited for.
        const closed = Promise.allSettled([this.#connecting]).then(() => this.client.close())
        await Promise.race([closed, pause(grace, undefined, { ref: false })])
        closed.catch(() => { /* Nobody is left to be told. */ })
      }
    } finally {
      this.#subscriptions.end()
    }
  }

  /**
   * Resolves when a server can be had. Rejects when the signal aborts, and as soon as the driver has looked at each
   * server since the call and found none: the pool knows better how often to try again. The attempt itself goes on: the
   * next create finds the client connected, or tries again.
   */
  reach (signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const controller = new AbortController()
      const since = this.#looked
      const giveUp = (error: unknown) => {
        this.#watchers.delete(watch)
        signal.removeEventListener('abort', onAbort)
        reject(error)
        // Otherwise it would wait on, and all that pile up would open sockets at once.
        controller.abort(error)
      }
      const watch = () => {
        const error = this.#unreachable(since)
        if (error !== undefined) giveUp(error)
      }
      // The reason why there is no server says more than that time is up.
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
    // Connected, but without a server: a ping selects one, and has the driver look at once instead of at the next
    // heartbeat.
    if (!this.up) await this.#select(signal)
    if (this.#owned) return
    // A client of the app's may have been open before we listened.
    this.#connected = true
    this.#update()
  }

  /** Also races the signal: the driver misses one that aborts between two of its steps. */
  async #select (signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const db = this.client.db(this.database)
    try {
      await unlessAborted(this.#command(db, signal), signal)
    } catch (error) {
      // A client of the app's that failed to connect tries again only by `connect()`. One that the app closed rejects
      // with another error, and stays closed.
      if (this.#owned || (error as Error).name !== 'MongoTopologyClosedError') throw error
      await this.#connect()
      await unlessAborted(this.#command(db, signal), signal)
    }
  }

  /**
   * One attempt for all callers, without a signal: the driver's `connect()` can't be aborted. It ends by
   * `serverSelectionTimeoutMS`, and leaves nothing open when it fails.
   */
  #connect (): Promise<void> {
    this.#connecting ??= this.client.connect().then(() => {}).finally(() => { this.#connecting = undefined })
    return this.#connecting
  }

  /** Calls `fn` and then `#update` at an event of the client, until `close()`. */
  #listen (name: string, fn: (event: Record<string, unknown>) => void): void {
    this.#subscriptions.on(this.client, name, (event: Record<string, unknown>) => {
      fn(event)
      this.#update()
    })
  }

  #update (): void {
    const found = this.#topology === undefined || eligible(this.#topology, this.client.readPreference).length > 0
    const up = this.#closing === undefined && this.#connected && found
    if (up === this.up) return
    this.up = up
    if (up) return
    const error = this.#lastError()
    const deaths = [...this.deaths]
    this.deaths.clear()
    for (const death of deaths) death(error)
  }

  /** The reason, where the driver has looked at each known server after look `since`, and failed. */
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
 * The servers of which an operation would find one now: the driver's rules of server selection, without
 * `maxStalenessSeconds` (a secondary that lags is no reason to drop connections).
 */
function eligible ({ type, servers }: TopologyDescription, { mode, tags }: ReadPreference): ServerDescription[] {
  const all = [...servers.values()]
  if (type !== 'ReplicaSetWithPrimary' && type !== 'ReplicaSetNoPrimary') {
    return type === 'Unknown' ? [] : all.filter((server) => server.type !== 'Unknown')
  }
  const tagged = (server: ServerDescription) => !tags?.length ||
    tags.some((set) => Object.entries(set).every(([key, value]) => server.tags[key] === value))
  const primaries = all.filter((server) => {
    return server.type === 'RSPrimary' && mode !== 'secondary' && (mode !== 'nearest' || tagged(server))
  })
  const secondaries = all.filter((server) => server.type === 'RSSecondary' && mode !== 'primary' && tagged(server))
  if (mode === 'primaryPreferred' && primaries.length > 0) return primaries
  if (mode === 'secondaryPreferred' && secondaries.length > 0) return secondaries
  return [...primaries, ...secondaries]
}
