import { randomBytes } from 'node:crypto'
import { PoolError } from '../../engine/errors.js'
import type { Isolation, Transaction, TransactionOptions } from '../../../types/connector.js'
import type { Client } from '../../../types/drivers.js'
import { quote } from '../shared/sql.js'
import { unresolved, type Failed } from './errors.js'
import { nothingToDo } from './queries.js'
import type { PostgresSession } from './session.js'

export const levels: ReadonlyMap<Isolation, string> = new Map<Isolation, string>([
  ['read uncommitted', ' ISOLATION LEVEL READ UNCOMMITTED'],
  ['read committed', ' ISOLATION LEVEL READ COMMITTED'],
  ['repeatable read', ' ISOLATION LEVEL REPEATABLE READ'],
  ['serializable', ' ISOLATION LEVEL SERIALIZABLE'],
])

/**
 * The mark of a transaction of ours: a setting that ends with its transaction, and that a transaction begun by anybody
 * else does not have. It is set by SET LOCAL, since SELECT set_config() would take the snapshot, and then it is too
 * late for SET TRANSACTION.
 *
 * One value for all transactions of a process, since the server's statistics (pg_stat_statements) keep each different
 * text.
 */
const mark = randomBytes(12).toString('hex')

const setMark = `SET LOCAL fastify_pool.mark = '${mark}'`

/**
 * A query that fails (22012, 42704) where the mark is not there. What stands behind it in the same text is not run
 * then, and nothing comes between the two. Functions have their full names: operators would be looked up in the
 * borrower's search_path.
 */
const isMarked = `pg_catalog.texteq(pg_catalog.current_setting('fastify_pool.mark'), '${mark}')`

const checkMark = `SELECT pg_catalog.int4div(1, pg_catalog.int4(${isMarked}))`
const noMark: ReadonlySet<unknown> = new Set(['22012', '42704'])

/** invalid_savepoint_specification: there is no such savepoint. */
const noSavepoint = '3B001'

const hadFailed = 'the transaction had failed: nothing of it can be committed'
const begunByHand = 'a transaction was begun on this connection by a statement of its own'

export async function begin (session: PostgresSession, options: TransactionOptions): Promise<Transaction<Client>> {
  const { isolation, readOnly = false } = options
  const level = isolation === undefined ? '' : levels.get(isolation)
  if (level === undefined) {
    throw new PoolError('FST_POOL_NOT_SUPPORTED', `PostgreSQL has no isolation level '${isolation!}'`)
  }
  let began = false
  try {
    await session.run(() => {
      session.failure = undefined
      session.doubtful = false
      // BEGIN in an open transaction only gives a warning, and our commit would then commit what came before it.
      if (session.status !== 'I') return new PoolError('FST_POOL_NOT_SUPPORTED', begunByHand)
      began = true
      return `BEGIN${level}${readOnly ? ' READ ONLY' : ''}; ${setMark}`
    })
  } catch (error) {
    if (began && !session.broken) {
      await session.run(() => session.status === 'I' ? nothingToDo : 'ROLLBACK').catch(unlessDone)
    }
    throw error
  }
  return new OpenTransaction(session)
}

class OpenTransaction implements Transaction<Client> {
  readonly connection: Client
  readonly #session: PostgresSession
  readonly #turn: number
  /** The quoted name of the savepoint. undefined: this is the outermost transaction. */
  readonly #savepoint: string | undefined
  /** COMMIT was sent, and its answer has not come. */
  inDoubt = false
  /** The server has refused COMMIT, which ended the transaction. */
  #refused = false

  constructor (session: PostgresSession, turn = session.turn, savepoint?: string) {
    this.connection = session.connection
    this.#session = session
    this.#turn = turn
    this.#savepoint = savepoint
  }

  async commit (): Promise<void> {
    const statement = this.#savepoint === undefined ? 'COMMIT' : `RELEASE SAVEPOINT ${this.#savepoint}`
    const tag = await this.#run(statement, () => { this.inDoubt = true }).catch(async (error: unknown) => {
      // The server's own error, where ours is around it.
      const { cause = error } = error as { readonly cause?: unknown }
      const answered = cause === this.#session.failure && !unresolved.has((cause as Partial<Failed>).code)
      const told = answered && await this.#session.settles()
      this.#refused = this.inDoubt && told && this.#session.status === 'I'
      this.inDoubt &&= !told
      throw error
    })
    this.inDoubt = false
    // The tag of a COMMIT in a failed transaction is ROLLBACK.
    if (tag !== 'COMMIT' && tag !== 'RELEASE') throw this.#ended('the transaction was rolled back by its commit')
  }

  async rollback (): Promise<void> {
    // A ROLLBACK would wait behind what a borrower has queued meanwhile, and there is nothing to roll back.
    if (this.#refused) return
    const savepoint = this.#savepoint
    // A savepoint ends with its transaction. For the outermost one, whatever is open now is rolled back.
    const isOver = () => this.#session.status === 'I' || (savepoint !== undefined && this.#session.turn !== this.#turn)
    const whole = savepoint === undefined
    const statement = whole ? 'ROLLBACK' : `ROLLBACK TO SAVEPOINT ${savepoint}; RELEASE SAVEPOINT ${savepoint}`
    await this.#session.run(() => isOver() ? nothingToDo : statement).catch((error: Failed) => {
      // The savepoint is gone, with another savepoint or with its transaction. What is open has failed now, so it can't
      // be committed.
      if (whole || error.code !== noSavepoint) unlessDone(error)
    })
  }

  async savepoint (name: string): Promise<Transaction<Client>> {
    // A name that no statement of a borrower uses.
    const savepoint = quote(`${name}_${mark}`)
    await this.#run(`SAVEPOINT ${savepoint}`)
    return new OpenTransaction(this.#session, this.#turn, savepoint)
  }

  /** @param sent called when the statement is sent */
  async #run (statement: string, sent: () => void = () => {}): Promise<string> {
    const session = this.#session
    if (session.broken) throw this.#ended('the connection of the transaction is gone', session.error)
    const ended = (cause?: Error) => this.#ended('the transaction was ended by a statement of its own', cause)
    const isInner = this.#savepoint !== undefined
    let checked = false
    return await session.run(() => {
      if (session.turn !== this.#turn) return ended()
      if (session.status === 'E') return this.#ended(hadFailed, session.failure)
      checked = session.doubtful
      sent()
      return checked ? `${checkMark}; ${statement}` : statement
    }, (error: Failed, first) => {
      const isGone = checked && first ? noMark.has(error.code) : isInner && error.code === noSavepoint
      return isGone ? ended(error) : error
    })
  }

  #ended (message: string, cause?: Error): PoolError {
    return new PoolError('FST_POOL_TRANSACTION_ENDED', message, { cause })
  }
}

function unlessDone (error: unknown): void {
  if (error !== nothingToDo) throw error
}
