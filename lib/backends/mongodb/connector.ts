import { isDeepStrictEqual } from 'node:util'
import { badOption, PoolError, scrub, secretsOf } from '../../pool/errors.js'
import type { Connector, DriverEvent, Transactions } from '../../../types/connector.js'
import type { Db, MongoClient } from '../../../types/drivers.js'
import { Addresses, refuseNextTo, type AddressNow } from '../shared/address.js'
import { loadDriver } from '../shared/driver.js'
import { SessionConnector, sessionOf } from '../shared/session.js'
import { Shared } from './client.js'
import { isRefusedLogin, isTransient } from './errors.js'
import { makeClient, mongoDriver, type MongoOptions } from './options.js'
import { MongoSession } from './session.js'
import { mayRunAgain } from './transaction.js'

export interface MongoConnector extends Connector<Db> {
  readonly system: 'mongodb'
  /**
   * The client that all connections share; the driver connects it again after a failure. Only where `url` or
   * `connection` is a function there is another one when its answer changes: this is the newest. The one before is
   * closed when the last connection made from it is destroyed, which `pool.evict()` brings about softly; whoever has
   * kept it gets the driver's `MongoNotConnectedError` from then on.
   */
  readonly client: MongoClient
  readonly database: string
  readonly secrets: readonly string[]
  readonly transactions: Transactions<Db>
  isTransient (error: unknown): boolean
}

/**
 * MongoDB. A connection is the right to use one shared `MongoClient`, as a `Db` of its own; the driver keeps the
 * sockets, and finds its way to the primary.
 *
 * A create opens nothing where the client has a server. Where it has none it waits for one, as long as any of the
 * servers answers (an election will end); once the driver has looked at all of them since it began, and none was there,
 * it rejects with the reason.
 *
 * A function for `url` or `connection` should answer the same for as long as that holds: with each other answer there
 * is another client, with sockets and monitors of its own, up to 4; while there are that many, creates use the newest.
 * A client whose login is refused is dead to the driver, and so are its connections: the next create asks again.
 *
 * @throws `FST_POOL_BAD_OPTIONS`, `FST_POOL_MISSING_DRIVER`; `FST_POOL_CONNECT_FAILED` where a function fails, or takes
 * longer than `connectTimeout`. Nothing is opened yet.
 */
export async function mongodb (options: MongoOptions): Promise<MongoConnector> {
  const { client, url, host, port, connection = {}, connectTimeout = 3000 } = options
  const addresses = new Addresses(options)
  if (client === undefined) {
    const driver = loadDriver(mongoDriver, options.driver)
    const address = addresses.change ? await firstAddress(addresses, connectTimeout) : addresses.fixed
    return new MongoBackend(options, addresses, address, (address) => makeClient(driver, options, address))
  }
  refuseNextTo('a client', { url, host, port })
  if (typeof connection === 'function' || Object.keys(connection).length > 0) {
    throw badOption('connection', connection, 'no connection options next to a client')
  }
  return new MongoBackend(options, addresses, addresses.fixed, () => client)
}

async function firstAddress (addresses: Addresses, timeout: number): Promise<AddressNow> {
  try {
    return await addresses.now(AbortSignal.timeout(timeout))
  } catch (error) {
    if (error instanceof PoolError) throw error
    const cause = scrub(error, addresses.secrets)
    const message = `the function for url or connection failed: ${cause.message}`
    throw new PoolError('FST_POOL_CONNECT_FAILED', message, { cause })
  }
}

/** A connector over a client that the app made. */
export function adoptMongo (client: object, { database, max }: MongoOptions): Promise<MongoConnector> {
  return mongodb({ client: client as MongoClient, database, max })
}

/** How many clients there are at most besides the newest, and the one whose place it takes. */
const maxOthers = 3

/**
 * The sockets are the client's, which is closed with the last connection of an address that has changed. A transaction
 * that is open when its connection is destroyed is undone when the server gets round to it, and nobody waits for it:
 * after `transactionLifetimeLimitSeconds` (60 unless told otherwise) the server ends it by itself.
 */
class MongoBackend extends SessionConnector<Db, MongoSession> implements MongoConnector {
  readonly system = 'mongodb'
  readonly transactions: Transactions<Db> = {
    isolation: ['snapshot'],
    readOnly: false,
    begin: (db, options, signal) => sessionOf<MongoSession>(db).begin(options, signal),
    isTransient: mayRunAgain,
  }

