import type { FastifyRequest } from 'fastify'
import type { Role } from '../../../types/connector.js'
import type { StickyOptions } from '../../../types/plugin.js'
import type { Clock } from '../../../types/pool.js'
import { systemClock } from '../../engine/time.js'
import { askKey, bounded, type KeyOf } from './keys.js'

/** How many keys are remembered. With one more, the key that wrote longest ago is forgotten. */
const most = 10_000

/**
 * Read your writes: whoever has written reads from the primary for a while, since replicas may not have it yet. Who it
 * is, is told by a cookie, a header or a function of the app.
 */
export class Sticky {
  readonly #keyOf: KeyOf
  readonly #stickyFor: number
  readonly #clock: Clock
  /** Until when each key reads from the primary, the earliest first: a key that is marked again goes to the end. */
  readonly #until = new Map<string, number>()

  /** @param options exactly one of the three */
  constructor (pool: string, { cookie, header, key }: StickyOptions, stickyFor: number, clock: Clock = systemClock) {
    this.#stickyFor = stickyFor
    this.#clock = clock
    if (key !== undefined) this.#keyOf = (request) => askKey(key, request, pool, 'sticky.key')
    else if (cookie !== undefined) this.#keyOf = ({ headers }) => text(cookieOf(headers.cookie, cookie))
    else {
      // As Node has the names of headers.
      const name = header!.toLowerCase()
      this.#keyOf = ({ headers }) => text(headers[name])
    }
  }

  /** How many keys are remembered. */
  get keys (): number {
    return this.#until.size
  }

  /**
   * Begins an acquire of a request that asks for a connection of `role`. Undefined: the request has no key.
   *
   * @param writes whether the request may write with the connection
   * @throws what the app's function throws; `FST_POOL_BAD_OPTIONS` where it gives no key
   */
  visit (request: FastifyRequest, role: Role, writes: boolean): Visit | undefined {
    const key = this.#keyOf(request)
    if (key === undefined) return undefined
    return new Visit(this, key, role === 'replica' && this.#has(key) ? 'primary' : role, writes)
  }

  #has (key: string): boolean {
    const until = this.#until.get(key)
    return until !== undefined && until > this.#clock.now()
  }

  /** From now on, for `stickyFor` ms, that key reads from the primary. */
  mark (key: string): void {
    const now = this.#clock.now()
    this.#until.delete(key)
    this.#until.set(copyOf(key), now + this.#stickyFor)
    for (const [oldest, until] of this.#until) {
      if (until > now && this.#until.size <= most) break
      this.#until.delete(oldest)
    }
  }
}

/** One acquire from a pool that is sticky: which role it gets, and whether its request may write. */
export class Visit {
  readonly #sticky: Sticky
  readonly #key: string

  constructor (sticky: Sticky, key: string, readonly role: Role, public writes: boolean) {
    this.#sticky = sticky
    this.#key = key
  }

  /** Its request has written, or may have: see `Sticky.mark`. */
  mark (): void {
    this.#sticky.mark(this.#key)
  }
}

function text (value: string | readonly string[] | undefined): string | undefined {
  return value === undefined || value.length === 0 ? undefined : bounded(String(value))
}

/** A cookie's value as it was sent, but for quotes. It is not decoded: it is only compared with others. */
function cookieOf (header: string | undefined, name: string): string | undefined {
  for (const pair of header?.split(';') ?? []) {
    const at = pair.indexOf('=')
    if (at < 0 || pair.slice(0, at).trim() !== name) continue
    const value = pair.slice(at + 1).trim()
    return /^".*"$/.test(value) ? value.slice(1, -1) : value
  }
  return undefined
}

/** A copy that can be kept: a text that was cut out of a header would keep the whole header in memory. */
function copyOf (text: string): string {
  return Buffer.from(text, 'utf16le').toString('utf16le')
}
