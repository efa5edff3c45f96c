// What a pool tells of itself: its books, and its health.
import type { DestroyReason, TargetRole } from './connector.js'
import type { SubscriptionStats } from './messages.js'

export type Circuit = 'closed' | 'open' | 'half-open'

/**
 * A distribution of durations, in ms: of those that have ended, whatever their end, and of those that go on, with what
 * they are by now. Percentiles are exact to about 6 %.
 */
export interface Durations {
  readonly count: number
  readonly sum: number
  readonly p50: number
  readonly p99: number
  readonly max: number
  /**
   * How many have ended within so many ms, the shorter ones included, as Prometheus counts. Longer ones, and those that
   * go on, are in `count` only. So neither a bucket, `count` nor `sum` ever falls.
   */
  readonly buckets: readonly Bucket[]
}

/** How many of the durations are at most `le` ms. */
export interface Bucket { readonly le: number, readonly count: number }

/**
 * Why an acquire was refused. `full`: `maxPending` callers wait. `overload`: the line moves too slowly for its
 * deadline. `circuit`: creates keep failing. `connect`: the server refuses us. `deadlock`: all who hold connections
 * wait for one more. `closed`: the pool is closing, or closed.
 */
export type RefuseReason = 'full' | 'overload' | 'circuit' | 'connect' | 'deadlock' | 'closed'

/** What a pool counts, since it was made or in a window of time. */
export interface Counts {
  readonly acquired: number
  readonly released: number
  readonly created: number
  readonly createErrors: number
  readonly destroyed: Readonly<Record<DestroyReason, number>>
  /** Acquires that failed because their deadline passed. */
  readonly timeouts: number
  /**
   * Acquires refused at once: the line was full or too slow, the circuit open, the login refused, a deadlock, or the
   * pool closed.
   */
  readonly refused: number
  /** The same, by the reason. */
  readonly refusals: Readonly<Record<RefuseReason, number>>
  /** Acquires that their signal ended. */
  readonly aborted: number
  /** Leases that were out for longer than `leakAfter`. */
  readonly leaked: number
  /**
   * How long acquires waited: those that were served (0 where at once), those that failed after they had begun to wait,
   * and those that still wait.
   */
  readonly wait: Durations
  /**
   * How long leases were held, those included that are out. Of short ones a sample is timed exactly: the first 64
   * leases of each 100 ms stand for all.
   */
  readonly held: Durations
  /** How long creates took. */
  readonly create: Durations
  /**
   * For how long, in ms, all connections were used while somebody waited. Of several targets: of the one where that was
   * longest.
   */
  readonly saturated: number
  /**
   * For how long connections were lent, in ms, of all of them together: divided by the time that has passed, it tells
   * how many were used on average.
   */
  readonly busy: number
}

/** What happened within the last 60 s, or since the pool was made where that is less. */
export interface WindowStats extends Counts {
  /** How long the window is, in ms: 60,000 to 65,000, or less where the pool is younger. */
  readonly span: number
}

/** The fair shares of a pool's connections, as its `bulkhead` counts them. */
export interface BulkheadStats {
  /** Requests that wait for their share. */
  readonly pending: number
  /** Requests whose deadline passed while they waited for their share. */
  readonly timeouts: number
  /** Requests refused since as many as `maxPending` wait for their shares, or since the pool closes. */
  readonly refused: number
  /** Requests that ended while they waited for their share. */
  readonly aborted: number
  /** How long requests waited for their share, as of `PoolStats.wait`. Those that did not have to count as 0. */
  readonly wait: Durations
  /** How many keys there are now whose requests have a connection or wait for one. */
  readonly shares: number
  /** Up to 10 of them: those for whom most wait, then those that have most. */
  readonly keys: readonly ShareStats[]
}

