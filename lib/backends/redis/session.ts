import type { Activity, Capacity, ServerState } from '../../../types/connector.js'
import type { Command, Redis } from '../../../types/drivers.js'
import { ServerSession, type ResetMode } from '../shared/session.js'
import { unlessAborted } from '../shared/signal.js'
import { capacityOf } from './capacity.js'
import { harmlessClient, kindOf, type Kind } from './commands.js'
import { codeOf, takesNoWrites, unlessDenied } from './errors.js'
import { inspect } from './inspect.js'
import type { Site } from './options.js'
import { healScripts } from './scripts.js'
import { cut, disconnected, drained, isBusy, sendOf, speaksResp3 } from './wire.js'

/** Bits of `#left`: what a borrower left behind. */
const multi = 1
const watch = 2
const select = 4
const subscribed = 8
/** Only closing the connection undoes it. */
const lost = 16

/** What a session asks of its connector. */
type SessionSite = Pick<Site, 'driver' | 'events'>

/** Watches what goes through one exclusive connection, and knows how to undo it. */
export class RedisSession extends ServerSession<Redis> {
  /** Called once the connection has ended. */
  ended: (() => void) | undefined
  readonly #site: SessionSite
  readonly #send: Redis['sendCommand']
  #seam: Redis['sendCommand']
  #mode: ResetMode = 'none'
  #left = 0
  /** The command that made the connection `lost`. */
  #culprit = ''
  /**
   * Every name that was subscribed to since the last reset, by command. ioredis' own list is incomplete: where no shard
   * channel is left, it forgets the others.
   */
  readonly #names = new Map<string, Set<Command['args'][number]>>()
  /** `open` was called. */
  #open = false
  /** The server's id of the connection, where it told. */
  #id: number | undefined

