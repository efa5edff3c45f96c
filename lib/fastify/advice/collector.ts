import type { Advice } from '../../../types/fastify.js'
import type { PoolFace } from '../../../types/pool.js'
import { systemClock } from '../../engine/time.js'
import { idleInHandler, tooSmall } from './advise.js'
import { Samples } from './samples.js'

/** What is known of one pool beyond its books, and what follows from both. No timer: it looks when it is asked. */
export class Collector {
  readonly #pool: Pick<PoolFace<unknown>, 'stats' | 'holders'>
  readonly #samples = new Samples()

  constructor (pool: Pick<PoolFace<unknown>, 'stats' | 'holders'>) {
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
    return [tooSmall(stats), idleInHandler(stats, this.#samples.idleTime(now))].filter((one) => one !== undefined)
  }
}
