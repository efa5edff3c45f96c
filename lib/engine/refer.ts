import { IDLE } from './entry.js'
import type { Parts } from './parts.js'

/**
 * While an engine is at rest its idle connections do not keep the process alive, where the connector can do that and
 * `allowExitOnIdle` is on. Asked when the periodic ticks begin and stop, and not at each loan: until they have begun,
 * every loan goes the long way.
 */
export function refer<C> ({ backend, options, entries, events }: Parts<C>, keepsAlive: boolean): void {
  if (backend.ref === undefined || !options.allowExitOnIdle) return
  events.run(() => {
    for (const entry of entries) {
      if (entry.isHere && (keepsAlive || entry.state === IDLE)) backend.ref!(entry.connection, keepsAlive)
    }
  })
}
