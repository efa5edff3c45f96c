// What to change about a pool. Pure functions: from numbers to advice, or to none where they do not show enough.
import type { Capacity } from '../../../types/connector.js'
import type { Advice, AdviceKind } from '../../../types/fastify.js'
import type { PoolStats } from '../../../types/stats.js'
import { recommendedPoolSize } from '../../pool/sizing.js'
import { count, duration } from '../log/texts.js'
import type { IdleTime } from './samples.js'

/** So much of the last minute has to be seen before it counts, in ms. */
const SPAN = 10_000
/** So many acquires, too: the mean of a few holds says little. */
const ACQUIRES = 100
/** In so many looks at those who hold connections. */
const LOOKS = 10
/** Which part of the time somebody waits, beyond which a pool is short of connections: `max` is chosen for as much. */
const SHORT = 0.01
/** Which part of the time that connections are lent may be idle. */
const IDLE = 0.5

/** What the server allows, and among how many pools like this one it is shared out. */
export interface Server extends Capacity {
  /** This process, and at least so many others: other pools of the same app and server count as processes, too. */
  readonly instances: number
}

/** @param stats when the server was asked */
export function serverOf ({ creating, idle, used, closing, max }: PoolStats, capacity: Capacity): Server {
  const others = (capacity.ours ?? 0) - (creating + idle + used + closing)
  const instances = Math.max(1, capacity.hosts ?? 1, 1 + Math.ceil(Math.max(0, others) / max))
  return { ...capacity, instances }
}

/** All instances with all of their connections would be more than the server allows. */
export function tooManyForServer ({ name, max }: PoolStats, server: Server): Advice | undefined {
  const { allowed, inUse, ours, instances } = server
  if (instances * max <= allowed) return undefined
  const what = instances === 1 ? `max ${max} does` : `${instances} instances of ${max} do`
  const room = Math.max(1, Math.floor(allowed / instances))
  return advice(name, 'server', `${what} not fit the server's ${allowed}: max ${room} would`, {
    max, needed: room, instances, allowed, inUse, ...(ours !== undefined && { ours }),
  })
}

/**
 * Whether a shortage of connections shows in the last minute. A pool for each tenant has sums over pools that are short
 * each by itself, and SQLite writes on one handle whatever `max` is: of these nothing is said.
 */
function isShort ({ lastMinute, system, tenants }: PoolStats): boolean {
  const { span, saturated } = lastMinute
  return span >= SPAN && saturated / span > SHORT && tenants === undefined && system !== 'sqlite'
}

/**
 * `max` is too small for the load: Little's law, with a margin (`recommendedPoolSize`).
 *
 * Who was refused, or gave up, would have held a connection as long as the others did: they count as load. Who
 * still waits counts once that is over: as many waited when the minute began.
 */
export function tooSmall (stats: PoolStats, server?: Server): Advice | undefined {
  const { name, max, lastMinute } = stats
  const { span, acquired, timeouts, aborted, refusals, busy, saturated } = lastMinute
  if (!isShort(stats) || acquired < ACQUIRES || busy <= 0) return undefined
  const wanted = acquired + timeouts + aborted + refusals.full + refusals.overload
  const perSecond = wanted * 1000 / span
  const heldMs = busy / acquired
  const needed = recommendedPoolSize({ perSecond, heldMs })
  if (needed <= max) return undefined
  const room = server === undefined ? Infinity : Math.max(1, Math.floor(server.allowed / server.instances))
  const limit = room < needed ? ` (the server allows ${room} to each instance)` : ''
  return advice(name, 'max', `max ${max} is too small: ${short(perSecond)} requests a second hold one for ` +
    `${duration(heldMs)}, which needs ${needed}${limit}`, {
    max,
    needed,
    perSecond: rounded(perSecond),
    ...(server !== undefined && { allowed: server.allowed, instances: server.instances }),
    servedPerSecond: rounded(acquired * 1000 / span),
    heldMs: rounded(heldMs),
    waitP99: rounded(lastMinute.wait.p99),
    saturated: rounded(saturated / span),
  })
}

/** Others wait while those who hold connections do something else than use them. */
export function idleInHandler (stats: PoolStats, idle: IdleTime): Advice | undefined {
  const { name, max } = stats
  const { looks, lent, inHandler, inTransaction, route } = idle
  if (!isShort(stats) || looks < LOOKS || lent < LOOKS || inHandler / lent < IDLE) return undefined
  const share = inHandler / lent
  const at = route === undefined ? '' : ` on ${route}`
  const remedy = inTransaction > inHandler / 2
    ? `end the transaction before other work${at}`
    : route === undefined ? 'release it before other work' : `\`release: 'onSend'\` or \`acquire: 'manual'\`${at}`
  const numbers = {
    max,
    idle: rounded(share),
    inTransaction: rounded(inTransaction / lent),
    looks,
    saturated: rounded(stats.lastMinute.saturated / stats.lastMinute.span),
  }
  const message = `${Math.round(share * max)} of ${count(max, 'connection')}${max === 1 ? "'s" : "'"} time is spent ` +
    `idle in the handler: ${remedy}`
  return advice(name, 'idle', message, numbers, route)
}

function advice (
  pool: string, kind: AdviceKind, message: string, numbers: Readonly<Record<string, number>>, route?: string
): Advice {
  return Object.freeze({
    pool, kind, message, ...(route !== undefined && { route }), numbers: Object.freeze(numbers),
  })
}

function rounded (value: number): number {
  return Math.round(value * 1000) / 1000
}

/** '150', '2.5'. */
function short (value: number): string {
  return String(value < 10 ? Math.round(value * 10) / 10 : Math.round(value))
}
