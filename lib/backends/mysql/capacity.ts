import type { Capacity } from '../../../types/connector.js'
import type { Commands } from './commands.js'

/** SQL: how many connections have the program name of this one, from the table of connect attributes. */
const siblings = `SELECT count(*) FROM performance_schema.session_account_connect_attrs
  WHERE attr_name = 'program_name' AND attr_value = (SELECT attr_value
    FROM performance_schema.session_account_connect_attrs
    WHERE attr_name = 'program_name' AND processlist_id = connection_id())`

/** SQL: how many connections this user has. Everybody may see his own. */
const ofUser = "SELECT count(*) FROM information_schema.processlist WHERE user = substring_index(user(), '@', 1)"

/**
 * Asks a server. The lower one of its limit and the user's counts.
 *
 * undefined: a proxy answers, whose clients are not the server's.
 *
 * @param threadId what the server called the connection when it logged in
 */
export async function capacityOf (commands: Commands, threadId: number): Promise<Capacity | undefined> {
  const limits = 'SELECT connection_id(), @@GLOBAL.max_connections, @@SESSION.max_user_connections'
  const [id, ofServer, user] = (await commands.row(limits)).map(Number)
  if (id !== threadId) return undefined
  const ours = await siblingsOf(commands)
  const more = ours === undefined ? {} : { ours }
  if (user! > 0 && user! < ofServer!) {
    const [inUse] = await commands.row(ofUser)
    return { allowed: user!, inUse: Number(inUse), ...more }
  }
  const [, inUse] = await commands.row("SHOW GLOBAL STATUS LIKE 'Threads_connected'")
  return { allowed: ofServer!, inUse: Number(inUse), ...more }
}

/** undefined: the server does not tell. MariaDB's performance schema is off by default: its tables are empty then. */
async function siblingsOf (commands: Commands): Promise<number | undefined> {
  try {
    const [count] = await commands.row(siblings)
    return Number(count) || undefined
  } catch (error) {
    // Refused by the server, or there is no such table: the limits are known all the same.
    if (typeof (error as { sqlState?: unknown }).sqlState === 'string') return undefined
    throw error
  }
}
