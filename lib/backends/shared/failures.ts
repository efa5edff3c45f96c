import type { FailureKind } from '../../../types/connector.js'

/** The fields by which drivers tell failures apart. */
export type Failure = Readonly<Record<'code' | 'errno' | 'severity' | 'message' | 'cause', unknown>>

/**
 * Whether `is` holds for an error or for one of its causes: query builders wrap the driver's errors, and so does a
 * commit that came too late.
 *
 * False for a commit whose outcome is unknown: its cause does not say whether the work may be done again.
 */
export function somewhere (error: unknown, is: (failure: Failure) => boolean): boolean {
  for (let depth = 0; depth < 5 && typeof error === 'object' && error !== null; depth++) {
    const failure = error as Failure
    if (failure.code === 'FST_POOL_COMMIT_UNKNOWN') return false
    if (is(failure)) return true
    error = failure.cause
  }
  return false
}

/** Codes of Node and OpenSSL: the server's certificate is not trusted, or is another host's. */
const distrust: ReadonlySet<unknown> = new Set([
  'CERT_HAS_EXPIRED', 'CERT_REVOKED', 'CERT_UNTRUSTED', 'DEPTH_ZERO_SELF_SIGNED_CERT', 'ERR_TLS_CERT_ALTNAME_INVALID',
  'SELF_SIGNED_CERT_IN_CHAIN', 'UNABLE_TO_GET_ISSUER_CERT', 'UNABLE_TO_GET_ISSUER_CERT_LOCALLY',
  'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
])

/**
 * Whether a create fails with this error until somebody changes something: `is` says so, the server's certificate is
 * not trusted, or a function for `url` or `connection` answers what can't be one.
 */
export function isHopeless (error: unknown, is: (failure: Failure) => boolean): boolean {
  return somewhere(error, (failure) =>
    is(failure) || distrust.has(failure.code) || failure.code === 'FST_POOL_BAD_OPTIONS')
}

/** The kind of a failed create that `kindOne` tells of the error, or of one of its causes. */
export function kindBy (
  error: unknown, kindOne: (failure: Failure) => FailureKind | undefined
): FailureKind | undefined {
  let kind: FailureKind | undefined
  somewhere(error, (failure) => (kind = kindOne(failure)) !== undefined)
  return kind
}

/** ECONNREFUSED, 57P01, ...: what events show of an error. Never its message, which may hold anything. */
export function codeOf (error: unknown): string {
  const { code, name = 'Error' } = (error ?? {}) as { code?: unknown, name?: string }
  return typeof code === 'string' ? code : name
}

/** Node's codes for a socket that was connected and has failed. */
export const socketCodes: readonly string[] = ['ECONNRESET', 'EPIPE', 'ETIMEDOUT', 'EHOSTUNREACH', 'ENETUNREACH']
