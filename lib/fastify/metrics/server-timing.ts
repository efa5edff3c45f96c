import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { HolderLabel } from '../../../types/pool.js'
import type { PoolManager } from '../pools.js'
import { RequestHolder } from '../request/holder.js'
import { measure } from './measure.js'

/** What a request has had of one pool by now. Times are of `performance.now()`. */
class Times {
  /** In ms, of waits that have ended. */
  wait = 0
  /** Since when it waits for its share, where it has waited for one. */
  since: number | undefined
  #out = 0
  /** The ends of leases, less the begins of those that have ended and of those that are out. */
  #held = 0

  /** @param next those of the pool that was asked before */
  constructor (readonly pool: string, readonly next: Times | undefined) {}

  /** The pool that was asked first comes first. */
  get inOrder (): Times[] {
    return [...this.next?.inOrder ?? [], this]
  }

  /** @param now exact */
  begin (now: number): void {
    this.#out++
    this.#held -= now
  }

  end (now: number): void {
    this.#out--
    this.#held += now
  }

  get held (): number {
    return this.#held + this.#out * performance.now()
  }
}

/** Each scope has a property of its own, with its pool that was asked last. */
type Timed = FastifyRequest & { [kTimes: symbol]: Times | undefined }

/** The scopes that tell their pools' times. */
const telling = new WeakSet<PoolManager>()

/**
 * Tells in each reply's header `Server-Timing` for how long its request waited for connections of the scope's pools,
 * and held them until now. The pools know the request by its holder.
 */
export function tellServerTiming (app: FastifyInstance, manager: PoolManager): void {
  if (telling.has(manager)) return
  telling.add(manager)
  const kTimes = Symbol('fastify-pool.times')
  app.decorateRequest(kTimes, undefined)
  const timesOf = (pool: string, holder: HolderLabel | undefined): Times | undefined => {
    const request = RequestHolder.requestOf(holder) as Timed | undefined
    if (request === undefined) return undefined
    const first = request[kTimes]
    let times = first
    while (times !== undefined && times.pool !== pool) times = times.next
    return times ?? (request[kTimes] = new Times(pool, first))
  }
  const waited = (times: Times, wait: number) => {
    times.wait += times.since === undefined ? wait : performance.now() - times.since
    times.since = undefined
  }
  manager.onOwn('wait', ({ pool, holder, bulkhead }) => {
    const times = bulkhead === undefined ? undefined : timesOf(pool, holder)
    if (times !== undefined) times.since = performance.now()
  })
  manager.follow(({ name, pool }) => measure(pool, {
    lent: (wait, holder, at) => {
      const times = timesOf(name, holder)
      if (times === undefined) return
      waited(times, wait)
      times.begin(at)
    },
    ended: (_held, holder, at) => { timesOf(name, holder)?.end(at) },
  }))
  for (const event of ['timeout', 'refuse'] as const) {
    manager.onOwn(event, ({ pool, holder, wait }) => {
      const times = timesOf(pool, holder)
      if (times !== undefined) waited(times, wait)
    })
  }

  // After the hook that ends transactions, and the leases that last until the reply is sent.
  app.addHook('onSend', (request, reply, _payload, done) => {
    const all = (request as Timed)[kTimes]
    if (all !== undefined && !reply.raw.headersSent) {
      const own = all.inOrder.map(({ pool, wait, held }) =>
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
