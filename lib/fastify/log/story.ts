import type { Clock, Holder, PoolEvents, PoolStats } from '../../../types/pool.js'
import type { Capacity } from '../../../types/connector.js'
import type { Advice } from '../../../types/fastify.js'
import type { StoryLine } from '../../../types/plugin.js'
import { Alarm, systemClock } from '../../engine/time.js'
import type { Asked } from '../advice/collector.js'
import { Advised } from './advised.js'
import { ago, Episode } from './episode.js'
import { Exhausted, type Used } from './exhausted.js'
import { heldBy } from './held.js'
import { Leases } from './leases.js'
import type { Level } from './levels.js'
import { FLAPS, Outage } from './outage.js'
import type { Place } from './place.js'
import * as texts from './texts.js'
import { Throttle } from './throttle.js'

/** Deaths within this time are one line, in ms. */
const TOGETHER = 200
/** So long no request runs into a deadlock, in ms, until it is over. */
const UNTIED = 10_000
/** A pool that closes is told of this often, in ms, from the second time on. */
const SECOND = 1000

/** A line. `level`: other than usual. `holder`: whose request is the cause. */
export interface Line {
  readonly line: StoryLine
  readonly pool: string
  readonly fields: object
  readonly msg: string
  readonly level?: Level | undefined
  readonly holder?: Holder['holder']
}

/** What the story asks of the pools, and where it writes. */
export interface Site {
  /** @param tenant of the pool of one tenant. undefined: there is no such pool any more. */
  stats (pool: string, tenant?: string): PoolStats | undefined
  holders (pool: string): readonly Holder[]
  /** Where its servers are, as far as that is known. */
  places (pool: string): readonly Place[]
  /** What its server allows; undefined: there is nothing to ask. Never rejects. */
  ask (pool: string): Promise<Asked> | undefined
  /** Looks at who holds connections, for advice. */
  look (pool: string, now: number): void
  advice (pool: string, now: number): readonly Advice[]
  write (line: Line): void
}

/** The events of which the story is made. */
export const storyEvents = [
  'open', 'overflow', 'wait', 'refuse', 'error', 'connect', 'disconnect', 'leak', 'unleak', 'hold', 'overdue',
  'failover', 'drain', 'close', 'lag',
] as const satisfies ReadonlyArray<keyof PoolEvents>

type Heard = { readonly [E in typeof storyEvents[number]]: (event: PoolEvents[E]) => void }

/**
 * What happens to the pools, as lines that somebody can read: what lasts is one episode, and has a line when it has
 * lasted for 1 s, 10 s, 60 s, then each minute, and one at its end. One timer for all of it, set only while there is
 * something to tell.
 */
export class Story {
  readonly #site: Site
  readonly #clock: Clock
  readonly #alarm: Alarm
  readonly #pools = new Map<string, PoolStory>()
  /** By the pool's name: of its tenants' pools, those of which there is something to tell. */
  readonly #tenants = new Map<string, Map<string, PoolStory>>()

  constructor (site: Site, clock: Clock = systemClock) {
    this.#site = site
    this.#clock = clock
    this.#alarm = new Alarm(clock, (fn) => fn(), () => { this.#look() }, () => false)
  }

