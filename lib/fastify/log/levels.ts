import type { FastifyBaseLogger } from 'fastify'
import type { LogLevel, StoryLine } from '../../../types/plugin.js'
import type { PoolEventName } from '../../../types/pool.js'

export type Level = Exclude<LogLevel, false>

/** What the user set: a level for an event, or for a line of the story. */
export type Levels = { readonly [E in PoolEventName | StoryLine]?: LogLevel | undefined }

/** Of the events, one line each: all that lasts, or needs somebody, the story tells. */
export const eventLevels: Readonly<Record<PoolEventName, Level>> = {
  acquire: 'trace',
  release: 'trace',
  connect: 'debug',
  disconnect: 'debug',
  wait: 'debug',
  driver: 'debug',
  overflow: 'debug',
  timeout: 'debug',
  refuse: 'debug',
  leak: 'debug',
  unleak: 'debug',
  hold: 'debug',
  overdue: 'debug',
  error: 'debug',
  failover: 'debug',
  lag: 'debug',
  circuit: 'debug',
  open: 'debug',
  drain: 'info',
  close: 'info',
}

/** Of the story's lines. */
export const storyLevels: Readonly<Record<StoryLine, Level>> = {
  'pool.open': 'info',
  'pool.exhausted': 'warn',
  'pool.exhausted.end': 'info',
  'pool.down': 'error',
  'pool.up': 'info',
  'pool.died': 'warn',
  'pool.leak': 'warn',
  'pool.leak.end': 'info',
  'pool.leak.taken': 'warn',
  'pool.hold': 'warn',
  'pool.overdue': 'warn',
  'pool.deadlock': 'error',
  'pool.lag': 'warn',
  'pool.failover': 'warn',
  'pool.limit': 'warn',
  'pool.limit.end': 'info',
  'pool.closing': 'warn',
  'pool.error': 'error',
  'pool.advice': 'info',
}

/**
 * `logger: false`, and a logger without levels of its own, have no `isLevelEnabled`. Fastify's silent logger has the
 * same function for all levels.
 */
export function isEnabled (log: FastifyBaseLogger, level: Level): boolean {
  const { isLevelEnabled } = log as { isLevelEnabled?: (level: string) => boolean }
  if (typeof isLevelEnabled === 'function') return isLevelEnabled.call(log, level)
  return log.trace !== log.fatal
}
