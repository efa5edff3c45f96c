import type { DriverEvent } from '../../../types/connector.js'

/**
 * The driver's events of its connection pools and of the servers. Not those of commands, which hold data, nor
 * heartbeats that succeeded.
 */
export const driverEvents = [
  'connectionPoolCreated', 'connectionPoolReady', 'connectionPoolCleared', 'connectionPoolClosed',
  'connectionCreated', 'connectionReady', 'connectionClosed',
  'connectionCheckOutStarted', 'connectionCheckOutFailed', 'connectionCheckedOut', 'connectionCheckedIn',
  'topologyOpening', 'topologyClosed', 'topologyDescriptionChanged',
  'serverOpening', 'serverClosed', 'serverDescriptionChanged', 'serverHeartbeatFailed',
] as const

/** Fields that are passed on as they are: names, numbers, texts of the driver's own. */
const plainFields = [
  'address', 'connectionId', 'reason', 'durationMS', 'duration', 'awaited', 'interruptInUseConnections',
] as const

/** What the driver says of a server, or of the topology. */
interface Description { readonly type: string, readonly error?: Error | null }
interface Change { readonly previousDescription?: Description, readonly newDescription?: Description }

export function plain (name: string, event: Record<string, unknown>): DriverEvent {
  const copy: Record<string, unknown> = {}
  for (const field of plainFields) {
    const value = event[field]
    if (typeof value === 'string' || typeof value === 'number' || typeof value === 'boolean') copy[field] = value
  }
  // A heartbeat's `connectionId` is '<monitor>', or the server's host and port.
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

/** Without the message, which may hold anything. */
function identity ({ name, code }: Error & { code?: unknown }): { name: string, code?: string | number } {
  return typeof code === 'string' || typeof code === 'number' ? { name, code } : { name }
}
