import type { DriverEvent } from '../../../types/connector.js'

/**
 * The driver's connection pools and what it knows of the servers. Without commands (they hold data), and without the
 * heartbeats that went well.
 */
export const driverEvents = [
  'connectionPoolCreated', 'connectionPoolReady', 'connectionPoolCleared', 'connectionPoolClosed',
  'connectionCreated', 'connectionReady', 'connectionClosed',
  'connectionCheckOutStarted', 'connectionCheckOutFailed', 'connectionCheckedOut', 'connectionCheckedIn',
  'topologyOpening', 'topologyClosed', 'topologyDescriptionChanged',
  'serverOpening', 'serverClosed', 'serverDescriptionChanged', 'serverHeartbeatFailed',
] as const

/** What may be passed on as it is: names, numbers, texts of the driver's own. */
const plainFields = [
  'address', 'connectionId', 'reason', 'durationMS', 'duration', 'awaited', 'interruptInUseConnections',
] as const

/** Of a server or of the topology. */
interface Description { readonly type: string, readonly error?: Error | null }
interface Change { readonly previousDescription?: Description, readonly newDescription?: Description }

export function plain (name: string, event: Record<string, unknown>): DriverEvent {
  const copy: Record<string, unknown> = {}
  for (const field of plainFields) {
    const value = event[field]
    if (typeof value === 'string' || typeof value === 'number' || typeof value === 'boolean') copy[field] = value
  }
  // `connectionId` of a server that a heartbeat names is '<monitor>' or host and port.
  const error = event.error ?? event.failure
  if (error instanceof Error) copy.error = identity(error)
  const { previousDescription: before, newDescription: now } = event as Change
  if (before !== undefined && now !== undefined) {
    copy.from = before.type
    copy.to = now.type
    if (now.error) copy.error = identity(now.error)
  }
  return { ...copy, name }
}

/** An error's message may hold anything. */
function identity ({ name, code }: Error & { code?: unknown }): { name: string, code?: string | number } {
  return typeof code === 'string' || typeof code === 'number' ? { name, code } : { name }
}
