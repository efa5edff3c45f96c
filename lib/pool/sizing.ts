// How many connections a pool needs.
import { badOption } from '../engine/errors.js'
import { readObject } from './schema.js'

/** What is known of an app and its database server. All are optional. */
export interface PoolSizing {
  /** Cores of the database server. */
  cores?: number | undefined
  /** Processes that have such a pool each. Default 1. */
  instances?: number | undefined
  /** The connections that the server allows to all of them together. */
  serverMax?: number | undefined
  /** How long a request holds a connection on average, in ms: `held` of the pool's stats. */
  heldMs?: number | undefined
  /** Requests a second, of one process, that hold one. */
  perSecond?: number | undefined
}

const known: { readonly [K in keyof PoolSizing]-?: object } = {
  cores: {}, instances: {}, serverMax: {}, heldMs: {}, perSecond: {},
}

/** How many standard deviations above the mean are enough for 99 of 100 moments (normal distribution). */
const margin = 2.33

/**
 * A `max` for one process. The first of these that can be told, but no more than `serverMax / instances`:
 *
 * - from the load, `perSecond` and `heldMs`: Little's law tells how many connections are used on average (L = rate x
 *   time). As many as that would make half of the requests wait, so 2.33 times its square root is added: arrivals at
 *   random then find all in use in about one of 100 moments (square-root staffing, Halfin and Whitt 1981).
 * - from the server, `cores`: twice its cores and one are as many as it can keep busy, divided among the processes
 *   (HikariCP's "About Pool Sizing", which has it from PostgreSQL's project).
 * - 10, the default of `max`.
 *
 * @returns an integer of at least 1
 * @throws `FST_POOL_BAD_OPTIONS`
 */
export function recommendedPoolSize (sizing: PoolSizing = {}): number {
  for (const [name, value] of Object.entries(readObject(known, sizing, ''))) {
    const isGood = typeof value === 'number' && Number.isFinite(value) && value > 0
    if (value !== undefined && !isGood) throw badOption(name, value, 'a number above 0')
  }
  const { cores, instances = 1, serverMax = Infinity, heldMs, perSecond } = sizing
  if ((heldMs === undefined) !== (perSecond === undefined)) {
    throw heldMs === undefined
      ? badOption('heldMs', heldMs, 'milliseconds, beside perSecond')
      : badOption('perSecond', perSecond, 'requests a second, beside heldMs')
  }
  const used = (perSecond ?? 0) * (heldMs ?? 0) / 1000
  const wanted = used > 0
    ? Math.ceil(used + margin * Math.sqrt(used))
    : cores === undefined ? 10 : (2 * cores + 1) / instances
  return Math.max(1, Math.floor(Math.min(wanted, serverMax / instances)))
}
