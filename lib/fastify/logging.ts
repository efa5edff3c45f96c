import type { FastifyBaseLogger, FastifyInstance } from 'fastify'
import type { Holder, HolderLabel, PoolEventName, PoolEvents } from '../../types/pool.js'
import type { ResolvedPluginOptions } from './options.js'
import type { PoolManager } from './pools.js'
import { RequestHolder } from './request/holder.js'

type Level = 'fatal' | 'error' | 'warn' | 'info' | 'debug' | 'trace'

const defaultLevels: Readonly<Record<PoolEventName, Level>> = {
  acquire: 'trace',
  release: 'trace',
  connect: 'debug',
  disconnect: 'debug',
  wait: 'debug',
  driver: 'debug',
  overflow: 'warn',
  timeout: 'warn',
  refuse: 'warn',
  leak: 'warn',
  error: 'error',
  unleak: 'info',
  hold: 'warn',
  overdue: 'warn',
  failover: 'warn',
  lag: 'warn',
  // One that opens is logged as an error, unless the user has set a level.
  circuit: 'info',
  open: 'info',
  drain: 'info',
  close: 'info',
}

const messages: { readonly [E in PoolEventName]: (event: PoolEvents[E]) => string } = {
  acquire: ({ wait }) => wait > 0 ? `connection lent after ${duration(wait)}` : 'connection lent',
  release: ({ held }) => `connection given back after ${duration(held)}`,
  connect: ({ took }) => `connected in ${duration(took)}`,
  disconnect: ({ reason }) => `disconnected: ${reason}`,
  wait: ({ pending }) => `waiting for a connection, ${pending} in line`,
  driver: ({ name }) => `driver: ${name}`,
  overflow: ({ pending }) => `all connections are used, ${pending} in line from now on`,
  timeout: ({ error }) => error.message,
  refuse: ({ error }) => error.message,
  leak: ({ held }) => `a lease is out for ${duration(held)}: is it ever released?`,
  unleak: ({ held, taken }) => {
    if (taken === undefined) return `the lease that was reported came back after ${duration(held)}`
    const why = taken === 'leaked' ? 'it was lost, and nobody could release it' : taken
    return `the lease that was reported was taken back after ${duration(held)} (${why}): its connection is destroyed`
  },
  hold: (event) => `${held(event)}: that is half of its holdTimeout (${duration(event.holdTimeout)})`,
  overdue: (event) => `${held(event)}, longer than its holdTimeout (${duration(event.holdTimeout)}): ` +
    'the lease was revoked and the connection destroyed',
  error: ({ error, phase }) => `${phase} failed: ${error.message}`,
  circuit: ({ to, error }) => ({
    closed: 'circuit closed: connections can be made again',
    open: `circuit open${error === undefined ? '' : `: ${error.message}`}`,
    'half-open': 'circuit half-open: one create is tried',
  })[to],
  failover: ({ from, to }) => {
    if (to === undefined) return `no primary any more: it was ${from}`
    return from === undefined ? `the primary is ${to} now` : `the primary is ${to} now, and was ${from}`
  },
  lag: ({ target, lag, maxLag, over }) => over
    ? `${target} is left out: it is ${lag ?? 'an unknown time'} behind, which is more than maxLag (${maxLag})`
    : `${target} is used again: it is ${lag} behind (maxLag ${maxLag})`,
  open: ({ driver }) => driver === undefined ? 'pool is open' : `pool is open, on ${driver}`,
  drain: () => 'pool drains',
  close: ({ took, holders }) => {
    const closed = `pool closed in ${duration(took)}`
    return holders.length === 0 ? closed : `${closed}, with leases still out: ${tell(holders)}`
  },
}

/**
 * Logs what the pools of a scope do: by `request.log` where a request is the cause, else by a child logger with the
 * pool's name. Listens only to events whose level is enabled now: a payload that nobody logs is never built.
 */
export function logEvents (app: FastifyInstance, manager: PoolManager, levels: ResolvedPluginOptions['log']): void {
  if (levels === false) return
  const { log, forget } = logOf(app)
  for (const event of Object.keys(defaultLevels) as PoolEventName[]) {
    const level = levels[event] ?? defaultLevels[event]
    if (level === false) continue
    const opens = event === 'circuit' && levels.circuit === undefined ? 'error' : level
    if (!isEnabled(app.log, opens)) continue
    if (event === 'error') logErrors(manager, log, level)
    else manager.onOwn(event, (payload) => { log(event, payload, isOpening(payload) ? opens : level) })
  }
  // Its last event. Pools may come and go while the app runs: nothing of them stays.
  manager.onOwn('close', ({ pool }) => { forget(pool) })
}

