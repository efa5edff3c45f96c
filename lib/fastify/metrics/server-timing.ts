import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { HolderLabel } from '../../../types/pool.js'
import type { PoolManager } from '../pools.js'
import { RequestHolder } from '../request/holder.js'

/** What a request has had of one pool by now. Times are of `performance.now()`. */
class Times {
  /** In ms, of waits that have ended. */
  wait = 0
  /** Since when it waits for its share, where it has waited for one. */
  since: number | undefined
  #out = 0
  /** The ends of leases, less the begins of those that have ended and of those that are out. */
  #held = 0

  begin (): void {
    this.#out++
    this.#held -= performance.now()
  }

  end (): void {
    this.#out--
    this.#held += performance.now()
  }

  get held (): number {
    return this.#held + this.#out * performance.now()
  }
}

/** The scopes that tell their pools' times. */
const telling = new WeakSet<PoolManager>()

/**
 * Tells in each reply's header `Server-Timing` for how long its request waited for connections of the scope's pools,
 * and held them until now. It has the times from the pools' events, which know the request by its holder.
 */
export function tellServerTiming (app: FastifyInstance, manager: PoolManager): void {
  if (telling.has(manager)) return
  telling.add(manager)
  const known = new WeakMap<FastifyRequest, Map<string, Times>>()
  const timesOf = (pool: string, holder: HolderLabel | undefined): Times | undefined => {
    const request = RequestHolder.requestOf(holder)
    if (request === undefined) return undefined
    const all = known.get(request) ?? new Map<string, Times>()
    known.set(request, all)
    const times = all.get(pool) ?? new Times()
    all.set(pool, times)
    return times
  }
  const waited = (times: Times, wait: number) => {
    times.wait += times.since === undefined ? wait : performance.now() - times.since
    times.since = undefined
  }
  manager.onOwn('wait', ({ pool, holder, bulkhead }) => {
    const times = bulkhead === undefined ? undefined : timesOf(pool, holder)
    if (times !== undefined) times.since = performance.now()
  })
  manager.onOwn('acquire', ({ pool, holder, wait }) => {
    const times = timesOf(pool, holder)
    if (times === undefined) return
    waited(times, wait)
    times.begin()
  })
  manager.onOwn('release', ({ pool, holder }) => { timesOf(pool, holder)?.end() })
  for (const event of ['timeout', 'refuse'] as const) {
    manager.onOwn(event, ({ pool, holder, wait }) => {
      const times = timesOf(pool, holder)
      if (times !== undefined) waited(times, wait)
    })
  }

  // After the hook that ends transactions, and the leases that last until the reply is sent.
  app.addHook('onSend', (request, reply, _payload, done) => {
    const all = known.get(request)
    if (all !== undefined && !reply.raw.headersSent) {
      const own = [...all].map(([pool, { wait, held }]) =>
        `${pool}-wait;dur=${rounded(wait)}, ${pool};dur=${rounded(held)}`)
      reply.header('server-timing', [reply.getHeader('server-timing') ?? [], own].flat().join(', '))
    }
    done()
  })
}

/** To a hundredth of a millisecond. */
function rounded (ms: number): number {
  return Math.round(Math.max(0, ms) * 100) / 100
}
