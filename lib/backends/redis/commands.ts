import type { Command } from '../../../types/drivers.js'

/** What a command does to later commands on its connection. */
export type Kind =
  'harmless' | 'multi' | 'exec' | 'watch' | 'select' | 'subscribe' | 'unsubscribe' | 'client' | 'script' | 'lost'

/** The commands that change what a later command on the same connection does. All others leave nothing. */
const stateful: ReadonlyMap<string, Exclude<Kind, 'harmless'>> = new Map([
  ['multi', 'multi'], ['exec', 'exec'], ['watch', 'watch'], ['select', 'select'],
  ['subscribe', 'subscribe'], ['psubscribe', 'subscribe'], ['ssubscribe', 'subscribe'],
  ['unsubscribe', 'unsubscribe'], ['punsubscribe', 'unsubscribe'], ['sunsubscribe', 'unsubscribe'],
  ['client', 'client'], ['script', 'script'],
  ['auth', 'lost'], ['hello', 'lost'], ['reset', 'lost'], ['quit', 'lost'], ['monitor', 'lost'],
  ['readonly', 'lost'], ['readwrite', 'lost'], ['asking', 'lost'],
  ['sync', 'lost'], ['psync', 'lost'], ['replconf', 'lost'], ['himport', 'lost'],
])

/**
 * A cache of the lookup below, by names in any case: lower-casing a name costs many times more than finding it here.
 * Bounded, since names may come from outside.
 */
const kinds = new Map<string, Kind>()

export function kindOf (name: string): Kind {
  const known = kinds.get(name)
  if (known !== undefined) return known
  const kind = stateful.get(name.toLowerCase()) ?? 'harmless'
  if (kinds.size < 1000) kinds.set(name, kind)
  return kind
}

/**
 * Subcommands of CLIENT that leave this connection as it was: they read, or act on other connections. An unknown one
 * counts as harmful.
 */
export const harmlessClient: ReadonlySet<string> = new Set([
  'getname', 'getredir', 'help', 'id', 'info', 'kill', 'list', 'pause', 'trackinginfo', 'unblock', 'unpause',
])

/**
 * Whether a command by itself changes what later ones on its connection do. Without subscriptions, for which a
 * cluster's client has a connection of its own, and SELECT, which no cluster knows.
 */
export function leavesState ({ name, args }: Command): boolean {
  const kind = kindOf(name)
  if (kind === 'client') return !harmlessClient.has(String(args[0]).toLowerCase())
  if (kind === 'script') return String(args[0]).toLowerCase() === 'debug'
  return kind === 'multi' || kind === 'exec' || kind === 'watch' || kind === 'lost'
}