function isOpening (payload: object): boolean {
  return (payload as { readonly to?: unknown }).to === 'open'
}

/** Of creates that fail one after the other only the first is logged: of each pool, or of each of its targets. */
function logErrors (manager: PoolManager, log: Log, level: Level): void {
  const failing = new Map<string, Set<string | undefined>>()
  manager.onOwn('connect', ({ pool, target }) => { failing.get(pool)?.delete(target) })
  manager.onOwn('close', ({ pool }) => { failing.delete(pool) })
  manager.onOwn('error', (payload) => {
    const { pool, target, phase } = payload
    if (phase === 'create') {
      const targets = failing.get(pool) ?? new Set()
      if (targets.has(target)) return
      failing.set(pool, targets.add(target))
    }
    // A request left what nothing undoes, and its connection was replaced: somebody should know, and nothing is broken.
    log('error', payload, level === 'error' && phase === 'reset' ? 'warn' : level)
  })
}

/** Logs an event. */
type Log = <E extends PoolEventName>(event: E, payload: PoolEvents[E], level: Level) => void

/** What a payload may have that is not logged as it is. */
interface Special { readonly error?: Error, readonly holder?: HolderLabel, readonly holders?: readonly Holder[] }

function logOf (app: FastifyInstance): { readonly log: Log, forget (pool: string): void } {
  const children = new Map<string, FastifyBaseLogger>()
  const childOf = (pool: string) => {
    const child = children.get(pool) ?? app.log.child({ pool })
    children.set(pool, child)
    return child
  }
  const log: Log = (event, payload, level) => {
    const { time: _, pool, error, holder, holders, ...details } = payload as typeof payload & Special
    const request = RequestHolder.requestOf(holder)
    const fields: object = {
      ...(request !== undefined && { pool }),
      ...(request === undefined && holder !== undefined && { holder }),
      ...rounded(details),
      ...(error !== undefined && { err: error }),
      ...longestHeld(error),
    }
    // The lines of `request.log` have the request's id already.
    const logger = request === undefined ? childOf(pool) : request.log
    logger[level](fields, messages[event](payload))
  }
  return { log, forget: (pool) => { children.delete(pool) } }
}

/** All numbers to the microsecond: they are durations in ms, or whole. */
function rounded (details: object): object {
  const round = (value: unknown) => typeof value === 'number' ? Math.round(value * 1000) / 1000 : value
  return Object.fromEntries(Object.entries(details).map(([key, value]) => [key, round(value)]))
}

/** Who held the connections when somebody waited in vain. Only the log shows it: clients get the error's message. */
function longestHeld (error: Error | undefined): { longestHeld?: string } {
  const holders = (error as { holders?: readonly Holder[] } | undefined)?.holders
  return holders === undefined || holders.length === 0 ? {} : { longestHeld: tell(holders.slice(0, 3)) }
}

function tell (holders: readonly Holder[]): string {
  const one = ({ holder, heldFor, id }: Holder) => `${duration(heldFor)} by ${nameOf(holder) ?? `connection ${id}`}`
  return holders.map(one).join(', ')
}

/** Who has held a connection for how long, and since when. */
function held ({ holder, id, held, time }: PoolEvents['hold']): string {
  const since = new Date(time - held).toISOString()
  return `${nameOf(holder) ?? 'a job'} has held connection ${id} for ${duration(held)}, since ${since}`
}

function nameOf (holder: HolderLabel | undefined): string | undefined {
  if (holder === undefined || typeof holder === 'string') return holder
  return `${holder.route ?? 'unknown'}${holder.id === undefined ? '' : ` (${holder.id})`}`
}

function duration (ms: number): string {
  return ms < 1000 ? `${Math.round(ms * 10) / 10} ms` : `${Math.round(ms / 100) / 10} s`
}

/**
 * `logger: false`, and a logger without levels of its own, have no `isLevelEnabled`. Fastify's silent logger has the
 * same function for all levels.
 */
function isEnabled (log: FastifyBaseLogger, level: Level): boolean {
  const { isLevelEnabled } = log as { isLevelEnabled?: (level: string) => boolean }
  if (typeof isLevelEnabled === 'function') return isLevelEnabled.call(log, level)
  return log.trace !== log.fatal
}
