import type { FailureKind } from '../../types/connector.js'
import { fieldOf } from './errors.js'

/** What to do where connections can't be made. Clients may read it: it names no host. */
export const remedies: Readonly<Record<FailureKind | 'other', string>> = {
  refused: 'Is its server running, and are host and port right?',
  name: 'Is its host name right, and does DNS work?',
  timeout: 'Its server did not answer in time: is it overloaded, or a firewall in the way?',
  unreachable: 'No network leads to its server: is the address right?',
  tls: 'Encryption could not be agreed on: look at certificates and TLS options.',
  login: 'Its server refuses the login: are user, password and permissions right?',
  database: 'Its server has no such database: is the name right?',
  full: "Its server has no connection left: lower max, of all instances together, or raise the server's limit.",
  starting: 'Its server is starting up, or shutting down.',
  other: 'Is its server up, and are its address and login right?',
}

/** Node's codes, which no driver needs to explain. */
const codes: Readonly<Record<string, FailureKind>> = {
  ECONNREFUSED: 'refused',
  ENOENT: 'refused',
  ENOTFOUND: 'name',
  EAI_AGAIN: 'name',
  ETIMEDOUT: 'timeout',
  EHOSTUNREACH: 'unreachable',
  ENETUNREACH: 'unreachable',
}

/** Node's and OpenSSL's. */
const ofTls = /^(?:CERT_|ERR_TLS_|ERR_SSL_|DEPTH_ZERO_SELF_SIGNED_CERT|SELF_SIGNED_CERT|UNABLE_TO_(?:GET|VERIFY))/

/**
 * The kind of a failure that its code tells, its cause's or one of its parts' (where Node has tried several addresses);
 * undefined: another one.
 */
export function kindOfSystem (error: unknown): FailureKind | undefined {
  for (let depth = 0; depth < 5 && typeof error === 'object' && error !== null; depth++) {
    const code = fieldOf(error, 'code')
    const errors = fieldOf(error, 'errors')
    if (typeof code === 'string' && Object.hasOwn(codes, code)) return codes[code]
    if (typeof code === 'string' && ofTls.test(code)) return 'tls'
    if (/\bETIMEDOUT\b|^no connection within \d/.test(String(fieldOf(error, 'message')))) return 'timeout'
    error = Array.isArray(errors) ? errors[0] as unknown : fieldOf(error, 'cause')
  }
  return undefined
}