  readonly #owned: boolean
  readonly #secrets: readonly string[] | undefined
  readonly #addresses: Addresses
  readonly #make: (address: AddressNow) => Shared
  /** In the order of their making: the last is the newest. */
  readonly #clients: Shared[] = []
  #newest: Shared
  /**
   * What the newest was made from, and which question that was the answer to: one that was asked before it says nothing
   * new.
   */
  #address: AddressNow
  #answered = 0
  #asked = 0
  #listener: ((event: DriverEvent) => void) | undefined
  #closing: Promise<void> | undefined
  #closeErrors: unknown[] = []

  constructor (
    options: MongoOptions, addresses: Addresses, address: AddressNow, client: (address: AddressNow) => MongoClient
  ) {
    super()
    this.#owned = options.client === undefined
    this.#secrets = options.client && secretsOf({ connection: options.client.options.credentials })
    this.#addresses = addresses
    this.#address = address
    this.#make = (address) => new Shared(client(address), this.#owned, options.database)
    this.#newest = this.#add(address)
  }

  get secrets (): readonly string[] {
    return this.#secrets ?? this.#addresses.secrets
  }

  get client (): MongoClient {
    return this.#newest.client
  }

  get database (): string {
    return this.#newest.database
  }

  protected override async open (signal: AbortSignal): Promise<MongoSession> {
    this.#mustBeOpen()
    const shared = this.#addresses.change ? await this.#ask(signal) : this.#enter()
    try {
      if (!shared.up) await shared.reach(signal)
      return new MongoSession(shared, () => this.#leave(shared))
    } catch (error) {
      // Whoever made another one meanwhile left it to us to close this one.
      this.#leave(shared)?.catch((error: unknown) => { this.#closeErrors.push(error) })
      throw error
    }
  }

  /**
   * True for what may go well a moment later on a connection to whichever server is there then: no network, no server,
   * a primary that is one no more, a server that shuts down, and what the driver or the server itself labels as such.
   * False for what would only add to a load (no socket in time, an overloaded server: the driver has tried again by
   * itself), for the caller's own deadlines, and for all that the server means to say.
   */
  isTransient (error: unknown): boolean {
    // Another connection logs in with what the function says by then.
    return isTransient(error) || (this.#addresses.change && isRefusedLogin(error))
  }

  onDriverEvent (listener: (event: DriverEvent) => void): void {
    this.#listener = listener
    for (const shared of this.#clients) shared.tell(listener)
  }

  /** Closes the clients, if we made them. Operations under way on them fail. */
  close (): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close (): Promise<void> {
    const closed = await Promise.allSettled(this.#clients.map((shared) => shared.close()))
    const rejected = closed.flatMap((one) => one.status === 'rejected' ? [one.reason as unknown] : [])
    const errors = [...this.#closeErrors, ...rejected]
    if (errors.length > 0) throw errors[0]
  }

  #mustBeOpen (): void {
    if (this.#closing !== undefined) throw new Error('the MongoDB connector is closed')
  }

  /** One connection more, of the newest client: told at once, so that no other answer closes it meanwhile. */
  #enter (): Shared {
    this.#newest.users++
    return this.#newest
  }

  /** As `#enter`, when the newest client is that of the address as of now. */
  async #ask (signal: AbortSignal): Promise<Shared> {
    const question = ++this.#asked
    const address = await this.#addresses.now(signal)
    this.#mustBeOpen()
    if (question > this.#answered) {
      this.#answered = question
      if (!isDeepStrictEqual(address, this.#address)) this.#change(address)
    }
    return this.#enter()
  }

  /** @throws `FST_POOL_BAD_OPTIONS` */
  #change (address: AddressNow): void {
    const before = this.#newest
    const others = this.#clients.filter((shared) => shared !== before || before.users > 0)
    if (others.length > maxOthers) return
    this.#newest = this.#add(address)
    this.#address = address
    if (before.users === 0) this.#retire(before).catch((error: unknown) => { this.#closeErrors.push(error) })
  }

  /** @throws `FST_POOL_BAD_OPTIONS` */
  #add (address: AddressNow): Shared {
    const shared = this.#make(address)
    if (this.#listener !== undefined) shared.tell(this.#listener)
    this.#clients.push(shared)
    return shared
  }

  /** One connection less. */
  #leave (shared: Shared): Promise<void> | undefined {
    shared.users--
    return shared === this.#newest || shared.users > 0 ? undefined : this.#retire(shared)
  }

  async #retire (shared: Shared): Promise<void> {
    try {
      await shared.close()
    } finally {
      const index = this.#clients.indexOf(shared)
      if (index >= 0) this.#clients.splice(index, 1)
    }
  }
}
