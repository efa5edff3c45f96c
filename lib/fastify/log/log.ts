import type { FastifyBaseLogger, FastifyInstance } from 'fastify'
import type { StoryLine } from '../../../types/plugin.js'
import type { Clock, Holder, HolderLabel, PoolEventName, PoolEvents } from '../../../types/pool.js'
import { statsOf, type Managed, type PoolManager } from '../pools.js'
import { RequestHolder } from '../request/holder.js'
import { Bulkhead } from '../rules/bulkhead.js'
import { TenantPool } from '../tenants/pool.js'
import { eventLevels, isEnabled, storyLevels, type Level, type Levels } from './levels.js'
import { messages } from './plain.js'
import { Story, storyEvents, type Line } from './story.js'
import { tell } from './texts.js'

/** Which lines an event may lead to: where none of them is logged, nobody listens to it. */
const linesOf: { readonly [E in typeof storyEvents[number]]: readonly StoryLine[] } = {
  open: ['pool.open', 'pool.advice'],
  overflow: ['pool.exhausted', 'pool.exhausted.end', 'pool.advice'],
  wait: ['pool.exhausted', 'pool.exhausted.end'],
  refuse: ['pool.deadlock'],
  error: ['pool.error', 'pool.down', 'pool.up', 'pool.limit', 'pool.limit.end', 'pool.died'],
  connect: ['pool.down', 'pool.up', 'pool.limit', 'pool.limit.end'],
  disconnect: ['pool.died'],
  leak: ['pool.leak'],
  unleak: ['pool.leak.end', 'pool.leak.taken'],
  hold: ['pool.hold'],
  overdue: ['pool.overdue'],
  failover: ['pool.failover'],
  lag: ['pool.lag'],
  drain: ['pool.closing'],
  close: Object.keys(storyLevels) as StoryLine[],
}

/**
 * Logs what the pools of a scope do: single events, and the story. By `request.log` where a request is the cause, else
 * by a child logger with the pool's name. Listens only to events of which a line is enabled now: a payload that nobody
 * logs is never built.
 */
export function logEvents (
  app: Pick<FastifyInstance, 'log'>, manager: PoolManager, levels: Levels | false, clock?: Clock
): void {
  if (levels === false) return
  const logger = new Logger(app.log)
  for (const event of Object.keys(eventLevels) as PoolEventName[]) {
    const level = levels[event] ?? eventLevels[event]
    if (level === false) continue
    // A close that left leases behind is a warning, unless the user has set a level.
    const left = event === 'close' && levels.close === undefined ? 'warn' : level
    if (!isEnabled(app.log, left)) continue
    manager.onOwn(event, (payload) => {
      const { holders = [] } = payload as Special
      logger.event(event, payload, holders.length > 0 ? left : level)
    })
  }
  const levelOf = (line: StoryLine) => levels[line] ?? storyLevels[line]
  const isOn = (level: Level | false): level is Level => level !== false && isEnabled(app.log, level)
  const story = new Story({
    // With what the place in front of the pool knows: shares, and who has them.
    stats: (name, tenant) => {
      const found = manager.find(name)
      if (found === undefined) return undefined
      if (tenant === undefined) return statsOf(found)
      return found.pool instanceof TenantPool ? found.pool.tenants.labelled(tenant)?.stats() : undefined
    },
    places: (pool) => manager.find(pool)?.places ?? [],
    holders: (pool) => manager.has(pool) ? manager.holders(pool) : [],
    ask: (pool) => manager.find(pool)?.collector.ask(),
    look: (pool, now) => { if (isOn(levelOf('pool.advice'))) manager.find(pool)?.collector.look(now) },
    advice: (pool, now) => isOn(levelOf('pool.advice')) ? manager.find(pool)?.collector.advice(now) ?? [] : [],
    write: (line) => {
      // A level that the user has set is that of all lines of the name.
      const level = levels[line.line] ?? line.level ?? storyLevels[line.line]
      if (isOn(level)) logger.line(line, level)
    },
  }, clock)
  for (const event of storyEvents) {
    if (!linesOf[event].some((line) => isOn(levelOf(line)))) continue
    // Of a share only: elsewhere `overflow` tells of the line.
    const isMeant = event === 'wait' ? ({ source }: Managed) => source instanceof Bulkhead : undefined
    manager.onOwn(event, story.heard[event] as never, isMeant)
  }
  manager.follow(({ name, pool }) => pool instanceof TenantPool
    ? pool.tenants.follow((one, tenant) => one.on('close', () => { story.tenantClosed(name, tenant) }))
    : () => {})
  // The last event. Pools may come and go while the app runs: nothing of them stays.
  manager.onOwn('close', ({ pool }) => { logger.forget(pool) })
}

/** What a payload may have that is not logged as it is. */
interface Special { readonly error?: Error, readonly holder?: HolderLabel, readonly holders?: readonly Holder[] }

class Logger {
  readonly #log: FastifyBaseLogger
  readonly #children = new Map<string, FastifyBaseLogger>()

  constructor (log: FastifyBaseLogger) {
    this.#log = log
  }

  line ({ line: event, pool, fields, msg, holder }: Line, level: Level): void {
    const request = RequestHolder.requestOf(holder)
    // The lines of `request.log` have the request's id already.
    if (request === undefined) this.#childOf(pool)[level]({ event, ...fields }, msg)
    else request.log[level]({ event, pool, ...fields }, msg)
  }

  event<E extends PoolEventName> (event: E, payload: PoolEvents[E], level: Level): void {
    const { time: _, pool, error, holder, holders, ...details } = payload as typeof payload & Special
    const request = RequestHolder.requestOf(holder)
    const fields: object = {
      event,
      ...(request !== undefined && { pool }),
      ...(request === undefined && holder !== undefined && { holder }),
      ...rounded(details),
      ...(error !== undefined && { err: error }),
      ...longestHeld(error),
    }
    const logger = request === undefined ? this.#childOf(pool) : request.log
    logger[level](fields, messages[event](payload))
  }

  forget (pool: string): void {
    this.#children.delete(pool)
  }

  #childOf (pool: string): FastifyBaseLogger {
    const child = this.#children.get(pool) ?? this.#log.child({ pool })
    this.#children.set(pool, child)
    return child
  }
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
