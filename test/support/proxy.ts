import { once } from 'node:events'
import { connect, createServer } from 'node:net'
import type { AddressInfo, Server, Socket } from 'node:net'
import type { Teardown } from './services.js'
import { until } from './until.js'

/**
 * A TCP proxy that spoils what goes through it. Faults hold for the connections that are open and for new ones, until
 * `heal`.
 *
 * It ends, with all of its sockets, when the test that started it ends.
 */
export interface FaultProxy {
  readonly host: string
  readonly port: number
  /** Client connections. */
  readonly connections: { readonly open: number, readonly peak: number, readonly total: number }
  /** Delays all data by `ms` in each direction: a round trip takes twice that. */
  latency (ms: number): void
  /** Swallows all data in both directions. Sockets stay open. */
  blackHole (): void
  /**
   * From the first packet of a client on that has the text in it, its connection is a black hole. 'command': that
   * packet does not get through either. 'answer': it does, and the answer to it does not.
   */
  loseFrom (text: string, what: 'command' | 'answer'): void
  /** The connections that are open are a black hole, for good: a NAT that has forgotten them. New ones work. */
  forget (): void
  /** New connections are accepted and never hear a thing. Open ones go on. */
  silence (): void
  /** New connections get a RST. Open ones go on. */
  resetOnConnect (): void
  /**
   * Cuts every connection, with a RST, after so many more bytes from the server: 0 cuts at the first one. The client
   * may see the RST as an end, since data came before it.
   */
  cutAfter (bytes: number): void
  /** RST to every open connection, now. New ones work. */
  resetAll (): void
  /** FIN to every open connection, now. New ones work. */
  endAll (): void
  /** Closes the listener: new connects are refused. Open connections go on. */
  refuse (): Promise<void>
  /**
   * Ends every fault. What was swallowed stays lost (a connection that one side ended is reset when the other side uses
   * it); after `refuse` it listens again, on the same port.
   */
  heal (): Promise<void>
}

const host = '127.0.0.1'

export async function startProxy (t: Teardown, target: { host: string, port: number }): Promise<FaultProxy> {
  const proxy = new Proxy(target)
  t.teardown(() => proxy.close())
  await proxy.listen()
  return proxy
}

class Proxy implements FaultProxy {
  readonly host = host
  port = 0
  readonly #target: { host: string, port: number }
  /** Both ends of every connection; the server's is missing while it is silent. */
  readonly #links = new Map<Socket, Socket | undefined>()
  /** One side ended it in a black hole, where the other couldn't be told: it is told when it next says something. */
  readonly #endedUnheard = new WeakSet<Socket>()
  readonly #timers = new Set<NodeJS.Timeout>()
  #server: Server | undefined
  #peak = 0
  #total = 0
  #latency = 0
  #swallow = false
  #lose: { readonly text: string, readonly what: 'command' | 'answer' } | undefined
  /** Connections that are a black hole, each by itself. */
  #lost = new WeakSet<Socket>()
  /** Connections that hear nothing any more, not even their end. */
  readonly #forgotten = new WeakSet<Socket>()
  #onConnect: 'pass' | 'silence' | 'reset' = 'pass'
  #bytesLeft = Infinity

