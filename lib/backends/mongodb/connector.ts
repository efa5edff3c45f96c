import { isDeepStrictEqual } from 'node:util'
import { badOption, PoolError, scrub } from '../../engine/errors.js'
import { methodOf } from '../../engine/method.js'
import { secretsOf } from '../../engine/secrets.js'
import type { Connector, DriverEvent, Transactions } from '../../../types/connector.js'
import type { Db, MongoClient } from '../../../types/drivers.js'
import { Addresses, refuseNextTo, refuseNumber, type AddressNow } from '../shared/address.js'
import { loadDriver } from '../shared/driver.js'
import { SessionConnector, sessionOf } from '../shared/session.js'
import { Shared } from './client.js'
import { isPermanent, isRefusedLogin, isTransient, kindOf } from './errors.js'
import { makeClient, mongoDriver, type MongoOptions } from './options.js'
import { MongoSession } from './session.js'
import { mayRunAgain } from './transaction.js'

export interface MongoConnector extends Connector<Db> {
  readonly system: 'mongodb'
  /**
   * The client that all connections share; the driver reconnects it after a failure. Where `url` or `connection` is a
   * function, there is another client when its answer changes, and this is the newest. An older client is closed when
   * the last connection made from it is destroyed, which `pool.evict()` brings about softly; whoever has kept it then
   * gets the driver's `MongoNotConnectedError`.
   */
  readonly client: MongoClient
  readonly database: string
  readonly secrets: readonly string[]
  readonly transactions: Transactions<Db>
  isTransient (error: unknown): boolean
}

/** What it is: ../connectors.ts, whose function of the same name calls this one. */
export async function mongodb (options: MongoOptions): Promise<MongoConnector> {
  const { client, url, host, port, connection = {}, connectTimeout = 3000 } = options
  refuseNumber(options.database)
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
    throw new PoolError('FST_POOL_CONNECT_FAILED',
      `the function for url or connection failed: ${cause.message}`, { cause })
  }
}

/** A connector over a client that the app made. */
export function adoptMongo (client: object, { database, max }: MongoOptions): Promise<MongoConnector> {
  return mongodb({ client: client as MongoClient, database, max })
}

/** The most clients besides the newest one and the one that it replaces. */
const maxOthers = 3

/**
 * The sockets belong to the client, which is closed with the last connection of an address that has changed. A
 * transaction that is open when its connection is destroyed is rolled back in the background. Where that fails, the
 * server ends it after `transactionLifetimeLimitSeconds` (60 unless told otherwise).
 */
class MongoBackend extends SessionConnector<Db, MongoSession> implements MongoConnector {
  readonly system = 'mongodb'
  readonly isPermanent = isPermanent
  readonly kindOf = kindOf
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
  /** All clients, oldest first. */
  readonly #clients: Shared[] = []
  #newest: Shared
  /**
   * The address of the newest client, and the number of the question that it was the answer to. The answer to an
   * earlier question is not newer.
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
      await shared.ready(signal)
      return new MongoSession(shared, () => this.#leave(shared))
    } catch (error) {
      // A newer client may have been made meanwhile: then this was the last user of this one.
      this.#leave(shared)?.catch((error: unknown) => { this.#closeErrors.push(error) })
      throw error
    }
  }

  /**
   * Whether it may succeed a moment later, on whichever server is there then: no network, no server, a primary that has
   * stepped down, a server that shuts down, and whatever the driver or the server labels so. Not where a retry would
   * only add load (no socket in time, an overloaded server: the driver has retried by itself), not for the caller's own
   * deadlines, and not for anything else that the server answers.
   */
  isTransient (error: unknown): boolean {
    // Another connection logs in with the function's new answer.
    return isTransient(error) || (this.#addresses.change && isRefusedLogin(error))
  }

  /** A method of the collection that the first argument names. */
  call (db: Db, method: string): ((collection: unknown, ...args: unknown[]) => unknown) | undefined {
    if (methodOf(db.collection('any'), method) === undefined) return undefined
    return (collection, ...args) => methodOf(db.collection(collection as string), method)!(...args)
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

  /** Counts a connection of the newest client, at once, so that another answer does not close the client meanwhile. */
  #enter (): Shared {
    this.#newest.users++
    return this.#newest
  }

  /** As `#enter`, once the newest client is that of the present address. */
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

  /** Counts a connection that has ended. */
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
