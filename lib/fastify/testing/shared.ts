// A pool over one connection: the stand-in for a pool while its test is rolled back.
import { AsyncLocalStorage } from 'node:async_hooks'
import { tracingChannel } from 'node:diagnostics_channel'
import type { FastifyRequest } from 'fastify'
import type { Connector, Transactions } from '../../../types/connector.js'
import type { AcquireOptions, Holder, Lease, PoolEventName, PoolStats } from '../../../types/pool.js'
import { PoolError } from '../../engine/errors.js'
import { bare } from '../../engine/lease.js'
import { Pool, type Innards } from '../../pool/pool.js'
import { RequestHolder } from '../request/holder.js'
import { kScope } from '../request/scope.js'
import type { OneConnection } from './connection.js'
import type { FaultPlan, Played } from './plan.js'

/** The request that the running code belongs to. */
const within = new AsyncLocalStorage<FastifyRequest>()
/** Fastify tells of each handler: so it is known whose a call of `app.pools.get().use()` is. */
const handlers = tracingChannel<unknown, { readonly request: FastifyRequest }>('fastify.request.handler')
let followers = 0

/** @returns its own undo */
function followRequests (): () => void {
  if (followers++ === 0) handlers.start.bindStore(within, ({ request }) => request)
  return () => {
    if (--followers === 0) handlers.start.unbindStore(within)
  }
}

/** Who has the connection for a while: a request, or the code outside of all requests. */
interface Turn {
  readonly owner: object
  /** Ends it. */
  readonly token: Lease<object>
  leases: number
}

/** Somebody who waits for a turn, and is let in with another lease of the same request. */
interface Waiter { readonly owner: object, readonly letIn: () => void }

const outside = { outside: true }

/**
 * Each lease has a stand-in for the connection, which is used once. In front of them is a pool of one token: whoever
 * has it has the turn, until the last of its leases has come back, and its open transactions are undone.
 */
export class SharedPool<C extends object> extends Pool<C> {
  readonly #one: OneConnection<C>
  readonly #plan: FaultPlan
  readonly #gate: Pool<object>
  readonly #played: Played
  #turn: Turn | undefined
  readonly #waiters = new Set<Waiter>()
  /** The turns of the stand-ins that are lent. */
  readonly #turns: Map<C, Turn>
  readonly #undo: Array<() => void>