  constructor (target: { host: string, port: number }) { this.#target = target }

  get connections () { return { open: this.#links.size, peak: this.#peak, total: this.#total } }

  latency (ms: number): void { this.#latency = ms }
  blackHole (): void { this.#swallow = true }
  loseFrom (text: string, what: 'command' | 'answer'): void { this.#lose = { text, what } }
  forget (): void { for (const client of this.#links.keys()) this.#forgotten.add(client) }
  silence (): void { this.#onConnect = 'silence' }
  resetOnConnect (): void { this.#onConnect = 'reset' }
  cutAfter (bytes: number): void { this.#bytesLeft = bytes }

  resetAll (): void { for (const client of [...this.#links.keys()]) this.#reset(client) }

  endAll (): void {
    for (const [client, server] of this.#links) {
      client.end()
      server?.end()
    }
  }

  async refuse (): Promise<void> {
    const server = this.#server
    this.#server = undefined
    // Not waited for: 'close' comes only when the open connections, which go on, have ended. The port is closed at
    // once.
    server?.close()
  }

  async heal (): Promise<void> {
    this.#latency = 0
    this.#swallow = false
    this.#lose = undefined
    this.#onConnect = 'pass'
    this.#bytesLeft = Infinity
    if (this.#server === undefined) await this.listen()
  }

  async listen (): Promise<void> {
    const server = createServer({ allowHalfOpen: true, noDelay: true }, (client) => this.#accept(client))
    server.listen(this.port, host)
    await once(server, 'listening')
    this.port = (server.address() as AddressInfo).port
    this.#server = server
  }

  async close (): Promise<void> {
    await this.refuse()
    for (const timer of this.#timers) clearTimeout(timer)
    await until(() => {
      // Each time: a connection that the system had accepted before the listener was closed may come to us now.
      this.resetAll()
      return this.#links.size === 0
    }, { what: 'the proxy is closed' })
  }

  #accept (client: Socket): void {
    this.#links.set(client, undefined)
    this.#total++
    this.#peak = Math.max(this.#peak, this.#links.size)
    client.on('error', () => this.#reset(client)) // ECONNRESET: the other side hears of it, as it would without us.
    client.on('close', () => {
      this.#links.get(client)?.destroy()
      this.#links.delete(client)
    })
    if (this.#onConnect === 'reset') return this.#reset(client)
    if (this.#onConnect === 'silence') {
      client.on('end', () => client.end())
      client.resume()
      return
    }
    const server = connect({ ...this.#target, allowHalfOpen: true, noDelay: true })
    this.#links.set(client, server)
    server.on('error', () => { if (!this.#swallow && !this.#forgotten.has(client)) this.#reset(client) })
    this.#pass(client, client, server, (data) => data)
    const toClient = this.#pass(client, server, client, (data) => this.#cut(client, data))
    server.on('close', () => toClient(() => {
      if (!client.writableEnded && !this.#swallow && !this.#forgotten.has(client)) client.destroy()
    }))
  }

  /** @returns runs a function after all that is under way in this direction */
  #pass (client: Socket, from: Socket, to: Socket, cut: (data: Buffer) => Buffer): (fn: () => void) => void {
    const underWay: Array<() => void> = []
    const later = (fn: () => void): void => {
      if (this.#latency === 0 && underWay.length === 0) return fn()
      underWay.push(fn)
      // Each timer delivers the oldest, so the order stays when the latency changes meanwhile.
      const timer = setTimeout(() => {
        this.#timers.delete(timer)
        underWay.shift()?.()
      }, this.#latency)
      this.#timers.add(timer)
    }
    from.on('data', (data: Buffer) => later(() => {
      if (this.#swallow || this.#lost.has(client) || this.#forgotten.has(client) || to.writableEnded) return
      if (from === client && this.#lose !== undefined && data.includes(this.#lose.text)) {
        this.#lost.add(client)
        if (this.#lose.what === 'command') return
      }
      if (to.destroyed || this.#endedUnheard.has(client)) return this.#reset(client)
      const rest = cut(data)
      // A slow reader makes the other side slow too, but for what is under way.
      if (rest.length > 0 && !to.write(rest) && !from.isPaused()) {
        from.pause()
        to.once('drain', () => from.resume())
      }
    }))
    from.on('end', () => later(() => {
      if (this.#forgotten.has(client)) return
      if (this.#swallow) this.#endedUnheard.add(client)
      else if (!to.destroyed) to.end()
    }))
    return later
  }

  /** What may still pass; the connection is reset once that has been sent. */
  #cut (client: Socket, data: Buffer): Buffer {
    if (this.#bytesLeft === Infinity) return data
    const rest = data.subarray(0, this.#bytesLeft)
    this.#bytesLeft -= rest.length
    if (rest.length === data.length) return data
    if (rest.length > 0) client.write(rest, () => this.#reset(client))
    else this.#reset(client)
    return Buffer.alloc(0)
  }

  #reset (client: Socket): void {
    this.#links.get(client)?.destroy()
    // In the middle of a shutdown there can be no RST: Node would not even emit 'close' then.
    if (client.writableEnded && !client.writableFinished) client.destroy()
    else client.resetAndDestroy()
  }
}
