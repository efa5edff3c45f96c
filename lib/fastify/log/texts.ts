// What the log says. Pure functions: from numbers to a sentence.
import type { Holder, HolderLabel } from '../../../types/pool.js'
import { callerWithoutName, type HeldBy } from './held.js'

export function duration (ms: number): string {
  if (ms < 1000) return `${Math.round(ms * 10) / 10} ms`
  if (ms < 120_000) return `${(ms / 1000).toFixed(1)} s`
  return ms < 7_200_000 ? `${(ms / 60_000).toFixed(1)} min` : `${(ms / 3_600_000).toFixed(1)} h`
}

/** '1 connection', '5 connections'. */
export function count (n: number, one: string, many = `${one}s`): string {
  return `${n} ${n === 1 ? one : many}`
}

function ordinal (n: number): string {
  const teen = n % 100 > 10 && n % 100 < 14
  return `${n}${(!teen && ['th', 'st', 'nd', 'rd'][n % 10]) || 'th'}`
}

export function nameOf (holder: HolderLabel | undefined): string | undefined {
  if (holder === undefined || typeof holder === 'string') return holder
  return `${holder.route ?? 'unknown'}${holder.id === undefined ? '' : ` (${holder.id})`}`
}

/** Each holder, with how long. */
export function tell (holders: readonly Holder[]): string {
  const one = ({ holder, heldFor, id }: Holder) => `${duration(heldFor)} by ${nameOf(holder) ?? `connection ${id}`}`
  return holders.map(one).join(', ')
}

// --- Who holds connections -------------------------------------------------------------------------------------------

/** @param max of how many connections */
function held (by: readonly HeldBy[], max: number): string {
  const told = by.slice(0, 3).map(({ route, connections, longest, id }) =>
    `${connections} of ${max} by ${route}, the longest for ${duration(longest)}${id === undefined ? '' : ` (${id})`}`)
  return told.length === 0 ? '' : `. Held: ${told.join('; ')}`
}

/** What names those who have no name. */
function nameless (route: string): string {
  return route === callerWithoutName ? ', and who it is: pool.acquire({ holder })' : ''
}

/** What to do about those who hold most. */
function remedyFor ({ route, doing }: HeldBy): string {
  if (doing === 'idle in transaction') {
    return `${route} keeps a transaction open and sends nothing: end the transaction before other work`
  }
  if (doing === 'idle') {
    return `${route} holds its connection and sends nothing: release it before other work, such as a wait for ` +
      `another connection, or find out where it is forgotten (leakAfter)${nameless(route)}`
  }
  const search = `look for slow queries${doing === 'query' ? '' : ', other work, or a leak (leakAfter)'}`
  return `${search} in ${route}; raise max only where the server can serve more; a bulkhead keeps places for others`
}

export interface Exhausted {
  readonly max: number
  readonly creating: number
  readonly pending: number
  readonly for: number
  /** How many were served in a second. */
  readonly rate: number
  readonly held: readonly HeldBy[]
  readonly target?: string | undefined
  /** It is the share of one key. */
  readonly bulkhead?: string | undefined
  /** Connections that are there. */
  readonly here: number
  /** Why there are no more. */
  readonly failing?: { readonly cause: string, readonly remedy: string } | undefined
}

/** What is used up. */
function usedUp ({ max, here, target, bulkhead, failing }: Exhausted): string {
  const to = target === undefined ? '' : ` to ${target}`
  if (bulkhead !== undefined) {
    return `the requests of one key (bulkhead ${bulkhead}) have had their whole share of ${count(max, 'connection')}`
  }
  if (failing !== undefined) return `all ${here} connections that there are${to} (max ${max}) have been used`
  return max === 1 ? `the only connection${to} has been used` : `all ${max} connections${to} have been used`
}

