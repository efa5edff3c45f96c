import type { ClientConfig } from 'pg'
import type { Client } from '../../../types/drivers.js'
import { terminate, type Inside, type Wire } from './wire.js'

/** How long the server may take to let go of a connection, in ms. Then the connection is cut off. */
const grace = 500

/** What the end of a connection asks of its session. */
interface Ending {
  readonly connection: Client
  /** What the connection was made from. */
  readonly base: ClientConfig
  readonly idle: boolean
  readonly broken: boolean
  /** The server has let go. */
  readonly ended: boolean
  /** Ends the connection at once. */
  cut (): void
  /** `told` is called when the server lets go. */
  onEnd (told: () => void): void
}

/** Ends a connection, in good order where it is idle. Where it is busy, the server is asked to cancel what runs. */
export function end (of: Ending): Promise<void> {
  return new Promise((resolve) => {
    const inside = of.connection as unknown as Inside
    const { stream } = inside.connection
    const timer = setTimeout(() => of.cut(), grace)
    let again: NodeJS.Timeout | undefined
    let cancelling: Wire | undefined
    of.onEnd(() => {
      clearTimeout(timer)
      clearTimeout(again)
      cancelling?.stream.destroy()
      resolve()
    })
    if (stream.destroyed) return
    // A borrower may have paused it, and then its end would never be seen.
    stream.resume()
    if (of.idle && !of.broken) {
      of.connection.end(() => {})
      return
    }
    // Not `client.end()`, which cuts: the server would go on with the statement, and its end would not be seen.
    const { processID } = inside
    if (of.idle || processID === null) {
      stream.end(terminate)
      return
    }
    // Queued queries must not be sent once the running statement is cancelled.
    stream.write = () => false
    const ask = () => {
      cancelling = cancel(inside, of.base).on('end', () => {
        if (of.ended) return
        // Not earlier: a PgBouncer would forget whom to cancel.
        if (!stream.writableEnded) stream.end(terminate)
        // A cancel that arrives before the statement does nothing, so it is sent again.
        again = setTimeout(ask, grace / 5)
      })
    }
    ask()
  })
}

/** Where the socket is gone and the server may not know: asks it to cancel what ran. Its end can't be seen. */
export function cancelLeft ({ connection, base }: Pick<Ending, 'connection' | 'base'>): Promise<void> {
  const inside = connection as unknown as Inside
  if (inside.processID === null) return Promise.resolve()
  return new Promise((resolve) => {
    const wire = cancel(inside, base)
    const timer = setTimeout(() => wire.stream.destroy(), grace)
    wire.on('end', () => {
      clearTimeout(timer)
      resolve()
    })
  })
}

/** Asks the server to cancel what runs on a connection. That takes another connection, which the server ends. */
function cancel (inside: Inside, base: ClientConfig): Wire {
  const { processID, secretKey, host, port, ssl, sslNegotiation, connection } = inside
  const Connection = connection.constructor as new (config: object) => Wire
  const wire = new Connection({ ssl, sslNegotiation, stream: base.stream })
  const ask = () => wire.cancel(processID!, secretKey)
  wire.on('connect', () => {
    if (!ssl) ask()
    else if (sslNegotiation !== 'direct') wire.requestSsl()
  })
  wire.on('sslconnect', ask)
  wire.on('error', () => {
    // The statement goes on. Its connection is cut off at the end of the grace, so there is nothing to report.
    wire.stream.destroy()
  })
  if (host.startsWith('/')) wire.connect(`${host}/.s.PGSQL.${port}`)
  else wire.connect(port, host)
  return wire
}
