import { setTimeout as pause } from 'node:timers/promises'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { Teardown } from './services.js'

// That something is done in time is shown by what comes first: a number of milliseconds says as much of the machine as
// of what is tested.

export interface Alarm { readonly rang: boolean }

/**
 * A timer of this process. However late a busy process fires its timers, it fires them in the order in which they are
 * due. So whether this one has rung tells whether what hangs on another timer came before it.
 */
export function alarm (ms: number): Alarm {
  const one = { rang: false }
  setTimeout(() => { one.rang = true }, ms).unref()
  return one
}

export interface Pace {
  /** How often it was done. */
  readonly rounds: number
  stop (): Promise<void>
}

/**
 * What a plain client can do by itself, such as to write to the new primary, again and again with a pause of `every` ms
 * (default 50) between. What is tested is in time when it is done before a number of these: a machine that slows it
 * down slows them down as well.
 *
 * @param work a rejection is no round: its server is away, say
 */
export function startPace (t: Teardown, work: () => Promise<unknown>, every = 50): Pace {
  const load = { on: true }
  let rounds = 0
  const done = (async () => {
    while (load.on) {
      await work().then(() => { rounds++ }, () => 'away')
      await pause(every)
    }
  })()
  const stop = async () => {
    load.on = false
    await done
  }
  t.teardown(stop)
  return { get rounds () { return rounds }, stop }
}

/**
 * Each answer of that app says in the header `x-at-once` whether it was given in the turn of the event loop in which
 * its request came: then nothing was waited for, neither time nor an answer. Call it before the plugin is registered.
 */
export function tellAtOnce (app: FastifyInstance): void {
  const fresh = new WeakSet<FastifyRequest>()
  app.addHook('onRequest', (request, _reply, done) => {
    fresh.add(request)
    setImmediate(() => { fresh.delete(request) })
    done()
  })
  app.addHook('onSend', (request, reply, payload, done) => {
    reply.header('x-at-once', String(fresh.has(request)))
    done(null, payload)
  })
}
