import type { Cluster, Command, Redis } from '../../../types/drivers.js'

/** A script of `defineCommand`. Which sockets it was sent to is known to its `Command` alone. */
interface Script {
  readonly constructor: new (lua: string, numberOfKeys: number | null, keyPrefix: string, readOnly: boolean) => Script
  readonly lua: string
  readonly numberOfKeys: number | null
  readonly keyPrefix: string
  readonly readOnly: boolean
}

/**
 * ioredis sends a script as a whole to each socket once, and by its hash from then on. Where the server has lost the
 * script (SCRIPT FLUSH), the call's error tells ioredis, and it sends the whole again. Within MULTI the call's answer
 * is QUEUED and the error is in that of EXEC, where ioredis does not look: each later transaction on that socket would
 * fail as well. So it is looked for here, and every script is taken for one that no socket has got.
 */
export function healScripts (client: Redis | Cluster, exec: Command): void {
  const { resolve } = exec
  // Another `then` on the promise would take its failure for handled.
  exec.resolve = (answer: unknown) => {
    if (Array.isArray(answer) && answer.some(isMissingScript)) {
      for (const script of Object.values((client as unknown as { scriptsSet: Record<string, Script> }).scriptsSet)) {
        const { lua, numberOfKeys, keyPrefix, readOnly } = script
        Object.assign(script, new script.constructor(lua, numberOfKeys, keyPrefix, readOnly))
      }
    }
    resolve(answer)
  }
}

function isMissingScript (answer: unknown): boolean {
  return answer instanceof Error && answer.message.startsWith('NOSCRIPT')
}
