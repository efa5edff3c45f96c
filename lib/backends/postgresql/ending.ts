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

/** Ends a connection: in good order where it is idle. The server is asked to cancel what still runs. */
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
    if (of.broken || of.idle || processID === null) {
      stream.end(terminate)
      return
    }
    // What is queued must not go out when the statement has been cancelled.
    stream.write = () => false
    const ask = () => {
      cancelling = cancel(inside, of.base).on('end', () => {
        if (of.ended) return
        // Not before the server knows: a PgBouncer forgets whom to cancel.
        if (!stream.writableEnded) stream.end(terminate)
        // The server does nothing where the statement reaches it after that.
        again = setTimeout(ask, grace / 5)
      })
    }
    ask()
  })
}

/** Asks the server to end what runs on a connection. It takes another connection, which the server then ends. */
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
    // The statement goes on then. There is nobody to tell, and its connection is cut at the end of the grace.
    wire.stream.destroy()
  })
  if (host.startsWith('/')) wire.connect(`${host}/.s.PGSQL.${port}`)
  else wire.connect(port, host)
  return wire
}
