// The pools of tenants: each made at its first use, closed when it has not been used for long, or for another one.
import { createHash } from 'node:crypto'
import type { PoolErrorCode } from '../../../types/errors.js'
import type {
  AcquireSignal, Clock, HolderLabel, PoolEventName, PoolFace, PoolListener, PoolStats,
} from '../../../types/pool.js'
import { SharedBudget } from '../../balance/shared.js'
import { Books } from '../../engine/books.js'
import { PoolError, fieldOf } from '../../engine/errors.js'
import { label, type Events } from '../../engine/events.js'
import * as faults from '../../engine/faults.js'
import { Alarm, systemClock } from '../../engine/time.js'
import type { ResolvedPoolOptions, ResolvedTenants } from '../options.js'
import { bounded } from '../rules/keys.js'
import { noStats, sumOf } from './sums.js'

export type Face = PoolFace<unknown>

/** Makes the pool of a tenant, not open yet. @param budget of all tenants' connections together */
export type Maker = (options: ResolvedPoolOptions, budget: SharedBudget | undefined) => Promise<Face>

/** What a caller waits at most for: the options of a tenant that has no pool yet. */
export interface Patience {
  readonly timeout?: number | undefined
  readonly signal?: AcquireSignal | undefined
  readonly holder?: HolderLabel | undefined
}

/** For so long, in ms, a key is remembered whose options were rejected. */
const REMEMBERED = 10_000
/** So many of them at most: a client may make keys up. */
const MOST_REJECTED = 10_000
/** How long `lastMinute` is, in ms. */
const MINUTE = 60_000
/** So many pools that have closed are kept apart, so that `lastMinute` has them. */
const RECENT = 100

/** Codes of callers that are sent away. */
const refusals: ReadonlySet<PoolErrorCode> =
  new Set<PoolErrorCode>(['FST_POOL_QUEUE_FULL', 'FST_POOL_CONNECT_FAILED', 'FST_POOL_CLOSED'])

/** A tenant that has a pool, or is about to get one. */
class Tenant {
  readonly key: string
  /** What events and stats call it. */
  readonly label: string
  /** undefined: it is being made. */
  pool: Face | undefined = undefined
  ready!: Promise<Face>
  /** How many callers hold a connection of it, or wait for one. */
  users = 0
  /** When the last one left, or came. */
  usedAt: number
  /** What its callers wait for. */
  awaited = "the options of this tenant's pool were not there"

  constructor (key: string, label: string, now: number) {
    this.key = key
    this.label = label
    this.usedAt = now
  }

  get isUnused (): boolean {
    return this.users === 0 && this.pool !== undefined
  }
}

/** A tenant's pool in use: it stays open until `leave`. */
export interface Visit {
  readonly pool: Face
  /** What is left of the caller's timeout, in ms; undefined: all of it. */
  readonly timeout: number | undefined
  leave (): void
}

/** A listener on the pools of all tenants, or of one. */
interface Subscription {
  readonly key: string | undefined
  begin (tenant: Tenant, pool: Face): void
}

export class Tenants {
  readonly #name: () => string
  readonly #rules: ResolvedTenants
  readonly #make: Maker
  readonly #events: Events
  readonly #clock: Clock
  readonly #alarm: Alarm
  readonly #budget: SharedBudget | undefined
  /** Callers that no pool knows of. */
  readonly #books: Books
  /** How many wait for their tenant's pool. */
  #pending = 0
  /** Those that have a pool, or a place for one that is being made. The one used longest ago comes first. */
  readonly #open = new Map<string, Tenant>()
  /** Those whose options are asked for: they have no place yet. */
  readonly #asking = new Map<string, Tenant>()
  /** Pools that close. The tenant's next pool waits for that, so that each tenant's `max` is hard. */
  readonly #closing = new Map<string, Promise<void>>()
  /** Since when no pool can be made for a key, and why. The oldest come first. */
  readonly #rejected = new Map<string, { readonly error: unknown, readonly until: number }>()
  readonly #subscriptions = new Set<Subscription>()
  #isClosed = false
  #isSuspended = false
  /** Pools that close: their numbers still change. */
  readonly #leaving = new Set<Face>()
  /** What the pools that have closed have counted: of most of them together. */
  #past: PoolStats[] = []
  /** The last that have closed: what they did may be of the last minute. The oldest come first. */
  #recent: Array<{ readonly at: number, readonly stats: PoolStats }> = []

