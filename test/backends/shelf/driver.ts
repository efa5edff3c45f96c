import { EventEmitter, once } from 'node:events'
import { connect, type Socket } from 'node:net'

export interface ShelfConfig {
  readonly host: string
  readonly port: number
  readonly user: string
  readonly password?: string
}

/** The driver of a shelf: one line is asked, one line is answered. */
export class ShelfClient extends EventEmitter<{ error: [Error], end: [] }> {
  readonly socket: Socket
  readonly #config: ShelfConfig
  readonly #waiting: Array<{ resolve (answer: string): void, reject (error: Error): void }> = []

  constructor (config: ShelfConfig) {
    super()
    this.#config = config
    this.socket = connect(config.port, config.host)
    let rest = ''
    let failure = new Error('the shelf has hung up')
    this.socket.setEncoding('utf8').on('data', (data) => {
      const lines = (rest + String(data)).split('\n')
      rest = lines.pop()!
      for (const line of lines) this.#answered(line)
    })
    this.socket.on('error', (error) => {
      failure = error
      this.emit('error', error)
    })
    this.socket.on('close', () => {
      for (const { reject } of this.#waiting.splice(0)) reject(failure)
      this.emit('end')
    })
  }

  /** Resolves when the user is logged in. */
  async connect (): Promise<void> {
    const { user, password = '-' } = this.#config
    await once(this.socket, 'connect')
    await this.ask(`LOGIN ${user} ${password}`)
  }

  ask (line: string): Promise<string> {
    return new Promise((resolve, reject) => {
      if (!this.socket.writable) return reject(new Error('the shelf has hung up'))
      this.#waiting.push({ resolve, reject })
      this.socket.write(`${line}\n`)
    })
  }

  #answered (line: string): void {
    const { resolve, reject } = this.#waiting.shift()!
    if (line.startsWith('ERR ')) reject(new Error(line.slice(4)))
    else resolve(line)
  }
}
