import { randomBytes } from 'node:crypto'
import { PoolError } from '../../engine/errors.js'
import type { Isolation, Transaction, TransactionOptions } from '../../../types/connector.js'
import type { Connection } from '../../../types/drivers.js'
import { quote } from '../shared/sql.js'
import type { LastAnswer } from './answer.js'
import type { Commands } from './commands.js'
import { isAnswer } from './errors.js'
import type { Core } from './wire.js'

/** What transactions ask of their session. */
export interface TransactionSite {
  readonly connection: Connection
  readonly core: Core
  readonly commands: Commands
  readonly answer: LastAnswer
  /** Whether one text may have several statements. */
  readonly several: boolean
  readonly broken: boolean
  open: Open | undefined
}

/** An open transaction. */
export interface Open {
  /** It has the savepoint that marks it. */
  marked: boolean
  /** What a transaction within it did could not be undone. */
  lost: boolean
  readonly readOnly: boolean
}

/** Both name what follows, since the variable `completion_type` may say otherwise. */
const commit = 'COMMIT AND NO CHAIN NO RELEASE'
export const rollback = 'ROLLBACK AND NO CHAIN NO RELEASE'

/** One for the process, since the server's statistics (statement digests) keep each different name. */
const salt = randomBytes(8).toString('hex')
/** The savepoint that marks a transaction of ours. */
const mark = quote(`fastify_pool_${salt}`, '`')
export const setMark = `SAVEPOINT ${mark}`

const levels: Record<Isolation, string> = {
  'read uncommitted': 'READ UNCOMMITTED',
  'read committed': 'READ COMMITTED',
  'repeatable read': 'REPEATABLE READ',
  serializable: 'SERIALIZABLE',
  // Not in `isolation`, so it is never asked for. InnoDB's snapshots belong to this level.
  snapshot: 'REPEATABLE READ',
}

/** Begins a transaction. After a rejection none is open. */
export async function begin (site: TransactionSite, options: TransactionOptions): Promise<Transaction<Connection>> {
  const { isolation, readOnly = false } = options
  const { commands, answer } = site
  const open: Open = { marked: false, lost: false, readOnly }
  let began = false
  const steps = [
    () => {
      // START TRANSACTION would commit the open one.
      if (answer.inTransaction === true) throw new Error('a transaction is open on this connection already')
      return isolation === undefined ? undefined : `SET TRANSACTION ISOLATION LEVEL ${levels[isolation]}`
    },
    readOnly ? 'START TRANSACTION READ ONLY' : 'START TRANSACTION',
    () => {
      began = true
      site.open = open
      if (!site.several && answer.autocommit) return undefined
      open.marked = true
      return setMark
    },
  ]
  try {
    await commands.run(steps)
  } catch (error) {
    if (site.open === open) site.open = undefined
    if (began && !site.broken) await commands.run([rollback])
    throw error
  }
  return new OpenTransaction(site, open)
}

/**
 * A commit must not lie: a deadlock, DDL or a borrower's own COMMIT ends a transaction, and what follows is committed
 * statement by statement.
 *
 * As long as only plain statements were sent and autocommit is on, no other transaction can have begun, and the status
 * of the last answer tells. Before anything else is sent, a savepoint marks the transaction: it lives as long as the
 * transaction, and to release it fails where another transaction has begun meanwhile. It is older than all other
 * savepoints, so ROLLBACK TO one of those keeps it.
 */
class OpenTransaction implements Transaction<Connection> {
  readonly connection: Connection
  inDoubt = false
  readonly #site: TransactionSite
  readonly #open: Open

  constructor (site: TransactionSite, open: Open) {
    this.connection = site.connection
    this.#site = site
    this.#open = open
  }

  async commit (): Promise<void> {
    const { answer, commands } = this.#site
    // Read now: a mark that is set from here on would be queued behind the commit.
    const { marked } = this.#open
    const check = () => {
      if (this.#open.lost) throw ended()
      if (marked) return `RELEASE SAVEPOINT ${mark}`
      // An error packet has no status, so one is asked for.
      return answer.status === undefined ? 'DO 0' : undefined
    }
    const unlessEnded = () => {
      if (!marked && answer.inTransaction !== true) throw ended()
      // COMMIT is written in this turn of the event loop.
      this.inDoubt = true
      return commit
    }
    await commands.run([check, unlessEnded]).catch((error: unknown) => {
      this.inDoubt &&= !isAnswer(error)
      throw isGone(error) ? ended(error) : error
    })
    this.inDoubt = false
    this.#end()
  }

  async rollback (): Promise<void> {
    const { answer, commands } = this.#site
    await commands.run([() => answer.idle ? undefined : rollback])
    this.#end()
  }

  async savepoint (name: string): Promise<Transaction<Connection>> {
    return await beginWithin(this.#site, this.#open, name)
  }

  #end (): void {
    if (this.#site.open === this.#open) this.#site.open = undefined
  }
}

async function beginWithin (site: TransactionSite, open: Open, name: string): Promise<Transaction<Connection>> {
  // A name that no statement of a borrower uses.
  const own = quote(`${name}_${salt}`, '`')
  const first = open.marked ? [] : [setMark]
  open.marked = true
  await site.commands.run([...first, `SAVEPOINT ${own}`])
  return new Savepoint(site, open, own)
}

/** A transaction within one. */
class Savepoint implements Transaction<Connection> {
  readonly connection: Connection
  readonly #site: TransactionSite
  readonly #open: Open
  /** In quotes. */
  readonly #own: string

  constructor (site: TransactionSite, open: Open, own: string) {
    this.connection = site.connection
    this.#site = site
    this.#open = open
    this.#own = own
  }

  async commit (): Promise<void> {
    await this.#site.commands.run([`RELEASE SAVEPOINT ${this.#own}`]).catch((error: unknown) => {
      throw isGone(error) ? ended(error) : error
    })
  }

  async rollback (): Promise<void> {
    const steps = [`ROLLBACK TO SAVEPOINT ${this.#own}`, `RELEASE SAVEPOINT ${this.#own}`]
    await this.#site.commands.run(steps).catch((error: unknown) => {
      if (!isGone(error)) throw error
      // The savepoint is gone: with the whole transaction, or released with another savepoint. In that case what was
      // done since is still there.
      this.#open.lost = true
    })
  }

  async savepoint (name: string): Promise<Transaction<Connection>> {
    return await beginWithin(this.#site, this.#open, name)
  }
}

function ended (cause?: unknown): PoolError {
  return new PoolError('FST_POOL_TRANSACTION_ENDED',
    'the transaction was no longer open when it should have been committed', { cause })
}

/** ER_SP_DOES_NOT_EXIST: there is no such savepoint. */
function isGone (error: unknown): boolean {
  return (error as { errno?: unknown }).errno === 1305
}