function whyUsedUp ({ max, creating, held: [first], bulkhead, failing }: Exhausted) {
  if (failing !== undefined) {
    return { cause: `no more connections can be made: ${failing.cause}`, remedy: failing.remedy }
  }
  // Where most of the connections are not there yet, those who hold the others are not to blame.
  if (first === undefined || creating * 2 > max) {
    return {
      cause: `${count(creating, 'connection is', 'connections are')} still being opened`,
      remedy: 'the server or the network is slow to make connections: see connectTimeout and min',
    }
  }
  const { route, connections, doing } = first
  return {
    cause: `${route} holds ${connections} of ${max}${doing === undefined ? '' : ` (${doing})`}`,
    remedy: bulkhead === undefined
      ? remedyFor(first)
      : 'the others are served: raise bulkhead.max only where this key may have more, or let its client slow down',
  }
}

export function exhausted (told: Exhausted): { readonly msg: string, readonly cause: string, readonly remedy: string } {
  const { max, creating, pending, for: lasted, rate, held: by } = told
  const opening = creating > 0 ? `, ${creating} of them still being opened` : ''
  const msg = `${usedUp(told)} for ${duration(lasted)}${opening}, ${pending} ${pending === 1 ? 'waits' : 'wait'}, ` +
    `${Math.round(rate * 10) / 10} are served a second${held(by, max)}`
  return { msg, ...whyUsedUp(told) }
}

export function exhaustedEnd (
  told: Pick<Exhausted, 'max' | 'for' | 'rate' | 'bulkhead' | 'target'> &
  { readonly refused: number, readonly timeouts: number, readonly most: number }
): string {
  const { max, for: lasted, rate, bulkhead, target, refused, timeouts, most } = told
  const to = target === undefined ? '' : ` to ${target}`
  const what = bulkhead === undefined
    ? `${max === 1 ? `the only connection${to} was` : `all ${max} connections${to} were`} used`
    : `the requests of one key (bulkhead ${bulkhead}) had their whole share of ${count(max, 'connection')}`
  return `it is over: ${what} for ${duration(lasted)}, ${most} waited at most, ${Math.round(rate * 10) / 10} were ` +
    `served a second, ${timeouts} timed out, ${refused} were refused`
}

// --- Outages ---------------------------------------------------------------------------------------------------------

/** @param target the server, where the pool has several */
function who (pool: string, target: string | undefined): string {
  return `pool '${pool}'${target === undefined ? '' : ` (${target})`}`
}

export interface Outage {
  readonly pool: string
  readonly target?: string | undefined
  readonly for: number
  readonly attempts: number
  readonly refused: number
  readonly pending: number
  readonly cause: string
}

export function down ({ pool, target, for: lasted, attempts, refused, pending, cause }: Outage): string {
  return `${who(pool, target)} is down, it has had no connection for ${duration(lasted)}: ${cause}; ` +
    `${count(attempts, 'attempt')} failed, ${count(refused, 'request was', 'requests were')} refused, ${pending} ` +
    `${pending === 1 ? 'waits' : 'wait'}`
}

/** @param outages how many there were within the last minute, this one included */
function flapping (outages: number): string {
  return outages >= 3 ? `; ${ordinal(outages)} outage within a minute: it flaps` : ''
}

/** @param outages how many there were within the last minute, this one included */
export function up (
  { pool, target, for: lasted, attempts, refused, outages }:
  Omit<Outage, 'cause' | 'pending'> & { readonly outages: number }
): string {
  const flaps = flapping(outages)
  return `${who(pool, target)} is up again after ${duration(lasted)}: ${count(attempts, 'attempt')} failed, ` +
    `${count(refused, 'request was', 'requests were')} refused${flaps}`
}

export function limit (pool: string, target: string | undefined, allowed: number, max: number, cause: string): string {
  const most = count(allowed, 'connection')
  return `the server gives ${who(pool, target)} no more than ${most}, and max is ${max}: ${cause}`
}

export function limitEnd (pool: string, target: string | undefined, lasted: number, attempts: number): string {
  return `the server gives ${who(pool, target)} more connections again, after ${duration(lasted)}: ` +
    `${count(attempts, 'attempt')} failed`
}

export interface Died {
  readonly pool: string
  readonly target: string | undefined
  readonly died: number
  readonly left: number
  readonly cause: string
  /** How many outages there were within the last minute. */
  readonly outages: number
}

