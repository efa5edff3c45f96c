import { badOption, undefinedUrl } from '../../engine/errors.js'
import { secretsOf } from '../../engine/secrets.js'
import type { Address } from '../../../types/options.js'
import { unlessAborted } from './signal.js'

/** Where a database is, and as whom to log in, at one create. */
export interface AddressNow {
  readonly url: string | undefined
  readonly connection: Readonly<Record<string, unknown>>
}

/** How many answers' secrets are remembered: an error of a connection may come long after the create that made it. */
const remembered = 8

/** `url` and `connection` of a backend's options. Either may be a function, which is asked at each create. */
export class Addresses {
  /** Whether there is a function. */
  readonly change: boolean
  readonly #options: Pick<Address, 'url' | 'connection'>
  readonly #environment: object
  readonly #answers: AddressNow[] = []
  #secrets: readonly string[]

  /**
   * @param environment what the driver takes from elsewhere: there may be secrets in it, too
   * @throws `FST_POOL_BAD_OPTIONS` where there is a `url` that is undefined
   */
  constructor (options: Pick<Address, 'url' | 'connection'>, environment: object = {}) {
    const { url, connection } = options
    if (url === undefined && 'url' in options) throw undefinedUrl('')
    this.#options = { url, connection }
    this.#environment = environment
    this.change = typeof url === 'function' || typeof connection === 'function'
    this.#secrets = secretsOf({ url, connection: [connection, environment] })
  }

  /** The secrets in what was given, and in the last answers. A new array where they have changed. */
  get secrets (): readonly string[] {
    return this.#secrets
  }

  /** What was given, with nothing asked: without the parts that only a function knows. */
  get fixed (): AddressNow {
    const { url, connection = {} } = this.#options
    return {
      url: typeof url === 'function' ? undefined : url,
      connection: typeof connection === 'function' ? {} : connection,
    }
  }

  /**
   * The address as of now.
   *
   * @throws what a function throws; `FST_POOL_BAD_OPTIONS` where it answers something else; the signal's reason, where
   * a function takes too long
   */
  async now (signal: AbortSignal): Promise<AddressNow> {
    const { url, connection = {} } = this.#options
    const ask = async <T>(option: T | (() => T | Promise<T>)): Promise<T> =>
      typeof option === 'function' ? await (option as () => T | Promise<T>)() : option
    const answer: AddressNow = {
      url: await unlessAborted(ask<string | undefined>(url), signal),
      connection: await unlessAborted(ask<AddressNow['connection']>(connection), signal),
    }
    if (!this.change) return answer
    if (typeof url === 'function' && (typeof answer.url !== 'string' || answer.url === '')) {
      throw badOption('url()', answer.url, 'a text that is not empty')
    }
    if (typeof answer.connection !== 'object' || answer.connection === null || Array.isArray(answer.connection)) {
      throw badOption('connection()', answer.connection, 'an object')
    }
    this.#answers.push(answer)
    if (this.#answers.length > remembered) this.#answers.shift()
    this.#secrets = secretsOf({
      url: this.#answers.map((one) => one.url),
      connection: [this.#environment, ...this.#answers.map((one) => one.connection)],
    })
    return answer
  }

  /**
   * What `make` makes of the address: once and for all, or anew at each call where a function is to be asked.
   *
   * @throws what `make` throws: it is called now, so that what is wrong whatever a function answers is told now
   */
  configs<T> (make: (address: AddressNow) => T): (signal: AbortSignal) => T | Promise<T> {
    const config = make(this.fixed)
    return this.change ? async (signal) => make(await this.now(signal)) : () => config
  }
}

/**
 * After how long a silence TCP asks whether the other side is still there, in ms, where `connection` does not say
 * otherwise. The system's own default of two hours would find nothing out.
 */
export const keepAliveAfter = 30_000

/** A driver's option names that are not accepted, and what to use instead. */
export type RefusedKeys = ReadonlyMap<string, string>

