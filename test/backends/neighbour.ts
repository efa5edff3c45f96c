import { fork } from 'node:child_process'
import { once } from 'node:events'
import type { Test } from 'tap'

/** Another process that has the same database, on the bare driver. */
export interface Neighbour {
  /** Adds rows one after the other; resolves to those that were acknowledged. */
  add (rows: readonly string[]): Promise<string[]>
  /** All that are there, as this process sees them. */
  all (): Promise<string[]>
  /** SQLite only. */
  exec (sql: string): Promise<void>
}

/** @param where see neighbour.mjs */
export async function startNeighbour (t: Test, kind: string, where: object): Promise<Neighbour> {
  const child =
    fork(new URL('neighbour.mjs', import.meta.url), [JSON.stringify([kind, where])],
      { execArgv: [], stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
  const exited = once(child, 'exit')
  t.teardown(async () => {
    child.kill('SIGKILL')
    await exited
  })
  const answer = async () => {
    const [message] =
      await Promise.race([once(child, 'message'),
        exited.then(([code]) => { throw new Error(`the other process has ended: ${code}`) })])
    const { output, error } = message as { output?: unknown, error?: string }
    if (error !== undefined) throw new Error(error)
    return output
  }
  await answer()
  const ask = async (what: string, input?: unknown) => {
    const answered = answer()
    child.send({ what, input })
    return await answered
  }
  return {
    add: async (rows) => await ask('add', rows) as string[],
    all: async () => await ask('all') as string[],
    exec: async (sql) => { await ask('exec', sql) },
  }
}
