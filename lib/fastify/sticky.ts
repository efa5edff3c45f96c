import type { FastifyRequest } from 'fastify'
import type { Role } from '../../types/connector.js'
import type { Clock } from '../../types/pool.js'
import { systemClock } from '../pool/clock.js'
import type { ResolvedPoolOptions } from './options.js'
import { askKey, bounded, type KeyOf } from './keys.js'

/** Keys that are remembered at most: beyond that the one that wrote longest ago is forgotten. */
const most = 10_000

/**
 * Read your writes: who has written reads from the primary for a while, as replicas may not have it yet. Whoever it is, a cookie, a header or a
 * function of the app tells.
 */
export class Sticky {
  readonly #keyOf: KeyOf
  readonly #stickyFor: number
  readonly #clock: Clock
  /** Until when, by key. The earliest first: what is marked again goes to the end. */
  readonly #until = new Map<string, number>()

  /** @param options exactly one of the three */
  constructor (pool: string, { cookie, header, key }: NonNullable<ResolvedPoolOptions['sticky']>, stickyFor: number, clock: Clock = systemClock) {
    this.#stickyFor = stickyFor
    this.#clock = clock
    if (key !== undefined) this.#keyOf = (request) => askKey(key, request, pool, 'sticky.key')
    else if (cookie !== undefined) this.#keyOf = ({ headers }) => text(cookieOf(headers.cookie, cookie))
    else {
      // As Node has them.
      const name = header!.toLowerCase()
      this.#keyOf = ({ headers }) => text(headers[name])
    }
  }

  /** How many keys are remembered. */
  get keys (): number {
    return this.#until.size
  }

  /**
   * What a request gets that asks for a connection of `role`. Undefined: it is nobody in particular.
   *
   * @param writes whether it may write with it
   * @throws what the app's function throws; `FST_POOL_BAD_OPTIONS` where it gives no key
   */
  visit (request: FastifyRequest, role: Role, writes: boolean): Visit | undefined {
    const key = this.#keyOf(request)
    return key === undefined ? undefined : new Visit(this, key, role === 'replica' && this.#has(key) ? 'primary' : role, writes)
  }

  #has (key: string): boolean {
    const until = this.#until.get(key)
    return until !== undefined && until > this.#clock.now()
  }

  /** For `Visit`. */
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

/** What a pool that is sticky knows of one acquire. */
export class Visit {
  readonly #sticky: Sticky
  readonly #key: string

  constructor (sticky: Sticky, key: string, readonly role: Role, public writes: boolean) {
    this.#sticky = sticky
    this.#key = key
  }

  /** From now on, for `stickyFor`, its key reads from the primary. */
  mark (): void {
    this.#sticky.mark(this.#key)
  }
}

function text (value: string | readonly string[] | undefined): string | undefined {
  return value === undefined || value.length === 0 ? undefined : bounded(String(value))
}

/** The value as it was sent, but for quotes: only whether two are equal counts. */
function cookieOf (header: string | undefined, name: string): string | undefined {
  for (const pair of header?.split(';') ?? []) {
    const at = pair.indexOf('=')
    if (at < 0 || pair.slice(0, at).trim() !== name) continue
    const value = pair.slice(at + 1).trim()
    return /^".*"$/.test(value) ? value.slice(1, -1) : value
  }
  return undefined
}

/** For keeping: a text that was cut out of a header would keep all of that in memory. */
function copyOf (text: string): string {
  return Buffer.from(text, 'utf16le').toString('utf16le')
}
