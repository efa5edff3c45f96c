import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'
import { PoolError } from '../pool/errors.js'

/**
 * Imports an optional driver, or says how to install it.
 *
 * @param via a package that has the driver as its own dependency: the driver is the copy that this package uses, so that there is one.
 * @throws `FST_POOL_MISSING_DRIVER`
 */
export async function importDriver<T> (name: string, { via, backend }: { via?: string, backend: string }): Promise<T> {
  const wanted = via ?? name
  try {
    const from = via === undefined ? import.meta.url : createRequire(import.meta.url).resolve(via)
    return await import(pathToFileURL(createRequire(from).resolve(name)).href) as T
  } catch (error) {
    throw new PoolError('FST_POOL_MISSING_DRIVER', `backend '${backend}' needs the package ${wanted}: npm install ${wanted}`, { cause: error })
  }
}

/** Settles as `work` does, or rejects as soon as the signal aborts: the pool destroys the connection then, and that settles `work`. */
export function unlessAborted<T> (work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const aborted = () => reject(signal.reason)
    if (signal.aborted) aborted()
    else signal.addEventListener('abort', aborted)
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', aborted))
  })
}
