import type { Ranks } from './roles.js'
import { belongsTo } from './rendezvous.js'
import type { Target } from './target.js'

/** Equal servers: each takes reads and writes, so there is no primary, no lag and no failover. */
export class Peers<C> implements Ranks<C> {
  readonly #targets: ReadonlyArray<Target<C>>
  readonly arePeers = true
  readonly primary = undefined
  readonly another = undefined
  readonly isLost = true

  constructor (targets: ReadonlyArray<Target<C>>) {
    this.#targets = targets
  }

  /** A peer has answered. */
  said (target: Target<C>): undefined {
    target.known = true
  }

  get mayServe (): boolean {
    return this.#targets.some(({ usable }) => usable)
  }

  /** Nobody can be served: the peers are asked more often. */
  get isUrgent (): boolean {
    return !this.#targets.some(({ sound, usable }) => sound && usable)
  }

  /**
   * Those that answer. A peer that fails is used only where there is no other, and one that has not been asked yet only
   * where none has answered.
   *
   * @param key only the one to which it belongs
   */
  eligible (_role: unknown, key?: string): ReadonlyArray<Target<C>> {
    const usable = this.#targets.filter((target) => target.usable)
    const sound = usable.filter((target) => target.sound)
    const known = sound.filter((target) => target.known)
    const best = known.length > 0 ? known : sound.length > 0 ? sound : usable
    return key === undefined || best.length < 2 ? best : [belongsTo(key, best)]
  }

  takeLags (): [] {
    return []
  }

  lagOf (): null {
    return null
  }

  takeFailover (): undefined {
    return undefined
  }
}
