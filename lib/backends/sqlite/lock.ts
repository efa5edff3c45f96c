import { setTimeout as pause } from 'node:timers/promises'

/** In ms: the longest between two attempts. */
const longestPause = 25
/**
 * In ms: how long a COMMIT is tried. Nothing from outside ends it, and a response waits for it. With a WAL it finds nobody in its way; without one
 * (a file system that has none) it waits for readers, whose locks are short.
 */
const commitPatience = 1000

/** Tries again while somebody else has the lock, from JS: SQLite would wait by blocking the event loop. At the signal it fails as the last attempt did. */
export async function patiently (attempt: () => unknown, signal?: AbortSignal): Promise<void> {
  for (let ms = 1; ; ms = Math.min(ms * 2, longestPause)) {
    try {
      attempt()
      return
    } catch (error) {
      if (!isBusy(error)) throw error
      signal ??= AbortSignal.timeout(commitPatience)
      try {
        await pause(ms, undefined, { signal })
      } catch {
        // The signal has no more to tell than that time is up.
        throw error
      }
    }
  }
}

export function codeOf (error: unknown): string {
  const code: unknown = error instanceof Error && 'code' in error ? error.code : undefined
  return typeof code === 'string' ? code : ''
}

/** Also SQLITE_BUSY_SNAPSHOT: it wants to write on what it read before somebody else wrote. */
export function isBusy (error: unknown): boolean {
  return /^SQLITE_BUSY(_|$)/.test(codeOf(error))
}
