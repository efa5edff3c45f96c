import { Addresses } from '../../../lib/backends/shared/address.js'
import { socketCodes, somewhere } from '../../../lib/backends/shared/failures.js'
import { SessionConnector, sessionOf, type ResetMode } from '../../../lib/backends/shared/session.js'
import { cutAtAbort, unlessAborted } from '../../../lib/backends/shared/signal.js'
import type { Connector } from '../../../types/connector.js'
import { ShelfClient, type ShelfConfig } from './driver.js'
import { configsOf, type ShelfOptions } from './options.js'
import { ShelfSession } from './session.js'

/**
 * Shelves. A connection is one `ShelfClient`.
 *
 * @throws `FST_POOL_BAD_OPTIONS`. Nothing is opened yet.
 */
export async function shelf (options: ShelfOptions): Promise<Connector<ShelfClient>> {
  return new ShelfBackend(options)
}

class ShelfBackend extends SessionConnector<ShelfClient, ShelfSession> {
  readonly system = 'shelf'
  readonly #addresses: Addresses
  readonly #config: (signal: AbortSignal) => ShelfConfig | Promise<ShelfConfig>
  readonly #mode: ResetMode

  constructor (options: ShelfOptions) {
    super()
    this.#addresses = new Addresses(options)
    this.#config = configsOf(options, this.#addresses)
    this.#mode = options.reset ?? 'session'
  }

  get secrets (): readonly string[] {
    return this.#addresses.secrets
  }

  protected override async open (signal: AbortSignal): Promise<ShelfSession> {
    const config = await this.#config(signal)
    signal.throwIfAborted()
    const client = new ShelfClient(config)
    const session = new ShelfSession(client, this.#mode)
    try {
      await cutAtAbort(signal, () => client.socket.destroy(), () => unlessAborted(client.connect(), signal))
      session.open()
      return session
    } catch (error) {
      await session.end()
      throw error
    }
  }

  reset (client: ShelfClient): Promise<void> | undefined {
    return sessionOf<ShelfSession>(client).undo()
  }

  /** Another connection may work where this one died. */
  isTransient (error: unknown): boolean {
    const codes: readonly unknown[] = socketCodes
    return somewhere(error, ({ code, message }) => codes.includes(code) || message === 'the shelf has hung up')
  }
}
