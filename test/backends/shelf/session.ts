import { Listeners } from '../../../lib/backends/shared/listeners.js'
import { Session, type ResetMode } from '../../../lib/backends/shared/session.js'
import type { Activity } from '../../../types/connector.js'
import type { ShelfClient } from './driver.js'

/** Commands that leave nothing on their connection. Any other may change what later ones do. */
const harmless = /^(PING|ID|WHO|WHERE|GET|SET|COUNT|WAIT)\b/
/** Commands whose effect RESET does not undo. */
const lasting = /^(LOGIN|AS)\b/

/** How long the server may take to end a connection, in ms. */
const grace = 500

/** Watches what goes through one connection, and knows how to undo it. */
export class ShelfSession extends Session<ShelfClient> {
  readonly #mode: ResetMode
  readonly #listeners: Listeners
  readonly #ask: ShelfClient['ask']
  /** Commands under way. */
  #pending = 0
  /** A command was sent since the connection was clean that may have left something. */
  #dirty = false
  /** The command that no reset undoes. */
  #culprit: string | undefined
  /** `onConnect` has run. */
  #settled = false

  constructor (client: ShelfClient, mode: ResetMode) {
    super(client)
    this.#mode = mode
    this.#ask = client.ask.bind(client)
    this.#listeners = new Listeners([client], () => { this.dead = true })
    this.#listeners.keep(client, 'error', (error: Error) => { this.error = error })
    this.#listeners.keep(client, 'end', () => this.die())
  }

  /** Starts to watch what borrowers do: an own property hides the driver's method. */
  open (): void {
    if (this.#mode !== 'session') return
    this.#listeners.follow()
    this.connection.ask = async (line) => {
      this.#pending++
      if (!harmless.test(line)) this.#dirty = true
      if (lasting.test(line)) this.#culprit ??= line.split(' ', 1)[0]
      return await this.#ask(line).finally(() => { this.#pending-- })
    }
  }

  override get broken (): boolean {
    return this.dead || !this.connection.socket.writable
  }

  override unfit (): boolean {
    // What `onConnect` has set is not to be undone before the first loan.
    if (!this.#settled) this.#dirty = false
    this.#settled = true
    return this.broken
  }

  override describe (): Activity {
    return { doing: this.#pending > 0 ? 'query' : 'idle' }
  }

  override async ping (): Promise<boolean> {
    return await this.#ask('PING') === 'PONG'
  }

  /** undefined: there is nothing to undo, and no round trip is needed. */
  undo (): Promise<void> | undefined {
    const restored = this.#listeners.changed
    this.#listeners.restore()
    if (this.#dirty || this.#pending > 0) return this.#reset()
    // Not undefined: `onConnect` may have added those listeners, and runs again behind a promise.
    return restored ? Promise.resolve() : undefined
  }

  async #reset (): Promise<void> {
    if (this.#culprit !== undefined) throw new Error(`only closing the connection undoes what ${this.#culprit} left`)
    this.#dirty = false
    // Answers come in order, so this one comes behind all that is under way.
    await this.#ask('RESET')
    if (this.#dirty || this.#pending > 0) throw new Error('the connection was still used while it was reset')
    this.#settled = false
  }

  /** Half-closes: the server's own end shows that it has let go. One that does not answer is cut off. */
  protected override async close (): Promise<void> {
    const { socket } = this.connection
    if (socket.closed) return
    AbortSignal.timeout(grace).addEventListener('abort', () => socket.destroy())
    await new Promise<void>((resolve) => {
      socket.once('close', () => resolve())
      socket.end()
    })
  }
}
