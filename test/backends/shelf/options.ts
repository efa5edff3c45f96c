import {
  assignGiven, readUrl, refuseBeside, refuseKeys, refuseNextTo,
  type Addresses, type AddressNow, type RefusedKeys,
} from '../../../lib/backends/shared/address.js'
import type { ResetMode } from '../../../lib/backends/shared/session.js'
import { badOption } from '../../../lib/engine/errors.js'
import type { Address } from '../../../types/options.js'
import type { ShelfConfig } from './driver.js'

export interface ShelfOptions extends Pick<Address, 'url' | 'connection' | 'host' | 'port'> {
  /** What is undone at return. Default 'session': all that the next borrower could notice. */
  reset?: ResetMode
}

/** The driver's options that would do the pool's work, and what to use instead. */
const refused: RefusedKeys = new Map(Object.entries({
  host: 'use the option host',
  port: 'use the option port',
  reconnect: 'the pool replaces a connection that dies',
}))

/** The driver's options that are likely to be put beside `url` by mistake. */
const beside = ['user', 'password', 'reconnect']

/** @throws `FST_POOL_BAD_OPTIONS`, for what is wrong whatever a function answers */
export function configsOf (options: ShelfOptions, addresses: Addresses) {
  const { url, host, port } = options
  refuseBeside(options, beside, refused)
  if (url !== undefined) refuseNextTo('a url', { host, port })
  return addresses.configs(({ url, connection }: AddressNow): ShelfConfig => {
    refuseKeys(connection, refused)
    const base = { host: 'localhost', port: 7000, user: 'guest' }
    return assignGiven(base, url === undefined ? {} : parseUrl(url), connection, { host, port })
  })
}

function parseUrl (url: string): Record<string, unknown> {
  const form = 'shelf://user:password@host:port'
  if (!url.startsWith('shelf://')) throw badOption('url', url, form)
  const { user, password, host, port } = readUrl(url, form)
  return { user, password, host, port }
}
