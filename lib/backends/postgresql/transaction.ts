import { randomBytes } from 'node:crypto'
import { PoolError } from '../../pool/errors.js'
import type { Isolation, Transaction, TransactionOptions } from '../../../types/connector.js'
import type { Client } from '../../../types/drivers.js'
import { quote } from '../shared/sql.js'
import { unresolved, type Coded, type Failed } from './errors.js'
import { nothingToDo } from './queries.js'
import type { PostgresSession } from './session.js'

export const levels: ReadonlyMap<Isolation, string> = new Map<Isolation, string>([
  ['read uncommitted', ' ISOLATION LEVEL READ UNCOMMITTED'],
  ['read committed', ' ISOLATION LEVEL READ COMMITTED'],
  ['repeatable read', ' ISOLATION LEVEL REPEATABLE READ'],
  ['serializable', ' ISOLATION LEVEL SERIALIZABLE'],
])

/**
 * What a transaction of ours is known by: a setting that ends with its transaction, and that one which somebody else
 * began does not have. Not by SELECT set_config(), which takes the snapshot: then it is too late for SET TRANSACTION.
 * One for all transactions of a process, since the server's statistics (pg_stat_statements) keep each different text.
 */
const mark = randomBytes(12).toString('hex')

const setMark = `SET LOCAL fastify_pool.mark = '${mark}'`

/**
 * Fails (22012, 42704) where the mark is not there: what stands behind it in the same text is not done then, and
 * nothing comes between the two. By the functions' full names: operators are looked up in the borrower's search_path.
 */
const isMarked = `pg_catalog.texteq(pg_catalog.current_setting('fastify_pool.mark'), '${mark}')`

const checkMark = `SELECT pg_catalog.int4div(1, pg_catalog.int4(${isMarked}))`
const noMark: ReadonlySet<unknown> = new Set(['22012', '42704'])

/** There is no such savepoint. */
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
      // The server would only warn, and a commit would commit what came before it too.
      if (session.status !== 'I') return new PoolError('FST_POOL_NOT_SUPPORTED', begunByHand)
      began = true
      return `BEGIN${level}${readOnly ? ' READ ONLY' : ''}; ${setMark}`
    })
  } catch (error) {
    const undo = () => session.status === 'I' ? nothingToDo : 'ROLLBACK'
    if (began && !session.broken) await session.run(undo).catch(unlessDone)
    throw error
  }
  return new OpenTransaction(session)
}

class OpenTransaction implements Transaction<Client> {
  readonly connection: Client
  readonly #session: PostgresSession
  readonly #turn: number
  /** In quotes. undefined: it is the outermost. */
  readonly #savepoint: string | undefined
  /** COMMIT is on its way, and there is no answer. */
  inDoubt = false
  /** The server has refused its COMMIT, and ended it with that. */
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
      // What the server said, where something else was made of it.
      const { cause = error } = error as { readonly cause?: unknown }
      const answered = cause === this.#session.failure && !unresolved.has((cause as Coded).code)
      const told = answered && await this.#session.settles()
      this.#refused = this.inDoubt && told && this.#session.status === 'I'
      this.inDoubt &&= !told
      throw error
    })
    this.inDoubt = false
    // Where it says ROLLBACK, it has rolled back.
    if (tag !== 'COMMIT' && tag !== 'RELEASE') throw this.#ended('the transaction was rolled back by its commit')
  }

  async rollback (): Promise<void> {
    // It would wait behind what a borrower has queued meanwhile.
    if (this.#refused) return
    const savepoint = this.#savepoint
    // A savepoint goes with its transaction. Whatever else was begun instead of the outermost is rolled back too.
    const isOver = () => this.#session.status === 'I' || (savepoint !== undefined && this.#session.turn !== this.#turn)
    const whole = savepoint === undefined
    const statement = whole ? 'ROLLBACK' : `ROLLBACK TO SAVEPOINT ${savepoint}; RELEASE SAVEPOINT ${savepoint}`
    await this.#session.run(() => isOver() ? nothingToDo : statement).catch((error: Failed) => {
      // It went with another savepoint, or with its transaction. What is open has failed now, and can't be committed.
      if (whole || error.code !== noSavepoint) unlessDone(error)
    })
  }

  async savepoint (name: string): Promise<Transaction<Client>> {
    // One that no text of a borrower's has.
    const savepoint = quote(`${name}_${mark}`)
    await this.#run(`SAVEPOINT ${savepoint}`)
    return new OpenTransaction(this.#session, this.#turn, savepoint)
  }

  /** @param sent called when it goes out */
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
