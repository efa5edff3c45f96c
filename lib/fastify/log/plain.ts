import type { PoolEventName, PoolEvents } from '../../../types/pool.js'
import { duration, failed, failover, hold, lag, leak, leakEnd, leakTaken, overdue, tell } from './texts.js'

/** What is logged of single events. */
export const messages: { readonly [E in PoolEventName]: (event: PoolEvents[E]) => string } = {
  acquire: ({ wait }) => wait > 0 ? `connection lent after ${duration(wait)}` : 'connection lent',
  release: ({ held }) => `connection given back after ${duration(held)}`,
  connect: ({ took }) => `connected in ${duration(took)}`,
  disconnect: ({ reason }) => `disconnected: ${reason}`,
  wait: ({ pending }) => `waiting for a connection, ${pending} in line`,
  driver: ({ name }) => `driver: ${name}`,
  overflow: ({ pending }) => `all connections are used, ${pending} in line from now on`,
  timeout: ({ error }) => error.message,
  refuse: ({ error }) => error.message,
  leak: (event) => leak(event),
  unleak: (event) => event.taken === undefined ? leakEnd(event) : leakTaken(event, event.taken),
  hold: (event) => hold(event, event.holdTimeout),
  overdue: (event) => overdue(event, event.holdTimeout),
  error: ({ error, phase }) => failed(phase, error.message),
  circuit: ({ to, error }) => ({
    closed: 'circuit closed: connections can be made again',
    open: `circuit open${error === undefined ? '' : `: ${error.message}`}`,
    'half-open': 'circuit half-open: one create is tried',
  })[to],
  failover: ({ from, to }) => failover(from, to),
  lag: ({ target, lag: behind, maxLag, over }) => lag(target, behind, maxLag, over),
  open: ({ driver }) => driver === undefined ? 'pool is open' : `pool is open, on ${driver}`,
  drain: () => 'pool drains',
  close: ({ took, holders }) => {
    const closed = `pool closed in ${duration(took)}`
    return holders.length === 0 ? closed : `${closed}, with leases still out: ${tell(holders)}`
  },
}
