import type { AddressInfo } from 'node:net'
import { Writable } from 'node:stream'
import type { Teardown } from './services.js'

/** What is asked of an app; of whatever logger and server it is. */
interface App {
  readonly server: { address (): unknown }
  listen (options: { port: number, host: string }): Promise<unknown>
  close (): Promise<unknown>
}

/**
 * On a port of its own, until the test ends. Resolves with the port.
 *
 * @param before what has to be let go, or the close would wait for it
 */
export async function listen (t: Teardown, app: App, before: () => void = () => {}): Promise<number> {
  await app.listen({ port: 0, host: '127.0.0.1' })
  t.teardown(async () => {
    before()
    await app.close()
  })
  return (app.server.address() as AddressInfo).port
}

/** What nobody caught: tap fails for it too, but where it does not belong to the test. */
export function uncaught (t: Teardown): unknown[] {
  const seen: unknown[] = []
  const listener = (error: unknown) => { seen.push(error) }
  process.on('unhandledRejection', listener)
  process.on('uncaughtExceptionMonitor', listener)
  t.teardown(() => {
    process.off('unhandledRejection', listener)
    process.off('uncaughtExceptionMonitor', listener)
  })
  return seen
}

/** What Fastify's `logger.stream` writes, line by line. */
export function logLines<Line = Record<string, unknown>> (): { readonly stream: Writable, readonly lines: Line[] } {
  const lines: Line[] = []
  const stream = new Writable({
    write (chunk, _encoding, done) {
      lines.push(JSON.parse(String(chunk)))
      done()
    },
  })
  return { stream, lines }
}
