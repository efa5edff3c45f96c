import { randomBytes } from 'node:crypto'
import { PoolError } from '../../pool/errors.js'
import { type Failure } from '../shared/failures.js'
import { unlessAborted } from '../shared/signal.js'
import type { Isolation, ServerState, Transaction, TransactionOptions } from '../../../types/connector.js'
import type { Connection } from '../../../types/drivers.js'
import { isAnswer, errors, isReadOnly } from './errors.js'
import { replications, isOn, follows, lagOf } from './inspect.js'
import type { Replication } from './inspect.js'
import { isOpen, cut, within, afterNumber, quote } from './wire.js'
import type { Listener, Emitter, Command, Done, Packet, Core } from './wire.js'

/** Of the status that the server sends with each answer. */
const inTransaction = 1

const autocommit = 2

/** Of the client's flags. */
const multiStatements = 0x10000

/** The number of the command. */
const resetConnection = 0x1f

/**
 * Can end no transaction, and change neither role nor database. The words that stand first decide: within one statement (and not several) nothing else
 * follows. Whatever is written in another way counts for more than it is.
 */
const plain = /^\s*(?:select|insert|update|delete|replace|with)\b/i

/**
 * Can change neither role nor database; `bounds`, where nothing else is in the text. No part of a text can be matched
 * in two ways: to try all of them would take minutes for a long one.
 */
const harmless = /^\s*(?:select|insert|update|delete|replace|with|savepoint|show)\b/i

const bounds = /^\s*(?:start\s+transaction|begin|commit|rollback)\s*(?:;\s*)?$/i

/** Explicitly, since the variable `completion_type` may say otherwise. */
const commit = 'COMMIT AND NO CHAIN NO RELEASE'

const rollback = 'ROLLBACK AND NO CHAIN NO RELEASE'
const state = 'SELECT DATABASE(), CURRENT_ROLE()'

/** A text that may make transactions read only, of those that are not harmless: by its own words, or by some that it has elsewhere. */
const mayOnlyRead = /only|call|execute/i

/** The states of an XA transaction that COM_RESET_CONNECTION undoes, in whatever language the server tells of them. */
const resettable = /\b(?:ACTIVE|IDLE|ROLLBACK ONLY)\b/

/** How long a healthy connection may take to end, in ms. */
const quitGrace = 100

/** Sees all that goes through one connection, and knows how to undo it. */
export class Guard {
  readonly #connection: Connection
  readonly #core: Core
  readonly #mode: 'session' | 'transaction' | 'none'
  readonly #config: Record<string, unknown>
  readonly #before: Record<string, unknown>
  readonly #encoding: string
  readonly #several: boolean
  /** Commands that others sent, and how many of them were sent when the connection was clean. */
  #sent = 0
  #clean = 0
  #settled = false
  /** One of those may have changed role or database. */
  #suspect = false
  /** One of those may have asked for transactions that only read. */
  #onlyReads = false
  /** The server refused a write, and not because of the borrower's own transaction. */
  misplaced = false
  /** It is in a state that no reset undoes. */
  spoilt = false
  /** The server has refused to execute a prepared statement: others may be out of date too. */
  #outdated = false
  /** It does not tell us of its replication. */
  #reticent = false
  /** This command is ours. */
  #ours = false
  /** The last packet that came: of a connection at rest it is the end of an answer. */
  #buffer: Buffer | undefined
  #offset = 0
  #prepared = false
  /** What the first borrower found: the database, the role, and a character set where the reset undoes that of the connection. */
  #first = { database: null as string | null, role: null as string | null, names: '' }
  #added: Array<readonly [emitter: Emitter, event: string | symbol, listener: Listener]> = []
  #open: Open | undefined
  #broken = false
  #closing = false
  #died: ((error?: Error) => void) | undefined
  #error: Error | undefined

