import { connect as connectHttp2 } from 'node:http2'
import type { ClientHttp2Session, ClientHttp2Stream } from 'node:http2'
import { connect } from 'node:net'
import type { Socket } from 'node:net'
import { event, until } from './until.js'
import type { Teardown } from './services.js'

export interface Answer {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
}

interface RequestOptions {
  /** The request's id, as the server will call it. */
  id?: string
  headers?: Record<string, string>
  body?: string
  /** Instead of the body's own: a body that does not come, or not all of it. */
  length?: number
}

/**
 * An HTTP/1.1 client that does what the test says and nothing else: it keeps its connection, and can leave at any
 * moment.
 */
export class Client {
  readonly socket: Socket
  closed = false
  #heard = ''
  readonly #methods: string[] = []

  constructor (t: Teardown, port: number, { reading = true }: { reading?: boolean } = {}) {
    this.socket = connect({ host: '127.0.0.1', port, allowHalfOpen: true })
    this.socket.setNoDelay(true)
    this.socket.setEncoding('latin1')
    this.socket.on('error', () => { this.closed = true }) // A reset, which some tests are about.
    this.socket.on('close', () => { this.closed = true })
    if (reading) this.read()
    t.teardown(() => { this.socket.destroy() })
  }

  /** A client that did not read begins to. */
  read (): void {
    this.socket.on('data', (text) => { this.#heard += String(text) })
    this.socket.on('end', () => { this.closed = true })
  }

  send (method: string, path: string, options?: RequestOptions): this {
    this.#methods.push(method)
    return this.write(format(method, path, options))
  }

  /** Several requests in one packet. */
  pipeline (...requests: ReadonlyArray<readonly [method: string, path: string, options?: RequestOptions]>): this {
    this.#methods.push(...requests.map(([method]) => method))
    return this.write(requests.map((request) => format(...request)).join(''))
  }

  write (text: string): this {
    this.socket.write(text, 'latin1')
    return this
  }

  /** The next answer, whole. */
  async answer (): Promise<Answer> {
    return until(() => this.#next(), { what: `an answer to ${this.#methods[0] ?? 'nothing'}` })
  }

  async get (path: string, options?: RequestOptions): Promise<Answer> {
    return this.send('GET', path, options).answer()
  }

  /** Leaves at once. */
  leave (): void {
    this.socket.destroy()
  }

  /** Something has arrived. */
  async hears (text: string): Promise<void> {
    await until(() => this.#heard.includes(text), { what: `${text} in what the client hears` })
  }

  #next (): Answer | undefined {
    const end = this.#heard.indexOf('\r\n\r\n')
    if (end < 0) {
      if (this.closed) throw new Error(`the server closed the connection, after: '${this.#heard}'`)
      return undefined
    }
    const [first, ...lines] = this.#heard.slice(0, end).split('\r\n')
    const status = Number(first!.split(' ')[1])
    const headers =
      Object.fromEntries(lines.map((line) =>
        [line.slice(0, line.indexOf(':')).toLowerCase(), line.slice(line.indexOf(':') + 1).trim()]))
    const rest = this.#heard.slice(end + 4)
    const bare = this.#methods[0] === 'HEAD' || status < 200 || status === 204 || status === 304
    const read = bare ? { body: '', size: 0 } : readBody(headers, rest)
    if (read === undefined) {
      if (this.closed) throw new Error(`the server closed the connection in the middle of an answer: '${this.#heard}'`)
      return undefined
    }
    this.#heard = rest.slice(read.size)
    if (status >= 200) this.#methods.shift()
    return { status, headers, body: read.body }
  }
}

function readBody (
  headers: Readonly<Record<string, string>>, rest: string
): { body: string, size: number } | undefined {
  if (headers['transfer-encoding'] !== 'chunked') {
    const size = Number(headers['content-length'])
    return rest.length < size ? undefined : { body: rest.slice(0, size), size }
  }
  let body = ''
  for (let at = 0; ;) {
    const line = rest.indexOf('\r\n', at)
    if (line < 0) return undefined
    const size = parseInt(rest.slice(at, line), 16)
    if (size === 0) {
      // Trailers, if any, and an empty line.
      const end = rest.indexOf('\r\n\r\n', line)
      return end < 0 ? undefined : { body: body + rest.slice(line, end).trim(), size: end + 4 }
    }
    if (rest.length < line + 2 + size + 2) return undefined
    body += rest.slice(line + 2, line + 2 + size)
    at = line + 2 + size + 2
  }
}

function format (
  method: string, path: string, { id, headers = {}, body = '', length = body.length }: RequestOptions = {}
): string {
  const all = {
    host: 'test',
    ...(id !== undefined && { 'x-id': id }),
    ...(length > 0 && { 'content-length': String(length), 'content-type': 'application/json' }),
    ...headers,
  }
  return `${method} ${path} HTTP/1.1\r\n${Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n${body}`
}

/** An HTTP/2 session, and its streams. */
export async function http2Client (t: Teardown, port: number): Promise<{
  session: ClientHttp2Session
  send (method: string, path: string, options?: { id?: string, open?: boolean }): ClientHttp2Stream
}> {
  const session = connectHttp2(`http://127.0.0.1:${port}`)
  session.on('error', () => session.destroy()) // A reset, which some tests are about.
  t.teardown(() => { session.destroy() })
  if (session.connecting) await event(session, 'connect')
  return {
    session,
    /** @param options.open the body does not end */
    send (method, path, { id, open = false } = {}) {
      const stream = session.request(
        {
          ':method': method,
          ':path': path,
          ...(id !== undefined && { 'x-id': id }),
          ...(open &&
          { 'content-type': 'application/json' })
        },
        { endStream: !open })
      stream.on('error', () => stream.destroy())
      return stream
    },
  }
}

/** The answer on one stream. */
export async function answerOf (stream: ClientHttp2Stream): Promise<{ status: number, body: string }> {
  let status = 0
  let body = ''
  let ended = false
  stream.setEncoding('utf8')
  stream.on('response', (headers) => { status = headers[':status'] ?? 0 })
  stream.on('data', (text) => { body += String(text) })
  stream.on('end', () => { ended = true })
  await until(() => ended, { what: 'the end of an answer over HTTP/2' })
  return { status, body }
}
