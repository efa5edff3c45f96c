/** What drivers say of a failure, in one way or another. */
export type Failure = Readonly<Record<'code' | 'errno' | 'severity' | 'message' | 'cause', unknown>>

/**
 * Whether it is true of an error, or of a cause of it: query builders wrap the driver's errors, and so does a commit
 * that came too late. Never of a commit whose outcome nobody knows: what caused that says nothing of what may be done
 * again.
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
