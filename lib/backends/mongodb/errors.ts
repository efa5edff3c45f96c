import type { FailureKind } from '../../../types/connector.js'
import { isHopeless, kindBy } from '../shared/failures.js'
import { labelsOf } from './transaction.js'

/** Labels of the driver or the server: the operation may be tried again, elsewhere or later. */
const transientLabels: readonly string[] = [
  // A write failed by the network, or by a server that changes its role. Also where the driver's own retry failed.
  'RetryableWriteError',
  // None of the transaction was committed.
  'TransientTransactionError',
  // The driver never sent it, since the server's sockets had just been given up.
  'PoolRequestedRetry',
  // A change stream or its cursor was lost with its server.
  'ResumableChangeStreamError',
]

/** Names of the driver's own errors. By name, since there may be two copies of the driver. */
const transientNames: ReadonlySet<string> = new Set([
  'MongoNetworkError', 'MongoNetworkTimeoutError',
  // The sockets were given up because the server could not be reached.
  'MongoPoolClearedError', 'PoolClearedOnNetworkError', 'MongoPoolClosedError', 'MongoServerClosedError',
  // No server in time: an election, or all are down. The caller's deadline ends the retries.
  'MongoServerSelectionError',
  // The driver took a member for the primary that has stepped down.
  'MongoStalePrimaryError',
  // The client of an address that has changed was closed. Another connection has the newest client.
  'MongoTopologyClosedError',
])

/** Codes of servers that go away or change their role. For reads and commands, which get no labels. */
const transientCodes: ReadonlySet<unknown> = new Set([
  // HostUnreachable, HostNotFound, NetworkTimeout, SocketException: between a mongos or a member and other servers.
  6, 7, 89, 9001,
  // ShutdownInProgress, InterruptedAtShutdown.
  91, 11600,
  // PrimarySteppedDown, InterruptedDueToReplStateChange, NotWritablePrimary (and as it was before),
  // NotPrimaryNoSecondaryOk, NotPrimaryOrSecondary.
  189, 11602, 10107, 10058, 13435, 13436,
  // FailedToSatisfyReadPreference: a mongos finds no member. ReadConcernMajorityNotAvailableYet: the server has just
  // started.
  133, 134,
  // ExceededTimeLimit: among servers. The caller's own limit is MaxTimeMSExpired (50), and no reason to retry.
  262,
])

export function isTransient (error: unknown): boolean {
  if (!(error instanceof Error)) return false
  if (transientNames.has(error.name)) return true
  const labels = labelsOf(error)
  // The server is overloaded, and the driver has waited and retried already.
  if (labels.has('SystemOverloadedError')) return false
  return transientLabels.some((label) => labels.has(label)) || transientCodes.has((error as { code?: unknown }).code)
}

/** The server refused the login. */
export function isRefusedLogin (error: unknown): boolean {
  return error instanceof Error && error.name === 'MongoServerError' && labelsOf(error).has('HandshakeError')
}

/** UserNotFound, Unauthorized, AuthenticationFailed, AtlasError ("bad auth"). */
const refusals: ReadonlySet<unknown> = new Set([11, 13, 18, 8000])

/** The driver's own: what was asked of it can't be, or the server's version is too old or too new for it. */
const unready: ReadonlySet<unknown> = new Set([
  'MongoCompatibilityError', 'MongoInvalidArgumentError', 'MongoMissingCredentialsError', 'MongoMissingDependencyError',
  'MongoParseError',
])

/** Whether a login is refused, now and later, or the driver can't use the server. */
export function isPermanent (error: unknown): boolean {
  return isHopeless(error, (failure) => {
    const { code, name } = failure as { readonly code: unknown, readonly name?: unknown }
    return (name === 'MongoServerError' && refusals.has(code)) || unready.has(name)
  })
}

/** The driver tells of a server that it can't reach by a message that has Node's code in it. */
const codesIn: ReadonlyArray<readonly [RegExp, FailureKind]> = [
  [/\bECONNREFUSED\b/, 'refused'],
  [/\b(?:ENOTFOUND|EAI_AGAIN)\b/, 'name'],
  [/\b(?:EHOSTUNREACH|ENETUNREACH)\b/, 'unreachable'],
  [/\b(?:certificate|SSL|TLS)\b/, 'tls'],
  [/\btimed out\b/, 'timeout'],
]

export function kindOf (error: unknown): FailureKind | undefined {
  return kindBy(error, (failure) => {
    const { code, message } = failure
    const { name } = failure as { readonly name?: unknown }
    if (name === 'MongoServerError' && refusals.has(code)) return 'login'
    if (name === 'MongoMissingCredentialsError') return 'login'
    if (code === 91 || code === 11600) return 'starting'
    return codesIn.find(([text]) => text.test(String(message)))?.[1]
  })
}
