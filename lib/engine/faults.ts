import type { AcquireSignal, Holder } from '../../types/pool.js'
import type { FailureKind } from '../../types/connector.js'
import { PoolError, isPoolError } from './errors.js'
import { remedies } from './failure.js'

// Pure functions from a situation to the error that describes it. Whoever throws the error also counts it.

/** A pool's numbers when something went wrong. */
export interface Situation {
  readonly name: string
  readonly max: number
  readonly used: number
  readonly idle: number
  readonly creating: number
  readonly pending: number
  /** Creates and destroys that are past their deadlines. */
  readonly late: number
}

function numbers ({ max, used, idle, creating, pending, late }: Situation): string {
  const more = late > 0 ? `, late ${late}` : ''
  return `max ${max}, used ${used}, idle ${idle}, creating ${creating}, pending ${pending}${more}`
}

/** Why nothing is created, where that is for late ones; else undefined. */
export function tooLate ({ late, max }: Pick<Situation, 'late' | 'max'>): string | undefined {
  if (late < max) return undefined
  return `${late} creates or destroys are past their deadlines (late), and with as many as max none is begun`
}

/**
 * Makes an error without a stack, for errors that the pool's timer throws: their stack tells nothing, and takes eight
 * times as long as all the rest.
 */
export function withoutStack<E extends Error> (make: () => E): E {
  const { stackTraceLimit } = Error
  Error.stackTraceLimit = 0
  try {
    return make()
  } finally {
    Error.stackTraceLimit = stackTraceLimit
  }
}

/** Who holds the connections that somebody waits for. */
export interface Holding {
  /** The longest held first. */
  readonly holders: readonly Holder[]
  /** What is to be said of those among them who do not use theirs. */
  readonly inVain: readonly string[]
}

/** Some hold in vain only since they have only just been lent theirs: said where half of all do. */
function heldInVain ({ holders, inVain }: Holding): string {
  const [count, [what]] = [inVain.length, inVain]
  if (what === undefined || count * 2 < holders.length) return ''
  const which = holders.length === 1 ? 'one connection' : `${holders.length} connections`
  return ` Of the ${which} held longest, ${count} ${count === 1 ? 'is' : 'are'} held by ${what}`
}

/** What an error says besides its message. */
export interface Detail {
  readonly cause?: Error | undefined
  /** In seconds. */
  readonly retryAfter: number
  readonly holding: Holding
}

/** An acquire's deadline passed. @param obstacle what hinders all loans */
export function timedOut (
  situation: Situation, timeout: number, obstacle: string | undefined, { holding, ...detail }: Detail
): PoolError {
  const inTheWay = obstacle === undefined ? tooLate(situation) : `in the way is ${obstacle}`
  const why = inTheWay === undefined
    ? `. Look for slow queries or leaks, or raise max.${heldInVain(holding)}`
    : `: ${inTheWay}`
  const message = `no connection from pool '${situation.name}' within ${Math.round(timeout)} ms ` +
    `(${numbers(situation)})${why}`
  return new PoolError('FST_POOL_ACQUIRE_TIMEOUT', message, { ...detail, holders: holding.holders })
}

/** Why connections can't be made. */
export interface Failing {
  readonly cause: Error | undefined
  readonly kind: FailureKind | undefined
  /** In seconds. */
  readonly retryAfter: number
}

/** There is no connection, and none can be made. */
export function cannotConnect (situation: Situation, { cause, kind, retryAfter }: Failing): PoolError {
  const late = tooLate(situation)
  return new PoolError('FST_POOL_CONNECT_FAILED', `pool '${situation.name}' can't connect (${numbers(situation)}). ` +
    `${remedies[kind ?? 'other']}${late === undefined ? '' : ` (${late}.)`}`, { cause, retryAfter })
}