  constructor (connection: Connection, core: Core, mode: 'session' | 'transaction' | 'none') {
    this.#connection = connection
    this.#core = core
    this.#mode = mode
    this.#config = core.config
    this.#before = { ...core.config }
    this.#encoding = core.clientEncoding
    this.#several = (core.config.clientFlags & multiStatements) !== 0
    core.on('error', this.#onError)
    core.on('end', this.#onEnd)
    core.stream.on('close', this.#onEnd)
    this.#hide()
  }

  /** No I/O. */
  get broken (): boolean {
    return this.#broken || !isOpen(this.#core)
  }

  /** How the last answer left the connection. Undefined: an error, which does not say, or no answer yet. Only where none is under way. */
  get status (): number | undefined {
    const buffer = this.#buffer
    if (buffer === undefined || this.#prepared) return undefined
    const at = this.#offset
    if (buffer[at] === 0xfe) return buffer.readUInt16LE(at + 3)
    if (buffer[at] !== 0) return undefined
    // An OK: affected rows and insert id come first.
    const rest = afterNumber(buffer, afterNumber(buffer, at + 1))
    return buffer.readUInt16LE(rest)
  }

  get #busy (): boolean {
    const { _command: command, _commands: commands, _paused: paused } = this.#core
    return Boolean(command) || commands.length > 0 || paused
  }

  get #idle (): boolean {
    const { status } = this
    return status !== undefined && (status & inTransaction) === 0 && (status & autocommit) !== 0
  }

  /** From here on the connection may be lent. */
  async open (): Promise<void> {
    if (this.#mode === 'session') {
      const charset = 'SELECT @@character_set_client, @@collation_connection'
      const before = await this.#row(charset)
      await this.#resetConnection()
      const after = await this.#row(charset)
      // By its documentation MySQL goes back to the server's own.
      if (before.join() !== after.join()) this.#first.names = `SET NAMES ${String(before[0])} COLLATE ${String(before[1])}`
      if (this.#first.names !== '') await this.run([this.#first.names])
      const [database, role] = await this.#row(state)
      this.#first = { ...this.#first, database: textOrNull(database), role: textOrNull(role) }
    }
    if (this.#mode !== 'none') {
      for (const emitter of [this.#connection, this.#core]) {
        emitter.on('newListener', (event, listener) => { this.#added.push([emitter, event, listener]) })
      }
    }
    this.#core.on('removeListener', this.#onRemove)
    this.#connection.on('removeListener', this.#onRemove)
    this.#added = []
  }

  settle (): void {
    if (this.#settled) return
    this.#settled = true
    this.#clean = this.#sent
  }

  onDeath (listener: (error?: Error) => void): void {
    if (this.broken) queueMicrotask(() => listener(this.#reason))
    else this.#died = listener
  }

  async ping (signal: AbortSignal): Promise<boolean> {
    await unlessAborted(this.#command((done) => this.#core.ping(done)), signal)
    return true
  }

  /** No use of it: no reset follows. */
  async inspect (): Promise<ServerState> {
    const [server, storage] = await this.#row('SELECT @@GLOBAL.read_only, @@GLOBAL.innodb_read_only')
    const rows = await this.#replication()
    if (!isOn(server) && !isOn(storage) && rows?.some(follows) !== true) return { role: 'primary' }
    // Storage that only reads, and nobody to follow: it is somebody else's.
    if (rows === undefined || (rows.length === 0 && isOn(storage))) return { role: 'replica' }
    return { role: 'replica', lag: rows.length === 0 ? Infinity : Math.max(...rows.map(lagOf)) }
  }

  /** One row for each server that it is told to follow. Undefined: it does not say. */
  async #replication (): Promise<Replication[] | undefined> {
    for (const sql of this.#reticent ? [] : replications) {
      try {
        return await this.#rows<Replication>(sql, false)
      } catch (error) {
        const { errno } = error as { errno?: unknown }
        if (errno === errors.syntax) continue
        if (errno !== errors.accessDenied) throw error
        break
      }
    }
    this.#reticent = true
    return undefined
  }

  async close (): Promise<void> {
    this.#closing = true
    const core = this.#core
    if (this.broken || this.#busy) return await cut(core)
    const timer = setTimeout(() => core.stream.destroy(), quitGrace)
    try {
      await new Promise<void>((resolve) => {
        core.stream.once('close', () => resolve())
        this.#own(() => core.end())
        // The server's end would wait behind data that nobody reads.
        core.stream.resume()
      })
    } finally {
      clearTimeout(timer)
    }
  }

  // --- Reset ---

  reset (): Promise<void> | undefined {
    if (this.#mode === 'none') return undefined
    if (this.#added.length > 0) {
      for (const [emitter, event, listener] of this.#added.splice(0)) emitter.off(event, listener)
    }
    const busy = this.#busy
    if (!busy && this.#sent === this.#clean) return undefined
    if (this.#mode === 'session') return this.#undo()
    if (!busy && this.#idle) {
      this.#clean = this.#sent
      return undefined
    }
    const sent = this.#sent
    return this.#rollBack(() => this.#idle).then(() => this.#cleaned(sent))
  }

  /** @param isOver asked when its turn has come: nothing is sent then */
  async #rollBack (isOver: () => boolean): Promise<void> {
    await this.run([() => isOver() ? undefined : rollback]).catch((cause: unknown) => {
      const { errno, message } = cause as Failure
      if (errno !== errors.xaState) throw cause
      if (this.#mode === 'session' && resettable.test(String(message))) return
      throw new Error('the connection was left with an XA transaction, which can not be undone', { cause })
    })
  }

  async #undo (): Promise<void> {
    const sent = this.#sent
    // An XA transaction refuses it. After the reset of one that is prepared, MariaDB (10.11) would refuse all writes.
    await this.#rollBack(() => this.status !== undefined && (this.status & inTransaction) === 0)
    await this.#resetConnection()
    for (const name of ['user', 'password', 'passwordSha1', 'database']) {
      if (this.#config[name] !== this.#before[name]) throw new Error('the connection was left with another user or database by changeUser')
    }
    // What the driver learned from SET NAMES, which the server has forgotten; and what was written into the configuration.
    Object.assign(this.#config, this.#before)
    this.#core.clientEncoding = this.#encoding
    if (this.#first.names !== '') await this.run([this.#first.names])
    if (this.#suspect) await this.#restore()
    this.#suspect = false
    this.#onlyReads = false
    this.#cleaned(sent)
  }

  /** Neither role (MariaDB) nor database is reset. The configured database may be gone: then this fails. */
  async #restore (): Promise<void> {
    const { database, role } = this.#first
    const isBack = async () => {
      const [nowDatabase, nowRole] = await this.#row(state)
      return { database: textOrNull(nowDatabase) === database, role: textOrNull(nowRole) === role }
    }
    const now = await isBack()
    if (now.database && now.role) return
    if (database === null && !now.database) {
      // No statement leaves a database for none.
      await this.#command((done) => this.#core.changeUser({}, done))
      await this.#resetConnection()
      if (this.#first.names !== '') await this.run([this.#first.names])
    }
    const steps = []
    if (database !== null && !now.database) steps.push(`USE ${quote(database)}`)
    // MySQL gives its roles as SET ROLE takes them, MariaDB a bare name.
    if (!now.role) steps.push(`SET ROLE ${role === null ? 'NONE' : role === 'NONE' || role.includes('@') ? role : quote(role)}`)
    await this.run(steps)
    const then = await isBack()
    if (!then.database || !then.role) throw new Error('the connection was left with another role or database, which can not be undone')
  }

  /**
   * COM_RESET_CONNECTION. mysql2 before 3.22 has no method for it: there it is a query of no text, sent under that command's number. The statements that
   * the driver remembers are gone in the server.
   */
  async #resetConnection (): Promise<void> {
    const core = this.#core
    if (core.reset !== undefined) return await this.#command((done) => core.reset!(done))
    await this.#command<unknown>((done) => {
      const query = core.constructor.createQuery('', undefined, done, core.config)
      const { start, doneInsert } = query
      query.start = () => {
        const { writePacket } = core
        core.writePacket = ({ constructor: Packet }) => {
          writePacket.call(core, new Packet(0, Buffer.from([0, 0, 0, 0, resetConnection]), 0, 5))
        }
        try {
          return start.call(query, undefined, core)
        } finally {
          core.writePacket = writePacket
        }
      }
      query.doneInsert = (header) => {
        core._statements.clear()
        return doneInsert.call(query, header)
      }
      core.addCommand(query)
    })
  }

  #cleaned (sent: number): void {
    if (this.#sent !== sent || this.#busy) throw new Error('the connection was still used while it was reset')
    this.#clean = sent
    this.#settled = false
  }

  // --- Transactions ---

  async begin ({ isolation, readOnly = false }: TransactionOptions, signal: AbortSignal): Promise<Transaction<Connection>> {
    const open: Open = { marked: false, lost: false, readOnly }
    let began = false
    await within(this.#core, signal, this.run([
      () => {
        const { status } = this
        // START TRANSACTION would commit it.
        if (status !== undefined && (status & inTransaction) !== 0) throw new Error('a transaction is open on this connection already')
        return isolation === undefined ? undefined : `SET TRANSACTION ISOLATION LEVEL ${levels[isolation]}`
      },
      readOnly ? 'START TRANSACTION READ ONLY' : 'START TRANSACTION',
      () => {
        began = true
        this.#open = open
        if (!this.#several && ((this.status ?? 0) & autocommit) !== 0) return undefined
        open.marked = true
        return `SAVEPOINT ${mark}`
      },
    ])).catch(async (error: unknown) => {
      if (this.#open === open) this.#open = undefined
      if (began && !this.broken) await this.run([rollback])
      throw error
    })
    return this.#transaction(open)
  }

  /**
   * A commit must not lie: a deadlock, DDL or somebody's own COMMIT ends a transaction, and what follows is committed
   * by itself. As long as only plain statements were sent, and autocommit is on, no other can have begun, and the last
   * answer's status tells. Before anything else is sent, a savepoint marks the transaction: it lives as long as that
   * does, and to release it fails where another has begun meanwhile. It is older than all other savepoints: who goes
   * back to one of those keeps it.
   */
  #transaction (open: Open): Transaction<Connection> {
    const ended = (cause?: unknown) => {
      const message = 'the transaction was no longer open when it should have been committed'
      return new PoolError('FST_POOL_TRANSACTION_ENDED', message, { cause })
    }
    const end = () => { if (this.#open === open) this.#open = undefined }
    let inDoubt = false
    const check = (marked: boolean) => () => {
      if (open.lost) throw ended()
      if (marked) return `RELEASE SAVEPOINT ${mark}`
      // An error's packet has no status.
      return this.status === undefined ? 'DO 0' : undefined
    }
    const unlessEnded = (marked: boolean) => () => {
      if (!marked && ((this.status ?? 0) & inTransaction) === 0) throw ended()
      // It is written in this turn.
      inDoubt = true
      return commit
    }
    const savepoint = async (name: string): Promise<Transaction<Connection>> => {
      // One that no text of a borrower's has.
      const own = quote(`${name}_${salt}`)
      const first = open.marked ? [] : [`SAVEPOINT ${mark}`]
      open.marked = true
      await this.run([...first, `SAVEPOINT ${own}`])
      return {
        connection: this.#connection,
        savepoint,
        commit: async () => await this.run([`RELEASE SAVEPOINT ${own}`]).catch(unlessGone(ended)),
        rollback: async () => {
          await this.run([`ROLLBACK TO SAVEPOINT ${own}`, `RELEASE SAVEPOINT ${own}`]).catch(unlessGone(() => {
            // With the whole transaction, or released with another savepoint: then what was done since is still there.
            open.lost = true
            return undefined
          }))
        },
      }
    }
    return {
      connection: this.#connection,
      savepoint,
      get inDoubt () { return inDoubt },
      commit: async () => {
        // As of now: a mark for what is sent from here on would be made behind the commit.
        const { marked } = open
        await this.run([check(marked), unlessEnded(marked)]).catch((error: unknown) => {
          inDoubt &&= !isAnswer(error)
          return unlessGone(ended)(error)
        })
        inDoubt = false
        end()
      },
      rollback: async () => {
        await this.run([() => this.#idle ? undefined : rollback])
        end()
      },
    }
  }

  // --- Commands ---

  /**
   * Sends statements that answer with an OK, one after the other with nothing in between. A step may decide, when its turn comes, what is sent: undefined
   * is nothing.
   */
  async run (steps: ReadonlyArray<string | (() => string | undefined)>): Promise<void> {
    await this.#command<unknown>((done) => {
      const core = this.#core
      const rest = [...steps]
      const query = core.constructor.createQuery('', undefined, done, core.config)
      const { start } = query
      const next = () => {
        try {
          while (rest.length > 0) {
            const step = rest.shift()!
            const sql = typeof step === 'string' ? step : step()
            if (sql === undefined) continue
            query.sql = sql
            core._resetSequenceId()
            return start.call(query, undefined, core)
          }
          done(null)
        } catch (error) {
          done(error as Error)
        }
        return null
      }
      query.start = next
      query.doneInsert = next
      core.addCommand(query)
    })
  }

  async #row (sql: string): Promise<unknown[]> {
    return (await this.#rows<unknown[]>(sql, true))[0]!
  }

  async #rows<T> (sql: string, rowsAsArray: boolean): Promise<T[]> {
    const core = this.#core
    const options = { sql, rowsAsArray, nestTables: false, typeCast: true }
    // Past the driver's `query`, whose `queryFormat` is the user's.
    return await this.#command<T[]>((done) => core.addCommand(core.constructor.createQuery(options, undefined, done as Done<unknown[]>, core.config)))
  }

  #command<T = void> (send: (done: (error: Error | null | undefined, result?: T) => void) => void): Promise<T> {
    return new Promise((resolve, reject) => {
      this.#own(() => send((error, result) => error ? reject(error) : resolve(result as T)))
    })
  }

  #own (send: () => void): void {
    this.#ours = true
    try {
      send()
    } finally {
      this.#ours = false
    }
  }

  // --- The seam ---

  /** Own properties hide the driver's methods, look, and call them. */
  #hide (): void {
    const core = this.#core
    const { addCommand, handlePacket } = core
    core.addCommand = (command) => {
      if (!this.#ours) this.#note(command)
      return addCommand.call(core, command)
    }
    core.handlePacket = (packet) => {
      const command = core._command
      // Before it is handled: then the next command may be sent already.
      if (packet && command && !core._paused) {
        this.#buffer = packet.buffer
        this.#offset = packet.offset
        this.#prepared = command.parameterCount !== undefined
        if (packet.buffer[packet.offset] === 0xff) this.#refused(packet, command)
      }
      handlePacket.call(core, packet)
    }
  }

  #note (command: Command): void {
    const text = command.sql ?? command.statement?.query ?? command.query
    // COM_STMT_CLOSE: has no answer, and leaves nothing. The driver sends it by itself.
    if (text === undefined && command.id !== undefined) return
    this.#sent++
    const single = text !== undefined && !(this.#several && text.includes(';'))
    if (!single || !(harmless.test(text) || bounds.test(text))) {
      this.#suspect = true
      if (text === undefined || mayOnlyRead.test(text)) this.#onlyReads = true
    }
    const open = this.#open
    if (open === undefined || open.marked || (single && plain.test(text))) return
    open.marked = true
    this.run([`SAVEPOINT ${mark}`]).catch(() => {
      // Then there is no such savepoint, which is what the commit asks for.
    })
  }

  /** An error came. */
  #refused ({ buffer, offset, end }: Packet, { statement }: Command): void {
    const errno = buffer.readUInt16LE(offset + 1)
    if (errno === errors.illegalHandler || (errno === errors.xaState && this.#mode === 'none')) this.spoilt = true
    if (errno === errors.unknownStatement || errno === errors.needsReprepare) this.#forget(statement)
    if (errno === errors.readOnlyTransaction) this.misplaced ||= !this.#onlyReads && this.#open?.readOnly !== true
    else if (isReadOnly(errno, () => buffer.toString('latin1', offset + 3, end))) this.misplaced = true
  }

  /** Where one was out of date: to close them has no answer, so there is nothing to wait for. */
  forgetStatements (): void {
    if (!this.#outdated) return
    this.#outdated = false
    // A session reset does so itself.
    if (this.#mode !== 'session') this.#core._statements.clear()
  }

  /**
   * A prepared statement can't be executed any more: the driver forgets it at once, all others when the borrower has
   * gone, who may hold them. One by SQL PREPARE only a session reset undoes.
   */
  #forget (statement: Command['statement']): void {
    this.#outdated = true
    const { _statements: statements } = this.#core
    for (const [key, one] of [...statements.entries()]) if (one === statement) statements.delete(key)
    if (statement === undefined && this.#mode !== 'session') this.spoilt = true
  }

  readonly #onError = (error: Error): void => {
    this.#error = error
    this.#onEnd()
  }

  readonly #onEnd = (): void => {
    this.#broken = true
    const died = this.#died
    this.#died = undefined
    if (!this.#closing) died?.(this.#reason)
  }

  /** The server's FIN comes before the driver says what it means, under the same code. */
  get #reason (): Error {
    return this.#error ?? Object.assign(new Error('the server closed the connection'), { code: 'PROTOCOL_CONNECTION_LOST' })
  }

  /** A borrower's `removeAllListeners()` takes the driver's and ours away too: then a death can't be told any more, and would end the process. */
  readonly #onRemove = (event: string | symbol, listener: Listener): void => {
    if (listener !== this.#onError && event !== 'newListener') return
    this.#broken = true
    process.nextTick(() => { if (!this.#core.listeners('error').includes(this.#onError)) this.#core.on('error', this.#onError) })
  }
}

/** An open transaction. */
interface Open {
  /** It has the savepoint that marks it. */
  marked: boolean
  /** What a transaction within it did could not be undone. */
  lost: boolean
  readonly readOnly: boolean
}

/** Of this process and not of each transaction, since the server's statistics (statement digests) keep each name. */
const salt = randomBytes(8).toString('hex')

const mark = `\`fastify_pool_${salt}\``

const levels: Record<Isolation, string> = {
  'read uncommitted': 'READ UNCOMMITTED',
  'read committed': 'READ COMMITTED',
  'repeatable read': 'REPEATABLE READ',
  serializable: 'SERIALIZABLE',
  // Not of those that `isolation` names. InnoDB's snapshots are those of this level.
  snapshot: 'REPEATABLE READ',
}

/** ER_SP_DOES_NOT_EXIST: what a savepoint that is not there gives. */
function unlessGone (otherwise: (cause: unknown) => Error | undefined): (error: unknown) => void {
  return (error) => {
    const told = (error as { errno?: unknown }).errno === 1305 ? otherwise(error) : error
    if (told !== undefined) throw told
  }
}

function textOrNull (value: unknown): string | null {
  return value === null || value === undefined ? null : String(value)
}