export function died ({ pool, target, died: n, left, cause, outages }: Died): string {
  return `${count(n, 'connection')} of ${who(pool, target)} died: ${cause}; ${left} ${left === 1 ? 'is' : 'are'} left` +
    flapping(outages)
}

/** What to do about a server that ends connections. */
export function remedyForDeath (code: string | undefined): string {
  // The servers' own idle timeouts: PostgreSQL's idle_session_timeout, MySQL's wait_timeout.
  if (code === '57P05' || code === '4031' || code === 'ER_CLIENT_INTERACTION_TIMEOUT') {
    return "make idleTimeout shorter than the server's own idle timeout"
  }
  return 'see whether the server was restarted or somebody ended the connections; what sits between (a proxy, a NAT) ' +
    'may cut idle ones: idleTimeout, keepalive'
}

// --- Leases ----------------------------------------------------------------------------------------------------------

interface Lent {
  readonly holder?: HolderLabel | undefined
  readonly id: number
  readonly held: number
  readonly time: number
}

/** Who has held a connection for how long, and since when. */
function since ({ holder, id, held, time }: Lent): string {
  return `${nameOf(holder) ?? callerWithoutName} has held connection ${id} for ${duration(held)}, since ` +
    new Date(time - held).toISOString()
}

export const leak = (lent: Lent): string => `${since(lent)}, longer than leakAfter: is it ever released?`

export const leakEnd = ({ holder, id, held }: Lent): string =>
  `${nameOf(holder) ?? callerWithoutName} gave connection ${id} back, which was reported as leaked, after ` +
  duration(held)

/** @param taken why: 'leaked' where nobody could release it any more */
export function leakTaken ({ holder, id, held }: Lent, taken: string): string {
  const who = nameOf(holder) ?? callerWithoutName
  const why = taken === 'leaked' ? 'it was lost, and nobody could release it' : taken
  return `the pool took connection ${id} back from ${who} after ${duration(held)} (${why}), and destroyed it`
}

export const hold = (lent: Lent, holdTimeout: number): string =>
  `${since(lent)}: that is half of its holdTimeout (${duration(holdTimeout)})`

export const overdue = (lent: Lent, holdTimeout: number): string =>
  `${since(lent)}, longer than its holdTimeout (${duration(holdTimeout)}): the lease was revoked and the connection ` +
  'destroyed'

const whatHappened = {
  'pool.leak': 'have been out for longer than leakAfter: are they ever released?',
  'pool.leak.end': 'were given back, which were reported as leaked',
  'pool.leak.taken': 'were taken back by the pool, and their connections destroyed',
  'pool.hold': 'have been out for half of their holdTimeout',
  'pool.overdue': 'were out for longer than their holdTimeout: they were revoked and their connections destroyed',
} as const

interface Together {
  readonly leases: number
  readonly held: readonly HeldBy[]
  /** Of requests. */
  readonly ids: readonly string[]
  readonly holdTimeout?: number | undefined
}

/** Leases that have one line together. */
export function together (
  line: keyof typeof whatHappened, { leases, held: by, ids, holdTimeout }: Together
): string {
  const who = by.slice(0, 3).map(({ route, connections, longest }) =>
    `${connections} of ${route}, the longest for ${duration(longest)}`)
  const named = ids.length === 0 ? '' : ` (${ids.join(', ')})`
  const timeout = holdTimeout === undefined ? '' : ` (holdTimeout ${duration(holdTimeout)})`
  return `${leases} more leases ${whatHappened[line]}${timeout}. ${who.join('; ')}${named}`
}

export function deadlock (pool: string, max: number, refused: number, by: readonly HeldBy[]): string {
  return `pool '${pool}' is in a deadlock: those who hold its ${count(max, 'connection')} all wait for another one ` +
    `of it; ${count(refused, 'request was', 'requests were')} refused${held(by, max)}`
}

// --- The pool --------------------------------------------------------------------------------------------------------