export interface ShareStats {
  /** A hash: a key may be a secret. The first 12 hexadecimal digits of its SHA-256. */
  readonly key: string
  /** How many connections its requests have, or are about to get. */
  readonly used: number
  readonly pending: number
  /** Since requests of the key last had, or waited for, a connection without a break. */
  readonly timeouts: number
  readonly refused: number
}

/** A frozen copy of the pool's books. */
export interface PoolStats extends Counts {
  readonly name: string
  readonly system: string
  readonly min: number
  readonly max: number
  /** `creating + idle + used + closing <= max`, always. */
  readonly creating: number
  readonly idle: number
  /** Lent, or being validated, kept alive or reset. */
  readonly used: number
  /** Those of the used ones that were given back, and are made clean for the next caller. */
  readonly resetting: number
  readonly closing: number
  /** Callers that wait for a connection. */
  readonly pending: number
  /**
   * Creates and destroys that are past their deadline and have not come back, and destroys of connections that were
   * silent. A destroy counts for 60 s.
   */
  readonly late: number
  /**
   * Of creates: 'open' while only one is tried now and then, 'half-open' while that is under way. Of several targets:
   * the worst of those in use.
   */
  readonly circuit: Circuit
  /** How many creates failed, by what they failed with: the error's code, or its name, or 'timeout'. At most 20. */
  readonly createFailures: Readonly<Record<string, number>>
  /**
   * `busy` by the holder's route, or its text; without those that have none. At most 200: what comes later is added to
   * '(others)'.
   */
  readonly routes: Readonly<Record<string, number>>
  /** The same counts of the last 60 s. */
  readonly lastMinute: WindowStats
  /** Where the app has subscribed to channels (`backend.subscribe`, `backend.listen`). */
  readonly subscriptions?: SubscriptionStats
  /** Where requests have fair shares of the connections. Their waits are in none of the pool's own numbers. */
  readonly bulkhead?: BulkheadStats
  /**
   * Where there are several targets: each one's books. The others are their sums; with `discover`, those of servers
   * that have gone included.
   */
  readonly targets?: readonly TargetStats[]
  /** Where each tenant has a pool: all others are sums over these, closed ones included. */
  readonly tenants?: TenantsStats
}

export interface TenantsStats {
  /** How many tenants have a pool now. */
  readonly open: number
  /** Up to 10 of them: those for whom most wait, then those that have most connections. */
  readonly largest: readonly TenantStats[]
}

export interface TenantStats extends PoolStats {
  /** The key's hash, unless `showKeys` is set. */
  readonly tenant: string
}

export interface TargetStats extends PoolStats {
  readonly target: string
  /** What it is now: as it said when it was last asked, or else as it was given. */
  readonly role: TargetRole
  /** Of a replica, as of `maxLag`; null: not known. */
  readonly lag: number | null
}

export type HealthStatus = 'up' | 'degraded' | 'down' | 'draining'

export interface PoolHealth {
  /**
   * `up`: the last thing heard of the server was good. `degraded`: somebody waits, or the last create failed while some
   * connections work, or nothing is known of the server yet. `down`: no connection, and the last thing heard of the
   * server was bad (a failed create, a death), or the circuit is open. `draining`: it drains, closes or is closed.
   */
  readonly status: HealthStatus
  /** Why it is not `up`, with the cause. */
  readonly reason?: string
  /** Since when it has been `down`, or has had no connection, in ms since 1970. */
  readonly since?: number
  /**
   * Of one ping on an idle connection, in ms, to a hundredth. `null`: none was idle, or the connector has no
   * `validate`.
   */
  readonly latency: number | null
  readonly circuit: Circuit
  readonly stats: PoolStats
  /** Where there are several targets: how each one is. */
  readonly targets?: readonly TargetHealth[]
}

export interface TargetHealth extends Pick<PoolHealth, 'status' | 'reason' | 'since' | 'latency' | 'circuit'> {
  readonly target: string
  /** What it is now, as in `stats().targets`. */
  readonly role: TargetRole
  readonly lag: number | null
}
