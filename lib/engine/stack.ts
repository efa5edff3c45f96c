const { url = '' } = import.meta as { readonly url?: string }
/** Where the files of this package are. Undefined in an app's bundle, whose frames can't be told apart. */
const own = /^file:\/\/(.*\/lib\/)(?:engine|shared)\/[^/]+$/.exec(url)?.[1]

/** Frames of ours are above those of the caller, so more are read than are told. */
const read = 40
const told = 10

/** The stack of the code that called this package, in text, without the frames of this package above it. */
export function callerStack (): string {
  const { stackTraceLimit } = Error
  Error.stackTraceLimit = read
  try {
    const [message, ...frames] = String(new Error('acquired').stack).split('\n')
    const isTheirs = (frame: string) => !frame.includes(own ?? '\n') && !frame.endsWith('(<anonymous>)')
    const first = Math.max(0, frames.findIndex(isTheirs))
    return [message, ...frames.slice(first, first + told)].join('\n')
  } finally {
    Error.stackTraceLimit = stackTraceLimit
  }
}