  constructor (connection: Redis, site: SessionSite) {
    super(connection)
    this.#site = site
    this.#send = sendOf(connection)
    this.#seam = this.#send
    // This object is the connection's own copy. A borrower who changed it would change it for all later borrowers.
    Object.freeze(connection.options)
    this.listeners.keep(connection, 'error', (error: Error) => this.#failed(error))
    this.listeners.keep(connection, 'end', () => {
      this.ended?.()
      if (this.#open) this.#site.events.tell('end', { shared: false })
      this.die()
    })
  }

  /** Starts to watch what borrowers do. From here on the connection may be lent. */
  open (mode: ResetMode): void {
    this.#mode = mode
    this.#open = true
    this.#seam = (command, stream) => {
      const kind = kindOf(command.name)
      if (kind === 'exec') healScripts(this.connection, command)
      if (mode === 'session' ? kind !== 'harmless' : mode === 'transaction' && ofTransactions.has(kind)) {
        this.#note(kind, command)
      }
      return this.#send(command, stream)
    }
    const value = this.#seam
    Object.defineProperty(this.connection, 'sendCommand', { value, writable: true, configurable: true })
    if (mode === 'session') this.listeners.follow()
  }

  override get socket (): Redis['stream'] {
    return this.connection.stream
  }

  /** Once it has ended it is dead for good, even if somebody connects it again. */
  override get broken (): boolean {
    return this.dead || this.connection.status !== 'ready' || !this.connection.stream.writable
  }

  override describe (): Activity {
    const { connection } = this
    // A watched key is no transaction: nothing waits for it.
    const doing = isBusy(connection) ? 'query' : (this.#left & multi) !== 0 ? 'idle in transaction' : 'idle'
    return { ...(this.#id !== undefined && { id: this.#id }), doing }
  }

  override async ping (): Promise<boolean> {
    const answer = await unlessDenied(this.command('ping'))
    // Where a mode leaves an open MULTI or a subscription, the answer differs.
    return this.#mode !== 'session' || answer === undefined || answer === 'PONG'
  }

  /**
   * Rejects where the server does not serve, or has another role. ioredis' own check would leave a timer of up to 10 s
   * behind while the server loads; here the pool retries.
   */
  async check (role: string | undefined): Promise<void> {
    // In one write with the PING. A server that does not know it, or refuses it, serves all the same.
    const id = this.command('client', ['ID']).catch(() => undefined)
    await this.ping()
    this.#id = await id as number | undefined
    if (role === undefined) return
    const answer = await unlessDenied(this.command('role'))
    if (Array.isArray(answer) && answer[0] !== role) {
      throw new Error(`the sentinels named a server that is a ${String(answer[0])}, not a ${role}`)
    }
  }

  override async inspect (): Promise<ServerState> {
    return await inspect((name, args) => this.command(name, args))
  }

  override async capacity (): Promise<Capacity | undefined> {
    return await capacityOf((name, args) => this.command(name, args))
  }

  /**
   * Called for each error that the server answers. A connection whose server takes no writes any more is not lent
   * again.
   */
  answered (error: Error): void {
    if (!this.#open || this.dead || !takesNoWrites(error)) return
    this.dead = true
    this.#site.events.tell('readonly', { shared: false })
  }

  protected override async close (): Promise<void> {
    await disconnected(this.connection)
  }

  protected override drop (): void {
    cut(this.connection)
  }

  #failed (error: Error): void {
    // The first error is why the connection does not open.
    if (!this.#open) {
      this.error ??= error
      return
    }
    // Either the connection is about to end, or ioredis has mixed up answers.
    this.error = error
    this.dead = true
    this.#site.events.tell('error', { shared: false, code: codeOf(error) })
  }

  // --- Reset ---------------------------------------------------------------------------------------------------------

  /**
   * undefined: there is nothing to undo.
   *
   * @throws (rejects) where commands are still under way when `signal` aborts, or state was left that can't be undone
   */
  undo (signal: AbortSignal): Promise<void> | undefined {
    if (this.#mode === 'none') return undefined
    if (this.connection.sendCommand !== this.#seam) this.#lose('another sendCommand')
    if (this.#left !== 0 || isBusy(this.connection)) return this.#undo(signal)
    if (!this.listeners.changed) return undefined
    this.listeners.restore()
    // No round trip is needed, but a promise: `onConnect` may have added those listeners, and runs again then.
    return Promise.resolve()
  }

  async #undo (signal: AbortSignal): Promise<void> {
    this.#unlessLost()
    // Waits first: a command behind a BLPOP would wait for it, and behind a hanging `unsubscribe()` ioredis throws.
    if (isBusy(this.connection)) await drained(this.connection, signal)
    this.#unlessLost()
    this.listeners.restore()
    const left = this.#left
    this.#left = 0
    const undo = [() => this.#undoTransaction(left), () => this.#undoSubscriptions()]
    // In RESP2 a subscribed connection takes no other commands. In RESP3 an open MULTI would queue the unsubscribing.
    if (!speaksResp3(this.connection)) undo.reverse()
    for (const step of undo) await unlessAborted(step(), signal)
    if (this.#left !== 0 || this.listeners.changed || isBusy(this.connection)) {
      throw new Error('the connection was still used while it was reset')
    }
  }

  async #undoTransaction (left: number): Promise<void> {
    const answers: Array<Promise<unknown>> = []
    // Sent even where the borrower has sent DISCARD: the server may have refused it.
    if ((left & multi) !== 0) answers.push(this.command('discard').catch(unlessWithoutMulti))
    if ((left & watch) !== 0) answers.push(this.command('unwatch'))
    // Sets both the server's database and ioredis' idea of it: they differ after `call('SeLeCt', 3)`, a failed SELECT,
    // and one in a discarded MULTI.
    if ((left & select) !== 0) answers.push(this.command('select', [String(this.connection.options.db ?? 0)]))
    await Promise.all(answers)
  }

  /** Unsubscribes by name: without names ioredis hangs where there are channels and patterns. */
  async #undoSubscriptions (): Promise<void> {
    if (this.#names.size === 0) return
    const shards = this.#names.has('ssubscribe')
    if (!speaksResp3(this.connection) && shards && this.#names.size > 1) {
      throw new Error('ioredis can\'t undo shard subscriptions next to others in RESP2')
    }
    const subscriptions = [...this.#names]
    this.#names.clear()
    const counts = await Promise.all(subscriptions.map(async ([name, names]) => {
      const count = await this.command(name.replace('subscribe', 'unsubscribe'), [...names])
      return { name, count: Number(count) }
    }))
    // The server counts channels and patterns together, so only the last answer counts all.
    const rest = counts.filter(({ name }) => name !== 'ssubscribe').at(-1)?.count ?? 0
    const shardRest = counts.find(({ name }) => name === 'ssubscribe')?.count ?? 0
    if (rest !== 0 || shardRest !== 0 || this.connection.condition?.subscriber) {
      throw new Error('the connection is still subscribed')
    }
  }

  /**
   * Sends a command of ours: not noted, not auto-pipelined, and without the key prefix, which the names of subscribed
   * shard channels have already.
   */
  async command (name: string, args: Command['args'] = []): Promise<unknown> {
    const command = new this.#site.driver.Command(name, args as string[], { replyEncoding: 'utf8' })
    return await this.#send(command)
  }

  // --- What goes through ---------------------------------------------------------------------------------------------

  #note (kind: Kind, command: Command): void {
    const name = command.name.toLowerCase()
    switch (kind) {
      case 'multi':
        // With arguments the server refuses it.
        if (command.args.length === 0) this.#left |= multi
        break
      case 'exec':
        // However it ends, an open MULTI is over and nothing is watched. Without one it fails, and changes nothing.
        if ((this.#left & multi) !== 0) this.#left &= ~(multi | watch)
        break
      case 'watch': this.#left |= watch; break
      case 'select': this.#left |= select; break
      case 'subscribe': {
        if ((this.#left & multi) !== 0) this.#lose(`${name} in MULTI`)
        this.#left |= subscribed
        const names = this.#names.get(name) ?? new Set()
        this.#names.set(name, names)
        for (const arg of command.args) names.add(arg)
        break
      }
      case 'unsubscribe':
        // ioredis would take its answers for those of other commands.
        if ((this.#left & multi) !== 0) this.#lose(`${name} in MULTI`)
        break
      case 'client':
        if (!harmlessClient.has(String(command.args[0]).toLowerCase())) this.#lose(name)
        break
      case 'script':
        if (String(command.args[0]).toLowerCase() === 'debug') this.#lose(name)
        break
      default: this.#lose(name)
    }
  }

  #lose (culprit: string): void {
    this.#left |= lost
    this.#culprit ||= culprit
  }

  #unlessLost (): void {
    if ((this.#left & lost) !== 0) throw new Error(`only closing the connection undoes what ${this.#culprit} left`)
  }
}

/** The kinds of commands whose effects are undone in mode 'transaction'. */
const ofTransactions: ReadonlySet<Kind> = new Set(['multi', 'exec', 'watch'])

function unlessWithoutMulti (error: unknown): void {
  // No MULTI is open, which is all that was wanted.
  if (!(error instanceof Error && error.message.startsWith('ERR DISCARD without MULTI'))) throw error
}
