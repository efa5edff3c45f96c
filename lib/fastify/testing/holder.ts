import type { Holder } from '../../../types/pool.js'

/** A holder, as the message of a test tells it. */
export function tellHolder ({ pool, holder, heldFor, tenant }: Holder): string {
  const { route, id } = typeof holder === 'object' ? holder : { route: holder, id: undefined }
  const who = route === undefined || route === '' ? 'somebody who gave no name' : route
  const request = id === undefined ? '' : `, request ${id}`
  const whose = tenant === undefined ? '' : `, tenant ${tenant}`
  return `  pool '${pool}'${whose}: ${who}${request}, for ${Math.round(heldFor)} ms`
}
