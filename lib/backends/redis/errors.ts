import type { FailureKind } from '../../../types/connector.js'
import { codeOf as sharedCodeOf, isHopeless, kindBy, socketCodes } from '../shared/failures.js'

/** The server is a replica. It says so also from within a script, and for the EXEC of a transaction that has writes. */
export function takesNoWrites ({ message }: Error): boolean {
  return message.startsWith('READONLY') || /[ -]READONLY You can't write against/.test(message)
}

/** First words of errors that another server, or the same one a moment later, would not answer with. */
const passing = new Set([
  'READONLY', // It became a replica: the master is another one now.
  'UNBLOCKED', // It became one while a command was blocked on it.
  'LOADING', // It has just started, and still reads its data.
  'MASTERDOWN', // A replica without its master that is told not to answer from what it has: others may have theirs.
  'CLUSTERDOWN', // A part of the cluster has no master, until its replica has taken over.
  'TRYAGAIN', // The keys of one command are on their way to another node, some here and some there.
])

/** ioredis' messages for: the connection is gone, or none can be had. */
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

/** Node's codes of network errors. */
const network = new Set([...socketCodes, 'ECONNREFUSED', 'ECONNABORTED', 'EAI_AGAIN'])

/** Whether what failed with this error may succeed on another connection, a moment later. */
export function isTransient (error: unknown): boolean {
  if (!(error instanceof Error)) return false
  const { message, name, code, previousErrors } = error as Error & { code?: unknown, previousErrors?: unknown }
  if (typeof code === 'string' && network.has(code)) return true
  if (deaths.has(message) || takesNoWrites(error)) return true
  // A reconnecting client gave up, or a command was sent from one node of a cluster to the next too often.
  if (name === 'MaxRetriesPerRequestError' || message.startsWith('Too many Cluster redirections.')) return true
  if (message.startsWith('All sentinels are unreachable')) return true
  const [word = ''] = message.split(' ', 1)
  if (passing.has(word)) return true
  if (word !== 'EXECABORT') return false
  // The reason is in EXEC's message, or in the error of the command that was refused in MULTI.
  const [, reason] = /^EXECABORT Transaction discarded because of: ([A-Z]+)/.exec(message) ?? []
  return passing.has(reason ?? '') || (Array.isArray(previousErrors) && previousErrors.some(isTransient))
}

/**
 * What the server answers where it refuses the user, the database or the protocol, whoever asks and how often. Not "ERR
 * max number of clients reached" nor LOADING, which pass. DENIED: it takes no connections from other hosts.
 */
const refused =
  /^(?:(?:WRONGPASS|NOAUTH|NOPERM|DENIED|NOPROTO) |ERR (?:invalid password|DB index is out of range|invalid DB index))/

export function isPermanent (error: unknown): boolean {
  return isHopeless(error, (failure) => {
    // A cluster's client says of its nodes no more than that none answers, and has the last one's error.
    const { message } = (failure as { lastNodeError?: Partial<Error> | null }).lastNodeError ?? failure
    return refused.test(String(message))
  })
}

export function kindOf (error: unknown): FailureKind | undefined {
  return kindBy(error, (failure) => {
    const { message } = (failure as { lastNodeError?: Partial<Error> | null }).lastNodeError ?? failure
    const text = String(message)
    if (/^ERR max number of clients/.test(text)) return 'full'
    if (/^(?:LOADING|MASTERDOWN|CLUSTERDOWN) /.test(text)) return 'starting'
    if (/^ERR (?:DB index is out of range|invalid DB index)/.test(text)) return 'database'
    return refused.test(text) ? 'login' : undefined
  })
}

/** As `codeOf` of all backends. Where the server answered with an error, its first word: WRONGPASS, ... */
export function codeOf (error: unknown): string {
  const { code, message = '' } = (error ?? {}) as { code?: unknown, message?: string }
  const word = typeof code === 'string' ? undefined : /^[A-Z]{3,}\b/.exec(message)?.[0]
  return word ?? sharedCodeOf(error)
}

/** What a connect failed with. Logs and metrics show its code: ioredis' errors of the server's answers have none. */
export function withCode (error: unknown): unknown {
  if (error instanceof Error && error.name === 'ReplyError' && !('code' in error)) {
    Object.assign(error, { code: codeOf(error) })
  }
  return error
}

/** The answer. undefined where the user may not ask: the server did answer, and no more can be known. */
export async function unlessDenied (answer: Promise<unknown>): Promise<unknown> {
  try {
    return await answer
  } catch (error) {
    if (error instanceof Error && error.message.startsWith('NOPERM')) return undefined
    throw error
  }
}
