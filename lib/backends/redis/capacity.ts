import type { Capacity } from '../../../types/connector.js'
import { unlessDenied } from './errors.js'

/** With more clients their list is not asked for: it would be long. */
const LISTED = 2000

/** Asks a server. undefined: the user may not ask. */
export async function capacityOf (
  command: (name: string, args?: string[]) => Promise<unknown>
): Promise<Capacity | undefined> {
  const info = await unlessDenied(command('info', ['clients']))
  const inUse = numberIn(info, 'connected_clients')
  if (inUse === undefined) return undefined
  // INFO has it from Redis 7 on.
  const allowed = numberIn(info, 'maxclients') ??
    configured(await unlessDenied(command('config', ['GET', 'maxclients'])))
  if (allowed === undefined) return undefined
  const name = await unlessDenied(command('client', ['GETNAME']))
  if (typeof name !== 'string' || name === '' || inUse > LISTED) return { allowed, inUse }
  const list = await unlessDenied(command('client', ['LIST']))
  if (list === undefined) return { allowed, inUse }
  const ours = String(list).split('\n').filter((line) => fieldOf(line, 'name') === name)
  const hosts = new Set(ours.map((line) => fieldOf(line, 'addr')?.replace(/:\d+$/, '')))
  return { allowed, inUse, ours: ours.length, hosts: hosts.size }
}

function numberIn (info: unknown, field: string): number | undefined {
  const [, digits] = new RegExp(`^${field}:(\\d+)`, 'm').exec(String(info)) ?? []
  return digits === undefined ? undefined : Number(digits)
}

/** Of an answer to CONFIG GET: a list of names and values, or with RESP3 a map. */
function configured (answer: unknown): number | undefined {
  const value = Array.isArray(answer)
    ? (answer as unknown[]).flat()[1]
    : (answer as { maxclients?: unknown } | undefined)?.maxclients
  return value === undefined ? undefined : Number(value)
}

function fieldOf (line: string, field: string): string | undefined {
  return line.split(' ').find((one) => one.startsWith(`${field}=`))?.slice(field.length + 1)
}
