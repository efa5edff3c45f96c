import type { Redis } from 'ioredis'

// What tests ask of a Redis connection, whichever protocol it speaks: ioredis 5 has RESP2 only (`npm run test:oldest`).

export function speaksResp3 ({ condition }: Redis): boolean {
  return (condition as { readonly protocol?: number } | null)?.protocol === 3
}

const ids = new WeakMap<Redis, number>()

/** In RESP2 what is subscribed to any channel takes no other commands. */
export const isDeaf = (connection: Redis): boolean => Boolean(connection.condition?.subscriber) &&
  !speaksResp3(connection)

/** The server's id of the connection. One that is deaf must have been asked before. */
export async function idOf (connection: Redis): Promise<number> {
  if (!isDeaf(connection)) ids.set(connection, await connection.client('ID'))
  return ids.get(connection)!
}

/** What the server holds against the connection. One that is deaf is looked up by `admin`, under the id that it had. */
export async function infoOf (connection: Redis, admin: Redis): Promise<Record<string, string>> {
  const line = isDeaf(connection)
    ? admin.call('CLIENT', 'LIST', 'ID', await idOf(connection))
    : connection.client('INFO')
  return Object.fromEntries(String(await line).trim().split(' ').map((field) => field.split('=')))
}
