import { unlessAborted } from '../shared/signal.js'
import type { DriverEvent, ServerState } from '../../../types/connector.js'
import type { Command, Redis } from '../../../types/drivers.js'
import { sendOf, speaksResp3, isBusy, drained, disconnected } from './wire.js'
import type { Driver } from './wire.js'
import { kindOf, harmlessClient } from './commands.js'
import type { Kind } from './commands.js'
import { takesNoWrites, codeOf } from './errors.js'

/** What a borrower left behind: bits of `Guard.#left`. */
const multi = 1

const watch = 2
const select = 4
const subscribed = 8
const listeners = 16

/** Nothing but closing the connection undoes it. */
const lost = 32

const guardKey: unique symbol = Symbol('fastify-pool guard')

export function guardOf (connection: Redis): Guard {
  return (connection as Redis & { [guardKey]: Guard })[guardKey]
}

/** Sees all that goes through one exclusive connection, and knows how to undo it. */
export class Guard {
  /** Before the connection is open: what went wrong first. Afterwards: what went wrong last. */
  error: Error | undefined
  /** Called once it is gone. */
  ended: (() => void) | undefined
  readonly #connection: Redis
  readonly #driver: Driver
  readonly #tell: (event: DriverEvent) => void
  readonly #send: Redis['sendCommand']
  #seam: Redis['sendCommand']
  #mode: 'session' | 'transaction' | 'none' = 'none'
  #left = 0
  /** What made it `lost`. */
  #culprit = ''
  /** Every name that was subscribed to since the last reset. ioredis' own list forgets some: it takes no shard channel left for nothing left. */
  readonly #names = new Map<string, Set<Command['args'][number]>>()
  #added: Array<readonly [event: string | symbol, listener: Listener]> = []
  #open = false
  #broken = false
  #closing = false
  #died: ((error?: Error) => void) | undefined

