import { codeOf as sharedCodeOf, socketCodes } from '../shared/failures.js'

/** Also from within a script, and for the EXEC of a transaction that has writes. */
export function takesNoWrites ({ message }: Error): boolean {
  return message.startsWith('READONLY') || /[ -]READONLY You can't write against/.test(message)
}

/** What a server answers that another one, or the same a moment later, would not. */
const passing = new Set([
  'READONLY', // It became a replica: the master is another one now.
  'UNBLOCKED', // It became one while a command was blocked on it.
  'LOADING', // It has just started, and still reads its data.
  'MASTERDOWN', // A replica without its master that is told not to answer from what it has: others may have theirs.
  'CLUSTERDOWN', // A part of the cluster has no master, until its replica has taken over.
  'TRYAGAIN', // The keys of one command are on their way to another node, some here and some there.
])

/** That the connection is gone, or none could be had: what died, another one does not share. */
const deaths = new Set([
  'Connection is closed.', // While the command was under way, or before.
  // The socket has ended, and ioredis has not heard of it yet.
  "Stream isn't writeable and enableOfflineQueue options is false",
  'Command aborted due to connection close', // In the middle of a pipeline or a transaction.
  'None of startup nodes is available',
  'Cluster is ended.',
  "Cluster isn't ready and enableOfflineQueue options is false",
  'Failed to refresh slots cache.', // No node of the cluster answers.
])

/** Of the network, as Node says them. */
const network = new Set([...socketCodes, 'ECONNREFUSED', 'ECONNABORTED', 'EAI_AGAIN'])

/** Whether what failed with it may succeed on another connection, a moment later. */
export function isTransient (error: unknown): boolean {
  if (!(error instanceof Error)) return false
  const { message, name, code, previousErrors } = error as Error & { code?: unknown, previousErrors?: unknown }
  if (typeof code === 'string' && network.has(code)) return true
  if (deaths.has(message) || takesNoWrites(error)) return true
  // A client that reconnects by itself gave up, and so did one that was sent from one node of a cluster to the next.
  if (name === 'MaxRetriesPerRequestError' || message.startsWith('Too many Cluster redirections.')) return true
  if (message.startsWith('All sentinels are unreachable')) return true
  const [word = ''] = message.split(' ', 1)
  if (passing.has(word)) return true
  if (word !== 'EXECABORT') return false
  // Why nothing of a transaction was done, EXEC says itself, or what was to be a part of it.
  const [, reason] = /^EXECABORT Transaction discarded because of: ([A-Z]+)/.exec(message) ?? []
  return passing.has(reason ?? '') || (Array.isArray(previousErrors) && previousErrors.some(isTransient))
}

/** As for all backends, and where the server answered with an error, the word that it begins with: WRONGPASS, ... */
export function codeOf (error: unknown): string {
  const { code, message = '' } = (error ?? {}) as { code?: unknown, message?: string }
  const word = typeof code === 'string' ? undefined : /^[A-Z]{3,}\b/.exec(message)?.[0]
  return word ?? sharedCodeOf(error)
}

/** The answer; undefined where the user may not ask: then it can't be known, and the server did answer. */
export async function unlessDenied (answer: Promise<unknown>): Promise<unknown> {
  try {
    return await answer
  } catch (error) {
    if (error instanceof Error && error.message.startsWith('NOPERM')) return undefined
    throw error
  }
}