  readonly heard: Heard = {
    open: (event) => { this.#at(event, (one) => one.opened(event)) },
    overflow: (event) => { this.#at(event, (one, now) => one.overflow(event.target, now)) },
    wait: (event) => {
      const { bulkhead } = event
      if (bulkhead !== undefined) this.#at(event, (one, now) => one.shareUsed(bulkhead, now))
    },
    refuse: (event) => {
      if ((event.error as { code?: unknown }).code !== 'FST_POOL_DEADLOCK') return
      this.#at(event, (one, now) => one.deadlocked(event, now))
    },
    error: (event) => { this.#at(event, (one, now) => one.failed(event, now)) },
    connect: (event) => {
      const { pool, target, tenant } = event
      if (tenant === undefined) return this.#at(event, (one, now) => one.connected(target, now))
      // A tenant of which there is nothing to tell has no story. What is told of all ends, too.
      for (const one of [this.#tenants.get(pool)?.get(tenant), this.#pools.get(pool)]) {
        if (one !== undefined) this.#alarm.set(one.connected(target, this.#clock.now(true)))
      }
    },
    disconnect: (event) => {
      if (event.reason === 'error') this.#at(event, (one, now) => one.disconnected(event, now))
    },
    leak: (event) => { this.#at(event, (one, now) => one.leases.add('pool.leak', event, now)) },
    unleak: (event) => {
      const line = event.taken === undefined ? 'pool.leak.end' : 'pool.leak.taken'
      this.#at(event, (one, now) => one.leases.add(line, event, now))
    },
    hold: (event) => { this.#at(event, (one, now) => one.leases.add('pool.hold', event, now)) },
    overdue: (event) => { this.#at(event, (one, now) => one.leases.add('pool.overdue', event, now)) },
    failover: (event) => { this.#at(event, (one, now) => one.failover(event, now)) },
    lag: (event) => { this.#at(event, (one, now) => one.lag(event, now)) },
    drain: (event) => { this.#at(event, (one, now) => one.drain(now)) },
    close: (event) => {
      const { pool } = event
      for (const tenant of [...this.#tenants.get(pool)?.keys() ?? []]) this.tenantClosed(pool, tenant)
      this.#at(event, (one, now) => {
        one.close(now)
        return Infinity
      })
      this.#pools.delete(pool)
      if (this.#pools.size === 0) this.#alarm.cancel()
    },
  }

  /** The pool of one tenant has closed. */
  tenantClosed (pool: string, tenant: string): void {
    const tenants = this.#tenants.get(pool)
    tenants?.get(tenant)?.close(this.#clock.now(true))
    tenants?.delete(tenant)
    if (tenants?.size === 0) this.#tenants.delete(pool)
  }

  /** @param tell returns when to look */
  #at ({ pool, tenant }: Whose, tell: (one: PoolStory, now: number) => number): void {
    const now = this.#clock.now(true)
    let one = this.#pools.get(pool)
    if (one === undefined) {
      one = new PoolStory(pool, this.#site, () => this.#clock.now(true))
      this.#pools.set(pool, one)
    }
    this.#alarm.set(tell(tenant === undefined ? one : this.#storyOf(pool, tenant, one), now))
  }

  /** What happens to one tenant's pool is no news of the others. @param all whose lines are counted with it */
  #storyOf (pool: string, tenant: string, all: PoolStory): PoolStory {
    const tenants = this.#tenants.get(pool) ?? new Map<string, PoolStory>()
    this.#tenants.set(pool, tenants)
    let one = tenants.get(tenant)
    if (one === undefined) {
      one = new PoolStory(pool, siteOf(this.#site, tenant), () => this.#clock.now(true), all)
      tenants.set(tenant, one)
    }
    return one
  }

  #look (): void {
    const now = this.#clock.now(true)
    const tenants = [...this.#tenants.values()].flatMap((all) => [...all.values()])
    for (const one of [...this.#pools.values(), ...tenants]) this.#alarm.set(one.look(now))
  }
}

type Whose = Pick<PoolEvents['open'], 'pool' | 'tenant'>

/** The pool of one tenant, as its story sees it: advice, and what the server allows, are of all together. */
function siteOf (site: Site, tenant: string): Site {
  return {
    stats: (pool) => site.stats(pool, tenant),
    holders: (pool) => site.holders(pool).filter((holder) => holder.tenant === tenant),
    places: () => [],
    ask: () => undefined,
    look: () => {},
    advice: () => [],
    write: (line) => {
      site.write({ ...line, fields: { tenant, ...line.fields }, msg: `tenant ${tenant}: ${line.msg}` })
    },
  }
}

interface Deaths {
  readonly since: number
  readonly target: string | undefined
  n: number
  cause: Error | undefined
  /** Connections whose reset failed. */
  readonly resets: Error[]
}

interface Deadlock {
  readonly episode: Episode
  /** When the last request was refused. */
  last: number
  refused: number
}

/** The story of one pool. Its methods return when to look again. */
class PoolStory {
  readonly #pool: string
  readonly #site: Site
  readonly #now: () => number
  readonly #throttle: Throttle
  readonly #isPart: boolean
  /** By target; '': the pool itself. */
  readonly #outages = new Map<string, Outage>()
  readonly #exhausted = new Map<string, Exhausted>()
  /** By key. */
  readonly #shares = new Map<string, Exhausted>()
  readonly #deaths = new Map<string, Deaths>()
  /** Errors that were told: the end of their connections is no news. */
  readonly #told = new WeakSet<Error>()
  readonly #advised: Advised
  readonly leases: Leases
  #deadlock: Deadlock | undefined
  /** Writes that the pool is open, where the server has not answered yet. */
  #opening: (() => void) | undefined
  /** When the drain began, and how many lines were written about it. */
  #closing: { readonly since: number, told: number } | undefined

  /**
   * @param now reads the clock
   * @param all whose lines are counted with this one's: it is of one tenant
   */
  constructor (pool: string, site: Site, now: () => number, all?: PoolStory) {
    this.#throttle = all === undefined ? new Throttle() : all.#throttle
    this.#isPart = all !== undefined
    this.#pool = pool
    this.#site = site
    this.#now = now
    this.#advised = new Advised({
      isShort: () => (site.stats(pool)?.pending ?? 0) > 0,
      look: (at) => { site.look(pool, at) },
      advice: (at) => site.advice(pool, at),
      write: (advice) => { this.#advise(advice) },
    }, now())
    this.leases = new Leases({
      pool,
      holders: () => site.holders(pool),
      hasRoom: (line, at) => this.#throttle.hasRoom(line, at),
      write: (line, fields, msg, holder) => { this.#write(line, fields, msg, { holder }) },
    })
  }

  // --- Connections ---------------------------------------------------------------------------------------------------

  overflow (target: string | undefined, now: number): number {
    const key = target ?? ''
    let one = this.#exhausted.get(key)
    if (one === undefined) {
      one = new Exhausted({
        used: () => {
          const stats = this.#statsOf(target)
          if (stats === undefined) return undefined
          const { idle, used } = stats
          // Without any connection it is an outage, which is another story.
          const isDown = idle + used === 0 && this.#outages.get(key)?.goesOn === true
          return { ...stats, free: isDown ? Infinity : idle, here: idle + used }
        },
        holders: () => this.#site.holders(this.#pool).filter((holder) => holder.target === target),
        failing: () => this.#outages.get(key)?.why,
        write: (line, fields, msg) => { this.#write(line, fields, msg) },
      }, target === undefined ? {} : { target })
      this.#exhausted.set(key, one)
    }
    return Math.min(one.begins(now), this.#advised.overflow(now))
  }

  /** All that one key may have is used, and somebody waits for it. */
  shareUsed (bulkhead: string, now: number): number {
    let one = this.#shares.get(bulkhead)
    if (one === undefined) {
      one = new Exhausted({
        used: () => this.#shareOf(bulkhead),
        holders: () => this.#site.holders(this.#pool).filter((holder) => holder.bulkhead === bulkhead),
        failing: () => undefined,
        write: (line, fields, msg) => { this.#write(line, fields, msg) },
      }, { bulkhead })
      this.#shares.set(bulkhead, one)
    }
    return one.begins(now)
  }

  connected (target: string | undefined, now: number): number {
    this.#outages.get(target ?? '')?.connected(now)
    return this.#throttle.look(now)
  }

  failed (event: PoolEvents['error'], now: number): number {
    const { phase, error, target, kind } = event
    this.#told.add(error)
    if (phase === 'create') return this.#outageOf(target).failed(error, kind, now)
    if (phase === 'death' || phase === 'validate' || phase === 'isBroken') return this.#died(target, error, now)
    if (phase === 'reset') return this.#resetFailed(target, error, now)
    const { code } = error as { code?: unknown }
    const fields = {
      ...(target !== undefined && { target }),
      phase,
      cause: error.message,
      ...(code !== undefined && { code }),
      err: error,
    }
    // Nothing is broken: messages are subscribed to again, servers are asked again.
    const isMild = phase === 'subscription' || phase === 'targets' || phase === 'discover'
    const level = isMild ? 'warn' : undefined
    return this.#write('pool.error', fields, texts.failed(phase, error.message), { level })
  }

  disconnected ({ reason, error, target }: PoolEvents['disconnect'], now: number): number {
    // Where the driver did not tell of it, a look at the connection did.
    const unheard = reason === 'error' && (error === undefined || error.message === 'the connection was closed')
    return unheard && !(error !== undefined && this.#told.has(error)) ? this.#died(target, error, now) : Infinity
  }

  #died (target: string | undefined, cause: Error | undefined, now: number): number {
    const deaths = this.#deathsOf(target, now)
    deaths.n++
    deaths.cause ??= cause
    return deaths.since + TOGETHER
  }

  /** Where its server is gone too, it was a death like others; else a request left what nothing undoes. */
  #resetFailed (target: string | undefined, error: Error, now: number): number {
    const deaths = this.#deathsOf(target, now)
    deaths.resets.push(error)
    return deaths.since + TOGETHER
  }

  #deathsOf (target: string | undefined, now: number): Deaths {
    const deaths = this.#deaths.get(target ?? '') ?? { since: now, target, n: 0, cause: undefined, resets: [] }
    this.#deaths.set(target ?? '', deaths)
    return deaths
  }

  /** No connection died, and resets failed all the same. */
  #areResets ({ n, resets, target }: Deaths): boolean {
    return n === 0 && resets.length > 0 && this.#outages.get(target ?? '')?.goesOn !== true
  }

  /** A request left what nothing undoes, and its connection was replaced: nothing is broken. */
  #tellResets ({ resets, target }: Deaths): void {
    const [err] = resets
    const { cause = err } = err as { cause?: unknown }
    const { message, code = (err as { code?: unknown }).code } = cause as Error & { code?: unknown }
    this.#write('pool.error', {
      ...(target !== undefined && { target }),
      phase: 'reset',
      connections: resets.length,
      cause: message,
      code,
      remedy: 'find out what the requests leave on their connections; the connections were replaced',
      err,
    }, texts.failed('reset', message), { level: 'warn' })
  }

  #tellDeaths (deaths: Deaths): void {
    if (this.#areResets(deaths)) return this.#tellResets(deaths)
    const { target, resets } = deaths
    const n = deaths.n + resets.length
    const cause = deaths.cause ?? (resets[0]?.cause as Error | undefined)
    const stats = this.#statsOf(target)
    const left = stats === undefined ? 0 : stats.idle + stats.used
    const why = cause?.message ?? 'the connection was closed'
    const { code } = (cause ?? {}) as { code?: string | number }
    const outages = this.#outages.get(target ?? '')?.recent(this.#now()) ?? 0
    this.#write('pool.died', {
      ...(target !== undefined && { target }),
      died: n,
      left,
      ...(outages > 0 && { outages, flaps: outages >= FLAPS }),
      cause: why,
      ...(code !== undefined && { code }),
      remedy: texts.remedyForDeath(code === undefined ? undefined : String(code)),
    }, texts.died({ pool: this.#pool, target, died: n, left, cause: why, outages }))
  }

  #outageOf (target: string | undefined): Outage {
    let outage = this.#outages.get(target ?? '')
    if (outage === undefined) {
      outage = new Outage({
        pool: this.#pool,
        target,
        numbers: () => {
          const all = this.#site.stats(this.#pool)
          const stats = this.#statsOf(target)
          if (all === undefined || stats === undefined) return undefined
          const { max, idle, used } = stats
          return { max, here: idle + used, pending: all.pending, refused: all.refused + all.timeouts }
        },
        write: (line, fields, msg, level) => { this.#write(line, fields, msg, { level }) },
      })
      this.#outages.set(target ?? '', outage)
    }
    return outage
  }

  #statsOf (target: string | undefined): PoolStats | undefined {
    const stats = this.#site.stats(this.#pool)
    return target === undefined ? stats : stats?.targets?.find((one) => one.target === target)
  }

  #shareOf (key: string): Used | 'over' | undefined {
    const stats = this.#site.stats(this.#pool)
    if (stats?.bulkhead === undefined) return undefined
    const { keys, shares } = stats.bulkhead
    const share = keys.find((one) => one.key === key)
    // Of many shares only some are told: where all are, it is not there any more.
    if (share === undefined) return keys.length < shares ? undefined : 'over'
    const { used, pending, timeouts, refused } = share
    // What is served of one share, nobody counts: what the whole pool serves says more than nothing.
    const { acquired, released } = stats
    // It waits only where its share is used up.
    return { max: used, here: used, creating: 0, free: 0, pending, timeouts, refused, acquired, released }
  }

  // --- Deadlocks -----------------------------------------------------------------------------------------------------

  deadlocked ({ error }: PoolEvents['refuse'], now: number): number {
    if (this.#deadlock !== undefined && now - this.#deadlock.last >= UNTIED) this.#deadlock = undefined
    const deadlock = (this.#deadlock ??= { episode: new Episode(now), last: now, refused: 0 })
    deadlock.last = now
    deadlock.refused++
    // It does not pass by itself: the first refusal is told at once.
    if (deadlock.refused > 1 && !deadlock.episode.takeDue(now)) return Infinity
    if (deadlock.refused === 1) deadlock.episode.told = 1
    const held = heldBy(this.#site.holders(this.#pool))
    const max = this.#site.stats(this.#pool)?.max ?? 0
    const { refused } = deadlock
    return this.#write('pool.deadlock', {
      since: ago(now - deadlock.episode.since),
      refused,
      max,
      held,
      cause: error.message,
      code: 'FST_POOL_DEADLOCK',
      remedy: 'use the connection that the request has (request.lease(name)), or raise max above the number of ' +
        'requests that take two',
    }, texts.deadlock(this.#pool, max, refused, held))
  }

  // --- The pool ------------------------------------------------------------------------------------------------------

  failover ({ from, to }: PoolEvents['failover'], _now: number): number {
    return this.#write('pool.failover', {
      from,
      to,
      cause: to === undefined
        ? `${from} does not take writes any more, and no other server does`
        : `${to} says that it is the primary${from === undefined ? '' : `, and ${from} has gone or does not any more`}`,
      remedy: to === undefined
        ? 'promote a replica, or bring the primary back: writes wait or fail until then, and reads are served'
        : 'none for the pool, which writes there from now on: see why the old primary went away',
    }, texts.failover(from, to))
  }

  lag ({ target, lag, maxLag, over }: PoolEvents['lag'], _now: number): number {
    return this.#write('pool.lag', {
      target,
      lag: lag === null ? null : Math.round(lag),
      maxLag,
      over,
      ...(over && {
        cause: 'a replica does not keep up with its primary',
        remedy: 'look at the load and the network of the replica: others serve its reads meanwhile',
      }),
    }, texts.lag(target, lag, maxLag, over), { level: over ? undefined : 'info' })
  }

  opened ({ driver }: PoolEvents['open']): number {
    const stats = this.#site.stats(this.#pool)
    if (stats === undefined) return Infinity
    const { system, max, min } = stats
    const places = this.#site.places(this.#pool)
    const targets = places.length < 2 ? undefined : stats.targets?.map(({ target }) => target)
    const [place = {}] = targets === undefined ? places : []
    const base = { system, driver, ...place, targets, max, min }
    const write = (capacity?: Capacity) => {
      this.#opening = undefined
      const { allowed, inUse, ours } = capacity ?? {}
      const told = { ...base, ...(allowed !== undefined && { allowed, inUse }), ...(ours !== undefined && { ours }) }
      return this.#write('pool.open', told, texts.opened({ pool: this.#pool, ...told }))
    }
    const asked = this.#site.ask(this.#pool)
    if (asked === undefined) return write()
    this.#opening = () => { write() }
    asked.then(({ capacity, error, advice }) => {
      // The pool was closed meanwhile.
      if (this.#opening === undefined) return
      write(capacity)
      if (advice !== undefined) this.#advise(advice)
      if (error === undefined) return
      const msg = `how many connections the server allows is not known: ${error.message}`
      this.#write('pool.advice', { cause: error.message }, msg, { level: 'debug' })
    }).catch((error: unknown) => { throw error })
    return Infinity
  }

  #advise ({ kind, route, message, numbers }: Advice): void {
    this.#write('pool.advice', { kind, ...(route !== undefined && { route }), ...numbers }, message)
  }

  drain (now: number): number {
    this.#closing = { since: now, told: 0 }
    return now + 2 * SECOND
  }

  #tellClosing (since: number, now: number): void {
    const holders = this.#site.holders(this.#pool)
    const { used = holders.length, pending = 0 } = this.#site.stats(this.#pool) ?? {}
    const held = heldBy(holders)
    this.#write('pool.closing', {
      since: ago(now - since),
      for: Math.round(now - since),
      used,
      pending,
      held,
      cause: held.length === 0
        ? 'connections are still being closed'
        : `${held[0]!.route} has not given its connection back`,
      remedy: 'what is still out at closeTimeout is destroyed',
    }, texts.closing(this.#pool, now - since, used, pending, held), { paced: true })
  }

  close (now: number): void {
    this.#opening?.()
    for (const outage of this.#outages.values()) outage.close(now)
    for (const exhausted of [...this.#exhausted.values(), ...this.#shares.values()]) exhausted.close(now)
    for (const deaths of this.#deaths.values()) this.#tellDeaths(deaths)
    this.leases.close()
    if (!this.#isPart) this.#throttle.end(now)
  }

  look (now: number): number {
    for (const [target, deaths] of this.#deaths) {
      if (now < deaths.since + TOGETHER) continue
      // There may be many: those that must wait have one line together.
      if (this.#areResets(deaths) && !this.#throttle.hasRoom('pool.error', now)) continue
      this.#deaths.delete(target)
      this.#tellDeaths(deaths)
    }
    const times = [...this.#deaths.values()].map(({ since }) => Math.max(since + TOGETHER, now + TOGETHER))
    for (const outage of this.#outages.values()) times.push(outage.look(now))
    for (const exhausted of this.#exhausted.values()) times.push(exhausted.look(now))
    for (const [key, share] of this.#shares) {
      const next = share.look(now)
      // There may be as many keys as there are clients.
      if (next === Infinity) this.#shares.delete(key)
      times.push(next)
    }
    times.push(this.#lookAtClosing(now), this.#advised.look(now), this.leases.look(now), this.#throttle.look(now))
    return Math.min(...times)
  }

  #lookAtClosing (now: number): number {
    const closing = this.#closing
    if (closing === undefined) return Infinity
    const due = closing.since + (2 + closing.told) * SECOND
    if (now < due) return due
    const { idle = 0, used = 0, pending = 0, creating = 0, closing: ending = 0 } = this.#site.stats(this.#pool) ?? {}
    // Drained, and not closed yet: it waits for nobody.
    if (idle + used + pending + creating + ending === 0) return Infinity
    closing.told = Math.floor((now - closing.since) / SECOND) - 1
    this.#tellClosing(closing.since, now)
    return closing.since + (2 + closing.told) * SECOND
  }

  /** Returns when to look again. */
  #write (
    line: StoryLine, fields: object, msg: string,
    { level, holder, paced = false }: Pick<Line, 'level' | 'holder'> & { readonly paced?: boolean } = {}
  ): number {
    const now = this.#now()
    const pool = this.#pool
    this.#throttle.add(line, now, (omitted) => {
      const all = omitted === 0 ? fields : { ...fields, omitted }
      this.#site.write({ line, pool, fields: all, msg, level, holder })
    }, paced)
    return this.#throttle.look(now)
  }
}
