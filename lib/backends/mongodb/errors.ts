import { labelsOf } from './transaction.js'

/** By the driver or by the server: what these say may be done again, elsewhere or later. */
const transientLabels: readonly string[] = [
  // Of a write: the network, or a server whose role changes. Also where the driver has tried again already, and failed
  // again.
  'RetryableWriteError',
  // None of the transaction was committed.
  'TransientTransactionError',
  // The driver never sent it: the server's sockets had just been given up.
  'PoolRequestedRetry',
  // A change stream or its cursor went with its server.
  'ResumableChangeStreamError',
]

/** The driver's own, by name: there may be two copies of the driver. */
const transientNames: ReadonlySet<string> = new Set([
  'MongoNetworkError', 'MongoNetworkTimeoutError',
  // Its sockets were given up because the server could not be reached.
  'MongoPoolClearedError', 'PoolClearedOnNetworkError', 'MongoPoolClosedError', 'MongoServerClosedError',
  // No server in time: an election, or all of them are down. The caller's deadline ends that.
  'MongoServerSelectionError',
  // It took a member for the primary that was one no more.
  'MongoStalePrimaryError',
  // The client was closed under the operation: that of an address that has changed. Another connection is of the
  // newest.
  'MongoTopologyClosedError',
])

/**
 * What servers say when they, or those behind them, go away or change their roles. Where nothing was labelled: reads,
 * and commands.
 */
const transientCodes: ReadonlySet<unknown> = new Set([
  // HostUnreachable, HostNotFound, NetworkTimeout, SocketException: between a mongos or a member, and others.
  6, 7, 89, 9001,
  // ShutdownInProgress, InterruptedAtShutdown.
  91, 11600,
  // PrimarySteppedDown, InterruptedDueToReplStateChange, NotWritablePrimary (and as it was before),
  // NotPrimaryNoSecondaryOk, NotPrimaryOrSecondary.
  189, 11602, 10107, 10058, 13435, 13436,
  // FailedToSatisfyReadPreference: a mongos finds no member. ReadConcernMajorityNotAvailableYet: just started.
  133, 134,
  // ExceededTimeLimit: of a server among servers. The caller's own limit is MaxTimeMSExpired (50), and no reason to try
  // again.
  262,
])

export function isTransient (error: unknown): boolean {
  if (!(error instanceof Error)) return false
  if (transientNames.has(error.name)) return true
  const labels = labelsOf(error)
  // What the server says of itself; the driver has waited, and tried again.
  if (labels.has('SystemOverloadedError')) return false
  return transientLabels.some((label) => labels.has(label)) || transientCodes.has((error as { code?: unknown }).code)
}

/** The server answered a login with an error. */
export function isRefusedLogin (error: unknown): boolean {
  return error instanceof Error && error.name === 'MongoServerError' && labelsOf(error).has('HandshakeError')
}
