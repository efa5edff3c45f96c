import type { Role } from '../../types/connector.js'
import type { AcquireOptions, AcquireSignal, Timer } from '../../types/pool.js'

/** An acquire that was not served at once. Its deadline is what it was, wherever it waits. */
export interface Request {
  readonly role: Role
  readonly options: AcquireOptions
  readonly since: number
  readonly deadline: number
  /** At whose line it stands. */
  target?: string | undefined
}

interface Waiting { go (): void, fail (error: Error): void }

/** Those who wait for a primary, in the order in which they came. */
export class Line<L> {
  readonly #waiting = new Map<Request, Waiting>()
  readonly #setTimer: (fn: () => void, ms: number) => Timer
  readonly #late: (request: Request) => Error
  readonly #aborted: (signal: AcquireSignal) => Error

  /**
   * @param late what is thrown at the deadline
   * @param aborted what is thrown where the signal aborts
   */
  constructor (setTimer: (fn: () => void, ms: number) => Timer, late: (request: Request) => Error, aborted: (signal: AcquireSignal) => Error) {
    this.#setTimer = setTimer
    this.#late = late
    this.#aborted = aborted
  }

  get size (): number {
    return this.#waiting.size
  }

  /**
   * @param left until the deadline, in ms
   * @param serve called when its turn has come
   */
  join (request: Request, left: number, serve: () => Promise<L>): Promise<L> {
    const { signal } = request.options
    return new Promise((resolve, reject) => {
      const leave = () => {
        timer.cancel()
        signal?.removeEventListener('abort', abort)
        this.#waiting.delete(request)
      }
      const fail = (error: Error) => {
        leave()
        reject(error)
      }
      const go = () => {
        leave()
        resolve(serve())
      }
      const abort = () => { fail(this.#aborted(signal!)) }
      const timer = this.#setTimer(() => { fail(this.#late(request)) }, Math.max(1, Math.ceil(left)))
      // The process stays alive for who waits.
      timer.ref()
      signal?.addEventListener('abort', abort, { once: true })
      this.#waiting.set(request, { go, fail })
    })
  }

  /** Says of each what it is to do. */
  sort (judge: (request: Request) => 'go' | 'stay' | Error): void {
    for (const [request, { go, fail }] of [...this.#waiting]) {
      // What serving one sets off may have served others.
      if (!this.#waiting.has(request)) continue
      const verdict = judge(request)
      if (verdict === 'go') go()
      else if (verdict !== 'stay') fail(verdict)
    }
  }
}
