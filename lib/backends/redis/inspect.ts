import type { ServerState } from '../../../types/connector.js'
import { unlessDenied } from './errors.js'

/** Asks a server what it is: by ROLE, or where the user may not ask for it, by INFO. */
export async function inspect (command: (name: string, args?: string[]) => Promise<unknown>): Promise<ServerState> {
  const answer = await unlessDenied(command('role'))
  if (!Array.isArray(answer)) return stateOf(String(await command('info', ['replication'])))
  const [role, ...rest] = answer as unknown[]
  if (role === 'master') return { role: 'primary', offset: Number(rest[0]) }
  if (role !== 'slave') throw new Error(`the server is neither a master nor a replica: ${String(role)}`)
  const [, , link, offset] = rest
  return replica(link === 'connected', offset)
}

/** From an INFO replication. */
function stateOf (info: string): ServerState {
  const fields = new Map(info.split('\r\n').map((line) => line.split(':', 2) as [string, string]))
  const role = fields.get('role')
  if (role === 'master') return { role: 'primary', offset: Number(fields.get('master_repl_offset')) }
  if (role !== 'slave') throw new Error('the server does not say whether it is a master or a replica')
  return replica(fields.get('master_link_status') === 'up', fields.get('slave_repl_offset'))
}

function replica (linked: boolean, offset: unknown): ServerState {
  return { role: 'replica', ...(linked ? { offset: Number(offset) } : { lag: Infinity }) }
}
