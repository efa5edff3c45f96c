import { Agent, type IncomingMessage, request, type RequestOptions } from 'node:http'
import { connect } from 'node:net'

export interface Answer { readonly status: number, readonly headers: IncomingMessage['headers'], readonly body: string }

/** Sends a request and reads its whole answer. @throws what the socket says, when there is none */
export function ask (options: RequestOptions & { body?: string }): Promise<Answer> {
  const { body, ...rest } = options
  return new Promise((resolve, reject) => {
    const sent = request({ host: '127.0.0.1', ...rest }, (response) => {
      let text = ''
      response.setEncoding('utf8').on('data', (part: string) => { text += part })
      response.on('error', reject)
      response.on('end', () => { resolve({ status: response.statusCode!, headers: response.headers, body: text }) })
    })
    sent.on('error', reject)
    sent.end(body)
  })
}

/** Keeps its connections open, and opens as many as it needs. */
export function keepAliveAgent (t: { teardown (fn: () => unknown): unknown }, maxSockets = Infinity): Agent {
  const agent = new Agent({ keepAlive: true, maxSockets })
  t.teardown(() => { agent.destroy() })
  return agent
}

/** The code with which a new connection is refused; undefined when it is accepted. */
export function refusal (port: number): Promise<string | undefined> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1')
    socket.once('connect', () => {
      socket.destroy()
      resolve(undefined)
    })
    socket.once('error', (error: NodeJS.ErrnoException) => { resolve(error.code) })
  })
}