  constructor (name: string, innards: Innards, backend: Connector<C>, one: OneConnection<C>, plan: FaultPlan) {
    const { acquireTimeout, maxPending, overload, leakAfter, holdTimeout } = innards.options
    const { commitTimeout, resetTimeout, destroyTimeout, wrap, onAcquire, onRelease } = innards.options
    const turns = new Map<C, Turn>()
    const ended = (connection: C): void => {
      const turn = turns.get(connection)
      turns.delete(connection)
      if (turn !== undefined) this.#leave(turn)
    }
    const options = {
      name,
      // For `tryAcquire`.
      min: 8,
      max: 1000,
      maxUses: 1,
      acquireTimeout,
      leakAfter,
      holdTimeout,
      commitTimeout,
      resetTimeout,
      destroyTimeout,
      wrap,
      onAcquire,
      onRelease,
      circuit: false,
    }
    super(connectorOf(backend, one, plan, ended), options as never)
    this.#one = one
    this.#plan = plan
    this.#turns = turns
    const tokens: Connector<object> = { system: backend.system, create: async () => ({}), destroy: () => {} }
    this.#gate = new Pool<object>(tokens, { name, min: 1, max: 1, acquireTimeout, maxPending, overload })
    this.#played = {
      ...innards,
      name,
      situation: () => ({ ...this.#gate.stats(), name }),
      holding: () => ({ holders: this.holders(), inVain: [] }),
    }
    this.#undo = [
      followRequests(),
      ...(['acquire', 'release', 'leak', 'unleak', 'hold', 'overdue', 'error'] as const)
        .map((event) => passOn(event, this, innards)),
      ...(['wait', 'overflow', 'timeout', 'refuse'] as const).map((event) => passOn(event, this.#gate, innards)),
    ]
  }

  override async open (): Promise<void> {
    await this.#gate.open()
    await super.open()
  }

  override async acquire (options: AcquireOptions = {}): Promise<Lease<C>> {
    const owner = ownerOf(options)
    const late = this.#plan.takeTimeout(this.#played, options)
    if (late !== undefined) throw late
    const turn = await this.#enter(owner, options)
    try {
      this.#mustLive()
      const { signal: _, timeout: __, ...rest } = options
      return this.#lent(await super.acquire(rest), turn)
    } catch (error) {
      this.#leave(turn)
      throw error
    }
  }

  override tryAcquire (options: Pick<AcquireOptions, 'holder' | 'role' | 'holdTimeout'> = {}): Lease<C> | null {
    const owner = ownerOf(options)
    if (this.#plan.timesOut || this.#one.isDead) return null
    let turn = this.#turn
    if (turn?.owner !== owner) {
      const token = this.#gate.tryAcquire({ holder: options.holder } as AcquireOptions)
      if (token === null) return null
      turn = this.#begin(owner, token)
    } else turn.leases++
    const lease = super.tryAcquire(options)
    if (lease === null) this.#leave(turn)
    return lease && this.#lent(lease, turn)
  }

  #mustLive (): void {
    if (!this.#one.isDead) return
    throw new PoolError('FST_POOL_CONNECT_FAILED', `pool '${this.name}' has lost the one connection of rollbackEach, ` +
      'and its transaction with it')
  }

  #lent (lease: Lease<C>, turn: Turn): Lease<C> {
    const connection = bare(lease)
    this.#turns.set(connection, turn)
    this.#one.lent(connection, lease)
    return this.#plan.lent(lease, () => this.#one.kill(connection))
  }

  /** Waits for the turn of its owner. */
  async #enter (owner: object, { signal, timeout, holder, role }: AcquireOptions): Promise<Turn> {
    if (this.#turn?.owner === owner) return this.#join(this.#turn)
    const stop = new AbortController()
    const follow = (): void => { stop.abort(signal!.reason) }
    if (signal?.aborted === true) follow()
    signal?.addEventListener('abort', follow, { once: true })
    let isLetIn = false
    const letIn = (): void => {
      isLetIn = true
      stop.abort()
    }
    const waiter: Waiter = { owner, letIn }
    this.#waiters.add(waiter)
    try {
      const token = await this.#gate.acquire({ signal: stop.signal, timeout, holder, role } as AcquireOptions)
      return this.#begin(owner, token)
    } catch (error) {
      if (!isLetIn || signal?.aborted === true) throw error
    } finally {
      this.#waiters.delete(waiter)
      signal?.removeEventListener('abort', follow)
    }
    // That turn may have ended meanwhile.
    return await this.#enter(owner, { signal, timeout, holder, role } as AcquireOptions)
  }

  #join (turn: Turn): Turn {
    turn.leases++
    return turn
  }

  #begin (owner: object, token: Lease<object>): Turn {
    const turn: Turn = this.#turn = { owner, token, leases: 1 }
    for (const waiter of this.#waiters) if (waiter.owner === owner) waiter.letIn()
    return turn
  }

  #leave (turn: Turn): void {
    if (--turn.leases > 0) return
    if (this.#turn === turn) this.#turn = undefined
    turn.token.release()
  }

  override stats (): PoolStats {
    const { pending, timeouts, refused, refusals, aborted, wait } = this.#gate.stats()
    return Object.freeze({ ...super.stats(), max: 1, pending, timeouts, refused, refusals, aborted, wait })
  }

  /**
   * Ends it: those who wait are turned away, and leases that are still out then are revoked.
   *
   * @returns who had them
   */
  async end (timeout: number): Promise<readonly Holder[]> {
    let left: readonly Holder[] = []
    this.on('close', ({ holders }) => { left = holders })
    await Promise.all([this.#gate.close({ timeout }), this.close({ timeout })])
    for (const undo of this.#undo) undo()
    return left
  }
}

/** Whose a call is. Whatever a request does from here on is its own, too. */
function ownerOf ({ holder }: Pick<AcquireOptions, 'holder'>): object {
  const request = RequestHolder.requestOf(holder)
  if (request !== undefined) {
    within.enterWith(request)
    return request
  }
  const around = within.getStore()
  // What a request has set off and left behind is nobody's.
  return around === undefined || around[kScope]?.over === true ? outside : around
}

function passOn (event: PoolEventName, from: Pick<Pool<object>, 'on'>, { events }: Innards): () => void {
  return from.on(event, ({ pool: _, time: __, ...details }: { pool: string, time: number }) => {
    events.emit(event, details as never)
  })
}

/** What makes the stand-ins, and knows what the real connector knows. */
function connectorOf<C extends object> (
  backend: Connector<C>, one: OneConnection<C>, plan: FaultPlan, ended: (connection: C) => void
): Connector<C> {
  const { isolation, readOnly, isTransient } = backend.transactions!
  const transactions: Transactions<C> = {
    isolation,
    readOnly,
    begin: (connection, options, signal) =>
      plan.begin((connection) => one.begin(connection, signal), connection, options, signal),
    isTransient: (error) => isTransient(error),
  }
  return {
    system: backend.system,
    create: async () => one.view(),
    destroy: async (connection) => {
      try {
        await one.close(connection)
      } finally {
        ended(connection)
      }
    },
    isBroken: (connection) => one.isBroken(connection),
    isTransient: (error) => backend.isTransient?.(error) === true,
    ...(backend.call !== undefined && {
      call: (connection: C, method: string) => backend.call!(connection, method),
    }),
    transactions,
  }
}
