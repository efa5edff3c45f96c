import type { Holder, HolderLabel } from '../../../types/pool.js'

/** What the requests of one route hold together; and of the connection that is held longest, by whom, and more. */
export interface HeldBy {
  readonly route: string
  readonly connections: number
  /** In ms. */
  readonly longest: number
  /** The request's. */
  readonly id?: string
  readonly doing?: NonNullable<Holder['doing']>
  /** For how long it has been doing that, in ms. */
  readonly sinceQuery?: number
  /** What the server calls the connection. */
  readonly serverId?: string | number
}

/** What a holder without a label is called. */
export const callerWithoutName = 'a caller without a name'
/** How many routes a line names. */
const ROUTES = 10

/** Those who hold most first. @param holders the longest held first */
export function heldBy (holders: readonly Holder[]): HeldBy[] {
  const routes = new Map<string, { readonly longest: Holder, count: number }>()
  for (const one of holders) {
    const route = routeOf(one.holder)
    const known = routes.get(route)
    if (known === undefined) routes.set(route, { longest: one, count: 1 })
    else known.count++
  }
  const all = [...routes].map(([route, { longest, count }]) => told(route, longest, count))
  return all.sort((a, b) => b.connections - a.connections || b.longest - a.longest).slice(0, ROUTES)
}

function told (route: string, { holder, heldFor, doing, sinceQuery, serverId }: Holder, connections: number): HeldBy {
  const id = typeof holder === 'object' ? holder.id : undefined
  return {
    route,
    connections,
    longest: Math.round(heldFor),
    ...(id !== undefined && { id }),
    ...(doing !== undefined && { doing }),
    ...(sinceQuery !== undefined && { sinceQuery: Math.round(sinceQuery) }),
    ...(serverId !== undefined && { serverId }),
  }
}

function routeOf (holder: HolderLabel | undefined): string {
  if (typeof holder === 'string') return holder
  return holder?.route ?? (holder?.id === undefined ? callerWithoutName : 'a request without a route')
}