export function circuitOpen (name: string, openFor: number, { cause, kind, retryAfter }: Failing): PoolError {
  return new PoolError('FST_POOL_CIRCUIT_OPEN', `pool '${name}' has no connection, and creates keep failing: one is ` +
    `tried every ${openFor} ms (circuit). ${remedies[kind ?? 'other']}`, { cause, retryAfter })
}

export function queueFull (situation: Situation, { holding, ...detail }: Detail): PoolError {
  const message = `pool '${situation.name}' is full, and ${situation.pending} wait already (${numbers(situation)}). ` +
    `Look for slow queries or leaks, or raise max or maxPending.${heldInVain(holding)}`
  return new PoolError('FST_POOL_QUEUE_FULL', message, { ...detail, holders: holding.holders })
}

/** @param predicted how long the acquire would wait, in ms */
export function overloaded (
  situation: Situation, predicted: number, timeout: number, holding: Holding
): PoolError {
  return new PoolError('FST_POOL_OVERLOADED', `pool '${situation.name}' is overloaded: a connection would take about ` +
    `${Math.round(predicted)} ms, and the deadline is in ${Math.round(timeout)} ms (${numbers(situation)}). ` +
    `Look for slow queries, or raise max.${heldInVain(holding)}`,
  { retryAfter: predicted / 1000, holders: holding.holders })
}

export function deadlocked ({ name, max }: Situation, holding: Holding): PoolError {
  return new PoolError('FST_POOL_DEADLOCK', `all ${max} connections of pool '${name}' are held by callers that wait ` +
    'for another one of it, this one included: use the connection that you have (request.lease), or raise max.' +
    heldInVain(holding), { holders: holding.holders })
}

/** @param closeTimeout in ms */
export function closed (name: string, phase: string, closeTimeout: number): PoolError {
  return new PoolError('FST_POOL_CLOSED', `pool '${name}' is ${phase}`, { retryAfter: closeTimeout / 1000 })
}

/** The pool has no pools of tenants. */
export function oneForAll (name: string): PoolError {
  const message = `pool '${name}' is one for all: a pool for each tenant has the option key`
  return new PoolError('FST_POOL_NOT_SUPPORTED', message)
}

export function aborted (name: string, { reason }: Pick<AcquireSignal, 'reason'>): PoolError {
  const message = `an acquire from pool '${name}' was aborted by its signal`
  return new PoolError('FST_POOL_ABORTED', message, { cause: reason })
}

/**
 * A create failed while somebody waited for the pool to open. Whoever opens a pool starts an app: unlike a request's
 * client, they are told the reason.
 */
export function cannotOpen (name: string, cause: unknown, error: Error): PoolError {
  // Some options show only with a connection that they are wrong (what `wrap` or `url()` returns): that is no outage.
  const code = isPoolError(cause) ? cause.code : undefined
  if (code === 'FST_POOL_BAD_OPTIONS' || code === 'FST_POOL_MISSING_DRIVER') {
    return new PoolError(code, `pool '${name}': ${error.message}`, { cause: error })
  }
  return new PoolError('FST_POOL_CONNECT_FAILED', `pool '${name}' can't connect: ${error.message}`, { cause: error })
}

export function resetFailed (name: string, cause: Error): PoolError {
  return new PoolError('FST_POOL_RESET_FAILED',
    `the reset of a connection of pool '${name}' failed; the connection was destroyed`, { cause })
}

/** A connection may die of a reset that goes out in front of the next borrower's statements. */
export function phaseOfDeath (cause: Error): 'death' | 'reset' {
  return isPoolError(cause) && cause.code === 'FST_POOL_RESET_FAILED' ? 'reset' : 'death'
}

/** @param obstacle what hinders the begin */
export function beginTimedOut (name: string, timeout: number, obstacle: string | undefined): PoolError {
  const why = obstacle === undefined ? '' : `in the way is ${obstacle}; `
  return new PoolError('FST_POOL_ACQUIRE_TIMEOUT',
    `a transaction on pool '${name}' did not begin within ${timeout} ms: ${why}its connection was destroyed`)
}