  constructor (connection: Redis, driver: Driver, tell: (event: DriverEvent) => void) {
    this.#connection = connection
    this.#driver = driver
    this.#tell = tell
    this.#send = sendOf(connection)
    this.#seam = this.#send
    Object.defineProperty(connection, guardKey, { value: this })
    // ioredis copies the options it is made from. A borrower who changed them would change them for all that come after.
    Object.freeze(connection.options)
    connection.on('error', this.#onError)
    connection.on('end', this.#onEnd)
    connection.on('removeListener', this.#onRemove)
  }

  /** No I/O. Dead for good once it has ended, even if somebody connects it again. */
  get broken (): boolean {
    return this.#broken || this.#connection.status !== 'ready' || !this.#connection.stream.writable
  }

  /**
   * The server serves, and is what it should be. Instead of ioredis' own check, which leaves a timer of up to 10 s behind while the server loads:
   * the pool tries again.
   */
  async check (role: string | undefined): Promise<void> {
    await this.ping()
    if (role === undefined) return
    const answer = await unlessDenied(this.#command('role'))
    if (Array.isArray(answer) && answer[0] !== role) throw new Error(`the sentinels named a server that is a ${String(answer[0])}, not a ${role}`)
  }

  async ping (): Promise<boolean> {
    const answer = await unlessDenied(this.#command('ping'))
    // A mode that leaves an open MULTI or a subscription gets other answers.
    return this.#mode !== 'session' || answer === undefined || answer === 'PONG'
  }

  /** What the server answered an error to. One that takes no writes any more is not for the next borrower. */
  answered (error: Error): void {
    if (!this.#open || this.#broken || !takesNoWrites(error)) return
    this.#broken = true
    this.#tell({ name: 'readonly', shared: false })
  }

  async inspect (): Promise<ServerState> {
    const answer = await unlessDenied(this.#command('role'))
    if (!Array.isArray(answer)) return stateOf(String(await this.#command('info', ['replication'])))
    const [role, ...rest] = answer as unknown[]
    if (role === 'master') return { role: 'primary', offset: Number(rest[0]) }
    if (role !== 'slave') throw new Error(`the server is neither a master nor a replica: ${String(role)}`)
    const [, , link, offset] = rest
    return { role: 'replica', ...(link === 'connected' ? { offset: Number(offset) } : { lag: Infinity }) }
  }

  /** From here on the connection may be lent. */
  open (mode: 'session' | 'transaction' | 'none'): void {
    this.#mode = mode
    this.#open = true
    if (mode === 'none') return
    this.#seam = (command, stream) => {
      const kind = kindOf(command.name)
      if (kind !== 'harmless' && (mode === 'session' || kind === 'multi' || kind === 'exec' || kind === 'watch')) this.#note(kind, command)
      return this.#send(command, stream)
    }
    Object.defineProperty(this.#connection, 'sendCommand', { value: this.#seam, writable: true, configurable: true })
    if (mode === 'session') this.#connection.on('newListener', this.#onNew)
  }

  onDeath (listener: (error?: Error) => void): void {
    if (this.#connection.status === 'end') queueMicrotask(() => listener(this.error))
    else this.#died = listener
  }

  async close (): Promise<void> {
    this.#closing = true
    await disconnected(this.#connection)
  }

  reset (signal: AbortSignal): Promise<void> | undefined {
    if (this.#mode === 'none') return undefined
    if (this.#connection.sendCommand !== this.#seam) this.#lose('another sendCommand')
    if ((this.#left & ~listeners) === 0 && !isBusy(this.#connection)) {
      if (this.#left === 0) return undefined
      this.#forgetListeners()
      // No round trip, and yet a reset: `onConnect` may have been the one that added them, and runs again.
      return Promise.resolve()
    }
    return this.#clean(signal)
  }

  async #clean (signal: AbortSignal): Promise<void> {
    this.#unlessLost()
    // Nothing is sent while something is under way: behind a BLPOP it would wait, and behind an `unsubscribe()` that hangs, ioredis throws.
    if (isBusy(this.#connection)) await drained(this.#connection, signal)
    this.#unlessLost()
    this.#forgetListeners()
    const left = this.#left
    this.#left = 0
    const undo = [() => this.#undoTransaction(left), () => this.#undoSubscriptions()]
    // In RESP2 a subscribed connection takes no other commands. In RESP3 an open MULTI would queue the unsubscribing.
    if (!speaksResp3(this.#connection)) undo.reverse()
    for (const step of undo) await unlessAborted(step(), signal)
    if (this.#left !== 0 || isBusy(this.#connection)) throw new Error('the connection was still used while it was reset')
  }

  async #undoTransaction (left: number): Promise<void> {
    const answers: Array<Promise<unknown>> = []
    // Whether it is still open is not known for sure: a DISCARD of the borrower's may have been refused.
    if ((left & multi) !== 0) answers.push(this.#command('discard').catch(unlessWithoutMulti))
    if ((left & watch) !== 0) answers.push(this.#command('unwatch'))
    // Both the server's idea of the database and ioredis' own: they differ after `call('SeLeCt', 3)`, a failed SELECT and one in a discarded MULTI.
    if ((left & select) !== 0) answers.push(this.#command('select', [String(this.#connection.options.db ?? 0)]))
    await Promise.all(answers)
  }

  /** By name: without names ioredis hangs where there are channels and patterns. */
  async #undoSubscriptions (): Promise<void> {
    if (this.#names.size === 0) return
    const shards = this.#names.has('ssubscribe')
    if (!speaksResp3(this.#connection) && shards && this.#names.size > 1) {
      throw new Error('ioredis can\'t undo shard subscriptions next to others in RESP2')
    }
    const subscriptions = [...this.#names]
    this.#names.clear()
    const counts = await Promise.all(subscriptions.map(async ([name, names]) => {
      const count = await this.#command(name.replace('subscribe', 'unsubscribe'), [...names])
      return { name, count: Number(count) }
    }))
    // The server counts channels and patterns together, so only the last answer is the whole truth.
    const rest = counts.filter(({ name }) => name !== 'ssubscribe').at(-1)?.count ?? 0
    const shardRest = counts.find(({ name }) => name === 'ssubscribe')?.count ?? 0
    if (rest !== 0 || shardRest !== 0 || this.#connection.condition?.subscriber) throw new Error('the connection is still subscribed')
  }

  /** Past the seam, past auto-pipelining, and without the key prefix, which subscribed shard channels have already. */
  async #command (name: string, args: Command['args'] = []): Promise<unknown> {
    const command = new this.#driver.Command(name, args as string[], { replyEncoding: 'utf8' })
    return await this.#send(command)
  }

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
        // Its answers come at another time than ioredis expects, and are taken for those of other commands.
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

  #forgetListeners (): void {
    for (const [event, listener] of this.#added) this.#connection.off(event, listener)
    this.#added = []
    this.#left &= ~listeners
  }

  readonly #onError = (error: Error): void => {
    if (this.#open) {
      // The connection is about to end, or ioredis takes answers for those of other commands.
      this.error = error
      this.#broken = true
      this.#tell({ name: 'error', shared: false, code: codeOf(error) })
    } else {
      this.error ??= error
    }
  }

  readonly #onEnd = (): void => {
    this.#broken = true
    this.ended?.()
    if (this.#open) this.#tell({ name: 'end', shared: false })
    const died = this.#died
    this.#died = undefined
    if (!this.#closing) died?.(this.error)
  }

  readonly #onNew = (event: string | symbol, listener: Listener): void => {
    this.#added.push([event, listener])
    this.#left |= listeners
  }

  /** A borrower's `removeAllListeners()` takes ours away too: then nothing is known any more. */
  readonly #onRemove = (_event: string | symbol, listener: Listener): void => {
    const ours: unknown[] = [this.#onError, this.#onEnd, this.#onNew, this.#onRemove]
    if (!ours.includes(listener)) return
    this.#broken = true
    // Once all are gone. A connection without a listener for errors writes them to the console.
    process.nextTick(() => {
      if (!this.#connection.listeners('error').includes(this.#onError)) this.#connection.on('error', this.#onError)
      if (!this.#connection.listeners('end').includes(this.#onEnd)) this.#connection.on('end', this.#onEnd)
    })
  }
}

type Listener = (...args: unknown[]) => void

/** Of an INFO replication. */
function stateOf (info: string): ServerState {
  const fields = new Map(info.split('\r\n').map((line) => line.split(':', 2) as [string, string]))
  const role = fields.get('role')
  if (role === 'master') return { role: 'primary', offset: Number(fields.get('master_repl_offset')) }
  if (role !== 'slave') throw new Error('the server does not say whether it is a master or a replica')
  return { role: 'replica', ...(fields.get('master_link_status') === 'up' ? { offset: Number(fields.get('slave_repl_offset')) } : { lag: Infinity }) }
}

async function unlessDenied (answer: Promise<unknown>): Promise<unknown> {
  try {
    return await answer
  } catch (error) {
    // The user may not ask: then it can't be known, and the server did answer.
    if (error instanceof Error && error.message.startsWith('NOPERM')) return undefined
    throw error
  }
}

function unlessWithoutMulti (error: unknown): void {
  // No MULTI is open, which is all that was wanted.
  if (!(error instanceof Error && error.message.startsWith('ERR DISCARD without MULTI'))) throw error
}
