import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { resolve as resolvePath } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'

// The examples as npm's scripts run them: `npm test` has built them.
export const dist = fileURLToPath(new URL('../../dist/example/', import.meta.url))

/** Starts the server of an example on a free port. Resolves to its address, its log, and what ends it. */
export async function startExample (t: Test, file: string, env: NodeJS.ProcessEnv) {
  const child = spawn(process.execPath, [resolvePath(dist, file)], {
    env: { ...process.env, NODE_OPTIONS: '', PORT: '0', NODE_ENV: 'production', ...env },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const ended = once(child, 'close') as Promise<[number | null]>
  t.teardown(() => child.kill('SIGKILL'))
  const lines: string[] = []
  const url = await new Promise<string>((resolve, reject) => {
    createInterface({ input: child.stdout }).on('line', (line) => {
      lines.push(line)
      const address = /listening at (http:[^"]+)"/.exec(line)?.[1]
      if (address !== undefined) resolve(address)
    }).on('close', () => { reject(new Error(`it ended: ${lines.join('\n')}`)) })
  })
  return {
    url,
    lines,
    /** GET, or POST where there is a body. */
    ask: async (path: string, body?: object, headers: Record<string, string> = {}) => {
      const response = await fetch(url + path, body === undefined
        ? { headers }
        : { method: 'POST', body: JSON.stringify(body), headers: { 'content-type': 'application/json', ...headers } })
      return {
        status: response.status,
        cache: response.headers.get('x-cache'),
        body: await response.json() as Record<string, unknown> & unknown[],
      }
    },
    stop: async () => {
      child.kill('SIGTERM')
      const [code] = await ended
      return { code, lines }
    },
  }
}
