/**
 * Settles as `work` does, or rejects as soon as the signal aborts. The pool then destroys the connection, and that
 * settles `work`.
 */
export function unlessAborted<T> (work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const aborted = () => reject(signal.reason)
    if (signal.aborted) aborted()
    else signal.addEventListener('abort', aborted)
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', aborted))
  })
}

/** Does `work`, and calls `cut` if the signal aborts meanwhile: it ends the connection, so that nothing hangs. */
export async function cutAtAbort<T> (signal: AbortSignal, cut: () => void, work: () => Promise<T>): Promise<T> {
  if (signal.aborted) cut()
  else signal.addEventListener('abort', cut, { once: true })
  try {
    return await work()
  } finally {
    signal.removeEventListener('abort', cut)
  }
}
