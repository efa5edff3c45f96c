import type { Capacity } from '../../../types/connector.js'
import type { Advice } from '../../../types/fastify.js'
import type { PoolFace } from '../../../types/pool.js'
import { scrub } from '../../engine/errors.js'
import { systemClock } from '../../engine/time.js'
import { idleInHandler, serverOf, tooManyForServer, tooSmall, type Server } from './advise.js'
import { Samples } from './samples.js'

/** How long the server has to say how many connections it allows, in ms. */
const PATIENCE = 1000

/** What the server said, and what follows. */
export interface Asked {
  /** undefined: it does not say, or could not be asked. */
  readonly capacity?: Capacity | undefined
  /** What the asking failed with. */
  readonly error?: Error
  readonly advice?: Advice | undefined
}

type Pool = Pick<PoolFace<unknown>, 'stats' | 'holders' | 'tryAcquire' | 'backend'>

/** What is known of one pool beyond its books, and what follows from both. No timer: it looks when it is asked. */
export class Collector {
  readonly #pool: Pool
  readonly #samples = new Samples()
  #server: Server | undefined

  constructor (pool: Pool) {
    this.#pool = pool
  }

  /** Takes a look at who holds connections now. */
  look (now = systemClock.now(true)): void {
    this.#samples.add(now, () => this.#pool.holders())
  }

  /** Counts as a look, too. */
  advice (now = systemClock.now(true)): Advice[] {
    this.look(now)
    const stats = this.#pool.stats()
    const server = this.#server
    return [
      server && tooManyForServer(stats, server),
      tooSmall(stats, server),
      idleInHandler(stats, this.#samples.idleTime(now)),
    ].filter((one) => one !== undefined)
  }

  /**
   * Asks the server how many connections it allows, on a connection that is idle now, and remembers it. Never rejects.
   *
   * @returns undefined: there is nothing to ask, or there are several servers
   */
  ask (): Promise<Asked> | undefined {
    const { backend } = this.#pool
    const { targets, tenants } = this.#pool.stats()
    if (backend.capacity === undefined || targets !== undefined || tenants !== undefined) return undefined
    return this.#ask().catch((error: unknown) => ({ error: scrub(error, backend.secrets ?? []) }))
  }

  async #ask (): Promise<Asked> {
    // Whoever waits for the pool to open, and takes the connection then, comes first.
    await Promise.resolve()
    const lease = this.#pool.tryAcquire()
    if (lease === null) return {}
    try {
      const capacity = await this.#pool.backend.capacity!(lease.raw, AbortSignal.timeout(PATIENCE))
      const stats = this.#pool.stats()
      this.#server = capacity && serverOf(stats, capacity)
      return { capacity, advice: this.#server && tooManyForServer(stats, this.#server) }
    } catch (error) {
      // The question may still be under way.
      lease.destroy()
      throw error
    } finally {
      lease.release()
    }
  }
}