  /** @param events tells what fails, and is not told to a caller */
  constructor (name: () => string, rules: ResolvedTenants, make: Maker, events: Events, clock: Clock = systemClock) {
    this.#name = name
    this.#rules = rules
    this.#make = make
    this.#events = events
    this.#clock = clock
    this.#books = new Books(clock.now())
    this.#alarm = new Alarm(clock, (fn) => events.run(fn), () => { this.#closeIdle() }, () => false)
    if (rules.maxTotal !== undefined) this.#budget = new SharedBudget(rules.maxTotal)
  }

  /** Those whose pools are open. */
  get all (): ReadonlyArray<{ readonly key: string, readonly label: string, readonly pool: Face }> {
    return [...this.#open.values()].flatMap(({ key, label, pool }) => pool === undefined ? [] : [{ key, label, pool }])
  }

  /** The numbers of pools that close, or have closed. */
  get past (): readonly PoolStats[] {
    this.#settle()
    return [...this.#past, ...this.#recent.map(({ stats }) => stats), ...[...this.#leaving].map((pool) => pool.stats())]
  }

  /** The numbers of callers that wait for their tenant's pool, or did so in vain. */
  get front (): PoolStats {
    const now = this.#clock.now(true)
    return { ...noStats(this.#name(), '', { min: 0, max: 0 }, this.#books, now), pending: this.#pending }
  }

  /** Lends nothing of the pools that are there, nor of those that come. */
  suspend (): void {
    this.#isSuspended = true
    for (const { pool } of this.all) pool.suspend()
  }

  resume (): void {
    this.#isSuspended = false
    for (const { pool } of this.all) pool.resume()
  }

  /** The pool of a tenant, where it is open. */
  peek (key: string): Face | undefined {
    return this.#open.get(key)?.pool
  }

  /** As `peek`, by what events and stats call the tenant. */
  labelled (label: string): Face | undefined {
    for (const tenant of this.#open.values()) if (tenant.label === label) return tenant.pool
    return undefined
  }

  /**
   * The tenant's pool, which is made where it has none, and stays until the caller leaves.
   *
   * @throws what the option `options` has thrown, where that has a `statusCode`, else `FST_POOL_CONNECT_FAILED`;
   * `FST_POOL_QUEUE_FULL` where all pools are in use; `FST_POOL_ACQUIRE_TIMEOUT`, `FST_POOL_ABORTED`, `FST_POOL_CLOSED`
   */
  async visit (key: string, patience: Patience): Promise<Visit> {
    const began = this.#clock.now(true)
    try {
      const tenant = this.#tenantOf(key)
      const { pool } = tenant
      return pool === undefined
        ? await this.#await(tenant, patience, began)
        : this.#enter(tenant, pool, patience.timeout)
    } catch (error) {
      this.#count(error, key, this.#clock.now(true) - began, patience.holder)
      throw error
    }
  }

  async #await (tenant: Tenant, patience: Patience, began: number): Promise<Visit> {
    tenant.users++
    this.#pending++
    try {
      const made = await this.#patiently(tenant, patience)
      const spent = this.#clock.now(true) - began
      return this.#enter(tenant, made, Math.max(1, (patience.timeout ?? this.#rules.acquireTimeout) - spent))
    } finally {
      this.#pending--
      this.#leave(tenant)
    }
  }

  /** What the app itself answers, of a tenant that there is not, is no refusal. */
  #count (error: unknown, key: string, wait: number, holder: HolderLabel | undefined): void {
    if (!(error instanceof PoolError)) return
    const about = { error, wait, tenant: this.labelOf(key), ...label(holder) }
    this.#books.tick(this.#clock.now(), 0, true)
    if (refusals.has(error.code)) {
      this.#books.refuse(error.code)
      this.#events.emit('refuse', about)
    } else if (error.code === 'FST_POOL_ACQUIRE_TIMEOUT') {
      this.#books.timeouts++
      this.#books.failedWait(wait)
      this.#events.emit('timeout', about)
    } else if (error.code === 'FST_POOL_ABORTED') this.#books.aborted++
  }

  /** As `visit`, without waiting. undefined: the tenant has no pool that is open. */
  enter (key: string): Visit | undefined {
    const tenant = this.#open.get(key)
    if (tenant?.pool === undefined) return undefined
    this.#touch(tenant)
    return this.#enter(tenant, tenant.pool, undefined)
  }

  #enter (tenant: Tenant, pool: Face, timeout: number | undefined): Visit {
    tenant.users++
    return { pool, timeout, leave: () => { this.#leave(tenant) } }
  }

  #leave (tenant: Tenant): void {
    tenant.users--
    tenant.usedAt = this.#clock.now()
  }

  /** @param key undefined: of all tenants */
  on<E extends PoolEventName> (event: E, listener: PoolListener<E>, key?: string): () => void {
    return this.follow((pool, label) => {
      const tell = (payload: object) => listener(Object.freeze({ ...payload, tenant: label }) as never)
      return pool.on(event, tell as PoolListener<E>)
    }, key)
  }

  /**
   * Begins something with each pool that is there, and that comes.
   *
   * @param enter returns its own undo
   * @param key undefined: of all tenants
   */
  follow (enter: (pool: Face, label: string) => () => void, key?: string): () => void {
    const undos = new Set<() => void>()
    const begin = ({ label }: Tenant, pool: Face) => {
      const entered = enter(pool, label)
      // Its last event: nothing of it stays.
      const unhear = pool.on('close', () => { undos.delete(undo) })
      const undo = () => {
        entered()
        unhear()
      }
      undos.add(undo)
    }
    const subscription = { key, begin }
    this.#subscriptions.add(subscription)
    for (const tenant of this.#open.values()) this.#subscribe(subscription, tenant)
    return () => {
      this.#subscriptions.delete(subscription)
      for (const undo of undos) undo()
    }
  }

  #subscribe ({ key, begin }: Subscription, tenant: Tenant): void {
    if (tenant.pool !== undefined && (key === undefined || key === tenant.key)) begin(tenant, tenant.pool)
  }

  // --- Coming --------------------------------------------------------------------------------------------------------

  #tenantOf (key: string): Tenant {
    if (this.#isClosed) throw this.#closedError
    const known = this.#open.get(key) ?? this.#asking.get(key)
    if (known !== undefined) {
      if (known.pool !== undefined) this.#touch(known)
      return known
    }
    if (bounded(key) !== key) throw tooLong(this.#name())
    const rejected = this.#rejected.get(key)
    if (rejected !== undefined && rejected.until > this.#clock.now()) throw rejected.error
    const tenant = new Tenant(key, this.labelOf(key), this.#clock.now())
    this.#asking.set(key, tenant)
    tenant.ready = this.#events.run(() => this.#openPool(tenant)).finally(() => { this.#asking.delete(key) })
    // Whoever waits for it gets what it rejects with.
    tenant.ready.catch(() => {})
    return tenant
  }

  async #openPool (tenant: Tenant): Promise<Face> {
    const { key } = tenant
    const options = await this.#ask(key)
    tenant.awaited = 'the last pool of this tenant, of which a connection may still be used, had not closed'
    await this.#closing.get(key)
    tenant.awaited = "this tenant's pool was not there"
    if (this.#isClosed) throw this.#closedError
    // Only now, since a key that is rejected must not close anybody's pool.
    this.#makeRoom()
    this.#open.set(key, tenant)
    try {
      return this.#opened(tenant, await this.#make(options, this.#budget))
    } catch (error) {
      this.#open.delete(key)
      throw this.#reject(key, error)
    }
  }

  #opened (tenant: Tenant, pool: Face): Face {
    tenant.pool = pool
    if (this.#isSuspended) pool.suspend()
    for (const subscription of this.#subscriptions) this.#subscribe(subscription, tenant)
    tenant.usedAt = this.#clock.now()
    this.#alarm.set(tenant.usedAt + this.#rules.idlePoolTimeout)
    // The app may have closed meanwhile.
    if (!this.#isClosed) return pool
    this.#retire(tenant)
    throw this.#closedError
  }

  async #ask (key: string): Promise<ResolvedPoolOptions> {
    try {
      return await this.#rules.optionsOf(key)
    } catch (error) {
      throw this.#reject(key, error)
    }
  }

  /** Remembers it for a while. Returns what callers get. */
  #reject (key: string, cause: unknown): unknown {
    const now = this.#clock.now()
    const message = `pool '${this.#name()}': there are no options for this tenant's pool`
    const isAnswer = typeof fieldOf(cause, 'statusCode') === 'number'
    const error = isAnswer ? cause : new PoolError('FST_POOL_CONNECT_FAILED', message, { cause: this.#report(cause) })
    for (const [oldest, { until }] of this.#rejected) {
      if (until > now && this.#rejected.size < MOST_REJECTED) break
      this.#rejected.delete(oldest)
    }
    this.#rejected.delete(key)
    this.#rejected.set(key, { error, until: now + REMEMBERED })
    return error
  }

  #report (cause: unknown): Error {
    return this.#events.report(cause, 'create')
  }

  /** @throws `FST_POOL_QUEUE_FULL` */
  #makeRoom (): void {
    if (this.#open.size < this.#rules.maxPools) return
    for (const tenant of this.#open.values()) {
      if (!tenant.isUnused) continue
      this.#retire(tenant)
      return
    }
    const error = new PoolError('FST_POOL_QUEUE_FULL', `pool '${this.#name()}' has pools of ${this.#open.size} ` +
      'tenants (maxPools), and all of them are in use. Raise maxPools.')
    this.#report(error)
    throw error
  }

  /** Resolves as `ready` does, or rejects at the caller's deadline, or when its signal aborts. */
  async #patiently (tenant: Tenant, { timeout = this.#rules.acquireTimeout, signal }: Patience): Promise<Face> {
    if (signal?.aborted === true) throw faults.aborted(this.#name(), signal)
    return await new Promise((resolve, reject) => {
      const timer = this.#clock.setTimer(() => {
        reject(new PoolError('FST_POOL_ACQUIRE_TIMEOUT',
          `pool '${this.#name()}': ${tenant.awaited} within ${timeout} ms`))
      }, timeout)
      timer.ref()
      const abort = () => { reject(faults.aborted(this.#name(), signal!)) }
      signal?.addEventListener('abort', abort, { once: true })
      tenant.ready.then(resolve, reject).finally(() => {
        timer.cancel()
        signal?.removeEventListener('abort', abort)
      })
    })
  }

  // --- Going ---------------------------------------------------------------------------------------------------------

  #touch (tenant: Tenant): void {
    tenant.usedAt = this.#clock.now()
    this.#open.delete(tenant.key)
    this.#open.set(tenant.key, tenant)
  }

  /** Closes the pools that have not been used for long. */
  #closeIdle (): void {
    const { idlePoolTimeout } = this.#rules
    const now = this.#clock.now()
    let next = Infinity
    for (const tenant of [...this.#open.values()]) {
      if (tenant.usedAt + idlePoolTimeout <= now && tenant.isUnused) {
        this.#retire(tenant)
        continue
      }
      next = Math.min(next, Math.max(now + 1, tenant.usedAt + idlePoolTimeout))
    }
    this.#alarm.set(next)
  }

  #retire (tenant: Tenant): void {
    const { key, pool } = tenant
    this.#open.delete(key)
    this.#leaving.add(pool!)
    const closing = pool!.close().finally(() => {
      this.#leaving.delete(pool!)
      this.#recent.push({ at: this.#clock.now(), stats: { ...pool!.stats(), min: 0, max: 0 } })
      this.#settle()
      this.#budget?.forget(pool!)
      this.#closing.delete(key)
    })
    this.#closing.set(key, closing)
    closing.catch((error: unknown) => { this.#report(error) })
  }

  /** Nothing of a pool that closed a minute ago is of the last minute. So it is for all but the last ones, too. */
  #settle (): void {
    const before = this.#clock.now() - MINUTE
    const first = this.#recent.findIndex(({ at }) => at > before)
    const old = this.#recent.splice(0, Math.max(first < 0 ? this.#recent.length : first, this.#recent.length - RECENT))
    if (old.length === 0) return
    const { lastMinute } = noStats(this.#name(), '', { min: 0, max: 0 })
    this.#past = [sumOf([...this.#past, ...old.map(({ stats }) => ({ ...stats, lastMinute }))])]
  }

  /** Closes the pool of one tenant; its next use makes another one. */
  async closeOne (key: string, options?: { timeout?: number }): Promise<void> {
    const tenant = this.#open.get(key)
    if (tenant?.pool === undefined) return await this.#closing.get(key)
    // With its own deadline, if there is one: the second call of `close` waits for the first.
    const closed = tenant.pool.close(options)
    this.#retire(tenant)
    await closed
  }

  async drain (): Promise<void> {
    await Promise.all(this.all.map(({ pool }) => pool.drain()))
  }

  async close (options?: { timeout?: number }): Promise<void> {
    this.#isClosed = true
    this.#alarm.cancel()
    await Promise.all([...this.all.map(({ key }) => this.closeOne(key, options)), ...this.#closing.values()])
  }

  get #closedError (): PoolError {
    return new PoolError('FST_POOL_CLOSED', `pool '${this.#name()}' is closing`)
  }

  /** What events and stats call a tenant: a key may be a secret. */
  labelOf (key: string): string {
    return this.#rules.showKeys ? key : createHash('sha256').update(key).digest('hex').slice(0, 12)
  }
}

function tooLong (name: string): PoolError {
  const error = new PoolError('FST_POOL_NOT_LEASED', `pool '${name}': the key of this request is longer than 256 bytes`)
  return Object.assign(error, { statusCode: 400 })
}
