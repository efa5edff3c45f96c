import { type ChildProcess, spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import type { Teardown } from '../support/services.js'
import { until } from '../support/until.js'

/**
 * A program of this folder in a process of its own, on what `npm run build` made. It is gone when the test that started
 * it ends.
 */
export class Program {
  stdout = ''
  stderr = ''
  /** Once it has ended, and its output is complete. */
  ended: { readonly code: number | null, readonly signal: NodeJS.Signals | null, readonly at: number } | undefined
  /** What it sent by `process.send`. */
  readonly messages: Array<Record<string, unknown>> = []
  readonly #child: ChildProcess

  /** @param options what it reads from `process.argv[2]`, as JSON */
  constructor (t: Teardown, file: string, options: unknown, { ipc = true }: { ipc?: boolean } = {}) {
    // Coverage is of the sources, and what measures it would be loaded here too.
    const { NODE_OPTIONS: _, NODE_V8_COVERAGE: __, ...env } = process.env
    const path = fileURLToPath(new URL(file, import.meta.url))
    this.#child = spawn(process.execPath, ['--enable-source-maps', path, JSON.stringify(options)], {
      stdio: ['ignore', 'pipe', 'pipe', ...ipc ? ['ipc' as const] : []],
      env,
    })
    this.#child.stdout!.setEncoding('utf8').on('data', (text: string) => { this.stdout += text })
    this.#child.stderr!.setEncoding('utf8').on('data', (text: string) => { this.stderr += text })
    this.#child.on('message', (message) => { this.messages.push(message as Record<string, unknown>) })
    this.#child.once('close', (code, signal) => { this.ended = { code, signal, at: performance.now() } })
    t.teardown(async () => {
      if (this.ended === undefined) this.#child.kill('SIGKILL')
      await until(() => this.ended, { what: `${file} is gone` })
    })
  }

  kill (signal: NodeJS.Signals): void { this.#child.kill(signal) }

  send (message: Record<string, unknown>): void { this.#child.send(message) }

  /** The first message that has this name. @throws when it ends before */
  async message<T = unknown> (name: string, timeout = 30_000): Promise<T> {
    const found = await until(() => {
      const message = this.messages.find((one) => name in one)
      if (message === undefined &&
        this.ended !== undefined) throw new Error(`the program ended before it said '${name}':\n${this.stdout}\n${this.stderr}`)
      return message
    }, { timeout, what: `the program says '${name}'` })
    return found[name] as T
  }

  async end (
    timeout = 30_000
  ): Promise<{ readonly code: number | null, readonly signal: NodeJS.Signals | null, readonly at: number }> {
    return await until(() => this.ended,
      { timeout, what: `the program ends; it said so far:\n${this.stdout}\n${this.stderr}` })
  }

  /** Its log, one object for each line of JSON. */
  get log (): Array<Record<string, unknown>> {
    return this.stdout.split('\n').filter((line) => line.startsWith('{')).map((line) => JSON.parse(line))
  }
}