/**
 * Refuses keys of the driver's options that would do the pool's own work, or would not do what their name says.
 *
 * @param path where the keys were given: 'connection'
 * @throws `FST_POOL_BAD_OPTIONS`
 */
export function refuseKeys (given: Readonly<Record<string, unknown>>, refused: RefusedKeys, path = 'connection'): void {
  for (const [name, instead] of refused) {
    if (given[name] !== undefined) throw badOption(`${path}.${name}`, given[name], `nothing here: ${instead}`)
  }
}

/**
 * Refuses the driver's options where they stand beside ours: they belong inside of `connection`, or are refused there
 * too.
 *
 * @param names the driver's options that are most likely to be put in the wrong place
 * @throws `FST_POOL_BAD_OPTIONS`
 */
export function refuseBeside (options: object, names: Iterable<string>, refused: RefusedKeys): void {
  const given = options as Readonly<Record<string, unknown>>
  for (const name of names) {
    if (given[name] === undefined) continue
    const instead = refused.get(name)
    const expected = instead === undefined ? `it inside of connection: { ${name} }` : `nothing here: ${instead}`
    throw badOption(name, given[name], expected)
  }
}

/**
 * Refuses options that are alternatives to another one.
 *
 * @param other what they would stand next to: 'a url'
 * @throws `FST_POOL_BAD_OPTIONS`
 */
export function refuseNextTo (other: string, options: Readonly<Record<string, unknown>>): void {
  for (const [name, value] of Object.entries(options)) {
    if (value !== undefined) throw badOption(name, value, `no ${name} next to ${other}`)
  }
}

/**
 * Refuses the number of a database, which only Redis has.
 *
 * @throws `FST_POOL_BAD_OPTIONS`
 */
export function refuseNumber (database: unknown, expected = "a name, since only Redis' databases have numbers"): void {
  if (typeof database === 'number') throw badOption('database', database, expected)
}

/** As `Object.assign`, but `undefined` is as if absent. */
export function assignGiven<T extends object> (base: T, ...all: ReadonlyArray<Readonly<Record<string, unknown>>>): T {
  for (const given of all) {
    for (const [name, value] of Object.entries(given)) if (value !== undefined) Object.assign(base, { [name]: value })
  }
  return base
}

/** What the pool adds to a backend's options where a host name's addresses are known (`discover`). */
export interface Discovered {
  /** The address to which the connections go. TLS checks the name that `url` or `host` has. */
  readonly hostaddr?: string
}

/** The parts of a URL. What it leaves out is undefined. */
interface UrlParts {
  readonly protocol: string
  readonly user: string | undefined
  readonly password: string | undefined
  readonly host: string | undefined
  readonly port: number | undefined
  /** Without the first '/'. */
  readonly path: string | undefined
  readonly query: URLSearchParams
}

/**
 * Reads a URL as text, and not by a driver's own parser: those let the query override options, and their errors show
 * the URL.
 *
 * @param form what a URL of this backend looks like, for the error
 * @throws `FST_POOL_BAD_OPTIONS`, without any part of the URL
 */
export function readUrl (url: string, form: string): UrlParts {
  if (!URL.canParse(url)) throw badOption('url', url, form)
  const { protocol, username, password, hostname, port, pathname, searchParams } = new URL(url)
  const decoded = (part: string): string | undefined => part === '' ? undefined : decodeURIComponent(part)
  try {
    return {
      protocol,
      user: decoded(username),
      password: decoded(password),
      host: hostname === '' ? undefined : hostname.replace(/^\[|\]$/g, ''),
      port: port === '' ? undefined : Number(port),
      path: decoded(pathname.replace(/^\//, '')),
      query: searchParams,
    }
  } catch {
    // `decodeURIComponent` says no more than that it failed.
    throw badOption('url', url, 'a url whose user, password and database are percent-encoded')
  }
}
