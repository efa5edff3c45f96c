import type { Role, ServerState } from '../../types/connector.js'
import type { Clock, Lease } from '../../types/pool.js'
import { badOption, isPoolError } from '../engine/errors.js'
import { bare } from '../engine/lease.js'
import { Alarm, LONGEST, setRunningTimer } from '../engine/time.js'
import { Moved, type Target } from './target.js'

/** The holder of connections that the pool takes for itself. */
const HOLDER = 'fastify-pool'
/** The shortest pause between two rounds of checks, in ms. Where it is urgent, the pause is one to two times this. */
const PAUSE = 100

export interface Watching<C> {
  /** How often each target is asked, in ms. */
  readonly interval: number
  /** How long an answer may take, in ms. */
  readonly timeout: number
  run<T> (fn: () => T): T
  /** Somebody waits for the answers. */
  isAwaited (): boolean
  /** Whether checks go on. */
  goesOn (): boolean
  isPaused (): boolean
  isUrgent (): boolean
  /** A target has said what it is. @param at when it was asked */
  said (target: Target<C>, state: ServerState, at: number): void
  /** Whether a check that failed with this error may succeed on another connection. */
  isTransient (target: Target<C>, error: unknown): boolean
  /** A target answered with an error. */
  refused (error: unknown): void
  /** A check is over, whatever came of it. */
  done (target: Target<C>): void
}

/** Asks all targets that can say what they are, in rounds. */
export class Watch<C> {
  readonly #targets: ReadonlyArray<Target<C>>
  readonly #clock: Clock
  readonly #watching: Watching<C>
  readonly #alarm: Alarm
  #askedAt = -Infinity
  #begun = false

  constructor (targets: ReadonlyArray<Target<C>>, clock: Clock, watching: Watching<C>) {
    this.#targets = targets
    this.#clock = clock
    this.#watching = watching
    const { run, isAwaited } = watching
    this.#alarm = new Alarm(clock, run, () => { this.#tick() }, isAwaited)
  }

  /** Checks begin with the pool's first use. */
  begin (): void {
    if (this.#begun) return
    this.#begun = true
    this.#tick()
  }

  /** Something has changed: the next round comes as soon as the shortest pause allows. */
  soon (): void {
    if (this.#begun) this.#ringAt(Math.max(this.#clock.now() + 1, this.#askedAt + PAUSE))
  }

  /** To be called when somebody begins to wait, and when nobody does any more. */
  keepAlive (): void {
    this.#alarm.keepAlive()
  }

  end (why: Error): void {
    this.#begun = false
    this.#alarm.cancel()
    for (const { check } of this.#targets) check?.abort(why)
  }

  #tick (): void {
    const { goesOn, interval, isPaused, run } = this.#watching
    if (!this.#begun || !goesOn()) return
    if (!isPaused()) {
      this.#askedAt = this.#clock.now()
      for (const target of [...this.#targets]) if (target.speaks) run(() => this.#ask(target))
    }
    this.#ringAt(this.#clock.now() + interval)
  }

  #ringAt (at: number): void {
    if (this.#targets.some(({ speaks }) => speaks)) this.#alarm.set(at)
  }

  /** Asks a target on a connection that it acquires; never twice at the same time. */
  async #ask (target: Target<C>): Promise<void> {
    if (target.check !== undefined) return
    const { timeout, said, done, isUrgent } = this.#watching
    const controller = (target.check = new AbortController())
    const { signal } = controller
    const late = setRunningTimer(this.#clock, () => {
      controller.abort(new Error(`no answer within ${timeout} ms (validateTimeout)`))
    }, timeout)
    let lease: Lease<C> | undefined
    try {
      // The timeout is longer than the signal's: a busy target has not failed, and must not count a timeout.
      lease = await target.engine.acquire({ holder: HOLDER, signal, timeout: Math.min(LONGEST, 2 * timeout) })
      const connection = bare(lease)
      const at = this.#clock.now()
      const state = readState(await Promise.race([target.ask(connection, signal), aborted(signal)]))
      lease.release()
      target.answer = 'given'
      said(target, state, at)
    } catch (error) {
      this.#unanswered(target, lease, signal, error)
    } finally {
      late.cancel()
      target.check = undefined
      done(target)
      if (this.#begun && isUrgent()) this.#ringAt(this.#clock.now() + PAUSE * (1 + this.#clock.random()))
    }
  }

  #unanswered (target: Target<C>, lease: Lease<C> | undefined, { aborted }: AbortSignal, error: unknown): void {
    const { said, isTransient, refused } = this.#watching
    if (lease === undefined) {
      if (isPoolError(error) && error.code === 'FST_POOL_ABORTED') target.gaveUp++
      // A target that was never reached may only be slow to connect; if its creates fail, its engine tells.
      const isMute = target.known && !(isPoolError(error) && error instanceof Moved)
      if (this.#begun && target.answer !== 'none') target.answer = isMute ? 'no connection' : 'given'
      return
    }
    if (!this.#begun) return lease.release()
    const before = target.answer
    const isSilent = aborted || lease.ended || target.isPeer || isTransient(target, error)
    target.answer = isSilent ? 'none' : 'given'
    if (target.answer === 'none') {
      // Perhaps only this connection failed: the next check comes soon.
      if (before !== 'none') this.soon()
      return lease.destroy(error as Error)
    }
    // The target answers with an error, so it can't say its role: that is the given one.
    lease.release()
    if (!target.known) said(target, { role: target.given as Role }, this.#clock.now())
    refused(error)
  }
}

/** Checks what the connector returned. */
function readState (state: ServerState): ServerState {
  const { role, lag = 0, offset = 0 } = (state as Partial<ServerState> | undefined) ?? {}
  if (role !== 'primary' && role !== 'replica') throw badOption('inspect().role', role, "'primary' or 'replica'")
  if (!(lag >= 0)) throw badOption('inspect().lag', lag, 'milliseconds')
  if (!(offset >= 0)) throw badOption('inspect().offset', offset, 'bytes')
  return state
}

async function aborted (signal: AbortSignal): Promise<never> {
  signal.throwIfAborted()
  await new Promise((resolve) => { signal.addEventListener('abort', resolve, { once: true }) })
  throw signal.reason
}