export function lag (target: string, lagging: number | null, maxLag: number, over: boolean): string {
  if (!over && lagging === null) return `${target} is used again (maxLag ${duration(maxLag)})`
  if (!over) return `${target} is used again: it is ${duration(lagging ?? 0)} behind (maxLag ${duration(maxLag)})`
  const behind = lagging === null ? 'nobody knows how far' : duration(lagging)
  return `${target} is left out: it is ${behind} behind, and maxLag is ${duration(maxLag)}`
}

export function failover (from: string | undefined, to: string | undefined): string {
  if (to === undefined) return `no primary any more: it was ${from}`
  return from === undefined ? `the primary is ${to} now` : `the primary is ${to} now, and was ${from}`
}

export function closing (pool: string, lasted: number, used: number, pending: number, by: readonly HeldBy[]): string {
  const waits = pending > 0 ? ` and ${count(pending, 'caller that waits', 'callers that wait')}` : ''
  const who = by.slice(0, 3).map(({ route, id, connections, longest }) =>
    `${route}${id === undefined ? '' : ` (${id})`}${connections > 1 ? ` and ${connections - 1} more of it` : ''}, ` +
    `for ${duration(longest)}`)
  return `pool '${pool}' has been closing for ${duration(lasted)} and waits for ${count(used, 'connection')}${waits}` +
    (who.length === 0 ? '' : `: ${who.join('; ')}`)
}

export const phases: Readonly<Record<string, string>> = {
  create: 'opening a connection failed',
  destroy: 'closing a connection failed',
  validate: 'a connection did not answer',
  isBroken: 'the connector could not tell whether a connection is broken',
  describe: 'the connector could not tell what a connection is doing',
  isTransient: 'the connector could not tell whether an error is transient',
  reset: 'resetting a connection failed, and it was destroyed',
  targets: 'the servers are not what the options say',
  discover: 'the name of the servers could not be resolved, and those that are known stay',
  death: 'a connection died',
  obstacle: 'the connector could not tell what is in the way of a loan',
  begin: 'beginning a transaction failed',
  commit: 'a commit failed',
  rollback: 'a rollback failed',
  afterCommit: 'a function of afterCommit failed',
  afterRollback: 'a function of afterRollback failed',
  close: 'closing what the connections share failed',
  listener: 'a listener of an event, or of a channel, failed',
  subscription: 'subscriptions are interrupted',
  onConnect: 'the hook onConnect failed',
  onAcquire: 'the hook onAcquire failed',
  onRelease: 'the hook onRelease failed',
  onDisconnect: 'the hook onDisconnect failed',
}

export function failed (phase: string, cause: string): string {
  return `${phases[phase] ?? `${phase} failed`}: ${cause}`
}

export interface Opened {
  readonly pool: string
  readonly system: string
  readonly driver?: string | undefined
  readonly max: number
  readonly min: number
  readonly host?: string | undefined
  readonly port?: number | undefined
  readonly database?: string | undefined
  readonly user?: string | undefined
  readonly targets?: readonly string[] | undefined
  /** How many connections the server allows. */
  readonly allowed?: number | undefined
  /** How many of them are in use, ours included. */
  readonly inUse?: number | undefined
  /** How many of those are this app's, of all of its processes. */
  readonly ours?: number | undefined
}

/** "pool 'db' is open: postgresql at db1:5432/shop as shop, max 5, min 0; the server allows 97, 40 in use, ..." */
export function opened (told: Opened): string {
  const { pool, system, driver, max, min, host, port, database, user, targets, allowed, inUse, ours } = told
  const at = host === undefined ? '' : ` at ${host}${port === undefined ? '' : `:${port}`}`
  const where = database === undefined ? at : at === '' ? ` at ${database}` : `${at}/${database}`
  const as = user === undefined ? '' : ` as ${user}`
  const on = driver === undefined ? '' : ` on ${driver}`
  const several = targets === undefined ? '' : `, targets ${targets.join(', ')}`
  const numbers = allowed === undefined
    ? ''
    : `; the server allows ${allowed}${inUse === undefined ? '' : `, ${inUse} in use`}` +
      (ours === undefined ? '' : `, ${ours} of them by this app`)
  return `pool '${pool}' is open: ${system}${on}${where}${as}${several}, max ${max}, min ${min}${numbers}`
}
