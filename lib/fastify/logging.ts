import type { FastifyBaseLogger, FastifyInstance } from 'fastify'
import type { ErrorPhase, Holder, HolderLabel, PoolEventName, PoolEvents } from '../../types/pool.js'
import type { ResolvedPluginOptions } from './options.js'
import type { PoolManager } from './pools.js'
import { RequestHolder } from './scope.js'

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
  failover: 'warn',
  // To 'open': error.
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
  unleak: ({ held }) => `the lease that was reported came back after ${duration(held)}`,
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
  open: ({ driver }) => driver === undefined ? 'pool is open' : `pool is open, on ${driver}`,
  drain: () => 'pool drains',
  close: ({ took, holders }) => holders.length === 0 ? `pool closed in ${duration(took)}` : `pool closed in ${duration(took)}, with leases still out: ${tell(holders)}`,
}

/**
 * Tells Fastify's logger what the pools of a scope do: `request.log` where a request is the cause, else a child logger with the pool's name.
 * Subscribes only to levels that are enabled now. A payload that nobody logs is never built.
 */
export function logEvents (app: FastifyInstance, manager: PoolManager, levels: ResolvedPluginOptions['log']): void {
  if (levels === false) return
  for (const event of Object.keys(defaultLevels) as PoolEventName[]) {
    const level = levels[event] ?? defaultLevels[event]
    // The line may be of this level.
    const highest = event === 'circuit' && levels.circuit === undefined ? 'error' : level
    if (level === false || highest === false || !isEnabled(app.log, highest)) continue
    subscribe(app, manager, event, level, levels[event] === undefined)
  }
}

function subscribe<E extends PoolEventName> (app: FastifyInstance, manager: PoolManager, event: E, level: Level, byDefault: boolean): void {
  const children = new Map<string, FastifyBaseLogger>()
  const childOf = (pool: string) => {
    const known = children.get(pool)
    if (known !== undefined) return known
    const child = app.log.child({ pool })
    children.set(pool, child)
    return child
  }
  /** Pools, or targets of theirs, whose creates fail, and said so. */
  const failing = new Set<string>()
  const placeOf = ({ pool, target = '' }: { readonly pool: string, readonly target?: string }) => `${pool} ${target}`
  if (event === 'error') manager.onOwn('connect', (payload) => { failing.delete(placeOf(payload)) })

  manager.onOwn(event, (payload) => {
    if (event === 'error' && (payload as PoolEvents['error']).phase === 'create') {
      const place = placeOf(payload)
      if (failing.has(place)) return
      failing.add(place)
    }
    const { time: _, pool, error, holder, holders, ...details } = payload as
      PoolEvents[E] & { readonly error?: Error, readonly holder?: HolderLabel, readonly holders?: readonly Holder[] }
    const request = RequestHolder.requestOf(holder)
    const fields: object = {
      ...(request !== undefined && { pool }),
      ...(request === undefined && holder !== undefined && { holder }),
      ...rounded(details),
      ...(error !== undefined && { err: error }),
      ...longestHeld(error),
    }
    // Under `request.log` the line has the request's id already.
    const log = request === undefined ? childOf(pool) : request.log
    // A request left what nothing undoes, and its connection was replaced: somebody should know, and nothing is broken.
    const replaced = level === 'error' && (payload as { phase?: ErrorPhase }).phase === 'reset'
    const opened = byDefault && event === 'circuit' && (payload as PoolEvents['circuit']).to === 'open'
    log[replaced ? 'warn' : opened ? 'error' : level](fields, messages[event](payload))
  })
}

/** Durations as people read them, to the microsecond. */
function rounded (details: object): object {
  return Object.fromEntries(Object.entries(details).map(([key, value]) => [key, typeof value === 'number' ? Math.round(value * 1000) / 1000 : value]))
}

/** Who held the connections when somebody waited in vain: for whoever reads the log, and nobody else. */
function longestHeld (error: Error | undefined): { longestHeld?: string } {
  const holders = (error as { holders?: readonly Holder[] } | undefined)?.holders
  return holders === undefined || holders.length === 0 ? {} : { longestHeld: tell(holders.slice(0, 3)) }
}

function tell (holders: readonly Holder[]): string {
  return holders.map(({ holder, heldFor, id }) => `${duration(heldFor)} by ${nameOf(holder) ?? `connection ${id}`}`).join(', ')
}

function nameOf (holder: HolderLabel | undefined): string | undefined {
  if (holder === undefined || typeof holder === 'string') return holder
  return `${holder.route ?? 'unknown'}${holder.id === undefined ? '' : ` (${holder.id})`}`
}

function duration (ms: number): string {
  return ms < 1000 ? `${Math.round(ms * 10) / 10} ms` : `${Math.round(ms / 100) / 10} s`
}

/** `logger: false` and a logger without levels of its own have no `isLevelEnabled`; Fastify's silent one has one function for all levels. */
function isEnabled (log: FastifyBaseLogger, level: Level): boolean {
  const { isLevelEnabled } = log as { isLevelEnabled?: (level: string) => boolean }
  if (typeof isLevelEnabled === 'function') return isLevelEnabled.call(log, level)
  return log.trace !== log.fatal
}
