import { badOption, secretsOf } from '../../pool/errors.js'
import type { Address } from '../../pool/options.js'
import { unlessAborted } from './signal.js'

/** Where a database is, and as whom to log in, at one create. */
export interface AddressNow { readonly url: string | undefined, readonly connection: Readonly<Record<string, unknown>> }

/** How many answers' secrets are remembered: an error of a connection may come long after the create that made it. */
const remembered = 8

/** `url` and `connection` of a backend's options, where either may be a function that is asked at each create. */
export class Addresses {
  /** Whether there is a function. */
  readonly change: boolean
  readonly #options: Pick<Address, 'url' | 'connection'>
  readonly #answers: AddressNow[] = []
  #secrets: readonly string[]

  constructor ({ url, connection }: Pick<Address, 'url' | 'connection'>) {
    this.#options = { url, connection }
    this.change = typeof url === 'function' || typeof connection === 'function'
    this.#secrets = secretsOf({ url, connection })
  }

  /** What is secret in what was given, and in the last answers. Another list where there are others. */
  get secrets (): readonly string[] {
    return this.#secrets
  }

  /**
   * The address as of now.
   *
   * @throws what a function throws; `FST_POOL_BAD_OPTIONS` where it answers something else; the signal's reason, where a function takes too long
   */
  async now (signal: AbortSignal): Promise<AddressNow> {
    const { url, connection = {} } = this.#options
    const ask = <T>(option: T | (() => T | Promise<T>)): Promise<T> => unlessAborted((async () => typeof option === 'function' ? await (option as () => T | Promise<T>)() : option)(), signal)
    const answer: AddressNow = { url: await ask<string | undefined>(url), connection: await ask<AddressNow['connection']>(connection) }
    if (!this.change) return answer
    if (typeof url === 'function' && (typeof answer.url !== 'string' || answer.url === '')) throw badOption('url()', answer.url, 'a text that is not empty')
    if (typeof answer.connection !== 'object' || answer.connection === null || Array.isArray(answer.connection)) throw badOption('connection()', answer.connection, 'an object')
    this.#answers.push(answer)
    if (this.#answers.length > remembered) this.#answers.shift()
    this.#secrets = secretsOf({ url: this.#answers.map((one) => one.url), connection: this.#answers.map((one) => one.connection) })
    return answer
  }

  /** What was given, where nothing is to be asked. */
  get fixed (): AddressNow {
    const { url, connection = {} } = this.#options
    return { url: typeof url === 'string' ? url : undefined, connection: typeof connection === 'function' ? {} : connection }
  }
}
